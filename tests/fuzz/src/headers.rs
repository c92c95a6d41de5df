//! Fields of a request on their way to the upstream.

use std::net::{IpAddr, Ipv4Addr};

use gateway::{
    http::{
        headers::{is_request_id, to_upstream},
        introduction::{Introductions, Origin},
    },
    policy::{
        admit,
        authorize::Demands,
        limit::{Counting, Limiters},
        permit,
        route::{Priority, Route},
    },
    time,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls_pki_types::UnixTime;

/// What an upstream must only hear from the gateway, as the contract lists it.
const OURS: [&str; 16] = [
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
];

/// What every field of the client says.
const FORGED: &str = "forged-by-the-client";

/// Each line is a field's name; each says [`FORGED`] but those that begin with `=`, which say what
/// stands before the name's end in `Connection`.
pub(crate) fn headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(100) {
        if let Some(named) = line.strip_prefix(b"=") {
            if let Ok(value) = HeaderValue::from_bytes(named) {
                headers.append("connection", value);
            }
        } else if let Ok(name) = HeaderName::from_bytes(line) {
            headers.append(name, HeaderValue::from_static(FORGED));
        }
    }
    let route = Route {
        name: "fuzz".into(),
        index: 0,
        hosts: Vec::new(),
        path: String::new(),
        methods: Vec::new(),
        upstream: 0,
        demands: Demands::default(),
        pass_authorization: false,
        priority: Priority::Normal,
        limits: Vec::new(),
    };
    let source = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let limiters = Limiters::new(&[], time::monotonic());
    let counting = Counting { limiters: &limiters, address: source, now: time::monotonic() };
    let mut verdicts = Vec::new();
    let arrived = counting.arrive(&route, false, &mut verdicts).unwrap();
    let epoch = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
    let admitted = admit(&route, &arrived, None, epoch).unwrap();
    let permit = permit(admitted.join(None), &counting, &mut verdicts).unwrap();
    let request_id = "request-1";
    assert!(is_request_id(request_id));
    let origin = Origin { source, host: Some("a.example"), request_id };
    to_upstream(&mut headers, &permit);
    Introductions::default().of(&permit, origin).write(&mut headers);
    for (name, value) in &headers {
        let canonical: String = name
            .as_str()
            .chars()
            .map(
                |letter| {
                    if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' }
                },
            )
            .collect();
        if OURS.contains(&canonical.as_str()) {
            assert_ne!(value, FORGED, "{name}");
            assert_eq!(name.as_str(), canonical, "written in one spelling only");
        }
        assert_ne!(name, "authorization");
        if name == "connection" {
            assert_eq!(value, "te", "all that is for the next hop is that it may send trailers");
        }
        assert_ne!(name, "transfer-encoding");
    }
    for name in
        ["x-request-id", "x-auth-method", "x-forwarded-for", "x-forwarded-proto", "forwarded"]
    {
        assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
    }
}
