//! What this host's clock is worth: the kernel's word and its keeper's, put together.
//!
//! chronyd is asked first, for it measures; the kernel's flag is only set by keepers that tell it (chronyd
//! without `rtcsync` never does), and its `maxerror` is a bound that grows whether or not anything is
//! wrong. What nobody knows is said to be unknown.

use std::time::Duration;

use super::chrony::Tracking;

/// What is granted beside the measured error: an issuer's clock is not ours, and one that nobody has set
/// for a day is off by 100 parts in a million, which is 8.6 s.
pub const LEEWAY_BASE: Duration = Duration::from_secs(10);

/// The kernel's clock (adjtimex(2)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelClock {
    /// `STA_UNSYNC` is not set.
    pub is_synchronized: bool,
    /// What is still being corrected, in seconds.
    pub offset_s: f64,
    /// Its estimate of the error, in seconds.
    pub estimated_error_s: f64,
    /// The bound, in seconds; 16 when nobody keeps it.
    pub max_error_s: f64,
}

/// Asks the kernel; `None` when it does not say.
pub fn kernel() -> Option<KernelClock> {
    // SAFETY: `timex` is plain numbers, for which zeros are a value; with `modes` 0 nothing is set.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes into the struct that the exclusive reference is to, and keeps nothing.
    let state = unsafe { libc::adjtimex(&mut timex) };
    if state < 0 {
        return None;
    }
    let unit = if timex.status & libc::STA_NANO == 0 { 1e-6 } else { 1e-9 };
    Some(KernelClock {
        is_synchronized: timex.status & libc::STA_UNSYNC == 0,
        offset_s: timex.offset as f64 * unit,
        estimated_error_s: timex.esterror.max(0) as f64 * 1e-6,
        max_error_s: timex.maxerror.max(0) as f64 * 1e-6,
    })
}

/// Who says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeper {
    /// Nobody.
    #[default]
    Unknown,
    /// The kernel, for whoever keeps it.
    Kernel,
    /// chronyd itself.
    Chrony,
}

impl Keeper {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Keeper::Unknown => "unknown",
            Keeper::Kernel => "kernel",
            Keeper::Chrony => "chrony",
        }
    }
}

/// The clock as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClockReading {
    /// Who says so.
    pub keeper: Keeper,
    /// Whether something keeps it right; `None`: nobody can say.
    pub is_synchronized: Option<bool>,
    /// How far it is ahead of true time, as far as its keeper knows, in seconds.
    pub offset_s: f64,
    /// It is at most this far off, in seconds.
    pub max_error_s: f64,
    /// What it is judged by, in seconds: the bound where it is measured, the estimate where it is not.
    pub error_s: f64,
}

impl ClockReading {
    /// Puts together what the kernel and chronyd say.
    pub fn new(kernel: Option<KernelClock>, chrony: Option<&Tracking>) -> ClockReading {
        match (chrony, kernel) {
            (Some(tracking), _) => ClockReading {
                keeper: Keeper::Chrony,
                is_synchronized: Some(tracking.is_synchronized()),
                offset_s: tracking.offset_s,
                max_error_s: tracking.max_error_s(),
                error_s: tracking.max_error_s(),
            },
            (None, Some(kernel)) => ClockReading {
                keeper: Keeper::Kernel,
                is_synchronized: Some(kernel.is_synchronized),
                offset_s: kernel.offset_s,
                max_error_s: kernel.max_error_s,
                error_s: kernel.offset_s.abs() + kernel.estimated_error_s,
            },
            (None, None) => ClockReading::default(),
        }
    }

    fn is_known(&self) -> bool {
        self.is_synchronized == Some(true)
    }
}

/// `[host].clock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockLimits {
    /// An operator is told.
    pub warn: Duration,
    /// The node is taken out: every certificate and token would be judged at a wrong time.
    pub critical: Duration,
}

/// How good it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockState {
    /// Nobody has looked yet.
    #[default]
    Unseen,
    /// Right.
    Good,
    /// Off by more than `warn`.
    Off,
    /// Nothing keeps it right, or nobody knows.
    Unsynchronized,
    /// Off by more than `critical`.
    Lost,
}

/// The clock over time: its state, and the leeway that goes with it.
#[derive(Clone, Debug, Default)]
pub struct ClockTrust {
    state: ClockState,
    granted: Option<Duration>,
    /// Of the last look: how far the wall's clock was from the monotonic one.
    apart: Option<(Duration, Duration)>,
}

