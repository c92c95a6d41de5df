//! The codec beside hyper's, and whatever the pieces are that octets come in.

use http::HeaderValue;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::{
    answer::{FIELDS_MAX, HEAD_MAX_BYTES},
    request::COPIED_MAX_BYTES,
    *,
};
use crate::{http::body::RequestBody, time, upstream::outgoing::Source};

/// An answer as it was understood: its status, its fields, its body, its trailers.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
}

/// Where it is not whole: what has been passed on by then.
type Outcome = Result<Read, Option<Read>>;

/// Without those that say where a body ends, which are not passed on as they come.
fn fields(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let passes = |name: &&http::HeaderName| {
        !["content-length", "transfer-encoding"].contains(&name.as_str())
    };
    let mut fields: Vec<_> = headers
        .iter()
        .filter(|(name, _)| passes(name))
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    fields.sort();
    fields
}

/// Reads what a server sends in these pieces before it closes; also whether another request may follow.
fn ours(pieces: &[&[u8]], method: &Method) -> (Outcome, bool) {
    let mut buffer = BytesMut::new();
    let mut pieces = pieces.iter();
    let mut seen_bytes = 0;
    let (response, mut body, is_kept) = loop {
        if answer::may_be_whole(&buffer, seen_bytes) {
            seen_bytes = 0;
            match answer::read(&mut buffer, method, &Cell::default()) {
                Ok(Some(Answer::Final { response, body, is_kept })) => {
                    break (response, body, is_kept);
                }
                Ok(Some(Answer::Interim(_))) => continue,
                Ok(None) => {}
                Err(_) => return (Err(None), false),
            }
        }
        seen_bytes = buffer.len();
        match pieces.next() {
            Some(piece) => buffer.extend_from_slice(piece),
            None => return (Err(None), false),
        }
    };
    let mut read = Read {
        status: response.status().as_u16(),
        fields: fields(response.headers()),
        body: Vec::new(),
        trailers: Vec::new(),
    };
    let outcome = loop {
        match body.decode(&mut buffer) {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => read.body.extend_from_slice(&data),
                Err(frame) => read.trailers = fields(&frame.into_trailers().unwrap()),
            },
            Ok(None) if body.is_done() => break Ok(read),
            Ok(None) => match pieces.next() {
                Some(piece) => buffer.extend_from_slice(piece),
                None if body.close().is_ok() => break Ok(read),
                None => break Err(Some(read)),
            },
            Err(_) => break Err(Some(read)),
        }
    };
    let is_kept = is_kept && outcome.is_ok() && buffer.is_empty() && pieces.next().is_none();
    (outcome, is_kept)
}

/// The same by hyper, all in one piece.
fn hypers(octets: &[u8], method: &Method) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
        let octets = octets.to_vec();
        let serving = async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(server.read_u8().await.unwrap());
            }
            // A client that has read enough may be gone.
            let _ = server.write_all(&octets).await;
        };
        let request = http::Request::builder()
            .method(method)
            .uri("/")
            .header("host", "a.example")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let asking = async move {
            let response = sender.send_request(request).await.map_err(|_| None)?;
            let (parts, mut body) = response.into_parts();
            let mut read = Read {
                status: parts.status.as_u16(),
                fields: fields(&parts.headers),
                body: Vec::new(),
                trailers: Vec::new(),
            };
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return Err(Some(read)) };
                match frame.into_data() {
                    Ok(data) => read.body.extend_from_slice(&data),
                    Err(frame) => read.trailers = fields(&frame.into_trailers().unwrap()),
                }
            }
            Ok(read)
        };
        tokio::join!(serving, async { connection.await.ok() }, asking).2
    })
}

