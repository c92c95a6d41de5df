//! What was seen on this host → one line each: good, doubtful or bad, and what to do about it.
//!
//! Plain functions over [`Facts`]; what cannot be known here is said to be unknown, never good.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;

use super::{
    facts::{Clock, Facts},
    files::{InterfaceFacts, Limit},
};
use crate::kernel::Mode;

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, and may not when it matters.
    Warn,
    /// It does not work.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) topic: String,
    /// How grave.
    pub(super) level: Level,
    /// What was seen.
    pub(super) text: String,
    /// What to do; none for what is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

/// The oldest kernel that the XDP program is tested with.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Frames of one page, less headroom and the kernel's own room: above this most drivers refuse a
/// native XDP program that does not take fragments.
const NATIVE_MTU_MAX: u32 = 3_498;
/// A listen queue below this overflows in a burst of a few hundred connections.
const SOMAXCONN_MIN: u64 = 1_024;
/// `[host].clock` of the configuration's documentation: warn, critical.
const CLOCK_WARN: Duration = Duration::from_millis(500);
const CLOCK_CRITICAL: Duration = Duration::from_secs(30);
/// Since this kernel maps are counted by cgroups; before, as locked memory.
const COUNTED_BY_CGROUP: (u32, u32) = (5, 11);
/// Problems of the configuration that are listed one by one; `check` lists them all.
const PROBLEMS_MAX: usize = 20;

/// Drivers that run XDP themselves, as the kernel's sources have them; others run it behind the driver.
const NATIVE_DRIVERS: [&str; 33] = [
    "amd-xgbe",
    "atlantic",
    "bnxt_en",
    "cpsw",
    "dpaa2-eth",
    "dpaa_eth",
    "ena",
    "enetc",
    "fec",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "octeontx2",
    "qede",
    "sfc",
    "st_gmac",
    "tsnep",
    "virtio_net",
    "vmxnet3",
];
/// The same of interfaces without a device.
const NATIVE_VIRTUAL: [&str; 4] = ["bond", "tun", "veth", "xen-netfront"];

const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn ok(topic: impl Into<String>, text: impl Into<String>) -> Finding {
    Finding { topic: topic.into(), level: Level::Ok, text: text.into(), remedy: None }
}

fn bad(
    level: Level,
    topic: impl Into<String>,
    text: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { topic: topic.into(), level, text: text.into(), remedy: Some(remedy.into()) }
}

/// Judges everything.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = configuration(facts);
    findings.push(kernel(facts));
    if facts.xdp.is_some() {
        findings.extend([btf(facts), bpffs(facts)]);
        findings.extend(locked_memory(facts));
    }
    findings.push(capabilities(facts));
    if let Some(mode) = facts.xdp {
        findings.extend(facts.interfaces.iter().map(|interface| interface_line(interface, mode)));
        // What is missing has been told.
        let probe = facts.probe.as_ref();
        let probe = probe.filter(|_| facts.interfaces.iter().all(|one| one.mtu.is_some()));
        findings.extend(probe.map(|probe| match probe {
            Ok(()) => ok("xdp", "the interfaces are there, and run no program but ours"),
            Err(error) => bad(
                Level::Fail,
                "xdp",
                error,
                "ip -details link shows what is attached to each; whoever attached it can take it off",
            ),
        }));
    }
    findings.extend(clock(facts.clock));
    findings.push(clock_daemons(&facts.clock_daemons, facts.clock));
    findings.push(sensors(facts));
    findings.push(descriptors(facts));
    findings.extend(sysctls(facts));
    findings.extend(facts.reached.iter().map(|(what, outcome)| match outcome {
        Ok(address) => ok(what, format!("{address} takes connections")),
        Err(error) => bad(
            Level::Warn,
            what,
            error,
            "start it, or correct the name, the address or the firewall",
        ),
    }));
    findings
}

