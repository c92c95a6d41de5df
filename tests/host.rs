//! The machine under the daemon: a CPU that gets hot, and a clock that its keeper is unsure of.
//!
//! The sensors are files of a tree like `/sys`; the keeper is one that answers as chronyd does, and
//! chronyd itself.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    binary,
    harness::{
        client::Request,
        clock,
        gateway::{Gateway, START_LIMIT},
        site::{CLIENT, SERVER, Site},
        tokens::AUDIENCE,
        unpacked,
    },
};

/// Where chronyd answers.
const CHRONY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 323);

/// Waits for a stage of at least `low` and at most `high`: what else the machine runs short of may
/// strain it as well.
fn wait_stage(gateway: &Gateway, low: f64, high: f64) -> Result<()> {
    clock::wait_for(&format!("stage {low} to {high}"), START_LIMIT, || {
        let stage = gateway.metric("gateway_host_load_stage", &[])?;
        Ok((low..=high).contains(&stage).then_some(()))
    })
    .with_context(|| gateway.log_text())
}

/// Replaces the one sensor's figure.
pub(crate) fn heat(sysfs: &Path, celsius: f64) -> Result<()> {
    let chip = sysfs.join("class/hwmon/hwmon0");
    fs::create_dir_all(&chip)?;
    fs::write(chip.join("name"), "coretemp\n")?;
    fs::write(chip.join("temp1_label"), "Package id 0\n")?;
    let beside = chip.join("new");
    fs::write(&beside, format!("{:.0}\n", celsius * 1000.0))?;
    Ok(fs::rename(beside, chip.join("temp1_input"))?)
}

/// New connections that a source may open at once, by the kernel's map.
fn connections_at_once(gateway: &Gateway) -> Result<u64> {
    let told = gateway.launch().json(&["explain", &CLIENT.to_string()])?;
    let allowances = told["allowances"].as_array().context("allowances")?;
    let found = allowances.iter().find(|one| one["quota"] == "connections");
    found.and_then(|one| one["burst"].as_u64()).with_context(|| told.to_string())
}

