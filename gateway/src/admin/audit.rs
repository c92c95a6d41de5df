//! Log lines: one JSON object a line (or text), written by a thread of its own, to standard error or
//! to systemd's journal.
//!
//! A worker fills a buffer and hands it over without waiting; when the queue is full the lines are
//! counted and dropped, because a slow disk or terminal must not slow a request down. What a full disk
//! does not take is counted too, and the next line after it begins as a line.

use std::{
    borrow::Cow,
    fmt,
    io::{ErrorKind, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use rustls_pki_types::UnixTime;
use serde::Serialize;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::journal::Journal;
use crate::{
    config::LogFormat,
    host::clock::ClockReading,
    identity::{
        certificate::{CertificateRefusal, Peer},
        token::{KeyName, TokenError},
    },
    policy::Refusal,
    time,
};

/// The field in which `tracing` keeps an event's text.
const MESSAGE: &str = "message";

/// Buffers under way to the writer: with up to 32 KiB each, 16 MiB at the most.
const QUEUE_BUFFERS: usize = 512;

/// Where log lines go. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    sender: SyncSender<Vec<u8>>,
    /// Whether lines are text, else JSON; one for all clones.
    is_text: Arc<AtomicBool>,
    /// The journal is given JSON, whose fields it keeps, and text is made of it then.
    is_journal: bool,
    lost: Arc<AtomicU64>,
}

/// The thread that writes; joined at the end so that the last lines are not lost.
pub struct Writer {
    thread: JoinHandle<()>,
}

impl Log {
    /// Starts the thread that writes to standard error, or to the journal where that is the same.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(format: LogFormat) -> std::io::Result<(Log, Writer)> {
        let (sender, receiver) = sync_channel(QUEUE_BUFFERS);
        let journal = Journal::from_environment();
        let is_journal = journal.is_some();
        let is_text = Arc::<AtomicBool>::default();
        let lost = Arc::<AtomicU64>::default();
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn({
            let (is_text, lost) = (is_text.clone(), lost.clone());
            move || write_all(&receiver, journal, &is_text, &lost)
        })?;
        let log = Log { sender, is_text, is_journal, lost };
        log.set_format(format);
        Ok((log, Writer { thread }))
    }

    /// From now on lines begin in this format.
    pub fn set_format(&self, format: LogFormat) {
        self.is_text.store(format == LogFormat::Text, Ordering::Relaxed);
    }

    fn format(&self) -> LogFormat {
        let is_text = self.is_text.load(Ordering::Relaxed) && !self.is_journal;
        if is_text { LogFormat::Text } else { LogFormat::Json }
    }

    /// Begins a line in a buffer: when, how grave, what. [`Line::end`] completes it.
    pub fn line<'a>(
        &self,
        buffer: &'a mut Vec<u8>,
        level: &str,
        event: &str,
        at: SystemTime,
    ) -> Line<'a> {
        let ts = humantime::format_rfc3339_millis(at);
        let format = self.format();
        match format {
            LogFormat::Json => {
                let _ = write!(buffer, "{{\"ts\":\"{ts}\",\"level\":\"{level}\",\"event\":");
                json(buffer, event);
            }
            LogFormat::Text => {
                let _ = write!(buffer, "{ts} {level} {event}");
            }
        }
        Line { buffer, format }
    }

    /// Hands over complete lines without waiting. False: the queue was full and they are gone.
    pub fn send(&self, lines: Vec<u8>) -> bool {
        match self.sender.try_send(lines) {
            Ok(()) => true,
            Err(TrySendError::Full(lines) | TrySendError::Disconnected(lines)) => {
                self.lost.fetch_add(count(&lines), Ordering::Relaxed);
                false
            }
        }
    }

    /// Lines lost so far, because the queue was full or nobody took them.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Waits until everything that was handed over is written; not for ever, where nobody reads it.
    pub fn finish(self, log: &Log) {
        // An empty batch is the sign to end: the sink of `tracing` lives as long as the process, so
        // the queue never closes by itself.
        let until = time::monotonic() + LAST_WORDS_MAX;
        let mut is_told = false;
        while time::monotonic() < until && !self.thread.is_finished() {
            is_told = is_told || log.sender.try_send(Vec::new()).is_ok();
            std::thread::sleep(LAST_WORDS_LOOK_EVERY);
        }
    }
}

/// Whoever reads the log has so long for the last of it: a stop that hangs on a reader who is stuck would be
/// ended by the service manager, much later.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);

/// The writer's end is looked for this often.
const LAST_WORDS_LOOK_EVERY: Duration = Duration::from_millis(1);

