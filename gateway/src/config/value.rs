//! The forms that values are written in: durations, rates, addresses, prefixes, names. Plain
//! functions from text to value.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    Balance, CrlExpired, Endpoint, IdpLost, LogFormat, Protocol, UpstreamProtocol, schema,
    section::{Refused, shown},
};
use crate::{
    fetch::Url,
    identity::{
        pattern::Pattern,
        principal::{NameSource, Template},
        token::Algorithm,
    },
    kernel::{Mode, Service, Transport},
    policy::{hours::Hours, limit, route::Priority},
};

/// A span of time that a setting may take, and why no other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between {
    /// The shortest.
    pub(super) min: Duration,
    /// The longest.
    pub(super) max: Duration,
    /// Ends the sentence "write one from … to …: ".
    pub(super) why: &'static str,
}

/// `250ms`, `30s`, `5m`, `1h`: digits and one unit.
pub(super) fn duration(text: &str) -> Result<Duration, Refused> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() || !matches!(unit, "ms" | "s" | "m" | "h") {
        let text = shown(text);
        return Err(Refused::bad(format!(
            "is {text}, which is no duration; write a number and one of ms, s, m, h, as in \"30s\""
        )));
    }
    humantime::parse_duration(text).map_err(|_| {
        let text = shown(text);
        Refused::bad(format!("is {text}, which is longer than time itself; write a shorter one"))
    })
}

/// A duration within bounds.
pub(super) fn duration_between(bounds: Between) -> impl Fn(&str) -> Result<Duration, Refused> {
    move |text| {
        let Between { min, max, why } = bounds;
        let duration = duration(text)?;
        if duration < min || duration > max {
            let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
            return Err(Refused::bad(format!("is {text}; write one from {min} to {max}: {why}")));
        }
        Ok(duration)
    }
}

/// A number of octets, as in `64KiB`: 1 KiB to 16 GiB, which is more than a second of the fastest
/// link there is.
pub(super) fn bytes(text: &str) -> Result<u64, Refused> {
    const BYTES_MAX: u64 = 16 << 30;
    let malformed = || {
        let text = shown(text);
        Refused::bad(format!(
            "is {text}, which is no number of octets; write it as in \"64KiB\", \"50MiB\", \"1GiB\""
        ))
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(malformed()),
    };
    let number: u64 = number.parse().map_err(|_| malformed())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err(Refused::bad(format!(
            "is {text}, which would let nothing through; write at least \"1KiB\""
        ))),
        Some(bytes) if bytes <= BYTES_MAX => Ok(bytes),
        _ => Err(Refused::bad(format!("is {text}; write at most \"16GiB\""))),
    }
}

/// A rate of octets, as in `50MiB/s`.
pub(super) fn bytes_per_s(text: &str) -> Result<u64, Refused> {
    let amount = text.strip_suffix("/s").ok_or_else(|| {
        let text = shown(text);
        Refused::bad(format!("is {text}, which is no rate of octets; write it as in \"50MiB/s\""))
    })?;
    bytes(amount)
}

/// `100/s`, `6000/m`, `10000/h`, as a number for each second. A rate that is not a whole number for
/// each second is refused, because it would have to be rounded.
pub(super) fn rate_per_s(text: &str) -> Result<u32, Refused> {
    /// One packet every ten nanoseconds: more than a 100 Gbit/s link carries from all sources
    /// together, at 148.8 million of the smallest frames.
    const RATE_MAX_PER_S: u64 = 100_000_000;
    let malformed = || {
        let text = shown(text);
        Refused::bad(format!(
            "is {text}, which is no rate; write a number for each second, minute or hour, as in \
             \"100/s\", \"6000/m\", \"36000/h\""
        ))
    };
    let (number, unit) = text.split_once('/').ok_or_else(malformed)?;
    let unit_s: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(malformed()),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let number: u64 = number.parse().map_err(|_| malformed())?;
    if number == 0 {
        return Err(Refused::bad(format!(
            "is {text}, which would let nothing through; write at least \"1/s\""
        )));
    }
    let per_s = number / unit_s;
    if !number.is_multiple_of(unit_s) {
        let (low, high) = (per_s.max(1), per_s.max(1) + u64::from(per_s > 0));
        let near = if low == high {
            format!("\"{low}/s\"")
        } else {
            format!("\"{low}/s\" or \"{high}/s\"")
        };
        return Err(Refused::bad(format!(
            "is {text}, which is no whole number for each second; write {near}"
        )));
    }
    match u32::try_from(per_s) {
        Ok(per_s) if u64::from(per_s) <= RATE_MAX_PER_S => Ok(per_s),
        _ => Err(Refused::bad(format!(
            "is {text}; write at most \"{RATE_MAX_PER_S}/s\", which no link exceeds"
        ))),
    }
}

/// `192.0.2.0/24`, `2001:db8::/32`, or one address. Bits beyond the prefix must be 0, because one
/// cannot know which of the two was mistyped.
pub(super) fn network(text: &str) -> Result<IpNet, Refused> {
    let written = shown(text);
    let network = parse_network(text).ok_or_else(|| {
        Refused::bad(format!(
            "has {written}, which is no address or prefix; write one as in \"192.0.2.0/24\" or \
             \"2001:db8::/32\""
        ))
    })?;
    let truncated = network.trunc();
    if network != truncated {
        return Err(Refused::bad(format!(
            "has {written}, which has bits beyond its prefix; write \"{truncated}\" for the network \
             or \"{}\" for the one address",
            network.addr()
        )));
    }
    if let IpAddr::V6(address) = network.addr()
        && let Some(mapped) = address.to_ipv4_mapped()
    {
        return Err(Refused::bad(format!(
            "has {written}, an IPv4 address in an IPv6 one; write it as \"{mapped}\""
        )));
    }
    Ok(network)
}

