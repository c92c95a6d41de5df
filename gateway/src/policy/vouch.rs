//! Who is good behind an address: clients that were proven and let in speak for the source they share
//! with others, for a while.
//!
//! They wash nobody clean: points against a source stay. But behind an address with many good clients
//! (an office, a carrier's NAT) one bad neighbour takes longer to get all of them banned.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use gateway_ebpf::Source;
use lru::LruCache;

use super::penalty::Arrived;
use crate::identity::Identity;

/// Sources with good clients that are remembered: as many as the kernel keeps limits of their own for.
/// At 200 octets each that is 3 MiB, and only who was proven gets one in.
const SOURCES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("is not 0");

/// Clients that speak for one source at once: more change nothing any more.
pub const GOOD_MAX: usize = 8;

/// What a client's word weighs halves in this time: an address changes hands within hours.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// A word that weighs less is forgotten.
const WEIGHT_MIN: f64 = 0.125;

/// A good client is told of again after this: often enough to be remembered, seldom enough to cost
/// nothing.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Sources that one worker remembers having told of: at 250 octets each a megabyte.
const TOLD_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("is not 0");

/// A client that was proven and let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// Where it came from.
    pub source: Source,
    /// Which client, as [`who`] tells.
    pub who: u64,
    /// When.
    pub at: Instant,
    /// Which way: the packets of one behind a proxy bear the proxy's address, so the kernel knows
    /// nothing of it.
    pub arrived: Arrived,
}

/// A number for a proven client with its user; `None` for who was not proven. Whoever finds two clients
/// with one number has one voice less.
pub fn who(identity: &Identity) -> Option<u64> {
    let client = identity.client_id()?;
    let mut hasher = DefaultHasher::new();
    (client, identity.user()).hash(&mut hasher);
    Some(hasher.finish())
}

/// Clients of one source, each with when it was seen.
type Seen = [Option<(u64, Instant)>; GOOD_MAX];

/// Whom a worker has told of, so that a good client costs a message once in a while and not with each
/// request, and a crowd of them behind one address no more than count there.
#[derive(Debug)]
pub struct Told {
    sources: LruCache<(Source, Arrived), Seen>,
}

impl Default for Told {
    fn default() -> Self {
        Told { sources: LruCache::new(TOLD_MAX) }
    }
}

impl Told {
    /// Whether there is something to tell: neither of this client was told lately, nor of as many others
    /// at its source as count.
    pub fn is_news(&mut self, voucher: &Voucher) -> bool {
        let Voucher { source, who, at, arrived } = *voucher;
        let is_fresh = |told: Instant| at.saturating_duration_since(told) < TELL_EVERY;
        let Some(told) = self.sources.get(&(source, arrived)) else { return true };
        match told.iter().flatten().find(|(other, _)| *other == who) {
            Some((_, told)) => !is_fresh(*told),
            None => !told.iter().all(|entry| entry.is_some_and(|(_, told)| is_fresh(told))),
        }
    }

    /// It was told.
    pub fn note(&mut self, voucher: &Voucher) {
        let Voucher { source, who, at, arrived } = *voucher;
        let told = self.sources.get_or_insert_mut((source, arrived), || [None; GOOD_MAX]);
        let known = |entry: &Option<(u64, Instant)>| entry.is_some_and(|(other, _)| other == who);
        let place = told.iter().position(known);
        let place =
            place.or_else(|| (0..GOOD_MAX).min_by_key(|place| told[*place].map(|(_, at)| at)));
        if let Some(place) = place {
            told[place] = Some((who, at));
        }
    }
}

/// Sources and the good clients behind them.
#[derive(Debug)]
pub struct Vouchers {
    sources: LruCache<Source, Seen>,
}

impl Default for Vouchers {
    fn default() -> Self {
        Vouchers { sources: LruCache::new(SOURCES_MAX) }
    }
}

impl Vouchers {
    /// Takes note of a good client; of more than [`GOOD_MAX`] the one seen longest ago makes room.
    pub fn record(&mut self, voucher: Voucher) {
        let seen = self.sources.get_or_insert_mut(voucher.source, || [None; GOOD_MAX]);
        let known =
            |entry: &Option<(u64, Instant)>| entry.is_some_and(|(who, _)| who == voucher.who);
        let index = seen
            .iter()
            .position(known)
            .or_else(|| (0..GOOD_MAX).min_by_key(|index| seen[*index].map(|(_, at)| at)));
        if let Some(index) = index {
            let before = seen[index].filter(|(who, _)| *who == voucher.who).map(|(_, at)| at);
            seen[index] = Some((voucher.who, before.map_or(voucher.at, |at| at.max(voucher.at))));
        }
    }

