//! What can go wrong with a node's jobs.

use super::{MountError, SizeError, SnapshotError};
use crate::cloud_init::CloudInitError;
use crate::executor::ExecutorError;
use crate::gpu::GpuError;
use crate::guest::AgentError;
use crate::hypervisor::MachineSize;
use crate::journal::JournalError;
use crate::lifecycle::Denial;
use crate::qemu::machine::MachineError;
use crate::volumes::VolumeError;
use aleph_types::{Classify, ErrorClass, InvalidJob, JobState, Problem};
use aleph_vm_networking::NetworkError;
use std::io;
use std::path::PathBuf;

/// A request to a node that did not work out.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No node could run this job.
    #[error(transparent)]
    Job(#[from] InvalidJob),
    /// This node cannot run it now.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// It cannot be connected as it asks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It cannot have the GPUs that it asks for.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// It asks for a network of a node that has none.
    #[error("this node connects no VMs, and the job asks for a network")]
    NoNetwork,
    /// Guests that run have networks, and the node is to have none.
    #[error("{0} VMs of this node have networks, which it is not to connect any more")]
    NetworkInUse(usize),
    /// Its image cannot be had.
    #[error("{0}")]
    Image(Problem),
    /// There is no such job.
    #[error("there is no job {0:?}")]
    NoJob(String),
    /// Several jobs begin so.
    #[error("{0:?} is the beginning of {1} job ids")]
    Ambiguous(String, usize),
    /// Another job of the account has this name.
    #[error("the name {0:?} is taken by job {1}")]
    NameTaken(String, String),
    /// The account has as many as it may have.
    #[error("the account {0:?} has {1} jobs, and may have no more")]
    TooManyJobs(String, usize),
    /// The idempotency key came with another job before.
    #[error("the idempotency key {0:?} was used for another request")]
    KeyReused(String),
    /// It makes no sense in the job's state.
    #[error("the job is {state}: {why}")]
    Denied {
        /// Where its life is.
        state: JobState,
        /// Why that does not go together.
        why: Denial,
    },
    /// The job runs and must end first.
    #[error("the job is {0}")]
    Live(JobState),
    /// The state that is waited for cannot come any more.
    #[error("the job is {0}, and will not be what is waited for")]
    Never(JobState),
    /// It would be done by an agent in the guest, and the guest has none.
    #[error("the job boots a disk of its own, and has no agent of the node's that could {0}")]
    NoAgent(&'static str),
    /// Its root disk was removed.
    #[error("the job's root disk, the volume {0:?}, was removed")]
    NoRoot(String),
    /// Its machine has no screen.
    #[error("the job's machine has no screen")]
    NoScreen,
    /// Its machine's screen cannot be reached.
    #[error("the VMM does not show its screen")]
    Screen(#[source] io::Error),
    /// It has to do with a volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Its guest cannot mount a volume.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Its volumes are those that it starts with.
    #[error(
        "volumes of this job change with its specification alone: it is no full VM with a disk of its own"
    )]
    FixedVolumes,
    /// It cannot have the size that is asked for.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// Its machine changed, and not as much as was asked for.
    #[error("the VM has {has} now, and gets no more")]
    Partly {
        /// What it has.
        has: MachineSize,
        /// Why no more.
        source: Box<NodeError>,
    },
    /// Its machine did not change.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its guest's cloud-init cannot be told what the job says.
    #[error(transparent)]
    CloudInit(#[from] CloudInitError),
    /// It has to do with a snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The guest could not do it.
    #[error("the guest failed")]
    Guest(#[from] AgentError),
    /// The record of all jobs could not be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A job's log could not be read or written.
    #[error("cannot use {}", path.display())]
    Log {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon has this root.
    #[error("another node runs on {}", .0.display())]
    Owned(PathBuf),
    /// The node is about to end.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl Classify for NodeError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Job(error) => error.class(),
            Self::Executor(error) => error.class(),
            Self::Network(error) => error.class(),
            Self::Gpu(error) => error.class(),
            Self::Snapshot(error) => error.class(),
            Self::CloudInit(error) => error.class(),
            Self::Volume(error) => error.class(),
            Self::Mount(error) => error.class(),
            Self::Machine(error) => error.class(),
            Self::Size(error) => error.class(),
            Self::Partly { source, .. } => source.class(),
            Self::NoAgent(_) | Self::NoScreen | Self::FixedVolumes => ErrorClass::Invalid,
            Self::NoRoot(_) => ErrorClass::Conflict,
            Self::Screen(_) => ErrorClass::Unavailable,
            Self::NoNetwork => ErrorClass::Invalid,
            Self::Image(problem) => problem.class,
            Self::NoJob(_) => ErrorClass::NotFound,
            Self::TooManyJobs(..) => ErrorClass::Capacity,
            Self::Ambiguous(..)
            | Self::NameTaken(..)
            | Self::KeyReused(_)
            | Self::Denied { .. }
            | Self::Live(_)
            | Self::Never(_)
            | Self::Owned(_)
            | Self::NetworkInUse(_) => ErrorClass::Conflict,
            Self::Guest(AgentError::Failed { errno: 2, .. }) => ErrorClass::NotFound,
            Self::Guest(AgentError::Failed { .. } | AgentError::Request(_)) => ErrorClass::Invalid,
            Self::Guest(_) | Self::ShuttingDown => ErrorClass::Unavailable,
            Self::Journal(error) => error.class(),
            Self::Log { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::Capacity,
                _ => ErrorClass::Unavailable,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Job(error) => error.code(),
            Self::Executor(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Gpu(error) => error.code(),
            Self::Snapshot(error) => error.code(),
            Self::CloudInit(error) => error.code(),
            Self::Volume(error) => error.code(),
            Self::Mount(error) => error.code(),
            Self::Machine(error) => error.code(),
            Self::Size(error) => error.code(),
            Self::Partly { source, .. } => source.code(),
            Self::FixedVolumes => "volumes_fixed",
            Self::NoAgent(_) => "no_agent",
            Self::NoScreen => "no_screen",
            Self::NoRoot(_) => "root_disk_removed",
            Self::Screen(_) => "screen",
            Self::NoNetwork => "no_network",
            Self::NetworkInUse(_) => "network_in_use",
            Self::Image(_) => "image",
            Self::NoJob(_) => "no_job",
            Self::Ambiguous(..) => "ambiguous",
            Self::NameTaken(..) => "name_taken",
            Self::TooManyJobs(..) => "too_many_jobs",
            Self::KeyReused(_) => "idempotency_mismatch",
            Self::Denied { .. } => "wrong_state",
            Self::Live(_) => "job_live",
            Self::Never(_) => "wait_impossible",
            Self::Guest(_) => "guest",
            Self::Journal(error) => error.code(),
            Self::Log { .. } => "log",
            Self::Owned(_) => "root_in_use",
            Self::ShuttingDown => "shutting_down",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Job(error) => error.advice(),
            Self::Executor(error) => error.advice(),
            Self::Network(error) => error.advice(),
            Self::Gpu(error) => error.advice(),
            Self::Snapshot(error) => error.advice(),
            Self::CloudInit(error) => error.advice(),
            Self::Volume(error) => error.advice(),
            Self::Mount(error) => error.advice(),
            Self::Machine(error) => error.advice(),
            Self::Size(error) => error.advice(),
            Self::Partly { source, .. } => source.advice(),
            Self::FixedVolumes => {
                Some("Name its volumes when it is made, or make a full VM: aleph vm create.".into())
            }
            Self::NoRoot(name) => Some(format!(
                "Have it back with aleph volume undelete {name}, or remove the job."
            )),
            Self::NoScreen => Some("Only full VMs have one: aleph vm create.".into()),
            Self::Screen(_) => Some("Try again, or use aleph console.".into()),
            Self::NoAgent(_) => Some("Speak with it by aleph ssh, or by aleph console.".into()),
            Self::NoNetwork => Some(
                "Run it with --network none, or switch network.enabled on in aleph.toml.".into(),
            ),
            Self::NetworkInUse(_) => {
                Some("Start it with networks, stop those jobs, and start it without.".into())
            }
            Self::Image(problem) => problem.advice.clone(),
            Self::NoJob(_) => Some("See aleph ps -a for the jobs there are.".into()),
            Self::Ambiguous(..) => Some("Give more digits of the id, or the name.".into()),
            Self::NameTaken(..) => Some("Choose another name, or remove that job.".into()),
            Self::TooManyJobs(..) => Some("Remove jobs that ended: aleph prune --jobs.".into()),
            Self::KeyReused(_) => Some("Use a new key for each new job.".into()),
            Self::Live(_) => Some("Stop it first, or force the removal.".into()),
            Self::Denied { .. } => Some("See aleph inspect for its state.".into()),
            Self::Owned(_) => {
                Some("Stop that daemon, or give this one a root of its own with --root DIR.".into())
            }
            Self::ShuttingDown => Some("Try again once it is up.".into()),
            Self::Journal(error) => error.advice(),
            Self::Log { .. } => Some("Free some disk and try again.".into()),
            Self::Never(_) | Self::Guest(_) => None,
        }
    }
}
