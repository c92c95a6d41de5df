//! Reading a frame as far as the verdict needs: who sent it, and to which port.
//!
//! Understands Ethernet with up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with
//! a bounded walk of extension headers, fragments, and the ports of TCP and UDP. Does not look
//! into tunnels, does not verify checksums or lengths that the network stack will verify anyway.

use crate::Source;

/// A frame that can be read without ever reading past its end.
///
/// Everything that the parser asks for lies at an even offset, and the kernel places frames at
/// even addresses; so sixteen bits are the unit, which the BPF machine loads in one step where
/// single octets would cost a load, a shift and an addition each.
pub trait Frame {
    /// Octets in the frame, from its Ethernet header on.
    fn bytes(&self) -> u64;

    /// The `N` pairs of octets that start `at` octets into the frame, in network byte order as
    /// they lie in memory; `None` when the frame ends before them.
    fn pairs<const N: usize>(&self, at: usize) -> Option<[u16; N]>;

    /// The frame's start, when it has so many octets.
    fn start(&self, octets: usize) -> Option<Self::Start<'_>>;

    /// What [`Frame::start`] gives.
    type Start<'a>: Start
    where
        Self: 'a;
}

/// The first octets of a frame, of which it is known how many there are: whoever reads beyond them gets
/// zeroes in user space, and is refused by the kernel's verifier there.
///
/// Machines that run BPF programs read from any address, so here numbers may begin anywhere. All are
/// as they lie in memory.
pub trait Start: Copy {
    /// Two octets.
    fn two(self, at: usize) -> u16;
    /// Four octets.
    fn four(self, at: usize) -> u32;
    /// Eight octets.
    fn eight(self, at: usize) -> u64;
}

/// User space reads frames from slices.
#[cfg(not(target_arch = "bpf"))]
impl Frame for [u8] {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn pairs<const N: usize>(&self, at: usize) -> Option<[u16; N]> {
        let octets = self.get(at..at.checked_add(N.checked_mul(2)?)?)?;
        let mut pairs = [0; N];
        for (pair, octets) in pairs.iter_mut().zip(octets.chunks_exact(2)) {
            *pair = u16::from_ne_bytes([octets[0], octets[1]]);
        }
        Some(pairs)
    }

    fn start(&self, octets: usize) -> Option<&[u8]> {
        self.get(..octets)
    }

    type Start<'a> = &'a [u8];
}

#[cfg(not(target_arch = "bpf"))]
impl Start for &[u8] {
    fn two(self, at: usize) -> u16 {
        u16::from_ne_bytes(octets(self, at))
    }

    fn four(self, at: usize) -> u32 {
        u32::from_ne_bytes(octets(self, at))
    }

    fn eight(self, at: usize) -> u64 {
        u64::from_ne_bytes(octets(self, at))
    }
}

#[cfg(not(target_arch = "bpf"))]
fn octets<const N: usize>(start: &[u8], at: usize) -> [u8; N] {
    start.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Neither IPv4 nor IPv6: ARP, PPPoE, MPLS, LLDP, or more VLAN tags than two.
    NotIp,
    /// Too short for the header it announces, or a header that no sender may send.
    Malformed,
    /// An IP packet.
    Flow(Flow),
}

/// Where an IP packet comes from and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The sender's address.
    pub address: Address,
    /// What it is sent to on this host.
    pub target: Target,
    /// Whether it asks for a new connection: TCP's SYN without ACK, or a QUIC Initial.
    pub opens: bool,
}

/// A source address, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4.
    V4(u32),
    /// IPv6: the upper and the lower 64 bits.
    V6(u64, u64),
}

/// What the packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// A later fragment of a TCP or UDP packet (or of an IPv6 packet whose inner headers only the
    /// first fragment shows): it has no port, and may be for any.
    Fragment,
    /// Another protocol: ICMP, ESP, a tunnel.
    Other,
    /// The headers end, or go on for longer than anyone sends, before the port is reached.
    Unreadable,
}

impl Address {
    /// What the address is held to.
    #[inline(always)]
    pub const fn source(self) -> Source {
        match self {
            Self::V4(address) => Source::ipv4(address),
            Self::V6(upper, _) => Source::ipv6(upper),
        }
    }

