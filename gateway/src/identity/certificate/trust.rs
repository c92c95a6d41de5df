//! The judgement of one certificate chain, and the proven [`Peer`] it ends in.

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::Arc,
};

use aws_lc_rs::digest;
use rustls::DistinguishedName;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, public_key::PublicKey,
};

use super::{
    AlternativeName, Anchors, Attributes, AuthorityId, CertificateError, CertificateRefusal,
    PRESENTED_MAX, Revocations, Serial, fields, hexadecimal,
    name::{self, Names},
    remembered::{Presented, Remembered},
    revocation::Status,
};
use crate::config::CrlExpired;

/// Everything that decides on client certificates of one listener; immutable but for what it remembers
/// of good clients, shared.
pub struct Trust {
    anchors: Anchors,
    revocations: Revocations,
    crl_expired: CrlExpired,
    max_chain_depth: usize,
    retired: Vec<Anchors>,
    hints: Vec<DistinguishedName>,
    remembered: Remembered,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("anchors", &self.anchors)
            .field("lists", &self.revocations.lists().count())
            .field("crl_expired", &self.crl_expired)
            .field("max_chain_depth", &self.max_chain_depth)
            .finish()
    }
}

/// Names of authorities sent to clients so that they can choose a certificate, at most this many
/// bytes; beyond it none are sent, and clients offer what they have (RFC 8446 section 4.2.4).
const HINTS_MAX_BYTES: usize = 16 * 1024;

impl Trust {
    /// `max_chain_depth`: intermediates allowed between a leaf and its anchor. With at least one
    /// revocation list, every certificate on a chain needs a list of its issuer.
    pub fn new(
        anchors: Anchors,
        revocations: Revocations,
        crl_expired: CrlExpired,
        max_chain_depth: usize,
    ) -> Self {
        let mut hints: Vec<_> = anchors
            .trust_anchors
            .iter()
            .map(|anchor| DistinguishedName::in_sequence(&anchor.subject))
            .collect();
        if hints.iter().map(|hint| hint.as_ref().len()).sum::<usize>() > HINTS_MAX_BYTES {
            hints.clear();
        }
        Self {
            anchors,
            revocations,
            crl_expired,
            max_chain_depth,
            retired: Vec::new(),
            hints,
            remembered: Remembered::default(),
        }
    }

    /// Refuses, by a word of its own, what comes from these authorities too, trusted through another
    /// or not.
    pub fn with_retired(mut self, retired: Anchors) -> Self {
        self.retired.push(retired);
        self
    }

