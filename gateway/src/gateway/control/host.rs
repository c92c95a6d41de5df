//! The host's part of the control thread: a look a second, and what follows from it.

use std::{rc::Rc, time::Duration};

use tokio::{task::spawn_blocking, time::MissedTickBehavior};

use super::{super::kernel_settings, Control, upstreams::networks};
use crate::{
    admin::{
        metrics::Reading,
        socket::{ClockStatus, HostStatus},
    },
    host::{
        Stage, View,
        assess::Assessor,
        clock::{ClockState, ClockTrust},
        sample::{Look, Places, look},
    },
    kernel::{Rate, Settings},
    time,
};

/// From one look to the next: heat takes seconds to build up.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the host.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Watcher {
    assessor: Assessor,
    trust: ClockTrust,
    clock: ClockState,
    look: Option<Look>,
    /// Times that the wall's clock was set.
    steps: u64,
    /// By how much the kernel's allowances are divided now.
    divisor: u32,
    /// CPU sensors that cannot be read, as the log was told last.
    failed_sensors: usize,
}

/// Looks until the process ends, where it keeps nobody waiting.
pub(in crate::gateway) async fn follow(control: Rc<Control>) {
    let mut due = tokio::time::interval(LOOK_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0_u32;
    loop {
        due.tick().await;
        number = number.wrapping_add(1);
        let places = control.places();
        // It fails only when the runtime ends, and then nobody asks for the host any more.
        let Ok(look) = spawn_blocking(move || look(&places, number)).await else { return };
        control.take(look);
    }
}

/// The same settings with the allowances for new connections and new sources divided: of rate and burst
/// alike, so that a burst lasts as long as before.
pub(super) fn tightened(settings: Settings, divisor: u32) -> Settings {
    let divided = |rate: Rate| Rate {
        per_s: (rate.per_s / divisor).max(1),
        burst: (rate.burst / divisor).max(1),
    };
    Settings {
        connections: settings.connections.map(divided),
        new_sources: settings.new_sources.map(divided),
        ..settings
    }
}

impl Control {
    /// By how much the kernel's allowances are to be divided.
    pub(super) fn divisor(&self) -> u32 {
        self.host.borrow().assessor.stage().0.divisor()
    }

    fn places(&self) -> Places {
        let config = self.config.borrow();
        let interfaces = config.xdp.as_ref().map(|settings| settings.interfaces.clone());
        Places {
            sysfs: config.host.sysfs.clone(),
            chrony: config.host.chrony,
            interfaces: interfaces.unwrap_or_default(),
        }
    }

    /// Judges a look, and tells everybody whom it concerns.
    fn take(&self, look: Look) {
        let (limits, now) = (self.config.borrow().host.clone(), time::monotonic());
        let mut watcher = self.host.borrow_mut();
        let before = watcher.assessor.stage().0;
        let stage = watcher.assessor.look(&look.sample, limits.cpu_temperature, now);
        let why = watcher.assessor.stage().1.map(str::to_owned);
        if stage != before {
            tell_stage(stage, before, why.as_deref());
        }
        let since = now.saturating_duration_since(self.started_at);
        // A clock before 1970 stands still here, and steps when it is set.
        let wall = time::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let step_s = watcher.trust.step_s(wall, since);
        if step_s != 0.0 {
            watcher.steps += 1;
            tracing::warn!(
                step_s,
                "the clock was set: certificates and tokens are judged by another time now"
            );
        }
        let state = watcher.trust.look(&look.clock, limits.clock);
        let leeway_max = watcher.trust.leeway_max();
        if state != watcher.clock {
            watcher.clock = state;
            tell_clock(state, &look, leeway_max);
        }
        let failed = look.sample.sensors.iter().filter(|sensor| sensor.celsius.is_none()).count();
        if failed > watcher.failed_sensors {
            tracing::warn!(failed, "CPU sensors cannot be read, or say what cannot be");
        }
        watcher.failed_sensors = failed;
        let view = View { stage, why, leeway_max, clock: look.clock };
        watcher.look = Some(look);
        let divisor = stage.divisor();
        let has_turned = divisor != watcher.divisor.max(1);
        watcher.divisor = divisor;
        drop(watcher);
        self.shared.host.store(view.into());
        if has_turned {
            self.tighten(divisor);
        }
    }

    fn tighten(&self, divisor: u32) {
        match self.rewrite_kernel() {
            Ok(false) => {}
            Ok(true) => tracing::warn!(divisor, "allowances for new connections in the kernel"),
            Err(why) => tracing::error!(detail = why, "allowances in the kernel not changed"),
        }
    }

    /// Writes the kernel's settings as they are in force: with the addresses of upstreams, the divided
    /// allowances, and dropping or not as it does now, for an operator may have switched that. False
    /// without a kernel half.
    pub(super) fn rewrite_kernel(&self) -> Result<bool, String> {
        let upstreams = networks(&self.addresses.borrow());
        let settings = kernel_settings(&self.config.borrow(), &upstreams);
        let settings = settings.map_err(|error| error.to_string())?;
        let mut kernel = self.kernel.borrow_mut();
        let (Some(kernel), Some(settings)) = (kernel.as_mut(), settings) else { return Ok(false) };
        let enforce = kernel.status().enforce;
        let settings = Settings { enforce, ..tightened(settings, self.divisor()) };
        for notice in kernel.apply(&settings).map_err(|error| error.to_string())? {
            tracing::info!(detail = %notice, "xdp");
        }
        Ok(true)
    }

    /// Why the host should get no traffic.
    pub(super) fn host_readiness(&self) -> Result<(), String> {
        let watcher = self.host.borrow();
        if let (Stage::Critical, why) = watcher.assessor.stage() {
            return Err(format!("too hot: {}", why.unwrap_or("see the log")));
        }
        if watcher.clock == ClockState::Lost {
            let error_s = watcher.look.as_ref().map_or(0.0, |look| look.clock.error_s);
            return Err(format!(
                "clock lost: it is off by up to {error_s:.1} s; look at its sources (chronyc sources)"
            ));
        }
        Ok(())
    }

    /// What whoever asks whether it is ready should know besides.
    pub(in crate::gateway) fn notes(&self) -> Vec<String> {
        let watcher = self.host.borrow();
        let mut notes = Vec::new();
        if let (stage, Some(why)) = watcher.assessor.stage() {
            notes.push(format!("host {stage}: {why}"));
        }
        match watcher.clock {
            ClockState::Unsynchronized => notes.push("the clock is not synchronised".to_owned()),
            ClockState::Off => {
                notes.push("the clock is off by more than [host].clock.warn".to_owned())
            }
            ClockState::Unseen | ClockState::Good | ClockState::Lost => {}
        }
        notes
    }

    /// For `portcullis status`.
    pub(super) fn host_status(&self) -> Option<HostStatus> {
        let watcher = self.host.borrow();
        let look = watcher.look.as_ref()?;
        let (stage, why) = watcher.assessor.stage();
        let working = look.sample.sensors.iter();
        let celsius = working.filter_map(|sensor| sensor.celsius).reduce(f64::max);
        let clock = &look.clock;
        let is_known = clock.is_synchronized.is_some();
        Some(HostStatus {
            stage: stage.word().to_owned(),
            why: why.map(str::to_owned),
            celsius,
            throttle_events: look.sample.throttle_events,
            clock: ClockStatus {
                keeper: clock.keeper.word().to_owned(),
                synchronized: clock.is_synchronized,
                offset_s: is_known.then_some(clock.offset_s),
                max_error_s: is_known.then_some(clock.max_error_s),
                leeway_s: self.leeway().map(|leeway| leeway.as_secs()),
            },
        })
    }

    /// The longest leeway that any issuer's tokens are granted now.
    fn leeway(&self) -> Option<Duration> {
        let leeway_max = self.host.borrow().trust.leeway_max();
        let config = self.config.borrow();
        let granted = config.issuers.iter().map(|issuer| issuer.rules.leeway.min(leeway_max));
        granted.max()
    }

    /// For the page of metrics.
    pub(super) fn host_readings(&self) -> Vec<Reading> {
        let watcher = self.host.borrow();
        let Some(look) = &watcher.look else { return Vec::new() };
        let one = |value: f64| vec![(Vec::new(), value)];
        let maybe = |value: Option<f64>| value.map_or_else(Vec::new, one);
        let gauge = |name, help, series| Reading { name, help, kind: "gauge", series };
        let counter = |name, help, series| Reading { name, help, kind: "counter", series };
        let (clock, pressure) = (&look.clock, &look.sample.pressure);
        let known = |value| maybe(clock.is_synchronized.map(|_| value));
        let temperatures =
            look.sample.sensors.iter().filter_map(|sensor| {
                Some((vec![("sensor", sensor.name.clone())], sensor.celsius?))
            });
        let dropped = pressure.interface_dropped.iter();
        let dropped =
            dropped.map(|(name, count)| (vec![("interface", name.clone())], *count as f64));
        let count = |value: Option<u64>| maybe(value.map(|value| value as f64));
        let flag = |value: bool| f64::from(u8::from(value));
        let stage = f64::from(watcher.assessor.stage().0 as u8);
        let leeway = maybe(self.leeway().map(|leeway| leeway.as_secs_f64()));
        vec![
            gauge("gateway_host_cpu_temperature_celsius", "CPU sensors.", temperatures.collect()),
            gauge(
                "gateway_host_sensors_failed",
                "CPU sensors that cannot be read, or say what cannot be.",
                one(watcher.failed_sensors as f64),
            ),
            counter(
                "gateway_host_cpu_throttle_events_total",
                "Times that CPUs were slowed down because they were hot.",
                count(look.sample.throttle_events),
            ),
            gauge(
                "gateway_host_load_stage",
                "What is shed: 0 nothing, 1 nothing yet, 2 strangers, 3 routes of low priority, 4 all.",
                one(stage),
            ),
            gauge(
                "gateway_host_clock_offset_seconds",
                "How far the clock is ahead, as its keeper knows; none without one.",
                known(clock.offset_s),
            ),
            gauge(
                "gateway_host_clock_max_error_seconds",
                "The clock is at most this far off, as its keeper says; none without one.",
                known(clock.max_error_s),
            ),
            gauge(
                "gateway_host_clock_synchronized",
                "1 when something keeps the clock right, 0 when nothing does; none when nobody knows.",
                maybe(clock.is_synchronized.map(flag)),
            ),
            counter(
                "gateway_host_clock_steps_total",
                "Times that the clock was set while the daemon ran.",
                one(watcher.steps as f64),
            ),
            gauge(
                "gateway_token_leeway_seconds",
                "The longest leeway that tokens are granted now.",
                leeway,
            ),
            gauge(
                "gateway_host_memory_available_ratio",
                "Part of the memory that is available.",
                maybe(pressure.memory_available),
            ),
            gauge(
                "gateway_host_memory_stall_ratio",
                "Part of the last ten seconds in which nobody got on for want of memory.",
                maybe(pressure.memory_stall_percent.map(|percent| percent / 100.0)),
            ),
            gauge(
                "gateway_host_cpu_stall_ratio",
                "Part of the last ten seconds in which somebody waited for a CPU.",
                maybe(pressure.cpu_stall_percent.map(|percent| percent / 100.0)),
            ),
            gauge(
                "gateway_host_descriptors_used_ratio",
                "Part of the daemon's descriptors that is in use.",
                maybe(pressure.descriptors_used),
            ),
            counter(
                "gateway_host_softirq_dropped_total",
                "Packets that found a CPU's queue full.",
                count(pressure.softirq_dropped),
            ),
            counter(
                "gateway_host_interface_dropped_total",
                "Packets that guarded interfaces dropped or had no room for.",
                dropped.collect(),
            ),
        ]
    }
}

fn tell_stage(stage: Stage, before: Stage, why: Option<&str>) {
    let (is, was) = (stage.word(), before.word());
    match stage > before {
        true if stage == Stage::Critical => tracing::error!(stage = is, was, detail = why, "host"),
        true => tracing::warn!(stage = is, was, detail = why, "host"),
        false => tracing::info!(stage = is, was, detail = why, "host"),
    }
}

fn tell_clock(state: ClockState, look: &Look, leeway_max: Duration) {
    let clock = &look.clock;
    let (keeper, error_s) = (clock.keeper.word(), clock.error_s);
    match state {
        ClockState::Unseen => {}
        ClockState::Good => {
            tracing::info!(
                keeper,
                error_s,
                leeway_max_s = leeway_max.as_secs(),
                "clock synchronised"
            );
        }
        ClockState::Off => tracing::warn!(keeper, error_s, "clock is off by more than is usual"),
        ClockState::Unsynchronized => tracing::warn!(
            keeper,
            "clock not synchronised: enable time synchronisation (timedatectl set-ntp true, or chrony)"
        ),
        ClockState::Lost => tracing::error!(keeper, error_s, "clock lost: the node is not ready"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_connections_are_divided_and_nothing_else() {
        let rate = |per_s, burst| Some(Rate { per_s, burst });
        let settings = Settings {
            interfaces: vec!["eth0".to_owned()],
            mode: crate::kernel::Mode::Auto,
            enforce: true,
            ports: vec![443],
            management: Vec::new(),
            exempt: Vec::new(),
            deny: Vec::new(),
            packets: rate(1_000, 2_000),
            connections: rate(100, 200),
            bytes: Some(crate::kernel::ByteRate { bytes_per_s: 1_000, burst_bytes: 2_000 }),
            new_sources: None,
            max_sources: 1_000,
            pin: "/sys/fs/bpf/none".into(),
        };
        for (divisor, connections) in [(1, rate(100, 200)), (4, rate(25, 50)), (1_000, rate(1, 1))]
        {
            let expected = Settings { connections, ..settings.clone() };
            assert_eq!(
                format!("{:?}", tightened(settings.clone(), divisor)),
                format!("{expected:?}"),
                "{divisor}"
            );
        }
    }
}
