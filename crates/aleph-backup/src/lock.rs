//! Locks of a repository: backups beside each other, prunes alone.
//!
//! A lock is an object. Whoever wants one writes it, then looks at the others, and withdraws where one
//! excludes it: of two that begin at one instant at least one sees the other. The holder
//! writes it anew while it works. Ages are differences of the store's own times, so hosts need not agree on the time.
//!
//! A lock that was left behind counts no more after half an hour. One of a process of this very host that is
//! gone counts no more at once: it says in which boot of which kernel its process was, and when that one
//! began, since numbers of processes are used again. After a boot nothing tells whether another host with that
//! name lives, so half an hour it is.

use crate::error::BackupError;
use crate::id::Id;
use crate::objects::{LOCKS, Objects, SMALL, name};
use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::task::JoinHandle;

/// What a lock is sealed for.
const PURPOSE: &[u8] = b"lock";

/// A lock without a sign of its holder for so long was left behind.
pub(crate) const STALE: Duration = Duration::from_secs(30 * 60);

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
            began: began(std::process::id())?,
        })
    }
}

/// When a process began; `None` where there is none of this number, or it has ended.
fn began(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name may have blanks and brackets, and ends with the last of these.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // Field 22 of proc_pid_stat(5); the state is the third.
    let began = fields.nth(18)?.parse().ok();
    began.filter(|_| !matches!(state, "Z" | "X"))
}

impl Holder {
    /// Whether its process is known to be gone.
    fn is_gone(&self) -> bool {
        let (Some(theirs), Some(ours)) = (&self.origin, Origin::here()) else {
            return false;
        };
        (&theirs.boot, &theirs.namespace) == (&ours.boot, &ours.namespace)
            && began(self.process) != Some(theirs.began)
    }
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
            origin: Origin::here(),
        };
        let id = Id::random().map_err(|source| BackupError::Random { source })?;
        let object = name(LOCKS, &id);
        let json =
            serde_json::to_vec(&holder).map_err(|error| BackupError::damaged(&object, error))?;
        let content = Bytes::from(objects.seal.seal(PURPOSE, json)?);
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
            let content = match self.objects.get(&other.location, SMALL).await {
                Ok(content) => content,
                Err(BackupError::Missing { .. }) => continue,
                Err(error) => return Err(error),
            };
            let opened = self.objects.seal.open(PURPOSE, &content);
            let read = opened.map_err(|error| error.to_string()).and_then(|json| {
                serde_json::from_slice::<Holder>(&json).map_err(|error| error.to_string())
            });
            let holder = match read {
                Ok(holder) => holder,
                Err(error) => {
                    return Ok(Some(format!("{} cannot be read: {error}", other.location)));
                }
            };
            if holder.is_gone() {
                self.objects.delete(&other.location).await?;
                continue;
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    fn child() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).spawn().unwrap()
    }

    /// The lock that a process of this host would have.
    fn held_by(child: &Child) -> Holder {
        let here = Origin::here().unwrap();
        Holder {
            sharing: Sharing::Exclusive,
            work: "a test".to_owned(),
            host: "here".to_owned(),
            process: child.id(),
            since: Timestamp::now(),
            origin: Some(Origin {
                began: began(child.id()).unwrap(),
                ..here
            }),
        }
    }

    #[tokio::test]
    async fn a_lock_of_a_process_that_is_gone_is_taken_over() {
        let objects = Objects::new(Arc::new(InMemory::new()));
        let mut child = child();
        let holder = held_by(&child);
        let object = name(LOCKS, &Id::of(b"theirs"));
        let json = serde_json::to_vec(&holder).unwrap();
        objects.put(&object, json.into()).await.unwrap();
        let take = async || Lock::take(&objects, Sharing::Shared, "backup").await;
        let error = take().await.unwrap_err();
        assert!(matches!(error, BackupError::Locked { .. }), "{error}");
        child.kill().unwrap();
        // It is there until somebody hears of its end, and gone all the same.
        aleph_testkit::wait_until("its end", Duration::from_secs(20), || {
            holder.is_gone().then_some(())
        });
        let lock = take().await.unwrap();
        assert!(!objects.exists(&object).await.unwrap());
        lock.release().await;
        child.wait().unwrap();
        assert!(holder.is_gone());
    }

    #[test]
    fn what_is_not_known_to_be_gone_holds() {
        let mut child = child();
        let alive = held_by(&child);
        assert!(!alive.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = |change: &dyn Fn(&mut Origin)| {
            let mut holder = alive.clone();
            holder.origin.as_mut().map(change);
            holder.is_gone()
        };
        assert!(gone(&|_| ()));
        assert!(!gone(&|origin| origin.boot = "another".to_owned()));
        assert!(!gone(&|origin| origin.namespace = "pid:[1]".to_owned()));
        let older = Holder {
            origin: None,
            ..alive.clone()
        };
        assert!(!older.is_gone(), "an older program does not say");
        // A number that somebody else has by now.
        let mut other = alive;
        other.process = std::process::id();
        other.origin.as_mut().unwrap().began += 1;
        assert!(other.is_gone());
    }
}
