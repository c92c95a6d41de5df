//! What one packet costs in the XDP program, run by the kernel in a loop (`BPF_PROG_TEST_RUN`).
//!
//! Such a loop has a cost of its own, and so has reaching memory that other measurements displaced;
//! hence every figure is a difference to a program that only drops, run in the same round, and each
//! measurement is preceded by an unmeasured stretch of packets of its kind. Whoever shares the core of
//! a virtual machine's host comes and goes within milliseconds, so each is made of short stretches, of
//! which the least disturbed one counts, for all programs alike.
//!
//! Sources that vary come from a generator that hands each packet on by a tail call
//! ([`programs::Generator`]), so what is measured is still the shipped program, not a variant of it.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_ebpf::{Outcome, bucket::Limit};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    guard::{Guard, Rules},
    programs::{self, Bucket, Clock, Generator},
    statistics::{self, Figure},
    xdp_filter::XdpFilter,
};
use crate::{
    cargo::cargo,
    harness::{
        bpf::{self, Program, XDP_DROP, XDP_PASS},
        clock, flood,
        process::words,
    },
};

/// Rounds, and with `--quick`. Odd, so that the median is one of them.
const ROUNDS: [usize; 2] = [21, 5];
/// A round takes about so long.
const ROUND_S: f64 = 4.0;
/// Packets of one stretch: at 15 ns, as most cost, a third of a millisecond.
const PACKETS: u32 = 20_000;
/// Stretches of one measurement. At 700 ns, the slowest seen, they take 140 ms: well below the 950 ms
/// of each second after which the kernel takes the core from a real-time thread.
const STRETCHES: u32 = 10;
/// Packets before it that are not measured.
const WARM_UP: u32 = 20_000;
/// Packets that fill the tables, for each source; then all but 1 in 50 were seen (e^-4).
const FILL_FACTOR: u32 = 4;
/// More are not needed to fill a table: it is full of strangers then, as it is meant to be.
const FILL_MAX: u32 = 4 << 20;
/// Between two measurements, so that whoever else wants the core gets it.
const PAUSE: Duration = Duration::from_millis(5);
/// Runs that are repeated because a signal or the machine broke them off.
const ATTEMPTS: usize = 5;

/// Buckets for so many sources in every table: the default of `[xdp].max_sources`, to the next
/// power of two, which is what both kinds of table then hold.
const TABLE_SOURCES: u32 = 1 << 20;
/// The guarded port.
const PORT: u16 = 8443;
/// A nanosecond for a packet, far behind: a limit that is always charged and never reached.
const GENEROUS: Limit = Limit { cost_ns: 1, tolerance_ns: 1 << 40 };
/// One packet in 18 minutes: a limit that is always reached.
const STRICT: Limit = Limit { cost_ns: 1 << 40, tolerance_ns: 0 };

/// Documentation addresses (RFC 5737, RFC 3849).
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const VISITOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BANNED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const EXEMPT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
const BANNED_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 1);

const XDP_FILTER: &str = "xdp-filter";
const LRU: &str = "lru-bucket";
const LRU_TICK: &str = "lru-bucket-tick";
/// Everything ours is compared with, in the order of the table's columns.
pub const PEERS: [&str; 3] = [XDP_FILTER, LRU, LRU_TICK];

/// What a run came to.
#[derive(Debug)]
pub struct Measured {
    /// One for each scenario.
    pub rows: Vec<Row>,
    /// Rounds that each figure is made of.
    pub rounds: usize,
    /// Packets of each round.
    pub packets: u32,
    /// The kernel's tick.
    pub ns_per_jiffy: u64,
    /// What could not be measured here, and why.
    pub absent: Vec<String>,
}

/// One scenario.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub scenario: &'static str,
    /// What the packets are.
    pub protocol: &'static str,
    /// The empty program on the same packets.
    pub floor: Figure,
    /// Ours, loop and all.
    pub whole: Figure,
    /// What ours adds to the floor.
    pub over_floor: Figure,
    /// The same, by the best round of each.
    pub best_over_floor: f64,
    /// What the others add.
    pub peers: Vec<(&'static str, Figure)>,
    /// What ours should be.
    pub targets: Vec<Target>,
}

