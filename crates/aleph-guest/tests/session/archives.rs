//! Archives in and out, held against GNU tar.

use crate::support::{Heard, Host, is_root};
use aleph_guest_proto::{CONTROL, ToGuest};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn tar(arguments: &[&str]) {
    let status = Command::new("tar").args(arguments).status().unwrap();
    assert!(status.success(), "tar {arguments:?}");
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a tree is: each path with all that an archive has of it.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, seen: &mut BTreeMap<String, String>) {
        let meta = fs::symlink_metadata(at).unwrap();
        let what = if meta.is_symlink() {
            format!("link to {}", fs::read_link(at).unwrap().display())
        } else if meta.is_file() {
            let bytes = fs::read(at).unwrap();
            let sum = bytes.iter().fold(0_u64, |sum, b| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*b))
            });
            format!("file of {} ({sum:x}), {} names", bytes.len(), meta.nlink())
        } else {
            "folder".to_owned()
        };
        let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        let line = format!("{what}, {mode:o} {uid}:{gid} {}", meta.mtime());
        let name = at.strip_prefix(root).unwrap();
        seen.insert(name.display().to_string(), line);
        if meta.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                walk(root, &entry.unwrap().path(), seen);
            }
        }
    }
    let mut seen = BTreeMap::new();
    walk(root, root, &mut seen);
    // The folder that all goes to is not the archive's.
    seen.remove("");
    seen
}

/// A tree with everything that is hard about archives.
fn grow(root: &Path) {
    let file = |name: &str, size: usize| {
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251).try_into().unwrap()).collect();
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), bytes).unwrap();
    };
    for size in [0, 1, 511, 512, 513, 40_000, 1_000_003] {
        file(&format!("sizes/{size}"), size);
    }
    let long = "l".repeat(150);
    let deep = (0..12)
        .map(|n| format!("deep-folder-{n}/"))
        .collect::<String>();
    file(&format!("names/{long}"), 100);
    file(&format!("names/{}", "x".repeat(94)), 100);
    file(&format!("{deep}file"), 100);
    file("names/with blank and \u{1f980}", 5);
    file("many/names", 3000);
    fs::hard_link(root.join("many/names"), root.join("many/other")).unwrap();
    fs::hard_link(
        root.join("many/names"),
        root.join(format!("names/{long}-2")),
    )
    .unwrap();
    fs::create_dir_all(root.join("empty")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("sizes", root.join("to-folder")).unwrap();
    symlink(format!("/{}", "t".repeat(200)), root.join("far")).unwrap();
    for n in 0..700 {
        file(&format!("crowd/{n}"), n % 3);
    }
    run("mkfifo", &[text(&root.join("pipe"))]);
    run(
        "chown",
        &["-h", "3000000000:12345", text(&root.join("far"))],
    );
    run("chown", &["2097152:7", text(&root.join("sizes/513"))]);
    run("chown", &["77:88", text(&root.join("empty"))]);
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("sizes/513", 0o4711);
    mode("empty", 0o1777);
    mode("many", 0o500);
    // Before the end of the world, before its beginning, and last of all for the folders.
    run(
        "touch",
        &["-h", "-d", "@9999999999", text(&root.join("far"))],
    );
    run("touch", &["-d", "@-86400", text(&root.join("sizes/1"))]);
    for folder in ["many", "sizes", "crowd", "deep-folder-0"] {
        run("touch", &["-d", "@1000000000", text(&root.join(folder))]);
    }
}

fn pack(host: &mut Host, stream: u32, path: &Path, name: &[u8]) -> Vec<u8> {
    let path = path.as_os_str().as_bytes();
    host.say(stream, &ToGuest::Pack { path, name });
    let mut archive = Vec::new();
    loop {
        match host.hear() {
            (s, Heard::Data(bytes)) if s == stream => archive.extend(bytes),
            (s, Heard::Eof) if s == stream => return archive,
            other => panic!("{other:?}"),
        }
    }
}

fn unpack(host: &mut Host, stream: u32, path: &Path, archive: &[u8]) -> Heard {
    let path = path.as_os_str().as_bytes();
    host.say(stream, &ToGuest::Unpack { path, owners: true });
    host.pour_quietly(stream, archive)
}

