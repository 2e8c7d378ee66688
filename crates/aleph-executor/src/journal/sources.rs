//! What brings events to functions by itself: schedules, and mappings of event sources.
//!
//! What a record says is not looked at here. What a schedule has fired is a column of its own, so
//! that an event and the mark that it was made are one write: neither is ever there alone.

use super::functions::{Waiting, function_is_there, insert_once};
use super::{Journal, JournalError};
use rusqlite::Transaction;

/// A schedule of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRow {
    /// Whose schedule it is.
    pub account: String,
    /// Its name.
    pub name: String,
    /// Up to when all that was due is accounted for: milliseconds since 1970.
    pub settled: i64,
    /// What else is known of it.
    pub record: String,
}

/// What came due of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    /// Whose schedule it is.
    pub account: String,
    /// Its name.
    pub name: String,
    /// Up to when all that was due is accounted for with this.
    pub settled: i64,
    /// Whether the schedule goes with it.
    pub last: bool,
    /// The event, unless it is left out.
    pub event: Option<Waiting>,
}

/// What became of what came due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fired {
    /// It is accounted for, and its event waits where it has one.
    Kept,
    /// It is accounted for, and nothing waits: there is no such function.
    NoFunction,
    /// There is no such schedule.
    NoSchedule,
}

/// A mapping of an event source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRow {
    /// Its UUID.
    pub id: String,
    /// Whose it is.
    pub account: String,
    /// What is known of it.
    pub record: String,
}

fn fire(t: &Transaction<'_>, firing: &Firing) -> Result<Fired, JournalError> {
    let sql = || JournalError::sql("keep what a schedule fired");
    let key = (&firing.account, &firing.name);
    let there = match firing.last {
        true => t
            .prepare_cached("DELETE FROM schedules WHERE account = ?1 AND name = ?2")
            .and_then(|mut s| s.execute(key)),
        // Never back: what was accounted for stays so.
        false => t
            .prepare_cached(
                "UPDATE schedules SET settled = max(settled, ?3) WHERE account = ?1 AND name = ?2",
            )
            .and_then(|mut s| s.execute((key.0, key.1, firing.settled))),
    };
    if there.map_err(sql())? == 0 {
        return Ok(Fired::NoSchedule);
    }
    let Some(event) = &firing.event else {
        return Ok(Fired::Kept);
    };
    if !function_is_there(t, &event.row.account, &event.row.function)? {
        return Ok(Fired::NoFunction);
    }
    insert_once(t, event)?;
    Ok(Fired::Kept)
}

