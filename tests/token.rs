//! Tokens: who is let through, and what the others are told.

use std::fs;

use anyhow::Result;
use serde_json::Value;

use crate::{
    binary,
    harness::{
        clock,
        site::Site,
        tokens::{self, AUDIENCE, Mint, rfc3339},
    },
};

/// A token and the answer to it.
struct Case {
    what: &'static str,
    token: Result<String>,
    status: u16,
    reason: &'static str,
}

#[test]
fn every_kind_of_bad_token_has_its_answer() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "token")?;
    site.config.bans = "enabled = false".to_owned();
    let impostor = Mint::new(binary(), site.directory.path(), "impostor", "ES256")?;
    let rsa = Mint::new(binary(), site.directory.path(), "rsa1", "RS256")?;
    let both = site.directory.path().join("both.jwks");
    tokens::join_key_sets(&[&site.mint, &rsa], &both)?;
    site.config.jwks = both;
    let mint = &site.mint;
    let later = rfc3339(clock::unix_s() + 3600);
    let gateway = site.start()?;
    let case = |what, token, status, reason| Case { what, token, status, reason };
    let cases = [
        case("ES256", mint.good("alice"), 200, ""),
        case("RS256", rsa.good("alice"), 200, ""),
        case("expired", mint.expired("alice"), 401, "token_expired"),
        case(
            "of the future",
            mint.mint("alice", AUDIENCE, &["--not-before", &later]),
            401,
            "token_not_yet_valid",
        ),
        case("unsigned", mint.unsigned("alice"), 401, "unsupported_algorithm"),
        case("of another key", mint.forged_by(&impostor, "alice"), 401, "bad_signature"),
        case("altered", mint.altered("alice", "root"), 401, "bad_signature"),
        case("of an unknown key", impostor.good("alice"), 401, "unknown_key"),
        case("for somebody else", mint.mint("alice", "other-api", &[]), 401, "wrong_audience"),
        case(
            "of an unknown issuer",
            mint.mint_as("https://other.test", "alice", AUDIENCE, &[]),
            401,
            "unknown_token_issuer",
        ),
        case(
            "valid for too long",
            mint.mint("alice", AUDIENCE, &["--lifetime", "2h"]),
            401,
            "lifetime_too_long",
        ),
        case("garbage", Ok("a.b.c".to_owned()), 401, "malformed_token"),
        case("in two parts", Ok("eyJhbGciOiJFUzI1NiJ9.e30".to_owned()), 401, "malformed_token"),
        case("in five parts", Ok("a.b.c.d.e".to_owned()), 401, "unsupported_jwe"),
        case("huge", Ok("a".repeat(9000)), 401, "token_too_large"),
        case(
            "without the scope",
            mint.mint("alice", AUDIENCE, &["--scope", "write:orders"]),
            403,
            "insufficient_scope",
        ),
    ];
    for Case { what, token, status, reason } in cases {
        let token = token?;
        let answer = site.request("/orders/1").token(&token).send()?;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (status, reason),
            "{what}: {answer:?}"
        );
        if status == 200 {
            continue;
        }
        let problem = answer.json()?;
        for field in ["type", "title", "status", "detail", "reason", "request_id"] {
            assert_ne!(problem[field], Value::Null, "{what}: {field} in {problem}");
        }
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        let error = if status == 401 { "invalid_token" } else { "insufficient_scope" };
        assert!(challenge.starts_with("Bearer "), "{what}: {challenge}");
        assert!(challenge.contains(&format!("error=\"{error}\"")), "{what}: {challenge}");
        let line = gateway
            .wait_log("the refusal's line", |line| line["request_id"] == problem["request_id"])?;
        assert_eq!(line["reason"], reason, "{what}: {line}");
        let signature = token.rsplit('.').next().unwrap_or_default();
        assert!(signature.len() < 8 || !gateway.log_text().contains(signature), "{what} is logged");
    }
    assert_eq!(site.upstream.requests(), 2, "what was refused reached the upstream");
    Ok(())
}

#[test]
fn a_token_is_asked_for_and_only_taken_from_one_place() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "bearer")?;
    site.config.bans = "enabled = false".to_owned();
    let token = site.mint.good("alice")?;
    let _gateway = site.start()?;
    let none = site.request("/orders/1").send()?;
    assert_eq!((none.status, none.reason().as_str()), (401, "missing_token"));
    let challenge = none.header("www-authenticate").unwrap_or_default();
    // RFC 6750 section 3.1: no error code for who brought nothing.
    assert!(challenge.starts_with("Bearer ") && !challenge.contains("error="), "{challenge}");

    let bearer = format!("Authorization: Bearer {token}");
    let lower = format!("authorization: bearer {token}");
    for (what, lines, status) in [
        ("scheme in lower case", vec![lower.as_str()], 200),
        ("basic", vec!["Authorization: Basic YTpi"], 401),
        ("empty", vec!["Authorization: Bearer"], 401),
        ("twice the same", vec![bearer.as_str(), bearer.as_str()], 400),
        ("a second one", vec![bearer.as_str(), "Authorization: Bearer x"], 400),
    ] {
        let request =
            lines.iter().fold(site.request("/orders/1"), |request, line| request.header(line));
        let answer = request.send()?;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
    }
    let query = site.request(&format!("/orders/1?access_token={token}")).send()?;
    assert_eq!(query.status, 401, "a token in the query is none");
    Ok(())
}

