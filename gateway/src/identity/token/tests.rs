//! Good tokens, and every way to make a bad one that we know of.

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use super::*;
use crate::simulation::Numbers;

/// 2026-03-01T12:00:00Z.
const NOW_S: u64 = 1_772_366_400;
const LEEWAY_S: u64 = 60;
const ISSUER: &str = "https://idp.example.org";

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Keys and issuers shared by all tests: making an RSA key takes a tenth of a second.
struct Fixture {
    ec: EcdsaKeyPair,
    other_ec: EcdsaKeyPair,
    rsa: RsaKeyPair,
    rsa_pem: String,
    ec_pem: String,
    issuers: Issuers,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let (ec, ec_pem) = ec_key();
    let (other_ec, _) = ec_key();
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        .unwrap();
    let rsa = RsaKeyPair::from_pkcs8(key.serialized_der()).unwrap();
    let jwks = json!({ "keys": [ec_jwk(&ec, "ec-1"), rsa_jwk(&rsa, "rsa-1")] });
    Fixture {
        issuers: issuers(&[jwks], 1),
        ec,
        other_ec,
        rsa,
        rsa_pem: key.serialize_pem(),
        ec_pem,
    }
});

fn ec_key() -> (EcdsaKeyPair, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der()).unwrap();
    (pair, key.serialize_pem())
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn ec_jwk(key: &EcdsaKeyPair, kid: &str) -> Value {
    let point = key.public_key().as_ref();
    json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid,
            "x": base64url(&point[1..33]), "y": base64url(&point[33..]) })
}

fn rsa_jwk(key: &RsaKeyPair, kid: &str) -> Value {
    let public = key.public_key();
    json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid,
            "n": base64url(public.modulus().big_endian_without_leading_zero()),
            "e": base64url(public.exponent().big_endian_without_leading_zero()) })
}

fn rules(number: usize) -> TokenRules {
    TokenRules {
        name: format!("corp{number}"),
        issuer: if number == 0 { ISSUER.to_owned() } else { format!("{ISSUER}/{number}") },
        audiences: vec!["orders-api".to_owned(), "billing-api".to_owned()],
        algorithms: Algorithm::ALL.to_vec(),
        leeway: Duration::from_secs(LEEWAY_S),
        max_lifetime: Duration::from_secs(3600),
        client_id_claims: ["client_id", "azp", "sub"].map(str::to_owned).to_vec(),
    }
}

fn issuers(sets: &[Value], generation: u64) -> Issuers {
    let issuers = sets.iter().enumerate().map(|(number, jwks)| {
        let keys = KeySet::parse(jwks.to_string().as_bytes(), &Algorithm::ALL).unwrap();
        (rules(number), keys)
    });
    Issuers::new(issuers.collect(), generation)
}

/// For the tests of other stages.
pub(crate) fn claims_of_fresh_token(members: &Value) -> Claims {
    let token = ec_token(&json!({ "alg": "ES256" }), &with(members.clone()));
    verify(&token, &FIXTURE.issuers, at(NOW_S)).unwrap()
}

enum Signer<'a> {
    Ec(&'a EcdsaKeyPair),
    Rsa(&'a RsaKeyPair),
    Hmac(&'a [u8]),
    Nobody,
}

fn signed_text(signer: &Signer<'_>, header: &str, claims: &str) -> String {
    let input = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
    let random = SystemRandom::new();
    let signature = match signer {
        Signer::Ec(key) => key.sign(&random, input.as_bytes()).unwrap().as_ref().to_vec(),
        Signer::Rsa(key) => {
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &random, input.as_bytes(), &mut signature).unwrap();
            signature
        }
        Signer::Hmac(key) => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key);
            hmac::sign(&key, input.as_bytes()).as_ref().to_vec()
        }
        Signer::Nobody => Vec::new(),
    };
    format!("{input}.{}", base64url(&signature))
}

fn good_claims() -> Value {
    json!({ "iss": ISSUER, "aud": "orders-api", "sub": "alice", "iat": NOW_S - 10,
            "exp": NOW_S + 290, "scope": "read:orders write:orders", "jti": "j-1" })
}

fn ec_token(header: &Value, claims: &Value) -> String {
    signed_text(&Signer::Ec(&FIXTURE.ec), &header.to_string(), &claims.to_string())
}

fn good_token() -> String {
    ec_token(&json!({ "alg": "ES256", "kid": "ec-1" }), &good_claims())
}

/// Good claims with changes; null removes.
fn with(changes: Value) -> Value {
    let mut claims = good_claims();
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    claims
}

fn reason(token: &str) -> &'static str {
    reason_at(token, NOW_S)
}

fn reason_at(token: &str, now_s: u64) -> &'static str {
    match verify(token, &FIXTURE.issuers, at(now_s)) {
        Ok(_) => "good",
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 1200 && !shown.contains(char::is_control), "{shown}");
            error.reason()
        }
    }
}

#[test]
fn a_good_token_proves_its_claims() {
    let claims = with(json!({
        "client_id": 7, "azp": "shop", "roles": ["a", 7, "b"], "email": "a@example.org",
        "tid": "acme", "nbf": NOW_S,
    }));
    for (signer, header) in [
        (Signer::Ec(&FIXTURE.ec), json!({ "alg": "ES256", "kid": "ec-1", "typ": "at+jwt" })),
        (Signer::Rsa(&FIXTURE.rsa), json!({ "alg": "RS256", "kid": "rsa-1", "typ": "JWT" })),
        (Signer::Ec(&FIXTURE.ec), json!({ "alg": "ES256" })),
        (Signer::Rsa(&FIXTURE.rsa), json!({ "alg": "RS256", "typ": "application/at+JWT" })),
    ] {
        let token = signed_text(&signer, &header.to_string(), &claims.to_string());
        let proven = verify(&token, &FIXTURE.issuers, at(NOW_S)).unwrap();
        assert_eq!(proven.issuer(), "corp0");
        assert_eq!(proven.subject(), Some("alice"));
        assert_eq!(proven.client_id(), Some("shop"));
        assert_eq!(proven.scopes(), ["read:orders", "write:orders"]);
        assert_eq!(proven.roles(), ["a", "b"]);
        assert_eq!(proven.email(), Some("a@example.org"));
        assert_eq!(proven.tenant(), Some("acme"));
        assert_eq!(proven.token_id(), Some("j-1"));
        assert_eq!(proven.expires(), at(NOW_S + 290));
        assert_eq!(proven.not_before(), Some(at(NOW_S)));
    }
}

