//! The actors themselves: what a test concludes from them is only as good as they are.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::harness::{
    bpf::{Program, XDP_DROP, XDP_PASS},
    clock::{self, uninterrupted},
    flood::{self, Flood, Plan, Prober, Sources, Transport, Wire},
    gateway::SOON,
    netns::{self, End, Namespace},
};

const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 98, 16, 0);

/// Two hosts on a cable with a program on the receiver's side.
struct Cable {
    receiver: Arc<Namespace>,
    sender: Arc<Namespace>,
    _link: crate::harness::bpf::Link,
}

fn cable(label: &str, verdict: i32) -> Result<Cable> {
    let receiver = Namespace::new(&format!("{label}-to"))?;
    let sender = Namespace::new(&format!("{label}-from"))?;
    netns::cable(
        End { namespace: &receiver, interface: "to0" },
        End { namespace: &sender, interface: "from0" },
    )?;
    receiver.add_address("to0", RECEIVER.into(), 16)?;
    sender.add_address("from0", SENDER.into(), 16)?;
    let index = receiver.interface_index("to0")?;
    let program = Program::verdict(c"verdict", verdict)?;
    let link = receiver.within(|| program.attach(index))??;
    Ok(Cable { receiver, sender, _link: link })
}

impl Cable {
    fn plan(&self, sources: Sources) -> Result<Plan> {
        let wire = Wire {
            source: self.sender.hardware_address("from0")?,
            destination: self.receiver.hardware_address("to0")?,
        };
        let from = SocketAddrV4::new(SENDER, 4000);
        let to = SocketAddrV4::new(RECEIVER, 9000);
        Ok(Plan {
            frame: flood::frame(wire, from, to, Transport::Udp),
            sources,
            interface: "from0".to_owned(),
            core: 0,
            batch: flood::BATCH,
            lasts: Duration::from_secs(5),
            packets_max: u64::MAX,
        })
    }
}

/// Every frame that the generator makes reaches the other end's program, on the generator's core.
#[test]
fn the_flood_arrives_whole() -> Result<()> {
    privileged!();
    let cable = cable("flood", XDP_DROP)?;
    let plan = cable.plan(Sources::PowerOfTwo(8))?;
    let (before, _) = cable.receiver.received_packets("to0")?;
    let flood = Flood::start(&cable.sender, Plan { packets_max: 1 << 20, ..plan })?;
    let made = clock::wait_for("the flood to end", SOON, || Ok(flood.has_ended().then_some(())))
        .and_then(|()| flood.stop())?;
    let (after, _) = cable.receiver.received_packets("to0")?;
    assert_eq!(made.packets, 1 << 20);
    assert!(after - before >= made.packets, "{} of {made:?} arrived", after - before);
    Ok(())
}

/// Addresses vary as asked, and the checksums follow: the receiver's stack takes the datagrams.
#[test]
fn random_sources_have_right_checksums() -> Result<()> {
    privileged!();
    let cable = cable("sources", XDP_PASS)?;
    let socket = cable.receiver.within(|| UdpSocket::bind((RECEIVER, 9000)))??;
    socket.set_read_timeout(Some(SOON))?;
    let flood = Flood::start(&cable.sender, cable.plan(Sources::PowerOfTwo(4))?)?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        let mut datagram = [0; 64];
        let (length, from) =
            uninterrupted(|| socket.recv_from(&mut datagram)).context("no datagram came")?;
        assert_eq!(datagram[..length], [0x55; 18]);
        let IpAddr::V4(from) = from.ip() else { panic!("not IPv4: {from}") };
        assert_eq!(from.octets()[..3], SENDER.octets()[..3]);
        seen.insert(from.octets()[3]);
    }
    assert_eq!(seen, (0..16).collect(), "each of the sixteen addresses, and no other");
    flood.stop()?;
    Ok(())
}

/// Each probe arrives, and once, however busy the machine is.
#[test]
fn probes_are_counted_one_by_one() -> Result<()> {
    privileged!();
    let cable = cable("probes", XDP_PASS)?;
    let socket = cable.receiver.within(|| UdpSocket::bind((RECEIVER, 9000)))??;
    let prober = Prober::new(&cable.sender, SENDER.into(), (RECEIVER, 9000).into())?;
    prober.send(1)?; // resolves the hardware address
    socket.set_read_timeout(Some(SOON))?;
    uninterrupted(|| socket.recv_from(&mut [0; 8]))?;
    for _ in 0..100 {
        prober.send(1)?;
        let (length, _) =
            uninterrupted(|| socket.recv_from(&mut [0; 8])).context("a probe was lost")?;
        assert_eq!(length, 5);
    }
    // Few enough for the socket's buffer.
    prober.send(20)?;
    for number in 1..=20 {
        let (length, _) = uninterrupted(|| socket.recv_from(&mut [0; 8]))
            .with_context(|| format!("{number} of 20 in a row was lost"))?;
        assert_eq!(length, 5);
    }
    socket.set_nonblocking(true)?;
    assert!(uninterrupted(|| socket.recv_from(&mut [0; 8])).is_err(), "more than were sent");
    Ok(())
}
