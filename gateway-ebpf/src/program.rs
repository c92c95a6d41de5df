//! The program as the kernel runs it: maps, entry points, and nothing that the library decides.
//!
//! Must load on Linux 5.10: no atomic operation whose result is used, no helper later than that,
//! no per-packet helper call but the lookups in hash and tries, which the filters in front of them
//! spare ordinary traffic. The clock is the kernel's tick, because reading it costs nothing while
//! a call of `bpf_ktime_get_ns` costs more than all the rest.

mod rehearsal;

use core::ptr;

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS},
        xdp_md,
    },
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, lpm_trie::Key},
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use gateway_ebpf::{
    Outcome, Source,
    abi::{
        self, Ban, Budget, Class, Counters, Event, Interface, PrefixBan, PrefixData, Rules, Tick,
        ban_bit, bucket_set, cell, prefix_data, prefix_place,
    },
    bucket::{self, Limit, Others, Set, Step},
    packet::{Address, Frame, Start, Target},
    verdict::{Listed, Quota, Service, Standing, Tables, judge},
};

// Named as the constants in `abi` name them; the loader compares every map it finds pinned with
// the sizes given there.
#[btf_map]
static RULES: Array<Rules, 1, { abi::MMAPABLE as usize }> = Array::new();
/// As many sets as the smallest table has; the loader asks for what the configuration says.
#[btf_map]
static SOURCES: Array<Set, { abi::bucket_sets(0) as usize }, { abi::MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static OTHERS: Array<Others, { abi::bucket_sets(0) as usize }, { abi::MMAPABLE as usize }> =
    Array::new();
#[btf_map]
static BANS: HashMap<u64, Ban, { abi::BANS_MAX as usize }> = HashMap::new();
#[btf_map]
static CLASSES: HashMap<u64, Class, { abi::CLASSES_MAX as usize }> = HashMap::new();
#[btf_map]
static BAN_PREFIXES: LpmTrie<PrefixData, PrefixBan, { abi::BAN_PREFIXES_MAX as usize }> =
    LpmTrie::new();
#[btf_map]
static DENY: LpmTrie<PrefixData, u32, { abi::DENY_MAX as usize }> = LpmTrie::new();
#[btf_map]
static EXEMPT: LpmTrie<PrefixData, u32, { abi::EXEMPT_MAX as usize }> = LpmTrie::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, { abi::INTERFACES_MAX as usize }> = PerCpuArray::new();
/// Without a type: with one, libbpf and what is built on it refuse the object.
#[btf_map]
static EVENTS: RingBuf<(), { abi::EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map]
static INTERFACES: Array<Interface, { abi::INTERFACES_MAX as usize }> = Array::new();

/// The interface that this instance is for. The loader writes it before the kernel sees it, so
/// telling interfaces apart costs no instruction.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;

/// Judges a frame, counts it, and answers with the action.
#[xdp]
#[inline(always)]
pub fn portcullis_xdp(context: XdpContext) -> u32 {
    // There always are.
    let Some(rules) = RULES.get(0) else { return XDP_PASS };
    let frame = Received::new(context.data(), context.data_end());
    // SAFETY: the helper takes no argument and only reads a counter.
    let jiffies = unsafe { bpf_jiffies64() };
    let now_ns = jiffies.wrapping_mul(rules.settings.ns_per_jiffy);
    let Some(counters) = counters() else { return XDP_PASS };
    // SAFETY: what lies there belongs to this CPU, and XDP programs on one CPU do not interrupt each
    // other; user space only reads.
    let last = unsafe { &mut (*counters).last };
    let outcome = judge(&frame, &Maps { rules }, last, now_ns);
    let enforce = rules.settings.enforce != 0;
    // SAFETY: as above. No cell is beyond the last; the remainder only says so.
    let count = unsafe { &mut (*counters).cells[(cell(outcome, enforce) % abi::CELLS) as usize] };
    count.packets += 1;
    count.bytes += frame.bytes();
    if !outcome.drops() {
        return XDP_PASS;
    }
    // SAFETY: as above.
    let full_at_ns = unsafe { (*counters).events_full_at_ns };
    match abi::EVENTS_LIMIT.step(full_at_ns, now_ns) {
        Step::Refuse => {}
        step => {
            let full_at_ns = match step {
                Step::Restart(restarted_ns) => restarted_ns,
                _ => full_at_ns.wrapping_add(abi::EVENTS_LIMIT.cost_ns),
            };
            // SAFETY: as above.
            unsafe { (*counters).events_full_at_ns = full_at_ns };
            tell(context.ctx, &frame, outcome, enforce);
        }
    }
    if enforce { XDP_DROP } else { XDP_PASS }
}

/// Tells user space of a frame that was not to pass.
///
/// The frame is read once more from the context: that is rare, and keeping what was read would cost
/// every frame.
#[inline(always)]
fn tell(context: *mut xdp_md, frame: &Received, outcome: Outcome, enforce: bool) {
    let mut event = Event {
        // SAFETY: the helper takes no argument and only reads a clock.
        monotonic_ns: unsafe { bpf_ktime_get_ns() },
        slot: slot(),
        outcome: outcome as u32,
        frame_bytes: frame.bytes(),
        enforced: u64::from(enforce),
        head: [0; abi::EVENT_HEAD_WORDS],
    };
    // SAFETY: the context is the kernel's. Volatile, or the compiler keeps the first reading.
    let (data, end) = unsafe {
        (
            ptr::read_volatile(&raw const (*context).data) as usize,
            ptr::read_volatile(&raw const (*context).data_end) as usize,
        )
    };
    for (index, word) in event.head.iter_mut().enumerate() {
        let start = data + index * size_of::<u64>();
        if start + size_of::<u64>() > end {
            break;
        }
        // SAFETY: the word lies in the frame. A frame starts at an even address but not at a
        // multiple of eight, which BPF loads from frames need not be.
        *word = unsafe { ptr::read_volatile(start as *const u64) };
    }
    if EVENTS.output_untyped::<Event>(event, 0).is_err()
        && let Some(counters) = counters()
    {
        // SAFETY: as in the program.
        unsafe { (*counters).events_lost += 1 };
    }
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
    bytes: u64,
}

impl Received {
    #[inline(always)]
    fn new(data: usize, end: usize) -> Self {
        let mut bytes = end.wrapping_sub(data) as u64;
        // SAFETY: an empty instruction. It keeps the compiler from computing the difference where it
        // is needed, at the end: the addresses would have to be kept until then, and the verifier
        // would look at everything once for each length that the parser came to know of.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) bytes, options(nostack, nomem, pure));
        }
        Self { data, end, bytes }
    }
}

