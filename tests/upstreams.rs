//! Upstreams that fail in every way, and what becomes of the requests.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use socket2::SockRef;

use crate::{
    binary,
    harness::{
        client::Version,
        clock,
        gateway::{Gateway, SOON},
        peers::{Peer, python},
        pki,
        site::Site,
        upstream::Upstream,
    },
};

/// A public route `/NAME` to an upstream of that name, with these lines.
fn upstream(name: &str, lines: &str) -> String {
    format!(
        "\n[[upstream]]\nname = \"{name}\"\n{lines}\n[[route]]\nname = \"{name}\"\n\
         path = \"/{name}\"\nupstream = \"{name}\"\nrequire = []\n"
    )
}

/// Further upstreams beside the site's own, on loopback ports of the gateway's host.
fn servers<const COUNT: usize>(site: &Site) -> Result<[Upstream; COUNT]> {
    let start = |_| Upstream::start(&site.gateway_host, ([127, 0, 0, 1], 0).into(), None);
    let servers: Vec<Upstream> = (0..COUNT).map(start).collect::<Result<_>>()?;
    servers.try_into().map_err(|_| anyhow!("as many as asked for"))
}

fn urls(servers: &[Upstream]) -> String {
    let url = |server: &Upstream| format!("\"http://{}\"", server.address());
    servers.iter().map(url).collect::<Vec<_>>().join(", ")
}

/// Waits until so many servers of an upstream are in that state.
fn wait_state(gateway: &Gateway, upstream: &str, state: &str, count: f64) -> Result<()> {
    clock::wait_for(&format!("{count} servers of {upstream} to be {state}"), SOON, || {
        let labels = [("upstream", upstream), ("state", state)];
        Ok((gateway.metric("gateway_upstream_servers", &labels)? == count).then_some(()))
    })
}

#[test]
fn an_answer_that_breaks_off_never_looks_whole() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "broken-off")?;
    let server = servers::<1>(&site)?;
    let lines = format!("servers = [{}]\nidle_timeout = \"1s\"", urls(&server));
    site.config.routes.push_str(&upstream("odd", &lines));
    let gateway = site.start()?;
    for version in [Version::Http1, Version::Http2] {
        for path in ["/odd/cut", "/odd/cut-chunk", "/odd/stall"] {
            let answer = site.request(path).version(version).send()?;
            // What came with the end may be lost with it (RFC 9113 section 5.4.2).
            assert!(b"begun".starts_with(&answer.body), "{path} {version:?}: {answer:?}");
            assert_ne!(answer.exit, 0, "{path} {version:?}: it looks whole: {answer:?}");
        }
        for (path, status, reason) in
            [("/odd/garbage", 502, "upstream_failed"), ("/odd/break", 502, "upstream_failed")]
        {
            let answer = site.request(path).version(version).send()?;
            assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{answer:?}");
        }
        assert_eq!(site.request("/odd/well").version(version).send()?.status, 200);
    }
    let cut = |how| gateway.metric("gateway_upstream_bodies_cut_total", &[("how", how)]);
    clock::wait_for("each cut to be counted", SOON, || {
        Ok(((cut("broken")?, cut("stalled")?) == (4.0, 2.0)).then_some(()))
    })?;
    Ok(())
}

/// Answers each connection's request with the begin of an answer, and with a reset.
fn reset_all(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                line.clear();
            }
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun";
            // What is still on its way is overtaken by a reset; either is found out.
            let _sent = stream.write_all(begun);
            thread::sleep(Duration::from_millis(50));
            // Closing it now sends no FIN.
            let _set = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    });
}

#[test]
fn an_answer_that_is_reset_never_looks_whole() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "reset")?;
    let listener = site.gateway_host.within(|| TcpListener::bind("127.0.0.1:0"))??;
    let lines = format!("servers = [\"http://{}\"]", listener.local_addr()?);
    site.config.routes.push_str(&upstream("resets", &lines));
    let gateway = site.start()?;
    reset_all(listener);
    let mut cut = 0.0;
    for version in [Version::Http1, Version::Http2] {
        for _ in 0..3 {
            let answer = site.request("/resets/x").version(version).send()?;
            if answer.status == 502 {
                assert_eq!(answer.reason(), "upstream_failed", "{answer:?}");
                continue;
            }
            assert!(b"begun".starts_with(&answer.body), "{version:?}: {answer:?}");
            assert_ne!(answer.exit, 0, "{version:?}: it looks whole: {answer:?}");
            cut += 1.0;
        }
    }
    clock::wait_for("each cut to be counted", SOON, || {
        let counted = gateway.metric("gateway_upstream_bodies_cut_total", &[("how", "broken")])?;
        Ok((counted >= cut).then_some(()))
    })?;
    // And nobody else is the worse for it.
    assert_eq!(site.request("/public").send()?.status, 200);
    Ok(())
}

