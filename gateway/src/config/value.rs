//! The forms that values are written in: durations, rates, addresses, prefixes, names. Plain
//! functions from text to value.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    CrlExpired, Endpoint, LogFormat, Protocol, schema,
    section::{Refused, shown},
};
use crate::{
    identity::token::Algorithm,
    kernel::{Mode, Service, Transport},
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
    if number % unit_s != 0 {
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
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            Refused::bad(format!(
                "has {written}, which is no address or prefix; write one as in \"192.0.2.0/24\" or \
                 \"2001:db8::/32\""
            ))
        })?,
    };
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

/// A host name in lower case, or an address; without a port (RFC 1123 section 2.1, and `_`, which
/// names of services carry).
pub(super) fn host(text: &str) -> Result<String, Refused> {
    let written = shown(text);
    let host = text.to_ascii_lowercase();
    if host.parse::<IpAddr>().is_ok() {
        return Ok(host);
    }
    if let Some((name, port)) = host.rsplit_once(':')
        && port_number(port).is_some()
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

/// `http://host:port`; the port defaults to 80.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Refused> {
    let written = shown(text);
    let malformed = |what: &str| {
        Refused::bad(format!("has {written}: {what}; write it as in \"http://127.0.0.1:9001\""))
    };
    if text.starts_with("https://") {
        return Err(Refused::not_yet(
            format_args!("TLS to an upstream, as in {written}"),
            "use http:// on a network you trust, or a TLS proxy beside the server",
        ));
    }
    let rest =
        text.strip_prefix("http://").ok_or_else(|| malformed("a server begins with http://"))?;
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
                "" => Some("80"),
                after => after.strip_prefix(':'),
            };
            (address.to_string(), port.ok_or_else(|| malformed("after ] comes : and a port"))?)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host.to_owned(), port),
            None => (authority.to_owned(), "80"),
        },
    };
    let port =
        port_number(port).ok_or_else(|| malformed("the port is no number from 1 to 65535"))?;
    let host = host(&host_text).map_err(|_| malformed("this is no host name or address"))?;
    if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return Err(malformed("nobody can connect to this address"));
    }
    Ok(Endpoint { host, port })
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

/// One of a listener's `protocols`.
pub(super) fn protocol(text: &str) -> Result<Protocol, Refused> {
    let words = [("h2", Protocol::Http2), ("http/1.1", Protocol::Http1)];
    word(text, &words, &["h3"], "leave it out of the list")
}

/// `client_auth`.
pub(super) fn client_auth(text: &str) -> Result<(), Refused> {
    word(text, &[("required", ())], &["optional", "off"], "write \"required\" or leave it out")
}

/// `crl_expired`.
pub(super) fn crl_expired(text: &str) -> Result<CrlExpired, Refused> {
    word(text, &[("deny", CrlExpired::Deny), ("allow", CrlExpired::Allow)], &[], "")
}

/// One of an issuer's `algorithms`; the others of RFC 7518 section 3.1 and RFC 8037 are known.
pub(super) fn algorithm(text: &str) -> Result<Algorithm, Refused> {
    if matches!(text, "none" | "HS256" | "HS384" | "HS512") {
        let text = shown(text);
        return Err(Refused::bad(format!(
            "has {text}, which proves nothing to a third party; write \"RS256\" or \"ES256\""
        )));
    }
    let later = ["RS384", "RS512", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"];
    let words = [("RS256", Algorithm::Rs256), ("ES256", Algorithm::Es256)];
    word(text, &words, &later, "leave it out and let the issuer sign with RS256 or ES256")
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

/// What a route may require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A client certificate.
    Certificate,
    /// A bearer token.
    Token,
}
