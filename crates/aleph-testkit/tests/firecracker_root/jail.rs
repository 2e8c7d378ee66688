//! The double in a jail that the jailer's double makes.

use crate::double::{Double, LIMIT};
use aleph_testkit::{TestRoot, jailer_double, wait_until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

const USER: u32 = 234_567;

fn jailer(base: &Path, dir: &Path) -> Result<Command> {
    let mut command = Command::new(jailer_double("1.13.2")?);
    command
        .args(["--id", "jailed", "--exec-file"])
        .arg(aleph_testkit::firecracker_double("1.13.2")?)
        .args(["--uid", &USER.to_string(), "--gid", &USER.to_string()])
        .arg("--chroot-base-dir")
        .arg(base)
        .args(["--resource-limit", "no-file=512"])
        .args(["--", "--api-sock", "/run/api"])
        .env("SECRET", "of the node")
        .stdin(Stdio::null())
        .stdout(fs::File::create(dir.join("console"))?)
        .stderr(fs::File::create(dir.join("stderr"))?);
    Ok(command)
}

/// A guest boots and is written down with paths of the jail, by the jail's user.
pub(crate) fn a_guest_lives_in_a_jail() -> Result<()> {
    let root = TestRoot::new()?;
    let bundle = root.bundle()?;
    let base = tempfile::tempdir()?;
    let dir = tempfile::tempdir()?;
    let chroot = base.path().join("firecracker-v1.13.2/jailed/root");
    fs::create_dir_all(&chroot)?;
    let vmlinux = bundle.vmlinux().context("no uncompressed kernel")?;
    for (name, file) in [("vmlinux", vmlinux), ("initrd", bundle.initrd())] {
        fs::copy(file, chroot.join(name))?;
        chown(chroot.join(name), Some(USER), Some(USER))?;
    }
    let child = jailer(base.path(), dir.path())?.spawn()?;
    let pid = child.id();
    let mut double = Double { child, dir };
    std::os::unix::fs::symlink(chroot.join("run/api"), double.path("api"))?;
    double.listens()?;
    // The jailer became the program.
    assert_eq!(
        fs::read_to_string(chroot.join("firecracker-v1.13.2.pid"))?,
        pid.to_string()
    );
    let process = Path::new("/proc").join(pid.to_string());
    assert_eq!(
        (fs::metadata(&process)?.uid(), fs::metadata(&process)?.gid()),
        (USER, USER)
    );
    assert_eq!(fs::read_link(process.join("root"))?, chroot);
    let environment = fs::read_to_string(process.join("environ"))?;
    ensure!(!environment.contains("SECRET"), "{environment}");
    let limits = fs::read_to_string(process.join("limits"))?;
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    assert!(files.is_some_and(|line| line.contains(" 512 ")), "{limits}");
    assert_eq!(double.get("/version")?["firecracker_version"], "1.13.2");

    let outside = json!({ "kernel_image_path": chroot.join("vmlinux") });
    let refused = double.refuses("PUT", "/boot-source", &outside)?;
    ensure!(refused.contains("No such file or directory"), "{refused}");
    let source = json!({
        "kernel_image_path": "/vmlinux",
        "initrd_path": "/initrd",
        "boot_args": "console=ttyS0 reboot=k panic=1",
    });
    double.put("/boot-source", &source)?;
    double.put("/vsock", &json!({ "guest_cid": 3, "uds_path": "/vsock" }))?;
    double.put("/actions", &json!({ "action_type": "InstanceStart" }))?;
    wait_until("the guest's first process", LIMIT, || {
        double.text("console").contains("Run /init").then_some(())
    });
    double.does("PATCH", "/vm", &json!({ "state": "Paused" }))?;
    let create = json!({ "snapshot_path": "/state", "mem_file_path": "/memory" });
    double.put("/snapshot/create", &create)?;
    let memory = fs::metadata(chroot.join("memory"))?;
    assert_eq!((memory.len(), memory.uid()), (128 << 20, USER));

    // It tidies nothing up, and a second one does not go in.
    double.child.kill()?;
    double.ended();
    for left in ["run/api", "vsock", "dev/net/tun", "firecracker-v1.13.2"] {
        assert!(chroot.join(left).exists(), "{left}");
    }
    let second = jailer(base.path(), double.dir.path())?.status()?;
    assert_eq!(second.code(), Some(1));
    let said = double.text("stderr");
    ensure!(
        said.contains(
            "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)"
        ),
        "{said}"
    );
    // What was mounted was mounted for it alone.
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(
        !mounts.contains(&*base.path().to_string_lossy()),
        "{mounts}"
    );
    Ok(())
}
