//! The real program, run by the kernel on frames of our making, against the library's own verdict
//! on the same octets and the same rules.
//!
//! The program's clock is slowed down so far that it stands still (a jiffy counts as a
//! nanosecond), so nothing here depends on how long a test takes; time passes by writing to the
//! maps.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Mutex,
    thread,
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use gateway::kernel::{
    Service, Transport,
    maps::{self, Maps},
    plan::{self, Prefix},
};
use gateway_ebpf::{
    Outcome, Source,
    abi::{self, Ban, Budget},
    bucket::{self, Limit, Others, SET_WORDS, Set},
    last::Last,
    packet::{Address, Target},
    verdict::{self, Listed, Quota, Standing, Tables, judge},
};
use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
/// Not the first, so that a program that ignores its slot is noticed.
pub const SLOT: u32 = 5;
const SECRET: u64 = 0x5eed_cafe_f00d_1235;
const MAX_SOURCES: u32 = 1024;
const SETS: u32 = abi::bucket_sets(MAX_SOURCES);
/// Far longer than a test takes in jiffies.
pub const LONG_NS: u64 = 1 << 40;

/// Whether programs may be loaded here. Continuous integration must be able to.
pub fn may_load_programs() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    assert!(
        is_root || std::env::var_os("CI").is_none(),
        "the tests of the XDP program need root, and CI runs as somebody else"
    );
    if !is_root {
        eprintln!("not run: loading the XDP program needs root");
    }
    is_root
}

/// The program in the kernel, with maps of its own.
pub struct Loaded {
    pub object: Ebpf,
    pub maps: Maps,
    pub settings: abi::Settings,
    /// The kernel's number for the table of sources.
    pub sources_id: u32,
}

/// What the rules are, for both sides.
#[derive(Clone, Default)]
pub struct Rules {
    pub ports: Vec<u16>,
    pub management: Vec<Service>,
    pub deny: Vec<IpNet>,
    pub exempt: Vec<IpNet>,
    pub banned: Vec<Source>,
    pub banned_nets: Vec<IpNet>,
    /// How often a source's limits are doubled.
    pub classes: Vec<(Source, i32)>,
    pub limit: Limit,
    pub connections: Limit,
    pub bytes: Limit,
    pub newcomers: Limit,
    pub enforce: bool,
}

impl Loaded {
    pub fn new(rules: &Rules) -> Self {
        Self::with_sources(rules, MAX_SOURCES)
    }

    /// One with places for so many sources.
    pub fn with_sources(rules: &Rules, max_sources: u32) -> Self {
        let mut object = maps::load(None, SLOT, max_sources).unwrap();
        let Some(Map::Array(sources)) = object.map(abi::SOURCES_MAP) else { panic!("no table") };
        let sources_id = sources.info().unwrap().id();
        let maps = Maps::take(&mut object).unwrap();
        for name in [abi::PROGRAM, abi::TICK_PROGRAM] {
            let program: &mut Xdp = object.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let mut loaded = Self { object, maps, settings: abi::Settings::default(), sources_id };
        loaded.write(rules);
        loaded.settings.set_shift = abi::set_shift(abi::bucket_sets(max_sources));
        loaded.maps.write_settings(&loaded.settings);
        loaded
    }

    pub fn write(&mut self, rules: &Rules) {
        self.settings = abi::Settings {
            packets: rules.limit,
            connections: rules.connections,
            bytes: rules.bytes,
            network_packets: rules.limit.doubled(verdict::NETWORK_DOUBLINGS),
            network_connections: rules.connections.doubled(verdict::NETWORK_DOUBLINGS),
            newcomers: rules.newcomers,
            ns_per_jiffy: 1,
            secret: SECRET,
            set_shift: abi::set_shift(SETS),
            enforce: u64::from(rules.enforce),
        };
        self.maps.write_settings(&self.settings);
        assert_eq!(self.maps.settings(), self.settings);
        self.maps.write_ports(&plan::ports(&rules.ports, &rules.management));
        let prefixes = |nets: &[IpNet]| nets.iter().map(Prefix::from).collect::<BTreeSet<_>>();
        let filter = plan::prefix_filter(&rules.deny, &rules.exempt, &rules.banned_nets);
        self.maps
            .write_prefixes(&prefixes(&rules.deny), &prefixes(&rules.exempt), &filter)
            .unwrap();
        let now_ns = self.now_ns();
        let classed = rules.classes.iter().map(|(source, _)| source);
        let bits = rules
            .banned
            .iter()
            .chain(classed)
            .map(|&source| abi::ban_bit(bucket::hash(source, SECRET)));
        self.maps.write_ban_filter(plan::BanFilter::new(bits).words());
        for &source in &rules.banned {
            self.ban_until(source, now_ns + LONG_NS);
        }
        for (source, doublings) in &rules.classes {
            let expires_ns = now_ns + LONG_NS;
            let class = abi::Class { expires_ns, doublings: *doublings, _pad: 0 };
            self.maps.write_class(*source, Some(&class)).unwrap();
        }
        for net in &rules.banned_nets {
            self.ban_net_until(net, now_ns + LONG_NS);
        }
    }

    pub fn ban_until(&mut self, source: Source, expires_ns: u64) {
        assert!(self.maps.insert_ban(source, &Ban { expires_ns, ..Ban::default() }).unwrap());
    }

    pub fn ban_net_until(&mut self, net: &IpNet, until_ns: u64) {
        let ban = abi::PrefixBan { until_ns, ..abi::PrefixBan::default() };
        assert!(self.maps.insert_prefix_ban(Prefix::from(net), &ban).unwrap());
    }

    pub fn program(&self, name: &str) -> &Xdp {
        self.object.program(name).unwrap().try_into().unwrap()
    }

    /// The program's clock.
    pub fn now_ns(&self) -> u64 {
        let mut written = [0; 64];
        let options = TestRunOptions {
            data_in: Some(&[0; 64]),
            data_out: Some(&mut written),
            ..TestRunOptions::new()
        };
        self.program(abi::TICK_PROGRAM).test_run(options).unwrap();
        u64::from_ne_bytes(written[..8].try_into().unwrap())
    }

    /// Runs the program on a frame and tells the action, and the cell that counted it.
    pub fn run(&self, frame: &[u8], repeat: u32) -> (u32, HashMap<u32, u64>) {
        let before = self.counts();
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        let action = self.program(abi::PROGRAM).test_run(options).unwrap().return_value;
        let after = self.counts();
        let mut grown = HashMap::new();
        for (cell, (before, after)) in (0..).zip(before.into_iter().zip(after)) {
            let packets = after.packets - before.packets;
            if packets != 0 {
                if cell != abi::EVICTIONS_CELL {
                    assert_eq!(after.bytes - before.bytes, packets * frame.len() as u64);
                }
                grown.insert(cell, packets);
            }
        }
        (action, grown)
    }

    pub fn counts(&self) -> Vec<abi::Count> {
        self.maps.counts(SLOT).unwrap().0.to_vec()
    }
}

/// User space's own tables for the same rules.
pub struct Oracle {
    pub rules: Rules,
    pub sets: Vec<(Set, Others)>,
    pub budget: Budget,
    pub evictions: Cell<u32>,
}

impl Oracle {
    pub fn new(rules: &Rules) -> Self {
        let sets = (0..SETS).map(|_| Default::default()).collect();
        let (budget, evictions) = (Budget::default(), Cell::new(0));
        Self { rules: rules.clone(), sets, budget, evictions }
    }

