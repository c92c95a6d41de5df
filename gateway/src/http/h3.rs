//! One client connection over QUIC: handshake, then HTTP/3 until it ends. The same exchange as over
//! TCP, the same judgement of the client, the same reasons.

mod fields;
mod frames;
mod section;
mod streams;
mod upload;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h3::{
    error::{Code, StreamError},
    server::{RequestResolver, RequestStream},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
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
    guard::{Held, Limits, Verdict, Watch},
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

/// Octets of a body that are copied to the frames before them. More is kept as it came, in the memory
/// that it was read into, which is not much more.
const JOINED_MAX_BYTES: usize = 4 * 1024;

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
#[derive(Default)]
struct Requests {
    open: Cell<usize>,
    given_up: Cell<u32>,
    /// The last of them has ended, or too many were given up.
    told: Notify,
}

impl Requests {
    fn ended(&self, given_up: bool) {
        self.open.set(self.open.get() - 1);
        let count = self.given_up.get();
        self.given_up.set(if given_up { count + 1 } else { count.saturating_sub(1) });
        if self.open.get() == 0 || self.are_too_many_given_up() {
            self.told.notify_one();
        }
    }

    fn are_too_many_given_up(&self) -> bool {
        self.given_up.get() > GIVEN_UP_MAX
    }
}

/// Why no further request is taken.
enum Taken {
    /// The client has said that it will ask no more, and all was answered; or its source was banned.
    Ended,
    /// The connection broke.
    Broken(h3::error::ConnectionError),
    /// The two libraries do not agree.
    Lost,
}

/// Takes requests as they come. In a loop of its own: beside it a connection waits for much that hardly
/// ever happens, which need not be asked for anew with each request.
async fn take(
    server: &mut h3::server::Connection<streams::Connection, Bytes>,
    accepted: &RefCell<Option<Accepted>>,
    connection: &mut Rc<Connection>,
    quic: &quinn::Connection,
    requests: &Rc<Requests>,
    within: Duration,
) -> Taken {
    loop {
        let resolver = match server.accept().await {
            Ok(Some(resolver)) => resolver,
            Ok(None) => return Taken::Ended,
            Err(error) => return Taken::Broken(error),
        };
        let Some(accepted) = accepted.take() else { return Taken::Lost };
        follow(connection, quic);
        if connection.is_banned() {
            return Taken::Ended;
        }
        requests.open.set(requests.open.get() + 1);
        let (connection, requests) = (connection.clone(), requests.clone());
        // Where it is made it stays: some kilobytes, which the task would be made of and moved with.
        tokio::task::spawn_local(Box::pin(async move {
            let served = answer(&connection, resolver, accepted, within).await;
            requests.ended(served == Served::GivenUp);
        }));
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
    let requests = Rc::<Requests>::default();
    let mut phase = connection.arrival.phase.clone();
    let watch = connection.watch.clone();
    let mut draining = false;
    // From then on it ends as soon as nothing is asked.
    let mut leaves_at = None;
    loop {
        let heard = connection.phase();
        tokio::select! {
            taken = take(
                &mut server, &accepted, &mut connection, quic, &requests, limits.head,
            ) => match taken {
                Taken::Ended => return Code::H3_NO_ERROR,
                Taken::Broken(error) => {
                    broken(&connection, &error);
                    return Code::H3_NO_ERROR;
                }
                Taken::Lost => return Code::H3_INTERNAL_ERROR,
            },
            () = requests.told.notified() => {}
            now = later_phase(&mut phase, heard) => {
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
            () = rest(leaves_at), if requests.open.get() == 0 => {
                // One may have come meanwhile.
                if requests.open.get() == 0 {
                    return Code::H3_NO_ERROR;
                }
            }
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
        if requests.are_too_many_given_up() {
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Whole,
    GivenUp,
}

/// Answers one request. When the connection ends, so does whatever is waited for here, and the request
/// with it, wherever it stands.
async fn answer(
    connection: &Rc<Connection>,
    resolver: RequestResolver<streams::Connection, Bytes>,
    accepted: Accepted,
    within: Duration,
) -> Served {
    let Accepted { mut abandoned, resolved, misuse, back } = accepted;
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
    let mut exchange = Box::pin(exchange(connection.clone(), request, running));
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
    let date = connection.worker.dates.borrow_mut().at(time::wall());
    let response = response.map(|body| ticket.hold(body));
    let sent = tokio::select! {
        sent = pass(&mut send, &back, response, is_head, date) => sent,
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

/// Sends an answer as fast as the client takes it. `back` is the way that `send` has too.
async fn pass(
    send: &mut RequestStream<Sender, Bytes>,
    back: &Sender,
    response: Response<Held>,
    is_head: bool,
    date: Option<HeaderValue>,
) -> Result<(), Interrupted> {
    let gone = |_: StreamError| Interrupted::Client;
    let (mut parts, mut body) = response.into_parts();
    let bodiless =
        is_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    complete(&mut parts.headers, parts.status, date, body.size_hint().exact(), bodiless);
    // Frames that wait for the first octets of the body, to be written with them.
    let mut frames = match fields::head(parts.status, &parts.headers) {
        Some(head) => head,
        None => {
            send.send_response(Response::from_parts(parts, ())).await.map_err(gone)?;
            Vec::new()
        }
    };
    if !bodiless {
        pass_body(send, back, &mut body, &mut frames).await?;
    }
    if !frames.is_empty() {
        body.is_taken();
        write(back, &mut frames).await?;
    }
    send.finish().await.map_err(gone)
}

/// Sends a body and its trailers, the first octets of it with the frames that wait.
async fn pass_body(
    send: &mut RequestStream<Sender, Bytes>,
    back: &Sender,
    body: &mut Held,
    frames: &mut Vec<u8>,
) -> Result<(), Interrupted> {
    loop {
        let polled = poll_fn(|context| Poll::Ready(Pin::new(&mut *body).poll_frame(context))).await;
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                body.is_taken();
                write(back, frames).await?;
                poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
            }
        };
        let Some(frame) = frame else { return Ok(()) };
        match frame.map_err(|_| Interrupted::Upstream)?.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                fields::data_head(data.len(), frames);
                if data.len() <= JOINED_MAX_BYTES {
                    frames.extend_from_slice(&data);
                    write(back, frames).await?;
                } else {
                    write(back, frames).await?;
                    back.write(data).await.map_err(|_| Interrupted::Client)?;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers()
                    && !trailers.is_empty()
                {
                    write(back, frames).await?;
                    send.send_trailers(trailers).await.map_err(|_| Interrupted::Client)?;
                }
            }
        }
    }
}

/// Writes what waits.
async fn write(back: &Sender, frames: &mut Vec<u8>) -> Result<(), Interrupted> {
    let frames = Bytes::from(std::mem::take(frames));
    back.write(frames).await.map_err(|_| Interrupted::Client)
}

/// What hyper adds over HTTP/1.1 and /2: the date (RFC 9110 section 6.6.1), and the length where it is
/// known.
fn complete(
    headers: &mut HeaderMap,
    status: StatusCode,
    date: Option<HeaderValue>,
    length: Option<u64>,
    bodiless: bool,
) {
    if let Some(date) = date {
        headers.entry(header::DATE).or_insert(date);
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
            let now = Some(HeaderValue::from_static("now"));
            complete(&mut headers, status, now.clone(), Some(7), bodiless);
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(text(header::CONTENT_LENGTH), length);
            assert_eq!(text(header::DATE), Some("now"));
            let upstreams = headers.insert(header::DATE, "earlier".parse().unwrap());
            complete(&mut headers, status, now, None, bodiless);
            assert_eq!(headers[header::DATE], "earlier", "{upstreams:?}");
        }
    }
}
