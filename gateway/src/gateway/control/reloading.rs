//! A reload: all of a new configuration, or nothing of it; and what is published to the workers.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use super::{Control, host, upstreams};
use crate::{
    config::{self, Config, Disk},
    gateway::{
        course::Course,
        doors::Doors,
        kernel_settings,
        listeners::{Inherited, Prepared},
        load_snapshot,
        refresh::Followed,
    },
    net::{
        descriptors,
        worker::{Command, Handle},
    },
    policy::limit,
    snapshot::Snapshot,
    time,
    upstream::resolve,
};

impl Control {
    /// SIGHUP: all of it, or nothing and one line that says why.
    pub(in crate::gateway) fn reload(self: &Rc<Self>) -> Result<u64, String> {
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

    pub(super) fn try_reload(self: &Rc<Self>) -> Result<(), String> {
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
    pub(super) fn keep_sockets(&self) {
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
    pub(super) fn workers_listen(&self, sockets: usize) -> Result<(), String> {
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
    pub(super) fn apply(&self, listeners: Prepared, config: &Config) {
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

    pub(super) fn command(&self, worker: usize, command: Command) {
        // There is room: it was looked for before anything was changed, and nobody else sends.
        if let Err(error) = self.workers[worker].commands.try_send(command) {
            tracing::error!(worker, error = %error, "worker lost");
        }
    }

    /// From now on this is what handshakes and requests are judged by.
    ///
    /// Whoever made it may have begun before another was published, so number and fetched keys are
    /// put in here.
    pub(in crate::gateway) fn publish(&self, mut snapshot: Snapshot) {
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
    pub(in crate::gateway) fn go_on_with_limits(
        &self,
        used: Vec<(Arc<str>, limit::Used)>,
        now: Instant,
    ) {
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
    pub(in crate::gateway) fn publish_keys(&self) {
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
}

/// What a reload cannot change. Each is said, so that nobody believes a setting is in force that is not.
pub(super) fn needs_restart(old: &Config, new: &Config) -> Result<(), String> {
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

/// The name under which an address' sockets are kept; a colon would end it.
pub(super) fn kept_name(address: SocketAddr) -> String {
    format!("tcp-{address}").replace(':', "_")
}
