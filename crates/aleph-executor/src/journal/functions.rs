//! Functions and the events that wait for them, as whoever keeps them writes them down.
//!
//! A function is a few rows, its parts, that change together. What a part says is not looked at
//! here. An event is a row with its payload beside it, so that a queue can be read without what
//! is in it.

use super::{Journal, JournalError};
use rusqlite::{OptionalExtension, Transaction};

/// A part of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRow {
    /// Whose function it is.
    pub account: String,
    /// Its name.
    pub function: String,
    /// Which part of it.
    pub part: String,
    /// What the part says.
    pub record: String,
}

/// An event that waits, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// The id of its request, the same on each try.
    pub request: String,
    /// Whose function it is for.
    pub account: String,
    /// The function.
    pub function: String,
    /// When it is due: milliseconds since 1970.
    pub due: i64,
    /// What else is known of it.
    pub record: String,
}

/// An event that waits, with its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The event.
    pub row: EventRow,
    /// What the function gets.
    pub payload: Vec<u8>,
}

/// Events that wait for a function and have a number in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingFor {
    /// Whose function it is.
    pub account: String,
    /// The function.
    pub function: String,
    /// How many events.
    pub events: u64,
    /// The number.
    pub number: i64,
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        request: row.get(0)?,
        account: row.get(1)?,
        function: row.get(2)?,
        due: row.get(3)?,
        record: row.get(4)?,
    })
}

/// Adds an event, unless its function is gone: then it would stay for ever.
fn insert(t: &Transaction<'_>, waiting: &Waiting) -> Result<bool, JournalError> {
    add(
        t,
        waiting,
        "INSERT INTO function_events SELECT ?1, ?2, ?3, ?4, ?5, ?6
         WHERE EXISTS (SELECT 1 FROM functions WHERE account = ?2 AND function = ?3)",
    )
}

/// Adds an event, unless one with its request id waits already.
pub(super) fn insert_once(t: &Transaction<'_>, waiting: &Waiting) -> Result<(), JournalError> {
    let sql = "INSERT OR IGNORE INTO function_events VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    add(t, waiting, sql).map(drop)
}

fn add(t: &Transaction<'_>, waiting: &Waiting, sql: &str) -> Result<bool, JournalError> {
    let Waiting { row, payload } = waiting;
    t.prepare_cached(sql)
        .and_then(|mut s| {
            s.execute((
                &row.request,
                &row.account,
                &row.function,
                row.due,
                &row.record,
                payload,
            ))
        })
        .map_err(JournalError::sql("keep an event for a function"))
        .map(|added| added > 0)
}

/// Whether there is such a function.
pub(super) fn function_is_there(
    t: &Transaction<'_>,
    account: &str,
    function: &str,
) -> Result<bool, JournalError> {
    t.prepare_cached("SELECT 1 FROM functions WHERE account = ?1 AND function = ?2")
        .and_then(|mut s| s.exists((account, function)))
        .map_err(JournalError::sql("look for a function"))
}

