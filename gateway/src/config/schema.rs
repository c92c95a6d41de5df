//! Every table and key there is, with an example of each: what unknown keys are compared with, and
//! what a message shows when something is missing.

/// One table of the configuration.
#[derive(Debug)]
pub(super) struct Known {
    /// Path from the root, as in `listener.tls`; empty for the root itself.
    pub(super) path: &'static str,
    /// As people write it, as in `[listener.tls]`; empty for the root.
    pub(super) header: &'static str,
    /// Its keys, each with an example of its value; tables have none.
    pub(super) keys: &'static [(&'static str, &'static str)],
}

impl Known {
    /// Whether this key stands in this table.
    pub(super) fn has(&self, key: &str) -> bool {
        self.example(key).is_some()
    }

    /// The example of a key.
    pub(super) fn example(&self, key: &str) -> Option<&'static str> {
        self.keys.iter().find(|(name, _)| *name == key).map(|(_, example)| *example)
    }
}

/// The tables in the order of the documentation. Those that this release refuses as a whole are
/// named in the root only.
pub(super) const TABLES: &[Known] = &[
    Known {
        path: "",
        header: "",
        keys: &[
            ("server", ""),
            ("listener", ""),
            ("issuer", ""),
            ("token_cache", ""),
            ("revocation", ""),
            ("identity", ""),
            ("upstream", ""),
            ("route", ""),
            ("limit", ""),
            ("xdp", ""),
            ("clients", ""),
            ("bans", ""),
            ("host", ""),
            ("admin", ""),
            ("log", ""),
        ],
    },
    Known {
        path: "server",
        header: "[server]",
        keys: &[
            ("workers", "0"),
            ("drain_timeout", "\"30s\""),
            ("drain_delay", "\"0s\""),
            ("max_connections", "100_000"),
            ("max_connections_per_source", "1_000"),
            ("backlog", "4_096"),
            ("cpu_steering", "false"),
        ],
    },
    Known {
        path: "listener",
        header: "[[listener]]",
        keys: &[
            ("name", "\"edge\""),
            ("address", "\"[::]:8443\""),
            ("protocols", "[\"h2\", \"http/1.1\"]"),
            ("proxy_protocol", "\"off\""),
            ("trusted_proxies", "[]"),
            ("tls", ""),
        ],
    },
    Known {
        path: "listener.tls",
        header: "[listener.tls]",
        keys: &[
            ("certificate", "\"tls/server.pem\""),
            ("private_key", "\"tls/server.key\""),
            ("client_auth", "\"required\""),
            ("client_ca", "\"tls/clients-ca.pem\""),
            ("client_crl", "[\"tls/clients.crl\"]"),
            ("crl_expired", "\"deny\""),
            ("max_chain_depth", "2"),
            ("retired_ca", "[\"tls/old-ca.pem\"]"),
            ("sessions", "20_000"),
            ("sni", ""),
        ],
    },
    Known {
        path: "listener.tls.sni",
        header: "[[listener.tls.sni]]",
        keys: &[
            ("names", "[\"api.example.com\", \"*.example.org\"]"),
            ("certificate", "\"tls/api.pem\""),
            ("private_key", "\"tls/api.key\""),
            ("client_auth", "\"required\""),
            ("client_ca", "\"tls/partners-ca.pem\""),
            ("client_crl", "[\"tls/partners.crl\"]"),
            ("crl_expired", "\"deny\""),
            ("max_chain_depth", "2"),
            ("retired_ca", "[\"tls/old-ca.pem\"]"),
        ],
    },
    Known {
        path: "issuer",
        header: "[[issuer]]",
        keys: &[
            ("name", "\"corp\""),
            ("issuer", "\"https://idp.example.com\""),
            ("audiences", "[\"orders-api\"]"),
            ("algorithms", "[\"RS256\", \"ES256\"]"),
            ("jwks_file", "\"jwks.json\""),
            ("jwks_url", "\"https://idp.example.com/keys\""),
            ("discovery_url", "\"https://idp.example.com/.well-known/openid-configuration\""),
            ("ca", "\"idp-ca.pem\""),
            ("addresses", "[\"192.0.2.1:443\"]"),
            ("refresh", "\"15m\""),
            ("cooldown", "\"30s\""),
            ("leeway", "\"60s\""),
            ("max_lifetime", "\"1h\""),
            ("client_id_claims", "[\"client_id\", \"azp\", \"sub\"]"),
            ("idp_lost", "\"available\""),
            ("max_stale", "\"24h\""),
        ],
    },
    Known {
        path: "token_cache",
        header: "[token_cache]",
        keys: &[("entries", "65_536"), ("ttl", "\"60s\"")],
    },
    Known {
        path: "identity",
        header: "[[identity]]",
        keys: &[
            ("from", "\"san_uri\""),
            ("match", "\"spiffe://example.org/*\""),
            ("principal", "\"{value}\""),
            ("roles", "[\"service\"]"),
            ("tenant", "\"acme\""),
        ],
    },
    Known {
        path: "revocation",
        header: "[revocation]",
        keys: &[("tokens_file", "\"revoked.jti\""), ("store", "\"\"")],
    },
    Known {
        path: "upstream",
        header: "[[upstream]]",
        keys: &[
            ("name", "\"orders\""),
            ("servers", "[\"http://127.0.0.1:9001\"]"),
            ("protocol", "\"auto\""),
            ("balance", "\"round_robin\""),
            ("connect_timeout", "\"2s\""),
            ("response_timeout", "\"30s\""),
            ("idle_timeout", "\"5m\""),
            ("max_requests", "1_000"),
            ("max_waiting", "1_000"),
            ("health", ""),
            ("tls", ""),
        ],
    },
    Known {
        path: "upstream.health",
        header: "[upstream.health]",
        keys: &[
            ("path", "\"/health\""),
            ("interval", "\"5s\""),
            ("timeout", "\"2s\""),
            ("healthy", "2"),
            ("unhealthy", "3"),
        ],
    },
    Known {
        path: "upstream.tls",
        header: "[upstream.tls]",
        keys: &[
            ("ca", "\"system\""),
            ("certificate", "\"tls/upstream.pem\""),
            ("private_key", "\"tls/upstream.key\""),
            ("server_name", "\"orders.internal\""),
        ],
    },
    Known {
        path: "route",
        header: "[[route]]",
        keys: &[
            ("name", "\"orders\""),
            ("hosts", "[\"api.example.com\"]"),
            ("path", "\"/orders\""),
            ("methods", "[\"GET\", \"POST\"]"),
            ("upstream", "\"orders\""),
            ("require", "[\"certificate\", \"token\"]"),
            ("scopes", "[\"read:orders\"]"),
            ("roles", "[\"admin\"]"),
            ("principals", "[\"spiffe://example.org/orders/*\"]"),
            ("sources", "[\"192.0.2.0/24\"]"),
            ("hours", "\"Mon-Fri 08:00-18:00 Europe/Berlin\""),
            ("pass_authorization", "false"),
            ("bound_token", "false"),
            ("priority", "\"normal\""),
            ("limits", "[]"),
        ],
    },
    Known {
        path: "limit",
        header: "[[limit]]",
        keys: &[
            ("name", "\"per-client\""),
            ("key", "\"client_id\""),
            ("rates", "[\"100/s\", \"10000/h\"]"),
            ("burst", "100"),
            ("mode", "\"enforce\""),
            ("announce", "true"),
            ("entries", "65_536"),
            ("ipv4_prefix", "32"),
            ("ipv6_prefix", "64"),
            ("tier", ""),
        ],
    },
    Known {
        path: "limit.tier",
        header: "[[limit.tier]]",
        keys: &[
            ("name", "\"gold\""),
            ("client_ids", "[\"billing-*\"]"),
            ("principals", "[\"spiffe://example.org/batch/*\"]"),
            ("roles", "[\"gold\"]"),
            ("tenants", "[\"acme\"]"),
            ("sources", "[\"192.0.2.0/24\"]"),
            ("rates", "[\"1000/s\"]"),
            ("burst", "2000"),
        ],
    },
    Known {
        path: "xdp",
        header: "[xdp]",
        keys: &[
            ("interfaces", "[\"eth0\"]"),
            ("mode", "\"auto\""),
            ("enforce", "false"),
            ("ports", "[8443]"),
            ("management", "[\"22/tcp\"]"),
            ("allow", "[\"192.0.2.0/24\"]"),
            ("deny", "[\"192.0.2.0/24\"]"),
            ("ipv6_prefix", "64"),
            ("packets", "{ rate = \"20000/s\", burst = 40000 }"),
            ("connections", "{ rate = \"100/s\", burst = 200 }"),
            ("bytes", "{ rate = \"50MiB/s\", burst = \"64MiB\" }"),
            ("new_sources", "{ rate = \"5000/s\", burst = 20000 }"),
            ("max_sources", "1_000_000"),
            ("pin", "\"/sys/fs/bpf/portcullis\""),
        ],
    },
    Known {
        path: "xdp.packets",
        header: "[xdp.packets]",
        keys: &[("rate", "\"20000/s\""), ("burst", "40000")],
    },
    Known {
        path: "xdp.connections",
        header: "[xdp.connections]",
        keys: &[("rate", "\"100/s\""), ("burst", "200")],
    },
    Known {
        path: "xdp.bytes",
        header: "[xdp.bytes]",
        keys: &[("rate", "\"50MiB/s\""), ("burst", "\"64MiB\"")],
    },
    Known {
        path: "xdp.new_sources",
        header: "[xdp.new_sources]",
        keys: &[("rate", "\"5000/s\""), ("burst", "20000")],
    },
    Known {
        path: "clients",
        header: "[clients]",
        keys: &[
            ("proxy_header", "\"3s\""),
            ("handshake", "\"5s\""),
            ("head", "\"10s\""),
            ("idle", "\"75s\""),
            ("body", "{ grace = \"15s\", rate = \"1KiB/s\" }"),
            ("answer", "{ grace = \"60s\", rate = \"1KiB/s\" }"),
            ("request", "\"0s\""),
            ("head_size", "\"32KiB\""),
            ("fields", "100"),
            ("streams", "128"),
            ("control_frames", "{ rate = \"1000/s\", burst = 2000 }"),
            ("resets", "{ rate = \"50/s\", burst = 100 }"),
        ],
    },
    Known {
        path: "clients.body",
        header: "[clients.body]",
        keys: &[("grace", "\"15s\""), ("rate", "\"1KiB/s\"")],
    },
    Known {
        path: "clients.answer",
        header: "[clients.answer]",
        keys: &[("grace", "\"60s\""), ("rate", "\"1KiB/s\"")],
    },
    Known {
        path: "clients.control_frames",
        header: "[clients.control_frames]",
        keys: &[("rate", "\"1000/s\""), ("burst", "2000")],
    },
    Known {
        path: "clients.resets",
        header: "[clients.resets]",
        keys: &[("rate", "\"50/s\""), ("burst", "100")],
    },
    Known {
        path: "bans",
        header: "[bans]",
        keys: &[
            ("enabled", "true"),
            ("threshold", "20"),
            ("half_life", "\"30s\""),
            ("ladder", "[\"1m\", \"10m\", \"1h\", \"24h\"]"),
            ("never", "[\"192.0.2.0/24\"]"),
        ],
    },
    Known {
        path: "host",
        header: "[host]",
        keys: &[
            ("cpu_temperature", "{ warn = 80, critical = 95 }"),
            ("clock", "{ warn = \"500ms\", critical = \"30s\" }"),
            ("chrony", "\"127.0.0.1:323\""),
            ("sysfs", "\"/sys\""),
        ],
    },
    Known {
        path: "host.cpu_temperature",
        header: "[host.cpu_temperature]",
        keys: &[("warn", "80"), ("critical", "95")],
    },
    Known {
        path: "host.clock",
        header: "[host.clock]",
        keys: &[("warn", "\"500ms\""), ("critical", "\"30s\"")],
    },
    Known {
        path: "admin",
        header: "[admin]",
        keys: &[
            ("socket", "\"/run/portcullis/admin.sock\""),
            ("group", "\"portcullis\""),
            ("metrics", "\"127.0.0.1:9090\""),
            ("allow", "[\"127.0.0.0/8\", \"::1/128\"]"),
        ],
    },
    Known { path: "log", header: "[log]", keys: &[("format", "\"json\""), ("access", "true")] },
];

