//! What can go wrong between the daemon and the kernel, each with what to do about it.

use std::{error::Error, fmt, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::agent::AgentError;

/// Why the kernel half cannot do what was asked.
#[derive(Debug)]
pub enum KernelError {
    /// This binary was built without the XDP program.
    NotBuilt,
    /// The process lacks a capability.
    NotPermitted {
        /// Its name, as in capabilities(7).
        capability: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// There is no such interface.
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// The interface runs an XDP program that is not ours; it is left alone.
    Foreign {
        /// The interface.
        interface: String,
        /// The kernel's number for the program.
        program_id: u32,
        /// Its name, where the kernel tells it.
        program_name: Option<String>,
    },
    /// The kernel or the driver refuses the program on this interface.
    Refused {
        /// The interface.
        interface: String,
        /// In which mode.
        mode: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The pin directory is on no bpffs, and none could be mounted.
    NoBpffs {
        /// The pin directory.
        pin: PathBuf,
        /// Why mounting failed, where it was tried.
        error: Option<io::Error>,
    },
    /// Another process of ours owns the pin directory.
    Busy {
        /// The pin directory.
        pin: PathBuf,
    },
    /// A file operation failed.
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The kernel refuses the object: a map, or the program in front of its verifier.
    Object(Box<EbpfError>),
    /// A map operation failed.
    Map {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        error: Box<MapError>,
    },
    /// A list is longer than its map.
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many were given.
        count: usize,
        /// How many there may be.
        limit: u32,
    },
    /// The burst is shorter than the kernel's clock can tell.
    BurstTooSmall {
        /// The limit's name below `[xdp]`.
        setting: &'static str,
        /// What was configured.
        burst: u64,
        /// The least burst at this rate on this kernel.
        least: u64,
        /// The kernel's tick.
        ns_per_jiffy: u64,
    },
    /// The kernel does not tell how long its ticks are.
    Clock,
    /// The kernel would not say what is attached.
    Netlink(io::Error),
    /// The setting cannot change while the daemon runs.
    NeedsRestart {
        /// Its name below `[xdp]`.
        setting: &'static str,
    },
    /// There is no filter yet that could be told this.
    NotStarted,
    /// The agent cannot be told.
    Agent(AgentError),
    /// What went wrong in the agent.
    Told {
        /// In its words.
        text: String,
        /// The capability that it lacks.
        capability: Option<&'static str>,
    },
}

impl KernelError {
    /// The capability that is missing, when that is the reason.
    pub fn not_permitted(&self) -> Option<&'static str> {
        match self {
            Self::NotPermitted { capability, .. } => Some(capability),
            Self::Told { capability, .. } => *capability,
            _ => None,
        }
    }

    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { what, path, error }
    }

    pub(super) fn map(map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |error| Self::Map { map, error: Box::new(error) }
    }
}

impl From<EbpfError> for KernelError {
    fn from(error: EbpfError) -> Self {
        Self::Object(Box::new(error))
    }
}

impl From<ProgramError> for KernelError {
    fn from(error: ProgramError) -> Self {
        Self::Object(Box::new(EbpfError::ProgramError(error)))
    }
}

