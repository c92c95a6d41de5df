//! The life of a package on a machine: installed, configured, started, killed, upgraded under load,
//! removed. A Debian system boots for it with systemd as its first process; its clients are outside.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::{
    Source,
    boot_machine::{Machine, SHARED, base},
    deb,
    tree::Tree,
};
use crate::{
    demo::table::{Report, Seen},
    harness::{
        clock,
        netns::{self, End, Namespace, cable},
        process::run,
        upstream::Upstream,
    },
};

const INTERFACE: &str = "edge0";
const HOST: &str = "gateway.boot";
const PORT: u16 = 8443;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 84, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 84, 0, 2);
/// On the configuration's list of those who are always dropped.
const DENIED: Ipv4Addr = Ipv4Addr::new(10, 84, 0, 66);
/// Banned by hand.
const BANNED: &str = "10.84.0.77";
const UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9001);

/// For what takes a second or less on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// An attempt to connect that takes longer was dropped: the answer is a few microseconds away.
const DROPPED_AFTER: Duration = Duration::from_millis(400);
/// Load goes on for so long before and after what is done under it.
const LOAD_AROUND: Duration = Duration::from_secs(2);
/// The unit's watchdog waits 30 s; nobody wants to look on that long.
const WATCHDOG_S: u32 = 6;
/// As `systemd-analyze security` measures; from 0 (closed) to 10.
const EXPOSURE_MAX: f64 = 2.5;
/// Requests of one connection.
const REQUESTS: u64 = 20;

/// What an administrator writes.
const CONFIGURATION: &str = r#"
[[listener]]
name = "edge"
address = "0.0.0.0:8443"
protocols = ["h2", "http/1.1"]
[listener.tls]
certificate = "pki/gateway.boot.pem"
private_key = "pki/gateway.boot.key"
client_ca = "pki/ca.pem"

[[upstream]]
name = "orders"
servers = ["http://127.0.0.1:9001"]

[[route]]
name = "orders"
path = "/orders"
upstream = "orders"
require = ["certificate"]

[xdp]
interfaces = ["edge0"]
enforce = true
deny = ["10.84.0.66/32"]
"#;

/// Plays everything; gives whether it held.
///
/// # Errors
/// When the scene cannot be set, or on interrupt.
pub(super) fn boot(source: &Source, tree: &Tree, out: &Path) -> Result<bool> {
    for name in netns::remove_leftovers() {
        eprintln!("removed what a killed run left: {name}");
    }
    let scene = Scene::set(source, tree, out)?;
    let mut report = Report::new(false);
    let seen = scene.play(&mut report);
    report.print();
    if seen.is_err() || !report.all_held() {
        let log = scene.machine.run("journalctl --no-pager --unit=portcullis --lines=200")?;
        let file = out.join("boot.log");
        fs::write(&file, log.stdout)?;
        eprintln!("what the service said is in {}", file.display());
    }
    seen?;
    Ok(report.all_held())
}

/// The machine, its network, and who talks to it. Dropped in this order.
struct Scene {
    machine: Machine,
    _upstream: Upstream,
    outside: Arc<Namespace>,
    gate: Arc<Namespace>,
    shared: tempfile::TempDir,
    /// The package, and the same with a higher version, as the machine sees them.
    packages: [String; 2],
}

impl Scene {
    fn set(source: &Source, tree: &Tree, out: &Path) -> Result<Scene> {
        let shared = netns::directory("boot")?;
        let next = Source { version: format!("{}+next", source.version), ..source.clone() };
        let packages = [source, &next].map(|source| -> Result<String> {
            let made = deb::make(source, tree, &shared.path().join("made"))?;
            let name = made.file_name().context("a package has a name")?.to_string_lossy();
            fs::rename(&made, shared.path().join(&*name))?;
            Ok(format!("{SHARED}/{name}"))
        });
        let [first, second] = packages;
        let packages = [first?, second?];
        let (gate, outside) = (Namespace::new("gate")?, Namespace::new("outside")?);
        cable(
            End { namespace: &gate, interface: INTERFACE },
            End { namespace: &outside, interface: "out0" },
        )?;
        gate.add_address(INTERFACE, GATEWAY.into(), 24)?;
        for address in [CLIENT, DENIED] {
            outside.add_address("out0", address.into(), 24)?;
        }
        let upstream = Upstream::start(&gate, UPSTREAM, None)?;
        let base = base(&out.join("boot"))?;
        eprintln!("package: booting");
        let machine = Machine::boot(&base, &gate, shared.path(), &out.join("boot.console"))?;
        Ok(Scene { machine, _upstream: upstream, outside, gate, shared, packages })
    }

