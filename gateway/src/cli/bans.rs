//! `portcullis bans`.

use std::{net::IpAddr, path::Path, process::ExitCode, time::Duration};

use ipnet::IpNet;
use serde_json::Value;

use super::{DONE, Failure, Question, daemon, socket};
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

/// The address that this SSH session comes from: the first word of `SSH_CONNECTION` (ssh(1)).
fn session(connection: &str) -> Option<IpAddr> {
    let address = connection.split_whitespace().next()?.split('%').next()?;
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

/// Nobody bans himself: by far the most such bans are a slip in the prefix's length.
fn not_oneself(source: IpNet, connection: Option<&str>) -> Result<(), Failure> {
    let Some(address) = connection.and_then(session) else { return Ok(()) };
    // An IPv6 address stands for its /64.
    let whole = match source {
        IpNet::V6(net) if net.prefix_len() > 64 => IpNet::new(net.addr().into(), 64),
        other => Ok(other),
    };
    if !whole.unwrap_or(source).contains(&address) {
        return Ok(());
    }
    let text = format!(
        "{source} has {address}, which this SSH session comes from, and was not banned; name smaller \
         prefixes beside it, or ban it from another session (env -u SSH_CONNECTION)"
    );
    Err(Failure::new(super::FAILED, text))
}

pub(super) fn run(path: &Path, command: Command) -> Result<ExitCode, Failure> {
    let socket = daemon(path)?;
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
            not_oneself(source, std::env::var("SSH_CONNECTION").ok().as_deref())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_bans_the_session_that_he_types_in() {
        let v4 = Some("192.0.2.7 51000 198.51.100.1 22");
        let v6 = Some("2001:db8:1:2::7 51000 2001:db8::1 22");
        for (banned, connection, is_allowed) in [
            ("192.0.2.7", v4, false),
            ("192.0.2.0/24", v4, false),
            ("0.0.0.0/0", v4, false),
            ("192.0.2.8", v4, true),
            ("192.0.3.0/24", v4, true),
            ("2001:db8::/32", v4, true),
            ("192.0.2.7", Some("::ffff:192.0.2.7 51000 ::1 22"), false),
            ("2001:db8:1:2::9", v6, false),
            ("2001:db8:1:3::7", v6, true),
            ("2001:db8:1::/48", v6, false),
            ("fe80::9", Some("fe80::7%eth0 51000 fe80::1%eth0 22"), false),
            ("192.0.2.7", None, true),
            ("192.0.2.7", Some(""), true),
            ("192.0.2.7", Some("UNKNOWN 0 UNKNOWN 0"), true),
        ] {
            let banned = source(banned).unwrap();
            let is_ok = not_oneself(banned, connection).is_ok();
            assert_eq!(is_ok, is_allowed, "{banned} from {connection:?}");
        }
    }
}
