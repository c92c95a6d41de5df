//! The clock that the XDP program judges by: the kernel's tick.
//!
//! How long a tick lasts is a choice made when a kernel is configured and is told to nobody, so it
//! is measured once, when the maps are made, and kept in them.

use std::{thread, time::Duration};

use aya::{
    Ebpf,
    programs::{ProgramError, TestRun as _, TestRunOptions, Xdp},
};
use gateway_ebpf::abi;

use super::error::KernelError;

/// Lengths of the tick at the rates that Linux is built with: 100, 250, 300 and 1000 Hz.
const NS_PER_JIFFY: [u64; 4] = [10_000_000, 4_000_000, 3_333_333, 1_000_000];
/// Long enough to tell 250 Hz from 300 Hz (15 ticks from 18) with one tick of error at either end.
const MEASURE: Duration = Duration::from_millis(80);
/// A machine that was stopped for a moment is measured again, this often at most.
const ATTEMPTS: usize = 10;

/// Reads the kernel's clocks by running a program that is attached to nothing.
#[derive(Debug)]
pub struct TickReader {
    object: Ebpf,
}

impl TickReader {
    /// Loads the program out of an object whose maps are made.
    pub fn load(mut object: Ebpf) -> Result<Self, KernelError> {
        let program = object.program_mut(abi::TICK_PROGRAM).ok_or(KernelError::NotBuilt)?;
        let program: &mut Xdp = program.try_into().map_err(|error: ProgramError| error)?;
        program.load()?;
        Ok(Self { object })
    }

    /// Both clocks now.
    pub fn read(&self) -> Result<abi::Tick, KernelError> {
        // The smallest Ethernet frame: every kernel runs programs on that.
        let frame = [0; 64];
        let mut written = [0; 64];
        let program = self.object.program(abi::TICK_PROGRAM).ok_or(KernelError::NotBuilt)?;
        let program: &Xdp = program.try_into().map_err(|error: ProgramError| error)?;
        program.test_run(TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut written),
            ..TestRunOptions::new()
        })?;
        let number = |at: usize| {
            let mut octets = [0; 8];
            octets.copy_from_slice(&written[at..at + 8]);
            u64::from_ne_bytes(octets)
        };
        Ok(abi::Tick { jiffies: number(0), monotonic_ns: number(8) })
    }

    /// Measures the tick; takes a tenth of a second.
    pub fn measure(&self) -> Result<u64, KernelError> {
        let first = self.read()?;
        for _ in 0..ATTEMPTS {
            thread::sleep(MEASURE);
            if let Some(ns_per_jiffy) = ns_per_jiffy(first, self.read()?) {
                return Ok(ns_per_jiffy);
            }
        }
        Err(KernelError::Clock)
    }
}

/// The tick's length between two readings, if one of those that exist explains them.
fn ns_per_jiffy(first: abi::Tick, last: abi::Tick) -> Option<u64> {
    let ticks = last.jiffies.checked_sub(first.jiffies)?;
    let elapsed_ns = last.monotonic_ns.checked_sub(first.monotonic_ns)?;
    // Each reading is up to one tick late, so the count is off by less than one.
    let fits = |length: u64| {
        let expected = elapsed_ns / length;
        expected.abs_diff(ticks) <= 1
    };
    let mut fitting = NS_PER_JIFFY.into_iter().filter(|&length| fits(length));
    let found = fitting.next()?;
    // Two that fit mean that the time was too short to tell.
    fitting.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_rates_apart_or_says_that_it_cannot() {
        const MS: u64 = 1_000_000;
        for (ticks, elapsed_ns, found) in [
            (8, 80 * MS, Some(10_000_000)),
            (9, 81 * MS, Some(10_000_000)),
            (20, 80 * MS, Some(4_000_000)),
            (21, 80 * MS, Some(4_000_000)),
            (24, 80 * MS, Some(3_333_333)),
            (23, 80 * MS, Some(3_333_333)),
            (80, 80 * MS, Some(1_000_000)),
            (1, 3 * MS, None),   // 250 or 300 Hz
            (0, 80 * MS, None),  // the tick stood still
            (40, 80 * MS, None), // 500 Hz does not exist
            (300, 1000 * MS, Some(3_333_333)),
        ] {
            let first = abi::Tick { jiffies: 4_294_892_296, monotonic_ns: 5 };
            let last = abi::Tick {
                jiffies: first.jiffies + ticks,
                monotonic_ns: first.monotonic_ns + elapsed_ns,
            };
            assert_eq!(ns_per_jiffy(first, last), found, "{ticks} in {elapsed_ns}");
        }
    }
}
