//! What a packet of a flood costs until it is dropped, and what a legitimate client notices of it.
//!
//! Two namespaces and a virtual cable with one queue: the near end is one receive queue of a network
//! card. The kernel itself makes the frames on one core, as fast as it can, and the receiver's NAPI
//! thread takes them, both as real-time tasks, so that what else the machine does matters little.
//! What drops them takes turns: the product as it ships (the daemon loads and attaches the program),
//! nftables in two places, xdp-filter, nothing, and an empty XDP program, which shows what of every
//! figure is the cable's.
//!
//! They are looked at three times. First both share a core: the receiver goes before the generator,
//! nothing is lost, and the scheduler tells what of the core's time the receiver had, which is the
//! processor time of a packet from the cable to its end. Then each has a core, and once the receiver's
//! ring overflows, the packets it took are what a core is able to drop; here a frame's memory goes back
//! from one core to the other by a lock that both want, which a network card's own pages do not.
//! At last they share one core again, and daemon, upstream and a client that keeps to a rate of
//! requests have the other: the client's latencies are its own and the filter's doing.

mod filter;
mod rows;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};

pub use self::filter::PROGRAMS;
use self::{
    filter::{Filter, InPlace, Senders},
    rows::{Turns, rows_of},
};
use super::{machine, report, xdp::RealTime};
use crate::{
    cargo,
    harness::{
        clock,
        flood::{self, Flood, Plan, Transport, Wire},
        gateway::{Gateway, SOON},
        load::{self, Rate, Target},
        netns,
        site::{CLIENT_INTERFACE, GATEWAY, HOST, INTERFACE, SERVER, Site},
    },
    setup,
};

/// Rounds, and with `--quick`. Odd, so that the median is one of them.
const ROUNDS: [usize; 2] = [3, 1];
/// Before the receiver is looked at: the generator needs tens of milliseconds to set a call up.
const WARM_UP: Duration = Duration::from_millis(400);
/// How long the receiver is looked at.
const LOOK: Duration = Duration::from_millis(1_500);
/// Frames handed over at once: two of the receiver's budgets, so that its thread is not put to sleep
/// after each one as it never is in a flood, and half of its ring.
const BATCH: u32 = 128;
/// Of the core that receiver and generator share, what both had and what it was idle (while the kernel
/// makes and takes down what a call of the generator needs) comes to so much of the time, or the
/// scheduler's account is not to be trusted, or somebody else was there: then the look does not count. A
/// twentieth is what the kernel keeps for ordinary tasks.
const ACCOUNTED: RangeInclusive<f64> = 0.93..=1.02;
/// Now and then the generator's start goes wrong and nothing is sent; such a look is taken again.
const ATTEMPTS: usize = 4;
/// Fewer than this in a look is nothing: a hundredth of what the slowest receiver takes.
const PACKETS_MIN: u64 = 5_000;
/// The legitimate client: a service's ordinary day.
const REQUESTS_PER_S: u32 = 200;
const CONNECTIONS: u32 = 4;
const CLIENT_LASTS: Duration = Duration::from_secs(3);
/// The product drops at least this much of what arrives, or something else was measured.
const DROPPED_MIN: f64 = 0.9;
/// A round takes about so long: eleven filters to start, of which five have a client beside them.
const ROUND_S: f64 = 75.0;

/// The cores: who makes the flood, and who receives it or serves.
#[derive(Clone, Copy, Debug)]
struct Cores {
    flood: usize,
    other: usize,
}

impl Cores {
    fn choose() -> Result<Cores> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
        let usable: Vec<usize> =
            (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
        let [flood, .., other] = usable[..] else {
            bail!("a flood and its reception need two cores; here is {}", usable.len())
        };
        Ok(Cores { flood, other })
    }
}

/// About how long it takes when everything is built, in minutes.
pub fn minutes(quick: bool, rounds: Option<usize>) -> f64 {
    rounds.unwrap_or(ROUNDS[usize::from(quick)]) as f64 * ROUND_S / 60.0
}

