//! Pseudoterminals.

use aleph_guest_proto::Terminal;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// A terminal of this size: the agent's end, which does not block, and the command's.
pub(crate) fn open(size: Terminal) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let ours = rustix::fs::open(c"/dev/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&ours)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    resize(&ours, size)?;
    Ok((ours, theirs))
}

/// Sets its size; whoever is in its foreground gets SIGWINCH.
pub(crate) fn resize(terminal: &OwnedFd, size: Terminal) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// The process group in its foreground.
pub(crate) fn foreground(terminal: &OwnedFd) -> Option<i32> {
    let group = rustix::termios::tcgetpgrp(terminal).ok()?;
    Some(group.as_raw_nonzero().get())
}
