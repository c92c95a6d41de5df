//! Seconds of a flood, nanosecond by nanosecond: the kernel's program plays packets at the times
//! that a test chose, so what is asserted is exact and the same on a machine that does other things.
//!
//! What is promised: a source gets its rate and its burst to the packet; no flood of strangers,
//! however they are numbered, gives a limited source more than a tenth over its limit or takes
//! anything from one within it; the tables never grow.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    maps::{Map, MapData},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use gateway_ebpf::{
    Outcome,
    bucket::Limit,
    rehearsal::{self, SENDERS, Sender, Stage},
};

use crate::{
    xdp_frames::{ACK, TCP, UDP, frame, ip, tcp, udp},
    xdp_packets::{Loaded, Rules, may_load_programs},
    xdp_table::unlimited,
};

const S: u64 = 1_000_000_000;
/// Where every rehearsal begins: late enough that all that is zero lies in the past.
const START_NS: u64 = 1 << 50;
const PORT: u16 = 8443;
/// Packets of one call: half a second of the kernel's work, during which it hears no signal.
const PACKETS_PER_CALL: u32 = 4 << 20;
/// Room in the tables: a power of two, four to a set.
const TABLE_SOURCES: u32 = 1 << 16;

/// 10.0.0.0 and so on: private networks, which no rule of [`unlimited`] is about.
const ATTACKERS: u32 = 0x0a00_0000;
const REGULARS: u32 = 0xac10_0000;
const OFFENDER: u32 = 0xc0a8_0001;

/// A program with tables for so many sources, and a stage.
struct Rehearsal {
    loaded: Loaded,
    stage: Stage,
    frame: Vec<u8>,
}

impl Rehearsal {
    fn new(rules: &Rules, max_sources: u32, senders: [Sender; SENDERS]) -> Self {
        let mut loaded = Loaded::with_sources(rules, max_sources);
        let program: &mut Xdp =
            loaded.object.program_mut(rehearsal::PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap();
        let frame = frame(&ip("192.0.2.1", UDP, &udp(PORT, &[0; 18])));
        Self { loaded, stage: Stage { senders, due: 0 }, frame }
    }

    /// Plays so many packets.
    fn play(&mut self, packets: u64) {
        let mut left = packets;
        while left > 0 {
            let now = left.min(u64::from(PACKETS_PER_CALL));
            self.call(u32::try_from(now).unwrap());
            left -= now;
        }
    }

    fn call(&mut self, packets: u32) {
        let sent_before = self.sent();
        let mut octets = written(&self.stage);
        octets.extend(&self.frame);
        let mut played = vec![0; octets.len()];
        let options = TestRunOptions {
            data_in: Some(&octets),
            data_out: Some(&mut played),
            repeat: packets,
            ..TestRunOptions::new()
        };
        self.loaded.program(rehearsal::PROGRAM).test_run(options).unwrap();
        self.stage = read(&played);
        assert_eq!(self.sent() - sent_before, u64::from(packets), "every packet was somebody's");
    }

    fn sent(&self) -> u64 {
        self.stage.senders.iter().map(|sender| sender.sent).sum()
    }
}

/// A stage as it lies in front of a frame.
pub fn written(stage: &Stage) -> Vec<u8> {
    let mut octets = Vec::new();
    for sender in &stage.senders {
        for number in [sender.next_ns, sender.interval_ns, sender.sent, sender.passed] {
            octets.extend(number.to_ne_bytes());
        }
        let Sender { first, sources, in_a_row, is_shuffled, outcome, .. } = *sender;
        for number in [first, sources, in_a_row, is_shuffled, outcome, 0, 0, 0] {
            octets.extend(number.to_ne_bytes());
        }
    }
    octets.extend(stage.due.to_ne_bytes());
    octets
}

/// The stage in front of a frame.
pub fn read(octets: &[u8]) -> Stage {
    let sender = |octets: &[u8]| {
        let long = |at: usize| u64::from_ne_bytes(octets[at..at + 8].try_into().unwrap());
        let short = |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().unwrap());
        Sender {
            next_ns: long(0),
            interval_ns: long(8),
            sent: long(16),
            passed: long(24),
            first: short(32),
            sources: short(36),
            in_a_row: short(40),
            is_shuffled: short(44),
            outcome: short(48),
            _pad: [0; 3],
        }
    };
    let mut stage = Stage::default();
    for (to, from) in stage.senders.iter_mut().zip(octets.chunks(size_of::<Sender>())) {
        *to = sender(from);
    }
    stage
}