/// Octet by octet, as the slowest server sends it: read once at its first, and where it may end.
#[test]
fn a_head_in_pieces_is_not_read_for_each_of_them() {
    for (head, reads) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 2),
        ("HTTP/1.1 200 OK\ncontent-length: 0\n\n", 2),
        ("HTTP/1.1 200 OK\r\n\r\n", 2),
        // Empty lines before the first are passed over (RFC 9112 section 2.2).
        ("\r\n\r\nHTTP/1.1 204 No Content\r\na: b\r\n\r\n", 3),
    ] {
        let octets = head.as_bytes();
        let reads_of = |bytes: &usize| answer::may_be_whole(&octets[..*bytes], *bytes - 1);
        let seen: Vec<usize> = (1..=octets.len()).filter(reads_of).collect();
        assert_eq!((seen.len(), seen.last()), (reads, Some(&octets.len())), "{head:?}: {seen:?}");
        let pieces: Vec<&[u8]> = octets.chunks(1).collect();
        assert!(ours(&pieces, &Method::HEAD).0.is_ok(), "{head:?}");
    }
    assert!(!answer::may_be_whole(b"", 0));
    assert!(!answer::may_be_whole(&[b'a'; HEAD_MAX_BYTES], HEAD_MAX_BYTES - 1));
    assert!(answer::may_be_whole(&[b'a'; HEAD_MAX_BYTES + 1], HEAD_MAX_BYTES), "too large");
}

#[test]
fn an_answer_ends_where_it_says_or_is_none() {
    let whole = |body: &str| Ok(body.to_owned());
    let broken = Err(true);
    let none = Err(false);
    // Body and whether another request may follow; `broken`: after the head; `none`: at the head.
    for (method, octets, expected, kept) in [
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", whole("hello"), true),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", whole(""), true),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", broken.clone(), false),
        // What nobody asked for: an answer to the next request, perhaps.
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhello", whole("hell"), false),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\nx", whole("x"), true),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy",
            none.clone(),
            false,
        ),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\nx", none.clone(), false),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length: 1x\r\n\r\nx", none.clone(), false),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nx", none.clone(), false),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\nx",
            none.clone(),
            false,
        ),
        (Method::GET, "HTTP/1.1 200 OK\r\n\r\nall of it", whole("all of it"), false),
        (Method::GET, "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", whole("x"), false),
        (
            Method::GET,
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx",
            whole("x"),
            true,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\nconnection: Close, keep-alive\r\ncontent-length: 1\r\n\r\nx",
            whole("x"),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0A \r\n0123456789\r\n0\r\n\r\n",
            whole("abc0123456789"),
            true,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\ncontent-length: 9\r\n\r\n1\r\nx\r\n0\r\nt: 1\r\n\r\n",
            whole("x"),
            true,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nx\r\n0\r\n\r\n",
            broken.clone(),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\nx\n0\n\n",
            broken.clone(),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10000000000000000\r\nx",
            broken.clone(),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
            broken.clone(),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
            broken,
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            none.clone(),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            none.clone(),
            false,
        ),
        (
            Method::GET,
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            none.clone(),
            false,
        ),
        (Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", whole(""), true),
        (Method::GET, "HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", whole(""), true),
        (Method::GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", whole(""), true),
        (
            Method::GET,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            whole("ok"),
            true,
        ),
        (Method::GET, "HTTP/1.1 101 Switching Protocols\r\n\r\n", whole(""), false),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
            none.clone(),
            false,
        ),
        (Method::GET, "HTTP/1.1 200 OK\r\na : b\r\ncontent-length: 0\r\n\r\n", none.clone(), false),
        (Method::GET, "HTTP/2.0 200 OK\r\n\r\n", none.clone(), false),
        (Method::GET, "HTTP/1.1 200 OK\r\ncontent-le", none.clone(), false),
        (Method::GET, "SSH-2.0-x\r\n\r\n", none.clone(), false),
        (Method::GET, "", none, false),
    ] {
        let (outcome, is_kept) = ours(&[octets.as_bytes()], &method);
        let told = outcome
            .map(|read| String::from_utf8(read.body).unwrap())
            .map_err(|begun| begun.is_some());
        assert_eq!((told, is_kept), (expected, kept), "{method} {octets:?}");
    }
}

