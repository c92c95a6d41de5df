//! The kernel's maps, typed. The only file that names one.

use std::{
    array,
    collections::BTreeSet,
    fmt,
    mem::offset_of,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType, PerCpuArray,
        PerCpuValues, RingBuf, lpm_trie::Key,
    },
};
use gateway_ebpf::{
    Source,
    abi::{
        self, BAN_WAYS, Ban, Class, Count, Counters, Event, Interface, PrefixBan, PrefixData,
        Rules, Settings,
    },
    bucket::{self, Limit, Others, SET_WORDS, Set, WAYS, WayState},
};

use super::{
    Inherited,
    error::KernelError,
    plan::{self, Prefix, Write},
    shared::{Access, SharedWords},
};

/// The XDP program as the build embedded it; empty when it was built without.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-xdp"));

/// How one map must be made.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name in the object, and of its pin.
    pub name: &'static str,
    kind: MapType,
    key_bytes: usize,
    value_bytes: usize,
    entries: u32,
    flags: u32,
}

/// How every map must be made for so many sources.
pub fn layouts(max_sources: u32) -> [Layout; 11] {
    let array = |name, value_bytes, entries| Layout {
        name,
        kind: MapType::Array,
        key_bytes: size_of::<u32>(),
        value_bytes,
        entries,
        flags: 0,
    };
    let trie = |name, entries| Layout {
        name,
        kind: MapType::LpmTrie,
        key_bytes: size_of::<Key<PrefixData>>(),
        value_bytes: size_of::<u32>(),
        entries,
        flags: abi::NO_PREALLOC,
    };
    let shared = |layout| Layout { flags: abi::MMAPABLE, ..layout };
    [
        shared(array(abi::RULES_MAP, size_of::<Rules>(), 1)),
        shared(array(abi::SOURCES_MAP, size_of::<Set>(), abi::bucket_sets(max_sources))),
        shared(array(abi::OTHERS_MAP, size_of::<Others>(), abi::bucket_sets(max_sources))),
        Layout {
            name: abi::BANS_MAP,
            kind: MapType::Hash,
            key_bytes: size_of::<u64>(),
            value_bytes: size_of::<Ban>(),
            entries: abi::BANS_MAX,
            flags: 0,
        },
        Layout {
            name: abi::CLASSES_MAP,
            kind: MapType::Hash,
            key_bytes: size_of::<u64>(),
            value_bytes: size_of::<Class>(),
            entries: abi::CLASSES_MAX,
            flags: 0,
        },
        Layout {
            value_bytes: size_of::<PrefixBan>(),
            ..trie(abi::BAN_PREFIXES_MAP, abi::BAN_PREFIXES_MAX)
        },
        trie(abi::DENY_MAP, abi::DENY_MAX),
        trie(abi::EXEMPT_MAP, abi::EXEMPT_MAX),
        Layout {
            kind: MapType::PerCpuArray,
            ..array(abi::COUNTERS_MAP, size_of::<Counters>(), abi::INTERFACES_MAX)
        },
        Layout {
            name: abi::EVENTS_MAP,
            kind: MapType::RingBuf,
            key_bytes: 0,
            value_bytes: 0,
            entries: abi::EVENTS_BYTES,
            flags: 0,
        },
        array(abi::INTERFACES_MAP, size_of::<Interface>(), abi::INTERFACES_MAX),
    ]
}

impl Layout {
    /// Whether the map pinned there is made like this; `None` when there is none.
    ///
    /// The loader takes a pinned map whatever its size, and a program that reads values of another
    /// size than were written is worse than one that starts anew.
    pub fn fits(&self, pin: &Path) -> Option<bool> {
        if !pin.exists() {
            return None;
        }
        Some(MapInfo::from_pin(pin).is_ok_and(|info| self.describes(&info)))
    }

