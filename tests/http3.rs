//! HTTP/3 keeps the promises of the other two: who is let in, who is turned away and by what word, and
//! what happens to open connections.

pub(crate) mod client;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use quinn::ConnectionError;
use serde_json::json;
use tokio::time::{sleep, timeout};

use self::client::{Client, Identity, first_words, request};
use crate::{
    crowd::within,
    exchanges::Streams,
    handover::{GONE, successor},
    harness::{
        client::{Credential, alert},
        clock,
        gateway::{Gateway, SOON, write_config},
        site::{CLIENT, SERVER},
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

/// Asks again and again, on another connection whenever it is told to go; so many connections it took.
async fn ask_until(identity: &Identity, stop: &AtomicBool) -> Result<usize> {
    let (mut connections, mut open) = (0, None);
    while !stop.load(Ordering::Relaxed) && !clock::interrupted() {
        let client = match open.take().filter(|client: &Client| !client.is_told_to_go()) {
            Some(client) => client,
            None => {
                connections += 1;
                Client::connect(identity).await.context("connecting")?
            }
        };
        ensure!(client.get("/public/bytes/10").await.context("asking")? == (200, 10));
        sleep(Duration::from_millis(20)).await;
        open = Some(client);
    }
    Ok(connections)
}

/// Sends a body on one connection, piece by piece, until `stop`.
async fn upload_until(identity: &Identity, stop: &AtomicBool) -> Result<()> {
    let client = Client::connect(identity).await?;
    let mut upload = client.begin(&request("PUT", "/public/echo/0")).await?;
    let mut sent = 0_u64;
    while !stop.load(Ordering::Relaxed) && !clock::interrupted() {
        upload.send_piece(&[b'u'; 16 * 1024]).await?;
        sent += 16 * 1024;
        sleep(Duration::from_millis(20)).await;
    }
    let (status, body) = upload.whole_answer().await?;
    let told: serde_json::Value = serde_json::from_slice(&body)?;
    ensure!((status, &told["body_bytes"]) == (200, &sent.into()), "{status}, {sent}: {told}");
    ensure!(client.is_told_to_go(), "nobody told it that others serve");
    Ok(())
}

/// The socket goes from process to process, and each connection stays with its own: an upload goes on at
/// the first of three, and nobody who asks meanwhile loses a request.
#[test]
fn a_hand_over_costs_no_request_over_quic() -> Result<()> {
    privileged!();
    const CLIENTS: usize = 6;
    let streams = Streams::start("h3-take-over", 2)?;
    let (site, mut first) = (&streams.site, streams.gateway);
    let launch = first.launch().clone();
    let config = |workers: usize| -> Result<()> {
        let text = site.config.to_string();
        let text = text.replace("[\"h2\", \"http/1.1\"]", "[\"h3\", \"h2\", \"http/1.1\"]");
        // What is under way gets as long as a busy machine takes for the whole test.
        let process = format!("workers = {workers}\ndrain_timeout = \"20m\"");
        write_config(&launch.config, &text.replacen("workers = 1", &process, 1))
    };
    config(2)?;
    launch.succeed(&["reload"])?;
    let identity = Identity::new(site, &site.client)?;
    let (stop, stop_upload) = (AtomicBool::new(false), AtomicBool::new(false));
    let (changed, asked) = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            within(site, async || {
                let asking = (0..CLIENTS).map(|_| ask_until(&identity, &stop));
                let (asked, uploaded) = tokio::join!(
                    futures_util::future::join_all(asking),
                    upload_until(&identity, &stop_upload),
                );
                uploaded?;
                asked.into_iter().collect::<Result<Vec<_>>>()
            })
        });
        let mut change = || -> Result<()> {
            clock::wait_for("everybody to be there", SOON, || {
                let open = first.metric("gateway_connections", &[])?;
                Ok((open >= (CLIENTS + 1) as f64).then_some(()))
            })?;
            // More workers than there are sockets, and fewer.
            config(3)?;
            let mut second = successor(&launch)?;
            config(1)?;
            let mut third = successor(&launch)?;
            ensure!(second.wait_exit(GONE)? == Some(0), "the second drains while the first does");
            stop_upload.store(true, Ordering::Relaxed);
            ensure!(first.wait_exit(GONE)? == Some(0), "the first ends with its last connection");
            let before = answered(&third)?;
            clock::wait_for("everybody to ask the third", SOON, || {
                Ok((answered(&third)? > before + 3.0 * CLIENTS as f64).then_some(()))
            })?;
            stop.store(true, Ordering::Relaxed);
            third.signal(Signal::SIGTERM)?;
            ensure!(third.wait_exit(GONE)? == Some(0), "the third ends as any");
            Ok(())
        };
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        stop_upload.store(true, Ordering::Relaxed);
        (changed, asking.join())
    });
    let asked = asked.map_err(|_panic| anyhow!("the clients panicked"))?;
    changed?;
    for connections in asked? {
        // One who was slow to hear of the second goes on with the third.
        ensure!(connections >= 2, "it never went on from the first process");
    }
    Ok(())
}

