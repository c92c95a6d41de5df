//! HTTP/3: many requests at once on a connection, each on a stream of its own.
//!
//! Over quinn's streams and with frames of our own: the table of a server stays empty, as we announce
//! none, so a request's head is the same octets each time, and the generator has next to nothing to do.

use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::HeaderValue;
use quinn::{SendStream, VarInt};

/// Types of frames, and of the control stream (RFC 9114 sections 6.2.1 and 7.2).
const DATA: u64 = 0;
const HEADERS: u64 = 1;
const SETTINGS: u8 = 4;
const CONTROL: u8 = 0;
/// "H3_NO_ERROR" (RFC 9114 section 8.1).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);

/// Lines of the static table (RFC 9204 appendix A).
const AUTHORITY: u8 = 0;
const PATH: u8 = 1;
const METHOD_GET: u8 = 17;
const SCHEME_HTTPS: u8 = 23;
const AUTHORIZATION: u8 = 84;
/// Statuses that are lines of their own there.
const STATUSES: [(u8, u16); 14] = [
    (24, 103),
    (25, 200),
    (26, 304),
    (27, 404),
    (28, 503),
    (63, 100),
    (64, 204),
    (65, 206),
    (66, 302),
    (67, 400),
    (68, 403),
    (69, 421),
    (70, 425),
    (71, 500),
];

/// More than any answer of the upstream with what a server adds.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// A connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    quic: quinn::Connection,
    /// Open as long as the connection is (RFC 9114 section 6.2.1).
    _control: Rc<SendStream>,
}

impl Connection {
    /// Over an established session.
    ///
    /// # Errors
    /// When it breaks.
    pub async fn new(quic: quinn::Connection) -> Result<Connection> {
        let mut control = quic.open_uni().await?;
        control.write_all(&[CONTROL, SETTINGS, 0]).await?;
        Ok(Connection { quic, _control: Rc::new(control) })
    }

    /// Sends a request, as [`head`] gives it, and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not 200.
    pub async fn ask(&mut self, head: &Bytes) -> Result<()> {
        let (mut send, mut receive) = self.quic.open_bi().await?;
        send.write_chunk(head.clone()).await?;
        send.finish()?;
        let answer = receive.read_to_end(ANSWER_BYTES_MAX).await?;
        let status = status(&answer)?;
        ensure!(status == 200, "answered with: {status}");
        Ok(())
    }

    /// Ends it in the ordinary way.
    pub fn close(self) {
        self.quic.close(NO_ERROR, b"");
    }
}

/// A request's only frame.
///
/// # Errors
/// When a value is longer than any head may be.
pub fn head(host: &str, path: &str, token: Option<&HeaderValue>) -> Result<Bytes> {
    // No line of a dynamic table is referred to (RFC 9204 section 4.5.1).
    let mut section = vec![0, 0, line(METHOD_GET), line(SCHEME_HTTPS)];
    value_of(AUTHORITY, host.as_bytes(), &mut section);
    value_of(PATH, path.as_bytes(), &mut section);
    if let Some(token) = token {
        value_of(AUTHORIZATION, token.as_bytes(), &mut section);
    }
    let length = u16::try_from(section.len()).ok().filter(|length| *length < 1 << 14);
    let length = length.context("a head of more than 16 KiB")?;
    let mut frame = vec![HEADERS as u8];
    // An integer of two octets (RFC 9000 section 16).
    frame.extend((length | 1 << 14).to_be_bytes());
    frame.extend(section);
    Ok(frame.into())
}

/// Name and value of the static table (RFC 9204 section 4.5.2); all that we send are below 63.
const fn line(index: u8) -> u8 {
    0xc0 | index
}

/// A name of the static table with a value as it is (RFC 9204 section 4.5.4).
fn value_of(name: u8, value: &[u8], into: &mut Vec<u8>) {
    prefixed(0x50, 4, usize::from(name), into);
    prefixed(0, 7, value.len(), into);
    into.extend_from_slice(value);
}

