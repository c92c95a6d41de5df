//! The control thread's state and what it does with it: bans, reloads, answers, the drain.

mod agent;
mod classes;
mod drain;
pub(super) mod drops;
mod figures;
pub(super) mod host;
mod succession;
pub(super) mod upstreams;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_ebpf::{Source, verdict::Quota};
use ipnet::IpNet;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use self::{drain::Drain, succession::Succession};
use super::{
    course::Course,
    doors::Doors,
    kernel_settings,
    keys::IssuerKeys,
    listeners::{Inherited, Listeners, Prepared},
    load_snapshot,
    refresh::Followed,
    spared,
};
use crate::{
    admin::{
        metrics::{self, ControlMetrics, Reading, WorkerMetrics},
        monitor::{Readiness, is_allowed},
        notify::Notify,
        socket::{
            AllowanceRow, Answer, BanRow, CertificateStatus, CountRow, Explanation, IssuerStatus,
            LimitStatus, Overview, PacketRow, PastRefusal, Question, RefusedFile, SourceRow,
            Status, XdpInterface, XdpStatus,
        },
    },
    config::{self, Config, Disk, Issuer, KeySource},
    confinement::Confinement,
    identity::token::Keys,
    kernel::{self, Agent, Ban, BanOutcome, Filter, PrefixBan, PrefixBanOutcome},
    net::{
        descriptors,
        worker::{Command, Handle, Phase, Shared},
    },
    policy::{
        Reason,
        limit::{self, Limiter, Limiters, Mode},
        penalty::{self, Arrived, Block, Evidence, Ledger, overlaps},
    },
    snapshot::{Published, Snapshot},
    time,
    upstream::resolve::{self, Addresses},
    watch::Watch,
};

/// A worker that does not give its counts within this is stuck, and its last ones are used.
const SCRAPE_MAX: Duration = Duration::from_secs(1);

/// Longest ban by hand: a year. What should last longer belongs into `[xdp].deny`.
const BAN_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest time to confirm in; for longer, observing is the honest setting.
const CONFIRM_MAX: Duration = Duration::from_secs(3600);

/// Sources that `portcullis top` is told of: more than a screen shows.
const TOP_SOURCES: usize = 50;

/// Operators' notes kept at once.
const NOTES_MAX: usize = 4_096;

/// Longest note, in bytes.
const NOTE_MAX_BYTES: usize = 256;

/// Who set a ban, as the kernel's map keeps it.
const ORIGIN_EVIDENCE: u32 = 0;
const ORIGIN_OPERATOR: u32 = 1;

/// Everything that only the control thread touches.
pub(super) struct Control {
    path: PathBuf,
    config: RefCell<Config>,
    shared: Shared,
    listeners: RefCell<Listeners>,
    doors: Doors,
    /// Another process that takes over, if one does.
    succession: RefCell<Succession>,
    notify: Notify,
    /// What the workers were asked for the service manager's sake.
    pulse: RefCell<succession::Pulse>,
    /// Names of sockets that the service manager keeps.
    kept: RefCell<BTreeSet<String>>,
    /// Keeps what this process has given up.
    agent: Rc<Agent>,
    /// What else it has given up.
    confinement: Confinement,
    /// The drain that is going on, if one is.
    drain: RefCell<Option<Drain>>,
    workers: Vec<Handle>,
    /// The last counts of each worker.
    counted: RefCell<Vec<WorkerMetrics>>,
    kernel: RefCell<Option<Filter>>,
    /// Bans in force when there is no kernel half to keep them.
    bans: RefCell<HashMap<Source, UserBan>>,
    ledger: RefCell<Ledger>,
    /// Sources whose limits in the kernel differ from everybody's.
    classes: RefCell<classes::Classes>,
    /// Never dropped: own addresses, gateways, upstreams, `[xdp].allow`.
    exempt: RefCell<Vec<IpNet>>,
    /// Never banned, by evidence or by hand: the exempt and `[bans].never`.
    never: RefCell<Vec<IpNet>>,
    /// By the source or prefix as listed.
    notes: RefCell<HashMap<String, String>>,
    metrics: RefCell<ControlMetrics>,
    /// For pages that are left open.
    figures_kept: RefCell<figures::Kept>,
    tell: Tell,
    /// Interfaces that should have the XDP program and have not, and why.
    unguarded: RefCell<BTreeMap<String, String>>,
    followers: drops::Followers,
    /// When the XDP program goes back to counting, unless the operator confirms before.
    unconfirmed_until: Cell<Option<Instant>>,
    /// What an operator switched dropping to since the configuration was loaded.
    switched: Cell<Option<bool>>,
    /// Configurations applied; snapshots are counted by themselves, for files change without them.
    generation: Cell<u64>,
    files: RefCell<Followed>,
    issuer_keys: RefCell<IssuerKeys>,
    host: RefCell<host::Watcher>,
    /// Where the names of upstream servers lead to.
    addresses: RefCell<Addresses>,
    started_at: Instant,
}

/// What serves.
pub(super) struct Serving {
    pub(super) listeners: Listeners,
    pub(super) doors: Doors,
    pub(super) notify: Notify,
    pub(super) agent: Rc<Agent>,
    pub(super) confinement: Confinement,
    /// Addresses whose sockets the service manager keeps for nobody.
    pub(super) stale: Vec<SocketAddr>,
    pub(super) workers: Vec<Handle>,
}

/// What workers and connections are told.
pub(super) struct Tell {
    /// What the process is doing.
    pub(super) phase: watch::Sender<Phase>,
    /// That another state was published.
    pub(super) news: watch::Sender<()>,
}

/// What was looked at before anything was read.
pub(super) struct Seen {
    /// The files of the configuration.
    pub(super) files: Watch,
    /// Where the names of upstream servers lead to.
    pub(super) addresses: Addresses,
}

/// A ban that user space keeps.
#[derive(Clone, Copy)]
struct UserBan {
    until: Instant,
    reason: u32,
    origin: u32,
    level: u32,
}

impl Control {
    pub(super) fn new(
        path: &Path,
        config: Config,
        shared: Shared,
        Serving { listeners, doors, workers, notify, agent, confinement, stale }: Serving,
        kernel: Option<(Filter, Vec<String>)>,
        tell: Tell,
        seen: Seen,
    ) -> Control {
        let Seen { files, addresses } = seen;
        let kernel = kernel.map(|(kernel, notices)| {
            for notice in notices {
                tracing::info!(detail = %notice, "xdp");
            }
            kernel
        });
        let counted = vec![WorkerMetrics::new(0); workers.len()];
        let settings = penalty_settings(&config, &[]);
        // Digits that differ from run to run; when they are none, the spread is that of others too.
        let seed = u64::from_str_radix(&shared.run_id, 16).unwrap_or_default();
        let issuer_keys = IssuerKeys::new(&config, seed, time::monotonic());
        Control {
            path: path.to_path_buf(),
            ledger: RefCell::new(Ledger::new(settings)),
            classes: RefCell::default(),
            exempt: RefCell::default(),
            never: RefCell::default(),
            config: RefCell::new(config),
            shared,
            listeners: RefCell::new(listeners),
            doors,
            succession: RefCell::default(),
            notify,
            pulse: RefCell::default(),
            kept: RefCell::new(stale.into_iter().map(kept_name).collect()),
            agent,
            confinement,
            drain: RefCell::default(),
            workers,
            counted: RefCell::new(counted),
            kernel: RefCell::new(kernel),
            bans: RefCell::default(),
            notes: RefCell::default(),
            metrics: RefCell::default(),
            figures_kept: RefCell::default(),
            tell,
            unguarded: RefCell::default(),
            followers: drops::Followers::default(),
            unconfirmed_until: Cell::new(None),
            switched: Cell::new(None),
            generation: Cell::new(1),
            files: RefCell::new(Followed::new(files)),
            issuer_keys: RefCell::new(issuer_keys),
            host: RefCell::default(),
            addresses: RefCell::new(addresses),
            started_at: time::monotonic(),
        }
    }

