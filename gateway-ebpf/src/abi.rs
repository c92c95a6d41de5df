//! How rules and state lie in kernel memory: the maps' names, keys and values.
//!
//! Both halves and nobody else read and write these. Fixed widths, padding spelled out, sizes
//! asserted; no bool and no enum, because any bit pattern may come back from a map. Numbers are in
//! the machine's byte order, addresses are octets in network order.

use crate::{
    Outcome, Source,
    bucket::{self, Limit, Word},
    last::Last,
    packet::Address,
    verdict::Quota,
};

/// Changes whenever a map or a value changes its meaning; the directory of pinned maps carries it.
pub const LAYOUT_VERSION: u32 = 5;

/// Name of the XDP program that judges frames.
pub const PROGRAM: &str = "portcullis_xdp";
/// Name of the XDP program that writes a [`Tick`] to the front of the frame it is run on. It is
/// never attached; user space reads the kernel's clocks with it.
pub const TICK_PROGRAM: &str = "portcullis_tick";
/// Symbol of the read-only number that tells an instance of the program which interface it is for.
pub const SLOT_SYMBOL: &str = "SLOT";

/// Name of the array of one [`Rules`]: all that is looked at for each packet and lies in no hash or
/// trie, in one value, because each map that is looked into costs a packet a nanosecond.
pub const RULES_MAP: &str = "RULES";
/// Name of the hash from a source's word to its [`Ban`].
pub const BANS_MAP: &str = "BANS";
/// Name of the hash from a source's word to its [`Class`].
pub const CLASSES_MAP: &str = "CLASSES";
/// Name of the trie of banned prefixes, each with its [`PrefixBan`].
pub const BAN_PREFIXES_MAP: &str = "BAN_PREFIXES";
/// Name of the trie of prefixes that are always dropped.
pub const DENY_MAP: &str = "DENY";
/// Name of the trie of prefixes that are never dropped.
pub const EXEMPT_MAP: &str = "EXEMPT";
/// Name of the array of [`bucket::Set`].
pub const SOURCES_MAP: &str = "SOURCES";
/// Name of the array of [`bucket::Others`], of as many.
pub const OTHERS_MAP: &str = "OTHERS";
/// Name of the per-CPU array of [`Counters`], one for each interface slot.
pub const COUNTERS_MAP: &str = "COUNTERS";
/// Name of the ring buffer of [`Event`].
pub const EVENTS_MAP: &str = "EVENTS";
/// Name of the array of [`Interface`], one for each slot. Only user space reads it.
pub const INTERFACES_MAP: &str = "INTERFACES";

/// Interfaces that can be guarded at once; a bound for the counters' memory, well above the ports
/// of one machine.
pub const INTERFACES_MAX: u32 = 64;
/// Bans that can be in force at once: 6 MB of kernel memory, set aside when the map is made, so
/// that a ban never fails for lack of memory.
pub const BANS_MAX: u32 = 65_536;
/// Sources that can have limits of their own at once: 1.5 MB of kernel memory.
pub const CLASSES_MAX: u32 = 16_384;
/// Limits are doubled or halved this often at most: 64 times as much is no limit any more, a 64th
/// is next to a ban.
pub const CLASS_DOUBLINGS_MAX: i32 = 6;
/// Prefixes that can be banned at once: operators write them, by hand or from a list of the day's
/// networks; what lasts belongs on the list of denied sources.
pub const BAN_PREFIXES_MAX: u32 = 4_096;
/// Prefixes on the list of denied sources: room for a large public blocklist.
pub const DENY_MAX: u32 = 262_144;
/// Prefixes on the list of exempt sources.
pub const EXEMPT_MAX: u32 = 16_384;
/// Words of the filter in front of the bans: 2^20 bits, 128 KiB. With a thousand bans one source
/// in a thousand is looked up in vain, with a full table one in sixteen. There are as many
/// [`BanSet`]s, 1 MiB: with ten thousand bans one in 250 finds its set full and is in the hash only.
pub const BAN_FILTER_WORDS: u32 = 1 << 14;
/// A place in the filter in front of the bans is a number of so many bits.
const BAN_FILTER_BITS: u32 = (BAN_FILTER_WORDS * 64).ilog2();
/// Places of the filter in front of the tries: 2^16 for each family.
pub const PREFIX_PLACES: usize = 1 << 17;
/// All ports.
pub const PORTS: usize = 1 << 16;
/// Octets of the ring buffer: nearly four thousand events, which is what sixteen CPUs under attack
/// tell of in two seconds; its reader comes several times in each.
pub const EVENTS_BYTES: u32 = 1 << 19;
/// Drops that one CPU tells of, for each interface: enough to see an attack's sources and reasons,
/// little enough that telling costs nothing (100 times a microsecond in a second), and sixteen at
/// once, so that also a short scan is seen whole.
pub const EVENTS_LIMIT: Limit = Limit::new(100, 1_000_000_000, 16);
/// The smallest and largest number of sets of buckets that [`bucket_sets`] gives.
const BUCKET_SETS_RANGE: (u32, u32) = (1 << 8, 1 << 23);

