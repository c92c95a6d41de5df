//! From turns to figures, and to a table for people.

use serde_json::{Value, json};

use super::{
    super::{report, statistics::Figure},
    REQUESTS_PER_S,
    filter::{Filter, Senders},
};

/// How much more than nftables should be dropped in the same processor time.
const TARGET: f64 = 5.0;
/// How much longer than without a flood the client may wait, at its 99th percentile.
const CALM_TARGET: f64 = 1.2;
/// What the rows are told apart by.
const PROCESSOR_TIME: &str = "processor_ns_per_packet";
const CORE_TIME: &str = "core_ns_per_packet";
const CLIENT: &str = "p99_ms";

/// What the turns of one filter came to.
#[derive(Debug, Default)]
pub struct Turns {
    /// Processor time of the receiving thread for each packet, beside the generator on one core.
    pub processor_ns: Vec<f64>,
    /// The least that is known of the core's time in those turns: what is missing from 1 somebody
    /// else had, or nobody told.
    pub accounted: Option<f64>,
    /// Turns that did not count, because too much was missing.
    pub unaccounted: usize,
    /// Time for each packet of a receiver with a core to itself.
    pub core_ns: Vec<f64>,
    /// In how many of those its ring overflowed: its core could not do more.
    pub saturated: usize,
    /// Milliseconds.
    pub p99_ms: Vec<f64>,
    /// Requests of the client that failed or came too late.
    pub lost: usize,
    /// Requests of the client.
    pub asked: usize,
    /// Looks that were taken again, because nothing was sent or time was missing.
    pub again: usize,
}

/// The rows of one kind of flood.
pub fn rows_of(senders: Senders, filters: &[Filter], turns: &[Turns], calm: &Turns) -> Vec<Value> {
    let all = Measured { senders, filters, turns };
    let Some(ours) = all.of(Filter::Ours) else { return Vec::new() };
    let mut processor = all.row(PROCESSOR_TIME, |turns| &turns.processor_ns);
    processor["accounted"] =
        json!(turns.iter().filter_map(|turns| turns.accounted).reduce(f64::min));
    processor["unaccounted_rounds"] =
        json!(turns.iter().map(|turns| turns.unaccounted).sum::<usize>());
    processor["targets"] = json!([{
        "target": format!("≥ {TARGET} × the faster nftables"),
        "held": processor["over_nft"].as_f64().map(|times| times >= TARGET),
    }]);
    let mut core = all.row(CORE_TIME, |turns| &turns.core_ns);
    core["saturated_rounds"] =
        json!({ "ours": ours.saturated, "peers": all.peers(|turns| json!(turns.saturated)) });
    core["taken_again"] = json!(turns.iter().map(|turns| turns.again).sum::<usize>());
    // Of several runs the last one stands, as for the other rows of a flood.
    core["targets"] = json!([]);
    let mut rows = vec![processor, core];
    if senders == Senders::One {
        rows.push(client(&all, ours, calm));
    }
    rows
}

/// All turns of one kind of flood.
#[derive(Clone, Copy)]
struct Measured<'turns> {
    senders: Senders,
    filters: &'turns [Filter],
    turns: &'turns [Turns],
}

impl<'turns> Measured<'turns> {
    fn of(&self, wanted: Filter) -> Option<&'turns Turns> {
        let place = self.filters.iter().position(|filter| *filter == wanted)?;
        self.turns.get(place)
    }

    fn others(&self) -> impl Iterator<Item = (Filter, &'turns Turns)> + use<'turns> {
        let all = self.filters.iter().copied().zip(self.turns);
        all.filter(|(filter, _)| *filter != Filter::Ours)
    }

    /// A value of each of the others.
    fn peers(&self, value: impl Fn(&Turns) -> Value) -> Value {
        Value::Object(
            self.others().map(|(filter, turns)| (filter.name().to_owned(), value(turns))).collect(),
        )
    }

    /// Nanoseconds for each packet; lower is better.
    fn row(&self, metric: &str, ns: impl Fn(&Turns) -> &Vec<f64>) -> Value {
        // Of no turn that counted there is no figure.
        let figure = |turns: &Turns| (!ns(turns).is_empty()).then(|| Figure::of(ns(turns)));
        let median = |turns: &Turns| figure(turns).map(|figure| figure.median);
        let least = |filters: &[Filter]| {
            filters.iter().filter_map(|filter| median(self.of(*filter)?)).min_by(f64::total_cmp)
        };
        let ours = self.of(Filter::Ours).and_then(figure);
        // An empty program is nobody's alternative: it is the floor.
        let best = least(&[Filter::Nft, Filter::NftIngress, Filter::Xdp, Filter::Nothing]);
        let nft = least(&[Filter::Nft, Filter::NftIngress]);
        let per_s = |ns: f64| (1e9 / ns.max(1e-3)).round();
        json!({
            "scenario": self.senders.scenario(),
            "protocol": "udp4",
            "metric": metric,
            "unit": "ns",
            "ours": ours.map(|ours| tenths(ours.median)),
            "spread": ours.map(|ours| [tenths(ours.lower), tenths(ours.upper)]),
            "peers": self.peers(|turns| json!(median(turns).map(tenths))),
            "ratio_to_best": ours.zip(best).map(|(ours, best)| hundredths(ours.median / best)),
            "packets_per_s": { "ours": ours.map(|ours| per_s(ours.median)),
                               "peers": self.peers(|turns| json!(median(turns).map(per_s))) },
            "over_nft": ours.zip(nft).map(|(ours, nft)| hundredths(nft / ours.median)),
        })
    }
}