#[test]
fn one_of_three_may_be_down_and_all_of_them_are_said_to_be() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "three")?;
    let three = servers::<3>(&site)?;
    let address = three[1].address();
    let lines = format!(
        "servers = [{}]\nhealth = {{ path = \"/health\", interval = \"500ms\", timeout = \"500ms\" }}",
        urls(&three)
    );
    let mut alive = three.map(Some);
    site.config.routes.push_str(&upstream("three", &lines));
    let gateway = site.start()?;
    wait_state(&gateway, "three", "up", 3.0)?;
    alive[0] = None;
    // Whatever the prober knows already, nobody notices.
    for _ in 0..30 {
        assert_eq!(site.request("/three/x").send()?.status, 200);
    }
    wait_state(&gateway, "three", "down", 1.0)?;
    alive = [None, None, None];
    wait_state(&gateway, "three", "down", 3.0)?;
    let answer = site.request("/three/x").send()?;
    assert_eq!((answer.status, answer.reason().as_str()), (503, "no_healthy_upstream"));
    let retry_after: u64 = answer.header("retry-after").unwrap_or_default().parse()?;
    assert!((1..=10).contains(&retry_after), "{answer:?}");
    let start = || Upstream::start(&site.gateway_host, address, None);
    alive[1] = Some(clock::wait_for("the port to be free", SOON, || Ok(start().ok()))?);
    wait_state(&gateway, "three", "up", 1.0)?;
    assert_eq!(site.request("/three/x").send()?.status, 200);
    Ok(())
}

#[test]
fn one_bad_answer_takes_no_server_out_and_enough_in_a_row_do() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "flapping")?;
    let [nervous, steady, ill] = servers::<3>(&site)?;
    // What is late is bad too, and a busy machine is late: for the one that must never be out, so many
    // in a row are asked for that only a machine that stands still gets there.
    let health = |path: &str, unhealthy: u32| {
        format!(
            "health = {{ path = {path:?}, interval = \"500ms\", timeout = \"500ms\", \
             unhealthy = {unhealthy}, healthy = 1 }}"
        )
    };
    let lines = format!("servers = [\"http://{}\"]\n{}", nervous.address(), health("/flap/1", 100));
    site.config.routes.push_str(&upstream("nervous", &lines));
    let two = format!("\"http://{}\", \"http://{}\"", steady.address(), ill.address());
    site.config
        .routes
        .push_str(&upstream("two", &format!("servers = [{two}]\n{}", health("/health", 6))));
    let gateway = site.start()?;
    wait_state(&gateway, "two", "up", 2.0)?;
    for _ in 0..2 {
        ill.be_ill(true);
        wait_state(&gateway, "two", "down", 1.0)?;
        for _ in 0..5 {
            clock::wait_for("the other to serve", SOON, || {
                Ok((site.request("/two/x").send()?.status == 200).then_some(()))
            })?;
        }
        ill.be_ill(false);
        wait_state(&gateway, "two", "up", 2.0)?;
    }
    // Every other question was answered badly meanwhile.
    clock::wait_for("ten questions", SOON, || Ok((nervous.flaps() >= 10).then_some(())))?;
    assert_eq!(site.request("/nervous/x").send()?.status, 200);
    wait_state(&gateway, "nervous", "up", 1.0)?;
    let address = nervous.address().to_string();
    let log = gateway.log_text();
    let mut changes = log.lines().filter(|line| line.contains("\"upstream server "));
    assert!(changes.clone().count() >= 4, "the other went down and up twice: {log}");
    assert!(!changes.any(|line| line.contains(&address)), "{log}");
    Ok(())
}

#[test]
fn without_a_prober_failing_servers_are_left_alone_for_a_while() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "passive")?;
    // Nobody listens on port 9 of the gateway's host.
    let well = site.config.upstream;
    let lines = format!("servers = [\"http://127.0.0.1:9\", \"http://{well}\"]");
    site.config.routes.push_str(&upstream("half", &lines));
    site.config
        .routes
        .push_str(&upstream("none", "servers = [\"http://127.0.0.1:9\", \"http://127.0.0.2:9\"]"));
    let gateway = site.start()?;
    for _ in 0..20 {
        let posted = site.request("/half/x").option("--data").option("x").send()?;
        assert_eq!(posted.status, 200, "{posted:?}");
    }
    let first = site.request("/none/x").send()?;
    assert_eq!((first.status, first.reason().as_str()), (502, "upstream_unreachable"));
    // After three failures each; a machine that stands still for a second has them tried once more.
    clock::wait_for("both to be left alone", SOON, || {
        let answer = site.request("/none/x").send()?;
        let is_refused = (answer.status, answer.reason().as_str()) == (503, "no_healthy_upstream");
        assert!(is_refused || answer.status == 502, "{answer:?}");
        Ok(is_refused.then_some(()))
    })?;
    assert_eq!(site.upstream.requests(), 20, "each was sent once");
    let labels = [("upstream", "half"), ("result", "answered")];
    gateway.wait_metric("gateway_upstream_requests_total", &labels, 20.0)?;
    Ok(())
}

