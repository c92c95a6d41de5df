//! `cargo xtask fuzz`: any bytes for whatever reads bytes from outside, led by the branches they take.
//!
//! The stable compiler can do it: libFuzzer is linked in, and only the crates of this repository are
//! compiled with its counters, so everything they depend on is taken as the tests built it. This program
//! is its own compiler wrapper for that.

use std::{
    collections::VecDeque,
    env, fmt, fs,
    io::{self, BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    cargo::{build_fuzzer, root},
    harness::clock,
    setup,
};

/// Set while this program stands in front of the compiler.
const WRAPS: &str = "PORTCULLIS_FUZZ_WRAPS";

/// What is compiled with counters. Build scripts are not: they are not linked with the engine.
const COUNTED: [&str; 3] = ["gateway", "gateway_ebpf", "fuzz"];

/// The counters that libFuzzer reads, as cargo-fuzz asks for them, without a sanitizer: the code under
/// test has no `unsafe` of its own, and overflow checks and debug assertions are on.
const COUNTERS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// How long each target is tried when nothing else is said.
const SECONDS: u64 = 60;
/// An input that takes longer is a finding: the slowest reader needs milliseconds, the rest is for a
/// machine that is busy otherwise, because the engine looks at a clock and not at the processor time.
const INPUT_SECONDS: u64 = 60;
/// Memory of one target, in MiB; more is a finding.
const MEMORY_MIB: u64 = 1_024;

/// How long each target is tried with `--smoke`: always from the same beginning, so that a busy machine
/// tries fewer of the same inputs and no others. Twelve targets, two at once, in six minutes.
const SMOKE_SECONDS: u64 = 60;
/// Where that beginning is.
const SMOKE_SEED: u64 = 1;

/// Lines of the engine that are shown when it found something.
const SAID_LINES: usize = 100;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// Empty: all.
    targets: Vec<String>,
    effort: Effort,
    replay: Option<PathBuf>,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// For so long, from wherever the last run has got to.
    Seconds(u64),
    /// A little, and the same each time.
    Smoke,
}

impl fmt::Display for Effort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Effort::Seconds(seconds) => write!(out, "{seconds} s each"),
            Effort::Smoke => write!(out, "{SMOKE_SECONDS} s each, always the same inputs"),
        }
    }
}

/// Whether cargo calls this program to compile something.
pub fn is_wrapping() -> bool {
    env::var_os(WRAPS).is_some()
}

/// Compiles what cargo asks for, with counters where they belong; returns only when that fails.
pub fn wrap() -> ExitCode {
    let mut words = env::args_os().skip(1);
    let Some(compiler) = words.next() else { return ExitCode::FAILURE };
    let words: Vec<_> = words.collect();
    let name = words.iter().position(|word| word == "--crate-name");
    let name = name.and_then(|at| words.get(at + 1)).and_then(|name| name.to_str());
    let mut command = Command::new(compiler);
    command.args(&words);
    if name.is_some_and(|name| COUNTED.contains(&name)) {
        command.args(COUNTERS);
    }
    eprintln!("xtask: the compiler does not start: {}", command.exec());
    ExitCode::FAILURE
}

/// The same inputs as always for every target, as part of the tests.
///
/// # Errors
/// When a target finds something, or cannot be built.
pub fn smoke() -> Result<()> {
    let binary = build_fuzzer(WRAPS)?;
    let broken = run_all(&binary, &targets()?, Effort::Smoke)?;
    if !broken.is_empty() {
        bail!("the fuzzer broke {}", broken.join(", "));
    }
    Ok(())
}

/// Runs the targets, as many at once as there are CPUs.
///
/// # Errors
/// When a target finds something, or cannot be built.
pub fn fuzz(words: &[String]) -> Result<ExitCode> {
    let request = read(words)?;
    setup::setup()?;
    let known = targets()?;
    for name in &request.targets {
        if !known.contains(name) {
            bail!("there is no target `{name}`; there are {}", known.join(", "));
        }
    }
    let binary = build_fuzzer(WRAPS)?;
    let chosen = if request.targets.is_empty() { &known } else { &request.targets };
    if let Some(file) = &request.replay {
        let [target] = chosen.as_slice() else { bail!("--replay FILE needs one target") };
        return replay(&binary, target, file);
    }
    let broken = run_all(&binary, chosen, request.effort)?;
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs these targets, as many at once as there are CPUs; gives those in which something was found, after
/// saying how it is seen again.
fn run_all(binary: &Path, targets: &[String], effort: Effort) -> Result<Vec<String>> {
    let lanes = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    eprintln!("fuzz: {} targets, {lanes} at once, {effort}", targets.len());
    if let Effort::Seconds(_) = effort {
        eprintln!("fuzz: what is learned stays in {}", learned("…").display());
    }
    let waiting = Mutex::new(targets.iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let lane = || -> Result<Vec<Found>> {
        let mut found = Vec::new();
        while let Some(target) = next() {
            found.extend(run(binary, target, effort)?);
        }
        Ok(found)
    };
    let all = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        let all = lanes.into_iter().map(|lane| {
            lane.join().unwrap_or_else(|_panic| bail!("whoever looks after a target panicked"))
        });
        all.collect::<Result<Vec<_>>>()
    })?;
    let broken: Vec<Found> = all.into_iter().flatten().collect();
    broken.iter().for_each(|found| eprintln!("{found}"));
    Ok(broken.into_iter().map(|found| found.target).collect())
}

/// What broke a target.
struct Found {
    target: String,
    /// The input's file, from the repository's root; `None` when the engine wrote none.
    input: Option<String>,
}

