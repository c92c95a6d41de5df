//! From configured servers to addresses: each address of a name is a server of its own, so that all of
//! them are used and each is judged by itself.
//!
//! Names are looked up beside the requests, never by one. The last good answer stays in force for as
//! long as there is no other: a name server that is away takes no upstream with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::{Upstream, server::Server};
use crate::config::Endpoint;

/// From one look at a name to the next. Shorter than most names' time to live, and a server that has
/// moved is missed for no longer; the resolver on this host, or its library, keeps its own answers.
pub const RESOLVE_EVERY: Duration = Duration::from_secs(10);

/// After no answer.
pub const RETRY_EVERY: Duration = Duration::from_secs(2);

/// How long a start or a reload waits for names that were never resolved: most answers take
/// milliseconds, and whoever starts a service wants it to be whole.
pub const FIRST_LOOK_MAX: Duration = Duration::from_secs(1);

/// Addresses of one name; more would be a mistake, and each costs connections and questions.
const ADDRESSES_MAX: usize = 64;

/// The last good answers, by lower-case name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    known: BTreeMap<String, Vec<IpAddr>>,
}

impl Addresses {
    /// Takes up an answer; whether it says something new. An empty one is none.
    pub fn learn(&mut self, name: &str, mut found: Vec<IpAddr>) -> bool {
        // Name servers turn the order round with each answer; only which they are matters.
        found.sort_unstable();
        found.dedup();
        found.truncate(ADDRESSES_MAX);
        if found.is_empty() || self.known.get(name) == Some(&found) {
            return false;
        }
        self.known.insert(name.to_owned(), found);
        true
    }

    /// Forgets names that nobody asks for any more.
    pub fn keep(&mut self, names: &BTreeSet<String>) {
        self.known.retain(|name, _| names.contains(name));
    }

    /// Whether there was ever an answer.
    pub fn knows(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Every address of every name.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.known.values().flatten().copied()
    }

    /// The addresses of a server: its own, or those of its name.
    pub fn of(&self, endpoint: &Endpoint) -> Vec<SocketAddr> {
        let at = |ip: IpAddr| SocketAddr::new(ip, endpoint.port);
        match endpoint.host.parse() {
            Ok(ip) => vec![at(ip)],
            Err(_) => {
                self.known.get(&endpoint.host).into_iter().flatten().copied().map(at).collect()
            }
        }
    }
}

/// The names among the servers.
pub fn names<'e>(endpoints: impl IntoIterator<Item = &'e Endpoint>) -> BTreeSet<String> {
    let names = endpoints.into_iter().map(|endpoint| &endpoint.host);
    names.filter(|host| host.parse::<IpAddr>().is_err()).cloned().collect()
}

/// Gives upstreams the servers that their names lead to now. A server that is there already keeps its
/// state: `before` are the upstreams of the snapshot in force.
pub fn settle(
    upstreams: &mut [Upstream],
    addresses: &Addresses,
    before: &[Upstream],
    now: Instant,
) {
    for upstream in upstreams {
        let known = before.iter().find(|known| known.name == upstream.name);
        let known = known.map_or(&[] as &[_], |known| known.servers.as_slice());
        let mut seen = BTreeSet::new();
        upstream.servers = upstream
            .endpoints
            .iter()
            .flat_map(|endpoint| {
                addresses.of(endpoint).into_iter().map(move |address| (endpoint, address))
            })
            // Two names of one address are one server.
            .filter(|(_, address)| seen.insert(*address))
            .map(|(endpoint, address)| {
                let is_it = |server: &&Arc<Server>| {
                    server.address() == address
                        && server.endpoint() == endpoint
                        && server.capacity() == upstream.max_requests
                };
                let new = || Server::new(endpoint.clone(), address, upstream.max_requests, now);
                known.iter().find(is_it).cloned().unwrap_or_else(|| Arc::new(new()))
            })
            .collect();
    }
}

