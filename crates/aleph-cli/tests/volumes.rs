//! Volumes over the API of a daemon: made, grown, kept, copied, taken in and out, removed and had back.

mod support;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;
use support::Daemon;

/// A disk of 8 MiB whose first sector says that it has a partition table, with this byte in the middle.
fn disk(byte: u8) -> Vec<u8> {
    let mut bytes = vec![0; 8 << 20];
    bytes[510..512].copy_from_slice(b"\x55\xaa");
    bytes[4 << 20..5 << 20].fill(byte);
    bytes
}

fn qemu_img(words: &[&str]) -> Result<()> {
    let done = Command::new("qemu-img").args(words).output()?;
    ensure!(done.status.success(), "qemu-img {words:?}: {done:?}");
    Ok(())
}

fn names(volumes: &Value) -> Vec<&str> {
    let all = volumes.as_array().into_iter().flatten();
    all.filter_map(|volume| volume["name"].as_str()).collect()
}

#[test]
fn volumes_are_made_grown_kept_copied_and_had_back() -> Result<()> {
    let quota = "[volumes]\nmax_per_account = 6\nmax_size_per_account = \"100m\"\n";
    let daemon = Daemon::configured(quota, &[])?;
    let root = daemon.node.root.path().to_owned();
    let file = |name: &str| root.join(name).display().to_string();

    // Made, looked at, grown.
    let made = daemon.json(&["volume", "create", "data", "--size", "16m", "--json"])?;
    assert_eq!(
        (&made["name"], &made["size"], &made["filesystem"]),
        (&json!("data"), &json!(16), &json!("ext4"))
    );
    assert!(daemon.ok(&["volume", "ls"])?.contains("data"));
    let seen = &daemon.json(&["volume", "inspect", "data"])?[0];
    assert_eq!(
        (&seen["id"], &seen["state"]),
        (&made["id"], &json!("ready"))
    );
    let grown = daemon.json(&["volume", "resize", "data", "20m", "--json"])?;
    assert_eq!((&grown["id"], &grown["size"]), (&made["id"], &json!(20)));

    // Imported: what came in is what goes out.
    fs::write(file("raw"), disk(1))?;
    let (raw, image) = (file("raw"), file("image"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, &image])?;
    daemon.ok(&["volume", "import", &image, "disk"])?;
    daemon.ok(&["volume", "export", "disk", &file("out")])?;
    assert!(fs::read(file("out"))? == disk(1), "what came out differs");
    let there = daemon.aleph(&["volume", "export", "disk", &file("out")])?;
    there.assert_failed_with(&["is there already"]);

    // Kept and copied: over the same bytes, and each on its own.
    daemon.ok(&["volume", "snapshot", "disk", "first"])?;
    daemon.ok(&["volume", "clone", "disk@first", "copy", "--size", "12m"])?;
    daemon.ok(&["volume", "restore", "disk", "first"])?;
    let kept = &daemon.json(&["volume", "inspect", "disk"])?[0];
    assert_eq!(kept["snapshots"][0]["name"], "first");
    daemon.ok(&["volume", "export", "copy", &file("copied")])?;
    let mut longer = disk(1);
    longer.resize(12 << 20, 0);
    assert!(fs::read(file("copied"))? == longer, "the copy differs");
    let packed = file("packed");
    daemon.ok(&[
        "volume",
        "export",
        "disk@first",
        &packed,
        "--format",
        "qcow2",
    ])?;
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &packed, &raw])?;
    daemon.ok(&["volume", "rm", "disk@first"])?;
    assert_eq!(
        daemon.json(&["volume", "inspect", "disk"])?[0]["snapshots"],
        json!([])
    );

    // Removed, and had back; gone at once.
    daemon.ok(&["volume", "rm", "copy"])?;
    assert_eq!(
        names(&daemon.json(&["volume", "ls", "--json"])?),
        ["data", "disk"]
    );
    assert_eq!(
        names(&daemon.json(&["volume", "ls", "-a", "--json"])?),
        ["copy", "data", "disk"]
    );
    daemon.ok(&["volume", "undelete", "copy", "--name", "back"])?;
    daemon.ok(&["volume", "export", "back", &file("again")])?;
    assert!(fs::read(file("again"))? == longer, "what came back differs");
    daemon.ok(&["volume", "rm", "--now", "back"])?;
    let gone = daemon.aleph(&["volume", "undelete", "back"])?;
    gone.assert_failed_with(&["back"]);

    // Refused, and nothing of it stays.
    for (words, said) in [
        (
            &["volume", "create", "data", "--size", "8m"][..],
            &["\"data\" is taken"][..],
        ),
        (&["volume", "resize", "data", "1m"], &["volumes only grow"]),
        (
            &["volume", "create", "large", "--size", "90m"],
            &["bytes of volumes"],
        ),
        (&["volume", "restore", "data", "nosuch"], &["nosuch"]),
        (&["volume", "inspect", "nosuch"], &["nosuch"]),
    ] {
        daemon.aleph(words)?.assert_failed_with(said);
    }
    daemon.end()
}

