//! Certificates, keys, revocation lists and key sets that a configuration names: whether they are
//! what they should be, from their bytes alone. Whether a certificate has expired is not judged
//! here: that changes while nobody touches the configuration.

use std::fmt;

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::disk::{Content, Daemon};

/// Why a file is not what the configuration says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// No PEM section of the kind wanted.
    NoSection(Wanted),
    /// DER where PEM is wanted.
    Der(Wanted),
    /// A PEM section without its end, or whose inside is not Base64.
    Pem,
    /// A section whose inside is not what its name says; counted from 1.
    Section(Wanted, usize),
    /// A key protected by a pass phrase.
    EncryptedKey,
    /// A kind or size of key that cannot serve.
    UnusableKey,
    /// The key belongs to another certificate.
    KeyMismatch,
    /// Not JSON; line and column as the JSON parser counts them.
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// JSON, but not an object with a list `keys` (RFC 7517 section 5).
    NoKeys,
    /// An empty list `keys`.
    EmptyKeys,
    /// A key set with a private key in it; counted from 1.
    PrivateInKeySet(usize),
}

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// `CERTIFICATE`.
    Certificate,
    /// `PRIVATE KEY`, `RSA PRIVATE KEY` or `EC PRIVATE KEY`.
    PrivateKey,
    /// `X509 CRL`.
    RevocationList,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wanted::Certificate => "certificate",
            Wanted::PrivateKey => "private key",
            Wanted::RevocationList => "revocation list",
        })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::NoSection(wanted) => write!(f, "holds no {wanted} in PEM; name the right file"),
            Damage::Der(wanted) => {
                write!(f, "holds DER; convert the {wanted} to PEM (openssl … -inform DER)")
            }
            Damage::Pem => f.write_str("is damaged PEM; copy the file again"),
            Damage::Section(wanted, number) => {
                write!(f, "holds something else where {wanted} {number} should be; copy it again")
            }
            Damage::EncryptedKey => {
                f.write_str("is protected by a pass phrase; take it off (openssl pkey)")
            }
            Damage::UnusableKey => f.write_str(
                "holds a kind of key that cannot serve TLS; use ECDSA P-256 or RSA 2048",
            ),
            Damage::KeyMismatch => {
                f.write_str("does not belong to the certificate; name the key it was issued for")
            }
            Damage::Json { line, column } => {
                write!(f, "is not JSON at its line {line}, column {column}; fetch it again")
            }
            Damage::NoKeys => f.write_str("has no list \"keys\"; fetch the issuer's JWKS document"),
            Damage::EmptyKeys => {
                f.write_str("holds no key, so every token would be refused; fetch it again")
            }
            Damage::PrivateInKeySet(number) => write!(
                f,
                "holds the private half of key {number} (\"d\"); leave only public keys here, and \
                 replace that one if others saw the file"
            ),
        }
    }
}

impl std::error::Error for Damage {}

/// Whom a private key is open to besides those who should have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposed {
    /// Everybody on the machine.
    Others {
        /// Permission bits.
        mode: u32,
    },
    /// A group that is not the daemon's own.
    Group {
        /// Group id.
        group: u32,
        /// Permission bits.
        mode: u32,
    },
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exposed::Others { mode } => write!(
                f,
                "is open to everybody on this machine (mode {mode:04o}); take that away (chmod \
                 o-rwx), and replace the key if somebody may have copied it"
            ),
            Exposed::Group { group, mode } => write!(
                f,
                "is open to group {group} (mode {mode:04o}), which is not the daemon's own; take \
                 that away (chmod g-rwx) or give it to the daemon's group (chgrp)"
            ),
        }
    }
}

/// Whether only the owner and the daemon can use a private key.
///
/// # Errors
/// Who else can.
pub fn private(content: &Content, daemon: &Daemon) -> Result<(), Exposed> {
    let &Content { mode, group, .. } = content;
    if mode & 0o006 != 0 {
        return Err(Exposed::Others { mode });
    }
    if mode & 0o060 != 0 && !daemon.groups.contains(&group) {
        return Err(Exposed::Group { group, mode });
    }
    Ok(())
}

/// A chain, or anchors: at least one certificate, each well-formed.
pub(super) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Damage> {
    let chain: Vec<CertificateDer<'static>> = sections(bytes, Wanted::Certificate)?;
    for (index, certificate) in chain.iter().enumerate() {
        parsed(certificate).ok_or(Damage::Section(Wanted::Certificate, index + 1))?;
    }
    Ok(chain)
}

/// The first private key.
pub(super) fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Damage> {
    let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if contains(bytes, encrypted) => Err(Damage::EncryptedKey),
        Err(pem::Error::NoItemsFound) => Err(no_section(bytes, Wanted::PrivateKey)),
        Err(_) => Err(Damage::Pem),
    }
}

/// Whether a key can serve, and belongs to the first certificate of the chain.
pub(super) fn pair(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(), Damage> {
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|_| Damage::UnusableKey)?;
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) => Ok(()),
        Err(_) => Err(Damage::KeyMismatch),
    }
}

