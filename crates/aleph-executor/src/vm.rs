//! One VM: its actor, which is the only writer of its state, and the handle to it.
//!
//! The actor feeds requests and observations into the pure [`Lifecycle`] and carries out the
//! effects. Effects that take time run as tasks of their own and report back as notes, so that
//! the actor always answers: a kill is heard while a launch, a pause or a removal is under way.

use crate::console::Console;
use crate::guest::{Agent, AgentError, BootReport, ExecHandle, ExecRequest, SetupRequest};
use crate::hypervisor::{Disk, Driver, Launch, LaunchError, Vmm, VmmExit, socket_name};
use crate::lifecycle::{
    Admission, Denial, Effect, Event, Failure, Lifecycle, Moment, Outcome, Request, State, Timeouts,
};
use crate::place::{Place, PlaceError};
use aleph_types::{Resources, VmId};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// What a VM is made from.
#[derive(Debug)]
pub struct VmSpec {
    /// Its CPUs, memory and scratch disk.
    pub resources: Resources,
    /// The kernel to boot.
    pub kernel: File,
    /// Its initramfs, with the agent in it.
    pub initrd: File,
    /// The kernel's command line, beyond what the driver's machine needs.
    pub command_line: String,
    /// The root filesystem.
    pub image: File,
    /// How the guest is set up.
    pub setup: SetupRequest,
    /// How long each stage of its life may take.
    pub timeouts: Timeouts,
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
    /// Something could not be removed.
    #[error("something of the VM could not be removed")]
    Remove(#[source] Arc<PlaceError>),
    /// The node is shutting down.
    #[error("the VM's actor is gone")]
    Gone,
}

/// A handle to a VM. Clones speak to the same one. When the last is dropped the VM is killed and
/// removed.
#[derive(Debug, Clone)]
pub struct Vm {
    id: VmId,
    requests: mpsc::Sender<Asked>,
    urgent: mpsc::Sender<Asked>,
    status: watch::Receiver<Status>,
    agent: watch::Receiver<Option<Agent>>,
    console: Arc<Console>,
    trouble: Arc<std::sync::Mutex<Option<Arc<PlaceError>>>>,
}

struct Asked {
    request: Request,
    main: Option<ExecRequest>,
    answer: oneshot::Sender<Result<Option<ExecHandle>, VmError>>,
}

impl Vm {
    /// Begins the life of a VM at its place.
    #[must_use]
    pub fn create(place: Place, driver: Arc<dyn Driver>, spec: VmSpec) -> Self {
        let ephemeral =
            spec.resources.disk.0 == 0 || matches!(spec.setup.upper, crate::guest::UpperKind::Disk);
        let lifecycle = Lifecycle::new(spec.timeouts, ephemeral);
        let (requests, inbox) = mpsc::channel(16);
        let (urgent, urgent_inbox) = mpsc::channel(4);
        let (status, status_watch) = watch::channel(Status {
            generation: 0,
            state: lifecycle.state().clone(),
            boot: None,
            prepared_in: None,
        });
        let (agent, agent_watch) = watch::channel(None);
        let console = Arc::new(Console::default());
        let (notes, note_inbox) = mpsc::unbounded_channel();
        let trouble = Arc::default();
        let handle = Self {
            id: place.vm(),
            requests,
            urgent,
            status: status_watch,
            agent: agent_watch,
            console: Arc::clone(&console),
            trouble: Arc::clone(&trouble),
        };
        let actor = Actor {
            lifecycle,
            began: Instant::now(),
            place: Arc::new(place),
            driver,
            spec: Some(spec),
            vmm: None,
            console,
            notes,
            status,
            agent,
            trouble,
            starter: None,
            destroyers: Vec::new(),
            removal_failed: false,
        };
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

    /// The end of its serial console.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
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

    /// Ends it: the guest's processes get TERM, after `grace` KILL; a guest that does not power
    /// off is ended through its VMM, and at last killed. Waits for the end.
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

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it is not paused, or the VMM does not do it.
    pub async fn resume(&self) -> Result<(), VmError> {
        self.ask(&self.requests, Request::Resume, None).await?;
        self.settle(|state| *state == State::Running).await
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

/// What tasks report to the actor.
enum Note {
    Event(Event),
    Launched(Launched),
    Ready(BootReport),
    Removed(Result<(), PlaceError>),
    Trouble(PlaceError),
}

/// A VMM that runs, and the conversation with its guest.
struct Launched {
    vmm: Arc<dyn Vmm>,
    agent: Agent,
    main: Option<ExecHandle>,
    console: JoinHandle<()>,
    prepared_in: Duration,
}

type Starter = oneshot::Sender<Result<Option<ExecHandle>, VmError>>;

struct Actor {
    lifecycle: Lifecycle,
    began: Instant,
    place: Arc<Place>,
    driver: Arc<dyn Driver>,
    spec: Option<VmSpec>,
    vmm: Option<Arc<dyn Vmm>>,
    console: Arc<Console>,
    notes: mpsc::UnboundedSender<Note>,
    status: watch::Sender<Status>,
    agent: watch::Sender<Option<Agent>>,
    trouble: Arc<std::sync::Mutex<Option<Arc<PlaceError>>>>,
    /// Who waits for the launch, with the main command until it is handed over.
    starter: Option<(Starter, Option<ExecRequest>)>,
    destroyers: Vec<Starter>,
    removal_failed: bool,
}

impl Actor {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Asked>,
        mut urgent: mpsc::Receiver<Asked>,
        mut notes: mpsc::UnboundedReceiver<Note>,
    ) {
        let mut abandoned = false;
        while !matches!(self.lifecycle.state(), State::Destroyed { .. }) {
            let deadline = self.lifecycle.deadline().map(|moment| self.began + moment);
            let tick = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(asked) = urgent.recv() => self.asked(asked),
                Some(note) = notes.recv() => self.noted(note),
                asked = inbox.recv(), if !abandoned => match asked {
                    Some(asked) => self.asked(asked),
                    None => abandoned = true,
                },
                () = tick => self.step(Event::Tick),
            }
            if abandoned {
                if self.removal_failed {
                    // Nobody is left to ask again; the next sweep will.
                    break;
                }
                self.clean_up();
            }
        }
        self.agent.send_replace(None);
    }

    /// Nobody holds a handle any more: end it, and remove it as soon as that is possible.
    fn clean_up(&mut self) {
        match self.lifecycle.state() {
            State::Destroying { .. } | State::Destroyed { .. } => {}
            State::Created | State::Stopped { .. } => self.step(Event::Requested(Request::Destroy)),
            _ => self.step(Event::Requested(Request::Kill)),
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    fn asked(&mut self, asked: Asked) {
        let Asked {
            request,
            main,
            answer,
        } = asked;
        match self.lifecycle.admit(&request) {
            Admission::Deny(denial) => _ = answer.send(Err(denial.into())),
            // Whoever asks again for a removal under way hears how that one ends.
            Admission::Ignore
                if request == Request::Destroy
                    && matches!(self.lifecycle.state(), State::Destroying { .. }) =>
            {
                self.destroyers.push(answer);
            }
            Admission::Ignore => _ = answer.send(Ok(None)),
            Admission::Accept => {
                let answer = match request {
                    Request::Start => {
                        self.starter = Some((answer, main));
                        None
                    }
                    Request::Destroy => {
                        self.destroyers.push(answer);
                        None
                    }
                    _ => Some(answer),
                };
                self.step(Event::Requested(request));
                // Only now: whoever hears the answer also sees the new state.
                if let Some(answer) = answer {
                    let _ = answer.send(Ok(None));
                }
            }
        }
    }

    fn noted(&mut self, note: Note) {
        match note {
            Note::Event(event) => self.step(event),
            Note::Launched(Launched {
                vmm,
                agent,
                main,
                console,
                prepared_in,
            }) => {
                self.status
                    .send_modify(|s| s.prepared_in = Some(prepared_in));
                self.watch(&vmm, &agent, console);
                self.vmm = Some(vmm);
                self.agent.send_replace(Some(agent));
                if let Some((starter, _)) = self.starter.take() {
                    let _ = starter.send(Ok(main));
                }
                self.step(Event::Launched);
            }
            Note::Ready(report) => {
                self.status.send_modify(|s| s.boot = Some(report));
                self.step(Event::GuestReady);
            }
            Note::Removed(outcome) => {
                self.removal_failed = outcome.is_err();
                let (event, answer) = match outcome {
                    Ok(()) => (Event::Removed, Ok(())),
                    Err(error) => (Event::RemoveFailed, Err(self.keep_trouble(error))),
                };
                for destroyer in self.destroyers.drain(..) {
                    let _ = destroyer.send(answer.clone().map(|()| None).map_err(VmError::Remove));
                }
                self.step(event);
            }
            Note::Trouble(error) => _ = self.keep_trouble(error),
        }
    }

    fn keep_trouble(&self, error: PlaceError) -> Arc<PlaceError> {
        let error = Arc::new(error);
        *self
            .trouble
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::clone(&error));
        error
    }

    fn step(&mut self, event: Event) {
        let before = self.lifecycle.state().clone();
        tracing::trace!(vm = %self.place.vm(), ?event, "event");
        let effects = self.lifecycle.step(self.now(), event);
        let state = self.lifecycle.state().clone();
        if state != before {
            tracing::debug!(vm = %self.place.vm(), ?state, "state");
            if let State::Stopped { outcome } = &state
                && let Some((starter, _)) = self.starter.take()
            {
                let _ = starter.send(Err(VmError::Ended(outcome.clone())));
            }
            self.status.send_modify(|status| {
                status.generation += 1;
                status.state = state;
            });
        }
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Launch => self.launch(),
            Effect::Shutdown { grace } => {
                // A closed channel is no reason to wait for the deadline.
                if let Some(Err(why)) = self.agent.borrow().as_ref().map(|a| a.shutdown(grace)) {
                    let _ = self
                        .notes
                        .send(Note::Event(Event::GuestFailed(why.to_string())));
                }
            }
            Effect::Quit => self.tell(|vmm| {
                Box::pin(async move {
                    // Where it does not, the deadline's next stage kills it.
                    if let Err(error) = vmm.quit().await {
                        tracing::debug!(%error, "the VMM does not quit");
                    }
                    None
                })
            }),
            Effect::Kill => {
                if let Some(Err(error)) = self.vmm.as_ref().map(|vmm| vmm.kill()) {
                    tracing::warn!(vm = %self.place.vm(), %error, "cannot kill the VMM");
                }
                if let Some(cgroup) = self.place.cgroup() {
                    // The VMM alone is enough where there is no such group any more.
                    let _ = cgroup.kill();
                }
            }
            Effect::Pause => self.tell(|vmm| {
                Box::pin(async move {
                    let done = match vmm.pause() {
                        Some(facet) => facet.pause().await.is_ok(),
                        None => false,
                    };
                    Some(if done {
                        Event::PauseDone
                    } else {
                        Event::PauseFailed
                    })
                })
            }),
            Effect::Resume => self.tell(|vmm| {
                Box::pin(async move {
                    let done = match vmm.pause() {
                        Some(facet) => facet.resume().await.is_ok(),
                        None => false,
                    };
                    Some(if done {
                        Event::ResumeDone
                    } else {
                        Event::ResumeFailed
                    })
                })
            }),
            Effect::Remove => {
                let (place, notes) = (Arc::clone(&self.place), self.notes.clone());
                tokio::task::spawn_blocking(move || notes.send(Note::Removed(place.remove())));
            }
        }
    }

    /// Runs a conversation with the VMM beside the actor.
    fn tell(
        &self,
        conversation: impl FnOnce(Arc<dyn Vmm>) -> crate::hypervisor::BoxFuture<'static, Option<Event>>,
    ) {
        let Some(vmm) = self.vmm.clone() else { return };
        let (conversation, notes) = (conversation(vmm), self.notes.clone());
        tokio::spawn(async move {
            if let Some(event) = conversation.await {
                let _ = notes.send(Note::Event(event));
            }
        });
    }

    fn launch(&mut self) {
        let Some(spec) = self.spec.take() else { return };
        let main = self.starter.as_mut().and_then(|(_, main)| main.take());
        let (place, driver) = (Arc::clone(&self.place), Arc::clone(&self.driver));
        let (notes, console) = (self.notes.clone(), Arc::clone(&self.console));
        tokio::spawn(async move {
            let launched = launch(&place, &*driver, spec, main, console).await;
            let _ = notes.send(match launched {
                Ok(launched) => launched,
                Err(failure) => {
                    let why = chain(&failure);
                    if let LaunchFailure::Place(error) = failure {
                        let _ = notes.send(Note::Trouble(error));
                    }
                    Note::Event(Event::LaunchFailed(why))
                }
            });
        });
    }

    /// Turns what VMM and agent do into notes.
    fn watch(&self, vmm: &Arc<dyn Vmm>, agent: &Agent, mut console_reader: JoinHandle<()>) {
        let (agent, notes, watched) = (agent.clone(), self.notes.clone(), Arc::clone(vmm));
        let mut agent_watcher = tokio::spawn(async move {
            if let Ok(report) = agent.ready().await {
                let _ = notes.send(Note::Ready(report));
            }
            tokio::select! {
                biased;
                status = agent.main_exit() => {
                    let _ = notes.send(Note::Event(Event::MainExited(status)));
                }
                why = agent.closed() => match why {
                    // The VMM's own end closes the channel, and is noted with more to say. A
                    // VMM that lives on without it is of no use.
                    AgentError::Closed => tokio::select! {
                        _ = watched.wait() => {}
                        () = tokio::time::sleep(LAST_WORDS) => {
                            let why = AgentError::Closed.to_string();
                            let _ = notes.send(Note::Event(Event::GuestFailed(why)));
                        }
                    },
                    why => _ = notes.send(Note::Event(Event::GuestFailed(why.to_string()))),
                },
            }
        });
        let (vmm, notes, console) = (
            Arc::clone(vmm),
            self.notes.clone(),
            Arc::clone(&self.console),
        );
        tokio::spawn(async move {
            let exit = vmm.wait().await;
            // What the guest said last still waits in the sockets, and is worth more than how
            // the VMM ended. Both close with the VMM, so this takes no time.
            let drained = async {
                let _ = (&mut agent_watcher).await;
                let _ = (&mut console_reader).await;
            };
            let _ = tokio::time::timeout(LAST_WORDS, drained).await;
            // A guest that panics takes its VMM with it: the kernel's words say more.
            let how = console.panic().unwrap_or_else(|| exit.to_string());
            let _ = notes.send(Note::Event(Event::VmmExited(how)));
        });
    }
}

/// How long the sockets of a VMM that has ended may take to be read to their end.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum LaunchFailure {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Vmm(#[from] LaunchError),
    #[error("cannot reach the VMM")]
    Connect(#[source] std::io::Error),
    #[error("it ended at once: {0}")]
    Died(VmmExit),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

async fn launch(
    place: &Arc<Place>,
    driver: &dyn Driver,
    spec: VmSpec,
    main: Option<ExecRequest>,
    console: Arc<Console>,
) -> Result<Note, LaunchFailure> {
    let began = Instant::now();
    let VmSpec {
        resources,
        kernel,
        initrd,
        command_line,
        image,
        setup,
        ..
    } = spec;
    let prepare = {
        let place = Arc::clone(place);
        move || -> Result<_, PlaceError> {
            let scratch = match resources.disk.0 {
                0 => None,
                _ => Some(place.make_scratch(resources.disk)?),
            };
            Ok((place.listen()?, place.make_cgroup()?, scratch))
        }
    };
    let (sockets, cgroup, scratch) = match resources.disk.0 {
        0 => prepare()?,
        // Making a filesystem takes long enough to be done elsewhere.
        _ => tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|join| LaunchFailure::Connect(std::io::Error::other(join)))??,
    };
    let mut disks = vec![Disk {
        serial: crate::guest::agent::IMAGE_SERIAL,
        file: image,
        read_only: true,
    }];
    disks.extend(scratch.map(|file| Disk {
        serial: crate::guest::agent::SCRATCH_SERIAL,
        file,
        read_only: false,
    }));
    let prepared_in = began.elapsed();
    let launched = Instant::now();
    let vmm: Arc<dyn Vmm> = driver
        .launch(Launch {
            vm: place.vm(),
            resources,
            kernel,
            initrd,
            command_line: format!("{command_line} {}", driver.kernel_arguments()),
            disks,
            sockets,
            run_dir: place.run_dir().to_owned(),
            cgroup,
            user: rustix::process::geteuid()
                .is_root()
                .then(|| place.vm().uid()),
        })
        .await?
        .into();
    let connected = async {
        place.record(&vmm.identity())?;
        let console_socket = place
            .connect(socket_name::CONSOLE)
            .await
            .map_err(LaunchFailure::Connect)?;
        let console = tokio::spawn(read_console(console_socket, console));
        let socket = place
            .connect(socket_name::AGENT)
            .await
            .map_err(LaunchFailure::Connect)?;
        let agent = Agent::open(socket, &setup, launched)?;
        let main = main.map(|main| agent.exec(&main)).transpose()?;
        Ok((agent, main, console))
    };
    match connected.await {
        Ok((agent, main, console)) => Ok(Note::Launched(Launched {
            vmm,
            agent,
            main,
            console,
            prepared_in,
        })),
        Err(failure) => {
            // Whoever hears that the launch failed may count on nothing running.
            vmm.kill()
                .map_err(|error| LaunchFailure::Connect(std::io::Error::other(error)))?;
            let exit = vmm.wait().await;
            Err(match failure {
                // Refused by a VMM that is no more: its own words say why.
                LaunchFailure::Connect(_) => LaunchFailure::Died(exit),
                other => other,
            })
        }
    }
}

async fn read_console(mut socket: tokio::net::UnixStream, console: Arc<Console>) {
    let mut chunk = vec![0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut chunk).await {
        console.push(&chunk[..n]);
    }
}
