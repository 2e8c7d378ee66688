//! Clients of functions that come from a registry, each in an environment of its own in the build
//! folder.

use crate::root::target;
use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// What is installed; its dependencies follow from it.
const BOTO3: &str = "boto3==1.44.8";

/// A Python with boto3, made at the first call.
///
/// # Errors
/// Where it cannot be made.
pub fn python_with_boto3() -> Result<PathBuf> {
    let target = target();
    fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    // Tests of several runs share it.
    let lock = File::create(target.join("boto3.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let venv = target.join("boto3");
    let (python, done) = (venv.join("bin/python"), venv.join(BOTO3));
    if !done.exists() {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", BOTO3]))?;
        File::create(done)?;
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<()> {
    let ran = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{command:?}: {said}");
    Ok(())
}
