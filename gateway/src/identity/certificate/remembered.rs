//! Clients whose chain was verified and who proved their key, for when they come back.
//!
//! Most handshakes of a gateway are with clients it has seen before. What a chain's signatures say does
//! not change, so it is remembered; what does change (the time, and with it validity and the lists'
//! `nextUpdate`) is judged anew each time, and so is the client's own signature. What is remembered
//! belongs to one [`Trust`](super::Trust): other authorities or lists are another one, which remembers
//! nothing yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use lru::LruCache;
use rustls_pki_types::CertificateDer;

use super::{Peer, fields};

/// Clients that are remembered; who comes seldom costs what everybody did before. At some two
/// kilobytes each these are eight megabytes, and only who has proven a key gets in.
const REMEMBERED_MAX: usize = 4_096;

/// Workers meet at a lock once for each handshake; more locks than workers on most machines.
const SHARDS: usize = 16;

/// Names the certificates that a client sent, all of them and in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Presented([u8; 32]);

impl Presented {
    /// Another way to the same leaf is another name: what leads to an anchor depends on it.
    pub(super) fn new(
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Presented {
        let mut context = digest::Context::new(&digest::SHA256);
        for der in std::iter::once(end_entity).chain(intermediates) {
            // Where one ends and the next begins is said, so no two lists read alike.
            context.update(&der.len().to_be_bytes());
            context.update(der);
        }
        Presented(fields::sha256_value(context.finish()))
    }
}

/// The clients that are remembered, by what they sent. Who came longest ago goes first.
pub(super) struct Remembered {
    shards: [Mutex<LruCache<Presented, Arc<Peer>>>; SHARDS],
}

impl Default for Remembered {
    fn default() -> Remembered {
        // Grows with those who come: most listeners have few clients.
        Remembered { shards: std::array::from_fn(|_| Mutex::new(LruCache::unbounded())) }
    }
}

impl Remembered {
    /// Who it was that sent this before.
    pub(super) fn find(&self, presented: Presented) -> Option<Arc<Peer>> {
        self.shard(presented).get(&presented).cloned()
    }

    /// Who sent this has proven to have its key.
    pub(super) fn put(&self, presented: Presented, peer: Arc<Peer>) {
        let mut shard = self.shard(presented);
        shard.put(presented, peer);
        if shard.len() > REMEMBERED_MAX / SHARDS {
            shard.pop_lru();
        }
    }

    fn shard(&self, presented: Presented) -> MutexGuard<'_, LruCache<Presented, Arc<Peer>>> {
        // It is a hash, so its first octet spreads them.
        let shard = &self.shards[usize::from(presented.0[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(octets: &'static [u8]) -> CertificateDer<'static> {
        CertificateDer::from(octets)
    }

    #[test]
    fn only_the_same_certificates_in_the_same_order_have_one_name() {
        let name = |leaf: &'static [u8], others: &[&'static [u8]]| {
            let others: Vec<_> = others.iter().map(|octets| der(octets)).collect();
            Presented::new(&der(leaf), &others)
        };
        let names = [
            name(b"leaf", &[]),
            name(b"leaf", &[b"a", b"b"]),
            name(b"leaf", &[b"b", b"a"]),
            name(b"leaf", &[b"ab"]),
            name(b"leafa", &[b"b"]),
        ];
        for (index, one) in names.iter().enumerate() {
            for (other_index, other) in names.iter().enumerate() {
                assert_eq!(one == other, index == other_index, "{index} and {other_index}");
            }
        }
        assert_eq!(name(b"leaf", &[b"a", b"b"]), names[1]);
    }

    #[test]
    fn as_many_as_there_is_room_for() {
        let remembered = Remembered::default();
        let peer = Arc::new(Peer::for_test("a"));
        let name = |number: usize| {
            let mut name = [0; 32];
            name[1..9].copy_from_slice(&number.to_be_bytes());
            Presented(name)
        };
        for number in 0..1_000 {
            remembered.put(name(number), peer.clone());
        }
        let held = (0..1_000).filter(|number| remembered.find(name(*number)).is_some()).count();
        assert_eq!(held, REMEMBERED_MAX / SHARDS);
        assert!(remembered.find(name(999)).is_some(), "who came last is there");
    }
}
