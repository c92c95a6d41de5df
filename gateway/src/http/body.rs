//! The one body type of answers: a few bytes of our own, or an upstream's stream.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::guard::Upload;
use crate::upstream::incoming::UpstreamBody;

/// Why a body broke off; whoever passes it on breaks off too.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// An answer's body, and what is to be done when it has ended.
pub struct Body {
    content: Content,
    passed_bytes: u64,
    finished: Option<Box<dyn FnOnce(u64)>>,
}

enum Content {
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

    fn new(content: Content) -> Body {
        Body { content, passed_bytes: 0, finished: None }
    }

    /// Calls `finished` once with the number of bytes passed on, when the body ends or is given up.
    pub fn on_finish(mut self, finished: impl FnOnce(u64) + 'static) -> Body {
        self.finished = Some(Box::new(finished));
        self
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
        let frame = match &mut self.content {
            Content::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Content::Upstream(body) => ready!(Pin::new(body).poll_frame(context)),
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.passed_bytes += data.len() as u64;
        }
        Poll::Ready(frame)
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

/// A client's body on its way to the upstream, counted as it passes. Its trailers end here: a field
/// that comes after the body comes after every check (RFC 9110 section 6.5.1 lets a proxy drop them).
pub struct RequestBody {
    /// `None`: there is none.
    incoming: Option<Incoming>,
    passed_bytes: Rc<Cell<u64>>,
    /// Sees whether the client keeps up.
    upload: Option<Upload>,
}

impl RequestBody {
    /// Counts what passes into `passed_bytes`.
    pub fn new(
        incoming: Incoming,
        passed_bytes: Rc<Cell<u64>>,
        upload: Option<Upload>,
    ) -> RequestBody {
        RequestBody { incoming: Some(incoming), passed_bytes, upload }
    }

    /// None.
    pub fn empty() -> RequestBody {
        RequestBody { incoming: None, passed_bytes: Rc::default(), upload: None }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(context);
        if let Some(upload) = &self.upload {
            upload.note(match &polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(_) => Poll::Ready(0),
            });
        }
        let frame = ready!(polled);
        if let Some(Ok(frame)) = &frame
            && frame.is_trailers()
        {
            return Poll::Ready(None);
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.passed_bytes.set(self.passed_bytes.get() + data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
