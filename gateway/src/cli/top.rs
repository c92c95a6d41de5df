//! `portcullis top`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use terminal_size::{Height, Width, terminal_size};

use super::{DONE, Failure, Question, daemon, socket};
use crate::admin::socket::{Overview, PacketRow};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// Lines of each list.
const LINES_MAX: usize = 10;
/// Puts the cursor to the upper left and clears what is below (ECMA-48).
const REDRAW: &str = "\x1b[H\x1b[J";

/// What `top` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print once: totals, and the rates of one second.
    #[arg(long)]
    once: bool,
    /// Print one JSON object, once.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(path: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let socket = daemon(path)?;
    let look = || -> Result<Overview, Failure> { Ok(socket::ask(&socket, &Question::Top)?) };
    let mut before = look()?;
    // Where nobody watches, once is enough.
    let is_once = arguments.once || arguments.json || !io::stdout().is_terminal();
    loop {
        thread::sleep(PERIOD);
        let mut now = look()?;
        add_rates(&before, &mut now);
        if arguments.json {
            println!("{}", serde_json::json!(now));
        } else if is_once {
            print!("{}", text(&now, LINES_MAX));
        } else {
            print!("{REDRAW}{}", screen(&now, terminal_size()));
        }
        // A reader that went away ends the command quietly.
        if is_once || io::stdout().flush().is_err() {
            return Ok(ExitCode::from(DONE));
        }
        before = now;
    }
}

/// What came a second between two looks; a counter that began anew has no rate.
fn add_rates(before: &Overview, now: &mut Overview) {
    let passed_s = now.at_s - before.at_s;
    let rate = |before: u64, now: u64| {
        if passed_s > 0.0 { (now.saturating_sub(before) as f64 / passed_s).round() } else { 0.0 }
    };
    let key = |row: &PacketRow| (row.interface.clone(), row.action.clone(), row.reason.clone());
    let packets: BTreeMap<_, _> =
        before.packets.iter().map(|row| (key(row), row.packets)).collect();
    for row in &mut now.packets {
        row.packets_per_s = rate(packets.get(&key(row)).copied().unwrap_or(0), row.packets);
    }
    for (list, earlier) in [
        (&mut now.refusals, &before.refusals),
        (&mut now.consumers, &before.consumers),
        (&mut now.limited, &before.limited),
    ] {
        let counted: BTreeMap<_, _> = earlier.iter().map(|row| (&row.name, row.count)).collect();
        for row in list {
            row.per_s = rate(counted.get(&row.name).copied().unwrap_or(0), row.count);
        }
    }
}

/// As much as a terminal of that size shows without moving what is above: the rows of each list become
/// fewer, then the lists, and the last line stays free for the cursor.
fn screen(overview: &Overview, size: Option<(Width, Height)>) -> String {
    let Some((Width(width), Height(height))) = size else { return text(overview, LINES_MAX) };
    let (width, height) = (usize::from(width), usize::from(height).saturating_sub(1));
    let whole = (1..=LINES_MAX)
        .rev()
        .map(|rows| text(overview, rows))
        .find(|text| text.lines().count() <= height);
    let whole = whole.unwrap_or_else(|| text(overview, 1));
    let mut shown = String::new();
    for line in whole.lines().take(height) {
        shown.extend(line.chars().take(width));
        shown.push('\n');
    }
    shown
}