    /// Takes over what outlived an earlier process.
    /// `is_alone` is false when the process before went on, and this one has to go at once.
    pub(super) fn started(self: &Rc<Self>, is_alone: bool) {
        if !is_alone {
            self.succession.borrow_mut().is_done = true;
            self.drain();
            return;
        }
        self.doors.open(self);
        self.keep_sockets();
        self.notify.ready();
        self.set_never();
        let kernel = self.kernel.borrow();
        let Some(kernel) = kernel.as_ref() else { return };
        let status = kernel.status();
        for interface in xdp_status(kernel).interfaces {
            tracing::info!(
                interface = interface.name,
                mode = interface.mode,
                program_id = interface.program_id,
                enforce = status.enforce,
                "xdp attached"
            );
        }
        match kernel.bans() {
            Ok(bans) => {
                let now = time::monotonic();
                if self.has_proxies() {
                    let again = |ban: &kernel::BanEntry| Ban {
                        source: ban.source,
                        lasts: ban.remaining,
                        reason: ban.reason,
                        origin: ban.origin,
                        level: ban.level,
                    };
                    self.ban_in_user_space(&bans.iter().map(again).collect::<Vec<_>>());
                }
                let mut ledger = self.ledger.borrow_mut();
                for ban in bans.iter().filter(|ban| ban.origin == ORIGIN_EVIDENCE) {
                    ledger.adopt(ban.source, ban.level, ban.remaining, now);
                }
            }
            Err(error) => tracing::error!(error = %error, "bans not read"),
        }
    }

    /// Gathers who must never be banned: the configured, and who is exempt in the kernel anyway.
    fn set_never(&self) {
        let config = self.config.borrow();
        let mut exempt = config.xdp.as_ref().map_or_else(Vec::new, |xdp| xdp.exempt.clone());
        exempt.extend(upstreams::networks(&self.addresses.borrow()));
        match crate::net::addresses::infrastructure() {
            Ok(found) => exempt.extend(found),
            Err(error) => tracing::error!(error = %error, "own addresses not read"),
        }
        // Without a kernel half nobody has gathered them before.
        let proxies = config.listeners.iter().filter_map(|listener| listener.proxies.as_ref());
        let issuers = config.issuers.iter().flat_map(|issuer| issuer.keys.networks());
        for net in proxies.flatten().copied().chain(issuers) {
            if !exempt.contains(&net) {
                exempt.push(net);
            }
        }
        let mut never = config.bans.never.clone();
        never.extend(&exempt);
        self.shared.admission.set_share(config.server.max_connections_per_source, never.clone());
        self.deny_behind_proxies();
        self.ban_prefixes_behind_proxies();
        self.ledger.borrow_mut().set(penalty_settings(&config, &never));
        *self.exempt.borrow_mut() = exempt;
        *self.never.borrow_mut() = never;
    }

    /// The program cannot tell clients of one proxy apart, so who is denied is turned away at accept
    /// there, whenever the program would drop.
    fn deny_behind_proxies(&self) {
        let config = self.config.borrow();
        let enforce = self.switched.get().unwrap_or_else(|| self.configured_enforce());
        let settings = config.xdp.as_ref().filter(|_| enforce);
        let denied = settings.map(|settings| settings.deny.clone()).unwrap_or_default();
        self.shared.admission.set_denied(denied);
    }

    /// Nor can it ban prefixes of them.
    fn ban_prefixes_behind_proxies(&self) {
        let kernel = self.kernel.borrow();
        let kernel = kernel.as_ref().filter(|_| self.has_proxies());
        let banned = match kernel.map(Filter::prefix_bans).transpose() {
            Ok(banned) => banned.unwrap_or_default(),
            Err(error) => return tracing::error!(error = %error, "banned prefixes not read"),
        };
        let now = time::monotonic();
        let banned = banned.iter().map(|ban| (ban.net, now + ban.remaining)).collect();
        self.shared.admission.set_banned_networks(banned);
    }

    /// Remembers that dropping was switched on or off in the kernel, and does the same at accept.
    fn was_switched(&self, enforce: bool) {
        self.switched.set(Some(enforce));
        self.deny_behind_proxies();
    }

    /// Evidence → blocks → bans, all of a batch in one turn.
    pub(super) fn judge(&self, batch: impl Iterator<Item = Evidence>) {
        let mut sources = Vec::new();
        let blocks: Vec<Block> = {
            let mut ledger = self.ledger.borrow_mut();
            batch
                .filter_map(|evidence| {
                    // Packets of who came through a proxy bear the proxy's address.
                    if evidence.arrived == Arrived::Directly {
                        sources.push(evidence.source);
                    }
                    ledger.record(evidence)
                })
                .collect()
        };
        self.carry_out(blocks);
        sources.sort_unstable_by_key(|source| source.word());
        sources.dedup();
        self.classify(sources.into_iter());
    }

    fn carry_out(&self, blocks: Vec<Block>) {
        if blocks.is_empty() {
            return;
        }
        let ban = |block: &Block| Ban {
            source: block.source,
            lasts: block.lasts,
            reason: block.reason as u32,
            origin: ORIGIN_EVIDENCE,
            level: block.level,
        };
        // Who came through a proxy is kept out here: its packets bear the proxy's address, and its own
        // address may be somebody else's on this side of the proxy.
        let (direct, proxied): (Vec<Block>, Vec<Block>) =
            blocks.into_iter().partition(|block| block.arrived == Arrived::Directly);
        let mut outcomes = self.ban(&direct.iter().map(ban).collect::<Vec<_>>());
        outcomes.extend(self.ban_in_user_space(&proxied.iter().map(ban).collect::<Vec<_>>()));
        let blocks: Vec<Block> = direct.into_iter().chain(proxied).collect();
        let now = time::monotonic();
        let mut metrics = self.metrics.borrow_mut();
        for (block, (source, outcome)) in blocks.iter().zip(outcomes) {
            let took = now.saturating_duration_since(block.evidence_at);
            match outcome {
                Ok(()) => {
                    metrics.ban_feedback.observe(took);
                    *metrics.bans.entry(block.reason).or_default() += 1;
                    self.note(source.to_string(), reasons(block));
                    tracing::warn!(
                        source = %source,
                        reason = block.reason.word(),
                        origin = "evidence",
                        level = block.level,
                        lasts_s = block.lasts.as_secs(),
                        feedback_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                        "ban"
                    );
                }
                Err(why) => {
                    self.ledger.borrow_mut().release(source);
                    tracing::error!(source = %source, detail = %why, "ban not set");
                }
            }
        }
    }

