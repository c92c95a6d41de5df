//! What the files of a host tell, below `/` or below a directory with those of another host.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::host::temperature;

/// Processes that are looked at for one that keeps the clock; a gateway has a few hundred.
const PROCESSES_MAX: usize = 65_536;

/// What keeps clocks, by the names of their processes (15 octets at most, as the kernel keeps them).
const CLOCK_DAEMONS: [&str; 7] =
    ["chronyd", "systemd-timesyn", "ntpd", "ntp-daemon", "openntpd", "ntpsec", "phc2sys"];

/// Bits of virtio-net's features (virtio 1.2 section 5.1.3): what a host does for a guest that packets
/// would then not come in as they were sent.
const GUEST_OFFLOADS: [usize; 5] = [1, 7, 8, 9, 10];
/// The guest may switch those off by itself.
const CTRL_GUEST_OFFLOADS: usize = 2;

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

/// One interface.
#[derive(Clone, Debug, Default)]
pub(super) struct InterfaceFacts {
    /// Its name.
    pub(super) name: String,
    /// `None`: there is no such interface.
    pub(super) mtu: Option<u32>,
    /// Of its device, or its kind where it has none.
    pub(super) driver: Option<String>,
    /// It is a VLAN of another interface.
    pub(super) is_vlan: bool,
    /// It is not up, or has no cable.
    pub(super) is_down: bool,
    /// The hypervisor joins packets for it, and it cannot ask for that to end.
    pub(super) joins_packets: bool,
}

/// A limit of the process: how much it may use, as `/proc/self/limits` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// At most this.
    Of(u64),
    /// There is none.
    Unlimited,
}

impl Files {
    /// Those below a directory.
    pub(super) fn below(root: &Path) -> Files {
        Files { root: root.to_path_buf() }
    }

    /// A path of the host, where it is here.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.place(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// `uname -r`.
    pub(super) fn kernel(&self) -> String {
        self.text("proc/sys/kernel/osrelease").unwrap_or_else(|| "no osrelease".to_owned())
    }

    /// A number below `/proc/sys`.
    pub(super) fn sysctl(&self, name: &str) -> Option<u64> {
        self.text(&format!("proc/sys/{name}"))?.parse().ok()
    }

    /// The kernel describes its types.
    pub(super) fn has_btf(&self) -> bool {
        self.place("sys/kernel/btf/vmlinux").exists()
    }

    /// `/sys/fs/bpf` is what its name says.
    pub(super) fn has_bpffs(&self) -> bool {
        let mounts = self.text("proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some("/sys/fs/bpf") && fields.next() == Some("bpf")
        })
    }

    /// The effective capabilities of whoever looks.
    pub(super) fn capabilities(&self) -> Option<u64> {
        let status = self.text("proc/self/status")?;
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    }

    /// The hard limit of a resource by its name in `/proc/self/limits`.
    pub(super) fn limit(&self, name: &str) -> Option<Limit> {
        let limits = self.text("proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        match line.split_whitespace().nth(1)? {
            "unlimited" => Some(Limit::Unlimited),
            number => number.parse().ok().map(Limit::Of),
        }
    }

    /// Whether this is a virtual machine: it has no sensors of its own.
    pub(super) fn is_virtual(&self) -> bool {
        let flags = self.text("proc/cpuinfo").unwrap_or_default();
        let of_cpu = flags.lines().find(|line| line.starts_with("flags"));
        of_cpu.is_some_and(|line| line.split(' ').any(|flag| flag == "hypervisor"))
    }

    /// CPU sensors below a tree like `/sys`.
    pub(super) fn sensors(&self, sysfs: &Path) -> Vec<temperature::Sensor> {
        let inside = sysfs.strip_prefix("/").unwrap_or(sysfs);
        temperature::sensors(&self.root.join(inside))
    }

    /// What runs and keeps the clock, or would.
    pub(super) fn clock_daemons(&self) -> BTreeSet<String> {
        let Ok(processes) = fs::read_dir(self.place("proc")) else { return BTreeSet::new() };
        let numbers = processes.flatten().filter_map(|entry| {
            entry.file_name().to_string_lossy().parse::<u32>().ok().map(|_| entry.path())
        });
        let name = |process: PathBuf| fs::read_to_string(process.join("comm")).ok();
        let names = numbers.take(PROCESSES_MAX).filter_map(name);
        let keeps = |name: String| {
            let name = name.trim();
            CLOCK_DAEMONS.contains(&name).then(|| match name {
                "systemd-timesyn" => "systemd-timesyncd".to_owned(),
                other => other.to_owned(),
            })
        };
        names.filter_map(keeps).collect()
    }

    /// An interface by its name.
    pub(super) fn interface(&self, name: &str) -> InterfaceFacts {
        let directory = format!("sys/class/net/{name}");
        let text = |file: &str| self.text(&format!("{directory}/{file}"));
        let has = |file: &str| self.place(&format!("{directory}/{file}")).exists();
        let device = fs::read_link(self.place(&format!("{directory}/device/driver"))).ok();
        let driver = device.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let kind = || {
            // Tunnels and bonds leave a mark; a veth has no other than its peer's number.
            let marks = [("tun_flags", "tun"), ("bonding", "bond")];
            let mark = marks.into_iter().find(|(file, _)| has(file));
            mark.map(|(_, kind)| kind.to_owned())
                .or_else(|| self.is_veth(name).then(|| "veth".to_owned()))
        };
        let features = text("device/features").unwrap_or_default();
        let offers = |bit: usize| features.as_bytes().get(bit) == Some(&b'1');
        let state = text("operstate");
        InterfaceFacts {
            name: name.to_owned(),
            mtu: text("mtu").and_then(|text| text.parse().ok()),
            is_vlan: self.place(&format!("proc/net/vlan/{name}")).exists(),
            is_down: matches!(state.as_deref(), Some("down" | "lowerlayerdown" | "notpresent")),
            joins_packets: driver.as_deref() == Some("virtio_net")
                && !offers(CTRL_GUEST_OFFLOADS)
                && GUEST_OFFLOADS.into_iter().any(offers),
            driver: driver.or_else(kind),
        }
    }

    /// Its link is another interface's number, and it has no lower one.
    fn is_veth(&self, name: &str) -> bool {
        let directory = self.place(&format!("sys/class/net/{name}"));
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        let has_lower = fs::read_dir(&directory).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("lower_"))
        });
        read("iflink") != read("ifindex") && !has_lower
    }
}
