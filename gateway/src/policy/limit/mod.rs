//! How much may they: requests in a time, counted by who asks, by route or by address.
//!
//! A limit has one or more rates, each of which must hold. Each rate of each consumer is one bucket
//! ([`gateway_ebpf::bucket`]) in the limit's [`Table`], which all workers share. A request pays for
//! all rates of all limits of its route, or for none.
//!
//! Two steps. [`Counting::arrive`] takes what is counted by address, before anybody pays for a
//! signature; [`super::permit`] takes the rest, when it is known who asks. Both are needed to come by
//! a permit.

mod subject;
mod table;

use std::{fmt, net::IpAddr, sync::Arc, time::Duration, time::Instant};

use gateway_ebpf::bucket;
use ipnet::IpNet;

use self::table::{Place, Tag};
pub use self::{
    subject::{Key, Subject},
    table::{Secret, Table, Used},
};
use super::{refusal::Refusal, route::Route};
use crate::identity::{Identity, pattern::Pattern};

/// Limits of one route: more than that nobody could explain to a client.
pub const OF_ROUTE_MAX: usize = 8;

/// The time that a rate is counted over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// `/s`
    Second,
    /// `/m`
    Minute,
    /// `/h`
    Hour,
}

impl Unit {
    /// How many there are: a limit has at most one rate of each.
    pub const COUNT: usize = 3;

    /// In seconds.
    pub const fn seconds(self) -> u32 {
        match self {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3600,
        }
    }

    /// As rates are written.
    pub const fn letter(self) -> char {
        match self {
            Unit::Second => 's',
            Unit::Minute => 'm',
            Unit::Hour => 'h',
        }
    }
}

/// So many in a unit of time, and so many of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    unit: Unit,
    burst: u32,
    bucket: bucket::Limit,
}

impl Rate {
    /// `count` in each `unit`, evenly, and up to `burst` at once after a pause. Zeroes count as one.
    pub const fn new(count: u32, unit: Unit, burst: u32) -> Rate {
        let period_ns = unit.seconds() as u64 * 1_000_000_000;
        Rate { count, unit, burst, bucket: bucket::Limit::new(count, period_ns, burst) }
    }

    /// How many in a unit of time.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The unit.
    pub const fn unit(&self) -> Unit {
        self.unit
    }

    /// How many at once.
    pub const fn burst(&self) -> u32 {
        self.burst
    }
}

/// As it is written in the configuration.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.unit.letter())
    }
}

/// What happens to a request over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is refused.
    Enforce,
    /// It is counted as one that would have been refused.
    Observe,
}

/// Other rates for some; all criteria that are not empty must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// In logs.
    pub name: Arc<str>,
    /// One must match the client.
    pub client_ids: Vec<Pattern>,
    /// One must match the certificate's principal, or the token's subject where there is none.
    pub principals: Vec<Pattern>,
    /// One must be held.
    pub roles: Vec<String>,
    /// One must be the caller's.
    pub tenants: Vec<String>,
    /// One must hold the client's address.
    pub sources: Vec<IpNet>,
    /// What holds instead of the limit's own.
    pub rates: Vec<Rate>,
}

/// One limit, as configured: `[[limit]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Unique; the label in metrics, logs and fields.
    pub name: Arc<str>,
    /// Who shares a bucket.
    pub key: Key,
    /// Each must hold; the shortest unit first, at most one of each.
    pub rates: Vec<Rate>,
    /// The first that fits holds instead.
    pub tiers: Vec<Tier>,
    /// What happens above it.
    pub mode: Mode,
    /// Consumers remembered at once.
    pub entries: usize,
    /// Whether clients are told how much is left.
    pub announce: bool,
}

impl Limit {
    /// The rates for one who asks, and the name of the tier that they are of.
    fn rates_of(&self, address: IpAddr, identity: &Identity) -> (&[Rate], Option<&Arc<str>>) {
        match self.tiers.iter().find(|tier| tier.fits(address, identity)) {
            Some(tier) => (&tier.rates, Some(&tier.name)),
            None => (&self.rates, None),
        }
    }

    /// How far ahead of the present each bucket may be before, for some tier, it refuses.
    fn guard_ns(&self) -> [u64; Unit::COUNT] {
        let mut guard_ns = [u64::MAX; Unit::COUNT];
        let rates = self.rates.iter().chain(self.tiers.iter().flat_map(|tier| &tier.rates));
        for rate in rates {
            let guard_ns = &mut guard_ns[rate.unit as usize];
            *guard_ns = (*guard_ns).min(rate.bucket.tolerance_ns);
        }
        guard_ns
    }
}

