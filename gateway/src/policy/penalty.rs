//! Refusals over time → a ban: points with a half-life for each source, and a ladder of durations.
//!
//! Success never clears points, it only lets time pass (a good request must not wash an attacker clean).

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use gateway_ebpf::Source;
use ipnet::IpNet;
use lru::LruCache;

use super::{
    refusal::Reason,
    vouch::{GOOD_MAX, Voucher, Vouchers},
};

/// Sources remembered at once: an entry is about 100 bytes, so the table stays below 8 MiB. A source
/// gets an entry only after a completed TCP handshake, so it cannot be filled with spoofed addresses.
const SOURCES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("is not 0");

/// How long after a ban's end the next one is still a step up the ladder, in lengths of that ban.
const MEMORY_IN_BANS: u32 = 3;

/// The ladder is remembered at least this long after a ban's end: shorter, and an attacker who pauses
/// between attempts would start at the first step each time.
const MEMORY_MIN: Duration = Duration::from_secs(600);

/// What turns refusals into bans.
#[derive(Clone, Debug)]
pub struct Settings {
    /// False: nobody is banned.
    pub enabled: bool,
    /// Points at which a source is banned.
    pub threshold: u32,
    /// Time in which points halve.
    pub half_life: Duration,
    /// Duration of the first, second, … ban; the last repeats. Not empty.
    pub ladder: Vec<Duration>,
    /// Never banned.
    pub never: Vec<IpNet>,
}

/// Over a limit without a name: of a crowd behind one address the last ones are, in a busy second. One
/// is worth a fiftieth of a point, so that it takes a thousand in half a minute to be banned for it.
const OVER_LIMIT_SHARE: f64 = 0.02;

/// What one refusal adds to the points of its source.
pub fn weight(reason: Reason) -> f64 {
    match reason {
        Reason::SourceRateLimited => OVER_LIMIT_SHARE,
        other => f64::from(other.points()),
    }
}

/// Points at which a source is banned that so many good clients come from: each adds half of what
/// everybody may have, up to five times that.
pub fn threshold(everybodys: u32, good: f64) -> f64 {
    f64::from(everybodys) * (1.0 + good.clamp(0.0, GOOD_MAX as f64) / 2.0)
}

/// How often a source's limits in the kernel are doubled (negative: halved). Good clients widen them,
/// one doubling for two, four and eight, because they are many; points beyond half of what a ban takes,
/// and a ban not long ago, narrow them.
pub fn doublings(good: f64, points: f64, threshold: f64, was_banned: bool) -> i32 {
    // A client seen some seconds ago is a little less than one.
    let wider = [1.75, 3.5, 7.0].into_iter().filter(|needed| good >= *needed).count();
    let is_suspect = points >= threshold / 2.0;
    // At most three and two, which any integer holds.
    wider as i32 - i32::from(is_suspect) - i32::from(was_banned)
}

/// One sign of abuse by a source whose TCP handshake completed.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Who.
    pub source: Source,
    /// What it did.
    pub reason: Reason,
    /// When it was refused.
    pub at: Instant,
    /// How it came here.
    pub arrived: Arrived,
}

/// How a client's packets come here, which decides where it can be kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrived {
    /// From its own address.
    Directly,
    /// From a proxy's address, which the kernel must not drop; its own never reaches the kernel.
    ThroughProxy,
}

/// A source to be dropped by the kernel from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Who.
    pub source: Source,
    /// The refusal that decided it.
    pub reason: Reason,
    /// Step of the ladder, from 0.
    pub level: u32,
    /// For how long.
    pub lasts: Duration,
    /// When the deciding refusal happened.
    pub evidence_at: Instant,
    /// The points that it made together, in whole ones.
    pub points: u32,
    /// Those that it took.
    pub threshold: u32,
    /// The last refusals, the newest first.
    pub lately: [Option<Reason>; LATELY],
    /// How the source came here then.
    pub arrived: Arrived,
}

/// Refusals that are remembered of one source, for an operator who asks why.
pub const LATELY: usize = 4;

/// What the ledger holds against a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Points, brought up to date.
    pub points: f64,
    /// Step of the next ban.
    pub level: u32,
    /// The last refusals and how long ago they were, the newest first.
    pub lately: Vec<(Reason, Duration)>,
}

