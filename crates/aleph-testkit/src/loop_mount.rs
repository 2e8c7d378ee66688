//! A filesystem in a file, mounted by this host's kernel where nobody else sees it: for what volumes do on
//! filesystems that the folder of tests is not on, and for what a guest's kernel leaves on a disk.
//!
//! It is mounted in a mount namespace of the thread that makes it, which the threads and programs that
//! this one starts from then on are in, too. The loop device ends with the mount (`LO_FLAGS_AUTOCLEAR`),
//! and the mount with this or, where the process is killed, with its namespace. The file has no need of a name.
#![allow(unsafe_code)]

use crate::debian::run;
use aleph_types::MiB;
use anyhow::{Context, Result};
use rustix::fs::statvfs;
use rustix::thread::UnshareFlags;
use std::cell::Cell;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What makes and looks into an XFS, of the package `xfsprogs`.
const MAKES_XFS: &str = "/usr/sbin/mkfs.xfs";

/// A mounted filesystem.
#[derive(Debug)]
pub struct LoopMount {
    folder: TempDir,
}

impl LoopMount {
    /// What this host lacks for a mounted XFS; `None` where it has all.
    #[must_use]
    pub fn lacking() -> Option<&'static str> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root, to mount");
        }
        if !Path::new(MAKES_XFS).exists() {
            return Some("needs mkfs.xfs");
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("needs loop devices");
        }
        // Where it is a module, a mount would load it.
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let has_xfs = known.lines().any(|line| line.trim() == "xfs")
            || Command::new("modprobe")
                .args(["-q", "xfs"])
                .status()
                .is_ok_and(|status| status.success());
        if !has_xfs {
            return Some("needs XFS in the host's kernel");
        }
        // Not in a container, whose root may not. A namespace of a thread's own ends with that.
        let may = std::thread::spawn(|| own_namespace().is_ok()).join();
        (!matches!(may, Ok(true))).then_some("needs leave to mount")
    }

    /// An XFS of this size, whose files can share blocks, with nothing in it. The smallest is of 300 MiB.
    ///
    /// # Errors
    /// Where it cannot be made or mounted.
    pub fn xfs(size: MiB) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let disk = folder.path().join("disk");
        File::create(&disk)?.set_len(size.bytes())?;
        run(Command::new(MAKES_XFS)
            .args(["-q", "-K", "-m", "reflink=1"])
            .arg(&disk))?;
        // The device has it open.
        let mounted = Self::of(&disk)?;
        fs::remove_file(disk)?;
        Ok(mounted)
    }

    /// The filesystem in a file.
    ///
    /// # Errors
    /// Where there is none that the host's kernel mounts.
    pub fn of(disk: &Path) -> Result<Self> {
        own_namespace().context("cannot make a mount namespace")?;
        // What is mounted here from now on is seen nowhere else.
        run(Command::new("mount").args(["--make-rprivate", "/"]))?;
        let folder = tempfile::tempdir()?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([disk, folder.path()]))?;
        Ok(Self { folder })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// How many bytes are free, once all that was written has its place.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn free(&self) -> Result<u64> {
        rustix::fs::syncfs(File::open(self.path())?)?;
        let stat = statvfs(self.path())?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Ends it as a loss of power does: what was made durable is in the log, and nobody has replayed that.
    ///
    /// # Errors
    /// Where it is not an XFS.
    pub fn lose_power(self) -> Result<()> {
        run(Command::new("xfs_io")
            .args(["-x", "-c", "shutdown -f"])
            .arg(self.path()))
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        let ended = run(Command::new("umount").arg(self.path()));
        if ended.is_err() {
            // Somebody has a file open: it goes with that.
            let _ = run(Command::new("umount").arg("--lazy").arg(self.path()));
        }
    }
}

/// Has this thread be in a mount namespace of its own, from then on.
fn own_namespace() -> rustix::io::Result<()> {
    thread_local! {
        static IS_OWN: Cell<bool> = const { Cell::new(false) };
    }
    if !IS_OWN.get() {
        // SAFETY: no descriptor depends on the mount namespace, and this thread alone is in the new one.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
        IS_OWN.set(true);
    }
    Ok(())
}
