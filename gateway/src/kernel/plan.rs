//! What has to be written to the kernel's maps, decided from plain values.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use gateway_ebpf::{
    Source,
    abi::{self, BAN_FILTER_WORDS, FAMILY_BITS, PORTS, PREFIX_PLACES, PrefixData},
    bucket::{Bucket, Limit, OCTETS},
    packet::Address,
    verdict::Quota,
};
use ipnet::{IpNet, Ipv4Net};

use super::{ByteRate, Rate, Service, Transport};

/// A prefix as the kernel's tries hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Bits of `data` that count, the family's among them.
    pub bits: u32,
    /// Family and address; bits that do not count are 0.
    pub data: PrefixData,
}

impl From<&IpNet> for Prefix {
    fn from(net: &IpNet) -> Self {
        let net = plain(*net);
        Self {
            bits: FAMILY_BITS + u32::from(net.prefix_len()),
            data: abi::prefix_data(address(net.network())),
        }
    }
}

impl Prefix {
    /// The prefix as it is written; `None` for what no prefix is made into.
    pub fn net(&self) -> Option<IpNet> {
        let length = u8::try_from(self.bits.checked_sub(FAMILY_BITS)?).ok()?;
        let [family, first, second, third, fourth, _] = self.data.map(u32::from_be);
        let address: IpAddr = match family {
            4 => Ipv4Addr::from_bits(first).into(),
            6 => {
                let words = [first, second, third, fourth];
                let bits = words.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
                Ipv6Addr::from_bits(bits).into()
            }
            _ => return None,
        };
        IpNet::new(address, length).ok()
    }
}

/// One change of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<K> {
    /// Add the key.
    Insert(K),
    /// Take it away.
    Remove(K),
}

/// The writes that turn `present` into `wanted`. Insertions first: while they are being made, a
/// source that is on both lists is on neither too little.
pub fn entries<K: Copy + Ord>(wanted: &BTreeSet<K>, present: &BTreeSet<K>) -> Vec<Write<K>> {
    let inserts = wanted.difference(present).copied().map(Write::Insert);
    let removals = present.difference(wanted).copied().map(Write::Remove);
    inserts.chain(removals).collect()
}

/// The marks of all ports.
pub fn ports(guarded: &[u16], management: &[Service]) -> Vec<u8> {
    let mut marks = vec![0; PORTS];
    for &port in guarded {
        marks[usize::from(port)] |= abi::PORT_GUARDED;
    }
    for service in management {
        marks[usize::from(service.port)] |= match service.transport {
            Transport::Tcp => abi::PORT_MANAGEMENT_TCP,
            Transport::Udp => abi::PORT_MANAGEMENT_UDP,
        };
    }
    marks
}

/// The filter in front of the tries: a mark for whatever a prefix may cover.
pub fn prefix_filter<'a>(
    deny: &[IpNet],
    exempt: &[IpNet],
    banned: impl IntoIterator<Item = &'a IpNet>,
) -> Vec<u8> {
    let mut marks = vec![0; PREFIX_PLACES];
    let mut set = |net: &IpNet, mark| {
        for place in prefix_places(net) {
            marks[place as usize] |= mark;
        }
    };
    for net in deny {
        set(net, abi::PREFIX_DENIED);
    }
    for net in exempt {
        set(net, abi::PREFIX_EXEMPT);
    }
    for net in banned {
        set(net, abi::PREFIX_BANNED);
    }
    marks
}

/// All places that an address in the prefix may have: see [`abi::prefix_place`].
fn prefix_places(net: &IpNet) -> impl Iterator<Item = u32> + use<> {
    let net = plain(*net);
    let first = address(net.network());
    let length = u32::from(net.prefix_len());
    // How many of the bits that are looked at the prefix leaves open; folding makes at most 2^16
    // of them, and a prefix shorter than that covers every place there is.
    let looked_at = match first {
        Address::V4(_) => 16,
        Address::V6(..) => 32,
    };
    let open = looked_at - length.min(looked_at);
    (0..1u32 << open.min(16)).map(move |low| match first {
        Address::V4(upper) => abi::prefix_place(Address::V4(upper | low << 16)),
        Address::V6(upper, lower) => {
            abi::prefix_place(Address::V6(upper | u64::from(low) << 32, lower))
        }
    })
}

