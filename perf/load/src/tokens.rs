//! Many tokens at once: signing one by one with the product's command would take longer than measuring.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::json;

/// What to sign.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// RS256 or ES256.
    algorithm: String,
    /// The private key, PKCS#8 in PEM.
    key: PathBuf,
    /// Its name in the issuer's key set.
    key_id: String,
    /// "iss".
    issuer: String,
    /// "aud".
    audience: String,
    /// "iat" and "nbf", in seconds since 1970.
    issued_s: u64,
    /// "exp".
    expires_s: u64,
    /// How many different ones.
    count: usize,
    /// Where to, one a line.
    file: PathBuf,
}

/// A key that signs by its algorithm.
enum Key {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
}

impl Key {
    fn read(order: &Order) -> Result<Key> {
        let der = PrivatePkcs8KeyDer::from_pem_file(&order.key)
            .with_context(|| format!("{} is no PKCS#8 in PEM", order.key.display()))?;
        let der = der.secret_pkcs8_der();
        let refused = |why: aws_lc_rs::error::KeyRejected| anyhow!("the key: {why}");
        match order.algorithm.as_str() {
            "RS256" => Ok(Key::Rsa(RsaKeyPair::from_pkcs8(der).map_err(refused)?)),
            "ES256" => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
                Ok(Key::P256(key.map_err(refused)?))
            }
            other => bail!("RS256 or ES256, not {other}"),
        }
    }

    fn sign(&self, random: &SystemRandom, text: &[u8]) -> Result<Vec<u8>> {
        match self {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, random, text, &mut signature)?;
                Ok(signature)
            }
            Key::P256(key) => Ok(key.sign(random, text)?.as_ref().to_vec()),
        }
    }
}

/// Signs and writes them.
///
/// # Errors
/// When the key cannot be used or the file not be written.
pub fn write(order: &Order) -> Result<()> {
    let (key, random) = (Key::read(order)?, SystemRandom::new());
    let header = json!({"alg": order.algorithm, "typ": "JWT", "kid": order.key_id});
    let header = URL_SAFE_NO_PAD.encode(header.to_string());
    let mut lines = String::new();
    for number in 0..order.count {
        let claims = json!({
            "iss": order.issuer,
            "aud": order.audience,
            "sub": format!("service-account-{number}"),
            "iat": order.issued_s,
            "nbf": order.issued_s,
            "exp": order.expires_s,
            "jti": format!("{number:032x}"),
            "scope": "read:orders write:orders",
            "tenant": "example",
        });
        let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(&random, text.as_bytes())?);
        writeln!(lines, "{text}.{signature}")?;
    }
    fs::write(&order.file, lines).with_context(|| order.file.display().to_string())
}
