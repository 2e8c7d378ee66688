//! Finding block devices by the serial numbers that the host gave them.
//!
//! A VMM whose disks have none has them said on the kernel's command line instead, in the order of
//! the disks ([`DISKS_ARGUMENT`]).

use super::port::wait_for;
use crate::file::{read_bounded, scan};
use aleph_guest_proto::DISKS_ARGUMENT;
use alloc::vec::Vec;

/// How long a disk may take to appear, in microseconds.
const PATIENCE_US: u64 = 5_000_000;

/// The device node of the disk with this serial number, once it is there.
pub(super) fn by_serial(serial: &[u8]) -> Option<Vec<u8>> {
    let line = read_bounded(c"/proc/cmdline").unwrap_or_default();
    let said = name(&line, serial);
    wait_for(PATIENCE_US, || {
        scan(c"/sys/block", |name| {
            let is_it = match &said {
                Some(said) => name == said,
                None => has_serial(name, serial),
            };
            is_it.then(|| [b"/dev/", name].concat())
        })
    })
}

fn has_serial(name: &[u8], serial: &[u8]) -> bool {
    let seen = read_bounded([b"/sys/block/", name, b"/serial"].concat()).unwrap_or_default();
    let end = seen.iter().position(|b| *b == 0).unwrap_or(seen.len());
    seen[..end].trim_ascii() == serial
}

/// What the kernel calls the disk, where its command line says the order of disks.
fn name(line: &[u8], serial: &[u8]) -> Option<Vec<u8>> {
    let order = line
        .split(u8::is_ascii_whitespace)
        .find_map(|word| word.strip_prefix(DISKS_ARGUMENT.as_bytes()))?;
    let at = order.split(|b| *b == b',').position(|it| it == serial)?;
    // Beyond the alphabet names have two letters: no VM has as many disks.
    let letter = b"abcdefghijklmnopqrstuvwxyz".get(at)?;
    Some([b"vd", core::slice::from_ref(letter)].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_in_the_order_that_is_said() {
        let line = b"quiet aleph.disks=rootfs,scratch panic=-1\n";
        assert_eq!(name(line, b"rootfs").as_deref(), Some(&b"vda"[..]));
        assert_eq!(name(line, b"scratch").as_deref(), Some(&b"vdb"[..]));
        assert_eq!(name(line, b"task"), None);
        assert_eq!(name(b"quiet", b"rootfs"), None);
    }
}
