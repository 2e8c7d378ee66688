//! What all parts of a node share.

use super::entry::{Entry, Table, lock};
use super::gpus::in_pages;
use super::ledger::{Ledger, Pool, allocatable};
use super::lookup::Turns;
use super::snapshot::Snapshots;
use super::volume_merges::Merges;
use super::{Images, NodeConfig, NodeError};
use crate::capacity::Capacity;
use crate::executor::Executor;
use crate::gpu::Gpus;
use crate::host::huge_pages;
use crate::journal::{Journal, JournalError};
use crate::volumes::Volumes;
use aleph_types::{
    Event, HugePages, Job, JobId, JobSpec, MiB, NodeId, NodeResources, Timestamp, VmId,
};
use aleph_vm_networking::{Claim, Network, NetworkError};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::watch;

/// What all parts of a node share.
pub(super) struct Inner {
    pub(super) config: NodeConfig,
    pub(super) id: NodeId,
    pub(super) executor: Executor,
    pub(super) images: Arc<dyn Images>,
    pub(super) journal: Journal,
    pub(super) jobs: Mutex<Table>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) keys: Turns,
    /// Whose turn it is, by account, to make volumes for a job.
    pub(super) makings: Turns,
    /// One at a time changes a volume that may be in use.
    pub(super) live: Turns,
    /// One at a time, by job, has a guest's filesystems stand still.
    pub(super) agents: Turns,
    /// Starts of jobs whose volumes are brought to what their VMMs do, and whether somebody wants that once more.
    pub(super) settling: Mutex<HashMap<(JobId, u64), bool>>,
    /// Layers of volumes that are merged while they are in use.
    pub(super) merges: Merges,
    /// The host's GPUs, and who has them.
    pub(super) gpus: Arc<Gpus>,
    /// Whether GPUs of starts that are over are taken back just now.
    pub(super) recovers_gpus: AtomicBool,
    /// Where the node connects its VMs.
    pub(super) network: Option<Arc<Network>>,
    /// What is kept for the next VM of a job.
    pub(super) reserved: Mutex<HashMap<JobId, (VmId, Claim)>>,
    /// Disks that outlive jobs.
    pub(super) volumes: Volumes,
    /// Guests that were written down.
    pub(super) snapshots: Mutex<Snapshots>,
    /// The number of the newest event.
    pub(super) newest_event: watch::Sender<u64>,
    /// VMs of which something could not be removed.
    pub(super) remains: watch::Sender<BTreeSet<VmId>>,
    /// Turns true when the node lets go of its guests.
    pub(super) leaving: watch::Sender<bool>,
    pub(super) began: Instant,
    pub(super) host_boot: String,
    pub(super) _lock: File,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) fn entry(&self, id: JobId) -> Result<Arc<Entry>, NodeError> {
        lock(&self.jobs)
            .get(id)
            .ok_or_else(|| NodeError::NoJob(id.to_string()))
    }

    /// The folder with a job's log.
    pub(super) fn log_dir(&self, id: JobId) -> PathBuf {
        let name = id.to_string();
        self.config.paths.state().join("logs").join(&name[2..])
    }

    pub(super) fn allocatable(&self, host: &Capacity) -> NodeResources {
        allocatable(host, self.config.overcommit, self.config.reserved_memory)
    }

    /// Gives a job its share of the host for a start, or says what is missing. Its GPUs it gets later, beside
    /// its actor: to look for them may take as long as a device that hangs.
    /// [`Inner::take_back`] undoes it.
    pub(super) async fn give(
        self: &Arc<Self>,
        id: JobId,
        owner: (&str, &str),
        spec: &JobSpec,
    ) -> Result<(), NodeError> {
        let pages = match self.drawn(id, spec).await {
            Ok(drawn) => drawn.pages,
            // The start says so.
            Err(_) => self.pages_of(spec),
        };
        match self.try_give(id, owner, (spec, pages)) {
            // A VM whose end could not be journaled may have it, of this very job even.
            Err(NodeError::Network(NetworkError::Port(_) | NetworkError::Pool(_))) => {
                self.forget_strays().await;
                self.try_give(id, owner, (spec, pages))
            }
            given => given,
        }
    }

    /// What there is to be given out of a host to a job whose memory is in such pages.
    pub(super) fn pool(&self, host: &Capacity, pages: Option<HugePages>) -> Pool {
        Pool {
            resources: self.allocatable(host),
            memory_ratio: self.config.overcommit.memory,
            lockable: MiB(host.memory.0.saturating_sub(self.config.reserved_memory.0)),
            huge_pages: pages.map(|pages| huge_pages(&self.config.host_tree.sys, pages)),
        }
    }

    fn try_give(
        &self,
        id: JobId,
        owner: (&str, &str),
        (spec, pages): (&JobSpec, Option<HugePages>),
    ) -> Result<(), NodeError> {
        let host = self.executor.capacity()?;
        let sys = &self.config.host_tree.sys;
        self.executor.admit(&in_pages(spec, pages), &host, sys)?;
        let pool = self.pool(&host, pages);
        lock(&self.ledger)
            .give(id, (spec, pages), &pool)
            .map_err(|shortage| NodeError::Executor(shortage.into()))?;
        self.reserve(id, owner, spec)
            .inspect_err(|_| lock(&self.ledger).take(id))
    }

    /// Tells whoever follows events that there is one.
    pub(super) fn told(&self, event: Option<&Event>) {
        if let Some(event) = event {
            self.newest_event.send_if_modified(|newest| {
                let newer = event.id > *newest;
                *newest = event.id.max(*newest);
                newer
            });
        }
    }

    /// Keeps an event that belongs to no change of a job.
    pub(super) async fn tell(&self, event: Event) {
        match self.journal.add_event(event).await {
            Ok(event) => self.told(Some(&event)),
            Err(error) => log_journal(&error),
        }
    }
}

pub(super) fn log_journal(error: &JournalError) {
    let error = crate::vm::chain(error);
    tracing::error!(%error, "the journal is behind what happens");
}

/// What happened to a job, by the state that it is in now.
pub(super) fn event_of(job: &Job) -> Event {
    Event {
        id: 0,
        time: Timestamp::now(),
        kind: format!("job.{}", job.state),
        job: Some(job.id),
        name: Some(job.name.clone()),
        account: Some(job.account.clone()),
        message: match (&job.reason, &job.exit) {
            (Some(reason), _) => Some(reason.clone()),
            (None, Some(exit)) if job.state.is_over() => Some(exit.to_string()),
            _ => None,
        },
    }
}
