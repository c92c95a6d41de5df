//! `cargo xtask perf`: what the product costs, against others, on this machine.
//!
//! Everything that is compared is measured in one process and one run, in turns, so that whatever
//! else the machine does strikes all of them alike. Results are printed, and kept as the run made
//! them; none is ever written by hand.

mod cores;
mod flood;
mod guard;
mod machine;
mod page;
mod programs;
mod quoted;
mod report;
mod requests;
mod statistics;
mod xdp;
mod xdp_filter;

use std::{fs, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

pub use self::cores::check as check_cores;
use crate::{process, setup};

/// More tell nothing new.
const ROUNDS_MAX: usize = 101;

/// What was asked for on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    /// Print the document instead of the table.
    json: bool,
    /// Fewer rounds: to see that it works, not to quote.
    quick: bool,
    /// Rounds of requests and floods, where others than usual were asked for.
    rounds: Option<usize>,
    /// Measure nothing, and have the documents quote these results.
    quoted: Vec<PathBuf>,
    /// What to measure; nothing: everything.
    scenarios: Vec<Scenario>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// Nanoseconds a packet, by test runs.
    Xdp,
    /// What a packet of a flood costs, over a cable.
    Flood,
    /// Requests, handshakes, connections, beside other proxies.
    Requests(requests::Scenario),
}

impl Scenario {
    fn all() -> impl Iterator<Item = Scenario> {
        let requests = requests::Scenario::ALL.into_iter().map(Scenario::Requests);
        requests.chain([Scenario::Xdp, Scenario::Flood])
    }

    fn name(self) -> &'static str {
        match self {
            Scenario::Xdp => "xdp",
            Scenario::Flood => "flood",
            Scenario::Requests(requests) => requests.name(),
        }
    }
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options = Options::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let named = Scenario::all().find(|scenario| scenario.name() == word);
            match (word.as_str(), named) {
                (_, Some(scenario)) => options.scenarios.push(scenario),
                ("--json", _) => options.json = true,
                ("--quick", _) => options.quick = true,
                ("--rounds", _) => {
                    let rounds = words.next().and_then(|word| word.parse().ok());
                    options.rounds = rounds.filter(|rounds| (1..=ROUNDS_MAX).contains(rounds));
                    ensure!(options.rounds.is_some(), "--rounds takes 1 to {ROUNDS_MAX}");
                }
                ("--readme", _) => {
                    options.quoted = words.by_ref().map(PathBuf::from).collect();
                    ensure!(
                        !options.quoted.is_empty(),
                        "--readme takes results, as they were kept"
                    );
                }
                (other, None) => {
                    let names: Vec<&str> = Scenario::all().map(Scenario::name).collect();
                    bail!(
                        "perf takes {}, --json, --quick, --rounds N and --readme FILE…; what is `{other}`?",
                        names.join(", ")
                    )
                }
            }
        }
        if options.scenarios.is_empty() {
            options.scenarios = Scenario::all().collect();
        }
        Ok(options)
    }

    /// How long it will take.
    fn plan(&self) -> String {
        let requests = requests::minutes(&self.requests(), self.quick, self.rounds);
        let xdp =
            if self.scenarios.contains(&Scenario::Xdp) { xdp::minutes(self.quick) } else { 0.0 };
        let flood = if self.scenarios.contains(&Scenario::Flood) {
            flood::minutes(self.quick, self.rounds)
        } else {
            0.0
        };
        format!(
            "about {:.0} minutes once everything is built: requests {requests:.0}, xdp {xdp:.0}, flood {flood:.0}",
            requests + xdp + flood
        )
    }

    /// Those of requests, in the order in which they were asked for.
    fn requests(&self) -> Vec<requests::Scenario> {
        let requests = self.scenarios.iter().filter_map(|scenario| match scenario {
            Scenario::Requests(requests) => Some(*requests),
            Scenario::Xdp | Scenario::Flood => None,
        });
        requests.collect()
    }
}

/// That the documents quote the result that is kept.
///
/// # Errors
/// When they do not.
pub fn check_quoted() -> Result<()> {
    quoted::check()
}

