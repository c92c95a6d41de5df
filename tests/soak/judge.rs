//! What was seen, and whether the plan explains it. Values in, verdicts out: nothing here acts or waits.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::Value;

use crate::harness::site::HOST;

/// The only route of good requests and of most bad ones.
pub(super) const ROUTE: &str = "/orders";
/// What an impostor writes into every identity header.
pub(super) const IMPOSTOR: &str = "root";
/// The names under which good clients of the load are known begin so.
pub(super) const LOAD: &str = "load-";

/// The path of a request that must be let in, or must not.
pub(super) fn path(is_good: bool, who: &str, number: u64) -> String {
    format!("{ROUTE}/{}/{who}/{number:x}", if is_good { "good" } else { "bad" })
}

/// The number of a request, from its path.
pub(super) fn number(path: &str) -> Option<u64> {
    u64::from_str_radix(path.rsplit('/').next()?, 16).ok()
}

/// What is wrong with a request as the upstream got it: it should not be there at all, or it does not say
/// who was proven and nothing else.
pub(super) fn wrong_arrival(line: &str, headers: &[(String, String)]) -> Option<String> {
    let path = line.split(' ').nth(1).unwrap_or_default();
    let mut words = path.split('/').skip(2);
    let (Some("good"), Some(who)) = (words.next(), words.next()) else {
        return Some(format!("nobody should have let this in: {line}"));
    };
    // As lax as the laxest server: any case, and `_` for `-`.
    let seen = |name: &str| -> Vec<&str> {
        let same = |other: &str| other.to_ascii_lowercase().replace('_', "-") == name;
        headers.iter().filter(|(own, _)| same(own)).map(|(_, value)| value.as_str()).collect()
    };
    let mut wanted = vec![
        ("x-user-id", Some(who)),
        ("x-auth-method", Some("certificate+token")),
        ("x-client-verify", Some("SUCCESS")),
        ("x-user-scopes", Some("read:orders")),
        ("x-user-roles", None),
        ("x-tenant-id", None),
        ("x-remote-user", None),
        ("authorization", None),
        ("x-forwarded-host", Some(HOST)),
        ("x-forwarded-proto", Some("https")),
    ];
    if who.starts_with(LOAD) {
        wanted.push(("x-client-cn", Some(who)));
    }
    let wrong = |(name, value): (&str, Option<&str>)| {
        let seen = seen(name);
        let host = |seen: &str| seen.split(':').next().map(str::to_owned);
        let is_right = match value {
            None => seen.is_empty(),
            Some(HOST) => seen.len() == 1 && host(seen[0]).as_deref() == Some(HOST),
            Some(value) => seen == [value],
        };
        (!is_right).then(|| format!("{line} has {name} {seen:?} instead of {value:?}"))
    };
    wanted.into_iter().find_map(wrong)
}

/// The first of those who may be banned and dropped, by the last octet of their addresses, and their number.
pub(super) const FIRST_CULPRIT: u8 = 100;
pub(super) const CULPRITS: u8 = 16;

/// Whether that is the address of somebody of the rehearsal who has done nothing to be banned for, or a
/// prefix with such an address in it.
fn is_innocent(source: &str) -> bool {
    let alone = |source: &str| source.parse::<IpAddr>().ok().map(IpNet::from);
    let net = source.parse::<IpNet>().ok().or_else(|| alone(source));
    net.is_some_and(|net| {
        (0..=u8::MAX)
            .filter(|last| !(FIRST_CULPRIT..FIRST_CULPRIT + CULPRITS).contains(last))
            .any(|last| net.contains(&IpAddr::from([10, 99, 0, last])))
    })
}

/// What is wrong with a ban: it is on somebody innocent.
pub(super) fn wrong_ban(source: &str) -> Option<String> {
    is_innocent(source).then(|| format!("{source} is banned"))
}

/// What is wrong with a row of `portcullis drops --json`: it is about somebody innocent.
pub(super) fn wrong_drop(row: &Value) -> Option<String> {
    let source = row["source"].as_str().unwrap_or_default();
    is_innocent(source).then(|| format!("a packet of somebody innocent was dropped: {row}"))
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With status 200.
    Served,
    /// By this word, and the number that the log has for it.
    Refused { reason: String, request_id: String },
    /// There was no connection, or no whole answer.
    Broken(String),
    /// The server had said farewell on a kept connection; nothing was asked on it any more.
    SentOn,
    /// The client was told that the server is gone, and asks no further.
    GivenUp,
}

/// A good request, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) protocol: &'static str,
    /// When its connection was begun.
    pub(super) connected: Instant,
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    pub(super) outcome: Outcome,
}

