//! Faults of the host's disk: what tells them from everything else that can go wrong.
//!
//! A file that cannot be read or written says so by its error. `qemu-img` says the same words of an image that is
//! damaged, and what is in an image is its guest's: so where it says them, each file that it had is read from its
//! beginning to its end ([`found_in`]). Only where that cannot be done, either, it is the disk, and then it is known
//! which file it is. That takes as long as a copy does, and no longer.

use super::backend::length_of;
use super::error::{VolumeError, at};
use super::reading::Parts;
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// How much is read at a time.
const PIECE: usize = 1 << 20;

/// Whether that is what a disk that fails says, or a filesystem that is read-only since then.
pub(super) fn is_one(error: &io::Error) -> bool {
    let faults = [Errno::IO, Errno::ROFS, Errno::NODATA, Errno::UCLEAN];
    let code = error.raw_os_error();
    faults
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

/// The first of the files that cannot be read, or that cannot be written out; `None` where all can.
pub(super) fn found_in(read: &[&File], written: Option<&File>) -> Option<VolumeError> {
    let unread = |file: &&File| {
        let fault = read_through(file).err().filter(is_one)?;
        Some(at("read", &path_of(file))(fault))
    };
    let mut files = read.iter().copied().chain(written);
    files.find_map(|file| unread(&file)).or_else(|| {
        let fault = written?.sync_all().err().filter(is_one)?;
        Some(at("write", &path_of(written?))(fault))
    })
}

/// Reads all that a file or device holds.
fn read_through(file: &File) -> io::Result<()> {
    let length = length_of(file)?;
    let mut piece = vec![0; PIECE];
    for part in Parts::of(file, length) {
        let part = part?;
        let mut place = part.start;
        while place < part.end {
            let left = usize::try_from(part.end - place).unwrap_or(PIECE);
            let piece = piece.get_mut(..left.min(PIECE)).unwrap_or_default();
            match file.read_at(piece, place) {
                // It is shorter by now.
                Ok(0) => return Ok(()),
                Ok(read) => place += read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What an open file is called; what the process calls it, where it has no name.
fn path_of(file: &File) -> PathBuf {
    let ours = PathBuf::from(crate::process::path_of_file(file.as_raw_fd()));
    fs::read_link(&ours).unwrap_or(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_not_at_fault() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3], 5 << 20).unwrap();
        file.set_len(9 << 20).unwrap();
        assert!(found_in(&[&file], Some(&file)).is_none());
        // What may not be read at all is no fault of a disk.
        let folder = File::open("/").unwrap();
        assert!(found_in(&[&folder], None).is_none());
    }

    #[test]
    fn faults_are_told_by_their_number() {
        for (errno, wanted) in [(5, true), (30, true), (61, true), (28, false), (2, false)] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_one(&error), wanted, "{error}");
        }
        assert!(!is_one(&io::ErrorKind::UnexpectedEof.into()));
    }
}
