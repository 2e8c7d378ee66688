//! Block devices: `/drives/{drive_id}`.

use super::{Body, Check, RateLimiter};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A block device: a file or a block device of the host ([`Drive::file`]), or another process that
/// serves it ([`Drive::vhost_user`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its id: letters, digits and underscores.
    pub drive_id: String,
    /// The partition that is the root file system, by its unique id; for a root device alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether it is the guest's root, which Firecracker says on the kernel's command line.
    pub is_root_device: bool,
    /// Whether the guest's flushes reach the disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest may only read it. Not for vhost-user: that back end decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The file. Its size is rounded down to sectors of 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Limits of its bytes and requests. Not for vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// How the file is read and written; [`IoEngine::Sync`] where nothing is said. Not for
    /// vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// The socket of a vhost-user back end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// Whether a guest's flushes reach the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// The guest is not offered to flush: what it wrote is lost with the host. For disks that do
    /// not outlive their guest.
    #[default]
    Unsafe,
    /// The guest can flush, and then it is on the disk. For disks that outlive their guest.
    Writeback,
}

/// How a file is read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// Within the VMM's thread.
    #[default]
    Sync,
    /// With `io_uring`; needs Linux 5.10.51. Firecracker calls it a preview.
    Async,
}

impl Drive {
    /// A file or block device of the host, which the guest may write to.
    #[must_use]
    pub fn file(drive_id: impl Into<String>, path_on_host: impl Into<PathBuf>) -> Self {
        Self {
            drive_id: drive_id.into(),
            partuuid: None,
            is_root_device: false,
            cache_type: CacheType::default(),
            is_read_only: Some(false),
            path_on_host: Some(path_on_host.into()),
            rate_limiter: None,
            io_engine: Some(IoEngine::default()),
            socket: None,
        }
    }

    /// What a vhost-user back end serves on a socket.
    #[must_use]
    pub fn vhost_user(drive_id: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            is_read_only: None,
            path_on_host: None,
            io_engine: None,
            socket: Some(socket.into()),
            ..Self::file(drive_id, "")
        }
    }
}

impl Body for Drive {
    fn check(&self, check: &mut Check) {
        check.id("drive_id", &self.drive_id);
        check.refuse_if(
            "partuuid",
            self.partuuid.is_some() && !self.is_root_device,
            "has no effect on a drive that is not the root device",
        );
        if let Some(partuuid) = &self.partuuid {
            check.text("partuuid", partuuid, 64);
        }
        if let Some(limiter) = &self.rate_limiter {
            check.within("rate_limiter", |check| limiter.check(check));
        }
        match (&self.path_on_host, &self.socket) {
            (Some(path), None) => check.path("path_on_host", path),
            (None, Some(socket)) => {
                check.socket("socket", socket);
                const WHY: &str = "is not for a vhost-user drive";
                check.refuse_if("is_read_only", self.is_read_only.is_some(), WHY);
                check.refuse_if("rate_limiter", self.rate_limiter.is_some(), WHY);
                check.refuse_if("io_engine", self.io_engine.is_some(), WHY);
            }
            _ => check.refuse_if(
                "path_on_host",
                true,
                "either a path_on_host or a vhost-user socket is needed, and not both",
            ),
        }
    }
}

/// A change of a drive while the guest runs. With nothing but an id it makes Firecracker ask a
/// vhost-user back end for its configuration anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Which.
    pub drive_id: String,
    /// Another file, or the same one grown: the guest is told of its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Body for DriveUpdate {
    fn check(&self, check: &mut Check) {
        check.id("drive_id", &self.drive_id);
        if let Some(path) = &self.path_on_host {
            check.path("path_on_host", path);
        }
        if let Some(limiter) = &self.rate_limiter {
            check.within("rate_limiter", |check| limiter.check(check));
        }
    }
}
