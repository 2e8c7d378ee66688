//! Removes a folder that an enemy filled.
//!
//! Nothing is followed and nothing is opened but folders: links, sockets, FIFOs and device nodes
//! are unlinked by name. No other filesystem is entered, and however deep the folders are, few
//! descriptors are open at once: those that lie too deep are moved up first.

use super::error::{JailError, at};
use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How many folders are open in each other.
const DEPTH: usize = 32;
/// How often the top is read. Each time it gets `DEPTH` levels less deep.
const PASSES: usize = 100_000;

/// Removes the folder `name` in `parent`, whose path is `path`. One that is not there is no error.
///
/// # Errors
/// Where something cannot be removed, or comes up again and again.
pub(super) fn remove(parent: impl AsFd, name: &str, path: &Path) -> Result<(), JailError> {
    let name = &std::ffi::CString::new(name)
        .map_err(std::io::Error::from)
        .map_err(at("name", path))?;
    let top = match folder(&parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(at("open", path)(error)),
    };
    let mut moved = 0;
    for _ in 0..PASSES {
        if empty(&top, &top, 0, &mut moved).map_err(at("empty", path))? {
            return match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(Errno::NOTEMPTY) => continue,
                Err(error) => Err(at("remove", path)(error)),
            };
        }
    }
    Err(JailError::Stays {
        path: path.to_owned(),
        why: "files come up in it as fast as they are removed",
    })
}

/// Removes what is in a folder; whether there was nothing.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> Result<bool, Errno> {
    let mut nothing = true;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        nothing = false;
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        if depth == DEPTH {
            move_up(dir, name, top, moved)?;
            continue;
        }
        let child = match folder(dir, name) {
            Ok(child) => child,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        // A folder that is not empty yet is looked at again in the next pass.
        empty(&child, top, depth + 1, moved)?;
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(nothing)
}

fn move_up(dir: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        let new = format!("deep-{moved}");
        *moved += 1;
        match renameat_with(dir, name, top, &new, RenameFlags::NOREPLACE) {
            // There are only so many names.
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            done => return done,
        }
    }
}

/// Opens a folder, and nothing else, on the same filesystem.
fn folder(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV,
    )
}
