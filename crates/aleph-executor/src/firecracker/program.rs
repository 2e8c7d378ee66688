//! The programs `firecracker` and `jailer`: where each is, and which version.

use super::{Version, VersionError};
use crate::hypervisor::LaunchError;
use crate::qemu::find;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// A program that was asked which version it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

/// The program that is configured, asked again whenever it is another one.
#[derive(Debug)]
pub(crate) struct Programs {
    name: PathBuf,
    read: fn(&str) -> Result<Version, VersionError>,
    known: Mutex<Option<(Stamp, Program)>>,
}

/// What changes when a program is replaced.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(meta: &Metadata) -> Stamp {
    (
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.ctime(),
        meta.ctime_nsec(),
    )
}

impl Programs {
    /// The Firecracker of that name in `PATH`, or at that path.
    pub(crate) fn firecracker(name: PathBuf) -> Self {
        Self::new(name, Version::of_program)
    }

    /// The same of a jailer.
    pub(crate) fn jailer(name: PathBuf) -> Self {
        Self::new(name, Version::of_jailer)
    }

    fn new(name: PathBuf, read: fn(&str) -> Result<Version, VersionError>) -> Self {
        Self {
            name,
            read,
            known: Mutex::default(),
        }
    }

    /// Which it is now. Blocks for some milliseconds the first time.
    pub(crate) fn find(&self) -> Result<Program, LaunchError> {
        let path = find(&self.name)?;
        let meta = std::fs::metadata(&path).map_err(|source| LaunchError::Io {
            what: format!("look at {}", path.display()),
            source,
        })?;
        let stamp = stamp(&meta);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, program)) = &*known
            && *of == stamp
            && program.path == path
        {
            return Ok(program.clone());
        }
        let version = ask(&path, self.read)?;
        let program = Program { path, version };
        *known = Some((stamp, program.clone()));
        Ok(program)
    }
}

fn ask(
    program: &Path,
    read: fn(&str) -> Result<Version, VersionError>,
) -> Result<Version, LaunchError> {
    let unknown = |why: String| LaunchError::Probe {
        program: program.display().to_string(),
        why,
    };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| unknown(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = read(&said).map_err(|error| unknown(error.to_string()))?;
    version
        .check_supported()
        .map_err(|error| unknown(error.to_string()))?;
    Ok(version)
}
