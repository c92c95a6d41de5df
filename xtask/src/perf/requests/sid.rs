//! Peers of Debian's development branch, "sid": what its next releases will have. They are unpacked with all
//! their libraries below `target` and run there by their own dynamic linker; nothing is installed, and
//! apt's lists, sources and downloads are not the system's.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::debian::{Found, libraries, unpack};
use crate::{cargo::root, harness::process, vm_test};

/// All of them at once: they share libraries.
const PACKAGES: [&str; 3] = ["haproxy", "nginx", "libnginx-mod-http-js"];

/// A program of these packages.
///
/// # Errors
/// When apt cannot fetch them.
pub fn find(file: &str) -> Result<Found> {
    let place = root().join("target/perf/sid");
    let whole = place.join("root");
    if !whole.exists() {
        eprintln!("perf: fetching {} of Debian sid, without installing", PACKAGES.join(", "));
        fetch(&place).context("Debian sid cannot be had")?;
    }
    let program = whole.join(file);
    ensure!(program.exists(), "the packages do not hold {file}");
    let name = program.file_name().context("a program has a name")?;
    let starter = place.join(name);
    fs::write(&starter, starter_of(&program, &linker(&whole)?, &libraries(&whole)))?;
    fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?;
    Ok(Found { program: starter, root: whole, finds_libraries: true })
}

/// Has a program started by a dynamic linker of its own release. A program that starts itself anew, as
/// HAProxy does to be reloaded, takes the name that it was called by, which is the starter's.
fn starter_of(program: &Path, linker: &Path, libraries: &Path) -> String {
    let [program, linker, libraries] =
        [program, linker, libraries].map(|path| path.display().to_string());
    format!(
        "#!/bin/sh\nexec '{linker}' --argv0 \"$0\" --library-path '{libraries}' '{program}' \"$@\"\n"
    )
}

/// The dynamic linker lies beside the libraries.
fn linker(root: &Path) -> Result<PathBuf> {
    let directory = libraries(root);
    let files = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let is_it = |file: &PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux-"))
    };
    files.flatten().map(|file| file.path()).find(is_it).context("the packages hold no linker")
}

fn fetch(place: &Path) -> Result<()> {
    let apt = place.join("apt");
    for directory in ["state", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(directory))?;
    }
    // Nothing is there: so nothing that is needed is left out.
    fs::write(apt.join("status"), "")?;
    fs::write(apt.join("sources.list"), vm_test::source("sid")?)?;
    let command = || {
        let mut command = Command::new("apt-get");
        for (option, value) in [
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", apt.join("state")),
            ("Dir::State::status", apt.join("status")),
            ("Dir::State::lists", apt.join("lists")),
            ("Dir::Cache", apt.join("cache")),
            // This directory need not be open to apt's own user.
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command
    };
    process::succeed(command().args(["--quiet=2", "update"]))?;
    let mut install = command();
    install.args(["install", "--download-only", "--yes", "--no-install-recommends"]);
    process::succeed(install.args(PACKAGES))?;
    // Under another name until all is there: an interrupted run begins anew.
    let unpacked = place.join("unpacked");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    fs::create_dir_all(&unpacked)?;
    unpack(&apt.join("cache/archives"), &unpacked)?;
    fs::rename(&unpacked, place.join("root"))?;
    fs::remove_dir_all(&apt)?;
    Ok(())
}
