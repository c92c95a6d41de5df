//! The PROXY protocol, versions 1 and 2 (proxy-protocol.txt of HAProxy, 2020): a proxy in front says
//! in a few octets whose connection it carries.
//!
//! The parser is strict, because two readings of one header are two clients: addresses as the
//! standard library reads them, no octet too many, a checksum that is right where there is one.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

/// Begins every header of version 2 (section 2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Begins every header of version 1 (section 2.1).
const WORD: &[u8; 6] = b"PROXY ";

/// The longest line of version 1, with its end (section 2.1).
const LINE_MAX_BYTES: usize = 107;

/// Signature, command, family and length.
const FIXED_BYTES: usize = 16;

/// The longest header of version 2 that is taken: addresses are 36 octets at most, and what proxies
/// add (names of the TLS session, a unique id, a cloud's endpoint) stays far below.
const HEADER_MAX_BYTES: usize = 4_096;

/// `PP2_TYPE_CRC32C` (section 2.2.3).
const TYPE_CRC32C: u8 = 0x03;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A client's.
    Client {
        /// Where the client is.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
    /// The proxy's own: `LOCAL` or `UNKNOWN`, as its health checks are.
    Own,
}

/// What the octets read so far come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of them belong to a header that goes on.
    More,
    /// The header, and how many octets it takes; what follows is the client's.
    Whole(Header, usize),
}

/// The rule that a header breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It begins like neither version.
    NotProxy,
    /// A line of version 1 without an end, or with a carriage return or line feed alone.
    Line,
    /// A protocol other than TCP4, TCP6 or UNKNOWN, or more or fewer words than that takes.
    Words,
    /// An address that is none, or of the other family.
    Address,
    /// A port that is no number from 0 to 65535 in plain decimal.
    Port,
    /// A version other than 2 behind the signature of version 2.
    Version,
    /// A command other than LOCAL or PROXY.
    Command,
    /// A transport or family that cannot be behind a TCP listener.
    Family,
    /// Longer than any that is taken.
    TooLong,
    /// Shorter than the addresses of its family.
    TooShort,
    /// Further fields that do not fill the header exactly.
    Fields,
    /// The checksum is another, of the wrong length, or there twice.
    Checksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Malformed::NotProxy => {
                "the connection does not begin with a PROXY header; let the proxy send one"
            }
            Malformed::Line => "the PROXY line does not end as it must",
            Malformed::Words => "the PROXY line has other words than it must",
            Malformed::Address => "an address in the PROXY header is none of its family",
            Malformed::Port => "a port in the PROXY header is no plain number up to 65535",
            Malformed::Version => "the PROXY header is of a version that does not exist",
            Malformed::Command => "the PROXY header has an unknown command",
            Malformed::Family => "the PROXY header is about something else than TCP",
            Malformed::TooLong => "the PROXY header is longer than 4096 octets",
            Malformed::TooShort => "the PROXY header is shorter than its addresses",
            Malformed::Fields => "fields of the PROXY header do not fill it exactly",
            Malformed::Checksum => "the checksum of the PROXY header is wrong",
        })
    }
}

/// Reads the beginning of a connection.
///
/// # Errors
/// As soon as it is clear that no further octet could make a header of it.
pub fn parse(bytes: &[u8]) -> Result<Progress, Malformed> {
    if is_beginning(bytes, SIGNATURE) {
        return version_2(bytes);
    }
    if is_beginning(bytes, WORD) {
        return version_1(bytes);
    }
    Err(Malformed::NotProxy)
}

/// Whether `bytes` and `whole` agree as far as both go.
fn is_beginning(bytes: &[u8], whole: &[u8]) -> bool {
    bytes.iter().zip(whole).all(|(byte, wanted)| byte == wanted)
}

