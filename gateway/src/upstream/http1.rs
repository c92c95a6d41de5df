//! HTTP/1.1 towards a server, one request at a time, in the task of the request itself: nothing is handed
//! from task to task, and a connection that nobody uses costs nothing.
//!
//! What is read and written is decided beside ([`request`], [`answer`], [`body`]); here octets move. A
//! connection may carry another request once both sides have ended as they said; it is looked at before,
//! since nobody else notices that a server closes it while it lies idle.

pub mod answer;
pub mod body;
pub mod request;
pub mod stream;

use std::{
    cell::Cell,
    fmt,
    future::{Future as _, poll_fn},
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, request::Parts};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};

use self::{
    answer::Answer,
    body::Decoder,
    request::{Framing, Output, write_head},
    stream::{Stream, Upgraded},
};
use super::{
    outgoing::Outgoing,
    retry::{Fate, Lost},
};
use crate::http::{body::BodyError, expect::Gate, introduction::Introduced};

/// Read at a time: most answers are shorter.
const READ_BYTES: usize = 8 * 1024;

/// The same of a server that has filled that before.
const READ_MAX_BYTES: usize = 128 * 1024;

/// Octets for a head to be written in: what is kept with a connection that lies idle.
const KEPT_TEXT_BYTES: usize = 4 * 1024;

/// Why an exchange over a connection ended before its time.
#[derive(Debug)]
pub enum Broken {
    /// The server closed.
    Closed,
    /// The socket failed.
    Io(io::Error),
    /// What came is no head of an answer.
    Head(httparse::Error),
    /// Its head is longer than is taken.
    HeadTooLarge,
    /// It does not say, or not clearly, where its body ends.
    Framing(&'static str),
    /// The client's body broke off.
    Body(BodyError),
    /// The client's body is not what its head says.
    Request(&'static str),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Closed => f.write_str("connection closed before message completed"),
            Broken::Io(error) => write!(f, "connection error: {error}"),
            Broken::Head(error) => write!(f, "the answer's head: {error}"),
            Broken::HeadTooLarge => f.write_str("the answer's head is larger than is taken"),
            Broken::Framing(what) => write!(f, "the answer's body: {what}"),
            Broken::Body(error) => write!(f, "the request's body broke off: {error}"),
            Broken::Request(what) => write!(f, "the request's body: {what}"),
        }
    }
}

impl std::error::Error for Broken {}

/// A connection to a server.
pub struct Connection {
    stream: Stream,
    /// Read, and not looked at yet.
    buffer: BytesMut,
    /// How much of it has been looked at in vain, as the head of an answer.
    seen_bytes: usize,
    read_bytes: usize,
    sending: Sending,
    method: Method,
    receiving: Decoder,
    /// Whether it may carry another request, as far as is known.
    is_kept: bool,
}

/// A request under way.
#[derive(Default)]
struct Sending {
    output: Output,
    /// Octets of the text that are written.
    written: usize,
    body: Option<Outgoing>,
    framing: Option<Framing>,
    /// Whether the server may have seen something of it.
    is_begun: bool,
    /// Whether something lies in TLS that the socket has not taken.
    is_unflushed: bool,
}

impl Connection {
    /// A new connection.
    pub fn new(stream: Stream) -> Connection {
        Connection {
            stream,
            buffer: BytesMut::new(),
            seen_bytes: 0,
            read_bytes: READ_BYTES,
            sending: Sending::default(),
            method: Method::GET,
            receiving: Decoder::Done,
            is_kept: true,
        }
    }

    /// Whether both sides of the last exchange have ended as they said, and another may follow.
    pub fn is_reusable(&self) -> bool {
        self.is_kept && self.is_answered() && self.is_sent() && self.buffer.is_empty()
    }

    /// Whether the server still waits for one: it has neither closed nor said anything unasked.
    pub fn is_open(&mut self) -> bool {
        let mut octet = [0];
        let mut context = Context::from_waker(Waker::noop());
        let stream = Pin::new(&mut self.stream);
        stream.poll_read(&mut context, &mut ReadBuf::new(&mut octet)).is_pending()
    }