/// What the client noticed.
fn client(all: &Measured<'_>, ours: &Turns, calm: &Turns) -> Value {
    let p99 = |turns: &Turns| Figure::of(&turns.p99_ms);
    let share = |turns: &Turns| json!({ "lost": turns.lost, "asked": turns.asked });
    let (ours_p99, calm_p99) = (p99(ours), p99(calm));
    let with_client: Vec<(Filter, &Turns)> =
        all.others().filter(|(filter, _)| filter.lets_clients_through()).collect();
    let named = |value: &dyn Fn(&Turns) -> Value| -> Value {
        let values = with_client.iter();
        Value::Object(
            values.map(|(filter, turns)| (filter.name().to_owned(), value(turns))).collect(),
        )
    };
    let best = with_client.iter().map(|(_, turns)| p99(turns).median).min_by(f64::total_cmp);
    json!({
        "scenario": "client-beside-flood",
        "protocol": "h1",
        "metric": CLIENT,
        "unit": "ms",
        "ours": hundredths(ours_p99.median),
        "spread": [hundredths(ours_p99.lower), hundredths(ours_p99.upper)],
        "calm": hundredths(calm_p99.median),
        "peers": named(&|turns| json!(hundredths(p99(turns).median))),
        "ratio_to_best": best.map(|best| hundredths(ours_p99.median / best.max(1e-9))),
        "requests": { "ours": share(ours), "calm": share(calm), "peers": named(&share) },
        "over_calm": hundredths(ours_p99.median / calm_p99.median.max(1e-9)),
        "targets": [{ "target": format!("≤ {CALM_TARGET} × without a flood, nothing lost"),
                      "held": ours.lost == 0
                          && ours_p99.median <= CALM_TARGET * calm_p99.median }],
    })
}

