//! HTTP/1.1: one request after the other on a connection.

use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// More than any answer of the upstream with what a server adds.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// An answer that is not 200: another connection would bring the same.
#[derive(Debug)]
pub struct OtherAnswer(String);

impl fmt::Display for OtherAnswer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "answered with: {}", self.0)
    }
}

impl std::error::Error for OtherAnswer {}

/// A connection.
pub struct Connection {
    stream: Box<TlsStream<TcpStream>>,
    buffer: Box<[u8]>,
}

impl Connection {
    /// Over an established session.
    pub fn new(stream: TlsStream<TcpStream>) -> Connection {
        Connection { stream: Box::new(stream), buffer: vec![0; ANSWER_BYTES_MAX].into() }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not 200.
    pub async fn ask(&mut self, head: &[u8]) -> Result<()> {
        self.stream.write_all(head).await?;
        self.stream.flush().await?;
        let mut filled = 0;
        let whole = loop {
            let octets = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(octets > 0, "the server closed the connection");
            filled += octets;
            if let Some(length) = answer_length(&self.buffer[..filled])? {
                break length;
            }
        };
        while filled < whole {
            let octets = self.stream.read(&mut self.buffer[..]).await?;
            ensure!(octets > 0, "the server closed the connection within an answer");
            filled += octets;
        }
        ensure!(filled == whole, "more than was asked for");
        Ok(())
    }

    /// Gives its buffer back: thousands that are only held need none.
    pub fn rest(&mut self) {
        self.buffer = Box::default();
    }

    /// Ends it in the ordinary way.
    ///
    /// # Errors
    /// When it broke before.
    pub async fn close(mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }
}

/// The length of head and body, once the head is whole.
fn answer_length(bytes: &[u8]) -> Result<Option<usize>> {
    let end = b"\r\n\r\n";
    let Some(head_length) = bytes.windows(end.len()).position(|part| part == end) else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..head_length]).context("a head that is no text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!(OtherAnswer(status.to_owned()));
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    let length = length.context("an answer without a length")??;
    Ok(Some(head_length + end.len() + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let length = |text: &str| answer_length(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(length("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n"), Ok(None));
        assert_eq!(length("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"), Ok(Some(41)));
        for refused in ["HTTP/1.1 401 No\r\ncontent-length: 3\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
            assert!(length(refused).is_err(), "{refused}");
        }
    }
}
