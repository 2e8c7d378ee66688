//! Who has which volume: one job that writes, or any number that read.
//!
//! There are two lines of defence. A lease is a row, written before the files are handed over: it outlives
//! the daemon as guests do, and goes when its owner's end is journaled ([`Volumes::release`]), or when a
//! node that starts finds its owner gone ([`Volumes::recover`]). The lock of the file (flock(2)) is on the
//! very descriptor that the VMM has, so it holds for as long as that VMM lives, whatever any record says:
//! two never write to one disk. The check of ext4 writes, too: whoever only reads waits until it can have
//! the disk alone for that. A VMM in a jail opens the file by a name of its own there (a hard link,
//! where the filesystems are the same), which goes with the jail: such a name counts as a lock, too.

use super::backend::OpenLayer;
use super::error::{VolumeError, at};
use super::filesystem::{self, Checked};
use super::keys::Passphrase;
use super::layer::{Home, LayerFormat};
use super::records::{LayerRow, Tx, VolumeRow};
use super::store::{Inner, Volumes, present};
use aleph_types::{
    Filesystem, Incarnation, JobId, Timestamp, Volume, VolumeAccess, VolumeId, VolumeLease,
};
use rustix::fs::{FlockOperation, Mode, fchmod, fchown, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

/// How long a program may take to start.
const STARTING: Duration = Duration::from_millis(500);

/// Who has a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The job.
    pub job: JobId,
    /// Which start of it.
    pub incarnation: Incarnation,
}

/// A volume that is attached.
#[derive(Debug)]
pub struct Attachment {
    /// The volume.
    pub volume: Volume,
    /// Its files.
    pub layers: Layers,
}

/// The files of a volume, as a VMM needs them.
///
/// Each is over the one that follows, and all but the last are qcow2; the last is raw, or qcow2 where it is
/// encrypted. The headers say nothing about each other: whoever opens them has to.
#[derive(Debug)]
pub struct Layers {
    /// The layer that is written. Its descriptor has the lock: hand this very one over.
    pub top: File,
    /// How the top is written down.
    pub format: LayerFormat,
    /// What the top is encrypted with.
    pub key: Option<Passphrase>,
    /// The layers below it, to be read only.
    pub backing: Vec<OpenLayer>,
    /// Whether nobody may write to the top either.
    pub read_only: bool,
}

type Result<T> = std::result::Result<T, VolumeError>;

impl Volumes {
    /// Attaches a volume to a job: by name, in the job's account. Its filesystem is checked first where its
    /// last writer did not end in order.
    ///
    /// The same job gets what an earlier incarnation of it had, once that one's VMM is gone. The lease
    /// stays until it is released: dropping the files is not enough.
    ///
    /// # Errors
    /// Where another job has it (or, for a reader, writes to it), or its filesystem is damaged.
    pub fn attach(
        &self,
        account: &str,
        name: &str,
        owner: &Owner,
        access: VolumeAccess,
    ) -> Result<Attachment> {
        let inner = &self.inner;
        let row = inner.records.read(|tx| by_name(tx, account, name))?;
        let _turn = inner.turn(&row)?;
        // Looked at again now that nobody else changes it.
        let (row, chain) = inner.records.read(|tx| {
            let row = present(tx, row.id)?;
            check_others(tx, &row, owner, access)?;
            let chain = tx.chain(row.top)?;
            Ok((row, chain))
        })?;
        let write = access == VolumeAccess::Exclusive;
        let mut opened = inner.open_chain(&chain, write)?;
        let checks = row.unclean && can_check(&row, &chain);
        // Whoever it is for.
        let mends = checks && filesystem::check_writes(row.filesystem);
        let (alone, shared) = (
            FlockOperation::NonBlockingLockExclusive,
            FlockOperation::NonBlockingLockShared,
        );
        inner.lock(&row, &opened, if write || mends { alone } else { shared })?;
        Inner::take_back(&opened)?;
        if write {
            inner.grow_to_record(&row, &opened)?;
        }
        let is_in_order = checks && inner.check(&row, &chain)? == Checked::InOrder;
        if mends && !write {
            inner.lock(&row, &opened, shared)?;
        }
        let lease = VolumeLease {
            job: owner.job,
            incarnation: owner.incarnation,
            access,
            since: Timestamp::now(),
        };
        let volume = inner.records.write("volume.attach", |tx| {
            let mut row = present(tx, row.id)?;
            tx.put_lease(row.id, &lease)?;
            row.unclean = write || (row.unclean && !is_in_order);
            tx.put_volume(&row)?;
            if write {
                // What an earlier start of the job left, whose VMM is gone.
                tx.uncover(row.id)?;
                let mut top = tx.layer(row.top)?;
                top.written = true;
                tx.put_layer(&top)?;
            }
            inner.view(tx, &row)
        })?;
        inner.end_copies();
        let top = opened.remove(0);
        Ok(Attachment {
            volume,
            layers: Layers {
                top: top.file,
                format: top.format,
                key: top.key,
                backing: opened,
                read_only: !write,
            },
        })
    }

