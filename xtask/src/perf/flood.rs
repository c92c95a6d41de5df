//! How many packets of a flood one core can drop, and what a legitimate client notices of it.
//!
//! Two namespaces and a virtual cable with one queue: the near end is one receive queue of a network
//! card, with its core. The kernel itself makes the frames on one core, as fast as it can; the
//! receiver's NAPI thread has another to itself, both as real-time tasks, so that what else the
//! machine does matters little. Once the receiver's ring overflows, the packets it took are what its
//! core is able to drop, with everything between the cable and the verdict. What drops them takes
//! turns: the product as it ships (the daemon loads and attaches the program), nftables in two
//! places, xdp-filter, nothing.
//!
//! Then the flood and its reception share one core, and daemon, upstream and a client that keeps to
//! a rate of requests have the other: the client's latencies are its own and the filter's doing.

use std::{
    fs, io,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{machine, report, statistics::Figure, xdp::RealTime, xdp_filter};
use crate::{
    cargo,
    harness::{
        clock,
        flood::{self, Flood, Plan, Sources, Transport, Wire},
        gateway::{Gateway, SOON},
        load::{self, Rate, Target},
        netns::{self, Namespace},
        process::{self, words},
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
/// Now and then the generator's start goes wrong and nothing is sent; such a turn is taken again.
const ATTEMPTS: usize = 4;
/// Fewer than this in a look is nothing: a hundredth of what the slowest receiver takes.
const PACKETS_MIN: u64 = 5_000;
/// The legitimate client: a service's ordinary day.
const REQUESTS_PER_S: u32 = 200;
const CONNECTIONS: u32 = 4;
const CLIENT_LASTS: Duration = Duration::from_secs(3);
/// What each source may have, by every filter that has limits.
const LIMIT_PER_S: u32 = 1_000;
/// The same for each of 65,536 sources, so that nearly all is dropped there, too.
const LIMIT_OF_MANY_PER_S: u32 = 1;
/// The product drops at least this much of what arrives, or something else was measured.
const DROPPED_MIN: f64 = 0.9;
const NFT: setup::Program = ("nft", "nftables");
const XDP_FILTER: setup::Program = ("xdp-filter", "xdp-tools");
/// What the others need; without it their rows say that they were not measured.
pub const PROGRAMS: [setup::Program; 2] = [NFT, XDP_FILTER];
/// How much more than nftables one core should drop.
const TARGET: f64 = 5.0;
/// How much longer than without a flood the client may wait, at its 99th percentile.
const CALM_TARGET: f64 = 1.2;
/// A round takes about so long: nine filters to start, of which five have a client beside them.
const ROUND_S: f64 = 75.0;

/// Where the flood comes from: one address of the cable's network, or many of another.
const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 200);
const FLOODERS: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);

/// What drops the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    /// The product.
    Ours,
    /// nftables before connection tracking, with a limit for each source.
    Nft,
    /// nftables at the card, with a limit for each source.
    NftIngress,
    /// xdp-filter, told of the source.
    Xdp,
    /// The stack itself: the datagram's port is closed.
    Nothing,
}

impl Filter {
    const ALL: [Filter; 5] =
        [Filter::Ours, Filter::Nft, Filter::NftIngress, Filter::Xdp, Filter::Nothing];

    fn name(self) -> &'static str {
        match self {
            Filter::Ours => "portcullis",
            Filter::Nft => "nft-prerouting",
            Filter::NftIngress => "nft-ingress",
            Filter::Xdp => "xdp-filter",
            Filter::Nothing => "no-filter",
        }
    }

    /// The program it needs, and Debian's package of that.
    fn program(self) -> Option<setup::Program> {
        match self {
            Filter::Nft | Filter::NftIngress => Some(NFT),
            Filter::Xdp => Some(XDP_FILTER),
            Filter::Ours | Filter::Nothing => None,
        }
    }
}

/// Who sends the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Senders {
    One,
    Many,
}

impl Senders {
    fn scenario(self) -> &'static str {
        match self {
            Senders::One => "flood-one-source",
            Senders::Many => "flood-64k-sources",
        }
    }

    fn limit_per_s(self) -> u32 {
        match self {
            Senders::One => LIMIT_PER_S,
            Senders::Many => LIMIT_OF_MANY_PER_S,
        }
    }

    /// Those that can be told of these sources.
    fn filters(self) -> Vec<Filter> {
        let all = Filter::ALL.into_iter();
        match self {
            Senders::One => all.collect(),
            Senders::Many => all.filter(|filter| *filter != Filter::Xdp).collect(),
        }
    }
}

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

