//! Whose turn a volume is: one change of it at a time.
//!
//! Whoever waits holds a thread, of which the whole node has a number. So each account has [`WAITING`] who wait, and
//! more are told at once that the volume is busy: one that is copied or checked for long costs nobody else's VMs.

use aleph_types::VolumeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many of an account wait at a time.
const WAITING: usize = 32;

/// The volumes that something is done with, and who waits.
#[derive(Debug, Default)]
pub(super) struct VolumeTurns {
    turns: Mutex<Turns>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Turns {
    taken: BTreeSet<VolumeId>,
    waiting: BTreeMap<String, usize>,
}

impl VolumeTurns {
    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a volume's turn, and waits for it no longer than this. `false` where others have it.
    pub(super) fn take(&self, id: VolumeId, account: &str, patience: Duration) -> bool {
        let mut turns = self.lock();
        if turns.taken.contains(&id) {
            let waiting = turns.waiting.entry(account.to_owned()).or_default();
            if *waiting >= WAITING {
                return false;
            }
            *waiting += 1;
            let is_others = |turns: &mut Turns| turns.taken.contains(&id);
            let waited = self.freed.wait_timeout_while(turns, patience, is_others);
            (turns, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if let Some(waiting) = turns.waiting.get_mut(account) {
                *waiting -= 1;
                if *waiting == 0 {
                    turns.waiting.remove(account);
                }
            }
        }
        turns.taken.insert(id)
    }

    /// Gives it back.
    pub(super) fn give_back(&self, id: VolumeId) {
        self.lock().taken.remove(&id);
        self.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn an_account_has_so_many_who_wait() {
        let (turns, long) = (VolumeTurns::default(), Duration::from_secs(600));
        let (one, other) = (VolumeId::random(), VolumeId::random());
        assert!(turns.take(one, "a", long));
        assert!(!turns.take(one, "a", Duration::ZERO), "others have it");
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..WAITING)
                .map(|_| {
                    scope.spawn(|| {
                        let taken = turns.take(one, "a", long);
                        turns.give_back(one);
                        taken
                    })
                })
                .collect();
            while turns.lock().waiting.get("a") != Some(&WAITING) {
                thread::yield_now();
            }
            // At once, however long it would wait.
            assert!(!turns.take(one, "a", long));
            // What nobody has is nothing to wait for, and other accounts have their own.
            assert!(turns.take(other, "a", long));
            assert!(!turns.take(one, "b", Duration::ZERO));
            turns.give_back(one);
            for one in waiting {
                assert!(one.join().unwrap());
            }
        });
        assert!(turns.lock().waiting.is_empty());
    }
}
