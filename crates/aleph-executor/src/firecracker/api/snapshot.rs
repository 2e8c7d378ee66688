//! Writing a guest down, and going on from there: `/snapshot/create` and `/snapshot/load`.
//!
//! # Failure cases
//! A load that Firecracker refuses ends its process, but where the request itself was wrong. And one
//! is refused as soon as anything of the guest was configured, even where that failed. The logger,
//! the metrics, the serial console and the MMDS's data may come before a load.

use super::fault::Problem;
use super::{Body, Check};
use crate::firecracker::{Feature, Version};
use serde::{Deserialize, Serialize, Serializer};
use std::path::{Path, PathBuf};

/// Where a paused guest is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// How much of its memory.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// The file for the state of its devices and CPUs. It is written anew.
    pub snapshot_path: PathBuf,
    /// The file for its memory. What an earlier one holds stays where a diff has nothing to say.
    pub mem_file_path: PathBuf,
}

/// How much of a guest's memory is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What was written to since the last snapshot, where [`super::MachineConfig::track_dirty_pages`]
    /// is set; from 1.13 on, without it, what is in memory at all (`mincore`).
    Diff,
}

impl Body for SnapshotCreate {
    fn check(&self, check: &mut Check) {
        check.path("snapshot_path", &self.snapshot_path);
        check.path("mem_file_path", &self.mem_file_path);
        check.refuse_if(
            "mem_file_path",
            self.mem_file_path == self.snapshot_path,
            "is the snapshot_path too",
        );
    }
}

/// Where a guest goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLoad {
    /// The file with the state of its devices and CPUs.
    pub snapshot_path: PathBuf,
    /// Where its memory comes from.
    pub mem_backend: MemoryBackend,
    /// Whether KVM notes which pages the guest writes to from now on. Before 1.13 it is sent as
    /// `enable_diff_snapshots`.
    pub track_dirty_pages: bool,
    /// Whether the guest runs at once.
    pub resume_vm: bool,
    /// Other TAP interfaces for some of its network devices. From 1.12 on.
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket for its vsock. From 1.16 on.
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock goes on by the time that has passed since. x86-64 only; from 1.14.4
    /// and 1.15.1 on.
    pub clock_realtime: bool,
    /// Which pages back its memory from now on. From 1.17 on.
    pub huge_pages: LoadHugePages,
}

/// Where a guest's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend_type", content = "backend_path", deny_unknown_fields)]
pub enum MemoryBackend {
    /// From a file, which is mapped privately: what the guest writes is its own.
    File(PathBuf),
    /// From a process that listens on a Unix socket. It is sent the userfaultfd and where its parts
    /// of the memory are, and serves the faults from then on.
    Uffd(PathBuf),
}

impl MemoryBackend {
    /// The file, or the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Uffd(path) => path,
        }
    }
}

/// Another TAP interface for a network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The device's id.
    pub iface_id: String,
    /// The interface's name.
    pub host_dev_name: String,
}

/// Another socket for a vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// Where it is bound.
    pub uds_path: PathBuf,
}

/// Which pages back a loaded guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadHugePages {
    /// As it was.
    #[default]
    Snapshot,
    /// As the host has it.
    None,
    /// Transparent huge pages, by advice to the kernel.
    Transparent,
    /// Pages of 2 MiB that the host has set aside; with [`MemoryBackend::Uffd`] only.
    #[serde(rename = "2M")]
    Size2M,
}

impl LoadHugePages {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde calls it with a reference"
    )]
    const fn is_as_it_was(&self) -> bool {
        matches!(self, Self::Snapshot)
    }
}

impl SnapshotLoad {
    /// A load of a guest that stands still after it, with nothing changed.
    #[must_use]
    pub fn new(snapshot_path: impl Into<PathBuf>, mem_backend: MemoryBackend) -> Self {
        Self {
            snapshot_path: snapshot_path.into(),
            mem_backend,
            track_dirty_pages: false,
            resume_vm: false,
            network_overrides: Vec::new(),
            vsock_override: None,
            clock_realtime: false,
            huge_pages: LoadHugePages::default(),
        }
    }

    /// As that version takes it.
    pub(super) fn for_version(&self, version: Version) -> impl Serialize {
        Wire {
            snapshot_path: &self.snapshot_path,
            mem_backend: &self.mem_backend,
            track: Track {
                is_on: self.track_dirty_pages,
                has_new_name: Feature::TrackDirtyPagesOnLoad.is_in(version),
            },
            resume_vm: self.resume_vm,
            network_overrides: &self.network_overrides,
            vsock_override: self.vsock_override.as_ref(),
            clock_realtime: self.clock_realtime,
            huge_pages: self.huge_pages,
        }
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    snapshot_path: &'a Path,
    mem_backend: &'a MemoryBackend,
    #[serde(flatten)]
    track: Track,
    resume_vm: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    network_overrides: &'a [NetworkOverride],
    #[serde(skip_serializing_if = "Option::is_none")]
    vsock_override: Option<&'a VsockOverride>,
    #[serde(skip_serializing_if = "super::wire::is_false")]
    clock_realtime: bool,
    #[serde(skip_serializing_if = "LoadHugePages::is_as_it_was")]
    huge_pages: LoadHugePages,
}

/// One setting that has had two names.
struct Track {
    is_on: bool,
    has_new_name: bool,
}

impl Serialize for Track {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = if self.has_new_name {
            "track_dirty_pages"
        } else {
            "enable_diff_snapshots"
        };
        serializer.collect_map(self.is_on.then_some((name, true)))
    }
}

impl SnapshotLoad {
    /// Notes what is wrong with it.
    pub(super) fn check(&self, check: &mut Check) {
        check.path("snapshot_path", &self.snapshot_path);
        check.within("mem_backend", |check| match &self.mem_backend {
            MemoryBackend::File(path) => check.path("backend_path", path),
            MemoryBackend::Uffd(socket) => check.socket("backend_path", socket),
        });
        if !self.network_overrides.is_empty() {
            check.uses("network_overrides", Feature::NetworkOverrides);
        }
        check.each("network_overrides", &self.network_overrides, |check, it| {
            check.id("iface_id", &it.iface_id);
            check.interface("host_dev_name", &it.host_dev_name);
        });
        let overrides = self.network_overrides.iter();
        check.once("network_overrides", overrides.map(|it| it.iface_id.clone()));
        if let Some(VsockOverride { uds_path }) = &self.vsock_override {
            check.uses("vsock_override", Feature::VsockOverride);
            check.within("vsock_override", |check| check.socket("uds_path", uds_path));
        }
        if self.clock_realtime {
            check.uses("clock_realtime", Feature::ClockRealtime);
            if !cfg!(target_arch = "x86_64") {
                check.fault(
                    "clock_realtime",
                    Problem::Conflict("is there on x86-64 only"),
                );
            }
        }
        if !self.huge_pages.is_as_it_was() {
            check.uses("huge_pages", Feature::HugePagesOnLoad);
        }
        check.refuse_if(
            "huge_pages",
            self.huge_pages == LoadHugePages::Size2M
                && !matches!(self.mem_backend, MemoryBackend::Uffd(_)),
            "of 2M needs memory that comes by userfaultfd",
        );
    }
}
