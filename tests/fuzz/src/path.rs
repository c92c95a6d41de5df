//! Request targets and hosts.

use gateway::policy::{facts::Facts, path::Path};
use http::{HeaderMap, HeaderValue, Method, Uri, header};

/// The target up to the first line feed, the `Host` after it.
pub(crate) fn path(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (target, host) = bytes.split_at(at);
    if let Ok(text) = std::str::from_utf8(target) {
        one_reading(text);
    }
    let Ok(uri) = Uri::try_from(target) else { return };
    let mut headers = HeaderMap::new();
    if let Some(host) = host.strip_prefix(b"\n")
        && let Ok(host) = HeaderValue::from_bytes(host)
    {
        headers.insert(header::HOST, host);
    }
    let Ok(facts) = Facts::read(&Method::GET, &uri, &headers, None) else { return };
    if let Some(host) = facts.host() {
        assert!(!host.is_empty());
        let plain = |byte: u8| {
            byte.is_ascii_digit() || byte.is_ascii_lowercase() || b"-._:".contains(&byte)
        };
        assert!(host.bytes().all(plain), "{host:?}");
    }
    if let Some(rewritten) = facts.path().rewritten() {
        let again: Uri = rewritten.parse().expect("what is forwarded is a target");
        assert_eq!(again.path(), rewritten);
    }
}

/// What is forwarded reads, with plain decoding, as what was judged, and holds nothing to resolve.
fn one_reading(text: &str) {
    let Ok(path) = Path::read(text) else { return };
    let forwarded = path.rewritten().unwrap_or(text);
    let mut decoded = Vec::new();
    let mut rest = forwarded.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let digits = std::str::from_utf8(&after[..2]).expect("two digits follow");
            decoded.push(u8::from_str_radix(digits, 16).expect("hexadecimal digits"));
            rest = &after[2..];
        } else {
            decoded.push(*byte);
        }
    }
    assert_eq!(decoded, path.decoded());
    assert!(!decoded.iter().any(|byte| byte.is_ascii_control() || *byte == b'\\'));
    if forwarded != "*" {
        let segments: Vec<&[u8]> = decoded[1..].split(|byte| *byte == b'/').collect();
        let (last, before) = segments.split_last().expect("there is always one");
        assert!(before.iter().all(|segment| !segment.is_empty()));
        assert!(segments.iter().all(|segment| *segment != b"." && *segment != b".."));
        assert!(!last.starts_with(b".;") && !last.starts_with(b"..;"));
        assert_eq!(forwarded.matches('/').count(), segments.len(), "no slash but those judged");
    }
}
