//! From the configuration as written to the [`Config`] that holds: names resolved, settings
//! compared with each other, the files they name judged. Every problem is noted.

use std::{
    collections::HashMap,
    fmt::Display,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    Admin, Bans, Config, IdpLost, Issuer, KeyLocation, KeySource, Listener, Log, Protocol,
    RemoteKeys, Route, Server, TokenCache,
    disk::Files,
    file::{self, File},
    material,
    problem::{Kind, Place, Report},
    schema,
    section::At,
    value::{ClientAuth, Proof},
};
use crate::{
    identity::{
        pattern::Pattern,
        principal::{NameSource, Rule, Rules},
        token::{Binding, RefreshRules, RevokedTokens, TokenRules},
    },
    kernel::{self, ByteRate, Rate, Service, Transport},
    policy::authorize::Demands,
};

mod door;
mod host;
mod limit;
mod protocols;
mod tls;
mod upstream;

/// Chains, anchors, keys and key sets: a thousand times what is usual.
pub const MATERIAL_MAX_BYTES: usize = 4 << 20;

/// Revocation lists of large authorities reach tens of megabytes.
pub const REVOCATION_LIST_MAX_BYTES: usize = 64 << 20;

/// From one good answer of an issuer to the next question: a key that it took back is believed for
/// no longer, and it is asked no more often than it can bear from many gateways.
const REFRESH_EVERY: Duration = Duration::from_secs(15 * 60);

/// For keys that are not known yet; every stranger can cause a question that often.
const REFRESH_COOLDOWN: Duration = Duration::from_secs(30);

/// How long an issuer may be away: over a night, till somebody looks.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// `idp_lost = "strict"`: refuses after this.
const STRICT_BELIEVED: Duration = Duration::from_secs(300);

/// And so asks this often: one lost answer is not the loss of an issuer.
const STRICT_EVERY: Duration = Duration::from_secs(60);

/// A million revoked tokens with their issuer's URL.
pub const REVOKED_TOKENS_MAX_BYTES: usize = 128 << 20;

