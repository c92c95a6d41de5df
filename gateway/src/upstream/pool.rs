//! Connections to upstream servers, one pool a worker: no lock, no wake-up of another thread.
//!
//! HTTP/1.1 connections are lent to one request and come back; HTTP/2 connections are shared.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::client::conn::http2;
use lru::DefaultHasher;

use super::{
    dial::{Dialled, Purpose},
    http1::{Connection, stream::Upgraded},
    outgoing::Outgoing,
    server::Place,
};
use crate::time;

/// Idle connections kept for one server and worker: enough for two clients' allowance of HTTP/2 streams to
/// find one each when they come at once, again and again; none stays for longer than [`IDLE_FOR`] after
/// it was needed.
const IDLE_MAX: usize = 256;

/// An idle connection older than this is not used again: servers close theirs after 5 s (Node) to
/// 75 s (nginx), and a request sent into a closing connection is lost.
const IDLE_FOR: Duration = Duration::from_secs(4);

/// An HTTP/2 connection that nobody has used for so long is closed. Servers say so before they close
/// theirs, and what they did not look at is sent again.
const SHARED_IDLE_FOR: Duration = Duration::from_secs(60);

/// Requests at once on one HTTP/2 connection; more get another. Most servers allow 100 to 250.
const STREAMS_MAX: usize = 100;

/// One worker's connections.
#[derive(Clone, Default)]
pub struct Pool {
    lines: Rc<RefCell<HashMap<u64, Lines, DefaultHasher>>>,
    cut: Rc<RefCell<CutBodies>>,
}

/// Answers that broke off after their head, by upstream and how.
pub type CutBodies = BTreeMap<(Arc<str>, &'static str), u64>;

/// Those to one server.
#[derive(Default)]
struct Lines {
    idle: Vec<Idle>,
    shared: Vec<Rc<Shared>>,
    /// Held while a connection is made that others will share.
    dialling: Rc<tokio::sync::Mutex<()>>,
    /// The last connection turned out to be one that requests share.
    speaks_http2: bool,
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
    tls: u64,
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::SendRequest<Outgoing>,
    streams: Cell<usize>,
    used_at: Cell<Instant>,
    tls: u64,
}

impl Shared {
    fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }
}

/// A connection, as one request has it.
pub enum Line {
    /// Its own.
    Http1(Box<Connection>),
    /// With others.
    Http2(Stream),
}

/// One request's part of an HTTP/2 connection.
pub struct Stream(Rc<Shared>);

/// A connection that is lent to one exchange, and the exchange's place at the server.
pub struct Lease {
    line: Option<Line>,
    key: Key,
    upstream: Arc<str>,
    pool: Pool,
    /// Held until the answer has been passed on.
    _place: Place,
}

/// What connections are known by: the server's id, and that of the TLS they were made with (0: none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// [`super::server::Server::id`].
    pub server: u64,
    /// [`super::tls::ClientTls::id`].
    pub tls: u64,
}

impl Pool {
    /// A connection that is there already: of those of HTTP/1.1 the one used last.
    pub fn take(&self, key: Key, purpose: Purpose, now: Instant) -> Option<Line> {
        let mut lines = self.lines.borrow_mut();
        let lines = lines.get_mut(&key.server)?;
        if purpose == Purpose::Requests {
            let fits = |shared: &&Rc<Shared>| {
                shared.tls == key.tls && shared.streams.get() < STREAMS_MAX && shared.is_open()
            };
            if let Some(shared) = lines.shared.iter().find(fits) {
                return Some(Line::http2(shared.clone()));
            }
        }
        while let Some(mut candidate) = lines.idle.pop() {
            if now.saturating_duration_since(candidate.since) > IDLE_FOR {
                // Older ones lie below it.
                lines.idle.clear();
                return None;
            }
            if candidate.tls == key.tls && candidate.connection.is_open() {
                return Some(Line::Http1(candidate.connection));
            }
        }
        None
    }

    /// What to hold while making a connection, when others will want to share it.
    pub fn dialling(&self, key: Key, is_surely_shared: bool) -> Option<Rc<tokio::sync::Mutex<()>>> {
        let mut lines = self.lines.borrow_mut();
        let lines = lines.entry(key.server).or_default();
        (is_surely_shared || lines.speaks_http2).then(|| lines.dialling.clone())
    }

