//! Sessions that clients may resume (RFC 8446 section 2.2), and the judgement that resuming one never
//! skips.
//!
//! A resumed handshake does not ask the verifier: the client proves only that it is the one of an
//! earlier handshake. So each session keeps who that was, and before it is resumed trust, validity
//! and revocation are judged again by the snapshot of *this* handshake. What no longer holds is not
//! resumed: the full handshake that follows asks for the certificate and refuses it with the right
//! alert, log line and count. A ticket is nothing but a random name of a session kept here, so it is
//! good once and dies with the process.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::DefaultHasher;
use rustls::server::StoresServerSessions;
use rustls_pki_types::UnixTime;

use super::{
    Site,
    pieces::{Pieces, Put},
};
use crate::identity::certificate::{Peer, Verifier};

/// A session is resumable for this long after the full handshake it goes back to. Who holds a
/// connection's keys can resume it, so now and then the key of the certificate is asked for again.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Workers meet at a lock once for each handshake; more locks than workers on most machines.
const SHARDS: usize = 16;

/// Names of sessions as rustls makes them.
type Id = [u8; 32];

/// The sessions of one listener, shared by its workers: a client comes back to any of them. The
/// least recently made goes first.
pub struct Sessions {
    room: NonZeroUsize,
    shards: Vec<Mutex<Shard>>,
}

/// A part of them.
#[derive(Default)]
struct Shard {
    kept: HashMap<Id, Kept, DefaultHasher>,
    /// In the order in which they were made; some have been taken since.
    made: VecDeque<Id>,
    values: Pieces,
}

/// What is kept of one, whose value is among the others' pieces.
struct Kept {
    value: Put,
    owner: Resumed,
}

impl Shard {
    fn put(&mut self, id: Id, session: Session, room: usize) {
        while self.kept.len() >= room && self.drop_oldest() {}
        let Session { value, owner } = session;
        let Some(value) = self.values.put(&value) else { return };
        if let Some(before) = self.kept.insert(id, Kept { value, owner }) {
            // Names are random and never come twice; if one did, the last would count.
            self.values.take(before.value);
            return;
        }
        self.made.push_back(id);
        if self.made.len() > 2 * room {
            self.made.retain(|id| self.kept.contains_key(id));
        }
    }

    fn take(&mut self, id: &Id) -> Option<Session> {
        let Kept { value, owner } = self.kept.remove(id)?;
        Some(Session { value: self.values.take(value), owner })
    }

    /// False: there is none.
    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.made.pop_front() else { return false };
        drop(self.take(&oldest));
        true
    }
}

/// One session.
struct Session {
    /// What rustls needs: keys, names, the client's chain.
    value: Vec<u8>,
    owner: Resumed,
}

/// Who is behind a session.
#[derive(Clone, Debug)]
pub(super) struct Resumed {
    /// Who was proven in the full handshake; `None` who came without a certificate.
    pub(super) peer: Option<Arc<Peer>>,
    /// When the full handshake was.
    proven_at: UnixTime,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is in them: it is as good as keys.
        f.debug_struct("Sessions").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Room for about so many.
    pub fn new(entries: NonZeroUsize) -> Sessions {
        Sessions { room: entries, shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// For how many there is to be room.
    pub fn room(&self) -> NonZeroUsize {
        self.room
    }

    /// How many are kept.
    pub fn held(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).kept.len()).sum()
    }

    fn shard(&self, id: &Id) -> MutexGuard<'_, Shard> {
        // Names are random, so their first octet spreads them.
        lock(&self.shards[usize::from(id[0]) % SHARDS])
    }

    fn put(&self, id: Id, session: Session) {
        self.shard(&id).put(id, session, self.room.get().div_ceil(SHARDS));
    }

    /// Each name is good once, so that a copied ticket is of no use after its owner's.
    fn take(&self, id: &Id) -> Option<Session> {
        self.shard(id).take(id)
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sessions as one handshake sees them.
pub(super) struct Resumption {
    sessions: Arc<Sessions>,
    site: Arc<Site>,
    /// Knows who a full handshake has proven; `None` where clients are not asked.
    verifier: Option<Arc<Verifier>>,
    now: UnixTime,
    /// What was handed to rustls last, which is what it resumes if it resumes at all.
    resumed: Mutex<Option<Resumed>>,
}

impl fmt::Debug for Resumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumption").finish_non_exhaustive()
    }
}

