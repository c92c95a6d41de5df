//! `portcullis token`: keys and tokens for development, and a look into any token.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::rand;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use jsonwebtoken::{EncodingKey, Header, jwk::Jwk};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    RsaKeySize,
};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};

use super::file::{self, Existing, PRIVATE, PUBLIC};
use crate::identity::token::{
    Algorithm, Judges, KeySet, TOKEN_MAX_BYTES, Verdict, inspect as inspect_token,
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
    /// Where to write the private key (PEM, PKCS#8; for HS256 a JWK)
    #[arg(long, value_name = "FILE")]
    private: PathBuf,
    /// Key set to create or to add the public key to
    #[arg(long, value_name = "FILE")]
    jwks: PathBuf,
    /// What the key signs with
    #[arg(long, ignore_case = true, default_value = "ES256", value_parser = algorithm_name())]
    algorithm: Algorithm,
    /// Replaces a private key file that is there, and a key of this name in the set
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct MintArguments {
    /// Private key (PEM: PKCS#8, PKCS#1 or SEC1; for HS256 a JWK)
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
    #[arg(long, ignore_case = true, value_parser = algorithm_name())]
    algorithm: Option<Algorithm>,
}

/// [`Algorithm`] on the command line.
fn algorithm_name() -> impl TypedValueParser<Value = Algorithm> {
    PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::name)).try_map(|name| {
        let same = |one: &Algorithm| one.name().eq_ignore_ascii_case(&name);
        Algorithm::ALL.into_iter().find(same).ok_or("no such algorithm")
    })
}

fn of_library(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Rs384 => jsonwebtoken::Algorithm::RS384,
        Algorithm::Rs512 => jsonwebtoken::Algorithm::RS512,
        Algorithm::Ps256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::Ps384 => jsonwebtoken::Algorithm::PS384,
        Algorithm::Ps512 => jsonwebtoken::Algorithm::PS512,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::Es384 => jsonwebtoken::Algorithm::ES384,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
    }
}

fn encoding_key(algorithm: Algorithm, file: &[u8]) -> Result<EncodingKey> {
    Ok(match algorithm {
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => EncodingKey::from_rsa_pem(file)?,
        Algorithm::Es256 | Algorithm::Es384 => EncodingKey::from_ec_pem(file)?,
        Algorithm::EdDsa => EncodingKey::from_ed_pem(file)?,
        Algorithm::Hs256 => EncodingKey::from_secret(&secret(file)?),
    })
}

/// The octets of a symmetric key in a JWK (RFC 7518 section 6.4).
fn secret(file: &[u8]) -> Result<Vec<u8>> {
    let key: Value = serde_json::from_slice(file)?;
    let octets = key.get("k").and_then(Value::as_str).context("there is no \"k\" in it")?;
    Ok(URL_SAFE_NO_PAD.decode(octets)?)
}

impl Arguments {
    /// True when [`run`] does better with the configured issuers.
    pub fn wants_issuers(&self) -> bool {
        matches!(self.command, Command::Inspect { .. })
    }
}

/// Runs the command. `judges` are those of the configuration, if there is one. A token that
/// would be refused is an error, so that scripts see it in the exit status.
pub fn run(
    arguments: &Arguments,
    judges: Option<Judges<'_>>,
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
            inspect(bare(&token), *json, judges, now, out)
        }
    }
}

