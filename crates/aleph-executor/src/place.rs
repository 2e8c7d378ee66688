//! All that the host holds for one VM beside its process: folders, scratch disk, sockets,
//! cgroup.
//!
//! Every object's name derives from the [`VmId`], and the folder with the lock in it is made
//! first: it is the record of the intent, from which a sweep finds whatever follows. The steps
//! are made in order, each can be made again, and removal undoes all of them in the reverse
//! order whether they were made or not:
//!
//! | step | made | undone |
//! | --- | --- | --- |
//! | 1 | `STATE/vms/ID/`, `lock` in it held | folder removed, last |
//! | 2 | `RUN/vms/ID/` | folder removed |
//! | 3 | the three sockets in it | with the folder |
//! | 4 | cgroup `aleph-NODE/ID` | killed and removed |
//! | 5 | scratch disk in the state folder | with the folder |
//! | 6 | `vmm.json`: which process the VMM is | with the folder |
//!
//! The driver has its own in the runtime folder, from before it starts the VMM
//! ([`Signature`](crate::drivers::Signature)), and that of Firecracker a jail elsewhere, which goes before
//! step 6 is undone.
//!
//! One whose process is launched ahead of need has, before step 6, the folder `late` in its state
//! folder.

use crate::cgroup::{Cgroup, CgroupTree, Limits};
use crate::hypervisor::{Sockets, socket_name};
use crate::paths::Paths;
use crate::process::Identity;
use aleph_types::{MiB, VmId};
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom, flock};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LOCK: &str = "lock";
const RECORD: &str = "vmm.json";
/// Marks the place of a VM that outlives its node's process.
const KEPT: &str = "kept";
const SCRATCH: &str = "scratch.img";
/// Where a VMM that was launched ahead finds its files.
const LATE: &str = "late";
/// How long the group of a VMM that has ended may take to become empty.
const EMPTIES: Duration = Duration::from_secs(10);
/// Held shared while a VM's folder and its lock come to be or go, exclusively while a sweep
/// looks: so a sweep never takes a half-made or half-removed VM for an orphan.
const BIRTH_LOCK: &str = ".birth.lock";

/// A step of making a place that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct PlaceError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl PlaceError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }

    /// Whether this object is in use.
    fn is_busy(&self, path: &Path) -> bool {
        self.path == path && self.source.kind() == io::ErrorKind::ResourceBusy
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    move |source| PlaceError {
        what,
        path: path.to_owned(),
        source,
    }
}

/// One VM's objects, held by this process.
#[derive(Debug)]
pub struct Place {
    vm: VmId,
    state: PathBuf,
    run: PathBuf,
    cgroup: Option<Cgroup>,
    _lock: File,
}

impl Place {
    /// A place for a new VM, under an id that no other VM of this node has: step 1.
    ///
    /// # Errors
    /// Where a folder cannot be made.
    pub fn create(paths: &Paths, cgroups: Option<&CgroupTree>) -> Result<Self, PlaceError> {
        loop {
            match Self::create_for(paths, cgroups, VmId::random(), false) {
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
                place => return place,
            }
        }
    }

    /// The place of a VM whose id its owner chose. `kept`: only a daemon of this node may ever
    /// remove it as an orphan, since its journal knows more.
    ///
    /// # Errors
    /// Where a folder cannot be made, or a VM has this id.
    pub fn create_for(
        paths: &Paths,
        cgroups: Option<&CgroupTree>,
        vm: VmId,
        kept: bool,
    ) -> Result<Self, PlaceError> {
        private_dir(&paths.vms())?;
        private_dir(&paths.run().join("vms"))?;
        let _birth = birth_lock(&paths.vms(), FlockOperation::LockShared)?;
        let state = paths.vm_state(vm);
        DirBuilder::new()
            .mode(0o700)
            .create(&state)
            .map_err(at("make", &state))?;
        let made = lock_of(&state).and_then(|lock| {
            if kept {
                let path = state.join(KEPT);
                File::create(&path).map_err(at("make", &path))?;
            }
            Ok(Self {
                vm,
                run: paths.vm_run(vm),
                cgroup: cgroups.map(|tree| tree.group(&vm.to_string())),
                state: state.clone(),
                _lock: lock,
            })
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&state);
        }
        made
    }

    /// Whether only a daemon of its node may remove a VM's place as an orphan.
    #[must_use]
    pub fn is_kept(paths: &Paths, vm: VmId) -> bool {
        paths.vm_state(vm).join(KEPT).exists()
    }

