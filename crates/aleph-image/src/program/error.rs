//! What can go wrong with a program, and its last words.

use aleph_types::{Classify, ErrorClass};
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// How much of it an error shows.
const STDERR_LINES: usize = 6;
/// How much of one line; programs repeat their arguments, of which there are hundreds.
const STDERR_LINE: usize = 200;

/// A program that could not be started, or did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("the program {program} is not installed")]
    Missing {
        /// Its name.
        program: String,
        /// The Debian package that it is in.
        package: Option<&'static str>,
    },
    /// It is there and cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}){}", last_words(stderr))]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error.
        stderr: String,
        /// Whether it complained anywhere that a disk is full.
        disk_full: bool,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {} s and was killed{}", limit.as_secs(), last_words(stderr))]
    TimedOut {
        /// Its name.
        program: String,
        /// How long it had.
        limit: Duration,
        /// The end of its standard error.
        stderr: String,
    },
    /// Its output could not be read.
    #[error("cannot read the output of {program}")]
    Output {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ProgramError {
    /// Whether the program complained that a disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                disk_full: true,
                ..
            }
        )
    }
}

impl Classify for ProgramError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Missing { .. } | Self::TimedOut { .. } => ErrorClass::Unavailable,
            Self::Failed { .. } if self.is_disk_full() => ErrorClass::Capacity,
            Self::Start { .. } | Self::Failed { .. } | Self::Output { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "program_missing",
            Self::Start { .. } => "program_start",
            Self::Failed { .. } if self.is_disk_full() => "disk_full",
            Self::Failed { .. } => "program_failed",
            Self::TimedOut { .. } => "program_timeout",
            Self::Output { .. } => "program_output",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Missing { package, .. } => {
                package.map(|package| format!("Install it: apt-get install -y {package}."))
            }
            Self::TimedOut { .. } => Some("Try again when the machine is less busy.".into()),
            Self::Failed { .. } if self.is_disk_full() => Some("Make room on the disk.".into()),
            Self::Start { .. } | Self::Failed { .. } | Self::Output { .. } => None,
        }
    }
}

fn last_words(stderr: &str) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let kept: Vec<String> = lines[lines.len().saturating_sub(STDERR_LINES)..]
        .iter()
        .map(|line| match line.char_indices().nth(STDERR_LINE) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => (*line).to_owned(),
        })
        .collect();
    if kept.is_empty() {
        String::new()
    } else {
        format!(": {}", kept.join("; "))
    }
}
