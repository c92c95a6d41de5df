//! Where permitted requests go: balanced over servers that are well, over pooled connections, sent
//! again only where that is safe.
//!
//! What is configured and where its servers are is part of the snapshot ([`Upstream`]); how they are
//! doing is live state that outlives it ([`server::Server`]) and that all workers share without a
//! lock. Connections, turns and budgets are each worker's own.

pub mod balance;
pub mod dial;
pub mod forward;
pub mod health;
pub mod http1;
pub mod incoming;
pub mod outgoing;
pub mod pool;
pub mod probe;
pub mod resolve;
pub mod retry;
pub mod server;
pub mod tls;

use std::{sync::Arc, time::Duration};

use self::{server::Server, tls::ClientTls};
use crate::config::{Balance, Endpoint, HealthProbe, UpstreamProtocol};

/// One upstream, as a request sees it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name, in logs and metrics.
    pub name: Arc<str>,
    /// As configured; not empty.
    pub endpoints: Vec<Endpoint>,
    /// One for each address of each of those; none while no name has been resolved.
    pub servers: Vec<Arc<Server>>,
    /// What is spoken to them.
    pub protocol: UpstreamProtocol,
    /// Which of them is next.
    pub balance: Balance,
    /// For one connection, and for a request to wait for its turn.
    pub connect_timeout: Duration,
    /// From the whole request sent to the response's head.
    pub response_timeout: Duration,
    /// How long nothing may move in either direction.
    pub idle_timeout: Duration,
    /// Requests at once at one server.
    pub max_requests: usize,
    /// Requests that wait for their turn at one server.
    pub max_waiting: usize,
    /// `None`: servers are judged by what becomes of requests alone.
    pub health: Option<HealthProbe>,
    /// `None`: plain HTTP.
    pub tls: Option<Arc<ClientTls>>,
}
