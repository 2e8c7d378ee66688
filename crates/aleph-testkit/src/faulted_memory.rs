//! Memory of this process that another one fills as it is touched.

use aleph_executor::firecracker::memory::uffd::Uffd;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::ffi::c_void;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

/// The size of its pages.
const PAGE: usize = 4096;

/// Private memory whose pages a memory server fills, as a VMM of Firecracker's has for its guest.
#[derive(Debug)]
pub struct FaultedMemory {
    begin: *mut c_void,
    length: usize,
    uffd: Uffd,
}

// SAFETY: it is memory and a descriptor; who reads it copies it.
#[allow(unsafe_code)]
unsafe impl Send for FaultedMemory {}
// SAFETY: as above; nothing here writes to it.
#[allow(unsafe_code)]
unsafe impl Sync for FaultedMemory {}

impl FaultedMemory {
    /// Memory of so many bytes, a multiple of 4096.
    ///
    /// # Errors
    /// Where there is no memory, or this process may make no userfaultfd.
    #[allow(unsafe_code)]
    pub fn new(length: usize) -> io::Result<Self> {
        let uffd = Uffd::create()?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, wherever the kernel puts it.
        let begin = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
        let memory = Self {
            begin,
            length,
            uffd,
        };
        memory.uffd.register(memory.address(), length as u64)?;
        Ok(memory)
    }

    fn address(&self) -> u64 {
        self.begin.expose_provenance() as u64
    }

    /// Hands it to whoever listens there, as Firecracker does up to 1.11, or with the field for the
    /// size of a page that came later.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn hand_over(&self, connection: &UnixStream, is_new: bool) -> io::Result<()> {
        let (begin, size) = (self.address(), self.length);
        // Bytes, for all that the older name says.
        let new = match is_new {
            true => format!(r#""page_size":{PAGE},"#),
            false => String::new(),
        };
        let said = format!(
            r#"[{{"base_host_virt_addr":{begin},"size":{size},"offset":0,{new}"page_size_kib":{PAGE}}}]"#
        );
        let fds = [self.uffd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let parts = [IoSlice::new(said.as_bytes())];
        let sent = sendmsg(connection, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
        match sent == said.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Touches a page, and gives what is in it.
    ///
    /// # Panics
    /// Where there is no such page.
    #[must_use]
    #[allow(unsafe_code)]
    pub fn page(&self, number: usize) -> [u8; PAGE] {
        assert!(number < self.length / PAGE, "no page {number}");
        let mut page = [0_u8; PAGE];
        // SAFETY: the page is mapped as long as this is, and only the kernel writes to it, before it
        // is read.
        unsafe {
            let from = self.begin.cast::<u8>().add(number * PAGE);
            std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE);
        }
        page
    }

    /// Whether a page is filled, without touching it.
    ///
    /// # Errors
    /// Where the kernel does not say (`/proc/self/pagemap`).
    pub fn is_there(&self, number: usize) -> io::Result<bool> {
        let at = self.address() / 4096 + number as u64;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at * 8)?;
        // Bit 63 says that it is in memory.
        Ok(u64::from_ne_bytes(entry) >> 63 == 1)
    }

    /// Gives pages up, as a balloon does. It waits until the server knows.
    ///
    /// # Errors
    /// Where the kernel refuses.
    ///
    /// # Panics
    /// Where there are no such pages.
    #[allow(unsafe_code)]
    pub fn remove(&self, first: usize, count: usize) -> io::Result<()> {
        assert!(first + count <= self.length / PAGE, "no such pages");
        // SAFETY: the pages are mapped, and no reference leads to them.
        unsafe {
            let begin = self.begin.cast::<u8>().add(first * PAGE).cast();
            madvise(begin, count * PAGE, Advice::LinuxDontNeed)?;
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
impl Drop for FaultedMemory {
    fn drop(&mut self) {
        // SAFETY: it was mapped as such, and no reference leads into it.
        let _ = unsafe { munmap(self.begin, self.length) };
    }
}
