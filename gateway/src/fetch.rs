//! One small document from a web server: `GET` over TLS, bounded in size and time, no redirects, no
//! second thoughts. What it means is for others to say.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::{spawn_blocking, spawn_local},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// From the name to the last octet: nobody waits for it, but a server that drips must not hold a
/// connection for ever.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// For one address, so that a dead one leaves time for the next.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Where a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    /// Lower case, without brackets.
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

/// Why a text is not a [`Url`] that is fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlError {
    /// Not scheme, host and path.
    Malformed,
    /// Anybody on the way could put in keys of his own.
    NotTls,
    /// With a user or a fragment.
    Excess,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "it is not https://, a host and a path",
            Self::NotTls => "it is not https://, and http:// is for this machine's loopback only",
            Self::Excess => "it has a user name or a fragment",
        })
    }
}

impl std::error::Error for UrlError {}

impl Url {
    /// Reads `https://host[:port]/path`; `http://` only with a loopback address or `localhost`.
    ///
    /// # Errors
    /// Why not.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Malformed)?;
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(UrlError::Malformed),
        };
        if text.contains('#') {
            return Err(UrlError::Excess);
        }
        let uri: http::Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        let authority = uri.authority().ok_or(UrlError::Malformed)?;
        // http::Uri takes some texts for less than they say, so both must see the same.
        if authority.as_str().contains('@') || !rest.starts_with(authority.as_str()) {
            return Err(UrlError::Excess);
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() || ServerName::try_from(host.as_str()).is_err() {
            return Err(UrlError::Malformed);
        }
        let port = match authority.port_u16() {
            Some(0) => return Err(UrlError::Malformed),
            Some(port) => port,
            None if is_tls => 443,
            None => 80,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let url = Self { is_tls, host, port, path };
        if !is_tls && !url.is_loopback() {
            return Err(UrlError::NotTls);
        }
        Ok(url)
    }

    /// The address that stands in place of a name, if one does.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether nobody on the way can change what comes.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Whether it is served by the same host and port.
    pub fn is_beside(&self, other: &Url) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.address().is_some_and(|address| address.is_loopback())
    }

    fn host_field(&self) -> String {
        let host = match self.address() {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.host.clone(),
        };
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.host_field(), self.path)
    }
}

/// How a server is reached, and whom its certificate has to come from.
#[derive(Clone, Debug)]
pub struct Way<'a> {
    /// Its addresses; empty: those of its name.
    pub addresses: &'a [SocketAddr],
    /// PEM of the authorities; `None`: the system's.
    pub authorities: Option<&'a PathBuf>,
    /// Longest document.
    pub limit_bytes: usize,
}

/// What came.
#[derive(Clone, Debug)]
pub struct Document {
    /// All of it.
    pub body: Bytes,
    /// How long it says to be fresh (RFC 9111 section 5.2.2.1).
    pub fresh: Option<Duration>,
    /// Where it came from, for the day when the name cannot be resolved.
    pub address: SocketAddr,
}

/// Why nothing usable came.
#[derive(Debug)]
pub enum FetchError {
    /// The name has no address now.
    Name(io::Error),
    /// None of the addresses takes a connection.
    Connect(io::Error),
    /// The authorities cannot be read.
    Authorities(String),
    /// The handshake failed.
    Tls(io::Error),
    /// The server broke the protocol, or the document is too long.
    Answer(String),
    /// Another status than 200; redirects are not followed.
    Status(StatusCode),
    /// It took longer than ten seconds.
    TooSlow,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(error) => write!(f, "its name was not resolved: {error}"),
            Self::Connect(error) => write!(f, "no connection: {error}"),
            Self::Authorities(error) => write!(f, "no authorities to verify it by: {error}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Answer(error) => write!(f, "no usable answer: {error}"),
            Self::Status(status) if status.is_redirection() => {
                write!(f, "answered {status}; redirects are not followed, name the final place")
            }
            Self::Status(status) => write!(f, "answered {status}"),
            Self::TooSlow => write!(f, "no whole answer in {} s", FETCH_MAX.as_secs()),
        }
    }
}

impl std::error::Error for FetchError {}

/// Fetches a document. Must run inside a [`tokio::task::LocalSet`].
///
/// # Errors
/// Why there is none.
pub async fn fetch(url: &Url, way: &Way<'_>) -> Result<Document, FetchError> {
    timeout(FETCH_MAX, fetch_patiently(url, way)).await.unwrap_or(Err(FetchError::TooSlow))
}

async fn fetch_patiently(url: &Url, way: &Way<'_>) -> Result<Document, FetchError> {
    let addresses = if way.addresses.is_empty() {
        let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
        found.map_err(FetchError::Name)?.collect()
    } else {
        way.addresses.to_vec()
    };
    let (stream, address) = connect(&addresses).await.map_err(FetchError::Connect)?;
    if !url.is_tls {
        return ask(url, stream, way.limit_bytes, address).await;
    }
    let config = client_config(way.authorities.cloned()).await.map_err(FetchError::Authorities)?;
    let name = ServerName::try_from(url.host.clone())
        .map_err(|error| FetchError::Tls(io::Error::other(error)))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    ask(url, stream.map_err(FetchError::Tls)?, way.limit_bytes, address).await
}

