//! The program as the kernel runs it: maps, entry points, and nothing that the library decides.
//!
//! Must load on Linux 5.10: no atomic operation whose result is used, no helper later than that,
//! no per-packet helper call but the lookups in hash and tries, which the filters in front of them
//! spare ordinary traffic. The clock is the kernel's tick, because reading it costs nothing while
//! a call of `bpf_ktime_get_ns` costs more than all the rest.

mod rehearsal;

use core::ptr;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use gateway_ebpf::{
    Source,
    abi::{
        self, Ban, Class, Count, Interface, PortWord, PrefixBan, PrefixData, PrefixWord, Settings,
        Tick, ban_bit, bucket_set, cell, prefix_bit, prefix_data,
    },
    bucket::{self, Admission, Limit, Set},
    packet::{Address, Frame, Target},
    verdict::{Listed, Quota, Service, Standing, Tables, judge},
};

// Named as the constants in `abi` name them; the loader compares every map it finds pinned with
// the sizes given there.
#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
static PORTS: Array<PortWord, { abi::PORT_WORDS as usize }> = Array::new();
#[btf_map]
static BANS: HashMap<u64, Ban, { abi::BANS_MAX as usize }> = HashMap::new();
#[btf_map]
static CLASSES: HashMap<u64, Class, { abi::CLASSES_MAX as usize }> = HashMap::new();
#[btf_map]
static BAN_FILTER: Array<u64, { abi::BAN_FILTER_WORDS as usize }> = Array::new();
#[btf_map]
static BAN_PREFIXES: LpmTrie<PrefixData, PrefixBan, { abi::BAN_PREFIXES_MAX as usize }> =
    LpmTrie::new();
#[btf_map]
static DENY: LpmTrie<PrefixData, u32, { abi::DENY_MAX as usize }> = LpmTrie::new();
#[btf_map]
static EXEMPT: LpmTrie<PrefixData, u32, { abi::EXEMPT_MAX as usize }> = LpmTrie::new();
#[btf_map]
static PREFIX_FILTER: Array<PrefixWord, { abi::PREFIX_FILTER_WORDS as usize }> = Array::new();
/// As many sets as the smallest table has; the loader asks for what the configuration says.
#[btf_map]
static BUCKETS: Array<Set, { abi::bucket_sets(0) as usize }, { abi::MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static CONNECTIONS: Array<Set, { abi::bucket_sets(0) as usize }, { abi::MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static BYTES: Array<Set, { abi::bucket_sets(0) as usize }, { abi::MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Count, { (abi::INTERFACES_MAX * abi::CELLS) as usize }> =
    PerCpuArray::new();
#[btf_map]
static INTERFACES: Array<Interface, { abi::INTERFACES_MAX as usize }> = Array::new();

/// The interface that this instance is for. The loader writes it before the kernel sees it, so
/// telling interfaces apart costs no instruction.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;

/// Judges a frame, counts it, and answers with the action.
#[xdp]
pub fn portcullis_xdp(context: XdpContext) -> u32 {
    // Only between the making of the maps and the first write of settings; nothing is guarded then.
    let Some(settings) = SETTINGS.get(0) else { return XDP_PASS };
    let frame = Received { data: context.data(), end: context.data_end() };
    // SAFETY: the helper takes no argument and only reads a counter.
    let jiffies = unsafe { bpf_jiffies64() };
    let outcome = judge(&frame, &Maps { settings }, jiffies.wrapping_mul(settings.ns_per_jiffy));
    let enforce = settings.enforce != 0;
    count(cell(outcome, enforce), frame.bytes());
    if outcome.drops() && enforce { XDP_DROP } else { XDP_PASS }
}

/// Writes the kernel's clocks to the front of the frame. User space runs it by hand.
#[xdp]
pub fn portcullis_tick(context: XdpContext) -> u32 {
    let (data, end) = (context.data(), context.data_end());
    if data.wrapping_add(size_of::<Tick>()) > end {
        return XDP_DROP;
    }
    // SAFETY: neither helper takes an argument or writes anything.
    let tick = unsafe { Tick { jiffies: bpf_jiffies64(), monotonic_ns: bpf_ktime_get_ns() } };
    // SAFETY: the line above made sure that a tick's bytes lie in the frame. A frame starts at an
    // even address but not at a multiple of eight, which BPF stores to frames need not be.
    unsafe {
        ptr::write_volatile(data as *mut u64, tick.jiffies);
        ptr::write_volatile((data + 8) as *mut u64, tick.monotonic_ns);
    }
    XDP_PASS
}

/// The frame at hand, between the two addresses that the kernel gave.
struct Received {
    data: usize,
    end: usize,
}

impl Frame for Received {
    #[inline(always)]
    fn bytes(&self) -> u64 {
        self.end.wrapping_sub(self.data) as u64
    }

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize) -> Option<[u16; N]> {
        let start = self.data.wrapping_add(at);
        if start.wrapping_add(2 * N) > self.end {
            return None;
        }
        // SAFETY: the range lies in the frame, which the verifier checks once more; `data` and
        // `at` are even, so the pairs are aligned.
        Some(unsafe { ptr::read(start as *const [u16; N]) })
    }
}

/// The maps, as the library asks for them.
struct Maps<'a> {
    settings: &'a Settings,
}

impl Maps<'_> {
    /// Computed twice for a packet that passes, which the compiler sees and does once.
    #[inline(always)]
    fn hash(&self, source: Source) -> u64 {
        bucket::hash(source, self.settings.secret)
    }
}