impl Row {
    /// What ours adds, as a share of what the best of the others adds; where that can be said.
    pub fn ratio_to_best(&self) -> Option<f64> {
        let best = self.peers.iter().map(|(_, figure)| figure.median).min_by(f64::total_cmp)?;
        let ratio = self.over_floor.median / best;
        (best > 0.0).then_some((ratio * 100.0).round() / 100.0)
    }
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most so many nanoseconds above the floor.
    OverFloor(f64),
    /// At most this share of what a peer adds to the floor.
    Share(f64, &'static str),
}

impl Target {
    /// Whether it is; unknown where the peer was not measured.
    pub fn is_held(&self, row: &Row) -> Option<bool> {
        match self {
            Target::OverFloor(most) => Some(row.over_floor.median <= *most),
            Target::Share(share, name) => {
                let (_, peer) = row.peers.iter().find(|(known, _)| known == name)?;
                Some(row.over_floor.median <= share * peer.median)
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::OverFloor(most) => write!(formatter, "≤ +{most:.0} ns"),
            Target::Share(share, name) => write!(formatter, "≤ {share} of {name}"),
        }
    }
}

/// One program on one kind of packet.
struct Case<'a> {
    name: String,
    program: BorrowedFd<'a>,
    frame: Vec<u8>,
    action: i32,
    /// Whose counter must move, and which.
    counted: Option<(&'a Guard, Outcome)>,
    /// The frame carries the generator's state, which no two measurements start alike.
    is_seeded: bool,
    /// Packets before the first round, for what the first packets of a source find otherwise than
    /// all later ones.
    fill: u32,
}

impl Case<'_> {
    /// Nanoseconds a packet in the least disturbed stretch of one measurement.
    fn measure(&self, seed: u32) -> Result<f64> {
        for _ in 0..ATTEMPTS {
            clock::go_on()?;
            let before = self.count()?;
            match self.stretches(seed) {
                Ok((action, ns)) => {
                    self.check(action, self.count()? - before)?;
                    return Ok(f64::from(ns));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let what = format!("the kernel would not run `{}`", self.name);
                    return Err(anyhow::Error::new(error).context(what));
                }
            }
        }
        bail!("`{}` was interrupted {ATTEMPTS} times", self.name)
    }

    /// The answer to the last packet, and the least of the times.
    fn stretches(&self, seed: u32) -> io::Result<(u32, u32)> {
        // Each with sources of its own: the last ones' are in the caches.
        let first = seed * (STRETCHES + 1);
        let _core_for_itself = RealTime::start(1).map_err(io::Error::other)?;
        let mut ran = bpf::run(self.program, &self.frame(first), WARM_UP)?;
        let mut least_ns = u32::MAX;
        for stretch in 1..=STRETCHES {
            ran = bpf::run(self.program, &self.frame(first + stretch), PACKETS)?;
            least_ns = least_ns.min(ran.ns_per_frame);
        }
        Ok((ran.action, least_ns))
    }

    fn fill(&self) -> Result<()> {
        let mut left = self.fill.max(1);
        let mut seed = 0;
        while left > 0 {
            clock::go_on()?;
            let packets = left.min(PACKETS);
            match bpf::run(self.program, &self.frame(seed), packets) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                ran => ran.with_context(|| format!("the kernel would not run `{}`", self.name))?,
            };
            left -= packets;
            seed += 1;
        }
        Ok(())
    }

    fn frame(&self, seed: u32) -> Vec<u8> {
        let mut frame = self.frame.clone();
        if self.is_seeded {
            // Far apart in the generator's sequence, whatever the numbers are (the golden ratio).
            let state = seed.wrapping_mul(0x9e37_79b1).to_ne_bytes();
            frame[programs::SEED..programs::SEED + state.len()].copy_from_slice(&state);
        }
        frame
    }

    fn count(&self) -> Result<u64> {
        self.counted.map_or(Ok(0), |(guard, outcome)| guard.count(outcome))
    }

