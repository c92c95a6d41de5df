//! A client's body on its way to an upstream, through as many attempts as it takes to get its request
//! there: each attempt gets an [`Outgoing`], of which only the newest may read. Keeps nothing of what
//! passes, and takes note of when something last did.

use std::{
    cell::{Cell, RefCell},
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{
    http::body::{BodyError, RequestBody},
    time,
};

/// The body of one request, for all attempts to send it.
pub struct Source {
    body: RefCell<RequestBody>,
    /// The newest attempt.
    attempt: Cell<u32>,
    is_touched: Cell<bool>,
    has_ended: Cell<bool>,
    /// Whether the last look found nothing to send: the client is slow, not the server.
    is_waited_for: Cell<bool>,
    moved_at: Cell<Instant>,
}

impl Source {
    /// Nothing of it has been read yet.
    pub fn new(body: RequestBody, now: Instant) -> Rc<Source> {
        Rc::new(Source {
            has_ended: Cell::new(body.is_end_stream()),
            body: RefCell::new(body),
            attempt: Cell::new(0),
            is_touched: Cell::new(false),
            is_waited_for: Cell::new(false),
            moved_at: Cell::new(now),
        })
    }

    /// The body for one more attempt; those given before read no further.
    pub fn attempt(self: &Rc<Self>) -> Outgoing {
        self.attempt.set(self.attempt.get() + 1);
        Outgoing { source: self.clone(), attempt: self.attempt.get() }
    }

    /// Whether any of it was read, so that it cannot be sent again.
    pub fn is_touched(&self) -> bool {
        self.is_touched.get()
    }

    /// Whether all of it was read.
    pub fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Whether the client has to send more before anything can move.
    pub fn is_waited_for(&self) -> bool {
        self.is_waited_for.get()
    }

    /// When something of it last moved.
    pub fn moved_at(&self) -> Instant {
        self.moved_at.get()
    }
}

/// The body for one attempt.
pub struct Outgoing {
    source: Rc<Source>,
    attempt: u32,
}

/// A newer attempt has the body.
#[derive(Debug)]
struct Superseded;

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request is being sent another way")
    }
}

impl std::error::Error for Superseded {}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let source = &*self.source;
        if source.attempt.get() != self.attempt {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        let mut body = source.body.borrow_mut();
        let polled = Pin::new(&mut *body).poll_frame(context);
        source.is_waited_for.set(polled.is_pending());
        let Poll::Ready(frame) = polled else { return Poll::Pending };
        source.is_touched.set(true);
        source.moved_at.set(time::monotonic());
        source.has_ended.set(frame.is_none() || body.is_end_stream());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.body.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.body.borrow().size_hint()
    }
}
