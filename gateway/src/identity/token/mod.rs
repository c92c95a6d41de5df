//! Bearer tokens: JSON Web Tokens (RFC 7519) signed as compact JWS (RFC 7515).
//!
//! [`verify`] turns a token into [`Claims`], or says which rule it broke; [`Cache`] remembers what
//! it proved. Cheapest first: structure, algorithm, issuer, key. Then the signature, and only then
//! the claims that a forger could have set to anything, so that a log line "expired" is always about a
//! token its issuer once gave out.
//!
//! Not here: fetching keys (only the decision when to, in [`Refresh`]), encrypted tokens, and where
//! in a request the token stands.

mod algorithm;
mod binding;
mod cache;
mod clock;
mod discovery;
mod error;
mod inspect;
mod json;
mod keys;
mod parse;
mod refresh;
mod revoked;
mod verify;

use std::time::Duration;

pub use self::{
    algorithm::Algorithm,
    binding::{Binding, THUMBPRINT_BYTES},
    cache::{Cache, CacheCounts},
    clock::Clock,
    discovery::{DiscoveryError, jwks_uri},
    error::{ClaimShape, Part, TokenError},
    inspect::{Judges, Report, Verdict, inspect},
    keys::{KEY_SET_MAX_BYTES, KEYS_MAX, KeySet, KeySetError, UnusableKey},
    parse::{HeaderFields, KeyName, TOKEN_MAX_BYTES, Unverified, parse},
    refresh::{Refresh, RefreshRules},
    revoked::{REVOKED_MAX, RevokedTokens, RevokedTokensError},
    verify::{Claims, Issuers, Keys, verify},
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

#[cfg(test)]
mod tests;

#[cfg(test)]
mod vectors;
