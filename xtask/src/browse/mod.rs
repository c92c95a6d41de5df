//! `cargo xtask browse`: the status page in a browser while a flood, clients and refused ones come: its
//! figures move, on a wide screen and on a telephone, and it troubles nobody but the daemon.

mod chromium;
mod page;

use std::{
    fs,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::chromium::{Chromium, Screen};
use crate::{
    cargo,
    demo::{
        table::{Report, Seen},
        world::{FLOODER, VISITORS, World},
    },
    harness::{
        clock,
        flood::Sources,
        load::{self, Rate},
        netns,
        tokens::AUDIENCE,
    },
    process, setup,
};

const SCREENS: [Screen; 3] = [
    Screen { name: "desktop", width: 1280, height: 900, is_mobile: false, scheme: "light" },
    Screen { name: "phone", width: 390, height: 844, is_mobile: true, scheme: "light" },
    Screen { name: "phone-dark", width: 360, height: 780, is_mobile: true, scheme: "dark" },
];

/// The page asks each second; a machine with a flood on one core and a browser on the other is slower.
const SOON: Duration = Duration::from_secs(60);
/// Points to draw before a picture is taken.
const WATCHED: Duration = Duration::from_secs(6);
/// The flood, the client and the refused ones end then at the latest.
const TRAFFIC_MAX: Duration = Duration::from_secs(240);
/// What a client asks for, each second, on kept connections.
const REQUESTS_PER_S: u32 = 50;
const CONNECTIONS: u32 = 2;
/// Between two who are refused: rarely enough that nobody is banned for it.
const REFUSED_EVERY: Duration = Duration::from_millis(1200);

/// Shows the page to a browser. The exit status is 0 only if everything held; pictures are kept in
/// `target/browse`.
///
/// # Errors
/// When the scene cannot be set, or somebody interrupts; all that was made is removed then too.
pub fn browse(words: &[String]) -> Result<ExitCode> {
    let built = match words {
        [] => None,
        [option, file] if option == "--binary" => {
            Some(fs::canonicalize(file).with_context(|| file.clone())?)
        }
        other => bail!("browse takes --binary FILE; what is `{}`?", other.join(" ")),
    };
    let root_for = "for network namespaces, links and BPF (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF)";
    if let Some(refused) = process::refuse_without_root("browse", root_for) {
        return Ok(refused);
    }
    process::stop_on_signals()?;
    setup::setup_with(&[chromium::PROGRAM])?;
    setup::mount_bpffs()?;
    let binary = match built {
        Some(binary) => binary,
        None => cargo::build_release()?,
    };
    for name in netns::remove_leftovers() {
        eprintln!("removed what a killed run left: {name}");
    }
    let pictures = cargo::root().join("target/browse");
    fs::create_dir_all(&pictures)?;
    let mut report = Report::new(false);
    {
        // Leaves nothing behind when it goes out of scope, whichever way.
        let world = World::new(&binary)?;
        play(&world, &pictures, &mut report)?;
    }
    report.print();
    Ok(if report.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn play(world: &World, pictures: &Path, report: &mut Report) -> Result<()> {
    let gateway = world.start()?;
    let token = world.mint.mint("alice", AUDIENCE, &["--scope", "read:orders"])?;
    let source = format!("{FLOODER}/32");
    world.launch.succeed(&["bans", "add", &source, "--for", "1h", "--reason", "browse"])?;
    let origin = format!("http://{}", world.launch.metrics);
    let mut browser = Chromium::start(&world.launch.namespace)?;
    report.say(&format!("{} asks {origin}/", browser.version()?));
    let (client, is_over) = (world.client_target()?, AtomicBool::new(false));
    thread::scope(|scope| {
        let _ended = EndOf(&is_over);
        // Its addresses share one allowance each, and one of them is banned.
        let flood = world.flood(Sources::PowerOfTwo(2), TRAFFIC_MAX)?;
        scope.spawn(|| keep_asking(&client, world.cores.service, &token, &is_over));
        scope.spawn(|| keep_being_refused(world, &is_over));
        for screen in SCREENS {
            watch(&mut browser, screen, &origin, pictures, report)?;
        }
        let made = flood.stop()?;
        report.say(&format!("\nthe flood was {} packets in {:.1?}", made.packets, made.elapsed));
        anyhow::Ok(())
    })?;
    without_a_daemon(world, gateway, &mut browser, report)
}

/// Ends the traffic whichever way the scene is left.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A good client, second by second.
fn keep_asking(client: &load::Target, core: usize, token: &str, is_over: &AtomicBool) {
    let until = clock::now() + TRAFFIC_MAX;
    while !is_over.load(Ordering::Relaxed) && clock::now() < until && !clock::interrupted() {
        let rate = Rate {
            per_s: REQUESTS_PER_S,
            connections: CONNECTIONS,
            lasts: Duration::from_secs(1),
            core: Some(core),
        };
        // What is lost shows on the page, which is what is looked at here.
        let _outcome = load::keep_rate(client, &rate, "/orders/1", token);
    }
}

/// Others ask in turn for what there is not.
fn keep_being_refused(world: &World, is_over: &AtomicBool) {
    let until = clock::now() + TRAFFIC_MAX;
    for visitor in VISITORS.into_iter().cycle() {
        if is_over.load(Ordering::Relaxed) || clock::now() >= until {
            return;
        }
        let _refused = world.visitors_request(visitor, "/nothing").send();
        if clock::pause(REFUSED_EVERY).is_err() {
            return;
        }
    }
}

fn watch(
    browser: &mut Chromium,
    screen: Screen,
    origin: &str,
    pictures: &Path,
    report: &mut Report,
) -> Result<()> {
    let name = format!("{} ({} × {}, {})", screen.name, screen.width, screen.height, screen.scheme);
    let expected = "figures move, nothing is cut off, no word on the console, no request to others";
    report.step(&name, expected, || {
        browser.take_events();
        browser.show(&format!("{origin}/"), screen)?;
        let first = shown_when(browser, "figures that live", page::lifeless)?;
        clock::pause(WATCHED)?;
        let last = shown_when(browser, "figures that moved", |now| page::still(&first, now))?;
        let picture = pictures.join(format!("{}.png", screen.name));
        fs::write(&picture, browser.picture()?)?;
        let events = browser.take_events();
        let mut troubles = page::troubles(&events, origin);
        let cut = last["cut"].as_array().map_or(0, Vec::len);
        if cut > 0 {
            troubles.push(format!("{cut} elements reach beyond the screen: {}", last["cut"]));
        }
        let line = |chart, line| {
            let of = |shown| page::figure(shown, chart, line).unwrap_or("–").to_owned();
            format!("{line} {}, then {}", of(&first), of(&last))
        };
        let told = if troubles.is_empty() { "no trouble".to_owned() } else { troubles.join("\n") };
        Ok(Seen::new(
            troubles.is_empty(),
            format!(
                "a second: {}; {}; {}; {} requests, all to the daemon; {told}\n{}",
                line("Packets a second", "dropped"),
                line("Requests a second", "answered"),
                line("Requests a second", "refused"),
                page::requests(&events, origin),
                picture.display()
            ),
        ))
    })
}

/// What the page shows once nothing of it is `amiss` any more.
fn shown_when(
    browser: &mut Chromium,
    what: &str,
    amiss: impl Fn(&Value) -> Vec<String>,
) -> Result<Value> {
    let mut left = Vec::new();
    let seen = clock::wait_for(what, SOON, || {
        let shown = browser.value(page::SHOWN)?;
        left = amiss(&shown);
        Ok(left.is_empty().then_some(shown))
    });
    seen.with_context(|| left.join(", "))
}

/// A page that stays open says that nobody answers, and goes on by itself when somebody does again.
fn without_a_daemon(
    world: &World,
    gateway: crate::harness::gateway::Gateway,
    browser: &mut Chromium,
    report: &mut Report,
) -> Result<()> {
    let expected = "the page says so, and goes on by itself with the next one";
    report.step("the daemon is killed, and started again", expected, || {
        gateway.kill()?;
        let is_alone = |shown: &Value| {
            let state = shown["state"].as_str().unwrap_or_default();
            let knows = state.starts_with("no answer") && shown["is_stale"] == true;
            if knows { Vec::new() } else { vec![state.to_owned()] }
        };
        let alone = shown_when(browser, "the page to notice", is_alone)?;
        let _next = world.launch.run_until_ready()?;
        let is_back = |shown: &Value| {
            let state = shown["state"].as_str().unwrap_or_default();
            let knows = state.starts_with("ready") && shown["is_stale"] == false;
            if knows { Vec::new() } else { vec![state.to_owned()] }
        };
        let back = shown_when(browser, "the page to go on", is_back)?;
        Ok(Seen::new(
            true,
            format!("{}; then {}, {}", alone["state"], back["state"], back["about"]),
        ))
    })
}
