//! `portcullis agent`: the process beside the daemon that may change the kernel.

use std::{path::PathBuf, process::ExitCode};

use super::Failure;
use crate::kernel::agent;

/// Wrong usage.
const USAGE: u8 = 2;

/// What it is started with.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the daemon's program was started from.
    #[arg(long)]
    program: PathBuf,
    /// Where the filter is pinned, where there is one.
    #[arg(long)]
    pin: Option<PathBuf>,
}

pub(super) fn run(config: PathBuf, arguments: Arguments) -> Result<ExitCode, Failure> {
    let Arguments { program, pin } = arguments;
    agent::run(&agent::Origin { config, program, pin }).map_err(|error| Failure::new(USAGE, error))
}
