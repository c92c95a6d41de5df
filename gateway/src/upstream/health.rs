//! How a server is doing, from what was seen of it. Plain values; who sees and who asks is elsewhere.
//!
//! Two judges. The prober's questions ([`Streak`]) say `up` or `down`, with hysteresis. What becomes
//! of requests ([`Record`]) takes a server out for a while after a few failures in a row, and lets one
//! request at a time find out whether it is back.

use std::time::Duration;

/// Failures in a row after which a server is out: one may be a connection that was about to close
/// anyway, two may be chance.
const FAILURES_MAX: u8 = 3;

/// The first time out. A server that was merely restarted is back by then.
const OUT_FIRST: Duration = Duration::from_secs(1);

/// The longest time out: one request in ten seconds is no burden for a server that is ill, and
/// whoever mends it does not want to wait for longer.
const OUT_MAX: Duration = Duration::from_secs(10);

/// What the prober found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not asked yet: as good as up.
    Unknown,
    /// Answers.
    Up,
    /// Does not.
    Down,
}

/// How many of what are needed for another verdict.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Good answers in a row.
    pub healthy: u32,
    /// Bad ones.
    pub unhealthy: u32,
}

/// The prober's memory of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streak {
    verdict: Verdict,
    /// Answers in a row that speak against the verdict.
    against: u32,
}

impl Default for Streak {
    fn default() -> Self {
        Streak { verdict: Verdict::Unknown, against: 0 }
    }
}

impl Streak {
    /// What holds now.
    pub fn verdict(self) -> Verdict {
        self.verdict
    }

    /// Takes note of one answer. The first one decides at once: there is nothing to be steady about.
    pub fn observe(self, is_good: bool, thresholds: Thresholds) -> Streak {
        let found = if is_good { Verdict::Up } else { Verdict::Down };
        if self.verdict == found || self.verdict == Verdict::Unknown {
            return Streak { verdict: found, against: 0 };
        }
        let against = self.against + 1;
        let needed = if is_good { thresholds.healthy } else { thresholds.unhealthy };
        if against >= needed {
            Streak { verdict: found, against: 0 }
        } else {
            Streak { verdict: self.verdict, against }
        }
    }
}

/// What became of one request at a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, whatever it answered.
    Answered,
    /// No connection, no answer in time, or a broken one.
    Failed,
}

/// How a server stands, by its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In use.
    In,
    /// Its time out is over: one request may find out.
    Due,
    /// Out for this long.
    Out(Duration),
}

/// What is remembered of a server's requests; small enough for one atomic word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// In a row, up to [`FAILURES_MAX`].
    failures: u8,
    /// Times out without an answer in between.
    outages: u8,
    /// A request is finding out.
    is_tried: bool,
    /// End of the time out, in milliseconds of the server's clock; 48 bits are nine thousand years.
    until_ms: u64,
}

impl Record {
    /// How the server stands.
    pub fn standing(self, now_ms: u64) -> Standing {
        if self.failures < FAILURES_MAX {
            Standing::In
        } else if now_ms < self.until_ms {
            Standing::Out(Duration::from_millis(self.until_ms - now_ms))
        } else {
            Standing::Due
        }
    }

    /// One request finds out; the others stay away for as long as it may take. `None` when another
    /// was first.
    pub fn claim(self, now_ms: u64) -> Option<Record> {
        (self.standing(now_ms) == Standing::Due).then(|| Record {
            is_tried: true,
            until_ms: now_ms + time_out_ms(self.outages),
            ..self
        })
    }

    /// Takes note of what became of a request.
    pub fn observe(self, outcome: Outcome, now_ms: u64) -> Record {
        if outcome == Outcome::Answered {
            return Record::default();
        }
        let failures = (self.failures + 1).min(FAILURES_MAX);
        // What was under way when the server went out fails too, and says nothing new.
        let is_news = self.is_tried || self.failures < FAILURES_MAX;
        if failures < FAILURES_MAX || !is_news {
            return Record { failures, ..self };
        }
        let outages = self.outages.saturating_add(1);
        Record { failures, outages, is_tried: false, until_ms: now_ms + time_out_ms(outages) }
    }

    /// As one word.
    pub fn packed(self) -> u64 {
        let until_ms = self.until_ms & ((1 << 48) - 1);
        u64::from(self.failures)
            | u64::from(self.is_tried) << 7
            | u64::from(self.outages) << 8
            | until_ms << 16
    }

    /// The word's meaning; every word has one.
    pub fn unpacked(word: u64) -> Record {
        Record {
            failures: (word & 0x7f) as u8,
            is_tried: word & 0x80 != 0,
            outages: (word >> 8 & 0xff) as u8,
            until_ms: word >> 16,
        }
    }
}

