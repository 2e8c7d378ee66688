//! A userfaultfd: the kernel's way to let another process fill memory as it is touched
//! (`userfaultfd(2)`, `ioctl_userfaultfd(2)`).
//!
//! Own calls, and no crate: the one that is kept (`userfaultfd`) makes its bindings with libclang
//! while it is built, which a host would need for four calls.
//!
//! [`Uffd::create`] and [`Uffd::register`] are what a VMM does; the rest is its memory server's.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const TYPE: u8 = 0xaa;
const API: u64 = 0xaa;
const EVENT_REMOVE: u64 = 1 << 3;
const MODE_MISSING: u64 = 1;

/// The size of one message.
const MESSAGE: usize = 32;

/// How many messages are read at once.
const BATCH: usize = 64;

const PAGE_FAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RegisterArgument {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArgument {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    /// How much was copied, or the error's number below 0.
    done: i64,
}

#[repr(C)]
struct ZeroArgument {
    start: u64,
    length: u64,
    mode: u64,
    done: i64,
}

const SET_API: Opcode = opcode::read_write::<ApiArgument>(TYPE, 0x3f);
const REGISTER: Opcode = opcode::read_write::<RegisterArgument>(TYPE, 0x00);
const COPY: Opcode = opcode::read_write::<CopyArgument>(TYPE, 0x03);
const ZERO: Opcode = opcode::read_write::<ZeroArgument>(TYPE, 0x04);

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread waits until there is something at this address.
    Fault(u64),
    /// What was from the one address on to before the other was given up.
    Removed(u64, u64),
    /// Something else, of this number.
    Other(u8),
}

/// How far filling a range came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// So many bytes are there now, and those who waited for them go on.
    pub bytes: u64,
    /// Why not all; the next page is where that was.
    pub stop: Option<Stop>,
}

/// Why a range was not filled to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// There is something at the next page already.
    Exists,
    /// Something is given up just now: its event is to be read first.
    Again,
    /// The process whose memory it is has gone.
    Gone,
    /// Another error.
    Failed(Errno),
}

/// A userfaultfd, of this process's memory or of another's that sent it.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks `/dev/userfaultfd` for one.
struct New;

#[allow(unsafe_code)]
// SAFETY: USERFAULTFD_IOC_NEW takes flags by value and gives a new descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(TYPE, 0x00)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        let flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
        std::ptr::without_provenance_mut(usize::try_from(flags.bits()).unwrap_or(0))
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(RawFd::from(out)) })
    }
}

impl Uffd {
    /// One of this process's memory, for its own and the kernel's accesses, which tells what is
    /// given up: by `/dev/userfaultfd`, else by the system call.
    ///
    /// # Errors
    /// Where neither is allowed, or the kernel lacks it.
    #[allow(unsafe_code)]
    pub fn create() -> io::Result<Self> {
        let device = "/dev/userfaultfd";
        let fd = match rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            // SAFETY: that device takes this call.
            Ok(device) => unsafe { ioctl(&device, New) }?,
            Err(_) => {
                let flags =
                    rustix::mm::UserfaultfdFlags::CLOEXEC | rustix::mm::UserfaultfdFlags::NONBLOCK;
                // SAFETY: it is given no memory yet.
                unsafe { rustix::mm::userfaultfd(flags) }?
            }
        };
        let mut argument = ApiArgument {
            api: API,
            features: EVENT_REMOVE,
            ioctls: 0,
        };
        // SAFETY: the argument is the one of this call.
        unsafe { ioctl(&fd, Updater::<SET_API, _>::new(&mut argument)) }?;
        Ok(Self(fd))
    }

    /// Has whoever touches this range wait until it is filled.
    ///
    /// # Errors
    /// Where it is no mapping of private memory.
    #[allow(unsafe_code)]
    pub fn register(&self, start: u64, length: u64) -> io::Result<()> {
        let mut argument = RegisterArgument {
            start,
            length,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the argument is the one of this call; what is mapped stays mapped.
        unsafe { ioctl(&self.0, Updater::<REGISTER, _>::new(&mut argument)) }?;
        Ok(())
    }

    /// Reads what the kernel has to tell, if anything. Never waits.
    ///
    /// # Errors
    /// Where it is no userfaultfd.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        let mut bytes = [0; MESSAGE * BATCH];
        let read = match rustix::io::read(&self.0, &mut bytes) {
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        Ok(bytes[..read].chunks_exact(MESSAGE).map(event).collect())
    }

    /// Copies bytes to a range of pages where nothing is yet.
    #[allow(unsafe_code)]
    pub fn copy(&self, to: u64, bytes: &[u8]) -> Filled {
        let length = bytes.len() as u64;
        let mut argument = CopyArgument {
            to,
            from: bytes.as_ptr().expose_provenance() as u64,
            length,
            mode: 0,
            done: 0,
        };
        // SAFETY: it reads `bytes`, and writes to memory of the registered ranges, which no
        // reference of this process leads to.
        let told = unsafe { ioctl(&self.0, Updater::<COPY, _>::new(&mut argument)) };
        filled(told, argument.done)
    }

    /// Has a range of pages where nothing is yet be all 0, without memory of its own. Not for huge
    /// pages.
    #[allow(unsafe_code)]
    pub fn zero(&self, start: u64, length: u64) -> Filled {
        let mut argument = ZeroArgument {
            start,
            length,
            mode: 0,
            done: 0,
        };
        // SAFETY: as for `copy`.
        let told = unsafe { ioctl(&self.0, Updater::<ZERO, _>::new(&mut argument)) };
        filled(told, argument.done)
    }
}

fn filled(told: rustix::io::Result<()>, done: i64) -> Filled {
    let stop = match told {
        Ok(()) => None,
        Err(Errno::EXIST) => Some(Stop::Exists),
        Err(Errno::AGAIN) => Some(Stop::Again),
        Err(Errno::SRCH) => Some(Stop::Gone),
        Err(errno) => Some(Stop::Failed(errno)),
    };
    Filled {
        // Where nothing was done it is an error's number.
        bytes: u64::try_from(done).unwrap_or(0),
        stop,
    }
}

/// Reads `struct uffd_msg`: the event's number, seven bytes of nothing, three numbers.
fn event(message: &[u8]) -> Event {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    match message[0] {
        // The first number is of flags.
        PAGE_FAULT => Event::Fault(number(16)),
        REMOVE => Event::Removed(number(8), number(16)),
        other => Event::Other(other),
    }
}
