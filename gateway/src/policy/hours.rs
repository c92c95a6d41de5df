//! Hours of the week in a time zone: `08:00-18:00 Europe/Berlin`, `Mon-Fri 22:00-06:00 UTC`.
//!
//! A moment is judged by what a clock on the wall of that zone shows, so summer time needs no rule of
//! its own: an hour that is left out in spring never comes, one that comes twice in autumn counts
//! twice. The zones are the system's, or those built in where the system has none.

use std::fmt;

use jiff::{
    Timestamp,
    civil::Weekday,
    tz::{TimeZone, TimeZoneDatabase},
};
use rustls_pki_types::UnixTime;

/// The days as they are written, in the order of ISO 8601.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// 24:00, the end of a day.
const DAY_MINUTES: u16 = 24 * 60;

/// When something is allowed.
#[derive(Clone, PartialEq, Eq)]
pub struct Hours {
    written: String,
    /// On which days it begins; Monday first.
    days: [bool; 7],
    /// The first minute of the day.
    from_min: u16,
    /// The first minute no more; not after `from_min`: on the next day.
    until_min: u16,
    zone: TimeZone,
}

/// Why a text names no hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoursError {
    /// Not days (or none), two times and a zone.
    Shape,
    /// No time of day.
    Time(String),
    /// No day of the week, or one twice.
    Day(String),
    /// Begins when it ends.
    Empty,
    /// No zone has this name.
    Zone(String),
}

impl fmt::Display for HoursError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HoursError::Shape => f.write_str(
                "has not the form; write it as in \"08:00-18:00 Europe/Berlin\" or \"Mon-Fri \
                 08:00-18:00 Europe/Berlin\"",
            ),
            HoursError::Time(text) => {
                write!(f, "has {text:?}, which is no time of day; write 00:00 to 24:00")
            }
            HoursError::Day(text) => write!(
                f,
                "has {text:?}; write each day once as Mon Tue Wed Thu Fri Sat Sun, as in \"Mon-Fri\" \
                 or \"Mon,Wed\""
            ),
            HoursError::Empty => {
                f.write_str("ends when it begins; write 00:00-24:00 for the whole day")
            }
            HoursError::Zone(text) => write!(
                f,
                "has {text:?}, which is no time zone; write its name, as in \"Europe/Berlin\" or \"UTC\""
            ),
        }
    }
}

impl fmt::Debug for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hours").field(&self.written).finish()
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Hours {
    /// Reads hours.
    ///
    /// # Errors
    /// Why the text names none.
    pub fn parse(text: &str) -> Result<Hours, HoursError> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (days, span, zone) = match words[..] {
            [span, zone] => ([true; 7], span, zone),
            [day_words, span, zone] => (days(day_words)?, span, zone),
            _ => return Err(HoursError::Shape),
        };
        let (from, until) = span.split_once('-').ok_or(HoursError::Shape)?;
        let (from_min, until_min) = (minute(from)?, minute(until)?);
        if from_min == until_min || from_min == DAY_MINUTES {
            return Err(HoursError::Empty);
        }
        let zone = time_zone(zone).ok_or_else(|| HoursError::Zone(zone.to_owned()))?;
        Ok(Hours { written: words.join(" "), days, from_min, until_min, zone })
    }

    /// Whether now is within them.
    pub fn allow(&self, now: UnixTime) -> bool {
        let seconds = i64::try_from(now.as_secs()).ok();
        let Some(moment) = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()) else {
            return false;
        };
        let shown = self.zone.to_datetime(moment);
        let minute = shown.hour().unsigned_abs() as u16 * 60 + shown.minute().unsigned_abs() as u16;
        let begins_on =
            |day: Weekday| self.days[day.to_monday_zero_offset().unsigned_abs() as usize];
        let today = shown.weekday();
        if self.from_min < self.until_min {
            return begins_on(today) && (self.from_min..self.until_min).contains(&minute);
        }
        (begins_on(today) && minute >= self.from_min)
            || (begins_on(today.previous()) && minute < self.until_min)
    }
}

