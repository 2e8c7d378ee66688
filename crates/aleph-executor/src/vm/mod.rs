//! One VM: its actor, which is the only writer of its state, and the handle to it.
//!
//! The actor feeds requests and observations into the pure [`Lifecycle`] and carries out the
//! effects. Effects that take time run as tasks of their own and report back as notes, so that
//! the actor always answers: a kill is heard while a launch, a pause or a removal is under way.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | the handle, [`Vm`] |
//! | `actor` | the actor |
//! | `launch` | everything from the first folder to a VMM that runs |
//! | `awakening` | the conversation with a guest begins, a new one or one that was written down |
//! | `standing` | guests that stand still, and go on |

mod actor;
mod awakening;
mod launch;
mod standing;

pub(crate) use awakening::{go_on_as, itself, reach};
pub(crate) use launch::chain;

use crate::console::Console;
use crate::guest::{
    Agent, AgentError, BootReport, CloneRequest, ExecHandle, ExecRequest, MainPosition, Reattach,
    SetupRequest,
};
use crate::hypervisor::{Disk, Driver, Kernel, Link, Machine, Memory, Nic, Vmm, VmmError};
use crate::lifecycle::{Denial, Failure, Lifecycle, Outcome, Request, State, Timeouts};
use crate::place::{Place, PlaceError};
use crate::process::Identity;
use actor::{Actor, Asked};
use aleph_types::{Resources, VmId};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// What a VM is made from.
#[derive(Debug)]
pub struct VmSpec {
    /// Its CPUs, memory and scratch disk.
    pub resources: Resources,
    /// Which machine it has.
    pub machine: Machine,
    /// What its guest begins with.
    pub begin: Begin,
    /// The root filesystem; none where the guest has a disk of its own.
    pub image: Option<File>,
    /// Further disks, behind the root filesystem's.
    pub disks: Vec<Disk>,
    /// Where its memory is.
    pub memory: Memory,
    /// Its network devices. The first is what the guest is told of.
    pub nics: Vec<Nic>,
    /// Its links to this process.
    pub links: Vec<Link>,
    /// How long each stage of its life may take.
    pub timeouts: Timeouts,
    /// How it ends.
    pub ending: Ending,
}

/// What a VM's guest begins with.
#[derive(Debug)]
pub enum Begin {
    /// With a kernel.
    Boot {
        /// The kernel to boot.
        kernel: File,
        /// Its initramfs, with the agent in it.
        initrd: File,
        /// The kernel's command line, beyond what the driver's machine needs.
        command_line: String,
        /// How the guest is set up.
        setup: Box<SetupRequest>,
    },
    /// Where another one stood still. Its main command is there already: [`Vm::start`] is given
    /// none, and gives that one.
    Snapshot(Box<Origin>),
    /// With what is on its own disks, found there by its firmware or started by a kernel that it is
    /// given. There is no agent in it: it runs as soon as its VMM does, and ends when it powers itself
    /// off.
    Disk(Option<Box<Kernel>>),
}

/// A guest that was written down, for another VM to go on from.
#[derive(Debug)]
pub struct Origin {
    /// Its devices and its memory.
    pub state: File,
    /// Its scratch disk, of which the VM gets a copy.
    pub scratch: Option<PathBuf>,
    /// How far its main command's output is known.
    pub main: MainPosition,
    /// What the VM has of its own.
    pub own: CloneRequest,
}

/// How a VM ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Whether it runs on when the last handle is dropped, for a later process to adopt.
    pub kept: bool,
    /// The signal that asks its main command to end.
    pub stop_signal: u8,
    /// Whether its guest writes to disks that outlive it: then it is waited for until it has written
    /// them out and has ended by itself.
    pub durable: bool,
}

/// What is known of a VM that an earlier process left running.
pub struct Adoption {
    /// Its VMM.
    pub vmm: Arc<dyn Vmm>,
    /// Whether its guest is frozen.
    pub paused: bool,
    /// Who is in its guest.
    pub guest: Adoptee,
    /// How long each stage of its life may take.
    pub timeouts: Timeouts,
    /// The signal that asks its main command to end.
    pub stop_signal: u8,
    /// As in [`Ending`].
    pub durable: bool,
}

/// Who is in the guest of a VM that is adopted.
pub enum Adoptee {
    /// Our agent.
    Agent {
        /// What is known of its main command, and how its guest is set up where that did not happen.
        reattach: Box<Reattach>,
        /// What it has of its own, where its processes may stand still: to be written down, or since
        /// it began with a snapshot. They go on with that.
        thaw: Option<Thaw>,
    },
    /// Nobody of ours: see [`Begin::Disk`].
    Alone,
}

