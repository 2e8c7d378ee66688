//! Memory that comes from a page fault handler.
//!
//! The guest's memory is QEMU's, whose faults nobody can be handed. So this process has memory as
//! large, hands the userfaultfd of that over as there, and touches every page of it before the guest
//! goes on: the handler sees the same handshake and the same faults, all of them at once.

use crate::fault::os_text;
use crate::guest;
use crate::version::Version;
use aleph_testkit::FaultedMemory;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Memory with what the handler that listens there has, and the connection to it, where it stays open.
pub(crate) fn memory(
    socket: &Path,
    size: u64,
    version: Version,
) -> Result<(File, Option<UnixStream>), String> {
    let length = usize::try_from(size).map_err(|error| error.to_string())?;
    let faulted = FaultedMemory::new(length)
        .map_err(|error| format!("Failed to UFFD object: {}", os_text(&error)))?;
    let connection = UnixStream::connect(socket).map_err(|error| {
        let why = os_text(&error);
        format!("Failed to connect to UDS Unix stream: {why}")
    })?;
    faulted
        .hand_over(&connection, version.has(12))
        .map_err(|error| format!("Failed to sends file descriptor: {}", os_text(&error)))?;
    let connection = version.has(12).then_some(connection);
    let read = || {
        let memory = guest::memory_of(size)?;
        for (number, at) in (0..size).step_by(4096).enumerate() {
            let page = faulted.page(number);
            if page != [0; 4096] {
                memory.write_all_at(&page, at)?;
            }
        }
        Ok(memory)
    };
    Ok((read().map_err(|error| os_text(&error))?, connection))
}
