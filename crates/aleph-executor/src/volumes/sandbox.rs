//! Runs programs over disks that others wrote: `qemu-img`, `mke2fs`, `e2fsck`, `xfs_repair`.
//!
//! Such a program reads what a tenant chose byte by byte, so it is taken for broken into. Where the node
//! runs as root, it gets a user of its own that owns nothing but the file it writes, and no network. It
//! has no path into the node's folders: its files are descriptors, which it opens again by
//! [`path_of_file`]. It can gain no rights, and its time, memory, processes and output have bounds. It is
//! the first process of a namespace of its own, so whatever it starts ends with it, and it ends with
//! whoever started it.
//!
//! # Failure cases
//! [`ToolError`]: it is missing, it fails (with the end of what it said), it takes too long.

use crate::process::{FIRST_FILE, path_of_file};
use aleph_types::VmId;
use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, MemfdFlags, SealFlags, Uid, fchown, fcntl_add_seals, memfd_create};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Users of such programs: below those of VMs, above those that distributions use. Two that run at a time
/// have different ones.
const FIRST_USER: u32 = 0x6fff_0000;
const USERS: u32 = 0x1_0000;

/// Bytes of address space that a program may have.
const MEMORY: u64 = 4 << 30;
/// Processes and threads that a program may have, where it has a user of its own.
const PROCESSES: u64 = 1024;
/// How much of what a program said is kept.
const SAID: u64 = 1024;
/// How much of what it says is taken, beginning with the first: what comes then fails.
const MOST_SAID: u64 = 64 * 1024;
/// What works on images.
pub(super) const QEMU_IMG: &str = "qemu-img";
/// The bound of a program's files that is none.
pub(super) const NO_BOUND: u64 = u64::MAX;
/// How often what a program has left is looked for.
const LOOKS: u32 = 100;

/// A program that failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// Which.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It refused or broke.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its exit code, or the signal that ended it.
        status: String,
        /// The end of what it said.
        said: String,
        /// The exit code, where it has one.
        code: Option<i32>,
    },
    /// It did not end.
    #[error("{program} did not end within {} s", time.as_secs())]
    Late {
        /// Which.
        program: &'static str,
        /// The time that it had.
        time: Duration,
    },
}

impl ToolError {
    /// Whether it is missing. Where it is nowhere and a folder of `PATH` may not be searched by the
    /// program's user, `execvp` says that alone.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        use io::ErrorKind::{NotFound, PermissionDenied};
        matches!(self, Self::Start { source, .. }
            if matches!(source.kind(), NotFound | PermissionDenied))
    }

    /// Whether it could not read or write what it should. `qemu-img` says the same of an image that is damaged, so
    /// of it this is never said: whoever runs it looks at its files.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        match self {
            Self::Start { source, .. } => super::disk_fault::is_one(source),
            Self::Failed { program, .. } => *program != QEMU_IMG && self.says_so(),
            Self::Late { .. } => false,
        }
    }

    /// Whether it says that something could not be read or written.
    pub(super) fn says_so(&self) -> bool {
        let words = ["Input/output error", "Read-only file system"];
        matches!(self, Self::Failed { said, .. } if words.iter().any(|word| said.contains(word)))
    }

    /// Whether it found no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        // The second is LVM's.
        let words = ["No space left on device", "free space in thin pool"];
        matches!(self, Self::Failed { said, .. } if words.iter().any(|word| said.contains(word)))
    }
}

/// A program to run.
#[derive(Debug)]
pub(super) struct Tool<'a> {
    pub(super) program: &'static str,
    pub(super) arguments: Vec<String>,
    /// What it only reads: [`read_path`] names them.
    pub(super) reads: Vec<&'a File>,
    /// What it writes, after those.
    pub(super) writes: Option<&'a File>,
    /// How long it may take.
    pub(super) time: Duration,
    /// How long any file of it may get, in bytes. [`NO_BOUND`] is for programs that end where they have one.
    pub(super) output: u64,
}

