//! `portcullis status`.

use std::{path::Path, process::ExitCode, time::Duration};

use super::{DONE, Failure, Question, daemon, socket};
use crate::admin::socket::{
    ClockStatus, ConfinementStatus, HostStatus, IssuerStatus, Status, UpstreamServerStatus,
};

/// What `status` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let status: Status = socket::ask(&daemon(path)?, &Question::Status)?;
    if arguments.json {
        println!("{}", serde_json::json!(status));
    } else {
        show(&status);
    }
    Ok(ExitCode::from(DONE))
}

fn show(status: &Status) {
    let span = |seconds: u64| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let ready = match &status.not_ready {
        None => "ready".to_owned(),
        Some(why) => format!("not ready: {why}"),
    };
    println!("portcullis {} (pid {}), {ready}", status.version, status.pid);
    println!("up            {}", span(status.uptime_s));
    println!("generation    {}", status.generation);
    println!("workers       {}", status.workers);
    println!("connections   {}", status.connections);
    println!("bans          {}", status.bans);
    if let Some(drain) = &status.drain {
        println!(
            "DRAINING      {} open, {} ended, {} s left",
            drain.open, drain.ended, drain.remaining_s
        );
    }
    match &status.xdp {
        None => println!("xdp           none configured"),
        Some(xdp) => {
            for interface in &xdp.interfaces {
                println!(
                    "xdp           {}: {}, program {}, {}",
                    interface.name,
                    interface.mode,
                    interface.program_id,
                    if xdp.enforce { "enforcing" } else { "observing" }
                );
            }
        }
    }
    if let Some(confinement) = &status.confinement {
        println!("confined      {}", confinement_line(confinement));
    }
    for limit in &status.limits {
        println!(
            "limit         {}: {} by {}, {} of {} consumers, {}",
            limit.name,
            limit.rates.join(" and "),
            limit.key,
            limit.consumers,
            limit.entries,
            if limit.enforce { "enforcing" } else { "observing" }
        );
    }
    for certificate in &status.certificates {
        let left = match u64::try_from(certificate.remaining_s) {
            Ok(left) => format!("valid for {}", span(left)),
            Err(_) => "EXPIRED".to_owned(),
        };
        println!("certificate   {} ({}): {left}", certificate.listener, certificate.file.display());
    }
    if let Some(host) = &status.host {
        println!("host          {}", host_line(host));
        println!("clock         {}", clock_line(&host.clock));
    }
    for issuer in &status.issuers {
        println!("issuer        {}", issuer_line(issuer));
    }
    for upstream in &status.upstreams {
        for server in &upstream.servers {
            let address = server.address.as_deref().unwrap_or("no address");
            let UpstreamServerStatus { server, state, requests, .. } = server;
            println!(
                "upstream      {}: {server} ({address}): {state}, {requests} requests",
                upstream.name
            );
        }
    }
    for refused in &status.refused_files {
        println!("NOT IN USE    {}: {}", refused.file.display(), refused.detail);
    }
}

fn confinement_line(confinement: &ConfinementStatus) -> String {
    let capabilities = match confinement.capabilities.as_slice() {
        [] => "no capabilities".to_owned(),
        left => format!("capabilities {}", left.join(" ")),
    };
    let mut line = format!(
        "{capabilities}, files {}, system calls {}, agent {}",
        if confinement.files { "confined" } else { "NOT CONFINED" },
        if confinement.system_calls { "confined" } else { "NOT CONFINED" },
        if confinement.agent { "there" } else { "GONE" },
    );
    for lacking in &confinement.lacking {
        line += &format!("; {lacking}");
    }
    line
}

fn issuer_line(issuer: &IssuerStatus) -> String {
    let span = |seconds: u64| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    let mut line = format!("{}: ", issuer.name);
    line += &match (issuer.available, issuer.keys.as_slice()) {
        (false, _) => "NO KEYS, its tokens are refused".to_owned(),
        (true, []) => "no usable key".to_owned(),
        (true, keys) => format!("keys {}", keys.join(" ")),
    };
    line += &format!(", from {}", issuer.keys_from);
    if let Some(age_s) = issuer.age_s {
        line += &format!(" {} ago", span(age_s));
    }
    if let Some(next_s) = issuer.next_fetch_s {
        line += &format!(", asked again in {}", span(next_s));
    }
    if let Some(why) = &issuer.last_error {
        line += &format!("; LAST ERROR {why}");
    }
    line
}

fn host_line(host: &HostStatus) -> String {
    let mut line = host.stage.clone();
    if let Some(why) = &host.why {
        line += &format!(" ({why})");
    }
    line += &match host.celsius {
        Some(celsius) => format!(", CPU at {celsius:.1} °C"),
        None => ", no CPU sensor".to_owned(),
    };
    if let Some(events) = host.throttle_events {
        line += &format!(", slowed down {events} times");
    }
    line
}

fn clock_line(clock: &ClockStatus) -> String {
    let mut line = match clock.synchronized {
        Some(true) => format!("synchronised, says {}", clock.keeper),
        Some(false) => format!("NOT SYNCHRONISED, says {}", clock.keeper),
        None => "unknown".to_owned(),
    };
    if let (Some(offset_s), Some(max_error_s)) = (clock.offset_s, clock.max_error_s) {
        line += &format!(", off by {offset_s:.6} s, at most {max_error_s:.6} s");
    }
    if let Some(leeway_s) = clock.leeway_s {
        line += &format!(", leeway {leeway_s} s");
    }
    line
}
