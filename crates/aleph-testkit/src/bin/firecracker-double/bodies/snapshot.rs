//! Bodies about snapshots.

use crate::gate::{Body, Field, always};
use crate::version::Version;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum SnapshotType {
    Diff,
    #[default]
    Full,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSnapshot {
    #[serde(default)]
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
}
impl Body for CreateSnapshot {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum BackendType {
    File,
    Uffd,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryBackend {
    pub(crate) backend_path: PathBuf,
    pub(crate) backend_type: BackendType,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NetworkOverride {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct VsockOverride {
    pub(crate) uds_path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum LoadHugePages {
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadSnapshot {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: Option<PathBuf>,
    pub(crate) mem_backend: Option<MemoryBackend>,
    #[serde(default)]
    pub(crate) enable_diff_snapshots: bool,
    #[serde(default)]
    #[expect(dead_code, reason = "all that a guest writes is known to be written")]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) resume_vm: bool,
    #[serde(default)]
    pub(crate) network_overrides: Vec<NetworkOverride>,
    pub(crate) vsock_override: Option<VsockOverride>,
    #[serde(default)]
    #[expect(dead_code, reason = "a guest's clock follows the emulator's")]
    pub(crate) clock_realtime: bool,
    #[serde(default)]
    pub(crate) huge_pages: LoadHugePages,
}

impl Body for LoadSnapshot {
    const FIELDS: &'static [Field] = &[
        ("snapshot_path", always),
        ("mem_file_path", always),
        ("mem_backend", always),
        ("enable_diff_snapshots", always),
        ("track_dirty_pages", |v| v.has(13)),
        ("resume_vm", always),
        ("network_overrides", |v| v.has(12)),
        ("vsock_override", |v| v.has(16)),
        ("clock_realtime", Version::has_clock_realtime),
        ("huge_pages", |v| v.has(17)),
    ];
}
