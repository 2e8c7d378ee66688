//! Small files: reading and writing them whole, and their folders.

use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use rustix::fs::{FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::path::Arg;

/// The most that is read of a file.
const MAX: usize = 1 << 20;

/// The first megabyte of a file. One that is no plain file is not waited for.
pub(crate) fn read_bounded(path: impl Arg) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let mut contents = Vec::new();
    let mut chunk = [0; 2048];
    while contents.len() < MAX {
        match rustix::io::read(&file, &mut chunk)? {
            0 => break,
            n => contents.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(contents)
}

/// Writes a small file anew. One that is no plain file is not waited for.
pub(crate) fn write(path: &CStr, parts: &[&[u8]]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    parts
        .iter()
        .try_for_each(|part| rustix::io::write(&file, part).map(drop))
}

/// The first answer that an entry of a folder gives to `look`.
pub(crate) fn scan<T>(folder: &CStr, mut look: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
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

/// Makes a folder and those above it that are missing.
pub(crate) fn make_folders(path: &[u8]) -> Result<(), Errno> {
    if is_folder(path) {
        return Ok(());
    }
    let ends = (1..path.len())
        .filter(|at| path[*at] == b'/')
        .chain([path.len()]);
    for end in ends {
        match rustix::fs::mkdir(&path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    if is_folder(path) {
        Ok(())
    } else {
        Err(Errno::NOTDIR)
    }
}

fn is_folder(path: &[u8]) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}
