//! Verified tokens, remembered by one worker.
//!
//! Only yeses are kept, so that a flood of bad tokens cannot push out the good; and a remembered
//! yes counts only while a fresh verification would say the same: same generation of rules and
//! keys, inside the token's own times, and not older than the time to live.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use lru::LruCache;
use rustls_pki_types::UnixTime;

use super::{Claims, Clock, Issuers, TOKEN_MAX_BYTES, TokenError, verify};

/// A bounded memory of verified tokens; the least recently used goes first.
#[derive(Debug)]
pub struct Cache {
    /// By SHA-256 of the token: fixed size, and a dump of the memory holds no usable token.
    entries: Option<LruCache<[u8; 32], Entry>>,
    ttl: Duration,
    counts: CacheCounts,
}

#[derive(Debug)]
struct Entry {
    claims: Arc<Claims>,
    generation: u64,
    inserted: UnixTime,
}

/// What a cache did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Tokens answered from memory.
    pub hits: u64,
    /// Tokens that had to be verified.
    pub misses: u64,
}

impl Cache {
    /// Remembers at most `capacity` tokens (0: none), each for at most `ttl`.
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self {
            entries: NonZeroUsize::new(capacity).map(LruCache::new),
            ttl,
            counts: CacheCounts::default(),
        }
    }

    /// [`verify`] with a memory: the same verdict, and cheaper the second time.
    pub fn verify(
        &mut self,
        token: &str,
        issuers: &Issuers,
        clock: impl Into<Clock>,
    ) -> Result<Arc<Claims>, TokenError> {
        let clock = clock.into();
        if self.entries.is_none() || token.len() > TOKEN_MAX_BYTES {
            self.counts.misses += 1;
            return verify(token, issuers, clock).map(Arc::new);
        }
        let key = key(token);
        if let Some(claims) = self.remembered(&key, issuers.generation(), clock) {
            self.counts.hits += 1;
            return Ok(claims);
        }
        self.counts.misses += 1;
        let claims = Arc::new(verify(token, issuers, clock)?);
        if let Some(entries) = &mut self.entries {
            let generation = issuers.generation();
            entries.put(key, Entry { claims: claims.clone(), generation, inserted: clock.now });
        }
        Ok(claims)
    }

    fn remembered(&mut self, key: &[u8; 32], generation: u64, clock: Clock) -> Option<Arc<Claims>> {
        let entries = self.entries.as_mut()?;
        let entry = entries.get(key)?;
        // A clock that was set back makes the age unknown, hence no `saturating_sub`.
        let age = clock.now.as_secs().checked_sub(entry.inserted.as_secs());
        if entry.generation == generation
            && age.is_some_and(|age| age < self.ttl.as_secs())
            && entry.claims.usable_at(clock)
        {
            return Some(entry.claims.clone());
        }
        entries.pop(key);
        None
    }

    /// From now on remembers at most `capacity` tokens (0: none), each for at most `ttl`. The most
    /// recently used stay, as far as there is room.
    pub fn resize(&mut self, capacity: usize, ttl: Duration) {
        self.ttl = ttl;
        match (NonZeroUsize::new(capacity), &mut self.entries) {
            (None, entries) => *entries = None,
            (Some(capacity), Some(entries)) => entries.resize(capacity),
            (Some(capacity), entries) => *entries = Some(LruCache::new(capacity)),
        }
    }

    /// Hits and misses so far.
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    /// Tokens remembered now.
    pub fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, LruCache::len)
    }

    /// True when nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn key(token: &str) -> [u8; 32] {
    let mut key = [0; 32];
    // A SHA-256 digest has 32 octets.
    key.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    key
}
