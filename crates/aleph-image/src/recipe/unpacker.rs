//! Making files of entries, in one tree, by the rules of an archive or of an image's layers.
//!
//! A layer (OCI image specification, "Image Layer Filesystem Changeset") lies over what the
//! layers before it have made: its files and links replace what is there, a folder whole if need
//! be; its folders keep what is in them; and its whiteouts remove what is of lower layers and
//! never what is of the layer itself, whichever comes first.

use super::archive_error::ArchiveError;
use super::ledger::{Ledger, Made};
use super::root::{
    Attributes, Folder, LONGEST_REAL_PATH, Place, Root, Xattr, clear_xattrs, settle,
};
use crate::disk::{DiskError, Doing, free_bytes};
use crate::removal::remove_below;
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How entries meet what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// One archive: a folder with something in it is never replaced.
    Archive,
    /// Layers, one over another.
    Layers,
}

/// What a layer's entry says by its name alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mark<'a> {
    /// What lower layers have under this name goes.
    Whiteout(&'a Path, &'a OsStr),
    /// What lower layers have in this folder goes.
    Opaque(&'a Path),
    /// A note that a storage driver made for itself.
    Bookkeeping,
}

/// Making a file failed.
pub(super) enum Failure {
    /// Reading the archive did.
    Read(io::Error),
    /// The host refused.
    Make(io::Error),
    /// It is the entry's own fault.
    Entry(String),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Make(errno.into())
    }
}

pub(super) struct Unpacker {
    root: Root,
    tree: PathBuf,
    rules: Rules,
    ledger: Ledger,
    /// The folder of the entry before: the next one is mostly there too.
    near: Option<(PathBuf, Folder)>,
    buffer: Vec<u8>,
}

