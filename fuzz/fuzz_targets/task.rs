//! A function's code of any entries: nothing outside of its tree changes, and the tree can be
//! removed whatever is in it.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

#[derive(Debug, Arbitrary)]
enum Code {
    Raw(Vec<u8>),
    Entries {
        entries: Vec<Entry>,
        /// Bytes of the archive that become others.
        changes: Vec<(u16, u8)>,
    },
}

#[derive(Debug, Arbitrary)]
struct Entry {
    kind: u8,
    path: Vec<u8>,
    target: Vec<u8>,
    mode: u16,
    content: u8,
}

/// The outside is named, upwards and absolutely.
const PARTS: [&str; 10] = [
    "a",
    "b",
    "c",
    "",
    "..",
    ".",
    "OUTSIDE",
    "../../../../../../..",
    "canary",
    "a/b/c",
];
const PREFIX: &str = "aleph-fuzz-task-";

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

fn text(choices: &[u8], outside: &str) -> String {
    let parts: Vec<String> = choices
        .iter()
        .take(6)
        .map(|n| PARTS[usize::from(*n) % PARTS.len()].replace("OUTSIDE", outside))
        .collect();
    parts.join("/")
}

fn archive(entries: &[Entry], changes: &[(u16, u8)], outside: &str) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for entry in entries.iter().take(24) {
        let options = SimpleFileOptions::default().unix_permissions(u32::from(entry.mode));
        let path = text(&entry.path, outside);
        // Names that are there already are refused by the writer.
        let _ = match entry.kind % 3 {
            0 => zip.start_file(&*path, options).map(|()| {
                zip.write_all(&vec![b'x'; usize::from(entry.content)])
                    .unwrap();
            }),
            1 => zip.add_directory(&*path, options),
            _ => zip.add_symlink(&*path, &*text(&entry.target, outside), options),
        };
    }
    let mut bytes = zip.finish().unwrap().into_inner();
    for (at, value) in changes.iter().take(4) {
        let at = usize::from(*at) % bytes.len();
        bytes[at] = *value;
    }
    bytes
}

fuzz_target!(|code: Code| {
    let (tree, outside) = room();
    let before = fs::metadata(outside).unwrap();
    fs::create_dir(tree).unwrap();
    let bytes = match code {
        Code::Raw(bytes) => bytes,
        Code::Entries { entries, changes } => {
            archive(&entries, &changes, &outside.display().to_string())
        }
    };
    aleph_image::fuzzing::unpack_task(tree, &bytes);
    aleph_image::fuzzing::remove(tree).unwrap();
    let after = fs::metadata(outside).unwrap();
    assert_eq!(
        (before.mtime_nsec(), before.ctime_nsec(), before.mode()),
        (after.mtime_nsec(), after.ctime_nsec(), after.mode())
    );
    assert_eq!(fs::read(outside.join("canary")).unwrap(), b"sings");
});
