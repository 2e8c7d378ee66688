//! What can be wrong with an archive.

use super::entry_path::PathFault;
use crate::disk::DiskError;
use crate::program::ProgramError;
use aleph_types::{Classify, ErrorClass};
use std::io;

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The program that writes the archive failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// There is nothing in the file.
    #[error("it is an empty file")]
    Empty,
    /// The file is something else.
    #[error("it is not a tar archive (first bytes {})", shown(first))]
    NotTar {
        /// What the file begins with.
        first: Vec<u8>,
    },
    /// It is compressed in a way that is not supported.
    #[error("it is compressed with {format}, which is not supported")]
    Compression {
        /// The format's name.
        format: &'static str,
    },
    /// It ends too early or its content contradicts itself.
    #[error("it is damaged")]
    Damaged {
        /// What the reader found.
        source: io::Error,
    },
    /// A path in it is refused.
    #[error("the path {path:?} in it is refused: {fault}")]
    Path {
        /// The path.
        path: String,
        /// Why.
        fault: PathFault,
    },
    /// An entry that cannot be made.
    #[error("the entry {path:?} in it cannot be made: {why}")]
    Entry {
        /// The entry.
        path: String,
        /// Why.
        why: String,
    },
    /// It has more in it than any image has.
    #[error("it has more than {limit} in it")]
    TooMuch {
        /// How much is allowed.
        limit: String,
    },
}

impl Classify for ArchiveError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(error) => error.class(),
            Self::Program(error) => error.class(),
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.code(),
            Self::Program(error) => error.code(),
            Self::Empty => "archive_empty",
            Self::NotTar { .. } => "archive_not_tar",
            Self::Compression { .. } => "archive_compression",
            Self::Damaged { .. } => "archive_damaged",
            Self::Path { .. } => "archive_path",
            Self::Entry { .. } => "archive_entry",
            Self::TooMuch { .. } => "archive_too_much",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Disk(error) => error.advice(),
            Self::Program(error) => error.advice(),
            Self::Empty | Self::NotTar { .. } => Some(
                "Name a tar archive of a root file system, plain or compressed with gzip, xz \
                 or zstd."
                    .into(),
            ),
            Self::Compression { .. } => {
                Some("Decompress it first, or use gzip, xz or zstd.".into())
            }
            Self::Damaged { .. } => Some("Make or download the archive again.".into()),
            Self::Path { .. } | Self::Entry { .. } => {
                Some("Make the archive again without that entry.".into())
            }
            Self::TooMuch { .. } => None,
        }
    }
}

fn shown(first: &[u8]) -> String {
    let hex: Vec<String> = first.iter().map(|b| format!("{b:02x}")).collect();
    let mut text = hex.join(" ");
    if first.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        text.push_str(&format!(", {:?}", String::from_utf8_lossy(first)));
    }
    text
}

pub(crate) fn damaged(source: io::Error) -> ArchiveError {
    ArchiveError::Damaged { source }
}

pub(crate) fn contradiction(what: &str) -> ArchiveError {
    damaged(io::Error::new(io::ErrorKind::InvalidData, what))
}
