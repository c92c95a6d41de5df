//! May this source open one more connection: the total, and the bans.
//!
//! With the XDP program enforcing, a banned source's packets never arrive here. Without it the same
//! decision is made here, later and dearer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use gateway_ebpf::Source;

/// Bans kept in user space at once; the control thread adds them one by one, so this bounds memory only.
const BANS_MAX: usize = 65_536;

/// Counts open connections and knows who is banned. Shared by all workers.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    open: AtomicUsize,
    open_max: AtomicUsize,
    banned: Mutex<HashMap<Source, Instant>>,
    /// Changes with each change of `banned`, so that an open connection looks only when there is news.
    bans_version: AtomicU64,
}

/// One admitted connection; dropping it makes room.
pub struct Admitted(Admission);

/// Why a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// As many are open as may be.
    TooMany,
    /// The source is banned.
    Banned,
}

impl Admission {
    /// Admits up to `open_max` connections at once.
    pub fn new(open_max: usize) -> Admission {
        Admission(Arc::new(Shared {
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(open_max),
            banned: Mutex::default(),
            bans_version: AtomicU64::new(1),
        }))
    }

    /// Judges a new connection.
    ///
    /// # Errors
    /// Why it must be closed.
    pub fn admit(&self, source: Source, now: Instant) -> Result<Admitted, Denied> {
        if self.is_banned(source, now) {
            return Err(Denied::Banned);
        }
        if self.0.open.fetch_add(1, Ordering::Relaxed) >= self.0.open_max.load(Ordering::Relaxed) {
            self.0.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Denied::TooMany);
        }
        Ok(Admitted(self.clone()))
    }

    /// From now on up to `open_max` are admitted; those that are open stay.
    pub fn set_open_max(&self, open_max: usize) {
        self.0.open_max.store(open_max, Ordering::Relaxed);
    }

    /// Whether user space refuses that source.
    pub fn is_banned(&self, source: Source, now: Instant) -> bool {
        self.banned().get(&source).is_some_and(|until| now < *until)
    }

    /// A number that changes when bans do.
    pub fn bans_version(&self) -> u64 {
        self.0.bans_version.load(Ordering::Relaxed)
    }

    /// Refuses a source until then. False: the table is full of bans that are in force.
    pub fn ban(&self, source: Source, until: Instant, now: Instant) -> bool {
        let mut banned = self.banned();
        if banned.len() >= BANS_MAX {
            banned.retain(|_, until| now < *until);
        }
        let room = banned.len() < BANS_MAX || banned.contains_key(&source);
        if room {
            banned.insert(source, until);
        }
        drop(banned);
        self.0.bans_version.fetch_add(1, Ordering::Relaxed);
        room
    }

    /// Refuses it no longer.
    pub fn unban(&self, source: Source) {
        self.banned().remove(&source);
        self.0.bans_version.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    fn banned(&self) -> MutexGuard<'_, HashMap<Source, Instant>> {
        self.0.banned.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        time::Duration,
    };

    use super::*;
    use crate::time;

    fn source(last: u8) -> Source {
        Source::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)))
    }

    #[test]
    fn as_many_as_may_be_and_a_closed_one_makes_room() {
        let now = time::monotonic();
        let admission = Admission::new(2);
        let first = admission.admit(source(1), now).unwrap();
        let _second = admission.admit(source(1), now).unwrap();
        assert_eq!(admission.admit(source(2), now).err(), Some(Denied::TooMany));
        drop(first);
        assert!(admission.admit(source(2), now).is_ok());
        assert_eq!(admission.open(), 1);
        admission.set_open_max(1);
        assert_eq!(admission.admit(source(2), now).err(), Some(Denied::TooMany));
        admission.set_open_max(2);
        assert!(admission.admit(source(2), now).is_ok());
    }

    #[test]
    fn a_ban_holds_until_its_end() {
        let now = time::monotonic();
        let admission = Admission::new(9);
        let before = admission.bans_version();
        assert!(admission.ban(source(1), now + Duration::from_secs(1), now));
        assert_ne!(admission.bans_version(), before);
        assert_eq!(admission.admit(source(1), now).err(), Some(Denied::Banned));
        assert!(admission.admit(source(2), now).is_ok());
        assert!(admission.admit(source(1), now + Duration::from_secs(1)).is_ok());
        admission.unban(source(1));
        assert!(admission.admit(source(1), now).is_ok());
    }
}
