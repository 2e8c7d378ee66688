//! [`LvmThin`]: thin logical volumes.
//!
//! A layer is a thin volume of one pool, `aleph_STORE_LAYER`: STORE is what these records call themselves, so
//! any number of nodes share a group. It has the tags `aleph` and `aleph_STORE`. A copy is a thin
//! snapshot, which shares what it has in common with the old one and needs it no more: so no chain is
//! longer than one layer, and neither a snapshot nor a copy costs more where there is more. What no
//! volume is written to any more is made read-only.
//!
//! A raw layer is the disk itself, in whole extents ([`Backend::whole`]). An encrypted one is a qcow2 image on the
//! device, which is made a little larger for that: thin volumes take no room for what is not written.
//!
//! # Devices
//! LVM's own nodes are for root and the group `disk`, udev may make them anew, and the programs that
//! read layers run under other users. So each layer has a node of ours in `/dev/aleph_STORE`, a folder that is
//! closed: it can be read by whoever has its descriptor, and belongs to a program's user while that
//! writes. All open the layer by this node, so the lock on it (flock(2)) is one.
//!
//! # Failure cases
//! The pool has to give zeros for what was never written (`zero` in lvs(8)): else a disk would show what
//! others wrote. [`VolumeError::PoolFull`]: nothing new is made in a pool that is nearly full. One that is full
//! all the same fails the writes of guests, and no write that was acknowledged is lost; with
//! `--errorwhenfull y` it does so at once, and VMs pause until there is room. A crash leaves a layer whose
//! row says that it is not finished, as with files. Volumes of ours without a row are told, and left alone.

use super::lvm::{Lvm, ThinPool, active, number};
use super::{Backend, Branch, OpenLayer, length_of, take_back};
use crate::volumes::error::{VolumeError, at};
use crate::volumes::images;
use crate::volumes::layer::{Home, LayerFormat};
use aleph_types::MiB;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How full a pool may be, in percent, where something new is made in it.
const FULL: f64 = 95.0;
/// How many volumes one program is told of.
const AT_A_TIME: usize = 64;

/// Thin volumes of a pool of LVM.
#[derive(Debug)]
pub struct LvmThin {
    lvm: Lvm,
    pool: ThinPool,
    store: String,
    /// Where the nodes are.
    folder: PathBuf,
    /// A disk has a multiple of it.
    extent: MiB,
    /// What each volume takes, by name, as of the last look.
    stored: Mutex<BTreeMap<String, u64>>,
    /// Held while nodes are looked at and made.
    nodes: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Result<T> = std::result::Result<T, VolumeError>;

impl LvmThin {
    /// That of a pool, for the records that call themselves so.
    ///
    /// # Errors
    /// Where there is no such pool, or it may not be used.
    pub(in crate::volumes) fn open(pool: &ThinPool, store: &str) -> Result<Self> {
        let lvm = Lvm::new();
        let fault = |why: &'static str| VolumeError::Pool {
            pool: pool.to_string(),
            why,
        };
        let fields = "lv_name,segtype,zero,vg_extent_size";
        let rows = lvm.report(fields, &[&pool.to_string()])?;
        let row = rows.first().ok_or_else(|| fault("is not there"))?;
        if row["segtype"] != "thin-pool" {
            return Err(fault("is no thin pool"));
        }
        if row["zero"] != "zero" {
            return Err(fault(
                "shows what others wrote: switch zeroing on (lvchange --zero y)",
            ));
        }
        let extent = number(row, "vg_extent_size").unwrap_or(0.0) / f64::from(1 << 20);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let extent = MiB((extent as u32).max(1));
        let folder = PathBuf::from(format!("/dev/aleph_{store}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(at("make", &folder))?,
        }
        take_back(&folder)?;
        Ok(Self {
            lvm,
            pool: pool.clone(),
            store: store.to_owned(),
            folder,
            extent,
            stored: Mutex::default(),
            nodes: Mutex::default(),
        })
    }

