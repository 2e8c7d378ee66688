//! Locks of a repository: backups beside each other, prunes alone.
//!
//! A lock is an object. Whoever wants one writes it, then looks at the others, and withdraws where one
//! excludes it: of two that begin at one instant at least one sees the other. The holder
//! writes it anew while it works. Ages are differences of the store's own times, so hosts need not agree on the time.
//!
//! A lock that was left behind counts no more after half an hour. One of a process of this very host that is
//! gone counts no more at once, and one of a process that lives counts at any age, since it may have been stopped
//! and go on: a lock says in which boot of which kernel its process was, and when that one
//! began, since numbers of processes are used again. After a boot nothing tells whether another host with that
//! name lives, so half an hour it is. Of those of this very process it is known which are held: one that a store
//! did not let go of counts no more.

use crate::error::BackupError;
use crate::id::Id;
use crate::objects::{LOCKS, Objects, SMALL, name};
use crate::process::{self, Sign};
use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a lock is sealed for.
const PURPOSE: &[u8] = b"lock";

/// A lock without a sign of its holder for so long was left behind.
pub(crate) const STALE: Duration = Duration::from_secs(30 * 60);

/// How often a holder gives a sign.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// How long a sign that is being given is waited for, before the lock goes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The locks that this process holds, or is about to.
static HELD: Mutex<Option<HashSet<Path>>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<HashSet<Path>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sharing {
    Shared,
    Exclusive,
}

/// What a lock's object says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Holder {
    sharing: Sharing,
    work: String,
    host: String,
    process: u32,
    since: Timestamp,
    /// Where and when its process began; older programs do not say.
    #[serde(default)]
    origin: Option<Origin>,
}

/// What tells a process from all others of all hosts, beside its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    /// The kernel's `boot_id`.
    boot: String,
    /// The namespace in which its number is its own.
    namespace: String,
    /// When it began, in the kernel's ticks since it booted.
    began: u64,
}

impl Origin {
    /// That of this process; `None` where the kernel does not tell.
    fn here() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        Some(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.to_str()?.to_owned(),
            began: match process::look(std::process::id()) {
                Sign::Began(began) => began,
                Sign::Gone | Sign::Unknown => return None,
            },
        })
    }
}

/// Whether the holder of a lock lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Lives,
    Gone,
    /// It is of another host, or nobody can tell.
    Unknown,
}

impl Holder {
    /// Whether the process that this lock is of lives, as far as it can be told here.
    fn life(&self, lock: &Path) -> Life {
        let (Some(theirs), Some(ours)) = (&self.origin, Origin::here()) else {
            return Life::Unknown;
        };
        if (&theirs.boot, &theirs.namespace) != (&ours.boot, &ours.namespace) {
            return Life::Unknown;
        }
        let lives = match process::look(self.process) {
            Sign::Began(began) if began == theirs.began => {
                let is_ours = self.process == std::process::id();
                !is_ours || held().as_ref().is_some_and(|held| held.contains(lock))
            }
            Sign::Began(_) | Sign::Gone => false,
            Sign::Unknown => return Life::Unknown,
        };
        if lives { Life::Lives } else { Life::Gone }
    }
}

/// A lock that is held. [`Lock::release`] gives it back; one that is dropped, since its work was, is given
/// back by a task of its own.
#[derive(Debug)]
pub(crate) struct Lock {
    objects: Objects,
    object: Path,
    /// Ends what gives signs.
    ended: CancellationToken,
    /// What gives signs, until it is given back.
    refresh: Option<JoinHandle<()>>,
}

impl Lock {
    /// Takes a lock for this work.
    ///
    /// # Errors
    /// [`BackupError::Locked`], where another excludes it.
    pub(crate) async fn take(
        objects: &Objects,
        sharing: Sharing,
        work: &str,
    ) -> Result<Self, BackupError> {
        let holder = Holder {
            sharing,
            work: work.to_owned(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned()),
            process: std::process::id(),
            since: Timestamp::now(),
            origin: Origin::here(),
        };
        let id = Id::random().map_err(|source| BackupError::Random { source })?;
        let object = name(LOCKS, &id);
        let json =
            serde_json::to_vec(&holder).map_err(|error| BackupError::damaged(&object, error))?;
        let content = Bytes::from(objects.seal.seal(PURPOSE, json)?);
        // From now on it counts as held, and is given back where this is dropped.
        let lock = Self::hold(objects, object, content.clone(), REFRESH);
        if let Err(error) = objects.put(&lock.object, content).await {
            lock.abandon();
            return Err(error);
        }
        match lock.excluded_by(sharing).await {
            Ok(None) => Ok(lock),
            Ok(Some(holder)) => {
                lock.release().await;
                Err(BackupError::Locked { holder })
            }
            Err(error) => {
                lock.release().await;
                Err(error)
            }
        }
    }