/// The filter in front of the bans, with how many bans need each of its bits.
#[derive(Debug)]
pub struct BanFilter {
    words: Vec<u64>,
    uses: HashMap<u32, u32>,
}

impl BanFilter {
    /// The filter for these bits.
    pub fn new(bits: impl IntoIterator<Item = u32>) -> Self {
        let mut filter = Self { words: vec![0; BAN_FILTER_WORDS as usize], uses: HashMap::new() };
        for bit in bits {
            filter.add(bit);
        }
        filter
    }

    /// All of it, as the map must be.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// One ban more; the word to write where it changed.
    pub fn add(&mut self, bit: u32) -> Option<(u32, u64)> {
        let uses = self.uses.entry(bit).or_default();
        *uses += 1;
        (*uses == 1).then(|| {
            let word = &mut self.words[(bit / 64) as usize];
            *word |= 1 << (bit % 64);
            (bit / 64, *word)
        })
    }

    /// One ban less; the word to write where it changed.
    pub fn remove(&mut self, bit: u32) -> Option<(u32, u64)> {
        let uses = self.uses.get_mut(&bit)?;
        *uses -= 1;
        (*uses == 0).then(|| {
            self.uses.remove(&bit);
            let word = &mut self.words[(bit / 64) as usize];
            *word &= !(1 << (bit % 64));
            (bit / 64, *word)
        })
    }
}

/// Whether no ban may touch the source: an exempt prefix covers it whole, or it is of the link.
/// Where only a part of a /64 is exempt the rest may be banned; the kernel spares the part.
pub fn is_exempt(source: Source, exempt: &[IpNet]) -> bool {
    let first = source.address();
    if address(first).is_link_scoped_ipv6() && first != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return true;
    }
    exempt.iter().any(|net| {
        let net = plain(*net);
        net.prefix_len() <= source.prefix() && net.contains(&first)
    })
}

/// The exempt prefix that shares addresses with this one, if one does: a ban would hit it.
pub fn overlapping(net: IpNet, exempt: &[IpNet]) -> Option<IpNet> {
    let net = plain(net);
    exempt.iter().map(|exempt| plain(*exempt)).find(|exempt| shares(exempt, &net))
}

