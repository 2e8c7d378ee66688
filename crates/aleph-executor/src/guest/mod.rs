//! The host's side of the channel to a guest's agent.
//!
//! [`Agent`] multiplexes commands and files over one socket, as `aleph-guest-proto` lays down.
//! The guest is hostile: every stream holds at most one flow-control window, a frame that
//! begins must end within [`STALL`], and whatever is not of the protocol closes the channel
//! with an [`AgentError`] that says what it was. The VM's actor then ends the VM.
//!
//! | file | what it does |
//! | --- | --- |
//! | [`agent`] | the connection: its two tasks, set-up, ping and shutdown |
//! | `streams` | the table of streams that both tasks and all handles share |
//! | [`exec`] | a running command |
//! | [`mod@file`] | a file on its way in or out |

pub mod agent;
pub mod exec;
pub mod file;
mod streams;

pub use agent::{Agent, BootReport, STALL, SetupRequest, UpperKind};
pub use exec::{ExecEvent, ExecHandle, ExecInput, ExecRequest, exit_code_of};
pub use file::FileMeta;
pub use streams::AgentError;
