//! Token buckets, each kept as one number (the generic cell rate algorithm).
//!
//! The number is the bucket's *theoretical arrival time*: the moment at which it will be full
//! again. Taking a token moves it one token's cost further away; a token is refused when it is
//! further away than the burst allows. One word is enough, nothing has to be refilled, no part of
//! a token is ever lost, and two CPUs can charge it with a plain atomic addition.
//!
//! All times are on one clock of the caller's, in nanoseconds. Differences are taken as signed
//! numbers, so a `now` that lies a little behind another CPU's is a little early and never a wrap
//! to a bucket that is full for centuries.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::Relaxed;

use crate::{Source, verdict::Quota};

/// What one bucket admits, in time rather than in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// What one token costs: the distance between two events at the sustained rate. 0, and only
    /// in [`Limit::NONE`]: nothing is limited.
    pub cost_ns: u64,
    /// How far ahead of the present the bucket may be and still admit: one cost less than the
    /// whole burst, because the token being asked for is not charged yet.
    pub tolerance_ns: u64,
}

impl Limit {
    /// No limit: what new maps hold, being all zeroes.
    pub const NONE: Self = Self { cost_ns: 0, tolerance_ns: 0 };

    /// `per_s` octets in each second, and at most `burst` at once. Told for [`OCTETS`] of them, and
    /// with the whole burst as tolerance: [`Limit::of_frame`] makes of it what one frame meets.
    /// Zeroes count as one.
    pub const fn octets(per_s: u64, burst: u64) -> Self {
        Self { cost_ns: octets_ns(OCTETS, per_s), tolerance_ns: octets_ns(burst, per_s) }
    }

    /// A limit of [`Limit::octets`] for one frame: what it costs, and how far ahead the bucket may
    /// be for it still to fit into the burst.
    #[inline(always)]
    pub const fn of_frame(&self, octets: u64) -> Self {
        // Rounded up, as the cost itself is, so that no size of frame gets more than the rate.
        let cost_ns = self.cost_ns.wrapping_mul(octets).wrapping_add(OCTETS - 1) >> OCTETS_SHIFT;
        Self { cost_ns, tolerance_ns: self.tolerance_ns.saturating_sub(cost_ns) }
    }

    /// The limit with rate and burst doubled so many times; negative: halved.
    #[inline(always)]
    pub const fn doubled(&self, times: i32) -> Self {
        if self.is_none() {
            return Self::NONE;
        }
        let cost_ns = if times < 0 {
            self.cost_ns << (times.unsigned_abs() & 63)
        } else {
            match self.cost_ns >> (times as u32 & 63) {
                0 => 1,
                cost_ns => cost_ns,
            }
        };
        // The time that the whole burst lasts stays the same.
        Self { cost_ns, tolerance_ns: self.burst_ns().saturating_sub(cost_ns) }
    }

    /// Whether there is nothing to keep to, so that no bucket need be looked at.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.cost_ns == 0
    }

    /// `events` in each `period_ns`, and at most `burst` at once. Zeroes count as one, and rates
    /// above one event a nanosecond as that, so every limit admits something and refuses something.
    pub const fn new(events: u32, period_ns: u64, burst: u32) -> Self {
        let events = if events == 0 { 1 } else { events as u64 };
        let burst = if burst == 0 { 1 } else { burst as u64 };
        let cost_ns = match period_ns / events {
            0 => 1,
            cost_ns => cost_ns,
        };
        Self { cost_ns, tolerance_ns: cost_ns.saturating_mul(burst - 1) }
    }

    /// What may still be taken at once from a bucket that is so far ahead; nothing where nothing is
    /// limited, and nothing is taken.
    #[inline(always)]
    const fn left_ns(&self, ahead_ns: i64) -> u64 {
        let ahead_ns = if ahead_ns < 0 { 0 } else { ahead_ns as u64 };
        self.tolerance_ns.saturating_sub(ahead_ns)
    }

    /// The time in which an empty bucket fills: the burst at the sustained rate.
    #[inline(always)]
    pub const fn burst_ns(&self) -> u64 {
        self.tolerance_ns.saturating_add(self.cost_ns)
    }

    /// What to do with the bucket `full_at_ns` when a token is asked of it at `now_ns`.
    #[inline(always)]
    pub const fn step(&self, full_at_ns: u64, now_ns: u64) -> Step {
        let ahead_ns = full_at_ns.wrapping_sub(now_ns) as i64;
        // Nothing is further ahead than a signed number tells.
        let tolerance_ns = match self.tolerance_ns {
            long if long > i64::MAX as u64 => i64::MAX,
            tolerance_ns => tolerance_ns as i64,
        };
        if ahead_ns > tolerance_ns {
            Step::Refuse
        } else if ahead_ns < 0 {
            Step::Restart(now_ns.wrapping_add(self.cost_ns))
        } else {
            Step::Charge(self.cost_ns)
        }
    }
}

