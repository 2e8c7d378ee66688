//! From a root folder to a node.

use super::actor::{Ask, Asked, Begin};
use super::entry::{Entry, Table, lock};
use super::inner::{Inner, log_journal};
use super::ledger::Ledger;
use super::{Images, Node, NodeConfig, NodeError};
use crate::drivers::Drivers;
use crate::executor::{Executor, ExecutorError};
use crate::gpu::{Gpus, HostTree, NvmlReader};
use crate::host;
use crate::hypervisor::Driver;
use crate::journal::{Desired, JobRecord, Journal, VmRow};
use crate::place::Place;
use crate::process::boot_id;
use crate::sweep::sweep;
use aleph_types::{JobState, Restart, VmId};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

impl Node {
    /// Opens the node of these folders: takes its lock, reads its journal, takes over the VMs
    /// that run and sweeps what nobody owns. Adoption goes on in the background: a job is in
    /// the state that its record says until its guest has answered.
    ///
    /// # Errors
    /// [`NodeError::Owned`] where another daemon has this root; others where the folders, the
    /// journal or the host cannot be used.
    pub async fn open(config: NodeConfig, images: Arc<dyn Images>) -> Result<Self, NodeError> {
        let executor = Executor::unswept(config.paths.clone(), &config.executor).await?;
        if let Some(choice) = executor.drivers().choice() {
            let driver = executor.driver().name();
            tracing::info!(driver, why = choice.why, "the node runs VMs");
            if let Some(doubt) = choice.doubt {
                tracing::warn!(driver, doubt, "VMs may not run");
            }
        }
        Self::open_over(config, images, executor).await
    }

    /// The same over a driver of the caller's.
    ///
    /// # Errors
    /// As [`Node::open`].
    pub async fn with_driver(
        config: NodeConfig,
        images: Arc<dyn Images>,
        driver: Arc<dyn Driver>,
    ) -> Result<Self, NodeError> {
        let timeouts = config.executor.timeouts;
        let drivers = Drivers::only(driver);
        let executor = Executor::unswept_with(config.paths.clone(), drivers, timeouts)?;
        Self::open_over(config, images, executor).await
    }

