//! What follows when a start of a job has ended, and the removal of a job.

use super::fitting::After;
use super::{Actor, Ask, Asked, LAST_WORDS, Note, Phase};
use crate::journal::Desired;
use crate::lifecycle::Outcome;
use crate::node::NodeError;
use crate::node::entry::lock;
use crate::node::inner::{event_of, log_journal};
use crate::node::supervision::{self, End, Next};
use crate::vm::chain;
use aleph_types::{ExitStatus, JobState, Timestamp, VmId};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

impl Actor {
    /// Who asked while the job was removed hears that it is gone.
    pub(super) fn answer_rest(&self, inbox: &mut mpsc::UnboundedReceiver<Asked>) {
        inbox.close();
        while let Ok(Asked { ask, answer }) = inbox.try_recv() {
            let _ = answer.send(match ask {
                Ask::Destroy { .. } => Ok(self.entry.job()),
                _ => Err(NodeError::NoJob(self.entry.id.to_string())),
            });
        }
    }

    /// The VMM has ended: what it wrote is stored to its end, and then all that the host holds
    /// for it goes.
    pub(super) fn ended(&mut self, outcome: Outcome) {
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
            let removed = vm.destroy().await.map_err(|error| chain(&error));
            let _ = notes.send((incarnation, Note::Removed(outcome, removed)));
        });
    }

    /// The VM is gone, or cannot be removed: the rest of what it had goes too.
    pub(super) async fn removed(&mut self, outcome: Outcome, removed: Result<(), String>) {
        self.entry.with_live(|live| *live = None);
        let verdict = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Live(mut run) => {
                self.in_order = run.vm.status().in_order;
                run.verdict.take()
            }
            _ => None,
        };
        let vm = self.record.job.vm;
        let removed = match (removed, vm) {
            (Ok(()), Some(vm)) => self.inner.disconnect(vm).await,
            (removed, _) => removed,
        };
        // Something of a VM that cannot be removed may still write where its devices do.
        if removed.is_ok() && self.record.job.spec.gpus.is_some() {
            return self.free(After::End(verdict, outcome, removed));
        }
        self.settled(verdict, outcome, removed).await;
    }

    /// All that the host held for a start is gone, or cannot be removed.
    pub(super) async fn settled(
        &mut self,
        verdict: Option<String>,
        outcome: Outcome,
        removed: Result<(), String>,
    ) {
        let vm = self.record.job.vm;
        let forget = match removed {
            Ok(()) => vm,
            Err(why) => {
                tracing::error!(job = %self.entry.id, %why, "a VM could not be removed; a sweep tries again soon");
                if let Some(vm) = vm {
                    self.inner.remains(vm);
                }
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
    pub(super) async fn fail(&mut self, why: &str) {
        // What it ran for the last time says nothing of this start.
        self.record.job.started_at = None;
        self.rest(End::Failed, Some(why.to_owned())).await;
    }

    pub(super) async fn rest(&mut self, end: End, reason: Option<String>) {
        self.record.job.reason = reason;
        self.phase = Phase::Idle;
        self.finish(end, None).await;
    }

    /// Decides what follows an end, and journals it together with the end of the VM's row.
    pub(super) async fn finish(&mut self, end: End, forget: Option<VmId>) {
        self.end_change().await;
        self.end_resize();
        let mut in_order = std::mem::take(&mut self.in_order);
        if self.record.job.spec.has_own_disk() {
            // It ended by its power button, or powered itself off.
            in_order = end == End::Exited(ExitStatus::Code(0));
        }
        self.inner.end_leases(&self.record, in_order).await;
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
        (job.vm, job.network) = (None, None);
        job.gpus.clear();
        (job.health, job.impaired) = (None, None);
        self.record.frozen = false;
        self.record.in_a_row = row;
        self.record.restart_at = None;
        match next {
            Next::Rest(state) => {
                job.state = state;
                self.inner.take_back(job.id);
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
            Ok(event) => {
                self.inner.told(event.as_ref());
                if let Some(vm) = forget {
                    self.inner.release(vm);
                }
            }
            Err(error) => log_journal(&error),
        }
        self.entry.publish(&self.record);
        if self.record.job.state == JobState::Destroying {
            self.remove_or_tell().await;
        }
    }

    pub(super) async fn remove_or_tell(&mut self) {
        if let Err(error) = self.remove().await {
            let error = chain(&error);
            tracing::error!(job = %self.entry.id, %error, "a job cannot be removed; ask again");
        }
    }

    /// Removes the job. Its record goes last, so that a crash is followed by another try.
    pub(super) async fn remove(&mut self) -> Result<(), NodeError> {
        self.phase = Phase::Idle;
        self.inner.remove_disks(&self.record).await?;
        let path = self.inner.log_dir(self.entry.id);
        crate::logs::remove(&path).map_err(|source| NodeError::Log { path, source })?;
        let mut job = self.record.job.clone();
        job.state = JobState::Destroyed;
        job.generation += 1;
        // Where it fails it stays as it is, to be removed by another request or the next start.
        let event = event_of(&job);
        let kept = self.inner.journal.remove_job(job.id, event).await?;
        self.inner.told(kept.as_ref());
        self.inner.take_back(job.id);
        let mut jobs = lock(&self.inner.jobs);
        jobs.remove(&job);
        drop(jobs);
        self.record.job = job;
        self.entry.publish(&self.record);
        self.gone = true;
        Ok(())
    }
}
