//! Snapshots of jobs.
//!
//! A row is all that the journal says of one: what it holds is in its folder. A row that is not
//! whole, and a folder without a row, are what a crash left of one that was being made or removed.

use super::jobs::{damaged, keep, put};
use super::{JobRecord, Journal, JournalError};
use aleph_types::{Event, JobId, SnapshotId};
use rusqlite::Transaction;

/// A snapshot that may have a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    pub(crate) id: SnapshotId,
    /// The job that it is of.
    pub(crate) job: JobId,
    /// Whether all of it is there.
    pub(crate) whole: bool,
    /// Whether it goes as soon as those that go on from it have.
    pub(crate) temporary: bool,
}

impl Journal {
    /// Before a guest stands still: the snapshot's row, and its job's record.
    pub(crate) async fn intend_snapshot(
        &self,
        row: SnapshotRow,
        record: JobRecord,
    ) -> Result<(), JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "INSERT INTO snapshots VALUES (?1, ?2, ?3, ?4)",
                (
                    row.id.to_string(),
                    row.job.to_string(),
                    row.whole,
                    row.temporary,
                ),
            )
            .map_err(JournalError::sql("keep a snapshot"))?;
            put(t, &record)
        };
        self.writer.run("snapshot.intend", work).await
    }

    /// After its folder is whole: the row says so, and the job's record what follows.
    pub(crate) async fn keep_snapshot(
        &self,
        id: SnapshotId,
        record: JobRecord,
        event: Event,
    ) -> Result<Option<Event>, JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute(
                "UPDATE snapshots SET whole = 1 WHERE id = ?1",
                [id.to_string()],
            )
            .map_err(JournalError::sql("keep a snapshot"))?;
            put(t, &record)?;
            keep(t, Some(event))
        };
        self.writer.run("snapshot.keep", work).await
    }

    /// Before its folder goes, or where there never came to be one; with its job's record, where
    /// that says what follows.
    pub(crate) async fn forget_snapshot(
        &self,
        id: SnapshotId,
        record: Option<JobRecord>,
    ) -> Result<(), JournalError> {
        let work = move |t: &Transaction<'_>| {
            t.execute("DELETE FROM snapshots WHERE id = ?1", [id.to_string()])
                .map_err(JournalError::sql("forget a snapshot"))?;
            match record {
                Some(record) => put(t, &record),
                None => Ok(()),
            }
        };
        self.writer.run("snapshot.forget", work).await
    }

    /// All snapshots that may have a folder.
    pub(crate) async fn snapshots(&self) -> Result<Vec<SnapshotRow>, JournalError> {
        let work = |t: &Transaction<'_>| {
            let sql = || JournalError::sql("read snapshots");
            let mut statement = t
                .prepare("SELECT id, job, whole, temporary FROM snapshots")
                .map_err(sql())?;
            let rows = statement
                .query_map([], |row| {
                    Ok((
                        row.get::<_, String>(0)?,
                        row.get::<_, String>(1)?,
                        row.get(2)?,
                        row.get(3)?,
                    ))
                })
                .map_err(sql())?;
            let mut found = Vec::new();
            for row in rows {
                let (id, job, whole, temporary) = row.map_err(sql())?;
                let wrong = |_| damaged("a snapshot");
                found.push(SnapshotRow {
                    id: id.parse().map_err(wrong)?,
                    job: job.parse().map_err(wrong)?,
                    whole,
                    temporary,
                });
            }
            Ok(found)
        };
        self.writer.run("snapshot.read", work).await
    }
}