    /// Whether the answer has been read to its end.
    pub fn is_answered(&self) -> bool {
        self.receiving.is_done()
    }

    /// Whether the request has been written to its end.
    pub fn is_sent(&self) -> bool {
        self.sending.body.is_none() && self.sending.output.is_empty() && !self.sending.is_unflushed
    }

    /// What is known of the length of what is left of the answer's body.
    pub fn size_hint(&self) -> SizeHint {
        self.receiving.size_hint()
    }

    /// The connection as what the server has agreed that it becomes.
    pub fn into_upgraded(self) -> Upgraded {
        Upgraded { stream: self.stream, first: self.buffer.freeze() }
    }

    /// Sends a request, with what the server is told of the client, and waits for the head of its answer,
    /// whose fields take the room of `spare`.
    ///
    /// # Errors
    /// What is certain about it when it failed.
    pub async fn ask(
        &mut self,
        head: &Parts,
        introduced: Option<&Introduced<'_>>,
        body: Outgoing,
        spare: &Cell<HeaderMap>,
    ) -> Result<Response<()>, Lost> {
        let gate = head.extensions.get::<Gate>().cloned();
        let begun = self.begin(head, introduced, body);
        begun.map_err(|broken| self.lost(&broken))?;
        // Until everybody on this worker had a turn: requests that are ready at the same time then leave one
        // right after the other, and the servers are woken once for all of them, not once for each. A
        // worker with nothing else to do comes back at once.
        tokio::task::yield_now().await;
        poll_fn(|context| {
            if let Poll::Ready(Err(broken)) = self.poll_send(context) {
                // A server that wants no more may have said why before it closed.
                if !matches!(broken, Broken::Io(_)) || !self.sending.is_begun {
                    return Poll::Ready(Err(broken));
                }
                self.stop_sending();
            }
            self.poll_head(context, gate.as_ref(), spare)
        })
        .await
        .map_err(|broken| self.lost(&broken))
    }

    fn lost(&mut self, broken: &Broken) -> Lost {
        self.is_kept = false;
        let fate = if self.sending.is_begun { Fate::Unknown } else { Fate::NotSent };
        Lost { fate, detail: broken.to_string() }
    }

    fn begin(
        &mut self,
        head: &Parts,
        introduced: Option<&Introduced<'_>>,
        body: Outgoing,
    ) -> Result<(), Broken> {
        let body = (!body.is_end_stream()).then_some(body);
        let hint = body.as_ref().map(|body| body.size_hint());
        let sending = &mut self.sending;
        sending.is_begun = false;
        sending.written = 0;
        let text = &mut sending.output.text;
        let framing = write_head(text, head, introduced, hint.as_ref())?;
        sending.framing = Some(framing);
        sending.body = body;
        self.method = head.method.clone();
        Ok(())
    }

