//! The user-space half of the XDP program: loading, attaching, and what goes into its maps.
//!
//! [`Kernel`] owns the maps. The program itself belongs to its pins: it filters on when the daemon
//! is gone, however it went, and only [`detach`] (or an interface that leaves the configuration)
//! takes it away. Everything here blocks for as long as a few system calls take, and is to be
//! called from one task. The daemon has it in another process, the [`agent`], which it talks to by
//! [`Filter`].
//!
//! Decisions are in [`plan`]; [`maps`] alone names a map.

pub mod agent;
pub mod attachment;
pub mod error;
mod events;
mod load;
pub mod maps;
pub mod pin;
pub mod plan;
mod shared;
pub mod tick;
mod top;

use std::{fmt, path::PathBuf, time::Duration};

pub use gateway_ebpf::verdict::Quota;
use gateway_ebpf::{Outcome, Source, abi::CLASS_DOUBLINGS_MAX};
use ipnet::IpNet;

pub use self::{
    agent::{Agent, Filter},
    error::KernelError,
    events::DropEvent,
    load::{Detached, Kernel, Reattached, detach, probe},
};

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
    /// New connections (TCP SYN, QUIC Initial) for each source; `None`: no limit.
    pub connections: Option<Rate>,
    /// Octets for each source; `None`: no limit.
    pub bytes: Option<ByteRate>,
    /// Packets of all sources together that have no bucket yet; `None`: no limit.
    pub new_sources: Option<Rate>,
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

/// Octets: a sustained rate and the burst above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate {
    /// Sustained, for each second; not 0.
    pub bytes_per_s: u64,
    /// At once, after a pause; at least [`FRAME_MAX_BYTES`].
    pub burst_bytes: u64,
}

/// The largest frame there is: what the kernel joins in generic mode has up to 64 KiB. A burst
/// that did not hold it would let it pass only after a pause.
pub const FRAME_MAX_BYTES: u64 = 65_536;

/// A ban to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Whom.
    pub source: Source,
    /// For how long from now.
    pub lasts: Duration,
    /// Why, as the caller numbers reasons.
    pub reason: u32,
    /// Who asked for it, as the caller numbers origins.
    pub origin: u32,
    /// How many times in a row: the step of the ladder of durations.
    pub level: u32,
}

/// What became of one [`Ban`].
#[derive(Debug)]
pub enum BanOutcome {
    /// In force.
    Set,
    /// In force; it replaced one that the source had.
    Replaced,
    /// Refused: the source is exempt.
    Exempt,
    /// Refused: as many bans are in force as there can be.
    TableFull,
    /// The kernel refused the write.
    Failed(KernelError),
}

/// A ban on all sources of a prefix, to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixBan {
    /// Whom.
    pub net: IpNet,
    /// For how long from now.
    pub lasts: Duration,
    /// As in [`Ban::reason`].
    pub reason: u32,
    /// As in [`Ban::origin`].
    pub origin: u32,
}

/// What became of a [`PrefixBan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixBanOutcome {
    /// In force.
    Set,
    /// In force; it replaced one that the prefix had.
    Replaced,
    /// Refused: it has addresses that are never dropped.
    Exempt {
        /// The exempt prefix that it shares them with.
        by: IpNet,
    },
    /// Refused: as many prefixes are banned as there can be.
    TableFull,
}

/// A ban on a prefix that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixBanEntry {
    /// Whom.
    pub net: IpNet,
    /// For how long still.
    pub remaining: Duration,
    /// How long ago it was set.
    pub age: Duration,
    /// As in [`Ban::reason`].
    pub reason: u32,
    /// As in [`Ban::origin`].
    pub origin: u32,
}

/// A ban that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BanEntry {
    /// Whom.
    pub source: Source,
    /// For how long still.
    pub remaining: Duration,
    /// How long ago it was set.
    pub age: Duration,
    /// As in [`Ban::reason`].
    pub reason: u32,
    /// As in [`Ban::origin`].
    pub origin: u32,
    /// As in [`Ban::level`].
    pub level: u32,
}

/// How a source's limits differ from everybody's: rates and bursts doubled so many times, or
/// halved where the number is negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class(i32);

impl Class {
    /// Everybody's limits.
    pub const ORDINARY: Self = Self(0);

    /// Limits doubled so many times; `None` above [`CLASS_DOUBLINGS_MAX`] in either direction.
    pub const fn doubled(times: i32) -> Option<Self> {
        if times < -CLASS_DOUBLINGS_MAX || times > CLASS_DOUBLINGS_MAX {
            return None;
        }
        Some(Self(times))
    }

    /// How many times they are doubled; negative: halved.
    pub const fn doublings(self) -> i32 {
        self.0
    }
}

/// Everything the kernel half knows about one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// The prefix whose addresses are never dropped; where it is longer than the source's own, it
    /// spares only a part of the source.
    pub exempt: Option<IpNet>,
    /// The longest denied prefix that shares addresses with the source.
    pub denied: Option<IpNet>,
    /// The source's own ban.
    pub ban: Option<BanEntry>,
    /// Of the bans on prefixes that cover the source, the one that lasts longest.
    pub prefix_ban: Option<PrefixBanEntry>,
    /// How its limits differ from everybody's.
    pub class: Class,
    /// What it may still send, of everything that is limited; first its own, then that of its
    /// IPv6 /48.
    pub allowances: Vec<Allowance>,
}

