//! A file on its way in.

use crate::failure::{Context, Failure, text};
use aleph_guest_proto::{self as proto, ReceiveWindow};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

/// A file that is written under a name of its own in the folder of the file that it will be. It
/// takes that file's name when it is whole, and goes away when it never is.
#[derive(Debug)]
pub(crate) struct Put {
    file: OwnedFd,
    path: Vec<u8>,
    temporary: Vec<u8>,
    mode: Mode,
    uid: u32,
    gid: u32,
    window: ReceiveWindow,
    is_whole: bool,
}

impl Put {
    /// Makes the file, on this stream.
    pub(crate) fn create(stream: u32, put: &proto::Put<'_>) -> Result<Self, Failure> {
        let folder = put
            .path
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(0, |at| at + 1);
        let mut temporary = put.path[..folder].to_vec();
        temporary.extend_from_slice(format!(".aleph-put-{stream}").as_bytes());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&temporary[..], flags, Mode::RUSR | Mode::WUSR);
        let file = match open() {
            // Left by a guest that was cut off while writing to a disk.
            Err(Errno::EXIST) => {
                let _ = rustix::fs::unlink(&temporary[..]);
                open()
            }
            other => other,
        };
        let file = file.context(|| writing(put.path))?;
        Ok(Self {
            file,
            path: put.path.to_vec(),
            temporary,
            mode: Mode::from_raw_mode(u32::from(put.mode)),
            uid: put.uid,
            gid: put.gid,
            window: ReceiveWindow::default(),
            is_whole: false,
        })
    }

    /// Counts bytes from the host against the window.
    pub(crate) fn receive(&mut self, n: usize) -> Result<(), Failure> {
        self.window.received(n).map_err(Failure::violation)
    }

    /// Writes bytes, and gives the credit to return.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<Option<u32>, Failure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| writing(&self.path)),
            }
        }
        Ok(self.window.passed_on(bytes.len()))
    }

    /// Gives the file its owner, mode and name. The owner comes first, since changing it takes
    /// set-user-id bits away.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::fchown(&self.file, Some(uid), Some(gid))
            .and_then(|()| rustix::fs::fchmod(&self.file, self.mode))
            .and_then(|()| rustix::fs::rename(&self.temporary[..], &self.path[..]))
            .context(|| writing(&self.path))?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if !self.is_whole {
            // It may be gone with its folder.
            let _ = rustix::fs::unlink(&self.temporary[..]);
        }
    }
}

fn writing(path: &[u8]) -> String {
    format!("writing {}", text(path))
}