impl From<AgentError> for KernelError {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => formatter.write_str(
                "this binary was built without the XDP program (GATEWAY_BPF_SKIP): build it again \
                 without that variable, or leave [xdp].interfaces empty",
            ),
            Self::NotPermitted { capability, purpose } => write!(
                formatter,
                "not permitted: {purpose} needs {capability}; run as root, or grant it (in a unit: \
                 AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON)"
            ),
            Self::NoInterface { interface } => write!(
                formatter,
                "there is no interface {interface}; `ip link` lists those there are"
            ),
            Self::Foreign { interface, program_id, program_name } => {
                let name = program_name.as_deref().unwrap_or("?");
                write!(
                    formatter,
                    "{interface} already runs another XDP program (id {program_id}, {name}); it was \
                     not touched. Remove it first: "
                )?;
                if name == gateway_ebpf::abi::PROGRAM {
                    formatter.write_str(
                        "it is Portcullis's own, pinned in another directory: `portcullis detach` \
                         with the configuration that named that directory",
                    )
                } else {
                    write!(
                        formatter,
                        "`ip link set dev {interface} xdp off`, or with what loaded it"
                    )
                }
            }
            Self::Refused { interface, mode, error } => {
                write!(
                    formatter,
                    "{interface} refuses the XDP program in {mode} mode: {}",
                    sentence(error)
                )?;
                formatter.write_str(hint(error))
            }
            Self::NoBpffs { pin, error } => {
                write!(formatter, "{} is not on a bpffs", pin.display())?;
                match error {
                    Some(error) => {
                        write!(formatter, ", and mounting one failed: {}", sentence(error))?
                    }
                    None => formatter.write_str("; ")?,
                }
                formatter.write_str("mount one: mount -t bpf bpf /sys/fs/bpf")
            }
            Self::Busy { pin } => write!(
                formatter,
                "another portcullis runs with {}; stop it, or give this one its own [xdp].pin",
                pin.display()
            ),
            Self::File { what, path, error } => {
                write!(formatter, "cannot {what} {}: {error}", path.display())
            }
            Self::Object(error) => {
                write!(formatter, "the kernel refuses the XDP program: {}", chain(error.as_ref()))
            }
            Self::Map { map, error } => {
                write!(formatter, "kernel map {map}: {}", chain(error.as_ref()))
            }
            Self::TooMany { what, count, limit } => write!(
                formatter,
                "{count} {what}, but there is room for {limit}; join neighbours into shorter prefixes"
            ),
            Self::BurstTooSmall { setting, burst, least, ns_per_jiffy } => write!(
                formatter,
                "[xdp].{setting}: a burst of {burst} is spent within two ticks of this kernel's clock \
                 ({} ms each) or by one frame, so less than the rate would pass; set burst to at \
                 least {least}",
                ns_per_jiffy / 1_000_000
            ),
            Self::Clock => formatter.write_str(
                "this kernel does not tell how long its ticks are (clock_getres of \
                 CLOCK_MONOTONIC_COARSE), by which the XDP program measures time; Linux does, so \
                 the daemon may run on something that only resembles it",
            ),
            Self::Netlink(error) => {
                write!(formatter, "the kernel does not say which XDP programs run: {error}")
            }
            Self::NeedsRestart { setting } => write!(
                formatter,
                "[xdp].{setting} cannot change while the daemon runs; restart it (bans and the \
                 filter stay in force meanwhile)"
            ),
            Self::NotStarted => formatter.write_str("the XDP program was not started"),
            Self::Agent(error) => error.fmt(formatter),
            Self::Told { text, .. } => formatter.write_str(text),
        }
    }
}

impl Error for KernelError {}

/// Errors of aya name the step and keep the reason as their source.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        next = error.source();
    }
    text
}

fn sentence(error: &io::Error) -> String {
    format!("{error}. ")
}

/// What usually stands behind a refusal.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ERANGE) => "The MTU is too large for this driver's XDP; lower it",
        Some(libc::EOPNOTSUPP) => {
            "The driver has no XDP, or receive offloads stand against it (ethtool -K DEV lro off)"
        }
        Some(libc::ENOMEM | libc::ENOSPC) => {
            "The driver has too few queues for it; allow more (ethtool -L) or limit the CPUs"
        }
        Some(libc::EBUSY | libc::EEXIST) => "Another program is attached",
        _ => "`dmesg` may say more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_says_where_and_what_to_do() {
        let refused = |code| KernelError::Refused {
            interface: "eth0".into(),
            mode: "native",
            error: io::Error::from_raw_os_error(code),
        };
        for (error, parts) in [
            (KernelError::NotBuilt, vec!["GATEWAY_BPF_SKIP"]),
            (
                KernelError::NotPermitted { capability: "CAP_BPF", purpose: "loading" },
                vec!["CAP_BPF", "root"],
            ),
            (
                KernelError::Foreign {
                    interface: "eth0".into(),
                    program_id: 7,
                    program_name: Some("xdp_pass".into()),
                },
                vec!["eth0", "id 7", "xdp_pass", "xdp off"],
            ),
            (
                KernelError::Foreign {
                    interface: "eth0".into(),
                    program_id: 7,
                    program_name: Some("portcullis_xdp".into()),
                },
                vec!["detach"],
            ),
            (refused(libc::ERANGE), vec!["eth0", "native", "MTU"]),
            (refused(libc::EOPNOTSUPP), vec!["lro"]),
            (KernelError::NeedsRestart { setting: "pin" }, vec!["[xdp].pin", "restart"]),
            (
                KernelError::BurstTooSmall {
                    setting: "connections",
                    burst: 1,
                    least: 160,
                    ns_per_jiffy: 4_000_000,
                },
                vec!["[xdp].connections", "4 ms", "160"],
            ),
        ] {
            let text = error.to_string();
            for part in parts {
                assert!(text.contains(part), "{part:?} is not in {text:?}");
            }
        }
    }

    #[test]
    fn only_a_missing_capability_is_not_permitted() {
        let error = KernelError::NotPermitted { capability: "CAP_NET_ADMIN", purpose: "attaching" };
        assert_eq!(error.not_permitted(), Some("CAP_NET_ADMIN"));
        assert_eq!(KernelError::NotBuilt.not_permitted(), None);
    }
}
