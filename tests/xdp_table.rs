//! The table of frames: what each is there for, and what must become of it.
//!
//! Every outcome is written by hand, from what the rules promise and not from what a program says.
//! It must be the library's verdict on the frame and the kernel's, by the action and by the counter
//! that moved; enforcing and observing; also on old kernels, where `cargo xtask vm-test` runs this.

use std::collections::HashMap;

use Outcome::{
    Banned, Denied, Exempt, Malformed, Management, NotIp, OtherPort, OverBytes, OverConnections,
    OverLimit, OverNewSources, WithinLimit,
};
use gateway_ebpf::{Outcome, abi, bucket::Limit};

use crate::{
    xdp_frames::*,
    xdp_packets::{LONG_NS, Loaded, Oracle, Rules, XDP_DROP, XDP_PASS, may_load_programs, rules},
};

/// A port of each class: listened on, the operator's, and of something else.
const GUARDED: u16 = 8443;
const OPERATORS: u16 = 22;
const OTHER: u16 = 80;
/// Somebody with no history, and somebody banned ([`rules`]), of either family.
const SOMEBODY: &str = "192.0.2.1";
const BANNED: &str = "192.0.2.66";
const SOMEBODY_6: &str = "2001:db8:5::1";
const BANNED_6: &str = "2001:db8:66::1";
/// Of the shortest frame, without its check sequence.
const FRAME_OCTETS_MIN: usize = 60;

/// One frame.
struct Row {
    /// Why it is in the table.
    why: String,
    /// What is sent.
    frame: Vec<u8>,
    /// How often.
    times: u32,
    /// What becomes of it, each time.
    expected: Outcome,
}

fn row(why: &str, frame: Vec<u8>, expected: Outcome) -> Row {
    Row { why: why.to_owned(), frame, times: 1, expected }
}

fn rows(why: &str, times: u32, frame: Vec<u8>, expected: Outcome) -> Row {
    Row { times, ..row(why, frame, expected) }
}

/// The same frame to a guarded port, to the operator's, to another.
fn three(why: &str, to: impl Fn(u16) -> Vec<u8>, expected: [Outcome; 3]) -> [Row; 3] {
    let classes = [("guarded", GUARDED), ("management", OPERATORS), ("other", OTHER)];
    let mut expected = expected.into_iter();
    classes.map(|(class, port)| {
        row(&format!("{why}, {class}"), to(port), expected.next().unwrap_or(NotIp))
    })
}

/// What a TCP segment meets that the rules have nothing against.
const ORDINARY: [Outcome; 3] = [WithinLimit, Management, OtherPort];

fn acknowledgement(source: &str) -> Vec<u8> {
    ip(source, TCP, &tcp(GUARDED, ACK))
}

/// Ethernet and its tags.
fn link() -> Vec<Row> {
    let packet = |port| ip(SOMEBODY, TCP, &tcp(port, ACK));
    let ours = packet(GUARDED);
    let under = |tags: &[(u16, u16)]| tagged(tags, ETHERTYPE_IPV4, &ours);
    let other = |ethertype| ethernet(ethertype, &ours);
    let (customer, provider) = ((CUSTOMER_TAG, 7), (PROVIDER_TAG, 100));
    let mut table = Vec::new();
    table.extend(three("TCP without a tag", |port| frame(&packet(port)), ORDINARY));
    table.extend(three(
        "UDP without a tag: management is a service of one transport",
        |port| frame(&ip(SOMEBODY, UDP, &udp(port, &[0; 20]))),
        [WithinLimit, OtherPort, OtherPort],
    ));
    table.extend(three(
        "a VLAN's tag, as a trunk delivers it",
        |port| tagged(&[customer], ETHERTYPE_IPV4, &packet(port)),
        ORDINARY,
    ));
    table.extend(three(
        "a customer's tag in a provider's (802.1ad)",
        |port| tagged(&[provider, customer], ETHERTYPE_IPV4, &packet(port)),
        ORDINARY,
    ));
    let banned = acknowledgement(BANNED);
    table.extend([
        row("a priority tag: VLAN 0", under(&[(CUSTOMER_TAG, 7 << 13)]), WithinLimit),
        row("VLAN 4095, which is reserved", under(&[(CUSTOMER_TAG, 4095)]), WithinLimit),
        row("a tag that says: drop me first", under(&[(CUSTOMER_TAG, 1 << 12 | 7)]), WithinLimit),
        row("tags stacked in the old way", under(&[customer, customer]), WithinLimit),
        row("tags in the wrong order", under(&[customer, provider]), WithinLimit),
        row("a provider's tag alone", under(&[provider]), WithinLimit),
        row("three tags, which no network has", under(&[provider, customer, customer]), NotIp),
        row("four tags", under(&[customer; 4]), NotIp),
        row("a tag of before the standard, 9100", under(&[(0x9100, 7)]), NotIp),
        row("a tag of before the standard, 9200", under(&[(0x9200, 7)]), NotIp),
        row("a tag that is cut before its end", cut(under(&[customer]), 17), Malformed),
        row("a tag that is cut in its middle", cut(under(&[customer]), 16), Malformed),
        row("a tag of which nothing came", cut(under(&[customer]), 14), Malformed),
        row("a second tag that is cut", cut(under(&[provider, customer]), 21), Malformed),
        row("a second tag that did not come", cut(under(&[provider, customer]), 18), Malformed),
        row("tags, and no packet", cut(under(&[provider, customer]), 22), Malformed),
        row(
            "IPv6 in a VLAN",
            tagged(&[customer], ETHERTYPE_IPV6, &acknowledgement(SOMEBODY_6)),
            WithinLimit,
        ),
        row(
            "IPv6 in a customer's VLAN in a provider's",
            tagged(&[provider, customer], ETHERTYPE_IPV6, &acknowledgement(SOMEBODY_6)),
            WithinLimit,
        ),
        row("ARP in a VLAN", tagged(&[customer], ETHERTYPE_ARP, &[0; 46]), NotIp),
        row("a ban holds in a VLAN", tagged(&[customer], ETHERTYPE_IPV4, &banned), Banned),
        row(
            "a ban holds in a provider's VLAN",
            tagged(&[provider, customer], ETHERTYPE_IPV4, &banned),
            Banned,
        ),
        row(
            "a banned /64 in a VLAN",
            tagged(&[customer], ETHERTYPE_IPV6, &acknowledgement(BANNED_6)),
            Banned,
        ),
        row("ARP, without which a host is not found", ethernet(ETHERTYPE_ARP, &[0; 46]), NotIp),
        row(
            "ARP for a banned address: the ban is of its packets",
            ethernet(ETHERTYPE_ARP, &with(vec![0; 46], 14, &[192, 0, 2, 66])),
            NotIp,
        ),
        row("ARP backwards", other(0x8035), NotIp),
        row("LLDP, a switch naming itself", other(0x88cc), NotIp),
        row("PPPoE discovery", other(0x8863), NotIp),
        row("a PPPoE session, even with IPv4 in it", other(0x8864), NotIp),
        row("MPLS", other(0x8847), NotIp),
        row("MPLS to several", other(0x8848), NotIp),
        row("MACsec: nothing can be read", other(0x88e5), NotIp),
        row("802.1X", other(0x888e), NotIp),
        row("the clock protocol (PTP)", other(0x88f7), NotIp),
        row("IPX", other(0x8137), NotIp),
        row("the loopback test", other(0x9000), NotIp),
        row("slow protocols: LACP", other(0x8809), NotIp),
        row("an 802.3 length: spanning tree", ethernet(0x0026, &[0x42; 46]), NotIp),
        row("the largest 802.3 length", other(0x05dc), NotIp),
        row("the smallest Ethertype", other(0x0600), NotIp),
        row("Ethertype 0", other(0), NotIp),
        row("the last Ethertype", other(0xffff), NotIp),
        row(
            "IPv4 by SNAP, which no host here speaks",
            ethernet(0x003c, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &ours].concat()),
            NotIp,
        ),
        row("to everybody on the link", with(other(0x0800), 0, &[0xff; 6]), WithinLimit),
        row("to a group on the link", with(other(0x0800), 0, &[1, 0, 0x5e, 0, 0, 1]), WithinLimit),
        row("from and to the same card", with(other(0x0800), 0, &[2; 12]), WithinLimit),
        row("an IPv4 frame without a packet", ethernet(ETHERTYPE_IPV4, &[]), Malformed),
        row("an IPv6 frame without a packet", ethernet(ETHERTYPE_IPV6, &[]), Malformed),
        row("an ARP frame without a packet", ethernet(ETHERTYPE_ARP, &[]), NotIp),
    ]);
    table
}

