//! What the host may run out of: memory, open files, time to take packets.
//!
//! Texts of `/proc` in, numbers out; [`super::sample`] reads the files. A figure that a kernel does not
//! give (pressure stall information is an option of it) is `None`, and judged as nothing.

use std::path::Path;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Percent of the last ten seconds in which nobody got on for want of memory
    /// (Documentation/accounting/psi.rst).
    pub memory_stall_percent: Option<f64>,
    /// Percent of the last ten seconds in which somebody waited for a CPU.
    pub cpu_stall_percent: Option<f64>,
    /// Part of the memory that is available.
    pub memory_available: Option<f64>,
    /// Part of the descriptors of this process that is in use.
    pub descriptors_used: Option<f64>,
    /// Packets that all CPUs dropped because their queue was full, since the start of the machine.
    pub softirq_dropped: Option<u64>,
    /// Packets that each watched interface dropped or missed, since it is there.
    pub interface_dropped: Vec<(String, u64)>,
}

/// The average over ten seconds in a file of `/proc/pressure`, of the line `some` or `full`.
pub fn stall_percent(text: &str, line: &str) -> Option<f64> {
    let fields = text.lines().find_map(|found| found.strip_prefix(line))?;
    let average = fields.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
    average.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

/// The part that `MemAvailable` is of `MemTotal` in `/proc/meminfo`.
pub fn memory_available(text: &str) -> Option<f64> {
    let kibibytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let total = kibibytes("MemTotal").filter(|total| *total > 0)?;
    Some((kibibytes("MemAvailable")? as f64 / total as f64).min(1.0))
}

/// The second column of `/proc/net/softnet_stat`, a line a CPU, in hexadecimal.
pub fn softirq_dropped(text: &str) -> Option<u64> {
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().map(dropped).sum()
}

/// What an interface's counters below `class/net` say it dropped or had no room for.
pub fn interface_dropped(sysfs: &Path, interface: &str) -> Option<u64> {
    let statistics = sysfs.join("class/net").join(interface).join("statistics");
    let count = |file: &str| {
        std::fs::read_to_string(statistics.join(file)).ok()?.trim().parse::<u64>().ok()
    };
    // Cards count what found their ring full as missed; it is no part of what the stack dropped.
    Some(count("rx_dropped")?.saturating_add(count("rx_missed_errors").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_are_read() {
        let memory = "some avg10=1.50 avg60=0.20 avg300=0.00 total=12\n\
                      full avg10=0.75 avg60=0.10 avg300=0.00 total=9\n";
        for (text, line, expected) in [
            (memory, "some", Some(1.5)),
            (memory, "full", Some(0.75)),
            ("some avg10=1.50\n", "full", None),
            ("full avg10=101\n", "full", None),
            ("full avg10=x\n", "full", None),
            ("", "some", None),
        ] {
            assert_eq!(stall_percent(text, line), expected, "{text:?} {line}");
        }
        for (text, expected) in [
            ("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\n", Some(0.25)),
            ("MemTotal:  0 kB\nMemAvailable:  250 kB\n", None),
            ("MemTotal:  1000 kB\n", None),
            ("", None),
        ] {
            assert_eq!(memory_available(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("00000010 00000002 00000000\n00000010 0000000a 00000000\n", Some(12)),
            ("00000010\n", None),
            ("x y\n", None),
        ] {
            assert_eq!(softirq_dropped(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_interfaces_counters_are_added_up() {
        let tree = tempfile::tempdir().unwrap();
        let statistics = tree.path().join("class/net/eth0/statistics");
        std::fs::create_dir_all(&statistics).unwrap();
        assert_eq!(interface_dropped(tree.path(), "eth0"), None);
        std::fs::write(statistics.join("rx_dropped"), "4\n").unwrap();
        assert_eq!(interface_dropped(tree.path(), "eth0"), Some(4));
        std::fs::write(statistics.join("rx_missed_errors"), "3\n").unwrap();
        assert_eq!(interface_dropped(tree.path(), "eth0"), Some(7));
    }
}
