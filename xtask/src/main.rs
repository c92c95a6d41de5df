//! The repository's commands: `cargo xtask COMMAND`.

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

#[allow(dead_code, reason = "the tests use what the demonstration does not")]
#[path = "../../tests/harness/mod.rs"]
mod harness;

mod browse;
mod cargo;
mod check;
mod demo;
mod fuzz;
mod mission;
mod package;
mod perf;
mod process;
mod sanitized;
mod setup;
mod test;
mod unpacked;
mod vm_test;

const HELP: &str = "\
The repository's commands.

cargo xtask setup                      installs what the others need; they call it themselves
cargo xtask demo [--json] [--seconds N]  shows the whole product at work, in namespaces of its own (root)
cargo xtask browse [--binary FILE]     the status page in Chromium beside a flood, on wide and small screens;
                                       pictures into target/browse (root)
cargo xtask test [ARGUMENTS…]          all tests and `fuzz --smoke`; with ARGUMENTS `cargo test` with them
cargo xtask test --crowd               thousands of connections that hold on, and what each costs (root)
cargo xtask test --soak LENGTH [--seed N]
                                       faults of all kinds for that long (30m), and good clients beside them,
                                       in rounds with a seed each: N, N + 1, …; a table in the end; a round
                                       once more: --soak 60s --seed ITS-SEED (root)
cargo xtask test --sanitized [NAME…]   unit tests and those of the whole product that suit, built with a
                                       sanitizer of memory, leaks too, into target/sanitized (root)
cargo xtask vm-test [--product] [--refresh] [KERNEL…]
                                       the XDP program, or the whole product, in emulated machines with
                                       Debian's kernels 5.10, 6.1 and 6.12
cargo xtask perf [SCENARIO…] [--json] [--quick] [--rounds N]
                                       measures against others, and keeps the results (root); mtls,
                                       token-hot, token-many, token-cold, handshake, latency, idle, reload,
                                       scale, host, xdp, flood; without one, all of them
cargo xtask perf --readme FILE…        has both README.md quote results that were kept
cargo xtask perf cores [--check|--write]
                                       instructions and allocations of what every packet and request pays
                                       for, beside those that are kept; `check` does it too
cargo xtask fuzz [TARGET…] [--seconds N | --smoke] [--replay FILE]
                                       any bytes for whatever reads bytes from outside, a target for each CPU
                                       at once; 60 s each, with --smoke always from the same beginning
cargo xtask package [deb|rpm|tar…] [--verify] [--boot] [--binary FILE]
                                       what users install, into target/package; --verify builds it twice and
                                       compares; --boot lives through its life on a Debian system (root)
cargo xtask check                      format, lints, documentation, dependencies, that each test which
                                       tests/mission.md names is there, and instruction counts
";

fn main() -> ExitCode {
    if fuzz::is_wrapping() {
        return fuzz::wrap();
    }
    let words: Vec<String> = env::args().skip(1).collect();
    match command(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(words: &[String]) -> Result<ExitCode> {
    let Some((name, rest)) = words.split_first() else {
        print!("{HELP}");
        return Ok(ExitCode::from(2));
    };
    match name.as_str() {
        "setup" => without_arguments(rest, setup::setup_all),
        "check" => without_arguments(rest, check::check),
        "test" => test::test(rest).map(|()| ExitCode::SUCCESS),
        "vm-test" => vm_test::vm_test(rest),
        "demo" => demo::demo(rest),
        "browse" => browse::browse(rest),
        "fuzz" => fuzz::fuzz(rest),
        "package" => package::package(rest),
        "perf" => perf::perf(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => {
            eprint!("xtask: there is no command `{other}`\n\n{HELP}");
            Ok(ExitCode::from(2))
        }
    }
}

fn without_arguments(rest: &[String], run: fn() -> Result<()>) -> Result<ExitCode> {
    if let Some(word) = rest.first() {
        bail!("this command takes no arguments; what is `{word}`?");
    }
    run().map(|()| ExitCode::SUCCESS)
}