fn time_zone(name: &str) -> Option<TimeZone> {
    let system = jiff::tz::db().get(name);
    system.or_else(|_| TimeZoneDatabase::bundled().get(name)).ok()
}

/// `HH:MM`, two digits each.
fn minute(text: &str) -> Result<u16, HoursError> {
    let bad = || HoursError::Time(text.to_owned());
    let &[h1, h2, b':', m1, m2] = text.as_bytes() else { return Err(bad()) };
    let digits = |high: u8, low: u8| {
        (high.is_ascii_digit() && low.is_ascii_digit())
            .then(|| u16::from(high - b'0') * 10 + u16::from(low - b'0'))
    };
    let (hour, minute) = (digits(h1, h2).ok_or_else(bad)?, digits(m1, m2).ok_or_else(bad)?);
    let total = hour * 60 + minute;
    if minute > 59 || total > DAY_MINUTES { Err(bad()) } else { Ok(total) }
}

/// `Mon`, `Mon-Fri`, `Sat-Mon`, and several of them with commas.
fn days(text: &str) -> Result<[bool; 7], HoursError> {
    let bad = || HoursError::Day(text.to_owned());
    let day = |word: &str| DAYS.iter().position(|day| day.eq_ignore_ascii_case(word));
    let mut chosen = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut next, last) = (day(first).ok_or_else(bad)?, day(last).ok_or_else(bad)?);
        loop {
            if std::mem::replace(&mut chosen[next], true) {
                return Err(bad());
            }
            if next == last {
                break;
            }
            next = (next + 1) % 7;
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> UnixTime {
        let moment: Timestamp = text.parse().unwrap();
        UnixTime::since_unix_epoch(Duration::from_secs(moment.as_second().unsigned_abs()))
    }

    #[test]
    fn hours_hold_by_the_clock_on_the_wall() {
        for (hours, moment, expected) in [
            // Sunday 2026-03-01, winter: UTC+1.
            ("08:00-18:00 Europe/Berlin", "2026-03-01T06:59:59Z", false),
            ("08:00-18:00 Europe/Berlin", "2026-03-01T07:00:00Z", true),
            ("08:00-18:00 Europe/Berlin", "2026-03-01T16:59:59Z", true),
            ("08:00-18:00 Europe/Berlin", "2026-03-01T17:00:00Z", false),
            ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-03-01T12:00:00Z", false),
            ("Mon-Fri 08:00-18:00 Europe/Berlin", "2026-03-02T12:00:00Z", true),
            // Summer: UTC+2.
            ("08:00-18:00 Europe/Berlin", "2026-07-01T05:59:59Z", false),
            ("08:00-18:00 Europe/Berlin", "2026-07-01T06:00:00Z", true),
            ("08:00-18:00 Europe/Berlin", "2026-07-01T16:00:00Z", false),
            // 2026-03-29, 02:00 becomes 03:00 at 01:00Z: the hour between is left out.
            ("02:00-03:00 Europe/Berlin", "2026-03-29T00:59:59Z", false),
            ("02:00-03:00 Europe/Berlin", "2026-03-29T01:00:00Z", false),
            ("03:00-04:00 Europe/Berlin", "2026-03-29T01:00:00Z", true),
            // 2026-10-25, 03:00 becomes 02:00 at 01:00Z: the hour comes twice.
            ("02:00-03:00 Europe/Berlin", "2026-10-25T00:30:00Z", true),
            ("02:00-03:00 Europe/Berlin", "2026-10-25T01:30:00Z", true),
            ("02:00-03:00 Europe/Berlin", "2026-10-25T02:00:00Z", false),
            // Over midnight; the day is the one on which it begins.
            ("22:00-06:00 UTC", "2026-03-02T21:59:00Z", false),
            ("22:00-06:00 UTC", "2026-03-02T22:00:00Z", true),
            ("22:00-06:00 UTC", "2026-03-03T05:59:00Z", true),
            ("22:00-06:00 UTC", "2026-03-03T06:00:00Z", false),
            ("Fri 22:00-06:00 UTC", "2026-03-06T05:00:00Z", false),
            ("Fri 22:00-06:00 UTC", "2026-03-06T23:00:00Z", true),
            ("Fri 22:00-06:00 UTC", "2026-03-07T05:00:00Z", true),
            ("Fri 22:00-06:00 UTC", "2026-03-07T23:00:00Z", false),
            ("Sun 22:00-06:00 UTC", "2026-03-02T05:00:00Z", true),
            ("00:00-24:00 UTC", "2026-03-02T23:59:59Z", true),
            ("18:00-24:00 UTC", "2026-03-02T23:59:59Z", true),
            ("Sat-Mon 00:00-24:00 UTC", "2026-03-01T12:00:00Z", true),
            ("Sat-Mon 00:00-24:00 UTC", "2026-03-03T12:00:00Z", false),
            ("mon,wed 00:00-24:00 UTC", "2026-03-04T12:00:00Z", true),
            ("mon,wed 00:00-24:00 UTC", "2026-03-03T12:00:00Z", false),
        ] {
            assert_eq!(
                Hours::parse(hours).unwrap().allow(at(moment)),
                expected,
                "{hours} {moment}"
            );
        }
    }

    #[test]
    fn what_names_no_hours_is_refused() {
        for (text, expected) in [
            ("", HoursError::Shape),
            ("08:00-18:00", HoursError::Shape),
            ("08:00 18:00 UTC", HoursError::Day("08:00".into())),
            ("08:00/18:00 UTC", HoursError::Shape),
            ("Mon Tue 08:00-18:00 UTC", HoursError::Shape),
            ("8:00-18:00 UTC", HoursError::Time("8:00".into())),
            ("08:00-24:01 UTC", HoursError::Time("24:01".into())),
            ("08:60-18:00 UTC", HoursError::Time("08:60".into())),
            ("+8:00-18:00 UTC", HoursError::Time("+8:00".into())),
            ("08:00-08:00 UTC", HoursError::Empty),
            ("24:00-08:00 UTC", HoursError::Empty),
            ("Mon-Mun 08:00-18:00 UTC", HoursError::Day("Mon-Mun".into())),
            ("Mon,Mon 08:00-18:00 UTC", HoursError::Day("Mon,Mon".into())),
            ("08:00-18:00 Europe/Atlantis", HoursError::Zone("Europe/Atlantis".into())),
            ("08:00-18:00 ../../etc/passwd", HoursError::Zone("../../etc/passwd".into())),
        ] {
            assert_eq!(Hours::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn zones_are_known_without_the_systems() {
        let zone = TimeZoneDatabase::bundled().get("Europe/Berlin").unwrap();
        let moment: Timestamp = "2026-07-01T06:00:00Z".parse().unwrap();
        assert_eq!(zone.to_datetime(moment).hour(), 8);
    }

    proptest! {
        /// In UTC the same as counting minutes of the week; 1970 began on a Thursday.
        #[test]
        fn agrees_with_minutes_of_the_week(
            day in 0..7usize,
            from in 0..1440u64,
            length in 1..1440u64,
            now_s in 0..4_000_000_000u64,
        ) {
            let until = (from + length) % 1440;
            let time = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
            let text = format!("{} {}-{} UTC", DAYS[day], time(from), time(until));
            let hours = Hours::parse(&text).unwrap();
            let week = 7 * 1440;
            let now_min = (now_s / 60 + 3 * 1440) % week;
            let since = (now_min + week - (day as u64 * 1440 + from)) % week;
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
            prop_assert_eq!(hours.allow(now), since < length, "{}", text);
        }
    }
}
