//! What can go wrong with a release.

use super::Version;
use crate::digest::Digest;
use crate::disk::DiskError;
use aleph_types::{Classify, ErrorClass};
use std::io;

/// An installation of a release that failed. What was installed before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Text that is no version.
    #[error("{0:?} is no version of Firecracker")]
    BadVersion(String),
    /// Text that is no SHA-256.
    #[error("{0:?} is no SHA-256")]
    BadDigest(String),
    /// A file whose name does not say which version it is.
    #[error("{0:?} does not say which version it is")]
    Unversioned(String),
    /// No digest is known for the archive.
    #[error("no digest is known for Firecracker {version} on {arch}")]
    NoPin {
        /// Which version.
        version: Version,
        /// For which architecture.
        arch: &'static str,
        /// Versions with one.
        known: Vec<Version>,
    },
    /// The digest that was given is not the one that is known.
    #[error("Firecracker {version} is known to be {pinned}, not {given}")]
    PinDiffers {
        /// Which version.
        version: Version,
        /// What is known.
        pinned: Digest,
        /// What was given.
        given: Digest,
    },
    /// The archive is not the one that it has to be.
    #[error("{from} is {found}, and has to be {wanted}")]
    WrongDigest {
        /// Where it came from.
        from: String,
        /// What came.
        found: Digest,
        /// What was to come.
        wanted: Digest,
    },
    /// More bytes than a release has.
    #[error("{what} is larger than {most} bytes")]
    TooLarge {
        /// What.
        what: String,
        /// How many there may be.
        most: u64,
    },
    /// The archive is no release.
    #[error("the archive is no release of Firecracker {version}: {why}")]
    Archive {
        /// Which version it should be.
        version: Version,
        /// What is wrong with it.
        why: String,
    },
    /// The server cannot be reached, or stopped in the middle.
    #[error("cannot get {url}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server answered with something else.
    #[error("{url} answers {status}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What it answered.
        status: u16,
    },
    /// Another archive of the same version is installed.
    #[error("Firecracker {version} is installed from another archive, {installed}")]
    Installed {
        /// Which version.
        version: Version,
        /// The archive's digest, as far as it is known.
        installed: String,
    },
    /// No such version is installed.
    #[error("Firecracker {0} is not installed")]
    NotInstalled(Version),
}

impl Classify for ReleaseError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(error) if error.is_full() => ErrorClass::Capacity,
            Self::Disk(_) => ErrorClass::Internal,
            Self::Unreachable { .. } | Self::Answer { .. } => ErrorClass::Unavailable,
            Self::Installed { .. } => ErrorClass::Conflict,
            Self::NotInstalled(_) => ErrorClass::NotFound,
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disk(error) if error.is_full() => "disk_full",
            Self::Disk(_) => "release_disk",
            Self::BadVersion(_) | Self::Unversioned(_) => "release_version",
            Self::BadDigest(_) => "release_digest",
            Self::NoPin { .. } => "release_unknown",
            Self::PinDiffers { .. } | Self::WrongDigest { .. } => "release_wrong_digest",
            Self::TooLarge { .. } | Self::Archive { .. } => "release_archive",
            Self::Unreachable { .. } | Self::Answer { .. } => "release_unreachable",
            Self::Installed { .. } => "release_installed",
            Self::NotInstalled(_) => "release_not_installed",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::BadVersion(_) => Some("Write it as 1.15.1.".into()),
            Self::BadDigest(_) => Some("It has 64 hexadecimal digits.".into()),
            Self::Unversioned(_) => {
                Some("Say the version as well: aleph setup firecracker 1.15.1 --file FILE.".into())
            }
            Self::NoPin { known, .. } => {
                let known: Vec<_> = known.iter().map(ToString::to_string).collect();
                Some(format!(
                    "Give the archive's SHA-256 from the release's page with --sha256 HEX, or \
                     choose one of {}.",
                    known.join(", ")
                ))
            }
            Self::PinDiffers { .. } => {
                Some("Leave --sha256 away, or check which version the digest is of.".into())
            }
            Self::WrongDigest { .. } => {
                Some("It was damaged or is another file: get it again from its origin.".into())
            }
            Self::Unreachable { .. } | Self::Answer { .. } => Some(
                "Get the archive by other means and give it with --file, or name a mirror with \
                 --base-url."
                    .into(),
            ),
            Self::Installed { .. } => {
                Some("Remove its folder first if it is the wrong one and no VM runs it.".into())
            }
            _ => None,
        }
    }
}

/// A fault of the archive itself, as an error of reading it.
pub(super) fn fault(version: Version) -> impl Fn(io::Error) -> ReleaseError {
    move |error| ReleaseError::Archive {
        version,
        why: error.to_string(),
    }
}
