//! The configuration as it is carried out: what is written, and every default beside it, as TOML that
//! could be the configuration itself.
//!
//! The defaults stand here once more, as people write them. A test loads what is printed and finds the
//! same configuration, so neither list can be wrong alone; another one asks of every key whether it has
//! a default, so none can be forgotten.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::{
    schema::{Known, TABLES},
    tree::{self, Node, Table, Value},
};

/// When a key has a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Wherever its table is.
    Always,
    /// Beside this key, without which it would say nothing, or be refused.
    With(&'static str),
    /// Where keys are fetched.
    Fetched,
    /// Where keys are fetched, and old ones serve while the issuer is away.
    Kept,
    /// Where addresses are counted.
    BySource,
}

impl When {
    fn holds(self, table: &Table) -> bool {
        let is = |key: &str, text: &str| {
            table
                .get(key)
                .is_some_and(|entry| matches!(&entry.node.value, Value::String(is) if is == text))
        };
        let is_fetched =
            || ["jwks_url", "discovery_url"].iter().any(|key| table.contains_key(*key));
        match self {
            Always => true,
            With(key) => table.contains_key(key),
            Fetched => is_fetched(),
            Kept => is_fetched() && !is("idp_lost", "strict"),
            BySource => is("key", "source"),
        }
    }
}

use When::{Always, BySource, Fetched, Kept, With};

/// A key, what holds where it is not written, and in which tables.
type Unwritten = (&'static str, &'static str, When);

/// Of each table the keys that need not be written, with what holds then, as TOML.
const DEFAULTS: &[(&str, &[Unwritten])] = &[
    (
        "server",
        &[
            ("workers", "0", Always),
            ("drain_timeout", "\"30s\"", Always),
            ("drain_delay", "\"0s\"", Always),
            ("max_connections", "100000", Always),
            ("max_connections_per_source", "1000", Always),
            ("backlog", "4096", Always),
            ("cpu_steering", "false", Always),
        ],
    ),
    (
        "listener",
        &[
            ("protocols", "[\"h2\", \"http/1.1\"]", Always),
            ("proxy_protocol", "\"off\"", Always),
            ("trusted_proxies", "[]", Always),
        ],
    ),
    (
        "listener.tls",
        &[
            ("client_auth", "\"required\"", Always),
            ("client_crl", "[]", With("client_ca")),
            ("crl_expired", "\"deny\"", With("client_ca")),
            ("max_chain_depth", "2", With("client_ca")),
            ("retired_ca", "[]", With("client_ca")),
            ("sessions", "20000", Always),
        ],
    ),
    (
        "issuer",
        &[
            ("algorithms", "[\"RS256\", \"ES256\"]", Always),
            ("addresses", "[]", Fetched),
            ("refresh", "\"15m\"", Fetched),
            ("cooldown", "\"30s\"", Fetched),
            ("leeway", "\"60s\"", Always),
            ("max_lifetime", "\"1h\"", Always),
            ("client_id_claims", "[\"client_id\", \"azp\", \"sub\"]", Always),
            ("idp_lost", "\"available\"", Fetched),
            ("max_stale", "\"24h\"", Kept),
        ],
    ),
    ("token_cache", &[("entries", "65536", Always), ("ttl", "\"60s\"", Always)]),
    ("identity", &[("principal", "\"{value}\"", Always), ("roles", "[]", Always)]),
    (
        "upstream",
        &[
            ("protocol", "\"auto\"", Always),
            ("balance", "\"round_robin\"", Always),
            ("connect_timeout", "\"2s\"", Always),
            ("response_timeout", "\"30s\"", Always),
            ("idle_timeout", "\"5m\"", Always),
            ("max_requests", "1000", Always),
            ("max_waiting", "1000", Always),
        ],
    ),
    (
        "upstream.health",
        &[
            ("interval", "\"5s\"", Always),
            ("timeout", "\"2s\"", Always),
            ("healthy", "2", Always),
            ("unhealthy", "3", Always),
        ],
    ),
    ("upstream.tls", &[("ca", "\"system\"", Always)]),
    (
        "route",
        &[
            ("hosts", "[]", Always),
            ("methods", "[]", Always),
            ("scopes", "[]", Always),
            ("roles", "[]", Always),
            ("principals", "[]", Always),
            ("sources", "[]", Always),
            ("pass_authorization", "false", Always),
            ("bound_token", "false", Always),
            ("priority", "\"normal\"", Always),
            ("limits", "[]", Always),
        ],
    ),
    (
        "limit",
        &[
            ("mode", "\"enforce\"", Always),
            ("announce", "true", Always),
            ("entries", "65536", Always),
            ("ipv4_prefix", "32", BySource),
            ("ipv6_prefix", "64", BySource),
        ],
    ),
    (
        "xdp",
        &[
            ("interfaces", "[]", Always),
            ("mode", "\"auto\"", Always),
            ("enforce", "false", Always),
            ("ports", "[]", Always),
            ("management", "[\"22/tcp\"]", Always),
            ("allow", "[]", Always),
            ("deny", "[]", Always),
            ("ipv6_prefix", "64", Always),
            ("max_sources", "1000000", Always),
            ("pin", "\"/sys/fs/bpf/portcullis\"", Always),
        ],
    ),
    ("xdp.packets", &[("rate", "\"20000/s\"", Always), ("burst", "40000", Always)]),
    ("xdp.connections", &[("rate", "\"100/s\"", Always), ("burst", "200", Always)]),
    (
        "clients",
        &[
            ("proxy_header", "\"3s\"", Always),
            ("handshake", "\"5s\"", Always),
            ("head", "\"10s\"", Always),
            ("idle", "\"75s\"", Always),
            ("request", "\"0s\"", Always),
            ("head_size", "\"32KiB\"", Always),
            ("fields", "100", Always),
            ("streams", "128", Always),
        ],
    ),
    ("clients.body", &[("grace", "\"15s\"", Always), ("rate", "\"1KiB/s\"", Always)]),
    ("clients.answer", &[("grace", "\"60s\"", Always), ("rate", "\"1KiB/s\"", Always)]),
    ("clients.control_frames", &[("rate", "\"1000/s\"", Always), ("burst", "2000", Always)]),
    ("clients.resets", &[("rate", "\"50/s\"", Always), ("burst", "100", Always)]),
    (
        "bans",
        &[
            ("enabled", "true", Always),
            ("threshold", "20", Always),
            ("half_life", "\"30s\"", Always),
            ("ladder", "[\"1m\", \"10m\", \"1h\", \"24h\"]", Always),
            ("never", "[]", Always),
        ],
    ),
    ("host", &[("chrony", "\"127.0.0.1:323\"", Always), ("sysfs", "\"/sys\"", Always)]),
    ("host.cpu_temperature", &[("warn", "80", Always), ("critical", "95", Always)]),
    ("host.clock", &[("warn", "\"500ms\"", Always), ("critical", "\"30s\"", Always)]),
    (
        "admin",
        &[
            ("socket", "\"/run/portcullis/admin.sock\"", Always),
            ("metrics", "\"127.0.0.1:9090\"", Always),
            ("allow", "[\"127.0.0.0/8\", \"::1/128\"]", Always),
        ],
    ),
    ("log", &[("format", "\"json\"", Always), ("access", "true", Always)]),
];

