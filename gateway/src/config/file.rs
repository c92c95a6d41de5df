//! The configuration as it is written: each table with typed values, their places and the defaults,
//! nothing yet compared with anything else.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

use super::{
    Balance, CrlExpired, Endpoint, IdpLost, LogFormat, Protocol, UpstreamProtocol,
    problem::{Kind, Place, Report},
    section::{At, Neutral, Section, boolean, integer, text},
    tree::Table,
    value::{self, Between, ClientAuth, Proof, ProxyProtocol, duration_between},
};
use crate::{
    fetch::Url,
    identity::{
        pattern::Pattern,
        principal::{NameSource, Template},
        token::Algorithm,
    },
    kernel::{Mode, Service, Transport},
    policy::{hours::Hours, route::Priority},
};

mod clients;
pub(super) mod limit;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// All tables.
#[derive(Debug)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) listeners: Vec<Listener>,
    pub(super) issuers: Vec<Issuer>,
    pub(super) token_cache: TokenCache,
    pub(super) identities: Vec<Identity>,
    pub(super) revoked_tokens: Option<At<PathBuf>>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) routes: Vec<Route>,
    pub(super) limits: Vec<limit::Limit>,
    pub(super) xdp: Xdp,
    pub(super) clients: clients::Clients,
    pub(super) bans: Bans,
    pub(super) host: Host,
    pub(super) admin: Admin,
    pub(super) log: Log,
}

/// `[server]`.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) workers: At<usize>,
    pub(super) drain_timeout: At<Duration>,
    pub(super) drain_delay: At<Duration>,
    pub(super) max_connections: At<usize>,
    pub(super) max_connections_per_source: At<usize>,
    pub(super) backlog: At<u32>,
    pub(super) cpu_steering: At<bool>,
}

/// `[[listener]]`.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) name: Option<At<String>>,
    pub(super) address: Option<At<SocketAddr>>,
    pub(super) protocols: Option<At<Vec<Protocol>>>,
    pub(super) proxy_protocol: At<ProxyProtocol>,
    pub(super) trusted_proxies: Option<At<Vec<At<IpNet>>>>,
    pub(super) tls: Option<Tls>,
}

/// `[listener.tls]`; a list of which an entry was refused is `None`, here and below.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) certificate: Option<At<PathBuf>>,
    pub(super) private_key: Option<At<PathBuf>>,
    pub(super) clients: Clients,
    pub(super) sessions: At<usize>,
    pub(super) sni: Vec<Sni>,
}

/// `[[listener.tls.sni]]`; what is not written is as in `[listener.tls]`.
#[derive(Debug)]
pub(super) struct Sni {
    pub(super) names: Option<Vec<At<String>>>,
    pub(super) certificate: Option<At<PathBuf>>,
    pub(super) private_key: Option<At<PathBuf>>,
    pub(super) clients: Clients,
}

/// The keys about clients' certificates, each `None` when it is not written or was refused.
#[derive(Debug)]
pub(super) struct Clients {
    /// As in `listener.tls`.
    pub(super) path: &'static str,
    pub(super) auth: Option<At<ClientAuth>>,
    pub(super) ca: Option<At<PathBuf>>,
    pub(super) crl: Option<At<Vec<At<PathBuf>>>>,
    pub(super) crl_expired: Option<At<CrlExpired>>,
    pub(super) max_chain_depth: Option<At<usize>>,
    pub(super) retired: Option<At<Vec<At<PathBuf>>>>,
}

/// `[[issuer]]`.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) name: Option<At<String>>,
    pub(super) issuer: Option<At<String>>,
    pub(super) audiences: Option<Vec<String>>,
    pub(super) algorithms: Vec<At<Algorithm>>,
    pub(super) keys: Keys,
    pub(super) leeway: At<Duration>,
    pub(super) max_lifetime: At<Duration>,
    pub(super) client_id_claims: Vec<String>,
}

/// Where an issuer's keys are, and what to do when they cannot be had. Not written is `None`: most
/// of it means something for keys that are fetched only.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) file: Option<At<PathBuf>>,
    pub(super) url: Option<At<Url>>,
    pub(super) discovery_url: Option<At<Url>>,
    pub(super) authorities: Option<At<PathBuf>>,
    pub(super) addresses: Option<At<Vec<At<SocketAddr>>>>,
    pub(super) refresh: Option<At<Duration>>,
    pub(super) cooldown: Option<At<Duration>>,
    pub(super) idp_lost: Option<At<IdpLost>>,
    pub(super) max_stale: Option<At<Duration>>,
}

