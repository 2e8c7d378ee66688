//! Frames on their way to the host.

use crate::channel::Channel;
use aleph_guest_proto::ToHost;
use alloc::vec::Vec;

/// Data is added only while fewer bytes than this wait; what answers the host may exceed it.
const ROOM: usize = 128 * 1024;

/// The host is not listened to while more bytes than this wait, so that a host that asks and
/// never reads cannot make the queue grow.
const LIMIT: usize = 512 * 1024;

/// A queue of frames, written as the channel takes them.
#[derive(Debug, Default)]
pub(crate) struct Transmit {
    buffer: Vec<u8>,
    sent: usize,
    /// Bytes that went out before what the buffer begins with.
    passed: u64,
}

impl Transmit {
    /// Queues a message.
    pub(crate) fn push(&mut self, stream: u32, message: &ToHost<'_>) {
        // A frame that is too large is the only error, and whoever makes one bounds its size.
        let _ = message.encode(stream, &mut self.buffer);
    }

    /// Queues the bytes that a connection begins with.
    pub(crate) fn push_mark(&mut self, mark: &[u8]) {
        self.buffer.extend_from_slice(mark);
    }

    /// Whether data may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting() < ROOM
    }

    /// Whether the host has to read before it may ask for more.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.waiting() > LIMIT
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    fn waiting(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Where in all that was ever queued the next frame begins.
    pub(crate) fn end(&self) -> u64 {
        self.passed + self.buffer.len() as u64
    }

    /// Whether everything before a point in the queue went out.
    pub(crate) fn has_passed(&self, point: u64) -> bool {
        self.passed + self.sent as u64 >= point
    }

    /// Writes what the channel takes.
    pub(crate) fn flush(&mut self, channel: &Channel) {
        while self.sent < self.buffer.len() {
            let n = channel.write(&self.buffer[self.sent..]);
            if n == 0 {
                break;
            }
            self.sent += n;
        }
        if self.sent == self.buffer.len() {
            self.forget();
        } else if self.sent >= ROOM {
            self.passed += self.sent as u64;
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Drops what was not sent: it was for a host that is gone.
    pub(crate) fn clear(&mut self) {
        self.buffer.truncate(self.sent);
        self.forget();
    }

    fn forget(&mut self) {
        self.passed += self.buffer.len() as u64;
        self.buffer.clear();
        self.sent = 0;
    }
}
