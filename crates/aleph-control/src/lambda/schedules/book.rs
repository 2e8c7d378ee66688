//! All schedules, and which is due first: in memory, as they are in the journal.

use super::schedule::Schedule;
use super::timing::Timing;
use crate::lambda::arn::Identity;
use crate::lambda::events::LONGEST_PAUSE;
use aleph_executor::journal::{Journal, JournalError};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long nothing is said again, in milliseconds.
const TELL: i64 = 60_000;

/// An account and the name of a schedule.
type Key = (String, String);

/// A schedule with what follows from it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) schedule: Arc<Schedule>,
    timing: Arc<Timing>,
    /// In seconds.
    pub(super) offset: i64,
    /// How many bytes of input it holds.
    bytes: usize,
    /// Up to when all is accounted for, in milliseconds since 1970.
    settled: i64,
    /// When it is looked at again, in milliseconds since 1970.
    due: Option<i64>,
}

impl Entry {
    /// # Errors
    /// Says what of the schedule cannot be.
    pub(super) fn new(schedule: Schedule, settled: i64, arn: &str) -> Result<Self, String> {
        let mut entry = Self {
            timing: Arc::new(schedule.timing()?),
            offset: schedule.offset(arn),
            bytes: schedule.target.input.as_ref().map_or(0, String::len),
            schedule: Arc::new(schedule),
            settled,
            due: None,
        };
        entry.find_due();
        Ok(entry)
    }

    fn find_due(&mut self) {
        let next = self.timing.next(self.settled.div_euclid(1000));
        let next = next.filter(|_| self.schedule.enabled);
        self.due = next.map(|time| (time + self.offset) * 1000);
    }

    /// The last time that has come until now, of those that are not accounted for.
    pub(super) fn latest(&self, now: i64) -> Option<i64> {
        let until = now.div_euclid(1000) - self.offset;
        self.timing.latest(self.settled.div_euclid(1000), until)
    }

    /// Whether nothing comes after this time.
    pub(super) fn is_last(&self, time: i64) -> bool {
        self.timing.next(time).is_none()
    }
}

#[derive(Debug, Default)]
struct Kept {
    entries: BTreeMap<Key, Entry>,
    due: BTreeSet<(i64, Key)>,
}

/// The schedules of all accounts.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    kept: Mutex<Kept>,
    changed: Notify,
    /// When it was last said of an account that too many of its events wait.
    told: Mutex<BTreeMap<String, i64>>,
    /// Changes and what fires come one after another.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Kept {
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let before = entry.due;
        change(entry);
        let after = entry.due;
        if let Some(due) = before {
            self.due.remove(&(due, key.clone()));
        }
        if let Some(due) = after {
            self.due.insert((due, key.clone()));
        }
    }
}

fn key(account: &str, name: &str) -> Key {
    (account.to_owned(), name.to_owned())
}

impl Schedules {
    /// Reads what the journal keeps. What cannot be understood is left alone, and told.
    pub(crate) async fn open(journal: &Journal, identity: &Identity) -> Result<Self, JournalError> {
        let schedules = Self::default();
        for row in journal.schedules().await? {
            let arn = identity.schedule_arn(&row.account, &row.name);
            let read = serde_json::from_str(&row.record).map_err(|error| error.to_string());
            match read.and_then(|schedule| Entry::new(schedule, row.settled, &arn)) {
                Ok(entry) => schedules.set(&row.account, &row.name, entry),
                Err(error) => tracing::error!(arn, error, "a schedule cannot be read"),
            }
        }
        Ok(schedules)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, account: &str, name: &str) -> Option<Arc<Schedule>> {
        self.get_settled(account, name)
            .map(|(schedule, _)| schedule)
    }

    /// A schedule, and up to when all is accounted for.
    pub(super) fn get_settled(&self, account: &str, name: &str) -> Option<(Arc<Schedule>, i64)> {
        let kept = self.lock();
        let entry = kept.entries.get(&key(account, name))?;
        Some((Arc::clone(&entry.schedule), entry.settled))
    }

