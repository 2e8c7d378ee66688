//! Signals: blocked in the agent, which reads of ended children from a descriptor.

use super::{arch::number, call, descriptor};
use core::ptr;
use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

/// Tells a process that its terminal is gone.
pub const SIGHUP: u8 = 1;
/// Asks a process to end.
pub const SIGTERM: u8 = 15;
/// Ends a process.
pub const SIGKILL: u8 = 9;
/// Wakes a stopped process, so that it can see the signal that ends it.
pub const SIGCONT: u8 = 18;

pub(super) const SIGPIPE: usize = 13;
const SIGCHLD: u32 = 17;
const SIGNAL_SET: usize = size_of::<u64>();

/// Blocks every signal, for good: the agent handles none, and a write to a closed pipe is an
/// error to it rather than its end.
pub fn block_signals() {
    set_mask(u64::MAX);
}

/// Sets which signals are blocked.
pub(super) fn set_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the kernel reads a set of the size that is told.
    let _ = unsafe {
        call(
            number::RT_SIGPROCMASK,
            [SIG_SETMASK, ptr::from_ref(&mask).addr(), 0, SIGNAL_SET],
        )
    };
}

/// A descriptor that can be read when a child has ended.
///
/// # Errors
/// The kernel's, where it has no descriptors left.
pub fn watch_children() -> Result<OwnedFd, Errno> {
    const NONBLOCK_CLOEXEC: usize = 0o2_004_000;
    let set = 1_u64 << (SIGCHLD - 1);
    // SAFETY: the kernel reads a set of the size that is told, and makes a new descriptor.
    let fd = unsafe {
        call(
            number::SIGNALFD4,
            [
                usize::MAX,
                ptr::from_ref(&set).addr(),
                SIGNAL_SET,
                NONBLOCK_CLOEXEC,
            ],
        )
    }?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes what [`watch_children`] reported off its descriptor.
pub fn drain_signals(fd: &OwnedFd) {
    let mut record = [0_u8; 128];
    // Signals of one number do not queue, so one record is all there can be.
    let _ = rustix::io::read(fd.as_fd(), &mut record);
}

/// Sends a signal to a process (positive), a group (negative), or all that there are (-1).
///
/// # Errors
/// `SRCH` where nobody is there, `INVAL` where there is no such signal.
pub fn kill(whom: i32, signal: u8) -> Result<(), Errno> {
    // SAFETY: it takes numbers alone.
    unsafe { call(number::KILL, [descriptor(whom), usize::from(signal)]) }.map(drop)
}
