//! Code of functions: what is made of a zip archive, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::task::{self, MOST_ENTRIES, MOST_UNPACKED, MOST_ZIPPED, TaskError, TaskImage};
use aleph_types::{Classify, ErrorClass};
use host::{Need, names_in, output, run, trial};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn main() {
    let needs = [
        Need::Tool("mkfs.erofs"),
        Need::Tool("fsck.erofs"),
        Need::Tool("dump.erofs"),
    ];
    run(vec![
        trial(
            "code_is_unpacked_as_it_is",
            &needs,
            code_is_unpacked_as_it_is,
        ),
        trial("everything_is_roots", &needs, everything_is_roots),
        trial(
            "equal_code_is_an_equal_image",
            &needs,
            equal_code_is_an_equal_image,
        ),
        trial(
            "archives_without_modes_get_usual_ones",
            &needs,
            archives_without_modes_get_usual_ones,
        ),
        trial(
            "links_within_the_code_stay",
            &needs,
            links_within_the_code_stay,
        ),
        trial(
            "links_out_of_the_code_are_refused",
            &[],
            links_out_of_the_code_are_refused,
        ),
        trial(
            "paths_out_of_the_code_are_refused",
            &[],
            paths_out_of_the_code_are_refused,
        ),
        trial(
            "sizes_are_counted_and_not_believed",
            &[],
            sizes_are_counted_and_not_believed,
        ),
        trial("many_entries_are_refused", &[], many_entries_are_refused),
        trial(
            "overlapping_entries_are_refused",
            &[],
            overlapping_entries_are_refused,
        ),
        trial(
            "what_cannot_be_read_is_refused",
            &[],
            what_cannot_be_read_is_refused,
        ),
        trial(
            "whatever_comes_stays_inside",
            &[],
            whatever_comes_stays_inside,
        ),
    ]);
}

/// A zip archive being made, on Unix.
struct Zip(ZipWriter<Cursor<Vec<u8>>>);

impl Zip {
    fn new() -> Self {
        Self(ZipWriter::new(Cursor::new(Vec::new())))
    }

    fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.with(
            path,
            content,
            SimpleFileOptions::default().unix_permissions(mode),
        )
    }

    fn with(mut self, path: &str, content: &[u8], options: SimpleFileOptions) -> Self {
        self.0.start_file(path, options).unwrap();
        self.0.write_all(content).unwrap();
        self
    }

    fn link(mut self, path: &str, target: &str) -> Self {
        let options = SimpleFileOptions::default();
        self.0.add_symlink(path, target, options).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.finish().unwrap().into_inner()
    }
}

