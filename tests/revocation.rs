//! A revoked client is out at once: its open connections, its stored sessions and its new handshakes;
//! everybody else notices nothing.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    binary,
    harness::{
        client::alert,
        clock,
        gateway::SOON,
        load::{self, Rate, Target},
        site::{HOST, SERVER, Site},
    },
};

/// What a loaded machine is granted; alone it takes about 0.3 s, and what is said is a second.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn revocation_ends_connections_and_sessions_and_disturbs_nobody() -> Result<()> {
    privileged!();
    const CONNECTIONS: usize = 100;
    let mut site = Site::new(binary(), "revoke")?;
    site.config.bans = "enabled = false".to_owned();
    let victim = site.authority.client("victim", &[])?;
    let token = site.mint.good("alice")?;
    let gateway = site.start()?;
    let session = site.directory.path().join("session").display().to_string();
    let first = site.handshake(Some(&victim), &["-sess_out", &session])?;
    assert!(first.answered, "{}", first.said);
    let authority = site.authority.certificate();
    let target = Target::new(&site.client_host, SERVER, HOST, &authority, &victim)?;
    let others = Target::new(&site.client_host, SERVER, HOST, &authority, &site.client)?;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = target.connect()?;
        assert_eq!(connection.ask("/orders/1", &token)?, 200);
        open.push(connection);
    }
    let resumed = open.iter().filter(|connection| connection.was_resumed()).count();
    assert!(resumed >= CONNECTIONS / 2, "a good client resumes: {resumed} of {CONNECTIONS}");
    let counted = gateway.metric("gateway_tls_handshakes_total", &[("result", "resumed")])?;
    assert_eq!(counted, resumed as f64);

    let rate = Rate { per_s: 200, connections: 4, lasts: Duration::from_secs(4), core: None };
    thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| load::keep_rate(&others, &rate, "/orders/1", &token));
        clock::wait_for("load", SOON, || {
            let answered = gateway.metric("gateway_http_requests_total", &[("code", "200")])?;
            Ok((answered > CONNECTIONS as f64 + 50.0).then_some(()))
        })?;
        site.authority.revoke(&victim)?;
        let revoked = clock::now();
        for (number, connection) in open.iter_mut().enumerate() {
            ensure!(connection.is_ended(), "connection {number} is still open");
        }
        let took = clock::now() - revoked;
        println!("{CONNECTIONS} connections ended {} ms after the list changed", took.as_millis());
        assert!(took < LIMIT, "{took:?}");
        // What the client stored is of no use: it has to show its certificate, which is refused.
        for _ in 0..3 {
            let asked = target.connect().and_then(|mut open| open.ask("/orders/1", &token));
            let error = format!("{:#}", asked.expect_err("refused"));
            assert!(error.contains("CertificateRevoked"), "{error}");
        }
        let again = site.handshake(Some(&victim), &["-sess_in", &session])?;
        assert_eq!((again.alert, again.answered), (Some(alert::CERTIFICATE_REVOKED), false));
        let outcome = load.join().ok().context("the load panicked")??;
        assert_eq!((outcome.lost, outcome.served), (vec![], outcome.intended), "the others");
        Ok(())
    })?;
    let closed = gateway.wait_log("why they were closed", |line| {
        line["event"] == "connection_closed" && line["reason"] == "revoked"
    })?;
    assert_eq!(closed["certificate"]["subject"], "CN=victim", "{closed}");
    for (metric, expected) in [
        ("gateway_connections_withdrawn_total", CONNECTIONS as f64),
        ("gateway_tls_handshake_failures_total", 4.0),
    ] {
        assert_eq!(gateway.metric(metric, &[("reason", "revoked")])?, expected, "{metric}");
    }
    Ok(())
}