/// With the address as the standard library reads it: other readers take 010.0.0.0 for 10.0.0.0,
/// and yet others for 8.0.0.0.
fn parse_network(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| digits)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

/// `22/tcp`, `53/udp`.
pub(super) fn service(text: &str) -> Result<Service, Refused> {
    let malformed = || {
        let text = shown(text);
        Refused::bad(format!(
            "has {text}, which is no service; write it as in \"22/tcp\" or \"53/udp\""
        ))
    };
    let (port, transport) = text.split_once('/').ok_or_else(malformed)?;
    let transport = match transport {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return Err(malformed()),
    };
    Ok(Service { port: port_number(port).ok_or_else(malformed)?, transport })
}

/// 1 to 65535, digits only.
fn port_number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// An address and port to listen on.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Refused> {
    let written = shown(text);
    let address: SocketAddr = text.parse().map_err(|_| {
        let advice = match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
            Some(port) if port_number(port).is_some() => {
                format!("write \"[::]:{port}\" for every address of this machine")
            }
            _ if text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) => {
                format!("write \"[{text}]:8443\", with a port")
            }
            _ if text.parse::<IpAddr>().is_ok() => format!("write \"{text}:8443\", with a port"),
            _ => {
                "write an address and a port, as in \"[::]:8443\" or \"192.0.2.1:8443\"".to_owned()
            }
        };
        Refused::bad(format!("is {written}, which is no address to listen on; {advice}"))
    })?;
    if address.port() == 0 {
        return Err(Refused::bad(format!(
            "is {written}: port 0 would be another port in each worker; write a fixed one"
        )));
    }
    if address.ip().is_multicast() {
        return Err(Refused::bad(format!(
            "is {written}, which is a multicast address; write one of this machine's own"
        )));
    }
    Ok(address)
}

/// A name of something in the configuration: it becomes a label in metrics and logs, and an
/// argument on the command line.
pub(super) fn name(text: &str) -> Result<String, Refused> {
    /// Longer names make tables and dashboards unreadable.
    const NAME_MAX: usize = 64;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > NAME_MAX || !text.bytes().all(allowed) {
        let text = shown(text);
        return Err(Refused::bad(format!(
            "is {text}; write 1 to {NAME_MAX} of the characters A-Z a-z 0-9 - _ ."
        )));
    }
    Ok(text.to_owned())
}

/// Text that must say something: no control characters, no blanks around it.
pub(super) fn words(text: &str) -> Result<String, Refused> {
    if text.is_empty() || text.trim() != text || text.chars().any(char::is_control) {
        let text = shown(text);
        return Err(Refused::bad(format!(
            "is {text}; write something without control characters and blanks around it"
        )));
    }
    Ok(text.to_owned())
}

/// A path in the file system, as written.
pub(super) fn path(text: &str) -> Result<std::path::PathBuf, Refused> {
    if text.is_empty() || text.contains('\0') {
        let text = shown(text);
        return Err(Refused::bad(format!("is {text}, which names no file; write its path")));
    }
    Ok(text.into())
}

/// A path that begins at the root.
pub(super) fn absolute_path(text: &str) -> Result<std::path::PathBuf, Refused> {
    let path = path(text)?;
    if !path.is_absolute() {
        let text = shown(text);
        return Err(Refused::bad(format!("is {text}; write the whole path, beginning with /")));
    }
    Ok(path)
}

