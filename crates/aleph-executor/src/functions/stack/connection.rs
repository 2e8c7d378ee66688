//! What is known of a connection beside its socket.

use super::kept::MAX_UNANSWERED;
use super::wire::Offer;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, State};

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has begun to open it.
    Opening,
    /// It is open, and nobody has accepted it.
    Waiting,
    /// Somebody here has its stream.
    Taken,
    /// Nobody has any more.
    Left,
}

/// A connection that the guest opens, opened, or has closed.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) handle: SocketHandle,
    /// The guest's.
    pub(super) port: u16,
    pub(super) phase: Phase,
    /// How many bytes were read of it, and were written to it: sequence numbers.
    pub(super) read: u32,
    pub(super) written: u32,
    /// What was read since something was written last. `None` where that is too much.
    pub(super) unanswered: Option<Vec<u8>>,
}

impl Connection {
    /// Counts what was read.
    pub(super) fn has_read(&mut self, bytes: &[u8]) {
        self.read = self.read.wrapping_add(length(bytes));
        self.unanswered = self
            .unanswered
            .take()
            .filter(|unanswered| unanswered.len() + bytes.len() <= MAX_UNANSWERED);
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.extend_from_slice(bytes);
        }
    }

    /// Counts what was written.
    pub(super) fn has_written(&mut self, bytes: &[u8]) {
        self.written = self.written.wrapping_add(length(bytes));
        self.unanswered = Some(Vec::new());
    }
}

/// A length as sequence numbers count it. Buffers are far smaller than that.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// What passed by of a connection, in numbers of the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) offer: Offer,
    /// The guest's first sequence number: that of its SYN.
    pub(super) guest_first: u32,
    /// Ours.
    pub(super) host_first: u32,
    /// What our numbers on the wire are ahead of smoltcp's.
    pub(super) ahead: u32,
    /// What we acknowledged last.
    pub(super) acknowledged: u32,
    /// The guest's last window, as it was written: not scaled.
    pub(super) window: u16,
}

impl Flow {
    pub(super) fn new(offer: Offer, guest_first: u32) -> Self {
        Self {
            offer,
            guest_first,
            host_first: 0,
            ahead: 0,
            acknowledged: guest_first,
            window: 0,
        }
    }
}

/// Discards what comes for a connection that nobody reads any more. Where the guest goes on
/// although it has had everything, the connection is broken off.
pub(super) fn discard(socket: &mut tcp::Socket<'_>) {
    let mut some = false;
    while socket.can_recv() {
        let discarded = socket.recv(|bytes| (bytes.len(), bytes.len()));
        if !discarded.is_ok_and(|length| length > 0) {
            break;
        }
        some = true;
    }
    if some && socket.state() == State::FinWait2 {
        socket.abort();
    }
}
