//! The folder of one jail: what goes into it, and what is used of it from outside.
//!
//! Files come in by a hard link where they are on the same filesystem and by a bind mount
//! elsewhere, before the jailer runs: its mounts are its own from then on. From then on, too, the
//! folder is the VMM's to change. So whatever is opened in it is looked at first, by a descriptor
//! that cannot be led astray, and taken only if it is of the right kind and the right owner's.

use super::error::{JailError, at};
use super::mounts;
use super::users::UidRange;
use aleph_types::VmId;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Uid, chownat, fchmod,
    fchown, fstat, linkat, mknodat, openat, openat2,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Names at the top of a jail that the jailer makes itself; `sys` on aarch64.
const TAKEN: [&str; 4] = ["dev", "run", "sys", "old_root"];
/// A process number with room to spare.
const LONGEST_PID: u64 = 16;

/// How a VMM may use a file that comes into its jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it, as other VMs may: an image, a kernel, the memory of a template. It stays whose it
    /// is, which must not be a VM, and everybody has to be allowed to read it, and nobody to write.
    Shared,
    /// Read and write it, alone: a disk of its own. It becomes the VM's user's, and nobody else's
    /// may have a name for it.
    Own,
}

/// How a file came into a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// As another name of the same file.
    Linked,
    /// As a mount.
    Mounted,
}

/// The jail of one VM.
#[derive(Debug)]
pub struct Jail {
    pub(super) vm: VmId,
    pub(super) uid: u32,
    pub(super) range: UidRange,
    pub(super) exec_name: String,
    /// Its root, as a path outside.
    pub(super) path: PathBuf,
    pub(super) root: OwnedFd,
}

/// Something in a jail that is of the right kind and the VM's own.
#[derive(Debug)]
pub struct Inside(OwnedFd);

impl Inside {
    /// A path that leads to it as long as this value lives, short enough for a socket's address,
    /// whatever happens to its name in the jail.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

impl Jail {
    /// Which VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The user and the group under which its VMM runs.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its root, as a path outside. Not for opening what the VMM may have changed.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.path
    }