fn time_out_ms(outages: u8) -> u64 {
    let doublings = u32::from(outages.saturating_sub(1).min(8));
    (OUT_FIRST * 2u32.pow(doublings)).min(OUT_MAX).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::simulation::Numbers;

    #[test]
    fn the_prober_needs_several_answers_to_change_its_mind() {
        let thresholds = Thresholds { healthy: 2, unhealthy: 3 };
        let mut streak = Streak::default();
        assert_eq!(streak.verdict(), Verdict::Unknown);
        for (is_good, verdict) in [
            (true, Verdict::Up), // the first decides
            (false, Verdict::Up),
            (false, Verdict::Up),
            (true, Verdict::Up), // not in a row
            (false, Verdict::Up),
            (false, Verdict::Up),
            (false, Verdict::Down),
            (true, Verdict::Down),
            (false, Verdict::Down), // flapping: stays down
            (true, Verdict::Down),
            (true, Verdict::Up),
        ] {
            streak = streak.observe(is_good, thresholds);
            assert_eq!(streak.verdict(), verdict, "{streak:?}");
        }
        assert_eq!(Streak::default().observe(false, thresholds).verdict(), Verdict::Down);
    }

    #[test]
    fn a_failing_server_is_out_for_longer_each_time() {
        let mut record = Record::default();
        for _ in 0..2 {
            record = record.observe(Outcome::Failed, 0);
            assert_eq!(record.standing(0), Standing::In);
        }
        let mut now_ms = 0;
        record = record.observe(Outcome::Failed, now_ms);
        for out_s in [1, 2, 4, 8, 10, 10] {
            assert_eq!(record.standing(now_ms), Standing::Out(Duration::from_secs(out_s)));
            let before = record;
            record = record.observe(Outcome::Failed, now_ms + 1);
            assert_eq!(record, before, "what was under way says nothing new");
            now_ms += out_s * 1_000;
            assert_eq!(record.standing(now_ms), Standing::Due);
            record = record.claim(now_ms).expect("due");
            assert!(matches!(record.standing(now_ms), Standing::Out(_)), "one at a time");
            assert_eq!(record.claim(now_ms), None);
            now_ms += 10;
            record = record.observe(Outcome::Failed, now_ms);
        }
        assert_eq!(record.observe(Outcome::Answered, now_ms), Record::default());
    }

    #[test]
    fn whoever_tried_and_never_told_does_not_keep_a_server_out() {
        let failed = |record: Record| record.observe(Outcome::Failed, 0);
        let record = failed(failed(failed(Record::default())));
        let tried = record.claim(1_000).expect("due");
        assert_eq!(tried.standing(1_999), Standing::Out(Duration::from_millis(1)));
        assert_eq!(tried.standing(2_000), Standing::Due);
    }

    /// A server that goes and comes, and requests that take their time, for weeks: while it is gone, it is
    /// asked once in each time out and no more; when it is back, it is found within the longest one; and
    /// it is never out without failures in a row.
    #[test]
    fn a_server_that_goes_is_left_alone_and_one_that_comes_is_found() {
        const STEPS: u32 = 1_000_000;
        let mut numbers = Numbers::seeded(3);
        let mut record = Record::default();
        // Requests under way: when they end, and which they are.
        let mut under_way: BTreeSet<(u64, u32)> = BTreeSet::new();
        let (mut now_ms, mut is_alive, mut changed_ms) = (1_000_u64, true, 0_u64);
        let (mut in_a_row, mut claimed_ms): (u32, Option<u64>) = (0, None);
        let (mut refused, mut claims) = (0, 0);
        for step in 0..STEPS {
            now_ms += numbers.one_of(&[0, 0, 1, 5, 30, 200, 1_500]);
            if numbers.once_in(2_000) {
                (is_alive, changed_ms) = (!is_alive, now_ms);
            }
            // What ended meanwhile, in its order.
            while under_way.first().is_some_and(|(ended_ms, _)| *ended_ms <= now_ms) {
                let (ended_ms, _) = under_way.pop_first().expect("looked at above");
                let was_alive = is_alive == (ended_ms >= changed_ms);
                let outcome = if was_alive { Outcome::Answered } else { Outcome::Failed };
                in_a_row = if was_alive { 0 } else { in_a_row + 1 };
                record = record.observe(outcome, ended_ms);
                if was_alive {
                    assert_eq!(record, Record::default(), "step {step}");
                    claimed_ms = None;
                }
            }
            record = Record::unpacked(record.packed());
            match record.standing(now_ms) {
                Standing::In => {
                    assert!(in_a_row < 3, "step {step}: {in_a_row} failures, {record:?}")
                }
                Standing::Out(left) => {
                    assert!(in_a_row >= 3, "step {step}: {in_a_row} failures, {record:?}");
                    assert!(left <= OUT_MAX && left > Duration::ZERO, "step {step}: {left:?}");
                    assert_eq!(record.claim(now_ms), None);
                    refused += 1;
                    continue;
                }
                Standing::Due => {
                    record = record.claim(now_ms).expect("due");
                    assert_eq!(record.claim(now_ms), None, "step {step}: two find out");
                    if let Some(before_ms) = claimed_ms.replace(now_ms) {
                        let apart_ms = now_ms - before_ms;
                        assert!(apart_ms >= 1_000, "step {step}: asked again after {apart_ms} ms");
                    }
                    claims += 1;
                }
            }
            let takes_ms = numbers.one_of(&[0, 1, 3, 20, 400, 900]);
            under_way.insert((now_ms + takes_ms, step));
        }
        assert!(refused > 1_000 && claims > 100, "{refused} refused, {claims} times found out");
    }

    proptest! {
        #[test]
        fn a_record_is_one_word(word: u64) {
            prop_assert_eq!(Record::unpacked(word).packed(), word);
        }
    }
}
