//! A node: jobs that outlive the daemon that took them.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | [`Node`], the handle, and what it is asked |
//! | `error` | what can go wrong |

mod error;

pub use error::NodeError;

use crate::executor::{Boot, ExecutorConfig};
use crate::guest::{Agent, ExecHandle, ExecInput, ExecRequest};
use crate::hypervisor::BoxFuture;
use crate::journal::Journal;
use crate::logs::{LogLimits, LogQuery, LogReader};
use crate::paths::Paths;
use aleph_types::{
    Event, Job, JobId, JobList, JobSpec, JobState, JobStats, MiB, NodeId, NodeInfo, Problem,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How a node is run.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its folders.
    pub paths: Paths,
    /// How it runs VMs.
    pub executor: ExecutorConfig,
    /// How much of the host may be given away.
    pub overcommit: Overcommit,
    /// Memory that jobs never get.
    pub reserved_memory: MiB,
    /// Processes and threads that a VMM may have, where its job does not say.
    pub pids: u32,
    /// How long logs may get.
    pub logs: LogLimits,
    /// The time between two sweeps.
    pub sweep_interval: Duration,
    /// How many events are kept.
    pub events_kept: u64,
}

impl NodeConfig {
    /// All at its default in these folders.
    #[must_use]
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            executor: ExecutorConfig::default(),
            overcommit: Overcommit::default(),
            reserved_memory: MiB(512),
            pids: 256,
            logs: LogLimits::default(),
            sweep_interval: Duration::from_secs(60),
            events_kept: 100_000,
        }
    }
}

/// How many times what the host has may be given to jobs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overcommit {
    /// CPUs.
    pub cpus: f64,
    /// Memory.
    pub memory: f64,
    /// Disk.
    pub disk: f64,
}

impl Default for Overcommit {
    fn default() -> Self {
        Self {
            cpus: 16.0,
            memory: 1.0,
            disk: 1.0,
        }
    }
}

/// Where images come from. The node knows no registry and no store.
pub trait Images: Send + Sync {
    /// Opens the image and kernel of a job, fetching what its pull policy says.
    /// `uncompressed` is which kernel file the VMM boots fastest.
    fn prepare<'a>(
        &'a self,
        spec: &'a JobSpec,
        uncompressed: bool,
    ) -> BoxFuture<'a, Result<Prepared, Problem>>;
}

/// An image and a kernel, opened.
#[derive(Debug)]
pub struct Prepared {
    /// What is booted.
    pub boot: Boot,
    /// The image's digest.
    pub digest: String,
    /// What the image says where the job does not.
    pub defaults: ImageDefaults,
}

/// What an image says of its command where a job does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageDefaults {
    /// The beginning of the command.
    pub entrypoint: Vec<String>,
    /// The command, or the end of it.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub workdir: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// The signal that asks the command to end; SIGTERM when absent.
    pub stop_signal: Option<u8>,
}

/// Whose jobs somebody sees and touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's: an operator.
    All,
    /// One account's.
    Account(String),
}

impl Scope {
    /// Whether it covers an account.
    #[must_use]
    pub fn covers(&self, account: &str) -> bool {
        match self {
            Self::All => true,
            Self::Account(own) => own == account,
        }
    }
}

/// How a job is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// The account that it belongs to.
    pub account: String,
    /// Whether it starts at once.
    pub start: bool,
    /// Names the request: the same one again gives the same job.
    pub idempotency_key: Option<String>,
}

/// A job that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// The job.
    pub job: Job,
    /// Whether this request made it, and not an earlier one with the same key.
    pub new: bool,
}

/// Which jobs to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobFilter {
    /// In one of these states; in any when empty.
    pub states: Vec<JobState>,
    /// With these labels: a name, with a value where it has to have that one.
    pub labels: Vec<(String, Option<String>)>,
    /// With names that begin so.
    pub name_prefix: Option<String>,
    /// At most so many; 100 when 0.
    pub limit: usize,
    /// After the part that this names.
    pub cursor: Option<String>,
}

/// The output of a job's command, and a way to feed it.
#[derive(Debug)]
pub struct Attachment {
    /// What it writes.
    pub output: LogReader,
    /// Its standard input and terminal; absent where it does not run.
    pub input: Option<ExecInput>,
}

