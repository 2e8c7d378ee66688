//! Clones: guests that begin where a template stood.
//!
//! ```text
//! Spare ──── the template's state ────▶ Instance ⇄ paused
//!   │ a VMM that waits                     │ serves one event after another
//!   └──────────────▶ destroyed ◀───────────┘
//! ```
//! A [`Spare`] is a VMM that waits for the state of a template, out of a process that was launched
//! ahead ([`ProcessPool`]) or of a new one. An [`Instance`] that is made ahead of
//! need is primed: what each event goes through is translated then, where guests are emulated.
//! Whatever is dropped is killed and removed in the background; what cannot
//! be removed is left to the node's sweep, as is what a daemon that was killed leaves.

use super::answer::{Delivered, Delivery};
use super::cable::Cable;
use super::contract::Contract;
use super::conversation::Conversation;
use super::environment::API_PORT;
use super::host::Host;
use super::invocation::Invocation;
use super::output::{Ended, Output, pump};
use super::peak::Peak;
use super::process_pool::ProcessPool;
use super::stack::{self, Stack};
use super::template::{Template, TemplateError};
use crate::cgroup::Limits;
use crate::guest::{Agent, AgentError, CloneRequest, Reattach};
use crate::hypervisor::{Launch, LaunchError, Link, Machine, Memory, Nic, Start, Vmm, VmmError};
use crate::place::{Place, PlaceError};
use aleph_types::{Classify, ErrorClass, VmId};
use aleph_vm_networking::NetworkError;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// How long a clone may take to answer.
const WAKE: Duration = Duration::from_secs(20);

/// How long one that was paused may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a runtime that had an answer may take to ask for its next event.
const ASK: Duration = Duration::from_secs(10);

/// How long a killed VMM may take to vanish, before SIGKILL is repeated.
const VANISH: Duration = Duration::from_secs(5);

/// From so many bytes on that a function wrote, a part may wait in its guest when it answers: the
/// agent reads more than this at once, before it reads an answer.
const MUCH: u64 = 16 * 1024;

/// How often a guest is asked for what waits there, and how long that may take: what writes on and
/// on is not waited for.
const ASKED: usize = 16;
const SETTLE: Duration = Duration::from_secs(1);

/// After so many events without a word a function is taken for one that writes nothing.
const SILENT: u32 = 3;

/// Processes and threads that a VMM may have.
pub(super) const PIDS: u32 = 512;

/// A clone that could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloneError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("cannot make room for the clone")]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Vmm(#[from] LaunchError),
    #[error("the clone's VMM failed")]
    Control(#[from] VmmError),
    #[error("the clone's guest failed")]
    Agent(#[from] AgentError),
    #[error("the clone ended: {0}")]
    Died(String),
    #[error("the clone does not answer")]
    Silent,
    #[error("the clone cannot be connected")]
    Network(#[from] NetworkError),
    #[error("cannot reach the clone's VMM")]
    Io(#[from] io::Error),
}

impl CloneError {
    /// Whether the template may be why.
    pub(super) fn blames_template(&self) -> bool {
        matches!(
            self,
            Self::Vmm(LaunchError::Restore { .. }) | Self::Agent(_) | Self::Died(_) | Self::Silent
        )
    }
}

impl Classify for CloneError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Template(error) => error.class(),
            Self::Place(place) if place.is_full() => ErrorClass::Capacity,
            Self::Network(error) => error.class(),
            _ => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Template(error) => error.code(),
            Self::Vmm(error) => error.code(),
            Self::Network(error) => error.code(),
            _ => "clone_failed",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Template(error) => error.advice(),
            Self::Vmm(error) => error.advice(),
            Self::Network(error) => error.advice(),
            _ => None,
        }
    }
}

/// A VMM and what the host holds for it. Dropped, it is killed and removed.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) place: Arc<Place>,
    pub(super) vmm: Arc<dyn Vmm>,
    pub(super) cable: Arc<Cable>,
    pub(super) burials: TaskTracker,
    /// Nothing where its VMM had ended at once.
    pub(super) peak: Option<Peak>,
}

