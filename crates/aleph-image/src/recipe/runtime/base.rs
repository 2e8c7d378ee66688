//! What every runtime's root needs that the scripts of Debian's packages would have made, and
//! what it does not need.

use super::super::busybox;
use super::RUNTIME;
use crate::disk::{DiskError, Doing};
use crate::error::ImageError;
use crate::removal;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const BUSYBOX: &str = "bin/busybox";
const CERTIFICATES: &str = "usr/share/ca-certificates/mozilla";
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Nothing reads these in a function: documentation, translations, converters of character
/// sets, what apt and dpkg know, and tools of packages that are here for their libraries.
const NOT_NEEDED: [&str; 19] = [
    "boot",
    "etc/apt",
    "usr/share/apport",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/perl5",
    "usr/share/pixmaps",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/backups",
    "var/log",
];
/// The same, below the folder of an architecture's libraries.
const LIBRARIES_NOT_NEEDED: [&str; 3] = ["gconv", "perl", "perl-base"];

const DIRS: [(&str, u32); 13] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr/local/bin", 0o755),
    ("var/runtime", 0o755),
    ("var/task", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 3] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
];

/// OpenSSL's default places of certificates lead to the bundle.
const LINKS: [(&str, &str); 5] = [
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
    ("usr/bin/bash", "/bin/bash"),
    ("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"),
    ("usr/lib/ssl/certs", "/etc/ssl/certs"),
    ("usr/lib/ssl/openssl.cnf", "/etc/ssl/openssl.cnf"),
];

/// Makes a root of a tree of Debian's files.
pub(super) fn settle(tree: &Path) -> Result<(), ImageError> {
    for name in NOT_NEEDED {
        remove(&tree.join(name))?;
    }
    for name in LIBRARIES_NOT_NEEDED {
        remove(&libraries(tree).join(name))?;
    }
    for (name, mode) in DIRS {
        let dir = tree.join(name);
        fs::create_dir_all(&dir).doing("create", &dir)?;
        set_mode(&dir, mode)?;
    }
    for (name, content) in FILES {
        write(&tree.join(name), content.as_bytes(), 0o644)?;
    }
    write(
        &tree.join(BUNDLE),
        &bundle(&tree.join(CERTIFICATES))?,
        0o644,
    )?;
    remove(&tree.join("usr/share/ca-certificates"))?;
    for (name, target) in LINKS {
        link(&tree.join(name), target)?;
    }
    busybox::link_applets(tree, &tree.join(BUSYBOX))
}

/// Writes the program that a runtime begins with.
pub(super) fn program(tree: &Path, script: &str) -> Result<(), DiskError> {
    write(
        &tree.join(RUNTIME).join("bootstrap"),
        script.as_bytes(),
        0o755,
    )
}

/// The folder of this architecture's libraries.
pub(super) fn libraries(tree: &Path) -> PathBuf {
    tree.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// All certificates in a folder, one after another, in the order of their names.
fn bundle(dir: &Path) -> Result<Vec<u8>, DiskError> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .doing("list", dir)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "crt"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        all.extend(fs::read(&file).doing("read", &file)?);
    }
    Ok(all)
}

pub(super) fn remove(path: &Path) -> Result<(), DiskError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => removal::remove(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.doing("remove", path),
    }
}

/// Writes a file in place of what is there: a symlink of a package's is not followed.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), DiskError> {
    make_room(path)?;
    fs::write(path, content).doing("write", path)?;
    set_mode(path, mode)
}

pub(super) fn link(path: &Path, target: &str) -> Result<(), DiskError> {
    make_room(path)?;
    symlink(target, path).doing("create", path)
}

fn make_room(path: &Path) -> Result<(), DiskError> {
    remove(path)?;
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).doing("create", parent),
        None => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DiskError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).doing("set the mode of", path)
}