    /// Whether the address means something on the local link only: unspecified, link-local or
    /// multicast (RFC 4291 sections 2.5.2, 2.5.6 and 2.7). Neighbour discovery needs them, every
    /// host of the link shares their /64, and no router forwards them.
    #[inline(always)]
    pub const fn is_link_scoped_ipv6(self) -> bool {
        match self {
            Self::V4(_) => false,
            // What is routed lies in 2000::/3, so one look is enough for nearly all.
            Self::V6(upper, _) if upper >> 61 == 1 => false,
            Self::V6(0, 0) => true,
            Self::V6(upper, _) => upper >> 54 == 0xfe80 >> 6 || upper >> 56 == 0xff,
        }
    }
}

/// VLAN tags looked through: a customer's inside a provider's (802.1ad).
const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers looked through. RFC 8200 section 4.1 names six that may occur once
/// (and destination options twice); real traffic to a port has one or two.
const EXTENSION_HEADERS_MAX: usize = 6;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88a8;

/// Flags of TCP (RFC 9293 section 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Pairs of octets from UDP's ports to the end of a QUIC version.
const QUIC_PAIRS: usize = 7;
/// The version that means "choose one of these" (RFC 9000 section 17.2.1); servers send it.
const QUIC_NEGOTIATION: u32 = 0;
/// RFC 9000 section 15.
const QUIC_1: u32 = 1;
/// RFC 9369 section 3.1.
const QUIC_2: u32 = 0x6b33_43cf;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// Reads a frame from its Ethernet header on.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Parsed {
    match plain_ipv4(frame).or_else(|| plain_ipv6(frame)) {
        Some(flow) => Parsed::Flow(flow),
        None => parse_any(frame),
    }
}

/// Octets from the start to the end of a TCP header's flags, or of a QUIC version, where there is no
/// VLAN tag and no option in the way.
const PLAIN_IPV4_OCTETS: usize = 48;
const PLAIN_IPV6_OCTETS: usize = 68;

/// What nearly every frame is: no tags, no options, no later fragment. Everything lies in a fixed
/// place then, and a few comparisons of several octets at once are enough. [`parse_any`] comes to the
/// same.
#[inline(always)]
pub fn plain_ipv4<F: Frame + ?Sized>(frame: &F) -> Option<Flow> {
    let start = frame.start(PLAIN_IPV4_OCTETS)?;
    // The type of what follows; version and length of the header.
    if start.four(12) & number([0xff, 0xff, 0xff, 0]) != number([8, 0, 0x45, 0]) {
        return None;
    }
    // The fragment's place, and the protocol.
    let (target, opens) = match start.four(20) & number([0x1f, 0xff, 0, 0xff]) {
        PLAIN_UDP => plain_udp(start, 34),
        PLAIN_TCP => plain_tcp(start, 34),
        _ => return None,
    };
    Some(Flow { address: Address::V4(u32::from_be(start.four(26))), target, opens })
}

const PLAIN_UDP: u32 = number([0, 0, 0, UDP]);
const PLAIN_TCP: u32 = number([0, 0, 0, TCP]);

/// The same of IPv6, where no extension header is in the way.
#[inline(always)]
pub fn plain_ipv6<F: Frame + ?Sized>(frame: &F) -> Option<Flow> {
    let start = frame.start(PLAIN_IPV6_OCTETS)?;
    if start.four(12) & number([0xff, 0xff, 0xf0, 0]) != number([0x86, 0xdd, 0x60, 0]) {
        return None;
    }
    let upper_half = u64::from_be(start.eight(22));
    // The unspecified address, and what is no sender's.
    if upper_half == 0 {
        return None;
    }
    let (target, opens) = match upper(start.two(20)) {
        UDP => plain_udp(start, 54),
        TCP => plain_tcp(start, 54),
        _ => return None,
    };
    let address = Address::V6(upper_half, u64::from_be(start.eight(30)));
    Some(Flow { address, target, opens })
}

/// A TCP header that begins there.
#[inline(always)]
fn plain_tcp<S: Start>(start: S, at: usize) -> (Target, bool) {
    let flags = lower(start.two(at + 12));
    (Target::Tcp(u16::from_be(start.two(at + 2))), flags & (SYN | ACK) == SYN)
}