    /// Gives signs for a lock that is there, or is about to be.
    fn hold(objects: &Objects, object: Path, content: Bytes, every: Duration) -> Self {
        held().get_or_insert_default().insert(object.clone());
        let ended = CancellationToken::new();
        let sign = (objects.clone(), object.clone(), content);
        Self {
            objects: objects.clone(),
            refresh: Some(tokio::spawn(keep(sign, every, ended.clone()))),
            object,
            ended,
        }
    }

    /// Who excludes this lock.
    async fn excluded_by(&self, sharing: Sharing) -> Result<Option<String>, BackupError> {
        let all = self.objects.list(LOCKS).await?;
        let now = all
            .iter()
            .find(|meta| meta.location == self.object)
            .map(|meta| meta.last_modified)
            .ok_or(BackupError::LockLost)?;
        for other in all.iter().filter(|meta| meta.location != self.object) {
            let age = (now - other.last_modified).to_std().unwrap_or_default();
            let content = match self.objects.get(&other.location, SMALL).await {
                Ok(content) => content,
                Err(BackupError::Missing { .. }) => continue,
                Err(error) => return Err(error),
            };
            let opened = self.objects.seal.open(PURPOSE, &content);
            let read = opened.map_err(|error| error.to_string()).and_then(|json| {
                serde_json::from_slice::<Holder>(&json).map_err(|error| error.to_string())
            });
            let life = read.as_ref().map(|holder| holder.life(&other.location));
            if life == Ok(Life::Gone) || (life != Ok(Life::Lives) && age > STALE) {
                // Taken away, so that whoever lives on after all notices (`still_held`).
                self.objects.delete(&other.location).await?;
                continue;
            }
            let holder = match read {
                Ok(holder) => holder,
                Err(error) => {
                    return Ok(Some(format!("{} cannot be read: {error}", other.location)));
                }
            };
            if sharing == Sharing::Exclusive || holder.sharing == Sharing::Exclusive {
                return Ok(Some(format!(
                    "{} by process {} on {} since {} ({})",
                    holder.work, holder.process, holder.host, holder.since, other.location
                )));
            }
        }
        Ok(None)
    }

    /// Checks that nobody took it away.
    ///
    /// # Errors
    /// [`BackupError::LockLost`].
    pub(crate) async fn still_held(&self) -> Result<(), BackupError> {
        if self.objects.exists(&self.object).await? {
            Ok(())
        } else {
            Err(BackupError::LockLost)
        }
    }

    /// Gives it back. A store that fails now leaves the object to grow stale.
    pub(crate) async fn release(mut self) {
        if let Some(end) = self.end() {
            // A task of its own: whoever gives up waiting for it has given it back all the same.
            let _ = tokio::spawn(end).await;
        }
    }

    /// Leaves it to its store, which did not take it. If it did after all, it counts as left behind.
    fn abandon(mut self) {
        self.ended.cancel();
        self.refresh = None;
        forget(&self.object);
    }

    /// What gives it back, once.
    fn end(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut refresh = self.refresh.take()?;
        self.ended.cancel();
        let (objects, object) = (self.objects.clone(), self.object.clone());
        Some(async move {
            // One that is refreshed at this moment must not be written after it was deleted, and a store that is
            // a folder writes on when nobody waits for it any more.
            if tokio::time::timeout(PATIENCE, &mut refresh).await.is_err() {
                refresh.abort();
            }
            if let Err(error) = objects.delete(&object).await {
                tracing::warn!(%object, %error, "a lock stays behind");
            }
            forget(&object);
        })
    }
}

fn forget(object: &Path) {
    if let Some(held) = held().as_mut() {
        held.remove(object);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let Some(end) = self.end() else {
            return;
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(end)),
            Err(_) => forget(&self.object),
        }
    }
}

async fn keep(
    (objects, object, content): (Objects, Path, Bytes),
    every: Duration,
    ended: CancellationToken,
) {
    let rest = || ended.run_until_cancelled(tokio::time::sleep(every));
    while rest().await.is_some() {
        // One that was taken away is not put back.
        match objects.exists(&object).await {
            Ok(true) => {
                if let Err(error) = objects.put(&object, content.clone()).await {
                    tracing::warn!(%object, %error, "a lock was not refreshed");
                }
            }
            Ok(false) => return,
            Err(error) => tracing::warn!(%object, %error, "a lock was not refreshed"),
        }
    }
}

/// Removes all locks, whoever holds them.
pub(crate) async fn remove_all(objects: &Objects) -> Result<usize, BackupError> {
    let all = objects.list(LOCKS).await?;
    for lock in &all {
        objects.delete(&lock.location).await?;
    }
    Ok(all.len())
}

#[cfg(test)]
mod tests;
