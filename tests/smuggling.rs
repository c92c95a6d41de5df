//! Requests that two programs could read differently: each is refused, or what reaches the upstream is
//! one request in plain form, as an upstream sees it that keeps every octet.
//!
//! After each case the same connection is asked for something harmless: what was hidden in the case
//! must not become that request's beginning.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    binary,
    harness::{
        clock,
        gateway::SOON,
        netns::Namespace,
        site::{HOST, Site},
    },
    proxy_protocol::{hex, raw, status},
};

/// Where the recorder listens, beside the gateway.
const RECORDER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9002);

/// What each upstream connection sent, octet by octet.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

impl Recorder {
    fn start(namespace: &Namespace) -> Result<Recorder> {
        let recorder = Recorder::default();
        let listener = namespace.within(|| TcpListener::bind(RECORDER))??;
        let kept = recorder.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                thread::spawn(move || kept.serve(stream));
            }
        });
        Ok(recorder)
    }

    /// Keeps everything, and answers each request that is whole in plain form.
    fn serve(&self, mut stream: TcpStream) {
        let place = {
            let mut kept = self.kept();
            kept.push(Vec::new());
            kept.len() - 1
        };
        let mut answered = 0;
        let mut buffer = [0; 65_536];
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 {
                return;
            }
            let whole = {
                let mut kept = self.kept();
                kept[place].extend_from_slice(&buffer[..count]);
                // What is in no plain form is never answered, and the test looks at it in the end.
                requests(&kept[place]).map_or(0, |(requests, _)| requests.len())
            };
            for _ in answered..whole {
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
            answered = whole;
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All requests of all connections.
    fn requests(&self) -> Result<Vec<Plain>> {
        let mut all = Vec::new();
        for octets in self.kept().iter() {
            let shown = || String::from_utf8_lossy(octets).into_owned();
            let (requests, rest) = requests(octets).with_context(shown)?;
            // An upload that was broken off may leave a beginning, never anything else.
            ensure!(rest.is_empty() || rest.starts_with(b"POST "), "left over: {}", shown());
            all.extend(requests);
        }
        Ok(all)
    }
}

/// A request in plain form.
#[derive(Clone, Debug)]
struct Plain {
    line: String,
    body: Vec<u8>,
}

/// Reads octets as the strictest of servers would: one framing for each request, lines that end in
/// CRLF, names of letters and hyphens, chunks without extensions. What is not whole stays over.
fn requests(mut octets: &[u8]) -> Result<(Vec<Plain>, &[u8])> {
    let mut found = Vec::new();
    while let Some(end) = octets.windows(4).position(|four| four == b"\r\n\r\n") {
        let (head, rest) = (&octets[..end], &octets[end + 4..]);
        let head = std::str::from_utf8(head).context("a head that is no text")?;
        ensure!(!head.contains('\0'), "NUL in {head:?}");
        let mut lines = head.split("\r\n");
        let line = lines.next().context("a request line")?;
        ensure!(line.split(' ').count() == 3 && line.ends_with(" HTTP/1.1"), "{line:?}");
        let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
        for field in lines {
            ensure!(!field.contains(['\r', '\n']), "{field:?}");
            let (name, value) = field.split_once(": ").with_context(|| format!("{field:?}"))?;
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            ensure!(is_plain && !name.is_empty(), "{field:?}");
            match name.to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value.to_owned()),
                "transfer-encoding" => codings.push(value.to_owned()),
                "host" => hosts += 1,
                _ => {}
            }
        }
        ensure!(hosts == 1, "{hosts} hosts: {head}");
        ensure!(lengths.len() + codings.len() <= 1, "two framings: {head}");
        let (body, after) = if let Some(coding) = codings.first() {
            ensure!(coding == "chunked", "{head}");
            let Some(found) = chunks(rest)? else { break };
            found
        } else {
            let length = lengths.first().map_or(Ok(0), |length| {
                ensure!(length.bytes().all(|byte| byte.is_ascii_digit()), "{length:?}");
                Ok(length.parse::<usize>()?)
            })?;
            let Some((body, after)) = rest.split_at_checked(length) else { break };
            (body.to_vec(), after)
        };
        found.push(Plain { line: line.to_owned(), body });
        octets = after;
    }
    Ok((found, octets))
}

