//! A full VM that becomes larger, or that is to be of another size from its next start on.
//!
//! The record has the new size before the machine has, and the one before as what is under way
//! (`JobRecord::resizing`). What became of it comes as a note; where the VM ends first, the job has the size
//! that it had before.

use super::{Actor, Note, Phase};
use crate::hypervisor::{MachineSize, Vmm};
use crate::journal::JobRecord;
use crate::lifecycle::Denial;
use crate::node::NodeError;
use crate::node::entry::lock;
use crate::node::inner::event_of;
use crate::node::size::{self, Resized, put_size, size_of};
use aleph_types::{HugePages, Job, JobResize, JobState, VmId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type Answer = oneshot::Sender<Result<Arc<Job>, NodeError>>;

/// How long it takes at most until it is tried again to journal what a machine has.
const PATIENCE: Duration = Duration::from_secs(30);

/// A change that is under way.
pub(super) struct Resizing {
    /// Who waits for it.
    answer: Option<Answer>,
    /// How often what became of it could not be journaled.
    unkept: u32,
    task: JoinHandle<()>,
}

/// How long to wait where something could not be journaled so often in a row.
fn pause_after(unkept: u32) -> Duration {
    let seconds = match unkept {
        0 => 0,
        times => 1 << (times - 1).min(16),
    };
    Duration::from_secs(seconds).min(PATIENCE)
}

impl Drop for Resizing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A machine that is to grow, and what it has.
struct Growth {
    vm: VmId,
    vmm: Arc<dyn Vmm>,
    before: MachineSize,
    /// What its memory is in, where those are huge.
    pages: Option<HugePages>,
}

impl Actor {
    pub(super) async fn resize(&mut self, asked: JobResize, answer: Answer) {
        match self.begin_resize(asked).await {
            Ok(None) => {
                let _ = answer.send(Ok(self.entry.job()));
            }
            Ok(Some(growth)) => {
                let Growth {
                    vm,
                    vmm,
                    before,
                    pages,
                } = growth;
                let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
                let incarnation = self.record.job.incarnation;
                let wanted = size_of(&self.record.job.spec);
                let task = tokio::spawn(async move {
                    let grows = (before, wanted);
                    let resized = inner.grow((vm, &*vmm), grows, pages).await;
                    let _ = notes.send((incarnation, Note::Resized(Box::new(resized))));
                });
                self.resizing = Some(Resizing {
                    answer: Some(answer),
                    unkept: 0,
                    task,
                });
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    /// Checks a change, has the host's share for it, and journals that it is to be.
    async fn begin_resize(&mut self, asked: JobResize) -> Result<Option<Growth>, NodeError> {
        let (id, spec) = (self.record.job.id, &self.record.job.spec);
        let runs = matches!(self.phase, Phase::Live(_));
        // What its machine was drawn with counts, whatever the node's settings are by now.
        let drawn = self.inner.drawn(id, spec).await?;
        // What no state of it changes is said first.
        let wanted = size::resized(spec, &asked, runs, drawn.pages)?;
        if self.record.resizing.is_some() || self.resizing.is_some() {
            return Err(self.denied(Denial::Busy));
        }
        let Some(wanted) = wanted else {
            return Ok(self.recovery(&asked, drawn.pages));
        };
        let before = spec.clone();
        let size = size_of(&wanted);
        drawn.check(size.cpus, size.memory)?;
        let growth = match &self.phase {
            Phase::Idle | Phase::Waiting(_) => None,
            Phase::Preparing(_) | Phase::Fitting(_) | Phase::Freeing(_) => {
                return Err(self.denied(Denial::Busy));
            }
            Phase::Held(_) => return Err(self.denied(Denial::Unknown)),
            Phase::Live(run) => match self.record.job.state {
                JobState::Running => Some(Growth {
                    vm: run.vm.id(),
                    vmm: run.vm.vmm().ok_or_else(|| self.denied(Denial::Busy))?,
                    before: size_of(&before),
                    pages: drawn.pages,
                }),
                JobState::Paused => return Err(self.denied(Denial::Paused)),
                JobState::Unknown => return Err(self.denied(Denial::Unknown)),
                _ => return Err(self.denied(Denial::Busy)),
            },
        };
        // One that does not run has no share, and gets one as it starts.
        let has_share = !matches!(self.phase, Phase::Idle);
        if has_share {
            let runs = growth.as_ref().map(|_| &before);
            self.inner.reserve_size(id, (&wanted, drawn.pages), runs)?;
        }
        let mut record = self.record.clone();
        put_size(&mut record, size);
        record.resizing = growth.as_ref().map(|growth| growth.before);
        let kept = self.keep_size(record, growth.is_none()).await;
        if kept.is_err() && has_share {
            lock(&self.inner.ledger).note_size(id, &before);
        }
        kept?;
        Ok(growth)
    }

    /// What a machine that has its size by its record is asked: its guest may have let go of a part of it, and is
    /// given that back. Nothing is recorded of it.
    fn recovery(&self, asked: &JobResize, pages: Option<HugePages>) -> Option<Growth> {
        let Phase::Live(run) = &self.phase else {
            return None;
        };
        let vmm = run.vm.vmm()?;
        let runs = self.record.job.state == JobState::Running;
        let is_asked = runs && !asked.is_empty() && vmm.hotplug().is_some();
        is_asked.then(|| Growth {
            vm: run.vm.id(),
            vmm,
            before: size_of(&self.record.job.spec),
            pages,
        })
    }

    /// Journals a record of another size; `tells`: that it has it.
    async fn keep_size(&mut self, mut record: JobRecord, tells: bool) -> Result<(), NodeError> {
        record.job.generation += 1;
        let event = tells.then(|| {
            let mut event = event_of(&record.job);
            event.kind = "job.resized".into();
            event.message = Some(size_of(&record.job.spec).to_string());
            event
        });
        let kept = self
            .inner
            .journal
            .update_job("job.resize", record.clone(), event)
            .await?;
        self.inner.told(kept.as_ref());
        self.record = record;
        self.entry.publish(&self.record);
        Ok(())
    }

    /// What became of a change.
    pub(super) async fn resized(&mut self, resized: Resized) {
        let Some(mut resizing) = self.resizing.take() else {
            return;
        };
        let Resized { size, error } = resized;
        let answer = resizing.answer.take();
        if self.record.resizing.is_none() {
            if let Some(answer) = answer {
                let _ = answer.send(error.map_or_else(|| Ok(self.entry.job()), Err));
            }
            return;
        }
        let Some(size) = size else {
            // It is not known yet. Whoever asked hears why, and the machine is asked until it says.
            if let (Some(answer), Some(error)) = (answer, error) {
                let _ = answer.send(Err(error));
            }
            return self.find_size(0);
        };
        let mut record = self.record.clone();
        let (before, wanted) = (record.resizing.take(), size_of(&record.job.spec));
        put_size(&mut record, size);
        let changed = before != Some(size);
        if let Err(error) = self.keep_size(record, changed).await {
            // The journal still says that it is under way, and whoever comes next asks the machine.
            if resizing.unkept == 0 {
                tracing::error!(job = %self.entry.id, error = crate::vm::chain(&error), "the journal is behind what happens");
            }
            self.find_size(resizing.unkept.saturating_add(1));
            if let Some(answer) = answer {
                let _ = answer.send(Err(error));
            }
            return;
        }
        lock(&self.inner.ledger).note_size(self.entry.id, &self.record.job.spec);
        if let Some(answer) = answer {
            let _ = answer.send(match error {
                // Whatever went wrong was done all the same where the machine has it.
                Some(error) if size != wanted => Err(outcome(size, changed, error)),
                _ => Ok(self.entry.job()),
            });
        }
    }

    /// Asks a machine what it has, of whose growth nobody heard the end, or which could not be journaled so often.
    pub(super) fn find_size(&mut self, unkept: u32) {
        let (Some(before), Phase::Live(run)) = (self.record.resizing, &self.phase) else {
            return;
        };
        let vm = run.vm.clone();
        let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
        let incarnation = self.record.job.incarnation;
        let wanted = size_of(&self.record.job.spec);
        let task = tokio::spawn(async move {
            // One that is taken over has its VMM a moment later.
            let (Ok(_), Some(vmm)) = (vm.running().await, vm.vmm()) else {
                return;
            };
            tokio::time::sleep(pause_after(unkept)).await;
            // Its end says what the job has, where that comes first.
            if let Some(size) = inner.find_size((vm.id(), &*vmm), before, wanted).await {
                let resized = Resized {
                    size: Some(size),
                    error: None,
                };
                let _ = notes.send((incarnation, Note::Resized(Box::new(resized))));
            }
        });
        self.resizing = Some(Resizing {
            answer: None,
            unkept,
            task,
        });
    }

    /// The VM is gone: what was under way comes to nothing, and the job has the size that it had before.
    pub(super) fn end_resize(&mut self) {
        if let Some(mut resizing) = self.resizing.take()
            && let Some(answer) = resizing.answer.take()
        {
            let _ = answer.send(Err(self.denied(Denial::Ended)));
        }
        if let Some(before) = self.record.resizing.take() {
            put_size(&mut self.record, before);
            lock(&self.inner.ledger).note_size(self.entry.id, &self.record.job.spec);
        }
    }
}

/// Why a machine has not the size that was asked for, and what of it was done.
fn outcome(has: MachineSize, changed: bool, error: NodeError) -> NodeError {
    match changed {
        true => NodeError::Partly {
            has,
            source: Box::new(error),
        },
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_cannot_be_written_is_tried_ever_less() {
        let pauses = [0, 1, 2, 3, 5, 6, 7, u32::MAX].map(|times| pause_after(times).as_secs());
        assert_eq!(pauses, [0, 1, 2, 4, 16, 30, 30, 30]);
    }
}
