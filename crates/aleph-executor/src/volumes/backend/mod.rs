//! How the bytes of volumes are kept: one trait, and those that have it.
//!
//! A volume is a chain of layers. The top is written; those below never change again. [`Backend::branch`]
//! says, without doing anything, how a new top begins over a chain, and [`Backend::make`] makes it.
//!
//! | back end | a layer | a new top over a chain | cost |
//! | --- | --- | --- | --- |
//! | [`Files`] | a file | a file that shares its blocks with the old one, where the filesystem can (`FICLONE`), else a copy | by the filesystem |
//! | [`Overlays`] | a file | a qcow2 file of what is different | none: some 200 KiB |
//! | [`LvmThin`] | a thin logical volume | a thin snapshot | none, however much there is |
//!
//! A chain ends in a raw layer, or in an encrypted one, and all above it are qcow2. An overlay's header
//! names no other file: which layer is below it is in the records, and tools are told each layer. So a VMM
//! that was broken into cannot lead anybody elsewhere by what it writes into its own top.
//!
//! A layer stays where it was made ([`Home`]): a node that is given another back end goes on with what it
//! has, and makes new layers the new way.
//!
//! # Encrypted layers
//! They are qcow2 with LUKS within ([`images::create`]), the lowest one and those of [`Files`] and
//! [`LvmThin`], too. QEMU's `luks` over a raw file would do for the guest, but what was never written reads
//! as noise there: no hole would be zeros, so each new disk, and what a disk grows by, would have to be
//! written in full, and nothing that a guest discards would ever be had back. qcow2 knows what was never
//! written. What is in the clear is which clusters there are.

mod files;
mod lvm;
mod lvm_thin;
mod overlays;

pub use files::Files;
pub use lvm_thin::LvmThin;
pub use overlays::Overlays;

pub use lvm::ThinPool;

use super::error::{VolumeError, at};
use super::images;
use super::keys::Passphrase;
use super::layer::{Home, LayerFormat};
use super::qcow2;
use crate::place::copy_sparse;
use aleph_types::MiB;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use std::fmt::Debug;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How many layers a chain has at most: each costs the VMM a file and a look-up.
pub const MAX_DEPTH: usize = 16;

/// How a new top begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// As an overlay over the chain, which it needs from then on.
    Overlay,
    /// As a copy of the chain, without a parent.
    Copy,
}

/// An opened layer.
#[derive(Debug)]
pub struct OpenLayer {
    /// Its file, or its block device.
    pub file: File,
    /// How it is written down.
    pub format: LayerFormat,
    /// What it is encrypted with.
    pub key: Option<Passphrase>,
    /// Whether it is encrypted: who only looks at a layer has no key.
    pub(super) is_encrypted: bool,
    pub(super) home: Home,
    pub(super) path: PathBuf,
    /// What names the file as it is now, where it is one.
    pub(super) name: Option<String>,
}

impl OpenLayer {
    /// What its guest sees as the disk's size, in bytes. Needs no key.
    pub(super) fn size(&self) -> Result<u64, VolumeError> {
        match self.format {
            LayerFormat::Raw => length_of(&self.file).map_err(at("look at", &self.path)),
            LayerFormat::Qcow2 => Ok(self.header()?.size),
        }
    }

    /// The header of an image: its VMM, which writes it, may have been broken into.
    pub(super) fn header(&self) -> Result<qcow2::Header, VolumeError> {
        let head = head_of(&self.file, qcow2::HEAD);
        let (head, length) = head.map_err(at("read", &self.path))?;
        let header = qcow2::Header::parse_layer(&head, length, self.is_encrypted)?;
        Ok(header)
    }
}

/// A layer that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewTop<'a> {
    /// Where.
    pub path: &'a Path,
    /// The disk's size.
    pub size: MiB,
    /// What it is encrypted with.
    pub key: Option<&'a Passphrase>,
}

impl NewTop<'_> {
    fn opened(&self, file: File, format: LayerFormat, home: Home) -> OpenLayer {
        OpenLayer {
            file,
            format,
            key: self.key.cloned(),
            is_encrypted: self.key.is_some(),
            home,
            path: self.path.to_owned(),
            name: None,
        }
    }
}

