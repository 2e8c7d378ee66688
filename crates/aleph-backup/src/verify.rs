//! Looking whether a repository is whole.

use crate::error::BackupError;
use crate::id::Id;
use crate::index::{self, Place, SharedIndex};
use crate::lock::{Lock, Sharing};
use crate::mark::mark;
use crate::objects::{LARGEST_PACK, pack_name};
use crate::pack::PackRecord;
use crate::progress::{Progress, ProgressSink};
use crate::repository::Repository;
use crate::snapshot::{self, Snapshot};
use futures_util::{StreamExt, stream};
use std::collections::HashMap;

/// How many packs are read at a time.
const READS: usize = 3;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every index, snapshot and tree; every pack is there with its size.
    Structure,
    /// Also each byte of each pack.
    Full,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// A snapshot that is not whole because of it, where one was found.
    pub snapshot: Option<Id>,
    /// The object and what is wrong, as a sentence.
    pub what: String,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Snapshots that could be read.
    pub snapshots: usize,
    /// Packs that an index names.
    pub packs: usize,
    /// Bytes of packs that were read whole.
    pub read: u64,
    /// What is wrong; empty where all is well.
    pub damage: Vec<Damage>,
    /// All snapshots that are not whole because of it.
    pub broken: Vec<Id>,
}

impl VerifyReport {
    fn add(&mut self, snapshot: Option<Id>, error: &BackupError) {
        self.damage.push(Damage {
            snapshot,
            what: error.to_string(),
        });
    }

    /// The same with what may be a loss; any other error ends the verification, since it tells nothing.
    fn add_loss(&mut self, snapshot: Option<Id>, error: BackupError) -> Result<(), BackupError> {
        if !error.is_loss() {
            return Err(error);
        }
        self.add(snapshot, &error);
        Ok(())
    }
}

impl Repository {
    /// Looks whether all that snapshots need is there and is what was written. Packs that are damaged are
    /// marked as such, and backups store anew what they had; nothing else is written. Progress is in bytes of
    /// the packs that are read whole.
    ///
    /// # Errors
    /// Where the store cannot be listed or read, or a prune runs. Damage is no error: the report has it.
    pub async fn verify(
        &self,
        depth: Depth,
        progress: &ProgressSink,
    ) -> Result<VerifyReport, BackupError> {
        let lock = Lock::take(&self.objects, Sharing::Shared, "verification").await?;
        let done = self.verify_locked(depth, progress).await;
        lock.release().await;
        done
    }

    async fn verify_locked(
        &self,
        depth: Depth,
        progress: &ProgressSink,
    ) -> Result<VerifyReport, BackupError> {
        let mut report = VerifyReport::default();
        // First, since a backup that ends meanwhile adds one whose index was not read.
        let mut snapshots = Vec::new();
        for id in snapshot::ids(&self.objects).await? {
            match Snapshot::read(&self.objects, id).await {
                Ok(snapshot) => snapshots.push(snapshot),
                // One that was forgotten meanwhile.
                Err(BackupError::Missing { .. }) => {}
                Err(error) if error.is_loss() => {
                    report.add(Some(id), &error);
                    report.broken.push(id);
                }
                Err(error) => return Err(error),
            }
        }
        report.snapshots = snapshots.len();
        let (mut records, errors) = index::read_what_can_be(&self.objects).await?;
        for error in errors {
            report.add_loss(None, error)?;
        }
        let mut present = index::present(&self.objects).await?;
        report.packs = records.packs.len();
        for record in &records.packs {
            if let Err(error) = check_presence(record, &present) {
                report.add(None, &error);
            }
        }
        records.retain_present(&present);
        // As restores look for it: what was stored anew counts.
        records.prefer_whole(&index::damaged(&self.objects).await?);
        let marked = mark(self, &SharedIndex::of(&records.packs), &snapshots).await;
        for (snapshot, error) in marked.errors {
            report.add_loss(Some(snapshot), error)?;
        }
        for pack in &marked.damaged {
            index::mark_damaged(&self.objects, pack).await?;
        }
        if depth == Depth::Full {
            let mut told = Progress {
                total: records.packs.iter().map(|record| record.size).sum(),
                ..Progress::default()
            };
            let mut reads = stream::iter(records.packs.clone())
                .map(|record| async { (record.id, record.size, self.check_pack(record).await) })
                .buffer_unordered(READS);
            while let Some((pack, size, read)) = reads.next().await {
                told.done += size;
                told.read += size;
                progress.tell(told);
                match read {
                    Ok(bytes) => report.read += bytes,
                    Err(error) => {
                        report.add_loss(None, error)?;
                        present.remove(&pack);
                        index::mark_damaged(&self.objects, &pack).await?;
                    }
                }
            }
        }
        if !report.damage.is_empty() {
            // Each alone now: what several need breaks all of them.
            records.retain_present(&present);
            let index = SharedIndex::of(&records.packs);
            for snapshot in &snapshots {
                let one = mark(self, &index, std::slice::from_ref(snapshot)).await;
                let is_broken = !one.errors.is_empty();
                // A store that does not answer breaks nothing.
                if let Some((_, error)) = one.errors.into_iter().find(|(_, error)| !error.is_loss())
                {
                    return Err(error);
                }
                if is_broken {
                    report.broken.push(snapshot.id);
                }
            }
        }
        Ok(report)
    }

    /// Reads a pack whole; says how long it is.
    async fn check_pack(&self, record: PackRecord) -> Result<u64, BackupError> {
        let object = pack_name(&record.id);
        let content = self.objects.get(&object, LARGEST_PACK).await?;
        let repository = self.clone();
        let check = move || {
            for entry in &record.entries {
                let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(usize::try_from(entry.stored).unwrap_or(usize::MAX));
                let stored = content
                    .get(start..end)
                    .ok_or_else(|| BackupError::damaged(&object, "it is shorter than its index"))?;
                let place = Place {
                    pack: record.id,
                    codec: entry.codec,
                    offset: entry.offset,
                    stored: entry.stored,
                    raw: entry.raw,
                };
                repository.decode(entry.kind, &entry.id, &place, stored)?;
            }
            if Id::of(&content) == record.id {
                Ok(record.size)
            } else {
                Err(BackupError::damaged(object, "its content has another hash"))
            }
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(|_| BackupError::Stopped)?
    }
}

fn check_presence(record: &PackRecord, present: &HashMap<Id, u64>) -> Result<(), BackupError> {
    let object = pack_name(&record.id);
    match present.get(&record.id) {
        None => Err(BackupError::Missing {
            object: object.to_string(),
        }),
        Some(size) if *size != record.size => Err(BackupError::damaged(
            object,
            format_args!("it has {size} bytes instead of {}", record.size),
        )),
        Some(_) => Ok(()),
    }
}