/// Name of a network interface (Linux `dev_valid_name`: at most 15 bytes, no slash, colon or
/// blank).
pub(super) fn interface(text: &str) -> Result<String, Refused> {
    let valid = (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'));
    if !valid {
        let text = shown(text);
        return Err(Refused::bad(format!(
            "has {text}, which is no name of an interface; write it as `ip link` shows it"
        )));
    }
    Ok(text.to_owned())
}

/// A host name in lower case, or an address in its one canonical form without brackets; without a
/// port (RFC 1123 section 2.1, and `_`, which names of services carry).
pub(super) fn host(text: &str) -> Result<String, Refused> {
    let written = shown(text);
    let host = text.to_ascii_lowercase();
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Ok(address) = bracketed.unwrap_or(&host).parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if let Some((name, port)) = host.rsplit_once(':')
        && port_number(port).is_some()
        && let Ok(name) = self::host(name)
    {
        return Err(Refused::bad(format!("has {written}; leave the port out: \"{name}\"")));
    }
    if host.starts_with("*.") {
        return Err(Refused::not_yet(
            format_args!("{written}, a pattern of host names"),
            "write each host name out",
        ));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // Digits and dots alone are a mistyped address, not a name (256.1.1.1, 010.1.1.1).
    let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if host.len() > 253 || numeric || !host.split('.').all(label) {
        return Err(Refused::bad(format!(
            "has {written}, which is no host name; write it as in \"api.example.com\""
        )));
    }
    Ok(host)
}

/// `http://host:port` or `https://host:port`; the port defaults to 80 or 443.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Refused> {
    let written = shown(text);
    let malformed = |what: &str| {
        Refused::bad(format!("has {written}: {what}; write it as in \"http://127.0.0.1:9001\""))
    };
    let is_tls = text.starts_with("https://");
    let default_port = if is_tls { "443" } else { "80" };
    let rest = text.strip_prefix(if is_tls { "https://" } else { "http://" });
    let rest = rest.ok_or_else(|| malformed("a server begins with http:// or https://"))?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(malformed("a server has no path, the request brings its own"));
    }
    if authority.contains('@') {
        return Err(malformed("a server has no user name or password"));
    }
    let (host_text, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) =
                bracketed.split_once(']').ok_or_else(|| malformed("the ] is missing"))?;
            let address: Ipv6Addr =
                address.parse().map_err(|_| malformed("no IPv6 address is between [ and ]"))?;
            let port = match after {
                "" => Some(default_port),
                after => after.strip_prefix(':'),
            };
            (address.to_string(), port.ok_or_else(|| malformed("after ] comes : and a port"))?)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host.to_owned(), port),
            None => (authority.to_owned(), default_port),
        },
    };
    let port =
        port_number(port).ok_or_else(|| malformed("the port is no number from 1 to 65535"))?;
    let host = host(&host_text).map_err(|_| malformed("this is no host name or address"))?;
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err(malformed("nobody can connect to this address"));
    }
    Ok(Endpoint { host, port, is_tls })
}

/// What a server is asked for beside the requests: path and query.
pub(super) fn probe_path(text: &str) -> Result<String, Refused> {
    let parsed = text.parse::<http::uri::PathAndQuery>();
    // What it was taken for must be what was written.
    match parsed {
        Ok(target) if target.as_str() == text && text.starts_with('/') => Ok(text.to_owned()),
        _ => Err(Refused::bad(format!(
            "is {}, which is no path; write it as in \"/health\"",
            shown(text)
        ))),
    }
}

/// `protocol` of an upstream.
pub(super) fn upstream_protocol(text: &str) -> Result<UpstreamProtocol, Refused> {
    let words = [
        ("auto", UpstreamProtocol::Auto),
        ("http/1.1", UpstreamProtocol::Http1),
        ("h2", UpstreamProtocol::Http2),
    ];
    word(text, &words, &[], "")
}

/// `balance` of an upstream.
pub(super) fn balance(text: &str) -> Result<Balance, Refused> {
    let words =
        [("round_robin", Balance::RoundRobin), ("least_connections", Balance::LeastConnections)];
    word(text, &words, &[], "")
}

/// A whole-segment prefix of request paths. Only paths in the one form that requests are compared
/// in: no empty, `.` or `..` segment, nothing percent-encoded, no slash at the end.
pub(super) fn route_path(text: &str) -> Result<String, Refused> {
    let written = shown(text);
    if text == "/" {
        return Ok(text.to_owned());
    }
    let Some(segments) = text.strip_prefix('/') else {
        return Err(Refused::bad(format!("is {written}; begin it with /")));
    };
    if let Some(shorter) = text.strip_suffix('/') {
        return Err(Refused::bad(format!(
            "is {written}; write {shorter:?}, which is this path and everything below it"
        )));
    }
    let character = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) // RFC 3986 pchar
    };
    for segment in segments.split('/') {
        if segment.is_empty() || segment == "." || segment == ".." {
            return Err(Refused::bad(format!(
                "is {written}; leave out empty segments, . and .., no request is compared with them"
            )));
        }
        if !segment.bytes().all(character) {
            return Err(Refused::bad(format!(
                "is {written}; write letters, digits and -._~!$&'()*+,;=:@ between slashes: no query, \
                 no blank, nothing percent-encoded"
            )));
        }
    }
    Ok(text.to_owned())
}

/// A request method (RFC 9110 section 9.1); case matters.
pub(super) fn method(text: &str) -> Result<http::Method, Refused> {
    /// Of the longest registered method there are 17 letters (`UPDATEREDIRECTREF`).
    const METHOD_MAX: usize = 32;
    let written = shown(text);
    if text == "CONNECT" {
        return Err(Refused::bad("has \"CONNECT\", which asks for a tunnel; take it out"));
    }
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let upper = text.to_ascii_uppercase();
        return Err(Refused::bad(format!("has {written}; methods are upper-case: {upper:?}")));
    }
    if text.len() > METHOD_MAX {
        return Err(Refused::bad(format!("has {written}, which no method is as long as")));
    }
    http::Method::from_bytes(text.as_bytes())
        .map_err(|_| Refused::bad(format!("has {written}, which is no method; write \"GET\"")))
}

/// A scope (RFC 6749 section 3.3): printable ASCII without blank, `"` and `\`.
pub(super) fn scope(text: &str) -> Result<String, Refused> {
    let valid = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if text.is_empty() || !text.bytes().all(valid) {
        let text = shown(text);
        return Err(Refused::bad(format!(
            "has {text}, which is no scope; write one scope an entry, without blanks, as in \
             [\"read:orders\", \"write:orders\"]"
        )));
    }
    Ok(text.to_owned())
}