    fn play(&self, report: &mut Report) -> Result<()> {
        report.step(
            "dpkg --install, and nothing else",
            "enabled, not started, and it says why",
            || self.install(),
        )?;
        report.step(
            "systemd's judgement of the unit",
            "verify has no word to say; exposure at most 2.5",
            || self.judge(),
        )?;
        report.step(
            "a configuration, certificates, systemctl start",
            "serves a client with a certificate; not as root; filters",
            || self.start(),
        )?;
        report.step("systemctl reload under load", "applied; no request failed", || {
            self.under_load(|| {
                self.configure("# reloaded\n")?;
                self.machine.succeed("systemctl reload portcullis")?;
                Ok("applied".to_owned())
            })
        })?;
        report.step(
            "a reload with a mistake in it",
            "refused with the reason; serves on",
            || self.reload_badly(),
        )?;
        report.step(
            "kill -9",
            "systemd starts it again; who is denied stays out meanwhile",
            || self.ends("kill --kill-whom=main --signal=SIGKILL"),
        )?;
        report.step(
            "a process that stands still (SIGSTOP)",
            "the watchdog ends it, systemd starts it again; who is denied stays out",
            || self.ends("kill --kill-whom=main --signal=SIGSTOP"),
        )?;
        report.step(
            "a key that lies on the disk encrypted (LoadCredentialEncrypted=)",
            "serves with it, and no other file has it",
            || self.sealed_key(),
        )?;
        report.step("systemctl restart under load", "no request failed", || {
            self.under_load(|| {
                self.replaced(|| self.machine.succeed("systemctl restart portcullis"))
            })
        })?;
        report.step(
            "portcullis upgrade under load",
            "systemd follows the process that took over and hears from it; no request failed",
            || self.take_over(),
        )?;
        report.step(
            "dpkg --install of a higher version under load",
            "another process serves, bans are kept, no request failed, who is denied stays out",
            || self.upgrade(),
        )?;
        report.step("dpkg --remove", "ended well, and nothing is filtered any more", || {
            self.remove()
        })?;
        report.step("dpkg --purge", "no file, pin or link is left; the user is", || self.purge())
    }

    fn install(&self) -> Result<Seen> {
        let said = self.machine.succeed(&format!("dpkg --install {} 2>&1", self.packages[0]))?;
        let enabled = self.machine.run("systemctl is-enabled portcullis")?.stdout;
        let active = self.machine.run("systemctl is-active portcullis")?.stdout;
        let place = self.machine.succeed("stat --format='%a %U:%G' /etc/portcullis")?;
        let file =
            self.machine.succeed("stat --format='%a %U:%G' /etc/portcullis/portcullis.toml")?;
        let why = said.lines().filter(|line| line.contains("not started")).collect::<String>();
        Ok(Seen::new(
            enabled.trim() == "enabled"
                && active.trim() == "inactive"
                && !why.is_empty()
                && place == "750 root:portcullis"
                && file == "640 root:portcullis",
            format!(
                "{}, {}: {why}\n/etc/portcullis {place}, portcullis.toml {file}",
                enabled.trim(),
                active.trim()
            ),
        ))
    }

    fn judge(&self) -> Result<Seen> {
        let units = "portcullis.service portcullis.socket";
        let verify = self.machine.run(&format!("systemd-analyze verify --man=no {units} 2>&1"))?;
        let words = "systemd-analyze security --no-pager portcullis.service | tail -n 1";
        let security = self.machine.succeed(words)?;
        let exposure: Option<f64> = security.split_whitespace().find_map(|word| word.parse().ok());
        Ok(Seen::new(
            verify.status == Some(0)
                && verify.stdout.is_empty()
                && exposure.is_some_and(|exposure| exposure <= EXPOSURE_MAX),
            format!("{}{}", verify.stdout, security.trim_start_matches(['→', ' '])),
        ))
    }

