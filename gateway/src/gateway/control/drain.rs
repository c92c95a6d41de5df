//! The end: nothing new, what is under way is finished, and whoever waits for it is told how far it is.

use std::{cell::RefCell, time::Instant};

use tokio::net::UnixStream;

use super::Control;
use crate::{
    admin::socket::{Answer, DrainRow},
    gateway::course::Course,
    net::worker::Phase,
    time,
};

/// Those who wait are told this often; people look, nothing is decided by it.
const TELL_EVERY: std::time::Duration = std::time::Duration::from_millis(250);

/// Operators that wait for a drain at once; more than there are.
const WAITING_MAX: usize = 16;

/// A drain that is going on.
pub(super) struct Drain {
    course: Course,
    /// Connections that were open when it began, and that came while it still accepted.
    began_with: usize,
    waiting: RefCell<Vec<UnixStream>>,
    told_at: Instant,
    /// Connections that were open when the rest was cut.
    cut: Option<usize>,
}

impl Control {
    pub(in crate::gateway) fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    /// Begins to drain; once it has begun, it goes on.
    pub(in crate::gateway) fn drain(&self) {
        let now = time::monotonic();
        let (delay, timeout) = {
            let server = &self.config.borrow().server;
            (server.drain_delay, server.drain_timeout)
        };
        self.begin(Course::of_stop(now, delay, timeout), now);
    }

    pub(super) fn begin(&self, course: Course, now: Instant) {
        let mut drain = self.drain.borrow_mut();
        if drain.is_some() {
            return;
        }
        let open = self.shared.admission.open();
        tracing::info!(open, "draining");
        if !self.succession.borrow().is_done {
            self.notify.stopping();
        }
        let waiting = RefCell::default();
        *drain = Some(Drain { course, began_with: open, waiting, told_at: now, cut: None });
        drop(drain);
        self.follow_courses();
    }

    /// Begins to drain, and tells the asker how far it is until the end.
    pub(in crate::gateway) fn drain_for(&self, stream: UnixStream) {
        self.drain();
        if let Some(drain) = self.drain.borrow().as_ref() {
            let mut waiting = drain.waiting.borrow_mut();
            if tell(&stream, &Answer::Ok(())) && waiting.len() < WAITING_MAX {
                waiting.push(stream);
            }
        }
    }

    /// Cuts what is open.
    pub(in crate::gateway) fn stop(&self) {
        if let Some(drain) = self.drain.borrow_mut().as_mut() {
            drain.cut = Some(self.shared.admission.open());
        }
        self.enter(Phase::Stopping);
    }

    fn enter(&self, phase: Phase) {
        let mut listeners = self.listeners.borrow_mut();
        if phase > Phase::Running {
            // Before the workers let go of theirs, which are to be the last.
            listeners.let_go();
        }
        listeners.tell(phase);
        self.tell.phase.send_if_modified(|before| std::mem::replace(before, phase) != phase);
    }

    /// Goes on with what is to be done by now; true when all has ended.
    pub(in crate::gateway) fn follow_courses(&self) -> bool {
        let now = time::monotonic();
        self.listeners.borrow_mut().follow_courses(now);
        let mut drain = self.drain.borrow_mut();
        let Some(drain) = drain.as_mut() else { return false };
        let phase = drain.course.phase(now);
        if phase == Phase::Stopping {
            // Before workers hear of it.
            drain.cut = Some(self.shared.admission.open());
        }
        self.enter(phase);
        let ended = self.workers.iter().all(|worker| worker.thread.is_finished());
        if ended {
            return true;
        }
        if phase == Phase::Stopping {
            tracing::warn!("drain_timeout is over: open connections are cut");
            return true;
        }
        if now >= drain.told_at + TELL_EVERY {
            drain.told_at = now;
            let row = self.row(drain, now);
            drain.waiting.borrow_mut().retain(|stream| tell(stream, &row));
        }
        false
    }

    /// How far it is.
    pub(super) fn drain_row(&self) -> Option<DrainRow> {
        Some(self.row(self.drain.borrow().as_ref()?, time::monotonic()))
    }

    fn row(&self, drain: &Drain, now: Instant) -> DrainRow {
        let open = drain.cut.unwrap_or_else(|| self.shared.admission.open());
        let remaining = drain.course.ends_at.saturating_duration_since(now);
        DrainRow {
            open,
            ended: drain.began_with.saturating_sub(open),
            remaining_s: (remaining.as_secs_f64() * 10.0).round() / 10.0,
            over: false,
        }
    }

    /// Tells those who wait how it ended.
    pub(in crate::gateway) fn tell_end(&self) {
        let drain = self.drain.borrow();
        let Some(drain) = drain.as_ref() else { return };
        let row = DrainRow { over: true, remaining_s: 0.0, ..self.row(drain, time::monotonic()) };
        tracing::info!(ended = row.ended, cut = row.open, "drained");
        for stream in drain.waiting.borrow().iter() {
            tell(stream, &row);
        }
    }
}

/// Without waiting: whoever does not read is not told. False when that is so.
fn tell<T: serde::Serialize>(stream: &UnixStream, row: &T) -> bool {
    let Ok(mut line) = serde_json::to_vec(row) else { return false };
    line.push(b'\n');
    // A row is far shorter than a socket's buffer, so it goes whole or not at all.
    stream.try_write(&line).is_ok_and(|written| written == line.len())
}
