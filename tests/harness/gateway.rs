//! The product as a user runs it: a configuration file, `portcullis run`, and what can be asked of it.

use std::{
    fmt::{self, Display, Formatter},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    client::Credential,
    clock,
    netns::Namespace,
    process::{self, Ended},
    tokens,
};

/// Start-up loads an XDP program and binds sockets: under a second alone, more beside a full build.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// What must show soon (a counter, a log line): milliseconds alone; a limit is only there so that a
/// test that fails ends.
pub const SOON: Duration = Duration::from_secs(60);
/// Log lines kept; a test that makes more is looking at the wrong thing.
const MAX_LOG_LINES: usize = 200_000;
/// Whether somebody reads the log again is looked for that often.
const STALLED_LOOK_EVERY: Duration = Duration::from_millis(20);

/// A configuration file's text. Fields are the parts that differ between tests.
#[derive(Clone, Debug)]
pub struct ConfigText {
    /// Where the one listener listens.
    pub listener: SocketAddr,
    /// Its certificate and key.
    pub server: Credential,
    /// Trusted for clients.
    pub client_authority: PathBuf,
    /// Further lines of `[listener.tls]`, as written.
    pub tls: String,
    /// Lists of revoked certificates.
    pub revoked: Vec<PathBuf>,
    /// Who the one issuer says it is.
    pub issuer: String,
    /// Its algorithms, as written between the brackets.
    pub algorithms: String,
    /// Its keys in a file.
    pub jwks: PathBuf,
    /// Lines in place of that file.
    pub keys: String,
    /// The one upstream, called `orders`.
    pub upstream: SocketAddr,
    /// Metrics address.
    pub metrics: SocketAddr,
    /// Admin socket.
    pub socket: PathBuf,
    /// `[[route]]` tables, as written.
    pub routes: String,
    /// Further lines of `[server]`, as written.
    pub process: String,
    /// `[xdp]` with its lines, as written.
    pub xdp: String,
    /// Further lines of `[[listener]]`, as written.
    pub listener_lines: String,
    /// `[clients]` with its lines, as written.
    pub clients: String,
    /// Lines of `[bans]`, as written.
    pub bans: String,
}

/// A route that asks for certificate and token, one for the certificate alone, and a public one.
pub const ROUTES: &str = r#"
[[route]]
name = "orders"
path = "/orders"
upstream = "orders"
require = ["certificate", "token"]
scopes = ["read:orders"]

[[route]]
name = "machines"
path = "/machines"
upstream = "orders"
require = ["certificate"]

[[route]]
name = "public"
path = "/public"
upstream = "orders"
require = []
"#;

impl Display for ConfigText {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let revoked: Vec<String> =
            self.revoked.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        write!(
            out,
            r#"[server]
workers = 1
{process}
[[listener]]
name = "edge"
address = "{listener}"
protocols = ["h2", "http/1.1"]
{listener_lines}

[listener.tls]
certificate = "{certificate}"
private_key = "{key}"
client_auth = "required"
client_ca = "{authority}"
client_crl = [{revoked}]
{tls}

[[issuer]]
name = "corp"
issuer = "{issuer}"
audiences = ["{audience}"]
algorithms = [{algorithms}]
{keys}

[[upstream]]
name = "orders"
servers = ["http://{upstream}"]
connect_timeout = "2s"
response_timeout = "3s"
{routes}
{xdp}

{clients}

[bans]
{bans}

[admin]
socket = "{socket}"
metrics = "{metrics}"

[log]
format = "json"
access = true
"#,
            process = self.process,
            listener_lines = self.listener_lines,
            clients = self.clients,
            listener = self.listener,
            certificate = self.server.certificate.display(),
            key = self.server.key.display(),
            authority = self.client_authority.display(),
            revoked = revoked.join(", "),
            tls = self.tls,
            issuer = self.issuer,
            algorithms = self.algorithms,
            audience = tokens::AUDIENCE,
            keys = match self.keys.as_str() {
                "" => format!("jwks_file = \"{}\"", self.jwks.display()),
                keys => keys.to_owned(),
            },
            upstream = self.upstream,
            routes = self.routes,
            xdp = self.xdp,
            bans = self.bans,
            socket = self.socket.display(),
            metrics = self.metrics,
        )
    }
}