#[test]
fn a_request_is_sent_twice_only_where_that_is_safe() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "twice")?;
    let peer = Peer::serve(&python, &site.gateway_host, &["http2", "9101"])?;
    let lines = "servers = [\"http://127.0.0.1:9101\"]\nprotocol = \"h2\"";
    site.config.routes.push_str(&upstream("h2", lines));
    let gateway = site.start()?;
    // Each needs a connection that was there before.
    let send = |path: &str, post: bool| {
        let warm = site.request("/h2/warm").send()?;
        anyhow::ensure!(warm.status == 200, "{warm:?}");
        let request = site.request(path);
        if post { request.option("--request").option("POST").send() } else { request.send() }
    };
    for (path, post, status, times) in [
        // The server said that it did not look at it.
        ("/h2/get/refuse", false, 200, 2),
        ("/h2/post/refuse", true, 200, 2),
        ("/h2/get/goaway", false, 200, 2),
        ("/h2/post/goaway", true, 200, 2),
        // It may have been carried out.
        ("/h2/get/die", false, 200, 2),
        ("/h2/post/die", true, 502, 1),
    ] {
        let answer = send(path, post)?;
        assert_eq!(answer.status, status, "{path}: {answer:?}\n{}", peer.text());
        assert_eq!(peer.wait_requests(path, times)?, times, "{path}\n{}", peer.text());
    }
    gateway.wait_metric("gateway_upstream_repeated_total", &[("upstream", "h2")], 5.0)?;
    let cut = site.request("/h2/cut").version(Version::Http2).send()?;
    assert_ne!(cut.exit, 0, "it looks whole: {cut:?}");
    // HTTP/1.1: a connection that its server closed while it lay idle.
    for (method, path) in [("GET", "/public/a/last"), ("POST", "/public/b/last")] {
        let before = site.upstream.requests();
        for _ in 0..3 {
            let answer = site.request(path).option("--request").option(method).send()?;
            assert!(
                answer.status == 200 || (method == "POST" && answer.status == 502),
                "{answer:?}"
            );
        }
        assert_eq!(site.upstream.requests() - before, 3, "{method}");
    }
    Ok(())
}

