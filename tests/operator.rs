//! What an operator does: looks, bans, kills, starts again, detaches.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

use anyhow::Result;

use crate::{
    binary,
    harness::{
        client::curl_exit,
        clock,
        flood::Prober,
        gateway::{Launch, SOON},
        process,
        site::{INTERFACE, SERVER, Site},
    },
};

#[test]
fn status_and_health_tell_how_it_is() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "status")?;
    site.guard("");
    let gateway = site.start()?;
    let launch = gateway.launch();
    let status = launch.json(&["status"])?;
    assert_eq!(status["ready"], true, "{status}");
    assert_eq!(status["generation"], 1, "{status}");
    assert_eq!(status["workers"], 1, "{status}");
    let interfaces = &status["xdp"]["interfaces"];
    assert_eq!(interfaces[0]["name"], INTERFACE, "{status}");
    assert_eq!(interfaces[0]["mode"], "native", "{status}");
    assert!(site.gateway_host.has_xdp(INTERFACE)?);
    assert!(launch.succeed(&["status"])?.contains(INTERFACE));
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(gateway.get(path)?.0, 200, "{path}");
    }
    assert_eq!(gateway.get("/other")?.0, 404);
    let mode = [("interface", INTERFACE), ("mode", "native")];
    gateway.wait_metric("gateway_xdp_mode", &mode, 1.0)?;
    Ok(())
}

#[test]
fn bans_are_added_listed_and_removed() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "bans")?;
    site.guard("allow = [\"10.99.0.77/32\"]");
    let gateway = site.start()?;
    let launch = gateway.launch();
    let address = site.client_address(70)?;
    assert_eq!(launch.json(&["bans", "list"])?, serde_json::json!([]));
    launch.succeed(&["bans", "add", "10.99.0.70", "--for", "10m", "--reason", "a test"])?;
    let bans = launch.bans_of("10.99.0.70/32")?;
    assert_eq!(bans[0]["origin"], "operator", "{bans:?}");
    assert!(launch.succeed(&["bans", "list"])?.contains("10.99.0.70/32"));
    let answer =
        site.request("/public").from(address).limit(std::time::Duration::from_secs(2)).send()?;
    assert_eq!(answer.exit, curl_exit::TIMED_OUT, "{answer:?}");
    launch.succeed(&["bans", "remove", "10.99.0.70"])?;
    assert_eq!(site.request("/public").from(address).send()?.status, 200);

    for (words, status) in [
        (vec!["bans", "remove", "10.99.0.70"], 1),
        (vec!["bans", "add", "10.99.0.77"], 1),
        (vec!["bans", "add", "127.0.0.1"], 1),
        (vec!["bans", "add", "elsewhere"], 2),
        (vec!["bans", "add", "10.99.0.71", "--for", "soon"], 2),
    ] {
        let ended = launch.ended(&words)?;
        assert_eq!(ended.status, Some(status), "{words:?}: {}{}", ended.stdout, ended.stderr);
        assert!(!ended.stderr.is_empty(), "{words:?} says why");
    }
    assert_eq!(launch.json(&["bans", "list"])?, serde_json::json!([]));
    Ok(())
}

#[test]
fn the_kernel_half_outlives_a_kill_and_is_adopted() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "adopt")?;
    site.guard("");
    let token = site.mint.good("alice")?;
    let gateway = site.start()?;
    let launch = site.launch()?;
    let banned = site.client_address(71)?;
    launch.succeed(&["bans", "add", "10.99.0.71", "--for", "1h"])?;
    let prober = Prober::new(&site.client_host, banned, SERVER)?;
    prober.send(10)?;
    // One of ten may still wait for the hardware address.
    let before = gateway.wait_xdp_packets("drop", "banned", 9.0)?;
    gateway.kill()?;
    assert!(site.gateway_host.has_xdp(INTERFACE)?);
    prober.send(100)?;

    let gateway = launch.run_until_ready()?;
    let bans = launch.bans_of("10.99.0.71/32")?;
    assert_eq!(bans[0]["origin"], "operator", "{bans:?}");
    let after = before + 100.0;
    gateway.wait_xdp_packets("drop", "banned", after)?; // with no daemon
    assert_eq!(site.request("/orders/1").token(&token).send()?.status, 200);
    Ok(())
}