impl Tier {
    fn fits(&self, address: IpAddr, identity: &Identity) -> bool {
        let matches = |patterns: &[Pattern], name: Option<&str>| {
            patterns.is_empty()
                || name.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        let tenant = |ours: &String| identity.tenant() == Some(ours);
        matches(&self.client_ids, identity.client_id())
            && matches(&self.principals, subject::principal(identity).map(|(_, name)| name))
            && (self.roles.is_empty()
                || identity.roles().any(|role| self.roles.iter().any(|r| r == role)))
            && (self.tenants.is_empty() || self.tenants.iter().any(tenant))
            && (self.sources.is_empty() || self.sources.iter().any(|net| net.contains(&address)))
    }
}

/// One limit at work: its settings with the buckets of its consumers.
#[derive(Clone, Debug)]
pub struct Limiter {
    limit: Arc<Limit>,
    guard_ns: [u64; Unit::COUNT],
    table: Arc<Table>,
}

impl Limiter {
    /// Its settings.
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Its buckets.
    pub fn table(&self) -> &Table {
        &self.table
    }
}

/// All limits, in the order of the configuration; routes name them by index. Copies share the
/// buckets.
#[derive(Clone, Debug, Default)]
pub struct Limiters(Arc<[Limiter]>);

impl Limiters {
    /// Limits that nobody has used yet.
    pub fn new(limits: &[Limit], now: Instant) -> Limiters {
        let limiter = |limit: &Limit| Limiter {
            guard_ns: limit.guard_ns(),
            table: Arc::new(Table::new(limit.entries, now)),
            limit: Arc::new(limit.clone()),
        };
        Limiters(limits.iter().map(limiter).collect())
    }

    /// The same limits with the buckets of those before that have the same names. A limit that now
    /// has other rates keeps them too: a bucket is never further from full than empty.
    pub fn resume(&self, before: &Limiters, now: Instant) -> Limiters {
        if Arc::ptr_eq(&self.0, &before.0) {
            return self.clone();
        }
        let resumed = |new: &Limiter| {
            let old = before.0.iter().find(|old| old.limit.name == new.limit.name);
            let table = old.map_or_else(
                || new.table.clone(),
                |old| {
                    if old.limit.entries == new.limit.entries {
                        old.table.clone()
                    } else {
                        Arc::new(old.table.resized(new.limit.entries, &new.guard_ns, now))
                    }
                },
            );
            Limiter { table, ..new.clone() }
        };
        Limiters(self.0.iter().map(resumed).collect())
    }

    /// What was used of each, of `rows_max` consumers in all, for the process that takes over.
    pub fn used(&self, rows_max: usize, now: Instant) -> Vec<(Arc<str>, Used)> {
        let of_each = rows_max / self.0.len().max(1);
        let used =
            |limiter: &Limiter| (limiter.limit.name.clone(), limiter.table.used(of_each, now));
        self.0.iter().map(used).collect()
    }

    /// The same limits, where those of the same names go on with what was used in another process. What
    /// was used here meanwhile is lost.
    pub fn going_on(&self, used: &[(Arc<str>, Used)], now: Instant) -> Limiters {
        let going_on = |limiter: &Limiter| {
            let used = used.iter().find(|(name, _)| *name == limiter.limit.name);
            let table = used.and_then(|(_, used)| {
                limiter.table.going_on(used, &limiter.guard_ns, now).map(Arc::new)
            });
            Limiter { table: table.unwrap_or_else(|| limiter.table.clone()), ..limiter.clone() }
        };
        Limiters(self.0.iter().map(going_on).collect())
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Limiter> {
        self.0.iter()
    }

    /// Those of a route. Indices are checked with the configuration.
    fn of<'l>(&'l self, route: &'l Route) -> impl Iterator<Item = &'l Limiter> + Clone {
        route.limits.iter().filter_map(|index| self.0.get(*index))
    }
}

/// What a limit said of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// Within it, and charged.
    Allowed,
    /// Over it.
    Refused,
    /// Over it, and it only observes.
    WouldRefuse,
    /// Let through uncounted: where the bucket would be are only those of consumers that are over
    /// their limit. The table is too small.
    Untracked,
}

impl Decision {
    /// All of them.
    pub const ALL: [Decision; 4] =
        [Decision::Allowed, Decision::Refused, Decision::WouldRefuse, Decision::Untracked];

