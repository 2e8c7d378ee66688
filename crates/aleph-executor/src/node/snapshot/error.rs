//! What can go wrong with snapshots.

use crate::guest::AgentError;
use crate::hypervisor::VmmError;
use crate::vm::VmError;
use aleph_types::{Classify, ErrorClass};
use std::io;
use std::path::PathBuf;

/// A snapshot that could not be made, or not be gone on from.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none.
    #[error("there is no snapshot {0:?}")]
    Unknown(String),
    /// Several begin so.
    #[error("{0:?} is the beginning of several snapshot ids")]
    Ambiguous(String),
    /// It was made on another kind of host.
    #[error("the snapshot cannot go on here: {0}")]
    Incompatible(String),
    /// So many copies are not made.
    #[error("a fork makes 1 to {most} copies, and not {asked}")]
    Copies {
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        most: u32,
    },
    /// The guest's agent was built before there were snapshots.
    #[error("the job's guest was started by an older version, which has no snapshots")]
    OldGuest,
    /// It has volumes, of which a snapshot has nothing.
    #[error(
        "the job has volumes, which go on changing while what its guest knows of them does not"
    )]
    Volumes,
    /// It, or its command, has ended meanwhile.
    #[error("the job has ended meanwhile")]
    Ended,
    /// What its command wrote cannot be stored.
    #[error("what the job's command wrote could not be stored within {} s", .0.as_secs())]
    Unstored(std::time::Duration),
    /// The guest did not answer.
    #[error("the job's guest did not {what} within {} s", limit.as_secs())]
    Silent {
        /// What it was asked.
        what: &'static str,
        /// How long that was waited for.
        limit: std::time::Duration,
    },
    /// The job was to end meanwhile, or the node to let go of it.
    #[error("the snapshot was given up, since the job was to end or its node shuts down")]
    GivenUp,
    /// The disk is full.
    #[error("the disk is too full for the snapshot")]
    Full,
    /// The VM did not do it.
    #[error("the job's VM could not be written down")]
    Vm(#[from] VmError),
    /// The guest did not do it.
    #[error("the job's guest did not stand still")]
    Guest(#[from] AgentError),
    /// A file could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl SnapshotError {
    pub(super) fn at(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::File {
                what,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// What a VMM did not do; one that cannot write says so in words of its own.
    pub(super) fn saving(error: VmError, disk_is_full: bool) -> Self {
        match error {
            VmError::Vmm(VmmError::Refused { .. }) if disk_is_full => Self::Full,
            error => error.into(),
        }
    }
}

impl Classify for SnapshotError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Unknown(_) => ErrorClass::NotFound,
            Self::Copies { .. } => ErrorClass::Invalid,
            Self::Ambiguous(_)
            | Self::Incompatible(_)
            | Self::OldGuest
            | Self::Volumes
            | Self::Ended
            | Self::GivenUp
            | Self::Vm(VmError::Denied(_) | VmError::Ended(_)) => ErrorClass::Conflict,
            Self::Full => ErrorClass::Capacity,
            Self::Unstored(_)
            | Self::Silent { .. }
            | Self::Vm(_)
            | Self::Guest(_)
            | Self::File { .. } => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "no_snapshot",
            Self::Ambiguous(_) => "ambiguous",
            Self::Incompatible(_) => "snapshot_incompatible",
            Self::Copies { .. } => "bad_copies",
            Self::OldGuest => "guest_too_old",
            Self::Volumes => "job_has_volumes",
            Self::Ended | Self::GivenUp => "snapshot_given_up",
            Self::Full => "disk_full",
            Self::Unstored(_) | Self::Silent { .. } | Self::Vm(_) | Self::Guest(_) => {
                "snapshot_failed"
            }
            Self::File { .. } => "snapshot_files",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some("See aleph snapshot ls for those there are.".into()),
            Self::Ambiguous(_) => Some("Give more digits of the id.".into()),
            Self::Incompatible(_) => {
                Some("Go on with it on the host that made it, as that was then.".into())
            }
            Self::Volumes => {
                Some("Keep the volumes' own state: aleph volume snapshot VOLUME NAME.".into())
            }
            Self::OldGuest => Some("Restart the job; then it can be written down.".into()),
            Self::Full => Some("Free some disk (aleph prune, aleph snapshot rm).".into()),
            _ => None,
        }
    }
}
