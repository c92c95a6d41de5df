//! Clients that hold on to what they are given, or ask for work without end: each is refused by its own
//! word, counted, and held against its source; others are served meanwhile.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Gateway, SOON},
        python,
        site::{SERVER, Site},
    },
};

/// Runs a script of tests/data with other people's implementation of HPACK; `None` where it is not
/// installed.
pub(crate) fn script(site: &Site, name: &str, more: Value) -> Result<Option<Value>> {
    if python::interpreter().is_none() {
        ensure!(std::env::var_os("CI").is_none(), "`cargo xtask setup` installs what this needs");
        eprintln!("NOT RUN: needs .tools/python (cargo xtask setup)");
        return Ok(None);
    }
    let plan = site.client_plan(more)?;
    python::converse(&site.client_host, name, &plan).map(Some)
}

/// Deadlines short enough for a test; no ban, so that one source can try everything.
fn site(label: &str) -> Result<(Site, Gateway)> {
    let mut site = Site::new(binary(), label)?;
    site.config.bans = "enabled = false".to_owned();
    site.config.clients = "[clients]\nhandshake = \"5s\"\nhead = \"1s\"\nidle = \"2s\"\n\
                           body = { grace = \"1s\", rate = \"1KiB/s\" }\n\
                           answer = { grace = \"2s\", rate = \"1KiB/s\" }\n"
        .to_owned();
    let gateway = site.start()?;
    Ok((site, gateway))
}

fn refusals(gateway: &Gateway, reason: &str) -> Result<f64> {
    gateway.metric("gateway_http_refusals_total", &[("reason", reason)])
}

/// One attack: that it ends, and by which word.
fn attack(
    site: &Site,
    gateway: &Gateway,
    protocol: &str,
    name: &str,
    reasons: &[&str],
) -> Result<Option<Value>> {
    let count = || -> Result<f64> { reasons.iter().map(|reason| refusals(gateway, reason)).sum() };
    let before = count()?;
    let plan = json!({ "protocol": protocol, "attack": name });
    let Some(told) = script(site, "hostile_client.py", plan)? else { return Ok(None) };
    ensure!(told["came"] != "still open", "{protocol} {name}: {told}");
    if !reasons.is_empty() {
        clock::wait_for(&format!("{protocol} {name} to be counted as {reasons:?}"), SOON, || {
            Ok((count()? > before).then_some(()))
        })
        .with_context(|| format!("{told}\n{}", gateway.log_text()))?;
    }
    let answer = site.request("/public").send()?;
    ensure!(answer.status == 200, "after {protocol} {name}: {answer:?}");
    println!("{protocol} {name}: {told}");
    Ok(Some(told))
}

#[test]
fn whoever_is_too_slow_is_refused_by_the_phase_that_ran_out() -> Result<()> {
    privileged!();
    let (site, gateway) = site("slow")?;
    let late = &["request_timeout"][..];
    for (protocol, name, reasons, answer) in [
        ("http/1.1", "silence", late, ""),
        ("http/1.1", "slow head", late, ""),
        ("http/1.1", "slow second head", late, ""),
        ("http/1.1", "slow body", &["body_too_slow"], "HTTP/1.1 408 "),
        ("http/1.1", "no body", &["body_too_slow"], "HTTP/1.1 408 "),
        ("http/1.1", "takes nothing", &["answer_stalled"], ""),
        ("http/1.1", "large head", &["head_too_large"], "HTTP/1.1 431 "),
        ("http/1.1", "many fields", &["malformed_request"], "HTTP/1.1 400 "),
        ("h2", "slow preface", late, ""),
        ("h2", "no request", late, ""),
        ("h2", "slow headers", late, ""),
        ("h2", "slow headers beside a request", late, ""),
        ("h2", "slow body", &["body_too_slow"], ""),
        ("h2", "zero window", &["answer_stalled"], ""),
    ] {
        let Some(told) = attack(&site, &gateway, protocol, name, reasons)? else { return Ok(()) };
        let came = told["came"].as_str().unwrap_or_default();
        ensure!(came.starts_with(answer), "{protocol} {name}: {told}");
    }
    let before = refusals(&gateway, "request_timeout")?;
    // In peace.
    for protocol in ["http/1.1", "h2"] {
        attack(&site, &gateway, protocol, "idle", &[])?;
    }
    assert_eq!(refusals(&gateway, "request_timeout")?, before);
    Ok(())
}

#[test]
fn a_handshake_that_never_ends_is_refused() -> Result<()> {
    privileged!();
    let (site, gateway) = site("handshakes")?;
    let held = site.client_host.within(|| std::net::TcpStream::connect(SERVER))??;
    let failed = || {
        let reason = [("reason", "handshake_timeout")];
        gateway.metric("gateway_tls_handshake_failures_total", &reason)
    };
    clock::wait_for("the refusal", SOON, || Ok((failed()? >= 1.0).then_some(())))?;
    drop(held);
    Ok(())
}

#[test]
fn work_without_end_is_refused() -> Result<()> {
    privileged!();
    let (site, gateway) = site("floods")?;
    let (control, resets) = (&["control_flood"][..], &["reset_flood"][..]);
    for (name, reasons) in [
        ("settings", control),
        ("ping", control),
        ("empty data", &["control_flood", "reset_flood", "http2_error"]),
        ("window updates", control),
        ("priority", control),
        ("unknown frames", control),
        ("rapid reset", resets),
        ("made you reset", &["control_flood", "reset_flood", "http2_error"]),
        ("continuation", &["control_flood", "reset_flood", "http2_error"]),
        ("full continuation", &["control_flood", "reset_flood", "http2_error"]),
    ] {
        if attack(&site, &gateway, "h2", name, reasons)?.is_none() {
            return Ok(());
        }
    }
    // Who stops and listens hears why (ENHANCE_YOUR_CALM, RFC 9113 section 7).
    if let Some(told) = attack(&site, &gateway, "h2", "rapid reset, then silence", resets)? {
        ensure!(told["came"] == "GOAWAY 11", "{told}");
    }
    // A list that is too long is refused stream by stream.
    for name in ["hpack bomb", "cookie bomb"] {
        attack(&site, &gateway, "h2", name, &[])?;
    }
    Ok(())
}

#[test]
fn a_flood_earns_a_ban_and_a_request_has_its_time() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "flood-ban")?;
    site.config.clients = "[clients]\nrequest = \"1s\"\n".to_owned();
    let gateway = site.start()?;
    let plan = json!({ "protocol": "http/1.1", "attack": "slow upstream" });
    let Some(told) = script(&site, "hostile_client.py", plan)? else { return Ok(()) };
    let came = told["came"].as_str().unwrap_or_default();
    ensure!(
        came.starts_with("HTTP/1.1 504 ") && refusals(&gateway, "request_too_long")? == 1.0,
        "{told}"
    );
    // Five points each, of which half are forgotten in half a minute.
    for _ in 0..8 {
        script(&site, "hostile_client.py", json!({ "protocol": "h2", "attack": "settings" }))?;
    }
    clock::wait_for("a ban", SOON, || {
        Ok(gateway.launch().bans_of("10.99.0.2/32")?.into_iter().next())
    })?;
    Ok(())
}
