//! The only reader of clocks among the actors, and the only place that waits.
//!
//! Waiting is always for a condition and always bounded. An interrupt (Ctrl-C in the demonstration)
//! ends every wait early, so that what was set up is taken down in the ordinary way.

use std::{
    io,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use nix::time::{ClockId, clock_gettime};

/// Between two looks at a condition: short beside anything a person would notice, long enough
/// that twenty tests waiting at once do not keep a core busy.
const LOOK_EVERY: Duration = Duration::from_millis(10);

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The flag that a signal handler sets to end every wait.
pub fn interrupt_flag() -> Arc<AtomicBool> {
    Arc::clone(&INTERRUPTED)
}

/// Whether somebody asked for the end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An error once somebody asked for the end.
pub fn go_on() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Now, for measuring.
#[expect(clippy::disallowed_methods, reason = "the actors' own clock, outside the product")]
pub fn now() -> Instant {
    Instant::now()
}

/// Since 1970, for who tells others the time.
#[expect(clippy::disallowed_methods, reason = "the actors' own clock, outside the product")]
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// How long the calling thread was on a processor since it began.
///
/// # Errors
/// The kernel's.
pub fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Seconds since 1970, for tokens and certificates.
pub fn unix_s() -> u64 {
    unix().as_secs()
}

/// Waits until `condition` gives a value; an error of the condition ends the wait at once.
///
/// # Errors
/// When `limit` passes first (naming `what` was waited for), on interrupt, or the condition's own.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = now() + limit;
    loop {
        go_on()?;
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if now() >= until {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Calls again what a signal has broken off: a wait with a limit of its own is not resumed by the kernel,
/// not even after a process was stopped and continued (signal(7)).
///
/// # Errors
/// The call's own.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Lets time pass, in steps, so that an interrupt is noticed.
///
/// # Errors
/// On interrupt.
pub fn pause(length: Duration) -> Result<()> {
    let until = now() + length;
    loop {
        go_on()?;
        let Some(left) = until.checked_duration_since(now()) else {
            return Ok(());
        };
        thread::sleep(left.min(LOOK_EVERY * 5));
    }
}
