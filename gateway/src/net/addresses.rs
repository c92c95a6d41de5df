//! This host's own addresses and gateways: never limited and never banned, or the host would cut
//! itself off.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses of this host's interfaces, and the next hops of its routes, each as a host prefix.
///
/// # Errors
/// The kernel does not say; then it is better not to start than to filter without knowing them.
pub fn infrastructure() -> std::io::Result<Vec<IpNet>> {
    let mut found = own()?;
    found.extend(routers());
    found.sort();
    found.dedup();
    Ok(found)
}

/// Addresses of this host's interfaces, each as a host prefix.
///
/// # Errors
/// The kernel does not say.
pub fn own() -> std::io::Result<Vec<IpNet>> {
    let found = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .map(IpNet::from);
    Ok(found.collect())
}

/// Next hops of this host's routes, each as a host prefix.
pub fn routers() -> Vec<IpNet> {
    // Absent when the kernel was built without that family.
    let table = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut found: Vec<IpNet> = gateways_v4(&table("/proc/net/route")).collect();
    found.extend(gateways_v6(&table("/proc/net/ipv6_route")));
    found
}

/// `/proc/net/route`: the third column is the next hop, in the machine's byte order.
fn gateways_v4(table: &str) -> impl Iterator<Item = IpNet> {
    table.lines().skip(1).filter_map(|line| {
        let hop = u32::from_str_radix(line.split_whitespace().nth(2)?, 16).ok()?;
        (hop != 0).then(|| IpNet::from(IpAddr::V4(Ipv4Addr::from(hop.to_ne_bytes()))))
    })
}

/// `/proc/net/ipv6_route`: the fifth column is the next hop.
fn gateways_v6(table: &str) -> impl Iterator<Item = IpNet> {
    table.lines().filter_map(|line| {
        let hop = u128::from_str_radix(line.split_whitespace().nth(4)?, 16).ok()?;
        (hop != 0).then(|| IpNet::from(IpAddr::V6(Ipv6Addr::from(hop))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_are_read_from_the_kernels_tables() {
        let v4 = "Iface\tDestination\tGateway \tFlags\n\
                  eth0\t00000000\t010200C0\t0003\neth0\t000200C0\t00000000\t0001\n";
        let hops: Vec<_> = gateways_v4(v4).collect();
        assert_eq!(hops, ["192.0.2.1/32".parse::<IpNet>().unwrap()]);
        let v6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  20010db8000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
                  fe800000000000000000000000000000 40 00000000000000000000000000000000 00 \
                  00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n";
        let hops: Vec<_> = gateways_v6(v6).collect();
        assert_eq!(hops, ["2001:db8::1/128".parse::<IpNet>().unwrap()]);
        assert_eq!(gateways_v4("garbage").count() + gateways_v6("x y z").count(), 0);
    }

    #[test]
    fn loopback_is_among_the_own_addresses() {
        let own = infrastructure().unwrap();
        assert!(own.contains(&"127.0.0.1/32".parse().unwrap()), "{own:?}");
    }
}
