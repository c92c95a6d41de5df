//! From what was read to a stage, with hysteresis.
//!
//! Two looks in a row must agree before a stage is entered, so that one wild figure sheds nobody. A stage
//! is left for the one below it when for a while everything has been well away from what led to it. So a
//! host that hovers at a limit changes its mind every few seconds at most, and its clients far less.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Stage, pressure::Pressure, temperature::Sensor};

/// A stage is left when all has been well for this long: five looks.
const HOLD: Duration = Duration::from_secs(5);

/// And when the CPU is cooler than what led to it by this: sensors jump by a degree or two.
const COOLER_C: f64 = 3.0;

/// The past that the trend is taken from.
const TREND_OF: Duration = Duration::from_secs(10);

/// The trend counts for as long as shedding takes to show, and by no more than [`TREND_MAX_C`].
const TREND_AHEAD_S: f64 = 5.0;
const TREND_MAX_C: f64 = 2.0;

/// A CPU that has been slowed down is hot, whatever its sensor says, for this long.
const THROTTLED_FOR: Duration = Duration::from_secs(10);

/// Looks kept for the trend, a second apart.
const HISTORY_MAX: usize = 32;

/// `[host].cpu_temperature`, in °C.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperatures {
    /// An operator is told.
    pub warn_c: f64,
    /// The hardware defends itself about here.
    pub critical_c: f64,
}

impl Temperatures {
    /// From this temperature on a stage holds. Between `warn` and `critical` they are a third apart, but the
    /// last, which comes while there is still time for a balancer to notice.
    fn of(self, stage: Stage) -> f64 {
        let part = match stage {
            Stage::Normal => return f64::NEG_INFINITY,
            Stage::Strained => 0.0,
            Stage::NoStrangers => 2.0 / 6.0,
            Stage::Essential => 4.0 / 6.0,
            Stage::Critical => 5.0 / 6.0,
        };
        self.warn_c + part * (self.critical_c - self.warn_c)
    }
}

/// What was read at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// CPU sensors.
    pub sensors: Vec<Sensor>,
    /// Times that CPUs were slowed down for their heat.
    pub throttle_events: Option<u64>,
    /// What may run out.
    pub pressure: Pressure,
}

