//! VMMs whose processes are launched ahead, so that a cold start does not wait for the start of a
//! program.
//!
//! ```text
//! PooledProcess ── a template of its shape ──▶ Spare ──▶ Instance
//!   │ a process without a guest
//!   └──────────▶ destroyed
//! ```
//! A process serves any function of its shape: its CPUs and memory, its disks, and whether it is
//! connected. There are never more than [`FunctionsConfig::processes`] of them, of the shapes that
//! were asked for last, and none of a shape that no deployment has any more. One that was taken is replaced in the background, but not while a cold start
//! is under way: on a host of few processors that would take from it what it saved.
//!
//! Processes are for events: clones that are made ahead of need launch their own.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | [`ProcessPool`]: who waits, and who is launched when |
//! | `process` | one of them, from its launch until it has a guest |
//! | `shapes` | which are kept: pure |
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | another QEMU was installed since | those of the old one go |
//! | a process has died while it waited | it is passed over; the next one is taken, or one is launched as if there were none |
//! | it dies with what it is given, or refuses it | the same |
//! | a file of the template is on another filesystem, or not for its user | it goes; one is launched as if there were none, and none ahead for [`REST`] |
//! | a file of the template has no name any more, as it was removed | the same, without the rest |
//! | no process has the template's shape | one is launched as if there were none; the next of that shape finds one |
//! | its guest cannot be connected | it goes; the launch that follows says why |
//! | the VMM cannot wait for its guest (a QEMU without `-preconfig`, another VMM) | none is launched ahead for [`REST`] |
//! | one cannot be launched | it is told in the log; after [`TRIES`] in a row none is launched for [`REST`] |
//! | the node ends | all of them are killed and removed |
//! | the daemon is killed between any two steps | the next one's sweep finds the place, as that of any clone: the VMM by its record, its user or its group, files in its folder, a TAP by its name |
//!
//! [`FunctionsConfig::processes`]: super::FunctionsConfig

mod process;
mod shapes;

use super::deployment::DeploymentId;
use super::host::Host;
use super::instance::{CloneError, Spare};
use super::template::Template;
use crate::hypervisor::{LaunchError, Shape};
use aleph_types::VmId;
use process::PooledProcess;
use shapes::Shapes;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// For how long no process is launched ahead after that was of no use.
const REST: Duration = Duration::from_secs(60);

/// How many launches in a row may fail before: now and then a QEMU 7.2 in `-preconfig` does not answer
/// its monitor.
const TRIES: u32 = 3;

/// How long the next launch waits for cold starts that are under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// The processes that wait on a node.
pub(super) struct ProcessPool {
    host: Arc<Host>,
    state: Mutex<State>,
    /// How many cold starts are under way.
    cold: watch::Sender<usize>,
}

struct State {
    /// Of deployments that are there.
    wanted: HashMap<DeploymentId, Shape>,
    shapes: Shapes<Shape>,
    /// The one that was launched last at the end.
    waiting: Vec<PooledProcess>,
    /// Whether somebody launches what is missing.
    is_filling: bool,
    /// Until when nothing is launched.
    rests: Option<Instant>,
    is_closed: bool,
}

/// A cold start that is under way. Nothing is launched ahead meanwhile.
pub(super) struct ColdStart(Arc<ProcessPool>);

impl Drop for ColdStart {
    fn drop(&mut self) {
        self.0.cold.send_modify(|cold| *cold -= 1);
    }
}

