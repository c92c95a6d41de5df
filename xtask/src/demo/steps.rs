//! The play: one function a scene, in order.

use std::{
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_ebpf::Outcome;
use nix::sys::signal::Signal;

use super::{
    counters::Counters,
    table::{Report, Seen},
    world::{ATTACKERS, Enforce, FIRST_BAN, FLOODER, INTERFACE, VISITORS, World},
};
use crate::harness::{
    client::{Credential, alert, curl_exit},
    clock,
    flood::Sources,
    gateway::{Gateway, SOON},
    load::{self, Outcome as Load, Rate},
};

/// The legitimate client's pace.
const REQUESTS_PER_S: u32 = 200;
/// Its kept connections.
const CONNECTIONS: u32 = 4;
/// What the design aims at, from the deciding refusal to the first packet dropped.
const FEEDBACK_TARGET: Duration = Duration::from_millis(10);
/// Refusals after which an attacker must have been banned, with room for any weighting.
const MAX_REFUSALS: u32 = 200;
/// How long an attacker looks for the first dropped packet before it tries another token.
const PROBE_LIMIT: Duration = Duration::from_millis(250);
/// Packets of the attackers that must be dropped: a stray one is none.
const DROPS_ENOUGH: u64 = 5;
/// And how far apart at most, on a machine that has other things to do as well.
const DROPS_APART_MAX: Duration = Duration::from_millis(50);
/// A connection attempt of a banned source is given up after this.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Plays all scenes.
///
/// # Errors
/// When the daemon does not start, or somebody interrupts; everything else is in the report.
pub fn play(world: &World, phase: Duration, report: &mut Report) -> Result<()> {
    report.say(&format!(
        "core {} makes and receives the flood; daemon, upstream and client share core {}",
        world.cores.flood, world.cores.service
    ));
    let gateway = world.start()?;
    let counters = Counters::open(world.pins.path(), INTERFACE)?;
    let token = world.mint.mint(
        "alice",
        crate::harness::tokens::AUDIENCE,
        &["--scope", "read:orders", "--client-id", "till-7", "--lifetime", "1h"],
    )?;
    served(world, &token, report)?;
    certificates(world, report)?;
    tokens(world, report)?;
    feedback(world, &gateway, &counters, report)?;
    kernel_refuses(world, &counters, &token, report)?;
    ban_ends(world, &token, report)?;
    load(world, &gateway, &counters, phase, &token, report)?;
    restart(world, gateway, &counters, phase, &token, report)
}

fn served(world: &World, token: &str, report: &mut Report) -> Result<()> {
    report.step(
        "a request with certificate and token is served",
        "200, and the upstream sees who it is, whatever the client claims",
        || {
            let answer =
                world.request("/orders/1").token(token).header("X-User-ID: mallory").send()?;
            ensure!(answer.exit == 0, "curl: {}", answer.error);
            let seen = |name: &str| answer.seen_by_upstream(name).unwrap_or_default();
            let (user, client) = (seen("X-User-ID"), seen("X-Client-ID"));
            let method = seen("X-Auth-Method");
            let held = answer.status == 200
                && user == ["alice"]
                && client == ["till-7"]
                && method == ["certificate+token"];
            let status = answer.status;
            let identity = format!("user {user:?}, client {client:?}, by {method:?}");
            Ok(Seen::new(held, format!("{status}, upstream saw {identity}")))
        },
    )
}

fn certificates(world: &World, report: &mut Report) -> Result<()> {
    let cases: [(&str, Option<&Credential>, u8, &str); 4] = [
        ("no certificate", None, alert::CERTIFICATE_REQUIRED, "certificate_required"),
        (
            "a foreign authority's certificate",
            Some(&world.stranger),
            alert::UNKNOWN_CA,
            "unknown_ca",
        ),
        (
            "a revoked certificate",
            Some(&world.revoked),
            alert::CERTIFICATE_REVOKED,
            "certificate_revoked",
        ),
        (
            "an expired certificate",
            Some(&world.expired),
            alert::CERTIFICATE_EXPIRED,
            "certificate_expired",
        ),
    ];
    for ((name, credential, number, word), from) in cases.into_iter().zip(VISITORS) {
        report.step(
            &format!("{name} is refused at the handshake"),
            &format!("TLS alert {number} ({word}), no answer"),
            || {
                let handshake = world.handshake(from, credential)?;
                let got =
                    handshake.alert.map_or("no alert".to_owned(), |got| format!("alert {got}"));
                let answered = if handshake.answered { ", and an answer" } else { ", no answer" };
                let held = handshake.alert == Some(number) && !handshake.answered;
                Ok(Seen::new(held, got + answered))
            },
        )?;
    }
    Ok(())
}

fn tokens(world: &World, report: &mut Report) -> Result<()> {
    let mint = &world.mint;
    let cases = [
        ("an expired token", mint.expired("alice"), "token_expired"),
        ("a token with `alg: none`", mint.unsigned("alice"), "unsupported_algorithm"),
        ("a token of another key", mint.forged_by(&world.impostor, "alice"), "bad_signature"),
        ("an altered token", mint.altered("alice", "root"), "bad_signature"),
        ("a token for somebody else", mint.mint("alice", "other-api", &[]), "wrong_audience"),
    ];
    for ((name, token, reason), from) in cases.into_iter().zip(VISITORS) {
        report.step(&format!("{name} is refused"), &format!("401 {reason}"), || {
            let answer = world.visitors_request(from, "/orders/1").token(&token?).send()?;
            ensure!(answer.exit == 0, "curl: {}", answer.error);
            let got = answer.reason();
            let challenge = answer.header("www-authenticate").unwrap_or_default();
            let asks = challenge.starts_with("Bearer ");
            let held = answer.status == 401 && got == reason && asks;
            let asks = if asks { "asks for a bearer token" } else { "no challenge" };
            Ok(Seen::new(held, format!("{} {got}, {asks}", answer.status)))
        })?;
    }
    Ok(())
}

fn feedback(
    world: &World,
    gateway: &Gateway,
    counters: &Counters,
    report: &mut Report,
) -> Result<()> {
    report.step(
        "attackers with forged tokens are banned in the kernel",
        &format!(
            "each of {}: packets dropped as `banned` right after the deciding refusal (target: \
             median below {} ms)",
            ATTACKERS.len(),
            FEEDBACK_TARGET.as_millis()
        ),
        || {
            let token = world.mint.forged_by(&world.impostor, "mallory")?;
            let mut attacks: Vec<Attack> = Vec::new();
            let mut listed = 0;
            for attacker in ATTACKERS {
                // The first one finds out how many refusals it takes.
                let harmless = attacks.first().map_or(0, |first| first.refusals.saturating_sub(2));
                let attack = attack(world, counters, attacker, &token, harmless)
                    .with_context(|| format!("attacker {attacker}"))?;
                attacks.push(attack);
                listed += usize::from(!world.launch.bans_of(&format!("{attacker}/32"))?.is_empty());
            }
            let refusals = attacks[0].refusals;
            let mut delays: Vec<_> = attacks.iter().map(|attack| attack.delay).collect();
            delays.sort_unstable();
            let (median, longest) = (delays[delays.len() / 2], delays[delays.len() - 1]);
            let target = if median < FEEDBACK_TARGET { "met" } else { "missed" };
            let (median, longest) = (short(median), short(longest));
            let inside = inside_feedback(gateway)?;
            Ok(Seen::new(
                listed == ATTACKERS.len(),
                format!(
                    "{listed} banned, by refusal {refusals}; first drop {median} after its receipt \
                     (median; longest {longest}), target {target}\ndaemon's own measure, from \
                     refusal to map: {inside} (mean)"
                ),
            ))
        },
    )
}

/// The mean of the daemon's own measure of the way back, from the refusal to the written map.
fn inside_feedback(gateway: &Gateway) -> Result<String> {
    let sum = gateway.metric("gateway_ban_feedback_seconds_sum", &[])?;
    let count = gateway.metric("gateway_ban_feedback_seconds_count", &[])?;
    Ok(short(Duration::try_from_secs_f64(sum / count).unwrap_or_default()))
}

/// One attacker's end.
struct Attack {
    /// Refused requests, the deciding one included.
    refusals: u32,
    /// From the receipt of the deciding refusal to the first dropped packet, on the attacker's clock.
    delay: Duration,
}

/// Sends bad tokens; after each refusal it probes the guarded port with datagrams, which the XDP
/// program judges like all else, to see the very moment from which its packets are dropped. The
/// refusal before that moment was the deciding one. The first `harmless` refusals are known not to
/// decide, and are not waited after.
fn attack(
    world: &World,
    counters: &Counters,
    from: IpAddr,
    token: &str,
    harmless: u32,
) -> Result<Attack> {
    let prober = world.prober(from)?;
    prober.send(1)?; // resolves the gateway's hardware address
    let mut connection = world.attacker_target(from)?.connect()?;
    for refusals in 1..=MAX_REFUSALS {
        clock::go_on()?;
        let status = connection.ask("/orders/1", token)?;
        let refused = clock::now();
        ensure!(status == 401, "a forged token was answered with {status}");
        if refusals <= harmless {
            continue;
        }
        if let Some(dropped) = first_drop(counters, refused, || prober.send(1))? {
            connection.reset();
            return Ok(Attack { refusals, delay: dropped - refused });
        }
    }
    bail!("not banned after {MAX_REFUSALS} refusals");
}

/// Probes for a while; gives the moment of the first of several drops, none of them long after the one
/// before. (A busy machine may put the receiver off, and then judges several probes at once.)
fn first_drop(
    counters: &Counters,
    since: Instant,
    probe: impl Fn() -> Result<()>,
) -> Result<Option<Instant>> {
    let mut drops: Option<Drops> = None;
    let mut count = counters.dropped(Outcome::Banned)?;
    // Once one is seen, the last of them are given their time.
    while since.elapsed() < PROBE_LIMIT || drops.is_some_and(|drops| drops.is_fresh(clock::now())) {
        probe()?;
        let now = clock::now();
        let after = counters.dropped(Outcome::Banned)?;
        if after > count {
            let before = drops.filter(|drops| drops.is_fresh(now));
            let (first, dropped) = before.map_or((now, 0), |drops| (drops.first, drops.dropped));
            let dropped = dropped + (after - count);
            if dropped >= DROPS_ENOUGH {
                return Ok(Some(first));
            }
            drops = Some(Drops { first, last: now, dropped });
        }
        count = after;
        // A tenth of a millisecond is fine enough, and keeps the probes below the source's limit.
        thread::sleep(Duration::from_micros(50));
    }
    Ok(None)
}

/// Dropped probes, the moments of the first and the last of them.
#[derive(Clone, Copy, Debug)]
struct Drops {
    first: Instant,
    last: Instant,
    dropped: u64,
}

impl Drops {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < DROPS_APART_MAX
    }
}

