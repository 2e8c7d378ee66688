//! Backups of volumes over the API of a daemon.

mod support;

use anyhow::Result;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::Daemon;

/// Bytes that do not compress, with nothing among them.
fn image() -> Vec<u8> {
    let mut state = 0x5eed_u64;
    let mut bytes = Vec::with_capacity(24 << 20);
    while bytes.len() < 6 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.resize(20 << 20, 0);
    bytes.extend_from_within(..4 << 20);
    bytes
}

#[test]
fn a_volume_is_backed_up_and_made_again() -> Result<()> {
    let daemon = Daemon::up()?;
    let root = daemon.node.root.path().to_owned();
    let file = |name: &str| root.join(name).display().to_string();
    let bytes = image();
    fs::write(file("image"), &bytes)?;
    daemon.ok(&[
        "volume",
        "import",
        &file("image"),
        "data",
        "--format",
        "raw",
    ])?;
    let url = format!("file://{}", file("store"));
    let absent = daemon.aleph(&["volume", "backups", &url])?;
    absent.assert_failed_with(&["there is no repository at", "The first backup"]);

    let first = daemon.json(&[
        "volume", "backup", "data", &url, "--name", "first", "--json",
    ])?;
    let stored = first["stored"].as_u64().unwrap_or_default();
    assert!(
        (6 << 20..7 << 20).contains(&stored),
        "the copy of 4 MiB is stored once: {first}"
    );
    // A snapshot is the same in the store, but for its name.
    daemon.ok(&["volume", "snapshot", "data", "kept"])?;
    let second = daemon.json(&["volume", "backup", "data@kept", &url, "--json"])?;
    assert_eq!(
        (&second["name"], &second["parent"]),
        (&"kept".into(), &first["id"])
    );
    assert!(
        second["stored"].as_u64().is_some_and(|n| n < 10_000),
        "{second}"
    );
    let all = daemon.json(&["volume", "backups", &url, "--json"])?;
    assert_eq!(all, serde_json::json!([first, second]));

    let id = &first["id"].as_str().unwrap_or_default()[..12];
    assert_eq!(
        daemon.ok(&["volume", "restore-backup", &url, id, "again"])?,
        "again"
    );
    daemon.ok(&["volume", "export", "again", &file("exported")])?;
    assert!(
        fs::read(file("exported"))? == bytes,
        "what came back differs"
    );

    for (words, said) in [
        (
            &["volume", "restore-backup", &url, id, "again"][..],
            "again",
        ),
        (
            &["volume", "restore-backup", &url, "0000", "x"],
            "there is no snapshot \"0000\"",
        ),
        (&["volume", "backup", "nosuch", &url], "nosuch"),
        (
            &["volume", "backup", "data", "ftp://host/x"],
            "is no place for backups",
        ),
    ] {
        daemon.aleph(words)?.assert_failed_with(&[said]);
    }
    let secret = daemon.aleph(&["volume", "backup", "data", "s3://KEY:SECRET@bucket/x"])?;
    secret.assert_failed_with(&["credentials have no place in it"]);
    assert!(!secret.stderr.contains("SECRET") && !daemon.log().contains("SECRET"));
    // A damaged pack is told by its name, and makes no volume.
    let packs = fs::read_dir(root.join("store/packs"))?;
    for folder in packs {
        for pack in fs::read_dir(folder?.path())? {
            fs::write(pack?.path(), "nothing")?;
        }
    }
    let damaged = daemon.aleph(&["volume", "restore-backup", &url, id, "broken"])?;
    damaged.assert_failed_with(&["packs/", "is damaged"]);
    assert!(!daemon.ok(&["volume", "ls", "-q"])?.contains("broken"));
    daemon.end()
}

/// A place for backups below a daemon's folder.
fn place(daemon: &Daemon, name: &str) -> String {
    format!("file://{}", daemon.node.root.path().join(name).display())
}

