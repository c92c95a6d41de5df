//! What a client may take of time and work once its connection is open: deadlines of every phase, the
//! least rate of bodies, and frames that only make work.
//!
//! A connection has one [`Watch`]. The octets that pass, the requests that begin and end, and the
//! bodies that wait tell it what happens; [`Watch::judge`] says what is to be done and when to ask
//! again. One timer a connection, which is set again only when something is due earlier, so that a
//! request costs none.

mod frames;
mod head;
mod io;
mod pace;
mod request;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use self::{frames::Frames, head::Head};
pub use self::{
    frames::{Flood, FrameRate},
    io::Guarded,
    pace::{MinRate, Pace},
    request::{Held, Running, Ticket, Upload},
};
use crate::{policy::Reason, time};

/// From the last word to a client until the connection ends whether or not it has read that: GOAWAY
/// and its answer are one round trip.
pub const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// From the end of the last request until an HTTP/1.1 connection gives back what only requests need:
/// longer than the pauses of clients that are busy, for whom it would only be made again, and so short
/// that of a crowd that arrives the next ones use what the last ones gave back, before it is left as
/// holes between what stays.
const RESTS_AFTER: Duration = Duration::from_secs(1);

/// A look at nothing in particular, for connections on which nothing is due.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// `[clients]`: what a client may take. The defaults are the ones in the sample configuration, where
/// their reasons are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the connection to the end of its PROXY header.
    pub proxy_header: Duration,
    /// From there to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the handshake to the end of the first request's head, and from the first octet of any
    /// other head to its last.
    pub head: Duration,
    /// Without a request, after at least one.
    pub idle: Duration,
    /// The least rate of a request's body.
    pub body: MinRate,
    /// The least rate at which an answer is taken.
    pub answer: MinRate,
    /// From a request's head to the end of its answer; `None`: as long as it takes.
    pub request: Option<Duration>,
    /// Octets of a head.
    pub head_max_bytes: usize,
    /// Fields of a head.
    pub fields_max: usize,
    /// Requests at once on one HTTP/2 or HTTP/3 connection.
    pub streams_max: u32,
    /// Frames of HTTP/2 that carry nothing.
    pub control_frames: FrameRate,
    /// HTTP/2 streams that are reset as soon as they are opened.
    pub resets: FrameRate,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            proxy_header: seconds(3),
            handshake: seconds(5),
            head: seconds(10),
            idle: seconds(75),
            body: MinRate { grace: seconds(15), bytes_per_s: 1_024 },
            answer: MinRate { grace: seconds(60), bytes_per_s: 1_024 },
            request: None,
            head_max_bytes: 32 * 1024,
            fields_max: 100,
            streams_max: 128,
            control_frames: FrameRate { per_s: 1_000, burst: 2_000 },
            resets: FrameRate { per_s: 50, burst: 100 },
        }
    }
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing until then.
    Wait(Instant),
    /// It has been silent for a while: it may give back what it needs for requests only.
    Rest,
    /// It has been idle for long enough: it ends in peace.
    Retire,
    /// The client is refused, and told no more.
    Refuse(Reason, &'static str),
}

/// One connection after its handshake.
pub struct Watch {
    limits: Arc<Limits>,
    /// Since when no request is being served.
    quiet_since: Cell<Instant>,
    /// Whether there was a request.
    was_asked: Cell<bool>,
    /// Whether the client was told to go.
    is_retiring: Cell<bool>,
    /// Whether it may rest: an HTTP/1.1 connection whose last request and answer passed whole.
    may_rest: Cell<bool>,
    /// Whether an HTTP/1 head is on its way and not whole.
    has_head_begun: Cell<bool>,
    /// Since when. Looked at only once what came has been parsed, for nearly all heads come whole.
    head_since: Cell<Option<Instant>>,
    /// Its lines so far.
    head: Cell<Head>,
    /// Since when nothing can be written.
    blocked_since: Cell<Option<Instant>>,
    /// HTTP/2 only.
    frames: Option<RefCell<Frames>>,
    running: RefCell<Vec<Rc<Running>>>,
    /// WebSockets: streams that were requests, which have deadlines of their own.
    tunnels: Cell<usize>,
    flood: Cell<Option<Flood>>,
    /// Requests that were broken off, for the connection to tell of.
    broken_off: RefCell<Vec<Reason>>,
}

