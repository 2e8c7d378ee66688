//! Merging layers of volumes while their guests write, beside everything else.
//!
//! | when | what |
//! | --- | --- |
//! | a state was kept, and the chain is deep | a merge begins; nobody waits for it |
//! | a state is to be kept, and the chain is at its bound | whoever asked waits for a merge, [`PATIENCE`] at most |
//! | a VM is adopted | a merge whose layer is whole is ended; a deep chain is merged |
//!
//! The copying needs neither the VMM nor the volume's turn ([`merge`](crate::volumes::Merge) says why it may
//! take its time), so attaching, detaching, growing, keeping and backing up go on meanwhile. The turn is taken
//! for the moment in which the VMM reads through the new layer and the records say so. Where the volume is
//! detached or its VM ends before, the merge is over and leaves nothing.
//!
//! One merge of a volume at a time, and [`SLOTS`] on a node: they read and write as much as the disk gives.
//!
//! # Failure cases
//! Whatever keeps a merge from its end is logged, and the volume stays as it is: the next state that is kept
//! begins another one. Whoever waits for one is told ([`VolumeError::Unmerged`]). A VMM that does not answer is
//! asked again until it does or has ended, and both chains hold the same. While somebody opens a state that has no
//! name, no layer goes.

use super::NodeError;
use super::entry::lock;
use super::inner::Inner;
use super::live_volumes::Writer;
use super::lookup::Turns;
use super::mounts;
use crate::failpoint;
use crate::hypervisor::{DiskChain, Layer};
use crate::qemu::machine::MachineError;
use crate::vm::chain;
use crate::volumes::{Merged, VolumeError};
use aleph_types::{Classify, ErrorClass, JobId, VolumeId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

/// How many merges a node has at a time.
const SLOTS: usize = 2;

/// How long somebody waits for a merge who cannot go on without.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long a slot waits for a volume's turn.
const MOMENT: Duration = Duration::from_millis(200);

/// How often it is looked whether nobody opens a state any more.
const LOOK: Duration = Duration::from_millis(100);

/// A volume, and which start of which job writes to it.
type Wanted = (VolumeId, JobId, u64);

/// Merges of a node's volumes.
pub(super) struct Merges {
    /// Whose turn it is to merge layers of a volume.
    turns: Turns,
    slots: Semaphore,
    opened: Arc<Mutex<HashMap<VolumeId, usize>>>,
    /// Volumes of whose writers somebody waits to merge, and has not looked yet.
    wanted: Mutex<HashSet<Wanted>>,
}

impl Default for Merges {
    fn default() -> Self {
        Self {
            turns: Turns::default(),
            slots: Semaphore::new(SLOTS),
            opened: Arc::default(),
            wanted: Mutex::default(),
        }
    }
}

/// Somebody who opens a state of a volume that has no name: while this lives, none of its layers goes.
pub(super) struct Opening {
    id: VolumeId,
    opened: Arc<Mutex<HashMap<VolumeId, usize>>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut opened = lock(&self.opened);
        if let Some(count) = opened.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                opened.remove(&self.id);
            }
        }
    }
}

impl Merges {
    /// The caller has the volume's turn.
    pub(super) fn opening(&self, id: VolumeId) -> Opening {
        *lock(&self.opened).entry(id).or_default() += 1;
        Opening {
            id,
            opened: Arc::clone(&self.opened),
        }
    }

    pub(super) fn is_opened(&self, id: VolumeId) -> bool {
        lock(&self.opened).contains_key(&id)
    }

    /// A slot, which is for the copying alone, and a volume's turn. Whoever has that may have it for as long as a guest
    /// takes to let go of a disk: no slot waits for it, since others need those.
    async fn slot_and_turn(
        &self,
        live: &Turns,
        id: VolumeId,
    ) -> (Option<SemaphorePermit<'_>>, OwnedMutexGuard<()>) {
        let key = id.to_string();
        loop {
            drop(live.turn(&key).await);
            let slot = self.slots.acquire().await.ok();
            if let Ok(turn) = timeout(MOMENT, live.turn(&key)).await {
                return (slot, turn);
            }
        }
    }
}