async fn connect(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.iter().take(ADDRESSES_MAX) {
        match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, *address)),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// The authorities are read each time, so that their renewal needs nobody.
async fn client_config(authorities: Option<PathBuf>) -> Result<ClientConfig, String> {
    let read = spawn_blocking(move || roots(authorities)).await;
    let roots = read.map_err(|error| error.to_string())??;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The authorities that this operating system trusts.
///
/// # Errors
/// When it has none, or they cannot be read.
pub fn system_authorities() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Some of a system's authorities never parse; that is no reason to do without the others.
    roots.add_parsable_certificates(found.certs);
    match (roots.is_empty(), found.errors.first()) {
        (false, _) => Ok(roots),
        (true, Some(error)) => Err(error.to_string()),
        (true, None) => Err("this system has none; install ca-certificates".to_owned()),
    }
}

fn roots(authorities: Option<PathBuf>) -> Result<RootCertStore, String> {
    let Some(path) = authorities else { return system_authorities() };
    let mut roots = RootCertStore::empty();
    let shown = path.display();
    for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| format!("{shown}: {e}"))? {
        let certificate = certificate.map_err(|error| format!("{shown}: {error}"))?;
        roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
    }
    if roots.is_empty() { Err(format!("{shown} holds no certificate")) } else { Ok(roots) }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    url: &Url,
    stream: S,
    limit_bytes: usize,
    address: SocketAddr,
) -> Result<Document, FetchError> {
    let broken = |error: &dyn fmt::Display| FetchError::Answer(error.to_string());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    // Ends with the sender; its errors reach us through that.
    let connection = spawn_local(async move {
        let _ = connection.await;
    });
    let request = Request::get(&url.path)
        .header(header::HOST, url.host_field())
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    if response.status() != StatusCode::OK {
        connection.abort();
        return Err(FetchError::Status(response.status()));
    }
    let fresh = fresh(response.headers());
    let body = Limited::new(response.into_body(), limit_bytes).collect().await;
    connection.abort();
    let body = body.map_err(|error| broken(&error))?.to_bytes();
    Ok(Document { body, fresh, address })
}

/// `Cache-Control: max-age`, and nothing where it must not be kept.
fn fresh(headers: &HeaderMap) -> Option<Duration> {
    let mut fresh = None;
    for value in headers.get_all(header::CACHE_CONTROL) {
        for directive in value.to_str().ok()?.split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" | "no-cache" => return Some(Duration::ZERO),
                "max-age" => {
                    let seconds = value.trim().trim_matches('"').parse().ok()?;
                    fresh = Some(Duration::from_secs(seconds));
                }
                _ => {}
            }
        }
    }
    fresh
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for (text, expected) in [
            ("https://idp.example/keys", Ok("https://idp.example/keys")),
            ("https://IDP.example", Ok("https://idp.example/")),
            ("https://idp.example:8443/k?a=b", Ok("https://idp.example:8443/k?a=b")),
            ("https://192.0.2.1/", Ok("https://192.0.2.1/")),
            ("https://[2001:db8::1]:444/", Ok("https://[2001:db8::1]:444/")),
            ("http://127.0.0.1:9/k", Ok("http://127.0.0.1:9/k")),
            ("http://[::1]/k", Ok("http://[::1]/k")),
            ("http://localhost/k", Ok("http://localhost/k")),
            ("http://idp.example/keys", Err(UrlError::NotTls)),
            ("http://localhost.example/k", Err(UrlError::NotTls)),
            ("http://127.0.0.1@idp.example/", Err(UrlError::Excess)),
            ("https://a:b@idp.example/", Err(UrlError::Excess)),
            ("https://idp.example/#x", Err(UrlError::Excess)),
            ("https://idp.example:0/", Err(UrlError::Malformed)),
            ("https:///keys", Err(UrlError::Malformed)),
            ("HTTPS://idp.example/", Err(UrlError::Malformed)),
            ("file:///etc/passwd", Err(UrlError::Malformed)),
            ("idp.example", Err(UrlError::Malformed)),
            ("https://a b/", Err(UrlError::Malformed)),
            ("", Err(UrlError::Malformed)),
        ] {
            let found = Url::parse(text).map(|url| url.to_string());
            assert_eq!(found.as_deref().map_err(|error| *error), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_says_how_long_it_is_fresh() {
        for (lines, expected) in [
            (vec![], None),
            (vec!["max-age=300"], Some(300)),
            (vec!["public, max-age=21600, must-revalidate"], Some(21_600)),
            (vec!["Max-Age=\"60\""], Some(60)),
            (vec!["public", "max-age=60"], Some(60)),
            (vec!["max-age=60, no-cache"], Some(0)),
            (vec!["no-store"], Some(0)),
            (vec!["max-age=-1"], None),
            (vec!["max-age=soon"], None),
            (vec!["public"], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append(header::CACHE_CONTROL, line.parse().unwrap());
            }
            assert_eq!(fresh(&headers), expected.map(Duration::from_secs), "{lines:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_a_url_or_none(text in "(https?://)?\\PC{0,40}") {
            if let Ok(url) = Url::parse(&text) {
                prop_assert_eq!(Url::parse(&url.to_string()), Ok(url));
            }
        }
    }
}
