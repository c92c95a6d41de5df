//! The actors, the steps that they take, and the book that is kept of what may happen meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError, mpsc::Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    clients::{Client, Shared},
    drops::Drops,
    full::Table,
    judge::{
        CULPRITS, Explains, FIRST_CULPRIT, LogBook, Outcome, Seen, Sentence, Window, number, path,
        unexplained, wrong_arrival, wrong_ban, wrong_drop,
    },
    plan::{Fault, File, Frames, Side, Step, Whom},
};
use crate::{
    binary,
    follow::{wait_refused, wait_served},
    handover::GONE,
    harness::{
        client::{Answer, Credential},
        clock,
        flood::{self, Flood, Plan, Sources, Transport, Wire},
        gateway::{Gateway, Launch, SOON, START_LIMIT, write_config},
        idp::{Idp, Manner},
        load::Target,
        pki, process,
        site::{CLIENT_INTERFACE, GATEWAY, HOST, INTERFACE, SERVER, Site},
        tokens::{self, Mint},
        upstream::Upstream,
    },
    host::{Says, heat, keep_clock},
    privileges::agent_of,
};

/// The upstream that comes and goes.
const UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9003);
/// What it publishes.
const KEYS: &str = "live.jwks";
/// The issuer.
const ISSUER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9444);

/// Who asks between the steps; never banned, like all from .64 to .95.
const PROBER: u8 = 64;
/// Who sends what is bad, and is not banned for it.
const SINNER: u8 = 65;
/// Whose certificates are revoked.
const VICTIM: u8 = 66;
/// The prober's name.
const PROBER_NAME: &str = "prober";

/// The first step of the ladder, and the only one.
const BAN: &str = "8s";
/// An operator's.
const BAN_BY_HAND: &str = "6s";
/// Longer than it takes to see that it holds while the table is full.
const BAN_IN_FULL_TABLE: &str = "2m";
/// The four addresses around one of those who may be banned are all of such.
const CULPRITS_PREFIX: u8 = 30;
/// Forged tokens after which their source must be banned, whatever good clients say for it.
const FORGED_MAX: usize = 60;
/// A banned source's packets vanish; nobody waits for longer.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Whose packets were lost while something was broken asks again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Whoever is not banned is answered, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(400);
/// Told of, because somebody may want to know why.
const SLOW: Duration = Duration::from_secs(5);
/// Between two questions of somebody who waits for an answer to change; each starts a program.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Tokens are good for an hour; they are replaced long before.
const TOKENS_LAST: &str = "1h";
const TOKENS_RENEWED: Duration = Duration::from_secs(20 * 60);
/// Longer than any request takes.
const WINDOWS_KEPT: Duration = Duration::from_secs(600);
/// Lines of the log that are shown of a rehearsal that broke, those about requests and the others.
const REQUESTS_SHOWN: usize = 10;
const NEWS_SHOWN: usize = 60;
/// Frames of one flood: enough to fill the table of sources many times over.
const FLOOD_FRAMES: u64 = 1 << 16;
/// Connections that come while there are no descriptors.
const STARVING: usize = 24;

/// How a request for the route of low priority begins, which is open to everybody.
const REPORTS: &str = "GET /reports ";

const COLD_C: f64 = 50.0;
/// Routes of low priority wait, and `/ready` still says 200.
const HOT_C: f64 = 90.2;
const WRONG_BY_S: f64 = 40.0;

/// What may be said of an upstream that is gone, or that nobody can connect to.
const UPSTREAM_WORDS: &[&str] =
    &["upstream_unreachable", "upstream_failed", "upstream_timeout", "no_healthy_upstream"];
/// What may be said while nobody has the issuer's keys.
const ISSUER_WORDS: &[&str] = &["issuer_unavailable"];

/// What may grow and has to shrink again.
#[derive(Clone, Copy, Debug)]
struct Size {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
}

/// What may stay of what grew: sessions to resume, pieces of memory that the allocator keeps.
const LEFT_MAX_KIB: u64 = 96 * 1024;
/// Idle connections to the upstream, of two workers.
const DESCRIPTORS_LEFT_MAX: usize = 32;
/// The runtime's threads for files and names come and go.
const THREADS_LEFT_MAX: usize = 8;

