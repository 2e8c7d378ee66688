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
//!
//! A vsock device has a connection of its own for each host. They wait in the queue of a socket
//! that listens, and the next one is taken when the one before has ended: also where its other end
//! is gone with the machine that the guest was written down on.

use crate::sys::{self, Watch};
use core::time::Duration;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};

/// Bytes that one call takes from a virtio-serial port at most.
const PORT_WRITE: usize = 32 * 1024;

/// How long the last connection may take to bring its bytes to the host.
const LINGER: Duration = Duration::from_secs(2);

/// The channel, open for reading and writing without blocking.
#[derive(Debug)]
pub struct Channel {
    /// `None` between two connections of a listener.
    fd: Option<OwnedFd>,
    connections: Connections,
}

/// Where connections come from.
#[derive(Debug)]
enum Connections {
    /// All are on one descriptor. This one reports each change of it once: a hung-up descriptor is
    /// ready at all times, so waiting for it to connect needs something that tells changes from
    /// states.
    Port(OwnedFd),
    /// Each has a descriptor of its own, which this one accepts.
    Listener(OwnedFd),
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
        Ok(Self {
            fd: Some(fd),
            connections: Connections::Port(changes),
        })
    }

    /// The channel of which each connection comes to this socket, which listens and does not
    /// block. Of vsock connections only the host's are taken.
    #[must_use]
    pub fn listening(socket: OwnedFd) -> Self {
        Self {
            fd: None,
            connections: Connections::Listener(socket),
        }
    }

    /// The descriptor to wait on while connected.
    pub(crate) fn fd(&self) -> RawFd {
        // Waiting for a negative one is waiting for nothing.
        self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The descriptor that is readable when the channel has changed since
    /// [`Channel::connect`].
    pub(crate) fn changes(&self) -> RawFd {
        match &self.connections {
            Connections::Port(changes) => changes.as_raw_fd(),
            Connections::Listener(socket) => socket.as_raw_fd(),
        }
    }

    /// Whether the host is there, after taking up its connection where it waits to be. What waits
    /// to be read is left alone even where it is not: the first bytes of a connection can arrive
    /// before the news of it.
    pub(crate) fn connect(&mut self) -> bool {
        match &self.connections {
            Connections::Port(changes) => {
                forget(changes);
                self.is_open()
            }
            Connections::Listener(socket) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let accepted = rustix::net::accept_with(socket, flags).ok();
                self.fd = accepted.filter(sys::may_be_host);
                // One that is gone already makes way for the next.
                self.is_open() || self.hang_up()
            }
        }
    }

    /// The connection has ended; `false`, since nobody is connected then.
    pub(crate) fn hang_up(&mut self) -> bool {
        if matches!(self.connections, Connections::Listener(_)) {
            self.fd = None;
        }
        false
    }

    /// Ends the last connection, once its host has all that was written: where each has a socket of
    /// its own, the kernel may have that still.
    pub(crate) fn finish(&mut self) {
        if let (Connections::Listener(_), Some(fd)) = (&self.connections, self.fd.take()) {
            let _ = sockopt::set_socket_linger(&fd, Some(LINGER));
        }
    }

    /// Whether the host has not hung up, whatever waits to be read.
    pub(crate) fn is_open(&self) -> bool {
        let mut watch = [Watch::new(self.fd(), Watch::READ | Watch::NO_MORE)];
        sys::poll(&mut watch, Some(0));
        self.fd.is_some() && watch[0].seen() & (Watch::HANG_UP | Watch::NO_MORE | Watch::ERROR) == 0
    }

    pub(crate) fn read(&self, space: &mut [u8]) -> Received {
        let Some(fd) = &self.fd else {
            return Received::HungUp;
        };
        match rustix::io::read(fd, space) {
            Ok(0) => Received::HungUp,
            Ok(n) => Received::Bytes(n),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => Received::HungUp,
        }
    }

    /// Writes what it can of `bytes`; 0 where the channel is full or nobody is there.
    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        let Some(fd) = &self.fd else {
            return 0;
        };
        // A host that is gone shows in reading; writing need not tell a second time.
        rustix::io::write(fd, &bytes[..bytes.len().min(PORT_WRITE)]).unwrap_or(0)
    }
}

/// Takes note of what a descriptor has reported.
fn forget(changes: &OwnedFd) {
    let mut event = [epoll::Event {
        flags: EventFlags::empty(),
        data: EventData::new_u64(0),
    }];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let _ = epoll::wait(changes, &mut event[..], Some(&now));
}
