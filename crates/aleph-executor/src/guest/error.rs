//! Why something with a guest's agent did not work out.

use aleph_guest_proto::{ProtocolError, WindowError};
use std::io;
use std::sync::Arc;

/// Why an operation with the guest's agent did not work out. Cheap to clone, since one broken
/// channel fails many operations.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgentError {
    /// The guest refused or could not do this one operation.
    #[error("{message}")]
    Failed {
        /// The guest kernel's error number, or 0.
        errno: u32,
        /// What the guest was doing, with what.
        message: String,
    },
    /// The guest said that it cannot go on.
    #[error("{0}")]
    Fatal(String),
    /// The guest broke the protocol.
    #[error("it broke the protocol: {0}")]
    Protocol(String),
    /// A frame began and did not end.
    #[error("it sent half a frame and then nothing")]
    Stalled,
    /// The channel is closed.
    #[error("the channel to it is closed")]
    Closed,
    /// The channel could not be used.
    #[error("the channel to it failed: {0}")]
    Io(Arc<io::Error>),
    /// A command or file name that no guest could take.
    #[error("the request is malformed: {0}")]
    Request(ProtocolError),
    /// A guest to go on with was never set up, and there is no set-up to give it.
    #[error("it was never set up")]
    NotSetUp,
    /// The guest's agent is of a version that cannot set a network up. It stays as it is.
    #[error(
        "its agent speaks version {version} of the protocol, and a network takes {}: make a new \
         kernel bundle with aleph kernel build, or run it with --network none",
        aleph_guest_proto::Versions::NETWORK
    )]
    TooOld {
        /// The version that both sides speak.
        version: u16,
    },
    /// The guest's agent is of a version that mounts no volumes. It stays as it is.
    #[error(
        "its agent speaks version {version} of the protocol, and volumes take {}: make a new \
         kernel bundle with aleph kernel build, or run it without volumes",
        aleph_guest_proto::Versions::MOUNTS
    )]
    NoMounts {
        /// The version that both sides speak.
        version: u16,
    },
    /// The guest's agent is of a version that knows no links.
    #[error(
        "its agent speaks version {version} of the protocol, and functions take {}: make a new \
         kernel bundle with aleph kernel build",
        aleph_guest_proto::Versions::LINKS
    )]
    NoLinks {
        /// The version that both sides speak.
        version: u16,
    },
    /// There is no such kept command in the guest.
    #[error("it has no kept command on stream {0}")]
    NoSuchStream(u32),
    /// The host claims to have stored output that was never written: it is another command's.
    #[error("{stored} bytes of its output are stored, but it has written {written}")]
    Ahead {
        /// What the host has.
        stored: u64,
        /// What the guest has written.
        written: u64,
    },
}

impl From<ProtocolError> for AgentError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<WindowError> for AgentError {
    fn from(error: WindowError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// For handles that are readers and writers.
impl From<AgentError> for io::Error {
    fn from(error: AgentError) -> Self {
        let kind = match error {
            AgentError::Closed => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
