//! Snapshots of jobs: what is told of them, and how they are asked for.

use crate::view::Timestamp;
use crate::{Job, JobId, PortForward, Resources, SnapshotId};
use serde::{Deserialize, Serialize};

/// The most copies that one fork makes.
pub const MAX_COPIES: u32 = 256;

/// A guest that was written down: its memory, its devices and its disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its id.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: SnapshotId,
    /// The account that it belongs to.
    pub account: String,
    /// The job that it is of. That may be gone by now.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub job: JobId,
    /// The name that this job had.
    pub job_name: String,
    /// The image that the job named.
    pub image: String,
    /// The digest of that image: whoever goes on from here needs it.
    pub image_digest: String,
    /// CPUs, memory and disk of the guest, and of all that go on from here.
    pub resources: Resources,
    /// The hypervisor that the guest ran on, such as `qemu/tcg`.
    pub driver: String,
    /// Bytes that it takes on disk.
    pub size: u64,
    /// When the guest stood still.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
}

/// How a snapshot is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotRequest {
    /// Whether the job ends where it is written down, so that nothing happens after it.
    pub stop: bool,
}

/// What a job that goes on from a snapshot has of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RestoreRequest {
    /// Its name; made up when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^(?!0x)[A-Za-z0-9][A-Za-z0-9_.-]*$"
        )
    )]
    pub name: Option<String>,
    /// Ports of the host that lead to its guest. Those of the first job stay that job's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schema(max_items = 64))]
    pub ports: Vec<PortForward>,
}

/// How a job is forked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ForkRequest {
    /// How many copies.
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 256))]
    pub copies: u32,
    /// What the copies are called, with `-1`, `-2` and so on behind it; made up when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schema(
            min_length = 1,
            max_length = 59,
            pattern = "^(?!0x)[A-Za-z0-9][A-Za-z0-9_.-]*$"
        )
    )]
    pub name: Option<String>,
    /// Whether the snapshot that the copies go on from stays.
    pub keep: bool,
}

impl Default for ForkRequest {
    fn default() -> Self {
        Self {
            copies: 1,
            name: None,
            keep: false,
        }
    }
}

/// What a fork came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Forked {
    /// The copies.
    pub jobs: Vec<Job>,
    /// The snapshot that they go on from, where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub snapshot: Option<SnapshotId>,
}