fn write_all(
    receiver: &Receiver<Vec<u8>>,
    mut journal: Option<Journal>,
    is_text: &AtomicBool,
    lost: &AtomicU64,
) {
    let mut error = Sink { to: std::io::stderr(), is_torn: false };
    while let Ok(lines) = receiver.recv() {
        if lines.is_empty() {
            return;
        }
        let rest = match &mut journal {
            Some(journal) => journal.write(&lines, is_text.load(Ordering::Relaxed)).err(),
            None => Some(&lines[..]),
        };
        if let Some(rest) = rest {
            // Nobody else is left to tell when standard error is gone, or its disk is full.
            lost.fetch_add(error.write(rest), Ordering::Relaxed);
        }
    }
}

/// The lines that these octets end.
fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|octet| **octet == b'\n').count() as u64
}

/// Whatever takes lines, and sometimes only a part of one.
struct Sink<W> {
    to: W,
    /// What was taken last ends within a line.
    is_torn: bool,
}

impl<W: Write> Sink<W> {
    /// Writes complete lines, and gives how many of them are lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if self.is_torn {
            // The piece that is there becomes a line of its own.
            match self.to.write(b"\n") {
                Ok(1) => self.is_torn = false,
                _ => return count(lines),
            }
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => break,
                Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let taken = &lines[..lines.len() - rest.len()];
        self.is_torn = taken.last().is_some_and(|octet| *octet != b'\n');
        // A line whose end alone is missing gets it from the next one.
        count(rest) - u64::from(self.is_torn && rest.starts_with(b"\n"))
    }
}

/// One line in the making, written straight into its buffer.
pub struct Line<'a> {
    buffer: &'a mut Vec<u8>,
    format: LogFormat,
}

impl Line<'_> {
    /// One field of any kind that has a JSON form.
    pub fn field(&mut self, key: &str, value: impl Serialize) -> &mut Self {
        match self.format {
            LogFormat::Json => {
                self.buffer.push(b',');
                json(self.buffer, key);
                self.buffer.push(b':');
            }
            LogFormat::Text => {
                self.buffer.push(b' ');
                self.buffer.extend_from_slice(key.as_bytes());
                self.buffer.push(b'=');
            }
        }
        json(self.buffer, value);
        self
    }

    /// The same, left out when there is no value.
    pub fn maybe(&mut self, key: &str, value: Option<impl Serialize>) -> &mut Self {
        if let Some(value) = value {
            self.field(key, value);
        }
        self
    }

    /// Completes the line.
    pub fn end(self) {
        if self.format == LogFormat::Json {
            self.buffer.push(b'}');
        }
        self.buffer.push(b'\n');
    }
}

/// A client certificate in a log line.
#[derive(Serialize)]
pub struct CertificateFields<'a> {
    subject: &'a str,
    issuer: &'a str,
    serial: &'a str,
    sans: Vec<Cow<'a, str>>,
}

impl<'a> CertificateFields<'a> {
    /// Of a proven client.
    pub fn of(peer: &'a Peer) -> Self {
        CertificateFields {
            subject: peer.subject(),
            issuer: peer.issuer(),
            serial: peer.serial(),
            sans: peer.sans().iter().map(|name| Cow::Owned(name.to_string())).collect(),
        }
    }

    /// Of a refused one; what it says of itself is not proven.
    pub fn of_refused(refused: &'a CertificateRefusal) -> Self {
        CertificateFields {
            subject: &refused.subject,
            issuer: &refused.issuer,
            serial: &refused.serial,
            sans: refused.sans.iter().map(|name| Cow::Borrowed(name.as_str())).collect(),
        }
    }
}

/// What was wrong with a refused token, for whoever has to put it right. Never the token.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct TokenFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<&'a str>,
    /// The claim, or the parameter of the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    /// This host's clock, seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<u64>,
    /// How far the claim's time is from the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    off_by_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leeway_s: Option<u64>,
    /// The clock is at most this far off, as its keeper says.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_max_error_s: Option<f64>,
    /// Whether something keeps it right.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_synchronized: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

/// A time that is missed by less than this may be a clock's fault: clocks that nobody sets are wrong by
/// seconds to minutes.
const CLOCK_SUSPECT_S: u64 = 300;

