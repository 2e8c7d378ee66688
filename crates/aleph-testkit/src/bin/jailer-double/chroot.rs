//! The folder that the program's root is.

use crate::arguments::Arguments;
use crate::c_path;
use aleph_testkit::FaultyFirecracker;
use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink};
use std::path::{Path, PathBuf};

/// The device nodes: path, major and minor number.
const DEVICES: [(&str, u32, u32); 3] = [
    ("dev/net/tun", 10, 200),
    ("dev/kvm", 10, 232),
    ("dev/urandom", 1, 9),
];

/// Makes it, with a copy of the program in it.
pub(crate) fn make(arguments: &Arguments) -> Result<PathBuf> {
    let name = arguments.name()?;
    let root = arguments.base.join(&name).join(&arguments.id).join("root");
    fs::create_dir_all(&root)
        .with_context(|| format!("Failed to create directory {}", root.display()))?;
    let copy = root.join(&name);
    let mut to = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o755)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&copy)?;
    ensure!(
        to.metadata()?.nlink() == 1,
        "Detected hard link at: {}",
        copy.display()
    );
    fchown(&to, Some(arguments.uid), Some(arguments.gid))?;
    io::copy(&mut File::open(&arguments.exec_file)?, &mut to)
        .with_context(|| format!("Failed to copy to {}", copy.display()))?;
    // What a test wants of the program is beside it.
    let faults = FaultyFirecracker::faults(&arguments.exec_file);
    if faults.exists() {
        fs::copy(faults, FaultyFirecracker::faults(&copy))?;
    }
    // What the jailer's program needs nothing of.
    for folder in ["usr", "proc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for link in ["bin", "lib", "lib64"] {
        if !root.join(link).exists() && !root.join(link).is_symlink() {
            symlink(format!("usr/{link}"), root.join(link))?;
        }
    }
    Ok(root)
}

/// Makes its folders and devices, and gives them to the user. It fails where they are there.
pub(crate) fn devices(root: &Path, uid: u32, gid: u32) -> Result<()> {
    for folder in ["", "dev", "dev/net", "run"] {
        let path = root.join(folder);
        fs::create_dir_all(&path)
            .with_context(|| format!("Failed to create directory {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
        chown(&path, Some(uid), Some(gid))
            .with_context(|| format!("Failed to change owner for {}", path.display()))?;
    }
    for (name, major, minor) in DEVICES {
        let path = root.join(name);
        let (kind, mode) = (FileType::CharacterDevice, Mode::RUSR | Mode::WUSR);
        mknodat(
            CWD,
            c_path(&path)?.as_c_str(),
            kind,
            mode,
            makedev(major, minor),
        )
        .with_context(|| format!("Failed to create /{name} via mknod inside the jail"))?;
        chown(&path, Some(uid), Some(gid))?;
    }
    // The last one where the host has it, as there.
    if let Ok(host) = fs::metadata("/dev/userfaultfd") {
        let path = root.join("dev/userfaultfd");
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::CharacterDevice, mode, host.rdev())
            .context("Failed to create /dev/userfaultfd via mknod inside the jail")?;
        chown(&path, Some(uid), Some(gid))?;
    }
    // A place for the host's, which the program's emulator opens.
    File::create(root.join("dev/null"))?;
    Ok(())
}