/// IPv4's header.
fn ipv4() -> Vec<Row> {
    let ours = acknowledgement(SOMEBODY);
    let but = |at, octets: &[u8]| frame(&with(ours.clone(), at, octets));
    let first = |octet| ethernet(ETHERTYPE_IPV4, &with(ours.clone(), 0, &[octet]));
    let ends = |at| ethernet(ETHERTYPE_IPV4, &ours[..at]);
    let from = |source| frame(&acknowledgement(source));
    let options =
        |kind, octets| frame(&with_options(SOMEBODY, TCP, kind, octets, &tcp(GUARDED, ACK)));
    let mut table = Vec::new();
    table.extend(three(
        "as many options as fit in front of the port",
        |port| frame(&with_options(SOMEBODY, TCP, 1, 40, &tcp(port, ACK))),
        ORDINARY,
    ));
    for (why, words) in [
        ("a header of no words", 0),
        ("a header of one word", 1),
        ("a header of two words", 2),
        ("a header of three words: the ports would be its addresses", 3),
        ("a header of four words: shorter than a header", 4),
    ] {
        table.push(row(why, first(0x40 | words), Malformed));
    }
    table.extend([
        row("version 6 under IPv4's type", first(0x65), Malformed),
        row("version 0", first(0x05), Malformed),
        row("version 5", first(0x55), Malformed),
        row("version 15", first(0xf5), Malformed),
        row(
            "a whole IPv6 packet under IPv4's type",
            ethernet(ETHERTYPE_IPV4, &acknowledgement(SOMEBODY_6)),
            Malformed,
        ),
        row("one word of padding for options", options(1, 4), WithinLimit),
        row("an end of options at their start", options(0, 4), WithinLimit),
        row("record route", options(7, 12), WithinLimit),
        row("timestamps", options(68, 12), WithinLimit),
        row("a loose source route", options(131, 12), WithinLimit),
        row("a strict source route", options(137, 12), WithinLimit),
        row("router alert", options(148, 4), WithinLimit),
        row("an option that nobody knows", options(255, 4), WithinLimit),
        row(
            "options do not hide a ban",
            frame(&with_options(BANNED, TCP, 131, 40, &tcp(GUARDED, ACK))),
            Banned,
        ),
        row(
            "options that reach past the frame: no port is read beyond its end",
            first(0x4f),
            Malformed,
        ),
        row(
            "the same of ICMP, which has no port to look for",
            ethernet(ETHERTYPE_IPV4, &with(ip(SOMEBODY, ICMP, &[8, 0]), 0, &[0x4f])),
            OtherPort,
        ),
        row(
            "options that end exactly with the frame",
            ethernet(ETHERTYPE_IPV4, &with(ip(SOMEBODY, TCP, &[1; 40]), 0, &[0x4f])),
            Malformed,
        ),
        row("a header that is cut after one octet", ends(1), Malformed),
        row("cut before the protocol", ends(9), Malformed),
        row("cut before the source", ends(12), Malformed),
        row("cut within the source", ends(14), Malformed),
        row("cut one octet before its end", ends(19), Malformed),
        row("a TCP packet of its header alone", ends(20), Malformed),
        row("one octet of the source port", ends(21), Malformed),
        row("the source port alone", ends(22), Malformed),
        row("one octet of the destination port", ends(23), Malformed),
        row("both ports and nothing more", ends(24), WithinLimit),
        row(
            "an ICMP packet of its header alone",
            frame(&cut(ip(SOMEBODY, ICMP, &[0]), 20)),
            OtherPort,
        ),
        row(
            "a UDP packet of its header alone",
            frame(&cut(ip(SOMEBODY, UDP, &[0]), 20)),
            Malformed,
        ),
        row("says that it has no octets: the stack's to refuse", but(2, &[0, 0]), WithinLimit),
        row("says that it is shorter than its header", but(2, &[0, 19]), WithinLimit),
        row(
            "says that it is its header alone, with ports behind it",
            but(2, &[0, 20]),
            WithinLimit,
        ),
        row("says that it is longer than the frame", but(2, &[0xff, 0xff]), WithinLimit),
        row(
            "padded to the shortest frame",
            {
                let mut frame = frame(&ip(SOMEBODY, UDP, &udp(GUARDED, &[])));
                frame.resize(FRAME_OCTETS_MIN, 0);
                frame
            },
            WithinLimit,
        ),
        row("no hop left", but(8, &[0]), WithinLimit),
        row("its last hop", but(8, &[1]), WithinLimit),
        row("every bit of the class of service", but(1, &[0xff]), WithinLimit),
        row("no identification", but(4, &[0, 0]), WithinLimit),
        row("a wrong checksum: the stack's to refuse", but(10, &[0xff, 0xff]), WithinLimit),
        row("the reserved flag (RFC 3514)", but(6, &[0x80, 0]), WithinLimit),
        row("not to be fragmented", but(6, &[0x40, 0]), WithinLimit),
        row("no flags at all", but(6, &[0, 0]), WithinLimit),
        row("to everybody", but(16, &[255; 4]), WithinLimit),
        row("to a group", but(16, &[224, 0, 0, 1]), WithinLimit),
        row("to nobody", but(16, &[0; 4]), WithinLimit),
        row(
            "from nobody: the stack's to refuse, and charged until then",
            from("0.0.0.0"),
            WithinLimit,
        ),
        row("from this network", from("0.1.2.3"), WithinLimit),
        row("from loopback, which has nothing to be spared here", from("127.0.0.1"), WithinLimit),
        row("from a private network", from("10.0.0.1"), WithinLimit),
        row("from a carrier's shared space", from("100.64.0.1"), WithinLimit),
        row("from the link: in IPv4 a source as any", from("169.254.1.1"), WithinLimit),
        row("from a group", from("224.0.0.1"), WithinLimit),
        row("from the last group", from("239.255.255.255"), WithinLimit),
        row("from the reserved space", from("240.0.0.1"), WithinLimit),
        row("from everybody", from("255.255.255.255"), WithinLimit),
        row("from the host itself, whose net is banned (LAND)", from("198.51.100.1"), Banned),
    ]);
    table
}

/// IPv4 in pieces.
fn ipv4_fragments() -> Vec<Row> {
    let piece = |source, protocol, field, payload: &[u8]| {
        frame(&fragment_4(source, protocol, field, payload))
    };
    let (more, rest) = (0x2000, [7; 24]);
    let mut table = Vec::new();
    table.extend(three(
        "a first fragment shows its port",
        |port| piece(SOMEBODY, TCP, more, &tcp(port, ACK)),
        ORDINARY,
    ));
    table.extend(three(
        "a later fragment has no port, whatever stands where one would be",
        |port| piece(SOMEBODY, TCP, more | 3, &tcp(port, ACK)),
        [WithinLimit; 3],
    ));
    table.extend(three(
        "a banned source's later fragment",
        |port| piece(BANNED, UDP, more | 3, &udp(port, &rest)),
        [Banned; 3],
    ));
    table.extend([
        row(
            "the last fragment of an Ethernet packet",
            piece(SOMEBODY, UDP, 185, &rest),
            WithinLimit,
        ),
        row("the highest offset", piece(SOMEBODY, UDP, 0x1fff, &rest), WithinLimit),
        row("the highest offset of a banned source", piece(BANNED, UDP, 0x1fff, &rest), Banned),
        row(
            "a later fragment of ICMP: the ping of death",
            piece(BANNED, ICMP, 0x1fff, &rest),
            OtherPort,
        ),
        row("a later fragment of GRE", piece(BANNED, GRE, 1, &rest), OtherPort),
        row("a later fragment of ESP", piece(BANNED, ESP, 1, &rest), OtherPort),
        row("a later fragment of SCTP", piece(BANNED, SCTP, 1, &rest), OtherPort),
        row(
            "a first fragment that overlaps nothing yet",
            piece(SOMEBODY, TCP, more, &tcp(OTHER, ACK)),
            OtherPort,
        ),
        row("one that overlaps its flags (RFC 1858)", piece(BANNED, TCP, 1, &rest), Banned),
        row("the same again", piece(BANNED, TCP, 1, &rest), Banned),
        row("a first fragment with nothing in it", piece(SOMEBODY, TCP, more, &[]), Malformed),
        row("with half its ports", piece(SOMEBODY, UDP, more, &[1, 2]), Malformed),
        row(
            "with its ports alone",
            piece(SOMEBODY, UDP, more, &udp(GUARDED, &[])[..4]),
            WithinLimit,
        ),
        row("a later fragment with nothing in it", piece(SOMEBODY, TCP, 1, &[]), WithinLimit),
        row(
            "a later fragment that may not be one",
            piece(SOMEBODY, UDP, 0x4001, &rest),
            WithinLimit,
        ),
        row("a later fragment with the reserved flag", piece(BANNED, UDP, 0x8001, &rest), Banned),
        row(
            "the reserved flag alone makes no fragment",
            piece(SOMEBODY, TCP, 0x8000, &tcp(OTHER, ACK)),
            OtherPort,
        ),
        row("every flag, and the highest offset", piece(SOMEBODY, UDP, 0xffff, &rest), WithinLimit),
        row("a denied source's later fragment", piece("203.0.113.8", UDP, 1, &rest), Denied),
        row("a spared source's later fragment", piece("203.0.113.7", UDP, 1, &rest), Exempt),
        row("that of a banned net", piece("198.51.100.9", UDP, 1, &rest), Banned),
        row(
            "a later fragment whose options reach past the frame",
            ethernet(ETHERTYPE_IPV4, &with(fragment_4(BANNED, TCP, 1, &[]), 0, &[0x4f])),
            Banned,
        ),
        row(
            "a later fragment in a provider's VLAN",
            tagged(
                &[(PROVIDER_TAG, 1), (CUSTOMER_TAG, 2)],
                ETHERTYPE_IPV4,
                &fragment_4(BANNED, TCP, 1, &rest),
            ),
            Banned,
        ),
    ]);
    table
}

