//! Sends a permitted request to its upstream and returns the answer's head; bodies stream.

use std::{cell::RefCell, io, rc::Rc, sync::Arc};

use http::{Request, Response, Uri, uri};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Upstream,
    balance::Balance,
    pool::{Lease, Pool},
};
use crate::{
    config::Endpoint,
    http::body::{Body, RequestBody},
    policy::{Permit, Refusal},
    time,
};

/// One worker's way to the upstreams.
#[derive(Clone, Default)]
pub struct Forwarder {
    pool: Pool,
    balance: Rc<RefCell<Balance>>,
}

impl Forwarder {
    /// Sends the request. It takes the [`Permit`], so that nothing unauthorized gets here.
    ///
    /// Another server is tried only while nothing of the request can have been processed: when no
    /// connection came about, or a pooled connection turned out closed before it took the request.
    ///
    /// # Errors
    /// [`Refusal::UpstreamUnreachable`], [`Refusal::UpstreamFailed`] or [`Refusal::UpstreamTimeout`].
    pub async fn forward(
        &self,
        upstream: &Upstream,
        _permit: &Permit<'_>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Body>, Refusal> {
        origin_form(&mut request);
        let order = self.balance.borrow_mut().order(upstream, time::monotonic());
        for server in order {
            // A pooled connection may have been closed by its server just now; then a new one is made.
            if let Some(lease) = self.pool.take(&server, time::monotonic()) {
                match send(lease, request, upstream).await {
                    Sent::Answered(response) => return Ok(response),
                    Sent::Refused(refusal) => return Err(refusal),
                    Sent::NotTaken(returned) => request = *returned,
                }
            }
            let Ok(lease) = self.connect(&server, upstream).await else {
                self.balance.borrow_mut().failed(&server, time::monotonic());
                continue;
            };
            self.balance.borrow_mut().worked(&server);
            match send(lease, request, upstream).await {
                Sent::Answered(response) => return Ok(response),
                Sent::Refused(refusal) => return Err(refusal),
                Sent::NotTaken(returned) => request = *returned,
            }
        }
        Err(Refusal::UpstreamUnreachable)
    }

    /// Closes idle connections that are too old.
    pub fn sweep(&self) {
        self.pool.sweep(time::monotonic());
    }

    async fn connect(&self, server: &Arc<Endpoint>, upstream: &Upstream) -> io::Result<Lease> {
        let address = (server.host.as_str(), server.port);
        let stream = timeout(upstream.connect_timeout, TcpStream::connect(address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // Ends with the connection, which closes when its sender is dropped. Its errors reach the
        // exchange through the sender.
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(self.pool.lend(sender, server.clone()))
    }
}

enum Sent {
    Answered(Response<Body>),
    Refused(Refusal),
    /// Nothing was written; the request is whole.
    NotTaken(Box<Request<RequestBody>>),
}

async fn send(mut lease: Lease, request: Request<RequestBody>, upstream: &Upstream) -> Sent {
    let Some(sender) = lease.sender() else {
        return Sent::NotTaken(Box::new(request));
    };
    match timeout(upstream.response_timeout, sender.try_send_request(request)).await {
        Ok(Ok(response)) => {
            let (parts, incoming) = response.into_parts();
            Sent::Answered(Response::from_parts(parts, Body::upstream(incoming, lease)))
        }
        Ok(Err(mut error)) => match error.take_message() {
            Some(request) => Sent::NotTaken(Box::new(request)),
            None => Sent::Refused(Refusal::UpstreamFailed),
        },
        Err(_) => Sent::Refused(Refusal::UpstreamTimeout { waited: upstream.response_timeout }),
    }
}

/// The same target with another path.
///
/// # Errors
/// [`Refusal::MalformedRequest`] when that is no target, which what [`crate::policy::path`] writes
/// always is.
pub fn with_path(uri: &Uri, path: &str) -> Result<Uri, Refusal> {
    let target = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    let bad = Refusal::MalformedRequest("the path cannot be written anew");
    match target.parse() {
        Ok(target) => parts.path_and_query = Some(target),
        Err(_) => return Err(bad),
    }
    Uri::from_parts(parts).map_err(|_| bad)
}

/// An HTTP/1.1 server is asked in origin form with a Host (RFC 9112 section 3.2); a client over HTTP/2
/// names the authority in the target instead.
fn origin_form(request: &mut Request<RequestBody>) {
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = http::HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(http::header::HOST, host);
    }
    let target = request.uri().path_and_query().cloned();
    let mut parts = uri::Parts::default();
    parts.path_and_query = target.or(Some(uri::PathAndQuery::from_static("/")));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = http::Version::HTTP_11;
}
