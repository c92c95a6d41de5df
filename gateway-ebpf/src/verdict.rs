//! What becomes of a frame: the whole decision of the XDP program, and of nothing else.

use crate::{
    Source,
    abi::Budget,
    bucket::{Limit, Others, Place, Price, Set, forgotten},
    last::{Last, Like},
    packet::{self, Address, Flow, Frame, Parsed, Target},
};

/// Why a frame passes or is dropped. One closed list: counters, metrics and logs all use it.
///
/// The numbers are what the counters in the kernel are indexed by; their order is part of the
/// layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Outcome {
    /// Passes: neither IPv4 nor IPv6.
    NotIp = 0,
    /// Passes: not for a guarded port.
    OtherPort = 1,
    /// Passes: for a management service, which no rule touches.
    Management = 2,
    /// Passes: it would have been dropped, but its source never is.
    Exempt = 3,
    /// Passes: its source is within its limits.
    WithinLimit = 4,
    /// Dropped: its source is banned.
    Banned = 5,
    /// Dropped: its source is on the list of denied ones.
    Denied = 6,
    /// Dropped: its source sends more packets than its limit.
    OverLimit = 7,
    /// Dropped: its source asks for more new connections than its limit.
    OverConnections = 8,
    /// Dropped: its source sends more octets than its limit.
    OverBytes = 9,
    /// Dropped: no host could make sense of it.
    Malformed = 10,
    /// Dropped: its source was not seen lately, and more such sources come than their limit.
    OverNewSources = 11,
}

impl Outcome {
    /// Every outcome, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::NotIp,
        Self::OtherPort,
        Self::Management,
        Self::Exempt,
        Self::WithinLimit,
        Self::Banned,
        Self::Denied,
        Self::OverLimit,
        Self::OverConnections,
        Self::OverBytes,
        Self::Malformed,
        Self::OverNewSources,
    ];

    /// Whether the frame is dropped while the program enforces.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        self as u32 >= Self::Banned as u32
    }

    /// The word for it in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::OtherPort => "other_port",
            Self::Management => "management",
            Self::Exempt => "exempt",
            Self::WithinLimit => "within_limit",
            Self::Banned => "banned",
            Self::Denied => "denied",
            Self::OverLimit => "over_limit",
            Self::OverConnections => "over_connections",
            Self::OverBytes => "over_bytes",
            Self::Malformed => "malformed",
            Self::OverNewSources => "over_new_sources",
        }
    }
}

/// What the daemon makes of a destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Not ours.
    Other,
    /// A port that is guarded.
    Guarded,
    /// A port that stays reachable whatever happens.
    Management,
}

/// What a source has a bucket of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quota {
    /// Packets to guarded ports.
    Packets,
    /// New connections to them.
    Connections,
    /// Octets of the packets, from the Ethernet header on.
    Bytes,
}

impl Quota {
    /// Every quota.
    pub const ALL: [Self; 3] = [Self::Packets, Self::Connections, Self::Bytes];

    /// What a frame is dropped as that exceeds it.
    #[inline(always)]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Packets => Outcome::OverLimit,
            Self::Connections => Outcome::OverConnections,
            Self::Bytes => Outcome::OverBytes,
        }
    }
}

/// How many times rate and burst are doubled for an IPv6 /48: it gets sixteen times what a source
/// gets. Enough for a site whose many networks call at once; without it, whoever has a /48 has
/// 65,536 times a source's limit.
pub const NETWORK_DOUBLINGS: i32 = 4;

/// What user space has said about one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its limits are everybody's, doubled so many times; negative: halved. 0 for most.
    Limited(i32),
    /// A ban on it is in force.
    Banned,
}

/// Which list of prefixes an address is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// On none.
    Nowhere,
    /// A ban on a prefix that covers it is in force.
    Banned,
    /// A denied prefix covers it.
    Denied,
}

