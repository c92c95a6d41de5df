//! What there is to see on this host; no opinion about any of it.

use std::{
    fs,
    net::{TcpStream, ToSocketAddrs as _},
    path::Path,
    time::Duration,
};

use nix::sys::{
    resource::{Resource, getrlimit},
    statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{
    config::{Config, Disk, KeySource, load},
    gateway::load_snapshot,
    host::{
        chrony,
        clock::{self, ClockReading},
    },
    kernel::{self, Mode, attachment},
};

/// How long one server may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Everything that is judged.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Problems and warnings of the configuration.
    pub(super) problems: (usize, usize),
    /// `uname -r`.
    pub(super) kernel: String,
    /// The kernel describes its types.
    pub(super) has_btf: bool,
    /// `/sys/fs/bpf` is what its name says.
    pub(super) has_bpffs: bool,
    /// The effective ones of this process.
    pub(super) capabilities: Option<u64>,
    /// Of the listeners and the metrics.
    pub(super) lowest_port: Option<u16>,
    /// `net.ipv4.ip_unprivileged_port_start`.
    pub(super) unprivileged_from: u16,
    /// `[xdp].mode`; `None`: no interfaces are configured.
    pub(super) xdp: Option<Mode>,
    /// Those of `[xdp]`.
    pub(super) interfaces: Vec<InterfaceFacts>,
    /// Whether the program would find its interfaces there and free.
    pub(super) probe: Option<Result<(), String>>,
    /// What the kernel says of its clock.
    pub(super) clock: Option<ClockFacts>,
    /// Hard limit of open files.
    pub(super) descriptors_max: Option<u64>,
    /// `[server].max_connections`.
    pub(super) max_connections: u64,
    /// `net.core.somaxconn`.
    pub(super) somaxconn: Option<u64>,
    /// `net.ipv4.tcp_syncookies`.
    pub(super) syncookies: Option<u64>,
    /// `net.core.bpf_jit_enable`.
    pub(super) jit: Option<u64>,
    /// Upstreams and issuers, and the address that answered.
    pub(super) reached: Vec<(String, Result<String, String>)>,
}

/// One interface.
#[derive(Clone, Debug)]
pub(super) struct InterfaceFacts {
    /// Its name.
    pub(super) name: String,
    /// `None`: there is no such interface.
    pub(super) mtu: Option<u32>,
    /// Of its device, or its kind where it has none.
    pub(super) driver: Option<String>,
}

/// The clock, as chronyd says, or else the kernel (adjtimex(2)).
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockFacts {
    /// Somebody disciplines it.
    pub(super) is_synchronized: bool,
    /// What is being corrected.
    pub(super) offset: Duration,
    /// The bound that whoever disciplines it gives.
    pub(super) max_error: Duration,
}

/// Looks at everything; takes up to [`CONNECT_MAX`] for each server that does not answer.
pub(super) fn collect(path: &Path) -> Facts {
    let (config, problems) = configuration(path);
    let config = config.as_ref();
    let xdp = config.and_then(|config| config.xdp.as_ref());
    let number = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let unprivileged = number("net/ipv4/ip_unprivileged_port_start");
    Facts {
        problems,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|error| error.to_string(), |text| text.trim().to_owned()),
        has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        has_bpffs: statfs("/sys/fs/bpf").is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC),
        capabilities: attachment::effective_capabilities().ok(),
        lowest_port: config.and_then(|config| {
            let ports = config.listeners.iter().map(|listener| listener.address.port());
            ports.chain([config.admin.metrics.port()]).min()
        }),
        unprivileged_from: unprivileged.and_then(|port| port.try_into().ok()).unwrap_or(1024),
        xdp: xdp.map(|settings| settings.mode),
        interfaces: xdp.map_or_else(Vec::new, |settings| {
            settings.interfaces.iter().map(|name| interface(name)).collect()
        }),
        probe: xdp.map(|settings| kernel::probe(settings).map_err(|error| error.to_string())),
        clock: clock(config),
        descriptors_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
        max_connections: config.map_or(0, |config| config.server.max_connections as u64),
        somaxconn: number("net/core/somaxconn"),
        syncookies: number("net/ipv4/tcp_syncookies"),
        jit: number("net/core/bpf_jit_enable"),
        reached: config.map_or_else(Vec::new, servers),
    }
}

fn configuration(path: &Path) -> (Option<Config>, (usize, usize)) {
    match load(path, &Disk::new()) {
        Ok((config, warnings)) => {
            let problems = load_snapshot(&config, 0).err().map_or(0, |errors| errors.len());
            (Some(config), (problems, warnings.len()))
        }
        Err(problems) => (None, (problems.count(), problems.warnings().len())),
    }
}

fn interface(name: &str) -> InterfaceFacts {
    let directory = Path::new("/sys/class/net").join(name);
    let mtu = fs::read_to_string(directory.join("mtu")).ok();
    let device = fs::read_link(directory.join("device/driver")).ok();
    let driver = device.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let kind = || {
        // Tunnels and bonds leave a mark; a veth has no other than its peer's number.
        let marks = [("tun_flags", "tun"), ("bonding", "bond")];
        let mark = marks.into_iter().find(|(file, _)| directory.join(file).exists());
        mark.map(|(_, kind)| kind.to_owned()).or_else(|| is_veth(name).then(|| "veth".to_owned()))
    };
    InterfaceFacts {
        name: name.to_owned(),
        mtu: mtu.and_then(|text| text.trim().parse().ok()),
        driver: driver.or_else(kind),
    }
}

/// Its link is another interface's number, and it has no lower one.
fn is_veth(name: &str) -> bool {
    let directory = Path::new("/sys/class/net").join(name);
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let has_lower = fs::read_dir(&directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("lower_"))
    });
    read("iflink") != read("ifindex") && !has_lower
}

/// By its keeper, where that is known, as the daemon would ask.
fn clock(config: Option<&Config>) -> Option<ClockFacts> {
    // The sequence number tells answers apart, and there is only one.
    let chrony = config.and_then(|config| chrony::ask(config.host.chrony?, 1).ok());
    let clock = ClockReading::new(clock::kernel(), chrony.as_ref());
    // What cannot be is no figure to show; a span is not negative and is a number.
    let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Some(ClockFacts {
        is_synchronized: clock.is_synchronized?,
        offset: span(clock.offset_s.abs()),
        max_error: span(clock.max_error_s),
    })
}

fn servers(config: &Config) -> Vec<(String, Result<String, String>)> {
    let mut reached = Vec::new();
    for upstream in &config.upstreams {
        for server in &upstream.servers {
            let what = format!("upstream {}", upstream.name);
            reached.push((what, connect(&server.host, server.port)));
        }
    }
    for issuer in &config.issuers {
        let KeySource::Remote(remote) = &issuer.keys else { continue };
        let what = format!("issuer {}", issuer.rules.name);
        let url: Result<http::Uri, _> = remote.location.url().to_string().parse();
        let outcome = match &url {
            Ok(url) => {
                let port = if url.scheme_str() == Some("http") { 80 } else { 443 };
                let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
                connect(host, url.port_u16().unwrap_or(port))
            }
            Err(error) => Err(error.to_string()),
        };
        reached.push((what, outcome));
    }
    reached
}

/// The first address of a name that takes a connection.
fn connect(host: &str, port: u16) -> Result<String, String> {
    let at = |error: std::io::Error| format!("{host}:{port}: {error}");
    let mut last = format!("{host}:{port}: the name has no address");
    for address in (host, port).to_socket_addrs().map_err(at)?.take(4) {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(_) => return Ok(address.to_string()),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}