/// An account as one process tells the next: everything by how long it still lasts, or is ago.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Whose.
    pub source: Source,
    /// Points now.
    pub points: f64,
    /// Step of the next ban.
    pub level: u32,
    /// It is banned for so long.
    pub banned_for: Option<Duration>,
    /// Its level is remembered for so long.
    pub remembered_for: Option<Duration>,
    /// As in [`Account`].
    pub lately: Vec<(Reason, Duration)>,
}

/// The points of every source that misbehaved lately.
pub struct Ledger {
    settings: Settings,
    sources: LruCache<Source, Standing>,
    vouchers: Vouchers,
}

/// One source's account.
#[derive(Clone, Copy, Debug)]
struct Standing {
    points: f64,
    /// When `points` was last brought up to date.
    at: Instant,
    /// Step of the next ban.
    level: u32,
    /// Until when it is banned: what is refused meanwhile is refused because of the ban, or was under
    /// way before, and is no evidence for another.
    banned_until: Option<Instant>,
    /// Until when the level is remembered.
    remembered_until: Option<Instant>,
    /// The newest first.
    lately: [Option<(Reason, Instant)>; LATELY],
}

impl Ledger {
    /// An empty ledger.
    pub fn new(settings: Settings) -> Ledger {
        Ledger { settings, sources: LruCache::new(SOURCES_MAX), vouchers: Vouchers::default() }
    }

    /// New rules for what comes; points so far stay.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Takes note of a ban that is already in force (it outlived a restart), so that the ladder goes on.
    pub fn adopt(&mut self, source: Source, level: u32, remaining: Duration, now: Instant) {
        let until = now + remaining + self.memory(level);
        self.sources.put(
            source,
            Standing {
                level: level + 1,
                banned_until: Some(now + remaining),
                remembered_until: Some(until),
                ..Standing::new(now)
            },
        );
    }

    /// Adds what the evidence weighs; `Some` when it is enough.
    pub fn record(&mut self, evidence: Evidence) -> Option<Block> {
        let points = weight(evidence.reason);
        if !self.settings.enabled || points == 0.0 || self.is_never(evidence.source) {
            return None;
        }
        let now = evidence.at;
        let half_life = self.settings.half_life;
        let threshold = self.threshold_of(evidence.source, now);
        let standing = self.sources.get_or_insert_mut(evidence.source, || Standing::new(now));
        standing.decay(now, half_life);
        if standing.banned_until.is_some_and(|until| now < until) {
            return None;
        }
        standing.lately.rotate_right(1);
        standing.lately[0] = Some((evidence.reason, now));
        standing.points += points;
        // Whole points: between refusals of one burst milliseconds pass, and what they take off must not
        // decide whether four times five are twenty.
        if standing.points.round() < threshold.round() {
            return None;
        }
        let (level, lately, points) = (standing.level, standing.lately, standing.points);
        let lasts = rung(&self.settings.ladder, level);
        let remembered_until = now + lasts + self.memory(level);
        // Points start again at nothing: what is refused because of the ban is no evidence for the next.
        self.sources.put(
            evidence.source,
            Standing {
                level: level.saturating_add(1),
                banned_until: Some(now + lasts),
                remembered_until: Some(remembered_until),
                lately,
                ..Standing::new(now)
            },
        );
        Some(Block {
            source: evidence.source,
            reason: evidence.reason,
            level,
            lasts,
            evidence_at: now,
            // Whole and small: points are at most the threshold and one refusal's more.
            points: points.round() as u32,
            threshold: threshold.round() as u32,
            lately: lately.map(|entry| entry.map(|(reason, _)| reason)),
            arrived: evidence.arrived,
        })
    }

    /// The accounts of up to `sources_max` sources, those that were added to last.
    pub fn kept(&self, sources_max: usize, now: Instant) -> Vec<Kept> {
        let left = |until: Option<Instant>| {
            until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
        };
        let kept = |(source, standing): (&Source, &Standing)| {
            let Account { points, level, lately } = self.account(*source, now)?;
            Some(Kept {
                source: *source,
                points,
                level,
                banned_for: left(standing.banned_until),
                remembered_for: left(standing.remembered_until),
                lately,
            })
        };
        self.sources.iter().take(sources_max).filter_map(kept).collect()
    }

    /// Takes up an account of the process before.
    pub fn take_up(&mut self, kept: &Kept, now: Instant) {
        let ago = |(reason, ago): (Reason, Duration)| (reason, now.checked_sub(ago).unwrap_or(now));
        let mut lately = [None; LATELY];
        for (place, entry) in lately.iter_mut().zip(&kept.lately) {
            *place = Some(ago(*entry));
        }
        let until = |left: Option<Duration>| left.and_then(|left| now.checked_add(left));
        let standing = Standing {
            // What is no number is nothing.
            points: kept.points.max(0.0),
            at: now,
            level: kept.level,
            banned_until: until(kept.banned_for),
            remembered_until: until(kept.remembered_for),
            lately,
        };
        self.sources.put(kept.source, standing);
    }