    /// The authorities, for `status` and metrics.
    pub fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// The revocation lists, for `status` and metrics.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    pub(super) fn hints(&self) -> &[DistinguishedName] {
        &self.hints
    }

    /// Whether the peer of an open connection would still be let in: its validity and revocation
    /// as of now, its anchor as of this configuration. No signature is verified again; the cost is
    /// a few comparisons for each certificate of its chain.
    pub fn recheck(&self, peer: &Peer, now: UnixTime) -> Result<(), CertificateError> {
        if !self.anchors.anchor_ids.contains(&peer.anchor()) {
            return Err(CertificateError::UnknownIssuer { missing: peer.anchor_name().to_owned() });
        }
        self.check_retired(&peer.links)?;
        self.check_depth(peer.links.len().saturating_sub(1))?;
        for link in &peer.links {
            if link.bundled.is_some_and(|id| !self.anchors.has(id)) {
                return Err(CertificateError::UnknownIssuer { missing: link.subject_name.clone() });
            }
            if now > link.not_after {
                return Err(CertificateError::Expired { not_after: link.not_after, now });
            }
            if now < link.not_before {
                return Err(CertificateError::NotYetValid { not_before: link.not_before, now });
            }
        }
        self.check_revocation(&peer.links, now)
    }

    /// A client that sent the same certificates before and proved its key then, if it would still be
    /// let in: the chain's signatures, purposes and constraints were judged by this very trust, and
    /// whatever depends on the time is judged now.
    pub(super) fn known(&self, presented: Presented, now: UnixTime) -> Option<Arc<Peer>> {
        self.remembered.find(presented).filter(|peer| self.recheck(peer, now).is_ok())
    }

    /// Who sent these certificates has proven to have the key.
    pub(super) fn remember(&self, presented: Presented, peer: Arc<Peer>) {
        self.remembered.put(presented, peer);
    }

    /// Judges a chain as a client sent it. The peer is only proven once the handshake's
    /// signature is, which is why this stays between here and the verifier.
    pub(super) fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        presented: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, CertificateError> {
        if presented.len() > PRESENTED_MAX {
            return Err(CertificateError::ChainTooLong {
                intermediates: presented.len(),
                limit: PRESENTED_MAX,
            });
        }
        let links = self.verified_links(end_entity, presented, now)?;
        let certificate = parsed(end_entity)?;
        check_key(&certificate)?;
        check_key_usage(&certificate)?;
        self.check_revocation(&links, now)?;
        let names = Names::of(&certificate).map_err(CertificateError::Name)?;
        Peer::new(end_entity, &certificate, names, links)
    }

    /// Builds a chain to an anchor with every signature, validity, purpose and constraint
    /// verified, not too deep and with no revoked intermediate, and returns its certificates,
    /// leaf first.
    fn verified_links(
        &self,
        end_entity: &CertificateDer<'_>,
        presented: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<Link>, CertificateError> {
        let leaf = EndEntityCert::try_from(end_entity).map_err(|error| chain_error(error, now))?;
        let helpers: Vec<CertificateDer<'_>> = presented
            .iter()
            .chain(&self.anchors.intermediates)
            .map(|der| CertificateDer::from(der.as_ref()))
            .collect();
        // webpki calls this for each chain that holds, and tries the next when it says no, so
        // that one revoked cross-certificate does not spoil another way to an anchor.
        let found = Cell::new(None);
        let refused = RefCell::new(None);
        let judge_path = |path: &VerifiedPath<'_>| match self.path_links(path, presented, now) {
            Ok(links) => {
                found.set(Some(links));
                Ok(())
            }
            Err(error) => {
                refused.borrow_mut().get_or_insert(error);
                Err(webpki::Error::UnknownIssuer)
            }
        };
        let outcome = leaf.verify_for_usage(
            fields::ALGORITHMS.all,
            &self.anchors.trust_anchors,
            &helpers,
            now,
            KeyUsage::client_auth(),
            None,
            Some(&judge_path),
        );
        let unknown = || CertificateError::UnknownIssuer {
            missing: missing_issuer(end_entity, presented, &self.anchors),
        };
        match outcome {
            Ok(_) => found.take().ok_or_else(unknown),
            Err(error) => Err(match (refused.take(), error) {
                (Some(refused), _) => refused,
                (None, webpki::Error::UnknownIssuer) => {
                    self.retired_issuer(&leaf, &helpers, now).unwrap_or_else(unknown)
                }
                (None, error) => chain_error(error, now),
            }),
        }
    }

    fn path_links(
        &self,
        path: &VerifiedPath<'_>,
        presented: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<Link>, CertificateError> {
        let certificates: Vec<CertificateDer<'_>> = std::iter::once(path.end_entity().der())
            .chain(path.intermediate_certificates().map(|certificate| certificate.der()))
            .collect();
        self.check_depth(certificates.len() - 1)?;
        let parsed = certificates.iter().map(|der| parsed(der)).collect::<Result<Vec<_>, _>>()?;
        let anchor = self
            .anchors
            .trust_anchors
            .iter()
            .zip(&self.anchors.anchor_ids)
            .find_map(|(anchor, id)| std::ptr::eq(anchor, path.anchor()).then_some(*id))
            .ok_or_else(|| CertificateError::Malformed {
                detail: "a chain to an authority that is not in the bundle".to_owned(),
            })?;
        let issuers = parsed
            .iter()
            .skip(1)
            .map(|issuer| AuthorityId::new(issuer.subject().as_raw(), issuer.public_key().raw))
            .chain([anchor]);
        let mut links = parsed
            .iter()
            .zip(issuers)
            .map(|(certificate, issuer)| Link::new(certificate, issuer))
            .collect::<Result<Vec<_>, _>>()?;
        for (link, der) in links.iter_mut().zip(&certificates).skip(1) {
            let ours = |ours: &CertificateDer<'_>| ours.as_ref() == der.as_ref();
            let lent = !presented.iter().any(ours) && self.anchors.intermediates.iter().any(ours);
            link.bundled = lent.then_some(link.id);
        }
        self.check_retired(&links)?;
        // The leaf's own revocation has to wait for its keyUsage, which is cheaper.
        self.check_revocation(links.get(1..).unwrap_or_default(), now)?;
        Ok(links)
    }

    /// No certificate of the chain, and not its anchor, is a retired authority's.
    fn check_retired(&self, links: &[Link]) -> Result<(), CertificateError> {
        let retired = |link: &&Link| self.retired.iter().any(|bundle| bundle.has(link.issuer));
        match links.iter().find(retired) {
            Some(link) => {
                Err(CertificateError::RetiredAuthority { issuer: link.issuer_name.clone() })
            }
            None => Ok(()),
        }
    }

    /// For a leaf that leads nowhere else: whether it comes from a retired authority. Its signatures
    /// are verified, or anybody could raise that alarm.
    fn retired_issuer(
        &self,
        leaf: &EndEntityCert<'_>,
        helpers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<CertificateError> {
        self.retired.iter().find_map(|retired| comes_from(leaf, helpers, retired, now))
    }

    fn check_depth(&self, intermediates: usize) -> Result<(), CertificateError> {
        let limit = self.max_chain_depth;
        if intermediates > limit {
            return Err(CertificateError::ChainTooLong { intermediates, limit });
        }
        Ok(())
    }

    fn check_revocation(&self, links: &[Link], now: UnixTime) -> Result<(), CertificateError> {
        if self.revocations.is_empty() {
            return Ok(());
        }
        for link in links {
            let issuer = || link.issuer_name.clone();
            match (self.revocations.status(link.issuer, link.serial, now), self.crl_expired) {
                (Status::Good, _) | (Status::Stale { .. }, CrlExpired::Allow) => {}
                (Status::Revoked, _) => {
                    return Err(CertificateError::Revoked { serial: link.serial });
                }
                (Status::Unknown, _) => {
                    return Err(CertificateError::RevocationUnknown { issuer: issuer() });
                }
                (Status::Stale { next_update }, CrlExpired::Deny) => {
                    return Err(CertificateError::ListExpired {
                        issuer: issuer(),
                        next_update,
                        now,
                    });
                }
            }
        }
        Ok(())
    }
}

/// One certificate of a verified chain: what has to be judged again later.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    /// The certificate's own subject and key.
    id: AuthorityId,
    subject_name: String,
    /// Itself, when the client did not send it and the bundle lent it.
    bundled: Option<AuthorityId>,
    issuer: AuthorityId,
    issuer_name: String,
    serial: Serial,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Link {
    fn new(
        certificate: &X509Certificate<'_>,
        issuer: AuthorityId,
    ) -> Result<Self, CertificateError> {
        let serial = Serial::new(certificate.raw_serial()).ok_or_else(|| {
            CertificateError::Malformed { detail: "a serial number above 20 octets".to_owned() }
        })?;
        let subject = certificate.subject();
        Ok(Self {
            id: AuthorityId::new(subject.as_raw(), certificate.public_key().raw),
            subject_name: name::distinguished(subject),
            bundled: None,
            issuer,
            issuer_name: name::distinguished(certificate.issuer()),
            serial,
            not_before: fields::unix_time(&certificate.validity().not_before),
            not_after: fields::unix_time(&certificate.validity().not_after),
        })
    }
}

/// A client whose certificate was verified and who proved to hold its key. Only
/// [`Verifier`](super::Verifier) hands one out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    subject: String,
    names: Names,
    principal: String,
    serial: String,
    fingerprint: [u8; 32],
    attributes: Attributes,
    issuer_serial: [u8; 32],
    /// Leaf first; never empty. Each was issued by the next, the last by the anchor.
    links: Vec<Link>,
}

