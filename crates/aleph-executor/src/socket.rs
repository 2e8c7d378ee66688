//! Unix sockets by path, however long that is: a socket's address holds 108 bytes, and a root folder
//! may be deeper than that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
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