/// Measures, and gives the document.
///
/// # Errors
/// When the scene cannot be set, a filter does not do what it is for, or somebody interrupts.
pub fn measure(quick: bool, rounds: Option<usize>, as_json: bool) -> Result<Value> {
    let rounds = rounds.unwrap_or(ROUNDS[usize::from(quick)]);
    let binary = cargo::build_release()?;
    // Of what was built, whatever is changed while it is measured.
    let commit = machine::commit()?;
    let mut absent = Vec::new();
    let present: Vec<Filter> = Filter::ALL
        .into_iter()
        .filter(|filter| match filter.program() {
            Some((program, package)) if setup::in_path(program).is_none() => {
                absent.push(format!("{}: {program} (Debian package {package})", filter.name()));
                false
            }
            _ => true,
        })
        .collect();
    let mut bench = Bench::new(&binary)?;
    let mut rows = Vec::new();
    for senders in [Senders::One, Senders::Many] {
        let filters: Vec<Filter> =
            senders.filters().into_iter().filter(|filter| present.contains(filter)).collect();
        let mut turns: Vec<Turns> = filters.iter().map(|_| Turns::default()).collect();
        let mut calm = Turns::default();
        for round in 1..=rounds {
            if senders == Senders::One {
                bench.calm(&mut calm)?;
            }
            for (filter, turns) in filters.iter().zip(&mut turns) {
                clock::go_on()?;
                eprintln!(
                    "perf: {}, round {round} of {rounds}: {}",
                    senders.scenario(),
                    filter.name()
                );
                bench.turn(*filter, senders, turns)?;
            }
        }
        rows.extend(rows_of(senders, &filters, &turns, &calm));
    }
    let document = json!({
        "machine": machine::describe(super::tick_ns()?),
        "date": report::date()?,
        "commit": commit,
        "quick": quick,
        "rounds": rounds,
        "not_measured": absent,
        "rows": rows,
    });
    if !as_json {
        rows::print(&document);
    }
    Ok(document)
}

/// The scene.
struct Bench {
    site: Site,
    token: String,
    cores: Cores,
}

impl Bench {
    fn new(binary: &std::path::Path) -> Result<Bench> {
        let cores = Cores::choose()?;
        let site = Site::new(binary, "perf")?;
        // Without a program a veth receives by NAPI only with this, and takes no frames else.
        site.gateway_host.within(|| generic_receive_offload(INTERFACE))??;
        let token = site.mint.good("perf")?;
        Ok(Bench { site, token, cores })
    }

    /// The client alone.
    fn calm(&mut self, turns: &mut Turns) -> Result<()> {
        self.site.config.xdp = String::new();
        let gateway = self.start()?;
        self.client(turns)?;
        gateway.kill()
    }

    /// One turn of one filter: what its core drops, then what the client notices.
    fn turn(&mut self, filter: Filter, senders: Senders, turns: &mut Turns) -> Result<()> {
        self.site.config.xdp = String::new();
        if filter == Filter::Ours {
            let (rate, burst) = (senders.limit_per_s(), senders.limit_per_s().max(2));
            self.site.guard(&format!(
                "packets = {{ rate = \"{rate}/s\", burst = {burst} }}\nallow = [\"10.99.0.2/32\"]"
            ));
        }
        let gateway = self.start()?;
        let in_place = InPlace::new(filter, senders, &self.site.gateway_host)?;
        let measured = self.measure(filter, senders, turns, &gateway);
        drop(in_place);
        if filter == Filter::Ours {
            gateway.launch().succeed(&["detach"])?;
        }
        gateway.kill()?;
        measured
    }

    fn start(&self) -> Result<Gateway> {
        let mut launch = self.site.launch()?;
        launch.core = Some(self.cores.other);
        launch.run_until_ready()
    }

    fn measure(
        &self,
        filter: Filter,
        senders: Senders,
        turns: &mut Turns,
        gateway: &Gateway,
    ) -> Result<()> {
        let shared = self.seen(filter, senders, self.cores.flood, turns, gateway)?;
        let share = shared.accounted();
        if ACCOUNTED.contains(&share) {
            turns.processor_ns.push(shared.receiver.as_nanos() as f64 / shared.whole as f64);
            turns.accounted = Some(turns.accounted.map_or(share, |least| least.min(share)));
        } else {
            turns.unaccounted += 1;
        }
        let apart = self.seen(filter, senders, self.cores.other, turns, gateway)?;
        turns.core_ns.push(apart.elapsed.as_nanos() as f64 / apart.packets as f64);
        turns.saturated += usize::from(apart.missed > 0);
        if senders == Senders::One && filter.lets_clients_through() {
            self.receive_on(self.cores.flood)?;
            let flood = self.flood(senders, CLIENT_LASTS + SOON)?;
            let told = self.client(turns);
            flood.stop()?;
            told?;
        }
        Ok(())
    }