/// What a fault may do to good requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Explains {
    /// Connections break, or cannot be made.
    Breaks,
    /// Connections are ended in good order, each between two requests.
    Farewells,
    /// Requests are refused with one of these words.
    Words(&'static [&'static str]),
}

/// A time during which something explains what is refused.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) why: &'static str,
    pub(super) explains: Explains,
    pub(super) from: Instant,
    /// `None`: still.
    pub(super) to: Option<Instant>,
}

impl Window {
    fn meets(&self, from: Instant, to: Instant) -> bool {
        self.from <= to && self.to.is_none_or(|end| from <= end)
    }

    /// Whether it ended before that moment.
    pub(super) fn is_over(&self, by: Instant) -> bool {
        self.to.is_some_and(|end| end < by)
    }
}

/// What is wrong with what a good client saw; nothing when a window explains it.
pub(super) fn unexplained(seen: &Seen, windows: &[Window]) -> Option<String> {
    let is_explained = match &seen.outcome {
        Outcome::Served | Outcome::GivenUp => true,
        // A connection that broke while nobody used it is found broken later.
        Outcome::Broken(_) => windows.iter().any(|window| {
            window.explains == Explains::Breaks && window.meets(seen.connected, seen.answered)
        }),
        Outcome::SentOn => windows.iter().any(|window| {
            matches!(window.explains, Explains::Breaks | Explains::Farewells)
                && window.meets(seen.connected, seen.answered)
        }),
        Outcome::Refused { reason, .. } => windows.iter().any(|window| match window.explains {
            Explains::Words(words) => {
                words.contains(&reason.as_str()) && window.meets(seen.asked, seen.answered)
            }
            Explains::Breaks | Explains::Farewells => false,
        }),
    };
    (!is_explained).then(|| {
        let open: Vec<_> =
            windows.iter().filter(|window| window.to.is_none()).map(|window| window.why).collect();
        format!(
            "a good request ({} {}) after {:?}: {:?}; what could explain something: {open:?}",
            seen.protocol,
            seen.path,
            seen.answered.saturating_duration_since(seen.asked),
            seen.outcome
        )
    })
}

/// A ban in force: the source, and between which moments it ends.
#[derive(Clone, Debug)]
pub(super) struct Sentence {
    pub(super) source: String,
    pub(super) ends_after: Instant,
    pub(super) ends_before: Instant,
}

/// A clock of the kernel's and one of ours, and the time between two looks at either.
const ROUNDING: Duration = Duration::from_secs(1);

impl Sentence {
    /// From what a list said between two moments.
    pub(super) fn read(source: &str, left_s: f64, before: Instant, after: Instant) -> Sentence {
        let left = Duration::from_secs_f64(left_s.max(0.0));
        Sentence {
            source: source.to_owned(),
            ends_after: (before + left).checked_sub(ROUNDING).unwrap_or(before),
            ends_before: after + left + ROUNDING,
        }
    }

    /// What is wrong with a list that was read between two moments, and has the source or has it not.
    pub(super) fn wrong(&self, is_listed: bool, before: Instant, after: Instant) -> Option<String> {
        if is_listed && before > self.ends_before {
            let late = before - self.ends_before;
            return Some(format!("{} is still banned, {late:?} too late", self.source));
        }
        if !is_listed && after < self.ends_after {
            let early = self.ends_after - after;
            return Some(format!("{} is not banned any more, {early:?} too early", self.source));
        }
        None
    }
}

/// A refusal that the log has to explain.
#[derive(Clone, Debug)]
struct Owed {
    request_id: String,
    reason: String,
    answered: Instant,
}

/// The log, as far as it explains refusals.
#[derive(Debug, Default)]
pub(super) struct LogBook {
    owed: VecDeque<Owed>,
    /// Words by request.
    told: HashMap<String, String>,
    /// When lines of a word that were held back were counted in one line last.
    repeated: HashMap<String, Instant>,
    /// From when to when lines may never have been written; a client may tell of what it was answered then
    /// only later.
    forgiven: Vec<(Instant, Instant)>,
    panics: Vec<String>,
}

/// Refusals that repeat are told of in one line within this; the rest is for a machine that is busy.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// What was not written yet when a daemon was killed.
const ON_ITS_WAY: Duration = Duration::from_secs(20);

impl LogBook {
    /// Somebody was told this.
    pub(super) fn owe(&mut self, request_id: &str, reason: &str, answered: Instant) {
        if self.forgiven.iter().any(|(from, to)| (*from..=*to).contains(&answered)) {
            return;
        }
        let (request_id, reason) = (request_id.to_owned(), reason.to_owned());
        self.owed.push_back(Owed { request_id, reason, answered });
    }