/// What carries no port of ours.
fn portless() -> Vec<Row> {
    let of = |source, protocol, payload: &[u8]| frame(&ip(source, protocol, payload));
    let inner = acknowledgement(BANNED);
    let mut table = vec![
        row("an echo, so that a banned host can be told", of(BANNED, ICMP, &[8; 16]), OtherPort),
        row(
            "that a host cannot be reached: path MTU needs it",
            of(BANNED, ICMP, &[3; 36]),
            OtherPort,
        ),
        row("a redirect", of(BANNED, ICMP, &[5; 36]), OtherPort),
        row("ICMP without a type", of(SOMEBODY, ICMP, &[]), OtherPort),
        row("IGMP, which keeps group traffic flowing", of(BANNED, IGMP, &[0x16; 8]), OtherPort),
        row("IPv4 in IPv4: the tunnel's end decides", of(BANNED, IPIP, &inner), OtherPort),
        row("IPv6 in IPv4", of(BANNED, IPV6, &acknowledgement(BANNED_6)), OtherPort),
        row("GRE", of(BANNED, GRE, &inner), OtherPort),
        row("ESP", of(BANNED, ESP, &[0; 16]), OtherPort),
        row(
            "an authentication header, which IPv4 is not walked for",
            of(BANNED, AUTHENTICATION, &[6; 24]),
            OtherPort,
        ),
        row("SCTP to the same number", of(BANNED, SCTP, &tcp(GUARDED, 0)), OtherPort),
        row("UDP-Lite to the same number", of(BANNED, UDP_LITE, &udp(GUARDED, &[])), OtherPort),
        row("DCCP to the same number", of(BANNED, 33, &udp(GUARDED, &[])), OtherPort),
        row("OSPF", of(BANNED, 89, &[0; 24]), OtherPort),
        row("VRRP", of(BANNED, 112, &[0; 8]), OtherPort),
        row("protocol 0 is nothing in IPv4", of(BANNED, HOP_BY_HOP, &[6; 8]), OtherPort),
        row("destination options are nothing in IPv4", of(BANNED, DESTINATION, &[6; 8]), OtherPort),
        row("protocol 255", of(BANNED, 255, &[0; 8]), OtherPort),
    ];
    for (why, kind, source) in [
        ("a neighbour asked for", 135, "fe80::1"),
        ("a neighbour asked for by a banned one", 135, BANNED_6),
        ("a neighbour asked for before the first address", 135, "::"),
        ("a neighbour's answer", 136, BANNED_6),
        ("a router asked for", 133, "::"),
        ("a router's answer", 134, "fe80::1"),
        ("a packet that is too big: path MTU needs it", 2, BANNED_6),
        ("an echo", 128, BANNED_6),
    ] {
        table.push(row(&format!("ICMPv6: {why}"), of(source, ICMPV6, &[kind, 0, 0, 0]), OtherPort));
    }
    table.extend([
        row(
            "ICMPv6: a group's listener, behind its router alert",
            of("fe80::1", HOP_BY_HOP, &[&[ICMPV6, 0, 5, 2, 0, 0, 1, 0][..], &[143; 20]].concat()),
            OtherPort,
        ),
        row("IPv4 in IPv6", of(BANNED_6, IPIP, &inner), OtherPort),
        row("IPv6 in IPv6", of(BANNED_6, IPV6, &acknowledgement(BANNED_6)), OtherPort),
        row("GRE over IPv6", of(BANNED_6, GRE, &inner), OtherPort),
        row("ESP over IPv6", of(BANNED_6, ESP, &[0; 16]), OtherPort),
        row("SCTP over IPv6", of(BANNED_6, SCTP, &tcp(GUARDED, 0)), OtherPort),
        row("UDP-Lite over IPv6", of(BANNED_6, UDP_LITE, &udp(GUARDED, &[])), OtherPort),
        row("IPv4's ICMP over IPv6", of(BANNED_6, ICMP, &[8; 16]), OtherPort),
        row("nothing follows (59)", of(BANNED_6, NO_NEXT_HEADER, &[]), OtherPort),
        row(
            "nothing follows, yet ports stand there",
            of(BANNED_6, NO_NEXT_HEADER, &tcp(GUARDED, SYN)),
            OtherPort,
        ),
        row("an experiment (253)", of(BANNED_6, 253, &tcp(GUARDED, SYN)), OtherPort),
        row("protocol 255 over IPv6", of(BANNED_6, 255, &[0; 8]), OtherPort),
    ]);
    table
}

/// IPv6's header and its senders.
fn ipv6() -> Vec<Row> {
    let ours = acknowledgement(SOMEBODY_6);
    let but = |at, octets: &[u8]| ethernet(ETHERTYPE_IPV6, &with(ours.clone(), at, octets));
    let ends = |at| ethernet(ETHERTYPE_IPV6, &ours[..at]);
    let from = |source| frame(&acknowledgement(source));
    let mut table = Vec::new();
    for (why, source, expected) in [
        ("TCP over IPv6", SOMEBODY_6, ORDINARY),
        (
            "from the link: shared by its hosts, and never routed",
            "fe80::1",
            [Exempt, Management, OtherPort],
        ),
        ("from nowhere: a host without an address", "::", [Exempt, Management, OtherPort]),
        ("from a group: the stack's to refuse", "ff02::1", [Exempt, Management, OtherPort]),
        ("an IPv4 address written as IPv6: no sender's", "::ffff:192.0.2.1", [Malformed; 3]),
        ("a banned /64", BANNED_6, [Banned, Management, OtherPort]),
    ] {
        table.extend(three(why, |port| frame(&ip(source, TCP, &tcp(port, ACK))), expected));
    }
    table.extend(three(
        "UDP over IPv6",
        |port| frame(&ip(SOMEBODY_6, UDP, &udp(port, &[0; 20]))),
        [WithinLimit, OtherPort, OtherPort],
    ));
    table.extend([
        row("version 4 under IPv6's type", but(0, &[0x45]), Malformed),
        row("version 0 under IPv6's type", but(0, &[0]), Malformed),
        row("version 7 under IPv6's type", but(0, &[0x70]), Malformed),
        row(
            "a whole IPv4 packet under IPv6's type",
            ethernet(ETHERTYPE_IPV6, &[&acknowledgement(SOMEBODY)[..], &[0; 20]].concat()),
            Malformed,
        ),
        row("cut after one octet", ends(1), Malformed),
        row("cut before the source", ends(8), Malformed),
        row("cut within the source", ends(16), Malformed),
        row("cut before the destination", ends(24), Malformed),
        row("cut one octet before its end", ends(39), Malformed),
        row("its header alone, and TCP promised", ends(40), Malformed),
        row("three octets of ports", ends(43), Malformed),
        row("both ports and nothing more", ends(44), WithinLimit),
        row("a payload of no octets (a jumbogram's, too)", but(4, &[0, 0]), WithinLimit),
        row("a payload longer than the frame", but(4, &[0xff, 0xff]), WithinLimit),
        row("no hop left", but(7, &[0]), WithinLimit),
        row("every bit of class and label", but(0, &[0x6f, 0xff, 0xff, 0xff]), WithinLimit),
        row("to a group", but(24, &[0xff, 2, 0, 0]), WithinLimit),
        row("from loopback, which the stack refuses from outside", from("::1"), WithinLimit),
        row("from the last address of the link's", from("febf:ffff::1"), Exempt),
        row("from a site of old, beside the link's", from("fec0::1"), WithinLimit),
        row("from before the link's", from("fe7f:ffff::1"), WithinLimit),
        row("from a group of the world", from("ff0e::1"), Exempt),
        row("from a network of one's own", from("fd00::1"), WithinLimit),
        row("from the first address behind nowhere", from("::2"), WithinLimit),
        row(
            "an IPv4 address in the old way is an address as any",
            from("::192.0.2.66"),
            WithinLimit,
        ),
        row(
            "a mapped one of a banned source: neither is it that source",
            from("::ffff:192.0.2.66"),
            Malformed,
        ),
        row(
            "a mapped one of a spared source: nothing is borrowed",
            from("::ffff:127.0.0.1"),
            Malformed,
        ),
        row("beside the mapped ones", from("::fffe:192.0.2.66"), WithinLimit),
        row("6to4 of a banned source is another one", from("2002:c000:242::1"), WithinLimit),
        row("NAT64 of a banned source is another one", from("64:ff9b::192.0.2.66"), WithinLimit),
        row("Teredo", from("2001:0:c000:242::1"), WithinLimit),
        row("the discard prefix", from("100::1"), WithinLimit),
        row(
            "what looks like an IPv4 source's key is a group's address",
            from("ffff:ffff:c000:242::1"),
            Exempt,
        ),
        row(
            "what looks like a site's key is a group's address",
            from("fffe:2001:db8:5::1"),
            Exempt,
        ),
    ]);
    table
}

