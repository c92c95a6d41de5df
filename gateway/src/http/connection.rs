//! One client connection: handshake, then HTTP/1.1 or /2 until it ends.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use gateway_ebpf::Source;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::UnixTime;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::watch};
use tokio_rustls::server::TlsStream;

use super::{
    body::{Arriving, Body},
    exchange::exchange,
    gather::{Gathered, Turns},
    guard::{Flood, Guarded, Limits, Verdict, Watch},
    http1::Http1,
    upgrade::Tunnels,
};
use crate::{
    admin::audit::{CertificateFields, Line},
    host::Stage,
    identity::{
        Certified,
        certificate::{CertificateError, Peer},
        principal::Mapped,
    },
    net::{
        admission::Denied,
        worker::{Phase, Worker},
    },
    policy::{Reason, Refusal, refusal::certificate_reason},
    snapshot::Snapshot,
    time,
    tls::{
        Sites,
        handshake::{Failure, Proven, Secured, Strangers, handshake},
    },
};

/// Fields that are parsed beyond those that are taken, so that a few too many are answered with a
/// problem that says so; still more are answered by the parser itself.
const FIELDS_MORE: usize = 28;

/// Octets of a head that are parsed beyond those that are taken, for the same reason.
pub(super) const HEAD_MORE_BYTES: usize = 16 * 1024;

/// Streams that a client opened and reset before they were served (rapid reset, CVE-2023-44487).
const RESET_PENDING_MAX: usize = 32;

/// Streams reset by us because of the client's errors before the connection is given up.
const RESET_LOCAL_MAX: usize = 256;

/// HTTP/2 PING interval on a silent connection, and the wait for its answer.
const PING_EVERY: Duration = Duration::from_secs(30);

/// From the last answer of an HTTP/1.1 connection until its client has closed it: some round trips of a
/// far client; who takes longer has had its answer or does not want it.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What may come meanwhile: a sender at 100 Mbit/s that looks for an answer only at its end.
const LINGER_MAX_BYTES: usize = 25 << 20;

/// From the last word to a client that floods until its connection ends, and what may come meanwhile: one
/// that is merely mistaken reads why; one that goes on hears nothing.
const FLOOD_LINGER_MAX: Duration = Duration::from_millis(500);
const FLOOD_LINGER_MAX_BYTES: usize = 256 << 10;

/// GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 sections 6.8 and 7). What was served before is not told apart:
/// any stream may have been.
const CALM_DOWN: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0x0b];

/// Read at a time: nobody waits for it to be fast.
const LINGER_PIECE_BYTES: usize = 2048;

/// Where a connection comes from.
pub struct Arrival {
    /// Index of the listener.
    pub listener: usize,
    /// The client's address.
    pub address: IpAddr,
    /// The client's port.
    pub port: u16,
    /// What bans and limits know it by.
    pub source: Source,
    /// The proxy that its packets come from.
    pub via: Option<IpAddr>,
    /// Joins the log lines of the connection.
    pub id: String,
    /// Whether it is to go on, by the address that it came in at.
    pub phase: watch::Receiver<Phase>,
}

/// A connection whose handshake is done; its requests share it.
pub struct Connection {
    /// Its worker.
    pub worker: Rc<Worker>,
    /// Where it comes from.
    pub arrival: Arrival,
    /// Who it is, proven; `None` who came without a certificate.
    pub peer: Option<Arc<Peer>>,
    /// The host that the handshake named.
    pub server_name: Option<String>,
    /// Sees what passes, and when it has been too long.
    pub watch: Rc<Watch>,
    /// Requests so far.
    requests: Rc<Cell<u64>>,
    /// The last judgement of the peer's certificate.
    judged: RefCell<Judgement>,
    /// Whose certificate it is, by the rules of which snapshot.
    mapped: RefCell<(u64, Option<Mapped>)>,
    /// The bans that were looked at last.
    bans_seen: Cell<u64>,
    /// What its end has heard of [`Arrival::phase`]; a request looks here without a lock.
    phase: Rc<Cell<Phase>>,
    /// What became of requests that are none any more.
    pub tunnels: Tunnels,
}

