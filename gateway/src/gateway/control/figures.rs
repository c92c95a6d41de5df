//! What the page for a person shows, put together from what the control thread knows.

use std::time::{Duration, Instant};

use super::{
    Control,
    status::{packet_row, xdp_status},
};
use crate::{
    admin::{
        page::{self, Bans, Certificate, Figures, Handshakes, Xdp},
        socket::CountRow,
    },
    config::Config,
    policy::Reason,
    snapshot::Snapshot,
    time,
};

/// Figures are as old as this at the most: whoever asks more often, or many at once, get the same, so that
/// pages left open cost the daemon no more than one does.
const KEPT: Duration = Duration::from_millis(500);

/// Figures that were given, and when.
pub(super) type Kept = Option<(Instant, String)>;

impl Control {
    /// The figures as JSON.
    pub(in crate::gateway) async fn figures(&self) -> String {
        let now = time::monotonic();
        if let Some((at, text)) = self.figures_kept.borrow().as_ref()
            && now.saturating_duration_since(*at) < KEPT
        {
            return text.clone();
        }
        let figures = self.look_at_figures().await;
        // Plain structures with words for keys always have a JSON form.
        let text = serde_json::to_string(&figures).unwrap_or_default();
        *self.figures_kept.borrow_mut() = Some((now, text.clone()));
        text
    }

    async fn look_at_figures(&self) -> Figures {
        let counted = self.counted().await;
        let status = self.status();
        let bans = self.ban_rows().unwrap_or_default();
        let operator = bans.iter().filter(|row| row.origin == "operator").count();
        let sum = |counts: &[u64]| counts.iter().sum();
        let refusals = Reason::ALL.iter().filter_map(|reason| {
            let of = |counts: &std::collections::BTreeMap<Reason, u64>| {
                counts.get(reason).copied().unwrap_or_default()
            };
            let count = of(&counted.refusals) + of(&counted.handshake_failures);
            (count > 0).then(|| CountRow { name: reason.word().to_owned(), count, per_s: 0.0 })
        });
        Figures {
            at_s: time::monotonic().saturating_duration_since(self.started_at).as_secs_f64(),
            run: self.shared.run_id.to_string(),
            ready: status.ready,
            why_not: status.not_ready.clone(),
            notes: self.notes(),
            generation: status.generation,
            workers: status.workers,
            connections: status.connections,
            requests: counted.request_duration.count(),
            request_seconds: counted.request_duration.sum_s(),
            refusals: refusals.collect(),
            handshakes: Handshakes {
                done: sum(&counted.handshakes),
                resumed: sum(&counted.handshakes_resumed),
                failed: sum(&counted.handshakes_failed),
            },
            bans: Bans { evidence: bans.len() - operator, operator },
            xdp: self.xdp_figures(),
            certificates: certificates(
                &self.config.borrow(),
                &self.shared.published.load(),
                time::unix().as_secs(),
            ),
            upstreams: page::upstreams(&status),
            refused_files: status.refused_files.len(),
            host: status.host,
            version: status.version,
        }
    }

    fn xdp_figures(&self) -> Option<Xdp> {
        let kernel = self.told_kernel();
        let kernel = kernel.as_ref()?;
        let counters = kernel.counters().unwrap_or_default();
        let packets: Vec<_> = counters.into_iter().map(packet_row).collect();
        let status = xdp_status(kernel);
        Some(Xdp::new(status.enforce, status.interfaces, &packets))
    }
}

fn certificates(config: &Config, snapshot: &Snapshot, now_s: u64) -> Vec<Certificate> {
    let sites = config.listeners.iter().zip(snapshot.listeners.configured());
    let all = sites.flat_map(|(listener, tls)| {
        tls.sites.iter().map(|site| {
            let start_s = site.certificate.not_before.as_secs();
            let end_s = site.certificate.not_after.as_secs();
            let whole_s = end_s.saturating_sub(start_s).max(1);
            Certificate {
                listener: listener.name.clone(),
                site: site.names.first().cloned().unwrap_or_default(),
                remaining_s: end_s.cast_signed() - now_s.cast_signed(),
                left_ratio: end_s.saturating_sub(now_s) as f64 / whole_s as f64,
            }
        })
    });
    page::certificates(all.collect())
}
