//! Filesystems of a guest that stand still while a state is kept, and go on whatever happens meanwhile.

use super::Writer;
use crate::guest_agent::{AgentPortError, GuestAgent, thaw};
use crate::hypervisor::Vmm;
use crate::node::inner::Inner;
use crate::vm::chain;
use crate::volumes::{GuestState, Owner};
use aleph_types::VolumeId;
use std::sync::Arc;

impl Inner {
    /// Has a guest's filesystems stand still, where it has an agent that does that. What they may do then: all
    /// but those that run have to be told to go on.
    pub(super) async fn freeze(self: &Arc<Self>, writer: &Writer, id: VolumeId) -> GuestState {
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
    pub(super) async fn go_on(self: &Arc<Self>, writer: &Writer, guest: GuestState) -> bool {
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
    pub(super) async fn thaw_owed(self: &Arc<Self>, vmm: &Arc<dyn Vmm>, owner: Owner) -> bool {
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
}