#[test]
fn heat_sheds_in_steps_and_all_comes_back() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "heat")?;
    let sysfs = site.directory.path().join("sys");
    heat(&sysfs, 50.0)?;
    let open = site.authority.server(&["open.test"], "open-site")?;
    site.config.tls = format!(
        "[[listener.tls.sni]]\nnames = [\"open.test\"]\nclient_auth = \"optional\"\n\
         certificate = {:?}\nprivate_key = {:?}\n",
        open.certificate.display().to_string(),
        open.key.display().to_string()
    );
    site.config.routes += &format!(
        "\n[[route]]\nname = \"reports\"\npath = \"/reports\"\nupstream = \"orders\"\nrequire = []\n\
         priority = \"low\"\n\n[host]\nsysfs = {:?}\nchrony = \"\"\n",
        sysfs.display().to_string()
    );
    site.guard("connections = { rate = \"1000/s\", burst = 2000 }");
    let gateway = site.start()?;
    let authority = site.authority.certificate();
    let stranger =
        || Request::new(&site.client_host, SERVER, "open.test", "/public", &authority).send();
    let report = || site.request("/reports/1").send();
    wait_stage(&gateway, 0.0, 1.0)?;
    assert_eq!((stranger()?.status, report()?.status), (200, 200));
    assert_eq!(connections_at_once(&gateway)?, 2000);
    let sensor = [("sensor", "hwmon0 coretemp Package id 0")];
    gateway.wait_metric("gateway_host_cpu_temperature_celsius", &sensor, 50.0)?;

    // Warm: somebody is told, and that is all.
    heat(&sysfs, 82.0)?;
    wait_stage(&gateway, 1.0, 1.0)?;
    gateway.wait_log("that it is warm", |line| {
        line["event"] == "host"
            && line["stage"] == "strained"
            && line["detail"].as_str().is_some_and(|why| why.contains("82.0 °C"))
    })?;
    assert_eq!((stranger()?.status, report()?.status), (200, 200));
    let (status, told) = gateway.get("/ready")?;
    assert!(status == 200 && told.contains("strained"), "{told}");

    // Hot: no strangers, and fewer new connections.
    heat(&sysfs, 87.0)?;
    wait_stage(&gateway, 2.0, 2.0)?;
    let shed = stranger()?;
    assert_eq!(shed.status, 0, "{shed:?}");
    let labels = [("reason", "host_strained")];
    gateway.wait_metric("gateway_tls_handshake_failures_total", &labels, 1.0)?;
    assert_eq!(report()?.status, 200);
    clock::wait_for("half the connections", START_LIMIT, || {
        Ok((connections_at_once(&gateway)? == 1000).then_some(()))
    })?;

    // Hotter: what matters less waits.
    heat(&sysfs, 90.2)?;
    wait_stage(&gateway, 3.0, 3.0)?;
    let refused = report()?;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "host_strained"), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("10"));
    assert_eq!(site.request("/public").send()?.status, 200);
    assert_eq!(gateway.get("/ready")?.0, 200);
    clock::wait_for("a quarter of the connections", START_LIMIT, || {
        Ok((connections_at_once(&gateway)? == 500).then_some(()))
    })?;
    // A reload does not undo it.
    gateway.launch().succeed(&["reload"])?;
    assert_eq!(connections_at_once(&gateway)?, 500);

    // Before it is critical the balancer is told; who comes all the same is served.
    heat(&sysfs, 99.0)?;
    wait_stage(&gateway, 4.0, 4.0)?;
    gateway.wait_metric("gateway_host_cpu_temperature_celsius", &sensor, 99.0)?;
    assert_eq!(connections_at_once(&gateway)?, 500);
    let (status, told) = gateway.get("/ready")?;
    assert!(status == 503 && told.contains("too hot: hwmon0 coretemp Package id 0"), "{told}");
    assert_eq!(site.request("/public").send()?.status, 200);
    let told = gateway.launch().json(&["status"])?;
    assert_eq!((&told["ready"], &told["host"]["stage"]), (&false.into(), &"critical".into()));
    assert!(gateway.launch().succeed(&["status"])?.contains("99.0 °C"));
    let shed = || -> Result<(f64, f64)> {
        Ok((
            gateway.metric("gateway_tls_handshake_failures_total", &labels)?,
            gateway.metric("gateway_http_refusals_total", &labels)?,
        ))
    };
    assert_eq!(report()?.status, 503);
    gateway.wait_metric("gateway_http_refusals_total", &labels, 2.0)?;
    assert_eq!(shed()?, (1.0, 2.0));

    heat(&sysfs, 50.0)?;
    wait_stage(&gateway, 0.0, 1.0)?;
    gateway.wait_metric("gateway_host_cpu_temperature_celsius", &sensor, 50.0)?;
    assert_eq!((stranger()?.status, report()?.status, gateway.get("/ready")?.0), (200, 200, 200));
    clock::wait_for("all connections", START_LIMIT, || {
        Ok((connections_at_once(&gateway)? == 2000).then_some(()))
    })?;
    // Nobody was shed since.
    assert_eq!(shed()?, (1.0, 2.0));
    // It was nobody's fault.
    let told = gateway.launch().json(&["explain", &CLIENT.to_string()])?;
    assert_eq!(told["points"].as_f64(), Some(0.0), "{told}");
    Ok(())
}

