//! One request: head → facts → identity → permit → upstream, or the answer to a refusal.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, Request, Response, Uri, header, request::Parts};
use http_body::Body as _;

use super::{
    answer,
    body::{Arriving, Body, RequestBody},
    connection::Connection,
    expect,
    guard::{Running, Upload},
    headers,
    introduction::Origin,
    quota,
    upgrade::{self, Asked},
};
use crate::{
    admin::audit::{CertificateFields, TokenFields},
    identity::{
        Identity,
        principal::Principal,
        token::{Claims, Clock, TokenError},
    },
    net::worker::{Phase, Worker},
    policy::{
        Reason, Refusal, admit,
        facts::Facts,
        limit::{Counting, Decision, Verdict},
        permit,
        refusal::token_reason,
    },
    snapshot::Snapshot,
    time, tls,
    upstream::{dial::Purpose, forward},
};

/// The label of requests that no route was found for.
const NO_ROUTE: &str = "none";

/// What is known of a request at its end, for its log line and its counts.
struct Record {
    started: Instant,
    request_id: String,
    method: http::Method,
    /// Its target; of it only the path is written.
    uri: Uri,
    /// `None`: none was found.
    route: Option<Arc<str>>,
    upstream: Option<Arc<str>>,
    /// Who was proven so far.
    identity: Identity,
    running: Rc<Running>,
    auth: Duration,
    upstream_wait: Option<Duration>,
    /// When the upstream's part was over.
    answered: Option<Instant>,
    access_log: bool,
    /// What its route's limits said.
    verdicts: Vec<Verdict>,
}

/// Serves one request. It never fails: what goes wrong is an answer.
pub async fn exchange(
    connection: Rc<Connection>,
    request: Request<Arriving>,
    running: Rc<Running>,
) -> Response<Body> {
    let worker = connection.worker.clone();
    let snapshot = worker.shared.published.load_full();
    // Large, so it stays where it is.
    let (mut head, incoming) = request.into_parts();
    let mut record = Record::new(&connection, &head, running.clone(), snapshot.access_log);
    let upload = Upload::of(running.clone(), &head.headers);
    let body = RequestBody::new(incoming, running.clone(), upload);
    let outcome = match upgrade::asked(&mut head) {
        Ok(_) if running.is_framed_twice() => {
            Err(Refusal::MalformedRequest("both Content-Length and Transfer-Encoding"))
        }
        Ok(mut asked) => {
            let upgrade = asked.as_mut();
            let served = {
                let (head, record) = (&mut head, &mut record);
                let mut serving = pin!(serve(&connection, &snapshot, head, body, upgrade, record));
                poll_fn(|context| match serving.as_mut().poll(context) {
                    Poll::Pending => running.poll_broken_off(context).map(|reason| {
                        Err(match reason {
                            Reason::BodyTooSlow => Refusal::BodyTooSlow,
                            _ => Refusal::RequestTooLong,
                        })
                    }),
                    served => served,
                })
                .await
            };
            match (served, asked) {
                (Ok(response), Some(asked)) => asked.join(connection.clone(), response),
                (outcome, _) => outcome,
            }
        }
        Err(refusal) => Err(refusal),
    };
    let (mut response, refusal) = match outcome {
        Ok(mut response) => {
            headers::to_client(response.status(), response.headers_mut());
            (response, None)
        }
        Err(refusal) => {
            let answer = answer::refused(&refusal, &record.request_id);
            (answer::to_method(answer, &record.method), Some(refusal))
        }
    };
    if let Some(alternative) = connection.alternative(&snapshot) {
        response.headers_mut().insert(header::ALT_SVC, alternative.clone());
    }
    if let Some(refusal) = &refusal {
        worker.report_of(&connection.arrival, refusal.reason());
    }
    quota::tell(&record.verdicts, response.headers_mut());
    record.finish(connection, response, refusal)
}