/// The table of a path; every path used in `file` is one, which a test makes sure of.
pub(super) fn table(path: &str) -> &'static Known {
    TABLES.iter().find(|known| known.path == path).unwrap_or(&TABLES[0])
}

/// Where a key that does not stand in `here` does, as the end of a sentence; `None` if nowhere.
pub(super) fn home(key: &str, here: &Known) -> Option<String> {
    // A table has a header of its own; it says more than the table around it.
    let last = |path: &str| path.rsplit('.').next().is_some_and(|last| last == key);
    let tables = TABLES.iter().filter(|known| last(known.path));
    let tables: Vec<&str> = tables.map(|known| known.header).collect();
    if !tables.is_empty() {
        return Some(format!("write it as {}", tables.join(" or ")));
    }
    let elsewhere = TABLES.iter().filter(|known| known.path != here.path && known.has(key));
    let elsewhere: Vec<&str> = elsewhere.map(|known| known.header).collect();
    (!elsewhere.is_empty()).then(|| format!("move it to {}", elsewhere.join(" or ")))
}

/// Of `candidates`, the one that was probably meant: at most a third of its letters differ.
pub(super) fn nearest<'c>(
    written: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    // No name is near this length, and the work grows with it.
    if written.len() > 64 {
        return None;
    }
    let written = written.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&written, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_letters_that_differ() {
        for (a, b, expected) in [
            ("", "", 0),
            ("mode", "mode", 0),
            ("mode", "mod", 1),
            ("enfore", "enforce", 1),
            ("protocls", "protocols", 1),
            ("hots", "host", 1), // neighbours swapped
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn names_what_was_probably_meant() {
        let keys = ["workers", "drain_timeout", "max_connections", "ttl"];
        for (written, expected) in [
            ("worker", Some("workers")),
            ("Workers", Some("workers")),
            ("drain-timeout", Some("drain_timeout")),
            ("drian_timeuot", Some("drain_timeout")),
            ("max_conn", None),
            ("tt", Some("ttl")),
            ("tea", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, keys), expected, "{written}");
        }
        assert_eq!(nearest(&"w".repeat(100_000), keys), None);
    }

    #[test]
    fn knows_where_a_misplaced_key_belongs() {
        for (key, here, expected) in [
            ("workers", "", Some("move it to [server]")),
            ("sessions", "listener", Some("move it to [listener.tls]")),
            ("names", "listener", Some("move it to [[listener.tls.sni]]")),
            ("tls", "", Some("write it as [listener.tls] or [upstream.tls]")),
            ("packets", "bans", Some("write it as [xdp.packets]")),
            ("allow", "bans", Some("move it to [xdp] or [admin]")),
            ("xdp", "server", Some("write it as [xdp]")),
            ("nonsense", "server", None),
        ] {
            assert_eq!(home(key, table(here)).as_deref(), expected, "{key} in [{here}]");
        }
    }

    #[test]
    fn no_table_and_no_key_stands_twice() {
        let mut paths: Vec<&str> = TABLES.iter().map(|known| known.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), TABLES.len());
        for known in TABLES {
            let mut keys: Vec<&str> = known.keys.iter().map(|(key, _)| *key).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), known.keys.len(), "{}", known.header);
        }
    }
}
