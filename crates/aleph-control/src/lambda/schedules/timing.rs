//! When a schedule comes due. Pure: the time comes in as a value.
//!
//! # Where clocks are put on and back
//! `cron` and `at` name times that clocks show in the schedule's zone, and each comes at most once:
//!
//! | the time | then |
//! | --- | --- |
//! | is left out, as clocks are put on | `cron` leaves it out, too; `at` is refused when it is set |
//! | comes twice, as clocks are put back | the first of the two |
//!
//! That is what EventBridge Scheduler says of itself. So what is due every five minutes by `cron`
//! rests while an hour is repeated. `rate` knows no zone: a day has 24 hours, and the same time
//! passes between any two.

use super::cron::{Cron, YEARS};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// How many times in a row may be left out or repeated: more than the minutes of two days.
const MOST_SKIPPED: usize = 3000;
/// How much later a clock may show what comes before, in hours: more than clocks are put back.
const PUT_BACK: i64 = 3;
/// The longest rate, in seconds: about a century.
const MOST_RATE: i64 = 36_525 * 86_400;

/// When something is due.
#[derive(Debug, Clone)]
pub(super) enum Expression {
    /// Every so many seconds.
    Rate(i64),
    /// By the calendar.
    Cron(Box<Cron>),
    /// Once.
    At(DateTime),
}

impl Expression {
    /// Reads `rate(…)`, `cron(…)` or `at(…)`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let inner = |name: &str| {
            text.strip_prefix(name)?
                .strip_prefix('(')?
                .strip_suffix(')')
        };
        if let Some(rate) = inner("rate") {
            return rate_of(rate).map(Self::Rate);
        }
        if let Some(cron) = inner("cron") {
            return Cron::parse(cron).map(|cron| Self::Cron(Box::new(cron)));
        }
        if let Some(at) = inner("at") {
            let whole = at.len() == "2026-11-28T12:00:00".len();
            let time = at
                .parse()
                .ok()
                .filter(|time: &DateTime| whole && is_year(time.year()));
            let wrong = || format!("at({at}) is no time: write at(2026-11-28T12:00:00)");
            return time.map(Self::At).ok_or_else(wrong);
        }
        Err(format!(
            "{text:?} is neither rate(…), such as rate(5 minutes), nor cron(…), such as \
             cron(0 12 * * ? *), nor at(…), such as at(2026-11-28T12:00:00)"
        ))
    }
}

/// Whether a year is one that may be named: calendars end somewhere.
pub(super) fn is_year(year: i16) -> bool {
    u32::try_from(year).is_ok_and(|year| YEARS.contains(&year))
}

