//! Volumes of a job that are attached and detached.
//!
//! The record says what is about to be done before it is ([`VolumeChange`]). What became of it comes as a
//! note; where the VM ends first, the job has what it had before.

use super::{Actor, Note, Phase};
use crate::hypervisor::Vmm;
use crate::journal::{JobRecord, VolumeChange};
use crate::lifecycle::Denial;
use crate::node::NodeError;
use crate::node::inner::event_of;
use crate::node::launch::beside;
use crate::node::live_volumes::{AGAIN, AGAIN_AT_MOST, Changed};
use crate::node::mounts;
use crate::node::own_disk;
use crate::volumes::VolumeError;
use aleph_types::{Job, JobState, Volume, VolumeId, VolumeMount};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

type Answer = oneshot::Sender<Result<Arc<Job>, NodeError>>;

/// What is asked of a job's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum VolumeAsk {
    /// That it has this one.
    Attach(VolumeMount, Box<Volume>),
    /// The same of one that it has, but that its machine has not.
    Again(VolumeMount, Box<Volume>),
    /// That it has one no more.
    Detach(Detach),
}

/// A volume that a job is to have no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) struct Detach {
    /// Its name.
    pub(in crate::node) name: String,
    /// Its id and its disk's serial number, where it is there.
    pub(in crate::node) volume: Option<(VolumeId, String)>,
    /// How long the guest may take to let go.
    pub(in crate::node) limit: Duration,
}

