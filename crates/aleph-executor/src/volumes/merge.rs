//! Merging layers of a volume while a guest writes to it: the records' and files' side.
//!
//! Each state that is kept while a guest writes leaves a layer ([`live`](super::live)), and a chain has a
//! bound. The layers below the top stand still, so what several of them hold is copied into one new layer by
//! our own tools, beside the guest and without its VMM; then the layer over them is read through to the new
//! one. What is read is the same through the old layers and through the new one, at any moment: so no order
//! of the steps and no crash between them can lose a write.
//!
//! | step | what is recorded from then on | what a crash before the next leaves |
//! | --- | --- | --- |
//! | [`Volumes::begin_merge`] | the merge, and its layer, `making` | a file: both go |
//! | [`Volumes::fill_merge`] | the layer is whole and durable | a merge that whoever adopts the VM ends |
//! | the VMM reads through the layer, and closes those that it holds | | the same: the VMM is told again, which changes nothing |
//! | [`Volumes::finish_merge`] | the layer over them has the new one below it | layers that nothing leads to: they go |
//!
//! A merge ends with its writer's lease, whatever became of it: the chain stays as it was. Layers that a
//! snapshot or another volume has stay for those.
//!
//! # Why not by the VMM
//! QEMU can do it (`block-stream`), and libvirt has it do so. It copies into the layer that the guest writes
//! to, and what it copies is in QEMU's memory and in the host's until somebody flushes: on a loss of power a
//! part of the disk that was durable before may read as nothing. It keeps the disk from being resized, kept
//! and detached meanwhile; it writes the header of the top; and of a QEMU that was broken into all that would
//! have to be believed. Layers that stand still need none of that.
//!
//! # Which layers
//! [`merge_plan`](super::merge_plan) chooses. The layer over them is the state that was kept last: the next backup
//! knows it, and reads what changed since. Where a copy of the volume stands on that, it is the top of the moment
//! in which a merge begins. By its end others may be over it, and that changes nothing. Only where a copy of the volume stands on
//! it as well, or on one of those, the merge comes to nothing: a VMM of that copy would not know of it. So none
//! is made while the VMM goes over: from [`Volumes::open_merge`] until the merge is over, a copy is refused.
//!
//! # How
//! Each layer is read alone, the lowest first, over a disk that has nothing ([`images::add`]): so of those
//! below them nothing is read, however large they are. What a VMM still has open for writing is read as a copy
//! of our own, as everywhere.
//!
//! # Failure cases
//! No room, no quota (the new layer counts from its beginning, those that it replaces until they are gone), a
//! layer that a VMM spoilt: the merge goes, the volume stays as it is, and a chain that comes to its bound is
//! refused with the reason ([`VolumeError::Unmerged`]). The next state that is kept tries it again.

