//! `Expect: 100-continue`: a body waits until its upstream wants it (RFC 9110 section 10.1.1).
//!
//! The expectation goes on to the upstream. When that says 100, the body is read, and reading it is
//! what makes the connection of the client say 100 in turn. When it answers instead, the client is
//! spared the body. An upstream that says nothing gets the body after a while, as a client would do
//! that has waited for long enough.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{HeaderMap, Request, StatusCode, header, request::Parts};
use tokio::time::{Sleep, sleep};

/// Upstreams that do not know the expectation say nothing to it; curl waits as long.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Whether a client waits for a word before it sends its body.
pub fn is_expected(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Opens when the upstream has said that it wants the body. With the request's extensions it gets to whom
/// the upstream says it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_open: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Gate {
    /// The upstream wants the body.
    pub fn open(&self) {
        self.0.is_open.store(true, Ordering::Release);
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = waiting.take() {
            waiting.wake();
        }
    }
}

/// A body's wait.
pub struct Wait {
    gate: Gate,
    silence: Pin<Box<Sleep>>,
}

impl Wait {
    /// Ends when `gate` opens, or when nothing has been heard for too long.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // Registered before looking, so that an opening in between is not missed.
        *self.gate.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(context.waker().clone());
        if self.gate.0.is_open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.silence.as_mut().poll(context)
    }
}

/// Passes the expectation on with a request, and gives the wait for its body.
pub fn pass_on(head: &mut Parts) -> Wait {
    let expectation = http::HeaderValue::from_static("100-continue");
    head.headers.insert(header::EXPECT, expectation);
    let gate = Gate::default();
    head.extensions.insert(gate.clone());
    let opened = gate.clone();
    let mut bare = Request::new(());
    std::mem::swap(bare.extensions_mut(), &mut head.extensions);
    hyper::ext::on_informational(&mut bare, move |answer| {
        if answer.status() == StatusCode::CONTINUE {
            opened.open();
        }
    });
    std::mem::swap(bare.extensions_mut(), &mut head.extensions);
    Wait { gate, silence: Box::pin(sleep(SILENCE_MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_expectation_in_any_case() {
        for (value, expected) in
            [("100-continue", true), ("100-Continue", true), ("100", false), ("", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::EXPECT, value.parse().unwrap());
            assert_eq!(is_expected(&headers), expected, "{value}");
        }
        assert!(!is_expected(&HeaderMap::new()));
    }

    #[test]
    fn a_body_waits_for_the_gate_and_not_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for opens in [true, false] {
                let gate = Gate::default();
                let silence = Duration::from_millis(if opens { 60_000 } else { 20 });
                let mut wait = Wait { gate: gate.clone(), silence: Box::pin(sleep(silence)) };
                let first = std::future::poll_fn(|context| Poll::Ready(wait.poll(context))).await;
                assert!(first.is_pending());
                if opens {
                    gate.open();
                }
                std::future::poll_fn(|context| wait.poll(context)).await;
            }
        });
    }
}
