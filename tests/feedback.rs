//! Evidence at layer 7 becomes a ban in the kernel, and ends.

use std::time::Duration;

use anyhow::Result;

use crate::{
    binary,
    harness::{
        client::curl_exit,
        clock,
        flood::Prober,
        gateway::{Gateway, SOON},
        site::{CLIENT, SERVER, Site},
        tokens::Mint,
    },
};

/// A banned source's packets vanish; it need not be waited for longer.
const GIVE_UP: Duration = Duration::from_secs(2);
/// Refusals after which a forger must be banned, whatever each weighs.
const MANY: usize = 60;

/// A token that somebody else signed in our issuer's name.
fn forged(site: &Site) -> Result<String> {
    let impostor = Mint::new(binary(), site.directory.path(), "impostor", "ES256")?;
    site.mint.forged_by(&impostor, "mallory")
}

/// Sends forged tokens from `source` until it is banned, and gives how many were answered. That curl
/// gets no answer in time is not enough to go by: the machine may be busy.
fn attack(site: &Site, gateway: &Gateway, source: std::net::IpAddr) -> Result<usize> {
    let forged = forged(site)?;
    for refused in 0..MANY {
        let answer = site.request("/orders/1").token(&forged).from(source).limit(GIVE_UP).send()?;
        if answer.exit != 0 {
            assert_eq!(answer.exit, curl_exit::TIMED_OUT, "{}", answer.error);
            if dropped_as_banned(gateway)? > 0.0 {
                return Ok(refused);
            }
            continue;
        }
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    Ok(MANY)
}

fn dropped_as_banned(gateway: &Gateway) -> Result<f64> {
    gateway.xdp_packets("drop", "banned")
}

#[test]
fn forged_tokens_end_in_a_ban_and_an_operator_lifts_it() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "feedback")?;
    site.guard("");
    let token = site.mint.good("alice")?;
    let gateway = site.start()?;
    let attacker = site.client_address(66)?;
    let refused = attack(&site, &gateway, attacker)?;
    assert!((1..MANY).contains(&refused), "{refused} refusals and no ban");

    let launch = gateway.launch();
    let bans = launch.bans_of("10.99.0.66/32")?;
    assert_eq!(bans.len(), 1, "{bans:?}");
    assert_eq!(
        (&bans[0]["reason"], &bans[0]["origin"]),
        (&"bad_signature".into(), &"evidence".into())
    );
    assert!(bans[0]["remaining_s"].as_f64().is_some_and(|left| left > 0.0), "{bans:?}");
    assert!(dropped_as_banned(&gateway)? > 0.0);
    gateway.wait_metric("gateway_ban_feedback_seconds_count", &[], 1.0)?;
    gateway.wait_metric("gateway_bans_total", &[("reason", "bad_signature")], 1.0)?;
    let neighbour = site.request("/orders/1").token(&token).send()?;
    assert_eq!(neighbour.status, 200, "another address of the same host: {}", neighbour.error);

    launch.succeed(&["bans", "remove", "10.99.0.66"])?;
    let answer = site.request("/orders/1").token(&token).from(attacker).send()?;
    assert_eq!(answer.status, 200, "{}", answer.error);
    assert!(launch.bans_of("10.99.0.66/32")?.is_empty());
    Ok(())
}

#[test]
fn a_ban_ends_by_itself() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "expiry")?;
    site.guard("");
    site.config.bans = "ladder = [\"10s\", \"1h\"]".to_owned();
    let token = site.mint.good("alice")?;
    let gateway = site.start()?;
    let attacker = site.client_address(66)?;
    assert!(attack(&site, &gateway, attacker)? < MANY);
    clock::wait_for("the ban to end", SOON, || {
        let answer =
            site.request("/orders/1").token(&token).from(attacker).limit(GIVE_UP).send()?;
        Ok((answer.status == 200).then_some(()))
    })?;
    assert!(gateway.launch().bans_of("10.99.0.66/32")?.is_empty());
    Ok(())
}

#[test]
fn who_is_exempt_is_never_banned() -> Result<()> {
    privileged!();
    for (what, xdp, bans) in [
        ("[xdp].allow", "allow = [\"10.99.0.64/28\"]", ""),
        ("[bans].never", "", "never = [\"10.99.0.64/28\"]"),
    ] {
        let mut site = Site::new(binary(), "exempt")?;
        site.guard(xdp);
        site.config.bans = bans.to_owned();
        let gateway = site.start()?;
        let address = site.client_address(66)?;
        let token = forged(&site)?;
        for _ in 0..MANY {
            let answer = site.request("/orders/1").token(&token).from(address).send()?;
            assert_eq!((answer.exit, answer.status), (0, 401), "{what}: {answer:?}");
        }
        assert!(gateway.launch().bans_of("10.99.0.66/32")?.is_empty(), "{what}");
        assert_eq!(dropped_as_banned(&gateway)?, 0.0, "{what}");
    }
    Ok(())
}

#[test]
fn a_source_above_its_limit_is_dropped_and_others_are_not() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "limit")?;
    site.guard("packets = { rate = \"100/s\", burst = 200 }");
    let token = site.mint.good("alice")?;
    let gateway = site.start()?;
    let noisy = site.client_address(67)?;
    let prober = Prober::new(&site.client_host, noisy, SERVER)?;
    prober.send(2000)?;
    let dropped = gateway.wait_xdp_packets("drop", "over_limit", 100.0)?;
    // It may have earned some more packets while it sent, on a busy machine.
    assert!(dropped <= 1800.0, "{dropped} of 2000 with a burst of 200");
    let neighbour = site.request("/orders/1").token(&token).send()?;
    assert_eq!(neighbour.status, 200, "{}", neighbour.error);
    Ok(())
}

#[test]
fn observing_counts_and_drops_nothing() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "observe")?;
    site.guard("deny = [\"10.99.0.68/32\"]");
    site.config.xdp = site.config.xdp.replace("enforce = true", "enforce = false");
    let token = site.mint.good("alice")?;
    let gateway = site.start()?;
    let denied = site.client_address(68)?;
    let answer = site.request("/orders/1").token(&token).from(denied).send()?;
    assert_eq!(answer.status, 200, "{}", answer.error);
    gateway.wait_xdp_packets("would_drop", "denied", 1.0)?;
    assert_eq!(gateway.xdp_packets("drop", "denied")?, 0.0);

    site.config.xdp = site.config.xdp.replace("enforce = false", "enforce = true");
    site.launch()?;
    gateway.signal(nix::sys::signal::Signal::SIGHUP)?;
    clock::wait_for("enforcement", SOON, || {
        let answer = site.request("/public").from(denied).limit(GIVE_UP).send()?;
        Ok((answer.exit == curl_exit::TIMED_OUT).then_some(()))
    })?;
    gateway.wait_xdp_packets("drop", "denied", 1.0)?;
    let other = site.request("/orders/1").token(&token).from(CLIENT.into()).send()?;
    assert_eq!(other.status, 200, "{}", other.error);
    Ok(())
}
