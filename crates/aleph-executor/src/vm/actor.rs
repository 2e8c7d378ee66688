//! The actor of one VM.

use super::awakening::{ends_connections, reach, thaw, why};
use super::launch::{LaunchFailure, Launched, launch, read_console};
use super::standing::stand;
use super::{Adoptee, Adoption, Ending, Status, Thaw, VmError, VmSpec, chain};
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::guest::{Agent, AgentError, BootReport, ExecHandle, ExecRequest, Reattach};
use crate::hypervisor::{Driver, Vmm, VmmExit, socket_name};
use crate::lifecycle::{Admission, Effect, Event, Lifecycle, Moment, Request, Stage, State};
use crate::place::{Place, PlaceError};
use crate::process::ProcessExit;
use aleph_types::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

/// A request, and who waits for its answer.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) main: Option<ExecRequest>,
    pub(super) answer: oneshot::Sender<Result<Option<ExecHandle>, VmError>>,
}

/// What tasks report to the actor.
pub(super) enum Note {
    Event(Event),
    Launched(Box<Launched>),
    Ready(BootReport),
    /// The guest answered; its main command goes to whoever adopted it.
    Reattached(
        Agent,
        Option<ExecHandle>,
        oneshot::Sender<Option<ExecHandle>>,
    ),
    /// The conversation with the guest has begun, this long after its launch.
    Awake(Agent, Option<ExecHandle>, Duration),
    /// The guest that was written down goes on, and its connection is a new one.
    Again(Agent, Option<ExecHandle>),
    /// The VMM ended: how, and whether its guest had ended the machine by itself.
    Ended {
        how: String,
        in_order: bool,
    },
    Removed(Result<(), PlaceError>),
    Trouble(PlaceError),
}

type Starter = oneshot::Sender<Result<Option<ExecHandle>, VmError>>;

/// The only writer of a VM's state.
pub(super) struct Actor {
    pub(super) lifecycle: Lifecycle,
    pub(super) began: Instant,
    pub(super) place: Arc<Place>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) spec: Option<VmSpec>,
    pub(super) ending: Ending,
    /// Whether nobody of ours is in its guest.
    pub(super) alone: bool,
    /// A request to end that no agent was there for.
    pub(super) unasked: Option<(Duration, u8)>,
    /// Tasks that hear what VMM and agent do.
    pub(super) watchers: Vec<AbortHandle>,
    /// The task that hears what the guest's agent says of its end.
    pub(super) agent_watcher: Arc<std::sync::Mutex<Option<JoinHandle<()>>>>,
    pub(super) vmm: Option<Arc<dyn Vmm>>,
    pub(super) console: Arc<Console>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    pub(super) status: watch::Sender<Status>,
    pub(super) agent: watch::Sender<Option<Agent>>,
    pub(super) running: watch::Sender<Option<Arc<dyn Vmm>>>,
    pub(super) trouble: Arc<std::sync::Mutex<Option<Arc<PlaceError>>>>,
    /// Whether the connection to the guest ended as it was written down.
    pub(super) is_cut: Arc<AtomicBool>,
    /// Its main command over the connection that came then.
    pub(super) main_again: Arc<std::sync::Mutex<Option<ExecHandle>>>,
    /// Who waits for the launch, with the main command until it is handed over.
    pub(super) starter: Option<(Starter, Option<ExecRequest>)>,
    pub(super) destroyers: Vec<Starter>,
    pub(super) removal_failed: bool,
}