    /// A layer's node.
    pub(in crate::volumes) fn path(&self, layer: i64) -> PathBuf {
        let name = format!("aleph_{}_{layer:08}", self.store);
        self.folder.join(name)
    }

    /// The volumes of ours, by the paths of their nodes.
    pub(in crate::volumes) fn all(&self) -> Result<Vec<PathBuf>> {
        self.look()?;
        let names = lock(&self.stored);
        Ok(names.keys().map(|name| self.folder.join(name)).collect())
    }

    fn tag(&self) -> String {
        format!("aleph_{}", self.store)
    }

    fn named(&self, path: &Path) -> String {
        format!("{}/{}", self.pool.group, name_of(path))
    }

    /// Says so where nothing may be made in the pool.
    fn check_pool(&self) -> Result<()> {
        let fields = "data_percent,metadata_percent";
        let rows = self.lvm.report(fields, &[&self.pool.to_string()])?;
        let used = |field| {
            rows.first()
                .and_then(|row| number(row, field))
                .unwrap_or(0.0)
        };
        let (data, metadata) = (used("data_percent"), used("metadata_percent"));
        if data < FULL && metadata < FULL {
            return Ok(());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let whole = |percent: f64| percent.clamp(0.0, 100.0) as u8;
        Err(VolumeError::PoolFull {
            pool: self.pool.to_string(),
            data: whole(data),
            metadata: whole(metadata),
        })
    }

    /// How large a volume is that holds such a layer, in bytes.
    fn room_for(&self, format: LayerFormat, size: MiB) -> u64 {
        let beside = match format {
            LayerFormat::Raw => 0,
            // Tables, what a VMM that was killed leaked, and LUKS's header.
            LayerFormat::Qcow2 => size.bytes() / 128 + (16 << 20),
        };
        (size.bytes() + beside).next_multiple_of(self.extent.bytes())
    }

    /// Whether a volume is as large as such a layer needs it.
    fn has_room(&self, format: LayerFormat, path: &Path, size: MiB) -> Result<bool> {
        let device = self.open(path, false)?;
        let length = length_of(&device).map_err(at("look at", path))?;
        Ok(length >= self.room_for(format, size))
    }

    /// The node of a volume that is active, made anew where the device is another one.
    fn ensure_node(&self, path: &Path) -> Result<()> {
        let _held = lock(&self.nodes);
        let found = active(&self.pool.group, name_of(path)).map_err(at("look for", path))?;
        let missing = || at("open", path)(io::ErrorKind::NotFound.into());
        let device = found.ok_or_else(missing)?.device;
        match fs::metadata(path) {
            Ok(meta) if meta.rdev() == device => return Ok(()),
            // It was a device before, and nobody had it open when it was none any more.
            Ok(_) => fs::remove_file(path).map_err(at("remove", path))?,
            Err(_) => {}
        }
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, path, FileType::BlockDevice, mode, device)
            .map_err(io::Error::from)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
            .map_err(at("make", path))
    }

    /// Makes a volume with our tags, which is a device at once.
    fn lvcreate(&self, arguments: &[&str], path: &Path) -> Result<()> {
        let tag = self.tag();
        let made = [
            "--setactivationskip",
            "n",
            "--addtag",
            "aleph",
            "--addtag",
            &tag,
            "--name",
            name_of(path),
        ];
        self.lvm.run(
            "make a thin volume",
            "lvcreate",
            &[&made, arguments].concat(),
        )
    }
}

/// The name of a volume.
fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

impl Backend for LvmThin {
    fn name(&self) -> &'static str {
        "lvm-thin"
    }

    fn branch(&self, _depth: usize) -> Branch {
        Branch::Copy
    }

    fn home(&self) -> Home {
        Home::Pool
    }

    fn whole(&self, size: MiB) -> MiB {
        MiB(size.0.next_multiple_of(self.extent.0))
    }