    /// That the last packet was answered, and all were counted, as they should be.
    fn check(&self, action: u32, counted: u64) -> Result<()> {
        let name = &self.name;
        ensure!(
            i32::try_from(action) == Ok(self.action),
            "`{name}` answered {action} instead of {}, so it is not what was to be measured",
            self.action
        );
        let expected = u64::from(WARM_UP + STRETCHES * PACKETS);
        ensure!(
            self.counted.is_none() || counted == expected,
            "`{name}`: {counted} of {expected} packets came to the end that was to be measured"
        );
        Ok(())
    }
}

/// The case of ours, of the floor and of each peer, by their places.
struct Comparison {
    scenario: &'static str,
    protocol: &'static str,
    ours: usize,
    floor: usize,
    peers: Vec<(&'static str, usize)>,
    targets: Vec<Target>,
}

impl Comparison {
    fn row(self, rounds: &[Vec<f64>]) -> Row {
        let (ours, floor) = (&rounds[self.ours], &rounds[self.floor]);
        let peer = |(name, place): (&'static str, usize)| {
            (name, Figure::of_differences(&rounds[place], floor))
        };
        Row {
            scenario: self.scenario,
            protocol: self.protocol,
            floor: Figure::of(floor),
            whole: Figure::of(ours),
            over_floor: Figure::of_differences(ours, floor),
            best_over_floor: statistics::best_difference(ours, floor),
            peers: self.peers.into_iter().map(peer).collect(),
            targets: self.targets,
        }
    }
}

/// The cases as they are put together.
#[derive(Default)]
struct Cases<'a> {
    list: Vec<Case<'a>>,
}

impl<'a> Cases<'a> {
    fn add(&mut self, case: Case<'a>) -> usize {
        self.list.push(case);
        self.list.len() - 1
    }

    fn add_other(&mut self, name: &str, program: &'a Program, frame: &[u8], action: i32) -> usize {
        self.add(Case {
            name: name.to_owned(),
            program: program.as_fd(),
            frame: frame.to_vec(),
            action,
            counted: None,
            is_seeded: false,
            fill: 1,
        })
    }

    fn add_ours(&mut self, guard: &'a Guard, frame: &[u8], outcome: Outcome) -> Result<usize> {
        Ok(self.add(Case {
            name: format!("ours, {}", outcome.word()),
            program: guard.program()?,
            frame: frame.to_vec(),
            action: action_of(outcome),
            counted: Some((guard, outcome)),
            is_seeded: false,
            fill: 1,
        }))
    }
}

fn action_of(outcome: Outcome) -> i32 {
    if outcome.drops() { XDP_DROP } else { XDP_PASS }
}

/// The programs for packets that are all alike.
struct Alike {
    generous: Guard,
    strict: Guard,
    floor: Program,
    filter: Option<XdpFilter>,
    /// Name, with the generous limit, with the strict one.
    buckets: Vec<(&'static str, Program, Program)>,
}

impl Alike {
    fn new(setup: &Setup, filter: Option<XdpFilter>) -> Result<Alike> {
        let mut buckets = Vec::new();
        for (name, clock) in setup.clocks {
            buckets.push((name, lru(GENEROUS, clock)?, lru(STRICT, clock)?));
        }
        Ok(Alike {
            generous: Guard::load(&setup.object, &rules(GENEROUS))?,
            strict: Guard::load(&setup.object, &rules(STRICT))?,
            floor: Program::verdict(c"floor", XDP_DROP)?,
            filter,
            buckets,
        })
    }

