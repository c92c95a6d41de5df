//! The certificate authorities that client certificates may come from.
//!
//! A bundle may hold roots and intermediates. An intermediate that another certificate of the
//! bundle signed is not trusted by itself: it helps to build chains when a client does not send
//! it, its own revocation is looked up, and it counts towards the depth. One whose issuer is not
//! in the bundle is a trust anchor like a root.

use std::fmt;

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    fields::{self, Signed},
    name,
};

/// Most certificates taken from one bundle. A public root store has about 150; a bundle for
/// clients has a few.
pub const AUTHORITIES_MAX: usize = 1024;

/// A certificate authority as a name and a key: SHA-256 over the DER of both. Two authorities of
/// one name and different keys are two authorities, so that a list of the one never speaks for
/// certificates of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuthorityId([u8; 32]);

impl AuthorityId {
    /// `subject` and `key` are complete DER values (a Name and a SubjectPublicKeyInfo).
    pub(super) fn new(subject: &[u8], key: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        // A DER value carries its length, so the two cannot run into each other.
        context.update(subject);
        context.update(key);
        Self(fields::sha256_value(context.finish()))
    }
}

/// One authority of the bundle.
#[derive(Clone, Debug)]
pub struct Authority {
    pub(super) id: AuthorityId,
    pub(super) subject_der: Vec<u8>,
    pub(super) key_der: Vec<u8>,
    pub(super) may_sign_lists: bool,
    subject: String,
    not_after: UnixTime,
    anchor: bool,
}

impl Authority {
    /// Name and key in one value.
    pub fn id(&self) -> AuthorityId {
        self.id
    }

    /// The subject as RFC 4514 writes it.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// End of its own validity. Chains are accepted past it (RFC 5280 section 6.1.1 d: an anchor
    /// is a name and a key), so it is for warnings only.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// True when chains may end here; false for a helping intermediate.
    pub fn is_anchor(&self) -> bool {
        self.anchor
    }
}

/// The authorities of one listener, at least one of them a trust anchor.
#[derive(Clone)]
pub struct Anchors {
    authorities: Vec<Authority>,
    pub(super) trust_anchors: Vec<TrustAnchor<'static>>,
    pub(super) anchor_ids: Vec<AuthorityId>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    repeated: Vec<String>,
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.authorities.iter().map(Authority::subject)).finish()
    }
}

/// Why a bundle cannot be used. `index` counts the file's certificates from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnchorsError {
    /// The text is not PEM.
    NotPem {
        /// What the PEM reader said.
        detail: String,
        /// How many certificates were read before.
        index: usize,
    },
    /// No certificate in it.
    Empty,
    /// More than [`AUTHORITIES_MAX`].
    TooMany,
    /// A block is labelled CERTIFICATE and is not one.
    NotACertificate {
        /// Which.
        index: usize,
        /// What is wrong.
        detail: String,
    },
    /// A certificate says that it is no authority (basicConstraints or keyUsage).
    NotAnAuthority {
        /// Which.
        index: usize,
        /// Its subject.
        subject: String,
    },
    /// The bundle holds only intermediates that sign each other in a circle.
    NoAnchor,
}

impl fmt::Display for AnchorsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPem { detail, index } => write!(
                f,
                "after {index} certificates the PEM text is broken ({detail}); \
                 was the file written completely?"
            ),
            Self::Empty => f.write_str(
                "no certificate in it; expected one or more PEM blocks \
                 \"-----BEGIN CERTIFICATE-----\" (convert DER with `openssl x509 -inform der`)",
            ),
            Self::TooMany => write!(f, "more than {AUTHORITIES_MAX} certificates"),
            Self::NotACertificate { index, detail } => {
                write!(f, "certificate {index} does not parse: {detail}")
            }
            Self::NotAnAuthority { index, subject } => write!(
                f,
                "certificate {index} ({subject}) is not a certificate authority; \
                 put the issuer of the clients' certificates here, not the certificates"
            ),
            Self::NoAnchor => f.write_str("no certificate in it can end a chain; add the root"),
        }
    }
}

impl std::error::Error for AnchorsError {}

impl Anchors {
    /// Reads a PEM bundle. Other PEM blocks are passed over; the same certificate twice counts
    /// once.
    pub fn parse(pem: &[u8]) -> Result<Self, AnchorsError> {
        let mut ders: Vec<CertificateDer<'static>> = Vec::new();
        for (index, block) in CertificateDer::pem_slice_iter(pem).enumerate() {
            if index >= AUTHORITIES_MAX {
                return Err(AnchorsError::TooMany);
            }
            let der = block.map_err(|error| AnchorsError::NotPem {
                detail: name::cut(error.to_string()),
                index,
            })?;
            ders.push(der);
        }
        if ders.is_empty() {
            return Err(AnchorsError::Empty);
        }
        let parsed = ders
            .iter()
            .enumerate()
            .map(|(index, der)| authority_certificate(index + 1, der))
            .collect::<Result<Vec<_>, _>>()?;
        Self::assemble(&ders, &parsed)
    }

