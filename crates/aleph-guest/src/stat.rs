//! What is at a path.

use crate::failure::{Context, Failure, text};
use aleph_guest_proto::{FileKind, FileStat};
use alloc::format;
use alloc::vec::Vec;
use rustix::fs::{AtFlags, CWD, FileType};

/// Says what is at a path, to `answer`.
pub(crate) fn stat(
    path: &[u8],
    follow: bool,
    answer: impl FnOnce(FileStat<'_>),
) -> Result<(), Failure> {
    let what = || format!("looking at {}", text(path));
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    let stat = rustix::fs::statat(CWD, path, flags).context(what)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Folder,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Other,
    };
    let target = match kind {
        FileKind::Link => rustix::fs::readlink(path, Vec::new())
            .context(what)?
            .into_bytes(),
        _ => Vec::new(),
    };
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    answer(FileStat {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_ns: stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
        target: &target,
    });
    Ok(())
}