/// The number, from 1, of the first certificate that did not issue the one before it.
pub(super) fn out_of_order(chain: &[CertificateDer<'_>]) -> Option<usize> {
    let parsed: Vec<_> = chain.iter().filter_map(parsed).collect();
    let breaks =
        |pair: &[X509Certificate<'_>]| pair[0].issuer().as_raw() != pair[1].subject().as_raw();
    parsed.windows(2).position(breaks).map(|index| index + 2)
}

/// The subjects of those anchors that are not certificates of an authority: nothing chains to them.
pub(super) fn not_authorities(anchors: &[CertificateDer<'_>]) -> Vec<String> {
    let parsed = anchors.iter().filter_map(parsed);
    parsed.filter(|anchor| !anchor.is_ca()).map(|anchor| anchor.subject().to_string()).collect()
}

/// The subjects of those anchors that none of the lists speaks for.
pub(super) fn without_list(
    anchors: &[CertificateDer<'_>],
    lists: &[CertificateRevocationListDer<'_>],
) -> Vec<String> {
    let lists: Vec<_> = lists
        .iter()
        .filter_map(|list| CertificateRevocationList::from_der(list).ok())
        .map(|(_, list)| list)
        .collect();
    let uncovered = |anchor: &X509Certificate<'_>| {
        lists.iter().all(|list| list.issuer().as_raw() != anchor.subject().as_raw())
    };
    let anchors = anchors.iter().filter_map(parsed).filter(uncovered);
    anchors.map(|anchor| anchor.subject().to_string()).collect()
}

/// Revocation lists, in PEM or one in DER (RFC 5280 section 5.1).
pub(super) fn revocation_lists(
    bytes: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, Damage> {
    if CertificateRevocationList::from_der(bytes).is_ok_and(|(rest, _)| rest.is_empty()) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists: Vec<CertificateRevocationListDer<'static>> =
        sections(bytes, Wanted::RevocationList)?;
    for (index, list) in lists.iter().enumerate() {
        if CertificateRevocationList::from_der(list).is_err() {
            return Err(Damage::Section(Wanted::RevocationList, index + 1));
        }
    }
    Ok(lists)
}

/// A set of public keys (RFC 7517 section 5). Whether each can be used is for the issuer's rules to
/// say.
pub(super) fn key_set(bytes: &[u8]) -> Result<(), Damage> {
    let document: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|error| Damage::Json { line: error.line(), column: error.column() })?;
    let keys = document.get("keys").and_then(|keys| keys.as_array()).ok_or(Damage::NoKeys)?;
    if keys.is_empty() {
        return Err(Damage::EmptyKeys);
    }
    match keys.iter().position(|key| key.get("d").is_some()) {
        Some(index) => Err(Damage::PrivateInKeySet(index + 1)),
        None => Ok(()),
    }
}

fn parsed<'c>(certificate: &'c CertificateDer<'_>) -> Option<X509Certificate<'c>> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}

/// All PEM sections of one kind; at least one.
fn sections<T: PemObject>(bytes: &[u8], wanted: Wanted) -> Result<Vec<T>, Damage> {
    let sections: Vec<T> =
        T::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|_| Damage::Pem)?;
    if sections.is_empty() {
        return Err(no_section(bytes, wanted));
    }
    Ok(sections)
}

/// DER of all these kinds begins with a SEQUENCE, which no PEM does.
fn no_section(bytes: &[u8], wanted: Wanted) -> Damage {
    match bytes.first() {
        Some(0x30) => Damage::Der(wanted),
        _ => Damage::NoSection(wanted),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{DAEMON_ID, KEY_SET, LAB, Lab, STRANGER_ID},
        *,
    };

    /// PEM around nonsense that is good Base64.
    fn nonsense(label: &str) -> String {
        format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n")
    }

    #[test]
    fn only_the_owner_and_the_daemon_may_use_a_key() {
        let daemon = Daemon { users: vec![DAEMON_ID], groups: vec![DAEMON_ID] };
        for (mode, group, expected) in [
            (0o600, STRANGER_ID, Ok(())),
            (0o400, STRANGER_ID, Ok(())),
            (0o640, DAEMON_ID, Ok(())),
            (0o660, DAEMON_ID, Ok(())),
            (0o640, STRANGER_ID, Err(Exposed::Group { group: STRANGER_ID, mode: 0o640 })),
            (0o620, STRANGER_ID, Err(Exposed::Group { group: STRANGER_ID, mode: 0o620 })),
            (0o640, 0, Err(Exposed::Group { group: 0, mode: 0o640 })),
            (0o644, DAEMON_ID, Err(Exposed::Others { mode: 0o644 })),
            (0o602, DAEMON_ID, Err(Exposed::Others { mode: 0o602 })),
        ] {
            let content = Content { mode, group, ..Content::default() };
            assert_eq!(private(&content, &daemon), expected, "{mode:o} of group {group}");
        }
    }

    #[test]
    fn certificates_are_pem_and_well_formed() {
        let chain = format!("# comment\n{}{}", LAB.server, LAB.intermediate);
        let key_then_certificate = format!("{}{}", LAB.server_key, LAB.server);
        let second_bad = format!("{}{}", LAB.server, nonsense("CERTIFICATE"));
        let cut = &LAB.server[..LAB.server.len() - 40];
        let spoilt = LAB.server.replace("\nM", "\n*");
        let wanted = Wanted::Certificate;
        for (bytes, expected) in [
            (LAB.server.as_bytes(), Ok(1)),
            (chain.as_bytes(), Ok(2)),
            (key_then_certificate.as_bytes(), Ok(1)),
            (b"", Err(Damage::NoSection(wanted))),
            (b"nonsense", Err(Damage::NoSection(wanted))),
            (LAB.server_key.as_bytes(), Err(Damage::NoSection(wanted))),
            (LAB.server_der.as_slice(), Err(Damage::Der(wanted))),
            (cut.as_bytes(), Err(Damage::Pem)),
            (spoilt.as_bytes(), Err(Damage::Pem)),
            (second_bad.as_bytes(), Err(Damage::Section(wanted, 2))),
        ] {
            let result = certificates(bytes).map(|chain| chain.len());
            assert_eq!(result, expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_key_serves_for_its_own_certificate() {
        let wanted = Wanted::PrivateKey;
        let pair_with =
            |key: &str| pair(certificates(LAB.server.as_bytes())?, private_key(key.as_bytes())?);
        for (key, expected) in [
            (LAB.server_key.clone(), Ok(())),
            (format!("{}{}", LAB.server, LAB.server_key), Ok(())),
            (LAB.other_key.clone(), Err(Damage::KeyMismatch)),
            (LAB.server.clone(), Err(Damage::NoSection(wanted))),
            (nonsense("ENCRYPTED PRIVATE KEY"), Err(Damage::EncryptedKey)),
            (nonsense("PRIVATE KEY"), Err(Damage::UnusableKey)),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n".to_owned(), Err(Damage::Pem)),
        ] {
            assert_eq!(pair_with(&key), expected, "{key}");
        }
        assert_eq!(private_key(&LAB.server_der).unwrap_err(), Damage::Der(wanted));
    }

    #[test]
    fn a_chain_goes_from_the_leaf_up() {
        let Lab { server, intermediate, authority, .. } = &*LAB;
        for (chain, expected) in [
            (vec![server], None),
            (vec![server, intermediate], None),
            (vec![server, intermediate, authority], None),
            (vec![intermediate, server], Some(2)),
            (vec![server, authority], Some(2)),
            (vec![server, intermediate, intermediate], Some(3)),
        ] {
            let chain: String = chain.into_iter().map(String::as_str).collect();
            let chain = certificates(chain.as_bytes()).unwrap();
            assert_eq!(out_of_order(&chain), expected);
        }
    }

    #[test]
    fn lists_are_pem_or_der_and_matched_with_their_authorities() {
        let wanted = Wanted::RevocationList;
        let twice = format!("{}{}", LAB.revoked, LAB.revoked);
        let bad = nonsense("X509 CRL");
        for (bytes, expected) in [
            (LAB.revoked.as_bytes(), Ok(1)),
            (twice.as_bytes(), Ok(2)),
            (LAB.revoked_der.as_slice(), Ok(1)),
            (b"".as_slice(), Err(Damage::NoSection(wanted))),
            (LAB.server.as_bytes(), Err(Damage::NoSection(wanted))),
            (LAB.server_der.as_slice(), Err(Damage::Der(wanted))),
            (bad.as_bytes(), Err(Damage::Section(wanted, 1))),
        ] {
            assert_eq!(revocation_lists(bytes).map(|lists| lists.len()), expected);
        }
        let lists = revocation_lists(LAB.revoked.as_bytes()).unwrap();
        let anchors = format!("{}{}", LAB.authority, LAB.other_authority);
        let anchors = certificates(anchors.as_bytes()).unwrap();
        assert_eq!(without_list(&anchors, &lists), ["CN=Other Root"]);
        assert!(not_authorities(&anchors).is_empty());
        let leaf = certificates(LAB.server.as_bytes()).unwrap();
        assert_eq!(not_authorities(&leaf), ["CN=edge.example"]);
    }

    #[test]
    fn key_sets_hold_public_keys() {
        for (text, expected) in [
            (KEY_SET, Ok(())),
            ("", Err(Damage::Json { line: 1, column: 0 })),
            ("{\n\"keys\": [}", Err(Damage::Json { line: 2, column: 10 })),
            ("[]", Err(Damage::NoKeys)),
            ("{}", Err(Damage::NoKeys)),
            (r#"{"keys": {}}"#, Err(Damage::NoKeys)),
            (r#"{"keys": []}"#, Err(Damage::EmptyKeys)),
            (r#"{"keys": [{}, {"d": "x"}]}"#, Err(Damage::PrivateInKeySet(2))),
        ] {
            assert_eq!(key_set(text.as_bytes()), expected, "{text}");
        }
        let deep = "[".repeat(1_000_000);
        assert!(matches!(key_set(deep.as_bytes()), Err(Damage::Json { .. })));
    }
}
