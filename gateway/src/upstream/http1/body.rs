//! Octets → the body of an answer.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};

use super::{Broken, answer::FIELDS_MAX};

/// Octets of the line that begins a chunk, its extensions with it: nobody has a use for long ones, and they
/// are not passed on.
const CHUNK_LINE_MAX_BYTES: usize = 4 * 1024;

/// Octets of a trailer section.
const TRAILERS_MAX_BYTES: usize = 16 * 1024;

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// Nothing.
    Done,
    /// So many octets, more than none.
    Length(u64),
    /// In chunks (RFC 9112 section 7.1).
    Chunked(Chunked),
    /// All that comes.
    UntilClose,
}

/// What comes next of a body in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunked {
    /// The line with the size.
    Size,
    /// So many octets, more than none.
    Data(u64),
    /// The line break after them.
    DataEnd,
    /// The trailer section.
    Trailers,
}

impl Decoder {
    /// A body of that length.
    pub fn length(length: u64) -> Decoder {
        if length == 0 { Decoder::Done } else { Decoder::Length(length) }
    }

    /// A body in chunks.
    pub fn chunked() -> Decoder {
        Decoder::Chunked(Chunked::Size)
    }

    /// Whether nothing is left of it.
    pub fn is_done(&self) -> bool {
        *self == Decoder::Done
    }

    /// What is known of its length.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Decoder::Done => SizeHint::with_exact(0),
            Decoder::Length(left) => SizeHint::with_exact(*left),
            Decoder::Chunked(_) | Decoder::UntilClose => SizeHint::default(),
        }
    }

    /// Takes the next part off the buffer; `None`: there is none yet, or there is nothing more.
    ///
    /// # Errors
    /// [`Broken::Framing`]: it is no body in chunks.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Broken> {
        match self {
            Decoder::Done => Ok(None),
            Decoder::Length(left) => {
                let data = take(buffer, left);
                if *left == 0 {
                    *self = Decoder::Done;
                }
                Ok(data.map(Frame::data))
            }
            Decoder::UntilClose => {
                let mut all = u64::MAX;
                Ok(take(buffer, &mut all).map(Frame::data))
            }
            Decoder::Chunked(next) => {
                let frame = next.decode(buffer)?;
                if let Some(Part::End(trailers)) = frame {
                    *self = Decoder::Done;
                    return Ok(trailers.map(Frame::trailers));
                }
                Ok(match frame {
                    Some(Part::Data(data)) => Some(Frame::data(data)),
                    _ => None,
                })
            }
        }
    }

    /// The server has closed.
    ///
    /// # Errors
    /// [`Broken::Closed`]: before the body's end.
    pub fn close(&mut self) -> Result<(), Broken> {
        match std::mem::replace(self, Decoder::Done) {
            Decoder::Done | Decoder::UntilClose => Ok(()),
            Decoder::Length(_) | Decoder::Chunked(_) => Err(Broken::Closed),
        }
    }
}

/// At most `left` octets, which become so many less.
fn take(buffer: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= length as u64;
    (length > 0).then(|| buffer.split_to(length).freeze())
}

enum Part {
    Data(Bytes),
    End(Option<HeaderMap>),
}

impl Chunked {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Part>, Broken> {
        loop {
            match self {
                Chunked::Size => {
                    let Some(length) = line_bytes(buffer, CHUNK_LINE_MAX_BYTES)? else {
                        return Ok(None);
                    };
                    let size = chunk_size(&buffer[..length])?;
                    buffer.advance(length + 2);
                    *self = if size == 0 { Chunked::Trailers } else { Chunked::Data(size) };
                }
                Chunked::Data(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        *self = Chunked::DataEnd;
                    }
                    return Ok(data.map(Part::Data));
                }
                Chunked::DataEnd => match &buffer[..] {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        *self = Chunked::Size;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(Broken::Framing("a chunk is longer than it says")),
                },
                Chunked::Trailers => return trailers(buffer),
            }
        }
    }
}

/// The length of the line that the buffer begins with, without its end; `None`: there is no end yet.
fn line_bytes(buffer: &[u8], max_bytes: usize) -> Result<Option<usize>, Broken> {
    let within = &buffer[..buffer.len().min(max_bytes)];
    match within.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        Some(at) if within[at] == b'\r' => match within.get(at + 1) {
            Some(b'\n') => Ok(Some(at)),
            None if buffer.len() < max_bytes => Ok(None),
            _ => Err(Broken::Framing("a line of chunks does not end as lines do")),
        },
        Some(_) => Err(Broken::Framing("a line of chunks does not end as lines do")),
        None if buffer.len() < max_bytes => Ok(None),
        None => Err(Broken::Framing("a line of chunks is too long")),
    }
}

/// The size that a line states; its extensions say nothing to anybody (RFC 9112 section 7.1.1).
fn chunk_size(line: &[u8]) -> Result<u64, Broken> {
    let bad = Broken::Framing("no size of a chunk");
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    // Of sixteen digits each is worth four bits.
    if !(1..=16).contains(&digits) || !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(bad);
    }
    let size = str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
    size.ok_or(bad)
}

/// Reads a trailer section, which may be empty.
fn trailers(buffer: &mut BytesMut) -> Result<Option<Part>, Broken> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    if buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        return Ok(Some(Part::End(None)));
    }
    let mut trailers = HeaderMap::new();
    let length = match httparse::parse_headers(buffer, &mut fields).map_err(Broken::Head)? {
        httparse::Status::Complete((length, fields)) if length <= TRAILERS_MAX_BYTES => {
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(Broken::Framing("a trailer is no field"));
                };
                trailers.append(name, value);
            }
            length
        }
        httparse::Status::Partial if buffer.len() <= TRAILERS_MAX_BYTES => return Ok(None),
        _ => return Err(Broken::Framing("more trailers than are taken")),
    };
    buffer.advance(length);
    Ok(Some(Part::End(Some(trailers))))
}
