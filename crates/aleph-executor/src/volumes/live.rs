//! What is done with a volume while a guest writes to it: the records' side.
//!
//! The other side is the VMM's, and whoever calls this asks it ([`crate::node`]). Of three things that can
//! be done, each has its order:
//!
//! - **To grow** ([`Volumes::grow_record`]): the record first, then the VMM's disk, which is never larger
//!   than its record. Where the VMM does not, [`Volumes::undo_growth`]; who finds a VMM that was not told
//!   sees that there is place first ([`Volumes::make_room`]).
//! - **To let one go** ([`Volumes::release_one`]): the VMM first, then the lease.
//! - **To keep a state**: a *cover*, an empty qcow2 layer, is put over what the guest writes to.
//!
//! | step of a cover | what is recorded from then on | what a crash before the next leaves |
//! | --- | --- | --- |
//! | [`Volumes::begin_cover`] | the layer, `making`, and the cover | a file: it goes |
//! | [`Volumes::arm_cover`] | the layer is the volume's top | a top that is empty, or that the VMM writes to: what is read through it is right either way |
//! | [`Volumes::freezing`] | the guest's filesystems may stand still | the same, and a guest that is to go on |
//! | the VMM writes to the layer | | the same |
//! | [`Volumes::finish_cover`] | what is below has a name | a state that is kept |
//!
//! So no acknowledged write is lost: before the VMM goes over to the new layer, the layer is read through to
//! the old one, and afterwards too. While a cover is armed, nothing says yet that what is below stands still:
//! only the VMM knows. Whoever finds one asks it, and goes on ([`Volumes::finish_cover`]) or back
//! ([`Volumes::undo_cover`]). With the end of its writer's lease a cover ends, whatever became of it. One that
//! was armed is remembered until the next writer comes, who looks whether a process still has what is below:
//! nobody may have the cover itself, and the VMM may live.
//!
//! What is below a cover keeps being open in the VMM, for writing: the VMM may be broken into. So as long as
//! that VMM lives nobody's tool reads a header there; it gets a copy ([`exposed`](super::exposed)).

use super::backend::{Branch, MAX_DEPTH, OpenLayer};
use super::changes::check_new;
use super::error::{VolumeError, at};
use super::keys::Passphrase;
use super::layer::{Home, LayerFormat};
use super::lease::{Layers, Owner, attached, end};
use super::reading::Reading;
use super::records::{LayerId, LayerRow, NewLayer, Tx, VolumeRow, number, parsed, time, whole};
use super::store::{ImagePlace, Inner, Volumes, check_name, check_size, present};
use crate::failpoint;
use aleph_types::{
    Incarnation, MiB, Timestamp, Volume, VolumeAccess, VolumeConsistency, VolumeId, VolumeSnapshot,
};
use rusqlite::{OptionalExtension, Row, params};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, VolumeError>;

/// A layer that is about to be put over what a guest writes to.
#[derive(Debug)]
pub struct Cover {
    /// Of which volume.
    pub volume: VolumeId,
    /// Its number, which no other layer has.
    pub layer: i64,
    /// Its file, whose descriptor has the lock: hand this very one over.
    pub file: File,
    /// What it is encrypted with.
    pub key: Option<Passphrase>,
}

impl Layers {
    /// What a VMM has once it has gone over to a cover.
    #[must_use]
    pub fn covered(self, cover: Cover) -> Self {
        let below = OpenLayer {
            is_encrypted: self.key.is_some(),
            file: self.top,
            format: self.format,
            key: self.key,
            home: Home::Folder,
            path: PathBuf::new(),
            name: None,
        };
        Self {
            top: cover.file,
            format: LayerFormat::Qcow2,
            key: cover.key,
            backing: [below].into_iter().chain(self.backing).collect(),
            read_only: self.read_only,
        }
    }
}

/// What a volume had, and has by its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Before.
    pub before: MiB,
    /// Now: in a pool of LVM in whole extents.
    pub size: MiB,
}

