//! The code of a function: a zip archive as AWS Lambda takes it, made into a read-only image that
//! a guest mounts at `/var/task`.
//!
//! [`build`] is all there is. What it makes is `sha256-<64 hex>.erofs` in a folder of the
//! caller's, which owns and removes it: code is no image in a [`Store`](crate::Store). It is
//! written in a work folder, synced and renamed: there is either the whole of it or nothing.
//!
//! Equal content is an equal image, whenever and in whatever order it was packed: every file
//! belongs to root and has the time 0. Modes are the archive's where it was made on Unix, else
//! 0755 for folders and 0644 for files; what the owner may read or run, everybody may, and
//! nothing is set-user-id.
//!
//! # What is refused
//! More than [`MOST_ZIPPED`] as it comes, more than [`MOST_UNPACKED`] or [`MOST_ENTRIES`] in it;
//! bytes that two entries share; paths and symlinks that lead out of `/var/task`; what is
//! encrypted, or compressed with something else than deflate. [`TaskError`] has each, all of the
//! class `Invalid`. A folder or disk that cannot be written has the class of that.

mod error;

pub use error::{Limit, TaskError};

use crate::digest::Digest;
use crate::disk::{Doing, ensure_room};
use crate::filesystem::{FORMAT, Metadata, Owners, Times};
use crate::progress::NoProgress;
use crate::recipe::{Bounds, unpack_code};
use crate::staging::Staging;
use std::fs;
use std::path::{Path, PathBuf};

/// The most bytes of an archive: Lambda's quota for what is uploaded directly.
pub const MOST_ZIPPED: u64 = 50 << 20;
/// The most bytes of what is in it: Lambda's quota for a function with its layers.
pub const MOST_UNPACKED: u64 = 250 << 20;
/// The most files, folders and links in it. Lambda names no such quota; large trees of Node.js
/// modules have some ten thousand.
pub const MOST_ENTRIES: u64 = 100_000;

const BOUNDS: Bounds = Bounds {
    bytes: MOST_UNPACKED,
    entries: MOST_ENTRIES,
};

const METADATA: Metadata = Metadata {
    times: Times::Zero,
    owners: Owners::Root,
};

/// A function's code, ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskImage {
    /// The filesystem: a read-only file.
    pub path: PathBuf,
    /// `sha256:` and 64 hex digits, of the filesystem.
    pub digest: String,
    /// Bytes of the files in it.
    pub unpacked_size: u64,
}

/// Makes an image of the archive `zip` in the folder `into`, which is created where it is missing.
///
/// # Errors
/// [`TaskError`], and the folder is as before.
pub fn build(zip: &[u8], into: &Path) -> Result<TaskImage, TaskError> {
    let size = zip.len() as u64;
    if size > MOST_ZIPPED {
        return Err(TaskError::TooLarge { size });
    }
    fs::create_dir_all(into).doing("create", into)?;
    let into = into.canonicalize().doing("find", into)?;
    let staging = Staging::create(&into)?;
    // What there is at least: more is found out while it is written.
    ensure_room("unpack code to", &into, size)?;
    let tree = staging.folder("tree")?;
    let unpacked_size = unpack_code(zip, &tree, BOUNDS)?;
    let file = staging.path().join("task");
    FORMAT.write(&tree, METADATA, &file, &mut NoProgress)?;
    let (digest, _) = Digest::of_file(&file, "compute the digest", &mut NoProgress)?;
    let path = staging.commit_file(&file, &format!("sha256-{}.{FORMAT}", digest.hex()))?;
    Ok(TaskImage {
        path,
        digest: digest.to_string(),
        unpacked_size,
    })
}
