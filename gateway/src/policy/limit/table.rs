//! The buckets of one limit: a table of fixed size that all workers charge without a lock.
//!
//! The table is an array of sets of eight places. A consumer's hash names its set, and within the set
//! it is looked for exactly; its buckets are words that are charged by compare-and-exchange, so that
//! no request is let in beyond the rate, whoever races with whom. Only a consumer that is new takes a
//! lock, that of a part of the table, to choose its place.
//!
//! What happens when a set is full is safe for both sides. First goes who has full buckets, which
//! loses nothing; then who has used the least. Who is over its limit is never forgotten: where there
//! are only such, the newcomer is let through uncounted, and that is counted.

use std::{
    fmt,
    hash::{BuildHasher, DefaultHasher, Hash, Hasher as _, RandomState},
    sync::{
        Mutex, MutexGuard,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use gateway_ebpf::bucket::{Limit, Step};

use super::{Rate, Standing, Subject, Unit};

/// Places of one set: their tags fill one cache line.
const WAYS: usize = 8;

/// Places there are for each entry that the table is to hold: at this filling one set in fifty is
/// full, were all consumers active at once.
const PLACES_PER_ENTRY: usize = 2;

/// Locks for newcomers: more than there are workers on most machines.
const LOCKS: usize = 64;

/// The clock of a table begins here, so that no bucket's moment lies before it.
const CLOCK_START_NS: u64 = 1 << 50;

/// What makes a table's hash one that outsiders cannot compute.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u64; 2]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    /// Another one each time.
    fn random() -> Secret {
        // Each has the process' random keys, counted on.
        Secret([0, 1].map(|part| RandomState::new().hash_one(part)))
    }
}

/// A hash that begins with a secret, so that another process can go on with it, which the standard
/// library's own does not allow.
#[derive(Clone)]
struct Keyed {
    secret: Secret,
    begun: DefaultHasher,
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyed").field(&self.secret).finish()
    }
}

impl Keyed {
    fn new(secret: Secret) -> Keyed {
        let mut begun = DefaultHasher::new();
        secret.0.into_iter().for_each(|part| begun.write_u64(part));
        Keyed { secret, begun }
    }
}

impl BuildHasher for Keyed {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        self.begun.clone()
    }
}

/// What was used of one limit, as one process tells the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// What its consumers' hashes begin with.
    pub secret: Secret,
    /// Such a hash of something known: a program that hashes otherwise gets another.
    pub proof: u64,
    /// A consumer's hash, and how long until each of its buckets is full.
    pub rows: Vec<(u64, [u64; Unit::COUNT])>,
}

/// What a consumer is known by: 64 bits of a hash that outsiders cannot compute. Of a million
/// consumers two have the same with a probability of 3 in 100 million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

/// One consumer's buckets: each word is the moment at which the bucket of a unit's rate is full.
type Row = [AtomicU64; Unit::COUNT];

/// Places that are searched together. A tag of 0 is a free place.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set {
    tags: [AtomicU64; WAYS],
    rows: [Row; WAYS],
}

/// The buckets of one limit.
#[derive(Debug)]
pub struct Table {
    sets: Box<[Set]>,
    hasher: Keyed,
    started: Instant,
    locks: Box<[Mutex<()>]>,
    /// Consumers that were forgotten before their buckets were full.
    forgotten: AtomicU64,
    entries: usize,
}

/// Where one consumer's buckets are, or were: another one may have been put there since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'t> {
    tag: &'t AtomicU64,
    row: &'t Row,
}

impl Table {
    /// An empty table for so many consumers at once. Its clock begins now.
    pub fn new(entries: usize, now: Instant) -> Table {
        Table::with(entries, Keyed::new(Secret::random()), now)
    }

    /// What was used, of the `rows_max` consumers that have used most.
    pub fn used(&self, rows_max: usize, now: Instant) -> Used {
        let now_ns = self.clock_ns(now);
        let rows = self.sets.iter().flat_map(|set| set.tags.iter().zip(&set.rows));
        let mut rows: Vec<_> = rows
            .map(|(tag, row)| (tag.load(Acquire), row))
            .filter(|(tag, row)| *tag != 0 && ahead_ns(row, now_ns) > 0)
            .map(|(tag, row)| {
                (tag, row.each_ref().map(|word| word.load(Relaxed).saturating_sub(now_ns)))
            })
            .collect();
        rows.sort_unstable_by_key(|(_, ahead)| std::cmp::Reverse(ahead.iter().max().copied()));
        rows.truncate(rows_max);
        Used { secret: self.hasher.secret, proof: self.proof(), rows }
    }

