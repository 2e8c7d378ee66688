//! The smallest useful root: Debian's static busybox and links to it.

use super::{Recipe, Tree};
use crate::apt::{self, Package, PackageError};
use crate::disk::Doing;
use crate::error::ImageError;
use crate::filesystem::Times;
use crate::image::{Config, Source};
use crate::program::{Program, ProgramError};
use crate::progress::Progress;
use crate::staging::Staging;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};
use std::time::Duration;

const PACKAGE: &str = "busybox-static";
const BINARY: &str = "bin/busybox";
/// Ten times its size in Debian 12.
const MOST_BYTES: u64 = 20 << 20;
const LIST_LIMIT: Duration = Duration::from_secs(20);

const DIRS: [(&str, u32); 16] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 2] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
];

pub(super) fn prepare(staging: &Staging, progress: &mut dyn Progress) -> Result<Tree, ImageError> {
    let binary = apt::with_fresh_lists(
        progress,
        |progress| fetch(staging, progress),
        PackageError::may_be_stale,
    )?;
    let tree = staging.folder("tree")?;
    for (name, mode) in DIRS {
        let dir = tree.join(name);
        fs::create_dir(&dir).doing("create", &dir)?;
        set_mode(&dir, mode)?;
    }
    for (name, content) in FILES {
        let file = tree.join(name);
        fs::write(&file, content).doing("write", &file)?;
        set_mode(&file, 0o644)?;
    }
    let file = tree.join(BINARY);
    fs::write(&file, binary).doing("write", &file)?;
    set_mode(&file, 0o755)?;
    link_applets(&tree, &file)?;
    Ok(Tree {
        path: tree,
        times: Times::Zero,
        source: Source::Recipe(Recipe::Busybox),
        config: Config::default(),
    })
}

/// Makes links to `binary`, which is `/bin/busybox` in `tree`, by all names that it has and
/// nothing else there has.
pub(super) fn link_applets(tree: &Path, binary: &Path) -> Result<(), ImageError> {
    for applet in applets(binary)?.lines() {
        link(tree, applet)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), crate::DiskError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).doing("set the mode of", path)
}

fn fetch(staging: &Staging, progress: &mut dyn Progress) -> Result<Vec<u8>, PackageError> {
    let package = Package::show(PACKAGE)?;
    let dir = tempdir(staging)?;
    let deb = package.download(&dir, progress)?;
    let found = apt::content(&deb, |tar| {
        read_binary(tar).map_err(|source| {
            PackageError::from(ProgramError::Output {
                program: "dpkg-deb".into(),
                source,
            })
        })
    })?;
    found.ok_or_else(|| PackageError::Lacks {
        name: PACKAGE.into(),
        what: BINARY.into(),
    })
}

/// A download folder; the second attempt has its own.
fn tempdir(staging: &Staging) -> Result<std::path::PathBuf, crate::DiskError> {
    let name = if staging.path().join("download").exists() {
        "again"
    } else {
        "download"
    };
    staging.folder(name)
}

fn read_binary(tar: &mut dyn Read) -> io::Result<Option<Vec<u8>>> {
    for entry in tar::Archive::new(tar).entries()? {
        let entry = entry?;
        let path = entry.path()?;
        // Since Debian 13 it is in usr/bin.
        if entry.header().entry_type().is_file() && path.ends_with(BINARY) {
            let mut bytes = Vec::new();
            entry.take(MOST_BYTES).read_to_end(&mut bytes)?;
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

/// What the binary can be called, one path a line.
fn applets(binary: &Path) -> Result<String, ProgramError> {
    let mut attempts = 0;
    loop {
        let listed = Program::at(binary, "busybox", LIST_LIMIT)
            .arg("--list-full")
            .output(1 << 20);
        match listed {
            // Another thread that starts a program at this moment has our file open for
            // writing until its exec.
            Err(ProgramError::Start { source, .. })
                if source.kind() == io::ErrorKind::ExecutableFileBusy && attempts < 50 =>
            {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn link(tree: &Path, applet: &str) -> Result<(), ImageError> {
    let path = Path::new(applet);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if applet.is_empty() || !plain || path == Path::new(BINARY) {
        return Ok(());
    }
    let link = tree.join(path);
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent).doing("create", parent)?;
    }
    match symlink(Path::new("/").join(BINARY), &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => Ok(other.doing("create", &link)?),
    }
}