/// IPv6's extension headers.
fn extensions() -> Vec<Row> {
    let of = |first, payload: &[u8]| frame(&ip(SOMEBODY_6, first, payload));
    let segment = tcp(GUARDED, ACK);
    let mut table = Vec::new();
    for (name, first, length, octets) in [
        ("options for every hop", HOP_BY_HOP, 0, 8),
        ("options for the destination", DESTINATION, 0, 8),
        ("a route", ROUTING, 2, 24),
        ("an authentication header", AUTHENTICATION, 4, 24),
        ("a mobility header", MOBILITY, 0, 8),
        ("a host identity header", HOST_IDENTITY, 4, 40),
        ("a shim header", SHIM6, 1, 16),
    ] {
        table.extend(three(
            &format!("{name} in front of the port"),
            |port| of(first, &extension(TCP, length, octets, &tcp(port, ACK))),
            ORDINARY,
        ));
    }
    for (why, count, expected) in [
        ("no header", 0, WithinLimit),
        ("one header", 1, WithinLimit),
        ("two headers", 2, WithinLimit),
        ("three headers", 3, WithinLimit),
        ("four headers", 4, WithinLimit),
        ("five headers", 5, WithinLimit),
        ("six headers: as many as are walked", 6, WithinLimit),
        ("seven headers: more than anyone sends", 7, Malformed),
        ("eight headers", 8, Malformed),
        ("nine headers", 9, Malformed),
    ] {
        let (first, payload) = chain(count, TCP, &segment);
        table.push(row(&format!("{why}, then TCP"), of(first, &payload), expected));
    }
    let chained = |source, count, next, rest: &[u8]| {
        let (first, payload) = chain(count, next, rest);
        frame(&ip(source, first, &payload))
    };
    let long = |octets| extension(TCP, 255, octets, &segment);
    table.extend([
        row(
            "six headers, then no port to look for",
            chained(BANNED_6, 6, ICMPV6, &[128]),
            OtherPort,
        ),
        row(
            "seven headers, whatever would follow",
            chained(SOMEBODY_6, 7, ICMPV6, &[128]),
            Malformed,
        ),
        row("six headers do not hide a ban", chained(BANNED_6, 6, TCP, &segment), Banned),
        row(
            "seven headers of a banned source are no packet first",
            chained(BANNED_6, 7, TCP, &segment),
            Malformed,
        ),
        row("seven headers from the link", chained("fe80::1", 7, TCP, &segment), Exempt),
        row(
            "seven headers of a spared source",
            chained("2001:db8:bad:1::5", 7, TCP, &segment),
            Exempt,
        ),
        row(
            "six headers to management",
            chained(BANNED_6, 6, TCP, &tcp(OPERATORS, ACK)),
            Management,
        ),
        row("six headers, then nothing", chained(BANNED_6, 6, NO_NEXT_HEADER, &[]), OtherPort),
        row("the longest header there is", of(DESTINATION, &long(2048)), WithinLimit),
        row(
            "the longest header, one octet short of the port's end",
            cut(of(DESTINATION, &long(2048)), 14 + 40 + 2051),
            Malformed,
        ),
        row(
            "the longest header, in a short frame",
            of(DESTINATION, &extension(TCP, 255, 8, &segment)),
            Malformed,
        ),
        row(
            "the longest authentication header: 1028 octets",
            of(AUTHENTICATION, &extension(TCP, 255, 1028, &segment)),
            WithinLimit,
        ),
        row(
            "an authentication header of 8 octets",
            of(AUTHENTICATION, &extension(TCP, 0, 8, &segment)),
            WithinLimit,
        ),
        row(
            "an authentication header of 12 octets",
            of(AUTHENTICATION, &extension(TCP, 1, 12, &segment)),
            WithinLimit,
        ),
        row(
            "an authentication header counted in eights would find no port",
            of(AUTHENTICATION, &extension(TCP, 4, 24, &tcp(OTHER, ACK))),
            OtherPort,
        ),
        row(
            "a header in front of an authentication header is counted in eights",
            of(DESTINATION, &extension(AUTHENTICATION, 0, 8, &extension(TCP, 1, 12, &segment))),
            WithinLimit,
        ),
        row(
            "a header behind an authentication header is counted in eights",
            of(AUTHENTICATION, &extension(DESTINATION, 1, 12, &extension(TCP, 1, 16, &segment))),
            WithinLimit,
        ),
        row(
            "options for every hop in second place, where they may not be",
            of(DESTINATION, &extension(HOP_BY_HOP, 0, 8, &extension(TCP, 0, 8, &segment))),
            WithinLimit,
        ),
        row(
            "a jumbogram's option",
            of(HOP_BY_HOP, &[&[TCP, 0, 0xc2, 4, 0, 1, 0, 0][..], &segment].concat()),
            WithinLimit,
        ),
        row(
            "route type 0, which is deprecated (RFC 5095)",
            of(ROUTING, &[&[TCP, 2, 0, 1][..], &[0; 20], &segment].concat()),
            WithinLimit,
        ),
        row(
            "route type 2: a mobile node's home",
            of(ROUTING, &[&[TCP, 2, 2, 1][..], &[0; 20], &segment].concat()),
            WithinLimit,
        ),
        row(
            "route type 4: segments",
            of(ROUTING, &[&[TCP, 2, 4, 0][..], &[0; 20], &segment].concat()),
            WithinLimit,
        ),
        row("a header of which nothing came", of(DESTINATION, &[]), Malformed),
        row("one octet of a header", of(DESTINATION, &[TCP]), Malformed),
        row("three octets of a header", of(DESTINATION, &[TCP, 0, 0]), Malformed),
        row("half a header, naming TCP", of(DESTINATION, &[TCP, 0, 0, 0]), Malformed),
        row(
            "half a header, naming ICMPv6: nothing more to look for",
            of(DESTINATION, &[ICMPV6, 0, 0, 0]),
            OtherPort,
        ),
        row("a whole header, and no port", of(DESTINATION, &extension(TCP, 0, 8, &[])), Malformed),
        row(
            "a header, then three octets of ports",
            of(DESTINATION, &extension(UDP, 0, 8, &[1, 2, 3])),
            Malformed,
        ),
        row(
            "a header that names itself for ever",
            of(DESTINATION, &[DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(40)),
            Malformed,
        ),
        row("a header, then ESP", of(DESTINATION, &extension(ESP, 0, 8, &[0; 16])), OtherPort),
        row(
            "a header, then an experiment",
            of(DESTINATION, &extension(254, 0, 8, &segment)),
            OtherPort,
        ),
        row("a header, then GRE", of(HOP_BY_HOP, &extension(GRE, 0, 8, &segment)), OtherPort),
        row(
            "UDP behind a header",
            of(DESTINATION, &extension(UDP, 0, 8, &udp(443, &[0; 20]))),
            WithinLimit,
        ),
    ]);
    table
}

/// IPv6 in pieces.
fn ipv6_fragments() -> Vec<Row> {
    let of = |source, payload: &[u8]| frame(&ip(source, FRAGMENT, payload));
    let rest = [7; 24];
    let mut table = Vec::new();
    table.extend(three(
        "an atomic fragment: the whole packet in one piece (RFC 6946)",
        |port| of(SOMEBODY_6, &fragment_6(TCP, 0, false, &tcp(port, ACK))),
        ORDINARY,
    ));
    table.extend(three(
        "a first fragment shows its port",
        |port| of(SOMEBODY_6, &fragment_6(TCP, 0, true, &tcp(port, ACK))),
        ORDINARY,
    ));
    table.extend(three(
        "a later fragment of a banned source, whatever stands where a port would be",
        |port| of(BANNED_6, &fragment_6(UDP, 1, true, &udp(port, &rest))),
        [Banned; 3],
    ));
    table.extend([
        row("a later fragment", of(SOMEBODY_6, &fragment_6(TCP, 1, true, &rest)), WithinLimit),
        row("the last one", of(SOMEBODY_6, &fragment_6(UDP, 181, false, &rest)), WithinLimit),
        row("the highest offset", of(BANNED_6, &fragment_6(UDP, 0x1fff, true, &rest)), Banned),
        row(
            "a later fragment of ICMPv6",
            of(BANNED_6, &fragment_6(ICMPV6, 1, true, &rest)),
            OtherPort,
        ),
        row("a later fragment of ESP", of(BANNED_6, &fragment_6(ESP, 1, true, &rest)), OtherPort),
        row(
            "a later fragment of a chain, which may end in a port",
            of(BANNED_6, &fragment_6(DESTINATION, 1, true, &rest)),
            Banned,
        ),
        row(
            "a later fragment of a route",
            of(BANNED_6, &fragment_6(ROUTING, 1, true, &rest)),
            Banned,
        ),
        row(
            "a later fragment of a fragment",
            of(BANNED_6, &fragment_6(FRAGMENT, 1, true, &rest)),
            Banned,
        ),
        row(
            "a later fragment of nothing",
            of(BANNED_6, &fragment_6(NO_NEXT_HEADER, 1, true, &rest)),
            OtherPort,
        ),
        row(
            "a denied source's later fragment",
            of("2001:db8:bad::1", &fragment_6(TCP, 1, false, &rest)),
            Denied,
        ),
        row(
            "a spared source's later fragment",
            of("2001:db8:bad:1::5", &fragment_6(TCP, 1, false, &rest)),
            Exempt,
        ),
        row(
            "a later fragment from the link",
            of("fe80::1", &fragment_6(TCP, 1, false, &rest)),
            Exempt,
        ),
        row(
            "a fragment header that is cut where a later one is known",
            of(BANNED_6, &fragment_6(TCP, 1, true, &[])[..4]),
            Banned,
        ),
        row(
            "a first one that is cut there",
            of(SOMEBODY_6, &fragment_6(TCP, 0, true, &[])[..4]),
            Malformed,
        ),
        row(
            "a fragment header that is cut before its offset",
            of(SOMEBODY_6, &[TCP, 0, 0]),
            Malformed,
        ),
        row(
            "a first fragment without its ports (RFC 7112)",
            of(SOMEBODY_6, &fragment_6(TCP, 0, true, &[])),
            Malformed,
        ),
        row(
            "a first fragment that ends in its chain (RFC 7112)",
            of(SOMEBODY_6, &fragment_6(DESTINATION, 0, true, &[TCP, 0])),
            Malformed,
        ),
        row(
            "an atomic fragment in an atomic fragment",
            of(
                SOMEBODY_6,
                &fragment_6(FRAGMENT, 0, false, &fragment_6(TCP, 0, false, &tcp(GUARDED, ACK))),
            ),
            WithinLimit,
        ),
        row(
            "a later fragment in an atomic fragment",
            of(BANNED_6, &fragment_6(FRAGMENT, 0, false, &fragment_6(TCP, 5, false, &rest))),
            Banned,
        ),
        row(
            "an atomic fragment behind options",
            frame(&ip(
                SOMEBODY_6,
                HOP_BY_HOP,
                &extension(FRAGMENT, 0, 8, &fragment_6(TCP, 0, false, &tcp(GUARDED, ACK))),
            )),
            WithinLimit,
        ),
        row(
            "a later fragment behind options",
            frame(&ip(
                BANNED_6,
                HOP_BY_HOP,
                &extension(FRAGMENT, 0, 8, &fragment_6(TCP, 9, false, &rest)),
            )),
            Banned,
        ),
        row(
            "options behind an atomic fragment",
            of(
                SOMEBODY_6,
                &fragment_6(DESTINATION, 0, false, &extension(TCP, 0, 8, &tcp(GUARDED, ACK))),
            ),
            WithinLimit,
        ),
        row(
            "a fragment header has no length: its second octet is reserved",
            of(SOMEBODY_6, &with(fragment_6(TCP, 0, false, &tcp(GUARDED, ACK)), 1, &[0xff])),
            WithinLimit,
        ),
        row(
            "reserved bits make no offset",
            of(SOMEBODY_6, &with(fragment_6(TCP, 0, false, &tcp(GUARDED, ACK)), 3, &[0x06])),
            WithinLimit,
        ),
        row(
            "one that overlaps the first (RFC 5722)",
            of(BANNED_6, &fragment_6(TCP, 1, false, &rest)),
            Banned,
        ),
    ]);
    let six = |count: usize| {
        (1..count).fold(fragment_6(TCP, 0, false, &tcp(GUARDED, ACK)), |rest, _| {
            fragment_6(FRAGMENT, 0, false, &rest)
        })
    };
    table.extend([
        row("six fragment headers", of(SOMEBODY_6, &six(6)), WithinLimit),
        row("seven fragment headers", of(SOMEBODY_6, &six(7)), Malformed),
    ]);
    table
}

/// Lists and bans, and which comes before which.
fn lists() -> Vec<Row> {
    let from = |source| frame(&acknowledgement(source));
    let mut table = Vec::new();
    for (why, source, expected) in [
        ("a banned source", BANNED, [Banned, Management, OtherPort]),
        ("banned, but spared", "192.0.2.99", [Exempt, Management, OtherPort]),
        ("denied", "203.0.113.8", [Denied, Management, OtherPort]),
        ("denied, but spared", "203.0.113.7", [Exempt, Management, OtherPort]),
        ("of a banned net", "198.51.100.5", [Banned, Management, OtherPort]),
        (
            "of a banned net that is denied as well: the ban tells more",
            "203.0.113.200",
            [Banned, Management, OtherPort],
        ),
        ("denied over IPv6", "2001:db8:bad:ffff::1", [Denied, Management, OtherPort]),
        ("of a banned /48", "2001:db8:77:abcd::1", [Banned, Management, OtherPort]),
        ("an address spared in a denied /48", "2001:db8:bad:1::5", [Exempt, Management, OtherPort]),
    ] {
        table.extend(three(why, |port| frame(&ip(source, TCP, &tcp(port, ACK))), expected));
    }
    for (why, source, expected) in [
        ("the address before a banned one", "192.0.2.65", WithinLimit),
        ("the address behind a banned one", "192.0.2.67", WithinLimit),
        ("the first of a denied /24", "203.0.113.0", Denied),
        ("before it", "203.0.112.255", WithinLimit),
        ("the last that is denied and not banned", "203.0.113.127", Denied),
        ("the first of a banned /25 in it", "203.0.113.128", Banned),
        ("its last", "203.0.113.255", Banned),
        ("behind it", "203.0.114.0", WithinLimit),
        ("the first of a denied /15", "198.18.0.0", Denied),
        ("its last", "198.19.255.255", Denied),
        ("before it", "198.17.255.255", WithinLimit),
        ("behind it", "198.20.0.0", WithinLimit),
        ("the first of a banned /25", "198.51.100.0", Banned),
        ("its last", "198.51.100.127", Banned),
        ("behind it", "198.51.100.128", WithinLimit),
        ("before it", "198.51.99.255", WithinLimit),
        ("another host of a banned /64", "2001:db8:66::99", Banned),
        ("the last host of a banned /64", "2001:db8:66:0:ffff:ffff:ffff:ffff", Banned),
        ("the /64 behind a banned one", "2001:db8:66:1::1", WithinLimit),
        ("the /64 before a banned one", "2001:db8:65:ffff::1", WithinLimit),
        ("the first of a denied /48", "2001:db8:bad::", Denied),
        ("its last", "2001:db8:bad:ffff:ffff:ffff:ffff:ffff", Denied),
        ("before it", "2001:db8:bac:ffff::1", WithinLimit),
        ("behind it", "2001:db8:bae::1", WithinLimit),
        ("the neighbour of the spared one", "2001:db8:bad:1::6", Denied),
        ("the other neighbour", "2001:db8:bad:1::4", Denied),
        ("the first of a banned /48", "2001:db8:77::", Banned),
        ("its last", "2001:db8:77:ffff:ffff:ffff:ffff:ffff", Banned),
        ("before it", "2001:db8:76:ffff::1", WithinLimit),
        ("behind it", "2001:db8:78::1", WithinLimit),
        ("the first of a denied /4", "3000::1", Denied),
        ("its last", "3fff:ffff::1", Denied),
        ("before it", "2fff:ffff::1", WithinLimit),
        ("behind it", "4000::1", WithinLimit),
        ("spared, and nothing against it", "127.1.2.3", WithinLimit),
        ("the neighbour of the spared one in a denied net", "203.0.113.6", Denied),
    ] {
        table.push(row(&format!("{why}: {source}"), from(source), expected));
    }
    table.extend([
        row("a banned source's datagram", frame(&ip(BANNED, UDP, &udp(443, &[0; 20]))), Banned),
        row("to the other guarded port", frame(&ip(BANNED, TCP, &tcp(443, SYN))), Banned),
        row(
            "management's number in UDP is nobody's",
            frame(&ip(BANNED, UDP, &udp(OPERATORS, &[]))),
            OtherPort,
        ),
        row("the port before a guarded one", frame(&ip(BANNED, TCP, &tcp(8442, SYN))), OtherPort),
        row("the port behind a guarded one", frame(&ip(BANNED, TCP, &tcp(8444, SYN))), OtherPort),
        row(
            "the guarded port's octets swapped",
            frame(&ip(BANNED, TCP, &tcp(GUARDED.swap_bytes(), SYN))),
            OtherPort,
        ),
        row("port 0", frame(&ip(BANNED, TCP, &tcp(0, SYN))), OtherPort),
        row("the last port", frame(&ip(BANNED, TCP, &tcp(65535, SYN))), OtherPort),
        row(
            "a guarded port as the source's",
            frame(&ip(BANNED, TCP, &with(tcp(OTHER, ACK), 0, &GUARDED.to_be_bytes()))),
            OtherPort,
        ),
        row("a spared source's packet that shows no port", cut(from("127.0.0.1"), 36), Exempt),
        row("a banned source's packet that shows no port", cut(from(BANNED), 36), Malformed),
        row(
            "a spared source's header that is cut: no source is read",
            cut(from("127.0.0.1"), 33),
            Malformed,
        ),
        row("a denied source's packet that shows no port", cut(from("203.0.113.8"), 36), Malformed),
    ]);
    table
}

/// Who asks for a connection: the source has none left after the first.
fn connections() -> Vec<Row> {
    let (four, six) = ("192.0.2.20", "2001:db8:20::1");
    let segment = |flags| frame(&ip(four, TCP, &tcp(GUARDED, flags)));
    let but =
        |segment: Vec<u8>, at, octets: &[u8]| frame(&ip(four, TCP, &with(segment, at, octets)));
    let datagram = |data: &[u8]| frame(&ip(four, UDP, &udp(GUARDED, data)));
    let (syn, ack) = (tcp(GUARDED, SYN), tcp(GUARDED, ACK));
    let mut table = vec![
        row("the first SYN", segment(SYN), WithinLimit),
        row("the first SYN over IPv6", frame(&ip(six, TCP, &syn)), WithinLimit),
        row(
            "its neighbour's of the /64 is the second",
            frame(&ip("2001:db8:20::2", TCP, &syn)),
            OverConnections,
        ),
    ];
    for (why, flags, expected) in [
        ("SYN", SYN, OverConnections),
        ("SYN that offers congestion notification", SYN | ECE | CWR, OverConnections),
        ("SYN, PSH", SYN | PSH, OverConnections),
        ("SYN, URG", SYN | URG, OverConnections),
        ("SYN, FIN: some hosts take it for a SYN", SYN | FIN, OverConnections),
        ("SYN, RST", SYN | RST, OverConnections),
        ("everything but ACK", !ACK, OverConnections),
        ("SYN, ACK: an answer", SYN | ACK, WithinLimit),
        ("SYN, ACK, FIN", SYN | ACK | FIN, WithinLimit),
        ("everything", 0xff, WithinLimit),
        ("ACK", ACK, WithinLimit),
        ("data", PSH | ACK, WithinLimit),
        ("an end", FIN | ACK, WithinLimit),
        ("an end without ACK: a scan", FIN, WithinLimit),
        ("a reset", RST, WithinLimit),
        ("a reset that acknowledges", RST | ACK, WithinLimit),
        ("nothing: a scan", 0, WithinLimit),
        ("FIN, PSH, URG: a scan (XMAS)", FIN | PSH | URG, WithinLimit),
        ("congestion notification alone", ECE | CWR, WithinLimit),
        ("URG", URG, WithinLimit),
    ] {
        table.push(row(&format!("TCP: {why}"), segment(flags), expected));
    }
    table.extend([
        row("a SYN of no length", but(syn.clone(), 12, &[0]), OverConnections),
        row("a SYN shorter than a header", but(syn.clone(), 12, &[0x40]), OverConnections),
        row("a SYN longer than its packet", but(syn.clone(), 12, &[0xf0]), OverConnections),
        row("an ACK longer than its packet", but(ack.clone(), 12, &[0xf0]), WithinLimit),
        row("a SYN with the reserved bits", but(syn.clone(), 12, &[0x5f]), OverConnections),
        row("an ACK with the reserved bits", but(ack.clone(), 12, &[0x5f]), WithinLimit),
        row("a SYN from port 0", but(syn.clone(), 0, &[0, 0]), OverConnections),
        row(
            "a SYN with data (fast open)",
            frame(&ip(four, TCP, &[&syn[..], b"hello"].concat())),
            OverConnections,
        ),
        row("a SYN with a window of nothing", but(syn.clone(), 14, &[0, 0]), OverConnections),
        row(
            "a SYN behind IPv4 options",
            frame(&with_options(four, TCP, 1, 40, &syn)),
            OverConnections,
        ),
        row(
            "a SYN in a VLAN",
            tagged(&[(CUSTOMER_TAG, 7)], ETHERTYPE_IPV4, &ip(four, TCP, &syn)),
            OverConnections,
        ),
        row(
            "a SYN in a first fragment",
            frame(&fragment_4(four, TCP, 0x2000, &syn)),
            OverConnections,
        ),
        row(
            "a SYN where a later fragment has no flags",
            frame(&fragment_4(four, TCP, 0x2001, &syn)),
            WithinLimit,
        ),
    ]);
    for (octets, expected) in [
        (4, OverConnections),
        (8, OverConnections),
        (12, OverConnections),
        (13, OverConnections),
        (14, WithinLimit),
        (16, WithinLimit),
    ] {
        let why =
            format!("an ACK cut after {octets} octets: flags that are hidden open (RFC 1858)");
        table.push(row(&why, frame(&ip(four, TCP, &ack[..octets])), expected));
    }
    table.extend([
        row(
            "a tiny first fragment that hides its flags",
            frame(&fragment_4(four, TCP, 0x2000, &ack[..8])),
            OverConnections,
        ),
        row(
            "the same over IPv6",
            frame(&ip(six, FRAGMENT, &fragment_6(TCP, 0, true, &ack[..8]))),
            OverConnections,
        ),
        row(
            "a SYN in an atomic fragment",
            frame(&ip(six, FRAGMENT, &fragment_6(TCP, 0, false, &syn))),
            OverConnections,
        ),
        row(
            "a SYN behind six headers",
            {
                let (first, rest) = chain(6, TCP, &syn);
                frame(&ip(six, first, &rest))
            },
            OverConnections,
        ),
        row(
            "an ACK behind six headers",
            {
                let (first, rest) = chain(6, TCP, &ack);
                frame(&ip(six, first, &rest))
            },
            WithinLimit,
        ),
        row(
            "a later fragment over IPv6",
            frame(&ip(six, FRAGMENT, &fragment_6(TCP, 1, true, &syn))),
            WithinLimit,
        ),
        row(
            "a SYN to management is nobody's business",
            frame(&ip(four, TCP, &tcp(OPERATORS, SYN))),
            Management,
        ),
        row(
            "a SYN to another port costs nothing",
            frame(&ip(four, TCP, &tcp(OTHER, SYN))),
            OtherPort,
        ),
        row("a banned source's SYN is a banned source's", frame(&ip(BANNED, TCP, &syn)), Banned),
        row("a SYN from the link", frame(&ip("fe80::1", TCP, &syn)), Exempt),
        row("the first SYN of one who is spared", frame(&ip("127.0.0.9", TCP, &syn)), WithinLimit),
        row("the second of one who is spared", frame(&ip("127.0.0.9", TCP, &syn)), Exempt),
    ]);
    for (why, kind, version, expected) in [
        ("an Initial", INITIAL, QUIC_1, OverConnections),
        ("0-RTT", ZERO_RTT, QUIC_1, WithinLimit),
        ("a Handshake", HANDSHAKE, QUIC_1, WithinLimit),
        ("a Retry", RETRY, QUIC_1, WithinLimit),
        ("version 2: an Initial has another number", 1, QUIC_2, OverConnections),
        ("version 2: 0-RTT", 2, QUIC_2, WithinLimit),
        ("version 2: a Handshake", 3, QUIC_2, WithinLimit),
        ("version 2: a Retry, where version 1 has its Initial", 0, QUIC_2, WithinLimit),
        ("versions are offered, which servers do", INITIAL, 0, WithinLimit),
        ("versions are offered, with other bits", RETRY, 0, WithinLimit),
        (
            "a draft, which a server answers with its versions",
            INITIAL,
            0xff00_001d,
            OverConnections,
        ),
        ("a draft's Handshake", HANDSHAKE, 0xff00_001d, OverConnections),
        ("a version to keep servers supple (GREASE)", INITIAL, 0x1a2a_3a4a, OverConnections),
        ("GREASE with other bits", RETRY, 0xfafa_fafa, OverConnections),
        ("Google's own", INITIAL, 0x5130_3530, OverConnections),
        ("version 3, which there is not yet", HANDSHAKE, 3, OverConnections),
        ("the octets of version 1 swapped", INITIAL, 0x0100_0000, OverConnections),
    ] {
        table.push(row(&format!("QUIC: {why}"), datagram(&quic(kind, version)), expected));
    }
    let long = quic(INITIAL, QUIC_1);
    table.extend([
        row(
            "QUIC: an Initial's protected bits are anything",
            datagram(&with(long.clone(), 0, &[0xcf])),
            OverConnections,
        ),
        row(
            "QUIC: an Initial without the fixed bit (RFC 9287)",
            datagram(&with(long.clone(), 0, &[0x80])),
            OverConnections,
        ),
        row("QUIC: a short header", datagram(&quic_short()), WithinLimit),
        row(
            "QUIC: a short header of all ones",
            datagram(&with(quic_short(), 0, &[0x7f])),
            WithinLimit,
        ),
        row(
            "QUIC: 1200 octets of Initial, as clients send it",
            datagram(&{
                let mut data = long.clone();
                data.resize(1200, 0);
                data
            }),
            OverConnections,
        ),
        row(
            "QUIC: an Initial over IPv6",
            frame(&ip(six, UDP, &udp(GUARDED, &long))),
            OverConnections,
        ),
        row(
            "QUIC: an Initial behind headers",
            {
                let (first, rest) = chain(3, UDP, &udp(GUARDED, &long));
                frame(&ip(six, first, &rest))
            },
            OverConnections,
        ),
        row(
            "QUIC: an Initial to another port",
            frame(&ip(four, UDP, &udp(OTHER, &long))),
            OtherPort,
        ),
        row("QUIC: a banned source's Initial", frame(&ip(BANNED, UDP, &udp(443, &long))), Banned),
        row(
            "DTLS: a greeting is no QUIC",
            datagram(&with(vec![0; 60], 0, &[0x16, 0xfe, 0xfd])),
            WithinLimit,
        ),
        row(
            "DNS to our port",
            datagram(&with(vec![0; 30], 0, &[0x12, 0x34, 1, 0, 0, 1])),
            WithinLimit,
        ),
        row(
            "STUN to our port",
            datagram(&with(vec![0; 20], 0, &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42])),
            WithinLimit,
        ),
        row("a datagram with nothing in it", datagram(&[]), WithinLimit),
        row("a datagram of one octet", datagram(&[0xc0]), WithinLimit),
        row("a datagram that ends within its version", datagram(&long[..4]), WithinLimit),
        row("a datagram that ends behind its version", datagram(&long[..5]), WithinLimit),
        row(
            "a datagram of six octets: the least that is read",
            datagram(&long[..6]),
            OverConnections,
        ),
        row(
            "one octet and the padding of the shortest frame: no version",
            {
                let mut frame = datagram(&[0xc0]);
                frame.resize(FRAME_OCTETS_MIN, 0);
                frame
            },
            WithinLimit,
        ),
        row(
            "a length of nothing",
            frame(&ip(four, UDP, &udp_of_length(GUARDED, 0, &long))),
            OverConnections,
        ),
        row(
            "a length shorter than its header",
            frame(&ip(four, UDP, &udp_of_length(GUARDED, 7, &long))),
            OverConnections,
        ),
        row(
            "a length beyond the frame",
            frame(&ip(four, UDP, &udp_of_length(GUARDED, 0xffff, &long))),
            OverConnections,
        ),
        row(
            "a length of nothing, and a short header",
            frame(&ip(four, UDP, &udp_of_length(GUARDED, 0, &quic_short()))),
            WithinLimit,
        ),
        row(
            "its start is in another fragment",
            frame(&fragment_4(four, UDP, 0x2000, &udp_of_length(GUARDED, 1208, &[]))),
            OverConnections,
        ),
        row(
            "the same over IPv6",
            frame(&ip(
                six,
                FRAGMENT,
                &fragment_6(UDP, 0, true, &udp_of_length(GUARDED, 1208, &[])),
            )),
            OverConnections,
        ),
        row(
            "too short to hide a start",
            frame(&fragment_4(four, UDP, 0x2000, &udp_of_length(GUARDED, 13, &[]))),
            WithinLimit,
        ),
        row(
            "long enough to hide one",
            frame(&fragment_4(four, UDP, 0x2000, &udp_of_length(GUARDED, 14, &[]))),
            OverConnections,
        ),
        row(
            "cut before its length",
            frame(&ip(four, UDP, &udp(GUARDED, &[])[..4])),
            OverConnections,
        ),
        row(
            "cut within its length",
            frame(&ip(four, UDP, &udp(GUARDED, &[])[..5])),
            OverConnections,
        ),
        row("cut behind its length", frame(&ip(four, UDP, &udp(GUARDED, &[])[..6])), WithinLimit),
        row("a later fragment", frame(&fragment_4(four, UDP, 0x2001, &long)), WithinLimit),
        row(
            "UDP-Lite with an Initial in it",
            frame(&ip(four, UDP_LITE, &udp(GUARDED, &long))),
            OtherPort,
        ),
    ]);
    table
}

