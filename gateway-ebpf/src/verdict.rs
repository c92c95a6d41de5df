//! What becomes of a frame: the whole decision of the XDP program, and of nothing else.

use crate::{
    Source,
    bucket::{Admission, Limit},
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
}

impl Outcome {
    /// Every outcome, in the order of their numbers.
    pub const ALL: [Self; 11] = [
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
    /// What the target is; never asked for [`Target::Other`] and the portless ones.
    fn service(&self, target: Target) -> Service;
    /// What is in force about the source at `now_ns`.
    fn standing(&self, source: Source, now_ns: u64) -> Standing;
    /// Which prefixes cover the address at `now_ns`; a ban before the list of denied ones.
    fn listed(&self, address: Address, now_ns: u64) -> Listed;
    /// Whether the address is on the list of those never dropped.
    fn is_exempt(&self, address: Address) -> bool;
    /// What each source may have of this; of octets as [`Limit::octets`] tells it.
    fn limit(&self, quota: Quota) -> Limit;
    /// Takes what the limit says from the source's bucket.
    fn admit(&self, quota: Quota, source: Source, limit: &Limit, now_ns: u64) -> Admission;
}

/// Judges one frame at `now_ns`, a time on the clock of the tables' bans and buckets.
///
/// Management first, so that nothing can lock the operator out. The list of exempt sources is
/// looked at last, and only to save a frame from being dropped: that comes to the same as asking
/// first, and ordinary traffic does not pay for it.
#[inline(always)]
pub fn judge<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T, now_ns: u64) -> Outcome {
    let flow = match packet::parse(frame) {
        Parsed::NotIp => return Outcome::NotIp,
        Parsed::Malformed => return Outcome::Malformed,
        Parsed::Flow(flow) => flow,
    };
    match flow.target {
        Target::Other => return Outcome::OtherPort,
        Target::Tcp(_) | Target::Udp(_) => match tables.service(flow.target) {
            Service::Other => return Outcome::OtherPort,
            Service::Management => return Outcome::Management,
            Service::Guarded => {}
        },
        Target::Fragment | Target::Unreadable => {}
    }
    let outcome = judge_guarded(frame, &flow, tables, now_ns);
    if outcome.drops() && tables.is_exempt(flow.address) { Outcome::Exempt } else { outcome }
}

/// A packet that is, or may be, for a guarded port.
#[inline(always)]
fn judge_guarded<F: Frame + ?Sized, T: Tables>(
    frame: &F,
    flow: &Flow,
    tables: &T,
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
    let doublings = match tables.standing(source, now_ns) {
        Standing::Banned => return Outcome::Banned,
        Standing::Limited(doublings) => doublings,
    };
    match tables.listed(address, now_ns) {
        Listed::Nowhere => {}
        Listed::Banned => return Outcome::Banned,
        Listed::Denied => return Outcome::Denied,
    }
    // Connections first: what is refused there costs the source none of its packets, so a flood of
    // them does not also end the connections that it has.
    if flow.opens && is_over(Quota::Connections, frame, source, doublings, tables, now_ns) {
        return Quota::Connections.outcome();
    }
    if is_over(Quota::Packets, frame, source, doublings, tables, now_ns) {
        return Quota::Packets.outcome();
    }
    if is_over(Quota::Bytes, frame, source, doublings, tables, now_ns) {
        return Quota::Bytes.outcome();
    }
    Outcome::WithinLimit
}