fn tenths(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn hundredths(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

const COLUMNS: [&str; 9] = [
    "scenario",
    "filter",
    "processor ns",
    "M/processor s",
    "against ours",
    "M/s of a core",
    "full",
    "p99 ms",
    "lost",
];

/// The table for people.
pub fn print(document: &Value) {
    println!(
        "\nA flood of 60-octet UDP frames over a veth of one queue, {} rounds in turns, medians.\n",
        document["rounds"]
    );
    let rows = document["rows"].as_array().cloned().unwrap_or_default();
    let mut cells = vec![COLUMNS.map(str::to_owned).to_vec()];
    for row in rows.iter().filter(|row| row["metric"] == PROCESSOR_TIME) {
        let find = |metric: &str, scenario: &Value| {
            rows.iter().find(|row| row["metric"] == metric && row["scenario"] == *scenario)
        };
        let apart = find(CORE_TIME, &row["scenario"]).unwrap_or(&Value::Null);
        let with_client = row["scenario"] == Senders::One.scenario();
        let client = rows.iter().find(|row| with_client && row["metric"] == CLIENT);
        cells.extend(Filter::ALL.iter().filter_map(|filter| line(*filter, row, apart, client)));
    }
    for line in report::aligned(&cells) {
        println!("{line}");
    }
    println!();
    if let Some(client) = rows.iter().find(|row| row["metric"] == CLIENT) {
        println!("p99 of {REQUESTS_PER_S} requests/s without a flood: {} ms", client["calm"]);
    }
    for row in &rows {
        print_judgement(row);
    }
    println!(
        "processor ns: what the receiving thread had of a core that it shares with the generator. \
         M/s of a core: what it takes with a core to itself; full: in how many rounds its ring \
         overflowed then, so that it could not do more."
    );
    for absent in document["not_measured"].as_array().into_iter().flatten() {
        println!("not measured: {}", absent.as_str().unwrap_or_default());
    }
}

/// What one filter came to, if it was measured.
fn line(filter: Filter, row: &Value, apart: &Value, client: Option<&Value>) -> Option<Vec<String>> {
    let of = |value: &Value| match filter {
        Filter::Ours => value["ours"].clone(),
        other => value["peers"][other.name()].clone(),
    };
    let alone = of(&apart["packets_per_s"]).as_f64()?;
    let rate = of(&row["packets_per_s"]).as_f64();
    let over_ours = rate.zip(row["packets_per_s"]["ours"].as_f64()).map(|(rate, ours)| rate / ours);
    let or_dash =
        |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
    let client = client.filter(|_| filter.lets_clients_through());
    let requests = client.map(|client| of(&client["requests"]));
    Some(vec![
        row["scenario"].as_str().unwrap_or_default().to_owned(),
        filter.name().to_owned(),
        of(row).as_f64().map_or("-".to_owned(), |ns| ns.to_string()),
        or_dash(rate.map(|rate| rate / 1e6)),
        or_dash(over_ours),
        or_dash(Some(alone / 1e6)),
        of(&apart["saturated_rounds"]).to_string(),
        client.map_or("-".to_owned(), |client| of(client).to_string()),
        requests.map_or("-".to_owned(), |told| format!("{} of {}", told["lost"], told["asked"])),
    ])
}

/// A row's targets, and what makes it more or less credible.
fn print_judgement(row: &Value) {
    let scenario = row["scenario"].as_str().unwrap_or_default();
    for target in row["targets"].as_array().into_iter().flatten() {
        let held = match target["held"].as_bool() {
            Some(true) => "held",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let times = row["over_nft"].as_f64().or(row["over_calm"].as_f64());
        let times = times.map_or(String::new(), |times| format!(" ({times} ×)"));
        println!("{scenario}: {}{times}: {held}", target["target"].as_str().unwrap_or_default());
    }
    if let Some(share) = row["accounted"].as_f64() {
        println!("{scenario}: of the core's time at least {:.0} % is accounted for", share * 100.0);
    }
    if let Some(unaccounted @ 1..) = row["unaccounted_rounds"].as_u64() {
        println!(
            "{scenario}: {unaccounted} turns did not count, too much of the core's time was missing"
        );
    }
    if row["metric"] == CORE_TIME
        && let Some(times) = row["over_nft"].as_f64()
    {
        println!("{scenario}: with a core for the receiver and one for the generator {times} ×");
    }
    if let Some(again @ 1..) = row["taken_again"].as_u64() {
        println!("{scenario}: {again} looks taken again, nothing was sent or time was missing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_how_much_more_than_nftables_and_what_the_client_noticed() {
        let turns = |processor_ns: f64, core_ns: f64, p99_ms: f64| Turns {
            processor_ns: vec![processor_ns],
            accounted: Some(0.99),
            core_ns: vec![core_ns],
            p99_ms: vec![p99_ms],
            asked: 600,
            ..Turns::default()
        };
        let filters = [Filter::Ours, Filter::Empty, Filter::Nft, Filter::NftIngress];
        let silent = Turns { p99_ms: Vec::new(), ..turns(40.0, 120.0, 0.0) };
        let all =
            [turns(50.0, 150.0, 1.5), silent, turns(320.0, 600.0, 9.0), turns(400.0, 750.0, 6.0)];
        let rows = rows_of(Senders::One, &filters, &all, &turns(0.0, 0.0, 1.3));
        let [processor, core, client] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((&processor["ours"], &processor["over_nft"]), (&json!(50.0), &json!(6.4)));
        assert_eq!(processor["ratio_to_best"], json!(0.16), "an empty program is no peer");
        assert_eq!(processor["targets"][0]["held"], json!(true));
        assert_eq!(
            (&core["over_nft"], &core["peers"]["nft-ingress"]),
            (&json!(4.0), &json!(750.0))
        );
        assert_eq!((&client["ours"], &client["ratio_to_best"]), (&json!(1.5), &json!(0.25)));
        assert_eq!(client["peers"]["empty-program"], Value::Null);
        assert_eq!(client["targets"][0]["held"], json!(true));
        let slower = [
            turns(70.0, 150.0, 1.5),
            turns(40.0, 1.0, 1.0),
            turns(320.0, 1.0, 1.0),
            turns(400.0, 1.0, 1.0),
        ];
        let rows = rows_of(Senders::Many, &filters, &slower, &turns(0.0, 0.0, 1.0));
        assert_eq!((rows.len(), &rows[0]["targets"][0]["held"]), (2, &json!(false)));
        let untold = all.map(|turns| Turns { processor_ns: Vec::new(), unaccounted: 3, ..turns });
        let rows = rows_of(Senders::Many, &filters, &untold, &turns(0.0, 0.0, 1.0));
        assert_eq!((&rows[0]["ours"], &rows[0]["over_nft"]), (&Value::Null, &Value::Null));
        assert_eq!(rows[0]["targets"][0]["held"], Value::Null, "neither held nor missed");
        assert_eq!(
            (&rows[0]["unaccounted_rounds"], &rows[1]["over_nft"]),
            (&json!(12), &json!(4.0))
        );
    }
}