use super::backend::{Branch, OpenLayer};
use super::error::VolumeError;
use super::images::{self, Target};
use super::keys::Passphrase;
use super::layer::{Home, LayerFormat};
use super::lease::Owner;
use super::merge_plan::{Look, plan};
use super::records::{LayerId, LayerRow, NewLayer, Tx, VolumeRow, parsed};
use super::store::{Inner, Promised, Volumes, present};
use crate::failpoint;
use crate::hypervisor::{DiskLayer, LayerOrigin};
use aleph_types::{MiB, VolumeId};
use rusqlite::{OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::{Arc, MutexGuard, PoisonError};

type Result<T> = std::result::Result<T, VolumeError>;

/// A merge that was begun.
#[derive(Debug)]
pub struct Merge {
    volume: VolumeId,
    layer: LayerRow,
    /// What it holds, from the top down.
    run: Vec<LayerRow>,
    /// The volume's, which none of them is larger than.
    size: MiB,
    _promised: Promised,
    _filling: Filling,
}

/// Says that somebody fills the layer of a volume's merge, for as long as this lives.
#[derive(Debug)]
struct Filling(Arc<Inner>, VolumeId);

impl Filling {
    fn begin(inner: &Arc<Inner>, id: VolumeId) -> Self {
        inner.merges().filled.insert(id);
        Self(Arc::clone(inner), id)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.merges().filled.remove(&self.1);
    }
}

/// What is known of merges that no record tells.
#[derive(Debug, Default)]
pub(super) struct Merging {
    /// Volumes a layer of which somebody fills.
    filled: BTreeSet<VolumeId>,
    /// Layers that a VMM is told to read through to another one, by their volumes.
    gone_over: BTreeMap<VolumeId, LayerId>,
}

/// A layer that is whole, and that a VMM is to read in the place of those that it holds.
#[derive(Debug)]
pub struct Merged {
    /// The volume's layers, from the top down, with those that it holds.
    pub chain: Vec<DiskLayer>,
    /// Which of them is over those that it holds.
    pub over: usize,
    /// How many it holds.
    pub holds: usize,
    /// Its number.
    pub layer: i64,
    /// Its file, to be read only.
    pub file: File,
    /// What it is encrypted with.
    pub key: Option<Passphrase>,
    /// Whether the layer over it is encrypted.
    pub is_encrypted: bool,
}

/// A merge as it is recorded.
struct MergeRow {
    layer: LayerId,
    over: LayerId,
    first: LayerId,
}

impl MergeRow {
    /// Where in a chain the layers are that it holds: the first of them, and how many. `None` where the
    /// chain has them no more.
    fn place(&self, chain: &[LayerRow], below: Option<LayerId>) -> Option<(usize, usize)> {
        let over = chain.iter().position(|layer| layer.id == self.over)?;
        let rest = chain.get(over + 1..)?;
        let holds = rest.iter().position(|layer| Some(layer.id) == below)?;
        (rest.first()?.id == self.first && holds > 0).then_some((over, holds))
    }
}

impl Tx<'_> {
    fn merge(&self, volume: VolumeId) -> Result<Option<MergeRow>> {
        let sql = "SELECT layer, over, first FROM merges WHERE volume = ?1";
        let found = self.0.query_row(sql, [volume.to_string()], |row| {
            Ok(MergeRow {
                layer: row.get(0)?,
                over: row.get(1)?,
                first: row.get(2)?,
            })
        });
        Ok(found.optional()?)
    }

    fn put_merge(&self, volume: VolumeId, row: &MergeRow) -> Result<()> {
        let sql = "INSERT INTO merges VALUES (?1, ?2, ?3, ?4)";
        let of = params![volume.to_string(), row.layer, row.over, row.first];
        self.0.execute(sql, of)?;
        Ok(())
    }

    /// Forgets a merge. Its layer is for [`Tx::orphans`], where it is whole.
    pub(super) fn drop_merge(&self, volume: VolumeId) -> Result<()> {
        let sql = "DELETE FROM merges WHERE volume = ?1";
        self.0.execute(sql, [volume.to_string()])?;
        Ok(())
    }

    /// Forgets a merge whose layer is not whole.
    fn drop_unfinished_merge(&self, volume: VolumeId) -> Result<()> {
        match self.is_merged(volume)? {
            true => Ok(()),
            false => self.drop_merge(volume),
        }
    }

    /// Forgets the merges whose layers were never whole.
    pub(super) fn drop_unfinished_merges(&self) -> Result<()> {
        let sql = "DELETE FROM merges WHERE layer NOT IN
                   (SELECT id FROM layers WHERE state = 'ready')";
        self.0.execute(sql, [])?;
        Ok(())
    }

    /// Whether a volume's merge has come so far that its layer is whole.
    fn is_merged(&self, volume: VolumeId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM merges AS m, layers AS l
                   WHERE m.volume = ?1 AND l.id = m.layer AND l.state = 'ready')";
        Ok(self
            .0
            .query_row(sql, [volume.to_string()], |row| row.get(0))?)
    }

    /// How many layers are over one.
    fn children(&self, layer: LayerId) -> Result<u32> {
        let sql = "SELECT count(*) FROM layers WHERE parent = ?1 AND state != 'removing'";
        Ok(self.0.query_row(sql, [layer], |row| row.get(0))?)
    }

    /// Whether something else than the one layer over it has a layer.
    fn is_kept(&self, layer: LayerId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE layer = ?1)";
        let is_named: bool = self.0.query_row(sql, [layer], |row| row.get(0))?;
        Ok(is_named || self.children(layer)? > 1)
    }

    fn put_parent(&self, layer: LayerId, parent: LayerId) -> Result<()> {
        let sql = "UPDATE layers SET parent = ?2 WHERE id = ?1";
        self.0.execute(sql, [layer, parent])?;
        Ok(())
    }

    /// Volumes that have a merge which is not over.
    fn merging(&self) -> Result<Vec<VolumeId>> {
        self.all("SELECT volume FROM merges", &[], |row| parsed(row, 0))
    }
}

