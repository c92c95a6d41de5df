//! Enforcing and observing: switched while running, seen in force, and gone back from unconfirmed.

use std::time::Duration;

use anyhow::Result;

use crate::{
    binary,
    harness::{
        client::curl_exit,
        clock,
        gateway::{Gateway, SOON},
        site::Site,
    },
};

/// A banned source's packets vanish; it need not be waited for longer.
const GIVE_UP: Duration = Duration::from_secs(2);
const BANNED: u8 = 66;

/// Who is served is given all the time that a busy machine takes.
fn served(site: &Site, source: std::net::IpAddr) -> Result<()> {
    let answer = site.request("/public").from(source).send()?;
    anyhow::ensure!((answer.exit, answer.status) == (0, 200), "{answer:?}");
    Ok(())
}

fn vanishes(site: &Site, source: std::net::IpAddr) -> Result<()> {
    let answer = site.request("/public").from(source).limit(GIVE_UP).send()?;
    anyhow::ensure!(answer.exit == curl_exit::TIMED_OUT, "{answer:?}");
    Ok(())
}

fn enforces(gateway: &Gateway) -> Result<bool> {
    Ok(gateway.metric("gateway_xdp_enforce", &[])? == 1.0)
}

#[test]
fn observing_drops_nothing_and_counts_what_enforcing_would() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "observe")?;
    site.guard("");
    let gateway = site.start()?;
    let source = site.client_address(BANNED)?;
    let launch = gateway.launch();
    launch.succeed(&["bans", "add", &source.to_string(), "--reason", "a test"])?;
    vanishes(&site, source)?;

    let said = launch.succeed(&["observe"])?;
    assert!(said.contains("observing") && said.contains("enforce = true"), "{said}");
    assert!(!enforces(&gateway)?);
    let dropped = gateway.xdp_packets("drop", "banned")?;
    served(&site, source)?;
    assert_eq!(gateway.xdp_packets("drop", "banned")?, dropped);
    gateway.wait_xdp_packets("would_drop", "banned", 1.0)?;

    launch.succeed(&["enforce"])?;
    assert!(enforces(&gateway)?);
    vanishes(&site, source)?;
    gateway.wait_xdp_packets("drop", "banned", dropped + 1.0)?;
    Ok(())
}

#[test]
fn enforcing_goes_back_unless_confirmed() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "confirm")?;
    site.guard("");
    site.config.xdp = site.config.xdp.replace("enforce = true", "enforce = false");
    let gateway = site.start()?;
    let launch = gateway.launch();
    assert!(!enforces(&gateway)?);

    launch.succeed(&["enforce", "--confirm-within", "1s"])?;
    // Seen in force or, on a machine that stood still for a second, over already: the log tells.
    gateway.wait_log("the switch", |line| {
        line["event"] == "xdp switched" && line["enforce"] == true && line["confirm_within_s"] == 1
    })?;
    clock::wait_for("the way back", SOON, || Ok((!enforces(&gateway)?).then_some(())))?;
    gateway.wait_log("the way back", |line| {
        line["event"].as_str().is_some_and(|event| event.contains("not confirmed"))
    })?;

    // Confirmed, it stays: the log of the confirmation comes after the time that it had.
    launch.succeed(&["enforce", "--confirm-within", "1s"])?;
    launch.succeed(&["enforce"])?;
    let confirmed = clock::now();
    clock::wait_for("more than the time to confirm", SOON, || {
        Ok((confirmed.elapsed() > Duration::from_millis(2_500)).then_some(()))
    })?;
    assert!(enforces(&gateway)?);

    let refused = launch.ended(&["enforce", "--confirm-within", "2h"])?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    Ok(())
}

