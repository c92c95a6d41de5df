//! An upstream on sockets: one thread a connection, answers with what it saw as JSON, counts requests.
//!
//! The path scripts the answer, so that a test says what it needs where it asks for it:
//! `…/delay/MILLISECONDS` waits first, `…/bytes/COUNT` answers with that many bytes,
//! `…/flap/COUNT` well so many times and then with status 503 as many times, `…/status/CODE` with that
//! status, `…/health` with 503 while it is told to be ill, `…/break` closes without an answer, `…/excess` breaks the rules
//! with a body under status 204, anything else echoes.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{flood, listening::Connections, netns::Namespace};

/// A longer head or body is no business of a test.
const MAX_HEAD_BYTES: u64 = 1 << 20;
const MAX_BODY_BYTES: u64 = 64 << 20;
/// A script may not hold a test longer than this.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// Sees every request.
type Witness = Box<dyn Fn(&Request) + Send + Sync>;

#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    flaps: AtomicU64,
    is_ill: AtomicBool,
    witness: Option<Witness>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Shared").field("requests", &self.requests).finish_non_exhaustive()
    }
}

/// An upstream that serves until it is dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
}

impl Upstream {
    /// Starts one in a namespace; port 0 lets the kernel choose. `core` keeps it on one core.
    ///
    /// # Errors
    /// When the address is taken or is none of the namespace's.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        core: Option<usize>,
    ) -> Result<Upstream> {
        Upstream::serve(namespace, address, core, Shared::default())
    }

    /// Starts one that shows each request to `witness` before it answers.
    ///
    /// # Errors
    /// When the address is taken or is none of the namespace's.
    pub fn watched(
        namespace: &Namespace,
        address: SocketAddr,
        witness: impl Fn(&Request) + Send + Sync + 'static,
    ) -> Result<Upstream> {
        let shared = Shared { witness: Some(Box::new(witness)), ..Shared::default() };
        Upstream::serve(namespace, address, None, shared)
    }

    fn serve(
        namespace: &Namespace,
        address: SocketAddr,
        core: Option<usize>,
        shared: Shared,
    ) -> Result<Upstream> {
        let listener = namespace
            .within(|| TcpListener::bind(address))?
            .with_context(|| format!("upstream on {address}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(shared);
        let connections = Arc::new(Connections::default());
        thread::Builder::new().name("upstream".to_owned()).spawn({
            let (shared, connections) = (Arc::clone(&shared), Arc::clone(&connections));
            move || {
                if let Some(core) = core {
                    // On a machine with fewer cores it runs where it can.
                    let _elsewhere = flood::pin_to_core(core);
                }
                connections.accept(&listener, move |stream| {
                    // A broken connection is the peer's to notice.
                    let _ended = serve(stream, &shared);
                });
            }
        })?;
        Ok(Upstream { address, shared, connections })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether `…/health` is answered with 503 from now on.
    pub fn be_ill(&self, is_ill: bool) {
        self.shared.is_ill.store(is_ill, Ordering::SeqCst);
    }

    /// Answers of `…/flap/COUNT`.
    pub fn flaps(&self) -> u64 {
        self.shared.flaps.load(Ordering::SeqCst)
    }

    /// Requests whose head arrived whole.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.connections.end();
    }
}

/// Answers requests of one connection until it closes.
fn serve(stream: &TcpStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        if let Some(witness) = &shared.witness {
            witness(&request);
        }
        let Some(answer) = answer(&request, shared) else { return Ok(()) };
        let mut stream = stream;
        stream.write_all(&answer)?;
        let path = request.line.split(' ').nth(1).unwrap_or_default();
        match path.rsplit('/').next().unwrap_or_default() {
            "cut" | "cut-chunk" | "garbage" | "last" => return Ok(()),
            "stall" => thread::sleep(MAX_DELAY),
            _ => {}
        }
    }
    Ok(())
}

/// A request as it arrived: names as spelled, in order.
#[derive(Debug)]
pub struct Request {
    /// Method, path and version.
    pub line: String,
    /// Its fields.
    pub headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Result<Option<Request>> {
    let mut head = reader.by_ref().take(MAX_HEAD_BYTES);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut field = String::new();
        if head.read_line(&mut field)? == 0 {
            return Ok(None);
        }
        let field = field.trim_end();
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').context("a field without colon")?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request { line: line.trim_end().to_owned(), headers, body: Vec::new() };
    request.body = read_body(reader, &request)?;
    Ok(Some(request))
}

fn read_body(reader: &mut BufReader<&TcpStream>, request: &Request) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if request.field("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).context("chunk size")?;
            anyhow::ensure!(body.len() as u64 + size <= MAX_BODY_BYTES, "body too large");
            reader.by_ref().take(size).read_to_end(&mut body)?;
            let mut end = String::new();
            reader.read_line(&mut end)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length: u64 = request.field("content-length").map_or(Ok(0), str::parse)?;
    anyhow::ensure!(length <= MAX_BODY_BYTES, "body too large");
    reader.by_ref().take(length).read_to_end(&mut body)?;
    Ok(body)
}

impl Request {
    fn field(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    fn echo(&self) -> Value {
        json!({
            "line": self.line,
            "headers": self.headers,
            "body_bytes": self.body.len(),
        })
    }
}

/// The whole answer, or `None` to close without one.
fn answer(request: &Request, shared: &Shared) -> Option<Vec<u8>> {
    let path = request.line.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let mut words = path.rsplit('/');
    let (last, before) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut status = 200;
    let mut body = request.echo().to_string().into_bytes();
    match (before, last.parse::<u64>()) {
        ("delay", Ok(delay_ms)) => thread::sleep(Duration::from_millis(delay_ms).min(MAX_DELAY)),
        ("bytes", Ok(count)) => body = vec![b'x'; count.min(MAX_BODY_BYTES) as usize],
        ("status", Ok(code)) => status = code,
        ("flap", Ok(count)) => {
            let is_ill = shared.flaps.fetch_add(1, Ordering::SeqCst) / count.max(1) % 2 == 1;
            status = if is_ill { 503 } else { 200 };
        }
        _ if last == "health" && shared.is_ill.load(Ordering::SeqCst) => status = 503,
        _ if last == "break" => return None,
        _ if last == "garbage" => return Some(b"\x16\x03\x01 no HTTP\r\n\r\n".to_vec()),
        _ if matches!(last, "cut" | "stall") => {
            return Some(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun".to_vec());
        }
        _ if last == "cut-chunk" => {
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n";
            return Some(head.to_vec());
        }
        _ if last == "excess" => {
            return Some(b"HTTP/1.1 204 Scripted\r\ncontent-length: 5\r\n\r\nhello".to_vec());
        }
        _ => {}
    }
    if status == 204 {
        // RFC 9110 section 8.6: neither body nor length.
        return Some(b"HTTP/1.1 204 Scripted\r\n\r\n".to_vec());
    }
    let mut answer = format!(
        "HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.append(&mut body);
    Some(answer)
}
