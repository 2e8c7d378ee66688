//! Unpacking a tar archive that nobody vouches for.

use super::archive_error::{ArchiveError, contradiction, damaged};
use super::compression::{self, BLOCK};
use super::entry_path::below_root;
use super::pax::Extra;
use super::root::{Attributes, Place, Root, Xattr, settle};
use crate::disk::{DiskError, Doing, readable};
use crate::error::ImageError;
use crate::progress::Progress;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// Names, links and extended attributes of one entry take no more than this.
const MOST_METADATA: u64 = 1 << 20;
const MOST_ENTRIES: u64 = 4_000_000;
const MOST_BYTES: u64 = 1 << 40;
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
    let root = Root::open(tree).doing("open", tree)?;
    let mut unpacker = Unpacker {
        root,
        tree,
        dirs: vec![(PathBuf::new(), Attributes::IMPLIED)],
        left: MOST_BYTES,
    };
    let mut archive = Archive::new(archive);
    let mut extra = Extra::default();
    // Raw: the entries that describe the next one are read here, where their size is bounded.
    let entries = archive.entries().map_err(damaged)?.raw(true);
    for (count, entry) in (0_u64..).zip(entries) {
        let mut entry = entry.map_err(damaged)?;
        if count >= MOST_ENTRIES {
            return Err(ArchiveError::TooMuch {
                limit: format!("{MOST_ENTRIES} entries"),
            });
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => extra.path = Some(text_of(&mut entry)?),
            EntryType::GNULongLink => extra.link = Some(text_of(&mut entry)?),
            EntryType::XHeader => extra.read_pax(&metadata_of(&mut entry)?)?,
            // Defaults for all entries: in practice a comment with a commit's id.
            EntryType::XGlobalHeader => {}
            _ => unpacker.member(&mut entry, &std::mem::take(&mut extra))?,
        }
    }
    unpacker.finish()
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

struct Unpacker<'a> {
    root: Root,
    tree: &'a Path,
    /// Their attributes are set last: until then, making entries changes their times.
    dirs: Vec<(PathBuf, Attributes)>,
    left: u64,
}

impl Unpacker<'_> {
    fn member(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        extra: &Extra,
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
        let raw_link = extra
            .link
            .clone()
            .or_else(|| entry.link_name_bytes().map(Into::into));

        let made = match kind {
            EntryType::Directory => self.directory(path.clone(), attributes, &extra.xattrs),
            EntryType::Regular | EntryType::Continuous => {
                self.left = self
                    .left
                    .checked_sub(size)
                    .ok_or_else(|| ArchiveError::TooMuch {
                        limit: readable(MOST_BYTES),
                    })?;
                self.place(&path).and_then(|place| {
                    file(&place, entry, attributes)?;
                    Ok(place.set_xattrs(&extra.xattrs)?)
                })
            }
            EntryType::Symlink => {
                let target = raw_link.filter(|t| !t.is_empty() && !t.contains(&0));
                let target = target.ok_or_else(|| refused("it is a symlink to nothing"))?;
                self.place(&path).and_then(|place| {
                    place.symlink(Path::new(OsStr::from_bytes(&target)), attributes)?;
                    Ok(place.set_xattrs(&extra.xattrs)?)
                })
            }
            EntryType::Link => {
                let to = below_root(&raw_link.unwrap_or_default()).map_err(|fault| {
                    ArchiveError::Path {
                        path: shown(),
                        fault,
                    }
                })?;
                self.hard_link(&path, &to)
            }
            EntryType::Fifo => self
                .place(&path)
                .and_then(|place| Ok(place.fifo(attributes)?)),
            EntryType::Char | EntryType::Block if path.starts_with("dev") => Ok(()),
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
            Failure::Make(error) => self.cannot_make(&path, error, size),
        })
    }

    fn place<'p>(&self, path: &'p Path) -> Result<Place<'p>, Failure> {
        let place = self.root.place(path)?;
        place.clear()?;
        Ok(place)
    }

    fn directory(
        &mut self,
        path: PathBuf,
        attributes: Attributes,
        xattrs: &[Xattr],
    ) -> Result<(), Failure> {
        if path.as_os_str().is_empty() {
            self.dirs[0].1 = attributes;
            return Ok(());
        }
        let place = self.root.place(&path)?;
        place.ensure_dir()?;
        place.set_xattrs(xattrs)?;
        self.dirs.push((path, attributes));
        Ok(())
    }

    fn hard_link(&self, path: &Path, to: &Path) -> Result<(), Failure> {
        if path == to {
            return Ok(());
        }
        let to = self.root.place(to)?;
        Ok(self.place(path)?.hard_link(&to)?)
    }

    fn finish(self) -> Result<(), ArchiveError> {
        for (path, attributes) in &self.dirs {
            match self.root.dir(path) {
                Ok(dir) => {
                    settle(dir, *attributes).doing("set the owner of", &self.tree.join(path))?;
                }
                // Something later in the archive took its place.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                Err(errno) => return Err(errno).doing("open", &self.tree.join(path))?,
            }
        }
        Ok(())
    }

    /// What the archive is to blame for, told from what the host is.
    fn cannot_make(&self, path: &Path, error: io::Error, size: u64) -> ArchiveError {
        use rustix::io::Errno;
        const OTHERS_ENTRY: [Errno; 7] = [
            Errno::NOENT,
            Errno::NOTDIR,
            Errno::NOTEMPTY,
            Errno::ISDIR,
            Errno::EXIST,
            Errno::LOOP,
            Errno::NAMETOOLONG,
        ];
        if Errno::from_io_error(&error).is_some_and(|errno| OTHERS_ENTRY.contains(&errno)) {
            return ArchiveError::Entry {
                path: path.display().to_string(),
                why: format!("another entry is in its way, or missing ({error})"),
            };
        }
        let mut error = DiskError::new("unpack", &self.tree.join(path), error);
        error.needed = error.is_full().then_some(size);
        error.into()
    }
}

/// Reading the archive failed, or making a file.
enum Failure {
    Read(io::Error),
    Make(io::Error),
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Make(errno.into())
    }
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

fn file(place: &Place<'_>, entry: &mut impl Read, attributes: Attributes) -> Result<(), Failure> {
    let mut file = place.create_file()?;
    let mut buffer = vec![0; 128 * BLOCK];
    loop {
        match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => io::Write::write_all(&mut file, &buffer[..n]).map_err(Failure::Make)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::Read(error)),
        }
    }
    Ok(settle(&file, attributes)?)
}
