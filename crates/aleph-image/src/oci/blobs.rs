//! Layers as they came from registries, by digest, shared by all images of a store.
//!
//! A blob is a cache: an image needs none once it is written, and the next image with the same
//! layer is spared the download. So nothing here is synced to disk, a blob is verified again
//! whenever it is used, and it may be removed at any time by whoever gets its lock.
//!
//! ```text
//! images/blobs/sha256-<64 hex>         complete when it got that name
//! images/blobs/sha256-<64 hex>.part    what has arrived; locked while somebody adds to it
//! images/blobs/sha256-<64 hex>.lock    of an image that is being pulled, by its identity
//! ```

use crate::digest::Digest;
use crate::disk::{DiskError, Doing};
use crate::image::{folder_name, is_at};
use crate::lock;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const PART: &str = ".part";
const LOCK: &str = ".lock";

/// The blobs of a store.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
}

/// A blob that is being downloaded, by us alone; what is there stays when this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    place: PathBuf,
    file: File,
}

/// What may be removed, and was unless it was only asked for.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    pub(crate) blobs: Vec<Digest>,
    pub(crate) parts: Vec<Digest>,
    /// Bytes of the files.
    pub(crate) bytes: u64,
}

impl Blobs {
    /// Those of the store in `images`.
    pub(crate) fn of(images: &Path) -> Self {
        Self {
            dir: images.join("blobs"),
        }
    }

    fn ensure_dir(&self) -> Result<(), DiskError> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other.doing("create", &self.dir),
        }
    }

    fn path(&self, digest: &Digest, ending: &str) -> PathBuf {
        self.dir.join(folder_name(digest) + ending)
    }

    /// The complete blob, if it is here; its content may have been damaged since.
    pub(crate) fn open(&self, digest: &Digest) -> Result<Option<File>, DiskError> {
        let path = self.path(digest, "");
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::new("open", &path, error)),
        }
    }

    /// Takes a blob's download for us; `None` while somebody else has it.
    pub(crate) fn try_part(&self, digest: &Digest) -> Result<Option<Part>, DiskError> {
        self.ensure_dir()?;
        let path = self.path(digest, PART);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .doing("open", &path)?;
        // Whoever had it may have finished or removed it between the two.
        let ours = lock::try_exclusive(&file, &path)? && is_at(&file, &path);
        Ok(ours.then(|| Part {
            place: self.path(digest, ""),
            path,
            file,
        }))
    }

    /// Takes the pull of the image with that identity for us; `None` while somebody else pulls
    /// it. The lock ends with the file.
    pub(crate) fn try_pull(&self, image: &Digest) -> Result<Option<PullLock>, DiskError> {
        self.ensure_dir()?;
        let path = self.path(image, LOCK);
        let file = lock::open(&path)?;
        let ours = lock::try_exclusive(&file, &path)? && is_at(&file, &path);
        // Lazily: what is dropped removes the file.
        Ok(ours.then(|| PullLock { path, _file: file }))
    }

    /// Removes a blob, for one because it is damaged.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), DiskError> {
        remove_file(&self.path(digest, ""))
    }

    /// Removes all blobs but `needed`, and all parts, that nobody has a lock on.
    pub(crate) fn prune(
        &self,
        needed: &BTreeSet<Digest>,
        dry_run: bool,
    ) -> Result<Freed, DiskError> {
        let mut freed = Freed::default();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(freed),
            other => other.doing("list", &self.dir)?,
        };
        for entry in entries {
            let path = entry.doing("list", &self.dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.and_then(|name| name.strip_prefix("sha256-")) else {
                continue;
            };
            let (hex, ending) = name.split_at(name.find('.').unwrap_or(name.len()));
            let Some(digest) = Digest::from_hex(hex) else {
                continue;
            };
            if ending.is_empty() && needed.contains(&digest) {
                continue;
            }
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if !lock::try_exclusive(&file, &path)? || !is_at(&file, &path) {
                continue;
            }
            let bytes = file.metadata().doing("look at", &path)?.len();
            if !dry_run {
                remove_file(&path)?;
            }
            freed.bytes += bytes;
            match ending {
                "" => freed.blobs.push(digest),
                PART => freed.parts.push(digest),
                _ => {}
            }
        }
        freed.blobs.sort();
        freed.parts.sort();
        Ok(freed)
    }
}

