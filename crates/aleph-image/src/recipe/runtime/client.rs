//! Fetching a runtime's client with the host's pip or npm.

use crate::program::ProgramError;
use aleph_types::{Classify, ErrorClass};

/// The client of a language's runtime could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot get {client} with {program}")]
pub struct ClientError {
    /// The client and its version.
    pub client: String,
    /// What should have fetched it.
    pub program: &'static str,
    /// Why it has not.
    pub source: ProgramError,
}

impl ClientError {
    /// Whether the program ran and did not get it: offline, or an index without it.
    fn is_refused(&self) -> bool {
        matches!(self.source, ProgramError::Failed { .. }) && !self.source.is_disk_full()
    }
}

impl Classify for ClientError {
    fn class(&self) -> ErrorClass {
        if self.is_refused() {
            ErrorClass::Unavailable
        } else {
            self.source.class()
        }
    }

    fn code(&self) -> &'static str {
        if self.is_refused() {
            "runtime_client"
        } else {
            self.source.code()
        }
    }

    fn advice(&self) -> Option<String> {
        match self.source {
            ProgramError::Failed { .. } if self.is_refused() => Some(format!(
                "See that this host's {} reaches an index of packages that has it; its settings \
                 are used as they are.",
                self.program
            )),
            _ => self.source.advice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;
    use std::time::Duration;

    #[test]
    fn no_network_is_no_fault_of_ours() {
        let failed = |program: &str, script: &str| ClientError {
            client: "client 1.0".into(),
            program: "pip3",
            source: Program::find(program, "dash", Duration::from_secs(20))
                .and_then(|program| program.args(["-c", script]).run(|| {}))
                .unwrap_err(),
        };
        let offline = failed("sh", "echo no route >&2; exit 1");
        assert_eq!(
            (offline.class(), offline.code()),
            (ErrorClass::Unavailable, "runtime_client")
        );
        assert!(offline.advice().unwrap().contains("pip3"));
        let full = failed("sh", "echo No space left on device >&2; exit 1");
        assert_eq!(full.code(), "disk_full");
        assert_eq!(failed("no-such-tool", "").code(), "program_missing");
    }
}
