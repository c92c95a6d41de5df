//! What a result depends on besides the code.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{cargo::root, harness::process};

/// The kernel's list of what it does about the processor's flaws.
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";

/// More sensors than a chip has.
const SENSORS_MAX: usize = 32;

/// Processor, kernel and the settings that a BPF program's speed depends on. What cannot be read is
/// left out.
pub fn describe(ns_per_jiffy: u64) -> Value {
    let mut machine = Map::new();
    let cpuinfo = text("/proc/cpuinfo").unwrap_or_default();
    let processor = processor(&cpuinfo);
    for (name, value) in [
        ("processor", processor),
        ("kernel", text("/proc/sys/kernel/osrelease")),
        ("clock_source", text("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        ("bpf_jit_enable", text("/proc/sys/net/core/bpf_jit_enable")),
        ("bpf_jit_harden", text("/proc/sys/net/core/bpf_jit_harden")),
        ("load_average", text("/proc/loadavg")),
    ] {
        if let Some(value) = value {
            machine.insert(name.to_owned(), Value::String(value));
        }
    }
    machine.insert("cores".to_owned(), json!(cores(&cpuinfo)));
    machine.insert("hz".to_owned(), json!(hz(ns_per_jiffy)));
    machine.insert("mitigations".to_owned(), Value::Object(mitigations()));
    Value::Object(machine)
}

/// What the hardware says of its heat at this moment: degrees of the hottest sensor, and how often it slowed
/// itself down. `null` where it says nothing, as most virtual machines do.
pub fn strain() -> Value {
    let numbers = |directory: &str, file: &dyn Fn(&Path) -> Vec<PathBuf>| -> Vec<f64> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let files = entries.flat_map(|entry| file(&entry.path()));
        files.filter_map(|file| text(file.to_str()?)?.parse().ok()).collect()
    };
    let heats = [
        numbers("/sys/class/thermal", &|zone| vec![zone.join("temp")]),
        numbers("/sys/class/hwmon", &|sensor| {
            (1..=SENSORS_MAX).map(|number| sensor.join(format!("temp{number}_input"))).collect()
        }),
    ];
    let throttled = numbers("/sys/devices/system/cpu", &|core| {
        ["core_throttle_count", "package_throttle_count"]
            .map(|name| core.join("thermal_throttle").join(name))
            .to_vec()
    });
    let hottest = heats.into_iter().flatten().reduce(f64::max);
    json!({
        // Both tell thousandths (Documentation/hwmon/sysfs-interface.rst).
        "temperature_c": hottest.map(|thousandths| thousandths / 1_000.0),
        "throttled": (!throttled.is_empty()).then(|| throttled.iter().sum::<f64>()),
    })
}

/// Ticks a second, from the length of one.
pub fn hz(ns_per_jiffy: u64) -> u64 {
    1_000_000_000 / ns_per_jiffy.max(1)
}

/// What was measured: the commit, and whether files differed from it.
///
/// # Errors
/// Without git or outside a repository.
pub fn commit() -> Result<String> {
    let git =
        |words: &[&str]| process::succeed(Command::new("git").current_dir(root()).args(words));
    let commit = git(&["rev-parse", "HEAD"])?.trim().to_owned();
    let is_clean = git(&["status", "--porcelain"])?.trim().is_empty();
    Ok(if is_clean { commit } else { format!("{commit}+changes") })
}

fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// All that there are: this process has left all but one.
fn cores(cpuinfo: &str) -> usize {
    cpuinfo.lines().filter(|line| line.starts_with("processor")).count()
}

/// Those that the processor is affected by.
fn mitigations() -> Map<String, Value> {
    let Ok(files) = fs::read_dir(VULNERABILITIES) else { return Map::new() };
    files
        .flatten()
        .filter_map(|file| {
            let state = text(Path::new(&file.path()).to_str()?)?;
            let name = file.file_name().into_string().ok()?;
            (state != "Not affected").then_some((name, Value::String(state)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_processor_and_the_tick() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n";
        assert_eq!(processor(text).as_deref(), Some("AMD EPYC"));
        assert_eq!((processor(""), cores(""), cores(text)), (None, 0, 1));
        assert_eq!([10_000_000, 4_000_000, 3_333_333].map(hz), [100, 250, 300]);
    }
}
