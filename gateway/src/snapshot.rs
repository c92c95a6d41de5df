//! What may change while running and a request must see whole.
//!
//! One publisher, the control thread, replaces it; a handshake and a request each load it once.

use std::{ops::Index, sync::Arc};

use arc_swap::ArcSwap;

use crate::{
    http::guard::Limits,
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
    /// What the listeners' handshakes are made of.
    pub listeners: Listeners,
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
    /// What a client may take of time and work.
    pub clients: Arc<Limits>,
    /// One log line a request.
    pub access_log: bool,
}

impl Snapshot {
    /// With its listeners at these places, and what is at others as it was before.
    pub fn at(self, places: &[usize], before: &Snapshot) -> Snapshot {
        Snapshot { listeners: before.listeners.placed(&self.listeners, places), ..self }
    }
}

/// The place that all workers read and the control thread writes.
pub type Published = Arc<ArcSwap<Snapshot>>;

/// What the listeners' handshakes are made of, each at its place.
///
/// A place is a listener's for the whole run, whatever a reload adds or removes before it: open
/// connections, counts and sessions know their listener by it. That of a listener which was removed
/// keeps its last state, for the connections that still have to end.
#[derive(Clone)]
pub struct Listeners {
    places: Vec<ListenerTls>,
    /// The place of each listener, in the order of the configuration.
    configured: Vec<usize>,
}

impl Listeners {
    /// In the order of the configuration, each at the place of its number.
    pub fn new(listeners: Vec<ListenerTls>) -> Listeners {
        Listeners { configured: (0..listeners.len()).collect(), places: listeners }
    }

    /// These listeners, in the order of the configuration, at these places; what is at other places
    /// is as it was. Places that were not there before have to be the next ones.
    pub fn placed(&self, listeners: &Listeners, places: &[usize]) -> Listeners {
        let mut all = self.places.clone();
        let mut fresh: Vec<(usize, ListenerTls)> = Vec::new();
        for (place, listener) in places.iter().zip(listeners.configured()) {
            let mut listener = listener.clone();
            match all.get_mut(*place) {
                Some(before) => {
                    listener.keep_sessions(before);
                    *before = listener;
                }
                None => fresh.push((*place, listener)),
            }
        }
        fresh.sort_by_key(|(place, _)| *place);
        all.extend(fresh.into_iter().map(|(_, listener)| listener));
        Listeners { places: all, configured: places.to_vec() }
    }

    /// Those that the configuration has, in its order.
    pub fn configured(&self) -> impl Iterator<Item = &ListenerTls> {
        self.configured.iter().map(|place| &self.places[*place])
    }

    /// Their places, in the order of the configuration.
    pub fn places(&self) -> &[usize] {
        &self.configured
    }
}

impl Index<usize> for Listeners {
    type Output = ListenerTls;

    /// The listener at a place that was given out.
    fn index(&self, place: usize) -> &ListenerTls {
        &self.places[place]
    }
}