    fn place(&self, hash: u64) -> Option<&(Set, Others)> {
        self.sets.get(abi::bucket_set(hash, abi::set_shift(SETS)) as usize)
    }

    /// The action and the cell that the program should come to.
    pub fn judge(&self, frame: &[u8]) -> (u32, u32) {
        let outcome = judge(frame, self, &mut Last::default(), LONG_NS);
        let action = if outcome.drops() && self.rules.enforce { XDP_DROP } else { XDP_PASS };
        (action, abi::cell(outcome, self.rules.enforce))
    }
}

impl Tables for Oracle {
    fn revision(&self) -> u64 {
        0
    }

    fn service(&self, target: Target) -> verdict::Service {
        let (port, transport) = match target {
            Target::Tcp(port) => (port, Transport::Tcp),
            Target::Udp(port) => (port, Transport::Udp),
            Target::Fragment | Target::Other | Target::Unreadable => {
                panic!("{target:?} has no port to ask for")
            }
        };
        if self.rules.management.contains(&Service { port, transport }) {
            verdict::Service::Management
        } else if self.rules.ports.contains(&port) {
            verdict::Service::Guarded
        } else {
            verdict::Service::Other
        }
    }

    fn hash(&self, source: Source) -> u64 {
        bucket::hash(source, SECRET)
    }

    fn standing(&self, source: Source, _: u64, _: u64) -> Standing {
        if self.rules.banned.contains(&source) {
            return Standing::Banned;
        }
        let class = self.rules.classes.iter().find(|class| class.0 == source);
        Standing::Limited(class.map_or(0, |class| class.1))
    }

    fn marks(&self, _: Address) -> u8 {
        u8::MAX
    }

    fn listed(&self, address: Address, _: u8, _: u64) -> Listed {
        let covers = |net: &IpNet| net.contains(&plan::ip(address));
        if self.rules.banned_nets.iter().any(covers) {
            Listed::Banned
        } else if self.rules.deny.iter().any(covers) {
            Listed::Denied
        } else {
            Listed::Nowhere
        }
    }

    fn is_exempt(&self, address: Address, _: u8) -> bool {
        self.rules.exempt.iter().any(|net| net.contains(&plan::ip(address)))
    }

    fn limit(&self, quota: Quota) -> Limit {
        match quota {
            Quota::Packets => self.rules.limit,
            Quota::Connections => self.rules.connections,
            Quota::Bytes => self.rules.bytes,
        }
    }

    fn network_limit(&self, quota: Quota) -> Limit {
        self.limit(quota).doubled(verdict::NETWORK_DOUBLINGS)
    }

    fn newcomers(&self) -> (Limit, &Budget) {
        (self.rules.newcomers, &self.budget)
    }

    fn set(&self, hash: u64) -> Option<&Set> {
        self.place(hash).map(|(set, _)| set)
    }

    fn others(&self, hash: u64) -> Option<&Others> {
        self.place(hash).map(|(_, others)| others)
    }

    fn evicted(&self) {
        self.evictions.set(self.evictions.get() + 1);
    }
}

/// Ethernet header (with VLAN tags), IP header, payload.
#[derive(Clone)]
struct Packet {
    tags: Vec<u16>,
    source: IpAddr,
    protocol: u8,
    payload: Vec<u8>,
    /// IPv4: flags and fragment offset.
    fragment: u16,
    /// IPv4: length of the header in words.
    header_words: u8,
}

impl Packet {
    fn to_port(source: &str, protocol: u8, port: u16) -> Self {
        let mut payload = vec![0x30, 0x39];
        payload.extend(port.to_be_bytes());
        payload.extend([0; 16]);
        let source = source.parse().unwrap();
        Self { tags: vec![], source, protocol, payload, fragment: 0, header_words: 5 }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        match self.source {
            IpAddr::V4(source) => {
                frame.extend([8, 0, 0x40 | self.header_words, 0, 0, 0, 0, 0]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend([198, 51, 100, 1]);
                frame.extend(vec![1; (usize::from(self.header_words) * 4).saturating_sub(20)]);
            }
            IpAddr::V6(source) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, self.protocol, 64]);
                frame.extend(source.octets());
                frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            }
        }
        frame.extend(&self.payload);
        frame
    }
}

