//! What a guest says of its cloud-init. The guest is hostile: sizes are bounded, types are strict.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Bytes of a document that a guest may send.
pub const MAX_STATUS: usize = 64 * 1024;
/// Bytes of a log of which warnings are looked for, from its end.
pub const MAX_LOG: usize = 1024 * 1024;
/// Bytes of a reason.
pub const MAX_REASON: usize = 1024;
/// Stages that a boot may have; there are four.
const MAX_STAGES: usize = 16;
/// Warnings of a log that become a reason.
const MAX_WARNINGS: usize = 8;

/// How far a guest's cloud-init is. It prints as `done`, `error: REASON`, `degraded: REASON`,
/// `pending` or `disabled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestStatus {
    /// It has not begun, or is at work.
    Pending,
    /// The guest's image does not want it.
    Disabled,
    /// All was done.
    Done,
    /// All was done, or left out with a warning.
    Degraded {
        /// What was said of it: one line, at most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// Something was not done.
    Error {
        /// What was said of it: one line, at most [`MAX_REASON`] bytes.
        reason: String,
    },
}

/// Words of a guest that are not cloud-init's.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// More bytes than are read.
    #[error("the guest's report has {0} bytes, at most {MAX_STATUS} are read")]
    TooLong(usize),
    /// Not of its form.
    #[error("the guest's report is not cloud-init's")]
    Malformed(#[from] serde_json::Error),
    /// Not of the form of [`GuestStatus::from_report`].
    #[error("the guest's report is none")]
    NoReport,
    /// A word for a state that cloud-init does not have.
    #[error("the guest's report has an unknown status")]
    Unknown,
    /// More stages than a boot has.
    #[error("the guest's report has too many stages")]
    TooManyStages,
}

impl fmt::Display for GuestStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Disabled => f.write_str("disabled"),
            Self::Done => f.write_str("done"),
            Self::Degraded { reason } => write!(f, "degraded: {reason}"),
            Self::Error { reason } => write!(f, "error: {reason}"),
        }
    }
}

/// What `cloud-init status --format json` prints. `extended_status` and `recoverable_errors` are
/// there from 23.4 on.
#[derive(Deserialize)]
struct Printed {
    status: String,
    extended_status: Option<String>,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    recoverable_errors: BTreeMap<String, Vec<String>>,
}

/// `/run/cloud-init/status.json` and `result.json`.
#[derive(Deserialize)]
struct File<T> {
    v1: T,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    recoverable_errors: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Stage {
    start: Option<f64>,
    finished: Option<f64>,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    recoverable_errors: BTreeMap<String, Vec<String>>,
}

impl GuestStatus {
    /// From what `cloud-init status --format json` printed, of any version from 22.4 on.
    ///
    /// # Errors
    /// [`StatusError`] where cloud-init prints no such thing.
    pub fn from_command(text: &[u8]) -> Result<Self, StatusError> {
        let printed: Printed = parse(text)?;
        let mut said = printed.errors;
        let status = match printed.status.as_str() {
            "not run" | "not started" | "running" => return Ok(Self::Pending),
            "disabled" => return Ok(Self::Disabled),
            "error" => {
                said.extend(flat(printed.recoverable_errors));
                if said.is_empty() {
                    said.push(printed.detail);
                }
                return Ok(Self::error(&said));
            }
            "done" => printed.extended_status.unwrap_or_default(),
            _ => return Err(StatusError::Unknown),
        };
        if !said.is_empty() {
            return Ok(Self::error(&said));
        }
        let warned = flat(printed.recoverable_errors);
        if warned.is_empty() && !status.starts_with("degraded") {
            Ok(Self::Done)
        } else {
            Ok(Self::degraded(&warned))
        }
    }

    /// From `status.json` and, once it is there, `result.json` of `/run/cloud-init`.
    ///
    /// # Errors
    /// [`StatusError`] where cloud-init writes no such thing.
    pub fn from_files(status: &[u8], result: Option<&[u8]>) -> Result<Self, StatusError> {
        let File { v1 } = parse::<File<BTreeMap<String, Value>>>(status)?;
        let (mut errors, mut warnings, mut at_work) = (Vec::new(), Vec::new(), false);
        if v1.len() > MAX_STAGES {
            return Err(StatusError::TooManyStages);
        }
        for (name, value) in v1 {
            match name.as_str() {
                "datasource" => {
                    Option::<String>::deserialize(value)?;
                }
                "stage" => at_work |= Option::<String>::deserialize(value)?.is_some(),
                _ => {
                    let stage = Stage::deserialize(value)?;
                    at_work |= stage.start.is_some() && stage.finished.is_none();
                    errors.extend(stage.errors);
                    warnings.extend(flat(stage.recoverable_errors));
                }
            }
        }
        let Some(result) = result else {
            return Ok(Self::Pending);
        };
        let File { v1: outcome } = parse::<File<Outcome>>(result)?;
        // The result repeats what stages said.
        if errors.is_empty() {
            errors = outcome.errors;
        }
        if warnings.is_empty() {
            warnings = flat(outcome.recoverable_errors);
        }
        Ok(match (errors.is_empty(), warnings.is_empty()) {
            (false, _) => Self::error(&errors),
            (true, _) if at_work => Self::Pending,
            (true, false) => Self::degraded(&warnings),
            (true, true) => Self::Done,
        })
    }

    /// The same with what `/var/log/cloud-init.log` warns of. Before 23.4 a part of the user-data
    /// that cannot be read is in no other place: cloud-init calls that `done`.
    #[must_use]
    pub fn with_log(self, log: &[u8]) -> Self {
        if self != Self::Done {
            return self;
        }
        let warned = warnings(log);
        if warned.is_empty() {
            self
        } else {
            Self::degraded(&warned)
        }
    }

    fn error(said: &[String]) -> Self {
        Self::Error {
            reason: reason(said, "cloud-init failed and did not say why"),
        }
    }

    fn degraded(said: &[String]) -> Self {
        Self::Degraded {
            reason: reason(said, "cloud-init warned and did not say of what"),
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, StatusError> {
    if text.len() > MAX_STATUS {
        return Err(StatusError::TooLong(text.len()));
    }
    Ok(serde_json::from_slice(text)?)
}

fn flat(by_level: BTreeMap<String, Vec<String>>) -> Vec<String> {
    by_level.into_values().flatten().collect()
}

/// Lines such as `2026-01-01 00:00:00,000 - util.py[WARNING]: text`.
fn warnings(log: &[u8]) -> Vec<String> {
    let end = &log[log.len().saturating_sub(MAX_LOG)..];
    String::from_utf8_lossy(end)
        .lines()
        .filter_map(|line| {
            ["[WARNING]: ", "[ERROR]: ", "[CRITICAL]: "]
                .iter()
                .find_map(|level| line.split_once(level))
                .map(|(_, text)| text.to_owned())
        })
        .take(MAX_WARNINGS)
        .collect()
}

/// One line without control characters, each thing said once.
fn reason(said: &[String], otherwise: &str) -> String {
    let mut line = String::new();
    let mut before: Vec<&str> = Vec::new();
    for text in said.iter().map(|text| text.trim()) {
        if text.is_empty() || before.contains(&text) || line.len() > MAX_REASON {
            continue;
        }
        before.push(text);
        if !line.is_empty() {
            line.push_str("; ");
        }
        line.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    if line.is_empty() {
        line.push_str(otherwise);
    }
    let mut end = MAX_REASON.min(line.len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line
}
