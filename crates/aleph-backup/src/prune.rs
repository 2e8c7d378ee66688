//! Getting back the space of what no snapshot needs.
//!
//! The first prune after a snapshot was forgotten takes its packs out of the index and lists them in a
//! trash object; a later one deletes them. The crate's docs say why in this order.

use crate::blob::Blob;
use crate::error::BackupError;
use crate::id::Id;
use crate::index::{self, SharedIndex};
use crate::lock::{Lock, STALE, Sharing};
use crate::mark::{Marked, mark};
use crate::objects::{DAMAGED, INDEX, LARGEST_PACK, LOCKS, PACKS, TRASH, id_of, name, pack_name};
use crate::pack::{FOOTER, PackRecord, read_trailer, trailer_length};
use crate::packer::Packer;
use crate::progress::{Progress, ProgressSink};
use crate::repository::Repository;
use crate::snapshot;
use bytes::Bytes;
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The largest list of packs in the trash, in bytes: some 1,000,000 packs.
const LARGEST_TRASH: u64 = 64 << 20;

/// How to prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneOptions {
    /// How long packs stay after they were found to be needed by nobody, and how old those are at least that are
    /// found so: what an interrupted backup sent is not sent again. A day by default; it must be longer
    /// than any backup can go on without noticing that its lock was taken away.
    pub grace: Duration,
    /// A pack of which more than so many percent are needed by nobody is written anew. 20 by default.
    pub unused_percent: u8,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 60 * 60),
            unused_percent: 20,
        }
    }
}

/// What a prune did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Packs that stay as they are.
    pub kept: usize,
    /// Packs whose needed blobs were written anew.
    pub repacked: usize,
    /// Packs that a later prune deletes.
    pub trashed: usize,
    /// Packs that were deleted.
    pub deleted: usize,
    /// Bytes of the packs that were deleted.
    pub freed: u64,
}

/// Packs that nobody needed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Trash {
    packs: Vec<Id>,
}

/// What becomes of the packs.
#[derive(Default)]
struct Sorted {
    keep: Vec<PackRecord>,
    repack: Vec<PackRecord>,
    drop: Vec<Id>,
}

impl Repository {
    /// Gets back the space of what no snapshot needs. Nobody else works in the repository meanwhile. Progress
    /// is in bytes of the packs that are written anew.
    ///
    /// # Errors
    /// [`BackupError::Locked`] beside any other work; [`BackupError::Missing`] and
    /// [`BackupError::Damaged`] where a snapshot is not whole: then nothing is deleted.
    pub async fn prune(
        &self,
        options: PruneOptions,
        progress: &ProgressSink,
    ) -> Result<PruneReport, BackupError> {
        let lock = Lock::take(&self.objects, Sharing::Exclusive, "prune").await?;
        let done = self.prune_locked(&lock, options, progress).await;
        lock.release().await;
        done
    }

    async fn prune_locked(
        &self,
        lock: &Lock,
        options: PruneOptions,
        progress: &ProgressSink,
    ) -> Result<PruneReport, BackupError> {
        // A lock is a small object: one that another host writes now is no leftover.
        self.objects.remove_staged(STALE).await;
        let mut records = index::read(&self.objects).await?;
        let present = index::present(&self.objects).await?;
        records.retain_present(&present);
        let damaged = index::damaged(&self.objects).await?;
        records.prefer_whole(&damaged);
        let indexed: HashSet<Id> = records.packs.iter().map(|record| record.id).collect();
        let old_trash = self.read_trash().await?;
        let (index, marked) = self.mark_all(&mut records.packs, &present).await?;
        let mut young = self.younger_than(options.grace).await?;
        // Nobody goes on with what is damaged.
        young.retain(|pack| !damaged.contains(pack));
        let sorted = sort(records.packs, (&index, &marked), &young, options);
        let mut report = PruneReport {
            kept: sorted.keep.len(),
            repacked: sorted.repack.len(),
            ..PruneReport::default()
        };

        let mut live = sorted.keep;
        let repacked = self.repack(&sorted.repack, (&index, &marked), progress);
        live.extend(repacked.await?);
        let written = index::write_all(&self.objects, &live).await?;
        let live: HashSet<Id> = live.iter().map(|record| record.id).collect();

        // What is in the store and in no index now: dropped, repacked, or sent by a backup that
        // ended before it wrote an index.
        let known: HashSet<Id> = old_trash
            .iter()
            .flat_map(|(_, trash)| trash.packs.iter().copied())
            .collect();
        let candidates = present.keys().chain(&sorted.drop).copied();
        // What is in the trash and came to be indexed since was written anew: its grace begins now.
        let is_ripening = |id: &Id| known.contains(id) && !indexed.contains(id);
        let packs: Vec<Id> = candidates
            .filter(|id| !live.contains(id) && !is_ripening(id))
            .collect::<HashSet<Id>>()
            .into_iter()
            .collect();
        report.trashed = packs.len();
        self.write_trash(Trash { packs }).await?;
        lock.still_held().await?;
        for id in records.objects {
            if !written.contains(&id) {
                self.objects.delete(&name(INDEX, &id)).await?;
            }
        }
        let ripe = self.ripe(old_trash, options.grace).await?;
        // Whoever took this prune for dead may have begun to need what it is about to delete.
        lock.still_held().await?;
        let indexes = self.objects.list(INDEX).await?;
        if indexes
            .iter()
            .any(|meta| id_of(meta).is_none_or(|id| !written.contains(&id)))
        {
            return Err(BackupError::LockLost);
        }
        for (object, trash) in ripe {
            let doomed = |id: &&Id| !live.contains(*id) && !indexed.contains(*id);
            for id in trash.packs.iter().filter(doomed) {
                lock.still_held().await?;
                self.objects.delete(&pack_name(id)).await?;
                self.objects.delete(&name(DAMAGED, id)).await?;
                if let Some(size) = present.get(id) {
                    report.deleted += 1;
                    report.freed += size;
                }
            }
            self.objects.delete(&object).await?;
        }
        Ok(report)
    }

