//! Bans: by evidence and by hand, in the kernel's table or in user space's, for a source or a prefix.

use std::{collections::HashSet, time::Duration};

use gateway_ebpf::Source;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Control, ORIGIN_EVIDENCE, ORIGIN_OPERATOR, UserBan, source_of};
use crate::{
    admin::socket::BanRow,
    gateway::spared,
    kernel::{Ban, BanOutcome, PrefixBan, PrefixBanOutcome},
    policy::{
        Reason,
        penalty::{Arrived, Block, Evidence, overlaps},
    },
    time,
};

/// Longest ban by hand: a year. What should last longer belongs into `[xdp].deny`.
const BAN_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Operators' notes kept at once.
const NOTES_MAX: usize = 4_096;

/// Longest note, in bytes.
const NOTE_MAX_BYTES: usize = 256;

impl Control {
    /// Evidence → blocks → bans, all of a batch in one turn.
    pub(in crate::gateway) fn judge(&self, batch: impl Iterator<Item = Evidence>) {
        let mut sources = Vec::new();
        let blocks: Vec<Block> = {
            let mut ledger = self.ledger.borrow_mut();
            batch
                .filter_map(|evidence| {
                    // Packets of who came through a proxy bear the proxy's address.
                    if evidence.arrived == Arrived::Directly {
                        sources.push(evidence.source);
                    }
                    ledger.record(evidence)
                })
                .collect()
        };
        self.carry_out(blocks);
        sources.sort_unstable_by_key(|source| source.word());
        sources.dedup();
        self.classify(sources.into_iter());
    }

    pub(super) fn carry_out(&self, blocks: Vec<Block>) {
        if blocks.is_empty() {
            return;
        }
        let ban = |block: &Block| Ban {
            source: block.source,
            lasts: block.lasts,
            reason: block.reason as u32,
            origin: ORIGIN_EVIDENCE,
            level: block.level,
        };
        // Who came through a proxy is kept out here: its packets bear the proxy's address, and its own
        // address may be somebody else's on this side of the proxy.
        let (direct, proxied): (Vec<Block>, Vec<Block>) =
            blocks.into_iter().partition(|block| block.arrived == Arrived::Directly);
        let mut outcomes = self.ban(&direct.iter().map(ban).collect::<Vec<_>>());
        outcomes.extend(self.ban_in_user_space(&proxied.iter().map(ban).collect::<Vec<_>>()));
        let blocks: Vec<Block> = direct.into_iter().chain(proxied).collect();
        let now = time::monotonic();
        let mut metrics = self.metrics.borrow_mut();
        for (block, (source, outcome)) in blocks.iter().zip(outcomes) {
            let took = now.saturating_duration_since(block.evidence_at);
            match outcome {
                Ok(()) => {
                    metrics.ban_feedback.observe(took);
                    *metrics.bans.entry(block.reason).or_default() += 1;
                    self.note(source.to_string(), reasons(block));
                    tracing::warn!(
                        source = %source,
                        reason = block.reason.word(),
                        origin = "evidence",
                        level = block.level,
                        lasts_s = block.lasts.as_secs(),
                        feedback_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                        "ban"
                    );
                }
                Err(why) => {
                    self.ledger.borrow_mut().release(source);
                    tracing::error!(source = %source, detail = %why, "ban not set");
                }
            }
        }
    }

    /// Writes bans where they are kept: the kernel's map, or user space's table without one.
    pub(super) fn ban(&self, bans: &[Ban]) -> Vec<(Source, Result<(), String>)> {
        if let Some(kernel) = self.told_kernel().as_ref() {
            let result = |outcome| match outcome {
                BanOutcome::Set | BanOutcome::Replaced => Ok(()),
                BanOutcome::Exempt => Err("the source is exempt".to_owned()),
                BanOutcome::TableFull => Err("the kernel's table of bans is full".to_owned()),
                BanOutcome::Failed(error) => Err(error.to_string()),
            };
            if self.has_proxies() {
                self.ban_in_user_space(bans);
            }
            let outcomes = kernel.ban(bans);
            if kernel.is_told() {
                let results = outcomes.into_iter();
                return results.map(|(source, outcome)| (source, result(outcome))).collect();
            }
        }
        // Without a kernel half, and until the next agent is told.
        self.ban_in_user_space(bans)
    }

