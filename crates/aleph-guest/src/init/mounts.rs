//! Filesystems beside the root.

use super::disk::by_serial;
use crate::failure::{Context, Failure, text};
use crate::file::make_folders;
use aleph_guest_proto::Mount;
use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// Mounts a filesystem, from its disk where it has one.
pub(super) fn mount(mount: &Mount<'_>) -> Result<(), Failure> {
    let (kind, target) = (text(mount.filesystem), text(mount.target));
    make_folders(mount.target).context(|| format!("making {target}"))?;
    let source: Vec<u8> = if mount.serial.is_empty() {
        mount.filesystem.to_vec()
    } else {
        let serial = text(mount.serial);
        by_serial(mount.serial)
            .ok_or(Errno::NODEV)
            .context(|| format!("finding the disk of {target} (serial {serial})"))?
    };
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    if mount.read_only {
        flags |= MountFlags::RDONLY;
    }
    // The protocol's texts have no NUL.
    let c = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
    let (filesystem, options) = (c(mount.filesystem), c(mount.options));
    let options = (!mount.options.is_empty()).then_some(options.as_c_str());
    rustix::mount::mount(
        &source[..],
        mount.target,
        filesystem.as_c_str(),
        flags,
        options,
    )
    .context(|| format!("mounting {target} ({kind})"))
}

/// The root folder of a filesystem that was just mounted, to write it out by when the guest ends,
/// whatever is mounted over it by then.
pub(super) fn root_of(mount: &Mount<'_>) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(mount.target, flags, Mode::empty())
        .context(|| format!("opening {}", text(mount.target)))
}