#[test]
fn a_sensor_that_breaks_or_goes_is_told_of_and_sheds_nobody() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "sensor")?;
    let sysfs = site.directory.path().join("sys");
    heat(&sysfs, 50.0)?;
    site.config.routes += &format!(
        "\n[[route]]\nname = \"reports\"\npath = \"/reports\"\nupstream = \"orders\"\nrequire = []\n\
         priority = \"low\"\n\n[host]\nsysfs = {:?}\nchrony = \"\"\n",
        sysfs.display().to_string()
    );
    let gateway = site.start()?;
    let failed = |count| gateway.wait_metric("gateway_host_sensors_failed", &[], count);
    let figure = || gateway.metric("gateway_host_cpu_temperature_celsius", &[]);
    let nobody_is_shed = || -> Result<()> {
        // Longer than what two looks in a row need to enter a stage.
        for _ in 0..4 {
            clock::pause(Duration::from_secs(1))?;
            assert_eq!(site.request("/reports/1").send()?.status, 200);
            assert_eq!(gateway.get("/ready")?.0, 200);
        }
        wait_stage(&gateway, 0.0, 1.0)
    };
    failed(0.0)?;
    let input = sysfs.join("class/hwmon/hwmon0/temp1_input");
    // Beyond what any sensor says, no number, nothing at all.
    for garbage in ["999999999\n", "hot\n", ""] {
        fs::write(&input, garbage)?;
        failed(1.0)?;
        assert_eq!(figure()?, 0.0, "a figure from {garbage:?}");
    }
    gateway.wait_log("that a sensor fails", |line| {
        line["level"] == "warn"
            && line["event"].as_str().is_some_and(|text| text.starts_with("CPU sensors cannot"))
    })?;
    nobody_is_shed()?;
    // One that comes back counts again; one whose driver goes is none.
    heat(&sysfs, 51.0)?;
    failed(0.0)?;
    gateway.wait_metric("gateway_host_cpu_temperature_celsius", &[], 51.0)?;
    fs::remove_dir_all(sysfs.join("class/hwmon"))?;
    gateway.wait_metric("gateway_host_cpu_temperature_celsius", &[], 0.0)?;
    nobody_is_shed()
}

/// What a keeper of the clock says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Says {
    pub(crate) leap: u16,
    /// By how much the clock is slow.
    pub(crate) slow_s: f64,
}

/// chrony's float: a seven-bit exponent, a coefficient of 25 bits.
fn float(value: f64) -> u32 {
    if value == 0.0 {
        return 0;
    }
    let exponent = value.abs().log2().floor() as i32 + 2;
    let coefficient = (value * f64::from(25 - exponent).exp2()) as i32;
    exponent.cast_unsigned() << 25 | coefficient.cast_unsigned() & 0x1ff_ffff
}

/// Answers questions for the tracking report until the process ends.
pub(crate) fn keep_clock(site: &Site, first: Says) -> Result<Arc<Mutex<Says>>> {
    let socket = site.gateway_host.within(|| UdpSocket::bind(CHRONY))??;
    let says = Arc::new(Mutex::new(first));
    let told = Arc::clone(&says);
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let Says { leap, slow_s } = *told.lock().unwrap_or_else(PoisonError::into_inner);
            let mut answer = vec![6, 2, 0, 0, 0, 33, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
            answer.extend(&question[8..12]);
            answer.resize(28, 0);
            answer.extend([10, 0, 0, 1]);
            answer.resize(52, 0);
            answer.extend([2_u16.to_be_bytes(), leap.to_be_bytes()].concat());
            answer.resize(68, 0);
            answer.extend(float(slow_s).to_be_bytes());
            answer.resize(104, 0);
            // Nobody multiplies packets with it, so a question is as long as its answer.
            if length == answer.len() && socket.send_to(&answer, from).is_err() {
                return;
            }
        }
    });
    Ok(says)
}

