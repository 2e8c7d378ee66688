//! Functions for tests, packed as users pack them.
//!
//! Their sources are in `functions/`. The native one is built by cargo on first use, in a
//! workspace and a folder of its own; it runs on the libraries of C of the machine that built it
//! or later ones, which is Debian 12's.

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/functions");

/// A zip archive of these files: path, Unix mode, content.
///
/// # Errors
/// Where the paths cannot be in one archive.
pub fn zip(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (path, mode, content) in files {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        zip.start_file(*path, options)?;
        zip.write_all(content)?;
    }
    Ok(zip.finish()?.into_inner())
}

/// The manifest of [`echo_program`].
#[must_use]
pub fn echo_manifest() -> PathBuf {
    manifest("echo")
}

fn manifest(name: &str) -> PathBuf {
    Path::new(SOURCES).join(name).join("Cargo.toml")
}

/// A native function that answers with its event: the crate `lambda_runtime`. An event with
/// `error` (text) fails, one with `exit` (a number) ends the process, and one with `stream` is
/// answered piece by piece (`functions/echo` says how).
///
/// # Errors
/// Where it cannot be built.
pub fn echo_program() -> Result<PathBuf> {
    native("echo", &[])
}

/// [`echo_program`] for `provided.al2023`.
///
/// # Errors
/// Where it cannot be built.
pub fn echo_zip() -> Result<Vec<u8>> {
    zip(&[("bootstrap", 0o755, &read(&echo_program()?)?)])
}

/// A native program that needs no library and is an HTTP server on `$PORT`, which does what it is
/// asked (`functions/server` says how).
///
/// # Errors
/// Where it cannot be built.
pub fn server_program() -> Result<Vec<u8>> {
    read(&native("server", &["-C", "target-feature=+crt-static"])?)
}

/// The same for `provided.al2023`.
///
/// # Errors
/// Where it cannot be built.
pub fn server_zip() -> Result<Vec<u8>> {
    zip(&[("bootstrap", 0o755, &server_program()?)])
}

/// A native program, built with these flags.
fn native(name: &str, flags: &[&str]) -> Result<PathBuf> {
    Ok(build(&manifest(name), flags)?.join(name))
}

/// Builds a crate outside the workspace, with these flags, and gives the folder with what it
/// makes.
pub(crate) fn build(manifest: &Path, flags: &[&str]) -> Result<PathBuf> {
    let target = crate::root::target();
    fs::create_dir_all(&target)?;
    let target = target.canonicalize()?.join("functions");
    fs::create_dir_all(&target)?;
    let lock = File::create(target.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["rustc", "--release", "--locked", "--quiet"])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .arg("--")
        .args(flags);
    // What a test runner sets is about the crate of the test.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let ours = ["RUSTFLAGS", "LD_LIBRARY_PATH"].contains(&&*name);
        if ours || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    let built = cargo.output().context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "{} does not build: {said}",
        manifest.display()
    );
    Ok(target.join("release"))
}

/// Functions in Python, in the module `app`: `echo`, `error`, `crash`, `hang`, `env`, `noise`.
///
/// # Errors
/// Where the source cannot be read.
pub fn python_zip() -> Result<Vec<u8>> {
    zip(&[("app.py", 0o644, &source("python/app.py")?)])
}

/// A function in Python that is an HTTP server, in the program `server.py`.
///
/// # Errors
/// Where the source cannot be read.
pub fn python_server_zip() -> Result<Vec<u8>> {
    zip(&[("server.py", 0o755, &source("python/server.py")?)])
}

/// Functions in JavaScript, in the module `index`: `echo`, `callback`, `error`, `uncaught`,
/// `crash`, `hang`, `env`, `noise`, and `stream`, which answers piece by piece.
///
/// # Errors
/// Where the source cannot be read.
pub fn node_zip() -> Result<Vec<u8>> {
    zip(&[("index.js", 0o644, &source("node/index.js")?)])
}

fn source(name: &str) -> Result<Vec<u8>> {
    read(&Path::new(SOURCES).join(name))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}
