//! `cargo xtask perf`: what the product costs, against others, on this machine.
//!
//! Everything that is compared is measured in one process and one run, in turns, so that whatever
//! else the machine does strikes all of them alike. Results are printed, and kept as the run made
//! them; none is ever written by hand.

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
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options::default();
        for word in words {
            match word.as_str() {
                // The only scenario so far, and so also what runs when none is named.
                "xdp" => {}
                "--json" => options.json = true,
                "--quick" => options.quick = true,
                other => bail!("perf takes xdp, --json and --quick; what is `{other}`?"),
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
    let measured = xdp::measure(options.quick)?;
    let document = report::document(&measured, options.quick)?;
    let kept = report::keep("xdp", &document)?;
    if options.json {
        println!("{document:#}");
    } else {
        report::print(&measured);
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
            Options::parse(&words).ok().map(|options| (options.json, options.quick))
        };
        for (line, expected) in [
            ("", Some((false, false))),
            ("xdp", Some((false, false))),
            ("xdp --json", Some((true, false))),
            ("--quick xdp", Some((false, true))),
            ("--fast", None),
            ("layer-7", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
