//! What an earlier process of this node left: adopted, or cleaned up.
//!
//! | what is found | what becomes of it |
//! | --- | --- |
//! | a VM that was to start, and no record of its VMM | its command never ran: it starts anew |
//! | a row, and no place | it is gone: the row goes, and the job's end is the one that is journaled, or lost |
//! | a place that another process holds | hands off, and another look with each sweep |
//! | a VMM that cannot be looked at | the same; whoever destroys its job by force has it ended and removed |
//! | a place of an earlier boot of the host | removed; the job was lost |
//! | a VMM of a driver that this node has not | ended and removed; the job was lost |
//! | a place without a VMM | removed; the job's end is the one that is journaled, or lost |
//! | a VMM that runs | adopted: its guest goes on where it is, booted or not |

use super::actor::{Actor, Note};
use super::inner::Inner;
use super::{launch, snapshot};
use crate::drivers::NoDriver;
use crate::executor::setup;
use crate::guest::Reattach;
use crate::hypervisor::{AdoptError, Vmm, filling};
use crate::journal::Desired;
use crate::lifecycle::Outcome;
use crate::place::Place;
use crate::sweep;
use crate::vm::{Adoptee, Adoption, Thaw, Vm, chain};
use aleph_types::{CloudInitState, JobState, VmId};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// What was found.
pub(super) enum Found {
    /// A VM that runs, and what is done beside its job's actor.
    Vm(Vm, JoinSet<()>),
    /// One that nothing can be done with now, and why.
    Held(VmId, String),
    /// One that was to start, and whose guest never got its command; and whether its objects
    /// could be removed.
    Unbegun(Result<(), String>),
    /// One that has ended, and whether its objects could be removed.
    Gone(Outcome, Result<(), String>),
    /// None.
    NoVm,
}

