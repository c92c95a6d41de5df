//! Who may what: certificates mapped to principals, what routes demand, and the words for a no.

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{
        client::{Credential, Version},
        clock,
        gateway::SOON,
        load::Target,
        site::{HOST, SERVER, Site},
        tokens::AUDIENCE,
    },
};

/// The rules and routes of these tests.
const RULES: &str = r#"
[[identity]]
from = "san_uri"
match = "spiffe://site.test/client"
principal = "{value}"
roles = ["till"]
tenant = "acme"

[[identity]]
from = "san_dns"
match = "*.machines.test"
principal = "machine:{value}"
roles = ["machine"]

[[route]]
name = "machines"
path = "/machines"
upstream = "orders"
require = ["certificate"]

[[route]]
name = "tills"
path = "/tills"
upstream = "orders"
require = ["certificate"]
roles = ["till"]

[[route]]
name = "named"
path = "/named"
upstream = "orders"
require = ["certificate"]
principals = ["machine:*"]

[[route]]
name = "admin"
path = "/admin"
upstream = "orders"
require = ["token"]
roles = ["admin"]

[[route]]
name = "elsewhere"
path = "/elsewhere"
upstream = "orders"
require = []
sources = ["192.0.2.0/24"]

[[route]]
name = "here"
path = "/here"
upstream = "orders"
require = []
sources = ["10.99.0.0/24"]

[[route]]
name = "passes"
path = "/passes"
upstream = "orders"
require = ["certificate", "token"]
pass_authorization = true

[[route]]
name = "public"
path = "/public"
upstream = "orders"
require = []
"#;

/// A site with these rules in which nobody is banned, and a client that no rule knows.
fn site(label: &str) -> Result<(Site, Credential, Credential)> {
    let mut site = Site::new(binary(), label)?;
    site.config.routes = RULES.to_owned();
    site.config.bans = "enabled = false".to_owned();
    let machine = site.authority.client("press", &["--dns", "press.machines.test"])?;
    let unknown = site.authority.client("unknown", &["--spiffe", "spiffe://other.test/x"])?;
    Ok((site, machine, unknown))
}

#[test]
fn a_route_lets_in_whom_it_is_for() -> Result<()> {
    privileged!();
    let (site, machine, unknown) = site("whom")?;
    let gateway = site.start()?;
    let plain = site.mint.mint("alice", AUDIENCE, &[])?;
    let admin = site.mint.mint("alice", AUDIENCE, &["--claim", "roles=[\"admin\",\"user\"]"])?;
    let acme = site.mint.mint("alice", AUDIENCE, &["--claim", "tenant=\"acme\""])?;
    let other = site.mint.mint("alice", AUDIENCE, &["--claim", "tenant=\"other\""])?;
    let client = &site.client;
    for (path, who, token, status, reason) in [
        ("/machines/1", client, None, 200, ""),
        ("/machines/1", &machine, None, 200, ""),
        ("/machines/1", &unknown, None, 403, "identity_unmapped"),
        ("/public/1", &unknown, None, 200, ""),
        ("/tills/1", client, None, 200, ""),
        ("/tills/1", &machine, None, 403, "route_denied"),
        ("/named/1", &machine, None, 200, ""),
        ("/named/1", client, None, 403, "route_denied"),
        ("/admin/1", &unknown, None, 401, "missing_token"),
        ("/admin/1", &unknown, Some(&plain), 403, "route_denied"),
        ("/admin/1", &unknown, Some(&admin), 200, ""),
        ("/elsewhere/1", client, None, 403, "source_not_allowed"),
        ("/here/1", client, None, 200, ""),
        ("/passes/1", client, Some(&acme), 200, ""),
        ("/passes/1", client, Some(&other), 403, "tenant_mismatch"),
        ("/passes/1", &machine, Some(&other), 200, ""),
    ] {
        let mut request = site.anonymous_request(path).certificate(who);
        if let Some(token) = token {
            request = request.token(token);
        }
        let answer = request.send()?;
        let seen = (answer.status, answer.reason());
        assert_eq!(seen, (status, reason.to_owned()), "{path} {who:?}: {answer:?}");
    }
    let line = gateway
        .wait_log("the unmapped client's refusal", |line| line["reason"] == "identity_unmapped")?;
    let detail = line["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("san_uri \"spiffe://other.test/x\""),
        "what a rule could match: {line}"
    );
    assert_eq!(line["principal"], serde_json::Value::Null, "{line}");
    assert_eq!(line["route"], "machines", "{line}");
    let denied = gateway.wait_log("a denial", |line| line["reason"] == "route_denied")?;
    assert_eq!(denied["principal"], "machine:press.machines.test", "{denied}");
    Ok(())
}