impl Watch {
    /// Of a connection over which nothing has come yet.
    pub fn new(limits: Arc<Limits>, is_http2: bool, now: Instant) -> Rc<Watch> {
        let frames =
            is_http2.then(|| RefCell::new(Frames::new(limits.control_frames, limits.resets, now)));
        Rc::new(Watch {
            limits,
            quiet_since: Cell::new(now),
            was_asked: Cell::new(false),
            is_retiring: Cell::new(false),
            may_rest: Cell::new(false),
            has_head_begun: Cell::new(false),
            head_since: Cell::new(None),
            head: Cell::default(),
            blocked_since: Cell::new(None),
            frames,
            running: RefCell::default(),
            tunnels: Cell::new(0),
            flood: Cell::new(None),
            broken_off: RefCell::default(),
        })
    }

    /// A request's head is whole.
    pub fn begin(self: &Rc<Self>, now: Instant) -> Ticket {
        self.was_asked.set(true);
        self.may_rest.set(false);
        self.has_head_begun.set(false);
        self.head_since.set(None);
        let running = Rc::new(Running::new(now, self.head.take().is_framed_twice()));
        self.running.borrow_mut().push(running.clone());
        Ticket::new(self.clone(), running)
    }

    /// The request that began last.
    pub fn latest(&self) -> Option<Rc<Running>> {
        self.running.borrow().last().cloned()
    }

    /// What the client does too much of; its connection ends with an error of the stream.
    pub fn flood(&self) -> Option<Flood> {
        self.flood.get()
    }

    /// Why a request was broken off that nobody has told of yet.
    pub fn take_broken_off(&self) -> Vec<Reason> {
        self.broken_off.take()
    }

    /// Octets came from the client.
    fn read(&self, bytes: &[u8]) -> Result<(), Flood> {
        if let Some(frames) = &self.frames {
            let now = time::monotonic();
            return frames.borrow_mut().read(bytes, now).inspect_err(|flood| {
                self.flood.set(Some(*flood));
            });
        }
        if !self.is_busy() {
            self.has_head_begun.set(true);
            let mut head = self.head.get();
            head.read(bytes);
            self.head.set(head);
        }
        Ok(())
    }

    /// Whether a head has begun to come over HTTP/1 and nothing is being served: what is answered now
    /// is answered to no request.
    fn reads_head(&self) -> bool {
        self.has_head_begun.get() && self.frames.is_none() && !self.is_busy()
    }

    /// Since when an HTTP/1 head is on its way and not whole. Asked whenever the connection's task has read
    /// what there was ([`Watch::verdict`]).
    fn head_since(&self) -> Option<Instant> {
        if self.has_head_begun.get() && self.head_since.get().is_none() {
            self.head_since.set(Some(time::monotonic()));
        }
        self.head_since.get()
    }

    /// Whether a request is being served, or a WebSocket.
    fn is_busy(&self) -> bool {
        self.tunnels.get() > 0 || !self.running.borrow().is_empty()
    }

    /// A request has become a WebSocket.
    pub fn tunnel_begins(&self) {
        self.tunnels.set(self.tunnels.get() + 1);
    }

    /// One of them has ended.
    pub fn tunnel_ends(&self, now: Instant) {
        self.tunnels.set(self.tunnels.get() - 1);
        self.quiet_since.set(now);
    }

    /// Octets went to the client.
    fn written(&self, bytes: usize) {
        self.blocked_since.set(None);
        if let Some(frames) = &self.frames {
            frames.borrow_mut().written(bytes);
        }
    }

