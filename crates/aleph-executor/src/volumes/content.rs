//! What a disk image is, by its bytes. Pure.
//!
//! A name's ending proves nothing, and neither does what a tool guesses: the first bytes of a raw disk
//! are its guest's, who can write there what another format begins with.

use super::qcow2;
use aleph_types::{DiskImageFormat, Filesystem};

/// How many of an image's first bytes `Content::of` wants: as far as the mark of ISO 9660.
pub(super) const HEAD: usize = 64 * 1024 + 4096;

/// What an image's bytes say that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A disk image of a kind that is taken.
    Disk(DiskImageFormat),
    /// Something else that is known.
    Foreign(&'static str),
    /// Nothing that is known: no partition table, and no filesystem.
    Unknown,
    /// There are no bytes, or nothing but zeros.
    Empty,
}

/// How other things begin.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK description"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"QED\0", "a QED image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"\xfd7zXZ\0", "compressed by xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (0, b"BZh", "compressed by bzip2"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x7fELF", "a program"),
    (0, b"<", "text"),
    (0, b"#!", "text"),
];

/// What a raw disk has somewhere: a partition table, a filesystem, or what else is on disks.
const RAW: &[(usize, &[u8])] = &[
    (510, b"\x55\xaa"),
    (512, b"EFI PART"),
    (4096, b"EFI PART"),
    (1080, b"\x53\xef"),
    (0, b"XFSB"),
    (0x8001, b"CD001"),
    (0x1_0040, b"_BHRfS_M"),
    (0, b"hsqs"),
    (1024, b"\xe2\xe1\xf5\xe0"),
    (512, b"LABELONE"),
    (0, b"LUKS\xba\xbe"),
    (4086, b"SWAPSPACE2"),
];

impl Content {
    /// What an image with these first bytes, `HEAD` of them or all that there are, is.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        let is = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
        if is(0, &qcow2::MAGIC) {
            return Self::Disk(DiskImageFormat::Qcow2);
        }
        if is(0, b"QFI") {
            return Self::Foreign("a qcow image of an old version");
        }
        // An ISO image for USB sticks begins as many things do: raw comes first.
        if RAW.iter().any(|(at, mark)| is(*at, mark)) {
            return Self::Disk(DiskImageFormat::Raw);
        }
        if let Some((_, _, what)) = FOREIGN.iter().find(|(at, mark, _)| is(*at, mark)) {
            return Self::Foreign(what);
        }
        match head.iter().all(|byte| *byte == 0) {
            true => Self::Empty,
            false => Self::Unknown,
        }
    }
}

/// The filesystem that is all of a raw disk with these first bytes. A disk with a table of partitions, or with
/// code to boot it, is a system's: what an earlier filesystem left behind that table tells nothing.
#[must_use]
pub(super) fn filesystem_of(head: &[u8]) -> Filesystem {
    let is = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    if is(0, b"XFSB") {
        Filesystem::Xfs
    } else if is(1080, b"\x53\xef") && !is(510, b"\x55\xaa") && !is(512, b"EFI PART") {
        Filesystem::Ext4
    } else {
        Filesystem::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_are_told_by_their_marks() {
        type Marks = &'static [(usize, &'static [u8])];
        let cases: [(Marks, Filesystem); 6] = [
            (&[], Filesystem::None),
            (&[(0, b"XFSB")], Filesystem::Xfs),
            (&[(1080, b"\x53\xef")], Filesystem::Ext4),
            (&[(1080, b"\x53\xef"), (510, b"\x55\xaa")], Filesystem::None),
            (&[(1080, b"\x53\xef"), (512, b"EFI PART")], Filesystem::None),
            (&[(0x1_0040, b"_BHRfS_M")], Filesystem::None),
        ];
        for (marks, wanted) in cases {
            let mut head = vec![0; HEAD];
            for (at, mark) in marks {
                head[*at..at + mark.len()].copy_from_slice(mark);
            }
            assert_eq!(filesystem_of(&head), wanted, "{marks:x?}");
        }
        assert_eq!(filesystem_of(b"XF"), Filesystem::None);
    }

    #[test]
    fn images_are_told_by_their_bytes() {
        let raw = Content::Disk(DiskImageFormat::Raw);
        let cases: &[(usize, &[u8], Content)] = &[
            (
                0,
                b"QFI\xfb\0\0\0\x03",
                Content::Disk(DiskImageFormat::Qcow2),
            ),
            (
                0,
                b"QFI\xfa",
                Content::Foreign("a qcow image of an old version"),
            ),
            (510, b"\x55\xaa", raw),
            (1080, b"\x53\xef", raw),
            (0, b"XFSB", raw),
            (0x8001, b"CD001", raw),
            (0, b"KDMV", Content::Foreign("a VMDK image")),
            (0, b"\x1f\x8b\x08", Content::Foreign("compressed by gzip")),
            (0, b"<!DOCTYPE html>", Content::Foreign("text")),
            (0, b"hello", Content::Unknown),
            (0, b"", Content::Empty),
        ];
        for (at, bytes, wanted) in cases {
            let mut head = vec![0; HEAD];
            head[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(Content::of(&head), *wanted, "{bytes:x?} at {at}");
        }
        assert_eq!(Content::of(b""), Content::Empty);
        assert_eq!(
            Content::of(b"QFI\xfb"),
            Content::Disk(DiskImageFormat::Qcow2)
        );
    }
}
