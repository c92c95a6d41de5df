//! A crowd that holds on: slow heads, stalled bodies, idle connections, all at once, and a good client
//! among them. The good one is served; the others are closed by their deadlines; what they took is given
//! back.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Gateway, SOON},
        site::{self, HOST, SERVER, Site},
    },
};

/// Handshakes at once: more would wait for each other beyond the gateway's deadline for one.
const AT_ONCE: usize = 32;
/// Good requests before the crowd, and in it.
const GOOD: usize = 200;
/// What an open and silent connection may cost, its part of the sessions to resume included.
const COSTS_MAX_KIB: u64 = 20;
/// Connections of one address: a client has some 28,000 ports.
const OF_AN_ADDRESS: usize = 20_000;
/// How many hold on in the largest test, unless this variable says another number.
const CROWD: usize = 18_000;
const CROWD_VARIABLE: &str = "PORTCULLIS_CROWD";
/// Descriptors that a process of the test needs besides its connections.
const DESCRIPTORS_MORE: usize = 1_500;
/// What may stay when everybody has gone, but for sessions to resume: room for the next.
const LEFT_MAX_KIB: u64 = 64 * 1024;
/// The gateway looks every ten seconds at what it can give back.
const SETTLES: Duration = Duration::from_secs(25);
/// For anything that a loaded machine has to get done.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) type Stream = TlsStream<TcpStream>;

/// How somebody holds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Half a head.
    SlowHead,
    /// A head and a piece of its body.
    StalledBody,
    /// A whole request, and then nothing.
    Idle,
    /// Nothing but the handshake.
    Silent,
}

/// A client that comes as a stranger each time.
pub(crate) fn connector(site: &Site) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(site.authority.certificate())? {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_file_iter(&site.client.certificate)?;
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&site.client.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each is a stranger; and thousands of kept tickets would be this process' memory, not the other's.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Connects and shakes hands, patiently.
pub(crate) async fn connect(connector: &TlsConnector) -> Result<Stream> {
    connect_from(connector, site::CLIENT.into()).await
}

async fn connect_from(connector: &TlsConnector, source: IpAddr) -> Result<Stream> {
    let connected = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let plain = socket.connect(SERVER).await?;
        Ok(connector.connect(ServerName::try_from(HOST)?, plain).await?)
    };
    timeout(PATIENCE, connected).await.context("a handshake")?
}

/// Sends a request and reads its answer.
pub(crate) async fn ask(stream: &mut Stream) -> Result<String> {
    let request = format!("GET /public HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    answered(stream).await
}

/// Reads an answer, which says its length.
async fn answered(stream: &mut Stream) -> Result<String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = timeout(PATIENCE, stream.read(&mut buffer)).await??;
        ensure!(count > 0, "closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).context("a length")?;
            if body.len() >= length.lines().next().unwrap_or_default().parse::<usize>()? {
                return Ok(text.into_owned());
            }
        }
    }
}

async fn hold(connector: &TlsConnector, manner: Manner, source: IpAddr) -> Result<Stream> {
    let mut stream = connect_from(connector, source).await?;
    let sent = match manner {
        Manner::SlowHead => format!("GET /public HTTP/1.1\r\nHost: {HOST}\r\nX: "),
        Manner::StalledBody => {
            format!("POST /public HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nx")
        }
        Manner::Idle => {
            let answer = ask(&mut stream).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            return Ok(stream);
        }
        Manner::Silent => return Ok(stream),
    };
    stream.write_all(sent.as_bytes()).await?;
    Ok(stream)
}

/// So many who hold on in one way, from these addresses.
async fn crowd(
    connector: &TlsConnector,
    manner: Manner,
    count: usize,
    sources: &[IpAddr],
) -> Result<Vec<Stream>> {
    let hold = |number: usize| hold(connector, manner, sources[number / OF_AN_ADDRESS]);
    let held = stream::iter(0..count).map(hold).buffer_unordered(AT_ONCE);
    held.try_collect().await.with_context(|| format!("{manner:?}"))
}

/// Waits until the gateway has closed it.
async fn closed(mut stream: Stream) -> Result<()> {
    let mut buffer = [0; 1024];
    let ended = async {
        // An end without a farewell is an end.
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    timeout(PATIENCE, ended).await.context("a connection is still open")
}

/// What a good client waits for its answers: the median and the worst but one percent.
async fn good(connector: &TlsConnector) -> Result<(Duration, Duration)> {
    let mut waits = Vec::new();
    let mut stream = connect(connector).await?;
    for number in 0..GOOD {
        // Every tenth is somebody new.
        if number % 10 == 9 {
            stream = connect(connector).await?;
        }
        let asked: Instant = clock::now();
        let answer = ask(&mut stream).await?;
        waits.push(asked.elapsed());
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    waits.sort_unstable();
    Ok((waits[waits.len() / 2], waits[waits.len() * 99 / 100]))
}

/// Takes as many descriptors as `wanted` connections need, or as may be had; so many connections it is
/// then.
fn room_for(wanted: usize) -> Result<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = (wanted + DESCRIPTORS_MORE) as u64;
    // Only some may raise what they may have.
    let raised = setrlimit(Resource::RLIMIT_NOFILE, needed.max(hard), needed.max(hard)).is_ok();
    let had = if raised { needed.max(hard) } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, had, had)?;
    Ok(wanted.min(usize::try_from(had)?.saturating_sub(DESCRIPTORS_MORE)))
}

