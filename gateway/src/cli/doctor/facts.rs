//! What there is to see on this host; no opinion about any of it.

use std::{
    collections::BTreeSet,
    net::{TcpStream, ToSocketAddrs as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::task::LocalSet;

use super::files::{Files, InterfaceFacts, Limit};
use crate::{
    config::{Config, Disk, KeySource, Warning, load},
    gateway::load_snapshot,
    host::{
        assess::Temperatures,
        chrony,
        clock::{self, ClockReading},
        temperature::Sensor,
    },
    kernel::{self, Mode},
    time,
    upstream::{
        probe,
        resolve::{self, Addresses},
        server::Server,
    },
};

/// How long one server may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Everything that is judged.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What is wrong with the configuration and the files it names, each with what to do.
    pub(super) problems: Vec<String>,
    /// What is doubtful about it.
    pub(super) warnings: Vec<String>,
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
    /// What is told of the clock.
    pub(super) clock: Clock,
    /// What runs and keeps the clock, or would.
    pub(super) clock_daemons: BTreeSet<String>,
    /// CPU sensors.
    pub(super) sensors: Vec<Sensor>,
    /// `[host].cpu_temperature`.
    pub(super) temperatures: Option<Temperatures>,
    /// This is a virtual machine.
    pub(super) is_virtual: bool,
    /// Hard limit of open files.
    pub(super) descriptors: Option<Limit>,
    /// Hard limit of locked memory, in octets.
    pub(super) locked_memory: Option<Limit>,
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

/// The clock, as chronyd says, or else the kernel (adjtimex(2)).
#[derive(Clone, Copy, Debug)]
pub(super) enum Clock {
    /// It is another host's.
    Elsewhere,
    /// Nobody says anything of it.
    Untold,
    /// It has been told of.
    Told {
        /// Somebody disciplines it.
        is_synchronized: bool,
        /// What is being corrected.
        offset: Duration,
        /// The bound that whoever disciplines it gives.
        max_error: Duration,
    },
}

/// Looks at everything; takes up to [`CONNECT_MAX`] for each server that does not answer.
///
/// With the files of another host below `root` it asks nobody, for what would answer is here.
pub(super) fn collect(path: &Path, root: &Path) -> Facts {
    let is_here = root == Path::new("/");
    let files = Files::below(root);
    let (config, problems, warnings) = configuration(path);
    let config = config.as_ref();
    let xdp = config.and_then(|config| config.xdp.as_ref());
    let unprivileged = files.sysctl("net/ipv4/ip_unprivileged_port_start");
    let sysfs = config.map_or(Path::new("/sys"), |config| &config.host.sysfs);
    Facts {
        problems,
        warnings,
        kernel: files.kernel(),
        has_btf: files.has_btf(),
        has_bpffs: files.has_bpffs(),
        capabilities: files.capabilities(),
        lowest_port: config.and_then(|config| {
            let ports = config.listeners.iter().map(|listener| listener.address.port());
            ports.chain([config.admin.metrics.port()]).min()
        }),
        unprivileged_from: unprivileged.and_then(|port| port.try_into().ok()).unwrap_or(1024),
        xdp: xdp.map(|settings| settings.mode),
        interfaces: xdp.map_or_else(Vec::new, |settings| {
            settings.interfaces.iter().map(|name| files.interface(name)).collect()
        }),
        probe: xdp
            .filter(|_| is_here)
            .map(|settings| kernel::probe(settings).map_err(|error| error.to_string())),
        clock: if is_here { clock(config) } else { Clock::Elsewhere },
        clock_daemons: files.clock_daemons(),
        sensors: files.sensors(sysfs),
        temperatures: config.map(|config| config.host.cpu_temperature),
        is_virtual: files.is_virtual(),
        descriptors: files.limit("Max open files"),
        locked_memory: files.limit("Max locked memory"),
        max_connections: config.map_or(0, |config| config.server.max_connections as u64),
        somaxconn: files.sysctl("net/core/somaxconn"),
        syncookies: files.sysctl("net/ipv4/tcp_syncookies"),
        jit: files.sysctl("net/core/bpf_jit_enable"),
        reached: config.filter(|_| is_here).map_or_else(Vec::new, servers),
    }
}

fn configuration(path: &Path) -> (Option<Config>, Vec<String>, Vec<String>) {
    let texts = |warnings: &[Warning]| warnings.iter().map(ToString::to_string).collect();
    match load(path, &Disk::new()) {
        Ok((config, warnings)) => {
            let errors = load_snapshot(&config, 0).err().unwrap_or_default();
            let problems = errors.iter().map(ToString::to_string).collect();
            (Some(config), problems, texts(&warnings))
        }
        Err(problems) => {
            let warnings = texts(problems.warnings());
            (None, problems.to_string().lines().map(str::to_owned).collect(), warnings)
        }
    }
}

/// By its keeper, where that is known, as the daemon would ask.
fn clock(config: Option<&Config>) -> Clock {
    // The sequence number tells answers apart, and there is only one.
    let chrony = config.and_then(|config| chrony::ask(config.host.chrony?, 1).ok());
    let clock = ClockReading::new(clock::kernel(), chrony.as_ref());
    let Some(is_synchronized) = clock.is_synchronized else { return Clock::Untold };
    // What cannot be is no figure to show; a span is not negative and is a number.
    let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let (offset, max_error) = (span(clock.offset_s.abs()), span(clock.max_error_s));
    Clock::Told { is_synchronized, offset, max_error }
}

fn servers(config: &Config) -> Vec<(String, Result<String, String>)> {
    let mut reached = upstream_servers(config);
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

/// Every address of every upstream server, asked as the daemon would ask it: TLS, protocol and health
/// included.
fn upstream_servers(config: &Config) -> Vec<(String, Result<String, String>)> {
    // What is wrong with the files is the configuration's finding.
    let Ok(mut snapshot) = load_snapshot(config, 0) else { return Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let mut addresses = Addresses::default();
    let names = resolve::names(config.upstreams.iter().flat_map(|upstream| &upstream.servers));
    for (name, found) in resolve::at_once(names, CONNECT_MAX) {
        addresses.learn(&name, found);
    }
    resolve::settle(&mut snapshot.upstreams, &addresses, &[], time::monotonic());
    let mut reached = Vec::new();
    for upstream in &snapshot.upstreams {
        let what = format!("upstream {}", upstream.name);
        for endpoint in &upstream.endpoints {
            let is_its = |server: &&Arc<Server>| server.endpoint() == endpoint;
            let servers: Vec<_> = upstream.servers.iter().filter(is_its).collect();
            if servers.is_empty() && addresses.of(endpoint).is_empty() {
                reached.push((what.clone(), Err(format!("{endpoint}: the name has no address"))));
            }
            for server in servers {
                let asked = probe::look(upstream, server);
                let outcome = LocalSet::new().block_on(&runtime, asked);
                let address = server.address();
                let outcome = outcome.map(|()| address.to_string());
                reached.push((what.clone(), outcome.map_err(|why| format!("{address}: {why}"))));
            }
        }
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
