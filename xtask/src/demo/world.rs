//! The scene: four hosts, an authority, an issuer, an upstream.
//!
//! ```text
//!  client ──┐
//!           bridge (outside) ══ uplink ══ edge0 (gateway)   upstream on the gateway's loopback
//!  attacker ┘
//! ```
//!
//! All traffic reaches the gateway over one link, as it would over one network card.
//! The flood is made on one core and received there too, as by a network card's one queue: by a
//! thread for the gateway's XDP program and, as far as packets are let through, its stack, which goes
//! before the generator. The daemon, the upstream and the legitimate client share another core.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::harness::{
    client::{self, Credential},
    flood::{self, Flood, Plan, Sources, Transport, Wire},
    gateway::{ConfigText, Gateway, Launch, ROUTES, write_config},
    load::Target,
    netns::{self, End, Namespace, PinDirectory},
    pki::{self, Authority},
    tokens::{self, Mint},
    upstream::Upstream,
};

/// The gateway's guarded interface.
pub const INTERFACE: &str = "edge0";
/// The name the server's certificate is for.
pub const HOST: &str = "gateway.demo";
/// The listener.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY), 8443);
/// Steps of the ladder of bans: the first ban ends while one is watching.
pub const FIRST_BAN: Duration = Duration::from_secs(12);

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
const CLIENT: IpAddr = address(10);
const UPLINK: &str = "uplink";
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The attacker host's addresses that send bad tokens, each banned once.
pub const ATTACKERS: [IpAddr; 9] = {
    let mut addresses = [LOCAL; 9];
    let mut number = 0;
    while number < 9 {
        addresses[number] = address(100 + number as u8);
        number += 1;
    }
    addresses
};
/// Addresses of the client's host for those who are refused: what they do is evidence against
/// their own address, and must not be held against the legitimate client's.
pub const VISITORS: [IpAddr; 5] = [address(50), address(51), address(52), address(53), address(54)];
/// The first of the four neighbouring addresses that the flood comes from.
pub const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 200);

const fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 83, 0, last))
}

/// Which core does what.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Makes the flood, and receives it.
    pub flood: usize,
    /// Runs the daemon, the upstream and the client.
    pub service: usize,
}

impl Cores {
    /// The first and the last core that this process may use; the same where there is only one.
    fn choose() -> Result<Cores> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
        let usable: Vec<usize> =
            (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
        let (first, last) = (usable.first(), usable.last());
        Ok(Cores {
            flood: *first.context("no core to run on")?,
            service: *last.context("no core to run on")?,
        })
    }
}

/// The scene. Its parts are dropped in this order, users before what they use.
#[derive(Debug)]
pub struct World {
    /// Starts the daemon and runs the product's commands.
    pub launch: Launch,
    /// Signs tokens that the configuration trusts.
    pub mint: Mint,
    /// Signs tokens that it does not trust.
    pub impostor: Mint,
    /// A good client certificate.
    pub client: Credential,
    /// A certificate of another authority.
    pub stranger: Credential,
    /// A revoked one.
    pub revoked: Credential,
    /// One whose time has passed.
    pub expired: Credential,
    /// Where the program, its links and maps are pinned.
    pub pins: PinDirectory,
    /// Which core does what.
    pub cores: Cores,
    config: ConfigText,
    authority: Authority,
    _upstream: Upstream,
    client_host: Arc<Namespace>,
    attacker_host: Arc<Namespace>,
    outside: Arc<Namespace>,
    _directory: TempDir,
}

