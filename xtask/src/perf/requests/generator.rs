//! Runs the load generator, and what it tells.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::files::HOST;
use crate::harness::{netns::Namespace, process};

/// The part of a token that this text becomes.
pub fn base64_url(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// What the generator told; the fields are those of its own `Told`.
pub type Told = Value;

/// A program's place: its network, its core, and before whatever else the machine does.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it runs.
    pub namespace: Arc<Namespace>,
    /// On which cores.
    pub cores: Vec<usize>,
}

impl Place {
    /// A command that runs there and ends with the thread that starts it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.namespace.command("setpriv");
        command.args(["--pdeathsig", "KILL", "setsid", "sh", "-c", FIRST, "sh"]);
        let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
        command.args(["nice", "-n", "-20", "taskset", "--cpu-list", &cores.join(",")]);
        command.arg(program);
        command
    }

    /// Starts such a command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        command.spawn().with_context(|| process::words(command))
    }
}

/// Sessions share the processor evenly first (sched_autogroup, sched(7)), whatever their processes' own
/// niceness is, so the new session itself has to come first. It says so itself: seen from outside, it
/// is for a moment still the one that it was started from. A kernel without that needs nothing.
const FIRST: &str = r#"{ echo -20 >/proc/self/autogroup; } 2>/dev/null; exec "$@""#;

/// The generator, ready to be told what to do.
pub struct Generator {
    /// The built binary.
    pub binary: PathBuf,
    /// Where it runs.
    pub place: Place,
    /// Where its plans are written.
    pub directory: PathBuf,
}

/// Whom to load, as whom, with what.
pub struct Target<'a> {
    /// The server's address.
    pub server: SocketAddr,
    /// The server's processes.
    pub process_ids: &'a [i32],
    /// The path of the client's files without their endings.
    pub client: &'a Path,
    /// The servers' authority.
    pub authority: &'a Path,
    /// h1, h2 or h3.
    pub protocol: &'a str,
    /// The path to ask for.
    pub path: &'a str,
    /// Tokens, one a line.
    pub tokens: Option<&'a Path>,
}

impl Target<'_> {
    fn plan(&self, work: &Value) -> Value {
        json!({
            "server": self.server,
            "name": HOST,
            "authority": self.authority,
            "certificate": self.client.with_extension("pem"),
            "key": self.client.with_extension("key"),
            "protocol": self.protocol,
            "path": self.path,
            "tokens": self.tokens,
            "process_ids": self.process_ids,
            "work": work,
        })
    }
}

impl Generator {
    fn command(&self, target: &Target<'_>, work: &Value) -> Result<Command> {
        let path = self.directory.join("plan.json");
        fs::write(&path, target.plan(work).to_string())?;
        let mut command = self.place.command(&self.binary);
        command.arg("run").arg(path);
        Ok(command)
    }

    /// Does that work.
    ///
    /// # Errors
    /// When it cannot be done at all.
    pub fn run(&self, target: &Target<'_>, work: &Value) -> Result<Told> {
        self.run_while(target, work, || Ok(()))
    }

    /// Does that work, while something else is done beside it.
    ///
    /// # Errors
    /// When either cannot be done.
    pub fn run_while(
        &self,
        target: &Target<'_>,
        work: &Value,
        beside: impl FnOnce() -> Result<()>,
    ) -> Result<Told> {
        let mut command = self.command(target, work)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.place.spawn(&mut command)?;
        let done = beside();
        let output = child.wait_with_output()?;
        done?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("load told: {said}"))
    }

    /// Opens connections and holds them until the value is dropped.
    ///
    /// # Errors
    /// When they cannot all be opened.
    pub fn hold(&self, target: &Target<'_>, connections: usize) -> Result<Held> {
        let work = json!({ "kind": "hold", "connections": connections });
        let mut command = self.command(target, &work)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut held = Held(self.place.spawn(&mut command)?);
        let stdout = held.0.stdout.as_mut().context("piped above")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            line.trim() == format!("{{\"held\":{connections}}}"),
            "not all of {connections} connections were opened"
        );
        Ok(held)
    }
}

/// Connections that are held.
pub struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = self.0.kill();
        let _buried = self.0.wait();
    }
}
