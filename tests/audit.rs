//! Every no is said in one word: the same in the answer, in the log and in the metric.

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    binary,
    harness::{
        client::{Answer, Request},
        clock,
        gateway::SOON,
        load::Target,
        site::{HOST, SERVER, Site},
        tokens::{AUDIENCE, ISSUER, Mint, rfc3339},
    },
};

/// Routes by which everything can be refused; `closed` never opens while a test runs.
fn routes() -> String {
    let minute = |minutes: u64| format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60);
    let away = clock::unix_s() / 60 + 12 * 60;
    let closed = format!("{}-{} UTC", minute(away), minute(away + 1));
    format!(
        r#"
[[identity]]
from = "san_uri"
match = "spiffe://site.test/*"
tenant = "acme"

[[route]]
name = "orders"
path = "/orders"
upstream = "orders"
require = ["certificate", "token"]
scopes = ["read:orders"]

[[route]]
name = "bound"
path = "/bound"
upstream = "orders"
require = ["certificate", "token"]
bound_token = true

[[route]]
name = "admin"
path = "/admin"
upstream = "orders"
require = ["certificate"]
principals = ["spiffe://site.test/admin/*"]

[[route]]
name = "elsewhere"
path = "/elsewhere"
upstream = "orders"
require = []
sources = ["192.0.2.0/24"]

[[route]]
name = "closed"
path = "/closed"
upstream = "orders"
require = []
hours = "{closed}"

[[route]]
name = "readers"
path = "/readers"
upstream = "orders"
methods = ["GET"]
require = []

[[upstream]]
name = "away"
servers = ["http://127.0.0.1:9009"]

[[route]]
name = "away"
path = "/away"
upstream = "away"
require = []
"#
    )
}

/// A token of these parts, signed by nobody.
fn forged(header: &str, claims: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", encode(header), encode(claims), encode("x"))
}

