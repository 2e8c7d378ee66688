//! A vsock device for a guest of QEMU's, whose other end is a Unix socket, as Firecracker has it.
//!
//! QEMU's `vhost-vsock-device` leaves the device to the host's kernel, by ioctls on
//! `/dev/vhost-vsock` (the kernel's `include/uapi/linux/vhost.h`). Hosts of tests lack that, and it
//! speaks vsock to hosts, not Firecracker's lines. So this library is loaded into QEMU
//! (`LD_PRELOAD`), answers those ioctls itself, and is the device, on a thread of QEMU's own
//! process. QEMU's other vsock device, `vhost-user-vsock-device`, would need no such thing, but a
//! guest that has it cannot be written down.
//!
//! `VSOCK_DEVICE=FD,LISTENER[,PATH]` names the descriptor whose ioctls these are, which may be open on
//! anything, the Unix socket that hosts connect to, and where hosts listen for the guest: at `PATH_52`
//! for port 52. QEMU is told the first with `vhostfd=`.
//!
//! ```text
//! host                           device                         guest
//!   connect, "CONNECT 1024\n" ───▶   REQUEST to port 1024 ──────▶
//!             "OK 1073741824\n" ◀─────────────────── RESPONSE ◀── somebody listens
//!                   closes ◀─────────────────────────── RST ◀──── nobody does
//! ```
//! A host that connects before the guest's driver runs, or while the guest stands still, waits in
//! the queue of the socket. A host whose `CONNECT` line does not come in one piece is sent away.
//! A guest that connects to the host is refused where nobody listens. Nothing here is timed.
//!
//! A guest is written down while it stands still; then nothing of it is written to. QEMU's log of
//! written pages is not served, so one that runs is not to be migrated.

#![deny(missing_docs, clippy::undocumented_unsafe_blocks)]

mod connection;
mod muxer;
mod packet;
mod rings;
mod vhost;

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::os::fd::RawFd;
use std::sync::OnceLock;

/// What `VSOCK_DEVICE` says.
struct Ends {
    device: RawFd,
    listener: RawFd,
    listeners: Option<String>,
}

fn ends() -> Option<&'static Ends> {
    static ENDS: OnceLock<Option<Ends>> = OnceLock::new();
    let read = || {
        let text = std::env::var("VSOCK_DEVICE").ok()?;
        let mut words = text.splitn(3, ',');
        Some(Ends {
            device: words.next()?.parse().ok()?,
            listener: words.next()?.parse().ok()?,
            listeners: words.next().map(str::to_owned),
        })
    };
    ENDS.get_or_init(read).as_ref()
}

/// Answers the requests of vhost on its descriptor, and hands all others to the kernel.
///
/// # Safety
/// As ioctl(2): `argument` must be what the request asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel takes 32 bits of a request, and some callers sign-extend theirs.
    let number = request as u32;
    match ends() {
        Some(ends) if fd == ends.device && vhost::is_request(number) => {
            // SAFETY: the caller vouches for the argument.
            match unsafe { vhost::answer(ends, number, argument) } {
                Ok(()) => 0,
                Err(errno) => {
                    // SAFETY: errno is the thread's own.
                    unsafe { *libc::__errno_location() = errno };
                    -1
                }
            }
        }
        _ => {
            // SAFETY: the caller vouches for all three; the call sets errno as ioctl does.
            let result: c_long = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) };
            result as c_int
        }
    }
}
