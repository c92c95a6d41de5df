//! Attaching the program, keeping it attached, and taking it away.

mod reattach;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::File,
    io::{self, Read as _},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        xdp::XdpLink,
    },
};
use gateway_ebpf::{
    Outcome, Source, abi,
    bucket::{self, WAYS, WayState},
    verdict::{NETWORK_DOUBLINGS, Quota},
};
use ipnet::IpNet;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

pub use self::reattach::Reattached;
use super::{
    Action, Allowance, Attached, AttachedMode, Ban, BanEntry, BanOutcome, ByteRate, Class, Count,
    FRAME_MAX_BYTES, Fill, InterfaceStatus, Mode, Notice, PrefixBan, PrefixBanEntry,
    PrefixBanOutcome, Rate, Settings, SourceState, Status, TopSource,
    attachment::{self, Attachments},
    error::KernelError,
    events::{self, DropEvent},
    maps::{self, Maps},
    pin::{self, PinnedProgram, Pins, Undo},
    plan::{self, BanFilter, Prefix},
    tick::{self, TickReader},
    top::{self, Limits, Survey},
};

/// The longest ban that the program's signed comparison tells from one that is over: 100 years.
const BAN_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Length of the prefix whose sources share buckets ([`Source::network`]).
const SITE_BITS: u8 = 48;

/// The filter, attached; owner of its maps. Dropping it leaves the filter in force.
#[derive(Debug)]
pub struct Kernel {
    settings: Settings,
    in_kernel: abi::Settings,
    maps: Maps,
    tick: TickReader,
    pins: Pins,
    /// The slot of each interface in `settings.interfaces`.
    slots: Vec<u32>,
    banned: HashSet<Source>,
    ban_filter: BanFilter,
    /// Sources with limits of their own, as the map holds them, expired ones among them.
    classed: HashMap<Source, abi::Class>,
    /// Banned prefixes, as the trie holds them, expired ones among them.
    banned_nets: BTreeMap<IpNet, abi::Ban>,
    survey: Survey,
}

/// What [`detach`] found and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Interfaces that are no longer guarded.
    pub interfaces: Vec<String>,
    /// Whether there was anything at all.
    pub found: bool,
}

/// An interface and its number, known to exist.
struct Interface<'a> {
    name: &'a str,
    index: u32,
    attachments: Attachments,
}

impl Kernel {
    /// Attaches the filter to every interface, taking over one that an earlier run left in force.
    ///
    /// # Errors
    ///
    /// Says why, and leaves nothing behind that was not there before.
    pub fn start(settings: &Settings) -> Result<(Self, Vec<Notice>), KernelError> {
        check_limits(settings)?;
        if maps::OBJECT.is_empty() {
            return Err(KernelError::NotBuilt);
        }
        require_capabilities()?;
        let interfaces = find_interfaces(&settings.interfaces)?;
        let mut notices = Vec::new();
        let mut undo = Undo::default();
        let pins = Pins::open(&settings.pin, &mut notices, &mut undo)?;
        let pinned = pins.links()?;
        refuse_foreign(&interfaces, &pinned)?;
        lift_memory_limit();
        for layout in maps::layouts(settings.max_sources) {
            let path = pins.directory().join(layout.name);
            if layout.fits(&path) == Some(false) {
                pin::remove_file(&path)?;
                notices.push(Notice::Wiped { map: layout.name });
            }
        }

        let mut object = maps::load(Some(pins.directory()), 0, settings.max_sources)?;
        let mut maps = Maps::take(&mut object)?;
        let tick = TickReader::load(object)?;
        let mut in_kernel = maps.settings();
        if in_kernel.ns_per_jiffy == 0 {
            in_kernel.ns_per_jiffy = tick::ns_per_jiffy()?;
            in_kernel.secret = draw_secret()?;
        }
        in_kernel.set_shift = abi::set_shift(abi::bucket_sets(settings.max_sources));
        // The sets of bans are found by it.
        maps.write_settings(&in_kernel);
        // From what an earlier version left: its program runs on until ours takes its place below.
        let mut old_layouts = Vec::new();
        for (directory, layout) in pins.other_layouts()? {
            let inherited = maps.inherit(&directory, layout)?;
            old_layouts.push(Notice::OldLayout { directory, inherited });
        }
        maps.rebuild_ban_sets()?;
        let banned: HashSet<Source> = maps.bans()?.into_iter().map(|(source, _)| source).collect();
        let classed: HashMap<Source, abi::Class> = maps.classes()?.into_iter().collect();
        let shown = banned.iter().chain(classed.keys());
        let bits = shown.map(|&source| ban_bit(source, &in_kernel));
        let ban_filter = BanFilter::new(bits);
        let banned_nets = maps.prefix_bans()?.into_iter();
        let banned_nets =
            banned_nets.filter_map(|(prefix, entry)| Some((prefix.net()?, entry.ban))).collect();
        let mut kernel = Self {
            settings: settings.clone(),
            in_kernel,
            maps,
            tick,
            pins,
            slots: Vec::new(),
            banned,
            ban_filter,
            classed,
            banned_nets,
            survey: Survey::default(),
        };
        kernel.maps.write_ban_filter(kernel.ban_filter.words());
        kernel.write_rules(settings)?;
        kernel.sweep()?;

        let mut adopted = 0;
        for interface in &interfaces {
            let old = pinned_on(interface, &pinned);
            adopted += usize::from(old.is_some());
            let slot = kernel.occupy_slot(interface.name)?;
            kernel.attach(interface, slot, old, settings.mode, &mut notices)?;
            kernel.slots.push(slot);
        }
        if adopted > 0 {
            let bans = kernel.banned.len() + kernel.banned_nets.len();
            notices.push(Notice::Adopted { interfaces: adopted, bans });
        }
        kernel.release_other_slots(&mut notices)?;
        for notice in old_layouts {
            if let Notice::OldLayout { directory, .. } = &notice {
                kernel.pins.remove_layout(directory)?;
            }
            notices.push(notice);
        }
        undo.keep();
        Ok((kernel, notices))
    }