impl World {
    /// Sets the scene, without the daemon.
    ///
    /// # Errors
    /// When any of it fails; what was made is removed.
    pub fn new(binary: &Path) -> Result<World> {
        let cores = Cores::choose()?;
        let directory = netns::directory("demo")?;
        let hosts = Hosts::new()?;
        let pins = PinDirectory::new();
        let upstream =
            Upstream::start(&hosts.gateway, SocketAddr::new(LOCAL, 9001), Some(cores.service))?;
        let authority = Authority::new(binary, &directory.path().join("pki"))?;
        let server = authority.server(&[HOST, &GATEWAY.to_string()], "server")?;
        let client = authority.client("client", &["--spiffe", "spiffe://demo.test/client"])?;
        let revoked = authority.client("revoked", &[])?;
        authority.revoke(&revoked)?;
        let past = ["--not-before", "2020-01-01T00:00:00Z", "--not-after", "2020-02-01T00:00:00Z"];
        let expired = authority.client("expired", &past)?;
        let stranger = pki::stranger(&directory)?;
        let mint = Mint::new(binary, directory.path(), "key1", "ES256")?;
        let impostor = Mint::new(binary, directory.path(), "impostor", "ES256")?;
        let metrics = SocketAddr::new(LOCAL, 9090);
        let config = ConfigText {
            tls: String::new(),
            listener: SERVER,
            server,
            client_authority: authority.certificate(),
            revoked: vec![authority.revoked()],
            issuer: tokens::ISSUER.to_owned(),
            algorithms: "\"ES256\"".to_owned(),
            jwks: mint.jwks().to_owned(),
            keys: String::new(),
            upstream: upstream.address(),
            metrics,
            socket: directory.path().join("admin.sock"),
            routes: ROUTES.to_owned(),
            process: String::new(),
            xdp: xdp(&pins, Enforce::Yes),
            bans: bans(),
            listener_lines: String::new(),
            clients: String::new(),
        };
        let launch = Launch {
            environment: Vec::new(),
            binary: binary.to_owned(),
            config: directory.path().join("portcullis.toml"),
            namespace: Arc::clone(&hosts.gateway),
            metrics,
            core: Some(cores.service),
        };
        write_config(&launch.config, &config.to_string())?;
        Ok(World {
            launch,
            mint,
            impostor,
            client,
            stranger,
            revoked,
            expired,
            pins,
            cores,
            config,
            authority,
            _upstream: upstream,
            client_host: hosts.client,
            attacker_host: hosts.attacker,
            outside: hosts.outside,
            _directory: directory,
        })
    }

    /// Starts the daemon, and gives the interface's receive thread its core.
    ///
    /// # Errors
    /// When it does not get ready, or the interface has no thread of its own.
    pub fn start(&self) -> Result<Gateway> {
        let others = netns::receive_threads(INTERFACE);
        let gateway = self.launch.run_until_ready()?;
        self.launch.namespace.receive_by_threads(INTERFACE)?;
        let ours = netns::receive_threads(INTERFACE);
        let thread = ours.difference(&others).next();
        let thread = thread.context("the guarded interface has no receive thread")?;
        flood::receive_first(*thread, self.cores.flood)?;
        Ok(gateway)
    }