/// The rules and the state that a verdict depends on: kernel maps there, plain tables in a test.
pub trait Tables {
    /// The number of the rules, which grows whenever one of them changes.
    fn revision(&self) -> u64;
    /// What the target is; never asked for [`Target::Other`] and the portless ones.
    fn service(&self, target: Target) -> Service;
    /// The source's [`crate::bucket::hash`].
    fn hash(&self, source: Source) -> u64;
    /// What is in force about the source at `now_ns`.
    fn standing(&self, source: Source, hash: u64, now_ns: u64) -> Standing;
    /// What kinds of prefixes may cover the address: all that do, and perhaps more.
    fn marks(&self, address: Address) -> u8;
    /// Which prefixes cover the address at `now_ns`; a ban before the list of denied ones.
    fn listed(&self, address: Address, marks: u8, now_ns: u64) -> Listed;
    /// Whether the address is on the list of those never dropped.
    fn is_exempt(&self, address: Address, marks: u8) -> bool;
    /// What each source may have of this; of octets as [`Limit::octets`] tells it.
    fn limit(&self, quota: Quota) -> Limit;
    /// What each IPv6 /48 may have of this: [`NETWORK_DOUBLINGS`] times doubled. Never asked for
    /// octets: they are limited where a link is short, and there is no reason why a site's should be
    /// sixteen times as wide.
    fn network_limit(&self, quota: Quota) -> Limit;
    /// What all sources together may have that have no place yet, and their common bucket.
    fn newcomers(&self) -> (Limit, &Budget);
    /// Where in the table a source of this hash has its place.
    fn set(&self, hash: u64) -> Option<&Set>;
    /// The other buckets of that place.
    fn others(&self, hash: u64) -> Option<&Others>;
    /// A source was forgotten before its buckets were full.
    fn evicted(&self);
}

/// Judges one frame at `now_ns`, a time on the clock of the tables' bans and buckets. `last` is the
/// memory of whoever judges here, who judges one frame after the other; with a new one each time the
/// outcomes are the same.
///
/// Management first, so that nothing can lock the operator out. The list of exempt sources is
/// looked at last, and only to save a frame from being dropped: that comes to the same as asking
/// first, and ordinary traffic does not pay for it.
#[inline(always)]
pub fn judge<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    tables: &T,
    last: &mut Last,
    now_ns: u64,
) -> Outcome {
    // Written out once for what nearly every packet is, so that nobody asks later what it was, and once
    // for the rest: each more would cost the kernel's verifier as much again.
    if let Some(flow) = packet::plain_ipv4(frame) {
        return judge_flow::<true, F, T>(frame, &flow, tables, last, now_ns);
    }
    let parsed = match packet::plain_ipv6(frame) {
        Some(flow) => Parsed::Flow(flow),
        None => packet::parse_any(frame),
    };
    match parsed {
        Parsed::NotIp => Outcome::NotIp,
        Parsed::Malformed => Outcome::Malformed,
        Parsed::Flow(flow) => judge_flow::<false, F, T>(frame, &flow, tables, last, now_ns),
    }
}

/// A packet; `PLAIN` where its headers are those that nearly every packet has.
#[inline(always)]
fn judge_flow<const PLAIN: bool, F: Frame + ?Sized, T: Tables>(
    frame: &F,
    flow: &Flow,
    tables: &T,
    last: &mut Last,
    now_ns: u64,
) -> Outcome {
    match flow.target {
        Target::Other => return Outcome::OtherPort,
        Target::Tcp(_) | Target::Udp(_) => match tables.service(flow.target) {
            Service::Other => return Outcome::OtherPort,
            Service::Management => return Outcome::Management,
            Service::Guarded => {}
        },
        Target::Fragment | Target::Unreadable => {}
    }
    if PLAIN {
        let like = Like::new(flow.address.source(), flow.opens, now_ns, tables.revision());
        if let Some(outcome) = judge_again(frame, &like, tables, last) {
            return outcome;
        }
        last.begin(&like, tables);
    }
    let marks = tables.marks(flow.address);
    let outcome = judge_guarded::<PLAIN, F, T>(frame, flow, marks, tables, last, now_ns);
    if outcome.drops() && tables.is_exempt(flow.address, marks) {
        return Outcome::Exempt;
    }
    if PLAIN && outcome.drops() {
        last.drops(outcome);
    }
    outcome
}

/// What becomes of a packet that is the last one's like, where that can be told.
#[inline(always)]
fn judge_again<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    like: &Like,
    tables: &T,
    last: &mut Last,
) -> Option<Outcome> {
    if !last.is(like) {
        return None;
    }
    if last.is_on_tab() {
        let prices = Prices { opens: false, doublings: 0, tables };
        let passes = last.takes(&prices.packets(), &prices.bytes(frame));
        return if passes { Some(Outcome::WithinLimit) } else { None };
    }
    last.refusal()
}