    fn compare<'a>(&'a self, cases: &mut Cases<'a>) -> Result<Vec<Comparison>> {
        let (visitor, banned, exempt) = (udp(VISITOR), udp(BANNED), udp(EXEMPT));
        let banned_6 = udp_ipv6(BANNED_6);
        let floor = cases.add_other("floor", &self.floor, &visitor, XDP_DROP);
        let floor_6 = cases.add_other("floor, IPv6", &self.floor, &banned_6, XDP_DROP);
        let filter = |frame: &[u8], action: i32, cases: &mut Cases<'a>| {
            let add = |filter: &'a XdpFilter| {
                (XDP_FILTER, cases.add_other(XDP_FILTER, &filter.program, frame, action))
            };
            self.filter.as_ref().map(add).into_iter().collect::<Vec<_>>()
        };
        let filter_drop = filter(&banned, XDP_DROP, cases);
        let filter_drop_6 = filter(&banned_6, XDP_DROP, cases);
        let filter_pass = filter(&visitor, XDP_PASS, cases);
        let mut within = Vec::new();
        let mut over = Vec::new();
        for (name, generous, strict) in &self.buckets {
            within.push((*name, cases.add_other(name, generous, &visitor, XDP_PASS)));
            over.push((*name, cases.add_other(name, strict, &visitor, XDP_DROP)));
        }
        let ipv4 = |scenario, ours, peers, targets| Comparison {
            scenario,
            protocol: "udp4",
            ours,
            floor,
            peers,
            targets,
        };
        let (quick, hot) = (vec![Target::OverFloor(10.0)], vec![Target::OverFloor(20.0)]);
        let generous = &self.generous;
        let is_within = cases.add_ours(generous, &visitor, Outcome::WithinLimit)?;
        let is_over = cases.add_ours(&self.strict, &visitor, Outcome::OverLimit)?;
        let is_banned = cases.add_ours(generous, &banned, Outcome::Banned)?;
        let is_banned_6 = cases.add_ours(generous, &banned_6, Outcome::Banned)?;
        let is_exempt = cases.add_ours(generous, &exempt, Outcome::Exempt)?;
        Ok(vec![
            ipv4("banned", is_banned, filter_drop, quick.clone()),
            Comparison {
                scenario: "banned-ipv6",
                protocol: "udp6",
                ours: is_banned_6,
                floor: floor_6,
                peers: filter_drop_6,
                targets: quick.clone(),
            },
            ipv4("over-limit", is_over, over, quick),
            ipv4("pass-hot", is_within, [filter_pass, within].concat(), hot),
            ipv4("exempt", is_exempt, Vec::new(), Vec::new()),
        ])
    }
}

/// The programs for packets of so many sources, with tables of their own.
struct Crowd {
    scenario: &'static str,
    bits: u8,
    guard: Guard,
    floor: Generator,
    ours: Generator,
    buckets: Vec<(&'static str, Generator)>,
}

/// How many sources vary, under which names, and what of octets each may have: no limit, as where the
/// configuration names none, which spares a second cache line for each source.
const CROWDS: [(&str, u8, Limit); 4] = [
    ("pass-64k", 16, Limit::NONE),
    ("pass-1m", 20, Limit::NONE),
    ("pass-1m-octets", 20, GENEROUS_BYTES),
    ("pass-2g", 31, Limit::NONE),
];

impl Crowd {
    fn new(setup: &Setup, scenario: &'static str, bits: u8, bytes: Limit) -> Result<Crowd> {
        let guard = Guard::load(&setup.object, &Rules { bytes, ..rules(GENEROUS) })?;
        // What a generator calls stays loaded as long as the generator does.
        let floor = Program::verdict(c"floor", XDP_DROP)?;
        let mut buckets = Vec::new();
        for (name, clock) in setup.clocks {
            buckets.push((name, Generator::new(bits, lru(GENEROUS, clock)?.as_fd())?));
        }
        Ok(Crowd {
            scenario,
            bits,
            floor: Generator::new(bits, floor.as_fd())?,
            ours: Generator::new(bits, guard.program()?)?,
            guard,
            buckets,
        })
    }

    fn compare<'a>(&'a self, cases: &mut Cases<'a>) -> Comparison {
        let frame = udp(VISITOR);
        let fill = (FILL_FACTOR << self.bits.min(24)).min(FILL_MAX);
        let mut add = |name: &str, generator: &'a Generator, action, counted| {
            cases.add(Case {
                name: format!("{name}, {}", self.scenario),
                program: generator.program().as_fd(),
                frame: frame.clone(),
                action,
                counted,
                is_seeded: true,
                fill,
            })
        };
        let floor = add("floor", &self.floor, XDP_DROP, None);
        let counted = Some((&self.guard, Outcome::WithinLimit));
        let ours = add("ours", &self.ours, XDP_PASS, counted);
        let peers = self.buckets.iter();
        let peers =
            peers.map(|(name, generator)| (*name, add(name, generator, XDP_PASS, None))).collect();
        let targets = match self.bits {
            ..=16 => Vec::new(),
            _ => vec![Target::OverFloor(110.0), Target::Share(0.25, LRU)],
        };
        Comparison { scenario: self.scenario, protocol: "udp4", ours, floor, peers, targets }
    }
}

