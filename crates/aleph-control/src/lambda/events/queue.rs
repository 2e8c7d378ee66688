//! When which event is due, in memory: ids, times and accounts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long to wait where nothing is due.
pub(in crate::lambda) const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How many events of one account are under way at once.
const OF_ACCOUNT: usize = 32;

/// An event that waits; the one that is due first comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    /// Milliseconds since 1970.
    pub(super) due: i64,
    pub(super) request: String,
    pub(super) account: Arc<str>,
}

/// The events of an account.
#[derive(Debug, Default)]
struct Line {
    /// The earliest on top.
    heap: BinaryHeap<Reverse<Due>>,
    under_way: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: BTreeMap<Arc<str>, Line>,
    /// How many events wait in all lines.
    count: usize,
    /// Whose turn was last.
    last: Option<Arc<str>>,
}

/// Events that wait. Accounts take turns, and each has so many under way and no more.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, due: i64, request: String, account: &str) {
        let mut waiting = self.lock();
        let known = waiting.lines.get_key_value(account);
        let account = known.map_or_else(|| account.into(), |(known, _)| Arc::clone(known));
        let line = waiting.lines.entry(Arc::clone(&account)).or_default();
        line.heap.push(Reverse(Due {
            due,
            request,
            account,
        }));
        waiting.count += 1;
        drop(waiting);
        self.changed.notify_one();
    }

    /// Whether another event of an account may wait, where so many of one may, and so many in all.
    pub(super) fn has_room(&self, account: &str, of_account: usize, in_all: usize) -> bool {
        let waiting = self.lock();
        let own = waiting.lines.get(account).map_or(0, |line| line.heap.len());
        own < of_account && waiting.count < in_all
    }

    /// An event that is due, or how long until one is. It is under way until [`Self::done`].
    pub(super) fn pop(&self, now: i64) -> Result<Due, Duration> {
        let mut guard = self.lock();
        let waiting = &mut *guard;
        let last = waiting.last.as_deref().unwrap_or_default();
        let after = (Bound::Excluded(last), Bound::Unbounded);
        let rest = waiting.lines.range::<str, _>(after);
        let begin = waiting
            .lines
            .range::<str, _>((Bound::Unbounded, Bound::Included(last)));
        let (mut chosen, mut earliest) = (None, None);
        for (account, line) in rest.chain(begin) {
            if line.under_way >= OF_ACCOUNT {
                continue;
            }
            let Some(Reverse(next)) = line.heap.peek() else {
                continue;
            };
            if next.due <= now {
                chosen = Some(Arc::clone(account));
                break;
            }
            earliest = Some(earliest.map_or(next.due, |due: i64| due.min(next.due)));
        }
        let pause = earliest.map_or(LONGEST_PAUSE, |due| {
            Duration::from_millis(u64::try_from(due - now).unwrap_or(0))
        });
        let account = chosen.ok_or(pause)?;
        let line = waiting.lines.get_mut(&account).ok_or(LONGEST_PAUSE)?;
        let Reverse(next) = line.heap.pop().ok_or(LONGEST_PAUSE)?;
        line.under_way += 1;
        waiting.count -= 1;
        waiting.last = Some(account);
        Ok(next)
    }

    /// An event of an account is no longer under way.
    pub(super) fn done(&self, account: &str) {
        let mut waiting = self.lock();
        if let Some(line) = waiting.lines.get_mut(account) {
            line.under_way = line.under_way.saturating_sub(1);
            if line.under_way == 0 && line.heap.is_empty() {
                waiting.lines.remove(account);
            }
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Waits until there may be another one that is due first.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_each_account_has_room_of_its_own() {
        let queue = Queue::default();
        for (due, request, account) in [(20, "b", "one"), (10, "a", "one"), (30, "c", "two")] {
            queue.push(due, request.into(), account);
        }
        assert!(!queue.has_room("one", 2, 9));
        assert!(queue.has_room("two", 2, 9));
        assert!(!queue.has_room("two", 2, 3), "all together are too many");
        assert_eq!(queue.pop(9), Err(Duration::from_millis(1)));
        let next = queue.pop(10).unwrap();
        assert_eq!((&*next.request, &*next.account), ("a", "one"));
        assert!(queue.has_room("one", 2, 3));
        assert_eq!(queue.pop(25).unwrap().request, "b");
        assert_eq!(queue.pop(40).unwrap().request, "c");
        assert_eq!(queue.pop(40), Err(LONGEST_PAUSE));
        for account in ["one", "one", "two"] {
            queue.done(account);
        }
        assert!(queue.lock().lines.is_empty());
    }

    #[test]
    fn accounts_take_turns_and_none_has_too_many_under_way() {
        let queue = Queue::default();
        for n in 0..OF_ACCOUNT + 1 {
            queue.push(1, format!("{n:03}"), "many");
        }
        queue.push(2, "x".into(), "few");
        queue.push(3, "y".into(), "few");
        let account = || queue.pop(5).unwrap().account;
        let turns = [account(), account(), account(), account()];
        assert_eq!(
            turns.each_ref().map(|a| &**a),
            ["few", "many", "few", "many"]
        );
        for _ in 2..OF_ACCOUNT {
            assert_eq!(&*account(), "many");
        }
        assert_eq!(queue.pop(5), Err(LONGEST_PAUSE));
        queue.push(9, "z".into(), "few");
        assert_eq!(queue.pop(5), Err(Duration::from_millis(4)));
        queue.done("many");
        assert_eq!(&*account(), "many");
    }
}
