//! Unpacking a zip archive of a function's code that nobody vouches for.
//!
//! The central directory says what is in it; how much that comes to is counted while it is
//! decompressed. An entry has no owner and no time: code that is the same is the same image,
//! whenever it was packed.

use super::entry_path::below_root;
use super::root::Attributes;
use super::unpacker::{Failure, Rules, Unpacker};
use crate::recipe::ArchiveError;
use crate::task::{Limit, TaskError};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, System, ZipArchive};

/// `S_IFMT` and two of its values, from inode(7): zip archives made on Unix have them.
const KIND: u32 = 0o170_000;
const SYMLINK: u32 = 0o120_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
/// `PATH_MAX`, which a symlink's target cannot exceed.
const LONGEST_TARGET: u64 = 4095;
/// How much may be in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Bytes of files and links.
    pub(crate) bytes: u64,
    /// Files, folders and links, folders that no entry names among them.
    pub(crate) entries: u64,
}

/// Who owns what is unpacked: root, or us if we may not give files away. The image has root.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// Unpacks `bytes` into the empty folder `tree`; gives the bytes of its files.
pub(crate) fn unpack(bytes: &[u8], tree: &Path, bounds: Bounds) -> Result<u64, TaskError> {
    ensure_few(bytes, bounds)?;
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(TaskError::not_zip)?;
    if archive.len() as u64 > bounds.entries {
        return Err(TaskError::TooMuch(Limit::Entries(bounds.entries)));
    }
    if archive.has_duplicate_names()
        || archive
            .has_overlapping_entries()
            .map_err(TaskError::not_zip)?
    {
        return Err(TaskError::Overlap);
    }
    if archive.is_empty() {
        return Err(TaskError::Empty);
    }
    let mut work = Work {
        unpacker: Unpacker::new(tree, Rules::Archive)?,
        owner: Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        },
        links: Vec::new(),
        bounds,
        left: bounds,
    };
    for index in 0..archive.len() {
        // What is encrypted or unknown has a reader only in its raw form.
        let entry = archive.by_index_raw(index).map_err(TaskError::not_zip)?;
        let shown = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if entry.encrypted() {
            return Err(TaskError::Encrypted { path: shown });
        }
        let method = entry.compression();
        if ![CompressionMethod::Stored, CompressionMethod::Deflated].contains(&method) {
            let method = method.to_string();
            return Err(TaskError::Compression {
                path: shown,
                method,
            });
        }
        drop(entry);
        let mut entry = archive.by_index(index).map_err(|source| match source {
            ZipError::Io(source) => TaskError::Damaged {
                path: shown,
                source,
            },
            other => TaskError::not_zip(other),
        })?;
        work.member(&mut entry)?;
    }
    work.finish()
}

/// Looks how many entries there are before memory is spent on them: a reader's of 50 MiB of
/// nothing but headers is ten times that. Archives in the archive count, where they are stored
/// as they are.
fn ensure_few(bytes: &[u8], bounds: Bounds) -> Result<(), TaskError> {
    let headers = bytes.windows(4).filter(|w| *w == b"PK\x01\x02").count();
    if headers as u64 > bounds.entries {
        return Err(TaskError::TooMuch(Limit::Entries(bounds.entries)));
    }
    Ok(())
}

struct Work {
    unpacker: Unpacker,
    owner: Owner,
    links: Vec<PathBuf>,
    bounds: Bounds,
    left: Bounds,
}

