//! Frames at random: the kernel's verdict against the library's and the model's.
//!
//! Most are frames of the table with something wrong, because octets at random end at the first
//! check. The seed is printed, and [`SEED`] sets it: the same seed makes the same frames. What is
//! run is bounded in frames and in time, so that an emulated processor gets done, too.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use gateway_ebpf::{
    Outcome, Source,
    abi::{self, Class},
    bucket::Limit,
    last::Last,
    rehearsal::{self, Sender, Stage},
    verdict::judge,
};
use ipnet::IpNet;

use crate::{
    harness::{clock, flood::pin_to_core},
    rehearsal::{read, written},
    xdp_frames::{self, ACK, INITIAL, QUIC_1, SYN, TCP, UDP, ip, quic, tcp, udp},
    xdp_model,
    xdp_packets::{Loaded, Oracle, Rules, XDP_DROP, XDP_PASS, may_load_programs},
    xdp_table,
};

/// Chooses the frames; a number.
const SEED: &str = "PORTCULLIS_TEST_SEED";
/// Frames of one run, and the least of them in the time that there is.
const FRAMES: u32 = 200_000;
const FRAMES_MIN: u32 = 2_000;
/// Of which a processor of one's own needs a tenth.
const TIME: Duration = Duration::from_secs(20);
/// Frames between two looks at the counters.
const LOOK_EVERY: u32 = 100;
/// The kernel runs programs on frames of at least an Ethernet header, and of less than a page with
/// what it puts before and behind.
const OCTETS: std::ops::RangeInclusive<usize> = 14..=3_000;

/// Numbers without a pattern, the same for the same seed (SplitMix64).
pub struct Numbers(u64);

impl Numbers {
    /// From the environment, or of this moment; printed.
    pub fn new(test: &str) -> Self {
        let seed = std::env::var(SEED).ok().map_or_else(
            || clock::unix_s() << 20 ^ u64::from(std::process::id()),
            |text| text.parse().unwrap(),
        );
        println!("{test}: {SEED}={seed}");
        Self(seed)
    }

    /// Of this seed.
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let number = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    }

    /// Below a bound that is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }
}

/// Octets that mean something somewhere in a frame.
const TELLING: [u8; 24] = [
    0, 1, 2, 4, 6, 8, 17, 20, 43, 44, 47, 51, 58, 59, 60, 64, 0x45, 0x60, 0x80, 0x81, 0x88, 0xa8,
    0xdd, 255,
];

/// A frame of the table with something wrong, or hardly a frame.
fn frame(numbers: &mut Numbers, table: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = table[numbers.below(table.len())].clone();
    for _ in 0..numbers.below(4) {
        wrong(numbers, table, &mut frame);
    }
    if numbers.below(16) == 0 {
        let length = numbers.below(120);
        frame = (0..length).map(|_| numbers.next() as u8).collect();
        if length > 14 {
            let kind = numbers.one_of(&[[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]]);
            frame[12..14].copy_from_slice(&kind);
        }
    }
    frame.resize(frame.len().clamp(*OCTETS.start(), *OCTETS.end()), 0);
    frame
}

fn wrong(numbers: &mut Numbers, table: &[Vec<u8>], frame: &mut Vec<u8>) {
    if frame.is_empty() {
        return;
    }
    // The headers, mostly.
    let reach = if numbers.below(4) == 0 { frame.len() } else { frame.len().min(80) };
    let at = numbers.below(reach);
    match numbers.below(8) {
        0 => frame[at] = numbers.next() as u8,
        1 => frame[at] = numbers.one_of(&TELLING),
        2 => frame[at] ^= 1 << numbers.below(8),
        3 => frame.truncate(at),
        4 => drop(frame.drain(at..frame.len().min(at + 1 + numbers.below(8)))),
        5 => {
            let octets: Vec<u8> =
                (0..1 + numbers.below(8)).map(|_| numbers.one_of(&TELLING)).collect();
            drop(frame.splice(at..at, octets));
        }
        // Another frame's end.
        6 => {
            let other = &table[numbers.below(table.len())];
            frame.truncate(at);
            frame.extend(&other[at.min(other.len())..]);
        }
        // A packet in another's headers.
        _ => {
            let other = &table[numbers.below(table.len())];
            frame.truncate(at);
            frame.extend(&other[other.len().min(14)..]);
        }
    }
}