/// A chunked body, and what follows; `None`: not whole.
fn chunks(mut octets: &[u8]) -> Result<Option<(Vec<u8>, &[u8])>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = octets.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&octets[..end])?;
        ensure!(
            !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "chunk size {size:?}"
        );
        let size = usize::from_str_radix(size, 16)?;
        let Some((data, rest)) = octets[end + 2..].split_at_checked(size) else { return Ok(None) };
        body.extend_from_slice(data);
        let Some((line_end, after)) = rest.split_at_checked(2) else { return Ok(None) };
        ensure!(line_end == b"\r\n", "a chunk is longer than it says");
        octets = after;
        if size == 0 {
            return Ok(Some((body, octets)));
        }
    }
}

/// What a case may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// An answer of this class, and nothing of it at the upstream.
    Refused,
    /// One request at the upstream, with that body.
    Forwarded(&'static str),
    /// Either, as long as what is forwarded is plain.
    Either,
}

use End::{Either, Forwarded, Refused};

/// A request whose body hides another, with these fields in place of its framing.
fn hidden(fields: &str, body: &str) -> String {
    format!("POST /public/case HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n{body}")
}

/// What is hidden: were it ever a request, the upstream would hear of `/public/smuggled`.
const SMUGGLED: &str = "GET /public/smuggled HTTP/1.1\r\nHost: gateway.test\r\nX: ";

fn chunked(rest: &str) -> String {
    hidden("Transfer-Encoding: chunked", rest)
}

fn line(line: &str) -> String {
    format!("{line}\r\nHost: {HOST}\r\n\r\n")
}

fn field(field: &str) -> String {
    format!("GET /public/case HTTP/1.1\r\nHost: {HOST}\r\n{field}\r\n\r\n")
}

fn lengths() -> Vec<(&'static str, String, End)> {
    let of = |fields: &str| hidden(fields, SMUGGLED);
    vec![
        ("length and coding", of("Content-Length: 6\r\nTransfer-Encoding: chunked"), Refused),
        (
            "coding and length",
            hidden(
                "Transfer-Encoding: chunked\r\nContent-Length: 4",
                &format!("0\r\n\r\n{SMUGGLED}"),
            ),
            Refused,
        ),
        ("two lengths", of("Content-Length: 0\r\nContent-Length: 5"), Refused),
        ("the same length twice", hidden("Content-Length: 2\r\nContent-Length: 2", "ab"), Either),
        ("a list of lengths", of("Content-Length: 0, 5"), Refused),
        ("a list of equal lengths", hidden("Content-Length: 2, 2", "ab"), Either),
        ("+5", of("Content-Length: +5"), Refused),
        ("-1", of("Content-Length: -1"), Refused),
        ("0x5", of("Content-Length: 0x5"), Refused),
        ("5a", of("Content-Length: 5a"), Refused),
        ("5 5", of("Content-Length: 5 5"), Refused),
        ("5.0", of("Content-Length: 5.0"), Refused),
        ("1e1", of("Content-Length: 1e1"), Refused),
        ("1_0", of("Content-Length: 1_0"), Refused),
        ("an empty length", of("Content-Length:"), Refused),
        ("a length of blanks", of("Content-Length:   "), Refused),
        ("2^64", of("Content-Length: 18446744073709551616"), Refused),
        ("2^64 + 2", of("Content-Length: 18446744073709551618"), Refused),
        ("a quoted length", of("Content-Length: \"5\""), Refused),
        ("a length after blanks", hidden("Content-Length:   2", "ab"), Forwarded("ab")),
        ("a length before a tab", hidden("Content-Length: 2\t", "ab"), Either),
        ("leading zeros", hidden("Content-Length: 002", "ab"), Either),
        ("a blank before the colon", of("Content-Length : 6"), Refused),
        ("a tab before the colon", of("Content-Length\t: 6"), Refused),
        ("a vertical tab in the value", of("Content-Length: \u{b}6"), Refused),
        (
            "a length of a GET",
            line("GET /public/case HTTP/1.1\r\nContent-Length: 0"),
            Forwarded(""),
        ),
    ]
}