    fn place(&self, path: &Path, format: LayerFormat, size: MiB) -> Result<File> {
        self.check_pool()?;
        let bytes = format!("{}b", self.room_for(format, size));
        let pool = self.pool.to_string();
        self.lvcreate(&["--virtualsize", &bytes, "--thinpool", &pool], path)?;
        self.open(path, true)
    }

    fn copy(&self, original: &OpenLayer, path: &Path) -> Result<Option<File>> {
        if original.home != Home::Pool {
            return Ok(None);
        }
        self.check_pool()?;
        // What was written and is not on the device yet is not in its snapshot.
        let synced = original.file.sync_all();
        synced.map_err(at("write", &original.path))?;
        let original = self.named(&original.path);
        self.lvcreate(&["--snapshot", "--permission", "rw", &original], path)?;
        self.open(path, true).map(Some)
    }

    fn check_room(&self, format: LayerFormat, path: &Path, size: MiB) -> Result<()> {
        match self.has_room(format, path, size)? {
            true => Ok(()),
            false => self.check_pool(),
        }
    }

    fn make_room(&self, format: LayerFormat, path: &Path, size: MiB) -> Result<()> {
        if self.has_room(format, path, size)? {
            return Ok(());
        }
        self.check_pool()?;
        let wanted = self.room_for(format, size);
        let bytes = format!("{wanted}b");
        let arguments = ["--size", &bytes, &self.named(path)];
        self.lvm
            .run("make a thin volume larger", "lvextend", &arguments)
    }

    fn grow(&self, top: &OpenLayer, path: &Path, size: MiB) -> Result<()> {
        self.make_room(top.format, path, size)?;
        match top.format {
            LayerFormat::Raw => Ok(()),
            LayerFormat::Qcow2 => images::resize(top, size),
        }
    }

    fn open(&self, path: &Path, write: bool) -> Result<File> {
        self.gather(&[path.to_owned()])?;
        self.ensure_node(path)?;
        let mut options = File::options();
        let file = options.read(true).write(write).open(path);
        file.map_err(at("open", path))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        // None that fits is none to be removed.
        let named = format!("lv_name={}", name_of(path));
        let arguments = ["--select", &named, &self.pool.group];
        self.lvm
            .run("remove a thin volume", "lvremove", &arguments)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(at("remove", path)),
        }
    }

    fn stored(&self, path: &Path) -> Result<u64> {
        let found = lock(&self.stored).get(name_of(path)).copied();
        Ok(found.unwrap_or(0))
    }

    fn look(&self) -> Result<()> {
        let tagged = format!("tags={}", self.tag());
        let fields = "lv_name,lv_size,data_percent";
        let rows = self
            .lvm
            .report(fields, &["--select", &tagged, &self.pool.group])?;
        let taken = rows.iter().filter_map(|row| {
            let name = row["lv_name"].as_str()?.to_owned();
            // One that is no device now is not looked into.
            let percent = number(row, "data_percent").unwrap_or(0.0);
            let bytes = number(row, "lv_size")? * percent / 100.0;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Some((name, bytes as u64))
        });
        *lock(&self.stored) = taken.collect();
        Ok(())
    }

    fn freeze(&self, path: &Path) {
        let arguments = ["--permission", "r", &self.named(path)];
        let frozen = self
            .lvm
            .run("make a thin volume read-only", "lvchange", &arguments);
        if let Err(error) = frozen {
            let error = crate::vm::chain(&error);
            tracing::warn!(error, "a layer that nobody writes can be written");
        }
    }

    fn gather(&self, paths: &[PathBuf]) -> Result<()> {
        let is_gone =
            |path: &&PathBuf| !matches!(active(&self.pool.group, name_of(path)), Ok(Some(_)));
        let names: Vec<String> = paths
            .iter()
            .filter(is_gone)
            .map(|path| self.named(path))
            .collect();
        for some in names.chunks(AT_A_TIME) {
            let mut arguments = vec!["--activate", "y"];
            arguments.extend(some.iter().map(String::as_str));
            self.lvm
                .run("activate thin volumes", "lvchange", &arguments)?;
        }
        Ok(())
    }
}