pub fn rules() -> Rules {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
    Rules {
        ports: vec![8443, 443],
        management: vec![Service { port: 22, transport: Transport::Tcp }],
        deny: nets(&["203.0.113.0/24", "2001:db8:bad::/48", "198.18.0.0/15", "3000::/4"]),
        exempt: nets(&["203.0.113.7/32", "127.0.0.0/8", "2001:db8:bad:1::5/128", "192.0.2.99/32"]),
        banned: vec![source("192.0.2.66"), source("192.0.2.99"), source("2001:db8:66::1")],
        banned_nets: nets(&["198.51.100.0/25", "203.0.113.128/25", "2001:db8:77::/48"]),
        classes: vec![(source("192.0.2.50"), 2), (source("192.0.2.51"), -1)],
        limit: Limit::new(1, LONG_NS, 3),
        connections: Limit::new(1, LONG_NS, 2),
        bytes: Limit::octets(1, 2_000),
        newcomers: Limit::NONE,
        enforce: true,
    }
}

#[test]
fn every_frame_gets_the_verdict_that_user_space_would_give() {
    if !may_load_programs() {
        return;
    }
    let tcp = |source: &str, port| Packet::to_port(source, 6, port);
    let udp = |source: &str, port| Packet::to_port(source, 17, port);
    let with = |packet: Packet, bytes: &[u8]| Packet { payload: bytes.to_vec(), ..packet }.frame();
    // Ports, sequence and acknowledgement, then the length and the flags.
    let segment =
        |flags: u8| [&[0x30, 0x39, 0x20, 0xfb][..], &[1; 8], &[0x50, flags, 0, 0]].concat();
    let (syn, ack) = (segment(0x02), segment(0x10));
    let datagram = |first: u8, version: u32| {
        [&[0x30, 0x39, 0x20, 0xfb, 4, 0xb8, 0, 0, first][..], &version.to_be_bytes(), &[1; 9]]
            .concat()
    };
    // A frame of so many octets.
    let large = |source: &str, bytes: usize| {
        let mut frame = udp(source, 443).frame();
        frame.resize(bytes, 0);
        frame
    };
    let tagged = |tags: &[u16]| Packet { tags: tags.to_vec(), ..tcp("192.0.2.1", 8443) };
    let chain = |count: usize| {
        let packet = tcp("2001:db8:5::1", 8443);
        (0..count).fold(packet, |packet, _| Packet {
            payload: [&[packet.protocol, 0, 0, 0, 0, 0, 0, 0][..], &packet.payload].concat(),
            protocol: 60,
            ..packet
        })
    };
    let cut = |packet: Packet, bytes: usize| packet.frame()[..bytes].to_vec();
    let rows: Vec<(&str, Vec<u8>, Outcome)> = vec![
        ("a guarded port", tcp("192.0.2.1", 8443).frame(), Outcome::WithinLimit),
        ("the second guarded port, UDP", udp("192.0.2.1", 443).frame(), Outcome::WithinLimit),
        ("IPv6", tcp("2001:db8::1", 8443).frame(), Outcome::WithinLimit),
        ("another port", tcp("192.0.2.1", 80).frame(), Outcome::OtherPort),
        ("another port of a banned source", tcp("192.0.2.66", 80).frame(), Outcome::OtherPort),
        ("management of a banned source", tcp("192.0.2.66", 22).frame(), Outcome::Management),
        ("management's port in UDP", udp("192.0.2.66", 22).frame(), Outcome::OtherPort),
        ("a banned source", tcp("192.0.2.66", 8443).frame(), Outcome::Banned),
        ("another host of a banned /64", udp("2001:db8:66::99", 443).frame(), Outcome::Banned),
        ("the next /64", tcp("2001:db8:66:1::1", 8443).frame(), Outcome::WithinLimit),
        ("banned but exempt", tcp("192.0.2.99", 8443).frame(), Outcome::Exempt),
        ("denied", tcp("203.0.113.8", 8443).frame(), Outcome::Denied),
        ("denied but exempt", tcp("203.0.113.7", 8443).frame(), Outcome::Exempt),
        ("denied by a /15", tcp("198.19.255.1", 8443).frame(), Outcome::Denied),
        ("beside the /15", tcp("198.20.0.1", 8443).frame(), Outcome::WithinLimit),
        ("denied IPv6", tcp("2001:db8:bad:ffff::1", 443).frame(), Outcome::Denied),
        ("denied by a /4", tcp("3fff::1", 443).frame(), Outcome::Denied),
        ("an exempt host in a denied /48", tcp("2001:db8:bad:1::5", 443).frame(), Outcome::Exempt),
        ("its neighbour", tcp("2001:db8:bad:1::6", 443).frame(), Outcome::Denied),
        ("one tag", tagged(&[0x8100]).frame(), Outcome::WithinLimit),
        ("two tags", tagged(&[0x88a8, 0x8100]).frame(), Outcome::OverLimit),
        ("three tags", tagged(&[0x88a8, 0x8100, 0x8100]).frame(), Outcome::NotIp),
        (
            "options",
            Packet { header_words: 15, ..tcp("192.0.2.2", 8443) }.frame(),
            Outcome::WithinLimit,
        ),
        (
            "a header of 16 octets",
            Packet { header_words: 4, ..tcp("192.0.2.2", 8443) }.frame(),
            Outcome::Malformed,
        ),
        ("IPv4 cut", cut(tcp("192.0.2.2", 8443), 33), Outcome::Malformed),
        ("ports cut", cut(tcp("192.0.2.2", 8443), 36), Outcome::Malformed),
        ("ports cut, exempt", cut(tcp("127.0.0.1", 8443), 36), Outcome::Exempt),
        (
            "a first fragment",
            Packet { fragment: 0x2000, ..udp("192.0.2.3", 443) }.frame(),
            Outcome::WithinLimit,
        ),
        (
            "a later fragment",
            Packet { fragment: 0x00b9, ..udp("192.0.2.3", 80) }.frame(),
            Outcome::WithinLimit,
        ),
        (
            "a later fragment of a banned source",
            Packet { fragment: 0x2001, ..udp("192.0.2.66", 80) }.frame(),
            Outcome::Banned,
        ),
        (
            "a later fragment of ICMP",
            Packet { fragment: 1, protocol: 1, ..udp("192.0.2.66", 80) }.frame(),
            Outcome::OtherPort,
        ),
        ("1 extension header", chain(1).frame(), Outcome::WithinLimit),
        ("6 extension headers", chain(6).frame(), Outcome::WithinLimit),
        ("7 extension headers", chain(7).frame(), Outcome::Malformed),
        ("ICMP", Packet::to_port("192.0.2.66", 1, 8443).frame(), Outcome::OtherPort),
        ("ICMPv6", Packet::to_port("2001:db8:66::1", 58, 0).frame(), Outcome::OtherPort),
        ("from the link", tcp("fe80::1", 8443).frame(), Outcome::Exempt),
        ("from nowhere", tcp("::", 8443).frame(), Outcome::Exempt),
        ("an IPv4-mapped source", tcp("::ffff:127.0.0.1", 8443).frame(), Outcome::Malformed),
        ("of a banned /25", tcp("198.51.100.127", 443).frame(), Outcome::Banned),
        ("beside it", tcp("198.51.100.128", 443).frame(), Outcome::WithinLimit),
        ("of one that is denied too", tcp("203.0.113.200", 443).frame(), Outcome::Banned),
        ("of a banned /48", udp("2001:db8:77:abcd::1", 443).frame(), Outcome::Banned),
        ("beside that", udp("2001:db8:78::1", 443).frame(), Outcome::WithinLimit),
        ("management of a banned prefix", tcp("198.51.100.1", 22).frame(), Outcome::Management),
        ("a SYN", with(tcp("192.0.2.20", 0), &syn), Outcome::WithinLimit),
        ("its ACK", with(tcp("192.0.2.20", 0), &ack), Outcome::WithinLimit),
        ("a SYN of another source", with(tcp("192.0.2.21", 0), &syn), Outcome::WithinLimit),
        ("the second SYN", with(tcp("192.0.2.21", 0), &syn), Outcome::WithinLimit),
        ("the third SYN", with(tcp("192.0.2.21", 0), &syn), Outcome::OverConnections),
        ("an ACK after it", with(tcp("192.0.2.21", 0), &ack), Outcome::WithinLimit),
        ("and one too many", with(tcp("192.0.2.21", 0), &ack), Outcome::OverLimit),
        ("a SYN to another port", tcp("192.0.2.21", 80).frame(), Outcome::OtherPort),
        ("a SYN of the exempt", with(tcp("127.0.0.9", 0), &syn), Outcome::WithinLimit),
        ("another", with(tcp("127.0.0.9", 0), &syn), Outcome::WithinLimit),
        ("too many, but exempt", with(tcp("127.0.0.9", 0), &syn), Outcome::Exempt),
        ("an Initial", with(udp("192.0.2.22", 0), &datagram(0xc3, 1)), Outcome::WithinLimit),
        (
            "an Initial of version 2",
            with(udp("192.0.2.22", 0), &datagram(0xd3, 0x6b33_43cf)),
            Outcome::WithinLimit,
        ),
        (
            "of a version nobody knows",
            with(udp("192.0.2.22", 0), &datagram(0xf0, 0x1a2a_3a4a)),
            Outcome::OverConnections,
        ),
        ("a SYN after them", with(tcp("192.0.2.22", 0), &syn), Outcome::OverConnections),
        ("a Handshake", with(udp("192.0.2.22", 0), &datagram(0xe3, 1)), Outcome::WithinLimit),
        ("a SYN over IPv6", with(tcp("2001:db8:22::1", 0), &syn), Outcome::WithinLimit),
        ("its neighbour's", with(tcp("2001:db8:22::2", 0), &syn), Outcome::WithinLimit),
        ("a third in the /64", with(tcp("2001:db8:22::3", 0), &syn), Outcome::OverConnections),
        ("a SYN of a banned source", with(tcp("192.0.2.66", 0), &syn), Outcome::Banned),
        ("500 octets", large("192.0.2.30", 500), Outcome::WithinLimit),
        ("1000 more", large("192.0.2.30", 1_000), Outcome::WithinLimit),
        ("a frame that no longer fits", large("192.0.2.30", 501), Outcome::OverBytes),
        ("that of another source", large("192.0.2.31", 501), Outcome::WithinLimit),
        (
            "one larger than the burst, of a rested source",
            large("192.0.2.32", 2_060),
            Outcome::WithinLimit,
        ),
        ("too large, but exempt", large("127.0.0.30", 2_060), Outcome::WithinLimit),
        ("a second, but exempt", large("127.0.0.30", 2_060), Outcome::Exempt),
        ("ARP", [&[2; 12][..], &[8, 6], &[0; 46]].concat(), Outcome::NotIp),
        ("nothing but addresses", vec![2; 14], Outcome::NotIp),
    ];
    for enforce in [true, false] {
        let rules = Rules { enforce, ..rules() };
        let loaded = Loaded::new(&rules);
        let oracle = Oracle::new(&rules);
        for (what, frame, outcome) in &rows {
            let cell = abi::cell(*outcome, enforce);
            let action = if outcome.drops() && enforce { XDP_DROP } else { XDP_PASS };
            assert_eq!(oracle.judge(frame), (action, cell), "user space: {what}");
            let (seen, counted) = loaded.run(frame, 1);
            assert_eq!(counted, HashMap::from([(cell, 1)]), "kernel: {what}");
            assert_eq!(seen, action, "kernel: {what}");
        }
    }
}

