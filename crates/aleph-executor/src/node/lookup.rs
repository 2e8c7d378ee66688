//! What is meant: names, beginnings of ids, filters.

use super::entry::{Entry, lock};
use super::{JobFilter, Node, NodeError, Scope};
use aleph_types::{Job, JobId, JobList};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::OwnedMutexGuard;

/// Lets requests with the same key go one after the other, and those with others go on meanwhile: a guest may
/// decide how long one takes.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the turn of this key.
    pub(super) async fn turn(&self, key: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.0);
            let known = turns.get(key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                // Of those that nobody has or waits for any more there are never many.
                turns.retain(|_, turn| turn.strong_count() > 0);
                let turn = Arc::default();
                turns.insert(key.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// About how many bytes a part of a list has before it ends early.
const PART_BYTES: usize = 8 << 20;

/// The fewest digits that may stand for an id.
const FEWEST: usize = 4;

impl Node {
    /// The job that a name, a full id or a unique beginning of one means to somebody.
    ///
    /// # Errors
    /// [`NodeError::NoJob`] and [`NodeError::Ambiguous`].
    pub fn find(&self, scope: &Scope, reference: &str) -> Result<JobId, NodeError> {
        let jobs = lock(&self.inner.jobs);
        let named: Vec<_> = jobs
            .named(reference)
            .filter(|(account, id)| scope.covers(account) && jobs.get(*id).is_some())
            .map(|(_, id)| id)
            .collect();
        let found = match named[..] {
            [] => prefix(reference).map_or_else(Vec::new, |(first, last)| {
                let entries = jobs.between(first, last);
                entries
                    .filter(|entry| scope.covers(&entry.job().account))
                    .map(|entry| entry.id)
                    .take(2)
                    .collect()
            }),
            _ => named,
        };
        match found[..] {
            [id] => Ok(id),
            [] => Err(NodeError::NoJob(reference.to_owned())),
            _ => Err(NodeError::Ambiguous(reference.to_owned(), found.len())),
        }
    }

    /// Jobs, the newest first.
    #[must_use]
    pub fn list(&self, scope: &Scope, filter: &JobFilter) -> JobList {
        let limit = match filter.limit {
            0 => 100,
            limit => limit.min(1000),
        };
        let after = filter.cursor.as_deref().and_then(read_cursor);
        let jobs = lock(&self.inner.jobs);
        let (mut found, mut weight, mut more) = (Vec::new(), 0, false);
        for entry in jobs.newest(after) {
            let job: Arc<Job> = Entry::job(entry);
            if !scope.covers(&job.account) || !filter.takes(&job) {
                continue;
            }
            if found.len() == limit || weight > PART_BYTES {
                more = true;
                break;
            }
            weight += job.spec.weight();
            found.push(job);
        }
        drop(jobs);
        let cursor = found.last().filter(|_| more).map(|job| cursor(job));
        JobList {
            jobs: found.iter().map(|job| Job::clone(job)).collect(),
            cursor,
        }
    }
}

impl JobFilter {
    fn takes(&self, job: &Job) -> bool {
        let labels = &job.spec.labels;
        (self.states.is_empty() || self.states.contains(&job.state))
            && self
                .name_prefix
                .as_deref()
                .is_none_or(|prefix| job.name.starts_with(prefix))
            && self.labels.iter().all(|(name, value)| {
                labels
                    .get(name)
                    .is_some_and(|there| value.as_ref().is_none_or(|value| value == there))
            })
    }
}

/// The first and the last id that begin so.
fn prefix(text: &str) -> Option<(JobId, JobId)> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let fits = (FEWEST..=32).contains(&digits.len());
    let hex = digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !fits || !hex {
        return None;
    }
    let bound = |fill: char| {
        let whole: String = digits
            .chars()
            .chain(std::iter::repeat(fill))
            .take(32)
            .collect();
        format!("0x{whole}").parse().ok()
    };
    Some((bound('0')?, bound('f')?))
}

fn cursor(job: &Job) -> String {
    format!("{}-{}", job.created_at.as_nanosecond(), job.id)
}

fn read_cursor(text: &str) -> Option<(i128, JobId)> {
    let (age, id) = text.split_once('-')?;
    Some((age.parse().ok()?, id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn turns_are_of_one_key_each() {
        let turns = Turns::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut taken = |key: &str| match pin!(turns.turn(key)).poll(&mut context) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        };
        let held = taken("held").unwrap();
        for n in 0..200 {
            assert!(taken("held").is_none());
            assert!(taken(&n.to_string()).is_some(), "{n} waits");
        }
        // What nobody has is not kept.
        assert!(lock(&turns.0).len() <= 2);
        drop(held);
        assert!(taken("held").is_some());
    }

    #[test]
    fn beginnings_of_ids_are_read_with_and_without_their_sign() {
        let (first, last) = prefix("0x12ab").unwrap();
        assert_eq!(first.to_string(), format!("0x12ab{}", "0".repeat(28)));
        assert_eq!(last.to_string(), format!("0x12ab{}", "f".repeat(28)));
        assert_eq!(prefix("12ab"), Some((first, last)));
        for wrong in ["12a", "0x12", "12AB", "web1", ""] {
            assert_eq!(prefix(wrong), None, "{wrong}");
        }
    }
}
