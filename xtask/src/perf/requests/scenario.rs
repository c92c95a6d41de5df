//! What is measured, and what it is meant to come to.

use std::fmt;

use serde_json::{Value, json};

use super::{
    files::{Algorithm, Keys},
    servers::Setup,
};

/// Kept connections, as in the crowd of clients of a middling service.
const CONNECTIONS: usize = 64;
/// Connections and requests at once on each, where a protocol carries many.
const SHARED: [usize; 2] = [16, 8];
/// Handshakes at once: the server is never idle, and its queue never long.
const HANDSHAKES_AT_ONCE: usize = 8;
/// While servers are reloaded: a middling day's rate, so that a pause shows and nothing is saturated.
const RELOAD_PER_S: u32 = 2_000;
/// Between one reload and the next; the first comes after the first of these.
pub const RELOAD_EVERY_MS: u64 = 1_000;
/// Hundreds of requests, or of handshakes, come in one.
const WINDOW_MS: u64 = 60;
const HANDSHAKE_WINDOW_MS: u64 = 150;
/// Tokens of a service's day, which every cache holds.
const MANY: usize = 3_000;
/// Twice what ours is told to remember: one after the other, each is forgotten before it comes again.
pub const COLD: usize = 2 * super::REMEMBERED;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Kept connections, certificates only.
    Mtls,
    /// One token.
    TokenHot,
    /// 3,000 tokens.
    TokenMany,
    /// Tokens that were never seen.
    TokenCold,
    /// Connections that are opened, asked on once, and closed.
    Handshake,
    /// Fixed rates.
    Latency,
    /// Crowds that do nothing.
    Idle,
    /// A rate of requests while the configuration is read again each second.
    Reload,
    /// One worker, and two.
    Scale,
    /// What the kernel's scheduler has to do for a request.
    Host,
}

/// What the server is given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The next request as soon as the last is answered.
    Closed,
    /// So many requests a second.
    Rate(u32),
    /// Connections, each for one request.
    Handshakes {
        /// They resume the last session.
        resumed: bool,
    },
    /// Connections that do nothing.
    Idle {
        /// So many.
        connections: usize,
    },
    /// So many requests a second, while the server reads its configuration again each second.
    Reload(u32),
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What distinguishes it within the scenario.
    pub variant: &'static str,
    /// h1, h2 or h3.
    pub protocol: &'static str,
    /// Keys of servers and clients.
    pub keys: Keys,
    /// Tokens: how signed, how many different ones.
    pub tokens: Option<(Algorithm, usize)>,
    /// Threads or processes of the server.
    pub workers: usize,
    /// What the server is given to do.
    pub work: Work,
    /// Ours is meant to be at most this share of the best peer.
    pub target: Option<f64>,
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { scenario, variant, protocol, .. } = self;
        write!(out, "{scenario} {protocol}")?;
        if !variant.is_empty() {
            write!(out, " {variant}")?;
        }
        Ok(())
    }
}

impl Scenario {
    /// All, in the order in which they are shown.
    pub const ALL: [Scenario; 10] = [
        Scenario::Mtls,
        Scenario::TokenHot,
        Scenario::TokenMany,
        Scenario::TokenCold,
        Scenario::Handshake,
        Scenario::Latency,
        Scenario::Idle,
        Scenario::Reload,
        Scenario::Scale,
        Scenario::Host,
    ];

    /// Its name on the command line and in rows.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Mtls => "mtls",
            Scenario::TokenHot => "token-hot",
            Scenario::TokenMany => "token-many",
            Scenario::TokenCold => "token-cold",
            Scenario::Handshake => "handshake",
            Scenario::Latency => "latency",
            Scenario::Idle => "idle",
            Scenario::Reload => "reload",
            Scenario::Scale => "scale",
            Scenario::Host => "host",
        }
    }

    /// What it measures.
    pub fn cases(self) -> Vec<Case> {
        let plain = Case {
            scenario: self.name(),
            variant: "",
            protocol: "h1",
            keys: Keys::P256,
            tokens: None,
            workers: 1,
            work: Work::Closed,
            target: None,
        };
        let token = |protocol, algorithm: Algorithm, count, target| Case {
            protocol,
            variant: algorithm.name(),
            tokens: Some((algorithm, count)),
            target: Some(target),
            ..plain
        };
        let (rs256, es256) = (Algorithm::Rs256, Algorithm::Es256);
        match self {
            Scenario::Mtls => vec![
                Case { target: Some(0.8), ..plain },
                Case { protocol: "h2", target: Some(1.0), ..plain },
                Case { protocol: "h3", target: Some(0.75), ..plain },
            ],
            Scenario::TokenHot => vec![
                token("h1", rs256, 1, 0.6),
                token("h1", es256, 1, 0.6),
                token("h2", rs256, 1, 0.55),
                token("h3", rs256, 1, 0.6),
            ],
            Scenario::TokenMany => vec![token("h1", rs256, MANY, 0.55)],
            Scenario::TokenCold => {
                vec![token("h1", rs256, COLD, 0.8), token("h1", es256, COLD, 0.8)]
            }
            Scenario::Handshake => {
                let handshake = |variant, keys, resumed, target| Case {
                    variant,
                    keys,
                    work: Work::Handshakes { resumed },
                    target: Some(target),
                    ..plain
                };
                vec![
                    handshake("P-256", Keys::P256, false, 0.5),
                    handshake("P-256 resumed", Keys::P256, true, 0.75),
                    Case { protocol: "h3", ..handshake("P-256", Keys::P256, false, 0.7) },
                    handshake("RSA-2048", Keys::Rsa2048, false, 0.55),
                    // The signature is all of it, and everybody's the same.
                    Case { target: None, ..handshake("RSA-4096", Keys::Rsa4096, false, 1.0) },
                ]
            }
            Scenario::Latency => {
                let rate = |variant, per_s| Case {
                    variant,
                    work: Work::Rate(per_s),
                    ..token("h1", rs256, 1, 1.2)
                };
                vec![rate("4,000/s", 4_000), rate("8,000/s", 8_000)]
            }
            Scenario::Idle => {
                let idle = |variant, connections, target| Case {
                    variant,
                    work: Work::Idle { connections },
                    target,
                    ..plain
                };
                vec![idle("1,000", 1_000, None), idle("9,000", 9_000, Some(0.65))]
            }
            Scenario::Reload => {
                vec![Case {
                    variant: "2,000/s",
                    target: Some(0.5),
                    work: Work::Reload(RELOAD_PER_S),
                    ..plain
                }]
            }
            Scenario::Scale => {
                let workers = |variant, workers| Case { variant, workers, ..plain };
                vec![workers("1 worker", 1), workers("2 workers", 2)]
            }
            Scenario::Host => {
                let case = |variant, work| Case { variant, work, ..plain };
                vec![case("4,000/s", Work::Rate(4_000)), case("all it can", Work::Closed)]
            }
        }
    }
}

