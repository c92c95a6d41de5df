//! A request's body over HTTP/3.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::server::RequestStream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;

use super::streams::Receiver;
use crate::http::body::BodyError;

/// What a body tells the task that answers its request.
#[derive(Default)]
pub(super) struct Signals {
    /// Somebody wants to read it.
    pub(super) wanted: Notify,
    /// It is not as long as was announced.
    pub(super) malformed: Cell<bool>,
}

/// A client's body, read as the upstream takes it: what is not read fills the stream's window, and
/// then the client waits.
pub struct Upload {
    stream: RequestStream<Receiver, Bytes>,
    /// Read before anybody wanted it, to know whether there is a body.
    first: Option<Bytes>,
    state: State,
    /// Octets that are still to come, where the client said how many.
    left_bytes: Option<u64>,
    signals: Rc<Signals>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Ended,
}

impl Upload {
    /// Looks whether there is a body at all, which an upstream over HTTP/1.1 has to be told before.
    pub(super) async fn begin(
        stream: RequestStream<Receiver, Bytes>,
        length: Option<u64>,
        signals: Rc<Signals>,
    ) -> Upload {
        let state = State::Data;
        let mut upload = Upload { stream, first: None, state, left_bytes: length, signals };
        // One look, no waiting: the end of a request without body comes with its head.
        std::future::poll_fn(|context| {
            match upload.stream.poll_recv_data(context) {
                Poll::Ready(Ok(Some(data))) => upload.first = Some(bytes_of(data)),
                Poll::Ready(Ok(None)) => upload.state = State::Trailers,
                // An error is met again.
                Poll::Ready(Err(_)) | Poll::Pending => {}
            }
            if upload.state == State::Trailers
                && matches!(upload.stream.poll_recv_trailers(context), Poll::Ready(Ok(None)))
                && upload.left_bytes.is_none_or(|left| left == 0)
            {
                upload.state = State::Ended;
            }
            Poll::Ready(())
        })
        .await;
        upload
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(Some(first)));
        }
        let data = ready!(self.stream.poll_recv_data(context)).map_err(BodyError::from)?;
        Poll::Ready(Ok(data.map(bytes_of)))
    }

    fn poll_trailers(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, BodyError>> {
        self.stream.poll_recv_trailers(context).map_err(BodyError::from)
    }

    fn count(&mut self, data: &Bytes) -> Result<(), BodyError> {
        if let Some(left) = &mut self.left_bytes {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => return Err(self.wrong_length()),
            }
        }
        Ok(())
    }

    fn wrong_length(&mut self) -> BodyError {
        self.signals.malformed.set(true);
        self.signals.wanted.notify_one();
        self.state = State::Ended;
        "the body is not as long as its Content-Length".into()
    }
}

/// The library gives what our streams gave it, so nothing is copied.
fn bytes_of(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.state == State::Data {
            if self.first.is_none() {
                self.signals.wanted.notify_one();
            }
            match ready!(self.poll_data(context)) {
                Ok(Some(data)) => {
                    let counted = self.count(&data);
                    return Poll::Ready(Some(counted.map(|()| Frame::data(data))));
                }
                Ok(None) if self.left_bytes.is_some_and(|left| left > 0) => {
                    return Poll::Ready(Some(Err(self.wrong_length())));
                }
                Ok(None) => self.state = State::Trailers,
                Err(error) => {
                    self.state = State::Ended;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.poll_trailers(context));
        self.state = State::Ended;
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended
    }

    fn size_hint(&self) -> SizeHint {
        match (self.state, self.left_bytes) {
            (State::Ended, _) => SizeHint::with_exact(0),
            (_, Some(left)) => SizeHint::with_exact(left),
            (_, None) => SizeHint::default(),
        }
    }
}
