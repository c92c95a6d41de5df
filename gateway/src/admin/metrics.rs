//! Every metric, once, with its help; labels come from the configuration and from closed lists.
//!
//! A worker counts in plain integers that only it touches ([`WorkerMetrics`]); a scrape asks each
//! worker for a copy and adds them up. So counting costs a request no lock and no shared cache line.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use lru::{DefaultHasher, LruCache};

use crate::policy::{
    Reason,
    limit::{Decision, Verdict},
};

/// Consumers that get a label of their own; a series more costs Prometheus about 4 KiB.
const CONSUMERS_MAX: usize = 1_000;

/// The consumer of requests without a proven client, and of clients beyond [`CONSUMERS_MAX`].
const OTHER: &str = "other";

/// Longest consumer name in a label, in bytes: names come from outside.
const CONSUMER_NAME_MAX_BYTES: usize = 128;

/// Upper bounds of the request duration's buckets, in seconds.
const DURATION_BOUNDS_S: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Upper bounds for the time from evidence to ban, in seconds.
const FEEDBACK_BOUNDS_S: [f64; 10] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0];

/// Consumers over a limit that a worker remembers for `portcullis top`: more than a screen shows. Who
/// was over one longest ago is forgotten first.
const LIMITED_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("is not 0");

/// A consumer's place in the table of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Consumer(u16);

impl Consumer {
    /// No proven client, or one too many.
    pub const OTHER: Consumer = Consumer(0);
}

/// The first 1,000 consumers that were seen; the same for all workers.
#[derive(Clone, Debug, Default)]
pub struct Consumers {
    names: Arc<Mutex<Vec<String>>>,
}

impl Consumers {
    /// The place of a name, new if there is room. Workers remember the answer and ask once for each name.
    pub fn place(&self, name: &str) -> Consumer {
        if name.len() > CONSUMER_NAME_MAX_BYTES {
            return Consumer::OTHER;
        }
        let mut names = self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let index = names.iter().position(|known| known == name).or_else(|| {
            (names.len() < CONSUMERS_MAX).then(|| {
                names.push(name.to_owned());
                names.len() - 1
            })
        });
        // CONSUMERS_MAX + 1 fits.
        index.map_or(Consumer::OTHER, |index| Consumer(index as u16 + 1))
    }

    /// The names that have a place, in the order of their places.
    pub fn names(&self) -> Vec<String> {
        self.names.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl Consumer {
    /// Its name, among those of [`Consumers::names`].
    pub fn name(self, names: &[String]) -> &str {
        let index = usize::from(self.0).checked_sub(1);
        index.and_then(|index| names.get(index)).map_or(OTHER, String::as_str)
    }
}

/// Counts of one histogram.
#[derive(Clone, Debug)]
pub struct Histogram<const N: usize> {
    bounds_s: [f64; N],
    counts: [u64; N],
    count: u64,
    sum_s: f64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds_s: [f64; N]) -> Self {
        Histogram { bounds_s, counts: [0; N], count: 0, sum_s: 0.0 }
    }

    /// Takes note of one duration.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(slot) = self.bounds_s.iter().position(|bound| seconds <= *bound) {
            self.counts[slot] += 1;
        }
        self.count += 1;
        self.sum_s += seconds;
    }

    /// All durations together, in seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum_s
    }

    /// How many durations there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.counts.iter_mut().zip(other.counts) {
            *ours += theirs;
        }
        self.count += other.count;
        self.sum_s += other.sum_s;
    }

    fn write(&self, out: &mut String, name: &str) {
        let mut running = 0;
        for (bound, count) in self.bounds_s.iter().zip(self.counts) {
            running += count;
            line(out, &format!("{name}_bucket"), &[("le", &bound.to_string())], running);
        }
        line(out, &format!("{name}_bucket"), &[("le", "+Inf")], self.count);
        line(out, &format!("{name}_sum"), &[], self.sum_s);
        line(out, &format!("{name}_count"), &[], self.count);
    }
}

