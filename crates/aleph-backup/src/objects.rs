//! Objects by name: the store without what the format does not need of it, and with bounds.
//!
//! Whoever can write to the store is not believed: no object is read that is larger than any of its kind.

use crate::error::BackupError;
use crate::id::Id;
use crate::seal::Seal;
use crate::staged;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) const CONFIG: &str = "config";
pub(crate) const PACKS: &str = "packs";
pub(crate) const INDEX: &str = "index";
pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const LOCKS: &str = "locks";
pub(crate) const TRASH: &str = "trash";
pub(crate) const DAMAGED: &str = "damaged";

/// The largest object of those that describe one thing, in bytes: the configuration, a snapshot, a lock.
pub(crate) const SMALL: u64 = 64 << 10;

/// The largest pack: blobs of 16 MiB and one more, and a trailer of at most 11 MiB.
pub(crate) const LARGEST_PACK: u64 = 64 << 20;

/// Where a pack is. The folders keep directories small where the store is one.
pub(crate) fn pack_name(id: &Id) -> Path {
    let hex = id.to_string();
    let folder = hex.get(..2).unwrap_or_default();
    Path::from_iter([PACKS, folder, &hex])
}

/// Where another object of this id is.
pub(crate) fn name(folder: &str, id: &Id) -> Path {
    Path::from_iter([folder, &id.to_string()])
}

/// The id that an object is named after.
pub(crate) fn id_of(meta: &ObjectMeta) -> Option<Id> {
    meta.location.filename()?.parse().ok()
}

#[derive(Debug, Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// What goes over all that tells of volumes.
    pub(crate) seal: Seal,
    /// The folder that the store is.
    folder: Option<PathBuf>,
}

impl Objects {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            seal: Seal::default(),
            folder: None,
        }
    }

    /// The same, where it is known to be a folder.
    pub(crate) fn in_folder(self, folder: Option<PathBuf>) -> Self {
        Self { folder, ..self }
    }

    /// The same, with all that is sealed sealed so.
    pub(crate) fn sealed_with(self, seal: Seal) -> Self {
        Self { seal, ..self }
    }

    pub(crate) async fn put(&self, name: &Path, content: Bytes) -> Result<(), BackupError> {
        self.store
            .put(name, PutPayload::from_bytes(content))
            .await
            .map(drop)
            .map_err(|error| BackupError::store("write", name, &error))
    }

    /// Writes an object where there is none; says whether it did.
    pub(crate) async fn create(&self, name: &Path, content: Bytes) -> Result<bool, BackupError> {
        let options = PutOptions::from(PutMode::Create);
        let payload = PutPayload::from_bytes(content.clone());
        match self.store.put_opts(name, payload, options).await {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            // A store without conditional writes: two that make a repository at one instant meet.
            Err(object_store::Error::NotImplemented { .. }) => {
                if self.exists(name).await? {
                    return Ok(false);
                }
                self.put(name, content).await?;
                Ok(true)
            }
            Err(error) => Err(BackupError::store("write", name, &error)),
        }
    }

    pub(crate) async fn exists(&self, name: &Path) -> Result<bool, BackupError> {
        Ok(self.head(name).await?.is_some())
    }

    pub(crate) async fn head(&self, name: &Path) -> Result<Option<ObjectMeta>, BackupError> {
        match self.store.head(name).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(BackupError::store("look at", name, &error)),
        }
    }

    /// Reads an object of at most `most` bytes.
    pub(crate) async fn get(&self, name: &Path, most: u64) -> Result<Bytes, BackupError> {
        let read = async {
            let found = self.store.get(name).await?;
            match found.meta.size {
                size if size > most => Ok(Err(size)),
                _ => found.bytes().await.map(Ok),
            }
        };
        read.await
            .map_err(|error| failed_read(name, &error))?
            .map_err(|size| {
                let why =
                    format_args!("it has {size} bytes, and none of its kind has more than {most}");
                BackupError::damaged(name, why)
            })
    }

    pub(crate) async fn get_ranges(
        &self,
        name: &Path,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Bytes>, BackupError> {
        let parts = match self.store.get_ranges(name, ranges).await {
            Ok(parts) => parts,
            Err(error) => return Err(self.failed_ranges(name, ranges, &error).await),
        };
        let whole = parts.len() == ranges.len()
            && parts
                .iter()
                .zip(ranges)
                .all(|(part, range)| u64::try_from(part.len()) == Ok(range.end - range.start));
        if whole {
            Ok(parts)
        } else {
            Err(BackupError::damaged(name, "it is shorter than it was"))
        }
    }

    /// Stores differ in how they refuse what is beyond the end, so its size decides.
    async fn failed_ranges(
        &self,
        name: &Path,
        ranges: &[Range<u64>],
        error: &object_store::Error,
    ) -> BackupError {
        let needed = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        match self.head(name).await {
            Ok(Some(meta)) if meta.size < needed => BackupError::damaged(
                name,
                format_args!("it has {} bytes, at least {needed} are needed", meta.size),
            ),
            _ => failed_read(name, error),
        }
    }

    pub(crate) async fn list(&self, folder: &'static str) -> Result<Vec<ObjectMeta>, BackupError> {
        self.store
            .list(Some(&Path::from(folder)))
            .try_collect()
            .await
            .map_err(|error| BackupError::store("list", folder, &error))
    }

    /// Removes what writes that broke off left in a folder, and that nobody has written to for `age`; says how much
    /// it was. What cannot be removed stays.
    pub(crate) async fn remove_staged(&self, age: Duration) -> usize {
        let (Some(folder), Some(before)) = (&self.folder, SystemTime::now().checked_sub(age))
        else {
            return 0;
        };
        let folder = folder.clone();
        let removed = tokio::task::spawn_blocking(move || staged::remove(&folder, before));
        removed.await.unwrap_or_default()
    }

    /// Deletes an object; one that is not there is no error.
    pub(crate) async fn delete(&self, name: &Path) -> Result<(), BackupError> {
        match self.store.delete(name).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(BackupError::store("delete", name, &error)),
        }
    }
}

fn failed_read(name: &Path, error: &object_store::Error) -> BackupError {
    match error {
        object_store::Error::NotFound { .. } => BackupError::Missing {
            object: name.to_string(),
        },
        error => BackupError::store("read", name, error),
    }
}
