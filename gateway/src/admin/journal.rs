//! Log lines for systemd's journal, by its own protocol
//! (systemd.io/JOURNAL_NATIVE_PROTOCOL), so that `journalctl PORTCULLIS_REASON=bad_signature` and
//! `journalctl -p warning` find them: the line as it would be on standard error, its urgency, and
//! each of its fields.

use std::{
    fmt,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

/// Where journald reads.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A journal that takes nothing for this long gets the line on standard error, where its own stream
/// waits or is broken; meanwhile the queue in front of the writer fills and counts what it loses.
const SEND_MAX: Duration = Duration::from_secs(1);

/// Fields of one entry; our widest line has some thirty.
const FIELDS_MAX: usize = 64;

/// The journal's end of the log.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal, where standard error leads into it (`JOURNAL_STREAM`).
    pub fn from_environment() -> Option<Journal> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let error: OwnedFd = io::stderr().as_fd().try_clone_to_owned().ok()?;
        let error = File::from(error).metadata().ok()?;
        is_stream(&stream, error.dev(), error.ino()).then(|| Journal::at(Path::new(SOCKET)))?.ok()
    }

    fn at(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(Journal { socket, path: path.to_owned() })
    }

    /// Writes complete lines, each a JSON object; as text for people with `is_text`.
    ///
    /// # Errors
    /// The lines from the first one on that the journal did not take.
    pub fn write<'a>(&mut self, lines: &'a [u8], is_text: bool) -> Result<(), &'a [u8]> {
        let mut rest = lines;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let entry = entry(&rest[..end], is_text);
            if self.socket.send(&entry).is_err() {
                // A journal that was started anew has another socket at the same place.
                let again = Journal::at(&self.path).and_then(|journal| {
                    journal.socket.send(&entry)?;
                    Ok(journal)
                });
                *self = again.map_err(|_| rest)?;
            }
            rest = &rest[end + 1..];
        }
        Ok(())
    }
}