    /// Takes over changed settings while the filter goes on.
    ///
    /// # Errors
    ///
    /// [`KernelError::NeedsRestart`] for what cannot change; the old settings stay in force then,
    /// as they do when an interface is missing, foreign or refuses the program.
    pub fn apply(&mut self, settings: &Settings) -> Result<Vec<Notice>, KernelError> {
        for (setting, is_same) in [
            ("pin", self.settings.pin == settings.pin),
            ("max_sources", self.settings.max_sources == settings.max_sources),
            ("mode", self.settings.mode == settings.mode),
        ] {
            if !is_same {
                return Err(KernelError::NeedsRestart { setting });
            }
        }
        check_limits(settings)?;
        check_burst(settings, self.in_kernel.ns_per_jiffy)?;
        let interfaces = find_interfaces(&settings.interfaces)?;
        let pinned = self.pins.links()?;
        refuse_foreign(&interfaces, &pinned)?;

        let mut notices = Vec::new();
        let mut undo = Undo::default();
        undo.watch(self.pins.directory())?;
        let mut slots = Vec::new();
        for interface in &interfaces {
            let slot = self.occupy_slot(interface.name)?;
            // One that is guarded already runs the same program: there is nothing to replace.
            if pinned_on(interface, &pinned).is_none() {
                self.attach(interface, slot, None, settings.mode, &mut notices)?;
            }
            slots.push(slot);
        }
        self.write_rules(settings)?;
        undo.keep();
        self.slots = slots;
        self.settings = settings.clone();
        self.release_other_slots(&mut notices)?;
        Ok(notices)
    }

    /// Switches between dropping and only counting.
    pub fn set_enforce(&mut self, enforce: bool) {
        let changed = abi::Settings { enforce: u64::from(enforce), ..self.in_kernel };
        self.maps.write_settings(&changed);
        self.in_kernel = changed;
        self.settings.enforce = enforce;
    }

    /// Sets bans, each on its own: one that is refused does not keep the others.
    pub fn ban(&mut self, bans: &[Ban]) -> Vec<(Source, BanOutcome)> {
        let now_ns = match self.now_ns() {
            Ok(now_ns) => now_ns,
            Err(error) => {
                // Without the clock no ban can be set; the first carries the reason.
                let mut error = Some(error);
                let outcome = |ban: &Ban| {
                    (ban.source, BanOutcome::Failed(error.take().unwrap_or(KernelError::Clock)))
                };
                return bans.iter().map(outcome).collect();
            }
        };
        let mut may_sweep = true;
        bans.iter()
            .map(|ban| {
                let outcome = self.ban_one(ban, now_ns, &mut may_sweep);
                (ban.source, outcome.unwrap_or_else(BanOutcome::Failed))
            })
            .collect()
    }

    fn ban_one(
        &mut self,
        ban: &Ban,
        now_ns: u64,
        may_sweep: &mut bool,
    ) -> Result<BanOutcome, KernelError> {
        let source = ban.source;
        if self.is_exempt(source) {
            return Ok(BanOutcome::Exempt);
        }
        let entry = abi::Ban {
            expires_ns: now_ns.wrapping_add(ban.lasts.min(BAN_MAX).as_nanos() as u64),
            set_ns: now_ns,
            reason: ban.reason,
            origin: ban.origin,
            level: ban.level,
            _pad: 0,
        };
        let is_new = !self.banned.contains(&source);
        if is_new {
            // Before the ban itself, or the program would not look for it.
            self.show_in_filter(source);
        }
        let mut fits = self.maps.insert_ban(source, &entry);
        if matches!(fits, Ok(false)) && *may_sweep {
            *may_sweep = false;
            self.sweep()?;
            fits = self.maps.insert_ban(source, &entry);
        }
        match fits {
            Ok(true) => {
                self.banned.insert(source);
                Ok(if is_new { BanOutcome::Set } else { BanOutcome::Replaced })
            }
            refused => {
                if is_new {
                    self.hide_from_filter(source);
                }
                refused.map(|_| BanOutcome::TableFull)
            }
        }
    }

    /// Lifts bans; returns how many there were.
    pub fn unban(&mut self, sources: &[Source]) -> Result<usize, KernelError> {
        let mut lifted = 0;
        for &source in sources {
            lifted += usize::from(self.forget(source)?);
        }
        Ok(lifted)
    }

