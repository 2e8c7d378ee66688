//! Directories and archives: what is kept, what is refused, and what never leaves the image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod host;

use aleph_image::{ArchiveError, Image, ImageError, NoProgress};
use aleph_types::{Classify, ErrorClass};
use host::{Need, State, dump, inside, output, run, trial};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use tar::{Builder, EntryType, Header};

fn main() {
    let mkfs = Need::Tool("mkfs.erofs");
    let kept = [
        Need::Mount,
        Need::Root,
        mkfs,
        Need::Tool("dump.erofs"),
        Need::Tool("tar"),
    ];
    run(vec![
        trial(
            "a_directory_is_kept_as_it_is",
            &kept,
            a_directory_is_kept_as_it_is,
        ),
        trial(
            "equal_directories_make_one_image",
            &[mkfs],
            equal_directories_make_one_image,
        ),
        trial(
            "archives_make_the_image_of_their_tree",
            &kept,
            archives_make_the_image_of_their_tree,
        ),
        trial(
            "no_entry_leaves_the_image",
            &kept,
            no_entry_leaves_the_image,
        ),
        trial(
            "hostile_entries_are_refused",
            &[Need::Root],
            hostile_entries_are_refused,
        ),
        trial(
            "what_is_no_archive_is_refused",
            &[Need::Root],
            what_is_no_archive_is_refused,
        ),
        trial("odd_archives_are_taken", &kept, odd_archives_are_taken),
    ]);
}

fn a_directory_is_kept_as_it_is() {
    let state = State::new();
    let image = import(&state, &full_tree(&state, "tree"));
    assert_is_full_tree(&image);
}