/// A change that is under way.
pub(super) struct Changing {
    /// Who waits for it.
    answer: Option<Answer>,
    task: JoinHandle<()>,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What comes next.
enum Next {
    Nothing,
    Plug(Arc<dyn Vmm>, Duration),
}

impl Actor {
    pub(super) async fn change_volumes(&mut self, ask: VolumeAsk, answer: Answer) {
        match self.begin_change(ask).await {
            Ok(Next::Nothing) => {
                let _ = answer.send(Ok(self.entry.job()));
            }
            Ok(Next::Plug(vmm, limit)) => {
                let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
                let record = self.record.clone();
                let task = tokio::spawn(async move {
                    let Some(change) = &record.changing else {
                        return;
                    };
                    let changed = inner.carry_out(&vmm, &record, change, limit).await;
                    let note = Note::Volume(Box::new(changed));
                    let _ = notes.send((record.job.incarnation, note));
                });
                self.changing = Some(Changing {
                    answer: Some(answer),
                    task,
                });
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    /// Checks a change, and journals that it is to be.
    async fn begin_change(&mut self, ask: VolumeAsk) -> Result<Next, NodeError> {
        let spec = &self.record.job.spec;
        if !spec.has_own_disk() {
            return Err(NodeError::FixedVolumes);
        }
        if self.record.changing.is_some() || self.changing.is_some() {
            return Err(self.denied(Denial::Busy));
        }
        let there = |name: &str| spec.volumes.iter().find(|mount| mount.name == name);
        match &ask {
            VolumeAsk::Again(mount, _) if there(&mount.name) != Some(mount) => {
                return Err(self.denied(Denial::Busy));
            }
            VolumeAsk::Again(..) => {}
            VolumeAsk::Attach(mount, _) => match there(&mount.name) {
                // The same again, and it was done before.
                Some(there) if there == mount => {
                    return Ok(Next::Nothing);
                }
                Some(_) => return Err(VolumeError::AttachedHere(mount.name.clone()).into()),
                None => {}
            },
            VolumeAsk::Detach(detach) if there(&detach.name).is_none() => {
                return Err(VolumeError::NotAttached(detach.name.clone()).into());
            }
            VolumeAsk::Detach(_) => {}
        }
        let vmm = match &self.phase {
            Phase::Idle | Phase::Waiting(_) => None,
            Phase::Preparing(_) | Phase::Fitting(_) | Phase::Freeing(_) => {
                return Err(self.denied(Denial::Busy));
            }
            Phase::Held(_) => return Err(self.denied(Denial::Unknown)),
            Phase::Live(run) => match self.record.job.state {
                JobState::Running => Some(run.vm.vmm().ok_or_else(|| self.denied(Denial::Busy))?),
                JobState::Paused => return Err(self.denied(Denial::Paused)),
                JobState::Unknown => return Err(self.denied(Denial::Unknown)),
                _ => return Err(self.denied(Denial::Busy)),
            },
        };
        let mut record = self.record.clone();
        let mut limit = Duration::ZERO;
        let attaching = |mount: &VolumeMount, volume: &Volume| VolumeChange {
            attach: true,
            name: mount.name.clone(),
            volume: volume.id,
            serial: mounts::serial_of(volume),
        };
        match ask {
            VolumeAsk::Again(mount, volume) => match &vmm {
                Some(_) => record.changing = Some(attaching(&mount, &volume)),
                // Its next start has it.
                None => return Ok(Next::Nothing),
            },
            VolumeAsk::Attach(mount, volume) => {
                if vmm.is_none() {
                    mounts::check_free(&volume, &mount, record.job.id)?;
                }
                record.changing = vmm.as_ref().map(|_| attaching(&mount, &volume));
                for_both(&mut record, |volumes| volumes.push(mount.clone()));
                record.job.spec.validate()?;
                let (node, spec) = (self.inner.id, record.job.spec.clone());
                beside("look at what the guest is told", move || {
                    Ok(own_disk::check(node, &spec)?)
                })
                .await?;
                self.inner.check_slots(&record).await?;
            }
            VolumeAsk::Detach(detach) => {
                limit = detach.limit;
                match (&vmm, detach.volume) {
                    (None, _) => forget(&mut record, &detach.name),
                    (Some(_), Some((volume, serial))) => {
                        record.changing = Some(VolumeChange {
                            attach: false,
                            name: detach.name,
                            volume,
                            serial,
                        });
                    }
                    (Some(_), None) => return Err(VolumeError::NoVolume(detach.name).into()),
                }
            }
        }
        let kind = vmm.is_none().then_some("job.volumes-changed");
        self.keep_volumes(record, kind).await?;
        Ok(match vmm {
            Some(vmm) => Next::Plug(vmm, limit),
            None => Next::Nothing,
        })
    }

    /// Journals a record whose volumes are others.
    async fn keep_volumes(
        &mut self,
        mut record: JobRecord,
        kind: Option<&str>,
    ) -> Result<(), NodeError> {
        record.job.generation += 1;
        let event = kind.map(|kind| {
            let mut event = event_of(&record.job);
            event.kind = kind.into();
            event
        });
        let kept = self
            .inner
            .journal
            .update_job("job.volumes", record.clone(), event)
            .await?;
        self.inner.told(kept.as_ref());
        self.record = record;
        self.entry.publish(&self.record);
        Ok(())
    }

    /// What became of a change.
    pub(super) async fn volume_changed(&mut self, changed: Changed) {
        let Some(mut changing) = self.changing.take() else {
            return;
        };
        let Changed { present, error } = changed;
        let answer = changing.answer.take();
        let Some(present) = present else {
            // It is not known yet. Whoever asked hears why, and the machine is asked until it says.
            if let (Some(answer), Some(error)) = (answer, error) {
                let _ = answer.send(Err(error));
            }
            return self.find_out();
        };
        let mut record = self.record.clone();
        let change = record.changing.take();
        if let (Some(change), false) = (&change, present) {
            forget(&mut record, &change.name);
        }
        if let Err(error) = self.keep_volumes(record, Some("job.volumes-changed")).await {
            // The journal still says that it is under way, and whoever comes next asks the machine.
            tracing::error!(job = %self.entry.id, error = crate::vm::chain(&error), "the journal is behind what happens");
            self.find_out();
            if let Some(answer) = answer {
                let _ = answer.send(Err(error));
            }
            return;
        }
        if let Some(answer) = answer {
            let _ = answer.send(match error {
                Some(error) => Err(error),
                None => Ok(self.entry.job()),
            });
        }
    }

    /// Asks a machine what became of a change that nobody heard the end of.
    pub(super) fn find_out(&mut self) {
        let (Some(change), Phase::Live(run)) = (self.record.changing.clone(), &self.phase) else {
            return;
        };
        let vm = run.vm.clone();
        let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
        let owner = mounts::owner(&self.record);
        let task = tokio::spawn(async move {
            // One that is taken over has its VMM a moment later.
            let (Ok(_), Some(vmm)) = (vm.running().await, vm.vmm()) else {
                return;
            };
            // Not at once again where the journal could not be written.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let changed = inner.find_out(&vmm, owner, &change).await;
            if changed.present.is_some() {
                let note = Note::Volume(Box::new(changed));
                let _ = notes.send((owner.incarnation, note));
            }
        });
        self.changing = Some(Changing { answer: None, task });
    }

    /// The VM is gone: what was under way comes to nothing, and the job has what it had before.
    pub(super) async fn end_change(&mut self) {
        if let Some(mut changing) = self.changing.take() {
            // Its machine is gone. What blocks goes on alone, and gives back what it leases.
            changing.task.abort();
            let _ = (&mut changing.task).await;
            if let Some(answer) = changing.answer.take() {
                let _ = answer.send(Err(self.denied(Denial::Ended)));
            }
        }
        if let Some(change) = self.record.changing.take()
            && change.attach
        {
            forget(&mut self.record, &change.name);
        }
    }

    /// Brings what an earlier process left of a VM's volumes to what its VMM does.
    pub(super) fn settle_volumes(&mut self) {
        self.find_out();
        let Phase::Live(run) = &mut self.phase else {
            return;
        };
        let vm = run.vm.clone();
        let (inner, owner) = (Arc::downgrade(&self.inner), mounts::owner(&self.record));
        run.tasks.spawn(async move {
            let (Ok(_), Some(vmm)) = (vm.running().await, vm.vmm()) else {
                return;
            };
            let mut pause = AGAIN;
            while let Some(inner) = inner.upgrade() {
                if inner.settle_volumes(&vmm, owner).await {
                    return;
                }
                drop(inner);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN_AT_MOST);
            }
        });
    }
}

/// Changes what a job has, and what this start of it is.
fn for_both(record: &mut JobRecord, change: impl Fn(&mut Vec<VolumeMount>)) {
    change(&mut record.job.spec.volumes);
    if let Some(run) = &mut record.run {
        change(&mut run.effective.volumes);
    }
}

fn forget(record: &mut JobRecord, name: &str) {
    for_both(record, |volumes| volumes.retain(|mount| mount.name != name));
}
