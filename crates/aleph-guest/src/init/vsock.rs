//! Listening for the host on a vsock device, where the kernel's command line says so.

use crate::failure::{Context, Failure};
use crate::file::read_bounded;
use crate::sys;
use aleph_guest_proto::{VSOCK_ARGUMENT, VSOCK_PORT};
use alloc::format;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// How many hosts may wait for the one before them to go.
const BACKLOG: i32 = 4;

/// Whether the channel is a vsock connection.
pub(super) fn is_wanted() -> bool {
    let line = read_bounded(c"/proc/cmdline").unwrap_or_default();
    line.split(u8::is_ascii_whitespace)
        .any(|word| word == VSOCK_ARGUMENT.as_bytes())
}

/// Begins to listen. Whoever connects before this is refused by the kernel, and tries again.
pub(super) fn listen() -> Result<OwnedFd, Failure> {
    let listen = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
        sys::bind_vsock(&socket, VSOCK_PORT)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok::<_, Errno>(socket)
    };
    listen().context(|| format!("listening on vsock port {VSOCK_PORT}"))
}
