//! `cargo xtask demo`: the whole product at work, everything real.
//!
//! Namespaces joined by a bridge, a private authority, minted tokens, `curl` and `openssl`, a flood of
//! as many packets as one core makes, the released binary under it. What decides is what noise cannot
//! flip: answers, alerts, packets dropped and by which reason, bans set and ended, requests lost.
//! Times and rates are printed beside.

mod counters;
mod steps;
pub mod table;
pub mod world;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use self::{table::Report, world::World};
use crate::{cargo, harness::netns, process, setup};

/// The longest a measured phase may be asked to last: a demonstration, not a soak test.
const MAX_PHASE_S: u64 = 60;

/// What was asked for on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    /// Print the table as JSON.
    json: bool,
    /// Length of each measured phase.
    phase: Duration,
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options { json: false, phase: Duration::from_secs(5) };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--json" => options.json = true,
                "--seconds" => {
                    let seconds = words.next().and_then(|word| word.parse().ok());
                    let seconds = seconds.filter(|seconds| (1..=MAX_PHASE_S).contains(seconds));
                    let wanted = || format!("--seconds takes a number from 1 to {MAX_PHASE_S}");
                    options.phase = Duration::from_secs(seconds.with_context(wanted)?);
                }
                other => bail!("demo takes --json and --seconds N; what is `{other}`?"),
            }
        }
        Ok(options)
    }
}

/// Shows the product at work. The exit status is 0 only if every step held.
///
/// # Errors
/// When the scene cannot be set, or somebody interrupts; all that was made is removed then too.
pub fn demo(words: &[String]) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    if let Some(refused) = process::refuse_without_root(
        "demo",
        "for network namespaces, links and BPF (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF)",
    ) {
        return Ok(refused);
    }
    process::stop_on_signals()?;
    setup::setup()?;
    setup::mount_bpffs()?;
    let binary = cargo::build_release()?;
    for name in netns::remove_leftovers() {
        eprintln!("removed what a killed run left: {name}");
    }
    let mut report = Report::new(options.json);
    {
        // Leaves nothing behind when it goes out of scope, whichever way.
        let world = World::new(&binary)?;
        steps::play(&world, options.phase, &mut report)?;
    }
    report.print();
    Ok(if report.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::parse(&words).ok().map(|options| (options.json, options.phase.as_secs()))
        };
        for (line, expected) in [
            ("", Some((false, 5))),
            ("--json", Some((true, 5))),
            ("--seconds 2 --json", Some((true, 2))),
            ("--seconds", None),
            ("--seconds 0", None),
            ("--seconds 61", None),
            ("--fast", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