/// A folder for images, and what must not change beside it.
struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("canary"), "sings").unwrap();
        Self { dir }
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("code")
    }

    fn build(&self, zip: &[u8]) -> Result<TaskImage, TaskError> {
        let built = task::build(zip, &self.images());
        let canary = fs::read(self.dir.path().join("canary")).unwrap();
        assert_eq!(canary, b"sings");
        assert!(names_in(self.dir.path()).len() <= 2);
        // Whatever came of it, there are images and nothing else.
        for name in names_in(&self.images()) {
            assert!(name == ".lock" || name.ends_with(".erofs"), "{name}");
        }
        built
    }

    /// What is in an image.
    fn extract(&self, image: &TaskImage) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let to = format!("--extract={}/tree", dir.path().display());
        output("fsck.erofs", &[&to, &image.path.display().to_string()]);
        dir
    }

    fn refused(&self, zip: &[u8]) -> &'static str {
        let error = self.build(zip).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Invalid, "{error:?}");
        assert!(error.advice().is_some(), "{error:?}");
        assert_eq!(names_in(&self.images()), [".lock"]);
        error.code()
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn code_is_unpacked_as_it_is() {
    let room = Room::new();
    let zip = Zip::new()
        .file("bootstrap", 0o755, b"#!/bin/sh\n")
        .file("lib/a/b.py", 0o644, &[b'x'; 100_000])
        .file("private", 0o700, b"p")
        .file("secret", 0o4600, b"s")
        .bytes();
    let image = room.build(&zip).unwrap();
    assert_eq!(image.unpacked_size, 100_000 + 10 + 2);
    assert_eq!(mode(&image.path), 0o444);
    let hex = image.digest.strip_prefix("sha256:").unwrap();
    assert_eq!(
        image.path.file_name().unwrap().to_str().unwrap(),
        format!("sha256-{hex}.erofs")
    );
    let summed = output("sha256sum", &[image.path.to_str().unwrap()]);
    assert!(summed.starts_with(hex));
    let tree = room.extract(&image);
    let tree = tree.path().join("tree");
    assert_eq!(fs::read(tree.join("bootstrap")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(fs::read(tree.join("lib/a/b.py")).unwrap().len(), 100_000);
    for (path, expected) in [
        ("bootstrap", 0o755),
        ("lib", 0o755),
        ("lib/a", 0o755),
        ("lib/a/b.py", 0o644),
        // The function may run as somebody else, and has no secrets from itself.
        ("private", 0o755),
        ("secret", 0o644),
    ] {
        assert_eq!(mode(&tree.join(path)), expected, "{path}");
    }
}

fn everything_is_roots() {
    let room = Room::new();
    let image = room
        .build(&Zip::new().file("d/f", 0o755, b"x").bytes())
        .unwrap();
    for path in ["/", "/d", "/d/f"] {
        let shown = output(
            "dump.erofs",
            &[&format!("--path={path}"), image.path.to_str().unwrap()],
        );
        assert!(shown.contains("Uid: 0   Gid: 0"), "{shown}");
        assert!(shown.contains("1970-01-01"), "{shown}");
    }
}

fn equal_code_is_an_equal_image() {
    let room = Room::new();
    let entry = |zip: Zip, name: &str, year| {
        let time = zip::DateTime::from_date_and_time(year, 1, 1, 0, 0, 0).unwrap();
        let options = SimpleFileOptions::default().last_modified_time(time);
        zip.with(name, name.as_bytes(), options)
    };
    let one = entry(entry(Zip::new(), "a", 2020), "b", 2021).bytes();
    let other = entry(entry(Zip::new(), "b", 2024), "a", 2025).bytes();
    let first = room.build(&one).unwrap();
    assert_eq!(first, room.build(&one).unwrap());
    assert_eq!(first, room.build(&other).unwrap());
    let elsewhere = Room::new().build(&other).unwrap();
    assert_eq!(first.digest, elsewhere.digest);
    let changed = room
        .build(&Zip::new().file("a", 0o644, b"A").bytes())
        .unwrap();
    assert_ne!(first.digest, changed.digest);
    assert_eq!(names_in(&room.images()).len(), 3);
}

fn archives_without_modes_get_usual_ones() {
    let room = Room::new();
    let mut zip = Zip::new();
    zip.0
        .add_directory("d", SimpleFileOptions::default())
        .unwrap();
    let mut zip = zip.file("d/run", 0o755, b"x").bytes();
    // Made on MS-DOS, whose attributes are in the lower half.
    for at in headers(&zip) {
        zip[at + 5] = 0;
    }
    let tree = room.extract(&room.build(&zip).unwrap());
    assert_eq!(mode(&tree.path().join("tree/d")), 0o755);
    assert_eq!(mode(&tree.path().join("tree/d/run")), 0o644);
}

/// Where the headers of the central directory are.
fn headers(zip: &[u8]) -> Vec<usize> {
    (0..zip.len().saturating_sub(4))
        .filter(|at| zip[*at..].starts_with(b"PK\x01\x02"))
        .collect()
}

fn links_within_the_code_stay() {
    let room = Room::new();
    let zip = Zip::new()
        .link("bin/tool", "../lib/tool.js")
        .link("lib/self", ".")
        .link("dangling", "nowhere")
        .link("circle", "circle")
        .file("lib/tool.js", 0o755, b"x")
        .bytes();
    let image = room.build(&zip).unwrap();
    let tree = room.extract(&image);
    assert_eq!(fs::read(tree.path().join("tree/bin/tool")).unwrap(), b"x");
}

fn links_out_of_the_code_are_refused() {
    let room = Room::new();
    for (path, target) in [
        ("l", "/etc/passwd"),
        ("l", "/"),
        ("l", ".."),
        ("a/l", "../../canary"),
        ("l", "a/../../canary"),
    ] {
        let zip = Zip::new()
            .file("a/f", 0o644, b"")
            .link(path, target)
            .bytes();
        assert_eq!(room.refused(&zip), "code_symlink", "{target}");
    }
    // Through another link, where the text alone looks harmless.
    let zip = Zip::new()
        .file("a/b/f", 0o644, b"")
        .link("a/b/up", "../..")
        .link("a/b/out", "up/..")
        .bytes();
    assert_eq!(room.refused(&zip), "code_symlink");
    // And what is written through one does not arrive.
    let outside = room.dir.path().display().to_string();
    let zip = Zip::new()
        .link("l", &outside)
        .file("l/canary", 0o644, b"silent")
        .bytes();
    room.refused(&zip);
}

fn paths_out_of_the_code_are_refused() {
    let room = Room::new();
    let long = "x".repeat(300);
    for (path, code) in [
        ("/etc/passwd", "code_path"),
        ("../canary", "code_path"),
        ("a/../../canary", "code_path"),
        ("a\0b", "code_path"),
        (&long, "code_path"),
        (".", "code_entry"),
    ] {
        // The crate's writer tidies names; what it cannot know is put in afterwards.
        let plain = "y".repeat(path.len());
        let mut zip = Zip::new().file(&plain, 0o644, b"content").bytes();
        replace(&mut zip, plain.as_bytes(), path.as_bytes());
        assert_eq!(room.refused(&zip), code, "{path:?}");
    }
    let zip = Zip::new()
        .file("a", 0o644, b"")
        .file("a/b", 0o644, b"")
        .bytes();
    assert_eq!(room.refused(&zip), "code_entry");
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            at += to.len();
        } else {
            at += 1;
        }
    }
}