#[test]
fn no_frame_is_read_otherwise_by_the_kernel() {
    if !may_load_programs() {
        return;
    }
    // Without a limit, so that one frame's verdict does not depend on those before it.
    let rules =
        Rules { limit: Limit::NONE, connections: Limit::NONE, bytes: Limit::NONE, ..rules() };
    let loaded = Mutex::new(Loaded::new(&rules));
    let mut addresses: Vec<IpAddr> = rules.banned.iter().map(|source| source.address()).collect();
    let nets = rules.deny.iter().chain(&rules.exempt).chain(&rules.banned_nets);
    addresses.extend(nets.map(IpNet::addr));
    addresses.extend(
        ["192.0.2.1", "fe80::1", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap()),
    );
    let protocols = prop::sample::select(vec![0u8, 6, 17, 43, 44, 51, 58, 60, 135, 1, 6, 17]);
    let packet = (
        prop::sample::select(addresses),
        protocols.clone(),
        prop::collection::vec(prop::sample::select(vec![0x8100u16, 0x88a8]), 0..4),
        prop_oneof![Just(0u16), Just(0x2000), any::<u16>()],
        prop_oneof![Just(5u8), 0u8..16],
        // Extension headers to be: next header, length, ten octets that may be ports.
        prop::collection::vec(
            (protocols, 0u8..3, prop_oneof![Just([0x20, 0xfb]), any::<[u8; 2]>()]),
            0..9,
        ),
        prop::collection::vec((0usize..100, any::<u8>()), 0..2),
        14usize..200,
    );
    let frames = packet.prop_map(
        |(source, protocol, tags, fragment, header_words, headers, flips, length)| {
            let mut payload: Vec<u8> = headers
                .iter()
                .flat_map(|&(next, length, port)| [next, length, port[0], port[1], 0, 0, 0, 0])
                .collect();
            payload.extend([0x30, 0x39, 0x20, 0xfb]);
            let packet = Packet { tags, source, protocol, payload, fragment, header_words };
            let mut frame = packet.frame();
            for (at, octet) in flips {
                if let Some(place) = frame.get_mut(at) {
                    *place = octet;
                }
            }
            frame.truncate(length);
            frame
        },
    );
    let oracle = Mutex::new(Oracle::new(&rules));
    let mut runner =
        TestRunner::new(Config { cases: 2_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&frames, |frame| {
            let (action, cell) = oracle.lock().unwrap().judge(&frame);
            let (seen, counted) = loaded.lock().unwrap().run(&frame, 1);
            prop_assert_eq!(counted, HashMap::from([(cell, 1)]));
            prop_assert_eq!(seen, action);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_source_gets_its_burst_then_its_rate_to_the_packet() {
    if !may_load_programs() {
        return;
    }
    let limit = Limit::new(1, LONG_NS, 100);
    let rules = Rules { limit, connections: Limit::NONE, bytes: Limit::NONE, ..rules() };
    let loaded = Loaded::new(&rules);
    let frame = Packet::to_port("192.0.2.1", 17, 443).frame();
    let (within, over) =
        (abi::cell(Outcome::WithinLimit, true), abi::cell(Outcome::OverLimit, true));
    assert_eq!(loaded.run(&frame, 1_000).1, HashMap::from([(within, 100), (over, 900)]));
    // A second source has a burst of its own.
    let other = Packet::to_port("192.0.2.2", 17, 443).frame();
    assert_eq!(loaded.run(&other, 150).1, HashMap::from([(within, 100), (over, 50)]));

    // Ten tokens' time passes for every bucket: each moves into the past. A set holds sources and
    // their buckets of packets, in turns.
    let sources = MapData::from_id(loaded.sources_id).unwrap();
    let mut sources: Array<_, [u64; SET_WORDS]> = Map::Array(sources).try_into().unwrap();
    let mut pass_time = |tokens: u64| {
        for index in 0..sources.len() {
            let mut set = sources.get(&index, 0).unwrap();
            for way in set.chunks_exact_mut(2).filter(|way| way[0] != 0) {
                way[1] = way[1].saturating_sub(tokens * limit.cost_ns);
            }
            sources.set(index, set, 0).unwrap();
        }
    };
    pass_time(10);
    assert_eq!(loaded.run(&frame, 1_000).1, HashMap::from([(within, 10), (over, 990)]));
    // However long it rests, a source never gets more than the burst.
    pass_time(1_000);
    assert_eq!(loaded.run(&frame, 1_000).1, HashMap::from([(within, 100), (over, 900)]));
}

#[test]
fn a_source_opens_its_burst_of_connections_and_keeps_those_it_has() {
    if !may_load_programs() {
        return;
    }
    let rules = Rules {
        limit: Limit::NONE,
        connections: Limit::new(1, LONG_NS, 50),
        bytes: Limit::NONE,
        ..rules()
    };
    let loaded = Loaded::new(&rules);
    let segment = |flags| Packet {
        payload: vec![0x30, 0x39, 0x20, 0xfb, 1, 1, 1, 1, 1, 1, 1, 1, 0x50, flags],
        ..Packet::to_port("192.0.2.1", 6, 0)
    };
    let cell = |outcome| abi::cell(outcome, true);
    let (within, over) = (cell(Outcome::WithinLimit), cell(Outcome::OverConnections));
    let counted = loaded.run(&segment(0x02).frame(), 1_000).1;
    assert_eq!(counted, HashMap::from([(within, 50), (over, 950)]));
    let counted = loaded.run(&segment(0x10).frame(), 1_000).1;
    assert_eq!(counted, HashMap::from([(within, 1_000)]));
}

#[test]
fn a_source_sends_its_octets_to_the_frame() {
    if !may_load_programs() {
        return;
    }
    let rules = Rules { limit: Limit::NONE, bytes: Limit::octets(1, 100_000), ..rules() };
    let loaded = Loaded::new(&rules);
    let mut frame = Packet::to_port("192.0.2.1", 17, 443).frame();
    frame.resize(1_000, 0);
    let cell = |outcome| abi::cell(outcome, true);
    let (within, over) = (cell(Outcome::WithinLimit), cell(Outcome::OverBytes));
    assert_eq!(loaded.run(&frame, 1_000).1, HashMap::from([(within, 100), (over, 900)]));
    let unlimited = Loaded::new(&Rules { bytes: Limit::NONE, ..rules });
    assert_eq!(unlimited.run(&frame, 1_000).1, HashMap::from([(within, 1_000)]));
}

#[test]
fn the_sources_of_one_site_share_sixteen_times_the_limit_of_one() {
    if !may_load_programs() {
        return;
    }
    let three = Limit::new(1, LONG_NS, 3);
    let payload = vec![0x30, 0x39, 0x20, 0xfb, 1, 1, 1, 1, 1, 1, 1, 1, 0x50, 0x02];
    for (rules, over) in [
        (Rules { limit: three, connections: Limit::NONE, ..rules() }, Outcome::OverLimit),
        (Rules { limit: Limit::NONE, connections: three, ..rules() }, Outcome::OverConnections),
    ] {
        let rules = Rules { bytes: Limit::NONE, ..rules };
        let (loaded, oracle) = (Loaded::new(&rules), Oracle::new(&rules));
        let mut within = 0;
        let mut send = |site: u16, network: u16| {
            let source = format!("2001:db8:{site:x}:{network:x}::1");
            let frame =
                Packet { payload: payload.clone(), ..Packet::to_port(&source, 6, 0) }.frame();
            let (action, cell) = oracle.judge(&frame);
            assert_eq!(loaded.run(&frame, 1), (action, HashMap::from([(cell, 1)])), "{source}");
            if cell == abi::cell(Outcome::WithinLimit, true) {
                within += 1;
            } else {
                assert_eq!(cell, abi::cell(over, true), "{source}");
            }
            within
        };
        // One after the other, so that none is over its own limit.
        for network in 0..60 {
            send(7, network);
        }
        // The next site has its own; one of its networks still has no more than a source.
        assert_eq!(send(8, 1), 48 + 1);
        for _ in 0..10 {
            send(8, 2);
        }
        assert_eq!(send(8, 1), 48 + 1 + 3 + 1);
    }
}

#[test]
fn a_sources_class_multiplies_its_limits() {
    if !may_load_programs() {
        return;
    }
    let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
    let limit = Limit::new(1, LONG_NS, 40);
    let classes =
        vec![(source("192.0.2.50"), 2), (source("192.0.2.51"), -2), (source("2001:db8:50::1"), 6)];
    let rules = Rules { limit, bytes: Limit::NONE, classes, ..rules() };
    let loaded = Loaded::new(&rules);
    let (within, over) =
        (abi::cell(Outcome::WithinLimit, true), abi::cell(Outcome::OverLimit, true));
    for (source, passed) in
        [("192.0.2.50", 160), ("192.0.2.51", 10), ("192.0.2.52", 40), ("2001:db8:50::9", 2_560)]
    {
        let frame = Packet::to_port(source, 17, 443).frame();
        let counted = loaded.run(&frame, 5_000).1;
        assert_eq!(counted, HashMap::from([(within, passed), (over, 5_000 - passed)]), "{source}");
    }
}

#[test]
fn two_cpus_together_get_one_burst() {
    if !may_load_programs() {
        return;
    }
    let thousand = Limit::new(1, LONG_NS, 1_000);
    let syn = Packet {
        payload: vec![0x30, 0x39, 0x20, 0xfb, 1, 1, 1, 1, 1, 1, 1, 1, 0x50, 0x02],
        ..Packet::to_port("192.0.2.1", 6, 0)
    };
    for (rules, frame, outcome) in [
        (
            Rules { limit: thousand, bytes: Limit::NONE, ..rules() },
            Packet::to_port("192.0.2.1", 17, 443).frame(),
            Outcome::OverLimit,
        ),
        (
            Rules { limit: Limit::NONE, connections: thousand, bytes: Limit::NONE, ..rules() },
            syn.frame(),
            Outcome::OverConnections,
        ),
    ] {
        two_cpus_spend(&rules, &frame, outcome);
    }
}

/// Both CPUs ask for what a source may have a thousand of.
fn two_cpus_spend(rules: &Rules, frame: &[u8], outcome: Outcome) {
    let loaded = Loaded::new(rules);
    // The bucket is there before the two begin, so they only ever add to it.
    loaded.run(frame, 1);
    let program = loaded.program(abi::PROGRAM);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let options = TestRunOptions {
                    data_in: Some(frame),
                    repeat: 200_000,
                    ..TestRunOptions::new()
                };
                program.test_run(options).unwrap();
            });
        }
    });
    let count = |outcome| loaded.maps.count(SLOT, abi::cell(outcome, true)).unwrap().packets;
    let (within, over) = (count(Outcome::WithinLimit), count(outcome));
    assert_eq!(within + over, 400_001, "every packet is counted");
    // Two CPUs that look at the last token at once both take it.
    assert!((1_000..=1_001).contains(&within), "{within} of 1000 passed");
}

