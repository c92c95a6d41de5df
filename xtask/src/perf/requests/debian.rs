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
    /// It sees to its libraries itself.
    pub finds_libraries: bool,
}

impl Found {
    /// A program that needs nothing but what this machine has.
    pub fn here(program: PathBuf) -> Found {
        Found { program, root: PathBuf::from("/"), finds_libraries: true }
    }

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
        if !self.finds_libraries {
            command.env("LD_LIBRARY_PATH", libraries(&self.root));
        }
    }
}

/// Where packages put libraries below a root.
pub fn libraries(root: &Path) -> PathBuf {
    root.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH))
}

/// A file of these packages: of this machine, where they are installed, else unpacked below `target`.
///
/// # Errors
/// When apt does not have them.
pub fn find(file: &str, packages: &[&str]) -> Result<Found> {
    let at = |root: PathBuf| Found { program: root.join(file), root, finds_libraries: false };
    let installed = Found::here(Path::new("/").join(file));
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
    unpack(&archives, to)?;
    fs::remove_dir_all(&archives)?;
    Ok(())
}

/// Unpacks all packages of a directory into another.
///
/// # Errors
/// When one is none.
pub fn unpack(archives: &Path, to: &Path) -> Result<()> {
    for file in fs::read_dir(archives)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::succeed(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(to))?;
        }
    }
    Ok(())
}
