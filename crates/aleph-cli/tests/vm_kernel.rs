//! A full VM that is started by a kernel of the user's choice, with the initramfs that this was imported
//! with, beside a disk of its own.

mod support;

use aleph_testkit::wait_until;
use anyhow::Result;
use serde_json::json;
use std::fs;
use support::{Daemon, LIMIT, Node};

/// The system of the guest: says what it was told and what its disk is, and powers off.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec > /dev/console 2>&1
echo told $(/bin/busybox cat /proc/cmdline)
/bin/busybox poweroff -f
";

#[test]
fn a_disk_is_booted_by_a_kernel_of_its_own() -> Result<()> {
    let node = Node::new()?;
    let initrd = node.initrd(INIT)?.display().to_string();
    let root = node.root.path().to_owned();
    let daemon = Daemon::over(node, "", &[])?;
    // A store of kernels of its own, with the shared default in it.
    let bundle = daemon.node.root.bundle()?;
    let link = root.join("kernels");
    fs::remove_file(&link)?;
    fs::create_dir(&link)?;
    let vmlinuz = bundle.kernel().display().to_string();
    let vmlinux = bundle.vmlinux().expect("it has one").display().to_string();
    let import = [
        "kernel", "import", &vmlinuz, "--initrd", &initrd, "--name", "mine", "--json",
    ];
    let mine = daemon.json(&import)?;
    assert_eq!(mine["imported"]["own_initrd"], true, "{mine:#}");
    // One with a partition table and nothing else: no firmware would find anything on it.
    let mut disk = vec![0; 8 << 20];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    let image = root.join("disk.raw");
    fs::write(&image, disk)?;
    daemon.ok(&["volume", "import", &image.display().to_string(), "disk"])?;

    let create = |words: &[&str]| {
        let words = [
            &["vm", "create", "k", "--image", "disk", "-m", "256m"],
            words,
        ]
        .concat();
        daemon.aleph(&words)
    };
    create(&["--kernel", "none"])?.assert_failed_with(&["there is no kernel bundle \"none\""]);
    assert_eq!(daemon.ok(&["ps", "-aq"])?, "");
    let made = create(&["--kernel", "mine", "--append", "root=/dev/vda1 hello=world"])?;
    assert_eq!(made.code, 0, "{made:?}");
    for _ in 0..2 {
        let ended = wait_until("the guest's end", LIMIT, || {
            let job = daemon.json(&["inspect", "k"]).ok()?[0].clone();
            assert_ne!(job["state"], "failed", "{job:#}");
            (job["state"] == "exited").then_some(job)
        });
        assert_eq!(ended["kernel_digest"], mine["digest"], "{ended:#}");
        assert_eq!(ended["exit"], json!({"code": 0}), "{ended:#}");
        let log = daemon.ok(&["logs", "k"])?;
        assert!(log.contains("root=/dev/vda1 hello=world"), "{log}");
        // The name means another one by now, and a later start takes the same.
        let other = [
            "kernel", "import", &vmlinux, "--initrd", &initrd, "--name", "mine", "--json",
        ];
        assert_ne!(daemon.json(&other)?["digest"], mine["digest"]);
        daemon.ok(&["start", "k"])?;
    }
    daemon.end()
}
