//! The control thread's part in a hand-over: what it gives away, takes back when the other does not
//! come up, and leaves behind.

use std::{
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_ebpf::Source;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Control, UserBan, source_of, upstreams::networks};
use crate::{
    gateway::{course::Course, kernel_settings, takeover},
    kernel::{Ban, Filter},
    net::{
        handover::{
            CONSUMERS_MAX, HandoverError, KeptAccount, KeptBan, KeptLimit, Offer, SOURCES_MAX,
            State,
        },
        worker::{Command, Handle},
    },
    policy::{
        Reason,
        limit::{Secret, Used},
        penalty::{Arrived, Kept},
        vouch::Voucher,
    },
    time,
};

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Succession {
    /// Another process has the sockets and is coming up.
    pub(super) is_under_way: bool,
    /// The XDP program's maps were left to it.
    kernel_given: bool,
    /// Another process serves; the operators' socket is its own.
    pub(super) is_done: bool,
    /// A process was started to take over, and is the agent's child.
    pub(super) was_started: bool,
}

impl Succession {
    /// Whether a process is to take over, and has not yet.
    pub(super) fn is_going_on(&self) -> bool {
        !self.is_done && (self.is_under_way || self.was_started)
    }
}

/// One question to each worker at a time, and the answers as they come.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    awaited: Vec<oneshot::Receiver<()>>,
}

impl Pulse {
    /// Whether all that were asked have answered; a worker that ended never does.
    fn is_complete(&mut self) -> bool {
        // Each answer is read once only.
        self.awaited.retain_mut(|answer| answer.try_recv().is_err());
        self.awaited.is_empty()
    }

    fn ask(&mut self, workers: &[Handle]) {
        self.awaited = workers
            .iter()
            .map(|worker| {
                let (asker, answer) = oneshot::channel();
                // One that takes no more commands drops the asker, and so does not answer.
                let _told = worker.commands.try_send(Command::Answer(asker));
                answer
            })
            .collect();
    }
}

impl Control {
    /// Gives copies of all sockets, and the kernel's maps, which only one process may write.
    ///
    /// # Errors
    /// Why not now.
    pub(in crate::gateway) fn begin_hand_over(&self) -> Result<(Offer, Vec<OwnedFd>), String> {
        let mut succession = self.succession.borrow_mut();
        if succession.is_under_way {
            return Err("another process is taking over already".to_owned());
        }
        if self.is_draining() {
            return Err("this daemon is draining; start another when it has ended".to_owned());
        }
        let mut listeners = self.listeners.borrow_mut();
        let quic_keys = listeners.quic_keys_in_use();
        let datagrams: Vec<_> =
            listeners.quic_held().map(|(at, held)| (at, held.offered())).collect();
        let held = listeners.sockets_held();
        let copies = held.map(|(at, socket)| (at, socket.try_clone().map(OwnedFd::from)));
        let doors = self.doors.offered();
        let issuer_keys = self.issuer_keys.borrow().kept(time::monotonic());
        let given = takeover::offer(copies, datagrams.into_iter(), quic_keys, issuer_keys, doors)
            .map_err(|error| format!("the sockets cannot be given: {error}"))?;
        succession.is_under_way = true;
        succession.kernel_given = self.kernel.borrow_mut().take().is_some();
        tracing::info!(sockets = given.1.len(), "another process takes over");
        Ok(given)
    }

    /// Lets go of the sockets of HTTP/3, which only one process may read.
    pub(in crate::gateway) fn give_datagrams(&self) {
        self.listeners.borrow_mut().quic_held().for_each(|(_, held)| held.give());
    }

    /// Reads the sockets of HTTP/3 that were given to this process.
    pub(in crate::gateway) fn begin_datagrams(&self) {
        self.listeners.borrow_mut().quic_held().for_each(|(_, held)| held.begin());
    }

