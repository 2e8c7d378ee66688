//! System calls that the agent makes without a library: what rustix lacks, or what it would
//! do with more code than the agent wants to carry.
//!
//! Everything here is safe to call except what says otherwise; this module, the allocator and
//! the memory functions are the only places with unsafe code.
#![allow(unsafe_code)]

mod device;
mod page;
mod process;
mod signal;
mod vsock;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
use x86_64 as arch;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the guest agent has startup and system calls for x86_64 alone");

pub use device::{add_entropy, bring_up, freeze, reseed};
pub use page::Page;
pub use process::{Outcome, Plan, Stage, Strings, spawn};
pub use signal::{
    SIGCONT, SIGHUP, SIGKILL, SIGTERM, block_signals, drain_signals, kill, watch_children,
};

pub use vsock::{bind_vsock, may_be_host};

use arch::number;
use core::ptr;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// Enters the kernel and tells its errors from its results.
///
/// # Safety
/// As for the call itself: `arguments` must be what it asks for.
unsafe fn call<const N: usize>(number: usize, arguments: [usize; N]) -> Result<usize, Errno> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: the caller vouches for the arguments.
    let result = unsafe { arch::syscall(number, all) };
    usize::try_from(result).map_err(|_| error(result))
}

/// The error that a negative result stands for.
fn error(result: isize) -> Errno {
    Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(0))
}

/// A file descriptor as an argument.
fn descriptor(fd: i32) -> usize {
    // Negative ones are not handed in, and sign extension is what the kernel expects of them.
    #[allow(clippy::cast_sign_loss, reason = "sign extension is meant")]
    {
        fd as isize as usize
    }
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// The kernel's monotonic clock in microseconds: about the time since it began.
#[must_use]
pub fn monotonic_us() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    clock_us(CLOCK_MONOTONIC)
}

/// The same with the time that the machine was suspended.
#[must_use]
pub fn boot_us() -> u64 {
    const CLOCK_BOOTTIME: usize = 7;
    clock_us(CLOCK_BOOTTIME)
}

fn clock_us(clock: usize) -> u64 {
    let mut time = Timespec {
        seconds: 0,
        nanoseconds: 0,
    };
    // SAFETY: the kernel fills a timespec, which outlives the call. The clocks are always there,
    // so there is no error to see.
    let _ = unsafe {
        call(
            number::CLOCK_GETTIME,
            [clock, ptr::from_mut(&mut time).addr()],
        )
    };
    time.seconds.unsigned_abs() * 1_000_000 + time.nanoseconds.unsigned_abs() / 1000
}

/// A descriptor to wait for: the kernel's `pollfd`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    fd: i32,
    events: i16,
    seen: i16,
}

impl Watch {
    /// There is something to read.
    pub const READ: i16 = 0x1;
    /// There is room to write.
    pub const WRITE: i16 = 0x4;
    /// It is broken; reported without asking.
    pub const ERROR: i16 = 0x8;
    /// The other side hung up; reported without asking.
    pub const HANG_UP: i16 = 0x10;
    /// The other side of a socket sends no more, whatever waits to be read.
    pub const NO_MORE: i16 = 0x2000;

    /// Waits for these events on `fd`, which must stay open until then.
    #[must_use]
    pub fn new(fd: i32, events: i16) -> Self {
        Self {
            fd,
            events,
            seen: 0,
        }
    }

    /// What was seen.
    #[must_use]
    pub fn seen(&self) -> i16 {
        self.seen
    }
}

/// Waits for the first event, or for so many microseconds, or (with `None`) without limit.
/// An interruption looks like a wait in which nothing happened.
pub fn poll(watches: &mut [Watch], timeout_us: Option<u64>) {
    let time = timeout_us.map(|us| Timespec {
        seconds: i64::try_from(us / 1_000_000).unwrap_or(i64::MAX),
        nanoseconds: i64::try_from(us % 1_000_000 * 1000).unwrap_or(0),
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the array and the time outlive the call, and the count is the array's. A closed
    // descriptor is reported in its entry, never acted on.
    let result = unsafe {
        call(
            number::PPOLL,
            [
                watches.as_mut_ptr().addr(),
                watches.len(),
                time.addr(),
                0,
                8,
            ],
        )
    };
    if result.is_err() {
        for watch in watches {
            watch.seen = 0;
        }
    }
}

/// Sleeps for so many microseconds.
pub fn sleep_us(us: u64) {
    poll(&mut [], Some(us));
}

/// Standard error.
pub(crate) fn stderr() -> BorrowedFd<'static> {
    // SAFETY: descriptor 2 is open in every process that starts right, PID 1 opens it before
    // anything else, and nobody closes it.
    unsafe { BorrowedFd::borrow_raw(2) }
}

/// Ends the process.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: it takes a number and does not come back.
        let _ = unsafe { call(number::EXIT_GROUP, [usize::from(code)]) };
    }
}

/// Maps so many bytes of fresh, zeroed memory; null where there is none.
pub(crate) fn map(length: usize) -> *mut u8 {
    const READ_WRITE: usize = 0x3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    let nowhere = usize::MAX;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let result = unsafe {
        call(
            number::MMAP,
            [0, length, READ_WRITE, PRIVATE_ANONYMOUS, nowhere, 0],
        )
    };
    result.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
}

/// Gives a mapping back.
///
/// # Safety
/// It must be a whole mapping of this length, and nothing may use it any more.
pub(crate) unsafe fn unmap(start: *mut u8, length: usize) {
    // SAFETY: the caller vouches for the mapping. Unmapping a whole mapping cannot fail.
    let _ = unsafe { call(number::MUNMAP, [start.expose_provenance(), length]) };
}

/// Changes a mapping's length, moving it where needed; null where there is no memory, and the
/// old mapping stands.
///
/// # Safety
/// It must come from [`map`] with the old length, and what pointed into it is void afterwards.
pub(crate) unsafe fn remap(start: *mut u8, old: usize, new: usize) -> *mut u8 {
    const MAY_MOVE: usize = 1;
    // SAFETY: the caller vouches for the mapping.
    let result = unsafe {
        call(
            number::MREMAP,
            [start.expose_provenance(), old, new, MAY_MOVE],
        )
    };
    result.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
}