/// Somebody who sends so many packets in a second from the start on.
fn sender(first: u32, sources: u32, per_s: u64) -> Sender {
    Sender { first, sources, next_ns: START_NS, interval_ns: S / per_s, ..Sender::SILENT }
}

/// What a source that never rests may have sent in the time that it did: the burst, and the rate
/// from then on.
fn allowed(limit: &Limit, sender: &Sender) -> u64 {
    let last_ns = sender.next_ns - sender.interval_ns;
    limit.burst_ns() / limit.cost_ns + (last_ns - START_NS) / limit.cost_ns
}

#[test]
fn a_source_gets_rate_times_time_and_its_burst_to_the_packet() {
    if !may_load_programs() {
        return;
    }
    // Packets a second and burst; how many are sent a second; seconds.
    for (rate, burst, per_s, seconds) in
        [(1_000, 20, 1_000_000, 4), (20_000, 40_000, 5_000_000, 2), (7, 3, 100_000, 10)]
    {
        let limit = Limit::new(rate, S, burst);
        let rules = Rules { limit, ..unlimited() };
        let senders = [sender(OFFENDER, 1, per_s), Sender::SILENT, Sender::SILENT];
        let mut rehearsal = Rehearsal::new(&rules, 1_024, senders);
        rehearsal.play(per_s * seconds);
        let offender = &rehearsal.stage.senders[0];
        assert_eq!(offender.passed, allowed(&limit, offender), "{rate}/s, {burst} at once");
        assert_eq!(Outcome::ALL[offender.outcome as usize], Outcome::OverLimit);
    }
}

#[test]
fn a_source_opens_rate_times_time_connections_and_its_burst() {
    if !may_load_programs() {
        return;
    }
    let limit = Limit::new(100, S, 200);
    let rules = Rules { connections: limit, ..unlimited() };
    let senders = [sender(OFFENDER, 1, 500_000), Sender::SILENT, Sender::SILENT];
    let mut rehearsal = Rehearsal::new(&rules, 1_024, senders);
    rehearsal.frame = frame(&ip("192.0.2.1", TCP, &tcp(PORT, 0x02)));
    rehearsal.play(2_000_000);
    let offender = rehearsal.stage.senders[0];
    assert_eq!(offender.passed, allowed(&limit, &offender));
    assert_eq!(Outcome::ALL[offender.outcome as usize], Outcome::OverConnections);
    // What it has goes on.
    rehearsal.frame = frame(&ip("192.0.2.1", TCP, &tcp(PORT, ACK)));
    rehearsal.play(1_000);
    assert_eq!(rehearsal.stage.senders[0].passed, offender.passed + 1_000);
}

#[test]
fn a_source_sends_rate_times_time_octets_and_its_burst() {
    if !may_load_programs() {
        return;
    }
    let (per_s, burst, frame_octets) = (1_000_000, 100_000, 1_000);
    let rules = Rules { bytes: Limit::octets(per_s, burst), ..unlimited() };
    let senders = [sender(OFFENDER, 1, 50_000), Sender::SILENT, Sender::SILENT];
    let mut rehearsal = Rehearsal::new(&rules, 1_024, senders);
    rehearsal.frame.resize(frame_octets, 0);
    rehearsal.play(200_000);
    let passed = rehearsal.stage.senders[0].passed;
    let allowed = (burst + 4 * per_s) / frame_octets as u64;
    // A frame's cost is rounded up to the nanosecond.
    assert!((allowed - 1..=allowed).contains(&passed), "{passed} of {allowed}");
}

