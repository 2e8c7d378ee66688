//! Where a Firecracker lives: the folder with its sockets and what it writes, and the names under
//! which it sees files that the node opened.
//!
//! | | in a jail | in the open |
//! | --- | --- | --- |
//! | what it sees as `/NAME`, `/proc/self/fd/3/NAME` | the jail's root | a folder of its user's |
//! | a file of the node's | comes into the jail | is a descriptor, which a link `NAME` in the folder leads to |
//! | one that comes late | comes into the jail, by a link | comes into [`AheadLaunch::folder`], which the link leads into |
//! | who starts it | the jailer, as root | the node, as its user |
//!
//! In both the paths that a snapshot names are the same for each VM, whether its process was launched
//! ahead or not.
//!
//! # Failure cases
//! A file that it may not use is refused before anything is started, with its name. What is in the way
//! of a new VM was left by a crash: the sweep removes it. A file that comes late comes by a hard link, or
//! not at all: what is on another filesystem is refused.
//!
//! [`AheadLaunch::folder`]: crate::hypervisor::AheadLaunch::folder

use super::home::{FOLDER, Home, LateFolder, Use, check, name, seen_late};
use super::jail::{JailError, JailerCgroup, JailerCommand, Jails, ResourceLimits, limits};
use super::nic::Owner;
use super::program::Program;
use crate::drivers::signature::Launched;
use crate::hypervisor::LaunchError;
use crate::process::{FIRST_FILE, path_of_file};
use crate::tail::Tail;
use aleph_types::{MiB, VmId};
use rustix::fs::{CWD, FileType, Mode};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where VMMs are put.
#[derive(Debug, Clone)]
pub(super) enum Housing {
    /// Each into a jail, by this jailer.
    Jailed { jails: Jails, jailer: PathBuf },
    /// Each into a folder of its own.
    Open,
}

/// The place of a VMM that is about to be started.
#[derive(Debug)]
pub(super) struct Quarters {
    pub(super) home: Home,
    /// What it is handed, in the open.
    files: Vec<OwnedFd>,
    user: Option<u32>,
    /// How long each disk is that it writes to, in bytes.
    own: Vec<u64>,
}

impl Quarters {
    /// Makes them for a VM, whose runtime folder is there and whose place is ours: what is in the
    /// way was left by a crash, and goes. Blocks.
    pub(super) fn make(
        housing: &Housing,
        vm: VmId,
        run_dir: &Path,
        program: &Path,
        user: Option<u32>,
    ) -> Result<Self, LaunchError> {
        match housing {
            Housing::Jailed { jails, .. } => {
                let jail = match jails.create(vm, program) {
                    Err(JailError::Exists { .. }) => {
                        tracing::warn!(%vm, "a jail was left in the way of a new one");
                        let runtime = tokio::runtime::Handle::current();
                        runtime.block_on(jails.end_and_remove(vm))?;
                        jails.create(vm, program)
                    }
                    made => made,
                };
                Ok(Self {
                    home: Home::Jailed {
                        jail: Box::new(jail?),
                        jails: jails.clone(),
                    },
                    files: Vec::new(),
                    user: None,
                    own: Vec::new(),
                })
            }
            Housing::Open => {
                let made = Self::make_open(run_dir, user);
                made.map_err(|source| LaunchError::Io {
                    what: "make the VMM's folder".into(),
                    source,
                })
            }
        }
    }

