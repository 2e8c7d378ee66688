//! The host's side of the channel to a guest's agent.
//!
//! [`Agent`] multiplexes commands and files over one socket, as `aleph-guest-proto` lays down.
//! The guest is hostile: every stream holds at most one flow-control window, a frame that
//! begins must end within [`STALL`], and whatever is not of the protocol closes the channel
//! with an [`AgentError`] that says what it was. The VM's actor then ends the VM.
//!
//! # A daemon that comes back
//! [`Agent::reattach`] goes on with a guest that another process began with. Whatever of the old
//! connection is still under way in either direction is passed over ([`aleph_guest_proto::mark`]).
//! A command with `keep` goes on at the byte that its host stored last; all else of the old
//! connection is gone.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`agent`] | the connection: what can be asked of a guest |
//! | `setup`, `network` | what makes a booted guest ready |
//! | `tasks` | the two tasks of a connection, and its beginning |
//! | `streams` | the table of streams that both tasks and all handles share |
//! | `stream` | what may come on one stream, and how much |
//! | `port` | the two halves of one stream |
//! | [`exec`] | a running command |
//! | [`mod@file`] | a file on its way in or out |
//! | [`bytes`] | readers and writers |
//! | [`archive`] | archives in and out, and what is at a path |
//! | [`connection`] | TCP connections over the guest's loopback |
//! | `order` | what templates and clones take |
//! | [`usage`] | what the guest uses |

pub mod agent;
pub mod archive;
pub mod bytes;
pub mod connection;
mod error;
pub mod exec;
pub mod file;
mod network;
mod order;
mod port;
mod setup;
mod stream;
mod streams;
mod tasks;
pub mod usage;

pub use agent::{Agent, BootReport, MainPosition, Reattach};
pub use aleph_guest_proto::{FileKind, Kept};
pub use archive::{OwnedStat, UnpackSink};
pub use bytes::{GuestReader, GuestWriter};
pub use connection::Connection;
pub use error::AgentError;
pub use exec::{ExecEvent, ExecHandle, ExecInput, ExecRequest, exit_code_of};
pub use file::FileMeta;
pub use network::{GuestNetwork, GuestNetworkV6};
pub use order::{CloneRequest, MountRequest, Ordered};
pub use setup::{SetupRequest, UpperKind};
pub use tasks::STALL;
pub use usage::GuestUsage;
