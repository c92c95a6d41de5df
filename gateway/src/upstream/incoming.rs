//! An upstream's body on its way to the client. It gives its connection back when it has ended, and
//! breaks off when nothing has moved in either direction for too long.

use std::{
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{
    http1::{Connection, stream::Upgraded},
    outgoing::Source,
    pool::Lease,
};
use crate::http::body::BodyError;

/// What an answer's body comes over.
#[derive(Debug)]
pub enum Arriving {
    /// The connection that was lent to its request.
    Http1,
    /// A stream of a connection that others use too.
    Http2(Incoming),
}

/// The body of an upstream's answer.
pub struct UpstreamBody {
    arriving: Arriving,
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
        arriving: Arriving,
        lease: Lease,
        sent: Rc<Source>,
        idle_timeout: Duration,
        moved_at: Instant,
    ) -> UpstreamBody {
        let lease = Some(lease);
        let mut body = UpstreamBody { arriving, lease, sent, idle_timeout, moved_at, alarm: None };
        body.leave_the_rest();
        body
    }

    /// The connection as what it has become, and what is to be held meanwhile.
    pub fn into_upgraded(mut self) -> Option<(Upgraded, Lease)> {
        let mut lease = self.lease.take()?;
        Some((lease.take_upgraded()?, lease))
    }

    /// Where the client has its whole answer before its request was sent to the end, the server may still
    /// want the rest: it is sent beside what follows.
    fn leave_the_rest(&mut self) {
        let is_early = |connection: &Connection| connection.is_answered() && !connection.is_sent();
        if self.lease.as_ref().and_then(Lease::http1_ref).is_some_and(is_early)
            && let Some(lease) = self.lease.take()
        {
            tokio::task::spawn_local(lease.send_rest(self.idle_timeout));
        }
    }

    /// With the last of its answer a connection is another request's. Where the end is known without
    /// polling, `poll_frame` is not called again.
    fn give_back(&mut self, now: Instant) {
        let lease = &mut self.lease;
        if lease.as_ref().and_then(Lease::http1_ref).is_some_and(Connection::is_answered)
            && let Some(lease) = lease.take()
        {
            lease.end(now);
        }
    }

    fn poll_arriving(
        &mut self,
        context: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.arriving {
            Arriving::Http2(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Arriving::Http1 => {
                let Some(connection) = self.lease.as_mut().and_then(Lease::http1) else {
                    return Poll::Ready(None);
                };
                let frame = ready!(connection.poll_frame(context));
                self.leave_the_rest();
                if !matches!(frame, Some(Err(_))) {
                    self.give_back(now);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
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

impl UpstreamBody {
    /// The next part of it.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = self.poll_arriving(context, now) else {
            return self.poll_alarm(context).map(|stalled| {
                if let Some(lease) = &self.lease {
                    lease.count_cut("stalled");
                }
                Some(Err(stalled.into()))
            });
        };
        match &frame {
            Some(Ok(_)) => self.moved_at = now,
            Some(Err(_)) => {
                if let Some(lease) = &self.lease {
                    lease.count_cut("broken");
                }
            }
            None => {
                if let Some(lease) = self.lease.take() {
                    lease.end(now);
                }
            }
        }
        Poll::Ready(frame)
    }

    /// Whether nothing is left of it. Where that is so from the beginning, `poll_frame` is not called: the
    /// lease then goes back when this is dropped, see [`Lease`].
    pub fn is_end_stream(&self) -> bool {
        match &self.arriving {
            Arriving::Http1 => {
                let connection = self.lease.as_ref().and_then(Lease::http1_ref);
                connection.is_none_or(Connection::is_answered)
            }
            Arriving::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    /// What is known of the length of what is left of it.
    pub fn size_hint(&self) -> SizeHint {
        match &self.arriving {
            Arriving::Http1 => {
                let connection = self.lease.as_ref().and_then(Lease::http1_ref);
                connection.map_or(SizeHint::with_exact(0), Connection::size_hint)
            }
            Arriving::Http2(incoming) => incoming.size_hint(),
        }
    }
}
