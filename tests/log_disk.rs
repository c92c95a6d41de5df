//! A disk that is full: nobody is refused for it, what the log loses is counted, and it goes on as soon as
//! there is room.

use std::{
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Launch, SOON},
        load::Target,
        site::{HOST, SERVER, Site},
    },
};

/// Each is a line of some hundred octets; the disk has room for 64 KiB.
const REQUESTS: usize = 400;

#[test]
fn a_full_disk_costs_lines_and_nothing_else() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "disk")?;
    let disk = site.directory.path().join("disk");
    fs::create_dir(&disk)?;
    // The mount is in a namespace of the daemon's own and goes with it.
    let script = site.directory.path().join("on-a-small-disk");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs -o size=64k tmpfs \"$0\" && \
         exec 2>>\"$0/log\" && exec \"$@\"' {:?} {:?} \"$@\"\n",
        disk.display().to_string(),
        binary().display().to_string()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let launch = Launch { binary: script, ..site.launch()? };
    let gateway = launch.run_until_ready()?;
    let log = PathBuf::from(format!("/proc/{}/root{}", gateway.process_id(), disk.display()));
    let log = log.join("log");

    let authority = site.authority.certificate();
    let target = Target::new(&site.client_host, SERVER, HOST, &authority, &site.client)?;
    let mut connection = target.connect()?;
    for number in 0..REQUESTS {
        let status = connection.ask("/public/a", "")?;
        ensure!(status == 200, "request {number}: {status}");
    }
    let lost = || gateway.metric("gateway_log_lines_lost_total", &[]);
    clock::wait_for("a line to be lost", SOON, || Ok((lost()? > 0.0).then_some(())))?;
    let held = fs::read_to_string(&log)?.lines().filter(|line| line.contains("/public/a")).count();
    ensure!((1..REQUESTS).contains(&held), "{held} of {REQUESTS} lines are on the disk");

    // As logrotate's copytruncate does.
    OpenOptions::new().write(true).truncate(true).open(&log)?;
    let before = lost()?;
    ensure!(connection.ask("/public/b", "")? == 200);
    let text = clock::wait_for("the log to go on", SOON, || {
        let text = fs::read_to_string(&log)?;
        Ok(text.contains("/public/b").then_some(text))
    })?;
    ensure!(text.ends_with('\n') && lost()? == before, "{text}");
    // The rest of a line that was cut ends there.
    for line in text.lines().filter(|line| !line.is_empty()) {
        ensure!(serde_json::from_str::<Value>(line).is_ok(), "no line of the log: {line}");
    }
    Ok(())
}
