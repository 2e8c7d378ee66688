//! [`Volumes`]: opening them, sweeping what a crash left, finding and listing.

use super::backend::{Backend, Files, OpenLayer, Overlays, shares_blocks};
use super::error::{VolumeError, at};
use super::records::{LayerFormat, LayerId, LayerRow, Life, Records, Tx, VolumeRow};
use crate::failpoint;
use crate::node::Scope;
use aleph_types::{MiB, Timestamp, Volume, VolumeId, VolumeState, is_job_name};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The largest volume: what one file of ext4 can hold.
pub const MAX_SIZE: MiB = MiB(16 << 20);

/// How long somebody waits for others to be done with a volume.
const TURN: Duration = Duration::from_secs(30);

/// How many images come in and go out at a time: each may take as much of the disk as a volume.
const IMAGES: usize = 8;

/// What images leave free of the disk: one part in this many, and no more than [`MOST_RESERVED`].
const RESERVE: u64 = 20;

/// Of a large disk a twentieth is more than what else is written there needs to go on.
const MOST_RESERVED: u64 = 1 << 30;

/// The most snapshots of one volume.
pub const MAX_SNAPSHOTS: usize = 256;

/// Which back end new layers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// Files where the filesystem lets them share blocks, else qcow2.
    #[default]
    Auto,
    /// Raw files.
    Files,
    /// qcow2 over raw files.
    Qcow2,
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Files => "files",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "files" => Ok(Self::Files),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("{text:?} is none of auto, files and qcow2")),
        }
    }
}

/// What an account may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VolumeQuota {
    /// How many volumes, those included that can be had back.
    pub count: Option<u64>,
    /// Bytes: the sizes of all volumes, and what their snapshots hold.
    pub bytes: Option<u64>,
}

/// How a node keeps volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesConfig {
    /// How their bytes are kept.
    pub backend: BackendChoice,
    /// How long one that was removed can be had back.
    pub grace: Duration,
    /// What each account may have.
    pub quota: VolumeQuota,
}

impl Default for VolumesConfig {
    fn default() -> Self {
        Self {
            backend: BackendChoice::Auto,
            grace: Duration::from_secs(24 * 3600),
            quota: VolumeQuota::default(),
        }
    }
}

/// The volumes of a node. Clones are the same ones. All calls block.
#[derive(Debug, Clone)]
pub struct Volumes {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    folder: PathBuf,
    pub(super) config: VolumesConfig,
    pub(super) backend: Box<dyn Backend>,
    pub(super) records: Records,
    /// Volumes that something is done with.
    busy: Mutex<BTreeSet<VolumeId>>,
    turns: Condvar,
    /// Images that are gathered, or written for somebody to read.
    images: Arc<AtomicUsize>,
    /// Other processes stay out for as long as this lives.
    _lock: File,
}

