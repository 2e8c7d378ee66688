//! What a job is asked.

use super::{Actor, Ask, Asked, Phase, next_start};
use crate::journal::Desired;
use crate::lifecycle::Denial;
use crate::node::NodeError;
use crate::node::supervision::End;
use crate::vm::VmError;
use aleph_types::JobState;
use std::time::Duration;

impl Actor {
    pub(super) async fn asked(&mut self, asked: Asked) {
        let Asked { ask, answer } = asked;
        if let Ask::Snapshot { row, stop } = ask {
            return self.write_down(row, stop, answer).await;
        }
        if let Ask::Volume(ask) = ask {
            return Box::pin(self.change_volumes(*ask, answer)).await;
        }
        if let Ask::Resize(size) = ask {
            return Box::pin(self.resize(size, answer)).await;
        }
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
            Ask::Snapshot { .. } | Ask::Volume(_) | Ask::Resize(_) => {
                Err(self.denied(Denial::Busy))
            }
        };
        let _ = answer.send(done.map(|()| self.entry.job()));
    }

    pub(super) fn denied(&self, why: Denial) -> NodeError {
        NodeError::Denied {
            state: self.record.job.state,
            why,
        }
    }

    pub(super) async fn start(&mut self) -> Result<(), NodeError> {
        match &self.phase {
            Phase::Idle | Phase::Waiting(_) => {
                self.record.in_a_row = 0;
                self.begin().await
            }
            Phase::Freeing(_) => Err(self.denied(Denial::Busy)),
            Phase::Preparing(_) | Phase::Fitting(_) | Phase::Live(_) => match self.record.job.state
            {
                JobState::Stopping | JobState::Destroying => Err(self.denied(Denial::Busy)),
                JobState::Paused => Err(self.denied(Denial::Paused)),
                _ => Ok(()),
            },
            Phase::Held(_) => Err(self.denied(Denial::Unknown)),
        }
    }

    /// Begins the next start: what it needs of the host is given, then it is journaled.
    pub(super) async fn begin(&mut self) -> Result<(), NodeError> {
        let job = &self.record.job;
        self.inner
            .give(job.id, (&job.account, &job.name), &job.spec)
            .await?;
        let mut record = self.record.clone();
        next_start(&mut record);
        let kept = self.save("job.start", record).await;
        if kept.is_err() {
            self.inner.take_back(self.entry.id);
        }
        kept?;
        self.prepare();
        Ok(())
    }

    /// Its user wants it to end; that it is to be gone says more.
    pub(super) fn wants_stop(&mut self) {
        if self.record.desired != Desired::Destroy {
            self.record.desired = Desired::Stop;
        }
    }

    pub(super) async fn stop(&mut self, grace: Option<Duration>) -> Result<(), NodeError> {
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
            // A disk that is being made is whole before anything else is done with it: what follows waits for it.
            Phase::Preparing(_) if self.record.job.spec.has_own_disk() => self.ends().await,
            Phase::Preparing(task) => {
                task.abort();
                self.rest(End::Stopped, None).await;
            }
            Phase::Waiting(_) => self.rest(End::Stopped, None).await,
            // What follows is done when its GPUs are.
            Phase::Fitting(_) | Phase::Freeing(_) => self.ends().await,
            Phase::Live(_) => self.end(None, grace).await,
            Phase::Held(_) => return Err(self.denied(Denial::Unknown)),
        }
        Ok(())
    }

    pub(super) async fn kill(&mut self) -> Result<(), NodeError> {
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

    /// Says that it ends.
    async fn ends(&mut self) {
        let state = match self.record.desired {
            Desired::Destroy => JobState::Destroying,
            _ => JobState::Stopping,
        };
        self.state("job.stop", state, None).await;
    }

    /// Ends the VM: its guest first.
    pub(super) async fn end(&mut self, reason: Option<String>, grace: Option<Duration>) {
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
        let written = self.give_up_snapshot();
        if let Phase::Live(run) = &mut self.phase {
            run.tasks.spawn(async move {
                vm.begun().await;
                if let Some(written) = written {
                    // Its guest goes on then, and can be asked to end.
                    written.cancelled().await;
                }
                if let Err(error) = vm.stop(grace).await {
                    tracing::debug!(vm = %vm.id(), %error, "the VM is not stopped");
                }
            });
        }
    }

    pub(super) async fn pause(&mut self, pause: bool) -> Result<(), NodeError> {
        let Phase::Live(run) = &self.phase else {
            return Err(self.denied(Denial::NotRunning));
        };
        let ends = matches!(self.record.desired, Desired::Stop | Desired::Destroy);
        // While memory is filled its VMM hears nothing, and would do later what nobody waits for any more.
        let is_changing = self.snapshot.is_some() || self.resizing.is_some();
        if ends || is_changing {
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
            Err(VmError::Denied(why)) => return Err(self.denied(why)),
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

    pub(super) async fn destroy(&mut self, force: bool) -> Result<(), NodeError> {
        let unseen = match self.phase {
            Phase::Held(vm) if force => self.let_go(vm),
            _ => None,
        };
        if matches!(self.phase, Phase::Held(_)) && unseen.is_none() {
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
        if let Some(place) = unseen {
            self.end_unseen(place).await;
            return Ok(());
        }
        match &mut self.phase {
            Phase::Idle | Phase::Waiting(_) => return self.remove().await,
            // A disk that is being made is whole before it is removed.
            Phase::Preparing(_) if self.record.job.spec.has_own_disk() => {}
            Phase::Preparing(task) => {
                task.abort();
                return self.remove().await;
            }
            Phase::Live(run) => run.kill(),
            // It goes when its GPUs are done with.
            Phase::Fitting(_) | Phase::Freeing(_) => {}
            Phase::Held(_) => return Err(self.denied(Denial::Unknown)),
        }
        Ok(())
    }
}
