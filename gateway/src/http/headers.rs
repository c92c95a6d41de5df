//! Which header fields cross the gateway, and which it writes itself.
//!
//! Towards the upstream: hop-by-hop fields go (RFC 9110 section 7.6.1), every field by which an
//! upstream could learn who is asking goes in any spelling, and then what was proven is written.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::policy::Permit;

/// Fields by which an upstream could learn who is asking or what is asked for, beside what was judged,
/// in their canonical spelling: lower case, `-` for every sign. The client's own never reach it.
const IDENTITY: [&str; 39] = [
    // What is written here.
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
    "forwarded",
    // What others write, for upstreams that were behind them before.
    "x-user",
    "x-username",
    "x-user-name",
    "x-email",
    "x-roles",
    "x-groups",
    "x-real-ip",
    "x-client-ip",
    "x-client-cert",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "true-client-ip",
    "cf-connecting-ip",
    "client-ip",
    "client-cert", // RFC 9440
    "client-cert-chain",
    "remote-user",
    "x-remote-user",
    "x-authenticated-user",
    "x-webauth-user",
    // What would make the upstream serve another path or method than the one that was judged.
    "x-original-url",
    "x-original-host",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    // CGI makes an environment variable of it that many clients obey.
    "proxy",
];

/// Beginnings of such names: everything that only proxies write.
const IDENTITY_PREFIXES: [&str; 4] =
    ["x-forwarded-", "x-auth-request-", "x-ssl-client-", "ssl-client-"];

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

/// Fields that have no place after a body (RFC 9110 section 6.5.1): they frame the message, route it,
/// say who asks, or say how the body is to be read.
const NOT_IN_TRAILERS: [HeaderName; 16] = [
    header::ACCEPT_ENCODING,
    header::AGE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::LOCATION,
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::TRAILER,
    header::WWW_AUTHENTICATE,
];