/// An integer behind other bits of an octet (RFC 7541 section 5.1).
fn prefixed(first: u8, bits: u32, value: usize, into: &mut Vec<u8>) {
    let all = (1_usize << bits) - 1;
    if value < all {
        // Below 2^7.
        into.push(first | value as u8);
        return;
    }
    into.push(first | all as u8);
    let mut left = value - all;
    while left >= 0x80 {
        into.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    into.push(left as u8);
}

/// The status of a whole answer.
fn status(mut answer: &[u8]) -> Result<u16> {
    let mut status = None;
    let mut body_bytes = 0;
    while !answer.is_empty() {
        let (kind, length) = (integer(&mut answer)?, usize::try_from(integer(&mut answer)?)?);
        let payload = answer.split_off(..length).context("the answer ends within a frame")?;
        match kind {
            // Trailers come behind.
            HEADERS if status.is_none() => status = Some(status_of(payload)?),
            DATA => body_bytes += length,
            // Others are to be passed over (RFC 9114 section 9).
            _ => {}
        }
    }
    let status = status.context("an answer without a head")?;
    ensure!(status != 200 || body_bytes > 0, "an answer without its body");
    Ok(status)
}

/// The status comes first, as a line of the static table or as a value of three digits or their code.
fn status_of(section: &[u8]) -> Result<u16> {
    let index = match section.get(2..) {
        Some([0xff, more, ..]) if *more < 0x80 => 63 + more,
        Some([first, ..]) if *first >= 0xc0 && *first < 0xff => first & 0x3f,
        Some([0x5f, _name, 3, digits @ ..]) if digits.len() >= 3 => {
            return Ok(std::str::from_utf8(&digits[..3])?.parse()?);
        }
        Some([0x5f, _name, coded, ..]) if coded & 0x80 != 0 => bail!("answered with no 200"),
        other => bail!("no status: {other:02x?}"),
    };
    let known = STATUSES.iter().find(|(line, _)| *line == index);
    known.map(|(_, status)| *status).with_context(|| format!("line {index} is no status"))
}

/// RFC 9000 section 16.
fn integer(from: &mut &[u8]) -> Result<u64> {
    let first = from.split_off_first().context("the answer ends within a frame")?;
    let more = from.split_off(..(1 << (first >> 6)) - 1).context("it ends within a number")?;
    let join = |value: u64, octet: &u8| (value << 8) | u64::from(*octet);
    Ok(more.iter().fold(u64::from(first & 0x3f), join))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_as_the_standard_shows_it() {
        let head = head("a.b", "/index.html", None).unwrap();
        // The path is the example of RFC 9204 appendix B.1.
        assert_eq!(head[..], *b"\x01\x40\x16\0\0\xd1\xd7\x50\x03a.b\x51\x0b/index.html");
    }

    #[test]
    fn long_numbers_take_more_octets() {
        let coded = |value| {
            let mut into = Vec::new();
            prefixed(0x50, 4, value, &mut into);
            into
        };
        assert_eq!(coded(14), [0x5e]);
        assert_eq!(coded(15), [0x5f, 0]);
        assert_eq!(coded(84), [0x5f, 69]);
        assert_eq!(coded(15 + 200), [0x5f, 0xc8, 1]);
    }

    #[test]
    fn an_answer_says_its_status() {
        let told = |bytes: &[u8]| status(bytes).ok();
        for (answer, expected) in [
            (&b"\x01\x03\0\0\xd9\0\x01x"[..], Some(200)),
            // A frame of a kind that is there to be passed over.
            (b"\x21\x01?\x01\x03\0\0\xd9\0\x01x", Some(200)),
            (b"\x01\x04\0\0\xff\x04\0\x01x", Some(400)),
            (b"\x01\x08\0\0\x5f\x09\x03401", Some(401)),
            (b"\x01\x03\0\0\xd9", None),
            (b"\x01\x03\0\0\xd9\0\x05x", None),
            (b"", None),
            (b"\x40", None),
        ] {
            assert_eq!(told(answer), expected, "{answer:02x?}");
        }
    }
}
