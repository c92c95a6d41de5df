//! The page of metrics: all that was promised is there, under those names and labels, in a form that
//! Prometheus takes without a word, and no more of it whoever comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    binary,
    harness::{
        clock,
        flood::{self, Flood, Plan, Sources, Transport, Wire},
        gateway::SOON,
        process,
        site::{CLIENT_INTERFACE, GATEWAY, INTERFACE, Site},
        unpacked,
    },
};

/// What people may build upon, one metric a line.
const CATALOGUE: &str = include_str!("data/metrics.txt");

/// One metric of the catalogue.
#[derive(Debug)]
pub(crate) struct Promised {
    /// `counter`, `gauge` or `histogram`.
    pub(crate) kind: &'static str,
    /// Its labels.
    pub(crate) labels: BTreeSet<&'static str>,
}

/// The catalogue by name.
pub(crate) fn catalogue() -> BTreeMap<&'static str, Promised> {
    let lines = CATALOGUE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap();
            let (name, kind, labels) = (word(), word(), word());
            let labels = labels.split(',').filter(|label| *label != "-").collect();
            (name, Promised { kind, labels })
        })
        .collect()
}

/// One line of the page: the name as written, and its labels' names.
fn series(line: &str) -> (&str, BTreeSet<&str>) {
    let Some((name, rest)) = line.split_once('{') else {
        return (line.split(' ').next().unwrap_or_default(), BTreeSet::new());
    };
    let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
    // Values hold neither quotation marks nor equals signs in these tests.
    let names = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
    (name, names.collect())
}

/// What identifies each series of the page.
fn identities(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

/// A site in which every part of the gateway has something to count.
fn busy_site(label: &str) -> Result<Site> {
    let mut site = Site::new(binary(), label)?;
    site.guard("packets = { rate = \"1000/s\", burst = 1000 }\nmax_sources = 65536");
    let sensors = site.directory.path().join("sys/class/hwmon/hwmon0");
    std::fs::create_dir_all(&sensors)?;
    std::fs::write(sensors.join("name"), "coretemp\n")?;
    std::fs::write(sensors.join("temp1_input"), "45000\n")?;
    site.config.routes = format!(
        "[[limit]]\nname = \"each\"\nkey = \"source\"\nrates = [\"1000/s\"]\n\n{}\n[host]\nsysfs = {:?}\n\
         chrony = \"\"\n",
        site.config.routes.replace("path = \"/public\"", "path = \"/public\"\nlimits = [\"each\"]"),
        site.directory.path().join("sys").display().to_string()
    );
    Ok(site)
}

#[test]
fn every_metric_that_was_promised_is_there() -> Result<()> {
    privileged!();
    let site = busy_site("promised")?;
    let gateway = site.start()?;
    let token = site.mint.good("alice")?;
    assert_eq!(site.request("/orders/1").token(&token).send()?.status, 200);
    assert_eq!(site.request("/orders/1").token("x").send()?.status, 401);
    assert_eq!(site.request("/public").send()?.status, 200);
    assert_eq!(site.anonymous_request("/public").send()?.status, 0);
    gateway.launch().succeed(&["bans", "add", "10.99.0.70"])?;
    let one = |name| gateway.wait_metric(name, &[], 1.0);
    one("gateway_tls_handshake_failures_total")?;
    one("gateway_bans_active")?;
    gateway.wait_metric("gateway_http_requests_total", &[], 3.0)?;
    clock::wait_for("the host's figures", SOON, || {
        let page = gateway.get("/metrics")?.1;
        Ok(page.contains("\ngateway_host_load_stage ").then_some(()))
    })?;
    let page = gateway.get("/metrics")?.1;
    let told = |mark: &str| -> BTreeMap<&str, &str> {
        page.lines().filter_map(|line| line.strip_prefix(mark)?.split_once(' ')).collect()
    };
    let (kinds, helps) = (told("# TYPE "), told("# HELP "));
    for (name, promised) in catalogue() {
        assert_eq!(kinds.get(name), Some(&promised.kind), "{name}\n{page}");
    }
    let mut seen = BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (written, mut labels) = series(line);
        let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| {
            written.strip_suffix(part).filter(|name| kinds.get(name) == Some(&"histogram"))
        });
        let name = family.unwrap_or(written);
        ensure!(name.starts_with("gateway_"), "{line}");
        ensure!(helps.get(name).is_some_and(|help| help.ends_with('.')), "{name} has no help");
        labels.remove("le");
        if let Some(promised) = catalogue().get(name) {
            ensure!(labels == promised.labels, "{line}: promised are {:?}", promised.labels);
            seen.insert(name.to_owned());
        }
    }
    // What cannot be had here: an issuer that is asked, CPUs that tell when they were slowed down, a clock
    // that somebody keeps; and what did not happen.
    let elsewhere = [
        "gateway_host_clock_",
        "gateway_host_cpu_throttle_events_total",
        "gateway_host_memory_stall_ratio",
        "gateway_host_cpu_stall_ratio",
        "gateway_host_interface_dropped_total",
        "gateway_jwks_",
        "gateway_upstream_bodies_cut_total",
        "gateway_upstream_repeated_total",
        "gateway_websockets_ended_total",
    ];
    let missing: Vec<_> = catalogue()
        .into_keys()
        .filter(|name| !seen.contains(*name))
        .filter(|name| !elsewhere.iter().any(|part| name.starts_with(part)))
        .collect();
    ensure!(missing.is_empty(), "no series of {missing:?}\n{page}");

    // A reload that is refused shows, and that it is put right, too.
    let text = std::fs::read_to_string(&gateway.launch().config)?;
    std::fs::write(&gateway.launch().config, format!("{text}\nnonsense = 1\n"))?;
    gateway.signal(Signal::SIGHUP)?;
    gateway.wait_metric("gateway_config_last_reload_successful", &[], 0.0)?;
    std::fs::write(&gateway.launch().config, text)?;
    gateway.launch().succeed(&["reload"])?;
    gateway.wait_metric("gateway_config_last_reload_successful", &[], 1.0)?;

    let Some(promtool) = unpacked::program("promtool") else { return Ok(()) };
    let mut command = std::process::Command::new(promtool);
    let judged = process::run_with_input(command.args(["check", "metrics"]), page.as_bytes())?;
    assert_eq!((judged.status, judged.stdout + &judged.stderr), (Some(0), String::new()));
    Ok(())
}

