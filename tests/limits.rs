//! Limits by identity: kept to the request, told to the client, kept over reloads, and fair to whoever
//! shares an address.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    binary,
    harness::{
        client::Answer,
        clock,
        gateway::{Gateway, Launch, ROUTES, SOON, write_config},
        load::Target,
        site::{HOST, SERVER, Site},
        tokens::Mint,
    },
};

/// A run that takes longer has hung.
const RUN_MAX: Duration = Duration::from_secs(90);

/// Adds limits to the routes for orders, and their tables.
fn limited(site: &mut Site, names: &str, tables: &str) {
    let orders = "name = \"orders\"\npath = \"/orders\"";
    let with = format!("{orders}\nlimits = [{names}]");
    site.config.routes = format!("{}\n{tables}", ROUTES.replacen(orders, &with, 1));
}

/// Starts it with two workers, so that what they share is shared.
fn start(site: &Site) -> Result<Gateway> {
    let launch = relaunch(site)?;
    launch.run_until_ready()
}

fn relaunch(site: &Site) -> Result<Launch> {
    let launch = site.launch()?;
    let text = site.config.to_string().replacen("workers = 1", "workers = 2", 1);
    write_config(&launch.config, &text)?;
    Ok(launch)
}

fn target(site: &Site) -> Result<Target> {
    Target::new(&site.client_host, SERVER, HOST, &site.authority.certificate(), &site.client)
}

/// One answer: when its request was sent, when it came, and whether the request was let in.
#[derive(Clone, Copy, Debug)]
struct Seen {
    sent: Instant,
    came: Instant,
    allowed: bool,
}

