//! `portcullis config`.

use std::{path::Path, process::ExitCode};

use super::{DONE, Failure};
use crate::config::{self, Disk};

/// What `config` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let effective = config::effective(path, &Disk::new())?;
    if arguments.json {
        println!("{}", effective.json());
    } else {
        print!("{}", effective.toml());
    }
    Ok(ExitCode::from(DONE))
}
