//! Python 3.11: AWS's own client, `awslambdaric`, with compiled modules.
//!
//! The client comes as a wheel from where the host's pip gets packages, pinned by version and
//! digest. Everything is compiled here, by the image's own interpreter: the root is read-only, so
//! what is not compiled in it would be compiled at each start.

use super::super::debian::EPOCH;
use super::client::ClientError;
use super::{RUNTIME, base};
use crate::disk::Doing;
use crate::error::ImageError;
use crate::program::Program;
use crate::progress::Progress;
use crate::staging::Staging;
use std::fs;
use std::path::Path;
use std::time::Duration;

const CLIENT: &str = "awslambdaric 4.2.2";
/// One wheel for each architecture, or one for all.
const REQUIREMENTS: &str = "\
awslambdaric==4.2.2 \
 --hash=sha256:ea87f581768a7558b493a59ee9f4de6dcbc6444b888169afa01af71396ed731d \
 --hash=sha256:0bfd063e2b4c3f1c58e5a561fab3a15d71ed85dbfacb0a7a693b8d20f1d1c544
simplejson==4.3.0 \
 --hash=sha256:06306ed92b3860802ad9dd7fe88f122a7360b01e3936b8a355d6d689bb2bb774 \
 --hash=sha256:82a24d31f06deea3ba1814c4c79f54b1573a3574b8a7c598b6a7f41ac488e047
snapshot-restore-py==1.0.0 \
 --hash=sha256:38f99e696793790f54658e71c68c7a8a40cea877c81232b5052383b1301aceba
";
const FETCH_LIMIT: Duration = Duration::from_secs(600);
const COMPILE_LIMIT: Duration = Duration::from_secs(600);

const BOOTSTRAP: &str = include_str!("python/bootstrap.py");
const START: &str = include_str!("python/aleph_start.py");
/// Where a function's own child processes find the client's modules, as in Lambda.
pub(super) const ENV: [(&str, &str); 1] = [("PYTHONPATH", "/var/runtime")];

const STDLIB: &str = "usr/lib/python3.11";
/// Documentation as a module, and tests of the interpreter's own.
const NOT_NEEDED: [&str; 2] = ["pydoc_data", "test"];

pub(super) fn add(
    tree: &Path,
    staging: &Staging,
    progress: &mut dyn Progress,
) -> Result<(), ImageError> {
    for name in NOT_NEEDED {
        base::remove(&tree.join(STDLIB).join(name))?;
    }
    for name in ["python", "python3"] {
        base::link(&tree.join("usr/bin").join(name), "python3.11")?;
    }
    fetch(&tree.join(RUNTIME), staging, progress)?;
    base::program(tree, BOOTSTRAP)?;
    base::write(
        &tree.join(RUNTIME).join("aleph_start.py"),
        START.as_bytes(),
        0o644,
    )?;
    compile(tree, progress)
}

fn fetch(runtime: &Path, staging: &Staging, progress: &mut dyn Progress) -> Result<(), ImageError> {
    progress.begin(&format!("get {CLIENT}"), None);
    let list = staging.path().join("requirements.txt");
    fs::write(&list, REQUIREMENTS).doing("write", &list)?;
    let work = staging.folder("pip")?;
    let fetched = Program::find("pip3", "python3-pip", FETCH_LIMIT).and_then(|pip| {
        pip.env("TMPDIR", &work)
            .args(["install", "-qq", "--no-input", "--disable-pip-version-check"])
            .args(["--root-user-action=ignore", "--no-compile", "--no-deps"])
            .args(["--require-hashes", "--only-binary=:all:", "--implementation=cp"])
            .args(["--python-version=3.11", "--abi=cp311"])
            // Both are names of the oldest libraries of C that a wheel runs with.
            .arg(format!("--platform=manylinux_2_28_{}", std::env::consts::ARCH))
            .arg(format!("--platform=manylinux2014_{}", std::env::consts::ARCH))
            .arg("--requirement")
            .arg(&list)
            .arg("--target")
            .arg(runtime)
            .run(|| {})
    });
    fetched.map_err(|source| ClientError {
        client: CLIENT.into(),
        program: "pip3",
        source,
    })?;
    progress.end();
    Ok(())
}

/// Compiles all modules, so that they are used whatever their sources' times are, and so that
/// the same sources compile to the same bytes: one process, and sets in a fixed order. What the
/// compiler itself imports it would compile in the usual way and then leave: it does not (`-B`).
fn compile(tree: &Path, progress: &mut dyn Progress) -> Result<(), ImageError> {
    progress.begin("compile Python's modules", None);
    Program::find("chroot", "coreutils", COMPILE_LIMIT)?
        .named("python3.11 -m compileall")
        .arg(tree)
        .args([
            "/usr/bin/env",
            "-i",
            "PYTHONHASHSEED=0",
            &format!("SOURCE_DATE_EPOCH={EPOCH}"),
        ])
        .args([
            "/usr/bin/python3.11",
            "-B",
            "-m",
            "compileall",
            "-q",
            "-f",
            "-j1",
        ])
        .args([
            "--invalidation-mode=unchecked-hash",
            "/usr/lib/python3.11",
            "/var/runtime",
        ])
        .run(|| {})?;
    progress.end();
    Ok(())
}