#[test]
fn a_clock_is_worth_what_its_keeper_says() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "clock")?;
    site.config.bans = "enabled = false".to_owned();
    let says = keep_clock(&site, Says { leap: 0, slow_s: 0.0 })?;
    let say = |leap, slow_s| {
        *says.lock().unwrap_or_else(PoisonError::into_inner) = Says { leap, slow_s };
    };
    let now_s = clock::unix_s();
    // Ended half a minute ago: within what is configured, and no more than a test takes.
    let (issued, expires) = ((now_s - 630).to_string(), (now_s - 30).to_string());
    let token = site.mint.mint(
        "alice",
        AUDIENCE,
        &[
            "--claim",
            &format!("iat={issued}"),
            "--claim",
            &format!("exp={expires}"),
            "--scope",
            "read:orders",
        ],
    )?;
    let gateway = site.start()?;
    let leeway = |seconds| gateway.wait_metric("gateway_token_leeway_seconds", &[], seconds);
    let synchronized = |flag| gateway.wait_metric("gateway_host_clock_synchronized", &[], flag);
    let ask = || site.request("/orders/1").token(&token).send();

    // Known to be right: half a minute is half a minute.
    synchronized(1.0)?;
    leeway(10.0)?;
    let refused = ask()?;
    assert_eq!((refused.status, refused.reason().as_str()), (401, "token_expired"), "{refused:?}");
    let line = gateway.wait_log("the refusal", |line| line["reason"] == "token_expired")?;
    let fields = &line["token"];
    assert_eq!((&fields["leeway_s"], &fields["clock_synchronized"]), (&10.into(), &true.into()));
    assert_eq!(fields["clock_max_error_s"].as_f64(), Some(0.0), "{line}");
    let told = gateway.launch().json(&["status"])?["host"]["clock"].clone();
    assert_eq!(
        (&told["keeper"], &told["synchronized"]),
        (&"chrony".into(), &true.into()),
        "{told}"
    );

    // Nobody keeps it: what was granted stays, and everybody is told.
    say(3, 0.0);
    synchronized(0.0)?;
    gateway.wait_log("that nobody keeps it", |line| {
        line["event"].as_str().is_some_and(|event| event.starts_with("clock not synchronised"))
    })?;
    leeway(10.0)?;
    let (status, told) = gateway.get("/ready")?;
    assert!(status == 200 && told.contains("the clock is not synchronised"), "{told}");
    assert_eq!(ask()?.status, 401);
    let line = gateway.wait_log("the remedy", |line| {
        line["reason"] == "token_expired" && line["token"]["clock_synchronized"] == false
    })?;
    let remedy = line["token"]["remedy"].as_str().unwrap_or_default();
    assert!(remedy.contains("start chrony"), "{line}");

    // Off by forty seconds: the node is no use, and who is let in is judged accordingly.
    say(0, 40.0);
    leeway(50.0)?;
    let (status, told) = gateway.get("/ready")?;
    assert!(status == 503 && told.contains("clock lost: it is off by up to 40.0 s"), "{told}");
    let offset_s = gateway.metric("gateway_host_clock_offset_seconds", &[])?;
    assert!((offset_s + 40.0).abs() < 0.001, "{offset_s}");

    say(0, 0.0);
    leeway(10.0)?;
    let (status, told) = gateway.get("/ready")?;
    assert!(status == 200 && !told.contains("clock"), "{told}");
    Ok(())
}

/// A process that is ended when dropped.
struct Chronyd(Child);

impl Drop for Chronyd {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _buried = self.0.wait();
    }
}

impl Chronyd {
    /// Starts one on the gateway's host that keeps no clock (-x) and believes in these `sources`; `None`
    /// where there is none.
    fn start(site: &Site, sources: &str) -> Result<Option<Chronyd>> {
        let Some(chronyd) = unpacked::program("chronyd") else { return Ok(None) };
        let file = |name: &str| site.directory.path().join(name).display().to_string();
        let text = format!(
            "{sources}\nport 0\ncmdport {}\nbindcmdaddress {}\nbindcmdaddress /\npidfile {}\n",
            CHRONY.port(),
            CHRONY.ip(),
            file("chronyd.pid")
        );
        fs::write(file("chrony.conf"), text)?;
        let mut command = site.gateway_host.command(chronyd);
        command.args(["-x", "-d", "-u", "root", "-f", &file("chrony.conf")]);
        let chronyd = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Some(Chronyd(chronyd)))
    }
}

