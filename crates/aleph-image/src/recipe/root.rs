//! The folder that an archive is unpacked into, seen by the kernel as a root of its own.
//!
//! Every path is resolved with `RESOLVE_IN_ROOT`: absolute symlinks and `..` in their targets
//! mean what they will mean in the guest, and nothing leads out of the folder (openat2(2)).

use crate::removal::remove_below;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// A path on the host, the root's own included, that most programs can still use: `PATH_MAX`
/// is 4096, and the image is written by one.
pub(crate) const LONGEST_REAL_PATH: usize = 4000;

/// Who owns a file, what it allows, and when it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
}

impl Attributes {
    /// For directories that an archive takes for granted.
    pub(crate) const IMPLIED: Self = Self {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
    };

    fn mode(self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o7777)
    }

    fn owner(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    fn times(self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime,
            tv_nsec: 0,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

/// An extended attribute's name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// A folder as root.
pub(crate) struct Root {
    fd: OwnedFd,
}

/// A folder in the root, and its number on its file system.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) inode: u64,
}

/// A folder in the root, and a name in it.
pub(crate) struct Place<'a> {
    pub(crate) dir: Folder,
    pub(crate) name: &'a Path,
}

impl Folder {
    pub(crate) fn of(fd: OwnedFd) -> Result<Self> {
        Ok(Self {
            inode: rustix::fs::fstat(&fd)?.st_ino,
            fd: Rc::new(fd),
        })
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(|fd| Self { fd })
    }

    /// Opens a directory; the empty path is the root.
    ///
    /// # Errors
    /// `ENAMETOOLONG` where symlinks lead deeper than [`LONGEST_REAL_PATH`].
    pub(crate) fn dir(&self, path: &Path) -> Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let safe = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match self.resolve(path, safe | ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => {
                let fd = self.resolve(path, safe)?;
                let shown = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), [])?;
                if shown.as_bytes().len() > LONGEST_REAL_PATH {
                    return Err(Errno::NAMETOOLONG);
                }
                Ok(fd)
            }
            other => other,
        }
    }

    fn resolve(&self, path: &Path, how: ResolveFlags) -> Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), how) {
                // A rename anywhere on the host at this moment; openat2(2) says to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Whether whoever follows the symlink at `path`, and those that it leads to, stays in the
    /// root. What leads nowhere, or in circles, leads out neither.
    pub(crate) fn keeps(&self, path: &Path) -> Result<bool> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            return match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                    Ok(true)
                }
                Err(Errno::XDEV) => Ok(false),
                Err(errno) => Err(errno),
            };
        }
    }

    /// Opens a directory, making those on the way that are missing; `made` hears of each, with
    /// the folder that it is in.
    pub(crate) fn ensure_dir(
        &self,
        path: &Path,
        made: &mut dyn FnMut(&Path, &Place<'_>, &Folder),
    ) -> Result<Folder> {
        match self.dir(path) {
            Err(Errno::NOENT) => {}
            other => return Folder::of(other?),
        }
        // A path is at most 256 levels deep, so this ends after as many steps down.
        let dir = self.ensure_dir(path.parent().unwrap_or(Path::new("")), made)?;
        let name = path.file_name().map_or(Path::new("."), Path::new);
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
        let new = Folder::of(self.dir(path)?)?;
        settle(&new, Attributes::IMPLIED)?;
        made(path, &Place { dir, name }, &new);
        Ok(new)
    }
}

impl Place<'_> {
    /// Removes what is here, a folder with all that is in it if `full`; else it has to be empty.
    /// Nothing here is no error.
    pub(crate) fn clear(&self, full: bool) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                if full {
                    remove_below(self.open_dir()?, |_, _| false)?;
                }
                rustix::fs::unlinkat(&self.dir, self.name, AtFlags::REMOVEDIR)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory that is here and no symlink to one.
    pub(crate) fn open_dir(&self) -> Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, self.name, flags, Mode::empty())
    }

    /// A new file, open for writing.
    pub(crate) fn create_file(&self) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, self.name, flags, Mode::from_raw_mode(0o600)).map(File::from)
    }

    /// A new, empty directory.
    pub(crate) fn create_dir(&self) -> Result<Folder> {
        rustix::fs::mkdirat(&self.dir, self.name, Mode::from_raw_mode(0o755))?;
        Folder::of(self.open_dir()?)
    }

    pub(crate) fn symlink(&self, target: &Path, attributes: Attributes) -> Result<()> {
        rustix::fs::symlinkat(target, &self.dir, self.name)?;
        let (uid, gid) = attributes.owner();
        rustix::fs::chownat(&self.dir, self.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        let times = attributes.times();
        rustix::fs::utimensat(&self.dir, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(crate) fn hard_link(&self, to: &Place<'_>) -> Result<()> {
        rustix::fs::linkat(&to.dir, to.name, &self.dir, self.name, AtFlags::empty())
    }

    pub(crate) fn fifo(&self, attributes: Attributes) -> Result<()> {
        rustix::fs::mknodat(&self.dir, self.name, FileType::Fifo, attributes.mode(), 0)?;
        let (uid, gid) = attributes.owner();
        rustix::fs::chownat(&self.dir, self.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(&self.dir, self.name, attributes.mode(), AtFlags::empty())?;
        let times = attributes.times();
        rustix::fs::utimensat(&self.dir, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Sets extended attributes of what is here, even if it is a symlink; the failure comes with
    /// the name of the attribute.
    pub(crate) fn set_xattrs(&self, xattrs: &[Xattr]) -> std::result::Result<(), (String, Errno)> {
        if xattrs.is_empty() {
            return Ok(());
        }
        // There is no *at form of lsetxattr before Linux 6.13.
        let dir = format!("/proc/self/fd/{}", self.dir.fd.as_raw_fd());
        let path = Path::new(&dir).join(self.name);
        for (name, value) in xattrs {
            rustix::fs::lsetxattr(&path, name.as_slice(), value, XattrFlags::empty())
                .map_err(|errno| (String::from_utf8_lossy(name).into_owned(), errno))?;
        }
        Ok(())
    }
}

/// Removes all extended attributes of a directory that can be removed.
pub(crate) fn clear_xattrs(dir: &Folder) -> Result<()> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::flistxattr(dir, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        match rustix::fs::fremovexattr(dir, name) {
            // A security module keeps its own.
            Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Gives an open file or directory its owner, mode and time; the owner first, because a change
/// of it clears the set-user-id bit, and the time last.
pub(crate) fn settle(fd: impl AsFd, attributes: Attributes) -> Result<()> {
    let (uid, gid) = attributes.owner();
    rustix::fs::fchown(&fd, uid, gid)?;
    rustix::fs::fchmod(&fd, attributes.mode())?;
    rustix::fs::futimens(&fd, &attributes.times())
}
