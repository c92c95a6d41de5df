//! A daemon that is killed again and again while it is attacked: what the kernel holds goes on.
//!
//! What is promised: the program is on the interface all the time, in exactly one link; every ban
//! stays; and not one packet of a banned source gets behind the interface, whether the daemon runs,
//! is gone, or is just taking over.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{links::LinkType, loaded_links, loaded_programs};
use gateway::kernel::attachment;

use crate::{
    binary,
    harness::{
        clock::{self, uninterrupted},
        flood::{self, Flood, Plan, Sources, Transport, Wire},
        gateway::{Launch, SOON},
        netns::Namespace,
        site::{CLIENT, CLIENT_INTERFACE, GATEWAY, INTERFACE, SERVER, Site},
    },
};

const KILLS: usize = 20;
const BANNED: u8 = 71;
const PORT: u16 = 40_000;
/// Between two packets of the banned source.
const PAUSE: Duration = Duration::from_micros(500);
/// Spoofed frames at a time, and between two such floods: enough to keep the program at work, and
/// both processors for others as well.
const FLOOD_PACKETS: u64 = 1 << 16;
const FLOOD_PAUSE: Duration = Duration::from_millis(300);
/// Bans besides the one that is under attack.
const OTHERS: usize = 5;

/// Sends from the banned source, and counts, until told to stop.
fn attack(socket: &UdpSocket, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    while !stop.load(Relaxed) {
        // An error of the socket is the answer to an earlier one.
        if socket.send(b"attack").is_ok() {
            sent.fetch_add(1, Relaxed);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Sends floods of frames from 65,536 addresses, one after the other.
fn spoof(namespace: &Namespace, frame: &[u8], stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    while !stop.load(Relaxed) {
        let flood = Flood::start(
            namespace,
            Plan {
                frame: frame.to_vec(),
                sources: Sources::PowerOfTwo(16),
                interface: CLIENT_INTERFACE.to_owned(),
                core: 0,
                batch: flood::BATCH,
                lasts: Duration::from_secs(5),
                packets_max: FLOOD_PACKETS,
            },
        )?;
        clock::wait_for("a flood to end", SOON, || Ok(flood.has_ended().then_some(())))?;
        sent.fetch_add(flood.stop()?.packets, Relaxed);
        thread::sleep(FLOOD_PAUSE);
    }
    Ok(())
}

/// The program on the interface, and that one link alone holds it.
fn attached_once(namespace: &Namespace) -> Result<u32> {
    let index = namespace.interface_index(INTERFACE)?;
    let attached = namespace.within(|| attachment::attachments(index))??;
    let programs: Vec<u32> = attached.program_ids().collect();
    let [program] = programs[..] else { anyhow::bail!("attached: {programs:?}") };
    let mut links = 0;
    for link in loaded_links() {
        // One may go while they are listed.
        let Ok(link) = link else { continue };
        links += usize::from(link.link_type()? == LinkType::Xdp && link.program_id() == program);
    }
    ensure!(links == 1, "{links} links hold program {program}");
    Ok(program)
}

fn bans(launch: &Launch) -> Result<BTreeSet<String>> {
    let list = launch.json(&["bans", "list"])?;
    let list = list.as_array().context("an array")?;
    Ok(list.iter().filter_map(|ban| Some(ban["source"].as_str()?.to_owned())).collect())
}

/// Datagrams that have arrived at a socket.
fn arrived(witness: &UdpSocket) -> u64 {
    let mut buffer = [0; 64];
    std::iter::from_fn(|| uninterrupted(|| witness.recv(&mut buffer)).ok()).count() as u64
}

#[test]
fn nothing_of_the_banned_arrives_however_often_the_daemon_is_killed() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "survival")?;
    site.guard("packets = { rate = \"1000/s\", burst = 1000 }");
    let banned = site.client_address(BANNED)?;
    let from = SocketAddr::from((banned, PORT));
    let attacker = site.client_host.within(|| -> std::io::Result<_> {
        let socket = UdpSocket::bind(from)?;
        socket.connect(SERVER)?;
        Ok(socket)
    })??;
    // Hears the attacker and nobody else.
    let witness = site.gateway_host.within(|| -> std::io::Result<_> {
        let socket = UdpSocket::bind(SERVER)?;
        socket.connect(from)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })??;
    let launch = site.launch()?;
    let mut gateway = Some(launch.run_until_ready()?);
    clock::wait_for("a packet from who is not banned yet", SOON, || {
        attacker.send(b"attack")?;
        Ok((arrived(&witness) > 0).then_some(()))
    })?;
    launch.succeed(&["bans", "add", &banned.to_string(), "--for", "1h"])?;
    for other in 0..OTHERS {
        launch.succeed(&["bans", "add", &format!("198.51.100.{other}"), "--for", "1h"])?;
    }
    launch.succeed(&["bans", "add", "203.0.113.0/24", "--for", "1h"])?;
    let kept = bans(&launch)?;
    ensure!(kept.len() == OTHERS + 2, "{kept:?}");
    // What was on its way.
    attacker.send(b"attack")?;
    arrived(&witness);

    let wire = Wire {
        source: site.client_host.hardware_address(CLIENT_INTERFACE)?,
        destination: site.gateway_host.hardware_address(INTERFACE)?,
    };
    let to = SocketAddrV4::new(GATEWAY, SERVER.port());
    let frame = flood::frame(wire, SocketAddrV4::new(CLIENT, 1_234), to, Transport::Udp);
    let (stop, attacks, spoofed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut programs = BTreeSet::from([attached_once(&site.gateway_host)?]);
    thread::scope(|scope| -> Result<()> {
        let attacking = scope.spawn(|| attack(&attacker, &stop, &attacks));
        let spoofing = scope.spawn(|| spoof(&site.client_host, &frame, &stop, &spoofed));
        let killed = (0..KILLS).try_for_each(|kill| -> Result<()> {
            gateway.take().context("started below")?.kill()?;
            attached_once(&site.gateway_host).with_context(|| format!("killed, {kill}"))?;
            if kill % 2 == 1 {
                // One that dies while it starts, a little later each time.
                let starting = launch.run()?;
                clock::pause(Duration::from_millis(10 * kill as u64))?;
                starting.kill()?;
                attached_once(&site.gateway_host).with_context(|| format!("starting, {kill}"))?;
            }
            gateway = Some(launch.run_until_ready()?);
            let program = attached_once(&site.gateway_host).with_context(|| format!("{kill}"))?;
            programs.insert(program);
            ensure!(bans(&launch)? == kept, "after {kill} kills: {:?}", bans(&launch)?);
            let through = arrived(&witness);
            ensure!(through == 0, "{through} packets of the banned source, after {kill} kills");
            Ok(())
        });
        stop.store(true, Relaxed);
        for thread in [attacking.join(), spoofing.join()] {
            thread.map_err(|_panic| anyhow::anyhow!("a sender panicked"))??;
        }
        killed
    })?;
    let (attacks, spoofed) = (attacks.load(Relaxed), spoofed.load(Relaxed));
    println!("{KILLS} kills; {attacks} packets of the banned source, {spoofed} spoofed ones");
    ensure!(attacks > 1_000 && spoofed >= FLOOD_PACKETS, "{attacks} and {spoofed} show nothing");
    ensure!(programs.len() == KILLS + 1, "each daemon has a program of its own: {programs:?}");
    ensure!(arrived(&witness) == 0);

    // Only the last one's is left.
    let last = attached_once(&site.gateway_host)?;
    clock::wait_for("the programs of the dead to go", SOON, || {
        let loaded: BTreeSet<u32> = loaded_programs().flatten().map(|info| info.id()).collect();
        Ok((programs.intersection(&loaded).eq([&last])).then_some(()))
    })?;
    // And the ban is what kept them out.
    launch.succeed(&["bans", "remove", &banned.to_string()])?;
    clock::wait_for("a packet from who is banned no more", SOON, || {
        attacker.send(b"attack")?;
        Ok((arrived(&witness) > 0).then_some(()))
    })?;
    drop(gateway);
    Ok(())
}
