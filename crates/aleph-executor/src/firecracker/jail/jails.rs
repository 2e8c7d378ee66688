//! All jails of a node.

use super::argv::{exec_name, root_of};
use super::chroot::Jail;
use super::error::{JailError, at};
use super::users::{UidRange, Users};
use super::{mounts, tree};
use crate::process::Process;
use aleph_types::VmId;
use rustix::fs::{Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstatvfs, openat, openat2};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Beside the folders of programs.
const USERS: &str = "uids";
/// How long a killed process may take to vanish.
const LIMIT: Duration = Duration::from_secs(5);

/// The jails of a node, and who has which user.
#[derive(Debug, Clone)]
pub struct Jails {
    base: PathBuf,
    users: Users,
}

impl Jails {
    /// The jails in this folder, which is made where it is not there. Whoever else uses the folder
    /// has to use the same users, as the nodes of one `--root` do.
    ///
    /// # Errors
    /// Where we are not root, or jails would not work there.
    pub fn open(base: &Path, range: UidRange) -> Result<Self, JailError> {
        if !rustix::process::geteuid().is_root() {
            return Err(JailError::NotRoot);
        }
        private(base)?;
        let base = base.canonicalize().map_err(at("find", base))?;
        check_base(&base)?;
        let users = Users::open(base.join(USERS), range)?;
        Ok(Self { base, users })
    }

    /// The same, where claims of users are kept in a folder of the node's: so no two VMs have one user,
    /// also where some of them were put into jails elsewhere before. The folder of jails has a link to
    /// it, by which [`Jails::open`] finds it, and claims that were in that folder itself move.
    ///
    /// # Errors
    /// As [`Jails::open`], and [`JailError::Base`] where the folder of jails is another node's.
    pub fn open_of_node(base: &Path, claims: &Path, range: UidRange) -> Result<Self, JailError> {
        let link = base.join(USERS);
        if link.is_symlink() && !link.exists() {
            // To where the node's folder was before it was moved.
            fs::remove_file(&link).map_err(at("remove", &link))?;
        }
        let jails = Self::open(base, range)?;
        let claims = Users::open(claims.to_owned(), range)?;
        let claims = claims.take_over(&jails.users)?;
        Ok(Self {
            users: claims,
            ..jails
        })
    }

    /// The folder.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Who has which user.
    #[must_use]
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Makes the jail of a VM for a program, with nothing in it.
    ///
    /// # Errors
    /// [`JailError::Exists`] where the VM has one, [`JailError::UidsExhausted`] where no user is
    /// left. Where it fails, nothing is left.
    pub fn create(&self, vm: VmId, exec_file: &Path) -> Result<Jail, JailError> {
        let name = self.name_of(exec_file)?;
        crate::failpoint::pass("jail.claim", "before");
        let (uid, new) = self.users.try_claim(vm)?;
        if !new {
            return Err(JailError::Exists { vm });
        }
        crate::failpoint::pass("jail.claim", "after");
        let path = root_of(&self.base, &name, &vm.to_string());
        let made = make_root(&path, vm).and_then(|()| self.jail(vm, uid, name, path));
        crate::failpoint::pass("jail.root", "after");
        match made {
            // One without a claim, which a sweep removes.
            Err(error @ JailError::Exists { .. }) => {
                self.users.release(vm)?;
                Err(error)
            }
            Err(error) => {
                self.remove(vm)?;
                Err(error)
            }
            made => made,
        }
    }