/// Addresses of the client for so many connections.
fn sources(site: &Site, count: usize) -> Result<Vec<IpAddr>> {
    let more = (1..count.div_ceil(OF_AN_ADDRESS))
        .map(|number| site.client_address(u8::try_from(100 + number)?));
    std::iter::once(Ok(site::CLIENT.into())).chain(more).collect()
}

/// Runs it in the client's namespace, whose sockets it makes.
pub(crate) fn within<T: Send>(
    site: &Site,
    work: impl AsyncFnOnce() -> Result<T> + Send,
) -> Result<T> {
    site.client_host.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work())
    })?
}

/// `sessions` as in `[listener.tls]`: those to resume stay when their connections have gone, and are
/// bounded by their number.
fn patient(label: &str, clients: &str, sessions: usize) -> Result<(Site, Gateway)> {
    let mut site = Site::new(binary(), label)?;
    site.config.process = "max_connections = 200000\nmax_connections_per_source = 30000".to_owned();
    site.config.tls = format!("sessions = {sessions}");
    site.config.bans = "enabled = false".to_owned();
    site.config.clients = format!("[clients]\nhandshake = \"1m\"\n{clients}");
    let gateway = site.start()?;
    Ok((site, gateway))
}

fn survive(label: &str, count: usize, deadline: &str) -> Result<()> {
    let clients =
        format!("head = \"{deadline}\"\nbody = {{ grace = \"{deadline}\", rate = \"1KiB/s\" }}\n");
    // The upstream, which is part of this process, has two for each stalled body.
    let (needed, count_max) = (count + count / 2, room_for(count + count / 2)?);
    ensure!(count_max == needed, "there are {count_max} descriptors instead of {needed}");
    let (site, gateway) = patient(label, &clients, 0)?;
    let connector = connector(&site)?;
    let from = sources(&site, count)?;
    let start_kib = gateway.resident_kib()?;
    let (slow, stalled, idle) = (count / 2, count / 4, count / 4);
    let (alone, among, full_kib, idle) = within(&site, async || {
        let alone = good(&connector).await?;
        let idle = crowd(&connector, Manner::Idle, idle, &from).await?;
        let slow = crowd(&connector, Manner::SlowHead, slow, &from).await?;
        let stalled = crowd(&connector, Manner::StalledBody, stalled, &from).await?;
        let full_kib = gateway.resident_kib()?;
        let among = good(&connector).await?;
        for stream in slow.into_iter().chain(stalled) {
            closed(stream).await?;
        }
        Ok((alone, among, full_kib, idle))
    })?;
    let refused = |reason| gateway.metric("gateway_http_refusals_total", &[("reason", reason)]);
    clock::wait_for("the slow to be counted", SOON, || {
        // Those that the upstream has no room for are told so before.
        let all = refused("request_timeout")? >= slow as f64
            && refused("body_too_slow")? + refused("upstream_overloaded")? >= stalled as f64;
        Ok(all.then_some(()))
    })?;
    drop(idle);
    clock::wait_for("nobody to be left", SOON, || {
        Ok((gateway.metric("gateway_connections", &[])? == 0.0).then_some(()))
    })?;
    let end_kib = left(&gateway, start_kib)?;
    println!(
        "{count} connections: a good client waits {:?} (99 %: {:?}) alone, {:?} ({:?}) among them; \
         resident {start_kib} KiB at the start, {full_kib} KiB full, {end_kib} KiB in the end",
        alone.0, alone.1, among.0, among.1
    );
    // A connection has its TLS session and a few small buffers, not its own stack or thread.
    ensure!(full_kib.saturating_sub(start_kib) < 96 * count as u64 + 65_536, "{full_kib} KiB");
    Ok(())
}

/// Waits until what a crowd took was given back.
fn left(gateway: &Gateway, start_kib: u64) -> Result<u64> {
    clock::wait_for("memory to be given back", PATIENCE, || {
        let kib = gateway.resident_kib()?;
        Ok((kib <= start_kib + LEFT_MAX_KIB).then_some(kib))
    })
}

