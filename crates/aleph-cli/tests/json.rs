//! What acts prints a line of JSON for each thing that it acted on, where a script asks for it.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use support::{Daemon, Ended, LIMIT, Node};

/// Lines of JSON, each of which is a whole document.
fn lines(ended: &Ended) -> Result<Vec<Value>> {
    let text = ended.text();
    let lines = text.lines().map(serde_json::from_str);
    let lines: Result<_, _> = lines.collect();
    lines.with_context(|| format!("{ended:?}"))
}

/// The one line of a command that has to succeed.
#[track_caller]
fn line(ended: &Ended) -> Result<Value> {
    assert_eq!(ended.code, 0, "{ended:?}");
    let mut lines = lines(ended)?;
    assert_eq!(lines.len(), 1, "{ended:?}");
    Ok(lines.remove(0))
}

#[test]
fn actions_on_jobs_tell_what_became_of_them() -> Result<()> {
    let daemon = Daemon::up()?;
    let act = |words: &[&str]| line(&daemon.aleph(words)?);
    let script = "trap 'exit 7' USR1; echo up; while :; do sleep 0.1; done";
    let run = [
        "run",
        "-d",
        "--json",
        "--name",
        "web",
        "--stop-signal",
        "USR1",
    ];
    let job = act(&[&run[..], &["busybox", "sh", "-c", script]].concat())?;
    let id = job["id"].as_str().context("no id")?;
    assert!(id.starts_with("0x") && id.len() == 34, "{job}");
    assert_eq!(job["spec"]["image"], "busybox", "{job}");
    let is = |job: &Value, state: &str| {
        let said = (&job["id"], &job["name"], &job["state"]);
        assert_eq!(said, (&json!(id), &json!("web"), &json!(state)), "{job}");
    };
    is(&job, "running");
    is(&act(&["pause", "--json", "web"])?, "paused");
    is(&act(&["resume", "--json", "web"])?, "running");
    is(&act(&["kill", "--json", "-s", "CONT", "web"])?, "running");

    let file = daemon.node.root.path().join("file");
    fs::write(&file, [b'x'; 5000])?;
    let file = file.to_str().context("a path")?;
    let copied = act(&["cp", "--json", file, "web:tmp/file"])?;
    let said = (&copied["source"], &copied["destination"]);
    assert_eq!(said, (&json!(file), &json!("web:/tmp/file")));
    assert!(copied["archive_bytes"].as_u64() > Some(5000), "{copied}");
    let back = format!("{file}.back");
    let copied = act(&["cp", "--json", "web:/tmp/file", &back])?;
    assert!(copied["archive_bytes"].as_u64() > Some(5000), "{copied}");
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_path_with_name(file, "piped")?;
    let archive = archive.into_inner()?;
    let words = ["cp", "--json", "-", "web:/tmp"];
    let copied = line(&daemon.node.fed(&words, &archive)?)?;
    assert_eq!(copied["archive_bytes"], archive.len(), "{copied}");
    let both = daemon.aleph(&["cp", "--json", "web:/tmp/file", "-"])?;
    both.assert_failed_with(&["--json"]);
    assert_eq!(both.text(), "");

    wait_until("the command's trap", LIMIT, || {
        let logs = daemon.aleph(&["logs", "web"]).ok()?;
        (logs.text() == "up\n").then_some(())
    });
    // What fails is told on standard error as ever, and is no line.
    let stopped = daemon.aleph(&["stop", "--json", "nosuch", "web"])?;
    stopped.assert_failed_with(&["nosuch"]);
    let told = lines(&stopped)?;
    assert_eq!(told.len(), 1, "{stopped:?}");
    is(&told[0], "exited");
    let waited = act(&["wait", "--json", "web"])?;
    is(&waited, "exited");
    assert_eq!(waited["exit"]["code"], 7, "{waited}");
    let started = act(&["start", "--json", "web"])?;
    assert_eq!(started["id"], id, "{started}");
    is(
        &act(&["wait", "--json", "--state", "running", "web"])?,
        "running",
    );
    let restarted = act(&["restart", "--json", "-t", "0", "web"])?;
    assert_eq!(restarted["id"], id, "{restarted}");
    act(&["wait", "--json", "--state", "running", "web"])?;
    is(&act(&["kill", "--json", "web"])?, "exited");

    let failed = daemon.aleph(&["run", "-d", "--json", "busybox", "nosuch"])?;
    let failed_job = &lines(&failed)?[0];
    let name = failed_job["name"].as_str().context("no name")?;
    let words = ["rm", "--json", "-f", "web", name, "nosuch"];
    let removed = daemon.aleph(&words)?;
    removed.assert_failed_with(&["nosuch"]);
    let want = [
        json!({ "id": id, "name": "web", "removed": true }),
        json!({ "id": failed_job["id"], "name": name, "removed": true }),
    ];
    assert_eq!(lines(&removed)?, want);
    assert_eq!(daemon.json(&["ps", "-a", "--json"])?, json!([]));

    for refused in [
        &["run", "--json", "busybox", "true"][..],
        &["start", "--json", "-a", "web"],
    ] {
        daemon.aleph(refused)?.assert_failed_with(&["--json"]);
    }
    daemon.end()
}

