//! What a request, a handshake and an idle connection cost, beside HAProxy, nginx and Envoy, and what
//! clients notice of a reload.
//!
//! Every server has one core to itself, the generator and the upstream another, all in a network
//! namespace of their own. Servers take turns within each round; nothing but the one that is measured
//! has anything to do. What counts is the server's time on a processor for each request: unlike rates it
//! hardly depends on what else the machine does.

mod debian;
mod envoy;
mod files;
mod generator;
mod haproxy;
mod nginx;
mod ours;
mod pypi;
mod rows;
mod scenario;
mod servers;
mod sid;

pub use rows::KERNEL_PART;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::{
    files::{Algorithm, Files, Keys, REVOKED},
    generator::{Generator, Held, Place, Target, Told},
    rows::{Measured, Row},
    scenario::{Case, Pace, RELOAD_EVERY_MS, Work},
    servers::{Installed, Product, Server, Setup, UPSTREAM, WITH_CERTIFICATE, WITH_TOKEN},
};
pub use self::{rows::print, scenario::Scenario};
use super::{machine, report};
use crate::{
    cargo,
    harness::{
        clock,
        netns::{self, Namespace},
    },
};

/// Rounds, and with `--quick`. Odd, so that the median is one of them.
const ROUNDS: [usize; 2] = [3, 1];
/// Tokens that ours remembers; [`scenario::COLD`] of them, one after the other, are never found again.
const REMEMBERED: usize = 10_000;
/// One failure of others in so many answers is told and does not end their turn.
const TOLERATED: u64 = 100;
/// Until a crowd has come to rest: longer than any server waits before it gives buffers back; ours takes
/// some ten seconds until the system has them.
const SETTLE: Duration = Duration::from_secs(15);
/// The first connections bring memory that later ones share.
const ALREADY_OPEN: usize = 100;

/// Measures scenarios and gives the document.
///
/// # Errors
/// When something cannot be built or started, a server does not do the work it is compared for, or
/// somebody interrupts.
pub fn measure(scenarios: &[Scenario], quick: bool, rounds: Option<usize>) -> Result<Value> {
    let rounds = rounds.unwrap_or(ROUNDS[usize::from(quick)]);
    let ours = cargo::build_release()?;
    let load = cargo::build_load()?;
    // Of what was built, whatever is changed while it is measured.
    let commit = machine::commit()?;
    let (installed, absent) = servers::look(&ours)?;
    for absent in &absent {
        eprintln!("perf: not measured: {absent}");
    }
    let cases = cases(scenarios, quick);
    let mut absent = absent;
    absent.extend(lacking(&installed, &cases));
    let pace = Pace::new(quick);
    tell_the_plan(&cases, &installed, rounds, pace);
    let keys: Vec<Keys> = cases.iter().map(|case| case.keys).collect();
    let bench = Bench::new(ours, load, installed, &keys, pace)?;
    let host_before = machine::strain();
    let mut found = Found { rows: Vec::new(), absent };
    let ended = bench.measure_all(&cases, rounds, &mut found);
    let Found { mut rows, absent } = found;
    // In the order in which they were asked for.
    let place = |row: &Row| scenarios.iter().position(|known| known.name() == row.case.scenario);
    rows.sort_by_key(place);
    let versions: serde_json::Map<String, Value> = bench
        .installed
        .iter()
        .map(|installed| (installed.product.to_string(), json!(installed.version)))
        .collect();
    let document = json!({
        "machine": machine::describe(super::tick_ns()?),
        "date": report::date()?,
        "commit": commit,
        // What was broken off is not to be quoted either.
        "quick": quick || ended.is_err(),
        "rounds": rounds,
        "versions": versions,
        "not_measured": absent,
        "host": { "before": host_before, "after": machine::strain() },
        "rows": rows.iter().map(Row::document).collect::<Vec<_>>(),
    });
    if let Err(why) = ended {
        let path = report::keep("requests-broken-off", &document)?;
        return Err(why.context(format!("what was measured before is in {}", path.display())));
    }
    Ok(document)
}

/// What came of cases so far.
struct Found {
    rows: Vec<Row>,
    /// What could not be measured, and why.
    absent: Vec<String>,
}

fn cases(scenarios: &[Scenario], quick: bool) -> Vec<Case> {
    let cases = scenarios.iter().flat_map(|scenario| scenario.cases());
    cases.filter(|case| !(quick && case.is_left_out_when_quick())).collect()
}

