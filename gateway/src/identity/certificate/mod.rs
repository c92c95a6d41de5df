//! Client certificates: whom they come from, whether they still hold, what they call their owner.
//!
//! [`Trust`] is everything that decides on a certificate, made once for each configuration. Each
//! connection wraps it in a [`Verifier`], which rustls asks during the handshake and which
//! afterwards tells the whole outcome: a [`Peer`], or a [`CertificateRefusal`] with what an
//! operator needs to know. Chain building and signatures are webpki's; depth, keyUsage,
//! revocation and names are judged here.

pub mod anchors;
pub mod attributes;
mod fields;
pub mod name;
mod remembered;
pub mod revocation;
mod server_key;
mod trust;
mod verifier;

use std::{fmt, fmt::Write as _};

use rustls_pki_types::UnixTime;

pub use self::{
    anchors::{Anchors, AnchorsError, Authority, AuthorityId},
    attributes::Attributes,
    fields::{Serial, SignatureError},
    name::{AlternativeName, NameError},
    revocation::{Revocations, RevocationsError},
    server_key::{CHAIN_MAX, Hosts, ServerKeyError, rsa_bits, server_key, validity},
    trust::{Peer, Trust},
    verifier::Verifier,
};
pub(crate) use fields::shown_time;

/// Why a client certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// No chain from it ends at an authority of the bundle.
    UnknownIssuer {
        /// The issuer that is neither in the bundle nor among what the client sent.
        missing: String,
    },
    /// It comes from an authority that is no longer in use (`retired_ca`).
    RetiredAuthority {
        /// Which.
        issuer: String,
    },
    /// The client sent none, and one is asked for.
    NotPresented,
    /// An authority has its issuer's name and did not sign it.
    BadSignature,
    /// A signature in the chain uses an algorithm or key size that is not accepted.
    UnsupportedAlgorithm,
    /// The certificate, or one on its chain, is past `notAfter`.
    Expired {
        /// End of its validity.
        not_after: UnixTime,
        /// The clock.
        now: UnixTime,
    },
    /// The certificate, or one on its chain, is before `notBefore`.
    NotYetValid {
        /// Start of its validity.
        not_before: UnixTime,
        /// The clock.
        now: UnixTime,
    },
    /// Its issuer's list names it, or a certificate on its chain.
    Revoked {
        /// Which.
        serial: Serial,
    },
    /// Lists are configured and none is of the authority that issued it, or one on its chain.
    RevocationUnknown {
        /// The authority without a list.
        issuer: String,
    },
    /// The list of its issuer is past `nextUpdate`, and the policy is to refuse.
    ListExpired {
        /// The authority whose list is old.
        issuer: String,
        /// When a newer one was due.
        next_update: UnixTime,
        /// The clock.
        now: UnixTime,
    },
    /// More intermediates between it and the authority than allowed, or more sent than looked at.
    ChainTooLong {
        /// How many.
        intermediates: usize,
        /// `max_chain_depth`, or [`PRESENTED_MAX`].
        limit: usize,
    },
    /// An authority on the chain may not have so many below it (pathLenConstraint), or there are
    /// more than webpki follows.
    PathLength,
    /// Its extendedKeyUsage does not allow clientAuth.
    ExtendedKeyUsage,
    /// Its keyUsage does not allow digitalSignature, which a TLS 1.3 client has to make.
    KeyUsage,
    /// A name lies outside what an authority on its chain may name (nameConstraints).
    NameConstraint,
    /// It holds a critical extension that is not understood.
    CriticalExtension,
    /// It is an authority's own certificate, or one that is none stands on its chain.
    NotAnEndEntity,
    /// It, or one on its chain, is not a well-formed X.509 version 3 certificate.
    Malformed {
        /// What the parser said.
        detail: String,
    },
    /// Its names cannot be used.
    Name(NameError),
    /// The client did not sign the handshake with the certificate's key.
    NotPossessed,
    /// The chain takes more work to judge than is granted.
    TooComplex,
}

/// Most certificates a client may send beside its own. webpki takes no chain with more than six
/// intermediates, and each one sent is parsed and compared.
pub const PRESENTED_MAX: usize = 8;