    /// None did.
    fn blocked(&self) {
        if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(time::monotonic()));
        }
    }

    fn end(&self, running: &Rc<Running>, now: Instant) {
        self.running.borrow_mut().retain(|other| !Rc::ptr_eq(other, running));
        self.quiet_since.set(now);
        self.may_rest.set(self.frames.is_none() && running.is_whole());
    }

    /// It rests.
    pub fn rest(&self) {
        self.may_rest.set(false);
    }

    /// The connection was told to end; what is left of its time is that of a farewell.
    pub fn retire(&self, now: Instant) {
        self.is_retiring.set(true);
        self.may_rest.set(false);
        self.quiet_since.set(now);
    }

    /// What comes first, of the connection as a whole, if nothing happens.
    fn next(&self) -> Option<(Instant, Verdict)> {
        let Limits { head, idle, answer, .. } = *self.limits;
        let block_since = self.frames.as_ref().and_then(|frames| frames.borrow().block_since());
        let head_since = block_since.or_else(|| self.head_since()).map(|since| {
            let detail = "the head of a request was not whole in time";
            (since + head, Verdict::Refuse(Reason::RequestTimeout, detail))
        });
        let blocked = self.blocked_since.get().map(|since| {
            let detail = "the client takes nothing of what is sent";
            (since + answer.grace, Verdict::Refuse(Reason::AnswerStalled, detail))
        });
        let quiet = (!self.is_busy()).then(|| {
            let since = self.quiet_since.get();
            if self.is_retiring.get() {
                (since + FAREWELL_MAX, Verdict::Retire)
            } else if self.was_asked.get() {
                (since + idle, Verdict::Retire)
            } else {
                let detail = "no request after the handshake";
                (since + head, Verdict::Refuse(Reason::RequestTimeout, detail))
            }
        });
        let is_silent = quiet.is_some() && head_since.is_none() && blocked.is_none();
        let rest = (is_silent && self.may_rest.get())
            .then(|| (self.quiet_since.get() + RESTS_AFTER, Verdict::Rest));
        [head_since, blocked, quiet, rest].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When [`Watch::judge`] has something to say; `None`: not before something happens.
    fn due(&self) -> Option<Instant> {
        let running = self.running.borrow();
        let requests = running.iter().filter_map(|running| running.due(&self.limits));
        requests.chain(self.next().map(|(at, _)| at)).min()
    }

    /// What is due now. Requests that are too slow are broken off one by one; the connection goes on
    /// with the others, unless it can carry no others.
    pub fn judge(&self, now: Instant) -> Verdict {
        let running = self.running.borrow().clone();
        for running in running {
            let Some(reason) = running.judge(&self.limits, now) else { continue };
            if running.break_off(reason, now) {
                continue;
            }
            // Its answer has begun: over HTTP/1 nothing can follow it.
            if self.frames.is_none() {
                return Verdict::Refuse(reason, "a request was broken off");
            }
            self.broken_off.borrow_mut().push(reason);
        }
        match self.next() {
            Some((at, verdict)) if at <= now => verdict,
            _ => Verdict::Wait(self.due().unwrap_or(now + LOOK_AGAIN)),
        }
    }

    /// Waits until the connection is to end, or until a request was broken off that is to be told of
    /// ([`Watch::take_broken_off`]). Polled whenever the connection's task is, so that what becomes
    /// due earlier is seen.
    pub async fn verdict(&self) -> Verdict {
        let mut armed = self.due().unwrap_or_else(|| time::monotonic() + LOOK_AGAIN);
        let mut sleep = pin!(tokio::time::sleep_until(armed.into()));
        poll_fn(|context| {
            loop {
                if let Some(due) = self.due()
                    && due < armed
                {
                    armed = due;
                    sleep.as_mut().reset(due.into());
                }
                if sleep.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                let verdict = self.judge(time::monotonic());
                let Verdict::Wait(until) = verdict else { return Poll::Ready(verdict) };
                // The timer counts whole milliseconds; one that has just fired is not set to the past.
                armed = until.max(time::monotonic() + Duration::from_millis(1));
                sleep.as_mut().reset(armed.into());
                if !self.broken_off.borrow().is_empty() {
                    return Poll::Ready(verdict);
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use bytes::Bytes;
    use http_body::Body as _;

    use super::*;
    use crate::http::body::Body;

    fn limits() -> Arc<Limits> {
        Arc::new(Limits::default())
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn reason(verdict: Verdict) -> Option<Reason> {
        match verdict {
            Verdict::Refuse(reason, _) => Some(reason),
            Verdict::Wait(_) | Verdict::Rest | Verdict::Retire => None,
        }
    }

    #[test]
    fn a_connection_without_a_request_is_refused_and_one_that_had_some_retires() {
        let start = time::monotonic();
        for is_http2 in [false, true] {
            let watch = Watch::new(limits(), is_http2, start);
            assert_eq!(watch.judge(at(start, 9)), Verdict::Wait(at(start, 10)));
            assert_eq!(reason(watch.judge(at(start, 10))), Some(Reason::RequestTimeout));

            let watch = Watch::new(limits(), is_http2, start);
            let ticket = watch.begin(at(start, 9));
            assert!(matches!(watch.judge(at(start, 500)), Verdict::Wait(_)), "it is served");
            watch.end(ticket.running(), at(start, 500));
            assert_eq!(watch.judge(at(start, 574)), Verdict::Wait(at(start, 575)));
            assert_eq!(watch.judge(at(start, 575)), Verdict::Retire);
            watch.retire(at(start, 575));
            assert_eq!(watch.judge(at(start, 579)), Verdict::Wait(at(start, 580)));
            assert_eq!(watch.judge(at(start, 580)), Verdict::Retire);
        }
    }

    #[test]
    fn only_http1_between_two_whole_messages_may_rest() {
        let start = time::monotonic();
        for (is_http2, has_come, has_gone, expected) in [
            (false, true, true, true),
            (true, true, true, false),
            // What follows would be read as the head of a request.
            (false, false, true, false),
            (false, true, false, false),
        ] {
            let watch = Watch::new(limits(), is_http2, start);
            let ticket = watch.begin(start);
            if has_come {
                ticket.running().came_whole();
            }
            let held = ticket.hold(Body::full(Bytes::from_static(b"answer")));
            assert!(!matches!(watch.judge(at(start, 30)), Verdict::Rest), "it is served");
            let mut held = pin!(held);
            while has_gone
                && let Poll::Ready(Some(_)) =
                    held.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()))
            {}
            watch.end(&watch.latest().expect("the request"), start);
            let rests_at = start + RESTS_AFTER;
            let before = rests_at - Duration::from_millis(1);
            assert!(matches!(watch.judge(before), Verdict::Wait(_)));
            let told = matches!(watch.judge(rests_at), Verdict::Rest);
            assert_eq!(told, expected, "{is_http2} {has_come} {has_gone}");
            if told {
                watch.rest();
                assert_eq!(watch.judge(at(start, 6)), Verdict::Wait(at(start, 75)), "once");
            }
        }
        // Half a head is no silence.
        let watch = Watch::new(limits(), false, start);
        watch.may_rest.set(true);
        watch.was_asked.set(true);
        watch.read(b"G").unwrap();
        assert!(!matches!(watch.judge(at(start, 7)), Verdict::Rest));
    }

    #[test]
    fn a_head_that_drips_is_refused_however_it_drips() {
        let start = time::monotonic();
        let watch = Watch::new(limits(), false, start);
        drop(watch.begin(start));
        watch.quiet_since.set(start);
        watch.read(b"G").unwrap();
        let began = watch.head_since().expect("a head has begun");
        watch.read(b"ET").unwrap();
        assert_eq!(watch.head_since(), Some(began));
        assert_eq!(reason(watch.judge(at(began, 10))), Some(Reason::RequestTimeout));
        let ticket = watch.begin(at(began, 9));
        watch.read(b"body").unwrap();
        assert_eq!(watch.head_since(), None, "what comes during a request is its body");
        drop(ticket);
        assert_eq!(watch.running.borrow().len(), 0);
    }

    #[test]
    fn a_request_is_broken_off_before_its_answer_and_its_connection_after() {
        let start = time::monotonic();
        for (is_http2, whole) in [(false, Some(20)), (true, Some(20)), (false, None)] {
            let request = whole.map(Duration::from_secs);
            let watch =
                Watch::new(Arc::new(Limits { request, ..Limits::default() }), is_http2, start);
            let ticket = watch.begin(start);
            let upload = Upload::of(ticket.running().clone(), &http::HeaderMap::new());
            let upload = upload.expect("no gRPC");
            upload.note(Poll::Pending);
            assert!(matches!(watch.judge(at(start, 14)), Verdict::Wait(_)));
            assert_eq!(ticket.running().reason(), None);
            assert!(matches!(watch.judge(at(start, 17)), Verdict::Wait(_)), "the others go on");
            assert_eq!(ticket.running().reason(), Some(Reason::BodyTooSlow));
            drop((upload, ticket));

            let ticket = watch.begin(start);
            ticket.running().answers(start);
            let held = ticket.hold(Body::full(Bytes::new()));
            let (after_s, expected) = match whole {
                Some(_) => (30, Reason::RequestTooLong),
                None => (100, Reason::AnswerStalled),
            };
            let verdict = watch.judge(at(start, after_s));
            if is_http2 {
                assert!(watch.take_broken_off().contains(&expected));
            } else {
                assert_eq!(reason(verdict), Some(expected));
            }
            drop(held);
        }
    }
}