/// `BPF_F_NO_PREALLOC`, which tries demand.
pub const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE` (since 5.5): places the storage at a page's start, so that what is aligned in a
/// value is aligned in memory, and lets user space read and write it without a system call.
pub const MMAPABLE: u32 = 1 << 10;

/// What the program goes by, in one value. User space writes it word by word through shared memory,
/// so every field of every part is a whole number of words.
///
/// Each part begins where a cache line does: the value lies at a page's start ([`MMAPABLE`]).
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Rules {
    /// Rates and the like.
    pub settings: Settings,
    /// The number of the rules: user space adds to it after each change of what a verdict depends on,
    /// so that nobody goes by what was judged before ([`crate::last::Like`]).
    pub revision: Revision,
    /// What all sources together may have that are not in the table yet; the only part that the
    /// program writes.
    pub newcomers: Budget,
    /// What each port is: [`PORT_GUARDED`] and the other marks. An octet for each, because a bit
    /// would cost every packet three instructions more.
    pub ports: [u8; PORTS],
    /// The filter in front of the tries, by [`prefix_place`]: [`PREFIX_DENIED`] and the other marks.
    pub prefixes: [u8; PREFIX_PLACES],
    /// The filter in front of bans and classes, by [`ban_bit`].
    pub ban_filter: [u64; BAN_FILTER_WORDS as usize],
    /// Bans once more, where they are found sooner: each is in the set that has the number of its
    /// filter's word, unless that was full.
    pub ban_sets: [BanSet; BAN_FILTER_WORDS as usize],
}
const _: () = assert!(
    size_of::<Rules>()
        == size_of::<Settings>()
            + size_of::<Revision>()
            + size_of::<Budget>()
            + PORTS
            + PREFIX_PLACES
            + BAN_FILTER_WORDS as usize * (size_of::<u64>() + size_of::<BanSet>())
);

/// The program's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Settings {
    /// Packets of one source.
    pub packets: Limit,
    /// New connections of one source.
    pub connections: Limit,
    /// Octets of one source ([`Limit::octets`]).
    pub bytes: Limit,
    /// Packets of one IPv6 /48.
    pub network_packets: Limit,
    /// New connections of one IPv6 /48.
    pub network_connections: Limit,
    /// Packets of all sources together that are not in the table yet.
    pub newcomers: Limit,
    /// Length of a jiffy, the kernel's tick: the unit of the program's clock.
    pub ns_per_jiffy: u64,
    /// Key of [`bucket::hash`], drawn when the maps are made.
    pub secret: u64,
    /// How many bits a hash loses to become the number of a set ([`set_shift`]).
    pub set_shift: u64,
    /// 1: drop what is to be dropped. 0: count it and let it pass.
    pub enforce: u64,
}
const _: () = assert!(size_of::<Settings>() == 128);

impl Settings {
    /// What each source may have of this.
    #[inline(always)]
    pub const fn limit(&self, quota: Quota) -> Limit {
        match quota {
            Quota::Packets => self.packets,
            Quota::Connections => self.connections,
            Quota::Bytes => self.bytes,
        }
    }
}

/// A number that user space adds to, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Revision {
    /// The number.
    pub number: Word,
    /// To a cache line.
    pub _pad: [u64; 7],
}
const _: () = assert!(size_of::<Revision>() == 64);

/// A bucket that all CPUs write to, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Budget {
    /// When it is full again.
    pub bucket: Word,
    /// To a cache line.
    pub _pad: [u64; 7],
}
const _: () = assert!(size_of::<Budget>() == 64);

/// Four banned sources and how long each is banned: one cache line.
///
/// User space alone writes here. To put a source where another was it writes 0 to `expires_ns`, then
/// the source, then the ban's end, each visible before the next. The program looks for the source,
/// reads the end, and looks at the source again: an end that was meant for another one is never
/// taken, because that other one was written before its end, and is then what the second look sees.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct BanSet {
    /// The places.
    pub ways: [BanWay; BAN_WAYS],
}
const _: () = assert!(size_of::<BanSet>() == 64);

/// A place in a [`BanSet`]. All zeroes is a free one, whose ban was over long ago.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BanWay {
    /// Whom ([`Source::word`]).
    pub source: Word,
    /// As [`Ban::expires_ns`].
    pub expires_ns: Word,
}

/// Places of one [`BanSet`].
pub const BAN_WAYS: usize = 4;

impl BanSet {
    /// Whether this set says that the source is banned; if not, it may be banned all the same.
    #[inline(always)]
    pub fn bans(&self, source: Source, now_ns: u64) -> bool {
        let word = source.word();
        for way in &self.ways {
            if way.source.load() == word {
                let expires_ns = way.expires_ns.load();
                return way.source.load_after(expires_ns) == word
                    && (expires_ns.wrapping_sub(now_ns) as i64) > 0;
            }
        }
        false
    }
}

/// In [`Rules::ports`]: guarded, TCP and UDP.
pub const PORT_GUARDED: u8 = 1;
/// In [`Rules::ports`]: a management service over TCP.
pub const PORT_MANAGEMENT_TCP: u8 = 2;
/// In [`Rules::ports`]: a management service over UDP.
pub const PORT_MANAGEMENT_UDP: u8 = 4;

/// One banned source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ban {
    /// The ban is in force before this moment of the program's clock, and is nothing after it.
    pub expires_ns: u64,
    /// When it was set, on the same clock.
    pub set_ns: u64,
    /// Why: user space's number.
    pub reason: u32,
    /// Who set it: user space's number.
    pub origin: u32,
    /// How many times in a row: the step of the ladder of durations.
    pub level: u32,
    /// To a multiple of eight.
    pub _pad: u32,
}
const _: () = assert!(size_of::<Ban>() == 32);

/// How one source's limits differ from those of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Class {
    /// In force before this moment of the program's clock.
    pub expires_ns: u64,
    /// How often rates and bursts are doubled; negative: halved.
    pub doublings: i32,
    /// To a multiple of eight.
    pub _pad: u32,
}
const _: () = assert!(size_of::<Class>() == 16);

/// One banned prefix.
///
/// A trie finds the longest prefix only, so each carries how long any that covers it is in force:
/// one that is over does not hide a longer ban of a shorter prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixBan {
    /// Its own ban.
    pub ban: Ban,
    /// The latest end of its own and of those of the prefixes that cover it.
    pub until_ns: u64,
}
const _: () = assert!(size_of::<PrefixBan>() == 40);

/// In [`Rules::prefixes`]: a denied prefix may cover the address.
pub const PREFIX_DENIED: u8 = 1;
/// In [`Rules::prefixes`]: a banned prefix may cover the address.
pub const PREFIX_BANNED: u8 = 2;
/// In [`Rules::prefixes`]: an exempt prefix may cover the address.
pub const PREFIX_EXEMPT: u8 = 4;

/// What one CPU counted of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their octets, from the Ethernet header on.
    pub bytes: u64,
}
const _: () = assert!(size_of::<Count>() == 16);

/// What one CPU counted on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// By [`cell`], and [`EVICTIONS_CELL`].
    pub cells: [Count; CELLS as usize],
    /// The bucket of events ([`EVENTS_LIMIT`]).
    pub events_full_at_ns: u64,
    /// Events that found no room in the ring buffer.
    pub events_lost: u64,
    /// What the program remembers of the last packet. Nobody else has a use for it.
    pub last: Last,
}
const _: () = assert!(size_of::<Counters>() == 16 * CELLS as usize + 16 + size_of::<Last>());

impl Default for Counters {
    fn default() -> Self {
        Self {
            cells: [Count::default(); CELLS as usize],
            events_full_at_ns: 0,
            events_lost: 0,
            last: Last::default(),
        }
    }
}

/// A frame that was, or would have been, dropped. Its reader finds out what it was with the parser
/// that the program has, of whose work nothing need be kept then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
    /// The interface's slot.
    pub slot: u32,
    /// Number of the [`Outcome`].
    pub outcome: u32,
    /// The frame's octets, from the Ethernet header on.
    pub frame_bytes: u64,
    /// 1: it was dropped. 0: it would have been.
    pub enforced: u64,
    /// Its first octets, in whole words of them as they lie in memory; 0 where it ended before.
    pub head: [u64; EVENT_HEAD_WORDS],
}
const _: () = assert!(size_of::<Event>() == 128);

/// Words of a frame that an event holds: two VLAN tags, an IPv6 header and two small extensions up to
/// the ports, with a little to spare.
pub const EVENT_HEAD_WORDS: usize = 12;

/// The interface that a slot belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// Its name, filled up with zeroes (`IFNAMSIZ`); all zeroes: the slot is free.
    pub name: [u8; 16],
}
const _: () = assert!(size_of::<Interface>() == 16);

/// The kernel's clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tick {
    /// `jiffies_64`.
    pub jiffies: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub monotonic_ns: u64,
}
const _: () = assert!(size_of::<Tick>() == 16);

/// The data part of a trie's key: the family, then the address, in network byte order.
///
/// The family is part of the prefix, so that `::/0` covers no IPv4 address, as it would if IPv4
/// were written as ::ffff:a.b.c.d. The last word is always 0: the kernel places a trie's value right
/// behind the key, where eight octets must be aligned.
pub type PrefixData = [u32; 6];
/// Bits of [`PrefixData`] before the address; add the prefix's own length.
pub const FAMILY_BITS: u32 = 32;

/// The key's data for one address.
#[inline(always)]
pub const fn prefix_data(address: Address) -> PrefixData {
    match address {
        Address::V4(address) => [4u32.to_be(), address.to_be(), 0, 0, 0, 0],
        Address::V6(upper, lower) => [
            6u32.to_be(),
            ((upper >> 32) as u32).to_be(),
            (upper as u32).to_be(),
            ((lower >> 32) as u32).to_be(),
            (lower as u32).to_be(),
            0,
        ],
    }
}

/// The place in the prefix filter of an address: the first 16 bits of an IPv4 address, or the
/// first 32 of an IPv6 address folded to 16. User space marks all places that a prefix covers.
#[inline(always)]
pub const fn prefix_place(address: Address) -> u32 {
    match address {
        Address::V4(address) => address >> 16,
        Address::V6(upper, _) => {
            let first = (upper >> 32) as u32;
            // Added, not combined bit by bit: kernels before 6.3 lose track of how large that can be.
            1 << 16 | ((first >> 16) + (first & 0xffff)) & 0xffff
        }
    }
}

/// The bit of the filter in front of the bans for a source, from its [`bucket::hash`].
#[inline(always)]
pub const fn ban_bit(hash: u64) -> u32 {
    (hash >> (u64::BITS - BAN_FILTER_BITS)) as u32
}

/// The set of buckets for a source, from its [`bucket::hash`].
#[inline(always)]
pub const fn bucket_set(hash: u64, set_shift: u64) -> u32 {
    (hash >> (set_shift & 63)) as u32
}

/// How many bits the hash loses where there are so many sets, a power of two above 1.
pub const fn set_shift(sets: u32) -> u64 {
    (u64::BITS - sets.ilog2()) as u64
}

/// Sets of buckets that remember `sources` at once: a power of two, at least 256, at most 2^23
/// (1 GiB of kernel memory, half of it for the other buckets).
pub const fn bucket_sets(sources: u32) -> u32 {
    let wanted = sources.div_ceil(bucket::WAYS as u32);
    let (least, most) = BUCKET_SETS_RANGE;
    if wanted <= least {
        least
    } else if wanted >= most {
        most
    } else {
        wanted.next_power_of_two()
    }
}

/// Counters of each interface slot: one for each outcome, one for each that only would have been a
/// drop, and [`EVICTIONS_CELL`]; the rest is free.
pub const CELLS: u32 = 32;
/// Counts buckets that were forgotten before they were full ([`bucket::Place::Taken`]).
pub const EVICTIONS_CELL: u32 = CELLS - 1;
/// From an outcome that drops to the cell that counts it while nothing is enforced.
const WOULD_DROP_OFFSET: u32 = Outcome::ALL.len() as u32 - Outcome::Banned as u32;

/// The cell of a slot in which a frame is counted.
#[inline(always)]
pub const fn cell(outcome: Outcome, enforce: bool) -> u32 {
    if outcome.drops() && !enforce { outcome as u32 + WOULD_DROP_OFFSET } else { outcome as u32 }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: each is `repr(C)`, made of integers and byte arrays only, and has no hidden padding
    // (the sizes asserted above are the sums of the fields), so every bit pattern is a value.
    unsafe impl aya::Pod for super::Ban {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PrefixBan {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Class {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_is_counted_in_a_cell_of_its_own() {
        let cells: BTreeSet<u32> = Outcome::ALL
            .into_iter()
            .flat_map(|outcome| [cell(outcome, true), cell(outcome, false)])
            .chain([EVICTIONS_CELL])
            .collect();
        // Twelve outcomes, seven of them twice, and the evictions.
        assert_eq!(cells.len(), 20);
        assert!(cells.iter().all(|&cell| cell < CELLS));
    }

    #[test]
    fn sizes_the_table_for_the_sources_asked_for() {
        for (sources, sets) in [
            (0, 256),
            (1024, 256),
            (1025, 512),
            (1_000_000, 262_144),
            (1_048_576, 262_144),
            (1_048_577, 524_288),
            (u32::MAX, 1 << 23),
        ] {
            assert_eq!(bucket_sets(sources), sets, "{sources}");
        }
    }

    #[test]
    fn writes_addresses_with_their_family() {
        let octets = |address| prefix_data(address).map(u32::to_ne_bytes).concat();
        assert_eq!(
            octets(Address::V4(0xc000_0207)),
            [0, 0, 0, 4, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            octets(Address::V6(0x2001_0db8_0001_0002, 5)),
            [0, 0, 0, 6, 0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]
        );
    }

    #[test]
    fn no_bit_lies_outside_its_filter() {
        for address in [Address::V4(0), Address::V4(u32::MAX), Address::V6(u64::MAX, 0)] {
            assert!((prefix_place(address) as usize) < PREFIX_PLACES);
        }
        assert!(ban_bit(u64::MAX) < BAN_FILTER_WORDS * 64);
        assert_eq!(bucket_set(u64::MAX, set_shift(256)), 255);
    }
}