    /// The word for metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Decision::Allowed => "allowed",
            Decision::Refused => "refused",
            Decision::WouldRefuse => "would_refuse",
            Decision::Untracked => "untracked",
        }
    }
}

/// One rate as it stands for a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The rate.
    pub rate: Rate,
    /// How many more at once.
    pub left: u64,
    /// How long until the next is let in; nothing when it would be now.
    pub wait: Duration,
    /// How long until nothing is used up.
    pub full_in: Duration,
}

/// What one limit said, and how it stands after that.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The limit.
    pub limit: Arc<Limit>,
    /// `None`: it was asked for its standing only, because another one refused.
    pub decision: Option<Decision>,
    /// Whom the request was counted for; only where it was over the limit.
    pub subject: Option<String>,
    /// Each rate; empty where it is not to be told.
    pub standings: Vec<Standing>,
}

/// A request whose address is within the limits that count by address. Only [`Counting::arrive`]
/// makes one.
#[derive(Debug)]
pub struct Arrived {
    address: IpAddr,
}

impl Arrived {
    /// Where it comes from.
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

/// Counts one request.
#[derive(Clone, Copy, Debug)]
pub struct Counting<'a> {
    /// All limits.
    pub limiters: &'a Limiters,
    /// Where the request comes from.
    pub address: IpAddr,
    /// When.
    pub now: Instant,
}

/// A request over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverLimit {
    /// The limit's name.
    pub limit: Arc<str>,
    /// The rate that does not hold, as configured.
    pub rate: String,
    /// Whom it was counted for.
    pub subject: String,
    /// The tier, where one fits.
    pub tier: Option<Arc<str>>,
    /// Whether somebody was proven who exceeded it; else it was an address.
    pub is_proven: bool,
    /// After this long it would be let in.
    pub retry_after: Duration,
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OverLimit { limit, rate, subject, retry_after, .. } = self;
        write!(f, "limit {limit}: {subject} is over {rate}")?;
        if let Some(tier) = &self.tier {
            write!(f, " of tier {tier}")?;
        }
        // To the millisecond: what is less is over before anybody reads it.
        let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        write!(
            f,
            "; the next is let in in {}",
            humantime::format_duration(Duration::from_millis(millis))
        )
    }
}

/// What is to be paid for one request: to which limit, where, and how much.
struct Due<'a> {
    limiter: &'a Limiter,
    rates: &'a [Rate],
    tier: Option<&'a Arc<str>>,
    tag: Tag,
    subject: Subject<'a>,
    /// `None`: there is no room to count in.
    place: Option<Place<'a>>,
    now_ns: u64,
}

impl<'a> Counting<'a> {
    /// Takes what is counted by address. `is_proven` tells that a certificate came with the
    /// connection, whoever it is.
    ///
    /// # Errors
    /// [`Refusal::OverLimit`].
    pub fn arrive(
        &self,
        route: &Route,
        is_proven: bool,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<Arrived, Refusal> {
        let by_address = |limiter: &&Limiter| limiter.limit.key.is_source();
        let nobody = Identity::anonymous();
        self.take(self.limiters.of(route).filter(by_address), route, &nobody, is_proven, verdicts)?;
        Ok(Arrived { address: self.address })
    }

    /// Takes the rest.
    pub(super) fn charge(
        &self,
        route: &Route,
        identity: &Identity,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), Refusal> {
        let by_identity = |limiter: &&Limiter| !limiter.limit.key.is_source();
        let limiters = self.limiters.of(route).filter(by_identity);
        let is_proven = identity.certificate().is_some() || identity.claims().is_some();
        self.take(limiters, route, identity, is_proven, verdicts)
    }

    fn take<'b>(
        &self,
        mut limiters: impl Iterator<Item = &'b Limiter>,
        route: &'b Route,
        identity: &'b Identity,
        is_proven: bool,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), Refusal>
    where
        'a: 'b,
    {
        let (first, second) = (limiters.next(), limiters.next());
        let Some(first) = first else { return Ok(()) };
        // Nearly always there is one; a list is made of several only.
        let Some(second) = second else {
            let due = [self.due(first, route, identity)];
            return match first.limit.mode {
                Mode::Enforce => enforce(&due, is_proven, verdicts),
                Mode::Observe => {
                    observe(&due, verdicts);
                    Ok(())
                }
            };
        };
        let mut enforced = Vec::new();
        let mut observed = Vec::new();
        for limiter in [first, second].into_iter().chain(limiters) {
            let due = self.due(limiter, route, identity);
            match limiter.limit.mode {
                Mode::Enforce => enforced.push(due),
                Mode::Observe => observed.push(due),
            }
        }
        enforce(&enforced, is_proven, verdicts)?;
        observe(&observed, verdicts);
        Ok(())
    }