    fn assemble(
        ders: &[CertificateDer<'static>],
        parsed: &[X509Certificate<'_>],
    ) -> Result<Self, AnchorsError> {
        let mut anchors = Self {
            authorities: Vec::new(),
            trust_anchors: Vec::new(),
            anchor_ids: Vec::new(),
            intermediates: Vec::new(),
            repeated: Vec::new(),
        };
        for (index, (der, certificate)) in ders.iter().zip(parsed).enumerate() {
            if ders.iter().take(index).any(|earlier| earlier == der) {
                anchors.repeated.push(name::distinguished(certificate.subject()));
                continue;
            }
            let helps = signed_by_another(der, certificate, parsed);
            let authority = authority(certificate, !helps);
            if helps {
                anchors.intermediates.push(der.clone());
            } else {
                let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| {
                    AnchorsError::NotACertificate {
                        index: index + 1,
                        detail: name::cut(error.to_string()),
                    }
                })?;
                anchors.trust_anchors.push(anchor.to_owned());
                anchors.anchor_ids.push(authority.id);
            }
            anchors.authorities.push(authority);
        }
        if anchors.trust_anchors.is_empty() {
            return Err(AnchorsError::NoAnchor);
        }
        Ok(anchors)
    }

    /// The subject of one of its authorities.
    pub(super) fn name_of(&self, id: AuthorityId) -> Option<&str> {
        self.authorities.iter().find(|authority| authority.id == id).map(Authority::subject)
    }

    /// Whether it has this authority.
    pub(super) fn has(&self, id: AuthorityId) -> bool {
        self.authorities.iter().any(|authority| authority.id == id)
    }

    /// Subjects of certificates that stood in the bundle before; they are taken once.
    pub fn repeated(&self) -> &[String] {
        &self.repeated
    }

    /// Every authority of the bundle, in its order.
    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }
}

/// Parses one certificate and refuses a client's own certificate put in by mistake.
fn authority_certificate<'a>(
    index: usize,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, AnchorsError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| {
        AnchorsError::NotACertificate { index, detail: name::cut(error.to_string()) }
    })?;
    if !rest.is_empty() {
        return Err(AnchorsError::NotACertificate {
            index,
            detail: format!("{} bytes too many at its end", rest.len()),
        });
    }
    if let Some(oid) = fields::unreadable_extension(&certificate) {
        return Err(AnchorsError::NotACertificate { index, detail: format!("extension {oid}") });
    }
    let refuse = || AnchorsError::NotAnAuthority {
        index,
        subject: name::distinguished(certificate.subject()),
    };
    // A version 1 certificate has no extensions to say so, and is an authority because the
    // operator lists it.
    let says_no = match certificate.basic_constraints() {
        Ok(Some(constraints)) => !constraints.value.ca,
        Ok(None) => !certificate.extensions().is_empty(),
        Err(_) => true,
    };
    let may_sign = match certificate.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    if says_no || !may_sign {
        return Err(refuse());
    }
    Ok(certificate)
}

fn authority(certificate: &X509Certificate<'_>, anchor: bool) -> Authority {
    let subject_der = certificate.subject().as_raw().to_vec();
    let key_der = certificate.public_key().raw.to_vec();
    Authority {
        id: AuthorityId::new(&subject_der, &key_der),
        subject: name::distinguished(certificate.subject()),
        not_after: fields::unix_time(&certificate.validity().not_after),
        // RFC 5280 section 4.2.1.3: without the extension every use is allowed.
        may_sign_lists: !matches!(certificate.key_usage(), Ok(Some(usage)) if !usage.value.crl_sign()),
        subject_der,
        key_der,
        anchor,
    }
}

fn signed_by_another(
    der: &CertificateDer<'_>,
    certificate: &X509Certificate<'_>,
    all: &[X509Certificate<'_>],
) -> bool {
    if certificate.issuer().as_raw() == certificate.subject().as_raw() {
        return false;
    }
    all.iter().filter(|other| other.subject().as_raw() == certificate.issuer().as_raw()).any(
        |other| {
            Signed::parse(der).is_some_and(|signed| signed.verify(other.public_key().raw).is_ok())
        },
    )
}
