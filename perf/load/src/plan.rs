//! What the generator is told to do.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

/// Whom to load, as whom, with what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Where the server listens.
    pub server: SocketAddr,
    /// The name that its certificate is for.
    pub name: String,
    /// Authorities it may have been certified by, in PEM.
    pub authority: PathBuf,
    /// The client's certificate, in PEM.
    pub certificate: PathBuf,
    /// And its key.
    pub key: PathBuf,
    /// What is spoken.
    pub protocol: Protocol,
    /// What is asked for.
    pub path: String,
    /// Tokens, one a line, sent in turns; none: no token is sent.
    pub tokens: Option<PathBuf>,
    /// The server's processes, whose time is counted.
    pub process_ids: Vec<i32>,
    /// What to do.
    pub work: Work,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
    /// HTTP/3.
    H3,
}

/// What to do.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Work {
    /// Ask again as soon as an answer is there: what the server can do, and what it costs.
    Closed {
        /// Kept connections.
        connections: usize,
        /// Requests at once on each; 1 for HTTP/1.1.
        streams: usize,
        /// Before anything counts.
        warm_up_ms: u64,
        /// While it counts.
        lasts_ms: u64,
        /// Each of these stretches is looked at by itself.
        window_ms: u64,
    },
    /// Ask at moments fixed before, whatever the answers do: how long a request takes.
    Rate {
        /// Requests a second.
        per_s: u32,
        /// Kept connections.
        connections: usize,
        /// Requests at once on each.
        streams: usize,
        /// Before anything counts.
        warm_up_ms: u64,
        /// While it counts.
        lasts_ms: u64,
        /// Connections that end are replaced, and what was asked on them is asked once more, as every
        /// client does; else a connection that ends is a failure.
        reconnects: bool,
    },
    /// Connect, shake hands, ask once, close, again and again.
    Handshakes {
        /// Resume the session of the last time.
        resumed: bool,
        /// So many at once.
        at_once: usize,
        /// Before anything counts.
        warm_up_ms: u64,
        /// While it counts.
        lasts_ms: u64,
        /// Each of these stretches is looked at by itself.
        window_ms: u64,
    },
    /// Connect and ask, one time: what does the server answer?
    Once,
    /// Connect, ask once each, say so, and keep them open until standard input ends.
    Hold {
        /// How many.
        connections: usize,
    },
}
