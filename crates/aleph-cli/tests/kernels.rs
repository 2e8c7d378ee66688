//! Kernels that a user brings: imported, checked, booted, kept while they are in use.

mod support;

use aleph_testkit::wait_until;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use support::{Daemon, LIMIT};

/// Gives the node a store of kernels of its own, with the shared default in it.
fn own_store(daemon: &Daemon) -> Result<()> {
    let bundle = daemon.node.root.bundle()?;
    let folder = bundle.kernel().parent().map(Path::to_owned);
    let folder = folder.context("a bundle has a folder")?;
    let link = daemon.node.root.path().join("kernels");
    fs::remove_file(&link)?;
    let name = folder.file_name().context("a bundle's folder has a name")?;
    fs::create_dir_all(link.join(name))?;
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        fs::copy(entry.path(), link.join(name).join(entry.file_name()))?;
    }
    std::os::unix::fs::symlink(name, link.join("default"))?;
    Ok(())
}

#[test]
fn a_kernel_of_ones_own_is_booted_recorded_and_kept() -> Result<()> {
    let daemon = Daemon::up()?;
    own_store(&daemon)?;
    let root = daemon.node.root.path();
    let bundle = daemon.node.root.bundle()?;
    let release = bundle.release().expect("a bundle has a release").to_owned();
    let debian = root.join("vmlinuz-debian");
    fs::copy(bundle.kernel(), &debian)?;
    let debian = debian.display().to_string();

    // Debian's kernel does not carry its configuration; its modules are those of the default bundle.
    let imported = daemon.aleph(&["kernel", "import", &debian, "--name", "mine", "--json"])?;
    assert_eq!(imported.code, 0, "{imported:?}");
    assert!(imported.stderr.contains("were not checked"), "{imported:?}");
    let imported: serde_json::Value = serde_json::from_str(&imported.text())?;
    assert_eq!(imported["release"], release.as_str());
    assert_eq!(imported["imported"]["form"], "bzimage-efi");
    let digest = imported["digest"].as_str().expect("it has a digest");
    assert_ne!(digest, bundle.digest().to_string());
    let seen = daemon.json(&["kernel", "inspect", "mine"])?;
    assert_eq!(
        (&seen["digest"], &seen["names"][0]),
        (&imported["digest"], &"mine".into())
    );
    assert!(daemon.ok(&["kernel", "ls"])?.contains("mine"));

    // Booted by a daemon and recorded.
    let line = "uname -r; exec sleep 1000";
    daemon.ok(&[
        "run", "-d", "--name", "j", "--kernel", "mine", "busybox", "sh", "-c", line,
    ])?;
    wait_until("the guest's release", LIMIT, || {
        daemon
            .ok(&["logs", "j"])
            .is_ok_and(|log| log == release)
            .then_some(())
    });
    let job = &daemon.json(&["inspect", "j"])?[0];
    assert_eq!(job["kernel_digest"], digest);
    assert_eq!(job["spec"]["kernel"], "mine");
    let kept = daemon.aleph(&["kernel", "rm", "mine"])?;
    kept.assert_failed_with(&["the kernel \"mine\" is in use"]);

    // The name means another kernel by now; a new start of the job takes the one that it had.
    let plain = bundle.vmlinux().expect("it is there").display().to_string();
    let other = daemon.json(&["kernel", "import", &plain, "--name", "mine", "--json"])?;
    assert_ne!(other["digest"], digest);
    assert_eq!(other["imported"]["form"], "elf");
    daemon.ok(&["restart", "-t", "1", "j"])?;
    assert_eq!(daemon.json(&["inspect", "j"])?[0]["kernel_digest"], digest);
    daemon.ok(&["rm", "-f", "j"])?;
    let ran = daemon.ok(&[
        "run", "--rm", "-q", "--kernel", "mine", "busybox", "uname", "-r",
    ])?;
    assert_eq!(ran, release);

    // The guest's end is the end of its use.
    wait_until("a kernel that nobody uses", LIMIT, || {
        (daemon.aleph(&["kernel", "rm", "mine"]).ok()?.code == 0).then_some(())
    });
    daemon.ok(&["kernel", "rm", digest])?;
    let gone = daemon.aleph(&["run", "--rm", "--kernel", "mine", "busybox", "true"])?;
    gone.assert_failed_with(&["there is no kernel bundle \"mine\""]);
    assert_eq!(daemon.ok(&["kernel", "ls"])?.lines().count(), 2);
    daemon.end()
}

#[test]
fn what_is_no_kernel_or_lacks_something_is_refused() -> Result<()> {
    let daemon = Daemon::up()?;
    own_store(&daemon)?;
    let root = daemon.node.root.path();
    let file = |name: &str, content: &[u8]| -> Result<String> {
        let path = root.join(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let debian = fs::read(daemon.node.root.bundle()?.kernel())?;
    let whole = file("whole", &debian)?;
    let text = file("text", b"#!/bin/sh\n")?;
    let cut = file("cut", &debian[..debian.len() / 2])?;
    let poor = file(
        "poor.config",
        b"CONFIG_TTY=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_EROFS_FS=m\n",
    )?;
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &[&text],
            &["text is not a Linux kernel", "first bytes [23, 21"],
        ),
        (
            &[&cut],
            &[
                "cut is not a Linux kernel",
                "its header leads out of the file",
            ],
        ),
        (&["/nonexistent"], &["there is no such file"]),
        (
            &[&whole, "--config", &poor],
            &[
                "lacks what guests need",
                "for microVMs: ",
                "CONFIG_VIRTIO_MMIO (the bus of microVMs) is left out",
                "for full VMs: ",
            ],
        ),
        (&[&whole, "--initrd", &text], &["text is not an initramfs"]),
        (
            &[&whole, "--name", "default"],
            &["cannot be a kernel's name"],
        ),
    ];
    for (words, said) in cases {
        let ended = daemon.aleph(&[&["kernel", "import"], words].concat())?;
        ended.assert_failed_with(said);
    }
    assert_eq!(
        daemon.ok(&["kernel", "ls"])?.lines().count(),
        2,
        "nothing was stored"
    );
    let named = daemon.aleph(&["run", "--rm", "--kernel", &whole, "busybox", "true"])?;
    named.assert_failed_with(&["is a file, not the name of a kernel", "aleph kernel import"]);
    daemon.end()
}
