//! From the configuration as written to the [`Config`] that holds: names resolved, settings
//! compared with each other, the files they name judged. Every problem is noted.

use std::{
    collections::HashMap,
    fmt::Display,
    hash::Hash,
    path::{Path, PathBuf},
};

use super::{
    Config, Log, Server, TokenCache,
    disk::Files,
    file::{self, File},
    problem::{Kind, Place, Report},
    section::At,
    value::Proof,
};

mod admin;
mod bans;
mod door;
mod host;
mod identity;
mod issuer;
mod limit;
mod listener;
mod protocols;
mod route;
mod tls;
mod upstream;
mod xdp;

pub use listener::overlap;

/// Chains, anchors, keys and key sets: a thousand times what is usual.
pub const MATERIAL_MAX_BYTES: usize = 4 << 20;

/// Revocation lists of large authorities reach tens of megabytes.
pub const REVOCATION_LIST_MAX_BYTES: usize = 64 << 20;

/// A million revoked tokens with their issuer's URL.
pub const REVOKED_TOKENS_MAX_BYTES: usize = 128 << 20;

/// What the checks share.
struct Check<'c> {
    /// Directory that relative paths begin at.
    base: &'c Path,
    files: &'c dyn Files,
    report: &'c Report,
}

/// Judges the whole; `None` when something is missing or refused, which is noted.
pub(super) fn judge(
    file: &File,
    base: &Path,
    files: &dyn Files,
    report: &Report,
) -> Option<Config> {
    let check = Check { base, files, report };
    check.shares(file);
    let listeners = check.listeners(&file.listeners, &file.admin);
    let issuers = check.issuers(&file.issuers);
    let identities = check.identities(&file.identities);
    let revoked_tokens = check.revoked_tokens(file);
    let upstreams = check.upstreams(file);
    let routes = check.routes(file);
    let limits = check.limits(file);
    check.unused(file);
    let xdp = check.xdp(file);
    let bans = check.bans(&file.bans);
    let host = check.host(&file.host);
    let admin = check.admin(&file.admin);
    Some(Config {
        server: Server {
            workers: file.server.workers.value,
            drain_timeout: file.server.drain_timeout.value,
            drain_delay: file.server.drain_delay.value,
            max_connections: file.server.max_connections.value,
            max_connections_per_source: file.server.max_connections_per_source.value,
            backlog: file.server.backlog.value,
            cpu_steering: file.server.cpu_steering.value,
        },
        listeners: listeners?,
        issuers: issuers?,
        token_cache: TokenCache {
            entries: file.token_cache.entries.value,
            ttl: file.token_cache.ttl.value,
        },
        identities: identities?,
        revoked_tokens,
        upstreams: upstreams?,
        routes: routes?,
        limits: limits?,
        xdp: xdp?,
        clients: file.clients.clone(),
        bans,
        host,
        admin,
        log: Log { format: file.log.format.value, access: file.log.access.value },
    })
}

impl Check<'_> {
    fn problem(&self, place: Place, kind: Kind, text: impl Into<String>) {
        self.report.problem(place, kind, text);
    }

    fn contradiction(&self, place: Place, text: impl Into<String>) {
        self.report.problem(place, Kind::Contradiction, text);
    }

    /// Notes each value that stands where an equal one stood before.
    fn unique<'v, T: Display + 'v, K: Eq + Hash>(
        &self,
        what: &str,
        values: impl Iterator<Item = &'v At<T>>,
        key: impl Fn(&T) -> K,
    ) {
        let mut seen = HashMap::new();
        for At { value, place } in values {
            let first = *seen.entry(key(value)).or_insert(*place);
            if first != *place {
                let line = self.report.line_of(first);
                let text = format!("{what} {value} is taken already in {line}; give each its own");
                self.contradiction(*place, text);
            }
        }
    }

    /// What is configured and then not used by anything.
    fn unused(&self, file: &File) {
        let routes = &file.routes;
        if routes.iter().any(|route| route.upstream.is_none() || route.require.is_none()) {
            return;
        }
        for name in file.upstreams.iter().filter_map(|upstream| upstream.name.as_ref()) {
            let used = |route: &file::Route| {
                route.upstream.as_ref().is_some_and(|upstream| upstream.value == name.value)
            };
            if !routes.iter().any(used) {
                let text = format!(
                    "upstream {:?} is used by no route; add a route to it or take it out",
                    name.value
                );
                self.report.warning(name.place, text);
            }
        }
        let takes_token = |route: &file::Route| {
            let require = route.require.as_ref();
            require.is_some_and(|list| list.value.iter().any(|at| at.value == Proof::Token))
        };
        if let Some(issuer) = file.issuers.first().and_then(|issuer| issuer.name.as_ref())
            && !routes.iter().any(takes_token)
        {
            let text = "no route requires a token, so no issuer is ever asked; add \"token\" to \
                        route.require, or take the issuers out";
            self.report.warning(issuer.place, text);
        }
    }

    /// The content of a file that `key` names.
    fn read(
        &self,
        key: &str,
        path: &At<PathBuf>,
        limit_bytes: usize,
    ) -> Option<super::disk::Content> {
        let content = self.files.read(&self.base.join(&path.value), limit_bytes);
        content.map_err(|error| self.bad_file(key, path, error)).ok()
    }

    /// What a file that `key` names holds.
    fn judged<T, E: Display>(
        &self,
        key: &str,
        path: &At<PathBuf>,
        limit_bytes: usize,
        parse: impl Fn(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        let content = self.read(key, path, limit_bytes)?;
        parse(&content.bytes).map_err(|error| self.bad_file(key, path, error)).ok()
    }

    fn bad_file(&self, key: &str, path: &At<PathBuf>, why: impl Display) {
        let resolved = self.base.join(&path.value);
        self.problem(path.place, Kind::BadFile, format!("{key} {resolved:?} {why}"));
    }
}

/// The values without their places.
fn values<T: Clone>(list: &At<Vec<At<T>>>) -> Vec<T> {
    list.value.iter().map(|at| at.value.clone()).collect()
}

#[cfg(test)]
mod tests;
