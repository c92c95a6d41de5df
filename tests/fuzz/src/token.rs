//! Tokens and key sets.

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway::identity::token::{
    Algorithm, Binding, Issuers, Judges, KeySet, RevokedTokens, TokenRules, inspect, verify,
};
use rustls_pki_types::UnixTime;

/// 2026-03-01T12:00:00Z.
const NOW_S: u64 = 1_772_366_400;

const SECRET: &[u8; 32] = b"a secret that everybody may know";

const ISSUER: &str = "https://idp.example.com";
const AUDIENCE: &str = "orders-api";

static ISSUERS: LazyLock<Issuers> = LazyLock::new(|| {
    let rules = TokenRules {
        name: "corp".to_owned(),
        issuer: ISSUER.to_owned(),
        audiences: vec![AUDIENCE.to_owned()],
        algorithms: vec![Algorithm::Hs256],
        leeway: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(3600),
        client_id_claims: vec!["client_id".to_owned(), "sub".to_owned()],
    };
    let key = URL_SAFE_NO_PAD.encode(SECRET);
    let keys = format!("{{\"keys\":[{{\"kty\":\"oct\",\"kid\":\"k\",\"k\":\"{key}\"}}]}}");
    let keys = KeySet::parse(keys.as_bytes(), &[Algorithm::Hs256]).expect("a key set");
    Issuers::new(vec![(rules, keys)], 1)
});

/// A first line `S` signs the rest, a header and claims with a line feed between; anything else is a
/// token as it stands.
pub(crate) fn token(bytes: &[u8]) {
    let Some(rest) = bytes.strip_prefix(b"S\n") else {
        let text = String::from_utf8_lossy(bytes);
        judge(&text);
        return;
    };
    let at = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (header, claims) = rest.split_at(at);
    let claims = claims.strip_prefix(b"\n").unwrap_or(claims);
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()));
    if judge(&token) {
        // What was let in says, to another reader too, what the rules ask for.
        let claims: serde_json::Value = serde_json::from_slice(claims).expect("claims are JSON");
        assert_eq!(claims["iss"], ISSUER);
        let names = |value: &serde_json::Value| value == AUDIENCE;
        assert!(
            names(&claims["aud"]) || claims["aud"].as_array().is_some_and(|a| a.iter().any(names))
        );
        let expires = claims["exp"].as_f64().expect("exp is a number");
        assert!(expires + 60.0 > NOW_S as f64);
        assert!(claims["nbf"].as_f64().is_none_or(|start| start - 60.0 <= NOW_S as f64));
        // Changed anywhere, the signature does not hold.
        let mut forged = token.into_bytes();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        assert!(!judge(&String::from_utf8_lossy(&forged)));
    }
}

fn judge(token: &str) -> bool {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
    let verdict = verify(token, &ISSUERS, now);
    match &verdict {
        Ok(claims) => {
            for text in [claims.subject(), claims.client_id(), claims.tenant(), claims.email()] {
                assert!(
                    text.is_none_or(|text| !text.is_empty() && !text.contains(char::is_control))
                );
            }
            // Neither may panic, whatever `cnf` is.
            let _ = claims.check_binding(Some(&[7; 32]), Binding::WhenBound);
            let _ = claims.check_binding(None, Binding::Always);
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 8_192 && !said.contains(char::is_control), "{said:?}");
        }
    }
    let revoked = RevokedTokens::default();
    let _ = inspect(token, Some(Judges { issuers: &ISSUERS, revoked: &revoked }), now);
    verdict.is_ok()
}

/// Any bytes as a key set, for all algorithms.
pub(crate) fn jwks(bytes: &[u8]) {
    let all = [Algorithm::Rs256, Algorithm::Es256, Algorithm::Hs256];
    if let Ok(keys) = KeySet::parse(bytes, &all) {
        assert!(keys.key_ids().count() <= gateway::identity::token::KEYS_MAX);
        for unusable in keys.unusable() {
            assert!(!unusable.why.is_empty());
        }
    }
}