/// `[token_cache]`.
#[derive(Debug)]
pub(super) struct TokenCache {
    pub(super) entries: At<usize>,
    pub(super) ttl: At<Duration>,
}

/// `[[identity]]`.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) from: Option<At<NameSource>>,
    pub(super) matches: Option<Vec<At<String>>>,
    pub(super) principal: At<Template>,
    pub(super) roles: Option<At<Vec<At<String>>>>,
    pub(super) tenant: Option<At<Template>>,
}

/// `[[upstream]]`.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: Option<At<String>>,
    pub(super) servers: Option<Vec<At<Endpoint>>>,
    pub(super) protocol: At<UpstreamProtocol>,
    pub(super) balance: At<Balance>,
    pub(super) connect_timeout: At<Duration>,
    pub(super) response_timeout: At<Duration>,
    pub(super) idle_timeout: At<Duration>,
    pub(super) max_requests: At<usize>,
    pub(super) max_waiting: At<usize>,
    pub(super) health: Option<HealthFile>,
    pub(super) tls: Option<UpstreamTlsFile>,
}

/// `[upstream.health]`.
#[derive(Debug)]
pub(super) struct HealthFile {
    pub(super) path: Option<At<String>>,
    pub(super) interval: At<Duration>,
    pub(super) timeout: At<Duration>,
    pub(super) healthy: At<u32>,
    pub(super) unhealthy: At<u32>,
}

/// `[upstream.tls]`.
#[derive(Debug)]
pub(super) struct UpstreamTlsFile {
    pub(super) place: Place,
    /// `system`, or a file.
    pub(super) ca: Option<At<PathBuf>>,
    pub(super) certificate: Option<At<PathBuf>>,
    pub(super) private_key: Option<At<PathBuf>>,
    pub(super) server_name: Option<At<String>>,
}

/// `[[route]]`.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) place: Place,
    pub(super) name: Option<At<String>>,
    pub(super) hosts: Option<Vec<String>>,
    pub(super) path: Option<At<String>>,
    pub(super) methods: Option<Vec<At<http::Method>>>,
    pub(super) upstream: Option<At<String>>,
    pub(super) require: Option<At<Vec<At<Proof>>>>,
    pub(super) scopes: Option<At<Vec<At<String>>>>,
    pub(super) bound_token: At<bool>,
    pub(super) priority: At<Priority>,
    pub(super) roles: Option<At<Vec<At<String>>>>,
    pub(super) principals: Option<At<Vec<At<Pattern>>>>,
    pub(super) sources: Option<At<Vec<At<IpNet>>>>,
    pub(super) hours: Option<At<Option<Hours>>>,
    pub(super) pass_authorization: At<bool>,
    pub(super) limits: Option<Vec<At<String>>>,
}

/// `[xdp]`.
#[derive(Debug)]
pub(super) struct Xdp {
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) mode: At<Mode>,
    pub(super) enforce: At<bool>,
    pub(super) ports: Option<At<Vec<At<u16>>>>,
    pub(super) management: At<Vec<At<Service>>>,
    pub(super) allow: Vec<At<IpNet>>,
    pub(super) deny: Vec<At<IpNet>>,
    pub(super) packets: Option<RateFile>,
    pub(super) connections: Option<RateFile>,
    pub(super) bytes: Option<ByteRateFile>,
    pub(super) new_sources: Option<RateFile>,
    pub(super) max_sources: At<u32>,
    pub(super) pin: At<PathBuf>,
}

/// `[xdp.packets]`, `[xdp.connections]` and `[xdp.new_sources]`; a value that is missing or refused was noted.
#[derive(Debug)]
pub(super) struct RateFile {
    pub(super) rate_per_s: Option<At<u32>>,
    pub(super) burst: Option<At<u32>>,
}

/// `[xdp.bytes]`; a value that is missing or refused was noted.
#[derive(Debug)]
pub(super) struct ByteRateFile {
    pub(super) bytes_per_s: Option<At<u64>>,
    pub(super) burst_bytes: Option<At<u64>>,
}

