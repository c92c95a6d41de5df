//! What an upstream is told of who asks: the proven identity and where the request comes from, as fields.
//!
//! It is the same for each request of a client over one connection, so it is put together once and kept
//! for those that follow. What was said of one is never said of another: it is found by the very pieces
//! of evidence that it was made of.

use std::{io::Write as _, net::IpAddr, ops::Range, rc::Rc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    identity::Identity,
    policy::{Permit, vouch},
};

/// Places that one client's introduction may be at; of more clients that meet there the one that was
/// made first gives way.
const WAYS: usize = 4;

/// At 1.5 KiB each all together are 384 KiB a worker, and as many clients that send request after request
/// at the same time keep theirs; of more some are introduced anew each time, as all were without this.
const SETS: usize = 64;

/// Octets of the lines of one that is kept: four times what they usually have. A host may be as long as
/// a head.
const KEPT_MAX_BYTES: usize = 2048;

/// What the connection and the request contribute to the forwarding fields.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'h, 'i> {
    /// The client's address.
    pub source: IpAddr,
    /// The host as the client named it.
    pub host: Option<&'h str>,
    /// The request's id.
    pub request_id: &'i str,
}

/// What an upstream is told of one client in each of its requests.
#[derive(Debug)]
struct Introduction {
    identity: Identity,
    source: IpAddr,
    host: Option<String>,
    /// [`vouch::who`] it is.
    who: Option<u64>,
    /// As lines of HTTP/1.1.
    lines: Bytes,
    /// The same: names, and values that are parts of the lines.
    fields: Vec<(HeaderName, HeaderValue)>,
}

/// What an upstream is told of a client with one of its requests. [`Introductions::of`] makes it of what a
/// permit proves.
#[derive(Clone, Debug)]
pub struct Introduced<'a> {
    introduction: Rc<Introduction>,
    request_id: &'a str,
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl Introduced<'_> {
    /// [`vouch::who`] was introduced.
    pub fn who(&self) -> Option<u64> {
        self.introduction.who
    }

    /// Writes it among fields of which none has those names.
    pub fn write(&self, headers: &mut HeaderMap) {
        let fields = &self.introduction.fields;
        // Once, for it grows by doubling and is sorted in anew each time.
        headers.reserve(fields.len() + 1);
        for (name, value) in fields {
            headers.insert(name, value.clone());
        }
        // A request's id is checked or ours, so it is a value.
        if let Ok(id) = HeaderValue::from_str(self.request_id) {
            headers.insert(REQUEST_ID, id);
        }
    }

    /// Writes it as lines of HTTP/1.1.
    pub fn write_lines(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(&self.introduction.lines);
        text.extend_from_slice(b"x-request-id: ");
        text.extend_from_slice(self.request_id.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
}

impl Introduction {
    fn new(identity: &Identity, origin: Origin<'_, '_>) -> Introduction {
        let mut fields = Fields::new();
        write_identity(&mut fields, identity);
        write_origin(&mut fields, origin);
        let (lines, fields) = fields.into_values();
        Introduction {
            identity: identity.clone(),
            source: origin.source,
            host: origin.host.map(str::to_owned),
            who: vouch::who(identity),
            lines,
            fields,
        }
    }

    fn is_of(&self, identity: &Identity, origin: Origin<'_, '_>) -> bool {
        self.identity.is_same(identity)
            && self.source == origin.source
            && self.host.as_deref() == origin.host
    }
}

/// Those introductions of one worker that are likely to be needed again.
#[derive(Debug, Default)]
pub struct Introductions {
    sets: Vec<Set>,
}

/// Where some clients meet.
#[derive(Debug, Default)]
struct Set {
    ways: [Option<Way>; WAYS],
    /// The one that gives way next.
    next: usize,
}

#[derive(Debug)]
struct Way {
    introduction: Rc<Introduction>,
    is_used: bool,
}

impl Introductions {
    /// What is to be said of a client with a request that it may make.
    pub fn of<'a>(&mut self, permit: &Permit<'_>, origin: Origin<'_, 'a>) -> Introduced<'a> {
        self.of_identity(permit.identity(), origin)
    }

    fn of_identity<'a>(&mut self, identity: &Identity, origin: Origin<'_, 'a>) -> Introduced<'a> {
        let request_id = origin.request_id;
        if self.sets.is_empty() {
            self.sets.resize_with(SETS, Set::default);
        }
        let mut set = self.sets.get_mut(place(identity, origin.source));
        if let Some(introduction) = set.as_mut().and_then(|set| set.find(identity, origin)) {
            return Introduced { introduction, request_id };
        }
        let introduction = Rc::new(Introduction::new(identity, origin));
        if introduction.lines.len() <= KEPT_MAX_BYTES
            && let Some(set) = set
        {
            set.keep(introduction.clone());
        }
        Introduced { introduction, request_id }
    }

    /// Forgets those that were not needed since this was called last: who has gone is not kept in memory.
    pub fn sweep(&mut self) {
        for way in self.sets.iter_mut().flat_map(|set| &mut set.ways) {
            if way.as_mut().is_some_and(|way| !std::mem::take(&mut way.is_used)) {
                *way = None;
            }
        }
    }
}

