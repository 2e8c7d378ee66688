//! The volumes that jobs mount: found, or made, when a job is taken; leased for each start.
//!
//! | when | what |
//! | --- | --- |
//! | a job is taken | each volume is there and not in the way of others, or is made where the job says so |
//! | the job is journaled | what was made for it is seen |
//! | a start | each is leased, before there is a VM |
//! | its end | the leases end, and say whether its guest ended in order |
//!
//! # Failure cases
//! A volume that is made for a job that comes to nothing is gone with it: until the job is journaled
//! nobody sees it ([`Unseen`]), and a crash before that takes it away. One between the two leaves a job
//! without it, whose first start makes it; no later one does, since what is missing then was removed.
//! What is leased for a start that was given up meanwhile is given back.

use super::inner::Inner;
use super::{NodeError, Scope};
use crate::executor::ExecutorError;
use crate::guest::MountRequest;
use crate::hypervisor::{Disk, DiskFormat, Driver, Layer};
use crate::journal::JobRecord;
use crate::volumes::{
    Attachment, LayerFormat, Layers, NewVolume, Owner, Passphrase, Unseen, VolumeError,
};
use aleph_types::{
    Classify, ErrorClass, Filesystem, Incarnation, JobId, JobSpec, MadeVolume, Problem, Volume,
    VolumeAccess, VolumeCreate, VolumeLease, VolumeMount,
};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

/// A volume that the agent of a guest cannot mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It holds nothing, or nothing that is known of.
    #[error("the volume {0:?} has no filesystem that is known of")]
    Blank(String),
    /// It holds a filesystem that the kernel of such guests does not have.
    #[error("the volume {0:?} has {1} on it, and a microVM mounts ext4 alone")]
    Filesystem(String, Filesystem),
    /// It is kept in a form that the VMM does not read.
    #[error(
        "the volume {0:?} is encrypted, in a pool of LVM or kept as layers, and {1} takes plain files alone"
    )]
    Chain(String, String),
}

impl MountError {
    fn of(volume: &str, filesystem: Filesystem) -> Self {
        match filesystem {
            Filesystem::None => Self::Blank(volume.to_owned()),
            filesystem => Self::Filesystem(volume.to_owned(), filesystem),
        }
    }
}

impl Classify for MountError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Blank(_) => "blank_volume",
            Self::Filesystem(..) => "volume_filesystem",
            Self::Chain(..) => "volume_layers",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Blank(_) => {
                "Make one with ext4 on it (aleph volume create), or give it to a full \
                               VM, which formats it (aleph vm create)."
                    .into()
            }
            Self::Filesystem(..) => "Give it to a full VM (aleph vm create).".into(),
            Self::Chain(name, _) => format!(
                "Have QEMU run the node's VMs (executor.hypervisor), or copy what is in {name:?} to a \
                 new volume with a job of a node that does."
            ),
        })
    }
}

/// Whose disks a start has.
pub(super) fn owner(record: &JobRecord) -> Owner {
    Owner {
        job: record.job.id,
        incarnation: record.job.incarnation,
    }
}