#[test]
fn a_ban_ends_by_itself_and_a_filter_without_a_ban_is_none() {
    if !may_load_programs() {
        return;
    }
    let rules = Rules { limit: Limit::NONE, ..rules() };
    let mut loaded = Loaded::new(&rules);
    let frame = Packet::to_port("192.0.2.66", 6, 8443).frame();
    let source = rules.banned[0];
    let cell = |outcome| HashMap::from([(abi::cell(outcome, true), 1)]);
    assert_eq!(loaded.run(&frame, 1), (XDP_DROP, cell(Outcome::Banned)));
    let now_ns = loaded.now_ns();
    loaded.ban_until(source, now_ns);
    assert_eq!(loaded.run(&frame, 1), (XDP_PASS, cell(Outcome::WithinLimit)));
    loaded.ban_until(source, now_ns + LONG_NS);
    assert_eq!(loaded.run(&frame, 1), (XDP_DROP, cell(Outcome::Banned)));
    assert!(loaded.maps.remove_ban(source).unwrap() && !loaded.maps.remove_ban(source).unwrap());
    assert_eq!(loaded.run(&frame, 1), (XDP_PASS, cell(Outcome::WithinLimit)));
}

#[test]
fn bans_that_find_their_set_full_hold_all_the_same() {
    if !may_load_programs() {
        return;
    }
    let mut loaded = Loaded::new(&Rules { limit: Limit::NONE, ..rules() });
    let set = |source: Source| abi::ban_bit(bucket::hash(source, SECRET)) / 64;
    let first = Source::ipv4(0x0a00_0000);
    let same = (0x0a00_0000..).map(Source::ipv4).filter(|source| set(*source) == set(first));
    let sources: Vec<Source> = same.take(abi::BAN_WAYS + 2).collect();
    loaded.maps.write_ban_filter(&[u64::MAX; abi::BAN_FILTER_WORDS as usize]);
    let until = loaded.now_ns() + LONG_NS;
    let frame = |source: Source| Packet::to_port(&source.address().to_string(), 17, 443).frame();
    for (count, source) in sources.iter().enumerate() {
        assert_eq!(loaded.run(&frame(*source), 1).0, XDP_PASS, "{count} bans");
        loaded.ban_until(*source, until);
        for (other, banned) in sources.iter().enumerate() {
            let action = if other <= count { XDP_DROP } else { XDP_PASS };
            assert_eq!(loaded.run(&frame(*banned), 1).0, action, "{other} of {count}");
        }
    }
    // The first is lifted; the next takes its place in the set, and nothing is mistaken for another.
    assert!(loaded.maps.remove_ban(sources[0]).unwrap());
    assert_eq!(loaded.run(&frame(sources[0]), 1).0, XDP_PASS);
    let another = (0x0b00_0000..).map(Source::ipv4).find(|source| set(*source) == set(first));
    loaded.ban_until(another.unwrap(), until);
    for (source, action) in [(sources[0], XDP_PASS), (sources[1], XDP_DROP), (sources[5], XDP_DROP)]
    {
        assert_eq!(loaded.run(&frame(source), 1).0, action, "{source}");
    }
    assert_eq!(loaded.run(&frame(another.unwrap()), 1).0, XDP_DROP);
    // As after a restart.
    loaded.maps.rebuild_ban_sets().unwrap();
    for source in &sources[1..] {
        assert_eq!(loaded.run(&frame(*source), 1).0, XDP_DROP, "{source}");
    }
    assert_eq!(loaded.run(&frame(sources[0]), 1).0, XDP_PASS);
}