/// Makes a volume of these bytes.
fn import(daemon: &Daemon, name: &str, bytes: &[u8]) -> Result<()> {
    let image = daemon.node.root.path().join("image");
    fs::write(&image, bytes)?;
    let image = image.display().to_string();
    daemon.ok(&["volume", "import", &image, name, "--format", "raw"])?;
    Ok(())
}

fn id(backup: &Value) -> &str {
    backup["id"].as_str().unwrap_or_default()
}

/// All files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

/// A volume with some bytes that do not compress at the beginning of each 8 MiB.
fn strewn(pieces: u8) -> Vec<u8> {
    let some = image();
    let piece = |n: u8| {
        let mut piece = some[usize::from(n) << 18..][..1 << 18].to_vec();
        piece.resize(8 << 20, 0);
        piece
    };
    (0..pieces).flat_map(piece).collect()
}

/// The last lines that a restore tells: how far it came, and how it ended.
fn restore(daemon: &Daemon, request: &Value) -> Result<(Value, Value)> {
    let socket = daemon.node.root.paths()?.run().join("aleph.sock");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "120", "--unix-socket"])
        .arg(socket)
        .args(["-H", "content-type: application/json", "-d"])
        .arg(request.to_string())
        .arg("http://node/v1/backups/restore")
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    let lines: Vec<Value> = said
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let progress = lines.iter().rfind(|line| line["written"].is_u64());
    let last = lines.last().cloned().unwrap_or_default();
    Ok((progress.cloned().unwrap_or_default(), last))
}

#[test]
fn a_restore_that_broke_off_goes_on_where_it_ended() -> Result<()> {
    let daemon = Daemon::up()?;
    let url = place(&daemon, "store");
    let folder = daemon.node.root.path().join("store/packs");
    import(&daemon, "less", &strewn(8))?;
    daemon.ok(&["volume", "backup", "less", &url])?;
    let before = files(&folder)?;
    // What it has besides is in packs of its own.
    let bytes = strewn(10);
    import(&daemon, "data", &bytes)?;
    let backup = daemon.json(&["volume", "backup", "data", &url, "--json"])?;
    let mut whole = Vec::new();
    for pack in files(&folder)? {
        let bytes = fs::read(&pack)?;
        // Those with nodes of the tree are small.
        if !before.contains(&pack) && bytes.len() > 1 << 17 {
            let mut broken = bytes.clone();
            broken[1 << 16..1 << 17].fill(0);
            fs::write(&pack, broken)?;
            whole.push((pack, bytes));
        }
    }
    assert!(!whole.is_empty(), "the end is somewhere");
    let request = serde_json::json!({ "url": url, "backup": id(&backup), "name": "again" });
    let (_, last) = restore(&daemon, &request)?;
    assert_eq!(last["error"]["code"], "backup_object_damaged", "{last}");
    assert!(!daemon.ok(&["volume", "ls", "-q"])?.contains("again"));
    for (pack, bytes) in whole {
        fs::write(pack, bytes)?;
    }
    // Four pieces of eight MiB are restored at a time, so five were there before one of the last two broke it off.
    let all = 10 << 18;
    let (progress, last) = restore(&daemon, &request)?;
    assert_eq!(last["volume"]["name"], "again", "{last}");
    let written = progress["written"].as_u64().unwrap_or(all);
    assert!(written <= all - (5 << 18), "{progress}");
    let exported = daemon
        .node
        .root
        .path()
        .join("exported")
        .display()
        .to_string();
    daemon.ok(&["volume", "export", "again", &exported])?;
    assert!(fs::read(&exported)? == bytes, "what came back differs");
    // It was taken: another one begins anew.
    let request = serde_json::json!({ "url": url, "backup": id(&backup), "name": "third" });
    let (progress, last) = restore(&daemon, &request)?;
    assert_eq!(last["volume"]["name"], "third", "{last}");
    assert_eq!(progress["written"], all, "{progress}");
    daemon.end()
}

