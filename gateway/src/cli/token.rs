//! `portcullis token`: keys and tokens for development, and a look into any token.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::rand;
use clap::{Args, Subcommand, ValueEnum};
use jsonwebtoken::{
    EncodingKey, Header,
    jwk::{Jwk, KeyAlgorithm, PublicKeyUse},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};

use super::file::{self, Existing, PRIVATE, PUBLIC};
use crate::identity::token::{
    Algorithm, Issuers, KeySet, TOKEN_MAX_BYTES, Verdict, inspect as inspect_token,
};

/// Arguments of `portcullis token`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a signing key and adds its public half to a key set
    Keygen(KeygenArguments),
    /// Prints a signed token
    Mint(Box<MintArguments>),
    /// Shows what a token says, and verifies it against the configured issuers
    Inspect {
        /// The token; `-` or nothing reads it from standard input, where no process list shows it
        #[arg(value_name = "TOKEN", default_value = "-", hide_default_value = true)]
        token: String,
        /// Prints JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct KeygenArguments {
    /// Name of the key in tokens and in the key set
    #[arg(long, value_name = "KID")]
    kid: String,
    /// Where to write the private key (PEM, PKCS#8)
    #[arg(long, value_name = "FILE")]
    private: PathBuf,
    /// Key set to create or to add the public key to
    #[arg(long, value_name = "FILE")]
    jwks: PathBuf,
    /// What the key signs with
    #[arg(long, value_enum, ignore_case = true, default_value_t = KeyAlgorithmName::Es256)]
    algorithm: KeyAlgorithmName,
    /// Replaces a private key file that is there, and a key of this name in the set
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct MintArguments {
    /// Private key (PEM: PKCS#8, PKCS#1 or SEC1)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Name of the key
    #[arg(long, value_name = "KID")]
    kid: String,
    /// `iss`
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// `aud`; may be repeated
    #[arg(long, value_name = "AUDIENCE", required = true)]
    audience: Vec<String>,
    /// `sub`
    #[arg(long, value_name = "SUBJECT")]
    subject: String,
    /// `client_id`
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// `scope`: words with blanks between
    #[arg(long, value_name = "SCOPES")]
    scope: Option<String>,
    /// From `iat` to `exp`
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    lifetime: Duration,
    /// `iat`, as in 2026-03-01T12:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    issued_at: Option<SystemTime>,
    /// `nbf` [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    not_before: Option<SystemTime>,
    /// `exp`
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak, conflicts_with = "lifetime")]
    expires_at: Option<SystemTime>,
    /// A further claim, or one in place of the above, as in --claim 'roles=["admin"]'; may be
    /// repeated
    #[arg(long, value_name = "NAME=JSON", value_parser = claim)]
    claim: Vec<(String, Value)>,
    /// Signature algorithm [default: what the key is for]
    #[arg(long, value_enum, ignore_case = true)]
    algorithm: Option<KeyAlgorithmName>,
}

/// [`Algorithm`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyAlgorithmName {
    /// RSA with 2048 bits, PKCS#1 v1.5, SHA-256
    #[value(name = "RS256")]
    Rs256,
    /// ECDSA on P-256, SHA-256
    #[value(name = "ES256")]
    Es256,
}

impl KeyAlgorithmName {
    fn of_library(self) -> (jsonwebtoken::Algorithm, KeyAlgorithm) {
        match self {
            Self::Rs256 => (jsonwebtoken::Algorithm::RS256, KeyAlgorithm::RS256),
            Self::Es256 => (jsonwebtoken::Algorithm::ES256, KeyAlgorithm::ES256),
        }
    }

    fn encoding_key(self, pem: &[u8]) -> Result<EncodingKey, jsonwebtoken::errors::Error> {
        match self {
            Self::Rs256 => EncodingKey::from_rsa_pem(pem),
            Self::Es256 => EncodingKey::from_ec_pem(pem),
        }
    }
}

impl Arguments {
    /// True when [`run`] does better with the configured issuers.
    pub fn wants_issuers(&self) -> bool {
        matches!(self.command, Command::Inspect { .. })
    }
}

