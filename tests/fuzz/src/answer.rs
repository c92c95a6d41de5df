//! What a server answers over HTTP/1.1.

use std::cell::Cell;

use bytes::BytesMut;
use gateway::upstream::http1::answer::{Answer, read};
use http::{HeaderMap, Method, header};

/// What was understood by the end, and whether all of it was good.
#[derive(Debug, Default, PartialEq, Eq)]
struct Understood {
    status: Option<u16>,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    is_whole: bool,
}

/// The first octet says to which method the rest is an answer, and in how long pieces it comes.
pub(crate) fn answer(bytes: &[u8]) {
    let Some((first, octets)) = bytes.split_first() else { return };
    let method = if first & 1 == 0 { Method::GET } else { Method::HEAD };
    let whole = understood(&method, [octets].into_iter());
    let pieces = understood(&method, octets.chunks(usize::from(first / 2).max(1)));
    assert_eq!(whole, pieces, "the pieces that octets come in say nothing");
    if !whole.is_whole {
        return;
    }
    let lengths = whole.headers.get_all(header::CONTENT_LENGTH);
    let status = whole.status.expect("there is no whole answer without");
    let has_body = method != Method::HEAD && !matches!(status, 101 | 204 | 304);
    if !has_body {
        assert!(whole.body.is_empty() && whole.trailers.is_none());
    } else if whole.headers.contains_key(header::TRANSFER_ENCODING) {
        assert_eq!(lengths.iter().count(), 0, "two words on where the body ends");
        assert!(
            whole.headers[header::TRANSFER_ENCODING].as_bytes().eq_ignore_ascii_case(b"chunked")
        );
    } else if let Some(length) = lengths.iter().next() {
        assert_eq!(lengths.iter().count(), 1);
        let length: usize = length.to_str().expect("digits").parse().expect("a number");
        assert_eq!(whole.body.len(), length);
    }
}

fn understood<'o>(method: &Method, mut pieces: impl Iterator<Item = &'o [u8]>) -> Understood {
    let mut buffer = BytesMut::new();
    let mut understood = Understood::default();
    let mut body = loop {
        match read(&mut buffer, method, &Cell::default()) {
            Ok(Some(Answer::Final { response, body, .. })) => {
                understood.status = Some(response.status().as_u16());
                understood.headers = response.into_parts().0.headers;
                break body;
            }
            Ok(Some(Answer::Interim(_))) => continue,
            Ok(None) => {}
            Err(_) => return understood,
        }
        match pieces.next() {
            Some(piece) => buffer.extend_from_slice(piece),
            None => return understood,
        }
    };
    loop {
        match body.decode(&mut buffer) {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => understood.body.extend_from_slice(&data),
                Err(frame) => understood.trailers = frame.into_trailers().ok(),
            },
            Ok(None) if body.is_done() => break,
            Ok(None) => match pieces.next() {
                Some(piece) => buffer.extend_from_slice(piece),
                None if body.close().is_ok() => break,
                None => return understood,
            },
            Err(_) => return understood,
        }
    }
    understood.is_whole = true;
    understood
}