#[test]
fn backups_are_looked_at_forgotten_and_pruned() -> Result<()> {
    let daemon = Daemon::up()?;
    import(&daemon, "data", &image())?;
    let url = place(&daemon, "store");
    let mut made = Vec::new();
    for name in ["one", "two", "three"] {
        made.push(daemon.json(&["volume", "backup", "data", &url, "--name", name, "--json"])?);
    }
    for words in [&["--verify"][..], &["--verify", "--read-data"]] {
        let said = daemon.ok(&[&["volume", "backups", &url], words].concat())?;
        assert!(said.starts_with("3 backups, "), "{said}");
    }
    let looked = daemon.json(&[
        "volume",
        "backups",
        &url,
        "--verify",
        "--read-data",
        "--json",
    ])?;
    assert!(
        looked["read"].as_u64().is_some_and(|read| read > 6 << 20),
        "{looked}"
    );

    // Rules remove what none of them keeps; first it is only said.
    let forget =
        |words: &[&str]| daemon.json(&[&["volume", "forget", &url, "--json"], words].concat());
    let names = |backups: &Value| -> Vec<String> {
        let all = backups.as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    // They are of one year, if not of one day.
    let said = forget(&["--keep-last", "1", "--keep-yearly", "7", "--dry-run"])?;
    assert_eq!(names(&said["forgotten"]), ["one", "two"]);
    assert_eq!(
        daemon.json(&["volume", "backups", &url, "--json"])?,
        Value::from(made.clone())
    );
    let said = forget(&["--keep-last", "2", "--volume", "data"])?;
    assert_eq!(
        (names(&said["forgotten"]), names(&said["kept"])),
        (vec!["one".into()], vec!["two".into(), "three".into()])
    );
    let unknown = &[
        "volume",
        "forget",
        &url,
        "--keep-last",
        "1",
        "--volume",
        "0x00",
    ];
    daemon
        .aleph(unknown)?
        .assert_failed_with(&["there are no backups of the volume \"0x00\""]);
    let said = daemon.ok(&["volume", "forget", &url, &id(&made[1])[..12]])?;
    assert_eq!(said, id(&made[1]));
    for (words, why) in [
        (&["volume", "forget", &url][..], "required"),
        (
            &["volume", "forget", &url, "00", "--keep-last", "1"],
            "cannot be used with",
        ),
        (
            &["volume", "forget", &url, "--keep-last", "0"],
            "a rule that keeps nothing",
        ),
        (
            &["volume", "forget", &url, "nosuch"],
            "there is no snapshot",
        ),
        (
            &["volume", "forget", &url, "00", "--volume", "data"],
            "required",
        ),
    ] {
        daemon.aleph(words)?.assert_failed_with(&[why]);
    }

    // All that the last one needs stays; what none needs goes by the second prune.
    let prune = || daemon.json(&["volume", "prune-backups", &url, "--grace", "0s", "--json"]);
    prune()?;
    assert_eq!(prune()?["deleted"], 0, "all of it is needed");
    daemon.ok(&["volume", "forget", &url, id(&made[2])])?;
    let first = prune()?;
    assert!(
        first["trashed"].as_u64().is_some_and(|packs| packs > 0),
        "{first}"
    );
    let said = daemon.ok(&["volume", "prune-backups", &url])?;
    assert!(
        said.starts_with("0 B freed in 0 packs"),
        "its grace is a day: {said}"
    );
    let second = prune()?;
    assert!(
        second["freed"]
            .as_u64()
            .is_some_and(|bytes| bytes > 6 << 20),
        "{second}"
    );

    // Damage is told, with the backup that it breaks, by the exit code, too.
    let fourth = daemon.json(&["volume", "backup", "data", &url, "--json"])?;
    let packs = files(&daemon.node.root.path().join("store/packs"))?;
    for pack in packs {
        let mut bytes = fs::read(&pack)?;
        bytes[100] ^= 1;
        fs::write(&pack, bytes)?;
    }
    let looked = daemon.aleph(&["volume", "backups", &url, "--verify", "--read-data"])?;
    assert_eq!(looked.code, 1, "{}", looked.text());
    let told = looked.text();
    assert!(
        told.contains(&format!("backup {} is not whole", id(&fourth))),
        "{told}"
    );
    // The next one stores it anew.
    let fifth = daemon.json(&["volume", "backup", "data", &url, "--json"])?;
    daemon.ok(&["volume", "restore-backup", &url, id(&fifth), "again"])?;
    daemon.end()
}

#[test]
fn an_encrypted_place_needs_its_key() -> Result<()> {
    let mut daemon = Daemon::up()?;
    let root = daemon.node.root.path().to_owned();
    let secret = b"what nobody else is to read. ".repeat(50_000);
    import(&daemon, "data", &secret[..1 << 20])?;
    let key = |name: &str, byte: u8, mode| -> Result<String> {
        let path = root.join(name);
        fs::write(&path, [byte; 64])?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path.display().to_string())
    };
    let (ours, other) = (key("ours", b'a', 0o600)?, key("other", b'b', 0o600)?);
    let seen = key("seen", b'a', 0o644)?;
    let (sealed, clear) = (place(&daemon, "sealed"), place(&daemon, "clear"));
    let made = daemon.json(&[
        "volume",
        "backup",
        "data",
        &sealed,
        "--key-file",
        &ours,
        "--json",
    ])?;
    let plain = daemon.json(&["volume", "backup", "data", &clear, "--json"])?;
    for (words, why) in [
        (
            &["volume", "backups", &sealed][..],
            "is encrypted, and no key was given",
        ),
        (
            &["volume", "backups", &sealed, "--key-file", &other],
            "the key does not open",
        ),
        (
            &["volume", "backups", &sealed, "--key-file", "none"],
            "no key was given",
        ),
        (
            &["volume", "backup", "data", &clear, "--key-file", &ours],
            "is not encrypted, and a key",
        ),
        (
            &["volume", "backup", "data", &sealed, "--key-file", &seen],
            "everybody on this host",
        ),
        (&["volume", "prune-backups", &sealed], "no key was given"),
        (
            &["volume", "forget", &sealed, id(&made)],
            "no key was given",
        ),
        (
            &["volume", "restore-backup", &sealed, id(&made), "x"],
            "no key was given",
        ),
        (
            &["volume", "backups", &sealed, "--verify"],
            "no key was given",
        ),
    ] {
        daemon.aleph(words)?.assert_failed_with(&[why]);
    }
    for file in files(&root.join("sealed"))? {
        let bytes = fs::read(&file)?;
        let tells = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        let volume = made["volume"].as_str().unwrap_or_default();
        assert!(
            !tells(b"nobody else") && !tells(volume.as_bytes()),
            "{}",
            file.display()
        );
    }
    // The node's own key is that of whoever names none.
    daemon.kill_and_restart_with(&format!("[volumes]\nbackup_key_file = {ours:?}\n"))?;
    let again = daemon.json(&["volume", "backup", "data", &sealed, "--json"])?;
    assert_eq!(again["parent"], made["id"]);
    daemon.ok(&["volume", "restore-backup", &sealed, id(&made), "again"])?;
    let out = root.join("out").display().to_string();
    daemon.ok(&["volume", "export", "again", &out])?;
    assert!(
        fs::read(&out)? == secret[..1 << 20],
        "what came back differs"
    );
    daemon
        .aleph(&["volume", "backups", &clear])?
        .assert_failed_with(&["is not encrypted"]);
    let all = daemon.json(&["volume", "backups", &clear, "--key-file", "none", "--json"])?;
    assert_eq!(all, Value::from(vec![plain]));
    daemon.end()
}

