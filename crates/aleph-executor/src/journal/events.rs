//! What happened.

use super::{Journal, JournalError};
use aleph_types::Event;
use rusqlite::Transaction;

/// Appends an event and gives it its number.
pub(super) fn append(t: &Transaction<'_>, event: &mut Event) -> Result<(), JournalError> {
    let sql = || JournalError::sql("keep an event");
    t.execute("INSERT INTO events (body) VALUES ('')", [])
        .map_err(sql())?;
    let number = t.last_insert_rowid();
    event.id = u64::try_from(number).unwrap_or(0);
    let body = serde_json::to_string(event).map_err(|source| JournalError::Damaged {
        what: format!("event {number}"),
        source,
    })?;
    t.execute("UPDATE events SET body = ?2 WHERE id = ?1", (number, body))
        .map_err(sql())
        .map(drop)
}

impl Journal {
    /// Keeps an event that belongs to no change of a job, and gives it its number.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub async fn add_event(&self, mut event: Event) -> Result<Event, JournalError> {
        let work = move |t: &Transaction<'_>| append(t, &mut event).map(|()| event);
        self.writer.run("event.add", work).await
    }

    /// The events after this one, at most `limit`.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn events(&self, after: u64, limit: usize) -> Result<Vec<Event>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read events");
            let mut statement = t
                .prepare_cached("SELECT body FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")
                .map_err(sql())?;
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement
                .query_map((after, limit), |row| row.get::<_, String>(0))
                .map_err(sql())?;
            let mut events = Vec::new();
            for row in rows {
                let body = row.map_err(sql())?;
                events.push(serde_json::from_str(&body).map_err(|source| {
                    JournalError::Damaged {
                        what: "an event".into(),
                        source,
                    }
                })?);
            }
            Ok(events)
        };
        self.writer.run("event.read", work).await
    }

    /// The number of the newest event; 0 where there has been none.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn newest_event(&self) -> Result<u64, JournalError> {
        let work = |t: &Transaction<'_>| {
            let newest: i64 = t
                .query_row("SELECT coalesce(max(id), 0) FROM events", [], |r| r.get(0))
                .map_err(JournalError::sql("read events"))?;
            Ok(u64::try_from(newest).unwrap_or(0))
        };
        self.writer.run("event.newest", work).await
    }

    /// Forgets all but the newest `kept` events, and requests that are older than a day: a
    /// client that repeats one after that has long given up.
    ///
    /// # Errors
    /// Where they cannot be removed.
    pub async fn forget_old(&self, kept: u64, now: i64) -> Result<(), JournalError> {
        let work = move |t: &Transaction<'_>| {
            let kept = i64::try_from(kept).unwrap_or(i64::MAX);
            t.execute(
                "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?1",
                [kept],
            )
            .map_err(JournalError::sql("forget events"))?;
            t.execute("DELETE FROM idempotency WHERE time < ?1", [now - 86_400])
                .map_err(JournalError::sql("forget requests"))
                .map(drop)
        };
        self.writer.run("journal.forget", work).await
    }
}