impl Drop for Body {
    fn drop(&mut self) {
        let (place, vmm) = (Arc::clone(&self.place), Arc::clone(&self.vmm));
        let cable = Arc::clone(&self.cable);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.burials.spawn_on(bury(place, vmm, cable), &runtime);
        } else {
            // Without a runtime the process is about to end; the next sweep does the rest.
            let _ = vmm.kill();
        }
    }
}

/// Kills a VMM and removes its place.
async fn bury(place: Arc<Place>, vmm: Arc<dyn Vmm>, cable: Arc<Cable>) {
    loop {
        if let Err(error) = vmm.kill() {
            tracing::warn!(vm = %place.vm(), %error, "a clone's VMM cannot be killed");
        }
        if let Some(cgroup) = place.cgroup() {
            let _ = cgroup.kill();
        }
        if timeout(VANISH, vmm.wait()).await.is_ok() {
            break;
        }
    }
    cable.undo().await;
    let vm = place.vm();
    let removed = tokio::task::spawn_blocking(move || place.remove_emptied());
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(%vm, %error, "a clone could not be removed; the next sweep tries again");
    }
}

/// A VMM that waits for the state of a template.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) body: Body,
    pub(super) state: UnixStream,
    pub(super) stack: Stack,
    pub(super) template: Arc<Template>,
}

impl Spare {
    /// Makes one of a process that waits there, where one does, or launches it.
    pub(super) async fn take_or_launch(
        host: &Host,
        processes: &Arc<ProcessPool>,
        template: Arc<Template>,
    ) -> Result<Self, CloneError> {
        match processes.spare(&template).await {
            Some(spare) => Ok(spare),
            None => Self::launch(host, template).await,
        }
    }

    /// Launches it.
    pub(super) async fn launch(host: &Host, template: Arc<Template>) -> Result<Self, CloneError> {
        let place = Arc::new(Place::create(&host.paths, host.cgroups.as_ref())?);
        let whose = (template.account.as_str(), template.function.as_str());
        let laid = Cable::lay(host.network.as_ref(), place.vm(), whose).await;
        let (cable, nics) = match laid {
            Ok(laid) => laid,
            Err(error) => {
                place.remove()?;
                return Err(error.into());
            }
        };
        let cable = Arc::new(cable);
        let at = (Arc::clone(&place), Arc::clone(&cable));
        match Self::launch_at(host, template, at, nics).await {
            Ok(spare) => {
                let vmm = spare.body.vmm.identity();
                // Where this fails the spare goes, VMM first.
                spare.body.place.record(&vmm)?;
                Ok(spare)
            }
            Err(error) => {
                // Nothing runs there.
                cable.undo().await;
                if let Err(error) = place.remove() {
                    tracing::warn!(vm = %place.vm(), %error, "a clone's place stays until the next sweep");
                }
                Err(error)
            }
        }
    }

    async fn launch_at(
        host: &Host,
        template: Arc<Template>,
        (place, cable): (Arc<Place>, Arc<Cable>),
        nics: Vec<Nic>,
    ) -> Result<Self, CloneError> {
        let sockets = place.listen()?;
        let cgroup = place.make_cgroup(&Limits {
            cpus: template.resources.cpus,
            memory: template.resources.memory,
            pids: PIDS,
            io_bytes_per_second: None,
        })?;
        let ends = host.driver.link().await?;
        let stack = Stack::over(ends.host, API_PORT, &template.connections)?;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let vmm = host
            .driver
            .launch(Launch {
                vm: place.vm(),
                machine: Machine::MicroVm,
                resources: template.resources,
                start: Start::Restore {
                    state: OwnedFd::from(theirs),
                },
                memory: Memory::Clone(template.memory()?),
                disks: template.disks()?,
                nics,
                links: vec![Link {
                    mac: stack::GUEST_MAC,
                    socket: ends.vmm,
                }],
                sockets,
                run_dir: place.run_dir().to_owned(),
                cgroup,
                user: rustix::process::geteuid()
                    .is_root()
                    .then(|| place.vm().uid()),
            })
            .await?;
        let body = Body {
            place,
            peak: Peak::of(&vmm.identity()).ok(),
            vmm: vmm.into(),
            cable,
            burials: host.burials.clone(),
        };
        Ok(Self {
            body,
            state: ours,
            stack,
            template,
        })
    }

