//! `portcullis detach`.

use std::{path::Path, process::ExitCode};

use super::{AskError, DONE, FAILED, Failure, NOT_PERMITTED, Question, loaded, socket};
use crate::kernel;

/// Through the daemon when one runs, since what it holds open would keep the program attached;
/// otherwise by itself.
pub(super) fn run(path: &Path) -> Result<ExitCode, Failure> {
    let config = loaded(path)?;
    let interfaces = match socket::ask::<Answer>(&config.admin.socket, &Question::Detach) {
        Ok(answer) => answer.interfaces,
        Err(AskError::NoDaemon(_)) => alone(&config)?,
        Err(error) => return Err(error.into()),
    };
    if interfaces.is_empty() {
        println!("nothing was attached");
    } else {
        println!("detached from {}; nothing is filtered any more", interfaces.join(", "));
    }
    Ok(ExitCode::from(DONE))
}

#[derive(serde::Deserialize)]
struct Answer {
    interfaces: Vec<String>,
}

fn alone(config: &crate::config::Config) -> Result<Vec<String>, Failure> {
    let Some(settings) = &config.xdp else {
        return Err(Failure::new(FAILED, "no XDP program: [xdp].interfaces is empty"));
    };
    let detached = kernel::detach(&settings.pin).map_err(|error| {
        let status = if error.not_permitted().is_some() { NOT_PERMITTED } else { FAILED };
        Failure::new(status, error)
    })?;
    Ok(detached.interfaces)
}
