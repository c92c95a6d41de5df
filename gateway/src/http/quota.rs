//! What limits said of a request → the fields that tell the client: `RateLimit-Policy` and `RateLimit`
//! of draft-ietf-httpapi-ratelimit-headers-11, as lists of structured fields (RFC 9651), and
//! `Retry-After` (RFC 9110 section 10.2.3).

use std::{fmt::Write, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::policy::limit::{Limit, Standing, Verdict};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Adds what each limit allows (`q` requests in `w` seconds) and what is left of it (`r`, and `t`
/// seconds until all of it is there again). Fields of the upstream's own limits stay beside them.
pub fn tell(verdicts: &[Verdict], headers: &mut HeaderMap) {
    let (mut policy, mut limit) = (String::new(), String::new());
    for verdict in verdicts {
        for standing in &verdict.standings {
            write(&mut policy, &mut limit, &verdict.limit, standing);
        }
    }
    for (name, text) in [(POLICY, policy), (LIMIT, limit)] {
        // Names of limits are letters, digits and -_. only, so the text is always a value.
        if !text.is_empty()
            && let Ok(value) = HeaderValue::try_from(text)
        {
            headers.append(name, value);
        }
    }
}

fn write(policy: &mut String, left: &mut String, limit: &Limit, standing: &Standing) {
    if !policy.is_empty() {
        policy.push_str(", ");
        left.push_str(", ");
    }
    let (name, rate) = (&limit.name, &standing.rate);
    // Where there are several rates each needs a name of its own.
    let is_one = limit.rates.len() == 1 && limit.tiers.iter().all(|tier| tier.rates.len() == 1);
    let label = if is_one { format!("{name}") } else { format!("{name}/{}", rate.unit().letter()) };
    // Writing to a String cannot fail.
    let _ = write!(policy, "\"{label}\";q={};w={}", rate.count(), rate.unit().seconds());
    let _ = write!(left, "\"{label}\";r={};t={}", standing.left, whole_seconds(standing.full_in));
}

/// Rounded up: who comes then is let in.
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::limit::{Decision, Key, Mode, Rate, Unit};

    fn verdict(name: &str, rates: &[(Rate, u64, u64)]) -> Verdict {
        let limit = Limit {
            name: name.into(),
            key: Key::ClientId,
            rates: rates.iter().map(|(rate, ..)| *rate).collect(),
            tiers: vec![],
            mode: Mode::Enforce,
            entries: 16,
            announce: true,
        };
        let standing = |(rate, left, full_in_ms): &(Rate, u64, u64)| Standing {
            rate: *rate,
            left: *left,
            wait: Duration::ZERO,
            full_in: Duration::from_millis(*full_in_ms),
        };
        Verdict {
            standings: rates.iter().map(standing).collect(),
            limit: Arc::new(limit),
            decision: Some(Decision::Allowed),
            subject: None,
        }
    }

    #[test]
    fn each_rate_is_an_item_of_both_lists() {
        let second = Rate::new(100, Unit::Second, 50);
        let hour = Rate::new(10_000, Unit::Hour, 10_000);
        let mut headers = HeaderMap::new();
        headers.insert(LIMIT, HeaderValue::from_static("\"theirs\";r=1"));
        tell(
            &[
                verdict("per-client", &[(second, 49, 10), (hour, 9_999, 360)]),
                verdict("all", &[(hour, 0, 3_600_000)]),
                verdict("untold", &[]),
            ],
            &mut headers,
        );
        let lines =
            |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            lines(POLICY),
            ["\"per-client/s\";q=100;w=1, \"per-client/h\";q=10000;w=3600, \"all\";q=10000;w=3600"]
        );
        assert_eq!(
            lines(LIMIT),
            [
                "\"theirs\";r=1",
                "\"per-client/s\";r=49;t=1, \"per-client/h\";r=9999;t=1, \"all\";r=0;t=3600"
            ]
        );
        let mut none = HeaderMap::new();
        tell(&[], &mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (millis, seconds) in [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2), (360_000, 360)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
        assert_eq!(whole_seconds(Duration::from_nanos(1)), 1);
    }
}
