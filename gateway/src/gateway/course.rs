//! The course of a drain: when nothing new is accepted, when idle connections are closed, when all ends.

use std::time::{Duration, Instant};

use crate::net::worker::Phase;

/// A client that keeps its connection busy asks at least this often, and is told with the answer to go
/// elsewhere; whoever is idle for longer is closed, so that a stop need not wait for it.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The moments of one drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    /// Until then everything is as before, but whoever asks hears that it will not be.
    pub(super) accepts_until: Instant,
    /// From then on idle connections are closed.
    pub(super) closes_at: Instant,
    /// From then on everything is cut.
    pub(super) ends_at: Instant,
}

impl Course {
    /// Of a process that stops: after `delay` nothing new is accepted, and what is open gets `timeout`.
    pub(super) fn of_stop(now: Instant, delay: Duration, timeout: Duration) -> Course {
        let accepts_until = now + delay;
        let closes_at = accepts_until + IDLE_MAX.min(timeout / 2);
        Course { accepts_until, closes_at, ends_at: accepts_until + timeout }
    }

    /// Of connections whose place others have taken already: there is no hurry, so that a client that
    /// asks seldom is told too.
    pub(super) fn of_leave(now: Instant, timeout: Duration) -> Course {
        Course { accepts_until: now, closes_at: now + timeout / 2, ends_at: now + timeout }
    }

    /// What is to be done at that moment.
    pub(super) fn phase(&self, now: Instant) -> Phase {
        if now < self.accepts_until {
            Phase::Running
        } else if now < self.closes_at {
            Phase::Draining
        } else if now < self.ends_at {
            Phase::Closing
        } else {
            Phase::Stopping
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time;

    #[test]
    fn phases_follow_each_other_and_none_is_longer_than_it_may_be() {
        let now = time::monotonic();
        let seconds = Duration::from_secs_f64;
        let slow = Course::of_stop(now, seconds(3.0), seconds(30.0));
        let quick = Course::of_stop(now, Duration::ZERO, seconds(1.0));
        let cut = Course::of_stop(now, Duration::ZERO, Duration::ZERO);
        let leave = Course::of_leave(now, seconds(30.0));
        for (what, course, after_s, expected) in [
            ("while balancers look", slow, 2.9, Phase::Running),
            ("then nothing is accepted", slow, 3.0, Phase::Draining),
            ("idle ones go", slow, 8.0, Phase::Closing),
            ("the rest of the time is for answers", slow, 32.9, Phase::Closing),
            ("and that is all", slow, 33.0, Phase::Stopping),
            ("half a short time", quick, 0.4, Phase::Draining),
            ("the other half", quick, 0.5, Phase::Closing),
            ("its end", quick, 1.0, Phase::Stopping),
            ("no time", cut, 0.0, Phase::Stopping),
            ("others serve already", leave, 14.9, Phase::Draining),
            ("so there is time", leave, 15.0, Phase::Closing),
            ("but not for ever", leave, 30.0, Phase::Stopping),
        ] {
            assert_eq!(course.phase(now + seconds(after_s)), expected, "{what}");
        }
    }

    proptest! {
        /// Whatever is configured, each phase comes after the one before, none again, and all ends when it
        /// is said to.
        #[test]
        fn a_course_goes_one_way_and_ends_in_time(
            delay_ms in 0_u64..100_000,
            timeout_ms in 0_u64..100_000,
            is_stop: bool,
            mut looks_ms in prop::collection::vec(0_u64..250_000, 1..50),
        ) {
            let start = time::monotonic();
            let (delay, timeout) = (Duration::from_millis(delay_ms), Duration::from_millis(timeout_ms));
            let course =
                if is_stop { Course::of_stop(start, delay, timeout) } else { Course::of_leave(start, timeout) };
            let lasts = if is_stop { delay + timeout } else { timeout };
            looks_ms.sort_unstable();
            let mut before = Phase::Running;
            for look_ms in looks_ms {
                let after = Duration::from_millis(look_ms);
                let phase = course.phase(start + after);
                prop_assert!(phase >= before, "{phase:?} after {before:?}");
                prop_assert_eq!(phase == Phase::Stopping, after >= lasts);
                if is_stop {
                    prop_assert_eq!(phase == Phase::Running, after < delay && after < lasts);
                }
                before = phase;
            }
        }
    }
}
