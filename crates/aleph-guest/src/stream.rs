//! Streams: the operations that the host began, by the numbers that it gave them, and connections
//! that programs in the guest began, by numbers of the guest's.

use crate::archive::{Pack, Unpack};
use crate::command::Command;
use crate::connection::Connection;
use crate::get::Get;
use crate::put::Put;
use aleph_guest_proto::Kept;
use alloc::boxed::Box;

/// The most streams at once.
pub(crate) const MAX_STREAMS: usize = 256;

/// One operation.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Its number.
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
    /// A connection to a port of the guest's, or from a program to one of the agent's.
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

    /// Whether the next host goes on with it.
    pub(crate) fn outlives_host(&self) -> bool {
        match &self.operation {
            Operation::Connection(connection) => connection.outlives_host(),
            _ => self.kept().is_some(),
        }
    }

    /// Its connection, where a program in the guest began it and the next host can go on with it.
    pub(crate) fn accepted(&mut self) -> Option<&mut Connection> {
        match &mut self.operation {
            Operation::Connection(connection) if connection.outlives_host() => Some(connection),
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