#[test]
fn heads_lines_and_trailers_are_bounded() {
    let field = "a: 0123456789\r\n";
    let head = |count| format!("HTTP/1.1 204 No Content\r\n{}\r\n", field.repeat(count));
    assert!(ours(&[head(FIELDS_MAX).as_bytes()], &Method::GET).0.is_ok());
    assert!(ours(&[head(FIELDS_MAX + 1).as_bytes()], &Method::GET).0.is_err());
    let long = |bytes| format!("HTTP/1.1 204 No Content\r\na: {}\r\n\r\n", "x".repeat(bytes));
    assert!(ours(&[long(HEAD_MAX_BYTES - 100).as_bytes()], &Method::GET).0.is_ok());
    for octets in [long(HEAD_MAX_BYTES), format!("HTTP/1.1 200 {}", "x".repeat(HEAD_MAX_BYTES))] {
        assert_eq!(ours(&[octets.as_bytes()], &Method::GET).0, Err(None));
        let mut buffer = BytesMut::from(octets.as_bytes());
        let refused = answer::read(&mut buffer, &Method::GET, &Cell::default());
        assert!(matches!(refused, Err(Broken::HeadTooLarge)), "{refused:?}");
    }
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (rest, is_whole) in [
        (format!("0;{}\r\n\r\n", "x".repeat(4000)), true),
        (format!("0;{}\r\n\r\n", "x".repeat(4096)), false),
        (format!("0\r\na: {}\r\n\r\n", "x".repeat(16_000)), true),
        (format!("0\r\na: {}\r\n\r\n", "x".repeat(17_000)), false),
        (format!("0\r\n{}\r\n", field.repeat(FIELDS_MAX + 1)), false),
    ] {
        let octets = format!("{chunked}{rest}");
        assert_eq!(ours(&[octets.as_bytes()], &Method::GET).0.is_ok(), is_whole, "{}", rest.len());
    }
}

#[test]
fn an_answer_takes_the_room_of_another_head() {
    let (room, octets) = (HeaderMap::with_capacity(24), b"HTTP/1.1 204 No Content\r\na: b\r\n\r\n");
    let capacity = room.capacity();
    let spare = Cell::new(room);
    for expected in [capacity, HeaderMap::<()>::with_capacity(3).capacity()] {
        let mut buffer = BytesMut::from(&octets[..]);
        let read = answer::read(&mut buffer, &Method::GET, &spare);
        let Ok(Some(Answer::Final { response, .. })) = read else { panic!("{read:?}") };
        assert_eq!(fields(response.headers()), [("a".to_owned(), b"b".to_vec())]);
        assert_eq!(response.headers().capacity(), expected, "its own, where there is none");
    }
}

#[test]
fn a_request_says_once_where_its_body_ends() {
    let exact = SizeHint::with_exact;
    let unknown = SizeHint::default();
    // The fields that come, the body, the lines that go, and how it is framed.
    for (given, body, lines, framing) in [
        (&[][..], None, &[][..], Some(Framing::None)),
        (&[("content-length", "0")], None, &["content-length: 0"], Some(Framing::None)),
        (&[("content-length", "3")], None, &[], None),
        (&[], Some(exact(3)), &["content-length: 3"], Some(Framing::Length(3))),
        (&[], Some(unknown), &["transfer-encoding: chunked"], Some(Framing::Chunked)),
        (
            &[("content-length", "3")],
            Some(SizeHint::default()),
            &["content-length: 3"],
            Some(Framing::Length(3)),
        ),
        (
            &[("content-length", "3"), ("content-length", "3")],
            Some(exact(3)),
            &["content-length: 3"],
            Some(Framing::Length(3)),
        ),
        (&[("content-length", "3"), ("content-length", "4")], Some(exact(3)), &[], None),
        (
            &[("transfer-encoding", "chunked"), ("accept", "*/*")],
            Some(SizeHint::default()),
            &["accept: */*", "transfer-encoding: chunked"],
            Some(Framing::Chunked),
        ),
    ] {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let mut text = Vec::new();
        let mut request = http::Request::post("/a?b").body(()).unwrap();
        *request.headers_mut() = headers;
        let head = request.into_parts().0;
        let written = write_head(&mut text, &head, None, body.as_ref());
        assert_eq!(written.ok(), framing, "{given:?} {body:?}");
        if framing.is_some() {
            let text = String::from_utf8(text).unwrap();
            let mut all: Vec<&str> = text.split("\r\n").collect();
            assert_eq!(all.remove(0), "POST /a?b HTTP/1.1");
            assert_eq!((all.pop(), all.pop()), (Some(""), Some("")));
            assert_eq!(all, lines, "{given:?}");
        } else {
            assert!(text.is_empty(), "nothing of what cannot be sent: {given:?}");
        }
    }
}

/// All that would be written.
fn written(output: &Output) -> Vec<u8> {
    [&output.text[..], &output.piece, output.end].concat()
}