/// Octets whose cost a limit on octets is told in: so many that the cost is a number with digits
/// enough at 100 Gbit/s (5 µs), so few that a frame's share of it does not overflow at 1 KiB/s.
pub const OCTETS: u64 = 1 << OCTETS_SHIFT;
const OCTETS_SHIFT: u32 = 16;

/// How long so many octets last; at least 1, at most what fits.
const fn octets_ns(octets: u64, per_s: u64) -> u64 {
    let octets = if octets == 0 { 1 } else { octets as u128 };
    let per_s = if per_s == 0 { 1 } else { per_s as u128 };
    match (octets * 1_000_000_000).div_ceil(per_s) {
        long if long > u64::MAX as u128 => u64::MAX,
        long => long as u64,
    }
}

/// How a bucket answers; the caller writes it where the bucket lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No token left; the bucket stays as it is, so a flood of refused events writes nothing.
    Refuse,
    /// Admitted; add this much. An addition, so that concurrent takers are all charged.
    Charge(u64),
    /// Admitted, and the bucket had been full: it becomes this.
    Restart(u64),
}

/// One bucket in user space's own memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    /// A bucket that is full at `now_ns`.
    pub const fn full(now_ns: u64) -> Self {
        Self { full_at_ns: now_ns }
    }

    /// Takes one token, or says that there is none.
    #[inline]
    pub const fn take(&mut self, limit: &Limit, now_ns: u64) -> bool {
        match limit.step(self.full_at_ns, now_ns) {
            Step::Refuse => return false,
            Step::Charge(cost_ns) => self.full_at_ns = self.full_at_ns.wrapping_add(cost_ns),
            Step::Restart(full_at_ns) => self.full_at_ns = full_at_ns,
        }
        true
    }

    /// How long from `now_ns` until [`Bucket::take`] would succeed; 0 when it would now.
    #[cfg(test)]
    const fn wait_ns(&self, limit: &Limit, now_ns: u64) -> u64 {
        let ahead_ns = self.full_at_ns.wrapping_sub(now_ns) as i64;
        if ahead_ns <= 0 { 0 } else { (ahead_ns as u64).saturating_sub(limit.tolerance_ns) }
    }

    /// Tokens that could be taken at once at `now_ns`.
    pub const fn tokens(&self, limit: &Limit, now_ns: u64) -> u64 {
        let ahead_ns = self.full_at_ns.wrapping_sub(now_ns) as i64;
        let ahead_ns = if ahead_ns < 0 { 0 } else { ahead_ns as u64 };
        match limit.tolerance_ns.checked_sub(ahead_ns) {
            Some(left_ns) => left_ns / limit.cost_ns + 1,
            None => 0,
        }
    }
}

/// Sources of one [`Set`]: as many as fit one 64-byte cache line with one bucket each.
pub const WAYS: usize = 4;

/// Four sources that share a place in the table, each with its bucket of packets: one cache line.
///
/// The table is an array of sets; a source's hash names its set, and within the set the source is
/// looked for exactly, so no source ever pays for another one.
///
/// The words are atomic, because the program runs on every CPU at once and user space may read the
/// table while it does; they are only loaded, stored and added to without asking for the result,
/// because Linux before 5.12 can do no more.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Set {
    ways: [Way; WAYS],
}

/// A source and its bucket of packets. All zeroes is a free place: source `::/64`, full since ever.
#[derive(Debug, Default)]
#[repr(C)]
struct Way {
    source: Word,
    /// When it is full again, in 63 bits, and above them [`HAS_OTHERS`].
    packets: Word,
}

const _: () = assert!(size_of::<Set>() == 64 && align_of::<Set>() == 64);

/// The other buckets of the sources in the [`Set`] of the same number. Most packets ask for none of
/// them, so they lie in an array of their own, which half of the memory that is reached at random is
/// spared by.
///
/// A place in it means nothing until the source that has the same place in the set says that the
/// buckets are its own (`HAS_OTHERS`): then a source can take the place of another one without a
/// look here, and has full buckets all the same.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Others {
    ways: [OtherBuckets; WAYS],
}

/// The other buckets of a source.
#[derive(Debug, Default)]
#[repr(C)]
struct OtherBuckets {
    connections: Word,
    bytes: Word,
}

const _: () = assert!(size_of::<Others>() == 64 && align_of::<Others>() == 64);

/// In the word of a source's packets: the buckets in [`Others`] are this source's. A moment is told
/// in the other 63 bits, which is three centuries from the machine's start.
const HAS_OTHERS: u64 = 1 << 63;

/// How far ahead of `now_ns` the moment is that a word of packets tells.
#[inline(always)]
const fn packets_ahead_ns(word: u64, now_ns: u64) -> i64 {
    (word.wrapping_sub(now_ns) << 1) as i64 >> 1
}

/// The moment as a word of packets tells it, without the bit.
#[inline(always)]
const fn packets_moment(ns: u64) -> u64 {
    ns << 1 >> 1
}

/// What one packet costs its source: of each quota [`Limit::NONE`] where it is not charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// As a new connection.
    pub connections: Limit,
    /// As a packet.
    pub packets: Limit,
    /// As so many octets.
    pub bytes: Limit,
}