    /// Ends all leases of an owner. `clean` says that its guest ended in order, so that what it wrote needs
    /// no check. An owner that has none is no error.
    ///
    /// # Errors
    /// Where the records cannot be written.
    pub fn release(&self, owner: &Owner, clean: bool) -> Result<()> {
        self.inner.records.write("volume.release", |tx| {
            for (id, lease) in tx.all_leases()? {
                if (lease.job, lease.incarnation) == (owner.job, owner.incarnation) {
                    end(tx, id, &lease, clean)?;
                }
            }
            Ok(())
        })?;
        self.inner.end_copies();
        Ok(())
    }

    /// Ends the leases of owners that are gone, as `alive` knows. One whose VMM still has the file stays:
    /// what is not known to be dead is left alone. Returns the volumes that were freed.
    ///
    /// # Errors
    /// Where the records cannot be read or written.
    pub fn recover(&self, alive: impl Fn(&Owner) -> bool) -> Result<Vec<VolumeId>> {
        let leases = self.inner.records.read(|tx: &Tx<'_>| {
            let leases = tx.all_leases()?;
            Ok(leases)
        })?;
        let mut freed = Vec::new();
        for (id, lease) in leases {
            let owner = Owner {
                job: lease.job,
                incarnation: lease.incarnation,
            };
            if alive(&owner) {
                continue;
            }
            if lease.access == VolumeAccess::Exclusive && self.inner.may_be_locked(id)? {
                tracing::warn!(volume = %id, job = %lease.job, "a process still has the disk of a job that is gone");
                continue;
            }
            let ended = |tx: &Tx<'_>| end(tx, id, &lease, false);
            if self.inner.records.write("volume.recover", ended)? {
                freed.push(id);
            }
        }
        self.inner.end_copies();
        Ok(freed)
    }
}

/// Ends a lease. `false` where it was ended before.
pub(super) fn end(tx: &Tx<'_>, id: VolumeId, lease: &VolumeLease, clean: bool) -> Result<bool> {
    if !tx.drop_lease(id, lease.job, lease.incarnation)? {
        return Ok(false);
    }
    tx.forget_thaws()?;
    if lease.access == VolumeAccess::Exclusive {
        tx.end_cover(id)?;
    }
    if let Some(mut row) = tx.volume(id)?
        && clean
        && lease.access == VolumeAccess::Exclusive
    {
        row.unclean = false;
        tx.put_volume(&row)?;
    }
    Ok(true)
}

pub(super) fn by_name(tx: &Tx<'_>, account: &str, name: &str) -> Result<VolumeRow> {
    let mut rows = tx.volumes()?.into_iter();
    let found = rows.find(|row| {
        (row.account.as_str(), row.name.as_str()) == (account, name)
            && row.life == super::records::Life::Ready
    });
    found.ok_or_else(|| VolumeError::NoVolume(name.to_owned()))
}

/// Checks that nobody else has it in a way that does not go together.
fn check_others(tx: &Tx<'_>, row: &VolumeRow, owner: &Owner, access: VolumeAccess) -> Result<()> {
    let both_read = |lease: &VolumeLease| {
        access == VolumeAccess::ReadOnly && lease.access == VolumeAccess::ReadOnly
    };
    let is_earlier =
        |lease: &VolumeLease| lease.job == owner.job && lease.incarnation <= owner.incarnation;
    let mut leases = tx.leases(row.id)?.into_iter();
    match leases.find(|lease| !both_read(lease) && !is_earlier(lease)) {
        Some(lease) => Err(attached(row, &lease)),
        None => Ok(()),
    }
}

/// Whether the filesystem that a writer left can be checked. Else only its guest can: of an overlay there is no
/// one file to look at, and what is encrypted is not made plain for it. Its guest goes by its journal.
///
/// What would show a chain as one disk (`qemu-storage-daemon`, by NBD or FUSE) would have the host's kernel
/// wait for a process that reads what a VMM wrote, with a device or a mount that a crash leaves behind; and a
/// copy of the chain costs as much as there is, at each start after an end that was not in order.
fn can_check(row: &VolumeRow, chain: &[LayerRow]) -> bool {
    matches!(chain, [only] if only.format == LayerFormat::Raw) && row.filesystem != Filesystem::None
}

