//! Volumes of a job that there is: attached, detached, and kept while its guest writes.

use crate::{JobId, VolumeMount};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a volume is attached to a job that there is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VolumeAttach {
    /// Where the guest mounts it from its next start on: an absolute path; `/mnt/NAME` when absent. A guest
    /// that runs finds a disk, and mounts it itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(pattern = "^/"))]
    pub path: Option<String>,
    /// Whether the guest may only read it. Any number of jobs may at a time.
    pub read_only: bool,
}

impl VolumeAttach {
    /// What the job has from then on.
    #[must_use]
    pub fn mount(self, name: &str) -> VolumeMount {
        VolumeMount {
            name: name.to_owned(),
            path: self.path.unwrap_or_else(|| format!("/mnt/{name}")),
            read_only: self.read_only,
            create: None,
        }
    }
}

/// A volume that a job has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeAttachment {
    /// Which job.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub job: JobId,
    /// Which volume, and where it is mounted.
    pub volume: VolumeMount,
    /// The serial number by which the guest finds the disk: `/dev/disk/by-id/virtio-SERIAL`.
    pub serial: String,
    /// Whether the guest has it now; else it does from the next start on.
    pub plugged: bool,
}

/// What a state of a volume is that was kept while a guest wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum VolumeConsistency {
    /// The guest's filesystems stood still, with all that was to be written.
    Filesystem,
    /// As after a loss of power: all that the guest was told to be durable is in it.
    Crash,
}

impl fmt::Display for VolumeConsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filesystem => "filesystem",
            Self::Crash => "crash",
        })
    }
}