fn keygen(arguments: &KeygenArguments, out: &mut dyn Write) -> Result<()> {
    let existing = Existing::forced(arguments.force);
    file::refuse_existing(&[&arguments.private], existing)?;
    let private = private_key(arguments.algorithm)?;
    let entry = public_key(&private, &arguments.kid, arguments.algorithm)?;
    let set = with_key(read_set(&arguments.jwks)?, entry, &arguments.kid, existing)
        .with_context(|| arguments.jwks.display().to_string())?;
    // What is written must be usable.
    let parsed = KeySet::parse(&set, &beside(arguments.algorithm))
        .with_context(|| format!("{} would not be usable", arguments.jwks.display()))?;
    if !parsed.key_ids().any(|id| id == Some(arguments.kid.as_str())) {
        let why = parsed.unusable().last().map(ToString::to_string).unwrap_or_default();
        bail!("the gateway would not use this key: {why}");
    }
    file::write(&arguments.private, &private, PRIVATE, existing)?;
    let mode = if arguments.algorithm.is_symmetric() { PRIVATE } else { PUBLIC };
    file::write(&arguments.jwks, &set, mode, Existing::Replace)?;
    writeln!(
        out,
        "wrote {}; key \"{}\" is in {}",
        arguments.private.display(),
        arguments.kid,
        arguments.jwks.display()
    )?;
    Ok(())
}

/// What a configuration may allow together with this: a symmetric key stands alone.
fn beside(algorithm: Algorithm) -> Vec<Algorithm> {
    let alike = |other: &Algorithm| other.is_symmetric() == algorithm.is_symmetric();
    Algorithm::ALL.into_iter().filter(alike).collect()
}

/// A new key as its file holds it.
fn private_key(algorithm: Algorithm) -> Result<Vec<u8>> {
    let key = match algorithm {
        Algorithm::Es256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        Algorithm::Es384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        Algorithm::EdDsa => KeyPair::generate_for(&PKCS_ED25519),
        Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        Algorithm::Hs256 => {
            let octets = URL_SAFE_NO_PAD.encode(random::<32>()?);
            return Ok(serde_json::to_vec(&json!({ "kty": "oct", "k": octets }))?);
        }
    };
    Ok(key.context("generating a key")?.serialize_pem().into_bytes())
}

fn public_key(private: &[u8], kid: &str, algorithm: Algorithm) -> Result<Value> {
    let mut entry = match algorithm {
        // The octets of an Ed25519 key stand in several places of its PKCS#8.
        Algorithm::EdDsa => {
            let key = KeyPair::from_pem(std::str::from_utf8(private)?)?;
            json!({
                "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(key.public_key_raw()),
            })
        }
        Algorithm::Hs256 => serde_json::from_slice(private)?,
        _ => {
            let key = encoding_key(algorithm, private)?;
            let key = Jwk::from_encoding_key(&key, of_library(algorithm));
            serde_json::to_value(key.context("taking the public half")?)?
        }
    };
    entry["kid"] = json!(kid);
    entry["alg"] = json!(algorithm.name());
    entry["use"] = json!("sig");
    Ok(entry)
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
    let file = fs::read(&arguments.key).with_context(|| format!("reading {path}"))?;
    let claims = claims(arguments, now)?;
    let token = match arguments.algorithm {
        Some(algorithm) => sign(&file, algorithm, &arguments.kid, &claims)
            .with_context(|| format!("{path} is not a key for {algorithm}"))?,
        None => {
            /// One for each kind of key.
            const USUAL: [Algorithm; 5] = [
                Algorithm::Es256,
                Algorithm::Es384,
                Algorithm::EdDsa,
                Algorithm::Rs256,
                Algorithm::Hs256,
            ];
            let mut usual = USUAL.into_iter();
            usual
                .find_map(|algorithm| sign(&file, algorithm, &arguments.kid, &claims).ok())
                .with_context(|| {
                    format!("{path} is no EC, Ed25519 or RSA private key in PEM, nor a JWK")
                })?
        }
    };
    ensure!(
        token.len() <= TOKEN_MAX_BYTES,
        "a token of {} bytes; the gateway reads at most {TOKEN_MAX_BYTES}",
        token.len()
    );
    Ok(token)
}

