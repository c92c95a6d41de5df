//! The control thread's part in a hand-over: what it gives away, takes back when the other does not
//! come up, and leaves behind.

use std::{os::fd::OwnedFd, rc::Rc, time::Duration};

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Control, UserBan, source_of, upstreams::networks};
use crate::{
    gateway::{course::Course, kernel_settings, takeover},
    kernel::{Ban, Filter},
    net::{
        handover::{HandoverError, KeptBan, Offer, State},
        worker::{Command, Handle},
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
        let listeners = self.listeners.borrow();
        let held = listeners.sockets_held();
        let copies = held.map(|(at, socket)| (at, socket.try_clone().map(OwnedFd::from)));
        let given = takeover::offer(copies, self.doors.offered())
            .map_err(|error| format!("the sockets cannot be given: {error}"))?;
        succession.is_under_way = true;
        succession.kernel_given = self.kernel.borrow_mut().take().is_some();
        tracing::info!(sockets = given.1.len(), "another process takes over");
        Ok(given)
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
        State { bans: kept.collect() }
    }

    /// Takes what the process before knew.
    pub(in crate::gateway) fn inherit(&self, state: &State) {
        let now = time::monotonic();
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