impl Frame for Received {
    #[inline(always)]
    fn bytes(&self) -> u64 {
        self.bytes
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

    #[inline(always)]
    fn start(&self, octets: usize) -> Option<Beginning> {
        if self.data.wrapping_add(octets) > self.end { None } else { Some(Beginning(self.data)) }
    }

    type Start<'a> = Beginning;
}

/// The address of a frame of which it was made sure how long it is.
#[derive(Clone, Copy)]
struct Beginning(usize);

impl Start for Beginning {
    #[inline(always)]
    fn two(self, at: usize) -> u16 {
        // SAFETY: who asks has made sure of the frame's length, which the verifier checks once more;
        // BPF's loads from frames need not be aligned.
        unsafe { ptr::read_volatile((self.0 + at) as *const u16) }
    }

    #[inline(always)]
    fn four(self, at: usize) -> u32 {
        // SAFETY: as above.
        unsafe { ptr::read_volatile((self.0 + at) as *const u32) }
    }

    #[inline(always)]
    fn eight(self, at: usize) -> u64 {
        // SAFETY: as above.
        unsafe { ptr::read_volatile((self.0 + at) as *const u64) }
    }
}

/// The maps, as the library asks for them.
struct Maps<'a> {
    rules: &'a Rules,
}

impl Tables for Maps<'_> {
    #[inline(always)]
    fn revision(&self) -> u64 {
        self.rules.revision.number.load()
    }

    #[inline(always)]
    fn service(&self, target: Target) -> Service {
        let (port, is_tcp) = match target {
            Target::Tcp(port) => (port, true),
            Target::Udp(port) => (port, false),
            Target::Fragment | Target::Other | Target::Unreadable => return Service::Other,
        };
        let marks = self.rules.ports[below::<{ abi::PORTS }>(u64::from(port))];
        let management = if is_tcp { abi::PORT_MANAGEMENT_TCP } else { abi::PORT_MANAGEMENT_UDP };
        if marks == abi::PORT_GUARDED {
            Service::Guarded
        } else if marks == 0 {
            Service::Other
        } else if marks & management != 0 {
            Service::Management
        } else if marks & abi::PORT_GUARDED != 0 {
            Service::Guarded
        } else {
            Service::Other
        }
    }

    #[inline(always)]
    fn hash(&self, source: Source) -> u64 {
        bucket::hash(source, self.rules.settings.secret)
    }

    #[inline(always)]
    fn standing(&self, source: Source, hash: u64, now_ns: u64) -> Standing {
        let bit = ban_bit(hash);
        let index = (bit / 64 % abi::BAN_FILTER_WORDS) as usize;
        if self.rules.ban_filter[index] >> (bit % 64) & 1 == 0 {
            return Standing::Limited(0);
        }
        if self.rules.ban_sets[index].bans(source, now_ns) {
            return Standing::Banned;
        }
        // The set was full, the bit is somebody else's, or the source has a class.
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
    fn marks(&self, address: Address) -> u8 {
        let place = below::<{ abi::PREFIX_PLACES }>(u64::from(prefix_place(address)));
        self.rules.prefixes[place]
    }

    #[inline(always)]
    fn listed(&self, address: Address, marks: u8, now_ns: u64) -> Listed {
        if marks & (abi::PREFIX_BANNED | abi::PREFIX_DENIED) == 0 {
            return Listed::Nowhere;
        }
        let key = whole_address(address);
        if marks & abi::PREFIX_BANNED != 0
            && let Some(ban) = BAN_PREFIXES.get(&key)
            && (ban.until_ns.wrapping_sub(now_ns) as i64) > 0
        {
            return Listed::Banned;
        }
        if marks & abi::PREFIX_DENIED != 0 && DENY.get(&key).is_some() {
            return Listed::Denied;
        }
        Listed::Nowhere
    }

    #[inline(always)]
    fn is_exempt(&self, address: Address, marks: u8) -> bool {
        marks & abi::PREFIX_EXEMPT != 0 && EXEMPT.get(&whole_address(address)).is_some()
    }

    #[inline(always)]
    fn limit(&self, quota: Quota) -> Limit {
        self.rules.settings.limit(quota)
    }

    #[inline(always)]
    fn network_limit(&self, quota: Quota) -> Limit {
        match quota {
            Quota::Packets => self.rules.settings.network_packets,
            Quota::Connections => self.rules.settings.network_connections,
            Quota::Bytes => Limit::NONE,
        }
    }

    #[inline(always)]
    fn newcomers(&self) -> (Limit, &Budget) {
        (self.rules.settings.newcomers, &self.rules.newcomers)
    }

    #[inline(always)]
    fn set(&self, hash: u64) -> Option<&Set> {
        SOURCES.get(bucket_set(hash, self.rules.settings.set_shift))
    }

    #[inline(always)]
    fn others(&self, hash: u64) -> Option<&Others> {
        OTHERS.get(bucket_set(hash, self.rules.settings.set_shift))
    }

    #[inline(always)]
    fn evicted(&self) {
        if let Some(counters) = counters() {
            // SAFETY: as in the program.
            unsafe { (*counters).cells[abi::EVICTIONS_CELL as usize].packets += 1 };
        }
    }
}

