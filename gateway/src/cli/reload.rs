//! `portcullis reload` and `portcullis drain`: what SIGHUP and SIGTERM do, waiting for the result.

use std::{path::Path, process::ExitCode};

use super::{DONE, FAILED, Failure, Question, loaded, socket};
use crate::admin::socket::DrainRow;

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