impl Set {
    fn find(&mut self, identity: &Identity, origin: Origin<'_, '_>) -> Option<Rc<Introduction>> {
        let mut ways = self.ways.iter_mut().flatten();
        let way = ways.find(|way| way.introduction.is_of(identity, origin))?;
        way.is_used = true;
        Some(way.introduction.clone())
    }

    fn keep(&mut self, introduction: Rc<Introduction>) {
        self.ways[self.next] = Some(Way { introduction, is_used: true });
        self.next = (self.next + 1) % WAYS;
    }
}

/// Which set is a client's.
fn place(identity: &Identity, source: IpAddr) -> usize {
    // The golden ratio's digits: whatever the step between two addresses is, they are spread.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let address = match source {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        // Its upper half is a network's.
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    };
    let spread = (identity.place() as u64 ^ address).wrapping_mul(SPREAD);
    (spread >> (u64::BITS - SETS.ilog2())) as usize
}

fn write_identity(fields: &mut Fields, identity: &Identity) {
    fields.put(const { HeaderName::from_static("x-auth-method") }, Some(identity.method()));
    if let Some(peer) = identity.peer() {
        fields.put(const { HeaderName::from_static("x-client-cn") }, peer.common_name());
        fields.put(const { HeaderName::from_static("x-client-serial") }, Some(peer.serial()));
        fields.put(const { HeaderName::from_static("x-client-verify") }, Some("SUCCESS"));
    }
    if let Some(claims) = identity.claims() {
        fields.put(const { HeaderName::from_static("x-user-id") }, claims.subject());
        fields.put(const { HeaderName::from_static("x-user-email") }, claims.email());
        let scopes = claims.scopes().iter().map(String::as_str);
        fields.put_list(const { HeaderName::from_static("x-user-scopes") }, scopes, " ");
    }
    fields.put(const { HeaderName::from_static("x-tenant-id") }, identity.tenant());
    fields.put_list(const { HeaderName::from_static("x-user-roles") }, identity.roles(), ",");
    fields.put(const { HeaderName::from_static("x-client-id") }, identity.client_id());
    fields.put(const { HeaderName::from_static("x-forwarded-user") }, identity.user());
}

/// Octets of the longest address: an IPv6 address with an IPv4 address at its end.
const ADDRESS_MAX_BYTES: usize = 45;

/// The address as text, which is kept in `room`.
fn address_text(address: IpAddr, room: &mut [u8; ADDRESS_MAX_BYTES]) -> &str {
    let mut rest = &mut room[..];
    // What does not fit does not exist.
    let _fits = write!(rest, "{address}");
    let left = rest.len();
    str::from_utf8(&room[..ADDRESS_MAX_BYTES - left]).unwrap_or_default()
}

