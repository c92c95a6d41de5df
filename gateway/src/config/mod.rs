//! The configuration as it must be: checked, complete, every default filled in.
//!
//! Text becomes a [`Config`] only through [`load`], which lists every problem it finds. After that
//! nobody asks again whether a value makes sense: each stage takes its own settings value from here
//! and knows nothing of TOML.
//!
//! The road: `tree` reads files into one tree of values with places, `file` reads tables of it key
//! by key, `check` compares what it found and judges the files it names.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    fetch::Url,
    host::{assess::Temperatures, clock::ClockLimits},
    http::guard::Limits,
    identity::{
        principal,
        token::{RefreshRules, TokenRules},
    },
    kernel,
    policy::{authorize::Demands, limit, route::Priority},
};

mod check;
mod disk;
mod effective;
#[cfg(test)]
mod fake;
mod file;
mod material;
mod problem;
mod schema;
mod section;
mod tree;
mod value;

pub use check::{MATERIAL_MAX_BYTES, REVOCATION_LIST_MAX_BYTES, REVOKED_TOKENS_MAX_BYTES, overlap};
pub use disk::{Content, Daemon, Disk, FileError, Files};
pub use effective::Effective;
pub use material::{Exposed, private};
pub use problem::{Finding, Kind, Problems, Warning};

/// Reads the configuration at `path` with `conf.d/*.toml` beside it, and judges it together with
/// every file that it names. Relative paths in it begin at the directory of `path`.
///
/// # Errors
///
/// Every problem found, in reading order.
pub fn load(path: &Path, files: &dyn Files) -> Result<(Config, Vec<Warning>), Problems> {
    let report = problem::Report::default();
    let root = tree::gather(path, files, &report);
    let written = file::read(&root, &report);
    // It fails for an empty path only, or without a current directory; then files are not found.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = absolute.parent().unwrap_or(Path::new("/"));
    let config = check::judge(&written, base, files, &report);
    report.conclude(config)
}

/// The configuration at `path` with every default filled in, to be looked at.
///
/// # Errors
///
/// As [`load`]: of what is refused nothing is in effect.
pub fn effective(path: &Path, files: &dyn Files) -> Result<Effective, Problems> {
    load(path, files)?;
    Ok(Effective::new(&tree::gather(path, files, &problem::Report::default())))
}

/// Where the daemon of a configuration answers the command line, whatever else is wrong with it.
pub fn operators_socket(path: &Path, files: &dyn Files) -> PathBuf {
    let report = problem::Report::default();
    let root = tree::gather(path, files, &report);
    let socket = file::read(&root, &report).admin.socket.value;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().unwrap_or(Path::new("/")).join(socket)
}

/// Everything the daemon was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process as a whole: `[server]`.
    pub server: Server,
    /// At least one; names and addresses are unique: `[[listener]]`.
    pub listeners: Vec<Listener>,
    /// Names and issuer identifiers are unique: `[[issuer]]`.
    pub issuers: Vec<Issuer>,
    /// The cache of verified tokens: `[token_cache]`.
    pub token_cache: TokenCache,
    /// Client certificate → principal: `[[identity]]`.
    pub identities: principal::Rules,
    /// List of revoked tokens, absolute: `[revocation].tokens_file`.
    pub revoked_tokens: Option<PathBuf>,
    /// Names are unique: `[[upstream]]`.
    pub upstreams: Vec<Upstream>,
    /// Each names an upstream that exists: `[[route]]`.
    pub routes: Vec<Route>,
    /// Names are unique: `[[limit]]`.
    pub limits: Vec<limit::Limit>,
    /// `None` when `[xdp].interfaces` is empty: no kernel half is loaded.
    pub xdp: Option<kernel::Settings>,
    /// What a client may take of time and work: `[clients]`.
    pub clients: Limits,
    /// What turns refusals into bans: `[bans]`.
    pub bans: Bans,
    /// Where the host is looked at, and what is too much: `[host]`.
    pub host: Host,
    /// Where operators and Prometheus ask: `[admin]`.
    pub admin: Admin,
    /// `[log]`.
    pub log: Log,
}

/// `[server]`.
#[derive(Clone, Debug)]
pub struct Server {
    /// Number of workers; 0 means one for each CPU the process may run on.
    pub workers: usize,
    /// How long open connections may finish after SIGTERM.
    pub drain_timeout: Duration,
    /// For how long after SIGTERM connections are still accepted, while `/ready` says no.
    pub drain_delay: Duration,
    /// Connections open at once, over all listeners and workers.
    pub max_connections: usize,
    /// Connections of one source open at once.
    pub max_connections_per_source: usize,
    /// Connections that wait to be accepted, for each socket.
    pub backlog: u32,
    /// The kernel hands each connection to the worker of the CPU that its packets come in on.
    pub cpu_steering: bool,
}

