//! A new connection to a server: TCP, TLS where configured, and the first octets of HTTP.

use std::{fmt, io};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Upstream,
    http1::{Connection, stream::Stream},
    outgoing::Outgoing,
    server::Server,
    tls::{self, ClientTls},
};
use crate::{config::UpstreamProtocol, net::executor::Local};

/// Octets that a server may send on one HTTP/2 stream, and on a connection, before we have passed them
/// on: what a gigabit with 8 ms holds, so that a large answer is not slowed down by waiting for us.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// As for clients: an answer's field list is no longer than a request's may be, four times over.
const FIELD_LIST_MAX_BYTES: u32 = 128 * 1024;

/// HTTP/2 PING on a connection with requests under way on which nothing moves, and the wait for its
/// answer: a server that has lost its power is noticed.
const PING_EVERY: std::time::Duration = std::time::Duration::from_secs(20);

/// What a connection must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Carry requests.
    Requests,
    /// Become something else: HTTP/1.1.
    Upgrade,
}

/// A connection that requests can be sent on.
pub enum Dialled {
    /// One request at a time.
    Http1(Box<Connection>),
    /// Many.
    Http2(http2::SendRequest<Outgoing>),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    /// TCP: refused, unreachable, reset.
    Connect(io::Error),
    /// The server's certificate does not hold, or it refused ours.
    Tls(io::Error),
    /// Its configured host is no name that a certificate can be for.
    Name,
    /// It does not speak what is configured.
    NotHttp2,
    /// HTTP failed at its first octets.
    Http(hyper::Error),
    /// It took longer than `connect_timeout`.
    TooLate,
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::Connect(error) => write!(f, "no connection: {error}"),
            DialError::Tls(error) => write!(f, "TLS: {error}"),
            DialError::Name => f.write_str("TLS: no certificate can be for this host"),
            DialError::NotHttp2 => f.write_str("TLS: the server does not offer h2"),
            DialError::Http(error) => write!(f, "HTTP: {error}"),
            DialError::TooLate => f.write_str("no connection within connect_timeout"),
        }
    }
}

impl std::error::Error for DialError {}

/// Connects, within the upstream's `connect_timeout`.
///
/// # Errors
/// Why there is no connection.
pub async fn dial(
    server: &Server,
    upstream: &Upstream,
    purpose: Purpose,
) -> Result<Dialled, DialError> {
    timeout(upstream.connect_timeout, dial_patiently(server, upstream, purpose))
        .await
        .unwrap_or(Err(DialError::TooLate))
}

async fn dial_patiently(
    server: &Server,
    upstream: &Upstream,
    purpose: Purpose,
) -> Result<Dialled, DialError> {
    let stream = TcpStream::connect(server.address()).await.map_err(DialError::Connect)?;
    // Requests are written whole; waiting for more to fill a segment only delays them.
    stream.set_nodelay(true).map_err(DialError::Connect)?;
    let wants_http2 = upstream.protocol == UpstreamProtocol::Http2 && purpose == Purpose::Requests;
    let Some(tls) = &upstream.tls else {
        return if wants_http2 {
            speak_http2(stream).await
        } else {
            Ok(Dialled::Http1(Box::new(Connection::new(Stream::Plain(stream)))))
        };
    };
    let stream = secure(stream, server, tls, purpose).await?;
    let agreed_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
    if wants_http2 && !agreed_http2 {
        return Err(DialError::NotHttp2);
    }
    if agreed_http2 {
        speak_http2(stream).await
    } else {
        Ok(Dialled::Http1(Box::new(Connection::new(Stream::Tls(Box::new(stream))))))
    }
}

async fn secure(
    stream: TcpStream,
    server: &Server,
    tls: &ClientTls,
    purpose: Purpose,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, DialError> {
    let name = tls.name(server.endpoint()).ok_or(DialError::Name)?;
    let config = match purpose {
        Purpose::Requests => tls.requests(),
        Purpose::Upgrade => tls.upgrades(),
    };
    TlsConnector::from(config.clone()).connect(name, stream).await.map_err(DialError::Tls)
}

/// The connection's own task ends with it, which closes when its last sender is dropped. Its errors
/// reach the exchange through the sender.
async fn speak_http2<S>(stream: S) -> Result<Dialled, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(FIELD_LIST_MAX_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Http)?;
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    Ok(Dialled::Http2(sender))
}