    /// Writes bans where they are kept: the kernel's map, or user space's table without one.
    fn ban(&self, bans: &[Ban]) -> Vec<(Source, Result<(), String>)> {
        if let Some(kernel) = self.told_kernel().as_ref() {
            let result = |outcome| match outcome {
                BanOutcome::Set | BanOutcome::Replaced => Ok(()),
                BanOutcome::Exempt => Err("the source is exempt".to_owned()),
                BanOutcome::TableFull => Err("the kernel's table of bans is full".to_owned()),
                BanOutcome::Failed(error) => Err(error.to_string()),
            };
            if self.has_proxies() {
                self.ban_in_user_space(bans);
            }
            let outcomes = kernel.ban(bans);
            if kernel.is_told() {
                let results = outcomes.into_iter();
                return results.map(|(source, outcome)| (source, result(outcome))).collect();
            }
        }
        // Without a kernel half, and until the next agent is told.
        self.ban_in_user_space(bans)
    }

    /// Whether clients come through proxies, whose packets the kernel must let in.
    fn has_proxies(&self) -> bool {
        self.config.borrow().listeners.iter().any(|listener| listener.proxies.is_some())
    }

    /// Bans that are enforced when a connection is accepted, or said to be whose it is.
    fn ban_in_user_space(&self, bans: &[Ban]) -> Vec<(Source, Result<(), String>)> {
        let now = time::monotonic();
        let mut table = self.bans.borrow_mut();
        bans.iter()
            .map(|ban| {
                let until = now + ban.lasts;
                if !self.shared.admission.ban(ban.source, until, now) {
                    return (ban.source, Err("the table of bans is full".to_owned()));
                }
                let Ban { reason, origin, level, .. } = *ban;
                table.insert(ban.source, UserBan { until, reason, origin, level });
                (ban.source, Ok(()))
            })
            .collect()
    }

    fn unban(&self, source: Source) -> Result<bool, String> {
        self.ledger.borrow_mut().forget(source);
        self.notes.borrow_mut().remove(&source.to_string());
        self.shared.admission.unban(source);
        let was_here = self.bans.borrow_mut().remove(&source).is_some();
        if let Some(kernel) = self.kernel.borrow_mut().as_mut() {
            return kernel
                .unban(&[source])
                .map(|count| count > 0 || was_here)
                .map_err(|error| error.to_string());
        }
        Ok(was_here)
    }

    fn ban_rows(&self) -> Result<Vec<BanRow>, String> {
        let notes = self.notes.borrow();
        let row = |source: String, reason, origin, level, remaining: Duration| BanRow {
            reason: Reason::from_code(reason).map_or("unknown", Reason::word).to_owned(),
            origin: origin_word(origin).to_owned(),
            level,
            remaining_s: (remaining.as_secs_f64() * 10.0).round() / 10.0,
            note: notes.get(&source).cloned(),
            source,
        };
        let now = time::monotonic();
        let table = self.bans.borrow();
        // Those that user space enforces, as far as they are `wanted`.
        let here = |wanted: &dyn Fn(&Source) -> bool| -> Vec<BanRow> {
            let in_force = table.iter().filter(|(source, ban)| now < ban.until && wanted(source));
            in_force
                .map(|(source, ban)| {
                    row(source.to_string(), ban.reason, ban.origin, ban.level, ban.until - now)
                })
                .collect()
        };
        if let Some(kernel) = self.kernel.borrow().as_ref() {
            let bans = kernel.bans().map_err(|error| error.to_string())?;
            let prefixes = kernel.prefix_bans().map_err(|error| error.to_string())?;
            let of_sources = bans.iter().map(|ban| {
                row(ban.source.to_string(), ban.reason, ban.origin, ban.level, ban.remaining)
            });
            let of_prefixes = prefixes
                .iter()
                .map(|ban| row(ban.net.to_string(), ban.reason, ban.origin, 0, ban.remaining));
            let mut rows: Vec<BanRow> = of_sources.chain(of_prefixes).collect();
            let kept: HashSet<Source> = bans.iter().map(|ban| ban.source).collect();
            rows.extend(here(&|source| !kept.contains(source)));
            return Ok(rows);
        }
        Ok(here(&|_| true))
    }

    /// Removes what has expired.
    pub(super) fn sweep(&self) {
        if let Some(kernel) = self.told_kernel().as_ref()
            && let Err(error) = kernel.sweep()
        {
            tracing::error!(error = %error, "expired bans not removed");
        }
        let now = time::monotonic();
        self.bans.borrow_mut().retain(|_, ban| now < ban.until);
        self.classes.borrow_mut().sweep(now);
        // Notes of bans that have ended, once there are many.
        if self.notes.borrow().len() > NOTES_MAX / 2
            && let Ok(rows) = self.ban_rows()
        {
            let banned: HashSet<String> = rows.into_iter().map(|row| row.source).collect();
            self.notes.borrow_mut().retain(|source, _| banned.contains(source));
        }
    }