    /// Writes the configuration with this at its end.
    fn configure(&self, more: &str) -> Result<()> {
        fs::write(self.shared.path().join("portcullis.toml"), format!("{CONFIGURATION}{more}"))?;
        // As an administrator edits: owner and mode stay.
        let words = format!("cat {SHARED}/portcullis.toml > /etc/portcullis/portcullis.toml");
        self.machine.succeed(&words).map(drop)
    }

    fn start(&self) -> Result<Seen> {
        self.configure("")?;
        self.machine.succeed(&format!(
            "set -e
             cd /etc/portcullis
             portcullis pki --dir pki init
             portcullis pki --dir pki server {HOST}
             portcullis pki --dir pki client --spiffe spiffe://boot/client --out {SHARED}/client
             cp pki/ca.pem {SHARED}/ca.pem
             chown -R root:portcullis pki
             chmod 750 pki
             chmod 640 pki/{HOST}.key
             mkdir -p /run/systemd/system/portcullis.service.d
             printf '[Service]\\nWatchdogSec={WATCHDOG_S}s\\n' > /run/systemd/system/portcullis.service.d/boot.conf
             systemctl daemon-reload
             portcullis check
             systemctl start portcullis"
        ))?;
        self.machine.succeed(&format!("portcullis bans add {BANNED} --for 1h --reason boot"))?;
        let pid = self.machine.property("MainPID")?;
        let user = self.machine.succeed(&format!("ps -o user= -p {pid}"))?;
        let status = self.machine.succeed(&format!("cat /proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let is_guarded = self.gate.has_xdp(INTERFACE)?;
        let answer = self.ask()?;
        let denied = self.denied()?;
        let journal = self.machine.succeed(
            "journalctl --no-pager --output=cat --priority=info PORTCULLIS_EVENT=started | wc -l",
        )?;
        Ok(Seen::new(
            user.trim() == "portcullis"
                && answer == "200"
                && is_guarded
                && denied == Met::Silence
                && journal == "1",
            format!(
                "answer {answer}; user {}, CapEff {}, NoNewPrivs {}, Seccomp {}; XDP on {INTERFACE}: \
                 {is_guarded}; the denied address meets {denied:?}; the journal finds {journal} start \
                 by its field",
                user.trim(),
                field("CapEff:"),
                field("NoNewPrivs:"),
                field("Seccomp:"),
            ),
        ))
    }

    fn reload_badly(&self) -> Result<Seen> {
        self.configure("[xpd]\n")?;
        let ended = self.machine.run("systemctl reload portcullis")?;
        let why = self.machine.succeed(
            "journalctl --no-pager --unit=portcullis --output=cat | grep -F xpd | tail -n 1",
        )?;
        self.configure("")?;
        let answer = self.ask()?;
        Ok(Seen::new(
            ended.status != Some(0) && answer == "200" && !why.is_empty(),
            format!("systemctl reload ended with {:?}; answer {answer}; {why}", ended.status),
        ))
    }

    /// Has the process end by a signal that it does not survive.
    fn ends(&self, how: &str) -> Result<Seen> {
        let prober = Prober::start(Arc::clone(&self.outside));
        let before = self.machine.property("MainPID")?;
        let started = clock::now();
        self.machine.succeed(&format!("systemctl {how} portcullis.service"))?;
        let after = clock::wait_for("another process that serves", SOON, || {
            let pid = self.machine.property("MainPID")?;
            let state = self.machine.property("ActiveState")?;
            Ok((pid != before && pid != "0" && state == "active").then_some(pid))
        })?;
        let took = started.elapsed();
        let answer = self.ask()?;
        let bans = self.machine.succeed("portcullis bans list")?;
        let met = prober.stop();
        Ok(Seen::new(
            answer == "200" && met.holds() && bans.contains(BANNED),
            format!(
                "process {before}, {:.1} s later {after}; answer {answer}; the ban by hand is {}; the \
                 denied address met {met}",
                took.as_secs_f64(),
                if bans.contains(BANNED) { "kept" } else { "LOST" },
            ),
        ))
    }

    /// Gives the server's key into systemd's keeping.
    fn sealed_key(&self) -> Result<Seen> {
        self.machine.succeed(&format!(
            "set -e
             cd /etc/portcullis/pki
             systemd-creds encrypt --with-key=host --name=server.key {HOST}.key {HOST}.key.sealed
             rm {HOST}.key
             printf '[Service]\\nLoadCredentialEncrypted=server.key:/etc/portcullis/pki/{HOST}.key.sealed\\n' \
                 > /run/systemd/system/portcullis.service.d/key.conf
             systemctl daemon-reload"
        ))?;
        let key = format!("\"pki/{HOST}.key\"");
        let sealed = "\"/run/credentials/portcullis.service/server.key\"";
        let text = CONFIGURATION.replace(&key, sealed);
        fs::write(self.shared.path().join("portcullis.toml"), text)?;
        let words = format!("cat {SHARED}/portcullis.toml > /etc/portcullis/portcullis.toml");
        self.machine.succeed(&words)?;
        let replaced = self.replaced(|| self.machine.succeed("systemctl restart portcullis"))?;
        let answer = self.ask()?;
        Ok(Seen::new(answer == "200", format!("{replaced}; answer {answer}")))
    }

    /// Does something and waits until another process serves.
    fn replaced(&self, act: impl FnOnce() -> Result<String>) -> Result<String> {
        let before = self.machine.property("MainPID")?;
        act()?;
        let after = clock::wait_for("another process that serves", SOON, || {
            let pid = self.machine.property("MainPID")?;
            let state = self.machine.property("ActiveState")?;
            Ok((pid != before && pid != "0" && state == "active").then_some(pid))
        })?;
        Ok(format!("process {before}, then {after}"))
    }

    /// The same program takes over: nobody's child at first, and systemd's service all the same.
    fn take_over(&self) -> Result<Seen> {
        let restarts = self.machine.property("NRestarts")?;
        let seen =
            self.under_load(|| self.replaced(|| self.machine.succeed("portcullis upgrade")))?;
        let pid = self.machine.property("MainPID")?;
        let serving = self.machine.succeed("portcullis status --json")?;
        let serving: Value = serde_json::from_str(&serving).context("portcullis status")?;
        // Longer than systemd waits for a sign of life.
        clock::pause(Duration::from_secs(u64::from(2 * WATCHDOG_S)))?;
        let later = self.machine.property("MainPID")?;
        let state = self.machine.property("ActiveState")?;
        let again = self.machine.property("NRestarts")?;
        Ok(Seen::new(
            seen.held
                && serving["pid"] == pid.parse::<u32>()?
                && later == pid
                && state == "active"
                && again == restarts,
            format!(
                "{}; {} serves, systemd's main process is {pid}, and {later} after {} s more; {state}, \
                 started again {again} times, before {restarts}",
                seen.measured,
                serving["pid"],
                2 * WATCHDOG_S
            ),
        ))
    }

    fn upgrade(&self) -> Result<Seen> {
        let prober = Prober::start(Arc::clone(&self.outside));
        let mut said = String::new();
        let seen = self.under_load(|| {
            self.replaced(|| {
                said =
                    self.machine.succeed(&format!("dpkg --install {} 2>&1", self.packages[1]))?;
                Ok(String::new())
            })
        })?;
        let met = prober.stop();
        let bans = self.machine.succeed("portcullis bans list")?;
        let version =
            self.machine.succeed("dpkg-query --show --showformat='${Version}' portcullis")?;
        let over =
            said.lines().find(|line| line.contains("taken over")).unwrap_or("NOT taken over");
        Ok(Seen::new(
            seen.held && met.holds() && bans.contains(BANNED) && over.starts_with("portcullis"),
            format!(
                "package {version}: {over}; {}; the ban by hand is {}; the denied address met {met}",
                seen.measured,
                if bans.contains(BANNED) { "kept" } else { "LOST" },
            ),
        ))
    }

    fn remove(&self) -> Result<Seen> {
        self.machine.succeed("dpkg --remove portcullis 2>&1")?;
        let active = self.machine.run("systemctl is-active portcullis")?.stdout;
        let result = self.machine.property("Result")?;
        let is_guarded = self.gate.has_xdp(INTERFACE)?;
        let kept = self.machine.run("test -e /etc/portcullis/portcullis.toml")?.status == Some(0);
        Ok(Seen::new(
            active.trim() == "inactive" && result == "success" && !is_guarded && kept,
            format!(
                "service {}, result {result}; XDP on {INTERFACE}: {is_guarded}; configuration kept: {kept}",
                active.trim()
            ),
        ))
    }

    fn purge(&self) -> Result<Seen> {
        // What the administrator made is the administrator's to remove.
        self.machine.succeed(
            "rm -rf /etc/portcullis/pki /run/systemd/system/portcullis.service.d; \
             dpkg --purge portcullis 2>&1",
        )?;
        let left = self.machine.succeed(
            "find / -xdev -path /proc -prune -o -path /var/log -prune -o -path /mnt -prune \
             -o -name '*portcullis*' -print; find /run /sys/fs/bpf -name '*portcullis*'; \
             find /sys/fs/bpf -mindepth 1 -not -name '*.debug'",
        )?;
        let user = self.machine.run("getent passwd portcullis")?.stdout;
        Ok(Seen::new(
            left.is_empty() && !user.is_empty(),
            if left.is_empty() { "nothing is left".to_owned() } else { format!("left: {left}") },
        ))
    }

    /// One request with the client's certificate, from outside; gives the status.
    fn ask(&self) -> Result<String> {
        let ended = run(self.client().arg(url("/orders/1")))?;
        ensure!(ended.status == Some(0), "curl: {}", ended.stderr.trim());
        Ok(ended.stdout.trim().to_owned())
    }

    fn client(&self) -> Command {
        client(&self.outside, self.shared.path())
    }

    fn denied(&self) -> Result<Met> {
        self.outside.within(meet)?
    }

    /// Does something while clients ask all the time.
    fn under_load(&self, act: impl FnOnce() -> Result<String>) -> Result<Seen> {
        let load = Load::start(&self.outside, self.shared.path());
        clock::pause(LOAD_AROUND)?;
        let did = act()?;
        clock::pause(LOAD_AROUND)?;
        let counted = load.stop();
        let word = counted.first_failure.as_deref().unwrap_or("none failed");
        Ok(Seen::new(
            counted.failed == 0 && counted.good > 0,
            format!(
                "{did}; {} requests answered, {} failed ({word})",
                counted.good, counted.failed
            ),
        ))
    }
}

fn url(path: &str) -> String {
    format!("https://{HOST}:{PORT}{path}")
}

fn client(outside: &Namespace, shared: &Path) -> Command {
    let file = |name: &str| shared.join(name);
    let mut command = outside.command("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "30", "--output", "/dev/null"])
        .args(["--interface", &CLIENT.to_string(), "--write-out", "%{http_code}\n"])
        .arg("--resolve")
        .arg(format!("{HOST}:{PORT}:{GATEWAY}"))
        .arg("--cacert")
        .arg(file("ca.pem"))
        .arg("--cert")
        .arg(file("client.pem"))
        .arg("--key")
        .arg(file("client.key"));
    command
}

/// Clients that ask all the time, some requests on each connection.
struct Load {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Counted>>,
}

/// What became of their requests.
#[derive(Debug, Default)]
struct Counted {
    good: u64,
    failed: u64,
    first_failure: Option<String>,
}

impl Load {
    fn start(outside: &Arc<Namespace>, shared: &Path) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let clients = ["--http2", "--http1.1"].map(|protocol| {
            let (over, outside) = (Arc::clone(&over), Arc::clone(outside));
            let shared: PathBuf = shared.to_owned();
            thread::spawn(move || {
                let mut counted = Counted::default();
                while !over.load(Ordering::Relaxed) {
                    let mut command = client(&outside, &shared);
                    command.arg(protocol).arg(url(&format!("/orders/[1-{REQUESTS}]")));
                    match run(&mut command) {
                        Ok(ended) => counted.add(&ended.stdout, ended.stderr.trim()),
                        Err(error) => counted.add("", &error.to_string()),
                    }
                }
                counted
            })
        });
        Load { over, clients: clients.into() }
    }

    fn stop(self) -> Counted {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Counted::default();
        for client in self.clients {
            // A client that panicked has lost its requests.
            let one = client.join().unwrap_or(Counted { failed: REQUESTS, ..Counted::default() });
            all.good += one.good;
            all.failed += one.failed;
            all.first_failure = all.first_failure.or(one.first_failure);
        }
        all
    }
}

impl Counted {
    /// One line a request, as curl writes them; those without a line failed.
    fn add(&mut self, statuses: &str, error: &str) {
        let good = statuses.lines().filter(|status| *status == "200").count() as u64;
        self.good += good;
        self.failed += REQUESTS - good.min(REQUESTS);
        if good < REQUESTS && self.first_failure.is_none() {
            let other = statuses.lines().find(|status| *status != "200").unwrap_or_default();
            self.first_failure = Some(format!("{other} {error}"));
        }
    }
}

/// What an attempt to connect from the denied address meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// Dropped by the XDP program.
    Silence,
    /// The kernel's "nobody listens": nothing filters.
    Refusal,
    /// Somebody who accepts: nothing filters.
    Answer,
}

fn meet() -> Result<Met> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((DENIED, 0)).into())?;
    let gateway = SocketAddr::from((GATEWAY, PORT)).into();
    match socket.connect_timeout(&gateway, DROPPED_AFTER) {
        Ok(()) => Ok(Met::Answer),
        Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => Ok(Met::Refusal),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(Met::Silence),
        Err(error) => bail!("connecting from {DENIED}: {error}"),
    }
}

