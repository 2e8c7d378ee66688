//! What is mounted in a jail, and taking it away.

use super::error::{JailError, at};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Of the thread, so that tests can have mounts of their own.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";
/// How often it is looked for mounts. They are on top of each other at most a few times.
const ROUNDS: usize = 16;

/// Mounts a file on another that is there. Read-only, no program in it runs and no device node
/// counts.
pub(super) fn bind(file: &File, target: &Path, read_only: bool) -> Result<(), JailError> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    mount_bind(&source, target).map_err(at("mount a file on", target))?;
    crate::failpoint::pass("jail.bind", "between");
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    // The flags of a new bind mount are those of its source, whatever is asked for.
    mount_remount(target, flags, c"").map_err(at("restrict the mount on", target))
}

/// Unmounts all that is mounted below a folder, whether or not it is in use. `dir` is the folder
/// at the canonical path `path`.
///
/// # Errors
/// Where something stays.
pub(super) fn unmount_below(dir: impl AsFd, path: &Path) -> Result<(), JailError> {
    for _ in 0..ROUNDS {
        let text = fs::read(MOUNTINFO).map_err(at("read", Path::new(MOUNTINFO)))?;
        let mounted = mounted_below(&text, path);
        if mounted.is_empty() {
            return Ok(());
        }
        for relative in mounted.iter().rev() {
            // No link on the way is followed: the VMM may have put one where a folder was.
            let target = match openat2(
                &dir,
                relative,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            ) {
                Ok(target) => target,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(at("open the mount", &path.join(relative))(error)),
            };
            let by_descriptor = format!("/proc/self/fd/{}", target.as_raw_fd());
            match unmount(&by_descriptor, UnmountFlags::DETACH) {
                // No mount any more, or not on top: the next round tells.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(at("unmount", &path.join(relative))(error)),
            }
        }
    }
    Err(JailError::Stays {
        path: path.to_owned(),
        why: "something stays mounted in it",
    })
}

/// The mount points below a folder, relative to it, in the order in which they were mounted.
fn mounted_below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .filter_map(|field| {
            let point = PathBuf::from(OsString::from_vec(unescaped(field)));
            let below = point.strip_prefix(dir).ok()?;
            (below != Path::new("")).then(|| below.to_owned())
        })
        .collect()
}

/// A field of `mountinfo` as it was before the kernel wrote some bytes as `\` and three octal
/// digits (`proc_pid_mountinfo(5)`).
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_below_a_folder_and_nowhere_else() {
        let text = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            31 27 0:28 / /jail rw - tmpfs tmpfs rw\n\
            32 31 0:28 /a /jail/firecracker/0a/root/kernel ro - tmpfs tmpfs rw\n\
            33 31 0:28 /a /jail/firecracker/0ab/root/kernel ro - tmpfs tmpfs rw\n\
            34 31 0:28 /a /jail/firecracker/0a/root/a\\040b\\134c rw shared:1 - tmpfs x rw\n\
            35 27 0:28 / /jail/firecracker/0a rw - tmpfs tmpfs rw\n\
            broken\n";
        assert_eq!(
            mounted_below(text, Path::new("/jail/firecracker/0a")),
            [Path::new("root/kernel"), Path::new("root/a b\\c")]
        );
        assert_eq!(mounted_below(b"", Path::new("/")), Vec::<PathBuf>::new());
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescaped(b"a\\04"), b"a\\04");
        assert_eq!(unescaped(b"\\999\\777\\012"), b"\\999\\777\n");
    }
}
