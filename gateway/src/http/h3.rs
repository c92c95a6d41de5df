//! One client connection over QUIC: handshake, then HTTP/3 until it ends. The same exchange as over
//! TCP, the same judgement of the client, the same reasons.

mod frames;
mod section;
mod streams;
mod upload;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h3::{
    error::{Code, StreamError},
    server::{RequestResolver, RequestStream},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use quinn::VarInt;
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

pub use self::upload::Upload;
use self::{
    streams::{Accepted, Sender},
    upload::Signals,
};
use super::{
    body::Arriving,
    connection::{
        Arrival, Connection, HEAD_MORE_BYTES, evidence, later_phase, refused, strangers, withdrawn,
    },
    exchange::exchange,
    expect,
    guard::{Limits, Verdict, Watch},
};
use crate::{
    net::{
        quic::Settings,
        worker::{Phase, Worker},
    },
    policy::Reason,
    time,
    tls::{
        handshake::{Failure, Proven},
        quic::Handshake,
    },
};

/// Requests that a client may give up beyond those that it lets us answer. Opening and resetting
/// costs it nothing and an upstream much (rapid reset, CVE-2023-44487); a browser that leaves a page
/// gives up some dozens at once.
const GIVEN_UP_MAX: u32 = 200;

/// After GOAWAY a connection without requests is kept for so long, unless its client closes it: what was
/// sent before the client heard arrives within a round trip, and is answered. As long as an HTTP/1.1
/// connection is kept at a stop.
const LEAVES_AFTER: Duration = Duration::from_secs(5);

/// A connection whose first packet has arrived.
pub struct Incoming {
    /// The packet, decrypted.
    pub quinn: quinn::Incoming,
    /// What the connections of the endpoint have in common.
    pub settings: Settings,
    /// Where it comes from.
    pub arrival: Arrival,
}

/// Serves one connection to its end. `secured` is dropped when its handshake is over.
pub async fn serve<G>(worker: Rc<Worker>, incoming: Incoming, secured: G) {
    let Incoming { quinn, settings, arrival } = incoming;
    // Before the snapshot is loaded, so that a change during the handshake is not missed.
    let mut news = worker.shared.news.clone();
    news.mark_unchanged();
    let snapshot = worker.shared.published.load_full();
    let listener = &snapshot.listeners[arrival.listener];
    let handshake = Handshake::new(listener, strangers(&worker), time::unix());
    // A retry has proven the address already.
    let validated = quinn.remote_address_validated();
    let limits = snapshot.clients.clone();
    let (quic, client) = match secure(quinn, &settings, &handshake, &limits).await {
        Ok(secured) => secured,
        Err(failure) => {
            // So has whoever came as far as showing a certificate, or none where one is asked for:
            // those messages are encrypted with keys that were sent to that address.
            let came_far =
                failure.certificate.is_some() || failure.reason == Reason::NoClientCertificate;
            return refused(&worker, &arrival, &failure, validated || came_far);
        }
    };
    drop(secured);
    // Like HTTP/2, many requests at once; frames of QUIC are quinn's to judge.
    let watch = Watch::new(limits.clone(), true, time::monotonic());
    let connection = Connection::begin(worker, arrival, client, watch, &snapshot);
    drop(snapshot);
    let reason = drive(connection, &quic, &limits, news).await;
    quic.close(code(reason), b"");
}

async fn secure(
    incoming: quinn::Incoming,
    settings: &Settings,
    handshake: &Handshake,
    limits: &Limits,
) -> Result<(quinn::Connection, Proven), Failure> {
    let within = limits.handshake;
    let incompatible = |detail: String| Failure {
        reason: Reason::TlsIncompatible,
        detail,
        certificate: None,
        server_name: None,
    };
    let crypto = handshake.crypto().map_err(|error| incompatible(error.to_string()))?;
    let connecting = incoming
        .accept_with(Arc::new(settings.accepting(Arc::new(crypto), limits.streams_max)))
        .map_err(|error| handshake.failure(&error))?;
    let quic = match timeout(within, connecting).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => return Err(handshake.failure(&error)),
        Err(_) => return Err(Failure::late(within)),
    };
    let chain = quic
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_deref().and_then(|chain| chain.first());
    match handshake.finish(leaf) {
        Some(client) => Ok((quic, client)),
        None => Err(handshake.nobody()),
    }
}

