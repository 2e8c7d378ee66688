//! Everything that goes wrong gets a clear error and leaves nothing behind.

mod support;

use aleph_image::{NoProgress, Store};
use aleph_testkit::wait_until;
use anyhow::Result;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Stdio};
use support::{LIMIT, Node, finish, send};

#[test]
fn an_unknown_image() -> Result<()> {
    let node = Node::new()?;
    let ran = node.aleph(&["run", "--rm", "bussybox", "true"])?;
    ran.assert_failed_with(&["bussybox", "busybox"]);
    node.assert_clean()
}

#[test]
fn an_image_that_is_not_a_filesystem() -> Result<()> {
    let node = Node::empty()?;
    let tree = tempfile::tempdir()?;
    fs::write(tree.path().join("file"), "text")?;
    let image = Store::open(node.root.path())?.import(tree.path(), "broken", &mut NoProgress)?;
    // The store is shared with the other tests, the bundle is not needed to be told.
    let rootfs = image.rootfs();
    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o600))?;
    let file = fs::File::options().write(true).open(&rootfs)?;
    file.write_all_at(&[0; 4096], 0)?;
    drop(file);
    let ran = node.aleph(&["run", "--rm", "broken", "true"])?;
    assert_eq!(ran.code, 125);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    node.assert_clean()
}

#[test]
fn an_image_whose_filesystem_the_guest_cannot_mount() -> Result<()> {
    let node = Node::new()?;
    let store = tempfile::tempdir_in(node.root.path())?;
    let tree = tempfile::tempdir()?;
    fs::write(tree.path().join("file"), "text")?;
    let image = Store::open(store.path())?.import(tree.path(), "broken", &mut NoProgress)?;
    let rootfs = image.rootfs();
    let bytes = fs::read(&rootfs)?;
    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o600))?;
    // The magic number stays, all else of the superblock is nonsense.
    let mut spoilt = bytes.clone();
    let superblock = if bytes.starts_with(b"hsqs") { 4 } else { 1028 };
    let end = (superblock + 92).min(spoilt.len());
    spoilt[superblock..end].fill(0xff);
    fs::write(&rootfs, spoilt)?;
    std::os::unix::fs::symlink(
        node.root.path().join("kernels"),
        store.path().join("kernels"),
    )?;
    let mut command = support::aleph();
    command
        .arg("--root")
        .arg(store.path())
        .args(["run", "--rm", "broken", "true"]);
    let ran = support::Ended::of(command.stdin(Stdio::null()).output()?)?;
    ran.assert_failed_with(&["the guest failed", "rootfs"]);
    node.assert_clean()
}

#[test]
fn a_command_that_is_not_in_the_image() -> Result<()> {
    let node = Node::new()?;
    let ran = node.aleph(&["run", "--rm", "-q", "busybox", "nosuch"])?;
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(
        ran.stderr.contains("nosuch: command not found"),
        "{}",
        ran.stderr
    );
    let ran = node.aleph(&["run", "--rm", "-q", "busybox", "/etc/passwd"])?;
    assert_eq!(ran.code, 126, "{ran:?}");
    node.assert_clean()
}

#[test]
fn cpus_that_are_not_there() -> Result<()> {
    let node = Node::new()?;
    let ran = node.aleph(&["run", "--rm", "--cpus", "0", "busybox", "true"])?;
    ran.assert_failed_with(&["0 CPUs", "--cpus"]);
    let ran = node.aleph(&["run", "--rm", "--cpus", "1000", "busybox", "true"])?;
    ran.assert_failed_with(&["1000 CPUs", "this node has", "--cpus"]);
    node.assert_clean()
}

#[test]
fn more_memory_than_the_host_has() -> Result<()> {
    let node = Node::new()?;
    let ran = node.aleph(&["run", "--rm", "-m", "4000g", "busybox", "true"])?;
    ran.assert_failed_with(&["4096000 MiB", "this node has", "-m"]);
    let ran = node.aleph(&["run", "--rm", "-m", "8m", "busybox", "true"])?;
    ran.assert_failed_with(&["8 MiB", "at least"]);
    node.assert_clean()
}

#[test]
fn a_full_disk_while_an_image_is_built() -> Result<()> {
    let node = Node::empty()?;
    let small = node.root.path().join("small");
    fs::create_dir(&small)?;
    // A mount namespace of its own goes, with the small disk, when the program ends.
    let script = format!(
        "mount -t tmpfs -o size=1m none '{dir}' && \
         {{ '{aleph}' --root '{dir}' image build busybox; code=$?; \
         find '{dir}' -name '*rootfs*' -o -name '.tmp*' | sed 's/^/left: /'; exit $code; }}",
        dir = small.display(),
        aleph = env!("CARGO_BIN_EXE_aleph"),
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()?;
    let ran = support::Ended::of(output)?;
    ran.assert_failed_with(&["No space left on device"]);
    assert_eq!(ran.text(), "", "nothing is left of it");
    node.assert_clean()
}

#[test]
fn a_qemu_that_is_missing_or_lacks_the_machine() -> Result<()> {
    let node = Node::new()?;
    let ran = node.aleph(&["--qemu", "/nowhere/qemu", "run", "--rm", "busybox", "true"])?;
    ran.assert_failed_with(&["/nowhere/qemu is not installed", "apt-get install"]);
    let old = node.root.path().join("old-qemu");
    let script = "#!/bin/sh\ncase \"$*\" in\n-version) echo 'QEMU emulator version 3.1.0';;\n\
                  *) echo 'Supported machines are:'; echo 'pc  Standard PC';;\nesac\n";
    fs::write(&old, script)?;
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755))?;
    let old = old.display().to_string();
    let ran = node.aleph(&["--qemu", &old, "run", "--rm", "busybox", "true"])?;
    ran.assert_failed_with(&["3.1.0 has no machine \"microvm\""]);
    node.assert_clean()
}