impl Price {
    /// Of a packet that nothing limits.
    pub const NOTHING: Self =
        Self { connections: Limit::NONE, packets: Limit::NONE, bytes: Limit::NONE };

    /// The same, of which the kernel's verifier does not know what is zero.
    #[inline(always)]
    pub(crate) fn forgotten(&self, unknown: u64) -> Self {
        let limit = |limit: &Limit| Limit { cost_ns: forgotten(limit.cost_ns, unknown), ..*limit };
        Self {
            connections: limit(&self.connections),
            packets: limit(&self.packets),
            bytes: limit(&self.bytes),
        }
    }

    /// Whether nothing is to be paid.
    #[inline(always)]
    pub const fn is_nothing(&self) -> bool {
        self.connections.is_none() && self.packets.is_none() && self.bytes.is_none()
    }

    /// The price where limits are doubled so many times; negative: halved.
    #[inline(always)]
    pub const fn doubled(&self, times: i32) -> Self {
        Self {
            connections: self.connections.doubled(times),
            packets: self.packets.doubled(times),
            bytes: self.bytes.doubled(times),
        }
    }
}

/// What a source has left of its buckets, in the time in which they would be that much fuller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftNs {
    /// Of packets.
    pub packets_ns: u64,
    /// Of octets.
    pub bytes_ns: u64,
}

/// Where in its [`Set`] a source is, or would be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is there.
    Known(usize),
    /// It is not, and here is a place whose buckets are all full: forgetting it loses nothing.
    Free(usize),
    /// It is not, and every place has a bucket that is not full: with this one the least is lost.
    /// Many of these mean that the table is too small.
    Taken(usize),
}

impl Place {
    /// The same, of which the kernel's verifier does not know what it is.
    #[inline(always)]
    pub(crate) fn forgotten(self, unknown: u64) -> Self {
        let (kind, way) = match self {
            Self::Known(way) => (0, way),
            Self::Free(way) => (1, way),
            Self::Taken(way) => (2, way),
        };
        match forgotten(kind, unknown) {
            0 => Self::Known(way),
            1 => Self::Free(way),
            _ => Self::Taken(way),
        }
    }
}

