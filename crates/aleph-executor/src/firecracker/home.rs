//! The place of a VMM that runs: names in it, as the VMM sees them and as we do, and what goes with it.
//!
//! # Failure cases
//! Sockets and files that Firecracker made are not trusted: in a jail they are looked at before they are
//! opened, and in the open nobody else's way leads into the folder.

use super::jail::{Access, Inside, Jail, Jails, UidRange};
use super::packing;
use crate::drivers::signature::Launched;
use crate::process::{FIRST_FILE, path_of_file};
use aleph_types::VmId;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::process::{Gid, Uid};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// The folder's name in the runtime folder of a VM.
pub(super) const FOLDER: &str = "firecracker";

/// In the open, the descriptor of the folder for what comes late: the first after that of the folder.
const LATE: i32 = FIRST_FILE + 1;

/// Names of what is in it.
pub(super) mod name {
    pub(in super::super) const API: &str = "api.sock";
    pub(in super::super) const VSOCK: &str = "vsock.sock";
    /// What a guest goes on from.
    pub(in super::super) const STATE: &str = "state";
    pub(in super::super) const MEMORY: &str = "memory";
    /// Where a memory server listens.
    pub(in super::super) const MEMORY_SERVER: &str = "memory.sock";
    /// What a guest was written to.
    pub(in super::super) const SAVED_STATE: &str = "saved-state";
    pub(in super::super) const SAVED_MEMORY: &str = "saved-memory";
    pub(in super::super) const LOG: &str = "log";
    pub(in super::super) const METRICS: &str = "metrics";
}

/// Who may use a file, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Read it, as others do.
    Shared,
    /// Read and write it, alone.
    Own,
}

impl Use {
    pub(super) fn access(self) -> Access {
        match self {
            Self::Shared => Access::Shared,
            Self::Own => Access::Own,
        }
    }
}

/// The place of a VMM that runs.
#[derive(Debug)]
pub(super) enum Home {
    Jailed {
        jail: Box<Jail>,
        jails: Jails,
    },
    Open {
        path: PathBuf,
        folder: File,
        late: Option<LateFolder>,
    },
}

/// Where files are shown to a process in the open that was launched ahead.
#[derive(Debug)]
pub(super) struct LateFolder {
    pub(super) folder: OwnedFd,
    /// Who it runs as.
    pub(super) user: Option<u32>,
}

/// The way to a socket, as long as this lives.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) path: PathBuf,
    _inside: Option<Inside>,
}

