//! The one way out of a guest.
//!
//! The agent always ends in a reboot, never in a power-off: the kernel's command line has
//! `reboot=t` and the VMM is told not to come back from a reset, so a reset is the machine's end
//! on every VMM, without ACPI and without a driver for a power button.

use crate::sys;
use rustix::fd::OwnedFd;
use rustix::system::RebootCommand;

/// Whether this process is the PID 1 that the machine belongs to.
pub(super) fn is_init() -> bool {
    rustix::process::getpid().is_init()
}

/// Ends the machine. Disks that take writes are written out and frozen first, so that their
/// filesystems are clean whatever still has files open on them.
pub fn off(disks: &[OwnedFd]) -> ! {
    if !is_init() {
        sys::exit(1);
    }
    if !disks.is_empty() {
        // One that cannot be frozen is at least written out.
        rustix::fs::sync();
    }
    for disk in disks {
        let _ = sys::freeze(disk);
    }
    loop {
        let _ = rustix::system::reboot(RebootCommand::Restart);
        sys::sleep_us(1_000_000);
    }
}
