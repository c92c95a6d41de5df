//! `/metrics`, `/live` and `/ready` over plain HTTP, for addresses that are allowed to ask.

use std::{convert::Infallible, future::Future, net::IpAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

/// Monitors that may ask at once: a few Prometheus servers, a balancer and a person.
const CONNECTIONS_MAX: usize = 32;

/// A monitor that keeps its connection longer is cut, so that it cannot hold a place for ever.
const CONNECTION_MAX: Duration = Duration::from_secs(120);

/// A monitor's request is one line.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// All metrics.
    Metrics,
    /// Does the process answer at all.
    Live,
    /// Should it get traffic.
    Ready,
}

/// Whether the node should get traffic, and why not.
pub type Readiness = Result<(), String>;

/// What is answered.
pub enum Content {
    /// Prometheus text.
    Metrics(String),
    /// For a balancer.
    Health(Readiness),
    /// It should, and this is what a person should know besides, a line each.
    Ready(Vec<String>),
}

/// Serves monitors until the task is dropped.
pub async fn serve<F, Fut>(listener: TcpListener, allow: Rc<dyn Fn(IpAddr) -> bool>, answer: F)
where
    F: Fn(Page) -> Fut + Clone + 'static,
    Fut: Future<Output = Content> + 'static,
{
    let places = Rc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !allow(peer.ip().to_canonical()) {
            continue;
        }
        let answer = answer.clone();
        let places = places.clone();
        tokio::task::spawn_local(async move {
            // Without a place the connection closes at once.
            let Ok(_place) = places.try_acquire() else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(respond(&request, answer).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            // A monitor that breaks off or stays too long is its own affair.
            let _ = timeout(CONNECTION_MAX, connection).await;
        });
    }
}

/// Whether one of the prefixes has the address.
pub fn is_allowed(allow: &[IpNet], address: IpAddr) -> bool {
    allow.iter().any(|net| net.contains(&address))
}

async fn respond<F, Fut>(request: &Request<Incoming>, answer: F) -> Response<Full<Bytes>>
where
    F: Fn(Page) -> Fut,
    Fut: Future<Output = Content>,
{
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    let page = match request.uri().path() {
        "/metrics" => Page::Metrics,
        "/live" | "/health" => Page::Live,
        "/ready" => Page::Ready,
        _ => return plain(StatusCode::NOT_FOUND, "/metrics /live /ready\n".to_owned()),
    };
    match answer(page).await {
        Content::Metrics(text) => {
            let mut response = plain(StatusCode::OK, text);
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
            );
            response
        }
        Content::Health(Ok(())) => plain(StatusCode::OK, "ok\n".to_owned()),
        Content::Ready(notes) => {
            let lines = std::iter::once("ok".to_owned()).chain(notes);
            plain(StatusCode::OK, lines.map(|line| line + "\n").collect())
        }
        Content::Health(Err(why)) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
