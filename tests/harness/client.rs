//! Clients that are not ours: `curl` and `openssl s_client`, with their results parsed.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{netns::Namespace, process};

/// curl's own exit statuses (curl(1), EXIT CODES).
pub mod curl_exit {
    /// It did not connect.
    pub const COULD_NOT_CONNECT: i32 = 7;
    /// A time limit passed.
    pub const TIMED_OUT: i32 = 28;
}

/// Alert numbers (RFC 8446 section 6).
pub mod alert {
    /// `bad_certificate`
    pub const BAD_CERTIFICATE: u8 = 42;
    /// `protocol_version`
    pub const PROTOCOL_VERSION: u8 = 70;
    /// `unsupported_certificate`
    pub const UNSUPPORTED_CERTIFICATE: u8 = 43;
    /// `certificate_revoked`
    pub const CERTIFICATE_REVOKED: u8 = 44;
    /// `certificate_expired`
    pub const CERTIFICATE_EXPIRED: u8 = 45;
    /// `unknown_ca`
    pub const UNKNOWN_CA: u8 = 48;
    /// `certificate_required`
    pub const CERTIFICATE_REQUIRED: u8 = 116;
}

/// A certificate with its key, as files.
#[derive(Clone, Debug)]
pub struct Credential {
    /// PEM chain.
    pub certificate: PathBuf,
    /// PEM key.
    pub key: PathBuf,
}

/// Which HTTP a request is to be made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1
    Http1,
    /// HTTP/2 over TLS
    Http2,
}

/// A request for `curl` to make.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    namespace: &'a Namespace,
    server: SocketAddr,
    host: String,
    path: String,
    authority: PathBuf,
    credential: Option<Credential>,
    source: Option<IpAddr>,
    version: Version,
    limit: Duration,
    more: Vec<String>,
}

/// What `curl` got.
#[derive(Clone)]
pub struct Answer {
    /// curl's exit status; 0 when there was an answer.
    pub exit: i32,
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// As in `1.1` and `2`.
    pub version: String,
    /// Fields of the answer, in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
    /// What curl said when it failed.
    pub error: String,
}

impl<'a> Request<'a> {
    /// A GET of `https://HOST:PORT PATH` at `server`, trusting `authority`.
    pub fn new(
        namespace: &'a Namespace,
        server: SocketAddr,
        host: &str,
        path: &str,
        authority: impl Into<PathBuf>,
    ) -> Request<'a> {
        Request {
            namespace,
            server,
            host: host.to_owned(),
            path: path.to_owned(),
            authority: authority.into(),
            credential: None,
            source: None,
            version: Version::Http1,
            limit: Duration::from_secs(20),
            more: Vec::new(),
        }
    }

    /// With a client certificate.
    pub fn certificate(mut self, credential: &Credential) -> Request<'a> {
        self.credential = Some(credential.clone());
        self
    }

    /// With a bearer token.
    pub fn token(self, token: &str) -> Request<'a> {
        self.header(&format!("Authorization: Bearer {token}"))
    }

    /// With one more header line, spelled as it is.
    pub fn header(self, line: &str) -> Request<'a> {
        self.option("--header").option(line)
    }

    /// With one more word on curl's command line.
    pub fn option(mut self, word: &str) -> Request<'a> {
        self.more.push(word.to_owned());
        self
    }

    /// From this address of the namespace.
    pub fn from(mut self, source: IpAddr) -> Request<'a> {
        self.source = Some(source);
        self
    }

    /// With this HTTP.
    pub fn version(mut self, version: Version) -> Request<'a> {
        self.version = version;
        self
    }

    /// Giving up after this long instead of 20 s.
    pub fn limit(mut self, limit: Duration) -> Request<'a> {
        self.limit = limit;
        self
    }

    /// Makes the request. That there is no answer is a result, not an error.
    ///
    /// # Errors
    /// When curl cannot be run or says something unexpected.
    pub fn send(&self) -> Result<Answer> {
        let directory = tempfile::tempdir()?;
        let (head, body) = (directory.path().join("head"), directory.path().join("body"));
        let mut command = self.namespace.command("curl");
        let url = format!("https://{}:{}{}", self.host, self.server.port(), self.path);
        let address = match self.server.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        command
            .args(["--silent", "--show-error", "--globoff", "--path-as-is", "--noproxy", "*"])
            .arg(match self.version {
                Version::Http1 => "--http1.1",
                Version::Http2 => "--http2",
            })
            .arg("--max-time")
            .arg(self.limit.as_secs_f64().to_string())
            .arg("--connect-to")
            .arg(format!("::{address}:{}", self.server.port()))
            .arg("--cacert")
            .arg(&self.authority)
            .arg("--dump-header")
            .arg(&head)
            .arg("--output")
            .arg(&body)
            .args(["--write-out", "%{json}"]);
        if let Some(Credential { certificate, key }) = &self.credential {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        if let Some(source) = self.source {
            command.arg("--interface").arg(source.to_string());
        }
        command.args(&self.more).arg(url);
        let ended = process::run(&mut command)?;
        let said: Value = serde_json::from_str(&ended.stdout)
            .with_context(|| format!("curl said: {}{}", ended.stdout, ended.stderr))?;
        Ok(Answer {
            exit: ended.status.unwrap_or(-1),
            status: said["http_code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or(0),
            version: said["http_version"].as_str().unwrap_or_default().to_owned(),
            headers: parse_head(&fs::read_to_string(&head).unwrap_or_default()),
            body: fs::read(&body).unwrap_or_default(),
            error: ended.stderr.trim().to_owned(),
        })
    }
}

/// The fields of the last head in curl's dump (interim answers come before it).
fn parse_head(dump: &str) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for line in dump.lines() {
        if line.starts_with("HTTP/") {
            headers.clear();
        } else if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    headers
}

/// For messages: the body as text, and not all of a long one.
impl fmt::Debug for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(2000).collect();
        write!(out, "exit {} {}\n{} HTTP/{}", self.exit, self.error, self.status, self.version)?;
        for (name, value) in &self.headers {
            write!(out, "\n{name}: {value}")?;
        }
        write!(out, "\n\n{body}")
    }
}