fn codings() -> Vec<(&'static str, String, End)> {
    let of = |coding: &str| {
        hidden(&format!("Transfer-Encoding: {coding}"), &format!("0\r\n\r\n{SMUGGLED}"))
    };
    let ended =
        |coding: &str| hidden(&format!("Transfer-Encoding: {coding}"), "2\r\nab\r\n0\r\n\r\n");
    vec![
        ("identity", of("identity"), Refused),
        ("chunked twice", of("chunked, chunked"), Refused),
        ("chunked first", of("chunked, identity"), Refused),
        ("gzip alone", of("gzip"), Refused),
        ("xchunked", of("xchunked"), Refused),
        ("chunkedx", of("chunkedx"), Refused),
        ("a comma after", of("chunked,"), Either),
        ("a comma before", of(",chunked"), Either),
        ("with a parameter", of("chunked;q=1"), Refused),
        ("quoted", of("\"chunked\""), Refused),
        ("an empty coding", of(""), Refused),
        ("in capitals", ended("CHUNKED"), Forwarded("ab")),
        ("after a tab", ended("\tchunked"), Either),
        ("a vertical tab before", of("\u{b}chunked"), Refused),
        ("a NUL after", of("chunked\0"), Refused),
        ("a blank before the colon", hidden("Transfer-Encoding : chunked", SMUGGLED), Refused),
        ("folded", hidden("Transfer-Encoding:\r\n chunked", SMUGGLED), Refused),
        (
            "two fields",
            hidden("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", SMUGGLED),
            Refused,
        ),
        (
            "an underscore",
            hidden("Transfer_Encoding: chunked\r\nContent-Length: 2", "ab"),
            Forwarded("ab"),
        ),
        (
            "an underscore in the length",
            hidden("Content_Length: 9\r\nContent-Length: 2", "ab"),
            Forwarded("ab"),
        ),
        ("HTTP/1.0", of("chunked").replacen("HTTP/1.1", "HTTP/1.0", 1), Refused),
        (
            "named by Connection",
            hidden(
                "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
                "2\r\nab\r\n0\r\n\r\n",
            ),
            Forwarded("ab"),
        ),
        (
            "the length named by Connection",
            hidden("Connection: content-length\r\nContent-Length: 2", "ab"),
            Forwarded("ab"),
        ),
    ]
}

fn chunk_lines() -> Vec<(&'static str, String, End)> {
    let last = "0\r\n\r\n";
    vec![
        ("plain", chunked(&format!("2\r\nab\r\n{last}")), Forwarded("ab")),
        ("leading zeros", chunked(&format!("0002\r\nab\r\n{last}")), Either),
        ("an extension", chunked(&format!("2;a=b\r\nab\r\n{last}")), Either),
        ("a NUL in an extension", chunked(&format!("2;a=\0\r\nab\r\n{last}")), Either),
        ("a line feed in an extension", chunked(&format!("2;a\n\r\nab\r\n{last}")), Refused),
        ("a carriage return in an extension", chunked(&format!("2;a\rb\r\nab\r\n{last}")), Refused),
        (
            "a quoted line end in an extension",
            chunked(&format!("2;a=\"\r\n\"\r\nab\r\n{last}")),
            Refused,
        ),
        ("LF alone after the size", chunked(&format!("2\nab\r\n{last}")), Refused),
        ("LF alone after the data", chunked(&format!("2\r\nab\n{last}")), Refused),
        ("CR alone after the size", chunked(&format!("2\rab\r\n{last}")), Refused),
        ("no size", chunked(&format!("\r\nab\r\n{last}")), Refused),
        ("-2", chunked(&format!("-2\r\nab\r\n{last}")), Refused),
        ("+2", chunked(&format!("+2\r\nab\r\n{last}")), Refused),
        ("0x2", chunked(&format!("0x2\r\nab\r\n{last}")), Refused),
        ("a blank before the size", chunked(&format!(" 2\r\nab\r\n{last}")), Refused),
        ("a blank after the size", chunked(&format!("2 \r\nab\r\n{last}")), Either),
        ("not hexadecimal", chunked(&format!("2g\r\nab\r\n{last}")), Refused),
        ("2^64", chunked(&format!("10000000000000002\r\nab\r\n{last}")), Refused),
        ("longer than it says", chunked(&format!("1\r\nab\r\n{last}")), Refused),
        ("a trailer", chunked("2\r\nab\r\n0\r\nX-User-ID: root\r\n\r\n"), Forwarded("ab")),
        (
            "a length in the trailer",
            chunked("2\r\nab\r\n0\r\nContent-Length: 9\r\n\r\n"),
            Forwarded("ab"),
        ),
        ("a broken trailer", chunked("2\r\nab\r\n0\r\nX y\r\n\r\n"), Either),
    ]
}

