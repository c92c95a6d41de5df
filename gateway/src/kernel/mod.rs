//! The user-space half of the XDP program.

use std::path::PathBuf;

use ipnet::IpNet;

/// What the kernel half is told: `[xdp]`, and what the daemon adds of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the program is attached; not empty, no doubles.
    pub interfaces: Vec<String>,
    /// Native, generic, or native with an announced fall-back.
    pub mode: Mode,
    /// False: everything is counted, nothing is dropped.
    pub enforce: bool,
    /// Destination ports that are guarded, TCP and UDP; everything else passes untouched.
    pub ports: Vec<u16>,
    /// Never touched by any rule.
    pub management: Vec<Service>,
    /// Sources that are never dropped: `allow`, and loopback, own addresses, gateways, upstreams.
    pub exempt: Vec<IpNet>,
    /// Sources that are always dropped, unless exempt.
    pub deny: Vec<IpNet>,
    /// Packets for each source (an IPv4 address, an IPv6 /64); `None`: no limit.
    pub packets: Option<Rate>,
    /// Sources whose buckets are remembered at once.
    pub max_sources: u32,
    /// Directory below a bpffs where program, links and maps are pinned.
    pub pin: PathBuf,
}

/// `[xdp].mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native where the driver can, else generic, announced.
    Auto,
    /// Native or nothing.
    Native,
    /// Generic (after the kernel made an skb): works everywhere, slower.
    Generic,
}

/// A port of one protocol, as in `22/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Destination port.
    pub port: u16,
    /// Its protocol.
    pub transport: Transport,
}

/// Transport protocol of a [`Service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

/// A sustained rate and the burst above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Sustained, for each second; not 0.
    pub per_s: u32,
    /// At once, after a pause; at least 1.
    pub burst: u32,
}
