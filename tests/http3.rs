//! HTTP/3 keeps the promises of the other two: who is let in, who is turned away and by what word, and
//! what happens to open connections.

use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    exchanges::Streams,
    harness::{
        client::{Credential, alert},
        clock,
        gateway::{Gateway, SOON},
    },
};

/// The number that QUIC gives a TLS alert (RFC 9001 section 4.8).
fn closed_by(number: u8) -> String {
    format!("closed {}", 0x100 + u32::from(number))
}

fn answered(gateway: &Gateway) -> Result<f64> {
    gateway.metric("gateway_http_requests_total", &[])
}

/// Waits until the one open connection has had as many answers.
fn one_connection(gateway: &Gateway, answers: f64) -> Result<()> {
    clock::wait_for("an open connection with answered requests", SOON, || {
        let open = gateway.metric("gateway_connections", &[])?;
        Ok((open == 1.0 && answered(gateway)? >= answers).then_some(()))
    })
}

#[test]
fn who_may_not_come_in_is_told_the_same_over_quic() -> Result<()> {
    privileged!();
    let streams = Streams::start("h3-strangers", 1)?;
    let site = &streams.site;
    let stranger = Credential::clone(&site.config.server);
    let revoked = site.authority.client("revoked", &["--spiffe", "spiffe://site.test/r"])?;
    site.authority.revoke(&revoked)?;
    let gateway = &streams.gateway;
    // The list is followed; wait until it is in use.
    clock::wait_for("the revoked client to be refused over TCP", SOON, || {
        let handshake = site.handshake(Some(&revoked), &[])?;
        Ok((handshake.alert == Some(alert::CERTIFICATE_REVOKED)).then_some(()))
    })?;
    let requests = [json!({"method": "GET", "path": "/public/bytes/1"})];
    for (credential, number, reason) in [
        (None, alert::CERTIFICATE_REQUIRED, "no_client_cert"),
        (Some(&stranger), alert::UNSUPPORTED_CERTIFICATE, "bad_eku"),
        (Some(&revoked), alert::CERTIFICATE_REVOKED, "revoked"),
    ] {
        let count =
            || gateway.metric("gateway_tls_handshake_failures_total", &[("reason", reason)]);
        let before = count()?;
        let answers = streams.converse(&streams.case_of("h3", &requests, credential))?;
        let error = answers[0]["error"].as_str().unwrap_or_default();
        assert_eq!(answers[0]["status"], 0, "{reason}: {answers:?}");
        assert!(error.starts_with(&closed_by(number)), "{reason}: {error}");
        clock::wait_for("one refusal to be counted", SOON, || {
            Ok((count()? == before + 1.0).then_some(()))
        })?;
    }
    let answers = streams.converse(&streams.case("h3", &requests))?;
    assert_eq!(answers[0]["status"], 200, "{answers:?}");
    Ok(())
}

#[test]
fn an_open_connection_ends_when_its_client_is_revoked_and_when_the_daemon_stops() -> Result<()> {
    privileged!();
    let mut streams = Streams::start("h3-ends", 1)?;
    let victim = streams.site.authority.client("victim", &["--spiffe", "spiffe://site.test/v"])?;
    for stops in [false, true] {
        let credential = if stops { &streams.site.client } else { &victim };
        // The second is asked when the first's answer has come, and may lose its own.
        let request = json!({"method": "GET", "path": "/public/bytes/1"});
        let mut case = streams.case_of("h3", &[request.clone(), request], Some(credential));
        let before = answered(&streams.gateway)?;
        case["until_closed"] = json!(true);
        let (answers, told) = thread::scope(|scope| -> Result<_> {
            let client = scope.spawn(|| streams.converse(&case));
            let told = one_connection(&streams.gateway, before + 2.0).and_then(|()| match stops {
                true => streams.gateway.signal(Signal::SIGTERM),
                false => streams.site.authority.revoke(&victim).map(drop),
            });
            let answers = client.join().ok().context("the client's thread")??;
            Ok((answers, told))
        })?;
        told?;
        assert_eq!(answers[0]["status"], 200, "{answers:?}");
        // H3_NO_ERROR: the connection ends, nothing was wrong on it.
        let error = answers[1]["error"].as_str().unwrap_or_default();
        assert!(error.starts_with("closed 256"), "{error}");
    }
    assert_eq!(streams.gateway.wait_exit(SOON)?, Some(0));
    Ok(())
}

/// Three workers share the port; each connection stays with its own, wherever its client goes.
#[test]
fn a_connection_survives_another_port() -> Result<()> {
    privileged!();
    let streams = Streams::start("h3-moves", 3)?;
    let still = json!({"method": "GET", "path": "/public/bytes/1"});
    let moved = json!({"method": "GET", "path": "/public/bytes/1", "from_another_port": true});
    for client in 0..8 {
        let requests = [still.clone(), moved.clone(), moved.clone(), still.clone()];
        let answers = streams.converse(&streams.case("h3", &requests))?;
        for (number, answer) in answers.iter().enumerate() {
            assert_eq!(answer["status"], 200, "client {client}, request {number}: {answers:?}");
        }
    }
    // Each was one connection with one handshake, however often it moved.
    let handshakes = [("result", "ok")];
    streams.gateway.wait_metric("gateway_tls_handshakes_total", &handshakes, 8.0)?;
    Ok(())
}

/// Its connections cannot be handed over, so nothing is.
#[test]
fn a_take_over_is_refused_and_the_running_daemon_serves_on() -> Result<()> {
    privileged!();
    let streams = Streams::start("h3-take-over", 1)?;
    let ended = streams.gateway.launch().ended(&["run", "--take-over"])?;
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("HTTP/3 cannot be handed over"), "{}", ended.stderr);
    let requests = [json!({"method": "GET", "path": "/public/bytes/1"})];
    for protocol in ["h1", "h2", "h3"] {
        let answers = streams.converse(&streams.case(protocol, &requests))?;
        assert_eq!(answers[0]["status"], 200, "{protocol}: {answers:?}");
    }
    Ok(())
}
