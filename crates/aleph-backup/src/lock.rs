//! Locks of a repository: backups beside each other, prunes alone.
//!
//! A lock is an object. Whoever wants one writes it, then looks at the others, and withdraws where one
//! excludes it: of two that begin at one instant at least one sees the other. The holder
//! writes it anew while it works. Ages are differences of the store's own times, so hosts need not agree on the time.

use crate::error::BackupError;
use crate::id::Id;
use crate::objects::{LOCKS, Objects, name};
use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A lock without a sign of its holder for so long was left behind.
const STALE: Duration = Duration::from_secs(30 * 60);

/// How often a holder gives a sign.
const REFRESH: Duration = Duration::from_secs(5 * 60);

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
}

/// A lock that is held. [`Lock::release`] gives it back; one that is dropped, since its work was, is given
/// back by a task of its own.
#[derive(Debug)]
pub(crate) struct Lock {
    objects: Objects,
    object: Path,
    refresh: JoinHandle<()>,
    released: bool,
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
        };
        let id = Id::random().map_err(|source| BackupError::Random { source })?;
        let object = name(LOCKS, &id);
        let content = serde_json::to_vec(&holder)
            .map(Bytes::from)
            .map_err(|error| BackupError::damaged(&object, error))?;
        objects.put(&object, content.clone()).await?;
        let refresh = tokio::spawn(keep(objects.clone(), object.clone(), content));
        let lock = Self {
            objects: objects.clone(),
            object,
            refresh,
            released: false,
        };
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
            if age > STALE {
                // Taken away, so that whoever lives on after all notices (`still_held`).
                self.objects.delete(&other.location).await?;
                continue;
            }
            let content = match self.objects.get(&other.location).await {
                Ok(content) => content,
                Err(BackupError::Missing { .. }) => continue,
                Err(error) => return Err(error),
            };
            let holder = match serde_json::from_slice::<Holder>(&content) {
                Ok(holder) => holder,
                Err(error) => {
                    return Ok(Some(format!("{} cannot be read: {error}", other.location)));
                }
            };
            if sharing == Sharing::Exclusive || holder.sharing == Sharing::Exclusive {
                return Ok(Some(format!(
                    "{} by process {} on {} since {}",
                    holder.work, holder.process, holder.host, holder.since
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
        self.released = true;
        // One that is refreshed at this moment must not be written after it was deleted.
        self.refresh.abort();
        let _ = (&mut self.refresh).await;
        give_back(&self.objects, &self.object).await;
    }
}

async fn give_back(objects: &Objects, object: &Path) {
    if let Err(error) = objects.delete(object).await {
        tracing::warn!(%object, %error, "a lock stays behind");
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.refresh.abort();
        if self.released {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (objects, object) = (self.objects.clone(), self.object.clone());
            runtime.spawn(async move { give_back(&objects, &object).await });
        }
    }
}

async fn keep(objects: Objects, object: Path, content: Bytes) {
    loop {
        tokio::time::sleep(REFRESH).await;
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
