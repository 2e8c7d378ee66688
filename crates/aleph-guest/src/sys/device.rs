//! Control calls on devices, filesystems and sockets.

use super::{arch::number, call, descriptor};
use alloc::vec::Vec;
use core::ptr;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;

/// Runs a control call.
///
/// # Safety
/// `argument` must be what `request` asks for.
unsafe fn control(fd: &OwnedFd, request: usize, argument: usize) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the argument.
    unsafe {
        call(
            number::IOCTL,
            [descriptor(fd.as_raw_fd()), request, argument],
        )
    }
    .map(drop)
}

/// Mixes bytes into the kernel's random pool and counts all of their bits.
///
/// # Errors
/// The kernel's: `PERM` for one that is not root.
pub fn add_entropy(random: &OwnedFd, bytes: &[u8]) -> Result<(), Errno> {
    const RNDADDENTROPY: usize = 0x4008_5203;
    let size = u32::try_from(bytes.len()).map_err(|_| Errno::INVAL)?;
    // struct rand_pool_info: bits, bytes, then the bytes themselves.
    let mut info = Vec::with_capacity(8 + bytes.len());
    info.extend_from_slice(&size.saturating_mul(8).to_ne_bytes());
    info.extend_from_slice(&size.to_ne_bytes());
    info.extend_from_slice(bytes);
    // SAFETY: the kernel reads the two numbers and as many bytes as the second one says; it
    // copies them, so alignment does not matter.
    unsafe { control(random, RNDADDENTROPY, info.as_ptr().addr()) }
}

/// Makes the kernel's generator take up what is in its pool now.
///
/// # Errors
/// The kernel's: `AGAIN` before the pool was ever filled.
pub fn reseed(random: &OwnedFd) -> Result<(), Errno> {
    const RNDRESEEDCRNG: usize = 0x5207;
    // SAFETY: it takes no argument.
    unsafe { control(random, RNDRESEEDCRNG, 0) }
}

/// Brings up the network interface of this name, through any socket.
///
/// # Errors
/// The kernel's: `NODEV` where there is no such interface.
pub fn bring_up(socket: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    const SIOCSIFFLAGS: usize = 0x8914;
    const UP_RUNNING: u16 = 0x41;
    // struct ifreq: a name of 16 bytes with its NUL, then the flags in a union of 24.
    let mut request = [0_u8; 40];
    let (place, flags) = request.split_at_mut(16);
    let name = name.get(..15).unwrap_or(name);
    place[..name.len()].copy_from_slice(name);
    flags[..2].copy_from_slice(&UP_RUNNING.to_ne_bytes());
    // SAFETY: the kernel reads a whole ifreq, which outlives the call.
    unsafe { control(socket, SIOCSIFFLAGS, ptr::from_ref(&request).addr()) }
}

/// Writes a filesystem out and keeps it as it is then: on disk it is as clean as an unmounted
/// one, whoever still has files open.
///
/// # Errors
/// The kernel's: `OPNOTSUPP` where the filesystem has no such state.
pub fn freeze(folder: &OwnedFd) -> Result<(), Errno> {
    const FIFREEZE: usize = 0xc004_5877;
    // SAFETY: it ignores its argument.
    unsafe { control(folder, FIFREEZE, 0) }
}