impl Volumes {
    /// Begins to merge layers of a volume that its owner writes to; `None` where its chain is well as it is, or
    /// a merge is begun.
    ///
    /// # Errors
    /// Where its owner has ended meanwhile, a cover is being put over it, or there is no room.
    pub fn begin_merge(&self, id: VolumeId, owner: &Owner) -> Result<Option<Merge>> {
        let inner = &self.inner;
        inner.look();
        // One at a time: a layer that nobody fills any more was not forgotten when that failed.
        inner.records.read(|tx| tx.merge(id)).and_then(|row| {
            match row.filter(|_| !inner.is_filled(id)) {
                Some(_) => inner
                    .records
                    .write("merge.stale", |tx| tx.drop_unfinished_merge(id)),
                None => Ok(()),
            }
        })?;
        let Some(planned) = inner.records.read(|tx| inner.planned(tx, id, owner))? else {
            return Ok(None);
        };
        let scratch = planned.run.iter().filter(|layer| is_copied(layer));
        let mut needed = 0_u64;
        for layer in scratch {
            needed = needed.saturating_add(inner.allocated(layer)?);
        }
        let written = match inner.backend.home() {
            Home::Folder => planned.bytes,
            Home::Pool => 0,
        };
        needed = needed.saturating_add(written);
        let what = "merge layers in";
        // Whoever copies one promises room for that by itself.
        drop(inner.promise(needed, what)?);
        let promised = inner.promise(written, what)?;
        let filling = Filling::begin(inner, id);
        // What is left of one that ended with its writer's lease.
        inner.merges().gone_over.remove(&id);
        let begun = inner.records.write("merge.begin", |tx| {
            // Looked at again now that nobody changes it.
            let now = inner.planned(tx, id, owner)?;
            let Some(now) = now.filter(|now| now.run == planned.run) else {
                return Ok(None);
            };
            let (Some(first), Some(below)) = (now.run.first(), now.below) else {
                return Ok(None);
            };
            inner.check_quota(tx, &now.row.account, (0, now.bytes))?;
            let new = NewLayer {
                format: LayerFormat::Qcow2,
                parent: Some(below),
                home: inner.backend.home(),
                key: now.over.key.clone(),
            };
            let layer = tx.add_layer(&now.row.account, &new, now.bytes)?;
            tx.mark_merged(layer.id)?;
            let row = MergeRow {
                layer: layer.id,
                over: now.over.id,
                first: first.id,
            };
            tx.put_merge(id, &row)?;
            Ok(Some(layer))
        })?;
        Ok(begun.map(|layer| Merge {
            volume: id,
            layer,
            run: planned.run,
            size: planned.row.size,
            _promised: promised,
            _filling: filling,
        }))
    }