impl ClockTrust {
    /// Takes note of a reading.
    pub fn look(&mut self, reading: &ClockReading, limits: ClockLimits) -> ClockState {
        let error_s = reading.error_s;
        self.state = if reading.is_known() && error_s >= limits.critical.as_secs_f64() {
            ClockState::Lost
        } else if !reading.is_known() {
            ClockState::Unsynchronized
        } else if error_s >= limits.warn.as_secs_f64() {
            ClockState::Off
        } else {
            ClockState::Good
        };
        if reading.is_known() {
            // As far as a day; beyond, and where it is no number, a cap of that size is none.
            let error_s = reading.max_error_s.clamp(0.0, 86_400.0);
            self.granted = Some(LEEWAY_BASE + Duration::from_secs_f64(error_s.ceil()));
        }
        self.state
    }

    /// What caps the leeway of every issuer. While nothing keeps the clock right it stays as it was; when
    /// nothing ever has, there is no cap beside the configured one.
    pub fn leeway_max(&self) -> Duration {
        self.granted.unwrap_or(Duration::MAX)
    }

    /// By how much the wall's clock was set since the last look, in seconds; 0 for what is no more than
    /// keeping time.
    pub fn step_s(&mut self, wall: Duration, monotonic: Duration) -> f64 {
        /// A keeper that slews does so by at most 0.1 (chrony's maxslewrate); looks are a second apart.
        const SLEW_MAX_S: f64 = 0.25;
        let before = self.apart.replace((wall, monotonic));
        let Some((wall_before, monotonic_before)) = before else { return 0.0 };
        let wall_s = wall.as_secs_f64() - wall_before.as_secs_f64();
        let step_s = wall_s - (monotonic.as_secs_f64() - monotonic_before.as_secs_f64());
        if step_s.abs() > SLEW_MAX_S { step_s } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::Numbers;

    const LIMITS: ClockLimits =
        ClockLimits { warn: Duration::from_millis(500), critical: Duration::from_secs(30) };

    fn kernel_clock(is_synchronized: bool, max_error_s: f64) -> KernelClock {
        KernelClock { is_synchronized, offset_s: 0.0, estimated_error_s: 0.0, max_error_s }
    }

    fn tracking(leap: u16, offset_s: f64) -> Tracking {
        Tracking {
            reference_id: 1,
            stratum: 3,
            leap,
            offset_s,
            root_delay_s: 0.02,
            root_dispersion_s: 0.01,
        }
    }

    #[test]
    fn who_measures_is_believed_before_who_has_a_flag() {
        let unset = kernel_clock(false, 16.0);
        for (kernel, chrony, keeper, is_synchronized, error_s) in [
            (None, None, Keeper::Unknown, None, 0.0),
            (Some(unset), None, Keeper::Kernel, Some(false), 0.0),
            (Some(kernel_clock(true, 0.9)), None, Keeper::Kernel, Some(true), 0.0),
            // chronyd without rtcsync.
            (Some(unset), Some(tracking(0, 0.0)), Keeper::Chrony, Some(true), 0.02),
            (
                Some(kernel_clock(true, 0.1)),
                Some(tracking(3, 0.0)),
                Keeper::Chrony,
                Some(false),
                0.02,
            ),
            (None, Some(tracking(0, -2.0)), Keeper::Chrony, Some(true), 2.02),
        ] {
            let reading = ClockReading::new(kernel, chrony.as_ref());
            let found = (reading.keeper, reading.is_synchronized);
            assert_eq!(found, (keeper, is_synchronized), "{kernel:?} {chrony:?}");
            assert!((reading.error_s - error_s).abs() < 1e-9, "{kernel:?} {chrony:?} {reading:?}");
        }
    }

    #[test]
    fn the_leeway_follows_the_error_and_stays_when_nothing_is_known() {
        let mut trust = ClockTrust::default();
        let by = |chrony: Option<Tracking>| ClockReading::new(None, chrony.as_ref());
        for (reading, state, leeway_s) in [
            (by(None), ClockState::Unsynchronized, None),
            (by(Some(tracking(3, 0.0))), ClockState::Unsynchronized, None),
            (by(Some(tracking(0, 0.0))), ClockState::Good, Some(11)),
            (by(Some(tracking(0, 0.7))), ClockState::Off, Some(11)),
            (by(Some(tracking(0, -7.0))), ClockState::Off, Some(18)),
            (by(None), ClockState::Unsynchronized, Some(18)),
            (by(Some(tracking(0, 40.0))), ClockState::Lost, Some(51)),
            (by(Some(tracking(0, 0.0))), ClockState::Good, Some(11)),
        ] {
            assert_eq!(trust.look(&reading, LIMITS), state, "{reading:?}");
            let expected = leeway_s.map_or(Duration::MAX, Duration::from_secs);
            assert_eq!(trust.leeway_max(), expected, "{reading:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_and_one_that_is_kept_is_not() {
        let mut trust = ClockTrust::default();
        for (wall_ms, monotonic_ms, step_s) in [
            (1_000_000_000, 5_000, 0.0),
            (1_000_001_000, 6_000, 0.0),
            (1_000_002_100, 7_000, 0.0), // slewed
            (1_000_183_100, 8_000, 180.0),
            (1_000_184_100, 9_000, 0.0),
            (1_000_175_100, 10_000, -10.0),
            (1_000_475_100, 310_000, 0.0), // asleep for five minutes, both of them
        ] {
            let (wall, monotonic) =
                (Duration::from_millis(wall_ms), Duration::from_millis(monotonic_ms));
            let found_s = trust.step_s(wall, monotonic);
            assert!((found_s - step_s).abs() < 1e-3, "{wall_ms} {monotonic_ms}: {found_s}");
        }
    }

    /// A hundred thousand looks at clocks that drift, are set, lose their keeper and find it again: the
    /// leeway covers what was last known and never less than the base, and all steps together are what
    /// the clock was set by.
    #[test]
    fn a_leeway_covers_what_is_known_and_no_step_is_missed() {
        let mut numbers = Numbers::seeded(4);
        let mut trust = ClockTrust::default();
        let (mut known_s, mut monotonic, mut wall) =
            (None, Duration::ZERO, Duration::from_secs(1 << 30));
        let (mut set_s, mut noticed_s, mut slewed_s) = (0.0_f64, 0.0, 0.0_f64);
        trust.step_s(wall, monotonic);
        for look in 0..100_000 {
            let error_s = numbers.one_of(&[0.0, 0.1, 0.6, 2.0, 29.9, 30.0, 500.0, f64::INFINITY]);
            let is_synchronized = numbers.one_of(&[None, Some(false), Some(true), Some(true)]);
            let reading = ClockReading {
                is_synchronized,
                max_error_s: error_s,
                error_s,
                ..ClockReading::default()
            };
            let state = trust.look(&reading, LIMITS);
            let expected = match (is_synchronized, error_s) {
                (Some(true), 30.0..) => ClockState::Lost,
                (Some(true), 0.5..) => ClockState::Off,
                (Some(true), _) => ClockState::Good,
                _ => ClockState::Unsynchronized,
            };
            assert_eq!(state, expected, "look {look}: {reading:?}");
            if is_synchronized == Some(true) {
                known_s = Some(error_s.min(86_400.0));
            }
            let leeway_s = trust.leeway_max().as_secs_f64();
            let covers = known_s.is_none_or(|known_s| {
                leeway_s >= known_s + 10.0 && leeway_s < known_s + 11.0 + f64::EPSILON
            });
            assert!(covers, "look {look}: {leeway_s} s for {known_s:?} s");

            // Slewed by up to a tenth, and now and then set.
            let passed_s = numbers.one_of(&[0.5, 1.0, 1.0, 1.1, 2.0]);
            let slew_s: f64 = numbers.one_of(&[0.0, 0.0, 0.1, -0.1]);
            let step_s =
                if numbers.once_in(20) { numbers.one_of(&[-5.0, -0.6, 0.6, 3_600.0]) } else { 0.0 };
            (set_s, slewed_s) = (set_s + step_s, slewed_s + slew_s.abs());
            monotonic += Duration::from_secs_f64(passed_s);
            wall = Duration::from_secs_f64(wall.as_secs_f64() + passed_s + slew_s + step_s);
            let found_s = trust.step_s(wall, monotonic);
            assert_eq!(found_s == 0.0, step_s == 0.0, "look {look}: {found_s} of {step_s}");
            noticed_s += found_s;
        }
        assert!((noticed_s - set_s).abs() <= slewed_s + 1.0, "{noticed_s} of {set_s}");
    }

    #[test]
    fn the_kernel_says_something_sane() {
        if let Some(clock) = kernel() {
            assert!(clock.max_error_s >= 0.0 && clock.estimated_error_s >= 0.0, "{clock:?}");
        }
    }
}