    /// Gives a source more or less than everybody for a while; [`Class::ORDINARY`] ends it. False
    /// when as many sources as there can be have limits of their own.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn set_class(
        &mut self,
        source: Source,
        class: Class,
        lasts: Duration,
    ) -> Result<bool, KernelError> {
        if class == Class::ORDINARY {
            self.forget_class(source)?;
            return Ok(true);
        }
        let is_new = !self.classed.contains_key(&source);
        if is_new && self.classed.len() >= abi::CLASSES_MAX as usize {
            self.sweep_classes()?;
            if self.classed.len() >= abi::CLASSES_MAX as usize {
                return Ok(false);
            }
        }
        let lasts_ns = lasts.min(BAN_MAX).as_nanos() as u64;
        let expires_ns = self.now_ns()?.wrapping_add(lasts_ns);
        let entry = abi::Class { expires_ns, doublings: class.doublings(), _pad: 0 };
        self.maps.write_class(source, Some(&entry))?;
        self.classed.insert(source, entry);
        if is_new {
            self.show_in_filter(source);
        }
        Ok(true)
    }

    fn forget_class(&mut self, source: Source) -> Result<(), KernelError> {
        if self.classed.contains_key(&source) {
            self.maps.write_class(source, None)?;
            self.classed.remove(&source);
            self.hide_from_filter(source);
        }
        Ok(())
    }

    fn sweep_classes(&mut self) -> Result<(), KernelError> {
        if self.classed.is_empty() {
            return Ok(());
        }
        let now_ns = self.now_ns()?;
        let is_over = |class: &abi::Class| (class.expires_ns.wrapping_sub(now_ns) as i64) <= 0;
        let over: Vec<Source> = self
            .classed
            .iter()
            .filter_map(|(source, class)| is_over(class).then_some(*source))
            .collect();
        over.into_iter().try_for_each(|source| self.forget_class(source))
    }

    /// Bans every source of a prefix. For what an operator asks: evidence is about single sources.
    ///
    /// # Errors
    ///
    /// What the kernel said; the bans are as before then.
    pub fn ban_prefix(&mut self, ban: &PrefixBan) -> Result<PrefixBanOutcome, KernelError> {
        let net = plan::plain(ban.net);
        if let Some(by) = plan::overlapping(net, &self.settings.exempt) {
            return Ok(PrefixBanOutcome::Exempt { by });
        }
        self.sweep_prefixes()?;
        let is_new = !self.banned_nets.contains_key(&net);
        if is_new && self.banned_nets.len() >= abi::BAN_PREFIXES_MAX as usize {
            return Ok(PrefixBanOutcome::TableFull);
        }
        let now_ns = self.now_ns()?;
        let entry = abi::Ban {
            expires_ns: now_ns.wrapping_add(ban.lasts.min(BAN_MAX).as_nanos() as u64),
            set_ns: now_ns,
            reason: ban.reason,
            origin: ban.origin,
            ..abi::Ban::default()
        };
        let before = self.banned_nets.insert(net, entry);
        // The filter before the trie, or the program would not look there.
        self.write_prefix_filter();
        let written = self.write_prefix_bans(&net);
        if !matches!(written, Ok(true)) {
            match before {
                Some(before) => self.banned_nets.insert(net, before),
                None => self.banned_nets.remove(&net),
            };
            // As far as the kernel still takes writes; its first refusal is what is reported.
            if is_new {
                let _ = self.maps.remove_prefix_ban(Prefix::from(&net));
            }
            let _ = self.write_prefix_bans(&net);
            self.write_prefix_filter();
            return written.map(|_| PrefixBanOutcome::TableFull);
        }
        Ok(if is_new { PrefixBanOutcome::Set } else { PrefixBanOutcome::Replaced })
    }

    /// Lifts the ban of exactly this prefix; false when there is none. Bans of single sources and
    /// of other prefixes stay.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn unban_prefix(&mut self, net: IpNet) -> Result<bool, KernelError> {
        let net = plan::plain(net);
        if self.banned_nets.remove(&net).is_none() {
            return Ok(false);
        }
        self.maps.remove_prefix_ban(Prefix::from(&net))?;
        self.write_prefix_bans(&net)?;
        self.write_prefix_filter();
        Ok(true)
    }

    /// Every banned prefix.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn prefix_bans(&self) -> Result<Vec<PrefixBanEntry>, KernelError> {
        let now_ns = self.now_ns()?;
        let entries = self.banned_nets.iter();
        Ok(entries.filter_map(|(net, ban)| prefix_in_force(*net, ban, now_ns)).collect())
    }

    /// Removes bans of prefixes that are over; returns how many.
    fn sweep_prefixes(&mut self) -> Result<usize, KernelError> {
        if self.banned_nets.is_empty() {
            return Ok(0);
        }
        let now_ns = self.now_ns()?;
        let is_over = |(net, ban): (&IpNet, &abi::Ban)| {
            prefix_in_force(*net, ban, now_ns).is_none().then_some(*net)
        };
        let over: Vec<IpNet> = self.banned_nets.iter().filter_map(is_over).collect();
        for net in &over {
            // What it covers needs no look: a ban that is over prolongs no other.
            self.maps.remove_prefix_ban(Prefix::from(net))?;
            self.banned_nets.remove(net);
        }
        if !over.is_empty() {
            self.write_prefix_filter();
        }
        Ok(over.len())
    }

    /// Writes the prefix and those it covers, whose ends depend on it; false when there is no room.
    fn write_prefix_bans(&mut self, changed: &IpNet) -> Result<bool, KernelError> {
        let covered = self.banned_nets.iter().filter(|(net, _)| changed.contains(*net));
        for (net, &ban) in covered {
            let until_ns = plan::banned_until_ns(net, &self.banned_nets).unwrap_or(ban.expires_ns);
            let entry = abi::PrefixBan { ban, until_ns };
            if !self.maps.insert_prefix_ban(Prefix::from(net), &entry)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn write_prefix_filter(&mut self) {
        let Settings { deny, exempt, .. } = &self.settings;
        let filter = plan::prefix_filter(deny, exempt, self.banned_nets.keys());
        self.maps.write_prefix_filter(&filter);
    }

    /// Every ban of a single source in force.
    pub fn bans(&self) -> Result<Vec<BanEntry>, KernelError> {
        let now_ns = self.now_ns()?;
        let entries = self.maps.bans()?.into_iter();
        Ok(entries.filter_map(|(source, ban)| in_force(source, &ban, now_ns)).collect())
    }

    /// Removes bans that are over (they are without effect, but take up room); returns how many.
    pub fn sweep(&mut self) -> Result<usize, KernelError> {
        self.sweep_classes()?;
        let mut swept = self.sweep_prefixes()?;
        if self.banned.is_empty() {
            return Ok(swept);
        }
        let now_ns = self.now_ns()?;
        for (source, ban) in self.maps.bans()? {
            if in_force(source, &ban, now_ns).is_none() {
                swept += usize::from(self.forget(source)?);
            }
        }
        Ok(swept)
    }

    /// Everything known about a source, as the kernel has it at this moment.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn explain(&self, source: Source) -> Result<SourceState, KernelError> {
        let now_ns = self.now_ns()?;
        let net = plan::source_net(source);
        let ban = self.maps.ban(source)?.and_then(|ban| in_force(source, &ban, now_ns));
        let covering = self.banned_nets.iter().filter(|(banned, _)| banned.contains(&net));
        let prefix_ban = covering
            .filter_map(|(banned, ban)| prefix_in_force(*banned, ban, now_ns))
            .max_by_key(|entry| entry.remaining);
        let class = Class::doubled(self.class_of(source, now_ns)).unwrap_or_default();
        let mut allowances = self.allowances(source, net, class.doublings(), &Quota::ALL, now_ns);
        if let Some(network) = source.network()
            && let Ok(net) = IpNet::new(net.addr(), SITE_BITS)
        {
            let quotas = [Quota::Packets, Quota::Connections];
            let of_site =
                self.allowances(network.word(), net.trunc(), NETWORK_DOUBLINGS, &quotas, now_ns);
            allowances.extend(of_site);
        }
        Ok(SourceState {
            exempt: plan::longest_sharing(net, &self.settings.exempt),
            denied: plan::longest_sharing(net, &self.settings.deny),
            ban,
            prefix_ban,
            class,
            allowances,
        })
    }

    /// What the buckets of one owner hold, of the quotas that are limited.
    fn allowances(
        &self,
        owner: Source,
        net: IpNet,
        doublings: i32,
        quotas: &[Quota],
        now_ns: u64,
    ) -> Vec<Allowance> {
        let hash = bucket::hash(owner, self.in_kernel.secret);
        let set = abi::bucket_set(hash, self.in_kernel.set_shift) as usize;
        let way = self.maps.ways(set).into_iter().find(|way| way.source == owner.word());
        let limits = quotas.iter().map(|&quota| (quota, self.in_kernel.limit(quota)));
        limits
            .filter(|(_, limit)| !limit.is_none())
            .map(|(quota, limit)| {
                let limit = if doublings == 0 { limit } else { limit.doubled(doublings) };
                let full_at_ns = way.map(|way| way.full_at_ns(quota));
                Allowance {
                    quota,
                    net,
                    left: plan::left(quota, &limit, full_at_ns, now_ns),
                    burst: plan::left(quota, &limit, None, now_ns),
                }
            })
            .collect()
    }

    /// The sources that have used most of what they may have, most first: at most so many, and a
    /// thousand.
    ///
    /// Reads the table in memory. One of more than a million sources is looked through in turns, one
    /// each time this is called, and what was at the top before is looked at again.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn top(&mut self, max: usize) -> Result<Vec<TopSource>, KernelError> {
        let now_ns = self.now_ns()?;
        let abi::Settings { secret, set_shift, .. } = self.in_kernel;
        let maps = &self.maps;
        let turn = self.survey.turn(maps.sets()).flat_map(|set| maps.ways(set));
        let seen: Vec<u64> = self.survey.seen().to_vec();
        let again = seen.iter().flat_map(|&word| {
            let hash = bucket::hash(Source::from_word(word), secret);
            let ways = maps.ways(abi::bucket_set(hash, set_shift) as usize).into_iter();
            ways.filter(move |way| way.source == word)
        });
        let limits = Limits::of(&self.in_kernel);
        let top = self.survey.rank(turn.chain(again), &limits, now_ns, max);
        let allowances = |way: WayState| {
            let owner = Source::from_word(way.source);
            let (net, doublings, quotas): (_, _, &[Quota]) = match owner.as_network() {
                Some(first) => {
                    let net = IpNet::new(first.into(), SITE_BITS).ok()?;
                    (net, NETWORK_DOUBLINGS, &[Quota::Packets, Quota::Connections])
                }
                None => (plan::source_net(owner), self.class_of(owner, now_ns), &Quota::ALL),
            };
            let allowances = self.allowances(owner, net, doublings, quotas, now_ns);
            Some(TopSource { net, allowances })
        };
        Ok(top.into_iter().filter_map(allowances).collect())
    }

    /// How often a source's limits are doubled.
    fn class_of(&self, source: Source, now_ns: u64) -> i32 {
        let in_force = |class: &&abi::Class| (class.expires_ns.wrapping_sub(now_ns) as i64) > 0;
        self.classed.get(&source).filter(in_force).map_or(0, |class| class.doublings)
    }

    /// Frames that were dropped, or would have been, since the last call: the oldest first, at most
    /// so many. Never waits; [`Kernel::events_fd`] tells when there are some.
    pub fn take_events(&mut self, max: usize) -> Vec<DropEvent> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(event) = self.maps.take_event()
        {
            let interfaces = self.slots.iter().zip(&self.settings.interfaces);
            // One of an interface that is not guarded any more is of no interest.
            let name = interfaces.into_iter().find(|(slot, _)| **slot == event.slot);
            taken.extend(name.and_then(|(_, name)| events::read(&event, name)));
        }
        taken
    }

    /// A descriptor that is readable (poll(2), epoll(7)) while there are events to take.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.maps.events_fd()
    }

    /// What was counted on each interface since its maps were made.
    pub fn counters(&self) -> Result<Vec<Count>, KernelError> {
        let mut counts = Vec::new();
        for (interface, &slot) in self.settings.interfaces.iter().zip(&self.slots) {
            let (cells, _) = self.maps.counts(slot)?;
            for reason in Outcome::ALL {
                let mut push = |action, cell: u32| {
                    let abi::Count { packets, bytes } = cells[cell as usize];
                    let interface = interface.clone();
                    counts.push(Count { interface, action, reason, packets, bytes });
                };
                if reason.drops() {
                    push(Action::Drop, abi::cell(reason, true));
                    push(Action::WouldDrop, abi::cell(reason, false));
                } else {
                    push(Action::Pass, abi::cell(reason, true));
                }
            }
        }
        Ok(counts)
    }

    /// How things stand, as the kernel says at this moment.
    pub fn status(&self) -> Status {
        let interfaces = self.settings.interfaces.iter().zip(&self.slots).map(|(name, &slot)| {
            InterfaceStatus { name: name.clone(), attached: attached(name, &self.pins.link(slot)) }
        });
        let counts: Vec<_> =
            self.slots.iter().filter_map(|&slot| self.maps.counts(slot).ok()).collect();
        let evictions =
            counts.iter().map(|(cells, _)| cells[abi::EVICTIONS_CELL as usize].packets).sum();
        let events_lost = counts.iter().map(|(_, events_lost)| events_lost).sum();
        let sets = self.maps.sets();
        // Without the clock nobody knows what is in use.
        let sources = self
            .now_ns()
            .map_or(0, |now_ns| top::live_ways(sets, |set| self.maps.ways(set), now_ns));
        let places = u32::try_from(sets * WAYS).unwrap_or(u32::MAX);
        let fill = |map, used, limit| Fill { map, used, limit };
        Status {
            interfaces: interfaces.collect(),
            enforce: self.maps.settings().enforce != 0,
            fills: vec![
                fill("bans", self.banned.len(), abi::BANS_MAX),
                fill("classes", self.classed.len(), abi::CLASSES_MAX),
                fill("ban_prefixes", self.banned_nets.len(), abi::BAN_PREFIXES_MAX),
                fill("deny", self.settings.deny.len(), abi::DENY_MAX),
                fill("exempt", self.settings.exempt.len(), abi::EXEMPT_MAX),
                fill("sources", sources, places),
            ],
            evictions,
            events_lost,
        }
    }

    /// Whether no ban can touch the source.
    pub fn is_exempt(&self, source: Source) -> bool {
        plan::is_exempt(source, &self.settings.exempt)
    }

    fn now_ns(&self) -> Result<u64, KernelError> {
        let tick = self.tick.read()?;
        Ok(tick.jiffies.wrapping_mul(self.in_kernel.ns_per_jiffy))
    }

    /// Lists, ports and rates. Settings last: by then everything they refer to is there.
    fn write_rules(&mut self, settings: &Settings) -> Result<(), KernelError> {
        check_burst(settings, self.in_kernel.ns_per_jiffy)?;
        let prefixes = |nets: &[IpNet]| nets.iter().map(Prefix::from).collect::<BTreeSet<_>>();
        self.maps.write_prefixes(
            &prefixes(&settings.deny),
            &prefixes(&settings.exempt),
            &plan::prefix_filter(&settings.deny, &settings.exempt, self.banned_nets.keys()),
        )?;
        self.maps.write_ports(&plan::ports(&settings.ports, &settings.management));
        let packets = plan::limit(settings.packets);
        let connections = plan::limit(settings.connections);
        let changed = abi::Settings {
            packets,
            connections,
            bytes: plan::byte_limit(settings.bytes),
            network_packets: packets.doubled(NETWORK_DOUBLINGS),
            network_connections: connections.doubled(NETWORK_DOUBLINGS),
            newcomers: plan::limit(settings.new_sources),
            enforce: u64::from(settings.enforce),
            ..self.in_kernel
        };
        self.maps.write_settings(&changed);
        self.in_kernel = changed;
        Ok(())
    }

    fn show_in_filter(&mut self, source: Source) {
        if let Some((index, word)) = self.ban_filter.add(ban_bit(source, &self.in_kernel)) {
            self.maps.write_ban_filter_word(index, word);
        }
    }

    fn hide_from_filter(&mut self, source: Source) {
        if let Some((index, word)) = self.ban_filter.remove(ban_bit(source, &self.in_kernel)) {
            self.maps.write_ban_filter_word(index, word);
        }
    }

    fn forget(&mut self, source: Source) -> Result<bool, KernelError> {
        let was_there = self.maps.remove_ban(source)?;
        if self.banned.remove(&source) {
            self.hide_from_filter(source);
        }
        Ok(was_there)
    }

    /// The interface's slot: the one it had, so that its counters go on, or a free one.
    fn occupy_slot(&mut self, name: &str) -> Result<u32, KernelError> {
        let names = self.maps.interfaces()?;
        let slot_of = |wanted: Option<&str>| {
            (0u32..).zip(&names).find(|(_, name)| name.as_deref() == wanted).map(|(slot, _)| slot)
        };
        if let Some(slot) = slot_of(Some(name)) {
            return Ok(slot);
        }
        let slot = slot_of(None).ok_or(KernelError::TooMany {
            what: "interfaces, those of an earlier run among them",
            count: names.len() + 1,
            limit: abi::INTERFACES_MAX,
        })?;
        self.maps.clear_counts(slot)?;
        self.maps.write_interface(slot, Some(name))?;
        Ok(slot)
    }

    /// Frees the slots of interfaces that are not configured, and takes the program off them.
    fn release_other_slots(&mut self, notices: &mut Vec<Notice>) -> Result<(), KernelError> {
        for (slot, name) in (0..).zip(self.maps.interfaces()?) {
            let Some(interface) = name else { continue };
            if self.slots.contains(&slot) {
                continue;
            }
            pin::remove_link(&self.pins.link(slot))?;
            self.maps.write_interface(slot, None)?;
            notices.push(Notice::Released { interface });
        }
        Ok(())
    }

    /// Brings the present program onto an interface: into the link it has, or by a new one.
    fn attach(
        &self,
        interface: &Interface<'_>,
        slot: u32,
        old: Option<&PinnedProgram>,
        mode: Mode,
        notices: &mut Vec<Notice>,
    ) -> Result<(), KernelError> {
        let path = self.pins.link(slot);
        let mut object = maps::load(Some(self.pins.directory()), slot, self.settings.max_sources)?;
        let program = load_program(&mut object)?;
        let Some(old) = old else {
            // Of a device that is gone: the link's own end came with it.
            pin::remove_link(&path)?;
            return attach_new(program, interface, mode, &path, notices).map(drop);
        };
        let is_native = interface.attachments.native.is_some();
        match (mode, is_native) {
            (Mode::Native, false) | (Mode::Generic, true) => {
                change_mode(program, interface, mode, old, &path, notices)
            }
            _ => {
                if mode == Mode::Auto && !is_native {
                    notices.push(Notice::StaysGeneric { interface: interface.name.to_owned() });
                }
                replace(program, interface, old, &path)
            }
        }
    }
}