    /// Whether a map is made like this.
    pub fn describes(&self, info: &MapInfo) -> bool {
        info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() as usize == self.key_bytes
            && info.value_size() as usize == self.value_bytes
            && info.max_entries() == self.entries
            && info.map_flags() == self.flags
    }
}

/// Makes an instance of the object for one interface slot; maps pinned in `pins` are shared, and
/// those that are missing there are made and pinned. Without `pins` it has maps of its own.
pub fn load(pins: Option<&Path>, slot: u32, max_sources: u32) -> Result<Ebpf, KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::NotBuilt);
    }
    let mut loader = EbpfLoader::new();
    loader.override_global(abi::SLOT_SYMBOL, &slot, true);
    for name in [abi::SOURCES_MAP, abi::OTHERS_MAP] {
        loader.map_max_entries(name, abi::bucket_sets(max_sources));
    }
    if let Some(directory) = pins {
        for layout in layouts(max_sources) {
            loader.map_pin_path(layout.name, directory.join(layout.name));
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Every map that user space reads or writes.
pub struct Maps {
    rules: RulesMemory,
    sources: SharedWords,
    others: SharedWords,
    bans: HashMap<MapData, u64, Ban>,
    classes: HashMap<MapData, u64, Class>,
    ban_prefixes: LpmTrie<MapData, PrefixData, PrefixBan>,
    deny: LpmTrie<MapData, PrefixData, u32>,
    exempt: LpmTrie<MapData, PrefixData, u32>,
    counters: PerCpuArray<MapData, Counters>,
    events: RingBuf<MapData>,
    interfaces: Array<MapData, Interface>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(object: &mut Ebpf) -> Result<Self, KernelError> {
        let rules = memory(object, abi::RULES_MAP, size_of::<Rules>(), Access::Write)?;
        Ok(Self {
            rules: RulesMemory(rules),
            sources: memory(object, abi::SOURCES_MAP, size_of::<Set>(), Access::Read)?,
            others: memory(object, abi::OTHERS_MAP, size_of::<Others>(), Access::Read)?,
            bans: take(object, abi::BANS_MAP)?,
            classes: take(object, abi::CLASSES_MAP)?,
            ban_prefixes: take(object, abi::BAN_PREFIXES_MAP)?,
            deny: take(object, abi::DENY_MAP)?,
            exempt: take(object, abi::EXEMPT_MAP)?,
            counters: take(object, abi::COUNTERS_MAP)?,
            events: take(object, abi::EVENTS_MAP)?,
            interfaces: take(object, abi::INTERFACES_MAP)?,
        })
    }

    /// The program's settings, as they are in force; all zeroes in new maps.
    pub fn settings(&self) -> Settings {
        self.rules.settings()
    }

    /// Replaces the program's settings.
    pub fn write_settings(&mut self, settings: &Settings) {
        self.rules.write_settings(settings);
        self.rules.changed();
    }

    /// Makes the marks of all ports these. The program looks at them before it asks its memory.
    pub fn write_ports(&mut self, wanted: &[u8]) {
        self.rules.write_octets(offset_of!(Rules, ports), wanted);
    }

    /// Makes the two lists these prefixes and the marks of the tries' filter these.
    ///
    /// The filter shows whatever the tries hold at any moment: marks are added before prefixes and
    /// taken away after them.
    pub fn write_prefixes(
        &mut self,
        deny: &BTreeSet<Prefix>,
        exempt: &BTreeSet<Prefix>,
        filter: &[u8],
    ) -> Result<(), KernelError> {
        let present = self.rules.octets(offset_of!(Rules, prefixes), filter.len());
        let both: Vec<u8> =
            filter.iter().zip(present).map(|(wanted, present)| wanted | present).collect();
        self.write_prefix_filter(&both);
        // What is to be spared first: a prefix on both lists is spared.
        let exempted =
            write_trie(&mut self.exempt, exempt).map_err(KernelError::map(abi::EXEMPT_MAP));
        let written = exempted.and_then(|()| {
            write_trie(&mut self.deny, deny).map_err(KernelError::map(abi::DENY_MAP))
        });
        self.rules.changed();
        written?;
        self.write_prefix_filter(filter);
        Ok(())
    }

    /// Makes the marks of the filter in front of the tries these.
    pub fn write_prefix_filter(&mut self, filter: &[u8]) {
        self.rules.write_octets(offset_of!(Rules, prefixes), filter);
        self.rules.changed();
    }

    /// Every banned prefix, expired or not.
    pub fn prefix_bans(&self) -> Result<Vec<(Prefix, PrefixBan)>, KernelError> {
        self.ban_prefixes
            .iter()
            .map(|entry| {
                entry.map(|(key, ban)| (Prefix { bits: key.prefix_len(), data: key.data() }, ban))
            })
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(abi::BAN_PREFIXES_MAP))
    }

    /// Sets or replaces the ban of a prefix; false when the trie is full.
    pub fn insert_prefix_ban(
        &mut self,
        prefix: Prefix,
        ban: &PrefixBan,
    ) -> Result<bool, KernelError> {
        match self.ban_prefixes.insert(&Key::new(prefix.bits, prefix.data), ban, 0) {
            Ok(()) => {
                self.rules.changed();
                Ok(true)
            }
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOSPC) =>
            {
                Ok(false)
            }
            Err(error) => Err(KernelError::map(abi::BAN_PREFIXES_MAP)(error)),
        }
    }

    /// Takes the ban of a prefix away; it must be there.
    pub fn remove_prefix_ban(&mut self, prefix: Prefix) -> Result<(), KernelError> {
        let removed = self.ban_prefixes.remove(&Key::new(prefix.bits, prefix.data));
        self.rules.changed();
        removed.map_err(KernelError::map(abi::BAN_PREFIXES_MAP))
    }

    /// Takes over what a directory of an earlier layout holds in maps that have stayed as they were:
    /// bans, bans of prefixes, classes. What is here already is newer and stays.
    ///
    /// The program that still goes by those maps is not touched. `None` when that layout's are not
    /// known to mean the same.
    pub fn inherit(
        &mut self,
        directory: &Path,
        layout: u32,
    ) -> Result<Option<Inherited>, KernelError> {
        if !SAME_BANS_LAYOUTS.contains(&layout) {
            return Ok(None);
        }
        let mut inherited = Inherited::default();
        if let Some(bans) = pinned::<HashMap<_, u64, Ban>>(directory, abi::BANS_MAP) {
            for entry in bans.iter() {
                let (source, ban) = entry.map_err(KernelError::map(abi::BANS_MAP))?;
                inherited.bans += added(self.bans.insert(source, ban, NO_EXIST), abi::BANS_MAP)?;
            }
        }
        if let Some(classes) = pinned::<HashMap<_, u64, Class>>(directory, abi::CLASSES_MAP) {
            for entry in classes.iter() {
                let (source, class) = entry.map_err(KernelError::map(abi::CLASSES_MAP))?;
                inherited.classes +=
                    added(self.classes.insert(source, class, NO_EXIST), abi::CLASSES_MAP)?;
            }
        }
        let prefixes =
            pinned::<LpmTrie<_, PrefixData, PrefixBan>>(directory, abi::BAN_PREFIXES_MAP);
        if let Some(prefixes) = prefixes {
            for entry in prefixes.iter() {
                let (prefix, ban) = entry.map_err(KernelError::map(abi::BAN_PREFIXES_MAP))?;
                inherited.prefixes +=
                    added(self.ban_prefixes.insert(&prefix, ban, NO_EXIST), abi::BAN_PREFIXES_MAP)?;
            }
        }
        Ok(Some(inherited))
    }

    /// Every entry among the bans, expired or not.
    pub fn bans(&self) -> Result<Vec<(Source, Ban)>, KernelError> {
        self.bans
            .iter()
            .map(|entry| entry.map(|(word, ban)| (Source::from_word(word), ban)))
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(abi::BANS_MAP))
    }

    /// The ban of one source, expired or not.
    pub fn ban(&self, source: Source) -> Result<Option<Ban>, KernelError> {
        match self.bans.get(&source.word(), 0) {
            Ok(ban) => Ok(Some(ban)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(KernelError::map(abi::BANS_MAP)(error)),
        }
    }

    /// Sets or replaces a ban; false when the map is full.
    pub fn insert_ban(&mut self, source: Source, ban: &Ban) -> Result<bool, KernelError> {
        match self.bans.insert(source.word(), ban, 0) {
            Ok(()) => {
                self.rules.show_ban(source, ban.expires_ns);
                self.rules.changed();
                Ok(true)
            }
            // A preallocated hash that has no element left.
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Ok(false)
            }
            Err(error) => Err(KernelError::map(abi::BANS_MAP)(error)),
        }
    }

    /// Takes a ban away; false when there was none.
    pub fn remove_ban(&mut self, source: Source) -> Result<bool, KernelError> {
        self.rules.hide_ban(source);
        let removed = self.bans.remove(&source.word());
        self.rules.changed();
        match removed {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(false)
            }
            Err(error) => Err(KernelError::map(abi::BANS_MAP)(error)),
        }
    }

    /// Every source with limits of its own, expired or not.
    pub fn classes(&self) -> Result<Vec<(Source, Class)>, KernelError> {
        self.classes
            .iter()
            .map(|entry| entry.map(|(word, class)| (Source::from_word(word), class)))
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(abi::CLASSES_MAP))
    }

    /// Gives a source limits of its own, or takes them away.
    pub fn write_class(
        &mut self,
        source: Source,
        class: Option<&Class>,
    ) -> Result<(), KernelError> {
        let written = match class {
            Some(class) => self.classes.insert(source.word(), class, 0),
            None => self.classes.remove(&source.word()),
        };
        self.rules.changed();
        written.map_err(KernelError::map(abi::CLASSES_MAP))
    }

    /// Makes the filter in front of bans and classes these words.
    pub fn write_ban_filter(&mut self, wanted: &[u64]) {
        let filter = self.rules.part(offset_of!(Rules, ban_filter), wanted.len());
        for (present, wanted) in filter.iter().zip(wanted) {
            present.store(*wanted, Release);
        }
        self.rules.changed();
    }

    /// Replaces one word of the filter in front of the bans.
    pub fn write_ban_filter_word(&mut self, index: u32, word: u64) {
        let filter = self.rules.part(offset_of!(Rules, ban_filter), abi::BAN_FILTER_WORDS as usize);
        if let Some(present) = filter.get(index as usize) {
            present.store(word, Release);
        }
        self.rules.changed();
    }

    /// Makes the sets in front of the bans show what the hash holds. While that is done the program
    /// finds bans in the hash.
    pub fn rebuild_ban_sets(&mut self) -> Result<(), KernelError> {
        self.rules.hide_bans();
        for (source, ban) in self.bans()? {
            self.rules.show_ban(source, ban.expires_ns);
        }
        self.rules.changed();
        Ok(())
    }

    /// The sources that share a set of the table.
    pub fn ways(&self, set: usize) -> [WayState; WAYS] {
        let words = |memory: &SharedWords| {
            let words = memory.words().get(set * SET_WORDS..).unwrap_or_default();
            array::from_fn(|at| words.get(at).map_or(0, |word| word.load(Relaxed)))
        };
        WayState::of_set(&words(&self.sources), &words(&self.others))
    }

    /// Sets of the table of sources.
    pub fn sets(&self) -> usize {
        self.sources.words().len() / SET_WORDS
    }

    /// What all CPUs counted in one cell of a slot.
    pub fn count(&self, slot: u32, cell: u32) -> Result<Count, KernelError> {
        let (cells, _) = self.counts(slot)?;
        Ok(cells.get(cell as usize).copied().unwrap_or_default())
    }

    /// What all CPUs counted on a slot's interface, by cells, and how many events found no room.
    pub fn counts(&self, slot: u32) -> Result<([Count; abi::CELLS as usize], u64), KernelError> {
        let of_cpus = self.counters.get(&slot, 0).map_err(KernelError::map(abi::COUNTERS_MAP))?;
        let mut cells = [Count::default(); abi::CELLS as usize];
        let mut events_lost: u64 = 0;
        for of_cpu in of_cpus.iter() {
            for (sum, count) in cells.iter_mut().zip(of_cpu.cells) {
                sum.packets = sum.packets.wrapping_add(count.packets);
                sum.bytes = sum.bytes.wrapping_add(count.bytes);
            }
            events_lost = events_lost.wrapping_add(of_cpu.events_lost);
        }
        Ok((cells, events_lost))
    }

    /// Sets the counters of a slot back to nothing, for its next interface.
    pub fn clear_counts(&mut self, slot: u32) -> Result<(), KernelError> {
        let failed = || KernelError::map(abi::COUNTERS_MAP);
        let cpus = self.counters.get(&slot, 0).map_err(failed())?.len();
        let nothing = PerCpuValues::try_from(vec![Counters::default(); cpus])
            .map_err(MapError::IoError)
            .map_err(failed())?;
        self.counters.set(slot, nothing, 0).map_err(failed())
    }

    /// The oldest event that was not taken yet.
    pub fn take_event(&mut self) -> Option<Event> {
        // One that is of another length was not written by this program.
        loop {
            let octets = self.events.next()?;
            if let Ok(octets) = <&[u8; size_of::<Event>()]>::try_from(&*octets) {
                return Some(event(octets));
            }
        }
    }

    /// Readable while there are events.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The name of the interface in each slot.
    pub fn interfaces(&self) -> Result<Vec<Option<String>>, KernelError> {
        self.interfaces
            .iter()
            .map(|interface| interface.map(|interface| interface_name(&interface)))
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(abi::INTERFACES_MAP))
    }

    /// Gives a slot to an interface, or to none.
    pub fn write_interface(&mut self, slot: u32, name: Option<&str>) -> Result<(), KernelError> {
        let mut interface = Interface::default();
        // Names have at most 15 octets (IFNAMSIZ counts the zero at the end).
        for (octet, letter) in interface.name.iter_mut().zip(name.unwrap_or_default().bytes()) {
            *octet = letter;
        }
        self.interfaces.set(slot, interface, 0).map_err(KernelError::map(abi::INTERFACES_MAP))
    }
}