    /// Which blobs snapshots need. Where the index lacks some, packs that no index names are looked
    /// into: a backup whose lock was taken away may have come to need what is in the trash.
    async fn mark_all(
        &self,
        records: &mut Vec<PackRecord>,
        present: &HashMap<Id, u64>,
    ) -> Result<(SharedIndex, Marked), BackupError> {
        let snapshots = snapshot::read_all(&self.objects).await?;
        let index = SharedIndex::of(records);
        let marked = mark(self, &index, &snapshots).await;
        if marked.errors.is_empty() {
            return Ok((index, marked));
        }
        let indexed: HashSet<Id> = records.iter().map(|record| record.id).collect();
        for (id, size) in present.iter().filter(|(id, _)| !indexed.contains(*id)) {
            match self.read_record(*id, *size).await {
                Ok(record) => records.push(record),
                // What is needed of it is found missing below.
                Err(error) if error.is_loss() => {
                    tracing::warn!(%error, "a pack that no index names is left out");
                }
                Err(error) => return Err(error),
            }
        }
        let index = SharedIndex::of(records);
        let mut marked = mark(self, &index, &snapshots).await;
        match marked.errors.pop() {
            Some((_, error)) => Err(error),
            None => Ok((index, marked)),
        }
    }

    /// What a pack says about itself.
    async fn read_record(&self, id: Id, size: u64) -> Result<PackRecord, BackupError> {
        let object = pack_name(&id);
        let damaged = |why: crate::wire::Cut| BackupError::damaged(&object, why);
        if size > LARGEST_PACK {
            return Err(BackupError::damaged(&object, "no pack is so large"));
        }
        let footer = u64::from(crate::wire::count(FOOTER));
        let read = async |range| -> Result<Bytes, BackupError> {
            let mut parts = self.objects.get_ranges(&object, &[range]).await?;
            Ok(parts.pop().unwrap_or_default())
        };
        let end = read(size.saturating_sub(footer)..size).await?;
        let length = trailer_length(&end).map_err(damaged)?;
        let start = size.checked_sub(length).ok_or(crate::wire::Cut);
        let trailer = read(start.map_err(damaged)?..size).await?;
        Ok(PackRecord {
            id,
            size,
            entries: read_trailer(&trailer, &self.objects.seal).map_err(damaged)?,
        })
    }

    /// Writes what is needed of these packs into new ones.
    async fn repack(
        &self,
        records: &[PackRecord],
        (index, marked): (&SharedIndex, &Marked),
        progress: &ProgressSink,
    ) -> Result<Vec<PackRecord>, BackupError> {
        let mut packer = Packer::new(self.objects.clone(), HashSet::new());
        let mut told = Progress {
            total: records.iter().map(|record| record.size).sum(),
            ..Progress::default()
        };
        for record in records {
            let object = pack_name(&record.id);
            let needed: Vec<_> = record
                .entries
                .iter()
                .filter(|entry| is_needed(index, marked, record, entry))
                .collect();
            let ranges: Vec<_> = needed.iter().map(|entry| entry.range()).collect();
            let parts = self.objects.get_ranges(&object, &ranges).await?;
            for (entry, stored) in needed.iter().zip(parts) {
                let place = index.require(&entry.id)?;
                // What is damaged is not carried on under a new hash.
                self.decode(entry.kind, &entry.id, &place, &stored)?;
                let blob = Blob {
                    id: entry.id,
                    kind: entry.kind,
                    codec: entry.codec,
                    raw: usize::try_from(entry.raw).unwrap_or(usize::MAX),
                    stored,
                };
                packer.add(&blob).await?;
                told.read += u64::from(entry.stored);
            }
            told.done += record.size;
            told.written = packer.stored();
            progress.tell(told);
        }
        packer.finish_unindexed().await
    }

