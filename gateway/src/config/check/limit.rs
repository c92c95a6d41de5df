//! `[[limit]]`: rates that say something, tiers that can fit, names that routes can name.

use std::collections::HashMap;

use super::{
    super::{
        file::{
            self, File,
            limit::{Limit as Written, Rates, Tier as WrittenTier},
        },
        problem::Place,
        schema,
        section::At,
        value::LimitKey,
    },
    Check, values,
};
use crate::policy::limit::{Key, Limit, OF_ROUTE_MAX, Rate, Tier, Unit};

impl Check<'_> {
    /// All limits.
    pub(super) fn limits(&self, file: &File) -> Option<Vec<Limit>> {
        let names = file.limits.iter().filter_map(|limit| limit.name.as_ref());
        self.unique("limit.name", names, String::clone);
        self.unused_limits(file);
        let limits: Vec<Option<Limit>> =
            file.limits.iter().map(|limit| self.limit(limit)).collect();
        limits.into_iter().collect()
    }

    fn limit(&self, written: &Written) -> Option<Limit> {
        let key = self.key(written);
        let rates = self.rates(&written.rates);
        let names = written.tiers.iter().filter_map(|tier| tier.name.as_ref());
        self.unique("limit.tier.name", names, String::clone);
        let tiers: Vec<Option<Tier>> =
            written.tiers.iter().map(|tier| self.tier(written, tier)).collect();
        Some(Limit {
            name: written.name.as_ref()?.value.as_str().into(),
            key: key?,
            rates: rates?,
            tiers: tiers.into_iter().collect::<Option<_>>()?,
            mode: written.mode.value,
            entries: written.entries.value,
            announce: written.announce.value,
        })
    }

    fn key(&self, written: &Written) -> Option<Key> {
        let key = written.key.as_ref()?;
        if key.value == LimitKey::Source {
            let Key::Source { ipv4_prefix, ipv6_prefix } = Key::SOURCE else { return None };
            let bits = |at: &Option<At<u8>>, default| at.as_ref().map_or(default, |at| at.value);
            return Some(Key::Source {
                ipv4_prefix: bits(&written.ipv4_prefix, ipv4_prefix),
                ipv6_prefix: bits(&written.ipv6_prefix, ipv6_prefix),
            });
        }
        for (name, prefix) in
            [("ipv4_prefix", &written.ipv4_prefix), ("ipv6_prefix", &written.ipv6_prefix)]
        {
            if let Some(prefix) = prefix {
                let text = format!(
                    "limit.{name} is about addresses, which this limit does not count by; take it \
                     out, or write key = \"source\""
                );
                self.contradiction(prefix.place, text);
            }
        }
        Some(match key.value {
            LimitKey::ClientId => Key::ClientId,
            LimitKey::Principal => Key::Principal,
            LimitKey::Tenant => Key::Tenant,
            LimitKey::Source | LimitKey::Route => Key::Route,
        })
    }

    /// The shortest unit first. `burst` is that rate's; each of the others holds its own number, so
    /// that it does not take from the shorter ones what they allow.
    fn rates(&self, written: &Rates) -> Option<Vec<Rate>> {
        let mut ordered: Vec<&At<(u32, Unit)>> = written.rates.as_ref()?.iter().collect();
        ordered.sort_by_key(|at| at.value.1);
        for pair in ordered.windows(2) {
            self.two_rates(pair[0], pair[1]);
        }
        let burst = written.burst.as_ref();
        for longer in ordered.iter().skip(1) {
            if let Some(burst) = burst
                && burst.value > longer.value.0
            {
                let text = format!(
                    "limit.burst is {}, more than \"{}/{}\" allows; write a smaller one",
                    burst.value,
                    longer.value.0,
                    longer.value.1.letter()
                );
                self.contradiction(burst.place, text);
            }
        }
        let rate = |(index, at): (usize, &&At<(u32, Unit)>)| {
            let (count, unit) = at.value;
            let burst = burst.filter(|_| index == 0).map_or(count, |burst| burst.value);
            Rate::new(count, unit, burst)
        };
        Some(ordered.iter().enumerate().map(rate).collect())
    }

    /// A longer rate says something only where the shorter one allows more.
    fn two_rates(&self, shorter: &At<(u32, Unit)>, longer: &At<(u32, Unit)>) {
        let (short_count, short) = shorter.value;
        let (long_count, long) = longer.value;
        if short == long {
            let letter = long.letter();
            let text = format!(
                "limit.rates has two rates for each /{letter}, and the smaller one always holds; \
                 take the other out"
            );
            self.contradiction(longer.place.max(shorter.place), text);
            return;
        }
        let at_most = u64::from(short_count) * u64::from(long.seconds() / short.seconds());
        if u64::from(long_count) >= at_most {
            let text = format!(
                "limit.rates has {long_count}/{}, which is never reached at {short_count}/{}; take \
                 it out or write less than {at_most}",
                long.letter(),
                short.letter()
            );
            self.report.warning(longer.place, text);
        }
    }

    fn tier(&self, limit: &Written, written: &WrittenTier) -> Option<Tier> {
        let rates = self.rates(&written.rates);
        let by_source = limit.key.as_ref().is_some_and(|key| key.value == LimitKey::Source);
        let lists = [
            ("client_ids", written.client_ids.as_ref().map(|list| (list.place, list.value.len()))),
            ("principals", written.principals.as_ref().map(|list| (list.place, list.value.len()))),
            ("roles", written.roles.as_ref().map(|list| (list.place, list.value.len()))),
            ("tenants", written.tenants.as_ref().map(|list| (list.place, list.value.len()))),
        ];
        for (name, place) in lists
            .iter()
            .filter_map(|(name, list)| Some((name, (*list)?)))
            .filter_map(|(name, (place, len))| (len > 0).then_some((name, place)))
        {
            if by_source {
                let text = format!(
                    "limit.tier.{name} is about who asks, but the limit counts by source, before \
                     that is known; write sources"
                );
                self.contradiction(place, text);
            }
        }
        let tier = Tier {
            name: written.name.as_ref()?.value.as_str().into(),
            client_ids: values(written.client_ids.as_ref()?),
            principals: values(written.principals.as_ref()?),
            roles: values(written.roles.as_ref()?),
            tenants: values(written.tenants.as_ref()?),
            sources: values(written.sources.as_ref()?),
            rates: rates?,
        };
        if tier.client_ids.is_empty()
            && tier.principals.is_empty()
            && tier.roles.is_empty()
            && tier.tenants.is_empty()
            && tier.sources.is_empty()
        {
            let text = "[[limit.tier]] says nothing of whom it is for, so it would be for \
                        everybody; add client_ids, principals, roles, tenants or sources";
            self.contradiction(written.place, text);
        }
        Some(tier)
    }

    /// The limits of a route, as indices.
    pub(super) fn limits_of(&self, route: &file::Route, file: &File) -> Option<Vec<usize>> {
        let written = route.limits.as_ref()?;
        if let Some(more) = written.get(OF_ROUTE_MAX) {
            let text = format!(
                "route.limits has more than {OF_ROUTE_MAX} entries; join some of their rates in one \
                 [[limit]]"
            );
            self.contradiction(more.place, text);
        }
        let index: HashMap<&str, usize> = file
            .limits
            .iter()
            .enumerate()
            .filter_map(|(index, limit)| Some((limit.name.as_ref()?.value.as_str(), index)))
            .collect();
        // One that has no name, or a bad one, may be the one that is meant.
        let all_named = file.limits.iter().all(|limit| limit.name.is_some());
        let find = |name: &At<String>| {
            let found = index.get(name.value.as_str()).copied();
            if found.is_none() && all_named {
                self.no_limit(name, index.keys().copied().collect());
            }
            found
        };
        let found: Vec<Option<usize>> = written.iter().map(find).collect();
        found.into_iter().collect()
    }

    fn no_limit(&self, name: &At<String>, mut names: Vec<&str>) {
        names.sort_unstable();
        let advice = match schema::nearest(&name.value, names) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("add a [[limit]] with name = {:?}", name.value),
        };
        let text = format!("route.limits has {:?}, which is no [[limit]]; {advice}", name.value);
        self.contradiction(name.place, text);
    }

    fn unused_limits(&self, file: &File) {
        // A route that could not be read may be the one that uses it.
        if file.routes.iter().any(|route| route.limits.is_none()) {
            return;
        }
        let used = |name: &String| {
            let named = file.routes.iter().flat_map(|route| route.limits.iter().flatten());
            named.into_iter().any(|at| at.value == *name)
        };
        let unused = |limit: &&Written| limit.name.as_ref().is_some_and(|name| !used(&name.value));
        for limit in file.limits.iter().filter(unused) {
            self.unused_limit(limit.place);
        }
    }

    fn unused_limit(&self, place: Place) {
        let text = "no route names this [[limit]], so it limits nothing; add its name to the limits \
                    of a [[route]], or take it out";
        self.report.warning(place, text);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::fake::{Fake, problem_lines},
        *,
    };

    fn problems(text: &str) -> Vec<String> {
        problem_lines(&Fake::new().load(text).unwrap_err())
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_what_to_do() {
        let base = "[[limit]]\nname = \"a\"\n";
        for (lines, expected) in [
            ("key = \"client\"\nrates = [\"1/s\"]", "3:7: limit.key is \"client\"; did you mean"),
            ("rates = [\"1/s\"]", "1:1: [[limit]] has no key; add it"),
            ("key = \"tenant\"", "1:1: [[limit]] has no rates; add it"),
            ("key = \"tenant\"\nrates = []", "4:9: limit.rates is empty; write at least one"),
            ("key = \"tenant\"\nrates = [\"0/s\"]", "4:10: limit.rates has \"0/s\", which would"),
            ("key = \"tenant\"\nrates = [\"9/d\"]", "4:10: limit.rates has \"9/d\", which is no"),
            (
                "key = \"tenant\"\nrates = [\"9/s\", \"8/s\"]",
                "4:17: limit.rates has two rates for each /s",
            ),
            (
                "key = \"tenant\"\nrates = [\"9/s\", \"10/h\"]\nburst = 11",
                "5:9: limit.burst is 11, more than \"10/h\" allows",
            ),
            ("key = \"tenant\"\nrates = [\"9/s\"]\nburst = 0", "5:9: limit.burst is 0; write"),
            (
                "key = \"tenant\"\nrates = [\"9/s\"]\nipv4_prefix = 24",
                "5:15: limit.ipv4_prefix is about addresses",
            ),
            (
                "key = \"tenant\"\nrates = [\"9/s\"]\nmode = \"shadow\"",
                "5:8: limit.mode is \"shadow\"; write",
            ),
            (
                "key = \"source\"\nrates = [\"9/s\"]\n[[limit.tier]]\nname = \"x\"\n\
                 roles = [\"gold\"]\nrates = [\"1/s\"]",
                "7:9: limit.tier.roles is about who asks",
            ),
            (
                "key = \"tenant\"\nrates = [\"9/s\"]\n[[limit.tier]]\nname = \"x\"\n\
                 rates = [\"1/s\"]",
                "5:1: [[limit.tier]] says nothing of whom it is for",
            ),
            (
                "key = \"tenant\"\nrates = [\"9/s\"]\n[[limit]]\nname = \"a\"",
                "6:8: limit.name a is taken already in",
            ),
            (
                "key = \"tenant\"\nrates = [\"9/s\"]\n[[route]]\nname = \"r\"\nlimits = [\"b\"]",
                "7:11: route.limits has \"b\", which is no [[limit]]; did you mean \"a\"?",
            ),
        ] {
            let found = problems(&format!("{base}{lines}\n"));
            assert!(
                found.iter().any(|problem| problem.starts_with(expected)),
                "{lines}\nwanted {expected}\nfound {found:#?}"
            );
        }
    }

    #[test]
    fn burst_is_that_of_the_shortest_rate() {
        let report = super::super::super::problem::Report::default();
        report.begin_file("main.toml".into());
        let files = Fake::new();
        let check = Check { base: std::path::Path::new("/"), files: &files, report: &report };
        let place = Place { file: 0, line: 1, column: 1 };
        let at = |value| At { value, place };
        let rates = |burst: Option<u32>| {
            let written = Rates {
                rates: Some(vec![at((10_000, Unit::Hour)), at((100, Unit::Second))]),
                burst: burst.map(|value| At { value, place }),
            };
            let rates = check.rates(&written).unwrap();
            rates.iter().map(|rate| (rate.to_string(), rate.burst())).collect::<Vec<_>>()
        };
        let named = |first| vec![("100/s".to_owned(), first), ("10000/h".to_owned(), 10_000)];
        assert_eq!(rates(None), named(100));
        assert_eq!(rates(Some(250)), named(250));
    }
}