impl<'a> TokenFields<'a> {
    /// Of a refusal that is about a token.
    pub fn of(refusal: &'a Refusal) -> Option<TokenFields<'a>> {
        let Refusal::Token(error) = refusal else { return None };
        let fields = TokenFields { issuer: error.issuer(), ..Self::about(error) };
        (fields != TokenFields::default()).then_some(fields)
    }

    /// With what the clock is worth, where the refusal hangs on it.
    #[must_use]
    pub fn by(self, clock: &ClockReading) -> TokenFields<'a> {
        if self.clock.is_none() {
            return self;
        }
        let is_suspect = clock.is_synchronized != Some(true);
        let remedy = match self.remedy {
            Some(_) if is_suspect && self.off_by_s.is_some_and(|off_s| off_s < CLOCK_SUSPECT_S) => {
                Some(
                    "nothing keeps this host's clock right: start chrony, then compare it with the \
                      issuer's (chronyc tracking)",
                )
            }
            remedy => remedy,
        };
        TokenFields {
            clock_max_error_s: clock.is_synchronized.map(|_| clock.max_error_s),
            clock_synchronized: clock.is_synchronized,
            remedy,
            ..self
        }
    }

    fn about(error: &'a TokenError) -> TokenFields<'a> {
        let claim = |claim, value: Option<&'a str>, remedy| TokenFields {
            claim: Some(claim),
            value: value.map(Cow::Borrowed),
            remedy,
            ..TokenFields::default()
        };
        match error {
            TokenError::Expired { expires, now, leeway, .. } => {
                let fields = Self::time("exp", *expires, *now, *leeway);
                let remedy = if fields.off_by_s.is_some_and(|off_by_s| off_by_s < CLOCK_SUSPECT_S) {
                    "renew the token; if clients do, compare this host's clock with the issuer's \
                     (timedatectl, chronyc tracking)"
                } else {
                    "renew the token"
                };
                TokenFields { remedy: Some(remedy), ..fields }
            }
            TokenError::NotYetValid { claim, value, now, leeway, .. } => TokenFields {
                remedy: Some(
                    "compare this host's clock with the issuer's (timedatectl, chronyc tracking)",
                ),
                ..Self::time(claim, *value, *now, *leeway)
            },
            TokenError::LifetimeTooLong { lifetime, .. } => TokenFields {
                claim: Some("exp"),
                value: Some(Cow::Owned(format!("{} s after iat", lifetime.as_secs()))),
                remedy: Some("have the issuer give shorter-lived tokens, or raise max_lifetime"),
                ..TokenFields::default()
            },
            TokenError::WrongAudience { found, .. } => claim(
                "aud",
                Some(found),
                Some("ask the issuer for a token of an audience in issuer.audiences"),
            ),
            TokenError::UnknownIssuer { iss } => {
                claim("iss", Some(iss), Some("add an [[issuer]] for it, if it is to be believed"))
            }
            TokenError::UnknownKey { key, .. } => {
                let (parameter, name) = match key {
                    KeyName::Kid(name) => ("kid", Some(name.as_str())),
                    KeyName::X5tS256(name) => ("x5t#S256", Some(name.as_str())),
                    KeyName::X5t(name) => ("x5t", Some(name.as_str())),
                    KeyName::Nothing => ("kid", None),
                };
                let remedy = "the issuer may have changed its keys: fetch its key set again";
                claim(parameter, name, Some(remedy))
            }
            TokenError::MissingClaim { claim: name }
            | TokenError::MalformedClaim { claim: name, .. } => claim(name, None, None),
            TokenError::Revoked { token_id, .. } => claim("jti", Some(token_id), None),
            TokenError::UnsupportedAlgorithm { algorithm } => claim("alg", Some(algorithm), None),
            TokenError::UnsupportedType { kind } => claim("typ", Some(kind), None),
            TokenError::RefusedHeader { parameter } => claim(parameter, None, None),
            TokenError::DuplicateMember { name, .. } => claim(name, None, None),
            TokenError::NotTheHolder { bound_to, .. } => claim("cnf", Some(bound_to), None),
            TokenError::UnsupportedBinding { .. } | TokenError::NotBound { .. } => {
                claim("cnf", None, None)
            }
            TokenError::TooLarge { .. }
            | TokenError::Malformed { .. }
            | TokenError::Encrypted
            | TokenError::AlgorithmMismatch { .. }
            | TokenError::BadSignature { .. }
            | TokenError::IssuerUnavailable { .. } => TokenFields::default(),
        }
    }

