//! `cargo xtask perf cores`: instructions and allocations of the decisions that every packet and every
//! request pays for, beside the figures that are kept in `perf/baseline.json`.
//!
//! Instructions hardly depend on what else the machine does, so a few in a hundred more are a change of
//! the source, and can be seen on a machine on which times say nothing. They are counted of the build
//! that the tests use: it is there already, and without link-time optimisation a function's count does
//! not depend on its neighbours. What a release takes is measured in microseconds by the other scenarios.
//!
//! Compilers, C libraries and valgrind count differently. Where one of them is another than that of the
//! baseline, more difference is allowed. On another processor the cryptography chooses other code, so
//! there instructions are shown and not judged. Allocations have to be the same everywhere.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::report::aligned;
use crate::{
    cargo,
    harness::process::{run, succeed, words},
    setup,
};

/// Valgrind, which runs a program on a processor of its own making and counts.
pub const INSTRUMENT: setup::Program = ("valgrind", "valgrind");
/// The function of `perf/cores.rs` in which instructions count.
const COUNTED: &str = "--toggle-collect=cores::measured*";
/// Enough that a rare step of one call (a table that grows) is a small part of it.
const CALLS: u32 = 200;
/// What two runs of one build differ by is less than half of this: keys and hashes are random.
const TOLERANCE_PERCENT: f64 = 2.0;
/// What other compilers and libraries make of the same source.
const TOLERANCE_ELSEWHERE_PERCENT: f64 = 12.0;

/// What is asked of this command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Figures and differences.
    Show,
    /// It fails where a figure is worse.
    Check,
    /// The baseline is written anew.
    Write,
}

/// What figures were counted with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Tools {
    compiler: String,
    instrument: String,
    libc: String,
    processor: String,
}

impl Tools {
    /// How many percent more instructions are noise.
    fn tolerance_percent(&self, baseline: &Tools) -> f64 {
        if self.processor != baseline.processor {
            f64::INFINITY
        } else if self != baseline {
            TOLERANCE_ELSEWHERE_PERCENT
        } else {
            TOLERANCE_PERCENT
        }
    }
}

/// What one call of a case takes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
struct Cost {
    instructions: f64,
    allocations: f64,
}

/// `perf/baseline.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct Baseline {
    counted_with: Tools,
    calls: BTreeMap<String, Cost>,
}

/// How a figure compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Held,
    Better,
    MoreInstructions,
    MoreAllocations,
    /// The baseline does not have it.
    New,
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Found::Held => "held",
            Found::Better => "better: keep it with --write",
            Found::MoreInstructions => "MORE INSTRUCTIONS",
            Found::MoreAllocations => "MORE ALLOCATIONS",
            Found::New => "NEW: keep it with --write",
        })
    }
}

impl Found {
    fn of(now: Cost, before: Option<Cost>, tolerance_percent: f64) -> Found {
        let Some(before) = before else { return Found::New };
        let difference = percent(now, before);
        if now.allocations > before.allocations {
            Found::MoreAllocations
        } else if difference > tolerance_percent {
            Found::MoreInstructions
        } else if difference < -tolerance_percent || now.allocations < before.allocations {
            Found::Better
        } else {
            Found::Held
        }
    }

    fn fails(self) -> bool {
        matches!(self, Found::MoreInstructions | Found::MoreAllocations | Found::New)
    }
}

fn percent(now: Cost, before: Cost) -> f64 {
    (now.instructions / before.instructions - 1.0) * 100.0
}

