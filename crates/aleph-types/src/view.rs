//! What a node tells about its jobs.

use crate::{
    CloudInit, ExitStatus, Health, Incarnation, JobId, JobSpec, MadeVolume, NetworkUsage, VmId,
    VmNetwork,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A moment, as RFC 3339 text in UTC.
pub type Timestamp = jiff::Timestamp;

/// Where a job's life is, as it was last observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Taken, and not started yet.
    Created,
    /// Its image is fetched and its VM's place made.
    Preparing,
    /// Its VMM starts and its guest boots.
    Starting,
    /// Its command runs.
    Running,
    /// Its guest is frozen.
    Paused,
    /// It is about to end.
    Stopping,
    /// It ended, and waits to be started again by its restart policy.
    Restarting,
    /// Its command ended, or it was stopped.
    Exited,
    /// It could not be started, or broke.
    Failed,
    /// Its VM is looked for, after the node was restarted.
    Unknown,
    /// It is being removed.
    Destroying,
    /// It is removed. Only events and waits tell this state.
    Destroyed,
}

impl JobState {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 12] = [
        Self::Created,
        Self::Preparing,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Restarting,
        Self::Exited,
        Self::Failed,
        Self::Unknown,
        Self::Destroying,
        Self::Destroyed,
    ];

    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether it ended and nothing starts it again by itself.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Exited | Self::Failed | Self::Destroyed)
    }

    /// Whether a VM belongs to it now.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(
            self,
            Self::Preparing
                | Self::Starting
                | Self::Running
                | Self::Paused
                | Self::Stopping
                | Self::Unknown
        )
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no state of a job")]
pub struct ParseStateError(String);

impl FromStr for JobState {
    type Err = ParseStateError;

    fn from_str(text: &str) -> Result<Self, ParseStateError> {
        let found = Self::ALL.into_iter().find(|state| state.name() == text);
        found.ok_or_else(|| ParseStateError(text.to_owned()))
    }
}

/// A job as the node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Job {
    /// Its id.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: JobId,
    /// Its name, given by the user or made up by the node; unique in its account.
    pub name: String,
    /// The account that it belongs to.
    pub account: String,
    /// What was asked for.
    pub spec: JobSpec,
    /// Where its life is.
    pub state: JobState,
    /// Why it is in this state, as a sentence, where there is more to say than the state does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How its command ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// What its health check says, where it has one and runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How far its guest's cloud-init is, where it is a full VM with a disk of its own that was
    /// started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// What of its machine has broken while its guest goes on, or stands still until it is mended, as a
    /// sentence: a disk of it has no more room on the host, or its TPM has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impaired: Option<String>,
    /// How often it was started.
    #[cfg_attr(feature = "schema", schema(value_type = u32))]
    pub incarnation: Incarnation,
    /// How often the restart policy started it.
    pub restarts: u32,
    /// Its VM on this node, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub vm: Option<VmId>,
    /// How that VM is connected, where it has a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<VmNetwork>,
    /// The GPUs of the host that it has now, by PCI address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// Whether it could go on at another node, where something keeps it from that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// The volumes that were made with it, as it had asked for them and there were none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_volumes: Vec<MadeVolume>,
    /// The hypervisor that runs it, such as `qemu/tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The digest of the image that it was last started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// The digest of the kernel that it was first started with, where it asked for one: each later
    /// start takes the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_digest: Option<String>,
    /// The id of its guest's boot (`/proc/sys/kernel/random/boot_id` in the guest).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_boot_id: Option<String>,
    /// When it was taken.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When its guest was last ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>, format = DateTime))]
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>, format = DateTime))]
    pub finished_at: Option<Timestamp>,
    /// How long its last boot took from launch until its guest was ready, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// Grows with each change of this job.
    pub generation: u64,
}

/// Whether a job could go on at another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Migration {
    /// Whether it could.
    pub migratable: bool,
    /// Why it is so, as a sentence.
    pub reason: String,
}

impl Migration {
    /// What is known of it before a job runs; `None` where nothing keeps it.
    #[must_use]
    pub fn of(spec: &JobSpec) -> Option<Self> {
        spec.gpus.as_ref().map(|_| Self {
            migratable: false,
            reason: "it has GPUs, whose state cannot leave them".into(),
        })
    }
}

/// A part of a list, and where the next begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobList {
    /// Jobs, the newest first.
    pub jobs: Vec<Job>,
    /// Names the next part; absent in the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What a job uses now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobStats {
    /// Which job.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Processor time of its VM since it started, in microseconds, the VMM's own included.
    pub cpu_usec: u64,
    /// Processors in use now, 1.0 being one whole; over the time since the last reading.
    pub cpus: f64,
    /// Memory of its VMM's process, guest included, in bytes: proportional set size where the
    /// host tells it, else resident.
    pub memory_bytes: u64,
    /// The guest's memory limit in bytes.
    pub memory_limit_bytes: u64,
    /// Processes in the guest, where its agent tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_processes: Option<u32>,
    /// Memory in use inside the guest, in bytes, where its agent tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_memory_bytes: Option<u64>,
    /// Bytes read from and written to its disks by the VMM.
    pub io_read_bytes: u64,
    /// Bytes that the VMM wrote.
    pub io_write_bytes: u64,
    /// What went through its network, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkUsage>,
    /// What its VMM counts of itself, such as `net_eth0.rx_bytes_count`, by the names that it has for
    /// it: those that are not 0. Firecracker does, and tells once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<BTreeMap<String, u64>>,
    /// Where processor time comes from: `cgroup` or `proc`.
    pub source: String,
}

/// Something that happened on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its number: grows, and is never given twice on one node.
    pub id: u64,
    /// When it happened.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub time: Timestamp,
    /// What happened, such as `job.running`, `job.health`, `image.pulled`.
    pub kind: String,
    /// The job that it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub job: Option<JobId>,
    /// That job's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The account that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// More, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Which of a command's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_one_name_everywhere() {
        for state in JobState::ALL {
            assert_eq!(state.name().parse(), Ok(state));
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{state}\""));
        }
        assert!("walking".parse::<JobState>().is_err());
    }
}
