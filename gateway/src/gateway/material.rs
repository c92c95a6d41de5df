//! Reads the files that a configuration names into the snapshot that requests are served by.

use std::{
    collections::BTreeSet,
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{
    config::{
        self, Config, Content, Disk, Files, KeySource, Listener, MATERIAL_MAX_BYTES,
        REVOCATION_LIST_MAX_BYTES, REVOKED_TOKENS_MAX_BYTES, TlsClients, TlsSite,
    },
    fetch::system_authorities,
    identity::{
        certificate::{
            Anchors, Hosts, Revocations, Trust, name::shown_bytes, rsa_bits, server_key, validity,
        },
        token::{Issuers, KeySet, Keys, RevokedTokens, TokenRules},
    },
    policy::{
        limit::Limiters,
        route::{Route, Routes},
    },
    snapshot::{Listeners, Snapshot},
    time,
    tls::{Clients, ListenerTls, ServerCertificate, Site, Sites, alpn, sessions::Sessions},
    upstream::{Upstream, tls::ClientTls},
};

/// A file that is not what the configuration takes it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaterialError {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it.
    pub text: String,
}

impl fmt::Display for MaterialError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.file.display(), self.text)
    }
}

/// Tickets after each handshake: each is good once, and a client may open two connections at a time.
const TICKETS: usize = 2;

/// Every file that a snapshot is made from.
pub fn files(config: &Config) -> BTreeSet<PathBuf> {
    let sites = config.listeners.iter().flat_map(|listener| &listener.tls.sites);
    let of_sites = sites.flat_map(|site| {
        let clients = site.clients.iter().flat_map(trust_files);
        certificate_files(site).chain(clients)
    });
    let of_upstreams = config.upstreams.iter().flat_map(upstream_files);
    let others = issuer_files(config).chain(revoked_file(config)).chain(of_upstreams);
    of_sites.chain(others).cloned().collect()
}

fn certificate_files(site: &TlsSite) -> impl Iterator<Item = &PathBuf> {
    [&site.certificate, &site.private_key].into_iter()
}

fn trust_files(clients: &TlsClients) -> impl Iterator<Item = &PathBuf> {
    std::iter::once(&clients.ca).chain(&clients.crl).chain(&clients.retired_ca)
}

fn issuer_files(config: &Config) -> impl Iterator<Item = &PathBuf> {
    config.issuers.iter().filter_map(|issuer| match &issuer.keys {
        KeySource::File(file) => Some(file),
        KeySource::Remote(_) => None,
    })
}

fn upstream_files(upstream: &config::Upstream) -> impl Iterator<Item = &PathBuf> {
    upstream.tls.iter().flat_map(|tls| {
        let pair = tls.identity.iter().flat_map(|(chain, key)| [chain, key]);
        tls.ca.iter().chain(pair)
    })
}

fn revoked_file(config: &Config) -> impl Iterator<Item = &PathBuf> {
    config.revoked_tokens.iter()
}

/// Reads everything anew.
///
/// # Errors
/// Every file that is not good.
pub fn load_snapshot(config: &Config, generation: u64) -> Result<Snapshot, Vec<MaterialError>> {
    let mut errors = Vec::new();
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .filter_map(|listener| {
            let sites: Vec<_> = listener
                .tls
                .sites
                .iter()
                .map(|site| {
                    let certificate = keep(server_certificate(site), &mut errors);
                    let clients = site.clients.as_ref();
                    let trust = clients.map(|clients| keep(client_trust(clients), &mut errors));
                    let trust = match trust {
                        Some(trust) => Some(Arc::new(trust?)),
                        None => None,
                    };
                    Some(tls_site(site, Arc::new(certificate?), trust))
                })
                .collect();
            let room = NonZeroUsize::new(listener.tls.sessions);
            let sessions = room.map(Sessions::new).map(Arc::new);
            listener_tls(listener, sites.into_iter().collect::<Option<_>>()?, sessions)
        })
        .collect();
    let issuers = token_issuers(config, generation).map_err(|more| errors.extend(more)).ok();
    let revoked = revoked_tokens(config).map_err(|more| errors.extend(more)).ok();
    let mut upstreams = Vec::new();
    for written in &config.upstreams {
        let tls = written.tls.as_ref().map(|tls| keep(client_tls(written, tls), &mut errors));
        upstreams.push(upstream(written, tls.flatten().map(Arc::new)));
    }
    match (issuers, revoked) {
        (Some(issuers), Some(revoked)) if errors.is_empty() => {
            let tokens = (Arc::new(issuers), Arc::new(revoked));
            Ok(snapshot(config, generation, Listeners::new(listeners), tokens, upstreams))
        }
        _ => Err(errors),
    }
}