    /// Reads lines.
    pub(super) fn read(&mut self, lines: &[String], now: Instant) {
        for line in lines {
            if line.contains("panicked at") {
                self.panics.push(line.clone());
            }
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let Some(reason) = line["reason"].as_str() else { continue };
            if line["event"] == "refusals_repeated" {
                self.repeated.insert(reason.to_owned(), now);
            } else if let Some(id) = line["request_id"].as_str() {
                self.told.insert(id.to_owned(), reason.to_owned());
            }
        }
    }

    /// What was answered from that moment to this one may never be written: its daemon was killed, or
    /// nobody read its log. What was on its way already is as good as answered then.
    pub(super) fn forgive(&mut self, from: Instant, to: Instant) {
        let from = from.checked_sub(ON_ITS_WAY).unwrap_or(from);
        self.owed.retain(|owed| !(from..=to).contains(&owed.answered));
        self.forgiven.push((from, to));
    }

    /// Takes what is explained off the list, and gives what should be and is not.
    pub(super) fn unexplained(&mut self, now: Instant) -> Vec<String> {
        let (told, repeated) = (&self.told, &self.repeated);
        let mut wrong = std::mem::take(&mut self.panics);
        self.owed.retain(|owed| {
            let by_its_line = told.get(&owed.request_id);
            if let Some(other) = by_its_line.filter(|other| **other != owed.reason) {
                wrong.push(format!("the log says {other} of what was answered so: {owed:?}"));
            }
            let by_count = repeated.get(&owed.reason).is_some_and(|at| *at >= owed.answered);
            let is_late = now.saturating_duration_since(owed.answered) > TOLD_WITHIN;
            if is_late && by_its_line.is_none() && !by_count {
                wrong.push(format!("the log does not tell of {owed:?}"));
            }
            by_its_line.is_none() && !by_count && !is_late
        });
        if self.owed.is_empty() {
            self.told.clear();
        }
        wrong
    }

