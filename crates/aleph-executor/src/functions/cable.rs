//! The network of a guest of functions: an address of the node's pool for as long as it lives, and
//! nothing that comes in.
//!
//! Nothing of it is journaled, as nothing of such a guest outlives its daemon: what one leaves, a
//! sweep finds by its name.

use crate::guest::GuestNetwork;
use crate::hypervisor::Nic;
use crate::node::network::{Queues, blocking, connect};
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
        // Whoever gives up waiting leaves a claim, and an interface that may still be made.
        let claim = Claimed {
            network: Some(Arc::clone(network)),
            vm,
        };
        let (nic, told) = connect(Arc::clone(network), vm, queue).await?;
        claim.keep();
        let cable = Self {
            network: Some(Arc::clone(network)),
            vm,
            told,
        };
        Ok((cable, vec![nic]))
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

/// A claim that is given back, with all that was made for it, unless it is kept.
struct Claimed {
    network: Option<Arc<Network>>,
    vm: VmId,
}

impl Claimed {
    fn keep(mut self) {
        self.network = None;
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let (Some(network), vm) = (self.network.take(), self.vm) else {
            return;
        };
        let give_back = move || match network.detach(vm) {
            Ok(()) => network.release(vm),
            Err(error) => tracing::warn!(%vm, %error, "a function's network could not be removed"),
        };
        // Behind what is being made, which holds the same lock.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(give_back)),
            Err(_) => give_back(),
        }
    }
}
