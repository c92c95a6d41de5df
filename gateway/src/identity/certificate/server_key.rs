//! The server's own certificate chain and key, from PEM.

use std::fmt;

use rustls::{
    InconsistentKeys, client::verify_server_name, crypto::aws_lc_rs::default_provider,
    pki_types::PrivateKeyDer, server::ParsedCertificate, sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    prelude::{FromDer, GeneralName},
    public_key::PublicKey,
};

use super::{fields::unix_time, name::cut};

/// Most certificates in a chain; real ones have two to four, and every client gets all of them.
pub const CHAIN_MAX: usize = 16;

/// Why chain and key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerKeyError {
    /// The chain file has no certificate.
    NoCertificate,
    /// A certificate of the chain file cannot be read.
    BadCertificate {
        /// Which, counted from 1.
        index: usize,
        /// What is wrong.
        detail: String,
    },
    /// More than [`CHAIN_MAX`] certificates.
    ChainTooLong,
    /// The key file has no key.
    NoKey,
    /// The key is encrypted.
    EncryptedKey,
    /// The key cannot be read or is of a kind that is not supported.
    BadKey {
        /// What is wrong.
        detail: String,
    },
    /// The key belongs to no certificate of the chain.
    Mismatch {
        /// Subject of the first certificate.
        subject: String,
    },
    /// The key belongs to a later certificate of the chain.
    LeafNotFirst {
        /// Which, counted from 1.
        index: usize,
    },
}

impl fmt::Display for ServerKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str(
                "certificate: none in the file; expected PEM blocks \
                 \"-----BEGIN CERTIFICATE-----\", the server's own first",
            ),
            Self::BadCertificate { index, detail } => {
                write!(f, "certificate {index} does not parse: {detail}")
            }
            Self::ChainTooLong => {
                write!(
                    f,
                    "certificate: more than {CHAIN_MAX} in the file; is it a bundle of roots?"
                )
            }
            Self::NoKey => f.write_str(
                "private_key: none in the file; expected a PEM block \
                 \"-----BEGIN PRIVATE KEY-----\" (or RSA or EC PRIVATE KEY)",
            ),
            Self::EncryptedKey => f.write_str(
                "private_key: it is encrypted, and nobody is there to type a passphrase; \
                 decrypt it with `openssl pkey -in KEY -out PLAIN` and protect the file",
            ),
            Self::BadKey { detail } => write!(f, "private_key: not usable: {detail}"),
            Self::Mismatch { subject } => write!(
                f,
                "private_key: it is not the key of the certificate \"{subject}\"; \
                 were the two files renewed together?"
            ),
            Self::LeafNotFirst { index } => write!(
                f,
                "certificate: the key belongs to certificate {index} of the file; \
                 the server's own must come first, then its issuer"
            ),
        }
    }
}

impl std::error::Error for ServerKeyError {}

/// Reads a chain (leaf first) and the leaf's key (PKCS#8, SEC1 or PKCS#1), and makes sure that
/// the two belong together.
pub fn server_key(chain_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, ServerKeyError> {
    let chain = chain(chain_pem)?;
    let key = default_provider()
        .key_provider
        .load_private_key(private_key(key_pem)?)
        .map_err(|error| ServerKeyError::BadKey { detail: error.to_string() })?;
    let matches = |leaf: &CertificateDer<'static>| {
        let alone = CertifiedKey::new(vec![leaf.clone()], key.clone());
        match alone.keys_match() {
            Ok(()) => true,
            // A signer that cannot tell its public key is taken at its word.
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => true,
            Err(_) => false,
        }
    };
    match chain.iter().position(matches) {
        Some(0) => Ok(CertifiedKey::new(chain, key)),
        Some(position) => Err(ServerKeyError::LeafNotFirst { index: position + 1 }),
        None => Err(ServerKeyError::Mismatch { subject: subject(&chain) }),
    }
}

/// Start and end of the leaf's validity.
pub fn validity(certified: &CertifiedKey) -> Option<(UnixTime, UnixTime)> {
    let leaf = certified.cert.first()?;
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let validity = leaf.validity();
    Some((unix_time(&validity.not_before), unix_time(&validity.not_after)))
}

/// Bits of the leaf's key when it is an RSA key.
pub fn rsa_bits(certified: &CertifiedKey) -> Option<usize> {
    let (_, leaf) = X509Certificate::from_der(certified.cert.first()?).ok()?;
    match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => Some(key.key_size()),
        _ => None,
    }
}

/// The hosts that a server's certificate is for, as clients judge it: by its alternative names alone
/// (RFC 9525 section 6.3), never by its common name.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    leaf: Option<CertificateDer<'static>>,
    names: Vec<String>,
}

impl Hosts {
    /// Of the leaf.
    pub fn of(certified: &CertifiedKey) -> Hosts {
        let leaf = certified.cert.first().map(|leaf| leaf.clone().into_owned());
        let names = leaf.as_ref().map(host_names).unwrap_or_default();
        Hosts { leaf, names }
    }

    /// Its names and addresses, for messages.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a client that asks for this host takes the certificate for it. `*.` in front stands for
    /// any one label, so only the same pattern covers it.
    pub fn covers(&self, host: &str) -> bool {
        /// A label that nobody has a certificate for by name.
        const ANY: &str = "portcullis-any-label";
        let host = match host.strip_prefix("*.") {
            Some(suffix) => format!("{ANY}.{suffix}"),
            None => host.to_owned(),
        };
        let Some(leaf) = &self.leaf else { return false };
        let (Ok(leaf), Ok(name)) = (ParsedCertificate::try_from(leaf), ServerName::try_from(host))
        else {
            return false;
        };
        verify_server_name(&leaf, &name).is_ok()
    }
}

fn host_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let shown = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(cut((*name).to_owned())),
        GeneralName::IPAddress(octets) => match **octets {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            _ => <[u8; 16]>::try_from(*octets)
                .ok()
                .map(|all| std::net::Ipv6Addr::from(all).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(shown).collect()
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ServerKeyError> {
    let mut chain = Vec::new();
    for block in CertificateDer::pem_slice_iter(pem) {
        let index = chain.len() + 1;
        if index > CHAIN_MAX {
            return Err(ServerKeyError::ChainTooLong);
        }
        let bad = |detail: String| ServerKeyError::BadCertificate { index, detail };
        let der: CertificateDer<'static> = block.map_err(|error| bad(cut(error.to_string())))?;
        X509Certificate::from_der(&der).map_err(|error| bad(cut(error.to_string())))?;
        chain.push(der);
    }
    if chain.is_empty() {
        return Err(ServerKeyError::NoCertificate);
    }
    Ok(chain)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, ServerKeyError> {
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(_) if contains(pem, b"ENCRYPTED") => Err(ServerKeyError::EncryptedKey),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(ServerKeyError::NoKey),
        // The parser's own words can hold the line that it did not understand, which is the key where
        // all of it stands in one line.
        Err(_) => Err(ServerKeyError::BadKey { detail: "its PEM text is broken".to_owned() }),
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

fn subject(chain: &[CertificateDer<'_>]) -> String {
    chain
        .first()
        .and_then(|der| X509Certificate::from_der(der).ok())
        .map(|(_, certificate)| super::name::distinguished(certificate.subject()))
        .unwrap_or_default()
}