#[test]
fn a_tree_survives_the_way_out_and_in() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    grow(&at("tree"));
    let mut want = tree(&at("tree"));
    // Pipes are left out.
    want.remove("pipe").unwrap();
    let mut host = Host::ready();
    let archive = pack(&mut host, 1, &at("tree"), b"renamed");
    fs::write(at("archive"), &archive).unwrap();
    for name in ["theirs", "ours"] {
        fs::create_dir(at(name)).unwrap();
    }
    let whole = |root: &Path| tree(&root.join("renamed"));
    tar(&["-C", text(&at("theirs")), "-xpf", text(&at("archive"))]);
    assert_eq!(whole(&at("theirs")), want);
    assert_eq!(unpack(&mut host, 2, &at("ours"), &archive), Heard::Done);
    assert_eq!(whole(&at("ours")), want);
    // Over what is there already.
    fs::write(at("ours/renamed/sizes/512"), "other").unwrap();
    fs::remove_file(at("ours/renamed/dangling")).unwrap();
    fs::write(at("ours/renamed/dangling"), "a file").unwrap();
    assert_eq!(unpack(&mut host, 3, &at("ours"), &archive), Heard::Done);
    assert_eq!(whole(&at("ours")), want);
}

#[test]
fn archives_of_every_kind_are_taken() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    grow(&at("tree"));
    let mut host = Host::ready();
    for format in ["gnu", "pax", "oldgnu", "ustar", "v7"] {
        if matches!(format, "ustar" | "v7") {
            // What these cannot say.
            let _ = fs::remove_dir_all(at("tree/names"));
            let _ = fs::remove_file(at("tree/far"));
            let _ = fs::remove_file(at("tree/sizes/513"));
            let _ = fs::remove_file(at("tree/sizes/1"));
        }
        if format == "v7" {
            let _ = fs::remove_dir_all(at("tree/deep-folder-0"));
            let _ = fs::remove_file(at("tree/pipe"));
        }
        let mut want = tree(&at("tree"));
        want.remove("pipe");
        let archive = at("archive");
        let option = format!("--format={format}");
        tar(&["-C", text(&at("tree")), &option, "-cf", text(&archive), "."]);
        let target = at(format);
        fs::create_dir(&target).unwrap();
        let end = unpack(&mut host, 1, &target, &fs::read(&archive).unwrap());
        assert_eq!(end, Heard::Done, "{format}");
        assert_eq!(tree(&target), want, "{format}");
    }
}

#[test]
fn one_file_or_link_is_packed_as_itself() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "contents").unwrap();
    symlink("dir", at("link")).unwrap();
    let mut host = Host::ready();
    let mut names = |path: &Path, name: &[u8]| {
        fs::write(at("archive"), pack(&mut host, 1, path, name)).unwrap();
        let list = Command::new("tar")
            .args(["-tf", text(&at("archive"))])
            .output()
            .unwrap();
        String::from_utf8(list.stdout).unwrap()
    };
    assert_eq!(names(&at("dir/file"), b""), "file\n");
    assert_eq!(names(&at("dir/file"), b"other"), "other\n");
    assert_eq!(names(&at("link"), b""), "link\n");
    assert_eq!(names(&at("link/"), b""), "link/\nlink/file\n");
    assert_eq!(names(&at("dir/."), b"."), "./\n./file\n");
}

