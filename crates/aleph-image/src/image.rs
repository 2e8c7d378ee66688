//! One image in the store: its record, and holding it.

use crate::digest::Digest;
use crate::disk::Doing;
use crate::error::ImageError;
use crate::filesystem::Filesystem;
use crate::lock;
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The latest version of a record that this program knows.
pub(crate) const RECORD_VERSION: u32 = PULLED_VERSION;
/// The version of the records of images that were made here.
pub(crate) const MADE_VERSION: u32 = 1;
/// The version of the records of pulled images: their digest is not of the file.
pub(crate) const PULLED_VERSION: u32 = 2;
/// A removal takes moments.
const HOLD_LIMIT: Duration = Duration::from_secs(2);
pub(crate) const RECORD: &str = "image.json";

/// What is known of an image: the content of its `image.json`.
///
/// Fields that are not known are ignored when a record is read, so that an older program can
/// use images of a newer one that only adds to them. What an older one must not ignore raises
/// [`version`](Self::version), and then it refuses the record as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The version of this form: 1, or 2 for an image from a registry.
    pub version: u32,
    /// What the image is known by: the SHA-256 of the filesystem image, or for an image from a
    /// registry of its OCI configuration, which covers the content of its layers.
    pub digest: Digest,
    /// Its format.
    pub filesystem: Filesystem,
    /// Its size in bytes.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What it was made of, the first time that this digest came about.
    pub source: Source,
    /// What to run in it where a job does not say.
    #[serde(default)]
    pub config: Config,
}

/// What an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A recipe of this crate.
    Recipe(Recipe),
    /// A directory of the host.
    Directory(PathBuf),
    /// A tar archive.
    Archive(PathBuf),
    /// An image in a registry.
    Registry {
        /// The familiar reference that it was first pulled by.
        reference: String,
        /// The digest of its manifest, which `NAME@DIGEST` means.
        manifest: Digest,
        /// The digests of its layers as they are in the registry, the lowest first.
        layers: Vec<Digest>,
        /// Stands for the content of its layers and their order: images with an equal chain
        /// have an equal filesystem.
        chain: Digest,
    },
}

/// What to run in an image where a job does not say; OCI's names and meanings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The beginning of the command, before a job's own.
    pub entrypoint: Vec<String>,
    /// The command, or the end of it, where a job gives none.
    pub cmd: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The working directory; `/` when absent.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// The signal that asks the command to end: `SIGTERM` when absent. A name or a number, as
    /// the image has it.
    pub stop_signal: Option<String>,
    /// Notes of whoever made the image.
    pub labels: BTreeMap<String, String>,
    /// Ports that the command may listen on, such as `80/tcp`; sorted.
    pub exposed_ports: Vec<String>,
}

/// An image in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    dir: PathBuf,
    record: ImageRecord,
    names: Vec<String>,
}

/// An image in use: while this lives, the image cannot be removed.
///
/// The lock belongs to the open file. A process that is given the file keeps the image held
/// for as long as it keeps the file, even when this process ends.
#[derive(Debug)]
pub struct Held {
    image: Image,
    file: File,
}