/// What all instances are made from.
struct Setup {
    object: PathBuf,
    clocks: [(&'static str, Clock); 2],
}

/// Octets for which the same holds as for [`GENEROUS`] packets.
const GENEROUS_BYTES: Limit = Limit { cost_ns: 1 << 16, tolerance_ns: 1 << 50 };

/// Everything is limited, but only packets strictly.
fn rules(packets: Limit) -> Rules {
    Rules {
        port: PORT,
        packets,
        connections: GENEROUS,
        bytes: GENEROUS_BYTES,
        sources: TABLE_SOURCES,
        banned: vec![BANNED.into(), BANNED_6.into(), EXEMPT.into()],
        exempt: Some(EXEMPT.into()),
    }
}

fn lru(limit: Limit, clock: Clock) -> Result<Program> {
    let Limit { cost_ns, tolerance_ns } = limit;
    programs::lru_bucket(&Bucket { clock, cost_ns, tolerance_ns }, TABLE_SOURCES)
}

/// About how long it takes when everything is built, in minutes.
pub fn minutes(quick: bool) -> f64 {
    ROUNDS[usize::from(quick)] as f64 * ROUND_S / 60.0
}

/// Builds what has to be built, and measures.
///
/// # Errors
/// When something cannot be built or loaded, does not do with a packet what it should, or somebody
/// interrupts.
pub fn measure(quick: bool) -> Result<Measured> {
    let object = build_object()?;
    let ns_per_jiffy = Guard::load(&object, &rules(GENEROUS))?.ns_per_jiffy;
    let tick = Clock::Ticks(i32::try_from(ns_per_jiffy).context("a tick lasts no seconds")?);
    let setup = Setup { object, clocks: [(LRU, Clock::Nanoseconds), (LRU_TICK, tick)] };
    let mut absent = Vec::new();
    let filter = XdpFilter::start(&[BANNED.into(), BANNED_6.into()]);
    let filter = filter.map_err(|error| absent.push(format!("{XDP_FILTER}: {error:#}"))).ok();
    let alike = Alike::new(&setup, filter)?;
    let mut crowds = Vec::new();
    for (scenario, bits, bytes) in CROWDS {
        crowds.push(Crowd::new(&setup, scenario, bits, bytes)?);
    }

    let mut cases = Cases::default();
    let mut comparisons = alike.compare(&mut cases)?;
    comparisons.extend(crowds.iter().map(|crowd| crowd.compare(&mut cases)));
    let rounds = ROUNDS[usize::from(quick)];
    let figures = play(&cases.list, rounds)?;
    let rows = comparisons.into_iter().map(|comparison| comparison.row(&figures)).collect();
    Ok(Measured { rows, rounds, packets: STRETCHES * PACKETS, ns_per_jiffy, absent })
}

/// Each case once a round; gives each case's rounds.
fn play(cases: &[Case<'_>], rounds: usize) -> Result<Vec<Vec<f64>>> {
    flood::pin_to_core(last_core()?)?;
    eprintln!("perf: filling the tables");
    for case in cases {
        case.fill()?;
    }
    let mut figures = vec![Vec::with_capacity(rounds); cases.len()];
    let mut seed = FILL_MAX / PACKETS + 1;
    for round in 0..rounds {
        eprintln!("perf: round {} of {rounds}", round + 1);
        for step in 0..cases.len() {
            // Another beginning each time, so that nothing always follows the same.
            let place = (step + round) % cases.len();
            figures[place].push(cases[place].measure(seed)?);
            seed += 1;
            clock::pause(PAUSE)?;
        }
    }
    Ok(figures)
}

/// The last of the cores that this process may use: the first usually serves interrupts.
fn last_core() -> Result<usize> {
    let cores = sched_getaffinity(Pid::from_raw(0))?;
    let mut allowed = (0..CpuSet::count()).filter(|core| cores.is_set(*core).unwrap_or(false));
    allowed.next_back().context("this process may use no core")
}

/// While it lives, the calling thread is taken off its core by nobody ordinary.
pub struct RealTime;

impl RealTime {
    /// Takes it, and before those of a lower number.
    ///
    /// # Errors
    /// Without the privilege.
    pub fn start(before: i32) -> Result<RealTime> {
        schedule(libc::SCHED_FIFO, before)
            .context("cannot take a core for a while (CAP_SYS_NICE)")?;
        Ok(RealTime)
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        // Going back to where it came from is always allowed.
        let _back = schedule(libc::SCHED_OTHER, 0);
    }
}

/// Sets the calling thread's scheduling (sched(7)).
fn schedule(policy: libc::c_int, sched_priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: `parameters` is a live, initialised value that the call only reads; 0 is the caller.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Builds the XDP program, as the daemon's build does, and gives the object's path.
fn build_object() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "gateway", "--lib"]);
    eprintln!("→ {}", words(&command));
    command.arg("--message-format=json-render-diagnostics");
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the product does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    let object = messages.lines().filter_map(built_object).find(|path| path.is_file());
    object.context("the build left no XDP program")
}

/// Where a line of cargo's messages says that the daemon's build script left the program.
fn built_object(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let directory = message["out_dir"].as_str()?;
    (message["reason"] == "build-script-executed")
        .then(|| PathBuf::from(directory).join("gateway-xdp"))
}

fn udp(source: Ipv4Addr) -> Vec<u8> {
    let wire = flood::Wire { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2] };
    let (from, to) = (SocketAddrV4::new(source, 1024), SocketAddrV4::new(HOST, PORT));
    flood::frame(wire, from, to, flood::Transport::Udp)
}

