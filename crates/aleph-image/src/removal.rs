//! Removing trees of any depth with two open folders: a hostile archive's are deep.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A folder on the way down.
struct Level {
    name: OsString,
    inode: u64,
    /// What is left to look at in it, and whether that is a folder.
    left: Vec<(OsString, bool)>,
}

/// Removes a tree, a file or a link. What is not there is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => {
            let dir = rustix::fs::open(path, FOLDER, Mode::empty())?;
            remove_below(dir.as_fd(), |_, _| false)?;
            fs::remove_dir(path)
        }
        Ok(_) => fs::remove_file(path),
    }
}

/// Empties the folder `dir`, but for the entries that `keep` names by their folder's inode and
/// their name. A folder that still has something in it stays too.
///
/// Nobody else may move anything in the tree meanwhile: the way back up is `..`.
pub(crate) fn remove_below(dir: impl AsFd, keep: impl Fn(u64, &OsStr) -> bool) -> Result<()> {
    let mut at = open_below(&dir, OsStr::new("."))?;
    let mut levels = vec![Level::of(&at, OsString::new())?];
    while let Some(level) = levels.last_mut() {
        let Some((name, is_dir)) = level.left.pop() else {
            let Some(done) = levels.pop() else { break };
            let Some(parent) = levels.last() else { break };
            at = open_below(&at, OsStr::new(".."))?;
            if !keep(parent.inode, &done.name) {
                match rustix::fs::unlinkat(&at, &*done.name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            continue;
        };
        if is_dir {
            at = open_below(&at, &name)?;
            levels.push(Level::of(&at, name)?);
        } else if !keep(level.inode, &name) {
            rustix::fs::unlinkat(&at, &*name, AtFlags::empty())?;
        }
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn open_below(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, FOLDER, Mode::empty())
}

impl Level {
    fn of(dir: &OwnedFd, name: OsString) -> Result<Self> {
        let mut left = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                known => known,
            };
            left.push((name.to_owned(), kind == FileType::Directory));
        }
        Ok(Self {
            name,
            inode: rustix::fs::fstat(dir)?.st_ino,
            left,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_a_process_may_open_folders_is_removed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("stays"), "x").unwrap();
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut at = rustix::fs::open(&top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(outside.path(), &at, "link").unwrap();
            at = open_below(&at, OsStr::new("d")).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.path().join("stays").exists());
        remove(&top).unwrap();
    }

    #[test]
    fn what_is_kept_keeps_its_folders() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["a/b", "a/c/d", "e"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        for file in ["a/b/kept", "a/b/goes", "a/c/d/goes", "e/goes", "goes"] {
            fs::write(root.path().join(file), "").unwrap();
        }
        let dir = fs::File::open(root.path()).unwrap();
        remove_below(&dir, |_, name| name == "kept" || name == "e").unwrap();
        assert!(root.path().join("a/b/kept").exists());
        for gone in ["a/b/goes", "a/c", "e/goes", "goes"] {
            assert!(!root.path().join(gone).exists(), "{gone}");
        }
        assert!(root.path().join("e").exists());
    }
}