impl Tables for Maps<'_> {
    #[inline(always)]
    fn service(&self, target: Target) -> Service {
        let (port, is_tcp) = match target {
            Target::Tcp(port) => (port, true),
            Target::Udp(port) => (port, false),
            Target::Fragment | Target::Other | Target::Unreadable => return Service::Other,
        };
        let Some(word) = PORTS.get(u32::from(port) / 64) else { return Service::Other };
        let bit = port % 64;
        let management = if is_tcp { word.management_tcp } else { word.management_udp };
        if management >> bit & 1 != 0 {
            Service::Management
        } else if word.guarded >> bit & 1 != 0 {
            Service::Guarded
        } else {
            Service::Other
        }
    }

    #[inline(always)]
    fn standing(&self, source: Source, now_ns: u64) -> Standing {
        let bit = ban_bit(self.hash(source));
        match BAN_FILTER.get(bit / 64) {
            Some(word) if word >> (bit % 64) & 1 != 0 => {}
            _ => return Standing::Limited(0),
        }
        // SAFETY: user space may replace the value meanwhile, but the map is preallocated, so the
        // memory stays a ban, and one of two bans' expiries is what is read.
        if let Some(ban) = unsafe { BANS.get(source.word()) }
            && (ban.expires_ns.wrapping_sub(now_ns) as i64) > 0
        {
            return Standing::Banned;
        }
        // SAFETY: as above.
        if let Some(class) = unsafe { CLASSES.get(source.word()) }
            && (class.expires_ns.wrapping_sub(now_ns) as i64) > 0
        {
            return Standing::Limited(class.doublings);
        }
        Standing::Limited(0)
    }

    #[inline(always)]
    fn listed(&self, address: Address, now_ns: u64) -> Listed {
        let bit = prefix_bit(address);
        let Some(word) = PREFIX_FILTER.get(bit / 64) else { return Listed::Nowhere };
        let bit = bit % 64;
        if (word.ban | word.deny) >> bit & 1 == 0 {
            return Listed::Nowhere;
        }
        let key = whole_address(address);
        if word.ban >> bit & 1 != 0
            && let Some(ban) = BAN_PREFIXES.get(&key)
            && (ban.until_ns.wrapping_sub(now_ns) as i64) > 0
        {
            return Listed::Banned;
        }
        if word.deny >> bit & 1 != 0 && DENY.get(&key).is_some() {
            return Listed::Denied;
        }
        Listed::Nowhere
    }

    #[inline(always)]
    fn is_exempt(&self, address: Address) -> bool {
        let bit = prefix_bit(address);
        match PREFIX_FILTER.get(bit / 64) {
            Some(word) if word.exempt >> (bit % 64) & 1 != 0 => {
                EXEMPT.get(&whole_address(address)).is_some()
            }
            _ => false,
        }
    }

    #[inline(always)]
    fn limit(&self, quota: Quota) -> Limit {
        self.settings.limit(quota)
    }

    #[inline(always)]
    fn admit(&self, quota: Quota, source: Source, limit: &Limit, now_ns: u64) -> Admission {
        let index = bucket_set(self.hash(source), self.settings.set_mask);
        let set = match quota {
            Quota::Packets => BUCKETS.get(index),
            Quota::Connections => CONNECTIONS.get(index),
            Quota::Bytes => BYTES.get(index),
        };
        let Some(set) = set else { return Admission::Within };
        let admission = set.admit(source, limit, now_ns);
        if matches!(admission, Admission::Evicting) {
            count(abi::EVICTIONS_CELL, 0);
        }
        admission
    }
}

/// A trie's key that only prefixes of this very address match.
#[inline(always)]
fn whole_address(address: Address) -> Key<PrefixData> {
    Key::new(8 * size_of::<PrefixData>() as u32, prefix_data(address))
}

/// Adds one frame to a cell of this instance's interface.
#[inline(always)]
fn count(cell: u32, bytes: u64) {
    // SAFETY: a reference to a static is valid; volatile, because the loader replaces the value
    // after the compiler has seen it.
    let slot = unsafe { ptr::read_volatile(&raw const SLOT) };
    if let Some(count) = COUNTERS.get_ptr_mut(slot * abi::CELLS + cell) {
        // SAFETY: the cell belongs to this CPU, and XDP programs on one CPU do not interrupt each
        // other; user space only reads.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes;
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
