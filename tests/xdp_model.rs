//! A second opinion on what a frame is, written from the standards in the most obvious way: octets
//! are split off the front of a slice, and nothing is shared with the library's parser but the
//! meaning of the words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gateway::kernel::{Service, Transport};
use gateway_ebpf::{
    Outcome, Source,
    packet::{self, Address, Parsed, Target},
};
use proptest::prelude::*;

use crate::{xdp_packets::Rules, xdp_table};

/// What a frame is.
#[derive(Debug, PartialEq)]
pub enum Read {
    /// Not IP.
    NotIp,
    /// Nothing that any host could read.
    Malformed,
    /// A packet: from whom, to what, and whether it asks for a connection.
    Packet(IpAddr, Place, bool),
}

/// What a packet is sent to.
#[derive(Debug, PartialEq)]
pub enum Place {
    Port(Transport, u16),
    /// It may be for any port.
    LaterFragment,
    /// No port is meant.
    Portless,
    /// A port is meant and not there.
    Hidden,
}

/// Splits off so many octets.
fn split(octets: &[u8], count: usize) -> Option<(&[u8], &[u8])> {
    (octets.len() >= count).then(|| octets.split_at(count))
}

fn word(octets: &[u8]) -> u16 {
    u16::from(octets[0]) * 256 + u16::from(octets[1])
}

/// Reads a frame.
pub fn read(frame: &[u8]) -> Read {
    let Some((ethernet, mut rest)) = split(frame, 14) else { return Read::Malformed };
    let mut kind = word(&ethernet[12..]);
    let mut tags = 0;
    while tags < 2 && [0x8100, 0x88a8].contains(&kind) {
        let Some((tag, behind)) = split(rest, 4) else { return Read::Malformed };
        kind = word(&tag[2..]);
        rest = behind;
        tags += 1;
    }
    let packet = match kind {
        0x0800 => read_4(rest),
        0x86dd => read_6(rest),
        _ => return Read::NotIp,
    };
    packet.unwrap_or(Read::Malformed)
}

fn read_4(packet: &[u8]) -> Option<Read> {
    let (header, _) = split(packet, 20)?;
    let (version, words) = (header[0] / 16, usize::from(header[0] % 16));
    if version != 4 || words < 5 {
        return None;
    }
    let source = IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15]));
    let offset = word(&header[6..]) % 0x2000;
    let (place, opens) = match header[9] {
        protocol @ (6 | 17) if offset == 0 => {
            read_ports(protocol, packet.get(words * 4..).unwrap_or_default())
        }
        6 | 17 => (Place::LaterFragment, false),
        _ => (Place::Portless, false),
    };
    Some(Read::Packet(source, place, opens))
}

fn read_6(packet: &[u8]) -> Option<Read> {
    let (header, rest) = split(packet, 40)?;
    if header[0] / 16 != 6 {
        return None;
    }
    let source: [u8; 16] = header[8..24].try_into().unwrap();
    let source = Ipv6Addr::from(source);
    if source.to_ipv4_mapped().is_some() {
        return None;
    }
    let (place, opens) = walk(header[6], rest, 0);
    Some(Read::Packet(IpAddr::V6(source), place, opens))
}

/// Headers that others follow: those of RFC 8200 and of the registry of extension headers.
fn is_extension(next: u8) -> bool {
    [0, 43, 44, 51, 60, 135, 139, 140].contains(&next)
}

fn walk(next: u8, rest: &[u8], walked: usize) -> (Place, bool) {
    if next == 6 || next == 17 {
        return read_ports(next, rest);
    }
    if !is_extension(next) {
        return (Place::Portless, false);
    }
    if walked == 6 || rest.len() < 4 {
        return (Place::Hidden, false);
    }
    let (following, length) = (rest[0], usize::from(rest[1]));
    if next == 44 && word(&rest[2..]) / 8 != 0 {
        let may_have_port = following == 6 || following == 17 || is_extension(following);
        return (if may_have_port { Place::LaterFragment } else { Place::Portless }, false);
    }
    let octets = match next {
        44 => 8,
        51 => 8 + 4 * length,
        _ => 8 + 8 * length,
    };
    walk(following, rest.get(octets..).unwrap_or_default(), walked + 1)
}

fn read_ports(protocol: u8, segment: &[u8]) -> (Place, bool) {
    if segment.len() < 4 {
        return (Place::Hidden, false);
    }
    let port = word(&segment[2..]);
    if protocol == 6 {
        return (Place::Port(Transport::Tcp, port), is_syn(segment));
    }
    (Place::Port(Transport::Udp, port), is_initial(segment))
}

/// SYN without ACK; what is cut before its flags is taken for one.
fn is_syn(segment: &[u8]) -> bool {
    let Some(flags) = segment.get(13) else { return true };
    flags & 0b10010 == 0b00010
}

