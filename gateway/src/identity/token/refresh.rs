//! When to ask an issuer for its keys, and how long to believe its last answer.
//!
//! Decides and fetches nothing. A failure never takes keys away: only the next good answer does, or
//! the time after which the last one is no longer believed. Requests never wait for a fetch, and
//! however many tokens name a key that is not there, they cause one fetch in each cool-down.

use std::time::{Duration, Instant};

/// An answer that says it is fresh for less than this is not asked for again sooner.
const EVERY_MIN: Duration = Duration::from_secs(60);

/// The first wait after a failure; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait after a failure: recovery is noticed within a minute.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What an issuer's keys are refreshed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshRules {
    /// Longest time from one good answer to the next question.
    pub every: Duration,
    /// From one question to the next one that an unknown key may cause.
    pub cooldown: Duration,
    /// How long the last good answer is believed.
    pub believed: Duration,
}

/// Where one issuer's refreshing stands.
#[derive(Clone, Debug)]
pub struct Refresh {
    rules: RefreshRules,
    /// Spreads the questions of many gateways that were started together.
    seed: u64,
    answered: Option<Instant>,
    asked: Option<Instant>,
    is_asking: bool,
    /// A token named a key that is not there, after the last question was put.
    is_wanted: bool,
    failures: u32,
    next: Instant,
    questions: u64,
}

impl Refresh {
    /// Nothing is known, and the first question is due. `seed` should differ between gateways.
    pub fn new(rules: RefreshRules, seed: u64, now: Instant) -> Self {
        Self {
            rules,
            seed,
            answered: None,
            asked: None,
            is_asking: false,
            is_wanted: false,
            failures: 0,
            next: now,
            questions: 0,
        }
    }

    /// The same under other rules, and with a question due: what is believed goes on being so.
    #[must_use]
    pub fn under(self, rules: RefreshRules, now: Instant) -> Self {
        Self { rules, is_asking: false, next: now, ..self }
    }

    /// The same with an answer that somebody else got at that moment, and with a question due.
    #[must_use]
    pub fn answered_at(self, answered: Instant) -> Self {
        Self { answered: Some(answered), ..self }
    }

    /// Whether to ask now.
    pub fn is_due(&self, now: Instant) -> bool {
        !self.is_asking && now >= self.next_question()
    }

    /// When to ask next, unless a question is open.
    fn next_question(&self) -> Instant {
        match self.asked {
            Some(asked) if self.is_wanted => self.next.min(asked + self.rules.cooldown),
            _ => self.next,
        }
    }

    /// A question was put.
    pub fn ask(&mut self, now: Instant) {
        self.is_asking = true;
        self.is_wanted = false;
        self.asked = Some(now);
        self.questions += 1;
    }

    /// It was answered with usable keys, which say how long they are fresh.
    pub fn succeed(&mut self, fresh: Option<Duration>, now: Instant) {
        let RefreshRules { every, .. } = self.rules;
        let fresh = fresh.map_or(every, |fresh| fresh.clamp(EVERY_MIN.min(every), every));
        self.is_asking = false;
        self.failures = 0;
        self.answered = Some(now);
        self.next = now + self.spread(fresh, 10);
    }

    /// It was not answered, or with nothing usable.
    pub fn fail(&mut self, now: Instant) {
        // Past 2^6 it is RETRY_MAX anyway.
        let wait = (RETRY_FIRST * (1 << self.failures.min(6))).min(RETRY_MAX);
        self.is_asking = false;
        self.failures = self.failures.saturating_add(1);
        self.next = now + self.spread(wait, 2);
    }

    /// A token named a key that is not there: perhaps one that is new.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Whether the last answer is still believed.
    pub fn is_believed(&self, now: Instant) -> bool {
        self.age(now).is_some_and(|age| age < self.rules.believed)
    }