    /// A request of the legitimate client, with its certificate.
    pub fn request(&self, path: &str) -> client::Request<'_> {
        self.request_from(&self.client_host, path).from(CLIENT)
    }

    /// A request from one of [`VISITORS`], with a good certificate.
    pub fn visitors_request(&self, from: IpAddr, path: &str) -> client::Request<'_> {
        self.request_from(&self.client_host, path).from(from)
    }

    /// A request from one of the attacker's addresses, with a good certificate.
    pub fn attackers_request(&self, from: IpAddr, path: &str) -> client::Request<'_> {
        self.request_from(&self.attacker_host, path).from(from)
    }

    fn request_from<'a>(&self, host: &'a Namespace, path: &str) -> client::Request<'a> {
        client::Request::new(host, SERVER, HOST, path, self.authority.certificate())
            .certificate(&self.client)
    }

    /// A handshake of `openssl s_client` from one of [`VISITORS`].
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn handshake(
        &self,
        from: IpAddr,
        credential: Option<&Credential>,
    ) -> Result<client::Handshake> {
        let bind = format!("{from}:0");
        client::handshake(&self.client_host, SERVER, HOST, credential, &["-bind", &bind])
    }

    /// The legitimate client's own connections.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub fn client_target(&self) -> Result<Target> {
        Ok(self.target(&self.client_host)?.from(CLIENT))
    }

    /// Connections from one of the attacker's addresses.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn attacker_target(&self, from: IpAddr) -> Result<Target> {
        Ok(self.target(&self.attacker_host)?.from(from))
    }

    fn target(&self, host: &Namespace) -> Result<Target> {
        Target::new(host, SERVER, HOST, &self.authority.certificate(), &self.client)
    }

    /// Sends datagrams to the guarded port from one of the attacker's addresses.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn prober(&self, from: IpAddr) -> Result<flood::Prober> {
        flood::Prober::new(&self.attacker_host, from, SERVER)
    }

    /// Starts a flood of connection requests at the gateway's end of the one link.
    ///
    /// # Errors
    /// When the generator cannot be made.
    pub fn flood(&self, sources: Sources, lasts: Duration) -> Result<Flood> {
        let wire = Wire {
            source: self.outside.hardware_address(UPLINK)?,
            destination: self.launch.namespace.hardware_address(INTERFACE)?,
        };
        let SocketAddr::V4(to) = SERVER else { anyhow::bail!("the flood is IPv4") };
        let from = SocketAddrV4::new(FLOODER, 40_000);
        let plan = Plan {
            frame: flood::frame(wire, from, to, Transport::TcpSyn),
            sources,
            interface: UPLINK.to_owned(),
            core: self.cores.flood,
            batch: flood::BATCH,
            lasts,
            packets_max: u64::MAX,
        };
        Flood::start(&self.outside, plan)
    }

    /// Rewrites the configuration; the daemon hears of it with the next signal.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, enforce: Enforce) -> Result<()> {
        let config = ConfigText { xdp: xdp(&self.pins, enforce), ..self.config.clone() };
        write_config(&self.launch.config, &config.to_string())
    }

    /// Whether an XDP program is on the gateway's interface.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn guarded(&self) -> Result<bool> {
        self.launch.namespace.has_xdp(INTERFACE)
    }
}

/// Whether the XDP program drops or only counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforce {
    /// It drops.
    Yes,
    /// It counts what it would drop.
    No,
}

fn xdp(pins: &PinDirectory, enforce: Enforce) -> String {
    format!(
        "[xdp]\ninterfaces = [\"{INTERFACE}\"]\nmode = \"native\"\nenforce = {}\n\
         packets = {{ rate = \"5000/s\", burst = 10000 }}\npin = {:?}\n",
        enforce == Enforce::Yes,
        pins.path().display().to_string()
    )
}

fn bans() -> String {
    // A long half-life, so that the number of refusals that decides does not depend on the pace.
    format!("half_life = \"10m\"\nladder = [\"{}s\", \"10m\"]\n", FIRST_BAN.as_secs())
}

/// The four hosts, joined.
struct Hosts {
    gateway: Arc<Namespace>,
    outside: Arc<Namespace>,
    client: Arc<Namespace>,
    attacker: Arc<Namespace>,
}

impl Hosts {
    fn new() -> Result<Hosts> {
        let gateway = Namespace::new("gateway")?;
        let outside = Namespace::new("outside")?;
        let client = Namespace::new("client")?;
        let attacker = Namespace::new("attacker")?;
        outside.ip("link add bridge0 type bridge")?;
        outside.ip("link set bridge0 up")?;
        for (host, interface, port) in [
            (&gateway, INTERFACE, UPLINK),
            (&client, "eth0", "client"),
            (&attacker, "eth0", "attacker"),
        ] {
            netns::cable(
                End { namespace: &outside, interface: port },
                End { namespace: host, interface },
            )?;
            outside.ip(&format!("link set {port} master bridge0"))?;
        }
        gateway.add_address(INTERFACE, GATEWAY.into(), 24)?;
        client.add_address("eth0", CLIENT, 24)?;
        for address in VISITORS {
            client.add_address("eth0", address, 24)?;
        }
        for address in ATTACKERS {
            attacker.add_address("eth0", address, 24)?;
        }
        // The flood's addresses answer for themselves, as an attacker's own machines would.
        for last in 0..4 {
            let [a, b, c, d] = FLOODER.octets();
            attacker.add_address("eth0", Ipv4Addr::new(a, b, c, d + last).into(), 24)?;
        }
        Ok(Hosts { gateway, outside, client, attacker })
    }
}
