//! Several interfaces at once, and one that goes and comes back while the daemon runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::{
    binary,
    harness::{
        clock,
        flood::Prober,
        gateway::{Gateway, SOON},
        netns::{self, End},
        site::{INTERFACE, SERVER, Site},
    },
};

const SECOND: &str = "edge1";
const SECOND_CLIENT: &str = "host1";
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 2));
const PROBES: u32 = 50;

/// Another cable between the same two hosts.
fn second_cable(site: &Site) -> Result<()> {
    netns::cable(
        End { namespace: &site.gateway_host, interface: SECOND },
        End { namespace: &site.client_host, interface: SECOND_CLIENT },
    )?;
    site.gateway_host.add_address(SECOND, GATEWAY, 24)?;
    site.client_host.add_address(SECOND_CLIENT, CLIENT, 24)
}

/// Packets of one interface that came to one end.
fn packets(gateway: &Gateway, interface: &str, action: &str, reason: &str) -> Result<f64> {
    let labels = [("interface", interface), ("action", action), ("reason", reason)];
    gateway.metric("gateway_xdp_packets_total", &labels)
}

fn program(gateway: &Gateway, interface: &str) -> Result<u64> {
    let status = gateway.launch().json(&["status"])?;
    let interfaces = status["xdp"]["interfaces"].as_array().cloned().unwrap_or_default();
    let found = interfaces.iter().find(|found| found["name"] == interface);
    Ok(found.and_then(|found| found["program_id"].as_u64()).unwrap_or(0))
}

/// Waits until the interface has dropped exactly so many packets of banned sources.
fn wait_dropped(gateway: &Gateway, interface: &str, sent: u32) -> Result<()> {
    let labels = [("interface", interface), ("action", "drop"), ("reason", "banned")];
    gateway.wait_metric("gateway_xdp_packets_total", &labels, f64::from(sent))
}

/// Sends probes, the first alone: it finds out the hardware address, for which the others might
/// otherwise wait in a queue that forgets some.
fn probe(prober: &Prober, gateway: &Gateway, interface: &str, count: u32) -> Result<()> {
    prober.send(1)?;
    wait_dropped(gateway, interface, 1)?;
    prober.send(count - 1)?;
    wait_dropped(gateway, interface, count)
}

#[test]
fn two_interfaces_are_guarded_by_the_same_rules_and_counted_apart() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "interfaces")?;
    second_cable(&site)?;
    site.guard("");
    site.config.xdp =
        site.config.xdp.replace("[\"edge0\"]", &format!("[\"{INTERFACE}\", \"{SECOND}\"]"));
    let gateway = site.start()?;
    let banned = site.client_address(71)?;
    gateway.launch().succeed(&["bans", "add", "10.99.0.71", "--for", "1h"])?;
    gateway.launch().succeed(&["bans", "add", &CLIENT.to_string(), "--for", "1h"])?;

    let first = Prober::new(&site.client_host, banned, SERVER)?;
    let other_port = SocketAddr::new(GATEWAY, SERVER.port());
    let second = Prober::new(&site.client_host, CLIENT, other_port)?;
    probe(&first, &gateway, INTERFACE, PROBES)?;
    assert_eq!(packets(&gateway, SECOND, "drop", "banned")?, 0.0);
    probe(&second, &gateway, SECOND, 2 * PROBES)?;
    assert_eq!(packets(&gateway, INTERFACE, "drop", "banned")?, f64::from(PROBES));
    assert_ne!(program(&gateway, INTERFACE)?, program(&gateway, SECOND)?);
    Ok(())
}

#[test]
fn an_interface_that_is_made_anew_is_guarded_again() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "anew")?;
    second_cable(&site)?;
    site.guard("");
    site.config.xdp =
        site.config.xdp.replace("[\"edge0\"]", &format!("[\"{SECOND}\", \"{INTERFACE}\"]"));
    let gateway = site.start()?;
    let launch = gateway.launch();
    launch.succeed(&["bans", "add", &CLIENT.to_string(), "--for", "1h"])?;
    let (first, second) = (program(&gateway, INTERFACE)?, program(&gateway, SECOND)?);
    assert_eq!(gateway.get("/ready")?.0, 200);

    site.gateway_host.ip(&format!("link delete {SECOND}"))?;
    gateway.wait_log("that the interface is gone", |line| {
        line["event"] == "xdp is not attached" && line["interface"] == SECOND
    })?;
    clock::wait_for("503", SOON, || Ok((gateway.get("/ready")?.0 == 503).then_some(())))?;
    assert_eq!(program(&gateway, SECOND)?, 0);
    assert_eq!(site.request("/public").send()?.status, 200, "the other one goes on");

    second_cable(&site)?;
    gateway.wait_log("that it is guarded again", |line| {
        let event = line["event"].as_str().unwrap_or_default();
        event.contains("attached again") && line["interface"] == SECOND && line["mode"] == "native"
    })?;
    clock::wait_for("/ready", SOON, || Ok((gateway.get("/ready")?.0 == 200).then_some(())))?;
    assert_eq!(program(&gateway, INTERFACE)?, first, "the other one was not touched");
    assert_ne!(program(&gateway, SECOND)?, second);
    let before = packets(&gateway, SECOND, "drop", "banned")?;
    let prober = Prober::new(&site.client_host, CLIENT, SocketAddr::new(GATEWAY, SERVER.port()))?;
    prober.send(PROBES)?;
    clock::wait_for("drops on the new one", SOON, || {
        Ok((packets(&gateway, SECOND, "drop", "banned")? > before).then_some(()))
    })?;
    assert_eq!(site.request("/public").send()?.status, 200);
    let said = gateway.log_text();
    assert_eq!(said.matches("xdp is not attached").count(), 1, "once, however long it lasts");

    // Taken off by an operator, it stays off.
    launch.succeed(&["detach"])?;
    clock::pause(std::time::Duration::from_millis(2_500))?;
    assert!(!site.gateway_host.has_xdp(SECOND)? && !site.gateway_host.has_xdp(INTERFACE)?);
    Ok(())
}