/// Asks without a pause on so many kept connections, each until `is_enough` says so of the number of
/// requests let in so far and of its last answer.
fn ask_on(
    site: &Site,
    token: &str,
    connections: usize,
    is_enough: impl Fn(usize, Seen) -> bool + Sync,
) -> Result<Vec<Seen>> {
    let target = target(site)?;
    let allowed = Arc::new(AtomicUsize::new(0));
    let until = clock::now() + RUN_MAX;
    let open = (0..connections).map(|_| target.connect()).collect::<Result<Vec<_>>>()?;
    let lists = thread::scope(|scope| {
        let threads: Vec<_> = open
            .into_iter()
            .map(|mut connection| {
                let (allowed, is_enough) = (Arc::clone(&allowed), &is_enough);
                scope.spawn(move || {
                    let mut list = Vec::new();
                    loop {
                        let sent = clock::now();
                        let status = connection.ask("/orders/1", token)?;
                        ensure!(matches!(status, 200 | 429), "answered with {status}");
                        let seen = Seen { sent, came: clock::now(), allowed: status == 200 };
                        list.push(seen);
                        let so_far = allowed.fetch_add(usize::from(seen.allowed), Relaxed);
                        if is_enough(so_far + usize::from(seen.allowed), seen) {
                            return Ok(list);
                        }
                        ensure!(seen.came < until, "not enough in {RUN_MAX:?}: {so_far}");
                    }
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Vec<Seen>>>| {
            thread.join().expect("a client thread panicked")
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    Ok(lists.into_iter().flatten().collect())
}

/// However many connections one client has and whichever worker they are at, each of its two rates
/// holds, and it gets all that they allow.
#[test]
fn two_rates_hold_together_on_any_number_of_connections() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "tworates")?;
    limited(
        &mut site,
        "\"per-client\"",
        "[[limit]]\nname = \"per-client\"\nkey = \"client_id\"\nrates = [\"100/s\", \"200/h\"]",
    );
    let _gateway = start(&site)?;
    for connections in [1, 2, 8] {
        let token = site.mint.good(&format!("client-with-{connections}"))?;
        let mut seen =
            ask_on(&site, &token, connections, |allowed, last| allowed >= 200 && !last.allowed)?;
        seen.sort_by_key(|seen| seen.came);
        let begun = seen.iter().map(|seen| seen.sent).min().context("no request")?;
        let passed = seen[seen.len() - 1].came - begun;
        let allowed: Vec<&Seen> = seen.iter().filter(|seen| seen.allowed).collect();
        // One more comes every 18 s.
        let most = 200 + passed.as_secs() as usize / 18 + 1;
        assert!((200..=most).contains(&allowed.len()), "{} in {passed:?}", allowed.len());
        for (before, seen) in allowed.iter().enumerate() {
            let most = 100.0 + 100.0 * (seen.came - begun).as_secs_f64();
            assert!((before + 1) as f64 <= most + 1.0, "{} in {:?}", before + 1, seen.came - begun);
        }
    }
    Ok(())
}

/// Longest that a client has for being refused: one that is slower than the rate never is.
const FAST_ENOUGH: Duration = Duration::from_secs(20);

/// The bounds of what a bucket of `burst` lets in at `per_s`, as far as its clients can know: a request is
/// counted at some moment between its being sent and its answer.
fn bounds(seen: &[Seen], per_s: f64, burst: f64) -> Result<(f64, f64)> {
    let first_sent = seen.iter().map(|seen| seen.sent).min().context("no request")?;
    let last_came = seen.iter().map(|seen| seen.came).max().context("no request")?;
    let most = burst + per_s * (last_came - first_sent).as_secs_f64();
    let mut refused: Vec<&Seen> = seen.iter().filter(|seen| !seen.allowed).collect();
    refused.sort_by_key(|seen| seen.came);
    // Whenever somebody is refused the bucket is empty. From there on everything that flows in goes out
    // again, unless nobody asks for so long that it is full.
    let fills = Duration::from_secs_f64(0.9 * burst / per_s);
    let (Some(first), Some(last)) = (refused.first(), refused.last()) else {
        return Ok((0.0, most));
    };
    if refused.windows(2).any(|two| two[1].came - two[0].sent > fills) {
        return Ok((0.0, most));
    }
    let before = seen.iter().filter(|seen| seen.allowed && seen.came < first.sent).count();
    let flowed = last.sent.saturating_duration_since(first.came);
    Ok((before as f64 + per_s * flowed.as_secs_f64(), most))
}

/// 100 a second and 10,000 an hour, each to the request, for one client on however many connections;
/// and its neighbour at the same address does not notice.
#[test]
fn what_is_let_in_over_a_run_is_the_rate_within_one_in_a_hundred() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "onerate")?;
    limited(
        &mut site,
        "\"per-client\"",
        "[[limit]]\nname = \"per-client\"\nkey = \"client_id\"\nrates = [\"100/s\", \"10000/h\"]",
    );
    let _gateway = start(&site)?;
    let neighbour = site.mint.good("neighbour")?;
    for connections in [1, 2, 8] {
        let token = site.mint.good(&format!("client-with-{connections}"))?;
        let begun = clock::now();
        let enough = begun + Duration::from_secs(3);
        let (seen, beside) = thread::scope(|scope| {
            let beside = scope.spawn(|| -> Result<usize> {
                let mut connection = target(&site)?.connect()?;
                let mut served = 0;
                while clock::now() < enough {
                    let status = connection.ask("/orders/1", &neighbour)?;
                    ensure!(status == 200, "the neighbour was answered with {status}");
                    served += 1;
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(served)
            });
            // Each goes on until it is refused after that, so that all was asked for that there was.
            let seen = ask_on(&site, &token, connections, |_, last| {
                last.sent >= enough && (!last.allowed || last.sent >= begun + FAST_ENOUGH)
            });
            (seen, beside.join().expect("the neighbour's thread panicked"))
        });
        let (seen, beside) = (seen?, beside?);
        let allowed = seen.iter().filter(|seen| seen.allowed).count() as f64;
        let (least, most) = bounds(&seen, 100.0, 100.0)?;
        println!(
            "{connections} connections: {allowed} of {} let in, expected {least:.1} to {most:.1}; \
             the neighbour was served {beside} times",
            seen.len()
        );
        assert!(
            allowed >= least * 0.99 - 1.0 && allowed <= most * 1.01 + 1.0,
            "{connections} connections: {allowed}, not {least} to {most}"
        );
    }
    Ok(())
}

const THREE: &str = "[[limit]]\nname = \"per-client\"\nkey = \"client_id\"\nrates = [\"3/h\"]\n";

fn ask(site: &Site, token: &str) -> Result<Answer> {
    site.request("/orders/1").token(token).send()
}

/// The parameter of the one item of a `RateLimit` field.
fn parameter(answer: &Answer, name: char) -> Result<u64> {
    let field = answer.header("ratelimit").context("no RateLimit")?;
    let (_, after) = field.split_once(&format!(";{name}=")).context("no such parameter")?;
    Ok(after.split(';').next().unwrap_or_default().parse()?)
}

#[test]
fn who_is_over_is_told_so_and_the_neighbour_is_not_disturbed() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "neighbours")?;
    let gold = "[[limit.tier]]\nname = \"gold\"\nclient_ids = [\"gold-*\"]\nrates = [\"6/h\"]\n";
    limited(&mut site, "\"per-client\"", &format!("{THREE}{gold}"));
    let gateway = start(&site)?;
    let (alice, bob) = (site.mint.good("alice")?, site.mint.good("bob")?);
    for left in [2, 1, 0] {
        let answer = ask(&site, &alice)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("ratelimit-policy"), Some("\"per-client\";q=3;w=3600"));
        assert_eq!(parameter(&answer, 'r')?, left);
    }
    for _ in 0..30 {
        let answer = ask(&site, &alice)?;
        assert_eq!((answer.status, answer.reason().as_str()), (429, "rate_limited"));
        assert_eq!(answer.header("ratelimit-policy"), Some("\"per-client\";q=3;w=3600"));
        assert_eq!(parameter(&answer, 'r')?, 0);
        // The first of the three comes back 20 minutes after it was taken, all of them after an hour.
        let wait_s: u64 = answer.header("retry-after").context("no Retry-After")?.parse()?;
        let full_s = parameter(&answer, 't')?;
        assert!((1_000..=1_200).contains(&wait_s), "{wait_s}");
        assert!((3_400..=3_600).contains(&full_s), "{full_s}");
    }
    // Behind the same address, and all that is told against it is nothing.
    assert_eq!(ask(&site, &bob)?.status, 200);
    let gold = site.mint.good("gold-1")?;
    for number in 0..7 {
        assert_eq!(ask(&site, &gold)?.status == 200, number < 6, "of a tier of six");
    }
    let launch = gateway.launch();
    assert!(launch.bans_of("10.99.0.2/32")?.is_empty());
    let told = launch.json(&["explain", "10.99.0.2"])?;
    assert_eq!(told["points"], 0.0, "{told}");
    let line = gateway.wait_log("a refusal over the limit", |line| {
        line["reason"] == "rate_limited" && line["client_id"] == "alice"
    })?;
    assert_eq!((&line["status"], &line["limit"]), (&429.into(), &"per-client".into()));
    let labels = |decision| [("limit", "per-client"), ("decision", decision)];
    let name = "gateway_ratelimit_decisions_total";
    gateway.wait_metric(name, &labels("allowed"), 10.0)?;
    gateway.wait_metric(name, &labels("refused"), 31.0)?;
    let reason = [("reason", "rate_limited")];
    gateway.wait_metric("gateway_http_refusals_total", &reason, 31.0)?;
    let status = launch.json(&["status"])?;
    assert_eq!(status["limits"][0]["consumers"], 3, "{status}");
    let top = launch.json(&["top"])?;
    let limited = top["limited"].as_array().context("top has no limited")?;
    assert!(
        limited.iter().any(|row| row["name"] == "per-client: client alice" && row["count"] == 30),
        "{limited:?}"
    );
    Ok(())
}

#[test]
fn observing_refuses_nothing_and_an_address_is_a_consumer_too() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "observed")?;
    let tables = "[[limit]]\nname = \"tried\"\nkey = \"client_id\"\nrates = [\"2/h\"]\n\
                  mode = \"observe\"\n\
                  [[limit]]\nname = \"per-source\"\nkey = \"source\"\nrates = [\"5/h\"]";
    limited(&mut site, "\"tried\", \"per-source\"", tables);
    let gateway = start(&site)?;
    let token = site.mint.good("alice")?;
    for number in 0..7 {
        let answer = ask(&site, &token)?;
        assert_eq!(answer.status == 200, number < 5, "{answer:?}");
        let policy = answer.header("ratelimit-policy").unwrap_or_default();
        assert_eq!(policy, "\"per-source\";q=5;w=3600", "what only observes is not told of");
    }
    let other = site.client_address(77)?;
    let answer = site.request("/orders/1").token(&token).from(other).send()?;
    assert_eq!(answer.status, 200, "another address: {answer:?}");
    // Three of five, and the one from the other address.
    let labels = [("limit", "tried"), ("decision", "would_refuse")];
    gateway.wait_metric("gateway_ratelimit_decisions_total", &labels, 4.0)?;
    gateway.wait_log("a request that would be refused", |line| {
        line["status"] == 200 && line["limit_observed"] == "tried"
    })?;
    Ok(())
}

