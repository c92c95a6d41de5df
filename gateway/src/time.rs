//! The only reader of clocks. Everything else is handed the time as an argument.

use std::time::{Instant, SystemTime};

use rustls_pki_types::UnixTime;

/// For waiting and for measuring how long something took.
#[expect(clippy::disallowed_methods, reason = "this module is where clocks are read")]
#[inline]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// For the service manager: microseconds of `CLOCK_MONOTONIC`.
pub fn monotonic_us() -> u128 {
    // It fails only where there is no such clock, which no supported kernel is.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| std::time::Duration::from(now).as_micros())
}

/// For certificates and tokens: seconds of the system's clock.
///
/// A clock before 1970 reads as 1970, at which no certificate and no token is valid yet.
#[inline]
pub fn unix() -> UnixTime {
    UnixTime::since_unix_epoch(wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// For log lines and file dates.
#[expect(clippy::disallowed_methods, reason = "this module is where clocks are read")]
#[inline]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
