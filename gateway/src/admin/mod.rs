//! Where operators and monitors ask: a Unix socket for the command line, an HTTP address for
//! Prometheus, and log lines.

pub mod asker;
pub mod audit;
pub mod journal;
pub mod metrics;
pub mod monitor;
pub mod notify;
pub mod page;
pub mod repeats;
pub mod socket;
