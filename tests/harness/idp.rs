//! An issuer's server that can misbehave: it gives out a description and a key set, over TLS or not,
//! whole or garbled, at once or in drips, and counts who asked.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::json;

use super::{client::Credential, netns::Namespace, tokens::ISSUER};

/// Where the description is.
pub const DESCRIPTION: &str = "/.well-known/openid-configuration";
/// Where the keys are.
pub const KEYS: &str = "/keys";

/// How it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Well,
    /// With this status and an empty object.
    Status(u16),
    /// With this instead of a document.
    Garbage(&'static str),
    /// With a document of this many octets.
    Huge(usize),
    /// With a redirect to where the keys are.
    Redirect,
    /// One octet a second, so that it never ends in time.
    Drip,
    /// Not at all: it closes.
    Close,
    /// With the description of somebody else.
    Impostor,
}

#[derive(Debug)]
struct Shared {
    manner: Mutex<Manner>,
    jwks: PathBuf,
    base: String,
    asked: AtomicU64,
    stop: AtomicBool,
}

/// The server; it answers until it is dropped.
#[derive(Debug)]
pub struct Idp {
    shared: Arc<Shared>,
}

impl Idp {
    /// Starts one in a namespace. It gives out the key set that is in `jwks` when it is asked.
    /// With a credential it speaks TLS, for the name given with it.
    ///
    /// # Errors
    /// When the address is taken, or the credential is no good.
    pub fn start(
        namespace: &Namespace,
        address: SocketAddr,
        jwks: PathBuf,
        tls: Option<(&str, &Credential)>,
    ) -> Result<Idp> {
        let listener = namespace
            .within(|| TcpListener::bind(address))?
            .with_context(|| format!("issuer on {address}"))?;
        let base = match tls {
            Some((name, _)) => format!("https://{name}:{}", address.port()),
            None => format!("http://{address}"),
        };
        let config = tls.map(|(_, credential)| server_config(credential)).transpose()?;
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Well),
            jwks,
            base,
            asked: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        listener.set_nonblocking(true)?;
        thread::Builder::new().name("issuer".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, config.as_ref(), &shared)
        })?;
        Ok(Idp { shared })
    }

    /// Where its keys are, by URL.
    pub fn keys_url(&self) -> String {
        format!("{}{KEYS}", self.shared.base)
    }

    /// Where its description is, by URL.
    pub fn description_url(&self) -> String {
        format!("{}{DESCRIPTION}", self.shared.base)
    }

    /// From now on it answers like this.
    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Requests so far.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Idp {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

fn server_config(credential: &Credential) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(&credential.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&credential.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
    Ok(Arc::new(config))
}

fn accept(listener: &TcpListener, config: Option<&Arc<ServerConfig>>, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let Ok((stream, _peer)) = listener.accept() else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let shared = Arc::clone(shared);
        let config = config.cloned();
        thread::spawn(move || {
            // Whoever breaks off is the gateway, and says so in its log.
            let _broken = serve(stream, config, &shared);
        });
    }
}

fn serve(stream: TcpStream, config: Option<Arc<ServerConfig>>, shared: &Shared) -> Result<()> {
    stream.set_nonblocking(false)?;
    // Longer than any whole answer takes, so that no thread stays behind.
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    match config {
        Some(config) => answer(StreamOwned::new(ServerConnection::new(config)?, stream), shared),
        None => answer(stream, shared),
    }
}

fn answer<S: Read + Write>(stream: S, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut path = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("GET ") {
            path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
    }
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let manner = shared.manner.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut stream = reader.into_inner();
    let issuer = if manner == Manner::Impostor { "https://impostor.test" } else { ISSUER };
    let document = match path.as_str() {
        KEYS => fs::read_to_string(&shared.jwks)?,
        DESCRIPTION => {
            let keys = format!("{}{KEYS}", shared.base);
            json!({ "issuer": issuer, "jwks_uri": keys, "grant_types_supported": [] }).to_string()
        }
        _ => return Ok(write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?),
    };
    let (status, more, body) = match manner {
        Manner::Well | Manner::Impostor | Manner::Drip => (200, String::new(), document),
        Manner::Status(status) => (status, String::new(), "{}".to_owned()),
        Manner::Garbage(text) => (200, String::new(), text.to_owned()),
        Manner::Huge(bytes) => (200, String::new(), " ".repeat(bytes) + &document),
        Manner::Redirect => (302, format!("location: {}{KEYS}\r\n", shared.base), String::new()),
        Manner::Close => return Ok(()),
    };
    let head = format!(
        "HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if manner == Manner::Drip {
        for octet in body.bytes() {
            stream.write_all(&[octet])?;
            stream.flush()?;
            thread::sleep(Duration::from_secs(1));
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
        }
        return Ok(());
    }
    stream.write_all(body.as_bytes())?;
    stream.flush()?;
    Ok(())
}
