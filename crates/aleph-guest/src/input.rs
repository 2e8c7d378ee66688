//! The standard input of a command.

use crate::failure::Failure;
use aleph_guest_proto::ReceiveWindow;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

/// What a terminal takes for the end of input (VEOF as every terminal starts with).
const END_OF_INPUT: u8 = 0x04;

/// What input goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A pipe, which ends by being closed.
    Pipe,
    /// A terminal, which ends by a character.
    Terminal,
    /// A socket, of which one direction ends.
    Socket,
}

/// Bytes from the host that wait for a command to read them: at most a window.
#[derive(Debug)]
pub(crate) struct Input {
    /// Where they go; `None` once nobody reads them.
    target: Option<Rc<OwnedFd>>,
    kind: Target,
    queue: VecDeque<u8>,
    window: ReceiveWindow,
    /// Whether the host said that no more comes.
    ended: bool,
    /// Whether the last byte from the host did not end a line.
    mid_line: bool,
}

impl Input {
    /// Input that goes to this descriptor, which does not block, or to nobody.
    pub(crate) fn new(target: Option<Rc<OwnedFd>>, kind: Target) -> Self {
        Self {
            target,
            kind,
            queue: VecDeque::new(),
            window: ReceiveWindow::default(),
            ended: false,
            mid_line: false,
        }
    }

    /// Whether the host may still send something that somebody reads.
    pub(crate) fn is_open(&self) -> bool {
        !self.ended && self.target.is_some()
    }

    /// Whether the host has ended it, and all of it was passed on or has no reader.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.target.is_none()
    }

    /// What to wait on before [`Input::pump`], while bytes wait.
    pub(crate) fn blocked_on(&self) -> Option<RawFd> {
        let target = self.target.as_ref()?;
        (!self.queue.is_empty()).then(|| target.as_raw_fd())
    }

    /// Takes bytes from the host, and gives the credit to return. What nobody reads counts as
    /// passed on.
    pub(crate) fn accept(&mut self, bytes: &[u8]) -> Result<Option<u32>, Failure> {
        if self.ended {
            return Err(Failure::violation(
                "data after the end of a command's input",
            ));
        }
        self.window
            .received(bytes.len())
            .map_err(Failure::violation)?;
        if let Some(last) = bytes.last() {
            self.mid_line = *last != b'\n';
        }
        let direct = if self.queue.is_empty() {
            self.write(bytes)
        } else {
            0
        };
        if self.target.is_none() {
            return Ok(self.window.passed_on(bytes.len()));
        }
        self.queue.extend(&bytes[direct..]);
        Ok(self.window.passed_on(direct))
    }

    /// The host says that no more comes.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        if self.ended {
            return Err(Failure::violation("a second end of a command's input"));
        }
        self.ended = true;
        if self.kind == Target::Terminal && self.target.is_some() {
            // Within a line the first one only hands over what the line has so far.
            let count = if self.mid_line { 2 } else { 1 };
            self.queue.extend([END_OF_INPUT; 2].iter().take(count));
            // These bytes are not the host's: they earn it no credit.
            let _ = self.pump();
        }
        self.close_when_drained();
        Ok(())
    }

    /// Writes what the command takes of the queue, and gives the credit to return.
    pub(crate) fn pump(&mut self) -> Option<u32> {
        let mut passed = 0;
        while !self.queue.is_empty() {
            let queue = core::mem::take(&mut self.queue);
            let n = self.write(queue.as_slices().0);
            self.queue = queue;
            if self.target.is_none() {
                passed += self.queue.len();
                self.queue.clear();
            } else if n == 0 {
                break;
            } else {
                passed += n;
                self.queue.drain(..n);
            }
        }
        self.close_when_drained();
        self.window.passed_on(passed)
    }

    /// The command ended: what waits is discarded, and what still comes will be.
    pub(crate) fn close(&mut self) {
        self.target = None;
        self.queue = VecDeque::new();
    }

    /// The host hung up. Whether what was under way arrives can not be known, so an input that
    /// was not ended goes on with what the next connection sends.
    pub(crate) fn hang_up(&mut self) {
        if !self.ended {
            self.queue.clear();
            self.window = ReceiveWindow::default();
        }
    }

    /// Writes once; on an error nobody will ever read, and the target is dropped.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(target) = self.target.as_deref() else {
            return 0;
        };
        match rustix::io::write(target, bytes) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.target = None;
                0
            }
        }
    }

    fn close_when_drained(&mut self) {
        if self.ended && self.queue.is_empty() {
            if let (Target::Socket, Some(socket)) = (self.kind, &self.target) {
                // One that the other side has closed already has nothing left to end.
                let _ = rustix::net::shutdown(&**socket, rustix::net::Shutdown::Write);
            }
            self.target = None;
        }
    }
}
