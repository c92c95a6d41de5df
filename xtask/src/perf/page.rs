//! A result as a page for people: one file that needs nothing else, with a plot for each figure.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::quoted::{Line, number};

/// Of a plot, in its own units: the names' column, the bars' and the figures'.
const NAMES: f64 = 150.0;
const BARS: f64 = 420.0;
const FIGURES: f64 = 130.0;
/// From one bar to the next, and a bar's height.
const STEP: f64 = 24.0;
const HEIGHT: f64 = 16.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--ours:#0b6bcb;--peer:#9aa5b1;--line:#d5dbe1;--miss:#b42318;--held:#1a7f37}\
@media(prefers-color-scheme:dark){:root{--ours:#5aa9ff;--peer:#5f6b78;--line:#3a434d;--miss:#ff8a80;--held:#6fdd8b}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}\
h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{margin:1.5rem 0 .2rem;font-size:1rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}\
th,td{text-align:right;padding:.2rem .5rem;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child{text-align:left}dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}\
dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}svg{width:100%;max-width:44rem;height:auto;display:block}\
svg text{font:13px system-ui,sans-serif;fill:currentColor}.ours{fill:var(--ours)}.peer{fill:var(--peer)}\
.range{stroke:currentColor;stroke-width:1.5}.held{color:var(--held)}.missed{color:var(--miss);font-weight:600}";

/// The page of a document.
pub fn page(document: &Value) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Portcullis: what it costs</title><style>{STYLE}</style></head><body>\n\
         <h1>Portcullis: what it costs, beside others</h1>\n"
    );
    page.push_str(&circumstances(document));
    let rows: Vec<&Value> = document["rows"].as_array().into_iter().flatten().collect();
    page.push_str(&overview(&rows));
    let mut scenario = "";
    for row in rows {
        let next = row["scenario"].as_str().unwrap_or_default();
        if next != scenario {
            scenario = next;
            let _infallible = writeln!(page, "<h2>{}</h2>", escaped(scenario));
        }
        page.push_str(&section(row));
    }
    page.push_str("</body></html>\n");
    page
}

/// What the figures belong to.
fn circumstances(document: &Value) -> String {
    let mut list = String::from("<dl>\n");
    let mut entry = |name: &str, value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if !value.is_null() {
            let _infallible =
                writeln!(list, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(&text));
        }
    };
    for name in ["date", "commit", "rounds", "quick"] {
        entry(name, &document[name]);
    }
    for (name, value) in document["machine"].as_object().into_iter().flatten() {
        if !value.is_object() {
            entry(&name.replace('_', " "), value);
        }
    }
    for (name, value) in document["versions"].as_object().into_iter().flatten() {
        entry(name, value);
    }
    for absent in document["not_measured"].as_array().into_iter().flatten() {
        entry("not measured", absent);
    }
    list.push_str("</dl>\n");
    list
}

/// Everything that is held against others or against a target.
fn overview(rows: &[&Value]) -> String {
    let mut table = String::from(
        "<table><thead><tr><th>what</th><th>ours</th><th>best peer</th><th>to the best</th>\
         <th>meant to be</th></tr></thead><tbody>\n",
    );
    for line in rows.iter().filter_map(|row| Line::of(row)) {
        let best = line
            .peers
            .first()
            .map_or("–".to_owned(), |(name, figure)| format!("{} {}", number(*figure), name));
        let (class, target) = match (&line.target, line.held) {
            (None, _) => ("", "–".to_owned()),
            (Some(target), Some(true)) => ("held", target.clone()),
            (Some(target), Some(false)) => ("missed", format!("{target}: missed")),
            (Some(target), None) => ("", format!("{target}: not measured")),
        };
        let _infallible = writeln!(
            table,
            "<tr><td>{}</td><td>{} {}</td><td>{}</td><td>{}</td><td class=\"{class}\">{}</td></tr>",
            escaped(&line.what),
            number(line.ours),
            escaped(&line.unit),
            escaped(&best),
            line.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            escaped(&target),
        );
    }
    table.push_str("</tbody></table>\n");
    table
}

