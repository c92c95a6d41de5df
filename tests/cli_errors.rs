//! What is refused, is refused in one clear line or one line for each problem, with the right exit
//! status, and leaves nothing behind.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::Result;

use crate::{
    binary,
    harness::{
        bpf::{Program, XDP_PASS},
        gateway::write_config,
        process,
        site::{INTERFACE, Site},
    },
};

/// Exit statuses of the contract.
const FAILED: i32 = 1;
const NOT_PERMITTED: i32 = 77;
const CONFIGURATION_REFUSED: i32 = 78;

/// Whether a line is `FILE:LINE:COLUMN: …`.
fn has_place(line: &str) -> bool {
    let mut parts = line.splitn(4, ':');
    let file = parts.next().unwrap_or_default();
    let number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u32>().is_ok());
    file.ends_with("portcullis.toml")
        && number(parts.next())
        && number(parts.next())
        && parts.next().is_some_and(|text| !text.trim().is_empty())
}

#[test]
fn every_problem_of_a_configuration_is_named_with_its_place() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "garbage")?;
    site.guard("");
    let good = site.config.to_string();
    let launch = site.launch()?;
    for (what, text, problems) in [
        ("cut off", good[..good.len() / 2].to_owned() + "\nname = \"", 1),
        ("a wrong type", good.replace("workers = 1", "workers = \"many\""), 1),
        ("an unknown key", good.replace("workers = 1", "wrokers = 1"), 1),
        (
            "three at once",
            good.replace("workers = 1", "workers = -1\nspeed = 11")
                .replace("response_timeout = \"3s\"", "response_timeout = \"soon\""),
            3,
        ),
        (
            "no upstream of that name",
            good.replace("upstream = \"orders\"", "upstream = \"gone\""),
            3,
        ),
        ("not yet supported", good.replace("\"h2\", \"http/1.1\"", "\"h3\""), 1),
        ("binary", "\u{0}\u{1}\u{2}".to_owned(), 1),
        ("empty", String::new(), 0),
    ] {
        write_config(&launch.config, &text)?;
        for command in ["check", "run"] {
            let ended = launch.ended(&[command])?;
            let said = ended.stdout + &ended.stderr;
            assert_eq!(ended.status, Some(CONFIGURATION_REFUSED), "{what}, {command}: {said}");
            let places = said.lines().filter(|line| has_place(line)).count();
            assert!(places >= problems, "{what}, {command}: {places} of {problems} in\n{said}");
            assert!(!said.contains("panicked"), "{what}, {command}: {said}");
        }
    }
    assert!(!site.pins.exists() && !site.gateway_host.has_xdp(INTERFACE)?);
    write_config(&launch.config, &good)?;
    launch.succeed(&["check"])?;
    // A public route behind a listener that asks everybody for a certificate: good, but odd.
    let strict = launch.ended(&["check", "--strict"])?;
    assert_eq!(strict.status, Some(CONFIGURATION_REFUSED), "{}", strict.stdout);
    assert!(strict.stdout.contains("warning: "), "{}", strict.stdout);
    let missing = site.directory.path().join("nowhere.toml");
    let mut command = site.gateway_host.command(binary());
    let ended = process::run(command.arg("--config").arg(&missing).arg("run"))?;
    assert_eq!(ended.status, Some(CONFIGURATION_REFUSED), "{}", ended.stderr);
    assert!(ended.stderr.contains("nowhere.toml"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn a_key_that_others_can_read_is_refused() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "key")?;
    let launch = site.launch()?;
    let key = &site.config.server.key;
    for mode in [0o644, 0o604, 0o666] {
        fs::set_permissions(key, fs::Permissions::from_mode(mode))?;
        for command in ["check", "run"] {
            let ended = launch.ended(&[command])?;
            let said = ended.stdout + &ended.stderr;
            assert_eq!(ended.status, Some(CONFIGURATION_REFUSED), "{mode:o}, {command}: {said}");
            assert!(said.contains("server.key"), "{mode:o}, {command}: {said}");
        }
    }
    fs::set_permissions(key, fs::Permissions::from_mode(0o600))?;
    launch.succeed(&["check"])?;
    Ok(())
}