/// The program's rules, in memory that both halves share. This process alone writes it.
struct RulesMemory(SharedWords);

impl RulesMemory {
    /// Words of a part that begins so many octets after the start.
    fn part(&self, offset_bytes: usize, count: usize) -> &[AtomicU64] {
        let first = offset_bytes / size_of::<u64>();
        self.0.words().get(first..first + count).unwrap_or_default()
    }

    /// Follows every change of a rule: what was judged before it counts no more. The program reads the
    /// number before the rules, so what it remembers under the new number was judged by the new rule;
    /// on a machine that reads out of order, at the latest with the next tick.
    fn changed(&self) {
        for number in self.part(offset_of!(Rules, revision), 1) {
            number.fetch_add(1, Release);
        }
    }

    fn settings(&self) -> Settings {
        let words = self.part(offset_of!(Rules, settings), SETTINGS_WORDS);
        let word = |at: usize| words.get(at).map_or(0, |word| word.load(Acquire));
        let limit = |at| Limit { cost_ns: word(at), tolerance_ns: word(at + 1) };
        Settings {
            packets: limit(0),
            connections: limit(2),
            bytes: limit(4),
            network_packets: limit(6),
            network_connections: limit(8),
            newcomers: limit(10),
            ns_per_jiffy: word(12),
            secret: word(13),
            set_shift: word(14),
            enforce: word(15),
        }
    }

