//! What may change while running and a request must see whole.
//!
//! One publisher, the control thread, replaces it; a handshake and a request each load it once.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::{
    identity::{
        principal::Rules,
        token::{Issuers, RevokedTokens},
    },
    policy::{limit::Limiters, route::Routes},
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
    /// Limits with their buckets, which stay when this is replaced; routes name them by index.
    pub limits: Limiters,
    /// Routes name them by index.
    pub upstreams: Vec<Upstream>,
    /// One log line a request.
    pub access_log: bool,
}

/// The place that all workers read and the control thread writes.
pub type Published = Arc<ArcSwap<Snapshot>>;
