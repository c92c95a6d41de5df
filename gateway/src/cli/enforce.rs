//! `portcullis enforce` and `portcullis observe`.

use std::{path::Path, process::ExitCode, time::Duration};

use super::{DONE, Failure, Question, daemon, socket};

/// What `enforce` is told.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Arguments {
    /// Go back to observing after this long, unless `portcullis enforce` is run again before.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    confirm_within: Option<Duration>,
}

#[derive(serde::Deserialize)]
struct Answer {
    enforce: bool,
    configured: bool,
}

pub(super) fn run(path: &Path, enforce: bool, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let question = Question::Enforce {
        enforce,
        confirm_within_s: arguments.confirm_within.map(|wait| wait.as_secs()),
    };
    let answer: Answer = socket::ask(&daemon(path)?, &question)?;
    println!("{}", if answer.enforce { "enforcing" } else { "observing" });
    if let Some(wait) = arguments.confirm_within {
        println!(
            "back to observing in {} unless `portcullis enforce` is run again",
            humantime::format_duration(wait)
        );
    } else if answer.enforce != answer.configured {
        println!(
            "until the next reload or restart: the configuration says [xdp].enforce = {}",
            answer.configured
        );
    }
    Ok(ExitCode::from(DONE))
}
