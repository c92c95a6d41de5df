//! Good clients of all three protocols, who ask again and again, each from an address of its own, and
//! tell what became of each request. They lie about who they are in every header, as nobody believes.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::Sender,
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    net::TcpSocket,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::judge::{self, IMPOSTOR, LOAD, Outcome, Seen};
use crate::{
    crowd::within,
    harness::{
        client::Credential,
        clock,
        site::{HOST, SERVER, Site},
    },
    http3::client::{Client as Http3, Identity, request},
};

/// Whoever hears nothing for this long has been forgotten, also on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than a farewell takes.
const FAREWELL: Duration = Duration::from_secs(5);
/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(60);
/// After a failure: nobody asks a server that is gone as fast as one can.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(300);
/// Identity headers that are lies; the last two are the first in other spellings.
const LIES: [&str; 6] =
    ["x-user-id", "x-user-roles", "x-tenant-id", "x-client-verify", "x_user_id", "x-user_id"];

/// Which HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
    Http3,
}

impl Protocol {
    fn word(self) -> &'static str {
        match self {
            Protocol::Http1 => "h1",
            Protocol::Http2 => "h2",
            Protocol::Http3 => "h3",
        }
    }
}

/// One client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) source: Ipv4Addr,
    /// Requests on one connection.
    pub(super) keeps: u32,
    credential: Credential,
}

/// The load: each protocol on kept connections and on new ones.
const CLIENTS: [(Protocol, u32); 6] = [
    (Protocol::Http1, u32::MAX),
    (Protocol::Http1, 3),
    (Protocol::Http2, u32::MAX),
    (Protocol::Http2, 10),
    (Protocol::Http3, u32::MAX),
    (Protocol::Http3, 10),
];
/// The first client's last octet.
const FIRST_ADDRESS: u8 = 10;

impl Client {
    /// All of them, with certificates and addresses of their own.
    pub(super) fn all(site: &Site) -> Result<Vec<Client>> {
        let client = |(at, (protocol, keeps)): (usize, &(Protocol, u32))| {
            let name = format!("{LOAD}{at}");
            let identity = format!("spiffe://site.test/{name}");
            let credential = site.authority.client(&name, &["--spiffe", &identity])?;
            let address = site.client_address(FIRST_ADDRESS + u8::try_from(at)?)?;
            let IpAddr::V4(source) = address else { return Err(anyhow!("{address}")) };
            Ok(Client { name, protocol: *protocol, source, keeps: *keeps, credential })
        };
        CLIENTS.iter().enumerate().map(client).collect()
    }
}

/// What the clients and those who break things share.
#[derive(Debug)]
pub(super) struct Shared {
    stop: AtomicBool,
    /// A token for each client, replaced together.
    tokens: Mutex<Arc<Vec<String>>>,
    /// Counts the deaths of servers, which nobody else tells a client of HTTP/3.
    deaths: watch::Sender<u32>,
    next: AtomicU64,
}

impl Shared {
    pub(super) fn new(tokens: Vec<String>) -> Shared {
        Shared {
            stop: AtomicBool::new(false),
            tokens: Mutex::new(Arc::new(tokens)),
            deaths: watch::Sender::new(0),
            next: AtomicU64::new(1),
        }
    }

