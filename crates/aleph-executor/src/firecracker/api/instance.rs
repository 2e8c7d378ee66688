//! What a Firecracker is: `/` and `/version`.

use serde::Deserialize;

/// What `GET /` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct InstanceInfo {
    /// The `--id` that it was started with.
    pub id: String,
    /// What its guest does.
    pub state: InstanceState,
    /// Its version, without a `v`.
    pub vmm_version: String,
    /// `Firecracker`.
    pub app_name: String,
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// There is none yet, neither booted nor loaded.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs, or has ended by itself in a way that Firecracker does not see.
    Running,
    /// It stands still.
    Paused,
}

/// What `GET /version` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct FirecrackerVersion {
    /// Without a `v`.
    pub firecracker_version: String,
}
