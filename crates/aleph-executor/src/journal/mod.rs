//! The node's journal.

use aleph_types::{Classify, ErrorClass, Timestamp};

/// The journal. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Journal {
    _p: (),
}

/// The record of jobs could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk is full.
    #[error("the disk with the journal is full")]
    Full,
    /// Anything else.
    #[error("the journal cannot {what}")]
    Sql {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
}

impl Classify for JournalError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Full => ErrorClass::Capacity,
            Self::Sql { .. } => ErrorClass::Unavailable,
        }
    }
    fn code(&self) -> &'static str {
        match self {
            Self::Full => "disk_full",
            Self::Sql { .. } => "journal",
        }
    }
    fn advice(&self) -> Option<String> {
        Some("Free some disk and try again.".into())
    }
}

/// A token as it is kept: never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its public id.
    pub id: String,
    /// The account that it speaks for.
    pub account: String,
    /// What it is for, in its maker's words.
    pub label: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

#[allow(unused_variables, clippy::missing_errors_doc, clippy::unused_async)]
impl Journal {
    /// All tokens that were not revoked.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, JournalError> {
        Err(JournalError::Full)
    }
    /// Keeps a token.
    pub async fn add_token(&self, token: TokenRecord) -> Result<(), JournalError> {
        Err(JournalError::Full)
    }
    /// Revokes a token; tells whether there was one.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, JournalError> {
        Err(JournalError::Full)
    }
}