/// Whether that is what `JOURNAL_STREAM` names: the device, a colon, the inode.
fn is_stream(text: &str, device: u64, inode: u64) -> bool {
    let named = text.split_once(':').and_then(|(device, inode)| {
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    named == Some((device, inode))
}

/// One line as the journal takes it. What is no line of ours is a message without fields.
fn entry(line: &[u8], is_text: bool) -> Vec<u8> {
    let fields = serde_json::from_slice(line).unwrap_or(Fields(Vec::new())).0;
    let mut entry = Vec::with_capacity(2 * line.len());
    let level = fields.iter().find(|(key, _)| key == "level").and_then(|(_, level)| level.as_str());
    put(&mut entry, "PRIORITY", priority(level.unwrap_or("info")).as_bytes());
    put(&mut entry, "SYSLOG_IDENTIFIER", b"portcullis");
    if is_text && !fields.is_empty() {
        put(&mut entry, "MESSAGE", &text(&fields));
    } else {
        put(&mut entry, "MESSAGE", line);
    }
    for (key, value) in fields.iter().filter(|(key, _)| !is_the_journals(key)).take(FIELDS_MAX) {
        match value {
            Value::Object(inner) => {
                for (below, value) in inner.iter().take(FIELDS_MAX) {
                    put(&mut entry, &name(&format!("{key}_{below}")), &bytes(value));
                }
            }
            value => put(&mut entry, &name(key), &bytes(value)),
        }
    }
    entry
}

/// What the journal keeps by itself.
fn is_the_journals(key: &str) -> bool {
    matches!(key, "ts" | "level")
}

/// As `syslog(3)` numbers them.
fn priority(level: &str) -> &'static str {
    match level {
        "error" => "3",
        "warn" => "4",
        "info" => "6",
        _ => "7",
    }
}

/// The journal takes capital letters, digits and underscores.
fn name(key: &str) -> String {
    let kept = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    let key: String = key.chars().map(kept).collect();
    format!("PORTCULLIS_{}", key.to_ascii_uppercase())
}

/// A string as it is, everything else as JSON.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

/// The event, then its fields.
fn text(fields: &[(String, Value)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in fields.iter().filter(|(key, _)| !is_the_journals(key)) {
        if key == "event" {
            text.extend_from_slice(&bytes(value));
        } else {
            // A `Vec` takes every byte.
            let _ = write!(text, " {key}={value}");
        }
    }
    text
}

/// A value with a line feed in it is told with its length in front.
fn put(entry: &mut Vec<u8>, key: &str, value: &[u8]) {
    entry.extend_from_slice(key.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// The fields of a line in the order in which they were written.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a line of the log")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"ts":"1970-01-01T00:00:00.000Z","level":"warn","event":"request","status":401,"reason":"token_expired","path":"/a\nb","token":{"claim":"exp"},"bytes":[1,2]}"#;

    #[test]
    fn a_line_becomes_an_entry_with_its_fields() {
        let mut expected = format!("PRIORITY=4\nSYSLOG_IDENTIFIER=portcullis\nMESSAGE={LINE}\n");
        expected.push_str("PORTCULLIS_EVENT=request\nPORTCULLIS_STATUS=401\n");
        expected.push_str("PORTCULLIS_REASON=token_expired\n");
        expected.push_str("PORTCULLIS_PATH\n\x04\0\0\0\0\0\0\0/a\nb\n");
        expected.push_str("PORTCULLIS_TOKEN_CLAIM=exp\nPORTCULLIS_BYTES=[1,2]\n");
        assert_eq!(String::from_utf8(entry(LINE.as_bytes(), false)).unwrap(), expected);
    }

    #[test]
    fn as_text_a_line_has_neither_time_nor_level_which_the_journal_shows_itself() {
        let entry = String::from_utf8(entry(LINE.as_bytes(), true)).unwrap();
        let message = entry.lines().find(|line| line.starts_with("MESSAGE="));
        let expected = r#"MESSAGE=request status=401 reason="token_expired" path="/a\nb" token={"claim":"exp"} bytes=[1,2]"#;
        assert_eq!(message, Some(expected));
    }

    #[test]
    fn what_is_no_line_of_ours_is_written_as_it_is() {
        let entry = String::from_utf8(entry(b"thread panicked", true)).unwrap();
        assert_eq!(entry, "PRIORITY=6\nSYSLOG_IDENTIFIER=portcullis\nMESSAGE=thread panicked\n");
    }

    #[test]
    fn the_stream_is_known_by_device_and_inode() {
        for (text, expected) in
            [("8:1234", true), ("8:1235", false), ("9:1234", false), ("8", false), ("", false)]
        {
            assert_eq!(is_stream(text, 8, 1234), expected, "{text}");
        }
    }

    #[test]
    fn lines_reach_the_journal_and_those_that_do_not_come_back() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path).unwrap();
        let lines = format!("{LINE}\n{LINE}\n");
        assert_eq!(journal.write(lines.as_bytes(), false), Ok(()));
        let mut datagram = [0; 4096];
        for _ in 0..2 {
            let length = daemon.recv(&mut datagram).unwrap();
            assert_eq!(&datagram[..length], entry(LINE.as_bytes(), false));
        }

        // Started anew, at the same place.
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        let daemon = UnixDatagram::bind(&path).unwrap();
        assert_eq!(journal.write(lines.as_bytes(), false), Ok(()));
        for _ in 0..2 {
            let length = daemon.recv(&mut datagram).unwrap();
            assert_eq!(&datagram[..length], entry(LINE.as_bytes(), false));
        }

        // And gone.
        drop(daemon);
        assert_eq!(journal.write(lines.as_bytes(), false), Err(lines.as_bytes()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(journal.write(lines.as_bytes(), false), Err(lines.as_bytes()));
    }
}
