//! `[xdp]`: which ports are guarded, who is exempt, and rates that the kernel half can keep.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    super::{
        Protocol,
        file::{self, File},
        section::At,
    },
    Check,
};
use crate::kernel::{self, ByteRate, Rate, Service, Transport};

/// The kernel half reads time in ticks of at most 10 ms; a burst that is spent within two of them
/// would turn the ticks into drops.
const BURSTS_PER_S: u64 = 50;

impl Check<'_> {
    /// `Some(None)`: no kernel half.
    pub(super) fn xdp(&self, file: &File) -> Option<Option<kernel::Settings>> {
        let written = &file.xdp;
        self.without_interfaces(written);
        let ports = written.ports.as_ref().map(|ports| self.ports(ports, file));
        let exempt = self.exempt(file);
        let rate = |name, rate: &Option<_>| rate.as_ref().and_then(|rate| self.rate(name, rate));
        let packets = rate("packets", &written.packets);
        let connections = rate("connections", &written.connections);
        let bytes = written.bytes.as_ref().map(|rate| self.byte_rate(rate));
        let new_sources = written.new_sources.as_ref().map(|limit| self.rate("new_sources", limit));
        let interfaces = written.interfaces.clone()?;
        if interfaces.is_empty() {
            return Some(None);
        }
        Some(Some(kernel::Settings {
            interfaces,
            mode: written.mode.value,
            enforce: written.enforce.value,
            ports: ports?,
            management: written.management.value.iter().map(|service| service.value).collect(),
            exempt,
            deny: written.deny.iter().map(|network| network.value).collect(),
            packets: Some(packets?),
            connections: Some(connections?),
            bytes: bytes.map_or(Some(None), |rate| rate.map(Some))?,
            new_sources: new_sources.map_or(Some(None), |rate| rate.map(Some))?,
            max_sources: written.max_sources.value,
            pin: written.pin.value.clone(),
        }))
    }

    /// Settings that ask something of a kernel half that is not loaded.
    fn without_interfaces(&self, written: &file::Xdp) {
        if written.interfaces.as_ref().is_none_or(|interfaces| !interfaces.is_empty()) {
            return;
        }
        if written.enforce.value {
            let text = "xdp.enforce is true, but interfaces is empty, so nothing can be dropped; \
                        name the interfaces or take enforce out";
            self.contradiction(written.enforce.place, text);
        }
        if written.mode.value == kernel::Mode::Native {
            let text = "xdp.mode is \"native\", but interfaces is empty, so no program is loaded; \
                        name the interfaces or take mode out";
            self.report.warning(written.mode.place, text);
        }
    }

    /// The ports that are guarded: those written, else those of the listeners.
    fn ports(&self, written: &At<Vec<At<u16>>>, file: &File) -> Vec<u16> {
        let listening = || file.listeners.iter().filter_map(|listener| listener.address.as_ref());
        let mut ports: Vec<u16> = written.value.iter().map(|port| port.value).collect();
        if ports.is_empty() {
            ports = listening().map(|address| address.value.port()).collect();
            ports.sort_unstable();
            ports.dedup();
        } else {
            for address in listening().filter(|at| !ports.contains(&at.value.port())) {
                let port = address.value.port();
                let line = self.report.line_of(address.place);
                let text = format!(
                    "xdp.ports leaves out {port}, where a listener is ({line}); add it, or nothing \
                     guards that port"
                );
                self.report.warning(written.place, text);
            }
        }
        for service in &file.xdp.management.value {
            let Service { port, transport } = service.value;
            let over_udp = || {
                file.listeners.iter().any(|listener| {
                    listener.address.as_ref().is_some_and(|at| at.value.port() == port)
                        && listener
                            .protocols
                            .as_ref()
                            .is_some_and(|protocols| protocols.value.contains(&Protocol::Http3))
                })
            };
            let (is_served, word) = match transport {
                Transport::Tcp => (true, "tcp"),
                Transport::Udp => (over_udp(), "udp"),
            };
            if is_served && ports.contains(&port) {
                let text = format!(
                    "xdp.management has {port}/{word}, which no rule would touch, and the same port is \
                     to be guarded; take it out of one of the two"
                );
                self.contradiction(service.place, text);
            }
        }
        ports
    }

    /// Sources that are never dropped: `allow`, loopback, the servers behind the gateway, and the
    /// proxies in front of it.
    fn exempt(&self, file: &File) -> Vec<IpNet> {
        let written = &file.xdp;
        for network in written.allow.iter().filter(|network| network.value.prefix_len() == 0) {
            let text = format!(
                "xdp.allow has {}, which exempts everybody from every rule; write who is meant",
                network.value
            );
            self.report.warning(network.place, text);
        }
        let mut exempt: Vec<IpNet> = written.allow.iter().map(|network| network.value).collect();
        exempt.push(IpNet::new_assert([127, 0, 0, 0].into(), 8));
        exempt.push(IpNet::from(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16])));
        let servers = file.upstreams.iter().filter_map(|upstream| upstream.servers.as_ref());
        let addresses = servers.flatten().filter_map(|server| server.value.host.parse().ok());
        exempt.extend(addresses.map(|address: IpAddr| IpNet::from(address.to_canonical())));
        let issuers = file.issuers.iter().map(|issuer| &issuer.keys);
        for keys in issuers {
            let urls = [&keys.url, &keys.discovery_url].into_iter().flatten();
            exempt.extend(urls.filter_map(|url| url.value.address()).map(IpNet::from));
            let addresses = keys.addresses.iter().flat_map(|list| &list.value);
            exempt.extend(addresses.map(|at| IpNet::from(at.value.ip().to_canonical())));
        }
        let proxies =
            file.listeners.iter().filter_map(|listener| listener.trusted_proxies.as_ref());
        exempt.extend(proxies.flat_map(|list| &list.value).map(|at| at.value));
        let mut seen = std::collections::HashSet::new();
        exempt.retain(|network| seen.insert(*network));
        self.denied(written, &exempt);
        exempt
    }

    /// `deny` against what is exempt from it.
    fn denied(&self, written: &file::Xdp, exempt: &[IpNet]) {
        for network in &written.deny {
            let denied = network.value;
            if let Some(allowed) = written.allow.iter().find(|allowed| allowed.value == denied) {
                let line = self.report.line_of(allowed.place);
                let text = format!(
                    "xdp.deny has {denied}, which is also in allow ({line}); take it out of one"
                );
                self.contradiction(network.place, text);
            } else if let Some(covering) = exempt.iter().find(|exempt| exempt.contains(&denied)) {
                let text = format!(
                    "xdp.deny has {denied}, which does nothing, for {covering} is exempt; take it \
                     out"
                );
                self.report.warning(network.place, text);
            } else if denied.prefix_len() == 0 {
                let text = format!(
                    "xdp.deny has {denied}, which refuses everybody who is not exempt; write who \
                     is meant"
                );
                self.report.warning(network.place, text);
            }
        }
    }

    fn rate(&self, name: &str, written: &file::RateFile) -> Option<Rate> {
        let (rate, burst) = (written.rate_per_s.as_ref()?, written.burst.as_ref()?);
        let per_s = rate.value;
        let least = u64::from(per_s).div_ceil(BURSTS_PER_S);
        if u64::from(burst.value) < least {
            let text = format!(
                "xdp.{name}.burst is {}, which at {per_s}/s is less than 20 ms, two ticks of the \
                 kernel's clock; write at least {least}",
                burst.value
            );
            self.contradiction(burst.place, text);
        }
        Some(Rate { per_s, burst: burst.value })
    }

    fn byte_rate(&self, written: &file::ByteRateFile) -> Option<ByteRate> {
        let (rate, burst) = (written.bytes_per_s.as_ref()?, written.burst_bytes.as_ref()?);
        let least = rate.value.div_ceil(BURSTS_PER_S).max(kernel::FRAME_MAX_BYTES);
        if burst.value < least {
            let text = format!(
                "xdp.bytes.burst is {}, which is less than 20 ms at the rate (two ticks of the \
                 kernel's clock) or than one frame; write at least \"{}KiB\"",
                burst.value,
                least.div_ceil(1024)
            );
            self.contradiction(burst.place, text);
        }
        Some(ByteRate { bytes_per_s: rate.value, burst_bytes: burst.value })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::fake::{Fake, small};

    #[test]
    fn without_interfaces_there_is_no_kernel_half() {
        let (config, _) = Fake::new().load(&small("[\"eth0\"]", "[]")).unwrap();
        assert_eq!(config.xdp, None);
    }
}
