//! A revoked client is out at once: its open connections, its stored sessions and its new handshakes;
//! everybody else notices nothing.

use std::{fs, thread, time::Duration};

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
    let counted = [("result", "resumed")];
    gateway.wait_metric("gateway_tls_handshakes_total", &counted, resumed as f64)?;

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
        gateway.wait_metric(metric, &[("reason", "revoked")], expected)?;
    }
    Ok(())
}

/// How long a list is left alone before it is replaced again: some of what is written is overtaken
/// before it was looked at, most is not.
const SWAP_EVERY: Duration = Duration::from_millis(50);

#[test]
fn lists_that_are_replaced_under_load_disturb_nobody_and_count_in_the_end() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "swap")?;
    site.config.bans = "enabled = false".to_owned();
    let victim = site.authority.client("victim", &[])?;
    let other = site.authority.client("other", &[])?;
    let token = site.mint.good("alice")?;
    let live = site.directory.path().join("live.crl");
    let beside = site.directory.path().join("live.new");
    let replace = |list: &[u8]| -> Result<()> {
        fs::write(&beside, list)?;
        Ok(fs::rename(&beside, &live)?)
    };
    // As it is published again and again: once as it was, once with somebody more.
    let first = fs::read(site.authority.revoked())?;
    site.authority.revoke(&other)?;
    let second = fs::read(site.authority.revoked())?;
    replace(&first)?;
    site.config.revoked = vec![live.clone()];
    let gateway = site.start()?;
    let authority = site.authority.certificate();
    let target = Target::new(&site.client_host, SERVER, HOST, &authority, &victim)?;
    let others = Target::new(&site.client_host, SERVER, HOST, &authority, &site.client)?;
    let mut open = target.connect()?;
    assert_eq!(open.ask("/orders/1", &token)?, 200);

    let rate = Rate { per_s: 100, connections: 2, lasts: Duration::from_secs(5), core: None };
    let (swaps, handshakes) = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load::keep_rate(&others, &rate, "/orders/1", &token));
        let arriving = scope.spawn(|| -> Result<u32> {
            let mut handshakes = 0;
            while !load.is_finished() {
                let status = others.connect()?.ask("/orders/1", &token)?;
                ensure!(status == 200, "a new connection is answered with {status}");
                handshakes += 1;
            }
            load.join().ok().context("the load panicked")?.map(|outcome| {
                assert_eq!((outcome.lost, outcome.served), (vec![], outcome.intended));
                handshakes
            })
        });
        let mut swaps = 0;
        while !arriving.is_finished() {
            // Half of one, as by a tool that writes in place; then whole.
            let next = if swaps % 2 == 0 { &second } else { &first };
            fs::write(&live, &next[..next.len() / 2])?;
            if swaps == 0 {
                gateway.wait_metric("gateway_files_refused", &[], 1.0)?;
            }
            clock::pause(SWAP_EVERY)?;
            replace(next)?;
            clock::pause(SWAP_EVERY)?;
            swaps += 1;
        }
        Ok((swaps, arriving.join().ok().context("who arrives panicked")??))
    })?;
    println!("{swaps} lists replaced beside {handshakes} new connections");
    assert_eq!(open.ask("/orders/1", &token)?, 200, "who is on no list has noticed nothing");

    site.authority.revoke(&victim)?;
    replace(&fs::read(site.authority.revoked())?)?;
    ensure!(open.is_ended(), "the revoked client's connection is still open");
    let again = site.handshake(Some(&victim), &[])?;
    assert_eq!((again.alert, again.answered), (Some(alert::CERTIFICATE_REVOKED), false));
    assert_eq!(others.connect()?.ask("/orders/1", &token)?, 200);
    gateway.wait_metric("gateway_files_refused", &[], 0.0)
}
