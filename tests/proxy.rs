//! What crosses the gateway: requests, answers, and who is said to ask.

use std::fs;

use anyhow::Result;

use crate::{
    binary,
    harness::{client::Version, site::Site, tokens::AUDIENCE},
};

/// Every spelling in which a client might claim to be somebody.
const CLAIMS: [&str; 14] = [
    "X-User-ID: mallory",
    "x-user-id: mallory",
    "X_User_ID: mallory",
    "x_USER-id: mallory",
    "X-User-Roles: admin",
    "X-User-Scopes: everything",
    "X-Client-ID: mallory",
    "X-Client-CN: mallory",
    "X-Client-Verify: SUCCESS",
    "X-Auth-Method: certificate+token",
    "X-Forwarded-User: mallory",
    "X-Forwarded-For: 192.0.2.66",
    "X-Real-IP: 192.0.2.66",
    "Forwarded: for=192.0.2.66",
];

#[test]
fn the_upstream_learns_only_what_was_proven() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "identity")?;
    let more = ["--scope", "read:orders read:all", "--client-id", "till-7"];
    let token = site.mint.mint("alice", AUDIENCE, &more)?;
    let _gateway = site.start()?;
    for version in [Version::Http1, Version::Http2] {
        for (path, method, user, client) in [
            ("/orders/1", "certificate+token", Some("alice"), "till-7"),
            ("/machines/1", "certificate", None, ""),
            ("/public/1", "certificate", None, ""),
        ] {
            let mut request = site.request(path).version(version);
            if user.is_some() {
                request = request.token(&token);
            }
            let answer =
                CLAIMS.iter().fold(request, |request, line| request.header(line)).send()?;
            assert_eq!(answer.status, 200, "{path} {version:?}: {answer:?}");
            let seen = |name: &str| answer.seen_by_upstream(name);
            assert_eq!(seen("X-User-ID")?, Vec::from_iter(user), "{path} {version:?}");
            assert_eq!(seen("X-Auth-Method")?, [method], "{path} {version:?}");
            assert_eq!(seen("X-Client-CN")?, ["client"], "{path} {version:?}");
            assert_eq!(seen("X-Client-Verify")?, ["SUCCESS"], "{path} {version:?}");
            assert_eq!(seen("X-Forwarded-For")?, ["10.99.0.2"], "{path} {version:?}");
            assert_eq!(seen("X-Forwarded-Proto")?, ["https"], "{path} {version:?}");
            assert_eq!(seen("X-Request-ID")?.len(), 1, "{path} {version:?}");
            assert_eq!(seen("X-User-Roles")?, [""; 0], "{path} {version:?}");
            assert_eq!(seen("X-Real-IP")?, [""; 0], "{path} {version:?}");
            assert_eq!(seen("Authorization")?, [""; 0], "{path} {version:?}");
            if user.is_some() {
                assert_eq!(seen("X-Client-ID")?, [client], "{path} {version:?}");
                assert_eq!(seen("X-User-Scopes")?, ["read:orders read:all"], "{path} {version:?}");
            }
            let echo = String::from_utf8_lossy(&answer.body).into_owned();
            for word in ["mallory", "192.0.2.66", "admin", "everything"] {
                assert!(!echo.contains(word), "{path} {version:?}: {word} in {echo}");
            }
        }
    }
    Ok(())
}

#[test]
fn bodies_and_statuses_cross_unchanged() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "bodies")?;
    let upload = site.directory.path().join("upload");
    fs::write(&upload, vec![b'u'; 3_000_000])?;
    let data = format!("@{}", upload.display());
    let _gateway = site.start()?;
    for (version, number) in [(Version::Http1, "1.1"), (Version::Http2, "2")] {
        let request = || site.request("/public/x").version(version);
        let echoed = request().option("--data-binary").option(&data).send()?;
        assert_eq!((echoed.status, echoed.version.as_str()), (200, number), "{}", echoed.error);
        assert_eq!(echoed.json()?["body_bytes"], 3_000_000);
        let chunked = request()
            .header("Transfer-Encoding: chunked")
            .header("Expect:")
            .option("--data-binary")
            .option(&data);
        if version == Version::Http1 {
            assert_eq!(chunked.send()?.json()?["body_bytes"], 3_000_000);
        }
        let large = site.request("/public/bytes/5000000").version(version).send()?;
        assert_eq!((large.status, large.body.len()), (200, 5_000_000), "{}", large.error);
        for status in [204, 404, 418, 500] {
            let path = format!("/public/status/{status}");
            assert_eq!(site.request(&path).version(version).send()?.status, status);
        }
        let secured = request().send()?;
        let transport = secured.header("strict-transport-security").unwrap_or_default();
        assert!(transport.starts_with("max-age="), "{secured:?}");
    }
    Ok(())
}

#[test]
fn an_upstream_that_breaks_the_rules_harms_only_its_own_answer() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "excess")?;
    let _gateway = site.start()?;
    for version in [Version::Http1, Version::Http2] {
        // A body under a status that has none (RFC 9110 section 15.3.5).
        let broken = site.request("/public/excess").version(version).send()?;
        assert!(matches!(broken.status, 204 | 502), "{version:?}: {broken:?}");
        assert!(!broken.body.starts_with(b"hello"), "{version:?}: {broken:?}");
        let next = site.request("/public").version(version).send()?;
        assert_eq!(next.status, 200, "{version:?}: {next:?}");
    }
    Ok(())
}

#[test]
fn what_is_not_served_is_refused_by_its_own_name() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "refusals")?;
    site.config.bans = "enabled = false".to_owned();
    site.config.routes.push_str(
        "\n[[route]]\nname = \"readers\"\npath = \"/readers\"\nmethods = [\"GET\"]\n\
         upstream = \"orders\"\nrequire = []\n",
    );
    let _gateway = site.start()?;
    let get = |path: &str| site.request(path);
    for (what, request, status, reason) in [
        ("no such path", get("/nothing"), 404, "no_route"),
        ("a prefix of half a segment", get("/publicity"), 404, "no_route"),
        ("out of the route and back", get("/public/../orders/1"), 400, "malformed_request"),
        ("another method", get("/readers").option("--data").option("x"), 405, "method_not_allowed"),
        ("another host", get("/public").header("Host: other.test"), 421, "misdirected"),
        ("the upstream breaks off", get("/public/break"), 502, "upstream_failed"),
        ("the upstream is late", get("/public/delay/10000"), 504, "upstream_timeout"),
    ] {
        let answer = request.send()?;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (status, reason),
            "{what}: {answer:?}"
        );
    }
    let allow = get("/readers").option("--data").option("x").send()?;
    assert_eq!(allow.header("allow"), Some("GET"));
    Ok(())
}

#[test]
fn an_upstream_that_is_away_is_said_to_be() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "away")?;
    // Nobody listens there.
    site.config.upstream.set_port(9009);
    let gateway = site.start()?;
    let answer = site.request("/public").send()?;
    assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_unreachable"));
    assert_eq!(gateway.get("/ready")?.0, 200, "an upstream's trouble is not the gateway's");
    Ok(())
}
