//! Restores of backups that broke off, kept for whoever asks for the same again.
//!
//! A store that fails, or a client that goes away, ends a restore. What had come by then is in a file that has no
//! name and goes with its descriptor, so nobody ever sees half a volume. [`BegunRestores`] holds that descriptor for
//! [`KEPT`]: a restore of the same backup for the same account takes it, and the repository checks by their hashes
//! which chunks are there already.
//!
//! # Failure cases
//! What is kept takes of the disk and belongs to no volume. So there is one for each account and [`MOST`] in all,
//! and none of a restore that ended for lack of room. It is gone with the daemon: after a crash a restore begins
//! anew. Two restores of the same backup at once share nothing: whoever takes it has it alone.

use aleph_backup::Id;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long what came is kept.
pub(crate) const KEPT: Duration = Duration::from_hours(1);

/// How many are kept.
const MOST: usize = 4;

/// Restores that broke off.
#[derive(Debug, Default)]
pub(crate) struct BegunRestores(Mutex<Vec<Begun>>);

#[derive(Debug)]
struct Begun {
    account: String,
    backup: Id,
    file: File,
    until: Instant,
}

impl BegunRestores {
    fn lock(&self) -> MutexGuard<'_, Vec<Begun>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an earlier restore of a backup left for an account.
    pub(crate) fn take(&self, account: &str, backup: Id) -> Option<File> {
        let mut all = self.lock();
        let at = all
            .iter()
            .position(|one| one.account == account && one.backup == backup)?;
        Some(all.remove(at).file)
    }

    /// Lets go of what an earlier restore of a backup left for an account: another one has ended well.
    pub(crate) fn forget(&self, account: &str, backup: Id) {
        drop(self.take(account, backup));
    }

    /// Keeps what a restore left, until the node stops at the latest.
    pub(crate) fn keep(
        self: &Arc<Self>,
        account: String,
        backup: Id,
        file: File,
        stopping: CancellationToken,
    ) {
        // One that came to nothing takes nobody's place.
        if !file.metadata().is_ok_and(|file| file.blocks() > 0) {
            return;
        }
        let until = Instant::now() + KEPT;
        let mut all = self.lock();
        all.retain(|one| one.account != account);
        if all.len() >= MOST {
            all.remove(0);
        }
        all.push(Begun {
            account,
            backup,
            file,
            until,
        });
        drop(all);
        tokio::spawn(let_go(Arc::downgrade(self), until, stopping));
    }

    /// Lets go of what is as old as that.
    fn expire(&self, until: Instant) {
        self.lock().retain(|one| one.until > until);
    }
}

/// Waits, and lets go of what was kept until then.
async fn let_go(begun: Weak<BegunRestores>, until: Instant, stopping: CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep_until(until) => {}
        () = stopping.cancelled() => {}
    }
    if let Some(begun) = begun.upgrade() {
        begun.expire(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn text(mut file: File) -> String {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn id(n: u8) -> Id {
        Id::from_bytes([n; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_taken_once_by_its_account_and_goes_with_time() {
        let begun = Arc::new(BegunRestores::default());
        let stopping = CancellationToken::new();
        let keep = |account: &str, n: u8, text: &str| {
            begun.keep(account.to_owned(), id(n), file(text), stopping.clone());
        };
        keep("a", 1, "one");
        assert!(begun.take("b", id(1)).is_none(), "another account's");
        assert!(begun.take("a", id(2)).is_none(), "another backup's");
        assert_eq!(begun.take("a", id(1)).map(text).as_deref(), Some("one"));
        assert!(begun.take("a", id(1)).is_none(), "it is taken once");

        keep("a", 1, "");
        assert!(begun.take("a", id(1)).is_none(), "nothing had come");
        keep("a", 1, "one");
        begun.forget("a", id(1));
        assert!(begun.take("a", id(1)).is_none());

        // One for each account, and so many in all.
        keep("a", 1, "one");
        keep("a", 2, "two");
        assert!(begun.take("a", id(1)).is_none());
        for account in ["b", "c", "d", "e"] {
            keep(account, 3, account);
        }
        assert!(begun.take("a", id(2)).is_none(), "the oldest goes");
        assert_eq!(begun.lock().len(), MOST);

        tokio::time::sleep(KEPT - Duration::from_secs(1)).await;
        assert_eq!(begun.lock().len(), MOST);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(begun.lock().is_empty(), "an hour has gone");
        keep("a", 1, "one");
        stopping.cancel();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(begun.lock().is_empty(), "the node stops");
    }
}
