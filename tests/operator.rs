//! What an operator does: looks, bans, kills, starts again, detaches.

use anyhow::Result;

use crate::{
    binary,
    harness::{
        client::curl_exit,
        clock,
        flood::Prober,
        gateway::SOON,
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

#[test]
fn completions_are_a_script() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = std::process::Command::new(binary());
        let script = process::succeed(command.args(["completions", shell]))?;
        assert!(script.contains("portcullis"), "{shell}");
    }
    Ok(())
}