/// What one worker has counted. Only that worker touches it.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    /// By consumer, route (by name) and status.
    pub requests: HashMap<(Consumer, Arc<str>, u16), u64, DefaultHasher>,
    /// From the head's arrival to the end of the answer's head.
    pub request_duration: Histogram<12>,
    /// Refusals of requests, by the reason's code.
    pub refusals: BTreeMap<Reason, u64>,
    /// Failed handshakes.
    pub handshake_failures: BTreeMap<Reason, u64>,
    /// Completed handshakes, by listener.
    pub handshakes: Vec<u64>,
    /// Completed handshakes that resumed an earlier session, by listener.
    pub handshakes_resumed: Vec<u64>,
    /// Failed handshakes, by listener.
    pub handshakes_failed: Vec<u64>,
    /// Open connections, by listener.
    pub connections: Vec<u64>,
    /// Connections ended because their client would no longer be let in.
    pub connections_withdrawn: BTreeMap<Reason, u64>,
    /// Connections closed at once because `max_connections` were open.
    pub connections_over_limit: u64,
    /// New connections over QUIC that had to show first that they are where they say.
    pub quic_retries: u64,
    /// First packets of QUIC that were not answered, for too many handshakes were under way.
    pub quic_ignored: u64,
    /// Judged tokens by issuer's name (empty: none could be told) and result.
    pub token_validations: BTreeMap<(Arc<str>, &'static str), u64>,
    /// Tokens found in the cache.
    pub token_cache_hits: u64,
    /// Tokens that had to be verified.
    pub token_cache_misses: u64,
    /// Tokens in the cache now.
    pub token_cache_entries: u64,
    /// Requests sent to upstreams, by name and result.
    pub upstream_requests: BTreeMap<(Arc<str>, &'static str), u64>,
    /// What limits said, by name and decision.
    pub limit_decisions: BTreeMap<(Arc<str>, Decision), u64>,
    /// Requests over a limit, by its name and whom they were counted for.
    pub limited: LruCache<(Arc<str>, String), u64>,
    /// Requests sent once more, by upstream.
    pub upstream_repeated: BTreeMap<Arc<str>, u64>,
    /// Answers that broke off after their head, by upstream and how.
    pub upstream_cut: BTreeMap<(Arc<str>, &'static str), u64>,
    /// Open WebSockets.
    pub tunnels_open: u64,
    /// Ended WebSockets, by why.
    pub tunnels_ended: BTreeMap<&'static str, u64>,
    /// Evidence that found the feedback queue full.
    pub evidence_lost: u64,
    /// Log lines that found the log's queue full, or its disk.
    pub log_lines_lost: u64,
}

impl WorkerMetrics {
    /// Nothing counted yet.
    pub fn new(listeners: usize) -> WorkerMetrics {
        WorkerMetrics {
            requests: HashMap::default(),
            request_duration: Histogram::new(DURATION_BOUNDS_S),
            refusals: BTreeMap::new(),
            handshake_failures: BTreeMap::new(),
            handshakes: vec![0; listeners],
            handshakes_resumed: vec![0; listeners],
            handshakes_failed: vec![0; listeners],
            connections: vec![0; listeners],
            connections_withdrawn: BTreeMap::new(),
            connections_over_limit: 0,
            quic_retries: 0,
            quic_ignored: 0,
            token_validations: BTreeMap::new(),
            token_cache_hits: 0,
            token_cache_misses: 0,
            token_cache_entries: 0,
            upstream_requests: BTreeMap::new(),
            limit_decisions: BTreeMap::new(),
            limited: LruCache::new(LIMITED_MAX),
            upstream_repeated: BTreeMap::new(),
            upstream_cut: BTreeMap::new(),
            tunnels_open: 0,
            tunnels_ended: BTreeMap::new(),
            evidence_lost: 0,
            log_lines_lost: 0,
        }
    }

    /// Counts what limits said of a request.
    pub fn count_limits(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            let Some(decision) = verdict.decision else { continue };
            let name = &verdict.limit.name;
            match self.limit_decisions.get_mut(&(name.clone(), decision)) {
                Some(count) => *count += 1,
                None => {
                    // All of them from the first on, so that the first refusal shows in a rate.
                    for each in Decision::ALL {
                        self.limit_decisions.entry((name.clone(), each)).or_default();
                    }
                    *self.limit_decisions.entry((name.clone(), decision)).or_default() += 1;
                }
            }
            if let Some(subject) = &verdict.subject {
                let key = (name.clone(), subject.clone());
                *self.limited.get_or_insert_mut(key, || 0) += 1;
            }
        }
    }

    /// Makes room for the counts of so many listeners.
    pub fn grow(&mut self, listeners: usize) {
        for counts in [
            &mut self.handshakes,
            &mut self.handshakes_resumed,
            &mut self.handshakes_failed,
            &mut self.connections,
        ] {
            counts.resize(counts.len().max(listeners), 0);
        }
    }

    /// Adds another worker's counts.
    pub fn add(&mut self, other: &WorkerMetrics) {
        self.grow(other.connections.len());
        fn add_map<K: Ord + Clone>(ours: &mut BTreeMap<K, u64>, theirs: &BTreeMap<K, u64>) {
            for (key, count) in theirs {
                *ours.entry(key.clone()).or_default() += count;
            }
        }
        fn add_each(ours: &mut [u64], theirs: &[u64]) {
            for (ours, theirs) in ours.iter_mut().zip(theirs) {
                *ours += theirs;
            }
        }
        for (key, count) in &other.requests {
            *self.requests.entry(key.clone()).or_default() += count;
        }
        self.request_duration.add(&other.request_duration);
        add_map(&mut self.refusals, &other.refusals);
        add_map(&mut self.handshake_failures, &other.handshake_failures);
        add_each(&mut self.handshakes, &other.handshakes);
        add_each(&mut self.handshakes_resumed, &other.handshakes_resumed);
        add_each(&mut self.handshakes_failed, &other.handshakes_failed);
        add_each(&mut self.connections, &other.connections);
        add_map(&mut self.connections_withdrawn, &other.connections_withdrawn);
        self.connections_over_limit += other.connections_over_limit;
        self.quic_retries += other.quic_retries;
        self.quic_ignored += other.quic_ignored;
        add_map(&mut self.token_validations, &other.token_validations);
        self.token_cache_hits += other.token_cache_hits;
        self.token_cache_misses += other.token_cache_misses;
        self.token_cache_entries += other.token_cache_entries;
        add_map(&mut self.upstream_requests, &other.upstream_requests);
        add_map(&mut self.limit_decisions, &other.limit_decisions);
        for (key, count) in &other.limited {
            let known = self.limited.peek(key).copied().unwrap_or_default();
            // All that the workers know, so that none of it crowds out another's.
            if known == 0 && self.limited.len() == self.limited.cap().get() {
                self.limited.resize(self.limited.cap().saturating_add(LIMITED_MAX.get()));
            }
            self.limited.put(key.clone(), known + count);
        }
        add_map(&mut self.upstream_repeated, &other.upstream_repeated);
        add_map(&mut self.upstream_cut, &other.upstream_cut);
        self.tunnels_open += other.tunnels_open;
        add_map(&mut self.tunnels_ended, &other.tunnels_ended);
        self.evidence_lost += other.evidence_lost;
        self.log_lines_lost += other.log_lines_lost;
    }
}

/// What the control thread has counted: reloads, bans, the way from evidence to ban.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    /// Bans set, by reason.
    pub bans: BTreeMap<Reason, u64>,
    /// From the deciding refusal to the entry in the kernel map.
    pub ban_feedback: Histogram<10>,
    /// Reloads that were applied.
    pub reloads_applied: u64,
    /// Reloads that were refused; the old configuration stayed.
    pub reloads_refused: u64,
    /// Whether the last one was.
    pub last_reload_refused: bool,
    /// Agents that ended while the daemon served.
    pub agents_ended: u64,
}

