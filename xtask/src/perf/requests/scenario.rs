//! What is measured, and what it is meant to come to.

use std::fmt;

use serde_json::{Value, json};

use super::files::{Algorithm, Keys};

/// Kept connections, as in the crowd of clients of a middling service.
const CONNECTIONS: usize = 64;
/// Connections and requests at once on each, where a protocol carries many.
const SHARED: [usize; 2] = [16, 8];
/// Handshakes at once: the server is never idle, and its queue never long.
const HANDSHAKES_AT_ONCE: usize = 8;
const WARM_UP_MS: u64 = 500;
const LASTS_MS: u64 = 1_800;
const LATENCY_LASTS_MS: u64 = 4_000;
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
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// The scenario's name.
    pub scenario: &'static str,
    /// What distinguishes it within the scenario.
    pub variant: &'static str,
    /// h1 or h2.
    pub protocol: &'static str,
    /// Keys of servers and clients.
    pub keys: Keys,
    /// Tokens: how signed, how many different ones.
    pub tokens: Option<(Algorithm, usize)>,
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
    pub const ALL: [Scenario; 7] = [
        Scenario::Mtls,
        Scenario::TokenHot,
        Scenario::TokenMany,
        Scenario::TokenCold,
        Scenario::Handshake,
        Scenario::Latency,
        Scenario::Idle,
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
            ],
            Scenario::TokenHot => vec![
                token("h1", rs256, 1, 0.6),
                token("h1", es256, 1, 0.6),
                token("h2", rs256, 1, 0.55),
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
                    handshake("RSA-2048", Keys::Rsa2048, false, 0.55),
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
        }
    }
}

impl Case {
    /// What the generator is told to do; a crowd is held instead.
    pub fn plan(&self) -> Value {
        let [connections, streams] = if self.protocol == "h1" { [CONNECTIONS, 1] } else { SHARED };
        match self.work {
            Work::Closed => json!({
                "kind": "closed", "connections": connections, "streams": streams,
                "warm_up_ms": WARM_UP_MS, "lasts_ms": LASTS_MS, "window_ms": WINDOW_MS,
            }),
            Work::Rate(per_s) => json!({
                "kind": "rate", "per_s": per_s, "connections": connections, "streams": streams,
                "warm_up_ms": WARM_UP_MS, "lasts_ms": LATENCY_LASTS_MS,
            }),
            Work::Handshakes { resumed } => json!({
                "kind": "handshakes", "resumed": resumed, "at_once": HANDSHAKES_AT_ONCE,
                "warm_up_ms": WARM_UP_MS, "lasts_ms": LASTS_MS, "window_ms": HANDSHAKE_WINDOW_MS,
            }),
            Work::Idle { connections } => json!({ "kind": "hold", "connections": connections }),
        }
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