/// Runs the command. `issuers` are those of the configuration, if there is one. A token that
/// would be refused is an error, so that scripts see it in the exit status.
pub fn run(
    arguments: &Arguments,
    issuers: Option<&Issuers>,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<()> {
    match &arguments.command {
        Command::Keygen(arguments) => keygen(arguments, out),
        Command::Mint(arguments) => {
            let token = mint(arguments, now)?;
            writeln!(out, "{token}")?;
            Ok(())
        }
        Command::Inspect { token, json } => {
            let token = given_token(token)?;
            inspect(bare(&token), *json, issuers, now, out)
        }
    }
}

fn keygen(arguments: &KeygenArguments, out: &mut dyn Write) -> Result<()> {
    let existing = Existing::forced(arguments.force);
    file::refuse_existing(&[&arguments.private], existing)?;
    let key = match arguments.algorithm {
        KeyAlgorithmName::Es256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyAlgorithmName::Rs256 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
    }
    .context("generating a key")?;
    let pem = key.serialize_pem();
    let entry = public_key(pem.as_bytes(), &arguments.kid, arguments.algorithm)?;
    let set = with_key(read_set(&arguments.jwks)?, entry, &arguments.kid, existing)
        .with_context(|| arguments.jwks.display().to_string())?;
    // What is written must be usable.
    let parsed = KeySet::parse(&set, &Algorithm::ALL)
        .with_context(|| format!("{} would not be usable", arguments.jwks.display()))?;
    if !parsed.key_ids().any(|id| id == Some(arguments.kid.as_str())) {
        let why = parsed.unusable().last().map(ToString::to_string).unwrap_or_default();
        bail!("the gateway would not use this key: {why}");
    }
    file::write(&arguments.private, pem.as_bytes(), PRIVATE, existing)?;
    file::write(&arguments.jwks, &set, PUBLIC, Existing::Replace)?;
    writeln!(
        out,
        "wrote {}; key \"{}\" is in {}",
        arguments.private.display(),
        arguments.kid,
        arguments.jwks.display()
    )?;
    Ok(())
}

fn public_key(pem: &[u8], kid: &str, algorithm: KeyAlgorithmName) -> Result<Value> {
    let key = algorithm.encoding_key(pem)?;
    let (library, name) = algorithm.of_library();
    let mut entry = Jwk::from_encoding_key(&key, library).context("taking the public half")?;
    entry.common.key_id = Some(kid.to_owned());
    entry.common.key_algorithm = Some(name);
    entry.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok(serde_json::to_value(entry)?)
}

/// The set in a file; an empty one when there is no file.
fn read_set(path: &Path) -> Result<Value> {
    match fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(json!({ "keys": [] })),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn with_key(mut set: Value, entry: Value, kid: &str, existing: Existing) -> Result<Vec<u8>> {
    let keys = set
        .get_mut("keys")
        .and_then(Value::as_array_mut)
        .context("there is no array \"keys\" in it")?;
    let same = |key: &Value| key.get("kid").and_then(Value::as_str) == Some(kid);
    if existing == Existing::Keep && keys.iter().any(same) {
        bail!("a key \"{kid}\" is in it already; --force replaces it");
    }
    keys.retain(|key| !same(key));
    keys.push(entry);
    let mut text = serde_json::to_vec_pretty(&set)?;
    text.push(b'\n');
    Ok(text)
}

fn mint(arguments: &MintArguments, now: SystemTime) -> Result<String> {
    let path = arguments.key.display();
    let pem = fs::read(&arguments.key).with_context(|| format!("reading {path}"))?;
    let (algorithm, key) = match arguments.algorithm {
        Some(algorithm) => {
            let key = algorithm.encoding_key(&pem);
            (algorithm, key.with_context(|| format!("{path} is not a key for {algorithm:?}"))?)
        }
        None => [KeyAlgorithmName::Es256, KeyAlgorithmName::Rs256]
            .into_iter()
            .find_map(|algorithm| Some((algorithm, algorithm.encoding_key(&pem).ok()?)))
            .with_context(|| format!("{path} is neither an EC nor an RSA private key in PEM"))?,
    };
    let mut header = Header::new(algorithm.of_library().0);
    // RFC 9068 section 2.1.
    header.typ = Some("at+jwt".to_owned());
    header.kid = Some(arguments.kid.clone());
    let token = jsonwebtoken::encode(&header, &claims(arguments, now)?, &key)
        .with_context(|| format!("signing with {path}"))?;
    ensure!(
        token.len() <= TOKEN_MAX_BYTES,
        "a token of {} bytes; the gateway reads at most {TOKEN_MAX_BYTES}",
        token.len()
    );
    Ok(token)
}

fn claims(arguments: &MintArguments, now: SystemTime) -> Result<Map<String, Value>> {
    let issued = arguments.issued_at.unwrap_or(now);
    let expires = match arguments.expires_at {
        Some(expires) => expires,
        None => issued.checked_add(arguments.lifetime).context("the lifetime is too long")?,
    };
    let audience = match arguments.audience.as_slice() {
        [only] => json!(only),
        several => json!(several),
    };
    let mut claims = Map::new();
    claims.insert("iss".to_owned(), json!(arguments.issuer));
    claims.insert("sub".to_owned(), json!(arguments.subject));
    claims.insert("aud".to_owned(), audience);
    claims.insert("iat".to_owned(), json!(seconds(issued)?));
    claims.insert("exp".to_owned(), json!(seconds(expires)?));
    claims.insert("jti".to_owned(), json!(token_id()?));
    if let Some(not_before) = arguments.not_before {
        claims.insert("nbf".to_owned(), json!(seconds(not_before)?));
    }
    if let Some(client_id) = &arguments.client_id {
        claims.insert("client_id".to_owned(), json!(client_id));
    }
    if let Some(scope) = &arguments.scope {
        claims.insert("scope".to_owned(), json!(scope));
    }
    claims.extend(arguments.claim.iter().cloned());
    Ok(claims)
}

fn seconds(time: SystemTime) -> Result<u64> {
    Ok(time.duration_since(SystemTime::UNIX_EPOCH).context("a time before 1970")?.as_secs())
}

fn token_id() -> Result<String> {
    let mut octets = [0; 16];
    rand::fill(&mut octets).map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(octets.iter().map(|octet| format!("{octet:02x}")).collect())
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=JSON")?;
    let value = serde_json::from_str(value)
        .map_err(|error| format!("{error}; a string needs its quotes, as in '{name}=\"text\"'"))?;
    Ok((name.to_owned(), value))
}

/// From the command line, or from standard input for `-`.
fn given_token(token: &str) -> Result<String> {
    if token != "-" {
        return Ok(token.to_owned());
    }
    // Twice what is ever accepted, so that a token that is too long is still explained.
    let limit = 2 * TOKEN_MAX_BYTES as u64;
    let mut text = String::new();
    std::io::stdin().take(limit).read_to_string(&mut text).context("reading the token")?;
    Ok(text)
}

/// Without what comes along when a header field is copied.
fn bare(text: &str) -> &str {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => text,
    }
}

fn inspect(
    token: &str,
    json: bool,
    issuers: Option<&Issuers>,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<()> {
    ensure!(!token.is_empty(), "no token given");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now)?));
    let report = inspect_token(token, issuers, now);
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        writeln!(out, "{report}")?;
    }
    match report.verdict {
        Verdict::NotVerified | Verdict::Valid { .. } => Ok(()),
        Verdict::Refused { reason, .. } => bail!("the gateway would refuse this token: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::identity::token::{TokenRules, verify};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// 2026-03-01T12:00:00Z.
    const NOW_S: u64 = 1_772_366_400;

    /// Runs one command line, words separated by blanks, `DIR` standing for the directory.
    fn token(dir: &Path, line: &str, issuers: Option<&Issuers>) -> (Result<()>, String) {
        let dir = dir.display().to_string();
        let words = line.split(' ').map(|word| word.replace("DIR", &dir));
        let parsed = match Line::try_parse_from(["token".to_owned()].into_iter().chain(words)) {
            Ok(parsed) => parsed,
            Err(error) => return (Err(error.into()), String::new()),
        };
        let mut out = Vec::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S);
        let outcome = run(&parsed.arguments, issuers, now, &mut out);
        (outcome, String::from_utf8(out).unwrap())
    }

    fn issuers(dir: &Path) -> Issuers {
        let set = fs::read(dir.join("jwks.json")).unwrap();
        let rules = TokenRules {
            name: "lab".to_owned(),
            issuer: "https://lab".to_owned(),
            audiences: vec!["orders".to_owned()],
            algorithms: Algorithm::ALL.to_vec(),
            leeway: Duration::ZERO,
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: vec!["client_id".to_owned(), "sub".to_owned()],
        };
        Issuers::new(vec![(rules, KeySet::parse(&set, &Algorithm::ALL).unwrap())], 1)
    }

    const MINT: &str = "mint --issuer https://lab --audience orders --subject alice";

    #[test]
    fn what_it_mints_with_its_keys_is_verified() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let keygen = |kid, algorithm| {
            let line = format!(
                "keygen --kid {kid} --private DIR/{kid}.key --jwks DIR/jwks.json --algorithm {algorithm}"
            );
            token(dir, &line, None).0.unwrap();
        };
        keygen("one", "ES256");
        keygen("two", "rs256");
        let issuers = issuers(dir);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
        for kid in ["one", "two"] {
            let line = format!(
                "{MINT} --key DIR/{kid}.key --kid {kid} --scope read --claim roles=[\"a\"]"
            );
            let (outcome, minted) = token(dir, &line, None);
            outcome.unwrap();
            let claims = verify(minted.trim(), &issuers, now).unwrap();
            assert_eq!((claims.subject(), claims.client_id()), (Some("alice"), Some("alice")));
            assert_eq!(
                (claims.scopes(), claims.roles()),
                (&["read".to_owned()][..], &["a".to_owned()][..])
            );
            assert_eq!(claims.expires().as_secs(), NOW_S + 300);
            assert!(claims.token_id().is_some_and(|id| id.len() == 32));

            let line = format!("inspect {}", minted.trim());
            let (outcome, shown) = token(dir, &line, Some(&issuers));
            outcome.unwrap();
            assert!(shown.contains("valid: issuer lab, client alice, scopes [read]"), "{shown}");
            let (outcome, shown) = token(dir, &format!("{line} --json"), None);
            outcome.unwrap();
            let json: Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(json["verdict"]["verdict"], "not_verified");
        }
        let line = format!("{MINT} --key DIR/one.key --kid two");
        let (_, minted) = token(dir, &line, None);
        let (outcome, shown) = token(dir, &format!("inspect {}", minted.trim()), Some(&issuers));
        assert!(outcome.is_err() && shown.contains("refused: unsupported_algorithm"), "{shown}");
    }

    #[test]
    fn mints_bad_tokens_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let keygen = "keygen --kid k --private DIR/k.key --jwks DIR/jwks.json";
        token(dir, keygen, None).0.unwrap();
        let issuers = issuers(dir);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
        for (expected, more) in [
            ("good", ""),
            ("token_expired", " --expires-at 2026-03-01T12:00:00Z"),
            ("token_expired", " --issued-at 2026-03-01T11:00:00Z --lifetime 1h"),
            ("token_not_yet_valid", " --not-before 2026-03-01T12:00:01Z"),
            ("lifetime_too_long", " --lifetime 61m"),
            ("malformed_claim", " --claim exp=\"soon\""),
            ("wrong_audience", " --claim aud=[]"),
        ] {
            let (outcome, minted) =
                token(dir, &format!("{MINT} --key DIR/k.key --kid k{more}"), None);
            outcome.unwrap();
            let found = verify(minted.trim(), &issuers, now);
            assert_eq!(found.map_or_else(|error| error.reason(), |_| "good"), expected, "{more}");
        }
        for line in [
            "mint --claim exp=soon",
            "mint --claim exp",
            "mint --lifetime 5m --expires-at 2026-03-01T12:00:00Z",
            "mint --algorithm RS256",
        ] {
            let line = line.replacen("mint", &format!("{MINT} --key DIR/k.key --kid k"), 1);
            assert!(token(dir, &line, None).0.is_err(), "{line}");
        }
    }

    #[test]
    fn keys_are_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let keygen = |private: &str, kid: &str, more: &str| {
            let line =
                format!("keygen --kid {kid} --private DIR/{private} --jwks DIR/jwks.json{more}");
            token(dir, &line, None).0
        };
        keygen("a.key", "a", "").unwrap();
        let before = fs::read(dir.join("jwks.json")).unwrap();
        assert!(keygen("a.key", "b", "").is_err(), "the private key is there");
        assert!(keygen("b.key", "a", "").is_err(), "the kid is there");
        assert!(keygen("b.key", "\u{e9}", "").is_err(), "the kid is not ASCII");
        assert!(!dir.join("b.key").exists());
        assert_eq!(fs::read(dir.join("jwks.json")).unwrap(), before);
        keygen("a.key", "a", " --force").unwrap();
        assert_ne!(fs::read(dir.join("jwks.json")).unwrap(), before);
        fs::write(dir.join("jwks.json"), "{}").unwrap();
        assert!(keygen("c.key", "c", "").is_err(), "not a key set");
    }

    #[test]
    fn takes_a_copied_header_field() {
        for (text, token) in [
            ("a.b.c", "a.b.c"),
            (" a.b.c\n", "a.b.c"),
            ("Bearer a.b.c", "a.b.c"),
            ("bearer  a.b.c ", "a.b.c"),
        ] {
            assert_eq!(bare(text), token);
        }
    }
}