impl Answer {
    /// The first field of this lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(own, _)| own == name)?;
        Some(value)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// `reason` of a problem body (RFC 9457), or an empty string.
    pub fn reason(&self) -> String {
        let body = self.json().unwrap_or_default();
        body["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// The values of a header as the echoing upstream saw it, in any spelling that a server might
    /// take for the same: case ignored, `_` read as `-`.
    ///
    /// # Errors
    /// When the body is not the upstream's echo.
    pub fn seen_by_upstream(&self, name: &str) -> Result<Vec<String>> {
        let echo = self.json()?;
        let headers = echo["headers"].as_array().context("not an echo")?;
        let canonical = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        let mut values = Vec::new();
        for pair in headers {
            if pair[0].as_str().map(canonical) == Some(canonical(name)) {
                values.push(pair[1].as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(values)
    }
}

/// What a TLS handshake of `openssl s_client` came to.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The alert the server sent, if it sent one.
    pub alert: Option<u8>,
    /// Whether an HTTP answer came through the connection.
    pub answered: bool,
    /// All that openssl said.
    pub said: String,
}

/// Makes a handshake with `openssl s_client`, then asks for `/` so that a refusal that TLS 1.3
/// allows to come late is seen too.
///
/// # Errors
/// When openssl cannot be run.
pub fn handshake(
    namespace: &Namespace,
    server: SocketAddr,
    name: &str,
    credential: Option<&Credential>,
    more: &[&str],
) -> Result<Handshake> {
    let mut command = namespace.command("timeout");
    command.args(["15", "openssl", "s_client", "-quiet", "-ign_eof", "-servername", name]);
    command.arg("-connect").arg(server.to_string());
    if let Some(Credential { certificate, key }) = credential {
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
    }
    command.args(more);
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let ended = process::run_with_input(&mut command, request.as_bytes())?;
    let said = format!("{}\n{}", ended.stdout, ended.stderr);
    Ok(Handshake { alert: alert_number(&said), answered: said.contains("HTTP/1.1 "), said })
}

/// The number in openssl's `… SSL alert number 48`.
fn alert_number(said: &str) -> Option<u8> {
    let (_, after) = said.split_once("SSL alert number ")?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_print_is_read() {
        let dump = "HTTP/1.1 100 Continue\r\nx: 1\r\n\r\nHTTP/1.1 401 U\r\nWWW-Authenticate: B\r\n";
        assert_eq!(parse_head(dump), [("www-authenticate".to_owned(), "B".to_owned())]);
        let said = "error:0A000418:SSL routines::tlsv1 alert unknown ca: SSL alert number 48\n";
        assert_eq!(alert_number(said), Some(alert::UNKNOWN_CA));
        assert_eq!(alert_number("verify return:1"), None);
    }
}
