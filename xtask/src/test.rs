//! `cargo xtask test`: every test, the privileged ones too.

use std::{
    env,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::{
    cargo::{cargo, run_and_read, rustc},
    fuzz,
    harness::{clock, netns, process},
    sanitized, setup,
};

/// Runs the tests that take minutes and nearly all descriptors a process may have.
const CROWD: &str = "--crowd";
/// One after the other, of a program as it is shipped, and with their figures.
const CROWD_ARGUMENTS: [&str; 8] = [
    "--release",
    "--test",
    "gateway",
    "--",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
    "crowd::",
];

/// Goes on rehearsing faults for that long.
const SOAK: &str = "--soak";
/// With the numbers of that rehearsal, which fixes what happens in which order.
const SEED: &str = "--seed";
/// The one test, and its course as it happens.
const SOAK_ARGUMENTS: [&str; 9] = [
    "--package",
    "gateway",
    "--test",
    "gateway",
    "--",
    "--ignored",
    "--nocapture",
    "--exact",
    "soak::a_rehearsal_as_long_as_it_is_told_to_be",
];
/// By which it is told how long, and which.
const SOAK_SECONDS_VARIABLE: &str = "PORTCULLIS_SOAK_SECONDS";
const SOAK_SEED_VARIABLE: &str = "PORTCULLIS_SOAK_SEED";

/// Builds and runs with a sanitizer in every process.
const SANITIZED: &str = "--sanitized";

/// How the test binaries come to the privileges that namespaces and BPF need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privilege {
    Root,
    Sudo,
    None,
}

/// As many tests may be run a second time. More that fail at once are no accident.
const SECOND_CHANCES_MAX: usize = 3;

/// Installs what is missing, then runs all tests of the workspace, and the fuzzer on what it always tries;
/// `rest` goes to `cargo test` alone, unless it asks for the crowd, a long rehearsal or a sanitizer.
///
/// # Errors
/// When a test fails, or privileges are missing where every test must run (`CI` is set).
pub fn test(rest: &[String]) -> Result<()> {
    let started = clock::now();
    setup::setup_all()?;
    let mut variables: Vec<(String, String)> = Vec::new();
    let rest = match rest {
        [only] if only == CROWD => &CROWD_ARGUMENTS.map(str::to_owned)[..],
        [first, soak @ ..] if first == SOAK => {
            let (seconds, seed) = soak_of(soak)?;
            variables.push((SOAK_SECONDS_VARIABLE.to_owned(), seconds.to_string()));
            variables.extend(seed.map(|seed| (SOAK_SEED_VARIABLE.to_owned(), seed.to_string())));
            &SOAK_ARGUMENTS.map(str::to_owned)[..]
        }
        rest => rest,
    };
    let privilege = privilege();
    match privilege {
        Privilege::Root => {
            setup::mount_bpffs()?;
            for name in netns::remove_leftovers() {
                eprintln!("removed what a killed run left: {name}");
            }
        }
        // cargo builds as this user and starts each test binary through sudo.
        Privilege::Sudo => {
            eprintln!("the tests need root for network namespaces and BPF: asking sudo");
            setup::mount_bpffs()?;
            variables.push((variable_of(&host()?, "RUNNER"), "sudo --preserve-env".to_owned()));
        }
        Privilege::None if env::var_os("CI").is_some() => {
            bail!("the tests need root for network namespaces and BPF, and there is no sudo");
        }
        Privilege::None => eprintln!(
            "neither root nor sudo: tests that need network namespaces and BPF will say NOT RUN"
        ),
    }
    if let [first, names @ ..] = rest
        && first == SANITIZED
    {
        return sanitized::test(names, &variables, &host()?);
    }
    let tests = || {
        let mut command = cargo();
        command.args(["test", "--workspace", "--no-fail-fast"]).envs(variables.iter().cloned());
        command
    };
    let (held, failed) = run_and_read(tests().args(rest), failure)?;
    if !held {
        // Of tests that somebody chose each one has to be seen as it is.
        if failed.is_empty() || failed.len() > SECOND_CHANCES_MAX || !rest.is_empty() {
            bail!(
                "failed: {}",
                if failed.is_empty() { "see above".to_owned() } else { failed.join(", ") }
            );
        }
        again(tests(), &failed)?;
    }
    if rest.is_empty() {
        fuzz::smoke()?;
    }
    let whole = if privilege == Privilege::None { "all that could run" } else { "all" };
    eprintln!("test: {whole} passed in {} s", started.elapsed().as_secs());
    Ok(())
}