fn version_1(bytes: &[u8]) -> Result<Progress, Malformed> {
    let line = &bytes[..bytes.len().min(LINE_MAX_BYTES)];
    let Some(at) = line.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if line.len() == LINE_MAX_BYTES {
            Err(Malformed::Line)
        } else {
            Ok(Progress::More)
        };
    };
    match (line[at], line.get(at + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if line.len() < LINE_MAX_BYTES => return Ok(Progress::More),
        _ => return Err(Malformed::Line),
    }
    let text = std::str::from_utf8(&line[..at]).map_err(|_| Malformed::Words)?;
    let mut words = text.split(' ').skip(1);
    let protocol = words.next().ok_or(Malformed::Words)?;
    // Whatever follows UNKNOWN is to be ignored (section 2.1).
    if protocol == "UNKNOWN" {
        return Ok(Progress::Whole(Header::Own, at + 2));
    }
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words[..] else {
        return Err(Malformed::Words);
    };
    let address: fn(&str) -> Option<IpAddr> = match protocol {
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return Err(Malformed::Words),
    };
    let address = |text| address(text).ok_or(Malformed::Address);
    let source = SocketAddr::new(address(source)?, port(source_port)?);
    let destination = SocketAddr::new(address(destination)?, port(destination_port)?);
    Ok(Progress::Whole(Header::Client { source, destination }, at + 2))
}

/// Decimal without sign, blank or leading zero (section 2.1).
fn port(text: &str) -> Result<u16, Malformed> {
    let is_plain =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain).ok_or(Malformed::Port)
}

fn version_2(bytes: &[u8]) -> Result<Progress, Malformed> {
    // Each octet is judged as soon as it is there: nobody waits for what cannot become good.
    if let Some(version) = bytes.get(12) {
        if version >> 4 != 2 {
            return Err(Malformed::Version);
        }
        if version & 15 > 1 {
            return Err(Malformed::Command);
        }
    }
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED_BYTES) else {
        return Ok(Progress::More);
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED_BYTES + length > HEADER_MAX_BYTES {
        return Err(Malformed::TooLong);
    }
    let is_local = fixed[12] & 15 == 0;
    let addresses_bytes = match fixed[13] {
        // What LOCAL carries is to be skipped, and so is what is said of no family (section 2.2).
        _ if is_local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        _ => return Err(Malformed::Family),
    };
    if length < addresses_bytes {
        return Err(Malformed::TooShort);
    }
    let Some(payload) = rest.get(..length) else {
        return Ok(Progress::More);
    };
    let whole = FIXED_BYTES + length;
    if addresses_bytes == 0 {
        return Ok(Progress::Whole(Header::Own, whole));
    }
    let (addresses, fields) = payload.split_at(addresses_bytes);
    check_fields(&bytes[..whole], fields)?;
    let header = client(addresses).ok_or(Malformed::TooShort)?;
    Ok(Progress::Whole(header, whole))
}

/// 12 octets of IPv4 or 36 of IPv6: addresses, then ports (section 2.2).
fn client(addresses: &[u8]) -> Option<Header> {
    let (hosts, ports) = addresses.split_at_checked(addresses.len().checked_sub(4)?)?;
    let (source, destination) = hosts.split_at(hosts.len() / 2);
    let host = |octets: &[u8]| -> Option<IpAddr> {
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
    };
    let port = |octets: &[u8]| Some(u16::from_be_bytes(octets.try_into().ok()?));
    Some(Header::Client {
        source: SocketAddr::new(host(source)?, port(&ports[..2])?),
        destination: SocketAddr::new(host(destination)?, port(&ports[2..])?),
    })
}

