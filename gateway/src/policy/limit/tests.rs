use std::{sync::atomic::AtomicUsize, sync::atomic::Ordering::Relaxed, thread};

use proptest::prelude::*;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use super::*;
use crate::{
    identity::token::Claims,
    policy::{Reason, admit, authorize::Demands, permit},
    simulation::Numbers,
    time,
};

const S: Duration = Duration::from_secs(1);

fn rate(count: u32, unit: Unit) -> Rate {
    Rate::new(count, unit, count)
}

fn limit(name: &str, key: Key, rates: &[Rate]) -> Limit {
    Limit {
        name: name.into(),
        key,
        rates: rates.to_vec(),
        tiers: vec![],
        mode: Mode::Enforce,
        entries: 1024,
        announce: true,
    }
}

fn route(limits: &[usize]) -> Route {
    Route {
        name: "orders".into(),
        index: 0,
        hosts: vec![],
        path: String::new(),
        methods: vec![],
        upstream: 0,
        demands: Demands::default(),
        pass_authorization: false,
        priority: crate::policy::route::Priority::Normal,
        limits: limits.to_vec(),
    }
}

/// Who asks, from where.
struct Caller {
    address: IpAddr,
    claims: Option<Arc<Claims>>,
}

fn client(name: &str) -> Caller {
    of(json!({"client_id": name}), "192.0.2.1")
}

fn of(claims: Value, address: &str) -> Caller {
    let claims = (claims != Value::Null).then(|| Arc::new(Claims::for_test(&claims)));
    Caller { address: address.parse().unwrap(), claims }
}

fn anonymous(address: &str) -> Caller {
    of(Value::Null, address)
}

/// One request through all steps.
fn ask(limiters: &Limiters, route: &Route, caller: &Caller, now: Instant) -> Result<(), OverLimit> {
    asked(limiters, route, caller, now).0
}

fn asked(
    limiters: &Limiters,
    route: &Route,
    caller: &Caller,
    now: Instant,
) -> (Result<(), OverLimit>, Vec<Verdict>) {
    let mut verdicts = vec![];
    let counting = Counting { limiters, address: caller.address, now };
    let unix = UnixTime::since_unix_epoch(Duration::ZERO);
    let outcome = counting.arrive(route, false, &mut verdicts).and_then(|arrived| {
        let candidate = admit(route, &arrived, None, unix)?.join(caller.claims.clone());
        permit(candidate, &counting, &mut verdicts).map(drop)
    });
    let outcome = outcome.map_err(|refusal| match refusal {
        Refusal::OverLimit(over) => *over,
        other => panic!("{other:?}"),
    });
    (outcome, verdicts)
}

#[test]
fn every_rate_must_hold_and_what_is_refused_costs_nothing() {
    let start = time::monotonic();
    let limiters = Limiters::new(
        &[limit("a", Key::ClientId, &[rate(2, Unit::Second), rate(5, Unit::Minute)])],
        start,
    );
    let route = route(&[0]);
    let alice = client("alice");
    for (at_ms, admitted) in [
        (0, true),
        (0, true),
        (0, false), // two a second
        (499, false),
        (500, true),
        (999, false),
        (1000, true),
        (1500, true),
        (2000, false), // five a minute
        (11_999, false),
        (12_000, true),
        (12_001, false),
    ] {
        let outcome = ask(&limiters, &route, &alice, start + Duration::from_millis(at_ms));
        assert_eq!(outcome.is_ok(), admitted, "at {at_ms} ms: {outcome:?}");
    }
}

/// Whoever asks all the time gets, at any moment of an hour, what the slower of two rates allows by then.
#[test]
fn two_rates_hold_over_an_hour_to_the_request() {
    let start = time::monotonic();
    let rates = [rate(100, Unit::Second), rate(10_000, Unit::Hour)];
    let limiters = Limiters::new(&[limit("a", Key::ClientId, &rates)], start);
    let route = route(&[0]);
    let alice = client("alice");
    let mut allowed = 0_u32;
    for at_ms in (0..=3_600_000_u64).step_by(5) {
        let now = start + Duration::from_millis(at_ms);
        allowed += u32::from(ask(&limiters, &route, &alice, now).is_ok());
        if matches!(at_ms, 1_000 | 10_000 | 60_000 | 100_000 | 102_000 | 600_000 | 3_600_000) {
            let at_s = at_ms as f64 / 1000.0;
            let expected = (100.0 + 100.0 * at_s).min(10_000.0 + at_s * 10_000.0 / 3600.0);
            // The first hundred are asked for in half a second, in which fifty more come.
            assert!(
                (f64::from(allowed) - expected).abs() <= 1.0,
                "{allowed} at {at_s} s: {expected}"
            );
        }
    }
}

