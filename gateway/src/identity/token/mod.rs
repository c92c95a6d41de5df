//! Bearer tokens: JSON Web Tokens (RFC 7519) signed as compact JWS (RFC 7515).
//!
//! [`verify`] turns a token into [`Claims`], or says which rule it broke; [`Cache`] remembers what
//! it proved. Cheapest first: structure, algorithm, issuer, key. Then the signature, and only then
//! the claims that a forger could have set to anything, so that a log line "expired" is always about a
//! token its issuer once gave out.
//!
//! Not here: fetching keys, encrypted tokens, symmetric algorithms, and where in a request the
//! token stands.

mod cache;
mod error;
mod inspect;
mod json;
mod keys;
mod parse;
mod verify;

use std::time::Duration;

pub use self::{
    cache::{Cache, CacheCounts},
    error::{ClaimShape, Part, TokenError},
    inspect::{Report, Verdict, inspect},
    keys::{KEY_SET_MAX_BYTES, KEYS_MAX, KeySet, KeySetError, UnusableKey},
    parse::{HeaderFields, TOKEN_MAX_BYTES, Unverified, parse},
    verify::{Claims, Issuers, verify},
};

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

impl Algorithm {
    /// Every algorithm that can be allowed.
    pub const ALL: [Self; 2] = [Self::Rs256, Self::Es256];

    /// The name in headers, key sets and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        }
    }

    /// The algorithm of exactly this name; names are case-sensitive (RFC 7515 section 4.1.1).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
