//! Starting VMM processes, holding on to them, and seeing them end.
//!
//! A process is held by a pidfd, so that no signal ever reaches another one that got its
//! number. Across a restart of the node it is known by number, start time and the host's boot
//! id together ([`Identity`]).
//!
//! # Namespaces of processes
//! A process can be the first one of a namespace of its own ([`Process::spawn_first`]), as what may be
//! hostile is: it sees no other process of the host, and with it ends all that it has started. The
//! namespace is made by the thread that starts the process, so that nothing forks in between: the
//! process is our child, by the number that we see, from its first moment to its exit status. A program
//! that makes the namespace itself and forks (`unshare --fork`, `jailer --new-pid-ns`) would leave us a
//! grandchild, whose number is known late and whose status goes to whoever reaps orphans.
//!
//! The kernel drops signals to the first process of a namespace that it has no handler for, but
//! SIGKILL and SIGSTOP from outside (`pid_namespaces(7)`): [`Process::terminate`] is SIGKILL there.

use crate::cgroup::Cgroup;
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, WaitId, WaitIdOptions};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use tokio::io::unix::AsyncFd;

/// Which process on which boot of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it began, in clock ticks since the host's boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
    /// The host's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl Identity {
    /// The identity of a live process.
    ///
    /// # Errors
    /// Where there is none with that number.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold anything; the fields follow the last one.
        let start_time = stat
            .rsplit_once(')')
            .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has another form")))?;
        Ok(Self {
            pid,
            start_time,
            boot_id: boot_id()?,
        })
    }
}

/// The host's boot id.
///
/// # Errors
/// Where `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessExit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody could see how: it was not our child.
    Unknown,
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(9) => f.write_str("killed (signal 9)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("ended, nobody saw how"),
        }
    }
}

/// A process that this node runs.
#[derive(Debug)]
pub struct Process {
    pidfd: AsyncFd<OwnedFd>,
    identity: Identity,
    /// Whether it is the first one of a namespace of processes.
    is_first: bool,
    exit: tokio::sync::OnceCell<ProcessExit>,
}

/// How to start a process.
#[derive(Debug)]
pub struct Spawn {
    /// The program with its arguments.
    pub command: Command,
    /// Files that it gets, the first as descriptor 3.
    pub files: Vec<OwnedFd>,
    /// The user and group under which it runs; `None` keeps ours.
    pub user: Option<u32>,
    /// A supplementary group, for the device that it needs.
    pub device_group: Option<u32>,
    /// The cgroup that it joins before it runs.
    pub cgroup: Option<Cgroup>,
    /// Where its standard output goes; nowhere, where that is not said.
    pub stdout: Option<OwnedFd>,
    /// Where its standard error goes.
    pub stderr: OwnedFd,
}

/// The descriptor of the first of [`Spawn::files`].
pub const FIRST_FILE: i32 = 3;

impl Process {
    /// Starts a process in a session of its own, without any descriptor of ours beyond those
    /// it is given, unable to gain rights, and with no core dump (which would hold its guest's
    /// memory).
    ///
    /// # Errors
    /// Those of fork and exec.
    pub fn spawn(spawn: Spawn) -> io::Result<Self> {
        Self::spawn_by(spawn, Command::spawn)
    }

    /// The same, as the first process of a namespace of its own: whatever it starts ends with it, and it
    /// has ended once all of that has.
    ///
    /// # Errors
    /// Those of fork and exec; `EPERM` without `CAP_SYS_ADMIN`.
    pub fn spawn_first(spawn: Spawn) -> io::Result<Self> {
        Self::spawn_by(spawn, start_first)
    }

    fn spawn_by(
        spawn: Spawn,
        start: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> io::Result<Self> {
        let Spawn {
            mut command,
            files,
            user,
            device_group,
            cgroup,
            stdout,
            stderr,
        } = spawn;
        command
            .stdin(Stdio::null())
            .stdout(stdout.map_or_else(Stdio::null, Stdio::from))
            .stderr(stderr);
        let beyond = FIRST_FILE + i32::try_from(files.len()).map_err(io::Error::other)?;
        let mappings = files
            .into_iter()
            .zip(FIRST_FILE..)
            .map(|(parent_fd, child_fd)| FdMapping {
                parent_fd,
                child_fd,
            })
            .collect();
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        // Used once the files have their numbers, of which it must have none.
        let join = |cgroup: &Cgroup| {
            let procs = cgroup.open_procs()?;
            Ok::<_, io::Error>(rustix::io::fcntl_dupfd_cloexec(&procs, beyond)?)
        };
        let procs = cgroup.as_ref().map(join).transpose()?;
        prepare(&mut command, procs, user.map(|user| (user, device_group)));
        let mut child = start(&mut command)?;
        let held = i32::try_from(child.id())
            .map_err(io::Error::other)
            .and_then(Self::hold);
        if held.is_err() {
            // What cannot be held must not run; that it cannot be killed either is no case.
            let _ = child.kill();
            let _ = child.wait();
        }
        held
    }

    /// Holds a process that an earlier process of this node started.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where it is gone, or its number is another one's now.
    pub fn adopt(identity: &Identity) -> io::Result<Self> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let process = Self::hold(identity.pid).map_err(|error| {
            let no_such = Some(rustix::io::Errno::SRCH.raw_os_error());
            match error.kind() {
                io::ErrorKind::NotFound => gone(),
                _ if error.raw_os_error() == no_such => gone(),
                // Too few descriptors, say: that proves nothing about the process.
                _ => error,
            }
        })?;
        // Checked after the pidfd is open: from here on the number cannot change hands.
        if process.identity == *identity {
            Ok(process)
        } else {
            Err(gone())
        }
    }

