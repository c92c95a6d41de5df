//! WebSocket: a request that becomes two streams of octets (RFC 6455 over HTTP/1.1, RFC 8441 over
//! HTTP/2). Towards the upstream it is always HTTP/1.1's.
//!
//! It is judged like any request, and again whenever the rules, the keys or the lists change, and every
//! few seconds, because tokens, certificates and lists end by themselves: whoever would be refused now
//! does not go on. Nothing passes before the upstream has agreed. Other upgrades
//! are not offered: the field is taken off and the request served without (RFC 9110 section 7.8).

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    sync::{Notify, oneshot},
    time::MissedTickBehavior,
};

use super::{body::Body, connection::Connection, exchange::identify, guard::Watch};
use crate::{
    identity::token::Clock,
    policy::{Refusal, facts::Facts, recheck},
    time,
    upstream::http1::stream::Upgraded,
};

/// What is joined to a key before it is digested (RFC 6455 section 1.3).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How long a WebSocket may outlive what it was permitted by, when that ends because time passes. Less
/// than clocks differ anyway, and a look is as cheap as a request's.
const JUDGED_EVERY: Duration = Duration::from_secs(5);

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A request to become a WebSocket.
pub struct Asked {
    /// `None` over HTTP/1.1, where the whole connection becomes the client's stream.
    http2: Option<OnUpgrade>,
    /// What the upstream has to prove that it has read.
    key: HeaderValue,
    /// For judging again.
    uri: Uri,
    fields: HeaderMap,
    /// Joins the log lines of the request and of what became of it.
    request_id: String,
    idle_timeout: Duration,
}

/// What a request asks to become. An extended CONNECT is a GET from here on, as it would be over
/// HTTP/1.1: routes know no CONNECT.
///
/// # Errors
/// [`Refusal::UpgradeNotOffered`] for another extended CONNECT, [`Refusal::MalformedRequest`] for an
/// upgrade with a body.
pub fn asked(parts: &mut Parts) -> Result<Option<Asked>, Refusal> {
    let is_http2 = match parts.extensions.get::<hyper::ext::Protocol>() {
        Some(protocol) if parts.method == Method::CONNECT => {
            if protocol.as_str() != "websocket" {
                return Err(Refusal::UpgradeNotOffered);
            }
            true
        }
        _ if asks_http1(parts) => false,
        _ => return Ok(None),
    };
    let length = parts.headers.get(header::CONTENT_LENGTH);
    if length.is_some_and(|length| length != "0")
        || parts.headers.contains_key(header::TRANSFER_ENCODING)
    {
        return Err(Refusal::MalformedRequest("an upgrade with a body"));
    }
    let key = match parts.headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) if !is_http2 => key.clone(),
        None if is_http2 => new_key()?,
        _ => {
            return Err(Refusal::MalformedRequest(
                "Sec-WebSocket-Key is HTTP/1.1's and needed there",
            ));
        }
    };
    parts.method = Method::GET;
    let mut bare = Request::new(());
    *bare.extensions_mut() = std::mem::take(&mut parts.extensions);
    let client = hyper::upgrade::on(&mut bare);
    Ok(Some(Asked {
        http2: is_http2.then_some(client),
        key,
        uri: parts.uri.clone(),
        fields: parts.headers.clone(),
        request_id: String::new(),
        idle_timeout: Duration::ZERO,
    }))
}

fn asks_http1(parts: &Parts) -> bool {
    let lists = |name, word: &str| {
        let values = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && lists(header::CONNECTION, "upgrade")
        && lists(header::UPGRADE, "websocket")
}

/// Sixteen octets that nobody could know before (RFC 6455 section 4.1).
fn new_key() -> Result<HeaderValue, Refusal> {
    let mut octets = [0; 16];
    let text = aws_lc_rs::rand::fill(&mut octets).map(|()| BASE64_STANDARD.encode(octets));
    let key = text.ok().and_then(|text| HeaderValue::try_from(text).ok());
    // It fails only before the kernel's generator is seeded.
    key.ok_or(Refusal::UpgradeNotOffered)
}

/// The answer to a key (RFC 6455 section 4.2.2).
fn accept(key: &HeaderValue) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(ACCEPT_SUFFIX);
    BASE64_STANDARD.encode(digest.finish())
}

