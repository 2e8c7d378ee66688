//! Memory that comes from a page fault handler.
//!
//! The guest's memory is QEMU's, whose faults nobody can be handed. So this process has a mapping as
//! large, hands the userfaultfd of that over as there, and touches every page of it before the guest
//! goes on: the handler sees the same handshake and the same faults, all of them at once.

use crate::fault::os_text;
use crate::guest;
use crate::version::Version;
use aleph_executor::firecracker::memory::uffd::Uffd;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::ffi::c_void;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

const PAGE: usize = 4096;

/// Memory with what the handler that listens there has, and the connection to it, where it stays open.
pub(crate) fn memory(
    socket: &Path,
    size: u64,
    version: Version,
) -> Result<(File, Option<UnixStream>), String> {
    let length = usize::try_from(size).map_err(|error| error.to_string())?;
    let mapping = Mapping::new(length).map_err(|error| os_text(&error))?;
    let begin = mapping.0.expose_provenance() as u64;
    let uffd = Uffd::create();
    let uffd = uffd.map_err(|error| format!("Failed to UFFD object: {}", os_text(&error)))?;
    uffd.register(begin, size).map_err(|error| {
        format!(
            "Failed to register memory address range: {}",
            os_text(&error)
        )
    })?;
    let connection = UnixStream::connect(socket).map_err(|error| {
        let why = os_text(&error);
        format!("Failed to connect to UDS Unix stream: {why}")
    })?;
    // Bytes, for all that the older name says.
    let new = match version.has(12) {
        true => format!(r#""page_size":{PAGE},"#),
        false => String::new(),
    };
    let said = format!(
        r#"[{{"base_host_virt_addr":{begin},"size":{size},"offset":0,{new}"page_size_kib":{PAGE}}}]"#
    );
    send(&connection, &said, &uffd)
        .map_err(|error| format!("Failed to sends file descriptor: {}", os_text(&error)))?;
    let connection = version.has(12).then_some(connection);
    let memory = mapping.read().map_err(|error| os_text(&error))?;
    Ok((memory, connection))
}

fn send(connection: &UnixStream, said: &str, uffd: &Uffd) -> io::Result<()> {
    let fds = [uffd.as_fd()];
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

/// Private memory of this process.
struct Mapping(*mut c_void, usize);

impl Mapping {
    #[allow(unsafe_code)]
    fn new(length: usize) -> io::Result<Self> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, wherever the kernel puts it.
        let begin = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
        Ok(Self(begin, length))
    }

    /// Touches every page, and copies what is in it.
    #[allow(unsafe_code)]
    fn read(&self) -> io::Result<File> {
        let memory = guest::memory_of(self.1 as u64)?;
        for at in (0..self.1).step_by(PAGE) {
            let mut page = [0_u8; PAGE];
            // SAFETY: the page is mapped as long as this is, and only the kernel writes to it, before
            // it is read.
            unsafe {
                let from = self.0.cast::<u8>().add(at);
                std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), PAGE);
            }
            if page.iter().any(|byte| *byte != 0) {
                memory.write_all_at(&page, at as u64)?;
            }
        }
        Ok(memory)
    }
}

#[allow(unsafe_code)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped as such, and no reference leads into it.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}
