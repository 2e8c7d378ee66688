//! A command that runs, from its start to the last word on its stream.

use crate::backlog::Backlog;
use crate::failure::Failure;
use crate::input::Input;
use crate::leaving::Leaving;
use crate::outlet::{Flow, Outlet, Passed};
use crate::stream::Slot;
use crate::sys::{self, Watch};
use crate::terminal;
use aleph_guest_proto::{Exit, Kept, SendWindow, Terminal, ToHost, WINDOW};
use alloc::rc::Rc;
use rustix::fd::{AsRawFd, OwnedFd, RawFd};

/// How long a command's output may stay silent after its end, while something else holds it
/// open, before it counts as complete. Waiting for its end instead would tie a command to every
/// daemon that it left behind.
const GRACE_US: u64 = 100_000;

/// What is read at most after a command's end: more than its pipes hold, so all of its own
/// output, but not for ever the output of something it left behind.
const AFTERWARDS: usize = 256 * 1024;

/// What a command is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Its process id, which is its session's and group's too.
    pub(crate) pid: i32,
    /// Whether the guest ends with it.
    pub(crate) main: bool,
    /// Whether it outlives connections.
    pub(crate) keep: bool,
    /// Where its input goes.
    pub(crate) input: Input,
    /// Its standard output and error, or its terminal as the first.
    pub(crate) outputs: [Option<Rc<OwnedFd>>; 2],
    /// Its terminal.
    pub(crate) terminal: Option<Rc<OwnedFd>>,
}

/// A command on a stream.
#[derive(Debug)]
pub(crate) struct Command {
    parts: Parts,
    sending: Sending,
    life: Life,
}

/// What bounds the output that is under way.
#[derive(Debug)]
enum Sending {
    /// Credit of this connection's host.
    Credited(SendWindow),
    /// What hosts have stored.
    Kept(Backlog),
}

