//! Where Firecracker's own log goes: `/logger`.

use super::fault::Problem;
use super::{Body, Check};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The log. It can be set again and again before boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// A pipe with a name, or a file; before 1.14 it has to be there. Standard output where nothing
    /// is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// What is logged; [`LogLevel::Info`] where nothing is said, whatever was set before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether a line has its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether a line has its place in Firecracker's source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// The one module that is logged, such as `api_server::request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// How grave a line has to be to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Nothing is.
    Off,
    /// What failed.
    Error,
    /// What may fail. Firecracker says it as `Warn`, and takes both.
    #[serde(alias = "Warn")]
    Warning,
    /// What happens.
    Info,
    /// More of it.
    Debug,
    /// All.
    Trace,
}

impl Body for Logger {
    fn check(&self, check: &mut Check) {
        if let Some(path) = &self.log_path {
            check.path("log_path", path);
        }
        if self.module.as_ref().is_some_and(String::is_empty) {
            check.fault("module", Problem::Empty);
        }
    }
}
