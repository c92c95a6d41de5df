//! The time that a token is judged at.

use std::time::Duration;

use rustls_pki_types::UnixTime;

/// The time, and how much of an issuer's leeway it deserves.
///
/// An issuer's `leeway` is what is granted at most. Whoever measures this host's clock may grant
/// less: with a clock that is known to be right within a second, a token that ended a minute ago is
/// simply expired.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The time.
    pub now: UnixTime,
    /// Caps every issuer's leeway.
    pub leeway_max: Duration,
}

impl Clock {
    /// What is granted to a token whose issuer has this leeway.
    pub(super) fn leeway(self, configured: Duration) -> Duration {
        configured.min(self.leeway_max)
    }
}

/// A clock of which nothing more is known: each issuer's leeway is granted in full.
impl From<UnixTime> for Clock {
    fn from(now: UnixTime) -> Self {
        Self { now, leeway_max: Duration::MAX }
    }
}
