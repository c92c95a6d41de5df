//! From what the generator told to rows, the table and the document.

use serde_json::{Value, json};

use super::{
    scenario::{Case, Scenario, Work},
    servers::Product,
};
use crate::perf::{report::aligned, statistics::Figure};

/// One figure of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in the document.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Where the generator tells it.
    pointer: &'static str,
    /// Less is better, and ours is held against the best peer.
    is_judged: bool,
}

const fn metric(name: &'static str, unit: &'static str, pointer: &'static str) -> Metric {
    Metric { name, unit, pointer, is_judged: false }
}

const fn judged(name: &'static str, unit: &'static str, pointer: &'static str) -> Metric {
    Metric { is_judged: true, ..metric(name, unit, pointer) }
}

/// The part of a server's time that it spends in the kernel.
pub const KERNEL_PART: &str = "of_it_in_the_kernel";

fn metrics(work: Work) -> Vec<Metric> {
    match work {
        Work::Closed => vec![
            judged("server_cpu_us_per_request", "us", "/cpu_us_low"),
            metric(KERNEL_PART, "us", "/kernel_us"),
            metric("requests_per_s", "1/s", ""),
        ],
        Work::Handshakes { .. } => vec![
            judged("server_cpu_us_per_handshake", "us", "/cpu_us_low"),
            metric(KERNEL_PART, "us", "/kernel_us"),
            metric("handshakes_per_s", "1/s", ""),
        ],
        Work::Rate(_) => vec![
            judged("latency_p99", "us", "/latency/p99_us"),
            metric("latency_p50", "us", "/latency/p50_us"),
            metric("latency_p999", "us", "/latency/p999_us"),
            metric("server_cpu_us_per_request", "us", "/cpu_us_mean"),
        ],
        Work::Idle { .. } => vec![judged("memory_per_connection", "KiB", "/kib")],
        Work::Reload(_) => vec![
            judged("latency_p99", "us", "/latency/p99_us"),
            metric("latency_p999", "us", "/latency/p999_us"),
            metric("failed_requests", "requests", "/failed"),
            metric("connections_ended", "connections", "/reconnected"),
        ],
    }
}

/// What the scheduler did, of scenarios that are about it.
fn switches() -> [Metric; 2] {
    [
        metric("voluntary_switches_per_request", "1", "/voluntary_per_request"),
        metric("involuntary_switches_per_request", "1", "/involuntary_per_request"),
    ]
}

/// What the rounds of one case told.
pub struct Measured {
    case: Case,
    /// By server, by round.
    told: Vec<(Product, Vec<Value>)>,
}

impl Measured {
    /// Nothing yet, of these servers.
    pub fn new(case: &Case, products: impl Iterator<Item = Product>) -> Measured {
        Measured { case: *case, told: products.map(|product| (product, Vec::new())).collect() }
    }

    /// One round of one server.
    pub fn add(&mut self, product: Product, told: &Value) {
        if let Some((_, rounds)) = self.told.iter_mut().find(|(known, _)| *known == product) {
            rounds.push(told.clone());
        }
    }

    /// A row for each figure.
    pub fn rows(&self) -> Vec<Row> {
        let mut metrics = metrics(self.case.work);
        if self.case.scenario == Scenario::Host.name() {
            metrics.extend(switches());
        }
        metrics.into_iter().map(|metric| self.row(metric)).collect()
    }

    fn row(&self, metric: Metric) -> Row {
        let value = |told: &Value| match metric.pointer {
            "" => {
                let number = |name: &str| told[name].as_f64().unwrap_or(0.0);
                number("answered") / number("elapsed_s").max(f64::MIN_POSITIVE)
            }
            pointer => told.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0),
        };
        // Who failed told nothing.
        let told = self.told.iter().filter(|(_, rounds)| !rounds.is_empty());
        let figures = told.map(|(product, rounds)| {
            let values: Vec<f64> = rounds.iter().map(value).collect();
            (*product, Figure::of(&values))
        });
        Row { case: self.case, metric, figures: figures.collect() }
    }
}

/// One figure of one case, of every server.
pub struct Row {
    /// What was measured.
    pub case: Case,
    metric: Metric,
    figures: Vec<(Product, Figure)>,
}

impl Row {
    fn of(&self, product: Product) -> Option<Figure> {
        self.figures.iter().find(|(known, _)| *known == product).map(|(_, figure)| *figure)
    }

    fn peers(&self) -> impl Iterator<Item = (Product, Figure)> {
        self.figures.iter().copied().filter(|(product, _)| *product != Product::Ours)
    }

    /// Ours over the best of the others, where less is better.
    fn ratio_to_best(&self) -> Option<f64> {
        let best = self.peers().map(|(_, figure)| figure.median).reduce(f64::min)?;
        let ours = self.of(Product::Ours)?.median;
        (self.metric.is_judged && best > 0.0).then(|| (ours / best * 100.0).round() / 100.0)
    }

    /// The target, where this figure is what it is about.
    fn target(&self) -> Option<f64> {
        self.case.target.filter(|_| self.metric.is_judged)
    }

