//! The page of metrics, put together from what workers, kernel and control thread count.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rustls_pki_types::UnixTime;
use tokio::sync::oneshot;

use super::{Control, status::xdp_status};
use crate::{
    admin::{
        metrics::{self, Reading, WorkerMetrics},
        socket::XdpInterface,
    },
    config::Config,
    kernel::{self, Filter},
    policy::limit::{Limiter, Limiters},
    snapshot::Snapshot,
    time,
};

/// A worker that does not give its counts within this is stuck, and its last ones are used.
const SCRAPE_MAX: Duration = Duration::from_secs(1);

impl Control {
    /// What all workers counted, asked of each.
    pub(super) async fn counted(&self) -> WorkerMetrics {
        let mut asked = Vec::new();
        for worker in &self.workers {
            let (sender, receiver) = oneshot::channel();
            // A full queue means that others are asking already; the last counts have to do.
            let sent = worker.scrape.try_send(sender).is_ok();
            asked.push(sent.then_some(receiver));
        }
        for (index, receiver) in asked.into_iter().enumerate() {
            let Some(receiver) = receiver else { continue };
            if let Ok(Ok(counts)) = tokio::time::timeout(SCRAPE_MAX, receiver).await {
                self.counted.borrow_mut()[index] = counts;
            }
        }
        let mut sum = WorkerMetrics::new(0);
        for counts in self.counted.borrow().iter() {
            sum.add(counts);
        }
        sum.log_lines_lost = self.shared.log.lost();
        sum
    }

    /// The whole page of metrics.
    pub(in crate::gateway) async fn metrics(&self) -> String {
        let sum = self.counted().await;
        let is_open = |place: usize| sum.connections.get(place).is_some_and(|open| *open > 0);
        let names = self.listeners.borrow().shown(is_open);
        metrics::page(
            &sum,
            &self.metrics.borrow(),
            &self.shared.consumers,
            &names,
            &self.readings(),
        )
    }

    pub(super) fn readings(&self) -> Vec<Reading> {
        let one = |value: f64| vec![(Vec::new(), value)];
        let mut readings = vec![
            Reading {
                name: "gateway_build_info",
                help: "Always 1; the labels say what runs.",
                kind: "gauge",
                series: vec![(
                    vec![
                        ("version", env!("CARGO_PKG_VERSION").to_owned()),
                        (
                            "commit",
                            option_env!("PORTCULLIS_COMMIT").unwrap_or("unknown").to_owned(),
                        ),
                    ],
                    1.0,
                )],
            },
            Reading {
                name: "gateway_ready",
                help: "1 while /ready says yes.",
                kind: "gauge",
                series: one(f64::from(u8::from(self.readiness().is_ok()))),
            },
            Reading {
                name: "gateway_config_generation",
                help: "Counts up with each applied configuration.",
                kind: "gauge",
                series: one(self.generation.get() as f64),
            },
        ];
        readings.extend(self.tls_readings());
        readings.extend(self.followed(|files| files.readings()));
        readings.extend(self.host_readings());
        readings.extend(self.issuer_keys(|keys| keys.readings(time::monotonic())));
        readings.extend(self.upstream_readings());
        readings.extend(self.agent_readings());
        let rows = self.ban_rows().unwrap_or_default();
        let active = |origin: &str| {
            let count = rows.iter().filter(|row| row.origin == origin).count();
            (vec![("origin", origin.to_owned())], count as f64)
        };
        readings.push(Reading {
            name: "gateway_bans_active",
            help: "Bans in force.",
            kind: "gauge",
            series: vec![active("evidence"), active("operator")],
        });
        readings.extend(limit_readings(&self.shared.published.load().limits, time::monotonic()));
        if let Some(kernel) = self.told_kernel().as_ref() {
            readings.extend(kernel_readings(kernel));
        }
        readings
    }

    pub(super) fn tls_readings(&self) -> [Reading; 4] {
        let snapshot = self.shared.published.load();
        let config = self.config.borrow();
        tls_readings(&config, &snapshot, time::unix())
    }
}