/// A UDP header that begins there.
#[inline(always)]
fn plain_udp<S: Start>(start: S, at: usize) -> (Target, bool) {
    let target = Target::Udp(u16::from_be(start.two(at + 2)));
    let first = upper(start.two(at + 8));
    // Only of a long header does the version matter.
    if first & 0x80 == 0 {
        return (target, false);
    }
    (target, is_initial(first, u32::from_be(start.four(at + 9))))
}

/// Four octets as they lie in memory.
const fn number(octets: [u8; 4]) -> u32 {
    u32::from_ne_bytes(octets)
}

/// Any frame, one header after the other.
#[inline(always)]
pub fn parse_any<F: Frame + ?Sized>(frame: &F) -> Parsed {
    let Some(ethernet) = frame.pairs::<7>(0) else { return Parsed::Malformed };
    let mut ethertype = u16::from_be(ethernet[6]);
    let mut at = 14;
    for _ in 0..VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_PROVIDER_VLAN {
            break;
        }
        let Some(tag) = frame.pairs::<2>(at) else { return Parsed::Malformed };
        ethertype = u16::from_be(tag[1]);
        at += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, at),
        ETHERTYPE_IPV6 => ipv6(frame, at),
        _ => Parsed::NotIp,
    }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, at: usize) -> Parsed {
    let Some(header) = frame.pairs::<10>(at) else { return Parsed::Malformed };
    let version_and_length = upper(header[0]);
    let header_bytes = (version_and_length & 0x0f) as usize * 4;
    if version_and_length >> 4 != 4 || header_bytes < 20 {
        return Parsed::Malformed;
    }
    let protocol = lower(header[4]);
    let is_later_fragment = u16::from_be(header[3]) & 0x1fff != 0;
    let inner = match protocol {
        TCP | UDP if is_later_fragment => Inner::Without(Target::Fragment),
        TCP | UDP => Inner::Transport(protocol, at + header_bytes),
        _ => Inner::Without(Target::Other),
    };
    let address = (u16::from_be(header[6]) as u32) << 16 | u16::from_be(header[7]) as u32;
    flow(frame, Address::V4(address), inner)
}

/// RFC 8200 section 3.
#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, at: usize) -> Parsed {
    let Some(header) = frame.pairs::<20>(at) else { return Parsed::Malformed };
    if upper(header[0]) >> 4 != 6 {
        return Parsed::Malformed;
    }
    let source_upper = half([header[4], header[5], header[6], header[7]]);
    let source_lower = half([header[8], header[9], header[10], header[11]]);
    // An IPv4-mapped address is a notation of the socket interface and never a sender's; Linux
    // drops such packets too (since 5.1), and so an IPv4 rule cannot be borrowed through IPv6.
    if source_upper == 0 && source_lower >> 32 == 0xffff {
        return Parsed::Malformed;
    }
    let inner = ipv6_inner(frame, at + 40, upper(header[3]));
    flow(frame, Address::V6(source_upper, source_lower), inner)
}

/// What lies behind an IP header.
enum Inner {
    /// TCP or UDP, by its number, at this offset.
    Transport(u8, usize),
    /// Nothing that shows a port.
    Without(Target),
}