    /// Keeps why somebody is banned, in words, beside the ban.
    fn note(&self, source: String, note: String) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < NOTES_MAX || notes.contains_key(&source) {
            notes.insert(source, note);
        }
    }

    /// SIGHUP: all of it, or nothing and one line that says why.
    pub(super) fn reload(self: &Rc<Self>) -> Result<u64, String> {
        self.notify.reloading(time::monotonic_us());
        let outcome = self.try_reload().map_err(|why| self.confinement.explained(why));
        if outcome.is_ok() {
            self.keep_sockets();
        }
        // Whatever came of it: it serves.
        self.notify.ready();
        match outcome {
            Ok(()) => {
                let mut metrics = self.metrics.borrow_mut();
                metrics.reloads_applied += 1;
                metrics.last_reload_refused = false;
                tracing::info!(generation = self.generation.get(), result = "applied", "reload");
                Ok(self.generation.get())
            }
            Err(why) => {
                let mut metrics = self.metrics.borrow_mut();
                metrics.reloads_refused += 1;
                metrics.last_reload_refused = true;
                tracing::error!(
                    generation = self.generation.get(),
                    result = "refused",
                    detail = %why.replace('\n', "; "),
                    "reload"
                );
                Err(why)
            }
        }
    }

    fn try_reload(self: &Rc<Self>) -> Result<(), String> {
        if self.drain.borrow().is_some() {
            return Err("the daemon is draining; nothing is changed any more".to_owned());
        }
        if self.succession.borrow().is_under_way {
            return Err("another process is taking over; ask it".to_owned());
        }
        let (config, warnings) =
            config::load(&self.path, &Disk::new()).map_err(|problems| problems.to_string())?;
        needs_restart(&self.config.borrow(), &config)?;
        let watch = Followed::look(&config);
        let snapshot = load_snapshot(&config, self.shared.published.load().generation + 1)
            .map_err(|errors| {
                errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            })?;
        let mut addresses = self.addresses.borrow().clone();
        upstreams::look_up_new(&config, &mut addresses);
        let settings = kernel_settings(&config, &upstreams::networks(&addresses))
            .map_err(|error| error.to_string())?;
        // A hot host stays as careful as it is.
        let settings = settings.map(|settings| host::tightened(settings, self.divisor()));
        let doors = Doors::prepare(&self.config.borrow().admin, &config.admin)?;
        let listeners = self
            .listeners
            .borrow()
            .prepare(&config.listeners, self.workers.len(), &mut Inherited::default())
            .map_err(|error| error.to_string())?;
        self.workers_listen(listeners.new_sockets())?;
        // The last that may refuse.
        if let (Some(kernel), Some(settings)) =
            (self.kernel.borrow_mut().as_mut(), settings.as_ref())
        {
            for notice in kernel.apply(settings).map_err(|error| error.to_string())? {
                tracing::info!(detail = %notice, "xdp");
            }
        }
        for warning in &warnings {
            tracing::warn!(detail = %warning, "configuration");
        }
        // What is configured is in force now, so there is nothing left to confirm.
        self.unconfirmed_until.set(None);
        self.switched.set(None);
        self.issuer_keys.borrow_mut().replace(&config, time::monotonic());
        *self.addresses.borrow_mut() = addresses;
        self.publish(snapshot.at(&listeners.places(), &self.shared.published.load()));
        self.apply(listeners, &config);
        let before = self.config.replace(config);
        self.doors.take(self, doors, &before.admin.socket);
        self.generation.set(self.generation.get() + 1);
        self.files.borrow_mut().replace(watch);
        self.set_never();
        Ok(())
    }

    /// Has the service manager keep the sockets, so that they outlive this process; none of those that
    /// are listened on no longer, or what connects there would wait for nobody.
    fn keep_sockets(&self) {
        let mut names = BTreeMap::<String, Vec<RawFd>>::new();
        let listeners = self.listeners.borrow();
        for (address, socket) in listeners.sockets_held() {
            names.entry(kept_name(address)).or_default().push(socket.as_raw_fd());
        }
        let mut kept = self.kept.borrow_mut();
        for gone in kept.iter().filter(|name| !names.contains_key(*name)) {
            self.notify.forget(gone);
        }
        for (name, sockets) in names.iter().filter(|(name, _)| !kept.contains(*name)) {
            self.notify.keep(name, sockets);
        }
        *kept = names.into_keys().collect();
    }

    /// Whether every worker takes commands: one that does not is stuck, and would not listen.
    fn workers_listen(&self, sockets: usize) -> Result<(), String> {
        // One more than the sockets: the token cache's.
        let commands = sockets.div_ceil(self.workers.len().max(1)) + 1;
        let stuck = |(id, worker): (usize, &Handle)| {
            (worker.commands.capacity() < commands).then(|| format!("worker {id}"))
        };
        match self.workers.iter().enumerate().find_map(stuck) {
            None => Ok(()),
            Some(worker) => Err(format!("{worker} does not take commands; restart the daemon")),
        }
    }

    /// Tells workers what a new configuration means for them. The snapshot is published already: a
    /// connection finds its listener in it.
    fn apply(&self, listeners: Prepared, config: &Config) {
        let course = Course::of_leave(time::monotonic(), config.server.drain_timeout);
        for sockets in self.listeners.borrow_mut().make(listeners, course) {
            for (number, socket) in sockets.into_iter().enumerate() {
                self.command(number % self.workers.len(), Command::Listen(socket));
            }
        }
        let wanted = config.server.max_connections;
        let fit = descriptors::make_room(wanted).map_or(wanted, |room| {
            if let Some(shortage) = room.shortage() {
                tracing::warn!(detail = %shortage, "descriptors");
            }
            room.connections_max
        });
        self.shared.admission.set_open_max(fit);
        self.shared.log.set_format(config.log.format);
        let before = self.config.borrow().token_cache.clone();
        if before != config.token_cache {
            let entries = config.token_cache.entries.div_ceil(self.workers.len());
            let ttl = config.token_cache.ttl;
            for worker in 0..self.workers.len() {
                self.command(worker, Command::TokenCache { entries, ttl });
            }
        }
    }

    fn command(&self, worker: usize, command: Command) {
        // There is room: it was looked for before anything was changed, and nobody else sends.
        if let Err(error) = self.workers[worker].commands.try_send(command) {
            tracing::error!(worker, error = %error, "worker lost");
        }
    }

    /// From now on this is what handshakes and requests are judged by.
    ///
    /// Whoever made it may have begun before another was published, so number and fetched keys are
    /// put in here.
    pub(super) fn publish(&self, mut snapshot: Snapshot) {
        let before = self.shared.published.load();
        snapshot.generation = before.generation + 1;
        snapshot.limits = snapshot.limits.resume(&before.limits, time::monotonic());
        snapshot.issuers = self.issuer_keys.borrow().put_into(
            &snapshot.issuers,
            &before.issuers,
            snapshot.generation,
        );
        let addresses = self.addresses.borrow();
        let now = time::monotonic();
        resolve::settle(&mut snapshot.upstreams, &addresses, &before.upstreams, now);
        self.shared.published.store(Arc::new(snapshot));
        // Connections judge their clients again; receivers live as long as the workers.
        let _ = self.tell.news.send(());
    }

    /// From now on limits count on from what was used in another process.
    pub(super) fn go_on_with_limits(&self, used: Vec<(Arc<str>, limit::Used)>, now: Instant) {
        if used.is_empty() {
            return;
        }
        let before = self.shared.published.load_full();
        self.shared.published.store(Arc::new(Snapshot {
            generation: before.generation + 1,
            limits: before.limits.going_on(&used, now),
            ..(*before).clone()
        }));
    }

    /// Publishes the keys of issuers, where they have changed.
    pub(super) fn publish_keys(&self) {
        let before = self.shared.published.load_full();
        let generation = before.generation + 1;
        let issuers =
            self.issuer_keys.borrow().put_into(&before.issuers, &before.issuers, generation);
        if !Arc::ptr_eq(&issuers, &before.issuers) {
            self.shared.published.store(Arc::new(Snapshot {
                generation,
                issuers,
                ..(*before).clone()
            }));
            // As in `publish`.
            let _ = self.tell.news.send(());
        }
    }

    /// Does something with the keys that are fetched.
    pub(super) fn issuer_keys<T>(&self, act: impl FnOnce(&mut IssuerKeys) -> T) -> T {
        act(&mut self.issuer_keys.borrow_mut())
    }

    /// Where the state to serve by is published.
    pub(super) fn published(&self) -> Published {
        self.shared.published.clone()
    }

    /// Configurations applied so far.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// The configuration and the snapshot in force.
    pub(super) fn in_force(&self) -> (Config, Arc<Snapshot>) {
        (self.config.borrow().clone(), self.shared.published.load_full())
    }

    /// Does something with the files that are followed.
    pub(super) fn followed<T>(&self, act: impl FnOnce(&mut Followed) -> T) -> T {
        act(&mut self.files.borrow_mut())
    }

    /// The operators' socket goes with the daemon; the XDP program stays, on purpose.
    pub(super) fn close(&self) {
        if self.succession.borrow().is_done {
            return;
        }
        // That it is gone already is as good.
        let _ = std::fs::remove_file(&self.config.borrow().admin.socket);
    }

    /// Whether the node should get traffic.
    pub(super) fn readiness(&self) -> Readiness {
        if self.drain.borrow().is_some() {
            return Err("draining".to_owned());
        }
        if let Some(issuer) = self.issuer_keys.borrow().starting() {
            return Err(format!("starting: issuer {issuer} has not given its keys yet"));
        }
        self.host_readiness()?;
        // While another process takes over, the program filters on, and the other says how it is.
        if self.config.borrow().xdp.is_none() || self.succession.borrow().is_under_way {
            return Ok(());
        }
        let kernel = self.kernel.borrow();
        let status = kernel.as_ref().map(Filter::status);
        let is_whole = |status: kernel::Status| {
            status.interfaces.iter().all(|interface| interface.attached.is_some())
        };
        if !status.is_some_and(is_whole) {
            return Err("the XDP program that the configuration demands is detached".to_owned());
        }
        Ok(())
    }

    pub(super) fn may_monitor(&self, address: IpAddr) -> bool {
        is_allowed(&self.config.borrow().admin.allow, address)
    }

    /// Answers the command line.
    pub(super) fn answer(self: &Rc<Self>, question: Question) -> Answer<Value> {
        let answered = match question {
            Question::Status => Ok(json!(self.status())),
            Question::Bans => self.ban_rows().map(|rows| json!(rows)),
            Question::Ban { source, for_s, note } => self.ban_by_hand(source, for_s, note),
            Question::Unban { source } => self.unban_by_hand(source),
            Question::Explain { source } => self.explain(source).map(|told| json!(told)),
            // Answered where there is time to ask the workers, and to go on telling.
            Question::Upgrade => self.upgrade(),
            Question::Top | Question::Drops | Question::Drain | Question::TakeOver { .. } => {
                Err("not answered at once".to_owned())
            }
            Question::Reload => self.reload().map(|generation| json!({ "generation": generation })),
            Question::Detach => self.detach(),
            Question::Enforce { enforce, confirm_within_s } => {
                self.enforce(enforce, confirm_within_s.map(Duration::from_secs))
            }
        };
        match answered {
            Ok(value) => Answer::Ok(value),
            Err(why) => Answer::Error(why),
        }
    }

    fn ban_by_hand(&self, net: IpNet, for_s: u64, note: Option<String>) -> Result<Value, String> {
        let lasts = Duration::from_secs(for_s);
        if lasts.is_zero() || lasts > BAN_MAX {
            return Err("a ban lasts from 1s to 365d; for longer, use [xdp].deny".to_owned());
        }
        let name = match source_of(net) {
            Some(source) => self.ban_source_by_hand(source, lasts)?,
            None => {
                let name = self.ban_prefix_by_hand(net, lasts)?;
                self.ban_prefixes_behind_proxies();
                name
            }
        };
        *self.metrics.borrow_mut().bans.entry(Reason::Operator).or_default() += 1;
        tracing::warn!(
            source = name,
            reason = "operator",
            origin = "operator",
            lasts_s = for_s,
            note,
            "ban"
        );
        if let Some(mut note) = note {
            note.truncate(note.floor_char_boundary(NOTE_MAX_BYTES));
            self.note(name.clone(), note);
        }
        Ok(json!({ "source": name, "for_s": for_s }))
    }

    fn ban_source_by_hand(&self, source: Source, lasts: Duration) -> Result<String, String> {
        let is_spared = |net: &&IpNet| overlaps(std::slice::from_ref(*net), source);
        if let Some(by) = self.never.borrow().iter().find(is_spared) {
            let why = spared::why(by, &self.config.borrow(), &self.addresses.borrow());
            return Err(format!("{source} is exempt and cannot be banned: {by} {why}"));
        }
        let reason = Reason::Operator as u32;
        let ban = Ban { source, lasts, reason, origin: ORIGIN_OPERATOR, level: 0 };
        for (_, outcome) in self.ban(&[ban]) {
            outcome?;
        }
        Ok(source.to_string())
    }

    fn ban_prefix_by_hand(&self, net: IpNet, lasts: Duration) -> Result<String, String> {
        let net = net.trunc();
        let never = self.never.borrow();
        if let Some(by) = never.iter().find(|by| by.contains(&net) || net.contains(*by)) {
            let why = spared::why(by, &self.config.borrow(), &self.addresses.borrow());
            return Err(format!(
                "{net} has exempt addresses and cannot be banned: {by} {why}; name smaller prefixes \
                 beside it"
            ));
        }
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else {
            return Err("prefixes are banned in the kernel, and no XDP program is attached; \
                        name single addresses, or guard an interface with [xdp]"
                .to_owned());
        };
        let reason = Reason::Operator as u32;
        let ban = PrefixBan { net, lasts, reason, origin: ORIGIN_OPERATOR };
        match kernel.ban_prefix(&ban).map_err(|error| error.to_string())? {
            PrefixBanOutcome::Set | PrefixBanOutcome::Replaced => Ok(net.to_string()),
            PrefixBanOutcome::Exempt { by } => {
                Err(format!("{net} has exempt addresses ({by}) and cannot be banned"))
            }
            PrefixBanOutcome::TableFull => {
                Err("the kernel's table of banned prefixes is full".to_owned())
            }
        }
    }

    fn unban_by_hand(&self, net: IpNet) -> Result<Value, String> {
        let (name, was_banned) = match source_of(net) {
            Some(source) => (source.to_string(), self.unban(source)?),
            None => (net.trunc().to_string(), self.unban_prefix(net.trunc())?),
        };
        if !was_banned {
            return Err(format!("{name} is not banned; `portcullis bans list` shows who is"));
        }
        tracing::warn!(source = name, origin = "operator", "ban lifted");
        Ok(json!({ "source": name }))
    }

    fn unban_prefix(&self, net: IpNet) -> Result<bool, String> {
        self.notes.borrow_mut().remove(&net.to_string());
        let was_banned = match self.kernel.borrow_mut().as_mut() {
            Some(kernel) => kernel.unban_prefix(net).map_err(|error| error.to_string())?,
            None => false,
        };
        self.ban_prefixes_behind_proxies();
        Ok(was_banned)
    }

    fn explain(&self, net: IpNet) -> Result<Explanation, String> {
        let Some(source) = source_of(net) else {
            return Err(
                "an IPv4 address or an IPv6 /64: limits and bans by evidence are kept for those"
                    .to_owned(),
            );
        };
        let within = |list: &[IpNet]| {
            list.iter()
                .find(|net| overlaps(std::slice::from_ref(net), source))
                .map(ToString::to_string)
        };
        let name = source.to_string();
        let ledger = self.ledger.borrow();
        let account = ledger.account(source, time::monotonic());
        let config = self.config.borrow();
        let spares = |net: &&IpNet| overlaps(std::slice::from_ref(*net), source);
        let never_banned = self.never.borrow().iter().find(spares).copied();
        let lately = account.iter().flat_map(|account| &account.lately);
        let kernel = self.kernel.borrow();
        let in_kernel = kernel.as_ref().map(|kernel| kernel.explain(source)).transpose();
        let in_kernel = in_kernel.map_err(|error| error.to_string())?;
        Ok(Explanation {
            exempt: within(&self.exempt.borrow()),
            never_banned: never_banned.map(|by| by.to_string()),
            never_banned_because: never_banned
                .map(|by| spared::why(&by, &config, &self.addresses.borrow()).to_string()),
            denied: config.xdp.as_ref().and_then(|settings| within(&settings.deny)),
            ban: self.ban_rows()?.into_iter().find(|row| {
                row.source == name || row.source.parse().is_ok_and(|net| overlaps(&[net], source))
            }),
            enforce: kernel.as_ref().map(|kernel| kernel.status().enforce),
            limits_doubled: in_kernel.as_ref().map_or(0, |state| state.class.doublings()),
            allowances: in_kernel
                .iter()
                .flat_map(|state| &state.allowances)
                .map(allowance)
                .collect(),
            points: account.as_ref().map_or(0.0, |account| (account.points * 10.0).round() / 10.0),
            threshold: ledger.threshold_of(source, time::monotonic()).round() as u32,
            threshold_of_everybody: ledger.threshold(),
            good_clients: (ledger.good(source, time::monotonic()) * 10.0).round() / 10.0,
            next_level: account.as_ref().map_or(0, |account| account.level),
            lately: lately
                .map(|(reason, ago)| PastRefusal {
                    reason: reason.word().to_owned(),
                    ago_s: (ago.as_secs_f64() * 10.0).round() / 10.0,
                })
                .collect(),
            source: name,
        })
    }

    fn detach(&self) -> Result<Value, String> {
        if self.succession.borrow().is_under_way {
            return Err("another process is taking over; ask it".to_owned());
        }
        if self.config.borrow().xdp.is_none() {
            return Err("no XDP program: [xdp].interfaces is empty".to_owned());
        }
        // What this process holds open would keep the program attached.
        drop(self.kernel.borrow_mut().take());
        // With the program go its bans.
        self.ledger.borrow_mut().release_all();
        let detached = self.agent.detach().map_err(|error| error.to_string())?;
        tracing::warn!(interfaces = detached.interfaces.join(" "), "xdp detached by an operator");
        Ok(json!({ "interfaces": detached.interfaces }))
    }

    /// One write to the kernel's map, then read back: what is answered is what is in force.
    fn enforce(&self, enforce: bool, confirm_within: Option<Duration>) -> Result<Value, String> {
        if confirm_within.is_some_and(|wait| wait.is_zero() || wait > CONFIRM_MAX) {
            return Err("--confirm-within takes from 1s to 1h".to_owned());
        }
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else {
            return Err(
                "no XDP program is attached: [xdp].interfaces is empty, or it was detached"
                    .to_owned(),
            );
        };
        kernel.set_enforce(enforce).map_err(|error| error.to_string())?;
        let in_force = kernel.status().enforce;
        if in_force != enforce {
            return Err(
                "the kernel's map still says otherwise; look at `portcullis status`".to_owned()
            );
        }
        self.was_switched(in_force);
        self.unconfirmed_until.set(confirm_within.map(|wait| time::monotonic() + wait));
        tracing::warn!(
            enforce,
            origin = "operator",
            confirm_within_s = confirm_within.map(|wait| wait.as_secs()),
            "xdp switched"
        );
        Ok(json!({ "enforce": in_force, "configured": self.configured_enforce() }))
    }

    fn configured_enforce(&self) -> bool {
        self.config.borrow().xdp.as_ref().is_some_and(|settings| settings.enforce)
    }

    /// Nobody confirmed in time: perhaps because whoever switched has locked himself out.
    pub(super) fn go_back_unless_confirmed(&self) {
        let now = time::monotonic();
        if self.unconfirmed_until.get().is_none_or(|until| now < until) {
            return;
        }
        self.unconfirmed_until.set(None);
        if let Some(kernel) = self.kernel.borrow_mut().as_mut() {
            match kernel.set_enforce(false) {
                Ok(()) => {
                    self.was_switched(false);
                    tracing::warn!(enforce = false, "xdp back to observing: not confirmed in time");
                }
                Err(error) => tracing::error!(error = %error, "xdp not switched back"),
            }
        }
    }

    /// Puts the program back on interfaces that were made again, and says so; also, once for each
    /// reason, that one is without it.
    pub(super) fn keep_attached(&self) {
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else { return };
        let mut unguarded = BTreeMap::new();
        for kernel::Reattached { interface, result } in kernel.reattach() {
            match result {
                Ok(attached) => tracing::warn!(
                    interface,
                    mode = attached.mode.word(),
                    program_id = attached.program_id,
                    "xdp attached again: the interface was made anew"
                ),
                Err(error) => {
                    let why = error.to_string();
                    if self.unguarded.borrow().get(&interface) != Some(&why) {
                        tracing::error!(interface, detail = why, "xdp is not attached");
                    }
                    unguarded.insert(interface, why);
                }
            }
        }
        *self.unguarded.borrow_mut() = unguarded;
    }

    fn status(&self) -> Status {
        let config = self.config.borrow();
        let now_s = time::unix().as_secs();
        let snapshot = self.shared.published.load();
        let certificates = config
            .listeners
            .iter()
            .zip(snapshot.listeners.configured())
            .flat_map(|(listener, tls)| {
                let sites = listener.tls.sites.iter().zip(tls.sites.iter());
                sites.map(move |(site, serving)| (listener, site, serving))
            })
            .map(|(listener, site, serving)| {
                let not_after_s = serving.certificate.not_after.as_secs();
                CertificateStatus {
                    listener: listener.name.clone(),
                    file: site.certificate.clone(),
                    not_after_s,
                    remaining_s: not_after_s.cast_signed() - now_s.cast_signed(),
                }
            })
            .collect();
        let issuers = config
            .issuers
            .iter()
            .zip(snapshot.issuers.iter())
            .map(|(issuer, (_, keys))| self.issuer_status(issuer, keys))
            .collect();
        let readiness = self.readiness();
        let now = time::monotonic();
        Status {
            host: self.host_status(),
            limits: snapshot.limits.iter().map(|limiter| limit_status(limiter, now)).collect(),
            issuers,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: readiness.is_ok(),
            not_ready: readiness.err(),
            generation: self.generation.get(),
            workers: self.workers.len(),
            connections: self.shared.admission.open(),
            bans: self.ban_rows().map_or(0, |rows| rows.len()),
            uptime_s: time::monotonic().saturating_duration_since(self.started_at).as_secs(),
            xdp: self.kernel.borrow().as_ref().map(xdp_status),
            confinement: Some(self.confinement_status()),
            takes_over: self.succession.borrow().is_going_on(),
            drain: self.drain_row(),
            certificates,
            upstreams: self.upstream_status(),
            refused_files: self.followed(|files| {
                let refused = files.refused().iter().map(|(file, detail)| RefusedFile {
                    file: file.clone(),
                    detail: detail.clone(),
                });
                refused.collect()
            }),
        }
    }

    fn issuer_status(&self, issuer: &Issuer, keys: &Keys) -> IssuerStatus {
        let fetching = self.issuer_keys.borrow();
        let standing = fetching.standing(&issuer.rules.name, time::monotonic());
        IssuerStatus {
            name: issuer.rules.name.clone(),
            keys_from: match &issuer.keys {
                KeySource::File(file) => file.display().to_string(),
                KeySource::Remote(remote) => remote.location.url().to_string(),
            },
            available: matches!(keys, Keys::Known(_)),
            keys: match keys {
                Keys::Known(set) => {
                    set.key_ids().map(|kid| kid.unwrap_or("(no kid)").to_owned()).collect()
                }
                Keys::Unavailable => Vec::new(),
            },
            age_s: standing.as_ref().and_then(|standing| Some(standing.age?.as_secs())),
            next_fetch_s: standing.as_ref().and_then(|standing| Some(standing.next_in?.as_secs())),
            last_error: standing.and_then(|standing| standing.last_error.map(str::to_owned)),
        }
    }

    /// What all workers counted, asked of each.
    async fn counted(&self) -> WorkerMetrics {
        let mut asked = Vec::new();
        for worker in &self.workers {
            let (sender, receiver) = oneshot::channel();
            // A full queue means that others are asking already; the last counts have to do.
            let sent = worker.scrape.try_send(sender).is_ok();
            asked.push(sent.then_some(receiver));
        }
        for (index, receiver) in asked.into_iter().enumerate() {
            let Some(receiver) = receiver else { continue };
            if let Ok(Ok(counts)) = tokio::time::timeout(SCRAPE_MAX, receiver).await {
                self.counted.borrow_mut()[index] = counts;
            }
        }
        let mut sum = WorkerMetrics::new(0);
        for counts in self.counted.borrow().iter() {
            sum.add(counts);
        }
        sum.log_lines_lost = self.shared.log.lost();
        sum
    }

    /// What is going on.
    pub(super) async fn top(&self) -> Result<Overview, String> {
        let counted = self.counted().await;
        let mut kernel = self.kernel.borrow_mut();
        let (mut packets, mut sources) = (Vec::new(), Vec::new());
        if let Some(kernel) = kernel.as_mut() {
            let counts = kernel.counters().map_err(|error| error.to_string())?;
            packets = counts.into_iter().map(packet_row).collect();
            let top = kernel.top(TOP_SOURCES).map_err(|error| error.to_string())?;
            sources = top
                .into_iter()
                .map(|source| SourceRow {
                    source: source.net.to_string(),
                    allowances: source.allowances.iter().map(allowance).collect(),
                })
                .collect();
        }
        drop(kernel);
        let mut refusals = BTreeMap::<&'static str, u64>::new();
        for (reason, count) in counted.refusals.iter().chain(&counted.handshake_failures) {
            *refusals.entry(reason.word()).or_default() += count;
        }
        let names = self.shared.consumers.names();
        let mut consumers = BTreeMap::<&str, u64>::new();
        for ((consumer, _, _), count) in &counted.requests {
            *consumers.entry(consumer.name(&names)).or_default() += count;
        }
        let row_of = |name: String, count| CountRow { name, count, per_s: 0.0 };
        let row = |(name, count): (&str, u64)| row_of(name.to_owned(), count);
        let mut consumers: Vec<CountRow> = consumers.into_iter().map(row).collect();
        consumers.sort_by_key(|row| std::cmp::Reverse(row.count));
        Ok(Overview {
            at_s: time::monotonic().duration_since(self.started_at).as_secs_f64(),
            connections: self.shared.admission.open(),
            bans: self.ban_rows()?.len(),
            packets,
            sources,
            refusals: refusals.into_iter().map(row).collect(),
            consumers,
            limited: counted
                .limited
                .iter()
                .map(|((limit, subject), count)| row_of(format!("{limit}: {subject}"), *count))
                .collect(),
        })
    }

    /// The whole page of metrics.
    pub(super) async fn metrics(&self) -> String {
        let sum = self.counted().await;
        let is_open = |place: usize| sum.connections.get(place).is_some_and(|open| *open > 0);
        let names = self.listeners.borrow().shown(is_open);
        metrics::page(
            &sum,
            &self.metrics.borrow(),
            &self.shared.consumers,
            &names,
            &self.readings(),
        )
    }

    fn readings(&self) -> Vec<Reading> {
        let one = |value: f64| vec![(Vec::new(), value)];
        let mut readings = vec![
            Reading {
                name: "gateway_build_info",
                help: "Always 1; the labels say what runs.",
                kind: "gauge",
                series: vec![(
                    vec![
                        ("version", env!("CARGO_PKG_VERSION").to_owned()),
                        (
                            "commit",
                            option_env!("PORTCULLIS_COMMIT").unwrap_or("unknown").to_owned(),
                        ),
                    ],
                    1.0,
                )],
            },
            Reading {
                name: "gateway_ready",
                help: "1 while /ready says yes.",
                kind: "gauge",
                series: one(f64::from(u8::from(self.readiness().is_ok()))),
            },
            Reading {
                name: "gateway_config_generation",
                help: "Counts up with each applied configuration.",
                kind: "gauge",
                series: one(self.generation.get() as f64),
            },
        ];
        readings.extend(self.tls_readings());
        readings.extend(self.followed(|files| files.readings()));
        readings.extend(self.host_readings());
        readings.extend(self.issuer_keys(|keys| keys.readings(time::monotonic())));
        readings.extend(self.upstream_readings());
        readings.extend(self.agent_readings());
        let rows = self.ban_rows().unwrap_or_default();
        let active = |origin: &str| {
            let count = rows.iter().filter(|row| row.origin == origin).count();
            (vec![("origin", origin.to_owned())], count as f64)
        };
        readings.push(Reading {
            name: "gateway_bans_active",
            help: "Bans in force.",
            kind: "gauge",
            series: vec![active("evidence"), active("operator")],
        });
        readings.extend(limit_readings(&self.shared.published.load().limits, time::monotonic()));
        if let Some(kernel) = self.told_kernel().as_ref() {
            readings.extend(kernel_readings(kernel));
        }
        readings
    }

    fn tls_readings(&self) -> [Reading; 4] {
        let snapshot = self.shared.published.load();
        let config = self.config.borrow();
        tls_readings(&config, &snapshot, time::unix())
    }
}

