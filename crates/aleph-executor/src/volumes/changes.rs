//! What becomes of a volume: it grows, its states are kept and had back, it is removed and had back.
//!
//! All of it is refused while a job has the volume for writing: its guest has a part of it in its memory,
//! and none of it may change under the VMM; what can be done then is in [`live`](super::live). A state of a
//! volume that others read may be kept.

use super::backend::OpenLayer;
use super::error::{VolumeError, at};
use super::layer::Home;
use super::records::{LayerId, LayerRow, Life, Tx, VolumeRow};
use super::store::{Inner, MAX_SNAPSHOTS, Turn, Volumes, check_name, check_size, known, present};
use crate::failpoint;
use aleph_types::{MiB, Timestamp, Volume, VolumeId, VolumeSnapshot};
use rustix::fs::FlockOperation;

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// Makes a volume larger. What is on it grows when its guest says so.
    ///
    /// # Errors
    /// Where it is attached, or would become smaller or too large.
    pub fn resize(&self, id: VolumeId, size: MiB) -> Result<Volume> {
        let inner = &self.inner;
        let (row, chain, _turn) = inner.alone(id)?;
        if size < row.size {
            let why = format!("it has {}, and volumes only grow", row.size);
            return Err(VolumeError::BadSize { size, why });
        }
        // First, since what is beyond all bounds has no number of extents.
        check_size(size, row.size, "it")?;
        let size = inner.keeper(layer_home(&chain))?.whole(size);
        let opened = inner.open_chain(&chain, true)?;
        inner.lock(&row, &opened, FlockOperation::NonBlockingLockExclusive)?;
        let (Some(top), Some(layer)) = (opened.first(), chain.first()) else {
            return Err(VolumeError::NoVolume(id.to_string()));
        };
        // The record comes first: whoever opens the volumes after a crash grows the file.
        let resized = inner.records.write("volume.resize", |tx| {
            inner.check_quota(tx, &row.account, (0, size.bytes() - row.size.bytes()))?;
            let resized = VolumeRow {
                size,
                ..row.clone()
            };
            tx.put_layer(&LayerRow {
                charge: size.bytes(),
                written: true,
                ..layer.clone()
            })?;
            tx.put_volume(&resized)?;
            inner.view(tx, &resized)
        })?;
        let keeper = inner.keeper(layer.home)?;
        let grown = keeper
            .grow(top, &top.path, size)
            .and_then(|()| top.file.sync_all().map_err(at("write", &top.path)));
        if let Err(error) = grown {
            // What has its new size keeps it, although it may not be durable yet: a disk is never larger
            // than its record says, as it could not be brought to a size between the two.
            if top.size().unwrap_or(0) < size.bytes() {
                inner.records.write("volume.resize_undone", |tx| {
                    tx.put_layer(layer)?;
                    tx.put_volume(&row)
                })?;
            }
            return Err(error);
        }
        failpoint::pass("volume.resize", "grown");
        Ok(resized)
    }

    /// Keeps a volume's present state under a name. With qcow2 this takes the same short time however much
    /// there is; only over [`MAX_DEPTH`](super::MAX_DEPTH) layers the disk is copied in whole.
    ///
    /// # Errors
    /// Where it is being written, or the name is taken.
    pub fn snapshot(&self, id: VolumeId, name: &str) -> Result<Volume> {
        check_name(name)?;
        let inner = &self.inner;
        let row = inner.records.read(|tx| present(tx, id))?;
        let _turn = inner.turn(&row)?;
        let (row, chain) = inner.records.read(|tx| {
            let row = present(tx, id)?;
            inner.check_unwritten(tx, &row)?;
            check_new(tx, id, name)?;
            let chain = tx.chain(row.top)?;
            Ok((row, chain))
        })?;
        let opened = inner.open_for(&chain, inner.backend.branch(chain.len()))?;
        inner.check_unlocked(&row, &opened)?;
        let snapshot = VolumeSnapshot {
            name: name.to_owned(),
            size: row.size,
            created_at: Timestamp::now(),
            consistency: None,
        };
        let note = |tx: &Tx<'_>, layer: LayerId| tx.add_snapshot(id, layer, &snapshot);
        let is_as_large = match opened.as_slice() {
            [top, below, ..] => top.size()? == below.size()?,
            _ => false,
        };
        match chain.first().filter(|_| is_as_large) {
            // Nothing was written since it was made: its parent is what it holds.
            Some(LayerRow {
                parent: Some(parent),
                written: false,
                ..
            }) => inner
                .records
                .write("volume.snapshot", |tx| note(tx, *parent))?,
            _ => inner.freeze(&row, &chain, &opened, note)?,
        }
        self.get(id)
    }

    /// Forgets a state that was kept, and what nothing else needs of it.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn remove_snapshot(&self, id: VolumeId, name: &str) -> Result<()> {
        let inner = &self.inner;
        let row = inner.records.read(|tx| known(tx, id))?;
        let _turn = inner.turn(&row)?;
        inner.records.write("volume.forget_snapshot", |tx| {
            match tx.drop_snapshot(id, name)? {
                true => Ok(()),
                false => Err(VolumeError::NoSnapshot(name.to_owned())),
            }
        })?;
        inner.collect_later();
        Ok(())
    }

    /// Has a volume go on from a state that was kept. What it held since then is gone; its snapshots stay.
    ///
    /// # Errors
    /// Where it is attached, or there is no such state.
    pub fn restore(&self, id: VolumeId, name: &str) -> Result<Volume> {
        let inner = &self.inner;
        let (row, chain, _turn) = inner.alone(id)?;
        let now = inner.look_at(&chain, false)?;
        inner.lock(&row, &now, FlockOperation::NonBlockingLockExclusive)?;
        let (snapshot, chain, opened) = inner.kept(id, name)?;
        let Some(layer) = chain.first() else {
            return Err(VolumeError::NoSnapshot(name.to_owned()));
        };
        let branch = inner.backend.branch(chain.len());
        let new = inner.form_of(branch, layer.id, layer.key.clone());
        let size = inner.backend.whole(snapshot.size);
        let new = inner.records.write("volume.branch", |tx| {
            // What it has now goes.
            let more = size.bytes().saturating_sub(row.size.bytes());
            inner.check_quota(tx, &row.account, (0, more))?;
            if let Some(parent) = new.parent {
                inner.check_standing(tx, &tx.chain(parent)?, &row.name)?;
            }
            tx.add_layer(&row.account, &new, size.bytes())
        })?;
        let key = opened.first().and_then(|layer| layer.key.as_ref());
        let made = inner.fill(&new, (size, key), |top| {
            inner.backend.make(&opened, branch, top)
        });
        let done = made.and_then(|()| {
            inner.records.write("volume.restore", |tx| {
                tx.finish_layer(new.id)?;
                // Its writer is gone, and so is what that wrote to.
                tx.uncover(row.id)?;
                tx.put_volume(&VolumeRow {
                    top: new.id,
                    size,
                    // What was kept may be of a filesystem whose writer did not end in order.
                    unclean: true,
                    ..row.clone()
                })
            })
        });
        if let Err(error) = done {
            inner.abandon(&new);
            return Err(error);
        }
        // A device that is open is not removed.
        drop((now, opened));
        inner.end_copies();
        inner.collect_later();
        self.get(id)
    }

    /// Removes a volume. It can be had back for a time, and then it is gone; at once, where `now` says so.
    ///
    /// # Errors
    /// Where it is attached.
    pub fn remove(&self, id: VolumeId, now: bool) -> Result<()> {
        let inner = &self.inner;
        let row = inner.records.read(|tx| known(tx, id))?;
        let _turn = inner.turn(&row)?;
        let (row, top) = inner.records.read(|tx| {
            let row = known(tx, id)?;
            inner.check_detached(tx, &row)?;
            let top = tx.layer(row.top)?;
            Ok((row, top))
        })?;
        match inner.look_at(&[top], false) {
            // Whatever the records say: nobody's disk is taken away.
            Ok(opened) => inner.lock(&row, &opened, FlockOperation::NonBlockingLockExclusive)?,
            // It passes, and does not say that nobody has it.
            Err(error) if error.is_of_process() => return Err(error),
            // What is damaged can be removed.
            Err(error) => tracing::warn!(%error, volume = %id, "a volume has no file any more"),
        }
        inner.records.write("volume.remove", |tx| {
            let mut row = known(tx, id)?;
            inner.check_detached(tx, &row)?;
            match row.life {
                // To remove one again changes nothing, but for `now`.
                Life::Deleted if !now => return Err(VolumeError::Deleted(row.name)),
                _ if now => return tx.drop_volume(id),
                _ => {}
            }
            row.life = Life::Deleted;
            row.purged = Some(
                Timestamp::now()
                    .saturating_add(inner.config.grace)
                    .unwrap_or(Timestamp::MAX),
            );
            tx.put_volume(&row)
        })?;
        if now {
            inner.collect_later();
        }
        Ok(())
    }

    /// Has a volume back that was removed.
    ///
    /// # Errors
    /// Where it was not removed, or its name is taken by now and `name` gives no other.
    pub fn undelete(&self, id: VolumeId, name: Option<&str>) -> Result<Volume> {
        name.map_or(Ok(()), check_name)?;
        let inner = &self.inner;
        inner.records.write("volume.undelete", |tx| {
            let mut row = known(tx, id)?;
            if row.life != Life::Deleted {
                return Err(VolumeError::NotDeleted(row.name));
            }
            if let Some(name) = name {
                row.name = name.to_owned();
            }
            if tx.is_taken(&row.account, &row.name)? {
                return Err(VolumeError::NameTaken(row.name));
            }
            row.life = Life::Ready;
            row.purged = None;
            tx.put_volume(&row)?;
            inner.view(tx, &row)
        })
    }

    /// Purges what was removed, and whose time is over at `now`. Returns how many there were.
    ///
    /// # Errors
    /// Where the records or files cannot be changed.
    pub fn purge_due(&self, now: Timestamp) -> Result<usize> {
        let inner = &self.inner;
        let purged = inner.records.write("volumes.purge", |tx| {
            let mut purged = 0;
            for row in tx.volumes()? {
                let is_due = row.purged.is_some_and(|due| due <= now);
                if row.life == Life::Deleted && is_due {
                    tx.drop_volume(row.id)?;
                    purged += 1;
                }
            }
            Ok(purged)
        })?;
        // Merges that ended with their writers leave layers, too.
        // The method itself is for one lifetime alone.
        #[allow(clippy::redundant_closure_for_method_calls)]
        let has_orphans = !inner.records.read(|tx| tx.orphans())?.is_empty();
        if purged > 0 || has_orphans {
            inner.collect()?;
        }
        Ok(purged)
    }
}