/// `[bans]`.
#[derive(Debug)]
pub(super) struct Bans {
    pub(super) enabled: At<bool>,
    pub(super) threshold: At<u32>,
    pub(super) half_life: At<Duration>,
    pub(super) ladder: Vec<At<Duration>>,
    pub(super) never: Vec<IpNet>,
}

/// `[host]`.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) temperature_warn: At<i32>,
    pub(super) temperature_critical: At<i32>,
    pub(super) clock_warn: At<Duration>,
    pub(super) clock_critical: At<Duration>,
    pub(super) chrony: At<Option<SocketAddr>>,
    pub(super) sysfs: At<PathBuf>,
}

/// `[admin]`.
#[derive(Debug)]
pub(super) struct Admin {
    pub(super) socket: At<PathBuf>,
    pub(super) group: Option<At<String>>,
    pub(super) metrics: At<SocketAddr>,
    pub(super) allow: At<Vec<IpNet>>,
}

/// `[log]`.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) format: At<LogFormat>,
    pub(super) access: At<bool>,
}

/// Reads all tables and notes every value that is not of its kind.
pub(super) fn read(root: &Table, report: &Report) -> File {
    let root = Section::new("", root, Place::start_of(0), report);
    // A table that is not written is read as an empty one, so that there is one place for defaults.
    let nothing = Table::new();
    let table = |key: &'static str| {
        let empty = || Section::new(key, &nothing, Place::start_of(0), report);
        root.child(key, key).unwrap_or_else(empty)
    };
    File {
        server: server(&table("server")),
        listeners: listeners(&root),
        issuers: root.children("issuer", "issuer").iter().map(issuer).collect(),
        token_cache: token_cache(&table("token_cache")),
        identities: root.children("identity", "identity").iter().map(identity).collect(),
        revoked_tokens: revocation(&table("revocation")),
        upstreams: root.children("upstream", "upstream").iter().map(upstream).collect(),
        routes: routes(&root, report),
        limits: limit::limits(&root),
        xdp: xdp(&table("xdp")),
        clients: clients::read(&table("clients")),
        bans: bans(&table("bans")),
        host: host(&table("host")),
        admin: admin(&table("admin")),
        log: log(&table("log")),
    }
}

fn server(section: &Section<'_>) -> Server {
    let drain = Between {
        min: Duration::ZERO,
        max: HOUR,
        why: "whoever stops a service does not wait for longer",
    };
    Server {
        workers: section.or("workers", integer(0..=1024, "0 is one for each CPU"), 0),
        drain_timeout: section.or("drain_timeout", text(duration_between(drain)), 30 * SECOND),
        drain_delay: section.or("drain_delay", text(duration_between(drain)), Duration::ZERO),
        max_connections: section.or(
            "max_connections",
            integer(1..=1_048_576, "each takes a file, and a process has at most 1048576"),
            100_000,
        ),
        max_connections_per_source: section.or(
            "max_connections_per_source",
            integer(1..=1_048_576, "as many as max_connections is no bound for each"),
            1_000,
        ),
        backlog: section.or(
            "backlog",
            integer(1..=65_535, "the kernel counts them in sixteen bits"),
            4_096,
        ),
        cpu_steering: section.or("cpu_steering", boolean, false),
    }
}

fn listeners(root: &Section<'_>) -> Vec<Listener> {
    let sections = root.children("listener", "listener");
    if sections.is_empty() {
        root.missing_table("listener", "without one nothing is served");
    }
    sections.iter().map(listener).collect()
}

fn listener(section: &Section<'_>) -> Listener {
    if !section.is_set("tls") {
        section.missing_table("listener.tls", "every listener speaks TLS");
    }
    Listener {
        name: section.must("name", text(value::name)),
        address: section.must("address", text(value::socket_address)),
        protocols: section
            .filled("protocols", text(value::protocol))
            .map(|protocols| At { place: protocols.place, value: values(protocols.value) }),
        proxy_protocol: section.or(
            "proxy_protocol",
            text(value::proxy_protocol),
            ProxyProtocol::Off,
        ),
        trusted_proxies: section.list_or_empty("trusted_proxies", text(value::network)),
        tls: section.child("tls", "listener.tls").map(|section| tls(&section)),
    }
}

