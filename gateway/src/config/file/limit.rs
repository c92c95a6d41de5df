//! `[[limit]]` and `[[limit.tier]]`.

use ipnet::IpNet;

use super::super::{
    problem::Place,
    section::{At, Section, boolean, integer, text},
    value::{self, LimitKey},
};
use crate::{
    identity::pattern::Pattern,
    policy::limit::{Mode, Unit},
};

/// Consumers remembered at once where nothing is written: 4 MiB, and more than most sites have.
const ENTRIES: usize = 65_536;

/// `[[limit]]`.
#[derive(Debug)]
pub(in super::super) struct Limit {
    pub(in super::super) place: Place,
    pub(in super::super) name: Option<At<String>>,
    pub(in super::super) key: Option<At<LimitKey>>,
    pub(in super::super) ipv4_prefix: Option<At<u8>>,
    pub(in super::super) ipv6_prefix: Option<At<u8>>,
    pub(in super::super) rates: Rates,
    pub(in super::super) mode: At<Mode>,
    pub(in super::super) entries: At<usize>,
    pub(in super::super) announce: At<bool>,
    pub(in super::super) tiers: Vec<Tier>,
}

/// `rates` and `burst`.
#[derive(Debug)]
pub(in super::super) struct Rates {
    pub(in super::super) rates: Option<Vec<At<(u32, Unit)>>>,
    pub(in super::super) burst: Option<At<u32>>,
}

/// `[[limit.tier]]`.
#[derive(Debug)]
pub(in super::super) struct Tier {
    pub(in super::super) place: Place,
    pub(in super::super) name: Option<At<String>>,
    pub(in super::super) client_ids: Option<At<Vec<At<Pattern>>>>,
    pub(in super::super) principals: Option<At<Vec<At<Pattern>>>>,
    pub(in super::super) roles: Option<At<Vec<At<String>>>>,
    pub(in super::super) tenants: Option<At<Vec<At<String>>>>,
    pub(in super::super) sources: Option<At<Vec<At<IpNet>>>>,
    pub(in super::super) rates: Rates,
}

/// All limits.
pub(super) fn limits(root: &Section<'_>) -> Vec<Limit> {
    root.children("limit", "limit").iter().map(limit).collect()
}

fn limit(section: &Section<'_>) -> Limit {
    Limit {
        place: section.place(),
        name: section.must("name", text(value::name)),
        key: section.must("key", text(value::limit_key)),
        ipv4_prefix: section.maybe("ipv4_prefix", integer(8..=32, "bits of an IPv4 address")),
        ipv6_prefix: section.maybe("ipv6_prefix", integer(16..=128, "bits of an IPv6 address")),
        rates: rates(section),
        mode: section.or("mode", text(value::limit_mode), Mode::Enforce),
        entries: section.or(
            "entries",
            integer(16..=4_194_304, "each takes 64 octets of memory"),
            ENTRIES,
        ),
        announce: section.or("announce", boolean, true),
        tiers: section.children("tier", "limit.tier").iter().map(tier).collect(),
    }
}

fn rates(section: &Section<'_>) -> Rates {
    Rates {
        rates: section.must_fill("rates", text(value::request_rate)),
        burst: section
            .maybe("burst", integer(1..=10_000_000, "requests admitted at once after a pause")),
    }
}

fn tier(section: &Section<'_>) -> Tier {
    Tier {
        place: section.place(),
        name: section.must("name", text(value::name)),
        client_ids: section.list_or_empty("client_ids", text(value::pattern)),
        principals: section.list_or_empty("principals", text(value::pattern)),
        roles: section.list_or_empty("roles", text(value::role)),
        tenants: section.list_or_empty("tenants", text(value::words)),
        sources: section.list_or_empty("sources", text(value::network)),
        rates: rates(section),
    }
}

/// The limits that a route names.
pub(super) fn of_route(section: &Section<'_>) -> Option<Vec<At<String>>> {
    section.list_or_empty("limits", text(value::name)).map(|list| list.value)
}