/// Ends of certificates and revocation lists.
fn tls_readings(config: &Config, snapshot: &Snapshot, now: UnixTime) -> [Reading; 4] {
    let mut ends = Vec::new();
    let mut remaining = Vec::new();
    let mut updates = BTreeMap::new();
    let mut revoked = BTreeMap::new();
    for (listener, tls) in config.listeners.iter().zip(snapshot.listeners.configured()) {
        for site in tls.sites.iter() {
            let labels = vec![
                ("listener", listener.name.clone()),
                // The listener's own site has no name.
                ("site", site.names.first().cloned().unwrap_or_default()),
            ];
            let (start, end) = (site.certificate.not_before, site.certificate.not_after);
            ends.push((labels.clone(), end.as_secs() as f64));
            let whole = end.as_secs().saturating_sub(start.as_secs());
            let left = end.as_secs().saturating_sub(now.as_secs());
            remaining.push((labels, left as f64 / whole.max(1) as f64));
            for list in site.clients.iter().flat_map(|c| c.trust.revocations().lists()) {
                let labels = (listener.name.clone(), list.issuer().to_owned());
                updates.insert(labels.clone(), list.next_update().as_secs() as f64);
                revoked.insert(labels, list.revoked() as f64);
            }
        }
    }
    let by_issuer = |map: BTreeMap<(String, String), f64>| {
        let series =
            |((listener, issuer), value)| (vec![("listener", listener), ("issuer", issuer)], value);
        map.into_iter().map(series).collect()
    };
    let gauge = |name, help, series| Reading { name, help, kind: "gauge", series };
    [
        gauge(
            "gateway_tls_certificate_not_after_seconds",
            "End of the server certificate's validity, in seconds since 1970.",
            ends,
        ),
        gauge(
            "gateway_tls_certificate_lifetime_remaining_ratio",
            "Part of the server certificate's validity that is left; alert below 0.25.",
            remaining,
        ),
        gauge(
            "gateway_tls_crl_next_update_seconds",
            "When a revocation list is due to be renewed, in seconds since 1970.",
            by_issuer(updates),
        ),
        gauge("gateway_tls_crl_entries", "Certificates on a revocation list.", by_issuer(revoked)),
    ]
}