    /// The place of a VM whose owner is gone; `None` while another process holds it.
    ///
    /// # Errors
    /// Where its folder cannot be looked at.
    pub fn orphan(
        paths: &Paths,
        cgroups: Option<&CgroupTree>,
        vm: VmId,
    ) -> Result<Option<Self>, PlaceError> {
        let state = paths.vm_state(vm);
        // A crash may have left the other objects and not this folder.
        private_dir(&state)?;
        let path = state.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.map_err(io::Error::from).map_err(at("lock", &path))?,
        }
        Ok(Some(Self {
            vm,
            run: paths.vm_run(vm),
            cgroup: cgroups.map(|tree| tree.group(&vm.to_string())),
            state,
            _lock: lock,
        }))
    }

    /// Which VM.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// The folder with its sockets.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The folder with what it keeps on disk.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Its cgroup, where the host has them.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Makes its runtime folder and sockets: steps 2 and 3.
    ///
    /// # Errors
    /// Where one cannot be made.
    pub fn listen(&self) -> Result<Sockets, PlaceError> {
        private_dir(&self.run)?;
        let listen = |name: &str| {
            let path = self.run.join(name);
            let _ = fs::remove_file(&path);
            crate::socket::listen(&path).map_err(at("listen on", &path))
        };
        Ok(Sockets {
            control: listen(socket_name::CONTROL)?,
            agent: listen(socket_name::AGENT)?,
            console: listen(socket_name::CONSOLE)?,
        })
    }

    /// Connects to one of its sockets.
    ///
    /// # Errors
    /// Where nobody listens.
    pub async fn connect(&self, name: &str) -> io::Result<tokio::net::UnixStream> {
        crate::socket::connect(&self.run.join(name)).await
    }

    /// Makes its cgroup, where the host has them: step 4.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make_cgroup(&self, limits: &Limits) -> Result<Option<Cgroup>, PlaceError> {
        let Some(cgroup) = &self.cgroup else {
            return Ok(None);
        };
        cgroup.create().map_err(at("make", cgroup.path()))?;
        cgroup
            .limit(limits, &self.state)
            .map_err(at("limit", cgroup.path()))?;
        Ok(Some(cgroup.clone()))
    }

    /// Makes its scratch disk, an empty ext4 filesystem in a sparse file, and opens it: step 5.
    /// Blocks for some 20 ms.
    ///
    /// # Errors
    /// Where the disk is full, or `mke2fs` is missing or fails.
    pub fn make_scratch(&self, size: MiB) -> Result<File, PlaceError> {
        let path = self.state.join(SCRATCH);
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(at("make", &path))?;
        file.set_len(size.bytes()).map_err(at("size", &path))?;
        // No journal: the disk dies with its VM.
        let output = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
            .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .map_err(at("run mke2fs on", &path))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(at("run mke2fs on", &path)(io::Error::other(said)));
        }
        Ok(file)
    }

    /// Makes its scratch disk a copy of another, and opens it: step 5 of a VM that goes on from a
    /// snapshot. Blocks for as long as the copying takes.
    ///
    /// # Errors
    /// Where the disk is full, or the original cannot be read.
    pub fn copy_scratch(&self, original: &Path) -> Result<File, PlaceError> {
        let path = self.state.join(SCRATCH);
        let from = File::open(original).map_err(at("open", original))?;
        copy_sparse(&from, &path).map_err(at("copy the snapshot's disk to", &path))
    }

    /// Makes the folder in which a VMM that is launched ahead of need finds its files, and opens it
    /// (`O_PATH`): whoever has this descriptor may open files in it by name. The folders above it
    /// keep everybody else out, and whoever has it from going up.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn make_late(&self) -> Result<OwnedFd, PlaceError> {
        let path = self.state.join(LATE);
        private_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(at("open", &path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(at("open", &path))
    }

    /// Records which process the VMM is: step 6. A record that is not there means that none
    /// was started, or that the node died in between; the cgroup tells then.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn record(&self, vmm: &Identity) -> Result<(), PlaceError> {
        let path = self.state.join(RECORD);
        let temporary = self.state.join("vmm.json.tmp");
        let json = serde_json::to_vec(vmm)
            .map_err(io::Error::from)
            .map_err(at("write", &path))?;
        fs::write(&temporary, json)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(at("write", &path))
    }

    /// The VMM that was recorded.
    #[must_use]
    pub fn recorded(&self) -> Option<Identity> {
        serde_json::from_slice(&fs::read(self.state.join(RECORD)).ok()?).ok()
    }

    /// A step of undoing it that failed.
    pub(crate) fn error(&self, what: &'static str, source: io::Error) -> PlaceError {
        at(what, &self.state)(source)
    }

    /// The same once its group is empty, which is a moment after its VMM is seen to end; what else
    /// is in there is killed. Blocks for ten seconds at most.
    ///
    /// # Errors
    /// As [`Place::remove`].
    pub fn remove_emptied(&self) -> Result<(), PlaceError> {
        let began = Instant::now();
        loop {
            match (self.remove(), &self.cgroup) {
                // That it was refused counts, and not what is in the group: the last process may end
                // between the two.
                (Err(error), Some(cgroup))
                    if error.is_busy(cgroup.path()) && began.elapsed() < EMPTIES =>
                {
                    let _ = cgroup.kill();
                    std::thread::sleep(Duration::from_millis(10));
                }
                (removed, _) => return removed,
            }
        }
    }

    /// Removes all of it. Can be called again where it failed; the VMM must have ended.
    ///
    /// # Errors
    /// The first object that could not be removed.
    pub fn remove(&self) -> Result<(), PlaceError> {
        // A sweep must not find the folder without the lock in it, which goes first.
        let _removal = match self.state.parent() {
            Some(vms) => Some(birth_lock(vms, FlockOperation::LockShared)?),
            None => None,
        };
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove().map_err(at("remove", cgroup.path()))?;
        }
        for path in [&self.run, &self.state] {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(at("remove", path))?,
            }
        }
        Ok(())
    }
}

