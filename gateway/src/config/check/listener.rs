//! `[[listener]]`: names and addresses of their own, and none that another wants.

use std::net::{IpAddr, SocketAddr};

use super::{
    super::{Listener, file},
    Check,
};

impl Check<'_> {
    pub(super) fn listeners(
        &self,
        written: &[file::Listener],
        admin: &file::Admin,
    ) -> Option<Vec<Listener>> {
        let names = written.iter().filter_map(|listener| listener.name.as_ref());
        self.unique("listener.name", names, String::clone);
        let addresses = || written.iter().filter_map(|listener| listener.address.as_ref());
        self.unique("listener.address", addresses(), canonical);
        let metrics = &admin.metrics;
        if let Some(listener) = addresses().find(|l| overlap(&l.value, &metrics.value)) {
            let line = self.report.line_of(listener.place);
            let (metrics_address, listener) = (metrics.value, listener.value);
            self.contradiction(
                metrics.place,
                format!(
                    "admin.metrics {metrics_address} and the listener at {listener} ({line}) want \
                     the same port; give one of them another"
                ),
            );
        }
        let listeners: Vec<Option<Listener>> =
            written.iter().map(|listener| self.listener(listener)).collect();
        listeners.into_iter().collect()
    }

    fn listener(&self, written: &file::Listener) -> Option<Listener> {
        let tls = written.tls.as_ref().and_then(|tls| self.tls(tls));
        let proxies = self.proxies(written);
        Some(Listener {
            name: written.name.as_ref()?.value.clone(),
            address: written.address.as_ref()?.value,
            protocols: self.protocols(written),
            proxies: proxies?,
            tls: tls?,
        })
    }
}

/// IPv4 in IPv6 as IPv4, so that one address has one form.
pub(super) fn canonical(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether two sockets cannot both be bound: the wildcard of IPv6 takes IPv4 too.
pub fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let (a, b) = (canonical(a), canonical(b));
    let covers = |wide: IpAddr, narrow: IpAddr| {
        wide == narrow || (wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4()))
    };
    a.port() == b.port() && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_cannot_both_be_bound_overlap() {
        for (a, b, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ] {
            let (a, b): (SocketAddr, SocketAddr) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!((overlap(&a, &b), overlap(&b, &a)), (expected, expected), "{a} {b}");
        }
    }
}
