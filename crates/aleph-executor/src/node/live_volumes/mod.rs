//! Volumes of full VMs that run: attached, detached, grown, and kept while their guests write.
//!
//! | what | order | who goes on after a crash |
//! | --- | --- | --- |
//! | attach | the job's record has the volume and the change; lease; the machine gets the disk; the change is over | the job's actor, when it adopts the VM: what the machine has is what the job has |
//! | detach | the job's record has the change; the guest lets go; lease ends; the volume leaves the record | the same |
//! | resize | the volume's record; its place, in a pool of LVM; the machine's disk | [`Inner::settle_volumes`], by the same look |
//! | snapshot, backup | a cover is begun and armed; the guest's filesystems stand still where its agent can do that; the machine goes over to the cover; they go on; the state below has its name; layers are merged where there are many ([`volume_merges`](super::volume_merges)) | the same |
//!
//! In each the VMM is asked what there is, and never a record: it knows what it does. A job that does not run
//! has its record changed and nothing else.
//!
//! # Failure cases
//! A guest that does not let go keeps its disk, and the job its volume ([`MachineError::Kept`]). A VMM that
//! does not answer is asked until it does or has ended; meanwhile the job's volumes change no further. Where
//! the VM ends in the middle, the job has the volumes that it had before, and all leases end with it. Where the
//! guest has no agent, or that does not answer, what is kept is as after a loss of power, and is said to be
//! ([`VolumeConsistency::Crash`](aleph_types::VolumeConsistency::Crash)). Filesystems that were asked to stand
//! still are asked to go on until they do, or their agent says that it does not do such things: that is
//! remembered apart ([`Volumes::owe_thaw`](crate::volumes::Volumes::owe_thaw)), and holds up nothing else of the
//! volume. What becomes of a state that is kept follows from what the machine did alone.

mod covers;
mod guest;
mod plugging;
mod settling;

pub(super) use plugging::Changed;

use self::covers::Kept;
use super::actor::{Ask, Detach, VolumeAsk};
use super::entry::lock;
use super::inner::Inner;
use super::mounts::serial_of;
use super::own_disk;
use super::{Node, NodeError, Scope};
use crate::executor::ExecutorError;
use crate::failpoint;
use crate::hypervisor::{Hotplug, LiveDisks, Vmm};
use crate::qemu::machine::MachineError;
use crate::volumes::{Owner, Reading, VolumeError, Volumes};
use aleph_types::{
    JobId, MiB, Volume, VolumeAccess, VolumeAttach, VolumeAttachment, VolumeConsistency, VolumeId,
    VolumeMount, VolumeState,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;

/// How often a machine is asked that does not answer.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// The same once that came to nothing often.
pub(super) const AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// A volume's bytes at one moment.
#[derive(Debug)]
pub struct VolumeImage {
    /// Of which volume.
    pub volume: VolumeId,
    /// They.
    pub image: Reading,
    /// What they are, where a guest wrote meanwhile.
    pub consistency: Option<VolumeConsistency>,
}

/// Who writes to a volume.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) owner: Owner,
    vmm: Arc<dyn Vmm>,
    pub(super) serial: String,
}

impl Writer {
    pub(super) fn disks(&self) -> Result<&dyn LiveDisks, NodeError> {
        self.vmm.live_disks().ok_or(NodeError::FixedVolumes)
    }

    fn hotplug(&self) -> Result<&dyn Hotplug, NodeError> {
        hotplug_of(&*self.vmm)
    }
}

fn is_written(volume: &Volume) -> bool {
    let writes = |access| access == VolumeAccess::Exclusive;
    volume.leases.iter().any(|lease| writes(lease.access))
}

fn hotplug_of(vmm: &dyn Vmm) -> Result<&dyn Hotplug, NodeError> {
    vmm.hotplug().ok_or(NodeError::FixedVolumes)
}

/// Carries out what has to come to its end, also where whoever asked goes away.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, NodeError>> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::spawn(work).await.unwrap_or_else(|join| {
        Err(NodeError::Executor(ExecutorError::Host {
            what: "change a volume".into(),
            source: io::Error::other(join),
        }))
    })
}

