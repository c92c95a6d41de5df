//! The servers that are compared, each at its best configuration for the same work: TLS 1.3 with
//! required client certificates and a revocation list, a token's signature, issuer, audience and end,
//! a limit for each client that is never reached, the client's name in a header for the upstream,
//! upstream connections kept; no log of requests.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::{
    debian::{self, Found},
    envoy,
    files::{Files, Keys},
    generator::Place,
    haproxy,
    nginx::{self, NJS},
    ours, pypi,
    scenario::Case,
    sid,
};
use crate::harness::{clock, gateway::START_LIMIT, process};

/// The upstream of all.
pub const UPSTREAM: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9_001));
/// The path for which a certificate is enough.
pub const WITH_CERTIFICATE: &str = "/mtls/1";
/// The path that asks for a token besides.
pub const WITH_TOKEN: &str = "/orders/1";
/// Nobody reaches it; it has to be counted nevertheless.
pub const LIMIT_PER_S: u32 = 1_000_000;
/// Connections of anybody at once: the largest crowd and some. HAProxy asks for two descriptors for each,
/// and many a machine gives a process no more than 20,000.
pub const CONNECTIONS_MAX: u32 = 9_800;

/// For HTTP/3 each listens so much above its other port.
const QUIC_ABOVE: u16 = 100;

/// A server that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The product.
    Ours,
    /// This Debian's HAProxy.
    Haproxy,
    /// This Debian's nginx, with njs for tokens.
    Nginx,
    /// The HAProxy of Debian's next release but one.
    HaproxySid,
    /// Its nginx, with njs and a cache of tokens.
    NginxSid,
    /// Envoy, with its cache of tokens.
    Envoy,
}

impl Product {
    /// All, ours first.
    pub const ALL: [Product; 6] = [
        Product::Ours,
        Product::Haproxy,
        Product::Nginx,
        Product::HaproxySid,
        Product::NginxSid,
        Product::Envoy,
    ];

    fn port(self) -> u16 {
        match self {
            Product::Ours => 8_443,
            Product::Haproxy => 8_444,
            Product::Nginx => 8_445,
            Product::Envoy => 8_446,
            Product::HaproxySid => 8_447,
            Product::NginxSid => 8_448,
        }
    }

    fn address(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()))
    }

    fn address_of_quic(self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port() + QUIC_ABOVE))
    }

    /// Why it cannot do a case, where it cannot.
    pub fn lacks(self, case: &Case) -> Option<&'static str> {
        match self {
            Product::Haproxy | Product::Nginx if case.protocol == "h3" => {
                Some("this version has no HTTP/3")
            }
            Product::Envoy if case.setup().can_reload => {
                Some("it takes a configuration from a service, not by a signal")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Product::Ours => "portcullis",
            Product::Haproxy => "haproxy",
            Product::Nginx => "nginx",
            Product::HaproxySid => "haproxy-sid",
            Product::NginxSid => "nginx-sid",
            Product::Envoy => "envoy",
        })
    }
}

/// How a server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Threads or processes that serve.
    pub workers: usize,
    /// Able to read its configuration again while it serves.
    pub can_reload: bool,
}

/// A server that can be started here.
pub struct Installed {
    /// Which.
    pub product: Product,
    /// Its version and its cryptography's, in its own words.
    pub version: String,
    found: Found,
}

/// Those that can be had here, ours first; and for those that cannot, why.
///
/// # Errors
/// When ours does not say its version.
pub fn look(ours: &Path) -> Result<(Vec<Installed>, Vec<String>)> {
    let version = process::succeed(Command::new(ours).arg("--version"))?.trim().to_owned();
    let found = Found::here(ours.to_owned());
    let mut installed = vec![Installed { product: Product::Ours, version, found }];
    let mut absent = Vec::new();
    for product in Product::ALL.into_iter().filter(|product| *product != Product::Ours) {
        match find(product) {
            Ok(peer) => installed.push(peer),
            Err(why) => absent.push(format!("{product}: {why:#}")),
        }
    }
    Ok((installed, absent))
}

fn find(product: Product) -> Result<Installed> {
    let (found, word) = match product {
        Product::Ours => bail!("it is built, not looked for"),
        Product::Haproxy => (debian::find("usr/sbin/haproxy", &["haproxy"])?, "-vv"),
        Product::Nginx => {
            let module = debian::find(NJS, &["nginx", "libnginx-mod-http-js"])?;
            (Found { program: module.root.join("usr/sbin/nginx"), ..module }, "-V")
        }
        Product::HaproxySid => (sid::find("usr/sbin/haproxy")?, "-vv"),
        Product::NginxSid => (sid::find("usr/sbin/nginx")?, "-V"),
        Product::Envoy => (pypi::find_envoy()?, "--version"),
    };
    let ended = process::run(found.command().arg(word))?;
    let said = format!("{}\n{}", ended.stdout, ended.stderr);
    let version = version(&said);
    if version.is_empty() {
        bail!("it does not run: {said}");
    }
    Ok(Installed { product, version, found })
}

