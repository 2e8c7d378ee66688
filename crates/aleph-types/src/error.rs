//! What an error means to whoever gets it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The class of an error at a boundary, from which an HTTP status and the use of a retry follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The request is wrong and stays wrong: mend it (400).
    Invalid,
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
