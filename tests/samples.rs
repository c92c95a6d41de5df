//! The sample that comes with the package is good; a bad configuration is answered with every
//! problem and its place; nothing that can be written in one makes the judge panic.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use gateway::config::{self, Config, Content, Daemon, FileError, Files, Kind, Problems, Warning};
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

const SAMPLE: &str = include_str!("../systemd/portcullis.toml");

/// A directory in memory: the configuration, and what the sample names.
#[derive(Clone, Debug)]
struct Directory {
    files: BTreeMap<PathBuf, Content>,
    daemon: Daemon,
}

static NAMED_BY_THE_SAMPLE: LazyLock<Directory> =
    LazyLock::new(|| named_by_the_sample().expect("a small authority can be made"));

fn named_by_the_sample() -> Result<Directory, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(vec!["edge.example".to_owned()])?;
    let server = server.signed_by(&key, &authority)?;
    let mut directory = Directory { files: BTreeMap::new(), daemon: Daemon::default() };
    directory.put("tls/server.pem", server.pem());
    directory.put("tls/server.key", key.serialize_pem());
    directory.put("tls/clients-ca.pem", authority.pem());
    directory.put("jwks.json", r#"{"keys":[{"kty":"EC"}]}"#);
    Ok(directory)
}

impl Directory {
    fn put(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        self.files.insert(name.into(), Content { bytes, mode: 0o600, owner: 0, group: 0 });
    }
}

impl Files for Directory {
    /// The configuration is named by a relative path; what it names comes back as an absolute one.
    fn read(&self, path: &Path, limit_bytes: usize) -> Result<Content, FileError> {
        let (_, content) =
            self.files.iter().find(|(name, _)| path.ends_with(name)).ok_or(FileError::NotFound)?;
        if content.bytes.len() > limit_bytes {
            return Err(FileError::TooLong { limit_bytes });
        }
        Ok(content.clone())
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        Ok(self.files.keys().filter(|path| path.parent() == Some(directory)).cloned().collect())
    }

    fn daemon(&self) -> &Daemon {
        &self.daemon
    }
}

/// Judges `text` as the main file, with more files of the configuration beside it.
fn judge(
    text: impl AsRef<[u8]>,
    parts: &[(&str, &str)],
) -> Result<(Config, Vec<Warning>), Problems> {
    let mut directory = NAMED_BY_THE_SAMPLE.clone();
    directory.put("portcullis.toml", text);
    for (name, text) in parts {
        directory.put(name, text);
    }
    config::load(Path::new("portcullis.toml"), &directory)
}

/// The sample with some of its lines replaced, each named by how it begins, first one first.
fn sample_with(changes: &[(&str, &str)]) -> String {
    let mut lines: Vec<&str> = SAMPLE.lines().collect();
    for (start, replacement) in changes {
        let line = lines.iter_mut().find(|line| line.starts_with(start));
        *line.unwrap_or_else(|| panic!("no line begins with {start}")) = replacement;
    }
    lines.join("\n")
}

/// The line of the sample, from 1, that begins with this.
fn line(start: &str) -> usize {
    let index = SAMPLE.lines().position(|line| line.starts_with(start));
    index.unwrap_or_else(|| panic!("no line begins with {start}")) + 1
}

