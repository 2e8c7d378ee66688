//! What can go wrong with a jail.

use super::users::UidRange;
use aleph_types::{Classify, ErrorClass, VmId};
use std::io;
use std::path::{Path, PathBuf};

/// A step of making, using or removing a jail that failed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Each user id of the range is some VM's.
    #[error("all user ids of {range} (executor.firecracker.uid_range) are in use by VMs")]
    UidsExhausted {
        /// The range.
        range: UidRange,
    },
    /// Only root may make jails.
    #[error("jails of Firecracker need root")]
    NotRoot,
    /// Jails cannot be in this folder.
    #[error("jails cannot be in {}: {why}", path.display())]
    Base {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The VM has a jail already; the jailer uses none twice.
    #[error("VM {vm} has a jail already")]
    Exists {
        /// Which VM.
        vm: VmId,
    },
    /// A file does not go into a jail.
    #[error("{name} cannot go into the jail: {why}")]
    Refused {
        /// Its name in the jail.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What is in a jail is not what it has to be: the VMM put it there.
    #[error("{name} in the jail is not what it has to be: {why}")]
    Foreign {
        /// Its name in the jail.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Filesystems stay mounted, or files come up, whatever is removed.
    #[error("{} does not get empty: {why}", path.display())]
    Stays {
        /// The folder.
        path: PathBuf,
        /// What stays.
        why: &'static str,
    },
    /// A call of the operating system failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for JailError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::UidsExhausted { .. } => ErrorClass::Capacity,
            Self::Exists { .. } => ErrorClass::Conflict,
            Self::NotRoot | Self::Base { .. } | Self::Refused { .. } => ErrorClass::Unavailable,
            Self::Foreign { .. } | Self::Stays { .. } | Self::Io { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::UidsExhausted { .. } => "jail_uids_exhausted",
            Self::NotRoot => "jail_not_root",
            Self::Base { .. } => "jail_base",
            Self::Exists { .. } => "jail_exists",
            Self::Refused { .. } => "jail_file_refused",
            Self::Foreign { .. } => "jail_file_foreign",
            Self::Stays { .. } => "jail_not_empty",
            Self::Io { .. } => "jail_io",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::UidsExhausted { .. } => {
                Some("Stop VMs, or widen uid_range in [executor.firecracker] of aleph.toml.".into())
            }
            Self::NotRoot => Some(
                "Run the node as root, or give up the jail with jailed = false in \
                 [executor.firecracker] of aleph.toml."
                    .into(),
            ),
            Self::Base { .. } => {
                Some("Choose another chroot_base in [executor.firecracker] of aleph.toml.".into())
            }
            _ => None,
        }
    }
}

impl JailError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }
}

/// Tells what was to be done with which path.
pub(super) fn at<E: Into<io::Error>>(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}

impl From<JailError> for io::Error {
    fn from(error: JailError) -> Self {
        let kind = match &error {
            JailError::Io { source, .. } => source.kind(),
            JailError::NotRoot | JailError::Refused { .. } | JailError::Foreign { .. } => {
                io::ErrorKind::PermissionDenied
            }
            JailError::Exists { .. } => io::ErrorKind::AlreadyExists,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