    /// Brings a file in, at the top of the jail; the VMM opens it as `/NAME`. Only before the
    /// jailer runs. The file may be open in any way, and needs no path.
    ///
    /// # Errors
    /// [`JailError::Refused`] where it is not for this VM.
    pub fn bring_in(&self, name: &str, file: &File, access: Access) -> Result<Brought, JailError> {
        let path = self.path.join(name);
        match self.link_in(name, file, access)? {
            Ok(()) => Ok(Brought::Linked),
            // Another filesystem or mount, one without links, or one link too many.
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&self.root, name, flags | OFlags::WRONLY, Mode::empty())
                    .map_err(at("make", &path))?;
                crate::failpoint::pass("jail.bind", "before");
                mounts::bind(file, &path, access == Access::Shared)?;
                crate::failpoint::pass("jail.bind", "after");
                Ok(Brought::Mounted)
            }
            Err(error) => Err(at("link", &path)(error)),
        }
    }

    /// The same once the jailer has run, for a VMM that waits for its guest: by a link alone, as the
    /// VMM sees no mount that is made by now.
    ///
    /// # Errors
    /// As for [`Jail::bring_in`]; [`JailError::Io`] with [`std::io::ErrorKind::CrossesDevices`]
    /// where the file is on another filesystem than the jail.
    pub fn bring_in_late(&self, name: &str, file: &File, access: Access) -> Result<(), JailError> {
        let linked = self.link_in(name, file, access)?;
        linked.map_err(at("link", &self.path.join(name)))
    }

    /// Checks a file, and gives it a name in the jail where that can be.
    fn link_in(
        &self,
        name: &str,
        file: &File,
        access: Access,
    ) -> Result<Result<(), Errno>, JailError> {
        let refused = |why| JailError::Refused {
            name: name.to_owned(),
            why,
        };
        self.check_name(name).map_err(refused)?;
        let path = self.path.join(name);
        let stat = fstat(file).map_err(at("look at what goes to", &path))?;
        self.check(&stat, access).map_err(refused)?;
        if access == Access::Own {
            // Before it has a name in the jail: there it is the VM's from the first moment.
            fchmod(file, Mode::RUSR | Mode::WUSR).map_err(at("close to others", &path))?;
            self.give(file).map_err(at("give away", &path))?;
        }
        crate::failpoint::pass("jail.link", "before");
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = linkat(CWD, source, &self.root, name, AtFlags::SYMLINK_FOLLOW);
        if linked.is_ok() {
            crate::failpoint::pass("jail.link", "after");
        }
        Ok(linked)
    }

    fn check_name(&self, name: &str) -> Result<(), &'static str> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(
                "its name has to be up to 64 letters, digits, hyphens, dots and underscores",
            );
        }
        let pid_file = name.strip_suffix(".pid") == Some(&self.exec_name);
        if name == self.exec_name || pid_file || TAKEN.contains(&name) {
            return Err("the jailer makes something of that name");
        }
        Ok(())
    }

    fn check(&self, stat: &Stat, access: Access) -> Result<(), &'static str> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("it is no regular file");
        }
        if stat.st_nlink == 0 {
            return Err("it has no name any more");
        }
        let ours = stat.st_uid == rustix::process::geteuid().as_raw();
        match access {
            Access::Shared if self.range.contains(stat.st_uid) => Err("it is a VM's own"),
            Access::Shared if !(ours || stat.st_uid == 0) => Err("it is another user's"),
            Access::Shared if stat.st_mode & 0o022 != 0 => Err("others may write to it"),
            Access::Shared if stat.st_mode & 0o6000 != 0 => Err("it changes who runs it"),
            Access::Shared if stat.st_mode & 0o004 == 0 => {
                Err("VMs may not read it, and what they share is not given away")
            }
            Access::Own if !(ours || stat.st_uid == self.uid) => Err("it is another user's"),
            Access::Own if stat.st_nlink != 1 => Err("it has other names than the VM's"),
            Access::Shared | Access::Own => Ok(()),
        }
    }

    /// Makes an empty file that the VMM may write to, such as its log: Firecracker before 1.14
    /// makes none. Only before the jailer runs.
    ///
    /// # Errors
    /// Where the name is none or there is something.
    pub fn make_file(&self, name: &str) -> Result<(), JailError> {
        self.make(name, FileType::RegularFile)
    }

    /// Makes a FIFO that the VMM may write to, such as for its metrics. Only before the jailer runs.
    ///
    /// # Errors
    /// Where the name is none or there is something.
    pub fn make_fifo(&self, name: &str) -> Result<(), JailError> {
        self.make(name, FileType::Fifo)
    }

    fn make(&self, name: &str, kind: FileType) -> Result<(), JailError> {
        self.check_name(name).map_err(|why| JailError::Refused {
            name: name.to_owned(),
            why,
        })?;
        let path = self.path.join(name);
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(&self.root, name, kind, mode, 0).map_err(at("make", &path))?;
        self.give_named(name).map_err(at("give away", &path))
    }

    /// Listens on a socket that the VMM may connect to, such as for what its guest begins
    /// (`VSOCK_PORT`). Also while the VMM runs.
    ///
    /// # Errors
    /// Where there is something of that name.
    pub fn listen(&self, name: &str) -> Result<UnixListener, JailError> {
        self.check_name(name).map_err(|why| JailError::Refused {
            name: name.to_owned(),
            why,
        })?;
        let path = self.path.join(name);
        // Binding follows no link: a name that is taken stays what it is.
        let short = format!("/proc/self/fd/{}/{name}", self.root.as_raw_fd());
        let listener = UnixListener::bind(short).map_err(at("listen on", &path))?;
        // The VMM may run by now, and have hard links of files that others share beside it.
        let (user, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
        crate::socket::give(&self.root, name, user, group).map_err(at("give away", &path))?;
        Ok(listener)
    }

    fn give(&self, file: &File) -> Result<(), Errno> {
        fchown(
            file,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.uid)),
        )
    }

    fn give_named(&self, name: &str) -> Result<(), Errno> {
        chownat(
            &self.root,
            name,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.uid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }

    /// A socket that the VMM made, to connect to by [`Inside::path`]. `name` is a path in the jail
    /// without a slash at its beginning, such as `run/firecracker.socket`.
    ///
    /// # Errors
    /// [`JailError::Io`] with [`std::io::ErrorKind::NotFound`] while it is not there;
    /// [`JailError::Foreign`] where it is anything but a socket of the VM's own.
    pub fn socket(&self, name: &str) -> Result<Inside, JailError> {
        let (found, stat) = self.look(name)?;
        self.expect(name, &stat, FileType::Socket, self.uid)?;
        Ok(Inside(found))
    }

    /// Opens a file that the VMM writes, to read it: its log, a snapshot. Reading never waits.
    ///
    /// # Errors
    /// As for [`Jail::socket`].
    pub fn open_file(&self, name: &str) -> Result<File, JailError> {
        self.open(name, FileType::RegularFile)
    }

    /// Opens a FIFO that the VMM writes to, to read it. Neither opening nor reading ever waits.
    ///
    /// # Errors
    /// As for [`Jail::socket`].
    pub fn open_fifo(&self, name: &str) -> Result<File, JailError> {
        self.open(name, FileType::Fifo)
    }

    fn open(&self, name: &str, kind: FileType) -> Result<File, JailError> {
        let (found, stat) = self.look(name)?;
        self.expect(name, &stat, kind, self.uid)?;
        self.reopen(name, found)
    }

    /// The number of the VMM's process on the host, once the jailer has written it down. Only a
    /// file that is root's counts, and only the number of a process of this VM's user.
    ///
    /// # Errors
    /// [`JailError::Io`] with [`std::io::ErrorKind::NotFound`] while it is not there;
    /// [`JailError::Foreign`] where it cannot be the jailer's.
    pub fn pid(&self) -> Result<i32, JailError> {
        let name = format!("{}.pid", self.exec_name);
        let foreign = |why| JailError::Foreign {
            name: name.clone(),
            why,
        };
        let (found, stat) = self.look(&name)?;
        self.expect(&name, &stat, FileType::RegularFile, 0)?;
        let mut text = String::new();
        self.reopen(&name, found)?
            .take(LONGEST_PID)
            .read_to_string(&mut text)
            .map_err(at("read", &self.path.join(&name)))?;
        let pid: i32 = text
            .trim()
            .parse()
            .map_err(|_| foreign("it holds no process number"))?;
        let process = PathBuf::from(format!("/proc/{pid}"));
        let stat = rustix::fs::stat(&process).map_err(at("look at", &process))?;
        if stat.st_uid == self.uid {
            Ok(pid)
        } else {
            Err(foreign("the process is another user's"))
        }
    }

    /// What has a name in the jail, without opening it or following anything.
    fn look(&self, name: &str) -> Result<(OwnedFd, Stat), JailError> {
        let path = self.path.join(name);
        let found = openat2(
            &self.root,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH
                | ResolveFlags::NO_SYMLINKS
                | ResolveFlags::NO_MAGICLINKS
                | ResolveFlags::NO_XDEV,
        );
        let found = match found {
            Ok(found) => found,
            Err(Errno::LOOP | Errno::XDEV) => {
                return Err(JailError::Foreign {
                    name: name.to_owned(),
                    why: "a link or a mount is on the way",
                });
            }
            Err(error) => return Err(at("find", &path)(error)),
        };
        let stat = fstat(&found).map_err(at("look at", &path))?;
        Ok((found, stat))
    }

    fn expect(&self, name: &str, stat: &Stat, kind: FileType, uid: u32) -> Result<(), JailError> {
        let why = if FileType::from_raw_mode(stat.st_mode as RawMode) != kind {
            "it is of another kind"
        } else if stat.st_uid != uid {
            "it is another user's"
        } else if kind == FileType::RegularFile && stat.st_nlink != 1 {
            // A VMM can give a second name to a file that was brought in.
            "it has another name"
        } else {
            return Ok(());
        };
        Err(JailError::Foreign {
            name: name.to_owned(),
            why,
        })
    }

    fn reopen(&self, name: &str, found: OwnedFd) -> Result<File, JailError> {
        // The very thing that was looked at, whatever has its name now.
        let path = Inside(found);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat(CWD, path.path(), flags, Mode::empty())
            .map(File::from)
            .map_err(at("open", &self.path.join(name)))
    }
}
