//! Backups of volumes over the API of a daemon.

mod support;

use anyhow::Result;
use std::fs;
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
    ] {
        let ended = daemon.aleph(&[&["--account", "guest"], words].concat())?;
        ended.assert_failed_with(&["only operators of the node may do this"]);
    }
    assert!(!root.join("store").exists());
    daemon.end()
}
