//! Reads what [`super::assess`] and [`super::clock`] judge. Blocks: some sensors take milliseconds.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use nix::sys::resource::{Resource, getrlimit};

use super::{
    assess::Sample,
    chrony,
    clock::{self, ClockReading},
    pressure::{self, Pressure},
    temperature,
};

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `/sys`, or a test's own.
    pub sysfs: PathBuf,
    /// Where chronyd answers; `None`: it is not asked.
    pub chrony: Option<SocketAddr>,
    /// Interfaces whose drops are counted.
    pub interfaces: Vec<String>,
}

/// What one look found.
#[derive(Clone, Debug)]
pub struct Look {
    /// For the stages.
    pub sample: Sample,
    /// For the leeway.
    pub clock: ClockReading,
}

/// Looks at everything once. `number` tells chronyd's answers apart.
pub fn look(places: &Places, number: u32) -> Look {
    let tracking = places.chrony.and_then(|address| chrony::ask(address, number).ok());
    Look {
        sample: Sample {
            sensors: temperature::sensors(&places.sysfs),
            throttle_events: temperature::throttle_events(&places.sysfs),
            pressure: pressure(places),
        },
        clock: ClockReading::new(clock::kernel(), tracking.as_ref()),
    }
}

fn pressure(places: &Places) -> Pressure {
    let text = |file: &str| fs::read_to_string(Path::new("/proc").join(file)).ok();
    let dropped =
        |name: &String| Some((name.clone(), pressure::interface_dropped(&places.sysfs, name)?));
    Pressure {
        memory_stall_percent: text("pressure/memory")
            .and_then(|text| pressure::stall_percent(&text, "full")),
        cpu_stall_percent: text("pressure/cpu")
            .and_then(|text| pressure::stall_percent(&text, "some")),
        memory_available: text("meminfo").and_then(|text| pressure::memory_available(&text)),
        descriptors_used: descriptors_used(),
        softirq_dropped: text("net/softnet_stat").and_then(|text| pressure::softirq_dropped(&text)),
        interface_dropped: places.interfaces.iter().filter_map(dropped).collect(),
    }
}

/// The part of the limit that is in use.
fn descriptors_used() -> Option<f64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).ok().filter(|(limit, _)| *limit > 0)?;
    // Since Linux 6.2 the directory's size is the number of its entries; before it is 0.
    let told = fs::metadata("/proc/self/fd").ok()?.len();
    let open = match told {
        0 => fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        told => told,
    };
    Some(open as f64 / limit as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_host_can_be_looked_at() {
        let nowhere = tempfile::tempdir().unwrap();
        let places =
            Places { sysfs: nowhere.path().into(), chrony: None, interfaces: vec!["none".into()] };
        let look = look(&places, 1);
        assert_eq!((look.sample.sensors.len(), look.sample.throttle_events), (0, None));
        let pressure = look.sample.pressure;
        assert!(pressure.memory_available.is_some_and(|part| part > 0.0), "{pressure:?}");
        assert!(pressure.descriptors_used.is_some_and(|part| part > 0.0), "{pressure:?}");
        assert_eq!(pressure.interface_dropped, []);
    }
}