#[test]
fn a_good_client_is_served_among_a_crowd_that_holds_on() -> Result<()> {
    privileged!();
    survive("crowd", 1_200, "8s")
}

/// Half of an upstream's places are for bodies that are still to come; who has sent all is not among them.
#[test]
fn stalled_bodies_leave_places_for_others() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "stalled")?;
    site.config.routes.insert_str(0, "max_requests = 4\n");
    site.config.bans = "enabled = false".to_owned();
    // Nobody is told that it is slow while the test lasts.
    site.config.clients = "[clients]\nbody = { grace = \"5m\", rate = \"1KiB/s\" }\n".to_owned();
    let gateway = site.start()?;
    let connector = connector(&site)?;
    let (stalling, slots) = (7, 2);
    let refused =
        || gateway.metric("gateway_http_refusals_total", &[("reason", "upstream_overloaded")]);
    let open = || gateway.metric("gateway_upstream_requests_open", &[("upstream", "orders")]);
    within(&site, async || {
        let stalled =
            crowd(&connector, Manner::StalledBody, stalling, &[site::CLIENT.into()]).await?;
        clock::wait_for("those that there is no place for to be refused", SOON, || {
            Ok((refused()? >= (stalling - slots) as f64).then_some(()))
        })?;
        ensure!(open()? == slots as f64, "{} are open", open()?);
        let mut good = connect(&connector).await?;
        for _ in 0..3 {
            for body in ["", "x", "a body that comes with its head"] {
                let method = if body.is_empty() { "GET" } else { "POST" };
                let length = body.len();
                let request = format!(
                    "{method} /public HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                good.write_all(request.as_bytes()).await?;
                let answer = answered(&mut good).await?;
                ensure!(answer.starts_with("HTTP/1.1 200 "), "{request}: {answer}");
            }
        }
        ensure!(open()? == slots as f64, "{} are open", open()?);
        drop(stalled);
        Ok(())
    })?;
    clock::wait_for("the places to be given back", SOON, || Ok((open()? == 0.0).then_some(())))
}

#[test]
#[ignore = "takes minutes and 20,000 descriptors: --ignored"]
fn a_good_client_is_served_among_twelve_thousand() -> Result<()> {
    privileged!();
    survive("crowd-12000", 12_000, "2m")
}

#[test]
#[ignore = "takes minutes and 20,000 descriptors: --ignored"]
fn an_idle_connection_costs_little() -> Result<()> {
    privileged!();
    let wanted = match std::env::var(CROWD_VARIABLE) {
        Ok(number) => number.parse().with_context(|| format!("{CROWD_VARIABLE}={number}"))?,
        Err(_) => CROWD,
    };
    let most = room_for(wanted)?;
    if most < wanted {
        println!("{most} instead of {wanted}: there are no more descriptors");
    }
    for (manner, count, sessions) in
        [(Manner::Silent, most, 20_000), (Manner::Silent, most, 0), (Manner::Idle, most / 2, 0)]
    {
        // The longest there are: handshakes of a crowd take minutes.
        let clients = "head = \"10m\"\nidle = \"10m\"\n";
        let (site, gateway) = patient("idle", clients, sessions)?;
        let connector = connector(&site)?;
        let from = sources(&site, most)?;
        let start_kib = within(&site, async || {
            let alone = good(&connector).await?;
            let start_kib = gateway.resident_kib()?;
            let held = crowd(&connector, manner, count, &from).await?;
            let kib = settled(&gateway)?.saturating_sub(start_kib);
            let among = good(&connector).await?;
            println!(
                "{count} connections, {manner:?}, up to {sessions} sessions: none refused, {:.2} KiB \
                 each ({kib} KiB); a good client waits {:?} (99 %: {:?}) alone, {:?} ({:?}) beside them",
                kib as f64 / count as f64,
                alone.0,
                alone.1,
                among.0,
                among.1
            );
            ensure!(kib <= COSTS_MAX_KIB * count as u64, "{kib} KiB");
            ensure!(gateway.metric("gateway_connections", &[])? >= count as f64);
            drop(held);
            Ok(start_kib)
        })?;
        clock::wait_for("nobody to be left", PATIENCE, || {
            Ok((gateway.metric("gateway_connections", &[])? == 0.0).then_some(()))
        })?;
        let left_kib = if sessions == 0 { left(&gateway, start_kib)? } else { settled(&gateway)? };
        println!("{left_kib} KiB when all have gone, {start_kib} KiB before");
    }
    Ok(())
}

/// The least that is occupied within some looks of the gateway at what it can give back.
fn settled(gateway: &Gateway) -> Result<u64> {
    let until = clock::now() + SETTLES;
    let mut least_kib = u64::MAX;
    while clock::now() < until {
        least_kib = least_kib.min(gateway.resident_kib()?);
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(least_kib)
}
