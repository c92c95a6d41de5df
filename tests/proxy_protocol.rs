//! Behind a proxy that tells by the PROXY protocol whose connection it carries: that client is the one
//! in logs, limits, bans and `X-Forwarded-For`; the proxy itself is never kept out.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Gateway, SOON},
        python,
        site::{CLIENT, HOST, SERVER, Site},
    },
};

/// Sends these cases from the client host, and gives what came back for each.
pub(crate) fn raw(site: &Site, more: Value) -> Result<Vec<Value>> {
    let plan = site.client_plan(more)?;
    let answers = python::converse(&site.client_host, "raw_client.py", &plan)?;
    Ok(serde_json::from_value(answers)?)
}

pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The status of an answer; 0 when there is none.
pub(crate) fn status(answer: &Value) -> u16 {
    let text = answer.as_str().unwrap_or_default();
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn line(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 10.99.0.1 50000 8443\r\n").into_bytes()
}

/// A header of version 2 with one field that says nothing.
fn binary_header(command: u8, source: Ipv4Addr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, 0x11, 0, 16]);
    header.extend(source.octets());
    header.extend([10, 99, 0, 1, 0xc3, 0x50, 0x20, 0xfb, 4, 0, 1, 9]);
    header
}

fn get(path: &str) -> String {
    hex(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"))
}

fn behind_a_proxy(label: &str, trusted: &str) -> Result<(Site, Gateway)> {
    let mut site = Site::new(binary(), label)?;
    site.config.listener_lines =
        format!("proxy_protocol = \"required\"\ntrusted_proxies = [{trusted}]");
    site.config.clients = "[clients]\nproxy_header = \"1s\"".to_owned();
    let gateway = site.start()?;
    Ok((site, gateway))
}

fn ban_of(gateway: &Gateway, source: &str) -> Result<Option<Value>> {
    Ok(gateway.launch().bans_of(&format!("{source}/32"))?.into_iter().next())
}

#[test]
fn the_client_is_the_one_that_the_proxy_names() -> Result<()> {
    privileged!();
    let (site, gateway) = behind_a_proxy("proxied", "\"10.99.0.2\"")?;
    let cases = [
        ("version 1", line("203.0.113.7"), "203.0.113.7", false),
        ("octet by octet", line("203.0.113.8"), "203.0.113.8", true),
        ("version 2", binary_header(0x21, Ipv4Addr::new(203, 0, 113, 9)), "203.0.113.9", false),
        (
            "version 2, octet by octet",
            binary_header(0x21, [203, 0, 113, 10].into()),
            "203.0.113.10",
            true,
        ),
        (
            "IPv6",
            b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 8443\r\n".to_vec(),
            "2001:db8::7",
            false,
        ),
        ("the proxy itself", b"PROXY UNKNOWN\r\n".to_vec(), "10.99.0.2", false),
        (
            "the proxy itself, LOCAL",
            binary_header(0x20, [203, 0, 113, 1].into()),
            "10.99.0.2",
            false,
        ),
    ];
    let sent: Vec<Value> = cases
        .iter()
        .map(|(_, header, _, drip)| {
            json!({ "before": hex(header), "send": get("/public/x"), "drip": drip })
        })
        .collect();
    let answers = raw(&site, json!({ "cases": sent }))?;
    for ((what, _, source, _), answer) in cases.iter().zip(&answers) {
        ensure!(status(&answer["first"]) == 200, "{what}: {answer}");
        let text = answer["first"].as_str().unwrap_or_default();
        let echo: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap_or_default())?;
        let fields = echo["headers"].as_array().context("an echo")?;
        let of = |name: &str| fields.iter().find(|field| field[0] == name).map(|field| &field[1]);
        assert_eq!(of("x-forwarded-for"), Some(&json!(source)), "{what}: {echo}");
        let logged = gateway
            .wait_log(what, |line| line["event"] == "request" && line["source"] == **source)?;
        let is_carried = *source != CLIENT.to_string();
        let via = if is_carried { json!(CLIENT.to_string()) } else { Value::Null };
        assert_eq!(logged.get("via").cloned().unwrap_or(Value::Null), via, "{what}: {logged}");
    }
    Ok(())
}

#[test]
fn no_header_and_a_bad_one_are_refused_with_their_reason() -> Result<()> {
    privileged!();
    let (site, gateway) = behind_a_proxy("unproxied", "\"10.99.0.2\"")?;
    let mut broken = binary_header(0x21, [203, 0, 113, 9].into());
    broken.pop();
    broken.push(0);
    let cut = broken.len();
    broken[15] = 15;
    broken.truncate(cut - 1);
    for (what, before, reason) in [
        ("TLS at once", Vec::new(), "proxy_header_malformed"),
        ("octal", line("010.0.0.1"), "proxy_header_malformed"),
        ("a field cut short", broken, "proxy_header_malformed"),
        ("never whole", b"PROXY TCP4 203".to_vec(), "proxy_header_timeout"),
    ] {
        let waits = reason == "proxy_header_timeout";
        let case = json!({ "before": hex(before), "send": get("/public"), "wait_plain": waits });
        let answers = raw(&site, json!({ "cases": [case] }))?;
        ensure!(status(&answers[0]["first"]) == 0, "{what}: {answers:?}");
        gateway.wait_log(what, |line| line["reason"] == reason)?;
    }
    let count = |reason| gateway.metric("gateway_http_refusals_total", &[("reason", reason)]);
    assert_eq!(count("proxy_header_malformed")?, 3.0);
    assert_eq!(count("proxy_header_timeout")?, 1.0);
    assert_eq!(site.upstream.requests(), 0);
    ensure!(ban_of(&gateway, "10.99.0.2")?.is_none());
    Ok(())
}