/// What became of files that changed.
pub struct Refreshed {
    /// The next snapshot; `None` when none of the changes was good.
    pub snapshot: Option<Snapshot>,
    /// Every file that was read again because one of its part had changed.
    pub read: BTreeSet<PathBuf>,
    /// Those that are not good; what they are a part of stays as it was.
    pub errors: Vec<MaterialError>,
}

/// Reads again what the changed files are a part of: a certificate with its key, the authorities of
/// a listener with their revocation lists, the keys of all issuers. Each part is taken or left as a
/// whole, and none waits for another: a spoilt list does not keep a new certificate from being served.
pub fn refresh(
    config: &Config,
    before: &Snapshot,
    changed: &BTreeSet<PathBuf>,
    generation: u64,
) -> Refreshed {
    let mut part = Parts { changed, read: BTreeSet::new(), errors: Vec::new(), renewed: 0 };
    let mut listeners = Vec::new();
    // A reload replaces configuration and snapshot together, so these are the same listeners.
    for (listener, before) in config.listeners.iter().zip(before.listeners.configured()) {
        let mut sites = Vec::new();
        for (site, before) in listener.tls.sites.iter().zip(before.sites.iter()) {
            let certificate = part.renewed(
                certificate_files(site),
                || server_certificate(site).map_err(|error| vec![error]),
                &before.certificate,
            );
            let clients = site.clients.as_ref().zip(before.clients.as_ref());
            let trust = clients.map(|(clients, before)| {
                part.renewed(
                    trust_files(clients),
                    || client_trust(clients).map_err(|error| vec![error]),
                    &before.trust,
                )
            });
            sites.push(tls_site(site, certificate, trust));
        }
        listeners.extend(listener_tls(listener, sites, before.sessions.clone()));
    }
    let issuers =
        part.renewed(issuer_files(config), || token_issuers(config, generation), &before.issuers);
    let revoked =
        part.renewed(revoked_file(config), || revoked_tokens(config), &before.revoked_tokens);
    let mut upstreams = Vec::new();
    for (written, before) in config.upstreams.iter().zip(&before.upstreams) {
        let tls = written.tls.as_ref().zip(before.tls.as_ref()).map(|(tls, before)| {
            let read = || client_tls(written, tls).map_err(|error| vec![error]);
            part.renewed(upstream_files(written), read, before)
        });
        upstreams.push(upstream(written, tls));
    }
    let Parts { read, errors, renewed, .. } = part;
    let places = before.listeners.places();
    let listeners = before.listeners.placed(&Listeners::new(listeners), places);
    let next = || Snapshot {
        limits: before.limits.clone(),
        ..snapshot(config, generation, listeners, (issuers, revoked), upstreams)
    };
    Refreshed { snapshot: (renewed > 0).then(next), read, errors }
}

/// The parts of a snapshot that is being refreshed.
struct Parts<'c> {
    changed: &'c BTreeSet<PathBuf>,
    read: BTreeSet<PathBuf>,
    errors: Vec<MaterialError>,
    renewed: usize,
}

impl Parts<'_> {
    /// The part made of these files: read again if one of them has changed and all are good, else
    /// as before.
    fn renewed<'p, T>(
        &mut self,
        files: impl Iterator<Item = &'p PathBuf>,
        read: impl FnOnce() -> Result<T, Vec<MaterialError>>,
        before: &Arc<T>,
    ) -> Arc<T> {
        let files: Vec<&PathBuf> = files.collect();
        if !files.iter().any(|file| self.changed.contains(*file)) {
            return before.clone();
        }
        self.read.extend(files.into_iter().cloned());
        match read() {
            Ok(part) => {
                self.renewed += 1;
                Arc::new(part)
            }
            Err(errors) => {
                self.errors.extend(errors);
                before.clone()
            }
        }
    }
}

