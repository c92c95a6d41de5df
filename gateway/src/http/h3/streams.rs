//! quinn's streams as the HTTP/3 library wants them.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    mem::MaybeUninit,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf},
};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use tokio::io::ReadBuf;

use super::{
    frames::{Fault, Frames, integer},
    section::{Misuse, Section},
};

/// Octets read at once: a few datagrams, and what an upstream connection writes at once.
const READ_BYTES: usize = 16 * 1024;

/// The type of the client's control stream (RFC 9114 section 6.2.1).
const CONTROL: u64 = 0x0;

type Accepting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectionError>>>>;

/// What is known of a request's stream beside what the library tells.
pub(super) struct Accepted {
    /// Ends when the client no longer wants the answer.
    pub(super) abandoned: Pin<Box<dyn Future<Output = ()>>>,
    /// Set once the library has read the request's head. What it answers by itself before that is
    /// whole; what is given up after that is not.
    pub(super) resolved: Rc<Cell<bool>>,
    /// What is wrong with the names of its head's fields.
    pub(super) misuse: Rc<Cell<Option<Misuse>>>,
    /// The way back, which the library has too.
    pub(super) back: Sender,
}

/// A connection.
pub(super) struct Connection {
    quinn: quinn::Connection,
    requests: Accepting<(quinn::SendStream, quinn::RecvStream)>,
    others: Accepting<quinn::RecvStream>,
    opener: Opener,
    /// Of the request that was accepted last, for whoever accepted it.
    accepted: Rc<RefCell<Option<Accepted>>>,
}

impl Connection {
    /// `accepted` is filled anew with each request that the library accepts.
    pub(super) fn new(
        quinn: quinn::Connection,
        accepted: Rc<RefCell<Option<Accepted>>>,
    ) -> Connection {
        Connection {
            requests: next_request(&quinn),
            others: next_other(&quinn),
            opener: Opener { quinn: quinn.clone(), opening: None },
            quinn,
            accepted,
        }
    }
}

fn next_request(
    connection: &quinn::Connection,
) -> Accepting<(quinn::SendStream, quinn::RecvStream)> {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_bi().await })
}

fn next_other(connection: &quinn::Connection) -> Accepting<quinn::RecvStream> {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_uni().await })
}

impl quic::Connection<Bytes> for Connection {
    type RecvStream = Receiver;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Receiver, ConnectionErrorIncoming>> {
        let accepted = ready!(self.others.as_mut().poll(context));
        self.others = next_other(&self.quinn);
        Poll::Ready(accepted.map(Receiver::of_other).map_err(connection_error))
    }

    fn poll_accept_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Both, ConnectionErrorIncoming>> {
        let accepted = ready!(self.requests.as_mut().poll(context));
        self.requests = next_request(&self.quinn);
        let (send, receive) = match accepted {
            Ok(streams) => streams,
            Err(error) => return Poll::Ready(Err(connection_error(error))),
        };
        let stopped = send.stopped();
        let abandoned = Box::pin(async move {
            // `Ok(None)`: it was sent whole; then nobody waits here any more.
            let _ = stopped.await;
        });
        let resolved = Rc::new(Cell::new(false));
        let send = Sender::new(send, resolved.clone());
        let misuse = Rc::default();
        let receive = Receiver::of_request(receive, Rc::clone(&misuse));
        let back = send.clone();
        *self.accepted.borrow_mut() = Some(Accepted { abandoned, resolved, misuse, back });
        Poll::Ready(Ok(Both { send, receive }))
    }

    fn opener(&self) -> Opener {
        Opener { quinn: self.quinn.clone(), opening: None }
    }
}

impl quic::OpenStreams<Bytes> for Connection {
    type BidiStream = Both;
    type SendStream = Sender;

