//! What the documents quote of a kept result: nobody types a figure.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{requests::KERNEL_PART, statistics::Figure};
use crate::cargo::root;

/// Where the table stands.
const DOCUMENTS: [&str; 2] = ["README.md", "perf/README.md"];
/// What it is from.
const RESULT: &str = "perf/results/published.json";
/// Around the table.
const BEGIN: &str = "<!-- measured: written by `cargo xtask perf --readme` -->\n";
const END: &str = "<!-- measured: end -->\n";

/// A row that is held against others or against a target.
pub struct Line {
    /// Scenario, protocol and variant, and the figure's name.
    pub what: String,
    /// The figures' unit.
    pub unit: String,
    /// Ours.
    pub ours: f64,
    /// The others, best first.
    pub peers: Vec<(String, f64)>,
    /// Ours over the best.
    pub ratio: Option<f64>,
    /// In words.
    pub target: Option<String>,
    /// Whether it is held; `None` where nobody could be measured.
    pub held: Option<bool>,
}

impl Line {
    /// Of a row that is judged; rows that only stand beside others are none.
    pub fn of(row: &Value) -> Option<Line> {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let (target, held) = targets(row);
        let ratio = row["ratio_to_best"].as_f64();
        if ratio.is_none() && target.is_none() {
            return None;
        }
        let words = [text("scenario"), text("protocol"), text("variant")];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let mut peers: Vec<(String, f64)> = row["peers"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, figure)| Some((name.clone(), figure.as_f64()?)))
            .collect();
        peers.sort_by(|one, other| one.1.total_cmp(&other.1));
        // What is said of no figure is the server's time.
        let figure = text("metric").replace('_', " ");
        let what = match figure.starts_with("server cpu") {
            true => words.join(" "),
            false => format!("{}: {figure}", words.join(" ")),
        };
        Some(Line {
            what,
            unit: text("unit").to_owned(),
            ours: row["ours"].as_f64()?,
            peers,
            ratio,
            target,
            held,
        })
    }
}

/// Of requests one ratio, of packets several conditions.
fn targets(row: &Value) -> (Option<String>, Option<bool>) {
    if let Some(target) = row["target"].as_f64() {
        return (Some(format!("≤ {target}")), row["held"].as_bool());
    }
    let all: Vec<&Value> = row["targets"].as_array().into_iter().flatten().collect();
    let words: Vec<&str> = all.iter().filter_map(|target| target["target"].as_str()).collect();
    if words.is_empty() {
        return (None, None);
    }
    let held: Option<Vec<bool>> = all.iter().map(|target| target["held"].as_bool()).collect();
    (Some(words.join("; ")), held.map(|held| held.into_iter().all(|one| one)))
}

