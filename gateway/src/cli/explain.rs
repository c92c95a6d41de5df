//! `portcullis explain`.

use std::{path::Path, process::ExitCode};

use ipnet::IpNet;

use super::{DONE, Failure, Question, bans, daemon, socket};
use crate::admin::socket::Explanation;

/// What `explain` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// An address, or an IPv6 /64.
    #[arg(value_parser = bans::source)]
    source: IpNet,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let question = Question::Explain { source: arguments.source };
    let told: Explanation = socket::ask(&daemon(path)?, &question)?;
    if arguments.json {
        println!("{}", serde_json::json!(told));
    } else {
        show(&told);
    }
    Ok(ExitCode::from(DONE))
}

fn show(told: &Explanation) {
    println!("{}: {}", told.source, verdict(told));
    println!("exempt    {}", told.exempt.as_deref().unwrap_or("no"));
    let because = told.never_banned_because.as_deref().map(|why| format!(", which {why}"));
    println!(
        "bannable  {}",
        told.never_banned.as_deref().map_or("yes".to_owned(), |net| {
            format!("no, by {net}{}", because.unwrap_or_default())
        })
    );
    println!("denied    {}", told.denied.as_deref().unwrap_or("no"));
    match &told.ban {
        None => println!("ban       none"),
        Some(ban) => println!(
            "ban       {} by {}, step {}, {:.0}s left{}",
            ban.reason,
            ban.origin,
            ban.level,
            ban.remaining_s,
            ban.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default()
        ),
    }
    for allowance in &told.allowances {
        println!(
            "limit     {} of {}: {} of {} left",
            allowance.quota, allowance.of, allowance.left, allowance.burst
        );
    }
    println!(
        "points    {} of {}; the next ban would be step {}",
        told.points, told.threshold, told.next_level
    );
    if told.good_clients > 0.0 {
        println!(
            "vouched   by {} good clients; others would be banned at {} points",
            told.good_clients, told.threshold_of_everybody
        );
    }
    if told.limits_doubled != 0 {
        let (times, how) = match told.limits_doubled {
            wider @ 1.. => (wider, "doubled"),
            narrower => (-narrower, "halved"),
        };
        println!("class     limits in the kernel {how} {times} times");
    }
    for past in &told.lately {
        println!("refused   {} {}s ago", past.reason, past.ago_s);
    }
}

/// What happens to its packets, in the order in which the program decides.
fn verdict(told: &Explanation) -> &'static str {
    let observed = told.enforce == Some(false);
    match (&told.exempt, &told.ban, &told.denied) {
        (Some(_), _, _) => "never dropped",
        (None, Some(_), _) if observed => "would be dropped as banned, were the program enforcing",
        (None, Some(_), _) => "dropped as banned",
        (None, None, Some(_)) if observed => {
            "would be dropped as denied, were the program enforcing"
        }
        (None, None, Some(_)) => "dropped as denied",
        (None, None, None) => "passes within its limits",
    }
}
