//! Unpacking a tar archive that nobody vouches for.

use super::compression::{self, BLOCK};
use super::entry_path::{PathFault, below_root};
use super::root::{Attributes, Place, Root, Xattr, settle};
use crate::disk::{DiskError, Doing, readable};
use crate::error::ImageError;
use crate::program::ProgramError;
use crate::progress::Progress;
use aleph_types::{Classify, ErrorClass};
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

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The program that writes the archive failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// There is nothing in the file.
    #[error("it is an empty file")]
    Empty,
    /// The file is something else.
    #[error("it is not a tar archive (first bytes {})", shown(first))]
    NotTar {
        /// What the file begins with.
        first: Vec<u8>,
    },
    /// It is compressed in a way that is not supported.
    #[error("it is compressed with {format}, which is not supported")]
    Compression {
        /// The format's name.
        format: &'static str,
    },
    /// It ends too early or its content contradicts itself.
    #[error("it is damaged")]
    Damaged {
        /// What the reader found.
        source: io::Error,
    },
    /// A path in it is refused.
    #[error("the path {path:?} in it is refused: {fault}")]
    Path {
        /// The path.
        path: String,
        /// Why.
        fault: PathFault,
    },
    /// An entry that cannot be made.
    #[error("the entry {path:?} in it cannot be made: {why}")]
    Entry {
        /// The entry.
        path: String,
        /// Why.
        why: String,
    },
    /// It has more in it than any image has.
    #[error("it has more than {limit} in it")]
    TooMuch {
        /// How much is allowed.
        limit: String,
    },
}

impl Classify for ArchiveError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Disk(error) => error.class(),
            Self::Program(error) => error.class(),
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.code(),
            Self::Program(error) => error.code(),
            Self::Empty => "archive_empty",
            Self::NotTar { .. } => "archive_not_tar",
            Self::Compression { .. } => "archive_compression",
            Self::Damaged { .. } => "archive_damaged",
            Self::Path { .. } => "archive_path",
            Self::Entry { .. } => "archive_entry",
            Self::TooMuch { .. } => "archive_too_much",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Disk(error) => error.advice(),
            Self::Program(error) => error.advice(),
            Self::Empty | Self::NotTar { .. } => Some(
                "Name a tar archive of a root file system, plain or compressed with gzip, xz \
                 or zstd."
                    .into(),
            ),
            Self::Compression { .. } => {
                Some("Decompress it first, or use gzip, xz or zstd.".into())
            }
            Self::Damaged { .. } => Some("Make or download the archive again.".into()),
            Self::Path { .. } | Self::Entry { .. } => {
                Some("Make the archive again without that entry.".into())
            }
            Self::TooMuch { .. } => None,
        }
    }
}

fn shown(first: &[u8]) -> String {
    let hex: Vec<String> = first.iter().map(|b| format!("{b:02x}")).collect();
    let mut text = hex.join(" ");
    if first.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        text.push_str(&format!(", {:?}", String::from_utf8_lossy(first)));
    }
    text
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

fn damaged(source: io::Error) -> ArchiveError {
    ArchiveError::Damaged { source }
}

fn contradiction(what: &str) -> ArchiveError {
    damaged(io::Error::new(io::ErrorKind::InvalidData, what))
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

/// What extension entries say of the next member.
#[derive(Default)]
struct Extra {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    size: Option<u64>,
    sparse: bool,
    xattrs: Vec<Xattr>,
}

impl Extra {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        const XATTR: &[u8] = b"SCHILY.xattr.";
        for record in (PaxRecords { left: bytes }) {
            let (key, value) = record?;
            match key {
                b"path" => self.path = Some(value.to_owned()),
                b"linkpath" => self.link = Some(value.to_owned()),
                b"uid" => self.uid = Some(number(value)?),
                b"gid" => self.gid = Some(number(value)?),
                b"size" => self.size = Some(number(value)?),
                b"mtime" => {
                    let seconds = value.split(|b| *b == b'.').next().unwrap_or_default();
                    self.mtime = Some(number(seconds)?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.xattrs.push((name.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, ArchiveError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| contradiction("a number in an extended header is none"))
}

/// Records of the form `<length> <key>=<value>\n`; a value may hold any byte, newlines too.
struct PaxRecords<'a> {
    left: &'a [u8],
}

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let record = split_record(self.left);
        self.left = record.map_or(&[], |(_, rest)| rest);
        Some(
            record
                .map(|(record, _)| record)
                .ok_or_else(|| contradiction("an extended header has no proper form")),
        )
    }
}

type PaxRecord<'a> = (&'a [u8], &'a [u8]);

fn split_record(bytes: &[u8]) -> Option<(PaxRecord<'_>, &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some(((&body[..equals], &body[equals + 1..]), rest))
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
                    settle(dir, *attributes).doing("set the owner of", &self.tree.join(path))?
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_malformed_extended_header_is_refused() {
        for bytes in [
            &b"99 path=short\n"[..],
            b"x",
            b"12 uid=many\n",
            b"8 novalue",
        ] {
            assert!(Extra::default().read_pax(bytes).is_err(), "{bytes:?}");
        }
        let mut extra = Extra::default();
        extra
            .read_pax(b"24 mtime=1700000000.250\n12 uid=1000\n")
            .unwrap();
        assert_eq!((extra.mtime, extra.uid), (Some(1_700_000_000), Some(1000)));
    }

    proptest! {
        #[test]
        fn any_extended_header_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Extra::default().read_pax(&bytes);
        }

        #[test]
        fn written_records_are_read_back(
            path in proptest::collection::vec(any::<u8>(), 0..64),
            value in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut extra = Extra::default();
            let bytes = [record(b"path", &path), record(b"SCHILY.xattr.user.x", &value)].concat();
            extra.read_pax(&bytes).unwrap();
            prop_assert_eq!(extra.path, Some(path));
            prop_assert_eq!(extra.xattrs, vec![(b"user.x".to_vec(), value)]);
        }
    }

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }
}
