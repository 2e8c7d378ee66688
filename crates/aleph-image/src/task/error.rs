//! Why a function's code is refused.

use super::{MOST_UNPACKED, MOST_ZIPPED};
use crate::disk::{DiskError, readable};
use crate::error::ImageError;
use crate::recipe::{ArchiveError, PathFault};
use aleph_types::{Classify, ErrorClass};
use std::fmt;
use std::io;
use zip::result::ZipError;

/// Code that cannot become an image.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It is no zip archive, or a damaged one.
    #[error("the code is not a zip archive: {why}")]
    NotZip {
        /// What the reader found.
        why: String,
    },
    /// It has nothing in it.
    #[error("there is nothing in the code's zip archive")]
    Empty,
    /// The archive is too large.
    #[error("the code's zip archive has {}, at most {} are allowed", readable(*size), readable(MOST_ZIPPED))]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// What is in it is too much.
    #[error("the code has more than {0} in it")]
    TooMuch(Limit),
    /// Two entries have the same name, or share bytes of the archive.
    #[error("entries of the code's zip archive have the same name or overlap")]
    Overlap,
    /// A path that begins with a slash.
    #[error("the path {path:?} in the code is refused: it is absolute")]
    Absolute {
        /// The path.
        path: String,
    },
    /// A path that leads out, or that Linux cannot have.
    #[error("the path {path:?} in the code is refused: {fault}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// A symlink that leads out of the code.
    #[error("the symlink {path:?} in the code leads out of it")]
    LeadsOut {
        /// The symlink.
        path: String,
    },
    /// An entry that cannot be read without a password.
    #[error("{path:?} in the code is encrypted")]
    Encrypted {
        /// The entry.
        path: String,
    },
    /// A compression that is not known.
    #[error("{path:?} in the code is compressed with {method}, which is not supported")]
    Compression {
        /// The entry.
        path: String,
        /// The method's name.
        method: String,
    },
    /// An entry whose content is not what the archive says.
    #[error("{path:?} in the code is damaged")]
    Damaged {
        /// The entry.
        path: String,
        /// What the reader found.
        source: io::Error,
    },
    /// An entry that cannot be made.
    #[error("{path:?} in the code cannot be unpacked: {why}")]
    Entry {
        /// The entry.
        path: String,
        /// Why.
        why: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The tree could not be unpacked or written as an image.
    #[error(transparent)]
    Image(Box<ImageError>),
}

/// How much of something there may be in a function's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many bytes of files.
    Unpacked(u64),
    /// So many files, folders and links.
    Entries(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpacked(bytes) => f.write_str(&readable(*bytes)),
            Self::Entries(entries) => write!(f, "{entries} files and folders"),
        }
    }
}

impl TaskError {
    pub(crate) fn not_zip(source: ZipError) -> Self {
        match source {
            ZipError::Io(error) => Self::NotZip {
                why: error.to_string(),
            },
            other => Self::NotZip {
                why: other.to_string(),
            },
        }
    }
}

impl From<ImageError> for TaskError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Disk(error) => error.into(),
            other => Self::Image(Box::new(other)),
        }
    }
}

impl From<ArchiveError> for TaskError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Disk(error) => error.into(),
            source => Self::Image(Box::new(ImageError::Archive {
                path: "the code".into(),
                source,
            })),
        }
    }
}

impl Classify for TaskError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(error) => error.class(),
            Self::Image(error) => error.class(),
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotZip { .. } => "code_not_zip",
            Self::Empty => "code_empty",
            Self::TooLarge { .. } => "code_too_large",
            Self::TooMuch(Limit::Unpacked(_)) => "code_too_much",
            Self::TooMuch(Limit::Entries(_)) => "code_too_many_files",
            Self::Overlap => "code_overlap",
            Self::Absolute { .. } | Self::Path { .. } => "code_path",
            Self::LeadsOut { .. } => "code_symlink",
            Self::Encrypted { .. } => "code_encrypted",
            Self::Compression { .. } => "code_compression",
            Self::Damaged { .. } => "code_damaged",
            Self::Entry { .. } => "code_entry",
            Self::Disk(error) => error.code(),
            Self::Image(error) => error.code(),
        }
    }

    fn advice(&self) -> Option<String> {
        let advice = match self {
            Self::Disk(error) => return error.advice(),
            Self::Image(error) => return error.advice(),
            Self::NotZip { .. } | Self::Damaged { .. } => {
                "Pack the function's files again, with zip -r for one, and send the whole archive."
                    .into()
            }
            Self::Empty => "Put the function's files into it, at its top.".into(),
            Self::TooLarge { .. } => {
                "Leave out what the function does not need, or make an image of it.".into()
            }
            Self::TooMuch(_) => format!(
                "Leave out what the function does not need: unpacked, at most {} are allowed.",
                readable(MOST_UNPACKED)
            ),
            Self::Overlap => "Pack the files again, each once.".into(),
            Self::Absolute { .. } | Self::Path { .. } => {
                "Pack the files again from within their folder, by relative paths.".into()
            }
            Self::LeadsOut { .. } => {
                "Make it relative and let it lead to a file in the archive, or pack the file \
                 itself."
                    .into()
            }
            Self::Encrypted { .. } => "Pack the files without a password.".into(),
            Self::Compression { .. } => "Pack the files with deflate, zip's default.".into(),
            Self::Entry { .. } => "Pack the files again without it.".into(),
        };
        Some(advice)
    }
}