    fn due<'b>(&self, limiter: &'b Limiter, route: &'b Route, identity: &'b Identity) -> Due<'b> {
        let (rates, tier) = limiter.limit.rates_of(self.address, identity);
        let subject = limiter.limit.key.subject(self.address, &route.name, identity);
        let now_ns = limiter.table.clock_ns(self.now);
        let tag = limiter.table.tag(&subject);
        let place = limiter.table.place(tag, &limiter.guard_ns, now_ns);
        Due { limiter, rates, tier, tag, subject, place, now_ns }
    }
}

/// Takes from limits that hold.
fn enforce(dues: &[Due<'_>], is_proven: bool, verdicts: &mut Vec<Verdict>) -> Result<(), Refusal> {
    if let Err(refusing) = take_all(dues) {
        let decision = |index| (index == refusing).then_some(Decision::Refused);
        verdicts.extend(dues.iter().enumerate().map(|(index, due)| due.verdict(decision(index))));
        return Err(over_limit(dues, refusing, is_proven));
    }
    verdicts.extend(dues.iter().map(|due| due.verdict(Some(due.passed()))));
    Ok(())
}

/// Takes from limits that are only looked at.
fn observe(dues: &[Due<'_>], verdicts: &mut Vec<Verdict>) {
    for due in dues {
        let decision = if due.take() { due.passed() } else { Decision::WouldRefuse };
        verdicts.push(due.verdict(Some(decision)));
    }
}

/// From all, or from none; the error is the index of one that refused.
fn take_all(dues: &[Due<'_>]) -> Result<(), usize> {
    for (index, due) in dues.iter().enumerate() {
        if !due.take() {
            dues[..index].iter().for_each(Due::give_back);
            return Err(index);
        }
    }
    Ok(())
}

/// The answer to whoever is over a limit. It waits for all limits: who comes back in time for one and
/// too early for another would be refused again.
fn over_limit(dues: &[Due<'_>], refusing: usize, is_proven: bool) -> Refusal {
    let waits = dues.iter().flat_map(Due::standings).map(|standing| standing.wait);
    // Another worker may have let time pass since; a client that came at once would be too early.
    let retry_after = waits.max().unwrap_or_default().max(Duration::from_nanos(1));
    let due = &dues[refusing];
    let longest = due.standings().max_by_key(|standing| standing.wait);
    Refusal::OverLimit(Box::new(OverLimit {
        limit: due.limiter.limit.name.clone(),
        rate: longest.map_or_else(String::new, |standing| standing.rate.to_string()),
        subject: due.subject.to_string(),
        tier: due.tier.cloned(),
        is_proven,
        retry_after,
    }))
}

impl Due<'_> {
    /// One token of each rate, or none.
    fn take(&self) -> bool {
        let mut place = self.place;
        loop {
            let Some(here) = place else { return true };
            if !here.take(self.rates, self.now_ns) {
                return false;
            }
            if here.is_of(self.tag) {
                return true;
            }
            // Somebody else was put there meanwhile, which is as rare as a full table.
            here.give_back(self.rates);
            place = self.limiter.table.place(self.tag, &self.limiter.guard_ns, self.now_ns);
        }
    }

    fn give_back(&self) {
        if let Some(place) = self.place {
            place.give_back(self.rates);
        }
    }

    fn passed(&self) -> Decision {
        if self.place.is_some() { Decision::Allowed } else { Decision::Untracked }
    }

    fn standings(&self) -> impl Iterator<Item = Standing> {
        let place = self.place;
        self.rates.iter().filter_map(move |rate| Some(place?.standing(rate, self.now_ns)))
    }

    fn verdict(&self, decision: Option<Decision>) -> Verdict {
        let limit = &self.limiter.limit;
        // A limit that does not hold is not told of.
        let is_told = limit.announce && limit.mode == Mode::Enforce;
        let is_over = matches!(decision, Some(Decision::Refused | Decision::WouldRefuse));
        Verdict {
            limit: limit.clone(),
            decision,
            subject: is_over.then(|| self.subject.to_string()),
            standings: if is_told { self.standings().collect() } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests;
