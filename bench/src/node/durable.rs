//! What a write that survives the loss of power costs here: the limit of a create.

use anyhow::Result;
use rusqlite::Connection;
use std::path::Path;
use std::time::{Duration, Instant};

/// A database that is kept as the node's journal is.
pub(super) struct Durable {
    connection: Connection,
    row: String,
}

impl Durable {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, body TEXT)")?;
        Ok(Self {
            connection,
            row: "x".repeat(1000),
        })
    }

    /// One transaction of one row of 1 KB.
    pub(super) fn write(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.connection
            .prepare_cached("INSERT INTO rows (body) VALUES (?1)")?
            .execute([&self.row])?;
        Ok(began.elapsed())
    }
}
