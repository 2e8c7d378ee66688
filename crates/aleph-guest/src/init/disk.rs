//! Finding block devices by the serial numbers that the host gave them.

use super::port::wait_for;
use crate::file::{read_bounded, scan};
use alloc::vec::Vec;

/// How long a disk may take to appear, in microseconds.
const PATIENCE_US: u64 = 5_000_000;

/// The device node of the disk with this serial number, once it is there.
pub(super) fn by_serial(serial: &[u8]) -> Option<Vec<u8>> {
    wait_for(PATIENCE_US, || {
        scan(c"/sys/block", |name| {
            let seen = read_bounded([b"/sys/block/", name, b"/serial"].concat()).ok()?;
            let end = seen.iter().position(|b| *b == 0).unwrap_or(seen.len());
            (seen[..end].trim_ascii() == serial).then(|| [b"/dev/", name].concat())
        })
    })
}