impl Work {
    fn member(&mut self, entry: &mut ZipFile<'_, Cursor<&[u8]>>) -> Result<(), TaskError> {
        let raw = entry.name_raw().to_vec();
        let shown = || String::from_utf8_lossy(&raw).into_owned();
        if raw.starts_with(b"/") {
            return Err(TaskError::Absolute { path: shown() });
        }
        let path = below_root(&raw).map_err(|fault| TaskError::Path {
            path: shown(),
            fault,
        })?;
        let mode = mode_of(entry);
        let folder = raw.ends_with(b"/");
        let made = match mode & KIND {
            SYMLINK if !folder => self.link(&path, entry),
            0 | REGULAR if !folder => self.file(&path, entry, mode),
            0 | DIRECTORY | REGULAR => {
                let attributes = self.attributes(mode, 0o755);
                self.unpacker.directory(&path, attributes, &[])
            }
            other => Err(Failure::Entry(format!(
                "it is no file, folder or symlink (type {other:o})"
            ))),
        };
        made.map_err(|failure| self.failed(&path, shown(), failure))?;
        let made = self.unpacker.take_made();
        match self.left.entries.checked_sub(made.inodes) {
            Some(left) => self.left.entries = left,
            None => return Err(TaskError::TooMuch(Limit::Entries(self.bounds.entries))),
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, content: &mut impl Read, mode: u32) -> Result<(), Failure> {
        let attributes = self.attributes(mode, 0o644);
        let mut counted = Counted {
            inner: content,
            left: &mut self.left.bytes,
        };
        self.unpacker.file(path, &mut counted, attributes, &[])
    }

    fn link(&mut self, path: &Path, content: &mut impl Read) -> Result<(), Failure> {
        let mut target = Vec::new();
        let read = Counted {
            inner: content,
            left: &mut self.left.bytes,
        };
        read.take(LONGEST_TARGET + 1)
            .read_to_end(&mut target)
            .map_err(Failure::Read)?;
        if target.is_empty() || target.contains(&0) || target.len() as u64 > LONGEST_TARGET {
            return Err(Failure::Entry("it is a symlink to nothing".into()));
        }
        let attributes = self.attributes(0o777, 0o777);
        self.unpacker.symlink(path, &target, attributes, &[])?;
        self.links.push(path.to_owned());
        Ok(())
    }

    /// Whoever runs the function may read its code, and run what the owner may: there are no
    /// other users in the archive that its modes could be about.
    fn attributes(&self, mode: u32, default: u32) -> Attributes {
        let owner = match mode & 0o777 {
            0 => default,
            mode => mode | 0o400,
        };
        let shared = owner & 0o500;
        let search = if default == 0o755 { 0o111 } else { 0 };
        Attributes {
            mode: owner | shared >> 3 | shared >> 6 | search,
            uid: self.owner.uid,
            gid: self.owner.gid,
            mtime: 0,
        }
    }

    fn failed(&self, path: &Path, shown: String, failure: Failure) -> TaskError {
        match failure {
            Failure::Read(error) if is_too_much(&error) => {
                TaskError::TooMuch(Limit::Unpacked(self.bounds.bytes))
            }
            Failure::Read(source) => TaskError::Damaged {
                path: shown,
                source,
            },
            Failure::Entry(why) => TaskError::Entry { path: shown, why },
            Failure::Make(error) => match self.unpacker.cannot_make(path, error, 0) {
                ArchiveError::Entry { path, why } => TaskError::Entry { path, why },
                other => other.into(),
            },
        }
    }

    /// Symlinks may lead to what comes after them, and through one another: where they end is
    /// known when all is there. Nothing has followed one outside of the tree until then.
    fn finish(self) -> Result<u64, TaskError> {
        for link in &self.links {
            if !self.unpacker.keeps(link)? {
                return Err(TaskError::LeadsOut {
                    path: link.display().to_string(),
                });
            }
        }
        self.unpacker.finish()?;
        Ok(self.bounds.bytes - self.left.bytes)
    }
}

/// The Unix mode, 0 where the archive was made on something else.
fn mode_of(entry: &ZipFile<'_, Cursor<&[u8]>>) -> u32 {
    match entry.system() {
        System::Unix | System::OsDarwin => entry.external_attributes() >> 16,
        _ => 0,
    }
}

/// A reader's error: there is more than there may be.
#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than it may")]
struct TooMuch;

fn is_too_much(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<TooMuch>())
}

/// Counts what comes out of a decompressor, whatever the headers say.
struct Counted<'a, R> {
    inner: R,
    left: &'a mut u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => *self.left = left,
            None => return Err(io::Error::other(TooMuch)),
        }
        Ok(n)
    }
}