/// How full the tables of limits are.
fn limit_readings(limits: &Limiters, now: Instant) -> [Reading; 2] {
    let series = |value: &dyn Fn(&Limiter) -> f64| {
        let of =
            |limiter: &Limiter| (vec![("limit", limiter.limit().name.to_string())], value(limiter));
        limits.iter().map(of).collect()
    };
    [
        Reading {
            name: "gateway_ratelimit_consumers",
            help: "Consumers that have used something of a limit.",
            kind: "gauge",
            series: series(&|limiter| limiter.table().active(now) as f64),
        },
        Reading {
            name: "gateway_ratelimit_forgotten_total",
            help: "Consumers forgotten before all of a limit was theirs again: entries is too small.",
            kind: "counter",
            series: series(&|limiter| limiter.table().forgotten() as f64),
        },
    ]
}

fn limit_status(limiter: &Limiter, now: Instant) -> LimitStatus {
    let (limit, table) = (limiter.limit(), limiter.table());
    LimitStatus {
        name: limit.name.to_string(),
        key: limit.key.word().to_owned(),
        rates: limit.rates.iter().map(ToString::to_string).collect(),
        enforce: limit.mode == Mode::Enforce,
        consumers: table.active(now),
        entries: table.entries(),
    }
}

fn kernel_readings(kernel: &Filter) -> Vec<Reading> {
    let counters = kernel.counters().unwrap_or_else(|error| {
        tracing::error!(error = %error, "counters of the XDP program not read");
        Vec::new()
    });
    let mut packets = Vec::new();
    let mut bytes = Vec::new();
    for count in &counters {
        let labels = vec![
            ("interface", count.interface.clone()),
            ("action", count.action.word().to_owned()),
            ("reason", count.reason.word().to_owned()),
        ];
        packets.push((labels.clone(), count.packets as f64));
        bytes.push((labels, count.bytes as f64));
    }
    let status = kernel.status();
    let mode = |interface: XdpInterface| {
        (vec![("interface", interface.name), ("mode", interface.mode)], 1.0)
    };
    let entries = |fill: &kernel::Fill| (vec![("map", fill.map.to_owned())], fill.used as f64);
    let limit = |fill: &kernel::Fill| (vec![("map", fill.map.to_owned())], f64::from(fill.limit));
    vec![
        Reading {
            name: "gateway_xdp_packets_total",
            help: "Frames judged in the kernel.",
            kind: "counter",
            series: packets,
        },
        Reading {
            name: "gateway_xdp_bytes_total",
            help: "Bytes of those frames.",
            kind: "counter",
            series: bytes,
        },
        Reading {
            name: "gateway_xdp_mode",
            help: "1 for the mode that the program is attached in.",
            kind: "gauge",
            series: xdp_status(kernel).interfaces.into_iter().map(mode).collect(),
        },
        Reading {
            name: "gateway_xdp_enforce",
            help: "1 when the program drops, 0 when it only counts.",
            kind: "gauge",
            series: vec![(Vec::new(), f64::from(u8::from(status.enforce)))],
        },
        Reading {
            name: "gateway_xdp_map_entries",
            help: "Entries in the kernel's maps.",
            kind: "gauge",
            series: status.fills.iter().map(entries).collect(),
        },
        Reading {
            name: "gateway_xdp_map_limit",
            help: "Entries that the kernel's maps can hold.",
            kind: "gauge",
            series: status.fills.iter().map(limit).collect(),
        },
        Reading {
            name: "gateway_xdp_bucket_evictions_total",
            help: "Buckets forgotten before they were full: max_sources is too small.",
            kind: "counter",
            series: vec![(Vec::new(), status.evictions as f64)],
        },
    ]
}