/// One of a closed list of words.
fn word<T: Copy>(
    text: &str,
    words: &[(&str, T)],
    later: &[&str],
    advice: &str,
) -> Result<T, Refused> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let written = shown(text);
    if later.contains(&text) {
        return Err(Refused::not_yet(written, advice));
    }
    let names = || words.iter().map(|(word, _)| *word);
    let all = names().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
    Err(Refused::bad(match schema::nearest(text, names()) {
        Some(near) if words.len() > 1 => {
            format!("is {written}; did you mean {near:?}? It takes {all}")
        }
        _ => format!("is {written}; write {all}"),
    }))
}

/// `key` of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitKey {
    /// The client.
    ClientId,
    /// The certificate's principal.
    Principal,
    /// The address.
    Source,
    /// The tenant.
    Tenant,
    /// The route.
    Route,
}

/// `key` of a limit.
pub(super) fn limit_key(text: &str) -> Result<LimitKey, Refused> {
    let words = [
        ("client_id", LimitKey::ClientId),
        ("principal", LimitKey::Principal),
        ("source", LimitKey::Source),
        ("tenant", LimitKey::Tenant),
        ("route", LimitKey::Route),
    ];
    word(text, &words, &[], "")
}

/// `mode` of a limit.
pub(super) fn limit_mode(text: &str) -> Result<limit::Mode, Refused> {
    word(text, &[("enforce", limit::Mode::Enforce), ("observe", limit::Mode::Observe)], &[], "")
}

/// A rate of requests: `100/s`, `6000/m`, `10000/h`.
pub(super) fn request_rate(text: &str) -> Result<(u32, limit::Unit), Refused> {
    /// More than this machine can serve; it keeps one request's share of time exact to a thousandth.
    const RATE_MAX_PER_S: u32 = 1_000_000;
    let malformed = || {
        let text = shown(text);
        Refused::bad(format!(
            "has {text}, which is no rate; write a number for each second, minute or hour, as in \
             \"100/s\", \"6000/m\", \"10000/h\""
        ))
    };
    let (number, letter) = text.split_once('/').ok_or_else(malformed)?;
    let units = [limit::Unit::Second, limit::Unit::Minute, limit::Unit::Hour];
    let unit = units.into_iter().find(|unit| letter.chars().eq([unit.letter()]));
    let unit = unit.ok_or_else(malformed)?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let count: u64 = number.parse().map_err(|_| malformed())?;
    match u32::try_from(count) {
        Ok(0) => Err(Refused::bad(format!(
            "has {text:?}, which would let nothing through; write at least \"1/{}\"",
            unit.letter()
        ))),
        Ok(count) if count / unit.seconds() <= RATE_MAX_PER_S => Ok((count, unit)),
        _ => Err(Refused::bad(format!("has {text:?}; write at most \"{RATE_MAX_PER_S}/s\""))),
    }
}

/// One of a listener's `protocols`.
pub(super) fn protocol(text: &str) -> Result<Protocol, Refused> {
    let words = [("h2", Protocol::Http2), ("http/1.1", Protocol::Http1)];
    word(text, &words, &["h3"], "leave it out of the list")
}

/// `client_auth`.
/// `proxy_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyProtocol {
    /// Clients connect themselves.
    Off,
    /// Only proxies connect, each with a header.
    Required,
}

/// `off`, `required`.
pub(super) fn proxy_protocol(text: &str) -> Result<ProxyProtocol, Refused> {
    let words = [("off", ProxyProtocol::Off), ("required", ProxyProtocol::Required)];
    word(text, &words, &[], "")
}

pub(super) fn client_auth(text: &str) -> Result<ClientAuth, Refused> {
    let words = [
        ("required", ClientAuth::Required),
        ("optional", ClientAuth::Optional),
        ("off", ClientAuth::Off),
    ];
    word(text, &words, &[], "")
}

/// `client_auth`: what is asked of clients in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuth {
    /// No certificate, no handshake.
    Required,
    /// A certificate that is sent must be good; none is the routes' business.
    Optional,
    /// None is asked for.
    Off,
}

/// A name in `names`, in lower case: a host name, or `*.` and one for every name of one label more.
/// Handshakes never name addresses (RFC 6066 section 3).
pub(super) fn server_name(text: &str) -> Result<String, Refused> {
    let lower = text.to_ascii_lowercase();
    let (star, name) = match lower.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", lower.as_str()),
    };
    if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(Refused::bad(format!(
            "has {}, an address: clients name hosts only; the listener's own certificate is for \
             them",
            shown(text)
        )));
    }
    host(name).map(|name| format!("{star}{name}"))
}

/// `crl_expired`.
pub(super) fn crl_expired(text: &str) -> Result<CrlExpired, Refused> {
    word(text, &[("deny", CrlExpired::Deny), ("allow", CrlExpired::Allow)], &[], "")
}

/// One of an issuer's `algorithms`.
pub(super) fn algorithm(text: &str) -> Result<Algorithm, Refused> {
    if let Some(algorithm) = Algorithm::from_name(text) {
        return Ok(algorithm);
    }
    let advice = match text {
        "none" => "which proves nothing; take it out".to_owned(),
        "HS384" | "HS512" | "ES512" | "ES256K" | "Ed448" => {
            "which is not among those that are verified here; take it out".to_owned()
        }
        _ => format!("which is none of {}", Algorithm::ALL.map(Algorithm::name).join(", ")),
    };
    Err(Refused::bad(format!("has {}, {advice}", shown(text))))
}

