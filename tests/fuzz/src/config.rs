//! Configurations.

use std::path::{Path, PathBuf};

use gateway::{
    config::{self, Content, Daemon, FileError, Files},
    identity::{
        pattern::Pattern,
        principal::{NameSource, Template},
    },
    policy::hours::Hours,
};
use rustls_pki_types::UnixTime;

/// One file, and nothing that it names.
struct One<'b> {
    bytes: &'b [u8],
    daemon: Daemon,
}

const MAIN: &str = "/etc/portcullis/portcullis.toml";

impl Files for One<'_> {
    fn read(&self, path: &Path, _limit_bytes: usize) -> Result<Content, FileError> {
        if path != Path::new(MAIN) {
            return Err(FileError::NotFound);
        }
        Ok(Content { bytes: self.bytes.to_vec(), mode: 0o600, owner: 0, group: 0 })
    }

    fn list(&self, _directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        Err(FileError::NotFound)
    }

    fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// Any bytes as the main file: what is refused has its place in the text.
pub(crate) fn config(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    let files = One { bytes, daemon: Daemon::default() };
    if let Err(problems) = config::load(Path::new(MAIN), &files) {
        assert!(problems.count() > 0);
        for problem in &problems {
            let line = problem.line() as usize;
            assert!((1..=lines).contains(&line) && problem.column() > 0, "{problem}");
            assert!(!problem.text().is_empty() && !problem.text().contains('\n'), "{problem}");
        }
    }
}

/// A short text, as each kind of value that has a form of its own.
pub(crate) fn values(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(hours) = Hours::parse(text) {
        let again = Hours::parse(&hours.to_string()).expect("hours are written as they are read");
        for now_s in (0..14).map(|day| 1_772_366_400 + day * 43_217) {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
            assert_eq!(hours.allow(now), again.allow(now));
        }
    }
    if let Ok(pattern) = Pattern::parse(text) {
        assert_eq!(pattern.to_string(), text);
        assert!(pattern.has_star() || pattern.matches(text));
    }
    if let Some(source) = NameSource::parse(text) {
        assert_eq!(source.to_string(), text);
    }
    let _ = Template::parse(text);
    // The others are read by way of a file.
    let quoted = format!("{text:?}");
    for line in [
        "[xdp.packets]\nrate = ",
        "[xdp.bytes]\nrate = ",
        "[xdp]\nallow = ",
        "[server]\ndrain_timeout = ",
        "[[listener]]\naddress = ",
        "[[upstream]]\nservers = ",
        "[[route]]\npath = ",
        "[[route]]\nhosts = ",
        "[[route]]\nprincipals = ",
    ] {
        let is_list = ["allow = ", "servers = ", "hosts = ", "principals = "];
        let list = is_list.iter().any(|key| line.ends_with(key));
        let value = if list { format!("[{quoted}]") } else { quoted.clone() };
        config(format!("{line}{value}\n").as_bytes());
    }
}
