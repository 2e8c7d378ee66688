//! The streams of a conversation: what begins them, what comes on them, and what they do in one
//! turn of the loop.

use crate::archive::{Pack, Unpack};
use crate::channel::Channel;
use crate::command::Command;
use crate::connection::Connection;
use crate::dialogue::{Dialogue, Machine};
use crate::failure::Failure;
use crate::get::Get;
use crate::launch::launch;
use crate::listener::Listener;
use crate::put::Put;
use crate::stat::stat;
use crate::stream::{MAX_STREAMS, Operation, Slot, Stream};
use crate::sys;
use crate::usage::usage;
use aleph_guest_proto::{GUEST_STREAMS, ToGuest, ToHost};
use alloc::boxed::Box;
use alloc::format;
use rustix::fd::RawFd;
use rustix::io::Errno;

/// The most ports that are listened on.
const MAX_LISTENERS: usize = 16;

impl<M: Machine> Dialogue<M> {
    /// Begins an operation on a new stream.
    pub(crate) fn begin(&mut self, id: u32, message: &ToGuest<'_>) -> Result<(), Failure> {
        if self.poweroff_on_hangup.is_none() {
            return Err(Failure::violation("an operation before Setup"));
        }
        if id >= GUEST_STREAMS {
            return Err(Failure::violation(format!("stream {id} is the guest's")));
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
            ToGuest::Listen { port } => {
                if self.listeners.len() >= MAX_LISTENERS {
                    let why = format!("{MAX_LISTENERS} ports are listened on, which is the most");
                    return Err(Failure::because(why, Errno::MFILE));
                }
                self.listeners.push(Listener::begin(*port)?);
                outlet.push(id, &ToHost::Done);
                return Ok(None);
            }
            ToGuest::Mount(mount) => {
                self.machine.mount(mount)?;
                outlet.push(id, &ToHost::Done);
                return Ok(None);
            }
            ToGuest::Link(link) => {
                self.machine.link(link)?;
                outlet.push(id, &ToHost::Done);
                return Ok(None);
            }
            ToGuest::Freeze => {
                self.machine.freeze()?;
                outlet.push(id, &ToHost::Done);
                return Ok(None);
            }
            ToGuest::Settle => {
                self.machine.settle();
                outlet.push(id, &ToHost::Done);
                return Ok(None);
            }
            ToGuest::Resume(resume) => {
                self.machine.resume(resume)?;
                outlet.push(id, &ToHost::Done);
                return Ok(None);
            }
            _ => return Err(Failure::violation("no operation")),
        }))
    }

    /// Takes the connections that wait at a port.
    pub(crate) fn accept(&mut self, at: usize) {
        let Some(listener) = self.listeners.get(at) else {
            return;
        };
        while self.streams.len() < MAX_STREAMS {
            let Some(socket) = listener.accept() else {
                return;
            };
            let mut id = self.next_accepted;
            while self.streams.iter().any(|stream| stream.id == id) {
                id = id.checked_add(1).unwrap_or(GUEST_STREAMS);
            }
            self.next_accepted = id.checked_add(1).unwrap_or(GUEST_STREAMS);
            let mut connection = Connection::accepted(socket, listener.port());
            connection.announce(id, &mut self.outlet);
            let operation = Operation::Connection(connection);
            self.streams.push(Stream { id, operation });
        }
    }

    /// The ports to wait on, with their places. Connections wait while nobody could answer them.
    pub(crate) fn watch_listeners(&self, mut watch: impl FnMut(usize, RawFd)) {
        if self.outlet.has_room() && self.streams.len() < MAX_STREAMS {
            for (at, listener) in self.listeners.iter().enumerate() {
                watch(at, listener.fd());
            }
        }
    }

    /// Acts on a message for a stream that is there.
    pub(crate) fn go_on(&mut self, at: usize, message: &ToGuest<'_>) -> Result<(), Failure> {
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
                if let Some(credit) = connection.accept(bytes)? {
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

    /// Drops an operation that nobody wants any more.
    pub(crate) fn give_up(&mut self, stream: Stream, now: u64) {
        if let Operation::Command(command) = stream.operation {
            if command.is_main() && command.has_ended() {
                self.ending.main_abandoned();
            }
            self.leaving.push(command.leave(now));
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
