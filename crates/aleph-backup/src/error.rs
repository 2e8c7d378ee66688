//! What can go wrong with backups.

use aleph_types::{Classify, ErrorClass};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a store did not do what it was asked, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The credentials are missing, wrong, or not good for this.
    Denied,
    /// There is no space left.
    Full,
    /// The bucket or the folder is not there.
    NotThere,
    /// It does not answer, or answers with something else.
    Other,
}

/// An operation on backups that failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store refused or did not answer.
    #[error("cannot {operation} {object}: {why}")]
    Store {
        /// What was done.
        operation: &'static str,
        /// The object, or the folder of objects.
        object: String,
        /// What kind of refusal it is.
        refusal: Refusal,
        /// What the store said.
        why: String,
    },
    /// An object that others refer to is not there.
    #[error("the repository lacks {object}")]
    Missing {
        /// The object, and what is needed of it.
        object: String,
    },
    /// An object is not what was written.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// The object, and which part.
        object: String,
        /// What is wrong.
        why: String,
    },
    /// Text that names no place for backups.
    #[error("{text:?} is no place for backups: {why}")]
    BadLocation {
        /// The text, without what may be a secret.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no repository at this place.
    #[error("there is no repository at {location}")]
    NoRepository {
        /// The place.
        location: String,
    },
    /// A repository of a later version of this program.
    #[error(
        "the repository has format {version}, this program knows up to {}",
        crate::config::VERSION
    )]
    Newer {
        /// Its version.
        version: u32,
    },
    /// A key file that is none.
    #[error("{} is no key for backups: {why}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The repository is encrypted, and there was no key.
    #[error("the repository is encrypted, and no key was given")]
    KeyNeeded,
    /// The key is another repository's.
    #[error("the key does not open the repository")]
    WrongKey,
    /// The repository is not encrypted, and there was a key.
    #[error("the repository is not encrypted, and a key was given")]
    NotEncrypted,
    /// There is no such snapshot.
    #[error("there is no snapshot {reference:?}")]
    NoSnapshot {
        /// What was asked for.
        reference: String,
    },
    /// More than one snapshot's id begins so.
    #[error("{count} snapshots begin with {reference:?}")]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// How many it could be.
        count: usize,
    },
    /// Somebody else works in the repository, in a way that excludes this.
    #[error("the repository is in use: {holder}")]
    Locked {
        /// Who, doing what, since when.
        holder: String,
    },
    /// The lock of this very operation was taken away.
    #[error("the lock of this operation was removed by somebody else")]
    LockLost,
    /// The volume cannot be read.
    #[error("cannot read the volume at byte {offset}")]
    Source {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// What is restored cannot be written.
    #[error("cannot {operation} {}", path.display())]
    Target {
        /// What was done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something where a volume should be restored to.
    #[error("{} is there already", path.display())]
    TargetExists {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system has no random bytes")]
    Random {
        /// Why.
        source: io::Error,
    },
    /// The runtime shuts down, or the operation was told to stop.
    #[error("the operation was stopped")]
    Stopped,
}

impl BackupError {
    /// What a store's own error means.
    pub(crate) fn store(
        operation: &'static str,
        object: impl fmt::Display,
        error: &object_store::Error,
    ) -> Self {
        Self::Store {
            operation,
            object: object.to_string(),
            refusal: Refusal::of(error),
            why: error.to_string(),
        }
    }

    /// Whether a part of the repository is gone or damaged.
    pub(crate) const fn is_loss(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Damaged { .. })
    }

    /// An object that is not what it should be.
    pub(crate) fn damaged(object: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Damaged {
            object: object.to_string(),
            why: why.to_string(),
        }
    }
}

impl Refusal {
    fn of(error: &object_store::Error) -> Self {
        match error {
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => return Self::Denied,
            object_store::Error::NotFound { .. } => return Self::NotThere,
            _ => {}
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(io) = current.downcast_ref::<io::Error>() {
                match io.kind() {
                    io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge => return Self::Full,
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                        return Self::Denied;
                    }
                    _ => {}
                }
            }
            cause = current.source();
        }
        Self::Other
    }
}