#[test]
fn sources_never_seen_share_one_budget_in_the_kernel_too() {
    if !may_load_programs() {
        return;
    }
    let rules = Rules {
        limit: Limit::NONE,
        connections: Limit::NONE,
        bytes: Limit::NONE,
        newcomers: Limit::new(1, LONG_NS, 20),
        ..rules()
    };
    let (loaded, oracle) = (Loaded::new(&rules), Oracle::new(&rules));
    let mut counted: HashMap<u32, u64> = HashMap::new();
    for round in 0..3 {
        for host in 0..30_u8 {
            for source in [format!("192.0.2.{host}"), format!("2001:db8:5:{host:x}::1")] {
                let frame = Packet::to_port(&source, 17, 443).frame();
                let (action, cell) = oracle.judge(&frame);
                assert_eq!(loaded.run(&frame, 1), (action, HashMap::from([(cell, 1)])), "{source}");
                *counted.entry(cell).or_default() += u64::from(round == 0);
            }
        }
    }
    let cell = |outcome| abi::cell(outcome, true);
    // The first twenty, and whoever is exempt.
    assert_eq!(counted[&cell(Outcome::WithinLimit)], 20);
    assert_eq!(counted[&cell(Outcome::OverNewSources)], 40);
}

#[test]
fn drops_are_told_of_but_not_all_of_them() {
    if !may_load_programs() {
        return;
    }
    for enforce in [true, false] {
        let mut loaded = Loaded::new(&Rules { enforce, ..rules() });
        let frames = [
            Packet::to_port("192.0.2.66", 6, 8443).frame(),
            Packet::to_port("2001:db8:66::9", 17, 443).frame(),
            Packet::to_port("203.0.113.8", 17, 443).frame()[..37].to_vec(),
        ];
        let outcomes = [Outcome::Banned, Outcome::Banned, Outcome::Malformed];
        for frame in &frames {
            loaded.run(frame, 1);
        }
        loaded.run(&Packet::to_port("192.0.2.1", 6, 8443).frame(), 1);
        for (frame, outcome) in frames.iter().zip(outcomes) {
            let event = loaded.maps.take_event().unwrap();
            assert!(event.monotonic_ns > 0);
            let told = (event.slot, event.outcome, event.frame_bytes, event.enforced);
            let frame_bytes = frame.len() as u64;
            assert_eq!(told, (SLOT, outcome as u32, frame_bytes, u64::from(enforce)));
            let head = event.head.map(u64::to_ne_bytes).concat();
            let whole = frame.len() / 8 * 8;
            assert_eq!(head[..whole], frame[..whole]);
            assert!(head[whole..].iter().all(|octet| *octet == 0));
        }
        assert_eq!(loaded.maps.take_event(), None);
        // The clock stands still, so what is left of each CPU's burst is all there is.
        loaded.run(&frames[0], 100_000);
        let told = std::iter::from_fn(|| loaded.maps.take_event()).count();
        assert!((13..=16 * 64).contains(&told), "{told}");
        assert_eq!(loaded.maps.counts(SLOT).unwrap().1, 0);
    }
}

