//! States, events and what follows from them.

use super::{Failure, Moment, Outcome};
use aleph_types::ExitStatus;
use std::time::Duration;

/// How long each stage may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From launch to the guest's first answer.
    pub boot: Duration,
    /// From a powering-off guest, or a VMM that was told to quit, to the VMM's end.
    pub quit: Duration,
    /// From SIGKILL to the VMM's end; SIGKILL is then sent again.
    pub kill: Duration,
}

impl Timeouts {
    /// Those of a VM whose VMM is busy for so long before its guest can boot.
    #[must_use]
    pub fn after(self, busy: Duration) -> Self {
        let boot = self.boot.saturating_add(busy);
        Self { boot, ..self }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            quit: Duration::from_secs(5),
            kill: Duration::from_secs(5),
        }
    }
}

/// What somebody wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Launch it.
    Start,
    /// End it: the guest first, which gives its processes this long between TERM and KILL.
    Stop {
        /// The time between TERM and KILL in the guest.
        grace: Duration,
    },
    /// End it now.
    Kill,
    /// Freeze its processors.
    Pause,
    /// Let a paused one go on.
    Resume,
    /// Remove all that the host holds for it.
    Destroy,
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Step it.
    Accept,
    /// It is already so, or on its way: nothing to do, and no error.
    Ignore,
    /// It makes no sense now.
    Deny(Denial),
}

/// Why a request makes no sense now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// It was never started.
    #[error("the VM is not running")]
    NotRunning,
    /// It is on its way to another state; the same request may be right a moment later.
    #[error("the VM is between two states")]
    Busy,
    /// It is paused.
    #[error("the VM is paused")]
    Paused,
    /// It is not paused.
    #[error("the VM is not paused")]
    NotPaused,
    /// Its VMM cannot do it.
    #[error("the VMM cannot do this")]
    Impossible,
    /// It runs, and must end first.
    #[error("the VM is still running")]
    Live,
    /// Its life is over.
    #[error("the VM has ended")]
    Ended,
    /// What it does is not known yet.
    #[error("what the VM does is not known yet")]
    Unknown,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An admitted request.
    Requested(Request),
    /// The VMM's process runs.
    Launched,
    /// The VMM could not be started, and nothing of it runs.
    LaunchFailed(String),
    /// The guest can run commands.
    GuestReady,
    /// The guest said that it cannot go on, or broke the protocol.
    GuestFailed(String),
    /// The main command ended. The guest powers off by itself.
    MainExited(ExitStatus),
    /// The VMM froze the guest.
    PauseDone,
    /// The VMM did not freeze the guest.
    PauseFailed,
    /// The VMM let the guest go on.
    ResumeDone,
    /// The VMM did not let the guest go on.
    ResumeFailed,
    /// The VMM's process ended.
    VmmExited(String),
    /// Time passed.
    Tick,
    /// All that the host held is removed.
    Removed,
    /// Something could not be removed; a later [`Request::Destroy`] tries again.
    RemoveFailed,
    /// After a restart: the VMM was found and answers.
    Adopted {
        /// Whether the guest is paused.
        paused: bool,
    },
    /// After a restart: no VMM was found.
    Gone,
}

/// What to do. Effects are carried out in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Start the VMM, answer [`Event::Launched`] or [`Event::LaunchFailed`], then talk to the
    /// guest and answer [`Event::GuestReady`].
    Launch,
    /// Ask the guest to end its processes and power off.
    Shutdown {
        /// The time between TERM and KILL in the guest.
        grace: Duration,
    },
    /// Ask the VMM to quit.
    Quit,
    /// Kill the VMM.
    Kill,
    /// Have the VMM freeze the guest.
    Pause,
    /// Have the VMM let the guest go on.
    Resume,
    /// Remove all that the host holds.
    Remove,
}

/// How far an end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The guest powers off by itself.
    Leaving,
    /// The guest was asked to.
    Asking,
    /// The VMM was asked to.
    Quitting,
    /// The VMM was killed.
    Killing,
}

/// Where a VM's life is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing runs yet.
    Created,
    /// The VMM starts and the guest boots.
    Starting {
        /// When the boot has taken too long.
        deadline: Moment,
    },
    /// The guest runs.
    Running,
    /// The guest is about to be frozen.
    Pausing,
    /// The guest is frozen.
    Paused,
    /// The guest is about to go on.
    Resuming,
    /// The VM is about to end.
    Stopping {
        /// How far it has come.
        stage: Stage,
        /// When the next stage begins.
        deadline: Moment,
        /// What will be told.
        outcome: Outcome,
    },
    /// No VMM runs; the host's objects are still there.
    Stopped {
        /// How it ended.
        outcome: Outcome,
    },
    /// The host's objects are about to go.
    Destroying {
        /// How it ended.
        outcome: Outcome,
    },
    /// Nothing is left.
    Destroyed {
        /// How it ended.
        outcome: Outcome,
    },
    /// The node restarted and has not found out yet.
    Unknown,
}

/// One VM's life.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    state: State,
    timeouts: Timeouts,
    /// Whether the end of the main command makes everything worthless that the guest still
    /// holds: it can be killed then instead of waited for.
    ephemeral: bool,
}