    /// Copies what the layers hold, for as long as that takes. `false` where the merge was over meanwhile:
    /// nothing is left of it then.
    ///
    /// # Errors
    /// Where a layer is not what it should be, or there is no room. Nothing is left then.
    pub fn fill_merge(&self, merge: &Merge) -> Result<bool> {
        let inner = &self.inner;
        let (id, layer) = (merge.volume, &merge.layer);
        let filled = inner.gather(&merge.run).and_then(|opened| {
            failpoint::pass("merge.fill", "opened");
            inner.merge_into(&opened, layer, merge.size)
        });
        let done = filled.and_then(|()| {
            inner.look();
            let charge = inner.allocated(layer)?;
            inner.records.write("merge.filled", |tx| {
                match tx.merge(id)? {
                    Some(row) if row.layer == layer.id => {}
                    _ => return Ok(false),
                }
                // It was never written by anybody but us.
                tx.put_layer(&LayerRow {
                    charge,
                    ..layer.clone()
                })?;
                Ok(true)
            })
        });
        match done {
            Ok(true) => inner.keeper(layer.home)?.freeze(&inner.path(layer)),
            Ok(false) => inner.abandon(layer),
            Err(_) => {
                if let Err(error) = self.give_up(id, layer) {
                    let error = crate::vm::chain(&error);
                    tracing::warn!(volume = %id, error, "what was merged in vain is known for now");
                }
            }
        }
        done
    }

    fn give_up(&self, id: VolumeId, layer: &LayerRow) -> Result<()> {
        let inner = &self.inner;
        // Its file first: where the disk is full, there is room for the record then.
        if let Err(error) = inner.remove_layer(layer) {
            tracing::warn!(%error, layer = layer.id, "what was merged in vain stays for now");
        }
        inner
            .records
            .write("merge.abandon", |tx| match tx.merge(id)? {
                Some(row) if row.layer == layer.id => tx.drop_merge(id),
                _ => Ok(()),
            })?;
        inner.abandon(layer);
        Ok(())
    }

    /// Whether the layer of a volume's merge is whole, and its VMM is to read through it.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn is_merged(&self, id: VolumeId) -> Result<bool> {
        self.inner.records.read(|tx| tx.is_merged(id))
    }

    /// The layer of a merge that is whole, for the VMM; `None` where there is none.
    ///
    /// # Errors
    /// Where its file cannot be opened.
    pub fn open_merge(&self, id: VolumeId, owner: &Owner) -> Result<Option<Merged>> {
        let inner = &self.inner;
        let merge = inner.records.read(|tx| match tx.is_merged(id)? {
            true => tx.merge(id),
            false => Ok(None),
        })?;
        let Some(merge) = merge else { return Ok(None) };
        // Before it is looked whether there is a copy: whoever makes one looks the other way around.
        inner.merges().gone_over.insert(id, merge.over);
        let found = inner.records.read(|tx| {
            if !tx.is_merged(id)? {
                return Ok(None);
            }
            let row = inner.writer_row(tx, id, owner)?;
            let Some((chain, merge, place)) = inner.placed(tx, &row)? else {
                return Ok(None);
            };
            let covered = tx.covered(id)?;
            // Numbers are given in order, so the first of them is what it wrote to first.
            let first = covered.first().copied().unwrap_or(row.top);
            let layers = chain.iter().enumerate().map(|(place, layer)| DiskLayer {
                number: layer.id,
                origin: match place {
                    _ if layer.id == first => LayerOrigin::First,
                    0 => LayerOrigin::Put,
                    _ if covered.contains(&layer.id) => LayerOrigin::Put,
                    _ => LayerOrigin::Below,
                },
            });
            let layers: Vec<_> = layers.collect();
            let over = chain.get(place.0).is_some_and(|over| over.key.is_some());
            Ok(Some((layers, tx.layer(merge.layer)?, place, over)))
        })?;
        let Some((chain, layer, (over, holds), is_encrypted)) = found else {
            return Ok(None);
        };
        let mut opened = inner.open_chain(std::slice::from_ref(&layer), false)?;
        let OpenLayer { file, key, .. } = opened.remove(0);
        Ok(Some(Merged {
            chain,
            over,
            holds,
            layer: layer.id,
            file,
            key,
            is_encrypted,
        }))
    }

    /// Ends a merge that the VMM reads through; [`Volumes::collect_merged`] comes after it. `false` where there
    /// was none.
    ///
    /// # Errors
    /// Where something else is over the layer by now, or the records cannot be written.
    pub fn finish_merge(&self, id: VolumeId, owner: &Owner) -> Result<bool> {
        let inner = &self.inner;
        let is_finished = inner.records.write("merge.finish", |tx| {
            if !tx.is_merged(id)? {
                return Ok(false);
            }
            let row = inner.writer_row(tx, id, owner)?;
            let placed = inner.placed(tx, &row)?;
            tx.drop_merge(id)?;
            if let Some((_, merge, _)) = &placed {
                tx.put_parent(merge.over, merge.layer)?;
            }
            Ok(placed.is_some())
        })?;
        inner.merges().gone_over.remove(&id);
        Ok(is_finished)
    }

    /// Removes the layers that a merge has left, where nothing else leads to them.
    ///
    /// # Errors
    /// Where somebody works on the volume for long: they go with the next ones then.
    pub fn collect_merged(&self, id: VolumeId) -> Result<()> {
        let inner = &self.inner;
        let row = inner.records.read(|tx| present(tx, id))?;
        // Whoever opens the layers of a snapshot has them open before any of them goes.
        let _turn = inner.turn(&row)?;
        inner.collect_later();
        Ok(())
    }

    /// Gives a merge up that the VMM does not read through. None is none to be given up.
    ///
    /// # Errors
    /// Where the records cannot be written.
    pub fn drop_merge(&self, id: VolumeId) -> Result<()> {
        let inner = &self.inner;
        let dropped = |tx: &Tx<'_>| tx.drop_merge(id);
        inner.records.write("merge.drop", dropped)?;
        inner.merges().gone_over.remove(&id);
        inner.collect_later();
        Ok(())
    }

    /// The volumes of which layers are being merged.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn merging(&self) -> Result<Vec<VolumeId>> {
        // The method itself is for one lifetime alone.
        #[allow(clippy::redundant_closure_for_method_calls)]
        self.inner.records.read(|tx| tx.merging())
    }
}