    /// What only this process knows.
    pub(in crate::gateway) fn last_state(&self) -> State {
        let now = time::monotonic();
        let bans = self.bans.borrow();
        let kept = bans.iter().filter(|(_, ban)| now < ban.until).map(|(source, ban)| KeptBan {
            source: source.to_string(),
            remaining: ban.until - now,
            reason: ban.reason,
            origin: ban.origin,
            level: ban.level,
        });
        let ledger = self.ledger.borrow();
        let limits = self.shared.published.load().limits.used(CONSUMERS_MAX, now);
        State {
            bans: kept.collect(),
            accounts: ledger.kept(SOURCES_MAX, now).into_iter().map(kept_account).collect(),
            good_clients: ledger
                .good_clients(SOURCES_MAX, now)
                .into_iter()
                .map(|(source, clients)| (source.to_string(), clients))
                .collect(),
            limits: limits.into_iter().map(kept_limit).collect(),
        }
    }

    /// Takes what the process before knew.
    pub(in crate::gateway) fn inherit(&self, state: &State) {
        let now = time::monotonic();
        self.inherit_accounts(state, now);
        self.go_on_with_limits(state.limits.iter().map(used).collect(), now);
        let bans: Vec<Ban> = state
            .bans
            .iter()
            .filter_map(|kept| {
                Some(Ban {
                    source: source_of(kept.source.parse::<IpNet>().ok()?)?,
                    lasts: kept.remaining,
                    reason: kept.reason,
                    origin: kept.origin,
                    level: kept.level,
                })
            })
            .collect();
        for ban in bans.iter().filter(|ban| ban.origin == super::ORIGIN_EVIDENCE) {
            self.ledger.borrow_mut().adopt(ban.source, ban.level, ban.lasts, now);
        }
        for (source, outcome) in self.ban(&bans) {
            if let Err(why) = outcome {
                tracing::error!(source = %source, detail = %why, "ban not taken over");
            }
        }
    }

    /// Before the bans, which are part of them.
    fn inherit_accounts(&self, state: &State, now: Instant) {
        let mut ledger = self.ledger.borrow_mut();
        // The oldest first, so that it is them who make room.
        for account in state.accounts.iter().rev() {
            let Some(source) = parsed(&account.source) else { continue };
            let lately = account.lately.iter();
            let reason = |(code, ago): &(u32, Duration)| Some((Reason::from_code(*code)?, *ago));
            ledger.take_up(
                &Kept {
                    source,
                    points: account.points,
                    level: account.level,
                    banned_for: account.banned_for,
                    remembered_for: account.remembered_for,
                    lately: lately.filter_map(reason).collect(),
                },
                now,
            );
        }
        for (source, clients) in state.good_clients.iter().rev() {
            let Some(source) = parsed(source) else { continue };
            for (who, ago) in clients {
                let at = now.checked_sub(*ago).unwrap_or(now);
                let arrived = Arrived::Directly;
                ledger.vouch(Voucher { source, who: *who, at, arrived });
            }
        }
    }

    /// The other process serves, and this one ends without hurry; or it does not, and this one goes on.
    pub(in crate::gateway) fn end_hand_over(&self, outcome: Result<u32, HandoverError>) {
        match outcome {
            Ok(pid) => {
                tracing::info!(pid, "another process serves");
                if pid != 0 {
                    self.notify.main_is(pid);
                }
                self.succession.borrow_mut().is_done = true;
                self.doors.close();
                let now = time::monotonic();
                let timeout = self.config.borrow().server.drain_timeout;
                self.begin(Course::of_leave(now, timeout), now);
            }
            Err(error) => {
                tracing::error!(detail = %error, "hand-over failed; serving on");
                self.take_back();
            }
        }
    }

    fn take_back(&self) {
        self.listeners.borrow_mut().quic_held().for_each(|(_, held)| held.take_back());
        let given = {
            let mut succession = self.succession.borrow_mut();
            succession.is_under_way = false;
            std::mem::take(&mut succession.kernel_given)
        };
        if !given {
            return;
        }
        let upstreams = networks(&self.addresses.borrow());
        let settings = kernel_settings(&self.config.borrow(), &upstreams).ok().flatten();
        let Some(settings) = settings else { return };
        match Filter::start(&self.agent, &settings) {
            Ok((kernel, _)) => *self.kernel.borrow_mut() = Some(kernel),
            Err(error) => {
                tracing::error!(error = %error, "the XDP program filters on, but cannot be told anything");
                return;
            }
        }
        self.tell_bans();
    }

