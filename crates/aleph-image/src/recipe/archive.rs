//! Unpacking a tar archive that nobody vouches for.

use super::archive_error::{ArchiveError, contradiction, damaged};
use super::compression;
use super::entry_path::below_root;
use super::pax::Extra;
use super::root::Attributes;
use super::unpacker::{Failure, Mark, Rules, Unpacker};
use crate::disk::{DiskError, Doing, readable};
use crate::error::ImageError;
use crate::progress::Progress;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;
use tar::{Archive, Entry, EntryType};

/// Names, links and extended attributes of one entry take no more than this.
const MOST_METADATA: u64 = 1 << 20;
const MOST_ENTRIES: u64 = 4_000_000;
const MOST_BYTES: u64 = 1 << 40;
/// Bytes of paths that are kept in memory while an image is unpacked.
pub(crate) const MOST_PATHS: u64 = 256 << 20;
/// What an empty file or folder takes of a disk, as most file systems count.
const INODE_BYTES: u64 = 4096;

/// What an archive may have in it, and when it is read, what is left of that.
pub(super) struct Budget {
    pub(super) entries: u64,
    /// Bytes of files.
    pub(super) bytes: u64,
    /// What `bytes` was at the beginning.
    pub(super) most_bytes: u64,
    /// Bytes of paths that may be kept.
    pub(super) paths: u64,
    /// Bytes of the disk. Who hands the archive over may take of it for what is read.
    pub(super) room: Rc<Cell<u64>>,
}

/// Unpacks the archive in `file` into the empty folder `tree`.
pub(crate) fn unpack_file(
    file: &Path,
    tree: &Path,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    let open = File::open(file).doing("open", file)?;
    let size = open.metadata().doing("look at", file)?.len();
    progress.begin("unpack", Some(size));
    let unpacked = compression::open(Counted {
        inner: open,
        progress: &mut *progress,
    })
    .and_then(|mut plain| unpack(&mut plain, tree));
    unpacked.map_err(|source| match source {
        ArchiveError::Disk(error) => error.into(),
        source => ImageError::Archive {
            path: file.to_owned(),
            source,
        },
    })?;
    progress.end();
    Ok(())
}

/// Tells how much has been read.
pub(crate) struct Counted<'a, R> {
    pub(crate) inner: R,
    pub(crate) progress: &'a mut dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.progress.advance(n as u64);
        Ok(n)
    }
}

/// Unpacks a plain tar archive into the empty folder `tree`.
///
/// Owners, modes, times, links and extended attributes are kept. Device nodes below `dev/` are
/// left out, since guests see their kernel's own `/dev`; others are refused.
pub(crate) fn unpack(archive: &mut dyn Read, tree: &Path) -> Result<(), ArchiveError> {
    let mut unpacker = Unpacker::new(tree, Rules::Archive)?;
    let mut budget = Budget {
        entries: MOST_ENTRIES,
        bytes: MOST_BYTES,
        most_bytes: MOST_BYTES,
        paths: MOST_PATHS,
        room: Rc::new(Cell::new(u64::MAX)),
    };
    read(archive, &mut unpacker, &mut budget)?;
    unpacker.finish()
}

/// Makes what the entries of a plain tar archive say.
pub(super) fn read(
    archive: &mut dyn Read,
    unpacker: &mut Unpacker,
    budget: &mut Budget,
) -> Result<(), ArchiveError> {
    let most = budget.entries;
    let mut archive = Archive::new(archive);
    let mut extra = Extra::default();
    // Raw: the entries that describe the next one are read here, where their size is bounded.
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        budget.take_entries(1, most)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => extra.path = Some(text_of(&mut entry)?),
            EntryType::GNULongLink => extra.link = Some(text_of(&mut entry)?),
            EntryType::XHeader => extra.read_pax(&metadata_of(&mut entry)?)?,
            // Defaults for all entries: in practice a comment with a commit's id.
            EntryType::XGlobalHeader => {}
            _ => {
                member(&mut entry, &std::mem::take(&mut extra), unpacker, budget)?;
                budget.charge(unpacker, most)?;
            }
        }
    }
    Ok(())
}

impl Budget {
    fn take_entries(&mut self, n: u64, most: u64) -> Result<(), ArchiveError> {
        let left = self.entries.checked_sub(n);
        self.entries = left.ok_or_else(|| ArchiveError::TooMuch {
            limit: format!("{most} entries"),
        })?;
        Ok(())
    }

    /// Takes what one entry has come to: it may have made the folders that it is in.
    fn charge(&mut self, unpacker: &mut Unpacker, most: u64) -> Result<(), ArchiveError> {
        let made = unpacker.take_made();
        self.take_entries(made.implied, most)?;
        if unpacker.path_bytes() > self.paths {
            return Err(ArchiveError::TooMuch {
                limit: format!("{} of paths", readable(self.paths)),
            });
        }
        let room = self.room.get().checked_sub(made.inodes * INODE_BYTES);
        self.room
            .set(room.ok_or_else(|| DiskError::full("unpack an image to", unpacker.tree(), None))?);
        Ok(())
    }
}

