//! A mutual-TLS client of our own for what `curl` cannot do: a fixed rate over kept connections, and
//! requests one after another with the moment of each answer.
//!
//! The rate is an open loop: each request has its intended moment, and its latency counts from there,
//! so that a server that stalls pays for all the requests that the stall kept from being sent.

use std::{
    io::{BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use socket2::{Domain, SockRef, Socket, Type};

use super::{client::Credential, clock, flood, netns};

/// An answer later than this is lost: longer than TCP's first retransmissions, so that a request
/// which only came late is told from one that never came.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// In a crowd beside a full build an answer may take long; lost is what never comes.
const CROWD_LIMIT: Duration = Duration::from_secs(30);
/// A test asks for no more.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Whom to talk to, as whom, from where.
#[derive(Clone, Debug)]
pub struct Target {
    /// Handle of the namespace to connect from.
    pub namespace: std::path::PathBuf,
    /// Address to connect from, when it matters.
    pub source: Option<IpAddr>,
    /// Address to connect to.
    pub server: SocketAddr,
    /// Name to ask for.
    pub host: String,
    tls: Arc<ClientConfig>,
}

impl Target {
    /// A target reached with a client certificate, trusting one authority.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new(
        namespace: &netns::Namespace,
        server: SocketAddr,
        host: &str,
        authority: &Path,
        credential: &Credential,
    ) -> Result<Target> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority)? {
            roots.add(certificate?)?;
        }
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(&credential.certificate)?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&credential.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Target {
            namespace: namespace.path(),
            source: None,
            server,
            host: host.to_owned(),
            tls: Arc::new(tls),
        })
    }

    /// The same from this address.
    pub fn from(&self, source: IpAddr) -> Target {
        Target { source: Some(source), ..self.clone() }
    }

    /// Connects, from a thread that is in the namespace already, within `limit`.
    fn connect_here(&self, limit: Duration) -> Result<Connection> {
        let socket = Socket::new(Domain::for_address(self.server), Type::STREAM, None)?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&self.server.into(), limit)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let name = ServerName::try_from(self.host.clone())?;
        let session = ClientConnection::new(Arc::clone(&self.tls), name)?;
        let mut tls = StreamOwned::new(session, stream);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Connection { reader: BufReader::new(tls), host: self.host.clone(), is_last: false })
    }

    /// Connects from the namespace.
    ///
    /// # Errors
    /// When the handshake does not succeed within 15 s.
    pub fn connect(&self) -> Result<Connection> {
        thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                netns::enter(&self.namespace)?;
                self.connect_here(ANSWER_LIMIT)
            });
            connecting.join().unwrap_or_else(|_panic| bail!("the connecting thread panicked"))
        })
    }
}

/// A kept connection.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    host: String,
    is_last: bool,
}

impl Connection {
    /// Asks for a path with a token and reads the whole answer; gives its status.
    ///
    /// # Errors
    /// When the connection breaks or no whole answer comes in time.
    pub fn ask(&mut self, path: &str, token: &str) -> Result<u16> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n",
            self.host
        );
        let stream = self.reader.get_mut();
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        self.read_answer()
    }

    /// Whether the last answer asked to open another connection next time.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Whether an earlier session was resumed.
    pub fn was_resumed(&self) -> bool {
        self.reader.get_ref().conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Waits until the server has ended the connection; false when it has not in time.
    pub fn is_ended(&mut self) -> bool {
        match self.reader.read(&mut [0]) {
            Ok(octets) => octets == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    fn read_answer(&mut self) -> Result<u16> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.reader.read_exact(&mut byte)?;
            head.push(byte[0]);
            ensure!(head.len() <= MAX_ANSWER_BYTES, "the answer's head has no end");
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("status")?;
        self.is_last = head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
        });
        let length = length.context("an answer without content-length")??;
        ensure!(length <= MAX_ANSWER_BYTES, "an answer of {length} bytes");
        self.reader.read_exact(&mut vec![0; length])?;
        Ok(status)
    }

    /// Closes so that nothing is ever sent again but one reset: no retransmission of this connection
    /// will be counted as somebody else's packet.
    pub fn reset(self) {
        // A connection that is gone already needs no reset.
        let _gone = SockRef::from(&self.reader.get_ref().sock).set_linger(Some(Duration::ZERO));
    }
}

/// A fixed rate to keep up.
#[derive(Clone, Debug)]
pub struct Rate {
    /// Requests a second, over all connections.
    pub per_s: u32,
    /// Kept connections; the requests take turns.
    pub connections: u32,
    /// For this long.
    pub lasts: Duration,
    /// The core to run on, when it matters.
    pub core: Option<usize>,
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests that had their moment.
    pub intended: usize,
    /// Answered with 200, in time.
    pub served: usize,
    /// Broken, late or not answered, with what happened first.
    pub lost: Vec<String>,
    /// From the intended moment to the whole answer, ascending; answered requests only.
    pub latencies: Vec<Duration>,
}

impl Outcome {
    /// Counts a request that was to be sent at that moment and has ended now.
    pub fn add(&mut self, moment: Instant, served: Result<()>) {
        match served {
            Ok(()) => {
                self.served += 1;
                self.latencies.push(clock::now() - moment);
            }
            Err(error) => self.lost.push(format!("{error:#}")),
        }
    }

