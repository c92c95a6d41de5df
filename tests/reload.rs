//! SIGHUP: a good configuration is taken whole, a bad one not at all.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{
        clock,
        gateway::{SOON, write_config},
        site::{SERVER, Site},
    },
};

const EXTRA_ROUTE: &str =
    "\n[[route]]\nname = \"extra\"\npath = \"/extra\"\nupstream = \"orders\"\nrequire = []\n";

#[test]
fn a_good_configuration_is_taken_and_a_bad_one_leaves_the_old() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "reload")?;
    site.config.bans = "enabled = false".to_owned();
    let gateway = site.start()?;
    assert_eq!(site.request("/extra").send()?.status, 404);
    gateway.wait_metric("gateway_config_generation", &[], 1.0)?;

    site.config.routes.push_str(EXTRA_ROUTE);
    let launch = site.launch()?;
    gateway.signal(Signal::SIGHUP)?;
    clock::wait_for("the new route", SOON, || {
        Ok((site.request("/extra").send()?.status == 200).then_some(()))
    })?;
    assert_eq!(launch.json(&["status"])?["generation"], 2);

    for (number, (what, break_it)) in [
        ("a wrong key", "\n[server]\nworkers = \"many\"\nspeed = 11\n"),
        ("half a table", "\n[[route\n"),
        (
            "a route to nowhere",
            "\n[[route]]\nname = \"lost\"\npath = \"/lost\"\nupstream = \"gone\"\nrequire = []\n",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let text = site.config.to_string() + break_it;
        write_config(&launch.config, &text)?;
        gateway.signal(Signal::SIGHUP)?;
        clock::wait_for("the refusal", SOON, || {
            let labels = [("result", "refused")];
            let refused = gateway.metric("gateway_config_reloads_total", &labels)?;
            Ok((refused >= (number + 1) as f64).then_some(()))
        })?;
        assert_eq!(site.request("/extra").send()?.status, 200, "{what}: the old one serves on");
        let line = gateway.wait_log("the refused reload", |line| {
            line["event"] == "reload" && line["level"] == "error"
        })?;
        let detail = line["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("portcullis.toml:"), "where it is wrong: {line}");
    }
    // The commands need a good file to find the daemon.
    site.launch()?;
    assert_eq!(launch.json(&["status"])?["generation"], 2, "refused ones do not count");
    Ok(())
}

/// Everything was bound but the last, and nothing of it stays.
#[test]
fn a_refused_reload_leaves_no_socket_behind() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "left-behind")?;
    let gateway = site.start()?;
    let launch = gateway.launch();
    let before = site.config.to_string();
    let elsewhere = site.directory.path().join("elsewhere.sock");
    let socket = |text: &str| -> Result<String> {
        let line = text.lines().find(|line| line.starts_with("socket = "));
        let line = line.context("a configured socket")?;
        Ok(text.replacen(line, &format!("socket = {elsewhere:?}"), 1))
    };
    // Nobody has that address here.
    let listener = format!("address = \"{SERVER}\"");
    let text = socket(&before)?.replacen(&listener, "address = \"192.0.2.1:8443\"", 1);
    write_config(&launch.config, &text)?;
    gateway.signal(Signal::SIGHUP)?;
    gateway.wait_log("the refused reload", |line| {
        line["event"] == "reload" && line["detail"].to_string().contains("192.0.2.1")
    })?;
    assert!(!elsewhere.exists(), "a file that leads nowhere");
    write_config(&launch.config, &before)?;
    assert_eq!(launch.json(&["status"])?["generation"], 1);
    // Where nothing is refused it moves.
    write_config(&launch.config, &socket(&before)?)?;
    gateway.signal(Signal::SIGHUP)?;
    clock::wait_for("the daemon to answer elsewhere", SOON, || {
        Ok((elsewhere.exists() && launch.json(&["status"])?["generation"] == 2).then_some(()))
    })?;
    Ok(())
}

#[test]
fn requests_are_served_while_it_reloads() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "busy")?;
    let gateway = site.start()?;
    let launch = site.launch()?;
    for generation in 2..12 {
        gateway.signal(Signal::SIGHUP)?;
        let answer = site.request("/public").send()?;
        assert_eq!(answer.status, 200, "{}", answer.error);
        clock::wait_for("the reload", SOON, || {
            Ok((launch.json(&["status"])?["generation"] == generation).then_some(()))
        })?;
    }
    Ok(())
}