impl Set {
    /// Looks for a source. The other buckets of this set are asked for only where it is not there.
    #[inline(always)]
    pub fn find<'a>(
        &self,
        source: Source,
        now_ns: u64,
        others: impl FnOnce() -> Option<&'a Others>,
    ) -> Place {
        let word = source.word();
        for (way, owner) in self.ways.iter().enumerate() {
            if owner.source.load() == word {
                return Place::Known(any_way(way, owner.packets.load()));
            }
        }
        let packets = [0, 1, 2, 3].map(|way| self.ways[way].packets.load());
        let someone_has = (packets[0] | packets[1] | packets[2] | packets[3]) & HAS_OTHERS != 0;
        let others = if someone_has { others() } else { None };
        let mut soonest = 0;
        let mut soonest_ahead_ns = i64::MAX;
        for (way, word) in packets.into_iter().enumerate() {
            let packets_ns = packets_ahead_ns(word, now_ns);
            let longest_ns = match others {
                Some(others) if word & HAS_OTHERS != 0 => {
                    longer(packets_ns, others.ways[way].ahead_ns(now_ns))
                }
                _ => packets_ns,
            };
            if longest_ns <= 0 {
                return Place::Free(any_way(way, word));
            }
            if longest_ns < soonest_ahead_ns {
                soonest_ahead_ns = longest_ns;
                soonest = way;
            }
        }
        Place::Taken(any_way(soonest, packets[0]))
    }

    /// Whether the source at this place has too few packets left for this price. Nothing is written,
    /// so a flood of refused packets writes nothing.
    #[inline(always)]
    pub fn refuses(&self, way: usize, price: &Limit, now_ns: u64) -> bool {
        if price.is_none() {
            return false;
        }
        // As in `Limit::step`.
        let ahead_ns = packets_ahead_ns(self.way(way).packets.load(), now_ns);
        ahead_ns > 0 && ahead_ns as u64 > price.tolerance_ns
    }

    /// The same of another quota. A source that has none of those buckets yet has full ones.
    #[inline(always)]
    pub fn refuses_other(
        &self,
        way: usize,
        others: Option<&Others>,
        quota: Quota,
        price: &Limit,
        now_ns: u64,
    ) -> bool {
        let Some(others) = others else { return false };
        if price.is_none() || self.way(way).packets.load() & HAS_OTHERS == 0 {
            return false;
        }
        let buckets = &others.ways[way % WAYS];
        match quota {
            Quota::Packets => return false,
            Quota::Connections => &buckets.connections,
            Quota::Bytes => &buckets.bytes,
        }
        .refuses(price, now_ns)
    }

    /// Lets the source at this place pay; what it pays of other quotas only where `others` are given.
    /// CPUs that race for a token may take one more each, and pay for it, so the sustained rate holds;
    /// CPUs that race to restart a full bucket, or to begin with the others, may forget what the other
    /// charged meanwhile, which is less than a burst.
    #[inline(always)]
    pub fn charge(&self, way: usize, others: Option<&Others>, price: &Price, now_ns: u64) {
        let packets = &self.way(way).packets;
        let word = packets.load();
        if let Some(others) = others {
            let buckets = &others.ways[way % WAYS];
            if word & HAS_OTHERS == 0 {
                buckets.begin(price, now_ns);
                let from_ns = if packets_ahead_ns(word, now_ns) < 0 { now_ns } else { word };
                let cost_ns = price.packets.cost_ns;
                packets.store(packets_moment(from_ns.wrapping_add(cost_ns)) | HAS_OTHERS);
                return;
            }
            buckets.connections.charge(&price.connections, now_ns);
            buckets.bytes.charge(&price.bytes, now_ns);
        }
        if price.packets.is_none() {
            return;
        }
        if packets_ahead_ns(word, now_ns) < 0 {
            let restarted_ns = packets_moment(now_ns.wrapping_add(price.packets.cost_ns));
            packets.store(restarted_ns | word & HAS_OTHERS);
        } else {
            packets.add(price.packets.cost_ns);
        }
    }

    /// What the source at this place has left, once it has paid this price.
    #[inline(always)]
    pub fn left(&self, way: usize, others: Option<&Others>, price: &Price, now_ns: u64) -> LeftNs {
        let packets_ns = packets_ahead_ns(self.way(way).packets.load(), now_ns);
        let bytes_ns = match others {
            Some(others) => others.ways[way % WAYS].bytes.load().wrapping_sub(now_ns) as i64,
            None => 0,
        };
        LeftNs {
            packets_ns: price.packets.left_ns(packets_ns),
            bytes_ns: price.bytes.left_ns(bytes_ns),
        }
    }

    /// Lets the source at this place pay what it took before, if it still is there.
    #[inline(always)]
    pub fn collect<'a>(
        &self,
        way: usize,
        source: Source,
        others: impl FnOnce() -> Option<&'a Others>,
        packets_ns: u64,
        bytes_ns: u64,
    ) {
        let owner = self.way(way);
        if owner.source.load() != source.word() {
            return;
        }
        if packets_ns != 0 {
            owner.packets.add(packets_ns);
        }
        if bytes_ns != 0
            && owner.packets.load() & HAS_OTHERS != 0
            && let Some(others) = others()
        {
            others.ways[way % WAYS].bytes.add(bytes_ns);
        }
    }

    /// Gives this place to another source, which had full buckets and pays its first packet.
    #[inline(always)]
    pub fn replace(
        &self,
        way: usize,
        source: Source,
        others: Option<&Others>,
        price: &Price,
        now_ns: u64,
    ) {
        let owner = self.way(way);
        let packets = packets_moment(now_ns.wrapping_add(price.packets.cost_ns));
        if let Some(others) = others {
            others.ways[way % WAYS].begin(price, now_ns);
            owner.packets.store(packets | HAS_OTHERS);
        } else {
            owner.packets.store(packets);
        }
        owner.source.store(source.word());
    }

    #[inline(always)]
    fn way(&self, way: usize) -> &Way {
        // No way is beyond the last; the remainder only saves the compiler a check.
        &self.ways[way % WAYS]
    }
}

impl OtherBuckets {
    /// How far ahead of `now_ns` the later of them is full.
    #[inline(always)]
    fn ahead_ns(&self, now_ns: u64) -> i64 {
        let ahead_ns = |bucket: &Word| bucket.load().wrapping_sub(now_ns) as i64;
        longer(ahead_ns(&self.connections), ahead_ns(&self.bytes))
    }

    /// Both were full, and pay this.
    #[inline(always)]
    fn begin(&self, price: &Price, now_ns: u64) {
        self.connections.store(now_ns.wrapping_add(price.connections.cost_ns));
        self.bytes.store(now_ns.wrapping_add(price.bytes.cost_ns));
    }
}

/// The number of a way, unchanged, and below [`WAYS`] also for those who do not know it.
#[inline(always)]
fn any_way(way: usize, unknown: u64) -> usize {
    forgotten(way as u64, unknown) as usize % WAYS
}

/// The number, unchanged. The kernel's verifier looks at all that follows once for each number that
/// it knows a variable to be; it is made to forget, with the help of one that it does not know.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) fn forgotten(number: u64, unknown: u64) -> u64 {
    let mut number = number;
    // SAFETY: computes with registers only.
    unsafe {
        core::arch::asm!(
            "{number} ^= {unknown}",
            "{number} ^= {unknown}",
            number = inout(reg) number,
            unknown = in(reg) unknown,
            options(nostack, nomem, pure),
        );
    }
    number
}

/// User space has nobody who needs to forget.
#[cfg(not(target_arch = "bpf"))]
pub(crate) const fn forgotten(number: u64, _unknown: u64) -> u64 {
    number
}