/// `H3_NO_ERROR` and `H3_MESSAGE_ERROR` (RFC 9114 section 8.1).
const NO_ERROR: u64 = 0x100;
const MESSAGE_ERROR: u64 = 0x10e;

/// For what a loaded machine has to get done.
const PATIENCE: Duration = Duration::from_secs(60);

fn application_code(error: &ConnectionError) -> Option<u64> {
    match error {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into()),
        _ => None,
    }
}

/// While more handshakes are under way than a quiet gateway has, new clients prove that they are where
/// they say, by a token that was sent there; and then they are served.
#[test]
fn under_load_a_client_proves_its_address_first() -> Result<()> {
    privileged!();
    let streams = Streams::start_with("h3-retry", 1, "[clients]\nhandshake = \"2m\"\n")?;
    let gateway = &streams.gateway;
    let identity = Identity::new(&streams.site, &streams.site.client)?;
    within(&streams.site, async || {
        let before = Client::connect(&identity).await?;
        ensure!(before.get("/public/bytes/10").await? == (200, 10));
        ensure!(gateway.metric("gateway_quic_retries_total", &[])? == 0.0, "nobody else is there");
        let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
        for word in first_words(&identity, 80).await? {
            socket.send_to(&word, SERVER).await?;
        }
        clock::wait_for("handshakes that nobody goes on with", SOON, || {
            let open = gateway.metric("gateway_connections", &[])?;
            Ok((open >= 65.0).then_some(()))
        })?;
        let retries = gateway.metric("gateway_quic_retries_total", &[])?;
        let client = Client::connect(&identity).await?;
        ensure!(client.get("/public/bytes/10").await? == (200, 10));
        ensure!(gateway.metric("gateway_quic_retries_total", &[])? > retries, "without a retry");
        ensure!(before.get("/public/bytes/10").await? == (200, 10), "who was there stays");
        Ok(())
    })
}

/// A session that is resumed was judged before, and is judged again.
#[test]
fn a_revoked_client_does_not_resume_over_quic() -> Result<()> {
    privileged!();
    let streams = Streams::start("h3-resumption", 1)?;
    let (site, gateway) = (&streams.site, &streams.gateway);
    let victim = site.authority.client("victim", &["--spiffe", "spiffe://site.test/v"])?;
    let identity = Identity::new(site, &victim)?;
    let resumed = || gateway.metric("gateway_tls_handshakes_total", &[("result", "resumed")]);
    within(site, async || {
        // Tickets come after the handshake, at the latest before the first answer.
        for resumes in [false, true] {
            let before = resumed()?;
            let client = Client::connect(&identity).await?;
            ensure!(client.get("/public/bytes/10").await? == (200, 10));
            ensure!(resumed()? == before + f64::from(u8::from(resumes)), "resumes: {resumes}");
        }
        Ok(())
    })?;
    site.authority.revoke(&victim)?;
    clock::wait_for("the revoked client to be refused over TCP", SOON, || {
        let handshake = site.handshake(Some(&victim), &[])?;
        Ok((handshake.alert == Some(alert::CERTIFICATE_REVOKED)).then_some(()))
    })?;
    let before = resumed()?;
    let error = within(site, async || match Client::connect(&identity).await {
        // A client has its part of the handshake done before the server judges it.
        Ok(client) => Ok(timeout(PATIENCE, client.quic.closed()).await?),
        Err(error) => error.downcast::<ConnectionError>(),
    })?;
    let ConnectionError::ConnectionClosed(close) = &error else { bail!("{error:?}") };
    assert_eq!(u64::from(close.error_code), 0x100 + u64::from(alert::CERTIFICATE_REVOKED));
    assert_eq!(resumed()?, before);
    Ok(())
}

