//! Assembling the root filesystem, and moving into it.

use super::boot::make_folder;
use super::disk::by_serial;
use crate::failure::{Context, Failure, text};
use aleph_guest_proto::{Root, Upper};
use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// Writes to memory may take this much of it. The rest is left for processes, and nothing is
/// taken before it is written. The number of files has no bound of its own.
const MEMORY_UPPER: &CStr = c"size=75%,nr_inodes=0,mode=0755";

/// Mounts image, upper and overlay, and makes the overlay the root. Gives the upper's root
/// folder where it is on a disk, which has to be written out before the power goes off.
pub(super) fn assemble(root: &Root<'_>) -> Result<Option<OwnedFd>, Failure> {
    for folder in [c"/image", c"/upper", c"/root"] {
        make_folder(folder)?;
    }
    mount_image(root)?;
    let disk = mount_upper(root.upper)?;
    for folder in [c"/upper/root", c"/upper/work"] {
        make_folder(folder)?;
    }
    let layers = c"lowerdir=/image,upperdir=/upper/root,workdir=/upper/work";
    rustix::mount::mount(
        c"overlay",
        c"/root",
        c"overlay",
        MountFlags::empty(),
        layers,
    )
    .context(|| "mounting the overlay over the image".into())?;
    enter().context(|| "moving into the root".into())?;
    Ok(disk)
}

fn mount_image(root: &Root<'_>) -> Result<(), Failure> {
    let (serial, kind) = (text(root.image_serial), text(root.filesystem));
    let device = by_serial(root.image_serial)
        .ok_or(Errno::NODEV)
        .context(|| format!("finding the image's disk (serial {serial})"))?;
    let filesystem = CString::new(root.filesystem).unwrap_or_default();
    // Read-only still means that ext4 would write its journal back.
    let options = (root.filesystem == b"ext4").then_some(c"noload");
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    rustix::mount::mount(
        &device[..],
        c"/image",
        filesystem.as_c_str(),
        flags,
        options,
    )
    .map_err(|errno| {
        let what = match errno {
            Errno::INVAL | Errno::BADMSG | Errno::UCLEAN => {
                format!("the image (serial {serial}) is not of the filesystem {kind}")
            }
            Errno::NODEV => format!("the kernel does not have the image's filesystem {kind}"),
            _ => format!("mounting the image (serial {serial}, {kind})"),
        };
        Failure::new(&what, errno)
    })
}

fn mount_upper(upper: Upper<'_>) -> Result<Option<OwnedFd>, Failure> {
    let flags = MountFlags::NOATIME;
    let Upper::Disk(serial) = upper else {
        rustix::mount::mount(c"tmpfs", c"/upper", c"tmpfs", flags, MEMORY_UPPER)
            .context(|| "mounting memory for writes".into())?;
        return Ok(None);
    };
    let name = text(serial);
    let device = by_serial(serial)
        .ok_or(Errno::NODEV)
        .context(|| format!("finding the disk for writes (serial {name})"))?;
    rustix::mount::mount(&device[..], c"/upper", c"ext4", flags, None).map_err(|errno| {
        let what = match errno {
            Errno::INVAL | Errno::BADMSG | Errno::UCLEAN => {
                format!("the disk for writes (serial {name}) is not of the filesystem ext4")
            }
            _ => format!("mounting the disk for writes (serial {name}, ext4)"),
        };
        Failure::new(&what, errno)
    })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/upper", flags, Mode::empty())
        .map(Some)
        .context(|| "opening the disk for writes".into())
}

/// Takes /proc, /sys and /dev along and makes /root the root. Nothing of the initramfs stays
/// but the agent's own pages, which are in use.
fn enter() -> Result<(), Errno> {
    // Its name goes while /proc still tells it; nothing depends on whether that works.
    if let Ok(agent) = rustix::fs::readlink(c"/proc/self/exe", Vec::new()) {
        let _ = rustix::fs::unlink(agent.as_c_str());
    }
    for (from, to) in [
        (c"/proc", c"/root/proc"),
        (c"/sys", c"/root/sys"),
        (c"/dev", c"/root/dev"),
    ] {
        match rustix::fs::mkdir(to, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        rustix::mount::mount_move(from, to)?;
    }
    rustix::process::chdir(c"/root")?;
    rustix::mount::mount_move(c".", c"/")?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}
