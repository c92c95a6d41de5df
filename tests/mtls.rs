//! Mutual TLS: who may shake hands, which alert the others get, and what the log says of them.

use anyhow::Result;

use crate::{
    binary,
    harness::{
        client::{Credential, alert},
        pki,
        site::Site,
    },
};

/// One client and what becomes of it.
struct Case<'a> {
    who: &'a str,
    credential: Option<&'a Credential>,
    /// The alert, or `None` for those who are let in.
    alert: Option<u8>,
    /// The log's word for it.
    reason: &'a str,
}

#[test]
fn only_good_certificates_shake_hands() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "mtls")?;
    site.config.bans = "enabled = false".to_owned();
    let revoked = site.authority.client("revoked", &[])?;
    site.authority.revoke(&revoked)?;
    let past = ["--not-before", "2020-01-01T00:00:00Z", "--not-after", "2020-02-01T00:00:00Z"];
    let expired = site.authority.client("expired", &past)?;
    let future = ["--not-before", "2090-01-01T00:00:00Z", "--not-after", "2091-01-01T00:00:00Z"];
    let unborn = site.authority.client("unborn", &future)?;
    let server = site.config.server.clone();
    let stranger = pki::stranger(&site.directory)?;
    let gateway = site.start()?;

    for Case { who, credential, alert, reason } in [
        Case { who: "good", credential: Some(&site.client), alert: None, reason: "" },
        Case {
            who: "nobody",
            credential: None,
            alert: Some(alert::CERTIFICATE_REQUIRED),
            reason: "no_client_cert",
        },
        Case {
            who: "stranger",
            credential: Some(&stranger),
            alert: Some(alert::UNKNOWN_CA),
            reason: "unknown_issuer",
        },
        Case {
            who: "revoked",
            credential: Some(&revoked),
            alert: Some(alert::CERTIFICATE_REVOKED),
            reason: "revoked",
        },
        Case {
            who: "expired",
            credential: Some(&expired),
            alert: Some(alert::CERTIFICATE_EXPIRED),
            reason: "certificate_expired",
        },
        Case {
            who: "unborn",
            credential: Some(&unborn),
            // TLS has no word of its own for it; the log has.
            alert: Some(alert::CERTIFICATE_EXPIRED),
            reason: "certificate_not_yet_valid",
        },
        Case {
            who: "server",
            credential: Some(&server),
            alert: Some(alert::UNSUPPORTED_CERTIFICATE),
            reason: "bad_eku",
        },
    ] {
        let handshake = site.handshake(credential, &[])?;
        let seen = (handshake.alert, handshake.answered);
        assert_eq!(seen, (alert, alert.is_none()), "{who}: {}", handshake.said);
        if !reason.is_empty() {
            let line = gateway.wait_log(&format!("{who}'s refusal"), |line| {
                line["event"] == "handshake_refused" && line["reason"] == reason
            })?;
            assert_eq!(line["source"], "10.99.0.2", "{line}");
            if credential.is_some() {
                let subject = line["certificate"]["subject"].as_str().unwrap_or_default();
                assert!(!subject.is_empty(), "who it claimed to be: {line}");
            }
        }
    }
    gateway.wait_metric("gateway_tls_handshake_failures_total", &[("reason", "revoked")], 1.0)
}

#[test]
fn older_versions_of_tls_are_refused() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "versions")?;
    let _gateway = site.start()?;
    let handshake = site.handshake(Some(&site.client), &["-tls1_2"])?;
    let seen = (handshake.alert, handshake.answered);
    assert_eq!(seen, (Some(alert::PROTOCOL_VERSION), false), "{}", handshake.said);
    Ok(())
}
