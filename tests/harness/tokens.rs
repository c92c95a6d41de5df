//! Tokens: minted by the product's own commands, and forged by hand.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{clock, process};

/// The issuer that tests and the demonstration configure.
pub const ISSUER: &str = "https://issuer.test";
/// Its audience.
pub const AUDIENCE: &str = "orders-api";

/// A signing key and its public set, by `portcullis token`.
#[derive(Debug)]
pub struct Mint {
    binary: PathBuf,
    key: PathBuf,
    jwks: PathBuf,
    key_id: String,
}

impl Mint {
    /// `token keygen`: writes `KEY_ID.key` and `KEY_ID.jwks` into `directory`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn new(binary: &Path, directory: &Path, key_id: &str, algorithm: &str) -> Result<Mint> {
        let mint = Mint {
            binary: binary.to_owned(),
            key: directory.join(format!("{key_id}.key")),
            jwks: directory.join(format!("{key_id}.jwks")),
            key_id: key_id.to_owned(),
        };
        let mut command = Command::new(binary);
        command.args(["token", "keygen", "--kid", key_id, "--algorithm", algorithm]);
        command.arg("--private").arg(&mint.key).arg("--jwks").arg(&mint.jwks);
        process::succeed(&mut command)?;
        Ok(mint)
    }

    /// The public keys, for the configuration.
    pub fn jwks(&self) -> &Path {
        &self.jwks
    }

    /// A token that every rule accepts.
    ///
    /// # Errors
    /// When the command fails.
    pub fn good(&self, subject: &str) -> Result<String> {
        self.mint(subject, AUDIENCE, &["--scope", "read:orders"])
    }

    /// A token with further words for `token mint`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn mint(&self, subject: &str, audience: &str, more: &[&str]) -> Result<String> {
        self.mint_as(ISSUER, subject, audience, more)
    }

    /// The same, naming another issuer.
    ///
    /// # Errors
    /// When the command fails.
    pub fn mint_as(
        &self,
        issuer: &str,
        subject: &str,
        audience: &str,
        more: &[&str],
    ) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(["token", "mint", "--kid", &self.key_id, "--issuer", issuer]);
        command.args(["--audience", audience, "--subject", subject]);
        command.arg("--key").arg(&self.key).args(more);
        Ok(process::succeed(&mut command)?.trim().to_owned())
    }

    /// A token that was good until an hour ago.
    ///
    /// # Errors
    /// When the command fails.
    pub fn expired(&self, subject: &str) -> Result<String> {
        let now_s = clock::unix_s();
        let issued = rfc3339(now_s - 2 * 3600);
        let expires = rfc3339(now_s - 3600);
        self.mint(subject, AUDIENCE, &["--issued-at", &issued, "--expires-at", &expires])
    }

    /// A good token's claims under a header that says no signature is needed (RFC 7519 section 6).
    ///
    /// # Errors
    /// When the command fails.
    pub fn unsigned(&self, subject: &str) -> Result<String> {
        let good = self.good(subject)?;
        let claims = part(&good, 1)?;
        let header = encode(&json!({"alg": "none", "typ": "JWT", "kid": self.key_id}));
        Ok(format!("{header}.{claims}."))
    }

    /// A good token whose subject was changed after it was signed.
    ///
    /// # Errors
    /// When the command fails.
    pub fn altered(&self, subject: &str, instead: &str) -> Result<String> {
        let good = self.good(subject)?;
        let claims = URL_SAFE_NO_PAD.decode(part(&good, 1)?)?;
        let mut claims: Value = serde_json::from_slice(&claims)?;
        claims["sub"] = json!(instead);
        Ok(format!("{}.{}.{}", part(&good, 0)?, encode(&claims), part(&good, 2)?))
    }

    /// A token of `impostor`'s key that names this mint's key.
    ///
    /// # Errors
    /// When the command fails.
    pub fn forged_by(&self, impostor: &Mint, subject: &str) -> Result<String> {
        let disguised = Mint {
            binary: impostor.binary.clone(),
            key: impostor.key.clone(),
            jwks: impostor.jwks.clone(),
            key_id: self.key_id.clone(),
        };
        disguised.good(subject)
    }
}

/// The thumbprint of a certificate as RFC 8705 section 3.1 writes it.
///
/// # Errors
/// When the file is not one certificate in PEM.
pub fn thumbprint(certificate: &Path) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(certificate);
    let said = process::succeed(&mut command)?;
    let (_, hexadecimal) = said.trim().split_once('=').context("openssl said no fingerprint")?;
    let octets = hexadecimal.split(':').map(|octet| u8::from_str_radix(octet, 16));
    Ok(URL_SAFE_NO_PAD.encode(octets.collect::<Result<Vec<_>, _>>()?))
}

/// Joins several key sets into one file.
///
/// # Errors
/// When one is not a key set, or the file cannot be written.
pub fn join_key_sets(mints: &[&Mint], file: &Path) -> Result<()> {
    let mut keys = Vec::new();
    for mint in mints {
        let set: Value = serde_json::from_slice(&fs::read(mint.jwks())?)?;
        keys.extend(set["keys"].as_array().context("not a key set")?.clone());
    }
    fs::write(file, json!({ "keys": keys }).to_string())?;
    Ok(())
}

fn part(token: &str, number: usize) -> Result<&str> {
    token.split('.').nth(number).with_context(|| format!("not a compact token: {token}"))
}

/// A header or claims as a token carries them.
pub fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A moment as RFC 3339 writes it, in UTC.
pub fn rfc3339(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Civil date from days since 1970: years of 365.2425 days counted from 1 March of year 0, so that
    // the leap day is the last of its year.
    let since_march = days + 719_468;
    let (era, day_of_era) = (since_march / 146_097, since_march % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
        }
    }
}