    /// Whether clients come through proxies, whose packets the kernel must let in.
    pub(super) fn has_proxies(&self) -> bool {
        self.config.borrow().listeners.iter().any(|listener| listener.proxies.is_some())
    }

    /// Bans that are enforced when a connection is accepted, or said to be whose it is.
    pub(super) fn ban_in_user_space(&self, bans: &[Ban]) -> Vec<(Source, Result<(), String>)> {
        let now = time::monotonic();
        let mut table = self.bans.borrow_mut();
        bans.iter()
            .map(|ban| {
                let until = now + ban.lasts;
                if !self.shared.admission.ban(ban.source, until, now) {
                    return (ban.source, Err("the table of bans is full".to_owned()));
                }
                let Ban { reason, origin, level, .. } = *ban;
                table.insert(ban.source, UserBan { until, reason, origin, level });
                (ban.source, Ok(()))
            })
            .collect()
    }

    pub(super) fn unban(&self, source: Source) -> Result<bool, String> {
        self.ledger.borrow_mut().forget(source);
        self.notes.borrow_mut().remove(&source.to_string());
        self.shared.admission.unban(source);
        let was_here = self.bans.borrow_mut().remove(&source).is_some();
        if let Some(kernel) = self.kernel.borrow_mut().as_mut() {
            return kernel
                .unban(&[source])
                .map(|count| count > 0 || was_here)
                .map_err(|error| error.to_string());
        }
        Ok(was_here)
    }

    pub(super) fn ban_rows(&self) -> Result<Vec<BanRow>, String> {
        let notes = self.notes.borrow();
        let row = |source: String, reason, origin, level, remaining: Duration| BanRow {
            reason: Reason::from_code(reason).map_or("unknown", Reason::word).to_owned(),
            origin: origin_word(origin).to_owned(),
            level,
            remaining_s: (remaining.as_secs_f64() * 10.0).round() / 10.0,
            note: notes.get(&source).cloned(),
            source,
        };
        let now = time::monotonic();
        let table = self.bans.borrow();
        // Those that user space enforces, as far as they are `wanted`.
        let here = |wanted: &dyn Fn(&Source) -> bool| -> Vec<BanRow> {
            let in_force = table.iter().filter(|(source, ban)| now < ban.until && wanted(source));
            in_force
                .map(|(source, ban)| {
                    row(source.to_string(), ban.reason, ban.origin, ban.level, ban.until - now)
                })
                .collect()
        };
        if let Some(kernel) = self.kernel.borrow().as_ref() {
            let bans = kernel.bans().map_err(|error| error.to_string())?;
            let prefixes = kernel.prefix_bans().map_err(|error| error.to_string())?;
            let of_sources = bans.iter().map(|ban| {
                row(ban.source.to_string(), ban.reason, ban.origin, ban.level, ban.remaining)
            });
            let of_prefixes = prefixes
                .iter()
                .map(|ban| row(ban.net.to_string(), ban.reason, ban.origin, 0, ban.remaining));
            let mut rows: Vec<BanRow> = of_sources.chain(of_prefixes).collect();
            let kept: HashSet<Source> = bans.iter().map(|ban| ban.source).collect();
            rows.extend(here(&|source| !kept.contains(source)));
            return Ok(rows);
        }
        Ok(here(&|_| true))
    }

    /// Removes what has expired.
    pub(in crate::gateway) fn sweep(&self) {
        if let Some(kernel) = self.told_kernel().as_ref()
            && let Err(error) = kernel.sweep()
        {
            tracing::error!(error = %error, "expired bans not removed");
        }
        let now = time::monotonic();
        self.bans.borrow_mut().retain(|_, ban| now < ban.until);
        self.classes.borrow_mut().sweep(now);
        // Notes of bans that have ended, once there are many.
        if self.notes.borrow().len() > NOTES_MAX / 2
            && let Ok(rows) = self.ban_rows()
        {
            let banned: HashSet<String> = rows.into_iter().map(|row| row.source).collect();
            self.notes.borrow_mut().retain(|source, _| banned.contains(source));
        }
    }

    /// Keeps why somebody is banned, in words, beside the ban.
    pub(super) fn note(&self, source: String, note: String) {
        let mut notes = self.notes.borrow_mut();
        if notes.len() < NOTES_MAX || notes.contains_key(&source) {
            notes.insert(source, note);
        }
    }