impl Node {
    /// Attaches a volume of the job's account to a job: at once where it runs, and for all its starts to come.
    /// One that it has already in the same way is no error.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`] where the account has none of this name; where another job has it; where no
    /// slot of the machine is free; [`NodeError::FixedVolumes`] where the job is no full VM with a disk of its
    /// own. The job has the volumes then that it had before.
    pub async fn attach_volume(
        &self,
        id: JobId,
        volume: &str,
        how: VolumeAttach,
    ) -> Result<VolumeAttachment, NodeError> {
        let inner = &self.inner;
        let volume = inner.volume_of(id, volume).await?;
        inner.ensure_no_root(&volume)?;
        if volume.state == VolumeState::Deleted {
            return Err(VolumeError::Deleted(volume.name).into());
        }
        let _turn = inner.live.turn(&volume.id.to_string()).await;
        let mount = how.mount(&volume.name);
        let (told, of) = (VolumeMount::clone(&mount), Box::new(volume.clone()));
        let ask = match inner.lacks(id, &mount, &volume).await? {
            true => VolumeAsk::Again(told, of),
            false => VolumeAsk::Attach(told, of),
        };
        let job = self.ask(id, Ask::Volume(Box::new(ask))).await?;
        Ok(VolumeAttachment {
            job: id,
            volume: mount,
            serial: serial_of(&volume),
            plugged: job.vm.is_some(),
        })
    }

    /// Detaches a volume from a job: at once where it runs, and from all its starts to come. Its guest has
    /// `limit` to let go.
    ///
    /// # Errors
    /// [`VolumeError::NotAttached`] where the job does not have it, [`MachineError::Kept`] where its guest does
    /// not let go. The job has it still then.
    pub async fn detach_volume(
        &self,
        id: JobId,
        volume: &str,
        limit: Duration,
    ) -> Result<(), NodeError> {
        let inner = &self.inner;
        let detach = match inner.volume_of(id, volume).await {
            Ok(volume) => Detach {
                volume: Some((volume.id, serial_of(&volume))),
                name: volume.name,
                limit,
            },
            // One that was removed meanwhile can still leave the record of a job that does not run.
            Err(NodeError::Volume(VolumeError::NoVolume(_))) => Detach {
                volume: None,
                name: volume.to_owned(),
                limit,
            },
            Err(error) => return Err(error),
        };
        let key = detach.volume.as_ref().map(|(id, _)| id.to_string());
        let _turn = inner.live.turn(&key.unwrap_or_default()).await;
        let ask = Ask::Volume(Box::new(VolumeAsk::Detach(detach)));
        self.ask(id, ask).await.map(drop)
    }

    /// Makes a volume larger, also where a guest writes to it, which sees its new size then.
    ///
    /// # Errors
    /// Where it would become smaller, the account may not have so much, or it is attached in a way in which
    /// it cannot grow.
    pub async fn resize_volume(
        &self,
        scope: &Scope,
        volume: &str,
        size: MiB,
    ) -> Result<Volume, NodeError> {
        let (inner, scope, volume) = (Arc::clone(&self.inner), scope.clone(), volume.to_owned());
        to_its_end(async move {
            let volume = inner.find_volume(scope, volume).await?;
            let _turn = inner.live.turn(&volume.id.to_string()).await;
            let id = volume.id;
            match inner.writer(id).await? {
                None => inner.with_volumes(move |v| v.resize(id, size)).await,
                Some(writer) => inner.grow_live(&writer, id, size).await,
            }
        })
        .await
    }

    /// Keeps a volume's present state under a name, also where a guest writes to it.
    ///
    /// # Errors
    /// As [`Volumes::snapshot`]; [`VolumeError::Unmerged`] where a guest writes to it, it has as many layers as
    /// may be, and they cannot be merged.
    pub async fn snapshot_volume(
        &self,
        scope: &Scope,
        volume: &str,
        name: &str,
    ) -> Result<Volume, NodeError> {
        let (inner, scope) = (Arc::clone(&self.inner), scope.clone());
        let (volume, name) = (volume.to_owned(), name.to_owned());
        to_its_end(async move {
            let id = inner.find_volume(scope, volume).await?.id;
            match inner.kept(id, Some(name.clone())).await? {
                Kept::Unwritten(_turn) => inner.with_volumes(move |v| v.snapshot(id, &name)).await,
                Kept::Live(writer, ..) => {
                    inner.merge_later(&writer, id);
                    inner.with_volumes(move |v| v.get(id)).await
                }
            }
        })
        .await
    }

    /// The bytes of a volume as it is now, also where a guest writes to it, or of a snapshot.
    ///
    /// # Errors
    /// As [`Volumes::read`] and [`Node::snapshot_volume`].
    pub async fn volume_image(
        &self,
        scope: &Scope,
        volume: &str,
        snapshot: Option<String>,
    ) -> Result<VolumeImage, NodeError> {
        let (inner, scope, volume) = (Arc::clone(&self.inner), scope.clone(), volume.to_owned());
        to_its_end(async move {
            let id = inner.find_volume(scope, volume).await?.id;
            // The place first: what comes next may leave a layer, which is of no use where nobody can read it.
            let kept = match &snapshot {
                None => {
                    let place = inner.with_volumes(Volumes::image_place).await?;
                    let live = inner.kept(id, None).await?.live();
                    live.map(|live| (place, live))
                }
                Some(_) => None,
            };
            let Some((place, (writer, point, opening))) = kept else {
                let image = move |v: &Volumes| v.read(id, snapshot.as_deref());
                return Ok(VolumeImage {
                    volume: id,
                    image: inner.with_volumes(image).await?,
                    consistency: None,
                });
            };
            // It has no name: with what is opened here it is all that there is of it.
            let opened = move || drop(opening);
            let image = move |v: &Volumes| v.read_point_in(place, id, &point, opened);
            let image = inner.with_volumes(image).await;
            inner.merge_later(&writer, id);
            Ok(VolumeImage {
                volume: id,
                image: image?,
                consistency: Some(point.consistency),
            })
        })
        .await
    }
}