/// What the guest's filesystems do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GuestState {
    /// They go on.
    Running,
    /// They were asked to stand still, or go on: nobody heard.
    Freezing,
    /// They stood still before the VMM went over.
    Frozen,
}

impl GuestState {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "frozen" => Self::Frozen,
            // What is not known may be so.
            _ => Self::Freezing,
        }
    }
}

/// A cover that somebody began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Of which volume.
    pub volume: VolumeId,
    /// The number of its layer.
    pub layer: i64,
    /// Whether the layer is the volume's top.
    pub armed: bool,
    /// What the guest's filesystems do.
    pub guest: GuestState,
}

/// A state of a volume that stands still below what its guest writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    layer: LayerId,
    size: MiB,
    /// What it is.
    pub consistency: VolumeConsistency,
}

struct CoverRow {
    volume: VolumeId,
    owner: Owner,
    layer: LayerId,
    below: LayerId,
    name: Option<String>,
    size: MiB,
    created: Timestamp,
    armed: bool,
    guest: GuestState,
}

const THAWS: &str = "thaws";

const COVER: &str =
    "SELECT volume, job, incarnation, layer, below, name, size, created, step, guest
                     FROM covers";

fn cover_row(row: &Row<'_>) -> rusqlite::Result<CoverRow> {
    let (step, guest): (String, String) = (row.get(8)?, row.get(9)?);
    Ok(CoverRow {
        volume: parsed(row, 0)?,
        owner: Owner {
            job: parsed(row, 1)?,
            incarnation: Incarnation::from_count(number(row, 2)?),
        },
        layer: row.get(3)?,
        below: row.get(4)?,
        name: row.get(5)?,
        size: MiB(row.get(6)?),
        created: time(row, 7)?,
        armed: step == "armed",
        guest: GuestState::of(&guest),
    })
}