    /// Takes up a new connection.
    pub fn enter(&self, key: Key, purpose: Purpose, dialled: Dialled) -> Line {
        let mut lines = self.lines.borrow_mut();
        let lines = lines.entry(key.server).or_default();
        match dialled {
            Dialled::Http1(connection) => {
                lines.speaks_http2 &= purpose == Purpose::Upgrade;
                Line::Http1(connection)
            }
            Dialled::Http2(sender) => {
                lines.speaks_http2 = true;
                let used_at = Cell::new(time::monotonic());
                let shared = Shared { sender, streams: Cell::new(0), used_at, tls: key.tls };
                let shared = Rc::new(shared);
                lines.shared.push(shared.clone());
                Line::http2(shared)
            }
        }
    }

    /// No request is to be sent on this connection any more.
    pub fn forget(&self, key: Key, line: &Line) {
        if let (Line::Http2(gone), Some(lines)) =
            (line, self.lines.borrow_mut().get_mut(&key.server))
        {
            lines.shared.retain(|shared| !Rc::ptr_eq(shared, &gone.0));
        }
    }

    /// Lends a connection for the rest of an exchange.
    pub fn lend(&self, line: Line, key: Key, upstream: Arc<str>, place: Place) -> Lease {
        Lease { line: Some(line), key, upstream, pool: self.clone(), _place: place }
    }

    /// Closes what has been idle for too long, and forgets servers that have nothing left.
    pub fn sweep(&self, now: Instant) {
        self.lines.borrow_mut().retain(|_, lines| {
            lines.idle.retain_mut(|idle| {
                now.saturating_duration_since(idle.since) <= IDLE_FOR && idle.connection.is_open()
            });
            lines.shared.retain(|shared| {
                let unused = now.saturating_duration_since(shared.used_at.get());
                shared.is_open() && (shared.streams.get() > 0 || unused <= SHARED_IDLE_FOR)
            });
            let is_dialled = Rc::strong_count(&lines.dialling) > 1;
            is_dialled || !lines.idle.is_empty() || !lines.shared.is_empty()
        });
    }

    /// Answers that broke off after their head.
    pub fn cut_bodies(&self) -> CutBodies {
        self.cut.borrow().clone()
    }

    fn put(&self, key: Key, line: Line, now: Instant) {
        // A shared one stays where it is.
        if let Line::Http1(mut connection) = line
            && connection.is_reusable()
        {
            connection.rest();
            let mut lines = self.lines.borrow_mut();
            let idle = &mut lines.entry(key.server).or_default().idle;
            if idle.len() < IDLE_MAX {
                idle.push(Idle { connection, since: now, tls: key.tls });
            }
        }
    }
}

impl Line {
    fn http2(shared: Rc<Shared>) -> Line {
        shared.streams.set(shared.streams.get() + 1);
        Line::Http2(Stream(shared))
    }
}

impl Stream {
    /// A handle to send one request with.
    pub fn sender(&self) -> http2::SendRequest<Outgoing> {
        self.0.sender.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.used_at.set(time::monotonic());
    }
}

impl Lease {
    /// The connection, where it is the request's own.
    pub fn http1(&mut self) -> Option<&mut Connection> {
        match &mut self.line {
            Some(Line::Http1(connection)) => Some(connection),
            _ => None,
        }
    }

    /// The same, to look at.
    pub fn http1_ref(&self) -> Option<&Connection> {
        match &self.line {
            Some(Line::Http1(connection)) => Some(connection),
            _ => None,
        }
    }

    /// The connection as what it has become, where it is the request's own; the place stays.
    pub fn take_upgraded(&mut self) -> Option<Upgraded> {
        match self.line.take()? {
            Line::Http1(connection) => Some(connection.into_upgraded()),
            Line::Http2(_) => None,
        }
    }

    /// Sends what is left of a request that was answered before its end, for so long at most.
    pub async fn send_rest(mut self, patience: Duration) {
        if let Some(connection) = self.http1() {
            let sent = poll_fn(|context| connection.poll_send(context));
            // Nobody waits for it: a connection on which it fails is not used again.
            let _ = tokio::time::timeout(patience, sent).await;
        }
    }

    /// Gives the connection back, where the time is known already.
    pub fn end(mut self, now: Instant) {
        if let Some(line) = self.line.take() {
            self.pool.put(self.key, line, now);
        }
    }

    /// Takes note that the answer broke off.
    pub fn count_cut(&self, how: &'static str) {
        *self.pool.cut.borrow_mut().entry((self.upstream.clone(), how)).or_default() += 1;
    }
}

impl Drop for Lease {
    /// An HTTP/1.1 connection is reusable once both request and answer have ended as they said. One that
    /// was given up half way is not, and closes here.
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            self.pool.put(self.key, line, time::monotonic());
        }
    }
}