/// `jwks_url` or `discovery_url`.
pub(super) fn url(text: &str) -> Result<Url, Refused> {
    Url::parse(text).map_err(|why| {
        let text = shown(text);
        Refused::bad(format!("is {text}: {why}; write it as in \"https://idp.example.com/keys\""))
    })
}

/// `idp_lost`.
pub(super) fn idp_lost(text: &str) -> Result<IdpLost, Refused> {
    word(text, &[("available", IdpLost::Available), ("strict", IdpLost::Strict)], &[], "")
}

/// Address and port of a server.
pub(super) fn server_address(text: &str) -> Result<SocketAddr, Refused> {
    let address = text.parse().ok().filter(|address: &SocketAddr| {
        address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
    });
    address.ok_or_else(|| {
        let text = shown(text);
        Refused::bad(format!(
            "has {text}, which is no address of a server; write it with its port, as in \
             \"192.0.2.1:443\""
        ))
    })
}

/// `[xdp].mode`.
pub(super) fn xdp_mode(text: &str) -> Result<Mode, Refused> {
    let words = [("auto", Mode::Auto), ("native", Mode::Native), ("generic", Mode::Generic)];
    word(text, &words, &[], "")
}

/// `[log].format`.
pub(super) fn log_format(text: &str) -> Result<LogFormat, Refused> {
    word(text, &[("json", LogFormat::Json), ("text", LogFormat::Text)], &[], "")
}

/// One of a route's `require`.
pub(super) fn proof(text: &str) -> Result<Proof, Refused> {
    word(text, &[("certificate", Proof::Certificate), ("token", Proof::Token)], &[], "")
}

/// A route's `priority`.
pub(super) fn priority(text: &str) -> Result<Priority, Refused> {
    word(text, &[("normal", Priority::Normal), ("low", Priority::Low)], &[], "")
}

/// An identity rule's `from`.
pub(super) fn name_source(text: &str) -> Result<NameSource, Refused> {
    NameSource::parse(text).ok_or_else(|| {
        let text = shown(text);
        Refused::bad(format!(
            "is {text}; write san_uri, san_dns, subject_cn, issuer_serial, upn, sha256, or oid: and an \
             object identifier, as in \"oid:2.5.4.11\""
        ))
    })
}

/// Names with one `*` in them at most.
pub(super) fn pattern(text: &str) -> Result<Pattern, Refused> {
    let text = words(text)?;
    Pattern::parse(&text).map_err(|error| {
        let text = shown(&text);
        Refused::bad(format!(
            "has {text} with {error}; one stands for any characters, / among them"
        ))
    })
}

/// A text with `{value}` and the like in it.
pub(super) fn template(text: &str) -> Result<Template, Refused> {
    let text = words(text)?;
    Template::parse(&text).map_err(|error| {
        let text = shown(&text);
        Refused::bad(format!("is {text}, in which {error}; write it as in \"{{value}}\""))
    })
}

/// A role: it is told to upstreams in a list with commas.
pub(super) fn role(text: &str) -> Result<String, Refused> {
    let text = words(text)?;
    if text.contains(',') || !text.is_ascii() {
        let text = shown(&text);
        return Err(Refused::bad(format!(
            "has {text}; write one role an entry, in ASCII and without commas, as in [\"admin\"]"
        )));
    }
    Ok(text)
}

/// A route's `hours`; an empty text is none.
pub(super) fn hours(text: &str) -> Result<Option<Hours>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    Hours::parse(text).map(Some).map_err(|error| Refused::bad(error.to_string()))
}

