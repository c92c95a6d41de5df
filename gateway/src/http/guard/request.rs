//! One request that is being served: since when, whose turn it is, and how it is broken off.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Limits, Pace, Watch};
use crate::{
    http::body::{Body, BodyError},
    policy::Reason,
    time,
};

/// A request as its connection's watch sees it.
#[derive(Debug)]
pub struct Running {
    started: Instant,
    /// Its head said twice where its body ends.
    is_framed_twice: bool,
    upload: RefCell<Pace>,
    download: RefCell<Pace>,
    /// The answer's head is given to the connection.
    is_answered: Cell<bool>,
    /// Its body, if any, came to its end.
    has_come_whole: Cell<bool>,
    /// So did its answer.
    has_gone_whole: Cell<bool>,
    /// Why and when it was broken off.
    broken_off: Cell<Option<(Reason, Instant)>>,
    /// Whether its answer, too, is to end where it is.
    is_aborted: Cell<bool>,
    /// Octets of its body so far.
    came_bytes: Cell<u64>,
    /// Its own exchange, which waits to hear that it was broken off.
    exchange: Listener,
    /// Its stream, which waits to hear that its answer is to end.
    stream: Listener,
}

/// One task that waits to be told something: all are of one thread, so it needs no lock.
#[derive(Debug, Default)]
struct Listener(RefCell<Option<Waker>>);