#[test]
fn without_a_kernel_half_the_same_bans_are_kept_at_accept() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "user-space")?;
    let gateway = site.start()?;
    let source = site.client_address(BANNED)?;
    let launch = gateway.launch();
    served(&site, source)?;
    launch.succeed(&["bans", "add", &source.to_string(), "--for", "1h"])?;
    let refused = site.request("/public").from(source).limit(GIVE_UP).send()?;
    assert_ne!(refused.exit, 0, "{refused:?}");
    assert_eq!(launch.bans_of(&format!("{source}/32"))?.len(), 1);
    launch.succeed(&["bans", "remove", &source.to_string()])?;
    served(&site, source)?;
    let refused = launch.ended(&["enforce"])?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    Ok(())
}

#[test]
fn explain_tells_what_holds_for_a_source() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "explain")?;
    site.guard("allow = [\"10.99.0.64/28\"]\ndeny = [\"203.0.113.0/24\"]");
    let gateway = site.start()?;
    let launch = gateway.launch();
    launch.succeed(&["bans", "add", "192.0.2.9", "--reason", "a test"])?;
    for (source, field, expected) in [
        ("10.99.0.66", "exempt", "10.99.0.64/28"),
        ("10.99.0.1", "exempt", "10.99.0.1/32"),
        ("203.0.113.7", "denied", "203.0.113.0/24"),
    ] {
        let told = launch.json(&["explain", source])?;
        assert_eq!(told[field], expected, "{source}: {told}");
    }
    let told = launch.json(&["explain", "192.0.2.9"])?;
    assert_eq!(
        (&told["ban"]["reason"], &told["ban"]["note"]),
        (&"operator".into(), &"a test".into())
    );
    let shown = launch.succeed(&["explain", "192.0.2.9"])?;
    assert!(shown.starts_with("192.0.2.9/32: dropped as banned\n"), "{shown}");

    // A refusal earns points, and is remembered with its reason.
    let client = crate::harness::site::CLIENT.to_string();
    let refused = site.request("/orders/1").send()?;
    assert_eq!(refused.status, 401, "{refused:?}");
    let told = clock::wait_for("the refusal to be remembered", SOON, || {
        let told = launch.json(&["explain", &client])?;
        Ok((told["lately"][0]["reason"] == "missing_token").then_some(told))
    })?;
    assert_eq!(told["allowances"][0]["quota"], "packets", "{told}");
    let left = |told: &serde_json::Value| told["allowances"][0]["left"].as_u64();
    assert!(left(&told) <= told["allowances"][0]["burst"].as_u64(), "{told}");
    assert!(told["points"].as_f64().is_some_and(|points| points > 0.0), "{told}");

    // What is exempt cannot be banned by hand either, and the refusal says why.
    for source in ["10.99.0.1", "10.99.0.66", "127.0.0.1"] {
        let refused = launch.ended(&["bans", "add", source])?;
        assert_eq!(refused.status, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("exempt"), "{refused:?}");
    }
    Ok(())
}

#[test]
fn a_prefix_is_banned_by_hand_unless_it_has_exempt_addresses() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "prefix")?;
    site.guard("");
    let gateway = site.start()?;
    let source = site.client_address(BANNED)?;
    let launch = gateway.launch();
    served(&site, source)?;
    launch.succeed(&["bans", "add", "10.99.0.64/26", "--for", "1h", "--reason", "a test"])?;
    vanishes(&site, source)?;
    let bans = launch.json(&["bans", "list"])?;
    assert_eq!((&bans[0]["source"], &bans[0]["note"]), (&"10.99.0.64/26".into(), &"a test".into()));
    let told = launch.json(&["explain", &source.to_string()])?;
    assert_eq!(told["ban"]["source"], "10.99.0.64/26", "{told}");
    launch.succeed(&["bans", "remove", "10.99.0.64/26"])?;
    served(&site, source)?;

    // The gateway's own address lies in it.
    let refused = launch.ended(&["bans", "add", "10.99.0.0/24"])?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("10.99.0.1/32"), "{refused:?}");
    Ok(())
}