/// One of the images that may be on their way.
#[derive(Debug)]
pub(super) struct OnItsWay(Arc<AtomicUsize>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A volume that nobody else works on.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    inner: &'a Inner,
    id: VolumeId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut busy = self
            .inner
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.id);
        self.inner.turns.notify_all();
    }
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// Opens the volumes below a node's state folder. What a crash left is removed first.
    ///
    /// # Errors
    /// Where the folders cannot be made, another process has them, or the records are of a newer program.
    pub fn open(state: &Path, config: VolumesConfig) -> Result<Self> {
        let folder = state.join("volumes");
        for path in [folder.clone(), folder.join("layers"), folder.join("work")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(at("make", &path))?;
        }
        let path = folder.join("lock");
        let lock = File::create(&path).map_err(at("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(VolumeError::Owned(folder)),
            locked => locked.map_err(io::Error::from).map_err(at("lock", &path))?,
        }
        let layers = folder.join("layers");
        let shares = || shares_blocks(&layers).map_err(at("look at", &layers));
        let backend: Box<dyn Backend> = match config.backend {
            BackendChoice::Files => Box::new(Files),
            BackendChoice::Qcow2 => Box::new(Overlays),
            BackendChoice::Auto => match shares()? {
                true => Box::new(Files),
                false => Box::new(Overlays),
            },
        };
        let records = Records::open(&folder.join("volumes.db"))?;
        let inner = Inner {
            folder,
            config,
            backend,
            records,
            busy: Mutex::default(),
            turns: Condvar::new(),
            images: Arc::default(),
            _lock: lock,
        };
        let volumes = Self {
            inner: Arc::new(inner),
        };
        volumes.inner.sweep()?;
        volumes.purge_due(Timestamp::now())?;
        Ok(volumes)
    }

    /// What the back end's configuration calls it: `files` or `qcow2`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.inner.backend.name()
    }

    /// How many layers a volume has, the one that is written included: 1 where it is one raw file.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn depth(&self, id: VolumeId) -> Result<usize> {
        let records = &self.inner.records;
        records.read(|tx| Ok(tx.chain(present(tx, id)?.top)?.len()))
    }

    /// All volumes that a caller may see, by name; those that can be had back, where `deleted` says so.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn list(&self, scope: &Scope, deleted: bool) -> Result<Vec<Volume>> {
        let mut found = self.inner.records.read(|tx| {
            let rows = tx.volumes()?.into_iter().filter(|row| {
                let is_seen = match row.life {
                    Life::Ready => true,
                    Life::Deleted => deleted,
                    Life::Making | Life::Removing => false,
                };
                is_seen && scope.covers(&row.account)
            });
            rows.map(|row| self.inner.view(tx, &row))
                .collect::<Result<Vec<_>>>()
        })?;
        found.sort_by(|a, b| (&a.account, &a.name).cmp(&(&b.account, &b.name)));
        Ok(found)
    }

    /// The volume that a caller means: by name, by whole id, or by 4 or more hex digits that begin it
    /// alone. One that was removed is found where no other has its name.
    ///
    /// # Errors
    /// Where there is none, or there are several.
    pub fn find(&self, scope: &Scope, reference: &str) -> Result<Volume> {
        self.inner.records.read(|tx| {
            let mut rows = tx.volumes()?;
            rows.retain(|row| {
                matches!(row.life, Life::Ready | Life::Deleted) && scope.covers(&row.account)
            });
            let digits = reference.strip_prefix("0x").unwrap_or(reference);
            let is_id = digits.len() >= 4 && !is_job_name_only(reference);
            let by_name = |life: Life| {
                let named = rows.iter().filter(move |row| row.life == life);
                named
                    .filter(|row| row.name == reference)
                    .collect::<Vec<_>>()
            };
            let by_id = || {
                let begins = |row: &&VolumeRow| row.id.to_string()[2..].starts_with(digits);
                rows.iter().filter(|row| is_id && begins(row)).collect()
            };
            let found = [by_name(Life::Ready), by_id(), by_name(Life::Deleted)];
            match found
                .iter()
                .find(|found| !found.is_empty())
                .map(Vec::as_slice)
            {
                None => Err(VolumeError::NoVolume(reference.to_owned())),
                Some([one]) => self.inner.view(tx, one),
                Some(several) => Err(VolumeError::Ambiguous(reference.to_owned(), several.len())),
            }
        })
    }

    /// A volume.
    ///
    /// # Errors
    /// Where there is none.
    pub fn get(&self, id: VolumeId) -> Result<Volume> {
        let inner = &self.inner;
        inner.records.read(|tx| inner.view(tx, &known(tx, id)?))
    }
}

