//! The clock that the XDP program judges by: the kernel's tick.
//!
//! How long a tick lasts is chosen when a kernel is configured (`CONFIG_HZ`), and told as the
//! resolution of its coarse clocks. Measuring it instead goes wrong on a busy virtual machine, where
//! many ticks may be made up for at once.

use std::time::Duration;

use aya::{
    Ebpf,
    programs::{ProgramError, TestRun as _, TestRunOptions, Xdp},
};
use gateway_ebpf::abi;
use nix::time::{ClockId, clock_getres};

use super::error::KernelError;

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
}

/// The length of a tick in nanoseconds, as this kernel tells it: `CLOCK_MONOTONIC_COARSE` goes on at
/// each tick, and its resolution is the tick's length (kernel/time/posix-timers.c, since 2.6.32;
/// clock_getres(2)).
///
/// # Errors
///
/// [`KernelError::Clock`] when the kernel has no such clock, or tells what no tick can be.
pub fn ns_per_jiffy() -> Result<u64, KernelError> {
    let told = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_err(|_| KernelError::Clock)?;
    plausible(Duration::from(told)).ok_or(KernelError::Clock)
}

/// Ticks come 100 to 1000 times a second, on rare machines a few times more or less often. A coarse
/// clock with the resolution of the fine ones is not one that goes on at ticks.
fn plausible(tick: Duration) -> Option<u64> {
    let range = Duration::from_micros(100)..=Duration::from_millis(100);
    if range.contains(&tick) { u64::try_from(tick.as_nanos()).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_what_a_tick_can_be() {
        for (told_ns, taken) in [
            (10_000_000, Some(10_000_000)), // 100 Hz
            (4_000_000, Some(4_000_000)),
            (3_333_333, Some(3_333_333)), // 300 Hz
            (1_000_000, Some(1_000_000)),
            (0, None),
            (1, None), // of a fine clock
            (1_000_000_000, None),
        ] {
            assert_eq!(plausible(Duration::from_nanos(told_ns)), taken, "{told_ns}");
        }
    }

    #[test]
    fn this_kernel_tells() {
        assert!(ns_per_jiffy().is_ok());
    }
}
