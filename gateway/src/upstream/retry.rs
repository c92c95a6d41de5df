//! Whether a request may be sent once more, and how many may.

use std::time::{Duration, Instant};

use http::Method;

/// Over so long requests are compared with repetitions: long enough for a share to mean something,
/// short enough that a calm hour does not pay for a storm.
const WINDOW: Duration = Duration::from_secs(10);

/// One request in so many may be repeated. When a fifth fails, a server is not having a hiccup, and
/// repeating would be what keeps it down.
const ONE_IN: u32 = 5;

/// Repetitions that are always allowed in a window, for upstreams that are asked now and then.
const ALWAYS: u32 = 10;

/// What is known of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// None of it was sent.
    NotSent,
    /// The server said that it did not look at it: GOAWAY with a lower stream, or REFUSED_STREAM
    /// (RFC 9113 sections 6.8 and 8.7).
    Unprocessed,
    /// It may have been carried out.
    Unknown,
}

/// A request that got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// What is certain about it.
    pub fate: Fate,
    /// Why, for the log.
    pub detail: String,
}

/// Whether sending it again can do no harm that was not asked for.
///
/// A body that was begun cannot be sent again: it was not kept. What may have been carried out is
/// repeated only where twice is as good as once (RFC 9110 section 9.2.2).
pub fn is_safe(fate: Fate, method: &Method, is_body_touched: bool) -> bool {
    match fate {
        Fate::NotSent | Fate::Unprocessed => !is_body_touched,
        Fate::Unknown => method.is_idempotent() && !is_body_touched,
    }
}

/// One worker's account of one upstream's repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    since: Instant,
    requests: u32,
    repeated: u32,
}

impl Budget {
    /// An account that begins now.
    pub fn new(now: Instant) -> Budget {
        Budget { since: now, requests: 0, repeated: 0 }
    }

    /// Counts a request.
    pub fn request(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            *self = Budget::new(now);
        }
        self.requests = self.requests.saturating_add(1);
    }

    /// Takes one repetition, if there is one left.
    pub fn take(&mut self) -> bool {
        let may = self.repeated < self.requests / ONE_IN + ALWAYS;
        self.repeated += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time;

    #[test]
    fn only_what_does_no_harm_is_sent_again() {
        for (fate, method, is_body_touched, expected) in [
            (Fate::NotSent, Method::POST, false, true),
            (Fate::NotSent, Method::POST, true, false),
            (Fate::Unprocessed, Method::POST, false, true),
            (Fate::Unprocessed, Method::GET, true, false),
            (Fate::Unknown, Method::POST, false, false),
            (Fate::Unknown, Method::PATCH, false, false),
            (Fate::Unknown, Method::GET, false, true),
            (Fate::Unknown, Method::HEAD, false, true),
            (Fate::Unknown, Method::PUT, false, true),
            (Fate::Unknown, Method::PUT, true, false),
            (Fate::Unknown, Method::DELETE, false, true),
            (Fate::Unknown, Method::from_bytes(b"PURGE").unwrap(), false, false),
        ] {
            assert_eq!(is_safe(fate, &method, is_body_touched), expected, "{fate:?} {method}");
        }
    }

    #[test]
    fn a_fifth_and_ten_may_be_repeated() {
        let now = time::monotonic();
        let mut budget = Budget::new(now);
        for _ in 0..100 {
            budget.request(now);
        }
        let taken = (0..100).filter(|_| budget.take()).count();
        assert_eq!(taken, 30);
        budget.request(now + WINDOW);
        assert!(budget.take(), "another window");
    }
}
