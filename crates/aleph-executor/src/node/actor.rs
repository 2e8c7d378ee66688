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
//! | `Live` | a VM | its end, and the removal of what it had |
//! | `Waiting` | nothing, until the back-off is over | a start |
//! | `Held` | a VM that another process holds | another look |
//!
//! # Failure cases
//! What cannot be journaled is not begun. A VM whose objects cannot be removed keeps its row;
//! the next sweep removes both. A node that dies between any two steps finds the row of each VM
//! that it may have begun, and goes on from there ([`Begin::Recover`]).

use super::entry::{Entry, Live};
use super::inner::{Inner, event_of, log_journal};
use super::supervision::{self, End, Next};
use super::{NodeError, Prepared, health, launch, recover};
use crate::guest::ExecHandle;
use crate::journal::{Desired, JobRecord, VmRow};
use crate::lifecycle::{Denial, Failure, Outcome};
use crate::place::Place;
use crate::vm::Vm;
use aleph_types::{ExitStatus, Health, Incarnation, Job, JobState, Problem, Timestamp, VmId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// What a job is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    Prepared(Result<Prepared, Problem>),
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
    Live(Run),
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
    /// Whether it is stopped only to be started again.
    again: bool,
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
            again: false,
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
            if matches!(self.phase, Phase::Idle) && self.entry.retire(&inbox) {
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
                    if incarnation == self.record.job.incarnation {
                        self.noted(note).await;
                    }
                }
                Some(asked) = inbox.recv() => self.asked(asked).await,
                () = timer => self.elapsed().await,
            }
        }
    }

    /// Who asked while the job was removed hears that it is gone.
    fn answer_rest(&self, inbox: &mut mpsc::UnboundedReceiver<Asked>) {
        inbox.close();
        while let Ok(Asked { ask, answer }) = inbox.try_recv() {
            let _ = answer.send(match ask {
                Ask::Destroy { .. } => Ok(self.entry.job()),
                _ => Err(NodeError::NoJob(self.entry.id.to_string())),
            });
        }
    }

    /// The node ends, and this job's guest runs on.
    fn leave(mut self) {
        self.entry.with_live(|live| *live = None);
        if let Phase::Preparing(task) = &self.phase {
            task.abort();
        }
        self.phase = Phase::Idle;
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

    async fn asked(&mut self, asked: Asked) {
        let Asked { ask, answer } = asked;
        let done = match ask {
            Ask::Start => self.start().await,
            Ask::Stop { grace, again } => {
                self.again = again;
                self.stop(grace).await
            }
            Ask::Kill => self.kill().await,
            Ask::Pause => self.pause(true).await,
            Ask::Resume => self.pause(false).await,
            Ask::Destroy { force } => self.destroy(force).await,
            Ask::Look => {
                self.look().await;
                Ok(())
            }
        };
        let _ = answer.send(done.map(|()| self.entry.job()));
    }

    fn denied(&self, why: Denial) -> NodeError {
        NodeError::Denied {
            state: self.record.job.state,
            why,
        }
    }

    async fn start(&mut self) -> Result<(), NodeError> {
        match &self.phase {
            Phase::Idle | Phase::Waiting(_) => {
                self.record.in_a_row = 0;
                self.begin().await
            }
            Phase::Preparing(_) => Ok(()),
            Phase::Live(_) => match self.record.job.state {
                JobState::Stopping | JobState::Destroying => Err(self.denied(Denial::Busy)),
                JobState::Paused => Err(self.denied(Denial::Paused)),
                _ => Ok(()),
            },
            Phase::Held(_) => Err(self.denied(Denial::Unknown)),
        }
    }

    /// Begins the next start: what it needs of the host is given, then it is journaled.
    async fn begin(&mut self) -> Result<(), NodeError> {
        self.inner.give(self.entry.id, &self.record.job.spec)?;
        let mut record = self.record.clone();
        next_start(&mut record);
        let kept = self.save("job.start", record).await;
        if kept.is_err() {
            super::entry::lock(&self.inner.ledger).take(self.entry.id);
        }
        kept?;
        self.prepare();
        Ok(())
    }

    /// Fetches the image.
    fn prepare(&mut self) {
        let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
        let job = &self.record.job;
        let (account, spec) = (job.account.clone(), job.spec.clone());
        let incarnation = job.incarnation;
        self.phase = Phase::Preparing(tokio::spawn(async move {
            let uncompressed = inner.executor.driver().wants_uncompressed_kernel();
            let prepared = inner.images.prepare(&account, &spec, uncompressed).await;
            let _ = notes.send((incarnation, Note::Prepared(prepared)));
        }));
    }

    /// Its user wants it to end; that it is to be gone says more.
    fn wants_stop(&mut self) {
        if self.record.desired != Desired::Destroy {
            self.record.desired = Desired::Stop;
        }
    }

    async fn stop(&mut self, grace: Option<Duration>) -> Result<(), NodeError> {
        if matches!(self.phase, Phase::Held(_)) {
            return Err(self.denied(Denial::Unknown));
        }
        self.wants_stop();
        match &self.phase {
            Phase::Idle => {
                // Kept all the same: a policy that starts a job with its node asks for it.
                let record = self.record.clone();
                self.save_quietly("job.stop", record).await?;
            }
            Phase::Preparing(task) => {
                task.abort();
                self.rest(End::Stopped, None).await;
            }
            Phase::Waiting(_) => self.rest(End::Stopped, None).await,
            Phase::Live(_) => self.end(None, grace).await,
            Phase::Held(_) => return Err(self.denied(Denial::Unknown)),
        }
        Ok(())
    }

    async fn kill(&mut self) -> Result<(), NodeError> {
        match &self.phase {
            Phase::Idle => Err(self.denied(Denial::NotRunning)),
            Phase::Live(_) => {
                self.wants_stop();
                self.state("job.kill", JobState::Stopping, None).await;
                if let Phase::Live(run) = &mut self.phase {
                    run.kill();
                }
                Ok(())
            }
            _ => self.stop(None).await,
        }
    }

    /// Ends the VM: its guest first.
    async fn end(&mut self, reason: Option<String>, grace: Option<Duration>) {
        let Phase::Live(run) = &self.phase else {
            return;
        };
        let vm = run.vm.clone();
        let grace = grace.unwrap_or_else(|| self.record.job.spec.stop_grace());
        let state = match self.record.desired {
            Desired::Destroy => JobState::Destroying,
            _ => JobState::Stopping,
        };
        self.state("job.stop", state, reason).await;
        if let Phase::Live(run) = &mut self.phase {
            run.tasks.spawn(async move {
                vm.begun().await;
                if let Err(error) = vm.stop(grace).await {
                    tracing::debug!(vm = %vm.id(), %error, "the VM is not stopped");
                }
            });
        }
    }

    async fn pause(&mut self, pause: bool) -> Result<(), NodeError> {
        let Phase::Live(run) = &self.phase else {
            return Err(self.denied(Denial::NotRunning));
        };
        if matches!(self.record.desired, Desired::Stop | Desired::Destroy) {
            return Err(self.denied(Denial::Busy));
        }
        let vm = run.vm.clone();
        let done = if pause {
            vm.pause().await
        } else {
            vm.resume().await
        };
        match done {
            Ok(()) => {}
            Err(crate::vm::VmError::Denied(why)) => return Err(self.denied(why)),
            Err(_) => return Err(self.denied(Denial::Ended)),
        }
        let (desired, state) = match pause {
            true => (Desired::Pause, JobState::Paused),
            false => (Desired::Run, JobState::Running),
        };
        self.record.desired = desired;
        self.state("job.pause", state, None).await;
        Ok(())
    }

    async fn destroy(&mut self, force: bool) -> Result<(), NodeError> {
        if matches!(self.phase, Phase::Held(_)) {
            return Err(self.denied(Denial::Unknown));
        }
        let state = self.record.job.state;
        let live = !matches!(self.phase, Phase::Idle | Phase::Waiting(_));
        if live && !force && self.record.desired != Desired::Destroy {
            return Err(NodeError::Live(state));
        }
        let mut record = self.record.clone();
        record.desired = Desired::Destroy;
        record.job.state = JobState::Destroying;
        self.save("job.destroy", record).await?;
        match &mut self.phase {
            Phase::Idle | Phase::Waiting(_) => return self.remove().await,
            Phase::Preparing(task) => {
                task.abort();
                return self.remove().await;
            }
            Phase::Live(run) => run.kill(),
            Phase::Held(_) => return Err(self.denied(Denial::Unknown)),
        }
        Ok(())
    }

    async fn noted(&mut self, note: Note) {
        match note {
            Note::Prepared(Ok(prepared)) => self.launch(prepared).await,
            Note::Prepared(Err(problem)) if matches!(self.phase, Phase::Preparing(_)) => {
                self.fail(&problem.message).await;
            }
            Note::Prepared(Err(_)) => {}
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
        }
    }

    /// Makes a VM of what was prepared. Its row is in the journal before anything of it is on
    /// the host.
    async fn launch(&mut self, prepared: Prepared) {
        if !matches!(self.phase, Phase::Preparing(_)) {
            return;
        }
        let job = &self.record.job;
        let run = match launch::resolve(&job.spec, &prepared, &self.inner.host_boot) {
            Ok(run) => run,
            Err(invalid) => return self.fail(&invalid.to_string()).await,
        };
        let vm_id = self.inner.free_vm_id();
        let mut record = self.record.clone();
        record.job.vm = Some(vm_id);
        record.job.state = JobState::Starting;
        record.job.image_digest = Some(prepared.digest);
        record.job.generation += 1;
        record.run = Some(run.clone());
        let row = VmRow {
            vm: vm_id,
            job: record.job.id,
            incarnation: record.job.incarnation,
        };
        let event = event_of(&record.job);
        match self
            .inner
            .journal
            .intend_vm(record.clone(), row, Some(event))
            .await
        {
            Ok(event) => self.inner.told(event.as_ref()),
            Err(error) => return self.fail(&crate::vm::chain(&error)).await,
        }
        self.record = record;
        self.entry.publish(&self.record);
        let created = launch::create(&self.inner, &self.record, &run, vm_id, prepared.boot);
        match created {
            Ok(vm) => {
                let mut tasks = JoinSet::new();
                launch::start(&mut tasks, &vm, &self.record, &run, &self.notes);
                self.goes_live(vm, tasks);
            }
            Err(error) => {
                let why = crate::vm::chain(&error);
                self.record.job.reason = Some(why.clone());
                let failed = Outcome::Failed(Failure::Launch(why));
                self.removed(failed, Ok(())).await;
            }
        }
    }

    fn goes_live(&mut self, vm: Vm, tasks: JoinSet<()>) {
        self.entry.with_live(|live| {
            *live = Some(Live {
                vm: vm.clone(),
                input: None,
                seen: None,
            });
        });
        self.phase = Phase::Live(Run {
            vm,
            verdict: None,
            deadline: None,
            pump: None,
            tasks,
        });
    }

    fn began(&mut self, handle: ExecHandle) {
        let Phase::Live(run) = &mut self.phase else {
            return;
        };
        let input = handle.input();
        self.entry.with_live(|live| {
            if let Some(live) = live {
                live.input = Some(input);
            }
        });
        let log = launch::Log {
            dir: self.inner.log_dir(self.entry.id),
            limits: self.inner.config.logs,
            entry: Arc::clone(&self.entry),
            incarnation: self.record.job.incarnation,
        };
        run.pump = Some(tokio::spawn(launch::pump(handle, log, self.notes.clone())));
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
        let job = &mut self.record.job;
        job.started_at = Some(since);
        job.guest_boot_id = boot_id;
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

    /// The VMM has ended: what it wrote is stored to its end, and then all that the host holds
    /// for it goes.
    fn ended(&mut self, outcome: Outcome) {
        let Phase::Live(run) = &mut self.phase else {
            return;
        };
        run.tasks.abort_all();
        run.deadline = None;
        let (vm, pump) = (run.vm.clone(), run.pump.take());
        let (notes, incarnation) = (self.notes.clone(), self.record.job.incarnation);
        tokio::spawn(async move {
            if let Some(mut pump) = pump
                && tokio::time::timeout(LAST_WORDS, &mut pump).await.is_err()
            {
                pump.abort();
            }
            let removed = vm.destroy().await.map_err(|error| crate::vm::chain(&error));
            let _ = notes.send((incarnation, Note::Removed(outcome, removed)));
        });
    }

    async fn removed(&mut self, outcome: Outcome, removed: Result<(), String>) {
        self.entry.with_live(|live| *live = None);
        let verdict = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Live(mut run) => run.verdict.take(),
            _ => None,
        };
        let vm = self.record.job.vm;
        let forget = match removed {
            Ok(()) => vm,
            Err(why) => {
                tracing::error!(job = %self.entry.id, %why, "a VM could not be removed; the next sweep tries again");
                None
            }
        };
        let known = self.record.job.exit.map(End::Exited);
        let (end, reason) = match (verdict, outcome) {
            (Some(why), _) => (End::Failed, Some(why)),
            // However it ended, it was to end: an earlier process may have killed it just now.
            (None, Outcome::Failed(_) | Outcome::Unknown)
                if known.is_none() && self.record.desired == Desired::Stop =>
            {
                (End::Stopped, None)
            }
            (None, Outcome::Finished(status)) => (End::Exited(status), None),
            (None, Outcome::Stopped) => (known.unwrap_or(End::Stopped), None),
            (None, Outcome::Failed(failure)) => match known {
                Some(end) => (end, None),
                None => (End::Failed, Some(failure.to_string())),
            },
            (None, Outcome::Unknown) => match known {
                Some(end) => (end, None),
                None => {
                    let known = self.record.job.reason.take();
                    let unseen = || "nobody saw how it ended".into();
                    (End::Lost, Some(known.unwrap_or_else(unseen)))
                }
            },
        };
        if let End::Exited(status) = end {
            self.record.job.exit = Some(status);
        }
        if reason.is_some() {
            self.record.job.reason = reason;
        }
        self.finish(end, forget).await;
    }

    /// A start that never came to a VM.
    async fn fail(&mut self, why: &str) {
        // What it ran for the last time says nothing of this start.
        self.record.job.started_at = None;
        self.rest(End::Failed, Some(why.to_owned())).await;
    }

    async fn rest(&mut self, end: End, reason: Option<String>) {
        self.record.job.reason = reason;
        self.phase = Phase::Idle;
        self.finish(end, None).await;
    }

    /// Decides what follows an end, and journals it together with the end of the VM's row.
    pub(super) async fn finish(&mut self, end: End, forget: Option<VmId>) {
        let job = &mut self.record.job;
        let now = Timestamp::now();
        let ran = job
            .started_at
            .and_then(|at| Duration::try_from(now.duration_since(at)).ok());
        let row = supervision::row_after(self.record.in_a_row, ran);
        let next = supervision::after(
            &job.spec.restart,
            self.record.desired,
            &end,
            row,
            job.spec.auto_destroy && !self.again,
        );
        self.again = false;
        job.finished_at = Some(now);
        job.vm = None;
        job.health = None;
        self.record.in_a_row = row;
        self.record.restart_at = None;
        match next {
            Next::Rest(state) => {
                job.state = state;
                super::entry::lock(&self.inner.ledger).take(job.id);
            }
            Next::Restart(wait) => {
                job.state = JobState::Restarting;
                job.restarts += 1;
                self.record.in_a_row += 1;
                self.record.restart_at = now.checked_add(wait).ok();
                self.phase = Phase::Waiting(Instant::now() + wait);
            }
            Next::Destroy => {
                job.state = JobState::Destroying;
                self.record.desired = Desired::Destroy;
            }
        }
        let job = &mut self.record.job;
        job.generation += 1;
        let (record, event) = (self.record.clone(), event_of(&self.record.job));
        let kept = match forget {
            Some(vm) => {
                self.inner
                    .journal
                    .forget_vm(vm, Some(record), Some(event))
                    .await
            }
            None => {
                self.inner
                    .journal
                    .update_job("job.end", record, Some(event))
                    .await
            }
        };
        match kept {
            Ok(event) => self.inner.told(event.as_ref()),
            Err(error) => log_journal(&error),
        }
        self.entry.publish(&self.record);
        if self.record.job.state == JobState::Destroying {
            self.remove_or_tell().await;
        }
    }

    async fn remove_or_tell(&mut self) {
        if let Err(error) = self.remove().await {
            let error = crate::vm::chain(&error);
            tracing::error!(job = %self.entry.id, %error, "a job cannot be removed; ask again");
        }
    }

    /// Removes the job. Its record goes last, so that a crash is followed by another try.
    async fn remove(&mut self) -> Result<(), NodeError> {
        self.phase = Phase::Idle;
        let path = self.inner.log_dir(self.entry.id);
        crate::logs::remove(&path).map_err(|source| NodeError::Log { path, source })?;
        let mut job = self.record.job.clone();
        job.state = JobState::Destroyed;
        job.generation += 1;
        // Where it fails it stays as it is, to be removed by another request or the next start.
        let event = event_of(&job);
        let kept = self.inner.journal.remove_job(job.id, event).await?;
        self.inner.told(kept.as_ref());
        let mut jobs = super::entry::lock(&self.inner.jobs);
        super::entry::lock(&self.inner.ledger).take(job.id);
        jobs.remove(&job);
        drop(jobs);
        self.record.job = job;
        self.entry.publish(&self.record);
        self.gone = true;
        Ok(())
    }

    /// Goes on with what an earlier process left.
    async fn recover(&mut self, place: Option<Result<Place, VmId>>) {
        let recovered = recover::recover(self, place).await;
        match recovered {
            recover::Found::Vm(vm, tasks) => {
                self.goes_live(vm, tasks);
                let stopping = self.record.job.state == JobState::Stopping;
                match (self.record.desired, &mut self.phase) {
                    (Desired::Stop, _) => self.end(None, None).await,
                    (Desired::Run, _) if stopping => self.end(None, None).await,
                    (Desired::Destroy, Phase::Live(run)) => run.kill(),
                    _ => {}
                }
            }
            recover::Found::Held(vm) => {
                self.record.job.state = JobState::Unknown;
                self.record.job.reason = Some("another process holds its VM".into());
                self.entry.publish(&self.record);
                self.phase = Phase::Held(vm);
            }
            recover::Found::Unbegun(removed) => self.begin_anew(removed).await,
            recover::Found::Gone(outcome, removed) => self.removed(outcome, removed).await,
            recover::Found::NoVm => self.go_on().await,
        }
    }

    /// A start that an earlier process only just began goes back to its beginning.
    async fn begin_anew(&mut self, removed: Result<(), String>) {
        let vm = self.record.job.vm;
        let job = &mut self.record.job;
        (job.vm, job.state) = (None, JobState::Preparing);
        job.generation += 1;
        self.record.run = None;
        if let (Some(vm), Ok(())) = (vm, removed) {
            let record = Some(self.record.clone());
            if let Err(error) = self.inner.journal.forget_vm(vm, record, None).await {
                log_journal(&error);
            }
        }
        self.entry.publish(&self.record);
        self.go_on().await;
    }

    /// A record without a VM: what it was about to do is done.
    async fn go_on(&mut self) {
        match (self.record.job.state, self.record.desired) {
            (_, Desired::Destroy) => self.remove_or_tell().await,
            (JobState::Preparing, Desired::Stop) => self.rest(End::Stopped, None).await,
            (JobState::Preparing, _) => self.prepare(),
            (JobState::Restarting, _) => {
                let left = self.record.restart_at.map_or(Duration::ZERO, |at| {
                    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
                });
                self.phase = Phase::Waiting(Instant::now() + left);
            }
            // Its policy starts it with its node.
            (state, _) if state.is_over() => {
                if let Err(error) = self.begin().await {
                    self.fail(&error.to_string()).await;
                }
            }
            _ => {}
        }
    }

    async fn look(&mut self) {
        let Phase::Held(vm) = self.phase else { return };
        let inner = Arc::clone(&self.inner);
        let place = Place::orphan(&inner.config.paths, inner.executor.cgroups(), vm);
        if let Ok(Some(place)) = place {
            self.phase = Phase::Idle;
            Box::pin(self.recover(Some(Ok(place)))).await;
        }
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
    (job.reason, job.exit, job.health, job.vm) = (None, None, None, None);
    (job.boot_ms, job.guest_boot_id) = (None, None);
    (job.started_at, job.finished_at) = (None, None);
    record.desired = Desired::Run;
    record.restart_at = None;
    record.run = None;
}

/// How long what a command wrote last may take to be stored once its VMM has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