/// What a server says of its version and its cryptography.
fn version(said: &str) -> String {
    let starts = [
        "HAProxy version",
        "Running on OpenSSL",
        "Running on SSL library",
        "nginx version",
        "built with OpenSSL",
    ];
    let lines = said.lines().filter_map(|line| {
        // Envoy's line begins with the path that it was called by.
        let own = line.split_once("version: ").filter(|_| line.ends_with("/BoringSSL"));
        let own = own.map(|(_, version)| version);
        let line =
            own.or_else(|| starts.iter().any(|start| line.starts_with(start)).then_some(line))?;
        // HAProxy tells behind a dash where it is from.
        Some(line.split_once(" - ").map_or(line, |(version, _)| version))
    });
    lines.collect::<Vec<_>>().join("; ")
}

/// A running server; killed when dropped.
pub struct Server {
    /// Which.
    pub product: Product,
    child: Child,
}

impl Server {
    /// Where it listens for that protocol.
    pub fn address(&self, protocol: &str) -> SocketAddr {
        if protocol == "h3" { self.product.address_of_quic() } else { self.product.address() }
    }

    fn process_id(&self) -> i32 {
        // A process id is positive and far below this bound (pid_max, proc(5)).
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Its processes: the one that was started, and those that it started and that did not end yet.
    pub fn process_ids(&self) -> Vec<i32> {
        let id = self.process_id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|word| word.parse().ok());
        std::iter::once(id).chain(children).collect()
    }

    /// Has it read its configuration again, in its own way.
    ///
    /// # Errors
    /// When it is gone.
    pub fn reload(&self) -> Result<()> {
        let signal = match self.product {
            // To the master: management guide, section 4.
            Product::Haproxy | Product::HaproxySid => Signal::SIGUSR2,
            Product::Ours | Product::Nginx | Product::NginxSid | Product::Envoy => Signal::SIGHUP,
        };
        kill(Pid::from_raw(self.process_id()), signal)
            .with_context(|| format!("{} is gone", self.product))
    }

    /// Octets of memory that are its own or its share of what it shares.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path} tells no Pss"))? * 1_024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It leads a session of its own (`Place::command`), whose processes end with it. Gone already is
        // as good.
        let _gone = killpg(Pid::from_raw(self.process_id()), Signal::SIGKILL);
        let _buried = self.child.wait();
    }
}

impl Installed {
    /// Starts it with a certificate of that kind, and waits until it accepts.
    ///
    /// # Errors
    /// When it does not come up; its own words are then on standard error.
    pub fn start(&self, files: &Files, keys: Keys, setup: Setup, place: &Place) -> Result<Server> {
        let Setup { workers, can_reload } = setup;
        let (address, quic) = (self.product.address(), self.product.address_of_quic());
        let config = files.path(&format!("{}.conf", self.product));
        let server = files.server(keys);
        let mut command = self.found.command_at(place);
        match self.product {
            Product::Ours => {
                fs::write(&config, ours::config(files, &server, [address, quic], workers))?;
                command.arg("--config").arg(&config).arg("run");
            }
            Product::Haproxy | Product::HaproxySid => {
                let quic = Some(quic).filter(|_| self.product == Product::HaproxySid);
                fs::write(&config, haproxy::config(files, &server, address, quic, workers))?;
                command.arg(if can_reload { "-W" } else { "-db" }).arg("-f").arg(&config);
            }
            Product::Nginx | Product::NginxSid => {
                let kind = nginx::Kind {
                    is_new: self.product == Product::NginxSid,
                    // One process serves without a master, which only costs.
                    workers: if workers > 1 || can_reload { workers } else { 0 },
                };
                let root = &self.found.root;
                fs::write(files.path("token.js"), nginx::script(files)?)?;
                fs::write(&config, nginx::config(files, &server, [address, quic], root, kind))?;
                command.arg("-c").arg(&config).arg("-p").arg(files.path(""));
            }
            Product::Envoy => {
                let config = config.with_extension("json");
                let document = envoy::config(files, &server, [address, quic])?;
                fs::write(&config, document.to_string())?;
                command.args(["--concurrency", &workers.to_string(), "--disable-hot-restart"]);
                command.args(["-l", "error", "-c"]).arg(&config);
            }
        }
        let log = fs::File::create(files.path(&format!("{}.log", self.product)))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = place.spawn(&mut command)?;
        let mut server = Server { product: self.product, child };
        clock::wait_for(&format!("{} to accept", self.product), START_LIMIT, || {
            if let Some(status) = server.child.try_wait()? {
                let log = fs::read_to_string(files.path(&format!("{}.log", self.product)))?;
                bail!("{} ended with {status}: {log}", self.product);
            }
            let connected = place.namespace.within(|| TcpStream::connect(address))?;
            Ok(connected.ok())
        })?;
        Ok(server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_servers_say() {
        for (said, expected) in [
            (
                "HAProxy version 2.6.12 2023 - home\nStatus: x\nRunning on OpenSSL version : OpenSSL 3.0.19\n",
                "HAProxy version 2.6.12 2023; Running on OpenSSL version : OpenSSL 3.0.19",
            ),
            (
                "HAProxy version 3.2.26-1 2026\nRunning on SSL library version : OpenSSL 3.6.5\n",
                "HAProxy version 3.2.26-1 2026; Running on SSL library version : OpenSSL 3.6.5",
            ),
            (
                "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22\n",
                "nginx version: nginx/1.22.1; built with OpenSSL 3.0.22",
            ),
            (
                "\n/x/envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL\n",
                "abc/1.40.0/Clean/RELEASE/BoringSSL",
            ),
            ("error while loading shared libraries", ""),
        ] {
            assert_eq!(version(said), expected);
        }
    }
}