/// About how long it takes when everything is built, in minutes.
pub fn minutes(scenarios: &[Scenario], quick: bool, rounds: Option<usize>) -> f64 {
    let rounds = rounds.unwrap_or(ROUNDS[usize::from(quick)]);
    let turns_ms = turns_ms(&cases(scenarios, quick), Product::ALL, rounds, Pace::new(quick));
    turns_ms as f64 / 60_000.0
}

fn turns_ms(
    cases: &[Case],
    products: impl IntoIterator<Item = Product> + Clone,
    rounds: usize,
    pace: Pace,
) -> u64 {
    let of = |case: &Case| {
        let able = products.clone().into_iter().filter(|product| product.lacks(case).is_none());
        let rounds = if matches!(case.work, Work::Idle { .. }) { 1 } else { rounds };
        case.turn_ms(pace) * (able.count() * rounds) as u64
    };
    cases.iter().map(of).sum()
}

fn tell_the_plan(cases: &[Case], installed: &[Installed], rounds: usize, pace: Pace) {
    let products = installed.iter().map(|installed| installed.product);
    eprintln!(
        "perf: {} cases, {} servers, {rounds} rounds in turns: about {:.0} minutes",
        cases.len(),
        installed.len(),
        turns_ms(cases, products, rounds, pace) as f64 / 60_000.0
    );
}

/// Who cannot do what, and why.
fn lacking(installed: &[Installed], cases: &[Case]) -> Vec<String> {
    let mut said = Vec::new();
    for installed in installed {
        for case in cases {
            if let Some(why) = installed.product.lacks(case) {
                said.push(format!("{}, {case}: {why}", installed.product));
            }
        }
    }
    said
}

/// What others fail at is told, and costs nobody else's figures anything; what ours fails at ends the run.
fn spare_others<T>(
    product: Product,
    done: Result<T>,
    absent: &mut Vec<String>,
) -> Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(why) if product == Product::Ours || clock::interrupted() => Err(why),
        Err(why) => {
            eprintln!("perf: not measured: {product}: {why:#}");
            absent.push(format!("{product}: {why:#}"));
            Ok(None)
        }
    }
}

/// What a server that was measured failed at nevertheless.
fn blemish(product: Product, case: &Case, told: &Told) -> Option<String> {
    let failed = told["failed"].as_u64().filter(|failed| *failed > 0)?;
    let answered = &told["answered"];
    let first = &told["failures"][0];
    Some(format!("{product}, {case}: {failed} failed beside {answered}, which count: {first}"))
}

/// The scene. Its parts are dropped in this order, users before what they use.
struct Bench {
    installed: Vec<Installed>,
    generator: Generator,
    files: Files,
    /// The server's core; two of them where it has two workers.
    cores: [usize; 2],
    namespace: Arc<Namespace>,
    pace: Pace,
    _upstream: Upstream,
    _directory: TempDir,
}

impl Bench {
    fn new(
        ours: PathBuf,
        load: PathBuf,
        installed: Vec<Installed>,
        keys: &[Keys],
        pace: Pace,
    ) -> Result<Bench> {
        let cores @ [_, load_core] = cores()?;
        let directory = netns::directory("perf")?;
        let namespace = Namespace::new("perf")?;
        let place = Place { namespace: Arc::clone(&namespace), cores: vec![load_core] };
        let upstream = Upstream::start(&load, &place)?;
        fs::create_dir_all(directory.path().join("nginx-temporary"))?;
        let files = Files::new(directory.path(), &ours, keys)?;
        let generator = Generator { binary: load, place, directory: directory.path().to_owned() };
        Ok(Bench {
            installed,
            generator,
            files,
            cores,
            namespace,
            pace,
            _upstream: upstream,
            _directory: directory,
        })
    }

    /// All cases; servers are started once for all that ask for the same.
    fn measure_all(&self, cases: &[Case], rounds: usize, found: &mut Found) -> Result<()> {
        let mut kinds: Vec<(Keys, Setup)> = Vec::new();
        for case in cases {
            if !kinds.contains(&(case.keys, case.setup())) {
                kinds.push((case.keys, case.setup()));
            }
        }
        for (keys, setup) in kinds {
            let alike = |case: &&Case| case.keys == keys && case.setup() == setup;
            let cases: Vec<Case> = cases.iter().filter(alike).copied().collect();
            self.measure(&cases, keys, setup, rounds, found)?;
        }
        Ok(())
    }

    /// Where a server with so many workers runs: two have the load's core, too.
    fn place(&self, setup: Setup) -> Place {
        let cores = self.cores.into_iter().take(setup.workers).collect();
        Place { namespace: Arc::clone(&self.namespace), cores }
    }