/// Floods, each of as many sources as one can have.
const FLOODS: u8 = 16;

#[test]
fn a_million_sources_leave_as_many_series_as_there_were() -> Result<()> {
    privileged!();
    let site = busy_site("million")?;
    let gateway = site.start()?;
    assert_eq!(site.request("/public").send()?.status, 200);
    // All that is known of the host and of this one client.
    gateway.wait_metric("gateway_http_requests_total", &[], 1.0)?;
    clock::wait_for("the host's figures", SOON, || {
        Ok(gateway.get("/metrics")?.1.contains("\ngateway_host_load_stage ").then_some(()))
    })?;
    let before = identities(&gateway.get("/metrics")?.1);
    let wire = Wire {
        source: site.client_host.hardware_address(CLIENT_INTERFACE)?,
        destination: site.gateway_host.hardware_address(INTERFACE)?,
    };
    let to = SocketAddrV4::new(GATEWAY, 8443);
    let mut sent = 0;
    for number in 0..FLOODS {
        let from = SocketAddrV4::new(Ipv4Addr::new(20, number, 0, 0), 40_000);
        let frame = flood::frame(wire, from, to, Transport::TcpSyn);
        let plan = Plan {
            frame,
            sources: Sources::PowerOfTwo(16),
            interface: CLIENT_INTERFACE.to_owned(),
            core: 0,
            batch: flood::BATCH,
            lasts: Duration::from_secs(5),
            packets_max: 1 << 16,
        };
        let flood = Flood::start(&site.client_host, plan)?;
        clock::wait_for("a flood to end", SOON, || Ok(flood.has_ended().then_some(())))?;
        sent += flood.stop()?.packets;
    }
    ensure!(sent >= u64::from(FLOODS) << 16, "only {sent} frames were made");
    let judged = || gateway.metric("gateway_xdp_packets_total", &[]);
    clock::wait_for("most of them to be judged", SOON, || {
        Ok((judged()? >= sent as f64 / 2.0).then_some(()))
    })
    .with_context(|| format!("{:?} of {sent}", judged()))?;
    let after = identities(&gateway.get("/metrics")?.1);
    let more: Vec<_> = after.symmetric_difference(&before).collect();
    ensure!(more.is_empty(), "{more:?}");
    Ok(())
}

#[test]
fn who_may_not_ask_is_not_answered() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "askers")?;
    site.config.metrics = SocketAddr::from((GATEWAY, 9090));
    let gateway = site.launch()?.run()?;
    gateway.wait_log("that it serves", |line| line["event"] == "started")?;
    for path in ["/", "/status.json", "/metrics"] {
        // The host's own address is not in [admin].allow.
        let refused = gateway.get(path);
        ensure!(refused.is_err(), "{path}: {refused:?}");
    }
    Ok(())
}
