//! The folder that an archive is unpacked into, seen by the kernel as a root of its own.
//!
//! Every path is resolved with `RESOLVE_IN_ROOT`: absolute symlinks and `..` in their targets
//! mean what they will mean in the guest, and nothing leads out of the folder (openat2(2)).

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

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

/// A folder in the root, and a name in it.
pub(crate) struct Place<'a> {
    pub(crate) dir: OwnedFd,
    pub(crate) name: &'a Path,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(|fd| Self { fd })
    }

    /// Opens a directory; the empty path is the root.
    pub(crate) fn dir(&self, path: &Path) -> Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // A rename anywhere on the host at this moment; openat2(2) says to try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Opens a directory, making those on the way that are missing.
    pub(crate) fn ensure_dir(&self, path: &Path) -> Result<OwnedFd> {
        match self.dir(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        // A path has at most 4095 bytes, so this ends after as many steps down.
        let parent = self.ensure_dir(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().map_or(Path::new("."), Path::new);
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
        let dir = self.dir(path)?;
        settle(&dir, Attributes::IMPLIED)?;
        Ok(dir)
    }

    /// Where `path` is: its directory, made where it is missing, and its last component.
    pub(crate) fn place<'a>(&self, path: &'a Path) -> Result<Place<'a>> {
        let name = path.file_name().map(Path::new).ok_or(Errno::ISDIR)?;
        let dir = self.ensure_dir(path.parent().unwrap_or(Path::new("")))?;
        Ok(Place { dir, name })
    }
}

impl Place<'_> {
    /// Makes room for something that is no directory: what comes later in an archive wins.
    pub(crate) fn clear(&self) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&self.dir, self.name, AtFlags::REMOVEDIR),
            Err(errno) => Err(errno),
        }
    }

    /// A new file, open for writing.
    pub(crate) fn create_file(&self) -> Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, self.name, flags, Mode::from_raw_mode(0o600)).map(File::from)
    }

    /// A directory; one that is there already stays.
    pub(crate) fn ensure_dir(&self) -> Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.dir, self.name, flags, Mode::empty());
        match open() {
            Err(Errno::NOTDIR | Errno::LOOP) => self.clear()?,
            Err(Errno::NOENT) => {}
            other => return other,
        }
        rustix::fs::mkdirat(&self.dir, self.name, Mode::from_raw_mode(0o755))?;
        open()
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

    /// Sets extended attributes of what is here, even if it is a symlink.
    pub(crate) fn set_xattrs(&self, xattrs: &[Xattr]) -> Result<()> {
        // There is no *at form of lsetxattr before Linux 6.13.
        let dir = format!("/proc/self/fd/{}", self.dir.as_raw_fd());
        let path = Path::new(&dir).join(self.name);
        for (name, value) in xattrs {
            rustix::fs::lsetxattr(&path, name.as_slice(), value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// Gives an open file or directory its owner, mode and time; the owner first, because a change
/// of it clears the set-user-id bit, and the time last.
pub(crate) fn settle(fd: impl std::os::fd::AsFd, attributes: Attributes) -> Result<()> {
    let (uid, gid) = attributes.owner();
    rustix::fs::fchown(&fd, uid, gid)?;
    rustix::fs::fchmod(&fd, attributes.mode())?;
    rustix::fs::futimens(&fd, &attributes.times())
}
