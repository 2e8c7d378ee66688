//! A file on its way out.

use crate::failure::{Context, Failure, text};
use crate::outlet::{Flow, Outlet, Passed};
use aleph_guest_proto::{FileInfo, SendWindow, ToHost};
use alloc::format;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// An open file, of which the window's worth is under way at most.
#[derive(Debug)]
pub(crate) struct Get {
    file: OwnedFd,
    window: SendWindow,
}

impl Get {
    /// Opens a plain file and says what it is.
    pub(crate) fn open(path: &[u8]) -> Result<(Self, FileInfo), Failure> {
        let what = || format!("reading {}", text(path));
        // Something else than a file must not make the agent wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).context(what)?;
        let stat = rustix::fs::fstat(&file).context(what)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR).context(what),
            _ => return Err(Errno::INVAL).context(|| format!("{}, which is no file", what())),
        }
        let info = FileInfo {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
        };
        Ok((
            Self {
                file,
                window: SendWindow::default(),
            },
            info,
        ))
    }

    pub(crate) fn window(&mut self) -> &mut SendWindow {
        &mut self.window
    }

    /// Whether [`Get::pump`] would pass on something now.
    pub(crate) fn can_go_on(&self, outlet: &Outlet) -> bool {
        outlet.takes(self.window)
    }

    /// Passes on what window and queue allow; gives whether the stream has ended.
    pub(crate) fn pump(&mut self, stream: u32, outlet: &mut Outlet) -> bool {
        loop {
            match outlet.pass(
                stream,
                &self.file,
                &mut self.window,
                (Flow::Data, usize::MAX),
            ) {
                Passed::Bytes(_) => {}
                Passed::Nothing => return false,
                Passed::End => {
                    outlet.push(stream, &ToHost::Eof);
                    return true;
                }
                Passed::Failed(errno) => {
                    let failure = Failure::new("reading on", errno);
                    outlet.fail(stream, &failure);
                    return true;
                }
            }
        }
    }
}