/// Charges a source and the network it lies in, or says that one of them has nothing left.
#[inline(always)]
fn is_over<F: Frame + ?Sized, T: Tables>(
    quota: Quota,
    frame: &F,
    source: Source,
    doublings: i32,
    tables: &T,
    now_ns: u64,
) -> bool {
    let limit = tables.limit(quota);
    if limit.is_none() {
        return false;
    }
    let is_refused = |source, limit: &Limit| {
        matches!(tables.admit(quota, source, limit, now_ns), Admission::Over)
    };
    // Octets are limited where a link is short, and there is no reason why a site's should be
    // sixteen times as wide.
    if matches!(quota, Quota::Bytes) {
        return is_refused(source, &limit.of_frame(frame.bytes()).doubled(doublings));
    }
    if is_refused(source, &limit.doubled(doublings)) {
        return true;
    }
    match source.network() {
        // What one source is granted more must fit into its site's, too.
        Some(network) => {
            let doublings = if doublings > 0 { doublings } else { 0 };
            is_refused(network.word(), &limit.doubled(NETWORK_DOUBLINGS + doublings))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{cell::Cell, collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// Tables that answer one way for every source, and count what they are asked.
    #[derive(Default)]
    struct Fixed {
        banned: bool,
        denied: bool,
        exempt: bool,
        over: bool,
        over_connections: bool,
        over_bytes: bool,
        admitted: Cell<u32>,
        exempt_asked: Cell<u32>,
    }

    impl Tables for Fixed {
        fn service(&self, target: Target) -> Service {
            match target {
                Target::Tcp(8443) => Service::Guarded,
                Target::Tcp(22) => Service::Management,
                _ => Service::Other,
            }
        }
        fn standing(&self, _: Source, _: u64) -> Standing {
            if self.banned { Standing::Banned } else { Standing::Limited(0) }
        }
        fn listed(&self, _: Address, _: u64) -> Listed {
            if self.denied { Listed::Denied } else { Listed::Nowhere }
        }
        fn is_exempt(&self, _: Address) -> bool {
            self.exempt_asked.set(self.exempt_asked.get() + 1);
            self.exempt
        }
        fn limit(&self, quota: Quota) -> Limit {
            match quota {
                Quota::Bytes if !self.over_bytes => Limit::NONE,
                _ => Limit::new(1, 1, 1),
            }
        }
        fn admit(&self, quota: Quota, _: Source, _: &Limit, _: u64) -> Admission {
            self.admitted.set(self.admitted.get() + 1);
            let over = match quota {
                Quota::Packets => self.over,
                Quota::Connections => self.over_connections,
                Quota::Bytes => self.over_bytes,
            };
            if over { Admission::Over } else { Admission::Within }
        }
    }

    fn tcp(port: u16) -> Vec<u8> {
        let ack = 0x10;
        tcp_with(port, ack)
    }

    fn tcp_with(port: u16, flags: u8) -> Vec<u8> {
        let mut frame = std::vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39]);
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
            let tables = Fixed { banned, denied, over, exempt, ..Fixed::default() };
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
        assert_eq!((tables.exempt_asked.get(), tables.admitted.get()), (0, 1));
    }

    #[test]
    fn only_who_opens_a_connection_is_charged_for_one() {
        let syn = tcp_with(8443, 0x02);
        let none = Fixed { over_connections: true, ..Fixed::default() };
        assert_eq!(judge(tcp(8443).as_slice(), &none, 0), Outcome::WithinLimit);
        assert_eq!(none.admitted.get(), 1);
        // Refused as a connection, it costs no packet.
        assert_eq!(judge(syn.as_slice(), &none, 0), Outcome::OverConnections);
        assert_eq!(none.admitted.get(), 2);
        assert_eq!(judge(tcp_with(80, 0x02).as_slice(), &none, 0), Outcome::OtherPort);
        let some = Fixed { over: true, ..Fixed::default() };
        assert_eq!(judge(syn.as_slice(), &some, 0), Outcome::OverLimit);
        assert_eq!(some.admitted.get(), 2);
    }

    #[test]
    fn octets_are_looked_at_last_and_only_where_they_are_limited() {
        let over = Fixed { over_bytes: true, ..Fixed::default() };
        assert_eq!(judge(tcp(8443).as_slice(), &over, 0), Outcome::OverBytes);
        assert_eq!(over.admitted.get(), 2);
        let both = Fixed { over_bytes: true, over: true, ..Fixed::default() };
        assert_eq!(judge(tcp(8443).as_slice(), &both, 0), Outcome::OverLimit);
        assert_eq!(both.admitted.get(), 1);
    }

    #[test]
    fn the_banned_are_not_charged() {
        let tables = Fixed { banned: true, ..Fixed::default() };
        judge(tcp(8443).as_slice(), &tables, 0);
        assert_eq!(tables.admitted.get(), 0);
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

    proptest! {
        #[test]
        fn an_exempt_source_loses_no_readable_packet(
            frame in prop::collection::vec(any::<u8>(), 0..100),
            banned in any::<bool>(), denied in any::<bool>(), over in any::<bool>(),
        ) {
            let tables = Fixed { banned, denied, over, exempt: true, ..Fixed::default() };
            let outcome = judge(frame.as_slice(), &tables, 0);
            let readable = matches!(packet::parse(frame.as_slice()), Parsed::Flow(_));
            prop_assert!(!(readable && outcome.drops()));
        }
    }
}