    /// How many refusals are not explained yet.
    pub(super) fn owed(&self) -> usize {
        self.owed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::clock;

    const S: Duration = Duration::from_secs(1);

    fn seen(start: Instant, outcome: Outcome) -> Seen {
        Seen {
            path: path(true, "load-1", 1),
            protocol: "h2",
            connected: start,
            asked: start + 10 * S,
            answered: start + 11 * S,
            outcome,
        }
    }

    fn refused(reason: &str) -> Outcome {
        Outcome::Refused { reason: reason.to_owned(), request_id: String::new() }
    }

    #[test]
    fn a_window_explains_its_own_and_its_time() {
        let start = clock::now();
        let words = Explains::Words(&["upstream_failed"]);
        for (outcome, explains, from_s, to_s, is_explained) in [
            (Outcome::Served, Explains::Breaks, 90, None, true),
            (Outcome::GivenUp, Explains::Breaks, 90, None, true),
            (refused("upstream_failed"), words, 0, None, true),
            (refused("upstream_failed"), words, 11, None, true),
            (refused("upstream_failed"), words, 12, None, false),
            (refused("upstream_failed"), words, 0, Some(9), false),
            (refused("upstream_failed"), words, 0, Some(10), true),
            (refused("upstream_failed"), Explains::Breaks, 0, None, false),
            (refused("token_expired"), words, 0, None, false),
            (Outcome::Broken(String::new()), Explains::Breaks, 0, Some(5), true),
            (Outcome::Broken(String::new()), Explains::Breaks, 12, None, false),
            (Outcome::Broken(String::new()), words, 0, None, false),
            (Outcome::Broken(String::new()), Explains::Farewells, 0, None, false),
            (Outcome::SentOn, Explains::Farewells, 0, Some(5), true),
            (Outcome::SentOn, Explains::Farewells, 12, None, false),
            (Outcome::SentOn, Explains::Breaks, 0, Some(5), true),
            (Outcome::SentOn, words, 0, None, false),
            (refused("upstream_failed"), Explains::Farewells, 0, None, false),
        ] {
            let window = Window {
                why: "a test",
                explains,
                from: start + from_s * S,
                to: to_s.map(|to_s| start + to_s * S),
            };
            let seen = seen(start, outcome);
            assert_eq!(
                unexplained(&seen, std::slice::from_ref(&window)).is_none(),
                is_explained,
                "{window:?}"
            );
            assert!(unexplained(&seen, &[]).is_none() == (from_s == 90), "{seen:?}");
        }
    }

    #[test]
    fn what_arrives_says_who_was_proven_and_nothing_else() {
        let good = [
            ("Host", "gateway.test"),
            ("x-user-id", "load-1"),
            ("x-auth-method", "certificate+token"),
            ("x-client-verify", "SUCCESS"),
            ("x-user-scopes", "read:orders"),
            ("x-client-cn", "load-1"),
            ("x-forwarded-host", "gateway.test:8443"),
            ("x-forwarded-proto", "https"),
        ];
        let line = |path: String| format!("GET {path} HTTP/1.1");
        let own = line(path(true, "load-1", 7));
        let with = |more: &[(&str, &str)]| -> Vec<(String, String)> {
            let all = good.iter().chain(more);
            all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(wrong_arrival(&own, &with(&[])), None);
        for (line, more) in [
            (line(path(true, "load-2", 7)), &[][..]),
            (line(path(false, "load-1", 7)), &[]),
            (line("/".to_owned()), &[]),
            (own.clone(), &[("X-User-ID", IMPOSTOR)]),
            (own.clone(), &[("X_User_Id", IMPOSTOR)]),
            (own.clone(), &[("X_USER-ROLES", "admin")]),
            (own.clone(), &[("Authorization", "Bearer x")]),
            (own.clone(), &[("x-tenant-id", "t")]),
        ] {
            assert!(wrong_arrival(&line, &with(more)).is_some(), "{line} {more:?}");
        }
        assert!(wrong_arrival(&own, &with(&[])[..4]).is_some());
        assert_eq!(number(&path(true, "load-1", 255)), Some(255));
    }

    #[test]
    fn only_culprits_are_banned_and_dropped() {
        for (source, is_right) in [
            ("10.99.0.10", false),
            ("10.99.0.99", false),
            ("10.99.0.100", true),
            ("10.99.0.115", true),
            ("10.99.0.116", false),
            ("10.77.1.2", true),
            ("", true),
        ] {
            assert_eq!(wrong_ban(&format!("{source}/32")).is_none(), is_right, "{source}");
            let row = serde_json::json!({"source": source, "reason": "over_limit"});
            assert_eq!(wrong_drop(&row).is_none(), is_right, "{source}");
        }
        assert!(wrong_drop(&serde_json::json!({"untold": 7})).is_none());
        for (net, is_right) in [
            ("10.99.0.100/30", true),
            ("10.99.0.112/30", true),
            ("10.99.0.112/29", false),
            ("10.99.0.0/24", false),
            ("10.98.0.0/16", true),
        ] {
            assert_eq!(wrong_ban(net).is_none(), is_right, "{net}");
        }
    }

    #[test]
    fn a_ban_ends_neither_before_nor_after_its_time() {
        let start = clock::now() + 100 * S;
        let sentence = Sentence::read("192.0.2.7/32", 10.0, start, start + S);
        for (is_listed, at_s, is_right) in [
            (true, 5, true),
            (false, 5, false),
            (false, 8, false),
            (true, 10, true),
            (false, 10, true),
            (true, 12, true),
            (true, 13, false),
            (false, 13, true),
        ] {
            let at = start + at_s * S;
            assert_eq!(sentence.wrong(is_listed, at, at).is_none(), is_right, "{at_s} s");
        }
    }

    #[test]
    fn a_refusal_is_told_by_its_line_or_among_others() {
        let start = clock::now() + 100 * S;
        let mut book = LogBook::default();
        for (number, at_s) in [(1, 0), (2, 0), (3, 0), (4, 30)] {
            book.owe(&number.to_string(), "no_route", start + at_s * S);
        }
        book.owe("5", "token_expired", start);
        let line = |text: &str| vec![text.to_owned()];
        book.read(&line(r#"{"event":"request","request_id":"1","reason":"no_route"}"#), start);
        book.read(&line(r#"{"event":"request","request_id":"5","reason":"no_route"}"#), start);
        book.read(&line("a line that is none"), start);
        let wrong = book.unexplained(start + S);
        assert!(wrong.len() == 1 && wrong[0].contains("token_expired"), "{wrong:?}");
        book.read(&line("thread 'worker' panicked at src/a.rs:1:1:"), start);
        assert_eq!(book.unexplained(start + S).len(), 1);
        assert_eq!(book.owed(), 3);
        let counted = r#"{"event":"refusals_repeated","source":"192.0.2.1","reason":"no_route"}"#;
        book.read(&line(counted), start + 20 * S);
        assert!(book.unexplained(start + 20 * S).is_empty());
        assert_eq!(book.owed(), 1, "what came after the count");
        assert_eq!(book.unexplained(start + 100 * S).len(), 1);
        book.owe("6", "no_route", start + 100 * S);
        book.forgive(start + 110 * S, start + 110 * S);
        assert_eq!(book.owed(), 0);
        for (at_s, owed) in [(109, 0), (110, 0), (111, 1)] {
            book.owe("told of later", "no_route", start + at_s * S);
            assert_eq!(book.owed(), owed, "{at_s} s");
        }
    }
}
