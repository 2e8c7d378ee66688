//! Writing a snapshot back.
//!
//! A file is written beside its place as `NAME.partial` and renamed once all of it is there and
//! on the disk, so nobody meets half a volume. A restore that finds such a file checks which chunks it
//! already has by their hashes, and fetches the others.

use crate::blob::Kind;
use crate::error::BackupError;
use crate::id::Id;
use crate::index::{self, Place, SharedIndex};
use crate::lock::{Lock, Sharing};
use crate::objects::pack_name;
use crate::progress::{Progress, ProgressSink};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::tree::{LeafWalk, decode_leaf, leaf_range, leaves};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rustix::fs::{
    CWD, FallocateFlags, FlockOperation, RenameFlags, fallocate, flock, renameat_with,
};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// `O_EXCL` and `O_NOFOLLOW` of open(2), as on every architecture of Linux that this is built for.
const EXCLUSIVE: i32 = 0o200;
const NO_LINKS: i32 = if cfg!(target_arch = "aarch64") {
    0o100_000
} else {
    0o400_000
};

/// How many leaves are restored at a time.
const WORKERS: usize = 4;

/// What to restore to where.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The snapshot.
    pub snapshot: Id,
    /// A file that is not there, or a block device that is at least as large.
    pub target: PathBuf,
    /// Who is told how far it is.
    pub progress: ProgressSink,
}

/// What a restore did, in bytes of the volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Its size.
    pub size: u64,
    /// What was fetched and written.
    pub written: u64,
    /// What an earlier restore had written already.
    pub reused: u64,
}

/// A file or device that is being written.
struct Target {
    file: File,
    /// All of it is zeros: holes need not be made.
    fresh: bool,
    path: PathBuf,
    /// How many more bytes may be written.
    left: AtomicU64,
}

impl Target {
    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> BackupError + '_ {
        let path = self.path.clone();
        move |source| BackupError::Target {
            operation,
            path,
            source,
        }
    }

    /// Writes bytes, where there may be so many.
    fn write(&self, bytes: &[u8], at: u64) -> Result<(), BackupError> {
        let length = crate::wire::wide(bytes.len());
        let take = |left: u64| left.checked_sub(length);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| io::ErrorKind::StorageFull.into())
            .and_then(|_| self.file.write_all_at(bytes, at))
            .map_err(self.failed("write"))
    }

    /// Makes a range read as zeros.
    fn punch(&self, range: &Range<u64>) -> Result<(), BackupError> {
        if self.fresh || range.is_empty() {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, range.start, range.end - range.start) {
            Ok(()) => Ok(()),
            // Devices take multiples of their blocks alone.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL) => self.write_zeros(range),
            Err(error) => Err(self.failed("make a hole in")(error.into())),
        }
    }

    fn write_zeros(&self, range: &Range<u64>) -> Result<(), BackupError> {
        static BLOCK: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = range.start;
        while at < range.end {
            let length =
                usize::try_from(range.end - at).map_or(BLOCK.len(), |left| left.min(BLOCK.len()));
            let block = BLOCK.get(..length).unwrap_or_default();
            self.write(block, at)?;
            at += u64::from(crate::wire::count(length));
        }
        Ok(())
    }
}

/// A chunk that the target lacks.
struct Wanted {
    offset: u64,
    id: Id,
    place: Place,
}

impl Repository {
    /// Writes a snapshot to a file, with holes where it has zeros, or to a block device.
    ///
    /// Running it again after a failure goes on where it ended.
    ///
    /// # Errors
    /// [`BackupError::NoSnapshot`]; [`BackupError::TargetExists`]; [`BackupError::Missing`] and
    /// [`BackupError::Damaged`] naming what the repository lacks.
    pub async fn restore(&self, request: RestoreRequest) -> Result<RestoreReport, BackupError> {
        let work = format!("restore of {}", request.snapshot);
        let lock = Lock::take(&self.objects, Sharing::Shared, &work).await?;
        let done = self.restore_locked(request).await;
        lock.release().await;
        done
    }

    /// Writes a snapshot into an open file, and says what it wrote. It is on the disk afterwards. No more than `most`
    /// bytes are written, whatever the store says: zeros are holes and cost none. The file is empty, or one that this
    /// was called with before and did not fill: then it goes on.
    ///
    /// # Errors
    /// As [`Repository::restore`]; [`BackupError::TargetExists`] where the file is of another size;
    /// [`BackupError::Target`] with [`io::ErrorKind::StorageFull`] where there are more.
    pub async fn restore_into(
        &self,
        snapshot: Id,
        file: File,
        most: u64,
        progress: ProgressSink,
    ) -> Result<RestoreReport, BackupError> {
        let lock = Lock::take(
            &self.objects,
            Sharing::Shared,
            &format!("restore of {snapshot}"),
        )
        .await?;
        let done = self
            .restore_into_locked(snapshot, (file, most), &progress)
            .await;
        lock.release().await;
        done
    }

