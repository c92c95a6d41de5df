//! One HTTP/1.1 connection: the parser while there is something to parse, and nothing but the stream
//! while it rests.
//!
//! hyper keeps buffers of 8 KiB for each direction and room for an exchange for as long as a connection
//! is open. Most connections of a gateway are open and silent, so those of one that has been silent for
//! a while are given back, and made anew with the next octet. It rests only between two messages: the
//! last request came whole, its answer went whole, and nothing waits to be written
//! ([`Watch`](super::guard::Watch) knows), so what comes next is the head of a request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{body::Incoming, server::conn::http1, service::HttpService};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{connection::Served, guard::Guarded, upgrade::Tunnels};

/// An HTTP/1.1 connection that a WebSocket may take over. hyper would hand it on to another thread too,
/// for which the stream is not made.
pub(super) struct Http1<T, S: HttpService<Incoming>> {
    parser: http1::Builder,
    state: State<T, S>,
    tunnels: Tunnels,
    /// The stream after the last answer, where it is not a WebSocket's.
    pub(super) left: Option<Box<Guarded<T>>>,
}

enum State<T, S: HttpService<Incoming>> {
    /// Nothing is under way.
    Resting(Guarded<T>, S),
    Serving(Box<http1::Connection<TokioIo<Guarded<T>>, S>>),
    Ended,
}

impl<T, S> Http1<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// One over which nothing has come yet, read by that parser.
    pub(super) fn new(
        parser: http1::Builder,
        stream: Guarded<T>,
        service: S,
        tunnels: Tunnels,
    ) -> Http1<T, S> {
        Http1 { parser, state: State::Resting(stream, service), tunnels, left: None }
    }

    /// Goes on with what comes next.
    fn wake(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Resting(stream, service) => {
                let stream = TokioIo::new(stream);
                State::Serving(Box::new(self.parser.serve_connection(stream, service)))
            }
            other => other,
        };
    }
}

impl<T, S> Future for Http1<T, S>
where
    S: HttpService<Incoming> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        if let State::Resting(stream, _) = &mut self.state {
            ready!(stream.poll_stirs(context));
            self.wake();
        }
        let State::Serving(serving) = &mut self.state else { return Poll::Ready(Ok(())) };
        let ended = ready!(Pin::new(&mut **serving).poll(context));
        let State::Serving(serving) = std::mem::replace(&mut self.state, State::Ended) else {
            return Poll::Ready(ended);
        };
        let parts = serving.into_parts();
        self.left = match &ended {
            Ok(()) => self.tunnels.hand_over(parts.io, parts.read_buf),
            // The parser's own answer has been written.
            Err(error) if error.is_parse() => Some(parts.io),
            Err(_) => None,
        }
        .map(|stream| Box::new(stream.into_inner()));
        Poll::Ready(ended)
    }
}

impl<T, S> Served for Http1<T, S>
where
    Http1<T, S>: Future<Output = hyper::Result<()>> + Unpin,
    S: HttpService<Incoming> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn wind_down(mut self: Pin<&mut Self>) {
        // One that rests is told by the end of its stream, which the parser sees to.
        self.wake();
        if let State::Serving(serving) = &mut self.state {
            Pin::new(&mut **serving).graceful_shutdown();
        }
    }

    fn rest(mut self: Pin<&mut Self>) {
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Serving(serving) => {
                let parts = serving.into_parts();
                let mut stream = parts.io.into_inner();
                stream.unread(&parts.read_buf);
                State::Resting(stream, parts.service)
            }
            other => other,
        };
    }
}
