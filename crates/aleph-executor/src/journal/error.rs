//! What can go wrong with the journal.

use aleph_types::{Classify, ErrorClass};

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk is full. Nothing of what was to be written is there.
    #[error("the disk with the journal is full")]
    Full,
    /// It was written by a newer program.
    #[error("the journal has form {found}, and this program knows {known} at most")]
    Newer {
        /// Its form.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// Anything else that SQLite says.
    #[error("the journal cannot {what}")]
    Sql {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// A row is not of its form.
    #[error("the journal's row of {what} is damaged")]
    Damaged {
        /// Which row.
        what: String,
        /// How.
        source: serde_json::Error,
    },
    /// It could not be made durable.
    #[error("the journal cannot be written: {0}")]
    Refused(String),
    /// Its thread has ended.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    pub(super) fn sql(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sql { what, source },
        }
    }
}

impl Classify for JournalError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Full => ErrorClass::Capacity,
            _ => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Full => "disk_full",
            Self::Newer { .. } => "journal_newer",
            Self::Damaged { .. } => "journal_damaged",
            Self::Sql { .. } | Self::Refused(_) | Self::Closed => "journal",
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Full => "Free some disk (aleph prune) and try again.".into(),
            Self::Newer { .. } => "Run the program that wrote it, or a newer one.".into(),
            Self::Damaged { .. } => "Restore state.db from a backup.".into(),
            Self::Sql { .. } | Self::Refused(_) | Self::Closed => "See the node's log.".into(),
        })
    }
}
