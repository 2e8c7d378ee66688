//! A page of a file, in memory.

use super::{arch::number, call, descriptor, unmap};
use core::ptr::{self, NonNull};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;

/// The first page of a file, shared with whoever reads or writes it.
#[derive(Debug)]
pub struct Page(NonNull<u8>);

impl Page {
    /// How long it is.
    pub const SIZE: usize = 4096;

    /// Maps it. The file must not become empty while it is written to.
    ///
    /// # Errors
    /// The kernel's: `NODEV` for a file that cannot be mapped, `ACCES` for one that is not open for
    /// reading and writing.
    pub fn map(file: &OwnedFd) -> Result<Self, Errno> {
        const READ_WRITE: usize = 0x3;
        const SHARED: usize = 0x1;
        let file = descriptor(file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { call(number::MMAP, [0, Self::SIZE, READ_WRITE, SHARED, file, 0]) }?;
        let start = ptr::with_exposed_provenance_mut(start);
        NonNull::new(start).map(Self).ok_or(Errno::FAULT)
    }

    /// Writes to its beginning, as much as fits. No call of the kernel's is made.
    pub fn write(&mut self, bytes: &[u8]) {
        let length = bytes.len().min(Self::SIZE);
        // SAFETY: the mapping is as long, and is this one's alone within the process. The bytes
        // are not in it, as nothing refers to it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.as_ptr(), length) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        unsafe { unmap(self.0.as_ptr(), Self::SIZE) };
    }
}