    /// The clients of up to `sources_max` sources, those of whom was heard last, each with how long ago
    /// it was seen.
    pub fn kept(&self, sources_max: usize, now: Instant) -> Vec<(Source, Vec<(u64, Duration)>)> {
        let ago = |(who, at): (u64, Instant)| (who, now.saturating_duration_since(at));
        let kept = |(source, seen): (&Source, &Seen)| {
            (*source, seen.iter().flatten().copied().map(ago).collect())
        };
        self.sources.iter().take(sources_max).map(kept).collect()
    }

    /// How many good clients speak for a source now, each by how long ago it was seen: 0 to
    /// [`GOOD_MAX`].
    pub fn good(&self, source: Source, now: Instant) -> f64 {
        let weight = |(_, at): (u64, Instant)| {
            let passed = now.saturating_duration_since(at);
            let weight = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
            if weight < WEIGHT_MIN { 0.0 } else { weight }
        };
        let seen = self.sources.peek(&source);
        seen.into_iter().flatten().flatten().map(|entry| weight(*entry)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::time;

    fn source(last: u8) -> Source {
        Source::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)))
    }

    #[test]
    fn each_client_speaks_once_and_for_a_while() {
        let start = time::monotonic();
        let mut vouchers = Vouchers::default();
        assert_eq!(vouchers.good(source(1), start), 0.0);
        for who in [1, 1, 1, 2] {
            vouchers.record(Voucher {
                source: source(1),
                who,
                at: start,
                arrived: Arrived::Directly,
            });
        }
        for (later_s, expected) in [(0, 2.0), (600, 1.0), (1800, 0.25), (1801, 0.0)] {
            let good = vouchers.good(source(1), start + Duration::from_secs(later_s));
            assert!((good - expected).abs() < 1e-9, "after {later_s} s: {good}");
        }
        assert_eq!(vouchers.good(source(2), start), 0.0, "not for its neighbour");
        // What comes late and was earlier does not make it older.
        vouchers.record(Voucher {
            source: source(1),
            who: 2,
            at: start + HALF_LIFE,
            arrived: Arrived::Directly,
        });
        vouchers.record(Voucher {
            source: source(1),
            who: 2,
            at: start,
            arrived: Arrived::Directly,
        });
        assert!((vouchers.good(source(1), start + HALF_LIFE) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn no_more_than_so_many_speak_and_the_newest_stay() {
        let start = time::monotonic();
        let mut vouchers = Vouchers::default();
        for who in 0..1000 {
            vouchers.record(Voucher {
                source: source(1),
                who,
                at: start + Duration::from_millis(who),
                arrived: Arrived::Directly,
            });
        }
        let good = vouchers.good(source(1), start + Duration::from_secs(1));
        assert!(good <= GOOD_MAX as f64 && good > GOOD_MAX as f64 - 0.1, "{good}");
    }

    #[test]
    fn of_a_crowd_behind_one_address_only_as_many_are_told_as_count() {
        let start = time::monotonic();
        let mut told = Told::default();
        let mut tell = |last: u8, who: u64, later_s: u64, arrived: Arrived| {
            let at = start + Duration::from_secs(later_s);
            let voucher = Voucher { source: source(last), who, at, arrived };
            let is_news = told.is_news(&voucher);
            if is_news {
                told.note(&voucher);
            }
            is_news
        };
        for (last, who, later_s, arrived, expected) in [
            (1, 0, 0, Arrived::Directly, true),
            (1, 0, 59, Arrived::Directly, false),
            (1, 0, 59, Arrived::ThroughProxy, true),
            (1, 0, 60, Arrived::Directly, true),
            (2, 0, 60, Arrived::Directly, true),
        ] {
            let found = tell(last, who, later_s, arrived);
            assert_eq!(found, expected, "{last} {who} {later_s} {arrived:?}");
        }
        let mut tell_crowd =
            |later_s| (0..1_000).filter(|who| tell(3, *who, later_s, Arrived::Directly)).count();
        assert_eq!([tell_crowd(0), tell_crowd(59)], [GOOD_MAX, 0]);
        assert_eq!(tell_crowd(60), GOOD_MAX);
    }

    #[test]
    fn nobody_speaks_without_a_name() {
        assert_eq!(who(&Identity::anonymous()), None);
    }
}