#[test]
fn a_revoked_token_is_refused_also_when_it_is_remembered() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "revoked")?;
    site.config.bans = "enabled = false".to_owned();
    let list = site.directory.path().join("revoked.jti");
    fs::write(&list, "# nobody yet\n")?;
    site.config.process = format!("[revocation]\ntokens_file = {:?}\n", list.display().to_string());
    let [token, other] = ["j-1", "j-2"].map(|token_id| {
        let claim = format!("jti=\"{token_id}\"");
        site.mint.mint("alice", AUDIENCE, &["--scope", "read:orders", "--claim", &claim])
    });
    let (token, other) = (token?, other?);
    let gateway = site.start()?;
    let send = |token: &str| site.request("/orders/1").token(token).send();
    // Twice, so that it is remembered as proven.
    for _ in 0..2 {
        assert_eq!(send(&token)?.status, 200);
    }
    fs::write(&list, format!("{} j-1\n", tokens::ISSUER))?;
    clock::wait_for("the revocation", crate::harness::gateway::SOON, || {
        let answer = send(&token)?;
        Ok((answer.status == 401 && answer.reason() == "token_revoked").then_some(()))
    })?;
    assert_eq!(send(&other)?.status, 200);

    // Half a line might be half a name: what held goes on holding, and it is said.
    fs::write(&list, format!("{} j-", tokens::ISSUER))?;
    let refused = gateway.wait_log("the refused list", |line| {
        line["file"].as_str().is_some_and(|file| file.ends_with("revoked.jti"))
            && line["level"] == "error"
    })?;
    assert!(refused["detail"].as_str().unwrap_or_default().contains("half written"), "{refused}");
    assert_eq!((send(&token)?.status, send(&other)?.status), (401, 200));
    fs::write(&list, format!("{} j-2\n", tokens::ISSUER))?;
    clock::wait_for("the good list", crate::harness::gateway::SOON, || {
        Ok((send(&other)?.status == 401 && send(&token)?.status == 200).then_some(()))
    })
}

#[test]
fn a_bound_token_is_good_in_its_holders_hands_only() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "bound")?;
    site.config.bans = "enabled = false".to_owned();
    site.config.routes.push_str(
        "\n[[route]]\nname = \"bound\"\npath = \"/bound\"\nupstream = \"orders\"\n\
         require = [\"certificate\", \"token\"]\nbound_token = true\n",
    );
    let thief = site.authority.client("thief", &["--spiffe", "spiffe://site.test/thief"])?;
    let plain = site.mint.good("alice")?;
    let cnf = |thumbprint: &str| {
        let claim = format!("cnf={{\"x5t#S256\":\"{thumbprint}\"}}");
        site.mint.mint("alice", AUDIENCE, &["--scope", "read:orders", "--claim", &claim])
    };
    let bound = cnf(&tokens::thumbprint(&site.client.certificate)?)?;
    let dpop = site.mint.mint(
        "alice",
        AUDIENCE,
        &[
            "--scope",
            "read:orders",
            "--claim",
            "cnf={\"jkt\":\"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I\"}",
        ],
    )?;
    let _gateway = site.start()?;
    for (what, path, token, certificate, status, reason) in [
        ("bound, its holder", "/bound", &bound, &site.client, 200, ""),
        ("bound, elsewhere too", "/orders/1", &bound, &site.client, 200, ""),
        ("bound, a thief", "/bound", &bound, &thief, 401, "cnf_mismatch"),
        ("bound, a thief elsewhere", "/orders/1", &bound, &thief, 401, "cnf_mismatch"),
        // Remembered by now, and still its holder's alone.
        ("bound, its holder again", "/bound", &bound, &site.client, 200, ""),
        ("not bound", "/bound", &plain, &site.client, 401, "cnf_missing"),
        ("not bound, elsewhere", "/orders/1", &plain, &site.client, 200, ""),
        ("bound to a DPoP key", "/orders/1", &dpop, &site.client, 401, "cnf_mismatch"),
    ] {
        let request = site.anonymous_request(path).certificate(certificate);
        let answer = request.token(token).send()?;
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{what}");
    }
    Ok(())
}

#[test]
fn a_key_that_leaves_the_file_is_no_longer_believed() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "rotate")?;
    let old = Mint::new(binary(), site.directory.path(), "old", "ES256")?;
    let live = site.directory.path().join("live.jwks");
    tokens::join_key_sets(&[&site.mint, &old], &live)?;
    site.config.jwks = live.clone();
    let token = old.good("alice")?;
    let gateway = site.start()?;
    // Twice, so that it is remembered as proven.
    for _ in 0..2 {
        assert_eq!(site.request("/orders/1").token(&token).send()?.status, 200);
    }
    fs::copy(site.mint.jwks(), &live)?;
    gateway.signal(nix::sys::signal::Signal::SIGHUP)?;
    clock::wait_for("the key to be forgotten", crate::harness::gateway::SOON, || {
        let answer = site.request("/orders/1").token(&token).send()?;
        Ok((answer.status == 401 && answer.reason() == "unknown_key").then_some(()))
    })?;
    let fresh = site.mint.good("alice")?;
    assert_eq!(site.request("/orders/1").token(&fresh).send()?.status, 200);
    Ok(())
}
