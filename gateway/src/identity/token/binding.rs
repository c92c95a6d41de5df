//! Tokens that only the holder of one client certificate may use (RFC 8705 section 3).
//!
//! A token that says so is held to it on every route and every connection: one without a
//! certificate cannot be the holder's. The certificate is the one that this listener's own
//! handshake verified, never one from a header.

use aws_lc_rs::constant_time;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{
    Claims, TokenError,
    json::{Json, Object},
};

/// Length of a SHA-256 thumbprint.
pub const THUMBPRINT_BYTES: usize = 32;

/// What a route asks of its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// A token that is bound must be used by whom it is bound to.
    #[default]
    WhenBound,
    /// Every token must be bound: `bound_token = true`.
    Always,
}

/// A thumbprint as tokens write it.
fn shown_thumbprint(thumbprint: &[u8; THUMBPRINT_BYTES]) -> String {
    URL_SAFE_NO_PAD.encode(thumbprint)
}

impl Claims {
    /// Whether the holder of this certificate (its thumbprint; `None`: the connection has none) may
    /// use the token.
    ///
    /// # Errors
    /// [`TokenError::NotTheHolder`] or [`TokenError::NotBound`].
    pub fn check_binding(
        &self,
        certificate: Option<&[u8; THUMBPRINT_BYTES]>,
        binding: Binding,
    ) -> Result<(), TokenError> {
        let Some(bound_to) = self.bound_to() else {
            return match binding {
                Binding::WhenBound => Ok(()),
                Binding::Always => Err(TokenError::NotBound { issuer: self.issuer().to_owned() }),
            };
        };
        let is_holder = certificate.is_some_and(|certificate| {
            constant_time::verify_slices_are_equal(certificate, bound_to).is_ok()
        });
        if is_holder {
            return Ok(());
        }
        Err(TokenError::NotTheHolder {
            issuer: self.issuer().to_owned(),
            bound_to: shown_thumbprint(bound_to),
            certificate: certificate.map(shown_thumbprint),
        })
    }
}

/// The thumbprint in `cnf` (RFC 7800 section 3.1). A `cnf` that names anything else, such as the key
/// of a DPoP proof, asks for a check that is not made here, and to pass it over would turn a bound
/// token into a bearer token (RFC 9449 section 7.2).
pub(super) fn bound_to(
    claims: &Object<'_>,
) -> Result<Option<[u8; THUMBPRINT_BYTES]>, &'static str> {
    let members = match claims.get("cnf") {
        None => return Ok(None),
        Some(Json::Object(members)) => members,
        Some(_) => return Err("it is not an object"),
    };
    let Some(text) = members.get("x5t#S256").filter(|_| members.len() == 1) else {
        return Err("it asks for another proof than a client certificate (x5t#S256)");
    };
    text.text()
        .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .and_then(|octets| octets.try_into().ok())
        .map(Some)
        .ok_or("its x5t#S256 is not a SHA-256 thumbprint in base64url")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_bound_token_is_its_holders_alone() {
        let (ours, theirs) = ([1; THUMBPRINT_BYTES], [2; THUMBPRINT_BYTES]);
        let to_us = json!({ "cnf": { "x5t#S256": shown_thumbprint(&ours) } });
        let to_nobody = json!({});
        for (token, certificate, binding, expected) in [
            (&to_us, Some(&ours), Binding::WhenBound, "good"),
            (&to_us, Some(&ours), Binding::Always, "good"),
            (&to_us, Some(&theirs), Binding::WhenBound, "cnf_mismatch"),
            (&to_us, Some(&theirs), Binding::Always, "cnf_mismatch"),
            (&to_us, None, Binding::WhenBound, "cnf_mismatch"),
            (&to_us, None, Binding::Always, "cnf_mismatch"),
            (&to_nobody, Some(&ours), Binding::WhenBound, "good"),
            (&to_nobody, Some(&ours), Binding::Always, "cnf_missing"),
            (&to_nobody, None, Binding::WhenBound, "good"),
            (&to_nobody, None, Binding::Always, "cnf_missing"),
        ] {
            let claims = Claims::for_test(token);
            let found = claims.check_binding(certificate, binding);
            let found = found.map_or_else(|error| error.reason(), |()| "good");
            assert_eq!(found, expected, "{token} {certificate:?} {binding:?}");
        }
    }

    #[test]
    fn a_confirmation_that_is_not_understood_is_not_passed_over() {
        let thumbprint = shown_thumbprint(&[1; THUMBPRINT_BYTES]);
        let read = |cnf: &Value| {
            let text = json!({ "cnf": cnf }).to_string();
            bound_to(&super::super::json::object(text.as_bytes()).unwrap())
        };
        assert!(matches!(read(&json!({ "x5t#S256": thumbprint })), Ok(Some(_))));
        for cnf in [
            json!(null),
            json!("x"),
            json!({}),
            json!({ "jkt": thumbprint }),
            json!({ "x5t#S256": thumbprint, "jkt": thumbprint }),
            json!({ "x5t#S256": 7 }),
            json!({ "x5t#S256": "AAAA" }),
            json!({ "x5t#S256": format!("{thumbprint}=") }),
            json!({ "x5t#S256": "a".repeat(64) }),
        ] {
            assert!(read(&cnf).is_err(), "{cnf}");
        }
    }
}