    /// As results have it.
    pub fn document(&self) -> Value {
        let ours = self.of(Product::Ours).unwrap_or_else(|| Figure::of(&[]));
        let by_name = |value: &dyn Fn(Figure) -> Value| -> serde_json::Map<String, Value> {
            self.peers().map(|(product, figure)| (product.to_string(), value(figure))).collect()
        };
        json!({
            "scenario": self.case.scenario,
            "variant": self.case.variant,
            "protocol": self.case.protocol,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "workers": self.case.workers,
            "ours": rounded(ours.median),
            "spread": [rounded(ours.lower), rounded(ours.upper)],
            "peers": by_name(&|figure| json!(rounded(figure.median))),
            "peers_spread": by_name(&|figure| json!([rounded(figure.lower), rounded(figure.upper)])),
            "ratio_to_best": self.ratio_to_best(),
            "target": self.target(),
            "held": self.target().and_then(|target| Some(self.ratio_to_best()? <= target)),
        })
    }
}

/// To tenths; small figures to thousandths.
fn rounded(figure: f64) -> f64 {
    let parts = if figure < 10.0 { 1_000.0 } else { 10.0 };
    (figure * parts).round() / parts
}

/// Prints a document's table.
pub fn print(document: &Value) {
    println!("\nMedians of {} rounds with quartiles; servers took turns.\n", document["rounds"]);
    for line in table(document) {
        println!("{line}");
    }
    println!();
    if let Some(versions) = document["versions"].as_object() {
        for (name, version) in versions {
            println!("{name}: {}", version.as_str().unwrap_or_default());
        }
    }
    for absent in document["not_measured"].as_array().into_iter().flatten() {
        println!("not measured: {}", absent.as_str().unwrap_or_default());
    }
}

fn table(document: &Value) -> Vec<String> {
    let peers: Vec<&String> = document["versions"]
        .as_object()
        .map(|versions| versions.keys().filter(|name| *name != "portcullis").collect())
        .unwrap_or_default();
    let mut head: Vec<String> = ["scenario", "", "", "figure", "ours"].map(str::to_owned).to_vec();
    head.extend(peers.iter().map(|name| (*name).clone()));
    head.extend(["to best", "target"].map(str::to_owned));
    let mut cells = vec![head];
    for row in document["rows"].as_array().into_iter().flatten() {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let unit = text("unit");
        let mut line = vec![
            text("scenario"),
            text("protocol"),
            text("variant"),
            if unit == "1/s" { text("metric") } else { format!("{} [{unit}]", text("metric")) },
            format!("{} {}", row["ours"], row["spread"]),
        ];
        for name in &peers {
            let (figure, spread) = (&row["peers"][*name], &row["peers_spread"][*name]);
            line.push(if figure.is_null() { "-".into() } else { format!("{figure} {spread}") });
        }
        line.push(row["ratio_to_best"].as_f64().map_or("-".into(), |ratio| format!("{ratio:.2}")));
        line.push(match (row["target"].as_f64(), row["held"].as_bool()) {
            (Some(target), Some(true)) => format!("≤ {target}: held"),
            (Some(target), Some(false)) => format!("≤ {target}: MISSED"),
            (Some(target), None) => format!("≤ {target}: not measured"),
            (None, _) => "-".into(),
        });
        cells.push(line);
    }
    aligned(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(peer: bool) -> Measured {
        let case = Scenario::Mtls.cases()[0];
        let products = [Product::Ours, Product::Haproxy];
        let mut measured =
            Measured::new(&case, products.into_iter().take(if peer { 2 } else { 1 }));
        for (us, answered) in [(10.0, 4_000), (12.0, 5_000), (11.0, 6_000)] {
            let told = |us: f64| json!({"cpu_us_low": us, "answered": answered, "elapsed_s": 2.0});
            measured.add(Product::Ours, &told(us));
            measured.add(Product::Haproxy, &told(us * 2.0));
        }
        measured
    }

    #[test]
    fn less_is_better_only_where_it_is() {
        let [cpu, _kernel, rate] = &measured(true).rows()[..] else { panic!("two figures") };
        let said = cpu.document();
        assert_eq!(said["ours"], 11.0);
        assert_eq!(said["spread"], json!([10.5, 11.5]));
        assert_eq!(said["peers"]["haproxy"], 22.0);
        assert_eq!(said["ratio_to_best"], 0.5);
        assert_eq!(said["held"], true);
        let said = rate.document();
        assert_eq!(said["ours"], 2_500.0);
        assert_eq!([&said["ratio_to_best"], &said["target"]], [&Value::Null; 2]);
    }

    #[test]
    fn without_peers_nothing_is_held() {
        let row = measured(false).rows()[0].document();
        assert_eq!([&row["ratio_to_best"], &row["held"]], [&Value::Null; 2]);
        let document = json!({"versions": {"portcullis": "0"}, "rows": [row]});
        let lines = table(&document);
        assert!(lines[1].ends_with("≤ 0.8: not measured"), "{}", lines[1]);
    }
}
