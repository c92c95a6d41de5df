//! Other people's implementations, in Python: `cargo xtask setup` puts them into `.tools/python`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{netns::Namespace, process};

/// The interpreter that has them.
pub fn interpreter() -> Option<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = package.parent().unwrap_or(package).join(".tools/python/bin/python");
    python.exists().then_some(python)
}

/// Runs a program of `tests/data` in a namespace with one JSON value on its standard input, and gives
/// the one that it prints.
///
/// # Errors
/// When the interpreter is missing, the program fails, or what it prints is no JSON.
pub fn converse(namespace: &Namespace, program: &str, input: &Value) -> Result<Value> {
    let python = interpreter().context("no .tools/python; `cargo xtask setup` makes it")?;
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = package.parent().unwrap_or(package).join("tests/data").join(program);
    let mut command = namespace.command("timeout");
    command.args(["--signal=KILL", "300"]).arg(python).arg(program);
    let ended = process::run_with_input(&mut command, input.to_string().as_bytes())?;
    serde_json::from_str(&ended.stdout)
        .with_context(|| format!("it said: {}{}", ended.stdout, ended.stderr))
}
