//! A connection's octets on their way, seen by its [`Watch`].

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Watch;
use crate::http::answer;

/// A stream that its watch sees.
pub struct Guarded<S> {
    stream: S,
    watch: Rc<Watch>,
    /// Seen by the watch, and to be read again.
    unread: Bytes,
    /// What the connection is called in the log.
    id: Rc<str>,
    /// The rest of an answer of ours that goes in the place of the parser's.
    instead: Option<Bytes>,
}

impl<S> Guarded<S> {
    /// Lets `watch` see what passes.
    pub fn new(stream: S, watch: Rc<Watch>, id: Rc<str>) -> Guarded<S> {
        Guarded { stream, watch, unread: Bytes::new(), id, instead: None }
    }

    /// Whoever reads next gets these octets first, which were read from it before. Copied: they are few
    /// or none, and what they come in may be the whole room of a buffer.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.unread = Bytes::copy_from_slice(bytes);
    }

    /// What it is made of.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(bytes)) => self.watch.written(*bytes),
            // The end of it is told by the error.
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.watch.blocked(),
        }
    }
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    /// Waits until there is something to read, an end or an error included, with no buffer for it.
    pub fn poll_stirs(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.unread.is_empty() {
            return Poll::Ready(());
        }
        let mut octet = [0];
        let mut buffer = ReadBuf::new(&mut octet);
        // An error is met again, or the end that follows it, by whoever reads next.
        let _ = ready!(Pin::new(&mut *self).poll_read(context, &mut buffer));
        self.unread = Bytes::copy_from_slice(buffer.filled());
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread[..length]);
            self.unread.advance(length);
            if self.unread.is_empty() && buffer.remaining() > 0 {
                // The rest of it is mostly there, and a parser likes it whole. What is not there, or
                // cannot be read, is met by the next read.
                let _ = self.poll_read(context, buffer);
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = &buffer.filled()[before..];
        if !read.is_empty() && self.watch.read(read).is_err() {
            // The watch keeps what it was; the protocol's code has to stop here.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> Guarded<S> {
    /// Writes a problem in the place of the parser's bare answer to what is no request. `None`: this is
    /// none.
    fn poll_own_answer(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.instead.is_none() {
            self.instead = Some(answer::to_no_request(bare_status(bytes)?, &self.id)?);
        }
        while let Some(rest) = self.instead.as_mut().filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(context, rest);
            match &written {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(count)) => rest.advance(*count),
                Poll::Ready(Err(_)) | Poll::Pending => {}
            }
            self.note(&written);
            if !matches!(written, Poll::Ready(Ok(_))) {
                return Some(written);
            }
        }
        Some(Poll::Ready(Ok(bytes.len())))
    }
}

/// The status of an answer that is a head alone and has none of the fields that every answer of ours
/// has: the parser's own.
fn bare_status(bytes: &[u8]) -> Option<StatusCode> {
    // It is written at once, and short.
    const LONGEST: usize = 256;
    let text = str::from_utf8(bytes.get(..bytes.len().min(LONGEST + 1))?).ok()?;
    let (head, rest) = text.strip_prefix("HTTP/1.1 ")?.split_once("\r\n\r\n")?;
    let is_bare =
        rest.is_empty() && head.contains("content-length: 0\r\n") && !head.contains("strict-");
    if is_bare { head.get(..3)?.parse().ok() } else { None }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.watch.reads_head()
            && let Some(own) = self.poll_own_answer(context, bytes)
        {
            return own;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.watch.reads_head()
            && let [bytes] = slices
            && let Some(own) = self.poll_own_answer(context, bytes)
        {
            return own;
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        match &flushed {
            Poll::Ready(_) => self.watch.written(0),
            Poll::Pending => self.watch.blocked(),
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::{super::Limits, *};
    use crate::time;

    #[test]
    fn only_the_parsers_own_answers_are_bare() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                    content-length: 0\r\ndate: Sun, 22 Nov 2026 11:00:00 GMT\r\n\r\n";
        let ours = bare.replace("date: ", "strict-transport-security: max-age=1\r\ndate: ");
        let followed = format!("{bare}HTTP/1.1 200 OK");
        for (text, expected) in [
            (bare, Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)),
            (ours.as_str(), None),
            (followed.as_str(), None),
            (&bare[..bare.len() - 1], None),
            (&"x".repeat(1_000), None),
            ("", None),
        ] {
            assert_eq!(bare_status(text.as_bytes()), expected, "{text}");
        }
    }

    /// What woke a connection is read again with what follows it, and nothing is lost or doubled.
    #[test]
    fn what_stirred_is_read_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for (sent, read_bytes) in [("G", 10), ("GET / HTTP/1.1", 3), ("GET / HTTP/1.1", 100)] {
                let (mut client, stream) = tokio::io::duplex(64);
                let watch = Watch::new(Arc::new(Limits::default()), false, time::monotonic());
                let mut guarded = Guarded::new(stream, watch.clone(), Rc::from("c"));
                client.write_all(sent.as_bytes()).await.unwrap();
                std::future::poll_fn(|context| guarded.poll_stirs(context)).await;
                std::future::poll_fn(|context| guarded.poll_stirs(context)).await;
                let mut got = Vec::new();
                while got.len() < sent.len() {
                    let mut piece = vec![0; read_bytes];
                    let count = guarded.read(&mut piece).await.unwrap();
                    assert!(count > 0, "{sent} in pieces of {read_bytes}");
                    got.extend_from_slice(&piece[..count]);
                }
                assert_eq!(got, sent.as_bytes());
                drop(client);
                std::future::poll_fn(|context| guarded.poll_stirs(context)).await;
                assert_eq!(guarded.read(&mut [0; 8]).await.unwrap(), 0, "the end stirs too");
                // The parser's buffer has room for much more than is in it.
                let room = BytesMut::with_capacity(8_192).freeze();
                let of_parser = room.as_ptr();
                guarded.unread(&room);
                assert_ne!(guarded.unread.as_ptr(), of_parser, "its room is not kept");
                guarded.unread(b"left");
                assert_eq!(guarded.read(&mut [0; 8]).await.unwrap(), 4);
            }
        });
    }
}
