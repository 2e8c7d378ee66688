//! A repository that is open.

use crate::blob::{self, Keys, Kind, Stored};
use crate::config::{ChunkBounds, Config};
use crate::error::BackupError;
use crate::id::Id;
use crate::index::{Place, SharedIndex};
use crate::key::Key;
use crate::location::Location;
use crate::lock::{self, Lock, Sharing};
use crate::objects::{Objects, SNAPSHOTS, name, pack_name};
use crate::snapshot::{self, Snapshot};
use object_store::ObjectStore;
use std::sync::Arc;

/// A repository. Cloning gives the same one.
#[derive(Clone)]
pub struct Repository {
    pub(crate) objects: Objects,
    pub(crate) keys: Keys,
    pub(crate) config: Arc<Config>,
    /// Moves the places where chunks are cut.
    pub(crate) cuts: u64,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.config.id)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens the repository at a place, and makes it where there is none: encrypted, where there is a key.
    ///
    /// # Errors
    /// Where the place cannot be reached or written, or has a later format. [`BackupError::KeyNeeded`],
    /// [`BackupError::WrongKey`] and [`BackupError::NotEncrypted`] where the key does not fit it.
    pub async fn open_or_create(
        location: &Location,
        key: Option<&Key>,
    ) -> Result<Self, BackupError> {
        let objects = Objects::new(location.store()?).in_folder(location.folder());
        if let Some(config) = Config::read(&objects).await? {
            return Self::with(objects, config, key);
        }
        location.close()?;
        let made = Self::create(objects, ChunkBounds::default(), key).await?;
        location.close_config();
        Ok(made)
    }

    /// Opens the repository at a place.
    ///
    /// # Errors
    /// [`BackupError::NoRepository`] where there is none; as [`Repository::open_or_create`] where the key
    /// does not fit.
    pub async fn open(location: &Location, key: Option<&Key>) -> Result<Self, BackupError> {
        let absent = || BackupError::NoRepository {
            location: location.to_string(),
        };
        // Looking for one makes no folder.
        if let Location::Folder(path) = location
            && !path.is_dir()
        {
            return Err(absent());
        }
        let objects = Objects::new(location.store()?).in_folder(location.folder());
        let config = Config::read(&objects).await?.ok_or_else(absent)?;
        Self::with(objects, config, key)
    }

    /// Opens the repository in a store, and makes it with these bounds where there is none.
    ///
    /// # Errors
    /// As [`Repository::open_or_create`].
    pub async fn create_in(
        store: Arc<dyn ObjectStore>,
        chunks: ChunkBounds,
        key: Option<&Key>,
    ) -> Result<Self, BackupError> {
        Self::create(Objects::new(store), chunks, key).await
    }

    async fn create(
        objects: Objects,
        chunks: ChunkBounds,
        key: Option<&Key>,
    ) -> Result<Self, BackupError> {
        if let Some(config) = Config::read(&objects).await? {
            return Self::with(objects, config, key);
        }
        let config = Config::new(chunks, key)?;
        if config.create(&objects).await? {
            return Self::with(objects, config, key);
        }
        // Somebody else was faster.
        let config = Config::read(&objects)
            .await?
            .ok_or_else(|| BackupError::Missing {
                object: crate::objects::CONFIG.to_owned(),
            })?;
        Self::with(objects, config, key)
    }

    fn with(objects: Objects, config: Config, key: Option<&Key>) -> Result<Self, BackupError> {
        let secrets = config.secrets(key)?;
        Ok(Self {
            keys: secrets.ids,
            objects: objects.sealed_with(secrets.seal),
            config: Arc::new(config),
            cuts: secrets.cuts,
        })
    }

    /// Which repository this is; it was drawn when it was made.
    #[must_use]
    pub fn id(&self) -> Id {
        self.config.id
    }

    /// Whether what it stores is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.objects.seal.is_some()
    }

    /// All snapshots, the oldest first. Those that are damaged are left out, with a warning in the log;
    /// [`Repository::verify`] tells them.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, BackupError> {
        snapshot::read_readable(&self.objects).await
    }

    /// The snapshot whose id begins so.
    ///
    /// # Errors
    /// [`BackupError::NoSnapshot`] or [`BackupError::Ambiguous`] where it is not one.
    pub async fn snapshot(&self, reference: &str) -> Result<Snapshot, BackupError> {
        let id = self.snapshot_id(reference).await?;
        Snapshot::read(&self.objects, id).await
    }

    /// The id of the snapshot whose id begins so, whether it can be read or not.
    ///
    /// # Errors
    /// As [`Repository::snapshot`].
    pub async fn snapshot_id(&self, reference: &str) -> Result<Id, BackupError> {
        let ids = snapshot::ids(&self.objects).await?;
        let mut matching = ids
            .into_iter()
            .filter(|id| !reference.is_empty() && id.to_string().starts_with(reference));
        let Some(id) = matching.next() else {
            return Err(BackupError::NoSnapshot {
                reference: reference.to_owned(),
            });
        };
        match matching.count() {
            0 => Ok(id),
            others => Err(BackupError::Ambiguous {
                reference: reference.to_owned(),
                count: others + 1,
            }),
        }
    }

    /// Removes snapshots. Their space comes back with the next prunes; other snapshots keep all they need.
    ///
    /// # Errors
    /// Where one cannot be removed; one that is not there is none.
    pub async fn forget(&self, snapshots: &[Id]) -> Result<(), BackupError> {
        for id in snapshots {
            self.objects.delete(&name(SNAPSHOTS, id)).await?;
        }
        Ok(())
    }

    /// Checks that a backup can begin now, for a caller to whom preparing one costs something: the store takes
    /// writes, and no prune runs.
    ///
    /// # Errors
    /// As [`Repository::backup`] in its first step.
    pub async fn ensure_ready(&self) -> Result<(), BackupError> {
        let lock = Lock::take(&self.objects, Sharing::Shared, "look at locks").await?;
        lock.release().await;
        Ok(())
    }

    /// Removes all locks, whoever holds them, and says how many there were. Who was still at work ends
    /// with [`BackupError::LockLost`].
    ///
    /// # Errors
    /// Where they cannot be removed.
    pub async fn unlock(&self) -> Result<usize, BackupError> {
        lock::remove_all(&self.objects).await
    }

    /// A node of a tree.
    pub(crate) async fn read_node(
        &self,
        index: &SharedIndex,
        id: &Id,
    ) -> Result<Vec<u8>, BackupError> {
        let place = index.require(id)?;
        let object = pack_name(&place.pack);
        let start = u64::from(place.offset);
        let range = start..start + u64::from(place.stored);
        let parts = self.objects.get_ranges(&object, &[range]).await?;
        let stored = parts.first().cloned().unwrap_or_default();
        self.decode(Kind::Node, id, &place, &stored)
    }

    pub(crate) fn decode(
        &self,
        kind: Kind,
        id: &Id,
        place: &Place,
        stored: &[u8],
    ) -> Result<Vec<u8>, BackupError> {
        let object = pack_name(&place.pack);
        let blob = Stored {
            codec: place.codec,
            raw: usize::try_from(place.raw).unwrap_or(usize::MAX),
            bytes: stored,
            object: object.as_ref(),
        };
        blob::decode((&self.keys, &self.objects.seal), kind, id, &blob)
    }
}