impl Inner {
    /// Has layers of a volume be merged where its chain is deep, beside everything else.
    pub(super) fn merge_later(self: &Arc<Self>, writer: &Writer, id: VolumeId) {
        // Who waits already finds what is deep by then.
        if !lock(&self.merges.wanted).insert(wanted(writer, id)) {
            return;
        }
        let (inner, writer) = (Arc::clone(self), writer.clone());
        tokio::spawn(async move {
            if let Err(error) = inner.merge(&writer, id).await {
                let error = chain(&error);
                tracing::warn!(volume = %id, error, "a volume keeps all its layers");
            }
        });
    }

    /// The same, for who waits for it. Where that comes to nothing, it says why `refused`.
    pub(super) async fn merge_now(
        self: &Arc<Self>,
        writer: &Writer,
        id: VolumeId,
        refused: (String, usize),
    ) -> Result<(), NodeError> {
        let unmerged = |why, passing| {
            let (name, depth) = refused;
            NodeError::Volume(VolumeError::Unmerged {
                name,
                depth,
                why,
                passing,
            })
        };
        let (inner, writer) = (Arc::clone(self), writer.clone());
        // It goes on where nobody waits any more.
        let merging = tokio::spawn(async move { inner.merge(&writer, id).await });
        match timeout(PATIENCE, merging).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => {
                let (class, code) = (error.class(), error.code());
                let passes = matches!(class, ErrorClass::Capacity | ErrorClass::Unavailable);
                Err(unmerged(chain(&error), passes.then_some((class, code))))
            }
            Ok(Err(join)) => Err(unmerged(join.to_string(), None)),
            Err(_) => {
                let time = PATIENCE.as_secs() / 60;
                let why = format!("that takes longer than {time} minutes");
                Err(unmerged(why, None))
            }
        }
    }

    async fn merge(self: &Arc<Self>, writer: &Writer, id: VolumeId) -> Result<(), NodeError> {
        let _one = self.merges.turns.turn(&id.to_string()).await;
        let merged = self.merge_once(writer, id).await;
        match merged {
            // A copy was made meanwhile of what was to be over the merged layer: the next plan knows it.
            Err(NodeError::Volume(VolumeError::Busy(_))) => self.merge_once(writer, id).await,
            other => other,
        }
    }

    async fn merge_once(self: &Arc<Self>, writer: &Writer, id: VolumeId) -> Result<(), NodeError> {
        let (slot, turn) = self.merges.slot_and_turn(&self.live, id).await;
        lock(&self.merges.wanted).remove(&wanted(writer, id));
        if *self.leaving.borrow() {
            return Ok(());
        }
        let owner = writer.owner;
        let begun = self
            .with_volumes(move |v| v.begin_merge(id, &owner))
            .await?;
        drop(turn);
        let is_whole = match begun {
            Some(merge) => {
                failpoint::pass("merge", "begun");
                self.with_volumes(move |v| v.fill_merge(&merge)).await?
            }
            // One whose end failed is ended now.
            None => self.with_volumes(move |v| v.is_merged(id)).await?,
        };
        drop(slot);
        failpoint::pass("merge", "filled");
        // Whoever has the VM next ends it.
        while is_whole && !*self.leaving.borrow() {
            let turn = self.live.turn(&id.to_string()).await;
            if !self.merges.is_opened(id) {
                return self.end_merge(writer, id).await;
            }
            drop(turn);
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends a merge whose layer is whole; none is none to be ended. The caller has the volume's turn. One that may
    /// have been carried out, and whose end is not recorded, is looked at again later: what the VMM reads is not
    /// taken away from it.
    pub(super) async fn end_merge(
        self: &Arc<Self>,
        writer: &Writer,
        id: VolumeId,
    ) -> Result<(), NodeError> {
        let owner = writer.owner;
        let opened = self.with_volumes(move |v| v.open_merge(id, &owner)).await;
        let read = match opened {
            Ok(None) => return Ok(()),
            Ok(Some(merged)) => self.read_merged(writer, merged).await,
            Err(error) => Err(error),
        };
        failpoint::pass("merge", "read");
        let is_read = read.is_ok();
        let ended = match read {
            Ok(()) => self.with_volumes(move |v| v.finish_merge(id, &owner)).await,
            Err(error) => Err(error),
        };
        failpoint::pass("merge", "finished");
        match ended {
            Ok(is_ended) => {
                if is_ended {
                    self.collect_merged(id);
                }
                Ok(())
            }
            Err(error) => {
                let is_over = match &error {
                    // A copy stands on it, or its writer's lease is over.
                    NodeError::Volume(VolumeError::Busy(_) | VolumeError::NotAttached(_)) => true,
                    NodeError::Volume(error) => !is_read && !error.is_of_process(),
                    error => !is_read && !is_silent(error),
                };
                let dropped = match is_over {
                    true => self.with_volumes(move |v| v.drop_merge(id)).await.is_ok(),
                    false => false,
                };
                if !dropped {
                    self.settle_later(writer);
                }
                Err(error)
            }
        }
    }

    /// Removes what a merge has left, for which nobody waits.
    fn collect_merged(self: &Arc<Self>, id: VolumeId) {
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let collected = inner.with_volumes(move |v| v.collect_merged(id)).await;
            if let Err(error) = collected {
                let error = chain(&error);
                tracing::debug!(volume = %id, error, "layers that were merged stay for now");
            }
        });
    }

    async fn read_merged(
        self: &Arc<Self>,
        writer: &Writer,
        merged: Merged,
    ) -> Result<(), NodeError> {
        let chain = DiskChain {
            layers: merged.chain,
            over: merged.over,
            holds: merged.holds,
            merged: merged.layer,
            is_encrypted: merged.is_encrypted,
        };
        let layer = Layer {
            file: merged.file,
            is_qcow2: true,
            key: mounts::handed(&merged.key)?,
        };
        let disks = writer.disks()?;
        Ok(disks.merge(&writer.serial, &chain, layer).await?)
    }
}