/// Starts `run`, which must end with `status` and say one line that contains `word`.
fn refused(site: &Site, status: i32, word: &str) -> Result<()> {
    let ended = site.launch()?.ended(&["run"])?;
    assert_eq!(ended.status, Some(status), "{}", ended.stderr);
    let lines: Vec<_> = ended.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one clear line: {lines:#?}");
    assert!(lines[0].contains(word), "{word} in: {}", lines[0]);
    Ok(())
}

#[test]
fn an_address_in_use_is_refused_and_the_first_daemon_serves_on() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "second")?;
    site.guard("");
    let gateway = site.start()?;
    refused(&site, FAILED, "10.99.0.1:8443")?;
    assert_eq!(site.request("/public").send()?.status, 200);
    assert_eq!(gateway.launch().json(&["status"])?["ready"], true);
    assert!(site.gateway_host.has_xdp(INTERFACE)?);
    Ok(())
}

#[test]
fn a_missing_interface_is_refused() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "absent")?;
    site.guard("");
    site.config.xdp = site.config.xdp.replace(INTERFACE, "absent0");
    refused(&site, FAILED, "absent0")?;
    assert!(!site.pins.exists());
    Ok(())
}

#[test]
fn a_foreign_program_is_left_alone() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "foreign")?;
    site.guard("");
    let index = site.gateway_host.interface_index(INTERFACE)?;
    let foreign = Program::verdict(c"somebody_elses", XDP_PASS)?;
    let link = site.gateway_host.within(|| foreign.attach(index))??;
    refused(&site, FAILED, "somebody_elses")?;
    assert!(!site.pins.exists());
    assert!(site.gateway_host.has_xdp(INTERFACE)?, "still theirs");
    drop(link);
    assert!(!site.gateway_host.has_xdp(INTERFACE)?, "it was theirs, and nothing of ours is left");
    site.start()?;
    Ok(())
}

#[test]
fn without_privileges_it_names_the_capability() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "nobody")?;
    site.guard("");
    // Somewhere that nobody in particular can reach, wherever the repository lies.
    let copy = site.directory.path().join("portcullis");
    fs::copy(binary(), &copy)?;
    let launch = site.launch()?;
    process::succeed(
        std::process::Command::new("chown")
            .args(["--recursive", "65534:65534"])
            .arg(site.directory.path()),
    )?;
    let mut command = site.gateway_host.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]);
    command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(&copy);
    command.arg("--config").arg(&launch.config).arg("run");
    let ended = process::run(&mut command)?;
    assert_eq!(ended.status, Some(NOT_PERMITTED), "{}", ended.stderr);
    assert_eq!(ended.stderr.trim().lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("CAP_"), "{}", ended.stderr);
    assert!(!site.pins.exists() && !site.gateway_host.has_xdp(INTERFACE)?);
    Ok(())
}

#[test]
fn wrong_usage_is_exit_status_2() -> Result<()> {
    for words in [vec![], vec!["fly"], vec!["bans"], vec!["run", "--fast"]] {
        let ended = process::run(std::process::Command::new(binary()).args(&words))?;
        assert_eq!(ended.status, Some(2), "{words:?}");
        assert!(ended.stderr.contains("Usage"), "{words:?}: {}", ended.stderr);
    }
    let help = process::succeed(std::process::Command::new(binary()).arg("--help"))?;
    for command in ["run", "check", "status", "bans", "detach", "pki", "token", "completions"] {
        assert!(help.contains(command), "{command} in --help");
    }
    Ok(())
}

#[test]
fn commands_without_a_daemon_say_so() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "alone")?;
    let launch = site.launch()?;
    for words in [vec!["status"], vec!["bans", "list"]] {
        let ended = launch.ended(&words)?;
        assert_eq!(ended.status, Some(FAILED), "{words:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.trim().lines().count(), 1, "{words:?}: {}", ended.stderr);
    }
    Ok(())
}