/// What a source may have: three packets, two connections, 2000 octets.
fn quotas() -> Vec<Row> {
    let ack = |source: &str| frame(&acknowledgement(source));
    let syn = |source: &str| frame(&ip(source, TCP, &tcp(GUARDED, SYN)));
    let long = |source, octets: usize| {
        let mut frame = frame(&ip(source, UDP, &udp(443, &[0; 20])));
        frame.resize(octets, 0);
        frame
    };
    let mut table = vec![
        rows("three packets", 3, ack("192.0.2.10"), WithinLimit),
        rows("and not one more", 5, ack("192.0.2.10"), OverLimit),
        row(
            "to another port it costs nothing",
            frame(&ip("192.0.2.10", TCP, &tcp(OTHER, ACK))),
            OtherPort,
        ),
        row(
            "management is not limited",
            frame(&ip("192.0.2.10", TCP, &tcp(OPERATORS, ACK))),
            Management,
        ),
        row("ICMP is not limited", frame(&ip("192.0.2.10", ICMP, &[8; 8])), OtherPort),
        row("the next source has its own", ack("192.0.2.11"), WithinLimit),
        rows(
            "later fragments count as packets",
            3,
            frame(&fragment_4("192.0.2.12", UDP, 0x2001, &[7; 24])),
            WithinLimit,
        ),
        row(
            "of which there are three",
            frame(&fragment_4("192.0.2.12", UDP, 0x2001, &[7; 24])),
            OverLimit,
        ),
        rows("both transports count together", 2, ack("192.0.2.13"), WithinLimit),
        row("the third", frame(&ip("192.0.2.13", UDP, &udp(443, &[0; 20]))), WithinLimit),
        row("the fourth", frame(&ip("192.0.2.13", UDP, &udp(443, &[0; 20]))), OverLimit),
        rows(
            "both ports count together",
            3,
            frame(&ip("192.0.2.14", TCP, &tcp(443, ACK))),
            WithinLimit,
        ),
        row("the fourth to the other port", ack("192.0.2.14"), OverLimit),
        rows(
            "other ports cost nothing",
            9,
            frame(&ip("192.0.2.15", TCP, &tcp(OTHER, SYN))),
            OtherPort,
        ),
        rows("so all are left", 3, ack("192.0.2.15"), WithinLimit),
        rows("two connections", 2, syn("192.0.2.21"), WithinLimit),
        rows("and not one more", 5, syn("192.0.2.21"), OverConnections),
        row("what was refused as a connection cost no packet", ack("192.0.2.21"), WithinLimit),
        row("but those that were not did", ack("192.0.2.21"), OverLimit),
        row("connections are looked at before packets", syn("192.0.2.21"), OverConnections),
        rows("packets without connections", 3, ack("192.0.2.22"), WithinLimit),
        row("a connection is not open to one who has no packet", syn("192.0.2.22"), OverLimit),
        row(
            "an Initial and a SYN are alike",
            frame(&ip("192.0.2.23", UDP, &udp(443, &quic(INITIAL, QUIC_1)))),
            WithinLimit,
        ),
        row("the second", syn("192.0.2.23"), WithinLimit),
        row(
            "the third",
            frame(&ip("192.0.2.23", UDP, &udp(443, &quic(INITIAL, QUIC_1)))),
            OverConnections,
        ),
        row("a large frame", long("192.0.2.30", 1_500), WithinLimit),
        row("what still fits", long("192.0.2.30", 500), WithinLimit),
        row("what does not", long("192.0.2.30", 60), OverBytes),
        row("one octet too many", long("192.0.2.31", 1_000), WithinLimit),
        row("one octet too many: 1001", long("192.0.2.31", 1_001), OverBytes),
        row("what is smaller still fits", long("192.0.2.31", 1_000), WithinLimit),
        row("refused for its octets, it cost no packet", long("192.0.2.31", 1_000), OverBytes),
        rows("small ones", 3, long("192.0.2.33", 60), WithinLimit),
        row("octets are looked at last", long("192.0.2.33", 1_900), OverLimit),
        row(
            "a frame larger than the burst, of one who rested",
            long("192.0.2.32", 2_100),
            WithinLimit,
        ),
        row("and then nothing", long("192.0.2.32", 60), OverBytes),
        rows("limits doubled twice: twelve packets", 12, ack("192.0.2.50"), WithinLimit),
        row("and not one more", ack("192.0.2.50"), OverLimit),
        rows("limits halved: one packet and a half", 1, ack("192.0.2.51"), WithinLimit),
        row("of which one is whole", ack("192.0.2.51"), OverLimit),
        rows("a banned source is not charged", 9, ack(BANNED), Banned),
        rows("a denied source is not charged", 9, ack("203.0.113.8"), Denied),
        rows("one who is spared is charged like others", 3, ack("127.0.0.30"), WithinLimit),
        rows("and spared when nothing is left", 9, ack("127.0.0.30"), Exempt),
        rows("the link is not charged", 9, ack("fe80::1"), Exempt),
        rows("a host of a /64", 2, ack("2001:db8:10::1"), WithinLimit),
        row("its neighbour", ack("2001:db8:10::2"), WithinLimit),
        row("is the same source", ack("2001:db8:10::3"), OverLimit),
        row("the next /64 is another", ack("2001:db8:10:1::1"), WithinLimit),
    ];
    for network in 0..16 {
        let source = format!("2001:db8:48:{network:x}::1");
        table.push(rows("a site's /64s, each with its three", 3, ack(&source), WithinLimit));
    }
    table.extend([
        row("the site has no more than sixteen of them", ack("2001:db8:48:ff::1"), OverLimit),
        row("the next site has its own", ack("2001:db8:49::1"), WithinLimit),
    ]);
    table
}

