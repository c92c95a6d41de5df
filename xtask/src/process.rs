//! What the commands that run as root and set scenes up have in common as processes.

use std::process::ExitCode;

use anyhow::Result;
use nix::unistd::geteuid;
use signal_hook::{consts, flag};

use crate::harness::clock;

/// Exit status for a missing privilege, as the product's own.
const NOT_PERMITTED: u8 = 77;

/// The answer of `command` to somebody who is not root, `None` for root. `needs` says what for, with
/// the capabilities.
pub fn refuse_without_root(command: &str, needs: &str) -> Option<ExitCode> {
    if geteuid().is_root() {
        return None;
    }
    eprintln!(
        "{command}: needs root, {needs}: sudo --preserve-env=PATH,HOME cargo xtask {command}"
    );
    Some(ExitCode::from(NOT_PERMITTED))
}

/// The first SIGINT or SIGTERM ends every wait, so that the scene is taken down in the ordinary way;
/// a second one ends the process at once, and the next run finds what it left.
///
/// # Errors
/// When a handler cannot be installed.
pub fn stop_on_signals() -> Result<()> {
    let interrupt = clock::interrupt_flag();
    for signal in [consts::SIGINT, consts::SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, interrupt.clone())?;
        flag::register(signal, interrupt.clone())?;
    }
    Ok(())
}