/// A ban ends what is open, and what comes from there is not answered at all.
#[test]
fn a_ban_holds_over_quic() -> Result<()> {
    privileged!();
    let streams = Streams::start_with("h3-ban", 2, "")?;
    let launch = streams.gateway.launch();
    let identity = Identity::new(&streams.site, &streams.site.client)?;
    within(&streams.site, async || {
        let client = Client::connect(&identity).await?;
        ensure!(client.get("/public/bytes/10").await? == (200, 10));
        launch.succeed(&["bans", "add", &CLIENT.to_string(), "--for", "1h"])?;
        let ended = timeout(PATIENCE, async {
            while client.get("/public/bytes/10").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
            client.quic.closed().await
        });
        let error = ended.await.context("a banned client is served")?;
        ensure!(application_code(&error) == Some(NO_ERROR), "{error:?}");
        let stranger = Client::connect_within(&identity, Duration::from_secs(3)).await;
        let error = stranger.err().context("a banned client was let in")?;
        let error = error.downcast::<ConnectionError>()?;
        ensure!(matches!(error, ConnectionError::TimedOut), "{error:?}");
        launch.succeed(&["bans", "remove", &CLIENT.to_string()])?;
        let client = Client::connect(&identity).await?;
        ensure!(client.get("/public/bytes/10").await? == (200, 10));
        Ok(())
    })
}

/// `[clients]` bounds HTTP/3 as it bounds HTTP/2: requests at once, and time without any.
#[test]
fn a_client_has_its_bounds_over_quic() -> Result<()> {
    privileged!();
    let clients = "[clients]\nstreams = 5\nidle = \"2s\"\n";
    let streams = Streams::start_with("h3-bounds", 1, clients)?;
    let identity = Identity::new(&streams.site, &streams.site.client)?;
    within(&streams.site, async || {
        let client = Client::connect(&identity).await?;
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(client.begin(&request("PUT", "/public/echo/0")).await?);
        }
        let mut sixth = Box::pin(client.get("/public/bytes/10"));
        let early = timeout(Duration::from_millis(300), &mut sixth).await;
        ensure!(early.is_err(), "a sixth at once: {early:?}");
        for mut exchange in held {
            exchange.send.finish()?;
            ensure!(exchange.answer().await?.0 == 200);
        }
        ensure!(timeout(PATIENCE, sixth).await?? == (200, 10), "there is room again");
        let error = timeout(PATIENCE, client.quic.closed()).await.context("idle for ever")?;
        ensure!(application_code(&error) == Some(NO_ERROR), "{error:?}");
        Ok(())
    })
}

/// RFC 9114 section 4.3: what can be read in two ways is not read at all.
#[test]
fn pseudo_fields_stand_once_and_first() -> Result<()> {
    privileged!();
    let streams = Streams::start("h3-pseudo", 1)?;
    let identity = Identity::new(&streams.site, &streams.site.client)?;
    let good = request("GET", "/public/bytes/10");
    let with = |more: &[(&'static str, &'static str)]| [&good[..], more].concat();
    let cases = [
        ("two methods", with(&[(":method", "DELETE")])),
        ("two paths", with(&[(":path", "/orders/1")])),
        ("the same path twice", with(&[(":path", "/public/bytes/10")])),
        ("two hosts", with(&[(":authority", "other.test")])),
        ("two schemes", with(&[(":scheme", "http")])),
        ("late", [&[("accept", "*/*")], &good[..]].concat()),
        ("of answers", with(&[(":status", "200")])),
        ("of nobody", with(&[(":nothing", "x")])),
        ("in capitals", with(&[("X-Capital", "x")])),
    ];
    within(&streams.site, async || {
        let client = Client::connect(&identity).await?;
        for (what, fields) in &cases {
            let mut exchange = client.begin(fields).await?;
            // It may have been told already that nobody reads on.
            let _ = exchange.send.finish();
            let error =
                exchange.answer().await.err().with_context(|| format!("{what}: answered"))?;
            let reset = error.downcast_ref::<quinn::ReadError>().context("no reset")?;
            let quinn::ReadError::Reset(code) = reset else { bail!("{what}: {error:?}") };
            ensure!(code.into_inner() == MESSAGE_ERROR, "{what}: {error:?}");
            ensure!(client.get("/public/bytes/10").await? == (200, 10), "after {what}");
        }
        Ok(())
    })?;
    let refused = [("reason", "malformed_request")];
    streams.gateway.wait_metric("gateway_http_refusals_total", &refused, cases.len() as f64)
}
