//! Sends a permitted request to its upstream and returns the answer's head; bodies stream.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header, request::Parts,
    uri,
};
use lru::DefaultHasher;

use super::{
    Upstream,
    balance::{self, Candidate, NoneWell},
    dial::{DialError, Purpose, dial},
    health::{Outcome, Standing, Verdict},
    incoming::{Arriving, UpstreamBody},
    outgoing::{Outgoing, Source},
    pool::{CutBodies, Key, Line, Pool},
    retry::{Budget, Fate, Lost, is_safe},
    server::{Place, Server},
};
use crate::{
    config::UpstreamProtocol,
    http::{
        body::{Body, RequestBody},
        introduction::Introduced,
    },
    policy::Refusal,
    time,
};

/// Upstreams that one worker remembers a turn and a budget for; a configuration with more begins anew
/// now and then, which costs a turn.
const UPSTREAMS_MAX: usize = 10_000;

/// Fields that there is room for in a map that is kept for the next answer: what few heads exceed.
const SPARE_FIELDS_MAX: usize = 64;

/// One worker's way to the upstreams.
#[derive(Clone, Default)]
pub struct Forwarder {
    pool: Pool,
    accounts: Rc<RefCell<HashMap<Arc<str>, Account, DefaultHasher>>>,
    /// The map of a request that was answered, empty: the next answer's.
    spare: Rc<Cell<HeaderMap>>,
}

/// What one worker remembers of one upstream.
struct Account {
    turn: usize,
    budget: Budget,
    repeated: u64,
}

/// One request, for as many attempts as it takes.
struct Attempts<'a> {
    upstream: &'a Upstream,
    introduced: &'a Introduced<'a>,
    purpose: Purpose,
    /// As an HTTP/1.1 server is asked.
    head: &'a Parts,
    body: Rc<Source>,
    spare: &'a Cell<HeaderMap>,
}

/// How an attempt ended.
enum Sent {
    Answered(Response<Arriving>),
    Lost(Lost),
    Late(Refusal),
}

impl Forwarder {
    /// Sends the request. It takes what the upstream is told of the client, which is made of a permit, so
    /// that nothing unauthorized gets here.
    ///
    /// It is sent again only where [`is_safe`] says so and the budget has something left. Of `head` no
    /// fields are left afterwards. `now` becomes when the answer's head came.
    ///
    /// # Errors
    /// That no server is well or has room, or what became of the last attempt.
    pub async fn forward(
        &self,
        upstream: &Upstream,
        introduced: &Introduced<'_>,
        purpose: Purpose,
        head: &mut Parts,
        body: RequestBody,
        now: &mut Instant,
    ) -> Result<Response<Body>, Refusal> {
        name_host(head);
        let body = Source::new(body, *now);
        let spare = &*self.spare;
        let attempts = Attempts { upstream, introduced, purpose, head, body, spare };
        let outcome = self.send_somewhere(&attempts, now).await;
        self.keep(std::mem::take(&mut head.headers));
        outcome
    }

    /// Keeps the larger one of two maps.
    fn keep(&self, mut fields: HeaderMap) {
        let kept = self.spare.take();
        let is_better = kept.capacity() < fields.capacity();
        self.spare.set(if is_better && fields.capacity() <= SPARE_FIELDS_MAX {
            fields.clear();
            fields
        } else {
            kept
        });
    }

    /// Closes idle connections that are too old.
    pub fn sweep(&self) {
        self.pool.sweep(time::monotonic());
    }

    /// Answers that broke off after their head.
    pub fn cut_bodies(&self) -> CutBodies {
        self.pool.cut_bodies()
    }

    /// Requests that were sent once more, by upstream.
    pub fn repeated(&self) -> Vec<(Arc<str>, u64)> {
        let accounts = self.accounts.borrow();
        accounts.iter().map(|(name, account)| (name.clone(), account.repeated)).collect()
    }