    /// All cases in which servers are started in the same way.
    fn measure(
        &self,
        cases: &[Case],
        keys: Keys,
        setup: Setup,
        rounds: usize,
        found: &mut Found,
    ) -> Result<()> {
        let Found { rows, absent } = found;
        let (crowds, loads): (Vec<&Case>, Vec<&Case>) =
            cases.iter().partition(|case| matches!(case.work, Work::Idle { .. }));
        let mut servers = Vec::new();
        for installed in &self.installed {
            let able = |case: &&Case| installed.product.lacks(case).is_none();
            let protocols: Vec<&str> =
                loads.iter().copied().filter(able).map(|case| case.protocol).collect();
            if protocols.is_empty() {
                continue;
            }
            let started = self.start(installed, keys, setup, &protocols);
            servers.extend(spare_others(installed.product, started, absent)?);
        }
        for case in loads {
            let mut able: Vec<&Server> =
                servers.iter().filter(|server| server.product.lacks(case).is_none()).collect();
            let mut measured = Measured::new(case, able.iter().map(|one| one.product));
            for round in 1..=rounds {
                let mut left = Vec::new();
                for server in able {
                    let product = server.product;
                    clock::go_on()?;
                    eprintln!("perf: {case}, round {round} of {rounds}: {product}");
                    if let Some(told) = spare_others(product, self.load(server, case), absent)? {
                        absent.extend(blemish(product, case, &told));
                        measured.add(product, &told);
                        left.push(server);
                    }
                }
                able = left;
            }
            rows.extend(measured.rows());
        }
        drop(servers);
        for case in crowds {
            clock::go_on()?;
            eprintln!("perf: {case}: all servers at once");
            rows.extend(self.crowds(case, absent)?.rows());
        }
        Ok(())
    }

    /// Starts a server, and has it show that it does the work.
    fn start(
        &self,
        installed: &Installed,
        keys: Keys,
        setup: Setup,
        protocols: &[&str],
    ) -> Result<Server> {
        clock::go_on()?;
        let server = installed.start(&self.files, keys, setup, &self.place(setup))?;
        self.prove(&server, "h1")?;
        if protocols.contains(&"h3") {
            self.prove(&server, "h3")?;
        }
        Ok(server)
    }

