//! The tables, and how an older journal becomes this form.

use super::JournalError;
use rusqlite::Connection;

/// The forms, each the step from the one before. `PRAGMA user_version` counts those taken.
const STEPS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, account TEXT NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL,
        UNIQUE (account, name)
    );
    CREATE TABLE vms (
        vm TEXT PRIMARY KEY, job TEXT NOT NULL, incarnation INTEGER NOT NULL
    );
    CREATE TABLE idempotency (
        account TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL, job TEXT NOT NULL,
        time INTEGER NOT NULL, PRIMARY KEY (account, key)
    );
    CREATE INDEX idempotency_job ON idempotency (job);
    CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, account TEXT NOT NULL, label TEXT NOT NULL, hash BLOB NOT NULL,
        created INTEGER NOT NULL, expires INTEGER
    );
",
    "
    ALTER TABLE vms ADD COLUMN network TEXT;
",
    "
    CREATE TABLE functions (
        account TEXT NOT NULL, function TEXT NOT NULL, part TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (account, function, part)
    );
    CREATE TABLE function_events (
        request TEXT PRIMARY KEY, account TEXT NOT NULL, function TEXT NOT NULL,
        due INTEGER NOT NULL, record TEXT NOT NULL, payload BLOB NOT NULL
    );
    CREATE INDEX function_events_function ON function_events (account, function);
",
    "
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY, job TEXT NOT NULL, whole INTEGER NOT NULL, temporary INTEGER NOT NULL
    );
",
    "
    CREATE TABLE schedules (
        account TEXT NOT NULL, name TEXT NOT NULL, settled INTEGER NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (account, name)
    );
    CREATE TABLE event_sources (
        id TEXT PRIMARY KEY, account TEXT NOT NULL, record TEXT NOT NULL
    );
",
];

/// Sets the connection up and brings the journal to the newest form.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), JournalError> {
    let sql = JournalError::sql;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
        .and_then(|()| connection.pragma_update(None, "journal_size_limit", 4 * 1024 * 1024))
        .map_err(sql("be opened"))?;
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql("be read"))?;
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(JournalError::Newer { found, known });
    }
    let transaction = connection.transaction().map_err(sql("be changed"))?;
    for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction
            .execute_batch(step)
            .map_err(sql("take a new form"))?;
    }
    transaction
        .pragma_update(None, "user_version", known)
        .and_then(|()| transaction.commit())
        .map_err(sql("take a new form"))
}
