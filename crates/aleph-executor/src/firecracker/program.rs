//! The programs `firecracker` and `jailer`: where each is, and which version.

use super::{Version, VersionError};
use crate::hypervisor::LaunchError;
use crate::qemu::find;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a program may take to say its version, and how much it may say.
const LIMIT: Duration = Duration::from_secs(10);
const LONGEST: usize = 64 * 1024;

/// A program that was asked which version it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

/// How long one that said nothing of use is not asked again: each ask may take [`LIMIT`], and many
/// want to know.
const FORGIVEN: Duration = Duration::from_secs(60);

/// The program that is configured, asked again whenever it is another one.
#[derive(Debug)]
pub(crate) struct Programs {
    name: PathBuf,
    read: fn(&str) -> Result<Version, VersionError>,
    known: Mutex<Option<Known>>,
}

/// What the program at a path said.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    stamp: Stamp,
    /// Its version, or why that is not known and when it was asked.
    said: Result<Version, (String, Instant)>,
}

impl Known {
    /// Whether it still holds for a program.
    fn is_of(&self, path: &Path, stamp: Stamp) -> bool {
        let holds = match &self.said {
            Ok(_) => true,
            Err((_, asked)) => asked.elapsed() < FORGIVEN,
        };
        holds && self.path == path && self.stamp == stamp
    }
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
        let now = match known.take().filter(|known| known.is_of(&path, stamp)) {
            Some(known) => known,
            None => Known {
                stamp,
                said: ask(&path, self.read, LIMIT).map_err(|why| (why, Instant::now())),
                path,
            },
        };
        let Known { path, said, .. } = known.insert(now);
        match said {
            Ok(version) => Ok(Program {
                path: path.clone(),
                version: *version,
            }),
            Err((why, _)) => Err(LaunchError::Probe {
                program: path.display().to_string(),
                why: why.clone(),
            }),
        }
    }
}

fn ask(
    program: &Path,
    read: fn(&str) -> Result<Version, VersionError>,
    limit: Duration,
) -> Result<Version, String> {
    let said = said(program, limit).map_err(|error| error.to_string())?;
    let version = read(&String::from_utf8_lossy(&said)).map_err(|error| error.to_string())?;
    version
        .check_supported()
        .map_err(|error| error.to_string())?;
    Ok(version)
}

/// What a program writes when it is asked for its version. It and all that it has started are gone then.
fn said(program: &Path, limit: Duration) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let said = match child.stdout.take() {
        Some(stdout) => hear(stdout, limit),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // It is not waited for yet, so that its number is nobody else's.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    said
}

/// Reads to the end, within a limit.
fn hear(mut from: impl Read + std::os::fd::AsFd, limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&from, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => {
                let why = format!("it does not answer --version within {limit:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match from.read(&mut chunk)? {
            0 => return Ok(said),
            length => said.extend_from_slice(&chunk[..length]),
        }
        if said.len() > LONGEST {
            let why = format!("it answers --version with more than {LONGEST} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(program: &Path, script: &str) {
        std::fs::write(program, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(program, mode).unwrap();
    }

    /// What is said of a program that does this.
    fn asked(script: &str, limit: Duration) -> Result<Version, String> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("firecracker");
        write(&program, script);
        ask(&program, Version::of_program, limit)
    }

    #[test]
    fn one_that_says_nothing_of_use_is_asked_once_until_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (program, asked) = (dir.path().join("firecracker"), dir.path().join("asked"));
        write(&program, &format!("echo >> {}", asked.display()));
        let programs = Programs::firecracker(program.clone());
        let first = programs.find().unwrap_err().to_string();
        assert_eq!(programs.find().unwrap_err().to_string(), first);
        assert_eq!(std::fs::read(&asked).unwrap(), b"\n");
        let next = dir.path().join("next");
        write(&next, "echo Firecracker v1.16.1");
        std::fs::rename(&next, &program).unwrap();
        assert_eq!(programs.find().unwrap().version, Version::new(1, 16, 1));
    }

    #[test]
    fn a_program_that_never_answers_is_ended_and_said_to_be() {
        // What it has started keeps its standard output open.
        let script = "sleep 1000 & echo Firecracker v1.16.1; exec sleep 1000";
        let error = asked(script, Duration::from_millis(200)).unwrap_err();
        assert!(
            error.contains("does not answer --version within 200ms"),
            "{error}"
        );
        let error = asked("exec yes", LIMIT).unwrap_err();
        assert!(error.contains("more than 65536 bytes"), "{error}");
        assert!(asked("echo nothing", LIMIT).is_err());
        let version = asked("echo Firecracker v1.16.1", LIMIT).unwrap();
        assert_eq!(version, Version::new(1, 16, 1));
    }
}