#[test]
fn what_was_used_is_used_after_a_reload() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "reloaded")?;
    limited(&mut site, "\"per-client\"", THREE);
    let gateway = start(&site)?;
    let token = site.mint.good("alice")?;
    assert_eq!(ask(&site, &token)?.status, 200);
    assert_eq!(ask(&site, &token)?.status, 200);
    // Another size, another limit before it.
    let tables = format!(
        "[[limit]]\nname = \"all\"\nkey = \"route\"\nrates = [\"1000/h\"]\n{THREE}entries = 1000\n"
    );
    limited(&mut site, "\"all\", \"per-client\"", &tables);
    relaunch(&site)?;
    gateway.signal(nix::sys::signal::Signal::SIGHUP)?;
    clock::wait_for("the reload", SOON, || {
        Ok((gateway.metric("gateway_config_generation", &[])? == 2.0).then_some(()))
    })?;
    let answer = ask(&site, &token)?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(ask(&site, &token)?.status, 429, "the third of three was the last");
    Ok(())
}

/// Sends forged tokens from an address until nobody answers, and gives how many were answered.
fn forge(site: &Site, address: std::net::IpAddr) -> Result<usize> {
    let key = format!("impostor-at-{address}");
    let impostor = Mint::new(binary(), site.directory.path(), &key, "ES256")?;
    let forged = site.mint.forged_by(&impostor, "mallory")?;
    for refused in 0..200 {
        let request = site.request("/orders/1").token(&forged).from(address);
        if request.limit(Duration::from_secs(2)).send()?.exit != 0 {
            return Ok(refused);
        }
    }
    Ok(200)
}

