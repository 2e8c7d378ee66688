//! [`Volumes`]: opening them, finding and listing; layers by their records.

use super::backend::{Backend, Branch, Files, LvmThin, OpenLayer, Overlays, shares_blocks};
use super::config::{BackendChoice, VolumesConfig};
use super::error::{VolumeError, at};
use super::exposed::Copies;
use super::keys::{KeyFile, KeyId, Passphrase};
use super::layer::{Home, LayerFormat};
use super::merge::Merging;
use super::reading::name_of;
use super::records::{LayerRow, Life, Records, Tx, VolumeRow};
use super::turns::VolumeTurns;
use crate::node::Scope;
use aleph_types::{MiB, Timestamp, Volume, VolumeId, VolumeState, is_job_name};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The largest volume: what one file of ext4 can hold.
pub const MAX_SIZE: MiB = MiB(16 << 20);

/// How long somebody waits for others to be done with a volume.
const TURN: Duration = Duration::from_secs(30);

/// How many images come in and go out at a time: each may take as much of the disk as a volume.
const IMAGES: usize = 8;

/// How many of them are one account's, so that it does not keep all others out.
const IMAGES_OF_ONE: usize = 2;

/// What images leave free of the disk: one part in this many, and no more than [`MOST_RESERVED`].
const RESERVE: u64 = 20;

/// Of a large disk a twentieth is more than what else is written there needs to go on.
const MOST_RESERVED: u64 = 1 << 30;

/// The most snapshots of one volume.
pub const MAX_SNAPSHOTS: usize = 256;

/// The volumes of a node. Clones are the same ones. All calls block.
#[derive(Debug, Clone)]
pub struct Volumes {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) folder: PathBuf,
    pub(super) config: VolumesConfig,
    /// How new layers are kept.
    pub(super) backend: Arc<dyn Backend>,
    /// Where layers are that are no files.
    pub(super) pool: Option<Arc<LvmThin>>,
    pub(super) records: Records,
    key_file: KeyFile,
    turns: VolumeTurns,
    /// Images that are gathered, or written for somebody to read.
    images: Arc<AtomicUsize>,
    images_of: Arc<Images>,
    /// Bytes of the disk that are being written, or are about to be.
    promised: Arc<AtomicU64>,
    /// What is known of merges beside their records.
    pub(super) merging: Mutex<Merging>,
    /// What VMMs may still write to, as others read it.
    pub(super) copies: Copies,
    /// Other processes stay out for as long as this lives.
    _lock: File,
}

/// One of the images that may be on their way.
#[derive(Debug)]
pub(super) struct OnItsWay {
    all: Arc<AtomicUsize>,
    /// Whose it is, where it counts for an account.
    of_one: Option<(Arc<Images>, String)>,
}

/// How many images are on their way for somebody outside, by account.
type Images = Mutex<BTreeMap<String, usize>>;

/// A place for an image that is about to be read, and how many bytes of the disk that may take. Taken before
/// something is done for the image that is not undone.
#[derive(Debug)]
#[must_use = "dropped, it is somebody else's"]
pub struct ImagePlace(pub(super) OnItsWay, pub(super) u64);

impl Volumes {
    /// A place for an image.
    ///
    /// # Errors
    /// Where there are as many on their way as may be.
    pub fn image_place(&self) -> Result<ImagePlace> {
        let (place, free) = self.inner.image()?;
        Ok(ImagePlace(place, free))
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::SeqCst);
        if let Some((images, account)) = &self.of_one {
            let mut images = images.lock().unwrap_or_else(PoisonError::into_inner);
            let left = images.get(account).map_or(0, |count| count - 1);
            match left {
                0 => images.remove(account),
                left => images.insert(account.clone(), left),
            };
        }
    }
}

/// Bytes of the disk that nobody else is given, for as long as they are being written.
#[derive(Debug)]
pub(super) struct Promised(Arc<AtomicU64>, u64);

