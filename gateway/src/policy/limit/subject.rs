//! Who is counted together.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::identity::{Identity, principal::Principal, token::Claims};

/// What requests have in common that share a bucket: `key` of a limit.
///
/// Nobody is left uncounted: a request without a tenant is counted for its client, one without a
/// client or a principal for its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The client: of the token, else the certificate's principal.
    ClientId,
    /// The certificate's principal, else the token's subject.
    Principal,
    /// The network that the client's address lies in.
    Source {
        /// Leading bits that make an IPv4 network.
        ipv4_prefix: u8,
        /// Leading bits that make an IPv6 network.
        ipv6_prefix: u8,
    },
    /// Whom the caller belongs to.
    Tenant,
    /// The route: everybody together.
    Route,
}

/// One address, and one customer's network.
const ADDRESS: (u8, u8) = (32, 64);

impl Key {
    /// An IPv4 address, an IPv6 /64.
    pub const SOURCE: Key = Key::Source { ipv4_prefix: ADDRESS.0, ipv6_prefix: ADDRESS.1 };

    /// Whether it needs nothing but the address.
    pub const fn is_source(self) -> bool {
        matches!(self, Key::Source { .. })
    }

    /// As it is written in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Key::ClientId => "client_id",
            Key::Principal => "principal",
            Key::Source { .. } => "source",
            Key::Tenant => "tenant",
            Key::Route => "route",
        }
    }

    /// Whom a request is counted for.
    pub fn subject<'a>(
        self,
        address: IpAddr,
        route: &'a str,
        identity: &'a Identity,
    ) -> Subject<'a> {
        let source = || network(address, ADDRESS);
        let named = |found: Option<(&'a str, &'a str)>, of: fn(&'a str, &'a str) -> Subject<'a>| {
            found.map_or_else(source, |(issuer, name)| of(issuer, name))
        };
        let of_client = |issuer, name| Subject::Client { issuer, name };
        match self {
            Key::ClientId => named(client(identity), of_client),
            Key::Principal => {
                named(principal(identity), |issuer, name| Subject::Principal { issuer, name })
            }
            Key::Tenant => match identity.tenant() {
                Some(tenant) => Subject::Tenant(tenant),
                None => named(client(identity), of_client),
            },
            Key::Source { ipv4_prefix, ipv6_prefix } => {
                network(address, (ipv4_prefix, ipv6_prefix))
            }
            Key::Route => Subject::Route(route),
        }
    }
}

/// The client and who says so: the issuer of its token, or nobody but the certificate. Two issuers
/// may each have a client of one name.
fn client(identity: &Identity) -> Option<(&str, &str)> {
    let of_token =
        identity.claims().and_then(|claims| Some((claims.issuer(), claims.client_id()?)));
    of_token.or_else(|| identity.principal().map(of_certificate))
}

/// The principal and who says so, as in [`client`].
pub(super) fn principal<'a>(identity: &'a Identity) -> Option<(&'a str, &'a str)> {
    let subject = |claims: &'a Claims| Some((claims.issuer(), claims.subject()?));
    identity.principal().map(of_certificate).or_else(|| identity.claims().and_then(subject))
}

fn of_certificate(principal: &Principal) -> (&str, &str) {
    ("", principal.name())
}

/// Whom a request is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject<'a> {
    /// A client.
    Client {
        /// Who issued its token; empty: named by its certificate.
        issuer: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A principal.
    Principal {
        /// Who issued its token; empty: named by its certificate.
        issuer: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A tenant.
    Tenant(&'a str),
    /// A network: its first address and how many bits of it count.
    Network(IpAddr, u8),
    /// A route.
    Route(&'a str),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Client { name, .. } => write!(f, "client {name}"),
            Subject::Principal { name, .. } => write!(f, "principal {name}"),
            Subject::Tenant(name) => write!(f, "tenant {name}"),
            Subject::Network(address, bits) => write!(f, "source {address}/{bits}"),
            Subject::Route(name) => write!(f, "route {name}"),
        }
    }
}

fn network<'a>(address: IpAddr, (ipv4_prefix, ipv6_prefix): (u8, u8)) -> Subject<'a> {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(ipv4_prefix.min(32))).unwrap_or(0);
            Subject::Network(Ipv4Addr::from_bits(address.to_bits() & mask).into(), ipv4_prefix)
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(ipv6_prefix.min(128))).unwrap_or(0);
            Subject::Network(Ipv6Addr::from_bits(address.to_bits() & mask).into(), ipv6_prefix)
        }
    }
}