fn kernel_refuses(
    world: &World,
    counters: &Counters,
    token: &str,
    report: &mut Report,
) -> Result<()> {
    report.step(
        "a banned attacker's connections die in the kernel",
        "even with a good token: connect times out, packets dropped as `banned`",
        || {
            let before = counters.dropped(Outcome::Banned)?;
            let attacker = ATTACKERS[ATTACKERS.len() - 1];
            let answer = world
                .attackers_request(attacker, "/orders/1")
                .token(token)
                .limit(CONNECT_LIMIT)
                .send()?;
            let dropped = counters.dropped(Outcome::Banned)? - before;
            let held = answer.exit == curl_exit::TIMED_OUT && dropped > 0;
            let said = answer.error.lines().next().unwrap_or_default().to_owned();
            Ok(Seen::new(held, format!("{said}; {dropped} packets dropped as banned")))
        },
    )
}

/// The figures of one measured phase.
struct Phase {
    load: Load,
    received: u64,
    dropped: u64,
    would_drop: u64,
    flood_per_s: f64,
}

impl Phase {
    fn line(&self) -> String {
        format!(
            "{} of {} served, {} lost; p50 {}, p99 {}",
            self.load.served,
            self.load.intended,
            self.load.lost.len(),
            short(self.load.percentile(50)),
            short(self.load.percentile(99)),
        )
    }

