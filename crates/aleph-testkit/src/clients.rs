//! Clients of functions that come from a registry, each in an environment of its own in the build
//! folder.

use crate::root::target;
use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is installed; what it needs follows from it.
const BOTO3: &str = "boto3==1.44.8";
const MOTO: &str = "moto[s3,server]==5.2.5";
const CLOUDEVENTS: &str = "cloudevents==2.2.0";
const CARGO_LAMBDA: &str = "cargo-lambda==1.9.2";
const WORKERD: &str = "workerd@1.20261117.1";

/// A Python with boto3, made at the first call.
///
/// # Errors
/// Where it cannot be made.
pub fn python_with_boto3() -> Result<PathBuf> {
    Ok(from_pypi("boto3", BOTO3)?.join("bin/python"))
}

/// A Python with moto, a server that speaks S3, made at the first call.
///
/// # Errors
/// Where it cannot be made.
pub fn python_with_moto() -> Result<PathBuf> {
    Ok(from_pypi("moto", MOTO)?.join("bin/python"))
}

/// A Python with the SDK of CloudEvents, made at the first call.
///
/// # Errors
/// Where it cannot be made.
pub fn python_with_cloudevents() -> Result<PathBuf> {
    Ok(from_pypi("cloudevents", CLOUDEVENTS)?.join("bin/python"))
}

/// The program `cargo-lambda`, from PyPI: what functions in Rust are tried with on no host at all.
///
/// # Errors
/// Where it cannot be made.
pub fn cargo_lambda() -> Result<PathBuf> {
    Ok(from_pypi("cargo-lambda", CARGO_LAMBDA)?.join("bin/cargo-lambda"))
}

/// The program `workerd`, from npm: functions in isolates of one process.
///
/// # Errors
/// Where it cannot be made.
pub fn workerd() -> Result<PathBuf> {
    let folder = folder("workerd", WORKERD, |folder| {
        run(Command::new("npm")
            .args(["install", "--silent", "--no-fund", "--no-audit", "--prefix"])
            .arg(folder)
            .arg(WORKERD))
    })?;
    Ok(folder.join("node_modules/.bin/workerd"))
}

/// An environment of Python with this in it.
fn from_pypi(name: &str, what: &str) -> Result<PathBuf> {
    folder(name, what, |folder| {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(folder))?;
        run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet", what]))
    })
}

/// A folder of this name in the build folder with this in it, which is made where it is missing.
fn folder(name: &str, what: &str, make: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let target = target();
    fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    // Tests of several runs share it.
    let lock = File::create(target.join(format!("{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let folder = target.join(name);
    let done = folder.join(what);
    if !done.exists() {
        make(&folder)?;
        File::create(done)?;
    }
    Ok(folder)
}

fn run(command: &mut Command) -> Result<()> {
    let ran = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{command:?}: {said}");
    Ok(())
}
