//! The programs that stand for `firecracker` and `jailer`.

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program with Firecracker's command line, API, files and exit codes, of this version (such as
/// `1.16.1`), which runs real guests on QEMU's microvm machine: built on first use. Its `//!` says
/// where it differs.
///
/// Its version is in its name, `firecracker-v1.16.1`, so that it is the same one where a jailer
/// has cleared the environment.
///
/// # Errors
/// Where cargo cannot build it.
pub fn firecracker_double(version: &str) -> Result<PathBuf> {
    double("firecracker", version)
}

/// The same for the jailer, in the same folder: a program with its command line that makes the same
/// chroot, and runs [`firecracker_double`] in it. It needs root.
///
/// # Errors
/// Where cargo cannot build it.
pub fn jailer_double(version: &str) -> Result<PathBuf> {
    double("jailer", version)
}

fn double(name: &str, version: &str) -> Result<PathBuf> {
    let target = crate::root::target();
    fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    let folder = target.join("firecracker-double");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    build(&target)?;
    // It looks for its vsock device beside itself.
    let library = crate::VsockDevice::build()?;
    link(library.library(), &folder.join("libvsock.so"))?;
    let program = folder.join(format!("{name}-v{version}"));
    link(&target.join(format!("debug/{name}-double")), &program)?;
    Ok(program)
}

fn build(target: &Path) -> Result<()> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "build",
            "--locked",
            "--quiet",
            "--bin",
            "firecracker-double",
            "--bin",
            "jailer-double",
        ])
        .args(["--manifest-path", manifest, "--target-dir"])
        .arg(target);
    // What a test runner sets is about the crate of the test.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let ours = name == "LD_LIBRARY_PATH";
        if ours || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    let built = cargo.output().context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "the double does not build: {said}");
    Ok(())
}

/// Has a file at this place too. Who runs what was there goes on with it.
fn link(file: &Path, place: &Path) -> Result<()> {
    let is = fs::metadata(file).with_context(|| file.display().to_string())?;
    if fs::metadata(place).is_ok_and(|at| (at.dev(), at.ino()) == (is.dev(), is.ino())) {
        return Ok(());
    }
    let temporary = place.with_extension("new");
    let _ = fs::remove_file(&temporary);
    fs::hard_link(file, &temporary)?;
    Ok(fs::rename(temporary, place)?)
}