    /// What happened to the first lost request, for the message.
    fn first_loss(&self) -> String {
        self.load.lost.first().map(|why| format!(" (first loss: {why})")).unwrap_or_default()
    }
}

/// The legitimate client's rate for a while, with or without a flood beside it.
fn phase(
    world: &World,
    counters: &Counters,
    lasts: Duration,
    token: &str,
    flood: Flooding,
) -> Result<Phase> {
    let flood = match flood {
        Flooding::No => None,
        // It ends with the phase; the limit is for the case that nobody ends it.
        Flooding::Yes => Some(world.flood(Sources::PowerOfTwo(2), lasts * 2 + SOON)?),
    };
    if flood.is_some() {
        let before = counters.received()?;
        clock::wait_for("the flood to arrive", SOON, || {
            Ok((counters.received()? > before + 100_000).then_some(()))
        })?;
    }
    let started = clock::now();
    let read = || -> Result<_> {
        Ok((
            counters.received()?,
            counters.dropped(Outcome::OverLimit)? + counters.dropped(Outcome::OverConnections)?,
            counters.would_be_dropped(Outcome::OverLimit)?
                + counters.would_be_dropped(Outcome::OverConnections)?,
        ))
    };
    let before = read()?;
    let rate = Rate {
        per_s: REQUESTS_PER_S,
        connections: CONNECTIONS,
        lasts,
        core: Some(world.cores.service),
    };
    let load = load::keep_rate(&world.client_target()?, &rate, "/orders/1", token)?;
    let after = read()?;
    let elapsed = started.elapsed();
    if let Some(flood) = flood {
        flood.stop()?;
    }
    Ok(Phase {
        load,
        received: after.0 - before.0,
        dropped: after.1 - before.1,
        would_drop: after.2 - before.2,
        flood_per_s: (after.0 - before.0) as f64 / elapsed.as_secs_f64(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flooding {
    Yes,
    No,
}

fn load(
    world: &World,
    gateway: &Gateway,
    counters: &Counters,
    lasts: Duration,
    token: &str,
    report: &mut Report,
) -> Result<()> {
    let seconds = lasts.as_secs();
    let mut calm_p99 = None;
    report.step(
        &format!("the client asks {REQUESTS_PER_S} times a second, calm"),
        &format!("for {seconds} s: 0 lost"),
        || {
            let phase = phase(world, counters, lasts, token, Flooding::No)?;
            calm_p99 = Some(phase.load.percentile(99));
            let held = phase.load.lost.is_empty() && phase.load.served > 0;
            Ok(Seen::new(held, phase.line() + &phase.first_loss()))
        },
    )?;
    report.step(
        "the same beside a flood, enforcing",
        &format!(
            "for {seconds} s: 0 lost, the flood dropped as over its limits (target: p99 < 2 × calm)"
        ),
        || {
            let phase = phase(world, counters, lasts, token, Flooding::Yes)?;
            let held = phase.load.lost.is_empty() && phase.load.served > 0 && phase.dropped > 0;
            let times = calm_p99.map_or("calm not measured".to_owned(), |calm| {
                let p99 = phase.load.percentile(99);
                format!("{:.1} × calm", p99.as_secs_f64() / calm.as_secs_f64().max(1e-9))
            });
            let share = 100.0 * phase.dropped as f64 / phase.received.max(1) as f64;
            Ok(Seen::new(
                held,
                format!(
                    "{} ({times}); flood {}, {share:.1} % dropped{}",
                    phase.line(),
                    packets_per_s(phase.flood_per_s),
                    phase.first_loss()
                ),
            ))
        },
    )?;
    report.step(
        "the same beside a flood, only observing",
        &format!("for {seconds} s: nothing dropped, all of it counted as what would be"),
        || {
            reload(world, gateway, Enforce::No)?;
            let phase = phase(world, counters, lasts, token, Flooding::Yes)?;
            let held = phase.dropped == 0 && phase.would_drop > 0;
            Ok(Seen::new(
                held,
                format!(
                    "{}; flood {}, {} would have been dropped{}",
                    phase.line(),
                    packets_per_s(phase.flood_per_s),
                    phase.would_drop,
                    phase.first_loss()
                ),
            ))
        },
    )?;
    report.step("a reload brings enforcement back", "status says so", || {
        reload(world, gateway, Enforce::Yes)?;
        Ok(Seen::new(true, "enforcing"))
    })
}

/// Writes the configuration anew, has the daemon read it, and waits until it says that it did.
fn reload(world: &World, gateway: &Gateway, enforce: Enforce) -> Result<()> {
    world.configure(enforce)?;
    gateway.signal(Signal::SIGHUP)?;
    clock::wait_for("status to tell of the reload", SOON, || {
        let status = world.launch.json(&["status"])?;
        Ok((status["xdp"]["enforce"] == (enforce == Enforce::Yes)).then_some(()))
    })
}

fn ban_ends(world: &World, token: &str, report: &mut Report) -> Result<()> {
    report.step(
        "a ban ends by itself, and service is restored",
        &format!(
            "listed for {} s in all, then no more, and 200 with a good token",
            FIRST_BAN.as_secs()
        ),
        || {
            let attacker = ATTACKERS[ATTACKERS.len() - 1];
            let source = format!("{attacker}/32");
            let bans = world.launch.bans_of(&source)?;
            let left = bans.first().context("the ban is over already")?;
            let left = left["remaining_s"].as_f64().context("remaining_s")?;
            clock::wait_for("the ban to end", FIRST_BAN + SOON, || {
                Ok(world.launch.bans_of(&source)?.is_empty().then_some(()))
            })?;
            let answer = world.attackers_request(attacker, "/orders/1").token(token).send()?;
            let held = answer.status == 200;
            let said = format!("listed with {left:.1} s left, then not listed; {}", answer.status);
            Ok(Seen::new(held, said))
        },
    )
}

fn restart(
    world: &World,
    gateway: Gateway,
    counters: &Counters,
    lasts: Duration,
    token: &str,
    report: &mut Report,
) -> Result<()> {
    let source = format!("{FLOODER}/32");
    // Ends with this scene; the limit is for the case that nobody ends it.
    let flood = world.flood(Sources::One, lasts * 4 + SOON)?;
    report.step(
        "an operator's ban",
        "listed, and the flood from that address dropped as `banned`",
        || {
            world.launch.succeed(&["bans", "add", &source, "--for", "10m", "--reason", "demo"])?;
            let before = counters.dropped(Outcome::Banned)?;
            let listed = !world.launch.bans_of(&source)?.is_empty();
            let dropped = more_dropped(counters, before)?;
            Ok(Seen::new(listed, format!("listed; {dropped} packets dropped as banned")))
        },
    )?;
    report.step(
        "the daemon is killed (kill -9) in the flood",
        "the kernel half goes on dropping without it",
        || {
            gateway.kill()?;
            let before = counters.dropped(Outcome::Banned)?;
            let dropped = more_dropped(counters, before)?;
            let held = world.guarded()?;
            Ok(Seen::new(held, format!("{dropped} more packets dropped with no daemon")))
        },
    )?;
    let dropped_before = counters.dropped(Outcome::Banned)?;
    let mut gateway = world.launch.run_until_ready()?;
    report.step(
        "started again in the flood, it adopts program, maps and bans",
        "the ban still listed and dropping, the counters not begun anew, a request served",
        || {
            let bans = world.launch.bans_of(&source)?;
            let adopted = Counters::open(world.pins.path(), INTERFACE)?;
            let count = adopted.dropped(Outcome::Banned)?;
            let dropped = more_dropped(&adopted, count)?;
            let answer = world.request("/orders/1").token(token).send()?;
            let held = !bans.is_empty() && count >= dropped_before && answer.status == 200;
            let remaining =
                bans.first().map_or(0.0, |ban| ban["remaining_s"].as_f64().unwrap_or(0.0));
            Ok(Seen::new(
                held,
                format!(
                    "{remaining:.1} s of the ban left, {dropped} more packets dropped, request {}",
                    answer.status
                ),
            ))
        },
    )?;
    flood.stop()?;
    report.step(
        "stopped and detached, nothing is left",
        "exit 0 after SIGTERM; no pin, no program on the interface",
        || {
            gateway.signal(Signal::SIGTERM)?;
            let status = gateway.wait_exit(Duration::from_secs(40))?;
            world.launch.succeed(&["detach"])?;
            let pins = pins_left(world.pins.path());
            let attached = world.guarded()?;
            let held = status == Some(0) && pins == 0 && !attached;
            let program = if attached { "a program still attached" } else { "no program" };
            Ok(Seen::new(held, format!("exit {status:?}, {pins} pins, {program}")))
        },
    )
}

/// Waits until many more packets have been dropped as banned; gives how many.
fn more_dropped(counters: &Counters, before: u64) -> Result<u64> {
    clock::wait_for("100,000 more packets dropped as banned", SOON, || {
        let dropped = counters.dropped(Outcome::Banned)?.saturating_sub(before);
        Ok((dropped > 100_000).then_some(dropped))
    })
}

fn pins_left(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// A short time for people.
fn short(time: Duration) -> String {
    if time < Duration::from_millis(1) {
        format!("{} µs", time.as_micros())
    } else {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    }
}

fn packets_per_s(rate: f64) -> String {
    format!("{:.2} Mpps", rate / 1e6)
}
