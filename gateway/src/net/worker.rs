//! One worker: a thread with a single-threaded runtime, its own sockets, and everything a request
//! touches. Nothing here is shared with another worker, except where a type says so.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use gateway_ebpf::Source;
use nix::sched::{CpuSet, sched_setaffinity};
use quinn::Endpoint;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::LocalSet,
};

use super::{
    admission::{Admission, Admitted, Denied},
    proxy_protocol::{self, Header, ReadError},
    quic, quic_accept,
};
use crate::{
    admin::{
        audit::Log,
        metrics::{Consumer, Consumers, WorkerMetrics},
        repeats::{Repeated, Repeats},
    },
    host,
    http::{
        connection::{self, Arrival},
        date::Dates,
        introduction::Introductions,
    },
    identity::token::Cache,
    policy::{
        Reason,
        penalty::{Arrived, Evidence},
        vouch::{self, Voucher},
    },
    snapshot::Published,
    time,
    upstream::forward::Forwarder,
};

/// After a failed accept, which is nearly always a lack of descriptors, this long until the next:
/// without a pause the worker would spin and the open connections could not end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Log lines are handed over at least this often.
const LOG_FLUSH_EVERY: Duration = Duration::from_millis(20);

/// Log lines are handed over when they fill this many bytes.
const LOG_FLUSH_BYTES: usize = 32 * 1024;

/// Lines about failed handshakes that one worker writes in a second; more are counted in one line.
/// Whoever opens connections without cost must not fill a disk.
const HANDSHAKE_LINES_PER_S: u32 = 50;

/// Idle upstream connections are looked over this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the process is doing; workers and connections follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// No new connections. Open ones are told to go with the answer to their next request; over
    /// HTTP/1.1 nobody can be told otherwise, and one that is closed just when its client asks costs
    /// a request.
    Draining,
    /// That wait is over: idle connections are closed, the others end after their current request,
    /// and what is asked now is refused.
    Closing,
    /// Everything ends now.
    Stopping,
}

/// One socket that a worker accepts connections from.
#[derive(Debug)]
pub struct Listening {
    /// The listener's place in the snapshot and among counts.
    pub listener: usize,
    /// Where connections come from.
    pub socket: Socket,
    /// The process' phase, or a later one when this address is given up before.
    pub phase: watch::Receiver<Phase>,
}

/// Where a worker's new connections come from.
#[derive(Debug)]
pub enum Socket {
    /// TCP. Others hold the same socket, so closing it closes nothing.
    Streams(StdListener),
    /// QUIC, the one socket of this worker.
    Quic(quic::Bound),
}

/// One open connection over QUIC; dropping it makes room.
pub(super) struct Entered {
    worker: Rc<Worker>,
    listener: usize,
    _admitted: Admitted,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.worker.metrics.borrow_mut().connections[self.listener] -= 1;
        self.worker.open.set(self.worker.open.get() - 1);
    }
}

/// What the control thread tells a worker to do.
#[derive(Debug)]
pub enum Command {
    /// Accept connections from one more socket.
    Listen(Listening),
    /// Remember tokens otherwise.
    TokenCache {
        /// So many of them; 0: none.
        entries: usize,
        /// For so long.
        ttl: Duration,
    },
    /// Show that it is not stuck.
    Answer(oneshot::Sender<()>),
}

/// Commands under way to one worker: a configuration has fewer listeners, and one that does not take
/// them is stuck.
pub const COMMANDS_MAX: usize = 256;

/// Connections that are still accepted from a socket that is given up: what waits in its queue, whose
/// length the kernel cuts to `net.core.somaxconn` (4096 by default).
const LAST_ACCEPTS_MAX: usize = 4_096;

/// What every worker is given.
#[derive(Clone)]
pub struct Shared {
    /// The state to serve by.
    pub published: Published,
    /// Who may connect.
    pub admission: Admission,
    /// What the host can do, and what its clock is worth.
    pub host: host::Published,
    /// Evidence goes here, and the sender never waits.
    pub evidence: mpsc::Sender<Evidence>,
    /// Tells connections that another state was published.
    pub news: watch::Receiver<()>,
    /// Issuers of tokens whose key is not known go here, and the sender never waits.
    pub unknown_keys: mpsc::Sender<Arc<str>>,
    /// Good clients go here, and the sender never waits.
    pub vouchers: mpsc::Sender<Voucher>,
    /// What the process is doing.
    pub phase: watch::Receiver<Phase>,
    /// Where log lines go.
    pub log: Log,
    /// Labels of consumers.
    pub consumers: Consumers,
    /// Begins each connection's id; differs from run to run.
    pub run_id: Arc<str>,
    /// Entries of one worker's token cache.
    pub token_cache_entries: usize,
    /// Age at which they are verified again.
    pub token_cache_ttl: Duration,
}