async fn serve(
    connection: &Connection,
    snapshot: &Snapshot,
    head: &mut Parts,
    mut body: RequestBody,
    upgrade: Option<&mut Asked>,
    record: &mut Record,
) -> Result<Response<Body>, Refusal> {
    let worker = &connection.worker;
    if connection.phase() >= Phase::Closing {
        return Err(Refusal::Draining);
    }
    let (method, uri, fields) = (&head.method, &head.uri, &head.headers);
    if fields.len() > snapshot.clients.fields_max {
        return Err(Refusal::MalformedRequest("more fields than are taken"));
    }
    if head_bytes(uri, fields) > snapshot.clients.head_max_bytes {
        return Err(Refusal::HeadTooLarge);
    }
    let facts = Facts::read(method, uri, fields, connection.server_name.as_deref())?;
    // RFC 9112 section 3.2; and what is forwarded must have one.
    if facts.authority().is_none() {
        return Err(Refusal::MalformedRequest("no Host"));
    }
    connection.check_site(snapshot, facts.host())?;
    let route = snapshot.routes.find(&facts)?;
    record.route = Some(route.name.clone());
    let (stage, leeway_max) = {
        let host = worker.shared.host.load();
        (host.stage, host.leeway_max)
    };
    route.priority.check(stage)?;
    let counting = Counting {
        limiters: &snapshot.limits,
        address: connection.arrival.address,
        now: record.started,
    };
    let arrived = counting
        .arrive(route, connection.peer.is_some(), &mut record.verdicts)
        // Not looked at for a limit of addresses; whoever reads the line wants to know whom it hit.
        .inspect_err(|_| record.know(&Identity::new(connection.certified(snapshot), None)))?;
    let now = time::unix();
    connection.recheck(snapshot, now).map_err(Refusal::Certificate)?;
    let certificate = connection.certified(snapshot);
    // The whole is known only at the end of it; who is refused before is whom the certificate names.
    let by_certificate = |record: &mut Record| {
        record.know(&Identity::new(connection.certified(snapshot), None));
    };
    let admitted =
        admit(route, &arrived, certificate, now).inspect_err(|_| by_certificate(record))?;
    let claims = match facts.token() {
        Some(token) if route.demands.token => {
            let clock = Clock { now, leeway_max };
            let claims = identify(worker, snapshot, token, clock).map_err(Refusal::Token);
            Some(claims.inspect_err(|_| by_certificate(record))?)
        }
        _ => None,
    };
    let candidate = admitted.join(claims);
    record.know(candidate.identity());
    let target = facts.path().rewritten().map(|path| forward::with_path(uri, path));
    let permit = permit(candidate, &counting, &mut record.verdicts)?;
    let origin = Origin {
        source: connection.arrival.address,
        host: facts.authority(),
        request_id: &record.request_id,
    };
    let introduced = worker.introductions.borrow_mut().of(&permit, origin);
    if let Some(who) = introduced.who() {
        worker.vouch(&connection.arrival, who, record.started);
    }
    let authorized = time::monotonic();
    record.auth = authorized.saturating_duration_since(record.started);

    let is_expected = expect::is_expected(&head.headers);
    headers::to_upstream(&mut head.headers, &permit);
    if let Some(target) = target {
        head.uri = target?;
    }
    // Routes are checked against the upstreams of the same configuration.
    let upstream = &snapshot.upstreams[route.upstream];
    record.upstream = Some(upstream.name.clone());
    let purpose = match upgrade {
        Some(asked) => {
            asked.write(&mut head.headers, &record.request_id, upstream.idle_timeout);
            Purpose::Upgrade
        }
        None => Purpose::Requests,
    };
    if is_expected && !body.is_end_stream() {
        body.after(expect::pass_on(head));
    }
    let mut answered = authorized;
    let sent = worker.forwarder.forward(upstream, &introduced, purpose, head, body, &mut answered);
    let outcome = sent.await;
    if outcome.is_err() {
        answered = time::monotonic();
    }
    record.upstream_wait = Some(answered.saturating_duration_since(authorized));
    record.answered = Some(answered);
    let result = match &outcome {
        Ok(_) => "answered",
        Err(refusal) => refusal.reason().word(),
    };
    let key = (upstream.name.clone(), result);
    *worker.metrics.borrow_mut().upstream_requests.entry(key).or_default() += 1;
    outcome
}

/// The name of a request that brought none of its own: its connection's, and its number there.
fn own_request_id(connection_id: &str, number: u64) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    // One for the sign between, and a number has sixteen digits at most.
    let mut id = String::with_capacity(connection_id.len() + 17);
    id.push_str(connection_id);
    id.push('-');
    let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        id.push(char::from(DIGITS[(number >> (4 * place) & 0xf) as usize]));
    }
    id
}

/// The size of a head, whatever it came over: its target, and each field with the 32 octets that stand
/// for the work it makes (RFC 9113 section 6.5.2).
fn head_bytes(uri: &Uri, fields: &HeaderMap) -> usize {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    fields.iter().fold(target, |sum, (name, value)| sum + name.as_str().len() + value.len() + 32)
}

/// Finds the token in the cache, or verifies it.
pub(super) fn identify(
    worker: &Worker,
    snapshot: &Snapshot,
    token: &str,
    clock: Clock,
) -> Result<Arc<Claims>, TokenError> {
    let mut tokens = worker.tokens.borrow_mut();
    let misses = tokens.counts().misses;
    let verdict = tokens.verify(token, &snapshot.issuers, clock).and_then(|claims| {
        // Also of a remembered one.
        snapshot.revoked_tokens.check(&claims).map(|()| claims)
    });
    if let Err(TokenError::UnknownKey { issuer, .. }) = &verdict {
        // A full queue holds the same question already.
        let _ = worker.shared.unknown_keys.try_send(Arc::from(issuer.as_str()));
    }
    if tokens.counts().misses != misses {
        let (issuer, result) = match &verdict {
            Ok(claims) => (claims.issuer(), "ok"),
            Err(error) => (error.issuer().unwrap_or_default(), token_reason(error).word()),
        };
        let key = (Arc::from(issuer), result);
        *worker.metrics.borrow_mut().token_validations.entry(key).or_default() += 1;
    }
    verdict
}

