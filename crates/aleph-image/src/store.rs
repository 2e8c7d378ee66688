//! Images under their digests, and the names that lead to them.

use crate::digest::Digest;
use crate::disk::{DiskError, Doing, sync_dir};
use crate::error::ImageError;
use crate::filesystem::FORMAT;
use crate::image::{Image, ImageRecord, MADE_VERSION, RECORD, Source, folder_name, is_at};
use crate::lock;
use crate::name::{Reference, check_name, familiar, file_of, name_of, near, with_prefix};
use crate::oci::Blobs;
use crate::progress::Progress;
use crate::recipe::{self, Recipe, Tree};
use crate::staging::{self, Staging};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The images of a node.
///
/// Any number of processes and threads may use one store at the same time.
#[derive(Debug, Clone)]
pub struct Store {
    images: PathBuf,
    names: PathBuf,
}

/// What [`Store::remove`] removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The names that no longer lead anywhere.
    pub names: Vec<String>,
    /// The image, unless other names still lead to it.
    pub image: Option<Image>,
}

impl Store {
    /// Opens the store in `images/` of the node's state folder `dir`, creating it where it is
    /// missing, and removes what builds that died have left.
    ///
    /// # Errors
    /// When a folder cannot be created or read.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, ImageError> {
        let images = dir.as_ref().join("images");
        let names = images.join("names");
        fs::create_dir_all(&names).doing("create", &names)?;
        let images = images.canonicalize().doing("find", &images)?;
        staging::sweep(&images)?;
        Ok(Self {
            names: images.join("names"),
            images,
        })
    }

    /// Builds a recipe's image and names it like the recipe.
    ///
    /// # Errors
    /// When a program or a package cannot be had, or the disk is full; the store is as before.
    pub fn build(&self, recipe: Recipe, progress: &mut dyn Progress) -> Result<Image, ImageError> {
        let staging = Staging::create(&self.images)?;
        let tree = recipe.prepare(&staging, progress)?;
        self.publish(&staging, tree, recipe.name(), progress)
    }

    /// Makes an image of a directory or a tar archive and gives it the name `name`, which
    /// leads to it from then on even if it led to another one before.
    ///
    /// A directory's files keep modes, owners, links, extended attributes and modification
    /// times. So do an archive's; it may be compressed with gzip, xz or zstd.
    ///
    /// # Errors
    /// When `path` is neither, holds no files, or cannot be trusted; the store is as before.
    pub fn import(
        &self,
        path: &Path,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        check_name(name)?;
        let staging = Staging::create(&self.images)?;
        let tree = recipe::import(path, &staging, progress)?;
        self.publish(&staging, tree, name, progress)
    }

    /// Finds an image by its name, its digest, or 8 or more digits that begin its digest alone.
    ///
    /// # Errors
    /// When there is none, or more than one, or what is stored is damaged.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let names = self.all_names()?;
        self.resolve_among(&names, reference)
    }

    /// All images, with their names; sorted by the first of these, then by digest.
    ///
    /// Images whose records cannot be read are left out, with a warning in the log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let names = self.all_names()?;
        let mut images = Vec::new();
        for digest in self.digests()? {
            match Image::load(&self.dir_of(&digest)) {
                Ok(image) => images.push(image.named(names_of(&names, &digest))),
                Err(error) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, source, "an image is left out of the list");
                }
            }
        }
        images.sort_by_key(|image| {
            let name = image.names().first().cloned();
            (name.is_none(), name, image.digest())
        });
        Ok(images)
    }

    /// Removes a name, and its image with it unless other names lead there. By digest it
    /// removes an image that has one name or none. Layers in the store that no other image has
    /// go with it.
    ///
    /// # Errors
    /// [`ImageError::InUse`] while the image, or one with the same filesystem, is held;
    /// [`ImageError::StillNamed`] for a digest with several names.
    pub fn remove(&self, reference: &str) -> Result<Removed, ImageError> {
        let _lock = lock::folder(&self.images)?;
        let all = self.all_names()?;
        let image = match self.resolve_among(&all, reference) {
            Ok(image) => image,
            Err(error) => return self.remove_damaged(&all, reference, error),
        };
        let digest = image.digest();
        let names = image.names().to_vec();
        if names.len() > 1 {
            let meant = names
                .iter()
                .find(|name| *name == reference || Some(*name) == familiar(reference).as_ref());
            let Some(meant) = meant.cloned() else {
                return Err(ImageError::StillNamed { digest, names });
            };
            self.remove_names(std::slice::from_ref(&meant))?;
            return Ok(Removed {
                names: vec![meant],
                image: None,
            });
        }
        if !self.try_remove_image(&image)? {
            return Err(ImageError::InUse {
                reference: reference.to_owned(),
            });
        }
        self.release_layers(&image)?;
        Ok(Removed {
            names,
            image: Some(image),
        })
    }

    /// Removes an image with its names; `false` if somebody holds it. The store's lock is held.
    pub(crate) fn try_remove_image(&self, image: &Image) -> Result<bool, ImageError> {
        let rootfs = image.rootfs();
        // The lock is kept until the path is gone: nobody can take hold in between.
        let _hold = match File::open(&rootfs) {
            Ok(file) => {
                if !lock::try_exclusive(&file, &rootfs)? && is_at(&file, &rootfs) {
                    return Ok(false);
                }
                Some(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(DiskError::new("open", &rootfs, error).into()),
        };
        self.remove_names(image.names())?;
        self.remove_object(image.dir())?;
        Ok(true)
    }

    /// Whether nobody holds an image.
    pub(crate) fn is_unheld(&self, image: &Image) -> Result<bool, ImageError> {
        let rootfs = image.rootfs();
        match File::open(&rootfs) {
            Ok(file) => Ok(lock::try_exclusive(&file, &rootfs)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(DiskError::new("open", &rootfs, error).into()),
        }
    }

    /// Removes the layers of an image that was removed, but for those that others have.
    fn release_layers(&self, removed: &Image) -> Result<(), ImageError> {
        let Source::Registry { layers, .. } = &removed.record().source else {
            return Ok(());
        };
        let needed = layers_of(&self.list()?);
        let blobs = Blobs::of(&self.images);
        for layer in layers.iter().filter(|layer| !needed.contains(layer)) {
            blobs.remove(layer)?;
        }
        Ok(())
    }

    /// Removes what has a name or a place and no readable record. Nobody can hold it.
    fn remove_damaged(
        &self,
        all: &BTreeMap<String, Digest>,
        reference: &str,
        error: ImageError,
    ) -> Result<Removed, ImageError> {
        if !matches!(
            error,
            ImageError::Damaged { .. } | ImageError::BadRecord { .. }
        ) {
            return Err(error);
        }
        let digest = match Reference::parse(reference)? {
            Reference::Name(name) => lookup(all, &name),
            Reference::Prefix(prefix) => with_prefix(&prefix, &self.digests()?).first().copied(),
        };
        let Some(digest) = digest else {
            return Err(error);
        };
        let names = names_of(all, &digest);
        self.remove_names(&names)?;
        self.remove_object(&self.dir_of(&digest))?;
        Ok(Removed { names, image: None })
    }

    fn publish(
        &self,
        staging: &Staging,
        tree: Tree,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<Image, ImageError> {
        let object = staging.folder("object")?;
        let rootfs = object.join(format!("rootfs.{FORMAT}"));
        FORMAT.write(&tree.path, tree.times.into(), &rootfs, progress)?;
        let (digest, size) = Digest::of_file(&rootfs, "compute the digest", progress)?;
        let record = ImageRecord {
            version: MADE_VERSION,
            digest,
            filesystem: FORMAT,
            size,
            created: now(),
            source: tree.source,
            config: tree.config,
        };
        self.place(staging, &object, &record, name)
    }

    /// Gives a finished object its place, and the image the name `name`.
    pub(crate) fn place(
        &self,
        staging: &Staging,
        object: &Path,
        record: &ImageRecord,
        name: &str,
    ) -> Result<Image, ImageError> {
        let digest = record.digest;
        write_record(&object.join(RECORD), record)?;

        // From here to the name, nobody removes the image because it has no name yet.
        let _lock = lock::folder(&self.images)?;
        let place = folder_name(&digest);
        let is_sound =
            || Image::load(&self.dir_of(&digest)).is_ok_and(|image| image.check().is_ok());
        if !staging.commit(object, &place)? && !is_sound() {
            // What is there has the right digest for a name and is no image.
            self.remove_object(&self.dir_of(&digest))?;
            staging.commit(object, &place)?;
        }
        self.name(&digest, name)
    }

    /// Names the image with that digest, if it is here and sound.
    pub(crate) fn name_existing(
        &self,
        digest: Digest,
        name: &str,
    ) -> Result<Option<Image>, ImageError> {
        let _lock = lock::folder(&self.images)?;
        match Image::load(&self.dir_of(&digest)) {
            Ok(image) if image.check().is_ok() => self.name(&digest, name).map(Some),
            _ => Ok(None),
        }
    }

    /// The store's lock is held.
    fn name(&self, digest: &Digest, name: &str) -> Result<Image, ImageError> {
        let target = Path::new("..").join(folder_name(digest));
        staging::replace_symlink(&self.names.join(file_of(name)), &target)?;
        let names = self.all_names()?;
        Ok(Image::load(&self.dir_of(digest))?.named(names_of(&names, digest)))
    }

    fn resolve_among(
        &self,
        names: &BTreeMap<String, Digest>,
        reference: &str,
    ) -> Result<Image, ImageError> {
        let digest = match Reference::parse(reference)? {
            Reference::Name(name) => lookup(names, &name).or_else(|| self.by_manifest(&name)),
            Reference::Prefix(prefix) => {
                let found = with_prefix(&prefix, &self.digests()?);
                if found.len() > 1 {
                    return Err(ImageError::Ambiguous {
                        prefix,
                        digests: found,
                    });
                }
                found.first().copied().or_else(|| lookup(names, reference))
            }
        };
        let digest = digest.ok_or_else(|| ImageError::NotFound {
            reference: reference.to_owned(),
            near: near(reference, names.keys().cloned()),
        })?;
        let dir = self.dir_of(&digest);
        if !dir.is_dir() {
            return Err(ImageError::Damaged {
                path: dir,
                why: "a name leads to it and it is not there".into(),
            });
        }
        Ok(Image::load(&dir)?.named(names_of(names, &digest)))
    }

    /// The image that `NAME@DIGEST` means, whatever it was pulled as.
    fn by_manifest(&self, reference: &str) -> Option<Digest> {
        let wanted = reference.parse::<crate::oci::Reference>().ok()?.digest()?;
        let is_it = |image: &Image| match &image.record().source {
            Source::Registry { manifest, .. } => *manifest == wanted,
            _ => false,
        };
        let digests = self.digests().ok()?.into_iter();
        digests
            .filter_map(|digest| Image::load(&self.dir_of(&digest)).ok())
            .find(is_it)
            .map(|image| image.digest())
    }

    /// The folder of the store.
    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    fn dir_of(&self, digest: &Digest) -> PathBuf {
        self.images.join(folder_name(digest))
    }

    fn digests(&self) -> Result<Vec<Digest>, ImageError> {
        let mut digests: Vec<Digest> = entries(&self.images)?
            .iter()
            .filter_map(|name| name.strip_prefix("sha256-").and_then(Digest::from_hex))
            .collect();
        digests.sort();
        Ok(digests)
    }

    fn all_names(&self) -> Result<BTreeMap<String, Digest>, ImageError> {
        let mut names = BTreeMap::new();
        for name in entries(&self.names)? {
            let target = fs::read_link(self.names.join(&name)).ok();
            let digest = target
                .as_deref()
                .and_then(|t| t.file_name()?.to_str()?.strip_prefix("sha256-"))
                .and_then(Digest::from_hex);
            if let (Some(digest), Some(name)) = (digest, name_of(&name)) {
                names.insert(name, digest);
            }
        }
        Ok(names)
    }

    fn remove_names(&self, names: &[String]) -> Result<(), DiskError> {
        for name in names {
            let path = self.names.join(file_of(name));
            fs::remove_file(&path).doing("remove", &path)?;
        }
        sync_dir(&self.names)
    }

    /// Moves an object out of its place in one step, then removes its files.
    fn remove_object(&self, dir: &Path) -> Result<(), DiskError> {
        // No process has the number 0, and the folder has no lock: should we die here, a sweep
        // finishes the work. The store's own lock makes the name ours.
        let doomed = self.images.join(".tmp-0-removed");
        staging::remove_tree(&doomed);
        match fs::rename(dir, &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.doing("remove", dir)?,
        }
        staging::remove_tree(&doomed);
        sync_dir(&self.images)
    }
}

/// What a name leads to, or the familiar form of a reference.
fn lookup(names: &BTreeMap<String, Digest>, name: &str) -> Option<Digest> {
    let found = names.get(name).copied();
    found.or_else(|| names.get(&familiar(name)?).copied())
}

fn names_of(names: &BTreeMap<String, Digest>, digest: &Digest) -> Vec<String> {
    names
        .iter()
        .filter(|(_, other)| *other == digest)
        .map(|(name, _)| name.clone())
        .collect()
}

/// The layers that images have, as they are in registries.
pub(crate) fn layers_of(images: &[Image]) -> BTreeSet<Digest> {
    let mut all = BTreeSet::new();
    for image in images {
        if let Source::Registry { layers, .. } = &image.record().source {
            all.extend(layers);
        }
    }
    all
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn entries(dir: &Path) -> Result<Vec<String>, DiskError> {
    fs::read_dir(dir)
        .doing("list", dir)?
        .map(|entry| {
            Ok(entry
                .doing("list", dir)?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

fn write_record(path: &Path, record: &ImageRecord) -> Result<(), DiskError> {
    let text = serde_json::to_vec_pretty(record)
        .map_err(io::Error::from)
        .doing("write", path)?;
    File::create(path)
        .and_then(|mut file| file.write_all(&text))
        .doing("write", path)
}