/// One `[[listener]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Unique; the label in metrics and logs.
    pub name: String,
    /// One SO_REUSEPORT socket for each worker is bound here.
    pub address: SocketAddr,
    /// In the order of preference offered by ALPN; not empty.
    pub protocols: Vec<Protocol>,
    /// The proxies that may connect, each with a PROXY header; `None`: clients connect themselves.
    pub proxies: Option<Vec<IpNet>>,
    /// `[listener.tls]`.
    pub tls: ListenerTls,
}

/// What a listener speaks, always over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/3 over QUIC, ALPN `h3`: on the UDP port of the same number.
    Http3,
    /// HTTP/2, ALPN `h2`.
    Http2,
    /// HTTP/1.1, ALPN `http/1.1`.
    Http1,
}

/// `[listener.tls]`. Paths are absolute; the files were readable and parsed when checked.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// The listener's own, for clients that name no host or one that no other site has; then those
    /// of `[[listener.tls.sni]]`. No name is in two of them.
    pub sites: Vec<TlsSite>,
    /// Sessions remembered for resumption; 0: none is ever resumed.
    pub sessions: usize,
}

/// What is served under certain host names: with which certificate, and to whom.
#[derive(Clone, Debug)]
pub struct TlsSite {
    /// Lower case; `*.example.com` stands for every name of one label more. Empty for the first.
    pub names: Vec<String>,
    /// PEM chain, leaf first.
    pub certificate: PathBuf,
    /// PEM key of the leaf; refused when others can read it.
    pub private_key: PathBuf,
    /// `None`: clients are not asked for certificates.
    pub clients: Option<TlsClients>,
}

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub struct TlsClients {
    /// False: a client may come without one. One that it sends must be good either way.
    pub required: bool,
    /// PEM trust anchors.
    pub ca: PathBuf,
    /// PEM or DER lists; empty means that no certificate is looked up.
    pub crl: Vec<PathBuf>,
    /// What an expired list means for certificates of its issuer.
    pub crl_expired: CrlExpired,
    /// Intermediates allowed between the leaf and the anchor.
    pub max_chain_depth: usize,
    /// PEM certificates of authorities that are no longer in use: what comes from them is refused by
    /// a word of its own.
    pub retired_ca: Vec<PathBuf>,
}

/// `crl_expired`: what to do with certificates whose issuer's list is past `nextUpdate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrlExpired {
    /// Refuse them: a list that is not kept up cannot say who is still good.
    Deny,
    /// Go on with the old list.
    Allow,
}

/// One `[[issuer]]`: the rules and where its keys are.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// What a token of this issuer must satisfy.
    pub rules: TokenRules,
    /// Where its keys are.
    pub keys: KeySource,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// In this JWKS file, absolute.
    File(PathBuf),
    /// At the issuer's own server.
    Remote(Arc<RemoteKeys>),
}

impl KeySource {
    /// Where they are fetched from, as far as addresses are written down.
    pub fn networks(&self) -> Vec<IpNet> {
        let Self::Remote(keys) = self else { return Vec::new() };
        let written = keys.location.url().address().into_iter();
        let addresses = written.chain(keys.addresses.iter().map(|address| address.ip()));
        addresses.map(|address| IpNet::from(address.to_canonical())).collect()
    }
}

/// Keys that are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteKeys {
    /// What is fetched first.
    pub location: KeyLocation,
    /// Authorities that the server's certificate has to come from, absolute; `None`: the system's.
    pub authorities: Option<PathBuf>,
    /// The server's addresses; empty: those of its name.
    pub addresses: Vec<SocketAddr>,
    /// When to ask, and how long to believe the last answer.
    pub refresh: RefreshRules,
}

/// `jwks_url` or `discovery_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyLocation {
    /// The keys themselves.
    Keys(Url),
    /// The issuer's description of itself, which says where they are.
    Description(Url),
}

impl KeyLocation {
    /// What is fetched first.
    pub fn url(&self) -> &Url {
        match self {
            Self::Keys(url) | Self::Description(url) => url,
        }
    }
}

/// `idp_lost`: what an issuer that gives no answer means for its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdpLost {
    /// They are judged by the last keys, up to `max_stale`.
    Available,
    /// They are refused after five minutes.
    Strict,
}

