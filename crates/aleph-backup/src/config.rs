//! The `config` object: what a repository is.

use crate::error::BackupError;
use crate::id::Id;
use crate::objects::{CONFIG, Objects};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes.
pub(crate) const VERSION: u32 = 1;

/// How large chunks are, in bytes. Fixed when a repository is made: other bounds cut elsewhere and
/// find nothing of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkBounds {
    /// No chunk is smaller, but the last one before a run of zeros or the end of a leaf.
    pub min: usize,
    /// What is aimed at.
    pub average: usize,
    /// No chunk is larger.
    pub max: usize,
}

impl Default for ChunkBounds {
    fn default() -> Self {
        Self {
            min: 16 << 10,
            average: 64 << 10,
            max: 256 << 10,
        }
    }
}

impl ChunkBounds {
    /// Bounds that `fastcdc` takes, and that keep a leaf's list short.
    fn check(&self) -> Result<(), &'static str> {
        let even = |size: usize| size.is_multiple_of(2);
        if !(4096..=self.average).contains(&self.min)
            || !(self.min..=self.max).contains(&self.average)
            || self.max > 2 << 20
            || self.average > 1 << 20
            || self.min > 1 << 20
            || !even(self.min)
            || !even(self.average)
            || !even(self.max)
        {
            return Err("its bounds of chunks are impossible");
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) version: u32,
    /// Which repository this is.
    pub(crate) id: Id,
    /// What ids of blobs are keyed with.
    pub(crate) key: Id,
    pub(crate) chunks: ChunkBounds,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Config {
    pub(crate) fn new(chunks: ChunkBounds) -> Result<Self, BackupError> {
        let random = || Id::random().map_err(|source| BackupError::Random { source });
        Ok(Self {
            version: VERSION,
            id: random()?,
            key: random()?,
            chunks,
        })
    }

    /// Writes it where there is none; says whether it did.
    pub(crate) async fn create(&self, objects: &Objects) -> Result<bool, BackupError> {
        self.chunks
            .check()
            .map_err(|why| BackupError::damaged(CONFIG, why))?;
        let json = serde_json::to_vec(self).map_err(|error| BackupError::damaged(CONFIG, error))?;
        objects.create(&CONFIG.into(), Bytes::from(json)).await
    }

    /// Reads it; `None` where there is none.
    pub(crate) async fn read(objects: &Objects) -> Result<Option<Self>, BackupError> {
        let bytes = match objects.get(&CONFIG.into()).await {
            Ok(bytes) => bytes,
            Err(BackupError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |error: serde_json::Error| BackupError::damaged(CONFIG, error);
        let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > VERSION {
            return Err(BackupError::Newer { version });
        }
        let config: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        config
            .chunks
            .check()
            .map_err(|why| BackupError::damaged(CONFIG, why))?;
        Ok(Some(config))
    }
}