/// A line for each problem: their texts say what to do.
fn configuration(facts: &Facts) -> Vec<Finding> {
    let topic = "configuration";
    let (problems, warnings) = (&facts.problems, &facts.warnings);
    if problems.is_empty() && warnings.is_empty() {
        return vec![ok(topic, "good, and every file it names")];
    }
    let lines = [(Level::Fail, problems), (Level::Warn, warnings)].into_iter();
    let lines = lines.flat_map(|(level, texts)| texts.iter().map(move |text| (level, text)));
    let again = "put it right, then run portcullis check";
    let mut findings: Vec<Finding> =
        lines.map(|(level, text)| bad(level, topic, text, again)).collect();
    if findings.len() > PROBLEMS_MAX {
        let more = findings.len() - PROBLEMS_MAX;
        findings.truncate(PROBLEMS_MAX);
        let text = format!("and {more} more problems and warnings");
        findings.push(bad(Level::Warn, topic, text, "portcullis check lists them all"));
    }
    findings
}

/// Major and minor number.
fn version(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn kernel(facts: &Facts) -> Finding {
    let topic = "kernel";
    match version(&facts.kernel) {
        Some(version) if version >= KERNEL_MIN => ok(topic, &facts.kernel),
        Some(_) => bad(
            Level::Fail,
            topic,
            format!("{} is older than 5.10", facts.kernel),
            "install a newer kernel (on Debian: apt install linux-image-amd64, then reboot)",
        ),
        None => bad(
            Level::Warn,
            topic,
            format!("its version is not known: {}", facts.kernel),
            "make sure that it is 5.10 or newer (uname -r)",
        ),
    }
}

/// Old kernels count the maps as locked memory, and most distributions allow 64 KiB of it.
fn locked_memory(facts: &Facts) -> Option<Finding> {
    let counting = KERNEL_MIN..COUNTED_BY_CGROUP;
    let is_counted = version(&facts.kernel).is_some_and(|version| counting.contains(&version));
    let Some(Limit::Of(octets)) = facts.locked_memory.filter(|_| is_counted) else { return None };
    Some(bad(
        Level::Fail,
        "locked memory",
        format!("at most {} KiB; before Linux 5.11 the maps count as such", octets / 1024),
        "LimitMEMLOCK=infinity in the unit (ulimit -l unlimited in a shell)",
    ))
}

fn btf(facts: &Facts) -> Finding {
    if facts.has_btf {
        return ok("btf", "/sys/kernel/btf/vmlinux is there");
    }
    bad(
        Level::Warn,
        "btf",
        "the kernel does not describe its types; ours needs none, tools that look into it do",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y",
    )
}

fn bpffs(facts: &Facts) -> Finding {
    if facts.has_bpffs {
        return ok("bpffs", "/sys/fs/bpf is mounted");
    }
    bad(
        Level::Fail,
        "bpffs",
        "/sys/fs/bpf is not a bpf file system, so nothing can be pinned",
        "mount -t bpf bpf /sys/fs/bpf",
    )
}

fn capabilities(facts: &Facts) -> Finding {
    let topic = "capabilities";
    let Some(mask) = facts.capabilities else {
        return bad(Level::Warn, topic, "not known", "run as the daemon's user");
    };
    let has = |capability: u32| mask >> capability & 1 == 1;
    let mut missing = Vec::new();
    if facts.xdp.is_some() {
        let wide = has(CAP_SYS_ADMIN);
        missing.extend((!has(CAP_BPF) && !wide).then_some("CAP_BPF"));
        missing.extend((!has(CAP_PERFMON) && !wide).then_some("CAP_PERFMON"));
        missing.extend((!has(CAP_NET_ADMIN)).then_some("CAP_NET_ADMIN"));
    }
    let binds_low = facts.lowest_port.is_some_and(|port| port < facts.unprivileged_from);
    missing.extend((binds_low && !has(CAP_NET_BIND_SERVICE)).then_some("CAP_NET_BIND_SERVICE"));
    if missing.is_empty() {
        return ok(topic, "all that the configuration needs");
    }
    let missing = missing.join(" ");
    bad(
        Level::Fail,
        topic,
        format!("whoever runs this lacks {missing}"),
        format!("run as root, or give the unit AmbientCapabilities={missing}"),
    )
}

fn interface_line(interface: &InterfaceFacts, mode: Mode) -> Finding {
    let topic = format!("interface {}", interface.name);
    let Some(mtu) = interface.mtu else {
        return bad(
            Level::Fail,
            topic,
            "there is no interface of this name",
            "correct [xdp].interfaces (ip link shows them)",
        );
    };
    let name = &interface.name;
    if interface.is_vlan {
        return bad(
            Level::Warn,
            topic,
            "it is a VLAN of another interface: a program on it sees packets late, in generic mode",
            "write the interface below it into [xdp].interfaces (ip link shows NAME@BELOW); tags are read",
        );
    }
    if interface.is_down {
        return bad(
            Level::Warn,
            topic,
            "it is down: nothing comes in by it",
            format!("ip link set dev {name} up, and look at its cable (ethtool {name})"),
        );
    }
    let driver = interface.driver.as_deref().unwrap_or("no driver of its own");
    let native = NATIVE_DRIVERS.contains(&driver) || NATIVE_VIRTUAL.contains(&driver);
    let seen = format!("{driver}, MTU {mtu}");
    if mode == Mode::Generic {
        return ok(topic, format!("{seen}; behind the driver, as configured"));
    }
    let level = if mode == Mode::Native { Level::Fail } else { Level::Warn };
    if !native {
        return bad(
            level,
            topic,
            format!("{seen}; it is not known to run XDP itself"),
            "expect mode \"generic\", at a few times the cost for each packet",
        );
    }
    if interface.joins_packets {
        return bad(
            level,
            topic,
            format!("{seen}; the hypervisor joins packets for it and cannot be asked not to"),
            "start the guest with guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off, \
             or let it ask (ctrl_guest_offloads=on)",
        );
    }
    if mtu > NATIVE_MTU_MAX {
        return bad(
            level,
            topic,
            format!("{seen}; above {NATIVE_MTU_MAX} most drivers refuse a native program"),
            format!("ip link set dev {} mtu {NATIVE_MTU_MAX}", interface.name),
        );
    }
    if driver == "ena" {
        return bad(
            Level::Warn,
            topic,
            format!("{seen}; it runs XDP with at most half of its channels"),
            format!("ethtool -l {0}; ethtool -L {0} combined HALF", interface.name),
        );
    }
    ok(topic, seen)
}

fn clock(clock: Clock) -> Option<Finding> {
    let topic = "clock";
    let remedy = "enable time synchronisation (timedatectl set-ntp true, or chrony)";
    let (is_synchronized, offset, max_error) = match clock {
        Clock::Elsewhere => return None,
        Clock::Untold => {
            return Some(bad(Level::Warn, topic, "the kernel does not tell its state", remedy));
        }
        Clock::Told { is_synchronized, offset, max_error } => (is_synchronized, offset, max_error),
    };
    if !is_synchronized {
        // Some daemons keep the time right without telling the kernel (chrony without rtcsync).
        let text = "nobody tells the kernel that it is synchronised";
        return Some(bad(Level::Warn, topic, text, remedy));
    }
    let shown = |span: Duration| format!("{:.3} s", span.as_secs_f64());
    let seen = format!("off by {}, at most {}", shown(offset), shown(max_error));
    if offset >= CLOCK_CRITICAL || max_error >= CLOCK_CRITICAL {
        return Some(bad(
            Level::Fail,
            topic,
            seen,
            "set it (chronyc makestep), then look at chrony",
        ));
    }
    if offset >= CLOCK_WARN || max_error >= CLOCK_WARN {
        let remedy = "look at its sources (chronyc sources, timedatectl)";
        return Some(bad(Level::Warn, topic, seen, remedy));
    }
    Some(ok(topic, seen))
}

fn clock_daemons(found: &BTreeSet<String>, clock: Clock) -> Finding {
    let topic = "time daemon";
    let names: Vec<&str> = found.iter().map(String::as_str).collect();
    let is_kept = matches!(clock, Clock::Told { is_synchronized: true, .. });
    match names[..] {
        // In a container the clock is the host's, and so is who keeps it.
        [] if is_kept => ok(topic, "none here; the clock is kept from outside"),
        [] => bad(
            Level::Warn,
            topic,
            "none runs, so the clock drifts and good tokens are refused some day",
            "install chrony (apt install chrony), or timedatectl set-ntp true",
        ),
        [one] => ok(topic, format!("{one} runs")),
        _ => bad(
            Level::Warn,
            topic,
            format!("{} pull at the same clock", names.join(" and ")),
            format!("keep one: systemctl disable --now {}", names[1..].join(" ")),
        ),
    }
}

fn sensors(facts: &Facts) -> Finding {
    let topic = "CPU sensors";
    let remedy = "modprobe coretemp (Intel) or k10temp (AMD); sensors-detect finds others";
    if facts.sensors.is_empty() {
        if facts.is_virtual {
            return ok(topic, "none, as in most virtual machines; heat is the hypervisor's affair");
        }
        let text = "none, so nothing is shed before the hardware slows down";
        return bad(Level::Warn, topic, text, remedy);
    }
    let readable = facts.sensors.iter().filter_map(|sensor| Some((sensor.celsius?, sensor)));
    let Some((celsius, hottest)) = readable.max_by(|(one, _), (other, _)| one.total_cmp(other))
    else {
        let text = format!("none of {} can be read or says what can be", facts.sensors.len());
        return bad(Level::Warn, topic, text, remedy);
    };
    let seen = format!("{} of them, {} at {celsius:.1} °C", facts.sensors.len(), hottest.name);
    let silent = facts.sensors.iter().filter(|sensor| sensor.celsius.is_none());
    let failed: Vec<&str> = silent.map(|sensor| sensor.name.as_str()).collect();
    let cool = "cool the host: look at fans, filters and room (portcullis status tells the stage)";
    match facts.temperatures {
        Some(limits) if celsius >= limits.critical_c => bad(Level::Fail, topic, seen, cool),
        Some(limits) if celsius >= limits.warn_c => bad(Level::Warn, topic, seen, cool),
        _ if !failed.is_empty() => {
            bad(Level::Warn, topic, format!("{seen}; no word of {}", failed.join(", ")), remedy)
        }
        _ => ok(topic, seen),
    }
}

fn descriptors(facts: &Facts) -> Finding {
    let topic = "open files";
    let hard = match facts.descriptors {
        Some(Limit::Of(hard)) => hard,
        Some(Limit::Unlimited) => return ok(topic, "as many as the kernel has"),
        None => return bad(Level::Warn, topic, "their limit is not known", "ulimit -Hn shows it"),
    };
    // A connection and its upstream's, and a few for the process itself.
    let wanted = facts.max_connections.saturating_mul(2).saturating_add(1_024);
    if hard >= wanted {
        return ok(topic, format!("up to {hard}"));
    }
    bad(
        Level::Warn,
        topic,
        format!("up to {hard}; max_connections may need {wanted}"),
        format!("LimitNOFILE={wanted} in the unit, or a smaller [server].max_connections"),
    )
}

fn sysctls(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let low = |value: Option<u64>, least: u64| value.filter(|value| *value < least);
    if let Some(somaxconn) = low(facts.somaxconn, SOMAXCONN_MIN) {
        findings.push(bad(
            Level::Warn,
            "net.core.somaxconn",
            format!("{somaxconn}: a burst of connections overflows it"),
            format!("sysctl -w net.core.somaxconn={}", 4 * SOMAXCONN_MIN),
        ));
    }
    if low(facts.syncookies, 1).is_some() {
        findings.push(bad(
            Level::Warn,
            "net.ipv4.tcp_syncookies",
            "0: a flood of SYNs fills the queue for everybody",
            "sysctl -w net.ipv4.tcp_syncookies=1",
        ));
    }
    if facts.xdp.is_some() && low(facts.jit, 1).is_some() {
        findings.push(bad(
            Level::Warn,
            "net.core.bpf_jit_enable",
            "0: the XDP program is interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{assess::Temperatures, temperature::Sensor};

    const GOOD_CLOCK: Clock = Clock::Told {
        is_synchronized: true,
        offset: Duration::from_millis(1),
        max_error: Duration::from_millis(20),
    };

    fn sensor(celsius: f64) -> Sensor {
        Sensor { name: "hwmon0 coretemp Package id 0".to_owned(), celsius: Some(celsius) }
    }

    fn off_by(offset: Duration, max_error: Duration) -> Clock {
        Clock::Told { is_synchronized: true, offset, max_error }
    }

    fn facts() -> Facts {
        Facts {
            problems: Vec::new(),
            warnings: Vec::new(),
            kernel: "6.1.0-13-amd64".to_owned(),
            has_btf: true,
            has_bpffs: true,
            capabilities: Some(u64::MAX),
            lowest_port: Some(8443),
            unprivileged_from: 1024,
            xdp: Some(Mode::Auto),
            interfaces: vec![InterfaceFacts {
                name: "eth0".to_owned(),
                mtu: Some(1500),
                driver: Some("ixgbe".to_owned()),
                ..InterfaceFacts::default()
            }],
            probe: Some(Ok(())),
            clock: GOOD_CLOCK,
            clock_daemons: ["chronyd".to_owned()].into(),
            sensors: vec![sensor(45.0)],
            temperatures: Some(Temperatures { warn_c: 80.0, critical_c: 95.0 }),
            is_virtual: false,
            descriptors: Some(Limit::Of(1_048_576)),
            locked_memory: Some(Limit::Of(65_536)),
            max_connections: 100_000,
            somaxconn: Some(4096),
            syncookies: Some(1),
            jit: Some(1),
            reached: vec![("upstream orders".to_owned(), Ok("127.0.0.1:9001".to_owned()))],
        }
    }

    #[test]
    fn a_good_host_has_nothing_to_put_right() {
        for finding in judge(&facts()) {
            assert_eq!((finding.level, &finding.remedy), (Level::Ok, &None), "{finding:?}");
        }
    }

    #[test]
    fn each_fault_has_its_line_and_its_remedy() {
        type Change = fn(&mut Facts);
        let rows: [(&str, Level, &str, Change); 31] = [
            ("configuration", Level::Fail, "portcullis check", |f| f.problems.push("x".into())),
            ("configuration", Level::Warn, "portcullis check", |f| f.warnings.push("x".into())),
            ("kernel", Level::Fail, "newer", |f| f.kernel = "5.4.0".into()),
            ("kernel", Level::Warn, "uname", |f| f.kernel = "custom".into()),
            ("btf", Level::Warn, "CONFIG_DEBUG_INFO_BTF", |f| f.has_btf = false),
            ("bpffs", Level::Fail, "mount -t bpf", |f| f.has_bpffs = false),
            ("capabilities", Level::Fail, "CAP_BPF CAP_PERFMON CAP_NET_ADMIN", |f| {
                f.capabilities = Some(0);
            }),
            ("capabilities", Level::Fail, "=CAP_NET_BIND_SERVICE", |f| {
                f.capabilities = Some(1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN);
                f.lowest_port = Some(443);
            }),
            ("interface eth0", Level::Fail, "ip link", |f| f.interfaces[0].mtu = None),
            ("interface eth0", Level::Warn, "generic", |f| {
                f.interfaces[0].driver = Some("e1000e".into());
            }),
            ("interface eth0", Level::Fail, "generic", |f| {
                f.interfaces[0].driver = None;
                f.xdp = Some(Mode::Native);
            }),
            ("interface eth0", Level::Warn, "mtu 3498", |f| f.interfaces[0].mtu = Some(9000)),
            ("interface eth0", Level::Warn, "combined", |f| {
                f.interfaces[0].driver = Some("ena".into());
            }),
            ("xdp", Level::Fail, "ip -details link", |f| {
                f.probe = Some(Err("another program".into()))
            }),
            ("interface eth0", Level::Warn, "NAME@BELOW", |f| f.interfaces[0].is_vlan = true),
            ("interface eth0", Level::Warn, "eth0 up", |f| f.interfaces[0].is_down = true),
            ("interface eth0", Level::Warn, "guest_tso4=off", |f| {
                f.interfaces[0].driver = Some("virtio_net".into());
                f.interfaces[0].joins_packets = true;
            }),
            ("locked memory", Level::Fail, "LimitMEMLOCK=infinity", |f| f.kernel = "5.10.0".into()),
            ("clock", Level::Warn, "timedatectl", |f| f.clock = Clock::Untold),
            ("clock", Level::Warn, "chronyc", |f| {
                f.clock = off_by(Duration::ZERO, Duration::from_millis(600));
            }),
            ("clock", Level::Fail, "makestep", |f| {
                f.clock = off_by(Duration::from_secs(31), Duration::ZERO);
            }),
            ("time daemon", Level::Warn, "apt install chrony", |f| {
                f.clock_daemons.clear();
                f.clock = Clock::Elsewhere;
            }),
            ("time daemon", Level::Warn, "disable --now systemd-timesyncd", |f| {
                f.clock_daemons.insert("systemd-timesyncd".into());
            }),
            ("CPU sensors", Level::Warn, "modprobe coretemp", |f| f.sensors.clear()),
            ("CPU sensors", Level::Warn, "modprobe coretemp", |f| f.sensors[0].celsius = None),
            ("CPU sensors", Level::Warn, "modprobe coretemp", |f| {
                f.sensors.push(Sensor { name: "hwmon1 k10temp Tctl".into(), celsius: None });
            }),
            ("CPU sensors", Level::Warn, "fans", |f| f.sensors.push(sensor(80.0))),
            ("CPU sensors", Level::Fail, "fans", |f| f.sensors.push(sensor(95.0))),
            ("open files", Level::Warn, "LimitNOFILE=201024", |f| {
                f.descriptors = Some(Limit::Of(1024));
            }),
            ("net.core.somaxconn", Level::Warn, "4096", |f| f.somaxconn = Some(128)),
            ("upstream orders", Level::Warn, "firewall", |f| {
                f.reached[0].1 = Err("connection refused".into());
            }),
        ];
        for (topic, level, remedy, change) in rows {
            let mut facts = facts();
            change(&mut facts);
            let faults: Vec<_> =
                judge(&facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
            let [fault] = faults.as_slice() else { panic!("{topic}: {faults:?}") };
            assert_eq!((fault.topic.as_str(), fault.level), (topic, level), "{fault:?}");
            assert!(fault.remedy.as_ref().is_some_and(|text| text.contains(remedy)), "{fault:?}");
        }
    }

    #[test]
    fn a_guest_has_no_sensors_and_its_clock_may_be_its_hosts() {
        let mut facts = facts();
        facts.sensors.clear();
        facts.is_virtual = true;
        facts.clock_daemons.clear();
        facts.descriptors = Some(Limit::Unlimited);
        assert!(judge(&facts).iter().all(|finding| finding.level == Level::Ok));
    }

    #[test]
    fn many_problems_are_counted_and_not_all_listed() {
        let mut facts = facts();
        facts.problems = (0..PROBLEMS_MAX + 5).map(|number| format!("problem {number}")).collect();
        let told = judge(&facts);
        let told: Vec<_> = told.iter().filter(|one| one.topic == "configuration").collect();
        assert_eq!(told.len(), PROBLEMS_MAX + 1);
        assert_eq!(told[PROBLEMS_MAX].text, "and 5 more problems and warnings");
    }

    #[test]
    fn without_a_kernel_half_none_of_its_needs_is_looked_at() {
        let mut facts = facts();
        facts.xdp = None;
        (facts.capabilities, facts.has_bpffs, facts.jit) = (Some(0), false, Some(0));
        assert!(judge(&facts).iter().all(|finding| finding.level == Level::Ok));
    }
}
