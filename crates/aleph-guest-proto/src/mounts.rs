//! Filesystems beside the root.

use crate::ProtocolError;
use crate::wire::{Reader, Writer};
use alloc::vec::Vec;

/// A filesystem to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Serial number of its block device; empty where it needs none.
    pub serial: &'a [u8],
    /// The filesystem as mount(2) names it.
    pub filesystem: &'a [u8],
    /// Where to; made where it is missing.
    pub target: &'a [u8],
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// The filesystem's own options, with commas between them.
    pub options: &'a [u8],
}

impl<'a> Mount<'a> {
    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, ProtocolError> {
        Ok(Self {
            serial: r.text()?,
            filesystem: r.text()?,
            target: r.text()?,
            read_only: r.bool()?,
            options: r.text()?,
        })
    }

    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.bytes(self.serial);
        w.bytes(self.filesystem);
        w.bytes(self.target);
        w.bool(self.read_only);
        w.bytes(self.options);
    }
}

/// Filesystems in the order in which they are mounted, checked when they were read or made.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Mounts<'a> {
    count: u8,
    items: &'a [u8],
}

/// [`Mounts`] that own what they say.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct MountsBuf {
    count: u8,
    items: Vec<u8>,
}

impl MountsBuf {
    /// These, in this order.
    ///
    /// # Errors
    /// [`ProtocolError::Malformed`] where a text has a NUL byte, or there are more than 255.
    pub fn new<'m>(mounts: impl IntoIterator<Item = Mount<'m>>) -> Result<Self, ProtocolError> {
        let mut all = Self::default();
        for mount in mounts {
            mount.write(&mut Writer(&mut all.items));
            let count = all.count.checked_add(1);
            all.count = count.ok_or(ProtocolError::Malformed("too many mounts"))?;
        }
        all.as_mounts().check()?;
        Ok(all)
    }

    /// Them as messages carry them.
    #[must_use]
    pub fn as_mounts(&self) -> Mounts<'_> {
        Mounts {
            count: self.count,
            items: &self.items,
        }
    }
}

impl<'a> Mounts<'a> {
    /// None.
    pub const NONE: Self = Self {
        count: 0,
        items: &[],
    };

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Them in order.
    pub fn iter(&self) -> impl Iterator<Item = Mount<'a>> + use<'a> {
        let mut reader = Reader::new(self.items);
        // Whoever made them has checked them, so every read succeeds.
        (0..self.count).map_while(move |_| Mount::read(&mut reader).ok())
    }

    fn check(&self) -> Result<(), ProtocolError> {
        let mut reader = Reader::new(self.items);
        for _ in 0..self.count {
            Mount::read(&mut reader)?;
        }
        reader.end()
    }

    /// Reads some, of which there is one at least.
    pub(crate) fn read(r: &mut Reader<'a>) -> Result<Self, ProtocolError> {
        let mounts = Self {
            count: r.u8()?,
            items: r.bytes()?,
        };
        if mounts.is_empty() {
            return Err(ProtocolError::Malformed("no mounts"));
        }
        mounts.check()?;
        Ok(mounts)
    }

    pub(crate) fn write(&self, w: &mut Writer<'_>) {
        w.u8(self.count);
        w.bytes(self.items);
    }
}

impl core::fmt::Debug for Mounts<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl core::fmt::Debug for MountsBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_mounts().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_kernel_could_take_cannot_be_said() {
        let mount = |target| Mount {
            serial: b"v1",
            filesystem: b"ext4",
            target,
            read_only: false,
            options: b"",
        };
        let both = MountsBuf::new([mount(b"/a"), mount(b"/b")]).unwrap();
        let targets: Vec<_> = both.as_mounts().iter().map(|mount| mount.target).collect();
        assert_eq!(targets, [b"/a", b"/b"]);
        assert!(MountsBuf::new([mount(b"/a\0")]).is_err());
        assert!(MountsBuf::new([mount(b"/a"); 255]).is_ok());
        assert!(MountsBuf::new([mount(b"/a"); 256]).is_err());
    }
}
