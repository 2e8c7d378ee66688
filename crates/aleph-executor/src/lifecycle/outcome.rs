//! How a VM's life ended.

use aleph_types::ExitStatus;
use std::fmt;
use std::time::Duration;

/// How a VM's life ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its main command ended by itself, or by the signal that a stop sent.
    Finished(ExitStatus),
    /// It was stopped on request before its main command had ended.
    Stopped,
    /// Something broke.
    Failed(Failure),
    /// Nobody saw it end.
    Unknown,
}

/// What broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The VMM could not be started.
    Launch(String),
    /// The guest did not answer within the time given to a boot.
    Silent(Duration),
    /// The guest said that it cannot go on, or did not keep to the protocol.
    Guest(String),
    /// The VMM ended although nobody had asked it to.
    Vmm(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(status) => status.fmt(f),
            Self::Stopped => f.write_str("stopped"),
            Self::Failed(failure) => failure.fmt(f),
            Self::Unknown => f.write_str("ended unobserved"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(why) => write!(f, "the VMM did not start: {why}"),
            Self::Silent(limit) => {
                write!(
                    f,
                    "the guest did not answer within {} s",
                    limit.as_secs_f32()
                )
            }
            Self::Guest(why) => write!(f, "the guest failed: {why}"),
            Self::Vmm(why) => write!(f, "the VMM ended unexpectedly: {why}"),
        }
    }
}