fn text(overview: &Overview, rows_max: usize) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!("{} connections, {} bans", overview.connections, overview.bans));
    line(format_args!(
        "\n{:<15} {:<10} {:<16} {:>12} {:>16}",
        "INTERFACE", "ACTION", "REASON", "PACKETS/S", "PACKETS"
    ));
    let mut packets: Vec<_> = overview.packets.iter().filter(|row| row.packets > 0).collect();
    packets.sort_by(|one, other| {
        other.packets_per_s.total_cmp(&one.packets_per_s).then(other.packets.cmp(&one.packets))
    });
    for row in packets.into_iter().take(2 * rows_max) {
        line(format_args!(
            "{:<15} {:<10} {:<16} {:>12.0} {:>16}",
            row.interface, row.action, row.reason, row.packets_per_s, row.packets
        ));
    }
    line(format_args!("\n{:<43} USED OF WHAT IT MAY SEND AT ONCE", "SOURCE"));
    for source in overview.sources.iter().take(rows_max) {
        let used: Vec<String> = source
            .allowances
            .iter()
            .map(|row| format!("{} {}%", row.quota, used_percent(row.left, row.burst)))
            .collect();
        line(format_args!("{:<43} {}", source.source, used.join(", ")));
    }
    for (title, list) in [
        ("REFUSALS", &overview.refusals),
        ("CONSUMERS", &overview.consumers),
        ("OVER A LIMIT", &overview.limited),
    ] {
        line(format_args!("\n{title:<43} {:>12} {:>16}", "A SECOND", "IN ALL"));
        let mut rows: Vec<_> = list.iter().filter(|row| row.count > 0).collect();
        rows.sort_by(|one, other| {
            other.per_s.total_cmp(&one.per_s).then(other.count.cmp(&one.count))
        });
        for row in rows.into_iter().take(rows_max) {
            line(format_args!("{:<43} {:>12.0} {:>16}", row.name, row.per_s, row.count));
        }
    }
    text
}

fn used_percent(left: u64, burst: u64) -> u64 {
    burst.saturating_sub(left).saturating_mul(100) / burst.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::socket::CountRow;

    fn overview(at_s: f64, packets: u64, refused: u64) -> Overview {
        Overview {
            at_s,
            packets: vec![PacketRow {
                interface: "eth0".to_owned(),
                action: "drop".to_owned(),
                reason: "banned".to_owned(),
                packets,
                bytes: 60 * packets,
                packets_per_s: 0.0,
            }],
            refusals: vec![CountRow { name: "expired".to_owned(), count: refused, per_s: 0.0 }],
            ..Overview::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        for (before, mut now, packets_per_s, refused_per_s) in [
            (overview(1.0, 100, 5), overview(3.0, 300, 5), 100.0, 0.0),
            (overview(1.0, 100, 5), overview(1.0, 300, 7), 0.0, 0.0),
            // Begun anew.
            (overview(1.0, 100, 5), overview(2.0, 10, 9), 0.0, 4.0),
            (Overview { at_s: 1.0, ..Overview::default() }, overview(2.0, 10, 9), 10.0, 9.0),
        ] {
            add_rates(&before, &mut now);
            assert_eq!(now.packets[0].packets_per_s, packets_per_s);
            assert_eq!(now.refusals[0].per_s, refused_per_s);
            let told = text(&now, LINES_MAX);
            assert!(told.contains("eth0") && told.contains("expired"), "{told}");
        }
    }

    #[test]
    fn a_small_terminal_shows_the_beginning_of_every_list() {
        let mut full = overview(1.0, 100, 5);
        for number in 0..30 {
            let row = full.packets[0].clone();
            full.packets.push(PacketRow { interface: format!("eth{number}"), ..row });
            full.refusals.push(CountRow { name: format!("r{number}"), count: 1, per_s: 0.0 });
        }
        full.consumers = full.refusals.clone();
        full.limited = full.refusals.clone();
        let all = text(&full, LINES_MAX).lines().count();
        for (width, height, lists) in [
            (80, 200, 5),
            (80, 40, 5),
            (80, 24, 5),
            (200, 18, 5),
            (30, 10, 3),
            (1, 1, 0),
            (80, 0, 0),
        ] {
            let shown = screen(&full, Some((Width(width), Height(height))));
            let lines: Vec<&str> = shown.lines().collect();
            assert!(lines.len() <= usize::from(height).saturating_sub(1).min(all), "{shown}");
            assert!(lines.iter().all(|line| line.chars().count() <= usize::from(width)), "{shown}");
            let titles = ["INTERFACE", "SOURCE", "REFUSALS", "CONSUMERS", "OVER A LIMIT"];
            let seen =
                titles.iter().filter(|title| lines.iter().any(|line| line.starts_with(*title)));
            assert_eq!(seen.count(), lists, "{width} × {height}:\n{shown}");
        }
        assert_eq!(screen(&full, None), text(&full, LINES_MAX));
    }

    #[test]
    fn what_is_used_is_told_in_hundredths() {
        for (left, burst, percent) in
            [(0, 10, 100), (10, 10, 0), (11, 10, 0), (1, 3, 66), (0, 0, 0)]
        {
            assert_eq!(used_percent(left, burst), percent);
        }
    }
}