/// A program, user space's tables, and what should have been counted since the last look.
struct Bench {
    loaded: Loaded,
    oracle: Oracle,
    counted: Vec<u64>,
    expected: BTreeMap<u32, u64>,
    /// Those frames.
    frames: Vec<Vec<u8>>,
}

impl Bench {
    fn new(rules: &Rules) -> Self {
        let loaded = Loaded::new(rules);
        let counted = packets(&loaded);
        let oracle = Oracle::new(rules);
        Self { loaded, oracle, counted, expected: BTreeMap::new(), frames: Vec::new() }
    }

    /// What user space says, and that the kernel's action is the same.
    fn send(&mut self, frame: Vec<u8>) {
        let (action, cell) = self.oracle.judge(&frame);
        let outcome = xdp_model::judge(&self.oracle.rules, &frame);
        let enforce = self.oracle.rules.enforce;
        let model = if outcome.drops() && enforce { XDP_DROP } else { XDP_PASS };
        assert_eq!((model, abi::cell(outcome, enforce)), (action, cell), "model: {frame:02x?}");
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
        let ran = self.loaded.program(abi::PROGRAM).test_run(options).unwrap();
        assert_eq!(ran.return_value, action, "kernel, cell {cell}: {frame:02x?}");
        *self.expected.entry(cell).or_default() += 1;
        self.frames.push(frame);
    }

    /// That the frames since the last look were counted as what they are.
    fn look(&mut self) {
        let counted = packets(&self.loaded);
        let grown: BTreeMap<u32, u64> = (0..)
            .zip(counted.iter().zip(&self.counted).map(|(now, before)| now - before))
            .filter(|(_, grown)| *grown != 0)
            .collect();
        if grown != self.expected {
            // One by one; without limits a frame comes out the same again.
            for frame in &self.frames {
                let cell = self.oracle.judge(frame).1;
                let counted = self.loaded.run(frame, 1).1;
                assert!(counted.contains_key(&cell), "{counted:?} instead of {cell}: {frame:02x?}");
            }
            panic!("{grown:?} instead of {:?}, and not again", self.expected);
        }
        self.counted = counted;
        self.expected.clear();
        self.frames.clear();
    }
}

fn packets(loaded: &Loaded) -> Vec<u64> {
    loaded.counts().iter().map(|count| count.packets).collect()
}

#[test]
fn frames_at_random_come_out_as_the_library_and_the_model_say() {
    if !may_load_programs() {
        return;
    }
    let mut numbers = Numbers::new("xdp_fuzz, frames");
    let table = xdp_table::frames();
    let started = clock::now();
    let mut sent = 0;
    let mut seen = BTreeMap::new();
    for enforce in [true, false] {
        let mut bench = Bench::new(&Rules { enforce, ..xdp_table::unlimited() });
        for _ in 0..FRAMES / 2 / LOOK_EVERY {
            if started.elapsed() > TIME && sent >= FRAMES_MIN {
                break;
            }
            for _ in 0..LOOK_EVERY {
                bench.send(frame(&mut numbers, &table));
                sent += 1;
            }
            for (cell, count) in &bench.expected {
                *seen.entry(*cell).or_insert(0) += count;
            }
            bench.look();
        }
    }
    println!("{sent} frames; by counter: {seen:?}");
    // The frames are of every kind, or they would show little.
    assert!(seen.len() >= 8, "{seen:?}");
}

/// Steps of one sequence, and the least of them in the time that there is.
const STEPS: u32 = 40_000;
const STEPS_MIN: u32 = 1_000;
/// Bursts that leave a source a few packets on a tab.
const ROOMY: u32 = 100;
const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
/// Late enough that all that is zero lies in the past, and what [`Loaded`] banned by the real clock.
const START_NS: u64 = 1 << 50;
/// Few, so that they meet each other's traces: some of a /64, some of a /48, one that is spared.
const SOURCES: [&str; 9] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "127.0.0.1",
    "2001:db8:1:1::1",
    "2001:db8:1:1::2",
    "2001:db8:1:2::1",
    "2001:db8:2::1",
    "fe80::1",
];
/// Prefixes that are banned for a while, some within others.
const NETS: [&str; 4] = ["192.0.2.0/24", "192.0.2.2/31", "2001:db8:1::/48", "2001:db8::/32"];

