//! Hardware addresses.
//!
//! The host's side of every TAP has the same one, so that a guest that is restored or cloned onto
//! another TAP never meets a stale entry. A guest's is derived from its VM. Both are locally
//! administered (bit 1 of the first byte).

use aleph_types::VmId;
use std::fmt;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The host's side of every TAP.
    pub const HOST: Self = Self([0x02, 0xa1, 0, 0, 0, 1]);

    /// The guest's side.
    #[must_use]
    pub fn of(vm: VmId) -> Self {
        // No bits beyond the id's space, so never the host's with its different second byte.
        let [a, b, c, d] = vm.bits().to_be_bytes();
        Self([0x02, 0xa2, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
