//! A lane is where one request at a time is on its way: a connection of HTTP/1.1, or one of several on a
//! connection that carries many.

use std::{cell::Cell, fs};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderValue, Uri};

use crate::{
    connect::Connector,
    http1, http2, http3,
    plan::{Plan, Protocol},
};

/// One request, in the forms of all protocols.
pub struct Request {
    /// The head of HTTP/1.1.
    head: Vec<u8>,
    /// `Authorization`.
    token: Option<HeaderValue>,
    /// The frame of HTTP/3.
    frame: Bytes,
}

/// The requests that take turns.
pub struct Requests {
    all: Vec<Request>,
    uri: Uri,
    next: Cell<usize>,
}

impl Requests {
    /// One for each token, or one without.
    ///
    /// # Errors
    /// When the tokens cannot be read, or there is none.
    pub fn new(plan: &Plan) -> Result<Requests> {
        let Plan { name, path, .. } = plan;
        let request = |token: Option<&str>| -> Result<Request> {
            let line = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
            let line = line.unwrap_or_default();
            let head = format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n{line}\r\n").into_bytes();
            let token = token.map(|token| HeaderValue::try_from(format!("Bearer {token}")));
            let token = token.transpose()?;
            let frame = http3::head(name, path, token.as_ref())?;
            Ok(Request { head, token, frame })
        };
        let all = match &plan.tokens {
            None => vec![request(None)?],
            Some(file) => {
                let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
                text.lines().map(|token| request(Some(token))).collect::<Result<_>>()?
            }
        };
        ensure!(!all.is_empty(), "no tokens");
        let uri = format!("https://{name}{path}").parse()?;
        Ok(Requests { all, uri, next: Cell::new(0) })
    }

    fn next(&self) -> &Request {
        let at = self.next.get();
        self.next.set((at + 1) % self.all.len());
        &self.all[at]
    }
}

/// Where one request at a time is on its way.
pub enum Lane {
    /// A connection.
    Http1(http1::Connection),
    /// One of several on a connection.
    Http2(http2::Connection),
    /// The same over QUIC.
    Http3(http3::Connection),
}

impl Lane {
    /// Connects, and gives as many lanes on that connection.
    ///
    /// # Errors
    /// When it fails.
    pub async fn open(
        connector: &Connector,
        protocol: Protocol,
        lanes: usize,
    ) -> Result<Vec<Lane>> {
        match protocol {
            Protocol::H1 => {
                ensure!(lanes == 1, "HTTP/1.1 has one request at a time");
                let stream = connector.connect().await?;
                Ok(vec![Lane::Http1(http1::Connection::new(stream))])
            }
            Protocol::H2 => {
                let connection = http2::Connection::new(connector.connect().await?).await?;
                Ok((0..lanes).map(|_| Lane::Http2(connection.clone())).collect())
            }
            Protocol::H3 => {
                let connection = http3::Connection::new(connector.connect_quic().await?).await?;
                Ok((0..lanes).map(|_| Lane::Http3(connection.clone())).collect())
            }
        }
    }

    /// The same with no more memory than an open connection takes.
    pub fn at_rest(mut self) -> Lane {
        if let Lane::Http1(connection) = &mut self {
            connection.rest();
        }
        self
    }

    /// Asks for what is next.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not 200.
    pub async fn ask(&mut self, requests: &Requests) -> Result<()> {
        let request = requests.next();
        match self {
            Lane::Http1(connection) => connection.ask(&request.head).await,
            Lane::Http2(connection) => connection.ask(&requests.uri, request.token.as_ref()).await,
            Lane::Http3(connection) => connection.ask(&request.frame).await,
        }
    }
}