/// A way to keep volumes. What is not said is as files have it.
pub trait Backend: Debug + Send + Sync {
    /// What its configuration calls it.
    fn name(&self) -> &'static str;

    /// How a new top begins over a chain of `depth` layers. Pure.
    fn branch(&self, depth: usize) -> Branch;

    /// Where it keeps layers.
    fn home(&self) -> Home {
        Home::Folder
    }

    /// The size that a disk gets for one that is asked for. Pure.
    fn whole(&self, size: MiB) -> MiB {
        size
    }

    /// Makes room for a layer: of its size where it is raw.
    ///
    /// # Errors
    /// Where there is none, or it is there already.
    fn place(&self, path: &Path, format: LayerFormat, size: MiB) -> Result<File, VolumeError> {
        let file = new_file(path)?;
        if format == LayerFormat::Raw {
            file.set_len(size.bytes()).map_err(at("size", path))?;
        }
        Ok(file)
    }

    /// Makes a layer with the bytes of another one, where that is cheaper than to read them.
    ///
    /// # Errors
    /// Where there is no room.
    fn copy(&self, original: &OpenLayer, path: &Path) -> Result<Option<File>, VolumeError> {
        if original.home != Home::Folder {
            return Ok(None);
        }
        let file = copy_sparse(&original.file, path).map_err(at("copy a disk to", path))?;
        file.set_permissions(Permissions::from_mode(0o644))
            .map_err(at("open", path))?;
        Ok(Some(file))
    }

    /// Says so where [`Backend::make_room`] would find none.
    ///
    /// # Errors
    /// As that.
    fn check_room(
        &self,
        _format: LayerFormat,
        _path: &Path,
        _size: MiB,
    ) -> Result<(), VolumeError> {
        Ok(())
    }

    /// Makes place for a disk of this size where a layer is, whose disk stays as it is: a VMM that has it
    /// open makes that larger itself. A file needs no place.
    ///
    /// # Errors
    /// Where there is no room, or a program fails.
    fn make_room(&self, _format: LayerFormat, _path: &Path, _size: MiB) -> Result<(), VolumeError> {
        Ok(())
    }

    /// Makes a top larger. It is open for writing.
    ///
    /// # Errors
    /// Where there is no room, or a program fails.
    fn grow(&self, top: &OpenLayer, path: &Path, size: MiB) -> Result<(), VolumeError> {
        match top.format {
            LayerFormat::Raw => top.file.set_len(size.bytes()).map_err(at("size", path)),
            LayerFormat::Qcow2 => images::resize(top, size),
        }
    }

    /// Opens a layer.
    ///
    /// # Errors
    /// Where it is not there.
    fn open(&self, path: &Path, write: bool) -> Result<File, VolumeError> {
        let mut options = File::options();
        let file = options.read(true).write(write).open(path);
        file.map_err(at("open", path))
    }

