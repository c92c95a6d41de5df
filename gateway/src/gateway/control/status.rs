//! What operators are told when they ask: how the daemon is, what is known of a source, who sends most.

use std::{collections::BTreeMap, time::Instant};

use gateway_ebpf::verdict::Quota;
use ipnet::IpNet;

use super::{Control, source_of};
use crate::{
    admin::socket::{
        AllowanceRow, CertificateStatus, CountRow, Explanation, IssuerStatus, LimitStatus,
        Overview, PacketRow, PastRefusal, RefusedFile, SourceRow, Status, XdpInterface, XdpStatus,
    },
    config::{Issuer, KeySource},
    gateway::spared,
    identity::token::Keys,
    kernel::{self, Filter},
    policy::{
        limit::{Limiter, Mode},
        penalty::overlaps,
    },
    time,
};

/// Sources that `portcullis top` is told of: more than a screen shows.
const TOP_SOURCES: usize = 50;

impl Control {
    pub(super) fn explain(&self, net: IpNet) -> Result<Explanation, String> {
        let Some(source) = source_of(net) else {
            return Err(
                "an IPv4 address or an IPv6 /64: limits and bans by evidence are kept for those"
                    .to_owned(),
            );
        };
        let within = |list: &[IpNet]| {
            list.iter()
                .find(|net| overlaps(std::slice::from_ref(net), source))
                .map(ToString::to_string)
        };
        let name = source.to_string();
        let ledger = self.ledger.borrow();
        let account = ledger.account(source, time::monotonic());
        let config = self.config.borrow();
        let spares = |net: &&IpNet| overlaps(std::slice::from_ref(*net), source);
        let never_banned = self.never.borrow().iter().find(spares).copied();
        let lately = account.iter().flat_map(|account| &account.lately);
        let kernel = self.kernel.borrow();
        let in_kernel = kernel.as_ref().map(|kernel| kernel.explain(source)).transpose();
        let in_kernel = in_kernel.map_err(|error| error.to_string())?;
        Ok(Explanation {
            exempt: within(&self.exempt.borrow()),
            never_banned: never_banned.map(|by| by.to_string()),
            never_banned_because: never_banned
                .map(|by| spared::why(&by, &config, &self.addresses.borrow()).to_string()),
            denied: config.xdp.as_ref().and_then(|settings| within(&settings.deny)),
            ban: self.ban_rows()?.into_iter().find(|row| {
                row.source == name || row.source.parse().is_ok_and(|net| overlaps(&[net], source))
            }),
            enforce: kernel.as_ref().map(|kernel| kernel.status().enforce),
            limits_doubled: in_kernel.as_ref().map_or(0, |state| state.class.doublings()),
            allowances: in_kernel
                .iter()
                .flat_map(|state| &state.allowances)
                .map(allowance)
                .collect(),
            points: account.as_ref().map_or(0.0, |account| (account.points * 10.0).round() / 10.0),
            threshold: ledger.threshold_of(source, time::monotonic()).round() as u32,
            threshold_of_everybody: ledger.threshold(),
            good_clients: (ledger.good(source, time::monotonic()) * 10.0).round() / 10.0,
            next_level: account.as_ref().map_or(0, |account| account.level),
            lately: lately
                .map(|(reason, ago)| PastRefusal {
                    reason: reason.word().to_owned(),
                    ago_s: (ago.as_secs_f64() * 10.0).round() / 10.0,
                })
                .collect(),
            source: name,
        })
    }

    pub(super) fn status(&self) -> Status {
        let config = self.config.borrow();
        let now_s = time::unix().as_secs();
        let snapshot = self.shared.published.load();
        let certificates = config
            .listeners
            .iter()
            .zip(snapshot.listeners.configured())
            .flat_map(|(listener, tls)| {
                let sites = listener.tls.sites.iter().zip(tls.sites.iter());
                sites.map(move |(site, serving)| (listener, site, serving))
            })
            .map(|(listener, site, serving)| {
                let not_after_s = serving.certificate.not_after.as_secs();
                CertificateStatus {
                    listener: listener.name.clone(),
                    file: site.certificate.clone(),
                    not_after_s,
                    remaining_s: not_after_s.cast_signed() - now_s.cast_signed(),
                }
            })
            .collect();
        let issuers = config
            .issuers
            .iter()
            .zip(snapshot.issuers.iter())
            .map(|(issuer, (_, keys))| self.issuer_status(issuer, keys))
            .collect();
        let readiness = self.readiness();
        let now = time::monotonic();
        Status {
            host: self.host_status(),
            limits: snapshot.limits.iter().map(|limiter| limit_status(limiter, now)).collect(),
            issuers,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: readiness.is_ok(),
            not_ready: readiness.err(),
            generation: self.generation.get(),
            workers: self.workers.len(),
            connections: self.shared.admission.open(),
            bans: self.ban_rows().map_or(0, |rows| rows.len()),
            uptime_s: time::monotonic().saturating_duration_since(self.started_at).as_secs(),
            xdp: self.kernel.borrow().as_ref().map(xdp_status),
            confinement: Some(self.confinement_status()),
            takes_over: self.succession.borrow().is_going_on(),
            drain: self.drain_row(),
            certificates,
            upstreams: self.upstream_status(),
            refused_files: self.followed(|files| {
                let refused = files.refused().iter().map(|(file, detail)| RefusedFile {
                    file: file.clone(),
                    detail: detail.clone(),
                });
                refused.collect()
            }),
        }
    }