#[test]
fn a_prefixs_ban_ends_by_itself_and_the_list_of_denied_holds_on() {
    if !may_load_programs() {
        return;
    }
    let mut loaded = Loaded::new(&rules());
    let cell = |outcome| HashMap::from([(abi::cell(outcome, true), 1)]);
    for (net, source, after) in [
        ("198.51.100.0/25", "198.51.100.5", Outcome::WithinLimit),
        ("203.0.113.128/25", "203.0.113.200", Outcome::Denied),
        ("2001:db8:77::/48", "2001:db8:77::5", Outcome::WithinLimit),
    ] {
        let net: IpNet = net.parse().unwrap();
        let frame = Packet::to_port(source, 17, 443).frame();
        let now_ns = loaded.now_ns();
        loaded.ban_net_until(&net, now_ns);
        assert_eq!(loaded.run(&frame, 1).1, cell(after), "{net}");
        loaded.ban_net_until(&net, now_ns + LONG_NS);
        assert_eq!(loaded.run(&frame, 1).1, cell(Outcome::Banned), "{net}");
        loaded.maps.remove_prefix_ban(Prefix::from(&net)).unwrap();
        assert_eq!(loaded.run(&frame, 1).1, cell(after), "{net}");
    }
}

#[test]
fn lists_and_ports_change_while_the_program_runs() {
    if !may_load_programs() {
        return;
    }
    let mut rules = Rules { limit: Limit::NONE, ..rules() };
    let mut loaded = Loaded::new(&rules);
    let frame = Packet::to_port("203.0.113.8", 6, 8443).frame();
    let mut expect = |rules: &Rules, outcome: Outcome| {
        loaded.write(rules);
        let cell = abi::cell(outcome, rules.enforce);
        assert_eq!(loaded.run(&frame, 1).1, HashMap::from([(cell, 1)]));
    };
    expect(&rules, Outcome::Denied);
    rules.enforce = false;
    expect(&rules, Outcome::Denied);
    rules.deny.clear();
    expect(&rules, Outcome::WithinLimit);
    rules.deny.push("::/0".parse().unwrap());
    expect(&rules, Outcome::WithinLimit);
    rules.deny.push("0.0.0.0/0".parse().unwrap());
    expect(&rules, Outcome::Denied);
    rules.exempt.push("203.128.0.0/9".parse().unwrap());
    expect(&rules, Outcome::Denied);
    rules.exempt.push("203.0.0.0/8".parse().unwrap());
    expect(&rules, Outcome::Exempt);
    rules.ports = vec![443];
    expect(&rules, Outcome::OtherPort);
}

#[test]
fn the_maps_are_made_as_the_loader_expects_to_find_them() {
    if !may_load_programs() {
        return;
    }
    let mut object = maps::load(None, SLOT, 1_000_000).unwrap();
    let names: BTreeSet<String> = object.maps().map(|(name, _)| name.to_owned()).collect();
    for layout in maps::layouts(1_000_000) {
        assert!(names.contains(layout.name), "{} is not in the object", layout.name);
        let map = object.take_map(layout.name).unwrap();
        let (Map::Array(map)
        | Map::HashMap(map)
        | Map::LpmTrie(map)
        | Map::PerCpuArray(map)
        | Map::RingBuf(map)) = map
        else {
            panic!("{} is of a kind that no layout has", layout.name)
        };
        let info = map.info().unwrap();
        assert!(layout.describes(&info), "{layout:?} is made otherwise: {info:?}");
        let smaller = maps::layouts(500_000).into_iter().find(|other| other.name == layout.name);
        let is_sized_for_sources = [abi::SOURCES_MAP, abi::OTHERS_MAP].contains(&layout.name);
        assert_eq!(smaller.unwrap().describes(&info), !is_sized_for_sources, "{}", layout.name);
    }
}
