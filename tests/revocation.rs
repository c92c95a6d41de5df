//! A revoked client is out at once: its open connections, its stored sessions and its new handshakes;
//! everybody else notices nothing.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use gateway::{
    config::CrlExpired,
    identity::certificate::{Anchors, Revocations, Trust, Verifier},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{pki_types::UnixTime, server::danger::ClientCertVerifier as _};

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

/// The judgement of one certificate with an empty list and with one of 100,000 entries, in turns.
/// `cargo test --release -p gateway --test gateway long_list -- --ignored --nocapture`
#[test]
#[ignore = "measures; it says nothing beside other work"]
fn a_long_list_costs_a_handshake_nothing_to_speak_of() -> Result<()> {
    const ENTRIES: u64 = 100_000;
    const ROUNDS: usize = 200;
    const JUDGED: u32 = 50;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, "Long");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut client = CertificateParams::new(vec!["client.test".to_owned()])?;
    client.serial_number = Some(SerialNumber::from(ENTRIES * 7));
    let client = client.signed_by(&KeyPair::generate()?, &authority)?;
    let list = |entries: u64| -> Result<Arc<Trust>> {
        let revoked = |number: u64| RevokedCertParams {
            serial_number: SerialNumber::from(number * 2 + 1),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: (0..entries).map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&authority)?;
        let anchors = Anchors::parse(authority.pem().as_bytes())?;
        let revocations = Revocations::parse(&[("list", list.der())], &anchors)?;
        Ok(Arc::new(Trust::new(anchors, revocations, CrlExpired::Deny, 2)))
    };
    let (empty, long) = (list(0)?, list(ENTRIES)?);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(clock::unix_s()));
    let judge = |trust: &Arc<Trust>| -> Result<Duration> {
        let start = clock::now();
        for _ in 0..JUDGED {
            Verifier::new(trust.clone(), true).verify_client_cert(client.der(), &[], now)?;
        }
        Ok((clock::now() - start) / JUDGED)
    };
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(judge(&empty)?);
        with.push(judge(&long)?);
    }
    without.sort_unstable();
    with.sort_unstable();
    let (without, with) = (without[ROUNDS / 2], with[ROUNDS / 2]);
    println!(
        "{without:?} with an empty list, {with:?} with {ENTRIES} entries: {:.3}",
        with.as_secs_f64() / without.as_secs_f64()
    );
    Ok(())
}
