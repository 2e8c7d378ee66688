//! What the host asks and what becomes of it: the stream table, and the state of the guest.

use crate::channel::Channel;
use crate::command::Command;
use crate::ending::Ending;
use crate::failure::Failure;
use crate::get::Get;
use crate::launch::launch;
use crate::outlet::Outlet;
use crate::put::Put;
use crate::stream::{MAX_STREAMS, Operation, Slot, Stream};
use crate::sys;
use aleph_guest_proto::{CONTROL, Exit, Setup, ToGuest, ToHost, Versions, negotiate};
use alloc::format;
use alloc::vec::Vec;
use rustix::fd::RawFd;
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

    /// Sends a signal to every process but the agent.
    fn signal_all(&mut self, signal: u8);
}

/// The conversation with the host, apart from the bytes that carry it.
#[derive(Debug)]
pub(crate) struct Dialogue<M> {
    machine: M,
    pub(crate) outlet: Outlet,
    streams: Vec<Stream>,
    started_us: u64,
    /// Whether this connection's host said hello.
    is_greeted: bool,
    /// Whether a hang-up ends the guest; none before setup.
    poweroff_on_hangup: Option<bool>,
    ending: Ending,
}

impl<M: Machine> Dialogue<M> {
    pub(crate) fn new(machine: M, started_us: u64) -> Self {
        Self {
            machine,
            outlet: Outlet::new(),
            streams: Vec::new(),
            started_us,
            is_greeted: false,
            poweroff_on_hangup: None,
            ending: Ending::None,
        }
    }

    /// The machine, after the session.
    pub(crate) fn into_machine(self) -> M {
        self.machine
    }

    /// A host is there: the first word is the agent's.
    pub(crate) fn connect(&mut self) {
        let hello = ToHost::Hello {
            versions: Versions::OURS,
            started_us: self.started_us,
            now_us: sys::monotonic_us(),
        };
        self.outlet.push(CONTROL, &hello);
    }

