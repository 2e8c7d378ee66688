//! Debian's packages, unpacked and not installed: what they would start or change on a host stays
//! undone.

use crate::root::target;
use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// cloud-init, and what it needs of Python.
const CLOUD_INIT: &[&str] = &[
    "cloud-init",
    "python3-attr",
    "python3-certifi",
    "python3-chardet",
    "python3-configobj",
    "python3-idna",
    "python3-jinja2",
    "python3-json-pointer",
    "python3-jsonpatch",
    "python3-jsonschema",
    "python3-markupsafe",
    "python3-netifaces",
    "python3-oauthlib",
    "python3-pyrsistent",
    "python3-requests",
    "python3-serial",
    "python3-six",
    "python3-urllib3",
    "python3-yaml",
];

/// Debian's Python with cloud-init's modules in it, made at the first call.
///
/// # Errors
/// Where it cannot be made.
pub fn python_with_cloud_init() -> Result<Command> {
    let folder = unpacked("cloud-init", CLOUD_INIT)?;
    let mut python = Command::new("/usr/bin/python3");
    python
        .env("PYTHONPATH", folder.join("usr/lib/python3/dist-packages"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(python)
}

/// A program of mtools, which reads FAT without mounting it.
///
/// # Errors
/// Where it cannot be made.
pub fn mtools(program: &str) -> Result<Command> {
    let folder = unpacked("mtools", &["mtools"])?;
    let mut mtools = Command::new(folder.join("usr/bin/mtools"));
    mtools.arg("-c").arg(program);
    Ok(mtools)
}

/// A folder in the build folder with these packages unpacked.
pub(crate) fn unpacked(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let debian = target().join("debian");
    fs::create_dir_all(&debian)?;
    let debian = debian.canonicalize()?;
    let lock = File::create(debian.join(format!("{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let (folder, done) = (debian.join(name), debian.join(format!("{name}.done")));
    let wanted = packages.join(" ");
    if fs::read_to_string(&done).is_ok_and(|there| there == wanted) {
        return Ok(folder);
    }
    let archives = tempfile::tempdir_in(&debian)?;
    // apt's own user cannot write to a private folder.
    run(Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .args(packages)
        .current_dir(archives.path()))?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    for archive in fs::read_dir(archives.path())? {
        unpack(&archive?.path(), &folder)?;
    }
    fs::write(done, wanted)?;
    Ok(folder)
}

fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(folder))
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let ran = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{command:?}: {said}");
    Ok(())
}
