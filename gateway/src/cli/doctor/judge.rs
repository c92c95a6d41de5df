//! What was seen on this host → one line each: good, doubtful or bad, and what to do about it.
//!
//! Plain functions over [`Facts`]; what cannot be known here is said to be unknown, never good.

use std::time::Duration;

use serde::Serialize;

use super::facts::{ClockFacts, Facts, InterfaceFacts};
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
    let mut findings = vec![configuration(facts), kernel(facts)];
    if facts.xdp.is_some() {
        findings.extend([btf(facts), bpffs(facts)]);
    }
    findings.push(capabilities(facts));
    if let Some(mode) = facts.xdp {
        findings.extend(facts.interfaces.iter().map(|interface| interface_line(interface, mode)));
        findings.extend(facts.probe.as_ref().map(|probe| match probe {
            Ok(()) => ok("xdp", "the interfaces are there, and run no program but ours"),
            Err(error) => bad(Level::Fail, "xdp", error, "see the message"),
        }));
    }
    findings.push(clock(facts.clock));
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

fn configuration(facts: &Facts) -> Finding {
    let topic = "configuration";
    match facts.problems {
        (0, 0) => ok(topic, "good, and every file it names"),
        (0, warnings) => {
            bad(Level::Warn, topic, format!("{warnings} warnings"), "run portcullis check")
        }
        (problems, _) => {
            bad(Level::Fail, topic, format!("{problems} problems"), "run portcullis check")
        }
    }
}

fn kernel(facts: &Facts) -> Finding {
    let topic = "kernel";
    let mut numbers = facts.kernel.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => ok(topic, &facts.kernel),
        (Some(_), Some(_)) => bad(
            Level::Fail,
            topic,
            format!("{} is older than 5.10", facts.kernel),
            "install a newer kernel",
        ),
        _ => bad(
            Level::Warn,
            topic,
            format!("its version is not known: {}", facts.kernel),
            "make sure that it is 5.10 or newer (uname -r)",
        ),
    }
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

fn clock(clock: Option<ClockFacts>) -> Finding {
    let topic = "clock";
    let remedy = "enable time synchronisation (timedatectl set-ntp true, or chrony)";
    let Some(clock) = clock else {
        return bad(Level::Warn, topic, "the kernel does not tell its state", remedy);
    };
    let shown = |span: Duration| format!("{:.3} s", span.as_secs_f64());
    let (offset, max_error) = (shown(clock.offset), shown(clock.max_error));
    if !clock.is_synchronized {
        // Some daemons keep the time right without telling the kernel (chrony without rtcsync).
        return bad(Level::Warn, topic, "nobody tells the kernel that it is synchronised", remedy);
    }
    let seen = format!("off by {offset}, at most {max_error}");
    if clock.offset >= CLOCK_CRITICAL || clock.max_error >= CLOCK_CRITICAL {
        return bad(Level::Fail, topic, seen, remedy);
    }
    if clock.offset >= CLOCK_WARN || clock.max_error >= CLOCK_WARN {
        return bad(Level::Warn, topic, seen, "look at its sources (chronyc sources, timedatectl)");
    }
    ok(topic, seen)
}

fn descriptors(facts: &Facts) -> Finding {
    let topic = "open files";
    let Some(hard) = facts.descriptors_max else {
        return bad(Level::Warn, topic, "their limit is not known", "ulimit -Hn shows it");
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

    fn facts() -> Facts {
        Facts {
            problems: (0, 0),
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
            }],
            probe: Some(Ok(())),
            clock: Some(ClockFacts {
                is_synchronized: true,
                offset: Duration::from_millis(1),
                max_error: Duration::from_millis(20),
            }),
            descriptors_max: Some(1_048_576),
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
        let rows: [(&str, Level, &str, Change); 20] = [
            ("configuration", Level::Fail, "portcullis check", |f| f.problems = (2, 1)),
            ("configuration", Level::Warn, "portcullis check", |f| f.problems = (0, 1)),
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
            ("xdp", Level::Fail, "message", |f| f.probe = Some(Err("another program".into()))),
            ("clock", Level::Warn, "timedatectl", |f| f.clock = None),
            ("clock", Level::Warn, "chronyc", |f| {
                f.clock.as_mut().unwrap().max_error = Duration::from_millis(600);
            }),
            ("clock", Level::Fail, "chrony", |f| {
                f.clock.as_mut().unwrap().offset = Duration::from_secs(31);
            }),
            ("open files", Level::Warn, "LimitNOFILE=201024", |f| f.descriptors_max = Some(1024)),
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
    fn without_a_kernel_half_none_of_its_needs_is_looked_at() {
        let mut facts = facts();
        facts.xdp = None;
        (facts.capabilities, facts.has_bpffs, facts.jit) = (Some(0), false, Some(0));
        assert!(judge(&facts).iter().all(|finding| finding.level == Level::Ok));
    }
}