/// A request to a worker for a copy of its counts.
pub type Scrape = oneshot::Sender<WorkerMetrics>;

/// A started worker, as the control thread sees it.
pub struct Handle {
    /// Asks for counts.
    pub scrape: mpsc::Sender<Scrape>,
    /// Tells it what to do; never waits.
    pub commands: mpsc::Sender<Command>,
    /// Ends when the worker has drained or was stopped.
    pub thread: JoinHandle<()>,
}

/// One worker's own state; its connections hold it by `Rc`.
pub struct Worker {
    /// From 0.
    pub id: usize,
    /// What all workers share.
    pub shared: Shared,
    /// Counts.
    pub metrics: RefCell<WorkerMetrics>,
    /// Verified tokens.
    pub tokens: RefCell<Cache>,
    /// The way to the upstreams.
    pub forwarder: Forwarder,
    /// What answers are dated with, where no library does it.
    pub dates: RefCell<Dates>,
    log_buffer: RefCell<Vec<u8>>,
    consumers: RefCell<HashMap<String, Consumer, lru::DefaultHasher>>,
    connections: Cell<u64>,
    open: Cell<usize>,
    /// Sockets that connections are accepted from.
    accepting: Cell<usize>,
    /// Those of QUIC, which have a last word to say.
    endpoints: RefCell<Vec<Endpoint>>,
    handshake_lines: Cell<u32>,
    handshake_lines_suppressed: Cell<u64>,
    repeats: RefCell<Repeats>,
    vouched: RefCell<vouch::Told>,
    /// What upstreams are told of clients that ask again and again.
    pub introductions: RefCell<Introductions>,
}

/// Starts a worker's thread.
///
/// # Errors
/// The thread or its runtime cannot be made.
pub fn start(
    id: usize,
    cpu: Option<usize>,
    sockets: Vec<Listening>,
    shared: Shared,
) -> io::Result<Handle> {
    // A scrape a second from a few monitors never finds more than this waiting.
    let (scrape, scrapes) = mpsc::channel(16);
    let (commands, told) = mpsc::channel(COMMANDS_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
        if let Some(cpu) = cpu {
            pin(cpu);
        }
        let worker = Rc::new(Worker::new(id, shared));
        LocalSet::new().block_on(&runtime, serve(worker, sockets, scrapes, told));
    })?;
    Ok(Handle { scrape, commands, thread })
}

/// A worker that stays on its CPU finds its data in that CPU's cache. Not being allowed to is no harm.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok()
        && let Err(error) = sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
    {
        tracing::warn!(cpu, error = %error, "worker not pinned to its CPU");
    }
}

async fn serve(
    worker: Rc<Worker>,
    sockets: Vec<Listening>,
    mut scrapes: mpsc::Receiver<Scrape>,
    mut commands: mpsc::Receiver<Command>,
) {
    for listening in sockets {
        worker.listen(listening);
    }
    let mut phase = worker.shared.phase.clone();
    let mut flush = tokio::time::interval(LOG_FLUSH_EVERY);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            Some(command) = commands.recv() => match command {
                Command::Listen(listening) => worker.listen(listening),
                Command::TokenCache { entries, ttl } => {
                    worker.tokens.borrow_mut().resize(entries, ttl);
                }
                // Who asked may have given up.
                Command::Answer(asker) => drop(asker.send(())),
            },
            Some(scrape) = scrapes.recv() => {
                // Who asked may have given up.
                let _ = scrape.send(worker.counts());
            }
            _ = flush.tick() => {
                worker.flush_log();
                match *phase.borrow() {
                    Phase::Running => {}
                    Phase::Draining | Phase::Closing if worker.is_busy() => {}
                    Phase::Draining | Phase::Closing | Phase::Stopping => break,
                }
            }
            _ = sweep.tick() => {
                worker.forwarder.sweep();
                worker.introductions.borrow_mut().sweep();
                worker.report_suppressed();
                let repeated = worker.repeats.borrow_mut().take(time::monotonic());
                worker.report_repeated(&repeated);
            }
            // A change wakes the loop up at once; `flush` above acts on it.
            Ok(()) = phase.changed() => flush.reset_immediately(),
        }
    }
    let endpoints = worker.endpoints.take();
    quic_accept::close(&endpoints).await;
    worker.report_suppressed();
    let repeated = worker.repeats.borrow_mut().take_all();
    worker.report_repeated(&repeated);
    worker.flush_log();
}