    /// An empty table of the same size that goes on with what was used; `None`: it was told by a program
    /// that hashes otherwise.
    pub(super) fn going_on(
        &self,
        used: &Used,
        guard_ns: &[u64; Unit::COUNT],
        now: Instant,
    ) -> Option<Table> {
        let table = Table::with(self.entries, Keyed::new(used.secret), now);
        if table.proof() != used.proof {
            return None;
        }
        let now_ns = table.clock_ns(now);
        // Who has used most comes first: where there is no room, it is for who has used least.
        for (tag, ahead_ns) in &used.rows {
            if let Some(place) = table.place(Tag((*tag).max(1)), guard_ns, now_ns) {
                for (word, ahead_ns) in place.row.iter().zip(ahead_ns) {
                    word.store(now_ns.saturating_add(*ahead_ns), Relaxed);
                }
            }
        }
        Some(table)
    }

    fn proof(&self) -> u64 {
        self.hasher.hash_one(Subject::Client { issuer: "of nobody", name: "a proof" })
    }

    fn with(entries: usize, hasher: Keyed, started: Instant) -> Table {
        let sets = entries.max(1).saturating_mul(PLACES_PER_ENTRY).div_ceil(WAYS);
        Table {
            sets: (0..sets).map(|_| Set::default()).collect(),
            hasher,
            started,
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            forgotten: AtomicU64::new(0),
            entries,
        }
    }

    /// The same buckets in a table of another size. What is charged to this one afterwards, by
    /// requests that began before, is lost.
    pub(super) fn resized(
        &self,
        entries: usize,
        guard_ns: &[u64; Unit::COUNT],
        now: Instant,
    ) -> Table {
        let table = Table::with(entries, self.hasher.clone(), self.started);
        let now_ns = table.clock_ns(now);
        let mut present: Vec<(u64, u64, &Row)> = self
            .sets
            .iter()
            .flat_map(|set| set.tags.iter().zip(&set.rows))
            .map(|(tag, row)| (ahead_ns(row, now_ns), tag.load(Acquire), row))
            .filter(|(ahead_ns, tag, _)| *tag != 0 && *ahead_ns > 0)
            .collect();
        // Who has used most comes first: where there is no room, it is for who has used least.
        present.sort_unstable_by_key(|(ahead_ns, ..)| std::cmp::Reverse(*ahead_ns));
        for (_, tag, row) in present {
            if let Some(place) = table.place(Tag(tag), guard_ns, now_ns) {
                for (new, old) in place.row.iter().zip(row) {
                    new.store(old.load(Relaxed), Relaxed);
                }
            }
        }
        table.forgotten.store(self.forgotten.load(Relaxed), Relaxed);
        table
    }

    /// A moment on the table's clock.
    pub(super) fn clock_ns(&self, now: Instant) -> u64 {
        let passed_ns = now.saturating_duration_since(self.started).as_nanos();
        // 64 bits last for 584 years.
        CLOCK_START_NS.wrapping_add(passed_ns as u64)
    }

    /// What a consumer is known by.
    pub(super) fn tag(&self, consumer: &impl Hash) -> Tag {
        // 0 is a free place.
        Tag(self.hasher.hash_one(consumer).max(1))
    }

    /// The buckets of a consumer; full ones where it has none yet. `None`: there is no room, because
    /// everybody in its set is over a limit, by `guard_ns`.
    pub(super) fn place(
        &self,
        tag: Tag,
        guard_ns: &[u64; Unit::COUNT],
        now_ns: u64,
    ) -> Option<Place<'_>> {
        let index = self.index(tag);
        let set = &self.sets[index];
        set.find(tag).or_else(|| {
            let _alone = self.lock(index);
            // Somebody may have put it there since.
            set.find(tag).or_else(|| self.put(set, tag, guard_ns, now_ns))
        })
    }

    fn put<'t>(
        &self,
        set: &'t Set,
        tag: Tag,
        guard_ns: &[u64; Unit::COUNT],
        now_ns: u64,
    ) -> Option<Place<'t>> {
        let way = set.room(guard_ns, now_ns)?;
        let place = set.at(way);
        if place.tag.load(Relaxed) != 0 && ahead_ns(place.row, now_ns) > 0 {
            self.forgotten.fetch_add(1, Relaxed);
        }
        // Who is charging the old one sees that it has gone, and gives back.
        place.tag.store(0, Release);
        for word in place.row {
            word.store(now_ns, Relaxed);
        }
        place.tag.store(tag.0, Release);
        Some(place)
    }

    /// The hash's upper bits spread over the sets.
    fn index(&self, tag: Tag) -> usize {
        ((u128::from(tag.0) * self.sets.len() as u128) >> 64) as usize
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, ()> {
        // What it guards is whole at every moment, also where a thread died.
        self.locks[index % LOCKS].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Consumers whose buckets are not full.
    pub fn active(&self, now: Instant) -> usize {
        let now_ns = self.clock_ns(now);
        let is_active = |set: &Set, way: usize| {
            set.tags[way].load(Relaxed) != 0 && ahead_ns(&set.rows[way], now_ns) > 0
        };
        let in_set = |set: &Set| (0..WAYS).filter(|way| is_active(set, *way)).count();
        self.sets.iter().map(in_set).sum()
    }

    /// Consumers that it is made for.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Consumers that were forgotten before their buckets were full; many mean that the table is too
    /// small.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Relaxed)
    }
}

