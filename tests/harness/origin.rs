//! An upstream that streams: bodies of any length in both directions, trailers, interim answers, and
//! the ways in which an upstream may break off. HTTP/1.1, one thread a connection.
//!
//! The path scripts the answer: its last segment but one says what, its last how much.
//!
//! | path | answer |
//! |---|---|
//! | `…/echo/0` | reads the body; JSON: `line`, `headers`, `body_bytes`, `digest`, `trailers` |
//! | `…/bytes/N` | N octets with their length |
//! | `…/chunks/N` | N octets in chunks |
//! | `…/unframed/N` | N octets until the connection closes |
//! | `…/trailers/N` | N octets in chunks, then the trailers `x-sum` and `x-user-id` |
//! | `…/torn/N` | N octets of twice as many that were announced |
//! | `…/torn-chunks/N` | N octets in a chunk, then nothing more |
//! | `…/fields/N` | N fields `x-field-I`, no body |
//! | `…/wide/N` | one field of N octets, no body |
//! | `…/hints/N` | status 103 with a field N times, then 200 |
//! | `…/early/CODE` | that status at once with 5 octets; the body is not read |
//! | `…/status/CODE` | that status, with 5 octets where it may have a body |
//! | `…/garbage/0` | no HTTP |
//! | `…/hop/0` | fields of the connection, and one that `Connection` names |
//!
//! A request with `Expect: 100-continue` gets 100 where its body is read, and a final answer where not.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{listening::Connections, netns::Namespace};

const PIECE_BYTES: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Shared {
    /// Bodies that ended before their end.
    torn: AtomicU64,
    /// Answers that nobody wanted any more.
    refused: AtomicU64,
}

/// An upstream that serves until it is dropped.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
}

impl Origin {
    /// Starts one in a namespace.
    ///
    /// # Errors
    /// When the address is taken or is none of the namespace's.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Origin> {
        let listener = namespace
            .within(|| TcpListener::bind(address))?
            .with_context(|| format!("upstream on {address}"))?;
        let shared = Arc::new(Shared::default());
        let connections = Arc::new(Connections::default());
        thread::Builder::new().name("origin".to_owned()).spawn({
            let (shared, connections) = (Arc::clone(&shared), Arc::clone(&connections));
            move || {
                connections.accept(&listener, move |stream| {
                    let mut reader = BufReader::with_capacity(PIECE_BYTES, stream);
                    // A broken connection is the peer's to notice.
                    while let Ok(true) = serve(&mut reader, stream, &shared) {}
                });
            }
        })?;
        Ok(Origin { shared, connections })
    }

    /// Request bodies that were broken off.
    pub fn torn(&self) -> u64 {
        self.shared.torn.load(Ordering::SeqCst)
    }

    /// Answers that were not taken to their end.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.connections.end();
    }
}

struct Head {
    line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

fn read_head(reader: &mut BufReader<&TcpStream>) -> Result<Option<Head>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(Head { line: line.trim_end().to_owned(), fields: read_fields(reader)? }))
}

fn read_fields(reader: &mut BufReader<&TcpStream>) -> Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let mut field = String::new();
        anyhow::ensure!(reader.read_line(&mut field)? > 0, "the head ends half way");
        let field = field.trim_end();
        if field.is_empty() {
            return Ok(fields);
        }
        let (name, value) = field.split_once(':').context("a field without colon")?;
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}

/// What became of a request's body.
#[derive(Default)]
struct Read {
    bytes: u64,
    /// All octets were `u`, which is what the clients send.
    intact: bool,
    trailers: Vec<(String, String)>,
}

fn read_body(reader: &mut BufReader<&TcpStream>, head: &Head) -> Result<Read> {
    let mut read = Read { intact: true, ..Read::default() };
    if head.field("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).context("the size of a chunk")?;
            if size == 0 {
                read.trailers = read_fields(reader)?;
                return Ok(read);
            }
            swallow(reader, size, &mut read)?;
            let mut end = String::new();
            reader.read_line(&mut end)?;
        }
    }
    let length: u64 = head.field("content-length").map_or(Ok(0), str::parse)?;
    swallow(reader, length, &mut read)?;
    Ok(read)
}

fn swallow(reader: &mut BufReader<&TcpStream>, mut left: u64, read: &mut Read) -> Result<()> {
    while left > 0 {
        let here = reader.fill_buf()?;
        anyhow::ensure!(!here.is_empty(), "the body ends half way");
        let size = here.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        read.intact &= here[..size].iter().all(|octet| *octet == b'u');
        read.bytes += size as u64;
        left -= size as u64;
        reader.consume(size);
    }
    Ok(())
}

