//! A small site, the same for most tests: a gateway host and a client host on one cable, a private
//! authority, an issuer, an upstream beside the gateway. Everything in namespaces, files and pins of
//! its own, so that sites stand beside each other.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    client::{self, Credential, Handshake},
    gateway::{ConfigText, Gateway, Launch, ROUTES, write_config},
    netns::{self, End, Namespace, PinDirectory},
    pki::Authority,
    tokens::{self, Mint},
    upstream::Upstream,
};

/// The gateway's address on the cable.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The client's own; [`Site::client_address`] gives it more.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The name the server's certificate is for.
pub const HOST: &str = "gateway.test";
/// The gateway's interface.
pub const INTERFACE: &str = "edge0";
/// The client's interface.
pub const CLIENT_INTERFACE: &str = "host0";
/// The listener.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY), 8443);
/// The upstream, beside the gateway.
const UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);
/// Metrics.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// The site. Its parts are dropped in this order, users before what they use.
#[derive(Debug)]
pub struct Site {
    /// The configuration that [`Site::start`] will write.
    pub config: ConfigText,
    /// Signs tokens that the configuration trusts (ES256).
    pub mint: Mint,
    /// Signs certificates that the configuration trusts.
    pub authority: Authority,
    /// A good client certificate.
    pub client: Credential,
    /// What the gateway forwards to.
    pub upstream: Upstream,
    /// Where the gateway runs.
    pub gateway_host: Arc<Namespace>,
    /// Where clients run.
    pub client_host: Arc<Namespace>,
    /// Where the kernel half is pinned, when the configuration has one.
    pub pins: PinDirectory,
    /// All files.
    pub directory: TempDir,
    binary: PathBuf,
}

impl Site {
    /// What a client of another's making has to know to come in with a good certificate, and `more`.
    ///
    /// # Errors
    /// When `more` is no object.
    pub fn client_plan(&self, more: Value) -> Result<Value> {
        let mut plan = json!({
            "address": SERVER.ip().to_string(),
            "port": SERVER.port(),
            "name": HOST,
            "ca": self.authority.certificate(),
            "cert": self.client.certificate,
            "key": self.client.key,
        });
        let fields = plan.as_object_mut().context("an object")?;
        fields.extend(more.as_object().context("an object")?.clone());
        Ok(plan)
    }

    /// Builds everything but the daemon.
    ///
    /// # Errors
    /// When any of it fails.
    pub fn new(binary: &Path, label: &str) -> Result<Site> {
        let directory = netns::directory(label)?;
        let gateway_host = Namespace::new(&format!("{label}-gateway"))?;
        let client_host = Namespace::new(&format!("{label}-client"))?;
        netns::cable(
            End { namespace: &gateway_host, interface: INTERFACE },
            End { namespace: &client_host, interface: CLIENT_INTERFACE },
        )?;
        gateway_host.add_address(INTERFACE, GATEWAY.into(), 24)?;
        client_host.add_address(CLIENT_INTERFACE, CLIENT.into(), 24)?;
        let upstream = Upstream::start(&gateway_host, UPSTREAM, None)?;
        let authority = Authority::new(binary, &directory.path().join("pki"))?;
        let server = authority.server(&[HOST, &GATEWAY.to_string()], "server")?;
        let client = authority.client("client", &["--spiffe", "spiffe://site.test/client"])?;
        let mint = Mint::new(binary, directory.path(), "key1", "ES256")?;
        let config = ConfigText {
            tls: String::new(),
            listener: SERVER,
            server,
            client_authority: authority.certificate(),
            revoked: vec![authority.revoked()],
            issuer: tokens::ISSUER.to_owned(),
            algorithms: "\"ES256\", \"RS256\"".to_owned(),
            jwks: mint.jwks().to_owned(),
            keys: String::new(),
            upstream: UPSTREAM,
            metrics: METRICS,
            socket: directory.path().join("admin.sock"),
            routes: ROUTES.to_owned(),
            process: String::new(),
            xdp: String::new(),
            bans: String::new(),
            listener_lines: String::new(),
            clients: String::new(),
        };
        Ok(Site {
            config,
            mint,
            authority,
            client,
            upstream,
            gateway_host,
            client_host,
            pins: PinDirectory::new(),
            directory,
            binary: binary.to_owned(),
        })
    }

    /// Guards the gateway's interface with the XDP program, dropping.
    /// `lines` are further lines of `[xdp]`.
    pub fn guard(&mut self, lines: &str) {
        self.config.xdp = format!(
            "[xdp]\ninterfaces = [\"{INTERFACE}\"]\nmode = \"native\"\nenforce = true\npin = {:?}\n{lines}",
            self.pins.path().display().to_string()
        );
    }

    /// Gives the client host one more address.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn client_address(&self, last_byte: u8) -> Result<IpAddr> {
        let address = IpAddr::V4(Ipv4Addr::new(10, 99, 0, last_byte));
        self.client_host.add_address(CLIENT_INTERFACE, address, 24)?;
        Ok(address)
    }

    /// Writes the configuration file and gives what starts a daemon with it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn launch(&self) -> Result<Launch> {
        let config = self.directory.path().join("portcullis.toml");
        write_config(&config, &self.config.to_string())?;
        Ok(Launch {
            binary: self.binary.clone(),
            config,
            namespace: Arc::clone(&self.gateway_host),
            metrics: self.config.metrics,
            core: None,
            environment: Vec::new(),
        })
    }

    /// Writes the configuration file, starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready; with its log.
    pub fn start(&self) -> Result<Gateway> {
        self.launch()?.run_until_ready()
    }

    /// A request from the client host, with the good certificate.
    pub fn request(&self, path: &str) -> client::Request<'_> {
        self.anonymous_request(path).certificate(&self.client)
    }

    /// A request from the client host, without certificate.
    pub fn anonymous_request(&self, path: &str) -> client::Request<'_> {
        client::Request::new(&self.client_host, SERVER, HOST, path, self.authority.certificate())
    }

    /// A handshake of `openssl s_client` from the client host.
    ///
    /// # Errors
    /// When openssl cannot be run.
    pub fn handshake(&self, credential: Option<&Credential>, more: &[&str]) -> Result<Handshake> {
        client::handshake(&self.client_host, SERVER, HOST, credential, more)
    }
}
