//! Why a token is refused.

use std::{fmt, time::Duration};

use rustls_pki_types::UnixTime;

use super::{Algorithm, KeyName, TOKEN_MAX_BYTES};
use crate::identity::certificate::shown_time;

/// A part of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The JOSE header.
    Header,
    /// The claims.
    Claims,
    /// The signature.
    Signature,
    /// The three of them together.
    Whole,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Claims => "claims",
            Self::Signature => "signature",
            Self::Whole => "token",
        })
    }
}

/// What a claim should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimShape {
    /// A string without control characters.
    Text,
    /// A string, or an array of strings.
    Texts,
    /// Seconds since 1970, not past the year 9999.
    Date,
}

impl fmt::Display for ClaimShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a string without control characters",
            Self::Texts => "a string or an array of strings",
            Self::Date => "a number of seconds since 1970",
        })
    }
}

/// Why a token is refused. `Display` is for the operator's log: every text from the token is
/// escaped and cut, and the token itself is never in it. `issuer` is the name in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Longer than [`TOKEN_MAX_BYTES`].
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not three parts of canonical base64url with JSON in the first two.
    Malformed {
        /// Which part.
        part: Part,
        /// What is wrong.
        detail: String,
    },
    /// Encrypted (RFC 7516).
    Encrypted,
    /// `alg` is missing, unknown, or not allowed for the issuer.
    UnsupportedAlgorithm {
        /// What the header says.
        algorithm: String,
    },
    /// The key that `kid` names is for another algorithm.
    AlgorithmMismatch {
        /// What the header says.
        algorithm: Algorithm,
        /// What the key is for.
        key: Algorithm,
    },
    /// The header has a parameter that must not be passed over, or that would let the token
    /// choose its own key.
    RefusedHeader {
        /// Which.
        parameter: &'static str,
    },
    /// `typ` says that this is no access or identity token.
    UnsupportedType {
        /// What it says.
        kind: String,
    },
    /// A member is there twice.
    DuplicateMember {
        /// Where.
        part: Part,
        /// Its name.
        name: String,
    },
    /// A required claim is missing.
    MissingClaim {
        /// Which.
        claim: &'static str,
    },
    /// A claim is not what it has to be.
    MalformedClaim {
        /// Which.
        claim: &'static str,
        /// What it should be.
        expected: ClaimShape,
    },
    /// No issuer of the configuration has this `iss`.
    UnknownIssuer {
        /// What the token says.
        iss: String,
    },
    /// The issuer has no such key.
    UnknownKey {
        /// The issuer.
        issuer: String,
        /// What the token asks for. When it names no key, not exactly one fits.
        key: KeyName,
    },
    /// The signature is not the key's: a forgery, or a damaged token.
    BadSignature {
        /// The issuer that the token claims.
        issuer: String,
        /// The key that it names.
        key: KeyName,
    },
    /// The issuer's keys could not be had, or are too old: our trouble, not the token's.
    IssuerUnavailable {
        /// The issuer.
        issuer: String,
    },
    /// `exp` has passed.
    Expired {
        /// The issuer.
        issuer: String,
        /// The claim.
        expires: UnixTime,
        /// The clock.
        now: UnixTime,
        /// Granted beyond `exp`.
        leeway: Duration,
    },
    /// `nbf` or `iat` lies in the future.
    NotYetValid {
        /// The issuer.
        issuer: String,
        /// `nbf` or `iat`.
        claim: &'static str,
        /// The claim.
        value: UnixTime,
        /// The clock.
        now: UnixTime,
        /// Granted before the claim's time.
        leeway: Duration,
    },
    /// Valid for longer than the issuer's tokens may be.
    LifetimeTooLong {
        /// The issuer.
        issuer: String,
        /// `exp - iat`, or what is left of it when there is no `iat`.
        lifetime: Duration,
        /// The rule.
        max_lifetime: Duration,
    },
    /// `aud` names none of the issuer's configured audiences.
    WrongAudience {
        /// The issuer.
        issuer: String,
        /// Whom it names.
        found: String,
    },
    /// The issuer, or somebody in its name, took it back.
    Revoked {
        /// The issuer.
        issuer: String,
        /// `jti`, escaped.
        token_id: String,
    },
    /// `cnf` asks for a proof that is not looked for here, or is malformed.
    UnsupportedBinding {
        /// The issuer.
        issuer: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Bound to another certificate than the connection's.
    NotTheHolder {
        /// The issuer.
        issuer: String,
        /// `cnf.x5t#S256`.
        bound_to: String,
        /// The same of the connection's certificate, if it has one.
        certificate: Option<String>,
    },
    /// Bound to no certificate, where the route asks for that.
    NotBound {
        /// The issuer.
        issuer: String,
    },
}