#[test]
fn a_body_is_as_long_as_was_stated() {
    let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("1"));
    let trailers = || Frame::trailers(trailers.clone());
    const LONG: &str = match str::from_utf8(&[b'x'; 5_000]) {
        Ok(text) => text,
        Err(_) => "",
    };
    let chunked = format!("1\r\na\r\n1388\r\n{LONG}\r\n0\r\n\r\n");
    let plain = format!("a{LONG}");
    for (framing, frames, expected) in [
        (Framing::Length(3), vec![data("ab"), data(""), data("c")], Some("abc")),
        (Framing::Length(3), vec![data("ab")], None),
        (Framing::Length(3), vec![data("abcd")], None),
        (Framing::Length(1), vec![data("a"), trailers()], Some("a")),
        (Framing::Length(5_001), vec![data("a"), data(LONG)], Some(&plain)),
        (Framing::Chunked, vec![data("a"), data(LONG)], Some(&chunked)),
        (Framing::None, vec![], Some("")),
        (Framing::None, vec![data("a")], None),
        (Framing::Chunked, vec![], Some("0\r\n\r\n")),
        (
            Framing::Chunked,
            vec![data("ab"), data(""), data("c")],
            Some("2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        ),
        (
            Framing::Chunked,
            vec![data("0123456789"), trailers()],
            Some("a\r\n0123456789\r\n0\r\nx-checksum: 1\r\n\r\n"),
        ),
    ] {
        let mut output = Output::default();
        let shown = format!("{framing:?} {frames:?}");
        let mut rest = framing;
        let added = frames.into_iter().try_for_each(|frame| rest.write(frame, &mut output));
        let ended = added.and_then(|()| rest.end(&mut output));
        let told = ended.ok().map(|()| String::from_utf8(written(&output)).unwrap());
        assert_eq!(told.as_deref(), expected, "{shown}");
    }
}

#[tokio::test]
async fn who_is_ready_already_has_a_turn_before_a_request_is_written() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    // Asked without the runtime, so that what was written is seen at once.
    let server = listener.accept().await.unwrap().0.into_std().unwrap();
    let mut connection = Connection::new(Stream::Plain(near));
    let head = http::Request::get("/a").body(()).unwrap().into_parts().0;
    let turns = std::rc::Rc::new(Cell::new(0));
    let (seen, counts) = (turns.clone(), turns.clone());
    let asking = async move {
        tokio::task::spawn_local(async move { counts.set(counts.get() + 1) });
        let body = Source::new(RequestBody::empty(), time::monotonic()).attempt();
        let spare = Cell::default();
        let mut asking = pin!(connection.ask(&head, None, body, &spare));
        poll_fn(|context| {
            assert!(asking.as_mut().poll(context).is_pending(), "there is no answer yet");
            if matches!(server.peek(&mut [0]), Ok(1)) {
                return Poll::Ready(seen.get());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    };
    let local = tokio::task::LocalSet::new();
    let asking = local.run_until(asking);
    let asking = tokio::time::timeout(std::time::Duration::from_secs(30), asking);
    assert_eq!(asking.await.expect("it is written"), 1, "turns of others by then");
    assert_eq!(turns.get(), 1);
}

/// Lines of a head, good and bad.
fn line() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => Just("content-length: 5\r\n"),
        1 => Just("content-length: 5, 5\r\n"),
        1 => Just("Content-Length: 05\r\n"),
        1 => Just("content-length: 7\r\n"),
        4 => Just("Transfer-Encoding: chunked\r\n"),
        1 => Just("transfer-encoding: gzip\r\n"),
        1 => Just("transfer-encoding: chunked, chunked\r\n"),
        1 => Just("connection: close\r\n"),
        1 => Just("connection: keep-alive\r\n"),
        1 => Just("x-a: 1\r\nx-a: 2\n"),
        1 => Just("x-b:\t\u{e9} \r\n"),
        1 => Just("x-c: a\r\n\tfolded\r\n"),
        1 => Just("x-d : 1\r\n"),
    ]
}

/// What may follow a head.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let words = prop_oneof![
        4 => Just("5\r\nhello\r\n"),
        1 => Just("5 ; a=b\r\nhello\r\n"),
        1 => Just("00000005\r\nhello\r\n"),
        4 => Just("0\r\n\r\n"),
        2 => Just("0\r\nx-t: 1\r\n\r\n"),
        4 => Just("hello"),
        1 => Just("\r\n"),
        1 => Just("\n"),
        1 => Just(" "),
        1 => Just("HTTP/1.1 200 OK\r\n"),
    ];
    prop_oneof![
        20 => words.prop_map(|word| word.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..4),
    ]
}

