//! The product's binary for packages: optimised, without symbols, and the same wherever it is built.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::Source;
use crate::cargo::{cargo, run};

/// Stands for the place of the checkout in messages that name a source file.
const ROOT_NAME: &str = "/portcullis";
/// Stands for the place of the registry's sources.
const REGISTRY_NAME: &str = "/cargo";

/// Builds it below `out`, and gives its path.
///
/// # Errors
/// When it does not build.
pub(super) fn build(source: &Source, out: &Path) -> Result<PathBuf> {
    let home = cargo_home().context("neither CARGO_HOME nor HOME is set")?;
    let places = [(source.root.as_path(), ROOT_NAME), (home.as_path(), REGISTRY_NAME)];
    let flags =
        places.map(|(place, name)| format!("--remap-path-prefix={}={name}", place.display()));
    // CFLAGS are parted at spaces, and nothing can be written that is not.
    for (place, _) in places {
        let name = place.display().to_string();
        ensure!(
            !name.contains(char::is_whitespace),
            "packages cannot be built in {name:?}: a space"
        );
    }
    // The cryptography is C and names its files too.
    let c_flags =
        places.map(|(place, name)| format!("-ffile-prefix-map={}={name}", place.display()));
    run(cargo()
        .current_dir(&source.root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CFLAGS", c_flags.join(" "))
        // No time goes into the binary; one that changes would have the cryptography built anew.
        .env("SOURCE_DATE_EPOCH", "0")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .args(["build", "--locked", "--release", "--package", "gateway", "--bin", "portcullis"])
        .arg("--target-dir")
        .arg(out))?;
    Ok(out.join("release/portcullis"))
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}