/// With as many digits as mean something.
pub fn number(figure: f64) -> String {
    match figure.abs() {
        0.0 => "0".to_owned(),
        small if small < 10.0 => format!("{figure:.2}"),
        middling if middling < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// The lines between the marks.
fn table(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let machine = &document["machine"];
    let mut table = format!(
        "{} cores, {}, Linux {}.\n",
        machine["cores"],
        text(&machine["processor"]),
        text(&machine["kernel"]),
    );
    // Parts of one result may be of several runs: the rows say which.
    let mut runs: BTreeMap<(String, String), u64> = BTreeMap::new();
    for row in document["rows"].as_array().into_iter().flatten() {
        let of = |name: &str| text(if row[name].is_null() { &document[name] } else { &row[name] });
        let rounds = if row["rounds"].is_null() { &document["rounds"] } else { &row["rounds"] };
        runs.insert((of("date"), of("commit")), rounds.as_u64().unwrap_or(0));
    }
    for ((date, commit), rounds) in runs {
        let short: String = commit.chars().take(8).collect();
        let changes = commit.find('+').map_or("", |plus| &commit[plus..]);
        let rounds = if rounds == 1 { "one round".to_owned() } else { format!("{rounds} rounds") };
        let _infallible = writeln!(table, "Measured {date}, commit {short}{changes}, {rounds}.");
    }
    for (name, version) in document["versions"].as_object().into_iter().flatten() {
        let _infallible = writeln!(table, "{name}: {}.", text(version));
    }
    table.push_str("\n| | ours | others | to the best | meant to be |\n|---|---:|---|---:|---|\n");
    let rows = document["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (row, line) in rows.iter().filter_map(|row| Some((row, Line::of(row)?))) {
        let kernel = kernel_part(rows, row);
        let in_kernel = |figure: &Value| {
            figure.as_f64().map_or(String::new(), |figure| format!(" ({})", number(figure)))
        };
        let peer = |(name, figure): &(String, f64)| {
            format!("{name} {}{}", number(*figure), in_kernel(&kernel["peers"][name]))
        };
        let peers: Vec<String> = line.peers.iter().map(peer).collect();
        let missed = match line.held {
            Some(true) => "",
            Some(false) => ": missed",
            None => ": not measured",
        };
        let _infallible = writeln!(
            table,
            "| {} | {} {}{} | {} | {} | {} |",
            line.what,
            number(line.ours),
            line.unit,
            in_kernel(&kernel["ours"]),
            peers.join(", "),
            line.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            line.target.map_or("–".to_owned(), |target| format!("{target}{missed}")),
        );
    }
    table
}

/// Of a row about a server's time the one that says how much of it was in the kernel, or nothing.
fn kernel_part<'rows>(rows: &'rows [Value], row: &Value) -> &'rows Value {
    let is_time = row["metric"].as_str().is_some_and(|name| name.starts_with("server_cpu"));
    let same = |other: &&Value| {
        is_time
            && other["metric"] == KERNEL_PART
            && ["scenario", "protocol", "variant"].iter().all(|name| row[*name] == other[*name])
    };
    rows.iter().find(same).unwrap_or(&Value::Null)
}