impl Journal {
    /// All parts of all functions.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn functions(&self) -> Result<Vec<FunctionRow>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read functions");
            let mut statement = t
                .prepare("SELECT account, function, part, record FROM functions")
                .map_err(sql())?;
            let rows = statement
                .query_map([], |row| {
                    Ok(FunctionRow {
                        account: row.get(0)?,
                        function: row.get(1)?,
                        part: row.get(2)?,
                        record: row.get(3)?,
                    })
                })
                .map_err(sql())?;
            rows.collect::<Result<_, _>>().map_err(sql())
        };
        self.writer.run("function.read", work).await
    }

    /// Keeps parts of a function and removes others, all or nothing.
    ///
    /// # Errors
    /// Where they cannot be kept.
    pub async fn keep_function(
        &self,
        account: &str,
        function: &str,
        kept: Vec<(String, String)>,
        removed: Vec<String>,
    ) -> Result<(), JournalError> {
        let (account, function) = (account.to_owned(), function.to_owned());
        let work = move |t: &Transaction<'_>| {
            let sql = || JournalError::sql("keep a function");
            for (part, record) in kept {
                t.prepare_cached(
                    "INSERT INTO functions VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (account, function, part) DO UPDATE SET record = excluded.record",
                )
                .and_then(|mut s| s.execute((&account, &function, part, record)))
                .map_err(sql())?;
            }
            for part in removed {
                t.execute(
                    "DELETE FROM functions WHERE account = ?1 AND function = ?2 AND part = ?3",
                    (&account, &function, part),
                )
                .map_err(sql())?;
            }
            Ok(())
        };
        self.writer.run("function.keep", work).await
    }

    /// Removes a function with all that waits for it.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub async fn remove_function(&self, account: &str, function: &str) -> Result<(), JournalError> {
        let names = (account.to_owned(), function.to_owned());
        let work = move |t: &Transaction<'_>| {
            for table in ["functions", "function_events"] {
                t.execute(
                    &format!("DELETE FROM {table} WHERE account = ?1 AND function = ?2"),
                    (&names.0, &names.1),
                )
                .map_err(JournalError::sql("remove a function"))?;
            }
            Ok(())
        };
        self.writer.run("function.remove", work).await
    }

    /// Keeps an event until it is done with; `false` where its function is gone.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub async fn add_function_event(&self, waiting: Waiting) -> Result<bool, JournalError> {
        let work = move |t: &Transaction<'_>| insert(t, &waiting);
        self.writer.run("function.event.add", work).await
    }

    /// Keeps events for one function, all of them or none. One whose id waits already is the same
    /// event, sent again: it is left as it is. Gives which of them are new; `None` where their
    /// function is gone.
    ///
    /// # Errors
    /// Where they cannot be kept. Then none is.
    pub async fn add_function_events(
        &self,
        all: Vec<Waiting>,
    ) -> Result<Option<Vec<bool>>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            let mut added = Vec::with_capacity(all.len());
            for waiting in &all {
                let known = t
                    .prepare_cached("SELECT 1 FROM function_events WHERE request = ?1")
                    .and_then(|mut s| s.exists([&waiting.row.request]))
                    .map_err(JournalError::sql("look for an event for a function"))?;
                if !known && !insert(t, waiting)? {
                    return Ok(None);
                }
                added.push(!known);
            }
            Ok(Some(added))
        };
        self.writer.run("function.event.add", work).await
    }

    /// How many events wait for each function, by a number that their records have at `path`, a
    /// JSON path; by when they are due where they have none.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn function_events_by(
        &self,
        path: &'static str,
    ) -> Result<Vec<WaitingFor>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            let sql = || JournalError::sql("count events for functions");
            let mut statement = t
                .prepare(
                    "SELECT account, function, count(*), CASE
                       WHEN json_valid(record) AND json_type(record, ?1) = 'integer'
                       THEN json_extract(record, ?1) ELSE due END AS number
                     FROM function_events GROUP BY account, function, number",
                )
                .map_err(sql())?;
            let rows = statement
                .query_map([path], |row| {
                    Ok(WaitingFor {
                        account: row.get(0)?,
                        function: row.get(1)?,
                        events: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
                        number: row.get(3)?,
                    })
                })
                .map_err(sql())?;
            rows.collect::<Result<_, _>>().map_err(sql())
        };
        self.writer.run("function.event.count", work).await
    }

    /// Removes events whose function is gone, and says how many there were.
    ///
    /// # Errors
    /// Where they cannot be removed.
    pub async fn remove_lost_function_events(&self) -> Result<usize, JournalError> {
        let work = |t: &Transaction<'_>| {
            t.execute(
                "DELETE FROM function_events AS e WHERE NOT EXISTS (
                   SELECT 1 FROM functions AS f
                   WHERE f.account = e.account AND f.function = e.function)",
                [],
            )
            .map_err(JournalError::sql("remove events without a function"))
        };
        self.writer.run("function.event.lost", work).await
    }

    /// When all events that wait are due, their ids and accounts; the one that is due first is first.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub async fn function_events_due(&self) -> Result<Vec<(i64, String, String)>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read events for functions");
            let mut statement = t
                .prepare("SELECT due, request, account FROM function_events ORDER BY due, rowid")
                .map_err(sql())?;
            let rows = statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .map_err(sql())?;
            rows.collect::<Result<_, _>>().map_err(sql())
        };
        self.writer.run("function.event.due", work).await
    }

    /// An event that waits, if it still does.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn function_event(&self, request: &str) -> Result<Option<Waiting>, JournalError> {
        let request = request.to_owned();
        let work = move |t: &Transaction<'_>| {
            t.prepare_cached(
                "SELECT request, account, function, due, record, payload FROM function_events
                 WHERE request = ?1",
            )
            .and_then(|mut statement| {
                let waiting = |row: &rusqlite::Row<'_>| {
                    Ok(Waiting {
                        row: read_row(row)?,
                        payload: row.get(5)?,
                    })
                };
                statement.query_row([request], waiting).optional()
            })
            .map_err(JournalError::sql("read an event for a function"))
        };
        self.writer.run("function.event.read", work).await
    }

    /// Has an event wait until another time; `false` where it is gone, though another may have its
    /// id. `row` is what was read of it.
    ///
    /// # Errors
    /// Where that cannot be kept.
    pub async fn delay_function_event(
        &self,
        row: &EventRow,
        due: i64,
        record: String,
    ) -> Result<bool, JournalError> {
        let (request, before) = (row.request.clone(), row.record.clone());
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "UPDATE function_events SET due = ?3, record = ?4
                 WHERE request = ?1 AND record = ?2",
                (request, before, due, record),
            )
            .map_err(JournalError::sql("delay an event for a function"))
            .map(|changed| changed > 0)
        };
        self.writer.run("function.event.delay", work).await
    }

    /// Is done with an event, of which `row` was read; another may follow from it, which is kept in
    /// the same moment. Gives whether one does: none does where its function is gone. An event that
    /// was sent again with the same id once this one had gone with its function stays: its record
    /// is another.
    ///
    /// # Errors
    /// Where that cannot be kept. Then the event still waits.
    pub async fn finish_function_event(
        &self,
        row: &EventRow,
        next: Option<Waiting>,
    ) -> Result<bool, JournalError> {
        let (request, record) = (row.request.clone(), row.record.clone());
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "DELETE FROM function_events WHERE request = ?1 AND record = ?2",
                (request, record),
            )
            .map_err(JournalError::sql("be done with an event for a function"))?;
            next.map_or(Ok(false), |next| insert(t, &next))
        };
        self.writer.run("function.event.finish", work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(request: &str, due: i64) -> Waiting {
        Waiting {
            row: EventRow {
                request: request.into(),
                account: "a".into(),
                function: "f".into(),
                due,
                record: "{}".into(),
            },
            payload: vec![0, 1, 255],
        }
    }

    #[tokio::test]
    async fn a_function_is_kept_by_its_parts_and_goes_with_its_events() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let journal = Journal::open(&path).unwrap();
        let keep = |kept: &[(&str, &str)], removed: &[&str]| {
            let kept = kept.iter().map(|(a, b)| ((*a).into(), (*b).into()));
            let removed = removed.iter().map(|part| (*part).into());
            journal.keep_function("a", "f", kept.collect(), removed.collect())
        };
        keep(&[("", "1"), ("v1", "2")], &[]).await.unwrap();
        keep(&[("", "3"), ("v2", "4")], &["v1"]).await.unwrap();
        journal
            .keep_function("b", "f", vec![(String::new(), "other".into())], Vec::new())
            .await
            .unwrap();
        journal.add_function_event(event("r2", 20)).await.unwrap();
        journal.add_function_event(event("r1", 10)).await.unwrap();
        drop(journal);
        // What was answered is there after the process.
        let journal = Journal::open(&path).unwrap();
        let mut rows: Vec<_> = journal.functions().await.unwrap();
        rows.sort_by(|a, b| (&a.account, &a.part).cmp(&(&b.account, &b.part)));
        let records: Vec<_> = rows.iter().map(|row| row.record.as_str()).collect();
        assert_eq!(records, ["3", "4", "other"]);
        let due = journal.function_events_due().await.unwrap();
        let of = |due, id: &str| (due, id.to_owned(), "a".to_owned());
        assert_eq!(due, [of(10, "r1"), of(20, "r2")]);
        journal.remove_function("a", "f").await.unwrap();
        assert_eq!(journal.functions().await.unwrap().len(), 1);
        assert_eq!(journal.function_events_due().await.unwrap(), []);
    }

    #[tokio::test]
    async fn an_event_waits_until_it_is_done_with() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("state.db")).unwrap();
        let head = vec![(String::new(), "1".into())];
        journal
            .keep_function("a", "f", head, Vec::new())
            .await
            .unwrap();
        journal.add_function_event(event("r1", 10)).await.unwrap();
        assert!(journal.add_function_event(event("r1", 11)).await.is_err());
        let first = event("r1", 10).row;
        let delayed = journal.delay_function_event(&first, 30, "later".into());
        assert!(delayed.await.unwrap());
        // Whoever knows only what was before changes nothing.
        let delayed = journal.delay_function_event(&first, 40, "never".into());
        assert!(!delayed.await.unwrap());
        journal.finish_function_event(&first, None).await.unwrap();
        let waiting = journal.function_event("r1").await.unwrap().unwrap();
        assert_eq!((waiting.row.due, &*waiting.row.record), (30, "later"));
        assert_eq!(waiting.payload, [0, 1, 255]);
        let next = Some(event("r2", 40));
        journal
            .finish_function_event(&waiting.row, next)
            .await
            .unwrap();
        assert_eq!(journal.function_event("r1").await.unwrap(), None);
        let due = journal.function_events_due().await.unwrap();
        assert_eq!(due, [(40, "r2".to_owned(), "a".to_owned())]);
    }

    #[tokio::test]
    async fn no_event_waits_for_a_function_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("state.db")).unwrap();
        assert!(!journal.add_function_event(event("r1", 10)).await.unwrap());
        let head = vec![(String::new(), "1".into())];
        journal
            .keep_function("a", "f", head.clone(), Vec::new())
            .await
            .unwrap();
        assert!(journal.add_function_event(event("r1", 10)).await.unwrap());
        assert_eq!(journal.remove_lost_function_events().await.unwrap(), 0);
        // Its parts alone go, as an earlier program may have left it.
        let gone = vec![String::new()];
        journal
            .keep_function("a", "f", Vec::new(), gone)
            .await
            .unwrap();
        let next = Some(event("r3", 40));
        let gone = event("r2", 10).row;
        let follows = journal.finish_function_event(&gone, next).await.unwrap();
        assert!(!follows);
        assert_eq!(journal.remove_lost_function_events().await.unwrap(), 1);
        assert_eq!(journal.function_events_due().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_batch_is_kept_whole_and_what_waits_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("state.db")).unwrap();
        let batch = || vec![event("r1", 10), event("r2", 20)];
        assert_eq!(journal.add_function_events(batch()).await.unwrap(), None);
        let kept = vec![(String::new(), "head".into())];
        let kept = journal.keep_function("a", "f", kept, Vec::new());
        kept.await.unwrap();
        let added = journal.add_function_events(batch()).await.unwrap();
        assert_eq!(added, Some(vec![true, true]));
        let mut again = vec![event("r2", 99), event("r3", 30)];
        again[1].row.record = r#"{"accepted":7}"#.into();
        let added = journal.add_function_events(again).await.unwrap();
        assert_eq!(added, Some(vec![false, true]));
        let due = journal.function_events_due().await.unwrap();
        let due: Vec<_> = due.iter().map(|(due, id, _)| (*due, &**id)).collect();
        assert_eq!(due, [(10, "r1"), (20, "r2"), (30, "r3")]);
        let counted = journal.function_events_by("$.accepted").await.unwrap();
        let counted: Vec<_> = counted.iter().map(|one| (one.number, one.events)).collect();
        assert_eq!(counted, [(7, 1), (10, 1), (20, 1)]);
    }
}