fn metadata_of(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    entry
        .take(MOST_METADATA + 1)
        .read_to_end(&mut bytes)
        .map_err(damaged)?;
    if bytes.len() as u64 > MOST_METADATA {
        return Err(ArchiveError::TooMuch {
            limit: format!("{} of metadata for one entry", readable(MOST_METADATA)),
        });
    }
    Ok(bytes)
}

fn text_of(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = metadata_of(entry)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn member(
    entry: &mut Entry<'_, impl Read>,
    extra: &Extra,
    unpacker: &mut Unpacker,
    budget: &mut Budget,
) -> Result<(), ArchiveError> {
    let raw = extra
        .path
        .clone()
        .unwrap_or_else(|| entry.path_bytes().into_owned());
    let shown = || String::from_utf8_lossy(&raw).into_owned();
    let refused = |why: &str| ArchiveError::Entry {
        path: shown(),
        why: why.to_owned(),
    };
    let path = below_root(&raw).map_err(|fault| ArchiveError::Path {
        path: shown(),
        fault,
    })?;
    let header = entry.header().clone();
    let size = header.entry_size().map_err(damaged)?;
    let kind = match header.entry_type() {
        // Before POSIX, a directory was a file with a slash at its end.
        EntryType::Regular if raw.ends_with(b"/") => EntryType::Directory,
        other => other,
    };
    if extra.sparse || kind == EntryType::GNUSparse {
        return Err(refused("sparse files are not supported (tar -S made it)"));
    }
    if extra.size.is_some_and(|real| real != size) {
        return Err(refused(
            "files beyond 8 GiB are not supported in this form of tar",
        ));
    }
    let attributes = attributes(&header, extra)?;
    let xattrs = &extra.xattrs[..];
    let raw_link = extra
        .link
        .clone()
        .or_else(|| entry.link_name_bytes().map(Into::into));
    let layered = unpacker.rules() == Rules::Layers;
    let mark = if layered {
        Mark::of(&path).map_err(refused)?
    } else {
        None
    };

    let made = match kind {
        _ if mark.is_some() => mark.map_or(Ok(()), |mark| unpacker.mark(&mark)),
        EntryType::Directory => unpacker.directory(&path, attributes, xattrs),
        EntryType::Regular | EntryType::Continuous => {
            budget.bytes = budget
                .bytes
                .checked_sub(size)
                .ok_or_else(|| ArchiveError::TooMuch {
                    limit: readable(budget.most_bytes),
                })?;
            unpacker.file(&path, entry, attributes, xattrs)
        }
        EntryType::Symlink => {
            let target = raw_link.filter(|t| !t.is_empty() && !t.contains(&0));
            let target = target.ok_or_else(|| refused("it is a symlink to nothing"))?;
            unpacker.symlink(&path, &target, attributes, xattrs)
        }
        EntryType::Link => {
            let to = below_root(&raw_link.unwrap_or_default());
            let to = to.map_err(|fault| ArchiveError::Path {
                path: shown(),
                fault,
            })?;
            unpacker.hard_link(&path, &to)
        }
        EntryType::Fifo => unpacker.fifo(&path, attributes),
        // Guests see their kernel's own /dev, and images are not where nodes come from.
        EntryType::Char | EntryType::Block if layered || path.starts_with("dev") => Ok(()),
        EntryType::Char | EntryType::Block => {
            return Err(refused("device nodes outside of /dev are not allowed"));
        }
        other => {
            let byte = char::from(other.as_byte());
            return Err(refused(&format!(
                "entries of the type {byte:?} are not known"
            )));
        }
    };
    made.map_err(|failure| match failure {
        Failure::Read(source) => damaged(source),
        Failure::Make(error) => unpacker.cannot_make(&path, error, size),
        Failure::Entry(why) => refused(&why),
    })
}

fn attributes(header: &tar::Header, extra: &Extra) -> Result<Attributes, ArchiveError> {
    let id = |from_pax: Option<u32>, from_header: io::Result<u64>| match from_pax {
        Some(id) => Ok(id),
        None => u32::try_from(from_header.map_err(damaged)?)
            .map_err(|_| contradiction("an owner's number does not fit in 32 bits")),
    };
    let mtime = match extra.mtime {
        Some(mtime) => mtime,
        None => i64::try_from(header.mtime().map_err(damaged)?)
            .map_err(|_| contradiction("a time is out of range"))?,
    };
    Ok(Attributes {
        mode: header.mode().map_err(damaged)?,
        uid: id(extra.uid, header.uid())?,
        gid: id(extra.gid, header.gid())?,
        // What an image can record: 1970 to 2106.
        mtime: mtime.clamp(0, i64::from(u32::MAX)),
    })
}