/// Where and how a daemon runs.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The built binary.
    pub binary: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its network namespace.
    pub namespace: Arc<Namespace>,
    /// Its metrics address, as configured.
    pub metrics: SocketAddr,
    /// The core it is kept on, when it matters.
    pub core: Option<usize>,
    /// What it finds in its environment besides.
    pub environment: Vec<(String, String)>,
}

impl Launch {
    /// `portcullis --config FILE WORDS…` in the namespace.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.namespace.command(&self.binary);
        command.arg("--config").arg(&self.config).args(words);
        command
    }

    /// Runs a command of the product that must succeed, and gives its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn succeed(&self, words: &[&str]) -> Result<String> {
        process::succeed(&mut self.command(words))
    }

    /// Runs a command of the product to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ended(&self, words: &[&str]) -> Result<Ended> {
        // A daemon that should have refused to start must not hold the test for ever.
        let mut command = self.namespace.command("timeout");
        command.args(["--signal=KILL", "60"]).arg(&self.binary);
        command.arg("--config").arg(&self.config).args(words);
        process::run(&mut command)
    }

    /// A command of the product with `--json`, parsed.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let mut words = words.to_vec();
        words.push("--json");
        let text = self.succeed(&words)?;
        serde_json::from_str(&text).with_context(|| format!("{words:?} printed: {text}"))
    }

    /// The bans in force as `bans list --json` tells them, those of one source only.
    ///
    /// # Errors
    /// When the command fails.
    pub fn bans_of(&self, source: &str) -> Result<Vec<Value>> {
        let list = self.json(&["bans", "list"])?;
        let list = list.as_array().context("bans list --json is no array")?;
        Ok(list.iter().filter(|ban| ban["source"] == source).cloned().collect())
    }

    /// Starts `run`; it is killed when the calling thread ends, however that happens.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self) -> Result<Gateway> {
        self.run_as(&Start::default())
    }

    /// Starts `run` as somebody else would than a person.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_as(&self, start: &Start<'_>) -> Result<Gateway> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        command.arg(format!("--net={}", self.namespace.path().display()));
        if let Some(core) = self.core {
            command.args(["taskset", "--cpu-list", &core.to_string()]);
        }
        let mut stdin = Stdio::null();
        if let Some(socket) = start.socket {
            // The process id is the daemon's own: nothing here forks.
            let pass = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
            command.args(["sh", "-c", pass, "sh"]);
            stdin = Stdio::from(socket.try_clone()?);
        }
        command
            .arg("env")
            .args(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(&self.binary).arg("--config").arg(&self.config).arg("run").args(start.words);
        if let Some(path) = start.manager {
            command.env("NOTIFY_SOCKET", path);
        }
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("setpriv (util-linux) starts the daemon")?;
        let stderr = child.stderr.take().context("piped above")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let is_stalled = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (log, is_stalled) = (Arc::clone(&log), Arc::clone(&is_stalled));
            move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    while is_stalled.load(Ordering::Relaxed) {
                        thread::sleep(STALLED_LOOK_EVERY);
                    }
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    if log.len() < MAX_LOG_LINES {
                        log.push(line);
                    }
                }
            }
        });
        let reader = Some(reader);
        Ok(Gateway { launch: self.clone(), child, heir: None, log, is_stalled, reader })
    }

    /// Starts `run` and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with its log.
    pub fn run_until_ready(&self) -> Result<Gateway> {
        let mut gateway = self.run()?;
        gateway.wait_ready()?;
        Ok(gateway)
    }
}