    /// All processes of a user.
    #[must_use]
    pub fn of_user(user: u32) -> Vec<Self> {
        use std::os::unix::fs::MetadataExt;
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let is_theirs = || entry.metadata().is_ok_and(|m| m.uid() == user);
                // Looked at again once it is held: a number can change hands.
                let held = is_theirs().then(|| Self::hold(pid).ok()).flatten()?;
                let still = fs::metadata(entry.path()).is_ok_and(|m| m.uid() == user);
                still.then_some(held)
            })
            .collect()
    }

    fn hold(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::NONBLOCK)?;
        Ok(Self {
            pidfd: watch(pidfd)?,
            identity: Identity::of(pid)?,
            is_first: is_first(pid)?,
            exit: tokio::sync::OnceCell::new(),
        })
    }

    /// Which process it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Sends SIGKILL. A process that has ended already is no error.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends SIGTERM, or SIGKILL to the first process of a namespace, which SIGTERM does not reach. A
    /// process that has ended already is no error.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn terminate(&self) -> io::Result<()> {
        if self.is_first {
            return self.kill();
        }
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended, reaped or not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Waits for its end and reaps it. Any number of callers may; all see the same.
    pub async fn wait(&self) -> ProcessExit {
        *self.exit.get_or_init(|| self.reap()).await
    }

    async fn reap(&self) -> ProcessExit {
        loop {
            // An error here means that the runtime is about to go, and nobody will look.
            let Ok(mut ready) = self.pidfd.readable().await else {
                return ProcessExit::Unknown;
            };
            let found = rustix::process::waitid(
                WaitId::PidFd(self.pidfd.get_ref().as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
            match found {
                Ok(Some(status)) => {
                    return match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => ProcessExit::Code(code),
                        (None, Some(signal)) => ProcessExit::Signal(signal),
                        (None, None) => ProcessExit::Unknown,
                    };
                }
                Ok(None) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                    ready.clear_ready();
                }
                // Not our child: it has ended, since its pidfd is readable.
                Err(_) => return ProcessExit::Unknown,
            }
        }
    }
}

#[allow(unsafe_code)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the value that is registered and stays the same
    // until that is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE) }?)
}

/// Whether a process is the first one of a namespace below ours: its number there is 1
/// (`/proc/PID/status`, field `NSpid`).
fn is_first(pid: i32) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let mut numbers = numbers.unwrap_or_default().split_ascii_whitespace();
    // Ours comes first; a kernel without such namespaces has no such line.
    Ok(numbers.next().is_some() && numbers.next_back() == Some("1"))
}

/// Starts a program as the first process of a namespace of its own.
#[allow(unsafe_code)]
fn start_first(command: &mut Command) -> io::Result<Child> {
    // Which namespace its children are in is a matter of the thread alone.
    thread::scope(|scope| {
        let spawning = thread::Builder::new().name("spawn".into());
        let spawning = spawning.spawn_scoped(scope, || {
            // SAFETY: only children of this thread are in the new namespace, and it has one.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.map_err(|error| {
                // ENOSPC is no full disk here: `user.max_pid_namespaces` are there.
                let why = format!("no namespace of processes can be made: {error}");
                io::Error::other(why)
            })?;
            command.spawn()
        })?;
        let spawned = spawning.join();
        spawned.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

#[allow(unsafe_code)]
fn prepare(command: &mut Command, procs: Option<OwnedFd>, user: Option<(u32, Option<u32>)>) {
    // SAFETY: between fork and exec the closure makes only system calls, on values that were
    // ready before the fork; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::thread::set_no_new_privs(true)?;
            let none = rustix::process::Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            rustix::process::setrlimit(rustix::process::Resource::Core, none)?;
            if let Some(procs) = &procs {
                rustix::io::write(procs, b"0")?;
            }
            if let Some((user, device_group)) = user {
                let group = device_group.map(Gid::from_raw);
                rustix::thread::set_thread_groups(group.as_slice())?;
                let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            }
            Ok(())
        });
    }
}

/// Lets a program keep so many bytes in memory for good, as VFIO does with all that a device may write to
/// (`RLIMIT_MEMLOCK`, `getrlimit(2)`). Needs `CAP_SYS_RESOURCE`, where that is more than ours.
#[allow(unsafe_code)]
pub(crate) fn allow_locked_memory(command: &mut Command, bytes: u64) {
    // SAFETY: between fork and exec the closure makes one system call, on a value that was ready
    // before the fork.
    unsafe {
        command.pre_exec(move || {
            let limit = rustix::process::Rlimit {
                current: Some(bytes),
                maximum: Some(bytes),
            };
            rustix::process::setrlimit(rustix::process::Resource::Memlock, limit)?;
            Ok(())
        });
    }
}

/// A number for a file that [`Spawn::files`] hands over, as the child's `/proc` names it.
#[must_use]
pub fn path_of_file(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}

/// Whether a file's bytes can be read by any user who gets its descriptor.
///
/// # Errors
/// Those of fstat.
pub fn is_world_readable(file: &fs::File) -> io::Result<bool> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    Ok(mode & 0o004 != 0)
}
