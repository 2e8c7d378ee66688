//! Finding the virtio-serial port that carries the channel.

use crate::failure::{Context, Failure};
use crate::file::{read_bounded, scan};
use crate::sys;
use aleph_guest_proto::PORT_NAME;
use alloc::format;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How long the port may take to appear after its driver, in microseconds.
const PATIENCE_US: u64 = 10_000_000;

/// Opens the port. The kernel learns its name from the device a little after it made the port.
pub(super) fn open() -> Result<OwnedFd, Failure> {
    let what = || format!("opening the virtio-serial port {PORT_NAME}");
    let path = wait_for(PATIENCE_US, find)
        .ok_or(Errno::NODEV)
        .context(what)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(&path[..], flags, Mode::empty()).context(what)
}

fn find() -> Option<Vec<u8>> {
    scan(c"/sys/class/virtio-ports", |port| {
        let name = read_bounded([b"/sys/class/virtio-ports/", port, b"/name"].concat()).ok()?;
        (name.trim_ascii() == PORT_NAME.as_bytes()).then(|| [b"/dev/", port].concat())
    })
}

/// Looks for something every so often until it is there, in intervals that suit something that
/// is about to come.
pub(super) fn wait_for<T>(patience_us: u64, find: impl Fn() -> Option<T>) -> Option<T> {
    let begin = sys::monotonic_us();
    loop {
        if let Some(found) = find() {
            return Some(found);
        }
        let waited = sys::monotonic_us() - begin;
        if waited >= patience_us {
            return None;
        }
        sys::sleep_us(if waited < 20_000 { 200 } else { 1000 });
    }
}