    async fn restore_into_locked(
        &self,
        snapshot: Id,
        (file, most): (File, u64),
        progress: &ProgressSink,
    ) -> Result<RestoreReport, BackupError> {
        let snapshot = self.wanted(snapshot).await?;
        let size = snapshot.size;
        let target = blocking(move || {
            let path = PathBuf::from("the restored volume");
            let found = match file.metadata() {
                Ok(found) => found.len(),
                Err(source) => {
                    let operation = "look at";
                    return Err(BackupError::Target {
                        operation,
                        path,
                        source,
                    });
                }
            };
            if found != 0 && found != size {
                return Err(BackupError::TargetExists { path });
            }
            let target = Target {
                file,
                fresh: found == 0,
                path,
                left: AtomicU64::new(most),
            };
            target.file.set_len(size).map_err(target.failed("resize"))?;
            Ok(Arc::new(target))
        })
        .await?;
        self.fill(&snapshot, &target, progress).await
    }

    async fn restore_locked(&self, request: RestoreRequest) -> Result<RestoreReport, BackupError> {
        let snapshot = self.wanted(request.snapshot).await?;
        let (path, size) = (request.target.clone(), snapshot.size);
        let (target, renames) = blocking(move || open(&path, size)).await?;
        let target = Arc::new(target);
        let report = self.fill(&snapshot, &target, &request.progress).await?;
        if renames {
            blocking(move || finish(&target, &request.target)).await?;
        }
        Ok(report)
    }

    async fn wanted(&self, id: Id) -> Result<Snapshot, BackupError> {
        match Snapshot::read(&self.objects, id).await {
            Err(BackupError::Missing { .. }) => Err(BackupError::NoSnapshot {
                reference: id.to_string(),
            }),
            read => read,
        }
    }

    /// Writes all of a snapshot, to the disk.
    async fn fill(
        &self,
        snapshot: &Snapshot,
        target: &Arc<Target>,
        progress: &ProgressSink,
    ) -> Result<RestoreReport, BackupError> {
        let (mut records, mut unread) = index::read_what_can_be(&self.objects).await?;
        records.prefer_whole(&index::damaged(&self.objects).await?);
        let index = SharedIndex::of(&records.packs);
        let report = match self.write(snapshot, &index, target, progress).await {
            // One that is damaged costs nobody else a restore; who needs it is told of it.
            Err(missing @ BackupError::Missing { .. }) => {
                return Err(unread.pop().unwrap_or(missing));
            }
            done => done?,
        };
        let target = Arc::clone(target);
        blocking(move || target.file.sync_all().map_err(target.failed("write"))).await?;
        Ok(report)
    }

    async fn write(
        &self,
        snapshot: &Snapshot,
        index: &SharedIndex,
        target: &Arc<Target>,
        progress: &ProgressSink,
    ) -> Result<RestoreReport, BackupError> {
        let size = snapshot.size;
        let mut walk = LeafWalk::new(self, index.clone(), snapshot.root, size);
        let mut running = FuturesUnordered::new();
        let mut report = RestoreReport {
            size,
            ..RestoreReport::default()
        };
        let (mut next, mut done, mut fetched) = (0, 0, 0);
        loop {
            while running.len() < WORKERS && next < leaves(size) {
                let leaf = walk.leaf(next).await?;
                let range = leaf_range(next, size);
                running.push(
                    self.write_leaf(index, Arc::clone(target), leaf, range)
                        .boxed(),
                );
                next += 1;
            }
            let Some(leaf) = running.next().await else {
                return Ok(report);
            };
            let leaf: LeafReport = leaf?;
            report.written += leaf.written;
            report.reused += leaf.reused;
            fetched += leaf.fetched;
            done += leaf.length;
            progress.tell(Progress {
                done,
                total: size,
                read: fetched,
                written: report.written,
            });
        }
    }

    async fn write_leaf(
        &self,
        index: &SharedIndex,
        target: Arc<Target>,
        leaf: Option<Id>,
        range: Range<u64>,
    ) -> Result<LeafReport, BackupError> {
        let length = range.end - range.start;
        let mut report = LeafReport {
            length,
            ..LeafReport::default()
        };
        let Some(id) = leaf else {
            blocking(move || target.punch(&range)).await?;
            return Ok(report);
        };
        let spans = decode_leaf(&self.read_node(index, &id).await?, length, &id)?;
        let mut wanted = Vec::new();
        let mut holes = Vec::new();
        let mut at = range.start;
        for span in spans {
            let end = at + u64::from(span.length);
            match span.chunk {
                None => holes.push(at..end),
                Some(id) => {
                    let place = index.require(&id)?;
                    if place.raw != span.length {
                        let object = pack_name(&place.pack);
                        return Err(BackupError::damaged(
                            object,
                            format_args!("blob {id} has another length than its leaf says"),
                        ));
                    }
                    wanted.push(Wanted {
                        offset: at,
                        id,
                        place,
                    });
                }
            }
            at = end;
        }
        let (repository, file) = (self.clone(), Arc::clone(&target));
        let lacking = blocking(move || {
            for hole in &holes {
                file.punch(hole)?;
            }
            repository.lacking(&file, wanted)
        })
        .await?;
        report.reused = lacking.reused;

        let mut by_pack: BTreeMap<Id, Vec<Wanted>> = BTreeMap::new();
        for wanted in lacking.wanted {
            by_pack.entry(wanted.place.pack).or_default().push(wanted);
        }
        for (pack, wanted) in by_pack {
            let ranges: Vec<Range<u64>> = wanted.iter().map(stored_range).collect();
            let parts = self.objects.get_ranges(&pack_name(&pack), &ranges).await?;
            let (repository, file) = (self.clone(), Arc::clone(&target));
            let (fetched, written) =
                blocking(move || repository.put(&file, &wanted, &parts)).await?;
            report.fetched += fetched;
            report.written += written;
        }
        Ok(report)
    }

