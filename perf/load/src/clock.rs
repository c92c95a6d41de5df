//! The clocks: ours, and the time that another process had a processor.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Now, for measuring.
#[expect(clippy::disallowed_methods, reason = "the generator's own clock, outside the product")]
pub fn now() -> Instant {
    Instant::now()
}

/// The clocks of a server's processes.
#[derive(Debug)]
pub struct Processors(Vec<ClockId>);

impl Processors {
    /// Those of these processes.
    ///
    /// # Errors
    /// When one is gone.
    pub fn of(process_ids: &[i32]) -> Result<Processors> {
        let clock = |id: &i32| {
            clock_getcpuclockid(Pid::from_raw(*id)).with_context(|| format!("process {id} is gone"))
        };
        Ok(Processors(process_ids.iter().map(clock).collect::<Result<_>>()?))
    }

    /// The time that all threads of all of them had a processor so far.
    ///
    /// # Errors
    /// When one is gone.
    pub fn used(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for clock in &self.0 {
            sum += Duration::from(clock_gettime(*clock).context("a server is gone")?);
        }
        Ok(sum)
    }
}