    /// The latency that `share` of a hundred answered requests do not exceed.
    pub fn percentile(&self, share: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get((self.latencies.len() * share / 100).min(last))
            .copied()
            .unwrap_or_default()
    }
}

/// Keeps up a rate of requests for `path` with `token`, and reports each.
///
/// # Errors
/// When the connections cannot be made before the first request; later failures are results.
pub fn keep_rate(target: &Target, rate: &Rate, path: &str, token: &str) -> Result<Outcome> {
    let period = Duration::from_secs(1) / rate.per_s.max(1);
    let total = (rate.lasts.as_secs_f64() * f64::from(rate.per_s)) as u32;
    let workers = rate.connections.max(1);
    thread::scope(|scope| {
        let ready = Arc::new(std::sync::Barrier::new(workers as usize));
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let ready = Arc::clone(&ready);
                scope.spawn(move || {
                    let connected = prepare(target, rate.core);
                    // Everybody arrives here, also who failed, or the others would wait for ever.
                    ready.wait();
                    let start = clock::now();
                    let moments = (worker..total).step_by(workers as usize);
                    let moments = moments.map(|number| start + period * number);
                    Ok(keep_turns(target, connected?, moments, path, token))
                })
            })
            .collect();
        let mut whole = Outcome::default();
        for thread in threads {
            let part: Result<Outcome> =
                thread.join().unwrap_or_else(|_panic| bail!("a client thread panicked"));
            let part = part?;
            whole.intended += part.intended;
            whole.served += part.served;
            whole.lost.extend(part.lost);
            whole.latencies.extend(part.latencies);
        }
        whole.latencies.sort_unstable();
        Ok(whole)
    })
}

/// Clients that ask again and again until they are told to stop, as many do at a real gateway.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Clients that keep their connections for as long as the server does.
    pub kept: usize,
    /// Clients that open a new one for each request.
    pub new: usize,
    /// Between the answer and the next request of each.
    pub pause: Duration,
}

/// Has the crowd ask for `path` until `stop`; every request must be answered with 200.
///
/// # Errors
/// When a client's thread cannot enter the namespace; what became of requests is the result.
pub fn keep_busy(target: &Target, crowd: Crowd, path: &str, stop: &AtomicBool) -> Result<Outcome> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..crowd.kept + crowd.new)
            .map(|number| {
                let is_kept = number < crowd.kept;
                scope.spawn(move || {
                    netns::enter(&target.namespace)?;
                    Ok(ask_until(target, is_kept, crowd.pause, path, stop))
                })
            })
            .collect();
        let mut whole = Outcome::default();
        for client in clients {
            let part: Result<Outcome> =
                client.join().unwrap_or_else(|_panic| bail!("a client thread panicked"));
            let part = part?;
            whole.intended += part.intended;
            whole.served += part.served;
            whole.lost.extend(part.lost);
        }
        Ok(whole)
    })
}

fn ask_until(
    target: &Target,
    is_kept: bool,
    pause: Duration,
    path: &str,
    stop: &AtomicBool,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) && !clock::interrupted() {
        outcome.intended += 1;
        let open = match connection.take() {
            Some(open) => Ok(open),
            None => target.connect_here(CROWD_LIMIT).context("connecting"),
        };
        let answered = open.and_then(|mut open| {
            let status = open.ask(path, "").context("asking")?;
            ensure!(status == 200, "answered with {status}");
            Ok(open)
        });
        match answered {
            Ok(open) => {
                outcome.served += 1;
                // Whoever is told to go elsewhere does.
                connection = Some(open).filter(|open| is_kept && !open.is_last());
            }
            Err(error) => outcome.lost.push(format!("{error:#}")),
        }
        thread::sleep(pause);
    }
    outcome
}

fn prepare(target: &Target, core: Option<usize>) -> Result<Connection> {
    netns::enter(&target.namespace)?;
    if let Some(core) = core {
        flood::pin_to_core(core)?;
    }
    target.connect_here(ANSWER_LIMIT)
}

/// One connection's turns. After a failure it connects anew for the next turn.
fn keep_turns(
    target: &Target,
    connected: Connection,
    moments: impl Iterator<Item = Instant>,
    path: &str,
    token: &str,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection = Some(connected);
    for moment in moments {
        if clock::interrupted() {
            break;
        }
        thread::sleep(moment.saturating_duration_since(clock::now()));
        outcome.intended += 1;
        let answered = match connection.take() {
            Some(open) => Ok(open),
            None => target.connect_here(ANSWER_LIMIT),
        }
        .and_then(|mut open| {
            let status = open.ask(path, token)?;
            ensure!(status == 200, "answered with {status}");
            Ok(open)
        });
        match answered {
            Ok(open) => {
                connection = Some(open);
                outcome.served += 1;
                outcome.latencies.push(clock::now() - moment);
            }
            Err(error) => outcome.lost.push(format!("{error:#}")),
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let outcome = Outcome { latencies, ..Outcome::default() };
        for (share, milliseconds) in [(0, 1), (50, 51), (99, 100), (100, 100)] {
            assert_eq!(outcome.percentile(share), Duration::from_millis(milliseconds));
        }
        assert_eq!(Outcome::default().percentile(99), Duration::ZERO);
    }
}
