//! The date of an answer (RFC 9110 section 6.6.1), written once a second and not with each of them.

use std::time::SystemTime;

use http::HeaderValue;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

/// The date that was written last.
#[derive(Debug, Default)]
pub struct Dates {
    /// The second that it is of, since 1970.
    second: Option<u64>,
    value: Option<HeaderValue>,
}

impl Dates {
    /// The date at that moment; `None` where the calendar does not know it, which is thousands of years
    /// away.
    pub fn at(&mut self, now: SystemTime) -> Option<HeaderValue> {
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.second != Some(second) {
            self.second = Some(second);
            self.value = written(second);
        }
        self.value.clone()
    }
}

fn written(second: u64) -> Option<HeaderValue> {
    let moment = Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&moment).ok()?;
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_date_is_that_of_its_second() {
        let mut dates = Dates::default();
        for (milliseconds, expected) in [
            (784_111_777_000, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (784_111_777_999, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (784_111_778_000, Some("Sun, 06 Nov 1994 08:49:38 GMT")),
            // A clock that was set back.
            (784_111_777_500, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            (u64::MAX / 2_000, None),
        ] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds);
            let date = dates.at(now);
            assert_eq!(date.as_ref().map(|date| date.to_str().unwrap()), expected);
        }
    }
}