impl Peer {
    fn new(
        der: &CertificateDer<'_>,
        certificate: &X509Certificate<'_>,
        names: Names,
        links: Vec<Link>,
    ) -> Result<Self, CertificateError> {
        let leaf = links.first().ok_or_else(|| CertificateError::Malformed {
            detail: "a chain without certificates".to_owned(),
        })?;
        let fingerprint = fields::sha256_value(digest::digest(&digest::SHA256, der));
        let principal = names
            .principal()
            .map_or_else(|| format!("sha256:{}", hexadecimal(&fingerprint)), str::to_owned);
        Ok(Self {
            subject: name::distinguished(certificate.subject()),
            principal,
            serial: leaf.serial.to_string(),
            fingerprint,
            attributes: Attributes::of(certificate),
            issuer_serial: issuer_serial(certificate),
            names,
            links,
        })
    }

    fn leaf(&self) -> &Link {
        // `new` made sure that there is one.
        &self.links[0]
    }

    fn anchor_name(&self) -> &str {
        &self.links[self.links.len() - 1].issuer_name
    }

    fn anchor(&self) -> AuthorityId {
        self.links[self.links.len() - 1].issuer
    }

    /// Whom the certificate names: its SPIFFE ID, else its first DNS name, else its CN, and
    /// `sha256:` with its fingerprint when it has none of them.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The subject as RFC 4514 writes it, for people.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The most specific CN of the subject.
    pub fn common_name(&self) -> Option<&str> {
        self.names.common_name()
    }