fn xdp_status(kernel: &Filter) -> XdpStatus {
    let status = kernel.status();
    let interface = |interface: &kernel::InterfaceStatus| XdpInterface {
        name: interface.name.clone(),
        mode: interface.attached.map_or("none", |attached| attached.mode.word()).to_owned(),
        program_id: interface.attached.map_or(0, |attached| attached.program_id),
    };
    XdpStatus {
        enforce: status.enforce,
        interfaces: status.interfaces.iter().map(interface).collect(),
    }
}

fn packet_row(count: kernel::Count) -> PacketRow {
    PacketRow {
        interface: count.interface,
        action: count.action.word().to_owned(),
        reason: count.reason.word().to_owned(),
        packets: count.packets,
        bytes: count.bytes,
        packets_per_s: 0.0,
    }
}

fn allowance(allowance: &kernel::Allowance) -> AllowanceRow {
    let quota = match allowance.quota {
        Quota::Packets => "packets",
        Quota::Connections => "connections",
        Quota::Bytes => "bytes",
    };
    AllowanceRow {
        quota: quota.to_owned(),
        of: allowance.net.to_string(),
        left: allowance.left,
        burst: allowance.burst,
    }
}

/// What a ban by evidence rests on.
fn reasons(block: &Block) -> String {
    let lately: Vec<&str> = block.lately.iter().flatten().map(|reason| reason.word()).collect();
    format!("{} points of {}, the last for {}", block.points, block.threshold, lately.join(", "))
}

