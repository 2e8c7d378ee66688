//! Finding block devices by the serial numbers that the host gave them.

use super::port::wait_for;
use crate::file::read_bounded;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use rustix::fs::{Mode, OFlags, RawDir};

/// How long a disk may take to appear, in microseconds.
const PATIENCE_US: u64 = 5_000_000;

/// The device node of the disk with this serial number, once it is there.
pub(super) fn by_serial(serial: &[u8]) -> Option<Vec<u8>> {
    wait_for(PATIENCE_US, || {
        scan(c"/sys/block", |name| {
            let seen = read_bounded([b"/sys/block/", name, b"/serial"].concat()).ok()?;
            let end = seen.iter().position(|b| *b == 0).unwrap_or(seen.len());
            (seen[..end].trim_ascii() == serial).then(|| [b"/dev/", name].concat())
        })
    })
}

/// The first answer that an entry of a folder gives to `look`.
pub(super) fn scan<T>(folder: &CStr, look: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).ok()?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name().to_bytes();
        if !name.starts_with(b".")
            && let Some(found) = look(name)
        {
            return Some(found);
        }
    }
    None
}
