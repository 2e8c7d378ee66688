//! Stopping every process but the agent, by the kernel's cgroup freezer: none of them can tell.
//!
//! A group of its own is made when it is first needed, so that a guest that is never written down
//! pays nothing for it.

use crate::census;
use crate::failure::{Context, Failure};
use crate::file::{self, read_bounded};
use crate::sys;
use alloc::format;
use alloc::string::ToString;
use core::ffi::CStr;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

const GROUP: &CStr = c"/sys/fs/cgroup/aleph";
const MEMBERS: &CStr = c"/sys/fs/cgroup/aleph/cgroup.procs";
const FREEZE: &CStr = c"/sys/fs/cgroup/aleph/cgroup.freeze";
const EVENTS: &CStr = c"/sys/fs/cgroup/aleph/cgroup.events";

/// How often processes are looked for: one that starts others meanwhile may hide some.
const ROUNDS: usize = 100;
/// How long they may take to stand still, in microseconds.
const PATIENCE_US: u64 = 5_000_000;
/// The pause before it is looked at again, in microseconds.
const PAUSE_US: u64 = 500;

/// Lets them go on when it is told to. It is held open: to find it costs a clone more than to write
/// to it.
#[derive(Debug)]
pub(super) struct Gate(OwnedFd);

impl Gate {
    /// Lets them go on.
    pub(super) fn open(&self) -> Result<(), Failure> {
        let written = rustix::io::pwrite(&self.0, b"0", 0).map(drop);
        written.context(|| "letting processes go on".into())
    }
}

/// Stops them all, and writes filesystems out.
pub(super) fn freeze() -> Result<Gate, Failure> {
    match rustix::fs::mkdir(GROUP, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).context(|| "making the group to freeze".into()),
    }
    gather()?;
    let gate = rustix::fs::open(FREEZE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|gate| rustix::io::pwrite(&gate, b"1", 0).map(|_| Gate(gate)))
        .context(|| "freezing processes".into())?;
    let deadline = sys::monotonic_us() + PATIENCE_US;
    while !is_frozen() {
        if sys::monotonic_us() > deadline {
            let _ = gate.open();
            let why = "processes do not stand still".into();
            return Err(Failure::because(why, Errno::TIMEDOUT));
        }
        sys::sleep_us(PAUSE_US);
    }
    rustix::fs::sync();
    Ok(gate)
}

/// Looks at each process that was brought into the group.
pub(super) fn each_member(mut look: impl FnMut(&[u8])) {
    let members = read_bounded(MEMBERS).unwrap_or_default();
    members
        .split(|b| *b == b'\n')
        .filter(|pid| !pid.is_empty())
        .for_each(&mut look);
}

fn is_frozen() -> bool {
    let events = read_bounded(EVENTS).unwrap_or_default();
    events
        .split(|b| *b == b'\n')
        .any(|line| line == b"frozen 1")
}

/// Brings every process into the group, until a look at all of them finds none outside.
fn gather() -> Result<(), Failure> {
    for _ in 0..ROUNDS {
        let members = read_bounded(MEMBERS).unwrap_or_default();
        let is_member = |pid: &str| members.split(|b| *b == b'\n').any(|m| m == pid.as_bytes());
        let (mut moved, mut failed) = (0, None);
        census::each(|process| {
            let pid = process.pid.to_string();
            if process.pid == 1 || process.is_kernel() || is_member(&pid) {
                return;
            }
            match file::write(MEMBERS, &[pid.as_bytes()]) {
                Ok(()) => moved += 1,
                // It has ended since.
                Err(Errno::SRCH) => {}
                Err(errno) => failed = Some((pid, errno)),
            }
        });
        if let Some((pid, errno)) = failed {
            return Err(errno).context(|| format!("freezing process {pid}"));
        }
        if moved == 0 {
            return Ok(());
        }
    }
    let why = "processes start others without end".into();
    Err(Failure::because(why, Errno::AGAIN))
}
