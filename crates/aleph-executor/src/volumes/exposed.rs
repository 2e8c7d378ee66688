//! Copies of layers that a VMM still has open for writing, although nothing of them may change any more.
//!
//! A VMM that was broken into may write a header there while somebody reads it. So whoever has a program look
//! into such a layer gets a copy. There is one of each layer, for all who read it, without a name: it goes with
//! the last of them once no VMM has the layer any more. Its account does not pay for it, so it has to fit into
//! what is free ([`VolumeError::File`], no room).
//!
//! A copy is of the file as it was at one moment. Where the layer was written since then, as after a cover that
//! was taken back, there is another one: the file tells by when it was changed, which nobody who writes to it
//! can set. A device does not tell that: of such a layer each reader has a copy alone.

use super::backend::scratch_file;
use super::error::{VolumeError, at};
use super::layer::Home;
use super::records::{LayerId, LayerRow};
use super::store::Inner;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Result<T> = std::result::Result<T, VolumeError>;

/// Where a layer's copy is, once one was made: who makes it lets others wait.
type Place = Arc<Mutex<Option<Copied>>>;

/// The copies, by the numbers of their layers.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<BTreeMap<LayerId, Place>>);

#[derive(Debug)]
struct Copied {
    file: File,
    /// When what it is of was changed last.
    changed: (i64, i64),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// A layer's file as nobody can change it.
    pub(super) fn private(&self, layer: &LayerRow, file: &File) -> Result<File> {
        if layer.home != Home::Folder {
            return opened(&self.copied(layer, file)?);
        }
        let place = Arc::clone(lock(&self.copies.0).entry(layer.id).or_default());
        let mut place = lock(&place);
        let path = self.path(layer);
        let meta = file.metadata().map_err(at("look at", &path))?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        if let Some(copy) = place.as_ref().filter(|copy| copy.changed == changed) {
            return opened(&copy.file);
        }
        let file = self.copied(layer, file)?;
        opened(&place.insert(Copied { file, changed }).file)
    }

    fn copied(&self, layer: &LayerRow, file: &File) -> Result<File> {
        const WHAT: &str = "copy a layer into";
        if layer.home == Home::Pool {
            self.look();
        }
        let held = match layer.home {
            Home::Pool => self.allocated(layer)?,
            // Its name may be gone.
            Home::Folder => {
                let meta = file.metadata().map_err(at("look at", &self.path(layer)))?;
                meta.blocks() * 512
            }
        };
        let _promised = self.promise(held, WHAT)?;
        let work = self.work();
        let copy = scratch_file(&work).map_err(at("make a file in", &work))?;
        crate::place::fill_sparse(file, &copy)
            // What could not be written out reads as something else later, and says so here alone.
            .and_then(|()| copy.sync_data())
            .map_err(at(WHAT, &work))?;
        Ok(copy)
    }

    /// Lets go of copies of layers that no VMM has any more.
    pub(super) fn end_copies(&self) {
        if lock(&self.copies.0).is_empty() {
            return;
        }
        let covered = self.records.read(|tx| {
            let covered = tx.all("SELECT layer FROM covered", &[], |row| row.get(0))?;
            Ok(BTreeSet::<LayerId>::from_iter(covered))
        });
        match covered {
            Ok(covered) => lock(&self.copies.0).retain(|layer, _| covered.contains(layer)),
            Err(error) => tracing::warn!(%error, "copies of layers stay for now"),
        }
    }
}

/// The same file at a place of its own, to read, like any layer that is below another one.
fn opened(copy: &File) -> Result<File> {
    let path = crate::process::path_of_file(copy.as_raw_fd());
    File::open(&path).map_err(at("open", Path::new(&path)))
}
