//! Files in and out.

use crate::support::{Heard, Host, is_root};
use aleph_guest_proto::{FileInfo, Put, ToGuest};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn put<'a>(path: &'a Path) -> Put<'a> {
    use std::os::unix::ffi::OsStrExt;
    Put {
        path: path.as_os_str().as_bytes(),
        mode: 0o4751,
        uid: 1234,
        gid: 4321,
    }
}

fn get(path: &Path) -> ToGuest<'_> {
    ToGuest::Get {
        path: put(path).path,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_file_survives_the_way_in_and_out() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "what was there before").unwrap();
    let bytes: Vec<u8> = (0..3_000_017_u32)
        .map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)])
        .collect();
    let mut host = Host::ready();
    host.say(1, &ToGuest::Put(put(&path)));
    host.pour(1, &bytes);
    assert_eq!(host.collect(1).end, Heard::Done);
    assert_eq!(names(folder.path()), ["file"]);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o4751, 1234, 4321)
    );

    host.say(2, &get(&path));
    let info = FileInfo {
        size: 3_000_017,
        mode: 0o4751,
        uid: 1234,
        gid: 4321,
    };
    assert_eq!(host.hear(), (2, Heard::File(info)));
    let mut got = Vec::new();
    loop {
        match host.hear() {
            (2, Heard::Data(bytes)) => got.extend(bytes),
            (2, Heard::Eof) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(got == bytes);
}

#[test]
fn what_is_no_file_is_refused() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::ready();
    let missing = folder.path().join("no/file");
    for (message, errno) in [
        (get(folder.path()), 21),
        (get(Path::new("/dev/null")), 22),
        (get(&missing), 2),
        (ToGuest::Put(put(&missing)), 2),
    ] {
        host.say(1, &message);
        let end = host.collect(1).end;
        assert!(
            matches!(end, Heard::Failed(seen, _) if seen == errno),
            "{end:?}"
        );
    }
    host.say(1, &ToGuest::Put(put(folder.path())));
    host.say(1, &ToGuest::Eof);
    assert!(matches!(host.collect(1).end, Heard::Failed(21, _)));
}

#[test]
fn half_a_file_is_no_file() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mut host = Host::ready();
    host.say(1, &ToGuest::Put(put(&path)));
    host.say(1, &ToGuest::Data(b"half of it"));
    host.say(0, &ToGuest::Ping(1));
    assert_eq!(host.hear(), (0, Heard::Pong(1)));
    assert_eq!(names(folder.path()).len(), 1);
    assert_eq!(host.end(true), "hung up");
    assert_eq!(names(folder.path()), [""; 0]);
}
