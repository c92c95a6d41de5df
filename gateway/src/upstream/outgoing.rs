//! A client's body on its way to an upstream, through as many attempts as it takes to get its request
//! there: each attempt gets an [`Outgoing`], of which only the newest may read. Keeps nothing of what
//! passes, and takes note of when something last did. Only where a request has to wait for its turn
//! anyway is its body read meanwhile, up to a bound, so that one that comes whole needs no [`Slot`].

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::server::Slot;
use crate::{
    http::body::{BodyError, RequestBody},
    time,
};

/// Octets of a body that are read before its request has a place: most calls of an API are shorter.
const AHEAD_MAX_BYTES: u64 = 16 * 1024;

type Piece = Result<Frame<Bytes>, BodyError>;
type Polled = Option<Piece>;

fn data_bytes(piece: &Piece) -> u64 {
    piece.as_ref().ok().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64)
}

/// The body of one request, for all attempts to send it.
pub struct Source {
    body: RefCell<RequestBody>,
    /// Read, and not sent yet.
    ahead: RefCell<VecDeque<Piece>>,
    ahead_bytes: Cell<u64>,
    /// Its end, or an error, was read.
    is_over: Cell<bool>,
    /// Held while the client owes some of it and the upstream has not answered.
    slot: RefCell<Option<Slot>>,
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
            ahead: RefCell::default(),
            ahead_bytes: Cell::new(0),
            is_over: Cell::new(false),
            slot: RefCell::default(),
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

    /// Whether nothing of it is owed by the client any more.
    pub fn has_come_whole(&self) -> bool {
        self.is_over.get() || self.body.borrow().is_end_stream()
    }

    /// Keeps this until the body has come whole, or is let go of before.
    pub fn occupy(&self, slot: Slot) {
        *self.slot.borrow_mut() = (!self.has_come_whole()).then_some(slot);
    }

    /// The upstream answers: from now on it knows itself what it waits for.
    pub fn leave(&self) {
        self.slot.borrow_mut().take();
    }

    /// Reads ahead until the body has come whole; waits for ever where it is too long for that.
    pub async fn come_whole(&self) {
        while !self.has_come_whole() {
            if self.ahead_bytes.get() >= AHEAD_MAX_BYTES {
                return std::future::pending().await;
            }
            let Some(frame) = poll_fn(|context| self.poll_client(context)).await else { return };
            self.moved_at.set(time::monotonic());
            self.ahead_bytes.set(self.ahead_bytes.get() + data_bytes(&frame));
            // An error is found by whoever sends it.
            self.ahead.borrow_mut().push_back(frame);
        }
    }

    fn poll_client(&self, context: &mut Context<'_>) -> Poll<Polled> {
        if self.is_over.get() {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut *self.body.borrow_mut()).poll_frame(context);
        self.is_waited_for.set(polled.is_pending());
        self.is_over.set(matches!(polled, Poll::Ready(None | Some(Err(_)))));
        if self.has_come_whole() {
            self.leave();
        }
        polled
    }

    fn poll_frame(&self, context: &mut Context<'_>) -> Poll<Polled> {
        let ahead = self.ahead.borrow_mut().pop_front();
        match ahead {
            Some(frame) => {
                self.ahead_bytes.set(self.ahead_bytes.get().saturating_sub(data_bytes(&frame)));
                Poll::Ready(Some(frame))
            }
            None => self.poll_client(context),
        }
    }

    fn is_sent(&self) -> bool {
        self.ahead.borrow().is_empty() && self.has_come_whole()
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
        let Poll::Ready(frame) = source.poll_frame(context) else { return Poll::Pending };
        source.is_touched.set(true);
        source.moved_at.set(time::monotonic());
        source.has_ended.set(frame.is_none() || source.is_sent());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_sent()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.source.body.borrow().size_hint();
        let ahead = self.source.ahead_bytes.get();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint.set_lower(rest.lower().saturating_add(ahead));
        hint
    }
}
