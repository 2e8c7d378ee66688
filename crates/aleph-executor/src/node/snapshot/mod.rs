//! Guests that are written down, and jobs that go on from there.
//!
//! A snapshot is an object of its own. It does not change, outlives its job, and any number of
//! jobs go on from it: each with an id, a name, a hostname, an address and a machine id of its own.
//!
//! ```text
//! STATE/snapshots/<SnapshotId>/state          the guest's devices and memory
//!                              scratch.img    its disk, where it has one: sparse, or sharing blocks
//!                              snapshot.json  what it is of, and what it depends on
//! STATE/snapshots/.tmp-<SnapshotId>/          one that is being made, or removed
//! ```
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | what a node has of them: table, lookup, recovery |
//! | `making` | from a guest that runs to a folder, step by step |
//! | `folder` | the folder on disk |
//! | `restore` | jobs that go on from one, alone or as the copies of a fork |
//! | `error` | what can go wrong |
//!
//! # Who does what
//! The job's actor asks for it, journals it, and is told how it went; [`Making`] has the guest
//! written down beside it, through the VM's own actor. So a stop or kill is heard meanwhile: a stop
//! has it given up first, a kill ends the VM, and with it what is under way.
//!
//! # Failure cases
//! Before the guest is touched there is a row in the journal, and its job's record says that its
//! processes may stand still. A node that dies anywhere leaves these: the next one removes row and
//! folder, and has the guest go on when it has adopted it. A snapshot counts from the moment when
//! its row says that it is whole; the same write says of a job that was to end there that it ends.
//!
//! A job that goes on from a snapshot says so in its record until its guest has become its own.
//! Until then each start of it begins with the snapshot, so nothing of its memory is ever taken for
//! a fresh boot; after that a restart boots its image. Where VMM, machine, processor or devices
//! are others than those of the snapshot it is not taken at all ([`SnapshotError::Incompatible`]).
//! The kernel is in the memory: that of the bundle may be another one by now.

mod error;
mod folder;
mod making;
mod restore;

pub use error::SnapshotError;
pub(super) use making::{Making, Written};
pub(super) use restore::{image_of, own};

use super::actor::Ask;
use super::entry::lock;
use super::inner::{Inner, log_journal};
use super::{Node, NodeError, Scope};
use crate::guest::{Agent, GuestNetwork};
use crate::journal::{JobRecord, SnapshotRow};
use crate::vm::Vm;
use aleph_types::{JobId, Snapshot, SnapshotId, Timestamp};
use folder::{Record, Work};
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The fewest digits that may stand for an id.
const FEWEST: usize = 4;

/// A snapshot that is whole.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) record: Record,
}

/// All that are whole.
pub(super) type Snapshots = BTreeMap<SnapshotId, Arc<Kept>>;

fn lock_snapshots(inner: &Inner) -> MutexGuard<'_, Snapshots> {
    lock(&inner.snapshots)
}

/// What a guest's actor knows of it, for it to be written down.
pub(super) struct Subject<'a> {
    pub(super) record: &'a JobRecord,
    pub(super) vm: Vm,
    pub(super) agent: Agent,
    pub(super) network: Option<GuestNetwork>,
    /// Its main command's stream, and how much of its output is stored.
    pub(super) main: (u32, watch::Receiver<u64>),
}

impl Inner {
    pub(super) fn snapshot(&self, id: SnapshotId) -> Result<Arc<Kept>, SnapshotError> {
        let known = lock_snapshots(self).get(&id).cloned();
        known.ok_or_else(|| SnapshotError::Unknown(id.to_string()))
    }

    pub(super) fn keep_snapshot(&self, record: Record) {
        let id = record.snapshot.id;
        lock_snapshots(self).insert(id, Arc::new(Kept { record }));
    }

