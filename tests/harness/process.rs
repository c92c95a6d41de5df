//! Commands run to their end, with what they said kept for the message when they fail.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Standard output, made text.
    pub stdout: String,
    /// Standard error, made text.
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end, whatever its exit status, without standard input.
///
/// # Errors
/// When it cannot be started.
pub fn run(command: &mut Command) -> Result<Ended> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start: {}", words(command)))?;
    Ok(output.into())
}

/// Runs a command that must succeed, and gives its standard output.
///
/// # Errors
/// When it cannot be started or its exit status is not 0; the message holds what it said.
pub fn succeed(command: &mut Command) -> Result<String> {
    let ended = run(command)?;
    if ended.status != Some(0) {
        bail!("{} ended with {:?}\n{}{}", words(command), ended.status, ended.stdout, ended.stderr);
    }
    Ok(ended.stdout)
}

/// Runs a command with `input` on its standard input, to its end.
///
/// # Errors
/// When it cannot be started or its output cannot be read.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Ended> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start: {}", words(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A peer that refuses early closes its end; what it answers is the result, not this error.
        let _closed_early = stdin.write_all(input);
    }
    Ok(child.wait_with_output().with_context(|| words(command))?.into())
}

/// The command line as one would type it, for messages.
pub fn words(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args().map(OsStr::to_string_lossy) {
        // Writing to a String cannot fail.
        let _infallible = write!(line, " {argument}");
    }
    line
}