    /// The host is gone. Files under way are given up; commands run on, and the next
    /// connection hears of them.
    pub(crate) fn hang_up(&mut self) {
        self.is_greeted = false;
        self.outlet.set_open(false);
        self.streams
            .retain_mut(|stream| match &mut stream.operation {
                Operation::Command(command) => {
                    command.hang_up(&self.outlet);
                    command.told_at().is_none()
                }
                Operation::Put(_) | Operation::Get(_) => false,
            });
        self.ending
            .hang_up(!self.streams.iter().any(Stream::is_main));
        self.outlet.transmit.clear();
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
            ToGuest::Hello(theirs) => return self.greet(*theirs),
            _ if !self.is_greeted => return Err(Failure::violation("a message before Hello")),
            ToGuest::Ping(number) => self.outlet.push(CONTROL, &ToHost::Pong(*number)),
            ToGuest::Setup(setup) => return self.set_up(setup),
            ToGuest::Shutdown { grace_ms } => {
                let kill_at = sys::monotonic_us() + u64::from(*grace_ms) * 1000;
                if self.ending.shut_down(kill_at) {
                    self.machine.signal_all(sys::SIGTERM);
                    self.machine.signal_all(sys::SIGCONT);
                    self.reap();
                }
            }
            ToGuest::Exec(_) | ToGuest::Put(_) | ToGuest::Get { .. } => {
                return self.begin(id, message);
            }
            _ => {
                // A stream may have ended while the message was under way.
                if let Some(at) = self.streams.iter().position(|stream| stream.id == id) {
                    return self.go_on(at, message);
                }
            }
        }
        Ok(())
    }

    /// A second greeting on one connection is one of a new connection, whose beginning went
    /// unseen.
    fn greet(&mut self, theirs: Versions) -> Result<(), Failure> {
        negotiate(Versions::OURS, theirs)
            .map_err(|mismatch| Failure::because(format!("{mismatch}"), Errno::PROTO))?;
        if self.is_greeted {
            self.hang_up();
            self.connect();
        }
        self.is_greeted = true;
        self.outlet.set_open(true);
        if self.poweroff_on_hangup.is_some() {
            self.tell_ready();
            for stream in &self.streams {
                if let Operation::Command(command) = &stream.operation {
                    command.announce(stream.id, &mut self.outlet);
                }
            }
        }
        Ok(())
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

    /// Begins an operation on a new stream.
    fn begin(&mut self, id: u32, message: &ToGuest<'_>) -> Result<(), Failure> {
        if self.poweroff_on_hangup.is_none() {
            return Err(Failure::violation("an operation before Setup"));
        }
        if self.streams.iter().any(|stream| stream.id == id) {
            return Err(Failure::violation(format!("stream {id} is begun twice")));
        }
        let begun = if self.streams.len() >= MAX_STREAMS {
            let why = format!("{MAX_STREAMS} operations are under way, which is the most");
            Err(Failure::because(why, Errno::MFILE))
        } else if self.ending.is_begun() {
            Err(Failure::because(
                "the guest is shutting down".into(),
                Errno::AGAIN,
            ))
        } else {
            self.open(id, message)
        };
        match begun {
            Ok(operation) => self.streams.push(Stream { id, operation }),
            Err(failure) => self.outlet.fail(id, &failure),
        }
        Ok(())
    }

    fn open(&mut self, id: u32, message: &ToGuest<'_>) -> Result<Operation, Failure> {
        Ok(match message {
            ToGuest::Exec(exec) => {
                let command = Command::new(launch(exec)?);
                command.announce(id, &mut self.outlet);
                Operation::Command(command)
            }
            ToGuest::Put(put) => Operation::Put(Put::create(id, put)?),
            ToGuest::Get { path } => {
                let (get, info) = Get::open(path)?;
                self.outlet.push(id, &ToHost::File(info));
                Operation::Get(get)
            }
            _ => return Err(Failure::violation("no operation")),
        })
    }

    /// Acts on a message for a stream that is there.
    fn go_on(&mut self, at: usize, message: &ToGuest<'_>) -> Result<(), Failure> {
        let Stream { id, operation } = &mut self.streams[at];
        let outlet = &mut self.outlet;
        match (operation, message) {
            (Operation::Command(command), ToGuest::Data(bytes)) => {
                if let Some(credit) = command.input().accept(bytes)? {
                    outlet.push(*id, &ToHost::Credit(credit));
                }
            }
            (Operation::Command(command), ToGuest::Eof) => command.input().end()?,
            (Operation::Command(command), ToGuest::Signal(signal)) => command.signal(*signal),
            (Operation::Command(command), ToGuest::Resize(size)) => command.resize(*size),
            (Operation::Command(command), ToGuest::Credit(n)) => {
                command.window().credit(*n).map_err(Failure::violation)?;
            }
            (Operation::Get(get), ToGuest::Credit(n)) => {
                get.window().credit(*n).map_err(Failure::violation)?;
            }
            (Operation::Put(put), ToGuest::Data(bytes)) => {
                put.receive(bytes.len())?;
                match put.write(bytes) {
                    Ok(Some(credit)) => outlet.push(*id, &ToHost::Credit(credit)),
                    Ok(None) => {}
                    Err(failure) => {
                        outlet.fail(*id, &failure);
                        self.streams.swap_remove(at);
                    }
                }
            }
            (Operation::Put(_), ToGuest::Eof) => {
                let Stream { id, operation } = self.streams.swap_remove(at);
                if let Operation::Put(put) = operation {
                    match put.finish() {
                        Ok(()) => outlet.push(id, &ToHost::Done),
                        Err(failure) => outlet.fail(id, &failure),
                    }
                }
            }
            _ => {
                let what = format!("a message that means nothing on stream {id}");
                return Err(Failure::violation(what));
            }
        }
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
                }
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    // There is no child left, so there is no process but the agent.
                    self.ending.all_ended(now);
                    break;
                }
            }
        }
    }

    /// Does what time and free windows allow, before the next wait.
    pub(crate) fn advance(&mut self, now: u64) {
        if let Some(signal) = self.ending.due(now) {
            self.machine.signal_all(signal);
        }
        let (outlet, ending) = (&mut self.outlet, &mut self.ending);
        self.streams
            .retain_mut(|stream| match &mut stream.operation {
                Operation::Command(command) => {
                    if command.settle(now, stream.id, outlet) && command.is_main() {
                        ending.main_ended(now);
                    }
                    true
                }
                Operation::Get(get) => !get.pump(stream.id, outlet),
                Operation::Put(_) => true,
            });
    }

    /// Writes what the channel takes, and forgets commands whose end is out: the host may use
    /// their numbers again. While the guest ends they stay, since their credit tells what the
    /// host has taken.
    pub(crate) fn flush(&mut self, channel: &Channel) {
        let transmit = &mut self.outlet.transmit;
        transmit.flush(channel);
        if !self.ending.is_begun() {
            self.streams.retain(|stream| match &stream.operation {
                Operation::Command(command) => {
                    !command.told_at().is_some_and(|at| transmit.has_passed(at))
                }
                _ => true,
            });
        }
    }

    /// Whether [`Dialogue::advance`] could do more at once.
    pub(crate) fn is_busy(&self) -> bool {
        self.streams.iter().any(|stream| match &stream.operation {
            Operation::Get(get) => get.can_go_on(&self.outlet),
            _ => false,
        })
    }

    /// Whether the guest is to power off now.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        self.ending.is_over(now, || {
            !self.outlet.is_open()
                || self.outlet.transmit.is_empty()
                    && self
                        .commands()
                        .all(|c| !c.is_ending() && (c.told_at().is_none() || c.is_caught_up()))
        })
    }

    /// When [`Dialogue::advance`] has something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let commands = self
            .commands()
            .filter_map(|command| command.deadline(&self.outlet));
        commands.chain(self.ending.deadline()).min()
    }

    fn commands(&self) -> impl Iterator<Item = &Command> {
        self.streams
            .iter()
            .filter_map(|stream| match &stream.operation {
                Operation::Command(command) => Some(command),
                _ => None,
            })
    }

    /// What to wait for; `watch` gets each stream's place, what it is, and its events. The
    /// places hold until a message is handled.
    pub(crate) fn watch(&self, mut watch: impl FnMut(usize, Slot, RawFd, i16)) {
        for (at, stream) in self.streams.iter().enumerate() {
            if let Operation::Command(command) = &stream.operation {
                command.watch(&self.outlet, |slot, fd, events| watch(at, slot, fd, events));
            }
        }
    }

    /// Takes what is ready at a place that [`Dialogue::watch`] gave.
    pub(crate) fn ready(&mut self, at: usize, slot: Slot) {
        if let Some(Stream {
            id,
            operation: Operation::Command(command),
        }) = self.streams.get_mut(at)
        {
            command.ready(slot, *id, &mut self.outlet);
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(byte(signal)),
        None => Exit::Code(byte(status.exit_status().unwrap_or(-1))),
    }
}
