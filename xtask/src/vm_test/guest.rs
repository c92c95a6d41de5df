//! What a guest starts from: a shell, the tests' own tools, the libraries they need, and the very
//! test binary that runs on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    archive::Archive,
    report::{ENDED, UP},
};
use crate::harness::process::{run, words};

/// Most of them wait for packets that must not come, so they wait beside each other.
const THREADS: u32 = 6;
/// Where the guest's module is.
const MODULE: &str = "/veth.ko";
/// The serial port that the tests write to; kernel messages are on the first.
const OUTPUT: &str = "/dev/ttyS1";

/// A program in a guest.
#[derive(Debug)]
pub struct Program {
    /// Where it is there.
    pub place: PathBuf,
    /// Where it is here.
    pub file: PathBuf,
}

/// What every guest has, ready to be put before what is one kernel's own: these programs, and a
/// first process that runs the tests whose names contain one of `wanted`, then those of `timed`.
///
/// # Errors
/// When a file or a library cannot be read.
pub fn common(programs: &[Program], wanted: &[&str], timed: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
        archive.directory(Path::new(directory));
    }
    archive.file(Path::new("/init"), init(wanted, timed).as_bytes());
    let mut needed = Vec::new();
    for Program { place, file } in programs {
        archive.file(place, &read(file)?);
        needed.extend(libraries(file)?);
    }
    needed.sort();
    needed.dedup();
    for library in needed {
        archive.file(&library, &read(&library)?);
    }
    Ok(archive.finish())
}

/// What one kernel's guest has besides.
///
/// # Errors
/// When the module cannot be read.
pub fn own(module: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file(Path::new(MODULE), &read(module)?);
    Ok(archive.finish())
}

/// The guest's first and only process: mounts, runs the tests, switches off.
fn init(wanted: &[&str], timed: &[&str]) -> String {
    let mut tests = format!("tests --test-threads={THREADS} --show-output {}", wanted.join(" "));
    if !timed.is_empty() {
        // These give a request seconds to be answered in, which an emulated processor has when it
        // does nothing else.
        tests += &format!(" && tests --test-threads=1 --show-output {}", timed.join(" "));
    }
    format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin CI=1 OPENSSL_CONF=/dev/null\n\
         alias b=/bin/busybox\n\
         b mount -t devtmpfs dev /dev\n\
         exec >{OUTPUT} 2>&1 </dev/null\n\
         b mount -t proc proc /proc\n\
         b mount -t sysfs sys /sys\n\
         b mount -t bpf bpf /sys/fs/bpf\n\
         b mount -t tmpfs run /run\n\
         b mount -t tmpfs tmp /tmp\n\
         b insmod {MODULE}\n\
         read -r seconds rest </proc/uptime\n\
         echo \"{UP}$seconds s, $(b uname -v)\"\n\
         {tests}\n\
         echo \"{ENDED}$?\"\n\
         b poweroff -f\n"
    )
}

/// The shared libraries of a program and its loader; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    command.arg(program).env("LC_ALL", "C").stdin(Stdio::null());
    let ended = run(&mut command)?;
    if ended.status != Some(0) {
        if ended.stdout.contains("not a dynamic") || ended.stderr.contains("not a dynamic") {
            return Ok(Vec::new());
        }
        bail!("{} failed: {}{}", words(&command), ended.stdout, ended.stderr);
    }
    listed(&ended.stdout)
}

/// The files that `ldd` names.
fn listed(text: &str) -> Result<Vec<PathBuf>> {
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("a library is missing: {}", line.trim());
    }
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_libraries_and_the_loader_among_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x00007f15)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f15)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f15)\n";
        let libraries = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(listed(text).unwrap(), libraries.map(PathBuf::from));
        assert!(listed("\tstatically linked\n").unwrap().is_empty());
        assert!(listed("\tlibodd.so.1 => not found\n").is_err());
    }

    #[test]
    fn a_guest_says_what_the_report_waits_for() {
        let init = init(&["one_", "two::"], &["three"]);
        assert!(init.contains(" one_ two:: && ") && init.contains(" three\n"));
        assert!(
            init.contains(&format!("echo \"{UP}")) && init.contains(&format!("echo \"{ENDED}"))
        );
    }
}