impl Image {
    /// Reads the object in `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(RECORD);
        let text = fs::read(&path).doing("read", &path)?;
        let bad = |source| ImageError::BadRecord {
            path: path.clone(),
            source,
        };
        let Version { version } = serde_json::from_slice(&text).map_err(bad)?;
        if version > RECORD_VERSION {
            return Err(ImageError::Newer { path, version });
        }
        let record: ImageRecord = serde_json::from_slice(&text).map_err(bad)?;
        if dir
            .file_name()
            .is_none_or(|name| *name != *folder_name(&record.digest))
        {
            return Err(ImageError::Damaged {
                path: dir.to_owned(),
                why: format!("its record is of {}", record.digest),
            });
        }
        Ok(Self {
            dir: dir.to_owned(),
            record,
            names: Vec::new(),
        })
    }

    pub(crate) fn named(self, names: Vec<String>) -> Self {
        Self { names, ..self }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// All that is recorded of it.
    #[must_use]
    pub fn record(&self) -> &ImageRecord {
        &self.record
    }

    /// What it is known by: see [`ImageRecord::digest`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.record.digest
    }

    /// The format of the filesystem image.
    #[must_use]
    pub fn filesystem(&self) -> Filesystem {
        self.record.filesystem
    }

    /// The names that it has in its store, sorted.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The filesystem image: a read-only file.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join(format!("rootfs.{}", self.record.filesystem))
    }

    /// Opens it and keeps it from being removed.
    ///
    /// # Errors
    /// When it was removed meanwhile, or [`check`](Self::check) finds it damaged.
    pub fn hold(&self) -> Result<Held, ImageError> {
        let path = self.rootfs();
        let gone = || ImageError::NotFound {
            reference: self.digest().to_string(),
            near: Vec::new(),
        };
        let file = File::open(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                gone()
            } else {
                crate::disk::DiskError::new("open", &path, error).into()
            }
        })?;
        // Whoever removes it has the exclusive lock until it has no path any more, and whoever
        // only looks whether it is held has that for a moment.
        let end = Instant::now() + HOLD_LIMIT;
        while !lock::try_shared(&file, &path)? {
            if !is_at(&file, &path) || Instant::now() >= end {
                return Err(gone());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if !is_at(&file, &path) {
            return Err(gone());
        }
        self.check_file(&file, &path)?;
        Ok(Held {
            image: self.clone(),
            file,
        })
    }

    /// Checks quickly that the file is what its record says: its size and its magic number.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when it is not.
    pub fn check(&self) -> Result<(), ImageError> {
        let path = self.rootfs();
        let file = File::open(&path).doing("open", &path)?;
        self.check_file(&file, &path)
    }

    fn check_file(&self, file: &File, path: &Path) -> Result<(), ImageError> {
        let damaged = |why| {
            Err(ImageError::Damaged {
                path: path.to_owned(),
                why,
            })
        };
        let size = file.metadata().doing("look at", path)?.len();
        if size != self.record.size {
            return damaged(format!(
                "it has {size} bytes instead of {}",
                self.record.size
            ));
        }
        if !self.record.filesystem.is_in(file).doing("read", path)? {
            return damaged(format!(
                "it is not a filesystem in the format {}",
                self.filesystem()
            ));
        }
        Ok(())
    }
}

impl Held {
    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The open file alone, to be handed to a VMM; the image stays held while it is open.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }

    /// The filesystem image, open for reading, with the lock on it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Whether `path` still leads to `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The name of the folder of the object with that digest.
pub(crate) fn folder_name(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// The only field that every version of a record has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ImageRecord {
        ImageRecord {
            version: MADE_VERSION,
            digest: Digest::of(b"x"),
            filesystem: Filesystem::Erofs,
            size: 4096,
            created: 1,
            source: Source::Recipe(Recipe::Busybox),
            config: Config::default(),
        }
    }

    fn stored(change: impl FnOnce(&mut serde_json::Value)) -> Result<Image, ImageError> {
        let store = tempfile::tempdir().unwrap();
        let dir = store.path().join(folder_name(&record().digest));
        fs::create_dir(&dir).unwrap();
        let mut value = serde_json::to_value(record()).unwrap();
        change(&mut value);
        fs::write(dir.join(RECORD), value.to_string()).unwrap();
        Image::load(&dir)
    }

    #[test]
    fn a_record_is_read_back_and_what_later_versions_add_is_ignored() {
        assert_eq!(*stored(|_| {}).unwrap().record(), record());
        assert_eq!(
            *stored(|v| v["added"] = true.into()).unwrap().record(),
            record()
        );
        assert!(stored(|v| drop(v.as_object_mut().unwrap().remove("config"))).is_ok());
    }

    #[test]
    fn a_later_version_and_another_digest_are_refused() {
        let later = stored(|v| *v = serde_json::json!({"version": 3, "all": "new"}));
        assert!(matches!(later, Err(ImageError::Newer { version: 3, .. })));
        let other = stored(|v| v["digest"] = Digest::of(b"y").to_string().into());
        assert!(matches!(other, Err(ImageError::Damaged { .. })));
        assert!(matches!(
            stored(|v| v["size"] = "big".into()),
            Err(ImageError::BadRecord { .. })
        ));
    }
}