/// A tree with one of everything.
fn full_tree(state: &State, name: &str) -> std::path::PathBuf {
    let tree = state.file(name);
    fs::create_dir_all(tree.join("usr/bin")).unwrap();
    fs::write(tree.join("usr/bin/su"), "#!").unwrap();
    fs::hard_link(tree.join("usr/bin/su"), tree.join("usr/bin/sudo")).unwrap();
    symlink("/usr/bin", tree.join("bin")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let path = |name: &str| tree.join(name).display().to_string();
    output("mkfifo", &[&path("pipe")]);
    output("chown", &["1000:70000", &path("usr/bin/su")]);
    output("chown", &["-h", "1:2", &path("bin")]);
    fs::set_permissions(tree.join("usr/bin/su"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(tree.join("usr"), fs::Permissions::from_mode(0o1770)).unwrap();
    output(
        "python3",
        &[
            "-c",
            "import os,sys; os.setxattr(sys.argv[1], 'user.k', b'v\\n=1')",
            &path("usr/bin/su"),
        ],
    );
    // Children before their folders, whose times they change; and a whole second, which is
    // what every form of archive keeps.
    for file in ["usr/bin/su", "usr/bin", "usr", "bin", "empty", "pipe", "."] {
        output(
            "touch",
            &["-h", "-d", "2020-02-02 02:02:02 UTC", &path(file)],
        );
    }
    tree
}

fn assert_is_full_tree(image: &Image) {
    let su = dump(image, "/usr/bin/su");
    for fact in ["Links: 2", "Uid: 1000", "Gid: 70000", "2020-02-02 02:02:02"] {
        assert!(su.contains(fact), "{fact}: {su}");
    }
    assert!(!su.contains("Xattr size: 0"), "{su}");
    let link = dump(image, "/bin");
    assert!(
        link.contains("symlink") && link.contains("Gid: 2"),
        "{link}"
    );
    let usr = dump(image, "/usr");
    assert!(usr.contains("2020-02-02 02:02:02"), "{usr}");
    assert!(
        dump(image, "/pipe").contains("FIFO"),
        "{}",
        dump(image, "/pipe")
    );
    let modes = inside(image, "stat -c %a usr/bin/su usr && cat usr/bin/sudo");
    assert_eq!(modes, "4711\n1770\n#!");
}

fn equal_directories_make_one_image() {
    let state = State::new();
    let names: Vec<String> = (0..200).map(|n| format!("file-{n}")).collect();
    for (tree, order) in [
        ("a", names.iter().collect::<Vec<_>>()),
        ("b", names.iter().rev().collect::<Vec<_>>()),
    ] {
        fs::create_dir_all(state.file(tree).join("d")).unwrap();
        for name in order {
            let path = state.file(tree).join("d").join(name);
            fs::write(&path, name).unwrap();
            fs::hard_link(&path, path.with_extension("link")).unwrap();
        }
        let tree = state.file(tree).display().to_string();
        output(
            "find",
            &[&tree, "-exec", "touch", "-d", "@1000000000", "{}", "+"],
        );
    }
    assert_eq!(
        import(&state, &state.file("a")).digest(),
        import(&state, &state.file("b")).digest()
    );
}

fn archives_make_the_image_of_their_tree() {
    let state = State::new();
    let tree = full_tree(&state, "tree");
    let expected = import(&state, &tree);
    let tree = tree.display().to_string();
    for (name, options) in [
        ("plain", &["--format=pax"][..]),
        ("gzip", &["--format=pax", "--gzip"]),
        ("xz", &["--format=pax", "--xz"]),
        ("zstd", &["--format=pax", "--zstd"]),
    ] {
        let archive = state.file(name).display().to_string();
        let fixed = ["--xattrs", "--sort=name", "-cf", &archive, "-C", &tree, "."];
        output("tar", &[options, &fixed[..]].concat());
        let image = import(&state, Path::new(&archive));
        assert_is_full_tree(&image);
        assert_eq!(image.digest(), expected.digest(), "{name}");
    }
}

struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// An entry with a path and a link that are not looked at by whoever writes them.
    fn entry(mut self, kind: EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str) -> Self {
        self.entry(EntryType::Regular, path, "", b"content")
    }

    fn symlink(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, path, to, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn attempt(state: &State, archive: &[u8]) -> Result<Image, ImageError> {
    let path = state.file("archive");
    fs::write(&path, archive).unwrap();
    state.store().import(&path, "imported", &mut NoProgress)
}

fn import(state: &State, path: &Path) -> Image {
    state
        .store()
        .import(path, "imported", &mut NoProgress)
        .unwrap()
}

fn no_entry_leaves_the_image() {
    let state = State::new();
    let outside = state.file("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.display().to_string();
    let up = format!("../../../../../../../..{target}");
    let archive = Tar::new()
        .symlink("absolute", &target)
        .file("absolute/a")
        .symlink("relative", &up)
        .file("relative/b")
        .symlink("chain", "absolute")
        .file("chain/c")
        .file(&format!("{target}/d"))
        .symlink("direct", &format!("{target}/e"))
        .file("direct");
    // The links lead to folders of the image, which have to be there first.
    let with_folders = Tar::new()
        .entry(EntryType::Directory, &target, "", b"")
        .bytes();
    let mut whole = with_folders[..512].to_vec();
    whole.extend(archive.bytes());
    let image = attempt(&state, &whole).unwrap();
    assert!(host::names_in(&outside).is_empty());
    for name in ["a", "b", "c", "d"] {
        assert!(
            dump(&image, &format!("{target}/{name}")).contains("Size: 7"),
            "{name}"
        );
    }
    assert!(dump(&image, "/direct").contains("regular file"));
}

fn hostile_entries_are_refused() {
    let state = State::new();
    let outside = state.file("outside");
    fs::write(&outside, "secret").unwrap();
    let outside = outside.display().to_string();
    let sparse = Tar::new().entry(EntryType::GNUSparse, "x", "", b"");
    let long_name = vec![b'x'; 2 << 20];
    let cases: Vec<(&str, Tar)> = vec![
        ("archive_path", Tar::new().file("../evil")),
        ("archive_path", Tar::new().file("a/../../evil")),
        (
            "archive_path",
            Tar::new().entry(EntryType::Link, "a", "../../etc/passwd", b""),
        ),
        (
            "archive_entry",
            Tar::new().entry(EntryType::Link, "a", &outside, b""),
        ),
        (
            "archive_entry",
            Tar::new().symlink("a", "/nowhere").file("a/b"),
        ),
        ("archive_entry", Tar::new().file("a").file("a/b")),
        ("archive_entry", Tar::new().file("a/b").file("a")),
        ("archive_entry", Tar::new().symlink("a", "a").file("a/b")),
        ("archive_entry", Tar::new().symlink("a", "")),
        (
            "archive_entry",
            Tar::new().entry(EntryType::Block, "disk", "", b""),
        ),
        (
            "archive_entry",
            Tar::new().entry(EntryType::new(b'?'), "what", "", b""),
        ),
        ("archive_entry", sparse),
        (
            "archive_too_much",
            Tar::new().entry(EntryType::GNULongName, "n", "", &long_name),
        ),
        (
            "archive_damaged",
            Tar::new()
                .entry(EntryType::XHeader, "n", "", b"12 uid=abc\n")
                .file("a"),
        ),
    ];
    for (n, (code, archive)) in cases.into_iter().enumerate() {
        let error = attempt(&state, &archive.bytes()).unwrap_err();
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Invalid, code),
            "{n}: {error:?}"
        );
        assert!(error.advice().is_some() || code == "archive_too_much");
        assert!(state.left().is_empty(), "{n}: {:?}", state.left());
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "secret");
}

fn what_is_no_archive_is_refused() {
    let state = State::new();
    let whole = Tar::new().file("a").file("b").bytes();
    let cases: [(&[u8], &str); 5] = [
        (b"", "it is an empty file"),
        (
            b"just some text",
            "first bytes 6a 75 73 74 20 73, \"just s\"",
        ),
        (b"PK\x03\x04 and so on", "first bytes 50 4b 03 04 20 61"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (&whole[..whole.len() / 4], "it is damaged"),
    ];
    for (content, expected) in cases {
        let error = attempt(&state, content).unwrap_err();
        let ImageError::Archive { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains(expected), "{source}");
        assert_eq!(error.class(), ErrorClass::Invalid);
        assert!(!matches!(source, ArchiveError::Disk(_)));
    }
    fs::create_dir(state.file("empty")).unwrap();
    fs::create_dir(state.file("empty/folder")).unwrap();
    for (path, why) in [
        (state.file("empty"), "there are no files in it"),
        (state.file("none"), "there is nothing of that name"),
        (state.path().to_owned(), "the image store is in it"),
        (
            "/dev/null".into(),
            "it is neither a directory nor a regular file",
        ),
    ] {
        let error = state
            .store()
            .import(&path, "imported", &mut NoProgress)
            .unwrap_err();
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Invalid, "not_importable")
        );
        assert!(error.to_string().ends_with(why), "{error}");
    }
    let error = attempt(&state, &[0; 1024]).unwrap_err();
    assert!(
        error.to_string().ends_with("there are no files in it"),
        "{error}"
    );
    assert!(state.left().is_empty(), "{:?}", state.left());
}

fn odd_archives_are_taken() {
    let state = State::new();
    // Longer than a header's field has room for, so GNU and pax forms are used.
    let deep = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let tree = state.file("tree");
    fs::create_dir_all(tree.join(&deep).parent().unwrap()).unwrap();
    fs::write(tree.join(&deep), "deep").unwrap();
    symlink("t".repeat(300), tree.join("link")).unwrap();
    let tree = tree.display().to_string();
    for form in ["gnu", "pax"] {
        let archive = state.file(form).display().to_string();
        output(
            "tar",
            &[
                &format!("--format={form}"),
                "-cf",
                &archive,
                "-C",
                &tree,
                ".",
            ],
        );
        let image = import(&state, Path::new(&archive));
        assert!(
            dump(&image, &format!("/{deep}")).contains("Size: 4"),
            "{form}"
        );
        assert!(dump(&image, "/link").contains("Size: 300"), "{form}");
    }
    // Nodes in /dev are the guest kernel's business; what comes twice, comes last; folders
    // need no entry.
    let archive = Tar::new()
        .entry(EntryType::Char, "./dev/null", "", b"")
        .entry(EntryType::Regular, "twice", "", b"first")
        .entry(EntryType::Regular, "twice", "", b"second")
        .file("/implied/folder/file")
        .bytes();
    let image = attempt(&state, &archive).unwrap();
    assert!(dump(&image, "/twice").contains("Size: 6"));
    assert!(dump(&image, "/implied/folder").contains("0755"));
    assert!(!output("dump.erofs", &["-S", &image.rootfs().display().to_string()]).contains("null"));
}
