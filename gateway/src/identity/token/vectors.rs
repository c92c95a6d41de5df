//! The examples of the standards themselves. Their payloads are not all claims, so this looks below
//! [`verify`](super::verify): structure, key, signature.

use serde_json::Value;

use super::{Algorithm, KeySet, parse};

/// RFC 7515, 7516, 7519, 7520, 8037.
const TOKENS: &str = include_str!("../../../../tests/data/rfc_tokens.json");

#[test]
fn the_standards_examples_are_verified_or_refused_as_unsupported() {
    let rows: Vec<Value> = serde_json::from_str(TOKENS).unwrap();
    assert!(rows.len() >= 11);
    for row in &rows {
        let text = |name: &str| row[name].as_str().unwrap();
        let source = text("source");
        let set = serde_json::json!({ "keys": [row["key"]] }).to_string();
        let Some(algorithm) = Algorithm::from_name(text("algorithm")) else {
            // ES512, none, JWE: what is not supported is refused before any key is looked for.
            let reason = parse(text("token")).unwrap_err().reason();
            assert!(
                ["unsupported_algorithm", "unsupported_jwe", "malformed_token"].contains(&reason)
            );
            assert!(KeySet::parse(set.as_bytes(), &Algorithm::ALL).is_err(), "{source}");
            continue;
        };
        let keys = KeySet::parse(set.as_bytes(), &[algorithm]).unwrap();
        let token = parse(text("token")).unwrap();
        let header = token.header();
        assert_eq!(header.algorithm, algorithm, "{source}");
        let key = keys.select(&header.key, algorithm).unwrap();
        assert!(key.verifies(token.signed(), token.signature()), "{source}");
        // And nothing else is.
        let signature = token.signature();
        for bit in 0..signature.len() * 8 {
            let mut changed = signature.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verifies(token.signed(), &changed), "{source}, bit {bit}");
        }
        let mut signed = token.signed().to_vec();
        signed[7] ^= 1;
        assert!(!key.verifies(&signed, signature), "{source}");
    }
}
