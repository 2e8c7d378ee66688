//! `cron(…)` as EventBridge has it: minutes, hours, day of month, month, day of week, year.
//!
//! The fields are checked and put into the words of `croner`, which finds days and times. Its clock
//! is a calendar without a zone: what a zone makes of a time is [`super::timing`]'s.

use chrono::{DateTime as Calendar, NaiveDateTime};
use croner::Cron as Pattern;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::ops::RangeInclusive;

const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
/// The years that may be named.
pub(super) const YEARS: RangeInclusive<u32> = 1970..=2199;

/// When something happens, by the calendar.
#[derive(Debug, Clone)]
pub(super) struct Cron(Pattern);

/// What may be in a field.
struct Field {
    name: &'static str,
    range: RangeInclusive<u32>,
    /// What values may be called, the least first.
    names: &'static [&'static str],
    /// What is taken away for `croner`, which counts days of the week from nought.
    shift: u32,
}

impl Field {
    /// A number or a name, as a number for `croner`.
    fn value(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| *name == text);
        let named = named.and_then(|at| u32::try_from(at).ok());
        let number = match named {
            Some(at) => Some(at + self.range.start()),
            None if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
            None => None,
        };
        let number = number.filter(|number| self.range.contains(number));
        let number = number.map(|number| number - self.shift);
        number.ok_or_else(|| {
            let (least, most) = (self.range.start(), self.range.end());
            format!("{text:?} is no {}: {least} to {most}", self.name)
        })
    }

    /// One of the parts between commas.
    fn part(&self, text: &str) -> Result<String, String> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => {
                let number = step.parse().ok().filter(|step: &u32| *step > 0);
                let wrong = || format!("{step:?} is no step of a {}", self.name);
                (range, Some(number.ok_or_else(wrong)?))
            }
            None => (text, None),
        };
        let least = self.range.start() - self.shift;
        let most = self.range.end() - self.shift;
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (self.value(from)?, Some(self.value(to)?)),
            None if range == "*" => (least, Some(most)),
            None => {
                let from = self.value(range)?;
                (from, step.map(|_| most))
            }
        };
        if to.is_some_and(|to| to < from) {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(match (to, step) {
            (None, _) => from.to_string(),
            (Some(to), None) => format!("{from}-{to}"),
            (Some(to), Some(step)) => format!("{from}-{to}/{step}"),
        })
    }

    fn read(
        &self,
        text: &str,
        special: impl Fn(&Self, &str) -> Option<Result<String, String>>,
    ) -> Result<String, String> {
        if text == "*" {
            return Ok("*".into());
        }
        let parts = text.split(',');
        let parts = parts.map(|part| special(self, part).unwrap_or_else(|| self.part(part)));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.join(","))
    }
}

fn plain(_: &Field, _: &str) -> Option<Result<String, String>> {
    None
}

/// `L`, `15W`.
fn day_of_month(field: &Field, part: &str) -> Option<Result<String, String>> {
    match part.strip_suffix('W') {
        _ if part == "L" => Some(Ok("L".into())),
        Some(day) => Some(field.value(day).map(|day| format!("{day}W"))),
        None => None,
    }
}

/// `L` for the last day of the week, `6L` for the last of a month, `6#3` for the third.
fn day_of_week(field: &Field, part: &str) -> Option<Result<String, String>> {
    if part == "L" {
        return Some(Ok((field.range.end() - field.shift).to_string()));
    }
    if let Some(day) = part.strip_suffix('L') {
        return Some(field.value(day).map(|day| format!("{day}L")));
    }
    let (day, which) = part.split_once('#')?;
    Some(match which {
        "1" | "2" | "3" | "4" | "5" => field.value(day).map(|day| format!("{day}#{which}")),
        _ => Err(format!("{which:?} is no week of a month: 1 to 5")),
    })
}

impl Cron {
    /// Reads what is in the brackets.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let fields: Vec<&str> = upper.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday, year] = fields[..] else {
            return Err(format!(
                "cron({text}) has {} fields: six are needed (minutes, hours, day of month, month, \
                 day of week, year)",
                fields.len()
            ));
        };
        let field = |name, range, names, shift| Field {
            name,
            range,
            names,
            shift,
        };
        let (day, weekday) = match (day, weekday) {
            ("?", "?") | ("*", "*") => {
                return Err("one of day of month and day of week has to be ?".into());
            }
            (day, "?") => {
                let days = field("day of the month", 1..=31, &[], 0);
                (days.read(day, day_of_month)?, "*".to_owned())
            }
            ("?", weekday) => {
                let days = field("day of the week", 1..=7, &DAYS, 1);
                ("*".to_owned(), days.read(weekday, day_of_week)?)
            }
            _ => return Err("one of day of month and day of week has to be ?".into()),
        };
        let words = [
            "0".to_owned(),
            field("minute", 0..=59, &[], 0).read(minute, plain)?,
            field("hour", 0..=23, &[], 0).read(hour, plain)?,
            day,
            field("month", 1..=12, &MONTHS, 0).read(month, plain)?,
            weekday,
            field("year", YEARS, &[], 0).read(year, plain)?,
        ];
        let parser = CronParser::builder()
            .seconds(Seconds::Required)
            .year(Year::Required)
            .build();
        let pattern = parser.parse(&words.join(" "));
        pattern
            .map(Self)
            .map_err(|error| format!("cron({text}) cannot be read: {error}"))
    }

    /// The first time after this one. Years that nobody can name are no times.
    pub(super) fn after(&self, time: DateTime) -> Option<DateTime> {
        let found = self.0.find_next_occurrence(&calendar(time)?, false);
        found.ok().and_then(civil)
    }

    /// The last time before this one, or this one.
    pub(super) fn until(&self, time: DateTime) -> Option<DateTime> {
        let found = self.0.find_previous_occurrence(&calendar(time)?, true);
        found.ok().and_then(civil)
    }
}