#[test]
fn upstreams_speak_http2_and_tls_and_are_verified() -> Result<()> {
    privileged!();
    let Some(python) = python()? else { return Ok(()) };
    let mut site = Site::new(binary(), "secure")?;
    let server = site.authority.server(&["orders.test", "127.0.0.1"], "orders")?;
    let own = site.authority.client("edge", &["--spiffe", "spiffe://site.test/edge"])?;
    let stranger = pki::stranger(&site.directory)?;
    let shown = |path: &std::path::Path| path.display().to_string();
    let (certificate, key) = (shown(&server.certificate), shown(&server.key));
    let authority = shown(&site.authority.certificate());
    let words = |port| ["http2", port, "--tls", &certificate, &key, "--client-ca", &authority];
    let mut peer = Peer::serve(&python, &site.gateway_host, &words("9102"))?;
    let identity = |credential: &crate::harness::client::Credential| {
        format!(
            "certificate = {:?}, private_key = {:?}",
            shown(&credential.certificate),
            shown(&credential.key)
        )
    };
    let at = "servers = [\"https://127.0.0.1:9102\"]\n";
    let other_ca = shown(&site.directory.path().join("stranger-ca.pem"));
    for (name, tls) in [
        ("good", format!("ca = {authority:?}, {}", identity(&own))),
        ("named", format!("ca = {authority:?}, {}, server_name = \"orders.test\"", identity(&own))),
        ("misnamed", format!("ca = {authority:?}, {}, server_name = \"a.test\"", identity(&own))),
        ("wrong-ca", format!("ca = {other_ca:?}, {}", identity(&own))),
        ("nobody", format!("ca = {authority:?}")),
        ("stranger", format!("ca = {authority:?}, {}", identity(&stranger))),
    ] {
        site.config.routes.push_str(&upstream(name, &format!("{at}tls = {{ {tls} }}")));
    }
    site.config.routes.push_str(&upstream(
        "http1",
        &format!("{at}protocol = \"http/1.1\"\ntls = {{ ca = {authority:?}, {} }}", identity(&own)),
    ));
    let gateway = site.start()?;
    for version in [Version::Http1, Version::Http2] {
        for path in ["/good/x", "/named/x"] {
            let answer = site.request(path).version(version).send()?;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert_eq!(answer.seen_by_upstream(":authority")?, ["gateway.test:8443"]);
            assert_eq!(answer.seen_by_upstream(":scheme")?, ["https"]);
            assert_eq!(answer.seen_by_upstream("x-client-cn")?, ["client"]);
            assert_eq!(answer.seen_by_upstream("host")?, [] as [&str; 0]);
        }
    }
    peer.wait_for("whose certificate it was shown", |line| line["client"][0] == "edge")?;
    for path in ["/misnamed/x", "/wrong-ca/x", "/nobody/x", "/stranger/x", "/http1/x"] {
        let answer = site.request(path).send()?;
        assert_eq!(answer.status, 502, "{path}: {answer:?}");
        assert_eq!(peer.requests(path), 0, "{path} went where it must not");
    }
    let line = gateway.wait_log("the reason in the log", |line| line["route"] == "wrong-ca")?;
    let detail = line["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("UnknownIssuer"), "{line}");
    // Another certificate of ours is shown as soon as its files are there.
    let next = site.authority.client("edge2", &["--spiffe", "spiffe://site.test/edge"])?;
    fs::copy(&next.key, &own.key)?;
    fs::copy(&next.certificate, &own.certificate)?;
    clock::wait_for("the new certificate to be shown", SOON, || {
        let answer = site.request("/good/renewed").send()?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(peer.lines().iter().any(|line| line["client"][0] == "edge2").then_some(()))
    })
}

#[test]
fn requests_wait_for_their_turn_and_not_too_many_of_them() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "turn")?;
    let own = site.config.upstream;
    let lines = |more: &str| format!("servers = [\"http://{own}\"]\nmax_requests = 1\n{more}");
    site.config.routes.push_str(&upstream("queue", &lines("connect_timeout = \"20s\"")));
    site.config.routes.push_str(&upstream("full", &lines("max_waiting = 0")));
    let _gateway = site.start()?;
    thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| site.request("/queue/delay/300").send())).collect();
        for asked in asked {
            let answer = asked.join().map_err(|_panic| anyhow!("curl's thread panicked"))??;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let before = site.upstream.requests();
        let first = scope.spawn(|| site.request("/full/delay/2500").send());
        clock::wait_for("the first to arrive", SOON, || {
            Ok((site.upstream.requests() > before).then_some(()))
        })?;
        let second = site.request("/full/x").send()?;
        let first = first.join().map_err(|_panic| anyhow!("curl's thread panicked"))??;
        assert_eq!(first.status, 200, "{first:?}");
        // On a machine that stood still meanwhile the first may have ended before the second came.
        if site.upstream.requests() == before + 1 {
            assert_eq!((second.status, second.reason().as_str()), (503, "upstream_overloaded"));
            assert_eq!(second.header("retry-after"), Some("1"));
        }
        anyhow::Ok(())
    })
}

#[test]
fn names_are_looked_up_beside_the_requests() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "names")?;
    let port = site.config.upstream.port();
    site.config
        .routes
        .push_str(&upstream("named", &format!("servers = [\"http://localhost:{port}\"]")));
    site.config.routes.push_str(&upstream("lost", "servers = [\"http://nowhere.invalid:80\"]"));
    let gateway = site.start()?;
    // Where localhost is ::1 too, that server does not answer; the other does.
    let answer = site.request("/named/x").send()?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let lost = site.request("/lost/x").send()?;
    assert_eq!((lost.status, lost.reason().as_str()), (503, "no_healthy_upstream"));
    wait_state(&gateway, "lost", "unresolved", 1.0)?;
    Ok(())
}

#[test]
fn a_slow_upload_is_no_late_answer() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "upload")?;
    let own = site.config.upstream;
    let lines =
        format!("servers = [\"http://{own}\"]\nresponse_timeout = \"2s\"\nidle_timeout = \"20s\"");
    site.config.routes.push_str(&upstream("upload", &lines));
    let _gateway = site.start()?;
    let file = site.directory.path().join("upload");
    fs::write(&file, vec![b'u'; 4 << 20])?;
    let data = format!("@{}", file.display());
    let answer = site
        .request("/upload/x")
        .option("--limit-rate")
        .option("1M")
        .option("--data-binary")
        .option(&data)
        .limit(Duration::from_secs(60))
        .send()?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()?["body_bytes"], 4 << 20);
    Ok(())
}
