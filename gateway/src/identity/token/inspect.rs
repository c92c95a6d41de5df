//! A token explained to a person: what it says, and what the configured issuers say to it.

use std::{fmt, time::Duration};

use rustls_pki_types::UnixTime;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Issuers, KeyName, Keys, RevokedTokens, TokenError, TokenRules, parse, verify};
use crate::identity::certificate::{name::shown_bytes, shown_time};

/// Everything [`inspect`] found out. Header and claims are what the token **says**; only
/// `verdict` is proven.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The header, or nothing when it cannot be read.
    pub unverified_header: Option<Value>,
    /// The claims, or nothing when they cannot be read.
    pub unverified_claims: Option<Value>,
    /// Each date among the claims, for people.
    pub times: Vec<String>,
    /// What verification says.
    pub verdict: Verdict,
    /// What the configuration has in place of what the token asks for.
    pub hints: Vec<String>,
}

/// What verification says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// No issuers to verify against; the structure holds.
    NotVerified,
    /// The token proves its claims.
    Valid {
        /// The issuer's name in the configuration.
        issuer: String,
        /// Whom requests with it count for.
        client_id: Option<String>,
        /// What it may do.
        scopes: Vec<String>,
    },
    /// The token would be refused.
    Refused {
        /// The word in logs and metrics.
        reason: &'static str,
        /// The sentence in the log.
        detail: String,
    },
}

/// What tokens are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Judges<'a> {
    /// The issuers and their keys.
    pub issuers: &'a Issuers,
    /// What they took back.
    pub revoked: &'a RevokedTokens,
}

/// Explains a token; with judges, verifies it as a request's would be.
pub fn inspect(token: &str, judges: Option<Judges<'_>>, now: UnixTime) -> Report {
    let mut parts = token.split('.');
    let header = parts.next().and_then(value);
    let claims = parts.next().and_then(value);
    let (verdict, hints) = verdict(token, judges, now);
    Report {
        times: claims
            .as_ref()
            .and_then(Value::as_object)
            .map_or_else(Vec::new, |claims| times(claims, now)),
        unverified_header: header,
        unverified_claims: claims,
        verdict,
        hints,
    }
}

fn verdict(token: &str, judges: Option<Judges<'_>>, now: UnixTime) -> (Verdict, Vec<String>) {
    let refused =
        |error: &TokenError| Verdict::Refused { reason: error.reason(), detail: error.to_string() };
    let Some(Judges { issuers, revoked }) = judges else {
        return match parse(token).and_then(|token| token.claims().map(|_| ())) {
            Ok(()) => (Verdict::NotVerified, Vec::new()),
            Err(error) => (refused(&error), Vec::new()),
        };
    };
    let verified = verify(token, issuers, now);
    match verified.and_then(|claims| revoked.check(&claims).map(|()| claims)) {
        Ok(claims) => {
            let bound = claims.bound_to().map(
                |_| "bound to a client certificate (cnf): good on a connection with that one only",
            );
            let valid = Verdict::Valid {
                issuer: claims.issuer().to_owned(),
                client_id: claims.client_id().map(str::to_owned),
                scopes: claims.scopes().to_vec(),
            };
            (valid, bound.map(str::to_owned).into_iter().collect())
        }
        Err(error) => (refused(&error), hints(&error, issuers)),
    }
}

/// What there is in place of what was asked for. Of the configuration, so it is for its owner alone
/// and never in an answer.
fn hints(error: &TokenError, issuers: &Issuers) -> Vec<String> {
    let of_issuer = |name: &str| issuers.iter().find(|(rules, _)| rules.name == name);
    let listed = |texts: &[String]| texts.join(", ");
    match error {
        TokenError::UnknownIssuer { .. } => issuers
            .iter()
            .map(|(rules, _)| format!("[[issuer]] {} is \"{}\"", rules.name, rules.issuer))
            .collect(),
        TokenError::UnknownKey { issuer, key } => {
            let Some((rules, Keys::Known(keys))) = of_issuer(issuer) else { return Vec::new() };
            let mut hints: Vec<_> = keys
                .described()
                .map(|key| format!("issuer {} has {key}", rules.name))
                .chain(keys.unusable().iter().map(|key| format!("not usable: {key}")))
                .collect();
            if *key != KeyName::Nothing {
                hints.push("if the issuer has a new key, fetch its key set again".to_owned());
            }
            hints
        }
        TokenError::UnsupportedAlgorithm { .. } => {
            let allowed = |(rules, _): (&TokenRules, _)| {
                let names: Vec<_> =
                    rules.algorithms.iter().map(|one| one.name().to_owned()).collect();
                format!("issuer {} may use {}", rules.name, listed(&names))
            };
            issuers.iter().map(allowed).collect()
        }
        TokenError::WrongAudience { issuer, .. } => of_issuer(issuer)
            .map(|(rules, _)| {
                format!("issuer {} is believed for aud {}", rules.name, listed(&rules.audiences))
            })
            .into_iter()
            .collect(),
        _ => Vec::new(),
    }
}

/// A part's JSON, read leniently: a person wants to see also what will be refused.
fn value(part: &str) -> Option<Value> {
    use base64::{
        Engine, alphabet,
        engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    };
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    serde_json::from_slice(&LENIENT.decode(part).ok()?).ok()
}

fn times(claims: &Map<String, Value>, now: UnixTime) -> Vec<String> {
    ["iat", "nbf", "exp", "auth_time"]
        .into_iter()
        .filter_map(|claim| {
            let seconds = claims.get(claim)?.as_f64().filter(|seconds| *seconds >= 0.0)?;
            // Saturates for absurd values, which `shown_time` then shows as a number.
            let seconds = seconds as u64;
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            Some(format!("{claim} {}, {}", shown_time(time), distance(seconds, now.as_secs())))
        })
        .collect()
}

fn distance(seconds: u64, now_s: u64) -> String {
    let length = humantime::format_duration(Duration::from_secs(seconds.abs_diff(now_s)));
    match seconds.cmp(&now_s) {
        std::cmp::Ordering::Less => format!("{length} ago"),
        std::cmp::Ordering::Equal => "now".to_owned(),
        std::cmp::Ordering::Greater => format!("in {length}"),
    }
}

/// JSON leaves some control characters as they are (RFC 8259 section 7), and a terminal may obey
/// them.
fn calm(text: &str) -> String {
    let mut calm = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            calm.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            calm.push(character);
        }
    }
    calm
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, value) in
            [("header", &self.unverified_header), ("claims", &self.unverified_claims)]
        {
            match value {
                Some(value) => {
                    writeln!(f, "{what} (not verified): {}", calm(&format!("{value:#}")))?;
                }
                None => writeln!(f, "{what}: not readable")?,
            }
        }
        for time in &self.times {
            writeln!(f, "{time}")?;
        }
        match &self.verdict {
            Verdict::NotVerified => {
                f.write_str("signature: NOT VERIFIED (no issuer to verify against)")
            }
            Verdict::Valid { issuer, client_id, scopes } => write!(
                f,
                "valid: issuer {issuer}, client {}, scopes [{}]",
                client_id.as_deref().map_or("-".to_owned(), |id| shown_bytes(id.as_bytes())),
                calm(&scopes.join(" "))
            ),
            Verdict::Refused { reason, detail } => write!(f, "refused: {reason}: {detail}"),
        }?;
        self.hints.iter().try_for_each(|hint| write!(f, "\n  {hint}"))
    }
}