/// Whether a connection's client would be let in now: by which snapshot and at which second that was
/// judged, and the outcome.
#[derive(Clone)]
struct Judgement {
    generation: u64,
    at_s: u64,
    outcome: Result<(), CertificateError>,
}

impl Connection {
    /// A connection whose handshake was completed under that snapshot.
    pub(super) fn begin(
        worker: Rc<Worker>,
        arrival: Arrival,
        client: Proven,
        watch: Rc<Watch>,
        snapshot: &Snapshot,
    ) -> Rc<Connection> {
        let Proven { peer, resumed, server_name } = client;
        {
            let mut metrics = worker.metrics.borrow_mut();
            let counts =
                if resumed { &mut metrics.handshakes_resumed } else { &mut metrics.handshakes };
            counts[arrival.listener] += 1;
        }
        let phase = *arrival.phase.borrow();
        Rc::new(Connection {
            mapped: RefCell::new((
                snapshot.generation,
                peer.as_deref().map(|peer| snapshot.identities.map(peer)),
            )),
            judged: RefCell::new(Judgement {
                generation: snapshot.generation,
                at_s: time::unix().as_secs(),
                outcome: Ok(()),
            }),
            bans_seen: Cell::new(worker.shared.admission.bans_version()),
            requests: Rc::default(),
            phase: Rc::new(Cell::new(phase)),
            tunnels: Tunnels::new(watch.clone()),
            watch,
            worker,
            arrival,
            peer,
            server_name,
        })
    }

    /// The same connection, its client now at another address (RFC 9000 section 9): further requests
    /// are judged, limited and logged by where they come from.
    pub(super) fn moved(&self, address: IpAddr, port: u16) -> Rc<Connection> {
        let arrival = Arrival {
            address,
            port,
            source: Source::from(address),
            via: None,
            id: self.arrival.id.clone(),
            listener: self.arrival.listener,
            phase: self.arrival.phase.clone(),
        };
        Rc::new(Connection {
            worker: self.worker.clone(),
            arrival,
            peer: self.peer.clone(),
            server_name: self.server_name.clone(),
            requests: self.requests.clone(),
            tunnels: self.tunnels.clone(),
            judged: RefCell::new(self.judged.borrow().clone()),
            mapped: RefCell::new(self.mapped.borrow().clone()),
            // Bans of the new source are looked at first.
            bans_seen: Cell::new(0),
            phase: self.phase.clone(),
            watch: self.watch.clone(),
        })
    }

    /// Takes note of what the connection is to do.
    pub(super) fn hear(&self, phase: Phase) {
        self.phase.set(phase);
    }

    /// How HTTP/3 is announced in answers (RFC 7838), where the listener serves it.
    pub fn alternative<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s HeaderValue> {
        snapshot.listeners[self.arrival.listener].alternative.as_ref()
    }

    /// The number of a new request, from 1.
    pub fn next_request(&self) -> u64 {
        let number = self.requests.get() + 1;
        self.requests.set(number);
        number
    }

    /// What the connection is to do, as far as it has heard.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether the client would still be let in: it may have been revoked since the handshake, its
    /// certificate or a revocation list may have expired. Judged once in a second, and at once when
    /// something has changed.
    ///
    /// # Errors
    /// Why not.
    pub fn recheck(&self, snapshot: &Snapshot, now: UnixTime) -> Result<(), CertificateError> {
        let mut judged = self.judged.borrow_mut();
        if judged.generation != snapshot.generation || judged.at_s != now.as_secs() {
            let site = self.sites(snapshot).of(self.server_name.as_deref());
            judged.generation = snapshot.generation;
            judged.at_s = now.as_secs();
            judged.outcome = site.admits(self.peer.as_deref(), now);
        }
        judged.outcome.clone()
    }

    /// Whether a request for this host may come over this connection: its client was judged by the
    /// site that the handshake named, and another site may trust others.
    ///
    /// # Errors
    /// [`Refusal::Misdirected`]: the client is to open a connection for that host.
    pub fn check_site(&self, snapshot: &Snapshot, host: Option<&str>) -> Result<(), Refusal> {
        let sites = self.sites(snapshot);
        match host {
            Some(host) if !sites.are_one(Some(host), self.server_name.as_deref()) => {
                Err(Refusal::Misdirected)
            }
            _ => Ok(()),
        }
    }

