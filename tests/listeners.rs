//! What a reload changes while it runs: listeners come, move and go, and nobody who is connected
//! notices but those whose address is given up, who finish first.

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{
        client::{Request, curl_exit},
        clock,
        gateway::{Gateway, Launch, SOON},
        load::Target,
        site::{HOST, SERVER, Site},
    },
};

/// A second listener for the same clients.
fn second(site: &Site, name: &str, address: &str) -> String {
    let (server, authority) = (&site.config.server, site.authority.certificate());
    format!(
        "\n[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\nprotocols = [\"h2\", \"http/1.1\"]\n\
         [listener.tls]\ncertificate = {:?}\nprivate_key = {:?}\nclient_ca = {:?}\n",
        server.certificate, server.key, authority
    )
}

fn target(site: &Site, port: u16) -> Result<Target> {
    let mut server = SERVER;
    server.set_port(port);
    let authority = site.authority.certificate();
    Target::new(&site.client_host, server, HOST, &authority, &site.client)
}

fn status_at(site: &Site, port: u16) -> Result<(u16, i32)> {
    let mut server = SERVER;
    server.set_port(port);
    let authority = site.authority.certificate();
    let request = Request::new(&site.client_host, server, HOST, "/public", authority);
    let answer = request.certificate(&site.client).send()?;
    Ok((answer.status, answer.exit))
}

/// Workers listen as soon as they have heard of it.
fn wait_served(site: &Site, port: u16) -> Result<()> {
    clock::wait_for("the listener to serve", SOON, || {
        Ok((status_at(site, port)?.0 == 200).then_some(()))
    })
}

fn wait_gone(site: &Site, port: u16) -> Result<()> {
    clock::wait_for("the address to be given up", SOON, || {
        Ok((status_at(site, port)?.1 == curl_exit::COULD_NOT_CONNECT).then_some(()))
    })
}

fn site(label: &str) -> Result<(Site, Gateway, Launch)> {
    let mut site = Site::new(binary(), label)?;
    site.config.bans = "enabled = false".to_owned();
    let gateway = site.start()?;
    let launch = site.launch()?;
    Ok((site, gateway, launch))
}

#[test]
fn listeners_come_move_and_go_while_it_runs() -> Result<()> {
    privileged!();
    let (mut site, gateway, launch) = site("live")?;
    let mut edge = target(&site, 8443)?.connect()?;
    assert_eq!(edge.ask("/public", "")?, 200);
    let routes = site.config.routes.clone();

    site.config.routes = routes.clone() + &second(&site, "more", "10.99.0.1:8444");
    site.launch()?;
    assert_eq!(launch.json(&["reload"])?["generation"], 2);
    wait_served(&site, 8444)?;
    let mut more = target(&site, 8444)?.connect()?;
    assert_eq!(more.ask("/public", "")?, 200);
    clock::wait_for("it to be counted", SOON, || {
        Ok((gateway.metric("gateway_connections", &[("listener", "more")])? >= 1.0).then_some(()))
    })?;

    // Another address under the same name, and the old address under another.
    site.config.routes = routes.clone()
        + &second(&site, "less", "10.99.0.1:8444")
        + &second(&site, "more", "10.99.0.1:8445");
    site.launch()?;
    launch.json(&["reload"])?;
    wait_served(&site, 8445)?;
    wait_served(&site, 8444)?;
    assert_eq!(more.ask("/public", "")?, 200, "who is connected is answered once more");
    assert!(more.is_ended(), "and told to connect again");
    let handshakes = [("listener", "less"), ("result", "ok")];
    clock::wait_for("it to be counted", SOON, || {
        Ok((gateway.metric("gateway_tls_handshakes_total", &handshakes)? >= 1.0).then_some(()))
    })?;

    let mut moved = target(&site, 8445)?.connect()?;
    assert_eq!(moved.ask("/public", "")?, 200);
    site.config.routes = routes;
    site.launch()?;
    launch.json(&["reload"])?;
    wait_gone(&site, 8444)?;
    wait_gone(&site, 8445)?;
    assert_eq!(moved.ask("/public", "")?, 200);
    assert!(moved.is_ended());
    clock::wait_for("the metrics of what is gone to go", SOON, || {
        let (_, page) = gateway.get("/metrics")?;
        Ok((!page.contains("listener=\"more\"")).then_some(()))
    })?;
    assert_eq!(edge.ask("/public", "")?, 200, "the first listener's connection never ended");
    Ok(())
}