    /// The issuer as RFC 4514 writes it, for people.
    pub fn issuer(&self) -> &str {
        &self.leaf().issuer_name
    }

    /// The authority that issued it, by name and key.
    pub fn issuer_id(&self) -> AuthorityId {
        self.leaf().issuer
    }

    /// Serial number in lower-case hexadecimal without separators.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Serial number for lookups; unique only together with [`issuer_id`](Self::issuer_id).
    pub fn serial_number(&self) -> Serial {
        self.leaf().serial
    }

    /// Alternative names in the certificate's order.
    pub fn sans(&self) -> &[AlternativeName] {
        self.names.alternative()
    }

    /// The SPIFFE ID.
    pub fn spiffe_id(&self) -> Option<&str> {
        self.names.spiffe_id()
    }

    /// SHA-256 of the certificate's DER (`x5t#S256` of RFC 8705 is this in base64url).
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// What it holds under object identifiers.
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// A name for the certificate that no other one has: the SHA-256 of its issuer's whole name in DER,
    /// an octet 0, and its serial number's octets. DER tells where it ends, so no two pairs read alike.
    pub fn issuer_serial(&self) -> &[u8; 32] {
        &self.issuer_serial
    }

    /// Whether this is the certificate, in DER.
    pub fn is_of(&self, der: &[u8]) -> bool {
        fields::sha256_value(digest::digest(&digest::SHA256, der)) == self.fingerprint
    }

    /// Start of its validity.
    pub fn not_before(&self) -> UnixTime {
        self.leaf().not_before
    }

    /// End of its validity.
    pub fn not_after(&self) -> UnixTime {
        self.leaf().not_after
    }

    /// A peer for the tests of other stages: a real certificate with this CN, from an authority
    /// made for it, through the real judgement.
    #[cfg(test)]
    pub(crate) fn for_test(common_name: &str) -> Self {
        super::tests::peer_of_fresh_authority(common_name)
    }
}

fn issuer_serial(certificate: &X509Certificate<'_>) -> [u8; 32] {
    let mut text = digest::Context::new(&digest::SHA256);
    text.update(certificate.issuer().as_raw());
    text.update(&[0]);
    text.update(certificate.raw_serial());
    fields::sha256_value(text.finish())
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => match fields::unreadable_extension(&certificate) {
            None => Ok(certificate),
            Some(oid) => Err(CertificateError::Malformed { detail: format!("extension {oid}") }),
        },
        Ok(_) => Err(CertificateError::Malformed { detail: "bytes after its end".to_owned() }),
        Err(error) => Err(CertificateError::Malformed { detail: name::cut(error.to_string()) }),
    }
}

/// Whether a leaf leads to an authority of a retired bundle, with every signature verified.
fn comes_from(
    leaf: &EndEntityCert<'_>,
    helpers: &[CertificateDer<'_>],
    retired: &Anchors,
    now: UnixTime,
) -> Option<CertificateError> {
    let name = Cell::new(None);
    let note = |path: &VerifiedPath<'_>| {
        let ids = retired.trust_anchors.iter().zip(&retired.anchor_ids);
        let id = ids.into_iter().find(|(anchor, _)| std::ptr::eq(*anchor, path.anchor()));
        name.set(id.and_then(|(_, id)| retired.name_of(*id)));
        Ok(())
    };
    let helpers: Vec<_> = helpers.iter().chain(&retired.intermediates).cloned().collect();
    leaf.verify_for_usage(
        fields::ALGORITHMS.all,
        &retired.trust_anchors,
        &helpers,
        now,
        KeyUsage::client_auth(),
        None,
        Some(&note),
    )
    .ok()?;
    let issuer = name.take().unwrap_or_default().to_owned();
    Some(CertificateError::RetiredAuthority { issuer })
}

