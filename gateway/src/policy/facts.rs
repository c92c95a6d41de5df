//! Request head → what the rules need; the ambiguous is refused here.
//!
//! A path or a host that two programs could read differently is how a request reaches what its rule
//! was meant to guard. So both are brought to one canonical form before they are matched, and what
//! has no such form is refused.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method, Uri, header};

use super::{Refusal, path::Path};

/// What the rules need of a request's head.
#[derive(Debug)]
pub struct Facts<'a> {
    method: &'a Method,
    authority: Option<&'a str>,
    host: Option<Cow<'a, str>>,
    path: Path<'a>,
    token: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// Reads a head.
    ///
    /// # Errors
    /// [`Refusal::MalformedRequest`] for what is malformed or ambiguous, [`Refusal::Misdirected`] when
    /// the request names another host than the handshake did (RFC 9110 section 15.5.20).
    pub fn read(
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        server_name: Option<&str>,
    ) -> Result<Facts<'a>, Refusal> {
        if *method == Method::CONNECT {
            return Err(Refusal::MalformedRequest("CONNECT is not offered"));
        }
        let Fields { host, coding, authorization } = Fields::among(headers);
        check_coding(coding)?;
        let authority = authority(uri, host)?;
        let host = authority.map(without_port).transpose()?;
        if let (Some(name), Some(host)) = (server_name, &host)
            && !name.eq_ignore_ascii_case(host)
        {
            return Err(Refusal::Misdirected);
        }
        Ok(Facts {
            method,
            authority,
            host,
            path: Path::read(uri.path()).map_err(Refusal::MalformedRequest)?,
            token: bearer(authorization)?,
        })
    }

    /// The method as sent.
    pub fn method(&self) -> &Method {
        self.method
    }

    /// Host and port as the client wrote them.
    pub fn authority(&self) -> Option<&'a str> {
        self.authority
    }

    /// Lower-case host without its port.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The path in its one reading.
    pub fn path(&self) -> &Path<'a> {
        &self.path
    }

    /// The bearer token, not judged yet.
    pub fn token(&self) -> Option<&'a str> {
        self.token
    }
}

/// The fields that say something here.
#[derive(Default)]
struct Fields<'a> {
    host: Field<'a>,
    coding: Field<'a>,
    authorization: Field<'a>,
}

/// The values of one field.
#[derive(Clone, Copy, Default)]
enum Field<'a> {
    #[default]
    None,
    One(&'a HeaderValue),
    Several,
}

impl<'a> Fields<'a> {
    /// One look at each name is cheaper than asking for each that might be there.
    fn among(headers: &'a HeaderMap) -> Fields<'a> {
        let mut fields = Fields::default();
        for (name, value) in headers {
            let field = if *name == header::HOST {
                &mut fields.host
            } else if *name == header::TRANSFER_ENCODING {
                &mut fields.coding
            } else if *name == header::AUTHORIZATION {
                &mut fields.authorization
            } else {
                continue;
            };
            *field = match field {
                Field::None => Field::One(value),
                Field::One(_) | Field::Several => Field::Several,
            };
        }
        fields
    }
}

/// The one host that the request names: the authority of its target, or its `Host`
/// (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
fn authority<'a>(uri: &'a Uri, host: Field<'a>) -> Result<Option<&'a str>, Refusal> {
    let field = match host {
        Field::None => None,
        Field::One(value) => match value.to_str() {
            Ok(text) => Some(text),
            Err(_) => return Err(Refusal::MalformedRequest("Host is not text")),
        },
        Field::Several => return Err(Refusal::MalformedRequest("more than one Host")),
    };
    let authority = uri.authority().map(|authority| authority.as_str());
    match (authority, field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            Err(Refusal::MalformedRequest("Host is not the target's authority"))
        }
        (Some(authority), _) => Ok(Some(authority)),
        (None, field) => Ok(field),
    }
}

/// Other codings, or this one twice, are read differently by different servers; ours is the only one
/// that has to be understood (RFC 9112 section 6.1).
fn check_coding(coding: Field<'_>) -> Result<(), Refusal> {
    match coding {
        Field::None => Ok(()),
        Field::One(coding) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::MalformedRequest("a Transfer-Encoding other than chunked, once")),
    }
}