/// Looks names up, all at once, and gives what came within `patience`.
pub fn at_once(names: BTreeSet<String>, patience: Duration) -> Vec<(String, Vec<IpAddr>)> {
    let (sender, answers) = mpsc::channel();
    let mut asked = 0;
    for name in names {
        let sender = sender.clone();
        // A thread that cannot be had is a name without an answer. One that hangs ends by itself.
        let started = thread::Builder::new().name("resolve".to_owned()).spawn(move || {
            let found = look_up(&name);
            // Who asked may have lost patience.
            let _ = sender.send((name, found));
        });
        asked += usize::from(started.is_ok());
    }
    drop(sender);
    let until = crate::time::monotonic() + patience;
    let mut found = Vec::new();
    while found.len() < asked {
        let left = until.saturating_duration_since(crate::time::monotonic());
        match answers.recv_timeout(left) {
            Ok(answer) => found.push(answer),
            Err(_) => break,
        }
    }
    found
}

/// The addresses of a name; none when there are none now. Blocks.
pub fn look_up(name: &str) -> Vec<IpAddr> {
    let found = (name, 0).to_socket_addrs();
    found.map_or_else(|_| Vec::new(), |found| found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Balance, UpstreamProtocol},
        time,
        upstream::health::Verdict,
    };

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: 80, is_tls: false }
    }

    fn upstream(hosts: &[&str], max_requests: usize) -> Upstream {
        Upstream {
            name: "orders".into(),
            endpoints: hosts.iter().map(|host| endpoint(host)).collect(),
            servers: Vec::new(),
            protocol: UpstreamProtocol::Auto,
            balance: Balance::RoundRobin,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            max_requests,
            max_waiting: 1,
            health: None,
            tls: None,
        }
    }

    fn shown(upstreams: &[Upstream]) -> Vec<String> {
        upstreams[0].servers.iter().map(|server| server.address().to_string()).collect()
    }

    #[test]
    fn the_last_good_answer_stays() {
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let mut addresses = Addresses::default();
        assert!(!addresses.learn("a", vec![]), "no answer");
        assert!(!addresses.knows("a"));
        assert!(addresses.learn("a", vec![ip(2), ip(1), ip(2)]));
        assert!(!addresses.learn("a", vec![ip(1), ip(2)]), "the same in another order");
        assert!(!addresses.learn("a", vec![]));
        assert_eq!(addresses.of(&endpoint("a")).len(), 2);
        assert!(addresses.learn("a", vec![ip(3)]));
        assert_eq!(addresses.all().collect::<Vec<_>>(), [ip(3)]);
        addresses.keep(&names([&endpoint("b"), &endpoint("192.0.2.1")]));
        assert!(!addresses.knows("a"));
    }

    #[test]
    fn servers_keep_their_state_while_names_move() {
        let now = time::monotonic();
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let mut addresses = Addresses::default();
        let mut first = vec![upstream(&["192.0.2.9", "a"], 10)];
        settle(&mut first, &addresses, &[], now);
        assert_eq!(shown(&first), ["192.0.2.9:80"], "not resolved yet");
        addresses.learn("a", vec![ip(1), ip(2), ip(9)]);
        let mut second = first.clone();
        settle(&mut second, &addresses, &first, now);
        assert_eq!(shown(&second), ["192.0.2.9:80", "192.0.2.1:80", "192.0.2.2:80"]);
        second[0].servers[2].set_verdict(Verdict::Down);
        addresses.learn("a", vec![ip(2)]);
        let mut third = vec![upstream(&["a"], 10)];
        settle(&mut third, &addresses, &second, now);
        assert_eq!(shown(&third), ["192.0.2.2:80"]);
        assert_eq!(third[0].servers[0].verdict(), Verdict::Down, "the same server");
        let mut other = vec![upstream(&["a"], 11)];
        settle(&mut other, &addresses, &third, now);
        assert_eq!(other[0].servers[0].verdict(), Verdict::Unknown, "another size, another server");
    }

    #[test]
    fn an_address_is_no_name_and_a_name_that_is_none_has_no_address() {
        let found = at_once(BTreeSet::from(["localhost".to_owned()]), Duration::from_secs(20));
        let [(name, addresses)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(name, "localhost");
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
        assert_eq!(look_up(""), look_up("a b"));
    }
}