impl Classify for BackupError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Store { refusal, .. } => match refusal {
                Refusal::Denied => ErrorClass::Forbidden,
                Refusal::Full => ErrorClass::Capacity,
                Refusal::NotThere => ErrorClass::NotFound,
                Refusal::Other => ErrorClass::Unavailable,
            },
            Self::Missing { .. } | Self::Damaged { .. } | Self::Random { .. } => {
                ErrorClass::Internal
            }
            Self::BadLocation { .. }
            | Self::Newer { .. }
            | Self::Ambiguous { .. }
            | Self::BadKey { .. }
            | Self::KeyNeeded
            | Self::WrongKey
            | Self::NotEncrypted => ErrorClass::Invalid,
            Self::NoRepository { .. } | Self::NoSnapshot { .. } => ErrorClass::NotFound,
            Self::Locked { .. } | Self::LockLost | Self::TargetExists { .. } => {
                ErrorClass::Conflict
            }
            Self::Target { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorClass::Capacity
            }
            Self::Source { .. } | Self::Target { .. } | Self::Stopped => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Store { refusal, .. } => match refusal {
                Refusal::Denied => "backup_store_denied",
                Refusal::Full => "backup_store_full",
                Refusal::NotThere => "backup_store_not_found",
                Refusal::Other => "backup_store_failed",
            },
            Self::Missing { .. } => "backup_object_missing",
            Self::Damaged { .. } => "backup_object_damaged",
            Self::BadLocation { .. } => "backup_bad_location",
            Self::NoRepository { .. } => "backup_no_repository",
            Self::BadKey { .. } => "backup_bad_key",
            Self::KeyNeeded => "backup_key_needed",
            Self::WrongKey => "backup_key_wrong",
            Self::NotEncrypted => "backup_not_encrypted",
            Self::Newer { .. } => "backup_format_newer",
            Self::NoSnapshot { .. } => "backup_no_snapshot",
            Self::Ambiguous { .. } => "backup_snapshot_ambiguous",
            Self::Locked { .. } => "backup_locked",
            Self::LockLost => "backup_lock_lost",
            Self::Source { .. } => "backup_source_unreadable",
            Self::Target { .. } => "backup_target_failed",
            Self::TargetExists { .. } => "backup_target_exists",
            Self::Random { .. } => "backup_no_random",
            Self::Stopped => "backup_stopped",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(
            match self {
                Self::Store { refusal, .. } => match refusal {
                    Refusal::Denied => "Check the credentials and what they may do there.",
                    Refusal::Full => "Make room there and run it again: what was sent is kept.",
                    Refusal::NotThere => "Make the bucket or the folder first.",
                    Refusal::Other => "Run it again: what was sent is kept.",
                },
                Self::Missing { .. } | Self::Damaged { .. } => {
                    "A new backup of the volume stores anew what is missing. `aleph volume backups URL --verify` names the backups that stay broken, `aleph volume forget` removes them."
                }
                Self::BadLocation { .. } => {
                    "Say file:///FOLDER or s3://BUCKET/PREFIX; credentials come from the environment."
                }
                Self::BadKey { .. } => {
                    "Make one with `openssl rand -hex 32`, and let nobody else read it."
                }
                Self::KeyNeeded => {
                    "Name the file with its key: `--key-file FILE`, or `backup_key_file` in `[volumes]`."
                }
                Self::WrongKey => "Use the key file that it was made with.",
                Self::NotEncrypted => {
                    "Say `--key-file none`, if it may be in the clear; another place gets an encrypted one."
                }
                Self::NoRepository { .. } => "The first backup to a place makes its repository.",
                Self::Newer { .. } => "Use the version that wrote it.",
                Self::NoSnapshot { .. } | Self::Ambiguous { .. } => {
                    "List what is there: `aleph volume backups URL`."
                }
                Self::Locked { .. } => {
                    "Wait until it has ended, or end it. The lock of a host that went down counts no more after half an hour; where nobody works there for certain, `aleph volume prune-backups URL --unlock` removes all locks."
                }
                Self::LockLost => "Run it again: what was sent is kept.",
                Self::TargetExists { .. } => "Name a file that is not there.",
                Self::Target { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                    "Make room and run it again."
                }
                Self::Source { .. } => {
                    "The host's kernel log (dmesg) says whether a disk fails. What was sent is kept for the next backup."
                }
                Self::Target { .. } | Self::Random { .. } | Self::Stopped => {
                    return None;
                }
            }
            .to_owned(),
        )
    }
}
