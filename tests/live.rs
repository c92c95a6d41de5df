//! What is going on just now: `portcullis drops` and `portcullis top`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    binary,
    harness::{
        clock,
        flood::Prober,
        gateway::{Launch, SOON},
        process,
        site::{INTERFACE, SERVER, Site},
    },
};

const BANNED: u8 = 71;
/// Far more than the kernel tells of in the time that they take.
const PROBES: u32 = 20_000;

/// A `portcullis drops` under way; ended when dropped.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(launch: &Launch, words: &[&str]) -> Result<Following> {
        let mut command = launch.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("portcullis drops")?;
        let output = BufReader::new(child.stdout.take().context("piped above")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Following { child, lines })
    }

    /// The next line that is liked.
    fn line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        clock::wait_for(what, SOON, || Ok(self.lines.try_iter().find(|line| wanted(line))))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Gone already is as good.
        let _gone = self.child.kill();
        let _buried = self.child.wait();
    }
}

#[test]
fn drops_are_followed_some_of_them_and_how_many_more_there_were() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "drops")?;
    site.guard("");
    let gateway = site.start()?;
    let launch = gateway.launch();
    let banned = site.client_address(BANNED)?;
    launch.succeed(&["bans", "add", &banned.to_string(), "--for", "1h"])?;
    let prober = Prober::new(&site.client_host, banned, SERVER)?;
    let json = Following::start(launch, &["drops", "--json"])?;
    let text = Following::start(launch, &["drops"])?;
    // Both follow once they are told of something.
    let is_frame = |line: &str| line.contains("banned");
    for following in [&json, &text] {
        clock::wait_for("the first frame", SOON, || {
            prober.send(1)?;
            Ok(following.lines.try_iter().find(|line| is_frame(line)))
        })?;
    }
    prober.send(PROBES)?;
    let row = json.line("a frame", is_frame)?;
    let row: Value = serde_json::from_str(&row)?;
    for (field, expected) in [
        ("interface", INTERFACE),
        ("source", "10.99.0.71"),
        ("service", "8443/udp"),
        ("reason", "banned"),
    ] {
        assert_eq!(row[field], expected, "{row}");
    }
    assert_eq!((&row["enforced"], &row["untold"]), (&true.into(), &0.into()), "{row}");
    let at_s = row["at_s"].as_f64().unwrap_or_default();
    assert!((at_s - clock::unix_s() as f64).abs() < 120.0, "{row}");
    let more = json.line("how many more", |line| line.contains("\"reason\":null"))?;
    let more: Value = serde_json::from_str(&more)?;
    assert!(more["untold"].as_u64() > Some(0), "{more}");
    let line = text.line("a line for people", |line| line.contains("10.99.0.71"))?;
    assert!(line.contains("8443/udp") && line.contains("banned"), "{line}");
    text.line("how many more, for people", |line| line.contains("not told of"))?;

    // One that asks for few ends by itself.
    let mut few = Following::start(launch, &["drops", "--json", "--count", "2"])?;
    let ended = clock::wait_for("the end of a short one", SOON, || {
        prober.send(1)?;
        Ok(few.child.try_wait()?)
    })?;
    assert_eq!(ended.code(), Some(0));
    assert_eq!(few.lines.iter().filter(|line| is_frame(line)).count(), 2);
    assert_eq!(gateway.get("/ready")?.0, 200);
    Ok(())
}

#[test]
fn without_a_program_there_is_nothing_to_follow() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "no-drops")?;
    let gateway = site.start()?;
    let refused = gateway.launch().ended(&["drops"])?;
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("no XDP program"), "{refused:?}");
    // What there is without one is shown all the same.
    let top = gateway.launch().json(&["top"])?;
    assert_eq!(top["packets"], serde_json::json!([]), "{top}");
    Ok(())
}

#[test]
fn top_shows_packets_sources_refusals_and_consumers() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "top")?;
    site.guard("packets = { rate = \"100/s\", burst = 10000 }");
    let gateway = site.start()?;
    let launch = gateway.launch();
    let loud = site.client_address(BANNED)?;
    let prober = Prober::new(&site.client_host, loud, SERVER)?;
    let token = site.mint.good("alice")?;
    assert_eq!(site.request("/orders/1").token(&token).send()?.status, 200);
    assert_eq!(site.request("/orders/1").send()?.status, 401);
    prober.send(9_000)?;
    gateway.wait_xdp_packets("pass", "within_limit", 8_001.0)?;

    let top = launch.json(&["top"])?;
    let rows = |name: &str| top[name].as_array().cloned().unwrap_or_default();
    let within = rows("packets").into_iter().find(|row| row["reason"] == "within_limit");
    let within = within.context("no packets within the limit")?;
    assert_eq!((&within["interface"], &within["action"]), (&INTERFACE.into(), &"pass".into()));
    assert!(within["packets"].as_u64() > Some(8_000), "{within}");
    let first = rows("sources").first().cloned().context("no sources")?;
    assert_eq!(first["source"], format!("{loud}/32"), "{top}");
    let refused = rows("refusals").into_iter().find(|row| row["name"] == "missing_token");
    assert!(refused.is_some_and(|row| row["count"] == 1), "{top}");
    assert!(rows("consumers").iter().any(|row| row["count"].as_u64() > Some(0)), "{top}");

    // For people, once where nobody watches.
    for words in [&["top"][..], &["top", "--once"]] {
        let shown = process::succeed(&mut launch.command(words))?;
        for part in ["within_limit", "10.99.0.71/32", "missing_token", "connections"] {
            ensure!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        ensure!(!shown.contains('\x1b'), "no terminal: {shown}");
    }
    // A rate is of the second that was looked at.
    let (stop, stopped) = mpsc::channel::<()>();
    let sender = &prober;
    let top = thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(5)).is_err() {
                if sender.send(1).is_err() {
                    return;
                }
            }
        });
        let top = launch.json(&["top"]);
        let _ended = stop.send(());
        top
    })?;
    let rates: f64 = top["packets"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row["packets_per_s"].as_f64())
        .sum();
    assert!(rates > 0.0, "{top}");
    Ok(())
}
