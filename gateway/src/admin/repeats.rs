//! Refusals that repeat are counted, not written again and again.
//!
//! Of one source and one reason the first few lines of a while are written in full; what comes after
//! them is one line with its number at the while's end. Metrics count every one. A worker has its own,
//! so a line is a decision without any lock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use gateway_ebpf::Source;

use crate::policy::Reason;

/// Long enough to fold a client that retries every second, short enough to be seen while it happens.
const WHILE: Duration = Duration::from_secs(10);

/// Lines in full of one source and reason in a while: enough to see what a client is trying.
const LINES_EACH: u32 = 10;

/// Sources and reasons told apart at once, of about 50 bytes; more share one allowance by reason, so
/// that a flood from many sources fills neither memory nor disk.
const KEPT_MAX: usize = 1_024;

/// Lines in full of one reason in a while from all sources that have no place of their own.
const LINES_OF_OTHERS: u32 = 100;

/// What was held back of one source and reason in the last while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// Who; `None` for all that had no place of their own.
    pub source: Option<Source>,
    /// Why they were refused.
    pub reason: Reason,
    /// Refusals without a line.
    pub count: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    written: u32,
    held_back: u64,
}

/// One worker's count of what it wrote lately.
#[derive(Debug, Default)]
pub struct Repeats {
    since: Option<Instant>,
    seen: HashMap<(Option<Source>, Reason), Seen>,
}

impl Repeats {
    /// Whether this refusal gets a line.
    pub fn admit(&mut self, source: Source, reason: Reason, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let own = (Some(source), reason);
        let has_place = self.seen.len() < KEPT_MAX || self.seen.contains_key(&own);
        let (key, most) =
            if has_place { (own, LINES_EACH) } else { ((None, reason), LINES_OF_OTHERS) };
        let seen = self.seen.entry(key).or_default();
        if seen.written < most {
            seen.written += 1;
            return true;
        }
        seen.held_back += 1;
        false
    }

    /// What was held back, once a while has passed; most first.
    pub fn take(&mut self, now: Instant) -> Vec<Repeated> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) < WHILE) {
            return Vec::new();
        }
        self.take_all()
    }

    /// What was held back so far.
    pub fn take_all(&mut self) -> Vec<Repeated> {
        self.since = None;
        let held_back = self.seen.drain().filter(|(_, seen)| seen.held_back > 0);
        let mut repeated: Vec<_> = held_back
            .map(|((source, reason), seen)| Repeated { source, reason, count: seen.held_back })
            .collect();
        repeated
            .sort_unstable_by_key(|repeated| (std::cmp::Reverse(repeated.count), repeated.reason));
        repeated
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time;

    fn source(number: u32) -> Source {
        Source::ipv4(number)
    }

    #[test]
    fn the_first_lines_are_written_and_the_rest_counted() {
        let now = time::monotonic();
        let mut repeats = Repeats::default();
        let mut write = |number, reason| repeats.admit(source(number), reason, now);
        for _ in 0..LINES_EACH {
            assert!(write(1, Reason::TokenExpired));
        }
        for _ in 0..5 {
            assert!(!write(1, Reason::TokenExpired));
        }
        assert!(write(1, Reason::BadSignature), "another reason");
        assert!(write(2, Reason::TokenExpired), "another source");
        assert_eq!(repeats.take(now + WHILE - Duration::from_millis(1)), []);
        let expected = Repeated { source: Some(source(1)), reason: Reason::TokenExpired, count: 5 };
        assert_eq!(repeats.take(now + WHILE), [expected]);
        assert!(repeats.admit(source(1), Reason::TokenExpired, now + WHILE), "a new while");
        assert_eq!(repeats.take_all(), []);
    }

    #[test]
    fn many_sources_share_what_is_left() {
        let now = time::monotonic();
        let mut repeats = Repeats::default();
        let most = KEPT_MAX as u32 + LINES_OF_OTHERS;
        let written = (0..most + 50)
            .filter(|number| repeats.admit(source(*number), Reason::NoRoute, now))
            .count();
        assert_eq!(written, most as usize);
        assert!(repeats.seen.len() <= KEPT_MAX + Reason::ALL.len());
        let others = Repeated { source: None, reason: Reason::NoRoute, count: 50 };
        assert_eq!(repeats.take_all(), [others]);
    }

    proptest! {
        /// Every refusal is written or counted, never both and never neither.
        #[test]
        fn nothing_is_lost(refusals in prop::collection::vec((0..4u32, 0..3usize), 0..300)) {
            let now = time::monotonic();
            let mut repeats = Repeats::default();
            let mut written = 0;
            for (number, reason) in &refusals {
                written += u64::from(repeats.admit(source(*number), Reason::ALL[*reason], now));
            }
            let counted: u64 = repeats.take_all().iter().map(|repeated| repeated.count).sum();
            prop_assert_eq!(written + counted, refusals.len() as u64);
        }
    }
}
