//! The XDP program, as operators and the host change what it does: who is exempt, dropping or only counting,
//! interfaces that come again, off.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Control, upstreams};
use crate::{
    config::Config,
    kernel::{self, Filter},
    policy::penalty,
    time,
};

/// Longest time to confirm in; for longer, observing is the honest setting.
const CONFIRM_MAX: Duration = Duration::from_secs(3600);

impl Control {
    /// Gathers who must never be banned: the configured, and who is exempt in the kernel anyway.
    pub(super) fn set_never(&self) {
        let config = self.config.borrow();
        let mut exempt = config.xdp.as_ref().map_or_else(Vec::new, |xdp| xdp.exempt.clone());
        exempt.extend(upstreams::networks(&self.addresses.borrow()));
        match crate::net::addresses::infrastructure() {
            Ok(found) => exempt.extend(found),
            Err(error) => tracing::error!(error = %error, "own addresses not read"),
        }
        // Without a kernel half nobody has gathered them before.
        let proxies = config.listeners.iter().filter_map(|listener| listener.proxies.as_ref());
        let issuers = config.issuers.iter().flat_map(|issuer| issuer.keys.networks());
        for net in proxies.flatten().copied().chain(issuers) {
            if !exempt.contains(&net) {
                exempt.push(net);
            }
        }
        let mut never = config.bans.never.clone();
        never.extend(&exempt);
        self.shared.admission.set_share(config.server.max_connections_per_source, never.clone());
        self.deny_behind_proxies();
        self.ban_prefixes_behind_proxies();
        self.ledger.borrow_mut().set(penalty_settings(&config, &never));
        *self.exempt.borrow_mut() = exempt;
        *self.never.borrow_mut() = never;
    }

    /// The program cannot tell clients of one proxy apart, so who is denied is turned away at accept
    /// there, whenever the program would drop.
    pub(super) fn deny_behind_proxies(&self) {
        let config = self.config.borrow();
        let enforce = self.switched.get().unwrap_or_else(|| self.configured_enforce());
        let settings = config.xdp.as_ref().filter(|_| enforce);
        let denied = settings.map(|settings| settings.deny.clone()).unwrap_or_default();
        self.shared.admission.set_denied(denied);
    }

    /// Nor can it ban prefixes of them.
    pub(super) fn ban_prefixes_behind_proxies(&self) {
        let kernel = self.kernel.borrow();
        let kernel = kernel.as_ref().filter(|_| self.has_proxies());
        let banned = match kernel.map(Filter::prefix_bans).transpose() {
            Ok(banned) => banned.unwrap_or_default(),
            Err(error) => return tracing::error!(error = %error, "banned prefixes not read"),
        };
        let now = time::monotonic();
        let banned = banned.iter().map(|ban| (ban.net, now + ban.remaining)).collect();
        self.shared.admission.set_banned_networks(banned);
    }

    /// Remembers that dropping was switched on or off in the kernel, and does the same at accept.
    pub(super) fn was_switched(&self, enforce: bool) {
        self.switched.set(Some(enforce));
        self.deny_behind_proxies();
    }

    pub(super) fn detach(&self) -> Result<Value, String> {
        if self.succession.borrow().is_under_way {
            return Err("another process is taking over; ask it".to_owned());
        }
        if self.config.borrow().xdp.is_none() {
            return Err("no XDP program: [xdp].interfaces is empty".to_owned());
        }
        // What this process holds open would keep the program attached.
        drop(self.kernel.borrow_mut().take());
        // With the program go its bans.
        self.ledger.borrow_mut().release_all();
        let detached = self.agent.detach().map_err(|error| error.to_string())?;
        tracing::warn!(interfaces = detached.interfaces.join(" "), "xdp detached by an operator");
        Ok(json!({ "interfaces": detached.interfaces }))
    }

    /// One write to the kernel's map, then read back: what is answered is what is in force.
    pub(super) fn enforce(
        &self,
        enforce: bool,
        confirm_within: Option<Duration>,
    ) -> Result<Value, String> {
        if confirm_within.is_some_and(|wait| wait.is_zero() || wait > CONFIRM_MAX) {
            return Err("--confirm-within takes from 1s to 1h".to_owned());
        }
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else {
            return Err(
                "no XDP program is attached: [xdp].interfaces is empty, or it was detached"
                    .to_owned(),
            );
        };
        kernel.set_enforce(enforce).map_err(|error| error.to_string())?;
        let in_force = kernel.status().enforce;
        if in_force != enforce {
            return Err(
                "the kernel's map still says otherwise; look at `portcullis status`".to_owned()
            );
        }
        self.was_switched(in_force);
        self.unconfirmed_until.set(confirm_within.map(|wait| time::monotonic() + wait));
        tracing::warn!(
            enforce,
            origin = "operator",
            confirm_within_s = confirm_within.map(|wait| wait.as_secs()),
            "xdp switched"
        );
        Ok(json!({ "enforce": in_force, "configured": self.configured_enforce() }))
    }

    pub(super) fn configured_enforce(&self) -> bool {
        self.config.borrow().xdp.as_ref().is_some_and(|settings| settings.enforce)
    }

    /// Nobody confirmed in time: perhaps because whoever switched has locked himself out.
    pub(in crate::gateway) fn go_back_unless_confirmed(&self) {
        let now = time::monotonic();
        if self.unconfirmed_until.get().is_none_or(|until| now < until) {
            return;
        }
        self.unconfirmed_until.set(None);
        if let Some(kernel) = self.kernel.borrow_mut().as_mut() {
            match kernel.set_enforce(false) {
                Ok(()) => {
                    self.was_switched(false);
                    tracing::warn!(enforce = false, "xdp back to observing: not confirmed in time");
                }
                Err(error) => tracing::error!(error = %error, "xdp not switched back"),
            }
        }
    }

    /// Puts the program back on interfaces that were made again, and says so; also, once for each
    /// reason, that one is without it.
    pub(in crate::gateway) fn keep_attached(&self) {
        let mut kernel = self.kernel.borrow_mut();
        let Some(kernel) = kernel.as_mut() else { return };
        let mut unguarded = BTreeMap::new();
        for kernel::Reattached { interface, result } in kernel.reattach() {
            match result {
                Ok(attached) => tracing::warn!(
                    interface,
                    mode = attached.mode.word(),
                    program_id = attached.program_id,
                    "xdp attached again: the interface was made anew"
                ),
                Err(error) => {
                    let why = error.to_string();
                    if self.unguarded.borrow().get(&interface) != Some(&why) {
                        tracing::error!(interface, detail = why, "xdp is not attached");
                    }
                    unguarded.insert(interface, why);
                }
            }
        }
        *self.unguarded.borrow_mut() = unguarded;
    }
}

pub(super) fn penalty_settings(config: &Config, never: &[IpNet]) -> penalty::Settings {
    penalty::Settings {
        enabled: config.bans.enabled,
        threshold: config.bans.threshold,
        half_life: config.bans.half_life,
        ladder: config.bans.ladder.clone(),
        never: never.to_vec(),
    }
}
