//! What a kept command wrote and its host has not stored.
//!
//! Output is read whether a host is there or not, up to a window, and forgotten only when a host
//! says that it is stored. So a host may vanish at any byte: the next one says how far its own
//! record goes, and hears everything from there on, in the order in which it was read.

use crate::failure::Failure;
use crate::outlet::{Flow, Outlet, Passed};
use aleph_guest_proto::{ToHost, WINDOW};
use alloc::collections::VecDeque;
use alloc::format;
use rustix::fd::OwnedFd;

/// Pieces of standard output and error in turn, at most: bytes one by one would cost their
/// order more memory than themselves.
const MAX_RUNS: usize = 4096;

/// A buffer of this many bytes is given back when it is empty.
const LARGE: usize = 16 * 1024;

/// Bytes of one flow that follow each other.
#[derive(Debug, Clone, Copy)]
struct Run {
    flow: Flow,
    length: usize,
}

/// The output of a kept command, from what is stored to what was read last.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: VecDeque<u8>,
    runs: VecDeque<Run>,
    /// Bytes of the command's output before the first one here.
    stored: u64,
    /// How many bytes of these this connection's host has been sent; none where it has not
    /// attached.
    sent: Option<usize>,
}

impl Backlog {
    /// Bytes of output that a host has stored.
    pub(crate) fn stored(&self) -> u64 {
        self.stored
    }

    /// Bytes of output that were read.
    pub(crate) fn written(&self) -> u64 {
        self.stored + self.bytes.len() as u64
    }

    /// How many bytes more may be read.
    pub(crate) fn room(&self) -> usize {
        if self.runs.len() >= MAX_RUNS {
            return 0;
        }
        usize::try_from(WINDOW).unwrap_or(0) - self.bytes.len()
    }

    /// Whether this connection's host hears of it.
    pub(crate) fn is_attached(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether this connection's host has been sent everything.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == Some(self.bytes.len())
    }

    /// A new command's: its host hears all from the beginning.
    pub(crate) fn attached() -> Self {
        Self {
            sent: Some(0),
            ..Self::default()
        }
    }

    /// The host is gone.
    pub(crate) fn detach(&mut self) {
        self.sent = None;
    }

    /// A host has so many bytes stored, and hears the rest.
    pub(crate) fn attach(&mut self, stored: u64) -> Result<(), Failure> {
        if self.sent.is_some() {
            return Err(Failure::violation("a kept command is attached twice"));
        }
        if stored < self.stored || stored > self.written() {
            let has = format!("{} to {}", self.stored, self.written());
            return Err(Failure::violation(format!(
                "output is stored up to {stored}, of which there is {has}"
            )));
        }
        self.forget(stored);
        self.sent = Some(0);
        Ok(())
    }

    /// The attached host has so many bytes stored by now. It may say so out of order.
    pub(crate) fn store(&mut self, total: u64) -> Result<(), Failure> {
        let sent = self.sent.map(|n| self.stored + n as u64);
        if sent.is_none_or(|sent| total > sent) {
            return Err(Failure::violation("output is stored that was never sent"));
        }
        self.forget(total.max(self.stored));
        Ok(())
    }

    /// Drops what is before this point, which is not beyond the end.
    fn forget(&mut self, point: u64) {
        let n = usize::try_from(point - self.stored).unwrap_or(0);
        self.stored = point;
        self.bytes.drain(..n);
        self.sent = self.sent.map(|sent| sent.saturating_sub(n));
        let mut rest = n;
        while rest > 0
            && let Some(run) = self.runs.front_mut()
        {
            let taken = rest.min(run.length);
            run.length -= taken;
            rest -= taken;
            if run.length == 0 {
                self.runs.pop_front();
            }
        }
        if self.bytes.is_empty() && self.bytes.capacity() > LARGE {
            self.bytes = VecDeque::new();
        }
    }

    /// Reads once from a source, as much as there is room for.
    pub(crate) fn read(&mut self, source: &OwnedFd, flow: Flow, outlet: &mut Outlet) -> Passed {
        let room = self.room();
        let (bytes, runs) = (&mut self.bytes, &mut self.runs);
        outlet.read(source, room, |chunk| {
            bytes.extend(chunk);
            match runs.back_mut() {
                Some(run) if run.flow == flow => run.length += chunk.len(),
                _ => runs.push_back(Run {
                    flow,
                    length: chunk.len(),
                }),
            }
        })
    }

    /// Queues what the host was not sent and the queue has room for.
    pub(crate) fn send(&mut self, stream: u32, outlet: &mut Outlet) {
        let Some(mut sent) = self.sent else { return };
        let mut begin = 0;
        for run in &self.runs {
            let end = begin + run.length;
            while sent < end && outlet.has_room() {
                let n = outlet.chunk_of(end - sent);
                // The ring may be cut in two there.
                let (head, tail) = self.bytes.as_slices();
                let bytes = match sent.checked_sub(head.len()) {
                    None => &head[sent..head.len().min(sent + n)],
                    Some(at) => &tail[at..at + n],
                };
                outlet.push(stream, &run.flow.message(bytes));
                sent += bytes.len();
            }
            begin = end;
        }
        self.sent = Some(sent);
    }
}

impl Flow {
    /// Bytes of this flow as a message.
    pub(crate) fn message(self, bytes: &[u8]) -> ToHost<'_> {
        match self {
            Self::Data => ToHost::Data(bytes),
            Self::Errors => ToHost::ErrorData(bytes),
        }
    }
}