impl Record {
    fn new(
        connection: &Connection,
        parts: &Parts,
        running: Rc<Running>,
        access_log: bool,
    ) -> Record {
        const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
        let offered = parts.headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let number = connection.next_request();
        let request_id = match offered {
            Some(offered) if headers::is_request_id(offered) => offered.to_owned(),
            _ => own_request_id(&connection.arrival.id, number),
        };
        Record {
            started: running.started(),
            request_id,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            route: None,
            upstream: None,
            identity: Identity::anonymous(),
            running,
            auth: Duration::ZERO,
            upstream_wait: None,
            answered: None,
            access_log,
            verdicts: Vec::new(),
        }
    }

    /// Takes note of who was proven so far.
    fn know(&mut self, identity: &Identity) {
        self.identity = identity.clone();
    }

    /// Counts the request now, and writes its line when the answer's body has ended.
    fn finish(
        self,
        connection: Rc<Connection>,
        response: Response<Body>,
        refusal: Option<Refusal>,
    ) -> Response<Body> {
        let worker = connection.worker.clone();
        let status = response.status().as_u16();
        {
            let consumer = worker.consumer(self.identity.client_id());
            let ended = self.answered.unwrap_or_else(time::monotonic);
            self.running.answers(ended);
            let took = ended.saturating_duration_since(self.started);
            let mut metrics = worker.metrics.borrow_mut();
            let route = self.route.clone().unwrap_or_else(|| Arc::from(NO_ROUTE));
            *metrics.requests.entry((consumer, route, status)).or_default() += 1;
            metrics.request_duration.observe(took);
            metrics.count_limits(&self.verdicts);
            if let Some(refusal) = &refusal {
                *metrics.refusals.entry(refusal.reason()).or_default() += 1;
            }
        }
        // A refusal is logged also where requests are not: it is what an operator looks for.
        let is_logged = match &refusal {
            Some(refusal) => worker.may_log(connection.arrival.source, refusal.reason()),
            None => self.access_log,
        };
        if !is_logged {
            return response;
        }
        response.map(|body| {
            body.on_finish(move |bytes_out| {
                self.write(&connection, status, refusal.as_ref(), bytes_out);
            })
        })
    }

    /// The limit that decided so, by its name.
    fn said(&self, decision: Decision) -> Option<&str> {
        let mut said = self.verdicts.iter().filter(|verdict| verdict.decision == Some(decision));
        said.next().map(|verdict| &*verdict.limit.name)
    }

    fn write(
        &self,
        connection: &Connection,
        status: u16,
        refusal: Option<&Refusal>,
        bytes_out: u64,
    ) {
        let took = time::monotonic().saturating_duration_since(self.started);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let level = if refusal.is_some() { "warn" } else { "info" };
        let peer = connection.peer.as_deref();
        let host = connection.worker.shared.host.load();
        let token = refusal.and_then(TokenFields::of).map(|fields| fields.by(&host.clock));
        connection.worker.log(|log, buffer| {
            let mut line = log.line(buffer, level, "request", time::wall());
            line.field("request_id", &self.request_id)
                .field("conn_id", &connection.arrival.id)
                .field("source", connection.arrival.address)
                .maybe("via", connection.arrival.via)
                .maybe("sni", connection.server_name.as_deref())
                .field("tls_version", tls::VERSION)
                .maybe("certificate", peer.map(CertificateFields::of))
                .maybe("principal", self.identity.principal().map(Principal::name))
                .maybe("client_id", self.identity.client_id())
                .maybe("tenant", self.identity.tenant())
                .field("auth_method", self.identity.method())
                .field("route", self.route.as_deref().unwrap_or(NO_ROUTE))
                .field("method", self.method.as_str())
                .field("path", self.uri.path())
                .field("status", status)
                .maybe("reason", refusal.map(|refusal| refusal.reason().word()))
                .maybe("detail", refusal.and_then(Refusal::detail))
                .maybe("limit", self.said(Decision::Refused))
                .maybe("limit_observed", self.said(Decision::WouldRefuse))
                .maybe("token", token)
                .maybe("upstream", self.upstream.as_deref())
                .field("bytes_in", self.running.came_bytes())
                .field("bytes_out", bytes_out)
                .field("duration_us", micros(took))
                .field("auth_us", micros(self.auth))
                .maybe("upstream_us", self.upstream_wait.map(micros))
                .field("worker", connection.worker.id);
            line.end();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_numbered_in_hexadecimal() {
        for number in [0, 1, 9, 10, 15, 16, 255, 256, 0xdead_beef, u64::MAX] {
            assert_eq!(own_request_id("84f670ac-0-1", number), format!("84f670ac-0-1-{number:x}"));
        }
    }
}
