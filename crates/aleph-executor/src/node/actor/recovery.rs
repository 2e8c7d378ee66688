//! What an earlier process left, and what is gone on with.

use super::fitting::After;
use super::{Actor, Phase};
use crate::journal::Desired;
use crate::lifecycle::Outcome;
use crate::node::inner::log_journal;
use crate::node::recover;
use crate::node::supervision::End;
use crate::place::Place;
use aleph_types::{JobState, Timestamp, VmId};
use std::time::{Duration, Instant};

impl Actor {
    /// Goes on with what an earlier process left.
    pub(super) async fn recover(&mut self, place: Option<Result<Place, VmId>>) {
        let recovered = recover::recover(self, place).await;
        match recovered {
            recover::Found::Vm(vm, tasks) => {
                self.goes_live(vm, tasks);
                if self.record.job.spec.has_own_disk() {
                    self.hears_alone();
                    self.settle_volumes();
                    self.find_size(0);
                }
                let stopping = self.record.job.state == JobState::Stopping;
                match (self.record.desired, &mut self.phase) {
                    // It ends where it was written down.
                    (Desired::Stop, Phase::Live(run)) if self.record.frozen => run.kill(),
                    (Desired::Stop, _) => self.end(None, None).await,
                    (Desired::Run, _) if stopping => self.end(None, None).await,
                    (Desired::Destroy, Phase::Live(run)) => run.kill(),
                    _ => {}
                }
            }
            recover::Found::Held(vm, why) => {
                self.record.job.state = JobState::Unknown;
                self.record.job.reason = Some(why);
                self.entry.publish(&self.record);
                self.phase = Phase::Held(vm);
            }
            recover::Found::Unbegun(removed) => self.begin_anew(removed).await,
            recover::Found::Gone(outcome, removed) => self.removed(outcome, removed).await,
            recover::Found::NoVm => self.go_on().await,
        }
    }

    /// A start that an earlier process only just began goes back to its beginning.
    pub(super) async fn begin_anew(&mut self, removed: Result<(), String>) {
        let vm = self.record.job.vm;
        let removed = match (removed, vm) {
            (Ok(()), Some(vm)) => self.inner.disconnect(vm).await,
            (removed, _) => removed,
        };
        if removed.is_ok() && self.record.job.spec.gpus.is_some() {
            return self.free(After::Anew);
        }
        self.anew(removed).await;
    }

    /// Nothing of that start is left, or its row stays for what is.
    pub(super) async fn anew(&mut self, removed: Result<(), String>) {
        let vm = self.record.job.vm;
        let job = &mut self.record.job;
        (job.vm, job.network, job.state) = (None, None, JobState::Preparing);
        job.gpus.clear();
        job.generation += 1;
        self.record.run = None;
        self.record.frozen = false;
        match (vm, removed) {
            (Some(vm), Ok(())) => {
                let record = Some(self.record.clone());
                match self.inner.journal.forget_vm(vm, record, None).await {
                    Ok(_) => self.inner.release(vm),
                    Err(error) => log_journal(&error),
                }
            }
            (Some(vm), Err(why)) => {
                tracing::warn!(%vm, %why, "a VM could not be removed; a sweep tries again soon");
                self.inner.remains(vm);
            }
            (None, _) => {}
        }
        self.entry.publish(&self.record);
        self.go_on().await;
    }

    /// A record without a VM: what it was about to do is done.
    pub(super) async fn go_on(&mut self) {
        match (self.record.job.state, self.record.desired) {
            (_, Desired::Destroy) => self.remove_or_tell().await,
            (JobState::Preparing | JobState::Stopping, Desired::Stop) => {
                self.rest(End::Stopped, None).await;
            }
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

    pub(super) async fn look(&mut self) {
        let Phase::Held(vm) = self.phase else { return };
        if let Some(place) = self.let_go(vm) {
            self.phase = Phase::Idle;
            Box::pin(self.recover(Some(Ok(place)))).await;
        }
    }

    /// The place of a VM, unless another process holds it.
    pub(super) fn let_go(&self, vm: VmId) -> Option<Place> {
        let executor = &self.inner.executor;
        let place = Place::orphan(&self.inner.config.paths, executor.cgroups(), vm);
        place.ok().flatten()
    }

    /// Ends and removes a VM that could not be looked at.
    pub(super) async fn end_unseen(&mut self, place: Place) {
        self.phase = Phase::Idle;
        let removed = recover::removed(&self.inner, &place).await;
        self.removed(Outcome::Unknown, removed).await;
    }
}