fn write_origin(fields: &mut Fields, origin: Origin<'_, '_>) {
    let mut text = [0; ADDRESS_MAX_BYTES];
    let source = address_text(origin.source, &mut text);
    fields.put(const { HeaderName::from_static("x-forwarded-for") }, Some(source));
    fields.put(const { HeaderName::from_static("x-forwarded-proto") }, Some("https"));
    fields.put(const { HeaderName::from_static("x-forwarded-host") }, origin.host);
    // RFC 7239 section 6: an IPv6 address is quoted and bracketed.
    let [before, after] = match origin.source {
        IpAddr::V4(_) => ["for=", ""],
        IpAddr::V6(_) => ["for=\"[", "]\""],
    };
    let name = const { HeaderName::from_static("forwarded") };
    match origin.host {
        Some(host) => {
            let parts = [before, source, after, ";host=\"", host, "\";proto=https"];
            fields.put_parts(name, &parts);
        }
        None => fields.put_parts(name, &[before, source, after, ";proto=https"]),
    }
}

/// Fields that are written for the upstream, all lines in one piece of memory: values of their own would
/// cost a dozen allocations.
///
/// A value that cannot stand in a header is left out, never altered: an upstream must not read another
/// identity than the one that was proven.
#[derive(Debug, Default)]
struct Fields {
    text: Vec<u8>,
    /// Which part of the text is the value of which field.
    places: Vec<(HeaderName, Range<usize>)>,
}

impl Fields {
    /// With room for the usual ones.
    fn new() -> Fields {
        Fields { text: Vec::with_capacity(768), places: Vec::with_capacity(16) }
    }

    /// Begins a line; gives where it begins, and where its value does.
    fn begin(&mut self, name: &HeaderName) -> (usize, usize) {
        let begun = self.text.len();
        self.text.extend_from_slice(name.as_str().as_bytes());
        self.text.extend_from_slice(b": ");
        (begun, self.text.len())
    }

    fn end(&mut self, name: HeaderName, start: usize) {
        self.places.push((name, start..self.text.len()));
        self.text.extend_from_slice(b"\r\n");
    }

    fn put(&mut self, name: HeaderName, value: Option<&str>) {
        if let Some(value) = value {
            self.put_parts(name, &[value]);
        }
    }

    /// The parts make one value.
    fn put_parts(&mut self, name: HeaderName, parts: &[&str]) {
        if !parts.iter().all(|part| is_plain(part)) {
            return;
        }
        let (_, start) = self.begin(&name);
        for part in parts {
            self.text.extend_from_slice(part.as_bytes());
        }
        self.end(name, start);
    }

    /// An entry that would read as two (a role with a comma in it) is left out, as what cannot stand in
    /// a header is.
    fn put_list<'v>(
        &mut self,
        name: HeaderName,
        values: impl Iterator<Item = &'v str>,
        separator: &str,
    ) {
        let (begun, start) = self.begin(&name);
        let mut is_first = true;
        for value in values.filter(|value| is_plain(value) && !value.contains(separator)) {
            if !is_first {
                self.text.extend_from_slice(separator.as_bytes());
            }
            is_first = false;
            self.text.extend_from_slice(value.as_bytes());
        }
        if is_first {
            self.text.truncate(begun);
        } else {
            self.end(name, start);
        }
    }

    fn into_values(self) -> (Bytes, Vec<(HeaderName, HeaderValue)>) {
        let text = Bytes::from(self.text);
        let value = |(name, place)| {
            // Printable ASCII is a value.
            Some((name, HeaderValue::from_maybe_shared(text.slice(place)).ok()?))
        };
        let fields = self.places.into_iter().filter_map(value).collect();
        (text, fields)
    }
}