impl Tx<'_> {
    fn put_cover(&self, row: &CoverRow) -> Result<()> {
        self.0.execute(
            "INSERT OR REPLACE INTO covers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                row.volume.to_string(),
                row.owner.job.to_string(),
                whole(row.owner.incarnation.get())?,
                row.layer,
                row.below,
                row.name,
                row.size.0,
                row.created.as_millisecond(),
                if row.armed { "armed" } else { "making" },
                row.guest.word(),
            ],
        )?;
        Ok(())
    }

    fn cover(&self, volume: VolumeId) -> Result<Option<CoverRow>> {
        let sql = format!("{COVER} WHERE volume = ?1");
        let found = self.0.query_row(&sql, [volume.to_string()], cover_row);
        Ok(found.optional()?)
    }

    /// What a VMM may still write to where a cover is begun.
    pub(super) fn below_cover(&self, volume: VolumeId) -> Result<Option<LayerRow>> {
        match self.cover(volume)?.map(|cover| self.layer(cover.below)) {
            None => Ok(None),
            // It is gone since its VMM is, and the volume went on from elsewhere.
            Some(Err(VolumeError::Records(rusqlite::Error::QueryReturnedNoRows))) => Ok(None),
            Some(layer) => layer.map(Some),
        }
    }

    /// Ends what is begun with a writer's lease. Where a cover is armed, it is not known which layer the VMM
    /// writes to, nor that it ended: that stays until somebody found that no process has the one below.
    pub(super) fn end_cover(&self, volume: VolumeId) -> Result<()> {
        // Whatever becomes of the cover, nobody reads through a layer that is merged now.
        self.drop_merge(volume)?;
        match self.cover(volume)?.is_some_and(|cover| cover.armed) {
            true => Ok(()),
            false => self.uncover(volume),
        }
    }

    fn drop_cover(&self, volume: VolumeId) -> Result<()> {
        let sql = "DELETE FROM covers WHERE volume = ?1";
        self.0.execute(sql, [volume.to_string()])?;
        Ok(())
    }

    /// Forgets what only the VMM of a writer knew, which is gone.
    pub(super) fn uncover(&self, volume: VolumeId) -> Result<()> {
        self.drop_cover(volume)?;
        self.drop_merge(volume)?;
        let sql = "DELETE FROM covered WHERE volume = ?1";
        self.0.execute(sql, [volume.to_string()])?;
        Ok(())
    }

    /// What the guest of an owner may do that has to be told to go on.
    fn thaw_owed(&self, owner: &Owner) -> Result<GuestState> {
        let covers = self.thaw_in("covers", owner)?;
        Ok(covers.max(self.thaw_in(THAWS, owner)?))
    }

    fn thaw_in(&self, table: &str, owner: &Owner) -> Result<GuestState> {
        let sql = format!("SELECT guest FROM {table} WHERE job = ?1 AND incarnation = ?2");
        let job = owner.job.to_string();
        let incarnation = whole(owner.incarnation.get())?;
        let words: Vec<String> = self.all(&sql, &[&job, &incarnation], |row| row.get(0))?;
        let states = words.iter().map(|word| GuestState::of(word));
        Ok(states.max().unwrap_or(GuestState::Running))
    }

    /// Who was left standing once stays so until it is said that they run, whatever is owed besides.
    fn owe_thaw(&self, owner: &Owner, guest: GuestState) -> Result<()> {
        let owed = self.thaw_owed(owner)?;
        let guest = match guest {
            GuestState::Running => guest,
            _ => guest.max(owed),
        };
        let (job, incarnation) = (owner.job.to_string(), whole(owner.incarnation.get())?);
        let sql = "DELETE FROM thaws WHERE job = ?1 AND incarnation = ?2";
        self.0.execute(sql, params![job, incarnation])?;
        if guest != GuestState::Running {
            let sql = "INSERT INTO thaws VALUES (?1, ?2, ?3)";
            let values = params![job, incarnation, guest.word()];
            self.0.execute(sql, values)?;
        }
        Ok(())
    }

    /// Forgets what was owed to guests that are gone: each has its root disk to its end.
    pub(super) fn forget_thaws(&self) -> Result<()> {
        let sql = "DELETE FROM thaws WHERE NOT EXISTS (SELECT 1 FROM leases
                   WHERE leases.job = thaws.job AND leases.incarnation = thaws.incarnation)";
        self.0.execute(sql, [])?;
        Ok(())
    }

    fn add_covered(&self, layer: LayerId, volume: VolumeId) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO covered VALUES (?1, ?2)";
        self.0.execute(sql, params![layer, volume.to_string()])?;
        Ok(())
    }

    /// The layers that a volume's writer wrote to before they were covered, in that order; also those that are
    /// gone by now.
    pub(super) fn covered(&self, volume: VolumeId) -> Result<Vec<LayerId>> {
        let sql = "SELECT layer FROM covered WHERE volume = ?1 ORDER BY layer";
        self.all(sql, &[&volume.to_string()], |row| row.get(0))
    }

    fn add_point(&self, volume: VolumeId, name: &str, is: VolumeConsistency) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO points VALUES (?1, ?2, ?3)";
        let is = is.to_string();
        self.0.execute(sql, [&volume.to_string(), name, &is])?;
        Ok(())
    }

    /// Checks that it is this owner who writes to a volume.
    pub(super) fn check_writer(&self, row: &VolumeRow, owner: &Owner) -> Result<()> {
        let leases = self.leases(row.id)?;
        let is_its = |job, incarnation| (job, incarnation) == (owner.job, owner.incarnation);
        match leases.first() {
            Some(lease)
                if lease.access == VolumeAccess::Exclusive
                    && is_its(lease.job, lease.incarnation) =>
            {
                Ok(())
            }
            Some(lease) => Err(attached(row, lease)),
            None => Err(VolumeError::NotAttached(row.name.clone())),
        }
    }
}