    /// Each word by itself: a packet that is judged meanwhile may meet one limit that is new and one
    /// that is not, but no half of a limit that would drop it.
    fn write_settings(&self, settings: &Settings) {
        let words = self.part(offset_of!(Rules, settings), SETTINGS_WORDS);
        let Settings {
            packets,
            connections,
            bytes,
            network_packets,
            network_connections,
            newcomers,
            ns_per_jiffy,
            secret,
            set_shift,
            enforce,
        } = *settings;
        let limits = [packets, connections, bytes, network_packets, network_connections, newcomers];
        for (words, limit) in words.chunks_exact(2).zip(limits) {
            // A limit that ends: first the cost, whose 0 says so. One that begins: the cost last.
            let (cost, tolerance) = (&words[0], &words[1]);
            if limit.is_none() {
                cost.store(limit.cost_ns, Release);
                tolerance.store(limit.tolerance_ns, Release);
            } else {
                tolerance.store(limit.tolerance_ns, Release);
                cost.store(limit.cost_ns, Release);
            }
        }
        let rest = words.get(2 * limits.len()..).unwrap_or_default();
        for (word, value) in rest.iter().zip([ns_per_jiffy, secret, set_shift, enforce]) {
            word.store(value, Release);
        }
    }

    fn octets(&self, offset_bytes: usize, count: usize) -> Vec<u8> {
        let words = self.part(offset_bytes, count / size_of::<u64>());
        words.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect()
    }

