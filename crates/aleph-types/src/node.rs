//! What a node tells about itself.

use crate::{MiB, NodeId};
use serde::{Deserialize, Serialize};

/// A node: what it has, and what of that is given away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// Its id, kept for as long as its state is.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: NodeId,
    /// The version of its program.
    pub version: String,
    /// The host's name.
    pub hostname: String,
    /// The host's kernel.
    pub kernel: String,
    /// What runs its guests, such as `qemu/tcg`.
    pub driver: String,
    /// What the host has.
    pub total: NodeResources,
    /// What may be given away: the total times the over-commit ratios.
    pub allocatable: NodeResources,
    /// What jobs have been given.
    pub allocated: NodeResources,
    /// Jobs by state.
    pub jobs: std::collections::BTreeMap<String, u64>,
    /// How long the daemon has run, in seconds.
    pub uptime_seconds: u64,
}

/// Amounts on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NodeResources {
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MiB,
    /// Disk.
    pub disk: MiB,
}