#[test]
fn whoever_waits_as_long_as_told_is_let_in_and_not_before() {
    let start = time::monotonic();
    let limits = [
        limit("a", Key::ClientId, &[rate(10, Unit::Second)]),
        limit("b", Key::Route, &[Rate::new(60, Unit::Minute, 5)]),
    ];
    let limiters = Limiters::new(&limits, start);
    let route = route(&[0, 1]);
    let alice = client("alice");
    for _ in 0..5 {
        ask(&limiters, &route, &alice, start).unwrap();
    }
    let over = ask(&limiters, &route, &alice, start).unwrap_err();
    assert_eq!((&*over.limit, &*over.rate, over.retry_after), ("b", "60/m", S));
    assert_eq!(
        over.to_string(),
        "limit b: route orders is over 60/m; the next is let in in 1s 1ms"
    );
    let early = start + over.retry_after - Duration::from_nanos(1);
    assert!(ask(&limiters, &route, &alice, early).is_err());
    assert!(ask(&limiters, &route, &alice, start + over.retry_after).is_ok());
}

#[test]
fn all_limits_are_paid_or_none() {
    let start = time::monotonic();
    let limits = [
        limit("client", Key::ClientId, &[rate(100, Unit::Hour)]),
        limit("all", Key::Route, &[rate(3, Unit::Hour)]),
    ];
    let limiters = Limiters::new(&limits, start);
    let route = route(&[0, 1]);
    for client_number in 0..3 {
        assert!(ask(&limiters, &route, &client(&client_number.to_string()), start).is_ok());
    }
    let alice = client("alice");
    for _ in 0..50 {
        let (outcome, verdicts) = asked(&limiters, &route, &alice, start);
        assert_eq!(&*outcome.unwrap_err().limit, "all");
        assert_eq!(
            verdicts.iter().map(|verdict| verdict.decision).collect::<Vec<_>>(),
            [None, Some(Decision::Refused)]
        );
        assert_eq!(verdicts[0].standings[0].left, 100, "alice has paid for nothing");
    }
}

#[test]
fn who_is_counted_together() {
    let start = time::monotonic();
    let alice = || of(json!({"client_id": "a", "sub": "u", "tenant": "t"}), "192.0.2.1");
    for (key, other, together) in [
        (Key::ClientId, of(json!({"client_id": "a"}), "198.51.100.1"), true),
        (Key::ClientId, of(json!({"client_id": "b"}), "192.0.2.1"), false),
        (Key::Principal, of(json!({"client_id": "b", "sub": "u"}), "198.51.100.1"), true),
        (Key::Principal, of(json!({"client_id": "a", "sub": "v"}), "192.0.2.1"), false),
        (Key::Tenant, of(json!({"client_id": "b", "tenant": "t"}), "198.51.100.1"), true),
        (Key::Tenant, of(json!({"client_id": "a", "tenant": "s"}), "192.0.2.1"), false),
        (Key::Route, of(json!({"client_id": "b"}), "198.51.100.1"), true),
        (Key::SOURCE, of(json!({"client_id": "b"}), "192.0.2.1"), true),
        (Key::SOURCE, of(json!({"client_id": "a"}), "192.0.2.2"), false),
        (Key::Source { ipv4_prefix: 24, ipv6_prefix: 64 }, anonymous("192.0.2.77"), true),
        (Key::Source { ipv4_prefix: 24, ipv6_prefix: 64 }, anonymous("192.0.3.1"), false),
        // Nobody is left uncounted, and an address is never somebody's client.
        (Key::ClientId, anonymous("192.0.2.1"), false),
    ] {
        let limiters = Limiters::new(&[limit("a", key, &[rate(1, Unit::Hour)])], start);
        let route = route(&[0]);
        ask(&limiters, &route, &alice(), start).unwrap();
        assert_eq!(ask(&limiters, &route, &other, start).is_err(), together, "{key:?}");
    }
    for (key, one, other, together) in [
        (Key::ClientId, "192.0.2.9", "192.0.2.9", true),
        (Key::Tenant, "192.0.2.9", "192.0.2.8", false),
        (Key::Principal, "2001:db8::1", "2001:db8::2", true),
        (Key::SOURCE, "2001:db8::1", "2001:db8:0:1::1", false),
    ] {
        let limiters = Limiters::new(&[limit("a", key, &[rate(1, Unit::Hour)])], start);
        let route = route(&[0]);
        ask(&limiters, &route, &anonymous(one), start).unwrap();
        let refused = ask(&limiters, &route, &anonymous(other), start).is_err();
        assert_eq!(refused, together, "{key:?} {one} {other}");
    }
}

