//! Frames of HTTP/2 on their way to the client, gathered until everybody on this worker had a turn.
//!
//! The library behind writes each answer by itself: one TLS record, one system call and one segment each,
//! which together cost more than all the rest of a request. Answers that are ready in the same turn of the
//! worker leave together here. Nothing waits for anything but work that is there already: a worker
//! with nothing else to do writes at once.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gathered at most: one TLS record (RFC 8446 section 5.1). More goes out in between.
const GATHERED_MAX_BYTES: usize = 16 << 10;

/// Parts from which on copying costs more than it saves: what is larger is written as it is.
const PART_MAX_BYTES: usize = 4 << 10;

/// A stream whose writes are gathered; [`Gathered::send`] lets them go. Clones are the same stream.
pub struct Gathered<S>(Rc<RefCell<Gathering<S>>>);

struct Gathering<S> {
    stream: S,
    waiting: Vec<u8>,
    /// Of it, what has been written.
    written: usize,
}

impl<S> Clone for Gathered<S> {
    fn clone(&self) -> Gathered<S> {
        Gathered(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Gathers for this stream.
    pub fn new(stream: S) -> Gathered<S> {
        let gathering = Gathering { stream, waiting: Vec::new(), written: 0 };
        Gathered(Rc::new(RefCell::new(gathering)))
    }

    /// Whether anything waits.
    pub fn is_waiting(&self) -> bool {
        !self.0.borrow().waiting.is_empty()
    }

    /// The stream and what still waits, once nobody else has it.
    pub fn into_parts(self) -> Option<(S, Vec<u8>)> {
        let Gathering { stream, mut waiting, written } = Rc::into_inner(self.0)?.into_inner();
        waiting.drain(..written);
        Some((stream, waiting))
    }

    /// Lets go what waits.
    pub fn send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().send(context)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            let bytes = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += bytes;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // Given back: a connection that has nothing to say keeps no memory for it.
        self.waiting = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Takes the parts, as far as there is room.
    fn gather(&mut self, slices: &[io::IoSlice<'_>]) -> usize {
        let mut taken = 0;
        for slice in slices {
            let room = GATHERED_MAX_BYTES - self.waiting.len();
            let part = &slice[..slice.len().min(room)];
            if self.waiting.capacity() == 0 {
                self.waiting.reserve_exact(GATHERED_MAX_BYTES);
            }
            self.waiting.extend_from_slice(part);
            taken += part.len();
        }
        taken
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathering = self.0.borrow_mut();
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        if bytes > PART_MAX_BYTES {
            // In its turn, behind what waits.
            ready!(gathering.send(context))?;
            return Pin::new(&mut gathering.stream).poll_write_vectored(context, slices);
        }
        if bytes > GATHERED_MAX_BYTES - gathering.waiting.len() {
            ready!(gathering.send(context))?;
        }
        Poll::Ready(Ok(gathering.gather(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits is let go by [`Gathered::send`]; what does not is flushed here.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        if gathering.waiting.is_empty() {
            return Pin::new(&mut gathering.stream).poll_flush(context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        ready!(gathering.send(context))?;
        Pin::new(&mut gathering.stream).poll_shutdown(context)
    }
}

/// Lets others have their turn before what was gathered goes.
#[derive(Debug, Default)]
pub struct Turns {
    /// So many have passed since something waits.
    passed: u8,
}

/// Turns that pass before what waits is let go: in the first the answers that are there already are
/// taken from their upstreams, in the second they come here.
const TURNS: u8 = 2;

impl Turns {
    /// Lets go what waits once others had their turns. Pending while anything waits.
    pub fn send<S: AsyncWrite + Unpin>(
        &mut self,
        gathered: &Gathered<S>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !gathered.is_waiting() {
            self.passed = 0;
            return Poll::Ready(Ok(()));
        }
        if self.passed < TURNS {
            self.passed += 1;
            // Polled once, it has this task polled again after the runtime looked for news.
            let turn = std::pin::pin!(tokio::task::yield_now());
            let _pending = turn.poll(context);
            return Poll::Pending;
        }
        self.passed = 0;
        gathered.send(context)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// Writes parts, lets them go, and gives what arrived at the other end by then.
    async fn written(parts: &[usize], pipe_bytes: usize) -> (Vec<u8>, Vec<u8>) {
        let (near, mut far) = tokio::io::duplex(pipe_bytes);
        let mut gathered = Gathered::new(near);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            let read = far.read_to_end(&mut all).await;
            read.map(|_| all)
        });
        let mut sent = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let bytes = vec![u8::try_from(number).expect("few parts"); *part];
            gathered.write_all(&bytes).await.expect("nobody closed it");
            gathered.flush().await.expect("nobody closed it");
            sent.extend(bytes);
        }
        gathered.shutdown().await.expect("nobody closed it");
        drop(gathered);
        (sent, reader.await.expect("no panic").expect("nobody reset it"))
    }

    #[tokio::test]
    async fn everything_arrives_in_its_order() {
        for (parts, pipe_bytes) in [
            (&[1_000; 3][..], 64 << 10),
            (&[1_000; 40], 64 << 10),
            (&[1_000; 40], 100),
            (&[10, 5_000, 10, 20_000, 10], 64 << 10),
            (&[10, 5_000, 10, 20_000, 10], 7),
            (&[4_096, 4_096, 4_096, 4_095, 1, 1], 64 << 10),
        ] {
            let (sent, arrived) = written(parts, pipe_bytes).await;
            assert!(sent == arrived, "{parts:?} through {pipe_bytes}");
        }
    }

    async fn send(gathered: &Gathered<DuplexStream>, turns: &mut Turns) -> io::Result<()> {
        std::future::poll_fn(|context| turns.send(gathered, context)).await
    }

    #[tokio::test]
    async fn what_is_small_waits_for_its_turn_and_leaves_no_memory_behind() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let mut gathered = Gathered::new(near);
        let mut turns = Turns::default();
        let mut buffer = [0; 64];
        for _ in 0..2 {
            for part in [b"one", b"two"] {
                gathered.write_all(part).await.expect("open");
                gathered.flush().await.expect("open");
            }
            assert!(gathered.is_waiting());
            assert!(futures_util::FutureExt::now_or_never(pin!(far.read(&mut buffer))).is_none());
            send(&gathered, &mut turns).await.expect("open");
            assert!(!gathered.is_waiting());
            assert_eq!(gathered.0.borrow().waiting.capacity(), 0);
            let read = far.read(&mut buffer).await.expect("open");
            assert_eq!(&buffer[..read], b"onetwo");
        }
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_an_error() {
        let (near, far) = tokio::io::duplex(64);
        let mut gathered = Gathered::new(near);
        gathered.write_all(b"answer").await.expect("it only waits");
        drop(far);
        assert!(send(&gathered, &mut Turns::default()).await.is_err());
    }
}
