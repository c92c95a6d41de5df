//! `portcullis doctor`: one line for each thing this host must have, and nothing is changed by looking.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    binary,
    harness::{process, site::Site},
};

/// The level and text of a topic.
fn line(report: &Value, topic: &str) -> Option<(String, String)> {
    let findings = report["findings"].as_array()?;
    let finding = findings.iter().find(|finding| finding["topic"] == topic)?;
    Some((finding["level"].as_str()?.to_owned(), finding.to_string()))
}

#[test]
fn the_doctor_tells_what_is_missing_and_what_to_do() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "doctor")?;
    let well = site.launch()?.ended(&["doctor", "--json"])?;
    let report: Value = serde_json::from_str(&well.stdout).context(well.stderr)?;
    let level = |topic: &str| line(&report, topic).map(|(level, _)| level);
    assert_eq!(level("upstream orders").as_deref(), Some("ok"), "{report}");
    assert_eq!(level("kernel").as_deref(), Some("ok"), "{report}");
    for topic in ["clock", "time daemon", "CPU sensors", "open files"] {
        assert!(level(topic).is_some(), "{topic}: {report}");
    }
    assert_ne!(level("configuration").as_deref(), Some("fail"), "{report}");

    // Nobody listens there, and the key is gone.
    site.config.upstream.set_port(9009);
    fs::remove_file(&site.config.server.key)?;
    let ill = site.launch()?.ended(&["doctor"])?;
    assert_eq!(ill.status, Some(1), "{ill:?}");
    let fails: Vec<&str> = ill.stdout.lines().filter(|line| line.starts_with("fail")).collect();
    let [fail] = fails[..] else { panic!("{ill:?}") };
    let key = site.config.server.key.display().to_string();
    assert!(fail.starts_with("fail  configuration: ") && fail.contains(&key), "{fail}");
    assert!(fail.ends_with("then run portcullis check"), "{fail}");
    Ok(())
}

/// A host's files, as they would have been copied.
struct Host<'a>(&'a Path);

impl Host<'_> {
    fn write(&self, path: &str, text: &str) -> Result<()> {
        let file = self.0.join(path);
        fs::create_dir_all(file.parent().context("a folder")?)?;
        Ok(fs::write(&file, text)?)
    }

    fn remove(&self, path: &str) -> Result<()> {
        let place = self.0.join(path);
        let is_folder = place.symlink_metadata()?.is_dir();
        if is_folder { Ok(fs::remove_dir_all(place)?) } else { Ok(fs::remove_file(place)?) }
    }

    fn replace(&self, path: &str, old: &str, new: &str) -> Result<()> {
        let text = fs::read_to_string(self.0.join(path))?;
        ensure!(text.contains(old), "{path} has no {old}");
        self.write(path, &text.replace(old, new))
    }

    fn driver(&self, name: &str) -> Result<()> {
        let link = self.0.join("sys/class/net/edge0/device/driver");
        let _absent = fs::remove_file(&link);
        Ok(symlink(format!("../../../bus/pci/drivers/{name}"), link)?)
    }

    /// Its card is a hypervisor's, with these of virtio-net's features.
    fn virtio(&self, bits: &[usize]) -> Result<()> {
        // The lowest first.
        let features: String =
            (0..64).map(|bit| if bits.contains(&bit) { '1' } else { '0' }).collect();
        self.driver("virtio_net")?;
        self.write("sys/class/net/edge0/device/features", &features)
    }

    /// A good one: bare metal, Debian 12.
    fn make(&self) -> Result<()> {
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
            ("proc/sys/net/core/somaxconn", "4096\n"),
            ("proc/sys/net/core/bpf_jit_enable", "1\n"),
            ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
            ("proc/sys/net/ipv4/ip_unprivileged_port_start", "1024\n"),
            ("proc/self/mounts", "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"),
            ("proc/self/status", "Name:\tportcullis\nCapEff:\t000001ffffffffff\n"),
            (
                "proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max locked memory         8388608              8388608              bytes\n\
                 Max open files            1024                 1048576              files\n",
            ),
            ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme sse2\n"),
            ("proc/1/comm", "systemd\n"),
            ("proc/812/comm", "chronyd\n"),
            ("sys/kernel/btf/vmlinux", "\x00"),
            ("sys/class/net/edge0/mtu", "1500\n"),
            ("sys/class/net/edge0/operstate", "up\n"),
            ("sys/class/net/edge0/ifindex", "2\n"),
            ("sys/class/net/edge0/iflink", "2\n"),
            ("sys/class/net/edge0/device/vendor", "0x8086\n"),
            ("sys/class/hwmon/hwmon0/name", "coretemp\n"),
            ("sys/class/hwmon/hwmon0/temp1_label", "Package id 0\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "52000\n"),
        ] {
            self.write(path, text)?;
        }
        self.driver("ixgbe")
    }
}

