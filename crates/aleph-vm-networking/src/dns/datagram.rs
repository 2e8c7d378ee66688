//! Datagrams with both their ends, on a socket that is bound to all addresses.
//!
//! An answer must leave from the address that was asked. The kernel tells that address, and takes
//! it, beside the datagram (`IP_PKTINFO`, ip(7)); no library of ours wraps it.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A datagram that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) from: SocketAddrV4,
    pub(super) to: Ipv4Addr,
    /// In bytes. What did not fit into the buffer makes it 0.
    pub(super) length: usize,
}

/// Room for one control message of `struct in_pktinfo`, aligned for its header.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// `AF_INET`, as an address has it.
const INET: libc::sa_family_t = 2;

/// Lets a socket tell where datagrams were sent to.
pub(super) fn tell_destination(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, and lives until the call returns.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            (&raw const on).cast(),
            room_of::<libc::c_int>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The next datagram, without waiting.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Arrival> {
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes are a value of both structs of C.
    let (mut from, mut header): (libc::sockaddr_in, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    header.msg_name = (&raw mut from).cast();
    header.msg_namelen = room_of::<libc::sockaddr_in>();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the header's pointers are to live values of the lengths beside them.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let Ok(length) = usize::try_from(got) else {
        return Err(io::Error::last_os_error());
    };
    let mut to = Ipv4Addr::UNSPECIFIED;
    // SAFETY: the kernel has filled in the header, whose control buffer is alive and aligned. It
    // ends within that buffer, and CMSG_NXTHDR does not leave it.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(found) = next.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
                let info: libc::in_pktinfo = libc::CMSG_DATA(next)
                    .cast::<libc::in_pktinfo>()
                    .read_unaligned();
                to = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    let is_whole = header.msg_flags & libc::MSG_TRUNC == 0;
    Ok(Arrival {
        from: SocketAddrV4::new(
            Ipv4Addr::from_bits(u32::from_be(from.sin_addr.s_addr)),
            u16::from_be(from.sin_port),
        ),
        to,
        length: if is_whole { length } else { 0 },
    })
}

/// Sends a datagram from one of the host's addresses, without waiting.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    from: Ipv4Addr,
    to: SocketAddrV4,
) -> io::Result<()> {
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes are a value of these structs of C.
    let (mut address, mut header, mut info): (libc::sockaddr_in, libc::msghdr, libc::in_pktinfo) =
        unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
    address.sin_family = INET;
    address.sin_addr.s_addr = to.ip().to_bits().to_be();
    address.sin_port = to.port().to_be();
    info.ipi_spec_dst.s_addr = from.to_bits().to_be();
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let room = room_of::<libc::in_pktinfo>();
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = room_of::<libc::sockaddr_in>();
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    // SAFETY: it only computes; a header and an in_pktinfo are 28 bytes of the buffer's 64, so
    // that CMSG_FIRSTHDR is not null and what is written is within the buffer.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(room) as _;
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::IPPROTO_IP;
        (*first).cmsg_type = libc::IP_PKTINFO;
        (*first).cmsg_len = libc::CMSG_LEN(room) as _;
        libc::CMSG_DATA(first)
            .cast::<libc::in_pktinfo>()
            .write_unaligned(info);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header's pointers are to live values of the lengths beside them; the bytes are
    // only read.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn room_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        tell_destination(server.as_fd()).unwrap();
        let asked = Ipv4Addr::new(127, 1, 2, 3);
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client
            .connect((asked, server.local_addr().unwrap().port()))
            .unwrap();
        let mut buffer = [0; 8];
        client.send(b"question").unwrap();
        let arrival = receive(server.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer, arrival.length), (b"question", 8));
        assert_eq!(arrival.to, asked);
        send(server.as_fd(), b"answer", arrival.to, arrival.from).unwrap();
        // It is connected: an answer from elsewhere would not arrive.
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);
        client.send(b"too long for it").unwrap();
        assert_eq!(receive(server.as_fd(), &mut buffer).unwrap().length, 0);
        let none = receive(server.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }
}