/// What may still be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Packets, connections or octets.
    pub quota: Quota,
    /// Whose: the source, or the /48 that it lies in.
    pub net: IpNet,
    /// How many now.
    pub left: u64,
    /// How many after a pause.
    pub burst: u64,
}

/// A source, or an IPv6 /48, that has used up some of what it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopSource {
    /// Whose.
    pub net: IpNet,
    /// What it may still send, of everything that is limited.
    pub allowances: Vec<Allowance>,
}

/// Entries that were taken over from an earlier layout of the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Bans of single sources.
    pub bans: usize,
    /// Bans of prefixes.
    pub prefixes: usize,
    /// Sources with limits of their own.
    pub classes: usize,
}

/// What the program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Handed it to the network stack.
    Pass,
    /// Dropped it.
    Drop,
    /// Handed it on although it would have dropped it, had it been told to enforce.
    WouldDrop,
}

impl Action {
    /// The word for it in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::WouldDrop => "would_drop",
        }
    }
}

/// Frames of one interface with one outcome since the maps were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The interface.
    pub interface: String,
    /// What was done.
    pub action: Action,
    /// Why; its word is [`Outcome::word`].
    pub reason: Outcome,
    /// Frames.
    pub packets: u64,
    /// Their octets.
    pub bytes: u64,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Each interface that is to be guarded.
    pub interfaces: Vec<InterfaceStatus>,
    /// Whether anything is dropped.
    pub enforce: bool,
    /// How full the maps are.
    pub fills: Vec<Fill>,
    /// Buckets that were forgotten before they were full: many mean that `max_sources` is too
    /// small.
    pub evictions: u64,
    /// Dropped frames that were to be told of and found no room where events are kept.
    pub events_lost: u64,
}

/// How one interface stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// The program on it; `None` when it is gone, with the device or by someone's hand.
    pub attached: Option<Attached>,
}

/// The program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where it runs.
    pub mode: AttachedMode,
    /// The kernel's number for it.
    pub program_id: u32,
}

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// Behind the driver, after the kernel made an skb.
    Generic,
}

impl AttachedMode {
    /// The word for it in metrics, logs and the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// What it holds: `bans`, `classes`, `ban_prefixes`, `deny`, `exempt` or `sources`; of these
    /// only a part is counted where there is room for many.
    pub map: &'static str,
    /// Entries in use; among bans also those that expired and were not swept yet.
    pub used: usize,
    /// Entries there may be.
    pub limit: u32,
}

impl Fill {
    /// All that [`Fill::map`] can be.
    pub const MAPS: [&str; 6] = ["bans", "classes", "ban_prefixes", "deny", "exempt", "sources"];
}

/// Something that went otherwise than the configuration says, or that an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// There was no bpffs at the usual place.
    MountedBpffs {
        /// Where it is now.
        path: PathBuf,
    },
    /// The filter had been left running and goes on.
    Adopted {
        /// Interfaces whose program was replaced without a gap.
        interfaces: usize,
        /// Bans that stay in force.
        bans: usize,
    },
    /// A pinned map is not what this version needs; it starts empty.
    Wiped {
        /// The map.
        map: &'static str,
    },
    /// Pins of an earlier layout were removed.
    OldLayout {
        /// Where they were.
        directory: PathBuf,
        /// What stays in force; `None` when this version does not know how that one wrote it.
        inherited: Option<Inherited>,
    },
    /// The driver refused; the program runs behind it.
    FellBack {
        /// The interface.
        interface: String,
        /// What the kernel said.
        why: String,
    },
    /// The program was left in generic mode by an earlier run, and stays there.
    StaysGeneric {
        /// The interface.
        interface: String,
    },
    /// The program was in another mode than is configured now, and was attached anew.
    ChangedMode {
        /// The interface.
        interface: String,
        /// How it runs now.
        mode: AttachedMode,
    },
    /// The interface is no longer guarded.
    Released {
        /// The interface, where its name is known.
        interface: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MountedBpffs { path } => {
                write!(formatter, "mounted a bpffs at {}", path.display())
            }
            Self::Adopted { interfaces, bans } => write!(
                formatter,
                "took over a running filter: {interfaces} interfaces without a gap, {bans} bans stay \
                 in force"
            ),
            Self::Wiped { map } => write!(
                formatter,
                "kernel map {map} has another size or layout than is needed now; it starts empty"
            ),
            Self::OldLayout { directory, inherited: None } => write!(
                formatter,
                "removed {}: it was laid out by another version, its bans are gone",
                directory.display()
            ),
            Self::OldLayout { directory, inherited: Some(inherited) } => write!(
                formatter,
                "removed {}: it was laid out by another version; its {} bans, {} banned prefixes and \
                 {} sources with limits of their own stay in force, its counters are gone",
                directory.display(),
                inherited.bans,
                inherited.prefixes,
                inherited.classes
            ),
            Self::FellBack { interface, why } => write!(
                formatter,
                "{interface}: {why}. Attached in generic mode instead, which costs 3 to 4 times as \
                 much for each packet"
            ),
            Self::StaysGeneric { interface } => write!(
                formatter,
                "{interface}: attached in generic mode by an earlier run, and left so; `detach` \
                 before the next start tries native mode again"
            ),
            Self::ChangedMode { interface, mode } => write!(
                formatter,
                "{interface}: attached anew, in {} mode; a few milliseconds passed unfiltered",
                mode.word()
            ),
            Self::Released { interface } => {
                write!(formatter, "{interface} is no longer configured; its XDP program is removed")
            }
        }
    }
}