    /// Removes a layer. One that is not there is none to be removed.
    ///
    /// # Errors
    /// Where it stays.
    fn remove(&self, path: &Path) -> Result<(), VolumeError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(at("remove", path)),
        }
    }

    /// Bytes that a layer takes, as of the last [`Backend::look`].
    ///
    /// # Errors
    /// Where it cannot be looked at.
    fn stored(&self, path: &Path) -> Result<u64, VolumeError> {
        let meta = fs::metadata(path).map_err(at("look at", path))?;
        Ok(meta.blocks() * 512)
    }

    /// Looks at what layers take, where that is more than a look at each.
    ///
    /// # Errors
    /// Where they cannot be looked at.
    fn look(&self) -> Result<(), VolumeError> {
        Ok(())
    }

    /// Nobody writes to a layer any more.
    fn freeze(&self, _path: &Path) {}

    /// Has layers that are about to be opened at hand.
    ///
    /// # Errors
    /// Where they cannot be had.
    fn gather(&self, _paths: &[PathBuf]) -> Result<(), VolumeError> {
        Ok(())
    }

    /// Makes an empty disk.
    ///
    /// # Errors
    /// Where there is no room.
    fn create(&self, new: NewTop<'_>) -> Result<File, VolumeError> {
        let format = LayerFormat::of_lowest(new.key.is_some());
        let file = self.place(new.path, format, new.size)?;
        if let Some(key) = new.key {
            images::create(&file, new.size, Some(key))?;
        }
        Ok(file)
    }

    /// Makes a new top over a chain, of at least its size, as [`Backend::branch`] says.
    ///
    /// # Errors
    /// Where there is no room, or a program fails.
    fn make(
        &self,
        chain: &[OpenLayer],
        branch: Branch,
        new: NewTop<'_>,
    ) -> Result<File, VolumeError> {
        if branch == Branch::Overlay {
            let file = self.place(new.path, LayerFormat::Qcow2, new.size)?;
            images::create(&file, new.size, new.key)?;
            return Ok(file);
        }
        let format = LayerFormat::of_lowest(new.key.is_some());
        // With the same key, the bytes are the same.
        if let [only] = chain
            && (only.format, only.key.as_ref()) == (format, new.key)
            && let Some(file) = self.copy(only, new.path)?
        {
            let top = new.opened(file, format, self.home());
            // What it is a copy of may be smaller.
            if top.size()? != new.size.bytes() {
                self.grow(&top, new.path, new.size)?;
            }
            return Ok(top.file);
        }
        let file = self.create(new)?;
        images::convert(
            chain,
            images::Target {
                file: &file,
                key: new.key,
            },
            new.size,
        )?;
        Ok(file)
    }
}

/// Whether files in a folder can share their blocks.
pub(super) fn shares_blocks(folder: &Path) -> io::Result<bool> {
    let (one, other) = (scratch_file(folder)?, scratch_file(folder)?);
    one.write_all_at(&[1; 4096], 0)?;
    Ok(rustix::fs::ioctl_ficlone(&other, &one).is_ok())
}

/// A file without a name, which goes with its last descriptor.
pub(super) fn scratch_file(folder: &Path) -> io::Result<File> {
    let file = tempfile_in(folder)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

fn tempfile_in(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => Ok(file.into()),
        // A filesystem that has no such files: the sweep finds it where we die in between.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(format!("{:x}", aleph_types::JobId::random().bits()));
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// A layer's file. Its folder is closed, so whoever has a descriptor may open it again to read, as
/// programs under users of their own do.
fn new_file(path: &Path) -> Result<File, VolumeError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.map_err(at("make", path))?;
    file.set_permissions(Permissions::from_mode(0o644))
        .map_err(at("open", path))?;
    Ok(file)
}

/// Whether it is a block device.
pub(super) fn is_device(file: &File) -> io::Result<bool> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::BlockDevice)
}

/// How many bytes there are. What a device has is where its end is: nobody else moves in it then.
pub(super) fn length_of(file: &File) -> io::Result<u64> {
    if !is_device(file)? {
        return Ok(file.metadata()?.len());
    }
    let end = rustix::fs::seek(file, SeekFrom::End(0))?;
    rustix::fs::seek(file, SeekFrom::Start(0))?;
    Ok(end)
}

/// The first bytes of a file, and its length.
pub(super) fn head_of(file: &File, most: usize) -> io::Result<(Vec<u8>, u64)> {
    let length = length_of(file)?;
    let mut head = vec![0; usize::try_from(length).unwrap_or(most).min(most)];
    file.read_exact_at(&mut head, 0)?;
    Ok((head, length))
}

/// Takes back what a crash left with the user of a program.
pub(super) fn take_back(folder: &Path) -> Result<(), VolumeError> {
    let us = rustix::process::geteuid();
    let entries = fs::read_dir(folder).map_err(at("read", folder))?;
    for entry in entries.flatten() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_have_a_bound() {
        assert_eq!(Files.branch(1), Branch::Copy);
        assert_eq!(Overlays.branch(1), Branch::Overlay);
        assert_eq!(Overlays.branch(MAX_DEPTH - 1), Branch::Overlay);
        assert_eq!(Overlays.branch(MAX_DEPTH), Branch::Copy);
    }
}