fn snapshot(
    config: &Config,
    generation: u64,
    listeners: Listeners,
    (issuers, revoked_tokens): (Arc<Issuers>, Arc<RevokedTokens>),
    upstreams: Vec<Upstream>,
) -> Snapshot {
    Snapshot {
        generation,
        listeners,
        issuers,
        identities: config.identities.clone(),
        revoked_tokens,
        routes: routes(config),
        limits: Limiters::new(&config.limits, time::monotonic()),
        upstreams,
        clients: Arc::new(config.clients.clone()),
        access_log: config.log.access,
    }
}

/// Reads the issuers' keys, as far as they are in files; the others are put in when they come.
///
/// # Errors
/// Every file that is not good.
pub fn token_issuers(config: &Config, generation: u64) -> Result<Issuers, Vec<MaterialError>> {
    let mut errors = Vec::new();
    let issuers: Vec<_> = config
        .issuers
        .iter()
        .filter_map(|issuer| {
            let keys = match &issuer.keys {
                KeySource::File(file) => keep(keys_of_file(file, &issuer.rules), &mut errors)?,
                KeySource::Remote(_) => Keys::Unavailable,
            };
            Some((issuer.rules.clone(), keys))
        })
        .collect();
    if errors.is_empty() { Ok(Issuers::with_keys(issuers, generation)) } else { Err(errors) }
}

fn keys_of_file(file: &Path, rules: &TokenRules) -> Result<Keys, MaterialError> {
    let content = contents(file, MATERIAL_MAX_BYTES)?;
    if rules.algorithms.iter().any(|algorithm| algorithm.is_symmetric()) {
        config::private(&content, Disk::new().daemon()).map_err(|open| wrong(file, open))?;
    }
    let keys = KeySet::parse(&content.bytes, &rules.algorithms);
    Ok(Keys::Known(Arc::new(keys.map_err(|error| wrong(file, error))?)))
}

/// Reads the list of revoked tokens, where there is one.
///
/// # Errors
/// When it is not good.
pub fn revoked_tokens(config: &Config) -> Result<RevokedTokens, Vec<MaterialError>> {
    let Some(path) = &config.revoked_tokens else { return Ok(RevokedTokens::default()) };
    let list = contents(path, REVOKED_TOKENS_MAX_BYTES).and_then(|content| {
        RevokedTokens::parse(&content.bytes).map_err(|error| wrong(path, error))
    });
    let list = list.map_err(|error| vec![error])?;
    let known = |issuer: &str| config.issuers.iter().any(|known| known.rules.issuer == issuer);
    for issuer in list.issuers().filter(|issuer| !known(issuer)) {
        tracing::warn!(
            file = %path.display(),
            issuer = shown_bytes(issuer.as_bytes()),
            "revoked tokens of an issuer that no [[issuer]] has: they revoke nothing"
        );
    }
    Ok(list)
}

/// `None` without a site, which no configuration is.
fn listener_tls(
    listener: &Listener,
    mut sites: Vec<Site>,
    sessions: Option<Arc<Sessions>>,
) -> Option<ListenerTls> {
    let others = sites.split_off(1.min(sites.len()));
    Some(ListenerTls {
        proxies: listener.proxies.as_ref().map(|proxies| proxies.as_slice().into()),
        sites: Sites::new(sites.pop()?, others),
        protocols: alpn(&listener.protocols),
        provider: Arc::new(aws_lc_rs::default_provider()),
        tickets: if sessions.is_none() { 0 } else { TICKETS },
        sessions,
    })
}

fn tls_site(
    site: &TlsSite,
    certificate: Arc<ServerCertificate>,
    trust: Option<Arc<Trust>>,
) -> Site {
    let clients = site.clients.as_ref().zip(trust);
    Site {
        names: site.names.clone(),
        certificate,
        clients: clients.map(|(clients, trust)| Clients { required: clients.required, trust }),
    }
}

fn client_trust(clients: &TlsClients) -> Result<Trust, MaterialError> {
    let anchors = authorities(&clients.ca)?;
    let lists = clients
        .crl
        .iter()
        .map(|path| {
            let content = contents(path, REVOCATION_LIST_MAX_BYTES)?;
            Ok((path.display().to_string(), content.bytes))
        })
        .collect::<Result<Vec<_>, MaterialError>>()?;
    let named: Vec<(&str, &[u8])> =
        lists.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let revocations = Revocations::parse(&named, &anchors).map_err(|error| MaterialError {
        text: format!("revocation list {}: {}", error.index, error.fault),
        file: error.path.into(),
    })?;
    let retired =
        clients.retired_ca.iter().map(|path| authorities(path)).collect::<Result<Vec<_>, _>>()?;
    let trust = Trust::new(anchors, revocations, clients.crl_expired, clients.max_chain_depth);
    Ok(retired.into_iter().fold(trust, Trust::with_retired))
}

