//! Attacks on tokens, and oddities that are none: each with what comes of it and why, each judged by
//! two other implementations too, and each difference explained.
//!
//! What is refused here is refused in the library, without sockets; `token.rs` shows that requests
//! with such tokens go no further.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
        RsaEncoding, RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use gateway::identity::token::{
    Algorithm, Cache, Issuers, KeySet, TOKEN_MAX_BYTES, TokenRules, verify,
};
use proptest::{prelude::*, sample::Index};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::harness::{process, python};

/// 2026-03-01T12:00:00Z.
const NOW_S: u64 = 1_772_366_400;
const ISSUER: &str = "https://idp.example.org";
const AUDIENCE: &str = "orders-api";
const LEEWAY_S: u64 = 60;

/// One token, and what comes of it.
struct Row {
    name: String,
    token: String,
    /// The reason of its refusal, or `good`.
    expected: &'static str,
    why: &'static str,
    /// Why PyJWT says otherwise.
    pyjwt: Option<&'static str>,
    /// Why joserfc says otherwise.
    joserfc: Option<&'static str>,
}

impl Row {
    fn pyjwt(mut self, why: &'static str) -> Row {
        self.pyjwt = Some(why);
        self
    }

    fn joserfc(mut self, why: &'static str) -> Row {
        self.joserfc = Some(why);
        self
    }

    fn both(self, why: &'static str) -> Row {
        self.pyjwt(why).joserfc(why)
    }
}

fn row(name: impl Into<String>, token: String, expected: &'static str, why: &'static str) -> Row {
    Row { name: name.into(), token, expected, why, pyjwt: None, joserfc: None }
}

/// The issuer's keys, and a stranger's.
struct Keys {
    ec: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    rsa: RsaKeyPair,
    rsa_pem: String,
    ed: Ed25519KeyPair,
    stranger: EcdsaKeyPair,
}

fn base64url(octets: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

impl Keys {
    fn new() -> Result<Keys> {
        let ec = |algorithm, kind| -> Result<EcdsaKeyPair> {
            let key = KeyPair::generate_for(kind)?;
            EcdsaKeyPair::from_pkcs8(algorithm, key.serialized_der()).context("an EC key")
        };
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        let ed = KeyPair::generate_for(&PKCS_ED25519)?;
        Ok(Keys {
            ec: ec(&ECDSA_P256_SHA256_FIXED_SIGNING, &rcgen::PKCS_ECDSA_P256_SHA256)?,
            p384: ec(&ECDSA_P384_SHA384_FIXED_SIGNING, &PKCS_ECDSA_P384_SHA384)?,
            rsa: RsaKeyPair::from_pkcs8(rsa.serialized_der()).context("an RSA key")?,
            rsa_pem: rsa.public_key_pem(),
            ed: Ed25519KeyPair::from_pkcs8(ed.serialized_der()).context("an Ed25519 key")?,
            stranger: ec(&ECDSA_P256_SHA256_FIXED_SIGNING, &rcgen::PKCS_ECDSA_P256_SHA256)?,
        })
    }

    fn ec_jwk(key: &EcdsaKeyPair, kid: &str, alg: &str, curve: &str) -> Value {
        let point = key.public_key().as_ref();
        let (x, y) = point[1..].split_at(point.len() / 2);
        json!({ "kty": "EC", "crv": curve, "use": "sig", "alg": alg, "kid": kid,
                "x": base64url(x), "y": base64url(y) })
    }

    fn rsa_jwk(&self, kid: &str, alg: &str) -> Value {
        let public = self.rsa.public_key();
        json!({ "kty": "RSA", "use": "sig", "alg": alg, "kid": kid,
                "n": base64url(public.modulus().big_endian_without_leading_zero()),
                "e": base64url(public.exponent().big_endian_without_leading_zero()) })
    }

    fn jwks(&self) -> Value {
        json!({ "keys": [
            Self::ec_jwk(&self.ec, "ec", "ES256", "P-256"),
            Self::ec_jwk(&self.p384, "p384", "ES384", "P-384"),
            self.rsa_jwk("rsa", "RS256"),
            self.rsa_jwk("pss", "PS256"),
            { "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "ed",
              "x": base64url(self.ed.public_key().as_ref()) },
        ] })
    }

    fn ec_signature(&self, key: &EcdsaKeyPair, input: &[u8]) -> Vec<u8> {
        // Signing fails only without random numbers.
        key.sign(&SystemRandom::new(), input).unwrap().as_ref().to_vec()
    }

    fn rsa_signature(&self, padding: &'static dyn RsaEncoding, input: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa.sign(padding, &SystemRandom::new(), input, &mut signature).unwrap();
        signature
    }

    /// Any header and claims, signed with ES256 by the issuer.
    fn signed(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        let input = format!("{}.{}", base64url(header), base64url(claims));
        format!("{input}.{}", base64url(self.ec_signature(&self.ec, input.as_bytes())))
    }

    /// These claims under the usual header.
    fn claims(&self, claims: impl AsRef<[u8]>) -> String {
        self.signed(HEADER, claims)
    }

    /// Good claims under this header.
    fn header(&self, header: impl AsRef<[u8]>) -> String {
        self.signed(header, good().to_string())
    }

    /// Good claims with changes; null removes.
    fn with(&self, changes: &Value) -> String {
        self.claims(with(changes).to_string())
    }

    fn good(&self) -> String {
        self.header(HEADER)
    }

    fn issuers(&self, generation: u64) -> Issuers {
        let algorithms = vec![
            Algorithm::Es256,
            Algorithm::Es384,
            Algorithm::Rs256,
            Algorithm::Ps256,
            Algorithm::EdDsa,
        ];
        let keys = KeySet::parse(self.jwks().to_string().as_bytes(), &algorithms).unwrap();
        let rules = TokenRules {
            name: "corp".to_owned(),
            issuer: ISSUER.to_owned(),
            audiences: vec![AUDIENCE.to_owned()],
            algorithms,
            leeway: Duration::from_secs(LEEWAY_S),
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: vec!["client_id".to_owned()],
        };
        Issuers::new(vec![(rules, keys)], generation)
    }
}

const HEADER: &str = r#"{"alg":"ES256","kid":"ec"}"#;

fn good() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW_S - 10, "exp": NOW_S + 290,
            "jti": "j-1" })
}