    /// A listener keeps its place in every snapshot of a run.
    fn sites<'s>(&self, snapshot: &'s Snapshot) -> &'s Sites {
        &snapshot.listeners[self.arrival.listener].sites
    }

    /// The certificate with its owner, by the rules of this snapshot.
    pub fn certified(&self, snapshot: &Snapshot) -> Option<Certified> {
        let peer = self.peer.as_ref()?;
        let mut mapped = self.mapped.borrow_mut();
        if mapped.0 != snapshot.generation {
            *mapped = (snapshot.generation, Some(snapshot.identities.map(peer)));
        }
        Some(Certified::new(peer.clone(), mapped.1.clone()?))
    }

    /// What its owner was called when that was last looked at.
    fn principal(&self) -> Option<String> {
        let mapped = self.mapped.borrow();
        mapped.1.as_ref()?.as_ref().ok().map(|principal| principal.name().to_owned())
    }

    /// Whether the source was banned since the last look.
    pub(super) fn is_banned(&self) -> bool {
        let admission = &self.worker.shared.admission;
        let version = admission.bans_version();
        if version == self.bans_seen.replace(version) {
            return false;
        }
        let (arrival, now) = (&self.arrival, time::monotonic());
        let is_through_proxy = arrival.via.is_some();
        admission.is_banned(arrival.source, now)
            || is_through_proxy
                && admission.check_networks(arrival.address, now) == Err(Denied::Banned)
    }
}

/// What becomes of new clients without a certificate, as the host is now.
pub(super) fn strangers(worker: &Worker) -> Strangers {
    match worker.shared.host.load().stage {
        Stage::Normal | Stage::Strained => Strangers::Served,
        Stage::NoStrangers | Stage::Essential | Stage::Critical => Strangers::Shed,
    }
}

/// Serves one connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, arrival: Arrival) {
    // Each step in memory of its own, which is given back: a connection that is open must not keep what
    // only its handshake needed.
    if let Some(rest) = Box::pin(open(worker, stream, arrival)).await {
        rest.await;
    }
}

/// What a connection does once its handshake is done.
type Rest = Pin<Box<dyn Future<Output = ()>>>;

/// Performs the handshake; `None`: it was refused.
async fn open(worker: Rc<Worker>, stream: TcpStream, arrival: Arrival) -> Option<Rest> {
    // Answers are written whole; waiting for more to fill a segment only delays them.
    stream.set_nodelay(true).ok()?;
    // Before the snapshot is loaded, so that a change during the handshake is not missed.
    let mut news = worker.shared.news.clone();
    news.mark_unchanged();
    let snapshot = worker.shared.published.load_full();
    let limits = snapshot.clients.clone();
    let listener = &snapshot.listeners[arrival.listener];
    let sessions = listener.sessions.as_ref();
    let strangers = strangers(&worker);
    let secured = match handshake(stream, listener, sessions, strangers, limits.handshake).await {
        Ok(secured) => secured,
        // Whose TCP handshake was completed is who it says it is.
        Err(failure) => {
            refused(&worker, &arrival, &failure, true);
            return None;
        }
    };
    let Secured { stream, client } = secured;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let watch = Watch::new(limits.clone(), is_http2, time::monotonic());
    let connection = Connection::begin(worker, arrival, client, watch, &snapshot);
    Some(go_on(connection, stream, &limits, news))
}

