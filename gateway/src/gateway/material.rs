//! Reads the files that a configuration names into the snapshot that requests are served by.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    crypto::aws_lc_rs,
    server::ResolvesServerCert,
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::{
    config::{Config, Listener},
    identity::{
        certificate::{Anchors, Revocations, Trust, not_after, server_key},
        token::{Binding, Issuers, KeySet},
    },
    policy::route::{Route, Routes},
    snapshot::Snapshot,
    time,
    tls::{ListenerTls, alpn},
    upstream::Upstream,
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

/// Reads everything anew.
///
/// # Errors
/// Every file that is not good.
pub fn load_snapshot(config: &Config, generation: u64) -> Result<Snapshot, Vec<MaterialError>> {
    let mut errors = Vec::new();
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .filter_map(|listener| keep(listener_tls(listener), &mut errors))
        .collect();
    let issuers = token_issuers(config, generation).map_err(|more| errors.extend(more)).ok();
    match (issuers, errors.is_empty()) {
        (Some(issuers), true) => Ok(Snapshot {
            generation,
            listeners,
            issuers,
            routes: routes(config),
            upstreams: upstreams(config),
            access_log: config.log.access,
        }),
        _ => Err(errors),
    }
}

/// Reads the issuers' keys.
///
/// # Errors
/// Every file that is not good.
pub fn token_issuers(config: &Config, generation: u64) -> Result<Issuers, Vec<MaterialError>> {
    let mut errors = Vec::new();
    let issuers: Vec<_> = config
        .issuers
        .iter()
        .filter_map(|issuer| {
            let keys = read(&issuer.jwks_file).and_then(|bytes| {
                KeySet::parse(&bytes, &issuer.rules.algorithms)
                    .map_err(|error| wrong(&issuer.jwks_file, error))
            });
            Some((issuer.rules.clone(), keep(keys, &mut errors)?))
        })
        .collect();
    if errors.is_empty() { Ok(Issuers::new(issuers, generation)) } else { Err(errors) }
}

fn listener_tls(listener: &Listener) -> Result<ListenerTls, MaterialError> {
    let tls = &listener.tls;
    let anchors =
        Anchors::parse(&read(&tls.client_ca)?).map_err(|error| wrong(&tls.client_ca, error))?;
    let lists = tls
        .client_crl
        .iter()
        .map(|path| Ok((path.display().to_string(), read(path)?)))
        .collect::<Result<Vec<_>, MaterialError>>()?;
    let named: Vec<(&str, &[u8])> =
        lists.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let revocations = Revocations::parse(&named, &anchors).map_err(|error| MaterialError {
        file: tls.client_crl.first().cloned().unwrap_or_default(),
        text: error.to_string(),
    })?;
    let certified = server_certificate(&tls.certificate, &tls.private_key)?;
    Ok(ListenerTls {
        // `server_key` parsed the leaf, so there is an end.
        certificate_not_after: not_after(&certified).unwrap_or_else(time::unix),
        certificate: resolver(certified),
        trust: Arc::new(Trust::new(anchors, revocations, tls.crl_expired, tls.max_chain_depth)),
        protocols: alpn(&listener.protocols),
        provider: Arc::new(aws_lc_rs::default_provider()),
    })
}

fn server_certificate(chain: &Path, key: &Path) -> Result<CertifiedKey, MaterialError> {
    server_key(&read(chain)?, &read(key)?).map_err(|error| wrong(chain, error))
}

fn resolver(certified: CertifiedKey) -> Arc<dyn ResolvesServerCert> {
    Arc::new(SingleCertAndKey::from(certified))
}

fn routes(config: &Config) -> Routes {
    let route = |(index, route): (usize, &crate::config::Route)| Route {
        name: route.name.as_str().into(),
        index,
        hosts: route.hosts.clone(),
        path: route.path.clone(),
        methods: route.methods.clone(),
        upstream: route.upstream,
        require_token: route.require_token,
        scopes: route.scopes.clone(),
        binding: if route.bound_token { Binding::Always } else { Binding::WhenBound },
    };
    Routes::new(config.routes.iter().enumerate().map(route).collect())
}

fn upstreams(config: &Config) -> Vec<Upstream> {
    config
        .upstreams
        .iter()
        .map(|upstream| Upstream {
            name: upstream.name.as_str().into(),
            servers: upstream.servers.iter().cloned().map(Arc::new).collect(),
            connect_timeout: upstream.connect_timeout,
            response_timeout: upstream.response_timeout,
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>, MaterialError> {
    std::fs::read(path).map_err(|error| wrong(path, error))
}

fn wrong(path: &Path, error: impl fmt::Display) -> MaterialError {
    MaterialError { file: path.to_path_buf(), text: error.to_string() }
}

fn keep<T>(result: Result<T, MaterialError>, errors: &mut Vec<MaterialError>) -> Option<T> {
    result.map_err(|error| errors.push(error)).ok()
}
