//! `/metrics`, `/live` and `/ready` over plain HTTP, and a page for a person, for addresses that are
//! allowed to ask.

use std::{convert::Infallible, future::Future, net::IpAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use super::page;

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
    /// What the page for a person shows.
    Figures,
}

/// Whether the node should get traffic, and why not.
pub type Readiness = Result<(), String>;

/// What is answered.
pub enum Content {
    /// Prometheus text.
    Metrics(String),
    /// For a balancer.
    Health(Readiness),
    /// What the page for a person shows, as JSON.
    Figures(String),
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
        "/status.json" => Page::Figures,
        "/" => return shown_to_a_person(),
        _ => {
            let there = "/ /status.json /metrics /live /ready\n";
            return plain(StatusCode::NOT_FOUND, there.to_owned());
        }
    };
    match answer(page).await {
        Content::Metrics(text) => {
            let mut response = plain(StatusCode::OK, text);
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            set(&mut response, header::CONTENT_TYPE, kind);
            response
        }
        Content::Figures(text) => {
            let mut response = plain(StatusCode::OK, text);
            set(&mut response, header::CONTENT_TYPE, "application/json");
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

/// The page, with all that keeps others from reading it or putting something into it.
fn shown_to_a_person() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(page::TEXT.as_bytes())));
    set(&mut response, header::CONTENT_TYPE, "text/html; charset=utf-8");
    set(&mut response, header::CONTENT_SECURITY_POLICY, page::policy());
    guard(&mut response);
    response
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    guard(&mut response);
    response
}

/// Figures of this moment, for whoever asked and for no other site in the same browser.
fn guard(response: &mut Response<Full<Bytes>>) {
    set(response, header::CACHE_CONTROL, "no-store");
    set(response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(response, header::REFERRER_POLICY, "no-referrer");
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    set(response, policy, "same-origin");
}

fn set(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}
