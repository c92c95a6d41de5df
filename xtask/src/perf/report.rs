//! The table for people and the document for machines.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    machine,
    statistics::Figure,
    xdp::{Measured, PEERS, Row, Target},
};
use crate::{cargo::root, harness::process};

/// The document of one run.
///
/// # Errors
/// Without git or `date`.
pub fn document(measured: &Measured, quick: bool) -> Result<Value> {
    let rows: Vec<Value> = measured.rows.iter().map(row).collect();
    Ok(json!({
        "machine": machine::describe(measured.ns_per_jiffy),
        "date": date()?,
        "commit": machine::commit()?,
        "quick": quick,
        "rounds": measured.rounds,
        "packets_per_round": measured.packets,
        "not_measured": measured.absent,
        "rows": rows,
    }))
}

/// This moment, as results are dated.
///
/// # Errors
/// Without `date`.
pub fn date() -> Result<String> {
    let date = process::succeed(Command::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]))?;
    Ok(date.trim().to_owned())
}

fn row(row: &Row) -> Value {
    let peers: serde_json::Map<String, Value> = row
        .peers
        .iter()
        .map(|(name, figure)| ((*name).to_owned(), json!(tenths(figure.median))))
        .collect();
    let targets: Vec<Value> = row
        .targets
        .iter()
        .map(|target| json!({ "target": target.to_string(), "held": target.is_held(row) }))
        .collect();
    json!({
        "scenario": row.scenario,
        "protocol": row.protocol,
        "metric": "ns_per_packet_over_floor",
        "unit": "ns",
        "ours": tenths(row.over_floor.median),
        "spread": [tenths(row.over_floor.lower), tenths(row.over_floor.upper)],
        "best": tenths(row.best_over_floor),
        "floor": tenths(row.floor.median),
        "ours_with_floor": tenths(row.whole.median),
        "peers": peers,
        "ratio_to_best": row.ratio_to_best(),
        "targets": targets,
    })
}

fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

/// Writes the document below `perf/results`, named by its date.
///
/// # Errors
/// When it cannot be written.
pub fn keep(name: &str, document: &Value) -> Result<PathBuf> {
    let directory = root().join("perf/results");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let date = document["date"].as_str().unwrap_or("undated").replace(':', "");
    let path = directory.join(format!("{name}-{date}.json"));
    fs::write(&path, format!("{document:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Prints the table.
pub fn print(measured: &Measured) {
    println!(
        "\nns per packet by BPF_PROG_TEST_RUN on one core, {} rounds of {} packets, in turns; HZ={}",
        measured.rounds,
        measured.packets,
        machine::hz(measured.ns_per_jiffy)
    );
    println!(
        "Every column but the first two is what was added to the floor: median, for ours with \
         quartiles.\n"
    );
    for line in table(&measured.rows) {
        println!("{line}");
    }
    println!();
    for note in NOTES {
        println!("{note}");
    }
    for absent in &measured.absent {
        println!("not measured: {absent}");
    }
}

const NOTES: [&str; 5] = [
    "best: ours by its best round less the floor by its best round, as if nothing had disturbed \
     them. Targets are judged by the median.",
    "floor: an empty program that drops. Where sources vary, it too gets each packet from the \
     generator, by a tail call.",
    "lru-bucket: a limit for each IPv4 source in an LRU hash, by bpf_ktime_get_ns; lru-bucket-tick: \
     the same by bpf_jiffies64. Neither counts packets.",
    "Of a round's packets the least disturbed tenth counts, for every program alike. The kernel tells \
     whole nanoseconds, rounded down: a difference is right to within one.",
    "Every measured packet came to the end its row is named after, by the program's own counters.",
];

fn table(rows: &[Row]) -> Vec<String> {
    let mut cells =
        vec![["scenario", "floor", "whole", "ours", "best"].map(str::to_owned).to_vec()];
    cells[0].extend(PEERS.map(str::to_owned));
    cells[0].extend(["to best", "targets"].map(str::to_owned));
    for row in rows {
        let mut line = vec![
            row.scenario.to_owned(),
            whole(&row.floor),
            whole(&row.whole),
            format!(
                "+{:.0} [{:.0}, {:.0}]",
                row.over_floor.median, row.over_floor.lower, row.over_floor.upper
            ),
        ];
        line.push(format!("+{:.0}", row.best_over_floor));
        for name in PEERS {
            let peer = row.peers.iter().find(|(known, _)| *known == name);
            line.push(peer.map_or("-".to_owned(), |(_, figure)| format!("+{:.0}", figure.median)));
        }
        line.push(row.ratio_to_best().map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
        let targets: Vec<String> = row.targets.iter().map(|target| said(target, row)).collect();
        line.push(if targets.is_empty() { "-".to_owned() } else { targets.join("; ") });
        cells.push(line);
    }
    aligned(&cells)
}

fn said(target: &Target, row: &Row) -> String {
    let verdict = match target.is_held(row) {
        Some(true) => "held",
        Some(false) => "MISSED",
        None => "not measured",
    };
    format!("{target}: {verdict}")
}

fn whole(figure: &Figure) -> String {
    format!("{:.0}", figure.median)
}

/// Columns as wide as their widest cell; the first to the left, the others to the right, and the
/// last as it is.
pub fn aligned(cells: &[Vec<String>]) -> Vec<String> {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let wide = cells.iter().filter_map(|line| line.get(column));
        wide.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |line: &Vec<String>| {
        let last = line.len().saturating_sub(1);
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 {
                format!("{cell:width$}")
            } else if column == last {
                cell.clone()
            } else {
                format!("{cell:>width$}")
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Row {
        let figure = |median| Figure { median, lower: median - 1.0, upper: median + 1.0 };
        Row {
            scenario: "pass-1m",
            protocol: "udp4",
            floor: figure(32.0),
            whole: figure(112.0),
            over_floor: figure(80.04),
            best_over_floor: 75.0,
            peers: vec![("lru-bucket", figure(400.0)), ("lru-bucket-tick", figure(200.0))],
            targets: vec![
                Target::OverFloor(110.0),
                Target::Share(0.25, "lru-bucket"),
                Target::Share(0.25, "lru-bucket-tick"),
                Target::Share(0.25, "xdp-filter"),
            ],
        }
    }

    #[test]
    fn a_row_says_all_in_the_form_that_results_have() {
        let said = row(&example());
        assert_eq!(said["ours"], json!(80.0));
        assert_eq!(said["spread"], json!([79.0, 81.0]));
        assert_eq!(said["peers"], json!({"lru-bucket": 400.0, "lru-bucket-tick": 200.0}));
        assert_eq!(said["ratio_to_best"], json!(0.4));
        let held: Vec<&Value> =
            said["targets"].as_array().unwrap().iter().map(|target| &target["held"]).collect();
        assert_eq!(held, [&json!(true), &json!(true), &json!(false), &Value::Null]);
    }

    #[test]
    fn the_table_lines_up() {
        let lines = table(&[example()]);
        assert!(lines[1].starts_with("pass-1m      32    112  +80 [79, 81]   +75"), "{}", lines[1]);
        assert!(lines[1].contains("≤ +110 ns: held"), "{}", lines[1]);
        assert!(lines[1].contains("≤ 0.25 of lru-bucket-tick: MISSED"), "{}", lines[1]);
    }
}