/// Removes the filter from every interface, with all pins, whether a daemon runs or not.
pub fn detach(pin: &Path) -> Result<Detached, KernelError> {
    let current = pin.join(format!("v{}", abi::LAYOUT_VERSION));
    let names = maps::pinned_interfaces(&current);
    let slots: Vec<usize> =
        pin::links(&current).iter().filter_map(|link| pin::slot(link)).collect();
    let directories = pin::remove_all(pin).map_err(need_for_removal)?;
    let interfaces = slots.into_iter().filter_map(|slot| names.get(slot).cloned().flatten());
    Ok(Detached { interfaces: interfaces.collect(), found: !directories.is_empty() })
}

/// Looks whether [`Kernel::start`] would find its interfaces there and free, and changes nothing.
pub fn probe(settings: &Settings) -> Result<(), KernelError> {
    check_limits(settings)?;
    let interfaces = find_interfaces(&settings.interfaces)?;
    refuse_foreign(&interfaces, &pin::pinned_programs(&settings.pin)?)
}

fn need_for_removal(error: KernelError) -> KernelError {
    match error {
        KernelError::File { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            KernelError::NotPermitted {
                capability: "CAP_DAC_OVERRIDE",
                purpose: "removing the pins of another user",
            }
        }
        other => other,
    }
}