    /// Goes on with the request; ready when all of it is written.
    ///
    /// # Errors
    /// It cannot be written, or it is not what its head says.
    pub fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.is_sent() {
            return Poll::Ready(Ok(()));
        }
        loop {
            self.sending.gather(context)?;
            if self.sending.output.is_empty() {
                let flushed = Pin::new(&mut self.stream).poll_flush(context);
                ready!(flushed.map_err(Broken::Io))?;
                self.sending.is_unflushed = false;
                let is_over = self.sending.body.is_none();
                return if is_over { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            ready!(self.poll_write(context)).map_err(Broken::Io)?;
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Sending { output, written, .. } = &self.sending;
        let stream = Pin::new(&mut self.stream);
        let text = &output.text[*written..];
        let polled = if output.piece.is_empty() && output.end.is_empty() {
            stream.poll_write(context, text)
        } else {
            let all = [text, &output.piece, output.end].map(IoSlice::new);
            stream.poll_write_vectored(context, &all)
        };
        let count = ready!(polled)?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sending.wrote(count);
        Poll::Ready(Ok(()))
    }

    /// Gives the rest of the request up; the connection ends with the answer.
    fn stop_sending(&mut self) {
        self.is_kept = false;
        self.sending.body = None;
        self.sending.output = Output::default();
        self.sending.written = 0;
        self.sending.is_unflushed = false;
    }

    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        gate: Option<&Gate>,
        spare: &Cell<HeaderMap>,
    ) -> Poll<Result<Response<()>, Broken>> {
        loop {
            while answer::may_be_whole(&self.buffer, self.seen_bytes) {
                self.seen_bytes = 0;
                match answer::read(&mut self.buffer, &self.method, spare)? {
                    Some(Answer::Interim(StatusCode::CONTINUE)) => {
                        if let Some(gate) = gate {
                            gate.open();
                        }
                    }
                    Some(Answer::Interim(_)) => {}
                    Some(Answer::Final { response, body, is_kept }) => {
                        self.receiving = body;
                        self.is_kept &= is_kept;
                        return Poll::Ready(Ok(response));
                    }
                    None => break,
                }
            }
            self.seen_bytes = self.buffer.len();
            if ready!(self.poll_fill(context))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }

    /// The next part of the answer's body, while what is left of the request goes on.
    pub fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Poll::Ready(Err(broken)) = self.poll_send(context) {
            self.stop_sending();
            // Whoever closes early may still have something to say.
            if !matches!(broken, Broken::Io(_)) {
                return Poll::Ready(Some(Err(broken)));
            }
        }
        let polled = self.poll_receive(context);
        if let Poll::Ready(Some(Err(_))) = &polled {
            self.is_kept = false;
        }
        polled
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match self.receiving.decode(&mut self.buffer) {
                Ok(None) if self.receiving.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                decoded => return Poll::Ready(decoded.transpose()),
            }
            if ready!(self.poll_fill(context))? == 0 {
                self.is_kept = false;
                return Poll::Ready(self.receiving.close().err().map(Err));
            }
        }
    }

    /// Reads more; nothing when the server has closed.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        self.buffer.reserve(self.read_bytes);
        let room = self.buffer.capacity() - self.buffer.len();
        let reading = pin!(self.stream.read_buf(&mut self.buffer));
        let count = ready!(reading.poll(context)).map_err(Broken::Io)?;
        // Long answers come in few pieces, and nobody keeps the room for them that sends short ones.
        self.read_bytes = match count {
            count if count == room => (self.read_bytes * 2).min(READ_MAX_BYTES),
            count if count < READ_BYTES => READ_BYTES,
            _ => self.read_bytes,
        };
        Poll::Ready(Ok(count))
    }

    /// Before it lies idle: keeps no more memory than the next request will want.
    pub fn rest(&mut self) {
        if self.sending.output.text.capacity() > KEPT_TEXT_BYTES {
            self.sending.output.text = Vec::new();
        }
        if self.buffer.capacity() > READ_BYTES {
            self.buffer = BytesMut::new();
        }
    }
}

impl Sending {
    /// Adds to what is written what there is of the body.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<(), Broken> {
        while Framing::has_room(&self.output)
            && let (Some(body), Some(framing)) = (&mut self.body, &mut self.framing)
        {
            match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(frame))) => {
                    framing.write(frame, &mut self.output)?;
                    if !body.is_end_stream() {
                        continue;
                    }
                }
                Poll::Ready(Some(Err(error))) => return Err(Broken::Body(error)),
                Poll::Ready(None) => {}
            }
            framing.end(&mut self.output)?;
            self.body = None;
        }
        Ok(())
    }

    /// So many octets were taken.
    fn wrote(&mut self, count: usize) {
        self.is_begun = true;
        self.is_unflushed = true;
        let Output { text, piece, end } = &mut self.output;
        let of_text = count.min(text.len() - self.written);
        self.written += of_text;
        if self.written == text.len() {
            text.clear();
            self.written = 0;
        }
        let of_piece = (count - of_text).min(piece.len());
        piece.advance(of_piece);
        *end = &end[count - of_text - of_piece..];
    }
}

#[cfg(test)]
mod tests;