    async fn open_over(
        config: NodeConfig,
        images: Arc<dyn Images>,
        executor: Executor,
    ) -> Result<Self, NodeError> {
        let state = config.paths.state().to_owned();
        let owned = own(&state).await?;
        host::raise_file_limit();
        let journal = Journal::open(&state.join("state.db"))?;
        let host_boot = boot_id().map_err(|source| ExecutorError::Host {
            what: "read the host's boot id".into(),
            source,
        })?;
        let (id, newest) = (journal.node_id().await?, journal.newest_event().await?);
        let records = journal.jobs().await?;
        let rows = journal.vms().await?;
        let connected = rows.iter().filter(|row| row.network.is_some()).count();
        if config.network.is_none() && connected > 0 {
            return Err(NodeError::NetworkInUse(connected));
        }
        let volumes = super::volumes::open(&config).await?;
        let network = config.network.as_ref();
        let watch = network.and_then(super::guard::listen);
        let network = network.map(|network| super::network::open(network, &rows, &records));
        let (network, forwarder) = network.transpose()?.unzip();
        let gpus = Gpus::new(config.host_tree.clone(), config.executor.gpu.clone())
            .with_patience(config.gpu_patience);
        let gpus = match &config.nvml {
            Some(nvml) => gpus.asking(Arc::clone(nvml)),
            None if config.host_tree == HostTree::default() => gpus.asking(NvmlReader::this()),
            None => gpus,
        };
        let inner = Arc::new(Inner {
            id,
            executor,
            images,
            journal,
            jobs: Mutex::new(Table::default()),
            ledger: Mutex::new(Ledger::default()),
            keys: super::lookup::Turns::default(),
            makings: super::lookup::Turns::default(),
            live: super::lookup::Turns::default(),
            agents: super::lookup::Turns::default(),
            settling: Mutex::default(),
            merges: super::volume_merges::Merges::default(),
            gpus: Arc::new(gpus),
            recovers_gpus: AtomicBool::new(false),
            network,
            reserved: Mutex::default(),
            volumes,
            snapshots: Mutex::default(),
            newest_event: watch::Sender::new(newest),
            remains: watch::Sender::default(),
            leaving: watch::Sender::new(false),
            began: Instant::now(),
            host_boot,
            config,
            _lock: owned,
        });
        inner.warn_of_few_connections();
        inner.recover_snapshots(&records).await?;
        // Before a job can make one.
        inner.sweep_machines();
        inner.recover(records);
        inner.sweep().await;
        inner.tend_volumes().await;
        inner.remove_stray_logs();
        tokio::spawn(super::network::reap(Arc::downgrade(&inner)));
        if let (Some(network), Some(forwarder)) = (inner.network.clone(), forwarder) {
            let leaving = inner.leaving.subscribe();
            tokio::spawn(super::network::answer(forwarder, network, leaving));
        }
        if let Some(watch) = watch {
            let leaving = inner.leaving.subscribe();
            tokio::spawn(super::guard::guard(Arc::downgrade(&inner), watch, leaving));
        }
        let after = inner.config.reclaim_after;
        tokio::spawn(super::reclaim::reclaim(Arc::downgrade(&inner), after));
        tokio::spawn(super::tend::tend(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }
}

/// How long a daemon that was killed may take to be gone: a child that it was starting has its lock
/// until it is another program.
const GOING: Duration = Duration::from_secs(1);

/// The lock that keeps a second daemon away from a root.
async fn own(state: &Path) -> Result<File, NodeError> {
    let path = state.join("node.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| ExecutorError::Host {
            what: format!("open {}", path.display()),
            source,
        })?;
    let began = Instant::now();
    let locked = loop {
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        if locked != Err(rustix::io::Errno::WOULDBLOCK) || began.elapsed() > GOING {
            break locked;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    match locked {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(NodeError::Owned(state.to_owned())),
        Err(error) => Err(ExecutorError::Host {
            what: format!("lock {}", path.display()),
            source: error.into(),
        }
        .into()),
    }
}

impl Inner {
    /// Takes the places of all VMs that the journal knows, so that no sweep does, and has each
    /// job's actor look at what it left.
    fn recover(self: &Arc<Self>, records: Vec<JobRecord>) {
        for mut record in records {
            let job = &record.job;
            let live = job.state.is_live() || job.state == JobState::Restarting;
            if live {
                let pages = self.pages_at_hand(job.id, &job.spec);
                lock(&self.ledger).note(job.id, &job.spec, pages);
            }
            let place = job.vm.map(|vm| self.take_place(vm));
            let begin = begins(&record) || place.is_some();
            if job.state.is_live() && job.vm.is_some() {
                record.job.state = match (job.state, record.desired) {
                    (JobState::Running | JobState::Paused, _) => JobState::Unknown,
                    (state, _) => state,
                };
            }
            let entry = lock(&self.jobs).insert(Entry::new(record));
            if begin {
                entry.wake(self, Begin::Recover(place.flatten()));
            }
        }
    }

    /// `None` where nothing of the VM was ever made, or all of it is gone.
    fn take_place(&self, vm: VmId) -> Option<Result<Place, VmId>> {
        let paths = &self.config.paths;
        if !paths.vm_state(vm).exists() && !paths.vm_run(vm).exists() {
            return None;
        }
        Some(match Place::orphan(paths, self.executor.cgroups(), vm) {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(vm),
            Err(error) => {
                tracing::error!(%vm, %error, "a VM's folder cannot be looked at");
                Err(vm)
            }
        })
    }

    /// Removes what nobody owns, and the rows of VMs that are gone. VMs that another process
    /// held are looked at again.
    pub(super) async fn sweep(self: &Arc<Self>) {
        self.sweep_vms().await;
        self.sweep_network().await;
        self.recover_gpus();
        for row in self.forget_strays().await {
            // One that another process held may be free by now.
            let entry = lock(&self.jobs).get(row.job);
            if let Some(entry) = entry.filter(|e| e.live().is_none() && e.job().vm.is_some()) {
                let (answer, _) = oneshot::channel();
                let ask = Ask::Look;
                entry.send(self, Asked { ask, answer });
            }
        }
    }

    /// Removes the places that nobody owns.
    pub(super) async fn sweep_vms(&self) {
        let owned = || {
            let jobs = lock(&self.jobs);
            jobs.all().filter_map(|entry| entry.job().vm).collect()
        };
        sweep(self.executor.grounds(), Some(&owned)).await;
    }

    /// Takes back what is held for VMs that are gone, and gives the rows that there were.
    pub(super) async fn forget_strays(&self) -> Vec<VmRow> {
        let paths = &self.config.paths;
        let rows = self.journal.vms().await.unwrap_or_else(|error| {
            log_journal(&error);
            Vec::new()
        });
        for row in &rows {
            let there = paths.vm_state(row.vm).exists() || paths.vm_run(row.vm).exists();
            if !there && self.is_stray(row) {
                self.forget_stray(row).await;
            }
        }
        rows
    }

    /// Whether no job knows of a VM, nor is about to make it. What is in memory counts: where a
    /// journal could not be written, its record of the job is behind.
    fn is_stray(&self, row: &VmRow) -> bool {
        let Some(entry) = lock(&self.jobs).get(row.job) else {
            return true;
        };
        let job = entry.job();
        let over = job.state.is_over() || job.state == JobState::Restarting;
        job.vm != Some(row.vm) && (over || job.incarnation != row.incarnation)
    }

    /// Removes what is left of a VM without a place: its network, and then its row.
    async fn forget_stray(&self, row: &VmRow) {
        if let Err(error) = self.disconnect(row.vm).await {
            return tracing::warn!(vm = %row.vm, error, "a network without VM stays");
        }
        match self.journal.forget_vm(row.vm, None, None).await {
            Ok(_) => self.release(row.vm),
            Err(error) => log_journal(&error),
        }
    }

    /// Logs of jobs that are no more: a node died while it removed one.
    fn remove_stray_logs(&self) {
        let known: HashSet<_> = lock(&self.jobs)
            .all()
            .map(|entry| self.log_dir(entry.id))
            .collect();
        let dir = self.config.paths.state().join("logs");
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !known.contains(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whether there is something to do for a record without a VM.
fn begins(record: &JobRecord) -> bool {
    let job = &record.job;
    let always = job.spec.restart.policy == Restart::Always && job.incarnation.get() > 0;
    match job.state {
        JobState::Created | JobState::Exited | JobState::Failed => {
            record.desired == Desired::Destroy || always
        }
        _ => true,
    }
}