fn load_program(object: &mut Ebpf) -> Result<&mut Xdp, KernelError> {
    let program = object.program_mut(abi::PROGRAM).ok_or(KernelError::NotBuilt)?;
    let program: &mut Xdp = program.try_into().map_err(|error: ProgramError| error)?;
    program.load()?;
    Ok(program)
}

/// Attaches by a link of its own and pins it; the pin is then all that holds it.
fn attach_new(
    program: &mut Xdp,
    interface: &Interface<'_>,
    mode: Mode,
    path: &Path,
    notices: &mut Vec<Notice>,
) -> Result<AttachedMode, KernelError> {
    let attempt = |program: &mut Xdp, mode| attach_in(program, interface, mode, path);
    if mode == Mode::Generic {
        return attempt(program, AttachedMode::Generic);
    }
    match attempt(program, AttachedMode::Native) {
        Err(KernelError::Refused { error, .. }) if mode == Mode::Auto => {
            let attached = attempt(program, AttachedMode::Generic)?;
            let refused = KernelError::Refused {
                interface: interface.name.to_owned(),
                mode: AttachedMode::Native.word(),
                error,
            };
            notices.push(Notice::FellBack {
                interface: interface.name.to_owned(),
                why: refused.to_string(),
            });
            Ok(attached)
        }
        result => result,
    }
}