/// Where a volume's top is.
fn layer_home(chain: &[LayerRow]) -> Home {
    chain.first().map_or(Home::Folder, |layer| layer.home)
}

/// Checks that a volume may have a snapshot of this name, too.
pub(super) fn check_new(tx: &Tx<'_>, id: VolumeId, name: &str) -> Result<()> {
    let snapshots = tx.snapshots(id)?;
    if snapshots.iter().any(|(snapshot, _)| snapshot.name == name) {
        return Err(VolumeError::NameTaken(name.to_owned()));
    }
    match snapshots.len() < MAX_SNAPSHOTS {
        true => Ok(()),
        false => Err(VolumeError::TooManySnapshots(snapshots.len())),
    }
}

impl Inner {
    /// A volume that nobody has, and that nobody else works on.
    pub(super) fn alone(&self, id: VolumeId) -> Result<(VolumeRow, Vec<LayerRow>, Turn<'_>)> {
        let row = self.records.read(|tx| present(tx, id))?;
        let turn = self.turn(&row)?;
        let (row, chain) = self.records.read(|tx| {
            let row = present(tx, id)?;
            self.check_detached(tx, &row)?;
            let chain = tx.chain(row.top)?;
            Ok((row, chain))
        })?;
        Ok((row, chain, turn))
    }

