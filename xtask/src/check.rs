//! `cargo xtask check`: what must hold of the source besides its tests.

use std::{fs, process::Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{
    cargo::{cargo, root, run},
    mission, perf, setup,
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
        ("figures", perf::check_quoted()),
        ("dependencies", dependencies()),
        ("mission", mission()),
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

/// Every test that the table of promises names is there.
fn mission() -> Result<()> {
    let table = fs::read_to_string(root().join(mission::FILE)).context(mission::FILE)?;
    match mission::judge(&table, |file| fs::read_to_string(root().join(file)).ok()) {
        Ok(counts) => eprintln!("  mission: {counts}"),
        Err(problems) => bail!("\n{}", problems.join("\n")),
    }
    Ok(())
}