type Harm = fn(&Host<'_>) -> Result<()>;

#[test]
fn each_faulty_host_is_told_its_fault_and_the_remedy() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "hosts")?;
    site.guard("");
    // A configuration without a warning.
    site.config.routes = site.config.routes.replace("require = []", "require = [\"certificate\"]");
    let launch = site.launch()?;
    let report = |harm: Harm| -> Result<(Option<i32>, Value)> {
        let root = tempfile::tempdir()?;
        Host(root.path()).make()?;
        harm(&Host(root.path()))?;
        let ended =
            launch.ended(&["doctor", "--json", "--root", &root.path().display().to_string()])?;
        Ok((ended.status, serde_json::from_str(&ended.stdout).context(ended.stderr)?))
    };
    let ill = |report: &Value| -> Vec<Value> {
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        findings.into_iter().filter(|finding| finding["level"] != "ok").collect()
    };
    let (status, good) = report(|_| Ok(()))?;
    assert_eq!((status, ill(&good)), (Some(0), Vec::new()), "{good}");

    let hosts: [(&str, &str, &str, &str, Harm); 18] = [
        ("CentOS 7 kept alive", "kernel", "fail", "install a newer kernel", |host| {
            host.write("proc/sys/kernel/osrelease", "4.19.0-26-amd64\n")
        }),
        ("Debian 11, service defaults", "locked memory", "fail", "LimitMEMLOCK=infinity", |host| {
            host.write("proc/sys/kernel/osrelease", "5.10.0-30-amd64\n")
        }),
        ("a container without bpffs", "bpffs", "fail", "mount -t bpf bpf /sys/fs/bpf", |host| {
            host.write("proc/self/mounts", "sysfs /sys sysfs rw 0 0\n")
        }),
        ("a kernel without types", "btf", "warn", "CONFIG_DEBUG_INFO_BTF=y", |host| {
            host.remove("sys/kernel/btf")
        }),
        (
            "an unprivileged user",
            "capabilities",
            "fail",
            "AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN",
            |host| host.write("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n"),
        ),
        ("a renamed card", "interface edge0", "fail", "ip link shows them", |host| {
            host.remove("sys/class/net/edge0")
        }),
        ("a card without XDP", "interface edge0", "fail", "generic", |host| host.driver("e1000e")),
        ("jumbo frames", "interface edge0", "fail", "ip link set dev edge0 mtu 3498", |host| {
            host.write("sys/class/net/edge0/mtu", "9000\n")
        }),
        ("EC2 with all channels", "interface edge0", "warn", "ethtool -L edge0", |host| {
            host.driver("ena")
        }),
        ("a cable that is out", "interface edge0", "warn", "ip link set dev edge0 up", |host| {
            host.write("sys/class/net/edge0/operstate", "down\n")
        }),
        ("a VLAN by its name", "interface edge0", "warn", "NAME@BELOW", |host| {
            host.write("proc/net/vlan/edge0", "edge0  VID: 7\n")
        }),
        ("an old hypervisor's guest", "interface edge0", "fail", "guest_tso4=off", |host| {
            host.virtio(&[0, 1, 5, 7, 8, 32])
        }),
        ("nobody keeps the clock", "time daemon", "warn", "apt install chrony", |host| {
            host.remove("proc/812")
        }),
        (
            "two keep the clock",
            "time daemon",
            "warn",
            "systemctl disable --now systemd-timesyncd",
            |host| host.write("proc/813/comm", "systemd-timesyn\n"),
        ),
        ("a metal host without drivers", "CPU sensors", "warn", "modprobe coretemp", |host| {
            host.remove("sys/class/hwmon")
        }),
        ("a fan that stands still", "CPU sensors", "fail", "fans", |host| {
            host.write("sys/class/hwmon/hwmon0/temp1_input", "97000\n")
        }),
        ("an old login limit", "open files", "warn", "LimitNOFILE=201024", |host| {
            host.replace("proc/self/limits", "1048576", "4096")
        }),
        ("a tuned-down listen queue", "net.core.somaxconn", "warn", "somaxconn=4096", |host| {
            host.write("proc/sys/net/core/somaxconn", "128\n")
        }),
    ];
    for (name, topic, level, remedy, harm) in hosts {
        let (status, report) = report(harm).with_context(|| name.to_owned())?;
        let faults = ill(&report);
        let [fault] = &faults[..] else { panic!("{name}: {faults:?}") };
        assert_eq!((&fault["topic"], &fault["level"]), (&topic.into(), &level.into()), "{name}");
        assert_eq!(status, Some(i32::from(level == "fail")), "{name}");
        let told = fault["remedy"].as_str().unwrap_or_default();
        assert!(told.contains(remedy), "{name}: {told}");
    }

    // A guest whose hypervisor lets it ask, without sensors of its own: nothing is amiss.
    let (status, guest) = report(|host| {
        host.virtio(&[0, 1, 2, 5, 7, 8, 32])?;
        host.remove("sys/class/hwmon")?;
        host.replace("proc/cpuinfo", "sse2", "sse2 hypervisor")
    })?;
    assert_eq!((status, ill(&guest)), (Some(0), Vec::new()), "{guest}");
    Ok(())
}

