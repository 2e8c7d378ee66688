//! Layers of any entries, over one another: nothing outside of their tree changes, and the tree
//! can be removed whatever is in it.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use tar::{Builder, EntryType, Header};

#[derive(Debug, Arbitrary)]
enum Layer {
    Raw(Vec<u8>),
    Entries(Vec<Entry>),
}

#[derive(Debug, Arbitrary)]
struct Entry {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u16,
    content: u8,
    xattr: Option<(u8, Vec<u8>)>,
}

const KINDS: [EntryType; 8] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
    EntryType::Fifo,
    EntryType::Char,
    EntryType::GNULongName,
    EntryType::XHeader,
];
/// The outside is named, upwards and absolutely.
const PARTS: [&str; 16] = [
    "a",
    "b",
    "c",
    "/",
    "..",
    ".",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    ".wh.",
    ".wh...",
    "OUTSIDE",
    "../../../../../../..",
    "canary",
    ".wh.canary",
    "a/b/c",
];

const PREFIX: &str = "aleph-fuzz-";

/// A folder in memory with a tree's place and what must not change beside it.
fn room() -> &'static (PathBuf, PathBuf) {
    static ROOM: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    ROOM.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        // A run that ends takes nothing with it; the next one does.
        for entry in fs::read_dir(&memory).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|pid| pid.parse().ok());
            if owner.is_some_and(|pid: u32| !PathBuf::from(format!("/proc/{pid}")).exists()) {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        let dir = memory.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let outside = dir.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), "sings").unwrap();
        (dir.join("tree"), outside)
    })
}

fn text(choices: &[u8], outside: &str) -> Vec<u8> {
    let parts: Vec<String> = choices
        .iter()
        .take(6)
        .map(|n| PARTS[usize::from(*n) % PARTS.len()].replace("OUTSIDE", outside))
        .collect();
    parts.join("/").into_bytes()
}

fn archive(entries: &[Entry], outside: &str) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for entry in entries.iter().take(24) {
        if let Some((name, value)) = &entry.xattr {
            let name =
                ["user.a", "user.", "trusted.b", "security.capability"][usize::from(*name) % 4];
            let key = format!("SCHILY.xattr.{name}");
            tar.append_pax_extensions([(&*key, &**value)]).unwrap();
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(KINDS[usize::from(entry.kind) % KINDS.len()]);
        header.set_mode(u32::from(entry.mode));
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        let content = vec![b'x'; usize::from(entry.content)];
        header.set_size(content.len() as u64);
        let fields = header.as_gnu_mut().unwrap();
        for (field, choices) in [
            (&mut fields.name, &entry.path),
            (&mut fields.linkname, &entry.link),
        ] {
            let text = text(choices, outside);
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        }
        header.set_cksum();
        tar.append(&header, &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fuzz_target!(|layers: Vec<Layer>| {
    let (tree, outside) = room();
    let before = fs::metadata(outside).unwrap();
    fs::create_dir(tree).unwrap();
    let shown = outside.display().to_string();
    let layers: Vec<Vec<u8>> = layers
        .into_iter()
        .take(4)
        .map(|layer| match layer {
            Layer::Raw(bytes) => bytes,
            Layer::Entries(entries) => archive(&entries, &shown),
        })
        .collect();
    aleph_image::fuzzing::lay(tree, &layers);
    aleph_image::fuzzing::remove(tree).unwrap();
    let after = fs::metadata(outside).unwrap();
    assert_eq!(
        (before.mtime_nsec(), before.ctime_nsec(), before.mode()),
        (after.mtime_nsec(), after.ctime_nsec(), after.mode())
    );
    assert_eq!(fs::read(outside.join("canary")).unwrap(), b"sings");
});