impl Set {
    fn at(&self, way: usize) -> Place<'_> {
        Place { tag: &self.tags[way], row: &self.rows[way] }
    }

    fn find(&self, tag: Tag) -> Option<Place<'_>> {
        let way = self.tags.iter().position(|present| present.load(Acquire) == tag.0)?;
        Some(self.at(way))
    }

    /// Where a newcomer may be put: a free place, then full buckets, then those of whoever is least
    /// ahead and within its limits.
    fn room(&self, guard_ns: &[u64; Unit::COUNT], now_ns: u64) -> Option<usize> {
        if let Some(free) = self.tags.iter().position(|tag| tag.load(Relaxed) == 0) {
            return Some(free);
        }
        let is_within = |row: &Row| {
            row.iter()
                .zip(guard_ns)
                .all(|(word, guard_ns)| word.load(Relaxed).saturating_sub(now_ns) <= *guard_ns)
        };
        let rows = self.rows.iter().enumerate().filter(|(_, row)| is_within(row));
        rows.min_by_key(|(_, row)| ahead_ns(row, now_ns)).map(|(way, _)| way)
    }
}

/// How long until all buckets are full.
fn ahead_ns(row: &Row, now_ns: u64) -> u64 {
    row.iter().map(|word| word.load(Relaxed).saturating_sub(now_ns)).max().unwrap_or_default()
}

/// A bucket's moment by the rate of today: it may have been charged by another one before a reload,
/// and is never further from full than empty.
fn held(full_at_ns: u64, limit: &Limit, now_ns: u64) -> u64 {
    full_at_ns.min(now_ns.saturating_add(limit.burst_ns()))
}

impl Place<'_> {
    /// Whether it is still this consumer's.
    pub(super) fn is_of(&self, tag: Tag) -> bool {
        self.tag.load(Acquire) == tag.0
    }

    /// One token of each rate, or none of any.
    pub(super) fn take(&self, rates: &[Rate], now_ns: u64) -> bool {
        // Looked at first, so that a flood of refused requests writes nothing.
        let is_open = |rate: &Rate| {
            let full_at_ns = held(self.word(rate).load(Relaxed), &rate.bucket, now_ns);
            rate.bucket.step(full_at_ns, now_ns) != Step::Refuse
        };
        if !rates.iter().all(is_open) {
            return false;
        }
        for (index, rate) in rates.iter().enumerate() {
            if !self.take_one(rate, now_ns) {
                self.give_back(&rates[..index]);
                return false;
            }
        }
        true
    }

    fn take_one(&self, rate: &Rate, now_ns: u64) -> bool {
        let word = self.word(rate);
        let charged = |full_at_ns| {
            let full_at_ns = held(full_at_ns, &rate.bucket, now_ns);
            match rate.bucket.step(full_at_ns, now_ns) {
                Step::Refuse => None,
                Step::Charge(cost_ns) => Some(full_at_ns.wrapping_add(cost_ns)),
                Step::Restart(full_at_ns) => Some(full_at_ns),
            }
        };
        word.fetch_update(Relaxed, Relaxed, charged).is_ok()
    }

    /// Undoes a [`Place::take`].
    pub(super) fn give_back(&self, rates: &[Rate]) {
        for rate in rates {
            self.word(rate).fetch_sub(rate.bucket.cost_ns, Relaxed);
        }
    }

    /// How one rate stands.
    pub(super) fn standing(&self, rate: &Rate, now_ns: u64) -> Standing {
        let limit = &rate.bucket;
        let full_at_ns = held(self.word(rate).load(Relaxed), limit, now_ns);
        let ahead_ns = full_at_ns.saturating_sub(now_ns);
        let left = limit.tolerance_ns.checked_sub(ahead_ns);
        Standing {
            rate: *rate,
            left: left.map_or(0, |left_ns| left_ns / limit.cost_ns.max(1) + 1),
            wait: Duration::from_nanos(ahead_ns.saturating_sub(limit.tolerance_ns)),
            full_in: Duration::from_nanos(ahead_ns),
        }
    }

    fn word(&self, rate: &Rate) -> &AtomicU64 {
        &self.row[rate.unit as usize]
    }
}