/// Type, length and value, one after the other to the last octet (section 2.2).
fn check_fields(header: &[u8], fields: &[u8]) -> Result<(), Malformed> {
    let mut rest = fields;
    let mut has_checksum = false;
    while let Some((kind, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk::<2>().ok_or(Malformed::Fields)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (value, after) = after.split_at_checked(length).ok_or(Malformed::Fields)?;
        if *kind == TYPE_CRC32C {
            let stated = <[u8; 4]>::try_from(value).map_err(|_| Malformed::Checksum)?;
            let at = header.len() - after.len() - stated.len();
            if has_checksum || crc32c(header, at) != u32::from_be_bytes(stated) {
                return Err(Malformed::Checksum);
            }
            has_checksum = true;
        }
        rest = after;
    }
    Ok(())
}

/// CRC32C (RFC 3720 appendix B.4) of the header with four octets of zeros at `checksum_at`. Bit by
/// bit: a header is short, and comes once for each connection.
fn crc32c(header: &[u8], checksum_at: usize) -> u32 {
    /// The polynomial 0x1EDC6F41 with its bits reversed.
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let own = checksum_at..checksum_at + 4;
    let register = header.iter().enumerate().fold(u32::MAX, |register, (at, byte)| {
        let byte = if own.contains(&at) { 0 } else { *byte };
        (0..8).fold(register ^ u32::from(byte), |register, _| {
            (register >> 1) ^ (POLYNOMIAL * (register & 1))
        })
    });
    !register
}

/// Why no header was read from a connection.
#[derive(Debug)]
pub enum ReadError {
    /// It is none.
    Malformed(Malformed),
    /// It was not whole in this time.
    TooSlow(Duration),
    /// The connection ended or broke before.
    Broken(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Malformed(malformed) => malformed.fmt(formatter),
            ReadError::TooSlow(within) => {
                let within = humantime::format_duration(*within);
                write!(formatter, "no whole PROXY header within {within}")
            }
            ReadError::Broken(error) => {
                write!(formatter, "the connection ended before its PROXY header did: {error}")
            }
        }
    }
}

/// Reads the header off a connection, and not one octet of what follows.
///
/// # Errors
/// Why there is none.
pub async fn read(stream: &mut TcpStream, within: Duration) -> Result<Header, ReadError> {
    timeout(within, read_all(stream)).await.unwrap_or(Err(ReadError::TooSlow(within)))
}