/// Tables that hold without being written: each has defaults only.
const IMPLIED: [&str; 16] = [
    "server",
    "token_cache",
    "xdp",
    "xdp.packets",
    "xdp.connections",
    "clients",
    "clients.body",
    "clients.answer",
    "clients.control_frames",
    "clients.resets",
    "bans",
    "host",
    "host.cpu_temperature",
    "host.clock",
    "admin",
    "log",
];

/// A table with its defaults.
#[derive(Debug)]
struct Part {
    known: &'static Known,
    is_one_of_many: bool,
    keys: Vec<Line>,
    parts: Vec<Part>,
}

/// A key with its value.
#[derive(Debug)]
struct Line {
    key: &'static str,
    value: Value,
    is_default: bool,
}

/// The configuration with every default, secrets left out.
#[derive(Debug)]
pub struct Effective(Part);

impl Effective {
    /// Of a tree that was judged and found good.
    pub(super) fn new(root: &Table) -> Effective {
        Effective(part(&TABLES[0], root, false))
    }

    /// As TOML; defaults are marked as such.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        write(&self.0, &mut text);
        text
    }

    /// As one object.
    pub fn json(&self) -> serde_json::Value {
        as_json(&self.0)
    }
}

/// The tables right below this one, each with the key that it stands under.
fn below(known: &'static Known) -> impl Iterator<Item = (&'static str, &'static Known)> {
    TABLES.iter().filter_map(|inner| {
        let (outer, key) = inner.path.rsplit_once('.').unwrap_or(("", inner.path));
        (outer == known.path && !inner.path.is_empty()).then_some((key, inner))
    })
}