impl Default for ControlMetrics {
    fn default() -> Self {
        ControlMetrics {
            bans: BTreeMap::new(),
            ban_feedback: Histogram::new(FEEDBACK_BOUNDS_S),
            reloads_applied: 0,
            reloads_refused: 0,
            last_reload_refused: false,
            agents_ended: 0,
        }
    }
}

/// A gauge or counter that is read when asked for.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Metric name.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// Series: labels and value.
    pub series: Vec<(Vec<(&'static str, String)>, f64)>,
}

/// The whole page in Prometheus' text format, version 0.0.4. `listeners` are the names of those to
/// show, each with its place among the counts.
pub fn page(
    workers: &WorkerMetrics,
    control: &ControlMetrics,
    consumers: &Consumers,
    listeners: &[(usize, String)],
    readings: &[Reading],
) -> String {
    let mut out = String::with_capacity(16 * 1024);
    let names = consumers.names();
    head(&mut out, "gateway_http_requests_total", "counter", "Requests answered.");
    let requests: BTreeMap<_, _> = workers.requests.iter().collect();
    for ((consumer, route, code), count) in requests {
        let name = consumer.name(&names);
        let labels = [("consumer_id", name), ("route", route), ("code", &code.to_string())];
        line(&mut out, "gateway_http_requests_total", &labels, count);
    }
    let name = "gateway_http_request_duration_seconds";
    head(&mut out, name, "histogram", "From the request's head to the answer's head.");
    workers.request_duration.write(&mut out, name);
    reasons(&mut out, "gateway_http_refusals_total", "Requests refused.", &workers.refusals);
    reasons(
        &mut out,
        "gateway_tls_handshake_failures_total",
        "Handshakes that failed.",
        &workers.handshake_failures,
    );
    let name = "gateway_tls_handshakes_total";
    head(&mut out, name, "counter", "Handshakes, by result.");
    let count = |counts: &[u64], place: usize| counts.get(place).copied().unwrap_or_default();
    for (place, listener) in listeners {
        let count = |counts: &[u64]| count(counts, *place);
        let done = count(&workers.handshakes);
        line(&mut out, name, &[("listener", listener), ("result", "ok")], done);
        let resumed = count(&workers.handshakes_resumed);
        line(&mut out, name, &[("listener", listener), ("result", "resumed")], resumed);
        let failed = count(&workers.handshakes_failed);
        line(&mut out, name, &[("listener", listener), ("result", "failed")], failed);
    }
    let name = "gateway_connections";
    head(&mut out, name, "gauge", "Connections open now.");
    for (place, listener) in listeners {
        line(&mut out, name, &[("listener", listener)], count(&workers.connections, *place));
    }
    reasons(
        &mut out,
        "gateway_connections_withdrawn_total",
        "Open connections ended because their client would no longer be let in.",
        &workers.connections_withdrawn,
    );
    single(
        &mut out,
        "gateway_connections_over_limit_total",
        "counter",
        "Connections closed at once because max_connections were open.",
        workers.connections_over_limit,
    );
    single(
        &mut out,
        "gateway_quic_retries_total",
        "counter",
        "New HTTP/3 clients that had to show first that they are at their address.",
        workers.quic_retries,
    );
    single(
        &mut out,
        "gateway_quic_ignored_total",
        "counter",
        "First packets of HTTP/3 clients not answered: too many handshakes were under way.",
        workers.quic_ignored,
    );
    let name = "gateway_token_validations_total";
    head(&mut out, name, "counter", "Tokens judged, by issuer and result.");
    for ((issuer, result), count) in &workers.token_validations {
        line(&mut out, name, &[("issuer", issuer), ("result", result)], count);
    }
    for (name, kind, help, value) in [
        (
            "gateway_token_cache_hits_total",
            "counter",
            "Tokens found in the cache.",
            workers.token_cache_hits,
        ),
        (
            "gateway_token_cache_misses_total",
            "counter",
            "Tokens that had to be verified.",
            workers.token_cache_misses,
        ),
        (
            "gateway_token_cache_entries",
            "gauge",
            "Tokens in the cache.",
            workers.token_cache_entries,
        ),
        (
            "gateway_evidence_lost_total",
            "counter",
            "Refusals that found the feedback queue full.",
            workers.evidence_lost,
        ),
        (
            "gateway_log_lines_lost_total",
            "counter",
            "Log lines that found the log's queue full, or its disk.",
            workers.log_lines_lost,
        ),
    ] {
        single(&mut out, name, kind, help, value);
    }
    let name = "gateway_upstream_requests_total";
    head(&mut out, name, "counter", "Requests sent to upstreams, by result.");
    for ((upstream, result), count) in &workers.upstream_requests {
        line(&mut out, name, &[("upstream", upstream), ("result", result)], count);
    }
    let name = "gateway_ratelimit_decisions_total";
    head(&mut out, name, "counter", "What limits said of requests.");
    for ((limit, decision), count) in &workers.limit_decisions {
        line(&mut out, name, &[("limit", limit), ("decision", decision.word())], count);
    }
    let name = "gateway_upstream_repeated_total";
    head(&mut out, name, "counter", "Requests sent to an upstream once more.");
    for (upstream, count) in &workers.upstream_repeated {
        line(&mut out, name, &[("upstream", upstream)], count);
    }
    let name = "gateway_upstream_bodies_cut_total";
    head(&mut out, name, "counter", "Answers of upstreams that broke off after their head.");
    for ((upstream, how), count) in &workers.upstream_cut {
        line(&mut out, name, &[("upstream", upstream), ("how", how)], count);
    }
    let name = "gateway_websockets_ended_total";
    head(&mut out, name, "counter", "Ended WebSockets, by why.");
    for (how, count) in &workers.tunnels_ended {
        line(&mut out, name, &[("reason", how)], count);
    }
    let open = "gateway_websockets_open";
    single(&mut out, open, "gauge", "Open WebSockets.", workers.tunnels_open);
    reasons(&mut out, "gateway_bans_total", "Bans set.", &control.bans);
    let name = "gateway_ban_feedback_seconds";
    head(&mut out, name, "histogram", "From the deciding refusal to the ban in the kernel map.");
    control.ban_feedback.write(&mut out, name);
    let name = "gateway_config_reloads_total";
    head(&mut out, name, "counter", "Reloads of the configuration, by result.");
    line(&mut out, name, &[("result", "applied")], control.reloads_applied);
    line(&mut out, name, &[("result", "refused")], control.reloads_refused);
    let name = "gateway_config_last_reload_successful";
    let help =
        "0 when the last reload was refused and the configuration is another than the file's.";
    single(&mut out, name, "gauge", help, u64::from(!control.last_reload_refused));
    for reading in readings {
        head(&mut out, reading.name, reading.kind, reading.help);
        for (labels, value) in &reading.series {
            let labels: Vec<_> = labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
            line(&mut out, reading.name, &labels, value);
        }
    }
    out
}

/// One series for every reason of the closed list, so that a rate can be taken from the first one on.
fn reasons(out: &mut String, name: &str, help: &str, counts: &BTreeMap<Reason, u64>) {
    head(out, name, "counter", help);
    for reason in Reason::ALL {
        let count = counts.get(reason).copied().unwrap_or_default();
        line(out, name, &[("reason", reason.word())], count);
    }
}

fn single(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    line(out, name, &[], value);
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    out.push_str(name);
    for (index, (key, value)) in labels.iter().enumerate() {
        out.push(if index == 0 { '{' } else { ',' });
        out.push_str(key);
        out.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if !labels.is_empty() {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_adds_up_workers_and_escapes_labels() {
        let consumers = Consumers::default();
        let odd = consumers.place("a\"b\\c");
        let route: Arc<str> = Arc::from("orders");
        let mut one = WorkerMetrics::new(1);
        one.requests.insert((odd, route.clone(), 200), 2);
        one.request_duration.observe(Duration::from_millis(1));
        one.refusals.insert(Reason::NoRoute, 1);
        one.connections[0] = 3;
        let mut two = WorkerMetrics::new(1);
        two.requests.insert((odd, route, 200), 5);
        two.connections[0] = 4;
        one.add(&two);
        let page = page(&one, &ControlMetrics::default(), &consumers, &[(0, "edge".into())], &[]);
        for expected in [
            r#"gateway_http_requests_total{consumer_id="a\"b\\c",route="orders",code="200"} 7"#,
            r#"gateway_connections{listener="edge"} 7"#,
            r#"gateway_http_refusals_total{reason="no_route"} 1"#,
            r#"gateway_http_request_duration_seconds_bucket{le="0.001"} 1"#,
            r#"gateway_http_request_duration_seconds_count 1"#,
        ] {
            assert!(page.lines().any(|line| line == expected), "{expected} in\n{page}");
        }
    }

    #[test]
    fn consumers_are_bounded() {
        let consumers = Consumers::default();
        for number in 0..CONSUMERS_MAX {
            assert_ne!(consumers.place(&format!("client-{number}")), Consumer::OTHER);
        }
        assert_eq!(consumers.place("one-too-many"), Consumer::OTHER);
        assert_ne!(consumers.place("client-7"), Consumer::OTHER);
        assert_eq!(consumers.place(&"x".repeat(CONSUMER_NAME_MAX_BYTES + 1)), Consumer::OTHER);
    }
}