    /// What was banned while the kernel could not be told is known here only; it belongs there.
    pub(super) fn tell_bans(&self) {
        self.ban_prefixes_behind_proxies();
        if self.has_proxies() {
            // They are kept here anyway, and of those who come through a proxy the kernel must not hear.
            return;
        }
        let now = time::monotonic();
        let kept: Vec<_> = self.bans.borrow_mut().drain().collect();
        let bans = kept.iter().filter(|(_, ban)| now < ban.until).map(|(source, ban)| {
            let UserBan { until, reason, origin, level } = *ban;
            Ban { source: *source, lasts: until - now, reason, origin, level }
        });
        let bans: Vec<Ban> = bans.collect();
        for (source, _) in kept {
            self.shared.admission.unban(source);
        }
        self.ban(&bans);
    }

    /// Starts the program that is installed now; it asks for the sockets by itself.
    pub(super) fn upgrade(self: &Rc<Self>) -> Result<Value, String> {
        let mut succession = self.succession.borrow_mut();
        if succession.is_under_way || succession.was_started {
            return Err("another process is taking over already".to_owned());
        }
        let pid = self.agent.upgrade().map_err(|error| error.to_string())?;
        tracing::info!(pid, "another process was started to take over");
        succession.was_started = true;
        Ok(json!({ "pid": pid }))
    }

    /// Notices that a successor ended instead of taking over.
    pub(in crate::gateway) fn look_after_successor(&self) {
        let mut succession = self.succession.borrow_mut();
        if !succession.was_started {
            return;
        }
        if let Ok(Some(how)) = self.agent.successor_ended() {
            succession.was_started = false;
            tracing::error!(status = how, "the process that was to take over ended; serving on");
        }
    }

    /// Tells the service manager that all is well, which it is while every worker answers. A drain has
    /// its own end.
    pub(in crate::gateway) fn tell_alive(&self) {
        let mut pulse = self.pulse.borrow_mut();
        if self.is_draining() || pulse.is_complete() {
            self.notify.alive();
            pulse.ask(&self.workers);
        }
    }

    /// How often the service manager wants to hear of it.
    pub(in crate::gateway) fn alive_every(&self) -> Option<Duration> {
        self.notify.alive_every()
    }
}

fn parsed(source: &str) -> Option<Source> {
    source_of(source.parse().ok()?)
}

fn kept_account(kept: Kept) -> KeptAccount {
    let lately = kept.lately.into_iter();
    KeptAccount {
        source: kept.source.to_string(),
        points: kept.points,
        level: kept.level,
        banned_for: kept.banned_for,
        remembered_for: kept.remembered_for,
        lately: lately.map(|(reason, ago)| (reason as u32, ago)).collect(),
    }
}

fn kept_limit((name, used): (Arc<str>, Used)) -> KeptLimit {
    let Used { secret: Secret(secret), proof, rows } = used;
    KeptLimit { name: name.to_string(), secret, proof, rows }
}

fn used(kept: &KeptLimit) -> (Arc<str>, Used) {
    let KeptLimit { name, secret, proof, rows } = kept;
    let used = Used { secret: Secret(*secret), proof: *proof, rows: rows.clone() };
    (name.as_str().into(), used)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn all_is_well_once_every_worker_has_answered() {
        let (commands, mut told): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel(1)).unzip();
        let handles: Vec<Handle> = commands
            .into_iter()
            .map(|commands| Handle {
                scrape: mpsc::channel(1).0,
                commands,
                thread: std::thread::spawn(|| {}),
            })
            .collect();
        let answer = |told: &mut mpsc::Receiver<Command>| match told.try_recv() {
            Ok(Command::Answer(asker)) => asker.send(()).unwrap(),
            other => panic!("{other:?}"),
        };
        let mut pulse = Pulse::default();
        assert!(pulse.is_complete(), "nobody was asked yet");
        pulse.ask(&handles);
        assert!(!pulse.is_complete());
        answer(&mut told[0]);
        assert!(!pulse.is_complete(), "the other is stuck");
        answer(&mut told[1]);
        assert!(pulse.is_complete(), "late, but it works");
        pulse.ask(&handles);
        answer(&mut told[0]);
        drop(told);
        assert!(!pulse.is_complete(), "the other is gone");
    }
}
