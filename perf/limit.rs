//! What a limit costs: one decision for a consumer, hot, among many, and with two threads at one bucket.
//!
//! `cargo bench -p gateway --bench limit` prints medians of many short rounds. Nothing is asserted.

use std::{hint::black_box, net::IpAddr, thread, time::Duration, time::Instant};

use gateway::{
    policy::{
        authorize::Demands,
        limit::{Counting, Key, Limit, Limiters, Mode, Rate, Unit},
        route::{Priority, Route},
    },
    time,
};

const ROUNDS: usize = 101;
const CALLS: u32 = 2_000;

fn limit(name: &str, per_s: u32) -> Limit {
    Limit {
        name: name.into(),
        key: Key::SOURCE,
        rates: vec![Rate::new(per_s, Unit::Second, per_s), Rate::new(1_000, Unit::Hour, 1_000_000)],
        tiers: vec![],
        mode: Mode::Enforce,
        entries: 65_536,
        announce: true,
    }
}

fn route(limits: usize) -> Route {
    Route {
        name: "orders".into(),
        index: 0,
        hosts: vec![],
        path: String::new(),
        methods: vec![],
        upstream: 0,
        demands: Demands::default(),
        pass_authorization: false,
        priority: Priority::Normal,
        limits: (0..limits).collect(),
    }
}

fn ask(limiters: &Limiters, route: &Route, address: IpAddr, now: Instant) -> bool {
    let counting = Counting { limiters, address, now };
    let mut verdicts = Vec::new();
    black_box(counting.arrive(black_box(route), false, &mut verdicts)).is_ok()
}

fn source(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + number).to_be_bytes())
}

/// The median of many rounds, in nanoseconds a call.
fn median_ns(mut call: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = time::monotonic();
            (0..CALLS).for_each(|_| call());
            time::monotonic().saturating_duration_since(start).as_nanos() as f64 / f64::from(CALLS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() {
    let start = time::monotonic();
    let plenty = Limiters::new(&[limit("a", 1_000_000), limit("b", 1_000_000)], start);
    let spent = Limiters::new(&[limit("a", 1)], start);
    let (none, one, two) = (route(0), route(1), route(2));
    let mut now = start;
    let mut tick = || {
        // Time goes on, so that the buckets are not full and not empty.
        now += Duration::from_micros(20);
        now
    };
    let mut row = |name: &str, call: &mut dyn FnMut(Instant)| {
        println!("{name:<52} {:8.1} ns", median_ns(|| call(tick())));
    };
    row("no limit", &mut |now| {
        ask(&plenty, &none, source(1), now);
    });
    row("two rates, always the same consumer", &mut |now| {
        ask(&plenty, &one, source(1), now);
    });
    let mut next = 0;
    row("two rates, 10,000 consumers in turn", &mut |now| {
        next = (next + 1) % 10_000;
        ask(&plenty, &one, source(next), now);
    });
    row("two limits of two rates", &mut |now| {
        ask(&plenty, &two, source(2), now);
    });
    row("refused, with its text", &mut |_| {
        ask(&spent, &one, source(1), start);
    });
    for (name, addresses) in [
        ("two threads at one consumer's buckets", [source(3), source(3)]),
        ("two threads, each its own consumer", [source(4), source(5)]),
    ] {
        let shares = thread::scope(|scope| {
            let threads = addresses.map(|address| {
                let (plenty, one) = (&plenty, &one);
                scope.spawn(move || {
                    let mut now = start;
                    median_ns(|| {
                        now += Duration::from_micros(20);
                        ask(plenty, one, address, now);
                    })
                })
            });
            threads.map(|thread| thread.join().unwrap_or(f64::NAN))
        });
        println!("{name:<52} {:8.1} ns", (shares[0] + shares[1]) / 2.0);
    }
}