/// The command, with the words behind `perf cores`.
///
/// # Errors
/// When the figures cannot be counted.
pub fn cores(words: &[String]) -> Result<ExitCode> {
    let wish = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Wish::Show,
        ["--check"] => Wish::Check,
        ["--write"] => Wish::Write,
        _ => bail!("perf cores takes --check, or --write"),
    };
    setup::setup_with(&[INSTRUMENT])?;
    let now = count()?;
    if wish == Wish::Write {
        let text = serde_json::to_string_pretty(&now)? + "\n";
        fs::write(place(), text).with_context(|| place().display().to_string())?;
        eprintln!("perf: kept as {}", place().display());
    }
    let found = compare(&now)?;
    Ok(if wish == Wish::Check && found.iter().any(|found| found.fails()) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// For `cargo xtask check`: that nothing has become dearer.
///
/// # Errors
/// When something has, or cannot be counted.
pub fn check() -> Result<()> {
    setup::setup_with(&[INSTRUMENT])?;
    let worse = compare(&count()?)?.into_iter().filter(|found| found.fails()).count();
    ensure!(
        worse == 0,
        "{worse} of the figures above are worse than in perf/baseline.json; if that is meant to be, \
         `cargo xtask perf cores --write` keeps them"
    );
    Ok(())
}

/// Prints what was counted beside the baseline.
fn compare(now: &Baseline) -> Result<Vec<Found>> {
    let text = fs::read_to_string(place()).with_context(|| place().display().to_string())?;
    let before: Baseline = serde_json::from_str(&text).context("perf/baseline.json")?;
    let tolerance = now.counted_with.tolerance_percent(&before.counted_with);
    if now.counted_with != before.counted_with {
        println!(
            "counted with {:?}, the baseline with {:?}",
            now.counted_with, before.counted_with
        );
    }
    println!("instructions and allocations of one call; up to {tolerance} % more is noise");
    let heads = ["", "instructions", "before", "%", "allocations", "before", ""];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    let mut all = Vec::new();
    for (name, cost) in &now.calls {
        let known = before.calls.get(name).copied();
        let found = Found::of(*cost, known, tolerance);
        let said = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
        cells.push(vec![
            name.clone(),
            format!("{:.0}", cost.instructions),
            said(known.map(|known| format!("{:.0}", known.instructions))),
            said(known.map(|known| format!("{:+.1}", percent(*cost, known)))),
            cost.allocations.to_string(),
            said(known.map(|known| known.allocations.to_string())),
            found.to_string(),
        ]);
        all.push(found);
    }
    aligned(&cells).iter().for_each(|line| println!("{line}"));
    Ok(all)
}

fn place() -> PathBuf {
    cargo::root().join("perf/baseline.json")
}

/// Builds the cases and counts each.
fn count() -> Result<Baseline> {
    let binary = cargo::build_cores()?;
    let names = succeed(&mut Command::new(&binary))?;
    let scratch = tempfile::tempdir()?;
    let mut calls = BTreeMap::new();
    for name in names.lines() {
        let cost = count_one(&binary, name, scratch.path())?;
        calls.insert(name.to_owned(), cost);
    }
    Ok(Baseline { counted_with: tools()?, calls })
}

fn count_one(binary: &Path, name: &str, scratch: &Path) -> Result<Cost> {
    let mut command = Command::new(INSTRUMENT.0);
    command.args(["--tool=callgrind", COUNTED]);
    command.arg(format!("--callgrind-out-file={}", scratch.join(name).display()));
    command.arg(binary).args([name, &CALLS.to_string()]);
    let ended = run(&mut command)?;
    let said = || format!("{}\n{}{}", words(&command), ended.stdout, ended.stderr);
    ensure!(ended.status == Some(0), said());
    let instructions = collected(&ended.stderr).with_context(said)?;
    let allocations: f64 = ended.stdout.trim().parse().with_context(said)?;
    ensure!(instructions > 0.0, "nothing was counted within {COUNTED}: {}", said());
    let each = |sum: f64| (sum / f64::from(CALLS) * 100.0).round() / 100.0;
    Ok(Cost { instructions: each(instructions), allocations: each(allocations) })
}

/// The instructions that callgrind says it has counted.
fn collected(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.split_once("Collected :"))?.1;
    line.trim().parse().ok()
}

fn tools() -> Result<Tools> {
    let first = |command: &mut Command| -> Result<String> {
        Ok(succeed(command)?.lines().next().unwrap_or_default().trim().to_owned())
    };
    Ok(Tools {
        compiler: first(cargo::rustc().arg("--version"))?,
        instrument: first(Command::new(INSTRUMENT.0).arg("--version"))?,
        libc: first(Command::new("getconf").arg("GNU_LIBC_VERSION"))?,
        processor: processor(&fs::read_to_string("/proc/cpuinfo")?),
    })
}

/// The processor by its name, family and model: a virtual machine's name alone says little
/// (proc_cpuinfo(5)).
fn processor(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.clone().find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim())
    };
    format!("{} family {} model {}", field("model name"), field("cpu family"), field("model"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_otherwise_is_given_more_room() {
        let tools = |libc: &str, processor: &str| Tools {
            compiler: "rustc".to_owned(),
            instrument: "valgrind".to_owned(),
            libc: libc.to_owned(),
            processor: processor.to_owned(),
        };
        let here = tools("2.36", "A");
        assert_eq!(here.tolerance_percent(&here), TOLERANCE_PERCENT);
        assert_eq!(tools("2.41", "A").tolerance_percent(&here), TOLERANCE_ELSEWHERE_PERCENT);
        let elsewhere = tools("2.36", "B").tolerance_percent(&here);
        let cost = |instructions, allocations| Cost { instructions, allocations };
        let (dearer, less_frugal) = (cost(9_000.0, 1.0), cost(1_000.0, 2.0));
        let before = Some(cost(1_000.0, 1.0));
        assert!(!Found::of(dearer, before, elsewhere).fails());
        assert!(Found::of(less_frugal, before, elsewhere).fails());
    }

    #[test]
    fn a_processor_has_a_name() {
        let told = "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t: fpu\n";
        assert_eq!(processor(told), "AMD EPYC family 26 model 2");
    }

    #[test]
    fn more_than_the_tolerance_fails_and_one_allocation_more_does() {
        let cost = |instructions, allocations| Cost { instructions, allocations };
        let before = Some(cost(1_000.0, 0.0));
        for (now, expected) in [
            (cost(1_000.0, 0.0), Found::Held),
            (cost(1_019.0, 0.0), Found::Held),
            (cost(1_021.0, 0.0), Found::MoreInstructions),
            (cost(979.0, 0.0), Found::Better),
            (cost(900.0, 0.01), Found::MoreAllocations),
        ] {
            let found = Found::of(now, before, 2.0);
            assert_eq!(found, expected, "{now:?}");
            assert_eq!(found.fails(), now.instructions > 1_020.0 || now.allocations > 0.0);
        }
        assert_eq!(Found::of(cost(1.0, 1.0), Some(cost(1.0, 2.0)), 2.0), Found::Better);
        assert!(Found::of(cost(1.0, 0.0), None, 2.0).fails(), "nothing is let in unseen");
    }

    #[test]
    fn what_was_counted_is_found_in_what_is_said() {
        let said = "==7== \n==7== Events    : Ir\n==7== Collected : 12345\n==7==\n";
        assert_eq!(collected(said), Some(12_345.0));
        assert_eq!(collected("==7== Events : Ir"), None);
    }
}