impl Drop for Promised {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::SeqCst);
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
        self.inner.turns.give_back(self.id);
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
        let records = Records::open(&folder.join("volumes.db"))?;
        let pool = open_pool(&records, &config)?;
        let layers = folder.join("layers");
        let shares = || shares_blocks(&layers).map_err(at("look at", &layers));
        let backend: Arc<dyn Backend> = match (config.backend, &pool) {
            (BackendChoice::LvmThin, Some(pool)) => Arc::<LvmThin>::clone(pool),
            (BackendChoice::LvmThin, None) => {
                let (pool, why) = (String::new(), "has no name: thin_pool has to be GROUP/POOL");
                return Err(VolumeError::Pool { pool, why });
            }
            (BackendChoice::Files, _) => Arc::new(Files),
            (BackendChoice::Qcow2, _) => Arc::new(Overlays),
            (BackendChoice::Auto, _) => match shares()? {
                true => Arc::new(Files),
                false => Arc::new(Overlays),
            },
        };
        let key_file = config.key_file.clone();
        let key_file = KeyFile::new(key_file.unwrap_or_else(|| folder.join("key")));
        let inner = Inner {
            folder,
            config,
            backend,
            pool,
            records,
            key_file,
            turns: VolumeTurns::default(),
            images: Arc::default(),
            images_of: Arc::default(),
            promised: Arc::default(),
            merging: Mutex::default(),
            copies: Copies::default(),
            _lock: lock,
        };
        let volumes = Self {
            inner: Arc::new(inner),
        };
        volumes.inner.sweep()?;
        volumes.purge_due(Timestamp::now())?;
        Ok(volumes)
    }

    /// What the back end's configuration calls it: `files`, `qcow2` or `lvm-thin`.
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
        self.inner.look();
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
        self.inner.look();
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

    /// The volume of an account that has this very name and was not removed: what a job means.
    ///
    /// # Errors
    /// Where there is none.
    pub fn named(&self, account: &str, name: &str) -> Result<Volume> {
        let inner = &self.inner;
        inner.records.read(|tx| {
            let row = super::lease::by_name(tx, account, name)?;
            inner.view(tx, &row)
        })
    }

    /// The size of a volume that a job asks for where it is missing, if the job does not say.
    #[must_use]
    pub fn default_size(&self) -> MiB {
        self.inner.config.default_size
    }

    /// A volume.
    ///
    /// # Errors
    /// Where there is none.
    pub fn get(&self, id: VolumeId) -> Result<Volume> {
        let inner = &self.inner;
        inner.look();
        inner.records.read(|tx| inner.view(tx, &known(tx, id)?))
    }
}

/// The pool of LVM, where there is one to be used: for new layers, or for those that there are.
fn open_pool(records: &Records, config: &VolumesConfig) -> Result<Option<Arc<LvmThin>>> {
    let Some(pool) = &config.thin_pool else {
        return Ok(None);
    };
    let (store, used) = records.read(|tx| {
        let used = !tx.layers_at(Home::Pool)?.is_empty();
        Ok((tx.store()?, used))
    })?;
    match LvmThin::open(pool, &store) {
        Ok(pool) => Ok(Some(Arc::new(pool))),
        Err(error) if used || config.backend == BackendChoice::LvmThin => Err(error),
        Err(error) => {
            let error = crate::vm::chain(&error);
            tracing::warn!(error, "the thin pool is not used");
            Ok(None)
        }
    }
}

