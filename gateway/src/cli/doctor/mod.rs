//! `portcullis doctor`: whether this host has what the configuration needs.

mod facts;
mod judge;

use std::{path::Path, process::ExitCode};

use serde_json::json;

use self::judge::Level;
use super::{DONE, FAILED, Failure};

/// What `doctor` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let findings = judge::judge(&facts::collect(path));
    let is_well = findings.iter().all(|finding| finding.level != Level::Fail);
    if arguments.json {
        println!("{}", json!({ "ok": is_well, "findings": findings }));
    } else {
        for finding in &findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "fail",
            };
            let remedy = finding.remedy.as_ref().map(|remedy| format!("; {remedy}"));
            let remedy = remedy.unwrap_or_default();
            println!("{level:4}  {}: {}{remedy}", finding.topic, finding.text);
        }
    }
    Ok(ExitCode::from(if is_well { DONE } else { FAILED }))
}
