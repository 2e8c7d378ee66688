//! When which event is due, in memory: ids, times and accounts.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long to wait where nothing is due.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// An event that waits; the one that is due first comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    /// Milliseconds since 1970.
    pub(super) due: i64,
    pub(super) request: String,
    pub(super) account: Arc<str>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The earliest on top.
    heap: BinaryHeap<Reverse<Due>>,
    by_account: HashMap<Arc<str>, usize>,
}

/// Events that wait.
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
        let known = waiting.by_account.get_key_value(account);
        let account = known.map_or_else(|| account.into(), |(known, _)| Arc::clone(known));
        *waiting.by_account.entry(Arc::clone(&account)).or_default() += 1;
        waiting.heap.push(Reverse(Due {
            due,
            request,
            account,
        }));
        drop(waiting);
        self.changed.notify_one();
    }

    /// Whether another event of an account may wait, where so many of one may, and so many in all.
    pub(super) fn has_room(&self, account: &str, of_account: usize, in_all: usize) -> bool {
        let waiting = self.lock();
        let own = waiting.by_account.get(account).copied().unwrap_or(0);
        own < of_account && waiting.heap.len() < in_all
    }

    /// The event that is due, or how long until one is.
    pub(super) fn pop(&self, now: i64) -> Result<Due, Duration> {
        let mut waiting = self.lock();
        match waiting.heap.peek() {
            Some(Reverse(next)) if next.due > now => {
                let pause = u64::try_from(next.due - now).unwrap_or(0);
                return Err(Duration::from_millis(pause));
            }
            _ => {}
        }
        let Reverse(next) = waiting.heap.pop().ok_or(LONGEST_PAUSE)?;
        if let Some(count) = waiting.by_account.get_mut(&next.account) {
            *count -= 1;
            if *count == 0 {
                waiting.by_account.remove(&next.account);
            }
        }
        Ok(next)
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
        assert_eq!(queue.pop(40).unwrap().request, "b");
        assert_eq!(queue.pop(40).unwrap().request, "c");
        assert_eq!(queue.pop(40), Err(LONGEST_PAUSE));
        assert!(queue.lock().by_account.is_empty());
    }
}
