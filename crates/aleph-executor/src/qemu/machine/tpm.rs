//! A TPM 2.0: a process of `swtpm` beside QEMU's, under the same user and in the same group.
//!
//! The two speak over a pair of sockets that nobody else has, so it ends with its VM by itself, also
//! where this node is not there to see it. One whose QEMU ended before it had come as far as its TPM does
//! not see that (`--terminate` looks at the second connection, which QEMU hands it): it is killed. What it remembers is in a folder of the VM's, whose owner is
//! the VMM's user of this start.

use super::error::MachineError;
use crate::cgroup::Cgroup;
use crate::process::{Identity, Process, ProcessExit, Spawn, path_of_file};
use crate::tail::Tail;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat};
use rustix::process::{Gid, Uid};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PROGRAM: &str = "swtpm";

/// Its identity, in the VM's runtime folder.
const RECORD: &str = "tpm.json";

/// How long it may take to end once its VM has.
const END: Duration = Duration::from_secs(2);

/// Where the program is.
pub(super) fn find() -> Result<PathBuf, MachineError> {
    crate::qemu::find(Path::new(PROGRAM)).map_err(|_| MachineError::Missing {
        what: PROGRAM.into(),
        package: PROGRAM,
    })
}

/// What a TPM is started with.
#[derive(Debug)]
pub(super) struct TpmStart<'a> {
    /// Its folder, opened with `O_PATH`.
    pub(super) folder: OwnedFd,
    pub(super) run_dir: &'a Path,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) user: Option<u32>,
}

/// A running TPM.
#[derive(Debug)]
pub(crate) struct Tpm {
    process: Process,
    tail: Option<Tail>,
}

impl Tpm {
    /// Starts one; gives the end that is QEMU's.
    pub(super) fn start(start: TpmStart<'_>) -> Result<(Self, OwnedFd), MachineError> {
        let program = find()?;
        let TpmStart {
            folder,
            run_dir,
            cgroup,
            user,
        } = start;
        let failed = |what: &str| MachineError::io(format!("{what} the TPM"));
        if let Some(user) = user {
            own(&folder, user).map_err(failed("give its folder to"))?;
        }
        let (ours, theirs) = UnixStream::pair().map_err(failed("make sockets for"))?;
        let (tail, stderr) = Tail::new().map_err(failed("make a pipe for"))?;
        let mut command = Command::new(program);
        command
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--ctrl", "type=unixio,clientfd=3"])
            .arg("--tpmstate")
            .arg(format!("dir={},mode=0600", path_of_file(4)))
            .env_clear()
            .current_dir("/");
        let process = Process::spawn(Spawn {
            command,
            files: vec![theirs.into(), folder],
            user,
            device_group: None,
            cgroup,
            stdout: None,
            stderr,
        })
        .map_err(failed("start"))?;
        let tpm = Self {
            process,
            tail: Some(tail),
        };
        // One that is not recorded ends with its VM all the same.
        let recorded = serde_json::to_vec(tpm.process.identity())
            .map_err(io::Error::from)
            .and_then(|record| super::folder::write_whole(&run_dir.join(RECORD), &record));
        match recorded {
            Ok(()) => Ok((tpm, ours.into())),
            Err(error) => {
                tpm.bury();
                Err(failed("record")(error))
            }
        }
    }

    /// Takes over the one of a VM; `None` where it has none, or it has ended.
    pub(super) fn adopt(run_dir: &Path) -> Option<Self> {
        let record = fs::read(run_dir.join(RECORD)).ok()?;
        let identity: Identity = serde_json::from_slice(&record).ok()?;
        let process = Process::adopt(&identity).ok()?;
        let tail = None;
        Some(Self { process, tail })
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// What it said last.
    pub(super) fn said(&self) -> String {
        self.tail.as_ref().map(Tail::text).unwrap_or_default()
    }

    /// Sees it end, once its VM has.
    pub(super) async fn end(&self) -> ProcessExit {
        if let Ok(exit) = tokio::time::timeout(END, self.process.wait()).await {
            return exit;
        }
        let _ = self.process.kill();
        self.process.wait().await
    }

    pub(super) fn kill(&self) {
        let _ = self.process.kill();
    }

    /// Kills one that nobody will see end.
    pub(super) fn bury(self) {
        self.kill();
        tokio::spawn(async move { self.process.wait().await });
    }
}

/// Gives a folder and what is in it to a user. Its last user may have put anything there: only what is a file
/// by this one name is given away.
fn own(folder: &OwnedFd, user: u32) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    chownat(folder, "", uid, gid, AtFlags::EMPTY_PATH)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(folder, ".", flags, Mode::empty())?;
    for entry in fs::read_dir(path_of_file(listed.as_raw_fd()))? {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&listed, entry?.file_name(), flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "its folder holds something else than files of its own",
            ));
        }
        chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}
