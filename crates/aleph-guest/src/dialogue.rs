//! What the host asks and what becomes of it: the stream table, and the state of the guest.

use crate::archive::{Pack, Unpack};
use crate::channel::Channel;
use crate::command::Command;
use crate::connection::Connection;
use crate::ending::Ending;
use crate::failure::Failure;
use crate::file::read_bounded;
use crate::get::Get;
use crate::launch::launch;
use crate::leaving::Leaving;
use crate::outlet::Outlet;
use crate::put::Put;
use crate::stat::stat;
use crate::stream::{MAX_STREAMS, Operation, Slot, Stream};
use crate::sys;
use crate::usage::usage;
use aleph_guest_proto::{CONTROL, Exit, Setup, ToGuest, ToHost, Versions, negotiate};
use alloc::boxed::Box;
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

    /// Sends a signal to every process but the agent and those of these groups.
    fn signal_all(&mut self, signal: u8, except: &[i32]);
}

/// The conversation with the host, apart from the bytes that carry it.
#[derive(Debug)]
pub(crate) struct Dialogue<M> {
    machine: M,
    pub(crate) outlet: Outlet,
    streams: Vec<Stream>,
    leaving: Vec<Leaving>,
    started_us: u64,
    boot_id: [u8; 16],
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
            leaving: Vec::new(),
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
            .partition(|stream| stream.kept().is_none());
        self.streams = kept;
        for stream in gone {
            self.give_up(stream, now);
        }
        for command in self.streams.iter_mut().filter_map(Stream::command) {
            command.detach();
        }
        self.ending.hang_up(self.is_held());
    }

    /// Drops an operation that nobody wants any more.
    fn give_up(&mut self, stream: Stream, now: u64) {
        if let Operation::Command(command) = stream.operation {
            if command.is_main() && command.has_ended() {
                self.ending.main_abandoned();
            }
            self.leaving.push(command.leave(now));
        }
    }

    /// Whether the guest has to stay for the end of a kept command.
    fn is_held(&self) -> bool {
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
            | ToGuest::Usage => return self.begin(id, message),
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
            for stream in &self.streams {
                if let Some(kept) = stream.kept() {
                    self.outlet.push(stream.id, &ToHost::Kept(kept));
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
            Ok(Some(operation)) => self.streams.push(Stream { id, operation }),
            Ok(None) => {}
            Err(failure) => self.outlet.fail(id, &failure),
        }
        Ok(())
    }

    /// Opens what goes on, and answers what does not.
    fn open(&mut self, id: u32, message: &ToGuest<'_>) -> Result<Option<Operation>, Failure> {
        let outlet = &mut self.outlet;
        Ok(Some(match message {
            ToGuest::Exec(exec) => {
                let command = Command::new(launch(exec)?);
                command.announce(id, outlet);
                Operation::Command(command)
            }
            ToGuest::Put(put) => Operation::Put(Put::create(id, put)?),
            ToGuest::Get { path } => {
                let (get, info) = Get::open(path)?;
                outlet.push(id, &ToHost::File(info));
                Operation::Get(get)
            }
            ToGuest::Pack { path, name } => Operation::Pack(Box::new(Pack::open(path, name)?)),
            ToGuest::Unpack { path, owners } => {
                Operation::Unpack(Box::new(Unpack::open(path, *owners)?))
            }
            ToGuest::Connect { port } => Operation::Connection(Connection::begin(*port)?),
            ToGuest::Stat { path, follow } => {
                stat(path, *follow, |stat| outlet.push(id, &ToHost::Stat(stat)))?;
                return Ok(None);
            }
            ToGuest::Usage => {
                outlet.push(id, &ToHost::Usage(usage()));
                return Ok(None);
            }
            _ => return Err(Failure::violation("no operation")),
        }))
    }

    /// Acts on a message for a stream that is there.
    fn go_on(&mut self, at: usize, message: &ToGuest<'_>) -> Result<(), Failure> {
        if let ToGuest::Cancel = message {
            if self.streams[at].kept().is_some() {
                return Err(Failure::violation("a kept command is given up"));
            }
            let stream = self.streams.swap_remove(at);
            self.give_up(stream, sys::monotonic_us());
            return Ok(());
        }
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
                command.credit(*n)?;
            }
            (Operation::Command(command), ToGuest::Attach { stored }) => {
                command.attach(*stored)?;
            }
            (Operation::Command(command), ToGuest::Stored { total, end }) => {
                if command.store(*total, *end)? {
                    if command.is_main() {
                        self.ending.main_stored(sys::monotonic_us());
                    }
                    self.streams.swap_remove(at);
                }
            }
            (Operation::Pack(pack), ToGuest::Credit(n)) => {
                pack.window().credit(*n).map_err(Failure::violation)?;
            }
            (Operation::Unpack(unpack), ToGuest::Data(bytes)) => {
                unpack.receive(bytes.len())?;
                match unpack.write(bytes) {
                    Ok(Some(credit)) => outlet.push(*id, &ToHost::Credit(credit)),
                    Ok(None) => {}
                    Err(failure) => {
                        outlet.fail(*id, &failure);
                        self.streams.swap_remove(at);
                    }
                }
            }
            (Operation::Unpack(unpack), ToGuest::Eof) => {
                if let Err(failure) = unpack.end() {
                    outlet.fail(*id, &failure);
                    self.streams.swap_remove(at);
                }
            }
            (Operation::Connection(connection), ToGuest::Data(bytes)) => {
                if let Some(credit) = connection.input().accept(bytes)? {
                    outlet.push(*id, &ToHost::Credit(credit));
                }
            }
            (Operation::Connection(connection), ToGuest::Eof) => connection.input().end()?,
            (Operation::Connection(connection), ToGuest::Credit(n)) => {
                connection.window().credit(*n).map_err(Failure::violation)?;
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

    /// Does what time and free windows allow, before the next wait.
    pub(crate) fn advance(&mut self, now: u64) {
        let is_held = self.is_held();
        if let Some(signal) = self.ending.due(now, is_held) {
            self.machine.signal_all(signal, &[]);
        }
        self.leaving.retain_mut(|leaving| leaving.advance(now));
        let (outlet, ending) = (&mut self.outlet, &mut self.ending);
        self.streams.retain_mut(|stream| {
            let id = stream.id;
            match &mut stream.operation {
                Operation::Command(command) => {
                    let is_told = command.settle(now, id, outlet);
                    if is_told && command.is_main() && !command.is_held() {
                        ending.main_ended(now);
                    }
                    true
                }
                Operation::Get(get) => !get.pump(id, outlet),
                Operation::Connection(connection) => {
                    let end = connection.end();
                    if end == Some(true) {
                        outlet.push(id, &ToHost::Done);
                    }
                    end.is_none()
                }
                Operation::Pack(pack) => !pack.pump(id, outlet),
                Operation::Unpack(unpack) => {
                    let is_over = unpack.pump();
                    if is_over {
                        outlet.push(id, &ToHost::Done);
                    }
                    !is_over
                }
                Operation::Put(_) => true,
            }
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
                    command.is_held()
                        || !command.told_at().is_some_and(|at| transmit.has_passed(at))
                }
                _ => true,
            });
        }
    }

    /// Whether [`Dialogue::advance`] could do more at once.
    pub(crate) fn is_busy(&self) -> bool {
        self.streams.iter().any(|stream| match &stream.operation {
            Operation::Get(get) => get.can_go_on(&self.outlet),
            Operation::Pack(pack) => pack.can_go_on(&self.outlet),
            Operation::Unpack(unpack) => unpack.is_ending(),
            Operation::Command(command) => command.can_go_on(&self.outlet),
            _ => false,
        })
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

    /// What to wait for; `watch` gets each stream's place, what it is, and its events. The
    /// places hold until a message is handled.
    pub(crate) fn watch(&self, mut watch: impl FnMut(usize, Slot, RawFd, i16)) {
        for (at, stream) in self.streams.iter().enumerate() {
            let add = |slot, fd, events| watch(at, slot, fd, events);
            match &stream.operation {
                Operation::Command(command) => command.watch(&self.outlet, add),
                Operation::Connection(connection) => connection.watch(&self.outlet, add),
                _ => {}
            }
        }
    }

    /// Takes what is ready at a place that [`Dialogue::watch`] gave.
    pub(crate) fn ready(&mut self, at: usize, slot: Slot) {
        let Some(stream) = self.streams.get_mut(at) else {
            return;
        };
        match &mut stream.operation {
            Operation::Command(command) => command.ready(slot, stream.id, &mut self.outlet),
            Operation::Connection(connection) => {
                if let Err(failure) = connection.ready(slot, stream.id, &mut self.outlet) {
                    self.outlet.fail(stream.id, &failure);
                    connection.fail();
                }
            }
            _ => {}
        }
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
