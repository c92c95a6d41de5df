//! How rules and state lie in kernel memory: the maps' names, keys and values.
//!
//! Both halves and nobody else read and write these. Fixed widths, padding spelled out, sizes
//! asserted; no bool and no enum, because any bit pattern may come back from a map. Numbers are in
//! the machine's byte order, addresses are octets in network order.

use crate::{
    Outcome,
    bucket::{self, Limit},
    packet::Address,
    verdict::Quota,
};

/// Changes whenever a map or a value changes its meaning; the directory of pinned maps carries it.
pub const LAYOUT_VERSION: u32 = 2;

/// Name of the XDP program that judges frames.
pub const PROGRAM: &str = "portcullis_xdp";
/// Name of the XDP program that writes a [`Tick`] to the front of the frame it is run on. It is
/// never attached; user space reads the kernel's clocks with it.
pub const TICK_PROGRAM: &str = "portcullis_tick";
/// Symbol of the read-only number that tells an instance of the program which interface it is for.
pub const SLOT_SYMBOL: &str = "SLOT";

/// Name of the array of one [`Settings`].
pub const SETTINGS_MAP: &str = "SETTINGS";
/// Name of the array of [`PortWord`], 64 ports each.
pub const PORTS_MAP: &str = "PORTS";
/// Name of the hash from a source's word to its [`Ban`].
pub const BANS_MAP: &str = "BANS";
/// Name of the hash from a source's word to its [`Class`].
pub const CLASSES_MAP: &str = "CLASSES";
/// Name of the array of words that are the filter in front of bans and classes, by [`ban_bit`].
pub const BAN_FILTER_MAP: &str = "BAN_FILTER";
/// Name of the trie of banned prefixes, each with its [`PrefixBan`].
pub const BAN_PREFIXES_MAP: &str = "BAN_PREFIXES";
/// Name of the trie of prefixes that are always dropped.
pub const DENY_MAP: &str = "DENY";
/// Name of the trie of prefixes that are never dropped.
pub const EXEMPT_MAP: &str = "EXEMPT";
/// Name of the array of [`PrefixWord`] that is the filter in front of the tries, by
/// [`prefix_bit`].
pub const PREFIX_FILTER_MAP: &str = "PREFIX_FILTER";
/// Name of the array of [`bucket::Set`] for packets.
pub const BUCKETS_MAP: &str = "BUCKETS";
/// Name of the array of [`bucket::Set`] for new connections, as large as the other.
pub const CONNECTIONS_MAP: &str = "CONNECTIONS";
/// Name of the array of [`bucket::Set`] for octets, as large as the others.
pub const BYTES_MAP: &str = "BYTES";
/// Name of the per-CPU array of [`Count`], [`CELLS`] for each interface slot.
pub const COUNTERS_MAP: &str = "COUNTERS";
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
/// in a thousand is looked up in vain, with a full table one in sixteen.
pub const BAN_FILTER_WORDS: u32 = 1 << 14;
/// Words of the filter in front of the tries: 2^16 bits for each family.
pub const PREFIX_FILTER_WORDS: u32 = 1 << 11;
/// Words that hold all ports.
pub const PORT_WORDS: u32 = 1 << 10;
/// The smallest and largest number of sets of buckets that [`bucket_sets`] gives.
const BUCKET_SETS_RANGE: (u32, u32) = (1 << 8, 1 << 24);

/// `BPF_F_NO_PREALLOC`, which tries demand.
pub const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE` (since 5.5): places the storage at a page's start, so each set of buckets is
/// one cache line, and lets user space read it without a system call.
pub const MMAPABLE: u32 = 1 << 10;

/// The program's settings: one value, written whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Packets of one source.
    pub packets: Limit,
    /// New connections of one source.
    pub connections: Limit,
    /// Octets of one source ([`Limit::octets`]).
    pub bytes: Limit,
    /// Length of a jiffy, the kernel's tick: the unit of the program's clock.
    pub ns_per_jiffy: u64,
    /// Key of [`bucket::hash`], drawn when the maps are made.
    pub secret: u64,
    /// Number of sets in each table of buckets less one; they are a power of two.
    pub set_mask: u32,
    /// 1: drop what is to be dropped. 0: count it and let it pass.
    pub enforce: u32,
}
const _: () = assert!(size_of::<Settings>() == 72);

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

/// 64 ports; bit `port % 64` of word `port / 64` is the port's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortWord {
    /// Guarded, TCP and UDP.
    pub guarded: u64,
    /// Management services over TCP.
    pub management_tcp: u64,
    /// Management services over UDP.
    pub management_udp: u64,
    /// To a power of two.
    pub _pad: u64,
}
const _: () = assert!(size_of::<PortWord>() == 32);

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

/// 64 bits of the filters in front of the tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PrefixWord {
    /// A denied prefix may cover the address.
    pub deny: u64,
    /// An exempt prefix may cover the address.
    pub exempt: u64,
    /// A banned prefix may cover the address.
    pub ban: u64,
    /// To a power of two.
    pub _pad: u64,
}
const _: () = assert!(size_of::<PrefixWord>() == 32);

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

/// The bit of the prefix filter for an address: the first 16 bits of an IPv4 address, or the
/// first 32 of an IPv6 address folded to 16. User space sets all bits that a prefix covers.
#[inline(always)]
pub const fn prefix_bit(address: Address) -> u32 {
    match address {
        Address::V4(address) => address >> 16,
        Address::V6(upper, _) => {
            let first = (upper >> 32) as u32;
            1 << 16 | (first >> 16 ^ first & 0xffff)
        }
    }
}

/// The bit of the filter in front of the bans for a source, from its [`bucket::hash`].
#[inline(always)]
pub const fn ban_bit(hash: u64) -> u32 {
    hash as u32 % (BAN_FILTER_WORDS * 64)
}

/// The set of buckets for a source, from its [`bucket::hash`].
#[inline(always)]
pub const fn bucket_set(hash: u64, set_mask: u32) -> u32 {
    (hash >> 32) as u32 & set_mask
}

/// Sets of buckets that remember `sources` at once: a power of two, at least 256, at most 2^24
/// (1 GiB of kernel memory).
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
/// Counts buckets that were forgotten before they were full ([`bucket::Admission::Evicting`]).
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
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PortWord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Ban {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PrefixBan {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Class {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PrefixWord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Count {}
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
        // Eleven outcomes, six of them twice, and the evictions.
        assert_eq!(cells.len(), 18);
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
            (u32::MAX, 1 << 24),
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
            assert!(prefix_bit(address) < PREFIX_FILTER_WORDS * 64);
        }
        assert!(ban_bit(u64::MAX) < BAN_FILTER_WORDS * 64);
        assert_eq!(bucket_set(u64::MAX, 255), 255);
    }
}
