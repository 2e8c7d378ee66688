//! What an error means to whoever gets it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The class of an error at a boundary, from which an HTTP status and the use of a retry follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The request is wrong and stays wrong: mend it (400).
    Invalid,
    /// Who asks may not do this (401, 403).
    Forbidden,
    /// The request is right but not in the present state (409).
    Conflict,
    /// What it names does not exist (404).
    NotFound,
    /// The node has too little of something; less, later or elsewhere may work (429, 503).
    Capacity,
    /// Something the node needs is missing or does not answer (503).
    Unavailable,
    /// The fault is ours (500).
    Internal,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Conflict => "conflict",
            Self::NotFound => "not found",
            Self::Capacity => "capacity",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        })
    }
}

/// An error that can cross a boundary: it knows its class, its code and what helps.
pub trait Classify: std::error::Error {
    /// The class, from which status and retry follow.
    fn class(&self) -> ErrorClass;

    /// A stable, `snake_case` name for programs; it never changes once released.
    fn code(&self) -> &'static str;

    /// What the user can do next, as a sentence; `None` where nothing helps.
    fn advice(&self) -> Option<String>;
}

/// An error as an API's client gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// The class, from which the HTTP status follows.
    pub class: ErrorClass,
    /// A stable, `snake_case` name for programs.
    pub code: String,
    /// What was wrong, with what, and why.
    pub message: String,
    /// What to do next, where something helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Problem {
    /// The problem that an error is, its causes included.
    #[must_use]
    pub fn of(error: &dyn Classify) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self {
            class: error.class(),
            code: error.code().to_owned(),
            message,
            advice: error.advice(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}