    /// Has it go on where the template stood, as a guest of its own.
    pub(super) async fn wake(self) -> Result<Instance, CloneError> {
        let Self {
            body,
            mut state,
            stack,
            template,
        } = self;
        let vmm = Arc::clone(&body.vmm);
        let mut died = std::pin::pin!(async move {
            let exit = vmm.wait().await;
            CloneError::Died(exit.to_string())
        });
        let restored = async {
            let reattach = Reattach {
                main: Some(template.main),
                setup: None,
            };
            let fed = async {
                state.write_all(&template.state).await?;
                state.shutdown().await?;
                Ok::<_, CloneError>(())
            };
            let reached = async {
                let again = |socket| Agent::reattach_listening(socket, reattach.clone());
                Ok(crate::vm::reach(&*body.vmm, again).await?)
            };
            let ((), (agent, main)) = tokio::try_join!(fed, reached)?;
            let main = main.ok_or_else(|| CloneError::Died("its runtime is gone".into()))?;
            Ok::<_, CloneError>((agent, main))
        };
        let began = std::time::Instant::now();
        let restored = tokio::select! {
            restored = restored => restored,
            died = &mut died => return Err(died),
            () = tokio::time::sleep(WAKE) => return Err(CloneError::Silent),
        };
        let (agent, mut main) = match restored {
            // That is the VMM's end, which says more.
            Err(CloneError::Agent(AgentError::Closed)) => return Err(died.await),
            restored => restored?,
        };
        let vm = body.place.vm();
        tracing::debug!(%vm, elapsed = ?began.elapsed(), "a clone answers");
        let resumed = agent.resume(&CloneRequest {
            hostname: format!("fn-{vm}"),
            generation: template.next_generation(),
            machine_id: machine_id()?,
            network: body.cable.told.clone(),
        })?;
        let conversation = Conversation::new(true);
        let output = Arc::new(Output::new());
        let serve = tokio::spawn(Arc::clone(&conversation).serve(stack.clone()));
        let watch = {
            let (output, vmm) = (Arc::clone(&output), Arc::clone(&body.vmm));
            tokio::spawn(async move {
                let resumed = async {
                    // Its processes stand still until it is done.
                    match resumed.done().await {
                        Ok(()) => tracing::debug!(%vm, elapsed = ?began.elapsed(), "it is its own"),
                        Err(error) => {
                            let why = format!("it could not be made its own: {error}");
                            output.end(Ended::Gone(why));
                        }
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = pump(&mut main, &output) => {}
                    exit = vmm.wait() => output.end(Ended::Gone(exit.to_string())),
                    () = resumed => {}
                }
            })
        };
        Ok(Instance {
            tasks: [serve.abort_handle(), watch.abort_handle()],
            agent,
            contract: template.contract.clone(),
            conversation,
            output,
            body,
            stack,
            had_event: AtomicBool::new(false),
            silent: AtomicU32::new(0),
            is_paused: false,
        })
    }
}

fn machine_id() -> io::Result<[u8; 16]> {
    use std::io::Read;
    let mut id = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

/// What became of an event that a clone got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// The function never saw it: another clone can have it.
    NotGiven(String),
    /// The function answered, as far as it did.
    Answered(Delivered),
    /// The runtime ended.
    Ended(Ended),
    /// Its time was over.
    TimedOut,
}

/// A clone that serves events.
#[derive(Debug)]
pub(super) struct Instance {
    body: Body,
    agent: Agent,
    contract: Contract,
    conversation: Arc<Conversation>,
    pub(super) output: Arc<Output>,
    stack: Stack,
    had_event: AtomicBool,
    /// After how many events in a row it had written nothing.
    silent: AtomicU32,
    tasks: [AbortHandle; 2],
    is_paused: bool,
}

impl Drop for Instance {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Instance {
    pub(super) fn vm(&self) -> VmId {
        self.body.place.vm()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether it still lives, as far as is known.
    pub(super) fn is_alive(&self) -> bool {
        !self.output.has_ended()
    }

    /// Has the guest's kernel go once through what each event goes through. On a host that emulates
    /// its guests, that is translated then.
    pub(super) async fn prime(&self) -> Result<(), CloneError> {
        let primed = async {
            self.stack.probe().await;
            Ok(self.contract.look(&self.agent).await?)
        };
        timeout(WAKE, primed)
            .await
            .unwrap_or(Err(CloneError::Silent))
    }

    /// Freezes it: it costs no CPU then.
    pub(super) async fn pause(&mut self) -> Result<(), CloneError> {
        if let (false, Some(facet)) = (self.is_paused, self.body.vmm.pause()) {
            facet.pause().await?;
            self.is_paused = true;
        }
        Ok(())
    }

    /// Lets it go on, with the time of now.
    pub(super) async fn unpause(&mut self) -> Result<(), CloneError> {
        if let (true, Some(facet)) = (self.is_paused, self.body.vmm.pause()) {
            // Read as soon as it runs, before what is sent behind it.
            self.agent.set_clock()?;
            facet.resume().await?;
            self.is_paused = false;
            // Whoever gives an event to a guest that does not answer waits for its whole time.
            match timeout(ANSWER, self.agent.ping()).await {
                Ok(answered) => answered?,
                Err(_) => return Err(CloneError::Silent),
            }
        }
        Ok(())
    }

    /// The most memory that its VMM had, in bytes: what the guest used, and some MiB of the VMM's.
    pub(super) fn memory_peak(&self) -> Option<u64> {
        self.body.peak.as_ref()?.bytes()
    }

    /// Gives the function an event, brings its answer to who asked, and says what became of it. All
    /// of it takes no longer than the function's time.
    pub(super) async fn run(
        &self,
        invocation: &Invocation,
        limit: Duration,
        delivery: &mut Delivery<'_>,
    ) -> Fate {
        if self.had_event.swap(true, Ordering::Relaxed) {
            // What came after the last one's answer is no part of this one's log.
            drop(self.output.take());
        }
        let contract = &self.contract;
        let function = (&self.agent, &*self.conversation);
        let given = tokio::select! {
            given = contract.give(function, invocation, limit) => match given {
                Ok(given) => given,
                Err(error) => return Fate::NotGiven(error.to_string()),
            },
            ended = self.output.ended() => {
                return Fate::NotGiven(ended.to_string());
            }
            () = tokio::time::sleep(ASK) => {
                return Fate::NotGiven("its runtime asks for no event".into());
            }
        };
        let delivered = async {
            let is_streamed = delivery.is_streamed();
            let answer = contract.answer(given, invocation, limit, is_streamed);
            Some(delivery.deliver(answer.await?).await)
        };
        let delivered = tokio::select! {
            biased;
            delivered = delivered => delivered,
            ended = self.output.ended() => return Fate::Ended(ended),
            () = tokio::time::sleep(limit) => return Fate::TimedOut,
        };
        match delivered {
            // It may have broken off because of an end that is about to be told.
            Some(Delivered::Broken(why)) => match timeout(SETTLE, self.output.ended()).await {
                Ok(ended) => Fate::Ended(ended),
                Err(_) => Fate::Answered(Delivered::Broken(why)),
            },
            Some(delivered) => {
                let _ = timeout(SETTLE, self.settle_output()).await;
                Fate::Answered(delivered)
            }
            None => Fate::Ended(Ended::Gone("its runtime broke the conversation off".into())),
        }
    }

    /// Waits until what the function wrote before its answer is there. The answer comes past the
    /// agent, which may not have read that yet: it has once it answers a ping. A function that never
    /// writes anything is not asked each time.
    async fn settle_output(&self) {
        self.output.settle().await;
        let is_silent = self.output.written() == 0;
        if is_silent && self.silent.load(Ordering::Relaxed) >= SILENT {
            return;
        }
        if self.agent.ping().await.is_err() {
            return;
        }
        self.output.settle().await;
        if self.output.written() == 0 {
            self.silent.fetch_add(1, Ordering::Relaxed);
        } else {
            self.silent.store(0, Ordering::Relaxed);
        }
        for _ in 0..ASKED {
            let written = self.output.written();
            if written < MUCH {
                return;
            }
            // With the first the guest hears of the room that there is now; what it then sends may
            // wait for what is queued before the answer to the second, and is ahead of that to the
            // third.
            for _ in 0..3 {
                if self.agent.ping().await.is_err() {
                    return;
                }
            }
            self.output.settle().await;
            if self.output.written() == written {
                return;
            }
        }
    }
}