fn tls(section: &Section<'_>) -> Tls {
    let clients = clients(section, "listener.tls");
    if clients.auth.as_ref().is_none_or(|auth| auth.value != ClientAuth::Off) {
        section.required("client_ca");
    }
    let sni = section.children("sni", "listener.tls.sni");
    Tls {
        certificate: section.must("certificate", text(value::path)),
        private_key: section.must("private_key", text(value::path)),
        clients,
        sessions: section.or(
            "sessions",
            integer(0..=1_000_000, "each takes about three kilobytes; 0 remembers none"),
            20_000,
        ),
        sni: sni.iter().map(sni_table).collect(),
    }
}

fn sni_table(section: &Section<'_>) -> Sni {
    // One without the other would be a certificate with the listener's key.
    if section.is_set("certificate") || section.is_set("private_key") {
        section.required("certificate");
        section.required("private_key");
    }
    Sni {
        names: section.must_fill("names", text(value::server_name)),
        certificate: section.maybe("certificate", text(value::path)),
        private_key: section.maybe("private_key", text(value::path)),
        clients: clients(section, "listener.tls.sni"),
    }
}

fn clients(section: &Section<'_>, path: &'static str) -> Clients {
    Clients {
        path,
        auth: section.maybe("client_auth", text(value::client_auth)),
        ca: section.maybe("client_ca", text(value::path)),
        crl: section.list("client_crl", text(value::path)),
        crl_expired: section.maybe("crl_expired", text(value::crl_expired)),
        max_chain_depth: section.maybe(
            "max_chain_depth",
            integer(0..=6, "the intermediates between leaf and anchor that are looked at"),
        ),
        retired: section.list("retired_ca", text(value::path)),
    }
}

fn issuer(section: &Section<'_>) -> Issuer {
    let leeway = Between {
        min: Duration::ZERO,
        max: 5 * MINUTE,
        why: "clocks that differ by more are to be put right, not allowed for",
    };
    let lifetime =
        Between { min: SECOND, max: 366 * DAY, why: "a token that never ends is a password" };
    Issuer {
        name: section.must("name", text(value::name)),
        issuer: section.must("issuer", text(value::words)),
        audiences: section.must_fill("audiences", text(value::words)).map(values),
        algorithms: section.filled("algorithms", text(value::algorithm)).map_or_else(
            || [Algorithm::Rs256, Algorithm::Es256].map(|value| section.default(value)).to_vec(),
            |list| list.value,
        ),
        keys: keys(section),
        leeway: section.or("leeway", text(duration_between(leeway)), MINUTE),
        max_lifetime: section.or("max_lifetime", text(duration_between(lifetime)), HOUR),
        client_id_claims: section.filled("client_id_claims", text(value::words)).map_or_else(
            || ["client_id", "azp", "sub"].map(String::from).to_vec(),
            |list| values(list.value),
        ),
    }
}

fn keys(section: &Section<'_>) -> Keys {
    let every = Between {
        min: SECOND,
        max: HOUR,
        why: "a key that the issuer took back is believed until then",
    };
    let cooldown = Between {
        min: SECOND,
        max: HOUR,
        why: "a new key is not known until then, and every stranger can ask that often",
    };
    let stale = Between {
        min: SECOND,
        max: 30 * DAY,
        why: "what is not confirmed for longer cannot be believed",
    };
    let (file, url) = (section.is_set("jwks_file"), section.is_set("jwks_url"));
    if !file && !url && !section.is_set("discovery_url") {
        section.missing("jwks_file");
    }
    Keys {
        file: section.maybe("jwks_file", text(value::path)),
        url: section.maybe("jwks_url", text(value::url)),
        discovery_url: section.maybe("discovery_url", text(value::url)),
        authorities: section.maybe("ca", text(value::path)),
        addresses: section.list_or_empty("addresses", text(value::server_address)),
        refresh: section.maybe("refresh", text(duration_between(every))),
        cooldown: section.maybe("cooldown", text(duration_between(cooldown))),
        idp_lost: section.maybe("idp_lost", text(value::idp_lost)),
        max_stale: section.maybe("max_stale", text(duration_between(stale))),
    }
}

fn token_cache(section: &Section<'_>) -> TokenCache {
    let ttl = Between { min: SECOND, max: DAY, why: "entries = 0 turns the cache off" };
    TokenCache {
        entries: section.or(
            "entries",
            integer(0..=16_777_216, "an entry takes about a kilobyte of memory"),
            65_536,
        ),
        ttl: section.or("ttl", text(duration_between(ttl)), MINUTE),
    }
}

