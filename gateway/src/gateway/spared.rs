//! Why somebody is never banned, in the words that a refused ban is answered with.

use std::fmt;

use ipnet::IpNet;

use crate::{config::Config, net::addresses, upstream::resolve::Addresses};

/// What makes a prefix one that is never banned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Packets from it never come from outside.
    Loopback,
    /// An address of one of this host's interfaces.
    Own,
    /// The next hop of one of its routes.
    Router,
    /// A server behind the gateway, by the name of its upstream.
    Upstream(String),
    /// A server that keys of tokens are fetched from, by the name of its issuer.
    Issuer(String),
    /// A proxy in front of the gateway, by the name of its listener.
    Proxy(String),
    /// `[bans].never` has it.
    Never,
    /// `[xdp].allow` has it.
    Allowed,
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Loopback => formatter.write_str("is loopback"),
            Why::Own => formatter.write_str("is an address of this host"),
            Why::Router => formatter.write_str("is a router that this host sends through"),
            Why::Upstream(name) => write!(formatter, "is a server of the upstream {name}"),
            Why::Issuer(name) => write!(formatter, "is a server of the issuer {name}"),
            Why::Proxy(name) => write!(formatter, "is a trusted proxy of the listener {name}"),
            Why::Never => formatter.write_str("is on the list [bans].never"),
            Why::Allowed => formatter.write_str("is on the list [xdp].allow"),
        }
    }
}

/// Why `by`, one of those that are never banned, is one.
/// `known` says where the names of upstream servers lead to.
pub(super) fn why(by: &IpNet, config: &Config, known: &Addresses) -> Why {
    // What cannot be read now was read when `by` was found; then it is no such address.
    let own = addresses::own().unwrap_or_default();
    judge(by, &own, &addresses::routers(), config, known)
}

fn judge(by: &IpNet, own: &[IpNet], routers: &[IpNet], config: &Config, known: &Addresses) -> Why {
    let is_server = |upstream: &&crate::config::Upstream| {
        let addresses = upstream.servers.iter().flat_map(|server| known.of(server));
        addresses.into_iter().any(|address| address.ip().to_canonical() == by.addr())
    };
    if by.addr().is_loopback() {
        Why::Loopback
    } else if own.contains(by) {
        Why::Own
    } else if routers.contains(by) {
        Why::Router
    } else if let Some(upstream) = config.upstreams.iter().find(is_server) {
        Why::Upstream(upstream.name.clone())
    } else if let Some(issuer) =
        config.issuers.iter().find(|issuer| issuer.keys.networks().contains(by))
    {
        Why::Issuer(issuer.rules.name.clone())
    } else if let Some(listener) = config
        .listeners
        .iter()
        .find(|listener| listener.proxies.as_ref().is_some_and(|proxies| proxies.contains(by)))
    {
        Why::Proxy(listener.name.clone())
    } else if config.bans.never.contains(by) {
        Why::Never
    } else {
        Why::Allowed
    }
}