impl Unpacker {
    /// For the empty folder `tree`.
    pub(super) fn new(tree: &Path, rules: Rules) -> Result<Self, ArchiveError> {
        let root = Root::open(tree).doing("open", tree)?;
        let top = root.dir(Path::new("")).and_then(Folder::of);
        let top = top.doing("open", tree)?.inode;
        Ok(Self {
            root,
            tree: tree.to_owned(),
            rules,
            ledger: Ledger::new(top),
            near: None,
            buffer: vec![0; 128 << 10],
        })
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    /// What comes next is a layer of its own.
    pub(super) fn next_layer(&mut self) {
        self.ledger.next_layer();
    }

    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// Whether the symlink at `path` leads to nothing outside of the tree.
    pub(super) fn keeps(&self, path: &Path) -> Result<bool, DiskError> {
        self.root.keeps(path).doing("follow", &self.tree.join(path))
    }

    /// What was made since the last time that this was asked.
    pub(super) fn take_made(&mut self) -> Made {
        self.ledger.take_made()
    }

    /// Bytes of the paths and names that are kept in memory.
    pub(super) fn path_bytes(&self) -> u64 {
        self.ledger.path_bytes()
    }

    pub(super) fn file(
        &mut self,
        path: &Path,
        content: &mut impl Read,
        attributes: Attributes,
        xattrs: &[Xattr],
    ) -> Result<(), Failure> {
        let (place, file) = self.make(path, Place::create_file)?;
        self.copy(content, &file)?;
        // Attributes before times, and after owners: a change of owner takes capabilities away.
        settle(&file, attributes)?;
        self.set_xattrs(&place, xattrs)
    }

    fn copy(&mut self, content: &mut impl Read, mut file: &File) -> Result<(), Failure> {
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    io::Write::write_all(&mut file, &self.buffer[..n]).map_err(Failure::Make)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Read(error)),
            }
        }
    }

    pub(super) fn symlink(
        &mut self,
        path: &Path,
        target: &[u8],
        attributes: Attributes,
        xattrs: &[Xattr],
    ) -> Result<(), Failure> {
        let target = Path::new(OsStr::from_bytes(target));
        let (place, ()) = self.make(path, |place| place.symlink(target, attributes))?;
        self.set_xattrs(&place, xattrs)
    }

    pub(super) fn fifo(&mut self, path: &Path, attributes: Attributes) -> Result<(), Failure> {
        self.make(path, |place| place.fifo(attributes)).map(drop)
    }

    pub(super) fn hard_link(&mut self, path: &Path, to: &Path) -> Result<(), Failure> {
        if path == to {
            return Ok(());
        }
        let target = self.place(to)?;
        match self.make(path, |place| place.hard_link(&target)) {
            Err(Failure::Make(error))
                if [Errno::PERM, Errno::MLINK].contains(&errno_of(&error)) =>
            {
                Err(Failure::Entry(format!(
                    "{} cannot be linked to ({error})",
                    to.display()
                )))
            }
            other => other.map(drop),
        }
    }

    pub(super) fn directory(
        &mut self,
        path: &Path,
        attributes: Attributes,
        xattrs: &[Xattr],
    ) -> Result<(), Failure> {
        let (place, folder) = if path.as_os_str().is_empty() {
            let top = Folder::of(self.root.dir(path)?)?;
            let (dir, name) = (top.clone(), Path::new("."));
            (Place { dir, name }, top)
        } else {
            let place = self.place(path)?;
            let folder = match place.open_dir() {
                Ok(fd) => Folder::of(fd)?,
                Err(Errno::NOENT) => self.create_dir(&place)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.clear(&place)?;
                    self.create_dir(&place)?
                }
                Err(errno) => return Err(errno.into()),
            };
            self.ledger.note(&place);
            (place, folder)
        };
        if self.rules == Rules::Layers {
            clear_xattrs(&folder)?;
            settle(&folder, attributes)?;
        }
        self.ledger.keep(folder.inode, path, attributes);
        self.set_xattrs(&place, xattrs)
    }

    /// Does what a layer's mark says. `near` may lead through what it removes.
    pub(super) fn mark(&mut self, mark: &Mark<'_>) -> Result<(), Failure> {
        let parent = match mark {
            _ if !self.ledger.is_over_others() => return Ok(()),
            Mark::Bookkeeping => return Ok(()),
            Mark::Whiteout(parent, _) | Mark::Opaque(parent) => *parent,
        };
        let dir = match self.root.dir(parent) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => Folder::of(other?)?,
        };
        self.near = None;
        let is_own = |inode: u64, name: &OsStr| self.ledger.is_own(inode, name);
        let Mark::Whiteout(_, name) = mark else {
            return Ok(remove_below(&dir, is_own)?);
        };
        let place = Place {
            dir,
            name: Path::new(name),
        };
        let own = is_own(place.dir.inode, name);
        let gone = match place.open_dir() {
            Ok(folder) => {
                remove_below(&folder, is_own)?;
                if own {
                    return Ok(());
                }
                rustix::fs::unlinkat(&place.dir, *name, AtFlags::REMOVEDIR)
            }
            Err(Errno::NOTDIR | Errno::LOOP) if own => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::unlinkat(&place.dir, *name, AtFlags::empty())
            }
            Err(errno) => Err(errno),
        };
        match gone {
            // A folder with something of this layer in it stays.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn finish(self) -> Result<(), ArchiveError> {
        for (inode, (path, attributes)) in self.ledger.folders() {
            match self.root.dir(path).and_then(Folder::of) {
                Ok(dir) if dir.inode == *inode => {
                    settle(&dir, *attributes).doing("set the owner of", &self.tree.join(path))?;
                }
                // Something that came later took its place.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {}
                Err(errno) => return Err(errno).doing("open", &self.tree.join(path))?,
            }
        }
        Ok(())
    }

    /// What the archive is to blame for, told from what the host is.
    pub(super) fn cannot_make(&self, path: &Path, error: io::Error, size: u64) -> ArchiveError {
        const OTHERS_ENTRY: [Errno; 7] = [
            Errno::NOENT,
            Errno::NOTDIR,
            Errno::NOTEMPTY,
            Errno::ISDIR,
            Errno::EXIST,
            Errno::LOOP,
            Errno::NAMETOOLONG,
        ];
        if OTHERS_ENTRY.contains(&errno_of(&error)) {
            return ArchiveError::Entry {
                path: path.display().to_string(),
                why: format!("another entry is in its way, or missing ({error})"),
            };
        }
        let mut error = DiskError::new("unpack", &self.tree.join(path), error);
        error.needed = error.is_full().then_some(size);
        error.into()
    }

    /// Makes something that is no folder; what comes later wins.
    fn make<'p, T>(
        &mut self,
        path: &'p Path,
        create: impl Fn(&Place<'p>) -> rustix::io::Result<T>,
    ) -> Result<(Place<'p>, T), Failure> {
        let place = self.place(path)?;
        let made = match create(&place) {
            Err(Errno::EXIST) => {
                self.clear(&place)?;
                create(&place)?
            }
            other => other?,
        };
        self.ledger.note(&place);
        self.ledger.count(false);
        Ok((place, made))
    }

    fn create_dir(&mut self, place: &Place<'_>) -> Result<Folder, Errno> {
        let folder = place.create_dir()?;
        self.ledger.count(false);
        Ok(folder)
    }

    fn clear(&mut self, place: &Place<'_>) -> Result<(), Failure> {
        // The way to the next entry may lead through what goes.
        self.near = None;
        Ok(place.clear(self.rules == Rules::Layers)?)
    }

    fn place<'p>(&mut self, path: &'p Path) -> Result<Place<'p>, Failure> {
        let name = path.file_name().map(Path::new).ok_or(Errno::ISDIR)?;
        if self.tree.as_os_str().len() + path.as_os_str().len() > LONGEST_REAL_PATH {
            return Err(Errno::NAMETOOLONG.into());
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        if let Some((near, dir)) = &self.near
            && near == parent
        {
            let dir = dir.clone();
            return Ok(Place { dir, name });
        }
        let ledger = &mut self.ledger;
        let dir = self.root.ensure_dir(parent, &mut |path, place, folder| {
            ledger.keep(folder.inode, path, Attributes::IMPLIED);
            ledger.note(place);
            ledger.count(true);
        })?;
        self.near = Some((parent.to_owned(), dir.clone()));
        Ok(Place { dir, name })
    }

    fn set_xattrs(&self, place: &Place<'_>, xattrs: &[Xattr]) -> Result<(), Failure> {
        place.set_xattrs(xattrs).map_err(|(name, errno)| {
            // Full is also what file systems say of an attribute too large for them.
            let full = [Errno::NOSPC, Errno::DQUOT].contains(&errno)
                && free_bytes(&self.tree).is_some_and(|free| free < 1 << 20);
            if full {
                errno.into()
            } else {
                Failure::Entry(format!(
                    "its extended attribute {name:?} cannot be kept ({errno})"
                ))
            }
        })
    }
}

