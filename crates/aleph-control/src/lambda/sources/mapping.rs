//! A mapping of an event source, as it is kept, and how it fares.

use super::topic::Topic;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A mapping, as it is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    pub(crate) modified: Timestamp,
    pub(crate) enabled: bool,
    pub(crate) function: String,
    pub(crate) qualifier: Option<String>,
    /// Where messages come from, as the node's configuration calls it.
    pub(crate) servers: Vec<String>,
    pub(crate) topic: Topic,
    pub(crate) start: Start,
    /// The most messages of an event.
    pub(crate) batch: u32,
    /// How many seconds an event waits for more messages.
    pub(crate) window: u32,
    /// How many events are under way at once.
    pub(crate) parallel: u32,
    /// How often a message comes again; `None` without end.
    pub(crate) retries: Option<u32>,
    /// How old a message may become, in seconds.
    pub(crate) age: Option<u32>,
    /// Whether the function says which messages of an event failed.
    pub(crate) partial: bool,
    /// Whether what the function says is the answer to a message that wants one.
    #[serde(default)]
    pub(crate) reply: bool,
}

/// Which message of a stream is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Start {
    /// The oldest there is.
    #[serde(rename = "TRIM_HORIZON")]
    Oldest,
    /// The next that comes.
    #[serde(rename = "LATEST")]
    Next,
    /// The first of this time or after it.
    #[serde(rename = "AT_TIMESTAMP")]
    At(Timestamp),
}

/// What a mapping is on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Creating,
    Enabling,
    Updating,
    Enabled,
    Disabling,
    Disabled,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::Enabling => "Enabling",
            Self::Updating => "Updating",
            Self::Enabled => "Enabled",
            Self::Disabling => "Disabling",
            Self::Disabled => "Disabled",
        }
    }
}

#[derive(Debug)]
struct Fares {
    phase: Phase,
    result: String,
}

/// How a mapping fares, as its clients are told. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Status(Arc<Mutex<Fares>>);

impl Status {
    pub(super) fn new(phase: Phase) -> Self {
        let result = "No records processed".into();
        Self(Arc::new(Mutex::new(Fares { phase, result })))
    }

    fn lock(&self) -> MutexGuard<'_, Fares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, and what came of the last event, in words that clients know.
    pub(super) fn told(&self) -> (&'static str, String) {
        let fares = self.lock();
        (fares.phase.name(), fares.result.clone())
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// It has begun, or begins no better than this.
    pub(super) fn begun(&self) {
        let mut fares = self.lock();
        if matches!(
            fares.phase,
            Phase::Creating | Phase::Enabling | Phase::Updating
        ) {
            fares.phase = Phase::Enabled;
        }
    }

    pub(super) fn result(&self, result: impl Into<String>) {
        self.lock().result = result.into();
    }

    /// Something is wrong; it is tried again.
    pub(super) fn problem(&self, what: &str) {
        self.begun();
        self.result(format!("PROBLEM: {what}"));
    }

    /// What was wrong with the connection no longer is. Nothing is said of whether it has begun.
    pub(super) fn well(&self) {
        let mut fares = self.lock();
        if fares.result.starts_with("PROBLEM") {
            fares.result = "No records processed".into();
        }
    }
}