fn rate_of(text: &str) -> Result<i64, String> {
    let wrong =
        || format!("rate({text}) is no rate: write rate(5 minutes), of minutes, hours or days");
    let (number, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let number: i64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.trim() {
        "minute" | "minutes" => 60,
        "hour" | "hours" => 3600,
        "day" | "days" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number.checked_mul(unit);
    seconds
        .filter(|seconds| (1..=MOST_RATE).contains(seconds))
        .ok_or_else(wrong)
}

/// An expression with all that decides when it is due. Times are seconds since 1970.
#[derive(Debug, Clone)]
pub(super) struct Timing {
    pub(super) expression: Expression,
    pub(super) zone: TimeZone,
    /// When a rate begins.
    pub(super) anchor: i64,
    pub(super) start: Option<i64>,
    pub(super) end: Option<i64>,
}

impl Timing {
    /// The first time after this one.
    pub(super) fn next(&self, after: i64) -> Option<i64> {
        // Nothing is before the start, which itself may be one.
        let after = self.start.map_or(after, |start| after.max(start - 1));
        let next = match &self.expression {
            Expression::Rate(_) if after < self.anchor => self.anchor,
            Expression::Rate(every) => after - (after - self.anchor).rem_euclid(*every) + every,
            Expression::Cron(cron) => self.next_of(cron, after)?,
            Expression::At(time) => self.moment(*time)?,
        };
        (next > after && self.end.is_none_or(|end| next <= end)).then_some(next)
    }

    /// Whether it names one time.
    pub(super) fn is_once(&self) -> bool {
        matches!(self.expression, Expression::At(_))
    }

    /// The last time after the first of these and until the second.
    pub(super) fn latest(&self, after: i64, until: i64) -> Option<i64> {
        let until = self.end.map_or(until, |end| until.min(end));
        let first = self.next(after).filter(|first| *first <= until)?;
        match self.next(first) {
            Some(second) if second <= until => {}
            _ => return Some(first),
        }
        let last = match &self.expression {
            Expression::Rate(every) => until - (until - self.anchor).rem_euclid(*every),
            Expression::Cron(cron) => self.last_of(cron, until)?,
            Expression::At(_) => first,
        };
        Some(last.max(first))
    }

    /// When clocks show this; `None` where they never do. Of two times it is the first.
    pub(super) fn moment(&self, time: DateTime) -> Option<i64> {
        let time = self.zone.to_ambiguous_timestamp(time);
        if matches!(time.offset(), AmbiguousOffset::Gap { .. }) {
            return None;
        }
        time.earlier().ok().map(Timestamp::as_second)
    }

    /// What clocks show.
    fn shown(&self, time: i64) -> Option<DateTime> {
        let time = Timestamp::from_second(time).ok()?;
        Some(self.zone.to_datetime(time))
    }

    fn next_of(&self, cron: &Cron, after: i64) -> Option<i64> {
        let mut shown = self.shown(after)?;
        for _ in 0..MOST_SKIPPED {
            shown = cron.after(shown)?;
            if let Some(time) = self.moment(shown).filter(|time| *time > after) {
                return Some(time);
            }
        }
        None
    }

    fn last_of(&self, cron: &Cron, until: i64) -> Option<i64> {
        let mut shown = self.shown(until)?;
        // While an hour is repeated, its end was shown before.
        if self.zone.to_ambiguous_timestamp(shown).is_ambiguous() {
            shown = shown
                .checked_add(jiff::SignedDuration::from_hours(PUT_BACK))
                .ok()?;
        }
        for _ in 0..MOST_SKIPPED {
            shown = cron.until(shown)?;
            if let Some(time) = self.moment(shown).filter(|time| *time <= until) {
                return Some(time);
            }
            shown = shown.checked_sub(jiff::SignedDuration::from_secs(1)).ok()?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn timing(expression: &str, zone: &str) -> Timing {
        Timing {
            expression: Expression::parse(expression).unwrap(),
            zone: TimeZone::get(zone).unwrap(),
            anchor: second("2026-01-01T00:00:30Z"),
            start: None,
            end: None,
        }
    }

    fn after(timing: &Timing, from: &str, count: usize) -> Vec<String> {
        let mut time = second(from);
        let mut all = Vec::new();
        while let Some(next) = timing.next(time).filter(|_| all.len() < count) {
            assert_eq!(timing.latest(time, next), Some(next));
            all.push(Timestamp::from_second(next).unwrap().to_string());
            time = next;
        }
        all
    }

    #[test]
    fn rates_keep_to_where_they_began() {
        let mut five = timing("rate(5 minutes)", "UTC");
        let want = ["2026-01-01T00:00:30Z", "2026-01-01T00:05:30Z"];
        assert_eq!(after(&five, "2025-12-31T00:00:00Z", 2), want);
        let want = ["2026-03-01T07:05:30Z", "2026-03-01T07:10:30Z"];
        assert_eq!(after(&five, "2026-03-01T07:00:30Z", 2), want);
        five.end = Some(second("2026-01-01T00:05:30Z"));
        assert_eq!(after(&five, "2026-01-01T00:00:00Z", 9).len(), 2);
        let (from, to) = (five.anchor, five.anchor + 86_400);
        assert_eq!(five.latest(from, to), five.end);
        assert_eq!(five.latest(from + 300, to), None);
    }

    #[test]
    fn a_time_that_is_left_out_is_left_out_and_one_that_comes_twice_comes_once() {
        // On 29 March 2026 no clock in Berlin shows 02:30; on 25 October all show it twice.
        let daily = timing("cron(30 2 * * ? *)", "Europe/Berlin");
        let want = ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"];
        assert_eq!(after(&daily, "2026-03-27T12:00:00Z", 2), want);
        let want = ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"];
        assert_eq!(after(&daily, "2026-10-24T12:00:00Z", 2), want);
        // Between the two 02:30, and after both, there is none of that day.
        for time in [
            "2026-10-25T01:00:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-25T03:00:00Z",
        ] {
            assert_eq!(after(&daily, time, 1), ["2026-10-26T01:30:00Z"], "{time}");
        }
        // By the calendar an hour that is repeated is one hour.
        let often = timing("cron(0/30 * * * ? *)", "Europe/Berlin");
        let want = ["2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"];
        assert_eq!(after(&often, "2026-10-25T00:00:00Z", 2), want);
        let (from, until) = (
            second("2026-10-24T00:00:00Z"),
            second("2026-10-25T01:10:00Z"),
        );
        assert_eq!(
            often.latest(from, until),
            Some(second("2026-10-25T00:30:00Z"))
        );
        let want = ["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"];
        assert_eq!(after(&often, "2026-03-29T00:00:00Z", 2), want);
        // A whole day that an island has left out.
        let apia = timing("cron(0 12 * * ? *)", "Pacific/Apia");
        let want = ["2011-12-29T22:00:00Z", "2011-12-30T22:00:00Z"];
        assert_eq!(after(&apia, "2011-12-29T12:00:00Z", 2), want);
    }

    #[test]
    fn once_is_once() {
        let at = timing("at(2026-11-28T12:00:00)", "America/New_York");
        assert_eq!(
            after(&at, "2026-01-01T00:00:00Z", 9),
            ["2026-11-28T17:00:00Z"]
        );
        let at = timing("at(2026-03-29T02:30:00)", "Europe/Berlin");
        assert_eq!(after(&at, "2026-01-01T00:00:00Z", 9), Vec::<String>::new());
        let at = timing("at(2026-10-25T02:30:00)", "Europe/Berlin");
        assert_eq!(
            after(&at, "2026-01-01T00:00:00Z", 9),
            ["2026-10-25T00:30:00Z"]
        );
    }

    #[test]
    fn nothing_is_before_the_start() {
        let mut noon = timing("cron(0 12 * * ? *)", "UTC");
        noon.start = Some(second("2026-05-01T12:00:00Z"));
        noon.end = Some(second("2026-05-02T12:00:00Z"));
        let want = ["2026-05-01T12:00:00Z", "2026-05-02T12:00:00Z"];
        assert_eq!(after(&noon, "2026-01-01T00:00:00Z", 9), want);
    }

    #[test]
    fn what_is_no_expression_is_said() {
        for text in [
            "",
            "every day",
            "rate(5)",
            "rate(0 minutes)",
            "rate(-1 hours)",
            "rate(5 seconds)",
            "rate(99999999999999999 days)",
            "at(2026-11-28)",
            "at(2026-11-28T25:00:00)",
            "at(2026-11-28T12:00:00Z)",
            "cron(0 12 * * ? *",
        ] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// The last one is what is found by going from one to the next.
        #[test]
        fn the_last_is_the_last(
            which in 0..6_usize,
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York"]),
            // Around both changes of clocks in 2026, and in between.
            from in prop_oneof![1_774_656_000..1_774_915_200_i64, 1_792_800_000..1_793_664_000_i64],
            span in 0..200_000_i64,
        ) {
            let expressions = [
                "rate(7 minutes)", "rate(5 hours)", "cron(0/17 * * * ? *)", "cron(30 2 * * ? *)",
                "cron(15 1,2,3 ? * SUN,MON *)", "at(2026-10-25T01:30:00)",
            ];
            let timing = timing(expressions[which], zone);
            let until = from + span;
            let (mut last, mut time) = (None, from);
            while let Some(next) = timing.next(time) {
                prop_assert!(next > time);
                if next > until {
                    break;
                }
                (last, time) = (Some(next), next);
            }
            prop_assert_eq!(timing.latest(from, until), last);
        }
    }
}
