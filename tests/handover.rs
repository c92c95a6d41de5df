//! Another process takes the daemon's place, and nobody who connects or is connected notices.

use std::{
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{io::AsyncWriteExt as _, time::sleep_until};
use tokio_rustls::TlsConnector;

use crate::{
    binary, crowd,
    harness::{
        clock,
        gateway::{Gateway, Launch, ROUTES, SOON, START_LIMIT, Start, write_config},
        load::{self, Crowd, Outcome, Target},
        site::{self, HOST, SERVER, Site},
    },
};

const TAKES_OVER: Start<'_> = Start { words: &["--take-over"], socket: None, manager: None };

/// An old process waits for its clients to come back, each within its pause, and then ends.
pub(crate) const GONE: Duration = Duration::from_secs(60);

/// One stranger comes each time: 300 a second, in an open loop.
const STRANGER_EVERY: Duration = Duration::from_micros(1_000_000 / 300);
/// Strangers that are there at once. Where so many wait the machine does not give 300 a second, and the
/// next come late instead of beyond every deadline.
const STRANGERS_AT_ONCE: usize = 32;

fn target(site: &Site) -> Result<Target> {
    let authority = site.authority.certificate();
    Target::new(&site.client_host, SERVER, HOST, &authority, &site.client)
}

/// Asks who answers operators.
fn pid(launch: &Launch) -> Result<i32> {
    let status = launch.json(&["status"])?;
    Ok(i32::try_from(status["pid"].as_i64().unwrap_or_default())?)
}

/// Starts the next process and waits until it serves.
pub(crate) fn successor(launch: &Launch) -> Result<Gateway> {
    let next = launch.run_as(&TAKES_OVER)?;
    next.wait_log("the hand-over", |line| line["event"] == "took over from the process before")?;
    Ok(next)
}

fn with_workers(site: &Site, launch: &Launch, workers: usize) -> Result<()> {
    let text = site.config.to_string();
    let text = text.replacen("workers = 1", &format!("workers = {workers}"), 1);
    write_config(&launch.config, &text)
}

/// Does `change` while a crowd asks, and gives what became of their requests.
fn beside_a_crowd(
    site: &Site,
    crowd: Crowd,
    change: impl FnOnce() -> Result<()>,
) -> Result<Outcome> {
    let target = target(site)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| load::keep_busy(&target, crowd, "/public", &stop));
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        let outcome = asking.join().map_err(|_panic| anyhow!("the crowd panicked"))??;
        changed.map(|()| outcome)
    })
}

/// Connects, asks once, reads the whole answer, says farewell.
async fn stranger(connector: &TlsConnector) -> Result<()> {
    let mut stream = crowd::connect(connector).await?;
    let answer = crowd::ask(&mut stream).await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(stream.shutdown().await?)
}

/// Strangers come at their moments until `stop`; each one's wait counts from when it was to come.
async fn strangers(connector: &TlsConnector, stop: &AtomicBool) -> Outcome {
    let mut outcome = Outcome::default();
    let mut coming = FuturesUnordered::new();
    let mut next = clock::now();
    while !stop.load(Ordering::Relaxed) && !clock::interrupted() {
        tokio::select! {
            () = sleep_until(next.into()), if coming.len() < STRANGERS_AT_ONCE => {
                let moment = next;
                coming.push(async move { (moment, stranger(connector).await) });
                outcome.intended += 1;
                next += STRANGER_EVERY;
            }
            Some((moment, served)) = coming.next() => outcome.add(moment, served),
        }
    }
    while let Some((moment, served)) = coming.next().await {
        outcome.add(moment, served);
    }
    outcome.latencies.sort_unstable();
    outcome
}

/// Does `change` while strangers come, and gives what became of them.
fn beside_strangers<T>(site: &Site, change: impl FnOnce() -> Result<T>) -> Result<(T, Outcome)> {
    let connector = crowd::connector(site)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let coming =
            scope.spawn(|| crowd::within(site, async || Ok(strangers(&connector, &stop).await)));
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        let outcome = coming.join().map_err(|_panic| anyhow!("the strangers panicked"))??;
        Ok((changed?, outcome))
    })
}

