//! Which header fields cross the gateway, and which it writes itself.
//!
//! Towards the upstream: hop-by-hop fields go (RFC 9110 section 7.6.1), every field by which an
//! upstream could learn who is asking goes in any spelling, and then what was proven is written.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::identity::Identity;

/// Fields that say who is asking, in their canonical spelling: lower case, `-` for `_`.
/// The client's own never reach the upstream.
const IDENTITY: [&str; 18] = [
    "x-request-id",
    "x-auth-method",
    "x-user-id",
    "x-user-email",
    "x-user-roles",
    "x-user-scopes",
    "x-tenant-id",
    "x-client-id",
    "x-client-cn",
    "x-client-serial",
    "x-client-verify",
    "x-forwarded-user",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    // Not written by us, but read by many upstreams as the client's address.
    "x-real-ip",
    "x-forwarded-client-cert",
];

/// Fields of one connection (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2). `te` may be passed on
/// with the one value `trailers`.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What the connection and the request contribute to the forwarding fields.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The client's address.
    pub source: IpAddr,
    /// The host as the client named it.
    pub host: Option<&'a str>,
    /// The request's id.
    pub request_id: &'a str,
}

/// Makes a client's fields into those for the upstream.
pub fn to_upstream(headers: &mut HeaderMap, identity: &Identity<'_>, origin: Origin<'_>) {
    remove_hop_by_hop(headers);
    remove_identity(headers);
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::EXPECT);
    write_identity(headers, identity);
    write_origin(headers, origin);
}

/// Makes an upstream's fields into those for the client.
pub fn to_client(status: StatusCode, headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    // A 204 has no content and must not state a length (RFC 9110 section 8.6); a client over HTTP/2
    // would take the missing bytes for a broken stream.
    if status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
    // A year, as RFC 6797 section 6.1 examples have it; without subdomains, which may be somebody else's.
    headers
        .entry(header::STRICT_TRANSPORT_SECURITY)
        .or_insert(HeaderValue::from_static("max-age=31536000"));
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION).cloned() {
        // `close` and `keep-alive` alone, which is nearly always, name no field.
        for name in named.to_str().unwrap_or_default().split(',').map(str::trim) {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
                && !matches!(name.as_str(), "host" | "content-length" | "content-type")
            {
                headers.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// A name is compared in its canonical spelling, since many upstreams read `X_User_Id` as `X-User-Id`.
fn remove_identity(headers: &mut HeaderMap) {
    let doomed: Vec<HeaderName> =
        headers.keys().filter(|name| is_identity(name.as_str())).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

/// Whether a field of that (lower-case) name could tell an upstream who is asking.
pub fn is_identity(name: &str) -> bool {
    // Nearly all names are told apart by their first byte and need no copy.
    if !matches!(name.as_bytes().first(), Some(b'x' | b'f')) {
        return false;
    }
    let same = |known: &str| {
        known.len() == name.len()
            && known
                .bytes()
                .zip(name.bytes())
                .all(|(known, byte)| byte == known || (byte == b'_' && known == b'-'))
    };
    IDENTITY.iter().any(|known| same(known))
}

fn write_identity(headers: &mut HeaderMap, identity: &Identity<'_>) {
    put(headers, "x-auth-method", Some(identity.method()));
    if let Some(peer) = identity.peer() {
        put(headers, "x-client-cn", peer.common_name());
        put(headers, "x-client-serial", Some(peer.serial()));
        put(headers, "x-client-verify", Some("SUCCESS"));
    }
    if let Some(claims) = identity.claims() {
        put(headers, "x-user-id", claims.subject());
        put(headers, "x-user-email", claims.email());
        put(headers, "x-tenant-id", claims.tenant());
        put_list(headers, "x-user-roles", claims.roles(), ",");
        put_list(headers, "x-user-scopes", claims.scopes(), " ");
    }
    put(headers, "x-client-id", identity.client_id());
    put(headers, "x-forwarded-user", identity.user());
}

fn write_origin(headers: &mut HeaderMap, origin: Origin<'_>) {
    let source = origin.source.to_string();
    put(headers, "x-request-id", Some(origin.request_id));
    put(headers, "x-forwarded-for", Some(&source));
    put(headers, "x-forwarded-proto", Some("https"));
    put(headers, "x-forwarded-host", origin.host);
    // RFC 7239 section 6: an IPv6 address is quoted and bracketed.
    let node = match origin.source {
        IpAddr::V4(_) => source,
        IpAddr::V6(_) => format!("\"[{source}]\""),
    };
    let forwarded = match origin.host {
        Some(host) => format!("for={node};host=\"{host}\";proto=https"),
        None => format!("for={node};proto=https"),
    };
    put(headers, "forwarded", Some(&forwarded));
}

fn put_list(headers: &mut HeaderMap, name: &'static str, values: &[String], separator: &str) {
    if !values.is_empty() {
        put(headers, name, Some(&values.join(separator)));
    }
}

/// A value that cannot stand in a header (a control character in a claim) is left out, never altered:
/// an upstream must not read another identity than the one that was proven.
fn put(headers: &mut HeaderMap, name: &'static str, value: Option<&str>) {
    if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Whether a client's own request id may be kept: it is repeated in logs and in the answer.
pub fn is_request_id(value: &str) -> bool {
    (8..=64).contains(&value.len())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_fields_are_known_in_every_spelling() {
        for (name, known) in [
            ("x-user-id", true),
            ("x_user_id", true),
            ("x-user_id", true),
            ("x_forwarded_for", true),
            ("forwarded", true),
            ("x-real_ip", true),
            ("x-user-idx", false),
            ("x-user", false),
            ("x-custom", false),
            ("from", false),
            ("accept", false),
        ] {
            assert_eq!(is_identity(name), known, "{name}");
        }
    }

    #[test]
    fn a_clients_copies_go_and_what_was_proven_is_written() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-user-id", "root"),
            ("x_user_id", "root"),
            ("x-client-cn", "ceo"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("authorization", "Bearer secret"),
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("keep-alive", "300"),
            ("te", "gzip"),
            ("accept", "text/plain"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let origin = Origin {
            source: "2001:db8::7".parse().unwrap(),
            host: Some("a.example"),
            request_id: "r-1234567",
        };
        to_upstream(&mut headers, &Identity::anonymous(), origin);
        let mut left: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "accept: text/plain",
                "forwarded: for=\"[2001:db8::7]\";host=\"a.example\";proto=https",
                "x-auth-method: none",
                "x-forwarded-for: 2001:db8::7",
                "x-forwarded-host: a.example",
                "x-forwarded-proto: https",
                "x-request-id: r-1234567",
            ]
        );
    }

    #[test]
    fn a_request_id_is_short_and_plain() {
        for (value, good) in [
            ("abcdefgh", true),
            ("01J9-ab_c.d", true),
            ("short", false),
            ("with space", false),
            ("line\nbreak", false),
            (&"x".repeat(65), false),
        ] {
            assert_eq!(is_request_id(value), good, "{value}");
        }
    }
}
