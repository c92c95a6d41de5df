//! The kernel's maps, typed. The only file that names one.

use std::{collections::BTreeSet, fmt, path::Path};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType, PerCpuArray,
        PerCpuValues, lpm_trie::Key,
    },
};
use gateway_ebpf::{
    Source,
    abi::{self, Ban, Class, Count, Interface, PortWord, PrefixBan, PrefixData, PrefixWord},
    bucket::{Set, WAYS},
    verdict::Quota,
};

use super::{
    error::KernelError,
    plan::{self, Prefix, Write},
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
pub fn layouts(max_sources: u32) -> [Layout; 14] {
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
    let buckets = |name| Layout {
        flags: abi::MMAPABLE,
        ..array(name, size_of::<Set>(), abi::bucket_sets(max_sources))
    };
    [
        array(abi::SETTINGS_MAP, size_of::<abi::Settings>(), 1),
        array(abi::PORTS_MAP, size_of::<PortWord>(), abi::PORT_WORDS),
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
        array(abi::BAN_FILTER_MAP, size_of::<u64>(), abi::BAN_FILTER_WORDS),
        Layout {
            value_bytes: size_of::<PrefixBan>(),
            ..trie(abi::BAN_PREFIXES_MAP, abi::BAN_PREFIXES_MAX)
        },
        trie(abi::DENY_MAP, abi::DENY_MAX),
        trie(abi::EXEMPT_MAP, abi::EXEMPT_MAX),
        array(abi::PREFIX_FILTER_MAP, size_of::<PrefixWord>(), abi::PREFIX_FILTER_WORDS),
        buckets(abi::BUCKETS_MAP),
        buckets(abi::CONNECTIONS_MAP),
        buckets(abi::BYTES_MAP),
        Layout {
            kind: MapType::PerCpuArray,
            ..array(abi::COUNTERS_MAP, size_of::<Count>(), abi::INTERFACES_MAX * abi::CELLS)
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
    for name in [abi::BUCKETS_MAP, abi::CONNECTIONS_MAP, abi::BYTES_MAP] {
        loader.map_max_entries(name, abi::bucket_sets(max_sources));
    }
    if let Some(directory) = pins {
        for layout in layouts(max_sources) {
            loader.map_pin_path(layout.name, directory.join(layout.name));
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Every map that user space reads or writes. Buckets are the program's own.
pub struct Maps {
    settings: Array<MapData, abi::Settings>,
    ports: Array<MapData, PortWord>,
    bans: HashMap<MapData, u64, Ban>,
    classes: HashMap<MapData, u64, Class>,
    ban_filter: Array<MapData, u64>,
    ban_prefixes: LpmTrie<MapData, PrefixData, PrefixBan>,
    deny: LpmTrie<MapData, PrefixData, u32>,
    exempt: LpmTrie<MapData, PrefixData, u32>,
    prefix_filter: Array<MapData, PrefixWord>,
    counters: PerCpuArray<MapData, Count>,
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
        Ok(Self {
            settings: take(object, abi::SETTINGS_MAP)?,
            ports: take(object, abi::PORTS_MAP)?,
            bans: take(object, abi::BANS_MAP)?,
            classes: take(object, abi::CLASSES_MAP)?,
            ban_filter: take(object, abi::BAN_FILTER_MAP)?,
            ban_prefixes: take(object, abi::BAN_PREFIXES_MAP)?,
            deny: take(object, abi::DENY_MAP)?,
            exempt: take(object, abi::EXEMPT_MAP)?,
            prefix_filter: take(object, abi::PREFIX_FILTER_MAP)?,
            counters: take(object, abi::COUNTERS_MAP)?,
            interfaces: take(object, abi::INTERFACES_MAP)?,
        })
    }

    /// The program's settings; all zeroes in new maps.
    pub fn settings(&self) -> Result<abi::Settings, KernelError> {
        self.settings.get(&0, 0).map_err(KernelError::map(abi::SETTINGS_MAP))
    }

    /// Replaces the program's settings in one write.
    pub fn write_settings(&mut self, settings: &abi::Settings) -> Result<(), KernelError> {
        self.settings.set(0, settings, 0).map_err(KernelError::map(abi::SETTINGS_MAP))
    }

    /// Makes the port map these words.
    pub fn write_ports(&mut self, wanted: &[PortWord]) -> Result<(), KernelError> {
        write_words(&mut self.ports, wanted).map_err(KernelError::map(abi::PORTS_MAP))
    }

    /// Makes the two lists these prefixes and the tries' filter these words.
    ///
    /// The filter shows whatever the tries hold at any moment: bits are added before prefixes and
    /// taken away after them.
    pub fn write_prefixes(
        &mut self,
        deny: &BTreeSet<Prefix>,
        exempt: &BTreeSet<Prefix>,
        filter: &[PrefixWord],
    ) -> Result<(), KernelError> {
        let of_filter = || KernelError::map(abi::PREFIX_FILTER_MAP);
        let present =
            self.prefix_filter.iter().collect::<Result<Vec<_>, _>>().map_err(of_filter())?;
        let both: Vec<PrefixWord> = filter
            .iter()
            .zip(&present)
            .map(|(wanted, present)| PrefixWord {
                deny: wanted.deny | present.deny,
                exempt: wanted.exempt | present.exempt,
                ban: wanted.ban | present.ban,
                _pad: 0,
            })
            .collect();
        write_words(&mut self.prefix_filter, &both).map_err(of_filter())?;
        // What is to be spared first: a prefix on both lists is spared.
        write_trie(&mut self.exempt, exempt).map_err(KernelError::map(abi::EXEMPT_MAP))?;
        write_trie(&mut self.deny, deny).map_err(KernelError::map(abi::DENY_MAP))?;
        write_words(&mut self.prefix_filter, filter).map_err(of_filter())
    }

    /// Makes the filter in front of the tries these words.
    pub fn write_prefix_filter(&mut self, filter: &[PrefixWord]) -> Result<(), KernelError> {
        write_words(&mut self.prefix_filter, filter)
            .map_err(KernelError::map(abi::PREFIX_FILTER_MAP))
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
            Ok(()) => Ok(true),
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
        self.ban_prefixes
            .remove(&Key::new(prefix.bits, prefix.data))
            .map_err(KernelError::map(abi::BAN_PREFIXES_MAP))
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
            Ok(()) => Ok(true),
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
        match self.bans.remove(&source.word()) {
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
        match class {
            Some(class) => self.classes.insert(source.word(), class, 0),
            None => self.classes.remove(&source.word()),
        }
        .map_err(KernelError::map(abi::CLASSES_MAP))
    }

    /// Makes the filter in front of bans and classes these words.
    pub fn write_ban_filter(&mut self, wanted: &[u64]) -> Result<(), KernelError> {
        write_words(&mut self.ban_filter, wanted).map_err(KernelError::map(abi::BAN_FILTER_MAP))
    }

    /// Replaces one word of the filter in front of the bans.
    pub fn write_ban_filter_word(&mut self, index: u32, word: u64) -> Result<(), KernelError> {
        self.ban_filter.set(index, word, 0).map_err(KernelError::map(abi::BAN_FILTER_MAP))
    }

    /// What all CPUs counted in one cell of a slot.
    pub fn count(&self, slot: u32, cell: u32) -> Result<Count, KernelError> {
        let counts = self
            .counters
            .get(&(slot * abi::CELLS + cell), 0)
            .map_err(KernelError::map(abi::COUNTERS_MAP))?;
        Ok(counts.iter().fold(Count::default(), |sum, count| Count {
            packets: sum.packets.wrapping_add(count.packets),
            bytes: sum.bytes.wrapping_add(count.bytes),
        }))
    }

    /// Sets the counters of a slot back to nothing, for its next interface.
    pub fn clear_counts(&mut self, slot: u32) -> Result<(), KernelError> {
        let failed = || KernelError::map(abi::COUNTERS_MAP);
        for cell in slot * abi::CELLS..(slot + 1) * abi::CELLS {
            let cpus = self.counters.get(&cell, 0).map_err(failed())?.len();
            let nothing = PerCpuValues::try_from(vec![Count::default(); cpus])
                .map_err(MapError::IoError)
                .map_err(failed())?;
            self.counters.set(cell, nothing, 0).map_err(failed())?;
        }
        Ok(())
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

/// When the bucket of one source is full again, from the pinned table of a quota; `None` when the
/// source has none there, so that its bucket is full.
pub fn pinned_bucket(
    directory: &Path,
    quota: Quota,
    source: Source,
    index: u32,
) -> Result<Option<u64>, KernelError> {
    let name = match quota {
        Quota::Packets => abi::BUCKETS_MAP,
        Quota::Connections => abi::CONNECTIONS_MAP,
        Quota::Bytes => abi::BYTES_MAP,
    };
    let read = || -> Result<_, MapError> {
        let map = Map::from_map_data(MapData::from_pin(directory.join(name))?)?;
        // A set as numbers: the owner and the moment, four times.
        Array::<_, [[u64; 2]; WAYS]>::try_from(map)?.get(&index, 0)
    };
    let ways = read().map_err(KernelError::map(name))?;
    let way = ways.iter().find(|[owner, _]| *owner == source.word());
    Ok(way.map(|[_, full_at_ns]| *full_at_ns))
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

fn write_words<W: Pod + PartialEq>(
    map: &mut Array<MapData, W>,
    wanted: &[W],
) -> Result<(), MapError> {
    let present = map.iter().collect::<Result<Vec<_>, _>>()?;
    for (index, word) in plan::words(wanted, &present) {
        map.set(index, word, 0)?;
    }
    Ok(())
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