#[test]
fn neither_reloads_nor_hand_overs_cost_a_request() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "handover")?;
    site.config.bans = "enabled = false".to_owned();
    // Of a machine that does much else, too.
    site.config.clients = "[clients]\nhandshake = \"1m\"\nhead = \"1m\"".to_owned();
    let mut running = site.start()?;
    let launch = site.launch()?;
    let crowd = Crowd { kept: 64, new: 0, pause: Duration::from_millis(400) };
    let begun = clock::now();
    let change = || {
        let mut generation = 1;
        for number in 0..10_usize {
            for _ in 0..5 {
                launch.succeed(&["reload"])?;
                generation += 1;
            }
            assert_eq!(launch.json(&["status"])?["generation"], generation);
            // More and fewer workers than before have to share the same sockets.
            with_workers(&site, &launch, 1 + number % 3)?;
            let next = successor(&launch)?;
            generation = 1;
            let mut before = std::mem::replace(&mut running, next);
            assert_eq!(before.wait_exit(GONE)?, Some(0), "it drains and ends well");
        }
        Ok(())
    };
    let (kept, new) = beside_strangers(&site, || beside_a_crowd(&site, crowd, change))?;
    let took_s = begun.elapsed().as_secs_f64();
    println!(
        "50 reloads and 10 hand-overs in {took_s:.1} s: {} requests of 64 kept connections, {} new \
         connections ({:.0} a second; half served within {:?}, 99 % within {:?})",
        kept.served,
        new.served,
        new.served as f64 / took_s,
        new.percentile(50),
        new.percentile(99),
    );
    for (who, outcome) in [("kept", &kept), ("new", &new)] {
        let lost = &outcome.lost;
        assert!(lost.is_empty(), "{who}: {} of {}: {lost:?}", lost.len(), outcome.intended);
        ensure!(outcome.served > 200, "{who}: hardly anybody asked: {}", outcome.served);
    }
    Ok(())
}

#[test]
fn a_successor_that_does_not_come_up_changes_nothing() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "failed")?;
    site.guard("");
    let gateway = site.start()?;
    let launch = site.launch()?;
    let before = pid(&launch)?;
    let crowd = Crowd { kept: 4, new: 2, pause: Duration::from_millis(50) };
    let outcome = beside_a_crowd(&site, crowd, || {
        for (what, edit, expected) in [
            ("a bad configuration", ("workers = 1", "workers = \"one\""), 78),
            ("metrics at an address that nobody has", ("127.0.0.1:9090", "192.0.2.1:9090"), 1),
        ] {
            let text = site.config.to_string().replacen(edit.0, edit.1, 1);
            write_config(&launch.config, &text)?;
            let mut next = launch.run_as(&TAKES_OVER)?;
            assert_eq!(next.wait_exit(START_LIMIT)?, Some(expected), "{what}");
            write_config(&launch.config, &site.config.to_string())?;
        }
        Ok(())
    })?;
    assert!(outcome.lost.is_empty(), "{:?}", outcome.lost.first());
    gateway
        .wait_log("the old one to go on", |line| line["event"] == "hand-over failed; serving on")?;
    assert_eq!(pid(&launch)?, before);
    // It writes to the kernel's maps again.
    clock::wait_for("a ban to be set", SOON, || {
        Ok(launch.ended(&["bans", "add", "10.99.0.77"])?.status.filter(|status| *status == 0))
    })?;
    assert_eq!(launch.json(&["status"])?["xdp"]["enforce"], true);
    assert_eq!(launch.bans_of("10.99.0.77/32")?.len() + launch.bans_of("10.99.0.77")?.len(), 1);
    Ok(())
}

#[test]
fn bans_go_with_the_service() -> Result<()> {
    privileged!();
    for is_guarded in [true, false] {
        let mut site = Site::new(binary(), "heirs")?;
        if is_guarded {
            site.guard("");
        }
        let mut gateway = site.start()?;
        let launch = site.launch()?;
        launch.succeed(&["bans", "add", "10.99.0.78", "--for", "1h"])?;
        let banned = launch.json(&["bans", "list"])?[0]["source"].clone();
        let next = successor(&launch)?;
        assert_eq!(gateway.wait_exit(GONE)?, Some(0));
        let list = launch.json(&["bans", "list"])?;
        assert_eq!(list.as_array().map(Vec::len), Some(1), "guarded: {is_guarded}");
        assert_eq!((&list[0]["source"], &list[0]["origin"]), (&banned, &"operator".into()));
        assert_eq!(site.request("/public").send()?.status, 200);
        assert!(next.get("/ready")?.0 == 200, "metrics went with it");
    }
    Ok(())
}