impl Lifecycle {
    /// A VM that was just created. `ephemeral` says that nothing of it outlives its main
    /// command, so that its VMM may be killed as soon as that has ended.
    #[must_use]
    pub fn new(timeouts: Timeouts, ephemeral: bool) -> Self {
        Self {
            state: State::Created,
            timeouts,
            ephemeral,
        }
    }

    /// A VM that an earlier process of this node left behind.
    #[must_use]
    pub fn after_restart(timeouts: Timeouts, ephemeral: bool) -> Self {
        Self {
            state: State::Unknown,
            timeouts,
            ephemeral,
        }
    }

    #[cfg(test)]
    pub(super) fn with_state(state: State, ephemeral: bool) -> Self {
        Self {
            state,
            timeouts: Timeouts::default(),
            ephemeral,
        }
    }

    /// Where its life is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How long each stage may take.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Starting { deadline } | State::Stopping { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// Whether a request makes sense now.
    #[must_use]
    pub fn admit(&self, request: &Request) -> Admission {
        use Admission::{Accept, Deny, Ignore};
        use Request as R;
        match (&self.state, request) {
            (State::Unknown, _) => Deny(Denial::Unknown),

            (State::Created, R::Start | R::Destroy) => Accept,
            (State::Created, R::Stop { .. } | R::Kill) => Ignore,
            (State::Created, R::Pause | R::Resume) => Deny(Denial::NotRunning),

            (State::Stopped { .. }, R::Destroy) => Accept,
            (State::Stopped { .. }, R::Stop { .. } | R::Kill) => Ignore,
            (State::Destroying { .. } | State::Destroyed { .. }, R::Destroy) => Ignore,
            (State::Stopped { .. } | State::Destroying { .. } | State::Destroyed { .. }, _) => {
                Deny(Denial::Ended)
            }

            (_, R::Destroy) => Deny(Denial::Live),
            (
                State::Stopping {
                    stage: Stage::Killing,
                    ..
                },
                R::Kill,
            ) => Ignore,
            (_, R::Kill) => Accept,
            (State::Stopping { .. }, R::Stop { .. }) => Ignore,
            (_, R::Stop { .. }) => Accept,
            (State::Stopping { .. }, R::Start | R::Pause | R::Resume) => Deny(Denial::Ended),

            (State::Paused, R::Start) => Deny(Denial::Paused),
            (_, R::Start) => Ignore,
            (State::Running, R::Pause) | (State::Paused, R::Resume) => Accept,
            (State::Pausing | State::Paused, R::Pause)
            | (State::Running | State::Resuming, R::Resume) => Ignore,
            (State::Starting { .. } | State::Resuming, R::Pause)
            | (State::Starting { .. } | State::Pausing, R::Resume) => Deny(Denial::Busy),
        }
    }