#[test]
fn an_increment_reads_what_changed_alone() -> Result<()> {
    let daemon = Daemon::configured("[volumes]\nbackend = \"qcow2\"\n", &[])?;
    import(&daemon, "data", &image())?;
    let url = place(&daemon, "store");
    daemon.ok(&["volume", "snapshot", "data", "monday"])?;
    let backup = |of: &str| daemon.json(&["volume", "backup", of, &url, "--json"]);
    let monday = backup("data@monday")?;
    assert!(
        monday["read"].as_u64().is_some_and(|read| read >= 6 << 20),
        "{monday}"
    );
    // Nothing was written since.
    daemon.ok(&["volume", "snapshot", "data", "tuesday"])?;
    for of in ["data@tuesday", "data"] {
        let later = backup(of)?;
        assert_eq!(later["read"], 0, "{later}");
    }
    // So it is with a copy: it goes on from there.
    daemon.ok(&["volume", "clone", "data@monday", "copy"])?;
    let copy = backup("copy")?;
    assert_eq!(copy["read"], 0, "{copy}");
    daemon.ok(&["volume", "restore-backup", &url, id(&copy), "again"])?;
    let out = daemon.node.root.path().join("out");
    daemon.ok(&["volume", "export", "again", &out.display().to_string()])?;
    assert!(fs::read(&out)? == image(), "what came back differs");
    daemon.end()
}

