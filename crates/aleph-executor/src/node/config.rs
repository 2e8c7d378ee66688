//! How a node is run.

use crate::executor::ExecutorConfig;
use crate::gpu::{HostTree, Nvml};
use crate::logs::LogLimits;
use crate::paths::Paths;
use crate::volumes::VolumesConfig;
use aleph_types::MiB;
use aleph_vm_networking::NetworkConfig;
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
    /// Processes and threads that a VMM may have, where its job does not say, and its CPUs do not need more.
    pub pids: u32,
    /// How long logs may get.
    pub logs: LogLimits,
    /// The time between two sweeps.
    pub sweep_interval: Duration,
    /// How long a guest has nothing to do before the memory that it could do without is taken back,
    /// where its VMM can; `None` is never.
    pub reclaim_after: Option<Duration>,
    /// How many events are kept.
    pub events_kept: u64,
    /// How many jobs an account may have at a time, those that ended included.
    pub jobs_per_account: usize,
    /// How VMs are connected; `None` connects none.
    pub network: Option<NetworkConfig>,
    /// The host whose GPUs jobs have.
    pub host_tree: HostTree,
    /// How long a job waits for others whose GPUs are just bound or reset: eight may take a minute and more.
    pub gpu_patience: Duration,
    /// Who says what NVIDIA's driver knows of them. `None` is its library for this host, and nobody for a tree
    /// that was recorded: it is of another host.
    pub nvml: Option<Arc<dyn Nvml>>,
    /// How volumes are kept.
    pub volumes: VolumesConfig,
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
            reclaim_after: Some(Duration::from_secs(600)),
            events_kept: 100_000,
            jobs_per_account: 20_000,
            network: None,
            host_tree: HostTree::default(),
            gpu_patience: Duration::from_secs(100),
            nvml: None,
            volumes: VolumesConfig::default(),
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
