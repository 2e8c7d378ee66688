//! The life of one VM as a pure state machine: no clock, no I/O, no async.
//!
//! The VM's actor asks [`Lifecycle::admit`] whether a request makes sense now, feeds what it
//! accepted and what it observes into [`Lifecycle::step`], and carries out the [`Effect`]s that
//! come back. Time is a value: [`Moment`]s count from whenever the actor began.
//!
//! ```text
//! Created ──Start──▶ Starting ──GuestReady──▶ Running ⇄ Pausing/Paused/Resuming
//!    │                  │                        │
//!    │        (failure, deadline, Stop, Kill, MainExited, VmmExited)
//!    │                  ▼                        ▼
//!    │               Stopping: Leaving | Asking ─▶ Quitting ─▶ Killing
//!    │                  │ VmmExited
//!    ▼                  ▼
//! Destroying ◀─Destroy─ Stopped{outcome}          Unknown ──Adopted / Gone──▶ …
//!    ▼
//! Destroyed
//! ```
//!
//! What holds in every run (and is tested against a model of the host):
//! - a VMM is launched at most once in one life;
//! - the host's objects are removed only when no VMM can be alive;
//! - once stopping has begun it ends, however deaf guest and VMM are: each stage has a
//!   deadline, and the last one is repeated;
//! - the first reason for the end is the one that is told, except that the command's own exit
//!   status, where it is known, is worth more than "stopped on request";
//! - an end that nobody saw is [`Outcome::Unknown`], never exit 0.

mod machine;
mod outcome;

#[cfg(test)]
mod model;
#[cfg(test)]
mod table;

pub use machine::{Admission, Denial, Effect, Event, Lifecycle, Request, Stage, State, Timeouts};
pub use outcome::{Failure, Outcome};

/// A time, counted from the moment that the VM's actor began.
pub type Moment = std::time::Duration;
