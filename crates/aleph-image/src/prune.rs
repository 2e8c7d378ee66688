//! Removing what nobody needs.

use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::Image;
use crate::lock;
use crate::oci::{Blobs, Freed};
use crate::staging;
use crate::store::{Store, layers_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What to remove. The default is all that no name leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// Removes nothing, and tells what would be removed.
    pub dry_run: bool,
    /// Removes images that have names too, unless they are held or in `keep`.
    pub all: bool,
    /// Removes the layers that images are made of too. They spare a download when another image
    /// with the same layers is pulled, and nothing else.
    pub layers: bool,
    /// Images that stay, held or not: those of stopped jobs, for one.
    pub keep: BTreeSet<Digest>,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The images, with the names that they had.
    pub images: Vec<Image>,
    /// Layers.
    pub layers: Vec<Digest>,
    /// Layers of which only a part had arrived.
    pub partial: Vec<Digest>,
    /// Bytes of all files; a filesystem that another image shares does not count.
    pub bytes: u64,
}

impl Store {
    /// Removes images without names, layers without images, and parts of layers.
    ///
    /// What is in use stays: an image that a VM has, a layer that is being downloaded. Work
    /// folders of processes that died go too, and do not count.
    ///
    /// # Errors
    /// When the store cannot be read or written; some of it may be removed already.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned, ImageError> {
        if !options.dry_run {
            staging::sweep(self.images())?;
        }
        let _lock = lock::folder(self.images())?;
        let mut pruned = Pruned::default();
        let mut links = Links::default();
        let mut left = Vec::new();
        for image in self.list()? {
            let stays = (!image.names().is_empty() && !options.all)
                || options.keep.contains(&image.digest());
            if stays || !self.let_go(&image, options.dry_run, &mut links)? {
                left.push(image);
            } else {
                pruned.images.push(image);
            }
        }
        let needed = if options.layers {
            BTreeSet::new()
        } else {
            layers_of(&left)
        };
        let Freed {
            blobs,
            parts,
            bytes,
        } = Blobs::of(self.images()).prune(&needed, options.dry_run)?;
        pruned.layers = blobs;
        pruned.partial = parts;
        pruned.bytes = bytes + links.freed;
        Ok(pruned)
    }

    /// Removes an image, or sees whether it could be; `false` if somebody holds it.
    fn let_go(&self, image: &Image, dry_run: bool, links: &mut Links) -> Result<bool, ImageError> {
        let metadata = fs::metadata(image.rootfs()).ok();
        let gone = if dry_run {
            self.is_unheld(image)?
        } else {
            self.try_remove_image(image)?
        };
        if let (true, Some(metadata)) = (gone, metadata) {
            links.remove(&metadata, dry_run);
        }
        Ok(gone)
    }
}

/// Tells when the last link to a shared filesystem goes, also when none really goes.
#[derive(Default)]
struct Links {
    gone: BTreeMap<u64, u64>,
    freed: u64,
}

impl Links {
    fn remove(&mut self, before: &fs::Metadata, dry_run: bool) {
        let gone = self.gone.entry(before.ino()).or_default();
        *gone += u64::from(dry_run);
        // Of a real removal, the number of links tells of those before it.
        if before.nlink() <= (*gone).max(1) {
            self.freed += before.len();
        }
    }
}