/// Turns true when whoever wants something done is gone.
#[derive(Debug, Default)]
pub(super) struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    /// What tells so.
    pub(super) fn told(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Volumes that were made for a job. Where that comes to nothing, they go, beside what does not block.
#[derive(Debug)]
#[must_use = "dropped, they are gone"]
pub(super) struct Made {
    volumes: Vec<Unseen>,
    /// Nobody else makes volumes of their names until these are seen or gone.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Made {
    fn of(volumes: Vec<Unseen>) -> Self {
        let turn = None;
        Self { volumes, turn }
    }

    /// They, in somebody's turn to make some.
    pub(super) fn within(mut self, turn: Option<OwnedMutexGuard<()>>) -> Self {
        self.turn = turn;
        self
    }

    /// What is told of them.
    pub(super) fn told(&self) -> Vec<MadeVolume> {
        self.volumes.iter().map(Unseen::what).collect()
    }

    /// Has those go that nobody has seen by now.
    pub(super) async fn forget(mut self) {
        if let Some(forgotten) = self.begin_to_forget() {
            // A panic in it was told by itself.
            let _ = forgotten.await;
        }
    }

    fn begin_to_forget(&mut self) -> Option<JoinHandle<()>> {
        let (volumes, turn) = (std::mem::take(&mut self.volumes), self.turn.take());
        if volumes.is_empty() {
            return None;
        }
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        Some(runtime.spawn_blocking(move || {
            drop(volumes);
            drop(turn);
        }))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // It goes on by itself.
        drop(self.begin_to_forget());
    }
}

fn host(what: &str, source: io::Error) -> NodeError {
    let what = what.to_owned();
    ExecutorError::Host { what, source }.into()
}

/// How a job uses a volume.
pub(super) fn access(mount: &VolumeMount) -> VolumeAccess {
    match mount.read_only {
        true => VolumeAccess::ReadOnly,
        false => VolumeAccess::Exclusive,
    }
}

/// Says so where another job has a volume in a way that does not go with this one's.
pub(super) fn check_free(
    volume: &Volume,
    mount: &VolumeMount,
    job: JobId,
) -> Result<(), VolumeError> {
    let in_the_way = |lease: &&VolumeLease| {
        lease.job != job && (!mount.read_only || lease.access == VolumeAccess::Exclusive)
    };
    match volume.leases.iter().find(in_the_way) {
        None => Ok(()),
        Some(lease) => Err(VolumeError::Attached {
            name: volume.name.clone(),
            job: lease.job.short(),
        }),
    }
}

/// By which a guest finds a volume: the same in each start.
pub(super) fn serial_of(volume: &Volume) -> String {
    let id = volume.id.to_string();
    format!("v{}", id[2..].get(..16).unwrap_or(&id))
}

/// A key as a VMM has it.
pub(super) fn handed(key: &Option<Passphrase>) -> Result<Option<File>, NodeError> {
    let key = key.as_ref().map(Passphrase::file).transpose();
    key.map_err(|source| host("hand a volume's key over", source))
}

/// A volume as a VMM has it.
pub(super) fn disk_of(serial: String, layers: Layers) -> Result<Disk, NodeError> {
    let format = match layers.format {
        LayerFormat::Raw => DiskFormat::Raw,
        LayerFormat::Qcow2 => {
            let backing = layers.backing.into_iter().map(|layer| {
                Ok(Layer {
                    key: handed(&layer.key)?,
                    is_qcow2: layer.format == LayerFormat::Qcow2,
                    file: layer.file,
                })
            });
            let backing = backing.collect::<Result<_, NodeError>>()?;
            DiskFormat::Qcow2 { backing }
        }
    };
    Ok(Disk {
        serial: serial.into(),
        file: layers.top,
        format,
        read_only: layers.read_only,
        key: handed(&layers.key)?,
        durable: true,
    })
}

/// What the guest of a start has of its volumes.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) disks: Vec<Disk>,
    /// How its agent mounts them, in this order.
    pub(super) requests: Vec<MountRequest>,
}

/// Checks that the agent of a guest can mount a volume, on this driver.
fn check(volume: &Volume, depth: usize, driver: &dyn Driver) -> Result<(), MountError> {
    if volume.filesystem != Filesystem::Ext4 {
        return Err(MountError::of(&volume.name, volume.filesystem));
    }
    if (depth > 1 || volume.encrypted) && !driver.takes_chains() {
        return Err(MountError::Chain(volume.name.clone(), driver.name()));
    }
    Ok(())
}

impl Inner {
    /// Says so where a job could not be started now, for want of its image's disk or of a volume: whoever
    /// makes it hears so at once. Makes the volumes that it asks for where they are missing.
    pub(super) async fn expect_disks(
        self: &Arc<Self>,
        account: &str,
        job: &JobSpec,
    ) -> Result<Made, NodeError> {
        if job.volumes.is_empty() && !job.has_own_disk() {
            return Ok(Made::of(Vec::new()));
        }
        if let (true, Some(kernel)) = (job.has_own_disk(), &job.kernel) {
            self.disk_kernel(kernel).await.map_err(NodeError::Image)?;
        }
        let (inner, job, account) = (Arc::clone(self), job.clone(), account.to_owned());
        let work = tokio::task::spawn_blocking(move || {
            if job.has_own_disk() {
                super::own_disk::check(inner.id, &job)?;
                let scope = Scope::Account(account.clone());
                inner.volumes.find(&scope, &job.image)?;
            }
            let driver = inner.executor.driver_of(&job)?;
            // What is there first: nothing is made for a job that would be refused.
            let mut missing = Vec::new();
            for mount in &job.volumes {
                let found = inner.expect_volume(&account, mount).and_then(|volume| {
                    if !job.has_own_disk() {
                        check(&volume, inner.volumes.depth(volume.id)?, &**driver)?;
                    }
                    Ok(())
                });
                match (found, &mount.create) {
                    (Err(NodeError::Volume(VolumeError::NoVolume(_))), Some(create)) => {
                        let made = create.filesystem.unwrap_or_default();
                        if !job.has_own_disk() && made != Filesystem::Ext4 {
                            return Err(MountError::of(&mount.name, made).into());
                        }
                        missing.push((mount, create));
                    }
                    (found, _) => found?,
                }
            }
            let made = missing.into_iter();
            let made = made.map(|(mount, create)| inner.make_volume(&account, mount, create));
            made.collect::<Result<_, _>>().map(Made::of)
        });
        work.await
            .map_err(|join| host("look for the VM's disks", io::Error::other(join)))?
    }

    fn expect_volume(&self, account: &str, mount: &VolumeMount) -> Result<Volume, NodeError> {
        let volume = self.volumes.named(account, &mount.name)?;
        check_free(&volume, mount, JobId::from_bits(0))?;
        Ok(volume)
    }