impl Home {
    /// That of a VM that an earlier process of this node started, wherever it put it.
    pub(super) fn find(launched: &Launched, vm: VmId, run_dir: &Path) -> io::Result<Self> {
        match &launched.jails {
            Some(base) => {
                // Which users new ones would get is no matter.
                let jails = Jails::open(base, UidRange::default())?;
                let jail = jails.find(vm, &launched.program)?;
                let jail = Box::new(jail.ok_or(io::ErrorKind::NotFound)?);
                Ok(Self::Jailed { jail, jails })
            }
            None => Self::open(run_dir),
        }
    }

    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(FOLDER);
        let folder = File::open(&path)?;
        Ok(Self::Open {
            path,
            folder,
            late: None,
        })
    }

    /// The jail that is to go where nothing comes of a launch.
    pub(super) fn jailed(&self) -> Option<(Jails, VmId)> {
        match self {
            Self::Jailed { jail, jails } => Some((jails.clone(), jail.vm())),
            Self::Open { .. } => None,
        }
    }

    /// A name in it, as the VMM sees it.
    pub(super) fn seen(&self, name: &str) -> PathBuf {
        match self {
            Self::Jailed { .. } => Path::new("/").join(name),
            Self::Open { .. } => Path::new(&path_of_file(FIRST_FILE)).join(name),
        }
    }

    /// Listens on a socket that the VMM may connect to.
    pub(super) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        match self {
            Self::Jailed { jail, .. } => Ok(jail.listen(name)?),
            Self::Open { folder, .. } => {
                let short = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
                // Binding follows no link.
                let listener = UnixListener::bind(short)?;
                let meta = folder.metadata()?;
                let (user, group) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
                crate::socket::give(folder, name, user, group)?;
                Ok(listener)
            }
        }
    }

    /// Whether it is a socket on which nobody listens.
    pub(super) fn is_deserted(&self, name: &str) -> bool {
        // One of another type is told whether anybody is there, and who listens hears nothing of it.
        let asks = |way: Way| UnixDatagram::unbound()?.connect(&way.path);
        let refuses = |way: Way| match asks(way) {
            Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            Ok(()) => false,
        };
        self.socket(name).is_ok_and(refuses)
    }

    /// The way to a socket that the VMM made.
    pub(super) fn socket(&self, name: &str) -> io::Result<Way> {
        match self {
            Self::Jailed { jail, .. } => {
                let inside = jail.socket(name)?;
                Ok(Way {
                    path: inside.path(),
                    _inside: Some(inside),
                })
            }
            Self::Open { folder, .. } => {
                let path = Path::new("/proc/self/fd")
                    .join(folder.as_raw_fd().to_string())
                    .join(name);
                if !fs::symlink_metadata(&path)?.file_type().is_socket() {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                Ok(Way {
                    path,
                    _inside: None,
                })
            }
        }
    }

    /// Shows a file to a process that was launched ahead, and has no guest yet; gives the path by which
    /// it opens it.
    pub(super) fn show(&self, name: &str, file: &File, how: Use) -> io::Result<PathBuf> {
        if file.metadata()?.nlink() == 0 {
            // It cannot get another one.
            return Err(io::ErrorKind::NotFound.into());
        }
        match self {
            Self::Jailed { jail, .. } => jail.bring_in_late(name, file, how.access())?,
            Self::Open { late, .. } => {
                let late = late.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
                check(late.user, name, file, how)?;
                let source = format!("/proc/self/fd/{}", file.as_raw_fd());
                let follow = AtFlags::SYMLINK_FOLLOW;
                rustix::fs::linkat(CWD, source, &late.folder, name, follow)?;
            }
        }
        Ok(match self {
            Self::Jailed { .. } => self.seen(name),
            Self::Open { .. } => seen_late(name),
        })
    }

    /// Takes a file away that was shown, once it is open. What cannot be goes with the VM.
    pub(super) fn hide(&self, name: &str) {
        let _ = match self {
            Self::Jailed { .. } => self.remove(name),
            Self::Open { late, .. } => late.as_ref().map_or(Ok(()), |late| {
                Ok(rustix::fs::unlinkat(&late.folder, name, AtFlags::empty())?)
            }),
        };
    }

    /// A file that the VMM wrote.
    pub(super) fn written(&self, name: &str) -> io::Result<File> {
        match self {
            Self::Jailed { jail, .. } => Ok(jail.open_file(name)?),
            Self::Open { path, .. } => open_plain(&path.join(name)),
        }
    }

    /// Whether there is something of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        let path = match self {
            Self::Jailed { jail, .. } => jail.root().join(name),
            Self::Open { path, .. } => path.join(name),
        };
        fs::symlink_metadata(path).is_ok()
    }

    /// A pipe that was made here, opened to be read. Whatever a VMM that was taken over has put in its
    /// place is refused.
    pub(super) fn pipe(&self, name: &str) -> io::Result<File> {
        let path = match self {
            Self::Jailed { jail, .. } => jail.root().join(name),
            Self::Open { path, .. } => path.join(name),
        };
        // Open for writing, too: so the VMM finds somebody who reads, and its end is no end of file.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let pipe = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&pipe)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(pipe.into())
    }

    /// Takes a name away. One that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let path = match self {
            Self::Jailed { jail, .. } => jail.root().join(name),
            Self::Open { path, .. } => path.join(name),
        };
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Whether what is written to a file in it can be told from what is not, page by page.
    pub(super) fn keeps_small_holes(&self) -> bool {
        packing::keeps_small_holes(match self {
            Self::Jailed { jail, .. } => jail.root(),
            Self::Open { path, .. } => path,
        })
    }

    /// Takes all of it away, once the VMM has ended. In the open it goes with the VM's folder.
    /// What still runs as its user, whom another VM may get, ends before.
    pub(super) async fn leave(&self) {
        if let Self::Jailed { jail, jails } = self
            && let Err(error) = jails.end_and_remove(jail.vm()).await
        {
            let vm = jail.vm();
            tracing::warn!(%vm, %error, "a jail stays until the next sweep");
        }
    }
}

/// A name in the folder for what comes late, as the VMM sees it.
pub(super) fn seen_late(name: &str) -> PathBuf {
    Path::new(&path_of_file(LATE)).join(name)
}

/// A file that is opened again needs the rights of its inode, whoever opened it first.
pub(super) fn check(user: Option<u32>, name: &str, file: &File, how: Use) -> io::Result<()> {
    let Some(user) = user else {
        return Ok(());
    };
    let meta = file.metadata()?;
    if meta.uid() == user {
        return Ok(());
    }
    if how == Use::Own {
        return std::os::unix::fs::fchown(file, Some(user), Some(user));
    }
    if meta.mode() & 0o004 == 0 {
        let why = format!("the VMM's user may not read {name}: let others read it (0444)");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Opens a file in a folder of the VMM's, where it may have put anything in the file's place.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}
