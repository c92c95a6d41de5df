//! Bearer tokens: JSON Web Tokens (RFC 7519) signed as compact JWS (RFC 7515).

use std::time::Duration;

/// What a token of one issuer must satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// The issuer's name in the configuration, in logs and in metrics.
    pub name: String,
    /// `iss` must be exactly this.
    pub issuer: String,
    /// `aud` must contain one of these; not empty.
    pub audiences: Vec<String>,
    /// Allowed signature algorithms; not empty.
    pub algorithms: Vec<Algorithm>,
    /// Granted to `exp`, `nbf` and `iat` for clocks that differ.
    pub leeway: Duration,
    /// `exp - iat` may not be longer.
    pub max_lifetime: Duration,
    /// The first of these claims that is a string is the client's name.
    pub client_id_claims: Vec<String>,
}

/// Signature algorithms (RFC 7518 section 3.1) that a configuration may allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}