    /// The good clients of up to `sources_max` sources, each with how long ago it was seen.
    pub fn good_clients(
        &self,
        sources_max: usize,
        now: Instant,
    ) -> Vec<(Source, Vec<(u64, Duration)>)> {
        self.vouchers.kept(sources_max, now)
    }

    /// A good client was let in.
    pub fn vouch(&mut self, voucher: Voucher) {
        self.vouchers.record(voucher);
    }

    /// Good clients that speak for a source now.
    pub fn good(&self, source: Source, now: Instant) -> f64 {
        self.vouchers.good(source, now)
    }

    /// Points at which this source is banned.
    pub fn threshold_of(&self, source: Source, now: Instant) -> f64 {
        threshold(self.settings.threshold, self.good(source, now))
    }

    /// How often this source's limits in the kernel are to be doubled, as [`doublings`] says.
    pub fn doublings(&self, source: Source, now: Instant) -> i32 {
        let account = self.account(source, now);
        let points = account.as_ref().map_or(0.0, |account| account.points);
        let was_banned = account.is_some_and(|account| account.level > 0);
        doublings(self.good(source, now), points, self.threshold_of(source, now), was_banned)
    }

    /// The ban could not be set, so that what comes is evidence again.
    pub fn release(&mut self, source: Source) {
        if let Some(standing) = self.sources.peek_mut(&source) {
            standing.banned_until = None;
        }
    }

    /// No ban is in force any more.
    pub fn release_all(&mut self) {
        for (_, standing) in &mut self.sources {
            standing.banned_until = None;
        }
    }

    /// Forgets a source: an operator lifted its ban.
    pub fn forget(&mut self, source: Source) {
        self.sources.pop(&source);
    }

    /// What is held against a source; `None`: nothing.
    pub fn account(&self, source: Source, now: Instant) -> Option<Account> {
        let mut standing = *self.sources.peek(&source)?;
        standing.decay(now, self.settings.half_life);
        let ago = |(reason, at): (Reason, Instant)| (reason, now.saturating_duration_since(at));
        Some(Account {
            points: standing.points,
            level: standing.level,
            lately: standing.lately.into_iter().flatten().map(ago).collect(),
        })
    }

    /// Points at which a source is banned that nobody speaks for.
    pub fn threshold(&self) -> u32 {
        self.settings.threshold
    }

    /// Sources that are remembered now.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether nobody misbehaved lately.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    fn is_never(&self, source: Source) -> bool {
        overlaps(&self.settings.never, source)
    }

    fn memory(&self, level: u32) -> Duration {
        (rung(&self.settings.ladder, level) * MEMORY_IN_BANS).max(MEMORY_MIN)
    }
}

impl Standing {
    fn new(now: Instant) -> Standing {
        Standing {
            points: 0.0,
            at: now,
            level: 0,
            banned_until: None,
            remembered_until: None,
            lately: [None; LATELY],
        }
    }

    fn decay(&mut self, now: Instant, half_life: Duration) {
        let passed = now.saturating_duration_since(self.at);
        self.points *= (-passed.as_secs_f64() / half_life.as_secs_f64()).exp2();
        self.at = self.at.max(now);
        if self.remembered_until.is_some_and(|until| until <= now) {
            self.level = 0;
            self.remembered_until = None;
        }
    }
}

/// Whether a list has the source, or any part of it: one exempt address exempts the /64 it shares.
pub fn overlaps(list: &[IpNet], source: Source) -> bool {
    // A source's prefix is 32 or 64 bits, which both families allow.
    let Ok(prefix) = IpNet::new(source.address(), source.prefix()) else { return false };
    list.iter().any(|net| net.contains(&prefix) || prefix.contains(net))
}