impl Size {
    fn of(gateway: &Gateway) -> Result<Size> {
        let count = |what: &str| -> Result<usize> {
            Ok(fs::read_dir(format!("/proc/{}/{what}", gateway.process_id()))?.count())
        };
        Ok(Size {
            resident_kib: gateway.resident_kib()?,
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }

    fn is_back(&self, start: &Size) -> bool {
        self.resident_kib <= start.resident_kib + LEFT_MAX_KIB
            && self.descriptors <= start.descriptors + DESCRIPTORS_LEFT_MAX
            && self.threads <= start.threads + THREADS_LEFT_MAX
    }
}

/// What the upstream saw.
#[derive(Debug, Default)]
struct Witness {
    arrived: HashMap<u64, u32>,
    wrong: Vec<String>,
}

impl Witness {
    fn look(&mut self, line: &str, headers: &[(String, String)]) {
        if line.starts_with(REPORTS) {
            return;
        }
        self.wrong.extend(wrong_arrival(line, headers));
        let number = line.split(' ').nth(1).and_then(number);
        *self.arrived.entry(number.unwrap_or(0)).or_default() += 1;
    }
}

/// Numbers of what was done, for whoever reads the outcome.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) served: u64,
    pub(super) refused: u64,
    pub(super) broken: u64,
    /// Connections that the server ended in good order.
    pub(super) sent_on: u64,
    pub(super) misdeeds: u64,
    pub(super) bans: u64,
    /// Rows of drops, each looked at for somebody innocent.
    pub(super) drops: u64,
    /// Lines of the log.
    pub(super) lines: u64,
    pub(super) slowest: Duration,
    /// Memory at the start and in the end.
    pub(super) resident_kib: [u64; 2],
}

/// Everything that a rehearsal acts on.
pub(super) struct World<'s> {
    site: &'s Site,
    shared: &'s Shared,
    seen: Receiver<Seen>,
    clients: &'s [Client],
    launch: Launch,
    config: String,
    gateway: Option<Gateway>,
    drops: Drops,
    start: Size,
    upstream: Option<Upstream>,
    idp: Idp,
    keys: PathBuf,
    mint: Mint,
    impostor: Mint,
    minted: Instant,
    probe_token: String,
    stranger: Credential,
    says: Arc<Mutex<Says>>,
    sysfs: PathBuf,
    witness: Arc<Mutex<Witness>>,
    windows: Vec<Window>,
    faults: Vec<Fault>,
    /// Whether a daemon was started while the issuer was gone.
    has_no_keys: bool,
    sentences: Vec<Sentence>,
    book: LogBook,
    /// The last lines of the log that are not about a request.
    news: VecDeque<String>,
    /// Since when nobody reads the log, as long as nobody does.
    stalled: Instant,
    made: u32,
    tally: Tally,
}

/// What the site is configured with, before any of its actors is started.
pub(super) fn configure(site: &mut Site, mint: &Mint) -> Result<()> {
    let sysfs = site.directory.path().join("sys");
    heat(&sysfs, COLD_C)?;
    fs::copy(mint.jwks(), site.directory.path().join(KEYS))?;
    site.guard("max_sources = 4096");
    site.config.upstream = UPSTREAM;
    site.config.keys =
        format!("jwks_url = \"http://{ISSUER}/keys\"\nrefresh = \"1h\"\ncooldown = \"1s\"");
    // A busy machine is not what is rehearsed.
    site.config.clients = "[clients]\nhandshake = \"1m\"\nhead = \"1m\"\nidle = \"75s\"".to_owned();
    site.config.bans = format!("ladder = [\"{BAN}\"]\nnever = [\"10.99.0.64/27\"]");
    site.config.routes += &format!(
        "\n[[route]]\nname = \"reports\"\npath = \"/reports\"\nupstream = \"orders\"\nrequire = []\n\
         priority = \"low\"\n\n[host]\nsysfs = {:?}\n",
        sysfs.display().to_string()
    );
    Ok(())
}

/// Tokens of all clients.
pub(super) fn mint_all(mint: &Mint, clients: &[Client]) -> Result<Vec<String>> {
    clients.iter().map(|client| good(mint, &client.name)).collect()
}

fn good(mint: &Mint, who: &str) -> Result<String> {
    mint.mint(who, tokens::AUDIENCE, &["--scope", "read:orders", "--lifetime", TOKENS_LAST])
}

/// Replaces a file in one step.
fn replace(file: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = file.with_extension("new");
    write(&beside)?;
    Ok(fs::rename(beside, file)?)
}