impl Volumes {
    /// The volumes that an owner has, with what is begun of them.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn held_by(&self, owner: &Owner) -> Result<Vec<(Volume, Option<Pending>)>> {
        let inner = &self.inner;
        inner.records.read(|tx| {
            let mut held = Vec::new();
            for (id, lease) in tx.all_leases()? {
                if (lease.job, lease.incarnation) != (owner.job, owner.incarnation) {
                    continue;
                }
                let pending = tx.cover(id)?.map(|row| Pending {
                    volume: id,
                    layer: row.layer,
                    armed: row.armed,
                    guest: row.guest,
                });
                held.push((inner.view(tx, &present(tx, id)?)?, pending));
            }
            Ok(held)
        })
    }

    /// Ends one lease of an owner, whose VMM has the volume no more. One that is not there is no error.
    ///
    /// # Errors
    /// Where the records cannot be written.
    pub fn release_one(&self, id: VolumeId, owner: &Owner) -> Result<()> {
        self.inner.records.write("volume.release_one", |tx| {
            for lease in tx.leases(id)? {
                if (lease.job, lease.incarnation) == (owner.job, owner.incarnation) {
                    end(tx, id, &lease, false)?;
                }
            }
            Ok(())
        })?;
        self.inner.end_copies();
        Ok(())
    }

    /// Records that a volume which its owner writes to is larger, before its disk is, and makes place for that.
    ///
    /// # Errors
    /// Where somebody else has it, it would become smaller, or there is no room for so much. Its record stays
    /// as it was then, as [`Volumes::undo_growth`] has it.
    pub fn grow_record(&self, id: VolumeId, owner: &Owner, size: MiB) -> Result<Growth> {
        let row = self.inner.of_writer(id, owner)?;
        let top = self.inner.records.read(|tx| tx.layer(row.top))?;
        let keeper = self.inner.keeper(top.home)?;
        if size < row.size {
            let why = format!("it has {}, and volumes only grow", row.size);
            return Err(VolumeError::BadSize { size, why });
        }
        check_size(size, row.size, "it")?;
        let size = keeper.whole(size);
        let path = self.inner.path(&top);
        // What is refused before anything is done needs no undoing.
        keeper.check_room(top.format, &path, size)?;
        self.inner.records.write("volume.grow_live", |tx| {
            let more = size.bytes() - row.size.bytes();
            self.inner.check_quota(tx, &row.account, (0, more))?;
            put_size(tx, id, size)
        })?;
        let growth = Growth {
            before: row.size,
            size,
        };
        if let Err(error) = keeper.make_room(top.format, &path, size) {
            self.undo_growth(id, growth);
            return Err(error);
        }
        Ok(growth)
    }

    /// Makes place for a volume that its owner writes to, as large as its record says it is: whoever recorded
    /// that may have ended before there was any.
    ///
    /// # Errors
    /// Where somebody else has it, or there is no room for so much.
    pub fn make_room(&self, id: VolumeId, owner: &Owner) -> Result<()> {
        let row = self.inner.of_writer(id, owner)?;
        let top = self.inner.records.read(|tx| tx.layer(row.top))?;
        let keeper = self.inner.keeper(top.home)?;
        keeper.make_room(top.format, &self.inner.path(&top), row.size)
    }

    /// Takes a growth back where the disk did not become larger. What has its new size keeps it, in its record and
    /// in what its account is charged for: in a pool of LVM there may be place for it whatever its VMM did, and
    /// whoever is given the disk next is given all of it. Whether its writer is there still does not matter.
    ///
    /// What cannot be looked at, or recorded, keeps its new size, too, and becomes as large as that: whoever called
    /// this has a reason to tell that came first.
    pub fn undo_growth(&self, id: VolumeId, growth: Growth) {
        if let Err(error) = self.inner.undo_growth(id, growth) {
            let error = crate::vm::chain(&error);
            tracing::warn!(volume = %id, error, "a volume that did not grow has its new size");
        }
    }

    /// Begins a cover of a volume that its owner writes to. `name` is what the state below it is called, where
    /// it is kept for good.
    ///
    /// # Errors
    /// [`VolumeError::TooDeep`] where there are as many layers as may be; where another one is begun, or there
    /// is no room. Nothing is left then.
    pub fn begin_cover(&self, id: VolumeId, owner: &Owner, name: Option<&str>) -> Result<Cover> {
        name.map_or(Ok(()), check_name)?;
        let inner = &self.inner;
        let row = inner.of_writer(id, owner)?;
        let layer = inner.records.write("cover.begin", |tx| {
            tx.check_writer(&row, owner)?;
            name.map_or(Ok(()), |name| check_new(tx, id, name))?;
            if tx.cover(id)?.is_some() {
                return Err(VolumeError::Busy(row.name.clone()));
            }
            let depth = tx.chain(row.top)?.len();
            if depth >= MAX_DEPTH {
                return Err(VolumeError::TooDeep(row.name.clone(), depth));
            }
            let top = tx.layer(row.top)?;
            inner.check_quota(tx, &row.account, (0, inner.allocated(&top)?))?;
            let new = NewLayer {
                format: LayerFormat::Qcow2,
                parent: Some(row.top),
                home: inner.backend.home(),
                key: top.key,
            };
            let layer = tx.add_layer(&row.account, &new, row.size.bytes())?;
            tx.put_cover(&CoverRow {
                volume: id,
                owner: *owner,
                layer: layer.id,
                below: row.top,
                name: name.map(str::to_owned),
                size: row.size,
                created: Timestamp::now(),
                armed: false,
                guest: GuestState::Running,
            })?;
            Ok(layer)
        })?;
        let made = inner.fill_cover(&row, &layer);
        match made {
            Ok((file, key)) => Ok(Cover {
                volume: id,
                layer: layer.id,
                file,
                key,
            }),
            Err(error) => {
                self.give_up_cover(id, layer.id)?;
                Err(error)
            }
        }
    }

    /// Forgets a cover that was not armed, whatever became of its writer and its volume meanwhile: the lease may
    /// be over, and the volume gone. One that is not there is no error.
    ///
    /// # Errors
    /// Where the records cannot be written.
    pub fn give_up_cover(&self, id: VolumeId, layer: i64) -> Result<()> {
        let inner = &self.inner;
        let layer = inner.records.write("cover.give_up", |tx| {
            let is_it = |cover: &CoverRow| cover.layer == layer && !cover.armed;
            if tx.cover(id)?.as_ref().is_some_and(is_it) {
                tx.drop_cover(id)?;
            }
            // One that was armed is finished.
            let mut unfinished = tx.unfinished()?.into_iter();
            Ok(unfinished.find(|row| row.id == layer))
        })?;
        if let Some(layer) = layer {
            inner.abandon(&layer);
            // Those below it had to stay for it.
            inner.collect_later();
        }
        Ok(())
    }

    /// Makes a cover its volume's top: from now on the VMM may write to it.
    ///
    /// # Errors
    /// Where its owner has ended meanwhile.
    pub fn arm_cover(&self, id: VolumeId, owner: &Owner) -> Result<()> {
        let inner = &self.inner;
        inner.records.write("cover.arm", |tx| {
            let mut row = present(tx, id)?;
            tx.check_writer(&row, owner)?;
            let cover = of_owner(tx, &row, owner)?;
            let mut below = tx.layer(cover.below)?;
            // While it was written, its account paid for all that it could hold.
            below.charge = inner.allocated(&below)?;
            tx.put_layer(&below)?;
            tx.add_covered(cover.below, id)?;
            let top = tx.layer(cover.layer)?;
            tx.put_layer(&LayerRow {
                written: true,
                ..top
            })?;
            row.top = cover.layer;
            tx.put_volume(&row)?;
            tx.put_cover(&CoverRow {
                armed: true,
                ..cover
            })
        })
    }

    /// Notes what a guest's filesystems are about to do, or have done, while a cover is put in place.
    ///
    /// # Errors
    /// Where its owner has ended meanwhile.
    pub fn freezing(&self, id: VolumeId, owner: &Owner, guest: GuestState) -> Result<()> {
        self.inner.records.write("cover.guest", |tx| {
            let row = present(tx, id)?;
            let cover = of_owner(tx, &row, owner)?;
            tx.put_cover(&CoverRow { guest, ..cover })
        })
    }

    /// What an owner's guest may do since somebody had its filesystems stand still: it has to be told to go on,
    /// where they may not run.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn thaw_owed(&self, owner: &Owner) -> Result<GuestState> {
        self.inner.records.read(|tx| tx.thaw_owed(owner))
    }

    fn thaw_recorded(&self, owner: &Owner) -> Result<GuestState> {
        self.inner.records.read(|tx| tx.thaw_in(THAWS, owner))
    }

    /// Notes that, apart from what is done with its volumes: it stays until its VM's end, or until it is said
    /// that they run.
    ///
    /// # Errors
    /// Where the records cannot be written.
    pub fn owe_thaw(&self, owner: &Owner, guest: GuestState) -> Result<()> {
        // Most often it is what is recorded already.
        if guest != GuestState::Running && self.thaw_recorded(owner)? >= guest {
            return Ok(());
        }
        let owe = |tx: &Tx<'_>| tx.owe_thaw(owner, guest);
        self.inner.records.write("cover.owed", owe)
    }

    /// Ends a cover that the VMM writes to: what is below it stands still, and is called what it was to be.
    ///
    /// # Errors
    /// Where its owner has ended meanwhile, or the name was taken meanwhile; then it ends without one.
    pub fn finish_cover(&self, id: VolumeId, owner: &Owner) -> Result<Point> {
        let inner = &self.inner;
        let (point, named) = inner.records.write("cover.finish", |tx| {
            let row = present(tx, id)?;
            let cover = of_owner(tx, &row, owner)?;
            let consistency = match cover.guest {
                GuestState::Frozen => VolumeConsistency::Filesystem,
                GuestState::Running | GuestState::Freezing => VolumeConsistency::Crash,
            };
            let mut below = tx.layer(cover.below)?;
            below.charge = inner.allocated(&below)?;
            tx.put_layer(&below)?;
            let mut named = Ok(());
            if let Some(name) = &cover.name {
                named = check_new(tx, id, name);
                if named.is_ok() {
                    let snapshot = VolumeSnapshot {
                        name: name.clone(),
                        size: cover.size,
                        created_at: cover.created,
                        consistency: Some(consistency),
                    };
                    tx.add_snapshot(id, cover.below, &snapshot)?;
                    tx.add_point(id, name, consistency)?;
                }
            }
            tx.drop_cover(id)?;
            let point = Point {
                layer: cover.below,
                size: cover.size,
                consistency,
            };
            Ok((point, named))
        })?;
        named.map(|()| point)
    }

    /// Takes a cover back that the VMM does not write to.
    ///
    /// # Errors
    /// Where its owner has ended meanwhile, or the records cannot be written.
    pub fn undo_cover(&self, id: VolumeId, owner: &Owner) -> Result<()> {
        let inner = &self.inner;
        let layer = inner.records.write("cover.undo", |tx| {
            let mut row = present(tx, id)?;
            let cover = of_owner(tx, &row, owner)?;
            if cover.armed {
                let mut below = tx.layer(cover.below)?;
                (below.charge, below.written) = (row.size.bytes(), true);
                tx.put_layer(&below)?;
                row.top = cover.below;
                tx.put_volume(&row)?;
                tx.condemn_layer(cover.layer)?;
                let sql = "DELETE FROM covered WHERE layer = ?1";
                tx.0.execute(sql, [cover.below])?;
            }
            tx.drop_cover(id)?;
            match tx.layer(cover.layer) {
                Ok(layer) => Ok(Some(layer)),
                // Whoever opened the volumes after a crash took it for half-made.
                Err(VolumeError::Records(rusqlite::Error::QueryReturnedNoRows)) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        failpoint::pass("cover.undo", "forgotten");
        if let Some(layer) = layer {
            inner.abandon(&layer);
        }
        inner.end_copies();
        Ok(())
    }

    /// A state that stands still below what a guest writes to.
    ///
    /// # Errors
    /// Where its layers are gone, or there is no room.
    pub fn read_point(&self, id: VolumeId, point: &Point) -> Result<Reading> {
        self.read_point_in(self.image_place()?, id, point, || {})
    }

    /// The same in a place that was taken before the state was kept. `opened_all` is told once all its layers are open:
    /// they may go then.
    ///
    /// # Errors
    /// As [`Volumes::read_point`].
    pub fn read_point_in(
        &self,
        ImagePlace(place, free): ImagePlace,
        id: VolumeId,
        point: &Point,
        opened_all: impl FnOnce(),
    ) -> Result<Reading> {
        let inner = &self.inner;
        let row = inner.records.read(|tx| present(tx, id))?;
        let (chain, opened) = {
            let _turn = inner.turn(&row)?;
            let chain = inner.records.read(|tx| tx.chain(point.layer))?;
            let opened = inner.open_chain(&chain, false)?;
            (chain, opened)
        };
        opened_all();
        self.reading((&chain, opened), (point.size, free), true, place)
    }
}

/// The cover that this owner, who still has the volume, began.
fn of_owner(tx: &Tx<'_>, row: &VolumeRow, owner: &Owner) -> Result<CoverRow> {
    tx.check_writer(row, owner)?;
    let cover = tx.cover(row.id)?.filter(|cover| cover.owner == *owner);
    cover.ok_or_else(|| VolumeError::NotAttached(row.name.clone()))
}

fn put_size(tx: &Tx<'_>, id: VolumeId, size: MiB) -> Result<()> {
    let row = present(tx, id)?;
    let top = tx.layer(row.top)?;
    tx.put_layer(&LayerRow {
        charge: size.bytes(),
        written: true,
        ..top
    })?;
    tx.put_volume(&VolumeRow { size, ..row })
}

impl Inner {
    /// A volume that its owner writes to. Nobody's turn is needed: what others do with it meanwhile begins
    /// with a look at its leases, and each step here is one change of the records.
    fn of_writer(&self, id: VolumeId, owner: &Owner) -> Result<VolumeRow> {
        self.records.read(|tx| {
            let row = present(tx, id)?;
            tx.check_writer(&row, owner)?;
            Ok(row)
        })
    }

    fn undo_growth(&self, id: VolumeId, growth: Growth) -> Result<()> {
        let row = self.records.read(|tx| present(tx, id))?;
        // Who attaches it meanwhile has it grow to what its record says.
        let _turn = self.turn(&row)?;
        let top = self.records.read(|tx| tx.layer(present(tx, id)?.top))?;
        let looked = self.look_at(std::slice::from_ref(&top), false)?;
        let there = looked.first().map(OpenLayer::size).transpose()?;
        if there >= Some(growth.size.bytes()) {
            return Ok(());
        }
        self.records.write("volume.grow_live_undone", |tx| {
            let row = present(tx, id)?;
            // Its size is somebody else's by now.
            if (row.top, row.size) != (top.id, growth.size) {
                return Ok(());
            }
            put_size(tx, id, growth.before)
        })
    }

    /// Makes the file of a cover, durable and locked, and gives the key that it has.
    fn fill_cover(&self, row: &VolumeRow, layer: &LayerRow) -> Result<(File, Option<Passphrase>)> {
        let key = layer.key.as_ref().map(|id| self.key(id)).transpose()?;
        self.fill(layer, (row.size, key.as_ref()), |top| {
            self.backend.make(&[], Branch::Overlay, top)
        })?;
        let path = self.path(layer);
        let file = self.keeper(layer.home)?.open(&path, true)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(at("lock", &path))?;
        Ok((file, key))
    }
}