    /// Time since the last good answer; `None` when there was none.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.answered.map(|answered| now.saturating_duration_since(answered))
    }

    /// Whether the first question is still open.
    pub fn is_starting(&self) -> bool {
        self.answered.is_none() && self.failures == 0
    }

    /// Time until the next question; `None` while one is open.
    pub fn next_in(&self, now: Instant) -> Option<Duration> {
        let next = self.next_question();
        (!self.is_asking).then(|| next.saturating_duration_since(now))
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Up to one `part`th shorter, differently for each question and gateway; never longer.
    fn spread(&self, wait: Duration, part: u32) -> Duration {
        // splitmix64 (Steele, Lea and Flood, 2014).
        let mut bits = self.seed.wrapping_add(self.questions.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let share = (bits >> 40) as f64 / (1_u64 << 24) as f64;
        wait - (wait / part).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time;

    const RULES: RefreshRules = RefreshRules {
        every: Duration::from_secs(900),
        cooldown: Duration::from_secs(30),
        believed: Duration::from_secs(300),
    };

    /// What happens to a refresh, and what is expected after it.
    enum Step {
        Ask,
        Answer,
        Fresh(u64),
        Fail,
        Want,
        Due(bool),
        Believed(bool),
    }

    fn play(seed: u64, steps: &[(u64, Step)]) {
        let start = time::monotonic();
        let mut refresh = Refresh::new(RULES, seed, start);
        for (number, (at_s, step)) in steps.iter().enumerate() {
            let now = start + Duration::from_secs(*at_s);
            let what = format!("step {number} at {at_s} s");
            match step {
                Step::Ask => refresh.ask(now),
                Step::Answer => refresh.succeed(None, now),
                Step::Fresh(fresh_s) => refresh.succeed(Some(Duration::from_secs(*fresh_s)), now),
                Step::Fail => refresh.fail(now),
                Step::Want => refresh.want(),
                Step::Due(due) => assert_eq!(refresh.is_due(now), *due, "{what}"),
                Step::Believed(believed) => {
                    assert_eq!(refresh.is_believed(now), *believed, "{what}");
                }
            }
        }
    }

    #[test]
    fn keys_are_asked_for_in_time_and_believed_for_a_time() {
        use Step::{Answer, Ask, Believed, Due, Fail, Fresh, Want};
        for seed in [0, 1, u64::MAX] {
            // The ordinary course.
            play(
                seed,
                &[
                    (0, Believed(false)),
                    (0, Due(true)),
                    (0, Ask),
                    (5, Due(false)), // one question at a time
                    (5, Answer),
                    (5, Believed(true)),
                    (5 + 809, Due(false)), // spread by a tenth at most
                    (5 + 900, Due(true)),
                ],
            );
            // What the answer says of itself, within bounds.
            for (fresh_s, not_yet_s, due_s) in [(0, 53, 60), (120, 107, 120), (86_400, 809, 900)] {
                let steps =
                    [(0, Ask), (0, Fresh(fresh_s)), (not_yet_s, Due(false)), (due_s, Due(true))];
                play(seed, &steps);
            }
            // Lost and found: failures take nothing away, time does, an answer gives it back.
            play(
                seed,
                &[
                    (0, Ask),
                    (0, Answer),
                    (900, Ask),
                    (100, Fail),
                    (299, Believed(true)),
                    (300, Believed(false)),
                    (1000, Ask),
                    (1000, Answer),
                    (1000, Believed(true)),
                ],
            );
            // Backing off: 1, 2, 4, … 60 s, each at most halved.
            let mut steps = vec![];
            let mut now_s = 0;
            for wait_s in [1_u64, 2, 4, 8, 16, 32, 60, 60, 60] {
                steps.extend([(now_s, Due(true)), (now_s, Ask), (now_s, Fail)]);
                if wait_s > 1 {
                    steps.push((now_s + wait_s / 2 - 1, Due(false)));
                }
                now_s += wait_s;
            }
            play(seed, &steps);
            // An unknown key: one question in each cool-down, also for one that comes while a
            // question is open, and none when nobody asks.
            play(
                seed,
                &[
                    (0, Ask),
                    (0, Answer),
                    (10, Want),
                    (10, Want),
                    (29, Due(false)),
                    (30, Due(true)),
                    (30, Ask),
                    (31, Want),
                    (32, Answer),
                    (59, Due(false)),
                    (60, Due(true)),
                    (60, Ask),
                    (60, Answer),
                    (120, Due(false)),
                    (120, Want),
                    (120, Due(true)),
                ],
            );
        }
    }

    #[test]
    fn strict_denies_after_five_minutes_and_recovers() {
        // A minute between questions, so that five minutes without an answer are five failures.
        let rules = RefreshRules { every: Duration::from_secs(60), ..RULES };
        let start = time::monotonic();
        let mut refresh = Refresh::new(rules, 7, start);
        refresh.ask(start);
        refresh.succeed(None, start);
        let mut lost = None;
        for second in 1..600 {
            let now = start + Duration::from_secs(second);
            if refresh.is_due(now) {
                refresh.ask(now);
                refresh.fail(now);
            }
            if lost.is_none() && !refresh.is_believed(now) {
                lost = Some(second);
            }
        }
        assert_eq!(lost, Some(300));
        assert!(refresh.failures() >= 8, "{refresh:?}");
        let now = start + Duration::from_secs(660);
        assert!(refresh.is_due(now));
        refresh.ask(now);
        refresh.succeed(None, now);
        assert!(refresh.is_believed(now));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However many tokens come, and whatever the answers are: never two questions within a
        /// cool-down that are not due by themselves.
        #[test]
        fn a_storm_causes_one_question_in_each_cooldown(
            seed: u64,
            storm in proptest::collection::vec((0_u64..40, any::<bool>()), 1..200),
        ) {
            let start = time::monotonic();
            let mut refresh = Refresh::new(RULES, seed, start);
            refresh.ask(start);
            refresh.succeed(None, start);
            let (mut now, mut last) = (start, start);
            for (pause_s, answered) in storm {
                now += Duration::from_secs(pause_s);
                refresh.want();
                if refresh.is_due(now) {
                    prop_assert!(now.duration_since(last) >= RULES.cooldown);
                    last = now;
                    refresh.ask(now);
                    refresh.succeed(answered.then_some(Duration::ZERO), now);
                }
            }
        }
    }
}