impl<'a> Mark<'a> {
    /// What the path of a layer's entry marks, if it marks anything.
    ///
    /// # Errors
    /// With why it is refused.
    pub(super) fn of(path: &'a Path) -> Result<Option<Self>, &'static str> {
        const WHITEOUT: &[u8] = b".wh.";
        const OWN: &[u8] = b".wh..wh.";
        const OPAQUE: &[u8] = b".wh..wh..opq";
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let mut above = parent.iter().map(OsStr::as_bytes);
        if above.clone().any(|name| name.starts_with(OWN)) {
            return Ok(Some(Self::Bookkeeping));
        }
        if above.any(|name| name.starts_with(WHITEOUT)) {
            return Err("it is below a whiteout");
        }
        match name.as_bytes().strip_prefix(WHITEOUT) {
            None => Ok(None),
            Some(_) if name.as_bytes() == OPAQUE => Ok(Some(Self::Opaque(parent))),
            Some(_) if name.as_bytes().starts_with(OWN) => Ok(Some(Self::Bookkeeping)),
            Some(b"" | b"." | b"..") => Err("it is a whiteout of no name"),
            Some(hidden) => Ok(Some(Self::Whiteout(parent, OsStr::from_bytes(hidden)))),
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_names() {
        for (path, expected) in [
            ("", Ok(None)),
            ("a/b", Ok(None)),
            ("a/.whatever", Ok(None)),
            (
                ".wh.x",
                Ok(Some(Mark::Whiteout(Path::new(""), OsStr::new("x")))),
            ),
            (
                "a/.wh..x",
                Ok(Some(Mark::Whiteout(Path::new("a"), OsStr::new(".x")))),
            ),
            ("a/.wh..wh..opq", Ok(Some(Mark::Opaque(Path::new("a"))))),
            ("a/.wh..wh.plnk", Ok(Some(Mark::Bookkeeping))),
            (".wh..wh.plnk/1.2", Ok(Some(Mark::Bookkeeping))),
            ("a/.wh.", Err("it is a whiteout of no name")),
            (".wh..", Err("it is a whiteout of no name")),
            (".wh...", Err("it is a whiteout of no name")),
            (".wh.a/b", Err("it is below a whiteout")),
        ] {
            assert_eq!(Mark::of(Path::new(path)), expected, "{path}");
        }
    }
}