    fn write_octets(&self, offset_bytes: usize, wanted: &[u8]) {
        let (wanted, _) = wanted.as_chunks();
        for (present, wanted) in self.part(offset_bytes, wanted.len()).iter().zip(wanted) {
            let wanted = u64::from_ne_bytes(*wanted);
            if present.load(Relaxed) != wanted {
                present.store(wanted, Release);
            }
        }
    }

    /// The places where a ban of this source may stand, each as its source and its end.
    fn ban_ways(&self, source: Source) -> impl Iterator<Item = (&AtomicU64, &AtomicU64)> {
        let secret = self.settings().secret;
        let set = abi::ban_bit(bucket::hash(source, secret)) as usize / 64;
        let offset_bytes = offset_of!(Rules, ban_sets) + set * size_of::<abi::BanSet>();
        self.part(offset_bytes, 2 * BAN_WAYS).chunks_exact(2).map(|way| (&way[0], &way[1]))
    }

    /// See [`abi::BanSet`] for the order. Where there is no room the hash has the ban alone.
    fn show_ban(&self, source: Source, expires_ns: u64) {
        let word = source.word();
        let is_free = |end: &AtomicU64| end.load(Relaxed) == 0;
        let own =
            self.ban_ways(source).find(|(owner, end)| owner.load(Relaxed) == word && !is_free(end));
        if let Some((_, end)) = own {
            end.store(expires_ns, Release);
        } else if let Some((owner, end)) = self.ban_ways(source).find(|(_, end)| is_free(end)) {
            end.store(0, Release);
            owner.store(word, Release);
            end.store(expires_ns, Release);
        }
    }

