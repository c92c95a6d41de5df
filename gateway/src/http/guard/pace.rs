//! Whether a client keeps up: bytes against the time in which it was its turn.
//!
//! Only that time counts. A client that waits for a slow upstream, or whose upload the upstream does
//! not take, is not slow itself.

use std::time::{Duration, Instant};

/// The least that a client has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Time in which it may do nothing at all.
    pub grace: Duration,
    /// Bytes that buy a further second each; at least 1.
    pub bytes_per_s: u64,
}

/// One direction of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    waited: Duration,
    since: Option<Instant>,
    bytes: u64,
}

impl Pace {
    /// From now on it is the client's turn; nothing changes when it is already.
    pub fn waits(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The client sent or took so many bytes, and its turn is over.
    pub fn moved(&mut self, bytes: usize, now: Instant) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.rests(now);
    }

    /// It is not the client's turn.
    pub fn rests(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }

    /// Whether it is the client's turn.
    pub fn is_its_turn(&self) -> bool {
        self.since.is_some()
    }

    /// When the client will have been too slow if it does nothing from now on; `None` while it is
    /// not its turn.
    pub fn ends(&self, rate: MinRate) -> Option<Instant> {
        // Beyond a century nobody waits, and sums of it stay within what a clock can say.
        const CENTURY_S: u64 = 100 * 366 * 24 * 3600;
        let bought = Duration::from_secs((self.bytes / rate.bytes_per_s.max(1)).min(CENTURY_S));
        let left = (rate.grace + bought).saturating_sub(self.waited);
        Some(self.since? + left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time;

    const RATE: MinRate = MinRate { grace: Duration::from_secs(10), bytes_per_s: 1_000 };

    #[test]
    fn only_the_clients_own_time_counts() {
        let start = time::monotonic();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        assert_eq!(pace.ends(RATE), None, "nobody has to do anything yet");
        pace.waits(at(0));
        pace.waits(at(4));
        assert_eq!(pace.ends(RATE), Some(at(10)), "since the beginning of its turn");
        pace.moved(0, at(6));
        assert_eq!(pace.ends(RATE), None);
        pace.waits(at(1_000));
        assert_eq!(pace.ends(RATE), Some(at(1_004)), "six of the ten seconds are gone");
        pace.moved(2_500, at(1_001));
        pace.waits(at(1_001));
        assert_eq!(pace.ends(RATE), Some(at(1_006)), "2,500 bytes are two more");
    }

    #[test]
    fn dripping_is_too_slow_and_the_least_rate_is_not() {
        let start = time::monotonic();
        for (bytes_each_second, expected_s) in
            [(0, Some(10)), (1, Some(10)), (500, Some(19)), (1_000, None)]
        {
            let mut pace = Pace::default();
            let ended = (0..3_600).find(|second| {
                let now = start + Duration::from_secs(*second);
                pace.waits(now);
                let ended = pace.ends(RATE).is_some_and(|ends| ends <= now);
                pace.moved(bytes_each_second, now + Duration::from_secs(1));
                ended
            });
            assert_eq!(ended, expected_s, "{bytes_each_second} bytes a second");
        }
    }

    #[test]
    fn no_number_of_bytes_breaks_the_clock() {
        let now = time::monotonic();
        let mut pace = Pace::default();
        pace.moved(usize::MAX, now);
        pace.moved(usize::MAX, now);
        pace.waits(now);
        assert!(pace.ends(MinRate { bytes_per_s: 0, ..RATE }).is_some_and(|ends| ends > now));
    }
}