    /// A number that no other request has.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn tokens(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.tokens.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From the next request on these are used; gives those from before, whose requests under way hold
    /// them for as long.
    pub(super) fn replace_tokens(&self, tokens: Vec<String>) -> Arc<Vec<String>> {
        let mut present = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *present, Arc::new(tokens))
    }

    /// The server is gone, with all that it knew of connections over UDP.
    pub(super) fn tell_of_death(&self) {
        self.deaths.send_modify(|deaths| *deaths += 1);
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks until told to stop.
pub(super) fn live(
    site: &Site,
    clients: &[Client],
    shared: &Shared,
    seen: Sender<Seen>,
) -> Result<()> {
    within(site, async || {
        let lives = clients.iter().enumerate().map(|(at, client)| {
            let seen = seen.clone();
            async move { live_one(site, client, at, shared, seen).await }
        });
        try_join_all(lives).await.map(drop)
    })
}

async fn live_one(
    site: &Site,
    client: &Client,
    at: usize,
    shared: &Shared,
    seen: Sender<Seen>,
) -> Result<()> {
    let dialer = Dialer::new(site, client)?;
    let mut deaths = shared.deaths.subscribe();
    let mut open: Option<(Open, Instant, u32)> = None;
    while !shared.stop.load(Ordering::Relaxed) && !clock::interrupted() {
        let tokens = shared.tokens();
        let token = tokens.get(at).context("a token for each")?;
        let path = judge::path(true, &client.name, shared.number());
        let asked = clock::now();
        let connected = open.as_ref().map_or(asked, |(_, connected, _)| *connected);
        let exchange = async {
            let (mut connection, requests) = match open.take() {
                Some((connection, _, requests)) => (connection, requests),
                None => (dialer.connect().await?, 0),
            };
            let outcome = if requests > 0 && connection.is_told_to_go() {
                Outcome::SentOn
            } else {
                connection.ask(&path, token, requests > 0).await?
            };
            anyhow::Ok((connection, requests + 1, outcome))
        };
        let is_over_udp = client.protocol == Protocol::Http3;
        let (kept, outcome) = tokio::select! {
            // Whoever has an answer and the news of a death at once takes the answer.
            biased;
            asked = timeout(PATIENCE, exchange) => match asked {
                Ok(Ok((connection, requests, outcome))) => (Some((connection, requests)), outcome),
                Ok(Err(error)) => (None, Outcome::Broken(format!("{error:#}"))),
                Err(_elapsed) => (None, Outcome::Broken(format!("nothing within {PATIENCE:?}"))),
            },
            _ = deaths.changed(), if is_over_udp => (None, Outcome::GivenUp),
        };
        drop(tokens);
        let pause = match outcome {
            Outcome::Served => PAUSE,
            // Whoever is sent on goes on.
            Outcome::SentOn => Duration::ZERO,
            Outcome::Refused { .. } | Outcome::Broken(_) | Outcome::GivenUp => PAUSE_AFTER_FAILURE,
        };
        open = kept
            .filter(|(_, requests)| *requests < client.keeps && outcome != Outcome::SentOn)
            .map(|(connection, requests)| (connection, connected, requests));
        let protocol = client.protocol.word();
        let answered = clock::now();
        let told = seen.send(Seen { path, protocol, connected, asked, answered, outcome });
        if told.is_err() {
            return Ok(());
        }
        sleep(pause).await;
    }
    if let Some((Open::Http3(client), ..)) = open {
        // Nobody would know otherwise before the connection has been idle for long. A server that is
        // gone does not answer.
        let _gone = timeout(FAREWELL, client.close()).await;
    }
    Ok(())
}

/// Makes a client's connections; sessions are kept and resumed.
struct Dialer {
    protocol: Protocol,
    source: Ipv4Addr,
    tls: TlsConnector,
    quic: Identity,
}

enum Open {
    Http1 {
        sender: http1::SendRequest<Empty<Bytes>>,
        /// Its last answer said so.
        is_last: bool,
    },
    Http2(http2::SendRequest<Empty<Bytes>>),
    Http3(Http3),
}

impl Dialer {
    fn new(site: &Site, client: &Client) -> Result<Dialer> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(site.authority.certificate())? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(&client.credential.certificate)?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&client.credential.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = match client.protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 | Protocol::Http3 => vec![b"h2".to_vec()],
        };
        Ok(Dialer {
            protocol: client.protocol,
            source: client.source,
            tls: TlsConnector::from(Arc::new(config)),
            quic: Identity::new(site, &client.credential)?,
        })
    }

    async fn connect(&self) -> Result<Open> {
        if self.protocol == Protocol::Http3 {
            let client = Http3::connect_from(self.source, &self.quic, PATIENCE).await;
            return Ok(Open::Http3(client.context("connecting over QUIC")?));
        }
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.source, 0).into())?;
        let plain = socket.connect(SERVER).await.context("connecting")?;
        plain.set_nodelay(true)?;
        let tls = self.tls.connect(ServerName::try_from(HOST)?, plain).await.context("TLS")?;
        let io = TokioIo::new(tls);
        // What breaks a connection is told to whoever asks next on it.
        if self.protocol == Protocol::Http1 {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            return Ok(Open::Http1 { sender, is_last: false });
        }
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Open::Http2(sender))
    }
}

impl Open {
    /// Whether the server has said that nothing more is to be asked here.
    fn is_told_to_go(&self) -> bool {
        match self {
            Open::Http1 { is_last, .. } => *is_last,
            Open::Http2(sender) => sender.is_closed(),
            Open::Http3(client) => client.is_told_to_go(),
        }
    }

    /// Asks; on a connection that `was_used` it may turn out that nothing can be sent any more.
    async fn ask(&mut self, path: &str, token: &str, was_used: bool) -> Result<Outcome> {
        let bearer = format!("Bearer {token}");
        let (status, body) = match self {
            Open::Http3(client) => {
                let mut fields = request("GET", path).to_vec();
                fields.push(("authorization", &bearer));
                fields.extend(LIES.map(|name| (name, IMPOSTOR)));
                let mut exchange = client.begin(&fields).await?;
                exchange.send.finish()?;
                exchange.whole().await.context("asking")?
            }
            Open::Http1 { sender, is_last } => {
                sender.ready().await.context("a kept connection")?;
                let answered = sender.send_request(head(path, &bearer, false)?).await;
                let answered = answered.context("asking")?;
                let fields = answered.headers().get_all("connection");
                *is_last =
                    fields.iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
                whole(answered).await?
            }
            Open::Http2(sender) => {
                // The farewell may come between the last look and the request, which then stays here.
                if sender.ready().await.is_err() && was_used {
                    return Ok(Outcome::SentOn);
                }
                match sender.try_send_request(head(path, &bearer, true)?).await {
                    Ok(answered) => whole(answered).await?,
                    Err(unsent) if was_used && unsent.message().is_some() => {
                        return Ok(Outcome::SentOn);
                    }
                    Err(failed) => return Err(failed.into_error()).context("asking"),
                }
            }
        };
        if status == 200 {
            return Ok(Outcome::Served);
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let word = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        Ok(Outcome::Refused { reason: word("reason"), request_id: word("request_id") })
    }
}

fn head(path: &str, bearer: &str, is_whole: bool) -> Result<http::Request<Empty<Bytes>>> {
    let uri = if is_whole { format!("https://{HOST}{path}") } else { path.to_owned() };
    let mut head = http::Request::get(uri).header("authorization", bearer);
    if !is_whole {
        head = head.header("host", HOST);
    }
    for name in LIES {
        head = head.header(name, IMPOSTOR);
    }
    Ok(head.body(Empty::new())?)
}

async fn whole(answered: http::Response<hyper::body::Incoming>) -> Result<(u16, Vec<u8>)> {
    let status = answered.status().as_u16();
    let body = answered.into_body().collect().await.context("the answer's body")?;
    Ok((status, body.to_bytes().into()))
}
