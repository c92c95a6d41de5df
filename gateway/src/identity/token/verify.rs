//! From a token to proven claims.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::UnixTime;

use super::{
    ClaimShape, Clock, KeySet, THUMBPRINT_BYTES, TokenError, TokenRules, Unverified, binding,
    json::{Json, Object},
    parse::parse,
};
use crate::identity::certificate::name::shown_bytes;

/// The issuers of one configuration with their keys; immutable, shared.
#[derive(Clone, Debug)]
pub struct Issuers {
    issuers: Vec<Issuer>,
    generation: u64,
}

#[derive(Clone, Debug)]
struct Issuer {
    rules: TokenRules,
    name: Arc<str>,
    identifier: Arc<str>,
    keys: Keys,
}

/// What is known of an issuer's keys.
#[derive(Clone, Debug)]
pub enum Keys {
    /// These are believed.
    Known(Arc<KeySet>),
    /// None were ever had, or they grew too old to be believed: nothing of this issuer can be
    /// judged.
    Unavailable,
}

impl Keys {
    /// Whether these are the very same keys.
    pub fn is_same(&self, other: &Keys) -> bool {
        match (self, other) {
            (Self::Known(ours), Self::Known(theirs)) => Arc::ptr_eq(ours, theirs),
            (Self::Unavailable, Self::Unavailable) => true,
            _ => false,
        }
    }
}

impl Issuers {
    /// `generation` must change whenever a rule or a key does: what was proven under another
    /// generation is proven again.
    pub fn new(issuers: Vec<(TokenRules, KeySet)>, generation: u64) -> Self {
        let known = |(rules, keys)| (rules, Keys::Known(Arc::new(keys)));
        Self::with_keys(issuers.into_iter().map(known).collect(), generation)
    }

    /// As [`new`](Self::new), for issuers whose keys come and go.
    pub fn with_keys(issuers: Vec<(TokenRules, Keys)>, generation: u64) -> Self {
        let issuers = issuers
            .into_iter()
            .map(|(rules, keys)| Issuer {
                name: rules.name.as_str().into(),
                identifier: rules.issuer.as_str().into(),
                rules,
                keys,
            })
            .collect();
        Self { issuers, generation }
    }

    /// The same issuers with other keys, where `keys` knows some.
    pub fn revised(&self, keys: impl Fn(&TokenRules) -> Option<Keys>, generation: u64) -> Self {
        let revise = |issuer: &Issuer| {
            let keys = keys(&issuer.rules).unwrap_or_else(|| issuer.keys.clone());
            Issuer { keys, ..issuer.clone() }
        };
        Self { issuers: self.issuers.iter().map(revise).collect(), generation }
    }

    /// The generation given to [`new`](Self::new).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The rules and keys of each issuer, for `status` and `token inspect`.
    pub fn iter(&self) -> impl Iterator<Item = (&TokenRules, &Keys)> {
        self.issuers.iter().map(|issuer| (&issuer.rules, &issuer.keys))
    }

    /// The one issuer that `iss` names, octet by octet (RFC 7519 section 4.1.1); the handful of a
    /// configuration is searched in order. Two of the same name, which the configuration does not
    /// allow, are none.
    fn named(&self, iss: &str) -> Option<&Issuer> {
        let mut named = self.issuers.iter().filter(|issuer| issuer.rules.issuer == iss);
        let only = named.next()?;
        named.next().is_none().then_some(only)
    }
}

/// What a token proved. Only [`verify`] makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    issuer: Arc<str>,
    identifier: Arc<str>,
    subject: Option<String>,
    client_id: Option<String>,
    scopes: Vec<String>,
    roles: Vec<String>,
    email: Option<String>,
    tenant: Option<String>,
    token_id: Option<String>,
    bound_to: Option<[u8; THUMBPRINT_BYTES]>,
    times: Times,
    limits: Limits,
}

impl Claims {
    /// The issuer's name in the configuration.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `iss`: the issuer's own name for itself.
    pub fn identifier(&self) -> &str {
        &self.identifier
    }

