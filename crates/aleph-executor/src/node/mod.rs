//! A node: jobs that outlive the daemon that took them.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | [`Node`], the handle, and what it is asked |
//! | `config` | how a node is run |
//! | `open` | from a root folder to a node: lock, journal, adoption, sweep |
//! | `entry` | the table of jobs, and what is known of one |
//! | `actor` | the actor of one job: the only writer of its record |
//! | `launch` | from an opened image to a command that runs, and its output |
//! | `recover` | what an earlier process left |
//! | `tend` | what is done every so often, and sooner where something stays |
//! | `mounts` | the volumes that jobs mount: made where they are missing, leased for each start |
//! | `volumes` | when leases of volumes end, and what was removed is purged |
//! | `snapshot` | guests that are written down, and those that go on from there |
//! | `size` | processors and memory of full VMs, which become more while their guests run |
//! | `live_volumes` | volumes that are attached, detached, grown and kept while a guest runs |
//! | `volume_merges` | layers of such volumes, merged meanwhile |
//! | `own_disk`, `words` | jobs whose guests boot disks of their own, and what those say |
//! | `supervision` | what follows an end: pure |
//! | `ledger` | what of the host is given away: pure |
//! | `health` | tries whether a job works |
//! | `gpus` | which GPUs a job's VM has |
//! | `network`, `guard` | how VMs are connected, and kept apart when others flush the rules |
//! | `stats`, `prune`, `events`, `lookup` | what is used, what is old, what happened, what is meant |
//!
//! # The order of things
//! A job is journaled before its user hears of it. Each start is journaled before its image is
//! fetched; each VM before its first object is made; each output before its guest may forget
//! it; each end before its guest is let go; and a VM's row goes after its last object. Whoever
//! opens the node after a crash at any of these points finds what to go on with.

mod actor;
mod config;
mod entry;
mod error;
mod events;
mod gpus;
mod guard;
mod health;
mod inner;
mod launch;
mod ledger;
mod live_volumes;
mod lookup;
mod mounts;
pub(crate) mod network;
mod open;
mod own_disk;
mod prune;
mod reclaim;
mod recover;
mod size;
mod snapshot;
mod stats;
mod supervision;
mod tend;
mod volume_merges;
mod volumes;
mod words;

pub use config::{NodeConfig, Overcommit};
pub use error::NodeError;
pub use events::EventReader;
pub use live_volumes::VolumeImage;
pub use mounts::MountError;
pub use size::SizeError;
pub use snapshot::SnapshotError;

use crate::computer;
use crate::executor::Boot;
use crate::functions::Host;
use crate::guest::{Agent, ExecHandle, ExecInput, ExecRequest};
use crate::hypervisor::BoxFuture;
use crate::journal::{Desired, Inserted, JobRecord, Journal};
use crate::lifecycle::Denial;
use crate::logs::{Begin as LogBegin, LogQuery, LogReader};
use crate::vm::VmError;
use crate::volumes::Volumes;
use actor::{Ask, Asked, Begin};
use aleph_types::{
    ErrorClass, Incarnation, Job, JobId, JobSpec, JobState, Migration, NodeId, Problem, SnapshotId,
    Timestamp,
};
use entry::{Entry, lock};
use inner::{Inner, event_of};
use mounts::Made;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// About how many bytes the specifications of an account's jobs may take together.
const BYTES_PER_ACCOUNT: usize = 128 << 20;

/// Where images come from. The node knows no registry and no store.
pub trait Images: Send + Sync {
    /// Opens the image and kernel of a job of `account`, fetching what its pull policy says.
    /// `uncompressed` is which kernel file the VMM boots fastest.
    fn prepare<'a>(
        &'a self,
        account: &'a str,
        spec: &'a JobSpec,
        uncompressed: bool,
    ) -> BoxFuture<'a, Result<Prepared, Problem>>;

    /// Opens a kernel for a guest with a system of its own on its disk, by name or by digest. Where there
    /// are none, none is found.
    fn kernel<'a>(
        &'a self,
        reference: &'a str,
        uncompressed: bool,
    ) -> BoxFuture<'a, Result<DiskKernel, Problem>> {
        let _ = uncompressed;
        Box::pin(async move {
            Err(Problem {
                class: ErrorClass::NotFound,
                code: "no_kernel".into(),
                message: format!("there is no kernel {reference:?}"),
                advice: None,
            })
        })
    }
}

