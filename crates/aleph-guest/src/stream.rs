//! Streams: the operations that the host began, by the numbers that it gave them.

use crate::archive::{Pack, Unpack};
use crate::command::Command;
use crate::connection::Connection;
use crate::get::Get;
use crate::put::Put;
use aleph_guest_proto::Kept;
use alloc::boxed::Box;

/// The most streams at once.
pub(crate) const MAX_STREAMS: usize = 256;

/// One operation of the host's.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The host's number for it.
    pub(crate) id: u32,
    /// What it is.
    pub(crate) operation: Operation,
}

/// What a stream is.
#[derive(Debug)]
pub(crate) enum Operation {
    /// A command that runs, or whose end is not told.
    Command(Command),
    /// A file that comes in.
    Put(Put),
    /// A file that goes out.
    Get(Get),
    /// An archive that goes out.
    Pack(Box<Pack>),
    /// An archive that comes in.
    Unpack(Box<Unpack>),
    /// A connection to a port of the guest's.
    Connection(Connection),
}

/// One of the descriptors that a command or connection waits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Its standard input takes bytes, or its socket does.
    Input,
    /// Its standard output, terminal, or socket has bytes.
    Output,
    /// Its standard error has bytes.
    Errors,
}

impl Stream {
    /// What a new host is told of it, where it outlives this one.
    pub(crate) fn kept(&self) -> Option<Kept> {
        match &self.operation {
            Operation::Command(command) => command.kept(),
            _ => None,
        }
    }

    /// Its command, where it is one.
    pub(crate) fn command(&mut self) -> Option<&mut Command> {
        match &mut self.operation {
            Operation::Command(command) => Some(command),
            _ => None,
        }
    }
}