/// A long header of a QUIC version's Initial, or of a version that is not known. Six octets are
/// looked at; where they are not there, whether there should be some.
fn is_initial(datagram: &[u8]) -> bool {
    if datagram.len() < 14 {
        return datagram.len() < 6 || word(&datagram[4..]) >= 14;
    }
    let is_long = datagram[8] >= 0x80;
    let kind = datagram[8] / 16 % 4;
    is_long
        && match datagram[9..13] {
            [0, 0, 0, 0] => false,
            [0, 0, 0, 1] => kind == 0,
            [0x6b, 0x33, 0x43, 0xcf] => kind == 1,
            _ => true,
        }
}

/// What becomes of a frame by rules without limits.
pub fn judge(rules: &Rules, frame: &[u8]) -> Outcome {
    let (address, place) = match read(frame) {
        Read::NotIp => return Outcome::NotIp,
        Read::Malformed => return Outcome::Malformed,
        Read::Packet(address, place, _) => (address, place),
    };
    match place {
        Place::Portless => return Outcome::OtherPort,
        Place::Port(transport, port) if rules.management.contains(&Service { port, transport }) => {
            return Outcome::Management;
        }
        Place::Port(_, port) if !rules.ports.contains(&port) => return Outcome::OtherPort,
        Place::Port(..) | Place::LaterFragment | Place::Hidden => {}
    }
    let is_in = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&address));
    let is_of_the_link = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => {
            address.is_unspecified() || address.is_multicast() || address.is_unicast_link_local()
        }
    };
    if is_of_the_link || is_in(&rules.exempt) {
        let would_pass = !is_of_the_link
            && place != Place::Hidden
            && !rules.banned.contains(&Source::from(address))
            && !is_in(&rules.banned_nets)
            && !is_in(&rules.deny);
        return if would_pass { Outcome::WithinLimit } else { Outcome::Exempt };
    }
    if place == Place::Hidden {
        Outcome::Malformed
    } else if rules.banned.contains(&Source::from(address)) || is_in(&rules.banned_nets) {
        Outcome::Banned
    } else if is_in(&rules.deny) {
        Outcome::Denied
    } else {
        Outcome::WithinLimit
    }
}

/// What the library makes of a frame, in this model's words.
fn library(frame: &[u8]) -> Read {
    let flow = match packet::parse(frame) {
        Parsed::NotIp => return Read::NotIp,
        Parsed::Malformed => return Read::Malformed,
        Parsed::Flow(flow) => flow,
    };
    let address = match flow.address {
        Address::V4(bits) => IpAddr::V4(bits.into()),
        Address::V6(upper, lower) => {
            IpAddr::V6((u128::from(upper) << 64 | u128::from(lower)).into())
        }
    };
    let place = match flow.target {
        Target::Tcp(port) => Place::Port(Transport::Tcp, port),
        Target::Udp(port) => Place::Port(Transport::Udp, port),
        Target::Fragment => Place::LaterFragment,
        Target::Other => Place::Portless,
        Target::Unreadable => Place::Hidden,
    };
    Read::Packet(address, place, flow.opens)
}

#[test]
fn the_library_reads_every_frame_of_the_table_as_the_model_does() {
    for frame in xdp_table::frames() {
        assert_eq!(library(&frame), read(&frame), "{frame:02x?}");
        // Wherever it is cut.
        for end in 0..frame.len().min(200) {
            assert_eq!(library(&frame[..end]), read(&frame[..end]), "{:02x?}", &frame[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_library_reads_octets_at_random_as_the_model_does(
        kind in prop::sample::select(vec![[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]]),
        first in prop_oneof![0x40u8..0x70, any::<u8>()],
        rest in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let frame = [&[2; 12][..], &kind, &[first], &rest].concat();
        prop_assert_eq!(library(&frame), read(&frame));
    }

    #[test]
    fn the_library_walks_chains_as_the_model_does(
        first in prop::sample::select(vec![0u8, 6, 17, 43, 44, 51, 58, 59, 60, 135, 139, 140]),
        headers in prop::collection::vec(
            (
                prop::sample::select(vec![0u8, 6, 17, 43, 44, 51, 58, 60, 135]),
                0u8..3,
                prop_oneof![Just([0, 0]), any::<[u8; 2]>()],
            ),
            0..10,
        ),
        cut in 54usize..220,
    ) {
        let mut packet = [&[0x60, 0, 0, 0, 0, 0, first, 64][..], &[0x20; 32]].concat();
        for (next, length, field) in headers {
            packet.extend([next, length, field[0], field[1], 0, 0, 0, 0]);
        }
        let mut frame = [&[2; 12][..], &[0x86, 0xdd], &packet, &[0x20, 0xfb, 0x20, 0xfb]].concat();
        frame.truncate(cut);
        prop_assert_eq!(library(&frame), read(&frame));
    }
}
