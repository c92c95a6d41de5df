//! HTTP/2: many requests at once on a connection.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Of a stream and of a connection: more than is ever on its way, so that windows cost nobody anything.
const WINDOW_BYTES: u32 = 1 << 24;

/// A connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Bytes>,
}

impl Connection {
    /// Over an established session; what it sends and reads is done by a task of its own.
    ///
    /// # Errors
    /// When the server does not answer as HTTP/2 does.
    pub async fn new(stream: TlsStream<TcpStream>) -> Result<Connection> {
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await?;
        tokio::task::spawn_local(async move {
            // Whoever waits for an answer learns of it.
            let _ended = connection.await;
        });
        Ok(Connection { sender })
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not 200.
    pub async fn ask(&mut self, uri: &http::Uri, token: Option<&HeaderValue>) -> Result<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri.clone();
        *request.version_mut() = Version::HTTP_2;
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, token.clone());
        }
        let mut sender = self.sender.clone().ready().await.context("the connection")?;
        let (answer, _body) = sender.send_request(request, true)?;
        let answer = answer.await?;
        ensure!(answer.status() == StatusCode::OK, "answered with: {}", answer.status());
        let mut body = answer.into_body();
        while let Some(part) = body.data().await {
            let octets = part?.len();
            body.flow_control().release_capacity(octets)?;
        }
        Ok(())
    }
}
