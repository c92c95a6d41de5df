//! Where permitted requests go: balanced over servers, over pooled connections.

pub mod balance;
pub mod forward;
pub mod pool;

use std::{sync::Arc, time::Duration};

use crate::config::Endpoint;

/// One upstream, as a request sees it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name, in logs and metrics.
    pub name: Arc<str>,
    /// Not empty.
    pub servers: Vec<Arc<Endpoint>>,
    /// For one TCP connection attempt.
    pub connect_timeout: Duration,
    /// From the request sent to the response's head.
    pub response_timeout: Duration,
}
