//! What the host asks and what becomes of it: the state of the guest, from one connection to the
//! next. What comes on streams is in [`crate::operations`].

use crate::command::Command;
use crate::ending::Ending;
use crate::failure::Failure;
use crate::file::read_bounded;
use crate::leaving::Leaving;
use crate::listener::Listener;
use crate::outlet::Outlet;
use crate::stream::{Operation, Stream};
use crate::sys;
use aleph_guest_proto::{
    CONTROL, Exit, GUEST_STREAMS, Link, Mount, Resume, Setup, ToGuest, ToHost, Versions, negotiate,
};
use alloc::format;
use alloc::vec::Vec;
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

/// What the session does to the machine as a whole. In a test it is a stand-in, which must not
/// touch the machine that the test runs on.
pub trait Machine {
    /// Makes the booted guest ready for commands.
    ///
    /// # Errors
    /// What failed, after which the guest can not go on.
    fn set_up(&mut self, setup: &Setup<'_>) -> Result<(), Failure>;

    /// Sends a signal to every process but the agent and those of these groups.
    fn signal_all(&mut self, signal: u8, except: &[i32]);

    /// Mounts a filesystem.
    ///
    /// # Errors
    /// What failed; the guest goes on without it.
    fn mount(&mut self, mount: &Mount<'_>) -> Result<(), Failure>;

    /// Sets up the interface of a link to the host.
    ///
    /// # Errors
    /// What failed; the guest goes on without it.
    fn link(&mut self, link: &Link) -> Result<(), Failure>;

    /// Stops every process but the agent, and writes out what waits to be.
    ///
    /// # Errors
    /// Where one does not stand still: then all go on.
    fn freeze(&mut self) -> Result<(), Failure>;

    /// Does ahead, once all stand still, what each clone of it would do.
    fn settle(&mut self);

    /// Gives a clone what is its own, and lets its processes go on.
    ///
    /// # Errors
    /// What it could not be given; its processes stay stopped then.
    fn resume(&mut self, resume: &Resume<'_>) -> Result<(), Failure>;

    /// Sets the wall clock.
    fn set_clock(&mut self, unix_ns: u64);
}

/// The conversation with the host, apart from the bytes that carry it.
#[derive(Debug)]
pub(crate) struct Dialogue<M> {
    pub(crate) machine: M,
    pub(crate) outlet: Outlet,
    pub(crate) streams: Vec<Stream>,
    pub(crate) leaving: Vec<Leaving>,
    pub(crate) listeners: Vec<Listener>,
    /// The number of the next connection that is accepted.
    pub(crate) next_accepted: u32,
    started_us: u64,
    boot_id: [u8; 16],
    /// Whether this connection's host said hello.
    is_greeted: bool,
    /// Whether a hang-up ends the guest; none before setup.
    pub(crate) poweroff_on_hangup: Option<bool>,
    pub(crate) ending: Ending,
}

impl<M: Machine> Dialogue<M> {
    pub(crate) fn new(machine: M, started_us: u64) -> Self {
        Self {
            machine,
            outlet: Outlet::new(),
            streams: Vec::new(),
            leaving: Vec::new(),
            listeners: Vec::new(),
            next_accepted: GUEST_STREAMS,
            started_us,
            boot_id: boot_id(),
            is_greeted: false,
            poweroff_on_hangup: None,
            ending: Ending::None,
        }
    }

    /// The machine, after the session.
    pub(crate) fn into_machine(self) -> M {
        self.machine
    }

    /// The host is gone, or another one is there before that was seen. What it began is given
    /// up, but for kept commands, of which the next one hears.
    pub(crate) fn hang_up(&mut self) {
        self.is_greeted = false;
        self.outlet.set_open(false);
        self.outlet.transmit.clear();
        let now = sys::monotonic_us();
        let (gone, kept): (Vec<_>, Vec<_>) = core::mem::take(&mut self.streams)
            .into_iter()
            .partition(|stream| !stream.outlives_host());
        self.streams = kept;
        for stream in gone {
            self.give_up(stream, now);
        }
        for command in self.streams.iter_mut().filter_map(Stream::command) {
            command.detach();
        }
        for connection in self.streams.iter_mut().filter_map(Stream::accepted) {
            connection.hang_up();
        }
        self.ending.hang_up(self.is_held());
    }

    /// Whether the guest has to stay for the end of a kept command.
    pub(crate) fn is_held(&self) -> bool {
        self.commands().any(Command::is_held)
    }

    /// Whether a hang-up that lasts ends the guest.
    pub(crate) fn ends_on_hangup(&self) -> bool {
        self.poweroff_on_hangup == Some(true)
    }

    /// Acts on a message.
    ///
    /// # Errors
    /// What ends the guest: a setup that failed, or a host that broke the rules.
    pub(crate) fn handle(&mut self, id: u32, message: &ToGuest<'_>) -> Result<(), Failure> {
        match message {
            ToGuest::Hello { versions, nonce } => return self.greet(*versions, nonce),
            _ if !self.is_greeted => return Err(Failure::violation("a message before Hello")),
            ToGuest::Ping(number) => self.outlet.push(CONTROL, &ToHost::Pong(*number)),
            ToGuest::Setup(setup) => return self.set_up(setup),
            ToGuest::Shutdown { grace_ms, signal } => self.shut_down(*grace_ms, *signal),
            ToGuest::Exec(_)
            | ToGuest::Put(_)
            | ToGuest::Get { .. }
            | ToGuest::Pack { .. }
            | ToGuest::Unpack { .. }
            | ToGuest::Connect { .. }
            | ToGuest::Stat { .. }
            | ToGuest::Usage
            | ToGuest::Listen { .. }
            | ToGuest::Mount(_)
            | ToGuest::Link(_)
            | ToGuest::Freeze
            | ToGuest::Settle
            | ToGuest::Resume(_) => return self.begin(id, message),
            ToGuest::Clock { unix_ns } => self.machine.set_clock(*unix_ns),
            _ => {
                // A stream may have ended while the message was under way.
                if let Some(at) = self.streams.iter().position(|stream| stream.id == id) {
                    return self.go_on(at, message);
                }
            }
        }
        Ok(())
    }

    /// Answers a host's first word, with the bytes first that only this host looks for.
    fn greet(&mut self, theirs: Versions, nonce: &[u8]) -> Result<(), Failure> {
        if self.is_greeted {
            return Err(Failure::violation("a second Hello"));
        }
        self.outlet.transmit.push_mark(nonce);
        negotiate(Versions::OURS, theirs)
            .map_err(|mismatch| Failure::because(format!("{mismatch}"), Errno::PROTO))?;
        self.is_greeted = true;
        self.outlet.set_open(true);
        let is_ready = self.poweroff_on_hangup.is_some();
        let hello = ToHost::Hello {
            versions: Versions::OURS,
            started_us: self.started_us,
            now_us: sys::monotonic_us(),
            boot_id: self.boot_id,
            is_ready,
        };
        self.outlet.push(CONTROL, &hello);
        if is_ready {
            for stream in &mut self.streams {
                let id = stream.id;
                if let Some(kept) = stream.kept() {
                    self.outlet.push(id, &ToHost::Kept(kept));
                } else if let Some(connection) = stream.accepted() {
                    connection.announce(id, &mut self.outlet);
                }
            }
            self.tell_ready();
        }
        Ok(())
    }

    /// Begins to end the guest: main commands get their own signal, all others TERM.
    fn shut_down(&mut self, grace_ms: u32, signal: u8) {
        let kill_at = sys::monotonic_us() + u64::from(grace_ms) * 1000;
        let is_held = self.is_held();
        if !self.ending.shut_down(kill_at, is_held) {
            return;
        }
        let mains: Vec<i32> = self.commands().filter_map(Command::main_group).collect();
        if signal == sys::SIGTERM || mains.is_empty() {
            self.machine.signal_all(sys::SIGTERM, &[]);
        } else {
            self.machine.signal_all(sys::SIGTERM, &mains);
            for group in mains {
                // One that has just ended needs none.
                let _ = sys::kill(-group, signal);
            }
        }
        self.machine.signal_all(sys::SIGCONT, &[]);
        self.reap();
    }

    fn tell_ready(&mut self) {
        self.outlet.push(
            CONTROL,
            &ToHost::Ready {
                now_us: sys::monotonic_us(),
            },
        );
    }

    /// A guest is set up once. A host that came back may ask again: nothing changes, and the
    /// answer is the same.
    fn set_up(&mut self, setup: &Setup<'_>) -> Result<(), Failure> {
        if self.poweroff_on_hangup.is_none() {
            self.machine.set_up(setup)?;
            self.poweroff_on_hangup = Some(setup.poweroff_on_hangup);
        }
        self.tell_ready();
        Ok(())
    }

    /// Collects every process that ended: commands, and orphans that fell to the agent.
    pub(crate) fn reap(&mut self) {
        let now = sys::monotonic_us();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    let commands = self.streams.iter_mut().filter_map(Stream::command);
                    if let Some(command) = commands.into_iter().find(|c| c.is_process(pid)) {
                        command.end(exit_of(status), now);
                    }
                    for leaving in &mut self.leaving {
                        if leaving.collected(pid) {
                            self.ending.main_abandoned();
                        }
                    }
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    // There is no child left, so there is no process but the agent.
                    let is_held = self.is_held();
                    self.ending.all_ended(now, is_held);
                    break;
                }
            }
        }
    }