#[test]
fn headers_that_are_refused() {
    let fixture = &*FIXTURE;
    let kid = "ec-1";
    for (expected, header) in [
        ("good", json!({ "alg": "ES256", "kid": kid, "x5t": "abc", "cty": "x", "foo": {} })),
        ("unsupported_algorithm", json!({ "alg": "none", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "None", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "NONE", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "es256", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "HS256", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "ES384", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "PS256", "kid": "rsa-1" })),
        ("unsupported_algorithm", json!({ "alg": "", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "RS256", "kid": kid })),
        ("unsupported_algorithm", json!({ "alg": "ES256", "kid": "rsa-1" })),
        ("malformed_token", json!({ "kid": kid })),
        ("malformed_token", json!({ "alg": ["ES256"], "kid": kid })),
        ("malformed_token", json!({ "alg": null, "kid": kid })),
        ("unsupported_critical_header", json!({ "alg": "ES256", "kid": kid, "crit": ["exp"] })),
        ("unsupported_critical_header", json!({ "alg": "ES256", "kid": kid, "crit": [] })),
        ("unsupported_critical_header", json!({ "alg": "ES256", "crit": ["b64"], "b64": false })),
        ("unsupported_header", json!({ "alg": "ES256", "kid": kid, "b64": true })),
        ("unsupported_header", json!({ "alg": "ES256", "kid": kid, "zip": "DEF" })),
        ("unsupported_header", json!({ "alg": "ES256", "kid": kid, "jku": "https://evil/" })),
        ("unsupported_header", json!({ "alg": "ES256", "kid": kid, "x5u": "https://evil/" })),
        ("unsupported_header", json!({ "alg": "ES256", "kid": kid, "x5c": ["AAAA"] })),
        ("unsupported_header", json!({ "alg": "ES256", "jwk": ec_jwk(&fixture.ec, kid) })),
        ("unsupported_jwe", json!({ "alg": "ES256", "enc": "A256GCM" })),
        ("unsupported_token_type", json!({ "alg": "ES256", "kid": kid, "typ": "dpop+jwt" })),
        ("unsupported_token_type", json!({ "alg": "ES256", "kid": kid, "typ": "logout+jwt" })),
        ("unsupported_token_type", json!({ "alg": "ES256", "kid": kid, "typ": "" })),
        ("malformed_token", json!({ "alg": "ES256", "kid": kid, "typ": 7 })),
        ("unknown_key", json!({ "alg": "ES256", "kid": "ec-2" })),
        ("unknown_key", json!({ "alg": "ES256", "kid": "EC-1" })),
        ("unknown_key", json!({ "alg": "ES256", "kid": "../../etc/passwd" })),
        ("unknown_key", json!({ "alg": "ES256", "kid": "'OR'1'='1" })),
        ("malformed_token", json!({ "alg": "ES256", "kid": "" })),
        ("malformed_token", json!({ "alg": "ES256", "kid": "ec-1\n" })),
        ("malformed_token", json!({ "alg": "ES256", "kid": "ec 1" })),
        ("malformed_token", json!({ "alg": "ES256", "kid": "\u{e9}" })),
        ("malformed_token", json!({ "alg": "ES256", "kid": "k".repeat(257) })),
        ("malformed_token", json!({ "alg": "ES256", "kid": 1 })),
        ("malformed_token", json!({ "alg": "ES256", "kid": null })),
    ] {
        assert_eq!(reason(&ec_token(&header, &good_claims())), expected, "{header}");
    }
}

