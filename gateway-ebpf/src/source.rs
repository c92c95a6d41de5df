//! Who a frame or a connection came from, as precisely as it makes sense to hold someone to it.

/// The unit that buckets and bans are kept for: one IPv4 address, or one IPv6 /64.
///
/// An IPv6 client chooses the lower half of its address freely, so a limit on anything longer
/// than a /64 limits nobody (RFC 4291 section 2.5.1, RFC 8981). Both families fit one word: IPv6
/// is the upper half of the address, IPv4 is tagged by an upper half that no IPv6 source can have
/// (ffff:ffff::/32 lies in the multicast block, RFC 4291 section 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Source(u64);

/// The upper half of the word of every IPv4 source.
const IPV4_TAG: u64 = 0xffff_ffff;
/// The upper sixteen bits of the word of every [`Network`]: of the multicast block too, and not
/// those of the tag above.
const NETWORK_TAG: u64 = 0xfffe;

/// An IPv6 /48, what a site is given (RFC 6177): the 65,536 sources in it share buckets, besides
/// those that each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(u64);

impl Network {
    /// As it stands where sources do, which no source's word is.
    #[inline(always)]
    pub const fn word(self) -> Source {
        Source(self.0)
    }
}

impl Source {
    /// The source of an IPv4 address given as a number (192.0.2.7 is 0xc000_0207).
    #[inline(always)]
    pub const fn ipv4(address: u32) -> Self {
        Self(IPV4_TAG << 32 | address as u64)
    }

    /// The source of an IPv6 address given by its upper 64 bits.
    #[inline(always)]
    pub const fn ipv6(upper: u64) -> Self {
        Self(upper)
    }

    /// The /48 that an IPv6 source lies in. An IPv4 source lies in none: its neighbours are other
    /// people.
    #[inline(always)]
    pub const fn network(self) -> Option<Network> {
        if self.0 >> 32 == IPV4_TAG {
            None
        } else {
            Some(Network(NETWORK_TAG << 48 | self.0 >> 16))
        }
    }

    /// The word that kernel maps are keyed by.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The source that [`Source::word`] was taken from.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

#[cfg(not(target_arch = "bpf"))]
mod user {
    use core::{
        fmt,
        net::{IpAddr, Ipv4Addr, Ipv6Addr},
    };

    use super::{IPV4_TAG, NETWORK_TAG, Source};

    impl Source {
        /// The first address of the source: the address itself, or the /64's first.
        pub const fn address(self) -> IpAddr {
            if self.0 >> 32 == IPV4_TAG {
                IpAddr::V4(Ipv4Addr::from_bits(self.0 as u32))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits((self.0 as u128) << 64))
            }
        }

        /// The first address of the IPv6 /48 that a [`super::Network`]'s word stands for; `None`
        /// for what is a source itself.
        pub const fn as_network(self) -> Option<Ipv6Addr> {
            if self.0 >> 48 == NETWORK_TAG {
                Some(Ipv6Addr::from_bits((self.0 as u128) << 80))
            } else {
                None
            }
        }

        /// The length in bits of the prefix that the source is: 32 or 64.
        pub const fn prefix(self) -> u8 {
            if self.0 >> 32 == IPV4_TAG { 32 } else { 64 }
        }
    }

    impl From<Ipv4Addr> for Source {
        fn from(address: Ipv4Addr) -> Self {
            Self::ipv4(address.to_bits())
        }
    }

    /// A socket that serves both families reports IPv4 peers as ::ffff:a.b.c.d (RFC 4291 section
    /// 2.5.5.2); on the wire, and so in the kernel's maps, they are IPv4.
    impl From<Ipv6Addr> for Source {
        fn from(address: Ipv6Addr) -> Self {
            match address.to_ipv4_mapped() {
                Some(mapped) => Self::from(mapped),
                None => Self::ipv6((address.to_bits() >> 64) as u64),
            }
        }
    }

    impl From<IpAddr> for Source {
        fn from(address: IpAddr) -> Self {
            match address {
                IpAddr::V4(address) => Self::from(address),
                IpAddr::V6(address) => Self::from(address),
            }
        }
    }

    /// In the notation of prefixes: `192.0.2.7/32`, `2001:db8:1:2::/64`.
    impl fmt::Display for Source {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "{}/{}", self.address(), self.prefix())
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{net::IpAddr, string::ToString};

    use super::Source;

    #[test]
    fn is_an_ipv4_address_or_an_ipv6_network() {
        for (address, shown) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("255.255.255.255", "255.255.255.255/32"),
            ("0.0.0.0", "0.0.0.0/32"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8::1", "2001:db8::/64"),
            ("::1", "::/64"),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            let source = Source::from(parsed);
            assert_eq!(source.to_string(), shown, "{address}");
            assert_eq!(Source::from_word(source.word()), source, "{address}");
            assert_eq!(Source::from(source.address()), source, "{address}");
        }
    }

    #[test]
    fn a_network_is_the_same_for_all_its_sources_and_no_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        let network = |text: &str| source(text).network();
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:ffff::1"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:2:2::1"));
        assert_eq!(network("192.0.2.7"), None);
        assert_eq!(network("255.255.255.255"), None);
        let word = network("2001:db8:1:2::1").unwrap().word().word();
        assert_eq!(word, 0xfffe_2001_0db8_0001);
        let first = Source::from_word(word).as_network().unwrap();
        assert_eq!(first.to_string(), "2001:db8:1::");
        assert_eq!(source("2001:db8:1:2::1").as_network(), None);
        assert_eq!(source("192.0.2.7").as_network(), None);
    }

    #[test]
    fn keeps_two_addresses_of_one_network_together_and_two_networks_apart() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_ne!(source("192.0.2.7"), source("192.0.2.8"));
    }
}
