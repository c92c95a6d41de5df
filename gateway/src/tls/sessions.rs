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
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use rustls::server::StoresServerSessions;
use rustls_pki_types::UnixTime;

use super::Site;
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
    shards: Vec<Mutex<LruCache<Id, Session>>>,
}

/// What is kept of one.
#[derive(Clone)]
struct Session {
    /// What rustls needs: keys, names, the client's chain. Without the room that it was written in, which
    /// is up to as much again, thousands of times.
    value: Box<[u8]>,
    /// Who was proven; `None` who came without a certificate.
    peer: Option<Arc<Peer>>,
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
        let each = NonZeroUsize::new(entries.get().div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS).map(|_| Mutex::new(LruCache::new(each))).collect();
        Sessions { room: entries, shards }
    }

    /// For how many there is to be room.
    pub fn room(&self) -> NonZeroUsize {
        self.room
    }

    /// How many are kept.
    pub fn held(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, id: &Id) -> MutexGuard<'_, LruCache<Id, Session>> {
        // Names are random, so their first octet spreads them.
        lock(&self.shards[usize::from(id[0]) % SHARDS])
    }

    fn put(&self, id: Id, session: Session) {
        self.shard(&id).put(id, session);
    }

    /// Each name is good once, so that a copied ticket is of no use after its owner's.
    fn take(&self, id: &Id) -> Option<Session> {
        self.shard(id).pop(id)
    }
}

fn lock(shard: &Mutex<LruCache<Id, Session>>) -> MutexGuard<'_, LruCache<Id, Session>> {
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

/// Who is behind a session that is being resumed.
#[derive(Clone, Debug)]
pub(super) struct Resumed {
    /// As proven in the full handshake, and judged again now.
    pub(super) peer: Option<Arc<Peer>>,
    proven_at: UnixTime,
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
        let Resumed { peer, proven_at } = owner;
        let value = value.into_boxed_slice();
        self.sessions.put(id, Session { value, peer, proven_at });
        true
    }

    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        // TLS 1.2 only, which is not spoken.
        None
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let Session { value, peer, proven_at } = self.sessions.take(&Id::try_from(key).ok()?)?;
        let age = self.now.as_secs().saturating_sub(proven_at.as_secs());
        if age > LIFETIME.as_secs() || self.site.admits(peer.as_deref(), self.now).is_err() {
            return None;
        }
        *self.held() = Some(Resumed { peer, proven_at });
        Some(value.into_vec())
    }

    fn can_cache(&self) -> bool {
        true
    }
}