#[test]
fn the_upstream_is_told_exactly_what_was_proven() -> Result<()> {
    privileged!();
    let (site, machine, _) = site("exactly")?;
    let _gateway = site.start()?;
    let more = ["--scope", "a b", "--claim", "roles=[\"admin\",\"till\"]", "--client-id", "app"];
    let token = site.mint.mint("alice", AUDIENCE, &more)?;
    for version in [Version::Http1, Version::Http2] {
        let answer = site.request("/passes/1").version(version).token(&token).send()?;
        let mut names: Vec<String> = Vec::new();
        for pair in answer.json()?["headers"].as_array().into_iter().flatten() {
            names.push(pair[0].as_str().unwrap_or_default().to_ascii_lowercase());
        }
        names.sort();
        assert_eq!(
            names,
            [
                "accept",
                "authorization",
                "forwarded",
                "host",
                "user-agent",
                "x-auth-method",
                "x-client-cn",
                "x-client-id",
                "x-client-serial",
                "x-client-verify",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x-forwarded-user",
                "x-request-id",
                "x-tenant-id",
                "x-user-id",
                "x-user-roles",
                "x-user-scopes",
            ],
            "{version:?}"
        );
        for (name, value) in [
            ("authorization", format!("Bearer {token}")),
            ("x-user-roles", "till,admin".to_owned()),
            ("x-tenant-id", "acme".to_owned()),
            ("x-client-id", "app".to_owned()),
            ("x-user-scopes", "a b".to_owned()),
        ] {
            assert_eq!(answer.seen_by_upstream(name)?, [value], "{version:?} {name}");
        }
        let answer = site
            .anonymous_request("/machines/1")
            .certificate(&machine)
            .version(version)
            .header("Connection: X-Client-ID, X-Forwarded-User")
            .send()?;
        let principal = ["machine:press.machines.test"];
        assert_eq!(answer.seen_by_upstream("x-client-id")?, principal, "{version:?}");
        assert_eq!(answer.seen_by_upstream("x-forwarded-user")?, principal, "{version:?}");
        assert_eq!(answer.seen_by_upstream("x-user-roles")?, ["machine"], "{version:?}");
    }
    Ok(())
}

#[test]
fn what_is_forwarded_is_what_was_judged() -> Result<()> {
    privileged!();
    let (site, ..) = site("judged")?;
    let _gateway = site.start()?;
    for (path, forwarded) in [
        ("/public/a%20b?x=%2e%2e/y", Some("/public/a%20b?x=%2e%2e/y")),
        ("/%70ublic/%7euser", Some("/public/~user")),
        ("/public/%c3%a9", Some("/public/%C3%A9")),
        ("/public/a;v=1/b", Some("/public/a;v=1/b")),
        ("/public;v=1/b", None),
        ("/public%2Fx", None),
        ("/public/%2e%2e/machines", None),
        ("/public/%252e%252e/machines", None),
        ("/public/..%5cmachines", None),
        ("/public//x", None),
        ("/public/%00", None),
        ("/public/%0d%0aX-User-ID:%20root", None),
    ] {
        for version in [Version::Http1, Version::Http2] {
            let answer = site.request(path).version(version).send()?;
            match forwarded {
                Some(forwarded) => {
                    let line = answer.json()?["line"].clone();
                    assert_eq!(line, format!("GET {forwarded} HTTP/1.1"), "{path} {version:?}");
                }
                None => {
                    let seen = (answer.status, answer.reason());
                    assert_eq!(seen, (400, "malformed_request".to_owned()), "{path} {version:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_change_of_the_rules_reaches_open_connections() -> Result<()> {
    privileged!();
    let (mut site, ..) = site("rules")?;
    let gateway = site.start()?;
    let authority = site.authority.certificate();
    let target = Target::new(&site.client_host, SERVER, HOST, &authority, &site.client)?;
    let mut open = target.connect()?;
    let token = site.mint.good("alice")?;
    assert_eq!(open.ask("/tills/1", &token)?, 200);
    // The rule gives another role; the route goes on asking for the first.
    site.config.routes = RULES.replacen("roles = [\"till\"]", "roles = [\"desk\"]", 1);
    site.launch()?;
    gateway.signal(Signal::SIGHUP)?;
    clock::wait_for("the reload", SOON, || {
        Ok((gateway.metric("gateway_config_generation", &[])? > 1.0).then_some(()))
    })?;
    assert_eq!(open.ask("/tills/1", &token)?, 403);
    assert_eq!(open.ask("/machines/1", &token)?, 200);
    Ok(())
}