    fn hide_ban(&self, source: Source) {
        for (owner, end) in self.ban_ways(source) {
            if owner.load(Relaxed) == source.word() {
                end.store(0, Release);
            }
        }
    }

    fn hide_bans(&self) {
        let count = abi::BAN_FILTER_WORDS as usize * 2 * BAN_WAYS;
        for way in self.part(offset_of!(Rules, ban_sets), count).chunks_exact(2) {
            way[1].store(0, Release);
        }
    }
}

const SETTINGS_WORDS: usize = size_of::<Settings>() / size_of::<u64>();

/// An event as the program wrote it.
fn event(octets: &[u8; size_of::<Event>()]) -> Event {
    let (words, _) = octets.as_chunks();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_ne_bytes(*word));
    let [slot, outcome] = halves(word(1));
    Event {
        monotonic_ns: word(0),
        slot,
        outcome,
        frame_bytes: word(2),
        enforced: word(3),
        head: array::from_fn(|at| word(4 + at)),
    }
}

/// Two numbers that lie one after the other.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

/// The memory of an array whose values are so many octets long. The object keeps the map, which its
/// programs have yet to be loaded with.
fn memory(
    object: &Ebpf,
    name: &'static str,
    value_bytes: usize,
    access: Access,
) -> Result<SharedWords, KernelError> {
    let failed = || KernelError::map(name);
    let Some(Map::Array(map)) = object.map(name) else {
        return Err(failed()(MapError::InvalidName { name: name.to_owned() }));
    };
    let entries = map.info().map_err(failed())?.max_entries() as usize;
    let words = entries.saturating_mul(value_bytes / size_of::<u64>());
    SharedWords::map(map.fd().as_fd(), words, access)
        .map_err(|error| failed()(MapError::IoError(error)))
}