/// A packet that is, or may be, for a guarded port.
#[inline(always)]
fn judge_guarded<const PLAIN: bool, F: Frame + ?Sized, T: Tables>(
    frame: &F,
    flow: &Flow,
    marks: u8,
    tables: &T,
    last: &mut Last,
    now_ns: u64,
) -> Outcome {
    let address = flow.address;
    if address.is_link_scoped_ipv6() {
        return Outcome::Exempt;
    }
    if matches!(flow.target, Target::Unreadable) {
        return Outcome::Malformed;
    }
    let source = address.source();
    let hash = tables.hash(source);
    let doublings = match tables.standing(source, hash, now_ns) {
        Standing::Banned => return Outcome::Banned,
        Standing::Limited(doublings) => doublings,
    };
    match tables.listed(address, marks, now_ns) {
        Listed::Nowhere => {}
        Listed::Banned => return Outcome::Banned,
        Listed::Denied => return Outcome::Denied,
    }
    // Written out once more for what nearly every packet is: everybody's limits hold, and no connection
    // is asked for. The verifier comes by here once.
    if PLAIN && doublings == 0 && !flow.opens {
        let prices = Prices { opens: false, doublings: 0, tables };
        return judge_limited(frame, source, hash, &prices, Some(last), now_ns);
    }
    if !PLAIN {
        last.end(tables);
    }
    // Whatever way led here, from here on it is one.
    let opens = forgotten(u64::from(flow.opens), now_ns) != 0;
    let doublings = forgotten(doublings as u64, now_ns) as i32;
    judge_limited(frame, source, hash, &Prices { opens, doublings, tables }, None, now_ns)
}

/// A packet of a source that is on no list; `last` where more of its like may pass on a tab.
#[inline(always)]
fn judge_limited<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    source: Source,
    hash: u64,
    prices: &Prices<'_, T>,
    last: Option<&mut Last>,
    now_ns: u64,
) -> Outcome {
    let Prices { opens, doublings, tables } = *prices;
    if prices.are_nothing() {
        return Outcome::WithinLimit;
    }
    let Some(set) = tables.set(hash) else { return Outcome::WithinLimit };
    let place = set.find(source, now_ns, || tables.others(hash));
    // First everything is asked, then everything is paid: a packet that is refused for one thing
    // costs nothing of another, so a flood of connections does not also end those that a source
    // has. A price is looked up when it is asked for: a flood that is refused costs the less.
    let connections = prices.connections();
    let mut others = if connections.is_none() { None } else { tables.others(hash) };
    let price = match place {
        Place::Known(way) => {
            if set.refuses_other(way, others, Quota::Connections, &connections, now_ns) {
                return Outcome::OverConnections;
            }
            let packets = prices.packets();
            if set.refuses(way, &packets, now_ns) {
                return Outcome::OverLimit;
            }
            let bytes = prices.bytes(frame);
            if !bytes.is_none() {
                others = tables.others(hash);
            }
            if set.refuses_other(way, others, Quota::Bytes, &bytes, now_ns) {
                return Outcome::OverBytes;
            }
            Price { connections, packets, bytes }
        }
        Place::Free(_) | Place::Taken(_) => {
            let (limit, budget) = tables.newcomers();
            if budget.bucket.refuses(&limit, now_ns) {
                return Outcome::OverNewSources;
            }
            let bytes = prices.bytes(frame);
            if !bytes.is_none() {
                others = tables.others(hash);
            }
            Price { connections, packets: prices.packets(), bytes }
        }
    };
    let (place, price) = match source.network() {
        None => (place, price),
        Some(network) => {
            let (place, price) = (place.forgotten(now_ns), price.forgotten(now_ns));
            if let Some(quota) = charge_network(network.word(), opens, doublings, tables, now_ns) {
                return quota.outcome();
            }
            (place, price)
        }
    };
    match place {
        Place::Known(way) => {
            set.charge(way, others, &price, now_ns);
            if let Some(last) = last {
                last.passes(hash, way, || set.left(way, others, &price, now_ns));
            }
        }
        Place::Free(way) | Place::Taken(way) => {
            let (limit, budget) = tables.newcomers();
            budget.bucket.charge(&limit, now_ns);
            set.replace(way, source, others, &price, now_ns);
            if matches!(place, Place::Taken(_)) {
                tables.evicted();
            }
        }
    }
    Outcome::WithinLimit
}