#[inline(always)]
const fn longer(one_ns: i64, other_ns: i64) -> i64 {
    if one_ns > other_ns { one_ns } else { other_ns }
}

/// A [`Set`] as numbers, as user space reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WayState {
    /// Whose place it is ([`Source::word`]).
    pub source: u64,
    /// When its bucket of packets is full again.
    pub packets_full_at_ns: u64,
    /// When that of connections is.
    pub connections_full_at_ns: u64,
    /// When that of octets is.
    pub bytes_full_at_ns: u64,
}

/// Words of a [`Set`], and of its [`Others`].
pub const SET_WORDS: usize = size_of::<Set>() / size_of::<u64>();

impl WayState {
    /// The ways of a set, from its words and those of its other buckets in the order of memory.
    pub fn of_set(words: &[u64; SET_WORDS], others: &[u64; SET_WORDS]) -> [Self; WAYS] {
        core::array::from_fn(|way| {
            let [source, packets] = [words[2 * way], words[2 * way + 1]];
            // What is not its own yet is full since ever.
            let other = |at: usize| if packets & HAS_OTHERS == 0 { 0 } else { others[at] };
            Self {
                source,
                packets_full_at_ns: packets_moment(packets),
                connections_full_at_ns: other(2 * way),
                bytes_full_at_ns: other(2 * way + 1),
            }
        })
    }

    /// When the bucket of a quota is full again.
    pub const fn full_at_ns(&self, quota: Quota) -> u64 {
        match quota {
            Quota::Packets => self.packets_full_at_ns,
            Quota::Connections => self.connections_full_at_ns,
            Quota::Bytes => self.bytes_full_at_ns,
        }
    }
}

/// A number that both halves share while it changes.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    /// Whether the bucket that this is has nothing left for the price; nobody refuses no price.
    #[inline(always)]
    pub fn refuses(&self, price: &Limit, now_ns: u64) -> bool {
        if price.is_none() {
            return false;
        }
        // As in `Limit::step`.
        let ahead_ns = self.load().wrapping_sub(now_ns) as i64;
        ahead_ns > 0 && ahead_ns as u64 > price.tolerance_ns
    }

    /// Takes the price from the bucket that this is.
    #[inline(always)]
    pub fn charge(&self, price: &Limit, now_ns: u64) {
        if price.is_none() {
            return;
        }
        if (self.load().wrapping_sub(now_ns) as i64) < 0 {
            self.store(now_ns.wrapping_add(price.cost_ns));
        } else {
            self.add(price.cost_ns);
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Word {
    /// What it is now.
    pub fn load(&self) -> u64 {
        #[cfg(test)]
        crate::interleavings::before_access();
        self.0.load(Relaxed)
    }

    /// What it is now, and not before `_earlier` was read.
    pub fn load_after(&self, _earlier: u64) -> u64 {
        core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
        self.load()
    }

    fn store(&self, value: u64) {
        #[cfg(test)]
        crate::interleavings::before_access();
        self.0.store(value, Relaxed);
    }

    fn add(&self, value: u64) {
        #[cfg(test)]
        crate::interleavings::before_access();
        self.0.fetch_add(value, Relaxed);
    }
}

/// On the BPF machine an aligned load or store of 64 bits is atomic, and the compiler has no
/// instruction for a marked one; volatile keeps it from doing any of them twice.
#[cfg(target_arch = "bpf")]
impl Word {
    /// What it is now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: points to this word, which is valid and aligned.
        unsafe { core::ptr::read_volatile(self.0.as_ptr()) }
    }

    /// What it is now, and not before `earlier` was read: its address is computed from that, which
    /// also machines that read out of order must wait for. (Nothing is added to it; but neither the
    /// compiler, to which this is opaque, nor the kernel's takes the computation away.)
    #[inline(always)]
    pub fn load_after(&self, earlier: u64) -> u64 {
        let value;
        // SAFETY: as in `load`; what is added to the address is 0.
        unsafe {
            core::arch::asm!(
                "{earlier} &= 0",
                "{word} += {earlier}",
                "{value} = *(u64 *)({word} + 0)",
                earlier = inout(reg) earlier => _,
                word = inout(reg) self.0.as_ptr() => _,
                value = lateout(reg) value,
                options(nostack, readonly),
            );
        }
        value
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: as in `load`; the word may be written through a shared reference, being atomic.
        unsafe { core::ptr::write_volatile(self.0.as_ptr(), value) }
    }

    /// The one atomic addition that Linux before 5.12 knows, which gives no result. Written out,
    /// because a compiler that chose any newer form would make the program unloadable there.
    #[inline(always)]
    fn add(&self, value: u64) {
        // SAFETY: as in `store`.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({word} + 0) += {value}",
                word = in(reg) self.0.as_ptr(),
                value = in(reg) value,
                options(nostack),
            );
        }
    }
}

