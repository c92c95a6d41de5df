//! What may change while running and a request must see whole.
//!
//! One publisher, the control thread, replaces it; a handshake and a request each load it once.

use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::{
    http::guard::Limits,
    identity::{
        principal::Rules,
        token::{Issuers, RevokedTokens},
    },
    policy::route::Routes,
    tls::ListenerTls,
    upstream::Upstream,
};

/// One consistent state of everything that a reload may replace.
#[derive(Clone)]
pub struct Snapshot {
    /// Counts up with each replacement, from 1.
    pub generation: u64,
    /// One for each listener, in the order of the configuration.
    pub listeners: Vec<ListenerTls>,
    /// The issuers and their keys.
    pub issuers: Arc<Issuers>,
    /// Client certificate → principal.
    pub identities: Rules,
    /// Tokens that are refused whatever else is right with them.
    pub revoked_tokens: Arc<RevokedTokens>,
    /// Host, path and method → route.
    pub routes: Routes,
    /// Routes name them by index.
    pub upstreams: Vec<Upstream>,
    /// What a client may take of time and work.
    pub clients: Arc<Limits>,
    /// For each listener the proxies that may connect to it, each with a PROXY header; `None`: clients
    /// connect themselves.
    pub proxies: Arc<[Option<Vec<IpNet>>]>,
    /// One log line a request.
    pub access_log: bool,
}

/// The place that all workers read and the control thread writes.
pub type Published = Arc<ArcSwap<Snapshot>>;