/// The duration at a step; the last repeats. An empty ladder, which the configuration refuses, gives one minute.
fn rung(ladder: &[Duration], level: u32) -> Duration {
    let step = usize::try_from(level).unwrap_or(usize::MAX);
    ladder.get(step).or(ladder.last()).copied().unwrap_or(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::{simulation::Numbers, time};

    fn settings() -> Settings {
        Settings {
            enabled: true,
            threshold: 20,
            half_life: Duration::from_secs(30),
            ladder: vec![Duration::from_secs(60), Duration::from_secs(600)],
            never: vec!["10.9.0.0/16".parse().unwrap()],
        }
    }

    fn source(last: u8) -> Source {
        Source::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)))
    }

    fn evidence(source: Source, reason: Reason, at: Instant) -> Evidence {
        Evidence { source, reason, at, arrived: Arrived::Directly }
    }

    #[test]
    fn bans_at_the_threshold_and_climbs_the_ladder() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        let forged =
            |ledger: &mut Ledger, at| ledger.record(evidence(source(1), Reason::BadSignature, at));
        for _ in 0..3 {
            assert_eq!(forged(&mut ledger, start), None);
        }
        let first = forged(&mut ledger, start).expect("four times five points are the threshold");
        assert_eq!((first.level, first.lasts), (0, Duration::from_secs(60)));

        // Right after the ban it starts at no points, one step up.
        let later = start + Duration::from_secs(61);
        for _ in 0..3 {
            assert_eq!(forged(&mut ledger, later), None);
        }
        let second = forged(&mut ledger, later).expect("again four");
        assert_eq!((second.level, second.lasts), (1, Duration::from_secs(600)));

        // The last step repeats.
        let again = later + Duration::from_secs(601);
        let third = (0..4).filter_map(|_| forged(&mut ledger, again)).next().expect("again four");
        assert_eq!((third.level, third.lasts), (2, Duration::from_secs(600)));

        // After a long calm the ladder starts anew.
        let calm = again + Duration::from_secs(600 * 4 + 1);
        let fourth = (0..4).filter_map(|_| forged(&mut ledger, calm)).next().expect("again four");
        assert_eq!(fourth.level, 0);
    }

    #[test]
    fn points_halve() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        for _ in 0..3 {
            assert!(ledger.record(evidence(source(1), Reason::BadSignature, start)).is_none());
        }
        // 15 points are 7.5 after a half-life: two more make 17.5, the third 22.5.
        let later = start + Duration::from_secs(30);
        assert!(ledger.record(evidence(source(1), Reason::BadSignature, later)).is_none());
        assert!(ledger.record(evidence(source(1), Reason::BadSignature, later)).is_none());
        assert!(ledger.record(evidence(source(1), Reason::BadSignature, later)).is_some());
    }

    #[test]
    fn an_account_tells_points_and_the_last_refusals() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        assert_eq!(ledger.account(source(1), start), None);
        ledger.record(evidence(source(1), Reason::TokenExpired, start));
        ledger.record(evidence(source(1), Reason::BadSignature, start));
        let later = start + Duration::from_secs(30);
        let account = ledger.account(source(1), later).expect("two refusals");
        assert!((account.points - 3.0).abs() < 0.001, "half of 6: {}", account.points);
        assert_eq!(
            account.lately,
            [Reason::BadSignature, Reason::TokenExpired].map(|reason| (reason, later - start))
        );
    }

    #[test]
    fn sources_do_not_pay_for_each_other() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        for last in 0..=255 {
            for _ in 0..3 {
                assert!(
                    ledger.record(evidence(source(last), Reason::BadSignature, start)).is_none()
                );
            }
        }
    }

    #[test]
    fn who_is_never_banned_is_never_banned() {
        let start = time::monotonic();
        let inside = Source::from(IpAddr::V4(Ipv4Addr::new(10, 9, 3, 4)));
        let mut ledger = Ledger::new(settings());
        for _ in 0..100 {
            assert!(ledger.record(evidence(inside, Reason::BadSignature, start)).is_none());
        }
        let mut off = Ledger::new(Settings { enabled: false, ..settings() });
        for _ in 0..100 {
            assert!(off.record(evidence(source(1), Reason::BadSignature, start)).is_none());
        }
    }

    #[test]
    fn good_clients_raise_the_threshold_within_bounds() {
        for (good, expected) in
            [(0.0, 20.0), (1.0, 30.0), (2.0, 40.0), (8.0, 100.0), (1e9, 100.0), (-1.0, 20.0)]
        {
            assert_eq!(threshold(20, good), expected, "{good} good clients");
        }
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        for who in 0..2 {
            ledger.vouch(Voucher { source: source(1), who, at: start, arrived: Arrived::Directly });
        }
        let forged = |ledger: &mut Ledger, last| {
            ledger.record(evidence(source(last), Reason::BadSignature, start))
        };
        let until_banned = |ledger: &mut Ledger, last| {
            (1..100).find(|_| forged(ledger, last).is_some()).expect("bounded")
        };
        assert_eq!(until_banned(&mut ledger, 1), 8, "40 points");
        assert_eq!(until_banned(&mut ledger, 2), 4, "20 points, nobody speaks for it");
    }

    #[test]
    fn a_good_request_takes_nothing_away() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        for _ in 0..3 {
            ledger.record(evidence(source(1), Reason::BadSignature, start));
        }
        ledger.vouch(Voucher { source: source(1), who: 1, at: start, arrived: Arrived::Directly });
        let account = ledger.account(source(1), start).expect("15 points");
        assert_eq!(account.points, 15.0);
    }

    #[test]
    fn what_is_refused_while_banned_is_no_evidence() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        let forged =
            |ledger: &mut Ledger, at| ledger.record(evidence(source(1), Reason::BadSignature, at));
        let block = (0..4).filter_map(|_| forged(&mut ledger, start)).next().expect("four");
        assert_eq!((block.points, block.threshold), (20, 20));
        assert_eq!(block.lately, [Some(Reason::BadSignature); LATELY]);
        for later_s in 0..60 {
            for _ in 0..100 {
                assert_eq!(forged(&mut ledger, start + Duration::from_secs(later_s)), None);
            }
        }
        let after = start + Duration::from_secs(60);
        assert_eq!((0..4).filter_map(|_| forged(&mut ledger, after)).count(), 1);
        // A ban that was not set keeps nothing from counting.
        ledger.release(source(1));
        assert_eq!((0..4).filter_map(|_| forged(&mut ledger, after)).count(), 1);
        ledger.release_all();
        assert_eq!((0..4).filter_map(|_| forged(&mut ledger, after)).count(), 1);
    }

    #[test]
    fn limits_are_wider_for_many_and_narrower_for_the_suspect() {
        for (good, points, was_banned, expected) in [
            (0.0, 0.0, false, 0),
            (1.0, 0.0, false, 0), // an attacker with one good name is not many
            (1.9, 0.0, false, 1),
            (4.0, 0.0, false, 2),
            (8.0, 0.0, false, 3),
            (8.0, 10.0, false, 2),
            (0.0, 9.9, false, 0),
            (0.0, 10.0, false, -1),
            (0.0, 0.0, true, -1),
            (0.0, 19.0, true, -2),
        ] {
            let seen = doublings(good, points, 20.0, was_banned);
            assert_eq!(seen, expected, "{good} good, {points} points, banned {was_banned}");
        }
    }

    #[test]
    fn an_adopted_ban_goes_on_up_the_ladder() {
        let start = time::monotonic();
        let mut ledger = Ledger::new(settings());
        ledger.adopt(source(1), 0, Duration::from_secs(10), start);
        let at = start + Duration::from_secs(11);
        let block = (0..4)
            .filter_map(|_| ledger.record(evidence(source(1), Reason::BadSignature, at)))
            .next()
            .expect("four");
        assert_eq!(block.level, 1);
    }

    #[test]
    fn every_code_names_its_reason_and_every_word_is_its_own() {
        let mut words = std::collections::HashSet::new();
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(*reason as u32), Some(*reason));
            assert!(words.insert(reason.word()), "{} stands twice", reason.word());
        }
        assert_eq!(Reason::from_code(0), None);
    }

    /// A source's standing that forgets no refusal since its last ban, and adds all up anew each time.
    #[derive(Default)]
    struct Naive {
        refusals: Vec<(Instant, f64)>,
        banned_until: Option<Instant>,
        level: u32,
        remembered_until: Option<Instant>,
    }

    impl Naive {
        fn points(&self, now: Instant) -> f64 {
            let half_life_s = settings().half_life.as_secs_f64();
            let worth = |(at, weight): &(Instant, f64)| {
                weight * (-(now - *at).as_secs_f64() / half_life_s).exp2()
            };
            self.refusals.iter().map(worth).sum()
        }

        fn level(&self, now: Instant) -> u32 {
            if self.remembered_until.is_some_and(|until| now < until) { self.level } else { 0 }
        }

        fn ban(&mut self, now: Instant, level: u32, lasts: Duration, of_level: Duration) {
            self.refusals.clear();
            self.banned_until = Some(now + lasts);
            self.remembered_until = Some(now + lasts + (of_level * 3).max(MEMORY_MIN));
            self.level = level + 1;
        }

        /// The level of the ban that this refusal is enough for. Where rounding decides it is as
        /// `is_banned` says.
        fn record(&mut self, now: Instant, weight: f64, is_banned: bool) -> Option<u32> {
            if weight == 0.0 || self.banned_until.is_some_and(|until| now < until) {
                return None;
            }
            self.refusals.push((now, weight));
            let over = self.points(now) - (f64::from(settings().threshold) - 0.5);
            if !(if over.abs() < 1e-6 { is_banned } else { over > 0.0 }) {
                return None;
            }
            let level = self.level(now);
            let lasts = rung(&settings().ladder, level);
            self.ban(now, level, lasts, lasts);
            Some(level)
        }
    }

    /// Half a million refusals of a few sources, with pauses from nothing to hours between them.
    #[test]
    fn a_ledger_is_the_sum_of_what_happened() {
        const STEPS: u32 = 500_000;
        let mut numbers = Numbers::seeded(1);
        let mut ledger = Ledger::new(settings());
        let mut naive: [Option<Naive>; 6] = Default::default();
        let mut now = time::monotonic();
        let mut bans = [0; 4];
        for step in 0..STEPS {
            // Mostly one after the other; now and then until a ban, or the ladder, is forgotten.
            let pauses_ms: &[u64] = if numbers.once_in(400) {
                &[8_000, 30_000, 61_000, 700_000, 4_000_000]
            } else {
                &[0, 0, 0, 1, 20, 300, 1_000]
            };
            now += Duration::from_millis(numbers.one_of(pauses_ms));
            let last = numbers.below(naive.len() as u64) as u8;
            let (source, model) = (source(last), &mut naive[usize::from(last)]);
            match numbers.below(100) {
                0 => {
                    ledger.release(source);
                    if let Some(model) = model {
                        model.banned_until = None;
                    }
                }
                1 => {
                    ledger.forget(source);
                    *model = None;
                }
                2 => {
                    let (level, left) = (numbers.below(3) as u32, numbers.below(100));
                    let left = Duration::from_secs(left);
                    ledger.adopt(source, level, left, now);
                    let of_level = rung(&settings().ladder, level);
                    model.insert(Naive::default()).ban(now, level, left, of_level);
                }
                _ => {
                    let reason = numbers.one_of(Reason::ALL);
                    let block = ledger.record(evidence(source, reason, now));
                    let model = if weight(reason) == 0.0 {
                        model.as_mut()
                    } else {
                        Some(model.get_or_insert_default())
                    };
                    let is_banned = block.is_some();
                    let expected =
                        model.and_then(|model| model.record(now, weight(reason), is_banned));
                    let found = block.map(|block| block.level);
                    assert_eq!(found, expected, "step {step}: {reason:?}");
                    if let Some(block) = block {
                        assert_eq!(block.lasts, rung(&settings().ladder, block.level));
                        bans[(block.level as usize).min(3)] += 1;
                    }
                }
            }
            let account = ledger.account(source, now);
            assert_eq!(account.is_some(), naive[usize::from(last)].is_some(), "step {step}");
            if let (Some(account), Some(model)) = (account, &naive[usize::from(last)]) {
                let points = model.points(now);
                assert!(
                    (account.points - points).abs() < 1e-6,
                    "step {step}: {points} {account:?}"
                );
                assert_eq!(account.level, model.level(now), "step {step}");
            }
            // What is so old weighs nothing that a float could tell.
            for model in naive.iter_mut().flatten() {
                if model.refusals.len() > 500 {
                    model.refusals.retain(|(at, _)| now - *at < settings().half_life * 100);
                }
            }
        }
        assert!(bans.iter().all(|bans| *bans > 100), "a play without bans: {bans:?}");
    }

    proptest! {
        /// Whatever happens in whatever order, no ban comes before the threshold's worth of points.
        #[test]
        fn no_ban_without_enough_points(steps in proptest::collection::vec((0usize..Reason::ALL.len(), 0u64..20_000), 1..200)) {
            let start = time::monotonic();
            let mut ledger = Ledger::new(settings());
            let (mut at, mut undecayed) = (start, 0u32);
            for (reason, later_ms) in steps {
                at += Duration::from_millis(later_ms);
                let reason = Reason::ALL[reason];
                undecayed += reason.points();
                if ledger.record(evidence(source(1), reason, at)).is_some() {
                    prop_assert!(undecayed >= 20, "{undecayed}");
                    undecayed = 0;
                }
            }
        }
    }
}
