//! Advisory locks on files: they end with their process, whatever way it ends.

use crate::disk::{DiskError, Doing};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// Opens `path`, creating it where it is missing.
pub(crate) fn open(path: &Path) -> Result<File, DiskError> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .doing("open", path)
}

/// Waits for the exclusive lock of a folder's `.lock`.
///
/// It is held for moments only, while names or work folders change; so this wait is short.
pub(crate) fn folder(dir: &Path) -> Result<File, DiskError> {
    let path = dir.join(".lock");
    let file = open(&path)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            other => return other.map(|()| file).doing("lock", &path),
        }
    }
}

/// Takes the exclusive lock if nobody has any; `false` if somebody has.
pub(crate) fn try_exclusive(file: &File, path: &Path) -> Result<bool, DiskError> {
    attempt(file, path, FlockOperation::NonBlockingLockExclusive)
}

/// Takes a shared lock unless somebody has the exclusive one.
pub(crate) fn try_shared(file: &File, path: &Path) -> Result<bool, DiskError> {
    attempt(file, path, FlockOperation::NonBlockingLockShared)
}

/// Tries for the exclusive lock until `limit` has passed.
pub(crate) fn exclusive_within(
    file: &File,
    path: &Path,
    limit: Duration,
) -> Result<bool, DiskError> {
    let end = Instant::now() + limit;
    loop {
        if try_exclusive(file, path)? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn attempt(file: &File, path: &Path, operation: FlockOperation) -> Result<bool, DiskError> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno).doing("lock", path),
    }
}
