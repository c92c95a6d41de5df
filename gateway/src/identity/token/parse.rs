//! From text to header, claims and signature; nothing here is proven yet.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    Algorithm, Part, TokenError,
    json::{self, JsonError, Object},
};
use crate::identity::certificate::name::shown_bytes;

/// Longest token read. Common header limits are 8 KiB for a whole line, and a token that names
/// hundreds of groups still fits; everything after this check is linear in it.
pub const TOKEN_MAX_BYTES: usize = 8 * 1024;

/// Longest key identifier. They are thumbprints or short names; this is for the oddest.
const KEY_ID_MAX_BYTES: usize = 256;

/// Parameters that make a token mean something else, or choose its own key. RFC 7515 section
/// 4.1.11 demands refusal of a `crit` that is not understood, and none is; RFC 7797 demands `crit`
/// beside `b64`; keys come from the configuration only.
const REFUSED_PARAMETERS: [&str; 7] = ["crit", "b64", "zip", "jku", "jwk", "x5u", "x5c"];

/// What the header is used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFields {
    /// `alg`, one of those that exist here.
    pub algorithm: Algorithm,
    /// The key that it asks for.
    pub key: KeyName,
}

/// How a token names its key: 1 to 256 printable ASCII characters. The name is only ever compared
/// with those of the issuer's keys: it is no path, no address and no query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// `kid` (RFC 7515 section 4.1.4); where it is there, a thumbprint beside it is not looked at.
    Kid(String),
    /// `x5t#S256` (section 4.1.8).
    X5tS256(String),
    /// `x5t` (section 4.1.7): SHA-1, which is enough for a name.
    X5t(String),
    /// Not at all.
    Nothing,
}

impl KeyName {
    /// The parameter and its value, for messages.
    pub fn shown(&self) -> Option<String> {
        match self {
            Self::Kid(name) => Some(format!("kid \"{name}\"")),
            Self::X5tS256(name) => Some(format!("x5t#S256 \"{name}\"")),
            Self::X5t(name) => Some(format!("x5t \"{name}\"")),
            Self::Nothing => None,
        }
    }
}

/// A token taken apart. Not a proof of anything.
#[derive(Clone, Debug)]
pub struct Unverified<'a> {
    header: HeaderFields,
    claims: Vec<u8>,
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// Takes a token apart: compact JWS (RFC 7515 section 3.1) only. Never panics, whatever the text.
pub fn parse(token: &str) -> Result<Unverified<'_>, TokenError> {
    if token.len() > TOKEN_MAX_BYTES {
        return Err(TokenError::TooLarge { bytes: token.len() });
    }
    let [header, claims, signature] = three_parts(token)?;
    let header = header_fields(&decoded(Part::Header, header)?)?;
    let signed_bytes = token.len() - signature.len() - 1;
    Ok(Unverified {
        header,
        claims: decoded(Part::Claims, claims)?,
        signed: token.as_bytes().get(..signed_bytes).unwrap_or_default(),
        signature: decoded(Part::Signature, signature)?,
    })
}

impl Unverified<'_> {
    /// The header's fields.
    pub fn header(&self) -> &HeaderFields {
        &self.header
    }

    /// What the signature is over: header and claims as they were sent.
    pub(super) fn signed(&self) -> &[u8] {
        self.signed
    }

    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The claims, read strictly.
    pub(super) fn claims(&self) -> Result<Object<'_>, TokenError> {
        object(Part::Claims, &self.claims)
    }
}

fn three_parts(token: &str) -> Result<[&str; 3], TokenError> {
    let mut parts = token.split('.');
    let (header, claims, signature) = (parts.next(), parts.next(), parts.next());
    match (header, claims, signature, parts.count()) {
        (Some(header), Some(claims), Some(signature), 0) => Ok([header, claims, signature]),
        // RFC 7516 section 9: five parts make a JWE.
        (_, _, _, 2) => Err(TokenError::Encrypted),
        _ => Err(TokenError::Malformed {
            part: Part::Whole,
            detail: "it does not have three parts".to_owned(),
        }),
    }
}