    async fn read_trash(&self) -> Result<Vec<(ObjectMeta, Trash)>, BackupError> {
        let mut all = Vec::new();
        for meta in self.objects.list(TRASH).await? {
            let read = self.objects.get(&meta.location, LARGEST_TRASH).await;
            let read = read.and_then(|content| {
                serde_json::from_slice(&content)
                    .map_err(|error| BackupError::damaged(&meta.location, error))
            });
            let trash = match read {
                Ok(trash) => trash,
                // The packs that it listed are found again, and their grace begins anew.
                Err(error) if error.is_loss() => {
                    tracing::warn!(%error, "a list of packs in the trash is left out");
                    Trash::default()
                }
                Err(error) => return Err(error),
            };
            all.push((meta, trash));
        }
        Ok(all)
    }

    /// The packs that are in the trash.
    pub(crate) async fn trashed(&self) -> Result<HashSet<Id>, BackupError> {
        let all = self.read_trash().await?;
        Ok(all.into_iter().flat_map(|(_, trash)| trash.packs).collect())
    }

    async fn write_trash(&self, trash: Trash) -> Result<(), BackupError> {
        if trash.packs.is_empty() {
            return Ok(());
        }
        let json =
            serde_json::to_vec(&trash).map_err(|error| BackupError::damaged(TRASH, error))?;
        let id = Id::random().map_err(|source| BackupError::Random { source })?;
        self.objects.put(&name(TRASH, &id), Bytes::from(json)).await
    }

    /// Tells whether an object is that old, by the store's own time: that of this prune's lock.
    async fn is_older(
        &self,
        grace: Duration,
    ) -> Result<impl Fn(&ObjectMeta) -> bool + use<>, BackupError> {
        let locks = self.objects.list(LOCKS).await?;
        let now = locks.iter().map(|meta| meta.last_modified).max();
        Ok(move |meta: &ObjectMeta| {
            let age = now.and_then(|now| (now - meta.last_modified).to_std().ok());
            age.is_some_and(|age| age >= grace)
        })
    }

    /// Packs that came lately.
    async fn younger_than(&self, grace: Duration) -> Result<HashSet<Id>, BackupError> {
        if grace.is_zero() {
            return Ok(HashSet::new());
        }
        let is_older = self.is_older(grace).await?;
        let packs = self.objects.list(PACKS).await?;
        Ok(packs
            .iter()
            .filter(|meta| !is_older(meta))
            .filter_map(id_of)
            .collect())
    }

    /// What was in the trash for long enough.
    async fn ripe(
        &self,
        trash: Vec<(ObjectMeta, Trash)>,
        grace: Duration,
    ) -> Result<Vec<(Path, Trash)>, BackupError> {
        let is_older = self.is_older(grace).await?;
        Ok(trash
            .into_iter()
            .filter(|(meta, _)| is_older(meta))
            .map(|(meta, trash)| (meta.location, trash))
            .collect())
    }
}

fn is_needed(
    index: &SharedIndex,
    marked: &Marked,
    record: &PackRecord,
    entry: &crate::pack::Entry,
) -> bool {
    marked.used.contains(&entry.id) && index.is_at(record, entry)
}

fn sort(
    records: Vec<PackRecord>,
    (index, marked): (&SharedIndex, &Marked),
    young: &HashSet<Id>,
    options: PruneOptions,
) -> Sorted {
    let mut sorted = Sorted::default();
    for record in records {
        let (mut needed, mut all) = (0u64, 0u64);
        for entry in &record.entries {
            all += u64::from(entry.stored);
            if is_needed(index, marked, &record, entry) {
                needed += u64::from(entry.stored);
            }
        }
        if needed == 0 && young.contains(&record.id) {
            sorted.keep.push(record);
        } else if needed == 0 {
            sorted.drop.push(record.id);
        } else if (all - needed) * 100 > all * u64::from(options.unused_percent) {
            sorted.repack.push(record);
        } else {
            sorted.keep.push(record);
        }
    }
    sorted
}