    /// The jail that a VM has, if it has one for this program.
    ///
    /// # Errors
    /// Where it cannot be looked at.
    pub fn find(&self, vm: VmId, exec_file: &Path) -> Result<Option<Jail>, JailError> {
        let name = self.name_of(exec_file)?;
        let Some(uid) = self.users.of(vm)? else {
            return Ok(None);
        };
        let path = root_of(&self.base, &name, &vm.to_string());
        match self.jail(vm, uid, name, path) {
            Err(JailError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    fn name_of(&self, exec_file: &Path) -> Result<String, JailError> {
        exec_name(exec_file)
            .map(str::to_owned)
            .map_err(|why| JailError::Refused {
                name: exec_file.display().to_string(),
                why,
            })
    }

    fn jail(
        &self,
        vm: VmId,
        uid: u32,
        exec_name: String,
        path: PathBuf,
    ) -> Result<Jail, JailError> {
        Ok(Jail {
            vm,
            uid,
            range: self.users.range(),
            exec_name,
            root: open_folder(&path).map_err(at("open", &path))?,
            path,
        })
    }

    /// Removes all that there is of a VM's jail, whatever is in it, and gives its user free. The
    /// VMM must have ended. One that is not there is no error; can be called again where it failed.
    ///
    /// Blocks for as long as the removal of what the VMM made takes.
    ///
    /// # Errors
    /// What could not be removed. The user stays claimed then.
    pub fn remove(&self, vm: VmId) -> Result<(), JailError> {
        let base = open_folder(&self.base).map_err(at("open", &self.base))?;
        for program in self.programs()? {
            let name = vm.to_string();
            let parent = self.base.join(&program);
            let path = parent.join(&name);
            let parent_dir = match openat2(
                &base,
                &program,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            ) {
                Err(Errno::NOENT) => continue,
                opened => opened.map_err(at("open", &parent))?,
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&parent_dir, &name, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                opened => {
                    let dir = opened.map_err(at("open", &path))?;
                    mounts::unmount_below(&dir, &path)?;
                }
            }
            crate::failpoint::pass("jail.unmount", "after");
            tree::remove(&parent_dir, &name, &path)?;
            crate::failpoint::pass("jail.remove", "after");
        }
        self.users.release(vm)
    }

    /// All VMs that have something here: a jail, a part of one, or a user.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn vms(&self) -> Result<BTreeSet<VmId>, JailError> {
        let mut vms: BTreeSet<VmId> = self.users.claims()?.into_values().collect();
        for program in self.programs()? {
            vms.extend(
                names_in(&self.base.join(program))?
                    .iter()
                    .filter_map(|name| name.parse::<VmId>().ok()),
            );
        }
        Ok(vms)
    }

    /// Removes the jails of VMs that nobody owns, after their processes, and says which these
    /// were. What cannot be removed is told in the log and left for the next sweep. Nobody may be
    /// making a jail meanwhile for a VM that is not owned yet.
    pub async fn sweep(&self, is_owned: impl Fn(VmId) -> bool) -> Vec<VmId> {
        let vms = self.vms().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for jails that were left over");
            BTreeSet::new()
        });
        let mut swept = Vec::new();
        for vm in vms.into_iter().filter(|vm| !is_owned(*vm)) {
            match self.end_and_remove(vm).await {
                Ok(()) => {
                    tracing::info!(%vm, "removed the jail of a VM without owner");
                    swept.push(vm);
                }
                Err(error) => tracing::warn!(%vm, %error, "a jail could not be removed"),
            }
        }
        swept
    }

    /// Kills whatever runs as a VM's user, and removes its jail.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn end_and_remove(&self, vm: VmId) -> Result<(), JailError> {
        for (uid, who) in self.users.claims()? {
            if who == vm {
                for process in Process::of_user(uid) {
                    let _ = process.kill();
                    let _ = tokio::time::timeout(LIMIT, process.wait()).await;
                }
            }
        }
        let jails = self.clone();
        tokio::task::spawn_blocking(move || jails.remove(vm))
            .await
            .unwrap_or_else(|error| {
                Err(at("remove the jail in", &self.base)(io::Error::other(
                    error,
                )))
            })
    }

    /// Names of the folders with jails.
    fn programs(&self) -> Result<Vec<String>, JailError> {
        let mut names = names_in(&self.base)?;
        names.retain(|name| name != USERS);
        Ok(names)
    }
}

/// Makes the root of a jail, with the folders above it. They are ours until the jailer gives the
/// last away.
fn make_root(path: &Path, vm: VmId) -> Result<(), JailError> {
    let Some(jail) = path.parent() else {
        return Ok(());
    };
    if let Some(program) = jail.parent() {
        private(program)?;
    }
    let one = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    match one(jail) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(JailError::Exists { vm });
        }
        made => made.map_err(at("make", jail))?,
    }
    crate::failpoint::pass("jail.root", "between");
    one(path).map_err(at("make", path))
}

/// The jailer makes device nodes and runs a program in there; and who may write to the folder
/// could lead us anywhere.
fn check_base(base: &Path) -> Result<(), JailError> {
    let bad = |why| JailError::Base {
        path: base.to_owned(),
        why,
    };
    let dir = open_folder(base).map_err(at("open", base))?;
    let flags = fstatvfs(&dir).map_err(at("look at", base))?.f_flag;
    for (flag, why) in [
        (StatVfsMountFlags::RDONLY, "its filesystem is read-only"),
        (StatVfsMountFlags::NODEV, "its filesystem is mounted nodev"),
        (
            StatVfsMountFlags::NOEXEC,
            "its filesystem is mounted noexec",
        ),
    ] {
        if flags.contains(flag) {
            return Err(bad(why));
        }
    }
    let mut above = Some(base);
    while let Some(dir) = above {
        let meta = fs::symlink_metadata(dir).map_err(at("look at", dir))?;
        let sticky = meta.mode() & 0o1000 != 0 && dir != base;
        if meta.uid() != 0 || (meta.mode() & 0o022 != 0 && !sticky) {
            return Err(bad("others than root may change a folder on the way to it"));
        }
        above = dir.parent();
    }
    let meta = fs::symlink_metadata(base).map_err(at("look at", base))?;
    if meta.mode() & 0o077 == 0 {
        Ok(())
    } else {
        Err(bad("it is open to others than root"))
    }
}

fn private(dir: &Path) -> Result<(), JailError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(at("make", dir))
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn names_in(dir: &Path) -> Result<Vec<String>, JailError> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries.map_err(at("read", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(at("read", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}