fn sizes_are_counted_and_not_believed() {
    let room = Room::new();
    // Less than a hundredth of what comes of it.
    let mut zip = Zip::new();
    let chunk = vec![0; 1 << 20];
    let options = SimpleFileOptions::default().compression_level(Some(1));
    zip.0.start_file("bomb", options).unwrap();
    for _ in 0..=MOST_UNPACKED >> 20 {
        zip.0.write_all(&chunk).unwrap();
    }
    let mut zip = zip.bytes();
    assert!((zip.len() as u64) < MOST_UNPACKED / 100);
    assert_eq!(room.refused(&zip), "code_too_much");
    // Its headers say ten bytes: the first that is more is a contradiction.
    let at = headers(&zip)[0];
    zip[at + 24..at + 28].copy_from_slice(&10_u32.to_le_bytes());
    assert_eq!(room.refused(&zip), "code_damaged");
    let large = usize::try_from(MOST_ZIPPED + 1).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let refused = task::build(&vec![0; large], &fresh.path().join("code"));
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.class(), refused.code()),
        (ErrorClass::Invalid, "code_too_large")
    );
    assert!(names_in(fresh.path()).is_empty());
}

fn many_entries_are_refused() {
    let room = Room::new();
    // Folders that no entry names: 250 for each entry.
    let mut zip = Zip::new();
    for n in 0..=MOST_ENTRIES / 250 {
        zip = zip.file(&format!("{n}{}/f", "/d".repeat(249)), 0o644, b"");
    }
    assert_eq!(room.refused(&zip.bytes()), "code_too_many_files");
    // Headers alone are refused before they are read.
    let header = [b"PK\x01\x02".as_slice(), &[0; 42]].concat();
    let many = usize::try_from(MOST_ENTRIES + 1).unwrap();
    assert_eq!(room.refused(&header.repeat(many)), "code_too_many_files");
}