fn code(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

/// What the requests of a connection have in common.
struct Requests {
    quic: quinn::Connection,
    open: Cell<usize>,
    given_up: Cell<u32>,
    /// One of them has ended.
    ended: Notify,
}

impl Requests {
    fn ended(&self, given_up: bool) {
        self.open.set(self.open.get() - 1);
        let count = self.given_up.get();
        self.given_up.set(if given_up { count + 1 } else { count.saturating_sub(1) });
        self.ended.notify_one();
    }
}

/// Takes requests until the connection ends, the process stops, its source is banned, its client is
/// no longer to be let in, or no request comes.
async fn drive(
    mut connection: Rc<Connection>,
    quic: &quinn::Connection,
    limits: &Limits,
    mut news: watch::Receiver<()>,
) -> Code {
    let accepted: Rc<RefCell<Option<Accepted>>> = Rc::default();
    let streams = streams::Connection::new(quic.clone(), accepted.clone());
    let built = h3::server::builder()
        .max_field_section_size((limits.head_max_bytes + HEAD_MORE_BYTES) as u64)
        .send_grease(false)
        .build::<_, Bytes>(streams)
        .await;
    let Ok(mut server) = built else { return Code::H3_NO_ERROR };
    let requests = Rc::new(Requests {
        quic: quic.clone(),
        open: Cell::new(0),
        given_up: Cell::new(0),
        ended: Notify::new(),
    });
    let mut phase = connection.arrival.phase.clone();
    let watch = connection.watch.clone();
    let mut draining = false;
    // From then on it ends as soon as nothing is asked.
    let mut leaves_at = None;
    loop {
        tokio::select! {
            resolver = server.accept() => match resolver {
                Ok(Some(resolver)) => {
                    let Some(accepted) = accepted.take() else { return Code::H3_INTERNAL_ERROR };
                    follow(&mut connection, quic);
                    if connection.is_banned() {
                        return Code::H3_NO_ERROR;
                    }
                    requests.open.set(requests.open.get() + 1);
                    let (connection, requests) = (connection.clone(), requests.clone());
                    let within = limits.head;
                    tokio::task::spawn_local(async move {
                        serve_request(connection, requests, resolver, accepted, within).await;
                    });
                }
                // The client has said that it will ask no more, and all was answered.
                Ok(None) => return Code::H3_NO_ERROR,
                Err(error) => {
                    broken(&connection, &error);
                    return Code::H3_NO_ERROR;
                }
            },
            () = requests.ended.notified() => {}
            now = later_phase(&mut phase, connection.phase()) => {
                connection.hear(now);
                if now == Phase::Stopping {
                    return Code::H3_NO_ERROR;
                }
                if now == Phase::Closing {
                    leaves_at = Some(time::monotonic());
                }
                if !draining {
                    draining = true;
                    leaves_at.get_or_insert(time::monotonic() + LEAVES_AFTER);
                    // GOAWAY names the first request that will not be served: as many as may be under
                    // way already will be (RFC 9114 section 5.2).
                    if server.shutdown(limits.streams_max as usize).await.is_err() {
                        return Code::H3_NO_ERROR;
                    }
                }
            }
            () = rest(leaves_at), if requests.open.get() == 0 => return Code::H3_NO_ERROR,
            Ok(()) = news.changed() => {
                let snapshot = connection.worker.shared.published.load_full();
                if let Err(error) = connection.recheck(&snapshot, time::unix()) {
                    withdrawn(&connection, &error);
                    return Code::H3_NO_ERROR;
                }
            }
            verdict = watch.verdict() => {
                for reason in watch.take_broken_off() {
                    evidence(&connection, reason, "an answer was broken off");
                }
                match verdict {
                    // quinn keeps no buffers for what is not under way.
                    Verdict::Wait(_) | Verdict::Rest => {}
                    Verdict::Retire if draining => return Code::H3_NO_ERROR,
                    Verdict::Retire => {
                        draining = true;
                        watch.retire(time::monotonic());
                        leaves_at = Some(time::monotonic());
                        if server.shutdown(1).await.is_err() {
                            return Code::H3_NO_ERROR;
                        }
                    }
                    Verdict::Refuse(reason, detail) => {
                        evidence(&connection, reason, detail);
                        return Code::H3_NO_ERROR;
                    }
                }
            }
        }
        if requests.given_up.get() > GIVEN_UP_MAX {
            evidence(&connection, Reason::RequestsGivenUp, "more requests given up than answered");
            return Code::H3_EXCESSIVE_LOAD;
        }
        if connection.is_banned() {
            return Code::H3_NO_ERROR;
        }
    }
}

/// Until then; for ever where nothing is set.
async fn rest(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// A client may go on from another address (RFC 9000 section 9), which quinn has validated then.
fn follow(connection: &mut Rc<Connection>, quic: &quinn::Connection) {
    let now = quic.remote_address();
    let address = now.ip().to_canonical();
    if address != connection.arrival.address {
        *connection = connection.moved(address, now.port());
    }
}

/// The connection ended with an error; what the client did wrong by the rules of HTTP/3 is a refusal
/// like any other. That it went away is none.
fn broken(connection: &Connection, error: &h3::error::ConnectionError) {
    if let h3::error::ConnectionError::Local { error, .. } = error
        && let h3::error::LocalError::Application { code, .. } = error
        && *code != Code::H3_NO_ERROR
        && *code != Code::H3_INTERNAL_ERROR
    {
        evidence(connection, Reason::MalformedRequest, &format!("{code}"));
    }
}

async fn serve_request(
    connection: Rc<Connection>,
    requests: Rc<Requests>,
    resolver: RequestResolver<streams::Connection, Bytes>,
    accepted: Accepted,
    within: Duration,
) {
    // The client goes away, or the connection is to end: so does the request, wherever it stands.
    let served = tokio::select! {
        served = answer(&connection, resolver, accepted, within) => served,
        _ = requests.quic.closed() => Served::GivenUp,
    };
    requests.ended(served == Served::GivenUp);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Whole,
    GivenUp,
}

async fn answer(
    connection: &Rc<Connection>,
    resolver: RequestResolver<streams::Connection, Bytes>,
    accepted: Accepted,
    within: Duration,
) -> Served {
    let Accepted { mut abandoned, resolved, misuse } = accepted;
    let (request, stream) = match timeout(within, resolver.resolve_request()).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => return unresolved(connection, &error),
        Err(_) => {
            evidence(
                connection,
                Reason::RequestTimeout,
                "the head of a request did not come whole",
            );
            return Served::GivenUp;
        }
    };
    resolved.set(true);
    let (mut send, mut receive) = stream.split();
    let misuse = misuse.take().map_or(Ok(()), |misuse| Err(misuse.text()));
    let length = match misuse.and_then(|()| well_formed(&request)) {
        Ok(length) => length,
        Err(detail) => {
            evidence(connection, Reason::MalformedRequest, detail);
            send.stop_stream(Code::H3_MESSAGE_ERROR);
            receive.stop_sending(Code::H3_MESSAGE_ERROR);
            return Served::GivenUp;
        }
    };
    let is_head = *request.method() == Method::HEAD;
    let mut expects = expect::is_expected(request.headers());
    let signals = Rc::new(Signals::default());
    let upload = Upload::begin(receive, length, signals.clone()).await;
    let request = request.map(|()| Arriving::Quic(Box::new(upload)));
    let ticket = connection.watch.begin(time::monotonic());
    let running = ticket.running().clone();
    let mut exchange = pin!(exchange(connection.clone(), request, running));
    let response = loop {
        tokio::select! {
            response = &mut exchange => break response,
            () = signals.wanted.notified(), if expects => {
                expects = false;
                if send.send_response(interim(StatusCode::CONTINUE)).await.is_err() {
                    return Served::GivenUp;
                }
            }
            () = &mut abandoned => return Served::GivenUp,
        }
    };
    if signals.malformed.get() {
        evidence(connection, Reason::MalformedRequest, "the body's length is not as announced");
        send.stop_stream(Code::H3_MESSAGE_ERROR);
        return Served::GivenUp;
    }
    let sent = tokio::select! {
        sent = pass(&mut send, response.map(|body| ticket.hold(body)), is_head) => sent,
        () = &mut abandoned => Err(Interrupted::Client),
    };
    match sent {
        Ok(()) => Served::Whole,
        Err(Interrupted::Client) => {
            send.stop_stream(Code::H3_REQUEST_CANCELLED);
            Served::GivenUp
        }
        Err(Interrupted::Upstream) => {
            // Not whole, and the client must see that.
            send.stop_stream(Code::H3_INTERNAL_ERROR);
            Served::Whole
        }
    }
}

/// No request came of a stream.
fn unresolved(connection: &Connection, error: &StreamError) -> Served {
    match error {
        StreamError::HeaderTooBig { .. } => {
            // The library has answered 431.
            evidence(connection, Reason::HeadTooLarge, "the head is too large");
        }
        StreamError::StreamError { reason, .. } => {
            evidence(connection, Reason::MalformedRequest, reason);
        }
        StreamError::Undefined { .. } => {
            evidence(connection, Reason::MalformedRequest, &error.to_string());
        }
        // The client reset it, or the connection has ended, which is told elsewhere.
        _ => {}
    }
    Served::GivenUp
}

/// What the library does not look at: fields that have no meaning over HTTP/3 (RFC 9114 section 4.2),
/// and the announced length, which is returned.
fn well_formed(request: &Request<()>) -> Result<Option<u64>, &'static str> {
    const CONNECTION_FIELDS: [&str; 5] =
        ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    let headers = request.headers();
    if CONNECTION_FIELDS.iter().any(|name| headers.contains_key(*name)) {
        return Err("a field of the connection in HTTP/3");
    }
    if headers.get_all(header::TE).iter().any(|te| te != "trailers") {
        return Err("TE other than trailers in HTTP/3");
    }
    if request.extensions().get::<h3::ext::Protocol>().is_some() {
        return Err("a protocol that was not offered");
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    if lengths.any(|other| other != first) {
        return Err("two lengths");
    }
    let digits = first.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse().ok());
    length.map(Some).ok_or("a length that is no number")
}