    /// `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// The first of the issuer's `client_id_claims` that is a string.
    pub fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }

    /// `scope` (RFC 8693 section 4.2), or `scp`.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// The strings of `roles`.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// `email`.
    pub fn email(&self) -> Option<&str> {
        self.email.as_deref()
    }

    /// `tenant`, or `tid`.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// `jti`.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }

    /// `exp`.
    pub fn expires(&self) -> UnixTime {
        unix_time(self.times.expires)
    }

    /// `nbf`.
    pub fn not_before(&self) -> Option<UnixTime> {
        self.times.not_before.map(unix_time)
    }

    /// Claims for the tests of other stages: a real token with these members beside (or in place
    /// of) `iss`, `aud`, `sub`, `iat` and `exp`, through the real verification at
    /// 2026-03-01T12:00:00Z; it expires five minutes later.
    #[cfg(test)]
    pub(crate) fn for_test(members: &serde_json::Value) -> Self {
        super::tests::claims_of_fresh_token(members)
    }

    /// The certificate (its SHA-256) whose holder alone may use the token: `cnf.x5t#S256`.
    pub fn bound_to(&self) -> Option<&[u8; THUMBPRINT_BYTES]> {
        self.bound_to.as_ref()
    }

    /// Whether a fresh verification under the same rules would say yes at this time too.
    pub fn usable_at(&self, clock: impl Into<Clock>) -> bool {
        self.times.check(&self.limits, clock.into()).is_ok()
    }
}

/// Verifies a token: structure, issuer, key, signature, times, audience, in this order. The leeway
/// is granted at both ends; `max_lifetime` is `exp - iat`, and without `iat` what is left until
/// `exp` (leeway included) must not be more.
///
/// # Errors
/// The first rule that it breaks.
pub fn verify(
    token: &str,
    issuers: &Issuers,
    clock: impl Into<Clock>,
) -> Result<Claims, TokenError> {
    let clock = clock.into();
    let token = parse(token)?;
    let claims = token.claims()?;
    let iss = required_text(&claims, "iss")?;
    let issuer = issuers
        .named(iss)
        .ok_or_else(|| TokenError::UnknownIssuer { iss: shown_bytes(iss.as_bytes()) })?;
    let rules = &issuer.rules;
    check_signature(&token, issuer)?;
    // From here on everything is the issuer's word.
    let times = Times::of(&claims)?;
    let limits = Limits { leeway: rules.leeway, max_lifetime: rules.max_lifetime };
    times.check(&limits, clock).map_err(|untimely| untimely.error(rules, &times, clock))?;
    check_audience(&claims, rules)?;
    let bound_to = binding::bound_to(&claims)
        .map_err(|why| TokenError::UnsupportedBinding { issuer: rules.name.clone(), why })?;
    Ok(Claims {
        issuer: issuer.name.clone(),
        identifier: issuer.identifier.clone(),
        subject: optional_text(&claims, "sub")?,
        client_id: client_id(&claims, rules)?,
        scopes: scopes(&claims)?,
        roles: roles(&claims)?,
        email: lenient_text(&claims, "email")?,
        tenant: match lenient_text(&claims, "tenant")? {
            Some(tenant) => Some(tenant),
            None => lenient_text(&claims, "tid")?,
        },
        token_id: optional_text(&claims, "jti")?,
        bound_to,
        times,
        limits,
    })
}

fn check_signature(token: &Unverified<'_>, issuer: &Issuer) -> Result<(), TokenError> {
    let header = token.header();
    let algorithm = header.algorithm;
    if !issuer.rules.algorithms.contains(&algorithm) {
        return Err(TokenError::UnsupportedAlgorithm { algorithm: algorithm.name().to_owned() });
    }
    let name = || issuer.rules.name.clone();
    let keys = match &issuer.keys {
        Keys::Known(keys) => keys,
        Keys::Unavailable => return Err(TokenError::IssuerUnavailable { issuer: name() }),
    };
    let Some(key) = keys.select(&header.key, algorithm) else {
        return Err(TokenError::UnknownKey { issuer: name(), key: header.key.clone() });
    };
    // The key decides on the algorithm (RFC 8725 section 3.1); the header can only agree.
    if key.algorithm != algorithm {
        return Err(TokenError::AlgorithmMismatch { algorithm, key: key.algorithm });
    }
    if !key.verifies(token.signed(), token.signature()) {
        return Err(TokenError::BadSignature { issuer: name(), key: header.key.clone() });
    }
    Ok(())
}