/// Layouts whose bans, bans of prefixes and classes are written as today's, on the same clock.
const SAME_BANS_LAYOUTS: [u32; 3] = [2, 3, 4];
/// `BPF_NOEXIST`: leave alone what is there.
const NO_EXIST: u64 = 1;

/// A pinned map of this kind; `None` when there is none, or it is of another.
fn pinned<M: TryFrom<Map, Error = MapError>>(directory: &Path, name: &str) -> Option<M> {
    let map = Map::from_map_data(MapData::from_pin(directory.join(name)).ok()?).ok()?;
    M::try_from(map).ok()
}

/// 1 for an entry that was added, 0 for one that was there or found no room.
fn added(result: Result<(), MapError>, name: &'static str) -> Result<usize, KernelError> {
    match result {
        Ok(()) => Ok(1),
        Err(MapError::SyscallError(error))
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc::EEXIST | libc::E2BIG | libc::ENOSPC)
            ) =>
        {
            Ok(0)
        }
        Err(error) => Err(KernelError::map(name)(error)),
    }
}

/// The names of the interfaces in a directory of pinned maps, whoever made them.
pub fn pinned_interfaces(directory: &Path) -> Vec<Option<String>> {
    let read = || -> Result<Vec<_>, MapError> {
        let map = Map::from_map_data(MapData::from_pin(directory.join(abi::INTERFACES_MAP))?)?;
        let interfaces = Array::<_, Interface>::try_from(map)?;
        interfaces.iter().map(|entry| entry.map(|entry| interface_name(&entry))).collect()
    };
    // Of another layout or gone: then nobody knows the names.
    read().unwrap_or_default()
}

fn interface_name(interface: &Interface) -> Option<String> {
    let end = interface.name.iter().position(|&octet| octet == 0).unwrap_or(interface.name.len());
    (end > 0).then(|| String::from_utf8_lossy(&interface.name[..end]).into_owned())
}

fn take<M: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<M, KernelError> {
    let map = object.take_map(name).ok_or(MapError::InvalidName { name: name.to_owned() });
    map.and_then(M::try_from).map_err(KernelError::map(name))
}

fn write_trie(
    trie: &mut LpmTrie<MapData, PrefixData, u32>,
    wanted: &BTreeSet<Prefix>,
) -> Result<(), MapError> {
    let present = trie
        .keys()
        .map(|key| key.map(|key| Prefix { bits: key.prefix_len(), data: key.data() }))
        .collect::<Result<BTreeSet<_>, _>>()?;
    for write in plan::entries(wanted, &present) {
        match write {
            Write::Insert(Prefix { bits, data }) => trie.insert(&Key::new(bits, data), 1, 0)?,
            Write::Remove(Prefix { bits, data }) => trie.remove(&Key::new(bits, data))?,
        }
    }
    Ok(())
}