/// Says that an image is being pulled, for as long as it lives.
#[derive(Debug)]
pub(crate) struct PullLock {
    path: PathBuf,
    _file: File,
}

impl Drop for PullLock {
    fn drop(&mut self) {
        // Under the lock: whoever opened it meanwhile sees that it has no path any more.
        let _ = fs::remove_file(&self.path);
    }
}

impl Part {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A second way to the same bytes, for whoever reads them; the lock is not its.
    pub(crate) fn reader(&self) -> Result<File, DiskError> {
        File::open(&self.path).doing("open", &self.path)
    }

    /// How much has arrived.
    pub(crate) fn size(&self) -> Result<u64, DiskError> {
        let metadata = self.file.metadata();
        metadata.map(|m| m.len()).doing("look at", &self.path)
    }

    /// All of it is there and right.
    pub(crate) fn complete(self) -> Result<(), DiskError> {
        fs::rename(&self.path, &self.place).doing("move a layer to", &self.place)
    }

    /// What is there is of no use.
    pub(crate) fn discard(self) -> Result<(), DiskError> {
        remove_file(&self.path)
    }
}

fn remove_file(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.doing("remove", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_part_has_one_owner_and_what_it_holds_stays() {
        let images = tempfile::tempdir().unwrap();
        let blobs = Blobs::of(images.path());
        let digest = Digest::of(b"x");
        let part = blobs.try_part(&digest).unwrap().unwrap();
        assert!(blobs.try_part(&digest).unwrap().is_none());
        part.file().write_all(b"half").unwrap();
        drop(part);
        let part = blobs.try_part(&digest).unwrap().unwrap();
        assert_eq!(part.size().unwrap(), 4);
        assert!(blobs.open(&digest).unwrap().is_none());
        part.complete().unwrap();
        assert!(blobs.open(&digest).unwrap().is_some());
        assert_eq!(blobs.try_part(&digest).unwrap().unwrap().size().unwrap(), 0);
    }

    #[test]
    fn a_prune_spares_what_is_needed_and_what_is_locked() {
        let images = tempfile::tempdir().unwrap();
        let blobs = Blobs::of(images.path());
        assert_eq!(blobs.prune(&BTreeSet::new(), false).unwrap().bytes, 0);
        let [needed, loose, begun, left] = [1, 2, 3, 4].map(|n| Digest::of(&[n]));
        for digest in [&needed, &loose] {
            let part = blobs.try_part(digest).unwrap().unwrap();
            part.file().write_all(&[1; 5000]).unwrap();
            part.complete().unwrap();
        }
        let owned = blobs.try_part(&begun).unwrap().unwrap();
        drop(blobs.try_part(&left).unwrap().unwrap());
        let pull = blobs.try_pull(&needed).unwrap().unwrap();
        assert!(blobs.try_pull(&needed).unwrap().is_none());
        let needed = BTreeSet::from([needed]);
        let mut found = Vec::new();
        for dry_run in [true, false] {
            let freed = blobs.prune(&needed, dry_run).unwrap();
            found.push((freed.blobs, freed.parts, freed.bytes));
        }
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0].0, [loose]);
        assert_eq!(found[0].1, [left]);
        assert!(found[0].2 >= 5000);
        assert_eq!(blobs.prune(&needed, false).unwrap().bytes, 0);
        assert_eq!(owned.size().unwrap(), 0);
        drop(pull);
        assert!(blobs.try_pull(&loose).unwrap().is_some());
    }
}
