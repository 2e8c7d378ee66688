//! Volumes: disks that outlive jobs, what is told of them, and how they are asked for.

use crate::view::Timestamp;
use crate::{Incarnation, InvalidJob, JobId, MiB, VolumeConsistency, VolumeId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most volumes that one job mounts.
pub const MAX_VOLUMES: usize = 16;

/// The longest path, in bytes: what a guest is told of [`MAX_VOLUMES`] fits one message.
const MAX_PATH: usize = 1024;

/// A volume that a job has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume's name, in the job's account.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 63))]
    pub name: String,
    /// Where the guest mounts it: an absolute path, in which no part is empty, `.` or `..`.
    #[cfg_attr(feature = "schema", schema(pattern = "^/", max_length = 1024))]
    pub path: String,
    /// Whether the guest may only read it. Any number of jobs may at a time.
    #[serde(default)]
    pub read_only: bool,
    /// What is made where there is no such volume when the job is taken. Without it such a job is
    /// refused. Not for one that is only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<VolumeCreate>,
}

/// A volume that is made where it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VolumeCreate {
    /// Its size; the node's `volumes.default_size` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<MiB>,
    /// What is made on it; ext4 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
}

/// A volume that was made for a job, as that had asked for it and there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MadeVolume {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: MiB,
    /// What was made on it.
    pub filesystem: Filesystem,
}

/// Text that names no volume and path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form NAME:PATH, NAME:PATH:ro or NAME:PATH:size=20G,fs=xfs")]
pub struct ParseVolumeMountError(String);

impl FromStr for VolumeMount {
    type Err = ParseVolumeMountError;

    /// Reads `NAME:PATH[:OPTION,…]` as docker has it: `ro`, or `rw`. One that may be written is made
    /// where it is missing, of the size and with the filesystem that `size=20G` and `fs=xfs` say.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseVolumeMountError(text.to_owned());
        let mut parts = text.split(':');
        let (Some(name), Some(path), options, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let (mut read_only, mut create) = (false, VolumeCreate::default());
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            match option.split_once('=') {
                None if option == "rw" => {}
                None if option == "ro" => read_only = true,
                Some(("size", size)) if create.size.is_none() => {
                    create.size = Some(size.parse().map_err(|_| bad())?);
                }
                Some(("fs", kind)) if create.filesystem.is_none() => {
                    create.filesystem = Some(kind.parse().map_err(|_| bad())?);
                }
                _ => return Err(bad()),
            }
        }
        let is_said = create != VolumeCreate::default();
        let mount = Self {
            name: name.to_owned(),
            path: path.to_owned(),
            read_only,
            create: (!read_only || is_said).then_some(create),
        };
        mount.check().map_err(|_| bad())?;
        Ok(mount)
    }
}

impl VolumeMount {
    /// The path without the slashes that it may end with.
    pub(crate) fn mount_point(&self) -> &str {
        self.path.trim_end_matches('/')
    }

    /// Checks its form.
    pub(crate) fn check(&self) -> Result<(), InvalidJob> {
        let bad = |field, value: &str| {
            Err(InvalidJob::BadText {
                field,
                value: value.to_owned(),
            })
        };
        if !crate::is_job_name(&self.name) {
            return bad("volumes.name", &self.name);
        }
        // Two that look different are two places: there is one way to write each, but for a slash at the end.
        let parts = self.mount_point().strip_prefix('/');
        let is_plain = parts.is_some_and(|parts| {
            let mut parts = parts.split('/');
            parts.all(|part| !matches!(part, "" | "." | ".."))
        });
        // The guest's list of mounts has a line for each, so a path has no line break.
        let has_control = self.path.contains(|c: char| c.is_control());
        if !is_plain || has_control || self.path.len() > MAX_PATH {
            return bad("volumes.path", &self.path);
        }
        if self.read_only && self.create.is_some() {
            return bad("volumes.create", "what is only read");
        }
        Ok(())
    }
}

/// What is on a volume when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// ext4.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
    /// Nothing, or nothing that is known of.
    None,
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::None => "none",
        })
    }
}

/// Text that names no filesystem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of ext4, xfs and none")]
pub struct ParseFilesystemError(String);

impl FromStr for Filesystem {
    type Err = ParseFilesystemError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            "none" => Ok(Self::None),
            _ => Err(ParseFilesystemError(text.to_owned())),
        }
    }
}

/// How a disk image is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum DiskImageFormat {
    /// The disk's bytes, one after the other.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl fmt::Display for DiskImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Text that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither raw nor qcow2")]
pub struct ParseDiskImageFormatError(String);

impl FromStr for DiskImageFormat {
    type Err = ParseDiskImageFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(ParseDiskImageFormatError(text.to_owned())),
        }
    }
}

/// Where a volume's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// It can be used.
    Ready,
    /// It was removed, and can be had back until it is purged.
    Deleted,
}

/// How a volume is used by a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum VolumeAccess {
    /// It alone reads and writes.
    Exclusive,
    /// It reads, as others may.
    ReadOnly,
}