    fn time(claim: &'a str, value: UnixTime, now: UnixTime, leeway: Duration) -> TokenFields<'a> {
        TokenFields {
            claim: Some(claim),
            value: Some(Cow::Owned(value.as_secs().to_string())),
            clock: Some(now.as_secs()),
            off_by_s: Some(value.as_secs().abs_diff(now.as_secs())),
            leeway_s: Some(leeway.as_secs()),
            ..TokenFields::default()
        }
    }
}

/// Strings, numbers and plain structures always serialize, and a `Vec` takes every byte.
fn json(buffer: &mut Vec<u8>, value: impl Serialize) {
    let _ = serde_json::to_writer(buffer, &value);
}

/// Turns `tracing` events, which the process uses for what is not a request, into the same lines.
pub struct TracingLayer(pub Log);

impl<S: Subscriber> Layer<S> for TracingLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut message = Message(String::new());
        event.record(&mut message);
        let mut buffer = Vec::with_capacity(256);
        let mut line = self.0.line(&mut buffer, level, &message.0, time::wall());
        event.record(&mut Fields(&mut line));
        line.end();
        self.0.send(buffer);
    }
}

/// Reads the one field that names the event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            self.0 = format!("{value:?}");
        }
    }
}

/// Writes all other fields.
struct Fields<'a, 'b>(&'a mut Line<'b>);

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: impl Serialize) {
        if field.name() != MESSAGE {
            self.0.field(field.name(), value);
        }
    }
}

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_tokens_fields_tell_what_to_put_right() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let expired = |seconds: u64| TokenError::Expired {
            issuer: "corp".into(),
            expires: at(1_698_401_700),
            now: at(1_698_401_700 + seconds),
            leeway: Duration::from_secs(30),
        };
        for (error, json) in [
            (
                expired(32),
                r#"{"issuer":"corp","claim":"exp","value":"1698401700","clock":1698401732,"off_by_s":32,"leeway_s":30,"remedy":"renew the token; if clients do, compare this host's clock with the issuer's (timedatectl, chronyc tracking)"}"#,
            ),
            (
                expired(86_400),
                r#"{"issuer":"corp","claim":"exp","value":"1698401700","clock":1698488100,"off_by_s":86400,"leeway_s":30,"remedy":"renew the token"}"#,
            ),
            (
                TokenError::WrongAudience { issuer: "corp".into(), found: "[\"x\"]".into() },
                r#"{"issuer":"corp","claim":"aud","value":"[\"x\"]","remedy":"ask the issuer for a token of an audience in issuer.audiences"}"#,
            ),
            (TokenError::MissingClaim { claim: "exp" }, r#"{"claim":"exp"}"#),
        ] {
            let refusal = Refusal::Token(error);
            assert_eq!(serde_json::to_string(&TokenFields::of(&refusal).unwrap()).unwrap(), json);
        }
        assert_eq!(TokenFields::of(&Refusal::Token(TokenError::Encrypted)), None);
        assert_eq!(TokenFields::of(&Refusal::NoRoute), None);
    }

    /// A disk with room for so many octets.
    struct Disk {
        octets: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            let taken = octets.len().min(self.room - self.octets.len()).min(5);
            if taken == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.octets.extend_from_slice(&octets[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_the_next_line_is_one() {
        for room in 0..=24 {
            let mut sink = Sink { to: Disk { octets: vec![], room }, is_torn: false };
            let mut lost = sink.write(b"first 1\nsecond\n");
            lost += sink.write(b"third 3\n");
            sink.to.room = 1_000;
            lost += sink.write(b"fourth\n");
            let text = String::from_utf8(sink.to.octets).unwrap();
            let whole = ["first 1", "second", "third 3", "fourth"]
                .into_iter()
                .filter(|line| text.lines().any(|written| written == *line));
            assert_eq!(whole.count() as u64 + lost, 4, "room for {room}: {text:?}");
            assert!(text.ends_with("fourth\n"), "room for {room}: {text:?}");
        }
    }

    #[test]
    fn a_line_is_one_json_object_and_text_is_readable() {
        let render = |format| {
            let (log, _writer) = Log::start(format).unwrap();
            let mut buffer = Vec::new();
            let mut line = log.line(&mut buffer, "info", "request", SystemTime::UNIX_EPOCH);
            line.field("path", "/a\nb\"").field("status", 200).maybe("tenant", None::<&str>);
            line.end();
            String::from_utf8(buffer).unwrap()
        };
        let text = render(LogFormat::Json);
        assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["ts"], "1970-01-01T00:00:00.000Z");
        assert_eq!(parsed["path"], "/a\nb\"");
        assert_eq!(
            render(LogFormat::Text),
            "1970-01-01T00:00:00.000Z info request path=\"/a\\nb\\\"\" status=200\n"
        );
    }
}