/// `sockaddr_un.sun_path` holds 108 bytes, the last of which is 0 (unix(7)).
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// The kernel half reads time in ticks of at most 10 ms; a burst that is spent within two of them
/// would turn the ticks into drops.
const BURSTS_PER_S: u64 = 50;

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

    fn listeners(&self, written: &[file::Listener], admin: &file::Admin) -> Option<Vec<Listener>> {
        let names = written.iter().filter_map(|listener| listener.name.as_ref());
        self.unique("listener.name", names, String::clone);
        let addresses = || written.iter().filter_map(|listener| listener.address.as_ref());
        self.unique("listener.address", addresses(), canonical);
        let metrics = &admin.metrics;
        if let Some(listener) = addresses().find(|l| overlap(&l.value, &metrics.value)) {
            let line = self.report.line_of(listener.place);
            let (metrics_address, listener) = (metrics.value, listener.value);
            self.contradiction(
                metrics.place,
                format!(
                    "admin.metrics {metrics_address} and the listener at {listener} ({line}) want \
                     the same port; give one of them another"
                ),
            );
        }
        let listeners: Vec<Option<Listener>> =
            written.iter().map(|listener| self.listener(listener)).collect();
        listeners.into_iter().collect()
    }

    fn listener(&self, written: &file::Listener) -> Option<Listener> {
        let tls = written.tls.as_ref().and_then(|tls| self.tls(tls));
        let proxies = self.proxies(written);
        Some(Listener {
            name: written.name.as_ref()?.value.clone(),
            address: written.address.as_ref()?.value,
            protocols: self.protocols(written),
            proxies: proxies?,
            tls: tls?,
        })
    }

    fn issuers(&self, written: &[file::Issuer]) -> Option<Vec<Issuer>> {
        let names = written.iter().filter_map(|issuer| issuer.name.as_ref());
        self.unique("issuer.name", names, String::clone);
        let issuers = written.iter().filter_map(|issuer| issuer.issuer.as_ref());
        self.unique("issuer.issuer", issuers, String::clone);
        let issuers: Vec<Option<Issuer>> =
            written.iter().map(|issuer| self.issuer(issuer)).collect();
        issuers.into_iter().collect()
    }

    fn issuer(&self, written: &file::Issuer) -> Option<Issuer> {
        let is_symmetric = self.symmetric(written);
        let keys = self.key_source(&written.keys, is_symmetric);
        if let Some(path) = &written.keys.file {
            let key = "issuer.jwks_file";
            self.judged(key, path, MATERIAL_MAX_BYTES, material::key_set);
            if is_symmetric
                && let Some(content) = self.read(key, path, MATERIAL_MAX_BYTES)
                && let Err(exposed) = material::private(&content, self.files.daemon())
            {
                self.bad_file(key, path, exposed);
            }
        }
        let (leeway, lifetime) = (&written.leeway, &written.max_lifetime);
        if leeway.value > lifetime.value {
            let text = format!(
                "issuer.leeway {} is longer than max_lifetime {}, so a token is good for longer \
                 after its end than before; write a shorter one",
                humantime::format_duration(leeway.value),
                humantime::format_duration(lifetime.value)
            );
            // One of them may be a default, which stands at the head of the table.
            self.report.warning(leeway.place.max(lifetime.place), text);
        }
        Some(Issuer {
            rules: TokenRules {
                name: written.name.as_ref()?.value.clone(),
                issuer: written.issuer.as_ref()?.value.clone(),
                audiences: written.audiences.clone()?,
                algorithms: written.algorithms.iter().map(|one| one.value).collect(),
                leeway: leeway.value,
                max_lifetime: lifetime.value,
                client_id_claims: written.client_id_claims.clone(),
            },
            keys: keys?,
        })
    }

    /// Whether the issuer's tokens are signed by a key that we hold too. Beside public keys that
    /// would let anybody sign with what everybody may know (RFC 8725 section 2.1).
    fn symmetric(&self, written: &file::Issuer) -> bool {
        let mut symmetric = written.algorithms.iter().filter(|one| one.value.is_symmetric());
        let Some(first) = symmetric.next() else { return false };
        if written.algorithms.len() > 1 {
            let text = format!(
                "issuer.algorithms has {} beside others; whoever verifies it can also sign, so \
                 give it an [[issuer]] of its own or take it out",
                first.value
            );
            self.contradiction(first.place, text);
        }
        true
    }

    fn identities(&self, written: &[file::Identity]) -> Option<Rules> {
        let rules: Vec<Option<Rule>> = written.iter().map(|rule| self.identity(rule)).collect();
        Some(Rules::new(rules.into_iter().collect::<Option<_>>()?))
    }

    fn identity(&self, written: &file::Identity) -> Option<Rule> {
        let from = written.from.as_ref()?;
        let matches = written.matches.as_ref()?;
        let patterns: Vec<Option<Pattern>> =
            matches.iter().map(|one| self.identity_pattern(&from.value, one)).collect();
        // A fingerprint changes with each renewal, so the next one is named beside it.
        let most = if from.value == NameSource::Sha256 { 2 } else { 1 };
        if let Some(more) = matches.get(most) {
            let text = format!(
                "identity.match has more than {most} for {}; write an [[identity]] for each",
                from.value
            );
            self.contradiction(more.place, text);
        }
        match &from.value {
            NameSource::SubjectCn => {
                let text = "identity.from is \"subject_cn\", a free text that authorities check \
                            least; use san_uri or san_dns where the certificates have them";
                self.report.warning(from.place, text);
            }
            NameSource::Sha256 if matches.len() > 1 && written.principal.value.has_value() => {
                let text = "identity.principal is the fingerprint itself, which changes when the \
                            certificate does; write a name that stays";
                self.report.warning(written.principal.place, text);
            }
            _ => {}
        }
        Some(Rule {
            from: from.value.clone(),
            matches: patterns.into_iter().collect::<Option<_>>()?,
            principal: written.principal.value.clone(),
            roles: written.roles.as_ref()?.value.iter().map(|at| at.value.clone()).collect(),
            tenant: written.tenant.as_ref().map(|tenant| tenant.value.clone()),
        })
    }

    /// As the names it is compared with are written: DNS names and digests in lower case.
    fn identity_pattern(&self, from: &NameSource, written: &At<String>) -> Option<Pattern> {
        let text = match from {
            NameSource::SanDns => written.value.to_ascii_lowercase(),
            NameSource::Sha256 | NameSource::IssuerSerial => {
                // OpenSSL writes fingerprints with colons.
                written.value.replace(':', "").to_ascii_lowercase()
            }
            _ => written.value.clone(),
        };
        let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let wants_digest = matches!(from, NameSource::Sha256 | NameSource::IssuerSerial);
        if wants_digest && !is_digest && text != "*" {
            let text = format!(
                "identity.match is no SHA-256; {from} takes 64 hexadecimal digits, or \"*\" for every \
                 certificate"
            );
            self.problem(written.place, Kind::BadValue, text);
            return None;
        }
        Pattern::parse(&text)
            .map_err(|error| {
                let text = format!(
                    "identity.match has {error}; one stands for one or more characters, / among them"
                );
                self.problem(written.place, Kind::BadValue, text);
            })
            .ok()
    }

    fn key_source(&self, written: &file::Keys, is_symmetric: bool) -> Option<KeySource> {
        let file::Keys { file, url, discovery_url, .. } = written;
        let file_place = file.as_ref().map(|at| ("jwks_file", at.place));
        let url_place = url.as_ref().map(|at| ("jwks_url", at.place));
        let discovery_place = discovery_url.as_ref().map(|at| ("discovery_url", at.place));
        let sources: Vec<_> =
            [file_place, url_place, discovery_place].into_iter().flatten().collect();
        if let [(first, _), (second, place), ..] = sources.as_slice() {
            let text = format!(
                "issuer.{second} stands beside {first}, and an issuer's keys come from one place; \
                 take one of them out"
            );
            self.contradiction(*place, text);
        }
        let location = match (url, discovery_url) {
            (Some(url), _) => KeyLocation::Keys(url.value.clone()),
            (None, Some(url)) => KeyLocation::Description(url.value.clone()),
            (None, None) => {
                let file = file.as_ref()?;
                self.settings_of_fetching(written);
                return Some(KeySource::File(self.base.join(&file.value)));
            }
        };
        if let Some((name, place)) = url_place.or(discovery_place)
            && is_symmetric
        {
            let text = format!(
                "issuer.{name} would show a shared key to whoever asks; keep the key of HS256 in a \
                 file, named by jwks_file"
            );
            self.contradiction(place, text);
        }
        if let Some(path) = &written.authorities {
            self.judged("issuer.ca", path, MATERIAL_MAX_BYTES, material::certificates);
        }
        let addresses = written.addresses.as_ref()?.value.iter().map(|at| at.value);
        Some(KeySource::Remote(Arc::new(RemoteKeys {
            location,
            authorities: written.authorities.as_ref().map(|path| self.base.join(&path.value)),
            addresses: addresses.collect(),
            refresh: self.refresh(written),
        })))
    }

    /// Settings of fetching, where nothing is fetched.
    fn settings_of_fetching(&self, written: &file::Keys) {
        let addresses = written.addresses.as_ref().filter(|list| !list.value.is_empty());
        for (key, place) in [
            ("ca", written.authorities.as_ref().map(|at| at.place)),
            ("addresses", addresses.map(|at| at.place)),
            ("refresh", written.refresh.as_ref().map(|at| at.place)),
            ("cooldown", written.cooldown.as_ref().map(|at| at.place)),
            ("idp_lost", written.idp_lost.as_ref().map(|at| at.place)),
            ("max_stale", written.max_stale.as_ref().map(|at| at.place)),
        ] {
            if let Some(place) = place {
                let text = format!(
                    "issuer.{key} is about keys that are fetched, and these come from a file; take \
                     it out, or name the issuer's jwks_url or discovery_url"
                );
                self.contradiction(place, text);
            }
        }
    }

    fn refresh(&self, written: &file::Keys) -> RefreshRules {
        let value = |at: &Option<At<Duration>>, default| at.as_ref().map_or(default, |at| at.value);
        let every = value(&written.refresh, REFRESH_EVERY);
        let cooldown = value(&written.cooldown, REFRESH_COOLDOWN);
        if written.idp_lost.as_ref().map(|at| at.value) != Some(IdpLost::Strict) {
            return RefreshRules {
                every,
                cooldown,
                believed: value(&written.max_stale, STALE_MAX),
            };
        }
        if let Some(stale) = &written.max_stale {
            let text = "issuer.max_stale is how long old keys serve, but idp_lost is \"strict\", \
                        which refuses after 5 minutes; take one of them out";
            self.contradiction(stale.place, text);
        }
        RefreshRules { every: every.min(STRICT_EVERY), cooldown, believed: STRICT_BELIEVED }
    }

    fn revoked_tokens(&self, file: &File) -> Option<PathBuf> {
        let path = file.revoked_tokens.as_ref()?;
        let key = "revocation.tokens_file";
        self.judged(key, path, REVOKED_TOKENS_MAX_BYTES, RevokedTokens::parse);
        if file.issuers.is_empty() {
            let text = "revocation.tokens_file lists tokens, but there is no [[issuer]] whose \
                        tokens are believed; take it out";
            self.report.warning(path.place, text);
        }
        Some(self.base.join(&path.value))
    }

    /// An upstream that is one of the listeners would go round for ever.
    fn not_ourselves(&self, server: &At<super::Endpoint>, listeners: &[file::Listener]) {
        let Ok(ip) = server.value.host.parse::<IpAddr>() else { return };
        let address = canonical(&SocketAddr::new(ip, server.value.port));
        let ours = |listener: &SocketAddr| {
            let local = address.ip().is_loopback() && overlap(listener, &address);
            local || canonical(listener) == address
        };
        let addresses = listeners.iter().filter_map(|listener| listener.address.as_ref());
        if let Some(listener) = addresses.into_iter().find(|listener| ours(&listener.value)) {
            let line = self.report.line_of(listener.place);
            let text = format!(
                "upstream.servers has {address}, which is the gateway's own listener ({line}); \
                 name the server behind it"
            );
            self.contradiction(server.place, text);
        }
    }

    fn routes(&self, file: &File) -> Option<Vec<Route>> {
        let names = file.routes.iter().filter_map(|route| route.name.as_ref());
        self.unique("route.name", names, String::clone);
        self.distinct(&file.routes);
        let upstreams: HashMap<&str, usize> = file
            .upstreams
            .iter()
            .enumerate()
            .filter_map(|(index, upstream)| Some((upstream.name.as_ref()?.value.as_str(), index)))
            .collect();
        let routes: Vec<Option<Route>> =
            file.routes.iter().map(|route| self.route(route, file, &upstreams)).collect();
        routes.into_iter().collect()
    }

    fn route(
        &self,
        written: &file::Route,
        file: &File,
        upstreams: &HashMap<&str, usize>,
    ) -> Option<Route> {
        let upstream = written.upstream.as_ref().and_then(|name| {
            let index = upstreams.get(name.value.as_str()).copied();
            // One that has no name, or a bad one, may be the one that is meant.
            let all_named = file.upstreams.iter().all(|upstream| upstream.name.is_some());
            if index.is_none() && all_named {
                self.no_upstream(name, upstreams);
            }
            index
        });
        self.methods(written.methods.as_deref().unwrap_or_default());
        let require = written.require.as_ref();
        if let Some(require) = require {
            self.proofs(require, written, file);
        }
        let limits = self.limits_of(written, file);
        let requires = |proof| require.map(|list| list.value.iter().any(|at| at.value == proof));
        Some(Route {
            name: written.name.as_ref()?.value.clone(),
            hosts: written.hosts.clone()?,
            path: written.path.as_ref()?.value.clone(),
            methods: written.methods.as_ref()?.iter().map(|at| at.value.clone()).collect(),
            upstream: upstream?,
            demands: Demands {
                certificate: requires(Proof::Certificate)?,
                token: requires(Proof::Token)?,
                binding: if written.bound_token.value {
                    Binding::Always
                } else {
                    Binding::WhenBound
                },
                scopes: values(written.scopes.as_ref()?),
                roles: values(written.roles.as_ref()?),
                principals: values(written.principals.as_ref()?),
                sources: values(written.sources.as_ref()?),
                hours: written.hours.as_ref()?.value.clone(),
            },
            pass_authorization: written.pass_authorization.value,
            priority: written.priority.value,
            limits: limits?,
        })
    }

    fn no_upstream(&self, name: &At<String>, upstreams: &HashMap<&str, usize>) {
        let mut names: Vec<&str> = upstreams.keys().copied().collect();
        names.sort_unstable();
        let advice = match schema::nearest(&name.value, names) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("add an [[upstream]] with name = {:?}", name.value),
        };
        let text = format!("route.upstream {:?} is no [[upstream]]; {advice}", name.value);
        self.contradiction(name.place, text);
    }

    /// A method that is spelled wrong looks like one of somebody's own.
    fn methods(&self, methods: &[At<http::Method>]) {
        /// RFC 9110 section 9 and RFC 5789.
        const USUAL: [&str; 8] =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
        for method in methods.iter().filter(|method| !USUAL.contains(&method.value.as_str())) {
            if let Some(near) = schema::nearest(method.value.as_str(), USUAL) {
                let text = format!(
                    "route.methods has {:?}; did you mean {near:?}?",
                    method.value.as_str()
                );
                self.report.warning(method.place, text);
            }
        }
    }

    /// What a route requires, against what there is to prove it with.
    fn proofs(&self, require: &At<Vec<At<Proof>>>, route: &file::Route, file: &File) {
        let token = require.value.iter().find(|at| at.value == Proof::Token);
        if let Some(token) = token
            && file.issuers.is_empty()
        {
            let text = "route.require has \"token\", but there is no [[issuer]] whose tokens could \
                        be believed; add one, or take \"token\" out";
            self.contradiction(token.place, text);
        }
        let certificate = require.value.iter().any(|at| at.value == Proof::Certificate);
        if route.bound_token.value && (token.is_none() || !certificate) {
            let text = "route.bound_token is true, which binds a token to a certificate, but \
                        require lacks one of them; write [\"certificate\", \"token\"]";
            self.contradiction(route.bound_token.place, text);
        }
        self.identities_of(require, route, file);
        let Some(scopes) = &route.scopes else { return };
        if token.is_none() && !scopes.value.is_empty() {
            let text = "route.scopes are a token's, but require has no \"token\"; add it there, or \
                        take scopes out";
            self.contradiction(scopes.place, text);
        }
        let tables = file.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let asked: Vec<ClientAuth> = tables.flat_map(tls::asked).collect();
        let certificate = require.value.iter().find(|at| at.value == Proof::Certificate);
        if let Some(certificate) = certificate
            && !asked.is_empty()
            && asked.iter().all(|asked| *asked == ClientAuth::Off)
        {
            let text = "route.require has \"certificate\", but client_auth is \"off\" everywhere, \
                        so nobody could come with one; ask for it in [listener.tls]";
            self.contradiction(certificate.place, text);
        }
        let everybody = asked.iter().all(|asked| *asked == ClientAuth::Required);
        if require.value.is_empty() && scopes.value.is_empty() && everybody {
            let text = "route.require is empty, yet every listener demands a client certificate \
                        before any request; write [\"certificate\"], which is what holds";
            self.report.warning(require.place, text);
        }
    }

    /// The roles and principals of a route, against who there can be.
    fn identities_of(&self, require: &At<Vec<At<Proof>>>, route: &file::Route, file: &File) {
        let (Some(roles), Some(principals)) = (&route.roles, &route.principals) else { return };
        let lists = [
            ("roles", roles.place, roles.value.is_empty()),
            ("principals", principals.place, principals.value.is_empty()),
        ];
        for (key, place, is_empty) in lists {
            if require.value.is_empty() && !is_empty {
                let text = format!(
                    "route.{key} are of somebody, but require is empty, so anybody may come; write \
                     what must be proven, or take {key} out"
                );
                self.contradiction(place, text);
            }
        }
        let requires = |proof| require.value.iter().any(|at| at.value == proof);
        let given = |role: &String| {
            let rules = file.identities.iter().filter_map(|rule| rule.roles.as_ref());
            rules.flat_map(|roles| &roles.value).any(|at| at.value == *role)
        };
        if requires(Proof::Certificate) && !requires(Proof::Token) {
            for role in roles.value.iter().filter(|role| !given(&role.value)) {
                let text = format!(
                    "route.roles has {:?}, which no [[identity]] gives and no token is asked for; \
                     add it to the roles of one",
                    role.value
                );
                self.report.warning(role.place, text);
            }
        }
        if !principals.value.is_empty()
            && !requires(Proof::Certificate)
            && requires(Proof::Token)
            && file.issuers.len() > 1
        {
            let text = "route.principals are compared with the subjects of tokens, and there is more \
                        than one issuer, who may each name a subject so; ask for a scope instead";
            self.report.warning(principals.place, text);
        }
    }

    /// No two routes with the same path, a host and a method in common.
    fn distinct(&self, routes: &[file::Route]) {
        let mut by_path: HashMap<&str, Vec<&file::Route>> = HashMap::new();
        for route in routes {
            let Some(path) = &route.path else { continue };
            let earlier = by_path.entry(&path.value).or_default();
            if let Some(first) = earlier.iter().find(|earlier| same_requests(earlier, route)) {
                let line = self.report.line_of(first.place);
                let text = format!(
                    "route.path {:?}, with its hosts and methods, is that of the route in {line}, \
                     and the two cannot be told apart; change one of them or take it out",
                    path.value
                );
                self.contradiction(path.place, text);
            }
            earlier.push(route);
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

    /// `Some(None)`: no kernel half.
    fn xdp(&self, file: &File) -> Option<Option<kernel::Settings>> {
        let written = &file.xdp;
        self.without_interfaces(written);
        let ports = written.ports.as_ref().map(|ports| self.ports(ports, file));
        let exempt = self.exempt(file);
        let rate = |name, rate: &Option<_>| rate.as_ref().and_then(|rate| self.rate(name, rate));
        let packets = rate("packets", &written.packets);
        let connections = rate("connections", &written.connections);
        let bytes = written.bytes.as_ref().map(|rate| self.byte_rate(rate));
        let new_sources = written.new_sources.as_ref().map(|limit| self.rate("new_sources", limit));
        let interfaces = written.interfaces.clone()?;
        if interfaces.is_empty() {
            return Some(None);
        }
        Some(Some(kernel::Settings {
            interfaces,
            mode: written.mode.value,
            enforce: written.enforce.value,
            ports: ports?,
            management: written.management.value.iter().map(|service| service.value).collect(),
            exempt,
            deny: written.deny.iter().map(|network| network.value).collect(),
            packets: Some(packets?),
            connections: Some(connections?),
            bytes: bytes.map_or(Some(None), |rate| rate.map(Some))?,
            new_sources: new_sources.map_or(Some(None), |rate| rate.map(Some))?,
            max_sources: written.max_sources.value,
            pin: written.pin.value.clone(),
        }))
    }

    /// Settings that ask something of a kernel half that is not loaded.
    fn without_interfaces(&self, written: &file::Xdp) {
        if written.interfaces.as_ref().is_none_or(|interfaces| !interfaces.is_empty()) {
            return;
        }
        if written.enforce.value {
            let text = "xdp.enforce is true, but interfaces is empty, so nothing can be dropped; \
                        name the interfaces or take enforce out";
            self.contradiction(written.enforce.place, text);
        }
        if written.mode.value == kernel::Mode::Native {
            let text = "xdp.mode is \"native\", but interfaces is empty, so no program is loaded; \
                        name the interfaces or take mode out";
            self.report.warning(written.mode.place, text);
        }
    }

    /// The ports that are guarded: those written, else those of the listeners.
    fn ports(&self, written: &At<Vec<At<u16>>>, file: &File) -> Vec<u16> {
        let listening = || file.listeners.iter().filter_map(|listener| listener.address.as_ref());
        let mut ports: Vec<u16> = written.value.iter().map(|port| port.value).collect();
        if ports.is_empty() {
            ports = listening().map(|address| address.value.port()).collect();
            ports.sort_unstable();
            ports.dedup();
        } else {
            for address in listening().filter(|at| !ports.contains(&at.value.port())) {
                let port = address.value.port();
                let line = self.report.line_of(address.place);
                let text = format!(
                    "xdp.ports leaves out {port}, where a listener is ({line}); add it, or nothing \
                     guards that port"
                );
                self.report.warning(written.place, text);
            }
        }
        for service in &file.xdp.management.value {
            let Service { port, transport } = service.value;
            let over_udp = || {
                file.listeners.iter().any(|listener| {
                    listener.address.as_ref().is_some_and(|at| at.value.port() == port)
                        && listener
                            .protocols
                            .as_ref()
                            .is_some_and(|protocols| protocols.value.contains(&Protocol::Http3))
                })
            };
            let (is_served, word) = match transport {
                Transport::Tcp => (true, "tcp"),
                Transport::Udp => (over_udp(), "udp"),
            };
            if is_served && ports.contains(&port) {
                let text = format!(
                    "xdp.management has {port}/{word}, which no rule would touch, and the same port is \
                     to be guarded; take it out of one of the two"
                );
                self.contradiction(service.place, text);
            }
        }
        ports
    }

    /// Sources that are never dropped: `allow`, loopback, the servers behind the gateway, and the
    /// proxies in front of it.
    fn exempt(&self, file: &File) -> Vec<IpNet> {
        let written = &file.xdp;
        for network in written.allow.iter().filter(|network| network.value.prefix_len() == 0) {
            let text = format!(
                "xdp.allow has {}, which exempts everybody from every rule; write who is meant",
                network.value
            );
            self.report.warning(network.place, text);
        }
        let mut exempt: Vec<IpNet> = written.allow.iter().map(|network| network.value).collect();
        exempt.push(IpNet::new_assert([127, 0, 0, 0].into(), 8));
        exempt.push(IpNet::from(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16])));
        let servers = file.upstreams.iter().filter_map(|upstream| upstream.servers.as_ref());
        let addresses = servers.flatten().filter_map(|server| server.value.host.parse().ok());
        exempt.extend(addresses.map(|address: IpAddr| IpNet::from(address.to_canonical())));
        let issuers = file.issuers.iter().map(|issuer| &issuer.keys);
        for keys in issuers {
            let urls = [&keys.url, &keys.discovery_url].into_iter().flatten();
            exempt.extend(urls.filter_map(|url| url.value.address()).map(IpNet::from));
            let addresses = keys.addresses.iter().flat_map(|list| &list.value);
            exempt.extend(addresses.map(|at| IpNet::from(at.value.ip().to_canonical())));
        }
        let proxies =
            file.listeners.iter().filter_map(|listener| listener.trusted_proxies.as_ref());
        exempt.extend(proxies.flat_map(|list| &list.value).map(|at| at.value));
        let mut seen = std::collections::HashSet::new();
        exempt.retain(|network| seen.insert(*network));
        self.denied(written, &exempt);
        exempt
    }

    /// `deny` against what is exempt from it.
    fn denied(&self, written: &file::Xdp, exempt: &[IpNet]) {
        for network in &written.deny {
            let denied = network.value;
            if let Some(allowed) = written.allow.iter().find(|allowed| allowed.value == denied) {
                let line = self.report.line_of(allowed.place);
                let text = format!(
                    "xdp.deny has {denied}, which is also in allow ({line}); take it out of one"
                );
                self.contradiction(network.place, text);
            } else if let Some(covering) = exempt.iter().find(|exempt| exempt.contains(&denied)) {
                let text = format!(
                    "xdp.deny has {denied}, which does nothing, for {covering} is exempt; take it \
                     out"
                );
                self.report.warning(network.place, text);
            } else if denied.prefix_len() == 0 {
                let text = format!(
                    "xdp.deny has {denied}, which refuses everybody who is not exempt; write who \
                     is meant"
                );
                self.report.warning(network.place, text);
            }
        }
    }

    fn rate(&self, name: &str, written: &file::RateFile) -> Option<Rate> {
        let (rate, burst) = (written.rate_per_s.as_ref()?, written.burst.as_ref()?);
        let per_s = rate.value;
        let least = u64::from(per_s).div_ceil(BURSTS_PER_S);
        if u64::from(burst.value) < least {
            let text = format!(
                "xdp.{name}.burst is {}, which at {per_s}/s is less than 20 ms, two ticks of the \
                 kernel's clock; write at least {least}",
                burst.value
            );
            self.contradiction(burst.place, text);
        }
        Some(Rate { per_s, burst: burst.value })
    }

    fn byte_rate(&self, written: &file::ByteRateFile) -> Option<ByteRate> {
        let (rate, burst) = (written.bytes_per_s.as_ref()?, written.burst_bytes.as_ref()?);
        let least = rate.value.div_ceil(BURSTS_PER_S).max(kernel::FRAME_MAX_BYTES);
        if burst.value < least {
            let text = format!(
                "xdp.bytes.burst is {}, which is less than 20 ms at the rate (two ticks of the \
                 kernel's clock) or than one frame; write at least \"{}KiB\"",
                burst.value,
                least.div_ceil(1024)
            );
            self.contradiction(burst.place, text);
        }
        Some(ByteRate { bytes_per_s: rate.value, burst_bytes: burst.value })
    }

    fn bans(&self, written: &file::Bans) -> Bans {
        for pair in written.ladder.windows(2) {
            if pair[1].value <= pair[0].value {
                let text = format!(
                    "bans.ladder has {} after {}; write each ban longer than the one before",
                    humantime::format_duration(pair[1].value),
                    humantime::format_duration(pair[0].value)
                );
                self.contradiction(pair[1].place, text);
            }
        }
        Bans {
            enabled: written.enabled.value,
            threshold: written.threshold.value,
            half_life: written.half_life.value,
            ladder: written.ladder.iter().map(|rung| rung.value).collect(),
            never: written.never.clone(),
        }
    }

    fn admin(&self, written: &file::Admin) -> Admin {
        let socket = self.base.join(&written.socket.value);
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MAX_BYTES {
            let text = format!(
                "admin.socket is {length} bytes long with its directory; a socket's path has at \
                 most {SOCKET_PATH_MAX_BYTES}, write a shorter one"
            );
            self.problem(written.socket.place, Kind::BadValue, text);
        }
        if written.allow.value.is_empty() {
            let text = "admin.allow is empty, so nobody can read the metrics; write who may, as in \
                        [\"127.0.0.0/8\"]";
            self.report.warning(written.allow.place, text);
        }
        let group = written.group.as_ref().map(|group| group.value.clone());
        Admin { socket, group, metrics: written.metrics.value, allow: written.allow.value.clone() }
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

/// Whether some request could go to either, with nothing to choose by: the same path is given.
fn same_requests(a: &file::Route, b: &file::Route) -> bool {
    let (Some(a_hosts), Some(b_hosts)) = (&a.hosts, &b.hosts) else { return false };
    let (Some(a_methods), Some(b_methods)) = (&a.methods, &b.methods) else { return false };
    let same_method = |a: &At<http::Method>, b: &At<http::Method>| a.value == b.value;
    intersect(a_hosts, b_hosts, |a, b| a == b) && intersect(a_methods, b_methods, same_method)
}

/// Whether two lists, where an empty one is any value, have one in common with nothing to choose
/// by: a route for one host or method goes before a route for any.
fn intersect<T>(a: &[T], b: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    if a.is_empty() || b.is_empty() {
        return a.is_empty() && b.is_empty();
    }
    a.iter().any(|a| b.iter().any(|b| same(a, b)))
}

/// IPv4 in IPv6 as IPv4, so that one address has one form.
fn canonical(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether two sockets cannot both be bound: the wildcard of IPv6 takes IPv4 too.
pub fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let (a, b) = (canonical(a), canonical(b));
    let covers = |wide: IpAddr, narrow: IpAddr| {
        wide == narrow || (wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4()))
    };
    a.port() == b.port() && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            CrlExpired, Endpoint, LogFormat, Protocol, Warning,
            fake::{Fake, LAB, STRANGER_ID, lines, problem_lines},
        },
        *,
    };
    use crate::{identity::token::Algorithm, kernel::Mode};

    /// Everything that must be written, and an interface.
    const SMALL: &str = r#"[[listener]]