/// A job that has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeLease {
    /// Which job.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub job: JobId,
    /// Which start of it.
    #[cfg_attr(feature = "schema", schema(value_type = u64))]
    pub incarnation: Incarnation,
    /// What it may do.
    pub access: VolumeAccess,
    /// Since when.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
}

/// A state of a volume that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VolumeSnapshot {
    /// Its name, which no other snapshot of the volume has.
    pub name: String,
    /// How large the volume was.
    pub size: MiB,
    /// When it was taken.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// What it is, where a guest wrote meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<VolumeConsistency>,
}

/// A disk that outlives jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Its id.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub id: VolumeId,
    /// Its name, which no other volume of the account has.
    pub name: String,
    /// The account that it belongs to.
    pub account: String,
    /// What its guests see as its size.
    pub size: MiB,
    /// What it was made with.
    pub filesystem: Filesystem,
    /// Where its life is.
    pub state: VolumeState,
    /// Bytes that it takes on the host's disk, without what it shares with others.
    pub stored: u64,
    /// States of it that were kept, the oldest first.
    pub snapshots: Vec<VolumeSnapshot>,
    /// Who has it now.
    pub leases: Vec<VolumeLease>,
    /// Whether its last writer did not end in order, so that its filesystem is checked before the next.
    pub unclean: bool,
    /// Whether what is written to it is encrypted on the host's disk.
    #[serde(default)]
    pub encrypted: bool,
    /// When it was made.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// When it is gone for good, where it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>, format = DateTime))]
    pub purged_at: Option<Timestamp>,
}

/// What a new volume begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeOrigin {
    /// Name or id of a volume.
    #[cfg_attr(feature = "schema", schema(min_length = 1, max_length = 63))]
    pub volume: String,
    /// A snapshot of it; as it is now, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// A volume that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// Its name: as that of a job.
    #[cfg_attr(
        feature = "schema",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^(?!0x)[A-Za-z0-9][A-Za-z0-9_.-]*$"
        )
    )]
    pub name: String,
    /// Its size; that of what it is a copy of, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<MiB>,
    /// What is made on it, where it is no copy; ext4 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// What it is a copy of; of nothing, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<VolumeOrigin>,
    /// Whether it is encrypted on the host's disk; as the node's configuration says, when absent. A copy of an
    /// encrypted one is encrypted whatever this says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
}

/// How a volume grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// Its new size, not less than it has.
    pub size: MiB,
}

/// Names a snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeSnapshotRequest {
    /// Its name: as that of a job.
    #[cfg_attr(
        feature = "schema",
        schema(
            min_length = 1,
            max_length = 63,
            pattern = "^(?!0x)[A-Za-z0-9][A-Za-z0-9_.-]*$"
        )
    )]
    pub name: String,
}

/// How a volume that was removed is had back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VolumeUndelete {
    /// Another name for it, where its own is taken by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_docker_has_them() {
        let mount = |text: &str| text.parse::<VolumeMount>();
        let data = mount("data:/srv").unwrap();
        assert_eq!(
            (data.name.as_str(), data.path.as_str(), data.read_only),
            ("data", "/srv", false)
        );
        assert_eq!(data.create, Some(VolumeCreate::default()));
        assert!(!mount("data:/srv:rw").unwrap().read_only);
        let read = mount("data:/srv:ro").unwrap();
        assert_eq!((read.read_only, read.create), (true, None));
        let sized = mount("data:/srv:rw,size=20G,fs=xfs").unwrap();
        let create = VolumeCreate {
            size: Some(MiB(20 * 1024)),
            filesystem: Some(Filesystem::Xfs),
        };
        assert_eq!((sized.read_only, sized.create), (false, Some(create)));
        for wrong in [
            "",
            "data",
            "data:",
            "data:srv",
            "data:/",
            "data://",
            "data:/srv:rx",
            "data:/srv:ro:x",
            "data:/srv:",
            "data:/srv:size=",
            "data:/srv:size=lots",
            "data:/srv:size=1G,size=2G",
            "data:/srv:fs=ntfs",
            "data:/srv:ro,size=1G",
            "/host:/srv",
            "../x:/srv",
            "data:/a/../b",
            "data:/a/./b",
            "data:/a/.",
            "data:/a//b",
            "data://a",
            "data:/a\nb",
            "0x1:/srv",
            ":/srv",
        ] {
            assert!(mount(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(mount("data:/srv/").unwrap().mount_point(), "/srv");
        let long = |bytes: usize| mount(&format!("data:/{}", "a".repeat(bytes - 1)));
        assert!(long(1024).is_ok() && long(1025).is_err());
    }

    #[test]
    fn two_volumes_are_not_mounted_at_one_place() {
        let mut job = crate::JobSpec::new("x", vec!["true".into()]);
        for (one, other, fits) in [
            ("a:/d", "b:/d", false),
            ("a:/d", "b:/d/", false),
            ("a:/d//", "b:/d/", false),
            ("a:/d", "b:/d/e", true),
            ("a:/d", "a:/e", false),
        ] {
            job.volumes = vec![one.parse().unwrap(), other.parse().unwrap()];
            assert_eq!(job.validate().is_ok(), fits, "{one} {other}");
        }
    }
}