    /// A look with the receiver on one core; the last one even if its time is not accounted for.
    fn seen(
        &self,
        filter: Filter,
        senders: Senders,
        core: usize,
        turns: &mut Turns,
        gateway: &Gateway,
    ) -> Result<Seen> {
        for attempt in 1..=ATTEMPTS {
            clock::go_on()?;
            let threads = self.receive_on(core)?;
            let dropped_before = dropped(filter, gateway)?;
            let seen = self.look(senders, &threads)?;
            let is_unaccounted = core == self.cores.flood && !ACCOUNTED.contains(&seen.accounted());
            if seen.packets < PACKETS_MIN || is_unaccounted && attempt < ATTEMPTS {
                turns.again += 1;
                continue;
            }
            if filter == Filter::Ours {
                let dropped = dropped(filter, gateway)? - dropped_before;
                let share = dropped / seen.whole as f64;
                ensure!(share > DROPPED_MIN, "the program dropped {share:.2} of the flood only");
            }
            return Ok(seen);
        }
        bail!("{}: nothing was sent, {ATTEMPTS} times in a row", filter.name())
    }

    /// Has the interface's packets received by a thread on one core, before everything else there,
    /// and says which.
    fn receive_on(&self, core: usize) -> Result<BTreeSet<i32>> {
        let host = &self.site.gateway_host;
        host.receive_by_threads(INTERFACE)?;
        let threads = clock::wait_for("the receiving thread", SOON, || {
            let threads = netns::receive_threads(INTERFACE);
            Ok((!threads.is_empty()).then_some(threads))
        })?;
        // Whoever else has an interface of this name: theirs are somebody's tests, and go on.
        for thread in &threads {
            flood::receive_first(*thread, core)?;
        }
        Ok(threads)
    }

    fn flood(&self, senders: Senders, lasts: Duration) -> Result<Flood> {
        let (host, from) = (&self.site.client_host, SERVER.port());
        let wire = Wire {
            source: host.hardware_address(CLIENT_INTERFACE)?,
            destination: self.site.gateway_host.hardware_address(INTERFACE)?,
        };
        let (address, sources) = senders.addresses();
        let to = SocketAddrV4::new(GATEWAY, SERVER.port());
        let frame = flood::frame(wire, SocketAddrV4::new(address, from), to, Transport::Udp);
        let plan = Plan {
            frame,
            sources,
            interface: CLIENT_INTERFACE.to_owned(),
            core: self.cores.flood,
            batch: BATCH,
            lasts,
            packets_max: u64::MAX,
        };
        Flood::start(host, plan)
    }

    /// Floods, and looks at what the receiver takes.
    fn look(&self, senders: Senders, threads: &BTreeSet<i32>) -> Result<Seen> {
        self.site.gateway_host.within(|| -> Result<Seen> {
            let (start, began) = (received(INTERFACE)?, clock::now());
            let (used, rested) = (processor_time(threads)?, idle_time(self.cores.flood)?);
            let flood = {
                // The generator inherits it.
                let _core_for_itself = RealTime::start(1)?;
                self.flood(senders, WARM_UP + LOOK + SOON)?
            };
            let (before, after, elapsed) = {
                // Before generator and receiver, or the look would come when they let it.
                let _first = RealTime::start(3)?;
                clock::pause(WARM_UP)?;
                let (before, started) = (received(INTERFACE)?, clock::now());
                clock::pause(LOOK)?;
                (before, received(INTERFACE)?, started.elapsed())
            };
            let made = flood.stop()?;
            // What was on its way has arrived when the generator's last call has returned.
            let end = received(INTERFACE)?;
            Ok(Seen {
                packets: after.packets - before.packets,
                missed: after.missed - before.missed,
                elapsed,
                whole: end.packets - start.packets,
                receiver: processor_time(threads)?.saturating_sub(used),
                generator: made.processor_time,
                idle: idle_time(self.cores.flood)?.saturating_sub(rested),
                lasted: began.elapsed(),
            })
        })?
    }

    fn client(&self, turns: &mut Turns) -> Result<()> {
        let site = &self.site;
        let target = Target::new(
            &site.client_host,
            SERVER,
            HOST,
            &site.authority.certificate(),
            &site.client,
        )?;
        let rate = Rate {
            per_s: REQUESTS_PER_S,
            connections: CONNECTIONS,
            lasts: CLIENT_LASTS,
            core: Some(self.cores.other),
        };
        let told = load::keep_rate(&target, &rate, "/orders/1", &self.token)?;
        turns.p99_ms.push(told.percentile(99).as_secs_f64() * 1e3);
        turns.lost += told.lost.len();
        turns.asked += told.intended;
        Ok(())
    }
}

