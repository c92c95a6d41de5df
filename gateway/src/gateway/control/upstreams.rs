//! What the control thread does for the upstreams: looks their names up, keeps their addresses exempt
//! in the kernel, and tells how they are doing.

use std::{cell::RefCell, collections::BTreeSet, net::IpAddr, rc::Rc, sync::Arc};

use ipnet::IpNet;
use tokio::task::{spawn_blocking, spawn_local};

use super::Control;
use crate::{
    admin::{
        metrics::Reading,
        socket::{UpstreamServerStatus, UpstreamStatus},
    },
    config::{Config, Endpoint},
    snapshot::Snapshot,
    time,
    upstream::{
        Upstream,
        health::{Standing, Verdict},
        resolve::{self, Addresses, FIRST_LOOK_MAX, RESOLVE_EVERY, RETRY_EVERY},
        server::Server,
    },
};

/// The names among a configuration's upstream servers.
fn names(config: &Config) -> BTreeSet<String> {
    resolve::names(config.upstreams.iter().flat_map(|upstream| &upstream.servers))
}

/// Looks up what is not known yet, and says what is not to be had now. Blocks for up to
/// [`FIRST_LOOK_MAX`], and not at all without new names.
pub(in crate::gateway) fn look_up_new(config: &Config, addresses: &mut Addresses) {
    let names = names(config);
    addresses.keep(&names);
    let new: BTreeSet<String> = names.into_iter().filter(|name| !addresses.knows(name)).collect();
    if new.is_empty() {
        return;
    }
    for (name, found) in resolve::at_once(new.clone(), FIRST_LOOK_MAX) {
        addresses.learn(&name, found);
    }
    for name in new.iter().filter(|name| !addresses.knows(name)) {
        tracing::warn!(server = name, "upstream server has no address yet; it is looked for");
    }
}

/// Addresses as the kernel's lists have them.
pub(in crate::gateway) fn networks(addresses: &Addresses) -> Vec<IpNet> {
    addresses.all().map(|ip| IpNet::from(ip.to_canonical())).collect()
}

/// Looks names up again and again until the process ends. One that takes its time holds up no other,
/// and is not asked a second time meanwhile.
pub(in crate::gateway) async fn follow_names(control: Rc<Control>) {
    let asked: Rc<RefCell<BTreeSet<String>>> = Rc::default();
    loop {
        let wanted = names(&control.config.borrow());
        let all_known = wanted.iter().all(|name| control.addresses.borrow().knows(name));
        for name in wanted {
            if !asked.borrow_mut().insert(name.clone()) {
                continue;
            }
            let (control, asked) = (control.clone(), asked.clone());
            spawn_local(async move {
                let question = name.clone();
                let found = spawn_blocking(move || resolve::look_up(&question)).await;
                asked.borrow_mut().remove(&name);
                control.learn(&name, found.unwrap_or_default());
            });
        }
        tokio::time::sleep(if all_known { RESOLVE_EVERY } else { RETRY_EVERY }).await;
    }
}

impl Control {
    /// Takes up an answer: if it says something new, requests go there from now on, and packets from
    /// there are never dropped.
    fn learn(&self, name: &str, found: Vec<IpAddr>) {
        // A reload may have taken the name out meanwhile.
        if !names(&self.config.borrow()).contains(name) {
            return;
        }
        if !self.addresses.borrow_mut().learn(name, found) {
            return;
        }
        let before = self.shared.published.load_full();
        let mut upstreams = before.upstreams.clone();
        let addresses = self.addresses.borrow();
        resolve::settle(&mut upstreams, &addresses, &before.upstreams, time::monotonic());
        let generation = before.generation + 1;
        self.shared.published.store(Arc::new(Snapshot {
            generation,
            upstreams,
            ..(*before).clone()
        }));
        let shown: Vec<_> = networks(&addresses).iter().map(|net| net.addr().to_string()).collect();
        tracing::info!(server = name, addresses = shown.join(" "), "upstream addresses taken");
        drop(addresses);
        if let Err(error) = self.exempt_upstreams() {
            tracing::error!(detail = error, "upstream addresses not exempt in the kernel");
        }
    }

    fn exempt_upstreams(&self) -> Result<(), String> {
        self.set_never();
        self.rewrite_kernel().map(drop)
    }

    /// For `portcullis status`.
    pub(super) fn upstream_status(&self) -> Vec<UpstreamStatus> {
        let now = time::monotonic();
        let snapshot = self.shared.published.load();
        let status = |upstream: &Upstream| {
            let mut servers: Vec<_> = upstream
                .servers
                .iter()
                .map(|server| UpstreamServerStatus {
                    server: server.endpoint().to_string(),
                    address: Some(server.address().to_string()),
                    state: state(upstream, server, now).to_owned(),
                    requests: server.busy(),
                })
                .collect();
            let has_servers = |endpoint: &Endpoint| {
                upstream.servers.iter().any(|server| server.endpoint() == endpoint)
            };
            let lost = upstream.endpoints.iter().filter(|endpoint| !has_servers(endpoint));
            servers.extend(lost.map(|endpoint| UpstreamServerStatus {
                server: endpoint.to_string(),
                address: None,
                state: "unresolved".to_owned(),
                requests: 0,
            }));
            UpstreamStatus { name: upstream.name.to_string(), servers }
        };
        snapshot.upstreams.iter().map(status).collect()
    }

    /// For the page of metrics: labels are the configuration's, so addresses are only counted.
    pub(super) fn upstream_readings(&self) -> [Reading; 2] {
        let mut states = Vec::new();
        let mut requests = Vec::new();
        for upstream in self.upstream_status() {
            for word in ["up", "down", "out", "unresolved"] {
                let count = upstream.servers.iter().filter(|server| server.state == word).count();
                let labels = vec![("upstream", upstream.name.clone()), ("state", word.to_owned())];
                states.push((labels, count as f64));
            }
            let busy: usize = upstream.servers.iter().map(|server| server.requests).sum();
            requests.push((vec![("upstream", upstream.name)], busy as f64));
        }
        [
            Reading {
                name: "gateway_upstream_servers",
                help: "Servers of an upstream, each address one, by how they are doing.",
                kind: "gauge",
                series: states,
            },
            Reading {
                name: "gateway_upstream_requests_open",
                help: "Requests that an upstream has not answered to their end.",
                kind: "gauge",
                series: requests,
            },
        ]
    }
}

/// How a server is doing, in one word.
fn state(upstream: &Upstream, server: &Server, now: std::time::Instant) -> &'static str {
    if upstream.health.is_some() && server.verdict() == Verdict::Down {
        return "down";
    }
    match server.standing(now) {
        // The only one is tried whatever became of the last requests.
        Standing::Out(_) | Standing::Due if upstream.servers.len() > 1 => "out",
        _ => "up",
    }
}
