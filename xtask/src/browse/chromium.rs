//! Chromium without a window, steered by the DevTools protocol over a pair of pipes: JSON messages, each
//! ended by a zero octet. What it tells unasked is kept for whoever judges.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{
    clock,
    netns::{self, Namespace},
};

/// The program, and the Debian package that it is in.
pub(super) const PROGRAM: (&str, &str) = ("chromium", "chromium");

/// The protocol is spoken on descriptors 3 (commands) and 4 (answers); a shell moves the pipes there.
const SHELL: &str = "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec \"$@\"";

/// It keeps to itself: no window, no updates, no sandbox (it runs as root, on a page of ours).
const ARGUMENTS: [&str; 11] = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    // A container's /dev/shm may hold 64 MB.
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
];

/// For an answer, on a machine that has much else to do.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// A picture of the longest page is some hundred kilobytes.
const MESSAGE_MAX_BYTES: u64 = 64 << 20;
/// Messages that wait to be looked at.
const MESSAGES_MAX: usize = 1024;
/// Kept of what it tells unasked: a minute of a page that asks each second makes a few hundred.
const EVENTS_MAX: usize = 20_000;
/// It ends when nobody steers it any more.
const END_MAX: Duration = Duration::from_secs(10);

/// A browser with one page; dropped, it ends.
#[derive(Debug)]
pub(super) struct Chromium {
    process: Child,
    /// `None` once it is told to end.
    commands: Option<ChildStdin>,
    messages: Receiver<Value>,
    number: u64,
    session: String,
    events: Vec<Value>,
    _profile: TempDir,
}

/// A screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) name: &'static str,
    pub(super) width: u32,
    pub(super) height: u32,
    /// A telephone: it has a viewport of its own and is touched.
    pub(super) is_mobile: bool,
    /// `light` or `dark`, as its owner prefers.
    pub(super) scheme: &'static str,
}

impl Chromium {
    /// Starts it in a namespace, with an empty page.
    ///
    /// # Errors
    /// When it does not start, or does not answer.
    pub(super) fn start(namespace: &Namespace) -> Result<Chromium> {
        let profile = netns::directory("chromium")?;
        let mut process = namespace
            .command("sh")
            .args(["-c", SHELL, "sh", PROGRAM.0])
            .args(ARGUMENTS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(PROGRAM.0)?;
        let commands = process.stdin.take();
        let answers = process.stdout.take().context("piped above")?;
        let (to, messages) = sync_channel(MESSAGES_MAX);
        thread::Builder::new().name("chromium".to_owned()).spawn(move || read(answers, &to))?;
        let mut browser = Chromium {
            process,
            commands,
            messages,
            number: 0,
            session: String::new(),
            events: Vec::new(),
            _profile: profile,
        };
        let page = clock::wait_for("its first page", ANSWER_MAX, || {
            let told = browser.call("Target.getTargets", json!({}))?;
            let targets = told["targetInfos"].as_array().context("targets")?;
            let page = targets.iter().find(|target| target["type"] == "page");
            Ok(page.and_then(|page| page["targetId"].as_str()).map(str::to_owned))
        })?;
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": page, "flatten": true }))?;
        browser.session = attached["sessionId"].as_str().context("a session")?.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Its version.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn version(&mut self) -> Result<String> {
        let told = self.call("Browser.getVersion", json!({}))?;
        Ok(told["product"].as_str().context("a version")?.to_owned())
    }

    /// Shows a page on a screen.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn show(&mut self, address: &str, screen: Screen) -> Result<()> {
        let metrics = json!({
            "width": screen.width,
            "height": screen.height,
            "deviceScaleFactor": 1,
            "mobile": screen.is_mobile,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let media = json!([{ "name": "prefers-color-scheme", "value": screen.scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": media }))?;
        let told = self.call("Page.navigate", json!({ "url": address }))?;
        ensure!(told["errorText"].is_null(), "{address}: {}", told["errorText"]);
        Ok(())
    }

    /// The value of an expression in the page.
    ///
    /// # Errors
    /// When it throws, or nothing answers.
    pub(super) fn value(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut told = self.call("Runtime.evaluate", asked)?;
        ensure!(told["exceptionDetails"].is_null(), "{}", told["exceptionDetails"]);
        Ok(told["result"]["value"].take())
    }

    /// A picture of the whole page (PNG).
    ///
    /// # Errors
    /// When none can be made.
    pub(super) fn picture(&mut self) -> Result<Vec<u8>> {
        let asked = json!({ "format": "png", "captureBeyondViewport": true });
        let told = self.call("Page.captureScreenshot", asked)?;
        Ok(STANDARD.decode(told["data"].as_str().context("a picture")?)?)
    }

    /// What it told unasked since the last time: requests, exceptions, lines of the console.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        while let Ok(message) = self.messages.try_recv() {
            self.keep(message);
        }
        std::mem::take(&mut self.events)
    }

    fn keep(&mut self, message: Value) {
        if message["method"].is_string() && self.events.len() < EVENTS_MAX {
            self.events.push(message);
        }
    }

    /// One command and its answer.
    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let mut command = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            command["sessionId"] = self.session.as_str().into();
        }
        let commands = self.commands.as_mut().context("it was told to end")?;
        commands.write_all(format!("{command}\0").as_bytes()).context(PROGRAM.0)?;
        let until = clock::now() + ANSWER_MAX;
        loop {
            clock::go_on()?;
            let left = until.saturating_duration_since(clock::now());
            let mut message = match self.messages.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: no answer to {method} within {ANSWER_MAX:?}", PROGRAM.0)
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended", PROGRAM.0),
            };
            if message["id"] != self.number {
                self.keep(message);
                continue;
            }
            ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
            return Ok(message["result"].take());
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        if let Some(mut commands) = self.commands.take() {
            // One that ended by itself needs no word; one that hears none ends with its pipe.
            let _gone = commands.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        }
        let until = clock::now() + END_MAX;
        while clock::now() < until {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _gone = self.process.kill();
        let _buried = self.process.wait();
    }
}

/// Takes the messages apart, until there are no more.
fn read(answers: ChildStdout, to: &SyncSender<Value>) {
    let mut answers = BufReader::new(answers);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = answers.by_ref().take(MESSAGE_MAX_BYTES).read_until(0, &mut text);
        if !matches!(read, Ok(octets) if octets > 0) || text.pop() != Some(0) {
            return;
        }
        let Ok(message) = serde_json::from_slice(&text) else { return };
        if to.send(message).is_err() {
            return;
        }
    }
}