/// What one turn of one filter came to.
#[derive(Debug, Default)]
struct Turns {
    packets_per_s: Vec<f64>,
    /// Of how many the receiver's ring overflowed: its core could not do more.
    saturated: usize,
    /// Milliseconds.
    p99_ms: Vec<f64>,
    lost: usize,
    asked: usize,
    /// Turns that were taken again, because nothing was sent.
    again: usize,
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
        print(&document);
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
        for _ in 0..ATTEMPTS {
            clock::go_on()?;
            self.receive_on(self.cores.other)?;
            let dropped_before = dropped(filter, gateway)?;
            let seen = self.look(senders)?;
            if seen.packets < PACKETS_MIN {
                turns.again += 1;
                continue;
            }
            if filter == Filter::Ours {
                let dropped = dropped(filter, gateway)? - dropped_before;
                let share = dropped / seen.whole as f64;
                ensure!(share > DROPPED_MIN, "the program dropped {share:.2} of the flood only");
            }
            turns.packets_per_s.push(seen.packets as f64 / seen.elapsed.as_secs_f64());
            turns.saturated += usize::from(seen.missed > 0);
            if senders == Senders::One {
                self.receive_on(self.cores.flood)?;
                let flood = self.flood(senders, CLIENT_LASTS + SOON)?;
                let told = self.client(turns);
                flood.stop()?;
                told?;
            }
            return Ok(());
        }
        bail!("{}: nothing was sent, {ATTEMPTS} times in a row", filter.name())
    }

    /// Has the interface's packets received by a thread on one core, before everything else there.
    fn receive_on(&self, core: usize) -> Result<()> {
        let host = &self.site.gateway_host;
        host.receive_by_threads(INTERFACE)?;
        let threads = clock::wait_for("the receiving thread", SOON, || {
            let threads = netns::receive_threads(INTERFACE);
            Ok((!threads.is_empty()).then_some(threads))
        })?;
        // Whoever else has an interface of this name: theirs are somebody's tests, and go on.
        for thread in threads {
            flood::receive_first(thread, core)?;
        }
        Ok(())
    }

    fn flood(&self, senders: Senders, lasts: Duration) -> Result<Flood> {
        let (host, from) = (&self.site.client_host, SERVER.port());
        let wire = Wire {
            source: host.hardware_address(CLIENT_INTERFACE)?,
            destination: self.site.gateway_host.hardware_address(INTERFACE)?,
        };
        let (address, sources) = match senders {
            Senders::One => (FLOODER, Sources::One),
            Senders::Many => (FLOODERS, Sources::PowerOfTwo(16)),
        };
        let to = SocketAddrV4::new(GATEWAY, SERVER.port());
        let frame = flood::frame(wire, SocketAddrV4::new(address, from), to, Transport::Udp);
        let plan = Plan {
            frame,
            sources,
            interface: CLIENT_INTERFACE.to_owned(),
            core: self.cores.flood,
            lasts,
            packets_max: u64::MAX,
        };
        Flood::start(host, plan)
    }

    /// Floods, and looks at what the receiver takes.
    fn look(&self, senders: Senders) -> Result<Seen> {
        self.site.gateway_host.within(|| -> Result<Seen> {
            let start = received(INTERFACE)?;
            let flood = {
                // The generator inherits it.
                let _core_for_itself = RealTime::start(1)?;
                self.flood(senders, WARM_UP + LOOK + SOON)?
            };
            let (before, after, elapsed) = {
                // Before both, or the look would come when they let it.
                let _first = RealTime::start(2)?;
                clock::pause(WARM_UP)?;
                let (before, started) = (received(INTERFACE)?, clock::now());
                clock::pause(LOOK)?;
                (before, received(INTERFACE)?, started.elapsed())
            };
            flood.stop()?;
            // What was on its way has arrived when the generator's last call has returned.
            let end = received(INTERFACE)?;
            Ok(Seen {
                packets: after.packets - before.packets,
                missed: after.missed - before.missed,
                whole: end.packets - start.packets,
                elapsed,
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
    /// From the flood's start to its end.
    whole: u64,
    elapsed: Duration,
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

/// A filter in the receiver's namespace; taken away when dropped. The product's is its daemon's.
struct InPlace {
    filter: Filter,
    host: Arc<Namespace>,
    shell: Option<Child>,
}

impl InPlace {
    fn new(filter: Filter, senders: Senders, host: &Arc<Namespace>) -> Result<InPlace> {
        let mut in_place = InPlace { filter, host: Arc::clone(host), shell: None };
        match filter {
            Filter::Nft => {
                in_place.rules(&nft_rules("inet", "prerouting priority raw", senders))?
            }
            Filter::NftIngress => {
                let hook = format!("ingress device \"{INTERFACE}\" priority 0");
                in_place.rules(&nft_rules("netdev", &hook, senders))?;
            }
            Filter::Xdp => {
                let shell = xdp_filter::attach(host, INTERFACE, IpAddr::V4(FLOODER))?;
                in_place.shell = Some(shell);
            }
            Filter::Ours | Filter::Nothing => {}
        }
        Ok(in_place)
    }

    fn rules(&self, rules: &str) -> Result<()> {
        let mut command = self.host.command("nft");
        command.args(["--file", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().with_context(|| words(&command))?;
        child.stdin.take().context("piped above")?.write_all(rules.as_bytes())?;
        ensure!(child.wait()?.success(), "nft refused:\n{rules}");
        Ok(())
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        if let Some(mut shell) = self.shell.take() {
            xdp_filter::end(&mut shell, None);
        }
        let mut command = match self.filter {
            Filter::Nft | Filter::NftIngress => {
                let mut command = self.host.command("nft");
                command.args(["flush", "ruleset"]);
                command
            }
            Filter::Xdp => {
                let mut command = self.host.command("ip");
                command.args(["link", "set", "dev", INTERFACE, "xdp", "off"]);
                command
            }
            Filter::Ours | Filter::Nothing => return,
        };
        // What is left goes with the namespace.
        let _left = process::run(&mut command);
    }
}

/// What an administrator would write: over so much, drop.
fn nft_rules(family: &str, hook: &str, senders: Senders) -> String {
    let rate = senders.limit_per_s();
    format!(
        "table {family} perf {{\n\
           set sources {{ type ipv4_addr; size 131072; flags dynamic,timeout; timeout 1m; }}\n\
           chain flood {{\n\
             type filter hook {hook}; policy accept;\n\
             udp dport {port} update @sources {{ ip saddr limit rate over {rate}/second }} drop\n\
           }}\n\
         }}\n",
        port = SERVER.port()
    )
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

fn rows_of(senders: Senders, filters: &[Filter], turns: &[Turns], calm: &Turns) -> Vec<Value> {
    let of = |wanted: Filter| {
        filters.iter().position(|filter| *filter == wanted).map(|place| &turns[place])
    };
    let Some(ours) = of(Filter::Ours) else { return Vec::new() };
    let peers = || filters.iter().zip(turns).filter(|(filter, _)| **filter != Filter::Ours);
    let rate = |turns: &Turns| Figure::of(&turns.packets_per_s);
    // Lower is better in every metric that carries a ratio.
    let ns = |packets_per_s: f64| tenths(1e9 / packets_per_s.max(1.0));
    let ours_rate = rate(ours);
    let best = peers().map(|(_, turns)| rate(turns).median).max_by(f64::total_cmp);
    let nft = [Filter::Nft, Filter::NftIngress].into_iter().filter_map(of);
    let nft = nft.map(|turns| rate(turns).median).max_by(f64::total_cmp);
    let named = |value: &dyn Fn(&Turns) -> Value| -> Value {
        Value::Object(
            peers().map(|(filter, turns)| (filter.name().to_owned(), value(turns))).collect(),
        )
    };
    let over_nft = nft.map(|nft| hundredths(ours_rate.median / nft));
    let mut rows = vec![json!({
        "scenario": senders.scenario(),
        "protocol": "udp4",
        "metric": "core_ns_per_packet",
        "unit": "ns",
        "ours": ns(ours_rate.median),
        "spread": [ns(ours_rate.upper), ns(ours_rate.lower)],
        "peers": named(&|turns| json!(ns(rate(turns).median))),
        "ratio_to_best": best.map(|best| hundredths(best / ours_rate.median)),
        "packets_per_s": { "ours": ours_rate.median.round(),
                           "peers": named(&|turns| json!(rate(turns).median.round())) },
        "over_nft": over_nft,
        "saturated_rounds": { "ours": ours.saturated, "peers": named(&|turns| json!(turns.saturated)) },
        "taken_again": turns.iter().map(|turns| turns.again).sum::<usize>(),
        "targets": [{ "target": format!("≥ {TARGET} × the faster nftables"),
                      "held": over_nft.map(|times| times >= TARGET) }],
    })];
    if senders == Senders::One {
        let p99 = |turns: &Turns| Figure::of(&turns.p99_ms);
        let share = |turns: &Turns| json!({ "lost": turns.lost, "asked": turns.asked });
        let (ours_p99, calm_p99) = (p99(ours), p99(calm));
        let best = peers().map(|(_, turns)| p99(turns).median).min_by(f64::total_cmp);
        rows.push(json!({
            "scenario": "client-beside-flood",
            "protocol": "h1",
            "metric": "p99_ms",
            "unit": "ms",
            "ours": hundredths(ours_p99.median),
            "spread": [hundredths(ours_p99.lower), hundredths(ours_p99.upper)],
            "calm": hundredths(calm_p99.median),
            "peers": named(&|turns| json!(hundredths(p99(turns).median))),
            "ratio_to_best": best.map(|best| hundredths(ours_p99.median / best.max(1e-9))),
            "requests": { "ours": share(ours), "calm": share(calm), "peers": named(&share) },
            "over_calm": hundredths(ours_p99.median / calm_p99.median.max(1e-9)),
            "targets": [{ "target": format!("≤ {CALM_TARGET} × without a flood, nothing lost"),
                          "held": ours.lost == 0
                              && ours_p99.median <= CALM_TARGET * calm_p99.median }],
        }));
    }
    rows
}

fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn hundredths(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// The table for people.
fn print(document: &Value) {
    println!(
        "\nA flood of 60-octet UDP frames over a veth of one queue, {} rounds in turns, medians.\n",
        document["rounds"]
    );
    let mut cells = vec![
        ["scenario", "filter", "Mpps a core", "ns", "against ours", "full", "p99 ms", "lost"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let rows = document["rows"].as_array().cloned().unwrap_or_default();
    let client = rows.iter().find(|row| row["metric"] == "p99_ms");
    for row in rows.iter().filter(|row| row["metric"] == "core_ns_per_packet") {
        let ours = row["packets_per_s"]["ours"].as_f64().unwrap_or(0.0);
        let with_client = client.filter(|_| row["scenario"] == Senders::One.scenario());
        for filter in Filter::ALL {
            let of = |value: &Value| match filter {
                Filter::Ours => value["ours"].clone(),
                other => value["peers"][other.name()].clone(),
            };
            let Some(rate) = of(&row["packets_per_s"]).as_f64() else { continue };
            let requests = with_client.map(|client| of(&client["requests"]));
            cells.push(vec![
                row["scenario"].as_str().unwrap_or_default().to_owned(),
                filter.name().to_owned(),
                format!("{:.2}", rate / 1e6),
                of(row).to_string(),
                format!("{:.2}", rate / ours.max(1.0)),
                of(&row["saturated_rounds"]).to_string(),
                with_client.map_or("-".to_owned(), |client| of(client).to_string()),
                requests.map_or("-".to_owned(), |told| {
                    format!("{} of {}", told["lost"], told["asked"])
                }),
            ]);
        }
    }
    for line in report::aligned(&cells) {
        println!("{line}");
    }
    println!();
    if let Some(client) = client {
        println!("p99 of {REQUESTS_PER_S} requests/s without a flood: {} ms", client["calm"]);
    }
    for row in &rows {
        for target in row["targets"].as_array().into_iter().flatten() {
            let held = match target["held"].as_bool() {
                Some(true) => "held",
                Some(false) => "MISSED",
                None => "not measured",
            };
            let times = row["over_nft"].as_f64().or(row["over_calm"].as_f64());
            let times = times.map_or(String::new(), |times| format!(" ({times} ×)"));
            println!(
                "{}: {}{times}: {held}",
                row["scenario"].as_str().unwrap_or_default(),
                target["target"].as_str().unwrap_or_default()
            );
        }
        if let Some(again @ 1..) = row["taken_again"].as_u64() {
            println!("{}: {again} turns taken again, nothing was sent in them", row["scenario"]);
        }
    }
    println!(
        "full: in how many rounds the receiver's ring overflowed, so that its core could not do \
         more; in the others the generator was slower than the filter."
    );
    for absent in document["not_measured"].as_array().into_iter().flatten() {
        println!("not measured: {}", absent.as_str().unwrap_or_default());
    }
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
    fn rows_say_how_much_more_than_nftables_and_what_the_client_noticed() {
        let turns = |packets_per_s: f64, p99_ms: f64| Turns {
            packets_per_s: vec![packets_per_s],
            p99_ms: vec![p99_ms],
            asked: 600,
            ..Turns::default()
        };
        let filters = [Filter::Ours, Filter::Nft, Filter::NftIngress];
        let all = [turns(8e6, 1.5), turns(1.25e6, 9.0), turns(1e6, 6.0)];
        let rows = rows_of(Senders::One, &filters, &all, &turns(1.0, 1.3));
        assert_eq!(rows[0]["ours"], json!(125.0));
        assert_eq!(rows[0]["over_nft"], json!(6.4));
        assert_eq!(rows[0]["targets"][0]["held"], json!(true));
        assert_eq!(rows[0]["peers"]["nft-ingress"], json!(1000.0));
        assert_eq!((&rows[1]["ours"], &rows[1]["ratio_to_best"]), (&json!(1.5), &json!(0.25)));
        assert_eq!(rows[1]["targets"][0]["held"], json!(true));
        assert_eq!(rows_of(Senders::Many, &filters, &all, &turns(1.0, 1.0)).len(), 1);
    }
}