pub(super) async fn recover(actor: &mut Actor, place: Option<Result<Place, VmId>>) -> Found {
    let job = &actor.record.job;
    let to_start = job.state == JobState::Starting && job.exit.is_none();
    let place = match place {
        None if job.vm.is_some() && to_start => return Found::Unbegun(Ok(())),
        None if actor.record.job.vm.is_some() => return Found::Gone(Outcome::Unknown, Ok(())),
        None => return Found::NoVm,
        Some(Err(vm)) => return Found::Held(vm, "another process holds its VM".into()),
        Some(Ok(place)) => place,
    };
    let inner = Arc::clone(&actor.inner);
    let Some(run) = actor.record.run.clone() else {
        return gone(&inner, &place).await;
    };
    if run.host_boot != inner.host_boot {
        actor.record.job.reason = Some("the host was restarted".into());
        return gone(&inner, &place).await;
    }
    let Some(identity) = place.recorded() else {
        return unbegun(&inner, &place, to_start).await;
    };
    let driver = match inner.executor.drivers().of(place.run_dir()) {
        Ok(driver) => driver,
        Err(error @ NoDriver::Unknown(_)) => {
            tracing::error!(job = %actor.entry.id, %error, "a VM is ended");
            actor.record.job.reason = Some(error.to_string());
            return gone(&inner, &place).await;
        }
        Err(error) => return unseen(actor, &place, &error),
    };
    let vmm = match driver.adopt(identity, place.run_dir().to_owned()) {
        Ok(vmm) => Arc::from(vmm),
        Err(AdoptError::Gone) => return gone(&inner, &place).await,
        Err(AdoptError::Unbegun) => return unbegun(&inner, &place, to_start).await,
        Err(error) => return unseen(actor, &place, &error),
    };
    let vmm: Arc<dyn Vmm> = vmm;
    let mut paused = match vmm.pause() {
        // One that does not answer is found out by its guest's silence.
        Some(facet) => facet.is_paused().await.unwrap_or(false),
        None => false,
    };
    let job = &actor.record.job;
    let ends_here = actor.record.desired == Desired::Stop;
    let begins_here = actor.record.from.is_some();
    if actor.record.frozen && !begins_here && !ends_here {
        go_on(&*vmm, &mut paused).await;
    }
    let mut setup = setup(job.id, &run.effective, run.filesystem.clone(), false);
    inner.adopt_network(place.vm());
    setup.network = inner.guest_network(place.vm());
    setup.mounts.clone_from(&run.mounts);
    let durable = run.mounts.iter().any(|mount| !mount.read_only);
    let own = snapshot::own(job.id, &run.effective, setup.network.clone());
    let thaw = match (actor.record.frozen, begins_here) {
        (false, _) => None,
        (true, true) => Some(Thaw::Another(own)),
        (true, false) => Some(Thaw::Itself(own)),
    };
    let alone = run.effective.has_own_disk();
    let guest = match alone {
        true => Adoptee::Alone,
        false => Adoptee::Agent {
            reattach: Box::new(Reattach {
                main: None,
                setup: Some(setup),
            }),
            thaw: thaw.filter(|_| !ends_here),
        },
    };
    // One whose memory is still being filled has as long for that as at its start.
    let pages = || inner.pages_at_hand(job.id, &job.spec);
    let busy = match job.spec.is_full_vm() && (run.effective.gpus.is_some() || pages().is_some()) {
        true => filling(run.effective.resources.memory),
        false => Duration::ZERO,
    };
    let adoption = Adoption {
        vmm,
        paused,
        guest,
        timeouts: inner.executor.timeouts_of(durable).after(busy),
        stop_signal: run.stop_signal,
        durable,
    };
    let (vm, main) = Vm::adopt(place, driver, adoption);
    let (incarnation, ended) = (job.incarnation, job.exit.is_some());
    let mut tasks = JoinSet::new();
    launch::watch(&mut tasks, &vm, incarnation, &actor.notes);
    let (notes, adopted) = (actor.notes.clone(), vm.clone());
    let is_told = job.cloud_init.as_ref();
    let is_told = is_told.is_some_and(|told| told.state != CloudInitState::Running);
    tasks.spawn(async move {
        if alone {
            if !is_told {
                launch::hear_alone(&adopted, notes, incarnation).await;
            }
            return;
        }
        let note = match main.await {
            // The VM's end says why its guest did not answer.
            Err(_) => return,
            Ok(Some(handle)) => Note::Began(handle),
            // Its end is journaled, and the guest was told so.
            Ok(None) if ended => return drop(adopted.kill().await),
            Ok(None) if begins_here => Note::Unfit("its command is not there".into()),
            // The guest never got its command.
            Ok(None) => match launch::hand_over(&adopted, &run.effective).await {
                Ok(handle) => Note::Began(handle),
                Err(error) => Note::Unfit(chain(&error)),
            },
        };
        let _ = notes.send((incarnation, note));
    });
    let job = &mut actor.record.job;
    job.state = match (job.state, paused) {
        (JobState::Stopping | JobState::Destroying | JobState::Starting, _) => job.state,
        (_, true) => JobState::Paused,
        // Until its guest has answered.
        (_, false) => JobState::Unknown,
    };
    actor.entry.publish(&actor.record);
    Found::Vm(vm, tasks)
}

/// Lets a guest's processors go on that an earlier process was about to write down.
async fn go_on(vmm: &dyn Vmm, paused: &mut bool) {
    if let Some(facet) = vmm.snapshot()
        && let Err(error) = facet.cancel().await
    {
        tracing::debug!(error = %chain(&error), "what was written down is not given up");
    }
    let Some(facet) = vmm.pause() else { return };
    // It may have said nothing while it was still writing; who says nothing now is asked to go on.
    if matches!(facet.is_paused().await, Ok(false)) {
        *paused = false;
        return;
    }
    match facet.resume().await {
        Ok(()) => *paused = false,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a guest that was written down does not go on");
        }
    }
}

/// A VM of which it cannot be told whether it runs.
fn unseen(actor: &Actor, place: &Place, error: &dyn std::error::Error) -> Found {
    let why = format!("its VMM cannot be looked at: {}", chain(error));
    tracing::error!(job = %actor.entry.id, why);
    Found::Held(place.vm(), why)
}

/// Removes what is left of one that may never have had a guest.
async fn unbegun(inner: &Inner, place: &Place, to_start: bool) -> Found {
    match (gone(inner, place).await, to_start) {
        (Found::Gone(_, removed), true) => Found::Unbegun(removed),
        (found, _) => found,
    }
}

/// Removes what is left of a VM that nobody can go on with.
async fn gone(inner: &Inner, place: &Place) -> Found {
    Found::Gone(Outcome::Unknown, removed(inner, place).await)
}

/// Ends and removes what is left of a VM. Says why that cannot be.
pub(super) async fn removed(inner: &Inner, place: &Place) -> Result<(), String> {
    sweep::remove(place, inner.executor.drivers().jails())
        .await
        .map_err(|error| chain(&error))
}