fn identity(section: &Section<'_>) -> Identity {
    Identity {
        from: section.must("from", text(value::name_source)),
        matches: section.must_one_or_more("match", text(value::words)),
        principal: section.or("principal", text(value::template), Template::value()),
        roles: section.list_or_empty("roles", text(value::role)),
        tenant: section.maybe("tenant", text(value::template)),
    }
}

fn revocation(section: &Section<'_>) -> Option<At<PathBuf>> {
    section.not_yet("store", Neutral::Empty, "leave it out and list revoked tokens in tokens_file");
    section.maybe("tokens_file", text(value::path))
}

fn upstream(section: &Section<'_>) -> Upstream {
    let connect = Between {
        min: Duration::from_millis(1),
        max: MINUTE,
        why: "the client is waiting meanwhile",
    };
    let response = Between {
        min: Duration::from_millis(1),
        max: HOUR,
        why: "a request holds a connection on both sides meanwhile",
    };
    let idle = Between {
        min: Duration::from_millis(1),
        max: DAY,
        why: "a silent stream holds a connection on both sides meanwhile",
    };
    Upstream {
        name: section.must("name", text(value::name)),
        servers: section.must_fill("servers", text(value::endpoint)),
        protocol: section.or("protocol", text(value::upstream_protocol), UpstreamProtocol::Auto),
        balance: section.or("balance", text(value::balance), Balance::RoundRobin),
        connect_timeout: section.or("connect_timeout", text(duration_between(connect)), 2 * SECOND),
        response_timeout: section.or(
            "response_timeout",
            text(duration_between(response)),
            30 * SECOND,
        ),
        idle_timeout: section.or("idle_timeout", text(duration_between(idle)), 5 * MINUTE),
        max_requests: section.or(
            "max_requests",
            integer(1..=1_000_000, "each takes a connection or a stream of one"),
            1_000,
        ),
        max_waiting: section.or(
            "max_waiting",
            integer(0..=1_000_000, "each is a client that waits; 0 lets none wait"),
            1_000,
        ),
        health: section.child("health", "upstream.health").map(|section| health(&section)),
        tls: section.child("tls", "upstream.tls").map(|section| upstream_tls(&section)),
    }
}

fn health(section: &Section<'_>) -> HealthFile {
    let interval = Between {
        min: Duration::from_millis(100),
        max: HOUR,
        why: "a server that is down gets requests until then",
    };
    let timeout = Between {
        min: Duration::from_millis(1),
        max: MINUTE,
        why: "a server that is down gets requests until then",
    };
    let row = || integer(1..=100, "so many answers in a row");
    HealthFile {
        path: section.must("path", text(value::probe_path)),
        interval: section.or("interval", text(duration_between(interval)), 5 * SECOND),
        timeout: section.or("timeout", text(duration_between(timeout)), 2 * SECOND),
        healthy: section.or("healthy", row(), 2),
        unhealthy: section.or("unhealthy", row(), 3),
    }
}

fn upstream_tls(section: &Section<'_>) -> UpstreamTlsFile {
    // One without the other proves nothing.
    if section.is_set("certificate") || section.is_set("private_key") {
        section.required("certificate");
        section.required("private_key");
    }
    UpstreamTlsFile {
        place: section.place(),
        ca: section.maybe("ca", text(value::path)),
        certificate: section.maybe("certificate", text(value::path)),
        private_key: section.maybe("private_key", text(value::path)),
        server_name: section.maybe("server_name", text(value::host)),
    }
}

fn routes(root: &Section<'_>, report: &Report) -> Vec<Route> {
    let sections = root.children("route", "route");
    if sections.is_empty() {
        root.missing_table("route", "without one every request is refused");
    }
    sections.iter().map(|section| route(section, report)).collect()
}

