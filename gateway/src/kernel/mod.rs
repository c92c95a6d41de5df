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
// STUB
#[allow(missing_docs)]
mod stub {
    use super::*;
    use gateway_ebpf::Source;
    use std::time::Duration;
    pub struct Kernel;
    pub struct Ban {
        pub source: Source,
        pub lasts: Duration,
        pub reason: u32,
        pub origin: u32,
        pub level: u32,
    }
    pub struct BanEntry {
        pub source: Source,
        pub remaining: Duration,
        pub reason: u32,
        pub origin: u32,
        pub level: u32,
    }
    pub enum BanOutcome {
        Set,
        Full,
    }
    impl std::fmt::Display for BanOutcome {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Ok(())
        }
    }
    #[derive(Debug)]
    pub struct KernelError;
    impl std::fmt::Display for KernelError {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Ok(())
        }
    }
    impl KernelError {
        pub fn not_permitted(&self) -> Option<&'static str> {
            None
        }
    }
    pub struct Count {
        pub interface: String,
        pub action: String,
        pub reason: String,
        pub packets: u64,
        pub bytes: u64,
    }
    pub struct InterfaceStatus {
        pub name: String,
        pub mode: String,
        pub program_id: u32,
    }
    pub struct Status {
        pub interfaces: Vec<InterfaceStatus>,
        pub enforce: bool,
        pub bans: usize,
    }
    impl Kernel {
        pub fn start(_: &Settings) -> Result<(Kernel, Vec<String>), KernelError> {
            Err(KernelError)
        }
        pub fn apply(&mut self, _: &Settings) -> Result<Vec<String>, KernelError> {
            Err(KernelError)
        }
        pub fn ban(&mut self, _: &[Ban]) -> Vec<(Source, BanOutcome)> {
            vec![]
        }
        pub fn unban(&mut self, _: &[Source]) -> Result<usize, KernelError> {
            Ok(0)
        }
        pub fn bans(&self) -> Result<Vec<BanEntry>, KernelError> {
            Ok(vec![])
        }
        pub fn sweep(&mut self) -> Result<usize, KernelError> {
            Ok(0)
        }
        pub fn counters(&self) -> Result<Vec<Count>, KernelError> {
            Ok(vec![])
        }
        pub fn status(&self) -> Status {
            Status { interfaces: vec![], enforce: false, bans: 0 }
        }
    }
    pub fn detach(_: &std::path::Path) -> Result<String, KernelError> {
        Err(KernelError)
    }
}
pub use stub::*;
