//! `cargo xtask check`: what must hold of the source besides its tests.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::{
    cargo::{cargo, run},
    perf, setup,
};

/// Runs every check, also after one has failed, so that one run shows all there is to mend.
///
/// # Errors
/// When a check fails; the message names all that did.
pub fn check() -> Result<()> {
    setup::setup()?;
    let checks = [
        ("format", run(cargo().args(["fmt", "--all", "--check"]))),
        (
            "lints",
            run(cargo()
                .args(["clippy", "--workspace", "--all-targets", "--all-features"])
                .args(["--", "-D", "warnings"])),
        ),
        (
            "documentation",
            run(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
                "doc",
                "--workspace",
                "--no-deps",
            ])),
        ),
        ("dependencies", dependencies()),
        ("instructions", perf::check_cores()),
    ];
    let mut failed = Vec::new();
    for (name, result) in checks {
        if let Err(error) = result {
            eprintln!("check: {name}: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("check: {} did not hold", failed.join(", "));
    }
    eprintln!("check: all held");
    Ok(())
}

/// Doubled and foreign sources of dependencies, where cargo-deny is installed.
fn dependencies() -> Result<()> {
    let mut version = cargo();
    version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if version.status().is_ok_and(|status| status.success()) {
        return run(cargo().args(["deny", "--offline", "check", "bans", "sources"]));
    }
    eprintln!(
        "  dependencies: not checked, cargo-deny is not installed (cargo install cargo-deny)"
    );
    Ok(())
}
