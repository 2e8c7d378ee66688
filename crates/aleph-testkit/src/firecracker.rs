//! The programs that stand for `firecracker` and `jailer`.

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

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
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let programs = ["firecracker-double", "jailer-double"];
    let mut programs = programs
        .map(|name| target.join("debug").join(name))
        .into_iter();
    if !programs.all(|program| is_up_to_date(&program, &workspace)) {
        build(&target)?;
    }
    // It looks for its vsock device beside itself.
    let library = crate::VsockDevice::build()?;
    link(library.library(), &folder.join("libvsock.so"))?;
    let program = folder.join(format!("{name}-v{version}"));
    link(&target.join(format!("debug/{name}-double")), &program)?;
    Ok(program)
}

/// Crates that the doubles have nothing of.
const OTHERS: [&str; 3] = ["aleph-backup", "aleph-cli", "aleph-control"];

/// Whether a program was built since any crate that it may be made of has changed.
///
/// Whoever runs all tests has it already, with the features that the tests want of its dependencies. Cargo
/// would build those once more without these, which takes minutes.
fn is_up_to_date(program: &Path, workspace: &Path) -> bool {
    let Ok(built) = fs::metadata(program).and_then(|it| it.modified()) else {
        return false;
    };
    let crates = fs::read_dir(workspace.join("crates"));
    let crates = crates.into_iter().flatten().flatten();
    let crates = crates.filter(|one| OTHERS.iter().all(|other| one.file_name() != **other));
    let mut all = crates
        .map(|one| one.path())
        .chain(["Cargo.toml", "Cargo.lock"].map(|name| workspace.join(name)));
    all.all(|path| is_older(&path, built))
}

/// Whether a file, or all that is built of a folder, was changed before this.
fn is_older(path: &Path, than: SystemTime) -> bool {
    let Ok(meta) = fs::metadata(path) else {
        return false;
    };
    if !meta.is_dir() {
        return meta.modified().is_ok_and(|changed| changed <= than);
    }
    let Ok(entries) = fs::read_dir(path) else {
        return false;
    };
    entries
        .flatten()
        .filter(|entry| {
            !["tests", "target"]
                .iter()
                .any(|name| entry.file_name() == **name)
        })
        .all(|entry| is_older(&entry.path(), than))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_program_is_built_again_when_something_of_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let later = SystemTime::now() + Duration::from_secs(60);
        let change = |name: &str, when: SystemTime| {
            let path = at(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_modified(when).unwrap();
        };
        for name in ["Cargo.toml", "Cargo.lock", "crates/a/src/b/c.rs"] {
            change(name, SystemTime::now());
        }
        let is = || is_up_to_date(&at("double"), dir.path());
        assert!(!is(), "there is none");
        change("double", later);
        assert!(is());
        let after = later + Duration::from_secs(1);
        // None of these is a part of it.
        change("crates/a/tests/b.rs", after);
        change("crates/aleph-cli/src/main.rs", after);
        assert!(is());
        for name in ["crates/a/src/b/c.rs", "Cargo.lock"] {
            change(name, after);
            assert!(!is(), "{name} has changed");
            change(name, later);
            assert!(is());
        }
    }
}