/// The dates of a token, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    expires: u64,
    not_before: Option<u64>,
    issued: Option<u64>,
}

/// The last second of the year 9999. Later dates are mistakes (milliseconds for seconds), and
/// without them no sum below can overflow.
const DATE_MAX_S: u64 = 253_402_300_799;

impl Times {
    fn of(claims: &Object<'_>) -> Result<Self, TokenError> {
        Ok(Self {
            // A fraction is cut to the strict side: earlier for the end, later for the start.
            expires: date(claims, "exp", f64::floor)?
                .ok_or(TokenError::MissingClaim { claim: "exp" })?,
            not_before: date(claims, "nbf", f64::ceil)?,
            issued: date(claims, "iat", f64::ceil)?,
        })
    }

    /// Checks against the clock.
    fn check(&self, limits: &Limits, clock: Clock) -> Result<(), Untimely> {
        let now_s = clock.now.as_secs();
        let leeway_s = clock.leeway(limits.leeway).as_secs();
        // RFC 7519 section 4.1.4: not accepted on or after `exp`.
        if now_s >= self.expires.saturating_add(leeway_s) {
            return Err(Untimely::Expired);
        }
        for (claim, value) in [("nbf", self.not_before), ("iat", self.issued)] {
            if let Some(value_s) = value
                && now_s < value_s.saturating_sub(leeway_s)
            {
                return Err(Untimely::NotYetValid { claim, value_s });
            }
        }
        let max_lifetime_s = limits.max_lifetime.as_secs();
        let (lifetime_s, limit_s) = match self.issued {
            Some(issued) => (self.expires.saturating_sub(issued), max_lifetime_s),
            None => (self.expires.saturating_sub(now_s), max_lifetime_s.saturating_add(leeway_s)),
        };
        if lifetime_s > limit_s {
            return Err(Untimely::LifetimeTooLong { lifetime_s });
        }
        Ok(())
    }
}

/// The rules that a clock is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    leeway: Duration,
    max_lifetime: Duration,
}

/// What is wrong with a token's dates.
#[derive(Clone, Copy, Debug)]
enum Untimely {
    Expired,
    NotYetValid { claim: &'static str, value_s: u64 },
    LifetimeTooLong { lifetime_s: u64 },
}

impl Untimely {
    fn error(self, rules: &TokenRules, times: &Times, clock: Clock) -> TokenError {
        let issuer = rules.name.clone();
        let (now, leeway) = (clock.now, clock.leeway(rules.leeway));
        match self {
            Self::Expired => {
                TokenError::Expired { issuer, expires: unix_time(times.expires), now, leeway }
            }
            Self::NotYetValid { claim, value_s } => {
                TokenError::NotYetValid { issuer, claim, value: unix_time(value_s), now, leeway }
            }
            Self::LifetimeTooLong { lifetime_s } => TokenError::LifetimeTooLong {
                issuer,
                lifetime: Duration::from_secs(lifetime_s),
                max_lifetime: rules.max_lifetime,
            },
        }
    }
}

/// A NumericDate (RFC 7519 section 2), which may have a fraction.
fn date(
    claims: &Object<'_>,
    claim: &'static str,
    whole: fn(f64) -> f64,
) -> Result<Option<u64>, TokenError> {
    let seconds = match claims.get(claim) {
        None => return Ok(None),
        Some(Json::Whole(seconds)) => Some(*seconds),
        // In range the conversion is exact, and a NaN or an infinity is not in range.
        Some(Json::Number(seconds)) if (0.0..=DATE_MAX_S as f64).contains(seconds) => {
            Some(whole(*seconds) as u64)
        }
        Some(_) => None,
    };
    match seconds.filter(|seconds| *seconds <= DATE_MAX_S) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(TokenError::MalformedClaim { claim, expected: ClaimShape::Date }),
    }
}