fn origin_word(origin: u32) -> &'static str {
    match origin {
        ORIGIN_OPERATOR => "operator",
        _ => "evidence",
    }
}

/// The one source that a prefix is, if it is one.
fn source_of(net: IpNet) -> Option<Source> {
    match net {
        IpNet::V4(v4) => (v4.prefix_len() == 32).then(|| Source::from(net.addr())),
        IpNet::V6(v6) => (v6.prefix_len() >= 64).then(|| Source::from(net.addr())),
    }
}

fn penalty_settings(config: &Config, never: &[IpNet]) -> penalty::Settings {
    penalty::Settings {
        enabled: config.bans.enabled,
        threshold: config.bans.threshold,
        half_life: config.bans.half_life,
        ladder: config.bans.ladder.clone(),
        never: never.to_vec(),
    }
}

/// The name under which an address' sockets are kept; a colon would end it.
fn kept_name(address: SocketAddr) -> String {
    format!("tcp-{address}").replace(':', "_")
}

/// What a reload cannot change. Each is said, so that nobody believes a setting is in force that is not.
fn needs_restart(old: &Config, new: &Config) -> Result<(), String> {
    let xdp = |config: &Config| config.xdp.as_ref().map(|xdp| (xdp.pin.clone(), xdp.max_sources));
    let changed: Vec<&str> = [
        ("[server].workers", old.server.workers != new.server.workers),
        (
            "[server].backlog or cpu_steering",
            (old.server.backlog, old.server.cpu_steering)
                != (new.server.backlog, new.server.cpu_steering),
        ),
        ("[xdp].pin, max_sources, or whether there are interfaces", xdp(old) != xdp(new)),
    ]
    .into_iter()
    .filter_map(|(what, changed)| changed.then_some(what))
    .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} changed; `portcullis upgrade` applies that without a lost connection, as a restart does",
        changed.join(", ")
    ))
}