async fn read_all(stream: &mut TcpStream) -> Result<Header, ReadError> {
    let mut seen = Vec::with_capacity(LINE_MAX_BYTES * 2);
    let mut window = [0; 512];
    loop {
        let had = seen.len();
        let count = stream.peek(&mut window).await.map_err(ReadError::Broken)?;
        if count == 0 {
            return Err(ReadError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        seen.extend_from_slice(&window[..count]);
        let progress = parse(&seen).map_err(ReadError::Malformed)?;
        // What was looked at and belongs to the header is taken; the rest stays for TLS.
        let belongs = match progress {
            Progress::More => count,
            Progress::Whole(_, length) => length - had,
        };
        stream.read_exact(&mut window[..belongs]).await.map_err(ReadError::Broken)?;
        if let Progress::Whole(header, _) = progress {
            return Ok(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(source: &str, destination: &str) -> Result<Header, Malformed> {
        Ok(Header::Client {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        })
    }

    /// A header of version 2: command and family as given, the length that of `payload`.
    fn binary(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        header.extend(payload);
        header
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdd, 0xd5, 0x01, 0xbb];

    fn v6() -> Vec<u8> {
        let mut addresses = Vec::new();
        for address in ["2001:db8::1", "2001:db8::2"] {
            addresses.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        }
        addresses.extend([0xdd, 0xd5, 0x01, 0xbb]);
        addresses
    }

    fn with_fields(fields: &[&[u8]]) -> Vec<u8> {
        let mut payload = V4.to_vec();
        for field in fields {
            payload.extend(*field);
        }
        binary(0x21, 0x11, &payload)
    }

    /// IPv4 with a checksum as its last field, changed by `wrong`.
    fn checked(wrong: u32) -> Vec<u8> {
        let mut header = with_fields(&[&[0x05, 0, 2, 7, 7], &[0x03, 0, 4, 0, 0, 0, 0]]);
        let at = header.len() - 4;
        let sum = crc32c(&header, at) ^ wrong;
        header[at..].copy_from_slice(&sum.to_be_bytes());
        header
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // RFC 3720 appendix B.4: 32 octets of zeros, of ones, and from 0 to 31.
        let beyond = 1_000;
        assert_eq!(crc32c(&[0; 32], beyond), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32], beyond), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising, beyond), 0x46dd_794e);
    }

    #[test]
    fn lines_of_version_1() {
        let good = of("192.0.2.1:56789", "198.51.100.2:443");
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let full = format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n");
        let unknown = format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n");
        let over = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!((unknown.len(), over.len()), (107, 108));
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56789 443\r\n", good),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 0\r\n",
                of("[2001:db8::1]:1", "[2001:db8::2]:0"),
            ),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", of("[::ffff:192.0.2.1]:1", "[::1]:2")),
            (&full, of(&format!("[{longest}]:65535"), &format!("[{longest}]:65535"))),
            ("PROXY UNKNOWN\r\n", Ok(Header::Own)),
            (&unknown, Ok(Header::Own)),
            ("PROXY UNKNOWN what ever\r\n", Ok(Header::Own)),
            (&over, Err(Malformed::Line)),
            ("PROXY TCP4 256.1.1.1 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 010.1.1.1 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 10.1.1 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 0x0a.1.1.1 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 167772161 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 192.0.2.1 localhost 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP6 [2001:db8::1] 2001:db8::2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP6 1::2::3 2001:db8::2 1 2\r\n", Err(Malformed::Address)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", Err(Malformed::Port)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n", Err(Malformed::Port)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", Err(Malformed::Port)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n", Err(Malformed::Port)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 0x1 443\r\n", Err(Malformed::Port)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 \r\n", Err(Malformed::Port)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n", Err(Malformed::Words)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n", Err(Malformed::Words)),
            ("PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::Words)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n", Err(Malformed::Words)),
            ("PROXY TCP4\t192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::Words)),
            ("PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::Words)),
            ("PROXY tcp4 192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::Words)),
            ("PROXY UNKNOWNX\r\n", Err(Malformed::Words)),
            ("PROXY \r\n", Err(Malformed::Words)),
            ("PROXY TCP4\r\n", Err(Malformed::Words)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n", Err(Malformed::Line)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\rx", Err(Malformed::Line)),
            ("PROXY TCP4 192.0.2.1\r198.51.100.2 1 2\r\n", Err(Malformed::Line)),
            ("PROXY TCP4 192.0.2.1\0 198.51.100.2 1 2\r\n", Err(Malformed::Address)),
            ("proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::NotProxy)),
            ("PROXY\r\n", Err(Malformed::NotProxy)),
            (" PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed::NotProxy)),
            ("GET / HTTP/1.1\r\n\r\n", Err(Malformed::NotProxy)),
            ("\u{16}\u{3}\u{1}", Err(Malformed::NotProxy)),
        ] {
            let whole = expected.map(|header| Progress::Whole(header, line.len()));
            assert_eq!(parse(line.as_bytes()), whole, "{line:?}");
        }
    }

    #[test]
    fn headers_of_version_2() {
        let v4 = of("192.0.2.1:56789", "198.51.100.2:443");
        let v6 = (v6(), of("[2001:db8::1]:56789", "[2001:db8::2]:443"));
        let own = Ok(Header::Own);
        let too_long = binary(0x21, 0x11, &[0; HEADER_MAX_BYTES - FIXED_BYTES + 1]);
        let mut longest = V4.to_vec();
        longest.extend([0x04, 0x0f, 0xe1]);
        longest.resize(HEADER_MAX_BYTES - FIXED_BYTES, 0);
        let mut early = with_fields(&[&[0x03, 0, 4, 0, 0, 0, 0], &[0x04, 0, 1, 9]]);
        let sum = crc32c(&early, 31);
        early[31..35].copy_from_slice(&sum.to_be_bytes());
        for (what, header, expected) in [
            ("IPv4", binary(0x21, 0x11, &V4), v4),
            ("IPv6", binary(0x21, 0x21, &v6.0), v6.1),
            ("LOCAL", binary(0x20, 0x00, &[]), own),
            ("LOCAL with addresses, which are skipped", binary(0x20, 0x11, &V4), own),
            ("LOCAL with anything", binary(0x20, 0xff, &[1, 2, 3]), own),
            ("of no family", binary(0x21, 0x00, &[]), own),
            ("of no family with octets, which are skipped", binary(0x21, 0x00, &[9; 7]), own),
            ("a field", with_fields(&[&[0x01, 0, 2, b'h', b'2']]), v4),
            ("an empty field", with_fields(&[&[0x04, 0, 0]]), v4),
            ("fields nobody knows", with_fields(&[&[0xea, 0, 1, 1], &[0xf0, 0, 1, 2]]), v4),
            ("the longest", binary(0x21, 0x11, &longest), v4),
            ("a checksum", checked(0), v4),
            ("a checksum before another field", early, v4),
            ("another checksum", checked(1), Err(Malformed::Checksum)),
            ("a checksum of ones", checked(u32::MAX), Err(Malformed::Checksum)),
            (
                "a checksum of three octets",
                with_fields(&[&[0x03, 0, 3, 0, 0, 0]]),
                Err(Malformed::Checksum),
            ),
            ("an empty checksum", with_fields(&[&[0x03, 0, 0]]), Err(Malformed::Checksum)),
            ("an octet after the addresses", with_fields(&[&[0]]), Err(Malformed::Fields)),
            ("two octets after them", with_fields(&[&[4, 0]]), Err(Malformed::Fields)),
            ("a field cut short", with_fields(&[&[4, 0, 2, 1]]), Err(Malformed::Fields)),
            ("an octet after a field", with_fields(&[&[4, 0, 1, 1, 9]]), Err(Malformed::Fields)),
            ("addresses cut short", binary(0x21, 0x11, &V4[..11]), Err(Malformed::TooShort)),
            ("IPv6 with IPv4 addresses", binary(0x21, 0x21, &V4), Err(Malformed::TooShort)),
            ("nothing of IPv4", binary(0x21, 0x11, &[]), Err(Malformed::TooShort)),
            ("UDP", binary(0x21, 0x12, &V4), Err(Malformed::Family)),
            ("UDP over IPv6", binary(0x21, 0x22, &v6.0), Err(Malformed::Family)),
            ("a Unix socket", binary(0x21, 0x31, &[0; 216]), Err(Malformed::Family)),
            ("IPv4 of no transport", binary(0x21, 0x10, &V4), Err(Malformed::Family)),
            ("a family nobody knows", binary(0x21, 0x41, &V4), Err(Malformed::Family)),
            ("a command nobody knows", binary(0x22, 0x11, &V4), Err(Malformed::Command)),
            ("version 1 in this form", binary(0x11, 0x11, &V4), Err(Malformed::Version)),
            ("version 3", binary(0x31, 0x11, &V4), Err(Malformed::Version)),
            ("too long", too_long, Err(Malformed::TooLong)),
            ("a broken signature", b"\r\n\r\n\0\r\nQUIX".to_vec(), Err(Malformed::NotProxy)),
            ("the line's end alone", b"\r\n\r\n\r\n".to_vec(), Err(Malformed::NotProxy)),
        ] {
            let whole = expected.map(|is| Progress::Whole(is, header.len()));
            assert_eq!(parse(&header), whole, "{what}");
        }
        let twice = {
            let mut header = with_fields(&[&[3, 0, 4, 0, 0, 0, 0], &[3, 0, 4, 0, 0, 0, 0]]);
            let sum = crc32c(&header, 31);
            header[31..35].copy_from_slice(&sum.to_be_bytes());
            header
        };
        assert_eq!(parse(&twice), Err(Malformed::Checksum));
    }

    #[test]
    fn what_follows_a_header_is_not_its_own() {
        for header in [
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56789 443\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            binary(0x21, 0x21, &v6()),
            checked(0),
        ] {
            let whole = parse(&header).unwrap();
            assert!(matches!(whole, Progress::Whole(_, length) if length == header.len()));
            for more in [&b"\x16\x03\x01"[..], b"PROXY ", b"\r\n"] {
                assert_eq!(parse(&[&header[..], more].concat()), Ok(whole), "{header:?}");
            }
            for length in 0..header.len() {
                assert_eq!(parse(&header[..length]), Ok(Progress::More), "{header:?} to {length}");
            }
        }
    }

    proptest! {
        /// However the octets arrive, the end is the same: a refusal stays one, a header stays that.
        #[test]
        fn no_octet_more_changes_what_was_decided(
            start in proptest::sample::select(vec![&b"PROXY TCP4 "[..], b"PROXY TCP6 ::", SIGNATURE, b""]),
            rest in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let bytes = [start, &rest].concat();
            let mut decided = None;
            for length in 0..=bytes.len() {
                let seen = parse(&bytes[..length]);
                if let Some(decided) = decided {
                    prop_assert_eq!(seen, decided);
                } else if seen != Ok(Progress::More) {
                    decided = Some(seen);
                }
            }
        }
    }
}
