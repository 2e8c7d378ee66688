//! Records of a VM's volumes, brought to what its VMM does: after a crash, and where it did not answer.

use super::plugging::LEFTOVER;
use super::{AGAIN, AGAIN_AT_MOST, Writer, is_written};
use crate::hypervisor::Vmm;
use crate::node::entry::lock;
use crate::node::inner::Inner;
use crate::node::volume_merges::is_silent;
use crate::node::{NodeError, own_disk};
use crate::vm::chain;
use crate::volumes::{Owner, Pending, VolumeError, Volumes};
use aleph_types::Volume;
use std::sync::Arc;
use tokio::time::sleep;

impl Inner {
    pub(in crate::node) fn settle_later(self: &Arc<Self>, writer: &Writer) {
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
    pub(in crate::node) async fn settle_volumes(
        self: &Arc<Self>,
        vmm: &Arc<dyn Vmm>,
        owner: Owner,
    ) -> bool {
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
            // A disk that its guest let go of was written to through its cover, or not since: what is there holds
            // either way.
            let is_below = disk
                .as_ref()
                .is_some_and(|disk| disk.layer != Some(pending.layer));
            match pending.armed && !is_below {
                true => {
                    if disk.is_none() {
                        // Nothing of it stays open, or locked, once its record is over.
                        let nodes = writer.hotplug()?.detach_disk(&writer.serial, LEFTOVER);
                        nodes.await?;
                    }
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
}
