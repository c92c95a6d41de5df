//! `cargo xtask perf`: what the product costs, against others, on this machine.
//!
//! Everything that is compared is measured in one process and one run, in turns, so that whatever
//! else the machine does strikes all of them alike. Results are printed, and kept as the run made
//! them; none is ever written by hand.

mod flood;
mod guard;
mod machine;
mod programs;
mod report;
mod statistics;
mod xdp;
mod xdp_filter;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{process, setup};

/// What was asked for on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Options {
    /// Print the document instead of the table.
    json: bool,
    /// Fewer rounds: to see that it works, not to quote.
    quick: bool,
    /// What to measure.
    scenario: Scenario,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scenario {
    /// Nanoseconds a packet, by test runs.
    #[default]
    Xdp,
    /// Packets that a core can drop, over a cable.
    Flood,
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options::default();
        for word in words {
            match word.as_str() {
                "xdp" => options.scenario = Scenario::Xdp,
                "flood" => options.scenario = Scenario::Flood,
                "--json" => options.json = true,
                "--quick" => options.quick = true,
                other => bail!("perf takes xdp or flood, --json and --quick; what is `{other}`?"),
            }
        }
        Ok(options)
    }
}

/// Measures and prints. A target that is missed is printed as missed; only what could not be
/// measured is a failure.
///
/// # Errors
/// When something cannot be built, loaded or measured, or somebody interrupts.
pub fn perf(words: &[String]) -> Result<ExitCode> {
    let options = Options::parse(words)?;
    if let Some(refused) = process::refuse_without_root(
        "perf",
        "to load BPF programs and to keep a core for itself (CAP_BPF, CAP_NET_ADMIN, \
         CAP_SYS_ADMIN, CAP_SYS_NICE)",
    ) {
        return Ok(refused);
    }
    process::stop_on_signals()?;
    if options.json {
        // Standard output is the document's alone; setup speaks there.
        eprintln!(
            "perf: with --json nothing but xdp-tools is installed; `cargo xtask setup` installs the rest"
        );
    } else {
        setup::setup()?;
    }
    let (name, document) = match options.scenario {
        Scenario::Xdp => {
            let measured = xdp::measure(options.quick)?;
            if !options.json {
                report::print(&measured);
            }
            ("xdp", report::document(&measured, options.quick)?)
        }
        Scenario::Flood => ("flood", flood::measure(options.quick, options.json)?),
    };
    let kept = report::keep(name, &document)?;
    if options.json {
        println!("{document:#}");
    }
    eprintln!("perf: kept as {}", kept.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::parse(&words)
                .ok()
                .map(|options| (options.json, options.quick, options.scenario))
        };
        for (line, expected) in [
            ("", Some((false, false, Scenario::Xdp))),
            ("xdp", Some((false, false, Scenario::Xdp))),
            ("xdp --json", Some((true, false, Scenario::Xdp))),
            ("--quick flood", Some((false, true, Scenario::Flood))),
            ("--fast", None),
            ("layer-7", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