#[test]
fn the_sample_is_judged_clean_and_only_observes() {
    let (config, warnings) = judge(SAMPLE, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(warnings, Vec::<Warning>::new());
    assert!(config.xdp.is_none());
    let observing = sample_with(&[("interfaces = []", "interfaces = [\"eth0\"]")]);
    let (config, warnings) = judge(observing, &[]).unwrap();
    assert_eq!(warnings, Vec::<Warning>::new());
    assert!(!config.xdp.expect("an interface is named").enforce);
}

/// What is in effect, written out, says the same once more.
#[test]
fn the_sample_in_effect_is_the_sample() {
    let mut directory = NAMED_BY_THE_SAMPLE.clone();
    directory.put("portcullis.toml", SAMPLE);
    let effective = config::effective(Path::new("portcullis.toml"), &directory);
    let effective = effective.unwrap_or_else(|problems| panic!("{problems}")).toml();
    let (config, _) = judge(SAMPLE, &[]).unwrap();
    let (again, _) = judge(&effective, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(format!("{config:#?}"), format!("{again:#?}"));
}

/// What the sample calls a default is the default: without those lines the same holds.
#[test]
fn the_sample_writes_out_the_defaults() {
    let must_be_written = [
        "name",
        "address",
        "certificate",
        "private_key",
        "client_ca",
        "issuer",
        "audiences",
        "jwks_file",
        "servers",
        "path",
        "upstream",
        "require",
        "scopes",
        "interfaces",
    ];
    let is_kept = |line: &str| {
        let key = line.split(" = ").next().unwrap_or_default();
        !line.contains(" = ") || must_be_written.contains(&key)
    };
    let sample = SAMPLE.replace("interfaces = []", "interfaces = [\"eth0\"]");
    let kept: Vec<&str> = sample.lines().filter(|line| is_kept(line)).collect();
    assert!(kept.len() + 30 < sample.lines().count());
    let (written, _) = judge(&sample, &[]).unwrap();
    let (defaults, _) = judge(kept.join("\n"), &[]).unwrap();
    assert_eq!(format!("{written:#?}"), format!("{defaults:#?}"));
}

/// What the sample only shows of limits is good too, and what it calls a default is one.
#[test]
fn the_limit_that_the_sample_shows_is_good() {
    let shown = SAMPLE.split_once("#[[limit]]").unwrap().1.split_once("\n\n").unwrap().0;
    let limit = format!("[[limit]]{shown}").replace("\n#", "\n").replace("\n ", "\n# ");
    let route = "limits = [\"per-client\"]";
    let with = |limit: &str| {
        let text = sample_with(&[("limits = []", route)]);
        judge(format!("{text}\n{limit}"), &[])
    };
    // The prefixes of addresses are another key's.
    let prefixes = ["ipv4_prefix = 32\n", "ipv6_prefix = 64\n"];
    let limit = prefixes.iter().fold(limit, |limit, line| limit.replace(line, ""));
    let (written, warnings) = with(&limit).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(warnings, Vec::<Warning>::new());
    let defaults = ["burst = 100\n", "mode = \"enforce\"\n", "announce = true\n"];
    let bare = defaults.iter().fold(limit, |limit, line| limit.replace(line, ""));
    let bare = bare.replace("entries = 65_536\n", "");
    let (default, _) = with(&bare).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(format!("{written:#?}"), format!("{default:#?}"));
    assert_eq!(written.limits[0].tiers.len(), 1);
}

/// What it is, its text, and what is said of it after the name of the file.
type Garbage = (&'static str, String, Vec<(Kind, String)>);

/// What is said of each kind of garbage: all of it, in the order of the lines.
#[test]
fn every_problem_is_listed_with_its_place() {
    let unfinished: String = SAMPLE.split_inclusive('\n').take(line("client_ca")).collect();
    let cut = unfinished.trim_end().strip_suffix("clients-ca.pem\"").expect("the line's end");
    let table: Vec<Garbage> = vec![
        (
            "cut off in the middle of a string",
            cut.to_owned(),
            vec![(
                Kind::Syntax,
                format!("{}:18: not TOML: this string is not closed; add \"", line("client_ca")),
            )],
        ),
        (
            "cut off at the end of a line",
            unfinished,
            vec![(
                Kind::Missing,
                "1:1: there is no [[route]]; add it, without one every request is \
                                 refused"
                    .to_owned(),
            )],
        ),
        (
            "unknown and misplaced keys",
            sample_with(&[
                ("workers", "wrokers = 0"),
                ("drain_timeout", "certificate = \"tls/server.pem\""),
                ("max_connections", "colour = \"blue\""),
                ("[token_cache]", "[token-cache]"),
            ]),
            vec![
                (
                    Kind::UnknownKey,
                    format!(
                        "{}:1: unknown key \"wrokers\" in [server]; did you mean workers?",
                        line("workers")
                    ),
                ),
                (
                    Kind::MisplacedKey,
                    format!(
                        "{}:1: \"certificate\" does not belong in [server]; move it to [listener.tls] or \
                         [[listener.tls.sni]] or [upstream.tls]",
                        line("drain_timeout")
                    ),
                ),
                (
                    Kind::UnknownKey,
                    format!(
                        "{}:1: unknown key \"colour\" in [server]; there can be workers, \
                     drain_timeout, drain_delay, max_connections, max_connections_per_source, \
                     backlog, cpu_steering",
                        line("max_connections")
                    ),
                ),
                (
                    Kind::UnknownKey,
                    format!(
                        "{}:2: unknown key \"token-cache\" at the top level; did you mean token_cache?",
                        line("[token_cache]")
                    ),
                ),
            ],
        ),
        (
            "wrong types and impossible values",
            sample_with(&[
                ("workers", "workers = \"4\""),
                ("drain_timeout", "drain_timeout = 30"),
                ("address", "address = \"localhost:8443\""),
                ("protocols", "protocols = \"h2\""),
                ("leeway", "leeway = \"10m\""),
                ("require", "require = [\"certificate\", \"tokn\"]"),
                ("enforce", "enforce = \"no\""),
                ("packets", "packets = { rate = \"20000\", burst = 40000 }"),
                ("allow", "allow = [\"10.0.0.1/8\"]"),
            ]),
            vec![
                (
                    Kind::WrongType,
                    format!(
                        "{}:11: server.workers is a string, not an integer; write it as in workers = 0",
                        line("workers")
                    ),
                ),
                (
                    Kind::WrongType,
                    format!(
                        "{}:17: server.drain_timeout is an integer, not a string; write it as in \
                     drain_timeout = \"30s\"",
                        line("drain_timeout")
                    ),
                ),
                (
                    Kind::BadValue,
                    format!(
                        "{}:11: listener.address is \"localhost:8443\", which is no address to listen \
                     on; write an address and a port, as in \"[::]:8443\" or \"192.0.2.1:8443\"",
                        line("address")
                    ),
                ),
                (
                    Kind::WrongType,
                    format!(
                        "{}:13: listener.protocols is a string, not a list; write it as in protocols = \
                     [\"h2\", \"http/1.1\"]",
                        line("protocols")
                    ),
                ),
                (
                    Kind::BadValue,
                    format!(
                        "{}:10: issuer.leeway is 10m; write one from 0s to 5m: clocks that differ by \
                     more are to be put right, not allowed for",
                        line("leeway")
                    ),
                ),
                (
                    Kind::BadValue,
                    format!(
                        "{}:27: route.require is \"tokn\"; did you mean \"token\"? It takes \
                     \"certificate\" or \"token\"",
                        line("require")
                    ),
                ),
                (
                    Kind::WrongType,
                    format!(
                        "{}:11: xdp.enforce is a string, not true or false; write it as in enforce = \
                     false",
                        line("enforce")
                    ),
                ),
                (
                    Kind::BadValue,
                    format!(
                        "{}:10: xdp.allow has \"10.0.0.1/8\", which has bits beyond its prefix; write \
                     \"10.0.0.0/8\" for the network or \"10.0.0.1\" for the one address",
                        line("allow")
                    ),
                ),
                (
                    Kind::BadValue,
                    format!(
                        "{}:20: xdp.packets.rate is \"20000\", which is no rate; write a number for \
                     each second, minute or hour, as in \"100/s\", \"6000/m\", \"36000/h\"",
                        line("packets")
                    ),
                ),
            ],
        ),
        (
            "settings that contradict each other",
            sample_with(&[
                ("upstream = ", "upstream = \"odrers\""),
                ("require", "require = [\"certificate\"]"),
                ("enforce", "enforce = true"),
                ("management", "management = [\"8443/tcp\"]"),
                ("metrics", "metrics = \"0.0.0.0:8443\""),
                ("ladder", "ladder = [\"10m\", \"1m\"]"),
            ]),
            vec![
                (
                    Kind::Contradiction,
                    format!(
                        "{}:12: route.upstream \"odrers\" is no [[upstream]]; did you mean \"orders\"?",
                        line("upstream = ")
                    ),
                ),
                (
                    Kind::Contradiction,
                    format!(
                        "{}:10: route.scopes are a token's, but require has no \"token\"; add it \
                     there, or take scopes out",
                        line("scopes")
                    ),
                ),
                (
                    Kind::Contradiction,
                    format!(
                        "{}:11: xdp.enforce is true, but interfaces is empty, so nothing can be \
                     dropped; name the interfaces or take enforce out",
                        line("enforce")
                    ),
                ),
                (
                    Kind::Contradiction,
                    format!(
                        "{}:15: xdp.management has 8443/tcp, which no rule would touch, and the same \
                     port is to be guarded; take it out of one of the two",
                        line("management")
                    ),
                ),
                (
                    Kind::Contradiction,
                    format!(
                        "{}:18: bans.ladder has 1m after 10m; write each ban longer than the one before",
                        line("ladder")
                    ),
                ),
                (
                    Kind::Contradiction,
                    format!(
                        "{}:11: admin.metrics 0.0.0.0:8443 and the listener at [::]:8443 \
                     (portcullis.toml:{}) want the same port; give one of them another",
                        line("metrics"),
                        line("address")
                    ),
                ),
            ],
        ),
        (
            "settings of the contract that are not supported yet",
            sample_with(&[("ipv6_prefix", "ipv6_prefix = 56")]),
            vec![(
                Kind::NotSupported,
                format!(
                    "{}:1: not supported yet: ipv6_prefix; write 64 or leave it out \
                     (xdp.ipv6_prefix)",
                    line("ipv6_prefix")
                ),
            )],
        ),
        (
            "broken lines among others: what is certain is said all the same",
            sample_with(&[
                ("workers", "workers ="),
                ("drain_timeout", "drain_timeout = 30s"),
                ("max_connections", "max_connections"),
                ("client_auth", "client_auth = \"no\""),
                ("jwks_file", "jwks_file = \"other.json\""),
                ("ttl", "entries = 3"),
                ("format", "format = \"json"),
            ]),
            vec![
                (
                    Kind::Syntax,
                    format!(
                        "{}:10: not TOML: this key has no value; write it as key = value",
                        line("workers")
                    ),
                ),
                (
                    Kind::Syntax,
                    format!(
                        "{}:17: not TOML: this is no value; write strings in double quotes",
                        line("drain_timeout")
                    ),
                ),
                (
                    Kind::Syntax,
                    format!(
                        "{}:16: not TOML: this key has no value; write it as key = value",
                        line("max_connections")
                    ),
                ),
                (
                    Kind::BadValue,
                    format!(
                        "{}:15: listener.tls.client_auth is \"no\"; write \"required\" or \"optional\" or \
                         \"off\"",
                        line("client_auth")
                    ),
                ),
                (
                    Kind::BadFile,
                    format!(
                        "{}:13: issuer.jwks_file {:?} does not exist; correct the path or create the \
                     file",
                        line("jwks_file"),
                        std::path::absolute("other.json").unwrap()
                    ),
                ),
                (
                    Kind::SetTwice,
                    format!(
                        "{}:1: \"entries\" is already set in line {}; keep one of the two",
                        line("ttl"),
                        line("entries")
                    ),
                ),
                (
                    Kind::Syntax,
                    format!("{}:15: not TOML: this string is not closed; add \"", line("format")),
                ),
            ],
        ),
    ];
    for (what, text, expected) in table {
        let problems = judge(&text, &[]).expect_err(what);
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(kind, text)| (kind, format!("portcullis.toml:{text}")))
            .collect();
        let found: Vec<_> =
            problems.iter().map(|problem| (problem.kind(), problem.to_string())).collect();
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn files_beside_the_main_one_are_part_of_it() {
    let route = "[[route]]\nname = \"billing\"\npath = \"/billing\"\nupstream = \"orders\"\nrequire \
                 = [\"token\"]\n";
    let (config, _) = judge(SAMPLE, &[("conf.d/billing.toml", route)]).unwrap();
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["orders", "billing"]);

    let clashing = "[server]\nworkers = 2\n[log]\ncolor = true\n";
    let problems = judge(SAMPLE, &[("conf.d/a.toml", clashing)]).unwrap_err();
    assert_eq!(
        problems.to_string(),
        format!(
            "portcullis.toml:{}:1: \"workers\" is also set in conf.d/a.toml:2; keep one of the two\n\
             conf.d/a.toml:2:1: \"workers\" is also set in portcullis.toml:{0}; keep one of the two\n\
             conf.d/a.toml:4:1: unknown key \"color\" in [log]; there can be format, access",
            line("workers")
        )
    );
}

/// Judged without panic; whatever is refused has a place in the text.
fn survives(text: &[u8]) -> Result<(), TestCaseError> {
    let lines = text.split(|byte| *byte == b'\n').count();
    if let Err(problems) = judge(text, &[]) {
        prop_assert!(problems.count() > 0);
        for problem in &problems {
            prop_assert!((1..=lines).contains(&(problem.line() as usize)), "{problem}");
            prop_assert!(problem.column() >= 1, "{problem}");
            prop_assert!(!problem.text().is_empty());
        }
    }
    Ok(())
}

/// The places of the sample's words: keys, values and signs.
static WORDS: LazyLock<Vec<std::ops::Range<usize>>> = LazyLock::new(|| {
    let sign = |byte: u8| b"[]{}=,\"\n".contains(&byte);
    let bytes = SAMPLE.as_bytes();
    let mut words = Vec::new();
    let mut start = 0;
    for (end, byte) in bytes.iter().enumerate() {
        if sign(*byte) || *byte == b' ' {
            words.push(start..end);
            words.push(end..end + 1);
            start = end + 1;
        }
    }
    words.retain(|word| !word.is_empty() && SAMPLE.get(word.clone()).is_some());
    words
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survives(&bytes)?;
    }

    #[test]
    fn no_spoilt_byte_of_the_sample_makes_it_panic(
        spoilt in prop::collection::vec((0..SAMPLE.len(), any::<u8>()), 1..8),
        length in 0..=SAMPLE.len(),
    ) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        for (index, byte) in spoilt {
            bytes[index] = byte;
        }
        survives(&bytes)?;
        bytes.truncate(length);
        survives(&bytes)?;
    }

    #[test]
    fn no_exchanged_words_of_the_sample_make_it_panic(
        exchanged in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 1..12),
    ) {
        let mut words: Vec<&str> = WORDS.iter().map(|word| &SAMPLE[word.clone()]).collect();
        for (from, to) in exchanged {
            let word = words[from.index(words.len())];
            let to = to.index(words.len());
            words[to] = word;
        }
        survives(words.concat().as_bytes())?;
    }
}
