//! An upstream's body on its way to the client. It gives its connection back when it has ended, and
//! breaks off when nothing has moved in either direction for too long.

use std::{
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{outgoing::Source, pool::Lease};
use crate::{http::body::BodyError, time};

/// The body of an upstream's answer.
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
    /// The request's body, which may still be under way.
    sent: Rc<Source>,
    idle_timeout: Duration,
    moved_at: Instant,
    /// Made when the upstream is waited for the first time, and set anew only when it has run out:
    /// most bodies need none, and none is touched for each frame.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Nothing moved for too long.
#[derive(Debug)]
pub struct Stalled {
    /// The configured patience.
    pub waited: Duration,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing moved for {}", humantime::format_duration(self.waited))
    }
}

impl std::error::Error for Stalled {}

impl UpstreamBody {
    /// The body of an answer that began at `moved_at`.
    pub fn new(
        incoming: Incoming,
        lease: Lease,
        sent: Rc<Source>,
        idle_timeout: Duration,
        moved_at: Instant,
    ) -> UpstreamBody {
        UpstreamBody { incoming, lease: Some(lease), sent, idle_timeout, moved_at, alarm: None }
    }

    /// Ready when nothing has moved for too long.
    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<Stalled> {
        loop {
            let moved_at = self.moved_at.max(self.sent.moved_at());
            let until = tokio::time::Instant::from_std(moved_at + self.idle_timeout);
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if alarm.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if alarm.deadline() >= until {
                return Poll::Ready(Stalled { waited: self.idle_timeout });
            }
            alarm.as_mut().reset(until);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
            return self.poll_alarm(context).map(|stalled| {
                if let Some(lease) = &self.lease {
                    lease.count_cut("stalled");
                }
                Some(Err(stalled.into()))
            });
        };
        match &frame {
            Some(Ok(_)) => self.moved_at = time::monotonic(),
            Some(Err(_)) => {
                if let Some(lease) = &self.lease {
                    lease.count_cut("broken");
                }
            }
            None => drop(self.lease.take()),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        // Once the end is known without polling again, `poll_frame` is not called any more: the
        // lease then goes back when this is dropped, see `Lease`.
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