/// Serves what comes after the handshake. No future in itself: what it moves together would otherwise
/// have its place in one for as long as the connection is open.
fn go_on(
    connection: Rc<Connection>,
    stream: TlsStream<TcpStream>,
    limits: &Limits,
    mut news: watch::Receiver<()>,
) -> Rest {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let watch = connection.watch.clone();
    let stream = Guarded::new(stream, watch.clone(), Rc::from(connection.arrival.id.as_str()));
    let served = connection.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = served.clone();
        let ticket = connection.watch.begin(time::monotonic());
        let request = request.map(|body| Arriving::stream(body, ticket.running()));
        // Some kilobytes, which hyper would copy about, and keep for as long as the connection is open.
        Box::pin(async move {
            let running = ticket.running().clone();
            let mut response = exchange(connection.clone(), request, running).await;
            if !is_http2 {
                dismiss(&connection, &mut response);
            }
            Ok::<_, Infallible>(response.map(|body| ticket.hold(body)))
        })
    });
    if is_http2 {
        let mut builder = http2::Builder::new(Local(watch));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(
                u32::try_from(limits.head_max_bytes + HEAD_MORE_BYTES).unwrap_or(u32::MAX),
            )
            .max_pending_accept_reset_streams(RESET_PENDING_MAX)
            .max_local_error_reset_streams(RESET_LOCAL_MAX)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .enable_connect_protocol();
        let gathered = Gathered::new(stream);
        let inner = builder.serve_connection(TokioIo::new(gathered.clone()), service);
        let turns = Turns::default();
        let mut served = Box::pin(Http2 { inner, gathered: gathered.clone(), turns });
        Box::pin(async move {
            // GOAWAY tells a client in time, first for all streams and then with the last one.
            drive(&connection, served.as_mut(), Phase::Draining, &mut news).await;
            drop(served);
            if connection.watch.flood().is_some() {
                // In memory of its own, of which a connection that is served needs none.
                Box::pin(calm_down(&connection, gathered)).await;
            }
            connection.tunnels.close();
        })
    } else {
        let mut parser = http1::Builder::new();
        parser
            .timer(TokioTimer::new())
            // The watch has deadlines of its own for a head and for the wait before it.
            .header_read_timeout(None)
            .max_buf_size(limits.head_max_bytes + HEAD_MORE_BYTES)
            .max_headers(limits.fields_max + FIELDS_MORE);
        let tunnels = connection.tunnels.clone();
        let mut served = Box::pin(Http1::new(parser, stream, service, tunnels));
        Box::pin(async move {
            drive(&connection, served.as_mut(), Phase::Closing, &mut news).await;
            let left = served.left.take();
            drop(served);
            if let Some(stream) = left {
                // In memory of its own, of which a connection that is served needs none.
                let stream = stream.stream().get_ref().0;
                Box::pin(linger(&connection, stream, LINGER_MAX, LINGER_MAX_BYTES)).await;
            }
            connection.tunnels.close();
        })
    }
}