#[test]
fn an_address_widens_without_a_refused_connection() -> Result<()> {
    privileged!();
    let (mut site, _gateway, launch) = site("wider")?;
    for address in ["0.0.0.0:8443", "[::]:8443", "10.99.0.1:8443"] {
        site.config.listener = address.parse()?;
        site.launch()?;
        launch.json(&["reload"])?;
        for _ in 0..20 {
            assert_eq!(status_at(&site, 8443)?, (200, 0), "{address}");
        }
    }
    Ok(())
}

#[test]
fn an_address_that_is_not_to_be_had_leaves_everything() -> Result<()> {
    privileged!();
    let (mut site, gateway, launch) = site("taken")?;
    let good = site.config.routes.clone();
    let elsewhere = || std::net::TcpListener::bind("10.99.0.1:8446");
    let _taken = site.gateway_host.within(elsewhere)??;
    // The second could be bound; the third is somebody else's.
    site.config.routes =
        good + &second(&site, "more", "10.99.0.1:8444") + &second(&site, "taken", "10.99.0.1:8446");
    site.launch()?;
    let refused = launch.ended(&["reload"])?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("another process"), "{refused:?}");
    gateway.wait_metric("gateway_config_generation", &[], 1.0)?;
    assert_eq!(status_at(&site, 8443)?.0, 200);
    assert_eq!(status_at(&site, 8444)?.1, curl_exit::COULD_NOT_CONNECT, "nothing by halves");
    Ok(())
}

#[test]
fn settings_of_the_process_change_while_it_runs() -> Result<()> {
    privileged!();
    let (mut site, mut gateway, _) = site("process")?;
    let old_socket = site.config.socket.clone();
    let old_metrics = site.config.metrics;
    site.config.socket = site.directory.path().join("operators.sock");
    site.config.metrics = "127.0.0.1:9191".parse()?;
    site.config.process = "max_connections = 1\n[token_cache]\nentries = 7\n".to_owned();
    site.config.tls = "sessions = 3\n".to_owned();
    let launch = site.launch()?;
    gateway.signal(Signal::SIGHUP)?;
    clock::wait_for("the operators' new socket", SOON, || {
        Ok(launch.json(&["status"]).is_ok_and(|status| status["generation"] == 2).then_some(()))
    })?;
    assert!(!old_socket.exists(), "nobody answers there any more");
    assert!(gateway.get("/live").is_err(), "nor at {old_metrics}");
    gateway.moved(&launch);
    assert_eq!(gateway.get("/live")?.0, 200);

    let mut only = target(&site, 8443)?.connect()?;
    assert_eq!(only.ask("/public", "")?, 200);
    assert_ne!(status_at(&site, 8443)?.0, 200, "there is room for one");
    clock::wait_for("it to be counted", SOON, || {
        Ok((gateway.metric("gateway_connections_over_limit_total", &[])? >= 1.0).then_some(()))
    })?;
    assert_eq!(only.ask("/public", "")?, 200);

    // What cannot change while it runs is said by name.
    let text = site.config.to_string().replacen("workers = 1", "workers = 3", 1);
    crate::harness::gateway::write_config(&launch.config, &text)?;
    let refused = launch.ended(&["reload"])?;
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("[server].workers changed"), "{refused:?}");
    assert_eq!(only.ask("/public", "")?, 200);
    Ok(())
}
