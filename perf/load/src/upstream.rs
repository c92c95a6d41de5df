//! The upstream: 200 and a kilobyte for whatever is asked, over HTTP/1.1.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Of the body: an answer that still fits one segment and one TLS record.
const BODY_BYTES: usize = 1_024;
/// A request's head with the longest token and all headers of any of the servers.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Serves until it is killed.
///
/// # Errors
/// When the address is taken.
pub async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + BODY_BYTES, b'x');
    let answer: &'static [u8] = answer.leak();
    loop {
        let (stream, _peer) = listener.accept().await?;
        tokio::task::spawn_local(async move {
            // A server that is stopped breaks its connections.
            let _ended = keep_answering(stream, answer).await;
        });
    }
}

async fn keep_answering(mut stream: TcpStream, answer: &[u8]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        let octets = stream.read(&mut buffer[filled..]).await?;
        if octets == 0 {
            return Ok(());
        }
        filled += octets;
        let mut start = 0;
        while let Some(length) = head_length(&buffer[start..filled]) {
            start += length;
            stream.write_all(answer).await?;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}

/// Up to the empty line; requests here have no bodies.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let end = b"\r\n\r\n";
    // The usual case first: exactly one head was read.
    if bytes.ends_with(end)
        && bytes.windows(end.len()).position(|part| part == end)? + end.len() == bytes.len()
    {
        return Some(bytes.len());
    }
    bytes.windows(end.len()).position(|part| part == end).map(|at| at + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line() {
        for (bytes, length) in [
            ("", None),
            ("GET / HTTP/1.1\r\nA: b\r\n", None),
            ("GET / HTTP/1.1\r\n\r\n", Some(18)),
            ("GET / HTTP/1.1\r\n\r\nGET", Some(18)),
        ] {
            assert_eq!(head_length(bytes.as_bytes()), length, "{bytes:?}");
        }
    }
}