/// Decodes base64url without padding. The engine refuses padding, other alphabets, white space and
/// trailing bits that are not zero, so each octet string has exactly one spelling.
fn decoded(part: Part, text: &str) -> Result<Vec<u8>, TokenError> {
    let malformed = |detail: String| TokenError::Malformed { part, detail };
    if text.is_empty() {
        return Err(malformed("it is empty".to_owned()));
    }
    URL_SAFE_NO_PAD.decode(text).map_err(|error| malformed(error.to_string()))
}

fn object(part: Part, text: &[u8]) -> Result<Object<'_>, TokenError> {
    json::object(text).map_err(|error| match error {
        JsonError::Duplicate(name) => {
            TokenError::DuplicateMember { part, name: shown_bytes(name.as_bytes()) }
        }
        JsonError::NotAnObject => {
            TokenError::Malformed { part, detail: "it is not a JSON object".to_owned() }
        }
        JsonError::Syntax(detail) => TokenError::Malformed { part, detail },
    })
}

fn header_fields(text: &[u8]) -> Result<HeaderFields, TokenError> {
    let header = object(Part::Header, text)?;
    if header.contains_key("enc") {
        return Err(TokenError::Encrypted);
    }
    for parameter in REFUSED_PARAMETERS {
        if header.contains_key(parameter) {
            return Err(TokenError::RefusedHeader { parameter });
        }
    }
    let malformed =
        |detail: &str| TokenError::Malformed { part: Part::Header, detail: detail.to_owned() };
    if let Some(kind) = header.get("typ") {
        check_type(kind.text().ok_or_else(|| malformed("typ is not a string"))?)?;
    }
    let algorithm = match header.get("alg") {
        Some(name) => name.text().ok_or_else(|| malformed("alg is not a string"))?,
        None => return Err(malformed("alg is missing")),
    };
    let algorithm = Algorithm::from_name(algorithm).ok_or_else(|| {
        TokenError::UnsupportedAlgorithm { algorithm: shown_bytes(algorithm.as_bytes()) }
    })?;
    let named = |parameter, why| match header.get(parameter) {
        None => Ok(None),
        Some(value) => {
            let name = value.text().filter(|name| is_key_id(name)).map(str::to_owned);
            name.map(Some).ok_or_else(|| malformed(why))
        }
    };
    let kid = named("kid", "kid is not a string of 1 to 256 printable characters")?;
    let x5t_s256 = named("x5t#S256", "x5t#S256 is not a thumbprint")?;
    let x5t = named("x5t", "x5t is not a thumbprint")?;
    let key = kid
        .map(KeyName::Kid)
        .or_else(|| x5t_s256.map(KeyName::X5tS256))
        .or_else(|| x5t.map(KeyName::X5t))
        .unwrap_or(KeyName::Nothing);
    Ok(HeaderFields { algorithm, key })
}

/// Whether a text may name a key.
pub(super) fn is_key_id(text: &str) -> bool {
    (1..=KEY_ID_MAX_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// RFC 7519 section 5.1 and RFC 9068 section 2.1. Many issuers leave `typ` out; a different one
/// (a proof of possession, a logout or event token) is signed by the same keys and is not meant
/// for requests (RFC 8725 section 3.11).
fn check_type(kind: &str) -> Result<(), TokenError> {
    let bare = match kind.get(..12) {
        Some(prefix) if prefix.eq_ignore_ascii_case("application/") => &kind[12..],
        _ => kind,
    };
    if bare.eq_ignore_ascii_case("JWT") || bare.eq_ignore_ascii_case("at+jwt") {
        return Ok(());
    }
    Err(TokenError::UnsupportedType { kind: shown_bytes(kind.as_bytes()) })
}
