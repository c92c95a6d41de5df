//! Servers and clients in Python (`peers.py`): HTTP/2, WebSocket and gRPC as other people have written
//! them. Each tells what it does, one JSON object a line.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{clock, netns::Namespace};

/// An interpreter on a busy machine takes seconds to load its modules.
const START_LIMIT: Duration = Duration::from_secs(60);

/// One of them; killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    /// They read what it says, to the end.
    readers: Vec<JoinHandle<()>>,
}

impl Peer {
    /// Starts a role with its words in a namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(python: &Path, namespace: &Namespace, words: &[&str]) -> Result<Peer> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/harness/peers.py");
        let mut child = namespace
            .command(python)
            .arg(script)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("python starts")?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().context("piped above")?),
            Box::new(child.stderr.take().context("piped above")?),
        ];
        let read = |output| {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            })
        };
        let readers = outputs.into_iter().map(read).collect();
        Ok(Peer { child, said, readers })
    }

    /// As [`Peer::start`], and waits until the server takes connections.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub fn serve(python: &Path, namespace: &Namespace, words: &[&str]) -> Result<Peer> {
        let mut peer = Peer::start(python, namespace, words)?;
        peer.wait_for("a server in Python", |line| line["ready"] == true)?;
        Ok(peer)
    }

    /// Waits for a line that `wanted` likes.
    ///
    /// # Errors
    /// When none comes, or the peer ends before; with what it said.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = clock::wait_for(what, START_LIMIT, || {
            // Asked before its lines are read: what it said before its end counts.
            let ended = self.child.try_wait()?;
            if let Some(line) = self.lines().into_iter().find(|line| wanted(line)) {
                return Ok(Some(line));
            }
            match ended {
                Some(status) => {
                    // Its last lines may still be on their way through the threads that read them.
                    for reader in self.readers.drain(..) {
                        let _ended = reader.join();
                    }
                    match self.lines().into_iter().find(|line| wanted(line)) {
                        Some(line) => Ok(Some(line)),
                        None => bail!("it ended with {status}"),
                    }
                }
                None => Ok(None),
            }
        });
        found.with_context(|| format!("it said:\n{}", self.text()))
    }

    /// All lines so far that are JSON.
    pub fn lines(&self) -> Vec<Value> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many requests with that path it got.
    pub fn requests(&self, path: &str) -> usize {
        self.lines().iter().filter(|line| line["path"] == path).count()
    }

    /// Waits until it has told of as many requests with that path, and gives how many those are by then.
    ///
    /// # Errors
    /// When there are fewer; with what it said.
    pub fn wait_requests(&self, path: &str, at_least: usize) -> Result<usize> {
        clock::wait_for("the server in Python to tell of a request", START_LIMIT, || {
            let told = self.requests(path);
            Ok((told >= at_least).then_some(told))
        })
        .with_context(|| format!("{path}; it said:\n{}", self.text()))
    }

    /// Everything it said.
    pub fn text(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _gone = self.child.kill();
        let _buried = self.child.wait();
    }
}

/// The interpreter with the modules; `None`, said aloud, where `cargo xtask setup` was not run.
///
/// # Errors
/// Where every test is expected to run.
pub fn python() -> Result<Option<PathBuf>> {
    let found = super::python::interpreter();
    if found.is_none() {
        anyhow::ensure!(std::env::var_os("CI").is_none(), "cargo xtask setup was not run");
        eprintln!("NOT RUN: needs the clients and servers in Python (cargo xtask setup)");
    }
    Ok(found)
}
