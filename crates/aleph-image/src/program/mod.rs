//! Starting other programs: a bounded wait, their last words in the error, nothing left running.

mod command;
mod error;
mod running;

pub(crate) use command::Program;
pub use error::ProgramError;
