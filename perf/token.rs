//! What a token costs: verified anew, beside the bare signature with the same key, and remembered.
//!
//! `cargo bench -p gateway --bench token` prints medians of many short rounds; the rounds of what is
//! compared alternate, so that a machine that is busy is busy for both. Nothing is asserted.

mod counting;

use std::{hint::black_box, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway::{
    identity::token::{Algorithm, Cache, Issuers, KeySet, TokenRules, verify},
    time,
};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use self::counting::allocations;

const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_772_366_400));
const ROUNDS: usize = 201;
const CALLS: u32 = 200;

fn base64url(octets: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

/// A token as issuers give them out, of about 700 octets.
fn claims(number: usize) -> Value {
    json!({
        "iss": "https://idp.example.org/realms/corp", "aud": ["orders-api", "account"],
        "sub": "f2b4a7f0-4c3a-4d0e-9d7e-0b8e3e0c7a11", "client_id": "orders-frontend",
        "iat": 1_772_366_390, "exp": 1_772_366_690, "jti": format!("6f0a2b4c-{number}"),
        "scope": "openid read:orders write:orders", "email": "alice@example.org", "tenant": "acme",
        "roles": ["buyer", "approver"], "session_state": "0d9c3c5e-5f0a-4a44-8d1b-6a1d8f0b8f55",
    })
}

/// Octets → signature.
type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

struct Subject {
    name: &'static str,
    issuers: Issuers,
    bare: ParsedPublicKey,
    sign: Sign,
}

impl Subject {
    fn new(algorithm: Algorithm, jwk: Value, bare: ParsedPublicKey, sign: Sign) -> Self {
        let set = json!({ "keys": [jwk] }).to_string();
        let rules = TokenRules {
            name: "corp".to_owned(),
            issuer: "https://idp.example.org/realms/corp".to_owned(),
            audiences: vec!["orders-api".to_owned()],
            algorithms: vec![algorithm],
            leeway: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: vec!["client_id".to_owned()],
        };
        let keys = KeySet::parse(set.as_bytes(), &[algorithm]).expect("a key set of one good key");
        Self { name: algorithm.name(), issuers: Issuers::new(vec![(rules, keys)], 1), bare, sign }
    }

    fn token(&self, number: usize) -> String {
        let header = json!({ "alg": self.name, "kid": "k", "typ": "at+jwt" }).to_string();
        let input = format!("{}.{}", base64url(header), base64url(claims(number).to_string()));
        format!("{input}.{}", base64url((self.sign)(input.as_bytes())))
    }
}

fn rs256() -> Subject {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        .expect("an RSA key");
    let key = RsaKeyPair::from_pkcs8(key.serialized_der()).expect("its own serialization");
    let (n, e) = (
        key.public_key().modulus().big_endian_without_leading_zero().to_vec(),
        key.public_key().exponent().big_endian_without_leading_zero().to_vec(),
    );
    let jwk = json!({ "kty": "RSA", "kid": "k", "n": base64url(&n), "e": base64url(&e) });
    let bare = RsaPublicKeyComponents { n, e }
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .expect("a good key");
    let sign = move |input: &[u8]| {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature)
            .expect("a signature");
        signature
    };
    Subject::new(Algorithm::Rs256, jwk, bare, Box::new(sign))
}

fn es256() -> Subject {
    let key = rcgen::KeyPair::generate().expect("an EC key");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())
        .expect("its own serialization");
    let point = key.public_key().as_ref().to_vec();
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "k",
                      "x": base64url(&point[1..33]), "y": base64url(&point[33..]) });
    let bare = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).expect("a good key");
    let sign = move |input: &[u8]| {
        key.sign(&SystemRandom::new(), input).expect("a signature").as_ref().to_vec()
    };
    Subject::new(Algorithm::Es256, jwk, bare, Box::new(sign))
}

/// Microseconds of one call, and allocations.
fn round(call: &mut dyn FnMut()) -> (f64, f64) {
    let (start, before) = (time::monotonic(), allocations());
    for _ in 0..CALLS {
        call();
    }
    let took = time::monotonic().duration_since(start);
    let allocations = allocations() - before;
    (took.as_secs_f64() * 1e6 / f64::from(CALLS), allocations as f64 / f64::from(CALLS))
}

/// Medians of each of the calls, in rounds that alternate.
fn medians(calls: &mut [(&str, &mut dyn FnMut())]) -> Vec<f64> {
    let mut samples = vec![Vec::with_capacity(ROUNDS); calls.len()];
    let mut allocations = vec![0.0; calls.len()];
    for _ in 0..ROUNDS {
        for (index, (_, call)) in calls.iter_mut().enumerate() {
            let (took_us, allocated) = round(call);
            samples[index].push(took_us);
            allocations[index] = allocated;
        }
    }
    let report = |((name, _), (samples, allocated)): ((&str, _), (&mut Vec<f64>, f64))| {
        samples.sort_by(f64::total_cmp);
        let median = samples[samples.len() / 2];
        println!(
            "{name:<44} {median:8.3} µs   (fastest {:.3}, {allocated:.1} allocations)",
            samples[0]
        );
        median
    };
    let calls = calls.iter_mut().map(|(name, call)| (*name, call));
    calls.zip(samples.iter_mut().zip(allocations)).map(report).collect()
}

fn main() {
    for subject in [rs256(), es256()] {
        let token = subject.token(0);
        println!("{}, a token of {} octets:", subject.name, token.len());
        let (input, signature) = token.rsplit_once('.').expect("a token");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let medians = medians(&mut [
            ("  the bare signature", &mut || {
                subject.bare.verify_sig(black_box(input.as_bytes()), &signature).expect("good");
            }),
            ("  verified", &mut || {
                black_box(verify(black_box(&token), &subject.issuers, NOW).expect("good"));
            }),
        ]);
        println!("  verified / bare: {:.3}", medians[1] / medians[0]);
    }
    let subject = es256();
    let tokens: Vec<String> = (0..10_000).map(|number| subject.token(number)).collect();
    let mut cache = Cache::new(20_000, Duration::from_secs(3600));
    for token in &tokens {
        cache.verify(token, &subject.issuers, NOW).expect("good");
    }
    println!("remembered, among {} tokens:", cache.len());
    let mut next = 0;
    let cache = std::cell::RefCell::new(cache);
    medians(&mut [
        ("  always the same", &mut || {
            let token = black_box(&tokens[0]);
            black_box(cache.borrow_mut().verify(token, &subject.issuers, NOW).expect("good"));
        }),
        ("  each in its turn", &mut || {
            next = (next + 1) % tokens.len();
            let token = black_box(&tokens[next]);
            black_box(cache.borrow_mut().verify(token, &subject.issuers, NOW).expect("good"));
        }),
    ]);
}