impl Asked {
    /// Writes into the fields for the upstream what was taken off with the client's connection.
    pub fn write(&mut self, headers: &mut HeaderMap, request_id: &str, idle_timeout: Duration) {
        request_id.clone_into(&mut self.request_id);
        self.idle_timeout = idle_timeout;
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, WEBSOCKET);
        headers.insert(header::SEC_WEBSOCKET_KEY, self.key.clone());
        headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    }

    /// Takes up the upstream's answer: where it agreed, the streams are joined beside the answer to the
    /// client; where it did not, its answer is the client's.
    ///
    /// # Errors
    /// [`Refusal::UpstreamFailed`] for an agreement that is none.
    pub fn join(
        self,
        connection: Rc<Connection>,
        mut response: Response<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let failed = |detail: &str| Err(Refusal::UpstreamFailed { detail: detail.to_owned() });
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // A success would tell a client over HTTP/2 that the streams are joined.
            if self.http2.is_some() && response.status().is_success() {
                return failed("answered an upgrade without switching protocols");
            }
            return Ok(response);
        }
        let fields = response.headers();
        let is_websocket = fields
            .get(header::UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(WEBSOCKET.as_bytes()));
        let accepted = fields.get(header::SEC_WEBSOCKET_ACCEPT);
        if !is_websocket || accepted.is_none_or(|value| *value != accept(&self.key)) {
            return failed("switches to something else than the WebSocket that was asked for");
        }
        let upstream = std::mem::replace(response.body_mut(), Body::full(Bytes::new()));
        // Held for its place at the server.
        let Some((upstream, held)) = upstream.into_upgraded() else {
            return failed("switches protocols where it cannot");
        };
        if self.http2.is_some() {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        let entered = connection.tunnels.enter();
        let client = match &self.http2 {
            Some(client) => Client::Http2(client.clone()),
            None => Client::Http1(connection.tunnels.expect()),
        };
        tokio::task::spawn_local(async move {
            let _entered = entered;
            let _held = held;
            self.run(&connection, client, upstream).await;
        });
        Ok(response)
    }

    async fn run(&self, connection: &Connection, client: Client, upstream: Upgraded) {
        let begun_at = time::monotonic();
        connection.worker.metrics.borrow_mut().tunnels_open += 1;
        let traffic = Traffic::since(begun_at);
        let reason = self.copy(connection, client, upstream, &traffic).await;
        let mut metrics = connection.worker.metrics.borrow_mut();
        metrics.tunnels_open -= 1;
        *metrics.tunnels_ended.entry(reason).or_default() += 1;
        drop(metrics);
        let took = time::monotonic().saturating_duration_since(begun_at);
        connection.worker.log(|log, buffer| {
            let mut line = log.line(buffer, "info", "websocket_closed", time::wall());
            line.field("request_id", &self.request_id)
                .field("conn_id", &connection.arrival.id)
                .field("source", connection.arrival.address)
                .field("reason", reason)
                .field("bytes_in", traffic.bytes_in.get())
                .field("bytes_out", traffic.bytes_out.get())
                .field("duration_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
                .field("worker", connection.worker.id);
            line.end();
        });
    }

    /// Passes octets both ways until one side ends, nothing moves for too long, or the client is no
    /// longer permitted; says which.
    async fn copy(
        &self,
        connection: &Connection,
        client: Client,
        upstream: Upgraded,
        traffic: &Traffic,
    ) -> &'static str {
        let mut news = connection.worker.shared.news.clone();
        news.mark_unchanged();
        let both = async {
            let (client, first) = client.stream().await?;
            Some((client, first, upstream))
        };
        let joined = tokio::select! {
            joined = tokio::time::timeout(self.idle_timeout, both) => joined.ok().flatten(),
            () = connection.tunnels.closed() => return "closed",
        };
        let Some((client, first, upstream)) = joined else { return "not_joined" };
        let none = Bytes::new();
        let mut client = Watched { io: client, first, traffic, bytes: &traffic.bytes_in };
        let mut upstream =
            Watched { io: upstream, first: none, traffic, bytes: &traffic.bytes_out };
        let mut copying = pin!(copy_bidirectional(&mut client, &mut upstream));
        let mut again = tokio::time::interval(JUDGED_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let until = traffic.moved_at.get() + self.idle_timeout;
            let judged = || self.judge(connection).err().map(|refusal| refusal.reason().word());
            tokio::select! {
                ended = &mut copying => return if ended.is_ok() { "ended" } else { "broken" },
                () = tokio::time::sleep_until(until.into()) => {
                    if traffic.moved_at.get() + self.idle_timeout <= until {
                        return "idle";
                    }
                }
                () = connection.tunnels.closed() => return "closed",
                Ok(()) = news.changed() => if let Some(reason) = judged() { return reason },
                _ = again.tick() => if let Some(reason) = judged() { return reason },
            }
        }
    }

    /// Whether the request would be permitted now.
    fn judge(&self, connection: &Connection) -> Result<(), Refusal> {
        let snapshot = connection.worker.shared.published.load_full();
        let name = connection.server_name.as_deref();
        let facts = Facts::read(&Method::GET, &self.uri, &self.fields, name)?;
        connection.check_site(&snapshot, facts.host())?;
        let route = snapshot.routes.find(&facts)?;
        let now = time::unix();
        connection.recheck(&snapshot, now).map_err(Refusal::Certificate)?;
        let certificate = connection.certified(&snapshot);
        let token = facts.token().filter(|_| route.demands.token);
        recheck(route, connection.arrival.address, certificate, now, || {
            let leeway_max = connection.worker.shared.host.load().leeway_max;
            let clock = Clock { now, leeway_max };
            let claims = token.map(|token| identify(&connection.worker, &snapshot, token, clock));
            claims.transpose().map_err(Refusal::Token)
        })
    }
}

