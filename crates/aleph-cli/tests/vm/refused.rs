//! VMs that cannot be: each is refused with what is wrong, and nothing of it stays.

use crate::is;
use crate::support::{Daemon, LIMIT, Node};
use aleph_testkit::wait_until;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

/// All that a node holds for VMs and volumes: what it lists, its files, and what is left on the host.
fn held(daemon: &Daemon) -> Result<BTreeSet<String>> {
    let root = daemon.node.root.path();
    let mut held: BTreeSet<String> = daemon.node.root.residue()?.into_iter().collect();
    for words in [&["volume", "ls", "-aq"][..], &["ps", "-aq", "--no-trunc"]] {
        held.extend(daemon.ok(words)?.lines().map(str::to_owned));
    }
    for folder in ["volumes/layers", "volumes/work", "machines", "vms", "logs"] {
        let files = fs::read_dir(root.join(folder)).into_iter().flatten();
        for file in files {
            held.insert(file?.path().display().to_string());
        }
    }
    // Connections of the clients that asked come and go.
    held.retain(|line| !line.starts_with("socket ") || line.contains("/vms/"));
    Ok(held)
}

/// Checks that these words are refused with this, and change nothing of what the node holds.
#[track_caller]
fn is_refused(daemon: &Daemon, words: &[&str], said: &[&str]) -> Result<()> {
    let before = held(daemon)?;
    daemon.aleph(words)?.assert_failed_with(said);
    assert_eq!(held(daemon)?, before, "{words:?}");
    Ok(())
}

/// A disk of this size that says to have a partition table.
fn disk(path: &Path, size: u64) -> Result<()> {
    let file = fs::File::create(path)?;
    file.set_len(size)?;
    Ok(file.write_all_at(b"\x55\xaa", 510)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path")
}

#[test]
fn an_image_that_cannot_be_one_becomes_no_vm() -> Result<()> {
    let daemon = Daemon::up()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let (words, cut, chained) = (file("words.img"), file("cut.qcow2"), file("chained.qcow2"));
    fs::write(&words, "hello")?;
    fs::write(&cut, b"QFI\xfb\0\0\0\x03")?;
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw"])
        .args(["-b", "/etc/shadow"])
        .arg(&chained)
        .arg("8m")
        .output()?;
    ensure!(made.status.success(), "qemu-img: {made:?}");
    for (image, said) in [
        (text(&words)?, "no partition table"),
        (text(&cut)?, "qcow2"),
        (text(&chained)?, "backing file"),
        (text(folder.path())?, "is no file"),
        ("/nowhere/image.qcow2", "cannot read"),
        ("nowhere", "no volume \"nowhere\""),
    ] {
        is_refused(&daemon, &["vm", "create", "web", "--image", image], &[said])?;
    }
    daemon.end()
}

/// The volumes are on a disk of 24 MiB.
#[test]
fn what_does_not_fit_becomes_no_vm() -> Result<()> {
    let node = Node::new()?;
    let small = tempfile::tempdir()?;
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "small"])
        .arg(small.path())
        .output()?;
    if !mounted.status.success() {
        eprintln!("skipped: only root may mount: {mounted:?}");
        return Ok(());
    }
    let _unmounted = Unmount(small.path());
    symlink(small.path(), node.root.path().join("volumes"))?;
    let daemon = Daemon::over(node, "", &[])?;
    let image = small.path().with_extension("raw");
    fs::write(&image, vec![0x55; 32 << 20])?;
    fs::File::options()
        .write(true)
        .open(&image)?
        .write_all_at(b"\x55\xaa", 510)?;
    let refused = is_refused(
        &daemon,
        &["vm", "create", "web", "--image", text(&image)?],
        &["Free some disk and try again"],
    );
    fs::remove_file(&image)?;
    refused?;
    // More than there is of anything else.
    let few = ["volume", "create", "few", "--size", "8m"];
    daemon.ok(&few)?;
    for (more, said) in [
        (["-m", "4000g"], "this node has"),
        (["--cpus", "1000"], "this node has"),
    ] {
        let words = ["vm", "create", "web", "--image", "few"];
        is_refused(&daemon, &[&words[..], &more[..]].concat(), &[said])?;
    }
    daemon.end()
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        // A daemon that a failed test left may still have files there.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// One writes, or many read.
#[test]
fn a_volume_that_is_in_use_is_nobody_elses() -> Result<()> {
    let daemon = Daemon::up()?;
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("bare.raw");
    disk(&image, 4 << 20)?;
    daemon.ok(&["volume", "import", text(&image)?, "bare"])?;
    daemon.ok(&["volume", "create", "data", "--size", "16m"])?;
    let with = |name: &'static str, volume: &'static str| {
        [
            "vm", "create", name, "--image", "bare", "-m", "256M", "-v", volume,
        ]
    };
    daemon.ok(&with("web", "data:/srv"))?;
    crate::wait_for(&daemon, "web", "running");
    for volume in ["data:/srv", "data:/srv:ro"] {
        is_refused(
            &daemon,
            &with("two", volume),
            &["\"data\"", "attached to job"],
        )?;
    }
    for words in [
        &["volume", "rm", "data"][..],
        &["volume", "rm", "--now", "data"],
    ] {
        is_refused(&daemon, words, &["\"data\"", "attached to job"])?;
    }
    // Whoever takes it after that has it.
    daemon.ok(&["vm", "rm", "-f", "web"])?;
    daemon.ok(&with("two", "data:/srv:ro"))?;
    crate::wait_for(&daemon, "two", "running");
    is_refused(
        &daemon,
        &with("web", "data:/srv"),
        &["\"data\"", "attached to job"],
    )?;
    daemon.end()
}

#[test]
fn a_vm_that_cannot_be_is_refused_at_once() -> Result<()> {
    let daemon = Daemon::up()?;
    let folder = daemon.node.root.path().to_owned();
    let image = folder.join("image");
    fs::write(&image, vec![0_u8; 4 << 20])?;
    let image = image.to_str().context("a path")?;
    daemon.ok(&["volume", "import", image, "small", "--format", "raw"])?;
    let user_data = folder.join("user-data");
    let refused = |words: &[&str], said: &[&str]| {
        let words = [&["vm", "create", "web"][..], words].concat();
        is_refused(&daemon, &words, said)
    };
    refused(
        &["--image", "small", "-v", "none:/srv:ro"],
        &["no volume \"none\""],
    )?;
    let file = user_data.to_str().context("a path")?;
    for (text, why) in [
        ("#cloud-config\na: [\n", "line 2"),
        (
            "#cloud-config\ncloud_final_modules: []\n",
            "cloud_final_modules",
        ),
        ("hello\n", "nothing that cloud-init knows"),
    ] {
        fs::write(&user_data, text)?;
        refused(&["--image", "small", "--user-data", file], &[why])?;
    }
    refused(&["--image", "small", "--hostname", "a_b"], &["hostname"])?;
    refused(&["--image", "small", "-t"], &["tty", "aleph ssh"])?;
    assert_eq!(daemon.ok(&["vm", "ls", "--json"])?, "[]");
    // No agent of the node's is in a microVM's place.
    let microvm = daemon.aleph(&["run", "-d", "--name", "micro", "busybox", "sleep", "99"])?;
    assert_eq!(microvm.code, 0, "{microvm:?}");
    let refused = daemon.aleph(&["console", "micro"])?;
    refused.assert_failed_with(&["aleph attach"]);
    wait_until("a job that runs", LIMIT, || is(&daemon, "micro", "running"));
    daemon.end()
}