impl Actor {
    /// Serves the VM until nothing is left of it.
    pub(super) async fn run(
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
                if self.ending.kept {
                    // It runs on, and whoever comes next adopts it: a VMM takes one connection
                    // at a time.
                    self.watchers.iter().for_each(AbortHandle::abort);
                    return;
                }
                if self.removal_failed {
                    // Nobody is left to ask again; the next sweep will.
                    break;
                }
                self.clean_up();
            }
        }
        self.agent.send_replace(None);
        self.running.send_replace(None);
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
            Note::Launched(launched) => self.launched(*launched),
            Note::Awake(agent, main, took) => {
                if let Some(vmm) = self.vmm.clone() {
                    self.watch_agent(&vmm, &agent, took);
                }
                self.has_agent(agent);
                if let Some((starter, _)) = self.starter.take() {
                    let _ = starter.send(Ok(main));
                }
            }
            Note::Again(agent, main) => {
                if let Some(vmm) = self.vmm.clone() {
                    self.watch_agent(&vmm, &agent, Duration::ZERO);
                }
                // Its clock stood still. Where the channel is closed, that is told by itself.
                let _ = agent.set_clock();
                *lock(&self.main_again) = main;
                self.has_agent(agent);
                self.step(Event::ResumeDone);
            }
            Note::Ready(report) => {
                self.status.send_modify(|s| s.boot = Some(report));
                self.step(Event::GuestReady);
            }
            Note::Reattached(agent, handle, main) => {
                if let Some(vmm) = self.vmm.clone() {
                    self.watch_agent(&vmm, &agent, Duration::ZERO);
                }
                self.has_agent(agent);
                // Only now: whoever hears of it may ask the agent for more.
                let _ = main.send(handle);
            }
            Note::Ended { how, in_order } => {
                // A VMM that was told to quit ends like that, too.
                let by_itself = !matches!(
                    self.lifecycle.state(),
                    State::Stopping {
                        stage: Stage::Quitting | Stage::Killing,
                        ..
                    }
                );
                let was_to_end = matches!(self.lifecycle.state(), State::Stopping { .. });
                if in_order && by_itself && self.alone {
                    self.step(Event::MainExited(ExitStatus::Code(0)));
                }
                let in_order = in_order && by_itself && (was_to_end || self.alone);
                self.status.send_modify(|status| status.in_order = in_order);
                self.step(Event::VmmExited(how));
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

    /// The VMM runs.
    fn launched(&mut self, launched: Launched) {
        let Launched {
            vmm,
            awakening,
            console,
            prepared_in,
        } = launched;
        self.status.send_modify(|s| {
            s.prepared_in = Some(prepared_in);
            s.vmm = Some(vmm.identity());
        });
        self.watch_vmm(&vmm, console);
        self.running.send_replace(Some(Arc::clone(&vmm)));
        self.vmm = Some(Arc::clone(&vmm));
        let Some(awakening) = awakening else {
            self.step(Event::Launched);
            return self.runs_alone();
        };
        let (notes, launched) = (self.notes.clone(), awakening.launched);
        let waiting = tokio::spawn(async move {
            match awakening.done().await {
                Ok((agent, main)) => {
                    let _ = notes.send(Note::Awake(agent, main, launched.elapsed()));
                }
                Err(error) => tell_failure(error, &*vmm, &notes).await,
            }
        });
        self.watchers.push(waiting.abort_handle());
        self.step(Event::Launched);
    }

    /// A guest with nobody of ours in it counts as up once its VMM is.
    fn runs_alone(&mut self) {
        if !matches!(self.lifecycle.state(), State::Starting { .. }) {
            // It is to end already, and whoever waits for the launch hears of that end.
            return;
        }
        self.status
            .send_modify(|s| s.boot = Some(BootReport::default()));
        self.step(Event::GuestReady);
        if let Some((starter, _)) = self.starter.take() {
            let _ = starter.send(Ok(None));
        }
    }

    /// The guest can be spoken with; what it was to be asked before, it is asked now.
    fn has_agent(&mut self, agent: Agent) {
        if let Some((grace, signal)) = self.unasked.take() {
            // A channel that is closed is noted by itself.
            let _ = agent.shutdown(grace, signal);
        }
        self.agent.send_replace(Some(agent));
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
            Effect::Shutdown { grace } if self.alone => self.tell(move |vmm| {
                Box::pin(async move {
                    let Some(power) = vmm.power() else {
                        let why = "its machine has no power button";
                        return Some(Event::GuestFailed(why.into()));
                    };
                    // Where the guest does not power off in time, the deadline's next stage ends it.
                    if let Err(error) = power.powerdown(grace).await {
                        tracing::debug!(%error, "the guest does not power off");
                    }
                    None
                })
            }),
            Effect::Shutdown { grace } => {
                let signal = self.ending.stop_signal;
                let asked = self
                    .agent
                    .borrow()
                    .as_ref()
                    .map(|agent| agent.shutdown(grace, signal));
                // One that has not answered yet is asked as soon as it does.
                self.unasked = asked.is_none().then_some((grace, signal));
                // A closed channel is no reason to wait for the deadline.
                if let Some(Err(why)) = asked {
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
                        Some(facet) => stand(facet, true).await,
                        None => false,
                    };
                    Some(if done {
                        Event::PauseDone
                    } else {
                        Event::PauseFailed
                    })
                })
            }),
            Effect::Resume if self.is_cut.load(Ordering::Acquire) => self.go_on_anew(),
            Effect::Resume => {
                let agent = self.agent.borrow().clone();
                self.tell(|vmm| {
                    Box::pin(async move {
                        let done = match vmm.pause() {
                            Some(facet) => stand(facet, false).await,
                            None => false,
                        };
                        // Its clock stood still. Where the channel is closed, that is told by itself.
                        if let (true, Some(agent)) = (done, agent) {
                            let _ = agent.set_clock();
                        }
                        Some(if done {
                            Event::ResumeDone
                        } else {
                            Event::ResumeFailed
                        })
                    })
                });
            }
            Effect::Remove => {
                let (place, notes) = (Arc::clone(&self.place), self.notes.clone());
                let remove = move || notes.send(Note::Removed(place.remove_emptied()));
                tokio::task::spawn_blocking(remove);
            }
        }
    }

    /// Lets a guest go on whose connection ended as it was written down. It runs as soon as it has
    /// another one.
    fn go_on_anew(&mut self) {
        let Some(vmm) = self.vmm.clone() else { return };
        if let Some(watcher) = lock(&self.agent_watcher).take() {
            watcher.abort();
        }
        if let Some(agent) = self.agent.send_replace(None) {
            agent.close();
        }
        let (notes, is_cut) = (self.notes.clone(), Arc::clone(&self.is_cut));
        let limit = self.lifecycle.timeouts().boot;
        let going_on = tokio::spawn(async move {
            let went = match vmm.pause() {
                Some(facet) => facet.resume().await.is_ok(),
                None => false,
            };
            if !went {
                let _ = notes.send(Note::Event(Event::ResumeFailed));
                return;
            }
            is_cut.store(false, Ordering::Release);
            let again = |socket| Agent::reattach(socket, Reattach::default());
            let reached = tokio::time::timeout(limit, reach(&*vmm, again)).await;
            match reached.unwrap_or(Err(AgentError::Stalled)) {
                Ok((agent, main)) => _ = notes.send(Note::Again(agent, main)),
                Err(error) => tell_failure(error, &*vmm, &notes).await,
            }
        });
        self.watchers.push(going_on.abort_handle());
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

    /// Takes over a VM that runs. Its guest answers when it can: a frozen one once it goes on.
    pub(super) fn adopt(&mut self, adoption: Adoption, main: oneshot::Sender<Option<ExecHandle>>) {
        let Adoption {
            vmm,
            paused,
            guest,
            timeouts,
            ..
        } = adoption;
        self.status.send_modify(|s| s.vmm = Some(vmm.identity()));
        let (place, console) = (Arc::clone(&self.place), Arc::clone(&self.console));
        let console_reader = tokio::spawn(async move {
            if let Ok(socket) = place.connect(socket_name::CONSOLE).await {
                read_console(socket, console).await;
            }
        });
        self.watch_vmm(&vmm, console_reader);
        self.running.send_replace(Some(Arc::clone(&vmm)));
        self.vmm = Some(Arc::clone(&vmm));
        self.step(Event::Adopted { paused });
        let Adoptee::Agent { reattach, thaw } = guest else {
            self.status
                .send_modify(|s| s.boot = Some(BootReport::default()));
            let _ = main.send(None);
            return;
        };
        let notes = self.notes.clone();
        let status = self.status.subscribe();
        let reaching = tokio::spawn(async move {
            match go_on_with(&*vmm, (*reattach, thaw), status, timeouts.boot).await {
                Ok((agent, handle)) => {
                    let _ = notes.send(Note::Reattached(agent, handle, main));
                }
                Err(error) => tell_failure(error, &*vmm, &notes).await,
            }
        });
        self.watchers.push(reaching.abort_handle());
    }

    /// Turns what the agent says into notes. `took` is how long its guest took to go on from a
    /// snapshot, if it does: it is no boot, but what there is in its place.
    fn watch_agent(&mut self, vmm: &Arc<dyn Vmm>, agent: &Agent, took: Duration) {
        let (agent, notes, watched) = (agent.clone(), self.notes.clone(), Arc::clone(vmm));
        let is_cut = Arc::clone(&self.is_cut);
        let watcher = tokio::spawn(async move {
            if let Ok(mut report) = agent.ready().await {
                report.total = report.total.max(took);
                let _ = notes.send(Note::Ready(report));
            }
            tokio::select! {
                biased;
                status = agent.main_exit() => {
                    let _ = notes.send(Note::Event(Event::MainExited(status)));
                }
                why = agent.closed() => match why {
                    // There will be another one.
                    AgentError::Closed if is_cut.load(Ordering::Acquire) => {}
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
        self.watchers.push(watcher.abort_handle());
        *lock(&self.agent_watcher) = Some(watcher);
    }

    /// Turns the VMM's end into a note.
    fn watch_vmm(&mut self, vmm: &Arc<dyn Vmm>, mut console_reader: JoinHandle<()>) {
        let agent_watcher = Arc::clone(&self.agent_watcher);
        let (vmm, notes, console, place) = (
            Arc::clone(vmm),
            self.notes.clone(),
            Arc::clone(&self.console),
            Arc::clone(&self.place),
        );
        let alone = self.alone;
        self.watchers.push(console_reader.abort_handle());
        let watcher = tokio::spawn(async move {
            let exit = vmm.wait().await;
            // What the guest said last still waits in the sockets, and is worth more than how
            // the VMM ended. Both close with the VMM, so this takes no time.
            let drained = async {
                let watcher = lock(&agent_watcher).take();
                if let Some(watcher) = watcher {
                    let _ = watcher.await;
                }
                let _ = (&mut console_reader).await;
            };
            let _ = tokio::time::timeout(LAST_WORDS, drained).await;
            // A guest that panics takes its VMM with it: the kernel's words say more.
            let panic = console.panic();
            // A system of its own may say anything on its console.
            let in_order =
                (alone || panic.is_none()) && ended_in_order(vmm.ended_by_guest(), &exit);
            let how = panic.unwrap_or_else(|| how_it_ended(&exit, place.cgroup()));
            let _ = notes.send(Note::Ended { how, in_order });
        });
        self.watchers.push(watcher.abort_handle());
    }
}

/// How a VMM ended, with what its group knows of it: a signal alone does not say who sent it.
fn how_it_ended(exit: &VmmExit, group: Option<&Cgroup>) -> String {
    match group.and_then(Cgroup::overuse) {
        Some(overuse) => format!("{exit}: {overuse}"),
        None => exit.to_string(),
    }
}

/// Whether a guest powered its machine off, by what the VMM told and by how it ended.
fn ended_in_order(by_guest: Option<bool>, exit: &VmmExit) -> bool {
    match (by_guest, exit.exit) {
        // The exit of one that an earlier process started cannot be seen.
        (Some(by_guest), ProcessExit::Code(0) | ProcessExit::Unknown) => by_guest,
        // It told nobody. So QEMU ends at a signal, too, which it says.
        (None, ProcessExit::Code(0)) => !exit.stderr.contains("terminating on signal"),
        _ => false,
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Tells that the conversation with a guest never began; a VMM's end is told by itself.
async fn tell_failure(error: AgentError, vmm: &dyn Vmm, notes: &mpsc::UnboundedSender<Note>) {
    if let Some(why) = why(error, vmm, LAST_WORDS).await {
        let _ = notes.send(Note::Event(Event::GuestFailed(why)));
    }
}

/// Connects to a guest that another process began with. Time counts only while it runs.
async fn go_on_with(
    vmm: &dyn Vmm,
    (reattach, frozen): (Reattach, Option<Thaw>),
    mut status: watch::Receiver<Status>,
    limit: Duration,
) -> Result<(Agent, Option<ExecHandle>), AgentError> {
    let mut going = status.clone();
    let mut reached = std::pin::pin!(async move {
        if ends_connections(vmm) {
            // Each connection that one that stands still does not take would wait there.
            let _ = going.wait_for(|s| s.state != State::Paused).await;
        }
        let again = |socket| Agent::reattach(socket, reattach.clone());
        let (agent, main) = reach(vmm, again).await?;
        if let Some(frozen) = frozen {
            thaw(&agent, frozen).await?;
        }
        Ok((agent, main))
    });
    loop {
        let runs = status.borrow_and_update().state == State::Running;
        tokio::select! {
            reached = &mut reached => return reached,
            changed = status.changed() => if changed.is_err() {
                return Err(AgentError::Closed);
            },
            () = tokio::time::sleep(limit), if runs => {
                return Err(AgentError::Stalled);
            }
        }
    }
}

/// How long the sockets of a VMM that has ended may take to be read to their end.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_in_order_where_the_guest_made_it() {
        let by = "terminating on signal 15 from pid 1";
        for (told, exit, stderr, wanted) in [
            (Some(true), ProcessExit::Code(0), "", true),
            (Some(true), ProcessExit::Unknown, "", true),
            (Some(true), ProcessExit::Signal(9), "", false),
            (Some(true), ProcessExit::Code(1), "", false),
            (Some(false), ProcessExit::Code(0), "", false),
            (Some(false), ProcessExit::Unknown, "", false),
            (None, ProcessExit::Code(0), "", true),
            (None, ProcessExit::Code(0), by, false),
            (None, ProcessExit::Unknown, "", false),
        ] {
            let exit = VmmExit {
                exit,
                stderr: stderr.into(),
            };
            assert_eq!(ended_in_order(told, &exit), wanted, "{told:?} {exit}");
        }
    }
}
