//! Which sources have used up most of what they may have, read from the table itself.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

use gateway_ebpf::{
    abi,
    bucket::{Limit, WAYS, WayState},
    verdict::Quota,
};

/// Sets that are looked through at one time: a table of a million sources whole (32 MiB, some
/// milliseconds); a larger one in turns.
const SETS_AT_A_TIME: usize = 1 << 18;
/// Sets that are looked at to tell how full the table is: enough for one part in a hundred.
const SETS_SAMPLED: usize = 1 << 12;
/// Sources that are kept in view at most, whatever is asked for.
pub const SOURCES_MAX: usize = 1_000;

/// How far a look at a table has come, and what it found worth remembering.
#[derive(Debug, Default)]
pub struct Survey {
    next_set: usize,
    /// Of sources, as the table has them ([`WayState::source`]).
    seen: Vec<u64>,
}

impl Survey {
    /// The sets to look through now, of so many.
    pub fn turn(&mut self, sets: usize) -> Range<usize> {
        let first = if self.next_set < sets { self.next_set } else { 0 };
        let end = sets.min(first + SETS_AT_A_TIME);
        self.next_set = end;
        first..end
    }

    /// The sources that were at the top the last time.
    pub fn seen(&self) -> &[u64] {
        &self.seen
    }

    /// The sources that have used most, most first; they are remembered.
    pub fn rank(
        &mut self,
        ways: impl Iterator<Item = WayState>,
        limits: &Limits,
        now_ns: u64,
        max: usize,
    ) -> Vec<WayState> {
        let max = max.min(SOURCES_MAX);
        let mut top = BinaryHeap::new();
        for way in ways {
            let used = limits.used(&way, now_ns);
            if used > 0 {
                top.push(Reverse((used, way.source, Ranked(way))));
            }
            if top.len() > max {
                top.pop();
            }
        }
        let mut top: Vec<_> = top.into_iter().map(|Reverse(entry)| entry).collect();
        top.sort_by_key(|&(used, source, _)| (Reverse(used), source));
        top.dedup_by_key(|(_, source, _)| *source);
        self.seen = top.iter().map(|(_, source, _)| *source).collect();
        top.into_iter().map(|(_, _, Ranked(way))| way).collect()
    }
}

/// A way that takes no part in its own ranking.
struct Ranked(WayState);

impl PartialEq for Ranked {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// What a source and an IPv6 /48 may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    source: [(Quota, Limit); 3],
    network: [(Quota, Limit); 3],
}

impl Limits {
    /// As the program has them.
    pub fn of(settings: &abi::Settings) -> Self {
        let abi::Settings { network_packets, network_connections, .. } = *settings;
        Self {
            source: Quota::ALL.map(|quota| (quota, settings.limit(quota))),
            network: [
                (Quota::Packets, network_packets),
                (Quota::Connections, network_connections),
                (Quota::Bytes, Limit::NONE),
            ],
        }
    }

    /// How much of its allowance a source has used, of the quota of which it used most: in parts of
    /// 65,536. 0 when all of its buckets are full.
    fn used(&self, way: &WayState, now_ns: u64) -> u64 {
        let is_network = gateway_ebpf::Source::from_word(way.source).as_network().is_some();
        let limits = if is_network { &self.network } else { &self.source };
        let used = |(quota, limit): &(Quota, Limit)| {
            let ahead_ns = (way.full_at_ns(*quota).wrapping_sub(now_ns) as i64).max(0) as u64;
            let share = (u128::from(ahead_ns) << 16) / u128::from(limit.burst_ns().max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        limits.iter().filter(|(_, limit)| !limit.is_none()).map(used).max().unwrap_or(0)
    }
}

/// How many places of a table of so many sets hold a bucket that is not full: counted in a part of
/// the table where it is large.
pub fn live_ways(sets: usize, ways: impl Fn(usize) -> [WayState; WAYS], now_ns: u64) -> usize {
    let step = (sets / SETS_SAMPLED).max(1);
    let is_live = |way: &WayState| {
        Quota::ALL.iter().any(|quota| (way.full_at_ns(*quota).wrapping_sub(now_ns) as i64) > 0)
    };
    let live = (0..sets).step_by(step).flat_map(ways).filter(is_live).count();
    live * step
}

#[cfg(test)]
mod tests {
    use gateway_ebpf::Source;

    use super::*;

    const LIMIT: Limit = Limit { cost_ns: 10, tolerance_ns: 90 };

    fn limits() -> Limits {
        let settings = abi::Settings {
            packets: LIMIT,
            connections: Limit { cost_ns: 100, tolerance_ns: 900 },
            network_packets: LIMIT.doubled(1),
            ..abi::Settings::default()
        };
        Limits::of(&settings)
    }

    fn way(source: Source, packets_full_at_ns: u64, connections_full_at_ns: u64) -> WayState {
        WayState {
            source: source.word(),
            packets_full_at_ns,
            connections_full_at_ns,
            bytes_full_at_ns: u64::MAX >> 1,
        }
    }

    #[test]
    fn who_used_most_comes_first() {
        let source = Source::ipv4;
        let network = Source::ipv6(0x2001_0db8_0001_0002).network().unwrap().word();
        let ways = [
            way(source(1), 1_000, 900), // nothing
            way(source(2), 1_020, 0),   // a fifth of its packets
            way(source(3), 0, 1_900),   // nine tenths of its connections
            way(source(4), 1_150, 0),   // more than it may have
            way(network, 1_060, 0),     // three fifths of its packets, connections being free
            way(source(3), 0, 1_900),   // the same, seen a second time
        ];
        let mut survey = Survey::default();
        let top = survey.rank(ways.into_iter(), &limits(), 1_000, 10);
        let words: Vec<u64> = top.iter().map(|way| way.source).collect();
        let expected = [source(4), source(3), network, source(2)].map(Source::word);
        assert_eq!(words, expected);
        assert_eq!(survey.seen(), expected);
        assert_eq!(survey.rank(ways.into_iter(), &limits(), 1_000, 1), [ways[3]]);
        assert!(survey.rank(ways.into_iter(), &limits(), 9_000, 10).is_empty());
    }

    #[test]
    fn a_large_table_is_looked_through_in_turns() {
        let mut survey = Survey::default();
        for (sets, turn) in [
            (256, 0..256),
            (256, 0..256),
            (SETS_AT_A_TIME + 5, 256..SETS_AT_A_TIME + 5),
            (SETS_AT_A_TIME + 5, 0..SETS_AT_A_TIME),
            (SETS_AT_A_TIME + 5, SETS_AT_A_TIME..SETS_AT_A_TIME + 5),
        ] {
            assert_eq!(survey.turn(sets), turn);
        }
    }

    #[test]
    fn tells_how_full_a_table_is() {
        let used = way(Source::ipv4(1), 50, 0);
        let free = WayState { bytes_full_at_ns: 10, ..way(Source::ipv4(1), 10, 0) };
        for (sets, share) in [(256, 2), (1 << 16, 2)] {
            let ways = |set: usize| if set < sets / 2 { [used; WAYS] } else { [free; WAYS] };
            assert_eq!(live_ways(sets, ways, 20), WAYS * sets / share, "{sets}");
        }
    }
}