impl Resumption {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        site: Arc<Site>,
        verifier: Option<Arc<Verifier>>,
        now: UnixTime,
    ) -> Resumption {
        Resumption { sessions, site, verifier, now, resumed: Mutex::new(None) }
    }

    /// Who is behind the session that was resumed, given the leaf that rustls kept with it: the two
    /// must be the same certificate, or nobody was proven.
    pub(super) fn peer(&self, leaf: Option<&[u8]>) -> Option<Resumed> {
        let resumed = self.held().clone()?;
        let same = match (&resumed.peer, leaf) {
            (None, None) => true,
            (Some(peer), Some(leaf)) => peer.is_of(leaf),
            _ => false,
        };
        same.then_some(resumed)
    }

    /// Whether a session was handed to rustls to be resumed.
    pub(super) fn is_taken(&self) -> bool {
        self.held().is_some()
    }

    fn held(&self) -> MutexGuard<'_, Option<Resumed>> {
        self.resumed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who the session is to be kept for: whom this handshake proved, else whom the resumed one had.
    fn owner(&self) -> Option<Resumed> {
        let proven = self.verifier.as_ref().and_then(|verifier| verifier.outcome());
        match proven {
            Some(Ok(peer)) => Some(Resumed { peer: Some(peer.clone()), proven_at: self.now }),
            Some(Err(_)) => None,
            None => {
                Some(self.held().clone().unwrap_or(Resumed { peer: None, proven_at: self.now }))
            }
        }
    }
}

impl StoresServerSessions for Resumption {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let (Ok(id), Some(owner)) = (Id::try_from(key), self.owner()) else { return false };
        self.sessions.put(id, Session { value, owner });
        true
    }

    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        // TLS 1.2 only, which is not spoken.
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let Session { value, owner } = self.sessions.take(&Id::try_from(key).ok()?)?;
        let age = self.now.as_secs().saturating_sub(owner.proven_at.as_secs());
        if age > LIFETIME.as_secs() || self.site.admits(owner.peer.as_deref(), self.now).is_err() {
            return None;
        }
        *self.held() = Some(owner);
        Some(value)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64) -> Session {
        let proven_at = UnixTime::since_unix_epoch(Duration::from_secs(number));
        Session { value: vec![number as u8; 900], owner: Resumed { peer: None, proven_at } }
    }

    /// All of one shard.
    fn id(number: u64) -> Id {
        let mut id = [0; 32];
        id[8..16].copy_from_slice(&number.to_be_bytes());
        id
    }

    #[test]
    fn the_oldest_goes_first_and_each_is_good_once() {
        let sessions = Sessions::new(NonZeroUsize::new(3 * SHARDS).unwrap());
        for number in 1..=5 {
            sessions.put(id(number), session(number));
        }
        assert_eq!(sessions.held(), 3);
        assert!(sessions.take(&id(2)).is_none(), "there was no room for it any more");
        let taken = sessions.take(&id(4)).unwrap();
        assert_eq!(taken.value, vec![4; 900]);
        assert_eq!(taken.owner.proven_at.as_secs(), 4);
        assert!(sessions.take(&id(4)).is_none(), "once");
        assert_eq!(sessions.held(), 2);
    }

    #[test]
    fn clients_that_come_back_for_ever_take_no_more_room() {
        let sessions = Sessions::new(NonZeroUsize::new(4 * SHARDS).unwrap());
        for number in 0..1_000 {
            sessions.put(id(number), session(number));
            assert!(sessions.take(&id(number)).is_some());
        }
        let shard = sessions.shard(&id(0));
        assert_eq!(shard.kept.len(), 0);
        assert!(shard.made.len() <= 2 * 4, "{}", shard.made.len());
    }
}
