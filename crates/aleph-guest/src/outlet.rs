//! What commands and files say on its way into the transmit queue.

use crate::failure::Failure;
use crate::transmit::Transmit;
use aleph_guest_proto::{OVERHEAD, SendWindow, ToHost};
use alloc::vec;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// Bytes of data in a frame at most: with what is around it, what one call writes to a port.
const CHUNK: usize = 32 * 1024 - OVERHEAD;

/// The transmit queue, and a buffer to read into it with.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// The queue.
    pub(crate) transmit: Transmit,
    is_open: bool,
    chunk: Vec<u8>,
}

/// What a source's bytes are to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Standard output, a terminal, or a file.
    Data,
    /// Standard error.
    Errors,
}

/// What reading a source gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    /// So many bytes were queued.
    Bytes(usize),
    /// It has nothing for now, or nothing may be queued.
    Nothing,
    /// Nothing more will come.
    End,
    /// Reading failed.
    Failed(Errno),
}

impl Outlet {
    pub(crate) fn new() -> Self {
        Self {
            transmit: Transmit::default(),
            is_open: false,
            chunk: vec![0; CHUNK],
        }
    }

    /// Opens it to streams once a host has said hello, and closes it when that host is gone.
    /// While nobody listens, commands wait with what they have to say.
    pub(crate) fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
    }

    /// Whether a host listens to streams.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Queues a message.
    pub(crate) fn push(&mut self, stream: u32, message: &ToHost<'_>) {
        self.transmit.push(stream, message);
    }

    /// Queues the failure of a stream's operation.
    pub(crate) fn fail(&mut self, stream: u32, failure: &Failure) {
        let (errno, message) = (failure.errno, failure.bytes());
        self.transmit
            .push(stream, &ToHost::Failed { errno, message });
    }

    /// Whether a stream with this window may queue data.
    pub(crate) fn takes(&self, window: SendWindow) -> bool {
        self.is_open && window.available() > 0 && self.transmit.has_room()
    }

    /// Whether anything but answers may be queued.
    pub(crate) fn has_room(&self) -> bool {
        self.is_open && self.transmit.has_room()
    }

    /// How much of so many bytes goes into one frame.
    pub(crate) fn chunk_of(&self, n: usize) -> usize {
        n.min(CHUNK)
    }

    /// Reads once from a source, at most so many bytes, and hands them on.
    pub(crate) fn read(
        &mut self,
        source: &OwnedFd,
        room: usize,
        hand_on: impl FnOnce(&[u8]),
    ) -> Passed {
        let n = CHUNK.min(room);
        if n == 0 {
            return Passed::Nothing;
        }
        match rustix::io::read(source, &mut self.chunk[..n]) {
            Ok(0) => Passed::End,
            Ok(n) => {
                hand_on(&self.chunk[..n]);
                Passed::Bytes(n)
            }
            Err(Errno::AGAIN | Errno::INTR) => Passed::Nothing,
            Err(errno) => Passed::Failed(errno),
        }
    }

    /// Reads once from a source, as much as window and queue allow, and at most `limit` bytes,
    /// and queues what came.
    pub(crate) fn pass(
        &mut self,
        stream: u32,
        source: &OwnedFd,
        window: &mut SendWindow,
        (flow, limit): (Flow, usize),
    ) -> Passed {
        self.pass_seen(source, window, (stream, flow, limit), |_| {})
    }

    /// The same, with a look at what came.
    pub(crate) fn pass_seen(
        &mut self,
        source: &OwnedFd,
        window: &mut SendWindow,
        (stream, flow, limit): (u32, Flow, usize),
        seen: impl FnOnce(&[u8]),
    ) -> Passed {
        if !self.takes(*window) {
            return Passed::Nothing;
        }
        let n = CHUNK.min(window.available()).min(limit);
        match rustix::io::read(source, &mut self.chunk[..n]) {
            Ok(0) => Passed::End,
            Ok(n) if window.take(n).is_ok() => {
                seen(&self.chunk[..n]);
                self.transmit.push(stream, &flow.message(&self.chunk[..n]));
                Passed::Bytes(n)
            }
            // A read is never larger than the window it was cut to.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Passed::Nothing,
            Err(errno) => Passed::Failed(errno),
        }
    }
}