impl Sending {
    /// Whether output may be read.
    fn takes(&self, outlet: &Outlet) -> bool {
        match self {
            Self::Credited(window) => outlet.takes(*window),
            Self::Kept(backlog) => backlog.room() > 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Life {
    Running,
    /// It ended; its output may not have.
    Ended {
        exit: Exit,
        silent_since: u64,
        read: usize,
    },
    /// Its end is told by the frame before this point of the transmit queue.
    Told {
        exit: Exit,
        point: u64,
    },
}

impl Command {
    pub(crate) fn new(parts: Parts) -> Self {
        let sending = if parts.keep {
            Sending::Kept(Backlog::attached())
        } else {
            Sending::Credited(SendWindow::default())
        };
        Self {
            parts,
            sending,
            life: Life::Running,
        }
    }

    pub(crate) fn input(&mut self) -> &mut Input {
        &mut self.parts.input
    }

    /// The host returned credit.
    pub(crate) fn credit(&mut self, n: u32) -> Result<(), Failure> {
        match &mut self.sending {
            Sending::Credited(window) => window.credit(n).map_err(Failure::violation),
            Sending::Kept(_) => Err(Failure::violation("credit for a kept command")),
        }
    }

    /// Goes on with a kept command, of which the host has so many bytes of output.
    pub(crate) fn attach(&mut self, stored: u64) -> Result<(), Failure> {
        match &mut self.sending {
            Sending::Kept(backlog) => backlog.attach(stored),
            Sending::Credited(_) => Err(Failure::violation("a command that is not kept")),
        }
    }

    /// The host has stored so many bytes of output, and the end with `end`; gives whether the
    /// command can be forgotten.
    pub(crate) fn store(&mut self, total: u64, end: bool) -> Result<bool, Failure> {
        let Sending::Kept(backlog) = &mut self.sending else {
            return Err(Failure::violation("a command that is not kept"));
        };
        backlog.store(total)?;
        if end && (self.told_at().is_none() || !self.is_all_stored()) {
            return Err(Failure::violation("an end is stored that was never told"));
        }
        Ok(end)
    }

    fn is_all_stored(&self) -> bool {
        match &self.sending {
            Sending::Credited(_) => false,
            Sending::Kept(backlog) => backlog.stored() == backlog.written(),
        }
    }

    /// What a new host is told of it, where it is kept.
    pub(crate) fn kept(&self) -> Option<Kept> {
        match &self.sending {
            Sending::Credited(_) => None,
            Sending::Kept(backlog) => Some(Kept {
                pid: self.parts.pid.unsigned_abs(),
                main: self.parts.main,
                input: self.parts.input.is_open(),
                ended: self.has_ended(),
                stored: backlog.stored(),
                written: backlog.written(),
            }),
        }
    }

    /// Whether its process ended.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(self.life, Life::Running)
    }

    /// Whether the guest has to stay for its end, which some host is yet to store.
    pub(crate) fn is_held(&self) -> bool {
        self.parts.keep && self.has_ended()
    }

    /// Whether [`Command::settle`] could send more at once.
    pub(crate) fn can_go_on(&self, outlet: &Outlet) -> bool {
        match &self.sending {
            Sending::Credited(_) => false,
            Sending::Kept(backlog) => {
                backlog.is_attached() && !backlog.is_sent() && outlet.has_room()
            }
        }
    }

    /// The group of a main command that runs.
    pub(crate) fn main_group(&self) -> Option<i32> {
        (self.parts.main && !self.has_ended()).then_some(self.parts.pid)
    }

    /// Hangs up on its session.
    pub(crate) fn leave(self, now: u64) -> Leaving {
        let has_ended = self.has_ended();
        Leaving::begin(self.parts, has_ended, now)
    }

    pub(crate) fn is_main(&self) -> bool {
        self.parts.main
    }

    /// Whether this is a running command of that process.
    pub(crate) fn is_process(&self, pid: i32) -> bool {
        self.parts.pid == pid && matches!(self.life, Life::Running)
    }

    /// Whether the process ended, and its stream has not.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.life, Life::Ended { .. })
    }

    /// The point of the transmit queue behind the frame that tells the end.
    pub(crate) fn told_at(&self) -> Option<u64> {
        match self.life {
            Life::Told { point, .. } => Some(point),
            _ => None,
        }
    }

    /// Whether the host is known to have taken all but what is under way at most times.
    pub(crate) fn is_caught_up(&self) -> bool {
        let enough = usize::try_from(WINDOW - WINDOW / 4).unwrap_or(0);
        match &self.sending {
            Sending::Credited(window) => window.available() > enough,
            Sending::Kept(_) => true,
        }
    }

    /// Says to a host that this stream has this command on it.
    pub(crate) fn announce(&self, stream: u32, outlet: &mut Outlet) {
        outlet.push(
            stream,
            &ToHost::Started {
                pid: self.parts.pid.unsigned_abs(),
            },
        );
    }

    /// What to wait for; `watch` gets each descriptor and its events.
    pub(crate) fn watch(&self, outlet: &Outlet, mut watch: impl FnMut(Slot, RawFd, i16)) {
        if let Some(fd) = self.parts.input.blocked_on() {
            watch(Slot::Input, fd, Watch::WRITE);
        }
        if self.sending.takes(outlet) {
            for (slot, output) in [Slot::Output, Slot::Errors]
                .into_iter()
                .zip(&self.parts.outputs)
            {
                if let Some(output) = output {
                    watch(slot, output.as_raw_fd(), Watch::READ);
                }
            }
        }
    }

    /// When [`Command::settle`] has something to do even if nothing happens.
    pub(crate) fn deadline(&self, outlet: &Outlet) -> Option<u64> {
        match self.life {
            Life::Ended { silent_since, .. } if self.has_output() && self.sending.takes(outlet) => {
                Some(silent_since + GRACE_US)
            }
            _ => None,
        }
    }

    /// Takes what is ready at one of its descriptors.
    pub(crate) fn ready(&mut self, slot: Slot, stream: u32, outlet: &mut Outlet) {
        match slot {
            Slot::Input => {
                // Without a host there is nobody to return credit to.
                if let Some(credit) = self.parts.input.pump()
                    && outlet.is_open()
                {
                    outlet.push(stream, &ToHost::Credit(credit));
                }
            }
            // What is said over a connection afterwards comes behind it.
            Slot::Output => {
                self.read(0, stream, outlet);
                self.send(stream, outlet);
            }
            Slot::Errors => {
                self.read(1, stream, outlet);
                self.send(stream, outlet);
            }
        }
    }

    /// The process ended.
    pub(crate) fn end(&mut self, exit: Exit, now: u64) {
        self.parts.input.close();
        self.life = Life::Ended {
            exit,
            silent_since: now,
            read: 0,
        };
    }

    fn has_output(&self) -> bool {
        self.parts.outputs.iter().any(Option::is_some)
    }

    /// Sends what may be sent. After the process ended: passes on the rest of its output, and tells its end once that
    /// is all. Gives whether it did so now.
    pub(crate) fn settle(&mut self, now: u64, stream: u32, outlet: &mut Outlet) -> bool {
        let Life::Ended {
            exit,
            mut silent_since,
            mut read,
        } = self.life
        else {
            self.send(stream, outlet);
            return false;
        };
        for index in 0..self.parts.outputs.len() {
            while self.parts.outputs[index].is_some() && self.sending.takes(outlet) {
                match self.read(index, stream, outlet) {
                    Some(n) if n > 0 && read + n <= AFTERWARDS => {
                        read += n;
                        silent_since = now;
                    }
                    Some(0) if now < silent_since + GRACE_US => break,
                    _ => self.parts.outputs[index] = None,
                }
            }
        }
        self.life = Life::Ended {
            exit,
            silent_since,
            read,
        };
        self.send(stream, outlet);
        let is_sent = match &self.sending {
            Sending::Credited(_) => true,
            Sending::Kept(backlog) => backlog.is_sent(),
        };
        if !self.has_output() && is_sent && outlet.is_open() {
            self.parts.terminal = None;
            outlet.push(stream, &ToHost::Exited(exit));
            self.life = Life::Told {
                exit,
                point: outlet.transmit.end(),
            };
        }
        matches!(self.life, Life::Told { .. })
    }

    fn send(&mut self, stream: u32, outlet: &mut Outlet) {
        if let Sending::Kept(backlog) = &mut self.sending {
            backlog.send(stream, outlet);
        }
    }

    /// The host of a kept command hung up: what it has not stored is told again, and its end.
    pub(crate) fn detach(&mut self) {
        if let Sending::Kept(backlog) = &mut self.sending {
            backlog.detach();
        }
        self.parts.input.hang_up();
        if let Life::Told { exit, .. } = self.life {
            self.life = Life::Ended {
                exit,
                silent_since: 0,
                read: 0,
            };
        }
    }

    /// Sends a signal to the group in the foreground of its terminal, or to its own.
    pub(crate) fn signal(&self, signal: u8) {
        if matches!(self.life, Life::Running) {
            let group = self
                .parts
                .terminal
                .as_deref()
                .and_then(terminal::foreground);
            // Whether somebody is there to get it is the command's affair.
            let _ = sys::kill(-group.unwrap_or(self.parts.pid), signal);
        }
    }

    /// Gives its terminal a new size.
    pub(crate) fn resize(&self, size: Terminal) {
        if let Some(terminal) = &self.parts.terminal {
            // A terminal that just went away needs no size.
            let _ = terminal::resize(terminal, size);
        }
    }

    /// Reads once from an output and closes it at its end, which gives `None`; else gives how
    /// many bytes there were.
    fn read(&mut self, index: usize, stream: u32, outlet: &mut Outlet) -> Option<usize> {
        let output = self.parts.outputs[index].as_deref()?;
        let flow = if index == 0 { Flow::Data } else { Flow::Errors };
        let passed = match &mut self.sending {
            Sending::Credited(window) => outlet.pass(stream, output, window, (flow, usize::MAX)),
            Sending::Kept(backlog) => backlog.read(output, flow, outlet),
        };
        match passed {
            Passed::Bytes(n) => Some(n),
            Passed::Nothing => Some(0),
            // A terminal whose last user went away reads as an I/O error.
            Passed::End | Passed::Failed(_) => {
                self.parts.outputs[index] = None;
                None
            }
        }
    }
}