/// Serves one request; false when the connection is to close.
fn serve(
    reader: &mut BufReader<&TcpStream>,
    mut stream: &TcpStream,
    shared: &Shared,
) -> Result<bool> {
    let Some(head) = read_head(reader)? else { return Ok(false) };
    let mut words = head.line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let mut segments = path.rsplit('/');
    let count: u64 = segments.next().and_then(|last| last.parse().ok()).unwrap_or(0);
    let what = segments.next().unwrap_or_default();
    if what == "early" {
        let answer = format!("HTTP/1.1 {count} Early\r\nContent-Length: 5\r\n\r\nearly");
        stream.write_all(answer.as_bytes())?;
        // The rest may still come; what is not read before the close would reset the connection
        // and the answer with it (RFC 9112 section 9.6).
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let _rest = io::copy(reader, &mut io::sink());
        return Ok(false);
    }
    if head.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let read = match read_body(reader, &head) {
        Ok(read) => read,
        Err(error) => {
            shared.torn.fetch_add(1, Ordering::SeqCst);
            return Err(error);
        }
    };
    let answered = answer(stream, method == "HEAD", what, count, &head, &read);
    if answered.is_err() {
        shared.refused.fetch_add(1, Ordering::SeqCst);
    }
    answered
}

fn answer(
    mut stream: &TcpStream,
    is_head: bool,
    what: &str,
    count: u64,
    head: &Head,
    read: &Read,
) -> Result<bool> {
    let length = format!("Content-Length: {count}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let mut start = |status: &str, fields: &str| {
        stream.write_all(format!("HTTP/1.1 {status}\r\n{fields}\r\n").as_bytes())
    };
    match what {
        "echo" => {
            let told = echo(head, read).to_string();
            start("200 OK", &format!("Content-Length: {}\r\n", told.len()))?;
            if !is_head {
                stream.write_all(told.as_bytes())?;
            }
        }
        "bytes" => {
            start("200 OK", &length)?;
            if !is_head {
                send(stream, count, false)?;
            }
        }
        "chunks" | "trailers" => {
            let announced = "Trailer: x-sum, x-user-id\r\n";
            let fields = if what == "chunks" { "" } else { announced };
            start("200 OK", &format!("{chunked}{fields}"))?;
            if !is_head {
                send(stream, count, true)?;
                let trailers =
                    if what == "chunks" { "" } else { "x-sum: 42\r\ncontent-length: 1\r\n" };
                stream.write_all(format!("0\r\n{trailers}\r\n").as_bytes())?;
            }
        }
        "unframed" => {
            start("200 OK", "Connection: close\r\n")?;
            send(stream, count, false)?;
            return Ok(false);
        }
        "torn" => {
            start("200 OK", &format!("Content-Length: {}\r\n", count * 2))?;
            send(stream, count, false)?;
            return Ok(false);
        }
        "torn-chunks" => {
            start("200 OK", chunked)?;
            send(stream, count, true)?;
            return Ok(false);
        }
        "fields" => {
            let fields = (0..count).fold(String::new(), |mut fields, index| {
                let _fits = write!(fields, "x-field-{index}: {index}\r\n");
                fields
            });
            start("200 OK", &format!("Content-Length: 0\r\n{fields}"))?;
        }
        "wide" => {
            let value = "w".repeat(usize::try_from(count)?);
            start("200 OK", &format!("Content-Length: 0\r\nx-wide: {value}\r\n"))?;
        }
        "hints" => {
            for _ in 0..count {
                start("103 Early Hints", "Link: </style.css>; rel=preload\r\n")?;
            }
            start("200 OK", "Content-Length: 0\r\n")?;
        }
        "status" => {
            let bodiless = matches!(count, 204 | 304) || is_head;
            let fields = if count == 204 { "" } else { "Content-Length: 5\r\n" };
            start(&format!("{count} Asked"), fields)?;
            if !bodiless {
                stream.write_all(b"asked")?;
            }
        }
        "hop" => start(
            "200 OK",
            "Content-Length: 0\r\nConnection: x-private\r\nx-private: 1\r\nKeep-Alive: 5\r\n\
             Proxy-Connection: x\r\nx-kept: 1\r\n",
        )?,
        _ => {
            stream.write_all(b"hello\r\n\r\n")?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn echo(head: &Head, read: &Read) -> Value {
    json!({
        "line": head.line,
        "headers": head.fields,
        "body_bytes": read.bytes,
        "intact": read.intact,
        "trailers": read.trailers,
    })
}

fn send(mut stream: &TcpStream, count: u64, chunked: bool) -> io::Result<()> {
    let piece = vec![b'x'; PIECE_BYTES];
    let mut left = count;
    while left > 0 {
        let size = left.min(PIECE_BYTES as u64);
        left -= size;
        if chunked {
            stream.write_all(format!("{size:x}\r\n").as_bytes())?;
        }
        // It fits, being no more than a piece.
        stream.write_all(&piece[..size as usize])?;
        if chunked {
            stream.write_all(b"\r\n")?;
        }
    }
    Ok(())
}