    fn poll_open_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Both, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(context)
    }

    fn poll_open_send(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Sender, StreamErrorIncoming>> {
        self.opener.poll_open_send(context)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Opens streams of ours.
pub(super) struct Opener {
    quinn: quinn::Connection,
    opening: Option<Accepting<quinn::SendStream>>,
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Both;
    type SendStream = Sender;

    /// A server opens none (RFC 9114 section 6.1).
    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<Both, StreamErrorIncoming>> {
        let text = "a server opens no request".to_owned();
        Poll::Ready(Err(lost(ConnectionErrorIncoming::InternalError(text))))
    }

    fn poll_open_send(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Sender, StreamErrorIncoming>> {
        let quinn = &self.quinn;
        let opening = self.opening.get_or_insert_with(|| {
            let quinn = quinn.clone();
            Box::pin(async move { quinn.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(context));
        self.opening = None;
        Poll::Ready(
            opened
                .map(|send| Sender::new(send, Rc::default()))
                .map_err(|error| lost(connection_error(error))),
        )
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.quinn.close(number(code.value()), reason);
    }
}

/// A request's stream.
pub(super) struct Both {
    send: Sender,
    receive: Receiver,
}

impl quic::BidiStream<Bytes> for Both {
    type SendStream = Sender;
    type RecvStream = Receiver;

    fn split(self) -> (Sender, Receiver) {
        (self.send, self.receive)
    }
}

impl quic::RecvStream for Both {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receive.poll_data(context)
    }

    fn stop_sending(&mut self, code: u64) {
        self.receive.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receive.recv_id()
    }
}

impl quic::SendStream<Bytes> for Both {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(context)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(context)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// What a client sends on one stream.
pub(super) struct Receiver {
    quinn: quinn::RecvStream,
    reading: Reading,
    /// Read and not looked at yet.
    chunk: Bytes,
    /// Of a request: the names of its fields, while they come, and where what is wrong with them is told.
    names: Option<(Section, Rc<Cell<Option<Misuse>>>)>,
}

enum Reading {
    /// A stream whose type did not come yet: the octets of it.
    Unknown(Vec<u8>),
    /// Frames.
    Frames(Frames),
    /// Something else, which the library keeps nothing of.
    Opaque,
    /// To its end, or given up.
    Ended,
}

impl Receiver {
    fn of_request(quinn: quinn::RecvStream, misuse: Rc<Cell<Option<Misuse>>>) -> Receiver {
        let mut receiver = Receiver::new(quinn, Reading::Frames(Frames::default()));
        receiver.names = Some((Section::default(), misuse));
        receiver
    }

    fn of_other(quinn: quinn::RecvStream) -> Receiver {
        Receiver::new(quinn, Reading::Unknown(Vec::new()))
    }

    fn new(quinn: quinn::RecvStream, reading: Reading) -> Receiver {
        Receiver { quinn, reading, chunk: Bytes::new(), names: None }
    }

    /// Fills `chunk`; it stays empty at the end of the stream.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        // Copied into memory of just its size: most requests are one short head, and what quinn keeps is
        // a whole datagram for each piece of one.
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut room = ReadBuf::uninit(&mut room);
        ready!(self.quinn.poll_read_buf(context, &mut room)).map_err(read_error)?;
        self.chunk = Bytes::copy_from_slice(room.filled());
        Poll::Ready(Ok(()))
    }

    /// What is to be handed on of `chunk`; `None` when nothing of it is left.
    fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        match &mut self.reading {
            Reading::Frames(frames) => {
                let Some((piece, are_fields)) = frames.next(&mut self.chunk)? else {
                    return Ok(None);
                };
                if let Some((section, misuse)) = &mut self.names {
                    if are_fields {
                        section.read(&piece);
                        misuse.set(section.misuse());
                    } else if section.has_begun() {
                        // The next frame: what comes now is the body, or trailers.
                        self.names = None;
                    }
                }
                Ok(Some(piece))
            }
            Reading::Opaque => {
                Ok((!self.chunk.is_empty()).then(|| std::mem::take(&mut self.chunk)))
            }
            Reading::Ended => Ok(None),
            Reading::Unknown(kind) => {
                while !self.chunk.is_empty() {
                    kind.push(self.chunk.split_to(1)[0]);
                    if let Some((number, _)) = integer(kind) {
                        let kind = Bytes::from(std::mem::take(kind));
                        self.reading = match number {
                            CONTROL => Reading::Frames(Frames::default()),
                            _ => Reading::Opaque,
                        };
                        return Ok(Some(kind));
                    }
                }
                Ok(None)
            }
        }
    }

    fn end(&self) -> Result<(), Fault> {
        match &self.reading {
            Reading::Frames(frames) => frames.end(),
            Reading::Unknown(_) | Reading::Opaque | Reading::Ended => Ok(()),
        }
    }

    fn give_up(&mut self, code: Code) {
        self.reading = Reading::Ended;
        // It fails when the client has ended it already.
        let _ = self.quinn.stop(number(code.value()));
    }
}

impl quic::RecvStream for Receiver {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        loop {
            if matches!(self.reading, Reading::Ended) {
                return Poll::Ready(Ok(None));
            }
            let step = match self.next() {
                Ok(Some(piece)) => return Poll::Ready(Ok(Some(piece))),
                Ok(None) => {
                    ready!(self.poll_chunk(context))?;
                    if !self.chunk.is_empty() {
                        continue;
                    }
                    self.end()
                }
                Err(fault) => Err(fault),
            };
            return Poll::Ready(match step {
                Ok(()) => {
                    self.reading = Reading::Ended;
                    Ok(None)
                }
                Err(fault) => {
                    let (code, text) = match fault {
                        Fault::TooLong => (Code::H3_EXCESSIVE_LOAD, "a frame is too long"),
                        Fault::Torn => (Code::H3_FRAME_ERROR, "the stream ends within a frame"),
                    };
                    self.give_up(code);
                    Err(StreamErrorIncoming::Unknown(text.into()))
                }
            });
        }
    }

    fn stop_sending(&mut self, code: u64) {
        self.reading = Reading::Ended;
        // It fails when the client has ended it already.
        let _ = self.quinn.stop(number(code));
    }

    fn recv_id(&self) -> StreamId {
        id(self.quinn.id())
    }
}

impl Drop for Receiver {
    /// Who is answered before its body has ended may spare itself the rest (RFC 9114 section 4.1);
    /// quinn would say 0, which is no code of HTTP/3.
    fn drop(&mut self) {
        if !matches!(self.reading, Reading::Ended) {
            self.give_up(Code::H3_NO_ERROR);
        }
    }
}

/// What is sent to a client on one stream. Clones are the same stream.
#[derive(Clone)]
pub(super) struct Sender(Rc<RefCell<Sending>>);

struct Sending {
    quinn: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    /// Ended one way or the other.
    ended: bool,
    resolved: Rc<Cell<bool>>,
}

impl Sender {
    fn new(quinn: quinn::SendStream, resolved: Rc<Cell<bool>>) -> Sender {
        let sending = Sending { quinn, writing: None, ended: false, resolved };
        Sender(Rc::new(RefCell::new(sending)))
    }

    /// Writes whole frames, behind what the library has written.
    ///
    /// # Errors
    /// The client does not want them, or is gone.
    pub(super) async fn write(&self, frames: Bytes) -> Result<(), WriteError> {
        let mut rest = [frames];
        while !rest[0].is_empty() {
            poll_fn(|context| {
                let quinn = &mut self.0.borrow_mut().quinn;
                // All that it knows between two looks is in the stream itself.
                pin!(quinn.write_chunks(&mut rest)).poll(context)
            })
            .await?;
        }
        Ok(())
    }
}

impl quic::SendStream<Bytes> for Sender {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let sending = &mut *self.0.borrow_mut();
        if let Some(data) = &mut sending.writing {
            while data.has_remaining() {
                let written = Pin::new(&mut sending.quinn).poll_write(context, data.chunk());
                data.advance(ready!(written).map_err(write_error)?);
            }
        }
        sending.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        let writing = &mut self.0.borrow_mut().writing;
        if writing.is_some() {
            let text = "written before it was ready".to_owned();
            return Err(lost(ConnectionErrorIncoming::InternalError(text)));
        }
        *writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let sending = &mut *self.0.borrow_mut();
        sending.ended = true;
        let finished = sending.quinn.finish();
        Poll::Ready(finished.map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, code: u64) {
        let sending = &mut *self.0.borrow_mut();
        sending.ended = true;
        // It fails when it has ended already.
        let _ = sending.quinn.reset(number(code));
    }

    fn send_id(&self) -> StreamId {
        id(self.0.borrow().quinn.id())
    }
}

impl Drop for Sending {
    /// What was given up half way must not look whole, which is what quinn would make of it.
    fn drop(&mut self) {
        if !self.ended && self.resolved.get() {
            let _ = self.quinn.reset(number(Code::H3_REQUEST_CANCELLED.value()));
        }
    }
}

fn number(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn id(id: quinn::StreamId) -> StreamId {
    // Both are integers of 62 bits.
    StreamId::try_from(u64::from(VarInt::from(id))).expect("an id of QUIC")
}

fn lost(connection_error: ConnectionErrorIncoming) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        ReadError::ConnectionLost(error) => lost(connection_error(error)),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        WriteError::ConnectionLost(error) => lost(connection_error(error)),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}
