//! PROXY headers.

use std::net::SocketAddr;

use gateway::net::proxy_protocol::{Header, Progress, parse};

/// A beginning stays a beginning until the header is whole, what follows it changes nothing, and a line
/// of version 1 says what its words say.
pub(crate) fn proxy(bytes: &[u8]) {
    let seen = parse(bytes);
    let Ok(Progress::Whole(header, length)) = seen else { return };
    assert!(length <= bytes.len() && length <= 4_096);
    for shorter in 0..length {
        assert_eq!(parse(&bytes[..shorter]), Ok(Progress::More), "{shorter} of {length}");
    }
    assert_eq!(parse(&bytes[..length]), seen);
    assert_eq!(parse(&[bytes, b"\r\nPROXY "].concat()), seen);
    if bytes[0] != b'P' {
        return;
    }
    let line = std::str::from_utf8(&bytes[..length - 2]).expect("a line is text");
    assert_eq!(&bytes[length - 2..length], b"\r\n");
    let words: Vec<&str> = line.split(' ').collect();
    match header {
        Header::Own => assert_eq!(words[1], "UNKNOWN"),
        Header::Client { source, destination } => {
            let [_, family, from, to, from_port, to_port] = words[..] else {
                panic!("{line:?} has other words")
            };
            let address = |host: &str, port: &str| -> SocketAddr {
                SocketAddr::new(host.parse().unwrap(), port.parse().unwrap())
            };
            assert_eq!((source, destination), (address(from, from_port), address(to, to_port)));
            assert_eq!(family == "TCP4", source.is_ipv4() && destination.is_ipv4());
        }
    }
}
