//! Idle connections to upstream servers, one pool a worker: no lock, no wake-up of another thread.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::client::conn::http1::SendRequest;

use crate::{config::Endpoint, http::body::RequestBody, time};

/// Idle connections kept for one server and worker: enough for that many requests in flight to find
/// one each, and 64 × workers is what a small upstream can hold open.
const IDLE_MAX: usize = 64;

/// An idle connection older than this is not used again: servers close theirs after 5 s (Node) to
/// 75 s (nginx), and a request sent into a closing connection is lost.
const IDLE_FOR: Duration = Duration::from_secs(4);

/// One worker's idle connections.
#[derive(Clone, Default)]
pub struct Pool {
    idle: Rc<RefCell<HashMap<Arc<Endpoint>, Vec<Idle>>>>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// A connection that is lent to one exchange.
pub struct Lease {
    sender: Option<SendRequest<RequestBody>>,
    server: Arc<Endpoint>,
    pool: Pool,
}

impl Pool {
    /// An idle connection to that server, the one used last.
    pub fn take(&self, server: &Arc<Endpoint>, now: Instant) -> Option<Lease> {
        let mut pools = self.idle.borrow_mut();
        let idle = pools.get_mut(server)?;
        while let Some(candidate) = idle.pop() {
            if now.saturating_duration_since(candidate.since) > IDLE_FOR {
                // Older ones lie below it.
                idle.clear();
                return None;
            }
            if candidate.sender.is_ready() {
                return Some(self.lend(candidate.sender, server.clone()));
            }
        }
        None
    }

    /// A lease of a new connection.
    pub fn lend(&self, sender: SendRequest<RequestBody>, server: Arc<Endpoint>) -> Lease {
        Lease { sender: Some(sender), server, pool: self.clone() }
    }

    /// Closes what has been idle for too long, and forgets servers that have nothing left.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|idle| {
                now.saturating_duration_since(idle.since) <= IDLE_FOR && !idle.sender.is_closed()
            });
            !idle.is_empty()
        });
    }

    fn put(&self, server: Arc<Endpoint>, sender: SendRequest<RequestBody>) {
        let mut pools = self.idle.borrow_mut();
        let idle = pools.entry(server).or_default();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: time::monotonic() });
        }
    }
}

impl Lease {
    /// The connection. `None` only after [`Lease::give_back`], which consumes the lease.
    pub fn sender(&mut self) -> Option<&mut SendRequest<RequestBody>> {
        self.sender.as_mut()
    }

    /// Returns the connection to the pool.
    pub fn give_back(mut self) {
        self.return_if_ready();
    }

    /// hyper reports ready once the response has been read to its end and may be followed by another.
    fn return_if_ready(&mut self) {
        if let Some(sender) = self.sender.take()
            && sender.is_ready()
        {
            self.pool.put(self.server.clone(), sender);
        }
    }
}

impl Drop for Lease {
    /// A body whose end was known without another read is never polled to its end; its connection is
    /// just as good. One that was given up half way is not ready, and closes here.
    fn drop(&mut self) {
        self.return_if_ready();
    }
}