/// One bad neighbour does not get an address banned as soon as it would alone, and the kernel gives
/// more to where many come from.
#[test]
fn good_clients_speak_for_their_address() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "vouched")?;
    site.guard("");
    // Points fade as little as they can, however slow the machine is.
    site.config.bans = "half_life = \"24h\"".to_owned();
    let gateway = site.start()?;
    let launch = gateway.launch();
    let (shared, alone) = (site.client_address(66)?, site.client_address(67)?);
    for name in ["alice", "bob", "carol"] {
        let token = site.mint.good(name)?;
        let answer = site.request("/orders/1").token(&token).from(shared).send()?;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let told = clock::wait_for("three good clients to be known", SOON, || {
        let told = launch.json(&["explain", "10.99.0.66"])?;
        let is_known = told["good_clients"].as_f64().is_some_and(|good| good > 2.5);
        Ok((is_known && told["limits_doubled"] == 1).then_some(told))
    })?;
    let raised = told["threshold"].as_u64().context("no threshold")?;
    // Half of 20 for each of three, a little less as time passes.
    assert!((45..=50).contains(&raised), "{told}");
    assert_eq!(told["threshold_of_everybody"], 20);

    let refused_alone = forge(&site, alone)?;
    assert!((3..=5).contains(&refused_alone), "five points each, twenty of them: {refused_alone}");
    let told = launch.json(&["explain", "10.99.0.67"])?;
    assert_eq!(told["limits_doubled"], -1, "narrower after a ban: {told}");
    let refused_shared = forge(&site, shared)?;
    assert!((8..200).contains(&refused_shared), "about fifty points: {refused_shared}");
    let bans = launch.bans_of("10.99.0.66/32")?;
    let note = bans[0]["note"].as_str().unwrap_or_default();
    assert!(note.contains(" points of ") && note.contains("bad_signature"), "{bans:?}");
    Ok(())
}