/// Whether it can only be a name: an id has hex digits alone.
fn is_job_name_only(reference: &str) -> bool {
    let digits = reference.strip_prefix("0x").unwrap_or(reference);
    !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Inner {
    /// What keeps the layers that are at a place.
    pub(super) fn keeper(&self, home: Home) -> Result<&dyn Backend> {
        if self.backend.home() == home {
            return Ok(&*self.backend);
        }
        match (home, &self.pool) {
            (Home::Folder, _) => Ok(&Files),
            (Home::Pool, Some(pool)) => Ok(&**pool),
            (Home::Pool, None) => {
                let (pool, why) = (String::new(), "has no name, and there are volumes in one");
                Err(VolumeError::Pool { pool, why })
            }
        }
    }

    /// A layer's file, or its device.
    pub(super) fn path(&self, layer: &LayerRow) -> PathBuf {
        match (layer.home, &self.pool) {
            (Home::Pool, Some(pool)) => pool.path(layer.id),
            (Home::Folder, _) | (Home::Pool, None) => {
                let name = format!("{:08}.{}", layer.id, layer.format.word());
                self.folder.join("layers").join(name)
            }
        }
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
        match self.turns.take(row.id, &row.account, TURN) {
            true => Ok(Turn {
                inner: self,
                id: row.id,
            }),
            false => Err(VolumeError::Busy(row.name.clone())),
        }
    }

    /// Opens the layers of a chain, all to read but the top, where that is to be written.
    pub(super) fn open_chain(&self, chain: &[LayerRow], write: bool) -> Result<Vec<OpenLayer>> {
        let mut opened = self.look_at(chain, write)?;
        for (layer, opened) in chain.iter().zip(&mut opened) {
            opened.key = layer.key.as_ref().map(|id| self.key(id)).transpose()?;
        }
        Ok(opened)
    }

    /// The same to read, for a new top that begins so: who puts an overlay over them does not look into them.
    pub(super) fn open_for(&self, chain: &[LayerRow], branch: Branch) -> Result<Vec<OpenLayer>> {
        match branch {
            Branch::Copy => self.open_chain(chain, false),
            Branch::Overlay => {
                let unread = |layer: &LayerRow| LayerRow {
                    exposed: false,
                    ..layer.clone()
                };
                let chain: Vec<_> = chain.iter().map(unread).collect();
                self.open_chain(&chain, false)
            }
        }
    }

    /// The same without keys, for who does not look into them.
    pub(super) fn look_at(&self, chain: &[LayerRow], write: bool) -> Result<Vec<OpenLayer>> {
        // All of them before one is copied, which may take long: what nothing leads to any more goes meanwhile,
        // and stays for who has it open.
        let opened = chain.iter().enumerate().map(|(place, layer)| {
            let path = self.path(layer);
            let keeper = self.keeper(layer.home)?;
            let file = keeper.open(&path, write && place == 0)?;
            Ok(OpenLayer {
                name: (layer.home == Home::Folder)
                    .then(|| name_of(layer.id, &file))
                    .flatten(),
                file,
                format: layer.format,
                key: None,
                is_encrypted: layer.key.is_some(),
                home: layer.home,
                path,
            })
        });
        let mut opened = opened.collect::<Result<Vec<_>>>()?;
        for (layer, opened) in chain.iter().zip(&mut opened) {
            // Its VMM may be broken into, and write to it: whoever looks at its header has its own.
            if layer.exposed && layer.format == LayerFormat::Qcow2 {
                opened.file = self.private(layer, &opened.file)?;
            }
        }
        Ok(opened)
    }

    /// A key, as the node's opens it.
    pub(super) fn key(&self, id: &KeyId) -> Result<Passphrase> {
        let wrapped = self.records.read(|tx| tx.key(id))?;
        self.key_file.open(id, &wrapped)
    }

    /// A key for a new volume, which is put down with its first layer.
    pub(super) fn new_key(&self) -> Result<super::keys::NewKey> {
        // The method itself is for one lifetime alone.
        #[allow(clippy::redundant_closure_for_method_calls)]
        let has_keys = self.records.read(|tx| tx.has_keys())?;
        self.key_file.new_key(!has_keys)
    }

    /// Looks at what layers take that are no files.
    pub(super) fn look(&self) {
        let looked = self.pool.as_ref().map_or(Ok(()), |pool| pool.look());
        if let Err(error) = looked {
            let error = crate::vm::chain(&error);
            tracing::warn!(error, "what volumes take of the thin pool is not known");
        }
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
            encrypted: layer.key.is_some(),
            created_at: row.created,
            purged_at: row.purged,
        })
    }

    /// Bytes that a layer takes on disk.
    pub(super) fn allocated(&self, layer: &LayerRow) -> Result<u64> {
        self.keeper(layer.home)?.stored(&self.path(layer))
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

    /// The same for somebody outside, who decides how long it takes.
    pub(super) fn image_of(&self, account: &str) -> Result<(OnItsWay, u64)> {
        let (mut place, free) = self.image()?;
        let mut images = self
            .images_of
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = images.entry(account.to_owned()).or_default();
        if *count >= IMAGES_OF_ONE {
            return Err(VolumeError::TooManyImages(*count));
        }
        *count += 1;
        place.of_one = Some((Arc::clone(&self.images_of), account.to_owned()));
        Ok((place, free))
    }

    /// One more image on its way, and how many bytes it may take of the disk.
    pub(super) fn image(&self) -> Result<(OnItsWay, u64)> {
        let before = self.images.fetch_add(1, Ordering::SeqCst);
        let place = OnItsWay {
            all: Arc::clone(&self.images),
            of_one: None,
        };
        if before >= IMAGES {
            return Err(VolumeError::TooManyImages(IMAGES));
        }
        let promised = self.promised.load(Ordering::SeqCst);
        Ok((place, self.room()?.saturating_sub(promised)))
    }

    /// How many bytes of the disk may be written.
    fn room(&self) -> Result<u64> {
        let work = self.work();
        let disk = rustix::fs::statvfs(&work).map_err(io::Error::from);
        let disk = disk.map_err(at("look at", &work))?;
        let all = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let reserved = (all / RESERVE).min(MOST_RESERVED);
        Ok(free.saturating_sub(reserved))
    }

    /// Room for what is about to be written.
    pub(super) fn promise(&self, bytes: u64, what: &'static str) -> Result<Promised> {
        let before = self.promised.fetch_add(bytes, Ordering::SeqCst);
        let promised = Promised(Arc::clone(&self.promised), bytes);
        match before.saturating_add(bytes) > self.room()? {
            true => Err(at(what, &self.work())(io::ErrorKind::StorageFull.into())),
            false => Ok(promised),
        }
    }

    /// Bytes that the layers of a chain take, whatever they are on.
    pub(super) fn held(&self, chain: &[OpenLayer]) -> Result<u64> {
        if chain.iter().any(|layer| layer.home == Home::Pool) {
            self.look();
        }
        let held = chain.iter().map(|layer| match layer.home {
            Home::Pool => self.keeper(layer.home)?.stored(&layer.path),
            // Its name may be gone.
            Home::Folder => {
                let meta = layer.file.metadata().map_err(at("look at", &layer.path))?;
                Ok(meta.blocks() * 512)
            }
        });
        held.sum()
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