/// The seconds, and the seed if there is one, that follow `--soak`.
fn soak_of(words: &[String]) -> Result<(u64, Option<u64>)> {
    let usage = "--soak takes a length and a seed, as in `--soak 30m --seed 7`";
    let (length, rest) = words.split_first().context(usage)?;
    let seed = match rest {
        [] => None,
        [word, seed] if word == SEED => Some(seed.parse().context(usage)?),
        _ => bail!(usage),
    };
    let (number, unit_s) = match length.strip_suffix(['s', 'm', 'h']).zip(length.chars().last()) {
        Some((number, 's')) => (number, 1),
        Some((number, 'm')) => (number, 60),
        Some((number, _)) => (number, 3_600),
        None => (length.as_str(), 1),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s));
    Ok((seconds.with_context(|| format!("{length}: {usage}"))?, seed))
}

/// Runs tests once more that failed among the others, each by itself. The whole product with its clients
/// and upstreams is run by several tests at once, and a machine with few cores can keep one of them
/// waiting for longer than it waits; a defect fails again. It is said either way, and last.
fn again(mut command: Command, failed: &[String]) -> Result<()> {
    eprintln!("test: {} failed among the others; by themselves:", failed.join(", "));
    command.args(["--", "--exact", "--test-threads=1"]).args(failed);
    let (held, passed) = run_and_read(&mut command, success)?;
    let missing: Vec<_> = failed.iter().filter(|name| !passed.contains(name)).collect();
    if !held || !missing.is_empty() {
        bail!("failed twice: {missing:?}");
    }
    eprintln!(
        "test: FLAKY, failed among the others and passed alone, and is to be mended: {}",
        failed.join(", ")
    );
    Ok(())
}

/// The test that a line of the test runner's output says has failed.
pub(crate) fn failure(line: &str) -> Option<String> {
    result(line, "FAILED")
}

/// The one that it says has passed.
fn success(line: &str) -> Option<String> {
    result(line, "ok")
}

fn result(line: &str, word: &str) -> Option<String> {
    let told = line.strip_prefix("test ")?.strip_suffix(word)?;
    Some(told.strip_suffix(" ... ")?.to_owned())
}

fn privilege() -> Privilege {
    if geteuid().is_root() {
        return Privilege::Root;
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if sudo.status().is_ok_and(|status| status.success()) {
        Privilege::Sudo
    } else {
        Privilege::None
    }
}

/// This machine's own target.
fn host() -> Result<String> {
    let version = process::succeed(rustc().arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// The variable by which cargo is told something about a target.
pub(crate) fn variable_of(target: &str, what: &str) -> String {
    format!("CARGO_TARGET_{}_{what}", target.to_uppercase().replace(['-', '.'], "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runner_says_of_a_test_is_read() {
        let lines = [
            ("test a::b ... FAILED", Some("a::b"), None),
            ("test a::b ... ok", None, Some("a::b")),
            ("test src/a.rs - b (line 3) ... ok", None, Some("src/a.rs - b (line 3)")),
            ("test a::b ... ignored", None, None),
            ("test result: FAILED. 1 passed; 1 failed", None, None),
            ("    a::b ... FAILED", None, None),
        ];
        for (line, failed, passed) in lines {
            assert_eq!(failure(line).as_deref(), failed, "{line}");
            assert_eq!(success(line).as_deref(), passed, "{line}");
        }
    }

    #[test]
    fn how_long_a_rehearsal_is_and_which_is_read_or_refused() {
        for (text, expected) in [
            ("30m", Some((1_800, None))),
            ("90s --seed 7", Some((90, Some(7)))),
            ("2h", Some((7_200, None))),
            ("45", Some((45, None))),
            ("", None),
            ("m", None),
            ("-1m", None),
            ("30d", None),
            ("30m --seed", None),
            ("30m --seed x", None),
            ("30m --quick", None),
            ("18446744073709551615h", None),
        ] {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            assert_eq!(soak_of(&words).ok(), expected, "{text}");
        }
    }

    #[test]
    fn cargos_variable_is_spelled_as_cargo_wants() {
        assert_eq!(
            variable_of("x86_64-unknown-linux-gnu", "RUNNER"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }
}
