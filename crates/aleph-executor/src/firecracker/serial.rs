//! A guest's serial console: Firecracker's standard output.
//!
//! It is a pipe with a name, so that a node that starts again finds it, and it is open for reading in
//! the VMM itself: a guest that writes while nobody reads loses what it writes, and no time.

use crate::hypervisor::socket_name;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

/// The pipe's name in the VM's runtime folder.
const PIPE: &str = "console.pipe";

/// How long before another client is waited for, where one could not be had.
const AGAIN: Duration = Duration::from_millis(500);

/// Makes the pipe; gives the end for the VMM.
pub(super) fn make(run_dir: &Path) -> io::Result<OwnedFd> {
    let path = run_dir.join(PIPE);
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(&path, flags, Mode::empty())?)
}

/// What passes it on, until this is dropped.
#[derive(Debug)]
pub(super) struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Passes on what the guest writes to whoever connects, one after another.
pub(super) fn serve(
    run_dir: &Path,
    listener: std::os::unix::net::UnixListener,
) -> io::Result<Serving> {
    let mut pipe = pipe::OpenOptions::new().open_receiver(run_dir.join(PIPE))?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let serving = tokio::spawn(async move {
        let mut chunk = vec![0; 4096];
        loop {
            let Ok((mut client, _)) = listener.accept().await else {
                // Such as for want of descriptors: there will be some.
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
                if client.write_all(&chunk[..n]).await.is_err() {
                    break;
                }
            }
        }
    });
    Ok(Serving(serving.abort_handle()))
}

/// The same for a VMM that an earlier process of this node started.
pub(super) fn serve_again(run_dir: &Path) -> io::Result<Serving> {
    let socket = run_dir.join(socket_name::CONSOLE);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    serve(run_dir, crate::socket::listen(&socket)?)
}
