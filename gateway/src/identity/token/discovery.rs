//! An issuer's description of itself (OpenID Connect Discovery 1.0 section 4, RFC 8414 section 3):
//! of interest is only where its keys are.

use std::fmt;

use super::json::{self, Json, JsonError};
use crate::identity::certificate::name::shown_bytes;

/// Why a description is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryError {
    /// Not a JSON object, or one with a member twice.
    Malformed {
        /// What the parser said.
        detail: String,
    },
    /// It is the description of another issuer (section 4.3: they must be identical).
    AnotherIssuer {
        /// Whose, escaped; `None` when it does not say.
        found: Option<String>,
    },
    /// It does not say where the keys are.
    NoKeys,
}

impl fmt::Display for DiscoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { detail } => write!(f, "not a JSON object: {detail}"),
            Self::AnotherIssuer { found: Some(found) } => write!(
                f,
                "it describes issuer \"{found}\", not the configured one (compared octet by octet)"
            ),
            Self::AnotherIssuer { found: None } => f.write_str("it names no issuer"),
            Self::NoKeys => f.write_str("it has no jwks_uri"),
        }
    }
}

impl std::error::Error for DiscoveryError {}

/// Where the description of `issuer` says that its keys are.
///
/// # Errors
/// Why it is not believed.
pub fn jwks_uri(document: &[u8], issuer: &str) -> Result<String, DiscoveryError> {
    let description = json::object(document).map_err(|error| DiscoveryError::Malformed {
        detail: match error {
            JsonError::Syntax(detail) => detail,
            JsonError::NotAnObject => "another value".to_owned(),
            JsonError::Duplicate(name) => {
                format!("the member \"{}\" is there twice", shown_bytes(name.as_bytes()))
            }
        },
    })?;
    let found = description.get("issuer").and_then(Json::text);
    if found != Some(issuer) {
        let found = found.map(|found| shown_bytes(found.as_bytes()));
        return Err(DiscoveryError::AnotherIssuer { found });
    }
    let uri = description.get("jwks_uri").and_then(Json::text);
    uri.map(str::to_owned).ok_or(DiscoveryError::NoKeys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_believed_of_its_own_issuer() {
        const ISSUER: &str = "https://idp.example";
        for (document, expected) in [
            (r#"{"issuer":"https://idp.example","jwks_uri":"https://k/"}"#, Ok("https://k/")),
            (r#"{"jwks_uri":"https://k/","issuer":"https:\/\/idp.example"}"#, Ok("https://k/")),
            (r#"{"issuer":"https://idp.example/","jwks_uri":"https://k/"}"#, Err("describes")),
            (r#"{"issuer":"https://IDP.example","jwks_uri":"https://k/"}"#, Err("describes")),
            (r#"{"issuer":7,"jwks_uri":"https://k/"}"#, Err("names no issuer")),
            (r#"{"jwks_uri":"https://k/"}"#, Err("names no issuer")),
            (r#"{"issuer":"https://idp.example"}"#, Err("no jwks_uri")),
            (r#"{"issuer":"https://idp.example","jwks_uri":["https://k/"]}"#, Err("no jwks_uri")),
            (r#"{"issuer":"x","issuer":"https://idp.example"}"#, Err("twice")),
            ("<html>", Err("not a JSON object")),
            ("[]", Err("not a JSON object")),
            ("", Err("not a JSON object")),
        ] {
            match (jwks_uri(document.as_bytes(), ISSUER), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{document}"),
                (Err(error), Err(expected)) => {
                    let said = error.to_string();
                    assert!(said.contains(expected), "{document}: {said}");
                }
                (found, _) => panic!("{document}: {found:?}"),
            }
        }
    }
}
