//! Which server next: round robin, the ones that lately refused a connection last.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Upstream;
use crate::config::Endpoint;

/// How long a server that refused a connection is asked last: long enough not to pay its connect
/// timeout with each request, short enough to find it again soon.
const AVOIDED_FOR: Duration = Duration::from_secs(2);

/// Servers remembered as failing; more means a configuration with more servers than that, all failing.
const AVOIDED_MAX: usize = 1_024;

/// One worker's turn for each upstream, and the servers it avoids.
#[derive(Debug, Default)]
pub struct Balance {
    turns: HashMap<Arc<str>, usize>,
    avoided: HashMap<Arc<Endpoint>, Instant>,
}

impl Balance {
    /// The servers in the order in which this request should try them; each once.
    pub fn order(&mut self, upstream: &Upstream, now: Instant) -> Order {
        let count = upstream.servers.len();
        if count == 1 {
            // The common case costs nothing.
            return Order { servers: [Some(upstream.servers[0].clone()), None, None] };
        }
        let turn = match self.turns.get_mut(&upstream.name) {
            Some(turn) => turn,
            None => self.turns.entry(upstream.name.clone()).or_default(),
        };
        let first = *turn % count;
        *turn = turn.wrapping_add(1);
        let avoided = &self.avoided;
        let is_avoided =
            |server: &Arc<Endpoint>| avoided.get(server).is_some_and(|until| *until > now);
        let turned = || (0..count).map(|step| &upstream.servers[(first + step) % count]);
        let mut chosen = turned()
            .filter(|server| !is_avoided(server))
            .chain(turned().filter(|server| is_avoided(server)));
        Order { servers: std::array::from_fn(|_| chosen.next().cloned()) }
    }

    /// Takes note of a refused or timed-out connection attempt.
    pub fn failed(&mut self, server: &Arc<Endpoint>, now: Instant) {
        if self.avoided.len() >= AVOIDED_MAX {
            self.avoided.retain(|_, until| *until > now);
        }
        if self.avoided.len() < AVOIDED_MAX {
            self.avoided.insert(server.clone(), now + AVOIDED_FOR);
        }
    }

    /// Takes note of a connection that came about.
    pub fn worked(&mut self, server: &Arc<Endpoint>) {
        if !self.avoided.is_empty() {
            self.avoided.remove(server);
        }
    }
}

/// Up to three servers to try: with more, a client would wait for the sum of their connect timeouts.
#[derive(Debug)]
pub struct Order {
    servers: [Option<Arc<Endpoint>>; 3],
}

impl Iterator for Order {
    type Item = Arc<Endpoint>;

    fn next(&mut self) -> Option<Arc<Endpoint>> {
        self.servers.iter_mut().find_map(Option::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time;

    fn upstream(servers: usize) -> Upstream {
        let endpoint = |number| Arc::new(Endpoint { host: format!("s{number}"), port: 80 });
        Upstream {
            name: "u".into(),
            servers: (0..servers).map(endpoint).collect(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
        }
    }

    fn hosts(order: Order) -> Vec<String> {
        order.map(|server| server.host.clone()).collect()
    }

    #[test]
    fn servers_take_turns_and_failing_ones_come_last() {
        let now = time::monotonic();
        let upstream = upstream(3);
        let mut balance = Balance::default();
        assert_eq!(hosts(balance.order(&upstream, now)), ["s0", "s1", "s2"]);
        assert_eq!(hosts(balance.order(&upstream, now)), ["s1", "s2", "s0"]);
        balance.failed(&upstream.servers[2], now);
        assert_eq!(hosts(balance.order(&upstream, now)), ["s0", "s1", "s2"]);
        let later = now + AVOIDED_FOR;
        balance.order(&upstream, later);
        balance.order(&upstream, later);
        assert_eq!(hosts(balance.order(&upstream, later)), ["s2", "s0", "s1"], "forgiven");
        balance.failed(&upstream.servers[0], later);
        balance.worked(&upstream.servers[0]);
        assert_eq!(hosts(balance.order(&upstream, later)), ["s0", "s1", "s2"]);
    }

    #[test]
    fn all_failing_are_still_tried() {
        let now = time::monotonic();
        let upstream = upstream(2);
        let mut balance = Balance::default();
        balance.failed(&upstream.servers[0], now);
        balance.failed(&upstream.servers[1], now);
        assert_eq!(hosts(balance.order(&upstream, now)).len(), 2);
    }
}