#[test]
fn signatures_that_are_refused() {
    let fixture = &*FIXTURE;
    let claims = good_claims().to_string();
    let es = r#"{"alg":"ES256","kid":"ec-1"}"#;
    let rs = r#"{"alg":"RS256","kid":"rsa-1"}"#;
    let hs = r#"{"alg":"HS256","kid":"rsa-1"}"#;
    let good = signed_text(&Signer::Ec(&fixture.ec), es, &claims);
    let (input, signature) = good.rsplit_once('.').unwrap();
    let octets = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let replaced = |octets: &[u8]| format!("{input}.{}", base64url(octets));
    let swapped = [&octets[32..], &octets[..32]].concat();
    let longer = [octets.as_slice(), &[0]].concat();
    let public = rsa_jwk(&fixture.rsa, "rsa-1").to_string();
    for (expected, token) in [
        ("good", good.clone()),
        ("bad_signature", signed_text(&Signer::Ec(&fixture.other_ec), es, &claims)),
        ("bad_signature", signed_text(&Signer::Rsa(&fixture.rsa), es, &claims)),
        ("bad_signature", signed_text(&Signer::Ec(&fixture.ec), rs, &claims)),
        ("unsupported_algorithm", signed_text(&Signer::Hmac(public.as_bytes()), hs, &claims)),
        ("bad_signature", signed_text(&Signer::Hmac(public.as_bytes()), rs, &claims)),
        ("malformed_token", signed_text(&Signer::Nobody, es, &claims)),
        ("unsupported_algorithm", signed_text(&Signer::Nobody, r#"{"alg":"none"}"#, &claims)),
        ("bad_signature", replaced(&[0; 64])), // CVE-2022-21449
        ("bad_signature", replaced(&swapped)),
        ("bad_signature", replaced(&octets[..63])),
        ("bad_signature", replaced(&longer)),
        ("bad_signature", replaced(&der_form(&octets))),
    ] {
        assert_eq!(reason(&token), expected, "{token}");
    }
}

/// The same signature as X.509 writes it; JWS has one form only (RFC 7518 section 3.4).
fn der_form(fixed: &[u8]) -> Vec<u8> {
    let integer = |value: &[u8]| {
        let mut octets = vec![0x02, 33, 0];
        octets.extend_from_slice(value);
        octets
    };
    let body = [integer(&fixed[..32]), integer(&fixed[32..])].concat();
    [&[0x30, u8::try_from(body.len()).unwrap()], body.as_slice()].concat()
}

#[test]
fn structures_that_are_refused() {
    let good = good_token();
    let parts: Vec<&str> = good.split('.').collect();
    let (header, claims, signature) = (parts[0], parts[1], parts[2]);
    let es = r#"{"alg":"ES256","kid":"ec-1"}"#;
    let sign = |header: &str, claims: &str| signed_text(&Signer::Ec(&FIXTURE.ec), header, claims);
    let claims_text = good_claims().to_string();
    let twice = claims_text.replacen('{', "{\"iss\":\"https://evil\",", 1);
    let nested = claims_text.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1);
    for (expected, token) in [
        ("malformed_token", String::new()),
        ("malformed_token", ".".to_owned()),
        ("malformed_token", "..".to_owned()),
        ("malformed_token", "...".to_owned()),
        ("unsupported_jwe", "....".to_owned()),
        ("malformed_token", ".....".to_owned()),
        ("malformed_token", format!("{header}.{claims}")),
        ("malformed_token", format!("{header}.{claims}.")),
        ("malformed_token", format!("{header}..{signature}")),
        ("malformed_token", format!(".{claims}.{signature}")),
        ("malformed_token", format!("{good}.")),
        ("malformed_token", format!(".{good}")),
        ("unsupported_jwe", format!("{good}.a.b")),
        ("malformed_token", format!("{good}=")),
        ("malformed_token", format!("{good}==")),
        ("malformed_token", format!("{header}=.{claims}.{signature}")),
        ("malformed_token", format!(" {good}")),
        ("malformed_token", format!("{good}\n")),
        ("malformed_token", format!("{header}.{claims}\n.{signature}")),
        ("malformed_token", format!("{header}.{claims}.{signature}+/")),
        ("malformed_token", format!("{header}.{claims}.{signature}\u{0}")),
        ("malformed_token", format!("{header}.{claims}.{signature}\u{e9}")),
        ("malformed_token", good[..good.len() - 87].to_owned()),
        ("bad_signature", good[..good.len() - 2].to_owned()),
        ("malformed_token", sign(es, "")),
        ("malformed_token", sign(es, "null")),
        ("malformed_token", sign(es, "[]")),
        ("malformed_token", sign(es, &claims_text[..claims_text.len() - 1])),
        ("malformed_token", sign(es, &format!("{claims_text}x"))),
        ("malformed_token", sign(es, &format!("{claims_text}{{}}"))),
        ("malformed_token", sign(es, &format!("\u{feff}{claims_text}"))),
        ("malformed_token", sign("[]", &claims_text)),
        ("malformed_token", sign("", &claims_text)),
        ("duplicate_member", sign(es, &twice)),
        ("duplicate_member", sign(es, &nested)),
        ("duplicate_member", sign(r#"{"alg":"none","alg":"ES256","kid":"ec-1"}"#, &claims_text)),
        ("duplicate_member", sign(r#"{"alg":"ES256","kid":"x","k\u0069d":"ec-1"}"#, &claims_text)),
        ("token_too_large", format!("{good}{}", "A".repeat(TOKEN_MAX_BYTES))),
        ("malformed_token", "A".repeat(TOKEN_MAX_BYTES)),
        ("token_too_large", "A".repeat(TOKEN_MAX_BYTES + 1)),
    ] {
        assert_eq!(reason(&token), expected, "{token:?}");
    }
}

/// The last character of 64 octets carries four bits that must be zero.
#[test]
fn each_signature_has_one_spelling() {
    let good = good_token();
    assert_eq!(reason(&good), "good");
    let stem = &good[..good.len() - 1];
    let spellings = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        .chars()
        .filter(|last| reason(&format!("{stem}{last}")) == "good");
    assert_eq!(spellings.count(), 1);
}

#[test]
fn claims_that_are_refused() {
    let big = u64::MAX;
    for (expected, changes) in [
        ("good", json!({})),
        ("missing_claim", json!({ "iss": null })),
        ("malformed_claim", json!({ "iss": [ISSUER] })),
        ("malformed_claim", json!({ "iss": 7 })),
        ("unknown_token_issuer", json!({ "iss": "" })),
        ("unknown_token_issuer", json!({ "iss": format!("{ISSUER}/") })),
        ("unknown_token_issuer", json!({ "iss": "https://IDP.example.org" })),
        ("unknown_token_issuer", json!({ "iss": "http://idp.example.org" })),
        ("missing_claim", json!({ "aud": null })),
        ("good", json!({ "aud": ["x", "billing-api"] })),
        ("wrong_audience", json!({ "aud": "orders" })),
        ("wrong_audience", json!({ "aud": "ORDERS-API" })),
        ("wrong_audience", json!({ "aud": "orders-api " })),
        ("wrong_audience", json!({ "aud": [] })),
        ("wrong_audience", json!({ "aud": ["a", "b", "c", "d", "e", "\n"] })),
        ("malformed_claim", json!({ "aud": 7 })),
        ("malformed_claim", json!({ "aud": { "orders-api": true } })),
        ("malformed_claim", json!({ "aud": ["orders-api", 7] })),
        ("missing_claim", json!({ "exp": null })),
        ("malformed_claim", json!({ "exp": "9999999999" })),
        ("malformed_claim", json!({ "exp": -1 })),
        ("malformed_claim", json!({ "exp": -0.5 })),
        ("malformed_claim", json!({ "exp": 1e300 })),
        ("malformed_claim", json!({ "exp": big })),
        ("malformed_claim", json!({ "exp": NOW_S * 1000 })),
        ("malformed_claim", json!({ "nbf": "now" })),
        ("malformed_claim", json!({ "iat": [NOW_S] })),
        ("malformed_claim", json!({ "iat": true })),
        ("malformed_claim", json!({ "sub": 7 })),
        ("malformed_claim", json!({ "sub": "a\r\nx-admin: 1" })),
        ("malformed_claim", json!({ "jti": {} })),
        ("malformed_claim", json!({ "scope": "a\nb" })),
        ("malformed_claim", json!({ "roles": ["a\u{0}"] })),
        ("malformed_claim", json!({ "email": "a@b\u{7f}" })),
        ("malformed_claim", json!({ "azp": "a\u{1b}[2J" })),
        ("good", json!({ "email": 7, "tenant": [], "roles": "admin", "scope": {} })),
        ("lifetime_too_long", json!({ "exp": NOW_S + 3600 })),
        ("good", json!({ "exp": NOW_S + 3590 })),
        ("lifetime_too_long", json!({ "iat": null, "exp": NOW_S + 3661 })),
        ("good", json!({ "iat": null, "exp": NOW_S + 3660 })),
    ] {
        let token = ec_token(&json!({ "alg": "ES256", "kid": "ec-1" }), &with(changes.clone()));
        assert_eq!(reason(&token), expected, "{changes}");
    }
}

#[test]
fn times_hold_to_the_second() {
    let token =
        |changes: Value| ec_token(&json!({ "alg": "ES256", "kid": "ec-1" }), &with(changes));
    let exp = NOW_S + 100;
    for (expected, changes, now_s) in [
        ("good", json!({ "exp": exp }), exp + LEEWAY_S - 1),
        ("token_expired", json!({ "exp": exp }), exp + LEEWAY_S),
        ("good", json!({ "exp": exp as f64 + 0.9 }), exp + LEEWAY_S - 1),
        ("token_expired", json!({ "exp": exp as f64 + 0.9 }), exp + LEEWAY_S),
        ("good", json!({ "nbf": NOW_S }), NOW_S - LEEWAY_S),
        ("token_not_yet_valid", json!({ "nbf": NOW_S }), NOW_S - LEEWAY_S - 1),
        ("token_not_yet_valid", json!({ "nbf": NOW_S as f64 - 0.1 }), NOW_S - LEEWAY_S - 1),
        ("good", json!({ "iat": NOW_S }), NOW_S - LEEWAY_S),
        ("token_not_yet_valid", json!({ "iat": NOW_S }), NOW_S - LEEWAY_S - 1),
        ("token_expired", json!({ "exp": 0, "iat": 0 }), NOW_S),
    ] {
        assert_eq!(reason_at(&token(changes.clone()), now_s), expected, "{changes} at {now_s}");
    }
}

#[test]
fn a_forged_token_is_never_called_expired() {
    let claims = with(json!({ "exp": 1, "aud": "x" })).to_string();
    let es = r#"{"alg":"ES256","kid":"ec-1"}"#;
    let forged = signed_text(&Signer::Ec(&FIXTURE.other_ec), es, &claims);
    let error = verify(&forged, &FIXTURE.issuers, at(NOW_S)).unwrap_err();
    assert_eq!((error.reason(), error.is_genuine()), ("bad_signature", false));
    let genuine = signed_text(&Signer::Ec(&FIXTURE.ec), es, &claims);
    let error = verify(&genuine, &FIXTURE.issuers, at(NOW_S)).unwrap_err();
    assert_eq!((error.reason(), error.is_genuine()), ("token_expired", true));
    assert_eq!(
        error.to_string(),
        "token of issuer corp0: exp 1970-01-01T00:00:01Z (1) is 1772366399 s past, leeway 60 s, \
         clock 2026-03-01T12:00:00Z (1772366400)"
    );
}

#[test]
fn an_issuers_key_is_good_for_that_issuer_only() {
    let fixture = &*FIXTURE;
    let (one, two) = (ec_jwk(&fixture.ec, "k"), ec_jwk(&fixture.other_ec, "k"));
    let both = issuers(&[json!({ "keys": [one] }), json!({ "keys": [two] })], 1);
    let token = |iss: &str, key: &EcdsaKeyPair| {
        let claims = with(json!({ "iss": iss })).to_string();
        signed_text(&Signer::Ec(key), r#"{"alg":"ES256","kid":"k"}"#, &claims)
    };
    let second = format!("{ISSUER}/1");
    for (expected, iss, key) in [
        (Ok("corp0"), ISSUER, &fixture.ec),
        (Ok("corp1"), second.as_str(), &fixture.other_ec),
        (Err("bad_signature"), second.as_str(), &fixture.ec),
        (Err("bad_signature"), ISSUER, &fixture.other_ec),
    ] {
        let outcome = verify(&token(iss, key), &both, at(NOW_S));
        let found = outcome.as_ref().map(Claims::issuer).map_err(TokenError::reason);
        assert_eq!(found, expected, "{iss}");
    }
}

#[test]
fn scopes_and_clients_are_read_from_every_usual_claim() {
    for (changes, scopes, client) in [
        (json!({ "scope": "a  b ", "client_id": "c" }), vec!["a", "b"], Some("c")),
        (json!({ "scope": null, "scp": ["a", "b"], "azp": "z" }), vec!["a", "b"], Some("z")),
        (json!({ "scope": null, "scp": "a b", "client_id": "" }), vec!["a", "b"], Some("alice")),
        (json!({ "scope": null, "sub": null }), vec![], None),
        (json!({ "scope": 7, "scp": "a" }), vec![], Some("alice")),
    ] {
        let token = ec_token(&json!({ "alg": "ES256", "kid": "ec-1" }), &with(changes.clone()));
        let claims = verify(&token, &FIXTURE.issuers, at(NOW_S)).unwrap();
        assert_eq!((claims.scopes(), claims.client_id()), (&*to_strings(&scopes), client));
    }
}

fn to_strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn key_sets_keep_what_can_be_used_and_say_what_cannot() {
    let fixture = &*FIXTURE;
    let good = || ec_jwk(&fixture.ec, "k");
    let changed = |name: &str, value: Value| {
        let mut key = good();
        key[name] = value;
        key
    };
    let mut private = rsa_jwk(&fixture.rsa, "k");
    private["d"] = json!("AAAA");
    let mut short = rsa_jwk(&fixture.rsa, "k");
    short["n"] = json!(base64url(&[0xff; 255]));
    let exponent = |octets: &[u8]| {
        let mut key = rsa_jwk(&fixture.rsa, "k");
        key["e"] = json!(base64url(octets));
        key
    };
    for (expected, key) in [
        ("its use is not", changed("use", json!("enc"))),
        ("its use is not", changed("use", json!(7))),
        ("its key_ops", changed("key_ops", json!(["sign"]))),
        ("its alg is not", changed("alg", json!("ES384"))),
        ("its alg is not", changed("alg", json!("RS256"))),
        ("its alg is not", changed("crv", json!("P-384"))),
        ("its curve is not", changed("crv", json!("secp256k1"))),
        ("symmetric", json!({ "kty": "oct", "k": "AAAA" })),
        ("its x is missing", json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" })),
        ("its curve is not", json!({ "kty": "OKP", "crv": "Ed448", "x": "AAAA" })),
        ("its kty is not", changed("kty", json!("ec"))),
        ("it has no kty", json!({})),
        ("it is not an object", json!("key")),
        ("its kid", changed("kid", json!("a b"))),
        ("its x is missing", changed("x", json!("AAAA"))),
        ("its y is missing", changed("y", json!("not base64!"))),
        ("not on its curve", changed("y", json!(base64url(&[1; 32])))),
        ("private key", private),
        ("shorter than 2048", short),
        ("its exponent", exponent(&[2])),
        ("its exponent", exponent(&[0, 1])),
        ("its exponent", exponent(&[1, 0, 0, 0, 1])),
        ("its exponent", exponent(&[])),
    ] {
        let alone = json!({ "keys": [key] }).to_string();
        let said = KeySet::parse(alone.as_bytes(), &Algorithm::ALL).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected}: {said}");
        let beside = json!({ "keys": [key, ec_jwk(&fixture.other_ec, "good")] }).to_string();
        let set = KeySet::parse(beside.as_bytes(), &Algorithm::ALL).unwrap();
        assert_eq!(set.key_ids().collect::<Vec<_>>(), [Some("good")]);
        assert_eq!(set.unusable().len(), 1);
    }
    let rsa_only = json!({ "keys": [good()] }).to_string();
    let said = KeySet::parse(rsa_only.as_bytes(), &[Algorithm::Rs256]).unwrap_err().to_string();
    assert!(said.contains("not among the issuer's algorithms"), "{said}");
    let many = json!({ "keys": vec![good(); 129] }).to_string();
    for (expected, text) in [
        ("not a JSON object", String::new()),
        ("not a JSON object", "[]".to_owned()),
        ("no array \"keys\"", "{}".to_owned()),
        ("no array \"keys\"", r#"{"keys":{}}"#.to_owned()),
        ("it has no keys", r#"{"keys":[]}"#.to_owned()),
        ("\"keys\" is there twice", r#"{"keys":[],"keys":[]}"#.to_owned()),
        ("two usable keys are named \"k\"", json!({ "keys": [good(), good()] }).to_string()),
        ("129 keys", many),
        ("bytes; at most", " ".repeat(1024 * 1024 + 1)),
    ] {
        let said = KeySet::parse(text.as_bytes(), &Algorithm::ALL).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn other_stages_get_claims_as_they_ask() {
    let claims = Claims::for_test(&json!({ "client_id": "shop", "scope": "read" }));
    assert_eq!((claims.client_id(), claims.scopes().len()), (Some("shop"), 1));
}

#[test]
fn without_a_key_name_only_a_single_fitting_key_counts() {
    let fixture = &*FIXTURE;
    let nameless = |key: &EcdsaKeyPair| {
        let mut key = ec_jwk(key, "");
        key.as_object_mut().unwrap().remove("kid");
        key
    };
    let one = issuers(&[json!({ "keys": [nameless(&fixture.ec)] })], 1);
    let keys = json!({ "keys": [nameless(&fixture.ec), nameless(&fixture.other_ec)] });
    let two = issuers(&[keys], 1);
    let token = ec_token(&json!({ "alg": "ES256" }), &good_claims());
    let named = good_token();
    let found = |token: &str, issuers: &Issuers| {
        verify(token, issuers, at(NOW_S)).map(|_| "good").unwrap_or_else(|error| error.reason())
    };
    assert_eq!(found(&token, &one), "good");
    assert_eq!(found(&token, &two), "unknown_key");
    assert_eq!(found(&named, &one), "unknown_key");
}

/// What a key is for is settled before any token comes: by its `alg`, else by the first algorithm
/// of the configuration that its kind can do.
#[test]
fn a_key_is_for_one_algorithm() {
    let fixture = &*FIXTURE;
    let mut key = rsa_jwk(&fixture.rsa, "rsa-1");
    key.as_object_mut().unwrap().remove("alg");
    let set = json!({ "keys": [key] }).to_string();
    let token = signed_text(
        &Signer::Rsa(&fixture.rsa),
        r#"{"alg":"RS256","kid":"rsa-1"}"#,
        &good_claims().to_string(),
    );
    for (algorithms, expected) in [
        (vec![Algorithm::Rs256], "good"),
        (vec![Algorithm::Es256, Algorithm::Rs256, Algorithm::Ps256], "good"),
        (vec![Algorithm::Ps256, Algorithm::Rs256], "unsupported_algorithm"),
        (vec![Algorithm::Ps256], "unsupported_algorithm"),
    ] {
        let rules = TokenRules { algorithms: algorithms.clone(), ..rules(0) };
        let keys = KeySet::parse(set.as_bytes(), &algorithms).unwrap();
        let found = verify(&token, &Issuers::new(vec![(rules, keys)], 1), at(NOW_S));
        let found = found.map_or_else(|error| error.reason(), |_| "good");
        assert_eq!(found, expected, "{algorithms:?}");
    }
}

#[test]
fn a_thumbprint_names_a_key_where_there_is_no_kid() {
    let fixture = &*FIXTURE;
    let mut one = ec_jwk(&fixture.ec, "one");
    one["x5t"] = json!("c2hhMQ");
    one["x5t#S256"] = json!("c2hhMjU2");
    let keys = json!({ "keys": [one, ec_jwk(&fixture.other_ec, "two")] });
    let issuers = issuers(&[keys], 1);
    for (header, expected) in [
        (json!({ "alg": "ES256", "x5t": "c2hhMQ" }), "good"),
        (json!({ "alg": "ES256", "x5t#S256": "c2hhMjU2" }), "good"),
        (json!({ "alg": "ES256", "kid": "one", "x5t": "other" }), "good"),
        (json!({ "alg": "ES256", "kid": "two", "x5t": "c2hhMQ" }), "bad_signature"),
        (json!({ "alg": "ES256", "x5t": "other" }), "unknown_key"),
        (json!({ "alg": "ES256", "x5t#S256": "c2hhMQ" }), "unknown_key"),
        (json!({ "alg": "ES256", "x5t": 7 }), "malformed_token"),
        (json!({ "alg": "ES256" }), "unknown_key"),
    ] {
        let outcome = verify(&ec_token(&header, &good_claims()), &issuers, at(NOW_S));
        let found = outcome.map_or_else(|error| error.reason(), |_| "good");
        assert_eq!(found, expected, "{header}");
    }
}

#[test]
fn a_clock_that_is_known_to_be_right_grants_less() {
    let token = good_token(); // exp NOW + 290, iat NOW - 10
    let mut cache = Cache::new(1, Duration::from_secs(3000));
    for (now_s, leeway_max_s, expected) in [
        (NOW_S + 290 + 59, 3600, "good"),
        (NOW_S + 290 + 59, 59, "token_expired"),
        (NOW_S + 290 + 59, 60, "good"),
        (NOW_S + 290, 0, "token_expired"),
        (NOW_S + 289, 0, "good"),
        (NOW_S - 11, 0, "token_not_yet_valid"),
        (NOW_S - 11, 1, "good"),
    ] {
        let clock = Clock { now: at(now_s), leeway_max: Duration::from_secs(leeway_max_s) };
        for found in [
            verify(&token, &FIXTURE.issuers, clock).map(|_| ()),
            cache.verify(&token, &FIXTURE.issuers, clock).map(|_| ()),
        ] {
            let found = found.map_or_else(|error| error.reason(), |()| "good");
            assert_eq!(found, expected, "{now_s} {leeway_max_s}");
        }
    }
}

#[test]
fn without_its_keys_nothing_of_an_issuer_is_judged() {
    let issuers = Issuers::with_keys(vec![(rules(0), Keys::Unavailable)], 2);
    for token in [good_token(), ec_token(&json!({ "alg": "ES256", "kid": "x" }), &good_claims())] {
        let error = verify(&token, &issuers, at(NOW_S)).unwrap_err();
        let found = (error.reason(), error.is_genuine(), error.issuer());
        assert_eq!(found, ("issuer_unavailable", false, Some("corp0")));
    }
}

#[test]
fn the_cache_answers_only_what_a_fresh_check_would() {
    let issuers = &FIXTURE.issuers;
    let mut cache = Cache::new(2, Duration::from_secs(30));
    let token = good_token(); // exp NOW + 290
    let hit = |cache: &mut Cache, token: &str, issuers: &Issuers, now_s: u64| {
        let before = cache.counts().hits;
        let found = cache.verify(token, issuers, at(now_s)).map(|_| ());
        (found.is_ok(), cache.counts().hits > before)
    };
    assert_eq!(hit(&mut cache, &token, issuers, NOW_S), (true, false));
    assert_eq!(hit(&mut cache, &token, issuers, NOW_S), (true, true));
    assert_eq!(hit(&mut cache, &token, issuers, NOW_S + 29), (true, true));
    assert_eq!(hit(&mut cache, &token, issuers, NOW_S + 30), (true, false), "time to live");
    assert_eq!(hit(&mut cache, &token, issuers, NOW_S + 29), (true, false), "clock set back");
    // Expired while remembered.
    let end = NOW_S + 290 + LEEWAY_S;
    assert_eq!(hit(&mut cache, &token, issuers, end - 2), (true, false));
    assert_eq!(hit(&mut cache, &token, issuers, end - 1), (true, true));
    assert_eq!(hit(&mut cache, &token, issuers, end), (false, false));
    // Other keys, next generation: the key is gone, and so is the yes.
    assert_eq!(hit(&mut cache, &token, issuers, NOW_S), (true, false));
    let next = tests::issuers(&[json!({ "keys": [ec_jwk(&FIXTURE.other_ec, "ec-1")] })], 2);
    assert_eq!(hit(&mut cache, &token, &next, NOW_S), (false, false));
    // Noes are not kept, and the least recently used goes first.
    let other = |number: u64| {
        ec_token(&json!({ "alg": "ES256" }), &with(json!({ "jti": number.to_string() })))
    };
    let tokens = [other(1), other(2), other(3)];
    for token in &tokens {
        assert_eq!(hit(&mut cache, token, issuers, NOW_S), (true, false));
    }
    assert!(cache.verify("junk", issuers, at(NOW_S)).is_err());
    assert_eq!(cache.len(), 2);
    assert_eq!(hit(&mut cache, &tokens[2], issuers, NOW_S), (true, true));
    assert_eq!(hit(&mut cache, &tokens[0], issuers, NOW_S), (true, false));
    // Off.
    let mut off = Cache::new(0, Duration::from_secs(30));
    for _ in 0..2 {
        assert_eq!(hit(&mut off, &token, issuers, NOW_S), (true, false));
    }
    assert!(off.is_empty());
}

/// What a cache remembers, in a list: the token, the generation, when; the one used last at the end.
struct List {
    entries: Vec<(usize, u64, u64)>,
    capacity: usize,
    ttl_s: u64,
}

impl List {
    /// Whether the token would be answered from memory, were it usable.
    fn look(&mut self, token: usize, generation: u64, now_s: u64, is_usable: bool) -> bool {
        let Some(at) = self.entries.iter().position(|(other, ..)| *other == token) else {
            return false;
        };
        let entry = self.entries.remove(at);
        let (_, then, inserted_s) = entry;
        let is_young = now_s >= inserted_s && now_s - inserted_s < self.ttl_s;
        if then == generation && is_young && is_usable {
            self.entries.push(entry);
        }
        then == generation && is_young && is_usable
    }

    fn put(&mut self, token: usize, generation: u64, now_s: u64) {
        if self.capacity > 0 {
            self.entries.push((token, generation, now_s));
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        let excess = self.entries.len().saturating_sub(self.capacity);
        self.entries.drain(..excess);
    }
}

/// Thousands of tokens that come again, while keys go and come, the clock is set, and sizes change: each
/// verdict is that of a fresh check, and what is remembered is what a list would remember.
#[test]
fn a_cache_is_a_list_that_forgets_in_time() {
    let both = [json!({ "keys": [ec_jwk(&FIXTURE.ec, "ec-1"), rsa_jwk(&FIXTURE.rsa, "rsa-1")] })];
    let fewer = [json!({ "keys": [rsa_jwk(&FIXTURE.rsa, "rsa-1")] })];
    let token = |jti: u64, exp_s: u64| {
        let claims = with(json!({ "jti": jti.to_string(), "exp": exp_s }));
        ec_token(&json!({ "alg": "ES256", "kid": "ec-1" }), &claims)
    };
    let exp_s = [NOW_S + 290, NOW_S + 20, NOW_S + 2_000, NOW_S - 30, NOW_S + 900, NOW_S - 9_000];
    let mut tokens: Vec<String> =
        exp_s.iter().zip(0..).map(|(exp_s, jti)| token(jti, *exp_s)).collect();
    tokens.push("junk".to_owned());
    let mut numbers = Numbers::seeded(5);
    let (mut generation, mut judges) = (1, issuers(&both, 1));
    let mut list = List { entries: vec![], capacity: 3, ttl_s: 30 };
    let mut cache = Cache::new(3, Duration::from_secs(30));
    let (mut now_s, mut hits) = (NOW_S, 0);
    for step in 0..10_000 {
        now_s = match numbers.below(200) {
            0 => NOW_S,
            1 => now_s - 5,
            2 => now_s + 100,
            other => now_s + other % 2,
        };
        if numbers.once_in(100) {
            generation += 1;
            let keys = if numbers.once_in(3) { &fewer } else { &both };
            judges = issuers(keys, generation);
        }
        if numbers.once_in(100) {
            (list.capacity, list.ttl_s) =
                (numbers.below(6) as usize, numbers.one_of(&[1, 30, 600]));
            cache.resize(list.capacity, Duration::from_secs(list.ttl_s));
            list.shrink();
        }
        let which = numbers.below(tokens.len() as u64) as usize;
        let fresh = verify(&tokens[which], &judges, at(now_s));
        let before = cache.counts();
        let found = cache.verify(&tokens[which], &judges, at(now_s));
        let is_hit = cache.counts().hits > before.hits;
        let what = format!("step {step}: token {which}, generation {generation}, {now_s}");
        assert_eq!(is_hit, list.look(which, generation, now_s, fresh.is_ok()), "{what}");
        if !is_hit && fresh.is_ok() {
            list.put(which, generation, now_s);
        }
        hits += u32::from(is_hit);
        assert_eq!(found.map(|claims| (*claims).clone()), fresh, "{what}");
        assert_eq!(cache.len(), list.entries.len(), "{what}");
    }
    assert!((1_000..9_000).contains(&hits), "a play that decides nothing: {hits}");
}

fn inspect(token: &str, issuers: Option<&Issuers>, now: UnixTime) -> Report {
    let revoked = RevokedTokens::default();
    super::inspect(token, issuers.map(|issuers| Judges { issuers, revoked: &revoked }), now)
}

#[test]
fn inspection_marks_what_is_not_proven() {
    let token = good_token();
    let blind = inspect(&token, None, at(NOW_S));
    assert_eq!(blind.verdict, Verdict::NotVerified);
    let text = blind.to_string();
    assert!(text.contains("header (not verified)") && text.contains("NOT VERIFIED"), "{text}");
    assert!(text.contains("exp 2026-03-01T12:04:50Z, in 4m 50s"), "{text}");
    let seeing = inspect(&token, Some(&FIXTURE.issuers), at(NOW_S));
    assert!(matches!(seeing.verdict, Verdict::Valid { ref issuer, .. } if issuer == "corp0"));
    let late = inspect(&token, Some(&FIXTURE.issuers), at(NOW_S + 1000));
    assert!(late.to_string().contains("refused: token_expired: "), "{late}");
    let json = serde_json::to_value(&late).unwrap();
    assert_eq!(json["verdict"]["reason"], "token_expired");
    assert_eq!(json["unverified_claims"]["sub"], "alice");
    let junk = inspect("junk", None, at(NOW_S)).to_string();
    assert!(junk.contains("header: not readable") && junk.contains("malformed_token"), "{junk}");
    for (changes, header, hint) in [
        (json!({}), json!({ "alg": "ES256", "kid": "ec-9" }), "has kid \"ec-1\" for ES256"),
        (json!({ "iss": "https://x" }), json!({ "alg": "ES256" }), "corp0 is \"https://idp."),
        (json!({ "aud": "x" }), json!({ "alg": "ES256" }), "believed for aud orders-api, billing"),
        (json!({}), json!({ "alg": "none" }), "issuer corp0 may use RS256, "),
    ] {
        let shown = inspect(&ec_token(&header, &with(changes)), Some(&FIXTURE.issuers), at(NOW_S));
        assert!(shown.to_string().contains(hint), "{shown}");
    }
    let list = format!("{ISSUER} j-1\n");
    let revoked = RevokedTokens::parse(list.as_bytes()).unwrap();
    let judges = Judges { issuers: &FIXTURE.issuers, revoked: &revoked };
    let shown = super::inspect(&token, Some(judges), at(NOW_S)).to_string();
    assert!(shown.contains("refused: token_revoked: "), "{shown}");
    // A terminal must not be driven by a claim.
    let hostile = with(json!({ "sub": "\u{1b}[2J\u{9b}2J\u{7f}" }));
    let shown = inspect(&ec_token(&json!({ "alg": "ES256" }), &hostile), None, at(NOW_S));
    let odd = |character: char| character.is_control() && character != '\n';
    assert!(!shown.to_string().contains(odd), "{shown}");
}

/// What jsonwebtoken signs, we accept; what we accept, it accepts.
#[test]
fn agrees_with_another_implementation_on_good_tokens() {
    use jsonwebtoken as other;
    let fixture = &*FIXTURE;
    for (algorithm, kid, pem, jwk) in [
        (other::Algorithm::ES256, "ec-1", &fixture.ec_pem, ec_jwk(&fixture.ec, "ec-1")),
        (other::Algorithm::RS256, "rsa-1", &fixture.rsa_pem, rsa_jwk(&fixture.rsa, "rsa-1")),
    ] {
        let key = match algorithm {
            other::Algorithm::ES256 => other::EncodingKey::from_ec_pem(pem.as_bytes()),
            _ => other::EncodingKey::from_rsa_pem(pem.as_bytes()),
        };
        let mut header = other::Header::new(algorithm);
        header.kid = Some(kid.to_owned());
        let token = other::encode(&header, &good_claims(), &key.unwrap()).unwrap();
        assert_eq!(reason(&token), "good");

        let jwk: other::jwk::Jwk = serde_json::from_value(jwk).unwrap();
        let key = other::DecodingKey::from_jwk(&jwk).unwrap();
        let mut validation = other::Validation::new(algorithm);
        validation.set_audience(&["orders-api"]);
        validation.set_issuer(&[ISSUER]);
        validation.validate_exp = false; // it reads the host's clock
        let ours = signed_text(
            &if kid == "ec-1" { Signer::Ec(&fixture.ec) } else { Signer::Rsa(&fixture.rsa) },
            &json!({ "alg": format!("{algorithm:?}"), "kid": kid }).to_string(),
            &good_claims().to_string(),
        );
        assert_eq!(reason(&ours), "good");
        let decoded = other::decode::<Value>(&ours, &key, &validation).unwrap();
        assert_eq!(decoded.claims, good_claims());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_refused_without_a_panic(text in "\\PC*", raw: Vec<u8>) {
        prop_assert!(verify(&text, &FIXTURE.issuers, at(NOW_S)).is_err());
        let lossy = String::from_utf8_lossy(&raw);
        prop_assert!(verify(&lossy, &FIXTURE.issuers, at(NOW_S)).is_err());
        let _ = inspect(&lossy, Some(&FIXTURE.issuers), at(NOW_S)).to_string();
        let _ = KeySet::parse(&raw, &Algorithm::ALL);
    }

    /// Structure right, contents arbitrary.
    #[test]
    fn any_parts_are_refused_without_a_panic(header: Vec<u8>, claims: Vec<u8>, signature: Vec<u8>) {
        let token = [header, claims, signature].map(|part| base64url(&part)).join(".");
        prop_assert!(verify(&token, &FIXTURE.issuers, at(NOW_S)).is_err());
    }

    /// Signed, with dates from the whole range: never a panic, and the same from memory.
    #[test]
    fn a_remembered_verdict_is_the_fresh_one(
        exp in 0_u64..2 * NOW_S,
        iat in proptest::option::of(NOW_S - 5000..NOW_S + 5000),
        nbf in proptest::option::of(NOW_S - 5000..NOW_S + 5000),
        near in -4000_i64..4000,
        moments in proptest::collection::vec(NOW_S - 5000..NOW_S + 5000, 1..8),
    ) {
        let exp = if exp % 4 == 0 { exp } else { NOW_S.saturating_add_signed(near) };
        let mut claims = with(json!({ "exp": exp, "iat": null }));
        if let Some(iat) = iat { claims["iat"] = json!(iat); }
        if let Some(nbf) = nbf { claims["nbf"] = json!(nbf); }
        let token = ec_token(&json!({ "alg": "ES256" }), &claims);
        let mut cache = Cache::new(4, Duration::from_secs(3000));
        for &now_s in &moments {
            if let Ok(claims) = verify(&token, &FIXTURE.issuers, at(now_s)) {
                for &other_s in &moments {
                    let fresh = verify(&token, &FIXTURE.issuers, at(other_s)).is_ok();
                    prop_assert_eq!(claims.usable_at(at(other_s)), fresh);
                }
            }
        }
        for now_s in moments {
            let remembered = cache.verify(&token, &FIXTURE.issuers, at(now_s));
            let fresh = verify(&token, &FIXTURE.issuers, at(now_s));
            prop_assert_eq!(remembered.map(|claims| (*claims).clone()), fresh);
        }
    }
}

/// Nothing in a token may be changed: not one bit of its text.
#[test]
fn any_changed_bit_is_refused() {
    let token = good_token();
    for bit in 0..token.len() * 8 {
        let mut bytes = token.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let changed = String::from_utf8_lossy(&bytes);
        assert!(verify(&changed, &FIXTURE.issuers, at(NOW_S)).is_err(), "bit {bit}");
    }
}
