//! Tells when rules of ours have gone from the kernel.
//!
//! `nft flush ruleset` by somebody else opens the host to guests, and guests to each other. The
//! kernel tells a group of nfnetlink of all that changes in its tables; what takes something away
//! from ours is looked for in the headers, and nothing more is read. A node's own changes are told
//! of too: those of elements are passed over, and those of tables only have it look once more.
//! Where so much was told that the kernel threw some away, that counts as a loss.

use crate::nft::NFTABLES;
use crate::transaction::messages;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with, sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What is told of the tables of one node, in the network namespace of the thread that made this.
/// It can be waited for until it is readable.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    table: Vec<u8>,
}

/// `NFNLGRP_NFTABLES` is 7.
const GROUP: u32 = 1 << 6;
/// `NFT_MSG_DELTABLE`, `DELCHAIN`, `DELRULE` and `DELSET`. Their first attribute is the table's
/// name.
const LOSSES: [u16; 4] = [2, 5, 8, 11];
const TABLE: u16 = 1;
/// `nfgenmsg`, and the header of an attribute.
const HEADERS: [usize; 2] = [4, 4];
/// Room for what is told between two looks.
const ROOM: usize = 1 << 20;

impl Watch {
    /// Begins to listen for what happens to the tables of this name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(table: &str) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(NETFILTER),
        )?;
        // Without the right to more, a loss is only looked for more often.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, ROOM);
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        Ok(Self {
            socket,
            table: table.as_bytes().to_vec(),
        })
    }

    /// Reads all that was told, and says whether some of our rules may have gone since the last
    /// time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lost(&self) -> io::Result<bool> {
        let mut buffer = vec![0; 64 * 1024];
        let mut lost = false;
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((n, _)) => {
                    lost |= messages(&buffer[..n]).any(|message| {
                        let loss = LOSSES.contains(&(message.kind ^ (NFTABLES << 8)));
                        loss && self.is_ours(message.payload)
                    });
                }
                Err(Errno::NOBUFS) => lost = true,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(lost),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_ours(&self, payload: &[u8]) -> bool {
        let [start, header] = HEADERS;
        let Some([l0, l1, t0, t1]) = payload.get(start..).and_then(<[u8]>::first_chunk) else {
            return true;
        };
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let name = payload.get(start + header..start + length);
        let is_table = u16::from_ne_bytes([*t0, *t1]) == TABLE;
        // What cannot be read may be anything.
        !is_table || name.is_none_or(|name| name.strip_suffix(&[0]).unwrap_or(name) == self.table)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
