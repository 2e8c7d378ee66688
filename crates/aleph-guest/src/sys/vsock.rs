//! Addresses of vsock sockets.

use super::{arch::number, call, descriptor};
use core::ptr;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::AddressFamily;

/// The kernel's `sockaddr_vm`.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: [u8; 4],
}

const SIZE: u32 = 16;
const _: () = assert!(size_of::<Address>() == 16);

/// Binds a vsock socket to a port, of whatever CID the guest has: after a restore it may be another.
///
/// # Errors
/// The kernel's: `ADDRINUSE`, `NODEV` where there is no device.
pub fn bind_vsock(socket: &OwnedFd, port: u32) -> Result<(), Errno> {
    const ANY: u32 = u32::MAX;
    let address = Address {
        family: AddressFamily::VSOCK.as_raw(),
        reserved: 0,
        port,
        cid: ANY,
        rest: [0; 4],
    };
    let address = ptr::from_ref(&address).addr();
    // SAFETY: the kernel reads the address, which outlives the call, and no more of it than its size.
    unsafe {
        call(
            number::BIND,
            [descriptor(socket.as_raw_fd()), address, SIZE as usize],
        )
    }
    .map(drop)
}

/// Whether the host may be at the other end of a connection: on vsock only it has this CID. Programs
/// in the guest, which may not be root, could reach the port by the loopback of vsock.
#[must_use]
pub fn may_be_host(socket: &OwnedFd) -> bool {
    const HOST: u32 = 2;
    let mut address = Address {
        family: 0,
        reserved: 0,
        port: 0,
        cid: 0,
        rest: [0; 4],
    };
    let mut size = SIZE;
    let (to, length) = (
        ptr::from_mut(&mut address).addr(),
        ptr::from_mut(&mut size).addr(),
    );
    // SAFETY: the kernel writes at most so many bytes as the size says, and then the size. Both
    // outlive the call.
    let got = unsafe {
        call(
            number::GETPEERNAME,
            [descriptor(socket.as_raw_fd()), to, length],
        )
    };
    let is_vsock = address.family == AddressFamily::VSOCK.as_raw();
    got.is_ok() && (!is_vsock || address.cid == HOST)
}