/// RFC 7519 section 4.1.3: a string or an array of strings; required here.
fn check_audience(claims: &Object<'_>, rules: &TokenRules) -> Result<(), TokenError> {
    let malformed = || TokenError::MalformedClaim { claim: "aud", expected: ClaimShape::Texts };
    let audiences = match claims.get("aud") {
        None => return Err(TokenError::MissingClaim { claim: "aud" }),
        Some(Json::Text(audience)) => vec![audience.as_ref()],
        Some(Json::Array(values)) => {
            values.iter().map(Json::text).collect::<Option<Vec<_>>>().ok_or_else(malformed)?
        }
        Some(_) => return Err(malformed()),
    };
    if audiences.iter().any(|audience| rules.audiences.iter().any(|ours| ours == audience)) {
        return Ok(());
    }
    /// Audiences shown of a token that names the wrong ones.
    const SHOWN: usize = 4;
    let shown: Vec<_> = audiences
        .iter()
        .take(SHOWN)
        .map(|audience| format!("\"{}\"", shown_bytes(audience.as_bytes())))
        .collect();
    let more = if audiences.len() > SHOWN { ", …" } else { "" };
    Err(TokenError::WrongAudience {
        issuer: rules.name.clone(),
        found: format!("[{}{more}]", shown.join(", ")),
    })
}

fn required_text<'a>(claims: &'a Object<'_>, claim: &'static str) -> Result<&'a str, TokenError> {
    let value = claims.get(claim).ok_or(TokenError::MissingClaim { claim })?;
    value.text().ok_or(TokenError::MalformedClaim { claim, expected: ClaimShape::Text })
}

/// A claim that decides on something: another type, or a control character, is an error. An empty
/// one is as good as none.
fn optional_text(claims: &Object<'_>, claim: &'static str) -> Result<Option<String>, TokenError> {
    if !claims.contains_key(claim) {
        return Ok(None);
    }
    clean(required_text(claims, claim)?, claim)
}

/// A claim that only adds to what is known: one of another type is passed over.
fn lenient_text(claims: &Object<'_>, claim: &'static str) -> Result<Option<String>, TokenError> {
    match claims.get(claim).and_then(Json::text) {
        Some(text) => clean(text, claim),
        None => Ok(None),
    }
}

/// Claims end up in header fields and log lines; control characters belong in neither.
fn clean(text: &str, claim: &'static str) -> Result<Option<String>, TokenError> {
    if text.chars().any(char::is_control) {
        return Err(TokenError::MalformedClaim { claim, expected: ClaimShape::Text });
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn client_id(claims: &Object<'_>, rules: &TokenRules) -> Result<Option<String>, TokenError> {
    for claim in &rules.client_id_claims {
        if let Some(text) = claims.get(claim.as_str()).and_then(Json::text)
            && let Some(client_id) = clean(text, "client_id")?
        {
            return Ok(Some(client_id));
        }
    }
    Ok(None)
}

/// `scope` is one string with spaces (RFC 8693 section 4.2); some issuers write `scp`, as a string
/// or an array. Another type grants nothing.
fn scopes(claims: &Object<'_>) -> Result<Vec<String>, TokenError> {
    match claims.get("scope").or_else(|| claims.get("scp")) {
        Some(Json::Text(text)) => {
            let words = text.split(' ').map(|word| clean(word, "scope"));
            Ok(words.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        }
        Some(Json::Array(values)) => texts(values, "scope"),
        _ => Ok(Vec::new()),
    }
}

fn roles(claims: &Object<'_>) -> Result<Vec<String>, TokenError> {
    match claims.get("roles") {
        Some(Json::Array(values)) => texts(values, "roles"),
        _ => Ok(Vec::new()),
    }
}

fn texts(values: &[Json<'_>], claim: &'static str) -> Result<Vec<String>, TokenError> {
    let cleaned = values.iter().filter_map(Json::text).map(|text| clean(text, claim));
    Ok(cleaned.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn unix_time(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}