/// Measures and prints. A target that is missed is printed as missed; only what could not be
/// measured is a failure.
///
/// # Errors
/// When something cannot be built, loaded or measured, or somebody interrupts.
pub fn perf(words: &[String]) -> Result<ExitCode> {
    if let Some((first, rest)) = words.split_first()
        && first == "cores"
    {
        return cores::cores(rest);
    }
    let options = Options::parse(words)?;
    if !options.quoted.is_empty() {
        return quoted::publish(&options.quoted).map(|()| ExitCode::SUCCESS);
    }
    if let Some(refused) = process::refuse_without_root(
        "perf",
        "to load BPF programs and to keep a core for itself (CAP_BPF, CAP_NET_ADMIN, \
         CAP_SYS_ADMIN, CAP_SYS_NICE)",
    ) {
        return Ok(refused);
    }
    process::stop_on_signals()?;
    if options.json {
        // Standard output is the document's alone; setup speaks there.
        eprintln!(
            "perf: with --json nothing but xdp-tools is installed; `cargo xtask setup` installs the rest"
        );
    } else if options.scenarios.contains(&Scenario::Flood) {
        setup::setup_with(&flood::PROGRAMS)?;
    } else {
        setup::setup()?;
    }
    eprintln!("perf: {}", options.plan());
    let mut documents = Vec::new();
    let requests = options.requests();
    if !requests.is_empty() {
        let document = requests::measure(&requests, options.quick, options.rounds)?;
        if !options.json {
            requests::print(&document);
        }
        documents.push(kept("requests", document)?);
    }
    if options.scenarios.contains(&Scenario::Xdp) {
        // On a thread of its own: it keeps to one core as a real-time task, which would stay so for what
        // comes after.
        let measuring = thread::spawn(move || xdp::measure(options.quick));
        let measured =
            measuring.join().map_err(|_| anyhow!("the measurement of xdp broke off"))??;
        if !options.json {
            report::print(&measured);
        }
        documents.push(kept("xdp", report::document(&measured, options.quick)?)?);
    }
    if options.scenarios.contains(&Scenario::Flood) {
        documents
            .push(kept("flood", flood::measure(options.quick, options.rounds, options.json)?)?);
    }
    let several = documents.len() > 1;
    let whole = joined(documents);
    if options.json {
        println!("{whole:#}");
    }
    if several {
        kept("all", whole)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps a result at once: what comes later may fail.
fn kept(name: &str, document: Value) -> Result<Value> {
    let path = report::keep(name, &document)?;
    let page = path.with_extension("html");
    fs::write(&page, page::page(&document))
        .with_context(|| format!("cannot write {}", page.display()))?;
    eprintln!("perf: kept as {}, for people {}", path.display(), page.display());
    Ok(document)
}

/// One document of several: the first, with the rows of all, of which each says which run it is of, and
/// with all that is named beside them.
fn joined(mut documents: Vec<Value>) -> Value {
    for document in &mut documents {
        let of = ["date", "commit", "rounds"].map(|name| (name, document[name].clone()));
        for row in document["rows"].as_array_mut().into_iter().flatten() {
            for (name, value) in &of {
                if row.is_object() && row[*name].is_null() {
                    row[*name] = value.clone();
                }
            }
        }
    }
    let mut documents = documents.into_iter();
    let Some(mut first) = documents.next() else { return Value::Null };
    for document in documents {
        for list in ["rows", "not_measured"] {
            let more = document[list].as_array().into_iter().flatten();
            if let Some(known) = first[list].as_array_mut() {
                let new: Vec<Value> = more.filter(|one| !known.contains(one)).cloned().collect();
                known.extend(new);
            }
        }
        let (known, versions) = (&mut first["versions"], &document["versions"]);
        if known.is_null() {
            *known = versions.clone();
        }
    }
    first
}

/// The length of the kernel's tick: the resolution of the coarse clock (clock_getres(2)).
fn tick_ns() -> Result<u64> {
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u64::try_from(tick.tv_nsec())?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_read_or_refused() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::parse(&words)
                .ok()
                .map(|options| (options.json, options.quick, options.scenarios))
        };
        let mtls = Scenario::Requests(requests::Scenario::Mtls);
        for (line, expected) in [
            ("", Some((false, false, Scenario::all().collect()))),
            ("xdp", Some((false, false, vec![Scenario::Xdp]))),
            ("xdp --json", Some((true, false, vec![Scenario::Xdp]))),
            ("--quick flood mtls", Some((false, true, vec![Scenario::Flood, mtls]))),
            ("--quick --rounds 3 mtls", Some((false, true, vec![mtls]))),
            ("--rounds 0", None),
            ("mtls --rounds", None),
            ("--fast", None),
            ("layer-7", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn everything_takes_half_an_hour_and_a_look_five_minutes() {
        for (line, minutes) in [("", 30.0), ("--quick", 5.0)] {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let Options { quick, rounds, .. } = Options::parse(&words).unwrap();
            let requests = requests::minutes(&requests::Scenario::ALL, quick, rounds);
            let all = requests + xdp::minutes(quick) + flood::minutes(quick, rounds);
            assert!(all <= minutes, "{line}: {all}, of which requests {requests}");
        }
    }

    #[test]
    fn one_document_has_all_rows() {
        let document = |name: &str| {
            let versions = if name == "b" { json!({"v": 1}) } else { Value::Null };
            json!({
                "commit": name, "rows": [{"name": name}], "not_measured": ["x", name], "versions": versions,
            })
        };
        let joined = joined(vec![document("a"), document("b")]);
        let row = |name: &str| json!({"name": name, "commit": name, "date": null, "rounds": null});
        let expected = json!({
            "commit": "a", "rows": [row("a"), row("b")], "not_measured": ["x", "a", "b"], "versions": {"v": 1},
        });
        assert_eq!(joined, expected);
    }
}
