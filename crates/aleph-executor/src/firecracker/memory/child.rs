//! A memory server as its node sees it: a process beside a VM's.
//!
//! It has the VM's user and group of processes, and what it was handed: the socket that it listens on,
//! the memory file, the working set, and a pipe that tells it that its node has gone before the VMM
//! came. Its identity is written to the VM's runtime folder, so that a node that starts again watches
//! it further.

use super::server::Use;
use super::{ServerProgram, working_set};
use crate::cgroup::Cgroup;
use crate::process::{Identity, Process, ProcessExit, Spawn};
use crate::tail::Tail;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Who it is, in the VM's runtime folder.
const IDENTITY: &str = "memory-server.json";

/// What follows the memory file's name in that of the record beside it.
const WORKING_SET: &str = ".working-set";

/// How long it may take to end after its VM.
const GRACE: Duration = Duration::from_secs(2);

/// A memory server that runs, or did.
#[derive(Debug)]
pub(in super::super) struct MemoryServer {
    process: Process,
    /// What it says; an adopted one's goes nowhere.
    tail: Option<Tail>,
    /// Told to be gone once this is dropped, until the VMM has come.
    starter: Mutex<Option<OwnedFd>>,
}

/// How to start one.
pub(in super::super) struct Serve<'a> {
    pub(in super::super) program: &'a ServerProgram,
    /// Whether the working set is recorded, and given ahead of need.
    pub(in super::super) prefetch: bool,
    pub(in super::super) listener: UnixListener,
    pub(in super::super) memory: File,
    pub(in super::super) run_dir: &'a Path,
    pub(in super::super) user: Option<u32>,
    pub(in super::super) cgroup: Option<Cgroup>,
}

impl MemoryServer {
    pub(in super::super) fn start(serve: Serve<'_>) -> io::Result<Self> {
        let Serve {
            program,
            prefetch,
            listener,
            memory,
            run_dir,
            user,
            cgroup,
        } = serve;
        let (how, record) = match prefetch.then(|| record_beside(&memory)).flatten() {
            Some((how, record)) => (how, Some(record)),
            None => (Use::Nothing, None),
        };
        let (tail, stderr) = Tail::new()?;
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut files: Vec<OwnedFd> = vec![listener.into(), memory.into(), theirs];
        files.extend(record.map(OwnedFd::from));
        let mut command = Command::new(&program.program);
        command
            .args(&program.arguments)
            .arg(how.word())
            .env_clear()
            .current_dir("/");
        let process = Process::spawn(Spawn {
            command,
            files,
            user,
            device_group: None,
            cgroup,
            stdout: None,
            stderr,
        })?;
        let server = Self {
            process,
            tail: Some(tail),
            starter: Mutex::new(Some(ours)),
        };
        if let Err(error) = server.remember(run_dir) {
            server.kill();
            return Err(error);
        }
        Ok(server)
    }

    fn remember(&self, run_dir: &Path) -> io::Result<()> {
        let (path, new) = (run_dir.join(IDENTITY), run_dir.join("memory-server.new"));
        let text = serde_json::to_vec(self.process.identity())?;
        std::fs::write(&new, text)?;
        std::fs::rename(new, path)
    }

    /// That of a VM which an earlier process of this node started; `None` where it has none.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where it had one, which has gone.
    pub(in super::super) fn find(run_dir: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read(run_dir.join(IDENTITY)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let identity: Identity = serde_json::from_slice(&text)?;
        Ok(Some(Self {
            process: Process::adopt(&identity)?,
            tail: None,
            starter: Mutex::default(),
        }))
    }

    /// Waits until it has ended; says how.
    pub(in super::super) async fn ended(&self) -> String {
        let exit = self.process.wait().await;
        let said = self.tail.as_ref().map(Tail::text).unwrap_or_default();
        match (said.trim(), exit) {
            ("", exit) => exit.to_string(),
            (said, ProcessExit::Code(_)) => said.to_owned(),
            (said, exit) => format!("{exit}: {said}"),
        }
    }

    /// Waits until it has ended, as it does after its VM, with the working set written. One that does
    /// not is killed.
    pub(in super::super) async fn end(&self) {
        // It may have had no VM.
        let starter = self.starter.lock();
        drop(starter.unwrap_or_else(PoisonError::into_inner).take());
        if tokio::time::timeout(GRACE, self.ended()).await.is_err() {
            self.kill();
            self.ended().await;
        }
    }

    /// Kills it. That it has ended already is no matter.
    fn kill(&self) {
        if let Err(error) = self.process.kill() {
            tracing::warn!(%error, "a memory server is not killed");
        }
    }
}

/// The record beside a memory file, and what to do with it: to read it where it is there, else to
/// write it, where nobody else does. `None` where there can be none, such as for a file without a
/// name.
fn record_beside(memory: &File) -> Option<(Use, File)> {
    let path = name_of(memory)?;
    let mut name = path.file_name()?.to_owned();
    name.push(WORKING_SET);
    let path = path.with_file_name(name);
    let open = |path: &PathBuf| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(path)
    };
    let record = match open(&path) {
        Ok(record) => record,
        Err(error) => {
            let path = path.display();
            tracing::debug!(%path, %error, "a working set is not recorded");
            return None;
        }
    };
    if working_set::is_written(&record) {
        return Some((Use::Prefetch, File::open(path).ok()?));
    }
    // The server has it as long as it has the file.
    let ours = flock(&record, FlockOperation::NonBlockingLockExclusive);
    ours.is_ok().then_some((Use::Record, record))
}

/// The name of an open file, where it has it still.
fn name_of(file: &File) -> Option<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let (there, ours) = (
        std::fs::symlink_metadata(&path).ok()?,
        file.metadata().ok()?,
    );
    let is_same = (there.dev(), there.ino()) == (ours.dev(), ours.ino());
    (is_same && there.is_file()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_beside_the_file_and_one_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        std::fs::write(&path, "memory").unwrap();
        let memory = File::open(&path).unwrap();
        let first = record_beside(&memory).unwrap();
        assert_eq!(first.0, Use::Record);
        assert!(record_beside(&memory).is_none(), "two write");
        std::fs::write(dir.path().join("memory.working-set"), "ALEPHWS1").unwrap();
        assert_eq!(record_beside(&memory).unwrap().0, Use::Prefetch);
        std::fs::remove_file(&path).unwrap();
        assert!(record_beside(&memory).is_none(), "beside nothing");
    }

    #[test]
    fn a_file_without_a_name_has_no_record() {
        assert!(record_beside(&tempfile::tempfile().unwrap()).is_none());
    }
}