fn overlapping_entries_are_refused() {
    let room = Room::new();
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut zip = Zip::new()
        .with("a", b"12345", options)
        .with("b", b"12345", options)
        .bytes();
    let at = headers(&zip);
    // The second file is the first one again.
    let first: [u8; 4] = zip[at[0] + 42..at[0] + 46].try_into().unwrap();
    zip[at[1] + 42..at[1] + 46].copy_from_slice(&first);
    assert_eq!(room.refused(&zip), "code_overlap");
    // The same name twice.
    let mut zip = Zip::new()
        .with("aaaa", b"1", options)
        .with("bbbb", b"2", options)
        .bytes();
    replace(&mut zip, b"bbbb", b"aaaa");
    assert_eq!(room.refused(&zip), "code_overlap");
}

fn what_cannot_be_read_is_refused() {
    let room = Room::new();
    assert_eq!(room.refused(b""), "code_not_zip");
    assert_eq!(
        room.refused(b"#!/bin/sh\necho no archive\n"),
        "code_not_zip"
    );
    assert_eq!(room.refused(&Zip::new().bytes()), "code_empty");
    let sound = Zip::new().file("a", 0o644, &[7; 1000]).bytes();
    assert_eq!(room.refused(&sound[..sound.len() - 30]), "code_not_zip");
    let change = |offset: usize, value: &[u8]| {
        let mut zip = sound.clone();
        for at in headers(&sound) {
            zip[at + offset..at + offset + value.len()].copy_from_slice(value);
        }
        zip
    };
    // Its flags, its method, its checksum, its kind.
    assert_eq!(room.refused(&change(8, &[1, 0])), "code_encrypted");
    assert_eq!(room.refused(&change(10, &[14, 0])), "code_compression");
    assert_eq!(room.refused(&change(16, &[1, 2, 3, 4])), "code_damaged");
    let device = (0o060_644_u32 << 16).to_le_bytes();
    assert_eq!(room.refused(&change(38, &device)), "code_entry");
}

/// Entries of any names and links, and archives with any bytes changed: nothing outside of the
/// tree changes, and nothing panics.
fn whatever_comes_stays_inside() {
    let parts = ["a", "b", "..", ".", "", "canary", "OUTSIDE", "a/b", "../.."];
    let text = || proptest::collection::vec(0..parts.len(), 1..5);
    let entries = proptest::collection::vec((0..3_u8, text(), text(), any::<u16>()), 1..12);
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::with_cases(300)
    });
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "sings").unwrap();
    let before = fs::metadata(&outside).unwrap();
    let ran = runner.run(&(entries, changes), |(entries, changes)| {
        let spell = |choices: &[usize]| {
            let words: Vec<&str> = choices.iter().map(|n| parts[*n]).collect();
            words
                .join("/")
                .replace("OUTSIDE", outside.to_str().unwrap())
        };
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (kind, path, target, mode) in &entries {
            let options = SimpleFileOptions::default().unix_permissions(u32::from(*mode));
            let (path, target) = (spell(path), spell(target));
            // Names that are there already are refused by the writer.
            let _ = match kind {
                0 => zip
                    .start_file(&*path, options)
                    .map(|()| zip.write_all(b"x").unwrap()),
                1 => zip.add_directory(&*path, options),
                _ => zip.add_symlink(&*path, &*target, options),
            };
        }
        let mut bytes = zip.finish().unwrap().into_inner();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        aleph_image::fuzzing::unpack_task(&tree, &bytes);
        aleph_image::fuzzing::remove(&tree).unwrap();
        let after = fs::metadata(&outside).unwrap();
        prop_assert_eq!(
            (before.mtime_nsec(), before.ctime_nsec()),
            (after.mtime_nsec(), after.ctime_nsec())
        );
        prop_assert_eq!(fs::read(outside.join("canary")).unwrap(), b"sings");
        Ok(())
    });
    ran.unwrap();
}
