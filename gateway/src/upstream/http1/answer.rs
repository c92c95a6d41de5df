//! Octets → the head of an answer, and where its body ends.
//!
//! What two readers could take for different messages is refused, so that no server (and nobody who can
//! make one repeat something) can slip an answer of its own in between (RFC 9112 sections 6.3 and 11.1).

use std::{cell::Cell, mem::MaybeUninit};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};

use super::{Broken, body::Decoder, request::stated_length};

/// Fields of a head, and of trailers: as many as hyper takes of a server.
pub const FIELDS_MAX: usize = 100;

/// Fields that most answers get on their way: growing costs more than room.
const FIELDS_ADDED: usize = 2;

/// Octets of a head, interim answers aside: as over HTTP/2.
pub const HEAD_MAX_BYTES: usize = 128 * 1024;

/// What was read.
#[derive(Debug)]
pub enum Answer {
    /// One more is to come (RFC 9110 section 15.2).
    Interim(StatusCode),
    /// The answer.
    Final {
        /// Its head.
        response: Response<()>,
        /// Its body.
        body: Decoder,
        /// Whether the connection may carry another request afterwards.
        is_kept: bool,
    },
}

/// Where in a head something stands.
type Span = (u32, u32);

/// What of a head says where it ends and what follows.
#[derive(Default)]
struct Said {
    is_connection: bool,
    is_coding: bool,
    lengths: usize,
}

impl Said {
    fn note(&mut self, name: &HeaderName) {
        self.is_connection |= *name == header::CONNECTION;
        self.is_coding |= *name == header::TRANSFER_ENCODING;
        self.lengths += usize::from(*name == header::CONTENT_LENGTH);
    }
}

/// Whether it is worth reading a head off the buffer again, of which so many octets were not enough: only
/// an empty line ends one (RFC 9112 section 2.1). A server that sends a head in many pieces would else
/// have all of it read once for each.
pub fn may_be_whole(buffer: &[u8], seen_bytes: usize) -> bool {
    if seen_bytes == 0 || buffer.len() > HEAD_MAX_BYTES {
        return !buffer.is_empty();
    }
    // The end may have begun in what was seen: LF CR.
    let new = buffer.get(seen_bytes.saturating_sub(2)..).unwrap_or_default();
    let is_empty_line = |rest: &[u8]| rest.starts_with(b"\n") || rest.starts_with(b"\r\n");
    (0..new.len()).any(|at| new[at] == b'\n' && is_empty_line(&new[at + 1..]))
}

/// Reads one head off the buffer, as the answer to a request of that method; `None`: there is not enough of
/// it yet. Its fields take the room of `spare`, which is empty.
///
/// # Errors
/// Why it is none.
pub fn read(
    buffer: &mut BytesMut,
    method: &Method,
    spare: &Cell<HeaderMap>,
) -> Result<Option<Answer>, Broken> {
    let mut spans = [(Span::default(), Span::default()); FIELDS_MAX];
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, buffer, &mut fields);
    let length = match status.map_err(Broken::Head)? {
        httparse::Status::Complete(length) if length <= HEAD_MAX_BYTES => length,
        httparse::Status::Partial if buffer.len() <= HEAD_MAX_BYTES => return Ok(None),
        _ => return Err(Broken::HeadTooLarge),
    };
    let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = code.ok_or(Broken::Head(httparse::Error::Status))?;
    let version = match parsed.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let reason = parsed
        .reason
        .filter(|reason| Some(*reason) != status.canonical_reason())
        .and_then(|reason| hyper::ext::ReasonPhrase::try_from(reason.as_bytes()).ok());
    let count = parsed.headers.len();
    for (span, field) in spans.iter_mut().zip(parsed.headers.iter()) {
        *span = (span_of(buffer, field.name.as_bytes()), span_of(buffer, field.value));
    }
    let head = buffer.split_to(length).freeze();
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Some(Answer::Interim(status)));
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    let headers = response.headers_mut();
    *headers = spare.take();
    headers.reserve(count + FIELDS_ADDED);
    let mut said = Said::default();
    for (name, value) in &spans[..count] {
        let (name, value) = field(&head, *name, *value)?;
        said.note(&name);
        headers.append(name, value);
    }
    let is_kept = keeps_alive(version, &said, headers);
    let body = decoder(status, version, &said, headers, method)?;
    let is_kept =
        is_kept && body != Decoder::UntilClose && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(Some(Answer::Final { response, body, is_kept }))
}

/// Where `part`, which is of `whole`, stands.
fn span_of(whole: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    // Heads are far shorter than what fits.
    (start as u32, (start + part.len()) as u32)
}

fn field(head: &Bytes, name: Span, value: Span) -> Result<(HeaderName, HeaderValue), Broken> {
    let range = |(start, end): Span| start as usize..end as usize;
    let name = head.get(range(name)).and_then(|name| HeaderName::from_bytes(name).ok());
    let name = name.ok_or(Broken::Head(httparse::Error::HeaderName))?;
    let value = HeaderValue::from_maybe_shared(head.slice(range(value)));
    Ok((name, value.map_err(|_| Broken::Head(httparse::Error::HeaderValue))?))
}

/// RFC 9112 section 9.3. Once `close` is said, nothing takes it back.
fn keeps_alive(version: Version, said: &Said, headers: &HeaderMap) -> bool {
    let mut keeps = version == Version::HTTP_11;
    if !said.is_connection {
        return keeps;
    }
    for value in headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keeps |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keeps
}

/// Where the body ends (RFC 9112 section 6.3). Leaves at most one `Content-Length`, which is right.
fn decoder(
    status: StatusCode,
    version: Version,
    said: &Said,
    headers: &mut HeaderMap,
    method: &Method,
) -> Result<Decoder, Broken> {
    const NO_BODY: [StatusCode; 3] =
        [StatusCode::SWITCHING_PROTOCOLS, StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    if NO_BODY.contains(&status) || *method == Method::HEAD {
        return Ok(Decoder::Done);
    }
    if said.is_coding {
        if version == Version::HTTP_10 {
            return Err(Broken::Framing("Transfer-Encoding over HTTP/1.0"));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        return match (codings.next(), codings.next()) {
            // No other was offered, and the client would not hear of it.
            (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
                headers.remove(header::CONTENT_LENGTH);
                Ok(Decoder::chunked())
            }
            _ => Err(Broken::Framing("a Transfer-Encoding other than chunked, once")),
        };
    }
    if said.lengths == 0 {
        return Ok(Decoder::UntilClose);
    }
    match stated_length(headers).map_err(|()| Broken::Framing("no Content-Length"))? {
        None => Ok(Decoder::UntilClose),
        Some(length) => {
            if said.lengths > 1
                || headers
                    .get(header::CONTENT_LENGTH)
                    .is_some_and(|one| one.as_bytes().contains(&b','))
            {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            Ok(Decoder::length(length))
        }
    }
}