/// Answers of such parts.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    let status = prop_oneof![
        8 => Just("HTTP/1.1 200 OK\r\n"),
        2 => Just("HTTP/1.0 200 OK\r\n"),
        1 => Just("HTTP/1.1 204 No Content\r\n"),
        1 => Just("HTTP/1.1 304\r\n"),
        1 => Just("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 nowhere to be seen\r\n"),
        1 => Just(""),
    ];
    let lines = proptest::collection::vec(line(), 0..4);
    let parts = proptest::collection::vec(part(), 0..5);
    (status, lines, proptest::bool::weighted(0.9), parts).prop_map(
        |(status, lines, ends, parts)| {
            let end: &[u8] = if ends { b"\r\n" } else { b"" };
            [status.as_bytes(), lines.concat().as_bytes(), end, &parts.concat()].concat()
        },
    )
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![3 => Just(Method::GET), 1 => Just(Method::HEAD)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What is taken here as a whole answer, hyper takes for the same answer.
    #[test]
    fn no_answer_reads_otherwise_than_to_hyper(octets in octets(), method in method()) {
        if let (Ok(read), _) = ours(&[&octets], &method) {
            prop_assert_eq!(Ok(read), hypers(&octets, &method));
        }
    }

    #[test]
    fn the_pieces_that_octets_come_in_change_nothing(
        octets in octets(),
        method in method(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
        cuts.extend([0, octets.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &octets[cut[0]..cut[1]]).collect();
        let (whole, whole_is_kept) = ours(&[&octets], &method);
        let (parts, _) = ours(&pieces, &method);
        prop_assert_eq!(&parts, &whole);
        let each: Vec<&[u8]> = octets.chunks(1).collect();
        let (parts, each_is_kept) = ours(&each, &method);
        prop_assert_eq!((parts, each_is_kept), (whole, whole_is_kept));
    }

    /// Whatever its frames are and whenever there is room for one.
    #[test]
    fn a_body_in_chunks_reads_as_it_was(
        lengths in proptest::collection::vec(
            prop_oneof![0_usize..20, COPIED_MAX_BYTES - 2..COPIED_MAX_BYTES + 2, 8_000_usize..9_000],
            0..8,
        ),
        drains in any::<u64>(),
    ) {
        let mut framing = Framing::Chunked;
        let (mut output, mut sent, mut whole) = (Output::default(), Vec::new(), Vec::new());
        for (number, length) in lengths.iter().enumerate() {
            if !Framing::has_room(&output) || drains >> number & 1 == 1 {
                sent.extend(written(&std::mem::take(&mut output)));
            }
            let data = Bytes::from(vec![number as u8; *length]);
            whole.extend_from_slice(&data);
            framing.write(Frame::data(data), &mut output).unwrap();
        }
        framing.end(&mut output).unwrap();
        sent.extend(written(&output));
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let (read, is_kept) = ours(&[head, &sent], &Method::GET);
        prop_assert_eq!(read.map(|read| read.body), Ok(whole));
        prop_assert!(is_kept);
    }

    /// However much of it the socket takes at a time.
    #[test]
    fn what_is_written_is_written_once_and_in_order(
        text in proptest::collection::vec(any::<u8>(), 0..40),
        piece in proptest::collection::vec(any::<u8>(), 0..40),
        ends in any::<bool>(),
        counts in proptest::collection::vec(1_usize..30, 0..100),
    ) {
        let end: &[u8] = if ends { b"\r\n" } else { b"" };
        let output = Output { text, piece: piece.into(), end };
        let all = written(&output);
        let mut sending = Sending { output, ..Sending::default() };
        let mut taken = Vec::new();
        for count in counts {
            let Sending { output, written, .. } = &sending;
            let left = [&output.text[*written..], &output.piece, output.end].concat();
            let count = count.min(left.len());
            if count == 0 {
                break;
            }
            taken.extend_from_slice(&left[..count]);
            sending.wrote(count);
        }
        let Sending { output, written, .. } = &sending;
        let left = [&output.text[*written..], &output.piece, output.end].concat();
        prop_assert_eq!([taken, left].concat(), all);
    }
}
