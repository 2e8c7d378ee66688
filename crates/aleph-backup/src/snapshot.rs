//! Snapshots: what a volume was at one time.

use crate::error::BackupError;
use crate::id::Id;
use crate::objects::{Objects, SMALL, SNAPSHOTS, id_of, name};
use crate::tree::LARGEST_VOLUME;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of a snapshot's record.
const VERSION: u32 = 1;

/// What a snapshot's record is sealed for.
const PURPOSE: &[u8] = b"snapshot";

/// What a backup did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStats {
    /// Bytes that were read of the volume.
    pub read: u64,
    /// Bytes of chunks and nodes that were sent to the store.
    pub stored: u64,
    /// Chunks that were new to the repository.
    pub new_chunks: u64,
}

/// What a volume is to its owner, so that it can be made again as it was. Nothing here depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// What it was called.
    pub name: String,
    /// Whose it was.
    pub account: String,
    /// What filesystem was made on it.
    pub filesystem: String,
    /// Whether the filesystem's writer had not ended in order.
    pub unclean: bool,
}

/// A volume at one time. Times are when the backup began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id: the hash of its record.
    #[serde(skip_deserializing, default = "no_id")]
    pub id: Id,
    /// Which volume it is of, as its owner identifies volumes.
    pub volume: String,
    /// Which state of the volume, as its owner identifies states that do not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What the volume was to its owner; older programs do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
    /// What it was called; may be empty.
    pub name: String,
    /// When the backup began.
    pub time: Timestamp,
    /// Bytes of the volume.
    pub size: u64,
    /// The snapshot that it was made on.
    pub parent: Option<Id>,
    /// The root of its tree; `None` where all is zeros.
    pub root: Option<Id>,
    /// What its backup did.
    pub stats: SnapshotStats,
}

const fn no_id() -> Id {
    Id::from_bytes([0; 32])
}

/// A record as it is stored; the id is its name.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    volume: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    about: Option<About>,
    name: String,
    time: Timestamp,
    size: u64,
    parent: Option<Id>,
    root: Option<Id>,
    stats: SnapshotStats,
}

impl Snapshot {
    /// Writes it, and gives it its id.
    pub(crate) async fn write(mut self, objects: &Objects) -> Result<Self, BackupError> {
        let stored = Stored {
            version: VERSION,
            volume: self.volume.clone(),
            state: self.state.clone(),
            about: self.about.clone(),
            name: self.name.clone(),
            time: self.time,
            size: self.size,
            parent: self.parent,
            root: self.root,
            stats: self.stats,
        };
        let json =
            serde_json::to_vec(&stored).map_err(|error| BackupError::damaged(SNAPSHOTS, error))?;
        let sealed = objects.seal.seal(PURPOSE, json)?;
        self.id = Id::of(&sealed);
        objects
            .put(&name(SNAPSHOTS, &self.id), Bytes::from(sealed))
            .await?;
        Ok(self)
    }

    pub(crate) async fn read(objects: &Objects, id: Id) -> Result<Self, BackupError> {
        let object = name(SNAPSHOTS, &id);
        let bytes = objects.get(&object, SMALL).await?;
        if Id::of(&bytes) != id {
            return Err(BackupError::damaged(object, "its content has another hash"));
        }
        let opened = objects
            .seal
            .open(PURPOSE, &bytes)
            .map_err(|error| BackupError::damaged(&object, error))?;
        let stored: Stored = serde_json::from_slice(&opened)
            .map_err(|error| BackupError::damaged(&object, error))?;
        if stored.version > VERSION {
            return Err(BackupError::Newer {
                version: stored.version,
            });
        }
        if stored.size > LARGEST_VOLUME {
            return Err(BackupError::damaged(object, "no volume is so large"));
        }
        Ok(Self {
            id,
            volume: stored.volume,
            state: stored.state,
            about: stored.about,
            name: stored.name,
            time: stored.time,
            size: stored.size,
            parent: stored.parent,
            root: stored.root,
            stats: stored.stats,
        })
    }
}

/// The ids of all snapshots.
pub(crate) async fn ids(objects: &Objects) -> Result<Vec<Id>, BackupError> {
    let listed = objects.list(SNAPSHOTS).await?;
    Ok(listed.iter().filter_map(id_of).collect())
}

/// All snapshots, the oldest first. One that is forgotten this moment is none.
pub(crate) async fn read_all(objects: &Objects) -> Result<Vec<Snapshot>, BackupError> {
    read_if(objects, |error| {
        matches!(error, BackupError::Missing { .. })
    })
    .await
}

/// Those that can be read: one that is damaged costs no other volume its backups.
pub(crate) async fn read_readable(objects: &Objects) -> Result<Vec<Snapshot>, BackupError> {
    read_if(objects, BackupError::is_loss).await
}

async fn read_if(
    objects: &Objects,
    passes: impl Fn(&BackupError) -> bool,
) -> Result<Vec<Snapshot>, BackupError> {
    let mut all = Vec::new();
    let mut reads = stream::iter(ids(objects).await?)
        .map(|id| Snapshot::read(objects, id))
        .buffered(8);
    while let Some(read) = reads.next().await {
        match read {
            Ok(snapshot) => all.push(snapshot),
            Err(error) if passes(&error) => {
                tracing::warn!(%error, "a snapshot of a repository is left out");
            }
            Err(error) => return Err(error),
        }
    }
    all.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
    Ok(all)
}