fn interim(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

/// Who ended an answer before its end.
enum Interrupted {
    Client,
    Upstream,
}

/// Sends an answer as fast as the client takes it.
async fn pass(
    send: &mut RequestStream<Sender, Bytes>,
    response: Response<impl Body<Data = Bytes>>,
    is_head: bool,
) -> Result<(), Interrupted> {
    let gone = |_: StreamError| Interrupted::Client;
    let (mut parts, body) = response.into_parts();
    let mut body = pin!(body);
    let bodiless =
        is_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    complete(&mut parts.headers, parts.status, body.size_hint().exact(), bodiless);
    send.send_response(Response::from_parts(parts, ())).await.map_err(gone)?;
    if !bodiless {
        while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            let frame = frame.map_err(|_| Interrupted::Upstream)?;
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => send.send_data(data).await.map_err(gone)?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers()
                        && !trailers.is_empty()
                    {
                        send.send_trailers(trailers).await.map_err(gone)?;
                    }
                }
            }
        }
    }
    send.finish().await.map_err(gone)
}

/// What hyper adds over HTTP/1.1 and /2: the date (RFC 9110 section 6.6.1), and the length where it is
/// known.
fn complete(headers: &mut HeaderMap, status: StatusCode, length: Option<u64>, bodiless: bool) {
    if !headers.contains_key(header::DATE)
        && let Ok(now) = Timestamp::try_from(time::wall())
        && let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&now)
        && let Ok(date) = HeaderValue::from_str(&date)
    {
        headers.insert(header::DATE, date);
    }
    if let Some(length) = length
        && !bodiless
        && !status.is_informational()
        && !headers.contains_key(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_place_in_http_3_is_malformed() {
        for (fields, expected) in [
            (&[][..], Ok(None)),
            (&[("content-length", "5")], Ok(Some(5))),
            (&[("content-length", "5"), ("content-length", "5")], Ok(Some(5))),
            (&[("content-length", "5"), ("content-length", "6")], Err(())),
            (&[("content-length", "+5")], Err(())),
            (&[("content-length", "")], Err(())),
            (&[("content-length", "99999999999999999999")], Err(())),
            (&[("connection", "close")], Err(())),
            (&[("transfer-encoding", "chunked")], Err(())),
            (&[("te", "trailers")], Ok(None)),
            (&[("te", "gzip")], Err(())),
        ] {
            let mut request = Request::new(());
            for (name, value) in fields {
                request.headers_mut().append(*name, value.parse().unwrap());
            }
            assert_eq!(well_formed(&request).map_err(|_| ()), expected, "{fields:?}");
        }
    }

    #[test]
    fn an_answer_has_date_and_length() {
        for (status, bodiless, length) in [
            (StatusCode::OK, false, Some("7")),
            (StatusCode::OK, true, None),
            (StatusCode::NO_CONTENT, true, None),
        ] {
            let mut headers = HeaderMap::new();
            complete(&mut headers, status, Some(7), bodiless);
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(text(header::CONTENT_LENGTH), length);
            assert!(text(header::DATE).unwrap().ends_with(" GMT"));
            let upstreams = headers.insert(header::DATE, "earlier".parse().unwrap());
            complete(&mut headers, status, None, bodiless);
            assert_eq!(headers[header::DATE], "earlier", "{upstreams:?}");
        }
    }
}
