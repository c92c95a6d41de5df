//! `portcullis detach`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{AskError, DONE, FAILED, Failure, NOT_PERMITTED, Question, loaded, socket};
use crate::kernel;

/// What `detach` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Take off what is pinned in this directory, without a look at the configuration; not while a
    /// daemon uses it.
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
}

/// Through the daemon when one runs, since what it holds open would keep the program attached;
/// otherwise by itself.
pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let interfaces = match &arguments.pin {
        Some(pin) => pinned_at(pin)?,
        None => configured(path)?,
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

fn configured(path: &Path) -> Result<Vec<String>, Failure> {
    let config = loaded(path)?;
    match socket::ask::<Answer>(&config.admin.socket, &Question::Detach) {
        Ok(answer) => Ok(answer.interfaces),
        Err(AskError::NoDaemon(_)) => match &config.xdp {
            Some(settings) => pinned_at(&settings.pin),
            None => Err(Failure::new(
                FAILED,
                "no XDP program: [xdp].interfaces is empty; what an earlier configuration pinned \
                 goes with --pin /sys/fs/bpf/portcullis",
            )),
        },
        Err(error) => Err(error.into()),
    }
}

fn pinned_at(pin: &Path) -> Result<Vec<String>, Failure> {
    let detached = kernel::detach(pin).map_err(|error| {
        let status = if error.not_permitted().is_some() { NOT_PERMITTED } else { FAILED };
        Failure::new(status, error)
    })?;
    Ok(detached.interfaces)
}
