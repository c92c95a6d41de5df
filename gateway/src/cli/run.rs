//! `portcullis run`.

use std::{path::Path, process::ExitCode};

use super::Failure;
use crate::gateway;

pub(super) fn run(config: &Path) -> Result<ExitCode, Failure> {
    gateway::run(config).map_err(|error| Failure::new(error.exit_status(), error))
}