#[test]
fn what_was_used_and_what_is_held_against_whom_go_with_the_service() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "memory")?;
    let orders = "name = \"orders\"\npath = \"/orders\"";
    let limited = ROUTES.replacen(orders, &format!("{orders}\nlimits = [\"per-client\"]"), 1);
    site.config.routes = format!(
        "{limited}\n[[limit]]\nname = \"per-client\"\nkey = \"client_id\"\nrates = [\"3/h\"]\n"
    );
    // Points fade as little as they can, however slow the machine is.
    site.config.bans = "half_life = \"24h\"".to_owned();
    let mut gateway = site.start()?;
    let launch = site.launch()?;
    let (alice, bob) = (site.mint.good("alice")?, site.mint.good("bob")?);
    let ask =
        |token: &str| -> Result<u16> { Ok(site.request("/orders/1").token(token).send()?.status) };
    assert_eq!((ask(&alice)?, ask(&alice)?), (200, 200));
    for _ in 0..3 {
        assert_eq!(ask("nonsense")?, 401);
    }
    let address = site::CLIENT.to_string();
    let told = || launch.json(&["explain", &address]);
    let before = clock::wait_for("all of it to be known", SOON, || {
        let told = told()?;
        let points = told["points"].as_f64().unwrap_or_default();
        let good = told["good_clients"].as_f64().unwrap_or_default();
        Ok((points > 2.5 && good > 0.5).then_some(told))
    })?;
    let next = successor(&launch)?;
    assert_eq!(gateway.wait_exit(GONE)?, Some(0));
    let after = told()?;
    for field in ["points", "good_clients"] {
        let (before, after) = (before[field].as_f64(), after[field].as_f64());
        assert!(after > before.map(|before| before * 0.7), "{field}: {before:?}, then {after:?}");
    }
    assert_eq!(after["lately"][0]["reason"], before["lately"][0]["reason"], "{after}");
    assert_eq!((ask(&alice)?, ask(&alice)?), (200, 429), "the third of three was the last");
    assert_eq!(ask(&bob)?, 200);
    assert_eq!(next.get("/ready")?.0, 200);
    Ok(())
}

/// Ends what the daemon started by itself.
struct Started(i32);

impl Drop for Started {
    fn drop(&mut self) {
        // It fails only when it is gone already.
        let _gone = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

#[test]
fn an_upgrade_starts_the_installed_program() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "upgrade")?;
    let mut gateway = site.start()?;
    let launch = site.launch()?;
    let before = pid(&launch)?;
    let told = launch.json(&["upgrade"])?;
    let after = i32::try_from(told["pid"].as_i64().unwrap_or_default())?;
    let _started = Started(after);
    assert_ne!(before, after);
    assert_eq!(pid(&launch)?, after);
    // Both write to the same standard error, so the log goes on after the first has ended.
    gateway.wait_log("the first process to have drained", |line| line["event"] == "drained")?;
    assert_eq!(site.request("/public").send()?.status, 200);
    // The first process' socket file is the second's by now.
    assert_eq!(pid(&launch)?, after);
    kill(Pid::from_raw(after), Signal::SIGTERM)?;
    assert_eq!(gateway.wait_exit(GONE)?, Some(0));
    Ok(())
}

/// Words that the service manager was told, each datagram's first.
fn told(manager: &UnixDatagram) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut text = [0; 4096];
    manager.set_nonblocking(true)?;
    while let Ok(length) = manager.recv(&mut text) {
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        words.push(text.lines().next().unwrap_or_default().to_owned());
    }
    Ok(words)
}

#[test]
fn the_service_manager_passes_sockets_and_is_told_everything() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "manager")?;
    let launch = site.launch()?;
    let path = site.directory.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    let listener = site.gateway_host.within(|| TcpListener::bind(SERVER))??;
    let socket = OwnedFd::from(listener);
    thread::scope(|scope| {
        // Asked before anybody serves: it waits in the socket.
        let early = scope.spawn(|| site.request("/public").limit(START_LIMIT).send());
        let start = Start { socket: Some(&socket), manager: Some(&path), ..Start::default() };
        let mut gateway = launch.run_as(&start)?;
        gateway.wait_ready()?;
        let early = early.join().map_err(|_panic| anyhow!("curl's thread panicked"))??;
        assert_eq!(early.status, 200, "{}", early.error);
        launch.succeed(&["reload"])?;

        let start = Start { words: &["--take-over"], manager: Some(&path), socket: None };
        let next = launch.run_as(&start)?;
        assert_eq!(gateway.wait_exit(GONE)?, Some(0));
        let main = format!("MAINPID={}", pid(&launch)?);
        let words = told(&manager)?;
        for expected in ["FDSTORE=1", "READY=1", "RELOADING=1", main.as_str()] {
            assert!(words.iter().any(|word| word == expected), "{expected} in {words:?}");
        }
        assert!(!words.iter().any(|word| word == "STOPPING=1"), "the service goes on: {words:?}");

        next.signal(Signal::SIGTERM)?;
        let mut next = next;
        assert_eq!(next.wait_exit(GONE)?, Some(0));
        assert!(told(&manager)?.iter().any(|word| word == "STOPPING=1"));

        // The manager has the socket still: nobody is refused between two runs.
        let between = scope.spawn(|| site.request("/public").limit(START_LIMIT).send());
        let start = Start { socket: Some(&socket), ..Start::default() };
        let _third = launch.run_as(&start)?;
        let between = between.join().map_err(|_panic| anyhow!("curl's thread panicked"))??;
        assert_eq!(between.status, 200, "{}", between.error);
        Ok(())
    })
}