impl ProcessPool {
    /// A pool of so many processes at most. None is launched before it is known of which shape.
    pub(super) fn new(host: Arc<Host>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            host,
            state: Mutex::new(State {
                wanted: HashMap::new(),
                shapes: Shapes::new(limit),
                waiting: Vec::new(),
                is_filling: false,
                rests: None,
                is_closed: limit == 0,
            }),
            cold: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VMs whose processes wait.
    pub(super) fn vms(&self) -> Vec<VmId> {
        let state = self.state();
        state.waiting.iter().map(PooledProcess::vm).collect()
    }

    /// Counts a cold start as under way for as long as what is returned lives.
    pub(super) fn cold_start(self: &Arc<Self>) -> ColdStart {
        self.cold.send_modify(|cold| *cold += 1);
        ColdStart(Arc::clone(self))
    }

    /// Has processes for clones of a deployment's template, until [`ProcessPool::forget`].
    pub(super) fn want(self: &Arc<Self>, deployment: DeploymentId, template: &Template) {
        let shape = template.shape(self.host.network.is_some());
        self.state().wanted.insert(deployment, shape.clone());
        self.ask(shape);
    }

    /// Has none for a deployment any more. Those that no other one can have go.
    pub(super) fn forget(&self, deployment: &DeploymentId) {
        let unwanted = {
            let mut state = self.state();
            let Some(shape) = state.wanted.remove(deployment) else {
                return;
            };
            if state.is_wanted(&shape) {
                return;
            }
            state.shapes.forget(&shape);
            state.take_surplus()
        };
        drop(unwanted);
    }

    fn ask(self: &Arc<Self>, shape: Shape) {
        let mut state = self.state();
        // An event may outlive its deployment.
        if state.is_closed || !state.is_wanted(&shape) {
            return;
        }
        state.shapes.ask(shape);
        if !state.is_filling && state.missing().is_some() {
            state.is_filling = true;
            self.host.burials.spawn(Arc::clone(self).fill());
        }
    }

    /// A spare of a template out of a process that waits; `None` where none is there for it.
    pub(super) async fn spare(self: &Arc<Self>, template: &Arc<Template>) -> Option<Spare> {
        let shape = template.shape(self.host.network.is_some());
        let compatibility = self.host.driver.compatibility();
        loop {
            let (process, others) = {
                let mut state = self.state();
                let others = state.take_others(&compatibility);
                let at = state.waiting.iter().position(|one| one.shape == shape);
                (at.map(|at| state.waiting.remove(at)), others)
            };
            drop(others);
            self.ask(shape.clone());
            let process = process?;
            let vm = process.vm();
            if !process.is_alive() {
                tracing::info!(%vm, "a process that was launched ahead has ended");
                continue;
            }
            let began = Instant::now();
            match process.begin(&self.host, Arc::clone(template)).await {
                Ok(spare) => {
                    tracing::debug!(%vm, elapsed = ?began.elapsed(), "a process that was launched ahead has a guest");
                    return Some(spare);
                }
                Err(error) => {
                    let why = crate::vm::chain(&error);
                    tracing::warn!(%vm, why, "a process that was launched ahead is given up");
                    match error {
                        CloneError::Vmm(LaunchError::Restore { .. }) => {}
                        // Its template or code was removed: that says nothing of others.
                        CloneError::Vmm(LaunchError::Late { source, .. })
                            if source.kind() == io::ErrorKind::NotFound =>
                        {
                            return None;
                        }
                        CloneError::Vmm(_) => {
                            self.state().rests = Some(Instant::now() + REST);
                            return None;
                        }
                        _ => return None,
                    }
                }
            }
        }
    }

    /// Launches what is missing, one after another.
    async fn fill(self: Arc<Self>) {
        let Some(ahead) = self.host.driver.ahead() else {
            // Nor will it the next time, unless another one is installed.
            tracing::debug!("the VMM cannot be launched ahead of need");
            let mut state = self.state();
            state.rests = Some(Instant::now() + REST);
            state.is_filling = false;
            return;
        };
        let mut failed = 0;
        loop {
            self.quiet().await;
            let (shape, surplus) = {
                let mut state = self.state();
                let surplus = state.take_surplus();
                let missing = state.missing();
                state.is_filling = missing.is_some();
                (missing, surplus)
            };
            drop(surplus);
            let Some(shape) = shape else { return };
            let began = Instant::now();
            match PooledProcess::launch(&self.host, ahead, shape).await {
                Ok(process) => {
                    failed = 0;
                    let vm = process.vm();
                    tracing::debug!(%vm, elapsed = ?began.elapsed(), "a process waits for a guest");
                    // One that comes too late goes with this.
                    let mut state = self.state();
                    if !state.is_closed && state.is_wanted(&process.shape) {
                        state.waiting.push(process);
                    }
                }
                Err(error) => {
                    let why = crate::vm::chain(&error);
                    tracing::warn!(why, "no process can be launched ahead");
                    failed += 1;
                    if failed < TRIES {
                        continue;
                    }
                    let mut state = self.state();
                    state.rests = Some(Instant::now() + REST);
                    state.is_filling = false;
                    return;
                }
            }
        }
    }

    /// Waits until no cold start is under way, or for a while.
    async fn quiet(&self) {
        let mut cold = self.cold.subscribe();
        tokio::select! {
            _ = cold.wait_for(|cold| *cold == 0) => {}
            () = tokio::time::sleep(PATIENCE) => {}
            () = self.host.closing.cancelled() => {}
        }
    }

    /// Ends all of them, and launches none any more.
    pub(super) fn close(&self) {
        let waiting = {
            let mut state = self.state();
            state.is_closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
    }
}

impl State {
    fn is_wanted(&self, shape: &Shape) -> bool {
        self.wanted.values().any(|wanted| wanted == shape)
    }

    fn there(&self) -> Vec<&Shape> {
        self.waiting.iter().map(|process| &process.shape).collect()
    }

    fn missing(&self) -> Option<Shape> {
        let rests = self.rests.is_some_and(|until| Instant::now() < until);
        let missing = self.shapes.missing(&self.there());
        missing.filter(|_| !rests && !self.is_closed)
    }

    /// Those of another VMM than that which is installed now.
    fn take_others(&mut self, compatibility: &str) -> Vec<PooledProcess> {
        let is_other = |one: &mut PooledProcess| one.compatibility != compatibility;
        self.waiting.extract_if(.., is_other).collect()
    }

    fn take_surplus(&mut self) -> Vec<PooledProcess> {
        let mut taken = Vec::new();
        while let Some(at) = self.shapes.surplus(&self.there()) {
            taken.push(self.waiting.remove(at));
        }
        taken
    }
}