fn part(known: &'static Known, table: &Table, is_one_of_many: bool) -> Part {
    let defaults =
        DEFAULTS.iter().find(|(path, _)| *path == known.path).map_or(&[][..], |(_, keys)| keys);
    let line = |&(key, _): &(&'static str, &str)| {
        if let Some(entry) = table.get(key) {
            return Some(Line { key, value: public(&entry.node.value), is_default: false });
        }
        let (_, text, _) =
            defaults.iter().find(|(name, _, when)| *name == key && when.holds(table))?;
        tree::value(text).map(|value| Line { key, value, is_default: true })
    };
    let is_table = |key: &str| below(known).any(|(inner, _)| inner == key);
    let keys = known.keys.iter().filter(|(key, _)| !is_table(key)).filter_map(line).collect();
    let mut parts = Vec::new();
    for (key, inner) in below(known) {
        match table.get(key).map(|entry| &entry.node.value) {
            Some(Value::Table(table)) => parts.push(part(inner, table, false)),
            Some(Value::Array(nodes)) => parts.extend(nodes.iter().filter_map(|node| {
                let Value::Table(table) = &node.value else { return None };
                Some(part(inner, table, true))
            })),
            Some(_) => {}
            None if IMPLIED.contains(&inner.path) => {
                parts.push(part(inner, &Table::new(), false));
            }
            None => {}
        }
    }
    Part { known, is_one_of_many, keys, parts }
}

/// The value without what may be a secret: what an address of the web asks for behind its `?`. Keys and
/// passwords stand in files of their own, which are named here and not shown.
fn public(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.split_once("://").and_then(|_| text.split_once('?')) {
            Some((before, _)) => Value::String(format!("{before}?(left out)")),
            None => value.clone(),
        },
        Value::Array(nodes) => Value::Array(
            nodes
                .iter()
                .map(|node| Node { place: node.place, value: public(&node.value) })
                .collect(),
        ),
        _ => value.clone(),
    }
}

fn write(part: &Part, text: &mut String) {
    if !part.known.header.is_empty() && (!part.keys.is_empty() || !part.parts.is_empty()) {
        let space = if text.is_empty() { "" } else { "\n" };
        let path = part.known.path;
        // Writing to a string cannot fail.
        let _ = match part.is_one_of_many {
            true => writeln!(text, "{space}[[{path}]]"),
            false => writeln!(text, "{space}[{path}]"),
        };
    }
    for Line { key, value, is_default } in &part.keys {
        let mark = if *is_default { "  # default" } else { "" };
        let _ = writeln!(text, "{key} = {}{mark}", as_toml(value));
    }
    for part in &part.parts {
        write(part, text);
    }
}

fn as_toml(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Integer(number) => number.unwrap_or_default().to_string(),
        Value::Boolean(is) => is.to_string(),
        Value::Array(nodes) => {
            let values: Vec<String> = nodes.iter().map(|node| as_toml(&node.value)).collect();
            format!("[{}]", values.join(", "))
        }
        // No key takes any of these.
        Value::Float | Value::Datetime | Value::Table(_) => "{}".to_owned(),
    }
}

/// A basic string (TOML 1.0).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn as_json(part: &Part) -> serde_json::Value {
    let mut object = Map::new();
    for Line { key, value, .. } in &part.keys {
        object.insert((*key).to_owned(), json_value(value));
    }
    for inner in &part.parts {
        let key = inner.known.path.rsplit('.').next().unwrap_or_default().to_owned();
        if inner.is_one_of_many {
            let list = object.entry(key).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(as_json(inner));
            }
        } else {
            object.insert(key, as_json(inner));
        }
    }
    object.into()
}

fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) => json!(text),
        Value::Integer(number) => json!(number),
        Value::Boolean(is) => json!(is),
        Value::Array(nodes) => nodes.iter().map(|node| json_value(&node.value)).collect(),
        Value::Float | Value::Datetime | Value::Table(_) => serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        super::fake::{Fake, MAIN},
        *,
    };

    const BARE: &str = r#"
