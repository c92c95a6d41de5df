//! What came of the work.

use std::time::Duration;

use serde::Serialize;

/// Failures that are told in words; the rest is a number.
const TOLD_MAX: usize = 5;

/// What came of the work; what was not looked at is 0.
#[derive(Debug, Default, Serialize, PartialEq)]
pub struct Told {
    /// Answers with 200 while it counted.
    pub answered: u64,
    /// How long that was.
    pub elapsed_s: f64,
    /// The server's processor time for each answer: of the stretches, the tenth that was least
    /// disturbed.
    pub cpu_us_low: f64,
    /// The same over all of the time.
    pub cpu_us_mean: f64,
    /// The part of `cpu_us_low` in the kernel, by what its tick found over all of the time.
    pub kernel_us: f64,
    /// From the moment it was meant to be asked to the whole answer, in microseconds.
    pub latency: Latency,
    /// How often the server's threads gave the processor up by themselves, for each answer.
    pub voluntary_per_request: f64,
    /// How often they had to.
    pub involuntary_per_request: f64,
    /// Connections that ended and were replaced.
    pub reconnected: u64,
    /// Of the handshakes, those that resumed a session.
    pub resumed: u64,
    /// Requests and handshakes that failed.
    pub failed: u64,
    /// What the first of them said.
    pub failures: Vec<String>,
}

impl Told {
    /// Counts a failure.
    pub fn fail(&mut self, why: &anyhow::Error) {
        self.failed += 1;
        if self.failures.len() < TOLD_MAX {
            self.failures.push(format!("{why:#}"));
        }
    }
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq)]
pub struct Latency {
    /// Half took no longer.
    pub p50_us: u64,
    /// 99 of a hundred took no longer.
    pub p99_us: u64,
    /// 999 of a thousand took no longer.
    pub p999_us: u64,
}

impl Latency {
    /// Of requests that took so many microseconds.
    pub fn of(mut us: Vec<u64>) -> Latency {
        us.sort_unstable();
        let at = |thousandth: usize| {
            let last = us.len().saturating_sub(1);
            us.get((us.len() * thousandth / 1_000).min(last)).copied().unwrap_or(0)
        };
        Latency { p50_us: at(500), p99_us: at(990), p999_us: at(999) }
    }
}

/// A stretch of time: answers that came, and the server's time meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// Answers.
    pub answered: u64,
    /// The server's time on a processor.
    pub used: Duration,
}

/// Microseconds an answer: of the stretches the tenth that was least disturbed, and of all together.
pub fn cpu_us(stretches: &[Stretch]) -> (f64, f64) {
    let us = |stretch: &Stretch| stretch.used.as_secs_f64() * 1e6 / stretch.answered as f64;
    let mut each: Vec<f64> =
        stretches.iter().filter(|stretch| stretch.answered > 0).map(us).collect();
    each.sort_by(f64::total_cmp);
    let low = each.get(each.len() / 10).copied().unwrap_or(0.0);
    let sum = stretches.iter().fold(Stretch { answered: 0, used: Duration::ZERO }, |sum, one| {
        Stretch { answered: sum.answered + one.answered, used: sum.used + one.used }
    });
    (low, if sum.answered == 0 { 0.0 } else { us(&sum) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_came() {
        for (us, expected) in [
            (vec![], (0, 0, 0)),
            (vec![7], (7, 7, 7)),
            ((1..=1_000).rev().collect(), (501, 991, 1_000)),
        ] {
            let Latency { p50_us, p99_us, p999_us } = Latency::of(us);
            assert_eq!((p50_us, p99_us, p999_us), expected);
        }
    }

    #[test]
    fn a_disturbed_stretch_does_not_count_for_the_low_figure() {
        let stretch = |answered, us| Stretch { answered, used: Duration::from_micros(us) };
        let stretches = [stretch(10, 200), stretch(0, 50), stretch(10, 900), stretch(10, 220)];
        let (low, mean) = cpu_us(&stretches);
        assert_eq!(low, 20.0);
        assert!((mean - 1_370.0 / 30.0).abs() < 1e-9, "{mean}");
        assert_eq!(cpu_us(&[]), (0.0, 0.0));
    }
}
