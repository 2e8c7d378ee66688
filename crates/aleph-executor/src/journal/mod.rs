//! The node's journal: what it has promised, and what it is about to do to its host.
//!
//! One SQLite database, `STATE/state.db`, in WAL mode with full synchronisation: a write that was
//! answered survives the loss of power. All writes go through one thread, which takes those
//! that wait together as one transaction.
//!
//! | table | what it holds | written |
//! | --- | --- | --- |
//! | `jobs` | each job's record | before its user hears of it |
//! | `vms` | each VM that may have objects on the host | before the first is made; removed after the last is gone |
//! | `idempotency` | which request made which job | with the job |
//! | `events` | what happened | with what happened |
//! | `functions` | each function, in parts | before its user hears of it |
//! | `function_events` | events that wait for functions | before their sender hears of it; removed once done with |
//! | `schedules` | each schedule, and up to when it has fired | before its user hears of it; the mark with the event |
//! | `event_sources` | each mapping of an event source | before its user hears of it |
//! | `snapshots` | each snapshot of a job, and whether it is whole | before its folder is made; removed after it is gone |
//! | `tokens` | hashes of tokens | before the token is shown |
//! | `meta` | the node's id | once |
//!
//! # Failure cases
//! A full disk is [`JournalError::Full`], and nothing of that write is kept. A crash between
//! two writes leaves what the first says: a row in `vms` without objects, or objects without a
//! VMM; whoever opens the node next completes or undoes it. A journal of a newer program is
//! refused.

mod error;
mod events;
mod functions;
mod jobs;
mod schema;
mod snapshots;
mod sources;
mod tokens;
mod writer;

pub use error::JournalError;
pub use functions::{EventRow, FunctionRow, Waiting, WaitingFor};
pub(crate) use jobs::Inserted;
pub use jobs::{Desired, JobRecord, RunRecord, VmRow, VolumeChange};
pub(crate) use snapshots::SnapshotRow;
pub use sources::{Fired, Firing, ScheduleRow, SourceRow};
pub use tokens::TokenRecord;

use aleph_types::NodeId;
use rusqlite::{Connection, OptionalExtension};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use writer::Writer;

/// The journal. Clones are the same one.
#[derive(Clone)]
pub struct Journal {
    writer: Writer,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Journal")
    }
}

impl Journal {
    /// Opens the journal at this path, or makes it.
    ///
    /// # Errors
    /// Where it cannot be opened, or is of a newer program.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        // The files beside it get the same rights.
        let made = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path);
        if made.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull) {
            return Err(JournalError::Full);
        }
        let mut connection = Connection::open(path).map_err(JournalError::sql("be opened"))?;
        schema::prepare(&mut connection)?;
        let writer = Writer::start(connection).map_err(|_| JournalError::Closed)?;
        Ok(Self { writer })
    }

    /// The id of this node, made at the first call.
    ///
    /// # Errors
    /// Where it cannot be read or kept.
    pub async fn node_id(&self) -> Result<NodeId, JournalError> {
        let what = "node.id";
        let work = move |t: &rusqlite::Transaction<'_>| {
            let known: Option<String> = t
                .query_row("SELECT value FROM meta WHERE key = 'node'", [], |r| {
                    r.get(0)
                })
                .optional()
                .map_err(JournalError::sql("be read"))?;
            if let Some(id) = known.and_then(|text| text.parse().ok()) {
                return Ok(id);
            }
            let id = NodeId::random();
            t.execute(
                "INSERT OR REPLACE INTO meta VALUES ('node', ?1)",
                [id.to_string()],
            )
            .map_err(JournalError::sql("keep the node's id"))?;
            Ok(id)
        };
        self.writer.run(what, work).await
    }
}