/// Printable ASCII only. Beyond it readers differ: some take the octets for Latin-1, and some that cut
/// characters to one octet would see a line break (RFC 9110 section 5.5).
fn is_plain(value: &str) -> bool {
    // Without a way out in between it is done for many octets at a time.
    value.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::identity::{Certified, certificate::Peer, principal::Principal, token::Claims};

    /// What an upstream is told, by those who know some clients already.
    fn told(by: &mut Introductions, identity: &Identity, origin: Origin<'_, '_>) -> Vec<String> {
        let (mut headers, mut lines) = (HeaderMap::new(), Vec::new());
        let introduced = by.of_identity(identity, origin);
        introduced.write(&mut headers);
        introduced.write_lines(&mut lines);
        let text =
            |(name, value): (_, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let mut told: Vec<String> = headers.iter().map(text).collect();
        told.sort();
        let lines = String::from_utf8(lines).unwrap();
        let mut lines: Vec<&str> = lines.split_terminator("\r\n").collect();
        lines.sort_unstable();
        assert_eq!(lines, told, "both ways the same is said");
        told
    }

    #[test]
    fn who_was_introduced_before_is_introduced_as_for_the_first_time() {
        let claims = |subject| Some(Arc::new(Claims::for_test(&json!({ "sub": subject }))));
        let (alice, bob) = (claims("alice"), claims("bob"));
        let peer = Arc::new(Peer::for_test("orders"));
        let owned = |name| {
            Some(Certified::new(
                peer.clone(),
                Ok(Arc::new(Principal::for_test(name, &[name], None))),
            ))
        };
        let of_others = Some(Certified::new(
            Arc::new(Peer::for_test("payments")),
            Ok(Arc::new(Principal::for_test("payments", &[], Some("acme")))),
        ));
        let identities = [
            Identity::anonymous(),
            Identity::new(None, alice.clone()),
            Identity::new(None, bob),
            Identity::new(owned("orders"), None),
            // The same certificate, whose owner has another name by now.
            Identity::new(owned("renamed"), None),
            Identity::new(owned("orders"), alice),
            Identity::new(of_others, None),
        ];
        let sources: [IpAddr; 3] =
            [[192, 0, 2, 1].into(), [192, 0, 2, 2].into(), "2001:db8::1".parse().unwrap()];
        let long = "a".repeat(KEPT_MAX_BYTES);
        let hosts = [None, Some("a.example"), Some("b.example:8443"), Some(long.as_str())];
        let mut known = Introductions::default();
        for round in 0..3 {
            for identity in &identities {
                for (source, host) in sources.iter().flat_map(|s| hosts.map(|host| (*s, host))) {
                    let request_id = &format!("request-{round}");
                    let origin = Origin { source, host, request_id };
                    let afresh = told(&mut Introductions::default(), identity, origin);
                    assert_eq!(told(&mut known, identity, origin), afresh);
                }
            }
        }
    }

    #[test]
    fn only_who_came_lately_and_says_little_is_kept() {
        let kept = |by: &Introductions| {
            by.sets.iter().flat_map(|set| &set.ways).filter(|way| way.is_some()).count()
        };
        let mut known = Introductions::default();
        let source = [192, 0, 2, 1].into();
        let long = "a".repeat(KEPT_MAX_BYTES);
        for (host, expected) in [("a.example", 1), ("a.example", 1), ("b.example", 2), (&long, 2)] {
            let origin = Origin { source, host: Some(host), request_id: "request-1" };
            told(&mut known, &Identity::anonymous(), origin);
            assert_eq!(kept(&known), expected, "after {}", &host[..9]);
        }
        for number in 0..100 {
            let host = format!("{number}.example");
            let origin = Origin { source, host: Some(&host), request_id: "request-1" };
            told(&mut known, &Identity::anonymous(), origin);
        }
        assert_eq!(kept(&known), WAYS, "all are nobody's from one address");
        for expected in [WAYS, 0] {
            known.sweep();
            assert_eq!(kept(&known), expected);
        }
    }

    #[test]
    fn no_value_reads_as_another() {
        let mut fields = Fields::new();
        let name = HeaderName::from_static;
        let roles = ["a", "b,admin", "c\r\nx", "d"];
        fields.put_list(name("x-user-roles"), roles.into_iter(), ",");
        fields.put_list(name("x-user-scopes"), ["read", "write all"].into_iter(), " ");
        fields.put_list(name("x-nothing"), ["a,b"].into_iter(), ",");
        fields.put(name("x-client-cn"), Some("M\u{fc}ller"));
        fields.put(name("x-user-id"), Some("a\r\nx-user-roles: admin"));
        let headers: HeaderMap = fields.into_values().1.into_iter().collect();
        assert!(!headers.contains_key("x-nothing"));
        assert_eq!(headers["x-user-roles"], "a,d");
        assert_eq!(headers["x-user-scopes"], "read");
        assert_eq!(headers.len(), 2);
    }
}
