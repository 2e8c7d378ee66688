//! Blobs on their way into the store: packs, uploads, checkpoints.

use crate::blob::{Blob, Kind};
use crate::error::BackupError;
use crate::id::Id;
use crate::index;
use crate::objects::{DAMAGED, Objects, name, pack_name};
use crate::pack::{PackBuilder, PackRecord};
use std::collections::HashSet;
use std::time::Duration;
use tokio::task::JoinSet;

/// How many packs are on their way at a time.
pub const UPLOADS: usize = 3;

/// An index is written after so many packs.
pub const CHECKPOINT: usize = 8;

/// How long a backup that failed waits for what is under way.
const SALVAGE: Duration = Duration::from_secs(60);

/// Puts blobs into packs and sends them.
pub(crate) struct Packer {
    objects: Objects,
    chunks: PackBuilder,
    // Nodes have packs of their own: whoever walks trees reads no chunks.
    nodes: PackBuilder,
    uploads: JoinSet<Result<PackRecord, BackupError>>,
    /// Packs that are in the store and in no index.
    unindexed: Vec<PackRecord>,
    /// All that were written.
    written: Vec<PackRecord>,
    stored: u64,
    /// Packs whose content in the store is damaged: written again they are not any more.
    damaged: HashSet<Id>,
}

impl Packer {
    pub(crate) fn new(objects: Objects, damaged: HashSet<Id>) -> Self {
        Self {
            objects,
            damaged,
            chunks: PackBuilder::default(),
            nodes: PackBuilder::default(),
            uploads: JoinSet::new(),
            unindexed: Vec::new(),
            written: Vec::new(),
            stored: 0,
        }
    }

    /// These were found damaged meanwhile, too.
    pub(crate) fn add_damaged(&mut self, packs: HashSet<Id>) {
        self.damaged.extend(packs);
    }

    /// Bytes that are in the store, or on the way.
    pub(crate) const fn stored(&self) -> u64 {
        self.stored
    }

    /// Adds a blob; it waits where as many packs as may be are under way.
    pub(crate) async fn add(&mut self, blob: &Blob) -> Result<(), BackupError> {
        let pack = match blob.kind {
            Kind::Chunk => &mut self.chunks,
            Kind::Node => &mut self.nodes,
        };
        pack.add(blob);
        self.stored += u64::from(crate::wire::count(blob.stored.len()));
        if pack.is_full() {
            let pack = std::mem::take(pack);
            self.send(pack).await?;
        }
        Ok(())
    }

    async fn send(&mut self, pack: PackBuilder) -> Result<(), BackupError> {
        while self.uploads.len() >= UPLOADS {
            self.join_next().await?;
        }
        let objects = self.objects.clone();
        let damaged = self.damaged.clone();
        self.uploads.spawn(async move {
            let seal = objects.seal.clone();
            let (record, content) = tokio::task::spawn_blocking(move || pack.finish(&seal))
                .await
                .map_err(|_| BackupError::Stopped)??;
            objects.put(&pack_name(&record.id), content).await?;
            if damaged.contains(&record.id) {
                objects.delete(&name(DAMAGED, &record.id)).await?;
            }
            Ok(record)
        });
        if self.unindexed.len() >= CHECKPOINT {
            self.checkpoint().await?;
        }
        Ok(())
    }

    async fn join_next(&mut self) -> Result<(), BackupError> {
        if let Some(joined) = self.uploads.join_next().await {
            let record = joined.map_err(|_| BackupError::Stopped)??;
            self.unindexed.push(record);
        }
        Ok(())
    }

    /// Writes an index of what is there and in none.
    async fn checkpoint(&mut self) -> Result<(), BackupError> {
        if !self.unindexed.is_empty() {
            index::write(&self.objects, &self.unindexed).await?;
            self.written.append(&mut self.unindexed);
        }
        Ok(())
    }

    /// Sends what is left, and waits until all is in the store.
    async fn flush(&mut self) -> Result<(), BackupError> {
        for pack in [
            std::mem::take(&mut self.chunks),
            std::mem::take(&mut self.nodes),
        ] {
            if !pack.is_empty() {
                self.send(pack).await?;
            }
        }
        while !self.uploads.is_empty() {
            self.join_next().await?;
        }
        Ok(())
    }

    /// Sends what is left, and indexes it. Nothing that was added is missing afterwards.
    ///
    /// # Errors
    /// Where the store does not take it; what it took can still be salvaged.
    pub(crate) async fn finish(&mut self) -> Result<u64, BackupError> {
        self.flush().await?;
        self.checkpoint().await?;
        Ok(self.stored)
    }

    /// Sends what is left, for a caller that writes an index of its own.
    pub(crate) async fn finish_unindexed(mut self) -> Result<Vec<PackRecord>, BackupError> {
        self.flush().await?;
        self.written.append(&mut self.unindexed);
        Ok(self.written)
    }

    /// After a failure: indexes what got into the store, so that nobody has to send it again. A store that
    /// does not answer is given up.
    pub(crate) async fn salvage(self) {
        if tokio::time::timeout(SALVAGE, self.index_what_is_there())
            .await
            .is_err()
        {
            tracing::debug!("no checkpoint after a failed backup: the store does not answer");
        }
    }

    async fn index_what_is_there(mut self) {
        while let Some(joined) = self.uploads.join_next().await {
            if let Ok(Ok(record)) = joined {
                self.unindexed.push(record);
            }
        }
        if let Err(error) = self.checkpoint().await {
            tracing::debug!(%error, "no checkpoint after a failed backup");
        }
    }
}
