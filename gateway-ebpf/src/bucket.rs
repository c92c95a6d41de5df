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

use crate::Source;

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

    /// The time in which an empty bucket fills: the burst at the sustained rate.
    #[inline(always)]
    pub const fn burst_ns(&self) -> u64 {
        self.tolerance_ns.saturating_add(self.cost_ns)
    }

    /// What to do with the bucket `full_at_ns` when a token is asked of it at `now_ns`.
    #[inline(always)]
    pub const fn step(&self, full_at_ns: u64, now_ns: u64) -> Step {
        let ahead_ns = full_at_ns.wrapping_sub(now_ns) as i64;
        if ahead_ns < 0 {
            Step::Restart(now_ns.wrapping_add(self.cost_ns))
        } else if ahead_ns as u64 > self.tolerance_ns {
            Step::Refuse
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
    pub const fn wait_ns(&self, limit: &Limit, now_ns: u64) -> u64 {
        let ahead_ns = self.full_at_ns.wrapping_sub(now_ns) as i64;
        if ahead_ns <= 0 { 0 } else { (ahead_ns as u64).saturating_sub(limit.tolerance_ns) }
    }

    /// Whether the bucket is full: then forgetting it changes nothing.
    pub const fn is_full(&self, now_ns: u64) -> bool {
        (self.full_at_ns.wrapping_sub(now_ns) as i64) <= 0
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

/// Buckets of one [`Set`]: as many as make it one 64-byte cache line.
pub const WAYS: usize = 4;

/// Four buckets that share a place in the table, each with the source it belongs to.
///
/// The table is an array of sets; a source's hash names its set, and within the set the source is
/// looked for exactly, so no source ever pays for another one. The words are atomic, because the
/// program runs on every CPU at once and user space may read the table while it does; they are
/// only loaded, stored and added to without asking for the result, because Linux before 5.12 can
/// do no more.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Set {
    ways: [Way; WAYS],
}

/// A bucket and its owner. All zeroes is a free one: source `::/64`, full since ever.
#[derive(Debug, Default)]
#[repr(C)]
struct Way {
    source: Word,
    full_at_ns: Word,
}

const _: () = assert!(size_of::<Set>() == 64 && align_of::<Set>() == 64);

/// What a [`Set`] answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Within the limit.
    Within,
    /// Over the limit.
    Over,
    /// Within the limit, but its bucket took the place of one that was not yet full: some other
    /// source got tokens back. Many of these mean that the table is too small.
    Evicting,
}

impl Set {
    /// Takes one token of `source`'s bucket.
    ///
    /// A source that is not in the set takes the place of the bucket that is full soonest; where
    /// that one is already full, forgetting it loses nothing. CPUs that race for a token may take
    /// one more each, and pay for it, so the sustained rate holds; CPUs that race to restart a full
    /// bucket may forget what the other charged meanwhile, which is less than a burst.
    #[inline(always)]
    pub fn admit(&self, source: Source, limit: &Limit, now_ns: u64) -> Admission {
        let mut soonest = &self.ways[0];
        let mut soonest_ahead_ns = i64::MAX;
        for way in &self.ways {
            let full_at_ns = way.full_at_ns.load();
            if way.source.load() == source.word() {
                return way.take(full_at_ns, limit, now_ns);
            }
            let ahead_ns = full_at_ns.wrapping_sub(now_ns) as i64;
            if ahead_ns < soonest_ahead_ns {
                soonest_ahead_ns = ahead_ns;
                soonest = way;
            }
        }
        soonest.source.store(source.word());
        soonest.full_at_ns.store(now_ns.wrapping_add(limit.cost_ns));
        if soonest_ahead_ns > 0 { Admission::Evicting } else { Admission::Within }
    }
}

impl Way {
    #[inline(always)]
    fn take(&self, full_at_ns: u64, limit: &Limit, now_ns: u64) -> Admission {
        match limit.step(full_at_ns, now_ns) {
            Step::Refuse => return Admission::Over,
            Step::Charge(cost_ns) => self.full_at_ns.add(cost_ns),
            Step::Restart(full_at_ns) => self.full_at_ns.store(full_at_ns),
        }
        Admission::Within
    }
}

/// A number that both halves share while it changes.
#[derive(Debug, Default)]
#[repr(transparent)]
struct Word(AtomicU64);

#[cfg(not(target_arch = "bpf"))]
impl Word {
    fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    fn add(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }
}

/// On the BPF machine an aligned load or store of 64 bits is atomic, and the compiler has no
/// instruction for a marked one; volatile keeps it from doing any of them twice.
#[cfg(target_arch = "bpf")]
impl Word {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: points to this word, which is valid and aligned.
        unsafe { core::ptr::read_volatile(self.0.as_ptr()) }
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

/// A source's hash, keyed by `secret`: the upper half chooses its [`Set`], the lower bits its
/// place in the filter of banned sources. Whoever does not know the secret cannot choose sources
/// that meet in one set.
#[inline(always)]
pub const fn hash(source: Source, secret: u64) -> u64 {
    // Two odd multipliers of the 64-bit finalizer family; each spreads low bits upwards, the
    // shifts bring them back down, and the secret enters before both.
    let word = (source.word() ^ secret).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ word >> 32 ^ secret.rotate_left(32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ word >> 32
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
        assert!(!bucket.is_full(300 * MS));
        assert!(bucket.is_full(400 * MS));
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

    #[test]
    fn a_set_keeps_its_sources_apart_and_forgets_the_fullest_first() {
        let limit = Limit::new(1, S, 2);
        let set = Set::default();
        let source = |n: u32| Source::ipv4(n);
        for n in 1..=4 {
            assert_eq!(set.admit(source(n), &limit, 0), Admission::Within);
        }
        for n in 2..=4 {
            assert_eq!(set.admit(source(n), &limit, 0), Admission::Within);
            assert_eq!(set.admit(source(n), &limit, 0), Admission::Over);
        }
        // 1 is full again at 1 s; a fifth source takes its place without loss then, not before.
        assert_eq!(set.admit(source(5), &limit, S / 2), Admission::Evicting);
        assert_eq!(set.admit(source(2), &limit, S / 2), Admission::Over);
        assert_eq!(set.admit(source(6), &limit, 3 * S), Admission::Within);
    }

    #[test]
    fn the_hash_spreads_neighbours_and_depends_on_the_secret() {
        let mut sets = BTreeMap::<u64, u32>::new();
        for n in 0..4096 {
            *sets.entry(hash(Source::ipv4(0x0a00_0000 + n), 7) >> 32 & 0xfff).or_default() += 1;
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
        fn a_set_judges_like_a_bucket_for_each_source(
            asked in prop::collection::vec((0u32..WAYS as u32, 0u64..50 * MS), 1..200),
        ) {
            let limit = Limit::new(100, S, 5);
            let set = Set::default();
            let mut alone: Vec<Bucket> = (0..WAYS).map(|_| Bucket::full(S)).collect();
            let mut now_ns = S;
            for (n, gap_ns) in asked {
                now_ns += gap_ns;
                let admitted = set.admit(Source::ipv4(n), &limit, now_ns) != Admission::Over;
                prop_assert_eq!(admitted, alone[n as usize].take(&limit, now_ns));
            }
        }
    }
}