/// The same over IPv6 (RFC 8200). Its checksum is left out: it never reaches a stack.
fn udp_ipv6(source: Ipv6Addr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 26, 17, 64]); // version, length, UDP, hop limit
    frame.extend(source.octets());
    frame.extend(HOST.to_ipv6_compatible().octets());
    frame.extend(1024_u16.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend([0, 26, 0, 0]);
    frame.extend([0x55; 18]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        for (line, path) in [
            (
                r#"{"reason":"build-script-executed","out_dir":"/x/out"}"#,
                Some("/x/out/gateway-xdp"),
            ),
            (r#"{"reason":"compiler-artifact"}"#, None),
            ("not JSON", None),
        ] {
            assert_eq!(built_object(line), path.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn rows_are_made_of_differences_to_their_own_floor() {
        let comparison = Comparison {
            scenario: "banned",
            protocol: "udp4",
            ours: 1,
            floor: 0,
            peers: vec![(XDP_FILTER, 2)],
            targets: vec![Target::OverFloor(4.0), Target::Share(0.1, XDP_FILTER)],
        };
        let rounds = [vec![30.0, 31.0, 90.0], vec![34.0, 36.0, 95.0], vec![80.0, 81.0, 140.0]];
        let row = comparison.row(&rounds);
        assert_eq!((row.floor.median, row.whole.median, row.over_floor.median), (31.0, 36.0, 5.0));
        assert_eq!((row.best_over_floor, row.ratio_to_best()), (4.0, Some(0.1)));
        let held: Vec<_> = row.targets.iter().map(|target| target.is_held(&row)).collect();
        assert_eq!(held, [Some(false), Some(true)]);
    }

    #[test]
    fn frames_are_what_the_programs_take_them_for() {
        use std::net::IpAddr;

        use gateway_ebpf::packet;

        let to = packet::Target::Udp(PORT);
        for (frame, source) in
            [(udp(VISITOR), IpAddr::from(VISITOR)), (udp_ipv6(BANNED_6), IpAddr::from(BANNED_6))]
        {
            let packet::Parsed::Flow(flow) = packet::parse(&frame[..]) else {
                panic!("{source}: not a packet")
            };
            assert_eq!(flow.target, to, "{source}");
            assert!(frame.len() >= programs::SEED + 4);
        }
    }
}