fn sign(
    file: &[u8],
    algorithm: Algorithm,
    kid: &str,
    claims: &Map<String, Value>,
) -> Result<String> {
    let mut header = Header::new(of_library(algorithm));
    // RFC 9068 section 2.1.
    header.typ = Some("at+jwt".to_owned());
    header.kid = Some(kid.to_owned());
    Ok(jsonwebtoken::encode(&header, claims, &encoding_key(algorithm, file)?)?)
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
    Ok(random::<16>()?.iter().map(|octet| format!("{octet:02x}")).collect())
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut octets = [0; N];
    rand::fill(&mut octets).map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(octets)
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
    judges: Option<Judges<'_>>,
    now: SystemTime,
    out: &mut dyn Write,
) -> Result<()> {
    ensure!(!token.is_empty(), "no token given");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now)?));
    let report = inspect_token(token, judges, now);
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
    use crate::identity::token::{Issuers, RevokedTokens, TokenRules, verify};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// 2026-03-01T12:00:00Z.
    const NOW_S: u64 = 1_772_366_400;

    /// Runs one command line, words separated by blanks, `DIR/` standing for the directory: with the
    /// slash, which no token has, for a token may well hold those three letters.
    fn token(dir: &Path, line: &str, issuers: Option<&Issuers>) -> (Result<()>, String) {
        let dir = format!("{}/", dir.display());
        let words = line.split(' ').map(|word| word.replace("DIR/", &dir));
        let parsed = match Line::try_parse_from(["token".to_owned()].into_iter().chain(words)) {
            Ok(parsed) => parsed,
            Err(error) => return (Err(error.into()), String::new()),
        };
        let mut out = Vec::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S);
        let revoked = RevokedTokens::default();
        let judges = issuers.map(|issuers| Judges { issuers, revoked: &revoked });
        let outcome = run(&parsed.arguments, judges, now, &mut out);
        (outcome, String::from_utf8(out).unwrap())
    }

    fn issuers(dir: &Path) -> Issuers {
        issuers_with(dir, &Algorithm::ALL)
    }

    fn issuers_with(dir: &Path, algorithms: &[Algorithm]) -> Issuers {
        let set = fs::read(dir.join("jwks.json")).unwrap();
        let rules = TokenRules {
            name: "lab".to_owned(),
            issuer: "https://lab".to_owned(),
            audiences: vec!["orders".to_owned()],
            algorithms: algorithms.to_vec(),
            leeway: Duration::ZERO,
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: vec!["client_id".to_owned(), "sub".to_owned()],
        };
        Issuers::new(vec![(rules, KeySet::parse(&set, algorithms).unwrap())], 1)
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
        let names =
            ["ES256", "rs256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES384", "EdDSA"];
        for name in names {
            keygen(name, name);
        }
        let issuers = issuers(dir);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
        for kid in names {
            // What a key says of itself in PEM does not tell RS256 from PS512.
            let line = format!(
                "{MINT} --key DIR/{kid}.key --kid {kid} --algorithm {kid} --scope read \
                 --claim roles=[\"a\"]"
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
        let line = format!("{MINT} --key DIR/ES256.key --kid RS384");
        let (_, minted) = token(dir, &line, None);
        let (outcome, shown) = token(dir, &format!("inspect {}", minted.trim()), Some(&issuers));
        assert!(outcome.is_err() && shown.contains("refused: unsupported_algorithm"), "{shown}");
    }

    #[test]
    fn a_shared_secret_stays_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let line = "keygen --kid s --private DIR/s.key --jwks DIR/jwks.json --algorithm HS256";
        token(dir, line, None).0.unwrap();
        for file in ["s.key", "jwks.json"] {
            let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let (outcome, minted) = token(dir, &format!("{MINT} --key DIR/s.key --kid s"), None);
        outcome.unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_S));
        let issuers = issuers_with(dir, &[Algorithm::Hs256]);
        assert_eq!(verify(minted.trim(), &issuers, now).unwrap().subject(), Some("alice"));
        let line = "keygen --kid e --private DIR/e.key --jwks DIR/jwks.json";
        token(dir, line, None).0.unwrap();
        let set = fs::read(dir.join("jwks.json")).unwrap();
        let beside = KeySet::parse(&set, &Algorithm::ALL).unwrap();
        assert_eq!(beside.key_ids().collect::<Vec<_>>(), [Some("e")]);
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