#[test]
fn chronyd_itself_is_understood() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "chronyd")?;
    // It asks nobody: its own time is what it believes in.
    let Some(_chronyd) = Chronyd::start(&site, "local stratum 10")? else { return Ok(()) };
    let gateway = site.start()?;
    let told = clock::wait_for("chronyd's word", START_LIMIT, || {
        let told = gateway.launch().json(&["status"])?["host"]["clock"].clone();
        Ok((told["keeper"] == "chrony" && told["synchronized"] == true).then_some(told))
    })?;
    let error_s = told["max_error_s"].as_f64().context("an error")?;
    ensure!((0.0..1.0).contains(&error_s), "{told}");
    ensure!(Duration::from_secs(told["leeway_s"].as_u64().unwrap_or(0)) >= Duration::from_secs(10));
    Ok(())
}

/// Where time is to be had that is not the machine's.
const TIME_SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 11_123);
/// From 1900, where NTP counts from, to 1970.
const NTP_EPOCH_S: u64 = 2_208_988_800;
/// chronyd takes a few answers to believe in what it sees, and more when that changes.
const BELIEVED: Duration = Duration::from_secs(120);

/// A server of time (RFC 5905, figure 8) that is so many seconds ahead of this machine's clock.
fn serve_time(site: &Site, ahead_s: Arc<AtomicU64>) -> Result<()> {
    let socket = site.gateway_host.within(|| UdpSocket::bind(TIME_SERVER))??;
    thread::spawn(move || {
        let now = || {
            let since = clock::unix();
            let seconds = since.as_secs() + NTP_EPOCH_S + ahead_s.load(Ordering::Relaxed);
            // A second has 2³² parts there.
            let parts = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
            ((seconds << 32) | parts).to_be_bytes()
        };
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let received = now();
            // No leap second, version 4, a server of stratum 1, the interval asked for, a microsecond.
            let mut answer = vec![0x24, 1, question[2], 0xec, 0, 0, 0, 0, 0, 0, 0, 1];
            answer.extend(b"TEST");
            answer.extend(received);
            answer.extend(&question[40..48]);
            answer.extend(received);
            answer.extend(now());
            if length >= answer.len() && socket.send_to(&answer, from).is_err() {
                return;
            }
        }
    });
    Ok(())
}

#[test]
fn what_chronyd_finds_wrong_moves_the_leeway_and_readiness() -> Result<()> {
    privileged!();
    let site = Site::new(binary(), "wrong")?;
    let ahead_s = Arc::new(AtomicU64::new(40));
    serve_time(&site, Arc::clone(&ahead_s))?;
    let server = format!(
        "server {} port {} iburst minpoll -1 maxpoll -1",
        TIME_SERVER.ip(),
        TIME_SERVER.port()
    );
    let Some(_chronyd) = Chronyd::start(&site, &server)? else { return Ok(()) };
    // Until chronyd knows, the node is good enough; then it is not.
    let gateway = site.start()?;
    let leeway = |low: f64, high: f64| {
        clock::wait_for(&format!("a leeway of {low} to {high} s"), BELIEVED, || {
            let leeway_s = gateway.metric("gateway_token_leeway_seconds", &[])?;
            Ok((low..=high).contains(&leeway_s).then_some(()))
        })
        .with_context(|| gateway.log_text())
    };
    leeway(50.0, 52.0)?;
    let offset_s = gateway.metric("gateway_host_clock_offset_seconds", &[])?;
    ensure!((offset_s + 40.0).abs() < 1.0, "{offset_s}");
    let (status, told) = gateway.get("/ready")?;
    ensure!(status == 503 && told.contains("clock lost: it is off by up to 4"), "{told}");

    // The server was wrong, or somebody has set the clock.
    ahead_s.store(0, Ordering::Relaxed);
    leeway(10.0, 12.0)?;
    let (status, told) = gateway.get("/ready")?;
    ensure!(status == 200 && !told.contains("clock"), "{told}");
    Ok(())
}
