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

use super::actor::{Ask, Detach, VolumeAsk};
use super::entry::lock;
use super::inner::Inner;
use super::mounts::{self, GivenUp, disk_of, serial_of};
use super::own_disk;
use super::volume_merges::{Opening, is_silent};
use super::{Node, NodeError, Scope};
use crate::executor::ExecutorError;
use crate::failpoint;
use crate::guest_agent::{AgentPortError, GuestAgent, thaw};
use crate::hypervisor::{Hotplug, Layer, LiveDisks, Vmm};
use crate::journal::{JobRecord, VolumeChange};
use crate::qemu::machine::MachineError;
use crate::vm::chain;
use crate::volumes::{
    Attachment, GuestState, Owner, Pending, Point, Reading, VolumeError, Volumes,
};
use aleph_types::{
    JobId, MiB, Volume, VolumeAccess, VolumeAttach, VolumeAttachment, VolumeConsistency, VolumeId,
    VolumeMount, VolumeState,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// How often a machine is asked that does not answer.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// The same once that came to nothing often.
pub(super) const AGAIN_AT_MOST: Duration = Duration::from_secs(5);

/// How long a disk that nobody has heard of may take to go.
const LEFTOVER: Duration = Duration::from_secs(5);

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

/// How often somebody who keeps a state waits for layers to be merged.
const MERGES: usize = 3;

/// What became of a change of a job's volumes.
#[derive(Debug)]
pub(super) struct Changed {
    /// Whether the machine has the disk; `None` where that cannot be known yet.
    pub(super) present: Option<bool>,
    /// Why it is not as was asked for.
    pub(super) error: Option<NodeError>,
}

impl Changed {
    fn is(present: bool) -> Self {
        Self {
            present: Some(present),
            error: None,
        }
    }

    fn failed(present: Option<bool>, error: impl Into<NodeError>) -> Self {
        Self {
            present,
            error: Some(error.into()),
        }
    }
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

/// What became of the wish to keep a volume's state.
enum Kept {
    /// No guest writes to it, or none of whom more is known: it is whoever has its turn who keeps it.
    Unwritten(OwnedMutexGuard<()>),
    /// It stands still below what a guest writes to.
    Live(Writer, Point, Opening),
}

impl Kept {
    /// What stands still below what a guest writes to; the turn is over.
    fn live(self) -> Option<(Writer, Point, Opening)> {
        match self {
            Self::Unwritten(_) => None,
            Self::Live(writer, point, opening) => Some((writer, point, opening)),
        }
    }
}

impl Inner {
    /// Keeps the state of a volume that a guest writes to. Where it has as many layers as may be, some of them are
    /// merged first.
    async fn kept(self: &Arc<Self>, id: VolumeId, name: Option<String>) -> Result<Kept, NodeError> {
        let mut merges = 0;
        loop {
            let turn = self.live.turn(&id.to_string()).await;
            let Some(writer) = self.writer(id).await? else {
                return Ok(Kept::Unwritten(turn));
            };
            match self.keep_live(&writer, id, name.clone()).await {
                Ok(point) => return Ok(Kept::Live(writer, point, self.merges.opening(id))),
                Err(NodeError::Volume(VolumeError::TooDeep(name, depth))) if merges < MERGES => {
                    merges += 1;
                    drop(turn);
                    self.merge_now(&writer, id, (name, depth)).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

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

    /// Has what a guest writes from now on go into a new layer, and what is there stand still.
    async fn keep_live(
        self: &Arc<Self>,
        writer: &Writer,
        id: VolumeId,
        name: Option<String>,
    ) -> Result<Point, NodeError> {
        let owner = writer.owner;
        let cover = self
            .with_volumes(move |v| v.begin_cover(id, &owner, name.as_deref()))
            .await?;
        failpoint::pass("cover", "begun");
        let layer = cover.layer;
        let armed = self.with_volumes(move |v| v.arm_cover(id, &owner));
        if let Err(error) = armed.await {
            // A device that is open is not removed.
            drop(cover);
            let given_up = self.with_volumes(move |v| v.give_up_cover(id, layer));
            if let Err(error) = given_up.await {
                let error = chain(&error);
                tracing::warn!(volume = %id, error, "a layer stays until the volumes are opened again");
            }
            // It is not known whether that was recorded.
            self.settle_later(writer);
            return Err(error);
        }
        // The volumes of a VM share its agent.
        let agent = self.agents.turn(&owner.job.to_string()).await;
        let guest = self.freeze(writer, id).await;
        failpoint::pass("cover", "frozen");
        let put = match mounts::handed(&cover.key) {
            Ok(key) => {
                let cover = Layer {
                    file: cover.file,
                    is_qcow2: true,
                    key,
                };
                let put = writer.disks()?.cover(&writer.serial, layer, cover);
                put.await.map_err(NodeError::from)
            }
            Err(error) => Err(error),
        };
        failpoint::pass("cover", "put");
        if !self.go_on(writer, guest).await {
            self.settle_later(writer);
        }
        drop(agent);
        failpoint::pass("cover", "thawed");
        if let Err(error) = put {
            let disk = writer.disks()?.disk(&writer.serial).await;
            match disk {
                Ok(Some(disk)) if disk.layer == Some(layer) => {}
                Ok(_) => {
                    writer.disks()?.forget(&writer.serial, layer).await;
                    if !self.undo_cover(id, owner).await {
                        self.settle_later(writer);
                    }
                    return Err(error);
                }
                Err(_) => {
                    self.settle_later(writer);
                    return Err(error);
                }
            }
        }
        let finished = self.with_volumes(move |v| v.finish_cover(id, &owner)).await;
        match &finished {
            // Its end is recorded all the same.
            Ok(_) | Err(NodeError::Volume(VolumeError::NameTaken(_))) => {}
            Err(_) => self.settle_later(writer),
        }
        finished
    }

    /// `false` where it has to be tried again.
    async fn undo_cover(self: &Arc<Self>, id: VolumeId, owner: Owner) -> bool {
        let undone = self.with_volumes(move |v| v.undo_cover(id, &owner)).await;
        if let Err(error) = &undone {
            let error = chain(error);
            tracing::warn!(volume = %id, error, "a layer stays over a volume for now");
        }
        undone.is_ok()
    }

    /// Has a guest's filesystems stand still, where it has an agent that does that. What they may do then: all
    /// but those that run have to be told to go on.
    async fn freeze(self: &Arc<Self>, writer: &Writer, id: VolumeId) -> GuestState {
        let Some(port) = writer.vmm.guest_port() else {
            return GuestState::Running;
        };
        let mut agent = match GuestAgent::open(port).await {
            Ok(agent) => agent,
            Err(error) => {
                let error = chain(&error);
                tracing::debug!(volume = %id, error, "a guest's filesystems go on meanwhile");
                return GuestState::Running;
            }
        };
        let owner = writer.owner;
        let note = |guest| self.with_volumes(move |v| v.freezing(id, &owner, guest));
        if let Err(error) = note(GuestState::Freezing).await {
            tracing::warn!(volume = %id, error = chain(&error), "a guest is not frozen");
            return GuestState::Running;
        }
        match agent.freeze().await {
            // Where there is none, nothing stands still.
            Ok(0) => GuestState::Freezing,
            Ok(_) => {
                if let Err(error) = note(GuestState::Frozen).await {
                    tracing::warn!(volume = %id, error = chain(&error), "it is not noted");
                }
                GuestState::Frozen
            }
            Err(error) => {
                let error = chain(&error);
                tracing::debug!(volume = %id, error, "a guest is not frozen");
                GuestState::Freezing
            }
        }
    }

    /// Has a guest's filesystems go on that may stand still. `false` where that is owed to it from now on. The
    /// turn of its agent is the caller's.
    async fn go_on(self: &Arc<Self>, writer: &Writer, guest: GuestState) -> bool {
        let owner = writer.owner;
        let port = writer.vmm.guest_port();
        let Some(port) = port.filter(|_| guest != GuestState::Running) else {
            return true;
        };
        let why = match thaw(port).await {
            Ok(()) => return true,
            // What does not do the one does not do the other: its guest is as it was.
            Err(AgentPortError::Refused(_)) if guest == GuestState::Freezing => return true,
            Err(error) => error,
        };
        let error = chain(&why);
        tracing::warn!(job = %owner.job, error, "a guest's filesystems may stand still: its agent is asked again");
        let owe = self.with_volumes(move |v| v.owe_thaw(&owner, guest));
        if let Err(error) = owe.await {
            tracing::warn!(job = %owner.job, error = chain(&error), "it is not noted");
        }
        false
    }

    /// Has filesystems go on that were left standing. `false` where it has to be tried again.
    async fn thaw_owed(self: &Arc<Self>, vmm: &Arc<dyn Vmm>, owner: Owner) -> bool {
        let Some(port) = vmm.guest_port() else {
            return true;
        };
        // Who has them stand still just now has them go on, too.
        let _turn = self.agents.turn(&owner.job.to_string()).await;
        let owed = match self.with_volumes(move |v| v.thaw_owed(&owner)).await {
            Ok(GuestState::Running) => return true,
            Ok(owed) => owed,
            Err(error) => {
                tracing::warn!(job = %owner.job, error = chain(&error), "its guest's state is not known");
                return false;
            }
        };
        let left = match thaw(port).await {
            Ok(()) => GuestState::Running,
            Err(AgentPortError::Refused(_)) if owed == GuestState::Freezing => GuestState::Running,
            Err(error) => {
                tracing::debug!(job = %owner.job, error = chain(&error), "a guest is asked again");
                owed
            }
        };
        let noted = self.with_volumes(move |v| v.owe_thaw(&owner, left)).await;
        noted.is_ok() && left == GuestState::Running
    }

    pub(super) fn settle_later(self: &Arc<Self>, writer: &Writer) {
        // One that is at it already looks once more.
        let owner = (writer.owner.job, writer.owner.incarnation.get());
        if lock(&self.settling).insert(owner, true).is_some() {
            return;
        }
        let (inner, writer) = (Arc::downgrade(self), writer.clone());
        tokio::spawn(async move {
            let mut pause = AGAIN;
            while let Some(inner) = inner.upgrade() {
                lock(&inner.settling).insert(owner, false);
                let is_leaving = *inner.leaving.borrow();
                if is_leaving || inner.settle_volumes(&writer.vmm, writer.owner).await {
                    let mut settling = lock(&inner.settling);
                    if is_leaving || settling.get(&owner) != Some(&true) {
                        settling.remove(&owner);
                        return;
                    }
                }
                drop(inner);
                sleep(pause).await;
                // A guest that refuses to go on may do so for all its life.
                pause = (pause * 2).min(AGAIN_AT_MOST);
            }
        });
    }

    /// Brings the records of what a VM has, which an earlier process left or whose VMM did not answer, to what
    /// its VMM does. `false` where it has to be tried again.
    pub(super) async fn settle_volumes(self: &Arc<Self>, vmm: &Arc<dyn Vmm>, owner: Owner) -> bool {
        if vmm.has_ended() || vmm.live_disks().is_none() {
            return true;
        }
        // First, since what is known of it is of no use once its covers are settled; and in nobody's turn: an
        // agent may be silent for long.
        let mut all_settled = self.thaw_owed(vmm, owner).await;
        let held = match self.with_volumes(move |v| v.held_by(&owner)).await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(job = %owner.job, error = chain(&error), "its volumes are not known");
                return false;
            }
        };
        for (volume, _) in held {
            let id = volume.id;
            // Who works on it now is left to that; what there is then is settled.
            let _turn = self.live.turn(&id.to_string()).await;
            let now = self.with_volumes(move |v| v.held_by(&owner)).await;
            let now = now.map(|held| held.into_iter().find(|(volume, _)| volume.id == id));
            let settling = match now {
                Ok(Some((volume, pending))) => {
                    let writer = Writer {
                        owner,
                        vmm: Arc::clone(vmm),
                        serial: own_disk::serial_in(owner.job, &volume),
                    };
                    let settled = self.settle(&writer, &volume, pending).await;
                    match &settled {
                        Ok(true) if is_written(&volume) => self.merge_later(&writer, id),
                        Ok(false) => all_settled = false,
                        _ => {}
                    }
                    settled.map(drop)
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = settling {
                let error = chain(&error);
                tracing::warn!(volume = %id, error, "a volume is looked at again");
                all_settled = false;
            }
        }
        all_settled
    }

    /// `false` where it is to be looked at again, since somebody else is at it.
    async fn settle(
        self: &Arc<Self>,
        writer: &Writer,
        volume: &Volume,
        pending: Option<Pending>,
    ) -> Result<bool, NodeError> {
        let (id, owner) = (volume.id, writer.owner);
        if let Some(pending) = pending {
            let disk = writer.disks()?.disk(&writer.serial).await?;
            let is_put = disk.is_some_and(|disk| disk.layer == Some(pending.layer));
            match pending.armed && is_put {
                true => {
                    let finish = move |v: &Volumes| v.finish_cover(id, &owner);
                    match self.with_volumes(finish).await {
                        Ok(_) | Err(NodeError::Volume(VolumeError::NameTaken(_))) => {}
                        Err(error) => return Err(error),
                    }
                }
                false => {
                    writer.disks()?.forget(&writer.serial, pending.layer).await;
                    self.with_volumes(move |v| v.undo_cover(id, &owner)).await?;
                }
            }
        }
        let is_opened = self.merges.is_opened(id);
        let ended = match is_opened {
            // No layer goes while somebody opens a state that has no name.
            true => Ok(()),
            false => self.end_merge(writer, id).await,
        };
        match ended {
            // It is not known how far it came.
            Err(error) if is_silent(&error) => return Err(error),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(volume = %id, error, "a volume keeps all its layers");
            }
            Ok(()) => {}
        }
        if !is_written(volume) {
            return Ok(!is_opened);
        }
        // Its record came first, then its place, also where it says of itself that it is as large already.
        let room = move |v: &Volumes| v.make_room(id, &owner);
        self.with_volumes(room).await?;
        let disk = writer.disks()?.disk(&writer.serial).await?;
        let size = volume.size.bytes();
        if disk.is_some_and(|disk| disk.size < size) {
            writer.hotplug()?.resize_disk(&writer.serial, size).await?;
        }
        Ok(!is_opened)
    }

    /// Gives a machine a disk, or takes one away, as its job's record has it.
    pub(super) async fn carry_out(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        record: &JobRecord,
        change: &VolumeChange,
        limit: Duration,
    ) -> Changed {
        match change.attach {
            true => self.plug(vmm, record, change).await,
            false => {
                let owner = mounts::owner(record);
                self.unplug(vmm, &owner, change, limit).await
            }
        }
    }

    async fn plug(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        record: &JobRecord,
        change: &VolumeChange,
    ) -> Changed {
        let hotplug = match hotplug_of(&**vmm) {
            Ok(hotplug) => hotplug,
            Err(error) => return Changed::failed(Some(false), error),
        };
        let owner = mounts::owner(record);
        let (account, name) = (record.job.account.clone(), change.name.clone());
        let mut named = record.job.spec.volumes.iter();
        let mount = named.find(|mount| mount.name == name);
        let access = mount.map_or(VolumeAccess::Exclusive, mounts::access);
        let lease = || self.lease_live(change.volume, owner, (&account, &name), access);
        let attached = match lease().await {
            // Its guest kept it when it was to let go, and did so later: the VMM has its files still.
            Err(NodeError::Volume(VolumeError::Locked(_))) => {
                match hotplug.detach_disk(&change.serial, LEFTOVER).await {
                    Ok(()) => lease().await,
                    Err(error) => return Changed::failed(None, error),
                }
            }
            attached => attached,
        };
        let attached = match attached {
            Ok(attached) => attached,
            Err(error) => {
                let freed = self.release_one(change.volume, owner).await.is_ok();
                return Changed::failed(freed.then_some(false), error);
            }
        };
        failpoint::pass("volume.plug", "leased");
        let disk = match disk_of(change.serial.clone(), attached.layers) {
            Ok(disk) => disk,
            Err(error) => {
                let freed = self.release_one(change.volume, owner).await.is_ok();
                return Changed::failed(freed.then_some(false), error);
            }
        };
        let Err(error) = hotplug.attach_disk(disk).await else {
            failpoint::pass("volume.plug", "plugged");
            return Changed::is(true);
        };
        // What was not answered may be carried out yet.
        let gone = hotplug.detach_disk(&change.serial, LEFTOVER).await;
        let freed = match gone {
            Ok(()) => self.release_one(change.volume, owner).await.is_ok(),
            Err(_) => false,
        };
        Changed::failed(freed.then_some(false), error)
    }

    /// Leases a volume for a VM that runs. Its filesystem may be looked at for long: where its VM ends meanwhile,
    /// nobody waits for that, and what is leased is given back.
    async fn lease_live(
        self: &Arc<Self>,
        volume: VolumeId,
        owner: Owner,
        (account, name): (&str, &str),
        access: VolumeAccess,
    ) -> Result<Attachment, NodeError> {
        let while_wanted = GivenUp::default();
        let is_given_up = while_wanted.told();
        let (account, name) = (account.to_owned(), name.to_owned());
        self.with_volumes(move |v| {
            let attached = v.attach(&account, &name, &owner, access);
            if is_given_up.load(Ordering::Acquire) {
                v.release_one(volume, &owner)?;
            }
            attached
        })
        .await
    }

    async fn unplug(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        owner: &Owner,
        change: &VolumeChange,
        limit: Duration,
    ) -> Changed {
        let (hotplug, disks) = match (vmm.hotplug(), vmm.live_disks()) {
            (Some(hotplug), Some(disks)) => (hotplug, disks),
            _ => return Changed::failed(Some(true), NodeError::FixedVolumes),
        };
        match hotplug.detach_disk(&change.serial, limit).await {
            Ok(()) => {
                failpoint::pass("volume.unplug", "unplugged");
                match self.release_one(change.volume, *owner).await {
                    Ok(()) => {
                        failpoint::pass("volume.unplug", "released");
                        Changed::is(false)
                    }
                    Err(error) => Changed::failed(None, error),
                }
            }
            Err(error @ MachineError::Kept { .. }) => Changed::failed(Some(true), error),
            Err(error) => match disks.disk(&change.serial).await {
                Ok(Some(_)) => Changed::failed(Some(true), error),
                Ok(None) | Err(_) => Changed::failed(None, error),
            },
        }
    }

    async fn release_one(self: &Arc<Self>, id: VolumeId, owner: Owner) -> Result<(), NodeError> {
        self.with_volumes(move |v| v.release_one(id, &owner)).await
    }

    /// Looks until it is known whether a machine has a disk that was being attached or detached.
    pub(super) async fn find_out(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        owner: Owner,
        change: &VolumeChange,
    ) -> Changed {
        while let (false, Some(disks), Ok(hotplug)) =
            (vmm.has_ended(), vmm.live_disks(), hotplug_of(&**vmm))
        {
            match disks.disk(&change.serial).await {
                Ok(Some(_)) => return Changed::is(true),
                Ok(None) => {
                    // Nodes and files of it may be left.
                    let gone = hotplug.detach_disk(&change.serial, LEFTOVER).await;
                    if gone.is_ok() && self.release_one(change.volume, owner).await.is_ok() {
                        return Changed::is(false);
                    }
                }
                Err(error) => {
                    tracing::debug!(job = %owner.job, error = chain(&error), "a disk is looked for again");
                }
            }
            sleep(AGAIN).await;
        }
        // Its end says what the job has.
        Changed {
            present: None,
            error: None,
        }
    }
}