/// What passed, and when something last did.
struct Traffic {
    moved_at: Cell<Instant>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
}

impl Traffic {
    fn since(now: Instant) -> Traffic {
        Traffic { moved_at: Cell::new(now), bytes_in: Cell::default(), bytes_out: Cell::default() }
    }
}

/// One end; counts what is read from it.
struct Watched<'t, S> {
    io: S,
    /// What was read with the head already.
    first: Bytes,
    traffic: &'t Traffic,
    bytes: &'t Cell<u64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = if self.first.is_empty() {
            Pin::new(&mut self.io).poll_read(context, buffer)
        } else {
            let length = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first.split_to(length));
            Poll::Ready(Ok(()))
        };
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.traffic.moved_at.set(time::monotonic());
            self.bytes.set(self.bytes.get() + read as u64);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, octets);
        if polled.is_ready() {
            self.traffic.moved_at.set(time::monotonic());
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A client's stream before there is one.
enum Client {
    /// The connection itself, as soon as its last answer is written, and what was read of it already.
    Http1(oneshot::Receiver<HandedOver>),
    /// A stream of the connection.
    Http2(OnUpgrade),
}

/// A client's stream, and what was read of it already.
type HandedOver = (Box<dyn Stream>, Bytes);

/// Octets both ways.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl Client {
    async fn stream(self) -> Option<HandedOver> {
        match self {
            Client::Http1(handed_over) => handed_over.await.ok(),
            Client::Http2(upgrade) => {
                Some((Box::new(TokioIo::new(upgrade.await.ok()?)), Bytes::new()))
            }
        }
    }
}

/// The WebSockets of one connection: over HTTP/1.1 at most one, which outlives the connection's own
/// future; over HTTP/2 beside its requests.
#[derive(Clone)]
pub struct Tunnels(Rc<State>);