/// One figure with its plot.
fn section(row: &Value) -> String {
    let words =
        ["protocol", "variant", "metric"].map(|name| row[name].as_str().unwrap_or_default());
    let title: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let title = format!(
        "{} [{}]",
        title.join(" ").replace('_', " "),
        row["unit"].as_str().unwrap_or_default()
    );
    format!("<h3>{}</h3>\n{}", escaped(&title), plot(row, &title))
}

/// A bar for each, ours first, with the quartiles of its rounds.
fn plot(row: &Value, title: &str) -> String {
    let none = Map::new();
    let peers = row["peers"].as_object().unwrap_or(&none);
    let mut bars = vec![("portcullis", row["ours"].as_f64().unwrap_or(0.0), &row["spread"])];
    let mut others: Vec<_> = peers
        .iter()
        .filter_map(|(name, figure)| {
            Some((name.as_str(), figure.as_f64()?, &row["peers_spread"][name]))
        })
        .collect();
    others.sort_by(|one, other| one.1.total_cmp(&other.1));
    bars.extend(others);
    let upper = |bar: &(&str, f64, &Value)| bar.2[1].as_f64().unwrap_or(bar.1).max(bar.1);
    let most = bars.iter().map(upper).fold(f64::MIN_POSITIVE, f64::max);
    let at = |figure: f64| NAMES + figure.max(0.0) / most * BARS;
    let (width, height) = (NAMES + BARS + FIGURES, STEP * bars.len() as f64);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(title)
    );
    for (place, (name, figure, spread)) in bars.iter().enumerate() {
        let top = STEP * place as f64;
        let (middle, text) = (top + HEIGHT / 2.0 + 2.0, top + HEIGHT - 1.0);
        let class = if place == 0 { "ours" } else { "peer" };
        let _infallible = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{NAMES}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\"/>",
            NAMES - 8.0,
            escaped(name),
            top + 2.0,
            at(*figure) - NAMES,
        );
        let mut end = at(*figure);
        if let (Some(lower), Some(upper)) = (spread[0].as_f64(), spread[1].as_f64()) {
            end = end.max(at(upper));
            let _infallible = writeln!(
                svg,
                "<line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
                at(lower),
                at(upper),
            );
        }
        let _infallible = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
            end + 8.0,
            number(*figure)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_has_all_figures_and_lets_no_text_be_markup() {
        let document = json!({
            "date": "2026-01-02T03:04:05Z",
            "machine": {"processor": "A <b> & co", "mitigations": {}},
            "versions": {"envoy": "1"},
            "not_measured": ["nginx: none"],
            "rows": [
                {"scenario": "mtls", "protocol": "h1", "variant": "", "metric": "server_cpu_us_per_request",
                 "unit": "us", "ours": 10.0, "spread": [9.0, 11.0], "peers": {"envoy": 40.0, "nginx": 20.0},
                 "peers_spread": {"envoy": [39.0, 41.0]}, "ratio_to_best": 0.5, "target": 0.4, "held": false},
                {"scenario": "mtls", "protocol": "h1", "metric": "requests_per_s", "unit": "1/s",
                 "ours": 0.0, "spread": [0.0, 0.0], "peers": {}},
            ],
        });
        let page = page(&document);
        for part in [
            "A &lt;b&gt; &amp; co",
            "<dt>not measured</dt><dd>nginx: none</dd>",
            "<td>20.0 nginx</td><td>0.50</td><td class=\"missed\">≤ 0.4: missed</td>",
            "aria-label=\"h1 server cpu us per request [us]\"",
            "requests per s [1/s]",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
        assert_eq!(page.matches("<h2>").count(), 1);
        assert_eq!(page.matches("<rect ").count(), 4);
        assert!(!page.contains("NaN") && !page.contains("<b>"));
        // The best peer comes before the others.
        assert!(page.find(">nginx</text>") < page.find(">envoy</text>"));
    }
}
