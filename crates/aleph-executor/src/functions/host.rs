//! What functions need of the node that they run on.

use crate::cgroup::CgroupTree;
use crate::hypervisor::Driver;
use crate::lifecycle::Timeouts;
use crate::node::Images;
use crate::paths::Paths;
use std::path::PathBuf;
use std::sync::Arc;

/// What functions need of the node that they run on.
pub(crate) struct Host {
    pub(crate) paths: Paths,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) cgroups: Option<CgroupTree>,
    pub(crate) timeouts: Timeouts,
    pub(crate) images: Arc<dyn Images>,
    /// The region that functions are told.
    pub(crate) region: String,
}

impl Host {
    /// The folder with all templates.
    pub(super) fn templates(&self) -> PathBuf {
        self.paths.state().join("templates")
    }
}
