//! Calls of cargo, with its own progress on the terminal.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::harness::{clock, process::words};

/// The root of the repository.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The package lies one level below.
    manifest.parent().unwrap_or(manifest)
}

/// The cargo that called us, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end, its output on the terminal; says first what it runs.
///
/// # Errors
/// When it cannot be started, fails, or somebody interrupts.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("→ {}", words(command));
    let child = command.stdin(Stdio::null()).spawn().with_context(|| words(command))?;
    let status = wait(child)?;
    if !status.success() {
        bail!("`{}` failed ({status})", words(command));
    }
    Ok(())
}

/// Runs a command to its end and shows its standard output as it comes; gives whether it succeeded, and
/// of that output what `of_interest` finds in its lines.
///
/// # Errors
/// When it cannot be started, or somebody interrupts.
pub fn run_and_read<T: Send + 'static>(
    command: &mut Command,
    of_interest: fn(&str) -> Option<T>,
) -> Result<(bool, Vec<T>)> {
    eprintln!("→ {}", words(command));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| words(command))?;
    let stdout = child.stdout.take().context("piped above")?;
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.inspect(|line| println!("{line}")).filter_map(|line| of_interest(&line)).collect()
    });
    let status = wait(child)?;
    let found = reader.join().ok().context("its output could not be read")?;
    Ok((status.success(), found))
}

/// Waits for a child, and ends it on interrupt.
fn wait(mut child: Child) -> Result<ExitStatus> {
    // A build may take long; it is bounded by whoever looks at it.
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Err(interrupted) = clock::pause(std::time::Duration::from_millis(20)) {
            // Gone already is as good.
            let _gone = child.kill();
            let _buried = child.wait();
            return Err(interrupted);
        }
    }
}

/// Builds the product with optimisation, progress on the terminal, and gives the binary's path.
///
/// # Errors
/// When it does not build.
pub fn build_release() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "gateway", "--bin", "portcullis"]);
    build(command, ["portcullis"]).map(|[binary]| binary)
}

/// Builds the load generator with optimisation, progress on the terminal, and gives the binary's path.
///
/// # Errors
/// When it does not build.
pub fn build_load() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "load", "--bin", "load"]);
    build(command, ["load"]).map(|[binary]| binary)
}

/// Builds what `perf cores` counts, as the tests are built, and gives the binary's path.
///
/// # Errors
/// When it does not build.
pub fn build_cores() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "gateway", "--bench", "cores"]);
    build(command, ["cores"]).map(|[binary]| binary)
}

/// The compiler that cargo calls.
pub fn rustc() -> Command {
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(root());
    command
}

/// The product's own tests and the product that they run, as `cargo test` builds them.
#[derive(Debug)]
pub struct Tests {
    /// The binary with the tests in it.
    pub tests: PathBuf,
    /// The product; the tests look for it at this very path.
    pub product: PathBuf,
}

/// Builds the product's tests, as `cargo test` does.
///
/// # Errors
/// When they do not build.
pub fn build_tests() -> Result<Tests> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--package", "gateway", "--test", "gateway"]);
    let [tests, product] = build(command, ["gateway", "portcullis"])?;
    Ok(Tests { tests, product })
}

/// Builds the fuzzer with this program in front of the compiler, which `wraps` tells it.
///
/// # Errors
/// When it does not build.
pub fn build_fuzzer(wraps: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "fuzz", "--bin", "fuzz", "--features", "libfuzzer"]);
    let ours = env::current_exe().context("where this program is")?;
    command.env("RUSTC_WORKSPACE_WRAPPER", ours).env(wraps, "1");
    build(command, ["fuzz"]).map(|[binary]| binary)
}

/// Runs a build and gives the paths of the executables of these names that it makes.
fn build<const N: usize>(mut command: Command, names: [&'static str; N]) -> Result<[PathBuf; N]> {
    eprintln!("→ {}", words(&command));
    command.arg("--message-format=json-render-diagnostics");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cargo")?;
    let stdout = child.stdout.take().context("piped above")?;
    let reader = std::thread::spawn(move || {
        let mut found = names.map(|_| None);
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            for (name, found) in names.iter().zip(&mut found) {
                *found = executable(&line, name).or(found.take());
            }
        }
        found
    });
    let status = wait(child)?;
    if !status.success() {
        bail!("{} does not build", names.join(", "));
    }
    let found = reader.join().ok().map(|found| found.into_iter().flatten().collect::<Vec<_>>());
    let found = found.and_then(|found| found.try_into().ok());
    found.with_context(|| format!("cargo did not build all of {}", names.join(", ")))
}

/// The executable of that name that a line of cargo's messages tells of.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    (message["target"]["name"] == name)
        .then(|| message["executable"].as_str().map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_cargos_messages() {
        for (line, path) in [
            (
                r#"{"target":{"name":"portcullis"},"executable":"/x/portcullis"}"#,
                Some("/x/portcullis"),
            ),
            (r#"{"target":{"name":"gateway"},"executable":null}"#, None),
            (r#"{"reason":"build-finished","success":true}"#, None),
            ("not JSON", None),
        ] {
            assert_eq!(executable(line, "portcullis"), path.map(PathBuf::from), "{line}");
        }
    }
}