#[test]
fn where_backups_go_is_for_operators() -> Result<()> {
    let daemon = Daemon::up()?;
    let root = daemon.node.root.path().to_owned();
    let url = format!("file://{}", root.join("store").display());
    fs::write(root.join("image"), vec![1; 1 << 20])?;
    let image = root.join("image").display().to_string();
    daemon.ok(&[
        "--account",
        "guest",
        "volume",
        "import",
        &image,
        "theirs",
        "--format",
        "raw",
    ])?;
    for words in [
        &["volume", "backups", &url][..],
        &["volume", "backup", "theirs", &url],
        &["volume", "restore-backup", &url, "00", "x"],
        &["volume", "backups", &url, "--verify"],
        &["volume", "forget", &url, "00"],
        &["volume", "prune-backups", &url],
    ] {
        let ended = daemon.aleph(&[&["--account", "guest"], words].concat())?;
        ended.assert_failed_with(&["only operators of the node may do this"]);
    }
    assert!(!root.join("store").exists());
    daemon.end()
}

/// What a node tells of a volume.
fn volume(daemon: &Daemon, name: &str) -> Result<Value> {
    Ok(daemon.json(&["volume", "inspect", "--", name])?[0].clone())
}

#[test]
fn a_volume_comes_back_with_its_filesystem_and_to_whom_it_is_meant_for() -> Result<()> {
    let daemon = Daemon::configured("[volumes]\nmax_size_per_account = \"1g\"\n", &[])?;
    let url = place(&daemon, "store");
    for filesystem in ["ext4", "xfs", "none"] {
        daemon.ok(&[
            "volume", "create", "data", "--size", "300m", "--fs", filesystem,
        ])?;
        let made = daemon.json(&["volume", "backup", "data", &url, "--json"])?;
        assert_eq!(
            (&made["volume_name"], &made["account"], &made["filesystem"]),
            (&"data".into(), &"default".into(), &filesystem.into()),
            "{made}"
        );
        let listed = daemon.ok(&["volume", "backups", &url])?;
        assert!(listed.contains(" data "), "{listed}");
        daemon.ok(&[
            "volume",
            "restore-backup",
            &url,
            id(&made),
            "again",
            "--for",
            "guest",
        ])?;
        let again = volume(&daemon, "again")?;
        assert_eq!(again["account"], "guest", "{again}");
        assert_eq!(again["filesystem"], filesystem, "{again}");
        assert_eq!(again["unclean"], false, "nobody ever wrote to it: {again}");
        // What was kept under a name may have been in use.
        daemon.ok(&["volume", "snapshot", "data", "kept"])?;
        let kept = daemon.json(&["volume", "backup", "data@kept", &url, "--json"])?;
        daemon.ok(&["volume", "restore-backup", &url, id(&kept), "own"])?;
        let own = volume(&daemon, "own")?;
        assert_eq!(
            (&own["filesystem"], &own["unclean"]),
            (&filesystem.into(), &true.into())
        );
        daemon.ok(&["volume", "rm", "--now", "again", "own"])?;
        daemon.ok(&["volume", "rm", "--now", "data@kept"])?;
        daemon.ok(&["volume", "rm", "--now", "data"])?;
    }
    let bad = daemon.aleph(&[
        "volume",
        "restore-backup",
        &url,
        "0",
        "x",
        "--for",
        "No One",
    ])?;
    bad.assert_failed_with(&["\"No One\" cannot be an account's name"]);

    // An image of a disk has what its bytes say.
    let image = daemon.node.root.path().join("image").display().to_string();
    daemon.ok(&["volume", "create", "xfs", "--size", "300m", "--fs", "xfs"])?;
    daemon.ok(&["volume", "export", "xfs", &image])?;
    daemon.ok(&["volume", "import", &image, "again"])?;
    assert_eq!(volume(&daemon, "again")?["filesystem"], "xfs");
    daemon.end()
}