fn wanted(writer: &Writer, id: VolumeId) -> Wanted {
    (id, writer.owner.job, writer.owner.incarnation.get())
}

/// Whether a VMM did not answer: what it was told may have happened.
pub(super) fn is_silent(error: &NodeError) -> bool {
    match error {
        NodeError::Machine(MachineError::Vmm(error)) => error.is_open(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_layer_goes_while_a_state_is_opened() {
        let merges = Merges::default();
        let (one, other) = (VolumeId::random(), VolumeId::random());
        let first = merges.opening(one);
        let second = merges.opening(one);
        drop(first);
        assert!(merges.is_opened(one) && !merges.is_opened(other));
        drop(second);
        assert!(!merges.is_opened(one));
        assert!(lock(&merges.opened).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_guest_holds_nobody_elses_merge_up() {
        let (merges, live) = (Merges::default(), Turns::default());
        let [one, other, free] = [(); 3].map(|()| VolumeId::random());
        let (first, second) = (
            live.turn(&one.to_string()).await,
            live.turn(&other.to_string()).await,
        );
        let held = async {
            let waiting = tokio::join!(
                merges.slot_and_turn(&live, one),
                merges.slot_and_turn(&live, other),
            );
            drop(waiting);
        };
        let passes = async {
            // They wait by now, and others come behind them for ever.
            sleep(MOMENT * 10).await;
            let (slot, _turn) = merges.slot_and_turn(&live, free).await;
            assert!(slot.is_some());
            drop((slot, first, second));
        };
        tokio::join!(held, passes);
        assert_eq!(merges.slots.available_permits(), SLOTS);
    }
}