impl Journal {
    /// All schedules of all accounts.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn schedules(&self) -> Result<Vec<ScheduleRow>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read schedules");
            let mut statement = t
                .prepare("SELECT account, name, settled, record FROM schedules")
                .map_err(sql())?;
            let rows = statement
                .query_map([], |row| {
                    Ok(ScheduleRow {
                        account: row.get(0)?,
                        name: row.get(1)?,
                        settled: row.get(2)?,
                        record: row.get(3)?,
                    })
                })
                .map_err(sql())?;
            rows.collect::<Result<_, _>>().map_err(sql())
        };
        self.writer.run("schedule.read", work).await
    }

    /// Keeps a schedule, in the place of one that has its name.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub async fn keep_schedule(&self, row: ScheduleRow) -> Result<(), JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "INSERT INTO schedules VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (account, name)
                 DO UPDATE SET settled = excluded.settled, record = excluded.record",
                (&row.account, &row.name, row.settled, &row.record),
            )
            .map_err(JournalError::sql("keep a schedule"))
            .map(drop)
        };
        self.writer.run("schedule.keep", work).await
    }

    /// Removes a schedule. What it fired stays.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub async fn remove_schedule(&self, account: &str, name: &str) -> Result<(), JournalError> {
        let key = (account.to_owned(), name.to_owned());
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "DELETE FROM schedules WHERE account = ?1 AND name = ?2",
                (&key.0, &key.1),
            )
            .map_err(JournalError::sql("remove a schedule"))
            .map(drop)
        };
        self.writer.run("schedule.remove", work).await
    }

    /// Keeps what came due, all or nothing. An event that waits already, by its request id, is not
    /// added once more.
    ///
    /// # Errors
    /// Where it cannot be kept. Then all of it is still to come.
    pub async fn fire_schedules(&self, due: Vec<Firing>) -> Result<Vec<Fired>, JournalError> {
        let work = move |t: &Transaction<'_>| due.iter().map(|firing| fire(t, firing)).collect();
        self.writer.run("schedule.fire", work).await
    }

    /// All mappings of event sources.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn event_sources(&self) -> Result<Vec<SourceRow>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read event sources");
            let mut statement = t
                .prepare("SELECT id, account, record FROM event_sources")
                .map_err(sql())?;
            let rows = statement
                .query_map([], |row| {
                    Ok(SourceRow {
                        id: row.get(0)?,
                        account: row.get(1)?,
                        record: row.get(2)?,
                    })
                })
                .map_err(sql())?;
            rows.collect::<Result<_, _>>().map_err(sql())
        };
        self.writer.run("source.read", work).await
    }

    /// Keeps a mapping, in the place of what it was.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub async fn keep_event_source(&self, row: SourceRow) -> Result<(), JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "INSERT INTO event_sources VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                (&row.id, &row.account, &row.record),
            )
            .map_err(JournalError::sql("keep an event source"))
            .map(drop)
        };
        self.writer.run("source.keep", work).await
    }

    /// Removes a mapping.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub async fn remove_event_source(&self, id: &str) -> Result<(), JournalError> {
        let id = id.to_owned();
        let work = move |t: &Transaction<'_>| {
            t.execute("DELETE FROM event_sources WHERE id = ?1", [id])
                .map_err(JournalError::sql("remove an event source"))
                .map(drop)
        };
        self.writer.run("source.remove", work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::EventRow;

    fn firing(request: &str, settled: i64) -> Firing {
        Firing {
            account: "a".into(),
            name: "s".into(),
            settled,
            last: false,
            event: Some(Waiting {
                row: EventRow {
                    request: request.into(),
                    account: "a".into(),
                    function: "f".into(),
                    due: settled,
                    record: "{}".into(),
                },
                payload: b"1".to_vec(),
            }),
        }
    }

    #[tokio::test]
    async fn an_event_and_its_mark_are_one_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let journal = Journal::open(&path).unwrap();
        let row = ScheduleRow {
            account: "a".into(),
            name: "s".into(),
            settled: 1,
            record: "{}".into(),
        };
        let fire = async |journal: &Journal, firing| {
            let fired = journal.fire_schedules(vec![firing]).await.unwrap();
            fired[0]
        };
        assert_eq!(fire(&journal, firing("r1", 5)).await, Fired::NoSchedule);
        journal.keep_schedule(row.clone()).await.unwrap();
        assert_eq!(fire(&journal, firing("r1", 5)).await, Fired::NoFunction);
        let head = vec![(String::new(), "1".into())];
        journal
            .keep_function("a", "f", head, Vec::new())
            .await
            .unwrap();
        assert_eq!(fire(&journal, firing("r1", 7)).await, Fired::Kept);
        // The same once more, and one that says less than what is known.
        assert_eq!(fire(&journal, firing("r1", 6)).await, Fired::Kept);
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.schedules().await.unwrap()[0].settled, 7);
        let due = journal.function_events_due().await.unwrap();
        assert_eq!(due, [(7, "r1".to_owned(), "a".to_owned())]);
        let last = Firing {
            last: true,
            ..firing("r2", 9)
        };
        assert_eq!(fire(&journal, last).await, Fired::Kept);
        assert_eq!(journal.schedules().await.unwrap(), []);
        assert_eq!(journal.function_events_due().await.unwrap().len(), 2);
        journal.keep_schedule(row).await.unwrap();
        journal.remove_schedule("a", "s").await.unwrap();
        assert_eq!(journal.schedules().await.unwrap(), []);
    }

    #[tokio::test]
    async fn sources_are_kept_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("state.db")).unwrap();
        let row = |record: &str| SourceRow {
            id: "u".into(),
            account: "a".into(),
            record: record.into(),
        };
        journal.keep_event_source(row("1")).await.unwrap();
        journal.keep_event_source(row("2")).await.unwrap();
        assert_eq!(journal.event_sources().await.unwrap(), [row("2")]);
        journal.remove_event_source("u").await.unwrap();
        assert_eq!(journal.event_sources().await.unwrap(), []);
    }
}
