//! May this source open one more connection: the total, its own share, and the bans.
//!
//! With the XDP program enforcing, a banned source's packets never arrive here. Without it the same
//! decision is made here, later and dearer.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use gateway_ebpf::Source;
use ipnet::IpNet;

use crate::policy::penalty::overlaps;

/// Bans kept in user space at once; the control thread adds them one by one, so this bounds memory only.
const BANS_MAX: usize = 65_536;

/// Counts open connections and knows who is banned. Shared by all workers.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

struct Shared {
    open: AtomicUsize,
    open_max: AtomicUsize,
    /// Connections of each source that has any: never more entries than `open_max`.
    held: Mutex<HashMap<Source, usize>>,
    held_max: AtomicUsize,
    /// Sources that may hold as many as there are, such as a balancer in front.
    spared: ArcSwap<Vec<IpNet>>,
    banned: Mutex<HashMap<Source, Instant>>,
    /// Networks that may not come in at all, where the kernel does not see their addresses.
    denied: ArcSwap<Vec<IpNet>>,
    /// Networks that are banned, and until when: for clients whose addresses the kernel does not see. As
    /// many as the kernel's own table has.
    banned_networks: ArcSwap<Vec<(IpNet, Instant)>>,
    /// Changes with each change of `banned` or `banned_networks`, so that an open connection looks only when there is news.
    bans_version: AtomicU64,
}

/// One admitted connection; dropping it makes room.
pub struct Admitted {
    admission: Admission,
    /// Whose share it is counted in.
    holder: Option<Source>,
}

/// Why a connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// As many are open as may be.
    TooMany,
    /// As many of this source are open as it may have.
    TooManyOfSource,
    /// The source is banned.
    Banned,
    /// The address is of a network that may not come in.
    Listed,
}

impl Admission {
    /// Admits up to `open_max` connections at once, and of each source up to `held_max`.
    pub fn new(open_max: usize, held_max: usize) -> Admission {
        Admission(Arc::new(Shared {
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(open_max),
            held: Mutex::default(),
            held_max: AtomicUsize::new(held_max),
            spared: ArcSwap::default(),
            banned: Mutex::default(),
            denied: ArcSwap::default(),
            banned_networks: ArcSwap::default(),
            bans_version: AtomicU64::new(1),
        }))
    }

    /// From now on each source may have that many, but for those in `spared`.
    pub fn set_share(&self, held_max: usize, spared: Vec<IpNet>) {
        self.0.held_max.store(held_max, Ordering::Relaxed);
        self.0.spared.store(Arc::new(spared));
    }

    /// From now on nobody of these networks comes in through a proxy, but for who is spared.
    pub fn set_denied(&self, networks: Vec<IpNet>) {
        self.0.denied.store(Arc::new(networks));
    }

    /// From now on these networks are banned until then, for clients behind proxies, but for who is
    /// spared.
    pub fn set_banned_networks(&self, networks: Vec<(IpNet, Instant)>) {
        self.0.banned_networks.store(Arc::new(networks));
        self.0.bans_version.fetch_add(1, Ordering::Relaxed);
    }

    /// Judges a client that a proxy tells of, whose packets nobody has judged: as the kernel judges
    /// those of others, exemptions first.
    ///
    /// # Errors
    /// [`Denied::Listed`], [`Denied::Banned`].
    pub fn check_networks(&self, address: IpAddr, now: Instant) -> Result<(), Denied> {
        let is_in = |networks: &ArcSwap<Vec<IpNet>>| {
            networks.load().iter().any(|network| network.contains(&address))
        };
        let is_banned = || {
            let networks = self.0.banned_networks.load();
            networks.iter().any(|(network, until)| now < *until && network.contains(&address))
        };
        let denied = if is_in(&self.0.denied) {
            Denied::Listed
        } else if is_banned() {
            Denied::Banned
        } else {
            return Ok(());
        };
        if is_in(&self.0.spared) { Ok(()) } else { Err(denied) }
    }

    /// Judges a new connection.
    ///
    /// # Errors
    /// Why it must be closed.
    pub fn admit(&self, source: Source, now: Instant) -> Result<Admitted, Denied> {
        // Before it is counted: a banned source must not use up the room of others, however briefly.
        if self.is_banned(source, now) {
            return Err(Denied::Banned);
        }
        let mut admitted = self.enter()?;
        admitted.hold(source)?;
        Ok(admitted)
    }

    /// Judges a new connection whose client is not known yet; [`Admitted::claim`] follows.
    ///
    /// # Errors
    /// [`Denied::TooMany`].
    pub fn enter(&self) -> Result<Admitted, Denied> {
        if self.0.open.fetch_add(1, Ordering::Relaxed) >= self.0.open_max.load(Ordering::Relaxed) {
            self.0.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Denied::TooMany);
        }
        Ok(Admitted { admission: self.clone(), holder: None })
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

    /// Most connections that may be open at once.
    pub fn open_max(&self) -> usize {
        self.0.open_max.load(Ordering::Relaxed)
    }