fn lines() -> Vec<(&'static str, String, End)> {
    vec![
        ("LF alone", line("GET /public/case HTTP/1.1\nX: y"), Either),
        ("CR alone in the line", line("GET /public/case\rHTTP/1.1"), Refused),
        ("CR alone between fields", field("X: y\rTransfer-Encoding: chunked"), Refused),
        ("LF alone between fields", field("X: y\nX-Z: chunked"), Either),
        ("NUL in a value", field("X: a\0b"), Refused),
        ("NUL in a name", field("X\0: a"), Refused),
        ("a DEL in a value", field("X: a\u{7f}b"), Refused),
        ("a folded field", field("X: a\r\n b"), Refused),
        ("a field without a name", field(": a"), Refused),
        ("a field without a colon", field("X"), Refused),
        ("a blank in a name", field("X Y: a"), Refused),
        ("a blank before the first field", field(" X: a"), Refused),
        ("two blanks in the line", line("GET  /public/case HTTP/1.1"), Refused),
        ("a tab in the line", line("GET\t/public/case HTTP/1.1"), Refused),
        ("a blank in the target", line("GET /public/case /x HTTP/1.1"), Refused),
        ("no version", line("GET /public/case"), Refused),
        ("HTTP/1.2", line("GET /public/case HTTP/1.2"), Refused),
        ("HTTP/2.0", line("GET /public/case HTTP/2.0"), Refused),
        ("http/1.1", line("GET /public/case http/1.1"), Refused),
        ("HTTP/01.1", line("GET /public/case HTTP/01.1"), Refused),
        ("a method of brackets", line("G[E]T /public/case HTTP/1.1"), Refused),
        ("blank lines before", format!("\r\n\r\n{}", line("GET /public/case HTTP/1.1")), Either),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), Refused),
    ]
}

fn targets() -> Vec<(&'static str, String, End)> {
    let get = |target: &str| line(&format!("GET {target} HTTP/1.1"));
    vec![
        (
            "CONNECT",
            "CONNECT gateway.test:443 HTTP/1.1\r\nHost: gateway.test:443\r\n\r\n".to_owned(),
            Refused,
        ),
        (
            "CONNECT with a body",
            hidden("Content-Length: 2", "ab").replacen("POST", "CONNECT", 1),
            Refused,
        ),
        ("absolute form", get(&format!("http://{HOST}/public/case")), Forwarded("")),
        ("absolute form of another host", get("http://other.test/public/case"), Refused),
        ("absolute form with a user", get(&format!("http://x@{HOST}/public/case")), Refused),
        ("no host", "GET /public/case HTTP/1.1\r\n\r\n".to_owned(), Refused),
        ("two hosts", field(&format!("Host: {HOST}")), Refused),
        ("another second host", field("Host: other.test"), Refused),
        ("an empty host", "GET /public/case HTTP/1.1\r\nHost:\r\n\r\n".to_owned(), Refused),
        (
            "a host with a path",
            format!("GET /public/case HTTP/1.1\r\nHost: {HOST}/x\r\n\r\n"),
            Refused,
        ),
        (
            "a host with a user",
            format!("GET /public/case HTTP/1.1\r\nHost: x@{HOST}\r\n\r\n"),
            Refused,
        ),
        (
            "a host with a comma",
            format!("GET /public/case HTTP/1.1\r\nHost: {HOST},x\r\n\r\n"),
            Refused,
        ),
        (
            "a port that is none",
            format!("GET /public/case HTTP/1.1\r\nHost: {HOST}:x\r\n\r\n"),
            Refused,
        ),
        ("a relative target", get("public/case"), Refused),
        ("dots", get("/public/../public/case"), Refused),
        ("encoded dots", get("/public/%2e%2e/public/case"), Refused),
        ("an encoded slash", get("/public%2fcase"), Refused),
        ("two slashes", get("//public/case"), Refused),
        ("a backslash", get("/public\\case"), Refused),
        ("an encoded line end", get("/public/case%0d%0aX:y"), Refused),
        ("an encoded NUL", get("/public/case%00"), Refused),
        ("a fragment", get("/public/case#/x"), Either),
        (
            "an upgrade to HTTP/2",
            field(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            ),
            Either,
        ),
        (
            "an upgrade with a request behind it",
            format!("{}{SMUGGLED}", field("Connection: Upgrade\r\nUpgrade: websocket")),
            Either,
        ),
    ]
}