impl Sample {
    /// The hottest sensor that works.
    fn hottest(&self) -> Option<(&str, f64)> {
        let working =
            self.sensors.iter().filter_map(|sensor| Some((&*sensor.name, sensor.celsius?)));
        working.max_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// What the host would have shed, and why.
type Wanted = (Stage, String);

/// Stages over time.
#[derive(Clone, Debug, Default)]
pub struct Assessor {
    stage: Stage,
    why: Option<String>,
    /// What the look before wanted.
    wanted: Stage,
    well_since: Option<Instant>,
    history: VecDeque<(Instant, f64)>,
    throttle_events: Option<u64>,
    throttled_at: Option<Instant>,
    softirq_dropped: Option<u64>,
}

impl Assessor {
    /// The stage that holds, and why when it is not the first.
    pub fn stage(&self) -> (Stage, Option<&str>) {
        (self.stage, self.why.as_deref())
    }

    /// Takes note of a look, and gives the stage that holds from now on.
    pub fn look(&mut self, sample: &Sample, limits: Temperatures, now: Instant) -> Stage {
        self.remember(sample, now);
        let wanted = self.wanted(sample, limits, now, 0.0);
        let agreed = wanted.0.min(self.wanted);
        self.wanted = wanted.0;
        if agreed > self.stage {
            self.stage = agreed;
            self.well_since = None;
        }
        if wanted.0 >= self.stage && wanted.0 > Stage::Normal {
            self.why = Some(wanted.1);
        }
        // As if it were hotter than it is.
        if self.wanted(sample, limits, now, COOLER_C).0 >= self.stage {
            self.well_since = None;
        } else if now.saturating_duration_since(*self.well_since.get_or_insert(now)) >= HOLD {
            self.stage = self.stage.below();
            self.well_since = Some(now);
        }
        if self.stage == Stage::Normal {
            self.why = None;
        }
        self.stage
    }

    fn remember(&mut self, sample: &Sample, now: Instant) {
        if let Some((_, celsius)) = sample.hottest() {
            self.history.push_back((now, celsius));
        }
        let is_old = |(at, _): &(Instant, f64)| now.saturating_duration_since(*at) > TREND_OF;
        while self.history.len() > HISTORY_MAX || self.history.front().is_some_and(is_old) {
            self.history.pop_front();
        }
        if let (Some(before), Some(events)) = (self.throttle_events, sample.throttle_events)
            && events > before
        {
            self.throttled_at = Some(now);
        }
        self.throttle_events = sample.throttle_events.or(self.throttle_events);
    }

    /// What this look alone would have shed, were the CPU hotter by `margin_c`.
    fn wanted(
        &mut self,
        sample: &Sample,
        limits: Temperatures,
        now: Instant,
        margin_c: f64,
    ) -> Wanted {
        let by_stall = |percent: f64| match percent {
            30.0.. => Stage::NoStrangers,
            10.0.. => Stage::Strained,
            _ => Stage::Normal,
        };
        let by_memory = |available: f64| match available {
            ..0.03 => Stage::NoStrangers,
            ..0.10 => Stage::Strained,
            _ => Stage::Normal,
        };
        let by_descriptors = |used: f64| match used {
            0.97.. => Stage::Essential,
            0.90.. => Stage::NoStrangers,
            0.80.. => Stage::Strained,
            _ => Stage::Normal,
        };
        let Pressure { memory_stall_percent, memory_available, descriptors_used, .. } =
            sample.pressure;
        let stall = memory_stall_percent.map(|percent| {
            (
                by_stall(percent),
                format!("{percent:.0} % of the time nobody gets on for want of memory"),
            )
        });
        let memory = memory_available.map(|available| {
            (by_memory(available), format!("{:.1} % of the memory is available", available * 100.0))
        });
        let descriptors = descriptors_used.map(|used| {
            (by_descriptors(used), format!("{:.0} % of the descriptors are in use", used * 100.0))
        });
        let candidates = [
            self.by_temperature(sample, limits, margin_c),
            self.by_throttling(now),
            stall,
            memory,
            descriptors,
            (margin_c == 0.0).then(|| self.by_drops(sample)).flatten(),
        ];
        // The first of those that are equal: heat is what an operator can least see from outside.
        let mut worst = (Stage::Normal, String::new());
        for candidate in candidates.into_iter().flatten() {
            if candidate.0 > worst.0 {
                worst = candidate;
            }
        }
        worst
    }

    fn by_temperature(
        &self,
        sample: &Sample,
        limits: Temperatures,
        margin_c: f64,
    ) -> Option<Wanted> {
        let (name, celsius) = sample.hottest()?;
        let expected_c = celsius + self.trend_c() + margin_c;
        let stages = Stage::ALL.into_iter().rev();
        let stage = stages.into_iter().find(|stage| expected_c >= limits.of(*stage))?;
        Some((stage, format!("{name} is at {celsius:.1} °C, limit {:.1}", limits.of(stage))))
    }

    /// By how much it will be hotter soon; it never will be cooler soon.
    fn trend_c(&self) -> f64 {
        let (Some((first_at, first_c)), Some((last_at, last_c))) =
            (self.history.front(), self.history.back())
        else {
            return 0.0;
        };
        let passed_s = last_at.saturating_duration_since(*first_at).as_secs_f64();
        // Of a shorter past a jump of the sensor would be a trend.
        if passed_s < TREND_OF.as_secs_f64() / 2.0 {
            return 0.0;
        }
        ((last_c - first_c) / passed_s * TREND_AHEAD_S).clamp(0.0, TREND_MAX_C)
    }

    fn by_throttling(&self, now: Instant) -> Option<Wanted> {
        let throttled_at = self.throttled_at?;
        let is_hot = now.saturating_duration_since(throttled_at) < THROTTLED_FOR;
        let why = || "CPUs are slowed down because they are hot".to_owned();
        is_hot.then(|| (Stage::NoStrangers, why()))
    }

    fn by_drops(&mut self, sample: &Sample) -> Option<Wanted> {
        let dropped = sample.pressure.softirq_dropped?;
        let before = self.softirq_dropped.replace(dropped)?;
        let more = dropped.saturating_sub(before);
        (more > 0).then(|| (Stage::Strained, format!("{more} packets found a CPU's queue full")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time;

    const LIMITS: Temperatures = Temperatures { warn_c: 80.0, critical_c: 95.0 };

    fn at(celsius: f64) -> Sample {
        let sensor = Sensor { name: "cpu".to_owned(), celsius: Some(celsius) };
        Sample { sensors: vec![sensor], ..Sample::default() }
    }

    /// Looks a second apart.
    fn stages(samples: &[Sample]) -> Vec<Stage> {
        let mut assessor = Assessor::default();
        let start = time::monotonic();
        let look =
            |(second, sample)| assessor.look(sample, LIMITS, start + Duration::from_secs(second));
        (0..).zip(samples).map(look).collect()
    }

    fn last(samples: &[Sample]) -> Stage {
        *stages(samples).last().unwrap()
    }

    #[test]
    fn each_temperature_has_its_stage() {
        for (celsius, expected) in [
            (20.0, Stage::Normal),
            (79.9, Stage::Normal),
            (80.0, Stage::Strained),
            (84.9, Stage::Strained),
            (85.0, Stage::NoStrangers),
            (90.0, Stage::Essential),
            (92.5, Stage::Critical),
            (120.0, Stage::Critical),
        ] {
            assert_eq!(last(&[at(celsius), at(celsius)]), expected, "{celsius}");
        }
    }

    #[test]
    fn one_wild_figure_sheds_nobody() {
        let wild = [at(50.0), at(110.0), at(50.0), at(110.0), at(50.0)];
        assert_eq!(stages(&wild), [Stage::Normal; 5]);
        // A sensor that fails neither.
        let mut broken = at(0.0);
        broken.sensors[0].celsius = None;
        assert_eq!(last(&[broken.clone(), broken, Sample::default()]), Stage::Normal);
    }

    #[test]
    fn it_goes_up_at_once_and_comes_down_one_by_one() {
        let mut samples = vec![at(94.0); 3];
        samples.extend(vec![at(60.0); 30]);
        let stages = stages(&samples);
        assert_eq!(stages[..3], [Stage::Normal, Stage::Critical, Stage::Critical]);
        // It is left after HOLD, and each one below after another.
        let changes: Vec<usize> =
            (1..stages.len()).filter(|at| stages[*at] < stages[*at - 1]).collect();
        assert_eq!(changes, [8, 13, 18, 23]);
        assert_eq!(stages.last(), Some(&Stage::Normal));
    }

    #[test]
    fn near_a_limit_it_does_not_flutter() {
        let hovering: Vec<Sample> =
            (0..120).map(|second| at(if second % 7 < 3 { 85.5 } else { 83.0 })).collect();
        let stages = stages(&hovering);
        let changes = stages.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 1, "{stages:?}");
    }

    #[test]
    fn what_rises_is_met_early() {
        let rising: Vec<Sample> =
            (0..=10).map(|second| at(75.0 + 0.4 * f64::from(second))).collect();
        assert_eq!(last(&rising), Stage::Strained, "79 degrees and rising");
        assert_eq!(last(&vec![at(79.0); 11]), Stage::Normal, "79 degrees and steady");
    }

    #[test]
    fn throttling_counts_whatever_the_sensor_says() {
        let throttled = |events| Sample { throttle_events: Some(events), ..at(60.0) };
        assert_eq!(last(&[throttled(7), throttled(7), throttled(7)]), Stage::Normal);
        assert_eq!(last(&[throttled(7), throttled(9), throttled(9)]), Stage::NoStrangers);
        let mut samples = vec![throttled(7), throttled(9)];
        samples.extend(vec![throttled(9); 30]);
        assert_eq!(last(&samples), Stage::Normal, "for ten seconds, and then down again");
    }

    #[test]
    fn what_runs_out_has_its_stage() {
        let with = |pressure| Sample { pressure, ..Sample::default() };
        let none = Pressure::default();
        for (pressure, expected) in [
            (none.clone(), Stage::Normal),
            (Pressure { memory_stall_percent: Some(9.0), ..none.clone() }, Stage::Normal),
            (Pressure { memory_stall_percent: Some(10.0), ..none.clone() }, Stage::Strained),
            (Pressure { memory_stall_percent: Some(30.0), ..none.clone() }, Stage::NoStrangers),
            (Pressure { memory_available: Some(0.5), ..none.clone() }, Stage::Normal),
            (Pressure { memory_available: Some(0.09), ..none.clone() }, Stage::Strained),
            (Pressure { memory_available: Some(0.02), ..none.clone() }, Stage::NoStrangers),
            (Pressure { descriptors_used: Some(0.79), ..none.clone() }, Stage::Normal),
            (Pressure { descriptors_used: Some(0.8), ..none.clone() }, Stage::Strained),
            (Pressure { descriptors_used: Some(0.9), ..none.clone() }, Stage::NoStrangers),
            (Pressure { descriptors_used: Some(0.98), ..none.clone() }, Stage::Essential),
            (Pressure { cpu_stall_percent: Some(100.0), ..none.clone() }, Stage::Normal),
        ] {
            let sample = with(pressure);
            assert_eq!(last(&[sample.clone(), sample.clone()]), expected, "{sample:?}");
        }
        let dropped =
            |count| with(Pressure { softirq_dropped: Some(count), ..Pressure::default() });
        assert_eq!(last(&[dropped(5), dropped(5), dropped(5)]), Stage::Normal);
        assert_eq!(last(&[dropped(5), dropped(6), dropped(9)]), Stage::Strained);
    }

    #[test]
    fn it_says_why() {
        let mut assessor = Assessor::default();
        let start = time::monotonic();
        for second in 0..2 {
            assessor.look(&at(93.0), LIMITS, start + Duration::from_secs(second));
        }
        assert_eq!(assessor.stage(), (Stage::Critical, Some("cpu is at 93.0 °C, limit 92.5")));
    }

    proptest! {
        /// Whatever is read, a stage is entered only when two looks in a row have wanted it, and left by
        /// one at a time.
        #[test]
        fn stages_are_entered_by_two_and_left_by_one(
            temperatures in prop::collection::vec(20.0_f64..130.0, 2..200),
        ) {
            let samples: Vec<Sample> = temperatures.iter().map(|celsius| at(*celsius)).collect();
            let stages = stages(&samples);
            for second in 1..stages.len() {
                let (before, now) = (stages[second - 1], stages[second]);
                if now > before {
                    let lower = temperatures[second - 1].min(temperatures[second]) + TREND_MAX_C;
                    prop_assert!(lower >= LIMITS.of(now), "{second}: {now} at {lower}");
                }
                prop_assert!(now >= before.below(), "{second}: from {before} to {now}");
            }
        }
    }
}
