//! A state that is kept while a guest writes: a cover over what is there, which becomes the volume's newest layer.

use super::Writer;
use crate::failpoint;
use crate::hypervisor::Layer;
use crate::node::NodeError;
use crate::node::inner::Inner;
use crate::node::mounts;
use crate::node::volume_merges::Opening;
use crate::vm::chain;
use crate::volumes::{Owner, Point, VolumeError};
use aleph_types::VolumeId;
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// How often somebody who keeps a state waits for layers to be merged.
const MERGES: usize = 3;

/// What became of the wish to keep a volume's state.
pub(super) enum Kept {
    /// No guest writes to it, or none of whom more is known: it is whoever has its turn who keeps it.
    Unwritten(OwnedMutexGuard<()>),
    /// It stands still below what a guest writes to.
    Live(Writer, Point, Opening),
}

impl Kept {
    /// What stands still below what a guest writes to; the turn is over.
    pub(super) fn live(self) -> Option<(Writer, Point, Opening)> {
        match self {
            Self::Unwritten(_) => None,
            Self::Live(writer, point, opening) => Some((writer, point, opening)),
        }
    }
}

impl Inner {
    /// Keeps the state of a volume that a guest writes to. Where it has as many layers as may be, some of them are
    /// merged first.
    pub(super) async fn kept(
        self: &Arc<Self>,
        id: VolumeId,
        name: Option<String>,
    ) -> Result<Kept, NodeError> {
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
                Ok(Some(_)) => {
                    writer.disks()?.forget(&writer.serial, layer).await;
                    if !self.undo_cover(id, owner).await {
                        self.settle_later(writer);
                    }
                    return Err(error);
                }
                // Its guest let go of it, or nobody says: the cover may have been written to before.
                Ok(None) | Err(_) => {
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
}