    /// Connections of a source that are open now.
    #[cfg(test)]
    fn held_by(&self, source: Source) -> usize {
        self.held().get(&source).copied().unwrap_or_default()
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    fn banned(&self) -> MutexGuard<'_, HashMap<Source, Instant>> {
        self.0.banned.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Source, usize>> {
        self.0.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Admitted {
    /// Judges the connection once its client is known, and counts it as that client's.
    ///
    /// # Errors
    /// Why it must be closed.
    pub fn claim(&mut self, source: Source, now: Instant) -> Result<(), Denied> {
        if self.admission.is_banned(source, now) {
            return Err(Denied::Banned);
        }
        self.hold(source)
    }

    fn hold(&mut self, source: Source) -> Result<(), Denied> {
        self.release();
        let shared = &self.admission.0;
        let mut held = self.admission.held();
        let count = held.entry(source).or_default();
        // A source that has one at least is in the table; nobody is put there to be refused.
        if *count >= shared.held_max.load(Ordering::Relaxed)
            && !overlaps(&shared.spared.load(), source)
        {
            return Err(Denied::TooManyOfSource);
        }
        *count += 1;
        self.holder = Some(source);
        Ok(())
    }

    fn release(&mut self) {
        let Some(source) = self.holder.take() else { return };
        let mut held = self.admission.held();
        if let Some(count) = held.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                held.remove(&source);
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.release();
        self.admission.0.open.fetch_sub(1, Ordering::Relaxed);
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
        let admission = Admission::new(2, 2);
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
        let admission = Admission::new(9, 9);
        let before = admission.bans_version();
        assert!(admission.ban(source(1), now + Duration::from_secs(1), now));
        assert_ne!(admission.bans_version(), before);
        assert_eq!(admission.admit(source(1), now).err(), Some(Denied::Banned));
        assert!(admission.admit(source(2), now).is_ok());
        assert!(admission.admit(source(1), now + Duration::from_secs(1)).is_ok());
        admission.unban(source(1));
        assert!(admission.admit(source(1), now).is_ok());
    }

    #[test]
    fn nobody_takes_more_than_a_share_but_who_is_spared() {
        let now = time::monotonic();
        let admission = Admission::new(9, 2);
        let held: Vec<_> = (0..2).map(|_| admission.admit(source(1), now).unwrap()).collect();
        assert_eq!(admission.admit(source(1), now).err(), Some(Denied::TooManyOfSource));
        assert_eq!((admission.open(), admission.held_by(source(1))), (2, 2));
        let other = admission.admit(source(2), now).unwrap();
        drop(held);
        assert_eq!((admission.open(), admission.held_by(source(1))), (1, 0));
        assert!(admission.admit(source(1), now).is_ok());
        admission.set_share(1, vec!["192.0.2.2/32".parse().unwrap()]);
        assert!(admission.admit(source(2), now).is_ok(), "spared");
        let _one = admission.admit(source(1), now).unwrap();
        assert!(admission.admit(source(1), now).is_err(), "less than before");
        drop(other);
        assert_eq!(admission.0.held.lock().unwrap().len(), 1, "who has none is forgotten");
    }

    #[test]
    fn a_connection_is_its_clients_once_that_is_known() {
        let now = time::monotonic();
        let admission = Admission::new(3, 1);
        let mut first = admission.enter().unwrap();
        let mut second = admission.enter().unwrap();
        assert_eq!(first.claim(source(1), now), Ok(()));
        assert_eq!(second.claim(source(1), now), Err(Denied::TooManyOfSource));
        drop((first, second));
        assert!(admission.ban(source(2), now + Duration::from_secs(1), now));
        let mut third = admission.enter().unwrap();
        assert_eq!(third.claim(source(2), now), Err(Denied::Banned));
        drop(third);
        assert_eq!((admission.open(), admission.held_by(source(1))), (0, 0));
    }

    #[test]
    fn listed_and_banned_networks_stay_out_but_for_who_is_spared() {
        let (admission, now) = (Admission::new(10, 10), time::monotonic());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(admission.check_networks(address("192.0.2.9"), now), Ok(()), "nobody is listed");
        admission
            .set_denied(vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/40".parse().unwrap()]);
        admission.set_share(10, vec!["192.0.2.8/32".parse().unwrap()]);
        let before = admission.bans_version();
        let later = now + Duration::from_secs(60);
        admission.set_banned_networks(vec![
            ("198.51.100.0/24".parse().unwrap(), later),
            ("192.0.2.0/28".parse().unwrap(), later),
            ("203.0.113.0/24".parse().unwrap(), now),
        ]);
        assert_ne!(admission.bans_version(), before, "open connections look again");
        for (text, expected) in [
            ("192.0.2.9", Err(Denied::Listed)),
            ("192.0.2.8", Ok(())),
            ("192.0.3.9", Ok(())),
            ("2001:db8:1::1", Err(Denied::Listed)),
            ("198.51.100.7", Err(Denied::Banned)),
            ("198.51.101.7", Ok(())),
            ("203.0.113.7", Ok(())), // it is over
        ] {
            assert_eq!(admission.check_networks(address(text), now), expected, "{text}");
        }
    }
}
