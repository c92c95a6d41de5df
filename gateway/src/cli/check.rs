//! `portcullis check`.

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::{CONFIGURATION, DONE, Failure};
use crate::{
    config::{self, Disk},
    gateway::{advice, load_snapshot},
    time,
};

/// What `check` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Fail on warnings too.
    #[arg(long)]
    strict: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    match config::load(path, &Disk::new()) {
        Ok((config, found)) => {
            warnings.extend(found.iter().map(ToString::to_string));
            // The same reading as at the start: chains, revocation lists and key sets down to their
            // signatures.
            match load_snapshot(&config, 0) {
                Ok(snapshot) => warnings.extend(advice(&config, &snapshot, time::unix())),
                Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
            }
        }
        Err(found) => {
            problems.extend(found.to_string().lines().map(str::to_owned));
            warnings.extend(found.warnings().iter().map(ToString::to_string));
        }
    }
    let refused = !problems.is_empty() || (arguments.strict && !warnings.is_empty());
    if arguments.json {
        println!("{}", json!({ "ok": !refused, "problems": problems, "warnings": warnings }));
    } else {
        for problem in &problems {
            println!("{problem}");
        }
        for warning in &warnings {
            println!("warning: {warning}");
        }
        if !refused {
            println!("{}: good", path.display());
        }
    }
    Ok(ExitCode::from(if refused { CONFIGURATION } else { DONE }))
}