#[test]
fn an_address_over_its_limit_is_another_word_than_a_client() {
    let start = time::monotonic();
    let limiters = Limiters::new(&[limit("a", Key::ClientId, &[rate(1, Unit::Hour)])], start);
    let route = route(&[0]);
    for (caller, is_proven) in [(client("alice"), true), (anonymous("192.0.2.5"), false)] {
        ask(&limiters, &route, &caller, start).unwrap();
        let over = ask(&limiters, &route, &caller, start).unwrap_err();
        assert_eq!(over.is_proven, is_proven);
        let reason = Refusal::OverLimit(Box::new(over)).reason();
        let expected = if is_proven { Reason::RateLimited } else { Reason::SourceRateLimited };
        assert_eq!(reason, expected);
        assert_eq!(crate::policy::penalty::weight(reason) == 0.0, is_proven);
    }
}

#[test]
fn the_first_tier_that_fits_holds() {
    let start = time::monotonic();
    let tier = |name: &str, count| Tier {
        name: name.into(),
        client_ids: vec![],
        principals: vec![],
        roles: vec![],
        tenants: vec![],
        sources: vec![],
        rates: vec![rate(count, Unit::Second)],
    };
    let pattern = |text: &str| vec![Pattern::parse(text).unwrap()];
    let mut limit = limit("a", Key::ClientId, &[rate(1, Unit::Second)]);
    limit.tiers = vec![
        Tier { client_ids: pattern("batch-*"), roles: vec!["gold".into()], ..tier("both", 7) },
        Tier { client_ids: pattern("batch-*"), ..tier("batch", 5) },
        Tier { roles: vec!["gold".into()], ..tier("gold", 4) },
        Tier { tenants: vec!["acme".into()], ..tier("acme", 3) },
        Tier { principals: pattern("robot"), ..tier("robot", 6) },
        Tier { sources: vec!["10.0.0.0/8".parse().unwrap()], ..tier("inside", 2) },
    ];
    let limiters = Limiters::new(&[limit], start);
    let route = route(&[0]);
    for (claims, address, admitted) in [
        (json!({"client_id": "a"}), "192.0.2.1", 1),
        (json!({"client_id": "b"}), "10.1.2.3", 2),
        (json!({"client_id": "c", "tenant": "acme"}), "192.0.2.1", 3),
        (json!({"client_id": "d", "roles": ["gold"], "tenant": "acme"}), "192.0.2.1", 4),
        (json!({"client_id": "batch-1"}), "192.0.2.1", 5),
        (json!({"client_id": "e", "sub": "robot"}), "192.0.2.1", 6),
        (json!({"client_id": "batch-2", "roles": ["x", "gold"]}), "192.0.2.1", 7),
        (Value::Null, "10.1.2.4", 2),
        (Value::Null, "192.0.2.9", 1),
    ] {
        let caller = of(claims.clone(), address);
        let taken = (0..20).filter(|_| ask(&limiters, &route, &caller, start).is_ok()).count();
        assert_eq!(taken, admitted, "{claims} from {address}");
    }
}

#[test]
fn observing_counts_what_would_be_refused_and_refuses_nothing() {
    let start = time::monotonic();
    let enforced = limit("a", Key::ClientId, &[rate(4, Unit::Hour)]);
    let observed =
        Limit { mode: Mode::Observe, ..limit("b", Key::ClientId, &[rate(2, Unit::Hour)]) };
    let limiters = Limiters::new(&[enforced, observed], start);
    let route = route(&[0, 1]);
    let alice = client("alice");
    let mut would_refuse = 0;
    for number in 0..6 {
        let (outcome, verdicts) = asked(&limiters, &route, &alice, start);
        assert_eq!(outcome.is_ok(), number < 4);
        let observed: Vec<_> = verdicts.iter().filter(|v| &*v.limit.name == "b").collect();
        assert!(observed.iter().all(|verdict| verdict.standings.is_empty()), "not announced");
        let over = |v: &&&Verdict| v.decision == Some(Decision::WouldRefuse);
        would_refuse += observed.iter().filter(over).count();
    }
    assert_eq!(would_refuse, 2);
}

