//! The byte channel to the host.
//!
//! A virtio-serial port has one connection after another on one descriptor. While the host is
//! away it polls as hung up, reads give 0 once what was sent before is read, and writes would
//! block; so a hang-up here is an event, not the end. A socket behaves the same but for its
//! connection, which never comes back.
//!
//! A host that leaves and returns before the agent looks goes unseen, and may have left within a
//! frame. So nothing depends on seeing it: each connection begins with a mark that the decoder
//! finds in any place ([`aleph_guest_proto::mark`]). What is seen is used for what cannot wait
//! for the next host, such as ending what the last one began.

use crate::sys::{self, Watch};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

/// Bytes that one call takes from a virtio-serial port at most.
const PORT_WRITE: usize = 32 * 1024;

/// The channel, open for reading and writing without blocking.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    /// Reports each change of the channel once. A hung-up descriptor is ready at all times, so
    /// waiting for it to connect needs something that tells changes from states.
    changes: OwnedFd,
}

/// What reading gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The host hung up, and what it sent before is read.
    HungUp,
}

impl Channel {
    /// The channel on this descriptor, which does not block.
    ///
    /// # Errors
    /// The kernel's, where it cannot watch the descriptor.
    pub fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let changes = epoll::create(CreateFlags::CLOEXEC)?;
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&changes, &fd, EventData::new_u64(0), events)?;
        Ok(Self { fd, changes })
    }

    /// The descriptor to wait on while connected.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The descriptor that is readable when the channel has changed since
    /// [`Channel::is_connected`].
    pub(crate) fn changes(&self) -> RawFd {
        self.changes.as_raw_fd()
    }

    /// Whether the host is there. What waits to be read is left alone even where it is not: the
    /// first bytes of a connection can arrive before the news of it.
    pub(crate) fn is_connected(&self) -> bool {
        let mut event = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }];
        let now = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let _ = epoll::wait(&self.changes, &mut event[..], Some(&now));
        self.is_open()
    }

    /// Whether the host has not hung up, whatever waits to be read.
    pub(crate) fn is_open(&self) -> bool {
        let mut watch = [Watch::new(self.fd(), Watch::READ)];
        sys::poll(&mut watch, Some(0));
        watch[0].seen() & Watch::HANG_UP == 0
    }

    pub(crate) fn read(&self, space: &mut [u8]) -> Received {
        match rustix::io::read(&self.fd, space) {
            Ok(0) => Received::HungUp,
            Ok(n) => Received::Bytes(n),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::HungUp,
        }
    }

    /// Writes what it can of `bytes`; 0 where the channel is full or nobody is there.
    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        // A host that is gone shows in reading; writing need not tell a second time.
        rustix::io::write(&self.fd, &bytes[..bytes.len().min(PORT_WRITE)]).unwrap_or(0)
    }
}
