//! Who follows the frames that are dropped, and what they are told.
//!
//! The kernel tells of some frames only and counts all; so each follower gets those that were told
//! of, and once a second how many more there were. A follower that does not read misses some.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc;

use super::Control;
use crate::{
    admin::socket::DropRow,
    kernel::{Action, DropEvent, Filter, Transport},
    time,
};

/// More operators do not look at one host at once.
const FOLLOWERS_MAX: usize = 8;
/// Frames that a follower may be behind: several seconds of all that are told of.
const QUEUE: usize = 2_048;
/// Frames taken at once: some seconds of what the kernel tells, on many CPUs.
const TAKEN_MAX: usize = 8_192;
/// How often followers are told, and after how many times how many more there were.
pub(in crate::gateway) const TELL_EVERY: Duration = Duration::from_millis(100);
const SUM_EVERY: u32 = 10;

/// Those who follow.
#[derive(Default)]
pub(super) struct Followers {
    list: RefCell<Vec<mpsc::Sender<DropRow>>>,
    /// Frames that the kernel had counted when it was last asked.
    counted: Cell<u64>,
    /// Counted and not told of, since that was last said.
    untold: Cell<u64>,
    /// Told so many times.
    turns: Cell<u32>,
}

impl Control {
    /// One more follower.
    ///
    /// # Errors
    /// Without an XDP program, or when too many follow already.
    pub(in crate::gateway) fn follow_drops(&self) -> Result<mpsc::Receiver<DropRow>, String> {
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else {
            return Err(
                "no XDP program is attached: [xdp].interfaces is empty, or it was detached"
                    .to_owned(),
            );
        };
        let mut list = self.followers.list.borrow_mut();
        list.retain(|follower| !follower.is_closed());
        if list.len() >= FOLLOWERS_MAX {
            return Err(format!("{FOLLOWERS_MAX} follow already; end one of them"));
        }
        if list.is_empty() {
            // What was told of before, nobody waits for any more.
            drop(kernel.take_events(TAKEN_MAX));
            self.followers.counted.set(dropped(kernel));
            self.followers.untold.set(0);
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        list.push(sender);
        Ok(receiver)
    }

    /// Tells followers of the frames since the last time; nothing is done for none.
    pub(in crate::gateway) fn tell_drops(&self) {
        let followers = &self.followers;
        let mut list = followers.list.borrow_mut();
        list.retain(|follower| !follower.is_closed());
        if list.is_empty() {
            return;
        }
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else { return };
        let events = kernel.take_events(TAKEN_MAX);
        let counted = dropped(kernel);
        let grown = counted.saturating_sub(followers.counted.replace(counted));
        let untold = (followers.untold.get() + grown).saturating_sub(events.len() as u64);
        followers.untold.set(untold);
        let now = time::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let newest = events.iter().map(|event| event.at).max().unwrap_or_default();
        for event in &events {
            tell(&list, &row(event, now.saturating_sub(newest.saturating_sub(event.at))));
        }
        followers.turns.set(followers.turns.get().wrapping_add(1));
        if followers.turns.get().is_multiple_of(SUM_EVERY) && untold > 0 {
            followers.untold.set(0);
            tell(&list, &DropRow { at_s: now.as_secs_f64(), untold, ..DropRow::default() });
        }
    }
}

fn tell(followers: &[mpsc::Sender<DropRow>], row: &DropRow) {
    for follower in followers {
        // One that is full is behind; it must not hold the others, nor this thread.
        let _missed = follower.try_send(row.clone());
    }
}

fn row(event: &DropEvent, at: Duration) -> DropRow {
    let service = |service: &crate::kernel::Service| {
        let transport = match service.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        format!("{}/{transport}", service.port)
    };
    DropRow {
        at_s: at.as_secs_f64(),
        interface: Some(event.interface.clone()),
        source: event.source.map(|source| source.to_string()),
        service: event.service.as_ref().map(service),
        reason: Some(event.reason.word().to_owned()),
        frame_bytes: event.frame_bytes,
        enforced: event.enforced,
        untold: 0,
    }
}

/// Frames that were dropped so far, or would have been. What cannot be read counts as none.
fn dropped(kernel: &Filter) -> u64 {
    let counts = kernel.counters().unwrap_or_default();
    let dropped = counts.iter().filter(|count| count.action != Action::Pass);
    dropped.map(|count| count.packets).sum()
}