async fn accept_all(
    worker: Rc<Worker>,
    listener: usize,
    socket: TcpListener,
    phase: watch::Receiver<Phase>,
) {
    let mut news = phase.clone();
    loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, address)) => worker.accept(listener, stream, address, &phase),
                Err(error) => {
                    tracing::warn!(error = %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // An error is the control thread's end.
            _ = news.wait_for(|phase| *phase != Phase::Running) => break,
        }
    }
    // What the kernel has accepted already would be reset when the last holder closes the socket.
    for _ in 0..LAST_ACCEPTS_MAX {
        let Some(Ok((stream, address))) = socket.accept().now_or_never() else { return };
        worker.accept(listener, stream, address, &phase);
    }
}

impl Worker {
    fn new(id: usize, shared: Shared) -> Worker {
        Worker {
            id,
            metrics: RefCell::new(WorkerMetrics::new(0)),
            tokens: RefCell::new(Cache::new(shared.token_cache_entries, shared.token_cache_ttl)),
            forwarder: Forwarder::default(),
            dates: RefCell::default(),
            log_buffer: RefCell::default(),
            consumers: RefCell::default(),
            connections: Cell::new(0),
            open: Cell::new(0),
            accepting: Cell::new(0),
            endpoints: RefCell::default(),
            handshake_lines: Cell::new(0),
            handshake_lines_suppressed: Cell::new(0),
            repeats: RefCell::default(),
            vouched: RefCell::default(),
            introductions: RefCell::default(),
            shared,
        }
    }

    fn listen(self: &Rc<Self>, listening: Listening) {
        let Listening { listener, socket, phase } = listening;
        self.metrics.borrow_mut().grow(listener + 1);
        let worker = self.clone();
        let accepting = match socket {
            Socket::Streams(socket) => TcpListener::from_std(socket)
                .map(|socket| accept_all(worker.clone(), listener, socket, phase).boxed_local()),
            Socket::Quic(bound) => {
                quic_accept::endpoint(&worker, listener, bound).map(|endpoint| {
                    self.endpoints.borrow_mut().push(endpoint.quinn.clone());
                    quic_accept::accept_all(worker.clone(), listener, endpoint, phase).boxed_local()
                })
            }
        };
        match accepting {
            Ok(accepting) => {
                self.accepting.set(self.accepting.get() + 1);
                tokio::task::spawn_local(async move {
                    accepting.await;
                    worker.accepting.set(worker.accepting.get() - 1);
                });
            }
            Err(error) => tracing::error!(listener, error = %error, "listener lost"),
        }
    }

    /// Whether there is anything that has still to end.
    fn is_busy(&self) -> bool {
        self.open.get() > 0 || self.accepting.get() > 0
    }

    fn accept(
        self: &Rc<Self>,
        listener: usize,
        stream: TcpStream,
        peer: SocketAddr,
        phase: &watch::Receiver<Phase>,
    ) {
        // An IPv4 client on an IPv6 socket is the IPv4 client.
        let address = peer.ip().to_canonical();
        let arrival = Arrival {
            listener,
            address,
            port: peer.port(),
            source: Source::from(address),
            via: None,
            id: self.connection_id(),
            phase: phase.clone(),
        };
        let snapshot = self.shared.published.load();
        let admission = &self.shared.admission;
        let admitted = match &snapshot.listeners[listener].proxies {
            None => admission.admit(arrival.source, time::monotonic()),
            Some(trusted) if trusted.iter().any(|net| net.contains(&address)) => admission.enter(),
            Some(_) => {
                let detail = "only trusted_proxies may connect to this listener";
                return self.refuse(&arrival, Reason::ProxyUntrusted, detail);
            }
        };
        match admitted {
            Ok(admitted) => {
                let is_proxied = snapshot.listeners[listener].proxies.is_some();
                self.spawn(stream, arrival, admitted, is_proxied);
            }
            Err(denied) => self.deny(&arrival, denied),
        }
    }

    /// A new connection over QUIC, if there may be one more from there. Nobody has shown yet that it is
    /// at its address, so a no is counted and tells against nobody.
    pub(super) fn enter(
        self: &Rc<Self>,
        listener: usize,
        peer: SocketAddr,
        phase: &watch::Receiver<Phase>,
    ) -> Result<(Arrival, Entered), Denied> {
        let address = peer.ip().to_canonical();
        let source = Source::from(address);
        let admitted = self.shared.admission.admit(source, time::monotonic());
        let admitted = admitted.inspect_err(|denied| {
            let mut metrics = self.metrics.borrow_mut();
            match denied {
                // The kernel counts whom it keeps out.
                Denied::Banned | Denied::Listed => {}
                Denied::TooMany => metrics.connections_over_limit += 1,
                Denied::TooManyOfSource => {
                    *metrics.refusals.entry(Reason::TooManyConnections).or_default() += 1;
                }
            }
        })?;
        self.open.set(self.open.get() + 1);
        self.metrics.borrow_mut().connections[listener] += 1;
        let arrival = Arrival {
            listener,
            address,
            port: peer.port(),
            source,
            via: None,
            id: self.connection_id(),
            phase: phase.clone(),
        };
        Ok((arrival, Entered { worker: self.clone(), listener, _admitted: admitted }))
    }

