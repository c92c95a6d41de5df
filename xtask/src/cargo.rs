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
    build(command, "portcullis")
}

/// Builds one test binary of a package, as `cargo test` does, and gives its path.
///
/// # Errors
/// When it does not build.
pub fn build_tests(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--package", package, "--test", name]);
    build(command, name)
}

/// Runs a build and gives the path of the one executable of that name that it makes.
fn build(mut command: Command, name: &str) -> Result<PathBuf> {
    eprintln!("→ {}", words(&command));
    command.arg("--message-format=json-render-diagnostics");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cargo")?;
    let stdout = child.stdout.take().context("piped above")?;
    let wanted = name.to_owned();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        lines.filter_map(|line| executable(&line, &wanted)).last()
    });
    let status = wait(child)?;
    if !status.success() {
        bail!("{name} does not build");
    }
    let binary = reader.join().ok().flatten();
    binary.with_context(|| format!("cargo built no {name}"))
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
