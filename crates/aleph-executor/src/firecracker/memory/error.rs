//! Why a memory server ends before its VM does.

use aleph_types::{Classify, ErrorClass};
use std::io;

/// Why a memory server ends before its VM does; the VM ends with it.
#[derive(Debug, thiserror::Error)]
pub enum MemoryServerError {
    /// It was started in another way than a driver starts it.
    #[error("{0:?} is no way to start a memory server")]
    Arguments(String),
    /// The same, with other descriptors.
    #[error("the descriptor {0} is not what a memory server is started with")]
    NotHanded(i32),
    /// Who connected says nothing that makes sense.
    #[error("the VMM handed no memory over: {0}")]
    Handshake(String),
    /// The memory file lacks some of the guest's memory.
    #[error("the memory file has {file} bytes, and the guest's memory needs {wanted}")]
    Short {
        /// How long it is.
        file: u64,
        /// How long it has to be.
        wanted: u64,
    },
    /// The memory file lacks a page that it had.
    #[error("the memory file has shrunk: nothing is left at {offset}")]
    Shrunk {
        /// Where it was read.
        offset: u64,
    },
    /// A fault was where no memory is.
    #[error("the VMM waits for an address that is no memory of its guest's: {0:#x}")]
    Elsewhere(u64),
    /// A call of the operating system failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Classify for MemoryServerError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Arguments(_) | Self::NotHanded(_) => ErrorClass::Invalid,
            Self::Short { .. } | Self::Shrunk { .. } => ErrorClass::Unavailable,
            Self::Handshake(_) | Self::Elsewhere(_) | Self::Io { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Arguments(_) | Self::NotHanded(_) => "memory_server_arguments",
            Self::Handshake(_) => "memory_server_handshake",
            Self::Short { .. } => "memory_file_short",
            Self::Shrunk { .. } => "memory_file_shrunk",
            Self::Elsewhere(_) => "memory_server_address",
            Self::Io { .. } => "memory_server_io",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Short { .. } | Self::Shrunk { .. } => Some(
                "Make the snapshot anew: its memory file was changed, which nothing may do.".into(),
            ),
            _ => None,
        }
    }
}

/// For `map_err`.
pub(super) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> MemoryServerError {
    move |error| MemoryServerError::Io {
        what,
        source: error.into(),
    }
}