#[test]
fn who_is_no_proxy_is_refused_and_earns_a_ban() -> Result<()> {
    privileged!();
    let (site, gateway) = behind_a_proxy("no-proxy", "\"10.99.0.77\"")?;
    let case =
        json!({ "before": hex(line("203.0.113.7")), "send": get("/public"), "wait_plain": true });
    // Two points each, and twenty are a ban.
    let answers = raw(&site, json!({ "cases": vec![case; 12] }))?;
    ensure!(answers.iter().all(|answer| status(&answer["first"]) == 0), "{answers:?}");
    clock::wait_for("a ban", SOON, || ban_of(&gateway, "10.99.0.2"))?;
    ensure!(ban_of(&gateway, "203.0.113.7")?.is_none(), "what a stranger says counts for nothing");
    Ok(())
}

#[test]
fn a_ban_keeps_out_the_client_and_never_its_proxy() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "proxied-ban")?;
    site.guard("");
    site.config.listener_lines =
        "proxy_protocol = \"required\"\ntrusted_proxies = [\"10.99.0.2\"]".to_owned();
    let gateway = site.start()?;
    let from = |source: &str, path: &str| json!({ "before": hex(line(source)), "send": get(path) });
    // Three points each.
    let abuse: Vec<Value> = vec![from("203.0.113.7", "/public/../x"); 8];
    let answers = raw(&site, json!({ "cases": abuse }))?;
    ensure!(status(&answers[0]["first"]) == 400, "{answers:?}");
    let ban = clock::wait_for("a ban", SOON, || ban_of(&gateway, "203.0.113.7"))?;
    assert_eq!(ban["reason"], "malformed_request", "{ban}");
    let answers = raw(
        &site,
        json!({ "cases": [from("203.0.113.7", "/public"), from("203.0.113.8", "/public")] }),
    )?;
    ensure!(status(&answers[0]["first"]) == 0, "banned: {answers:?}");
    ensure!(status(&answers[1]["first"]) == 200, "another client of the proxy: {answers:?}");
    gateway.wait_log("the refusal", |line| line["reason"] == "banned")?;
    ensure!(gateway.xdp_packets("drop", "banned")? == 0.0, "no packet of the proxy is dropped");

    // By hand as well, and back.
    let launch = gateway.launch();
    ensure!(
        launch.ended(&["bans", "add", "10.99.0.2"])?.status != Some(0),
        "the proxy itself cannot be banned"
    );
    launch.succeed(&["bans", "add", "203.0.113.8"])?;
    launch.succeed(&["bans", "remove", "203.0.113.7"])?;
    let answers = raw(
        &site,
        json!({ "cases": [from("203.0.113.7", "/public"), from("203.0.113.8", "/public")] }),
    )?;
    ensure!(status(&answers[0]["first"]) == 200, "unbanned: {answers:?}");
    ensure!(status(&answers[1]["first"]) == 0, "banned by hand: {answers:?}");

    // Many at once, and back.
    for (word, expected) in [("add", 0), ("remove", 200)] {
        launch.succeed(&["bans", word, "198.51.100.0/24"])?;
        let answers = raw(
            &site,
            json!({ "cases": [from("198.51.100.9", "/public"), from("198.51.101.9", "/public")] }),
        )?;
        ensure!(status(&answers[0]["first"]) == expected, "{word}: {answers:?}");
        ensure!(status(&answers[1]["first"]) == 200, "outside of it, {word}: {answers:?}");
    }
    Ok(())
}

#[test]
fn who_is_denied_is_turned_away_behind_a_proxy_while_the_program_drops() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "proxied-deny")?;
    site.guard("deny = [\"203.0.113.0/24\"]");
    site.config.listener_lines =
        "proxy_protocol = \"required\"\ntrusted_proxies = [\"10.99.0.2\"]".to_owned();
    let gateway = site.start()?;
    let launch = gateway.launch();
    let served = |source: &str| -> Result<bool> {
        let case = json!({ "before": hex(line(source)), "send": get("/public") });
        Ok(status(&raw(&site, json!({ "cases": [case] }))?[0]["first"]) == 200)
    };
    // As configured, and as an operator switches it meanwhile.
    for (word, denied_is_served) in
        [(None, false), (Some("observe"), true), (Some("enforce"), false)]
    {
        if let Some(word) = word {
            launch.succeed(&[word])?;
        }
        assert_eq!(served("203.0.113.7")?, denied_is_served, "{word:?}");
        assert!(served("192.0.2.8")?, "another client of the proxy, {word:?}");
    }
    Ok(())
}

#[test]
fn a_source_has_its_share_of_connections_and_its_proxy_all() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "shares")?;
    site.config.process = "max_connections_per_source = 3".to_owned();
    let gateway = site.start()?;
    let server = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), SERVER.port());
    let connect = || site.client_host.within(|| std::net::TcpStream::connect(server));
    let mut held = Vec::new();
    let count =
        || gateway.metric("gateway_http_refusals_total", &[("reason", "too_many_connections")]);
    for _ in 0..3 {
        held.push(connect()??);
    }
    clock::wait_for("three to be open", SOON, || {
        Ok((gateway.metric("gateway_connections", &[])? >= 3.0).then_some(()))
    })?;
    assert_eq!(count()?, 0.0);
    held.push(connect()??);
    clock::wait_for("the fourth to be refused", SOON, || Ok((count()? >= 1.0).then_some(())))?;
    let other = site.client_address(9)?;
    let answer = site.request("/public").from(other).send()?;
    assert_eq!(answer.status, 200, "another source has its own share: {answer:?}");
    drop(held);
    clock::wait_for("room again", SOON, || {
        Ok((site.request("/public").send()?.status == 200).then_some(()))
    })?;
    Ok(())
}