/// Locks a file. A program that is being started has copies of all descriptors until it is another program.
fn try_lock(file: &File, how: FlockOperation) -> rustix::io::Result<()> {
    let began = Instant::now();
    loop {
        let locked = flock(file, how);
        if locked != Err(Errno::WOULDBLOCK) || began.elapsed() > STARTING {
            return locked;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a jail has a name for a layer's file.
fn has_other_names(layer: &OpenLayer) -> bool {
    layer.file.metadata().is_ok_and(|meta| meta.nlink() > 1)
}

pub(super) fn attached(row: &VolumeRow, lease: &VolumeLease) -> VolumeError {
    VolumeError::Attached {
        name: row.name.clone(),
        job: lease.job.short(),
    }
}

impl Inner {
    /// Checks that nobody writes to it.
    pub(super) fn check_unwritten(&self, tx: &Tx<'_>, row: &VolumeRow) -> Result<()> {
        let mut leases = tx.leases(row.id)?.into_iter();
        match leases.find(|lease| lease.access == VolumeAccess::Exclusive) {
            Some(lease) => Err(attached(row, &lease)),
            None => Ok(()),
        }
    }

    /// Checks that nobody has it.
    pub(super) fn check_detached(&self, tx: &Tx<'_>, row: &VolumeRow) -> Result<()> {
        match tx.leases(row.id)?.first() {
            Some(lease) => Err(attached(row, lease)),
            None => Ok(()),
        }
    }

    /// Checks that no process writes to its top, and has none begin for as long as this is open.
    pub(super) fn check_unlocked(&self, row: &VolumeRow, opened: &[OpenLayer]) -> Result<()> {
        self.lock(row, opened, FlockOperation::NonBlockingLockShared)
    }

    pub(super) fn lock(
        &self,
        row: &VolumeRow,
        opened: &[OpenLayer],
        how: FlockOperation,
    ) -> Result<()> {
        let Some(top) = opened.first() else {
            return Err(VolumeError::NoVolume(row.id.to_string()));
        };
        match try_lock(&top.file, how) {
            Err(Errno::WOULDBLOCK) => return Err(VolumeError::Locked(row.name.clone())),
            locked => locked
                .map_err(io::Error::from)
                .map_err(at("lock", &top.path))?,
        }
        if how == FlockOperation::NonBlockingLockExclusive && has_other_names(top) {
            return Err(VolumeError::Locked(row.name.clone()));
        }
        // A writer's VMM of which nobody knows whether it went over to its cover, and ended.
        let below = self.records.read(|tx| tx.below_cover(row.id))?;
        match below {
            Some(below) if self.has_writer(&below)? => Err(VolumeError::Locked(row.name.clone())),
            _ => Ok(()),
        }
    }

    /// Whether a process has a layer to write.
    fn has_writer(&self, layer: &LayerRow) -> Result<bool> {
        // As one that is not exposed: nobody looks into it.
        let layer = LayerRow {
            exposed: false,
            ..layer.clone()
        };
        let opened = match self.look_at(std::slice::from_ref(&layer), false) {
            Ok(opened) => opened,
            // Nobody opens what is not there.
            Err(VolumeError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let lock = FlockOperation::NonBlockingLockShared;
        Ok(opened.iter().any(|layer| {
            has_other_names(layer) || try_lock(&layer.file, lock) == Err(Errno::WOULDBLOCK)
        }))
    }

    /// Has a top be the node's own again: one that was in a jail is the user's of that one. The caller has
    /// it locked.
    fn take_back(opened: &[OpenLayer]) -> Result<()> {
        let Some(top) = opened.first().filter(|top| top.home == Home::Folder) else {
            return Ok(());
        };
        let (us, mode) = (rustix::process::geteuid(), Mode::from_raw_mode(0o644));
        let taken = || -> io::Result<()> {
            let meta = top.file.metadata()?;
            if meta.uid() != us.as_raw() {
                fchown(&top.file, Some(us), Some(rustix::process::getegid()))?;
            }
            if meta.mode() & 0o7777 != mode.as_raw_mode() {
                fchmod(&top.file, mode)?;
            }
            Ok(())
        };
        taken().map_err(at("take back", &top.path))
    }

    /// Whether a process has a volume's top to write, or that cannot be known.
    fn may_be_locked(&self, id: VolumeId) -> Result<bool> {
        let written = self.records.read(|tx| {
            let top = tx.volume(id)?.map(|row| tx.layer(row.top)).transpose()?;
            Ok([top, tx.below_cover(id)?])
        })?;
        for layer in written.iter().flatten() {
            match self.has_writer(layer) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                // One volume that is damaged keeps no other from its end.
                Err(error) => {
                    tracing::warn!(%error, volume = %id, "a volume's disk cannot be looked at");
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Checks the filesystem that a writer left, of a volume that [can be checked](can_check) and that nobody
    /// writes to; the caller has it alone where the check [writes](filesystem::check_writes).
    fn check(&self, row: &VolumeRow, chain: &[LayerRow]) -> Result<Checked> {
        let Some(only) = chain.first() else {
            return Err(VolumeError::NoVolume(row.id.to_string()));
        };
        let path = self.path(only);
        let mends = filesystem::check_writes(row.filesystem);
        let disk = self.keeper(only.home)?.open(&path, mends)?;
        let checked = filesystem::check(&disk, row.filesystem, row.size, &row.name)?;
        if mends {
            disk.sync_all().map_err(at("write", &path))?;
        }
        Ok(checked)
    }
}