/// What is to be merged of a volume, as the records have it.
struct Planned {
    row: VolumeRow,
    over: LayerRow,
    run: Vec<LayerRow>,
    below: Option<LayerId>,
    bytes: u64,
}

/// Whether a layer is copied before a tool reads it.
fn is_copied(layer: &LayerRow) -> bool {
    layer.exposed && layer.format == LayerFormat::Qcow2
}

impl Inner {
    fn merges(&self) -> MutexGuard<'_, Merging> {
        self.merging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a VMM may read through what was merged already: whoever had it before did not say.
    pub(super) fn find_merges(&self) -> Result<()> {
        let whole: Vec<(VolumeId, LayerId)> = self.records.read(|tx| {
            let sql = "SELECT m.volume, m.over FROM merges AS m, layers AS l
                       WHERE l.id = m.layer AND l.state = 'ready'";
            tx.all(sql, &[], |row| Ok((parsed(row, 0)?, row.get(1)?)))
        })?;
        self.merges().gone_over.extend(whole);
        Ok(())
    }

    fn is_filled(&self, id: VolumeId) -> bool {
        self.merges().filled.contains(&id)
    }

    /// Checks that no VMM is about to read through a layer of this chain to another one: a copy that stands on it
    /// now would have a chain that its own VMM does not know.
    pub(super) fn check_standing(&self, tx: &Tx<'_>, chain: &[LayerRow], name: &str) -> Result<()> {
        let gone_over = self.merges().gone_over.clone();
        for (volume, over) in gone_over {
            // What ended with its writer's lease is known to the records alone.
            let is_on = tx.merge(volume)?.is_some_and(|merge| merge.over == over);
            if is_on && chain.iter().any(|layer| layer.id == over) {
                return Err(VolumeError::Busy(name.to_owned()));
            }
        }
        Ok(())
    }