/// `[token_cache]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCache {
    /// Verified tokens remembered, divided among the workers; 0 turns the cache off.
    pub entries: usize,
    /// An entry is never older than this, nor past the token's `exp`.
    pub ttl: Duration,
}

/// One `[[upstream]]`.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Unique.
    pub name: String,
    /// Not empty. A host may be a name; its addresses are looked up beside the requests.
    pub servers: Vec<Endpoint>,
    /// What is spoken to them.
    pub protocol: UpstreamProtocol,
    /// Which of them is next.
    pub balance: Balance,
    /// For one connection: TCP, TLS and the first octets of HTTP.
    pub connect_timeout: Duration,
    /// From the whole request sent to the response's head.
    pub response_timeout: Duration,
    /// How long nothing may move in either direction while bodies are under way.
    pub idle_timeout: Duration,
    /// Requests at once at one server; over HTTP/1.1 that is as many connections.
    pub max_requests: usize,
    /// Requests that wait for one of those to end, for each server; they wait up to
    /// `connect_timeout`.
    pub max_waiting: usize,
    /// `None`: servers are judged by what becomes of requests alone.
    pub health: Option<HealthProbe>,
    /// `None`: plain HTTP.
    pub tls: Option<UpstreamTls>,
}

/// `protocol` of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// Over TLS what ALPN agrees on, else HTTP/1.1.
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2; without TLS by prior knowledge (RFC 9113 section 3.3).
    Http2,
}

/// `balance` of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn; each worker has its own turn.
    RoundRobin,
    /// The one with the fewest requests of all workers.
    LeastConnections,
}

/// `health` of an upstream: what is asked of each server beside the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthProbe {
    /// Path and query; a status from 200 to 399 is a good answer.
    pub path: String,
    /// From one question to the next.
    pub interval: Duration,
    /// For a whole answer, connection included; shorter than the interval.
    pub timeout: Duration,
    /// Good answers in a row after which a server that was down is used again.
    pub healthy: u32,
    /// Bad ones after which it is down.
    pub unhealthy: u32,
}

/// `tls` of an upstream. Paths are absolute; the files were readable and parsed when checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// PEM authorities that servers' certificates have to come from; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// The gateway's own certificate for them: PEM chain and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that their certificates have to be for; `None`: the host of the server's URL.
    pub server_name: Option<String>,
}

/// Host and port of one upstream server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address or name, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `https://`.
    pub is_tls: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// One `[[route]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique; the label in metrics and logs.
    pub name: String,
    /// Lower-case host names without port; empty: any.
    pub hosts: Vec<String>,
    /// Whole-segment prefix, starting with `/`.
    pub path: String,
    /// Empty: any.
    pub methods: Vec<http::Method>,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
    /// What it asks of whoever comes by it.
    pub demands: Demands,
    /// The client's `Authorization` goes on to the upstream.
    pub pass_authorization: bool,
    /// Whether it is shed when the host is short of something.
    pub priority: Priority,
    /// Indices into [`Config::limits`].
    pub limits: Vec<usize>,
}

/// `[bans]`.
#[derive(Clone, Debug)]
pub struct Bans {
    /// False: refusals are counted, nobody is banned.
    pub enabled: bool,
    /// Penalty points at which a source is banned.
    pub threshold: u32,
    /// Time in which a source's points halve.
    pub half_life: Duration,
    /// Duration of the first, second, … ban; the last repeats. Not empty.
    pub ladder: Vec<Duration>,
    /// Never banned, whatever they do.
    pub never: Vec<IpNet>,
}

/// `[host]`.
#[derive(Clone, Debug)]
pub struct Host {
    /// CPU temperatures between which is shed.
    pub cpu_temperature: Temperatures,
    /// Errors of the clock that are told, and that take the node out.
    pub clock: ClockLimits,
    /// Where chronyd answers; `None`: it is not asked.
    pub chrony: Option<SocketAddr>,
    /// `/sys`, or another tree with sensors.
    pub sysfs: PathBuf,
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Unix socket of the command line.
    pub socket: PathBuf,
    /// Whose members may use it, by name or number; `None`: the daemon's own group.
    pub group: Option<String>,
    /// Address of `/metrics`, `/live` and `/ready`.
    pub metrics: SocketAddr,
    /// Who may ask there.
    pub allow: Vec<IpNet>,
}

/// `[log]`; to stderr.
#[derive(Clone, Debug)]
pub struct Log {
    /// JSON for machines, text for people.
    pub format: LogFormat,
    /// One line a request.
    pub access: bool,
}

/// `[log].format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// `key=value` for reading at a terminal.
    Text,
}