#[test]
fn a_reload_keeps_what_was_used() {
    let start = time::monotonic();
    let settings =
        |count, entries| Limit { entries, ..limit("a", Key::ClientId, &[rate(count, Unit::Hour)]) };
    let before = Limiters::new(&[settings(10, 1024)], start);
    let route = route(&[0]);
    let left = |limiters: &Limiters| {
        let caller = client("alice");
        (0..100).filter(|_| ask(limiters, &route, &caller, start).is_ok()).count()
    };
    for _ in 0..6 {
        ask(&before, &route, &client("alice"), start).unwrap();
    }
    // Another limit of another name begins anew; the same name goes on, also when it is resized.
    let other = limit("b", Key::ClientId, &[rate(10, Unit::Hour)]);
    let added = Limiters::new(&[other.clone(), settings(10, 1024)], start).resume(&before, start);
    let shrunk = Limiters::new(&[settings(10, 16)], start).resume(&before, start);
    let grown = Limiters::new(&[settings(10, 100_000)], start).resume(&before, start);
    assert_eq!(left(&grown), 4);
    assert_eq!(left(&shrunk), 4);
    assert_eq!(left(&added), 10, "the index is that of the new one");
    let own = Route { limits: vec![1], ..route.clone() };
    let caller = client("alice");
    assert_eq!((0..100).filter(|_| ask(&added, &own, &caller, start).is_ok()).count(), 4);
    // With a smaller rate an emptied bucket is empty, and not far below.
    let smaller = Limiters::new(&[settings(2, 1024)], start).resume(&before, start);
    assert_eq!(left(&smaller), 0);
    let over = ask(&smaller, &route, &client("alice"), start).unwrap_err();
    assert!(over.retry_after <= Duration::from_secs(1800), "{:?}", over.retry_after);
}

#[test]
fn another_process_goes_on_with_what_was_used() {
    let start = time::monotonic();
    let settings = |count| limit("a", Key::ClientId, &[rate(count, Unit::Hour)]);
    let before = Limiters::new(&[settings(10)], start);
    let route = route(&[0]);
    for (name, times) in [("alice", 6), ("bob", 2), ("carol", 10)] {
        for _ in 0..times {
            ask(&before, &route, &client(name), start).unwrap();
        }
    }
    let left = |limiters: &Limiters, name: &str, at: Instant| {
        (0..100).filter(|_| ask(limiters, &route, &client(name), at).is_ok()).count()
    };
    let new = |count| Limiters::new(&[settings(count)], start + S);
    let used = before.used(100, start + S);
    let heir = new(10).going_on(&used, start + S);
    let lefts = ["alice", "bob", "carol", "dave"].map(|name| left(&heir, name, start + S));
    assert_eq!(lefts, [4, 8, 0, 10]);
    // An emptied bucket stays empty, as with a reload, and fills by the rate that is configured now.
    let wider = new(20).going_on(&used, start + S);
    assert_eq!(left(&wider, "carol", start + S), 0);
    assert_eq!(left(&wider, "carol", start + 720 * S), 4);
    let later = new(10).going_on(&used, start + S);
    assert_eq!(left(&later, "carol", start + 720 * S), 2);
    // Where not everybody fits, it is those who have used most.
    let cut = new(10).going_on(&before.used(1, start + S), start + S);
    assert_eq!(["alice", "carol"].map(|name| left(&cut, name, start + S)), [10, 0]);
    // Of a program that hashes otherwise nothing is taken, nor of a limit with another name.
    let mut strange = used.clone();
    strange[0].1.proof ^= 1;
    assert_eq!(left(&new(10).going_on(&strange, start + S), "carol", start + S), 10);
    let mut other = used;
    other[0].0 = "b".into();
    assert_eq!(left(&new(10).going_on(&other, start + S), "carol", start + S), 10);
}