fn route(section: &Section<'_>, report: &Report) -> Route {
    if !section.is_set("require") {
        report.problem(
            section.place(),
            Kind::Missing,
            "[[route]] has no require; add what must be proven, as in require = [\"certificate\", \
             \"token\"], there is no default that could let somebody in by mistake",
        );
    }
    Route {
        place: section.place(),
        name: section.must("name", text(value::name)),
        hosts: section.list_or_empty("hosts", text(value::host)).map(|list| values(list.value)),
        path: section.must("path", text(value::route_path)),
        methods: section.list_or_empty("methods", text(value::method)).map(|list| list.value),
        upstream: section.must("upstream", text(value::name)),
        require: section.list("require", text(value::proof)),
        scopes: section.list_or_empty("scopes", text(value::scope)),
        bound_token: section.or("bound_token", boolean, false),
        priority: section.or("priority", text(value::priority), Priority::Normal),
        roles: section.list_or_empty("roles", text(value::role)),
        principals: section.list_or_empty("principals", text(value::pattern)),
        sources: section.list_or_empty("sources", text(value::network)),
        hours: if section.is_set("hours") {
            section.maybe("hours", text(value::hours))
        } else {
            Some(At { value: None, place: section.place() })
        },
        pass_authorization: section.or("pass_authorization", boolean, false),
        limits: limit::of_route(section),
    }
}

fn xdp(section: &Section<'_>) -> Xdp {
    section.not_yet("ipv6_prefix", Neutral::Number(64), "write 64 or leave it out");
    let ssh = || Service { port: 22, transport: Transport::Tcp };
    let default = |value| At { value, place: section.place() };
    let rate = |key, path, admitted, (per_s, burst)| {
        let written = section.child(key, path).map(|section| RateFile {
            rate_per_s: section.must("rate", text(value::rate_per_s)),
            burst: section.must("burst", integer(1..=1_000_000_000, admitted)),
        });
        let at = |value| Some(At { value, place: section.place() });
        Some(written.unwrap_or_else(|| RateFile { rate_per_s: at(per_s), burst: at(burst) }))
    };
    Xdp {
        interfaces: section
            .list_or_empty("interfaces", text(value::interface))
            .map(|list| values(list.value)),
        mode: section.or("mode", text(value::xdp_mode), Mode::Auto),
        enforce: section.or("enforce", boolean, false),
        ports: section.list_or_empty("ports", integer(1..=65535, "a port of TCP and UDP")),
        management: section
            .list("management", text(value::service))
            .unwrap_or_else(|| default(vec![At { value: ssh(), place: section.place() }])),
        allow: section.list("allow", text(value::network)).map_or_else(Vec::new, |list| list.value),
        deny: section.list("deny", text(value::network)).map_or_else(Vec::new, |list| list.value),
        packets: rate(
            "packets",
            "xdp.packets",
            "packets admitted at once after a pause",
            (20_000, 40_000),
        ),
        connections: rate(
            "connections",
            "xdp.connections",
            "connections admitted at once after a pause",
            (100, 200),
        ),
        bytes: section.child("bytes", "xdp.bytes").map(|section| ByteRateFile {
            bytes_per_s: section.must("rate", text(value::bytes_per_s)),
            burst_bytes: section.must("burst", text(value::bytes)),
        }),
        new_sources: section.child("new_sources", "xdp.new_sources").map(|section| RateFile {
            rate_per_s: section.must("rate", text(value::rate_per_s)),
            burst: section.must(
                "burst",
                integer(1..=1_000_000_000, "new sources admitted at once after a pause"),
            ),
        }),
        max_sources: section.or(
            "max_sources",
            integer(1..=16_777_216, "the kernel keeps memory for all of them"),
            1_000_000,
        ),
        pin: section.or("pin", text(value::absolute_path), PathBuf::from("/sys/fs/bpf/portcullis")),
    }
}

fn bans(section: &Section<'_>) -> Bans {
    let half_life =
        Between { min: SECOND, max: DAY, why: "this is how fast a source's past is forgotten" };
    let rung = Between {
        min: SECOND,
        max: 366 * DAY,
        why: "addresses change hands; for ever belongs in [xdp].deny",
    };
    let ladder = section.filled("ladder", text(duration_between(rung)));
    let default = || {
        let at = |value| At { value, place: section.place() };
        [MINUTE, 10 * MINUTE, HOUR, DAY].map(at).to_vec()
    };
    Bans {
        enabled: section.or("enabled", boolean, true),
        threshold: section.or(
            "threshold",
            integer(1..=1_000_000, "at 0 everybody would be banned; enabled = false bans nobody"),
            20,
        ),
        half_life: section.or("half_life", text(duration_between(half_life)), 30 * SECOND),
        ladder: ladder.map_or_else(default, |ladder| ladder.value),
        never: section
            .list("never", text(value::network))
            .map_or_else(Vec::new, |list| values(list.value)),
    }
}