/// Every file below a directory, with what a write would change.
fn state(directory: &Path) -> Result<BTreeMap<PathBuf, (u64, SystemTime)>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(place) = left.pop() {
        let metadata = place.symlink_metadata()?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&place)? {
                left.push(entry?.path());
            }
        }
        found.insert(place, (metadata.len(), metadata.modified()?));
    }
    Ok(found)
}

/// Makes every mount of a namespace of its own read-only, as far as it goes, sees that it did where the
/// files are, and runs the rest of its words.
const READ_ONLY: &str = r#"
cut -d ' ' -f 2 /proc/self/mounts | while read -r place; do
    mount -o remount,bind,ro "$place" 2>/dev/null
done
if touch "$0/written" 2>/dev/null; then echo "still writable" >&2; exit 99; fi
exec "$@"
"#;

#[test]
fn looking_and_judging_write_nothing() -> Result<()> {
    privileged!();
    let mut site = Site::new(binary(), "looks")?;
    site.guard("");
    let launch = site.launch()?;
    let before = state(site.directory.path())?;
    let read_only = |words: &[&str]| {
        let mut command = site.gateway_host.command("unshare");
        command.args(["--mount", "sh", "-c", READ_ONLY]).arg(site.directory.path());
        command.arg(binary()).arg("--config").arg(&launch.config).args(words);
        process::run(&mut command)
    };
    let (free, bound) = (launch.ended(&["check", "--json"])?, read_only(&["check", "--json"])?);
    assert_eq!((free.status, free.stdout), (bound.status, bound.stdout), "{}", bound.stderr);

    let (free, bound) = (launch.ended(&["doctor", "--json"])?, read_only(&["doctor", "--json"])?);
    let judged = |text: &str| -> Result<Vec<(Value, Value)>> {
        let report: Value = serde_json::from_str(text)?;
        let findings = report["findings"].as_array().context("findings")?;
        // Figures of the clock and the CPU may have moved on, and another test may have its own chronyd.
        let moves =
            |topic: Option<&str>| matches!(topic, Some("clock" | "CPU sensors" | "time daemon"));
        let still = |finding: &&Value| !moves(finding["topic"].as_str());
        let pair = |finding: &Value| (finding["topic"].clone(), finding["level"].clone());
        Ok(findings.iter().filter(still).map(pair).collect())
    };
    assert_eq!(judged(&free.stdout)?, judged(&bound.stdout)?, "{}", bound.stderr);
    assert_eq!(state(site.directory.path())?, before);
    assert!(!site.pins.exists());
    Ok(())
}
