//! WebSocket and gRPC, end to end, by other people's clients and servers.

use std::path::Path;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{
        client::Credential,
        clock,
        gateway::SOON,
        peers::{Peer, python},
        site::{SERVER, Site},
        tokens::AUDIENCE,
    },
};

const CHAT: &str = r#"
[[upstream]]
name = "chat"
servers = ["http://127.0.0.1:9103"]

[[route]]
name = "chat"
path = "/chat"
upstream = "chat"
require = ["certificate", "token"]

[[route]]
name = "open"
path = "/open"
upstream = "chat"
require = ["certificate"]
"#;

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Words of a client's command line after its role and target.
fn credentials(site: &Site, client: &Credential) -> [String; 3] {
    [&site.authority.certificate(), &client.certificate, &client.key].map(|path| shown(path))
}

/// A client of `role` on the client's host.
fn client(
    python: &Path,
    site: &Site,
    role: &str,
    target: Option<&str>,
    credential: &Credential,
    more: &[&str],
) -> Result<Peer> {
    let server = SERVER.to_string();
    let files = credentials(site, credential);
    let mut words = vec![role];
    words.extend(target);
    words.push(&server);
    words.extend(files.iter().map(String::as_str));
    words.extend(more);
    Peer::start(python, &site.client_host, &words)
}

#[test]
fn a_websocket_passes_once_it_is_permitted() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "websocket")?;
    site.config.routes.push_str(CHAT);
    let mut server = Peer::serve(&python, &site.gateway_host, &["websocket", "9103"])?;
    let token = site.mint.mint("alice", AUDIENCE, &[])?;
    let gateway = site.start()?;
    let url = "wss://gateway.test:8443/chat/x";
    let open =
        |more: &[&str]| client(&python, &site, "websocket-client", Some(url), &site.client, more);
    let mut refused = open(&["1"])?;
    let line = refused.wait_for("the refusal", |line| line["status"].is_number())?;
    assert_eq!(line["status"], 401);
    assert_eq!(server.requests("/chat/x"), 0, "nothing passes before it is permitted");
    let mut talks = open(&["40", "--token", &token])?;
    let line = talks.wait_for("forty echoes", |line| line["echoed"].is_number())?;
    assert_eq!((&line["echoed"], &line["subprotocol"]), (&40.into(), &"echo".into()));
    talks.wait_for("the end", |line| line["closed"] == "by us")?;
    let seen = server.wait_for("what it saw", |line| line["path"] == "/chat/x")?;
    assert_eq!((&seen["user"], &seen["method"]), (&"alice".into(), &"certificate+token".into()));
    let line = gateway.wait_log("its end", |line| line["event"] == "websocket_closed")?;
    assert_eq!(line["reason"], "ended");
    assert!(line["bytes_in"].as_u64() > Some(1 << 20), "{line}");
    gateway.wait_metric("gateway_websockets_open", &[], 0.0)?;
    Ok(())
}

#[test]
fn a_websocket_over_http2_is_translated() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "extended")?;
    site.config.routes.push_str(CHAT);
    let _server = Peer::serve(&python, &site.gateway_host, &["websocket", "9103"])?;
    let gateway = site.start()?;
    let role = "websocket-http2-client";
    let open = |path, more: &[&str]| client(&python, &site, role, Some(path), &site.client, more);
    let mut talks = open("/open/x", &[])?;
    talks.wait_for("the offer", |line| line["offered"] == 1)?;
    let line = talks.wait_for("the agreement", |line| line["status"].is_number())?;
    assert_eq!((&line["status"], &line["subprotocol"]), (&200.into(), &"echo".into()));
    talks.wait_for("the echo", |line| line["echoed"] == "over http/2")?;
    for (path, more, status) in [
        ("/chat/x", vec![], 401),
        ("/nothing", vec![], 404),
        ("/open/x", vec!["--protocol", "connect-udp"], 501),
        // An upstream that speaks no WebSocket there answers as it would anyway.
        ("/machines/status/418", vec![], 418),
        ("/machines/x", vec![], 502),
    ] {
        let mut refused = open(path, &more)?;
        let line = refused.wait_for("the refusal", |line| line["status"].is_number())?;
        assert_eq!(line["status"], status, "{path}");
    }
    clock::wait_for("no WebSocket to be open", SOON, || {
        Ok((gateway.metric("gateway_websockets_open", &[])? == 0.0).then_some(()))
    })
}

