//! The network of a guest of functions: an address of the node's pool for as long as it lives, and
//! nothing that comes in.
//!
//! Nothing of it is journaled, as nothing of such a guest outlives its daemon: what one leaves, a
//! sweep finds by its name.

use crate::guest::GuestNetwork;
use crate::hypervisor::Nic;
use crate::node::network::{Queues, blocking, connect_by};
use aleph_types::{NetworkSpec, VmId};
use aleph_vm_networking::{Network, NetworkError};
use std::sync::Arc;

/// A guest's network, or none. It is undone by [`Cable::undo`], once the VMM has ended.
#[derive(Debug)]
pub(super) struct Cable {
    network: Option<Arc<Network>>,
    vm: VmId,
    pub(super) told: Option<GuestNetwork>,
}

impl Cable {
    /// That of a VM that is not connected, or not yet.
    pub(super) fn none(vm: VmId) -> Self {
        Self {
            network: None,
            vm,
            told: None,
        }
    }

    /// Connects a VM of a function, where the node connects any.
    pub(super) async fn lay(
        network: Option<&Arc<Network>>,
        vm: VmId,
        (account, function): (&str, &str),
    ) -> Result<(Self, Vec<Nic>), NetworkError> {
        Self::lay_by(network, vm, (account, function), Queues::New(1)).await
    }

    /// The same, over this queue.
    pub(super) async fn lay_by(
        network: Option<&Arc<Network>>,
        vm: VmId,
        (account, function): (&str, &str),
        queue: Queues,
    ) -> Result<(Self, Vec<Nic>), NetworkError> {
        let Some(network) = network else {
            return Ok((Self::none(vm), Vec::new()));
        };
        network.claim(vm, (account, function), &NetworkSpec::default())?;
        match connect_by(Arc::clone(network), vm, queue).await {
            Ok((nic, told)) => {
                let cable = Self {
                    network: Some(Arc::clone(network)),
                    vm,
                    told,
                };
                Ok((cable, vec![nic]))
            }
            Err(error) => {
                network.release(vm);
                Err(error)
            }
        }
    }

    /// Takes it away. Can be done again.
    pub(super) async fn undo(&self) {
        let (Some(network), vm) = (&self.network, self.vm) else {
            return;
        };
        let detaching = Arc::clone(network);
        match blocking(move || detaching.detach(vm)).await {
            Ok(()) => network.release(vm),
            // The address stays taken, so that nobody else gets it beside what is still there.
            Err(error) => tracing::warn!(%vm, %error, "a function's network could not be removed"),
        }
    }
}
