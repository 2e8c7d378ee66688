//! Whose turn a volume is: one change of it at a time.
//!
//! Whoever waits holds a thread, of which the whole node has a number. So each account has [`WAITING`] who wait for
//! long. More wait for a [`MOMENT`], which is enough where many VMs start with one volume, and beyond [`MOST`] they are
//! told at once that the volume is busy: one that is copied or checked for long costs nobody else's VMs.

use aleph_types::VolumeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many of an account wait for long.
const WAITING: usize = 32;

/// How many of an account wait in all.
const MOST: usize = 160;

/// How long the others wait.
const MOMENT: Duration = Duration::from_secs(2);

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
            let patience = match *waiting {
                ..WAITING => patience,
                WAITING..MOST => patience.min(MOMENT),
                MOST.. => return false,
            };
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
    fn an_account_has_so_many_who_wait_and_fewer_who_wait_long() {
        let (turns, long) = (VolumeTurns::default(), Duration::from_secs(600));
        let (one, other) = (VolumeId::random(), VolumeId::random());
        assert!(turns.take(one, "a", long));
        assert!(!turns.take(one, "a", Duration::ZERO), "others have it");
        thread::scope(|scope| {
            let waits = || {
                let taken = turns.take(one, "a", long);
                if taken {
                    turns.give_back(one);
                }
                taken
            };
            let wait_for = |count| {
                while turns.lock().waiting.get("a") != Some(&count) {
                    thread::yield_now();
                }
            };
            let waiting: Vec<_> = (0..WAITING).map(|_| scope.spawn(waits)).collect();
            wait_for(WAITING);
            // Others give up by themselves.
            let shortly: Vec<_> = (WAITING..MOST).map(|_| scope.spawn(waits)).collect();
            for one in shortly {
                assert!(!one.join().unwrap());
            }
            wait_for(WAITING);
            // As many as there may be at all are refused at once, however long they would wait.
            turns.lock().waiting.insert("a".to_owned(), MOST);
            assert!(!turns.take(one, "a", long));
            turns.lock().waiting.insert("a".to_owned(), WAITING);
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
