//! No rule locks the operator out: management is reachable whatever is denied or banned, and who
//! the gateway itself depends on cannot be banned, in words that say why.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    binary,
    harness::{
        client::curl_exit,
        gateway::{Launch, SOON},
        netns::Namespace,
        process,
        site::{CLIENT_INTERFACE, GATEWAY, INTERFACE, Site},
    },
};

const SSH: u16 = 22;
const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
const CLIENT_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 2);
/// A server behind the gateway, a router, and friends, none of which answers here.
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 50);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);
const GIVE_UP: Duration = Duration::from_secs(1);

/// Answers every line with itself, as a management service would with more effort.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn connect(namespace: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    let stream = namespace.within(|| TcpStream::connect_timeout(&to, SOON))??;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn answers(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"who am I")?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).context("management does not answer")?;
    ensure!(answer == *b"who am I");
    Ok(())
}

fn refusal(launch: &Launch, source: &str) -> Result<String> {
    let ended = launch.ended(&["bans", "add", source])?;
    ensure!(ended.status == Some(1), "{source}: {ended:?}");
    Ok(ended.stderr)
}

#[test]
fn management_answers_although_the_whole_world_is_denied() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "lockout")?;
    site.gateway_host.add_address(INTERFACE, GATEWAY_6.into(), 64)?;
    site.client_host.add_address(CLIENT_INTERFACE, CLIENT_6.into(), 64)?;
    let gateways = [IpAddr::V4(GATEWAY), IpAddr::V6(GATEWAY_6)];
    for address in gateways {
        serve(site.gateway_host.within(|| TcpListener::bind((address, SSH)))??);
    }
    let client_host = Arc::clone(&site.client_host);
    let open = || -> Result<Vec<TcpStream>> {
        gateways.iter().map(|ip| connect(&client_host, (*ip, SSH).into())).collect()
    };
    let mut before = open()?;

    site.guard("deny = [\"0.0.0.0/0\", \"::/0\"]");
    let gateway = site.start()?;
    let refused = site.request("/public").limit(GIVE_UP).send()?;
    assert_eq!(refused.exit, curl_exit::TIMED_OUT, "everybody is denied: {refused:?}");
    gateway.wait_xdp_packets("drop", "denied", 1.0)?;
    let mut after = open()?;
    for stream in before.iter_mut().chain(&mut after) {
        answers(stream)?;
    }

    // A ban of the very address that the session comes from does not end it either.
    let launch = gateway.launch();
    launch.succeed(&["bans", "add", "10.99.0.2", "--for", "1h"])?;
    let banned = gateway.xdp_packets("drop", "banned")?;
    let refused = site.request("/public").limit(GIVE_UP).send()?;
    assert_eq!(refused.exit, curl_exit::TIMED_OUT, "{refused:?}");
    gateway.wait_xdp_packets("drop", "banned", banned + 1.0)?;
    let mut last = open()?;
    for stream in before.iter_mut().chain(&mut after).chain(&mut last) {
        answers(stream)?;
    }
    gateway.wait_xdp_packets("pass", "management", 1.0)?;
    Ok(())
}

#[test]
fn who_the_gateway_depends_on_cannot_be_banned() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "spared")?;
    site.gateway_host.add_address(INTERFACE, GATEWAY_6.into(), 64)?;
    site.gateway_host.ip(&format!("route add default via {ROUTER}"))?;
    site.config.upstream = SocketAddr::from((UPSTREAM, 9001));
    site.config.keys = "jwks_url = \"https://10.99.0.60/keys\"".to_owned();
    site.config.bans = "never = [\"198.51.100.7/32\"]".to_owned();
    site.guard("allow = [\"10.99.0.77/32\", \"203.0.113.0/28\"]");
    let gateway = site.start()?;
    let launch = gateway.launch();
    // (who, a prefix around them, why not)
    for (source, prefix, why) in [
        ("10.99.0.1", "10.99.0.0/29", "10.99.0.1/32 is an address of this host"),
        ("fd00:99::1", "fd00:99::/32", "fd00:99::1/128 is an address of this host"),
        ("127.0.0.1", "127.0.0.0/16", "127.0.0.0/8 is loopback"),
        ("::1", "::/60", "::1/128 is loopback"),
        ("10.99.0.50", "10.99.0.48/28", "10.99.0.50/32 is a server of the upstream orders"),
        ("10.99.0.60", "10.99.0.56/29", "10.99.0.60/32 is a server of the issuer corp"),
        ("10.99.0.254", "10.99.0.252/30", "10.99.0.254/32 is a router"),
        ("10.99.0.77", "10.99.0.72/29", "10.99.0.77/32 is on the list [xdp].allow"),
        ("203.0.113.5", "203.0.113.0/24", "203.0.113.0/28 is on the list [xdp].allow"),
        ("198.51.100.7", "198.51.100.0/24", "198.51.100.7/32 is on the list [bans].never"),
    ] {
        let said = refusal(launch, source)?;
        assert!(said.contains("is exempt and cannot be banned") && said.contains(why), "{said}");
        let said = refusal(launch, prefix)?;
        assert!(said.contains("has exempt addresses") && said.contains(why), "{said}");
        assert!(said.contains("smaller prefixes"), "{said}");
        let explained = launch.json(&["explain", source])?;
        let [by, because] =
            ["never_banned", "never_banned_because"].map(|key| explained[key].as_str());
        let said = format!("{} {}", by.unwrap_or_default(), because.unwrap_or_default());
        assert!(said.contains(why), "{explained}");
    }
    // Everybody, with everybody in it.
    for everybody in ["0.0.0.0/0", "::/0"] {
        let said = refusal(launch, everybody)?;
        assert!(said.contains("has exempt addresses"), "{said}");
    }
    assert_eq!(launch.json(&["bans", "list"])?, serde_json::json!([]));

    // Nor where the operator himself comes from, where that can be known.
    let banned_by = |connection: &str, source: &str| {
        let mut command = launch.command(&["bans", "add", source]);
        process::run(command.env("SSH_CONNECTION", connection))
    };
    let connection = "192.0.2.7 51000 10.99.0.1 22";
    for source in ["192.0.2.7", "192.0.2.0/24"] {
        let ended = banned_by(connection, source)?;
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("this SSH session comes from"), "{ended:?}");
    }
    assert_eq!(banned_by(connection, "192.0.2.8")?.status, Some(0));
    Ok(())
}
