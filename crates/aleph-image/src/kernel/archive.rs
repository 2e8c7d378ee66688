//! What is in somebody's initramfs (pure). The archive is hostile.

use super::bzimage::{ExtractError, decompress_any};
use super::elf;
use std::collections::BTreeMap;

/// An initramfs's header in the newc format, all numbers in hex
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
const HEADER: usize = 110;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveFault {
    #[error(
        "first bytes {0:02x?}; it has to be a cpio archive in the newc format, plain or with gzip, xz or zstd"
    )]
    Unknown(Vec<u8>),
    #[error("{0}")]
    Extract(#[from] ExtractError),
    #[error("its cpio archive is damaged at byte {0}")]
    Damaged(usize),
    #[error("it has no /init")]
    NoInit,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Modules by name, each with the release of the kernel that it is for where it tells.
    pub(crate) modules: BTreeMap<String, Option<String>>,
}

/// Looks through an archive.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Contents, ArchiveFault> {
    let unpacked;
    let archive = if bytes.starts_with(b"07070") {
        bytes
    } else {
        let unknown = || ArchiveFault::Unknown(bytes.iter().take(6).copied().collect());
        unpacked = decompress_any(bytes)?.ok_or_else(unknown)?;
        &unpacked
    };
    let mut contents = Contents::default();
    let mut init = false;
    let mut at = 0usize;
    loop {
        let entry = entry(archive, at).ok_or(ArchiveFault::Damaged(at))?;
        if entry.name == b"TRAILER!!!" {
            break;
        }
        let name = String::from_utf8_lossy(entry.name);
        let name = name.trim_start_matches("./").trim_start_matches('/');
        init |= name == "init";
        let file = name.rsplit('/').next().unwrap_or_default();
        if let Some((module, packing)) = file.split_once(".ko") {
            let release = packing
                .is_empty()
                .then(|| elf::release(entry.content))
                .flatten();
            contents.modules.insert(elf::canonical(module), release);
        }
        at = entry.next;
    }
    if init {
        Ok(contents)
    } else {
        Err(ArchiveFault::NoInit)
    }
}

struct Entry<'a> {
    name: &'a [u8],
    content: &'a [u8],
    next: usize,
}

fn entry(archive: &[u8], at: usize) -> Option<Entry<'_>> {
    let header = archive.get(at..at.checked_add(HEADER)?)?;
    if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
        return None;
    }
    let field = |number: usize| {
        let start = 6 + number * 8;
        let text = std::str::from_utf8(header.get(start..start + 8)?).ok()?;
        usize::try_from(u32::from_str_radix(text, 16).ok()?).ok()
    };
    let (size, name_size) = (field(6)?, field(11)?);
    let name_at = at + HEADER;
    // The name ends with a NUL, and what follows begins at a multiple of four.
    let name_end = name_at.checked_add(name_size.checked_sub(1)?)?;
    let content_at = name_end.checked_add(1)?.checked_next_multiple_of(4)?;
    let content_end = content_at.checked_add(size)?;
    Some(Entry {
        name: archive.get(name_at..name_end)?,
        content: archive.get(content_at..content_end)?,
        next: content_end.checked_next_multiple_of(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::initramfs::{self, Module};
    use super::super::wanted::Stage;
    use super::*;
    use proptest::prelude::*;

    fn archive() -> Vec<u8> {
        let module = |name: &str, text: &[u8]| Module {
            name: name.to_owned(),
            stage: Stage::Early,
            bytes: elf::tests::elf(b".modinfo", text, None),
        };
        let modules = [
            module("virtio-blk", b"vermagic=6.1.0-1 SMP\0"),
            module("erofs", b"depends=\0"),
        ];
        initramfs::write(b"agent", &modules).unwrap()
    }

    #[test]
    fn modules_are_found_with_their_kernels_release() {
        let plain = archive();
        let found = inspect(&plain).unwrap();
        assert_eq!(found.modules["virtio_blk"].as_deref(), Some("6.1.0-1"));
        assert_eq!(found.modules["erofs"], None);
        assert_eq!(
            inspect(&zstd::encode_all(&plain[..], 1).unwrap()).unwrap(),
            found
        );
        assert!(matches!(inspect(b"hello"), Err(ArchiveFault::Unknown(_))));
        assert!(matches!(
            inspect(&plain[..plain.len() / 2]),
            Err(ArchiveFault::Damaged(_))
        ));
        let none = cpio::newc::trailer(Vec::new()).unwrap();
        assert!(matches!(inspect(&none), Err(ArchiveFault::NoInit)));
    }

    proptest! {
        #[test]
        fn hostile_archives_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, value: u8,
        ) {
            let _ = inspect(&[b"070701", &bytes[..]].concat());
            let mut changed = archive();
            let length = changed.len();
            changed[at.index(length)] = value;
            let _ = inspect(&changed);
        }
    }
}