/// A block as hostile archives have it: no honest tar writes these names.
fn entry(kind: u8, name: &str, target: &str, contents: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.extend(contents);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

#[test]
fn nothing_leads_outside() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut host = Host::ready();
    let outside = at("outside");
    let secret = outside.join("secret");
    let (absolute, up) = (text(&outside).to_owned(), "../outside".to_owned());
    fs::create_dir(&outside).unwrap();
    fs::write(&secret, "secret").unwrap();
    let long_up = [
        entry(b'L', "././@LongLink", "", b"../outside/evil\0"),
        entry(b'0', "x", "", b"evil"),
    ]
    .concat();
    let pax_up = [
        entry(b'x', "x", "", b"24 path=../outside/evil\n"),
        entry(b'0', "x", "", b"evil"),
    ]
    .concat();
    let through = |link: &str| {
        [
            entry(b'2', "out", link, b""),
            entry(b'0', "out/evil", "", b"evil"),
            entry(b'5', "out/evil-folder/", "", b""),
            entry(b'1', "out/evil-link", "out/evil", b""),
        ]
        .concat()
    };
    let mut deep_link = entry(b'2', "a/b", "../../../../../../..", b"");
    deep_link.extend(entry(b'0', &format!("a/b{absolute}/evil"), "", b"evil"));
    let cases = [
        entry(b'0', "../outside/evil", "", b"evil"),
        entry(b'0', "a/../../outside/evil", "", b"evil"),
        entry(b'5', "../outside/evil/", "", b""),
        entry(b'0', &format!("{absolute}/evil"), "", b"evil"),
        entry(b'1', "evil", "../outside/secret", b""),
        entry(b'1', "evil", &format!("{absolute}/secret"), b""),
        entry(
            b'0',
            &format!("/proc/self/root{absolute}/evil"),
            "",
            b"evil",
        ),
        long_up,
        pax_up,
        through(&absolute),
        through(&up),
        through("/proc/self/root/"),
        deep_link,
    ];
    for (number, archive) in cases.iter().enumerate() {
        let target = at(&format!("target-{number}"));
        fs::create_dir(&target).unwrap();
        // Whether it is refused or lands inside is the archive's affair.
        let end = unpack(&mut host, 1, &target, archive);
        assert!(matches!(end, Heard::Done | Heard::Failed(..)), "{end:?}");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "archive {number}: {names:?}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(
            fs::metadata(&secret).unwrap().nlink(),
            1,
            "archive {number}"
        );
    }
    assert!(!Path::new("/evil").exists());
}

#[test]
fn half_an_archive_is_an_error_and_leaves_no_half_file() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = [
        entry(b'0', "one", "", b"whole"),
        entry(b'0', "two", "", &[7; 5000]),
    ]
    .concat();
    let mut host = Host::ready();
    let end = unpack(&mut host, 1, folder.path(), &whole[..3000]);
    assert!(matches!(end, Heard::Failed(74, _)), "{end:?}");
    assert!(folder.path().join("one").exists() && !folder.path().join("two").exists());
    // The same where the host gives up.
    let path = folder.path().as_os_str().as_bytes();
    host.say(
        2,
        &ToGuest::Unpack {
            path,
            owners: false,
        },
    );
    host.say(2, &ToGuest::Data(&whole[..3000]));
    host.say(CONTROL, &ToGuest::Ping(1));
    assert_eq!(host.hear(), (CONTROL, Heard::Pong(1)));
    assert!(folder.path().join("two").exists());
    host.say(2, &ToGuest::Cancel);
    host.say(CONTROL, &ToGuest::Ping(2));
    assert_eq!(host.hear(), (CONTROL, Heard::Pong(2)));
    assert!(!folder.path().join("two").exists());
    for (archive, why) in [
        (vec![b'x'; 512], "a number is wrong"),
        (
            entry(b'S', "holes", "", b""),
            "a file with holes, which is not supported",
        ),
        (entry(b'L', "x", "", &[b'n'; 70_000]), "a name is too long"),
    ] {
        let end = unpack(&mut host, 3, folder.path(), &archive);
        let why = format!("the archive is malformed: {why}");
        assert_eq!(end, Heard::Failed(74, why));
    }
    let missing = unpack(&mut host, 4, &folder.path().join("no"), &whole);
    assert!(matches!(missing, Heard::Failed(2, _)), "{missing:?}");
}

#[test]
fn what_cannot_be_packed_is_refused_and_a_pack_can_be_given_up() {
    if !is_root() {
        return;
    }
    let mut host = Host::ready();
    for (path, errno) in [(&b"/no/such"[..], 2), (b"/dev/null", 22)] {
        host.say(1, &ToGuest::Pack { path, name: b"" });
        let end = host.collect(1).end;
        assert!(matches!(end, Heard::Failed(n, _) if n == errno), "{end:?}");
    }
    host.credits = false;
    let path = b"/usr/lib";
    host.say(2, &ToGuest::Pack { path, name: b"" });
    assert!(matches!(host.hear(), (2, Heard::Data(_))));
    // Whatever else is asked is answered while it goes on, and nothing of it after the end.
    host.say(CONTROL, &ToGuest::Ping(1));
    while host.hear() != (CONTROL, Heard::Pong(1)) {}
    host.say(2, &ToGuest::Cancel);
    host.say(CONTROL, &ToGuest::Ping(2));
    while host.hear() != (CONTROL, Heard::Pong(2)) {}
    assert_eq!(host.shell(3, "exit 1").output, "");
}
