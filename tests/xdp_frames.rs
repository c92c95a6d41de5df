//! Frames made octet by octet, so that each can be wrong in exactly one way.
//!
//! Built from the inside out: a payload, the IP packet around it, the Ethernet frame around that.
//! Nothing here is shared with the program or with the product's own parser. Checksums are zero;
//! nobody between the wire and the verdict looks at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (IANA), as IPv4's protocol and IPv6's next header.
pub const HOP_BY_HOP: u8 = 0;
pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const IPIP: u8 = 4;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const IPV6: u8 = 41;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const GRE: u8 = 47;
pub const ESP: u8 = 50;
pub const AUTHENTICATION: u8 = 51;
pub const ICMPV6: u8 = 58;
pub const NO_NEXT_HEADER: u8 = 59;
pub const DESTINATION: u8 = 60;
pub const SCTP: u8 = 132;
pub const MOBILITY: u8 = 135;
pub const UDP_LITE: u8 = 136;
pub const HOST_IDENTITY: u8 = 139;
pub const SHIM6: u8 = 140;

/// Ethertypes (IEEE).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q.
pub const CUSTOMER_TAG: u16 = 0x8100;
/// 802.1ad.
pub const PROVIDER_TAG: u16 = 0x88a8;

/// TCP flags (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// QUIC versions (RFC 9000 section 15, RFC 9369 section 3.1).
pub const QUIC_1: u32 = 1;
pub const QUIC_2: u32 = 0x6b33_43cf;
/// Types of long headers as version 1 numbers them (RFC 9000 section 17.2).
pub const INITIAL: u8 = 0;
pub const ZERO_RTT: u8 = 1;
pub const HANDSHAKE: u8 = 2;
pub const RETRY: u8 = 3;

/// The source port of everything.
const FROM_PORT: u16 = 12345;
/// The host that everything is sent to.
const HOST_4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const HOST_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// An Ethernet II frame without tags.
pub fn ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    tagged(&[], ethertype, packet)
}

/// One with tags, the outermost first: its kind, and priority and number of the VLAN.
pub fn tagged(tags: &[(u16, u16)], ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    for (kind, control) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(control.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

/// The frame that a packet of either family would be in.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }, packet)
}

/// An IP packet of the source's family, right in every field.
pub fn ip(source: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match source.parse().unwrap() {
        IpAddr::V4(source) => {
            let length = u16::try_from(20 + payload.len()).unwrap();
            let mut packet = vec![0x45, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(HOST_4.octets());
            packet.extend(payload);
            packet
        }
        IpAddr::V6(source) => {
            let length = u16::try_from(payload.len()).unwrap();
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(HOST_6.octets());
            packet.extend(payload);
            packet
        }
    }
}

/// An IPv4 packet with so many octets of options; the length of its header says so.
pub fn with_options(
    source: &str,
    protocol: u8,
    option: u8,
    octets: usize,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = ip(source, protocol, payload);
    packet[0] = 0x40 | (5 + octets / 4) as u8;
    packet.splice(20..20, vec![option; octets]);
    packet
}

/// An IPv4 packet with these flags and this offset, as they stand in its header.
pub fn fragment_4(source: &str, protocol: u8, field: u16, payload: &[u8]) -> Vec<u8> {
    with(ip(source, protocol, payload), 6, &field.to_be_bytes())
}

/// The octets with others put at a place.
pub fn with(mut octets: Vec<u8>, at: usize, others: &[u8]) -> Vec<u8> {
    octets[at..at + others.len()].copy_from_slice(others);
    octets
}

/// The first so many octets.
pub fn cut(mut octets: Vec<u8>, to: usize) -> Vec<u8> {
    assert!(to < octets.len(), "nothing is cut off");
    octets.truncate(to);
    octets
}

/// A TCP segment with these flags and no data.
pub fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(FROM_PORT.to_be_bytes());
    segment.extend(port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

/// A UDP datagram.
pub fn udp(port: u16, data: &[u8]) -> Vec<u8> {
    udp_of_length(port, u16::try_from(8 + data.len()).unwrap(), data)
}

/// A UDP datagram that says it has this length.
pub fn udp_of_length(port: u16, length: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(FROM_PORT.to_be_bytes());
    datagram.extend(port.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

/// The start of a QUIC packet with a long header: its type's two bits, the version, an 8-octet
/// destination connection id, no source id.
pub fn quic(kind: u8, version: u32) -> Vec<u8> {
    let mut data = vec![0xc0 | kind << 4];
    data.extend(version.to_be_bytes());
    data.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    data.resize(40, 0);
    data
}

/// The start of a QUIC packet with a short header.
pub fn quic_short() -> Vec<u8> {
    let mut data = vec![0x40, 1, 2, 3, 4, 5, 6, 7, 8];
    data.resize(40, 0);
    data
}

/// An IPv6 extension header of so many octets: what follows it, its field of length, then zeroes.
pub fn extension(next: u8, length: u8, octets: usize, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![next, length];
    header.resize(octets, 0);
    header.extend(rest);
    header
}

/// An IPv6 fragment header (RFC 8200 section 4.5): the offset in units of eight octets.
pub fn fragment_6(next: u8, offset: u16, is_more: bool, rest: &[u8]) -> Vec<u8> {
    let field = offset << 3 | u16::from(is_more);
    let mut header = vec![next, 0];
    header.extend(field.to_be_bytes());
    header.extend([0xde, 0xad, 0xbe, 0xef]);
    header.extend(rest);
    header
}

/// So many headers of destination options in front of something, and the number that names the
/// first of them.
pub fn chain(count: usize, next: u8, rest: &[u8]) -> (u8, Vec<u8>) {
    (0..count)
        .fold((next, rest.to_vec()), |(next, rest), _| (DESTINATION, extension(next, 0, 8, &rest)))
}
