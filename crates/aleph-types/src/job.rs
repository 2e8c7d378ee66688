//! What a user asked to run.

use crate::{Classify, ErrorClass, MiB, Resources};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A job as its user described it.
///
/// Unknown fields are refused, so that a misspelt one is never silently ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The image to run, by name or by digest.
    pub image: String,
    /// The command with its arguments.
    pub command: Vec<String>,
    /// Environment variables, over those of the image.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory in the guest; `/` when absent.
    #[serde(default)]
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid` in the guest; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// The guest's hostname; `job-` and the short job id when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// CPUs, memory and disk.
    #[serde(default)]
    pub resources: Resources,
    /// Whether the command gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether the command's standard input is connected.
    #[serde(default)]
    pub stdin: bool,
}

/// A job specification that no node could run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJob {
    /// There is nothing to run.
    #[error("the job has no command")]
    NoCommand,
    /// A VM without a processor.
    #[error("the job asks for {0} CPUs")]
    NoCpus(u16),
    /// Too little memory for any guest.
    #[error("the job asks for {asked} of memory, a guest needs at least {least}")]
    LittleMemory {
        /// What was asked for.
        asked: MiB,
        /// What is needed.
        least: MiB,
    },
    /// A field that the guest's kernel could not take.
    #[error("{field} {value:?} has a NUL byte or is not of its form")]
    BadText {
        /// The field's path.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

impl Classify for InvalidJob {
    fn class(&self) -> ErrorClass {
        ErrorClass::Invalid
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoCommand => "no_command",
            Self::NoCpus(_) => "no_cpus",
            Self::LittleMemory { .. } => "little_memory",
            Self::BadText { .. } => "bad_text",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NoCommand => "Name a command after the image: aleph run IMAGE -- COMMAND.".into(),
            Self::NoCpus(_) => "Ask for 1 or more with --cpus.".into(),
            Self::LittleMemory { least, .. } => format!("Ask for {}m or more with -m.", least.0),
            Self::BadText { field, .. } => format!("Mend {field}."),
        })
    }
}

impl JobSpec {
    /// A job that runs `command` from `image`, all else at its default.
    #[must_use]
    pub fn new(image: impl Into<String>, command: Vec<String>) -> Self {
        Self {
            image: image.into(),
            command,
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            hostname: None,
            resources: Resources::default(),
            tty: false,
            stdin: false,
        }
    }

    /// Checks all that can be known without a node.
    ///
    /// # Errors
    /// The first field that no node could accept.
    pub fn validate(&self) -> Result<(), InvalidJob> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(InvalidJob::NoCommand);
        }
        if self.resources.cpus == 0 {
            return Err(InvalidJob::NoCpus(0));
        }
        if self.resources.memory < Resources::MIN_MEMORY {
            return Err(InvalidJob::LittleMemory {
                asked: self.resources.memory,
                least: Resources::MIN_MEMORY,
            });
        }
        let bad = |field, value: &str| {
            Err(InvalidJob::BadText {
                field,
                value: value.to_owned(),
            })
        };
        if let Some(argument) = self.command.iter().find(|a| a.contains('\0')) {
            return bad("command", argument);
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return bad("env", name);
            }
        }
        if let Some(dir) = self
            .workdir
            .as_deref()
            .filter(|d| !d.starts_with('/') || d.contains('\0'))
        {
            return bad("workdir", dir);
        }
        if let Some(user) = self
            .user
            .as_deref()
            .filter(|u| u.is_empty() || u.contains('\0'))
        {
            return bad("user", user);
        }
        // Linux takes at most 64 bytes (sethostname(2)).
        let name_is_bad =
            |h: &&str| h.is_empty() || h.len() > 64 || h.contains(['\0', '/', ' ', '\n']);
        if let Some(hostname) = self.hostname.as_deref().filter(name_is_bad) {
            return bad("hostname", hostname);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobSpec {
        JobSpec::new("busybox", vec!["true".into()])
    }

    #[test]
    fn the_smallest_job_is_valid() {
        assert_eq!(job().validate(), Ok(()));
    }

    #[test]
    fn each_wrong_field_is_refused_with_its_own_code() {
        type Spoil = fn(&mut JobSpec);
        let cases: [(&str, Spoil); 9] = [
            ("no_command", |j| j.command.clear()),
            ("no_command", |j| j.command[0].clear()),
            ("no_cpus", |j| j.resources.cpus = 0),
            ("little_memory", |j| j.resources.memory = MiB(63)),
            ("bad_text", |j| j.command.push("a\0b".into())),
            ("bad_text", |j| {
                j.env = BTreeMap::from([("A=B".into(), String::new())]);
            }),
            ("bad_text", |j| j.workdir = Some("tmp".into())),
            ("bad_text", |j| j.hostname = Some("a b".into())),
            ("bad_text", |j| j.user = Some(String::new())),
        ];
        for (code, spoil) in cases {
            let mut job = job();
            spoil(&mut job);
            let error = job.validate().unwrap_err();
            assert_eq!((error.code(), error.class()), (code, ErrorClass::Invalid));
            assert!(error.advice().is_some());
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let json = r#"{"image":"busybox","command":["true"],"comand":["x"]}"#;
        assert!(serde_json::from_str::<JobSpec>(json).is_err());
    }
}
