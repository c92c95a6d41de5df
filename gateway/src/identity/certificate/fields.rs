//! Fields that certificates and revocation lists share: the signed wrapper, times, serials.

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::digest::Digest;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::UnixTime;
use x509_parser::{
    asn1_rs::{Any, FromDer, Tag},
    certificate::X509Certificate,
    extensions::ParsedExtension,
    time::ASN1Time,
};

/// The signature algorithms for certificates, revocation lists and handshakes: one set for all.
/// No SHA-1, no RSA below 2048 bits.
pub(super) static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
});

/// The extension that decides something here and whose contents do not parse. The parser passes
/// over such an extension as if it were absent, which would turn a restriction into a licence.
pub(super) fn unreadable_extension(certificate: &X509Certificate<'_>) -> Option<String> {
    /// keyUsage, subjectAltName, basicConstraints.
    const DECISIVE: [&str; 3] = ["2.5.29.15", "2.5.29.17", "2.5.29.19"];
    certificate.extensions().iter().find_map(|extension| {
        let oid = extension.oid.to_id_string();
        let broken = matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. });
        (broken && DECISIVE.contains(&oid.as_str())).then_some(oid)
    })
}

/// Why a signature does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureError {
    /// No supported algorithm fits the signature's identifier and the signer's key.
    UnsupportedAlgorithm,
    /// The signature is not the signer's.
    Wrong,
}

/// The three fields of a signed value (RFC 5280 sections 4.1.1 and 5.1.1).
pub(super) struct Signed<'a> {
    message: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    /// Takes the wrapper apart; `None` when it is not `SEQUENCE { any, SEQUENCE, BIT STRING }`.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let fields = sequence(der)?;
        let (rest, _) = Any::from_der(fields).ok()?;
        let message = fields.get(..fields.len() - rest.len())?;
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (rest, signature) = Any::from_der(rest).ok()?;
        (rest.is_empty() && algorithm.tag() == Tag::Sequence).then_some(())?;
        Some(Self { message, algorithm: algorithm.data, signature: bits(&signature)? })
    }

    /// Verifies against a signer's SubjectPublicKeyInfo.
    pub(super) fn verify(&self, key_der: &[u8]) -> Result<(), SignatureError> {
        let (key_algorithm, key) =
            key_parts(key_der).ok_or(SignatureError::UnsupportedAlgorithm)?;
        let mut outcome = Err(SignatureError::UnsupportedAlgorithm);
        for candidate in ALGORITHMS.all {
            // RSA with SHA-256 occurs with and without NULL parameters, hence several candidates.
            if candidate.signature_alg_id().as_ref() != self.algorithm
                || candidate.public_key_alg_id().as_ref() != key_algorithm
            {
                continue;
            }
            match candidate.verify_signature(key, self.message, self.signature) {
                Ok(()) => return Ok(()),
                Err(_) => outcome = Err(SignatureError::Wrong),
            }
        }
        outcome
    }
}

fn key_parts(key_der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, algorithm) = Any::from_der(sequence(key_der)?).ok()?;
    let (rest, key) = Any::from_der(rest).ok()?;
    (rest.is_empty() && algorithm.tag() == Tag::Sequence).then_some(())?;
    Some((algorithm.data, bits(&key)?))
}

fn sequence(der: &[u8]) -> Option<&[u8]> {
    let (rest, outer) = Any::from_der(der).ok()?;
    (rest.is_empty() && outer.tag() == Tag::Sequence).then_some(outer.data)
}

/// The octets of a BIT STRING without unused bits.
fn bits<'a>(value: &Any<'a>) -> Option<&'a [u8]> {
    match value.data.split_first() {
        Some((0, octets)) if value.tag() == Tag::BitString => Some(octets),
        _ => None,
    }
}

/// Times before 1970 become 1970: they are past either way.
pub(super) fn unix_time(time: &ASN1Time) -> UnixTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Seconds as `2026-03-01T12:00:00Z`, for messages.
pub(crate) fn shown_time(time: UnixTime) -> String {
    match std::time::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs())) {
        // humantime formats years up to 9999 and fails beyond, hence the bound.
        Some(moment) if time.as_secs() < 253_402_300_800 => {
            humantime::format_rfc3339_seconds(moment).to_string()
        }
        _ => format!("{} seconds after 1970", time.as_secs()),
    }
}

/// The octets of a SHA-256 digest.
pub(super) fn sha256_value(digest: Digest) -> [u8; 32] {
    let mut value = [0; 32];
    // A SHA-256 digest has 32 octets.
    value.copy_from_slice(digest.as_ref());
    value
}

/// A certificate's serial number: a positive integer of at most 20 octets (RFC 5280 section
/// 4.1.2.2), without leading zeros. Negative ones occur and are other numbers: 255 is 00 FF, -1 is FF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial {
    negative: bool,
    length: u8,
    octets: [u8; 20],
}

impl Serial {
    /// From the contents of a DER INTEGER; `None` when longer than 20 octets or empty.
    pub(super) fn new(contents: &[u8]) -> Option<Self> {
        let zeros = contents.iter().take_while(|&&octet| octet == 0).count();
        let significant = contents.get(zeros..)?;
        let length = u8::try_from(significant.len()).ok()?;
        let mut octets = [0; 20];
        octets.get_mut(..significant.len())?.copy_from_slice(significant);
        let negative = contents.first()? & 0x80 != 0;
        Some(Self { negative, length, octets })
    }
}

impl std::fmt::Display for Serial {
    /// Lower-case hexadecimal, two digits an octet, no separators.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let octets = &self.octets[..usize::from(self.length)];
        if self.negative {
            f.write_str("negative ")?;
        }
        if octets.is_empty() {
            return f.write_str("00");
        }
        octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}