#[test]
fn encrypted_volumes_come_and_go_like_others() -> Result<()> {
    let daemon = Daemon::configured("[volumes]\nkey_file = \"/nonexistent/key\"\n", &[])?;
    let refused = ["volume", "create", "none", "--size", "8m", "--encrypted"];
    let refused = daemon.aleph(&refused)?;
    refused.assert_failed_with(&["cannot make /nonexistent/key"]);
    daemon.end()?;

    let daemon = Daemon::configured("[volumes]\nencrypt = true\n", &[])?;
    let root = daemon.node.root.path().to_owned();
    let file = |name: &str| root.join(name).display().to_string();
    let encrypted = |name: &str| -> Result<Value> {
        Ok(daemon.json(&["volume", "inspect", name])?[0]["encrypted"].clone())
    };
    let create = ["volume", "create", "plain", "--size", "8m"];
    daemon.ok(&[&create[..], &["--encrypted=false"]].concat())?;
    assert_eq!(encrypted("plain")?, false);
    daemon.ok(&["volume", "clone", "plain", "copy"])?;
    assert_eq!(encrypted("copy")?, true);
    fs::write(file("raw"), disk(7))?;
    daemon.ok(&["volume", "import", &file("raw"), "disk", "--encrypted"])?;
    assert_eq!(encrypted("disk")?, true);
    daemon.ok(&["volume", "snapshot", "disk", "kept"])?;
    daemon.ok(&["volume", "export", "disk@kept", &file("out")])?;
    assert!(fs::read(file("out"))? == disk(7), "what came out differs");
    let qcow2 = [
        "volume",
        "export",
        "disk",
        &file("out2"),
        "--format",
        "qcow2",
    ];
    daemon
        .aleph(&qcow2)?
        .assert_failed_with(&["exported as raw"]);
    let url = format!("file://{}", file("store"));
    let made = daemon.json(&["volume", "backup", "disk@kept", &url, "--json"])?;
    let id = made["id"].as_str().unwrap_or_default();
    daemon.ok(&["volume", "restore-backup", &url, id, "again", "--encrypted"])?;
    assert_eq!(encrypted("again")?, true);
    daemon.ok(&["volume", "export", "again", &file("again")])?;
    assert!(
        fs::read(file("again"))? == disk(7),
        "what came back differs"
    );
    daemon.end()
}

#[test]
fn an_image_that_names_another_file_is_refused() -> Result<()> {
    let daemon = Daemon::up()?;
    let root = daemon.node.root.path().to_owned();
    let file = |name: &str| root.join(name).display().to_string();
    let bad = file("bad");
    qemu_img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/etc/shadow",
        &bad,
        "8m",
    ])?;
    fs::write(file("text"), "hello")?;
    for (words, said) in [
        (&["volume", "import", &bad, "x"][..], &["backing file"][..]),
        (
            &["volume", "import", &bad, "x", "--format", "qcow2"],
            &["backing file"],
        ),
        (
            &["volume", "import", &file("text"), "x"],
            &["no partition table"],
        ),
        (
            &["volume", "import", &file("text"), "x", "--format", "qcow2"],
            &["qcow2"],
        ),
    ] {
        daemon.aleph(words)?.assert_failed_with(said);
    }
    assert_eq!(daemon.ok(&["volume", "ls", "-aq"])?, "");
    daemon.end()
}
