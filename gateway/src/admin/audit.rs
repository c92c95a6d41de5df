//! Log lines: one JSON object a line (or text), written by a thread of its own.
//!
//! A worker fills a buffer and hands it over without waiting; when the queue is full the lines are
//! counted and dropped, because a slow disk or terminal must not slow a request down.

use std::{
    borrow::Cow,
    fmt,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::SystemTime,
};

use serde::Serialize;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use crate::{
    config::LogFormat,
    identity::certificate::{CertificateRefusal, Peer},
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
    format: LogFormat,
    lost: Arc<AtomicU64>,
}

/// The thread that writes; joined at the end so that the last lines are not lost.
pub struct Writer {
    thread: JoinHandle<()>,
}

impl Log {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(format: LogFormat) -> std::io::Result<(Log, Writer)> {
        let (sender, receiver) = sync_channel(QUEUE_BUFFERS);
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&receiver))?;
        Ok((Log { sender, format, lost: Arc::default() }, Writer { thread }))
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
        match self.format {
            LogFormat::Json => {
                let _ = write!(buffer, "{{\"ts\":\"{ts}\",\"level\":\"{level}\",\"event\":");
                json(buffer, event);
            }
            LogFormat::Text => {
                let _ = write!(buffer, "{ts} {level} {event}");
            }
        }
        Line { buffer, format: self.format }
    }

    /// Hands over complete lines without waiting. False: the queue was full and they are gone.
    pub fn send(&self, lines: Vec<u8>) -> bool {
        match self.sender.try_send(lines) {
            Ok(()) => true,
            Err(TrySendError::Full(lines) | TrySendError::Disconnected(lines)) => {
                let count = lines.iter().filter(|byte| **byte == b'\n').count();
                self.lost.fetch_add(count as u64, Ordering::Relaxed);
                false
            }
        }
    }

    /// Lines dropped so far because the queue was full.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Waits until everything that was handed over is written.
    pub fn finish(self, log: &Log) {
        // An empty batch is the sign to end: the sink of `tracing` lives as long as the process, so
        // the queue never closes by itself.
        if log.sender.send(Vec::new()).is_ok() {
            // A writer that panicked has nothing more to write.
            let _ = self.thread.join();
        }
    }
}

fn write_all(receiver: &Receiver<Vec<u8>>) {
    let mut error = std::io::stderr();
    while let Ok(lines) = receiver.recv() {
        if lines.is_empty() {
            return;
        }
        // Nobody is left to tell when standard error is gone.
        let _ = error.write_all(&lines);
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