fn shares(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// The longest prefix of a list that shares addresses with this one.
pub fn longest_sharing(net: IpNet, list: &[IpNet]) -> Option<IpNet> {
    let net = plain(net);
    let sharing = list.iter().map(|listed| plain(*listed)).filter(|listed| shares(listed, &net));
    sharing.max_by_key(IpNet::prefix_len)
}

/// A source as a prefix.
pub fn source_net(source: Source) -> IpNet {
    // A source's prefix is 32 or 64 bits long, so it fits its family.
    IpNet::new(source.address(), source.prefix()).unwrap_or(IpNet::from(source.address()))
}

/// How much of a limit is left in a bucket that is full again at this moment; `None`: a full one.
pub fn left(quota: Quota, limit: &Limit, full_at_ns: Option<u64>, now_ns: u64) -> u64 {
    let full_at_ns = full_at_ns.unwrap_or(now_ns);
    match quota {
        Quota::Packets | Quota::Connections => Bucket::full(full_at_ns).tokens(limit, now_ns),
        Quota::Bytes => {
            let ahead_ns = (full_at_ns.wrapping_sub(now_ns) as i64).max(0) as u64;
            let left_ns = limit.tolerance_ns.saturating_sub(ahead_ns);
            let octets =
                u128::from(left_ns) * u128::from(OCTETS) / u128::from(limit.cost_ns.max(1));
            u64::try_from(octets).unwrap_or(u64::MAX)
        }
    }
}

/// When the last ban of a prefix and of those that cover it is over; `None` when none is banned.
pub fn banned_until_ns(net: &IpNet, bans: &BTreeMap<IpNet, abi::Ban>) -> Option<u64> {
    let covering = bans.iter().filter(|(banned, _)| banned.contains(net));
    covering.map(|(_, ban)| ban.expires_ns).max()
}

/// The rate as the program takes it.
pub fn limit(rate: Option<Rate>) -> Limit {
    rate.map_or(Limit::NONE, |rate| Limit::new(rate.per_s, 1_000_000_000, rate.burst))
}

/// The rate of octets as the program takes it.
pub fn byte_limit(rate: Option<ByteRate>) -> Limit {
    rate.map_or(Limit::NONE, |rate| Limit::octets(rate.bytes_per_s, rate.burst_bytes))
}

/// The least burst that this rate needs on a clock with ticks of this length: packets arrive
/// between two ticks, but the bucket refills at the tick, so it must hold two ticks' worth.
pub fn least_burst(per_s: u64, ns_per_jiffy: u64) -> u64 {
    (2 * ns_per_jiffy).saturating_mul(per_s).div_ceil(1_000_000_000).max(1)
}

/// An IPv4-mapped IPv6 prefix means IPv4; and no host bits.
pub fn plain(net: IpNet) -> IpNet {
    let net = net.trunc();
    if let IpNet::V6(mapped) = net
        && mapped.prefix_len() >= 96
        && let Some(network) = mapped.network().to_ipv4_mapped()
        && let Ok(net) = Ipv4Net::new(network, mapped.prefix_len() - 96)
    {
        return IpNet::V4(net);
    }
    net
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::V4(Ipv4Addr::to_bits(address)),
        IpAddr::V6(address) => {
            let bits = Ipv6Addr::to_bits(address);
            Address::V6((bits >> 64) as u64, bits as u64)
        }
    }
}