#[test]
fn actions_on_images_kernels_and_tokens_tell_what_became_of_them() -> Result<()> {
    let daemon = Daemon::up()?;
    let act = |words: &[&str]| line(&daemon.aleph(words)?);
    let tree = tempfile::tempdir()?;
    fs::write(tree.path().join("file"), "of JSON's test")?;
    let tree = tree.path().to_str().context("a path")?;
    let made = act(&["image", "import", "--json", tree, "--name", "json-test"])?;
    assert_eq!(made["names"], json!(["json-test"]), "{made}");
    // Made here, it looks as it does by the node.
    let told = daemon.json(&["image", "inspect", "json-test"])?;
    assert_eq!(told, json!([made]));
    let removed = daemon.aleph(&["image", "rm", "--json", "nosuch", "json-test"])?;
    removed.assert_failed_with(&["nosuch"]);
    let want = json!({ "reference": "json-test", "removed": true });
    assert_eq!(lines(&removed)?, [want]);

    let token = act(&["token", "create", "--json", "alice"])?;
    assert_eq!(token["account"], "alice");
    assert!(token["token"].is_string(), "{token}");
    let id = token["id"].as_str().context("no id")?;
    let revoked = act(&["token", "rm", "--json", id])?;
    assert_eq!(revoked, json!({ "id": id, "removed": true }));

    daemon.ok(&["run", "-d", "--name", "old", "busybox", "true"])?;
    let old = act(&["wait", "--json", "old"])?;
    let pruned = act(&["prune", "--jobs", "-f", "--json"])?;
    assert_eq!(pruned["jobs"], json!([old["id"]]), "{pruned}");
    assert!(pruned["bytes_freed"].is_u64(), "{pruned}");
    daemon.end()?;

    let node = Node::empty()?;
    let act = |words: &[&str]| line(&node.aleph(words)?);
    let built = act(&["image", "build", "--json", "busybox"])?;
    assert_eq!(built["names"], json!(["busybox"]), "{built}");
    let digest = built["digest"].as_str().context("no digest")?;
    let removed = act(&["image", "rm", "--json", digest])?;
    assert_eq!(removed, json!({ "reference": digest, "removed": true }));
    // The shared bundle is there, and one that is damaged can be removed.
    let bundle = line(&Node::new()?.aleph(&["kernel", "build", "--json"])?)?;
    assert!(
        bundle["digest"]
            .as_str()
            .is_some_and(|d| d.starts_with("sha256:"))
    );
    assert!(bundle["files"]["vmlinuz"]["size"].is_u64(), "{bundle}");
    let damaged = "0123456789abcdef";
    fs::create_dir_all(node.root.path().join("kernels").join(damaged))?;
    let removed = act(&["kernel", "rm", "--json", damaged])?;
    assert_eq!(removed, json!({ "reference": damaged, "removed": true }));
    node.assert_clean()
}