/// Ends of certificates and revocation lists.
pub(super) fn tls_readings(config: &Config, snapshot: &Snapshot, now: UnixTime) -> [Reading; 4] {
    let mut ends = Vec::new();
    let mut remaining = Vec::new();
    let mut updates = BTreeMap::new();
    let mut revoked = BTreeMap::new();
    for (listener, tls) in config.listeners.iter().zip(snapshot.listeners.configured()) {
        for site in tls.sites.iter() {
            let labels = vec![
                ("listener", listener.name.clone()),
                // The listener's own site has no name.
                ("site", site.names.first().cloned().unwrap_or_default()),
            ];
            let (start, end) = (site.certificate.not_before, site.certificate.not_after);
            ends.push((labels.clone(), end.as_secs() as f64));
            let whole = end.as_secs().saturating_sub(start.as_secs());
            let left = end.as_secs().saturating_sub(now.as_secs());
            remaining.push((labels, left as f64 / whole.max(1) as f64));
            for list in site.clients.iter().flat_map(|c| c.trust.revocations().lists()) {
                let labels = (listener.name.clone(), list.issuer().to_owned());
                updates.insert(labels.clone(), list.next_update().as_secs() as f64);
                revoked.insert(labels, list.revoked() as f64);
            }
        }
    }
    let by_issuer = |map: BTreeMap<(String, String), f64>| {
        let series =
            |((listener, issuer), value)| (vec![("listener", listener), ("issuer", issuer)], value);
        map.into_iter().map(series).collect()
    };
    let gauge = |name, help, series| Reading { name, help, kind: "gauge", series };
    [
        gauge(
            "gateway_tls_certificate_not_after_seconds",
            "End of the server certificate's validity, in seconds since 1970.",
            ends,
        ),
        gauge(
            "gateway_tls_certificate_lifetime_remaining_ratio",
            "Part of the server certificate's validity that is left; alert below 0.25.",
            remaining,
        ),
        gauge(
            "gateway_tls_crl_next_update_seconds",
            "When a revocation list is due to be renewed, in seconds since 1970.",
            by_issuer(updates),
        ),
        gauge("gateway_tls_crl_entries", "Certificates on a revocation list.", by_issuer(revoked)),
    ]
}

/// How full the tables of limits are.
pub(super) fn limit_readings(limits: &Limiters, now: Instant) -> [Reading; 2] {
    let series = |value: &dyn Fn(&Limiter) -> f64| {
        let of =
            |limiter: &Limiter| (vec![("limit", limiter.limit().name.to_string())], value(limiter));
        limits.iter().map(of).collect()
    };
    [
        Reading {
            name: "gateway_ratelimit_consumers",
            help: "Consumers that have used something of a limit.",
            kind: "gauge",
            series: series(&|limiter| limiter.table().active(now) as f64),
        },
        Reading {
            name: "gateway_ratelimit_forgotten_total",
            help: "Consumers forgotten before all of a limit was theirs again: entries is too small.",
            kind: "counter",
            series: series(&|limiter| limiter.table().forgotten() as f64),
        },
    ]
}

pub(super) fn kernel_readings(kernel: &Filter) -> Vec<Reading> {
    let counters = kernel.counters().unwrap_or_else(|error| {
        tracing::error!(error = %error, "counters of the XDP program not read");
        Vec::new()
    });
    let mut packets = Vec::new();
    let mut bytes = Vec::new();
    for count in &counters {
        let labels = vec![
            ("interface", count.interface.clone()),
            ("action", count.action.word().to_owned()),
            ("reason", count.reason.word().to_owned()),
        ];
        packets.push((labels.clone(), count.packets as f64));
        bytes.push((labels, count.bytes as f64));
    }
    let status = kernel.status();
    let mode = |interface: XdpInterface| {
        (vec![("interface", interface.name), ("mode", interface.mode)], 1.0)
    };
    let entries = |fill: &kernel::Fill| (vec![("map", fill.map.to_owned())], fill.used as f64);
    let limit = |fill: &kernel::Fill| (vec![("map", fill.map.to_owned())], f64::from(fill.limit));
    vec![
        Reading {
            name: "gateway_xdp_packets_total",
            help: "Frames judged in the kernel.",
            kind: "counter",
            series: packets,
        },
        Reading {
            name: "gateway_xdp_bytes_total",
            help: "Bytes of those frames.",
            kind: "counter",
            series: bytes,
        },
        Reading {
            name: "gateway_xdp_mode",
            help: "1 for the mode that the program is attached in.",
            kind: "gauge",
            series: xdp_status(kernel).interfaces.into_iter().map(mode).collect(),
        },
        Reading {
            name: "gateway_xdp_enforce",
            help: "1 when the program drops, 0 when it only counts.",
            kind: "gauge",
            series: vec![(Vec::new(), f64::from(u8::from(status.enforce)))],
        },
        Reading {
            name: "gateway_xdp_map_entries",
            help: "Entries in the kernel's maps.",
            kind: "gauge",
            series: status.fills.iter().map(entries).collect(),
        },
        Reading {
            name: "gateway_xdp_map_limit",
            help: "Entries that the kernel's maps can hold.",
            kind: "gauge",
            series: status.fills.iter().map(limit).collect(),
        },
        Reading {
            name: "gateway_xdp_bucket_evictions_total",
            help: "Buckets forgotten before they were full: max_sources is too small.",
            kind: "counter",
            series: vec![(Vec::new(), status.evictions as f64)],
        },
    ]
}