/// What a program calls the file that has this place in [`Tool::reads`]; the one that it writes comes
/// after them.
pub(super) fn read_path(place: usize) -> String {
    // There are never more than a few layers.
    path_of_file(FIRST_FILE + i32::try_from(place).unwrap_or(i32::MAX - FIRST_FILE))
}

impl Tool<'_> {
    /// Runs it to its end.
    pub(super) fn run(self) -> Result<(), ToolError> {
        self.run_to(None)
    }

    /// The same, with what it prints in a file.
    pub(super) fn run_printing(self, out: &File) -> Result<(), ToolError> {
        self.run_to(Some(out))
    }

    fn run_to(self, out: Option<&File>) -> Result<(), ToolError> {
        let program = self.program;
        let start = |source| ToolError::Start { program, source };
        let user = rustix::process::geteuid().is_root().then(|| {
            // What an earlier process may have left to such a user is not the first of this one's.
            static NEXT: LazyLock<AtomicU32> =
                LazyLock::new(|| AtomicU32::new(VmId::random().bits()));
            FIRST_USER + NEXT.fetch_add(1, Ordering::Relaxed) % USERS
        });
        let _owned = match (user, self.writes) {
            (Some(user), Some(file)) => Some(Lent::to(user, file).map_err(start)?),
            _ => None,
        };
        let said = a_said().map_err(start)?;
        let ended = match user {
            // What it is killed with, where we die, is about the thread that starts it: that one waits.
            Some(user) => thread::scope(|scope| {
                let running = thread::Builder::new().name("tool".into());
                let running = running.spawn_scoped(scope, || self.run_first(user, &said, out))?;
                let ended = running.join();
                ended.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            }),
            None => self
                .spawn(None, &said, out)
                .and_then(|child| wait(child, self.time)),
        };
        if let Some(user) = user {
            end_all_of(user);
        }
        let status = ended.map_err(start)?;
        let Some(status) = status else {
            let time = self.time;
            return Err(ToolError::Late { program, time });
        };
        if status.success() {
            return Ok(());
        }
        Err(ToolError::Failed {
            program,
            status: status.to_string(),
            said: end_of(&said),
            code: status.code(),
        })
    }

    /// Runs it as the first process of a namespace, which this thread is for.
    #[allow(unsafe_code)]
    fn run_first(
        &self,
        user: u32,
        said: &File,
        out: Option<&File>,
    ) -> io::Result<Option<ExitStatus>> {
        // SAFETY: only children of this thread are in the new namespace, and it has one.
        let made = unsafe { unshare_unsafe(UnshareFlags::NEWPID) };
        if let Err(error) = made {
            tracing::debug!(%error, "there is no namespace of processes: the other walls stand");
        }
        wait(self.spawn(Some(user), said, out)?, self.time)
    }

    fn spawn(&self, user: Option<u32>, said: &File, out: Option<&File>) -> io::Result<Child> {
        let paths = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", format!("{paths}:/usr/sbin:/sbin:/usr/bin:/bin"))
            .env("LC_ALL", "C.UTF-8")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(match out {
                Some(out) => Stdio::from(out.try_clone()?),
                None => Stdio::null(),
            })
            .stderr(Stdio::from(said.try_clone()?));
        let files = self.reads.iter().copied().chain(self.writes);
        let mappings = files
            .zip(FIRST_FILE..)
            .map(|(file, child_fd)| {
                let parent_fd = OwnedFd::from(file.try_clone()?);
                Ok(FdMapping {
                    parent_fd,
                    child_fd,
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        lock_up(&mut command, user, self.output);
        command.spawn()
    }
}

/// A file that belongs to a program's user for as long as this lives.
struct Lent<'a>(&'a File);

impl<'a> Lent<'a> {
    fn to(user: u32, file: &'a File) -> io::Result<Self> {
        fchown(file, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        Ok(Self(file))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Err(error) = fchown(self.0, Some(Uid::ROOT), Some(Gid::ROOT)) {
            tracing::warn!(%error, "a volume's file still belongs to a program's user");
        }
    }
}

#[allow(unsafe_code)]
fn lock_up(command: &mut Command, user: Option<u32>, output: u64) {
    let parent = getpid();
    let is_root = user.is_some();
    // SAFETY: between fork and exec the closure makes only system calls, on values that were ready
    // before the fork; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::thread::set_no_new_privs(true)?;
            let limits = [
                (Resource::Core, 0),
                (Resource::Fsize, output.max(MOST_SAID)),
                (Resource::As, MEMORY),
                (Resource::Nofile, 64),
            ];
            for (resource, most) in limits {
                let most = Rlimit {
                    current: Some(most),
                    maximum: Some(most),
                };
                setrlimit(resource, most)?;
            }
            if let Some(user) = user {
                let most = Rlimit {
                    current: Some(PROCESSES),
                    maximum: Some(PROCESSES),
                };
                setrlimit(Resource::Nproc, most)?;
                // A host that gives us no such namespaces has the other walls.
                let _ = unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWIPC);
                rustix::thread::set_thread_groups(&[])?;
                let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            }
            // After the change of user, which takes it away.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // From within a namespace of its own there is no parent to be seen.
            match is_root || getppid() == Some(parent) {
                true => Ok(()),
                false => Err(io::ErrorKind::Interrupted.into()),
            }
        });
    }
}