    pub(super) fn issuer_status(&self, issuer: &Issuer, keys: &Keys) -> IssuerStatus {
        let fetching = self.issuer_keys.borrow();
        let standing = fetching.standing(&issuer.rules.name, time::monotonic());
        IssuerStatus {
            name: issuer.rules.name.clone(),
            keys_from: match &issuer.keys {
                KeySource::File(file) => file.display().to_string(),
                KeySource::Remote(remote) => remote.location.url().to_string(),
            },
            available: matches!(keys, Keys::Known(_)),
            keys: match keys {
                Keys::Known(set) => {
                    set.key_ids().map(|kid| kid.unwrap_or("(no kid)").to_owned()).collect()
                }
                Keys::Unavailable => Vec::new(),
            },
            age_s: standing.as_ref().and_then(|standing| Some(standing.age?.as_secs())),
            next_fetch_s: standing.as_ref().and_then(|standing| Some(standing.next_in?.as_secs())),
            last_error: standing.and_then(|standing| standing.last_error.map(str::to_owned)),
        }
    }

    /// What is going on.
    pub(in crate::gateway) async fn top(&self) -> Result<Overview, String> {
        let counted = self.counted().await;
        let mut kernel = self.kernel.borrow_mut();
        let (mut packets, mut sources) = (Vec::new(), Vec::new());
        if let Some(kernel) = kernel.as_mut() {
            let counts = kernel.counters().map_err(|error| error.to_string())?;
            packets = counts.into_iter().map(packet_row).collect();
            let top = kernel.top(TOP_SOURCES).map_err(|error| error.to_string())?;
            sources = top
                .into_iter()
                .map(|source| SourceRow {
                    source: source.net.to_string(),
                    allowances: source.allowances.iter().map(allowance).collect(),
                })
                .collect();
        }
        drop(kernel);
        let mut refusals = BTreeMap::<&'static str, u64>::new();
        for (reason, count) in counted.refusals.iter().chain(&counted.handshake_failures) {
            *refusals.entry(reason.word()).or_default() += count;
        }
        let names = self.shared.consumers.names();
        let mut consumers = BTreeMap::<&str, u64>::new();
        for ((consumer, _, _), count) in &counted.requests {
            *consumers.entry(consumer.name(&names)).or_default() += count;
        }
        let row_of = |name: String, count| CountRow { name, count, per_s: 0.0 };
        let row = |(name, count): (&str, u64)| row_of(name.to_owned(), count);
        let mut consumers: Vec<CountRow> = consumers.into_iter().map(row).collect();
        consumers.sort_by_key(|row| std::cmp::Reverse(row.count));
        Ok(Overview {
            at_s: time::monotonic().duration_since(self.started_at).as_secs_f64(),
            connections: self.shared.admission.open(),
            bans: self.ban_rows()?.len(),
            packets,
            sources,
            refusals: refusals.into_iter().map(row).collect(),
            consumers,
            limited: counted
                .limited
                .iter()
                .map(|((limit, subject), count)| row_of(format!("{limit}: {subject}"), *count))
                .collect(),
        })
    }
}

pub(super) fn limit_status(limiter: &Limiter, now: Instant) -> LimitStatus {
    let (limit, table) = (limiter.limit(), limiter.table());
    LimitStatus {
        name: limit.name.to_string(),
        key: limit.key.word().to_owned(),
        rates: limit.rates.iter().map(ToString::to_string).collect(),
        enforce: limit.mode == Mode::Enforce,
        consumers: table.active(now),
        entries: table.entries(),
    }
}

pub(super) fn xdp_status(kernel: &Filter) -> XdpStatus {
    let status = kernel.status();
    let interface = |interface: &kernel::InterfaceStatus| XdpInterface {
        name: interface.name.clone(),
        mode: interface.attached.map_or("none", |attached| attached.mode.word()).to_owned(),
        program_id: interface.attached.map_or(0, |attached| attached.program_id),
    };
    XdpStatus {
        enforce: status.enforce,
        interfaces: status.interfaces.iter().map(interface).collect(),
    }
}

pub(super) fn packet_row(count: kernel::Count) -> PacketRow {
    PacketRow {
        interface: count.interface,
        action: count.action.word().to_owned(),
        reason: count.reason.word().to_owned(),
        packets: count.packets,
        bytes: count.bytes,
        packets_per_s: 0.0,
    }
}

pub(super) fn allowance(allowance: &kernel::Allowance) -> AllowanceRow {
    let quota = match allowance.quota {
        Quota::Packets => "packets",
        Quota::Connections => "connections",
        Quota::Bytes => "bytes",
    };
    AllowanceRow {
        quota: quota.to_owned(),
        of: allowance.net.to_string(),
        left: allowance.left,
        burst: allowance.burst,
    }
}
