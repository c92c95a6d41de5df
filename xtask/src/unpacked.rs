//! Programs that tests run out of Debian packages which must not be installed: installing starts a
//! service, or puts another keeper of the machine's clock out.
//!
//! The package is fetched and the one program taken out of it; no script of the package runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup::{in_path, output, privileged, run};

/// Where they are put, beside what else is only for this repository.
const PLACE: &str = ".tools/unpacked";

/// One program.
struct Unpacked {
    /// The package it comes in.
    package: &'static str,
    /// Its path in there, and below [`PLACE`].
    path: &'static str,
    /// Why the package is not installed.
    because: &'static str,
}

/// All of them.
const PROGRAMS: [Unpacked; 2] = [
    // Judges the page of metrics and tests the alerts.
    Unpacked {
        package: "prometheus",
        path: "usr/bin/promtool",
        because: "installing it would start a server",
    },
    // Keeps a test's clock.
    Unpacked {
        package: "chrony",
        path: "usr/sbin/chronyd",
        because: "installing it would replace what keeps this machine's clock",
    },
];

/// Takes out what is not there yet.
///
/// # Errors
/// When it cannot be fetched or does not run; the text says what to do by hand.
pub fn unpack_missing(workspace: &Path) -> Result<()> {
    let place = workspace.join(PLACE);
    let is_there = |program: &&Unpacked| {
        let name = Path::new(program.path).file_name().unwrap_or_default().to_string_lossy();
        runs(&place.join(program.path)) || in_path(&name).is_some_and(|found| runs(&found))
    };
    for program in PROGRAMS.iter().filter(|program| !is_there(program)) {
        let Unpacked { package, path, because } = program;
        eprintln!("setup: taking {path} out of the package {package}: {because}");
        let by_hand = || format!("put {path} of Debian's {package} into PATH, then try again");
        if in_path("apt-get").is_none() || in_path("dpkg-deb").is_none() {
            bail!("there is no apt-get or dpkg-deb: {}", by_hand());
        }
        take_out(program, &place).with_context(by_hand)?;
        let file = place.join(path);
        if !runs(&file) {
            install_libraries(package).with_context(by_hand)?;
        }
        ensure!(runs(&file), "{} does not run; {}", file.display(), by_hand());
    }
    Ok(())
}

fn take_out(program: &Unpacked, place: &Path) -> Result<()> {
    let fetched = place.join("fetched");
    fs::create_dir_all(&fetched)?;
    let mut fetch = Command::new("apt-get");
    fetch.args(["download", "--quiet", program.package]).current_dir(&fetched);
    run(&mut fetch)?;
    let package = the_package(&fetched, program.package)?;
    let mut opened = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package)
        .stdout(Stdio::piped())
        .spawn()?;
    let files = opened.stdout.take().context("piped above")?;
    let mut taken = Command::new("tar");
    taken.args(["--extract", "--directory"]).arg(place).arg(format!("./{}", program.path));
    run(taken.stdin(files))?;
    ensure!(opened.wait()?.success(), "dpkg-deb cannot read {}", package.display());
    fs::remove_dir_all(&fetched).context("cannot remove what was fetched")
}

/// The file of a package among those that were fetched: its name goes on with version and architecture.
fn the_package(fetched: &Path, package: &str) -> Result<PathBuf> {
    let begins = format!("{package}_");
    let mut files = fs::read_dir(fetched)?.flatten().map(|entry| entry.path());
    let is_it = |file: &PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begins))
    };
    files.find(is_it).with_context(|| format!("apt-get gave no file of {package}"))
}

/// What the program is linked with; libraries start nothing.
fn install_libraries(package: &str) -> Result<()> {
    let told = output(Command::new("apt-cache").args(["depends", package]).env("LC_ALL", "C"));
    let told = told.with_context(|| format!("apt-cache knows no {package}"))?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(libraries(&told));
    privileged("apt-get", &arguments)
}

fn libraries(depends: &str) -> Vec<&str> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| name.starts_with("lib")).collect()
}

fn runs(program: &Path) -> bool {
    output(Command::new(program).arg("--version")).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_what_else_a_package_needs() {
        let told = "chrony\n  PreDepends: init-system-helpers\n  Depends: adduser\n  Depends: libc6\n  \
                    Depends: libedit2\n  Conflicts: <time-daemon>\n  Suggests: libfoo\n";
        assert_eq!(libraries(told), ["libc6", "libedit2"]);
    }
}