/// A source's hash, keyed by `secret`: its upper bits choose the [`Set`] and the
/// place in the filter of banned sources. Whoever does not know the secret cannot
/// choose sources that meet in one set. One multiplication less would do for that, but would deal
/// addresses that follow each other out to the sets in turn, and so a scan would push out a limited
/// source as surely as a queue does.
#[inline(always)]
pub const fn hash(source: Source, secret: u64) -> u64 {
    // Two odd multipliers of the 64-bit finalizer family; each spreads low bits upwards,
    // the shift brings them back down, and the secret enters before both. Only the upper half is
    // used, which needs no more.
    let word = (source.word() ^ secret).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (word ^ word >> 32 ^ secret).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeMap, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    #[test]
    fn admits_the_burst_then_the_rate_and_loses_no_part_of_a_token() {
        let limit = Limit::new(10, S, 2);
        let mut bucket = Bucket::full(0);
        for (now_ms, admitted) in [
            (0, true),
            (0, true), // burst spent
            (99, false),
            (150, true),
            (199, false),
            (200, true), // the 50 ms left over at 150 still count
        ] {
            assert_eq!(bucket.take(&limit, now_ms * MS), admitted, "at {now_ms} ms");
        }
    }

    #[test]
    fn says_when_to_come_back_and_means_it() {
        let limit = Limit::new(10, S, 3);
        let mut bucket = Bucket::full(0);
        assert_eq!((bucket.tokens(&limit, 0), bucket.wait_ns(&limit, 0)), (3, 0));
        while bucket.take(&limit, 0) {}
        let wait_ns = bucket.wait_ns(&limit, 0);
        assert_eq!((bucket.tokens(&limit, 0), wait_ns), (0, 100 * MS));
        assert!(!bucket.take(&limit, wait_ns - 1));
        assert!(bucket.take(&limit, wait_ns));
    }

    #[test]
    fn makes_sense_of_every_limit() {
        for (limit, cost_ns, burst_ns) in [
            (Limit::new(20_000, S, 40_000), 50_000, 2 * S),
            (Limit::new(1, S, 1), S, S),
            (Limit::new(0, S, 0), S, S),
            (Limit::new(u32::MAX, S, u32::MAX), 1, u32::MAX as u64),
            (Limit::new(10_000, 3600 * S, 100), 360 * MS, 36 * S),
            (Limit::new(1, u64::MAX, u32::MAX), u64::MAX, u64::MAX),
        ] {
            assert_eq!((limit.cost_ns, limit.burst_ns()), (cost_ns, burst_ns), "{limit:?}");
        }
    }

    #[test]
    fn a_limit_on_octets_admits_the_burst_then_the_rate_whatever_the_frames() {
        const MIB: u64 = 1 << 20;
        for (per_s, burst, frame) in [
            (50 * MIB, 64 * MIB, 1514),
            (50 * MIB, 64 * MIB, 60),
            (1024, 65_536, 65_536),
            (12_500_000_000, 250_000_000, 9_014),
        ] {
            let limit = Limit::octets(per_s, burst).of_frame(frame);
            let admitted = |bucket: &mut Bucket, now_ns| {
                (0..).take_while(|_| bucket.take(&limit, now_ns)).count() as u64 * frame
            };
            let mut bucket = Bucket::full(S);
            let at_once = admitted(&mut bucket, S);
            assert!(
                at_once <= burst + frame && at_once + frame + burst / 100 >= burst,
                "{at_once}"
            );
            // The second later as much as the rate says, to a hundredth, and no more than the burst.
            let later = admitted(&mut bucket, 2 * S);
            let expected = per_s.min(burst);
            assert!(later.abs_diff(expected) <= frame + expected / 50, "{later} of {expected}");
        }
        // A frame larger than the burst passes a full bucket only.
        let limit = Limit::octets(1024, 100).of_frame(1_000);
        let mut bucket = Bucket::full(0);
        assert!(bucket.take(&limit, 0) && !bucket.take(&limit, 0));
        assert!(Limit::octets(0, 0).cost_ns > 0 && Limit::octets(u64::MAX, 1).cost_ns > 0);
    }

    #[test]
    fn a_doubled_limit_is_that_of_twice_the_rate_and_burst() {
        for (per_s, burst) in [(20_000, 40_000), (100, 200), (1, 1), (125, 3)] {
            let limit = Limit::new(per_s, S, burst);
            assert_eq!(limit.doubled(0), limit);
            assert_eq!(limit.doubled(1), Limit::new(2 * per_s, S, 2 * burst));
            assert_eq!(limit.doubled(4), Limit::new(16 * per_s, S, 16 * burst));
            assert_eq!(Limit::new(8 * per_s, S, 8 * burst).doubled(-3), limit);
        }
        let fastest = Limit { cost_ns: 3, tolerance_ns: 30 }.doubled(4);
        assert_eq!(fastest, Limit { cost_ns: 1, tolerance_ns: 32 });
    }

    #[test]
    fn a_clock_that_runs_a_little_behind_gives_nothing_away() {
        let limit = Limit::new(10, S, 2);
        let mut bucket = Bucket::full(10 * S);
        assert!(bucket.take(&limit, 10 * S) && bucket.take(&limit, 10 * S));
        assert!(!bucket.take(&limit, 10 * S - 5 * MS));
        assert!(!bucket.take(&limit, 10 * S));
    }

    const FREE: Price = Price::NOTHING;

    /// A set with its other buckets.
    #[derive(Default)]
    struct Table {
        set: Set,
        others: Others,
    }

    impl Table {
        fn find(&self, source: Source, now_ns: u64) -> Place {
            self.set.find(source, now_ns, || Some(&self.others))
        }

        /// The other buckets, where the price asks for them.
        fn others(&self, price: &Price) -> Option<&Others> {
            let asks = !(price.connections.is_none() && price.bytes.is_none());
            asks.then_some(&self.others)
        }

        fn replace(&self, way: usize, source: Source, price: &Price, now_ns: u64) {
            self.set.replace(way, source, self.others(price), price, now_ns);
        }

        fn refuses(&self, way: usize, quota: Quota, price: &Limit, now_ns: u64) -> bool {
            match quota {
                Quota::Packets => self.set.refuses(way, price, now_ns),
                _ => self.set.refuses_other(way, Some(&self.others), quota, price, now_ns),
            }
        }

        /// As the program does: true when the packet may pass.
        fn admit(&self, source: Source, price: &Price, now_ns: u64) -> bool {
            match self.find(source, now_ns) {
                Place::Known(way) => {
                    let prices = [
                        (Quota::Connections, price.connections),
                        (Quota::Packets, price.packets),
                        (Quota::Bytes, price.bytes),
                    ];
                    let passes = !prices
                        .iter()
                        .any(|(quota, price)| self.refuses(way, *quota, price, now_ns));
                    if passes {
                        self.set.charge(way, self.others(price), price, now_ns);
                    }
                    passes
                }
                Place::Free(way) | Place::Taken(way) => {
                    self.replace(way, source, price, now_ns);
                    true
                }
            }
        }

        fn ways(&self) -> [WayState; WAYS] {
            let words = |words: [&Word; SET_WORDS]| words.map(Word::load);
            let set: Vec<_> =
                self.set.ways.iter().flat_map(|way| [&way.source, &way.packets]).collect();
            let others = self.others.ways.iter().flat_map(|way| [&way.connections, &way.bytes]);
            let others: Vec<_> = others.collect();
            WayState::of_set(&words(set.try_into().unwrap()), &words(others.try_into().unwrap()))
        }
    }

    #[test]
    fn a_set_keeps_its_sources_apart_and_forgets_the_fullest_first() {
        let price = Price { packets: Limit::new(1, S, 2), ..FREE };
        let table = Table::default();
        let source = |n: u32| Source::ipv4(n);
        for n in 1..=4 {
            assert_eq!(table.find(source(n), 0), Place::Free(n as usize - 1));
            assert!(table.admit(source(n), &price, 0));
        }
        for n in 2..=4 {
            assert!(table.admit(source(n), &price, 0));
            assert!(!table.admit(source(n), &price, 0));
        }
        // 1 is full again at 1 s; a fifth source takes its place without loss then, not before.
        assert_eq!(table.find(source(5), S / 2), Place::Taken(0));
        assert!(table.admit(source(5), &price, S / 2));
        assert!(!table.admit(source(2), &price, S / 2));
        assert_eq!(table.find(source(6), 3 * S), Place::Free(0));
    }

    #[test]
    fn a_place_is_free_when_all_its_buckets_are_full() {
        let limit = Limit::new(1, S, 5);
        for (price, quota) in [
            (Price { packets: limit, ..FREE }, Quota::Packets),
            (Price { connections: limit, ..FREE }, Quota::Connections),
            (Price { bytes: limit, ..FREE }, Quota::Bytes),
        ] {
            let table = Table::default();
            for n in 0..WAYS {
                table.replace(n, Source::ipv4(n as u32), &price, n as u64 * S);
            }
            assert_eq!(table.find(Source::ipv4(9), S / 2), Place::Taken(0), "{quota:?}");
            assert_eq!(table.find(Source::ipv4(9), 2 * S), Place::Free(0), "{quota:?}");
            for _ in 0..4 {
                assert!(table.admit(Source::ipv4(0), &price, 0), "{quota:?}");
            }
            for other in Quota::ALL {
                assert_eq!(table.refuses(0, other, &limit, 0), other == quota);
            }
            assert!(!table.refuses(0, quota, &Limit::NONE, 0));
        }
    }

    #[test]
    fn who_takes_a_place_has_full_buckets_whatever_lies_there() {
        let limit = Limit::new(1, S, 2);
        let connection = Price { connections: limit, packets: limit, ..FREE };
        let packet = Price { packets: limit, ..FREE };
        let table = Table::default();
        let (first, second) = (Source::ipv4(1), Source::ipv4(2));
        for _ in 0..2 {
            assert!(table.admit(first, &connection, 0));
        }
        assert!(table.refuses(0, Quota::Connections, &limit, 0));
        // The second takes the place by a packet that asks for no connection, then asks for two.
        table.replace(0, second, &packet, 0);
        assert_eq!(table.ways()[0].connections_full_at_ns, 0);
        assert!(!table.refuses(0, Quota::Connections, &limit, 0));
        assert!(table.admit(second, &Price { connections: limit, ..FREE }, 0));
        assert_eq!(table.ways()[0].connections_full_at_ns, S);
        assert_eq!(table.ways()[0].packets_full_at_ns, S);
        assert!(table.admit(second, &connection, 0));
        assert!(!table.admit(second, &connection, 0));
        // What it has used of connections keeps its place, and comes to no other source.
        assert_eq!(table.ways()[0].packets_full_at_ns, 2 * S);
        assert!(!table.admit(second, &packet, 0));
        assert!(table.admit(second, &packet, 5 * S));
        assert!(table.ways()[0].connections_full_at_ns == 2 * S);
    }

    #[test]
    fn user_space_reads_what_the_program_writes() {
        let table = Table::default();
        let price = |connections, packets, bytes| {
            let limit = |cost_ns| Limit { cost_ns, tolerance_ns: 0 };
            Price { connections: limit(connections), packets: limit(packets), bytes: limit(bytes) }
        };
        table.replace(2, Source::ipv4(7), &price(1, 2, 3), 100);
        let ways = table.ways();
        assert_eq!(ways[0], WayState::default());
        assert_eq!(
            ways[2],
            WayState {
                source: Source::ipv4(7).word(),
                packets_full_at_ns: 102,
                connections_full_at_ns: 101,
                bytes_full_at_ns: 103,
            }
        );
        let full_at_ns = [Quota::Packets, Quota::Connections, Quota::Bytes]
            .map(|quota| ways[2].full_at_ns(quota));
        assert_eq!(full_at_ns, [102, 101, 103]);
    }

    #[test]
    fn the_hash_spreads_neighbours_and_depends_on_the_secret() {
        let mut sets = BTreeMap::<u64, u32>::new();
        for n in 0..4096 {
            *sets.entry(hash(Source::ipv4(0x0a00_0000 + n), 7) >> 52).or_default() += 1;
        }
        // 4096 balls in 4096 bins: about 63 % of the bins are used, and 12 in one are unheard of.
        assert!((2_400..2_800).contains(&sets.len()), "{}", sets.len());
        assert!(sets.values().all(|&count| count < 12));
        assert_ne!(hash(Source::ipv4(1), 7), hash(Source::ipv4(1), 8));
    }

    proptest! {
        #[test]
        fn never_admits_more_than_burst_and_rate(
            events in 1u32..1_000_000,
            burst in 1u32..10_000,
            start in any::<u64>(),
            gaps in prop::collection::vec(0u64..20 * MS, 1..400),
        ) {
            let limit = Limit::new(events, S, burst);
            let mut bucket = Bucket::full(start);
            let mut elapsed_ns = 0;
            let mut admitted = 0;
            for gap_ns in gaps {
                elapsed_ns += gap_ns;
                admitted += u64::from(bucket.take(&limit, start.wrapping_add(elapsed_ns)));
                prop_assert!(admitted <= u64::from(burst) + elapsed_ns / limit.cost_ns);
            }
        }

        #[test]
        fn whoever_sends_from_a_set_never_pays_for_another(
            asked in prop::collection::vec((0u32..9, any::<bool>(), 0u64..2 * S), 1..200),
        ) {
            // At random sources that take each other's places: nobody is refused that has not sent as
            // much since the beginning as a bucket of its own would refuse.
            let limit = Limit::new(1, S, 2);
            let table = Table::default();
            let mut alone = [[Bucket::full(S); 2]; 9];
            let mut now_ns = S;
            for (n, opens, gap_ns) in asked {
                now_ns += gap_ns;
                let connections = if opens { limit } else { Limit::NONE };
                let price = Price { packets: limit, connections, ..FREE };
                let admitted = table.admit(Source::ipv4(n), &price, now_ns);
                let [packets, connections] = &mut alone[n as usize];
                let would = packets.wait_ns(&limit, now_ns) == 0
                    && (!opens || connections.wait_ns(&limit, now_ns) == 0);
                prop_assert!(admitted || !would, "{} at {}", n, now_ns);
                if would {
                    packets.take(&limit, now_ns);
                    if opens {
                        connections.take(&limit, now_ns);
                    }
                }
            }
        }

        #[test]
        fn a_set_judges_like_a_bucket_for_each_source(
            asked in prop::collection::vec((0u32..WAYS as u32, 0u64..50 * MS), 1..200),
        ) {
            let limit = Limit::new(100, S, 5);
            let price = Price { packets: limit, ..FREE };
            let table = Table::default();
            let mut alone: Vec<Bucket> = (0..WAYS).map(|_| Bucket::full(S)).collect();
            let mut now_ns = S;
            for (n, gap_ns) in asked {
                now_ns += gap_ns;
                let admitted = table.admit(Source::ipv4(n), &price, now_ns);
                prop_assert_eq!(admitted, alone[n as usize].take(&limit, now_ns));
            }
        }
    }
}
