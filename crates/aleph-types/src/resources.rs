//! What one VM may use.

use crate::MiB;
use serde::{Deserialize, Serialize};

/// The CPUs, memory and scratch disk of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Virtual CPUs, at least 1.
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 65_535))]
    pub cpus: u16,
    /// Guest memory.
    pub memory: MiB,
    /// Size of the writable disk over the image. Zero: writes go to the guest's memory.
    pub disk: MiB,
    /// Processes and threads that the VMM may have on the host; the node's own limit when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Bytes per second that the disks may read and write, each; no limit when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_bytes_per_second: Option<u64>,
}

impl Resources {
    /// The least memory that a guest of this kind boots in.
    pub const MIN_MEMORY: MiB = MiB(64);

    /// The fewest processes and threads that a VMM can do with.
    pub const MIN_PIDS: u32 = 16;
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: MiB(128),
            disk: MiB(0),
            pids: None,
            io_bytes_per_second: None,
        }
    }
}
