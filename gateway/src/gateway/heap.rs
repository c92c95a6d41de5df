//! Memory that a crowd has left behind, given back to the system.
//!
//! The allocator keeps what was freed for whoever asks next, page by page between what is still in
//! use, and after a crowd has gone nobody asks. So now and then what the process occupies is compared
//! with what it has in use, and when much is neither, the allocator is told to let go of it.

use std::time::Duration;

use tokio::{task::spawn_blocking, time::MissedTickBehavior};

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// While what the process occupies has not changed by so much, the allocator is mostly left alone: to
/// count what is in use it walks over every hole, of which a crowd leaves a hundred thousand, and a worker
/// that wants memory waits meanwhile.
const CHANGE_BYTES: usize = 4 << 20;

/// Looks after such a change: what was taken then is given up a little later.
const LOOKS_AFTER_CHANGE: u32 = 3;

/// Without a change it is asked every so many times: what is given up much later changes nothing that
/// can be seen from outside.
const LOOKS_LEFT_OUT_MAX: u32 = 5;

/// What is occupied beyond what is in use and is not worth the work: stacks, and room that the next
/// connections will want.
const SPARE_BYTES: usize = 8 << 20;

/// The same beside much that is in use: of each connection that rests, holes between its parts stay that
/// nobody else fits in.
const SPARE_SHARE: usize = 16;

/// The process' memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Octets in pages that the process occupies, without those of files: the program itself.
    resident_bytes: usize,
    /// Octets that were asked for and not given back.
    used_bytes: usize,
}

impl Reading {
    fn spare_bytes(self) -> usize {
        self.resident_bytes.saturating_sub(self.used_bytes)
    }
}

/// What was left after the last time.
#[derive(Debug, Default)]
struct Heap {
    kept_bytes: usize,
    /// What was occupied when that changed last.
    resident_bytes: usize,
    looks_left: u32,
    left_out: u32,
}

impl Heap {
    /// Whether to ask the allocator, by what is occupied alone.
    fn is_to_look(&mut self, resident_bytes: usize) -> bool {
        if self.resident_bytes.abs_diff(resident_bytes) >= CHANGE_BYTES {
            self.resident_bytes = resident_bytes;
            self.looks_left = LOOKS_AFTER_CHANGE;
        }
        let is_due = self.looks_left > 0 || self.left_out >= LOOKS_LEFT_OUT_MAX;
        self.looks_left = self.looks_left.saturating_sub(1);
        self.left_out = if is_due { 0 } else { self.left_out + 1 };
        is_due
    }

    /// Whether giving back is worth it: what is too small or too scattered to go stays, and is not tried
    /// again and again.
    fn is_worth(&self, now: Reading) -> bool {
        now.spare_bytes()
            > SPARE_BYTES.max(now.used_bytes / SPARE_SHARE).max(self.kept_bytes * 3 / 2)
    }

    fn gave_back(&mut self, now: Reading) {
        self.kept_bytes = now.spare_bytes();
        self.resident_bytes = now.resident_bytes;
    }
}

/// Looks until the process ends, where it keeps nobody waiting.
pub(super) async fn follow() {
    let mut due = tokio::time::interval(LOOK_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heap = Heap::default();
    loop {
        due.tick().await;
        // It fails only when the runtime ends, and then nobody asks for memory any more.
        let Ok(seen) = spawn_blocking(move || look(heap)).await else { return };
        heap = seen;
    }
}

fn look(mut heap: Heap) -> Heap {
    let read = |resident_bytes| {
        allocator::used_bytes().map(|used_bytes| Reading { resident_bytes, used_bytes })
    };
    if let Some(resident_bytes) = allocator::resident_bytes()
        && heap.is_to_look(resident_bytes)
        && let Some(before) = read(resident_bytes)
        && heap.is_worth(before)
    {
        allocator::give_back();
        if let Some(after) = allocator::resident_bytes().and_then(read) {
            tracing::debug!(
                before_bytes = before.resident_bytes,
                after_bytes = after.resident_bytes,
                "memory given back"
            );
            heap.gave_back(after);
        }
    }
    heap
}

#[cfg(target_env = "gnu")]
mod allocator {
    pub(super) fn resident_bytes() -> Option<usize> {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        // proc_pid_statm(5): pages in memory are the second figure, those of them that files back the third.
        let mut figures = statm.split(' ').skip(1).map(str::parse::<usize>);
        let (resident, of_files) = (figures.next()?.ok()?, figures.next()?.ok()?);
        let pages = resident.saturating_sub(of_files);
        let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
        pages.checked_mul(usize::try_from(page_bytes).ok()?)
    }

    pub(super) fn used_bytes() -> Option<usize> {
        // SAFETY: it takes no pointers, and the allocator's own locks guard what it reads.
        let told = unsafe { libc::mallinfo2() };
        Some(told.uordblks + told.hblkhd)
    }

    pub(super) fn give_back() {
        // SAFETY: it takes no pointers and frees only pages of which nothing is in use, under the
        // allocator's own locks.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
mod allocator {
    pub(super) fn resident_bytes() -> Option<usize> {
        None
    }

    pub(super) fn used_bytes() -> Option<usize> {
        None
    }

    pub(super) fn give_back() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_is_given_back_when_much_is_neither_used_nor_stuck() {
        for (resident, used, kept, expected) in [
            (14, 7, 0, false),    // a daemon that has just started
            (690, 20, 0, true),   // after a crowd
            (690, 650, 0, false), // a crowd
            (690, 640, 0, true),  // whose handshakes have left their memory behind
            (310, 300, 0, false), // it comes and goes
            (400, 200, 0, true),
            (400, 200, 190, false), // scattered: it did not go the last time
            (600, 200, 190, true),  // and now there is more
        ] {
            let heap = Heap { kept_bytes: kept * MIB, ..Heap::default() };
            let now = Reading { resident_bytes: resident * MIB, used_bytes: used * MIB };
            assert_eq!(heap.is_worth(now), expected, "{now:?} {heap:?}");
        }
    }

    #[test]
    fn the_allocator_is_asked_for_a_while_after_each_change() {
        let mut heap = Heap::default();
        for (number, (resident, expected)) in [
            (30, true),
            (31, true),
            (33, true),
            (30, false),
            (33, false), // nothing to speak of
            (230, true), // a crowd
            (230, true), // which gives up its buffers
            (120, true), // to the system
            (120, true),
            (120, true),
            (120, false), // and rests
            (120, false),
            (120, false),
            (120, false),
            (120, false),
            (120, true), // now and then all the same
            (120, false),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(heap.is_to_look(resident * MIB), expected, "{number}: {resident} MiB");
        }
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_is_in_use_is_counted() {
        // An allocation that nobody looks at might never be made.
        let much = std::hint::black_box(vec![1_u8; 64 * MIB]);
        let (used, resident) = (allocator::used_bytes(), allocator::resident_bytes());
        assert!(used >= Some(64 * MIB), "{used:?}");
        assert!(resident >= Some(64 * MIB), "{resident:?}");
        drop(much);
        allocator::give_back();
    }
}