/// What a [`TokenError`] means to others.
struct Meaning<'e> {
    reason: &'static str,
    issuer: Option<&'e str>,
    is_genuine: bool,
}

impl TokenError {
    /// One word for log, metric, response and `explain`.
    pub fn reason(&self) -> &'static str {
        self.meaning().reason
    }

    /// The configured issuer that the token was judged by, where it came so far.
    pub fn issuer(&self) -> Option<&str> {
        self.meaning().issuer
    }

    /// True when the signature held and only a rule about the claims was broken: such a token was
    /// given out by its issuer, and whoever sent it is no forger.
    pub fn is_genuine(&self) -> bool {
        self.meaning().is_genuine
    }

    fn meaning(&self) -> Meaning<'_> {
        let unread = |reason| Meaning { reason, issuer: None, is_genuine: false };
        let unproven = |reason, issuer| Meaning { reason, issuer: Some(issuer), is_genuine: false };
        let genuine = |reason, issuer| Meaning { reason, issuer: Some(issuer), is_genuine: true };
        // The claims other than `iss` are read after the signature.
        let claim = |reason, claim| Meaning { reason, issuer: None, is_genuine: claim != "iss" };
        match self {
            Self::TooLarge { .. } => unread("token_too_large"),
            Self::Malformed { .. } => unread("malformed_token"),
            Self::Encrypted => unread("unsupported_jwe"),
            Self::UnsupportedAlgorithm { .. } | Self::AlgorithmMismatch { .. } => {
                unread("unsupported_algorithm")
            }
            Self::RefusedHeader { parameter: "crit" } => unread("unsupported_critical_header"),
            Self::RefusedHeader { .. } => unread("unsupported_header"),
            Self::UnsupportedType { .. } => unread("unsupported_token_type"),
            Self::DuplicateMember { .. } => unread("duplicate_member"),
            Self::MissingClaim { claim: name } => claim("missing_claim", *name),
            Self::MalformedClaim { claim: name, .. } => claim("malformed_claim", *name),
            Self::UnknownIssuer { .. } => unread("unknown_token_issuer"),
            Self::UnknownKey { issuer, .. } => unproven("unknown_key", issuer),
            Self::BadSignature { issuer, .. } => unproven("bad_signature", issuer),
            Self::IssuerUnavailable { issuer } => unproven("issuer_unavailable", issuer),
            Self::Expired { issuer, .. } => genuine("token_expired", issuer),
            Self::NotYetValid { issuer, .. } => genuine("token_not_yet_valid", issuer),
            Self::LifetimeTooLong { issuer, .. } => genuine("lifetime_too_long", issuer),
            Self::WrongAudience { issuer, .. } => genuine("wrong_audience", issuer),
            Self::Revoked { issuer, .. } => genuine("token_revoked", issuer),
            Self::UnsupportedBinding { issuer, .. } | Self::NotTheHolder { issuer, .. } => {
                genuine("cnf_mismatch", issuer)
            }
            Self::NotBound { issuer } => genuine("cnf_missing", issuer),
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes } => {
                write!(f, "a token of {bytes} bytes; at most {TOKEN_MAX_BYTES} are read")
            }
            Self::Malformed { part, detail } => write!(f, "the {part} is malformed: {detail}"),
            Self::Encrypted => f.write_str("encrypted tokens (JWE) are not supported"),
            Self::UnsupportedAlgorithm { algorithm } => {
                write!(f, "alg \"{algorithm}\" is not allowed")
            }
            Self::AlgorithmMismatch { algorithm, key } => {
                write!(f, "alg is {algorithm}, and the key it names is for {key}")
            }
            Self::RefusedHeader { parameter } => {
                write!(f, "the header parameter \"{parameter}\" is not supported")
            }
            Self::UnsupportedType { kind } => {
                write!(f, "typ \"{kind}\" is not a token for requests; expected JWT or at+jwt")
            }
            Self::DuplicateMember { part, name } => {
                write!(f, "\"{name}\" is twice in the {part}")
            }
            Self::MissingClaim { claim } => write!(f, "the claim \"{claim}\" is missing"),
            Self::MalformedClaim { claim, expected } => {
                write!(f, "the claim \"{claim}\" is not {expected}")
            }
            Self::UnknownIssuer { iss } => {
                write!(f, "no [[issuer]] has issuer = \"{iss}\" (compared octet by octet)")
            }
            Self::UnknownKey { issuer, key } => match key.shown() {
                Some(key) => write!(f, "issuer {issuer} has no key with {key}"),
                None => write!(
                    f,
                    "it names no kid, and not exactly one key of issuer {issuer} fits its alg"
                ),
            },
            Self::BadSignature { issuer, key } => match key.shown() {
                Some(key) => {
                    write!(f, "claims to be from issuer {issuer}, not signed by its key with {key}")
                }
                None => write!(f, "claims to be from issuer {issuer}, not signed by its only key"),
            },
            Self::IssuerUnavailable { issuer } => write!(
                f,
                "the keys of issuer {issuer} could not be fetched, or not for too long; look for \
                 \"issuer keys\" in the log, and at gateway_jwks_age_seconds"
            ),
            Self::Expired { issuer, expires, now, leeway } => write!(
                f,
                "token of issuer {issuer}: exp {} ({}) is {} s past, leeway {} s, clock {} ({})",
                shown_time(*expires),
                expires.as_secs(),
                now.as_secs().saturating_sub(expires.as_secs()),
                leeway.as_secs(),
                shown_time(*now),
                now.as_secs()
            ),
            Self::NotYetValid { issuer, claim, value, now, leeway } => write!(
                f,
                "token of issuer {issuer}: {claim} {} ({}) is {} s ahead, leeway {} s, \
                 clock {} ({}); compare this host's clock with the issuer's",
                shown_time(*value),
                value.as_secs(),
                value.as_secs().saturating_sub(now.as_secs()),
                leeway.as_secs(),
                shown_time(*now),
                now.as_secs()
            ),
            Self::LifetimeTooLong { issuer, lifetime, max_lifetime } => write!(
                f,
                "token of issuer {issuer}: valid for {} s; max_lifetime is {} s",
                lifetime.as_secs(),
                max_lifetime.as_secs()
            ),
            Self::WrongAudience { issuer, found } => write!(
                f,
                "token of issuer {issuer}: aud is {found}, none of the issuer's audiences"
            ),
            Self::Revoked { issuer, token_id } => {
                write!(f, "token of issuer {issuer}: jti \"{token_id}\" is revoked")
            }
            Self::UnsupportedBinding { issuer, why } => {
                write!(f, "token of issuer {issuer}: its cnf cannot be judged: {why}")
            }
            Self::NotTheHolder { issuer, bound_to, certificate: Some(certificate) } => write!(
                f,
                "token of issuer {issuer}: bound to the certificate {bound_to}, and the \
                 connection's is {certificate}"
            ),
            Self::NotTheHolder { issuer, bound_to, certificate: None } => write!(
                f,
                "token of issuer {issuer}: bound to the certificate {bound_to}, and the \
                 connection has none"
            ),
            Self::NotBound { issuer } => write!(
                f,
                "token of issuer {issuer}: it has no cnf.x5t#S256, and the route asks for a token \
                 that is bound to the client's certificate"
            ),
        }
    }
}

impl std::error::Error for TokenError {}
