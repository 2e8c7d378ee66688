//! What goes: what a crash left half made or half removed, and layers that nothing leads to any more.

use super::backend::{Backend, OpenLayer, take_back};
use super::error::{VolumeError, at};
use super::layer::Home;
use super::records::{LayerRow, Life, VolumeRow};
use super::store::Inner;
use crate::failpoint;
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::fs;

type Result<T> = std::result::Result<T, VolumeError>;

impl Inner {
    /// Removes what a crash left half made or half removed, and ends what it left half grown. What cannot
    /// be removed now is tried again at the next start, and keeps nobody from the rest.
    pub(super) fn sweep(&self) -> Result<()> {
        let work = self.work();
        for entry in fs::read_dir(&work).map_err(at("read", &work))?.flatten() {
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "a file stays");
            }
        }
        let unfinished = self.records.read(|tx| {
            let unfinished = tx.unfinished()?;
            Ok(unfinished)
        })?;
        let is_gone = |layer: &LayerRow| match self.remove_layer(layer) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, layer = layer.id, "a layer's file stays");
                false
            }
        };
        let gone: Vec<_> = unfinished.iter().filter(|layer| is_gone(layer)).collect();
        self.sync_layers()?;
        take_back(&self.folder.join("layers"))?;
        self.records.write("volumes.sweep", |tx| {
            for row in tx.volumes()? {
                if row.life == Life::Making {
                    tx.drop_volume(row.id)?;
                }
            }
            gone.iter().try_for_each(|layer| tx.drop_layer(layer.id))?;
            tx.drop_unfinished_merges()
        })?;
        self.find_merges()?;
        self.tell_strays()?;
        self.grow_on()?;
        self.collect()
    }

    /// Says what of ours is in the pool and has no row: it is not ours to remove.
    fn tell_strays(&self) -> Result<()> {
        let Some(pool) = &self.pool else {
            return Ok(());
        };
        let rows = self.records.read(|tx| tx.layers_at(Home::Pool))?;
        let known: BTreeSet<_> = rows.iter().map(|layer| self.path(layer)).collect();
        for path in pool.all()? {
            if !known.contains(&path) {
                let name = path.file_name().unwrap_or_default();
                tracing::warn!(?name, "nobody knows of a thin volume with our tag");
            }
        }
        Ok(())
    }

    /// Gives each volume the size that its record has, where a crash came before its file got it. One that
    /// cannot be grown now is tried again when it is attached.
    fn grow_on(&self) -> Result<()> {
        let tops = self.records.read(|tx| {
            let rows = tx.volumes()?.into_iter();
            rows.map(|row| Ok((tx.layer(row.top)?, row)))
                .collect::<Result<Vec<_>>>()
        })?;
        if let Some(pool) = &self.pool {
            let of_pool = tops.iter().filter(|(layer, _)| layer.home == Home::Pool);
            let paths: Vec<_> = of_pool.map(|(layer, _)| self.path(layer)).collect();
            if let Err(error) = pool.gather(&paths) {
                let error = crate::vm::chain(&error);
                tracing::warn!(error, "not all volumes of the thin pool are there");
            }
        }
        for (layer, row) in tops {
            let chain = std::slice::from_ref(&layer);
            let grown = self.look_at(chain, false).and_then(|looked| {
                if looked.first().map(OpenLayer::size).transpose()? >= Some(row.size.bytes()) {
                    return Ok(());
                }
                let opened = self.open_chain(chain, true)?;
                // A guest that has outlived its node may have it.
                self.lock(&row, &opened, FlockOperation::NonBlockingLockExclusive)?;
                self.grow_to_record(&row, &opened)
            });
            if let Err(error) = grown {
                tracing::warn!(%error, volume = %row.id, "a volume's disk is not in order");
            }
        }
        Ok(())
    }

    /// Grows a top that is smaller than its volume, and that the caller has locked.
    pub(super) fn grow_to_record(&self, row: &VolumeRow, opened: &[OpenLayer]) -> Result<()> {
        let Some(top) = opened.first() else {
            return Err(VolumeError::NoVolume(row.id.to_string()));
        };
        let keeper = self.keeper(top.home)?;
        // Its VMM may have said in its image that the disk is larger before there was place for that.
        keeper.make_room(top.format, &top.path, row.size)?;
        if top.size()? >= row.size.bytes() {
            return Ok(());
        }
        keeper.grow(top, &top.path, row.size)?;
        top.file.sync_all().map_err(at("write", &top.path))
    }

    pub(super) fn remove_layer(&self, layer: &LayerRow) -> Result<()> {
        self.keeper(layer.home)?.remove(&self.path(layer))
    }

    /// Forgets a layer that came to nothing, with its file. Where that was since the disk of the records fails, a
    /// change of them that was told to have come to nothing may be there all the same when they are opened next: so the
    /// file stays until it is on the disk that nothing leads to it.
    pub(super) fn abandon(&self, layer: &LayerRow) {
        let condemned = self
            .records
            .write("layer.condemn", |tx| tx.condemn_layer(layer.id));
        let removed = match condemned {
            // That is nothing half done, and there is room again once the file is gone.
            Err(error) if !error.is_full() => Err(error),
            _ => self.remove_layer(layer),
        };
        let synced = removed.and_then(|()| self.sync_layers());
        let forgotten = synced.and_then(|()| {
            self.records
                .write("layer.abandon", |tx| tx.drop_layer(layer.id))
        });
        if let Err(error) = forgotten {
            tracing::warn!(%error, layer = layer.id, "a layer stays until the volumes are opened again");
        }
    }

    /// The same after what made it needful was done: what cannot be removed now is removed when they are
    /// opened next.
    pub(super) fn collect_later(&self) {
        if let Err(error) = self.collect() {
            tracing::warn!(%error, "layers that nobody needs stay for now");
        }
    }

    /// Removes the layers that nothing leads to any more. One that cannot be removed now, since somebody
    /// reads its device, keeps none of the others, and goes when the volumes are opened next.
    pub(super) fn collect(&self) -> Result<()> {
        let mut had_keys = false;
        let mut stays = None;
        loop {
            // Those below them have no child any more after that.
            let orphans = self.records.write("layers.condemn", |tx| {
                let orphans = tx.orphans()?;
                for layer in &orphans {
                    tx.condemn_layer(layer.id)?;
                }
                Ok(orphans)
            })?;
            if orphans.is_empty() {
                break;
            }
            let mut gone = Vec::with_capacity(orphans.len());
            for layer in &orphans {
                match self.remove_layer(layer) {
                    Ok(()) => gone.push(layer),
                    Err(error) => stays = Some(error),
                }
                failpoint::pass("layers.remove", "one");
            }
            self.sync_layers()?;
            self.records.write("layers.forget", |tx| {
                gone.iter().try_for_each(|layer| tx.drop_layer(layer.id))
            })?;
            had_keys |= gone.iter().any(|layer| layer.key.is_some());
        }
        if had_keys {
            self.records.forget()?;
        }
        stays.map_or(Ok(()), Err)
    }
}
