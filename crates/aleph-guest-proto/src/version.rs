//! Which version of the protocol two sides speak.

use crate::ProtocolError;
use crate::wire::{Reader, Writer};
use core::fmt;

/// The versions that one side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Versions {
    /// What this build speaks.
    pub const OURS: Self = Self { min: 2, max: 6 };

    /// The first version in which a guest is told of its network.
    pub const NETWORK: u16 = 3;

    /// The first version in which a guest can be written down and cloned.
    pub const SNAPSHOTS: u16 = 4;

    /// The first version in which a guest is told of a link to its host.
    pub const LINKS: u16 = 5;

    /// The first version in which a guest is told what to mount beside its root as it is set up.
    pub const MOUNTS: u16 = 6;

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        let (min, max) = (r.u16()?, r.u16()?);
        if min == 0 || min > max {
            return Err(ProtocolError::Malformed("versions"));
        }
        Ok(Self { min, max })
    }

    pub(crate) fn write(self, w: &mut Writer<'_>) {
        w.u16(self.min);
        w.u16(self.max);
    }
}

/// Two sides that have no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionMismatch {
    /// What this side speaks.
    pub ours: Versions,
    /// What the other side speaks.
    pub theirs: Versions,
}

impl fmt::Display for VersionMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no common protocol version: this side speaks {} to {}, the other {} to {}",
            self.ours.min, self.ours.max, self.theirs.min, self.theirs.max
        )
    }
}

impl core::error::Error for VersionMismatch {}

/// The highest version that both sides speak.
///
/// # Errors
/// [`VersionMismatch`] where there is none.
pub fn negotiate(ours: Versions, theirs: Versions) -> Result<u16, VersionMismatch> {
    let best = ours.max.min(theirs.max);
    if best >= ours.min && best >= theirs.min {
        Ok(best)
    } else {
        Err(VersionMismatch { ours, theirs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        let v = |min, max| Versions { min, max };
        for (ours, theirs, want) in [
            (v(1, 1), v(1, 1), Some(1)),
            (v(1, 3), v(2, 5), Some(3)),
            (v(2, 5), v(1, 3), Some(3)),
            (Versions::OURS, v(2, 2), Some(2)),
            (v(1, 2), v(3, 4), None),
            (v(3, 4), v(1, 2), None),
        ] {
            assert_eq!(negotiate(ours, theirs).ok(), want);
        }
    }
}
