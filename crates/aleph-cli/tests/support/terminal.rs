//! A terminal that a test holds the other end of.

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Terminal {
    master: File,
    name: CString,
}

impl Terminal {
    pub(crate) fn new() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        Ok(Self {
            master: File::from(master),
            name,
        })
    }

    /// Starts a program on it.
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Child> {
        let end = || -> Result<Stdio> {
            let name = self.name.to_str()?;
            let file = File::options().read(true).write(true).open(name)?;
            Ok(file.into())
        };
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        Ok(command.spawn()?)
    }

    pub(crate) fn size(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    pub(crate) fn press(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.master.write_all(keys)?)
    }

    /// The same as [`Terminal::until`], where that comes in time.
    pub(crate) fn until_within(&mut self, text: &str, limit: Duration) -> Result<String> {
        let (began, mut seen) = (Instant::now(), String::new());
        let mut chunk = [0; 1024];
        while !seen.contains(text) {
            let left = limit.saturating_sub(began.elapsed());
            let mut shown = [PollFd::new(&self.master, PollFlags::IN)];
            let ready = poll(&mut shown, Some(&Timespec::try_from(left)?))?;
            ensure!(ready > 0, "no {text:?} in {seen:?}");
            let n = self.master.read(&mut chunk);
            let n = n.with_context(|| format!("no {text:?} in {seen:?}"))?;
            seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
        Ok(seen)
    }

    /// Reads until the text has been shown, and gives all that was.
    pub(crate) fn until(&mut self, text: &str) -> Result<String> {
        let mut seen = String::new();
        let mut chunk = [0; 1024];
        while !seen.contains(text) {
            let n = self
                .master
                .read(&mut chunk)
                .with_context(|| format!("no {text:?} in {seen:?}"))?;
            seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
        Ok(seen)
    }
}