#[test]
fn a_websocket_ends_with_its_permission_and_with_the_gateway() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "websocket-ends")?;
    site.config.process = "drain_timeout = \"1s\"".to_owned();
    site.config.routes.push_str(CHAT);
    let list = site.directory.path().join("revoked.jti");
    std::fs::write(&list, "")?;
    let listed = format!("\n[revocation]\ntokens_file = {:?}\n", shown(&list));
    site.config.routes.push_str(&listed);
    let _server = Peer::serve(&python, &site.gateway_host, &["websocket", "9103"])?;
    let doomed = site.authority.client("doomed", &["--spiffe", "spiffe://site.test/doomed"])?;
    let mut gateway = site.start()?;
    let stay = |credential: &Credential| -> Result<(Peer, Peer)> {
        let url = Some("wss://gateway.test:8443/open/x");
        let more = ["1", "--stay"];
        let mut one = client(&python, &site, "websocket-client", url, credential, &more)?;
        let role = "websocket-http2-client";
        let mut two = client(&python, &site, role, Some("/open/y"), credential, &["--stay"])?;
        one.wait_for("an echo", |line| line["echoed"] == 1)?;
        two.wait_for("an echo", |line| line["echoed"] == "over http/2")?;
        Ok((one, two))
    };
    let (mut one, mut two) = stay(&doomed)?;
    gateway.wait_metric("gateway_websockets_open", &[], 2.0)?;
    site.authority.revoke(&doomed)?;
    one.wait_for("the end of a revoked client's", |line| line["closed"].is_string())?;
    two.wait_for("the end of a revoked client's", |line| line["closed"].is_string())?;
    let (mut one, mut two) = stay(&site.client)?;
    gateway.signal(Signal::SIGTERM)?;
    one.wait_for("the end of the drain", |line| line["closed"].is_string())?;
    two.wait_for("the end of the drain", |line| line["closed"].is_string())?;
    assert_eq!(gateway.wait_exit(SOON)?, Some(0));
    Ok(())
}

#[test]
fn a_websocket_ends_when_its_route_is_for_others() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "websocket-token")?;
    site.config.routes.push_str(CHAT);
    let _server = Peer::serve(&python, &site.gateway_host, &["websocket", "9103"])?;
    let token = site.mint.mint("alice", AUDIENCE, &[])?;
    let gateway = site.start()?;
    let url = Some("wss://gateway.test:8443/chat/x");
    let more = ["1", "--token", &token, "--stay"];
    let mut talks = client(&python, &site, "websocket-client", url, &site.client, &more)?;
    talks.wait_for("an echo", |line| line["echoed"] == 1)?;
    // The route is for others from now on; the certificate is as good as before.
    site.config.routes =
        site.config.routes.replace("path = \"/chat\"", "path = \"/chat\"\nscopes = [\"talk\"]");
    site.launch()?;
    gateway.signal(Signal::SIGHUP)?;
    talks.wait_for("the end", |line| line["closed"].is_string())?;
    let line = gateway.wait_log("its end", |line| line["event"] == "websocket_closed")?;
    assert_eq!(line["reason"], "insufficient_scope");
    Ok(())
}

#[test]
fn a_websocket_ends_with_its_token() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "websocket-exp")?;
    site.config.routes.push_str(CHAT);
    site.config.keys = format!("jwks_file = \"{}\"\nleeway = \"0s\"", shown(&site.config.jwks));
    let _server = Peer::serve(&python, &site.gateway_host, &["websocket", "9103"])?;
    let gateway = site.start()?;
    // Long enough to begin with on a busy machine.
    let token = site.mint.mint("alice", AUDIENCE, &["--lifetime", "10s"])?;
    let url = Some("wss://gateway.test:8443/chat/x");
    let more = ["1", "--token", &token, "--stay"];
    let mut talks = client(&python, &site, "websocket-client", url, &site.client, &more)?;
    talks.wait_for("an echo", |line| line["echoed"] == 1)?;
    talks.wait_for("the end", |line| line["closed"].is_string())?;
    let line = gateway.wait_log("its end", |line| line["event"] == "websocket_closed")?;
    assert_eq!(line["reason"], "token_expired");
    Ok(())
}

#[test]
fn grpc_streams_both_ways_with_trailers() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "grpc")?;
    site.config.routes.push_str(
        "\n[[upstream]]\nname = \"echo\"\nservers = [\"http://127.0.0.1:9104\"]\nprotocol = \"h2\"\n\
         \n[[route]]\nname = \"echo\"\npath = \"/public.Echo\"\nupstream = \"echo\"\n\
         require = [\"certificate\"]\n",
    );
    let mut server = Peer::serve(&python, &site.gateway_host, &["grpc", "9104"])?;
    let _gateway = site.start()?;
    let mut calls = client(&python, &site, "grpc-client", None, &site.client, &[])?;
    let mut said = |what: &str, key: &str| calls.wait_for(what, |line| !line[key].is_null());
    let unary = said("an answer", "unary")?;
    assert_eq!((&unary["unary"], &unary["trailers"]), (&"hello".into(), &"5".into()));
    let error = said("an error", "code")?;
    assert_eq!(
        (&error["code"], &error["details"]),
        (&"FAILED_PRECONDITION".into(), &"as asked".into())
    );
    assert_eq!(said("a stream of answers", "counted")?["counted"], true);
    assert_eq!(said("a stream of requests", "collected")?["collected"], 200_000);
    let chat = said("a dialogue", "chat")?;
    assert_eq!(chat["chat"], serde_json::json!(["ONE", "TWO", "THREE"]));
    assert_eq!(chat["rest"], 0);
    server.wait_for("who called", |line| line["method"] == "certificate")?;
    Ok(())
}
