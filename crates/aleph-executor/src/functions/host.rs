//! What functions need of the node that they run on.

use super::room::Rooms;
use crate::cgroup::CgroupTree;
use crate::hypervisor::Driver;
use crate::lifecycle::Timeouts;
use crate::node::Images;
use crate::paths::Paths;
use aleph_vm_networking::Network;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What functions need of the node that they run on.
pub(crate) struct Host {
    pub(crate) paths: Paths,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) cgroups: Option<CgroupTree>,
    pub(crate) timeouts: Timeouts,
    pub(crate) images: Arc<dyn Images>,
    /// What connects guests, where the node does.
    pub(crate) network: Option<Arc<Network>>,
    /// The region that functions are told.
    pub(crate) region: String,
    /// What is made of templates, and removed of clones, as far as it is under way.
    pub(crate) burials: TaskTracker,
    /// Cancelled once no template is to be made any more.
    pub(crate) closing: CancellationToken,
    /// The disk that templates in the making take.
    pub(crate) rooms: Arc<Rooms>,
}

impl Host {
    /// What the host has, in MiB; 1 GiB where it does not say.
    pub(super) fn memory(&self) -> u64 {
        let capacity = crate::host::capacity(self.paths.state());
        capacity.map_or(1024, |capacity| u64::from(capacity.memory.0))
    }

    /// The folder with all templates.
    pub(super) fn templates(&self) -> PathBuf {
        self.paths.state().join("templates")
    }
}
