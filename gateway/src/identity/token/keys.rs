//! An issuer's public keys, from a JSON Web Key Set (RFC 7517).

use std::{collections::HashMap, fmt};

use aws_lc_rs::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, EcdsaVerificationAlgorithm,
        ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
        RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
        RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    Algorithm,
    algorithm::KeyKind,
    json::{self, Json, JsonError, Object},
    parse::{KeyName, is_key_id},
};
use crate::identity::certificate::name::shown_bytes;

/// Largest key set read; a key with its certificate chain is some 10 KB.
pub const KEY_SET_MAX_BYTES: usize = 1024 * 1024;

/// Most keys in one set. Issuers publish two to ten.
pub const KEYS_MAX: usize = 128;

/// RSA keys below this are refused (RFC 7518 section 3.3).
const RSA_MIN_BITS: usize = 2048;

/// Above this aws-lc does not verify, and each signature would cost a millisecond.
const RSA_MAX_BITS: usize = 8192;

/// Symmetric keys below this are refused: RFC 7518 section 3.2 asks for the length of the hash.
const SYMMETRIC_MIN_BYTES: usize = 32;

/// The usable keys of one issuer, at least one.
#[derive(Clone)]
pub struct KeySet {
    keys: Vec<Key>,
    by_id: HashMap<String, usize>,
    unusable: Vec<UnusableKey>,
}

/// One key, for one algorithm.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    /// `x5t` (RFC 7517 section 4.8).
    x5t: Option<String>,
    /// `x5t#S256` (section 4.9).
    x5t_s256: Option<String>,
    pub(super) algorithm: Algorithm,
    verifier: Verifier,
}

#[derive(Clone)]
enum Verifier {
    Public(ParsedPublicKey),
    Symmetric(Box<hmac::Key>),
}

impl Key {
    /// True when the signature over `message` is this key's.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.verifier {
            Verifier::Public(key) => key.verify_sig(message, signature).is_ok(),
            // Compares in constant time.
            Verifier::Symmetric(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.key_ids()).finish()
    }
}

/// A key of the set that cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableKey {
    /// Its place in the set, counted from 1.
    pub index: usize,
    /// Its `kid`, escaped.
    pub kid: Option<String>,
    /// Why not.
    pub why: &'static str,
}

impl fmt::Display for UnusableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kid {
            Some(kid) => write!(f, "key {} (kid \"{kid}\"): {}", self.index, self.why),
            None => write!(f, "key {}: {}", self.index, self.why),
        }
    }
}

/// Why a key set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySetError {
    /// Larger than [`KEY_SET_MAX_BYTES`].
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a JSON object.
    NotJson {
        /// What the parser said.
        detail: String,
    },
    /// A member is there twice.
    DuplicateMember {
        /// Its name.
        name: String,
    },
    /// No array `keys`.
    NoKeys,
    /// More than [`KEYS_MAX`] keys.
    TooManyKeys {
        /// How many.
        count: usize,
    },
    /// Two usable keys have one name.
    DuplicateKeyId {
        /// The name.
        kid: String,
    },
    /// None of the keys can be used.
    NoUsableKey {
        /// Each with its reason.
        unusable: Vec<UnusableKey>,
    },
}