fn authorities(path: &Path) -> Result<Anchors, MaterialError> {
    Anchors::parse(&read(path)?).map_err(|error| wrong(path, error))
}

fn server_certificate(site: &TlsSite) -> Result<ServerCertificate, MaterialError> {
    let certified = certified_key(&site.certificate, &site.private_key)?;
    // `server_key` parsed the leaf, so it has a validity.
    let (not_before, not_after) =
        validity(&certified).unwrap_or_else(|| (time::unix(), time::unix()));
    let rsa_bits = rsa_bits(&certified);
    let hosts = Hosts::of(&certified);
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    Ok(ServerCertificate { not_before, not_after, rsa_bits, hosts, resolver })
}

fn routes(config: &Config) -> Routes {
    let route = |(index, route): (usize, &config::Route)| Route {
        name: route.name.as_str().into(),
        index,
        hosts: route.hosts.clone(),
        path: route.path.clone(),
        methods: route.methods.clone(),
        upstream: route.upstream,
        demands: route.demands.clone(),
        pass_authorization: route.pass_authorization,
        priority: route.priority,
        limits: route.limits.clone(),
    };
    Routes::new(config.routes.iter().enumerate().map(route).collect())
}

/// Its servers are put in when it is published, by what their names lead to then.
fn upstream(written: &config::Upstream, tls: Option<Arc<ClientTls>>) -> Upstream {
    Upstream {
        name: written.name.as_str().into(),
        endpoints: written.servers.clone(),
        servers: Vec::new(),
        protocol: written.protocol,
        balance: written.balance,
        connect_timeout: written.connect_timeout,
        response_timeout: written.response_timeout,
        idle_timeout: written.idle_timeout,
        max_requests: written.max_requests,
        max_waiting: written.max_waiting,
        health: written.health.clone(),
        tls,
    }
}

fn client_tls(
    upstream: &config::Upstream,
    written: &config::UpstreamTls,
) -> Result<ClientTls, MaterialError> {
    let roots = match &written.ca {
        Some(path) => file_authorities(path)?,
        None => {
            let system = system_authorities();
            system.map_err(|error| wrong(Path::new("the system's authorities"), error))?
        }
    };
    let identity = match &written.identity {
        Some((chain, key)) => Some(certified_key(chain, key)?),
        None => None,
    };
    // What the library could refuse is a matter of the files, of which the first is named.
    let file = written.identity.as_ref().map(|(chain, _)| chain).or(written.ca.as_ref());
    ClientTls::new(roots, identity, upstream.protocol, written.server_name.clone())
        .map_err(|error| wrong(file.map_or(Path::new("upstream.tls"), PathBuf::as_path), error))
}

fn file_authorities(path: &Path) -> Result<RootCertStore, MaterialError> {
    let bytes = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| wrong(path, error))?;
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    if roots.is_empty() { Err(wrong(path, "holds no certificate")) } else { Ok(roots) }
}

fn certified_key(chain: &Path, key: &Path) -> Result<CertifiedKey, MaterialError> {
    let certificates = read(chain)?;
    let content = contents(key, MATERIAL_MAX_BYTES)?;
    // Whoever renews a key may forget its permissions.
    config::private(&content, Disk::new().daemon()).map_err(|open| wrong(key, open))?;
    server_key(&certificates, &content.bytes).map_err(|error| wrong(chain, error))
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    contents(path, MATERIAL_MAX_BYTES).map(|content| content.bytes)
}

fn contents(path: &Path, limit_bytes: usize) -> Result<Content, MaterialError> {
    Disk::new().read(path, limit_bytes).map_err(|error| wrong(path, error))
}

fn wrong(path: &Path, error: impl fmt::Display) -> MaterialError {
    MaterialError { file: path.to_path_buf(), text: error.to_string() }
}

fn keep<T>(result: Result<T, MaterialError>, errors: &mut Vec<MaterialError>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}