    /// The layers of a snapshot.
    pub(super) fn kept(
        &self,
        id: VolumeId,
        name: &str,
    ) -> Result<(VolumeSnapshot, Vec<LayerRow>, Vec<OpenLayer>)> {
        let (snapshot, chain) = self.records.read(|tx| {
            let mut found = tx.snapshots(id)?.into_iter();
            let found = found.find(|(snapshot, _)| snapshot.name == name);
            let (snapshot, layer) =
                found.ok_or_else(|| VolumeError::NoSnapshot(name.to_owned()))?;
            Ok((snapshot, tx.chain(layer)?))
        })?;
        let opened = self.open_chain(&chain, false)?;
        Ok((snapshot, chain, opened))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::{Backend, BackendChoice, Branch, Files, NewVolume, VolumesConfig};
    use aleph_types::Filesystem;
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    /// Files whose growth fails, once it is done or before.
    #[derive(Debug)]
    struct Failing {
        grows: bool,
    }

    impl Backend for Failing {
        fn name(&self) -> &'static str {
            "failing"
        }

        fn branch(&self, depth: usize) -> Branch {
            Files.branch(depth)
        }

        fn grow(&self, top: &OpenLayer, path: &Path, size: MiB) -> Result<()> {
            if self.grows {
                Files.grow(top, path, size)?;
            }
            Err(VolumeError::Source(io::ErrorKind::Other.into()))
        }
    }

    #[test]
    fn a_disk_is_never_larger_than_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let config = VolumesConfig {
            backend: BackendChoice::Files,
            ..VolumesConfig::default()
        };
        let mut volumes = Volumes::open(folder.path(), config).unwrap();
        let new = NewVolume {
            account: "a",
            name: "data",
            encrypted: None,
        };
        let id = volumes.create(new, MiB(8), Filesystem::None).unwrap().id;
        for (grows, wanted, size) in [(false, 16, 8), (true, 16, 16), (false, 32, 16)] {
            let inner = Arc::get_mut(&mut volumes.inner).unwrap();
            inner.backend = Arc::new(Failing { grows });
            volumes.resize(id, MiB(wanted)).unwrap_err();
            assert_eq!(volumes.get(id).unwrap().size, MiB(size), "{grows}");
            let file = volumes
                .export(id, None, aleph_types::DiskImageFormat::Raw)
                .unwrap();
            assert_eq!(file.length, MiB(size).bytes());
        }
    }
}
