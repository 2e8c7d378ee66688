//! Which snapshots to keep (pure).

use crate::id::Id;
use crate::snapshot::Snapshot;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How many snapshots of each volume to keep. Of each hour, day, week, month or year that has some, the
/// latest one counts, and so many of these periods, the latest first. Periods without any cost nothing. A
/// snapshot stays where one rule keeps it. Times are UTC, weeks begin on Monday.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// So many of the latest.
    pub last: u32,
    /// One of so many hours.
    pub hourly: u32,
    /// One of so many days.
    pub daily: u32,
    /// One of so many weeks.
    pub weekly: u32,
    /// One of so many months.
    pub monthly: u32,
    /// One of so many years.
    pub yearly: u32,
}

/// A period that a snapshot is in; equal ones are one.
type Period = (i32, i32, i32);

/// Which period a time is in.
type PeriodOf = fn(Timestamp) -> Period;

impl Retention {
    /// Whether no rule keeps anything: then nobody meant it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The snapshots that no rule keeps, the oldest first. Each volume stands for itself.
    #[must_use]
    pub fn forgets(&self, snapshots: &[Snapshot]) -> Vec<Id> {
        let mut volumes: BTreeMap<&str, Vec<&Snapshot>> = BTreeMap::new();
        for snapshot in snapshots {
            volumes.entry(&snapshot.volume).or_default().push(snapshot);
        }
        let mut kept = HashSet::new();
        for of_one in volumes.values_mut() {
            of_one.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.time, snapshot.id)));
            self.keep(of_one, &mut kept);
        }
        let mut gone: Vec<&Snapshot> = snapshots.iter().filter(|s| !kept.contains(&s.id)).collect();
        gone.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
        gone.into_iter().map(|snapshot| snapshot.id).collect()
    }

    /// Of snapshots of one volume, the latest first.
    fn keep(&self, snapshots: &[&Snapshot], kept: &mut HashSet<Id>) {
        let last = usize::try_from(self.last).unwrap_or(usize::MAX);
        kept.extend(snapshots.iter().take(last).map(|snapshot| snapshot.id));
        let rules: [(u32, PeriodOf); 5] = [
            (self.hourly, hour),
            (self.daily, day),
            (self.weekly, week),
            (self.monthly, month),
            (self.yearly, year),
        ];
        for (most, period) in rules {
            let mut found: HashMap<Period, Id> = HashMap::new();
            for snapshot in snapshots {
                let is_full = u32::try_from(found.len()).unwrap_or(u32::MAX) >= most;
                let period = period(snapshot.time);
                if !is_full && !found.contains_key(&period) {
                    found.insert(period, snapshot.id);
                }
            }
            kept.extend(found.into_values());
        }
    }
}

fn utc(time: Timestamp) -> DateTime {
    time.to_zoned_datetime(TimeZone::UTC).datetime()
}

fn hour(time: Timestamp) -> Period {
    let time = utc(time);
    let of_year = i32::from(time.day_of_year());
    (i32::from(time.year()), of_year, i32::from(time.hour()))
}

fn day(time: Timestamp) -> Period {
    let (year, day, _) = hour(time);
    (year, day, 0)
}

fn week(time: Timestamp) -> Period {
    let week = utc(time).date().iso_week_date();
    (i32::from(week.year()), i32::from(week.week()), 0)
}

fn month(time: Timestamp) -> Period {
    let time = utc(time);
    (i32::from(time.year()), i32::from(time.month()), 0)
}

fn year(time: Timestamp) -> Period {
    (hour(time).0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::SnapshotStats;
    use proptest::prelude::*;

    fn snapshot(volume: &str, time: Timestamp) -> Snapshot {
        Snapshot {
            id: Id::of(format!("{volume} {time}").as_bytes()),
            volume: volume.to_owned(),
            state: None,
            about: None,
            name: String::new(),
            time,
            size: 0,
            parent: None,
            root: None,
            stats: SnapshotStats::default(),
        }
    }

    fn at(times: &[&str]) -> Vec<Snapshot> {
        let parsed = times.iter().map(|time| time.parse().unwrap());
        parsed.map(|time| snapshot("v", time)).collect()
    }

    /// The times of what stays.
    fn stays(retention: Retention, snapshots: &[Snapshot]) -> Vec<String> {
        let gone = retention.forgets(snapshots);
        let kept = snapshots.iter().filter(|s| !gone.contains(&s.id));
        kept.map(|s| s.time.to_string()).collect()
    }

    #[test]
    fn the_latest_of_each_period_stays() {
        let all = at(&[
            "2025-12-28T23:59:59Z", // a Sunday
            "2025-12-29T00:00:00Z",
            "2026-01-01T10:00:00Z", // of the same week, and another year
            "2026-01-03T09:00:00Z",
            "2026-01-03T09:59:59Z",
            "2026-01-03T10:00:00Z",
        ]);
        let none = Retention::default();
        for (retention, wanted) in [
            (Retention { last: 2, ..none }, &[4, 5][..]),
            (Retention { hourly: 2, ..none }, &[4, 5]),
            (Retention { daily: 3, ..none }, &[1, 2, 5]),
            (Retention { daily: 100, ..none }, &[0, 1, 2, 5]),
            (Retention { weekly: 5, ..none }, &[0, 5]),
            (Retention { monthly: 5, ..none }, &[1, 5]),
            (Retention { yearly: 1, ..none }, &[5]),
            (
                Retention {
                    last: 1,
                    yearly: 2,
                    ..none
                },
                &[1, 5],
            ),
            (none, &[]),
        ] {
            let wanted: Vec<String> = wanted
                .iter()
                .map(|n: &usize| all[*n].time.to_string())
                .collect();
            assert_eq!(stays(retention, &all), wanted, "{retention:?}");
        }
    }

    #[test]
    fn each_volume_stands_for_itself() {
        let mut all = at(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]);
        all.push(snapshot("other", "2025-01-01T00:00:00Z".parse().unwrap()));
        let last = Retention {
            last: 1,
            ..Retention::default()
        };
        assert_eq!(last.forgets(&all), [all[0].id]);
    }

    proptest! {
        #[test]
        fn more_is_kept_by_more(
            seconds in proptest::collection::btree_set(0i64..100_000_000, 1..40),
            (last, daily, more) in (0u32..5, 0u32..5, 0u32..5),
        ) {
            let all: Vec<Snapshot> = seconds
                .into_iter()
                .map(|second| snapshot("v", Timestamp::from_second(second).unwrap()))
                .collect();
            let less = Retention { last, daily, ..Retention::default() };
            let greater = Retention { last: last + more, daily: daily + more, ..less };
            let (gone, fewer) = (less.forgets(&all), greater.forgets(&all));
            prop_assert!(fewer.iter().all(|id| gone.contains(id)));
            if last > 0 {
                prop_assert!(!gone.contains(&all.last().unwrap().id));
            }
            let kept = all.len() - gone.len();
            prop_assert!(kept <= usize::try_from(last + daily).unwrap());
        }
    }
}