    fn of<'k>(kept: &'k Kept, account: &str) -> impl Iterator<Item = (&'k String, &'k Entry)> {
        let account = account.to_owned();
        let from = Bound::Included(key(&account, ""));
        let all = kept.entries.range((from, Bound::Unbounded));
        all.take_while(move |((owner, _), _)| *owner == account)
            .map(|((_, name), entry)| (name, entry))
    }

    pub(super) fn count(&self, account: &str) -> usize {
        Self::of(&self.lock(), account).count()
    }

    /// How many bytes of input an account's schedules hold, but for one.
    pub(super) fn bytes(&self, account: &str, but: &str) -> usize {
        let kept = self.lock();
        let others = Self::of(&kept, account).filter(|(name, _)| *name != but);
        others.map(|(_, entry)| entry.bytes).sum()
    }

    /// Whether it is to be said now that too many events of an account wait: once a minute.
    pub(super) fn tells(&self, account: &str, now: i64) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.get(account).copied();
        let tells = before.is_none_or(|before| (now - before).abs() >= TELL);
        if tells {
            told.insert(account.to_owned(), now);
        }
        tells
    }

    /// Those of which more is accounted for than until then.
    pub(super) fn ahead(&self, until: i64) -> Vec<(String, String, Entry)> {
        let kept = self.lock();
        let ahead = kept
            .entries
            .iter()
            .filter(|(_, entry)| entry.settled > until);
        ahead
            .map(|(key, entry)| (key.0.clone(), key.1.clone(), entry.clone()))
            .collect()
    }

    /// What comes after this time is to come, whatever was accounted for.
    pub(super) fn put_back(&self, account: &str, name: &str, settled: i64) {
        self.lock().change(&key(account, name), |entry| {
            entry.settled = settled;
            entry.find_due();
        });
    }

    /// The schedules of an account in the order of their names.
    pub(crate) fn list(&self, account: &str) -> Vec<(String, Arc<Schedule>)> {
        let kept = self.lock();
        let all = Self::of(&kept, account);
        all.map(|(name, entry)| (name.clone(), Arc::clone(&entry.schedule)))
            .collect()
    }

    pub(super) fn set(&self, account: &str, name: &str, entry: Entry) {
        let key = key(account, name);
        let mut kept = self.lock();
        kept.change(&key, |before| before.due = None);
        if let Some(due) = entry.due {
            kept.due.insert((due, key.clone()));
        }
        kept.entries.insert(key, entry);
        drop(kept);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, account: &str, name: &str) {
        let key = key(account, name);
        let mut kept = self.lock();
        kept.change(&key, |before| before.due = None);
        kept.entries.remove(&key);
    }

    /// What is due, the earliest first.
    pub(super) fn due(&self, now: i64, most: usize) -> Vec<(String, String, Entry)> {
        let kept = self.lock();
        let due = kept
            .due
            .iter()
            .take_while(|(due, _)| *due <= now)
            .take(most);
        due.filter_map(|(_, key)| {
            let entry = kept.entries.get(key)?.clone();
            Some((key.0.clone(), key.1.clone(), entry))
        })
        .collect()
    }

    /// How long nothing is due.
    pub(super) fn pause(&self, now: i64) -> Duration {
        let first = self.lock().due.first().map(|(due, _)| *due);
        first.map_or(LONGEST_PAUSE, |due| {
            Duration::from_millis(u64::try_from(due - now).unwrap_or(0))
        })
    }

    /// Has a schedule looked at again at another time.
    pub(super) fn postpone(&self, account: &str, name: &str, until: i64) {
        let key = key(account, name);
        self.lock().change(&key, |entry| entry.due = Some(until));
    }

    /// Everything up to this time is accounted for.
    pub(super) fn settle(&self, account: &str, name: &str, settled: i64) {
        self.lock().change(&key(account, name), |entry| {
            entry.settled = entry.settled.max(settled);
            entry.find_due();
        });
    }

    /// Waits until another one may be due first.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}
