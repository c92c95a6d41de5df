//! `portcullis bans`.

use std::{net::IpAddr, path::Path, process::ExitCode, time::Duration};

use ipnet::IpNet;
use serde_json::Value;

use super::{DONE, Failure, Question, loaded, socket};
use crate::admin::socket::BanRow;

/// What is done with bans.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show who is banned, why, and for how much longer.
    List {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Ban a source.
    Add {
        /// An address or a prefix; an IPv6 address stands for its /64.
        #[arg(value_parser = source)]
        source: IpNet,
        /// For how long, as in `10m` or `24h`.
        #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
        lasts: Duration,
        /// Why; shown in the list and in the log.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Lift a ban.
    Remove {
        /// As listed.
        #[arg(value_parser = source)]
        source: IpNet,
    },
}

/// Addresses are read as the standard library reads them: `010.0.0.1` is nobody's address.
pub(super) fn source(text: &str) -> Result<IpNet, String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let wrong = || "an address or a prefix, as in 192.0.2.7 or 2001:db8:1:2::/64".to_owned();
    let address = address.parse::<IpAddr>().map_err(|_| wrong())?;
    match length {
        None => Ok(IpNet::from(address.to_canonical())),
        Some(length) => {
            let length = length.parse().map_err(|_| wrong())?;
            IpNet::new(address, length).map_err(|_| wrong())
        }
    }
}

pub(super) fn run(path: &Path, command: Command) -> Result<ExitCode, Failure> {
    let socket = loaded(path)?.admin.socket;
    match command {
        Command::List { json } => {
            let mut rows: Vec<BanRow> = socket::ask(&socket, &Question::Bans)?;
            rows.sort_by(|one, other| one.source.cmp(&other.source));
            if json {
                println!("{}", serde_json::json!(rows));
            } else {
                list(&rows);
            }
        }
        Command::Add { source, lasts, reason } => {
            let question = Question::Ban { source, for_s: lasts.as_secs(), note: reason };
            let answer: Value = socket::ask(&socket, &question)?;
            let banned = answer["source"].as_str().unwrap_or_default();
            println!("{banned} is banned for {}", humantime::format_duration(lasts));
        }
        Command::Remove { source } => {
            let answer: Value = socket::ask(&socket, &Question::Unban { source })?;
            println!("{} is no longer banned", answer["source"].as_str().unwrap_or_default());
        }
    }
    Ok(ExitCode::from(DONE))
}

fn list(rows: &[BanRow]) {
    if rows.is_empty() {
        println!("nobody is banned");
        return;
    }
    println!("{:<43} {:<10} {:>5} {:>9}  REASON", "SOURCE", "ORIGIN", "LEVEL", "LEFT");
    for row in rows {
        let note = row.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
        println!(
            "{:<43} {:<10} {:>5} {:>8.0}s  {}{note}",
            row.source, row.origin, row.level, row.remaining_s, row.reason
        );
    }
}
