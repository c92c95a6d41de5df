//! The page for a person: one file that loads nothing from elsewhere, and figures that move.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    binary,
    harness::{
        clock,
        gateway::{Gateway, SOON},
        site::{CLIENT, Site},
        tokens,
    },
};

/// The whole answer, head and body.
fn answer(gateway: &Gateway, method: &str, path: &str) -> Result<(String, String)> {
    let address = gateway.launch().metrics;
    let namespace = &gateway.launch().namespace;
    let mut stream = namespace.within(|| TcpStream::connect(address))??;
    stream.set_read_timeout(Some(SOON))?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head and a body")?;
    Ok((head.to_lowercase(), body.to_owned()))
}

fn figures(gateway: &Gateway) -> Result<Value> {
    let (head, body) = answer(gateway, "GET", "/status.json")?;
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    Ok(serde_json::from_str(&body)?)
}

#[test]
fn the_page_is_one_file_that_only_its_own_script_may_fill() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "page")?;
    let gateway = site.start()?;
    let (head, page) = answer(&gateway, "GET", "/")?;
    ensure!(head.starts_with("http/1.1 200"), "{head}");
    for field in [
        "content-type: text/html; charset=utf-8",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
    ] {
        ensure!(head.lines().any(|line| line == field), "{field} in {head}");
    }
    let policy = head.lines().find(|line| line.starts_with("content-security-policy: "));
    let policy = policy.context("a policy")?;
    for rule in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "'sha256-"] {
        ensure!(policy.contains(rule), "{rule} in {policy}");
    }
    ensure!(!policy.contains("unsafe"), "{policy}");
    ensure!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"), "{page}");
    for (method, path, status) in [
        ("HEAD", "/", "200"),
        ("HEAD", "/status.json", "200"),
        ("POST", "/", "405"),
        ("POST", "/status.json", "405"),
        ("DELETE", "/metrics", "405"),
        ("GET", "/status", "404"),
        ("GET", "/../etc/passwd", "404"),
    ] {
        let (head, body) = answer(&gateway, method, path)?;
        ensure!(head.starts_with(&format!("http/1.1 {status}")), "{method} {path}: {head}");
        ensure!(method != "HEAD" || body.is_empty(), "{method} {path}: {body}");
    }
    Ok(())
}

#[test]
fn its_figures_move_and_name_nobody() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "figures")?;
    site.guard("");
    let gateway = site.start()?;
    let before = figures(&gateway)?;
    ensure!(before["ready"] == true && before["requests"] == 0, "{before}");
    let token = site.mint.good("alice")?;
    assert_eq!(site.request("/orders/1").token(&token).send()?.status, 200);
    assert_eq!(site.request("/orders/1").send()?.status, 401);
    assert_eq!(site.anonymous_request("/public").send()?.status, 0);
    gateway.launch().succeed(&["bans", "add", "10.99.0.70", "--for", "1h"])?;
    let count = |rows: &Value, name: &str| {
        let rows = rows.as_array()?;
        rows.iter().find(|row| row["name"] == name)?["count"].as_u64()
    };
    let now = clock::wait_for("all of it to show", SOON, || {
        let now = figures(&gateway)?;
        let all = now["requests"] == 2
            && count(&now["refusals"], "missing_token") == Some(1)
            && count(&now["refusals"], "no_client_cert") == Some(1)
            && now["handshakes"]["failed"] == 1
            && now["bans"]["operator"] == 1
            && now["xdp"]["passed"].as_u64() > Some(0)
            && now["host"].is_object();
        Ok(all.then_some(now))
    })
    .with_context(|| format!("{:?}", figures(&gateway)))?;
    ensure!(now["at_s"].as_f64() > before["at_s"].as_f64() && now["run"] == before["run"], "{now}");
    ensure!(now["xdp"]["interfaces"][0]["mode"] == "native", "{now}");
    ensure!(now["certificates"][0]["left_ratio"].as_f64() > Some(0.5), "{now}");
    ensure!(now["upstreams"][0]["up"] == 1, "{now}");
    let text = now.to_string();
    let key = site.config.server.key.display().to_string();
    let folder = site.directory.path().display().to_string();
    for secret in [&token, "10.99.0", "alice", &key, &folder, tokens::ISSUER, &CLIENT.to_string()] {
        ensure!(!text.contains(secret), "{secret} in {text}");
    }
    // Pages that are left open cost no more than one: who asks again at once gets the same.
    let same = clock::wait_for("two questions in a row", SOON, || {
        let (one, other) = (figures(&gateway)?, figures(&gateway)?);
        Ok((one["at_s"] == other["at_s"]).then_some(one))
    })?;
    let later = clock::wait_for("newer figures", SOON, || {
        std::thread::sleep(Duration::from_millis(20));
        let now = figures(&gateway)?;
        Ok((now["at_s"] != same["at_s"]).then_some(now))
    })?;
    ensure!(later["at_s"].as_f64() > same["at_s"].as_f64(), "{later}");
    Ok(())
}
