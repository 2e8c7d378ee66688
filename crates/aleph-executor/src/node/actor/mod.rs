//! The actor of one job: the only writer of its record.
//!
//! It journals what it is about to do, has it done by tasks that report back as notes, and
//! decides by [`supervision`] what follows an end. A note carries the incarnation that it is
//! about; one of an earlier start is late, and ignored.
//!
//! | phase | what runs | what comes next |
//! | --- | --- | --- |
//! | `Idle` | nothing: created, or over | a start, a removal |
//! | `Preparing` | the image is fetched | a VM, or a failure |
//! | `Fitting` | its GPUs are made ready | a VM, or a failure |
//! | `Live` | a VM | its end, and the removal of what it had |
//! | `Freeing` | its GPUs are taken back | what follows an end |
//! | `Waiting` | nothing, until the back-off is over | a start |
//! | `Held` | a VM that another process holds | another look |
//!
//! # Failure cases
//! What cannot be journaled is not begun. A VM whose objects cannot be removed keeps its row;
//! a sweep that comes soon removes both. A node that dies between any two steps finds the row of each VM
//! that it may have begun, and goes on from there ([`Begin::Recover`]).
//!
//! | file | what it does |
//! | --- | --- |
//! | this one | the loop, what tasks report, from an image to a VM's row |
//! | `fitting` | from there to the VM, with the job's GPUs |
//! | `requests` | what a job is asked |
//! | `endings` | what follows an end, and removal |
//! | `snapshot` | a guest that is written down |
//! | `recovery` | what an earlier process left |
//! | `volumes` | volumes that are attached and detached |
//! | `size` | processors and memory that are added |

mod endings;
mod fitting;
mod recovery;
mod requests;
mod size;
mod snapshot;
mod volumes;

pub(super) use volumes::{Detach, VolumeAsk};

use super::entry::{Entry, Live};
use super::inner::{Inner, event_of, log_journal};
use super::live_volumes::Changed;
use super::mounts::Mounts;
use super::size::Resized;
use super::snapshot::{Written, image_of};
use super::supervision::End;
use super::{NodeError, Prepared, health, launch, own_disk, words};
use crate::guest::{ExecHandle, ExecInput};
use crate::hypervisor::HostDevices;
use crate::journal::{Desired, JobRecord, SnapshotRow, VmRow};
use crate::lifecycle::Outcome;
use crate::place::Place;
use crate::vm::Vm;
use aleph_types::{
    CloudInit, CloudInitState, ExitStatus, Health, Incarnation, Job, JobResize, JobState, Problem,
    Timestamp, VmId,
};
use fitting::{After, Begun};
use size::Resizing;
use snapshot::UnderWay;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use volumes::Changing;

/// What a job is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Start,
    /// `again`: it starts again at once, so that it is not removed in between.
    Stop {
        grace: Option<Duration>,
        again: bool,
    },
    Kill,
    Pause,
    Resume,
    Destroy {
        force: bool,
    },
    /// Write its guest down. The answer comes when that is done.
    Snapshot {
        row: SnapshotRow,
        /// Whether it ends there.
        stop: bool,
    },
    /// Change the volumes that it has. The answer comes when that is done.
    Volume(Box<VolumeAsk>),
    /// Have another size. The answer comes when that is done.
    Resize(JobResize),
    /// Another look at a VM that another process held.
    Look,
}

/// A question, and who waits for its answer.
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) answer: oneshot::Sender<Result<Arc<Job>, NodeError>>,
}

/// What an actor does first.
pub(super) enum Begin {
    /// Nothing: it is asked something.
    Nothing,
    /// Its record says that it is about to be started.
    Prepare,
    /// An earlier process left this behind; the place is that of its VM, if that could be taken.
    Recover(Option<Result<Place, VmId>>),
}

