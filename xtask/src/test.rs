//! `cargo xtask test`: every test, the privileged ones too.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::{
    cargo::{cargo, run},
    harness::{clock, netns, process},
    setup,
};

/// Runs the tests that take minutes and nearly all descriptors a process may have.
const CROWD: &str = "--crowd";
/// One after the other, of a program as it is shipped, and with their figures.
const CROWD_ARGUMENTS: [&str; 11] = [
    "test",
    "--package",
    "gateway",
    "--release",
    "--test",
    "gateway",
    "--",
    "--ignored",
    "--nocapture",
    "--test-threads=1",
    "crowd::",
];

/// How the test binaries come to the privileges that namespaces and BPF need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Privilege {
    Root,
    Sudo,
    None,
}

/// Installs what is missing, then runs all tests of the workspace; `rest` goes to `cargo test`, unless it
/// asks for the crowd alone.
///
/// # Errors
/// When a test fails, or privileges are missing where every test must run (`CI` is set).
pub fn test(rest: &[String]) -> Result<()> {
    let started = clock::now();
    setup::setup_all()?;
    let mut command = cargo();
    match rest {
        [only] if only == CROWD => command.args(CROWD_ARGUMENTS),
        rest => command.arg("test").arg("--workspace").args(rest),
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
            command.env(runner_variable()?, "sudo --preserve-env");
        }
        Privilege::None if env::var_os("CI").is_some() => {
            bail!("the tests need root for network namespaces and BPF, and there is no sudo");
        }
        Privilege::None => eprintln!(
            "neither root nor sudo: tests that need network namespaces and BPF will say NOT RUN"
        ),
    }
    run(&mut command)?;
    let whole = if privilege == Privilege::None { "all that could run" } else { "all" };
    eprintln!("test: {whole} passed in {} s", started.elapsed().as_secs());
    Ok(())
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

/// The variable that names cargo's runner for this machine's own target.
fn runner_variable() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = process::succeed(Command::new(Path::new(&rustc)).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(runner_of(host.context("rustc -vV names no host")?))
}

fn runner_of(target: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace(['-', '.'], "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_variable_is_spelled_as_cargo_wants() {
        assert_eq!(
            runner_of("x86_64-unknown-linux-gnu"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }
}