fn is_of_request(line: &str) -> bool {
    line.contains(r#""event":"request""#)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn upstream(site: &Site, witness: &Arc<Mutex<Witness>>) -> Result<Upstream> {
    // The port of one that has just ended may still be its own for a moment.
    clock::wait_for("the upstream's port to be free", SOON, || {
        let witness = Arc::clone(witness);
        let look = move |request: &crate::harness::upstream::Request| {
            locked(&witness).look(&request.line, &request.headers);
        };
        Ok(Upstream::watched(&site.gateway_host, UPSTREAM, look).ok())
    })
}

impl<'s> World<'s> {
    /// Starts everything but the clients.
    pub(super) fn new(
        site: &'s Site,
        clients: &'s [Client],
        shared: &'s Shared,
        mint: Mint,
        seen: Receiver<Seen>,
    ) -> Result<World<'s>> {
        let directory = site.directory.path();
        for last in [PROBER, SINNER, VICTIM] {
            site.client_address(last)?;
        }
        for last in FIRST_CULPRIT..FIRST_CULPRIT + CULPRITS {
            site.client_address(last)?;
        }
        let keys = directory.join(KEYS);
        let idp = Idp::start(&site.gateway_host, ISSUER, keys.clone(), None)?;
        let witness = Arc::<Mutex<Witness>>::default();
        let upstream = upstream(site, &witness)?;
        let says = keep_clock(site, Says { leap: 0, slow_s: 0.0 })?;
        let mut launch = site.launch()?;
        launch.binary = directory.join("portcullis");
        fs::copy(binary(), &launch.binary)?;
        let config = site
            .config
            .to_string()
            .replace("[\"h2\", \"http/1.1\"]", "[\"h3\", \"h2\", \"http/1.1\"]")
            .replace("workers = 1", "workers = 2")
            .replace("connect_timeout = \"2s\"", "connect_timeout = \"30s\"")
            .replace("response_timeout = \"3s\"", "response_timeout = \"60s\"");
        write_config(&launch.config, &config)?;
        let gateway = launch.run_until_ready()?;
        let start = Size::of(&gateway)?;
        let drops = Drops::follow(&launch)?;
        Ok(World {
            site,
            shared,
            seen,
            clients,
            launch,
            config,
            gateway: Some(gateway),
            drops,
            start,
            upstream: Some(upstream),
            idp,
            keys,
            impostor: Mint::new(binary(), directory, "impostor", "ES256")?,
            minted: clock::now(),
            probe_token: good(&mint, PROBER_NAME)?,
            mint,
            stranger: pki::stranger(&site.directory)?,
            says,
            sysfs: directory.join("sys"),
            witness,
            windows: Vec::new(),
            faults: Vec::new(),
            has_no_keys: false,
            sentences: Vec::new(),
            book: LogBook::default(),
            news: VecDeque::new(),
            stalled: clock::now(),
            made: 0,
            tally: Tally::default(),
        })
    }

    fn gateway(&self) -> Result<&Gateway> {
        self.gateway.as_ref().context("a daemon is running between the steps")
    }

    /// The last lines of the log, for whoever has to find out.
    pub(super) fn last_lines(&self) -> String {
        let own = self.gateway.as_ref().map(Gateway::log_text).unwrap_or_default();
        let (requests, news): (Vec<&str>, Vec<&str>) = own.lines().partition(|l| is_of_request(l));
        let requests = &requests[requests.len().saturating_sub(REQUESTS_SHOWN)..];
        let news = self.news.iter().map(String::as_str).chain(news);
        news.chain(requests.iter().copied()).collect::<Vec<_>>().join("\n")
    }

    fn keep_news(&mut self, lines: Vec<String>) {
        self.news.extend(lines.into_iter().filter(|line| !is_of_request(line)));
        self.news.drain(..self.news.len().saturating_sub(NEWS_SHOWN));
    }

    fn open(&mut self, why: &'static str, explains: Explains) {
        self.windows.push(Window { why, explains, from: clock::now(), to: None });
    }

    fn close(&mut self, why: &str) {
        let now = clock::now();
        for window in self.windows.iter_mut().filter(|window| window.why == why) {
            window.to.get_or_insert(now);
        }
    }

    /// Does a step, and judges what was seen until then.
    pub(super) fn take(&mut self, step: Step) -> Result<()> {
        if clock::now() - self.minted > TOKENS_RENEWED {
            self.renew_tokens()?;
        }
        match step {
            Step::Begin(fault) => {
                self.begin(fault)?;
                self.faults.push(fault);
            }
            Step::End(fault) => {
                self.faults.retain(|other| *other != fault);
                self.end(fault)?;
            }
            Step::KillDaemon => self.kill_daemon()?,
            Step::KillAgent => self.kill_agent()?,
            Step::Upgrade => self.upgrade()?,
            Step::Starve => self.starve()?,
            Step::CutCable(side) => self.cut_cable(side)?,
            Step::Reload => self.reload()?,
            Step::ReloadRefused => self.reload_refused()?,
            Step::HalfWritten(file) => self.half_written(file)?,
            Step::Revoke => self.revoke()?,
            Step::RenewServer => self.renew_server()?,
            Step::RotateKeys => self.rotate_keys()?,
            Step::Ban { whom, is_lifted } => self.ban(whom, is_lifted)?,
            Step::FullTable => self.fill_table()?,
            Step::Forge => self.forge()?,
            Step::Misdeeds => self.misdeeds()?,
            Step::Flood(frames) => self.flood(frames)?,
            Step::Rest => clock::pause(LOOK)?,
        }
        self.well().context("after the step")?;
        self.judge()
    }

    /// Looks at everything that was seen since the last time.
    fn judge(&mut self) -> Result<()> {
        let lines = self.gateway()?.take_log();
        let now = clock::now();
        self.book.read(&lines, now);
        self.tally.lines += lines.len() as u64;
        self.keep_news(lines);
        let mut wrong = Vec::new();
        for seen in self.seen.try_iter() {
            wrong.extend(unexplained(&seen, &self.windows));
            let took = seen.answered - seen.asked;
            if took > SLOW {
                println!("  slow: {took:?} {} {} {:?}", seen.protocol, seen.path, seen.outcome);
            }
            self.tally.slowest = self.tally.slowest.max(took);
            let mut witness = locked(&self.witness);
            let arrived = number(&seen.path).and_then(|number| witness.arrived.remove(&number));
            match &seen.outcome {
                Outcome::Served => {
                    self.tally.served += 1;
                    if arrived.is_none() {
                        wrong.push(format!("served by nobody: {seen:?}"));
                    }
                }
                Outcome::Refused { reason, request_id, .. } => {
                    self.tally.refused += 1;
                    self.book.owe(request_id, reason, seen.answered);
                    if arrived.is_some() && !UPSTREAM_WORDS.contains(&reason.as_str()) {
                        wrong.push(format!("refused, and yet let in: {seen:?}"));
                    }
                }
                Outcome::Broken(_) | Outcome::GivenUp => self.tally.broken += 1,
                Outcome::SentOn => self.tally.sent_on += 1,
            }
        }
        wrong.append(&mut locked(&self.witness).wrong);
        if !self.faults.contains(&Fault::LogStalled) {
            wrong.extend(self.book.unexplained(now));
        }
        let drops = self.drops.take();
        self.tally.drops += drops.len() as u64;
        wrong.extend(drops.iter().filter_map(wrong_drop));
        if self.drops.has_ended()? {
            self.drops = Drops::follow(&self.launch)?;
        }
        wrong.extend(self.sentences_broken()?);
        self.windows.retain(|window| {
            window.to.is_none()
                || now.checked_sub(WINDOWS_KEPT).is_none_or(|by| !window.is_over(by))
        });
        if let Some(first) = wrong.first() {
            bail!("{} things are wrong; the first: {first}", wrong.len());
        }
        Ok(())
    }

    /// What is wrong with the bans: one ended too early or did not end, or is on somebody innocent.
    fn sentences_broken(&mut self) -> Result<Vec<String>> {
        let before = clock::now();
        let list = self.bans()?;
        let after = clock::now();
        let is_listed =
            |sentence: &Sentence| list.iter().any(|(source, _)| *source == sentence.source);
        let broken =
            self.sentences.iter().filter_map(|one| one.wrong(is_listed(one), before, after));
        let wrong = broken.chain(list.iter().filter_map(|(source, _)| wrong_ban(source))).collect();
        self.sentences.retain(|sentence| is_listed(sentence) || before < sentence.ends_after);
        Ok(wrong)
    }

    /// Bans in force and the seconds that are left of each. An agent that has just been killed is waited for.
    fn bans(&self) -> Result<Vec<(String, f64)>> {
        let list = clock::wait_for("a list of bans", SOON, || {
            let ended = self.launch.ended(&["bans", "list", "--json"])?;
            Ok((ended.status == Some(0)).then_some(ended.stdout))
        })?;
        let list: serde_json::Value = serde_json::from_str(&list)?;
        let list = list.as_array().context("an array")?;
        let row = |row: &serde_json::Value| {
            Some((row["source"].as_str()?.to_owned(), row["remaining_s"].as_f64()?))
        };
        list.iter().map(|one| row(one).with_context(|| one.to_string())).collect()
    }

    fn ask(&self, last: u8, path: &str, token: &str, limit: Duration) -> Result<Answer> {
        let source = Ipv4Addr::new(10, 99, 0, last).into();
        let request = self.site.request(path).from(source).limit(limit);
        if token.is_empty() { request.send() } else { request.token(token).send() }
    }

    /// Asks as a good client, from an address.
    fn probe(&mut self, last: u8, token: &str, limit: Duration) -> Result<Answer> {
        let path = path(true, PROBER_NAME, self.shared.number());
        let answer = self.ask(last, &path, token, limit)?;
        self.note(&answer);
        Ok(answer)
    }

    /// Whatever was refused with a number is to be found in the log.
    fn note(&mut self, answer: &Answer) {
        let body = answer.json().unwrap_or_default();
        if let Some(id) = body["request_id"].as_str() {
            self.book.owe(id, &answer.reason(), clock::now());
        }
    }

    /// Whether an answer is that of somebody who is let in, as far as what is broken now allows.
    fn is_let_in(&self, answer: &Answer) -> bool {
        let reason = answer.reason();
        let is_of = |words: &[&str]| words.contains(&reason.as_str());
        answer.status == 200
            || (self.faults.contains(&Fault::UpstreamGone) && is_of(UPSTREAM_WORDS))
            || (self.has_no_keys && is_of(ISSUER_WORDS))
    }

    /// Waits until a good client is served again.
    fn well(&mut self) -> Result<()> {
        let token = self.probe_token.clone();
        let until = clock::now() + 2 * START_LIMIT;
        loop {
            let answer = self.probe(PROBER, &token, ASK_AGAIN)?;
            if self.is_let_in(&answer) {
                return Ok(());
            }
            ensure!(clock::now() < until, "nobody is served any more: {answer:?}");
            clock::pause(LOOK_AGAIN)?;
        }
    }

    fn begin(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::UpstreamGone => {
                self.open("the upstream is gone", Explains::Words(UPSTREAM_WORDS));
                drop(self.upstream.take());
            }
            Fault::IssuerGone => {
                let manners =
                    [Manner::Close, Manner::Status(500), Manner::Garbage("{\"keys\": 7}")];
                let manner = manners[self.made as usize % manners.len()].clone();
                self.made += 1;
                self.idp.behave(manner);
            }
            Fault::Heat => {
                heat(&self.sysfs, HOT_C)?;
                self.wait_report(503)?;
            }
            Fault::ClockOff => {
                *locked(&self.says) = Says { leap: 0, slow_s: WRONG_BY_S };
                self.wait_ready(503)?;
            }
            Fault::LogStalled => {
                self.gateway()?.stall_log(true);
                self.stalled = clock::now();
            }
        }
        Ok(())
    }

    fn end(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::UpstreamGone => {
                self.upstream = Some(upstream(self.site, &self.witness)?);
                self.well()?;
                self.close("the upstream is gone");
            }
            Fault::IssuerGone => {
                self.idp.behave(Manner::Well);
                if std::mem::take(&mut self.has_no_keys) {
                    // Whoever has failed often asks less often.
                    clock::wait_for("the keys", 2 * START_LIMIT, || {
                        let token = self.probe_token.clone();
                        let answer = self.probe(PROBER, &token, ASK_AGAIN)?;
                        let is_unknown = ISSUER_WORDS.contains(&answer.reason().as_str());
                        Ok((answer.exit == 0 && !is_unknown).then_some(()))
                    })?;
                    self.close("nobody has the keys");
                }
            }
            Fault::Heat => {
                heat(&self.sysfs, COLD_C)?;
                self.wait_report(200)?;
            }
            Fault::ClockOff => {
                *locked(&self.says) = Says { leap: 0, slow_s: 0.0 };
                self.wait_ready(200)?;
            }
            Fault::LogStalled => {
                self.gateway()?.stall_log(false);
                self.book.forgive(self.stalled, clock::now());
            }
        }
        Ok(())
    }

    /// Waits for what becomes of somebody who matters less. That the upstream is gone is as good as served.
    fn wait_report(&mut self, status: u16) -> Result<()> {
        let until = clock::now() + 2 * START_LIMIT;
        loop {
            // It is public, and no business of the witness.
            let answer = self.ask(PROBER, "/reports", "", ASK_AGAIN)?;
            self.note(&answer);
            let is_shed = answer.reason() == "host_strained";
            if answer.exit == 0 && is_shed == (status == 503) {
                return Ok(());
            }
            ensure!(clock::now() < until, "not {status}: {answer:?}");
            clock::pause(LOOK_AGAIN)?;
        }
    }

    fn wait_ready(&self, status: u16) -> Result<()> {
        clock::wait_for(&format!("/ready to say {status}"), 2 * START_LIMIT, || {
            Ok((self.gateway()?.get("/ready")?.0 == status).then_some(()))
        })
    }

    fn kill_daemon(&mut self) -> Result<()> {
        self.nobody_good_is_suspected()?;
        self.open("kill -9", Explains::Breaks);
        // Until the issuer has answered for the first time.
        self.open("kill -9", Explains::Words(ISSUER_WORDS));
        if self.faults.contains(&Fault::IssuerGone) {
            self.open("nobody has the keys", Explains::Words(ISSUER_WORDS));
            self.has_no_keys = true;
        }
        let gateway = self.gateway.take().context("a daemon")?;
        let is_stalled = self.faults.contains(&Fault::LogStalled);
        gateway.stall_log(false);
        let lines = gateway.take_log();
        self.book.read(&lines, clock::now());
        gateway.kill()?;
        self.keep_news(lines);
        let killed = clock::now();
        self.book.forgive(killed, killed);
        let gateway = self.launch.run()?;
        let started = clock::wait_for("the next daemon", 2 * START_LIMIT, || {
            Ok(gateway.get("/live").is_ok_and(|(status, _)| status == 200).then_some(()))
        });
        started.with_context(|| gateway.log_text())?;
        gateway.stall_log(is_stalled);
        self.gateway = Some(gateway);
        self.well()?;
        self.start = Size::of(self.gateway()?)?;
        self.shared.tell_of_death();
        self.close("kill -9");
        Ok(())
    }

    fn upgrade(&mut self) -> Result<()> {
        self.nobody_good_is_suspected()?;
        // Another file, as a package's manager leaves it.
        replace(&self.launch.binary, |beside| Ok(fs::copy(binary(), beside).map(drop)?))?;
        self.open("an upgrade", Explains::Farewells);
        let gateway = self.gateway.as_mut().context("a daemon")?;
        let status = gateway.upgrade(GONE)?;
        ensure!(status.is_none_or(|status| status == 0), "the one before ended with {status:?}");
        let runs = fs::read_link(format!("/proc/{}/exe", gateway.process_id()))?;
        ensure!(runs == self.launch.binary, "{} runs", runs.display());
        self.well()?;
        self.start = Size::of(self.gateway()?)?;
        self.close("an upgrade");
        Ok(())
    }

    fn nobody_good_is_suspected(&self) -> Result<()> {
        for client in self.clients {
            let told = self.launch.json(&["explain", &client.source.to_string()])?;
            let is_clean = told["ban"].is_null() && told["points"].as_f64() == Some(0.0);
            ensure!(is_clean, "a good client is suspected: {told}");
        }
        Ok(())
    }

    fn kill_agent(&mut self) -> Result<()> {
        let gateway = self.gateway()?;
        let ended = || gateway.metric("gateway_agent_ended_total", &[]);
        let before = ended()?;
        let (_, agent) = agent_of(gateway)?;
        kill(Pid::from_raw(agent.try_into()?), Signal::SIGKILL)?;
        clock::wait_for("another agent", 2 * START_LIMIT, || {
            let is_up = gateway.metric("gateway_agent_up", &[])? == 1.0;
            Ok((is_up && ended()? > before).then_some(()))
        })
    }

    fn starve(&mut self) -> Result<()> {
        let pid = self.gateway()?.process_id();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().next()).context("a limit")?;
        let set = |limit: &str| {
            let mut command = Command::new("prlimit");
            command.args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")]);
            process::succeed(&mut command).map(drop)
        };
        self.open("no descriptors", Explains::Breaks);
        self.open("no descriptors", Explains::Words(UPSTREAM_WORDS));
        let few = Size::of(self.gateway()?)?.descriptors + 2;
        set(&few.to_string())?;
        let crowd = self.site.client_host.within(|| {
            let connect = |_| TcpStream::connect_timeout(&SERVER, GIVE_UP).ok();
            (0..STARVING).filter_map(connect).collect::<Vec<_>>()
        })?;
        clock::pause(LOOK)?;
        // An operator and whoever watches may be among those who are not served, and it lives.
        ensure!(self.gateway()?.resident_kib().is_ok(), "it died of it");
        drop(crowd);
        set(soft)?;
        self.well()?;
        self.close("no descriptors");
        Ok(())
    }

    fn cut_cable(&mut self, side: Side) -> Result<()> {
        let (namespace, interface) = match side {
            Side::Clients => (&self.site.client_host, CLIENT_INTERFACE),
            Side::Gateway => (&self.site.gateway_host, INTERFACE),
        };
        self.open("the cable is cut", Explains::Breaks);
        namespace.ip(&format!("link set {interface} down"))?;
        clock::pause(LOOK)?;
        namespace.ip(&format!("link set {interface} up"))?;
        self.well()?;
        self.close("the cable is cut");
        Ok(())
    }

    fn generation(&self) -> Result<i64> {
        let status = self.launch.json(&["status"])?;
        status["generation"].as_i64().with_context(|| status.to_string())
    }

    fn reload(&mut self) -> Result<()> {
        let before = self.generation()?;
        self.made += 1;
        let idle = format!("idle = \"{}s\"", 75 + self.made % 7);
        let at = self.config.find("idle = \"").context("a line that changes")?;
        let length = self.config[at..].find("s\"").context("its end")? + 2;
        self.config.replace_range(at..at + length, &idle);
        write_config(&self.launch.config, &self.config)?;
        self.launch.succeed(&["reload"])?;
        let after = self.generation()?;
        ensure!(after == before + 1, "generation {after} after {before}");
        Ok(())
    }

    fn reload_refused(&mut self) -> Result<()> {
        let breaks = [
            ("workers = 2", "workers = 3"),
            ("name = \"orders\"", "nmae = \"orders\""),
            ("algorithms = [", "algorithms = [\"none\", "),
            ("upstream = \"orders\"", "upstream = \"nobody\""),
        ];
        let (right, wrong) = breaks[self.made as usize % breaks.len()];
        self.made += 1;
        let text = self.config.replacen(right, wrong, 1);
        ensure!(text != self.config, "{right} is not there");
        self.refused_with(&text)
    }

    /// A reload of this text must be refused and change nothing.
    fn refused_with(&mut self, text: &str) -> Result<()> {
        let before = self.generation()?;
        write_config(&self.launch.config, text)?;
        let ended = self.launch.ended(&["reload"])?;
        write_config(&self.launch.config, &self.config)?;
        ensure!(ended.status.is_some_and(|status| status != 0), "it was taken: {ended:?}");
        let after = self.generation()?;
        ensure!(after == before, "generation {after} after {before}");
        Ok(())
    }

    fn half_written(&mut self, file: File) -> Result<()> {
        let place = match file {
            File::Configuration => {
                // Within a string, so that half of it is never a whole.
                let half = self.config.len() / 2;
                let quote = self.config[half..].find("= \"").context("a string")?;
                let text = self.config[..half + quote + 4].to_owned();
                return self.refused_with(&text);
            }
            File::RevocationList => self.site.authority.revoked(),
            File::ServerCertificate => self.site.config.server.certificate.clone(),
        };
        let whole = fs::read(&place)?;
        fs::write(&place, &whole[..whole.len() / 2])?;
        wait_refused(self.gateway()?, 1.0)?;
        fs::write(&place, &whole)?;
        wait_refused(self.gateway()?, 0.0)
    }

    fn revoke(&mut self) -> Result<()> {
        self.made += 1;
        let victim = self.site.authority.client(&format!("victim-{}", self.made), &[])?;
        let authority = self.site.authority.certificate();
        let target = Target::new(&self.site.client_host, SERVER, HOST, &authority, &victim)?;
        let target = target.from(Ipv4Addr::new(10, 99, 0, VICTIM).into());
        let path = path(true, PROBER_NAME, self.shared.number());
        let mut open = target.connect().context("before it is revoked")?;
        let status = open.ask(&path, &self.probe_token)?;
        ensure!(status == 200 || !self.faults.is_empty(), "{status} before it is revoked");
        self.site.authority.revoke(&victim)?;
        clock::wait_for("a revoked client's connection to end", SOON, || {
            Ok(open.is_ended().then_some(()))
        })?;
        let again = target.connect().and_then(|mut open| open.ask(&path, &self.probe_token));
        ensure!(again.is_err(), "a revoked client is answered: {again:?}");
        Ok(())
    }

    fn renew_server(&mut self) -> Result<()> {
        self.made += 1;
        let name = format!("server-{}", self.made);
        let fresh = self.site.authority.server(&[HOST, &GATEWAY.to_string()], &name)?;
        let present = &self.site.config.server;
        for (new, old) in [(&fresh.key, &present.key), (&fresh.certificate, &present.certificate)] {
            replace(old, |beside| Ok(fs::copy(new, beside).map(drop)?))?;
        }
        wait_served(self.site, &fresh.certificate)?;
        wait_refused(self.gateway()?, 0.0)
    }

    fn renew_tokens(&mut self) -> Result<()> {
        self.probe_token = good(&self.mint, PROBER_NAME)?;
        self.shared.replace_tokens(mint_all(&self.mint, self.clients)?);
        self.minted = clock::now();
        Ok(())
    }

    fn rotate_keys(&mut self) -> Result<()> {
        self.made += 1;
        let name = format!("key-{}", self.made);
        let next = Mint::new(binary(), self.site.directory.path(), &name, "ES256")?;
        let old_token = self.probe_token.clone();
        replace(&self.keys, |beside| tokens::join_key_sets(&[&self.mint, &next], beside))?;
        // The first token by the new key makes it known.
        let new_token = good(&next, PROBER_NAME)?;
        let until = clock::now() + 2 * START_LIMIT;
        while !self.is_let_in_by(&new_token)? {
            ensure!(clock::now() < until, "a token of the new key is not taken");
            clock::pause(LOOK_AGAIN)?;
        }

        self.mint = next;
        self.probe_token = new_token;
        let before = self.shared.replace_tokens(mint_all(&self.mint, self.clients)?);
        clock::wait_for("the last request with an old token", 3 * START_LIMIT, || {
            Ok((Arc::strong_count(&before) == 1).then_some(()))
        })?;
        replace(&self.keys, |beside| Ok(fs::copy(self.mint.jwks(), beside).map(drop)?))?;
        // A stranger's is enough to notice that the old one is gone.
        let stranger = good(&self.impostor, PROBER_NAME)?;
        let until = clock::now() + START_LIMIT;
        loop {
            ensure!(!self.is_let_in_by(&stranger)?, "a stranger's key is as good as any");
            if !self.is_let_in_by(&old_token)? {
                break;
            }
            ensure!(clock::now() < until, "the old key is still good");
            clock::pause(LOOK_AGAIN)?;
        }
        self.minted = clock::now();
        Ok(())
    }

    fn is_let_in_by(&mut self, token: &str) -> Result<bool> {
        let answer = self.probe(PROBER, token, PATIENCE)?;
        ensure!(answer.exit == 0, "no answer: {answer:?}");
        Ok(self.is_let_in(&answer))
    }

    /// Somebody who is not banned.
    fn culprit(&mut self) -> Result<(u8, Ipv4Addr)> {
        for _ in 0..CULPRITS {
            self.made += 1;
            let last = FIRST_CULPRIT + (self.made % u32::from(CULPRITS)) as u8;
            let address = Ipv4Addr::new(10, 99, 0, last);
            let is_of = |sentence: &Sentence| {
                let net = sentence.source.parse::<IpNet>();
                net.is_ok_and(|net| net.contains(&IpAddr::V4(address)))
            };
            if !self.sentences.iter().any(is_of) {
                return Ok((last, address));
            }
        }
        Err(anyhow!("all are banned: {:?}", self.sentences))
    }

    /// Reads when a ban ends; `None` when it has.
    fn sentence(&mut self, source: &str) -> Result<Option<Sentence>> {
        let before = clock::now();
        let list = self.bans()?;
        let after = clock::now();
        let row = list.into_iter().find(|(other, _)| other == source);
        Ok(row.map(|(source, left_s)| Sentence::read(&source, left_s, before, after)))
    }

    fn add_ban(&mut self, source: &str, lasts: &str) -> Result<()> {
        clock::wait_for("a ban to be taken", SOON, || {
            let ended = self.launch.ended(&["bans", "add", source, "--for", lasts])?;
            Ok((ended.status == Some(0)).then_some(()))
        })?;
        self.tally.bans += 1;
        Ok(())
    }

    fn ban(&mut self, whom: Whom, is_lifted: bool) -> Result<()> {
        let (last, address) = self.culprit()?;
        let length = match whom {
            Whom::Source => 32,
            Whom::Prefix => CULPRITS_PREFIX,
        };
        let source = IpNet::new(address.into(), length)?.trunc().to_string();
        self.add_ban(&source, BAN_BY_HAND)?;
        // A machine that stands still for so long has seen it end.
        let Some(sentence) = self.sentence(&source)? else { return Ok(()) };
        self.must_be_dropped(last, &sentence)?;
        if !is_lifted {
            self.sentences.push(sentence);
            return Ok(());
        }
        let ended = self.launch.ended(&["bans", "remove", &source])?;
        let is_over = clock::now() >= sentence.ends_after;
        ensure!(ended.status == Some(0) || is_over, "{ended:?}");
        self.must_be_let_in(last).context("after the ban was lifted")
    }

    /// As somebody sees it whose bans the kernel has no room for any more.
    fn fill_table(&mut self) -> Result<()> {
        let ((inside, banned), (outside, another)) = (self.culprit()?, self.culprit()?);
        let (banned, another) = (format!("{banned}/32"), format!("{another}/32"));
        self.add_ban(&banned, BAN_IN_FULL_TABLE)?;
        let Some(sentence) = self.sentence(&banned)? else { return Ok(()) };
        let mut table = Table::open(self.site.pins.path(), &banned)?;
        let mut refused;
        loop {
            table.fill()?;
            refused = self.launch.ended(&["bans", "add", &another])?;
            // Each ban that was over made room for one more.
            if refused.status != Some(0) || clock::now() >= sentence.ends_after {
                break;
            }
            self.launch.succeed(&["bans", "remove", &another])?;
        }
        let is_said = refused.stderr.contains("table of bans is full");
        ensure!(refused.status == Some(1) && is_said, "one more than fits: {refused:?}");
        self.must_be_let_in(outside).context("whose ban was refused")?;
        self.must_be_dropped(inside, &sentence)?;
        table.empty()?;
        for (source, lasts) in [(&another, BAN_BY_HAND), (&banned, BAN_BY_HAND)] {
            self.add_ban(source, lasts)?;
            let sentence = self.sentence(source)?;
            self.sentences.extend(sentence);
        }
        Ok(())
    }

    fn must_be_let_in(&mut self, last: u8) -> Result<()> {
        let token = self.probe_token.clone();
        let answer = self.probe(last, &token, PATIENCE)?;
        ensure!(self.is_let_in(&answer), "{answer:?}");
        Ok(())
    }

    fn must_be_dropped(&mut self, last: u8, sentence: &Sentence) -> Result<()> {
        let token = self.probe_token.clone();
        let answer = self.probe(last, &token, LOOK)?;
        let is_over = clock::now() >= sentence.ends_after;
        ensure!(answer.exit != 0 || is_over, "a banned source is answered: {answer:?}");
        Ok(())
    }

    fn forge(&mut self) -> Result<()> {
        let (last, address) = self.culprit()?;
        let forged = self.mint.forged_by(&self.impostor, "mallory")?;
        let word = if self.has_no_keys { ISSUER_WORDS[0] } else { "bad_signature" };
        for number in 0..FORGED_MAX {
            let path = path(false, "forged", self.shared.number());
            let answer = self.ask(last, &path, &forged, GIVE_UP)?;
            self.note(&answer);
            self.tally.misdeeds += 1;
            if answer.exit == 0 {
                ensure!(answer.reason() == word, "a forged token: {answer:?}");
                // Nobody is banned for what is our own fault.
                if self.has_no_keys {
                    return Ok(());
                }
            }
            if (number >= 3 || answer.exit != 0)
                && let Some(sentence) = self.sentence(&format!("{address}/32"))?
            {
                self.tally.bans += 1;
                self.must_be_dropped(last, &sentence)?;
                self.sentences.push(sentence);
                return Ok(());
            }
        }
        bail!("{FORGED_MAX} forged tokens and no ban");
    }

    fn misdeeds(&mut self) -> Result<()> {
        let mint = &self.mint;
        let audience = |audience, scope| mint.mint("mallory", audience, &["--scope", scope]);
        let mut deeds = vec![("", 401, "missing_token"), ("not.a.token", 401, "malformed_token")]
            .into_iter()
            .map(|(token, status, word)| (token.to_owned(), status, word))
            .collect::<Vec<_>>();
        if !self.has_no_keys {
            deeds.extend([
                (mint.forged_by(&self.impostor, "mallory")?, 401, "bad_signature"),
                (mint.altered("mallory", "alice")?, 401, "bad_signature"),
                (mint.unsigned("mallory")?, 401, "unsupported_algorithm"),
                (mint.expired("mallory")?, 401, "token_expired"),
                (audience("somebody-else", "read:orders")?, 401, "wrong_audience"),
                (audience(tokens::AUDIENCE, "write:orders")?, 403, "insufficient_scope"),
            ]);
        }
        let source = Ipv4Addr::new(10, 99, 0, SINNER).into();
        for (token, status, word) in deeds {
            let path = path(false, word, self.shared.number());
            let answer = self.ask(SINNER, &path, &token, PATIENCE)?;
            self.note(&answer);
            self.tally.misdeeds += 1;
            let got = (answer.status, answer.reason());
            ensure!(got == (status, word.to_owned()), "{word}: {answer:?}");
        }
        let nowhere = self.ask(SINNER, "/nowhere/bad", &self.probe_token, PATIENCE)?;
        self.note(&nowhere);
        ensure!(nowhere.reason() == "no_route", "{nowhere:?}");
        let path = path(false, "stranger", self.shared.number());
        for credential in [None, Some(&self.stranger)] {
            let mut request =
                self.site.anonymous_request(&path).from(source).token(&self.probe_token);
            if let Some(credential) = credential {
                request = request.certificate(credential);
            }
            let answer = request.send()?;
            ensure!(answer.status == 0, "a stranger is answered: {answer:?}");
            self.tally.misdeeds += 1;
        }
        Ok(())
    }

    fn flood(&mut self, frames: Frames) -> Result<()> {
        let (client, gateway) = (&self.site.client_host, &self.site.gateway_host);
        let wire = Wire {
            source: client.hardware_address(CLIENT_INTERFACE)?,
            destination: gateway.hardware_address(INTERFACE)?,
        };
        let to = SocketAddrV4::new(GATEWAY, SERVER.port());
        let (from, transport, sources) = match frames {
            Frames::Datagrams => {
                (Ipv4Addr::new(10, 77, 0, 1), Transport::Udp, Sources::PowerOfTwo(16))
            }
            Frames::Syns => {
                (Ipv4Addr::new(10, 78, 0, 1), Transport::TcpSyn, Sources::PowerOfTwo(16))
            }
            Frames::OneSource => {
                (Ipv4Addr::new(10, 99, 0, FIRST_CULPRIT), Transport::Udp, Sources::One)
            }
        };
        let flood = Flood::start(
            client,
            Plan {
                frame: flood::frame(wire, SocketAddrV4::new(from, 1_234), to, transport),
                sources,
                interface: CLIENT_INTERFACE.to_owned(),
                core: 0,
                batch: flood::BATCH,
                lasts: Duration::from_secs(5),
                packets_max: FLOOD_FRAMES,
            },
        )?;
        clock::wait_for("a flood to end", SOON, || Ok(flood.has_ended().then_some(())))?;
        let made = flood.stop()?;
        ensure!(made.packets >= FLOOD_FRAMES, "{made:?}");
        Ok(())
    }

    /// When all is over and the clients have gone: nothing is owed, nobody is banned, nothing has grown.
    pub(super) fn end_well(&mut self) -> Result<Tally> {
        self.judge()?;
        self.nobody_good_is_suspected()?;
        let limit = clock::now() + 2 * START_LIMIT;
        while self.book.owed() > 0 || !self.sentences.is_empty() {
            self.judge().context("in the end")?;
            ensure!(clock::now() < limit, "{} refusals, {:?}", self.book.owed(), self.sentences);
            clock::pause(LOOK)?;
        }
        let gateway = self.gateway()?;
        clock::wait_for("nobody to be banned", SOON, || {
            let entries = gateway.metric("gateway_xdp_map_entries", &[("map", "bans")])?;
            Ok((entries == 0.0).then_some(()))
        })?;
        clock::wait_for("nobody to be connected", 2 * SOON, || {
            Ok((gateway.metric("gateway_connections", &[])? == 0.0).then_some(()))
        })?;
        let mut size = self.start;
        let back = clock::wait_for("what was taken to be given back", 2 * SOON, || {
            size = Size::of(gateway)?;
            Ok(size.is_back(&self.start).then_some(()))
        });
        back.with_context(|| format!("{:?} at the start, {size:?} in the end", self.start))?;
        self.tally.resident_kib = [self.start.resident_kib, size.resident_kib];
        println!("{:?}; {:?} at the start, {size:?} in the end", self.tally, self.start);
        ensure!(self.tally.served > 0, "nobody was ever served");
        Ok(self.tally.clone())
    }
}