    fn make_volume(
        &self,
        account: &str,
        mount: &VolumeMount,
        create: &VolumeCreate,
    ) -> Result<Unseen, NodeError> {
        let name = mount.name.as_str();
        let size = create.size.unwrap_or(self.volumes.default_size());
        let filesystem = create.filesystem.unwrap_or_default();
        let new = NewVolume {
            account,
            name,
            encrypted: None,
        };
        Ok(self.volumes.create_unseen(new, size, filesystem)?)
    }

    /// Has the volumes that were made for a job be seen, once that is journaled. Where that fails, its
    /// first start makes them.
    pub(super) async fn show_volumes(&self, made: &mut Made) {
        let volumes = std::mem::take(&mut made.volumes);
        if volumes.is_empty() {
            return;
        }
        let shown = tokio::task::spawn_blocking(move || {
            for volume in volumes {
                if let Err(error) = volume.show() {
                    let error = crate::vm::chain(&error);
                    tracing::error!(error, "a volume that was made for a job is lost");
                }
            }
        });
        // A panic in it was told by itself.
        let _ = shown.await;
    }

    /// Does what leases volumes for a start, beside what does not block. What was leased is given back
    /// where it fails, or whoever wanted it is gone meanwhile.
    pub(super) async fn leasing<T: Send + 'static>(
        self: &Arc<Self>,
        record: &JobRecord,
        lease: impl FnOnce(&Self, &JobRecord) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, Problem> {
        let while_wanted = GivenUp::default();
        let is_given_up = while_wanted.told();
        let (inner, record) = (Arc::clone(self), record.clone());
        let work = tokio::task::spawn_blocking(move || {
            let leased = lease(&inner, &record);
            if leased.is_err() || is_given_up.load(Ordering::Acquire) {
                inner.let_go(&owner(&record), false);
            }
            leased
        });
        match work.await {
            Ok(leased) => leased.map_err(|error| Problem::of(&error)),
            Err(join) => Err(Problem::of(&host(
                "prepare the VM's disks",
                io::Error::other(join),
            ))),
        }
    }

    /// Leases a volume that a job mounts.
    pub(super) fn attach(
        &self,
        record: &JobRecord,
        mount: &VolumeMount,
    ) -> Result<Attachment, NodeError> {
        let job = &record.job;
        let (account, owner) = (job.account.as_str(), owner(record));
        let attach = || {
            let volumes = &self.volumes;
            volumes.attach(account, &mount.name, &owner, access(mount))
        };
        let is_first = job.incarnation == Incarnation::default().next();
        match (attach(), &mount.create) {
            (Err(VolumeError::NoVolume(_)), Some(create)) if is_first => {
                self.make_volume(account, mount, create)?.show()?;
                Ok(attach()?)
            }
            (attached, _) => Ok(attached?),
        }
    }

    /// Leases the volumes that the agent of a start's guest mounts.
    pub(super) async fn prepare_mounts(
        self: &Arc<Self>,
        record: &JobRecord,
    ) -> Result<Mounts, Problem> {
        match record.job.spec.volumes.is_empty() {
            true => Ok(Mounts::default()),
            false => self.leasing(record, Self::lease_mounts).await,
        }
    }

    fn lease_mounts(&self, record: &JobRecord) -> Result<Mounts, NodeError> {
        let spec = &record.job.spec;
        let driver = self.executor.driver_of(spec)?;
        let mut volumes: Vec<&VolumeMount> = spec.volumes.iter().collect();
        // One that is mounted within another comes after it.
        volumes.sort_by(|a, b| a.path.cmp(&b.path));
        let mut mounts = Mounts::default();
        for mount in volumes {
            let Attachment { volume, layers } = self.attach(record, mount)?;
            check(&volume, 1 + layers.backing.len(), &**driver)?;
            // A device is no file that a jail could have a second name for.
            let is_file = layers.top.metadata().is_ok_and(|meta| meta.is_file());
            if !is_file && !driver.takes_chains() {
                return Err(MountError::Chain(volume.name.clone(), driver.name()).into());
            }
            let serial = serial_of(&volume);
            mounts.requests.push(MountRequest {
                serial: serial.clone(),
                filesystem: volume.filesystem.to_string(),
                target: mount.path.clone(),
                read_only: mount.read_only,
                options: String::new(),
            });
            mounts.disks.push(disk_of(serial, layers)?);
        }
        Ok(mounts)
    }

    /// Gives back what a start had leased. `clean`: its guest ended in order.
    pub(super) fn let_go(&self, owner: &Owner, clean: bool) {
        if let Err(error) = self.volumes.release(owner, clean) {
            let error = crate::vm::chain(&error);
            tracing::error!(job = %owner.job, error, "a job's volumes stay leased");
        }
    }

    /// The same, where the job may have volumes, beside what blocks.
    pub(super) async fn end_leases(self: &Arc<Self>, record: &JobRecord, clean: bool) {
        let spec = &record.job.spec;
        if spec.has_own_disk() || !spec.volumes.is_empty() {
            let (inner, owner) = (Arc::clone(self), owner(record));
            let work = tokio::task::spawn_blocking(move || inner.let_go(&owner, clean));
            // A panic in it was told by itself.
            let _ = work.await;
        }
    }
}
