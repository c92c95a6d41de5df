//! The control thread's state, and who answers which question; what it does with it is in the rooms below.

mod agent;
mod bans;
mod classes;
mod drain;
pub(super) mod drops;
mod figures;
mod filter;
pub(super) mod host;
mod readings;
mod reloading;
mod status;
mod succession;
pub(super) mod upstreams;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_ebpf::Source;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::{
    drain::Drain, filter::penalty_settings, reloading::kept_name, status::xdp_status,
    succession::Succession,
};
use super::{doors::Doors, keys::IssuerKeys, listeners::Listeners, refresh::Followed};
use crate::{
    admin::{
        metrics::{ControlMetrics, WorkerMetrics},
        monitor::{Readiness, is_allowed},
        notify::Notify,
        socket::{Answer, Question},
    },
    config::Config,
    confinement::Confinement,
    kernel::{self, Agent, Ban, Filter},
    net::worker::{Handle, Phase, Shared},
    policy::penalty::Ledger,
    snapshot::{Published, Snapshot},
    time,
    upstream::resolve::Addresses,
    watch::Watch,
};

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
    /// What is known of issuers that publish their keys.
    pub(super) issuer_keys: IssuerKeys,
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
        let Seen { files, addresses, issuer_keys } = seen;
        let kernel = kernel.map(|(kernel, notices)| {
            for notice in notices {
                tracing::info!(detail = %notice, "xdp");
            }
            kernel
        });
        let counted = vec![WorkerMetrics::new(0); workers.len()];
        let settings = penalty_settings(&config, &[]);
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
}

/// The one source that a prefix is, if it is one.
fn source_of(net: IpNet) -> Option<Source> {
    match net {
        IpNet::V4(v4) => (v4.prefix_len() == 32).then(|| Source::from(net.addr())),
        IpNet::V6(v6) => (v6.prefix_len() >= 64).then(|| Source::from(net.addr())),
    }
}