impl fmt::Display for KeySetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes } => {
                write!(f, "{bytes} bytes; at most {KEY_SET_MAX_BYTES} are read")
            }
            Self::NotJson { detail } => write!(f, "not a JSON object: {detail}"),
            Self::DuplicateMember { name } => write!(f, "the member \"{name}\" is there twice"),
            Self::NoKeys => {
                f.write_str("no array \"keys\"; expected a JSON Web Key Set, {\"keys\": [ … ]}")
            }
            Self::TooManyKeys { count } => write!(f, "{count} keys; at most {KEYS_MAX} are read"),
            Self::DuplicateKeyId { kid } => {
                write!(f, "two usable keys are named \"{kid}\"; rename or remove one")
            }
            Self::NoUsableKey { unusable } if unusable.is_empty() => {
                f.write_str("it has no keys; no token could be verified")
            }
            Self::NoUsableKey { unusable } => {
                f.write_str("none of its keys can be used: ")?;
                for (index, key) in unusable.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{key}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for KeySetError {}

impl KeySet {
    /// Reads a key set and keeps the keys that can verify one of `algorithms`, which stand in the
    /// order of preference: a key that names no `alg` is for the first of them that its kind can do.
    pub fn parse(jwks_json: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeySetError> {
        if jwks_json.len() > KEY_SET_MAX_BYTES {
            return Err(KeySetError::TooLarge { bytes: jwks_json.len() });
        }
        let set = json::object(jwks_json).map_err(|error| match error {
            JsonError::Syntax(detail) => KeySetError::NotJson { detail },
            JsonError::NotAnObject => KeySetError::NotJson { detail: "another value".to_owned() },
            JsonError::Duplicate(name) => {
                KeySetError::DuplicateMember { name: shown_bytes(name.as_bytes()) }
            }
        })?;
        let keys = set.get("keys").and_then(Json::array).ok_or(KeySetError::NoKeys)?;
        if keys.len() > KEYS_MAX {
            return Err(KeySetError::TooManyKeys { count: keys.len() });
        }
        Self::of_keys(keys, algorithms)
    }

    fn of_keys(keys: &[Json<'_>], algorithms: &[Algorithm]) -> Result<Self, KeySetError> {
        let mut set = Self { keys: Vec::new(), by_id: HashMap::new(), unusable: Vec::new() };
        for (position, entry) in keys.iter().enumerate() {
            let key = match key(entry, algorithms) {
                Ok(key) => key,
                Err(why) => {
                    let kid = member(entry, "kid").map(|kid| shown_bytes(kid.as_bytes()));
                    set.unusable.push(UnusableKey { index: position + 1, kid, why });
                    continue;
                }
            };
            if let Some(kid) = &key.id
                && set.by_id.insert(kid.clone(), set.keys.len()).is_some()
            {
                return Err(KeySetError::DuplicateKeyId { kid: kid.clone() });
            }
            set.keys.push(key);
        }
        if set.keys.is_empty() {
            return Err(KeySetError::NoUsableKey { unusable: set.unusable });
        }
        Ok(set)
    }

    /// The names of the usable keys.
    pub fn key_ids(&self) -> impl Iterator<Item = Option<&str>> {
        self.keys.iter().map(|key| key.id.as_deref())
    }

    /// The usable keys, for people.
    pub fn described(&self) -> impl Iterator<Item = String> {
        self.keys.iter().map(|key| match &key.id {
            Some(id) => format!("kid \"{id}\" for {}", key.algorithm),
            None => format!("a key without kid for {}", key.algorithm),
        })
    }

    /// The keys passed over, for warnings: many issuers publish encryption keys beside.
    pub fn unusable(&self) -> &[UnusableKey] {
        &self.unusable
    }

    /// The key that a token names, or the only one for its algorithm when it names none.
    pub(super) fn select(&self, name: &KeyName, algorithm: Algorithm) -> Option<&Key> {
        match name {
            KeyName::Kid(kid) => self.keys.get(*self.by_id.get(kid)?),
            KeyName::X5t(x5t) => self.only(|key| key.x5t.as_ref() == Some(x5t)),
            KeyName::X5tS256(x5t) => self.only(|key| key.x5t_s256.as_ref() == Some(x5t)),
            KeyName::Nothing => self.only(|key| key.algorithm == algorithm),
        }
    }

    fn only(&self, fits: impl Fn(&Key) -> bool) -> Option<&Key> {
        let mut fitting = self.keys.iter().filter(|key| fits(key));
        let only = fitting.next()?;
        fitting.next().is_none().then_some(only)
    }
}

fn member<'a>(entry: &'a Json<'_>, name: &str) -> Option<&'a str> {
    match entry {
        Json::Object(members) => members.get(name)?.text(),
        _ => None,
    }
}

/// One key, or why it cannot be used.
fn key(entry: &Json<'_>, algorithms: &[Algorithm]) -> Result<Key, &'static str> {
    let Json::Object(members) = entry else { return Err("it is not an object") };
    if members.contains_key("d") {
        return Err("it is a private key; publish only its public half, and replace it");
    }
    check_use(members)?;
    let algorithm = algorithm(members, algorithms)?;
    let named = |name, why| match members.get(name) {
        None => Ok(None),
        Some(value) => {
            value.text().filter(|text| is_key_id(text)).map(|text| Some(text.to_owned())).ok_or(why)
        }
    };
    Ok(Key {
        id: named("kid", "its kid is not a string of 1 to 256 printable characters")?,
        x5t: named("x5t", "its x5t is not a thumbprint")?,
        x5t_s256: named("x5t#S256", "its x5t#S256 is not a thumbprint")?,
        verifier: verifier(members, algorithm)?,
        algorithm,
    })
}

fn verifier(members: &Object<'_>, algorithm: Algorithm) -> Result<Verifier, &'static str> {
    let public = match algorithm {
        Algorithm::Rs256 => rsa(members, &RSA_PKCS1_2048_8192_SHA256)?,
        Algorithm::Rs384 => rsa(members, &RSA_PKCS1_2048_8192_SHA384)?,
        Algorithm::Rs512 => rsa(members, &RSA_PKCS1_2048_8192_SHA512)?,
        Algorithm::Ps256 => rsa(members, &RSA_PSS_2048_8192_SHA256)?,
        Algorithm::Ps384 => rsa(members, &RSA_PSS_2048_8192_SHA384)?,
        Algorithm::Ps512 => rsa(members, &RSA_PSS_2048_8192_SHA512)?,
        Algorithm::Es256 => ec(members, &ECDSA_P256_SHA256_FIXED, 32)?,
        Algorithm::Es384 => ec(members, &ECDSA_P384_SHA384_FIXED, 48)?,
        Algorithm::EdDsa => ed25519(members)?,
        Algorithm::Hs256 => return symmetric(members),
    };
    Ok(Verifier::Public(public))
}

/// RFC 7517 sections 4.2 and 4.3.
fn check_use(members: &Object<'_>) -> Result<(), &'static str> {
    match members.get("use").map(Json::text) {
        None | Some(Some("sig")) => {}
        Some(_) => return Err("its use is not \"sig\""),
    }
    match members.get("key_ops").map(Json::array) {
        None => Ok(()),
        Some(Some(operations)) if operations.iter().any(|one| one.text() == Some("verify")) => {
            Ok(())
        }
        Some(_) => Err("its key_ops do not hold \"verify\""),
    }
}

/// The one algorithm that a key is for: what its `alg` says, as far as its kind can do it, else the
/// first allowed one that its kind can do. A symmetric key counts only where nothing else is
/// allowed: beside public keys it is what turns one of them into a signing key (RFC 8725 section
/// 2.1).
fn algorithm(members: &Object<'_>, algorithms: &[Algorithm]) -> Result<Algorithm, &'static str> {
    let kind = kind(members)?;
    if kind == KeyKind::Symmetric && !algorithms.iter().all(|one| one.is_symmetric()) {
        return Err("it is a symmetric key, which a key set must never show");
    }
    const NOT_ALLOWED: &str = "its algorithm is not among the issuer's algorithms";
    match members.get("alg").map(Json::text) {
        None => algorithms.iter().copied().find(|one| one.kind() == kind).ok_or(NOT_ALLOWED),
        Some(name) => {
            let algorithm = name
                .and_then(Algorithm::from_name)
                .filter(|algorithm| algorithm.kind() == kind)
                .ok_or("its alg is not one that is supported for its kind")?;
            algorithms.contains(&algorithm).then_some(algorithm).ok_or(NOT_ALLOWED)
        }
    }
}

fn kind(members: &Object<'_>) -> Result<KeyKind, &'static str> {
    let curve = || members.get("crv").and_then(Json::text).ok_or("it has no crv");
    match members.get("kty").and_then(Json::text) {
        Some("RSA") => Ok(KeyKind::Rsa),
        Some("EC") => match curve()? {
            "P-256" => Ok(KeyKind::P256),
            "P-384" => Ok(KeyKind::P384),
            _ => Err("its curve is not P-256 or P-384"),
        },
        Some("OKP") => match curve()? {
            "Ed25519" => Ok(KeyKind::Ed25519),
            _ => Err("its curve is not Ed25519"),
        },
        Some("oct") => Ok(KeyKind::Symmetric),
        Some(_) => Err("its kty is not RSA, EC, OKP or oct"),
        None => Err("it has no kty"),
    }
}

fn octets(members: &Object<'_>, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(members.get(name)?.text()?).ok()
}

fn rsa(
    members: &Object<'_>,
    parameters: &'static RsaParameters,
) -> Result<ParsedPublicKey, &'static str> {
    let modulus = octets(members, "n").ok_or("its n is missing or not base64url")?;
    let exponent = octets(members, "e").ok_or("its e is missing or not base64url")?;
    // RFC 7518 section 6.3.1.1: no leading zero octets; some issuers add one.
    let strip = |value: &[u8]| -> Vec<u8> {
        value.iter().copied().skip_while(|&octet| octet == 0).collect()
    };
    let (n, e) = (strip(&modulus), strip(&exponent));
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if bits < RSA_MIN_BITS {
        return Err("its modulus is shorter than 2048 bits");
    }
    if bits > RSA_MAX_BITS {
        return Err("its modulus is longer than 8192 bits");
    }
    // With an exponent of 1 every text would be its own signature, an even one has no inverse
    // (RFC 8017 section 3.1), and a long one makes each verification slow; 65537 is usual.
    let odd = e.last().is_some_and(|last| last % 2 == 1);
    if !odd || e == [1] || e.len() > 4 {
        return Err("its exponent is not an odd number from 3 to 2^32");
    }
    RsaPublicKeyComponents { n, e }
        .to_parsed_public_key(parameters)
        .map_err(|_| "n and e do not make an RSA key")
}

fn ec(
    members: &Object<'_>,
    algorithm: &'static EcdsaVerificationAlgorithm,
    coordinate_bytes: usize,
) -> Result<ParsedPublicKey, &'static str> {
    let coordinate = |name| octets(members, name).filter(|octets| octets.len() == coordinate_bytes);
    let x = coordinate("x").ok_or("its x is missing or not a coordinate in base64url")?;
    let y = coordinate("y").ok_or("its y is missing or not a coordinate in base64url")?;
    // SEC 1 section 2.3.3, uncompressed.
    let point = [&[0x04], x.as_slice(), y.as_slice()].concat();
    ParsedPublicKey::new(algorithm, point).map_err(|_| "x and y are not on its curve")
}

fn ed25519(members: &Object<'_>) -> Result<ParsedPublicKey, &'static str> {
    let x = octets(members, "x").filter(|octets| octets.len() == 32);
    let x = x.ok_or("its x is missing or not 32 octets of base64url")?;
    ParsedPublicKey::new(&ED25519, x).map_err(|_| "x is no Ed25519 key")
}

fn symmetric(members: &Object<'_>) -> Result<Verifier, &'static str> {
    let key = octets(members, "k").ok_or("its k is missing or not base64url")?;
    if key.len() < SYMMETRIC_MIN_BYTES {
        return Err("its k is shorter than 256 bits");
    }
    Ok(Verifier::Symmetric(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &key))))
}