/// What a packet costs its source.
struct Prices<'a, T> {
    opens: bool,
    doublings: i32,
    tables: &'a T,
}

impl<T: Tables> Prices<'_, T> {
    #[inline(always)]
    fn connections(&self) -> Limit {
        if self.opens { self.own(self.tables.limit(Quota::Connections)) } else { Limit::NONE }
    }

    #[inline(always)]
    fn packets(&self) -> Limit {
        self.own(self.tables.limit(Quota::Packets))
    }

    #[inline(always)]
    fn bytes<F: Frame + ?Sized>(&self, frame: &F) -> Limit {
        let bytes = self.tables.limit(Quota::Bytes);
        if bytes.is_none() { bytes } else { self.own(bytes.of_frame(frame.bytes())) }
    }

    /// Whether nothing is limited that this packet could be too much of.
    #[inline(always)]
    fn are_nothing(&self) -> bool {
        self.tables.limit(Quota::Packets).is_none()
            && self.tables.limit(Quota::Bytes).is_none()
            && self.connections().is_none()
            && self.tables.newcomers().0.is_none()
    }

    /// Everybody's limit as it is for this source.
    #[inline(always)]
    fn own(&self, limit: Limit) -> Limit {
        if self.doublings == 0 { limit } else { limit.doubled(self.doublings) }
    }
}