/// What the receiver took in a look.
struct Seen {
    packets: u64,
    /// For which its ring had no room.
    missed: u64,
    elapsed: Duration,
    /// From the flood's start to its end.
    whole: u64,
    /// What the receiver had of a processor in the meantime.
    receiver: Duration,
    /// And the generator.
    generator: Duration,
    /// And nobody, of the generator's core.
    idle: Duration,
    /// All this.
    lasted: Duration,
}

impl Seen {
    /// What generator, receiver and nobody had, of the time that one core has.
    fn accounted(&self) -> f64 {
        let known = self.receiver + self.generator + self.idle;
        known.as_secs_f64() / self.lasted.as_secs_f64().max(1e-9)
    }
}

/// How long threads were on a processor since they began, by the scheduler's account
/// (Documentation/scheduler/sched-stats.rst). While one runs, a tick may be missing.
fn processor_time(threads: &BTreeSet<i32>) -> Result<Duration> {
    threads.iter().try_fold(Duration::ZERO, |sum, thread| {
        let file = format!("/proc/{thread}/schedstat");
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
        Ok(sum + Duration::from_nanos(ns.with_context(|| format!("{file}: {text}"))?))
    })
}

/// How long nobody had a core, since it runs; of single hundredths of a second.
fn idle_time(core: usize) -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    idle_hundredths(&text, core)
        .map(|hundredths| Duration::from_millis(hundredths * 10))
        .with_context(|| format!("no core {core} in /proc/stat"))
}

/// From `/proc/stat` (proc_stat(5)): of each core the time of programs, of their nice ones, of the
/// kernel, of nobody, and of nobody but for a disk, in hundredths of a second.
fn idle_hundredths(text: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name))?;
    let numbers: Vec<u64> =
        line.split_whitespace().map_while(|number| number.parse().ok()).collect();
    Some(numbers.get(3)? + numbers.get(4)?)
}

/// Packets that the product says it dropped.
fn dropped(filter: Filter, gateway: &Gateway) -> Result<f64> {
    if filter == Filter::Ours { gateway.xdp_packets("drop", "over_limit") } else { Ok(0.0) }
}

/// Counters of an interface of the calling thread's namespace.
struct Received {
    packets: u64,
    missed: u64,
}

fn received(interface: &str) -> Result<Received> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    counters(&text, interface).with_context(|| format!("no counters of {interface}"))
}

/// From `/proc/net/dev`: octets, packets, errors, drops received come first.
fn counters(text: &str, interface: &str) -> Option<Received> {
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    let mut numbers = line.split_whitespace().map(str::parse::<u64>);
    let packets = numbers.nth(1)?.ok()?;
    Some(Received { packets, missed: numbers.nth(1)?.ok()? })
}

/// Switches generic receive offload on, by `SIOCETHTOOL` (include/uapi/linux/ethtool.h); `ethtool` is
/// not everywhere.
fn generic_receive_offload(interface: &str) -> io::Result<()> {
    const ETHTOOL_SGRO: u32 = 0x2c;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        data: *mut Value,
        // The rest of the union in `struct ifreq`.
        _rest: [u64; 2],
    }
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut value = Value { command: ETHTOOL_SGRO, data: 1 };
    let mut request = Request { name: [0; 16], data: &raw mut value, _rest: [0; 2] };
    // One octet stays zero: the kernel wants the name ended.
    for (to, from) in request.name.iter_mut().take(15).zip(interface.bytes()) {
        *to = from;
    }
    // SAFETY: `request` is as large as `struct ifreq`, begins with a name that ends in a zero, and
    // points to a live `struct ethtool_value`; the kernel reads both and keeps neither.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_kernels_table() {
        let text = "Inter-|   Receive                |  Transmit\n\
                    \x20face |bytes    packets errs drop fifo\n\
                    \x20   lo:     100       2    0    0    0\n\
                    \x20edge0: 6000000  100000    0    77    0 0 0 0 1 2 3 4\n";
        let seen = counters(text, "edge0").unwrap();
        assert_eq!((seen.packets, seen.missed), (100_000, 77));
        assert!(counters(text, "edge1").is_none());
    }

    #[test]
    fn idle_time_is_read_of_one_core() {
        let text =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 1 2 3 4 5 6 7 8 0 0\ncpu10 1 2 3 70 0 6 7 8 0 0\n";
        assert_eq!(idle_hundredths(text, 1), Some(9));
        assert_eq!(idle_hundredths(text, 10), Some(70));
        assert_eq!(idle_hundredths(text, 2), None);
    }
}
