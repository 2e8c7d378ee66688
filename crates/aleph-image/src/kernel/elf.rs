//! What ELF files say: a kernel about its entry points, a module about its needs.

use object::Endianness;
use object::elf::{FileHeader64, NoteType, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

/// The note that gives a 32-bit entry point for PVH boot (`XEN_ELFNOTE_PHYS32_ENTRY`), and
/// the name that its owner goes by.
const PHYS32_ENTRY: NoteType = NoteType(18);
const XEN: &[u8] = b"Xen";

type Header = FileHeader64<Endianness>;

/// Whether a kernel can be started through its PVH entry point, as QEMU and Firecracker do.
pub(crate) fn has_pvh_entry(elf: &[u8]) -> object::read::Result<bool> {
    let header = Header::parse(elf)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, elf)? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, elf)? else {
            continue;
        };
        while let Some(note) = notes.next()? {
            if note.name() == XEN && note.n_type(endian) == PHYS32_ENTRY {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What a module's `.modinfo` says of the modules that it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ModInfo {
    /// Without these it cannot be loaded.
    pub(crate) depends: Vec<String>,
    /// These go first where they are there (`softdep=pre: ...`).
    pub(crate) before: Vec<String>,
}

/// Reads a module's `.modinfo`: texts of the form `key=value`, each with a NUL at its end.
pub(crate) fn modinfo(elf: &[u8]) -> object::read::Result<ModInfo> {
    let header = Header::parse(elf)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, elf)?;
    let Some((_, section)) = sections.section_by_name(endian, b".modinfo") else {
        return Ok(ModInfo::default());
    };
    Ok(parse(section.data(endian, elf)?))
}

/// The release of the kernel that a module is for: the first word of its `vermagic`.
pub(crate) fn release(module: &[u8]) -> Option<String> {
    let header = Header::parse(module).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, module).ok()?;
    let (_, section) = sections.section_by_name(endian, b".modinfo")?;
    let texts = section.data(endian, module).ok()?.split(|b| *b == 0);
    let magic = texts
        .filter_map(|text| text.strip_prefix(b"vermagic="))
        .next()?;
    let word = magic.split(|b| *b == b' ').next()?;
    Some(String::from_utf8_lossy(word).into_owned())
}

fn parse(section: &[u8]) -> ModInfo {
    let mut info = ModInfo::default();
    for text in section.split(|b| *b == 0) {
        let text = String::from_utf8_lossy(text);
        match text.split_once('=') {
            Some(("depends", list)) => info.depends.extend(names(list.split(','))),
            Some(("softdep", list)) => {
                // `pre: a b post: c`
                let words = list.split_whitespace().skip_while(|word| *word != "pre:");
                info.before
                    .extend(names(words.skip(1).take_while(|word| !word.ends_with(':'))));
            }
            _ => {}
        }
    }
    info
}

fn names<'a>(list: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    list.filter(|name| !name.is_empty()).map(canonical)
}

/// A module's name with the one of the two interchangeable letters that the kernel uses.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn needs_are_read_from_modinfo() {
        let info =
            parse(b"license=GPL\0depends=libcrc32c,virtio-ring\0softdep=pre: crc32c a-b post: z\0");
        assert_eq!(info.depends, ["libcrc32c", "virtio_ring"]);
        assert_eq!(info.before, ["crc32c", "a_b"]);
        assert_eq!(parse(b"depends=\0"), ModInfo::default());
    }

    #[test]
    fn sections_and_notes_are_found_in_elf_files() {
        let module = elf(b".modinfo", b"depends=one,two\0", None);
        assert_eq!(modinfo(&module).unwrap().depends, ["one", "two"]);
        assert!(!has_pvh_entry(&module).unwrap());
        let kernel = elf(b".notes", &note(b"Xen\0", 18), Some(PT_NOTE.0));
        assert!(has_pvh_entry(&kernel).unwrap());
        let other = elf(b".notes", &note(b"GNU\0", 18), Some(PT_NOTE.0));
        assert!(!has_pvh_entry(&other).unwrap());
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(
            whole in proptest::collection::vec(any::<u8>(), 0..512),
            at in 0_usize..300,
            byte: u8,
        ) {
            let _ = (modinfo(&whole), has_pvh_entry(&whole));
            for mut file in [elf(b".modinfo", b"depends=a\0", None), elf(b".n", &note(b"Xen\0", 18), Some(4))] {
                let at = at % file.len();
                file[at] = byte;
                let _ = (modinfo(&file), has_pvh_entry(&file));
            }
        }
    }

    fn note(owner: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut note = Vec::new();
        for field in [4, 4, kind] {
            note.extend(field.to_le_bytes());
        }
        note.extend(owner);
        note.extend([0x50, 8, 0, 1]);
        note
    }

    /// A little-endian ELF-64 file with one section, which may be a segment too.
    pub(crate) fn elf(name: &[u8], content: &[u8], segment: Option<u32>) -> Vec<u8> {
        let u16s = |values: &[u16]| {
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let u32s = |values: &[u32]| {
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let u64s = |values: &[u64]| {
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
        };
        let size = content.len() as u64;
        let names = [&b"\0"[..], name, b"\0.shstrtab\0"].concat();
        let content_at = 64 + 56;
        let names_at = content_at + size;
        let sections_at = names_at + names.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(u16s(&[1, 62]));
        file.extend(u32s(&[1]));
        file.extend(u64s(&[0, 64, sections_at]));
        file.extend(u32s(&[0]));
        file.extend(u16s(&[64, 56, u16::from(segment.is_some()), 64, 3, 2]));
        file.extend(u32s(&[segment.unwrap_or(0), 4]));
        file.extend(u64s(&[content_at, 0, 0, size, size, 4]));
        file.extend(content);
        file.extend(&names);
        let second_name = u32::try_from(name.len()).unwrap() + 2;
        for (name, kind, at, size) in [
            (0, 0, 0, 0),
            (1, 1, content_at, size),
            (second_name, 3, names_at, names.len() as u64),
        ] {
            file.extend(u32s(&[name, kind]));
            file.extend(u64s(&[0, 0, at, size]));
            file.extend(u32s(&[0, 0]));
            file.extend(u64s(&[1, 0]));
        }
        file
    }
}