    pub(super) fn ban_by_hand(
        &self,
        net: IpNet,
        for_s: u64,
        note: Option<String>,
    ) -> Result<Value, String> {
        let lasts = Duration::from_secs(for_s);
        if lasts.is_zero() || lasts > BAN_MAX {
            return Err("a ban lasts from 1s to 365d; for longer, use [xdp].deny".to_owned());
        }
        let name = match source_of(net) {
            Some(source) => self.ban_source_by_hand(source, lasts)?,
            None => {
                let name = self.ban_prefix_by_hand(net, lasts)?;
                self.ban_prefixes_behind_proxies();
                name
            }
        };
        *self.metrics.borrow_mut().bans.entry(Reason::Operator).or_default() += 1;
        tracing::warn!(
            source = name,
            reason = "operator",
            origin = "operator",
            lasts_s = for_s,
            note,
            "ban"
        );
        if let Some(mut note) = note {
            note.truncate(note.floor_char_boundary(NOTE_MAX_BYTES));
            self.note(name.clone(), note);
        }
        Ok(json!({ "source": name, "for_s": for_s }))
    }

    pub(super) fn ban_source_by_hand(
        &self,
        source: Source,
        lasts: Duration,
    ) -> Result<String, String> {
        let is_spared = |net: &&IpNet| overlaps(std::slice::from_ref(*net), source);
        if let Some(by) = self.never.borrow().iter().find(is_spared) {
            let why = spared::why(by, &self.config.borrow(), &self.addresses.borrow());
            return Err(format!("{source} is exempt and cannot be banned: {by} {why}"));
        }
        let reason = Reason::Operator as u32;
        let ban = Ban { source, lasts, reason, origin: ORIGIN_OPERATOR, level: 0 };
        for (_, outcome) in self.ban(&[ban]) {
            outcome?;
        }
        Ok(source.to_string())
    }

    pub(super) fn ban_prefix_by_hand(&self, net: IpNet, lasts: Duration) -> Result<String, String> {
        let net = net.trunc();
        let never = self.never.borrow();
        if let Some(by) = never.iter().find(|by| by.contains(&net) || net.contains(*by)) {
            let why = spared::why(by, &self.config.borrow(), &self.addresses.borrow());
            return Err(format!(
                "{net} has exempt addresses and cannot be banned: {by} {why}; name smaller prefixes \
                 beside it"
            ));
        }
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else {
            return Err("prefixes are banned in the kernel, and no XDP program is attached; \
                        name single addresses, or guard an interface with [xdp]"
                .to_owned());
        };
        let reason = Reason::Operator as u32;
        let ban = PrefixBan { net, lasts, reason, origin: ORIGIN_OPERATOR };
        match kernel.ban_prefix(&ban).map_err(|error| error.to_string())? {
            PrefixBanOutcome::Set | PrefixBanOutcome::Replaced => Ok(net.to_string()),
            PrefixBanOutcome::Exempt { by } => {
                Err(format!("{net} has exempt addresses ({by}) and cannot be banned"))
            }
            PrefixBanOutcome::TableFull => {
                Err("the kernel's table of banned prefixes is full".to_owned())
            }
        }
    }

    pub(super) fn unban_by_hand(&self, net: IpNet) -> Result<Value, String> {
        let (name, was_banned) = match source_of(net) {
            Some(source) => (source.to_string(), self.unban(source)?),
            None => (net.trunc().to_string(), self.unban_prefix(net.trunc())?),
        };
        if !was_banned {
            return Err(format!("{name} is not banned; `portcullis bans list` shows who is"));
        }
        tracing::warn!(source = name, origin = "operator", "ban lifted");
        Ok(json!({ "source": name }))
    }

    pub(super) fn unban_prefix(&self, net: IpNet) -> Result<bool, String> {
        self.notes.borrow_mut().remove(&net.to_string());
        let was_banned = match self.kernel.borrow_mut().as_mut() {
            Some(kernel) => kernel.unban_prefix(net).map_err(|error| error.to_string())?,
            None => false,
        };
        self.ban_prefixes_behind_proxies();
        Ok(was_banned)
    }
}

/// What a ban by evidence rests on.
pub(super) fn reasons(block: &Block) -> String {
    let lately: Vec<&str> = block.lately.iter().flatten().map(|reason| reason.word()).collect();
    format!("{} points of {}, the last for {}", block.points, block.threshold, lately.join(", "))
}

pub(super) fn origin_word(origin: u32) -> &'static str {
    match origin {
        ORIGIN_OPERATOR => "operator",
        _ => "evidence",
    }
}
