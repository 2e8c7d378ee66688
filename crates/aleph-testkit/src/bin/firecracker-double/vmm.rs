//! The thread of the VMM: it takes one request after another, and sees its guest end.
//!
//! A guest that was paused by a request freezes all of it, as there: until the guest is let go on,
//! only requests are looked at.

use crate::action::Action;
use crate::arguments::Arguments;
use crate::fault::{About, Fault, TOO_EARLY, TOO_LATE};
use crate::guest::Guest;
use crate::log;
use crate::metrics::Metrics;
use crate::mmds::Mmds;
use crate::report;
use crate::resources::Resources;
use crate::version::Version;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How long an end waits until an answer is written.
const WRITING: Duration = Duration::from_secs(5);

/// The body of an answer, where it has one.
pub(crate) type Answer = Result<Option<String>, Fault>;

/// What the VMM is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// The API asks for something.
    Request {
        action: Box<Action>,
        answer: Sender<Answer>,
        /// Disconnected once the answer is written.
        written: Receiver<()>,
    },
    /// The guest of the QEMU with this number did this to its machine, in QEMU's word.
    Shutdown(u64, String),
    /// The QEMU with this number is gone.
    QemuGone(u64),
}

/// How far the guest is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// There is none yet. Once something to boot from was named, even in vain, no snapshot is
    /// loaded any more.
    NotStarted { boot_path: bool },
    /// Its processors run.
    Running(Guest),
    /// They do not; nor, where a request paused it, does anything else.
    Paused { guest: Guest, frozen: bool },
}

/// A VMM.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) version: Version,
    pub(crate) id: String,
    pub(crate) pci: bool,
    pub(crate) phase: Phase,
    pub(crate) resources: Resources,
    pub(crate) mmds: Mmds,
    pub(crate) metrics: Metrics,
    /// Where a guest's QEMU tells what happens.
    pub(crate) events: Sender<Event>,
    /// Set by what cannot be gone on from.
    pub(crate) fatal: bool,
    /// The connection to what fills the guest's memory, which sees by it when this ends.
    pub(crate) handler: Option<UnixStream>,
}

impl Vmm {
    pub(crate) fn new(arguments: &Arguments, version: Version, events: Sender<Event>) -> Self {
        Self {
            version,
            id: arguments.id.clone(),
            pci: arguments.enable_pci,
            phase: Phase::NotStarted { boot_path: false },
            resources: Resources::default(),
            mmds: Mmds::new(arguments.mmds_limit),
            metrics: Metrics::new(),
            events,
            fatal: false,
            handler: None,
        }
    }

    /// Runs until the guest ends, or nothing can be gone on from; gives the exit code.
    pub(crate) fn run(&mut self, events: &Receiver<Event>) -> u8 {
        let mut held = Vec::new();
        loop {
            let frozen = matches!(self.phase, Phase::Paused { frozen: true, .. });
            let event = match if frozen { None } else { held.pop() } {
                Some(event) => event,
                None => {
                    let due = match frozen {
                        true => Duration::from_secs(3600),
                        false => self.metrics.due.saturating_duration_since(Instant::now()),
                    };
                    match events.recv_timeout(due) {
                        Ok(event) => event,
                        Err(RecvTimeoutError::Timeout) if frozen => continue,
                        Err(RecvTimeoutError::Timeout) => {
                            let _ = self.metrics.flush();
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => return self.end(1),
                    }
                }
            };
            match event {
                Event::Request {
                    action,
                    answer,
                    written,
                } => {
                    let _ = answer.send(self.handle(*action));
                    if self.fatal {
                        let _ = written.recv_timeout(WRITING);
                        return self.end(1);
                    }
                }
                other if frozen => held.push(other),
                // A guest that only powers off stays where it is: nothing hears it.
                Event::Shutdown(_, reason) if reason != "guest-reset" => {}
                // One that another took the place of.
                Event::Shutdown(of, _) | Event::QemuGone(of) if !self.runs(of) => {}
                Event::Shutdown(..) => return self.end(0),
                Event::QemuGone(_) => {
                    log!(Error, "QEMU is gone");
                    return self.end(1);
                }
            }
        }
    }

    /// Whether the guest is that of the QEMU with this number.
    fn runs(&self, number: u64) -> bool {
        match &self.phase {
            Phase::NotStarted { .. } => false,
            Phase::Running(guest) | Phase::Paused { guest, .. } => guest.number() == number,
        }
    }

    fn end(&mut self, code: u8) -> u8 {
        log!(Info, "Vmm is stopping.");
        let _ = self.metrics.flush();
        self.phase = Phase::NotStarted { boot_path: true };
        code
    }

    /// Does what is asked for.
    pub(crate) fn handle(&mut self, action: Action) -> Answer {
        let started = !matches!(self.phase, Phase::NotStarted { .. });
        let (group, name) = action.counted();
        self.metrics.count(group, name);
        match action {
            Action::Info => Ok(Some(report::instance(self))),
            Action::Version => Ok(Some(report::version(self.version))),
            Action::FullConfig => Ok(Some(report::configuration(self)?)),
            Action::MachineConfig => Ok(Some(report::json(&self.resources.machine)?)),
            Action::BalloonConfig => self.balloon_config(started),
            Action::Mmds | Action::PutMmds(_) | Action::PatchMmds(_) => {
                // From 1.15 on there is no store for a guest that cannot reach it.
                let reachable = !started || !self.version.has(15) || self.resources.mmds.is_some();
                self.mmds.handle(action, reachable, self.version)
            }
            action if started => self.handle_booted(action),
            action => self.handle_unbooted(action),
        }
    }

    fn balloon_config(&self, started: bool) -> Answer {
        match &self.resources.balloon {
            Some(balloon) => Ok(Some(report::balloon(balloon, self.version)?)),
            None if started && self.version.has(14) => Err(About::Vmm.fault(
                self.version,
                "Failed perform action on device: Device not found",
            )),
            None => Err(About::Balloon.fault(self.version, "No balloon device found.")),
        }
    }
}

/// A refusal because there is no guest yet.
pub(crate) fn too_early() -> Answer {
    Err(TOO_EARLY.into())
}

/// A refusal because there is a guest already.
pub(crate) fn too_late() -> Answer {
    Err(TOO_LATE.into())
}