/// Tells an HTTP/1.1 client to ask elsewhere next time (RFC 9112 section 9.6).
fn dismiss(connection: &Connection, response: &mut Response<Body>) {
    if connection.phase() > Phase::Running && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// What connections of both versions can do.
pub(super) trait Served: Future<Output = hyper::Result<()>> {
    /// Takes no further request and ends when nothing is under way.
    fn wind_down(self: Pin<&mut Self>);

    /// Gives back what it needs only while something is under way, which nothing is.
    fn rest(self: Pin<&mut Self>);
}

/// An HTTP/2 connection whose answers leave together.
struct Http2<I, S: HttpService<Incoming>, E> {
    inner: http2::Connection<TokioIo<Gathered<I>>, S, E>,
    gathered: Gathered<I>,
    turns: Turns,
}

impl<I, S, E> Future for Http2<I, S, E>
where
    http2::Connection<TokioIo<Gathered<I>>, S, E>: Future<Output = hyper::Result<()>> + Unpin,
    S: HttpService<Incoming>,
    I: tokio::io::AsyncWrite + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(ended) = Pin::new(&mut this.inner).poll(context) {
            return Poll::Ready(ended);
        }
        match this.turns.send(&this.gathered, context) {
            // What cannot be written ends a connection in silence, wherever it is found out.
            Poll::Ready(Err(_)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<I, S, E> Served for Http2<I, S, E>
where
    Http2<I, S, E>: Future<Output = hyper::Result<()>> + Unpin,
    http2::Connection<TokioIo<Gathered<I>>, S, E>: Future<Output = hyper::Result<()>> + Unpin,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    fn wind_down(mut self: Pin<&mut Self>) {
        Pin::new(&mut self.inner).graceful_shutdown();
    }

    /// Its settings, windows and field tables belong to the connection, whatever is under way.
    fn rest(self: Pin<&mut Self>) {}
}

/// Runs a connection until it ends, the process stops, its source is banned, its client is no longer
/// to be let in, or no request comes. From `winds_down` on it takes no further request.
async fn drive(
    connection: &Connection,
    mut served: Pin<&mut impl Served>,
    winds_down: Phase,
    news: &mut watch::Receiver<()>,
) {
    let mut phase = connection.arrival.phase.clone();
    let mut is_winding_down = false;
    let mut is_retiring = false;
    let watch = &connection.watch;
    let mut has_ended = false;
    loop {
        tokio::select! {
            // What was read may have been what was waited for, so first of all it is looked at.
            biased;
            ended = &mut served, if !has_ended => {
                if let Err(error) = ended {
                    broken(connection, &error);
                    return;
                }
                // Over HTTP/1.1 a WebSocket goes on where the requests have ended.
                has_ended = true;
            }
            () = connection.tunnels.ended(), if has_ended => return,
            now = later_phase(&mut phase, connection.phase()) => {
                connection.hear(now);
                if now == Phase::Stopping {
                    return;
                }
                if now >= winds_down && !is_winding_down && !has_ended {
                    is_winding_down = true;
                    served.as_mut().wind_down();
                }
            }
            Ok(()) = news.changed() => {
                let snapshot = connection.worker.shared.published.load_full();
                if let Err(error) = connection.recheck(&snapshot, time::unix()) {
                    return withdrawn(connection, &error);
                }
            }
            verdict = watch.verdict() => {
                for reason in watch.take_broken_off() {
                    evidence(connection, reason, "an answer was broken off");
                }
                match verdict {
                    Verdict::Wait(_) => {}
                    Verdict::Rest => {
                        watch.rest();
                        if !has_ended {
                            served.as_mut().rest();
                        }
                    }
                    Verdict::Retire if is_retiring || has_ended => return,
                    Verdict::Retire => {
                        is_retiring = true;
                        watch.retire(time::monotonic());
                        served.as_mut().wind_down();
                    }
                    Verdict::Refuse(reason, detail) => {
                        return evidence(connection, reason, detail);
                    }
                }
            }
        }
        if connection.is_banned() {
            return;
        }
    }
}

/// Lets the client read its last answer: both ends of what is sent were told, and what it goes on to
/// send is thrown away until it closes. A close with octets unread would reset the connection, and the
/// answer would be lost on its way (RFC 9112 section 9.6).
async fn linger(connection: &Connection, stream: &TcpStream, within: Duration, bytes_max: usize) {
    let mut phase = connection.arrival.phase.clone();
    let closed = async {
        let mut left = bytes_max;
        let mut piece = [0; LINGER_PIECE_BYTES];
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut piece) {
                Ok(0) => return,
                Ok(bytes) => left = left.saturating_sub(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        _over = tokio::time::timeout(within, closed) => {}
        _now = later_phase(&mut phase, Phase::Closing) => {}
    }
}

/// Tells a client that floods why its connection ends, if it takes that at once.
async fn calm_down(connection: &Connection, gathered: Gathered<Guarded<TlsStream<TcpStream>>>) {
    // Streams that end beside it are gone with the connection; were one left, it would end in silence.
    let Some((mut stream, mut last)) = gathered.into_parts() else { return };
    last.extend_from_slice(&CALM_DOWN);
    let said = async {
        stream.write_all(&last).await?;
        stream.shutdown().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(FLOOD_LINGER_MAX, said).await {
        let stream = stream.stream().get_ref().0;
        linger(connection, stream, FLOOD_LINGER_MAX, FLOOD_LINGER_MAX_BYTES).await;
    }
}

/// The phase once it is another than what was heard of before.
pub async fn later_phase(phase: &mut watch::Receiver<Phase>, heard: Phase) -> Phase {
    match phase.wait_for(|phase| *phase > heard).await {
        Ok(phase) => *phase,
        // The control thread is gone.
        Err(_) => Phase::Stopping,
    }
}

/// A handshake failed: one log line, one count, one piece of evidence, all from the same value.
///
/// `tells`: whether the client is known to be at its address, or another might have used it.
pub(super) fn refused(worker: &Worker, arrival: &Arrival, failure: &Failure, tells: bool) {
    let reason = failure.reason;
    {
        let mut metrics = worker.metrics.borrow_mut();
        *metrics.handshake_failures.entry(reason).or_default() += 1;
        metrics.handshakes_failed[arrival.listener] += 1;
    }
    if tells {
        worker.report_of(arrival, reason);
    }
    if !worker.may_log_handshake(arrival.source, reason) {
        return;
    }
    worker.log(|log, buffer| {
        let mut line = log.line(buffer, "warn", "handshake_refused", time::wall());
        line.field("conn_id", &arrival.id)
            .field("source", arrival.address)
            .maybe("via", arrival.via)
            .field("source_port", arrival.port)
            .maybe("sni", failure.server_name.as_deref())
            .maybe("tls_version", failure.tls_version())
            .maybe("certificate", failure.certificate.as_ref().map(CertificateFields::of_refused))
            .field("reason", reason.word())
            .field("detail", &failure.detail)
            .field("worker", worker.id);
        line.end();
    });
}

/// The client was let in, and would not be now: its connection ends at once, whatever runs on it.
/// That tells nothing against its source.
pub(super) fn withdrawn(connection: &Connection, error: &CertificateError) {
    let reason = certificate_reason(error);
    let worker = &connection.worker;
    *worker.metrics.borrow_mut().connections_withdrawn.entry(reason).or_default() += 1;
    worker.log(|log, buffer| {
        let mut line = log.line(buffer, "warn", "connection_closed", time::wall());
        connection_fields(&mut line, connection);
        line.field("reason", reason.word())
            .field("detail", error.to_string())
            .field("worker", worker.id);
        line.end();
    });
}

fn connection_fields(line: &mut Line<'_>, connection: &Connection) {
    let peer = connection.peer.as_deref();
    line.field("conn_id", &connection.arrival.id)
        .field("source", connection.arrival.address)
        .maybe("via", connection.arrival.via)
        .maybe("sni", connection.server_name.as_deref())
        .maybe("certificate", peer.map(CertificateFields::of))
        .maybe("principal", connection.principal());
}

/// The connection ended with an error; what the client did wrong before any request could be read is
/// a refusal like any other.
fn broken(connection: &Connection, error: &hyper::Error) {
    let (reason, detail) = match connection.watch.flood() {
        Some(Flood::Control) => (Reason::ControlFlood, "frames that carry nothing".to_owned()),
        Some(Flood::Resets) => (Reason::ResetFlood, "streams reset at once".to_owned()),
        None if error.is_parse_too_large() => (Reason::HeadTooLarge, error.to_string()),
        None if error.is_parse() => (Reason::MalformedRequest, error.to_string()),
        None => match http2_error(error) {
            Some(found) => found,
            None => return,
        },
    };
    evidence(connection, reason, &detail);
}

/// What a client did against the rules of HTTP/2, as far as the library found it; `None` for what ends
/// by itself.
fn http2_error(error: &hyper::Error) -> Option<(Reason, String)> {
    use std::error::Error as _;
    let found = error.source()?.downcast_ref::<h2::Error>()?;
    if found.is_io() || found.is_remote() {
        return None;
    }
    let reason = match found.reason()? {
        h2::Reason::NO_ERROR => return None,
        // Its own bounds: pending resets, streams reset for errors, CONTINUATION, empty frames.
        h2::Reason::ENHANCE_YOUR_CALM => Reason::ResetFlood,
        _ => Reason::Http2Error,
    };
    Some((reason, found.to_string()))
}

pub(super) fn evidence(connection: &Connection, reason: Reason, detail: &str) {
    let worker = &connection.worker;
    *worker.metrics.borrow_mut().refusals.entry(reason).or_default() += 1;
    worker.report_of(&connection.arrival, reason);
    if !worker.may_log(connection.arrival.source, reason) {
        return;
    }
    worker.log(|log, buffer| {
        let mut line = log.line(buffer, "warn", "connection_refused", time::wall());
        connection_fields(&mut line, connection);
        line.field("reason", reason.word()).field("detail", detail).field("worker", worker.id);
        line.end();
    });
}

/// Runs HTTP/2 streams on the worker's own thread, each until its answer has gone or is broken off.
#[derive(Clone)]
struct Local(Rc<Watch>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        // A stream is executed right after its request was handed to the service, which began it.
        let running = self.0.latest();
        tokio::task::spawn_local(async move {
            let Some(running) = running else { return future.await };
            tokio::select! {
                biased;
                () = future => {}
                // Dropping the stream resets it.
                () = running.aborted() => {}
            }
        });
    }
}