#[test]
fn a_kernel_that_panics() -> Result<()> {
    let node = Node::new()?;
    let initrd = node.initrd("no program at all")?.display().to_string();
    let kernel = node.kernel()?.display().to_string();
    let ran = node.aleph(&[
        "run", "--rm", "--kernel", &kernel, "--initrd", &initrd, "busybox", "true",
    ])?;
    ran.assert_failed_with(&[
        "Kernel panic - not syncing",
        "the guest's console ends with",
    ]);
    node.assert_clean()
}

#[test]
fn a_guest_that_never_answers() -> Result<()> {
    let node = Node::new()?;
    let init = "#!/bin/busybox sh\nwhile :; do /bin/busybox sleep 1; done\n";
    let initrd = node.initrd(init)?.display().to_string();
    let kernel = node.kernel()?.display().to_string();
    let ran = node.aleph(&[
        "run",
        "--rm",
        "--boot-timeout",
        "4",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "busybox",
        "true",
    ])?;
    ran.assert_failed_with(&["did not answer within 4 s"]);
    node.assert_clean()
}

#[test]
fn a_kernel_that_is_none() -> Result<()> {
    let node = Node::new()?;
    let text = node.root.path().join("text");
    fs::write(&text, "not a kernel")?;
    let text = text.display().to_string();
    let ran = node.aleph(&[
        "run", "--rm", "--kernel", &text, "--initrd", &text, "busybox", "true",
    ])?;
    ran.assert_failed_with(&[&text]);
    node.assert_clean()
}

#[test]
fn a_qemu_that_is_killed_in_the_middle() -> Result<()> {
    let node = Node::new()?;
    let child = node
        .command(&["run", "--rm", "busybox", "sleep", "1000"])
        .spawn()?;
    let qemu = node.qemu_pid()?;
    send(u32::try_from(qemu)?, Signal::KILL)?;
    finish(child)?.assert_failed_with(&["the VMM ended unexpectedly", "signal 9"]);
    node.assert_clean()
}

/// The guest notices that nobody is left, and the next node removes what is.
#[test]
fn an_aleph_that_is_killed_in_the_middle() -> Result<()> {
    let node = Node::new()?;
    let mut command = node.command(&["run", "--rm", "-q", "busybox", "--", "sh", "-c"]);
    let mut child = command.arg("echo up; sleep 1000").spawn()?;
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3])?;
    let qemu = node.qemu_pid()?;
    child.kill()?;
    child.wait()?;
    wait_until("the guest's own power-off", LIMIT, || {
        let stat = fs::read_to_string(format!("/proc/{qemu}/stat")).unwrap_or_default();
        // Where nobody reaps it, it stays as a zombie.
        let state = stat
            .rsplit_once(')')
            .map_or("Z", |(_, rest)| rest.trim_start());
        state.starts_with('Z').then_some(())
    });
    assert_eq!(node.sh("echo next")?.text(), "next\n");
    node.assert_clean()
}

#[test]
fn a_node_without_a_kernel_says_what_to_do() -> Result<()> {
    let node = Node::empty()?;
    std::os::unix::fs::symlink(
        Node::new()?.root.path().join("images").canonicalize()?,
        node.root.path().join("images"),
    )?;
    let ran = node.aleph(&["run", "--rm", "busybox", "true"])?;
    ran.assert_failed_with(&["aleph kernel build"]);
    let ran = node.aleph(&["doctor", "--json"])?;
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&ran.stdout)?;
    let kernel = findings.iter().find(|f| f["check"] == "kernel").unwrap();
    assert_eq!(
        (ran.code, kernel["severity"].as_str()),
        (1, Some("failure"))
    );
    assert_eq!(kernel["mend"], "sudo aleph kernel build");
    node.assert_clean()
}

#[test]
fn a_working_node_is_healthy() -> Result<()> {
    let node = Node::new()?;
    let ran = node.aleph(&["doctor"])?;
    assert_eq!(ran.code, 0, "{}", ran.text());
    for check in [
        "cpu",
        "kvm",
        "qemu",
        "firecracker",
        "nftables",
        "tun",
        "cgroup",
        "memory",
        "kernel",
    ] {
        assert!(
            ran.text()
                .lines()
                .any(|l| l.split_whitespace().nth(1) == Some(check)),
            "{check}"
        );
    }
    let ran = node.aleph(&["--qemu", "/nowhere/qemu", "doctor"])?;
    assert!(
        ran.code == 1 && ran.text().contains("apt-get install"),
        "{}",
        ran.text()
    );
    node.assert_clean()
}