/// What else `run` is started with.
#[derive(Debug, Default)]
pub struct Start<'a> {
    /// Words behind `run`.
    pub words: &'a [&'a str],
    /// A socket that listens, passed as systemd does.
    pub socket: Option<&'a OwnedFd>,
    /// Where the service manager listens.
    pub manager: Option<&'a Path>,
}

/// A running daemon; killed when dropped. Its kernel half stays then, as it does for users.
#[derive(Debug)]
pub struct Gateway {
    launch: Launch,
    child: Child,
    /// The process that has taken over since, which writes to the same log.
    heir: Option<Pid>,
    log: Arc<Mutex<Vec<String>>>,
    is_stalled: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Gateway {
    /// How it was started.
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// Its metrics are elsewhere from now on.
    pub fn moved(&mut self, launch: &Launch) {
        self.launch = launch.clone();
    }

    /// Waits until `/ready` answers 200.
    ///
    /// # Errors
    /// When the daemon ends before, or the limit passes; with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let waited = clock::wait_for("/ready to answer 200", START_LIMIT, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended with {status} instead of getting ready");
            }
            Ok(matches!(self.get("/ready"), Ok((200, _))).then_some(()))
        });
        waited.with_context(|| format!("its log:\n{}", self.log_text()))
    }

    /// Asks the metrics address for a path: status and body.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let address = self.launch.metrics;
        let mut stream = self.launch.namespace.within(|| TcpStream::connect(address))??;
        stream.set_read_timeout(Some(SOON))?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        Ok((status.with_context(|| format!("not HTTP: {answer}"))?, body))
    }

    /// The sum of a metric's samples whose labels include all of `labels`; 0 when there are none.
    ///
    /// # Errors
    /// When `/metrics` does not answer.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum_of_samples(&self.get("/metrics")?.1, name, labels))
    }

    /// Waits until a metric has exactly this value: what an answer was about is counted beside it.
    ///
    /// # Errors
    /// When it does not soon, or `/metrics` does not answer; with its last value.
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Result<()> {
        let mut last = f64::NAN;
        let waited = clock::wait_for(&format!("{name} {labels:?} to be {value}"), SOON, || {
            last = self.metric(name, labels)?;
            Ok((last == value).then_some(()))
        });
        waited.with_context(|| format!("it is {last}"))
    }

    /// Packets counted by the XDP program, of one action and one reason, all interfaces.
    ///
    /// # Errors
    /// When `/metrics` does not answer.
    pub fn xdp_packets(&self, action: &str, reason: &str) -> Result<f64> {
        let labels = [("action", action), ("reason", reason)];
        self.metric("gateway_xdp_packets_total", &labels)
    }

    /// Waits until at least so many packets came to that end, and gives how many did.
    ///
    /// # Errors
    /// When they do not soon, or `/metrics` does not answer.
    pub fn wait_xdp_packets(&self, action: &str, reason: &str, at_least: f64) -> Result<f64> {
        let what = format!("{at_least} packets: {action} {reason}");
        clock::wait_for(&what, SOON, || {
            let packets = self.xdp_packets(action, reason)?;
            Ok((packets >= at_least).then_some(packets))
        })
    }

    /// All log lines so far.
    pub fn log_text(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// The log lines since they were last taken; nobody else sees them again.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on nobody reads what the daemon writes to its log, or somebody does again.
    pub fn stall_log(&self, is_stalled: bool) {
        self.is_stalled.store(is_stalled, Ordering::Relaxed);
    }

    /// Waits for a JSON log line that `wanted` likes, and gives it.
    ///
    /// # Errors
    /// When none comes soon; with the log.
    pub fn wait_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let waited = clock::wait_for(what, SOON, || {
            let text = self.log_text();
            Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(|v| wanted(v)))
        });
        waited.with_context(|| format!("the log:\n{}", self.log_text()))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("{signal} to the daemon"))
    }

    /// Memory of the daemon that is in use, from `/proc`.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process_id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.context("no VmRSS")?.parse().context("VmRSS is no number")
    }

    /// The daemon's process.
    pub fn process_id(&self) -> u32 {
        self.heir.map_or_else(|| self.child.id(), |heir| heir.as_raw().unsigned_abs())
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.process_id())?))
    }

    /// Has the program that is installed now take over, and waits until the process before has ended, for
    /// `limit` at the most; gives its exit status when that can be known, which is the first time.
    ///
    /// # Errors
    /// When nobody takes over, or the process before goes on.
    pub fn upgrade(&mut self, limit: Duration) -> Result<Option<i32>> {
        let told = self.launch.json(&["upgrade"])?;
        let next = told["pid"].as_i64().with_context(|| told.to_string())?;
        let before = self.heir.replace(Pid::from_raw(i32::try_from(next)?));
        clock::wait_for("the process before to end", limit, || {
            Ok(match before {
                Some(before) => (!is_alive(before)).then_some(None),
                None => self.child.try_wait()?.map(|status| status.code()),
            })
        })
    }

    /// Waits until the daemon has ended; gives its exit status, `None` after a signal.
    ///
    /// # Errors
    /// When it goes on longer than `limit`; with its log.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<Option<i32>> {
        self.stall_log(false);
        let waited = clock::wait_for("the daemon to end", limit, || Ok(self.child.try_wait()?));
        if let (Ok(_), Some(reader)) = (&waited, self.reader.take()) {
            // Its last lines may still be on their way; the end of the pipe comes after them.
            reader.join().ok().context("the log's reader panicked")?;
        }
        Ok(waited.with_context(|| format!("its log:\n{}", self.log_text()))?.code())
    }

    /// `kill -9`, and the funeral.
    ///
    /// # Errors
    /// When it was gone already.
    pub fn kill(mut self) -> Result<()> {
        if let Some(heir) = self.heir.take() {
            kill(heir, Signal::SIGKILL).context("kill -9")?;
            return clock::wait_for("the killed to be gone", SOON, || {
                Ok((!is_alive(heir)).then_some(()))
            });
        }
        self.child.kill().context("kill -9")?;
        self.child.wait().context("wait")?;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stall_log(false);
        // All fail only when it is gone already.
        if let Some(heir) = self.heir {
            let _gone = kill(heir, Signal::SIGKILL);
        }
        let _gone = self.child.kill();
        let _buried = self.child.wait();
    }
}