#[test]
fn a_backup_that_its_account_has_no_room_for_is_refused_at_once() -> Result<()> {
    let daemon = Daemon::configured("[volumes]\nmax_size_per_account = \"50m\"\n", &[])?;
    let url = place(&daemon, "store");
    import(&daemon, "data", &image())?;
    let made = daemon.json(&["volume", "backup", "data", &url, "--json"])?;
    daemon.ok(&["volume", "restore-backup", &url, id(&made), "again"])?;
    let third = daemon.aleph(&["volume", "restore-backup", &url, id(&made), "third"])?;
    third.assert_failed_with(&["bytes of volumes"]);
    daemon.ok(&[
        "volume",
        "restore-backup",
        &url,
        id(&made),
        "third",
        "--for",
        "guest",
    ])?;
    // A record that is damaged is removed by its name, and said to be.
    let records = files(&daemon.node.root.path().join("store/snapshots"))?;
    for record in records {
        fs::write(record, "nothing")?;
    }
    let pruned = daemon.aleph(&["volume", "prune-backups", &url])?;
    pruned.assert_failed_with(&["snapshots/", "is damaged", "aleph volume forget"]);
    assert_eq!(
        daemon.ok(&["volume", "forget", &url, id(&made)])?,
        id(&made)
    );
    daemon.ok(&["volume", "prune-backups", &url])?;
    daemon.end()
}

#[test]
fn locks_that_were_left_behind_are_told_and_removed() -> Result<()> {
    let daemon = Daemon::up()?;
    let url = place(&daemon, "store");
    import(&daemon, "data", &image())?;
    daemon.json(&["volume", "backup", "data", &url, "--json"])?;
    // Nobody can tell whose it is, nor that it is nobody's.
    let name = "ab".repeat(32);
    let lock = daemon.node.root.path().join("store/locks").join(&name);
    fs::write(&lock, "{}")?;
    let prune = daemon.aleph(&["volume", "prune-backups", &url])?;
    prune.assert_failed_with(&[&format!("locks/{name}"), "--unlock"]);
    daemon.ok(&["volume", "prune-backups", &url, "--unlock"])?;
    assert!(!lock.exists());
    daemon.end()
}

#[test]
fn a_backup_that_cannot_be_made_touches_nothing() -> Result<()> {
    let daemon = Daemon::up()?;
    import(&daemon, "data", &image())?;
    let url = place(&daemon, "store");
    let long = "x".repeat(129);
    for (words, why) in [
        (&["volume", "backup", "nosuch", &url][..], "nosuch"),
        (
            &["volume", "backup", "data", &url, "--name", &long],
            "at most 128 bytes",
        ),
    ] {
        daemon.aleph(words)?.assert_failed_with(&[why]);
        assert!(!daemon.node.root.path().join("store").exists(), "{why}");
    }
    daemon
        .aleph(&["volume", "backup", "data", "file:///proc/nowhere"])?
        .assert_failed_with(&["/proc/nowhere"]);
    daemon.end()
}
