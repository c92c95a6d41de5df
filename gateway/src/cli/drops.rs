//! `portcullis drops`.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use super::{DONE, Failure, Question, daemon, socket};
use crate::admin::socket::DropRow;

/// What `drops` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object for each frame.
    #[arg(long)]
    json: bool,
    /// End after so many frames.
    #[arg(long, value_name = "FRAMES")]
    count: Option<u64>,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut out = io::stdout().lock();
    socket::follow(&daemon(path)?, &Question::Drops, |row: DropRow| {
        let is_frame = row.reason.is_some();
        let text = if arguments.json { serde_json::json!(row).to_string() } else { line(&row) };
        // A reader that went away ends the command quietly.
        let is_read = writeln!(out, "{text}").and_then(|()| out.flush()).is_ok();
        left = left.saturating_sub(u64::from(is_frame));
        is_read && left > 0
    })?;
    Ok(ExitCode::from(DONE))
}

fn line(row: &DropRow) -> String {
    let Some(reason) = &row.reason else {
        return format!("({} more were dropped and not told of)", row.untold);
    };
    let at = SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(row.at_s).unwrap_or_default();
    format!(
        "{}  {:<15} {:<39} {:<9} {:<16} {:>5} octets{}",
        humantime::format_rfc3339_millis(at),
        row.interface.as_deref().unwrap_or("-"),
        row.source.as_deref().unwrap_or("-"),
        row.service.as_deref().unwrap_or("-"),
        reason,
        row.frame_bytes,
        if row.enforced { "" } else { "  (not dropped: observing)" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_who_what_and_why_or_how_many_more() {
        let row = DropRow {
            at_s: 1.5,
            interface: Some("eth0".to_owned()),
            source: Some("192.0.2.7".to_owned()),
            service: Some("8443/tcp".to_owned()),
            reason: Some("banned".to_owned()),
            frame_bytes: 60,
            enforced: true,
            untold: 0,
        };
        let told = line(&row);
        for part in ["eth0", "192.0.2.7", "8443/tcp", "banned", "60 octets"] {
            assert!(told.contains(part), "{told}");
        }
        assert!(line(&DropRow { enforced: false, ..row.clone() }).contains("observing"));
        assert!(line(&DropRow { reason: None, untold: 9, ..row }).contains("9 more"));
    }
}
