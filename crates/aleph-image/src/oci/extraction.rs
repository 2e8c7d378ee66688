//! From layers on their way to an image in its place.

use super::blobs::PullLock;
use super::document::Descriptor;
use super::error::RegistryError;
use super::event::{LayerReport, LayerStep, Listener, Pace, PullEvent};
use super::growth::Following;
use crate::digest::Digest;
use crate::disk::Doing;
use crate::error::ImageError;
use crate::filesystem::{FORMAT, Times};
use crate::image::{Image, ImageRecord};
use crate::progress::Progress;
use crate::recipe::{ArchiveError, Layers, Limits};
use crate::removal;
use crate::staging::Staging;
use crate::store::Store;
use std::io::{self, Read};
use std::sync::Arc;

/// All that is needed to make an image of layers that are on their way.
pub(super) struct Extraction {
    pub(super) store: Store,
    pub(super) name: String,
    pub(super) record: ImageRecord,
    pub(super) layers: Vec<(Descriptor, Digest, Following)>,
    pub(super) limits: Limits,
    pub(super) listener: Listener,
    /// Held until the image is there.
    pub(super) lock: PullLock,
}

impl Extraction {
    /// Lays the layers over one another as they come, and makes an image of them.
    pub(super) fn run(self) -> Result<Image, ImageError> {
        let staging = Staging::create(self.store.images())?;
        let tree = staging.folder("tree")?;
        let identity = self.record.digest;
        let mut stack = Layers::new(&tree, self.limits).map_err(|error| broken(identity, error))?;
        for (index, (layer, diff_id, following)) in self.layers.into_iter().enumerate() {
            let mut told = Told {
                inner: following,
                report: report(&self.listener, index, &layer),
                done: 0,
            };
            lay(&mut stack, &mut told, diff_id).map_err(|error| broken(layer.digest, error))?;
            told.report.tell(LayerStep::Unpacked, told.done);
        }
        stack.finish().map_err(|error| broken(identity, error))?;
        let object = staging.folder("object")?;
        let rootfs = object.join(format!("rootfs.{FORMAT}"));
        let mut writing = Writing {
            listener: Arc::clone(&self.listener),
            pace: Pace::new(),
            done: 0,
            total: 0,
        };
        FORMAT.write(&tree, Times::Kept.into(), &rootfs, &mut writing)?;
        // Before the image is synced: what is gone by then is never written to disk.
        removal::remove(&tree).doing("remove", &tree)?;
        let record = ImageRecord {
            size: rootfs.metadata().doing("look at", &rootfs)?.len(),
            ..self.record
        };
        let image = self.store.place(&staging, &object, &record, &self.name);
        // Not before: whoever waits for it looks for the image then.
        drop(self.lock);
        image
    }
}

pub(super) fn report(listener: &Listener, index: usize, layer: &Descriptor) -> LayerReport {
    LayerReport {
        listener: Arc::clone(listener),
        index,
        digest: layer.digest,
        total: layer.size,
        pace: Pace::new(),
    }
}

fn lay(stack: &mut Layers, layer: &mut Told, diff_id: Digest) -> Result<(), ArchiveError> {
    let found = stack.lay(&mut *layer)?;
    // Only the end says that what has been read is right.
    io::copy(layer, &mut io::sink()).map_err(|source| ArchiveError::Damaged { source })?;
    if found == diff_id {
        return Ok(());
    }
    let why = format!("without compression its digest is {found} instead of {diff_id}");
    Err(ArchiveError::Damaged {
        source: io::Error::new(io::ErrorKind::InvalidData, why),
    })
}

fn broken(layer: Digest, error: ArchiveError) -> ImageError {
    match error {
        ArchiveError::Disk(error) => error.into(),
        source => RegistryError::Layer { layer, source }.into(),
    }
}

/// A layer that tells how much of it has been read.
struct Told {
    inner: Following,
    report: LayerReport,
    done: u64,
}

impl Read for Told {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.done += n as u64;
        self.report.pass(LayerStep::Unpacking, self.done);
        Ok(n)
    }
}

/// The progress of the program that writes the file system, as events.
struct Writing {
    listener: Listener,
    pace: Pace,
    done: u64,
    total: u64,
}

impl Writing {
    fn tell(&self) {
        (self.listener)(PullEvent::Writing {
            done: self.done,
            total: self.total,
        });
    }
}

impl Progress for Writing {
    fn begin(&mut self, _what: &str, total: Option<u64>) {
        self.total = total.unwrap_or(0);
        self.tell();
    }

    fn advance(&mut self, n: u64) {
        self.done += n;
        if self.pace.is_due() {
            self.tell();
        }
    }

    fn end(&mut self) {
        self.done = self.total;
        self.tell();
    }
}