/// Waits for its end; `None` where that did not come in time, and it was killed.
pub(super) fn wait(child: Child, time: Duration) -> io::Result<Option<ExitStatus>> {
    wait_twice(child, time, Duration::ZERO)
}

/// The same of a program that is asked to end first, so that it can leave things in order, and has this time for
/// that.
pub(super) fn wait_twice(
    mut child: Child,
    time: Duration,
    grace: Duration,
) -> io::Result<Option<ExitStatus>> {
    let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let watched = number
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
        .and_then(|pid| Ok::<_, io::Error>(pidfd_open(pid, PidfdFlags::empty())?));
    let ends = |pidfd: &OwnedFd, time: Duration| {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error)),
            }
        }
    };
    let mut in_time = true;
    let ended = watched.and_then(|pidfd| {
        in_time = ends(&pidfd, time)?;
        if in_time || grace.is_zero() {
            return Ok(in_time);
        }
        // What has ended meanwhile is no error.
        let _ = pidfd_send_signal(&pidfd, Signal::TERM);
        ends(&pidfd, grace)
    });
    if !matches!(ended, Ok(true)) {
        // What has ended already is no error here; it is not reaped yet.
        let _ = child.kill();
    }
    let status = child.wait()?;
    Ok((ended? && in_time).then_some(status))
}

