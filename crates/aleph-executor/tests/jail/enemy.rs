//! What a VMM that a guest took over does to its jail.

use crate::world::{self, as_user};
use aleph_executor::firecracker::jail::{Jail, JailError};
use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat};
use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

/// More levels of folders than a process may have open, and longer than any path may be.
const LEVELS: usize = 3000;

/// Fills a jail with all that might lead whoever removes it astray, or stop it.
pub(crate) fn fill(jail: &Jail, outside: &Path) -> Result<()> {
    let uid = jail.uid();
    let root = jail.root();
    let canary = outside.join("canary");
    let script = format!(
        "set -e
        ln -s {outside} folder-link
        ln -s {canary} file-link
        ln -s / slash; ln -s . loop; ln -s ../../../.. up; ln -s /proc/self/fd fds
        mkfifo fifo; mkdir -p run/x dev/net
        mkdir closed; touch closed/file; chmod 000 closed
        mkdir sticky; chmod 1777 sticky; ln -s {outside} sticky/out
        printf x > 'a
b'; printf x > -rf; mkdir ' ' '*' '\\'
        touch own; ln own twin; ln image image-twin 2>/dev/null || true
        ln kernel kernel-twin 2>/dev/null || true
        mkdir many; i=0; while [ $i -lt 3000 ]; do : > many/f$i; i=$((i+1)); done
        ",
        outside = outside.display(),
        canary = canary.display(),
    );
    ensure!(as_user(uid, root, &script)?.success());
    // Names that folders which lie too deep are moved to.
    for n in 0..3 {
        fs::create_dir(root.join(format!("deep-{n}")))?;
        symlink(outside, root.join(format!("deep-{n}")).join("out"))?;
    }
    for name in ["a", "b"] {
        let mut dir = rustix::fs::open(
            root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        for _ in 0..LEVELS {
            mkdirat(&dir, name, Mode::from_raw_mode(0o700))?;
            dir = openat(
                &dir,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY,
                Mode::empty(),
            )?;
        }
    }
    // What only the jailer makes.
    let device = rustix::fs::makedev(1, 1);
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(
        rustix::fs::CWD,
        root.join("dev/kvm"),
        FileType::CharacterDevice,
        mode,
        device,
    )?;
    chown(root.join("dev/kvm"), Some(uid), Some(uid))?;
    drop(UnixListener::bind(root.join("run/firecracker.socket"))?);
    // Mounts where none is ours: below a folder, twice on the same place.
    for _ in 0..2 {
        let mounted = Command::new("mount")
            .args(["--bind".as_ref(), outside.as_os_str()])
            .arg(root.join("run/x"))
            .status()?;
        ensure!(mounted.success());
    }
    Ok(())
}

/// Puts all that does not belong there where the node looks, and sees that it is not taken.
pub(crate) fn answer(jail: &Jail, outside: &Path) -> Result<()> {
    let uid = jail.uid();
    let root = jail.root();
    let foreign = |what: &str, error: Option<JailError>| -> Result<()> {
        match error {
            Some(JailError::Foreign { .. }) => Ok(()),
            error => anyhow::bail!("{what}: {error:?}"),
        }
    };
    // Another's socket, by a link; one of root's; and things that are no sockets.
    let _theirs = UnixListener::bind(outside.join("socket"))?;
    symlink(outside.join("socket"), root.join("link"))?;
    symlink(outside, root.join("run"))?;
    let _roots = UnixListener::bind(root.join("roots"))?;
    ensure!(as_user(uid, root, "mkfifo fifo; echo x > file; mkdir folder")?.success());
    for name in ["link", "run/socket", "roots", "fifo", "file", "folder"] {
        foreign(name, jail.socket(name).err())?;
    }
    for name in ["../root/file", "/etc/passwd", "../../../x"] {
        let error = jail.socket(name).err().context("it was found")?;
        ensure!(
            !matches!(error, JailError::Io { ref source, .. }
            if source.kind() == std::io::ErrorKind::NotFound),
            "{name}: {error:?}"
        );
    }
    // Nothing waits for who opens it, and only the VM's own is read.
    let secret = outside.join("secret");
    world::file(outside, "secret", 0o600, b"secret")?;
    symlink(&secret, root.join("log"))?;
    fs::write(root.join("roots-file"), "x")?;
    ensure!(as_user(uid, root, "ln file twin")?.success());
    for name in ["log", "roots-file", "fifo", "folder", "link", "file"] {
        foreign(name, jail.open_file(name).err())?;
    }
    foreign("file", jail.open_fifo("file").err())?;
    jail.open_fifo("fifo")?;
    ensure!(as_user(uid, root, "rm twin")?.success());
    jail.open_file("file")?;
    // A device node that would do something when it is opened.
    let device = rustix::fs::makedev(1, 5);
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(
        rustix::fs::CWD,
        root.join("node"),
        FileType::CharacterDevice,
        mode,
        device,
    )?;
    lchown(root.join("node"), Some(uid), Some(uid))?;
    foreign("node", jail.open_file("node").err())?;

    // Process numbers that the jailer did not write, or of others' processes.
    let pid_file = root.join("firecracker.pid");
    let forged = format!("printf {} > firecracker.pid", std::process::id());
    ensure!(as_user(uid, root, &forged)?.success());
    foreign("forged", jail.pid().err())?;
    fs::remove_file(&pid_file)?;
    symlink(&secret, &pid_file)?;
    foreign("linked", jail.pid().err())?;
    fs::remove_file(&pid_file)?;
    fs::write(&pid_file, std::process::id().to_string())?;
    foreign("another's", jail.pid().err())?;
    for text in ["", "-5", "99999999999999999999", "1 2", "x"] {
        fs::write(&pid_file, text)?;
        ensure!(jail.pid().is_err(), "{text:?}");
    }
    let mut vmm = world::user(uid, root, "exec sleep 1000").spawn()?;
    fs::write(&pid_file, vmm.id().to_string())?;
    let pid = aleph_testkit::wait_until("the VM's user", crate::LIMIT, || jail.pid().ok());
    ensure!(u32::try_from(pid) == Ok(vmm.id()));
    vmm.kill()?;
    vmm.wait()?;
    // A name that is taken is not listened on, wherever it leads.
    symlink(outside.join("new"), root.join("taken"))?;
    ensure!(jail.listen("taken").is_err());
    ensure!(!outside.join("new").exists());
    Ok(())
}
