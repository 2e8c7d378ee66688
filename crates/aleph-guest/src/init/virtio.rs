//! Which virtio devices the machine has.
//!
//! Their kinds are those of <https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html>,
//! section 5.

use crate::file::{read_bounded, scan};

/// A kind of device, as the kernel writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind(&'static [u8]);

pub(super) const NETWORK: Kind = Kind(b"0x0001");
pub(super) const BALLOON: Kind = Kind(b"0x0005");

/// Whether there is a device of this kind, with a driver or without one.
pub(super) fn has(kind: Kind) -> bool {
    scan(c"/sys/bus/virtio/devices", |name| {
        let path = [b"/sys/bus/virtio/devices/", name, b"/device"].concat();
        let found = read_bounded(path).ok()?;
        (found.trim_ascii() == kind.0).then_some(())
    })
    .is_some()
}
