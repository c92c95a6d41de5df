//! The page for a person with a browser: one file, built in, that asks for [`Figures`] each second.
//!
//! It loads nothing from anywhere and may ask nobody but the daemon: its policy names the very script
//! and style by their digests, so nothing that found a way into it would run. The figures name no
//! client, address, path, file or key.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::socket::{CountRow, HostStatus, PacketRow, Status, XdpInterface};

/// The page itself.
pub const TEXT: &str = include_str!("page.html");

/// Rows of a list whose length the configuration decides: more than a screen shows.
const ROWS_MAX: usize = 64;

/// The page's `Content-Security-Policy` (CSP Level 3).
pub fn policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            digest_of("script"),
            digest_of("style")
        )
    });
    &POLICY
}

/// As the policy names what stands between the tags of an element.
fn digest_of(element: &str) -> String {
    let text = TEXT
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(text, _)| text);
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    format!("sha256-{}", STANDARD.encode(digest))
}

/// What the page shows; counters are totals, and the page works out rates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// When, in seconds since the daemon's start.
    pub at_s: f64,
    /// Tells one run of the daemon from another.
    pub run: String,
    /// Version of the running binary.
    pub version: String,
    /// Whether `/ready` says yes.
    pub ready: bool,
    /// Why not, when not.
    pub why_not: Option<String>,
    /// What a person should know besides.
    pub notes: Vec<String>,
    /// Generation of the configuration.
    pub generation: u64,
    /// Worker threads.
    pub workers: usize,
    /// Connections open now.
    pub connections: usize,
    /// Requests answered.
    pub requests: u64,
    /// Seconds that they took, all together, to the head of their answers.
    pub request_seconds: f64,
    /// Refusals of requests and handshakes, by reason.
    pub refusals: Vec<CountRow>,
    /// Handshakes.
    pub handshakes: Handshakes,
    /// Bans in force.
    pub bans: Bans,
    /// The kernel half; `None` without one.
    pub xdp: Option<Xdp>,
    /// The machine; `None` before it was looked at.
    pub host: Option<HostStatus>,
    /// Server certificates, the one that ends first before the others.
    pub certificates: Vec<Certificate>,
    /// Upstreams.
    pub upstreams: Vec<Upstream>,
    /// Files that changed and are not good.
    pub refused_files: usize,
}

/// Handshakes in [`Figures`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Handshakes {
    /// Completed; those that resumed a session among them.
    pub done: u64,
    /// Completed by resuming a session.
    pub resumed: u64,
    /// Failed.
    pub failed: u64,
}

/// Bans in force in [`Figures`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bans {
    /// Set by evidence.
    pub evidence: usize,
    /// Set by hand.
    pub operator: usize,
}

/// The kernel half in [`Figures`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Xdp {
    /// Whether it drops, or only counts.
    pub enforce: bool,
    /// Where it is attached.
    pub interfaces: Vec<XdpInterface>,
    /// Frames let through.
    pub passed: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Frames that would have been dropped.
    pub would_drop: u64,
    /// The last two by reason.
    pub reasons: Vec<CountRow>,
}

/// One server certificate in [`Figures`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// The listener that presents it.
    pub listener: String,
    /// The first of its names in the configuration; empty for the listener's own.
    pub site: String,
    /// Time left, in seconds; negative when it has ended.
    pub remaining_s: i64,
    /// Part of its life that is left, 0 to 1.
    pub left_ratio: f64,
}

/// One upstream in [`Figures`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Servers that take requests.
    pub up: usize,
    /// All of its servers.
    pub servers: usize,
}

impl Xdp {
    /// Adds up what the program counted.
    pub fn new(enforce: bool, interfaces: Vec<XdpInterface>, packets: &[PacketRow]) -> Xdp {
        let mut xdp = Xdp { enforce, interfaces, ..Xdp::default() };
        xdp.interfaces.truncate(ROWS_MAX);
        for row in packets.iter().filter(|row| row.packets > 0) {
            match row.action.as_str() {
                "drop" => xdp.dropped += row.packets,
                "would_drop" => xdp.would_drop += row.packets,
                _ => {
                    xdp.passed += row.packets;
                    continue;
                }
            }
            match xdp.reasons.iter_mut().find(|reason| reason.name == row.reason) {
                Some(reason) => reason.count += row.packets,
                None => xdp.reasons.push(CountRow {
                    name: row.reason.clone(),
                    count: row.packets,
                    per_s: 0.0,
                }),
            }
        }
        xdp
    }
}

/// The certificates to show: those that end first.
pub fn certificates(mut all: Vec<Certificate>) -> Vec<Certificate> {
    all.sort_by_key(|certificate| certificate.remaining_s);
    all.truncate(ROWS_MAX);
    all
}

/// The upstreams to show: those that are worst off, else as they are configured.
pub fn upstreams(status: &Status) -> Vec<Upstream> {
    let mut all: Vec<Upstream> = status
        .upstreams
        .iter()
        .map(|upstream| Upstream {
            name: upstream.name.clone(),
            up: upstream.servers.iter().filter(|server| server.state == "up").count(),
            servers: upstream.servers.len(),
        })
        .collect();
    all.sort_by_key(|upstream| match (upstream.up, upstream.servers) {
        (0, _) => 0,
        (up, servers) if up < servers => 1,
        _ => 2,
    });
    all.truncate(ROWS_MAX);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_the_only_script_and_the_only_style() {
        for element in ["script", "style"] {
            assert_eq!(TEXT.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(TEXT.matches(&format!("</{element}>")).count(), 1, "{element}");
        }
        let nothing = format!("sha256-{}", STANDARD.encode(digest::digest(&digest::SHA256, b"")));
        assert!(!policy().contains(&nothing), "{}", policy());
        assert_eq!(policy().matches("sha256-").count(), 2, "{}", policy());
        // What the policy would not let pass, or would load from elsewhere.
        for refused in [" style=", " onclick=", "//cdn", "http://", "https://", "innerHTML"] {
            let text = TEXT.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(refused), "{refused}");
        }
    }

    #[test]
    fn packets_are_added_up_over_interfaces() {
        let row = |interface: &str, action: &str, reason: &str, packets| PacketRow {
            interface: interface.to_owned(),
            action: action.to_owned(),
            reason: reason.to_owned(),
            packets,
            ..PacketRow::default()
        };
        let xdp = Xdp::new(
            true,
            Vec::new(),
            &[
                row("a", "pass", "within_limit", 5),
                row("b", "pass", "exempt", 2),
                row("a", "drop", "banned", 3),
                row("b", "drop", "banned", 4),
                row("b", "would_drop", "denied", 1),
                row("b", "drop", "denied", 0),
            ],
        );
        assert_eq!((xdp.passed, xdp.dropped, xdp.would_drop), (7, 7, 1));
        let reasons: Vec<_> =
            xdp.reasons.iter().map(|reason| (reason.name.as_str(), reason.count)).collect();
        assert_eq!(reasons, [("banned", 7), ("denied", 1)]);
    }

    #[test]
    fn what_ends_first_is_shown_first_and_lists_are_bounded() {
        let all = (0..2 * ROWS_MAX as i64)
            .map(|number| Certificate {
                listener: "edge".to_owned(),
                site: String::new(),
                remaining_s: 1_000 - number,
                left_ratio: 0.5,
            })
            .collect();
        let shown = certificates(all);
        assert_eq!((shown.len(), shown[0].remaining_s), (ROWS_MAX, 1_000 - 127));
    }
}