name = "edge"
address = "[::]:8443"
[listener.tls]
certificate = "tls/server.pem"
private_key = "tls/server.key"
client_ca = "tls/clients-ca.pem"
[[issuer]]
name = "corp"
issuer = "https://idp.example.com"
audiences = ["orders-api"]
jwks_file = "jwks.json"
[[upstream]]
name = "orders"
servers = ["http://192.0.2.9:9001"]
[[route]]
name = "orders"
path = "/orders"
upstream = "orders"
require = ["certificate", "token"]
[xdp]
interfaces = ["eth0"]
"#;

    /// With a part of it replaced, which must be there.
    fn small(from: &str, to: &str) -> String {
        assert!(SMALL.contains(from), "{from}");
        SMALL.replace(from, to)
    }

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_not_written_has_the_defaults_of_the_contract() {
        let (config, warnings) = Fake::new().load(SMALL).unwrap();
        assert_eq!(warnings, Vec::<Warning>::new());
        let Config { server, token_cache, bans, admin, log, .. } = &config;
        assert_eq!((server.workers, server.max_connections), (0, 100_000));
        assert_eq!(server.drain_timeout, Duration::from_secs(30));
        assert_eq!((token_cache.entries, token_cache.ttl), (65_536, Duration::from_secs(60)));
        assert_eq!((bans.enabled, bans.threshold), (true, 20));
        assert_eq!(bans.half_life, Duration::from_secs(30));
        assert_eq!(bans.ladder, [60, 600, 3600, 86_400].map(Duration::from_secs));
        assert!(bans.never.is_empty());
        assert_eq!(admin.socket, Path::new("/run/portcullis/admin.sock"));
        assert_eq!(admin.metrics, "127.0.0.1:9090".parse().unwrap());
        assert_eq!(admin.allow, networks(&["127.0.0.0/8", "::1/128"]));
        assert_eq!((log.format, log.access), (LogFormat::Json, true));

        let listener = &config.listeners[0];
        assert_eq!(listener.protocols, [Protocol::Http2, Protocol::Http1]);
        let [site] = &listener.tls.sites[..] else { panic!("{:?}", listener.tls) };
        assert_eq!(site.certificate, Path::new("/etc/portcullis/tls/server.pem"));
        assert_eq!(site.private_key, Path::new("/etc/portcullis/tls/server.key"));
        let clients = site.clients.as_ref().unwrap();
        assert!(clients.required && clients.crl.is_empty() && clients.retired_ca.is_empty());
        assert_eq!(clients.ca, Path::new("/etc/portcullis/tls/clients-ca.pem"));
        assert_eq!((clients.crl_expired, clients.max_chain_depth), (CrlExpired::Deny, 2));
        assert_eq!(listener.tls.sessions, 20_000);

        let rules = TokenRules {
            name: "corp".into(),
            issuer: "https://idp.example.com".into(),
            audiences: vec!["orders-api".into()],
            algorithms: vec![Algorithm::Rs256, Algorithm::Es256],
            leeway: Duration::from_secs(60),
            max_lifetime: Duration::from_secs(3600),
            client_id_claims: vec!["client_id".into(), "azp".into(), "sub".into()],
        };
        assert_eq!(config.issuers[0].rules, rules);
        let keys = &config.issuers[0].keys;
        assert!(matches!(keys, KeySource::File(file) if file == "/etc/portcullis/jwks.json"));

        let upstream = &config.upstreams[0];
        assert_eq!(
            upstream.servers,
            [Endpoint { host: "192.0.2.9".into(), port: 9001, is_tls: false }]
        );
        assert_eq!(upstream.connect_timeout, Duration::from_secs(2));
        assert_eq!(upstream.response_timeout, Duration::from_secs(30));

        let route = &config.routes[0];
        let demands = &route.demands;
        assert!(route.hosts.is_empty() && route.methods.is_empty() && demands.scopes.is_empty());
        assert_eq!((route.path.as_str(), route.upstream), ("/orders", 0));
        assert!(demands.certificate && demands.token && !route.pass_authorization);
        assert!(demands.roles.is_empty() && demands.hours.is_none());

        let xdp = kernel::Settings {
            interfaces: vec!["eth0".into()],
            mode: Mode::Auto,
            enforce: false,
            ports: vec![8443],
            management: vec![Service { port: 22, transport: Transport::Tcp }],
            exempt: networks(&["127.0.0.0/8", "::1/128", "192.0.2.9/32"]),
            deny: Vec::new(),
            packets: Some(Rate { per_s: 20_000, burst: 40_000 }),
            connections: Some(Rate { per_s: 100, burst: 200 }),
            bytes: None,
            new_sources: None,
            max_sources: 1_000_000,
            pin: "/sys/fs/bpf/portcullis".into(),
        };
        assert_eq!(config.xdp, Some(xdp));
    }

    #[test]
    fn what_is_written_is_what_holds() {
        let text = small(
            "[xdp]\ninterfaces = [\"eth0\"]\n",
            r#"hosts = ["API.example.com"]
methods = ["GET", "POST"]
scopes = ["read"]
[xdp]
interfaces = ["eth0", "eth1"]
mode = "generic"
enforce = true
ports = [9443, 8443]
management = ["22/tcp", "53/udp"]
allow = ["192.0.2.9", "198.51.100.0/24"]
deny = ["203.0.113.0/24"]
packets = { rate = "6000/m", burst = 2 }
connections = { rate = "3600/h", burst = 7 }
bytes = { rate = "50MiB/s", burst = "64MiB" }
new_sources = { rate = "5000/s", burst = 9000 }
max_sources = 1024
pin = "/sys/fs/bpf/other"
[server]
workers = 2
drain_timeout = "500ms"
max_connections = 10
[token_cache]
entries = 0
ttl = "1m"
[bans]
enabled = false
threshold = 3
half_life = "1m"
ladder = ["5s", "10s"]
never = ["198.51.100.7"]
[admin]
socket = "run/admin.sock"
metrics = "[::1]:9100"
allow = ["::1"]
[log]
format = "text"
access = false
"#,
        );
        let (config, warnings) = Fake::new().load(&text).unwrap();
        assert_eq!(warnings, Vec::<Warning>::new());
        let route = &config.routes[0];
        assert_eq!(route.hosts, ["api.example.com"]);
        assert_eq!(route.methods, [http::Method::GET, http::Method::POST]);
        assert_eq!(route.demands.scopes, ["read"]);
        let xdp = kernel::Settings {
            interfaces: vec!["eth0".into(), "eth1".into()],
            mode: Mode::Generic,
            enforce: true,
            ports: vec![9443, 8443],
            management: vec![
                Service { port: 22, transport: Transport::Tcp },
                Service { port: 53, transport: Transport::Udp },
            ],
            exempt: networks(&["192.0.2.9/32", "198.51.100.0/24", "127.0.0.0/8", "::1/128"]),
            deny: networks(&["203.0.113.0/24"]),
            packets: Some(Rate { per_s: 100, burst: 2 }),
            connections: Some(Rate { per_s: 1, burst: 7 }),
            bytes: Some(ByteRate { bytes_per_s: 50 << 20, burst_bytes: 64 << 20 }),
            new_sources: Some(Rate { per_s: 5_000, burst: 9_000 }),
            max_sources: 1024,
            pin: "/sys/fs/bpf/other".into(),
        };
        assert_eq!(config.xdp, Some(xdp));
        assert_eq!((config.server.workers, config.server.max_connections), (2, 10));
        assert_eq!(config.server.drain_timeout, Duration::from_millis(500));
        assert_eq!((config.token_cache.entries, config.token_cache.ttl.as_secs()), (0, 60));
        assert_eq!((config.bans.enabled, config.bans.threshold), (false, 3));
        assert_eq!(config.bans.ladder, [5, 10].map(Duration::from_secs));
        assert_eq!(config.bans.never, networks(&["198.51.100.7/32"]));
        assert_eq!(config.admin.socket, Path::new("/etc/portcullis/run/admin.sock"));
        assert_eq!(config.admin.metrics, "[::1]:9100".parse().unwrap());
        assert_eq!((config.log.format, config.log.access), (LogFormat::Text, false));
    }

    #[test]
    fn without_interfaces_there_is_no_kernel_half() {
        let (config, _) = Fake::new().load(&small("[\"eth0\"]", "[]")).unwrap();
        assert_eq!(config.xdp, None);
    }

    /// Rows of: what is replaced in [`SMALL`], by what, and what is said.
    type Row<'t> = (&'t str, &'t str, &'t [&'t str]);

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let rows: &[Row<'_>] = &[
            (
                "[[issuer]]",
                "[[listener]]\nname = \"edge\"\naddress = \"0.0.0.0:8443\"\ntls = { certificate = \
                 \"tls/server.pem\", private_key = \"tls/server.key\", client_ca = \
                 \"tls/clients-ca.pem\" }\n[[issuer]]",
                &[
                    "9:8: listener.name edge is taken already in /etc/portcullis/portcullis.toml:2; \
                   give each its own",
                ],
            ),
            (
                "[[issuer]]",
                "[[listener]]\nname = \"b\"\naddress = \"[::]:8443\"\ntls = { certificate = \
                 \"tls/server.pem\", private_key = \"tls/server.key\", client_ca = \
                 \"tls/clients-ca.pem\" }\n[[issuer]]",
                &["10:11: listener.address [::]:8443 is taken already in \
                   /etc/portcullis/portcullis.toml:3; give each its own"],
            ),
            (
                "[[upstream]]",
                "[[issuer]]\nname = \"corp\"\nissuer = \"https://idp.example.com\"\naudiences = \
                 [\"x\"]\njwks_file = \"jwks.json\"\n[[upstream]]\nname = \
                 \"orders\"\nservers = [\"http://a\"]\n[[upstream]]",
                &[
                    "14:8: issuer.name corp is taken already in \
                     /etc/portcullis/portcullis.toml:9; give each its own",
                    "15:10: issuer.issuer https://idp.example.com is taken already in \
                     /etc/portcullis/portcullis.toml:10; give each its own",
                    "22:8: upstream.name orders is taken already in \
                     /etc/portcullis/portcullis.toml:19; give each its own",
                ],
            ),
            (
                "[xdp]",
                "[[route]]\nname = \"orders\"\npath = \"/orders\"\nupstream = \"orders\"\nrequire = \
                 [\"token\"]\n[xdp]",
                &[
                    "22:8: route.name orders is taken already in \
                     /etc/portcullis/portcullis.toml:17; give each its own",
                    "23:8: route.path \"/orders\", with its hosts and methods, is that of the \
                     route in /etc/portcullis/portcullis.toml:16, and the two cannot be told \
                     apart; change one of them or take it out",
                ],
            ),
            (
                "upstream = \"orders\"",
                "upstream = \"order\"",
                &["19:12: route.upstream \"order\" is no [[upstream]]; did you mean \"orders\"?"],
            ),
            (
                "upstream = \"orders\"",
                "upstream = \"billing\"",
                &[
                    "19:12: route.upstream \"billing\" is no [[upstream]]; add an [[upstream]] with \
                   name = \"billing\"",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]",
                "require = [\"certificate\"]\nscopes = [\"read\"]",
                &[
                    "21:10: route.scopes are a token's, but require has no \"token\"; add it there, \
                   or take scopes out",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]",
                "require = []\nroles = [\"admin\"]\nhours = \"08:00-18:00\"\nprincipals = [\"**\"]",
                &[
                    "22:9: route.hours has not the form; write it as in \"08:00-18:00 \
                     Europe/Berlin\" or \"Mon-Fri 08:00-18:00 Europe/Berlin\"",
                    "23:15: route.principals has \"**\" with more than one *; one stands for any \
                     characters, / among them",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]",
                "require = []\nroles = [\"admin\"]",
                &[
                    "21:9: route.roles are of somebody, but require is empty, so anybody may come; write \
                   what must be proven, or take roles out",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]",
                "require = []\nscopes = [\"read\"]",
                &[
                    "21:10: route.scopes are a token's, but require has no \"token\"; add it there, \
                   or take scopes out",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]\n",
                "",
                &["16:1: [[route]] has no require; add what must be proven, as in require = \
                   [\"certificate\", \"token\"], there is no default that could let somebody in by \
                   mistake"],
            ),
            (
                "servers = [\"http://192.0.2.9:9001\"]",
                "servers = [\"http://127.0.0.1:8443\"]",
                &[
                    "15:12: upstream.servers has 127.0.0.1:8443, which is the gateway's own listener \
                   (/etc/portcullis/portcullis.toml:3); name the server behind it",
                ],
            ),
            (
                "interfaces = [\"eth0\"]",
                "enforce = true",
                &["22:11: xdp.enforce is true, but interfaces is empty, so nothing can be \
                   dropped; name the interfaces or take enforce out"],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\nmanagement = [\"8443/udp\", \"8443/tcp\"]",
                &["23:27: xdp.management has 8443/tcp, which no rule would touch, and the same \
                   port is to be guarded; take it out of one of the two"],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\nallow = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.0/8\"]",
                &["24:9: xdp.deny has 10.0.0.0/8, which is also in allow \
                   (/etc/portcullis/portcullis.toml:23); take it out of one"],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\npackets = { rate = \"20000/s\", burst = 399 }",
                &[
                    "23:39: xdp.packets.burst is 399, which at 20000/s is less than 20 ms, two ticks \
                   of the kernel's clock; write at least 400",
                ],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\nconnections = { rate = \"1000/s\", burst = 19 }",
                &["23:42: xdp.connections.burst is 19, which at 1000/s is less than 20 ms, two \
                   ticks of the kernel's clock; write at least 20"],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\nbytes = { rate = \"50MiB/s\", burst = \"1000KiB\" }",
                &["23:37: xdp.bytes.burst is 1024000, which is less than 20 ms at the rate (two \
                   ticks of the kernel's clock) or than one frame; write at least \"1024KiB\""],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\n[xdp.packets]\nburst = 400",
                &["23:1: [xdp.packets] has no rate; add it, as in rate = \"20000/s\""],
            ),
            (
                "[xdp]",
                "[bans]\nladder = [\"1m\", \"10m\", \"5m\", \"5m\"]\n[xdp]",
                &[
                    "22:24: bans.ladder has 5m after 10m; write each ban longer than the one before",
                    "22:30: bans.ladder has this entry twice; take one of them out",
                ],
            ),
            (
                "[xdp]",
                "[admin]\nmetrics = \"127.0.0.1:8443\"\n[xdp]",
                &["22:11: admin.metrics 127.0.0.1:8443 and the listener at [::]:8443 \
                   (/etc/portcullis/portcullis.toml:3) want the same port; give one of them another"],
            ),
            (
                "address = \"[::]:8443\"",
                "address = \"127.0.0.1:9090\"",
                &["1:1: admin.metrics 127.0.0.1:9090 and the listener at 127.0.0.1:9090 \
                   (/etc/portcullis/portcullis.toml:3) want the same port; give one of them another"],
            ),
            (
                "jwks_file = \"jwks.json\"",
                "jwks_file = \"jwks.json\"\nalgorithms = [\"ES256\", \"HS256\"]",
                &[
                    "12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" is open to everybody on \
                     this machine (mode 0644); take that away (chmod o-rwx), and replace the key if \
                     somebody may have copied it",
                    "13:24: issuer.algorithms has HS256 beside others; whoever verifies it can also \
                     sign, so give it an [[issuer]] of its own or take it out",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]",
                "require = [\"token\"]\nbound_token = true",
                &["21:15: route.bound_token is true, which binds a token to a certificate, but \
                   require lacks one of them; write [\"certificate\", \"token\"]"],
            ),
        ];
        for (from, to, expected) in rows {
            let problems = Fake::new().load(&small(from, to)).expect_err(to);
            assert_eq!(problem_lines(&problems), *expected, "{to}");
        }
    }

    /// An identity table with these lines, before the rest.
    fn with_identity(lines: &str) -> String {
        small("[[upstream]]", &format!("[[identity]]\n{lines}\n[[upstream]]"))
    }

    #[test]
    fn identity_rules_are_read_or_refused() {
        let digest = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        for (lines, said) in [
            ("from = \"san_uri\"\nmatch = \"spiffe://example.org/*\"", ""),
            (
                "from = \"oid:1.2.3\"\nmatch = [\"*\"]\ntenant = \"{oid:1.2.4}\"\nroles = [\"a\"]",
                "",
            ),
            (&format!("from = \"sha256\"\nmatch = \"{colons}\"\nprincipal = \"partner\""), ""),
            ("from = \"issuer_serial\"\nmatch = \"*\"\nprincipal = \"partner:{value}\"", ""),
            ("from = \"san_uri\"", "13:1: [[identity]] has no match;"),
            ("match = \"x\"", "13:1: [[identity]] has no from;"),
            ("from = \"cn\"\nmatch = \"x\"", "14:8: identity.from is \"cn\"; write san_uri,"),
            (
                "from = \"san_uri\"\nmatch = \"*a*\"",
                "15:9: identity.match has more than one *; one stands for",
            ),
            (
                "from = \"san_uri\"\nmatch = [\"a\", \"b\"]",
                "15:15: identity.match has more than 1 for san_uri; write an [[identity]] for each",
            ),
            (
                "from = \"sha256\"\nmatch = \"abcd\"",
                "15:9: identity.match is no SHA-256; sha256 takes 64 hexadecimal digits,",
            ),
            (
                "from = \"san_uri\"\nmatch = \"x\"\nprincipal = \"{nobody}\"",
                "16:13: identity.principal is \"{nobody}\", in which {nobody} is neither",
            ),
            (
                "from = \"san_uri\"\nmatch = \"x\"\nroles = [\"a,b\"]",
                "16:10: identity.roles has \"a,b\"; write one role an entry",
            ),
            (
                "from = \"subject_cn\"\nmatch = \"x\"",
                "warning 14:8: identity.from is \"subject_cn\", a free text",
            ),
            (
                &format!("from = \"sha256\"\nmatch = [\"{digest}\", \"{}\"]", "0".repeat(64)),
                "warning 13:1: identity.principal is the fingerprint itself,",
            ),
        ] {
            let outcome = Fake::new().load(&with_identity(lines));
            let all = match &outcome {
                Ok((_, warnings)) => super::super::fake::lines(warnings)
                    .iter()
                    .map(|line| format!("warning {line}"))
                    .collect(),
                Err(problems) => problem_lines(problems),
            };
            let held = match said {
                "" => all.is_empty(),
                said => all.iter().any(|line| line.starts_with(said)),
            };
            assert!(held, "{lines}: {all:#?}");
        }
    }

    #[test]
    fn what_a_route_demands_is_read() {
        let text = small(
            "require = [\"certificate\", \"token\"]",
            "require = [\"certificate\", \"token\"]\nroles = [\"admin\"]\n\
             principals = [\"spiffe://a/*\", \"b\"]\nsources = [\"10.0.0.0/8\"]\n\
             hours = \"Mon-Fri 08:00-18:00 Europe/Berlin\"\npass_authorization = true",
        );
        let (config, warnings) = Fake::new().load(&text).unwrap();
        assert_eq!(warnings, Vec::<Warning>::new());
        let route = &config.routes[0];
        assert_eq!(
            format!("{:?}", route.demands),
            "Demands { certificate: true, token: true, binding: WhenBound, scopes: [], roles: [\"admin\"], principals: \
             [Pattern { before: \"spiffe://a/\", after: Some(\"\") }, Pattern { before: \"b\", after: \
             None }], sources: [10.0.0.0/8], hours: Some(Hours(\"Mon-Fri 08:00-18:00 \
             Europe/Berlin\")) }"
        );
        assert!(route.pass_authorization);
    }

    #[test]
    fn a_token_needs_an_issuer() {
        let (before, rest) = SMALL.split_once("[[issuer]]").unwrap();
        let (_, after) = rest.split_once("[[upstream]]").unwrap();
        let problems = Fake::new().load(&format!("{before}[[upstream]]{after}")).unwrap_err();
        assert_eq!(
            problem_lines(&problems),
            [
                "15:27: route.require has \"token\", but there is no [[issuer]] whose tokens could be \
              believed; add one, or take \"token\" out"
            ]
        );
    }

    #[test]
    fn what_is_probably_not_meant_is_a_warning() {
        let rows: &[Row<'_>] = &[
            (
                "interfaces = [\"eth0\"]",
                "mode = \"native\"",
                &[
                    "22:8: xdp.mode is \"native\", but interfaces is empty, so no program is loaded; \
                   name the interfaces or take mode out",
                ],
            ),
            (
                "jwks_file = \"jwks.json\"",
                "jwks_file = \"jwks.json\"\nleeway = \"5m\"\nmax_lifetime = \"1m\"",
                &[
                    "14:16: issuer.leeway 5m is longer than max_lifetime 1m, so a token is good for \
                   longer after its end than before; write a shorter one",
                ],
            ),
            (
                "client_ca = \"tls/clients-ca.pem\"",
                "client_ca = \"tls/clients-ca.pem\"\ncrl_expired = \"allow\"",
                &[
                    "8:15: listener.tls.crl_expired says what an expired list means, but client_crl \
                   names none; name the list or take crl_expired out",
                ],
            ),
            (
                "require = [\"certificate\", \"token\"]",
                "require = []",
                &[
                    "9:8: no route requires a token, so no issuer is ever asked; add \"token\" to \
                     route.require, or take the issuers out",
                    "20:11: route.require is empty, yet every listener demands a client \
                     certificate before any request; write [\"certificate\"], which is what holds",
                ],
            ),
            (
                "[[upstream]]",
                "[[upstream]]\nname = \"spare\"\nservers = [\"http://b\"]\n[[upstream]]",
                &["14:8: upstream \"spare\" is used by no route; add a route to it or take it out"],
            ),
            (
                "path = \"/orders\"",
                "path = \"/orders\"\nmethods = [\"GTE\", \"PROPFIND\"]",
                &["19:12: route.methods has \"GTE\"; did you mean \"GET\"?"],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\nports = [443]",
                &["23:9: xdp.ports leaves out 8443, where a listener is \
                   (/etc/portcullis/portcullis.toml:3); add it, or nothing guards that port"],
            ),
            (
                "interfaces = [\"eth0\"]",
                "interfaces = [\"eth0\"]\nallow = [\"::/0\", \"10.0.0.0/8\"]\ndeny = \
                 [\"10.1.0.0/16\", \"127.0.0.1\", \"192.0.2.9\", \"0.0.0.0/0\"]",
                &[
                    "23:10: xdp.allow has ::/0, which exempts everybody from every rule; write who \
                     is meant",
                    "24:9: xdp.deny has 10.1.0.0/16, which does nothing, for 10.0.0.0/8 is exempt; \
                     take it out",
                    "24:24: xdp.deny has 127.0.0.1/32, which does nothing, for 127.0.0.0/8 is \
                     exempt; take it out",
                    "24:37: xdp.deny has 192.0.2.9/32, which does nothing, for 192.0.2.9/32 is \
                     exempt; take it out",
                    "24:50: xdp.deny has 0.0.0.0/0, which refuses everybody who is not exempt; \
                     write who is meant",
                ],
            ),
            (
                "[xdp]",
                "[admin]\nallow = []\n[xdp]",
                &["22:9: admin.allow is empty, so nobody can read the metrics; write who may, as \
                   in [\"127.0.0.0/8\"]"],
            ),
        ];
        for (from, to, expected) in rows {
            let (_, warnings) = Fake::new().load(&small(from, to)).expect(to);
            assert_eq!(lines(&warnings), *expected, "{to}");
        }
    }

    #[test]
    fn a_role_that_nobody_can_have_is_a_warning() {
        let route = |lines: &str| {
            small(
                "require = [\"certificate\", \"token\"]",
                &format!("require = [\"certificate\"]\nroles = [\"till\"]\n{lines}"),
            )
        };
        let (_, warnings) = Fake::new().load(&route("")).unwrap();
        let said = lines(&warnings);
        let expected = "21:10: route.roles has \"till\", which no [[identity]] gives and no token is \
                        asked for; add it to the roles of one";
        assert!(said.iter().any(|line| line == expected), "{said:#?}");
        let rule = "[[identity]]\nfrom = \"san_uri\"\nmatch = \"*\"\nroles = [\"till\"]\n";
        let (_, warnings) = Fake::new().load(&route(rule)).unwrap();
        assert!(!lines(&warnings).iter().any(|line| line.contains("route.roles")));
    }

    #[test]
    fn routes_are_apart_by_host_method_or_path() {
        let route = |name: &str, rest: &str| {
            format!(
                "[[route]]\nname = {name:?}\nupstream = \"orders\"\nrequire = [\"token\"]\n{rest}\n"
            )
        };
        for (one, other, apart) in [
            ("path = \"/a\"", "path = \"/b\"", true),
            ("path = \"/a\"", "path = \"/a/b\"", true),
            ("path = \"/a\"", "path = \"/a\"", false),
            ("path = \"/a\"\nhosts = [\"x\"]", "path = \"/a\"", true),
            ("path = \"/a\"\nhosts = [\"x\"]", "path = \"/a\"\nhosts = [\"y\"]", true),
            ("path = \"/a\"\nhosts = [\"x\", \"y\"]", "path = \"/a\"\nhosts = [\"Y\"]", false),
            ("path = \"/a\"\nmethods = [\"GET\"]", "path = \"/a\"", true),
            ("path = \"/a\"\nmethods = [\"GET\"]", "path = \"/a\"\nmethods = [\"PUT\"]", true),
            ("path = \"/a\"\nmethods = [\"GET\"]", "path = \"/a\"\nmethods = [\"GET\"]", false),
            (
                "path = \"/a\"\nmethods = [\"GET\"]\nhosts = [\"x\"]",
                "path = \"/a\"\nmethods = [\"GET\"]\nhosts = [\"y\"]",
                true,
            ),
        ] {
            let routes = format!("{}{}[xdp]", route("one", one), route("other", other));
            let loaded = Fake::new().load(&small("[xdp]", &routes));
            assert_eq!(loaded.is_ok(), apart, "{one}\n{other}");
        }
    }

    #[test]
    fn every_file_that_is_named_is_judged() {
        type Change = fn(&mut Fake);
        let table: &[(Change, &str)] = &[
            (
                |fake| fake.files.clear(),
                "5:15: listener.tls.certificate \"/etc/portcullis/tls/server.pem\" does not exist; \
                 correct the path or create the file\n\
                 6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" does not exist; \
                 correct the path or create the file\n\
                 7:13: listener.tls.client_ca \"/etc/portcullis/tls/clients-ca.pem\" does not \
                 exist; correct the path or create the file\n\
                 12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" does not exist; correct the \
                 path or create the file",
            ),
            (
                |fake| fake.content("tls/server.key").mode = 0o644,
                "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" is open to \
                 everybody on this machine (mode 0644); take that away (chmod o-rwx), and replace \
                 the key if somebody may have copied it",
            ),
            (
                |fake| fake.content("tls/server.key").group = STRANGER_ID,
                "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" is open to \
                 group 1000 (mode 0640), which is not the daemon's own; take that away (chmod \
                 g-rwx) or give it to the daemon's group (chgrp)",
            ),
            (
                |fake| fake.put("tls/server.key", &LAB.other_key, 0o600),
                "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" does not belong \
                 to the certificate; name the key it was issued for",
            ),
            (
                // Both faults of the one file.
                |fake| fake.put("tls/server.key", &LAB.other_key, 0o604),
                "6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" does not belong \
                 to the certificate; name the key it was issued for\n\
                 6:15: listener.tls.private_key \"/etc/portcullis/tls/server.key\" is open to \
                 everybody on this machine (mode 0604); take that away (chmod o-rwx), and replace \
                 the key if somebody may have copied it",
            ),
            (
                |fake| fake.put("tls/server.pem", &LAB.server_der, 0o644),
                "5:15: listener.tls.certificate \"/etc/portcullis/tls/server.pem\" holds DER; \
                 convert the certificate to PEM (openssl … -inform DER)",
            ),
            (
                |fake| fake.put("tls/clients-ca.pem", "", 0o644),
                "7:13: listener.tls.client_ca \"/etc/portcullis/tls/clients-ca.pem\" holds no \
                 certificate in PEM; name the right file",
            ),
            (
                |fake| fake.put("jwks.json", "{\"keys\": []}", 0o644),
                "12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" holds no key, so every \
                 token would be refused; fetch it again",
            ),
            (
                |fake| fake.put("jwks.json", vec![b' '; MATERIAL_MAX_BYTES + 1], 0o644),
                "12:13: issuer.jwks_file \"/etc/portcullis/jwks.json\" is longer than 4096 KiB, \
                 which is more than such a file can need; name the right file",
            ),
        ];
        for (change, expected) in table {
            let mut fake = Fake::new();
            change(&mut fake);
            let problems = fake.load(SMALL).expect_err(expected);
            assert_eq!(problem_lines(&problems).join("\n"), *expected);
        }
    }

    #[test]
    fn keys_come_from_one_place() {
        let issuer = |lines: &str| {
            let text = small("jwks_file = \"jwks.json\"", lines);
            let mut fake = Fake::new();
            fake.put("idp-ca.pem", &LAB.authority, 0o644);
            fake.load(&text).map_err(|problems| problem_lines(&problems).join("\n"))
        };
        let second = Duration::from_secs;
        let default =
            RefreshRules { every: second(900), cooldown: second(30), believed: second(24 * 3600) };
        for (lines, expected) in [
            ("jwks_url = \"https://idp.example.com/keys\"", default),
            (
                "discovery_url = \"https://idp.example.com/d\"\nca = \"idp-ca.pem\"\n\
                 addresses = [\"192.0.2.77:443\"]\nrefresh = \"1m\"\ncooldown = \"2s\"\n\
                 idp_lost = \"available\"\nmax_stale = \"1h\"",
                RefreshRules { every: second(60), cooldown: second(2), believed: second(3600) },
            ),
            (
                "jwks_url = \"http://127.0.0.1:9/k\"\nidp_lost = \"strict\"",
                RefreshRules { every: second(60), believed: second(300), ..default },
            ),
        ] {
            let (config, warnings) = issuer(lines).unwrap();
            assert_eq!(warnings, Vec::<Warning>::new());
            let KeySource::Remote(keys) = &config.issuers[0].keys else { panic!("{lines}") };
            assert_eq!(keys.refresh, expected, "{lines}");
            let exempt = config.xdp.map(|xdp| xdp.exempt).unwrap_or_default();
            let stands = exempt.contains(&"192.0.2.77/32".parse().unwrap());
            assert_eq!(stands, !keys.addresses.is_empty());
        }
        for (lines, expected) in [
            (
                "leeway = \"1s\"",
                "8:1: [[issuer]] has no jwks_file; add it, as in jwks_file = \"jwks.json\"",
            ),
            (
                "jwks_file = \"jwks.json\"\njwks_url = \"https://idp/\"",
                "13:12: issuer.jwks_url stands beside jwks_file, and an issuer's keys come from one \
                 place; take one of them out",
            ),
            (
                "jwks_url = \"http://idp.example.com/keys\"",
                "12:12: issuer.jwks_url is \"http://idp.example.com/keys\": it is not https://, \
                 and http:// is for this machine's loopback only; write it as in \
                 \"https://idp.example.com/keys\"",
            ),
            (
                "jwks_file = \"jwks.json\"\nmax_stale = \"1h\"",
                "13:13: issuer.max_stale is about keys that are fetched, and these come from a \
                 file; take it out, or name the issuer's jwks_url or discovery_url",
            ),
            (
                "jwks_url = \"https://idp/\"\nidp_lost = \"strict\"\nmax_stale = \"1h\"",
                "14:13: issuer.max_stale is how long old keys serve, but idp_lost is \"strict\", \
                 which refuses after 5 minutes; take one of them out",
            ),
            (
                "jwks_url = \"https://idp/\"\nalgorithms = [\"HS256\"]",
                "12:12: issuer.jwks_url would show a shared key to whoever asks; keep the key of \
                 HS256 in a file, named by jwks_file",
            ),
        ] {
            assert_eq!(issuer(lines).unwrap_err(), expected, "{lines}");
        }
    }

    #[test]
    fn revoked_tokens_are_listed_whole() {
        let text = SMALL.to_owned() + "[revocation]\ntokens_file = \"revoked.jti\"\n";
        let listed = |list: Option<&str>| {
            let mut fake = Fake::new();
            if let Some(list) = list {
                fake.put("revoked.jti", list, 0o644);
            }
            fake.load(&text).map_err(|problems| problem_lines(&problems).join("\n"))
        };
        let (config, warnings) = listed(Some("https://idp.example.com 7f3c\n")).unwrap();
        assert_eq!(
            config.revoked_tokens.as_deref(),
            Some(Path::new("/etc/portcullis/revoked.jti"))
        );
        assert_eq!(warnings, Vec::<Warning>::new());
        for (list, expected) in [
            (None, "does not exist; correct the path or create the file"),
            (
                Some("https://idp.example.com 7f3c"),
                "the last line has no end, so it may be half written; end each line with a newline",
            ),
        ] {
            let expected =
                format!("24:15: revocation.tokens_file \"/etc/portcullis/revoked.jti\" {expected}");
            assert_eq!(listed(list).unwrap_err(), expected);
        }
    }

    #[test]
    fn files_that_are_odd_are_warned_of() {
        type Change = fn(&mut Fake);
        let table: &[(Change, &str)] = &[
            (|_| (), ""),
            (
                |fake| fake.content("tls/server.key").owner = STRANGER_ID,
                "6:15: listener.tls.private_key tls/server.key belongs to user 1000, who is \
                 neither root nor the daemon; change its owner (chown)",
            ),
            (
                |fake| {
                    let chain = format!("{}{}", LAB.server, LAB.authority);
                    fake.put("tls/server.pem", chain, 0o644);
                },
                "5:15: certificate 2 of tls/server.pem did not issue the one before it; put the \
                 leaf first, then each issuer",
            ),
            (
                |fake| {
                    let anchors = format!("{}{}", LAB.authority, LAB.other_authority);
                    fake.put("tls/clients-ca.pem", anchors, 0o644);
                },
                "8:14: listener.tls.client_crl has no list of \"CN=Other Root\", which \
                 tls/clients-ca.pem trusts; add it, or what it revoked stays unknown",
            ),
            (
                |fake| {
                    let anchors = format!("{}{}", LAB.authority, LAB.server);
                    fake.put("tls/clients-ca.pem", anchors, 0o644);
                },
                "7:13: listener.tls.client_ca tls/clients-ca.pem: \"CN=edge.example\" is not the \
                 certificate of an authority, no client certificate can chain to it; name the \
                 authority's\n\
                 8:14: listener.tls.client_crl has no list of \"CN=edge.example\", which \
                 tls/clients-ca.pem trusts; add it, or what it revoked stays unknown",
            ),
        ];
        let ca = "client_ca = \"tls/clients-ca.pem\"";
        let text = small(ca, &format!("{ca}\nclient_crl = [\"tls/clients.crl\"]"));
        for (change, expected) in table {
            let mut fake = Fake::new();
            change(&mut fake);
            let (_, warnings) = fake.load(&text).expect(expected);
            assert_eq!(lines(&warnings).join("\n"), *expected);
        }
    }

    #[test]
    fn the_path_of_the_socket_fits_where_the_kernel_keeps_it() {
        for (length, fits) in [(SOCKET_PATH_MAX_BYTES, true), (SOCKET_PATH_MAX_BYTES + 1, false)] {
            let socket = format!("/{}", "s".repeat(length - 1));
            let text = small("[xdp]", &format!("[admin]\nsocket = {socket:?}\n[xdp]"));
            assert_eq!(Fake::new().load(&text).is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn sockets_that_cannot_both_be_bound_overlap() {
        for (a, b, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ] {
            let (a, b): (SocketAddr, SocketAddr) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!((overlap(&a, &b), overlap(&b, &a)), (expected, expected), "{a} {b}");
        }
    }
}