#[test]
fn detach_leaves_nothing_with_and_without_a_daemon() -> Result<()> {
    privileged!();
    for running in [false, true] {
        let mut site = Site::new(binary(), "detach")?;
        site.guard("");
        let gateway = site.start()?;
        let launch = site.launch()?;
        assert!(site.pins.exists());
        let gateway = if running {
            Some(gateway)
        } else {
            gateway.kill()?;
            None
        };
        launch.succeed(&["detach"])?;
        clock::wait_for("the program to leave", SOON, || {
            Ok((!site.gateway_host.has_xdp(INTERFACE)?).then_some(()))
        })?;
        assert!(!site.pins.exists(), "running: {running}");
        if let Some(gateway) = gateway {
            assert_eq!(site.request("/public").send()?.status, 200, "it serves on without");
            drop(gateway);
        }
        let again = launch.ended(&["detach"])?;
        assert_eq!(again.status, Some(0), "nothing to do is done: {}", again.stderr);
    }
    Ok(())
}

/// Somebody with this group runs a command of the product.
fn as_somebody(launch: &Launch, gid: &str, words: &[&str]) -> Result<process::Ended> {
    let mut command = launch.namespace.command("setpriv");
    command.args(["--reuid", "12345", "--regid", gid, "--clear-groups"]).arg(&launch.binary);
    process::run(command.arg("--config").arg(&launch.config).args(words))
}

#[test]
fn the_sockets_group_may_and_who_did_what_is_written_down() -> Result<()> {
    privileged!();
    const GROUP: &str = "23456";
    let site = Site::new(binary(), "askers")?;
    // Who may use the socket has to come to it, to the program and to the configuration; not to the
    // keys.
    std::fs::set_permissions(site.directory.path(), Permissions::from_mode(0o711))?;
    let mut launch = site.launch()?;
    launch.binary = site.directory.path().join("portcullis");
    std::fs::copy(binary(), &launch.binary)?;
    let text = std::fs::read_to_string(&launch.config)?;
    let grouped = text.replace("[admin]\n", &format!("[admin]\ngroup = \"{GROUP}\"\n"));
    std::fs::write(&launch.config, &grouped)?;
    std::fs::set_permissions(&launch.config, Permissions::from_mode(0o644))?;
    let gateway = launch.run_until_ready()?;

    let ban = ["bans", "add", "192.0.2.70", "--for", "10m"];
    let stranger = as_somebody(&launch, "12345", &ban)?;
    assert_eq!(stranger.status, Some(77), "{stranger:?}");
    assert!(stranger.stderr.contains("group"), "{stranger:?}");
    let member = as_somebody(&launch, GROUP, &ban)?;
    assert_eq!(member.status, Some(0), "{member:?}");
    let line = gateway.wait_log("who banned", |line| line["event"] == "operator")?;
    assert_eq!((&line["command"], &line["on"]), (&"bans add".into(), &"192.0.2.70/32".into()));
    assert_eq!((&line["uid"], &line["gid"]), (&12345.into(), &23456.into()), "{line}");
    assert!(line["pid"].as_u64().is_some() && line["result"] == "done", "{line}");

    // What is refused is written down as well, and what only looks is not.
    assert_eq!(launch.ended(&["bans", "remove", "192.0.2.71"])?.status, Some(1));
    let line = gateway.wait_log("the refusal", |line| line["result"] == "refused")?;
    assert_eq!((&line["command"], &line["uid"]), (&"bans remove".into(), &0.into()), "{line}");
    launch.json(&["status"])?;
    launch.json(&["bans", "list"])?;
    let told = gateway.log_text();
    assert_eq!(told.matches("\"event\":\"operator\"").count(), 2, "{told}");

    // A configuration that is being mended keeps nobody from looking and lifting a ban.
    std::fs::write(&launch.config, format!("{grouped}\n[nonsense]\n"))?;
    let status = launch.ended(&["status", "--json"])?;
    assert_eq!(status.status, Some(0), "{status:?}");
    assert!(status.stderr.contains("portcullis check"), "{status:?}");
    assert_eq!(launch.ended(&["bans", "remove", "192.0.2.70"])?.status, Some(0));
    assert_eq!(launch.ended(&["reload"])?.status, Some(78));

    // Another group, by a reload.
    std::fs::write(&launch.config, grouped.replace(GROUP, "34567"))?;
    launch.succeed(&["reload"])?;
    assert_eq!(as_somebody(&launch, GROUP, &ban)?.status, Some(77));
    assert_eq!(as_somebody(&launch, "34567", &ban)?.status, Some(0));
    std::fs::write(&launch.config, grouped.replace(GROUP, "no-such-group"))?;
    let refused = launch.ended(&["reload"])?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("groupadd --system no-such-group"), "{refused:?}");
    Ok(())
}

#[test]
fn completions_are_a_script() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = std::process::Command::new(binary());
        let script = process::succeed(command.args(["completions", shell]))?;
        assert!(script.contains("portcullis"), "{shell}");
    }
    Ok(())
}