fn host(section: &Section<'_>) -> Host {
    let celsius = || integer(0..=150, "degrees Celsius, as the sensors tell them");
    let error = || {
        text(duration_between(Between {
            min: Duration::from_millis(1),
            max: HOUR,
            why: "no clock is kept better than the one, and by the other every token is wrong",
        }))
    };
    let chrony = |written: &str| match written {
        "" => Ok(None),
        address => value::server_address(address).map(Some),
    };
    let (temperature, clock) = (
        section.child("cpu_temperature", "host.cpu_temperature"),
        section.child("clock", "host.clock"),
    );
    let degrees = |key, default| match &temperature {
        Some(section) => section.or(key, celsius(), default),
        None => section.default(default),
    };
    let apart = |key, default| match &clock {
        Some(section) => section.or(key, error(), default),
        None => section.default(default),
    };
    Host {
        temperature_warn: degrees("warn", 80),
        temperature_critical: degrees("critical", 95),
        clock_warn: apart("warn", Duration::from_millis(500)),
        clock_critical: apart("critical", 30 * SECOND),
        // Where chronyd answers whoever is on this host.
        chrony: section.or("chrony", text(chrony), Some(([127, 0, 0, 1], 323).into())),
        sysfs: section.or("sysfs", text(value::absolute_path), PathBuf::from("/sys")),
    }
}

fn admin(section: &Section<'_>) -> Admin {
    let loopback = || {
        let v4 = IpNet::new_assert([127, 0, 0, 0].into(), 8);
        let v6 = IpNet::new_assert([0, 0, 0, 0, 0, 0, 0, 1u16].into(), 128);
        At { value: vec![v4, v6], place: section.place() }
    };
    Admin {
        socket: section.or(
            "socket",
            text(value::path),
            PathBuf::from("/run/portcullis/admin.sock"),
        ),
        group: section.maybe("group", text(value::name)),
        metrics: section.or(
            "metrics",
            text(value::socket_address),
            SocketAddr::from(([127, 0, 0, 1], 9090)),
        ),
        allow: section
            .list("allow", text(value::network))
            .map_or_else(loopback, |list| At { value: values(list.value), place: list.place }),
    }
}

fn log(section: &Section<'_>) -> Log {
    Log {
        format: section.or("format", text(value::log_format), LogFormat::Json),
        access: section.or("access", boolean, true),
    }
}