/// Lets the network that a source lies in pay too, or says what it has too little of. Its place is
/// looked for before its source's is taken; where both come into one set and want one place, the
/// second packet finds them one each.
#[inline(always)]
fn charge_network<T: Tables>(
    network: Source,
    opens: bool,
    doublings: i32,
    tables: &T,
    now_ns: u64,
) -> Option<Quota> {
    let everybodys = Price {
        connections: if opens { tables.network_limit(Quota::Connections) } else { Limit::NONE },
        packets: tables.network_limit(Quota::Packets),
        bytes: Limit::NONE,
    };
    // What one source is granted more must fit into its site's, too.
    let price = if doublings > 0 { everybodys.doubled(doublings) } else { everybodys };
    if price.is_nothing() {
        return None;
    }
    let hash = tables.hash(network);
    let set = tables.set(hash)?;
    let others = if price.connections.is_none() { None } else { tables.others(hash) };
    match set.find(network, now_ns, || tables.others(hash)) {
        Place::Known(way) => {
            if set.refuses_other(way, others, Quota::Connections, &price.connections, now_ns) {
                return Some(Quota::Connections);
            }
            if set.refuses(way, &price.packets, now_ns) {
                return Some(Quota::Packets);
            }
            set.charge(way, others, &price, now_ns);
        }
        Place::Free(way) => set.replace(way, network, others, &price, now_ns),
        Place::Taken(way) => {
            set.replace(way, network, others, &price, now_ns);
            tables.evicted();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{cell::Cell, collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::bucket::{OCTETS, SET_WORDS, WAYS, WayState};

    /// A limit that the second packet is over.
    const ONE: Limit = Limit { cost_ns: 1 << 40, tolerance_ns: 0 };
    /// One that nobody here reaches.
    const MANY: Limit = Limit { cost_ns: 1, tolerance_ns: 1 << 40 };

    /// By whoever has no memory.
    fn judge(frame: &[u8], tables: &Fixed, now_ns: u64) -> Outcome {
        super::judge(frame, tables, &mut Last::default(), now_ns)
    }

    /// Tables that answer one way for every source, and count what they are asked.
    struct Fixed {
        banned: bool,
        denied: bool,
        exempt: bool,
        packets: Limit,
        connections: Limit,
        bytes: Limit,
        newcomers: (Limit, Budget),
        revision: u64,
        set: Set,
        others: Others,
        exempt_asked: Cell<u32>,
        evictions: Cell<u32>,
    }

    impl Default for Fixed {
        fn default() -> Self {
            Self {
                banned: false,
                denied: false,
                exempt: false,
                packets: MANY,
                connections: MANY,
                bytes: MANY,
                newcomers: (Limit::NONE, Budget::default()),
                revision: 0,
                set: Set::default(),
                others: Others::default(),
                exempt_asked: Cell::new(0),
                evictions: Cell::new(0),
            }
        }
    }

    impl Fixed {
        /// What the buckets hold of the only IPv4 source there is, in nanoseconds from 0.
        fn charged(&self) -> [u64; 3] {
            let place = self.set.find(Source::ipv4(0xc000_0207), 0, || Some(&self.others));
            let Place::Known(way) = place else { return [0; 3] };
            let way = self.ways()[way];
            Quota::ALL.map(|quota| way.full_at_ns(quota))
        }

        fn ways(&self) -> [WayState; WAYS] {
            // SAFETY: both are made of so many words, and nobody writes to them now.
            let (set, others): (&[u64; SET_WORDS], &[u64; SET_WORDS]) =
                unsafe { (&*(&raw const self.set).cast(), &*(&raw const self.others).cast()) };
            WayState::of_set(set, others)
        }
    }

    impl Tables for Fixed {
        fn revision(&self) -> u64 {
            self.revision
        }
        fn service(&self, target: Target) -> Service {
            match target {
                Target::Tcp(8443) => Service::Guarded,
                Target::Tcp(22) => Service::Management,
                _ => Service::Other,
            }
        }
        fn hash(&self, _: Source) -> u64 {
            0
        }
        fn standing(&self, _: Source, _: u64, _: u64) -> Standing {
            if self.banned { Standing::Banned } else { Standing::Limited(0) }
        }
        fn marks(&self, _: Address) -> u8 {
            0
        }
        fn listed(&self, _: Address, _: u8, _: u64) -> Listed {
            if self.denied { Listed::Denied } else { Listed::Nowhere }
        }
        fn is_exempt(&self, _: Address, _: u8) -> bool {
            self.exempt_asked.set(self.exempt_asked.get() + 1);
            self.exempt
        }
        fn limit(&self, quota: Quota) -> Limit {
            match quota {
                Quota::Packets => self.packets,
                Quota::Connections => self.connections,
                Quota::Bytes => self.bytes,
            }
        }
        fn network_limit(&self, quota: Quota) -> Limit {
            self.limit(quota).doubled(NETWORK_DOUBLINGS)
        }
        fn newcomers(&self) -> (Limit, &Budget) {
            (self.newcomers.0, &self.newcomers.1)
        }
        fn set(&self, _: u64) -> Option<&Set> {
            Some(&self.set)
        }
        fn others(&self, _: u64) -> Option<&Others> {
            Some(&self.others)
        }
        fn evicted(&self) {
            self.evictions.set(self.evictions.get() + 1);
        }
    }

    fn tcp(port: u16) -> Vec<u8> {
        let ack = 0x10;
        tcp_with(port, ack)
    }

    fn tcp_with(port: u16, flags: u8) -> Vec<u8> {
        tcp_from([192, 0, 2, 7], port, flags)
    }

    fn tcp_from(source: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
        let mut frame = std::vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(source);
        frame.extend([198, 51, 100, 1, 0x30, 0x39]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags]);
        frame
    }

    #[test]
    fn looks_at_management_then_bans_then_lists_then_the_rate() {
        // (banned, denied, over, exempt) → outcome for the guarded port
        for (banned, denied, over, exempt, outcome) in [
            (false, false, false, false, Outcome::WithinLimit),
            (false, false, false, true, Outcome::WithinLimit),
            (false, false, true, false, Outcome::OverLimit),
            (false, true, true, false, Outcome::Denied),
            (true, true, true, false, Outcome::Banned),
            (true, true, true, true, Outcome::Exempt),
            (false, false, true, true, Outcome::Exempt),
        ] {
            let packets = if over { ONE } else { MANY };
            let tables = Fixed { denied: false, packets, ..Fixed::default() };
            judge(tcp(8443).as_slice(), &tables, 0);
            let tables = Fixed { banned, denied, exempt, ..tables };
            assert_eq!(judge(tcp(8443).as_slice(), &tables, 0), outcome);
            assert_eq!(judge(tcp(22).as_slice(), &tables, 0), Outcome::Management);
            assert_eq!(judge(tcp(80).as_slice(), &tables, 0), Outcome::OtherPort);
        }
    }

    #[test]
    fn ordinary_traffic_is_not_looked_up_among_the_exempt() {
        let tables = Fixed::default();
        judge(tcp(8443).as_slice(), &tables, 0);
        judge(tcp(80).as_slice(), &tables, 0);
        assert_eq!((tables.exempt_asked.get(), tables.charged()), (0, [1, 0, 1]));
    }

    #[test]
    fn only_who_opens_a_connection_is_charged_for_one() {
        let syn = tcp_with(8443, 0x02);
        let tables = Fixed { connections: ONE, bytes: Limit::NONE, ..Fixed::default() };
        for (frame, outcome, charged) in [
            (tcp(8443), Outcome::WithinLimit, [1, 0, 0]),
            (syn.clone(), Outcome::WithinLimit, [2, ONE.cost_ns, 0]),
            // Refused as a connection, it costs no packet.
            (syn.clone(), Outcome::OverConnections, [2, ONE.cost_ns, 0]),
            (tcp(8443), Outcome::WithinLimit, [3, ONE.cost_ns, 0]),
            (tcp_with(80, 0x02), Outcome::OtherPort, [3, ONE.cost_ns, 0]),
        ] {
            assert_eq!(judge(frame.as_slice(), &tables, 0), outcome);
            assert_eq!(tables.charged(), charged);
        }
        // Nor does one that is refused as a packet cost a connection.
        let tables = Fixed { packets: ONE, bytes: Limit::NONE, ..Fixed::default() };
        judge(tcp(8443).as_slice(), &tables, 0);
        assert_eq!(judge(syn.as_slice(), &tables, 0), Outcome::OverLimit);
        assert_eq!(tables.charged(), [ONE.cost_ns, 0, 0]);
    }

    #[test]
    fn what_is_not_limited_costs_nothing() {
        let nothing = Limit::NONE;
        let tables =
            Fixed { packets: nothing, connections: nothing, bytes: nothing, ..Fixed::default() };
        for _ in 0..3 {
            assert_eq!(judge(tcp(8443).as_slice(), &tables, 0), Outcome::WithinLimit);
        }
        assert_eq!(tables.set.find(Source::ipv4(0xc000_0207), 0, || None), Place::Free(0));
    }

    #[test]
    fn octets_are_looked_at_last() {
        let frame = tcp(8443);
        let bytes = Limit { cost_ns: OCTETS << 32, tolerance_ns: 0 };
        let tables = Fixed { bytes, ..Fixed::default() };
        judge(frame.as_slice(), &tables, 0);
        assert_eq!(tables.charged()[2], (frame.len() as u64) << 32);
        assert_eq!(judge(frame.as_slice(), &tables, 0), Outcome::OverBytes);
        assert_eq!(tables.charged()[0], 1);
        let both = Fixed { bytes, packets: ONE, ..Fixed::default() };
        judge(frame.as_slice(), &both, 0);
        assert_eq!(judge(frame.as_slice(), &both, 0), Outcome::OverLimit);
    }

    #[test]
    fn plain_packets_are_judged_as_those_with_a_tag_are() {
        let few = Limit { cost_ns: 1_000, tolerance_ns: 2_000 };
        let two_frames = Limit { cost_ns: OCTETS << 32, tolerance_ns: 104 << 32 };
        let (ack, syn) = (0x10, 0x02);
        let mut outcomes = BTreeSet::new();
        for (packets, bytes) in [
            (MANY, Limit::NONE),
            (few, Limit::NONE),
            (MANY, two_frames),
            (few, two_frames),
            (Limit::NONE, two_frames),
            (Limit::NONE, Limit::NONE),
        ] {
            let [plain, tagged] =
                [(); 2].map(|()| Fixed { packets, bytes, connections: ONE, ..Fixed::default() });
            for (step, flags) in [ack, ack, syn, ack, syn, ack, ack, syn].into_iter().enumerate() {
                let now_ns = 300 * step as u64;
                let mut frame = tcp_with(8443, flags);
                let mut with_tag = frame.clone();
                with_tag.splice(12..12, [0x81, 0, 0, 7]);
                frame.resize(with_tag.len(), 0);
                let outcome = judge(frame.as_slice(), &plain, now_ns);
                assert_eq!(outcome, judge(with_tag.as_slice(), &tagged, now_ns));
                assert_eq!(plain.charged(), tagged.charged());
                outcomes.insert(outcome);
            }
        }
        assert_eq!(
            outcomes,
            BTreeSet::from([
                Outcome::WithinLimit,
                Outcome::OverLimit,
                Outcome::OverConnections,
                Outcome::OverBytes,
            ])
        );
    }

    /// An IPv6 packet, to the same port.
    fn tcp_ipv6(lower: u8, flags: u8) -> Vec<u8> {
        let mut frame = std::vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64, 0x20, 1, 0xd, 0xb8]);
        frame.extend([0; 11]);
        frame.push(lower);
        frame.extend([0; 16]);
        frame.extend([
            0x30, 0x39, 0x20, 0xfb, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 0, 0, 0, 0, 0,
        ]);
        frame
    }

    #[test]
    fn a_flood_of_one_source_is_judged_once_a_tick() {
        let tables = Fixed { packets: ONE, exempt: false, ..Fixed::default() };
        let mut last = Last::default();
        let frame = tcp(8443);
        let mut outcome =
            |tables: &Fixed, now_ns| super::judge(frame.as_slice(), tables, &mut last, now_ns);
        assert_eq!(outcome(&tables, 1), Outcome::WithinLimit);
        for _ in 0..5 {
            assert_eq!(outcome(&tables, 1), Outcome::OverLimit);
        }
        // Of each flood the first one alone asked whether it is exempt.
        assert_eq!(tables.exempt_asked.get(), 1);
        assert_eq!(outcome(&tables, 2), Outcome::OverLimit);
        assert_eq!(tables.exempt_asked.get(), 2);
        // A rule that changes is in force with the next packet.
        let tables = Fixed { exempt: true, revision: 1, ..tables };
        assert_eq!(outcome(&tables, 2), Outcome::Exempt);
    }

    #[test]
    fn who_sends_again_and_again_runs_up_a_tab_and_pays_it() {
        let packets = Limit { cost_ns: 1_000, tolerance_ns: 2_560_000 };
        let tables = Fixed { packets, bytes: Limit::NONE, ..Fixed::default() };
        let mut last = Last::default();
        let mut sends = |frame: &[u8], now_ns| super::judge(frame, &tables, &mut last, now_ns);
        // A place is taken, and who sends again has a tab: a 256th of what is left.
        for paid in [1, 2] {
            sends(&tcp(8443), 0);
            assert_eq!(tables.charged()[0], paid * 1_000);
        }
        for _ in 0..9 {
            sends(&tcp(8443), 0);
            assert_eq!(tables.charged()[0], 2_000);
        }
        // Once it is full, it is paid, and the next one is begun.
        sends(&tcp(8443), 0);
        assert_eq!(tables.charged()[0], 12_000);
        sends(&tcp(8443), 0);
        // Whoever comes next has it paid, and whatever comes next of the source itself.
        sends(&tcp_from([192, 0, 2, 9], 8443, 0x10), 0);
        assert_eq!(tables.charged()[0], 13_000);
        for _ in 0..4 {
            sends(&tcp(8443), 0);
        }
        sends(&tcp(8443), 4_000_000);
        assert_eq!(tables.charged()[0], 4_001_000);
    }

    #[test]
    fn the_banned_are_not_charged() {
        let tables = Fixed { banned: true, ..Fixed::default() };
        judge(tcp(8443).as_slice(), &tables, 0);
        assert_eq!(tables.charged(), [0; 3]);
    }

    #[test]
    fn newcomers_share_one_budget_and_who_is_known_needs_none() {
        let three = Limit { cost_ns: 1_000, tolerance_ns: 2_000 };
        let tables = Fixed { newcomers: (three, Budget::default()), ..Fixed::default() };
        let judged =
            |host, now_ns| judge(&tcp_from([192, 0, 2, host], 8443, 0x02)[..], &tables, now_ns);
        for host in [1, 2, 3] {
            assert_eq!(judged(host, 0), Outcome::WithinLimit, "{host}");
        }
        for _ in 0..2 {
            assert_eq!(judged(4, 0), Outcome::OverNewSources);
            assert_eq!(judged(1, 0), Outcome::WithinLimit);
        }
        // One more each microsecond.
        assert_eq!(judged(4, 1_000), Outcome::WithinLimit);
        assert_eq!(judged(5, 1_000), Outcome::OverNewSources);
        // Where nothing else is limited, too.
        let nothing = Limit::NONE;
        let tables = Fixed { packets: nothing, connections: nothing, bytes: nothing, ..tables };
        let judged =
            |host, now_ns| judge(&tcp_from([192, 0, 2, host], 8443, 0x10)[..], &tables, now_ns);
        assert_eq!(judged(4, 1_000), Outcome::WithinLimit);
        assert_eq!(judged(9, 1_000), Outcome::OverNewSources);
        assert_eq!(tables.evictions.get(), 0);
    }

    #[test]
    fn a_source_that_loses_its_allowance_to_another_is_counted() {
        let tables = Fixed::default();
        for host in 1..=5 {
            judge(&tcp_from([192, 0, 2, host], 8443, 0x10)[..], &tables, 0);
        }
        assert_eq!(tables.evictions.get(), 1);
    }

    #[test]
    fn numbers_and_words_name_each_outcome_once() {
        let words: BTreeSet<_> = Outcome::ALL.map(Outcome::word).into();
        assert_eq!(words.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
            assert_eq!(outcome.drops(), index >= 5);
        }
    }

    /// One packet, after a change of the rules or a while perhaps: who sends it, whether it opens a
    /// connection, how long it is, which rule changes, and how long it is after the one before.
    fn packets() -> impl Strategy<Value = Vec<(u8, bool, usize, u8, u64)>> {
        let packet = (0_u8..6, prop::bool::weighted(0.2), 0_usize..3, 0_u8..60, 0_u64..12);
        prop::collection::vec(packet, 1..200)
    }

    proptest! {
        #[test]
        fn a_memory_changes_no_outcome_and_forgets_no_charge(
            packets in packets(),
            limits in prop::array::uniform3(prop::option::of((1_u64..2_000, 0_u64..3_000_000))),
            newcomers in any::<bool>(),
        ) {
            let [one, other, octets] = limits.map(|limit| {
                limit.map_or(Limit::NONE, |(cost_ns, tolerance_ns)| Limit { cost_ns, tolerance_ns })
            });
            let octets = Limit { cost_ns: octets.cost_ns << 10, ..octets };
            let newcomers =
                if newcomers { Limit { cost_ns: 9, tolerance_ns: 9 } } else { Limit::NONE };
            let [mut with, mut without] = [(); 2].map(|()| Fixed {
                packets: one,
                connections: other,
                bytes: octets,
                newcomers: (newcomers, Budget::default()),
                ..Fixed::default()
            });
            let mut last = Last::default();
            let mut now_ns = 0;
            for (sender, opens, size, rule, pause) in packets {
                for tables in [&mut with, &mut without] {
                    match rule {
                        0 => tables.banned = !tables.banned,
                        1 => tables.denied = !tables.denied,
                        2 | 3 => tables.exempt = !tables.exempt,
                        4 => tables.packets = tables.packets.doubled(1),
                        _ => continue,
                    }
                    tables.revision += 1;
                }
                // Mostly in the same tick.
                now_ns += if pause == 0 { 40_000 } else { 0 };
                let flags = if opens { 0x02 } else { 0x10 };
                let mut frame = match sender {
                    0..3 => tcp_from([192, 0, 2, sender / 2], 8443, flags),
                    3 => {
                        let mut tagged = tcp_from([192, 0, 2, 0], 8443, flags);
                        tagged.splice(12..12, [0x81, 0, 0, 7]);
                        tagged
                    }
                    _ => tcp_ipv6(sender, flags),
                };
                frame.resize(frame.len() + 400 * size, 0);
                let outcome = super::judge(frame.as_slice(), &with, &mut last, now_ns);
                prop_assert_eq!(outcome, judge(frame.as_slice(), &without, now_ns));
            }
            last.end(&with);
            prop_assert_eq!(with.ways(), without.ways());
            prop_assert_eq!(with.evictions.get(), without.evictions.get());
            prop_assert_eq!(with.newcomers.1.bucket.load(), without.newcomers.1.bucket.load());
        }

        #[test]
        fn an_exempt_source_loses_no_readable_packet(
            frame in prop::collection::vec(any::<u8>(), 0..100),
            banned in any::<bool>(), denied in any::<bool>(), over in any::<bool>(),
        ) {
            let packets = if over { ONE } else { MANY };
            let tables = Fixed { banned, denied, packets, exempt: true, ..Fixed::default() };
            judge(frame.as_slice(), &tables, 0);
            let outcome = judge(frame.as_slice(), &tables, 0);
            let readable = matches!(packet::parse(frame.as_slice()), Parsed::Flow(_));
            prop_assert!(!(readable && outcome.drops()));
        }
    }
}