/// The octets of a host's name.
const HOST_BYTES: [bool; 256] = {
    let mut bytes = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let it = byte as u8;
        bytes[byte] = it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.' | b'_');
        byte += 1;
    }
    bytes
};

fn without_port(named: &str) -> Result<Cow<'_, str>, Refusal> {
    const BAD: Refusal = Refusal::MalformedRequest("Host is not a host name");
    let bracketed = named.starts_with('[');
    let (host, port) = if let Some(rest) = named.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or(BAD)?;
        (inside, after.strip_prefix(':').or(after.is_empty().then_some("")).ok_or(BAD)?)
    } else {
        match named.bytes().position(|byte| byte == b':') {
            Some(colon) => (&named[..colon], &named[colon + 1..]),
            None => (named, ""),
        }
    };
    // The root's dot, which a name may end with.
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_valid = |byte: u8| HOST_BYTES[usize::from(byte)] || (bracketed && byte == b':');
    if host.is_empty()
        || !host.bytes().all(is_valid)
        || !port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(BAD);
    }
    Ok(if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

/// The token of the one `Authorization` field, when its scheme is Bearer (RFC 6750 section 2.1).
fn bearer(authorization: Field<'_>) -> Result<Option<&str>, Refusal> {
    let field = match authorization {
        Field::None => return Ok(None),
        Field::One(field) => field,
        Field::Several => return Err(Refusal::MalformedRequest("more than one Authorization")),
    };
    let Ok(text) = field.to_str() else {
        return Err(Refusal::MalformedRequest("Authorization is not text"));
    };
    let Some((scheme, rest)) = text.split_once(' ') else { return Ok(None) };
    Ok(scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_once_and_alike() {
        for (target, fields, expected) in [
            ("/", vec!["Example.COM"], Ok(Some("example.com"))),
            ("/", vec!["example.com:8443"], Ok(Some("example.com"))),
            ("/", vec!["example.com."], Ok(Some("example.com"))),
            ("/", vec!["[2001:db8::1]:8443"], Ok(Some("2001:db8::1"))),
            ("https://example.com/", vec![], Ok(Some("example.com"))),
            ("https://example.com/", vec!["example.com"], Ok(Some("example.com"))),
            ("https://example.com/", vec!["evil.example"], Err(())),
            ("/", vec!["a", "b"], Err(())),
            ("/", vec!["a b"], Err(())),
            ("/", vec!["user@a"], Err(())),
            ("/", vec!["a:b"], Err(())),
            ("/", vec![""], Err(())),
            ("/", vec!["[::1"], Err(())),
            ("/", vec!["."], Err(())),
            ("/", vec![], Ok(None)),
        ] {
            let uri: Uri = target.parse().unwrap();
            let mut headers = HeaderMap::new();
            for field in &fields {
                headers.append(header::HOST, field.parse().unwrap());
            }
            let read = authority(&uri, Fields::among(&headers).host)
                .and_then(|named| named.map(without_port).transpose())
                .map_err(|_| ());
            assert_eq!(
                read.as_ref().map(|host| host.as_deref()).map_err(|_| ()),
                expected,
                "{target} {fields:?}"
            );
        }
    }

    #[test]
    fn the_handshake_and_the_request_name_the_same_host() {
        let uri: Uri = "/".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "a.example:8443".parse().unwrap());
        for (name, held) in [
            (Some("a.example"), true),
            (Some("A.Example"), true),
            (Some("b.example"), false),
            (None, true),
        ] {
            assert_eq!(Facts::read(&Method::GET, &uri, &headers, name).is_ok(), held, "{name:?}");
        }
    }

    #[test]
    fn one_authorization_with_the_bearer_scheme_is_a_token() {
        for (fields, expected) in [
            (vec![], Ok(None)),
            (vec!["Bearer abc"], Ok(Some("abc"))),
            (vec!["bearer  abc"], Ok(Some("abc"))),
            (vec!["Basic abc"], Ok(None)),
            (vec!["Bearer"], Ok(None)),
            (vec!["Bearer a", "Bearer b"], Err(())),
        ] {
            let mut headers = HeaderMap::new();
            for field in &fields {
                headers.append(header::AUTHORIZATION, field.parse().unwrap());
            }
            assert_eq!(
                bearer(Fields::among(&headers).authorization).map_err(|_| ()),
                expected,
                "{fields:?}"
            );
        }
    }
}