/// A full table: who is over its limit is not forgotten, who is new is not refused.
#[test]
fn a_full_table_forgets_no_offender_and_refuses_no_newcomer() {
    let start = time::monotonic();
    let mut small = limit("a", Key::ClientId, &[rate(3, Unit::Hour)]);
    small.entries = 16;
    let limiters = Limiters::new(&[small], start);
    let route = route(&[0]);
    let offenders: Vec<Caller> = (0..400).map(|number| client(&format!("o{number}"))).collect();
    let mut kept = vec![];
    for offender in &offenders {
        let taken = (0..4).filter(|_| ask(&limiters, &route, offender, start).is_ok()).count();
        assert!(taken >= 3, "a newcomer is not refused");
        if taken == 3 {
            kept.push(offender);
        }
    }
    assert!(kept.len() >= 16, "{} of 32 places", kept.len());
    // Thousands of others, once each, do not make room by pushing out an offender.
    let mut untracked = 0;
    for number in 0..5_000 {
        let (outcome, verdicts) = asked(&limiters, &route, &client(&format!("n{number}")), start);
        outcome.unwrap();
        untracked += usize::from(verdicts[0].decision == Some(Decision::Untracked));
    }
    assert!(untracked > 0);
    for offender in kept {
        assert!(ask(&limiters, &route, offender, start).is_err(), "forgotten");
    }
    // When time has passed there is room again.
    let later = start + Duration::from_secs(3600);
    let (_, verdicts) = asked(&limiters, &route, &client("late"), later);
    assert_eq!(verdicts[0].decision, Some(Decision::Allowed));
}