/// A time without a zone, as `croner` knows it.
fn calendar(time: DateTime) -> Option<NaiveDateTime> {
    let seconds = TimeZone::UTC.to_timestamp(time).ok()?.as_second();
    Calendar::from_timestamp(seconds, 0).map(|time| time.naive_utc())
}

fn civil(time: NaiveDateTime) -> Option<DateTime> {
    let time = Timestamp::from_second(time.and_utc().timestamp()).ok()?;
    let time = TimeZone::UTC.to_datetime(time);
    let year = u32::try_from(time.year()).ok()?;
    YEARS.contains(&year).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next times after the beginning of November 2026, a Sunday.
    fn times(text: &str, count: usize) -> Vec<String> {
        let cron = Cron::parse(text).unwrap();
        let mut time: DateTime = "2026-11-01T00:00:00".parse().unwrap();
        let mut times = Vec::new();
        for _ in 0..count {
            let Some(next) = cron.after(time) else { break };
            assert_eq!(cron.until(next), Some(next), "{text}");
            times.push(next.strftime("%m-%d %H:%M").to_string());
            time = next;
        }
        times
    }

    #[test]
    fn fields_are_eventbridges() {
        for (text, want) in [
            (
                "0 10 * * ? *",
                ["11-01 10:00", "11-02 10:00", "11-03 10:00"],
            ),
            (
                "15 12 * * ? *",
                ["11-01 12:15", "11-02 12:15", "11-03 12:15"],
            ),
            (
                "0 18 ? * MON-FRI *",
                ["11-02 18:00", "11-03 18:00", "11-04 18:00"],
            ),
            ("0 8 1 * ? *", ["11-01 08:00", "12-01 08:00", "01-01 08:00"]),
            (
                "0/15 * * * ? *",
                ["11-01 00:15", "11-01 00:30", "11-01 00:45"],
            ),
            (
                "0/5 8-17 ? * 2-6 *",
                ["11-02 08:00", "11-02 08:05", "11-02 08:10"],
            ),
            ("0 0 L * ? *", ["11-30 00:00", "12-31 00:00", "01-31 00:00"]),
            // The 15th of November is a Sunday, that of August 2027 is, too.
            (
                "0 9 15W * ? *",
                ["11-16 09:00", "12-15 09:00", "01-15 09:00"],
            ),
            // The 1st is a Sunday: the nearest weekday of the month is the 2nd.
            (
                "0 9 1W 11 ? *",
                ["11-02 09:00", "11-01 09:00", "11-01 09:00"],
            ),
            (
                "0 9 ? * 3#2 *",
                ["11-10 09:00", "12-08 09:00", "01-12 09:00"],
            ),
            (
                "0 9 ? * FRI#5 *",
                ["01-29 09:00", "04-30 09:00", "07-30 09:00"],
            ),
            (
                "0 9 ? * 6L *",
                ["11-27 09:00", "12-25 09:00", "01-29 09:00"],
            ),
            ("0 9 ? * L *", ["11-07 09:00", "11-14 09:00", "11-21 09:00"]),
            (
                "0 9 ? * 1,TUE *",
                ["11-01 09:00", "11-03 09:00", "11-08 09:00"],
            ),
            (
                "0 9 ? * */3 *",
                ["11-01 09:00", "11-04 09:00", "11-07 09:00"],
            ),
            (
                "0 9 29 2 ? *",
                ["02-29 09:00", "02-29 09:00", "02-29 09:00"],
            ),
            (
                "30 6 1 jan,jul ? 2027/2",
                ["01-01 06:30", "07-01 06:30", "01-01 06:30"],
            ),
        ] {
            assert_eq!(times(text, 3), want, "{text}");
        }
        assert_eq!(times("0 0 31 12 ? 2026", 3), ["12-31 00:00"]);
        // What never comes is found to be so, without end neither in time.
        assert_eq!(times("0 0 30 2 ? *", 1), Vec::<String>::new());
        assert_eq!(times("0 0 1 1 ? 2025", 1), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_cron_is_said() {
        for (text, says) in [
            ("0 10 * * ?", "5 fields"),
            ("0 10 * * * *", "has to be ?"),
            ("0 10 ? * ? *", "has to be ?"),
            ("0 10 1 * 2 *", "has to be ?"),
            ("60 10 * * ? *", "no minute: 0 to 59"),
            ("0 24 * * ? *", "no hour"),
            ("0 0 32 * ? *", "no day of the month"),
            ("0 0 ? * 0 *", "no day of the week: 1 to 7"),
            ("0 0 ? * 8 *", "no day of the week"),
            ("0 0 ? * FRI-MON *", "ends before"),
            ("0 0 ? * 2#6 *", "no week"),
            ("0 0 * 13 ? *", "no month"),
            ("0 0 * * ? 1969", "no year"),
            ("0/0 0 * * ? *", "no step"),
            ("1,,2 0 * * ? *", "\"\" is no minute"),
            ("+1 0 * * ? *", "no minute"),
            ("L 0 * * ? *", "no minute"),
            ("0 0 LW * ? *", "no day of the month"),
        ] {
            let error = Cron::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