fn attach_in(
    program: &mut Xdp,
    interface: &Interface<'_>,
    mode: AttachedMode,
    path: &Path,
) -> Result<AttachedMode, KernelError> {
    let refused = |error| KernelError::Refused {
        interface: interface.name.to_owned(),
        mode: mode.word(),
        error,
    };
    let flag = match mode {
        AttachedMode::Native => XdpMode::Driver,
        AttachedMode::Generic => XdpMode::Skb,
    };
    let link = match program.attach_to_if_index(interface.index, flag) {
        Ok(link) => program.take_link(link)?,
        Err(error) => {
            let error = system_error(error)?;
            // Someone was faster since we looked.
            if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
                refuse_foreign(&find_interfaces(&[interface.name.to_owned()])?, &[])?;
            }
            return Err(refused(error));
        }
    };
    let Ok(link) = FdLink::try_from(link) else {
        // aya turns to the older way of attaching where the kernel has none by links (before 5.9)
        // or the driver refuses; that cannot be pinned nor replaced without a gap.
        let _ = attachment::clear(interface.index);
        return Err(refused(io::Error::from_raw_os_error(libc::EINVAL)));
    };
    link.pin(path).map_err(|error| KernelError::File {
        what: "pin",
        path: path.to_owned(),
        error: io::Error::other(error),
    })?;
    Ok(mode)
}

