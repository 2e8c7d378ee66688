//! From a VM's row to the VM, and the GPUs of its job on the way there and back.
//!
//! GPUs are bound and reset beside the actor: a device that hangs takes as long as it likes, and whoever
//! asks for the job, or for its end, is answered meanwhile. A job whose end was asked for while they are
//! made ready ends when that is over, and gives them back.

use super::{Actor, Note, Parts, Phase};
use crate::guest::GuestNetwork;
use crate::hypervisor::{HostDevices, Nic};
use crate::journal::{Desired, RunRecord};
use crate::lifecycle::{Failure, Outcome};
use crate::node::snapshot::Kept;
use crate::node::{NodeError, SnapshotError, launch};
use std::sync::Arc;
use tokio::task::JoinSet;

/// A start whose VM has its row, and what the VM is made of.
pub(super) struct Begun {
    pub(super) run: RunRecord,
    pub(super) parts: Parts,
    pub(super) kept: Option<Arc<Kept>>,
    pub(super) connected: (Vec<Nic>, Option<GuestNetwork>),
}

/// What follows when a job's GPUs are the host's again.
pub(super) enum After {
    /// Its start is over: why its VM was ended, how that ended, and whether it could be removed.
    End(Option<String>, Outcome, Result<(), String>),
    /// A start that an earlier process began goes back to its beginning.
    Anew,
}

impl Actor {
    /// Has the job get the GPUs that it asks for, if it asks for any, and then its VM.
    pub(super) async fn fit(&mut self, begun: Begun) {
        if self.record.job.spec.gpus.is_none() {
            return self.build(begun, HostDevices::default()).await;
        }
        let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
        let job = self.record.job.clone();
        let memory = match &begun.parts {
            Parts::Disks(parts) => parts.memory(),
            Parts::Image(_) => (job.spec.resources.memory, inner.pages_of(&job.spec)),
        };
        tokio::spawn(async move {
            let devices = inner.assign_gpus(&job, memory).await;
            let _ = notes.send((job.incarnation, Note::Fitted(Box::new(devices))));
        });
        self.phase = Phase::Fitting(Box::new(begun));
    }

    /// Its GPUs are ready, or it gets none.
    pub(super) async fn fitted(&mut self, devices: Result<HostDevices, NodeError>) {
        let begun = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Fitting(begun) => *begun,
            other => return self.phase = other,
        };
        if matches!(self.record.desired, Desired::Stop | Desired::Destroy) {
            return self.removed(Outcome::Stopped, Ok(())).await;
        }
        match devices {
            Ok(devices) => {
                let mut record = self.record.clone();
                let gpus = devices.groups.iter().flat_map(|group| &group.gpus);
                record.job.gpus = gpus.map(ToString::to_string).collect();
                // Where it cannot be kept, the record of GPUs still has it.
                let _ = self.save_quietly("job.gpus", record).await;
                self.build(begun, devices).await;
            }
            Err(error) => self.unbuilt(&error).await,
        }
    }

    /// Makes the VM, and starts it.
    async fn build(&mut self, begun: Begun, devices: HostDevices) {
        let Begun {
            run,
            parts,
            kept,
            connected: cables,
        } = begun;
        let created = match (parts, kept) {
            (Parts::Disks(parts), _) => {
                let connections = (cables, devices);
                self.inner
                    .create_with_disks(&self.record, &run, *parts, connections)
                    .await
            }
            (Parts::Image(parts), None) => {
                let (prepared, mounts) = *parts;
                let parts = (prepared.boot, mounts.disks, cables, devices);
                launch::create(&self.inner, &self.record, &run, parts).await
            }
            (Parts::Image(_), Some(_)) if !devices.groups.is_empty() => {
                let why = "its job has GPUs, and it was made without".to_owned();
                Err(SnapshotError::Incompatible(why).into())
            }
            (Parts::Image(parts), Some(kept)) => {
                let image = parts.0.boot.image;
                self.inner
                    .restore_vm((&self.record, &run), &kept, image, cables)
            }
        };
        let vm = match created {
            Ok(vm) => vm,
            Err(error) => return self.unbuilt(&error).await,
        };
        let mut tasks = JoinSet::new();
        if run.effective.has_own_disk() {
            // Before it says its first word.
            self.goes_live(vm.clone(), JoinSet::new());
            self.hears_alone();
            launch::start_alone(&mut tasks, &vm, &self.record, &self.notes);
            if let Phase::Live(run) = &mut self.phase {
                run.tasks = tasks;
            }
            return;
        }
        launch::start(&mut tasks, &vm, &self.record, &run, &self.notes);
        self.goes_live(vm, tasks);
    }

    /// A start whose VM cannot be made: what it had got goes back.
    pub(super) async fn unbuilt(&mut self, error: &NodeError) {
        let why = crate::vm::chain(error);
        self.record.job.reason = Some(why.clone());
        let failed = Outcome::Failed(Failure::Launch(why));
        self.removed(failed, Ok(())).await;
    }

    /// Takes back the GPUs that the job may have, and goes on with what follows.
    pub(super) fn free(&mut self, then: After) {
        let (inner, notes) = (Arc::clone(&self.inner), self.notes.clone());
        let job = self.record.job.clone();
        tokio::spawn(async move {
            let freed = inner.release_gpus(&job).await;
            let _ = notes.send((job.incarnation, Note::Freed(freed)));
        });
        self.phase = Phase::Freeing(Box::new(then));
    }

    /// They are the host's; where they are not, it is seen to it once the record has no VM for them any more.
    pub(super) async fn freed(&mut self, freed: bool) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Freeing(then) => match *then {
                After::End(verdict, outcome, removed) => {
                    self.settled(verdict, outcome, removed).await;
                }
                After::Anew => self.anew(Ok(())).await,
            },
            other => self.phase = other,
        }
        if !freed {
            self.inner.recover_gpus_soon();
        }
    }
}