/// What happens, from some point on.
#[derive(Debug)]
pub struct EventReader {
    _p: (),
}

impl EventReader {
    /// The next event; `None` once the node shuts down.
    ///
    /// # Errors
    /// Where the journal cannot be read.
    pub async fn next(&mut self) -> Option<Event> {
        None
    }
}

/// A node. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<()>,
}

#[allow(unused_variables, clippy::missing_errors_doc, clippy::unused_async)]
impl Node {
    /// Opens the node of these folders: takes its lock, reads its journal, adopts the VMs that
    /// run and sweeps what nobody owns.
    pub async fn open(config: NodeConfig, images: Arc<dyn Images>) -> Result<Self, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Its id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId::from_bits(0)
    }
    /// Its journal, for what the control plane keeps in it.
    pub fn journal(&self) -> Result<Journal, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// What it has and has given away.
    pub fn info(&self) -> Result<NodeInfo, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Takes a job.
    pub async fn create(
        &self,
        spec: JobSpec,
        options: CreateOptions,
    ) -> Result<Created, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// The job that a full id, a unique beginning of one, or a name means to somebody.
    pub fn find(&self, scope: &Scope, reference: &str) -> Result<JobId, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// A job.
    pub fn job(&self, id: JobId) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Jobs, the newest first.
    pub fn list(&self, scope: &Scope, filter: &JobFilter) -> Result<JobList, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Starts a job that does not run. Returns once that is journaled.
    pub async fn start(&self, id: JobId) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Ends a job and waits for that. `grace` is the time between the stop signal and SIGKILL,
    /// the job's own when absent.
    pub async fn stop(&self, id: JobId, grace: Option<Duration>) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Stops it, if it runs, and starts it.
    pub async fn restart(&self, id: JobId, grace: Option<Duration>) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Ends a job's VM now (signal 9), or sends its command another signal.
    pub async fn kill(&self, id: JobId, signal: u8) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Freezes its guest.
    pub async fn pause(&self, id: JobId) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Lets its guest go on.
    pub async fn resume(&self, id: JobId) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Removes a job with its logs; one that runs only by `force`, which kills it.
    pub async fn destroy(&self, id: JobId, force: bool) -> Result<(), NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Waits until a job is in one of these states, for ever: callers bound it. A job that is
    /// removed meanwhile is `Destroyed`.
    pub async fn wait(&self, id: JobId, states: &[JobState]) -> Result<Job, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Reads a job's log.
    pub async fn logs(&self, id: JobId, query: LogQuery) -> Result<LogReader, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Its command's output, from the beginning of this incarnation or from now on, and a way
    /// to feed it.
    pub async fn attach(&self, id: JobId, from_beginning: bool) -> Result<Attachment, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Runs a command in its guest.
    pub fn exec(&self, id: JobId, request: &ExecRequest) -> Result<ExecHandle, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// The agent of its guest, for files.
    pub fn agent(&self, id: JobId) -> Result<Agent, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// What it uses.
    pub async fn stats(&self, id: JobId) -> Result<JobStats, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// What all running jobs of somebody use.
    pub async fn all_stats(&self, scope: &Scope) -> Result<Vec<JobStats>, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Events after this one, or from now on. The stored ones come first.
    pub fn events(&self, after: Option<u64>) -> Result<EventReader, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// The stored events after this one.
    pub async fn stored_events(&self, after: u64, limit: usize) -> Result<Vec<Event>, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Tells an event that no job has, such as `image.pulled`.
    pub fn tell(&self, kind: &str, message: String) {}
    /// Removes jobs that ended for good before `older_than`, with their logs; says which they
    /// are (`dry_run`: would be), and how many bytes of logs that frees.
    pub async fn prune_jobs(
        &self,
        scope: &Scope,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<(Vec<JobId>, u64), NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Removes logs of ended jobs and of earlier incarnations older than this; gives the bytes.
    pub async fn prune_logs(
        &self,
        scope: &Scope,
        older_than: Duration,
        dry_run: bool,
    ) -> Result<u64, NodeError> {
        Err(NodeError::ShuttingDown)
    }
    /// Lets go of all guests, which run on, and ends.
    pub async fn shutdown(&self) {}
}
