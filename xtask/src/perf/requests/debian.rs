//! Peers from Debian's packages, used without being installed: an installed server would start at once,
//! and on the ports of whoever uses this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::generator::Place;
use crate::{cargo::root, harness::process};

/// A program of a package.
pub struct Found {
    /// The program.
    pub program: PathBuf,
    /// What it takes for `/`, where its libraries and modules are.
    pub root: PathBuf,
}

impl Found {
    /// The program with its libraries.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        self.with_libraries(&mut command);
        command
    }

    /// The same in its place.
    pub fn command_at(&self, place: &Place) -> Command {
        let mut command = place.command(&self.program);
        self.with_libraries(&mut command);
        command
    }

    fn with_libraries(&self, command: &mut Command) {
        if self.root != Path::new("/") {
            let libraries = self.root.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
            command.env("LD_LIBRARY_PATH", libraries);
        }
    }
}

/// A file of these packages: of this machine, where they are installed, else unpacked below `target`.
///
/// # Errors
/// When apt does not have them.
pub fn find(file: &str, packages: &[&str]) -> Result<Found> {
    let at = |root: PathBuf| Found { program: root.join(file), root };
    let installed = at(PathBuf::from("/"));
    if installed.program.exists() {
        return Ok(installed);
    }
    let unpacked = at(root().join("target/perf/debian").join(packages.join("+")));
    if !unpacked.program.exists() {
        fetch(packages, &unpacked.root)?;
        ensure!(unpacked.program.exists(), "{packages:?} do not hold {file}");
    }
    Ok(unpacked)
}

/// Downloads packages, and those they need that are not installed here, and unpacks them.
fn fetch(packages: &[&str], to: &Path) -> Result<()> {
    let archives = to.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    eprintln!("perf: fetching {} from Debian, without installing", packages.join(", "));
    process::succeed(
        Command::new("apt-get")
            .args(["install", "--download-only", "--yes", "--no-install-recommends"])
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .args(packages),
    )
    .context("apt-get knows no such packages")?;
    for file in fs::read_dir(&archives)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::succeed(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(to))?;
        }
    }
    fs::remove_dir_all(&archives)?;
    Ok(())
}
