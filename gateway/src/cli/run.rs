//! `portcullis run`.

use std::{path::Path, process::ExitCode};

use super::Failure;
use crate::gateway;

/// What `run` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Take the sockets over from the daemon that runs, without a lost connection, and end it; an
    /// ordinary start where none runs.
    #[arg(long)]
    take_over: bool,
}

pub(super) fn run(config: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    gateway::run(config, arguments.take_over)
        .map_err(|error| Failure::new(error.exit_status(), error))
}
