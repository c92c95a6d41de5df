//! CPU sensors and throttle counters below `/sys`.
//!
//! Two families: `class/hwmon` (a driver for a chip, several inputs) and `class/thermal` (zones of the
//! firmware). Of both only what measures a CPU counts: a disk at 60 °C is no reason to shed requests.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Sensors that are looked at: two sockets of 128 cores each.
const SENSORS_MAX: usize = 256;

/// CPUs whose throttle counters are added up.
const CPUS_MAX: usize = 4_096;

/// Drivers of hwmon that measure CPUs (Documentation/hwmon of Linux 6.12), and common names of SoCs.
const CPU_DRIVERS: [&str; 10] = [
    "coretemp",
    "k10temp",
    "k8temp",
    "fam15h_power",
    "zenpower",
    "via_cputemp",
    "cpu_thermal",
    "cpu-thermal",
    "soc_thermal",
    "scpi_sensors",
];

/// Parts of the names of zones that measure CPUs.
const CPU_ZONES: [&str; 4] = ["cpu", "pkg_temp", "soc", "acpitz"];

/// What a sensor can honestly say; anything else is a broken one.
const PLAUSIBLE_C: std::ops::RangeInclusive<f64> = -40.0..=150.0;

/// One CPU sensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensor {
    /// Where it is and what it is called there, as in `hwmon0 coretemp Package id 0`.
    pub name: String,
    /// °C; `None` when it cannot be read or is not plausible.
    pub celsius: Option<f64>,
}

/// All CPU sensors of a tree like `/sys`.
pub fn sensors(sysfs: &Path) -> Vec<Sensor> {
    let mut sensors = chips(&sysfs.join("class/hwmon"));
    sensors.extend(zones(&sysfs.join("class/thermal")));
    sensors.truncate(SENSORS_MAX);
    sensors
}

fn chips(directory: &Path) -> Vec<Sensor> {
    let mut sensors = Vec::new();
    for chip in entries(directory) {
        let driver = text(&chip.join("name")).unwrap_or_default();
        if !CPU_DRIVERS.contains(&driver.as_str()) {
            continue;
        }
        for input in entries(&chip) {
            let file = last(&input);
            let Some(number) =
                file.strip_prefix("temp").and_then(|rest| rest.strip_suffix("_input"))
            else {
                continue;
            };
            let label = text(&chip.join(format!("temp{number}_label")));
            let label = label.unwrap_or_else(|| format!("temp{number}"));
            let name = format!("{} {driver} {label}", last(&chip));
            sensors.push(Sensor { name, celsius: celsius(&input) });
            if sensors.len() >= SENSORS_MAX {
                return sensors;
            }
        }
    }
    sensors
}

fn zones(directory: &Path) -> Vec<Sensor> {
    let zones =
        entries(directory).into_iter().filter(|zone| last(zone).starts_with("thermal_zone"));
    zones
        .filter_map(|zone| {
            let kind = text(&zone.join("type"))?;
            let lower = kind.to_ascii_lowercase();
            let is_cpu = CPU_ZONES.iter().any(|part| lower.contains(part));
            is_cpu.then(|| Sensor {
                name: format!("{} {kind}", last(&zone)),
                celsius: celsius(&zone.join("temp")),
            })
        })
        .collect()
}

/// Thousandths of a degree (Documentation/hwmon/sysfs-interface.rst).
fn celsius(file: &Path) -> Option<f64> {
    let thousandths: i64 = text(file)?.parse().ok()?;
    let celsius = thousandths as f64 / 1000.0;
    PLAUSIBLE_C.contains(&celsius).then_some(celsius)
}

/// How often the CPUs have been slowed down because they were hot, all added up; `None` where the kernel
/// does not count it (Intel's do, since Linux 2.6.30).
pub fn throttle_events(sysfs: &Path) -> Option<u64> {
    let mut cores = None;
    let mut packages: BTreeMap<String, u64> = BTreeMap::new();
    for cpu in entries(&sysfs.join("devices/system/cpu")).into_iter().take(CPUS_MAX) {
        let counters = cpu.join("thermal_throttle");
        let count = |file: &str| text(&counters.join(file))?.parse::<u64>().ok();
        if let Some(count) = count("core_throttle_count") {
            cores = Some(cores.unwrap_or(0) + count);
        }
        if let Some(count) = count("package_throttle_count") {
            // Every CPU of a package tells the package's count.
            let package = text(&cpu.join("topology/physical_package_id")).unwrap_or_default();
            let known = packages.entry(package).or_default();
            *known = (*known).max(count);
        }
    }
    let packages = packages.values().copied().reduce(|sum, count| sum + count);
    match (cores, packages) {
        (None, None) => None,
        (cores, packages) => Some(cores.unwrap_or(0) + packages.unwrap_or(0)),
    }
}

/// What is in a directory, by name; nothing where there is none.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn last(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// One line of one of the kernel's small files.
fn text(file: &Path) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    Some(text.lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = tree.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    #[test]
    fn finds_what_measures_a_cpu_and_nothing_else() {
        let tree = tree(&[
            ("class/hwmon/hwmon0/name", "nvme\n"),
            ("class/hwmon/hwmon0/temp1_input", "60000\n"),
            ("class/hwmon/hwmon1/name", "coretemp\n"),
            ("class/hwmon/hwmon1/temp1_input", "71500\n"),
            ("class/hwmon/hwmon1/temp1_label", "Package id 0\n"),
            ("class/hwmon/hwmon1/temp1_max", "95000\n"),
            ("class/hwmon/hwmon1/temp2_input", "nonsense\n"),
            ("class/hwmon/hwmon1/temp3_input", "-127000\n"),
            ("class/thermal/thermal_zone0/type", "x86_pkg_temp\n"),
            ("class/thermal/thermal_zone0/temp", "70000\n"),
            ("class/thermal/thermal_zone1/type", "iwlwifi_1\n"),
            ("class/thermal/thermal_zone1/temp", "90000\n"),
            ("class/thermal/cooling_device0/type", "cpu\n"),
        ]);
        let found = sensors(tree.path());
        let sensor = |name: &str, celsius| Sensor { name: name.to_owned(), celsius };
        assert_eq!(
            found,
            [
                sensor("hwmon1 coretemp Package id 0", Some(71.5)),
                sensor("hwmon1 coretemp temp2", None),
                sensor("hwmon1 coretemp temp3", None),
                sensor("thermal_zone0 x86_pkg_temp", Some(70.0)),
            ]
        );
        assert_eq!(sensors(&tree.path().join("nowhere")), []);
    }

    #[test]
    fn adds_up_cores_and_counts_a_package_once() {
        for (files, expected) in [
            (vec![], None),
            (
                vec![("devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n")],
                Some(3),
            ),
            (
                vec![
                    ("devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n"),
                    ("devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", "10\n"),
                    ("devices/system/cpu/cpu0/topology/physical_package_id", "0\n"),
                    ("devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4\n"),
                    ("devices/system/cpu/cpu1/thermal_throttle/package_throttle_count", "11\n"),
                    ("devices/system/cpu/cpu1/topology/physical_package_id", "0\n"),
                    ("devices/system/cpu/cpu2/thermal_throttle/package_throttle_count", "100\n"),
                    ("devices/system/cpu/cpu2/topology/physical_package_id", "1\n"),
                ],
                Some(3 + 4 + 11 + 100),
            ),
        ] {
            assert_eq!(throttle_events(tree(&files).path()), expected, "{files:?}");
        }
    }
}