    /// Whether the guest is to power off now.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        self.ending.is_over(now, || {
            let is_heard = || {
                self.outlet.transmit.is_empty()
                    && self
                        .commands()
                        .all(|c| !c.is_ending() && (c.told_at().is_none() || c.is_caught_up()))
            };
            !self.is_held() && (!self.outlet.is_open() || is_heard())
        })
    }

    /// When [`Dialogue::advance`] has something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let commands = self
            .commands()
            .filter_map(|command| command.deadline(&self.outlet));
        let leaving = self.leaving.iter().filter_map(Leaving::deadline);
        commands.chain(leaving).chain(self.ending.deadline()).min()
    }

    fn commands(&self) -> impl Iterator<Item = &Command> {
        self.streams
            .iter()
            .filter_map(|stream| match &stream.operation {
                Operation::Command(command) => Some(command),
                _ => None,
            })
    }
}

/// The kernel's id of this boot, which it prints as a UUID; zeros where it does not.
fn boot_id() -> [u8; 16] {
    let text = read_bounded(c"/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits = text
        .iter()
        .filter_map(|byte| char::from(*byte).to_digit(16));
    let mut id = [0; 16];
    for (at, digit) in digits.take(32).enumerate() {
        id[at / 2] = id[at / 2] << 4 | u8::try_from(digit).unwrap_or(0);
    }
    id
}

fn exit_of(status: WaitStatus) -> Exit {
    let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(byte(signal)),
        None => Exit::Code(byte(status.exit_status().unwrap_or(-1))),
    }
}
