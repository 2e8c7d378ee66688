//! Unix sockets by path, however long that is: a socket's address holds 108 bytes, and a root folder
//! may be deeper than that.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat};
use rustix::process::{Gid, Uid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

/// Connects to a socket.
///
/// # Errors
/// Where there is none, or nobody listens.
pub(crate) async fn connect(path: &Path) -> io::Result<tokio::net::UnixStream> {
    let (_folder, path) = short(path)?;
    tokio::net::UnixStream::connect(path).await
}

/// Makes a socket and listens on it.
///
/// # Errors
/// Where it cannot be made, or is there.
pub(crate) fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let (_folder, path) = short(path)?;
    std::os::unix::net::UnixListener::bind(path)
}

/// Gives a socket of ours to a user, in a folder that is that user's already. What has its name by now may be
/// anything: nothing but the socket is given away, and no link to anything is followed.
///
/// # Errors
/// Where something else has its name.
pub(crate) fn give(folder: impl AsFd, name: &str, user: Uid, group: Gid) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&there)?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    if !is_socket || stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "something else has the name of a socket that was just made",
        ));
    }
    Ok(chownat(
        &there,
        "",
        Some(user),
        Some(group),
        AtFlags::EMPTY_PATH,
    )?)
}

/// The same path by a descriptor of its folder, for as long as that is open.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    let path = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    Ok((folder, path))
}
