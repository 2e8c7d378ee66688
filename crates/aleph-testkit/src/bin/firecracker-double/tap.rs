//! TAP interfaces by name.

use rustix::ioctl::{Opcode, Updater, ioctl};
use std::fs::File;
use std::io;

const TUNSETIFF: Opcode = 0x4004_54ca;
/// `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

/// The kernel's `struct ifreq`: a name, and flags at the head of a union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Opens the guest's end of one.
///
/// # Errors
/// The kernel's: there is no such device, or it is another's.
#[allow(unsafe_code)]
pub(crate) fn open(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; 16],
        flags: FLAGS,
        rest: [0; 22],
    };
    if name.is_empty() || name.len() >= request.name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq` of this size.
    unsafe { ioctl(&file, Updater::<TUNSETIFF, Request>::new(&mut request)) }?;
    Ok(file)
}