impl Inner {
    /// Does something with volumes, which blocks.
    pub(super) async fn with_volumes<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Volumes) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let volumes = self.volumes.clone();
        match spawn_blocking(move || work(&volumes)).await {
            Ok(done) => Ok(done?),
            Err(join) => Err(NodeError::Executor(ExecutorError::Host {
                what: "change a volume".into(),
                source: io::Error::other(join),
            })),
        }
    }

    async fn find_volume(
        self: &Arc<Self>,
        scope: Scope,
        volume: String,
    ) -> Result<Volume, NodeError> {
        self.with_volumes(move |v| v.find(&scope, &volume)).await
    }

    /// The volume of a job's account that somebody means.
    async fn volume_of(self: &Arc<Self>, id: JobId, volume: &str) -> Result<Volume, NodeError> {
        let job = self.entry(id)?.job();
        if !job.spec.has_own_disk() {
            return Err(NodeError::FixedVolumes);
        }
        let scope = Scope::Account(job.account.clone());
        self.find_volume(scope, volume.to_owned()).await
    }

    /// Whether a job that runs has a volume and its machine has not: its guest kept it when it was to let go, and
    /// let go of it later.
    async fn lacks(
        self: &Arc<Self>,
        id: JobId,
        mount: &VolumeMount,
        volume: &Volume,
    ) -> Result<bool, NodeError> {
        let entry = self.entry(id)?;
        if !entry.job().spec.volumes.contains(mount) {
            return Ok(false);
        }
        let vmm = entry.live().and_then(|live| live.vm.vmm());
        let Some(disks) = vmm.as_ref().and_then(|vmm| vmm.live_disks()) else {
            return Ok(false);
        };
        let disk = disks.disk(&serial_of(volume)).await;
        Ok(matches!(disk, Ok(None)))
    }

    /// Who writes to a volume, where that can change it; `None` where nobody does, or nobody who can.
    async fn writer(self: &Arc<Self>, id: VolumeId) -> Result<Option<Writer>, NodeError> {
        let volume = self.with_volumes(move |v| v.get(id)).await?;
        let writes = |access| access == VolumeAccess::Exclusive;
        let lease = volume.leases.iter().find(|lease| writes(lease.access));
        let Some(lease) = lease else { return Ok(None) };
        let entry = lock(&self.jobs).get(lease.job);
        let vmm = entry
            .filter(|entry| entry.job().incarnation == lease.incarnation)
            .and_then(|entry| entry.live()?.vm.vmm())
            .filter(|vmm| vmm.live_disks().is_some() && vmm.hotplug().is_some());
        Ok(vmm.map(|vmm| Writer {
            owner: Owner {
                job: lease.job,
                incarnation: lease.incarnation,
            },
            vmm,
            serial: own_disk::serial_in(lease.job, &volume),
        }))
    }

    async fn grow_live(
        self: &Arc<Self>,
        writer: &Writer,
        id: VolumeId,
        size: MiB,
    ) -> Result<Volume, NodeError> {
        let owner = writer.owner;
        // One that its guest let go of has nobody who sees its new size.
        if let Ok(None) = writer.disks()?.disk(&writer.serial).await {
            let what = format!("disk {:?}", writer.serial);
            return Err(MachineError::Unknown { what }.into());
        }
        let growth = self
            .with_volumes(move |v| v.grow_record(id, &owner, size))
            .await?;
        let bytes = growth.size.bytes();
        let grown = writer.hotplug()?.resize_disk(&writer.serial, bytes);
        if let Err(error) = grown.await {
            // What has its new size keeps it, and what cannot be known may have it.
            let disk = writer.disks()?.disk(&writer.serial).await;
            let is_smaller = match disk {
                Ok(Some(disk)) => disk.size < bytes,
                // Its guest let go of it meanwhile.
                Ok(None) => true,
                Err(_) => false,
            };
            if is_smaller {
                let undo = move |v: &Volumes| {
                    v.undo_growth(id, growth);
                    Ok(())
                };
                self.with_volumes(undo).await?;
            }
            return Err(error.into());
        }
        failpoint::pass("volume.resize_live", "grown");
        self.with_volumes(move |v| v.get(id)).await
    }
}