    async fn send_somewhere(
        &self,
        attempts: &Attempts<'_>,
        now: &mut Instant,
    ) -> Result<Response<Body>, Refusal> {
        let upstream = attempts.upstream;
        let mut order = self.order(upstream, *now)?;
        let mut last = None;
        let mut first_full = None;
        for server in order.iter_mut().filter_map(Option::take) {
            // Another may have found out in between.
            if upstream.servers.len() > 1
                && server.standing(*now) == Standing::Due
                && !server.claim(*now)
            {
                continue;
            }
            let Some(place) = attempts.place(&server) else {
                first_full.get_or_insert(server);
                continue;
            };
            match self.send_to(&server, place, attempts, now).await? {
                Ok(response) => return Ok(response),
                Err(refusal) => last = Some(refusal),
            }
            *now = time::monotonic();
        }
        match (last, first_full) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(server)) => {
                let place = Box::pin(attempts.wait_for_place(&server)).await;
                let place = place.ok_or(Refusal::UpstreamOverloaded)?;
                *now = time::monotonic();
                self.send_to(&server, place, attempts, now).await?
            }
            (None, None) => Err(Refusal::NoHealthyUpstream { retry_after: Duration::ZERO }),
        }
    }

    /// The servers to try. Counts the request.
    fn order(
        &self,
        upstream: &Upstream,
        now: Instant,
    ) -> Result<[Option<Arc<Server>>; balance::TRIES_MAX], Refusal> {
        let turn = {
            let mut accounts = self.accounts.borrow_mut();
            if accounts.len() > UPSTREAMS_MAX {
                accounts.clear();
            }
            if !accounts.contains_key(&upstream.name) {
                let account = Account { turn: 0, budget: Budget::new(now), repeated: 0 };
                accounts.insert(upstream.name.clone(), account);
            }
            let Some(account) = accounts.get_mut(&upstream.name) else {
                return Ok(Default::default());
            };
            account.budget.request(now);
            account.turn = account.turn.wrapping_add(1);
            account.turn.wrapping_sub(1)
        };
        let is_probed = upstream.health.is_some();
        let candidate = |server: &Arc<Server>| Candidate {
            verdict: if is_probed { server.verdict() } else { Verdict::Unknown },
            standing: server.standing(now),
            busy: server.busy(),
        };
        // The common case costs nothing.
        if let ([server], false) = (upstream.servers.as_slice(), is_probed) {
            return Ok([Some(server.clone()), None, None]);
        }
        let candidates: Vec<Candidate> = upstream.servers.iter().map(candidate).collect();
        let order = balance::order(upstream.balance, turn, &candidates);
        let order = order.map_err(|none| match none {
            NoneWell::Out(retry_after) => Refusal::NoHealthyUpstream { retry_after },
            NoneWell::Down => Refusal::NoHealthyUpstream {
                retry_after: upstream
                    .health
                    .as_ref()
                    .map_or(Duration::ZERO, |probe| probe.interval),
            },
            NoneWell::Unresolved => {
                Refusal::NoHealthyUpstream { retry_after: super::resolve::RETRY_EVERY }
            }
        })?;
        Ok(order.map(|index| Some(upstream.servers[index?].clone())))
    }

    /// Sends to one server: over a connection that is there, and where that fails, over a new one.
    ///
    /// # Errors
    /// What ends the request. The inner error: it may be sent to another server.
    async fn send_to(
        &self,
        server: &Arc<Server>,
        place: Place,
        attempts: &Attempts<'_>,
        now: &mut Instant,
    ) -> Result<Result<Response<Body>, Refusal>, Refusal> {
        let upstream = attempts.upstream;
        let key = Key { server: server.id(), tls: upstream.tls.as_ref().map_or(0, |tls| tls.id()) };
        let mut may_be_pooled = true;
        loop {
            let found = self.line(server, attempts, key, may_be_pooled, now).await;
            let (mut line, is_pooled) = match found {
                Ok(line) => line,
                Err(error) => {
                    server.observe(Outcome::Failed, time::monotonic());
                    return Ok(Err(refusal_of(&error, upstream)));
                }
            };
            let Lost { fate, detail } = match attempts.send(&mut line, *now).await {
                Sent::Answered(response) => {
                    *now = time::monotonic();
                    server.observe(Outcome::Answered, *now);
                    attempts.body.leave();
                    let lease = self.pool.lend(line, key, upstream.name.clone(), place);
                    // Nobody asked for another protocol, so nothing may follow such a head.
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS
                        && attempts.purpose == Purpose::Requests
                    {
                        return Err(Refusal::UpstreamFailed {
                            detail: "switches protocols unasked".to_owned(),
                        });
                    }
                    let sent = attempts.body.clone();
                    let idle_timeout = upstream.idle_timeout;
                    let mut response = response.map(|arriving| {
                        let body = UpstreamBody::new(arriving, lease, sent, idle_timeout, *now);
                        Body::upstream(body)
                    });
                    *response.version_mut() = Version::HTTP_11;
                    return Ok(Ok(response));
                }
                Sent::Late(refusal) => {
                    if matches!(refusal, Refusal::UpstreamTimeout { .. }) {
                        server.observe(Outcome::Failed, time::monotonic());
                    }
                    return Err(refusal);
                }
                Sent::Lost(lost) => lost,
            };
            self.pool.forget(key, &line);
            // A connection that was closed while it lay idle says nothing about its server.
            if !is_pooled && fate == Fate::Unknown {
                server.observe(Outcome::Failed, time::monotonic());
            }
            let refusal = Refusal::UpstreamFailed { detail };
            if !is_safe(fate, &attempts.head.method, attempts.body.is_touched()) {
                return Err(refusal);
            }
            if fate != Fate::NotSent && !self.repeat(upstream) {
                return Err(refusal);
            }
            if !is_pooled || !may_be_pooled {
                return Ok(Err(refusal));
            }
            may_be_pooled = false;
            *now = time::monotonic();
        }
    }

    /// Whether the upstream's budget has one more repetition.
    fn repeat(&self, upstream: &Upstream) -> bool {
        let mut accounts = self.accounts.borrow_mut();
        accounts.get_mut(&upstream.name).is_some_and(|account| {
            let may = account.budget.take();
            account.repeated += u64::from(may);
            may
        })
    }

    /// A connection, and whether it was there already. Making one takes time, and `now` is set anew.
    async fn line(
        &self,
        server: &Arc<Server>,
        attempts: &Attempts<'_>,
        key: Key,
        may_be_pooled: bool,
        now: &mut Instant,
    ) -> Result<(Line, bool), DialError> {
        let Attempts { upstream, purpose, .. } = attempts;
        if may_be_pooled && let Some(line) = self.pool.take(key, *purpose, *now) {
            return Ok((line, true));
        }
        let is_surely_shared =
            upstream.protocol == UpstreamProtocol::Http2 && *purpose == Purpose::Requests;
        let shared = match purpose {
            Purpose::Requests => self.pool.dialling(key, is_surely_shared),
            Purpose::Upgrade => None,
        };
        let _turn = match &shared {
            Some(dialling) => {
                let turn = tokio::time::timeout(upstream.connect_timeout, dialling.lock()).await;
                let turn = turn.map_err(|_| DialError::TooLate)?;
                *now = time::monotonic();
                // Whoever was first has made one for all.
                if let Some(line) = self.pool.take(key, *purpose, *now) {
                    return Ok((line, true));
                }
                Some(turn)
            }
            None => None,
        };
        // In memory of its own: most requests find a connection, and need not carry a handshake's state.
        let dialled = Box::pin(dial(server, upstream, *purpose)).await?;
        *now = time::monotonic();
        Ok((self.pool.enter(key, *purpose, dialled), false))
    }
}