/// What tasks report.
pub(super) enum Note {
    Prepared(Result<Parts, Problem>),
    /// Its GPUs are ready, or it cannot have them.
    Fitted(Box<Result<HostDevices, NodeError>>),
    /// Its GPUs are taken back, or cannot be now.
    Freed(bool),
    /// The main command was handed over.
    Began(ExecHandle),
    /// The guest could not be made ready for it.
    Unfit(String),
    /// The guest is ready for commands.
    Ready {
        boot: Option<Duration>,
        boot_id: Option<String>,
    },
    /// The main command could not be started in the guest.
    Refused(String),
    /// The main command ended, and all that it wrote is stored. Whoever is told by `stored`
    /// that its end is, too, lets the guest forget it.
    Exited {
        status: ExitStatus,
        stored: oneshot::Sender<()>,
    },
    /// The VMM ended.
    Ended(Outcome),
    /// What the host held for it is gone, or cannot be removed.
    Removed(Outcome, Result<(), String>),
    Health(Health),
    /// What the guest says of its cloud-init, and who is told that it is stored.
    CloudInit(CloudInit, oneshot::Sender<()>),
    /// What of its machine has broken; nothing, where it is whole.
    Impaired(Option<String>),
    /// What became of a change of its volumes.
    Volume(Box<Changed>),
    /// What became of a change of its size.
    Resized(Box<Resized>),
    /// The guest was written down, or not. Told of whatever start of the job.
    Written(Box<Written>),
}

/// What a VM is made of.
pub(super) enum Parts {
    /// An image and a kernel, and volumes.
    Image(Box<(Prepared, Mounts)>),
    /// Disks of its own.
    Disks(Box<own_disk::Parts>),
}

pub(super) type Notes = mpsc::UnboundedSender<(Incarnation, Note)>;

/// A VM under way.
pub(super) struct Run {
    pub(super) vm: Vm,
    /// Why it is ended, where that is not its user's wish.
    verdict: Option<String>,
    /// When it has run for too long.
    deadline: Option<Instant>,
    pump: Option<JoinHandle<()>>,
    /// The stream of its main command, and how much of that command's output is stored.
    main: Option<(u32, watch::Receiver<u64>)>,
    /// What is done beside the actor; dropped with it.
    tasks: JoinSet<()>,
}