/// Whether a process that may be nobody's child here is there, and not only waiting to be buried.
fn is_alive(process: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat"));
    // The name before the state may hold anything, also brackets.
    status.is_ok_and(|status| !status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Sums samples of the Prometheus text format. A label's value may hold anything but a quote.
fn sum_of_samples(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let sample = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (inside, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest.strip_prefix(' ').map(|_| rest)?),
        };
        let has = |(label, value): &(&str, &str)| {
            inside.split(',').any(|pair| pair == format!("{label}=\"{value}\""))
        };
        labels.iter().all(has).then(|| value.split_whitespace().next()?.parse::<f64>().ok())?
    };
    text.lines().filter_map(sample).sum()
}

/// Makes a configuration's file.
///
/// # Errors
/// When it cannot be written.
pub fn write_config(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_label() {
        let text = "# HELP x_total X\nx_total{a=\"1\",b=\"2\"} 3\nx_total{a=\"1\",b=\"3\"} 4\ny 5\n\
                    x_total_other 9\n";
        for (name, labels, sum) in [
            ("x_total", vec![], 7.0),
            ("x_total", vec![("b", "3")], 4.0),
            ("x_total", vec![("a", "1"), ("b", "2")], 3.0),
            ("x_total", vec![("a", "2")], 0.0),
            ("y", vec![], 5.0),
            ("z", vec![], 0.0),
        ] {
            assert_eq!(sum_of_samples(text, name, &labels), sum, "{name} {labels:?}");
        }
    }
}