/// A kernel for a guest with a system of its own, opened. The files are held for as long as they are open.
#[derive(Debug)]
pub struct DiskKernel {
    /// The kernel.
    pub kernel: File,
    /// Its initramfs: its user's, or one with nothing in it.
    pub initrd: File,
    /// Which one it is.
    pub digest: String,
}

/// An image and a kernel, opened.
#[derive(Debug)]
pub struct Prepared {
    /// What is booted.
    pub boot: Boot,
    /// The image's digest.
    pub digest: String,
    /// The digest of the kernel, where the job asks for one.
    pub kernel: Option<String>,
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

/// A node. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl Node {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// What functions need of it. `region` is what they are told.
    pub(crate) fn function_host(&self, region: String) -> Host {
        let executor = &self.inner.executor;
        Host {
            paths: executor.paths().clone(),
            driver: executor.shared_driver(),
            cgroups: executor.cgroups().cloned(),
            timeouts: executor.timeouts(),
            images: Arc::clone(&self.inner.images),
            region,
            network: self.inner.network.clone(),
            burials: tokio_util::task::TaskTracker::new(),
            closing: tokio_util::sync::CancellationToken::new(),
            rooms: Arc::default(),
        }
    }

    /// Its journal, for what the control plane keeps in it.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    /// Its volumes. Calls of them block.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.inner.volumes
    }

    /// Takes a job.
    ///
    /// # Errors
    /// Where it is wrong, does not fit, or its name or key is taken; nothing is kept then.
    pub async fn create(
        &self,
        spec: JobSpec,
        options: CreateOptions,
    ) -> Result<Created, NodeError> {
        spec.validate()?;
        let Some(key) = options.idempotency_key.clone() else {
            return self.insert(spec, options, None, None).await;
        };
        let mut hash = Sha256::new();
        hash.update(serde_json::to_vec(&spec).unwrap_or_default());
        hash.update([u8::from(options.start)]);
        let hash: [u8; 32] = hash.finalize().into();
        // One of many at once makes it, and the others find it.
        let _turn = self.inner.keys.turn(&key).await;
        let known = self
            .inner
            .journal
            .request(options.account.clone(), key.clone())
            .await?;
        match known {
            Some((before, _)) if before != hash => Err(NodeError::KeyReused(key)),
            Some((_, id)) => Ok(Created {
                job: self.job(id)?,
                new: false,
            }),
            None => self.insert(spec, options, Some((key, hash)), None).await,
        }
    }

    async fn insert(
        &self,
        spec: JobSpec,
        options: CreateOptions,
        key: Option<(String, [u8; 32])>,
        from: Option<SnapshotId>,
    ) -> Result<Created, NodeError> {
        if *self.inner.leaving.borrow() {
            return Err(NodeError::ShuttingDown);
        }
        let account = options.account.clone();
        let makes = spec.volumes.iter().any(|mount| mount.create.is_some());
        // One of several that want the same volume makes it, and the others find it.
        let turn = match makes {
            true => Some(self.inner.makings.turn(&account).await),
            false => None,
        };
        // Gone again where the job comes to nothing.
        let made = self.inner.expect_disks(&account, &spec).await?;
        let mut made = made.within(turn);
        let inserting = self.insert_with((spec, options), key, from, &mut made);
        let inserted = Box::pin(inserting).await;
        made.forget().await;
        inserted
    }

    /// Takes a job whose volumes are there.
    async fn insert_with(
        &self,
        (mut spec, options): (JobSpec, CreateOptions),
        key: Option<(String, [u8; 32])>,
        from: Option<SnapshotId>,
        made: &mut Made,
    ) -> Result<Created, NodeError> {
        let (id, account) = (JobId::random(), options.account);
        let executor = &self.inner.executor;
        let driver = executor.driver_of(&spec)?.name();
        // No start of it could have more.
        executor.check_cpus(&spec)?;
        computer::check(&spec)?;
        size::check_threads(&spec)?;
        let name = spec.name.take().unwrap_or_else(|| id.hostname());
        spec.name = Some(name.clone());
        let (jobs, bytes) = lock(&self.inner.jobs).held(&account);
        if jobs >= self.inner.config.jobs_per_account || bytes >= BYTES_PER_ACCOUNT {
            return Err(NodeError::TooManyJobs(account, jobs));
        }
        if options.start {
            Box::pin(self.inner.admit_gpus(&spec)).await?;
            self.inner.give(id, (&account, &name), &spec).await?;
        }
        let taken = lock(&self.inner.jobs).reserve(&name, &account, id);
        if let Err(other) = taken {
            self.inner.take_back(id);
            return Err(NodeError::NameTaken(name, other.short()));
        }
        let mut record = JobRecord {
            job: Job {
                id,
                name: name.clone(),
                account: account.clone(),
                spec,
                state: JobState::Created,
                reason: None,
                exit: None,
                health: None,
                cloud_init: None,
                impaired: None,
                incarnation: Incarnation::default(),
                restarts: 0,
                vm: None,
                driver: Some(driver),
                image_digest: None,
                kernel_digest: None,
                guest_boot_id: None,
                network: None,
                gpus: Vec::new(),
                migration: None,
                made_volumes: made.told(),
                created_at: Timestamp::now(),
                started_at: None,
                finished_at: None,
                boot_ms: None,
                generation: 1,
            },
            desired: Desired::Stop,
            in_a_row: 0,
            restart_at: None,
            run: None,
            from,
            frozen: false,
            changing: None,
            resizing: None,
        };
        record.job.migration = Migration::of(&record.job.spec);
        if options.start {
            actor::next_start(&mut record);
        }
        let mut event = event_of(&record.job);
        event.kind = "job.created".into();
        let request = key.map(|(key, hash)| (account.clone(), key, hash));
        let inserted = self
            .inner
            .journal
            .insert_job(record.clone(), request, event)
            .await;
        let undo = || {
            self.inner.take_back(id);
            lock(&self.inner.jobs).release(&name, &account, id);
        };
        match inserted {
            Ok(Inserted::New(event)) => {
                self.inner.show_volumes(made).await;
                self.inner.told(Some(&event));
            }
            Ok(Inserted::Before(id)) => {
                undo();
                return Ok(Created {
                    job: self.job(id)?,
                    new: false,
                });
            }
            Ok(Inserted::KeyReused) => {
                undo();
                return Err(NodeError::KeyReused(String::new()));
            }
            Err(error) => {
                undo();
                return Err(error.into());
            }
        }
        let job = record.job.clone();
        let entry = lock(&self.inner.jobs).insert(Entry::new(record));
        if options.start {
            entry.wake(&self.inner, Begin::Prepare);
        }
        Ok(Created { job, new: true })
    }

    /// A job.
    ///
    /// # Errors
    /// Where there is none.
    pub fn job(&self, id: JobId) -> Result<Job, NodeError> {
        Ok(Job::clone(&self.inner.entry(id)?.job()))
    }

    /// Starts a job that does not run. Returns once that is journaled.
    ///
    /// # Errors
    /// Where it does not fit now, or is about to end.
    pub async fn start(&self, id: JobId) -> Result<Job, NodeError> {
        let entry = self.inner.entry(id)?;
        let job = entry.job();
        let waits = matches!(job.state, JobState::Created | JobState::Restarting);
        if waits || job.state.is_over() {
            Box::pin(self.inner.admit_gpus(&job.spec)).await?;
        }
        self.ask_entry(&entry, Ask::Start).await
    }

    /// Ends a job and waits for that. `grace` is the time between the stop signal and SIGKILL,
    /// the job's own when absent.
    ///
    /// # Errors
    /// Where it is not known what it does.
    pub async fn stop(&self, id: JobId, grace: Option<Duration>) -> Result<Job, NodeError> {
        let again = false;
        self.end(id, Ask::Stop { grace, again }).await
    }

    /// Stops it, if it runs, and starts it.
    ///
    /// # Errors
    /// As [`Node::stop`] and [`Node::start`].
    pub async fn restart(&self, id: JobId, grace: Option<Duration>) -> Result<Job, NodeError> {
        let again = true;
        self.end(id, Ask::Stop { grace, again }).await?;
        self.start(id).await
    }

    /// Ends a job's VM now (signal 9) and waits for that, or sends its command another signal.
    ///
    /// # Errors
    /// Where it does not run.
    pub async fn kill(&self, id: JobId, signal: u8) -> Result<Job, NodeError> {
        if signal == 9 {
            return self.end(id, Ask::Kill).await;
        }
        let entry = self.inner.entry(id)?;
        expect_agent(&entry, "send its command a signal")?;
        let input = entry.live().and_then(|live| live.input);
        match input {
            Some(input) if entry.job().state == JobState::Running => input.signal(signal)?,
            _ => return Err(denied(&entry, Denial::NotRunning)),
        }
        self.job(id)
    }

    /// Freezes its guest.
    ///
    /// # Errors
    /// Where it does not run.
    pub async fn pause(&self, id: JobId) -> Result<Job, NodeError> {
        self.ask(id, Ask::Pause).await
    }

    /// Lets its guest go on.
    ///
    /// # Errors
    /// Where it is not paused.
    pub async fn resume(&self, id: JobId) -> Result<Job, NodeError> {
        self.ask(id, Ask::Resume).await
    }

    /// Removes a job with its logs; one that runs only by `force`, which kills it.
    ///
    /// # Errors
    /// Where it runs, or something cannot be removed.
    pub async fn destroy(&self, id: JobId, force: bool) -> Result<(), NodeError> {
        let entry = self.inner.entry(id)?;
        let mut view = entry.view.subscribe();
        self.ask(id, Ask::Destroy { force }).await?;
        let mut leaving = self.inner.leaving.subscribe();
        tokio::select! {
            _ = view.wait_for(|job| job.state == JobState::Destroyed) => Ok(()),
            _ = leaving.wait_for(|leaving| *leaving) => Err(NodeError::ShuttingDown),
        }
    }

    /// Waits until a job is in one of these states, for ever: callers bound it. A job that is
    /// removed meanwhile is `Destroyed`.
    ///
    /// # Errors
    /// [`NodeError::Never`] where it is over, and only a new request could change that.
    pub async fn wait(&self, id: JobId, states: &[JobState]) -> Result<Job, NodeError> {
        let entry = self.inner.entry(id)?;
        let mut view = entry.view.subscribe();
        let found = view
            .wait_for(|job| states.contains(&job.state) || job.state.is_over())
            .await
            .map(|job| Job::clone(&job))
            .map_err(|_| NodeError::ShuttingDown)?;
        // What was removed, or what waits to be removed, can still be waited for.
        if states.contains(&found.state) {
            return Ok(found);
        }
        if found.state != JobState::Destroyed && states.contains(&JobState::Destroyed) {
            return view
                .wait_for(|job| states.contains(&job.state))
                .await
                .map(|job| Job::clone(&job))
                .map_err(|_| NodeError::ShuttingDown);
        }
        Err(NodeError::Never(found.state))
    }

    /// Reads a job's log.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn logs(&self, id: JobId, query: LogQuery) -> Result<LogReader, NodeError> {
        self.read_log(id, query, LogBegin::Oldest).await
    }

    async fn read_log(
        &self,
        id: JobId,
        query: LogQuery,
        begin: LogBegin,
    ) -> Result<LogReader, NodeError> {
        let entry = self.inner.entry(id)?;
        let dir = self.inner.log_dir(id);
        let (tell, path) = (entry.tell.subscribe(), dir.clone());
        // A tail reads all that there is.
        let opened = tokio::task::spawn_blocking(move || LogReader::open(dir, query, begin, tell));
        opened
            .await
            .map_err(std::io::Error::other)
            .and_then(|opened| opened)
            .map_err(|source| NodeError::Log { path, source })
    }

    /// Its command's output, from the beginning of this incarnation or from now on, and a way
    /// to feed it.
    ///
    /// # Errors
    /// Where its log cannot be read.
    pub async fn attach(&self, id: JobId, from_beginning: bool) -> Result<Attachment, NodeError> {
        let entry = self.inner.entry(id)?;
        let begin = if from_beginning {
            LogBegin::Incarnation(entry.job().incarnation)
        } else {
            LogBegin::Now
        };
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        Ok(Attachment {
            output: self.read_log(id, query, begin).await?,
            input: entry.live().and_then(|live| live.input),
        })
    }

    /// Its main command's input and terminal, while it runs.
    ///
    /// # Errors
    /// Where there is no such job.
    pub fn input(&self, id: JobId) -> Result<Option<ExecInput>, NodeError> {
        Ok(self.inner.entry(id)?.live().and_then(|live| live.input))
    }

    /// Runs a command in its guest.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn exec(&self, id: JobId, request: &ExecRequest) -> Result<ExecHandle, NodeError> {
        Ok(self.agent(id)?.exec(request)?)
    }

    /// The agent of its guest, for files.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn agent(&self, id: JobId) -> Result<Agent, NodeError> {
        let entry = self.inner.entry(id)?;
        expect_agent(&entry, "run commands or move files")?;
        let live = entry.live();
        match entry.job().state {
            JobState::Running | JobState::Stopping => {}
            JobState::Paused => return Err(denied(&entry, Denial::Paused)),
            _ => return Err(denied(&entry, Denial::NotRunning)),
        }
        if live.as_ref().is_some_and(|live| live.stands_still) {
            return Err(denied(&entry, Denial::Busy));
        }
        let agent = live.map(|live| live.vm.agent());
        match agent {
            Some(Ok(agent)) => Ok(agent),
            Some(Err(VmError::Denied(why))) => Err(denied(&entry, why)),
            _ => Err(denied(&entry, Denial::NotRunning)),
        }
    }

    /// A new connection to the screen of its machine, over which the VMM speaks RFB (RFC 6143).
    ///
    /// # Errors
    /// Where it does not run, or has no screen.
    pub async fn screen(&self, id: JobId) -> Result<tokio::net::UnixStream, NodeError> {
        let entry = self.inner.entry(id)?;
        let vmm = entry.live().and_then(|live| live.vm.vmm());
        let vmm = vmm.ok_or_else(|| denied(&entry, Denial::NotRunning))?;
        let display = vmm.display().ok_or(NodeError::NoScreen)?;
        display.connect().await.map_err(NodeError::Screen)
    }

    /// Lets go of all guests, which run on, and ends.
    pub async fn shutdown(&self) {
        self.inner.leaving.send_replace(true);
        // Each actor hears it at its next wait; none holds its VM after that.
        for _ in 0..500 {
            let live = lock(&self.inner.jobs).all().any(|e| e.live().is_some());
            if !live {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.inner.remove_remains().await;
        self.inner.close_network().await;
    }

    async fn ask(&self, id: JobId, ask: Ask) -> Result<Job, NodeError> {
        let entry = self.inner.entry(id)?;
        self.ask_entry(&entry, ask).await
    }

    async fn ask_entry(&self, entry: &Arc<Entry>, ask: Ask) -> Result<Job, NodeError> {
        let (answer, answered) = oneshot::channel();
        entry.send(&self.inner, Asked { ask, answer });
        match answered.await {
            Ok(answer) => Ok(Job::clone(&*answer?)),
            Err(_) if entry.job().state == JobState::Destroyed => {
                Err(NodeError::NoJob(entry.id.to_string()))
            }
            Err(_) => Err(NodeError::ShuttingDown),
        }
    }

    /// Asks for an end, and waits until nothing of this start of the job runs.
    async fn end(&self, id: JobId, ask: Ask) -> Result<Job, NodeError> {
        let entry = self.inner.entry(id)?;
        let (mut view, incarnation) = (entry.view.subscribe(), entry.job().incarnation);
        self.ask_entry(&entry, ask).await?;
        let mut leaving = self.inner.leaving.subscribe();
        let over = view.wait_for(|job| {
            let ended = !job.state.is_live() && job.state != JobState::Destroying;
            ended || job.incarnation != incarnation
        });
        tokio::select! {
            job = over => job.map(|job| Job::clone(&job)).map_err(|_| NodeError::ShuttingDown),
            _ = leaving.wait_for(|leaving| *leaving) => Err(NodeError::ShuttingDown),
        }
    }
}

/// Refuses what an agent would do in a guest that has none.
fn expect_agent(entry: &Entry, what: &'static str) -> Result<(), NodeError> {
    match entry.job().spec.has_own_disk() {
        true => Err(NodeError::NoAgent(what)),
        false => Ok(()),
    }
}

fn denied(entry: &Entry, why: Denial) -> NodeError {
    NodeError::Denied {
        state: entry.job().state,
        why,
    }
}