[[listener]]
name = "edge"
address = "[::]:8443"
tls = { certificate = "tls/server.pem", private_key = "tls/server.key", client_ca = "tls/clients-ca.pem" }
[[upstream]]
name = "orders"
servers = ["http://127.0.0.1:9001"]
[[route]]
name = "all"
path = "/"
upstream = "orders"
require = ["certificate"]
"#;

    fn printed(text: &str) -> (String, String) {
        let mut fake = Fake::new();
        fake.put("portcullis.toml", text, 0o644);
        let (config, _) = super::super::load(Path::new(MAIN), &fake)
            .unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        let effective = super::super::effective(Path::new(MAIN), &fake).unwrap();
        (format!("{config:#?}"), effective.toml())
    }

    #[test]
    fn what_is_printed_is_the_same_configuration_and_complete() {
        let issuer = "[[issuer]]\nname = \"corp\"\nissuer = \"https://idp.example\"\n\
                      audiences = [\"a\"]\n";
        let limit = "[[limit]]\nname = \"l\"\nkey = \"KEY\"\nrates = [\"100/s\", \"1000/h\"]\n";
        for more in [
            String::new(),
            "[xdp]\ninterfaces = [\"eth0\"]\nnew_sources = { rate = \"5000/s\", burst = 20000 }\n"
                .into(),
            format!("{issuer}jwks_file = \"jwks.json\"\n"),
            format!("{issuer}jwks_url = \"https://idp.example/keys\"\n"),
            format!("{issuer}jwks_url = \"https://idp.example/keys\"\nidp_lost = \"strict\"\n"),
            limit.replace("KEY", "source"),
            limit.replace("KEY", "principal"),
            "[[identity]]\nfrom = \"san_uri\"\nmatch = \"spiffe://a/*\"\n".into(),
            "[[upstream]]\nname = \"other\"\nservers = [\"https://a.example:1\"]\ntls = {}\n\
             health = { path = \"/h\" }\n"
                .into(),
        ] {
            let (config, text) = printed(&format!("{BARE}{more}"));
            let (again, second) = printed(&text);
            assert_eq!(config, again, "{text}");
            // Nothing is left to fill in, and what was a default is written now.
            assert_eq!(text.replace("  # default", ""), second, "{more}");
        }
    }

    #[test]
    fn every_key_has_a_default_or_a_reason_to_have_none() {
        // What must be written, or does nothing where it is not.
        const WITHOUT: [(&str, &[&str]); 13] = [
            ("listener", &["name", "address"]),
            ("listener.tls", &["certificate", "private_key", "client_ca"]),
            (
                "issuer",
                &["name", "issuer", "audiences", "jwks_file", "jwks_url", "discovery_url", "ca"],
            ),
            ("identity", &["from", "match", "tenant"]),
            ("revocation", &["tokens_file", "store"]),
            ("upstream", &["name", "servers"]),
            ("upstream.health", &["path"]),
            ("upstream.tls", &["certificate", "private_key", "server_name"]),
            ("route", &["name", "path", "upstream", "require", "hours"]),
            // As many at once as the first rate admits.
            ("limit", &["name", "key", "rates", "burst"]),
            ("xdp.bytes", &["rate", "burst"]),
            ("xdp.new_sources", &["rate", "burst"]),
            ("admin", &["group"]),
        ];
        // Those take what is not written from around them.
        let inherits = ["listener.tls.sni", "limit.tier"];
        for known in TABLES.iter().filter(|known| !inherits.contains(&known.path)) {
            for (key, _) in known.keys {
                let is_table = below(known).any(|(inner, _)| inner == *key);
                let has = DEFAULTS.iter().any(|(path, keys)| {
                    *path == known.path && keys.iter().any(|(name, ..)| name == key)
                });
                let has_none =
                    WITHOUT.iter().any(|(path, keys)| *path == known.path && keys.contains(key));
                let answers = [is_table, has, has_none].iter().filter(|is| **is).count();
                assert_eq!(answers, 1, "{} {key}", known.header);
            }
        }
    }

    #[test]
    fn what_may_be_a_secret_is_left_out_and_text_stays_text() {
        let (_, text) = printed(&format!(
            "{BARE}[[issuer]]\nname = \"corp\"\nissuer = \"quo\\\"te \\\\\"\naudiences = [\"a\"]\n\
             jwks_url = \"https://idp.example/keys?api_key=s3cret\"\n"
        ));
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("jwks_url = \"https://idp.example/keys?(left out)\""), "{text}");
        assert!(text.contains(r#"issuer = "quo\"te \\""#), "{text}");
        let json = Effective::new(&tree::table(&text)).json();
        assert_eq!(json["server"]["backlog"], 4096, "{json}");
        assert_eq!(json["listener"][0]["tls"]["sessions"], 20000, "{json}");
    }
}