    /// Takes an event in and says what to do. What an event means nothing to is left alone:
    /// observations may be late.
    pub fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        match event {
            Event::Requested(request) if self.admit(&request) == Admission::Accept => {
                self.request(now, request)
            }
            Event::Requested(_) => Vec::new(),
            Event::Launched => self.launched(),
            Event::LaunchFailed(why) => {
                self.vmm_is_gone(Outcome::Failed(Failure::Launch(why)));
                Vec::new()
            }
            Event::VmmExited(how) => {
                self.vmm_is_gone(Outcome::Failed(Failure::Vmm(how)));
                Vec::new()
            }
            Event::GuestReady => {
                self.become_if(matches!(self.state, State::Starting { .. }), State::Running)
            }
            Event::GuestFailed(why) => self.guest_failed(now, why),
            Event::MainExited(status) => self.main_exited(now, status),
            Event::PauseDone => self.become_if(self.state == State::Pausing, State::Paused),
            Event::PauseFailed => self.become_if(self.state == State::Pausing, State::Running),
            Event::ResumeDone => self.become_if(self.state == State::Resuming, State::Running),
            Event::ResumeFailed => self.become_if(self.state == State::Resuming, State::Paused),
            Event::Tick => self.tick(now),
            Event::Removed => {
                if let State::Destroying { outcome } = &self.state {
                    self.state = State::Destroyed {
                        outcome: outcome.clone(),
                    };
                }
                Vec::new()
            }
            Event::RemoveFailed => {
                if let State::Destroying { outcome } = &self.state {
                    self.state = State::Stopped {
                        outcome: outcome.clone(),
                    };
                }
                Vec::new()
            }
            Event::Adopted { paused } => {
                let found = if paused {
                    State::Paused
                } else {
                    State::Running
                };
                self.become_if(self.state == State::Unknown, found)
            }
            Event::Gone => self.become_if(
                self.state == State::Unknown,
                State::Stopped {
                    outcome: Outcome::Unknown,
                },
            ),
        }
    }

    fn become_if(&mut self, condition: bool, state: State) -> Vec<Effect> {
        if condition {
            self.state = state;
        }
        Vec::new()
    }

    fn request(&mut self, now: Moment, request: Request) -> Vec<Effect> {
        match request {
            Request::Start => {
                self.state = State::Starting {
                    deadline: now + self.timeouts.boot,
                };
                vec![Effect::Launch]
            }
            Request::Kill => {
                let outcome = self.outcome_so_far();
                self.stop(now, Stage::Killing, outcome)
            }
            // A guest that still boots has no agent to ask, a freezing one will not answer.
            Request::Stop { .. }
                if matches!(self.state, State::Starting { .. } | State::Pausing) =>
            {
                self.stop(now, Stage::Quitting, Outcome::Stopped)
            }
            Request::Stop { grace } => {
                let frozen = self.state == State::Paused;
                self.state = State::Stopping {
                    stage: Stage::Asking,
                    deadline: now + grace + self.timeouts.quit,
                    outcome: Outcome::Stopped,
                };
                let ask = Effect::Shutdown { grace };
                if frozen {
                    vec![Effect::Resume, ask]
                } else {
                    vec![ask]
                }
            }
            Request::Pause => {
                self.state = State::Pausing;
                vec![Effect::Pause]
            }
            Request::Resume => {
                self.state = State::Resuming;
                vec![Effect::Resume]
            }
            Request::Destroy => {
                self.state = State::Destroying {
                    outcome: self.outcome_so_far(),
                };
                vec![Effect::Remove]
            }
        }
    }

    /// A VMM that comes up after its end was decided has not heard of it yet.
    fn launched(&self) -> Vec<Effect> {
        match self.state {
            State::Stopping {
                stage: Stage::Killing,
                ..
            } => vec![Effect::Kill],
            State::Stopping { .. } => vec![Effect::Quit],
            _ => Vec::new(),
        }
    }

    fn guest_failed(&mut self, now: Moment, why: String) -> Vec<Effect> {
        match self.state {
            State::Starting { .. }
            | State::Running
            | State::Pausing
            | State::Paused
            | State::Resuming => {
                self.stop(now, Stage::Killing, Outcome::Failed(Failure::Guest(why)))
            }
            // Nobody is left to power the guest off.
            State::Stopping {
                stage: Stage::Leaving | Stage::Asking,
                ..
            } => {
                let outcome = self.outcome_so_far();
                self.stop(now, Stage::Quitting, outcome)
            }
            _ => Vec::new(),
        }
    }

    fn main_exited(&mut self, now: Moment, status: ExitStatus) -> Vec<Effect> {
        let finished = Outcome::Finished(status);
        match &mut self.state {
            State::Starting { .. }
            | State::Running
            | State::Pausing
            | State::Paused
            | State::Resuming => {
                let stage = if self.ephemeral {
                    Stage::Killing
                } else {
                    Stage::Leaving
                };
                self.stop(now, stage, finished)
            }
            State::Stopping {
                outcome: outcome @ Outcome::Stopped,
                stage,
                ..
            } => {
                *outcome = finished.clone();
                if self.ephemeral && *stage != Stage::Killing {
                    self.stop(now, Stage::Killing, finished)
                } else {
                    Vec::new()
                }
            }
            _ => Vec::new(),
        }
    }

    fn vmm_is_gone(&mut self, unexpected: Outcome) {
        let outcome = match &self.state {
            State::Starting { .. }
            | State::Running
            | State::Pausing
            | State::Paused
            | State::Resuming => unexpected,
            State::Stopping { outcome, .. } => outcome.clone(),
            _ => return,
        };
        self.state = State::Stopped { outcome };
    }

    fn tick(&mut self, now: Moment) -> Vec<Effect> {
        match &self.state {
            State::Starting { deadline } if now >= *deadline => {
                let silent = Outcome::Failed(Failure::Silent(self.timeouts.boot));
                self.stop(now, Stage::Killing, silent)
            }
            State::Stopping {
                stage,
                deadline,
                outcome,
            } if now >= *deadline => {
                let (stage, outcome) = (*stage, outcome.clone());
                let next = match stage {
                    Stage::Leaving | Stage::Asking => Stage::Quitting,
                    Stage::Quitting | Stage::Killing => Stage::Killing,
                };
                self.stop(now, next, outcome)
            }
            _ => Vec::new(),
        }
    }

    /// What would be told if the VM ended now by request.
    fn outcome_so_far(&self) -> Outcome {
        match &self.state {
            State::Stopping { outcome, .. }
            | State::Stopped { outcome }
            | State::Destroying { outcome }
            | State::Destroyed { outcome } => outcome.clone(),
            State::Unknown => Outcome::Unknown,
            _ => Outcome::Stopped,
        }
    }

    fn stop(&mut self, now: Moment, stage: Stage, outcome: Outcome) -> Vec<Effect> {
        let (limit, effects) = match stage {
            Stage::Leaving | Stage::Asking => (self.timeouts.quit, Vec::new()),
            Stage::Quitting => (self.timeouts.quit, vec![Effect::Quit]),
            Stage::Killing => (self.timeouts.kill, vec![Effect::Kill]),
        };
        self.state = State::Stopping {
            stage,
            deadline: now + limit,
            outcome,
        };
        effects
    }
}