    /// An endpoint has nothing left to do.
    pub(super) fn forget(&self, endpoint: &Endpoint) {
        let address = endpoint.local_addr().ok();
        self.endpoints.borrow_mut().retain(|other| other.local_addr().ok() != address);
    }

    /// Differs from that of every other connection.
    fn connection_id(&self) -> String {
        let number = self.connections.get();
        self.connections.set(number + 1);
        format!("{}-{:x}-{:x}", self.shared.run_id, self.id, number)
    }

    fn spawn(
        self: &Rc<Self>,
        mut stream: TcpStream,
        mut arrival: Arrival,
        mut admitted: Admitted,
        is_proxied: bool,
    ) {
        let listener = arrival.listener;
        self.open.set(self.open.get() + 1);
        self.metrics.borrow_mut().connections[listener] += 1;
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            // In memory of its own: most connections are not introduced by anybody.
            let goes_on = !is_proxied
                || Box::pin(worker.introduce(&mut stream, &mut arrival, &mut admitted)).await;
            if goes_on {
                connection::serve(worker.clone(), stream, arrival).await;
            }
            worker.metrics.borrow_mut().connections[listener] -= 1;
            worker.open.set(worker.open.get() - 1);
            drop(admitted);
        });
    }

    /// Reads from a trusted proxy whose connection it carries. False: it is refused.
    async fn introduce(
        &self,
        stream: &mut TcpStream,
        arrival: &mut Arrival,
        admitted: &mut Admitted,
    ) -> bool {
        let within = self.shared.published.load().clients.proxy_header;
        match proxy_protocol::read(stream, within).await {
            Ok(Header::Client { source, .. }) => {
                arrival.via = Some(arrival.address);
                arrival.address = source.ip().to_canonical();
                arrival.port = source.port();
                arrival.source = Source::from(arrival.address);
            }
            Ok(Header::Own) => {}
            Err(error) => {
                let reason = match error {
                    ReadError::Malformed(_) => Reason::ProxyHeaderMalformed,
                    ReadError::TooSlow(_) => Reason::ProxyHeaderTimeout,
                    // As balancers do that only look whether somebody listens.
                    ReadError::Broken(_) => Reason::HandshakeAborted,
                };
                self.refuse(arrival, reason, &error.to_string());
                return false;
            }
        }
        let listed = match arrival.via {
            Some(_) => self.shared.admission.check_networks(arrival.address, time::monotonic()),
            None => Ok(()),
        };
        match listed.and_then(|()| admitted.claim(arrival.source, time::monotonic())) {
            Ok(()) => true,
            Err(denied) => {
                self.deny(arrival, denied);
                false
            }
        }
    }

    fn deny(&self, arrival: &Arrival, denied: Denied) {
        match denied {
            // The ban was told of when it was set; behind a proxy no packet of it is dropped, so here it
            // is counted.
            Denied::Banned if arrival.via.is_none() => {}
            Denied::Banned => self.refuse(arrival, Reason::Banned, "the client is banned"),
            Denied::Listed => self.refuse(arrival, Reason::Banned, "[xdp].deny names the client"),
            Denied::TooMany => self.metrics.borrow_mut().connections_over_limit += 1,
            Denied::TooManyOfSource => {
                let detail = "max_connections_per_source are open";
                self.refuse(arrival, Reason::TooManyConnections, detail);
            }
        }
    }

    /// A connection that ends before its handshake: one count, one piece of evidence, one line.
    fn refuse(&self, arrival: &Arrival, reason: Reason, detail: &str) {
        *self.metrics.borrow_mut().refusals.entry(reason).or_default() += 1;
        self.report_of(arrival, reason);
        if !self.may_log_handshake(arrival.source, reason) {
            return;
        }
        self.log(|log, buffer| {
            let mut line = log.line(buffer, "warn", "connection_refused", time::wall());
            line.field("conn_id", &arrival.id)
                .field("source", arrival.address)
                .maybe("via", arrival.via)
                .field("source_port", arrival.port)
                .field("reason", reason.word())
                .field("detail", detail)
                .field("worker", self.id);
            line.end();
        });
    }

    /// Tells the feedback path of a client, without waiting.
    pub fn report_of(&self, arrival: &Arrival, reason: Reason) {
        let (source, arrived) = (arrival.source, arrived(arrival));
        if reason.points() == 0 {
            return;
        }
        let evidence = Evidence { source, reason, at: time::monotonic(), arrived };
        if self.shared.evidence.try_send(evidence).is_err() {
            self.metrics.borrow_mut().evidence_lost += 1;
        }
    }

    /// Tells the ledger that a proven client was let in, without waiting; of each client at an address
    /// once in a while. `who`: as [`vouch::who`] tells.
    ///
    /// [`vouch::who`]: crate::policy::vouch::who
    pub fn vouch(&self, arrival: &Arrival, who: u64, now: Instant) {
        let voucher = Voucher { source: arrival.source, who, at: now, arrived: arrived(arrival) };
        let mut vouched = self.vouched.borrow_mut();
        // A full queue: its next request will do.
        if vouched.is_news(&voucher) && self.shared.vouchers.try_send(voucher).is_ok() {
            vouched.note(&voucher);
        }
    }

    /// The label of a consumer.
    pub fn consumer(&self, name: Option<&str>) -> Consumer {
        let Some(name) = name else { return Consumer::OTHER };
        if let Some(consumer) = self.consumers.borrow().get(name) {
            return *consumer;
        }
        let consumer = self.shared.consumers.place(name);
        // Those without a label of their own are not remembered, so the memory is bounded as the labels are.
        if consumer != Consumer::OTHER {
            self.consumers.borrow_mut().insert(name.to_owned(), consumer);
        }
        consumer
    }

    /// Adds lines to the worker's buffer.
    pub fn log(&self, write: impl FnOnce(&Log, &mut Vec<u8>)) {
        let mut buffer = self.log_buffer.borrow_mut();
        write(&self.shared.log, &mut buffer);
        if buffer.len() >= LOG_FLUSH_BYTES {
            drop(buffer);
            self.flush_log();
        }
    }

    /// Whether a refusal gets a line of its own; if not, it is counted.
    pub fn may_log(&self, source: Source, reason: Reason) -> bool {
        self.repeats.borrow_mut().admit(source, reason, time::monotonic())
    }

    /// Whether one more line about a failed handshake may be written now; if not, it is counted.
    pub fn may_log_handshake(&self, source: Source, reason: Reason) -> bool {
        if !self.may_log(source, reason) {
            return false;
        }
        let written = self.handshake_lines.get();
        if written < HANDSHAKE_LINES_PER_S {
            self.handshake_lines.set(written + 1);
            return true;
        }
        self.handshake_lines_suppressed.set(self.handshake_lines_suppressed.get() + 1);
        false
    }

    /// Once a second: how many lines were held back, and a fresh allowance.
    fn report_suppressed(&self) {
        self.handshake_lines.set(0);
        let suppressed = self.handshake_lines_suppressed.take();
        if suppressed > 0 {
            tracing::warn!(
                count = suppressed,
                worker = self.id,
                "further failed handshakes not logged one by one"
            );
        }
    }

    /// One line for each source and reason whose refusals had no line of their own.
    fn report_repeated(&self, repeated: &[Repeated]) {
        for Repeated { source, reason, count } in repeated {
            self.log(|log, buffer| {
                let mut line = log.line(buffer, "warn", "refusals_repeated", time::wall());
                line.maybe("source", source.map(|source| source.to_string()))
                    .field("reason", reason.word())
                    .field("count", count)
                    .field("worker", self.id);
                line.end();
            });
        }
    }

    fn flush_log(&self) {
        let mut buffer = self.log_buffer.borrow_mut();
        if buffer.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut *buffer);
        self.shared.log.send(lines);
    }

    fn counts(&self) -> WorkerMetrics {
        let mut counts = self.metrics.borrow().clone();
        let tokens = self.tokens.borrow();
        counts.token_cache_hits = tokens.counts().hits;
        counts.token_cache_misses = tokens.counts().misses;
        counts.token_cache_entries = tokens.len() as u64;
        counts.upstream_repeated = self.forwarder.repeated().into_iter().collect();
        counts.upstream_cut = self.forwarder.cut_bodies();
        counts
    }
}

/// Which way a client came.
fn arrived(arrival: &Arrival) -> Arrived {
    match arrival.via {
        None => Arrived::Directly,
        Some(_) => Arrived::ThroughProxy,
    }
}