struct State {
    watch: Rc<Watch>,
    open: Cell<usize>,
    expects: Cell<Option<oneshot::Sender<HandedOver>>>,
    is_closed: Cell<bool>,
    changed: Notify,
}

/// One of them; counted until it is dropped.
pub struct Entered(Tunnels);

impl Tunnels {
    /// None yet.
    pub fn new(watch: Rc<Watch>) -> Tunnels {
        Tunnels(Rc::new(State {
            watch,
            open: Cell::new(0),
            expects: Cell::new(None),
            is_closed: Cell::new(false),
            changed: Notify::new(),
        }))
    }

    fn expect(&self) -> oneshot::Receiver<HandedOver> {
        let (sender, receiver) = oneshot::channel();
        self.0.expects.set(Some(sender));
        receiver
    }

    /// The stream of an HTTP/1.1 connection that has ended, and what was read of it already: for whom
    /// it was to become a WebSocket; it comes back where it was to be none.
    pub fn hand_over<I>(&self, stream: TokioIo<I>, first: Bytes) -> Option<TokioIo<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let Some(expects) = self.0.expects.take() else { return Some(stream) };
        // Who waited for it may have lost patience.
        let _ = expects.send((Box::new(stream.into_inner()), first));
        None
    }

    fn enter(&self) -> Entered {
        self.0.open.set(self.0.open.get() + 1);
        self.0.watch.tunnel_begins();
        Entered(self.clone())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.open.get() == 0
    }

    /// Waits until there are none.
    pub async fn ended(&self) {
        self.wait_until(Tunnels::is_empty).await;
    }

    /// Ends all of them.
    pub fn close(&self) {
        self.0.is_closed.set(true);
        self.0.changed.notify_waiters();
    }

    async fn closed(&self) {
        self.wait_until(|tunnels| tunnels.0.is_closed.get()).await;
    }

    async fn wait_until(&self, condition: impl Fn(&Tunnels) -> bool) {
        loop {
            // Asked for before the look, so that no change falls between.
            let changed = self.0.changed.notified();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.open.set(state.open.get() - 1);
        state.watch.tunnel_ends(time::monotonic());
        state.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn websocket() -> http::request::Builder {
        Request::get("/chat")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-version", "13")
    }

    #[test]
    fn only_a_whole_request_for_a_websocket_is_one() {
        for (what, request, expected) in [
            ("whole", websocket(), Ok(true)),
            ("HTTP/1.0", websocket().version(Version::HTTP_10), Ok(false)),
            ("POST", websocket().method("POST"), Ok(false)),
            (
                "another protocol",
                Request::get("/").header("connection", "upgrade").header("upgrade", "h2c"),
                Ok(false),
            ),
            ("not of this connection", Request::get("/").header("upgrade", "websocket"), Ok(false)),
            ("an ordinary one", Request::get("/"), Ok(false)),
            ("with a body", websocket().header("content-length", "5"), Err(())),
            (
                "with a body of no length",
                websocket().header("transfer-encoding", "chunked"),
                Err(()),
            ),
            ("with none", websocket().header("content-length", "0"), Ok(true)),
            (
                "without a key",
                Request::get("/").header("connection", "upgrade").header("upgrade", "websocket"),
                Err(()),
            ),
        ] {
            let found = asked(&mut head(request)).map(|asked| asked.is_some()).map_err(|_| ());
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn a_key_has_one_answer() {
        // The example of RFC 6455 section 1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(new_key().unwrap(), new_key().unwrap());
    }

    #[test]
    fn whoever_waits_for_the_end_hears_of_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let limits = std::sync::Arc::new(super::super::guard::Limits::default());
            let tunnels = Tunnels::new(Watch::new(limits, false, time::monotonic()));
            tunnels.ended().await;
            let entered = tunnels.enter();
            assert!(!tunnels.is_empty());
            let waits = tunnels.ended();
            let ends = async { drop(entered) };
            tokio::join!(waits, ends);
            tunnels.close();
            tunnels.closed().await;
        });
    }
}