fn with(changes: &Value) -> Value {
    let mut claims = good();
    let (members, changes) = (claims.as_object_mut().unwrap(), changes.as_object().unwrap());
    for (name, value) in changes {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    claims
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn verdict(token: &str, issuers: &Issuers, now_s: u64) -> &'static str {
    verify(token, issuers, at(now_s)).map_or_else(|error| error.reason(), |_| "good")
}

fn rows(keys: &Keys) -> Vec<Row> {
    [
        good_rows(keys),
        algorithm_rows(keys),
        header_rows(keys),
        key_name_rows(keys),
        json_rows(keys),
        encoding_rows(keys),
        ecdsa_rows(keys),
        rsa_and_ed_rows(keys),
        date_rows(keys),
        issuer_and_audience_rows(keys),
        claim_rows(keys),
        size_rows(keys),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const LENIENT_TEXT: &str = "it does not look at claims that it was not asked about";

/// Unusual, and right.
fn good_rows(keys: &Keys) -> Vec<Row> {
    let claims = good().to_string();
    let signed_by = |header: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        let input = format!("{}.{}", base64url(header), base64url(&claims));
        format!("{input}.{}", base64url(sign(input.as_bytes())))
    };
    let text = |text: String| keys.claims(text);
    let good = |name: &str, token, why| row(name, token, "good", why);
    let es384 = |input: &[u8]| keys.ec_signature(&keys.p384, input);
    let rs256 = |input: &[u8]| keys.rsa_signature(&RSA_PKCS1_SHA256, input);
    let ps256 = |input: &[u8]| keys.rsa_signature(&RSA_PSS_SHA256, input);
    let eddsa = |input: &[u8]| keys.ed.sign(input).as_ref().to_vec();
    vec![
        good("ES256", keys.good(), "the ordinary case"),
        good("ES384", signed_by(r#"{"alg":"ES384","kid":"p384"}"#, &es384), "RFC 7518 3.4"),
        good("RS256", signed_by(r#"{"alg":"RS256","kid":"rsa"}"#, &rs256), "RFC 7518 3.3"),
        good("PS256", signed_by(r#"{"alg":"PS256","kid":"pss"}"#, &ps256), "RFC 7518 3.5"),
        good("EdDSA", signed_by(r#"{"alg":"EdDSA","kid":"ed"}"#, &eddsa), "RFC 8037 3.1"),
        good(
            "Ed25519",
            signed_by(r#"{"alg":"Ed25519","kid":"ed"}"#, &eddsa),
            "RFC 9864 names the curve in alg; key and signature are the same as with EdDSA",
        )
        .both("its algorithm list has the key set's name EdDSA only"),
        good("no kid", keys.header(r#"{"alg":"ES256"}"#), "one key fits, so there is no choice"),
        good("typ JWT", keys.header(r#"{"alg":"ES256","kid":"ec","typ":"JWT"}"#), "RFC 7519 5.1"),
        good("typ jwt", keys.header(r#"{"alg":"ES256","kid":"ec","typ":"jwt"}"#), "case is free"),
        good("typ at+jwt", keys.header(r#"{"alg":"ES256","kid":"ec","typ":"at+jwt"}"#), "RFC 9068"),
        good(
            "typ in full",
            keys.header(r#"{"alg":"ES256","kid":"ec","typ":"application/at+JWT"}"#),
            "RFC 7515 4.1.9: the prefix may be left out, so it may be there",
        ),
        good(
            "header in another order",
            keys.header(r#"{"kid":"ec","typ":"JWT","alg":"ES256"}"#),
            "members have no order",
        ),
        good(
            "header with blanks",
            keys.header("\r\n{ \"alg\" :\t\"ES256\" , \"kid\" : \"ec\" }\n "),
            "insignificant white space, RFC 8259 2",
        ),
        good(
            "header with escapes",
            keys.header(r#"{"\u0061lg":"\u0045S256","kid":"e\u0063"}"#),
            "another spelling of the same strings",
        ),
        good(
            "header with more in it",
            keys.header(r#"{"alg":"ES256","kid":"ec","x":{"deep":[1]},"cty":"JWT?"}"#),
            "RFC 7515 4: parameters that are not understood are ignored, unless crit lists them",
        )
        .joserfc("it refuses parameters that are not registered with it"),
        good(
            "claims in another order",
            text(format!(r#"{{"exp":{},"aud":"{AUDIENCE}","iss":"{ISSUER}"}}"#, NOW_S + 290)),
            "members have no order; sub, iat and jti may be missing",
        ),
        good("claims with blanks", text(format!(" \n{claims:#}\t\n")), "RFC 8259 2"),
        good(
            "claims with escapes",
            text(claims.replace("https://", r"https:\/\/").replace("\"iss\"", r#""\u0069ss""#)),
            "another spelling of the same strings",
        ),
        good("aud in a list", keys.with(&json!({ "aud": [AUDIENCE] })), "RFC 7519 4.1.3"),
        good("aud with others", keys.with(&json!({ "aud": ["x", AUDIENCE] })), "RFC 7519 4.1.3"),
        good(
            "aud twice in the list",
            keys.with(&json!({ "aud": [AUDIENCE, AUDIENCE] })),
            "nothing says that it is a set",
        ),
        good(
            "fraction in exp",
            text(claims.replace(&(NOW_S + 290).to_string(), &format!("{}.75", NOW_S + 290))),
            "RFC 7519 2: a NumericDate may have a fraction",
        ),
        good(
            "exponent in exp",
            text(claims.replace(&(NOW_S + 290).to_string(), "1.77236669e9")),
            "a number by RFC 8259 6",
        ),
        good("exp just past", keys.with(&json!({ "exp": NOW_S - 59 })), "within the leeway"),
        good("nbf just ahead", keys.with(&json!({ "nbf": NOW_S + 60 })), "within the leeway"),
        good("iat just ahead", keys.with(&json!({ "iat": NOW_S + 60 })), "within the leeway"),
        good("iat missing", keys.with(&json!({ "iat": null })), "RFC 7519 4.1.6: optional"),
        good("longest life", keys.with(&json!({ "iat": NOW_S, "exp": NOW_S + 3600 })), "the limit"),
        good("sub in Unicode", keys.with(&json!({ "sub": "żółw 🐢" })), "any string"),
        good("sub empty", keys.with(&json!({ "sub": "" })), "as good as none"),
        good("sub missing", keys.with(&json!({ "sub": null })), "RFC 7519 4.1.2: optional"),
        good(
            "unknown claims",
            keys.with(&json!({ "x": { "y": [1, null, true] }, "": "", "z": 1e300 })),
            "RFC 7519 4: ignored",
        ),
        good(
            "a big whole number",
            text(claims.replacen('{', r#"{"n":123456789012345678901234567890,"#, 1)),
            "a number nobody looks at",
        ),
    ]
}

/// The header chooses no algorithm.
fn algorithm_rows(keys: &Keys) -> Vec<Row> {
    const UNSIGNED: &str = "RFC 8725 3.2: nobody vouches for it";
    const SPELLING: &str = "names are case-sensitive, RFC 7515 4.1.1";
    const UNKNOWN: &str = "not among those that the issuer may use";
    const PINNED: &str = "RFC 8725 3.1: the key is for another algorithm";
    let mut rows = Vec::new();
    let claims = base64url(good().to_string());
    for spelling in ["none", "None", "NONE", "nOnE", "none ", " none", "n\\u006fne", "nοne"] {
        let header = format!(r#"{{"alg":"{spelling}","kid":"ec"}}"#);
        let unsigned = format!("{}.{claims}.", base64url(&header));
        // Everything up to the algorithm is judged before the missing signature.
        rows.push(row(
            format!("alg {spelling:?} unsigned"),
            unsigned,
            "unsupported_algorithm",
            UNSIGNED,
        ));
        rows.push(row(
            format!("alg {spelling:?} signed"),
            keys.header(&header),
            "unsupported_algorithm",
            UNSIGNED,
        ));
    }
    for (alg, why) in [
        ("es256", SPELLING),
        ("Es256", SPELLING),
        ("ES256 ", SPELLING),
        ("ES256\\u0000", SPELLING),
        ("ES256\\n", SPELLING),
        ("", UNKNOWN),
        ("HS256", UNKNOWN),
        ("HS384", UNKNOWN),
        ("HS512", UNKNOWN),
        ("RS1", UNKNOWN),
        ("RS384", UNKNOWN),
        ("ES512", UNKNOWN),
        ("ES256K", UNKNOWN),
        ("ESB256", UNKNOWN),
        ("Ed448", UNKNOWN),
        ("RSA-OAEP", "an algorithm for encryption"),
        ("dir", "an algorithm for encryption"),
        ("RS256", PINNED),
        ("PS256", PINNED),
        ("ES384", PINNED),
        ("EdDSA", PINNED),
    ] {
        let header = format!(r#"{{"alg":"{alg}","kid":"ec"}}"#);
        rows.push(row(format!("alg {alg:?}"), keys.header(header), "unsupported_algorithm", why));
    }
    for (name, alg) in [
        ("missing", r#""typ":"JWT""#),
        ("null", r#""alg":null"#),
        ("a number", r#""alg":256"#),
        ("true", r#""alg":true"#),
        ("a list", r#""alg":["ES256"]"#),
        ("an object", r#""alg":{"ES256":1}"#),
    ] {
        let header = format!(r#"{{{alg},"kid":"ec"}}"#);
        rows.push(row(
            format!("alg is {name}"),
            keys.header(header),
            "malformed_token",
            "RFC 7515 4.1.1: a string that must be there",
        ));
    }
    // What everybody knows, as the key of an HMAC (CVE-2015-9235 and its family).
    let jwks = keys.jwks().to_string();
    let public = keys.ec.public_key().as_ref().to_vec();
    let modulus = keys.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    for (name, kid, secret) in [
        ("the key's PEM", "rsa", keys.rsa_pem.clone().into_bytes()),
        ("the key's PEM, trimmed", "rsa", keys.rsa_pem.trim().as_bytes().to_vec()),
        ("the key set", "rsa", jwks.into_bytes()),
        ("the modulus", "rsa", modulus),
        ("the point", "ec", public.clone()),
        ("x", "ec", public[1..33].to_vec()),
        ("nothing", "ec", Vec::new()),
        ("a NUL", "ec", vec![0]),
    ] {
        for alg in ["HS256", "RS256"] {
            let header = format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#);
            let input = format!("{}.{claims}", base64url(header));
            let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
            let tag = hmac::sign(&key, input.as_bytes());
            let expected = match (alg, kid) {
                ("RS256", "rsa") => "bad_signature",
                _ => "unsupported_algorithm",
            };
            rows.push(row(
                format!("HMAC with {name} under {alg}"),
                format!("{input}.{}", base64url(tag)),
                expected,
                "RFC 8725 2.1: a public key is no secret",
            ));
        }
    }
    rows
}

/// Parameters that ask for something.
fn header_rows(keys: &Keys) -> Vec<Row> {
    let stranger = Keys::ec_jwk(&keys.stranger, "ec", "ES256", "P-256").to_string();
    let own = Keys::ec_jwk(&keys.ec, "ec", "ES256", "P-256").to_string();
    const CRITICAL: &str = "RFC 7515 4.1.11: what is critical and not understood is refused";
    const OWN_KEY: &str = "the token would choose its own key (RFC 8725 3.10)";
    const IGNORES: &str = "it never looks at this parameter, which is safe as long as nothing does";
    const TYPE: &str = "RFC 8725 3.11: signed by the same keys and not meant for requests";
    let extra = |members: &str| keys.header(format!(r#"{{"alg":"ES256","kid":"ec",{members}}}"#));
    let refused =
        |name: &str, members: &str, expected, why| row(name, extra(members), expected, why);
    let by_stranger = |members: String| {
        let header = format!(r#"{{"alg":"ES256","kid":"ec",{members}}}"#);
        let input = format!("{}.{}", base64url(header), base64url(good().to_string()));
        format!("{input}.{}", base64url(keys.ec_signature(&keys.stranger, input.as_bytes())))
    };
    let crit = "unsupported_critical_header";
    let header = "unsupported_header";
    let typ = "unsupported_token_type";
    vec![
        refused("crit exp", r#""crit":["exp"],"exp":1"#, crit, CRITICAL),
        refused("crit unknown", r#""crit":["x"],"x":1"#, crit, CRITICAL),
        refused("crit of what is not there", r#""crit":["x"]"#, crit, CRITICAL),
        refused("crit alg", r#""crit":["alg"]"#, crit, "it may not name what the RFC defines")
            .joserfc("it does not mind what it knows"),
        refused("crit empty", r#""crit":[]"#, crit, "RFC 7515 4.1.11: it must not be empty")
            .joserfc("to it an empty list asks for nothing"),
        refused("crit a string", r#""crit":"x""#, crit, "RFC 7515 4.1.11: a list"),
        refused("crit null", r#""crit":null"#, crit, "RFC 7515 4.1.11: a list"),
        refused("b64 false", r#""crit":["b64"],"b64":false"#, crit, "RFC 7797 is not for JWT (7)"),
        refused("b64 without crit", r#""b64":false"#, header, "RFC 7797 6: crit must name it"),
        refused("b64 true", r#""b64":true"#, header, "RFC 7797 6: crit must name it").both(IGNORES),
        refused("zip", r#""zip":"DEF""#, header, "for encryption only; a bomb elsewhere")
            .pyjwt(IGNORES),
        refused("jku", r#""jku":"https://evil.example/""#, header, OWN_KEY).both(IGNORES),
        refused("jku of the issuer", &format!(r#""jku":"{ISSUER}/keys""#), header, OWN_KEY)
            .both(IGNORES),
        refused("jku a file", r#""jku":"file:///etc/passwd""#, header, OWN_KEY).pyjwt(IGNORES),
        refused("x5u", r#""x5u":"https://evil.example/""#, header, OWN_KEY).both(IGNORES),
        refused("x5c", r#""x5c":["MIIB"]"#, header, OWN_KEY).both(IGNORES),
        refused("jwk, the issuer's", &format!(r#""jwk":{own}"#), header, OWN_KEY).both(IGNORES),
        row("jwk, a stranger's", by_stranger(format!(r#""jwk":{stranger}"#)), header, OWN_KEY),
        row("jwk null", extra(r#""jwk":null"#), header, OWN_KEY).pyjwt(IGNORES),
        refused("enc", r#""enc":"A256GCM""#, "unsupported_jwe", "RFC 7516 9: this makes it a JWE")
            .pyjwt(IGNORES),
        refused("typ dpop+jwt", r#""typ":"dpop+jwt""#, typ, TYPE).both(IGNORES),
        refused("typ logout+jwt", r#""typ":"logout+jwt""#, typ, TYPE).both(IGNORES),
        refused("typ secevent+jwt", r#""typ":"secevent+jwt""#, typ, TYPE).both(IGNORES),
        refused("typ JWE", r#""typ":"JWE""#, typ, TYPE).both(IGNORES),
        refused("typ empty", r#""typ":"""#, typ, TYPE).both(IGNORES),
        refused("typ a number", r#""typ":7"#, "malformed_token", "RFC 7515 4.1.9: a string")
            .pyjwt(IGNORES),
        refused("alg twice", r#""alg":"ES256""#, "duplicate_member", "RFC 7515 4: unique")
            .both("the last one wins"),
        refused(
            "alg twice, none last",
            r#""alg":"none""#,
            "duplicate_member",
            "RFC 7515 4: unique",
        ),
        refused("alg twice, escaped", r#""\u0061lg":"none""#, "duplicate_member", "the same name"),
        refused("kid twice", r#""kid":"rsa""#, "duplicate_member", "RFC 7515 4: unique"),
        refused("twice inside", r#""x":{"a":1,"a":2}"#, "duplicate_member", "at any depth")
            .pyjwt("the last one wins"),
    ]
}

/// A key's name is compared, and nothing else.
fn key_name_rows(keys: &Keys) -> Vec<Row> {
    const UNKNOWN: &str = "no key of the issuer has that name";
    const SHAPE: &str = "1 to 256 printable ASCII characters, so that it can stand in a log line";
    let mut rows = Vec::new();
    for name in [
        "none",
        "EC",
        "ec/",
        "ec.pem",
        "../../../../dev/null",
        "/dev/null",
        "/proc/self/environ",
        "file:///dev/null",
        "https://evil.example/key",
        "'OR'1'='1",
        "'UNION/**/SELECT/**/'AAAA",
        "ec;id",
        "$(id)",
        "`id`",
        "|id",
        "%00",
        "{{7*7}}",
        "${jndi:ldap://evil.example/a}",
        "<script>alert(1)</script>",
        "__proto__",
        "0",
        "*",
    ] {
        let header = json!({ "alg": "ES256", "kid": name }).to_string();
        rows.push(row(format!("kid {name}"), keys.header(header), "unknown_key", UNKNOWN));
    }
    let long = "k".repeat(257);
    for name in [
        "",
        "ec ",
        " ec",
        "ec\n",
        "ec\0",
        "\0",
        "e\u{200b}c",
        "\u{435}c",
        "' OR 1=1 --",
        "ec\r\nx: y",
        "a\tb",
        "\u{7f}",
        long.as_str(),
    ] {
        let header = json!({ "alg": "ES256", "kid": name }).to_string();
        let shown: String = name.chars().take(20).collect();
        rows.push(row(
            format!("kid {shown:?} of {} octets", name.len()),
            keys.header(header),
            "malformed_token",
            SHAPE,
        ));
    }
    for kid in ["null", "7", "true", "[\"ec\"]", "{\"ec\":1}"] {
        let header = format!(r#"{{"alg":"ES256","kid":{kid}}}"#);
        rows.push(row(
            format!("kid is {kid}"),
            keys.header(header),
            "malformed_token",
            "RFC 7515 4.1.4: a string",
        ));
    }
    rows
}

/// What is JSON, and what only looks like it.
fn json_rows(keys: &Keys) -> Vec<Row> {
    let good = good().to_string();
    let nested = |depth: usize| {
        let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        good.replacen('{', &format!(r#"{{"x":{value},"#), 1)
    };
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let raw = |from: &str, to: &[u8]| {
        let (before, after) = good.split_once(from).unwrap();
        [before.as_bytes(), to, after.as_bytes()].concat()
    };
    let member = |member: &str| good.replacen('{', &format!("{{{member},"), 1).into_bytes();
    const JSON: &str = "not JSON by RFC 8259";
    const OBJECT: &str = "RFC 7519 7.2: a JSON object";
    const UNICODE: &str = "RFC 8259 8.1: UTF-8";
    const PYTHON_BOM: &str = "Python's json detects the encoding by itself";
    let malformed =
        |name: &str, claims: Vec<u8>, why| row(name, keys.claims(claims), "malformed_token", why);
    vec![
        malformed("claims empty", b" ".to_vec(), OBJECT),
        malformed("claims null", b"null".to_vec(), OBJECT),
        malformed("claims a number", b"1".to_vec(), OBJECT),
        malformed("claims a string", b"\"{}\"".to_vec(), OBJECT),
        malformed("claims a list", format!("[{good}]").into_bytes(), OBJECT),
        malformed("claims cut off", good.as_bytes()[..good.len() - 1].to_vec(), JSON),
        malformed("claims and more", format!("{good}x").into_bytes(), JSON),
        malformed("claims twice", format!("{good}{good}").into_bytes(), JSON),
        malformed("claims and a NUL", format!("{good}\0").into_bytes(), JSON),
        malformed("a comma at the end", good.replace('}', ",}").into_bytes(), JSON),
        malformed("a comment", good.replace('{', "{/* */").into_bytes(), JSON),
        malformed("single quotes", good.replace('"', "'").into_bytes(), JSON),
        malformed("a name without quotes", member("x:1"), JSON),
        malformed("NaN", member("\"x\":NaN"), JSON).both("Python's json takes NaN"),
        malformed("Infinity", member("\"x\":Infinity"), JSON).both("Python's json takes Infinity"),
        malformed("a number beyond all", member("\"x\":1e999"), "no double holds it")
            .both("Python makes it infinite"),
        malformed("a leading zero", member("\"x\":01"), JSON),
        malformed("a hexadecimal number", member("\"x\":0x1"), JSON),
        malformed("a plus", member("\"x\":+1"), JSON),
        malformed("a point at the end", member("\"x\":1."), JSON),
        malformed("a raw line break in a string", member("\"x\":\"a\nb\""), JSON),
        malformed("a raw NUL in a string", member("\"x\":\"a\0b\""), JSON),
        malformed("an unknown escape", member(r#""x":"\x41""#), JSON),
        malformed("half an escape", member(r#""x":"\u00""#), JSON),
        malformed("a lone surrogate", member(r#""x":"\ud800""#), "no Unicode character")
            .both("Python's strings hold lone surrogates"),
        malformed("surrogates swapped", member(r#""x":"\udc00\ud800""#), "no Unicode character")
            .both("Python's strings hold lone surrogates"),
        malformed("a byte order mark", format!("\u{feff}{good}").into_bytes(), UNICODE)
            .both(PYTHON_BOM),
        malformed("UTF-16", utf16, UNICODE).both(PYTHON_BOM),
        malformed("not UTF-8", raw("alice", b"\xff"), UNICODE),
        malformed("an overlong slash", raw("alice", b"\xc0\xaf"), UNICODE),
        malformed("a surrogate in UTF-8", raw("alice", b"\xed\xa0\x80"), UNICODE)
            .both("Python's json lets surrogates pass"),
        malformed("200 levels", nested(200).into_bytes(), "deeper than any token is (128)")
            .both("Python's limit is a thousand levels"),
        malformed("1500 levels", nested(1500).into_bytes(), "deeper than any token is (128)"),
        row("120 levels", keys.claims(nested(120)), "good", "deep, and of no consequence"),
        row(
            "header and more",
            keys.header(format!("{HEADER}x")),
            "malformed_token",
            "not JSON by RFC 8259",
        ),
        row("header a list", keys.header(format!("[{HEADER}]")), "malformed_token", OBJECT),
        row("header null", keys.header("null"), "malformed_token", OBJECT),
        row(
            "header with a byte order mark",
            keys.header(format!("\u{feff}{HEADER}")),
            "malformed_token",
            UNICODE,
        )
        .both(PYTHON_BOM),
        row(
            "header 200 levels deep",
            keys.header(HEADER.replacen(
                '{',
                &format!(r#"{{"x":{}{},"#, "[".repeat(200), "]".repeat(200)),
                1,
            )),
            "malformed_token",
            "deeper than any token is (128)",
        )
        .pyjwt("Python's limit is a thousand levels"),
        row(
            "iss twice",
            keys.claims(good.replacen('{', r#"{"iss":"https://evil.example","#, 1)),
            "duplicate_member",
            "RFC 7519 4: two readers could see two tokens",
        )
        .both("the last one wins"),
        row(
            "exp twice, escaped",
            keys.claims(good.replacen('{', r#"{"\u0065xp":1,"#, 1)),
            "duplicate_member",
            "RFC 7519 4: the same name",
        )
        .both("the last one wins"),
        row(
            "twice in a nested object",
            keys.claims(good.replacen('{', r#"{"act":{"sub":"a","sub":"b"},"#, 1)),
            "duplicate_member",
            "RFC 7519 4: at any depth",
        )
        .both("the last one wins"),
    ]
}

/// One spelling for each octet string.
fn encoding_rows(keys: &Keys) -> Vec<Row> {
    let token = keys.good();
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else { return Vec::new() };
    // In standard base64 some letters differ, so that it must hold one of them.
    let slashes = keys.with(&json!({ "sub": "????>>>>~~~~" }));
    let standard: Vec<String> =
        slashes.split('.').map(|part| part.replace('-', "+").replace('_', "/")).collect();
    let padded = |octets: &str| URL_SAFE.encode(URL_SAFE_NO_PAD.decode(octets).unwrap_or_default());
    // Claims whose length leaves bits over.
    let mut odd = keys.good();
    for filler in ["", "x", "xx"] {
        odd = keys.with(&json!({ "sub": format!("alice{filler}") }));
        if odd.split('.').nth(1).is_some_and(|part| part.len() % 4 == 2) {
            break;
        }
    }
    let bumped = |part: &str| {
        let (start, last) = part.split_at(part.len() - 1);
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let place = alphabet.iter().position(|letter| *letter == last.as_bytes()[0]).unwrap_or(0);
        format!("{start}{}", char::from(alphabet[place ^ 1]))
    };
    let odd_parts: Vec<&str> = odd.split('.').collect();
    const ALPHABET: &str = "RFC 7515 2: base64url without padding, white space and anything else";
    const CANONICAL: &str = "bits left over are 0 (RFC 4648 3.5), or one token has many spellings";
    const PARTS: &str = "RFC 7515 3.1: three parts";
    const LENIENT: &str = "it pads before it decodes, and what is padded already stays so";
    let malformed = |name: &str, token: String, why| row(name, token, "malformed_token", why);
    let mut rows = vec![
        malformed("nothing", String::new(), PARTS),
        malformed("one part", (*header).to_owned(), PARTS),
        malformed("two parts", format!("{header}.{claims}"), PARTS),
        malformed("four parts", format!("{token}.{signature}"), PARTS),
        malformed("six parts", format!("{token}.{token}"), PARTS),
        row("five parts", format!("{token}.a.b"), "unsupported_jwe", "RFC 7516 9: a JWE"),
        malformed("two dots", "..".to_owned(), PARTS),
        malformed("no header", format!(".{claims}.{signature}"), PARTS),
        malformed("no claims", format!("{header}..{signature}"), PARTS),
        malformed("no signature", format!("{header}.{claims}."), "only none has none"),
        malformed("a dot before", format!(".{token}"), PARTS),
        malformed("a dot behind", format!("{token}."), PARTS),
        malformed("ideographic dots", token.replace('.', "。"), PARTS),
        malformed("a blank before", format!(" {token}"), ALPHABET),
        malformed("a blank behind", format!("{token} "), ALPHABET),
        malformed("a line break behind", format!("{token}\n"), ALPHABET),
        malformed("a NUL behind", format!("{token}\0"), ALPHABET),
        malformed("Bearer before", format!("Bearer {token}"), ALPHABET),
        malformed("quotes around", format!("\"{token}\""), ALPHABET),
        malformed("percent-encoded", token.replace('.', "%2E"), PARTS),
        malformed("encoded twice", base64url(&token), PARTS),
        malformed(
            "JSON serialization",
            json!({ "protected": header, "payload": claims, "signature": signature }).to_string(),
            "RFC 7519 1: compact only",
        ),
        malformed("padded header", format!("{}=.{claims}.{signature}", header), ALPHABET),
        malformed("padded claims", format!("{header}.{}.{signature}", padded(claims)), ALPHABET),
        malformed("padded signature", format!("{token}=="), ALPHABET).pyjwt(LENIENT),
        malformed("half padded signature", format!("{token}="), ALPHABET),
        malformed("standard alphabet", standard.join("."), ALPHABET),
        malformed("a line break inside", format!("{header}.{claims}.\r\n{signature}"), ALPHABET),
        malformed("a star inside", format!("{header}.{claims}.*{signature}"), ALPHABET),
        malformed("a letter beyond ASCII", format!("{header}.{claims}.{signature}é"), ALPHABET),
        row("one letter more", format!("{token}A"), "bad_signature", "one octet more"),
        malformed(
            "one letter less",
            token[..token.len() - 1].to_owned(),
            "no octets have that length",
        ),
        malformed(
            "bits left over in the signature",
            format!("{header}.{claims}.{}", bumped(signature)),
            CANONICAL,
        ),
    ];
    if let [odd_header, odd_claims, odd_signature] = odd_parts.as_slice()
        && odd_claims.len() % 4 != 0
    {
        rows.push(malformed(
            "bits left over in the claims",
            format!("{odd_header}.{}.{odd_signature}", bumped(odd_claims)),
            CANONICAL,
        ));
    }
    for cut in [1, header.len() / 2, header.len(), header.len() + 1, token.len() / 2] {
        rows.push(malformed(
            &format!("cut after {cut} octets"),
            token[..cut].to_owned(),
            "what is left is no token",
        ));
    }
    rows
}

/// The order of P-256's group (SEC 2 section 2.4.2), and that order less a 256-bit number.
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

fn order_less(number: &[u8]) -> Vec<u8> {
    let mut difference = vec![0; 32];
    let mut borrow = 0;
    for index in (0..32).rev() {
        let value = i16::from(P256_ORDER[index]) - i16::from(number[index]) - borrow;
        borrow = i16::from(value < 0);
        difference[index] = value.rem_euclid(256) as u8;
    }
    difference
}

fn ecdsa_rows(keys: &Keys) -> Vec<Row> {
    let token = keys.good();
    let (input, signature) = token.rsplit_once('.').unwrap_or_default();
    let octets = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
    let (r, s) = octets.split_at(32);
    let bad = |name: &str, octets: Vec<u8>, why| {
        row(name, format!("{input}.{}", base64url(octets)), "bad_signature", why)
    };
    let join = |r: &[u8], s: &[u8]| [r, s].concat();
    let (zero, one) = ([0; 32], [[0; 31].as_slice(), &[1]].concat());
    let integer = |value: &[u8]| [[0x02, 33, 0].as_slice(), value].concat();
    let der = |r: &[u8], s: &[u8]| [[0x30, 70].as_slice(), &integer(r), &integer(s)].concat();
    let other = keys.with(&json!({ "sub": "mallory" }));
    let (other_input, other_signature) = other.rsplit_once('.').unwrap_or_default();
    let p384 = keys.ec_signature(&keys.p384, input.as_bytes());
    const RANGE: &str = "r and s lie between 0 and the order (SEC 1 4.1.4)";
    const LENGTH: &str = "RFC 7518 3.4: exactly 64 octets";
    let mut rows = vec![
        row(
            "s → n − s",
            format!("{input}.{}", base64url(join(r, &order_less(s)))),
            "good",
            "RFC 7518 3.4 has no rule for s, so both are valid and issuers give out either; that a \
             token has two spellings is why it is revoked by its jti and not by its hash",
        ),
        bad("all zero", vec![0; 64], "CVE-2022-21449"),
        bad("r zero", join(&zero, s), RANGE),
        bad("s zero", join(r, &zero), RANGE),
        bad("r the order", join(&P256_ORDER, s), RANGE),
        bad("s the order", join(r, &P256_ORDER), RANGE),
        bad("both the order", join(&P256_ORDER, &P256_ORDER), RANGE),
        bad("both one", join(&one, &one), "a guess"),
        bad("all ones", vec![0xff; 64], RANGE),
        bad("r and s swapped", join(s, r), "another signature"),
        bad("r → n − r", join(&order_less(r), s), "another point"),
        bad("one octet less", octets[..63].to_vec(), LENGTH),
        bad("one octet more", [octets.as_slice(), &[0]].concat(), LENGTH),
        bad("a zero before", [&[0], octets.as_slice()].concat(), LENGTH),
        bad("zeros before each", join(&join(&[0], r), &join(&[0], s)), LENGTH),
        bad("half of it", r.to_vec(), LENGTH),
        bad("twice", [octets.as_slice(), octets.as_slice()].concat(), LENGTH),
        bad("one octet", vec![1], LENGTH),
        bad("as X.509 has it", der(r, s), "RFC 7518 3.4: not DER"),
        bad("DER of ones", vec![0x30, 6, 2, 1, 1, 2, 1, 1], "RFC 7518 3.4: not DER"),
        bad("of P-384", p384.clone(), LENGTH),
        bad("of P-384, cut", p384[..64].to_vec(), "another curve"),
        bad("by a stranger", keys.ec_signature(&keys.stranger, input.as_bytes()), "another key"),
        bad(
            "over the claims alone",
            keys.ec_signature(&keys.ec, good().to_string().as_bytes()),
            "RFC 7515 5.1: over header and claims as they stand",
        ),
        bad("over nothing", keys.ec_signature(&keys.ec, b""), "over something else"),
        row(
            "another token's signature",
            format!("{input}.{other_signature}"),
            "bad_signature",
            "over something else",
        ),
        row(
            "another token's claims",
            format!("{other_input}.{signature}"),
            "bad_signature",
            "over something else",
        ),
        row(
            "a re-encoded header",
            {
                let claims = input.split_once('.').unwrap_or_default().1;
                let header = base64url(r#"{"kid":"ec","alg":"ES256"}"#);
                format!("{header}.{claims}.{signature}")
            },
            "bad_signature",
            "signed is what was sent, not what it means",
        ),
    ];
    for bit in [0, 7, 255, 256, 511] {
        let mut changed = octets.clone();
        changed[bit / 8] ^= 0x80 >> (bit % 8);
        rows.push(bad(&format!("bit {bit} changed"), changed, "not what was signed"));
    }
    rows
}

fn rsa_and_ed_rows(keys: &Keys) -> Vec<Row> {
    let claims = base64url(good().to_string());
    let rs_input = format!("{}.{claims}", base64url(r#"{"alg":"RS256","kid":"rsa"}"#));
    let ps_input = format!("{}.{claims}", base64url(r#"{"alg":"PS256","kid":"pss"}"#));
    let ed_input = format!("{}.{claims}", base64url(r#"{"alg":"EdDSA","kid":"ed"}"#));
    let bad = |name: &str, input: &str, octets: Vec<u8>, why| {
        row(name, format!("{input}.{}", base64url(octets)), "bad_signature", why)
    };
    let rs = keys.rsa_signature(&RSA_PKCS1_SHA256, rs_input.as_bytes());
    let ps = keys.rsa_signature(&RSA_PSS_SHA256, ps_input.as_bytes());
    let ed = keys.ed.sign(ed_input.as_bytes()).as_ref().to_vec();
    let modulus = keys.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    // s + L (RFC 8032 section 5.1): the same number to whoever reduces it.
    const ED_ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut malleable = ed.clone();
    let mut carry = 0;
    for (octet, order) in malleable[32..].iter_mut().zip(ED_ORDER) {
        let sum = u16::from(*octet) + u16::from(order) + carry;
        *octet = sum as u8;
        carry = sum >> 8;
    }
    const LENGTH: &str = "RFC 8017 8.2.2: as long as the modulus";
    vec![
        bad("RSA cut", &rs_input, rs[..255].to_vec(), LENGTH),
        bad("RSA with a zero before", &rs_input, [&[0], rs.as_slice()].concat(), LENGTH),
        bad("RSA with a zero behind", &rs_input, [rs.as_slice(), &[0]].concat(), LENGTH),
        bad("RSA zeros", &rs_input, vec![0; 256], "0 is the signature of nothing"),
        bad(
            "RSA one",
            &rs_input,
            [vec![0; 255], vec![1]].concat(),
            "1 is the signature of nothing",
        ),
        bad("RSA ones", &rs_input, vec![0xff; 256], "above the modulus"),
        bad("RSA the modulus", &rs_input, modulus, "RFC 8017 5.2.2: below the modulus"),
        bad(
            "SHA-512 under RS256",
            &rs_input,
            keys.rsa_signature(&RSA_PKCS1_SHA512, rs_input.as_bytes()),
            "another hash",
        ),
        bad(
            "PSS under RS256",
            &rs_input,
            keys.rsa_signature(&RSA_PSS_SHA256, rs_input.as_bytes()),
            "another padding",
        ),
        bad(
            "PKCS#1 v1.5 under PS256",
            &ps_input,
            keys.rsa_signature(&RSA_PKCS1_SHA256, ps_input.as_bytes()),
            "another padding",
        ),
        bad("PSS cut", &ps_input, ps[..255].to_vec(), LENGTH),
        row(
            "PS256 with the key for RS256",
            {
                let input = format!("{}.{claims}", base64url(r#"{"alg":"PS256","kid":"rsa"}"#));
                let signature = keys.rsa_signature(&RSA_PSS_SHA256, input.as_bytes());
                format!("{input}.{}", base64url(signature))
            },
            "unsupported_algorithm",
            "RFC 8725 3.1: a good signature, and the key is for another algorithm",
        ),
        bad("Ed25519 s + L", &ed_input, malleable, "RFC 8032 5.1.7: s below L"),
        bad("Ed25519 zeros", &ed_input, vec![0; 64], "a guess"),
        bad("Ed25519 identity", &ed_input, [vec![1], vec![0; 63]].concat(), "a point of order 1"),
        bad("Ed25519 cut", &ed_input, ed[..63].to_vec(), "RFC 8032 5.1.6: 64 octets"),
        bad(
            "Ed25519 longer",
            &ed_input,
            [ed.as_slice(), &[0]].concat(),
            "RFC 8032 5.1.6: 64 octets",
        ),
    ]
}

fn date_rows(keys: &Keys) -> Vec<Row> {
    const SHAPE: &str = "RFC 7519 2: a number of seconds, not past the year 9999";
    const INT: &str = "it makes a number of it by int(), fractions and texts too";
    const COARSE: &str = "it takes any number";
    let text = |changes: Value| keys.with(&changes);
    let raw = |claim: &str, value: &str| {
        let rest = with(&json!({ (claim): null })).to_string();
        keys.claims(rest.replacen('{', &format!("{{\"{claim}\":{value},"), 1))
    };
    let mut rows = vec![
        row("exp missing", text(json!({ "exp": null })), "missing_claim", "no token is for ever"),
        row(
            "exp now - 60",
            text(json!({ "exp": NOW_S - 60 })),
            "token_expired",
            "4.1.4: on or after",
        ),
        row("exp long ago", text(json!({ "exp": 1 })), "token_expired", "RFC 7519 4.1.4"),
        row("exp 0", text(json!({ "exp": 0, "iat": null })), "token_expired", "RFC 7519 4.1.4"),
        row(
            "fraction past exp",
            raw("exp", &format!("{}.9", NOW_S - 61)),
            "token_expired",
            "a fraction is cut to the strict side",
        ),
        row("nbf now + 61", text(json!({ "nbf": NOW_S + 61 })), "token_not_yet_valid", "4.1.5"),
        row("nbf far ahead", text(json!({ "nbf": NOW_S + 9999 })), "token_not_yet_valid", "4.1.5"),
        row(
            "iat now + 61",
            text(json!({ "iat": NOW_S + 61 })),
            "token_not_yet_valid",
            "of the future",
        ),
        row(
            "one second too long",
            text(json!({ "iat": NOW_S, "exp": NOW_S + 3601 })),
            "lifetime_too_long",
            "a stolen token is of use for that long",
        )
        .both("it knows no longest life"),
        row(
            "too long without iat",
            text(json!({ "iat": null, "exp": NOW_S + 3661 })),
            "lifetime_too_long",
            "what is left must not be more than a whole life",
        )
        .both("it knows no longest life"),
        row(
            "milliseconds for seconds",
            text(json!({ "exp": (NOW_S + 290) * 1000 })),
            "malformed_claim",
            "past the year 9999: a mistake of the issuer's",
        )
        .both(COARSE),
    ];
    for (value, pyjwt, joserfc) in [
        ("null", false, false),
        ("true", false, false),
        ("\"1772366690\"", true, false),
        ("\"soon\"", false, false),
        ("\"\"", false, false),
        ("[1772366690]", false, false),
        ("{\"s\":1772366690}", false, false),
        ("-1", false, false),
        ("-0.5", false, false),
        ("1e300", true, true),
        ("253402300800", true, true),
        ("18446744073709551616", true, true),
    ] {
        let expected = "malformed_claim";
        let mut one = row(format!("exp {value}"), raw("exp", value), expected, SHAPE);
        one.pyjwt = pyjwt.then_some(INT);
        one.joserfc = joserfc.then_some(COARSE);
        rows.push(one);
    }
    for claim in ["nbf", "iat"] {
        for (value, pyjwt, joserfc) in [
            ("null", false, false),
            ("true", true, false),
            ("\"1\"", true, false),
            ("\"x\"", false, false),
            ("[]", false, false),
            ("{}", false, false),
            ("-1", true, true),
            ("1e300", false, false),
        ] {
            let name = format!("{claim} {value}");
            let mut one = row(name, raw(claim, value), "malformed_claim", SHAPE);
            one.pyjwt = pyjwt.then_some(INT);
            one.joserfc = joserfc.then_some(COARSE);
            rows.push(one);
        }
    }
    rows
}

fn issuer_and_audience_rows(keys: &Keys) -> Vec<Row> {
    const EXACT: &str = "RFC 7519 4.1.1 and 2: compared octet by octet";
    const SHAPE: &str = "a string";
    let unknown = |name: &str, iss: &str| {
        row(name, keys.with(&json!({ "iss": iss })), "unknown_token_issuer", EXACT)
    };
    let mut rows = vec![
        row("iss missing", keys.with(&json!({ "iss": null })), "missing_claim", "whose keys?"),
        unknown("iss of somebody else", "https://evil.example"),
        unknown("iss in capitals", "https://IDP.example.org"),
        unknown("iss with a slash", &format!("{ISSUER}/")),
        unknown("iss with a blank", &format!("{ISSUER} ")),
        unknown("iss with a NUL", &format!("{ISSUER}\0")),
        unknown("iss with a port", &format!("{ISSUER}:443")),
        unknown("iss by http", "http://idp.example.org"),
        unknown("iss longer", &format!("{ISSUER}.evil.example")),
        unknown("iss shorter", "https://idp.example.or"),
        unknown("iss with a user", "https://idp.example.org@evil.example"),
        unknown("iss looks alike", "https://іdp.example.org"),
        unknown("iss empty", ""),
        unknown("iss is the name", "corp"),
        row("aud missing", keys.with(&json!({ "aud": null })), "missing_claim", "for whom?"),
    ];
    for iss in [json!(7), json!(true), json!([ISSUER]), json!({ "v": ISSUER })] {
        let name = format!("iss {iss}");
        rows.push(row(name, keys.with(&json!({ "iss": iss })), "malformed_claim", SHAPE));
    }
    for aud in [
        json!("billing-api"),
        json!("Orders-api"),
        json!("orders-api2"),
        json!("orders"),
        json!("orders-api billing-api"),
        json!("orders-api\0"),
        json!("*"),
        json!(""),
        json!([]),
        json!(["billing-api"]),
        json!(["orders-api "]),
    ] {
        let name = format!("aud {aud}");
        let why = "RFC 7519 4.1.3: meant for somebody else";
        rows.push(row(name, keys.with(&json!({ "aud": aud })), "wrong_audience", why));
    }
    for (aud, pyjwt, joserfc) in [
        (json!(7), false, false),
        (json!(true), false, false),
        (json!({ "orders-api": 1 }), false, false),
        (json!([["orders-api"]]), false, false),
        (json!([7]), false, false),
        (json!(["orders-api", 7]), false, false),
        (json!(["orders-api", {}]), false, false),
    ] {
        let name = format!("aud {aud}");
        let why = "RFC 7519 4.1.3: a string, or a list of strings";
        let mut one = row(name, keys.with(&json!({ "aud": aud })), "malformed_claim", why);
        one.pyjwt = pyjwt.then_some(LENIENT_TEXT);
        one.joserfc = joserfc.then_some("it looks for one entry and not at the others");
        rows.push(one);
    }
    let null = good().to_string().replace(&format!("\"{AUDIENCE}\""), "null");
    rows.push(row("aud null", keys.claims(null), "malformed_claim", "a string or a list"));
    rows
}

fn claim_rows(keys: &Keys) -> Vec<Row> {
    const CONTROL: &str = "it would stand in a header field or a log line";
    const TEXT: &str = "RFC 7519 4.1: a string";
    let mut rows = Vec::new();
    for claim in ["sub", "jti"] {
        for value in [json!(7), json!(["a"]), json!({}), json!(false)] {
            let name = format!("{claim} {value}");
            let token = keys.with(&json!({ (claim): value }));
            let one = row(name, token, "malformed_claim", TEXT);
            rows.push(one);
        }
    }
    for (claim, value) in [
        ("sub", "a\r\nX-User-Roles: admin"),
        ("sub", "a\0b"),
        ("sub", "\u{1b}[2J"),
        ("sub", "\u{85}"),
        ("jti", "a\nb"),
        ("client_id", "a\r\nb"),
        ("scope", "read\nwrite"),
        ("email", "a@b\r\nc"),
        ("tenant", "a\u{7f}"),
    ] {
        let name = format!("{claim} {value:?}");
        let token = keys.with(&json!({ (claim): value }));
        rows.push(row(name, token, "malformed_claim", CONTROL).both(LENIENT_TEXT));
    }
    for cnf in [
        json!({ "jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" }),
        json!({ "x5t#S256": "short" }),
        json!({ "x5t#S256": "A".repeat(43), "jkt": "x" }),
        json!({}),
        json!("x"),
    ] {
        let name = format!("cnf {cnf}");
        let why = "RFC 9449 7.2: a bound token that is taken without its proof is a bearer token";
        let token = keys.with(&json!({ "cnf": cnf }));
        rows.push(row(name, token, "cnf_mismatch", why).both(LENIENT_TEXT));
    }
    rows
}

fn size_rows(keys: &Keys) -> Vec<Row> {
    let of = |length: usize| {
        // Three octets of claims make four letters, so it takes some tries to hit a length.
        (0..3)
            .find_map(|extra| {
                let base = keys.with(&json!({ "x": "" })).len();
                let filler = "x".repeat((length - base) * 3 / 4 + extra);
                let token = keys.with(&json!({ "x": filler }));
                (token.len() >= length).then_some(token)
            })
            .unwrap_or_default()
    };
    const LIMIT: &str = "longer than any field of a request is usually let be";
    const NONE: &str = "it has no limit of its own";
    vec![
        row("nearly too long", of(TOKEN_MAX_BYTES - 8), "good", "within the limit"),
        row("too long", of(TOKEN_MAX_BYTES + 1), "token_too_large", LIMIT).both(NONE),
        row("far too long", of(100_000), "token_too_large", LIMIT).both(NONE),
        row(
            "a huge kid",
            keys.header(json!({ "alg": "ES256", "kid": "k".repeat(20_000) }).to_string()),
            "token_too_large",
            LIMIT,
        ),
        row("junk", "A".repeat(TOKEN_MAX_BYTES + 1), "token_too_large", LIMIT),
        row("dots", ".".repeat(TOKEN_MAX_BYTES), "malformed_token", "RFC 7515 3.1: three parts"),
    ]
}

#[test]
fn every_attack_is_refused_and_every_oddity_taken_for_what_it_is() {
    let keys = Keys::new().unwrap();
    let issuers = keys.issuers(1);
    let rows = rows(&keys);
    let attacks = rows.iter().filter(|row| row.expected != "good").count();
    assert!(attacks >= 150 && rows.len() - attacks >= 30, "{attacks} of {}", rows.len());
    let mut names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len(), "two rows have one name");
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let found = verdict(&row.token, &issuers, NOW_S);
            let why = row.why;
            (found != row.expected)
                .then(|| format!("{}: {found}, not {} ({why})", row.name, row.expected))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What two other implementations say: each difference is explained in its row, and each
/// explanation is of a difference.
#[test]
fn two_other_implementations_agree_or_the_row_says_why_not() -> Result<()> {
    let Some(python) = python::interpreter() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "needs PyJWT and joserfc in .tools/python; `cargo xtask setup` puts them there"
        );
        eprintln!("NOT RUN: needs PyJWT and joserfc in .tools/python (cargo xtask setup)");
        return Ok(());
    };
    let keys = Keys::new()?;
    let rows = rows(&keys);
    let tokens: Vec<&str> = rows.iter().map(|row| row.token.as_str()).collect();
    let case = json!({
        "jwks": keys.jwks(), "issuer": ISSUER, "audience": AUDIENCE, "now": NOW_S,
        "leeway": LEEWAY_S, "tokens": tokens,
    });
    let mut command = Command::new(python);
    command
        .args(["-W", "ignore"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/other_verifiers.py"));
    let ended = process::run_with_input(&mut command, case.to_string().as_bytes())?;
    ensure!(ended.status == Some(0), "the other implementations failed: {}", ended.stderr);
    let verdicts: Vec<Value> = serde_json::from_str(&ended.stdout)?;
    ensure!(verdicts.len() == rows.len(), "{} verdicts", verdicts.len());
    let mut wrong = Vec::new();
    for (row, verdict) in rows.iter().zip(&verdicts) {
        for (other, explained) in [("pyjwt", row.pyjwt), ("joserfc", row.joserfc)] {
            let said = verdict[other].as_str().unwrap_or_default();
            let differs = (said == "good") != (row.expected == "good");
            if differs != explained.is_some() {
                wrong.push(format!(
                    "{}: here {}, {other} {said:?}; explained: {explained:?}",
                    row.name, row.expected
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// The verdict on a token hangs on the token, the keys and the time alone: not on what came
    /// before it, on which worker's cache it meets, or on how full that is.
    #[test]
    fn a_verdict_hangs_on_nothing_but_the_token_and_the_time(
        picks in proptest::collection::vec((any::<Index>(), 0_usize..3, 0_u64..400), 1..120),
        capacity in 0_usize..8,
    ) {
        static KEYS: std::sync::LazyLock<(Vec<String>, Issuers)> = std::sync::LazyLock::new(|| {
            let keys = Keys::new().unwrap();
            let tokens = rows(&keys).into_iter().map(|row| row.token).collect();
            (tokens, keys.issuers(1))
        });
        let (tokens, issuers) = &*KEYS;
        let mut workers =
            [0, 1, 2].map(|worker| Cache::new(capacity * worker, Duration::from_secs(60)));
        for (pick, worker, later_s) in picks {
            let token = pick.get(tokens);
            let fresh = verify(token, issuers, at(NOW_S + later_s));
            let remembered = workers[worker].verify(token, issuers, at(NOW_S + later_s));
            prop_assert_eq!(remembered.map(|claims| (*claims).clone()), fresh);
        }
    }
}
