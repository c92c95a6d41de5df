//! `[host]`: limits that must be apart.

use super::{
    super::{Host, file},
    Check,
};
use crate::host::{assess::Temperatures, clock::ClockLimits};

/// Three stages lie between; sensors tell whole degrees and waver by one or two.
const DEGREES_APART_MIN: i32 = 6;

impl Check<'_> {
    pub(super) fn host(&self, written: &file::Host) -> Host {
        let (warn, critical) = (&written.temperature_warn, &written.temperature_critical);
        if critical.value < warn.value.saturating_add(DEGREES_APART_MIN) {
            let text = format!(
                "host.cpu_temperature has critical = {} with warn = {}; write critical at least \
                 {DEGREES_APART_MIN} degrees above warn, for three stages lie between",
                critical.value, warn.value
            );
            self.contradiction(critical.place, text);
        }
        let (clock_warn, clock_critical) = (&written.clock_warn, &written.clock_critical);
        if clock_critical.value <= clock_warn.value {
            let text = format!(
                "host.clock has critical = {:?} with warn = {:?}; write critical above warn",
                humantime::format_duration(clock_critical.value).to_string(),
                humantime::format_duration(clock_warn.value).to_string()
            );
            self.contradiction(clock_critical.place, text);
        }
        Host {
            cpu_temperature: Temperatures {
                warn_c: f64::from(warn.value),
                critical_c: f64::from(critical.value),
            },
            clock: ClockLimits { warn: clock_warn.value, critical: clock_critical.value },
            chrony: written.chrony.value,
            sysfs: written.sysfs.value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::fake::Fake;

    #[test]
    fn limits_are_apart() {
        for (host, said) in [
            ("", None),
            ("cpu_temperature = { warn = 60, critical = 66 }", None),
            ("cpu_temperature = { critical = 90 }\nclock = { warn = \"1s\" }\nchrony = \"\"", None),
            ("cpu_temperature = { warn = 90 }", Some("at least 6 degrees above warn")),
            ("cpu_temperature = { warn = 200 }", Some("write a number from 0 to 150")),
            ("clock = { warn = \"1m\" }", Some("write critical above warn")),
            ("clock = { warn = \"0s\" }", Some("host.clock.warn")),
            ("sysfs = \"sys\"", Some("host.sysfs")),
            ("chrony = \"chrony\"", Some("host.chrony")),
        ] {
            // The rest is missing, which is said too.
            let problems = Fake::new().load(&format!("[host]\n{host}\n")).unwrap_err();
            let problems = problems.to_string();
            let lines: Vec<&str> = problems.lines().filter(|line| line.contains("host.")).collect();
            match said {
                None => assert_eq!(lines, [""; 0], "{host}"),
                Some(said) => {
                    assert!(lines.len() == 1 && lines[0].contains(said), "{host}: {lines:?}");
                }
            }
        }
    }
}
