//! `portcullis reload` and `portcullis drain`: what SIGHUP and SIGTERM do, waiting for the result;
//! and `portcullis upgrade`, which waits for the next process.

use std::{path::Path, process::ExitCode, time::Duration};

use super::{DONE, FAILED, Failure, Question, loaded, socket};
use crate::{
    admin::socket::{DrainRow, Status},
    time,
};

/// What both are told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn reload(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let asked = &loaded(path)?.admin.socket;
    let answer: serde_json::Value = socket::ask(asked, &Question::Reload)?;
    if arguments.json {
        println!("{answer}");
    } else {
        println!("applied: generation {}", answer["generation"]);
    }
    Ok(ExitCode::from(DONE))
}

/// A start that takes longer than this has failed, and its log says why.
const UPGRADE_MAX: Duration = Duration::from_secs(40);

/// The new process is asked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) fn upgrade(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let asked = &loaded(path)?.admin.socket;
    let started: serde_json::Value = socket::ask(asked, &Question::Upgrade)?;
    let deadline = time::monotonic() + UPGRADE_MAX;
    while time::monotonic() < deadline {
        std::thread::sleep(LOOK_EVERY);
        // Between the two processes a question may go unanswered; then it is asked again.
        let Ok(status) = socket::ask::<Status>(asked, &Question::Status) else { continue };
        if started["pid"] != status.pid {
            if !status.takes_over {
                break;
            }
            continue;
        }
        if arguments.json {
            println!("{}", serde_json::json!({ "pid": status.pid, "version": status.version }));
        } else {
            println!("portcullis {} (pid {}) has taken over", status.version, status.pid);
        }
        return Ok(ExitCode::from(DONE));
    }
    Err(Failure::new(
        FAILED,
        "the new process did not take over; its log says why, and nothing changed",
    ))
}

pub(super) fn drain(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let asked = &loaded(path)?.admin.socket;
    let mut last: Option<DrainRow> = None;
    socket::follow(asked, &Question::Drain, |row: DrainRow| {
        let is_over = row.over;
        let is_news = last.as_ref().is_none_or(|last| last.open != row.open);
        if !arguments.json && !is_over && is_news {
            println!(
                "draining: {} open, {} ended, {} s left",
                row.open, row.ended, row.remaining_s
            );
        }
        last = Some(row);
        !is_over
    })?;
    // A daemon that ended without a last word was cut by a signal.
    let Some(row) = last.filter(|row| row.over) else {
        return Err(Failure::new(FAILED, "the daemon was ended before it had drained"));
    };
    if arguments.json {
        println!("{}", serde_json::json!({ "ended": row.ended, "cut": row.open }));
    } else {
        println!("drained: {} connections ended, {} cut", row.ended, row.open);
    }
    Ok(ExitCode::from(DONE))
}
