//! A TCP port of the guest's own loopback address, whose connections the host answers.

use crate::failure::{Context, Failure};
use alloc::format;
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::net::{AddressFamily, Ipv4Addr, SocketAddrV4, SocketFlags, SocketType, sockopt};

/// How many connections may wait to be taken.
const BACKLOG: i32 = 128;

/// A port that is listened on for as long as the guest lives.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    port: u16,
}

impl Listener {
    /// Begins to listen.
    pub(crate) fn begin(port: u16) -> Result<Self, Failure> {
        let listen = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let socket = listen().context(|| format!("listening on port {port}"))?;
        Ok(Self { socket, port })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The next connection, where one waits. One that was broken off meanwhile is none.
    pub(crate) fn accept(&self) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::accept_with(&self.socket, flags).ok()?;
        // What goes through it are short questions and answers.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        Some(socket)
    }
}