/// Sends it and finds its one word everywhere.
fn one_word(
    gateway: &crate::harness::gateway::Gateway,
    request: &Request<'_>,
    status: u16,
    reason: &str,
) -> Result<Answer> {
    let counted = ("gateway_http_refusals_total", [("reason", reason)]);
    let before = gateway.metric(counted.0, &counted.1)?;
    let answer = request.send()?;
    assert_eq!((answer.status, answer.reason()), (status, reason.to_owned()), "{answer:?}");
    let body = answer.json()?;
    assert_eq!(body["status"], status, "{body}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let line = gateway.wait_log(reason, |line| line["request_id"] == body["request_id"])?;
    assert_eq!((&line["reason"], &line["status"]), (&json!(reason), &json!(status)), "{line}");
    assert_eq!(
        (&line["event"], &line["source"]),
        (&json!("request"), &json!("10.99.0.2")),
        "{line}"
    );
    assert!(line["conn_id"].is_string() && line["certificate"]["serial"].is_string(), "{line}");
    gateway.wait_metric(counted.0, &counted.1, before + 1.0)?;
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    assert_eq!(
        status == 401,
        challenge.starts_with("Bearer realm=") && reason != "insufficient_scope"
    );
    Ok(answer)
}

#[test]
fn each_refusal_is_one_word_everywhere() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "words")?;
    site.config.bans = "enabled = false".to_owned();
    site.config.routes = routes();
    let unknown = site.authority.client("unknown", &["--spiffe", "spiffe://other.test/x"])?;
    let impostor = Mint::new(binary(), site.directory.path(), "impostor", "ES256")?;
    let gateway = site.start()?;
    let mint = &site.mint;
    let claim =
        |claim: &str| mint.mint("alice", AUDIENCE, &["--scope", "read:orders", "--claim", claim]);
    let later = rfc3339(clock::unix_s() + 3600);
    let es256 = r#"{"alg":"ES256"}"#;
    let long = "a".repeat(9_000);
    let get = |path: &str| site.request(path);
    let with = |token: &str| site.request("/orders/1").token(token);
    for (request, status, reason) in [
        (get("/orders/%2e%2e/x"), 400, "malformed_request"),
        (get("/orders/1").header("Host: other.test"), 421, "misdirected"),
        (get("/nothing"), 404, "no_route"),
        (get("/readers").option("--data").option("x"), 405, "method_not_allowed"),
        (get("/orders/1"), 401, "missing_token"),
        (with("abc"), 401, "malformed_token"),
        (with(&long), 401, "token_too_large"),
        (with("a.b.c.d.e"), 401, "unsupported_jwe"),
        (with(&mint.unsigned("alice")?), 401, "unsupported_algorithm"),
        (
            with(&forged(r#"{"alg":"ES256","crit":["x"]}"#, "{}")),
            401,
            "unsupported_critical_header",
        ),
        (with(&forged(r#"{"alg":"ES256","jku":"https://x"}"#, "{}")), 401, "unsupported_header"),
        (
            with(&forged(r#"{"alg":"ES256","typ":"logout+jwt"}"#, "{}")),
            401,
            "unsupported_token_type",
        ),
        (with(&forged(r#"{"alg":"ES256","alg":"ES256"}"#, "{}")), 401, "duplicate_member"),
        (with(&forged(es256, "{}")), 401, "missing_claim"),
        (with(&forged(es256, r#"{"iss":7}"#)), 401, "malformed_claim"),
        (with(&forged(es256, r#"{"iss":"https://other.test"}"#)), 401, "unknown_token_issuer"),
        (with(&impostor.good("alice")?), 401, "unknown_key"),
        (with(&mint.altered("alice", "root")?), 401, "bad_signature"),
        (with(&mint.expired("alice")?), 401, "token_expired"),
        (
            with(&mint.mint("alice", AUDIENCE, &["--not-before", &later])?),
            401,
            "token_not_yet_valid",
        ),
        (with(&mint.mint("alice", AUDIENCE, &["--lifetime", "2h"])?), 401, "lifetime_too_long"),
        (with(&mint.mint("alice", "other", &[])?), 401, "wrong_audience"),
        (get("/bound").token(&mint.good("alice")?), 401, "cnf_missing"),
        (
            with(&claim(r#"cnf={"x5t#S256":"bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}"#)?),
            401,
            "cnf_mismatch",
        ),
        (with(&mint.mint("alice", AUDIENCE, &[])?), 403, "insufficient_scope"),
        (with(&claim("tenant=\"other\"")?), 403, "tenant_mismatch"),
        (get("/admin"), 403, "route_denied"),
        (site.anonymous_request("/admin").certificate(&unknown), 403, "identity_unmapped"),
        (get("/elsewhere"), 403, "source_not_allowed"),
        (get("/closed"), 403, "outside_hours"),
        (get("/away"), 502, "upstream_unreachable"),
        (get("/readers/break"), 502, "upstream_failed"),
        (get("/readers/delay/10000"), 504, "upstream_timeout"),
    ] {
        one_word(&gateway, &request, status, reason).with_context(|| reason.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_refused_tokens_line_says_what_to_put_right() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "remedy")?;
    site.config.bans = "enabled = false".to_owned();
    let gateway = site.start()?;
    let now_s = clock::unix_s();
    let just = ["--issued-at", &rfc3339(now_s - 600), "--expires-at", &rfc3339(now_s - 90)];
    let token = site.mint.mint("alice", AUDIENCE, &just)?;
    let answer =
        one_word(&gateway, &site.request("/orders/1").token(&token), 401, "token_expired")?;
    let line = gateway.wait_log("its line", |line| line["reason"] == "token_expired")?;
    let fields = &line["token"];
    assert_eq!((&fields["issuer"], &fields["claim"]), (&json!("corp"), &json!("exp")), "{line}");
    assert_eq!(fields["value"], (now_s - 90).to_string(), "{line}");
    assert!(
        fields["off_by_s"].as_u64() >= Some(90) && fields["clock"].as_u64() >= Some(now_s),
        "{line}"
    );
    assert!(fields["remedy"].as_str().unwrap_or_default().contains("clock"), "{line}");
    // What the operator reads is not for the client.
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(!said.contains(ISSUER) && !said.contains("clock") && !said.contains("corp"), "{said}");
    let log = gateway.log_text();
    assert!(
        !log.contains(&token) && !log.contains(token.split('.').nth(1).unwrap_or("?")),
        "{log}"
    );
    Ok(())
}

/// Requests of one client in a row, at least a few in a second on any machine.
const REFUSED: u32 = 300;

#[test]
fn refusals_that_repeat_are_counted_and_not_repeated() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "repeats")?;
    site.config.bans = "enabled = false".to_owned();
    let mut gateway = site.start()?;
    let authority = site.authority.certificate();
    let target = Target::new(&site.client_host, SERVER, HOST, &authority, &site.client)?;
    let mut open = target.connect()?;
    for _ in 0..REFUSED {
        assert_eq!(open.ask("/nothing", "x")?, 404);
    }
    let good = site.mint.good("alice")?;
    assert_eq!(site.request("/orders/1").token(&good).send()?.status, 200);
    gateway.wait_log("the good one", |line| line["status"] == 200)?;
    let refused = [("reason", "no_route")];
    gateway.wait_metric("gateway_http_refusals_total", &refused, f64::from(REFUSED))?;
    gateway.signal(Signal::SIGTERM)?;
    assert_eq!(gateway.wait_exit(SOON)?, Some(0));
    let log = gateway.log_text();
    let lines: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |event: &str| {
        let lines = lines.iter().filter(move |line| line["event"] == event);
        lines.filter(|line| line["reason"] == "no_route").collect::<Vec<_>>()
    };
    let (written, counted) = (of("request"), of("refusals_repeated"));
    let counted: u64 = counted.iter().filter_map(|line| line["count"].as_u64()).sum();
    assert_eq!(
        written.len() as u64 + counted,
        u64::from(REFUSED),
        "each is written or counted: {log}"
    );
    assert!(written.len() < REFUSED as usize / 2, "{log}");
    Ok(())
}
