//! The socket of a link: each message is an Ethernet frame.
//!
//! Its kind is the hypervisor's choice ([`LinkEnds`](crate::hypervisor::LinkEnds)): one of a pair of
//! datagram sockets, or a packet socket.

use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// This host's end of a link.
#[derive(Debug)]
pub(super) struct Frames(AsyncFd<OwnedFd>);

impl Frames {
    /// That over a socket that does not block. This must be called within a tokio runtime.
    #[allow(unsafe_code)]
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: an owned descriptor stays open, and is closed by whoever drops it last: this.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self(socket?))
    }

    /// Reads a frame; what is longer than the buffer is cut.
    pub(super) fn try_recv(&self, frame: &mut [u8]) -> io::Result<usize> {
        let read = |socket: &OwnedFd| Ok(recv(socket, &mut *frame, RecvFlags::empty())?.0);
        match self.0.try_io(Interest::READABLE, read) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        // A packet socket whose link went down has nothing to read but that.
        let read = |socket: &OwnedFd| Ok(recv(socket, frame, RecvFlags::empty())?.0);
        self.0.try_io(Interest::ERROR, read)
    }

    pub(super) fn try_send(&self, frame: &[u8]) -> io::Result<usize> {
        self.0.try_io(Interest::WRITABLE, |socket| {
            Ok(send(socket, frame, SendFlags::NOSIGNAL)?)
        })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        let ready = self.0.ready(Interest::READABLE | Interest::ERROR).await;
        ready.map(|mut ready| ready.retain_ready())
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        let ready = self.0.ready(Interest::WRITABLE).await;
        ready.map(|mut ready| ready.retain_ready())
    }
}