impl Run {
    fn kill(&mut self) {
        let vm = self.vm.clone();
        self.tasks.spawn(async move {
            vm.begun().await;
            if let Err(error) = vm.kill().await {
                tracing::debug!(vm = %vm.id(), %error, "the VM is not killed");
            }
        });
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

enum Phase {
    Idle,
    Preparing(JoinHandle<()>),
    Fitting(Box<Begun>),
    Live(Run),
    Freeing(Box<After>),
    Waiting(Instant),
    Held(VmId),
}

/// The actor of one job.
pub(super) struct Actor {
    pub(super) inner: Arc<Inner>,
    pub(super) entry: Arc<Entry>,
    pub(super) record: JobRecord,
    phase: Phase,
    pub(super) notes: Notes,
    /// The snapshot of its guest that is under way.
    snapshot: Option<UnderWay>,
    /// The change of its volumes that is under way.
    changing: Option<Changing>,
    /// The change of its size that is under way.
    resizing: Option<Resizing>,
    /// Whether it is stopped only to be started again.
    again: bool,
    /// Whether the guest of the start that ends wrote out what outlives it.
    in_order: bool,
    gone: bool,
}

impl Actor {
    pub(super) fn spawn(
        inner: &Arc<Inner>,
        entry: &Arc<Entry>,
        begin: Begin,
    ) -> mpsc::UnboundedSender<Asked> {
        let (sender, inbox) = mpsc::unbounded_channel();
        let (notes, note_inbox) = mpsc::unbounded_channel();
        let actor = Self {
            inner: Arc::clone(inner),
            entry: Arc::clone(entry),
            record: entry.record(),
            phase: Phase::Idle,
            notes,
            snapshot: None,
            changing: None,
            resizing: None,
            again: false,
            in_order: false,
            gone: false,
        };
        tokio::spawn(actor.run(begin, inbox, note_inbox));
        sender
    }

    async fn run(
        mut self,
        begin: Begin,
        mut inbox: mpsc::UnboundedReceiver<Asked>,
        mut notes: mpsc::UnboundedReceiver<(Incarnation, Note)>,
    ) {
        let mut leaving = self.inner.leaving.subscribe();
        match begin {
            Begin::Nothing => {}
            Begin::Prepare => self.prepare(),
            Begin::Recover(place) => self.recover(place).await,
        }
        loop {
            if self.gone {
                return self.answer_rest(&mut inbox);
            }
            let idles = matches!(self.phase, Phase::Idle) && self.snapshot.is_none();
            if idles && self.entry.retire(&inbox) {
                return;
            }
            let due = self.due();
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = left(&mut leaving) => return self.leave(),
                Some((incarnation, note)) = notes.recv() => {
                    let counts = matches!(note, Note::Written(_));
                    if counts || incarnation == self.record.job.incarnation {
                        self.noted(note).await;
                    }
                }
                Some(asked) = inbox.recv() => self.asked(asked).await,
                () = timer => self.elapsed().await,
            }
        }
    }

    /// The node ends, and this job's guest runs on.
    fn leave(mut self) {
        self.entry.with_live(|live| *live = None);
        if let Some(snapshot) = &self.snapshot {
            snapshot.given_up.cancel();
        }
        self.changing = None;
        self.resizing = None;
        if let Phase::Preparing(task) = &self.phase {
            task.abort();
        }
        self.phase = Phase::Idle;
    }

    /// Whether somebody wants it to end.
    fn is_to_end(&self) -> bool {
        matches!(self.record.desired, Desired::Stop | Desired::Destroy)
    }

    fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting(at) => Some(*at),
            Phase::Live(run) => run.deadline,
            _ => None,
        }
    }

    async fn elapsed(&mut self) {
        match &mut self.phase {
            Phase::Waiting(_) => {
                if let Err(error) = self.begin().await {
                    self.fail(&error.to_string()).await;
                }
            }
            Phase::Live(run) => {
                run.deadline = None;
                let limit = self.record.job.spec.deadline_seconds.unwrap_or(0);
                let why = format!("it ran longer than its deadline of {limit} s");
                run.verdict = Some(why.clone());
                self.wants_stop();
                self.end(Some(why), None).await;
            }
            _ => {}
        }
    }

    /// Fetches the image, or leases the disks.
    fn prepare(&mut self) {
        if self.record.job.spec.has_own_disk() {
            let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
            let record = self.record.clone();
            self.phase = Phase::Preparing(tokio::spawn(async move {
                let prepared = inner.prepare_disks(&record).await;
                let prepared = prepared.map(|parts| Parts::Disks(Box::new(parts)));
                let note = Note::Prepared(prepared);
                let _ = notes.send((record.job.incarnation, note));
            }));
            return;
        }
        let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
        let job = &self.record.job;
        let account = job.account.clone();
        let mut spec = match self.record.from.map(|id| self.inner.snapshot(id)) {
            None => job.spec.clone(),
            Some(Ok(kept)) => image_of(&kept.record),
            // The launch says so.
            Some(Err(_)) => job.spec.clone(),
        };
        // The kernel that its name meant at the first start, whatever it means by now.
        if spec.kernel.is_some() && job.kernel_digest.is_some() {
            spec.kernel.clone_from(&job.kernel_digest);
        }
        let (incarnation, record) = (job.incarnation, self.record.clone());
        self.phase = Phase::Preparing(tokio::spawn(async move {
            let driver = inner.executor.driver_of(&spec).ok();
            let uncompressed = driver.is_some_and(|driver| driver.wants_uncompressed_kernel());
            let prepared = match inner.images.prepare(&account, &spec, uncompressed).await {
                Ok(prepared) => inner.prepare_mounts(&record).await.map(|mounts| {
                    let parts = (prepared, mounts);
                    Parts::Image(Box::new(parts))
                }),
                Err(problem) => Err(problem),
            };
            let _ = notes.send((incarnation, Note::Prepared(prepared)));
        }));
    }

    async fn noted(&mut self, note: Note) {
        match note {
            // It carries all that a VM is made of.
            Note::Prepared(Ok(prepared)) => Box::pin(self.launch(prepared)).await,
            Note::Prepared(Err(problem)) if matches!(self.phase, Phase::Preparing(_)) => {
                match self.is_to_end() {
                    true => self.rest(End::Stopped, None).await,
                    false => self.fail(&problem.message).await,
                }
            }
            Note::Prepared(Err(_)) => {}
            Note::Fitted(devices) => Box::pin(self.fitted(*devices)).await,
            Note::Freed(freed) => Box::pin(self.freed(freed)).await,
            Note::Began(handle) => self.began(handle),
            Note::Unfit(why) => {
                if let Phase::Live(run) = &mut self.phase {
                    run.verdict.get_or_insert(why);
                    run.kill();
                }
            }
            Note::Ready { boot, boot_id } => self.ready(boot, boot_id).await,
            Note::Refused(why) => self.record.job.reason = Some(why),
            Note::Exited { status, stored } => {
                self.record.job.exit = Some(status);
                let record = self.record.clone();
                if self.save_quietly("job.exit", record).await.is_ok() {
                    let _ = stored.send(());
                }
            }
            Note::Ended(outcome) => self.ended(outcome),
            Note::Removed(outcome, removed) => self.removed(outcome, removed).await,
            Note::Health(health) => self.health(health).await,
            Note::CloudInit(found, stored) => self.cloud_init(found, stored).await,
            Note::Impaired(found) => self.impaired(found).await,
            Note::Volume(changed) => self.volume_changed(*changed).await,
            Note::Resized(resized) => self.resized(*resized).await,
            Note::Written(written) => self.written(*written).await,
        }
    }

    /// Makes a VM of what was prepared. Its row is in the journal before anything of it is on
    /// the host.
    async fn launch(&mut self, parts: Parts) {
        if !matches!(self.phase, Phase::Preparing(_)) {
            // Its start was given up meanwhile.
            return self.inner.end_leases(&self.record, false).await;
        }
        if self.is_to_end() {
            // Its disks are whole now.
            drop(parts);
            return self.rest(End::Stopped, None).await;
        }
        let job = &self.record.job;
        let host_boot = &self.inner.host_boot;
        let (run, kept) = match self.record.from {
            None => match match &parts {
                Parts::Image(parts) => {
                    launch::resolve(&job.spec, &parts.0, &parts.1.requests, host_boot)
                }
                Parts::Disks(_) => own_disk::resolve(&job.spec, host_boot),
            } {
                Ok(run) => (run, None),
                Err(invalid) => return self.fail(&invalid.to_string()).await,
            },
            Some(id) => match self.inner.to_restore(id, &job.spec) {
                Ok((run, kept)) => (run, Some(kept)),
                Err(error) => {
                    // Another start would not find it either.
                    self.wants_stop();
                    return self.fail(&error.to_string()).await;
                }
            },
        };
        // Kept when the start was asked for; a start that goes on after a crash asks now.
        let job_id = job.id;
        let owner = (job.account.as_str(), job.name.as_str());
        if let Err(error) = self.inner.reserve(job_id, owner, &job.spec) {
            return self.fail(&crate::vm::chain(&error)).await;
        }
        let (vm_id, network) = match self.inner.reserved(job_id) {
            Some((vm, claim)) => (vm, Some(claim)),
            None => (self.inner.free_vm_id(), None),
        };
        let mut record = self.record.clone();
        record.job.vm = Some(vm_id);
        // That of the node that took the job may have been another one.
        let driver = self.inner.executor.driver_of(&record.job.spec);
        record.job.driver = driver.ok().map(|driver| driver.name());
        record.job.network = network
            .as_ref()
            .and_then(|claim| self.inner.view(vm_id, claim));
        record.job.state = JobState::Starting;
        (record.job.image_digest, record.job.kernel_digest) = match &parts {
            Parts::Image(parts) => (Some(parts.0.digest.clone()), parts.0.kernel.clone()),
            Parts::Disks(parts) => (None, parts.kernel_digest()),
        };
        record.job.generation += 1;
        record.run = Some(run.clone());
        record.frozen = kept.is_some();
        let row = VmRow {
            vm: vm_id,
            job: record.job.id,
            incarnation: record.job.incarnation,
            network,
        };
        let has_network = row.network.is_some();
        let event = event_of(&record.job);
        match self
            .inner
            .journal
            .intend_vm(record.clone(), row, Some(event))
            .await
        {
            Ok(event) => self.inner.told(event.as_ref()),
            Err(error) => {
                self.inner.release(vm_id);
                return self.fail(&crate::vm::chain(&error)).await;
            }
        }
        self.record = record;
        self.entry.publish(&self.record);
        let cpus = run.effective.resources.cpus;
        let connected = match has_network {
            true => self.inner.connect(vm_id, cpus).await,
            false => Ok((Vec::new(), None)),
        };
        let begun = match connected {
            Ok(connected) => Begun {
                run,
                parts,
                kept,
                connected,
            },
            Err(error) => return self.unbuilt(&error.into()).await,
        };
        self.fit(begun).await;
    }

    fn goes_live(&mut self, vm: Vm, tasks: JoinSet<()>) {
        self.entry.with_live(|live| {
            *live = Some(Live {
                vm: vm.clone(),
                input: None,
                seen: None,
                stands_still: false,
            });
        });
        self.phase = Phase::Live(Run {
            vm,
            verdict: None,
            deadline: None,
            pump: None,
            main: None,
            tasks,
        });
    }

    /// The console of a guest with its own disk is its log, and what is typed there its input.
    pub(super) fn hears_alone(&mut self) {
        let (stored, _) = watch::channel(0);
        let log = self.log(stored);
        let Phase::Live(run) = &mut self.phase else {
            return;
        };
        let console = Arc::clone(run.vm.console());
        run.pump = Some(tokio::spawn(words::keep_console(console.hear(), log)));
        let input = ExecInput::of_console(console.keys());
        self.entry.with_live(|live| {
            if let Some(live) = live {
                live.input = Some(input);
            }
        });
    }

    fn log(&self, stored: watch::Sender<u64>) -> launch::Log {
        launch::Log {
            dir: self.inner.log_dir(self.entry.id),
            limits: self.inner.config.logs,
            entry: Arc::clone(&self.entry),
            incarnation: self.record.job.incarnation,
            base: self.record.run.as_ref().map_or(0, |run| run.log_base),
            stored,
        }
    }

    /// Keeps what a guest says of its cloud-init.
    async fn cloud_init(&mut self, found: CloudInit, stored: oneshot::Sender<()>) {
        if self.record.job.cloud_init.as_ref() != Some(&found) {
            let mut record = self.record.clone();
            record.job.generation += 1;
            let mut event = event_of(&record.job);
            event.kind = format!("job.cloud-init-{}", found.state);
            event.message.clone_from(&found.reason);
            record.job.cloud_init = Some(found);
            let kept = self
                .inner
                .journal
                .update_job("job.cloud-init", record.clone(), Some(event))
                .await;
            match kept {
                Ok(event) => self.inner.told(event.as_ref()),
                // The guest says it again.
                Err(error) => return log_journal(&error),
            }
            self.record = record;
            self.entry.publish(&self.record);
        }
        let _ = stored.send(());
    }

    fn began(&mut self, handle: ExecHandle) {
        let (stored, stored_watch) = watch::channel(handle.position());
        let log = self.log(stored);
        let Phase::Live(run) = &mut self.phase else {
            return;
        };
        let input = handle.input();
        self.entry.with_live(|live| {
            if let Some(live) = live {
                live.input = Some(match live.input.take() {
                    // Whoever has it feeds the same command.
                    Some(before) if before.is_held() => {
                        before.goes_on_as(&input);
                        before
                    }
                    _ => input,
                });
            }
        });
        run.main = Some((handle.stream(), stored_watch));
        let pump = tokio::spawn(launch::pump(handle, log, self.notes.clone()));
        if let Some(before) = run.pump.replace(pump) {
            // Over a connection that ended as the guest was written down: it has stored all of it.
            before.abort();
        }
    }

    async fn ready(&mut self, boot: Option<Duration>, boot_id: Option<String>) {
        let Phase::Live(run) = &mut self.phase else {
            return;
        };
        let spec = &self.record.job.spec;
        // A guest that was up before this process keeps the time at which it came up.
        let now = Timestamp::now();
        let since = self.record.job.started_at.unwrap_or(now);
        let ran = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        run.deadline = spec
            .deadline_seconds
            .map(|limit| Instant::now() + Duration::from_secs(limit).saturating_sub(ran));
        if let Some(check) = spec.health.clone() {
            let (vm, notes) = (run.vm.clone(), self.notes.clone());
            let incarnation = self.record.job.incarnation;
            run.tasks
                .spawn(health::watch(check, vm, notes, incarnation));
            self.record.job.health = Some(Health::Starting);
        }
        // It has become its own, and whoever comes next need not see to that.
        let was_frozen = std::mem::take(&mut self.record.frozen) && self.snapshot.is_none();
        self.record.from = None;
        let job = &mut self.record.job;
        job.started_at = Some(since);
        job.guest_boot_id = boot_id;
        if job.spec.has_own_disk() && job.cloud_init.is_none() {
            let (state, reason) = (CloudInitState::Running, None);
            job.cloud_init = Some(CloudInit { state, reason });
        }
        if let Some(boot) = boot {
            job.boot_ms = Some(u64::try_from(boot.as_millis()).unwrap_or(u64::MAX));
        }
        match (job.state, self.record.desired) {
            (JobState::Starting | JobState::Unknown, _) => {
                self.state("job.running", JobState::Running, None).await;
            }
            _ => {
                let record = self.record.clone();
                let _ = self.save_quietly("job.ready", record).await;
            }
        }
        // It was paused when an earlier process wrote it down.
        if was_frozen
            && self.record.desired == Desired::Pause
            && let Err(error) = self.pause(true).await
        {
            tracing::warn!(job = %self.entry.id, %error, "a job is not paused again");
        }
    }

    async fn health(&mut self, health: Health) {
        if self.record.job.health == Some(health) {
            return;
        }
        self.record.job.health = Some(health);
        self.record.job.generation += 1;
        let mut event = event_of(&self.record.job);
        event.kind = format!(
            "job.{}",
            if health == Health::Healthy {
                "healthy"
            } else {
                "unhealthy"
            }
        );
        let kept = self
            .inner
            .journal
            .update_job("job.health", self.record.clone(), Some(event))
            .await;
        match kept {
            Ok(event) => self.inner.told(event.as_ref()),
            Err(error) => log_journal(&error),
        }
        self.entry.publish(&self.record);
        let ends = health == Health::Unhealthy
            && self
                .record
                .job
                .spec
                .health
                .as_ref()
                .is_some_and(|h| h.restart_unhealthy);
        if ends && let Phase::Live(run) = &mut self.phase {
            let why = "its health check failed".to_owned();
            run.verdict.get_or_insert(why.clone());
            self.end(Some(why), None).await;
        }
    }

    /// Keeps what of its machine has broken, and that it is whole again.
    async fn impaired(&mut self, found: Option<String>) {
        if self.record.job.impaired == found {
            return;
        }
        let job = self.entry.id;
        match &found {
            Some(why) => tracing::warn!(%job, why, "the machine of a job is impaired"),
            None => tracing::info!(%job, "the machine of a job is whole again"),
        }
        self.record.job.generation += 1;
        let mut event = event_of(&self.record.job);
        event.kind = match &found {
            Some(_) => "job.impaired".into(),
            None => "job.repaired".into(),
        };
        event.message.clone_from(&found);
        self.record.job.impaired = found;
        let kept = self
            .inner
            .journal
            .update_job("job.impaired", self.record.clone(), Some(event))
            .await;
        match kept {
            Ok(event) => self.inner.told(event.as_ref()),
            // The journal may be on the very disk that is full: what is, is told all the same.
            Err(error) => log_journal(&error),
        }
        self.entry.publish(&self.record);
    }

    /// Journals a new state, and tells it. A journal that cannot be written falls behind: what
    /// happens, happens.
    async fn state(&mut self, what: &'static str, state: JobState, reason: Option<String>) {
        let mut record = self.record.clone();
        record.job.state = state;
        if reason.is_some() {
            record.job.reason = reason;
        }
        if let Err(error) = self.save(what, record.clone()).await {
            tracing::error!(job = %self.entry.id, %error, "the journal is behind what happens");
            self.record = record;
            self.entry.publish(&self.record);
        }
    }

    /// Journals a record with an event, and makes it the job's.
    async fn save(&mut self, what: &'static str, mut record: JobRecord) -> Result<(), NodeError> {
        record.job.generation += 1;
        let event = event_of(&record.job);
        let kept = self
            .inner
            .journal
            .update_job(what, record.clone(), Some(event))
            .await?;
        self.inner.told(kept.as_ref());
        self.record = record;
        self.entry.publish(&self.record);
        Ok(())
    }

    /// The same without an event.
    async fn save_quietly(
        &mut self,
        what: &'static str,
        mut record: JobRecord,
    ) -> Result<(), NodeError> {
        record.job.generation += 1;
        let kept = self
            .inner
            .journal
            .update_job(what, record.clone(), None)
            .await;
        self.record = record;
        self.entry.publish(&self.record);
        Ok(kept.map(drop)?)
    }
}

/// Until the node lets go of its guests.
async fn left(leaving: &mut watch::Receiver<bool>) {
    // A node that is gone has let go, too.
    let _ = leaving.wait_for(|leaving| *leaving).await;
}

/// Makes a record that of the next start.
pub(super) fn next_start(record: &mut JobRecord) {
    let job = &mut record.job;
    job.incarnation = job.incarnation.next();
    job.state = JobState::Preparing;
    (job.reason, job.exit, job.health) = (None, None, None);
    (job.cloud_init, job.impaired) = (None, None);
    (job.vm, job.network) = (None, None);
    job.gpus.clear();
    (job.boot_ms, job.guest_boot_id) = (None, None);
    (job.started_at, job.finished_at) = (None, None);
    record.desired = Desired::Run;
    record.restart_at = None;
    record.run = None;
    record.frozen = false;
}

/// How long what a command wrote last may take to be stored once its VMM has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