/// The document with that table between its marks.
fn with_table(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no line {END}"))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// Keeps results as the one that is published, and writes its table into the documents.
///
/// # Errors
/// When a file is no result or was not to be quoted, or a document has no place for the table.
pub fn publish(files: &[PathBuf]) -> Result<()> {
    let mut documents = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let document: Value =
            serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        ensure!(document["rows"].is_array(), "{} is no result", file.display());
        ensure!(
            document["quick"] != true,
            "{} was quick: to see that it works, not to quote",
            file.display()
        );
        documents.push(document);
    }
    let mut document = super::joined(documents);
    let rows = document["rows"].as_array().cloned().unwrap_or_default();
    document["rows"] = Value::Array(one_of_each(rows));
    let result = root().join(RESULT);
    fs::write(&result, format!("{document:#}\n"))
        .with_context(|| format!("cannot write {}", result.display()))?;
    for name in DOCUMENTS {
        let path = root().join(name);
        let text = read(&path)?;
        fs::write(&path, with_table(&text, &table(&document))?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!("perf: {RESULT} is quoted in {}", DOCUMENTS.join(" and "));
    Ok(())
}

/// A figure that several runs have once: its median over the runs, with the ratio of these medians.
fn one_of_each(rows: Vec<Value>) -> Vec<Value> {
    let mut groups: Vec<Vec<Value>> = Vec::new();
    for row in rows {
        let is_same = |group: &&mut Vec<Value>| {
            ["scenario", "variant", "protocol", "metric"]
                .iter()
                .all(|name| group[0][*name] == row[*name])
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.into_iter().filter_map(|group| of_several(&group)).collect()
}

fn of_several(runs: &[Value]) -> Option<Value> {
    let mut row = runs.last()?.clone();
    // What packets cost is judged by more than one ratio: the last run stands.
    if runs.len() == 1 || !row["targets"].is_null() {
        return Some(row);
    }
    let over_runs = |pointer: &str| -> Figure {
        let figures: Vec<f64> =
            runs.iter().filter_map(|run| run.pointer(pointer).and_then(Value::as_f64)).collect();
        Figure::of(&figures)
    };
    let ours = over_runs("/ours");
    (row["ours"], row["spread"]) = (json!(ours.median), json!([ours.lower, ours.upper]));
    let names: Vec<String> =
        row["peers"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    let mut best = f64::INFINITY;
    for name in names {
        let peer = over_runs(&format!("/peers/{name}"));
        row["peers"][&name] = json!(peer.median);
        row["peers_spread"][&name] = json!([peer.lower, peer.upper]);
        best = best.min(peer.median);
    }
    if row["ratio_to_best"].is_number() && best > 0.0 {
        let ratio = (ours.median / best * 100.0).round() / 100.0;
        row["ratio_to_best"] = json!(ratio);
        row["held"] = json!(row["target"].as_f64().map(|target| ratio <= target));
    }
    row["rounds"] = runs.iter().map(|run| run["rounds"].as_u64().unwrap_or(0)).sum::<u64>().into();
    Some(row)
}

/// That the documents quote the result that is kept.
///
/// # Errors
/// When it does not.
pub fn check() -> Result<()> {
    let document = serde_json::from_str(&read(&root().join(RESULT))?).context(RESULT)?;
    for name in DOCUMENTS {
        let text = read(&root().join(name))?;
        if with_table(&text, &table(&document))? != text {
            bail!("{name} does not quote {RESULT}: cargo xtask perf --readme {RESULT}");
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_quote_the_result_that_is_kept() {
        check().unwrap();
    }

    #[test]
    fn a_table_says_what_was_meant_and_what_came() {
        let document = json!({
            "date": "d1", "commit": "0123456789+changes", "rounds": 3,
            "machine": {"cores": 2, "processor": "P", "kernel": "6.1"},
            "versions": {"nginx": "v"},
            "rows": [
                {"scenario": "mtls", "protocol": "h1", "variant": "", "metric": "server_cpu_us_per_request",
                 "unit": "us", "ours": 12.34, "peers": {"nginx": 20.0, "envoy": 15.0},
                 "ratio_to_best": 0.82, "target": 0.8, "held": false},
                {"scenario": "mtls", "metric": "requests_per_s", "ours": 1.0},
                {"scenario": "mtls", "protocol": "h2", "variant": "", "metric": KERNEL_PART, "ours": 1.0},
                {"scenario": "mtls", "protocol": "h1", "variant": "", "metric": KERNEL_PART,
                 "unit": "us", "ours": 7.89, "peers": {"nginx": 11.0}},
                {"scenario": "flood", "protocol": "udp4", "metric": "core_ns_per_packet", "unit": "ns",
                 "ours": 0.0, "peers": {}, "ratio_to_best": null, "date": "d2",
                 "targets": [{"target": "a", "held": true}, {"target": "b", "held": null}]},
            ],
        });
        assert_eq!(
            table(&document),
            "2 cores, P, Linux 6.1.\n\
             Measured d1, commit 01234567+changes, 3 rounds.\n\
             Measured d2, commit 01234567+changes, 3 rounds.\n\
             nginx: v.\n\n\
             | | ours | others | to the best | meant to be |\n|---|---:|---|---:|---|\n\
             | mtls h1 | 12.3 us (7.89) | envoy 15.0, nginx 20.0 (11.0) | 0.82 | ≤ 0.8: missed |\n\
             | flood udp4: core ns per packet | 0 ns |  | – | a; b: not measured |\n"
        );
    }

    #[test]
    fn of_several_runs_the_middle_one_counts() {
        let run = |ours: f64, nginx: f64| {
            json!({"scenario": "mtls", "protocol": "h1", "variant": "", "metric": "m", "rounds": 1,
                   "ours": ours, "peers": {"nginx": nginx, "envoy": 90.0}, "ratio_to_best": 9.0,
                   "target": 0.8, "held": false})
        };
        let other = json!({"scenario": "mtls", "protocol": "h2", "variant": "", "metric": "m"});
        let rows =
            one_of_each(vec![run(10.0, 20.0), other.clone(), run(30.0, 15.0), run(12.0, 40.0)]);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1], other);
        let row = &rows[0];
        assert_eq!((&row["ours"], &row["spread"]), (&json!(12.0), &json!([11.0, 21.0])));
        assert_eq!(row["peers"], json!({"envoy": 90.0, "nginx": 20.0}));
        assert_eq!((&row["ratio_to_best"], &row["held"]), (&json!(0.6), &json!(true)));
        assert_eq!(row["rounds"], 3);
    }

    #[test]
    fn what_is_around_the_table_stays() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(with_table(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(with_table("a\n", "new\n").is_err());
        assert!(with_table(&format!("{BEGIN}a\n"), "new\n").is_err());
    }
}