/// Leaves of a client's fields what crosses. What the upstream is told of the client comes to it by
/// [`super::introduction`].
pub fn to_upstream(headers: &mut HeaderMap, permit: &Permit<'_>) {
    let found = Found::among(headers);
    if found.is_hop_by_hop {
        let takes_trailers = takes_trailers(headers);
        remove_hop_by_hop(headers);
        if takes_trailers {
            // The one value that crosses, named in `Connection` because it is for the next hop only
            // (RFC 9110 section 10.1.4).
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    for name in found.doomed {
        headers.remove(name);
    }
    if found.is_authorized && !permit.route().pass_authorization {
        headers.remove(header::AUTHORIZATION);
    }
    if found.is_expecting {
        headers.remove(header::EXPECT);
    }
    if found.is_cookie {
        join_cookies(headers);
    }
    if found.is_announcing {
        announce_trailers(headers);
    }
}

/// What of a client's fields does not cross as it is: one look at each name, where most heads have
/// nothing of it, is cheaper than asking for each that might be there.
#[derive(Default)]
struct Found {
    is_hop_by_hop: bool,
    is_authorized: bool,
    is_expecting: bool,
    is_announcing: bool,
    is_cookie: bool,
    doomed: Vec<HeaderName>,
}

impl Found {
    fn among(headers: &HeaderMap) -> Found {
        let mut found = Found::default();
        for name in headers.keys() {
            if *name == header::AUTHORIZATION {
                found.is_authorized = true;
            } else if *name == header::EXPECT {
                found.is_expecting = true;
            } else if *name == header::TRAILER {
                found.is_announcing = true;
            } else if *name == header::COOKIE {
                found.is_cookie = true;
            } else if HOP_BY_HOP.contains(name) {
                found.is_hop_by_hop = true;
            } else if is_doomed(name.as_str()) {
                found.doomed.push(name.clone());
            }
        }
        found
    }
}

/// Makes an upstream's fields into those for the client.
pub fn to_client(status: StatusCode, headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    // Of all upgrades only this one gets here, see `upgrade`.
    if status == StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
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

/// Leaves in a client's trailer section what may stand there.
pub fn trailers_to_upstream(trailers: &mut HeaderMap) {
    remove_identity(trailers);
    trailers_to_client(trailers);
}

/// Leaves in an upstream's trailer section what may stand there.
pub fn trailers_to_client(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    for name in &NOT_IN_TRAILERS {
        trailers.remove(name);
    }
}

/// A client announces only those trailers that will be passed on.
fn announce_trailers(headers: &mut HeaderMap) {
    let announced = headers.get_all(header::TRAILER);
    let names: Vec<&str> = announced
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| {
            HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| {
                !is_identity(name.as_str())
                    && !HOP_BY_HOP.contains(&name)
                    && !NOT_IN_TRAILERS.contains(&name)
            })
        })
        .collect();
    match HeaderValue::from_str(&names.join(", ")) {
        Ok(names) if !names.is_empty() => headers.insert(header::TRAILER, names),
        _ => headers.remove(header::TRAILER),
    };
}

/// Whether the client takes trailers (RFC 9110 section 10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Over HTTP/2 and /3 a client may send cookies one by one; over HTTP/1.1 they are one field
/// (RFC 9113 section 8.2.3, RFC 9114 section 4.2.1).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    // What is joined of values is a value.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Over HTTP/2 there is none of them, and over HTTP/1.1 seldom.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    // `close` and `keep-alive` alone, which is nearly always, name no field.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| {
            !matches!(name.as_str(), "close" | "host" | "content-length" | "content-type")
        })
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// A name is compared in its canonical spelling: many upstreams read `X_User_Id` as `X-User-Id`, and
/// some make a `_` of every sign.
fn remove_identity(headers: &mut HeaderMap) {
    let doomed: Vec<HeaderName> =
        headers.keys().filter(|name| is_doomed(name.as_str())).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

fn is_doomed(name: &str) -> bool {
    is_identity(name) || is_framing_in_disguise(name)
}

/// Whether a field of that (lower-case) name is one of those that say where a message ends, to who
/// reads other signs as `-`. By its own name each has been judged.
pub fn is_framing_in_disguise(name: &str) -> bool {
    const FRAMING: [&str; 2] = ["transfer-encoding", "content-length"];
    let is_it = |known: &&str| {
        known.len() == name.len()
            && known.bytes().zip(name.bytes()).all(|(known, byte)| {
                byte == known || (known == b'-' && !byte.is_ascii_alphanumeric())
            })
    };
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    !is_plain && FRAMING.iter().any(is_it)
}

/// Whether a field of that (lower-case) name could tell an upstream who is asking, or for what.
pub fn is_identity(name: &str) -> bool {
    // Most of the usual names are told apart by their first byte.
    if !matches!(name.as_bytes().first(), Some(b'x' | b'f' | b'c' | b'p' | b'r' | b's' | b't')) {
        return false;
    }
    let begins = |known: &str| {
        known.len() <= name.len()
            && known.bytes().zip(name.bytes()).all(|(known, byte)| {
                byte == known || (known == b'-' && !byte.is_ascii_alphanumeric())
            })
    };
    IDENTITY.iter().any(|known| known.len() == name.len() && begins(known))
        || IDENTITY_PREFIXES.iter().any(|known| begins(known))
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
    use crate::{
        http::introduction::{Introductions, Origin},
        policy::{
            admit,
            authorize::Demands,
            limit::{Counting, Limiters},
            permit,
            route::Route,
        },
    };

    /// All that the upstream gets.
    fn forwarded(headers: &mut HeaderMap, permit: &Permit<'_>, origin: Origin<'_, '_>) {
        to_upstream(headers, permit);
        Introductions::default().of(permit, origin).write(headers);
    }

    #[test]
    fn identity_fields_are_known_in_every_spelling() {
        for (name, known) in [
            ("x-user-id", true),
            ("x_user_id", true),
            ("x-user_id", true),
            ("x_forwarded_for", true),
            ("forwarded", true),
            ("x-real_ip", true),
            ("x.user.id", true),
            ("x~user!id", true),
            ("x-forwarded-groups", true),
            ("x_forwarded-prefix", true),
            ("client_cert", true),
            ("x-http-method-override", true),
            ("x-user-idx", false),
            ("xauser-id", false),
            ("x-forwarded", false),
            ("cookie", false),
            ("content-type", false),
            ("range", false),
            ("proxy-x", false),
            ("x-custom", false),
            ("from", false),
            ("accept", false),
        ] {
            assert_eq!(is_identity(name), known, "{name}");
        }
    }

    #[test]
    fn what_says_where_a_message_ends_says_it_by_its_own_name() {
        for (name, disguised) in [
            ("transfer_encoding", true),
            ("content_length", true),
            ("content.length", true),
            ("content-length", false),
            ("transfer-encoding", false),
            ("content_type", false),
            ("content_lengths", false),
        ] {
            assert_eq!(is_framing_in_disguise(name), disguised, "{name}");
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
            ("connection", "Close ,X-Other"),
            ("x-other", "2"),
            ("trailer", "x-user-id"),
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
        permitted(false, |permit| forwarded(&mut headers, permit, origin));
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
    fn trailers_are_announced_and_passed_without_what_a_check_has_looked_at() {
        let origin = Origin { source: [192, 0, 2, 1].into(), host: None, request_id: "r-1234567" };
        for (te, trailer, expected_te, expected) in [
            ("trailers", "x-checksum, X_User_ID, te", Some("trailers"), Some("x-checksum")),
            ("gzip, Trailers;q=1", "host", None, None),
            ("gzip , TRAILERS", "a,b", Some("trailers"), Some("a, b")),
            ("gzip", "content-length", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("te", te.parse().unwrap());
            headers.insert("trailer", trailer.parse().unwrap());
            permitted(false, |permit| forwarded(&mut headers, permit, origin));
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(text("te"), expected_te, "{te}");
            assert_eq!(text("connection"), expected_te.map(|_| "te"), "{te}");
            assert_eq!(text("trailer"), expected, "{trailer}");
        }
        let mut trailers = HeaderMap::new();
        for name in ["x-checksum", "x_user_id", "content-length", "authorization", "te", "host"] {
            trailers.insert(HeaderName::from_static(name), "1".parse().unwrap());
        }
        trailers_to_upstream(&mut trailers);
        assert_eq!(trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-checksum"]);
    }

    #[test]
    fn cookies_become_one_field() {
        let origin = Origin { source: [192, 0, 2, 1].into(), host: None, request_id: "r-1234567" };
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "b=2; c=3", "d=\u{e9}"] {
            headers.append("cookie", HeaderValue::from_bytes(cookie.as_bytes()).unwrap());
        }
        permitted(false, |permit| forwarded(&mut headers, permit, origin));
        let cookies: Vec<&[u8]> =
            headers.get_all("cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d=\u{e9}".as_bytes()]);
    }

    /// A permit for nobody, on a public route.
    fn permitted(pass_authorization: bool, check: impl FnOnce(&Permit<'_>)) {
        let route = Route {
            name: "route".into(),
            index: 0,
            hosts: vec![],
            path: String::new(),
            methods: vec![],
            upstream: 0,
            demands: Demands::default(),
            pass_authorization,
            priority: crate::policy::route::Priority::Normal,
            limits: vec![],
        };
        let now = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        let limiters = Limiters::default();
        let counting = Counting {
            limiters: &limiters,
            address: [192, 0, 2, 1].into(),
            now: crate::time::monotonic(),
        };
        let arrived = counting.arrive(&route, false, &mut vec![]).unwrap();
        let admitted = admit(&route, &arrived, None, now).unwrap();
        check(&permit(admitted.join(None), &counting, &mut vec![]).unwrap());
    }

    #[test]
    fn the_authorization_goes_on_only_where_the_route_says_so() {
        for pass in [false, true] {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", "Bearer secret".parse().unwrap());
            let origin =
                Origin { source: [192, 0, 2, 1].into(), host: None, request_id: "r-1234567" };
            permitted(pass, |permit| forwarded(&mut headers, permit, origin));
            assert_eq!(headers.contains_key("authorization"), pass);
        }
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
