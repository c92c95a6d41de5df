//! A request → octets: its head, and its body in the framing that the head states.

use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};
use http_body::{Frame, SizeHint};

use super::Broken;
use crate::http::introduction::Introduced;

/// A piece of a body that is at most so long is copied behind what is written before it; a longer one is
/// written from where it is.
pub const COPIED_MAX_BYTES: usize = 4 * 1024;

/// How a request says where its body ends (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many octets are left.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// What is to be written, in this order: octets of ours, a piece of a body where it lies, and what ends it.
#[derive(Debug, Default)]
pub struct Output {
    /// Octets of ours.
    pub text: Vec<u8>,
    /// A long piece of a body.
    pub piece: Bytes,
    /// What ends the piece.
    pub end: &'static [u8],
}

impl Output {
    /// Whether nothing is left to write.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.piece.is_empty() && self.end.is_empty()
    }

    /// Whether more may be added before something is written.
    fn takes_more(&self) -> bool {
        self.piece.is_empty() && self.end.is_empty()
    }
}

/// Writes a request's head, with what the server is told of the client. Of its fields all go as they are but those that say where its body ends,
/// which is said here, once.
///
/// # Errors
/// [`Broken::Request`]: its `Content-Length` is none.
pub fn write_head(
    text: &mut Vec<u8>,
    head: &Parts,
    introduced: Option<&Introduced<'_>>,
    body: Option<&SizeHint>,
) -> Result<Framing, Broken> {
    let headers = &head.headers;
    let begun = text.len();
    text.extend_from_slice(head.method.as_str().as_bytes());
    text.push(b' ');
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    text.extend_from_slice(target.as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\n");
    let mut has_length = false;
    for (name, value) in headers {
        if *name == header::CONTENT_LENGTH {
            has_length = true;
        } else if *name != header::TRANSFER_ENCODING {
            write_field(text, name.as_str(), value.as_bytes());
        }
    }
    let stated = if has_length { stated_length(headers) } else { Ok(None) };
    let framing = stated.map_err(|()| Broken::Request("no Content-Length"));
    let framing = framing.and_then(|stated| framing_of(stated, body));
    let framing = framing.inspect_err(|_| text.truncate(begun))?;
    if let Some(introduced) = introduced {
        introduced.write_lines(text);
    }
    match framing {
        // A client that says that there is nothing is passed on with that: some servers ask for it.
        Framing::None if !has_length => {}
        Framing::None => text.extend_from_slice(b"content-length: 0\r\n"),
        Framing::Length(length) => {
            // Writing to memory cannot fail.
            let _ = write!(text, "content-length: {length}\r\n");
        }
        Framing::Chunked => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    text.extend_from_slice(b"\r\n");
    Ok(framing)
}

fn write_field(text: &mut Vec<u8>, name: &str, value: &[u8]) {
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b": ");
    text.extend_from_slice(value);
    text.extend_from_slice(b"\r\n");
}

/// What the client stated holds; else the body's length where it is known.
fn framing_of(stated: Option<u64>, body: Option<&SizeHint>) -> Result<Framing, Broken> {
    Ok(match (body, stated) {
        (None, None | Some(0)) => Framing::None,
        (None, Some(_)) => return Err(Broken::Request("less than Content-Length says")),
        (Some(_), Some(0)) => Framing::None,
        (Some(_), Some(length)) => Framing::Length(length),
        (Some(hint), None) => hint.exact().map_or(Framing::Chunked, Framing::Length),
    })
}

/// The one number that all `Content-Length` fields state (RFC 9110 section 8.6); an error where they state
/// different ones or something else.
pub(super) fn stated_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut stated = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for number in value.as_bytes().split(|byte| *byte == b',') {
            let number = number.trim_ascii();
            // Digits only: `parse` would take a sign.
            if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
                return Err(());
            }
            let number = str::from_utf8(number).map_err(|_| ())?.parse().map_err(|_| ())?;
            if stated.replace(number).is_some_and(|before| before != number) {
                return Err(());
            }
        }
    }
    Ok(stated)
}

impl Framing {
    /// Adds a part of the body to what is written, where [`Framing::has_room`] said so.
    ///
    /// # Errors
    /// [`Broken::Request`]: there is more of it than was stated.
    pub fn write(&mut self, frame: Frame<Bytes>, output: &mut Output) -> Result<(), Broken> {
        match frame.into_data() {
            // A chunk of nothing would be the end.
            Ok(data) if data.is_empty() => Ok(()),
            Ok(data) => self.write_data(data, output),
            Err(frame) => {
                if let (Framing::Chunked, Ok(trailers)) = (&self, frame.into_trailers()) {
                    output.text.extend_from_slice(b"0\r\n");
                    for (name, value) in &trailers {
                        write_field(&mut output.text, name.as_str(), value.as_bytes());
                    }
                    output.text.extend_from_slice(b"\r\n");
                    *self = Framing::None;
                }
                Ok(())
            }
        }
    }

    fn write_data(&mut self, data: Bytes, output: &mut Output) -> Result<(), Broken> {
        let length = data.len() as u64;
        match self {
            Framing::None => return Err(Broken::Request("more than was stated")),
            Framing::Length(left) => {
                *left = left.checked_sub(length).ok_or(Broken::Request("more than was stated"))?;
            }
            Framing::Chunked => {
                let _ = write!(output.text, "{length:x}\r\n");
            }
        }
        let end: &[u8] = if *self == Framing::Chunked { b"\r\n" } else { b"" };
        if data.len() <= COPIED_MAX_BYTES {
            output.text.extend_from_slice(&data);
            output.text.extend_from_slice(end);
        } else {
            output.piece = data;
            output.end = end;
        }
        Ok(())
    }

    /// Whether a frame may be added.
    pub fn has_room(output: &Output) -> bool {
        output.takes_more() && output.text.len() <= COPIED_MAX_BYTES
    }

    /// Ends the body.
    ///
    /// # Errors
    /// [`Broken::Request`]: there is less of it than was stated.
    pub fn end(&mut self, output: &mut Output) -> Result<(), Broken> {
        match std::mem::replace(self, Framing::None) {
            Framing::None | Framing::Length(0) => Ok(()),
            Framing::Length(_) => Err(Broken::Request("less than was stated")),
            Framing::Chunked if output.takes_more() => {
                output.text.extend_from_slice(b"0\r\n\r\n");
                Ok(())
            }
            Framing::Chunked => {
                // Behind the chunk that is still to be written, whose line break it begins with.
                output.end = b"\r\n0\r\n\r\n";
                Ok(())
            }
        }
    }
}