    fn target<'a>(
        &self,
        server: &Server,
        process_ids: &'a [i32],
        client: &'a std::path::Path,
        authority: &'a std::path::Path,
    ) -> Target<'a> {
        Target {
            server: server.address("h1"),
            process_ids,
            client,
            authority,
            protocol: "h1",
            path: WITH_CERTIFICATE,
            tokens: None,
        }
    }

    fn load(&self, server: &Server, case: &Case) -> Result<Told> {
        let mut process_ids = server.process_ids();
        let reloads = case.setup().can_reload;
        if reloads {
            // The others come and go.
            process_ids.truncate(1);
        }
        let client = self.files.path(&self.files.client(case.keys));
        let authority = self.files.path("ca.pem");
        let tokens = case
            .tokens
            .map(|(algorithm, count)| self.files.tokens(&self.generator.binary, algorithm, count));
        let tokens = tokens.transpose()?;
        let target = Target {
            server: server.address(case.protocol),
            protocol: case.protocol,
            path: if tokens.is_some() { WITH_TOKEN } else { WITH_CERTIFICATE },
            tokens: tokens.as_deref(),
            ..self.target(server, &process_ids, &client, &authority)
        };
        let plan = case.plan(self.pace);
        let told = if reloads {
            self.generator.run_while(&target, &plan, || {
                for _ in 0..Case::reloads(self.pace) {
                    clock::pause(Duration::from_millis(RELOAD_EVERY_MS))?;
                    server.reload()?;
                }
                Ok(())
            })?
        } else {
            self.generator.run(&target, &plan)?
        };
        let answered = told["answered"].as_u64().unwrap_or(0);
        let failed = told["failed"].as_u64().unwrap_or(0);
        // What fails while it reloads is a result, and what others now and then fail at is told.
        let tolerated = if server.product == Product::Ours { 0 } else { answered / TOLERATED };
        ensure!(
            answered > 0 && (failed <= tolerated || reloads),
            "{case}: {answered} answered, {failed} failed: {}",
            told["failures"]
        );
        if let Work::Handshakes { resumed: true } = case.work {
            let resumed = told["resumed"].as_u64().unwrap_or(0);
            // The first of each that runs beside others cannot be.
            ensure!(
                resumed * 100 >= answered * 95,
                "{case}: only {resumed} of {answered} sessions were resumed"
            );
        }
        Ok(told)
    }

    /// That a server does the work it is compared for: good clients and tokens pass, others do not.
    fn prove(&self, server: &Server, protocol: &str) -> Result<()> {
        let process_ids = server.process_ids();
        let authority = self.files.path("ca.pem");
        let (good, revoked) =
            (self.files.path(&self.files.client(Keys::P256)), self.files.path(REVOKED));
        let load = &self.generator.binary;
        let ask_once = |client: &std::path::Path, tokens: Option<&std::path::Path>, path: &str| {
            let target = Target {
                server: server.address(protocol),
                protocol,
                tokens,
                path,
                ..self.target(server, &process_ids, client, &authority)
            };
            let told = self.generator.run(&target, &scenario::once())?;
            Ok::<_, anyhow::Error>((told["answered"].as_u64() > Some(0), told["failures"].clone()))
        };
        // A good client that is turned away tries again: nginx breaks one of some hundred handshakes off.
        let ask = |client: &std::path::Path, tokens: Option<&std::path::Path>, path: &str| {
            let (passed, said) = ask_once(client, tokens, path)?;
            if passed { Ok((passed, said)) } else { ask_once(client, tokens, path) }
        };
        let mut asked = vec![
            ("a good certificate", ask(&good, None, WITH_CERTIFICATE)?, true),
            ("a revoked certificate", ask(&revoked, None, WITH_CERTIFICATE)?, false),
            ("no token", ask(&good, None, WITH_TOKEN)?, false),
        ];
        for algorithm in Algorithm::ALL {
            let tokens = self.files.tokens(load, algorithm, 1)?;
            asked.push((algorithm.name(), ask(&good, Some(&tokens), WITH_TOKEN)?, true));
            for bad in self.files.bad_tokens(load, algorithm)? {
                asked.push(("a bad token", ask(&good, Some(&bad), WITH_TOKEN)?, false));
            }
        }
        for (what, (passed, said), expected) in asked {
            if passed != expected {
                bail!(
                    "{} {} {what} over {protocol}, so it cannot be compared: {said}",
                    server.product,
                    if passed { "lets in" } else { "refuses" }
                );
            }
        }
        Ok(())
    }

    /// KiB for each connection of crowds that do nothing, one at each server, all of which rest at once.
    fn crowds(&self, case: &Case, absent: &mut Vec<String>) -> Result<Measured> {
        let Work::Idle { connections } = case.work else { bail!("{case} is no crowd") };
        let mut crowds = Vec::new();
        for installed in &self.installed {
            let place = self.place(case.setup());
            let started = installed.start(&self.files, case.keys, case.setup(), &place);
            let opened =
                started.and_then(|server| Ok((self.hold(&server, case, ALREADY_OPEN)?, server)));
            crowds.extend(spare_others(installed.product, opened, absent)?);
        }
        clock::pause(SETTLE)?;
        let mut resting = Vec::new();
        for (_first, server) in &crowds {
            let before = server.memory_bytes()?;
            let opened = self.hold(server, case, connections);
            let opened = spare_others(server.product, opened, absent)?;
            resting.extend(opened.map(|held| (server, before, held)));
        }
        clock::pause(SETTLE)?;
        let mut measured = Measured::new(case, resting.iter().map(|(server, ..)| server.product));
        for (server, before, _held) in &resting {
            let more = server.memory_bytes()?.saturating_sub(*before);
            let kib = more as f64 / connections as f64 / 1_024.0;
            measured.add(server.product, &json!({ "kib": kib }));
        }
        Ok(measured)
    }

    fn hold(&self, server: &Server, case: &Case, connections: usize) -> Result<Held> {
        clock::go_on()?;
        let process_ids = server.process_ids();
        let client = self.files.path(&self.files.client(case.keys));
        let authority = self.files.path("ca.pem");
        self.generator.hold(&self.target(server, &process_ids, &client, &authority), connections)
    }
}

/// The first and the last core that this process may use: the server's, and that of all else.
fn cores() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    let usable: Vec<usize> =
        (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
    let [first, .., last] = usable[..] else {
        bail!("a server and its load need two cores; here is {}", usable.len())
    };
    Ok([first, last])
}

/// The upstream; killed when dropped.
struct Upstream(Child);

impl Upstream {
    fn start(load: &std::path::Path, place: &Place) -> Result<Upstream> {
        let mut command = place.command(load);
        command.arg("upstream").arg(UPSTREAM.to_string()).stdin(Stdio::null());
        Ok(Upstream(place.spawn(&mut command)?))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = self.0.kill();
        let _buried = self.0.wait();
    }
}