/// How long the parts of a turn last, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    warm_up_ms: u64,
    lasts_ms: u64,
    /// At fixed rates: enough requests for the thousandth that was slowest.
    rate_lasts_ms: u64,
    /// While the configuration is read again and again.
    reload_lasts_ms: u64,
    /// Servers are started and stopped, connections opened, memory looked at when it has come to rest.
    around_ms: u64,
}

impl Pace {
    /// To quote, or to see that it works.
    pub fn new(quick: bool) -> Pace {
        if quick {
            let (warm_up_ms, lasts_ms) = (200, 400);
            Pace {
                warm_up_ms,
                lasts_ms,
                rate_lasts_ms: 1_000,
                reload_lasts_ms: 3_000,
                around_ms: 300,
            }
        } else {
            let (warm_up_ms, lasts_ms) = (500, 1_800);
            Pace {
                warm_up_ms,
                lasts_ms,
                rate_lasts_ms: 4_000,
                reload_lasts_ms: 6_500,
                around_ms: 300,
            }
        }
    }
}

impl Case {
    /// How its servers are started.
    pub fn setup(&self) -> Setup {
        Setup { workers: self.workers, can_reload: matches!(self.work, Work::Reload(_)) }
    }

    /// Whether it is too much for a run that is only to see that it works.
    pub fn is_left_out_when_quick(&self) -> bool {
        matches!(self.work, Work::Idle { connections } if connections > 1_000)
    }

    /// About how long one turn of one server takes, in milliseconds.
    pub fn turn_ms(&self, pace: Pace) -> u64 {
        match self.work {
            // A sixth of two pauses, in which all rest at once, and some 500 handshakes a second.
            Work::Idle { connections } => 6_000 + connections as u64 * 2,
            Work::Closed | Work::Handshakes { .. } => {
                pace.around_ms + pace.warm_up_ms + pace.lasts_ms
            }
            Work::Rate(_) => pace.around_ms + pace.warm_up_ms + pace.rate_lasts_ms,
            Work::Reload(_) => pace.around_ms + pace.warm_up_ms + pace.reload_lasts_ms,
        }
    }

    /// What the generator is told to do; a crowd is held instead.
    pub fn plan(&self, pace: Pace) -> Value {
        let Pace { warm_up_ms, lasts_ms, .. } = pace;
        let [connections, streams] = if self.protocol == "h1" { [CONNECTIONS, 1] } else { SHARED };
        let rate = |per_s: u32, lasts_ms: u64, reconnects: bool| {
            json!({
                "kind": "rate", "per_s": per_s, "connections": connections, "streams": streams,
                "warm_up_ms": warm_up_ms, "lasts_ms": lasts_ms, "reconnects": reconnects,
            })
        };
        match self.work {
            Work::Closed => json!({
                "kind": "closed", "connections": connections, "streams": streams,
                "warm_up_ms": warm_up_ms, "lasts_ms": lasts_ms, "window_ms": WINDOW_MS,
            }),
            Work::Rate(per_s) => rate(per_s, pace.rate_lasts_ms, false),
            Work::Reload(per_s) => rate(per_s, pace.reload_lasts_ms, true),
            Work::Handshakes { resumed } => json!({
                "kind": "handshakes", "resumed": resumed, "at_once": HANDSHAKES_AT_ONCE,
                "warm_up_ms": warm_up_ms, "lasts_ms": lasts_ms, "window_ms": HANDSHAKE_WINDOW_MS,
            }),
            Work::Idle { connections } => json!({ "kind": "hold", "connections": connections }),
        }
    }

    /// How often a server is reloaded in a turn.
    pub fn reloads(pace: Pace) -> u64 {
        (pace.warm_up_ms + pace.reload_lasts_ms).saturating_sub(1) / RELOAD_EVERY_MS
    }
}

/// One request, to see what a server answers.
pub fn once() -> Value {
    json!({ "kind": "once" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_something_of_its_own() {
        for scenario in Scenario::ALL {
            let cases = scenario.cases();
            assert!(!cases.is_empty(), "{scenario:?}");
            for (number, case) in cases.iter().enumerate() {
                assert_eq!(case.scenario, scenario.name());
                let again =
                    cases[..number].iter().find(|other| other.to_string() == case.to_string());
                assert_eq!(again, None, "{case}");
                // Cold tokens are more than are remembered, hot ones fewer.
                if let Some((_, count)) = case.tokens {
                    assert_eq!(count > super::super::REMEMBERED, scenario == Scenario::TokenCold);
                }
            }
        }
    }
}