impl Attempts<'_> {
    /// A place at the server, if there is one for such a request.
    fn place(&self, server: &Server) -> Option<Place> {
        if self.body.has_come_whole() {
            return server.place();
        }
        let slot = server.slot()?;
        let place = server.place()?;
        self.body.occupy(slot);
        Some(place)
    }

    /// Waits for one, and meanwhile for the rest of a body that is short.
    async fn wait_for_place(&self, server: &Server) -> Option<Place> {
        let Upstream { max_waiting, connect_timeout, .. } = *self.upstream;
        let until = time::monotonic() + connect_timeout;
        if !self.body.has_come_whole() {
            let slot = async {
                match server.wait_for_slot(max_waiting, connect_timeout).await {
                    Some(slot) => slot,
                    // Who waits for its own client alone is in nobody's way.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.body.come_whole() => {}
                slot = slot => self.body.occupy(slot),
                () = tokio::time::sleep(connect_timeout) => return None,
            }
        }
        let left = until.saturating_duration_since(time::monotonic());
        let place = match server.place() {
            Some(place) => Some(place),
            None => server.wait_for_place(max_waiting, left).await,
        };
        if place.is_none() {
            self.body.leave();
        }
        place
    }

    async fn send(&self, line: &mut Line, now: Instant) -> Sent {
        let outgoing = self.body.attempt();
        match line {
            Line::Http1(connection) => {
                let sending = async {
                    let introduced = Some(self.introduced);
                    let response =
                        connection.ask(self.head, introduced, outgoing, self.spare).await?;
                    Ok(response.map(|()| Arriving::Http1))
                };
                self.answer(sending, now).await
            }
            Line::Http2(stream) => {
                let mut head = http2_form(self.head, self.upstream);
                self.introduced.write(&mut head.headers);
                let request = Request::from_parts(head, outgoing);
                let mut sender = stream.sender();
                let sending = async {
                    let sent = sender.try_send_request(request).await;
                    sent.map(|response| response.map(Arriving::Http2)).map_err(lost)
                };
                self.answer(sending, now).await
            }
        }
    }

    /// Waits for the head of the answer: while the body is under way for something to move, then for
    /// the answer.
    async fn answer(
        &self,
        sending: impl Future<Output = Result<Response<Arriving>, Lost>>,
        begun_at: Instant,
    ) -> Sent {
        let mut sending = pin!(sending);
        loop {
            let body = &self.body;
            let (waited, from) = if body.has_ended() {
                (self.upstream.response_timeout, body.moved_at().max(begun_at))
            } else {
                (self.upstream.idle_timeout, body.moved_at().max(begun_at))
            };
            let until = from + waited;
            match tokio::time::timeout_at(until.into(), &mut sending).await {
                Ok(Ok(response)) => return Sent::Answered(response),
                Ok(Err(lost)) => return Sent::Lost(lost),
                // Something may have moved meanwhile.
                Err(_) if until < body.moved_at() + waited => {}
                Err(_) if !body.has_ended() && body.is_waited_for() => {
                    return Sent::Late(Refusal::BodyTooSlow);
                }
                Err(_) => return Sent::Late(Refusal::UpstreamTimeout { waited }),
            }
        }
    }
}

