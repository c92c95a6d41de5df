//! The clocks: ours, and the time that another process had a processor, with how often it gave it up.

use std::{
    fs,
    time::{Duration, Instant},
};

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
pub struct Processors {
    process_ids: Vec<i32>,
    clocks: Vec<ClockId>,
}

/// How often threads gave their processor up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// To wait for something.
    pub voluntary: u64,
    /// Because somebody else was to have it.
    pub involuntary: u64,
}

/// Ticks in which threads were found in the program, or in the kernel on its behalf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// In the program.
    pub program: u64,
    /// In the kernel.
    pub kernel: u64,
}

impl Ticks {
    /// Of the time between these two the part in the kernel; 0 where no tick fell in between.
    pub fn kernel_share(self, before: Ticks) -> f64 {
        let kernel = self.kernel.saturating_sub(before.kernel) as f64;
        let all = self.program.saturating_sub(before.program) as f64 + kernel;
        if all == 0.0 { 0.0 } else { kernel / all }
    }
}

impl Processors {
    /// Those of these processes.
    ///
    /// # Errors
    /// When one is gone.
    pub fn of(process_ids: &[i32]) -> Result<Processors> {
        let clock = |id: &i32| {
            clock_getcpuclockid(Pid::from_raw(*id)).with_context(|| format!("process {id} is gone"))
        };
        let clocks = process_ids.iter().map(clock).collect::<Result<_>>()?;
        Ok(Processors { process_ids: process_ids.to_vec(), clocks })
    }

    /// The switches of all threads of all of them so far; those of threads that have ended are lost.
    pub fn switches(&self) -> Switches {
        let mut sum = Switches::default();
        for id in &self.process_ids {
            let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
            for thread in threads {
                let told = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                let one = switches(&told);
                sum.voluntary += one.voluntary;
                sum.involuntary += one.involuntary;
            }
        }
        sum
    }

    /// What the kernel's tick found all of them at so far.
    pub fn ticks(&self) -> Ticks {
        let mut sum = Ticks::default();
        for id in &self.process_ids {
            let told = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            let one = ticks(&told);
            sum.program += one.program;
            sum.kernel += one.kernel;
        }
        sum
    }

    /// The time that all threads of all of them had a processor so far.
    ///
    /// # Errors
    /// When one is gone.
    pub fn used(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for clock in &self.clocks {
            sum += Duration::from(clock_gettime(*clock).context("a server is gone")?);
        }
        Ok(sum)
    }
}

/// Of one thread: `status` in proc(5).
fn switches(status: &str) -> Switches {
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
    };
    Switches {
        voluntary: number("voluntary_ctxt_switches:"),
        involuntary: number("nonvoluntary_ctxt_switches:"),
    }
}

/// Of one process: `utime` and `stime` of `stat` in proc(5), the twelfth and thirteenth behind the name,
/// which may have blanks and brackets of its own.
fn ticks(stat: &str) -> Ticks {
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let mut figures = behind.split_whitespace().skip(11).map(|word| word.parse().unwrap_or(0));
    Ticks { program: figures.next().unwrap_or(0), kernel: figures.next().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_behind_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 2 0 0 0 310 440 1 2 20 0";
        let after = ticks(stat);
        assert_eq!(after, Ticks { program: 310, kernel: 440 });
        assert_eq!(ticks(""), Ticks::default());
        assert_eq!(after.kernel_share(Ticks { program: 300, kernel: 410 }), 0.75);
        assert_eq!(after.kernel_share(after), 0.0);
    }

    #[test]
    fn switches_are_read_from_a_threads_status() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(switches(status), Switches { voluntary: 150, involuntary: 545 });
        assert_eq!(switches(""), Switches::default());
    }
}