    fn make_open(run_dir: &Path, user: Option<u32>) -> io::Result<Self> {
        let path = run_dir.join(FOLDER);
        let make = || DirBuilder::new().mode(0o700).create(&path);
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&path)?;
                make()?;
            }
            made => made?,
        }
        let mut quarters = Self {
            home: Home::open(run_dir)?,
            files: Vec::new(),
            user,
            own: Vec::new(),
        };
        quarters.give(&path)?;
        if let Home::Open { folder, .. } = &quarters.home {
            quarters.files.push(folder.try_clone()?.into());
        }
        Ok(quarters)
    }

    /// What is written down of them.
    pub(super) fn launched(&self, program: &Program) -> Launched {
        Launched {
            program: program.path.clone(),
            version: program.version,
            jails: match &self.home {
                Home::Jailed { jails, .. } => Some(jails.base().to_owned()),
                Home::Open { .. } => None,
            },
        }
    }

    /// Who the VMM runs as; `None` where that is who we are.
    pub(super) fn user(&self) -> Option<u32> {
        match &self.home {
            Home::Jailed { jail, .. } => Some(jail.uid()),
            Home::Open { .. } => self.user,
        }
    }

    /// Whose the VM's network devices are to be.
    pub(super) fn owner(&self, vm: VmId) -> Owner {
        Owner {
            vm,
            user: self.user(),
            is_jailed: matches!(self.home, Home::Jailed { .. }),
        }
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some(user) => std::os::unix::fs::chown(path, Some(user), Some(user)),
            None => Ok(()),
        }
    }

    /// Lets the VMM use a file; gives the path by which it opens it.
    pub(super) fn bring(&mut self, name: &str, file: File, how: Use) -> io::Result<PathBuf> {
        if how == Use::Own {
            self.own.push(file.metadata()?.len());
        }
        if let Home::Jailed { jail, .. } = &self.home {
            jail.bring_in(name, &file, how.access())?;
            return Ok(self.home.seen(name));
        }
        check(self.user, name, &file, how)?;
        let to = self.hand(file.into())?;
        self.lead(name, &to)
    }

    /// Has a name in the open lead to somewhere else; gives its path.
    fn lead(&self, name: &str, to: &Path) -> io::Result<PathBuf> {
        if let Home::Open { path, .. } = &self.home {
            std::os::unix::fs::symlink(to, path.join(name))?;
        }
        Ok(self.home.seen(name))
    }

    /// Prepares for files that come late under these names: they are shown in this folder, where it is
    /// in the open. Before anything else is handed over.
    pub(super) fn expect_late<'a>(
        &mut self,
        to: OwnedFd,
        names: impl Iterator<Item = &'a str>,
    ) -> io::Result<()> {
        let user = self.user;
        let Home::Open { late, .. } = &mut self.home else {
            return Ok(());
        };
        *late = Some(LateFolder {
            folder: to.try_clone()?,
            user,
        });
        self.hand(to)?;
        for name in names {
            self.lead(name, &seen_late(name))?;
        }
        Ok(())
    }

    fn hand(&mut self, file: OwnedFd) -> io::Result<PathBuf> {
        let number = i32::try_from(self.files.len())
            .ok()
            .and_then(|n| FIRST_FILE.checked_add(n))
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.files.push(file);
        Ok(path_of_file(number).into())
    }

    /// Makes a file of the VMM's, and opens it.
    pub(super) fn make_file(&self, name: &str) -> io::Result<File> {
        let path = match &self.home {
            Home::Jailed { jail, .. } => {
                jail.make_file(name)?;
                jail.root().join(name)
            }
            Home::Open { path, .. } => {
                let path = path.join(name);
                File::create_new(&path)?;
                self.give(&path)?;
                path
            }
        };
        // Nobody else can have been in the folder yet.
        File::options().read(true).write(true).open(path)
    }

    /// What the VMM says: its standard error, and its log by that path.
    pub(super) fn log(&mut self) -> io::Result<(Tail, OwnedFd, PathBuf)> {
        let (mut tail, stderr) = Tail::new()?;
        let log = match &self.home {
            Home::Jailed { jail, .. } => {
                jail.make_fifo(name::LOG)?;
                tail.read_too(self.home.pipe(name::LOG)?);
                self.home.seen(name::LOG)
            }
            Home::Open { .. } => {
                if let Some(user) = self.user {
                    // A pipe is opened again by who owns it.
                    std::os::unix::fs::fchown(&stderr, Some(user), Some(user))?;
                }
                self.hand(stderr.try_clone()?)?
            }
        };
        Ok((tail, stderr, log))
    }

    /// The pipe that the VMM writes its figures to, and the path by which it opens that.
    pub(super) fn metrics(&mut self) -> io::Result<(File, PathBuf)> {
        match &self.home {
            Home::Jailed { jail, .. } => jail.make_fifo(name::METRICS)?,
            Home::Open { path, .. } => {
                let path = path.join(name::METRICS);
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0)?;
                self.give(&path)?;
            }
        }
        Ok((
            self.home.pipe(name::METRICS)?,
            self.home.seen(name::METRICS),
        ))
    }

    /// How long a file it may write whose guest has so much memory.
    pub(super) fn longest_file(&self, memory: MiB) -> u64 {
        limits::longest_file(memory, self.own.iter().copied())
    }

    /// The program that starts it, with these arguments and limits, and what it is handed; and who
    /// starts it.
    pub(super) fn command(
        self,
        housing: &Housing,
        program: &Path,
        arguments: &[String],
        limits: ResourceLimits,
    ) -> Result<(Command, Home, Vec<OwnedFd>, Option<u32>), LaunchError> {
        let mut command;
        match (&self.home, housing) {
            (Home::Jailed { jail, jails }, Housing::Jailed { jailer, .. }) => {
                let id = jail.vm().to_string();
                let argv = JailerCommand {
                    id: &id,
                    exec_file: program,
                    uid: jail.uid(),
                    gid: jail.uid(),
                    chroot_base: jails.base(),
                    netns: None,
                    new_pid_ns: false,
                    daemonize: false,
                    // It is started in the VM's own group.
                    cgroup: JailerCgroup::Inherited,
                    limits,
                    arguments,
                }
                .argv();
                let argv = argv.map_err(|invalid| LaunchError::Io {
                    what: "start the jailer".into(),
                    source: io::Error::new(io::ErrorKind::InvalidInput, invalid),
                })?;
                command = Command::new(jailer);
                command.args(argv);
            }
            _ => {
                command = Command::new(program);
                command.args(arguments);
            }
        }
        Ok((command, self.home, self.files, self.user))
    }
}