/// What is certain about a request that an HTTP/2 connection did not carry to its answer.
fn lost(mut error: hyper::client::conn::TrySendError<Request<Outgoing>>) -> Lost {
    let was_returned = error.take_message().is_some();
    let error = error.into_error();
    let fate = if was_returned { Fate::NotSent } else { fate(&error) };
    Lost { fate, detail: chain(&error) }
}

/// What is certain about a request whose connection or stream failed.
fn fate(error: &hyper::Error) -> Fate {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            // Only streams above the last one that GOAWAY names end by it.
            if error.is_remote() && (is_refused || error.is_go_away()) {
                return Fate::Unprocessed;
            }
        }
        cause = error.source();
    }
    Fate::Unknown
}

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn refusal_of(error: &DialError, upstream: &Upstream) -> Refusal {
    match error {
        DialError::TooLate => Refusal::UpstreamTimeout { waited: upstream.connect_timeout },
        error => Refusal::UpstreamUnreachable { detail: error.to_string() },
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

/// An HTTP/1.1 server is asked with a Host (RFC 9112 section 3.2); a client over HTTP/2 names the authority
/// in the target instead, of which path and query alone are passed on.
fn name_host(head: &mut Parts) {
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    head.version = Version::HTTP_11;
}

/// An HTTP/2 server is asked with scheme and authority in the target, and no Host (RFC 9113 section
/// 8.3.1).
fn http2_form(head: &Parts, upstream: &Upstream) -> Parts {
    let mut head = head.clone();
    // Over HTTP/2 nothing belongs to one connection but `TE: trailers` (RFC 9113 section 8.2.2).
    head.headers.remove(header::CONNECTION);
    let host = head.headers.remove(header::HOST);
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    let authority = host.and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    // A client of HTTP/1.0 names none.
    let fallback = || upstream.servers.first()?.address().to_string().parse().ok();
    parts.authority = authority.or_else(fallback);
    parts.path_and_query.get_or_insert(uri::PathAndQuery::from_static("/"));
    parts.scheme = Some(match upstream.tls {
        Some(_) => uri::Scheme::HTTPS,
        None => uri::Scheme::HTTP,
    });
    if let Ok(uri) = Uri::from_parts(parts) {
        head.uri = uri;
    }
    head.version = Version::HTTP_2;
    head
}