/// What a route may require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A client certificate.
    Certificate,
    /// A bearer token.
    Token,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::problem::Kind, *};

    /// A row of a table: the text, and the value or what the refusal says.
    fn check<T: PartialEq + std::fmt::Debug>(
        parse: impl Fn(&str) -> Result<T, Refused>,
        rows: &[(&str, Result<T, &str>)],
    ) {
        for (text, expected) in rows {
            let result = parse(text);
            let result = result.as_ref().map_err(|refused| refused.text.as_str());
            assert_eq!(result, expected.as_ref().map_err(|text| *text), "{text:?}");
        }
    }

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("250ms", Some(ms(250))),
            ("0s", Some(ms(0))),
            ("30s", Some(ms(30_000))),
            ("5m", Some(ms(300_000))),
            ("1h", Some(ms(3_600_000))),
            ("24h", Some(ms(86_400_000))),
            ("", None),
            ("s", None),
            ("30", None),
            ("30 s", None),
            (" 30s", None),
            ("30S", None),
            ("30sec", None),
            ("1d", None),
            ("1h30m", None),
            ("1.5h", None),
            ("-1s", None),
            ("+1s", None),
            ("1s ", None),
            ("٣s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(duration(text).ok(), expected, "{text:?}");
        }
        let bounds = Between { min: ms(1_000), max: ms(60_000), why: "because" };
        check(
            duration_between(bounds),
            &[
                ("1s", Ok(ms(1_000))),
                ("1m", Ok(ms(60_000))),
                ("999ms", Err("is 999ms; write one from 1s to 1m: because")),
                ("61s", Err("is 61s; write one from 1s to 1m: because")),
                (
                    "1 minute",
                    Err("is \"1 minute\", which is no duration; write a number and one of ms, s, \
                         m, h, as in \"30s\""),
                ),
            ],
        );
    }

    #[test]
    fn octets() {
        const MALFORMED: &str = ", which is no number of octets; write it as in \"64KiB\", \
                                 \"50MiB\", \"1GiB\"";
        check(
            bytes,
            &[
                ("1KiB", Ok(1024)),
                ("64MiB", Ok(64 << 20)),
                ("16GiB", Ok(16 << 30)),
                ("17179869185KiB", Err("is 17179869185KiB; write at most \"16GiB\"")),
                ("17GiB", Err("is 17GiB; write at most \"16GiB\"")),
                ("0KiB", Err("is 0KiB, which would let nothing through; write at least \"1KiB\"")),
                ("64", Err(&format!("is \"64\"{MALFORMED}"))),
                ("64MB", Err(&format!("is \"64MB\"{MALFORMED}"))),
                ("+1KiB", Err(&format!("is \"+1KiB\"{MALFORMED}"))),
                ("KiB", Err(&format!("is \"KiB\"{MALFORMED}"))),
            ],
        );
        let rate = ", which is no rate of octets; write it as in \"50MiB/s\"";
        check(
            bytes_per_s,
            &[
                ("50MiB/s", Ok(50 << 20)),
                ("50MiB", Err(&format!("is \"50MiB\"{rate}"))),
                ("50MiB/m", Err(&format!("is \"50MiB/m\"{rate}"))),
                ("50/s", Err(&format!("is \"50\"{MALFORMED}"))),
            ],
        );
    }

    #[test]
    fn rates() {
        const MALFORMED: &str = ", which is no rate; write a number for each second, minute or \
                                 hour, as in \"100/s\", \"6000/m\", \"36000/h\"";
        check(
            rate_per_s,
            &[
                ("1/s", Ok(1)),
                ("100/s", Ok(100)),
                ("6000/m", Ok(100)),
                ("36000/h", Ok(10)),
                ("100000000/s", Ok(100_000_000)),
                ("0/s", Err("is 0/s, which would let nothing through; write at least \"1/s\"")),
                (
                    "10000/h",
                    Err("is 10000/h, which is no whole number for each second; write \"2/s\" or \
                         \"3/s\""),
                ),
                ("10/m", Err("is 10/m, which is no whole number for each second; write \"1/s\"")),
                (
                    "100000001/s",
                    Err("is 100000001/s; write at most \"100000000/s\", which no link exceeds"),
                ),
                ("100", Err(&format!("is \"100\"{MALFORMED}"))),
                ("100/d", Err(&format!("is \"100/d\"{MALFORMED}"))),
                ("/s", Err(&format!("is \"/s\"{MALFORMED}"))),
                ("+1/s", Err(&format!("is \"+1/s\"{MALFORMED}"))),
                ("1_000/s", Err(&format!("is \"1_000/s\"{MALFORMED}"))),
                (
                    "99999999999999999999/s",
                    Err(&format!("is \"99999999999999999999/s\"{MALFORMED}")),
                ),
            ],
        );
    }

    #[test]
    fn networks() {
        for text in ["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0", "10.1.2.3/32"] {
            assert_eq!(network(text).map(|network| network.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(network("10.1.2.3"), network("10.1.2.3/32"));
        assert_eq!(network("::1"), network("::1/128"));
        check(
            network,
            &[
                (
                    "10.0.0.1/8",
                    Err("has \"10.0.0.1/8\", which has bits beyond its prefix; write \
                         \"10.0.0.0/8\" for the network or \"10.0.0.1\" for the one address"),
                ),
                (
                    "::ffff:192.0.2.1",
                    Err("has \"::ffff:192.0.2.1\", an IPv4 address in an IPv6 one; write it as \
                         \"192.0.2.1\""),
                ),
            ],
        );
        for text in
            ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "256.0.0.0/8", "010.0.0.0/8", "host"]
        {
            assert_eq!(
                network(text).unwrap_err().text,
                format!(
                    "has {text:?}, which is no address or prefix; write one as in \
                     \"192.0.2.0/24\" or \"2001:db8::/32\""
                )
            );
        }
    }

    #[test]
    fn services_and_ports() {
        let service_of = |port, transport| Some(Service { port, transport });
        for (text, expected) in [
            ("22/tcp", service_of(22, Transport::Tcp)),
            ("65535/udp", service_of(65535, Transport::Udp)),
            ("22", None),
            ("0/tcp", None),
            ("65536/tcp", None),
            ("22/sctp", None),
            ("22/TCP", None),
            ("ssh/tcp", None),
            ("+22/tcp", None),
            ("/tcp", None),
        ] {
            assert_eq!(service(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        for text in ["[::]:8443", "0.0.0.0:443", "192.0.2.1:1", "[fe80::1%3]:443"] {
            assert_eq!(socket_address(text).map(|a| a.to_string()), Ok(text.to_owned()));
        }
        let any = "write an address and a port, as in \"[::]:8443\" or \"192.0.2.1:8443\"";
        let all = "write \"[::]:443\" for every address of this machine";
        for (text, advice) in [
            (":443", all),
            ("*:443", all),
            ("192.0.2.1", "write \"192.0.2.1:8443\", with a port"),
            ("::1", "write \"[::1]:8443\", with a port"),
            ("localhost:443", any),
            ("443", any),
            ("", any),
            ("192.0.2.1:99999", any),
        ] {
            let expected = format!("is {text:?}, which is no address to listen on; {advice}");
            assert_eq!(socket_address(text).unwrap_err().text, expected);
        }
        check(
            socket_address,
            &[
                (
                    "[::]:0",
                    Err("is \"[::]:0\": port 0 would be another port in each worker; write a \
                         fixed one"),
                ),
                (
                    "224.0.0.1:443",
                    Err("is \"224.0.0.1:443\", which is a multicast address; write one of this \
                         machine's own"),
                ),
            ],
        );
    }

    #[test]
    fn names_words_paths_and_interfaces() {
        let long = "x".repeat(65);
        for (text, valid) in [
            ("edge", true),
            ("a-b_c.1", true),
            ("", false),
            ("a b", false),
            ("ä", false),
            (&long, false),
        ] {
            assert_eq!(name(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in
            [("https://idp", true), ("two words", true), ("", false), (" a", false), ("a\n", false)]
        {
            assert_eq!(words(text).is_ok(), valid, "{text}");
        }
        for (text, relative, absolute) in [
            ("tls/a.pem", true, false),
            ("/a", true, true),
            ("", false, false),
            ("/a\0", false, false),
        ] {
            assert_eq!((path(text).is_ok(), absolute_path(text).is_ok()), (relative, absolute));
        }
        for (text, valid) in [
            ("eth0", true),
            ("enp0s31f6.100", true),
            ("fifteen-letters", true),
            ("sixteen-letters-", false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("eth0:1", false),
            ("a b", false),
        ] {
            assert_eq!(interface(text).is_ok(), valid, "{text}");
        }
    }

    #[test]
    fn hosts() {
        let owned = |text: &str| Ok(text.to_owned());
        check(
            host,
            &[
                ("API.Example.com", owned("api.example.com")),
                ("localhost", owned("localhost")),
                ("_dmarc.example", owned("_dmarc.example")),
                ("192.0.2.1", owned("192.0.2.1")),
                ("[2001:DB8:0::1]", owned("2001:db8::1")),
                ("2001:db8::1", owned("2001:db8::1")),
                (
                    "example.com:443",
                    Err("has \"example.com:443\"; leave the port out: \"example.com\""),
                ),
                (
                    "*.example.com",
                    Err(
                        "not supported yet: \"*.example.com\", a pattern of host names; write each \
                         host name out",
                    ),
                ),
            ],
        );
        for (text, expected) in [
            ("API.Example.com", Some("api.example.com")),
            ("*.Example.com", Some("*.example.com")),
            ("*", None),
            ("*.*.example.com", None),
            ("a.*.example.com", None),
            ("192.0.2.1", None),
            ("[::1]", None),
            ("*.192.0.2.1", None),
            ("", None),
        ] {
            assert_eq!(server_name(text).ok().as_deref(), expected, "{text}");
        }
        let label = "a".repeat(64);
        let name = ["a"; 128].join(".");
        for text in [
            "",
            ".",
            "a..b",
            "a.",
            "-a",
            "a-",
            "a b",
            "ö.example",
            "256.1.1.1",
            "010.1.1.1",
            "[::1",
            &label,
            &name,
        ] {
            let Refused { kind, text: said } = host(text).unwrap_err();
            assert_eq!(kind, Kind::BadValue, "{text}");
            assert!(said.ends_with("which is no host name; write it as in \"api.example.com\""));
        }
    }

    #[test]
    fn servers() {
        let to = |host: &str, port| Ok(Endpoint { host: host.to_owned(), port, is_tls: false });
        let secure = |host: &str, port| Ok(Endpoint { host: host.to_owned(), port, is_tls: true });
        let refused = |text: &str, why: &str| {
            format!("has {text:?}: {why}; write it as in \"http://127.0.0.1:9001\"")
        };
        check(
            endpoint,
            &[
                ("http://127.0.0.1:9001", to("127.0.0.1", 9001)),
                ("http://127.0.0.1:9001/", to("127.0.0.1", 9001)),
                ("http://[::1]:80", to("::1", 80)),
                ("http://[::1]", to("::1", 80)),
                ("http://Orders.internal", to("orders.internal", 80)),
                ("https://orders.internal", secure("orders.internal", 443)),
                ("https://[::1]", secure("::1", 443)),
                ("https://192.0.2.1:8443", secure("192.0.2.1", 8443)),
            ],
        );
        for (text, why) in [
            ("127.0.0.1:9001", "a server begins with http:// or https://"),
            ("HTTP://127.0.0.1", "a server begins with http:// or https://"),
            ("http://", "this is no host name or address"),
            ("http://a b", "this is no host name or address"),
            ("http://256.1.1.1", "this is no host name or address"),
            ("http://a/b", "a server has no path, the request brings its own"),
            ("http://a?b", "a server has no path, the request brings its own"),
            ("http://u:p@a", "a server has no user name or password"),
            ("http://a:0", "the port is no number from 1 to 65535"),
            ("http://a:", "the port is no number from 1 to 65535"),
            ("http://::1:80", "the port is no number from 1 to 65535"),
            ("http://[::1", "the ] is missing"),
            ("http://[a]", "no IPv6 address is between [ and ]"),
            ("http://[::1]80", "after ] comes : and a port"),
            ("http://0.0.0.0:80", "nobody can connect to this address"),
        ] {
            assert_eq!(endpoint(text).unwrap_err().text, refused(text, why));
        }
    }

    #[test]
    fn paths_of_routes() {
        for (text, valid) in [
            ("/", true),
            ("/orders", true),
            ("/v1/orders:all/~me@home", true),
            ("", false),
            ("orders", false),
            ("/orders/", false),
            ("//", false),
            ("/a//b", false),
            ("/a/../b", false),
            ("/.", false),
            ("/a?b", false),
            ("/a#b", false),
            ("/a%2Fb", false),
            ("/a b", false),
            ("/ä", false),
            ("/a\\b", false),
        ] {
            assert_eq!(route_path(text).is_ok(), valid, "{text}");
        }
        assert_eq!(
            route_path("/orders/").unwrap_err().text,
            "is \"/orders/\"; write \"/orders\", which is this path and everything below it"
        );
    }

    #[test]
    fn methods_and_scopes() {
        for (text, valid) in [
            ("GET", true),
            ("PROPFIND", true),
            ("M-SEARCH", true),
            ("get", false),
            ("CONNECT", false),
            ("", false),
            ("G ET", false),
            ("GETGETGETGETGETGETGETGETGETGETGETGET", false),
        ] {
            assert_eq!(method(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in [
            ("read:orders", true),
            ("https://example.com/scope", true),
            ("", false),
            ("read write", false),
            ("a\"b", false),
            ("a\\b", false),
            ("ä", false),
        ] {
            assert_eq!(scope(text).is_ok(), valid, "{text}");
        }
    }

    #[test]
    fn words_of_a_closed_list() {
        check(
            protocol,
            &[
                ("h2", Ok(Protocol::Http2)),
                ("http/1.1", Ok(Protocol::Http1)),
                ("h3", Err("not supported yet: \"h3\"; leave it out of the list")),
                (
                    "http/1",
                    Err(
                        "is \"http/1\"; did you mean \"http/1.1\"? It takes \"h2\" or \"http/1.1\"",
                    ),
                ),
                ("spdy", Err("is \"spdy\"; write \"h2\" or \"http/1.1\"")),
            ],
        );
        check(
            client_auth,
            &[
                ("required", Ok(ClientAuth::Required)),
                ("optional", Ok(ClientAuth::Optional)),
                ("off", Ok(ClientAuth::Off)),
                (
                    "require",
                    Err("is \"require\"; did you mean \"required\"? It takes \"required\" or \
                         \"optional\" or \"off\""),
                ),
            ],
        );
        check(
            algorithm,
            &[
                ("RS256", Ok(Algorithm::Rs256)),
                ("PS512", Ok(Algorithm::Ps512)),
                ("EdDSA", Ok(Algorithm::EdDsa)),
                ("Ed25519", Ok(Algorithm::EdDsa)),
                ("HS256", Ok(Algorithm::Hs256)),
                ("none", Err("has \"none\", which proves nothing; take it out")),
                (
                    "HS512",
                    Err("has \"HS512\", which is not among those that are verified here; take it \
                         out"),
                ),
                (
                    "rs256",
                    Err("has \"rs256\", which is none of RS256, RS384, RS512, PS256, PS384, \
                         PS512, ES256, ES384, EdDSA, HS256"),
                ),
            ],
        );
        check(
            xdp_mode,
            &[
                ("auto", Ok(Mode::Auto)),
                ("native", Ok(Mode::Native)),
                ("generic", Ok(Mode::Generic)),
                (
                    "navite",
                    Err("is \"navite\"; did you mean \"native\"? It takes \"auto\" or \"native\" \
                         or \"generic\""),
                ),
            ],
        );
        check(crl_expired, &[("deny", Ok(CrlExpired::Deny)), ("allow", Ok(CrlExpired::Allow))]);
        check(log_format, &[("json", Ok(LogFormat::Json)), ("text", Ok(LogFormat::Text))]);
        check(proof, &[("certificate", Ok(Proof::Certificate)), ("token", Ok(Proof::Token))]);
    }

    proptest! {
        #[test]
        fn no_text_makes_any_of_them_panic(text in "\\PC{0,40}|[0-9a-z:./\\[\\]@%_*-]{0,40}") {
            let _ = (duration(&text), rate_per_s(&text), network(&text), service(&text));
            let _ = (socket_address(&text), name(&text), words(&text), path(&text));
            let _ = (interface(&text), host(&text), route_path(&text), method(&text));
            let _ = (endpoint(&text), endpoint(&format!("http://{text}")), scope(&text));
            let _ = (bytes(&text), bytes_per_s(&text));
            let _ = (protocol(&text), algorithm(&text), xdp_mode(&text));
        }

        #[test]
        fn a_duration_is_its_number_times_its_unit(number in 0u32.., unit in 0usize..4) {
            let (name, unit_ms) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)][unit];
            let expected = Duration::from_millis(u64::from(number) * unit_ms);
            prop_assert_eq!(duration(&format!("{number}{name}")), Ok(expected));
        }

        #[test]
        fn a_host_name_is_its_own_form(text in "[a-zA-Z0-9._:-]{1,20}") {
            if let Ok(host_name) = host(&text) {
                prop_assert_eq!(host(&host_name), Ok(host_name.clone()));
            }
        }
    }
}