/// Whether it can only be a name: an id has hex digits alone.
fn is_job_name_only(reference: &str) -> bool {
    let digits = reference.strip_prefix("0x").unwrap_or(reference);
    !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Inner {
    /// A layer's file.
    pub(super) fn path(&self, layer: LayerId, format: LayerFormat) -> PathBuf {
        let name = format!("{layer:08}.{}", format.word());
        self.folder.join("layers").join(name)
    }

    /// The folder for files without a name.
    pub(super) fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// Makes what was made in the folder of layers durable.
    pub(super) fn sync_layers(&self) -> Result<()> {
        let path = self.folder.join("layers");
        let folder = File::open(&path).and_then(|folder| folder.sync_all());
        folder.map_err(at("write", &path))
    }

    /// Takes a volume for as long as something is done with it. Waits for others a while.
    pub(super) fn turn(&self, row: &VolumeRow) -> Result<Turn<'_>> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let is_others = |busy: &mut BTreeSet<VolumeId>| busy.contains(&row.id);
        let waited = self.turns.wait_timeout_while(busy, TURN, is_others);
        let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match busy.insert(row.id) {
            true => Ok(Turn {
                inner: self,
                id: row.id,
            }),
            false => Err(VolumeError::Busy(row.name.clone())),
        }
    }

    /// Opens the layers of a chain, all to read but the top, where that is to be written.
    pub(super) fn open_chain(&self, chain: &[LayerRow], write: bool) -> Result<Vec<OpenLayer>> {
        let layers = chain.iter().enumerate().map(|(place, layer)| {
            let path = self.path(layer.id, layer.format);
            let file = File::options()
                .read(true)
                .write(write && place == 0)
                .open(&path)
                .map_err(at("open", &path))?;
            let format = layer.format;
            Ok(OpenLayer { file, format })
        });
        layers.collect()
    }

    pub(super) fn view(&self, tx: &Tx<'_>, row: &VolumeRow) -> Result<Volume> {
        let layer = tx.layer(row.top)?;
        // A list goes on where a file is missing; whoever uses it is told.
        let stored = self.allocated(&layer).unwrap_or(0);
        let snapshots = tx.snapshots(row.id)?;
        Ok(Volume {
            id: row.id,
            name: row.name.clone(),
            account: row.account.clone(),
            size: row.size,
            filesystem: row.filesystem,
            state: match row.life {
                Life::Deleted => VolumeState::Deleted,
                _ => VolumeState::Ready,
            },
            stored,
            snapshots: snapshots
                .into_iter()
                .map(|(snapshot, _)| snapshot)
                .collect(),
            leases: tx.leases(row.id)?,
            unclean: row.unclean,
            created_at: row.created,
            purged_at: row.purged,
        })
    }

    /// Bytes that a layer takes on disk.
    pub(super) fn allocated(&self, layer: &LayerRow) -> Result<u64> {
        let path = self.path(layer.id, layer.format);
        let meta = fs::metadata(&path).map_err(at("look at", &path))?;
        Ok(meta.blocks() * 512)
    }

    /// Checks that an account may have so much more.
    pub(super) fn check_quota(
        &self,
        tx: &Tx<'_>,
        account: &str,
        (volumes, bytes): (u64, u64),
    ) -> Result<()> {
        let quota = self.config.quota;
        let (count, held) = tx.held(account)?;
        let limits = [
            ("volumes", quota.count, count, volumes),
            ("bytes of volumes", quota.bytes, held, bytes),
        ];
        for (what, most, has, more) in limits {
            if let Some(most) = most.filter(|most| more > 0 && has.saturating_add(more) > *most) {
                let account = account.to_owned();
                return Err(VolumeError::Quota {
                    account,
                    what,
                    most,
                    has,
                    more,
                });
            }
        }
        Ok(())
    }

    /// Removes what a crash left half made or half removed, and ends what it left half grown. What cannot
    /// be removed now is tried again at the next start, and keeps nobody from the rest.
    fn sweep(&self) -> Result<()> {
        let work = self.work();
        for entry in fs::read_dir(&work).map_err(at("read", &work))?.flatten() {
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "a file stays");
            }
        }
        let unfinished = self.records.read(|tx| {
            let unfinished = tx.unfinished()?;
            Ok(unfinished)
        })?;
        let is_gone = |layer: &LayerRow| match self.remove_file(layer) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, layer = layer.id, "a layer's file stays");
                false
            }
        };
        let gone: Vec<_> = unfinished.iter().filter(|layer| is_gone(layer)).collect();
        self.sync_layers()?;
        self.take_back_layers()?;
        self.records.write("volumes.sweep", |tx| {
            for row in tx.volumes()? {
                if row.life == Life::Making {
                    tx.drop_volume(row.id)?;
                }
            }
            gone.iter().try_for_each(|layer| tx.drop_layer(layer.id))
        })?;
        self.grow_on()?;
        self.collect()
    }

    /// Takes back what a crash left with the user of a program.
    fn take_back_layers(&self) -> Result<()> {
        let us = rustix::process::geteuid();
        let layers = self.folder.join("layers");
        for entry in fs::read_dir(&layers)
            .map_err(at("read", &layers))?
            .flatten()
        {
            let path = entry.path();
            if entry.metadata().is_ok_and(|meta| meta.uid() != us.as_raw()) {
                let taken = rustix::fs::chown(&path, Some(us), Some(rustix::process::getegid()));
                taken
                    .map_err(io::Error::from)
                    .map_err(at("take back", &path))?;
            }
        }
        Ok(())
    }

    /// One more image on its way, and how many bytes it may take of the disk.
    pub(super) fn image(&self) -> Result<(OnItsWay, u64)> {
        let before = self.images.fetch_add(1, Ordering::SeqCst);
        let place = OnItsWay(Arc::clone(&self.images));
        if before >= IMAGES {
            return Err(VolumeError::TooManyImages(IMAGES));
        }
        let work = self.work();
        let disk = rustix::fs::statvfs(&work).map_err(io::Error::from);
        let disk = disk.map_err(at("look at", &work))?;
        let all = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let reserved = (all / RESERVE).min(MOST_RESERVED);
        Ok((place, free.saturating_sub(reserved)))
    }

    /// Gives each volume the size that its record has, where a crash came before its file got it. One that
    /// cannot be grown now is tried again when it is attached.
    fn grow_on(&self) -> Result<()> {
        let tops = self.records.read(|tx| {
            let rows = tx.volumes()?.into_iter();
            rows.map(|row| Ok((tx.layer(row.top)?, row)))
                .collect::<Result<Vec<_>>>()
        })?;
        for (layer, row) in tops {
            let grown = self
                .open_chain(std::slice::from_ref(&layer), true)
                .and_then(
                    |opened| match opened.first().map(OpenLayer::size).transpose()? {
                        Some(size) if size < row.size.bytes() => {
                            // A guest that has outlived its node may have it.
                            self.lock(&row, &opened, FlockOperation::NonBlockingLockExclusive)?;
                            self.grow_to_record(&row, &opened)
                        }
                        _ => Ok(()),
                    },
                );
            if let Err(error) = grown {
                tracing::warn!(%error, volume = %row.id, "a volume's disk is not in order");
            }
        }
        Ok(())
    }

    /// Grows a top that is smaller than its volume, and that the caller has locked.
    pub(super) fn grow_to_record(&self, row: &VolumeRow, opened: &[OpenLayer]) -> Result<()> {
        let Some(top) = opened.first() else {
            return Err(VolumeError::NoVolume(row.id.to_string()));
        };
        if top.size()? >= row.size.bytes() {
            return Ok(());
        }
        let path = self.path(row.top, top.format);
        self.backend.grow(top, &path, row.size)?;
        top.file.sync_all().map_err(at("write", &path))
    }

    fn remove_file(&self, layer: &LayerRow) -> Result<()> {
        let path = self.path(layer.id, layer.format);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(at("remove", &path)),
        }
    }

    /// Forgets a layer that came to nothing, with its file.
    pub(super) fn abandon(&self, layer: LayerId, format: LayerFormat) {
        let path = self.path(layer, format);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(at("remove", &path)),
        };
        let synced = removed.and_then(|()| self.sync_layers());
        let forgotten = synced.and_then(|()| {
            self.records
                .write("layer.abandon", |tx| tx.drop_layer(layer))
        });
        if let Err(error) = forgotten {
            tracing::warn!(%error, layer, "a layer stays until the volumes are opened again");
        }
    }

    /// The same after what made it needful was done: what cannot be removed now is removed when they are
    /// opened next.
    pub(super) fn collect_later(&self) {
        if let Err(error) = self.collect() {
            tracing::warn!(%error, "layers that nobody needs stay for now");
        }
    }

    /// Removes the layers that nothing leads to any more.
    pub(super) fn collect(&self) -> Result<()> {
        loop {
            // Those below them have no child any more after that.
            let orphans = self.records.write("layers.condemn", |tx| {
                let orphans = tx.orphans()?;
                for layer in &orphans {
                    tx.condemn_layer(layer.id)?;
                }
                Ok(orphans)
            })?;
            if orphans.is_empty() {
                return Ok(());
            }
            for layer in &orphans {
                self.remove_file(layer)?;
                failpoint::pass("layers.remove", "one");
            }
            self.sync_layers()?;
            self.records.write("layers.forget", |tx| {
                orphans.iter().try_for_each(|layer| tx.drop_layer(layer.id))
            })?;
        }
    }
}

/// A volume that is there, deleted or not.
pub(super) fn known(tx: &Tx<'_>, id: VolumeId) -> Result<VolumeRow> {
    let row = tx.volume(id)?;
    row.filter(|row| matches!(row.life, Life::Ready | Life::Deleted))
        .ok_or_else(|| VolumeError::NoVolume(id.to_string()))
}

/// A volume that can be used.
pub(super) fn present(tx: &Tx<'_>, id: VolumeId) -> Result<VolumeRow> {
    let row = known(tx, id)?;
    match row.life {
        Life::Ready => Ok(row),
        _ => Err(VolumeError::Deleted(row.name)),
    }
}

pub(super) fn check_name(name: &str) -> Result<()> {
    match is_job_name(name) {
        true => Ok(()),
        false => Err(VolumeError::BadName(name.to_owned())),
    }
}

pub(super) fn check_size(size: MiB, least: MiB, why: &str) -> Result<()> {
    if size < least {
        let why = format!("{why} takes at least {least}");
        return Err(VolumeError::BadSize { size, why });
    }
    if size > MAX_SIZE {
        let why = format!("{MAX_SIZE} is the most");
        return Err(VolumeError::BadSize { size, why });
    }
    Ok(())
}