impl Listener {
    fn listen(&self, context: &Context<'_>) {
        let mut waker = self.0.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    fn tell(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

impl Running {
    pub(super) fn new(now: Instant, is_framed_twice: bool) -> Running {
        Running {
            started: now,
            is_framed_twice,
            upload: RefCell::default(),
            download: RefCell::default(),
            is_answered: Cell::new(false),
            has_come_whole: Cell::new(false),
            has_gone_whole: Cell::new(false),
            broken_off: Cell::new(None),
            is_aborted: Cell::new(false),
            came_bytes: Cell::new(0),
            exchange: Listener::default(),
            stream: Listener::default(),
        }
    }

    /// When it will have taken too long; `None`: not before something happens.
    pub(super) fn due(&self, limits: &Limits) -> Option<Instant> {
        if self.is_aborted.get() {
            return None;
        }
        // What is answered to a request that was broken off has to be taken too.
        if let Some((_, at)) = self.broken_off.get() {
            return Some(at + limits.answer.grace);
        }
        let download = self.download.borrow().ends(limits.answer);
        let whole = limits.request.map(|whole| self.started + whole);
        [self.upload_ends(limits), download, whole].into_iter().flatten().min()
    }

    /// Once the upstream has begun to answer, the two have a dialogue, in which a client may be silent.
    fn upload_ends(&self, limits: &Limits) -> Option<Instant> {
        if self.is_answered.get() { None } else { self.upload.borrow().ends(limits.body) }
    }

    /// What has taken too long.
    pub(super) fn judge(&self, limits: &Limits, now: Instant) -> Option<Reason> {
        if self.due(limits).is_none_or(|due| due > now) {
            return None;
        }
        let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        Some(if let Some((reason, _)) = self.broken_off.get() {
            reason
        } else if is_over(self.upload_ends(limits)) {
            Reason::BodyTooSlow
        } else if is_over(self.download.borrow().ends(limits.answer)) {
            Reason::AnswerStalled
        } else {
            Reason::RequestTooLong
        })
    }

    /// Breaks it off. True: its own exchange answers that; false: its answer ends where it is.
    pub(super) fn break_off(&self, reason: Reason, now: Instant) -> bool {
        let is_answered = self.is_answered.get() || self.broken_off.get().is_some();
        self.is_aborted.set(is_answered);
        self.broken_off.set(Some((reason, now)));
        self.exchange.tell();
        self.stream.tell();
        !is_answered
    }

    /// When its head was whole.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether its head said twice where its body ends: by length and by coding.
    pub fn is_framed_twice(&self) -> bool {
        self.is_framed_twice
    }

    /// Its body has come to its end.
    pub fn came_whole(&self) {
        self.has_come_whole.set(true);
    }

    /// Whether nothing is left of it: its body came to its end, and its answer too.
    pub(super) fn is_whole(&self) -> bool {
        self.has_come_whole.get() && self.has_gone_whole.get() && self.broken_off.get().is_none()
    }

    /// Why it was broken off.
    pub fn reason(&self) -> Option<Reason> {
        self.broken_off.get().map(|(reason, _)| reason)
    }

    /// So many more octets of its body have come.
    pub fn came(&self, bytes: usize) {
        self.came_bytes.set(self.came_bytes.get() + bytes as u64);
    }

    /// Octets of its body so far.
    pub fn came_bytes(&self) -> u64 {
        self.came_bytes.get()
    }

    /// The answer's head is there, and it is the client that is waited for. Over HTTP/2 the body is asked
    /// for once the client's window has room for it.
    pub fn answers(&self, now: Instant) {
        self.download.borrow_mut().waits(now);
    }

    /// Ready when it is broken off. Of several tasks that ask the last one hears of it.
    pub fn poll_broken_off(&self, context: &Context<'_>) -> Poll<Reason> {
        match self.reason() {
            Some(reason) => Poll::Ready(reason),
            None => {
                self.exchange.listen(context);
                Poll::Pending
            }
        }
    }

    /// Waits until its answer is to end where it is. Of several tasks that wait the last one hears of it.
    pub async fn aborted(&self) {
        poll_fn(|context| {
            if self.is_aborted.get() {
                return Poll::Ready(());
            }
            self.stream.listen(context);
            Poll::Pending
        })
        .await;
    }
}

/// Held by a request's body until it is read no more.
#[derive(Debug)]
pub struct Upload(Rc<Running>);

impl Upload {
    /// Of the request with these fields; `None` where a client may say nothing for as long as it likes:
    /// gRPC's streams go both ways, and neither side has to begin.
    pub fn of(running: Rc<Running>, fields: &HeaderMap) -> Option<Upload> {
        let kind = fields.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_dialogue = kind.is_some_and(|kind| kind.starts_with(b"application/grpc"));
        (!is_dialogue).then_some(Upload(running))
    }

    /// What came of asking the client for more: nothing yet, or so many bytes, 0 at the end.
    pub fn note(&self, step: Poll<usize>) {
        let now = time::monotonic();
        let mut upload = self.0.upload.borrow_mut();
        match step {
            Poll::Pending => upload.waits(now),
            Poll::Ready(bytes) => upload.moved(bytes, now),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut upload = self.0.upload.borrow_mut();
        if upload.is_its_turn() {
            upload.rests(time::monotonic());
        }
    }
}

/// Held for as long as a request is served.
pub struct Ticket {
    watch: Rc<Watch>,
    running: Rc<Running>,
    /// When it ended, where that is known without asking a clock.
    ended_at: Option<Instant>,
}

impl Ticket {
    pub(super) fn new(watch: Rc<Watch>, running: Rc<Running>) -> Ticket {
        Ticket { watch, running, ended_at: None }
    }

    /// The request.
    pub fn running(&self) -> &Rc<Running> {
        &self.running
    }

    /// Holds it until the answer's body has ended, and notes whose turn it is meanwhile. When the answer's
    /// head was there [`Running::answers`] was told.
    pub fn hold(self, body: Body) -> Held {
        self.running.is_answered.set(true);
        self.running.has_gone_whole.set(body.is_end_stream());
        Held { body, ticket: self }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = self.ended_at.unwrap_or_else(time::monotonic);
        self.watch.end(&self.running, now);
    }
}

/// An answer's body while its client takes it.
pub struct Held {
    body: Body,
    ticket: Ticket,
}

impl Held {
    /// It is the client that is waited for now, for what of the answer was read already.
    pub fn is_taken(&mut self) {
        self.ticket.ended_at = None;
        self.ticket.running.download.borrow_mut().waits(time::monotonic());
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Asked for more, so what was given before is on its way to the client.
        let now = time::monotonic();
        self.ticket.running.download.borrow_mut().rests(now);
        let frame = ready!(self.body.poll_frame_at(context, now));
        let is_over = frame.is_none() || self.body.is_end_stream();
        // Whoever has the last of it lets go of the body at once.
        self.ticket.ended_at = is_over.then_some(now);
        self.ticket.running.has_gone_whole.set(is_over && !matches!(frame, Some(Err(_))));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Buf::remaining);
            let mut download = self.ticket.running.download.borrow_mut();
            download.moved(bytes, now);
            download.waits(now);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