/// An address as the parser tells it.
pub fn ip(address: Address) -> IpAddr {
    match address {
        Address::V4(bits) => Ipv4Addr::from_bits(bits).into(),
        Address::V6(upper, lower) => {
            Ipv6Addr::from_bits(u128::from(upper) << 64 | u128::from(lower)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text)).collect()
    }

    #[test]
    fn writes_only_what_differs_and_adds_before_it_takes_away() {
        let set = |keys: &[u32]| keys.iter().copied().collect::<BTreeSet<_>>();
        for (wanted, present, writes) in [
            (set(&[]), set(&[]), vec![]),
            (set(&[1]), set(&[1]), vec![]),
            (set(&[2, 3]), set(&[1, 2]), vec![Write::Insert(3), Write::Remove(1)]),
            (set(&[]), set(&[1]), vec![Write::Remove(1)]),
        ] {
            assert_eq!(entries(&wanted, &present), writes);
        }
    }

    #[test]
    fn marks_ports_where_the_program_looks() {
        let management = [
            Service { port: 22, transport: Transport::Tcp },
            Service { port: 161, transport: Transport::Udp },
            Service { port: 443, transport: Transport::Udp },
        ];
        let marks = ports(&[0, 443, 65535], &management);
        for (port, mark) in [
            (0, abi::PORT_GUARDED),
            (22, abi::PORT_MANAGEMENT_TCP),
            (161, abi::PORT_MANAGEMENT_UDP),
            (443, abi::PORT_GUARDED | abi::PORT_MANAGEMENT_UDP),
            (65535, abi::PORT_GUARDED),
            (8443, 0),
        ] {
            assert_eq!(marks[port], mark, "{port}");
        }
    }

    #[test]
    fn knows_prefixes_as_the_tries_do() {
        for (text, bits, octets) in [
            ("192.0.2.7/32", 64, [0, 0, 0, 4, 192, 0, 2, 7]),
            ("192.0.2.7/24", 56, [0, 0, 0, 4, 192, 0, 2, 0]),
            ("0.0.0.0/0", 32, [0, 0, 0, 4, 0, 0, 0, 0]),
            ("::ffff:10.0.0.0/104", 40, [0, 0, 0, 4, 10, 0, 0, 0]),
            ("2001:db8::/32", 64, [0, 0, 0, 6, 0x20, 1, 0xd, 0xb8]),
            ("::/0", 32, [0, 0, 0, 6, 0, 0, 0, 0]),
        ] {
            let prefix = Prefix::from(&net(text));
            assert_eq!(prefix.bits, bits, "{text}");
            assert_eq!(prefix.data.map(u32::to_ne_bytes).concat()[..8], octets, "{text}");
        }
    }

    #[test]
    fn a_source_is_exempt_when_all_of_it_is() {
        let exempt =
            nets(&["10.0.0.0/8", "2001:db8::/32", "2001:db9::1/128", "::ffff:127.0.0.0/104"]);
        for (address, expected) in [
            ("10.1.2.3", true),
            ("11.1.2.3", false),
            ("127.0.0.1", true),
            ("2001:db8:5::1", true),
            ("2001:db9::1", false),
            ("fe80::1", true),
            ("ff02::1", true),
            ("::1", false),
        ] {
            let source = Source::from(address.parse::<IpAddr>().unwrap());
            assert_eq!(is_exempt(source, &exempt), expected, "{address}");
        }
    }

    #[test]
    fn no_ban_may_share_an_address_with_the_exempt() {
        let exempt = nets(&["10.1.0.0/16", "192.0.2.9/32", "2001:db8::1/128"]);
        for (text, by) in [
            ("10.0.0.0/8", Some("10.1.0.0/16")),
            ("10.1.2.0/24", Some("10.1.0.0/16")),
            ("10.2.0.0/16", None),
            ("192.0.2.0/24", Some("192.0.2.9/32")),
            ("::ffff:192.0.2.0/120", Some("192.0.2.9/32")),
            ("2001:db8::/48", Some("2001:db8::1/128")),
            ("2001:db8:1::/48", None),
            ("0.0.0.0/0", Some("10.1.0.0/16")),
        ] {
            assert_eq!(overlapping(net(text), &exempt), by.map(net), "{text}");
        }
    }

    #[test]
    fn says_what_is_left_of_a_limit() {
        let packets = Limit::new(10, 1_000_000_000, 20);
        let octets = Limit::octets(1 << 20, 2 << 20);
        let s = 1_000_000_000;
        for (quota, limit, full_at_ns, left_now) in [
            (Quota::Packets, packets, None, 20),
            (Quota::Packets, packets, Some(0), 20),
            (Quota::Packets, packets, Some(9 * s), 20),
            (Quota::Connections, packets, Some(11 * s), 10),
            (Quota::Packets, packets, Some(12 * s), 0),
            (Quota::Bytes, octets, None, 2 << 20),
            (Quota::Bytes, octets, Some(11 * s), 1 << 20),
            (Quota::Bytes, octets, Some(13 * s), 0),
        ] {
            assert_eq!(left(quota, &limit, full_at_ns, 10 * s), left_now, "{full_at_ns:?}");
        }
    }

    #[test]
    fn finds_the_longest_prefix_that_concerns_a_source() {
        let list = nets(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::1/128", "2001:db8::/32"]);
        for (address, found) in [
            ("10.1.2.3", Some("10.1.0.0/16")),
            ("10.2.2.3", Some("10.0.0.0/8")),
            ("2001:db8::7", Some("2001:db8::1/128")),
            ("2001:db8:0:1::7", Some("2001:db8::/32")),
            ("192.0.2.1", None),
        ] {
            let source = source_net(Source::from(address.parse::<IpAddr>().unwrap()));
            assert_eq!(longest_sharing(source, &list), found.map(net), "{address}");
        }
    }

    #[test]
    fn a_ban_lasts_as_long_as_the_longest_that_covers_it() {
        let ban = |expires_ns| abi::Ban { expires_ns, ..abi::Ban::default() };
        let bans = BTreeMap::from([
            (net("10.0.0.0/8"), ban(50)),
            (net("10.1.0.0/16"), ban(20)),
            (net("10.1.2.0/24"), ban(70)),
        ]);
        for (text, until_ns) in [
            ("10.0.0.0/8", Some(50)),
            ("10.1.0.0/16", Some(50)),
            ("10.1.2.0/24", Some(70)),
            ("11.0.0.0/8", None),
        ] {
            assert_eq!(banned_until_ns(&net(text), &bans), until_ns, "{text}");
        }
    }

    #[test]
    fn a_bit_stays_while_any_ban_needs_it() {
        let mut filter = BanFilter::new([70]);
        assert_eq!(filter.add(70), None);
        assert_eq!(filter.add(71), Some((1, 0b1100_0000)));
        assert_eq!(filter.remove(70), None);
        assert_eq!(filter.remove(70), Some((1, 0b1000_0000)));
        assert_eq!(filter.remove(70), None);
        assert_eq!(filter.words()[1], 0b1000_0000);
    }

    #[test]
    fn a_burst_outlasts_two_ticks() {
        for (per_s, ns_per_jiffy, least) in [
            (20_000, 4_000_000, 160),
            (20_000, 10_000_000, 400),
            (1, 10_000_000, 1),
            (u64::from(u32::MAX), 10_000_000, 85_899_346),
        ] {
            assert_eq!(least_burst(per_s, ns_per_jiffy), least, "{per_s}/s");
        }
    }

    fn some_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u32>(), 0u8..=32)
                .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from_bits(bits).into(), length)),
            (any::<u128>(), 0u8..=128)
                .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from_bits(bits).into(), length)),
        ]
        .prop_map(|net| net.unwrap())
    }

    proptest! {
        /// The filter may send an address to the trie in vain, but never keep it from there.
        #[test]
        fn the_filter_lets_every_covered_address_through(net in some_net(), host in any::<u128>()) {
            let covered = match net {
                IpNet::V4(net) => {
                    let mask = u32::from(net.hostmask());
                    IpAddr::V4(Ipv4Addr::from_bits(net.network().to_bits() | host as u32 & mask))
                }
                IpNet::V6(net) => {
                    let mask = u128::from(net.hostmask());
                    IpAddr::V6(Ipv6Addr::from_bits(net.network().to_bits() | host & mask))
                }
            };
            let place = abi::prefix_place(address(covered)) as usize;
            for (marks, mark) in [
                (prefix_filter(&[net], &[], []), abi::PREFIX_DENIED),
                (prefix_filter(&[], &[net], []), abi::PREFIX_EXEMPT),
                (prefix_filter(&[], &[], &[net]), abi::PREFIX_BANNED),
            ] {
                prop_assert_eq!(marks[place], mark);
                prop_assert!(marks.iter().all(|&other| other == 0 || other == mark));
            }
            prop_assert_eq!(Prefix::from(&net).net(), Some(plain(net)));
        }

        #[test]
        fn applying_the_writes_gives_what_was_wanted(
            wanted in prop::collection::btree_set(0u8..20, 0..20),
            present in prop::collection::btree_set(0u8..20, 0..20),
        ) {
            let mut result = present.clone();
            for write in entries(&wanted, &present) {
                match write {
                    Write::Insert(key) => prop_assert!(result.insert(key)),
                    Write::Remove(key) => prop_assert!(result.remove(&key)),
                }
            }
            prop_assert_eq!(result, wanted);
        }

        #[test]
        fn the_ban_filter_is_the_union_of_its_bans(
            changes in prop::collection::vec((any::<bool>(), 0u32..200), 0..100),
        ) {
            let mut filter = BanFilter::new([]);
            let mut bans = Vec::new();
            for (adds, bit) in changes {
                if adds {
                    bans.push(bit);
                    filter.add(bit);
                } else if let Some(index) = bans.iter().position(|&ban| ban == bit) {
                    bans.swap_remove(index);
                    filter.remove(bit);
                }
            }
            let anew = BanFilter::new(bans);
            prop_assert_eq!(filter.words(), anew.words());
        }
    }
}