/// The path of a VM's scratch disk.
pub(crate) fn scratch(paths: &Paths, vm: VmId) -> PathBuf {
    paths.vm_state(vm).join(SCRATCH)
}

/// Copies a file to a new one, holes as holes; where the filesystem can, both share their blocks.
///
/// # Errors
/// Where one cannot be read, or the other be written.
pub(crate) fn copy_sparse(from: &File, to: &Path) -> io::Result<File> {
    let copy = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(to)?;
    fill_sparse(from, &copy)?;
    Ok(copy)
}

/// Copies a file to an empty one, or to a block device that has nothing but zeros.
///
/// # Errors
/// As [`copy_sparse`].
pub(crate) fn fill_sparse(from: &File, copy: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(copy, from).is_ok() {
        return Ok(());
    }
    // The end, not the metadata: a block device has no size there.
    let length = rustix::fs::seek(from, SeekFrom::End(0))?;
    if copy.metadata()?.len() < length && copy.metadata()?.is_file() {
        copy.set_len(length)?;
    }
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(at) => at,
            // Nothing but a hole follows.
            Err(rustix::io::Errno::NXIO) => break,
            // A block device knows no holes.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(from, SeekFrom::Hole(at)) {
            Err(rustix::io::Errno::INVAL) => length,
            end => end?.min(length),
        };
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            let (mut read, mut written) = (at, at);
            let copied = match rustix::fs::copy_file_range(
                from,
                Some(&mut read),
                copy,
                Some(&mut written),
                part,
            ) {
                // Filesystems of different kinds, or a block device (copy_file_range(2)).
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL) => {
                    let copied = copy_piece(from, copy, at, part)?;
                    read = at + copied as u64;
                    copied
                }
                copied => copied?,
            };
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at = read;
        }
    }
    Ok(())
}

/// Copies what one read gives of `most` bytes at a place.
fn copy_piece(from: &File, to: &File, at: u64, most: usize) -> io::Result<usize> {
    let mut piece = vec![0; most.min(1 << 20)];
    let read = from.read_at(&mut piece, at)?;
    to.write_all_at(&piece[..read], at)?;
    Ok(read)
}

/// The lock that keeps births and removals apart from a sweep.
///
/// # Errors
/// Where the lock file cannot be opened.
pub(crate) fn birth_lock(vms: &Path, how: FlockOperation) -> Result<File, PlaceError> {
    let path = vms.join(BIRTH_LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(at("open", &path))?;
    flock(&file, how)
        .map_err(io::Error::from)
        .map_err(at("lock", &path))?;
    Ok(file)
}

fn lock_of(state: &Path) -> Result<File, PlaceError> {
    let path = state.join(LOCK);
    let lock = File::create(&path).map_err(at("make", &path))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(io::Error::from)
        .map_err(at("lock", &path))?;
    Ok(lock)
}

/// Makes a folder that only we may enter, with those above it.
fn private_dir(path: &Path) -> Result<(), PlaceError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at("make", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_same_bytes_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let original = File::create_new(dir.path().join("original")).unwrap();
        original.set_len(64 << 20).unwrap();
        original.write_all_at(b"first", 0).unwrap();
        original.write_all_at(b"within", (33 << 20) + 7).unwrap();
        let original = File::open(dir.path().join("original")).unwrap();
        let copy = copy_sparse(&original, &dir.path().join("copy")).unwrap();
        let meta = copy.metadata().unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        for (at, wanted) in [(0, &b"first\0"[..]), ((33 << 20) + 6, b"\0within\0")] {
            let mut found = vec![1; wanted.len()];
            copy.read_exact_at(&mut found, at).unwrap();
            assert_eq!(found, wanted);
        }
    }
}