/// What is in force until when; the program and user space are told the same.
struct World {
    loaded: Loaded,
    oracle: Oracle,
    now_ns: u64,
    bans: BTreeMap<Source, u64>,
    nets: BTreeMap<IpNet, u64>,
    classes: BTreeMap<Source, (u64, i32)>,
    /// The last one.
    frame: Vec<u8>,
}

impl World {
    /// Bursts are so many times larger.
    fn new(times: u32) -> Self {
        let sources: Vec<Source> = SOURCES.map(source).into();
        let mut rules = Rules {
            limit: Limit::new(1_000, S, 20 * times),
            connections: Limit::new(100, S, 8),
            bytes: Limit::octets(50_000, 6_000 * u64::from(times)),
            // So that the filters in front of the tables know everybody that may come to be banned.
            banned: sources.clone(),
            banned_nets: NETS.map(|net| net.parse().unwrap()).into(),
            classes: sources.iter().map(|source| (*source, 1)).collect(),
            ..xdp_table::unlimited()
        };
        let mut loaded = Loaded::new(&rules);
        let program: &mut Xdp =
            loaded.object.program_mut(rehearsal::PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap();
        (rules.banned, rules.banned_nets, rules.classes) = (vec![], vec![], vec![]);
        Self {
            loaded,
            oracle: Oracle::new(&rules),
            now_ns: START_NS,
            bans: BTreeMap::new(),
            // In the trie from the start, and over.
            nets: NETS.iter().map(|net| (net.parse().unwrap(), 0)).collect(),
            classes: BTreeMap::new(),
            frame: somebodys_frame(&mut Numbers::seeded(0)),
        }
    }

    /// Something happens; then a frame comes.
    fn step(&mut self, numbers: &mut Numbers) -> Outcome {
        self.now_ns += match numbers.below(1_000) {
            0 => numbers.next() % (4_000 * S),
            1..6 => numbers.next() % S,
            6..100 => numbers.next() % (5 * MS),
            100..300 => 1,
            _ => 0,
        };
        match numbers.below(1_000) {
            0..4 => {
                let (source, until_ns) = (source(numbers.one_of(&SOURCES)), self.until(numbers));
                self.loaded.ban_until(source, until_ns);
                self.bans.insert(source, until_ns);
            }
            4..6 => {
                let source = source(numbers.one_of(&SOURCES));
                self.loaded.maps.remove_ban(source).unwrap();
                self.bans.remove(&source);
            }
            6 => {
                let (net, until_ns) = (numbers.one_of(&NETS).parse().unwrap(), self.until(numbers));
                // As user space keeps it: a prefix within another is banned as long as that is.
                self.nets.insert(net, until_ns);
                for (within, until_ns) in effective(&self.nets) {
                    self.loaded.ban_net_until(&within, until_ns);
                }
            }
            7..10 => {
                let (source, until_ns) = (source(numbers.one_of(&SOURCES)), self.until(numbers));
                let doublings = numbers.below(9) as i32 - 4;
                let class = Class { expires_ns: until_ns, doublings, _pad: 0 };
                self.loaded.maps.write_class(source, Some(&class)).unwrap();
                self.classes.insert(source, (until_ns, doublings));
            }
            _ => {}
        }
        // Half of them once more, as in a flood.
        if numbers.below(2) == 0 {
            self.frame = somebodys_frame(numbers);
        }
        let frame = self.frame.clone();
        let outcome = self.judge(&frame);
        let kernel = self.play(&frame);
        assert_eq!(kernel, outcome, "at {} ns: {frame:02x?}", self.now_ns - START_NS);
        outcome
    }

    /// A moment that may lie just here, or just behind.
    fn until(&self, numbers: &mut Numbers) -> u64 {
        match numbers.below(4) {
            0 => self.now_ns + numbers.next() % 3,
            1 => self.now_ns - numbers.next() % (3 * S),
            _ => self.now_ns + numbers.next() % (10 * S),
        }
    }

    /// User space's verdict.
    fn judge(&mut self, frame: &[u8]) -> Outcome {
        let now_ns = self.now_ns;
        let rules = &mut self.oracle.rules;
        rules.banned = in_force(&self.bans, now_ns, |until_ns| *until_ns);
        rules.banned_nets = in_force(&self.nets, now_ns, |until_ns| *until_ns);
        let classes = in_force(&self.classes, now_ns, |class| class.0);
        rules.classes =
            classes.into_iter().map(|source| (source, self.classes[&source].1)).collect();
        judge(frame, &self.oracle, &mut Last::default(), now_ns)
    }

    /// The kernel's, at the same moment.
    fn play(&self, frame: &[u8]) -> Outcome {
        let sender = Sender { next_ns: self.now_ns, ..Sender::SILENT };
        let stage = Stage { senders: [sender, Sender::SILENT, Sender::SILENT], due: 0 };
        let octets = [&written(&stage)[..], frame].concat();
        let mut played = vec![0; octets.len()];
        let options = TestRunOptions {
            data_in: Some(&octets),
            data_out: Some(&mut played),
            ..TestRunOptions::new()
        };
        self.loaded.program(rehearsal::PROGRAM).test_run(options).unwrap();
        let sender = read(&played).senders[0];
        assert_eq!(sender.sent, 1);
        Outcome::ALL[sender.outcome as usize]
    }
}

fn source(text: &str) -> Source {
    Source::from(text.parse::<IpAddr>().unwrap())
}

fn in_force<K: Copy, V>(
    entries: &BTreeMap<K, V>,
    now_ns: u64,
    until_ns: impl Fn(&V) -> u64,
) -> Vec<K> {
    entries.iter().filter(|(_, value)| until_ns(value) > now_ns).map(|(key, _)| *key).collect()
}

/// Until when each prefix is banned by itself or by one that covers it.
fn effective(nets: &BTreeMap<IpNet, u64>) -> Vec<(IpNet, u64)> {
    let until_ns = |net: &IpNet| {
        nets.iter().filter(|(wide, _)| wide.contains(net)).map(|(_, until_ns)| *until_ns).max()
    };
    nets.keys().filter_map(|net| Some((*net, until_ns(net)?))).collect()
}

fn somebodys_frame(numbers: &mut Numbers) -> Vec<u8> {
    let port = numbers.one_of(&[8443, 8443, 8443, 443, 22, 80]);
    let (protocol, payload) = match numbers.below(6) {
        0 => (TCP, tcp(port, SYN)),
        1 => (UDP, udp(port, &quic(INITIAL, QUIC_1))),
        2 => (UDP, udp(port, &vec![0; numbers.below(1_400)])),
        _ => (TCP, tcp(port, ACK)),
    };
    xdp_frames::frame(&ip(numbers.one_of(&SOURCES), protocol, &payload))
}

#[test]
fn whatever_happens_both_halves_go_on_to_agree() {
    if !may_load_programs() {
        return;
    }
    let mut numbers = Numbers::new("xdp_fuzz, sequences");
    let started = clock::now();
    // What a source has on a tab, its own CPU alone knows.
    pin_to_core(0).unwrap();
    // In one world limits are soon reached, in the other there is room for tabs.
    let mut worlds = [World::new(1), World::new(ROOMY)];
    let mut seen = BTreeMap::new();
    let mut steps = 0;
    while steps < STEPS && (steps < STEPS_MIN || started.elapsed() < TIME) {
        for world in &mut worlds {
            *seen.entry(world.step(&mut numbers).word()).or_insert(0) += 1;
            steps += 1;
        }
    }
    let lasted = worlds.map(|world| (world.now_ns - START_NS) / S);
    println!("{steps} frames in {lasted:?} s: {seen:?}");
    for word in ["within_limit", "banned", "over_limit", "over_connections", "over_bytes", "exempt"]
    {
        // An emulated processor may not get far enough to meet the rare ones.
        assert!(seen.contains_key(word) || steps < STEPS / 2, "{word}: {seen:?}");
    }
}