    /// What of a volume is to be merged now.
    fn planned(&self, tx: &Tx<'_>, id: VolumeId, owner: &Owner) -> Result<Option<Planned>> {
        let row = self.writer_row(tx, id, owner)?;
        if tx.merge(id)?.is_some() {
            return Ok(None);
        }
        if tx.below_cover(id)?.is_some() {
            // What is below it may still be written.
            return Err(VolumeError::Busy(row.name));
        }
        let (mut chain, mut above) = (tx.chain(row.top)?, 0);
        // The state that was kept last is what the next backup goes on from: it stays, where no copy stands on it.
        if let Some(last) = chain.get(1)
            && last.exposed
            && tx.children(last.id)? == 1
        {
            chain.remove(0);
            above = 1;
        }
        let mut looks = Vec::with_capacity(chain.len());
        for layer in &chain {
            looks.push(Look {
                bytes: self.allocated(layer)?,
                is_known: !layer.exposed && !layer.merged,
                is_kept: tx.is_kept(layer.id)?,
            });
        }
        let Some(plan) = plan(&looks, above) else {
            return Ok(None);
        };
        let mut layers = chain.into_iter();
        let Some(over) = layers.next() else {
            return Ok(None);
        };
        let run: Vec<_> = layers.by_ref().take(plan.layers).collect();
        if over.key.is_none() && run.iter().any(|layer| layer.key.is_some()) {
            return Err(VolumeError::BadRequest(
                "a layer that is encrypted is not merged into one that is not",
            ));
        }
        // A chain of raw layers ends with the first.
        if run.iter().any(|layer| layer.format != LayerFormat::Qcow2) {
            return Ok(None);
        }
        Ok(Some(Planned {
            below: layers.next().map(|layer| layer.id),
            bytes: plan.bytes,
            row,
            over,
            run,
        }))
    }

    /// A volume's chain with the merge in it, where that can be ended.
    #[allow(clippy::type_complexity)]
    fn placed(
        &self,
        tx: &Tx<'_>,
        row: &VolumeRow,
    ) -> Result<Option<(Vec<LayerRow>, MergeRow, (usize, usize))>> {
        let Some(merge) = tx.merge(row.id)? else {
            return Ok(None);
        };
        let chain = tx.chain(row.top)?;
        let below = tx.layer(merge.layer)?.parent;
        let Some(place) = merge.place(&chain, below) else {
            return Err(VolumeError::Busy(row.name.clone()));
        };
        // Whatever else stands on it, or on one above it, has a chain that leads through it.
        for (at, layer) in chain.iter().take(place.0 + 1).enumerate() {
            let most = u32::from(at > 0);
            if tx.children(layer.id)? > most {
                return Err(VolumeError::Busy(row.name.clone()));
            }
        }
        Ok(Some((chain, merge, place)))
    }

    fn writer_row(&self, tx: &Tx<'_>, id: VolumeId, owner: &Owner) -> Result<VolumeRow> {
        let row = present(tx, id)?;
        tx.check_writer(&row, owner)?;
        Ok(row)
    }

    /// Opens layers that are to be merged, with their keys.
    fn gather(&self, run: &[LayerRow]) -> Result<Vec<OpenLayer>> {
        if let Some(pool) = &self.pool {
            let of_pool = run.iter().filter(|layer| layer.home == Home::Pool);
            let paths: Vec<_> = of_pool.map(|layer| self.path(layer)).collect();
            super::backend::Backend::gather(&**pool, &paths)?;
        }
        self.open_chain(run, false)
    }

    /// Makes a layer that holds what others do, durable.
    fn merge_into(&self, run: &[OpenLayer], layer: &LayerRow, most: MiB) -> Result<()> {
        let key = layer.key.as_ref().map(|id| self.key(id)).transpose()?;
        let sizes = run.iter().map(OpenLayer::size);
        let sizes = sizes.collect::<Result<Vec<_>>>()?;
        let bytes = sizes.first().copied().unwrap_or(0);
        let size = MiB(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
        // Each says itself how large it is, and a VMM may have written that.
        let is_sane = size.bytes() == bytes && size <= most;
        if !is_sane || sizes.iter().any(|below| *below > bytes) {
            return Err(VolumeError::NotAnImage(format!(
                "the sizes of its layers make no sense: {sizes:?}"
            )));
        }
        self.fill(layer, (size, key.as_ref()), |top| {
            let file = self.backend.make(&[], Branch::Overlay, top)?;
            let target = Target {
                file: &file,
                key: top.key,
            };
            for below in run.iter().rev() {
                images::add(below, target, size)?;
                failpoint::pass("merge.fill", "one");
            }
            Ok(file)
        })
    }
}