/// Kills what a program has left behind, on hosts that gave it no namespace of its own.
fn end_all_of(user: u32) {
    for _ in 0..LOOKS {
        let mut found = false;
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let is_theirs = || entry.metadata().is_ok_and(|meta| meta.uid() == user);
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let Some(pid) = number.and_then(Pid::from_raw).filter(|_| is_theirs()) else {
                continue;
            };
            // Looked at again once it is held: a number can change hands.
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
                && is_theirs()
            {
                let killed = pidfd_send_signal(&pidfd, Signal::KILL);
                found |= killed != Err(rustix::io::Errno::SRCH);
            }
        }
        if !found {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    tracing::warn!(
        user,
        "a program of a volume's left processes that do not end"
    );
}

/// A file for what a program says, which does not grow.
fn a_said() -> io::Result<File> {
    let said = memfd_create("said", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let said = File::from(said);
    said.set_len(MOST_SAID)?;
    fcntl_add_seals(&said, SealFlags::GROW)?;
    Ok(said)
}

/// The end of what a program said, as one line. The file's place is the program's, too: it is where that ended.
pub(super) fn end_of(said: &File) -> String {
    let most = said.metadata().map_or(0, |meta| meta.len());
    let length = rustix::fs::tell(said).map_or(0, |place| place.min(most));
    let mut bytes = vec![0; usize::try_from(length.min(SAID)).unwrap_or(0)];
    let from = length.saturating_sub(SAID);
    if said.read_exact_at(&mut bytes, from).is_err() {
        return String::new();
    }
    // The file's bytes are a tenant's, and so may be words about them.
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ");
    line.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn shell<'a>(script: &str, reads: Vec<&'a File>, writes: Option<&'a File>) -> Tool<'a> {
        Tool {
            program: "sh",
            arguments: vec!["-c".into(), script.into()],
            reads,
            writes,
            time: Duration::from_secs(20),
            output: 4096,
        }
    }

    #[test]
    fn a_program_has_its_files_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            File::options().read(true).write(true).open(&path).unwrap()
        };
        let (read, written, secret) = (make("r", 0o644), make("w", 0o644), make("s", 0o600));
        let copy = format!("cat {} > {}", read_path(0), read_path(1));
        shell(&copy, vec![&read], Some(&written)).run().unwrap();
        let mut found = [0; 1];
        written.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found, b"r");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        assert_eq!(written.metadata().unwrap().uid(), 0, "it is given back");
        let into = format!("echo x >> {}", read_path(0));
        assert!(shell(&into, vec![&read], None).run().is_err());
        let path = dir.path().join("s");
        let named = shell(&format!("cat {}", path.display()), vec![], None).run();
        let said = named.unwrap_err().to_string();
        assert!(said.contains("Permission denied"), "{said}");
        let held = shell(&format!("cat {}", read_path(0)), vec![&secret], None).run();
        assert!(held.is_err(), "a file for nobody else is not opened again");
        let shadow = shell("cat /etc/shadow", vec![], None).run();
        assert!(shadow.is_err());
    }

    #[test]
    fn a_program_that_is_asked_to_end_can_leave_things_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (ready, done) = (dir.path().join("ready"), dir.path().join("done"));
        let script = format!(
            "trap 'touch {}; exit 0' TERM; touch {}; while :; do sleep 0.01; done",
            done.display(),
            ready.display()
        );
        let child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        while !ready.exists() {
            thread::yield_now();
        }
        // Its time is over at once; for its end it has as long as it takes.
        let status = wait_twice(child, Duration::ZERO, Duration::from_secs(600)).unwrap();
        assert_eq!(status, None);
        assert!(done.exists(), "it was killed");
    }

    #[test]
    fn time_and_output_have_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("w")).unwrap();
        let flood = format!("dd if=/dev/zero of={} bs=1024 count=640", read_path(0));
        shell(&flood, vec![], Some(&file)).run().unwrap_err();
        assert!(file.metadata().unwrap().len() <= MOST_SAID);
        // What it says has one of its own, also where its files have none.
        let words = "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 7";
        let mut talks = shell(words, vec![], None);
        talks.output = NO_BOUND;
        match talks.run().unwrap_err() {
            ToolError::Failed { said, code, .. } => {
                assert_eq!((said.as_str(), code), (&*"x".repeat(1024), Some(7)));
            }
            other => panic!("{other}"),
        }
        let mut slow = shell("exec sleep 600", vec![], None);
        slow.time = Duration::from_millis(50);
        assert!(matches!(slow.run(), Err(ToolError::Late { .. })));
        // What it leaves behind ends, too.
        let mark = dir.path().join("mark").display().to_string();
        let fork = format!("exec -a {mark} sleep 600 & exit 0");
        let mut forks = shell("", vec![], None);
        (forks.program, forks.arguments) = ("bash", vec!["-c".into(), fork]);
        forks.run().unwrap();
        if rustix::process::geteuid().is_root() {
            let lines = std::fs::read_dir("/proc").unwrap().flatten();
            let lines = lines.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
            let left = lines
                .filter(|line| line.starts_with(mark.as_bytes()))
                .count();
            assert_eq!(left, 0);
        }
        let failed = shell("echo no; echo 'why not' >&2; exit 3", vec![], None).run();
        let said = failed.unwrap_err().to_string();
        assert!(said.ends_with(": why not") && said.contains('3'), "{said}");
        let mut missing = shell("", vec![], None);
        missing.program = "no-such-program";
        assert!(missing.run().unwrap_err().is_missing());
        drop(file.try_clone().map(|mut file| file.write_all(b"")));
    }
}