#[test]
fn a_flood_of_strangers_gives_a_limited_source_nothing() {
    if !may_load_programs() {
        return;
    }
    // (packets in a row from each stranger, whether they come in order, the limit, what is sent a
    // second, the most that may pass of the limit). Two in a row is what makes a kernel's LRU forget
    // the limited source. Three are eight times what the table has places for, none of them rested,
    // and then it takes the limited source some packets until it is the one that is furthest over.
    for (in_a_row, is_shuffled, rate, per_s, most) in
        [(1, 1, 1_000, 20_000, 1.1), (2, 1, 10, 75, 1.1), (2, 0, 10, 75, 1.1), (3, 1, 10, 75, 1.5)]
    {
        let limit = Limit::new(rate, S, rate.min(20));
        let rules = Rules { limit, ..unlimited() };
        let strangers = Sender { in_a_row, is_shuffled, ..sender(ATTACKERS, 1 << 24, 5_000_000) };
        let senders = [sender(OFFENDER, 1, per_s), strangers, Sender::SILENT];
        let mut rehearsal = Rehearsal::new(&rules, TABLE_SOURCES, senders);
        // Three seconds.
        rehearsal.play(3 * (5_000_000 + per_s));
        let [offender, strangers, _] = &rehearsal.stage.senders;
        let share = offender.passed as f64 / allowed(&limit, offender) as f64;
        let what = format!("{in_a_row} in a row (shuffled: {is_shuffled}), {rate}/s, {per_s} sent");
        println!("{what}: {share:.3} of the limit; of strangers {} passed", strangers.passed);
        assert!(share <= most, "{what}: {share:.3} of its limit");
        // And nobody is dropped for others.
        assert!(share >= 0.999, "{what}: {share:.3} of its limit");
    }
}

#[test]
fn a_million_strangers_take_nothing_from_a_thousand_regulars_and_hide_no_offender() {
    if !may_load_programs() {
        return;
    }
    const LIMIT: Limit = Limit::new(100, S, 200);
    let rules = Rules { limit: LIMIT, ..unlimited() };
    let senders = [
        // Fifty a second each: half of what they may send.
        Sender { is_shuffled: 0, ..sender(REGULARS, 1_000, 50_000) },
        Sender { in_a_row: 2, is_shuffled: 1, ..sender(ATTACKERS, 1_000_000, 3_000_000) },
        // A hundred times what it may send.
        sender(OFFENDER, 1, 10_000),
    ];
    let mut rehearsal = Rehearsal::new(&rules, 1_000_000, senders);
    let before = memory_bytes(&mut rehearsal);
    // Two seconds, then as long as it needs for the offender to be due once more.
    rehearsal.play(2 * (50_000 + 3_000_000 + 10_000));
    let [regulars, strangers, offender] = rehearsal.stage.senders;
    assert_eq!(regulars.passed, regulars.sent, "a regular lost a packet");
    assert!(regulars.sent >= 99_000, "{regulars:?}");
    let allowed = allowed(&LIMIT, &offender);
    assert!(offender.passed <= allowed, "{} of {allowed}", offender.passed);
    assert_eq!(Outcome::ALL[offender.outcome as usize], Outcome::OverLimit);
    assert!(strangers.sent >= 5_900_000, "{strangers:?}");
    let after = memory_bytes(&mut rehearsal);
    println!(
        "regulars: {} of {} passed; strangers: {} of {}; the offender: {} of {}, {allowed} allowed; \
         {before} octets of tables before, {after} after",
        regulars.passed,
        regulars.sent,
        strangers.passed,
        strangers.sent,
        offender.passed,
        offender.sent
    );
    assert_eq!(before, after);
}

/// What the kernel accounts for all maps that sources have places in.
fn memory_bytes(rehearsal: &mut Rehearsal) -> u64 {
    let of_map = |map: &Map| {
        let data: &MapData = match map {
            Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data) | Map::LpmTrie(data) => {
                data
            }
            _ => return 0,
        };
        let info =
            fs::read_to_string(format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd()));
        let info = info.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        line.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap()
    };
    rehearsal.loaded.object.maps().map(|(_, map)| of_map(map)).sum()
}