/// Threads that race for one consumer's buckets get no more than the rate, and not less.
#[test]
fn exact_whoever_races() {
    let start = time::monotonic();
    let limiters = Limiters::new(
        &[
            limit("a", Key::ClientId, &[rate(1_000, Unit::Second), rate(50_000, Unit::Hour)]),
            limit("b", Key::Tenant, &[rate(1_500, Unit::Second)]),
        ],
        start,
    );
    let route = route(&[0, 1]);
    let admitted = AtomicUsize::new(0);
    let steps = 40_u32;
    for step in 0..steps {
        let now = start + Duration::from_millis(50) * step;
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let caller = of(json!({"client_id": "a", "tenant": "t"}), "192.0.2.1");
                    for _ in 0..100 {
                        if ask(&limiters, &route, &caller, now).is_ok() {
                            admitted.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
    }
    // The burst, and the rate for the 1.95 s until the last step; all that was let in is asked for.
    assert_eq!(admitted.into_inner(), 1_000 + 1_950);
}

#[test]
fn networks_are_cut_where_the_prefix_says() {
    for (address, ipv4_prefix, ipv6_prefix, expected) in [
        ("192.0.2.200", 32, 64, "source 192.0.2.200/32"),
        ("192.0.2.200", 24, 64, "source 192.0.2.0/24"),
        ("192.0.2.200", 8, 64, "source 192.0.0.0/8"),
        ("2001:db8:1:2:3::4", 32, 64, "source 2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::4", 32, 48, "source 2001:db8:1::/48"),
        ("2001:db8:1:2:3::4", 32, 128, "source 2001:db8:1:2:3::4/128"),
    ] {
        let key = Key::Source { ipv4_prefix, ipv6_prefix };
        let nobody = Identity::anonymous();
        let subject = key.subject(address.parse().unwrap(), "r", &nobody);
        assert_eq!(subject.to_string(), expected);
    }
}

/// A bucket as one would draw it: tokens, in nanoseconds of their price, up to a burst of them.
#[derive(Clone, Copy)]
struct Naive {
    level_ns: u64,
    cost_ns: u64,
    burst_ns: u64,
}

impl Naive {
    fn full(rate: &Rate) -> Naive {
        let cost_ns = rate.bucket.cost_ns;
        let burst_ns = cost_ns * u64::from(rate.burst);
        Naive { level_ns: burst_ns, cost_ns, burst_ns }
    }

    fn fill(&mut self, passed: Duration) {
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap();
        self.level_ns = self.burst_ns.min(self.level_ns.saturating_add(passed_ns));
    }
}

/// Some hundred thousand requests of a few clients at a route with two limits of two rates, with reloads
/// and other sizes between them: each is decided as by buckets that are drawn on paper, and whoever is
/// refused is told when it would have been let in.
#[test]
fn limits_are_buckets_whatever_happens() {
    const STEPS: u32 = 300_000;
    let start = time::monotonic();
    let of_client = [Rate::new(7, Unit::Second, 5), Rate::new(100, Unit::Minute, 30)];
    let of_all = [Rate::new(40, Unit::Second, 20), Rate::new(100_000, Unit::Hour, 5_000)];
    let limits = |entries| {
        [
            Limit { entries, ..limit("client", Key::ClientId, &of_client) },
            Limit { entries, ..limit("all", Key::Route, &of_all) },
        ]
    };
    let route = route(&[0, 1]);
    let clients: Vec<Caller> = (0..12).map(|number| client(&number.to_string())).collect();
    let mut naive = vec![of_client.map(|rate| Naive::full(&rate)); clients.len()];
    naive.push(of_all.map(|rate| Naive::full(&rate)));
    let mut limiters = Limiters::new(&limits(1_024), start);
    let mut numbers = Numbers::seeded(2);
    let (mut now, mut let_in) = (start, 0);
    for step in 0..STEPS {
        let pauses_us: &[u64] = if numbers.once_in(300) {
            &[142_858, 600_000, 3_000_000, 100_000_000]
        } else {
            &[0, 0, 0, 0, 1, 700, 5_000, 24_999, 25_000, 60_000]
        };
        let passed = Duration::from_micros(numbers.one_of(pauses_us));
        now += passed;
        naive.iter_mut().flatten().for_each(|bucket| bucket.fill(passed));
        if numbers.once_in(500) {
            let entries = numbers.one_of(&[1_024, 2_048, 65_536]);
            limiters = Limiters::new(&limits(entries), now).resume(&limiters, now);
        }
        let caller = numbers.below(clients.len() as u64) as usize;
        let outcome = ask(&limiters, &route, &clients[caller], now);
        let of_all = naive.len() - 1;
        let buckets = || naive[caller].iter().chain(&naive[of_all]);
        let missing_ns = |bucket: &Naive| bucket.cost_ns.saturating_sub(bucket.level_ns);
        let wait_ns = buckets().map(missing_ns).max().unwrap();
        match outcome {
            Ok(()) => {
                assert_eq!(wait_ns, 0, "step {step}: let in too soon");
                let_in += 1;
                for index in [caller, of_all] {
                    naive[index].iter_mut().for_each(|bucket| bucket.level_ns -= bucket.cost_ns);
                }
            }
            Err(over) => {
                assert_eq!(over.retry_after, Duration::from_nanos(wait_ns), "step {step}: {over}");
                assert!(wait_ns > 0, "step {step}: refused for nothing");
            }
        }
    }
    let share = f64::from(let_in) / f64::from(STEPS);
    assert!((0.05..0.95).contains(&share), "a play that decides nothing: {share}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any stretch of time no more than the burst and the rate's share is let in, and whoever asks
    /// without a pause gets just that.
    #[test]
    fn no_stretch_of_time_has_more_than_the_rate(
        (count, burst) in (1u32..500, 1u32..100),
        pauses_us in proptest::collection::vec(0u64..20_000, 50..300),
    ) {
        let start = time::monotonic();
        let rate = Rate::new(count, Unit::Second, burst);
        let limiters = Limiters::new(&[limit("a", Key::ClientId, &[rate])], start);
        let route = route(&[0]);
        let alice = client("alice");
        let mut now = start;
        let mut admitted = vec![];
        for pause_us in pauses_us {
            now += Duration::from_micros(pause_us);
            if ask(&limiters, &route, &alice, now).is_ok() {
                admitted.push(now);
            }
        }
        for (index, first) in admitted.iter().enumerate() {
            for (further, last) in admitted[index..].iter().enumerate() {
                let share = (*last - *first).as_secs_f64() * f64::from(count);
                // A cost is a whole number of nanoseconds.
                let most = f64::from(burst) + share * 1.000_001 + 0.001;
                prop_assert!((further + 1) as f64 <= most, "{} in {:?}", further + 1, *last - *first);
            }
        }

        // Asked four times as often as one may come in, so that none that is due waits: the burst, and of
        // 499 quarters each whole one.
        let limiters = Limiters::new(&[limit("a", Key::ClientId, &[rate])], start);
        let let_in = (0..500)
            .map(|number| start + Duration::from_nanos((rate.bucket.cost_ns * number).div_ceil(4)))
            .filter(|now| ask(&limiters, &route, &alice, *now).is_ok())
            .count();
        prop_assert_eq!(let_in, burst as usize + 499 / 4);
    }
}
