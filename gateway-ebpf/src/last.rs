//! What a CPU remembers of the last packet that it judged, so that one of its like need not be judged
//! again.
//!
//! A flood is one packet many times over. The program's clock stands still for a tick, so what was
//! refused is refused again until the next one, or until user space writes a rule ([`Like`]). And a
//! source that is within its limits, and sends again, runs up a tab: a small part of what it has
//! left, taken without a look at its buckets, and paid in one go. Nothing of it is forgotten, so the
//! sustained rate stays exact; how much every CPU may let through on top of a burst is told at
//! `SHARE_BITS`.

use crate::{
    Outcome, Source,
    bucket::{LeftNs, Limit},
    verdict::Tables,
};

/// A tab is this part of what its source has left, as a power of two: 1/256. All tabs of 64 CPUs come
/// to a quarter of a burst at the most, those of two to less than a hundredth; what is near its limit
/// has none.
const SHARE_BITS: u32 = 8;

/// What packets have in common that are judged alike: who sent them, whether they open a connection,
/// when they came, and by which rules they are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Like {
    source: u64,
    /// Neither the clock nor the number of the rules ever goes back, so their sum tells when either
    /// has moved.
    stamp: u64,
}

impl Like {
    /// What a packet of this source is like, at a moment and under the rules of this number.
    #[inline(always)]
    pub const fn new(source: Source, opens: bool, now_ns: u64, revision: u64) -> Self {
        let stamp = now_ns.wrapping_add(revision) << 1 | opens as u64;
        Self { source: source.word(), stamp }
    }
}

/// The last packet to a guarded port, what became of it, and its source's tab. All zeroes is none.
///
/// Of IPv4 and without tags or options, as nearly all are: of others nothing is kept, because the
/// kernel's verifier would walk through everything that follows once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Last {
    source: u64,
    stamp: u64,
    /// The number of the [`Outcome`] that it was dropped with, [`ON_TAB`] or [`AGAIN`]; else 0.
    end: u64,
    /// Where the source has its buckets: its [`crate::bucket::hash`], and the place in that set.
    hash: u64,
    way: u64,
    packets: Tab,
    bytes: Tab,
}
const _: () = assert!(size_of::<Last>() == 72);

/// In [`Last`]: its like pass as long as the tab has room.
const ON_TAB: u64 = 1 << 32;
/// In [`Last`]: it was the like of the one before.
const AGAIN: u64 = ON_TAB + 1;

/// What a source took that its bucket does not know of yet, and the most that this may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Tab {
    owed_ns: u64,
    most_ns: u64,
}

impl Last {
    /// Whether this packet is the last one's like.
    #[inline(always)]
    pub const fn is(&self, like: &Like) -> bool {
        self.source == like.source && self.stamp == like.stamp
    }

    /// How its like are dropped; `None` if they are not, or not always: what depends on the size of a
    /// packet or on other sources does not.
    #[inline(always)]
    pub const fn refusal(&self) -> Option<Outcome> {
        const BANNED: u64 = Outcome::Banned as u64;
        const DENIED: u64 = Outcome::Denied as u64;
        const OVER_LIMIT: u64 = Outcome::OverLimit as u64;
        const OVER_CONNECTIONS: u64 = Outcome::OverConnections as u64;
        match self.end {
            BANNED => Some(Outcome::Banned),
            DENIED => Some(Outcome::Denied),
            OVER_LIMIT => Some(Outcome::OverLimit),
            OVER_CONNECTIONS => Some(Outcome::OverConnections),
            _ => None,
        }
    }

    /// Whether its like pass on a tab.
    #[inline(always)]
    pub const fn is_on_tab(&self) -> bool {
        self.end == ON_TAB
    }

    /// Takes this price from the tab, or nothing if it is too much of anything.
    #[inline(always)]
    pub const fn takes(&mut self, packets: &Limit, bytes: &Limit) -> bool {
        let packets_ns = self.packets.owed_ns.wrapping_add(packets.cost_ns);
        let bytes_ns = self.bytes.owed_ns.wrapping_add(bytes.cost_ns);
        if packets_ns > self.packets.most_ns || bytes_ns > self.bytes.most_ns {
            return false;
        }
        self.packets.owed_ns = packets_ns;
        self.bytes.owed_ns = bytes_ns;
        true
    }

    /// Another packet is to be judged. What the last one's source owes is paid before, or the new one
    /// would be judged by buckets that know too little, and somebody might take a place that is in use.
    ///
    /// A source that lost its place all the same was forgotten by another CPU, and this with it.
    #[inline(always)]
    pub fn begin<T: Tables>(&mut self, like: &Like, tables: &T) {
        self.settle(tables);
        if self.is(like) {
            self.end = AGAIN;
        } else {
            self.source = like.source;
            self.stamp = like.stamp;
            self.end = 0;
        }
    }

    /// A packet that nothing is kept of is to be judged by the buckets.
    #[inline(always)]
    pub fn end<T: Tables>(&mut self, tables: &T) {
        self.settle(tables);
        self.end = 0;
    }

    /// Has the source pay what it owes.
    #[inline(always)]
    fn settle<T: Tables>(&mut self, tables: &T) {
        if self.packets.owed_ns | self.bytes.owed_ns != 0 {
            self.pay(tables);
        }
    }

    /// What is owed, to the buckets. A function of its own: walked through where it stands, it would
    /// make the verifiers of old kernels walk through all that follows once more (6.1: 315,000
    /// instructions instead of 157,000).
    #[inline(never)]
    fn pay<T: Tables>(&mut self, tables: &T) {
        if let Some(set) = tables.set(self.hash) {
            let owner = Source::from_word(self.source);
            let others = || tables.others(self.hash);
            let (packets_ns, bytes_ns) = (self.packets.owed_ns, self.bytes.owed_ns);
            set.collect(self.way as usize, owner, others, packets_ns, bytes_ns);
        }
        self.packets.owed_ns = 0;
        self.bytes.owed_ns = 0;
    }

    /// The packet was dropped.
    #[inline(always)]
    pub const fn drops(&mut self, outcome: Outcome) {
        self.end = outcome as u64;
    }

    /// The packet passed and was paid for by the source of this hash and place. If it was not the first
    /// one, there is a tab from here on; only then it is worked out how much is left for one.
    #[inline(always)]
    pub fn passes(&mut self, hash: u64, way: usize, left: impl FnOnce() -> LeftNs) {
        if self.end != AGAIN {
            return;
        }
        let left = left();
        self.hash = hash;
        self.way = way as u64;
        self.packets = Tab { owed_ns: 0, most_ns: left.packets_ns >> SHARE_BITS };
        self.bytes = Tab { owed_ns: 0, most_ns: left.bytes_ns >> SHARE_BITS };
        self.end = ON_TAB;
    }
}
