//! A command that runs, from its start to the last word on its stream.

use crate::input::Input;
use crate::outlet::{Flow, Outlet, Passed};
use crate::stream::Slot;
use crate::sys::{self, Watch};
use crate::terminal;
use aleph_guest_proto::{Exit, SendWindow, Terminal, ToHost, WINDOW};
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
    window: SendWindow,
    life: Life,
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
        Self {
            parts,
            window: SendWindow::default(),
            life: Life::Running,
        }
    }

    pub(crate) fn input(&mut self) -> &mut Input {
        &mut self.parts.input
    }

    pub(crate) fn window(&mut self) -> &mut SendWindow {
        &mut self.window
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
        self.window.available() > enough
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
        if outlet.takes(self.window) {
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
            Life::Ended { silent_since, .. } if outlet.takes(self.window) => {
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
            Slot::Output => drop(self.read(0, stream, outlet)),
            Slot::Errors => drop(self.read(1, stream, outlet)),
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

    /// After the process ended: passes on the rest of its output, and tells its end once that
    /// is all. Gives whether it did so now.
    pub(crate) fn settle(&mut self, now: u64, stream: u32, outlet: &mut Outlet) -> bool {
        let Life::Ended {
            exit,
            mut silent_since,
            mut read,
        } = self.life
        else {
            return false;
        };
        for index in 0..self.parts.outputs.len() {
            while self.parts.outputs[index].is_some() && outlet.takes(self.window) {
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
        let done = self.parts.outputs.iter().all(Option::is_none);
        if done && outlet.is_open() {
            self.parts.terminal = None;
            outlet.push(stream, &ToHost::Exited(exit));
            self.life = Life::Told {
                exit,
                point: outlet.transmit.end(),
            };
        }
        matches!(self.life, Life::Told { .. })
    }

    /// The host hung up: windows start anew, and an end whose frame did not go out is told
    /// again.
    pub(crate) fn hang_up(&mut self, outlet: &Outlet) {
        self.window = SendWindow::default();
        self.parts.input.hang_up();
        if let Life::Told { exit, point } = self.life
            && !outlet.transmit.has_passed(point)
        {
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
        match outlet.pass(stream, output, &mut self.window, flow) {
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
