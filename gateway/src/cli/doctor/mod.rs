//! `portcullis doctor`: whether this host has what the configuration needs.

mod facts;
mod files;
mod judge;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use self::judge::Level;
use super::{DONE, FAILED, Failure};

/// What `doctor` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Look at the files of another host, copied below this directory as they lie in its /proc and /sys;
    /// nobody is asked then, and no clock read.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let findings = judge::judge(&facts::collect(path, &arguments.root));
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