/// What a guest whose processes may stand still goes on as.
#[derive(Debug, Clone)]
pub enum Thaw {
    /// What it was.
    Itself(CloneRequest),
    /// A guest of its own.
    Another(CloneRequest),
}

/// A VM's observed state. `generation` grows with every change.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Counts the changes.
    pub generation: u64,
    /// Where its life is.
    pub state: State,
    /// How the boot went, once it is over.
    pub boot: Option<BootReport>,
    /// How long what is needed before the VMM took: folders, sockets, cgroup, disk.
    pub prepared_in: Option<Duration>,
    /// Its VMM's process, once that runs.
    pub vmm: Option<Identity>,
    /// Whether its guest ended the machine by itself, after it was asked to or its main command had
    /// ended: what it wrote to disks that outlive it is whole.
    pub in_order: bool,
}

/// A request that did not work out.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// It makes no sense now.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The VM ended instead.
    #[error("{0}")]
    Ended(Outcome),
    /// The guest's agent could not do it.
    #[error("the guest failed")]
    Agent(#[from] AgentError),
    /// Its VMM did not do it.
    #[error("the VMM failed")]
    Vmm(#[from] VmmError),
    /// Something could not be removed.
    #[error("something of the VM could not be removed")]
    Remove(#[source] Arc<PlaceError>),
    /// The node is shutting down.
    #[error("the VM's actor is gone")]
    Gone,
}

/// A handle to a VM. Clones speak to the same one. When the last is dropped the VM is killed and
/// removed, unless it outlives its process ([`Ending::kept`]).
#[derive(Debug, Clone)]
pub struct Vm {
    id: VmId,
    requests: mpsc::Sender<Asked>,
    urgent: mpsc::Sender<Asked>,
    status: watch::Receiver<Status>,
    agent: watch::Receiver<Option<Agent>>,
    vmm: watch::Receiver<Option<Arc<dyn Vmm>>>,
    console: Arc<Console>,
    trouble: Arc<std::sync::Mutex<Option<Arc<PlaceError>>>>,
    is_cut: Arc<AtomicBool>,
    main_again: Arc<std::sync::Mutex<Option<ExecHandle>>>,
}

impl Vm {
    /// Begins the life of a VM at its place.
    #[must_use]
    pub fn create(place: Place, driver: Arc<dyn Driver>, spec: VmSpec) -> Self {
        // Image, memory and scratch disk: nothing of a VM outlives its main command, but the disks of
        // one that has such. The end of a kept one counts once it is stored.
        let alone = matches!(spec.begin, Begin::Disk(_));
        let lifecycle = Lifecycle::new(spec.timeouts, !(alone || spec.ending.durable));
        let ending = spec.ending;
        Self::spawn(place, driver, (lifecycle, alone), ending, |_| Some(spec))
    }

    /// Goes on with a VM that an earlier process left running. The second is its main command,
    /// once its guest has answered; none where it has no such command (yet).
    #[must_use]
    pub fn adopt(
        place: Place,
        driver: Arc<dyn Driver>,
        adoption: Adoption,
    ) -> (Self, oneshot::Receiver<Option<ExecHandle>>) {
        let alone = matches!(adoption.guest, Adoptee::Alone);
        let ephemeral = !(alone || adoption.durable);
        let lifecycle = Lifecycle::after_restart(adoption.timeouts, ephemeral);
        let ending = Ending {
            kept: true,
            stop_signal: adoption.stop_signal,
            durable: adoption.durable,
        };
        let (main, told) = oneshot::channel();
        let handle = Self::spawn(place, driver, (lifecycle, alone), ending, |actor| {
            actor.adopt(adoption, main);
            None
        });
        (handle, told)
    }

    fn spawn(
        place: Place,
        driver: Arc<dyn Driver>,
        (lifecycle, alone): (Lifecycle, bool),
        ending: Ending,
        begin: impl FnOnce(&mut Actor) -> Option<VmSpec>,
    ) -> Self {
        let (requests, inbox) = mpsc::channel(16);
        let (urgent, urgent_inbox) = mpsc::channel(4);
        let (status, status_watch) = watch::channel(Status {
            generation: 0,
            state: lifecycle.state().clone(),
            boot: None,
            prepared_in: None,
            vmm: None,
            in_order: false,
        });
        let (agent, agent_watch) = watch::channel(None);
        let (running, vmm_watch) = watch::channel(None);
        let console = Arc::new(Console::default());
        let (notes, note_inbox) = mpsc::unbounded_channel();
        let trouble = Arc::default();
        let (is_cut, main_again) = (Arc::default(), Arc::default());
        let handle = Self {
            id: place.vm(),
            requests,
            urgent,
            status: status_watch,
            agent: agent_watch,
            vmm: vmm_watch,
            console: Arc::clone(&console),
            trouble: Arc::clone(&trouble),
            is_cut: Arc::clone(&is_cut),
            main_again: Arc::clone(&main_again),
        };
        let mut actor = Actor {
            lifecycle,
            began: Instant::now(),
            place: Arc::new(place),
            driver,
            spec: None,
            ending,
            alone,
            unasked: None,
            watchers: Vec::new(),
            agent_watcher: Arc::default(),
            vmm: None,
            running,
            console,
            notes,
            status,
            agent,
            trouble,
            is_cut,
            main_again,
            starter: None,
            destroyers: Vec::new(),
            removal_failed: false,
        };
        actor.spec = begin(&mut actor);
        tokio::spawn(actor.run(inbox, urgent_inbox, note_inbox));
        handle
    }

    /// Its id on this node.
    #[must_use]
    pub fn id(&self) -> VmId {
        self.id
    }

    /// Its state now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Its serial console.
    #[must_use]
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Its VMM, where it runs.
    pub(crate) fn vmm(&self) -> Option<Arc<dyn Vmm>> {
        self.vmm.borrow().clone()
    }

    /// Listens for connections that its guest begins to this port of its host, as
    /// [`Vmm::listen`] has it.
    ///
    /// # Errors
    /// The VMM's; [`std::io::ErrorKind::NotConnected`] where none runs.
    pub fn listen(&self, port: u32) -> std::io::Result<tokio::net::UnixListener> {
        let vmm = self.vmm().ok_or(std::io::ErrorKind::NotConnected)?;
        vmm.listen(port)
    }

    /// What its VMM counts of itself, where it runs and does.
    #[must_use]
    pub fn vmm_figures(&self) -> Option<BTreeMap<String, u64>> {
        self.vmm()?.figures()
    }

    /// Launches it, and hands a main command over that the guest runs as soon as it can. The VM
    /// ends with that command. Without one it runs until it is stopped.
    ///
    /// Returns when the VMM runs; [`Vm::running`] waits for the guest.
    ///
    /// # Errors
    /// Where it was started before, or the VMM does not start.
    pub async fn start(&self, main: Option<ExecRequest>) -> Result<Option<ExecHandle>, VmError> {
        self.ask(&self.requests, Request::Start, main).await
    }

    /// Waits until the guest runs.
    ///
    /// # Errors
    /// [`VmError::Ended`] where it ends instead.
    pub async fn running(&self) -> Result<BootReport, VmError> {
        let mut status = self.status.clone();
        loop {
            {
                let seen = status.borrow_and_update();
                match (&seen.state, seen.boot) {
                    (_, Some(report)) => return Ok(report),
                    (State::Stopped { outcome } | State::Destroyed { outcome }, None) => {
                        return Err(VmError::Ended(outcome.clone()));
                    }
                    _ => {}
                }
            }
            status.changed().await.map_err(|_| VmError::Gone)?;
        }
    }

    /// Waits until its launch has begun.
    pub(crate) async fn begun(&self) {
        let mut status = self.status.clone();
        // An actor that is gone began long ago.
        let _ = status.wait_for(|s| s.state != State::Created).await;
    }

    /// Waits until its VMM has ended, and says how the life ended.
    ///
    /// # Errors
    /// Where the node shuts down first.
    pub async fn wait(&self) -> Result<Outcome, VmError> {
        let mut status = self.status.clone();
        let ended = status
            .wait_for(|s| matches!(s.state, State::Stopped { .. } | State::Destroyed { .. }))
            .await
            .map_err(|_| VmError::Gone)?;
        match &ended.state {
            State::Stopped { outcome } | State::Destroyed { outcome } => Ok(outcome.clone()),
            _ => Err(VmError::Gone),
        }
    }

    /// Runs a command in the guest.
    ///
    /// # Errors
    /// Where no guest runs.
    pub fn exec(&self, request: &ExecRequest) -> Result<ExecHandle, VmError> {
        Ok(self.agent()?.exec(request)?)
    }

    /// The connection to the guest's agent.
    ///
    /// # Errors
    /// Where the VM was not started, or has ended.
    pub fn agent(&self) -> Result<Agent, VmError> {
        self.agent
            .borrow()
            .clone()
            .ok_or(VmError::Denied(Denial::NotRunning))
    }

    /// Ends it: the guest's processes get TERM, after `grace` KILL, or its power button is pressed where
    /// nobody of ours is in it; a guest that does not power off is ended through its VMM, and at last killed. Waits for the end.
    ///
    /// # Errors
    /// Where it makes no sense now.
    pub async fn stop(&self, grace: Duration) -> Result<Outcome, VmError> {
        self.ask(&self.requests, Request::Stop { grace }, None)
            .await?;
        self.ended_or_never_started().await
    }

    /// Kills it and waits for the end.
    ///
    /// # Errors
    /// Where it makes no sense now.
    pub async fn kill(&self) -> Result<Outcome, VmError> {
        self.ask(&self.urgent, Request::Kill, None).await?;
        self.ended_or_never_started().await
    }

    async fn ended_or_never_started(&self) -> Result<Outcome, VmError> {
        if self.status.borrow().state == State::Created {
            return Ok(Outcome::Stopped);
        }
        self.wait().await
    }

    /// Freezes its processors.
    ///
    /// # Errors
    /// Where it does not run, or the VMM does not do it.
    pub async fn pause(&self) -> Result<(), VmError> {
        self.ask(&self.requests, Request::Pause, None).await?;
        self.settle(|state| *state == State::Paused).await
    }

    /// Writes it down while it is paused: see [`Snapshot::save`](crate::hypervisor::Snapshot::save).
    /// Where the VMM ends connections with it, [`Vm::resume`] makes a new one: then
    /// [`Vm::agent`] gives another, all of the old one fails, and [`Vm::main_again`] has the main
    /// command.
    ///
    /// # Errors
    /// Where it is not paused, or the VMM does not do it.
    pub async fn save(&self, state: File) -> Result<(), VmError> {
        if self.status.borrow().state != State::Paused {
            return Err(VmError::Denied(Denial::NotPaused));
        }
        let vmm = self.vmm.borrow().clone();
        let vmm = vmm.ok_or(VmError::Denied(Denial::NotRunning))?;
        match vmm.snapshot() {
            Some(facet) => {
                if facet.ends_connections() {
                    self.is_cut.store(true, Ordering::Release);
                }
                Ok(facet.save(state).await?)
            }
            None => Err(VmError::Denied(Denial::Impossible)),
        }
    }

    /// Its main command over the connection that it got when it went on after a snapshot, if it got
    /// one; once.
    #[must_use]
    pub fn main_again(&self) -> Option<ExecHandle> {
        let main = self.main_again.lock();
        main.unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    /// Whether its VMM can write it down.
    pub(crate) fn can_be_saved(&self) -> bool {
        let vmm = self.vmm.borrow();
        vmm.as_ref().is_some_and(|vmm| vmm.snapshot().is_some())
    }

    /// Gives up writing it down, if that is under way.
    ///
    /// # Errors
    /// Where the VMM does not do it.
    pub(crate) async fn cancel_save(&self) -> Result<(), VmError> {
        let vmm = self.vmm.borrow().clone();
        match vmm.as_deref().and_then(Vmm::snapshot) {
            Some(facet) => Ok(facet.cancel().await?),
            None => Ok(()),
        }
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it is not paused, or the VMM does not do it.
    pub async fn resume(&self) -> Result<(), VmError> {
        self.ask(&self.requests, Request::Resume, None).await?;
        self.settle(|state| *state == State::Running).await
    }

    /// Waits until it is on its way neither to a pause nor out of one.
    pub(crate) async fn settled(&self) {
        let mut status = self.status.clone();
        // An actor that is gone is on no way at all.
        let _ = status
            .wait_for(|s| !matches!(s.state, State::Pausing | State::Resuming))
            .await;
    }

    async fn settle(&self, wanted: impl Fn(&State) -> bool) -> Result<(), VmError> {
        let mut status = self.status.clone();
        let settled = status
            .wait_for(|s| !matches!(s.state, State::Pausing | State::Resuming))
            .await
            .map_err(|_| VmError::Gone)?;
        if wanted(&settled.state) {
            Ok(())
        } else {
            Err(VmError::Denied(Denial::Busy))
        }
    }

    /// Removes all that the host holds for it. It must have ended.
    ///
    /// # Errors
    /// Where it is live, or something could not be removed: then it can be asked again.
    pub async fn destroy(&self) -> Result<(), VmError> {
        self.ask(&self.requests, Request::Destroy, None)
            .await
            .map(drop)
    }

    /// What the console said last, where that may explain how the life ended.
    #[must_use]
    pub fn last_words(&self, outcome: &Outcome) -> Vec<String> {
        match outcome {
            Outcome::Failed(Failure::Vmm(_) | Failure::Silent(_) | Failure::Guest(_)) => {
                self.console.last_lines(20)
            }
            _ => Vec::new(),
        }
    }

    /// What could not be made or removed for it, in full.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<PlaceError>> {
        self.trouble
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    async fn ask(
        &self,
        inbox: &mpsc::Sender<Asked>,
        request: Request,
        main: Option<ExecRequest>,
    ) -> Result<Option<ExecHandle>, VmError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            request,
            main,
            answer,
        };
        inbox.send(asked).await.map_err(|_| VmError::Gone)?;
        answered.await.map_err(|_| VmError::Gone)?
    }
}