/// Walks the extension headers (RFC 8200 section 4) to the port.
#[inline(always)]
fn ipv6_inner<F: Frame + ?Sized>(frame: &F, start: usize, first: u8) -> Inner {
    let mut at = start;
    let mut next = first;
    for _ in 0..EXTENSION_HEADERS_MAX {
        match next {
            TCP | UDP => return Inner::Transport(next, at),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT | MOBILITY
            | HOST_IDENTITY | SHIM6 => {}
            _ => return Inner::Without(Target::Other),
        }
        let Some(header) = frame.pairs::<2>(at) else {
            return Inner::Without(Target::Unreadable);
        };
        let length = lower(header[0]) as usize;
        let is_later_fragment = next == FRAGMENT && u16::from_be(header[1]) & 0xfff8 != 0;
        // The unit is that of the header at hand, not of the one it names: four octets for the
        // authentication header (RFC 4302 section 2.2), eight for the others, and the fragment
        // header has no length field at all.
        at += match next {
            FRAGMENT => 8,
            AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        next = upper(header[0]);
        if is_later_fragment {
            return Inner::Without(match next {
                TCP | UDP | HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION
                | FRAGMENT | MOBILITY | HOST_IDENTITY | SHIM6 => Target::Fragment,
                _ => Target::Other,
            });
        }
    }
    match next {
        TCP | UDP => Inner::Transport(next, at),
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT | MOBILITY
        | HOST_IDENTITY | SHIM6 => Inner::Without(Target::Unreadable),
        _ => Inner::Without(Target::Other),
    }
}

/// The destination port, which TCP (RFC 9293 section 3.1) and UDP (RFC 768) keep in one place, and
/// whether a connection is asked for.
#[inline(always)]
fn flow<F: Frame + ?Sized>(frame: &F, address: Address, inner: Inner) -> Parsed {
    let (target, opens) = match inner {
        Inner::Without(target) => (target, false),
        Inner::Transport(protocol, at) => match frame.pairs::<2>(at) {
            None => (Target::Unreadable, false),
            Some(ports) if protocol == TCP => (Target::Tcp(u16::from_be(ports[1])), syn(frame, at)),
            Some(ports) => (Target::Udp(u16::from_be(ports[1])), initial(frame, at)),
        },
    };
    Parsed::Flow(Flow { address, target, opens })
}

/// Whether a TCP segment asks for a connection. One that is cut before its flags does: a fragment
/// that small is made to hide them (RFC 1858 section 3).
#[inline(always)]
fn syn<F: Frame + ?Sized>(frame: &F, at: usize) -> bool {
    match frame.pairs::<1>(at + 12) {
        Some(pair) => lower(pair[0]) & (SYN | ACK) == SYN,
        None => true,
    }
}

/// Whether a UDP datagram is a QUIC Initial (RFC 9000 section 17.2.2). Of a version that nobody
/// knows every long header counts, because a server answers each with the versions it has (RFC
/// 8999 section 6). A datagram that says it is longer than the frame hides its start.
#[inline(always)]
fn initial<F: Frame + ?Sized>(frame: &F, at: usize) -> bool {
    let Some(start) = frame.pairs::<QUIC_PAIRS>(at) else {
        return match frame.pairs::<3>(at) {
            Some(start) => u16::from_be(start[2]) >= 2 * QUIC_PAIRS as u16,
            None => true,
        };
    };
    let version = (lower(start[4]) as u32) << 24
        | (u16::from_be(start[5]) as u32) << 8
        | upper(start[6]) as u32;
    is_initial(upper(start[4]), version)
}

/// Whether a datagram that begins with this octet and, behind it, this version is a QUIC Initial.
#[inline(always)]
const fn is_initial(first: u8, version: u32) -> bool {
    if first & 0x80 == 0 {
        return false;
    }
    let kind = first >> 4 & 3;
    match version {
        QUIC_NEGOTIATION => false,
        QUIC_1 => kind == 0,
        QUIC_2 => kind == 1,
        _ => true,
    }
}

/// The first octet of a pair in network order.
#[inline(always)]
const fn upper(pair: u16) -> u8 {
    (u16::from_be(pair) >> 8) as u8
}

/// The second octet of a pair in network order.
#[inline(always)]
const fn lower(pair: u16) -> u8 {
    u16::from_be(pair) as u8
}

#[inline(always)]
const fn half(pairs: [u16; 4]) -> u64 {
    (u16::from_be(pairs[0]) as u64) << 48
        | (u16::from_be(pairs[1]) as u64) << 32
        | (u16::from_be(pairs[2]) as u64) << 16
        | u16::from_be(pairs[3]) as u64
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    const V4: Address = Address::V4(0xc000_0207);
    const V6: Address = Address::V6(0x2001_0db8_0001_0002, 5);

    /// Ethernet header and VLAN tags, then `packet`.
    fn ethernet(tags: &[u16], ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    fn ipv4_packet(header_words: u8, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x40 | header_words, 0, 0, 0, 0, 0];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1]);
        packet.resize((header_words as usize * 4).max(20), 1);
        packet.extend(payload);
        packet
    }

    fn ipv6_packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend(payload);
        packet
    }

    /// An extension header of `units` further lengths, followed by `payload`.
    fn extension(next: u8, length: u8, bytes: usize, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![next, length];
        header.resize(bytes, 0);
        header.extend(payload);
        header
    }

    /// What a frame turned out to be, but for whether it opens a connection.
    #[derive(Debug, PartialEq)]
    enum Told {
        NotIp,
        Malformed,
        Flow(Address, Target),
    }

    const PORTS: [u8; 4] = [0x30, 0x39, 0x20, 0xfb]; // 12345 → 8443

    #[test]
    fn finds_the_sender_and_the_port() {
        let tell = |frame: &[u8]| match parse(frame) {
            Parsed::Flow(flow) => Told::Flow(flow.address, flow.target),
            Parsed::NotIp => Told::NotIp,
            Parsed::Malformed => Told::Malformed,
        };
        let v4 = |target| Told::Flow(V4, target);
        let v6 = |target| Told::Flow(V6, target);
        let tcp4 = ipv4_packet(5, 6, 0, &PORTS);
        let options = |count: usize| {
            (0..count).fold((6, PORTS.to_vec()), |(next, payload), _| {
                (60, extension(next, 0, 8, &payload))
            })
        };
        let chained = |count| {
            let (next, payload) = options(count);
            ethernet(&[], 0x86dd, &ipv6_packet(next, &payload))
        };
        let ipv6 = |next, payload: &[u8]| ethernet(&[], 0x86dd, &ipv6_packet(next, payload));
        let ipv4 = |packet: &[u8]| ethernet(&[], 0x0800, packet);
        for (what, frame, parsed) in [
            ("TCP over IPv4", ipv4(&tcp4), v4(Target::Tcp(8443))),
            ("UDP over IPv4", ipv4(&ipv4_packet(5, 17, 0, &PORTS)), v4(Target::Udp(8443))),
            ("one tag", ethernet(&[0x8100], 0x0800, &tcp4), v4(Target::Tcp(8443))),
            ("two tags", ethernet(&[0x88a8, 0x8100], 0x0800, &tcp4), v4(Target::Tcp(8443))),
            ("three tags", ethernet(&[0x8100; 3], 0x0800, &tcp4), Told::NotIp),
            ("IPv4 options", ipv4(&ipv4_packet(15, 6, 0, &PORTS)), v4(Target::Tcp(8443))),
            ("IPv4 header too short", ipv4(&ipv4_packet(4, 6, 0, &PORTS)), Told::Malformed),
            ("IPv4 type, version 6", ipv4(&ipv6_packet(6, &PORTS)), Told::Malformed),
            ("IPv4 cut", ipv4(&tcp4[..19]), Told::Malformed),
            ("first fragment", ipv4(&ipv4_packet(5, 17, 0x2000, &PORTS)), v4(Target::Udp(8443))),
            ("later fragment", ipv4(&ipv4_packet(5, 17, 0x2001, &PORTS)), v4(Target::Fragment)),
            ("last fragment", ipv4(&ipv4_packet(5, 6, 0x00b9, &PORTS)), v4(Target::Fragment)),
            ("ICMP's later fragment", ipv4(&ipv4_packet(5, 1, 1, &PORTS)), v4(Target::Other)),
            ("no room for ports", ipv4(&ipv4_packet(5, 6, 0, &[1, 2, 3])), v4(Target::Unreadable)),
            ("options past the end", ipv4(&tcp4_cut(15)), v4(Target::Unreadable)),
            ("ICMP", ipv4(&ipv4_packet(5, 1, 0, &PORTS)), v4(Target::Other)),
            ("TCP over IPv6", ipv6(6, &PORTS), v6(Target::Tcp(8443))),
            ("UDP over IPv6", ipv6(17, &PORTS), v6(Target::Udp(8443))),
            ("ICMPv6", ipv6(58, &PORTS), v6(Target::Other)),
            ("no next header", ipv6(59, &[]), v6(Target::Other)),
            ("ESP", ipv6(50, &PORTS), v6(Target::Other)),
            ("IPv6 cut", ethernet(&[], 0x86dd, &ipv6_packet(6, &[])[..39]), Told::Malformed),
            ("IPv6 type, version 4", ethernet(&[], 0x86dd, &[0x45; 60]), Told::Malformed),
            ("1 extension header", chained(1), v6(Target::Tcp(8443))),
            ("6 extension headers", chained(6), v6(Target::Tcp(8443))),
            ("7 extension headers", chained(7), v6(Target::Unreadable)),
            (
                "a long extension header",
                ipv6(0, &extension(6, 255, 2048, &PORTS)),
                v6(Target::Tcp(8443)),
            ),
            (
                "one that ends too early",
                ipv6(0, &extension(6, 255, 2047, &[])),
                v6(Target::Unreadable),
            ),
            (
                "authentication header in its own unit",
                ipv6(51, &extension(6, 4, 24, &PORTS)),
                v6(Target::Tcp(8443)),
            ),
            (
                "a header in its own unit although it names an authentication header",
                ipv6(60, &extension(51, 0, 8, &extension(17, 1, 12, &PORTS))),
                v6(Target::Udp(8443)),
            ),
            (
                "IPv6 first fragment",
                ipv6(44, &[&[17, 0xff, 0, 1, 0, 0, 0, 9][..], &PORTS].concat()),
                v6(Target::Udp(8443)),
            ),
            ("IPv6 later fragment", ipv6(44, &[17, 0, 0, 8, 0, 0, 0, 9]), v6(Target::Fragment)),
            ("of a chain", ipv6(44, &[60, 0, 0, 8, 0, 0, 0, 9]), v6(Target::Fragment)),
            ("of ICMPv6", ipv6(44, &[58, 0, 0, 8, 0, 0, 0, 9]), v6(Target::Other)),
            ("extension cut", ipv6(60, &[6, 0, 0]), v6(Target::Unreadable)),
            ("ARP", ethernet(&[], 0x0806, &[0; 46]), Told::NotIp),
            ("PPPoE", ethernet(&[], 0x8864, &tcp4), Told::NotIp),
            ("802.3 length", ethernet(&[], 0x0026, &[0; 46]), Told::NotIp),
            ("half a tag", ethernet(&[0x8100], 0x0800, &[])[..17].to_vec(), Told::Malformed),
            ("nothing", Vec::new(), Told::Malformed),
        ] {
            assert_eq!(tell(&frame), parsed, "{what}");
        }
    }

    fn tcp4_cut(header_words: u8) -> Vec<u8> {
        ipv4_packet(header_words, 6, 0, &[])[..40].to_vec()
    }

    #[test]
    fn knows_who_asks_for_a_connection() {
        let tcp = |flags: u8| [&PORTS[..], &[0; 8], &[0x50, flags, 0, 0, 0, 0, 0, 0]].concat();
        let udp =
            |length: u16, data: &[u8]| [&PORTS[..], &length.to_be_bytes(), &[0, 0], data].concat();
        let quic = |first: u8, version: u32| {
            udp(1208, &[&[first][..], &version.to_be_bytes(), &[8; 20]].concat())
        };
        for (what, protocol, payload, opens) in [
            ("SYN", 6, tcp(0x02), true),
            ("SYN with ECN", 6, tcp(0xc2), true),
            ("SYN, ACK", 6, tcp(0x12), false),
            ("ACK", 6, tcp(0x10), false),
            ("RST", 6, tcp(0x04), false),
            ("SYN, FIN", 6, tcp(0x03), true),
            ("cut before the flags", 6, tcp(0x10)[..13].to_vec(), true),
            ("cut after the flags", 6, tcp(0x10)[..14].to_vec(), false),
            ("Initial", 17, quic(0xc0, 1), true),
            ("Initial, protected bits", 17, quic(0xcf, 1), true),
            ("0-RTT", 17, quic(0xd0, 1), false),
            ("Handshake", 17, quic(0xe0, 1), false),
            ("Retry", 17, quic(0xf0, 1), false),
            ("Initial of version 2", 17, quic(0xd0, 0x6b33_43cf), true),
            ("Retry of version 2", 17, quic(0xc0, 0x6b33_43cf), false),
            ("a version nobody knows", 17, quic(0xe0, 0x0a0a_0a0a), true),
            ("version negotiation", 17, quic(0xc0, 0), false),
            ("a short header", 17, quic(0x40, 1), false),
            ("a short datagram", 17, udp(10, &[0xc0, 0]), false),
            ("one whose start is in another fragment", 17, udp(1208, &[]), true),
            ("cut before its length", 17, PORTS.to_vec(), true),
        ] {
            for frame in [
                ethernet(&[], 0x0800, &ipv4_packet(5, protocol, 0, &payload)),
                ethernet(&[0x8100], 0x0800, &ipv4_packet(9, protocol, 0, &payload)),
                ethernet(&[], 0x86dd, &ipv6_packet(protocol, &payload)),
                ethernet(&[], 0x86dd, &ipv6_packet(60, &extension(protocol, 0, 8, &payload))),
            ] {
                let Parsed::Flow(flow) = parse(frame.as_slice()) else { panic!("{what}") };
                assert_eq!(flow.opens, opens, "{what}");
            }
        }
        let later = ethernet(&[], 0x0800, &ipv4_packet(5, 6, 1, &tcp(0x02)));
        assert!(matches!(parse(later.as_slice()), Parsed::Flow(Flow { opens: false, .. })));
    }

    #[test]
    fn an_ipv4_mapped_sender_is_no_sender() {
        let mut packet = ipv6_packet(6, &PORTS);
        packet[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(parse(ethernet(&[], 0x86dd, &packet).as_slice()), Parsed::Malformed);
    }

    #[test]
    fn knows_the_addresses_of_the_link() {
        for (upper, lower, is_link_scoped) in [
            (0, 0, true),
            (0, 1, false),
            (0xfe80 << 48, 1, true),
            (0xfebf << 48, 1, true),
            (0xfec0 << 48, 1, false),
            (0xff02 << 48, 1, true),
            (0x2001_0db8 << 32, 1, false),
            (0xfd00 << 48, 1, false),
        ] {
            let address = Address::V6(upper, lower);
            assert_eq!(address.is_link_scoped_ipv6(), is_link_scoped, "{address:x?}");
        }
        assert!(!Address::V4(0xa9fe_0101).is_link_scoped_ipv6());
    }

    proptest! {
        /// The short way comes to the same as the long one wherever it comes to anything.
        #[test]
        fn a_plain_frame_is_read_as_any_other(
            is_ipv6 in any::<bool>(),
            protocol in prop::sample::select(std::vec![6u8, 17, 1, 58, 44, 0]),
            payload in prop::collection::vec(any::<u8>(), 0..40),
            flips in prop::collection::vec((12usize..60, any::<u8>()), 0..3),
        ) {
            let mut frame = if is_ipv6 {
                ethernet(&[], 0x86dd, &ipv6_packet(protocol, &payload))
            } else {
                ethernet(&[], 0x0800, &ipv4_packet(5, protocol, 0, &payload))
            };
            for (at, octet) in flips {
                if let Some(place) = frame.get_mut(at) {
                    *place = octet;
                }
            }
            let frame = frame.as_slice();
            if let Some(flow) = plain_ipv4(frame).or_else(|| plain_ipv6(frame)) {
                prop_assert_eq!(parse_any(frame), Parsed::Flow(flow));
            }
        }

        #[test]
        fn reads_anything_without_panic(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(frame.as_slice());
        }

        /// Nearly valid frames go deeper than random ones.
        #[test]
        fn reads_any_chain_of_headers(
            first in any::<u8>(),
            headers in prop::collection::vec((0u8..=140, 0u8..4), 0..9),
            cut in 0usize..200,
        ) {
            let payload: Vec<u8> =
                headers.iter().flat_map(|&(next, length)| extension(next, length, 8, &[])).collect();
            let frame = ethernet(&[], 0x86dd, &ipv6_packet(first, &payload));
            let cut = &frame[..cut.min(frame.len())];
            let parsed = parse(cut);
            if let Parsed::Flow(flow) = parsed {
                prop_assert_eq!(flow.address, V6);
                // Whatever was read stays the same when more octets follow.
                if flow.target != Target::Unreadable {
                    let Parsed::Flow(whole) = parse(frame.as_slice()) else { panic!("a flow") };
                    prop_assert_eq!(whole.target, flow.target);
                }
            }
        }
    }
}