#[test]
fn nothing_that_reads_two_ways_is_passed_on() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "smuggling")?;
    let recorder = Recorder::start(&site.gateway_host)?;
    site.config.upstream = RECORDER;
    site.config.bans = "enabled = false".to_owned();
    let gateway = site.start()?;
    let cases: Vec<_> =
        [lengths(), codings(), chunk_lines(), lines(), targets()].into_iter().flatten().collect();
    let sent: Vec<Value> = cases
        .iter()
        .enumerate()
        .map(|(number, (_, request, _))| {
            let request = request.replace("/public/case", &format!("/public/case/{number}"));
            let then = line(&format!("GET /public/then/{number} HTTP/1.1"));
            json!({ "send": hex(request), "then": hex(then) })
        })
        .collect();
    // What is waited for has not ended when the limit passes, and such a case is none of these.
    let answers = raw(&site, json!({ "cases": sent, "limit_s": 20, "threads": 8 }))?;
    let seen = recorder.requests()?;
    let mut refused = 0;
    for (number, ((what, request, end), answer)) in cases.iter().zip(&answers).enumerate() {
        let (first, second) = (status(&answer["first"]), status(&answer["second"]));
        let context = || format!("{what}: {request:?}: {answer}");
        let own = format!("/public/case/{number} ");
        let forwarded: Vec<&Plain> =
            seen.iter().filter(|plain| plain.line.contains(&own)).collect();
        ensure!(matches!(second, 0 | 200 | 400), "{}", context());
        match end {
            Refused => {
                // Closed without a word is refused too.
                let is_closed = first == 0 && answer["error"].is_null();
                ensure!(is_closed || (400..=505).contains(&first), "{}", context());
                ensure!(forwarded.is_empty(), "{}: {forwarded:?}", context());
            }
            Forwarded(body) => {
                ensure!(first == 200 && forwarded.len() == 1, "{}: {forwarded:?}", context());
                ensure!(forwarded[0].body == body.as_bytes(), "{}: {forwarded:?}", context());
            }
            Either => ensure!(forwarded.len() <= 1, "{}: {forwarded:?}", context()),
        }
        refused += usize::from(first >= 400);
    }
    // And nothing else came: neither what was hidden, nor a harmless request with something before it.
    for plain in &seen {
        let mut words = plain.line.split(' ');
        let target = words.nth(1).unwrap_or_default();
        let is_sent = ["/public/case/", "/public/then/"].iter().any(|start| {
            target.strip_prefix(start).is_some_and(|number| number.parse::<usize>().is_ok())
        });
        ensure!(is_sent, "{plain:?}");
    }
    println!("{} requests, {refused} of them refused", cases.len());
    ensure!(cases.len() >= 110);
    let count =
        || gateway.metric("gateway_http_refusals_total", &[("reason", "malformed_request")]);
    clock::wait_for("the refusals to be counted", SOON, || Ok((count()? >= 60.0).then_some(())))?;
    Ok(())
}

#[test]
fn a_body_is_forwarded_as_it_was_judged_whatever_its_pieces() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "reframed")?;
    let recorder = Recorder::start(&site.gateway_host)?;
    site.config.upstream = RECORDER;
    let _gateway = site.start()?;
    // Two requests in one piece: the second begins where the first ends, and nowhere else.
    let two = format!(
        "{}{}",
        chunked("5;x=\"y\"\r\nGET /\r\n3\r\n\r\n\r\r\n0\r\n\r\n"),
        line("GET /public/second HTTP/1.1")
    );
    let answers = raw(&site, json!({ "cases": [{ "send": hex(two), "second": true }] }))?;
    let both = (status(&answers[0]["first"]), status(&answers[0]["second"]));
    ensure!(both == (200, 200), "{answers:?}");
    let seen = recorder.requests()?;
    let lines: Vec<&str> = seen.iter().map(|plain| plain.line.as_str()).collect();
    ensure!(lines == ["POST /public/case HTTP/1.1", "GET /public/second HTTP/1.1"], "{seen:?}");
    ensure!(seen[0].body == b"GET /\r\n\r", "{seen:?}");
    let forged: Vec<Value> = ["X-User-ID: root", "X_User_ID: root", "Forwarded: for=1"]
        .iter()
        .map(|trailer| json!({ "send": hex(chunked(&format!("0\r\n{trailer}\r\n\r\n"))) }))
        .collect();
    raw(&site, json!({ "cases": forged }))?;
    let kept = recorder.kept().concat();
    ensure!(!String::from_utf8_lossy(&kept).contains("root"), "a trailer crossed");
    Ok(())
}