/// The issuer at which the way from the leaf up ends: neither sent by the client nor in the bundle.
fn missing_issuer(
    end_entity: &CertificateDer<'_>,
    presented: &[CertificateDer<'_>],
    anchors: &Anchors,
) -> String {
    let all: Vec<X509Certificate<'_>> = std::iter::once(end_entity)
        .chain(presented)
        .chain(&anchors.intermediates)
        .filter_map(|der| X509Certificate::from_der(der).ok())
        .map(|(_, certificate)| certificate)
        .collect();
    let Some(mut at) = all.first() else { return String::new() };
    // A step for each certificate is enough; certificates that name each other would go round.
    for _ in 0..all.len() {
        let above = all.iter().find(|other| other.subject().as_raw() == at.issuer().as_raw());
        match above {
            Some(above) if above.subject().as_raw() != at.subject().as_raw() => at = above,
            _ => break,
        }
    }
    name::distinguished(at.issuer())
}

/// The client's own key: webpki looks at those of issuers only, and the handshake would refuse a weak
/// one without saying why.
fn check_key(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    /// What the signature algorithms of [`fields::ALGORITHMS`] begin at.
    const RSA_MIN_BITS: usize = 2048;
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_MIN_BITS => {
            Err(CertificateError::UnsupportedAlgorithm)
        }
        _ => Ok(()),
    }
}

/// RFC 8446 section 4.4.2.4 asks for digitalSignature where the extension is present; webpki
/// looks at extendedKeyUsage only.
fn check_key_usage(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() => Err(CertificateError::KeyUsage),
        Ok(_) => Ok(()),
        Err(error) => Err(CertificateError::Malformed { detail: name::cut(error.to_string()) }),
    }
}

/// webpki's word for it as ours.
#[expect(deprecated, reason = "older names of errors that webpki may still return")]
fn chain_error(error: webpki::Error, now: UnixTime) -> CertificateError {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer => CertificateError::UnknownIssuer { missing: String::new() },
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::UnsupportedSignatureAlgorithm
        | E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKey
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            CertificateError::UnsupportedAlgorithm
        }
        E::CertExpired { not_after, .. } => CertificateError::Expired { not_after, now },
        E::CertNotValidYet { not_before, .. } => CertificateError::NotYetValid { not_before, now },
        E::RequiredEkuNotFound | E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            CertificateError::ExtendedKeyUsage
        }
        E::NameConstraintViolation => CertificateError::NameConstraint,
        E::PathLenConstraintViolated => CertificateError::PathLength,
        E::UnsupportedCriticalExtension => CertificateError::CriticalExtension,
        E::CaUsedAsEndEntity | E::EndEntityUsedAsCa => CertificateError::NotAnEndEntity,
        E::MaximumPathDepthExceeded => CertificateError::PathLength,
        E::MaximumSignatureChecksExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumNameConstraintComparisonsExceeded => CertificateError::TooComplex,
        other => CertificateError::Malformed { detail: name::cut(other.to_string()) },
    }
}

/// Alternative names shown of a refused certificate.
const REFUSED_NAMES_SHOWN: usize = 8;

/// What the log says of a refused certificate; nothing in it is proven.
pub(super) fn refusal(der: &CertificateDer<'_>, error: CertificateError) -> CertificateRefusal {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return CertificateRefusal {
            error,
            subject: String::new(),
            issuer: String::new(),
            serial: String::new(),
            sans: Vec::new(),
        };
    };
    let sans = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension
            .value
            .general_names
            .iter()
            .filter_map(shown_alternative)
            .take(REFUSED_NAMES_SHOWN)
            .collect(),
        _ => Vec::new(),
    };
    let serial = certificate.raw_serial();
    CertificateRefusal {
        error,
        subject: name::distinguished(certificate.subject()),
        issuer: name::distinguished(certificate.issuer()),
        serial: Serial::new(serial)
            .map_or_else(|| "longer than 20 octets".to_owned(), |serial| serial.to_string()),
        sans,
    }
}

fn shown_alternative(found: &GeneralName<'_>) -> Option<String> {
    let (kind, bytes) = match found {
        GeneralName::URI(uri) => ("URI", uri.as_bytes()),
        GeneralName::DNSName(dns) => ("DNS", dns.as_bytes()),
        GeneralName::RFC822Name(mailbox) => ("email", mailbox.as_bytes()),
        GeneralName::IPAddress(octets) => ("IP", *octets),
        GeneralName::Invalid(_, bytes) => ("unreadable", *bytes),
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_) => return None,
    };
    Some(format!("{kind}:{}", name::shown_bytes(bytes)))
}