/// Strangers, two of whom fit into what all who are not known have together.
fn newcomers() -> Vec<Row> {
    let ack = |source: &str| frame(&acknowledgement(source));
    vec![
        row("the first stranger", ack("192.0.2.1"), WithinLimit),
        row("the second", frame(&ip("192.0.2.2", TCP, &tcp(GUARDED, SYN))), WithinLimit),
        rows("no more than two", 3, ack("192.0.2.3"), OverNewSources),
        row(
            "a connection of a stranger",
            frame(&ip("192.0.2.4", TCP, &tcp(GUARDED, SYN))),
            OverNewSources,
        ),
        row(
            "a fragment of a stranger",
            frame(&fragment_4("192.0.2.4", UDP, 1, &[0; 16])),
            OverNewSources,
        ),
        row("over IPv6 as well", ack(SOMEBODY_6), OverNewSources),
        rows("who is known goes on", 9, ack("192.0.2.1"), WithinLimit),
        row("the other one, too", ack("192.0.2.2"), WithinLimit),
        row("a stranger who is spared", ack("127.0.0.40"), Exempt),
        row("a banned stranger", ack(BANNED), Banned),
        row("a denied stranger", ack("203.0.113.8"), Denied),
        row("a stranger from the link", ack("fe80::1"), Exempt),
        row(
            "a stranger to management",
            frame(&ip("192.0.2.5", TCP, &tcp(OPERATORS, SYN))),
            Management,
        ),
        row(
            "a stranger to another port",
            frame(&ip("192.0.2.5", TCP, &tcp(OTHER, SYN))),
            OtherPort,
        ),
        row("a stranger's echo", frame(&ip("192.0.2.5", ICMP, &[8; 8])), OtherPort),
    ]
}