/// An input of at most so many bytes is printed, for whoever has only the log of a machine that is gone.
const PRINTED_MAX_BYTES: usize = 4_096;

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { target, input } = self;
        let Some(file) = input else {
            return write!(out, "fuzz: {target} broke, and no input is at fault; see above");
        };
        write!(out, "fuzz: {target} broke. Again: cargo xtask fuzz {target} --replay {file}")?;
        match fs::read(root().join(file)) {
            Ok(bytes) if bytes.len() <= PRINTED_MAX_BYTES => {
                write!(
                    out,
                    "\nfuzz: the file elsewhere: echo {} | base64 -d",
                    STANDARD.encode(bytes)
                )
            }
            _ => Ok(()),
        }
    }
}

fn read(words: &[String]) -> Result<Request> {
    let effort = Effort::Seconds(SECONDS);
    let mut request = Request { targets: Vec::new(), effort, replay: None };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => {
                let number = words.next().context("--seconds needs a number")?;
                let seconds = number.parse().with_context(|| format!("--seconds {number}"))?;
                request.effort = Effort::Seconds(seconds);
            }
            "--smoke" => request.effort = Effort::Smoke,
            "--replay" => {
                request.replay = Some(words.next().context("--replay needs a file")?.into());
            }
            word if word.starts_with('-') => bail!("what is `{word}`?"),
            target => request.targets.push(target.to_owned()),
        }
    }
    // libFuzzer takes 0 for ever.
    if request.effort == Effort::Seconds(0) {
        bail!("--seconds 0 would try nothing");
    }
    Ok(request)
}

/// Each has its directory of inputs to begin with.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("tests/fuzz/corpus"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Inputs that reached something new in earlier runs.
fn learned(target: &str) -> PathBuf {
    root().join("target/fuzz-corpus").join(target)
}

/// The same of a smoke, which begins anew each time.
fn smoked(target: &str) -> Result<PathBuf> {
    let directory = root().join("target/fuzz-smoke").join(target);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(directory),
    }
}

fn engine(binary: &Path, target: &str) -> Command {
    let mut command = Command::new(binary);
    command.env("FUZZ_TARGET", target).current_dir(root()).stdin(Stdio::null());
    command.arg(format!("-timeout={INPUT_SECONDS}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    command
}

/// Tries one target; `None`: nothing was found.
fn run(binary: &Path, target: &str, effort: Effort) -> Result<Option<Found>> {
    let started = clock::now();
    let learned = match effort {
        Effort::Seconds(_) => learned(target),
        Effort::Smoke => smoked(target)?,
    };
    fs::create_dir_all(&learned)?;
    let crashes = format!("tests/fuzz/crashes/{target}/");
    fs::create_dir_all(root().join(&crashes))?;
    let mut command = engine(binary, target);
    match effort {
        Effort::Seconds(seconds) => command.arg(format!("-max_total_time={seconds}")),
        Effort::Smoke => {
            command.arg(format!("-seed={SMOKE_SEED}"));
            command.arg(format!("-max_total_time={SMOKE_SECONDS}"))
        }
    };
    command.arg(format!("-artifact_prefix={crashes}"));
    command.args(["-print_final_stats=1", "-verbosity=0", "-use_value_profile=1"]);
    command.arg(&learned).arg(root().join("tests/fuzz/corpus").join(target));
    let mut child = command.stderr(Stdio::piped()).spawn().context("the fuzzer does not start")?;
    let said = child.stderr.take().context("piped above")?;
    let reader = thread::spawn(move || {
        let (mut executed, mut input, mut last) = (String::new(), None, VecDeque::new());
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
                executed = number.trim().to_owned();
            }
            if let Some((_, file)) = line.split_once("Test unit written to ") {
                input = Some(file.trim().to_owned());
            }
            if last.len() == SAID_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
        (executed, input, last)
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Err(interrupted) = clock::pause(Duration::from_millis(100)) {
            // Gone already is as good.
            let _gone = child.kill();
            let _buried = child.wait();
            return Err(interrupted);
        }
    };
    let (executed, input, last) = reader.join().unwrap_or_default();
    if !status.success() {
        last.iter().for_each(|line| eprintln!("{line}"));
    }
    // Stays when there is something in it.
    let _kept = fs::remove_dir(root().join(&crashes));
    let verdict = if status.success() { "nothing found" } else { "BROKEN" };
    let seconds = started.elapsed().as_secs();
    println!("{target:12} {executed:>12} inputs in {seconds} s: {verdict}");
    Ok((!status.success()).then(|| Found { target: target.to_owned(), input }))
}

fn replay(binary: &Path, target: &str, file: &Path) -> Result<ExitCode> {
    let status = engine(binary, target).arg(fs::canonicalize(file)?).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read_or_refused() {
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let request = |targets: &str, effort, replay: Option<&str>| Request {
            targets: words(targets),
            effort,
            replay: replay.map(PathBuf::from),
        };
        let ordinary = Effort::Seconds(SECONDS);
        for (text, expected) in [
            ("", Some(request("", ordinary, None))),
            ("token path --seconds 5", Some(request("token path", Effort::Seconds(5), None))),
            ("--smoke", Some(request("", Effort::Smoke, None))),
            ("token --replay x", Some(request("token", ordinary, Some("x")))),
            ("--seconds", None),
            ("--seconds 0", None),
            ("--seconds x", None),
            ("--jobs 2", None),
        ] {
            assert_eq!(read(&words(text)).ok(), expected, "{text}");
        }
    }

    #[test]
    fn every_target_has_a_corpus_and_the_other_way_round() {
        let source = fs::read_to_string(root().join("tests/fuzz/src/lib.rs")).unwrap();
        let named: Vec<_> =
            source.split("name: \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, targets().unwrap());
    }
}
