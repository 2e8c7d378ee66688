//! The first mounts, and standard streams.

use super::console;
use crate::failure::{Context, Failure};
use alloc::format;
use rustix::fd::IntoRawFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// Mounts what finding the channel takes, and makes sure that standard streams are open.
pub(super) fn mount_basics() -> Result<(), Failure> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mounts = [
        (c"/proc", c"proc", quiet | MountFlags::NODEV),
        (c"/sys", c"sysfs", quiet | MountFlags::NODEV),
        (c"/dev", c"devtmpfs", MountFlags::NOSUID),
    ];
    for (path, kind, flags) in mounts {
        make_folder(path)?;
        match rustix::mount::mount(c"none", path, kind, flags, None) {
            // A kernel may mount /dev by itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => {
                open_console();
                return Err(errno).context(|| format!("mounting {}", kind.to_string_lossy()));
            }
        }
    }
    open_console();
    Ok(())
}

/// Makes a folder in the initramfs, where it is not there yet.
pub(super) fn make_folder(path: &core::ffi::CStr) -> Result<(), Failure> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).context(|| format!("making {}", path.to_string_lossy())),
    }
}

/// Opens standard streams on the console where the kernel did not: it does so only where the
/// initramfs has the device. They are the lowest descriptors, and stay open for good.
fn open_console() {
    let open = |path| rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    for _stream in 0..3 {
        if console::has_streams() {
            break;
        }
        // A guest without even the second can do no more than go on.
        if let Ok(fd) = open(c"/dev/console").or_else(|_| open(c"/dev/null")) {
            let _ = fd.into_raw_fd();
        }
    }
}