/// Puts the program into the link that is there: not one packet passes unfiltered.
fn replace(
    program: &mut Xdp,
    interface: &Interface<'_>,
    old: &PinnedProgram,
    path: &Path,
) -> Result<(), KernelError> {
    let not_a_link = |error: LinkError| KernelError::File {
        what: "take over",
        path: old.path.clone(),
        error: io::Error::other(error),
    };
    let link = PinnedLink::from_pin(&old.path).map_err(not_a_link)?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(not_a_link)?;
    let link = match program.attach_to_link(link) {
        Ok(link) => program.take_link(link)?,
        Err(error) => {
            return Err(KernelError::Refused {
                interface: interface.name.to_owned(),
                mode: "its present",
                error: system_error(error)?,
            });
        }
    };
    if old.path != path {
        // Of an earlier layout, whose directory goes away at the end.
        let link = FdLink::try_from(link).map_err(not_a_link)?;
        link.pin(path).map_err(|error| KernelError::File {
            what: "pin",
            path: path.to_owned(),
            error: io::Error::other(error),
        })?;
    }
    Ok(())
}

/// A link keeps its mode for life, so another mode is another link.
fn change_mode(
    program: &mut Xdp,
    interface: &Interface<'_>,
    mode: Mode,
    old: &PinnedProgram,
    path: &Path,
    notices: &mut Vec<Notice>,
) -> Result<(), KernelError> {
    pin::remove_link(&old.path)?;
    match attach_new(program, interface, mode, path, notices) {
        Ok(mode) => {
            notices.push(Notice::ChangedMode { interface: interface.name.to_owned(), mode });
            Ok(())
        }
        Err(refused) => {
            // Rather the old mode than no filter, although the start fails.
            let before =
                if mode == Mode::Native { AttachedMode::Generic } else { AttachedMode::Native };
            attach_in(program, interface, before, &old.path)?;
            Err(refused)
        }
    }
}

/// The program that is pinned for this interface and runs on it.
fn pinned_on<'a>(
    interface: &Interface<'_>,
    pinned: &'a [PinnedProgram],
) -> Option<&'a PinnedProgram> {
    pinned
        .iter()
        .find(|pinned| interface.attachments.program_ids().any(|id| id == pinned.program_id))
}

fn attached(name: &str, link: &Path) -> Option<Attached> {
    let attachments = attachment::attachments(attachment::interface_index(name)?).ok()?;
    let program_id = pin::program_id(link)?;
    if attachments.native == Some(program_id) {
        Some(Attached { mode: AttachedMode::Native, program_id })
    } else if attachments.generic == Some(program_id) {
        Some(Attached { mode: AttachedMode::Generic, program_id })
    } else {
        None
    }
}

fn find_interfaces(names: &[String]) -> Result<Vec<Interface<'_>>, KernelError> {
    names
        .iter()
        .map(|name| {
            let index = attachment::interface_index(name)
                .ok_or_else(|| KernelError::NoInterface { interface: name.clone() })?;
            let attachments = attachment::attachments(index).map_err(KernelError::Netlink)?;
            Ok(Interface { name, index, attachments })
        })
        .collect()
}

