//! Tokens, as hashes.

use super::{Journal, JournalError};
use aleph_types::Timestamp;
use rusqlite::Transaction;

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
    /// When it was made; whole seconds are kept.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

impl Journal {
    /// All tokens that were not revoked.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read tokens");
            let mut statement = t
                .prepare("SELECT id, account, label, hash, created, expires FROM tokens ORDER BY created, id")
                .map_err(sql())?;
            let time =
                |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
            let rows = statement
                .query_map([], |row| {
                    Ok(TokenRecord {
                        id: row.get(0)?,
                        account: row.get(1)?,
                        label: row.get(2)?,
                        hash: row.get(3)?,
                        created_at: time(row.get(4)?),
                        expires_at: row.get::<_, Option<i64>>(5)?.map(time),
                    })
                })
                .map_err(sql())?;
            rows.collect::<Result<_, _>>().map_err(sql())
        };
        self.writer.run("token.read", work).await
    }

    /// Keeps a token.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub async fn add_token(&self, token: TokenRecord) -> Result<(), JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "INSERT INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                (
                    token.id,
                    token.account,
                    token.label,
                    token.hash,
                    token.created_at.as_second(),
                    token.expires_at.map(Timestamp::as_second),
                ),
            )
            .map_err(JournalError::sql("keep a token"))
            .map(drop)
        };
        self.writer.run("token.add", work).await
    }

    /// Revokes a token; tells whether there was one.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, JournalError> {
        let id = id.to_owned();
        let work = move |t: &Transaction<'_>| {
            t.execute("DELETE FROM tokens WHERE id = ?1", [id])
                .map_err(JournalError::sql("revoke a token"))
                .map(|rows| rows > 0)
        };
        self.writer.run("token.revoke", work).await
    }
}