/// Tries from the denied address all the time.
struct Prober {
    over: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 3]>,
    thread: JoinHandle<()>,
}

/// How often it met what.
struct MetAll {
    silence: u64,
    refusal: u64,
    answer: u64,
}

impl Prober {
    fn start(outside: Arc<Namespace>) -> Prober {
        let over = Arc::new(AtomicBool::new(false));
        let counts = Arc::new([const { AtomicU64::new(0) }; 3]);
        let thread = thread::spawn({
            let (over, counts) = (Arc::clone(&over), Arc::clone(&counts));
            move || {
                // A namespace that cannot be entered leaves no count, and that does not hold.
                let _counted = outside.within(|| {
                    while !over.load(Ordering::Relaxed) {
                        let Ok(met) = meet() else { continue };
                        counts[met as usize].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Prober { over, counts, thread }
    }

    fn stop(self) -> MetAll {
        self.over.store(true, Ordering::Relaxed);
        // A thread that panicked has counted what it counted.
        let _ended = self.thread.join();
        let count = |met: Met| self.counts[met as usize].load(Ordering::Relaxed);
        MetAll {
            silence: count(Met::Silence),
            refusal: count(Met::Refusal),
            answer: count(Met::Answer),
        }
    }
}

impl MetAll {
    fn holds(&self) -> bool {
        self.silence > 0 && self.refusal == 0 && self.answer == 0
    }
}

impl std::fmt::Display for MetAll {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "silence {} times, a refusal {}, an answer {}",
            self.silence, self.refusal, self.answer
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_an_answer_has_failed() {
        let mut counted = Counted::default();
        counted.add(&"200\n".repeat(REQUESTS as usize), "");
        assert_eq!((counted.good, counted.failed), (REQUESTS, 0));
        counted.add("200\n503\n", "curl: (56) reset");
        assert_eq!((counted.good, counted.failed), (REQUESTS + 1, REQUESTS - 1));
        assert_eq!(counted.first_failure.as_deref(), Some("503 curl: (56) reset"));
    }
}