    /// Gets ready to write a guest down.
    pub(super) fn making(
        &self,
        id: SnapshotId,
        subject: Subject<'_>,
        stop: bool,
        given_up: CancellationToken,
    ) -> Result<Making, NodeError> {
        let Subject {
            record,
            vm,
            agent,
            network,
            main: (main, stored),
        } = subject;
        let job = &record.job;
        let Some(run) = record.run.clone() else {
            return Err(SnapshotError::Ended.into());
        };
        // One that was adopted may be another driver's than new ones.
        let run_dir = self.config.paths.vm_run(vm.id());
        let (driver, compatible_with) = match self.executor.drivers().of(&run_dir) {
            Ok(driver) => (driver.name(), driver.compatibility_of(&run_dir)),
            Err(_) => ("unknown".to_owned(), String::new()),
        };
        let snapshot = Snapshot {
            id,
            account: job.account.clone(),
            job: job.id,
            job_name: job.name.clone(),
            image: job.spec.image.clone(),
            image_digest: job.image_digest.clone().unwrap_or_default(),
            resources: run.effective.resources,
            driver,
            size: 0,
            created_at: Timestamp::now(),
        };
        let disk = run.effective.resources.disk.0 > 0;
        let own = own(job.id, &run.effective, network);
        let mut written = Record::new(snapshot, job.spec.clone(), run);
        written.compatible_with = compatible_with.trim().to_owned();
        written.connected = job.network.is_some();
        let work = Work::begin(&self.config.paths, id)?;
        Ok(Making {
            scratch: disk.then(|| crate::place::scratch(&self.config.paths, vm.id())),
            vm,
            agent,
            record: written,
            work,
            own,
            main,
            stored,
            paused: job.state == aleph_types::JobState::Paused,
            stop,
            given_up,
            stands_still: false,
        })
    }

    /// Reads the snapshots that there are, and removes what a crash left of others.
    pub(super) async fn recover_snapshots(&self, jobs: &[JobRecord]) -> Result<(), NodeError> {
        let paths = &self.config.paths;
        let mut known = Vec::new();
        for row in self.journal.snapshots().await? {
            let wanted = || jobs.iter().any(|job| job.from == Some(row.id));
            let record = folder::read(paths, row.id).filter(|_| row.whole);
            match record.filter(|_| !row.temporary || wanted()) {
                Some(record) => {
                    known.push(row.id);
                    self.keep_snapshot(record);
                }
                None => {
                    if row.whole && !row.temporary {
                        tracing::warn!(id = %row.id, job = %row.job, "a snapshot's folder is gone or damaged");
                    }
                    if let Err(error) = self.journal.forget_snapshot(row.id, None).await {
                        log_journal(&error);
                    }
                }
            }
        }
        folder::remove_strays(paths, &known);
        Ok(())
    }
}

impl Node {
    /// Writes a job's guest down, for others to go on from. The job goes on, or ends there with
    /// `stop`.
    ///
    /// # Errors
    /// Where it does not run, or cannot be written down: then it runs on, and nothing is kept.
    pub async fn snapshot(&self, id: JobId, stop: bool) -> Result<Snapshot, NodeError> {
        self.write_down(id, stop, false).await
    }

    async fn write_down(
        &self,
        job: JobId,
        stop: bool,
        temporary: bool,
    ) -> Result<Snapshot, NodeError> {
        let entry = self.inner.entry(job)?;
        super::expect_agent(&entry, "have it stand still for a snapshot")?;
        if !entry.job().spec.volumes.is_empty() {
            return Err(SnapshotError::Volumes.into());
        }
        let row = SnapshotRow {
            id: SnapshotId::random(),
            job,
            whole: false,
            temporary,
        };
        if stop {
            self.end(job, Ask::Snapshot { row, stop }).await?;
        } else {
            self.ask(job, Ask::Snapshot { row, stop }).await?;
        }
        Ok(self.inner.snapshot(row.id)?.record.snapshot.clone())
    }

    /// All snapshots that somebody sees, the newest first.
    #[must_use]
    pub fn snapshots(&self, scope: &Scope) -> Vec<Snapshot> {
        let mut found: Vec<Snapshot> = lock_snapshots(&self.inner)
            .values()
            .map(|kept| &kept.record.snapshot)
            .filter(|snapshot| scope.covers(&snapshot.account))
            .cloned()
            .collect();
        found.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.created_at, snapshot.id)));
        found
    }

    /// The snapshot that a full id or a unique beginning of one means to somebody.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`] and [`SnapshotError::Ambiguous`].
    pub fn find_snapshot(&self, scope: &Scope, reference: &str) -> Result<Snapshot, NodeError> {
        let digits = reference.strip_prefix("0x").unwrap_or(reference);
        let unknown = || SnapshotError::Unknown(reference.to_owned()).into();
        if digits.len() < FEWEST {
            return Err(unknown());
        }
        let whole = format!("0x{digits}");
        let mut found = self.snapshots(scope);
        found.retain(|snapshot| snapshot.id.to_string().starts_with(&whole));
        match found.len() {
            0 | 1 => found.pop().ok_or_else(unknown),
            _ => Err(SnapshotError::Ambiguous(reference.to_owned()).into()),
        }
    }

    /// Removes a snapshot. Jobs that have gone on from it run on.
    ///
    /// # Errors
    /// Where there is none, or it cannot be removed.
    pub async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), NodeError> {
        self.inner.snapshot(id)?;
        self.inner.remove_snapshot(id).await
    }
}
