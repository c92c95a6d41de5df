//! What is shipped for monitoring: alerts that fire when they should, a dashboard that shows something,
//! and neither asks for a metric that there is not.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    harness::{process, unpacked},
    metrics::catalogue,
};

fn shipped(name: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).join("systemd").join(name)
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// What an expression asks for: each metric of ours with the labels in its braces.
fn asked(expression: &str) -> Vec<(&str, BTreeSet<&str>)> {
    let starts = expression.match_indices("gateway_").map(|(at, _)| at);
    let is_start = |at: &usize| !expression[..*at].chars().next_back().is_some_and(is_of_a_name);
    starts
        .filter(is_start)
        .map(|at| {
            let rest = &expression[at..];
            let length = rest.find(|next: char| !is_of_a_name(next)).unwrap_or(rest.len());
            let (name, rest) = rest.split_at(length);
            let braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let labels = braces.map_or("", |(labels, _)| labels).split(',');
            let label = |label: &'_ str| -> Option<usize> { label.find(['=', '!']) };
            let labels = labels.filter_map(|one| Some(one[..label(one)?].trim()));
            (name, labels.collect())
        })
        .collect()
}

/// Whether the daemon has all that an expression asks for.
fn judge(expression: &str) -> Result<()> {
    let catalogue = catalogue();
    for (name, labels) in asked(expression) {
        let parts = ["_bucket", "_sum", "_count"];
        let family = parts.into_iter().find_map(|part| {
            let family = name.strip_suffix(part)?;
            (catalogue.get(family)?.kind == "histogram").then_some(family)
        });
        let promised = catalogue.get(family.unwrap_or(name));
        let promised = promised.with_context(|| format!("there is no {name}: {expression}"))?;
        for label in labels.iter().filter(|label| **label != "instance" && **label != "job") {
            ensure!(promised.labels.contains(label), "{name} has no {label}: {expression}");
        }
    }
    Ok(())
}

#[test]
fn expressions_are_taken_apart() {
    for (expression, names) in [
        ("up == 0", vec![]),
        ("gateway_ready == 0", vec![("gateway_ready", vec![])]),
        (
            "rate(gateway_x_total{reason=~\"a|b\",action!=\"c\"}[5m]) / my_gateway_y > gateway_z",
            vec![("gateway_x_total", vec!["action", "reason"]), ("gateway_z", vec![])],
        ),
    ] {
        let found: Vec<_> = asked(expression)
            .into_iter()
            .map(|(name, labels)| (name, labels.into_iter().collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, names, "{expression}");
    }
    assert!(judge("gateway_http_requests_total{route=\"a\"}").is_ok());
    assert!(judge("gateway_http_requests_total{path=\"a\"}").is_err());
    assert!(judge("gateway_http_requests_count").is_err());
    assert!(judge("gateway_http_request_duration_seconds_count").is_ok());
}

#[test]
fn alerts_ask_for_what_there_is_and_say_what_to_do() -> Result<()> {
    let text = fs::read_to_string(shipped("alerts.yml"))?;
    let rules: Vec<&str> = text.split("      - alert: ").skip(1).collect();
    ensure!(rules.len() >= 20, "only {} alerts", rules.len());
    for rule in rules {
        let name = rule.lines().next().unwrap_or_default();
        for part in
            ["        expr: ", "severity: ", "          summary: ", "          description: "]
        {
            ensure!(rule.contains(part), "{name} has no {}", part.trim());
        }
        let is_known = rule.contains("severity: critical") || rule.contains("severity: warning");
        ensure!(is_known, "{name} has another severity");
        judge(rule).with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[test]
fn alerts_fire_when_they_should() -> Result<()> {
    let Some(promtool) = unpacked::program("promtool") else { return Ok(()) };
    let check =
        process::run(Command::new(&promtool).args(["check", "rules"]).arg(shipped("alerts.yml")))?;
    ensure!(check.status == Some(0), "{}{}", check.stdout, check.stderr);
    let tests = shipped("alerts.test.yml");
    let ended = process::run(Command::new(&promtool).args(["test", "rules"]).arg(&tests))?;
    ensure!(ended.status == Some(0), "{}{}", ended.stdout, ended.stderr);
    // Each alert has a test in which it fires.
    let (rules, tests) = (fs::read_to_string(shipped("alerts.yml"))?, fs::read_to_string(tests)?);
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default().trim();
        let firing = format!("- {{labels: 'ALERTS{{alertname=\"{name}\",alertstate=\"firing\",");
        ensure!(tests.contains(&firing), "no test shows {name} fire");
    }
    Ok(())
}

#[test]
fn the_dashboard_shows_what_there_is() -> Result<()> {
    let text = fs::read_to_string(shipped("dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    ensure!(dashboard["uid"] == "portcullis" && dashboard["title"] == "Portcullis");
    ensure!(dashboard["schemaVersion"].as_u64() >= Some(36), "an old schema");
    ensure!(dashboard["id"].is_null(), "an id is the server's to give");
    let variables = dashboard["templating"]["list"].as_array().context("variables")?;
    ensure!(variables.iter().any(|variable| variable["type"] == "datasource"));
    for variable in variables {
        if let Some(query) = variable["query"]["query"].as_str() {
            judge(query)?;
        }
    }
    let panels = dashboard["panels"].as_array().context("panels")?;
    let (mut ids, mut places, mut shown) = (BTreeSet::new(), BTreeSet::new(), 0);
    for panel in panels {
        let title = panel["title"].as_str().context("each panel has a title")?;
        ensure!(ids.insert(panel["id"].as_u64()), "{title}: its id is another's");
        let place = &panel["gridPos"];
        let number = |key: &str| place[key].as_u64().with_context(|| format!("{title}: {key}"));
        ensure!(number("x")? + number("w")? <= 24 && number("h")? > 0, "{title}: {place}");
        ensure!(places.insert((number("x")?, number("y")?)), "{title} lies on another");
        if panel["type"] == "row" {
            continue;
        }
        ensure!(panel["datasource"]["uid"] == "${datasource}", "{title}: {}", panel["datasource"]);
        let targets = panel["targets"].as_array().with_context(|| format!("{title}: targets"))?;
        ensure!(!targets.is_empty(), "{title} asks for nothing");
        for target in targets {
            let expression = target["expr"].as_str().context("an expression")?;
            ensure!(expression.contains("gateway_"), "{title}: {expression}");
            judge(expression).with_context(|| title.to_owned())?;
            shown += 1;
        }
    }
    ensure!(shown >= 20, "only {shown} expressions");
    Ok(())
}
