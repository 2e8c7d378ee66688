//! Transactions of nfnetlink, of any size.
//!
//! A transaction is one message to the kernel, however many elements it has, and the socket's
//! buffer has to hold all of it: 10,000 forwards are 1 MiB, five times what a socket takes by
//! default. That buffer cannot be reached through the bindings, so the socket is our own.

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
    sockopt,
};
use std::io;
use std::os::fd::OwnedFd;

/// A socket for transactions, in the network namespace of the thread that first used it.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    socket: Option<OwnedFd>,
    room: usize,
}

/// `nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// `NLM_F_ACK`: an answer is asked for.
const ACK: u16 = 4;
/// `NLMSG_ERROR`: an answer, with an error or 0.
const ERROR: u16 = 2;

impl Transactions {
    /// Sends a batch and waits for all answers that it asks for: all of it is done, or nothing.
    ///
    /// # Errors
    /// The first of the kernel's.
    pub(crate) fn send(&mut self, batch: &[u8]) -> io::Result<()> {
        // One that broke may still have answers to come, which would be taken for those of the
        // next.
        let done = self.try_send(batch);
        if done.is_err() {
            self.socket = None;
        }
        done
    }

    fn try_send(&mut self, batch: &[u8]) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => self.socket.insert(socket),
            None => {
                self.room = 0;
                let kind = (SocketType::RAW, SocketFlags::CLOEXEC);
                let made = socket_with(AddressFamily::NETLINK, kind.0, kind.1, Some(NETFILTER))?;
                self.socket.insert(made)
            }
        };
        if self.room < batch.len() {
            // As root; the limit of others is the host's.
            sockopt::set_socket_send_buffer_size_force(&*socket, batch.len() + 4096)?;
            self.room = batch.len();
        }
        let expected = messages(batch).filter(|m| m.flags & ACK != 0).count();
        let kernel = SocketAddrNetlink::new(0, 0);
        let sent = sendto(&*socket, batch, SendFlags::empty(), &kernel)?;
        if sent != batch.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut answered = 0;
        let mut buffer = vec![0; 64 * 1024];
        while answered < expected {
            let (n, _) = recv(&*socket, &mut buffer[..], RecvFlags::empty())?;
            for message in messages(&buffer[..n]) {
                if message.kind != ERROR {
                    continue;
                }
                match message.error() {
                    0 => answered += 1,
                    code => return Err(io::Error::from_raw_os_error(-code)),
                }
            }
        }
        Ok(())
    }
}

/// A message of the kernel's, or to it.
pub(crate) struct Message<'a> {
    /// The subsystem and the kind.
    pub(crate) kind: u16,
    flags: u16,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    fn error(&self) -> i32 {
        let code = self.payload.first_chunk();
        code.map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code))
    }
}

/// The messages of a buffer, each at a multiple of four bytes; it ends at one that is cut.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = rest.first_chunk()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).ok().filter(|n| *n >= HEADER)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