/// Rules without any limit, so that no frame's outcome depends on those before it.
pub fn unlimited() -> Rules {
    Rules { limit: Limit::NONE, connections: Limit::NONE, bytes: Limit::NONE, ..rules() }
}

/// What is the same whatever came before.
fn stateless() -> Vec<Row> {
    [link(), ipv4(), ipv4_fragments(), portless(), ipv6(), extensions(), ipv6_fragments(), lists()]
        .into_iter()
        .flatten()
        .collect()
}

/// Every frame of the table.
pub fn frames() -> Vec<Vec<u8>> {
    table().into_iter().flat_map(|(_, _, rows)| rows).map(|row| row.frame).collect()
}

/// The parts of the table, with the rules that each is judged by.
fn table() -> Vec<(&'static str, Rules, Vec<Row>)> {
    let (one, two) = (Limit::new(1, LONG_NS, 1), Limit::new(1, LONG_NS, 2));
    vec![
        ("no limits", unlimited(), stateless()),
        ("one connection", Rules { connections: one, ..unlimited() }, connections()),
        ("every limit", rules(), quotas()),
        ("two strangers", Rules { newcomers: two, ..unlimited() }, newcomers()),
    ]
}

#[test]
fn every_row_comes_out_as_written() {
    if !may_load_programs() {
        return;
    }
    let mut failed = Vec::new();
    let mut frames = 0;
    for (part, rules, table) in table() {
        for enforce in [true, false] {
            let rules = Rules { enforce, ..rules.clone() };
            let (loaded, oracle) = (Loaded::new(&rules), Oracle::new(&rules));
            for row in &table {
                frames += row.times;
                let cell = abi::cell(row.expected, enforce);
                let action = if row.expected.drops() && enforce { XDP_DROP } else { XDP_PASS };
                let said: Vec<_> = (0..row.times).map(|_| oracle.judge(&row.frame)).collect();
                let (seen, counted) = loaded.run(&row.frame, row.times);
                let is_right = said.iter().all(|said| *said == (action, cell))
                    && seen == action
                    && counted == HashMap::from([(cell, u64::from(row.times))]);
                if !is_right {
                    failed.push(format!(
                        "{part}, {}: `{}` should be {} (action {action}, cell {cell}); the library \
                         said {said:?}, the kernel {seen} and {counted:?}\n  {:02x?}",
                        if enforce { "enforcing" } else { "observing" },
                        row.why,
                        row.expected.word(),
                        row.frame,
                    ));
                }
            }
        }
    }
    println!("{frames} frames, enforcing and observing together");
    assert!(failed.is_empty(), "{} rows:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn the_table_is_as_large_as_promised_and_has_every_outcome() {
    let rows: Vec<Row> = table().into_iter().flat_map(|(_, _, rows)| rows).collect();
    assert!(rows.len() >= 500, "{} rows", rows.len());
    assert!(rows.iter().all(|row| !row.why.is_empty()));
    for outcome in Outcome::ALL {
        assert!(rows.iter().any(|row| row.expected == outcome), "{}", outcome.word());
    }
}