/// Somebody else's program is never replaced: it may be what keeps their network up.
fn refuse_foreign(
    interfaces: &[Interface<'_>],
    pinned: &[PinnedProgram],
) -> Result<(), KernelError> {
    for interface in interfaces {
        let is_ours = |id: &u32| pinned.iter().any(|pinned| pinned.program_id == *id);
        if let Some(program_id) = interface.attachments.program_ids().find(|id| !is_ours(id)) {
            return Err(KernelError::Foreign {
                interface: interface.name.to_owned(),
                program_id,
                program_name: attachment::program_name(program_id),
            });
        }
    }
    Ok(())
}

fn check_limits(settings: &Settings) -> Result<(), KernelError> {
    for (what, count, limit) in [
        ("interfaces", settings.interfaces.len(), abi::INTERFACES_MAX),
        ("denied prefixes", settings.deny.len(), abi::DENY_MAX),
        ("exempt prefixes", settings.exempt.len(), abi::EXEMPT_MAX),
    ] {
        if count > limit as usize {
            return Err(KernelError::TooMany { what, count, limit });
        }
    }
    Ok(())
}

fn check_burst(settings: &Settings, ns_per_jiffy: u64) -> Result<(), KernelError> {
    let events = |rate: Rate| (u64::from(rate.per_s), u64::from(rate.burst), 1);
    let octets = |rate: ByteRate| (rate.bytes_per_s, rate.burst_bytes, FRAME_MAX_BYTES);
    for (setting, rate) in [
        ("packets", settings.packets.map(events)),
        ("connections", settings.connections.map(events)),
        ("new_sources", settings.new_sources.map(events)),
        ("bytes", settings.bytes.map(octets)),
    ] {
        let Some((per_s, burst, least)) = rate else { continue };
        let least = plan::least_burst(per_s, ns_per_jiffy).max(least);
        if burst < least {
            return Err(KernelError::BurstTooSmall { setting, burst, least, ns_per_jiffy });
        }
    }
    Ok(())
}

/// See capabilities(7). The first two came with Linux 5.8, before which CAP_SYS_ADMIN was both.
fn require_capabilities() -> Result<(), KernelError> {
    let effective = attachment::effective_capabilities()
        .map_err(KernelError::file("read", "/proc/self/status"))?;
    match missing_capability(effective) {
        Some((capability, purpose)) => Err(KernelError::NotPermitted { capability, purpose }),
        None => Ok(()),
    }
}

fn missing_capability(effective: u64) -> Option<(&'static str, &'static str)> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    [
        ("CAP_BPF", BPF | SYS_ADMIN, "loading the XDP program"),
        // Without it the verifier forbids to subtract addresses, and so to count octets, and adds
        // protection against the program's own author to every lookup.
        ("CAP_PERFMON", PERFMON | SYS_ADMIN, "loading an XDP program that computes with addresses"),
        ("CAP_NET_ADMIN", NET_ADMIN, "attaching the XDP program"),
    ]
    .into_iter()
    .find(|(_, any_of, _)| effective & any_of == 0)
    .map(|(capability, _, purpose)| (capability, purpose))
}

/// Before Linux 5.11 maps count against RLIMIT_MEMLOCK. Where raising it is not allowed the
/// kernel's own answer to making the maps says more.
fn lift_memory_limit() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

fn draw_secret() -> Result<u64, KernelError> {
    const SOURCE: &str = "/dev/urandom";
    let mut secret = [0; 8];
    File::open(SOURCE)
        .and_then(|mut source| source.read_exact(&mut secret))
        .map_err(KernelError::file("read", PathBuf::from(SOURCE)))?;
    Ok(u64::from_ne_bytes(secret))
}

fn ban_bit(source: Source, settings: &abi::Settings) -> u32 {
    abi::ban_bit(bucket::hash(source, settings.secret))
}

fn in_force(source: Source, ban: &abi::Ban, now_ns: u64) -> Option<BanEntry> {
    let remaining_ns = u64::try_from(ban.expires_ns.wrapping_sub(now_ns) as i64).ok()?;
    (remaining_ns > 0).then(|| BanEntry {
        source,
        remaining: Duration::from_nanos(remaining_ns),
        age: Duration::from_nanos(now_ns.saturating_sub(ban.set_ns)),
        reason: ban.reason,
        origin: ban.origin,
        level: ban.level,
    })
}

fn prefix_in_force(net: IpNet, ban: &abi::Ban, now_ns: u64) -> Option<PrefixBanEntry> {
    let remaining_ns = u64::try_from(ban.expires_ns.wrapping_sub(now_ns) as i64).ok()?;
    (remaining_ns > 0).then(|| PrefixBanEntry {
        net,
        remaining: Duration::from_nanos(remaining_ns),
        age: Duration::from_nanos(now_ns.saturating_sub(ban.set_ns)),
        reason: ban.reason,
        origin: ban.origin,
    })
}

/// What the system said, out of aya's error for attaching; other errors as they are.
fn system_error(error: ProgramError) -> Result<io::Error, KernelError> {
    match error {
        ProgramError::SyscallError(error) => Ok(error.io_error),
        ProgramError::XdpError(error) => Ok(io::Error::other(error)),
        other => Err(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_capability_that_is_missing() {
        for (effective, missing) in [
            (0, Some("CAP_BPF")),
            (1 << 39, Some("CAP_PERFMON")),
            (1 << 39 | 1 << 38, Some("CAP_NET_ADMIN")),
            (1 << 39 | 1 << 38 | 1 << 12, None),
            (1 << 21, Some("CAP_NET_ADMIN")),
            (1 << 21 | 1 << 12, None),
            (u64::MAX, None),
        ] {
            let named = missing_capability(effective).map(|(capability, _)| capability);
            assert_eq!(named, missing, "{effective:#x}");
        }
    }

    /// Its calls block, so it must be able to move to a thread where that is allowed.
    #[test]
    fn can_be_sent_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<Kernel>();
        is_send::<KernelError>();
    }

    #[test]
    fn a_ban_is_in_force_until_its_last_nanosecond() {
        let source = Source::ipv4(1);
        let ban = abi::Ban { expires_ns: 1_000, set_ns: 400, ..abi::Ban::default() };
        for (now_ns, remaining) in [(400, Some(600)), (999, Some(1)), (1_000, None), (5_000, None)]
        {
            let entry = in_force(source, &ban, now_ns);
            assert_eq!(entry.map(|entry| entry.remaining.as_nanos()), remaining, "at {now_ns}");
        }
    }
}
