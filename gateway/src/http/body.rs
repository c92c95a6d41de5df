//! The one body type of answers (a few bytes of our own, or an upstream's stream), and the one of
//! requests, over whatever they come.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    expect::Wait,
    guard::{Running, Upload},
    h3, headers,
};
use crate::{
    time,
    upstream::{http1::stream::Upgraded, incoming::UpstreamBody, pool::Lease},
};

/// Why a body broke off; whoever passes it on breaks off too.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// An answer's body, and what is to be done when it has ended.
pub struct Body {
    content: Content,
    passed_bytes: u64,
    finished: Option<Box<dyn FnOnce(u64)>>,
}

/// What an answer's body is.
pub enum Content {
    /// Ours, whole.
    Full(Option<Bytes>),
    /// An upstream's, passed on as it comes; the connection is reused once all has been read.
    Upstream(UpstreamBody),
}

impl Body {
    /// A body of ours.
    pub fn full(bytes: Bytes) -> Body {
        Body::new(Content::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// An upstream's body.
    pub fn upstream(body: UpstreamBody) -> Body {
        Body::new(Content::Upstream(body))
    }

    /// What it is; nobody hears of its end.
    pub(super) fn into_content(mut self) -> Content {
        std::mem::replace(&mut self.content, Content::Full(None))
    }

    /// An upstream's connection that has become something else.
    pub(super) fn into_upgraded(self) -> Option<(Upgraded, Lease)> {
        match self.into_content() {
            Content::Upstream(body) => body.into_upgraded(),
            Content::Full(_) => None,
        }
    }

    fn new(content: Content) -> Body {
        Body { content, passed_bytes: 0, finished: None }
    }

    /// Calls `finished` once with the number of bytes passed on, when the body ends or is given up.
    pub fn on_finish(mut self, finished: impl FnOnce(u64) + 'static) -> Body {
        self.finished = Some(Box::new(finished));
        self
    }

    /// The next part of it, where the time is known already.
    pub fn poll_frame_at(
        &mut self,
        context: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.content {
            Content::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Content::Upstream(body) => ready!(body.poll_frame(context, now)),
        };
        let Some(Ok(mut frame)) = frame else { return Poll::Ready(frame) };
        if let Some(data) = frame.data_ref() {
            self.passed_bytes += data.len() as u64;
        }
        if let Some(trailers) = frame.trailers_mut() {
            headers::trailers_to_client(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(finished) = self.finished.take() {
            finished(self.passed_bytes);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_frame_at(context, time::monotonic())
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_none(),
            Content::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Content::Upstream(body) => body.size_hint(),
        }
    }
}

/// A client's body as it arrives.
pub enum Arriving {
    /// Over HTTP/1.1 or /2, of that request.
    Stream(Incoming, Rc<Running>),
    /// Over HTTP/3.
    Quic(Box<h3::Upload>),
}

impl Arriving {
    /// As hyper gives it.
    pub fn stream(incoming: Incoming, running: &Rc<Running>) -> Arriving {
        if incoming.is_end_stream() {
            running.came_whole();
        }
        Arriving::Stream(incoming, running.clone())
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Arriving::Stream(incoming, running) => {
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(context));
                let is_over = frame.is_none() || incoming.is_end_stream();
                if is_over && !matches!(frame, Some(Err(_))) {
                    running.came_whole();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Arriving::Quic(upload) => Pin::new(upload).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Arriving::Stream(incoming, _) => incoming.is_end_stream(),
            Arriving::Quic(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Arriving::Stream(incoming, _) => incoming.size_hint(),
            Arriving::Quic(upload) => upload.size_hint(),
        }
    }
}

/// A client's body on its way to the upstream, counted as it passes. Of its trailers those pass that
/// may: they come after every check, so none may say what a check has looked at.
pub struct RequestBody {
    /// `None`: there is none.
    arriving: Option<Arriving>,
    /// The request that it is of, where what passes is counted.
    running: Option<Rc<Running>>,
    /// Sees whether the client keeps up.
    upload: Option<Upload>,
    /// Not read before that is over.
    wait: Option<Wait>,
}

impl RequestBody {
    /// Of that request, which counts what passes.
    pub fn new(arriving: Arriving, running: Rc<Running>, upload: Option<Upload>) -> RequestBody {
        RequestBody { arriving: Some(arriving), running: Some(running), upload, wait: None }
    }

    /// None.
    pub fn empty() -> RequestBody {
        RequestBody { arriving: None, running: None, upload: None, wait: None }
    }

    /// Reads nothing before `wait` is over.
    pub fn after(&mut self, wait: Wait) {
        self.wait = Some(wait);
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.poll(context));
            self.wait = None;
        }
        let Some(arriving) = &mut self.arriving else { return Poll::Ready(None) };
        let polled = Pin::new(arriving).poll_frame(context);
        if let Some(upload) = &self.upload {
            upload.note(match &polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(_) => Poll::Ready(0),
            });
        }
        let frame = ready!(polled);
        let Some(Ok(mut frame)) = frame else { return Poll::Ready(frame) };
        if let (Some(data), Some(running)) = (frame.data_ref(), &self.running) {
            running.came(data.len());
        }
        if let Some(trailers) = frame.trailers_mut() {
            headers::trailers_to_upstream(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.arriving.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.arriving.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