/// The number, which is below `N`, a power of two; said once more, because kernels before 6.3 do not
/// know how large a number is that was brought into another order of octets, and the compiler, which
/// does, would leave the mask out.
#[inline(always)]
fn below<const N: usize>(number: u64) -> usize {
    const { assert!(N.is_power_of_two()) };
    let mut number = number;
    // SAFETY: computes with a register only.
    unsafe {
        core::arch::asm!(
            "{number} &= {mask}",
            number = inout(reg) number,
            mask = const N - 1,
            options(nostack, nomem, pure),
        );
    }
    // SAFETY: the mask is one less than `N`, a power of two.
    unsafe { core::hint::assert_unchecked(number < N as u64) };
    number as usize
}

/// A trie's key that only prefixes of this very address match.
#[inline(always)]
fn whole_address(address: Address) -> Key<PrefixData> {
    let zero: u32;
    // SAFETY: sets a register. The compiler does not know to what: it would call a function that fills
    // memory with zeroes where an address ends in many, and there is none here.
    unsafe { core::arch::asm!("{0} = 0", out(reg) zero, options(nostack, nomem, pure)) };
    let data = prefix_data(address).map(|word| word | zero);
    Key::new(8 * size_of::<PrefixData>() as u32, data)
}

/// What this CPU counts for this instance's interface.
#[inline(always)]
fn counters() -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(slot())
}

#[inline(always)]
fn slot() -> u32 {
    // SAFETY: a reference to a static is valid; volatile, because the loader replaces the value
    // after the compiler has seen it.
    unsafe { ptr::read_volatile(&raw const SLOT) }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