impl CertificateError {
    /// One word for log, metric and `explain`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownIssuer { .. } => "unknown_issuer",
            Self::RetiredAuthority { .. } => "retired_ca",
            Self::NotPresented => "no_client_cert",
            Self::BadSignature => "bad_certificate_signature",
            Self::UnsupportedAlgorithm => "unsupported_certificate_algorithm",
            Self::Expired { .. } => "certificate_expired",
            Self::NotYetValid { .. } => "certificate_not_yet_valid",
            Self::Revoked { .. } => "revoked",
            Self::RevocationUnknown { .. } => "revocation_unknown",
            Self::ListExpired { .. } => "crl_expired",
            Self::ChainTooLong { .. } | Self::PathLength => "chain_too_long",
            Self::ExtendedKeyUsage => "bad_eku",
            Self::KeyUsage => "bad_key_usage",
            Self::NameConstraint => "name_constraint",
            Self::Name(_) => "bad_certificate_name",
            Self::CriticalExtension
            | Self::NotAnEndEntity
            | Self::Malformed { .. }
            | Self::TooComplex => "bad_certificate",
            Self::NotPossessed => "bad_handshake_signature",
        }
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownIssuer { missing } => write!(
                f,
                "no chain ends at an authority of client_ca: \"{missing}\" is not there, and the \
                 client did not send its certificate; an intermediate has to be sent by the \
                 client or listed in client_ca"
            ),
            Self::RetiredAuthority { issuer } => write!(
                f,
                "it comes from \"{issuer}\", which is listed in retired_ca; renew the client's \
                 certificate"
            ),
            Self::NotPresented => f.write_str("the client sent no certificate"),
            Self::BadSignature => f.write_str(
                "an authority of client_ca has the issuer's name but did not sign it; \
                 it may have a new key, or be another authority of the same name",
            ),
            Self::UnsupportedAlgorithm => f.write_str(
                "a signature on the chain uses an algorithm or key size that is not accepted \
                 (SHA-1, RSA below 2048 bits, …)",
            ),
            Self::Expired { not_after, now } => {
                write!(f, "valid until {}, and it is {}", shown_time(*not_after), shown_time(*now))
            }
            Self::NotYetValid { not_before, now } => write!(
                f,
                "valid from {}, and it is {}; check both clocks",
                shown_time(*not_before),
                shown_time(*now)
            ),
            Self::Revoked { serial } => write!(f, "serial {serial} is on its issuer's list"),
            Self::RevocationUnknown { issuer } => write!(
                f,
                "client_crl has no list of \"{issuer}\"; add it, or give no client_crl at all"
            ),
            Self::ListExpired { issuer, next_update, now } => write!(
                f,
                "the list of \"{issuer}\" was due for renewal at {}, and it is {}; \
                 fetch a new one, or set crl_expired = \"allow\"",
                shown_time(*next_update),
                shown_time(*now)
            ),
            Self::ChainTooLong { intermediates, limit } => {
                write!(f, "{intermediates} intermediate certificates; at most {limit} are allowed")
            }
            Self::PathLength => f.write_str(
                "more certificates on the chain than the pathLenConstraint of an authority allows",
            ),
            Self::ExtendedKeyUsage => f.write_str("extendedKeyUsage does not allow clientAuth"),
            Self::KeyUsage => f.write_str("keyUsage does not allow digitalSignature"),
            Self::NameConstraint => {
                f.write_str("a name lies outside the nameConstraints of its issuer")
            }
            Self::CriticalExtension => {
                f.write_str("it holds a critical extension that is not understood")
            }
            Self::NotAnEndEntity => {
                f.write_str("an authority's certificate is used as a client's, or the reverse")
            }
            Self::Malformed { detail } => write!(f, "it does not parse: {detail}"),
            Self::Name(error) => write!(f, "{error}"),
            Self::NotPossessed => {
                f.write_str("the client did not sign the handshake with the certificate's key")
            }
            Self::TooComplex => f.write_str("the chain takes too much work to judge"),
        }
    }
}

impl std::error::Error for CertificateError {}

/// A refused certificate with what the log says of it. Everything is bounded and escaped: a
/// client without any trusted certificate can put anything here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRefusal {
    /// Why.
    pub error: CertificateError,
    /// Subject as RFC 4514 writes it; empty when it does not parse.
    pub subject: String,
    /// Issuer, likewise.
    pub issuer: String,
    /// Serial number in hexadecimal, likewise.
    pub serial: String,
    /// Alternative names, the first few.
    pub sans: Vec<String>,
}

impl fmt::Display for CertificateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} (subject \"{}\", issuer \"{}\", serial {})",
            self.error.reason(),
            self.error,
            self.subject,
            self.issuer,
            self.serial
        )
    }
}

impl std::error::Error for CertificateRefusal {}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests;