    /// Which of these chunks the target does not have yet.
    fn lacking(&self, target: &Target, wanted: Vec<Wanted>) -> Result<Lacking, BackupError> {
        let mut lacking = Lacking::default();
        for chunk in wanted {
            if target.fresh {
                lacking.wanted.push(chunk);
                continue;
            }
            let mut bytes = vec![0; usize::try_from(chunk.place.raw).unwrap_or_default()];
            target
                .file
                .read_exact_at(&mut bytes, chunk.offset)
                .map_err(target.failed("read"))?;
            if self.keys.id(Kind::Chunk, &bytes) == chunk.id {
                lacking.reused += u64::from(chunk.place.raw);
            } else {
                lacking.wanted.push(chunk);
            }
        }
        Ok(lacking)
    }

    /// Checks chunks and writes them; says how much was fetched and written.
    fn put(
        &self,
        target: &Target,
        wanted: &[Wanted],
        parts: &[Bytes],
    ) -> Result<(u64, u64), BackupError> {
        let (mut fetched, mut written) = (0, 0);
        for (chunk, stored) in wanted.iter().zip(parts) {
            let bytes = self.decode(Kind::Chunk, &chunk.id, &chunk.place, stored)?;
            target.write(&bytes, chunk.offset)?;
            fetched += u64::from(chunk.place.stored);
            written += u64::from(chunk.place.raw);
        }
        Ok((fetched, written))
    }
}

#[derive(Default)]
struct Lacking {
    wanted: Vec<Wanted>,
    reused: u64,
}

#[derive(Default)]
struct LeafReport {
    length: u64,
    fetched: u64,
    written: u64,
    reused: u64,
}

fn stored_range(wanted: &Wanted) -> Range<u64> {
    let start = u64::from(wanted.place.offset);
    start..start + u64::from(wanted.place.stored)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| BackupError::Stopped)?
}

/// Opens what is written, and says whether it has to be renamed afterwards.
fn open(path: &Path, size: u64) -> Result<(Target, bool), BackupError> {
    let device = match path.metadata() {
        Ok(metadata) => metadata.file_type().is_block_device(),
        Err(_) => false,
    };
    if !device && path.symlink_metadata().is_ok() {
        return Err(BackupError::TargetExists {
            path: path.to_owned(),
        });
    }
    let written = if device {
        path.to_owned()
    } else {
        partial(path)
    };
    let failed = |operation| {
        let path = written.clone();
        move |source| BackupError::Target {
            operation,
            path,
            source,
        }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(!device)
        .truncate(false)
        .mode(0o600)
        // Of a device: one that is mounted, or part of another, is busy.
        .custom_flags(if device { EXCLUSIVE } else { NO_LINKS })
        .open(&written)
        .map_err(failed("open"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| failed("lock")(error.into()))?;
    if !device {
        // Another restore may have finished and renamed it meanwhile.
        let (open, named) = (file.metadata(), std::fs::symlink_metadata(&written));
        let (open, named) = (
            open.map_err(failed("look at"))?,
            named.map_err(failed("look at"))?,
        );
        if !open.is_file() || (open.dev(), open.ino()) != (named.dev(), named.ino()) {
            return Err(BackupError::TargetExists { path: written });
        }
    }
    let before = file.seek(SeekFrom::End(0)).map_err(failed("measure"))?;
    if device {
        if before < size {
            let small = io::Error::new(io::ErrorKind::StorageFull, "the device is smaller");
            return Err(failed("restore to")(small));
        }
    } else {
        file.set_len(size).map_err(failed("resize"))?;
    }
    let target = Target {
        file,
        fresh: before == 0,
        path: written,
        left: AtomicU64::new(u64::MAX),
    };
    if device {
        // Nobody is to find what somebody else had there.
        target.punch(&(size..before))?;
    }
    Ok((target, !device))
}

/// Where a file is until all of it is there.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Gives a complete file its name, durably.
fn finish(target: &Target, path: &Path) -> Result<(), BackupError> {
    let renamed = renameat_with(CWD, &target.path, CWD, path, RenameFlags::NOREPLACE);
    match renamed {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => {
            return Err(BackupError::TargetExists {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(target.failed("rename")(error.into())),
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(target.failed("rename"))
}