/// The values without their places.
fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|at| at.value).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            fake::{Fake, problem_lines},
            schema,
            tree::Entry,
        },
        *,
    };

    /// One main file with only `[table] key = value` in it; what is wrong at that value.
    fn problems_of(known: &schema::Known, key: &str, value: &str) -> Vec<String> {
        let header = match known.path {
            "listener.tls" => "[[listener]]\n[listener.tls]".to_owned(),
            "" => String::new(),
            _ => known.header.to_owned(),
        };
        let text = format!("{header}\n{key} = {value}\n");
        let line = text.lines().count() as u32;
        let problems = Fake::new().load(&text).unwrap_err();
        problems.iter().filter(|p| p.line() == line).map(|p| p.text().to_owned()).collect()
    }

    /// No key is known, accepted and then ignored: a fraction is the value of none.
    #[test]
    fn every_key_that_is_known_is_read() {
        for known in schema::TABLES {
            for (key, _) in known.keys {
                let problems = problems_of(known, key, "1.5");
                let read = problems.iter().any(|problem| {
                    problem.contains("is a fraction, not") || problem.contains("not supported yet")
                });
                assert!(read, "{} {key}: {problems:?}", known.header);
            }
        }
    }

    #[test]
    fn every_example_in_a_message_is_good() {
        for known in schema::TABLES {
            for (key, example) in known.keys.iter().filter(|(_, example)| !example.is_empty()) {
                let mut problems = problems_of(known, key, example);
                // Files and names that the example speaks of, and limits of what it stands with.
                problems.retain(|problem| {
                    !problem.contains("does not exist")
                        && !problem.contains("is no [[upstream]]")
                        && !problem.contains("whose tokens could")
                        && !problem.contains("are a token's")
                });
                assert_eq!(problems, Vec::<String>::new(), "{} {key} = {example}", known.header);
            }
        }
    }

    #[test]
    fn every_table_can_be_written_as_another_type_and_is_refused() {
        for (text, expected) in [
            ("server = 4", "1:10: server is an integer, not a table"),
            ("[[server]]", "1:1: [server] is one table; write it once, in single brackets"),
            ("listener = true", "1:12: listener is true or false, not a table"),
            ("listener = [1]", "1:13: listener is an integer, not a table"),
            ("[route]", "1:1: there can be several of these; write the header as [[route]]"),
            (
                "[xdp]\npackets = []",
                "2:11: xdp.packets is a list, not a table; write it as in \
                                     packets = { rate = \"20000/s\", burst = 40000 }",
            ),
            (
                "[[issuer]]\naudiences = \"a\"",
                "2:13: issuer.audiences is a string, not a list; \
                                               write it as in audiences = [\"orders-api\"]",
            ),
            (
                "[[issuer]]\naudiences = []",
                "2:13: issuer.audiences is empty; write at least one, \
                                            as in audiences = [\"orders-api\"]",
            ),
            (
                "[[issuer]]\naudiences = [\"a\", 1979-05-27]",
                "2:19: issuer.audiences is a date, not \
                                                             a string; write it as in audiences = \
                                                             [\"orders-api\"]",
            ),
            (
                "[[issuer]]\naudiences = [\"a\", \"a\"]",
                "2:19: issuer.audiences has this entry \
                                                         twice; take one of them out",
            ),
            (
                "[server]\nworkers = 99999999999999999999",
                "2:11: server.workers is more than 64 \
                                                           bits; write a number from 0 to 1024: 0 \
                                                           is one for each CPU",
            ),
            (
                "[server]\nworkers = -1",
                "2:11: server.workers is -1; write a number from 0 to \
                                        1024: 0 is one for each CPU",
            ),
            (
                "[bans]\nthreshold = 0",
                "2:13: bans.threshold is 0; write a number from 1 to \
                                       1000000: at 0 everybody would be banned; enabled = false \
                                       bans nobody",
            ),
        ] {
            let problems = problem_lines(&Fake::new().load(text).unwrap_err());
            assert!(problems.iter().any(|problem| problem == expected), "{text}: {problems:#?}");
        }
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_except_where_it_says_what_holds_anyway() {
        let table: &[(&str, &[(&str, bool)])] = &[
            ("[revocation]\nstore", &[("\"\"", true), ("\"redis://a\"", false)]),
            ("[xdp]\nipv6_prefix", &[("64", true), ("56", false), ("0", false)]),
        ];
        for &(key, values) in table {
            for (value, accepted) in values {
                let problems = Fake::new().load(&format!("{key} = {value}\n")).unwrap_err();
                let refused = problems.iter().any(|problem| problem.kind() == Kind::NotSupported);
                assert_eq!(!refused, *accepted, "{key} = {value}: {problems}");
            }
        }
    }

    #[test]
    fn a_section_refuses_keys_as_it_is_opened() {
        let report = Report::default();
        report.begin_file("main.toml".into());
        let place = |line| Place { file: 0, line, column: 1 };
        let entry = |line| {
            let node = super::super::tree::Node {
                place: place(line),
                value: super::super::tree::Value::Boolean(true),
            };
            Entry { key: place(line), node }
        };
        let long = "x".repeat(100);
        let table: Table = [("formt", 1), ("workers", 2), ("a\u{1b}[0m", 3), (&long, 4)]
            .into_iter()
            .map(|(key, line)| (key.to_owned(), entry(line)))
            .collect();
        Section::new("log", &table, place(1), &report);
        let problems = report.conclude(None::<()>).unwrap_err();
        assert_eq!(
            problem_lines(&problems),
            [
                "1:1: unknown key \"formt\" in [log]; did you mean format?".to_owned(),
                "2:1: \"workers\" does not belong in [log]; move it to [server]".to_owned(),
                "3:1: unknown key \"a\\u{1b}[0m\" in [log]; there can be format, access".to_owned(),
                format!(
                    "4:1: unknown key \"{}…\" in [log]; there can be format, access",
                    "x".repeat(80)
                ),
            ]
        );
    }
}
